//! Where `--save-failed` puts what a roll back has taken out of the tree: a directory of the user's, anywhere.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use atomtree::TreePath;

use crate::answer::Failure;

/// The directory.
pub(super) struct SavedTo(PathBuf);

impl SavedTo {
    /// Makes it, if it is not there, before anything is run.
    pub(super) fn prepare(dir: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(dir)
            .map_err(|error| Failure::of_io(&format!("make the directory {}", dir.display()), &error))?;
        Ok(Self(dir.to_owned()))
    }

    /// Takes what was kept in the store's quarantine over, each under its own path. Returns where it is.
    pub(super) fn take(
        &self,
        root: &Path,
        kept: &[(TreePath, String)],
    ) -> Result<Vec<(TreePath, PathBuf)>, Failure> {
        let mut saved = Vec::with_capacity(kept.len());
        for (path, kept) in kept {
            let from = root.join(".atomtree").join(kept);
            let to = self.0.join(path.as_path());
            let taken = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| take(&from, &to));
            taken.map_err(|error| {
                let what = format!("save {} as {}; it is in .atomtree/{kept}", path, to.display());
                Failure::of_io(&what, &error)
            })?;
            saved.push((path.clone(), to));
        }
        remove_empty(root, kept);
        Ok(saved)
    }
}

/// Renames, or copies to another file system; what stood there gives way.
fn take(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        renamed => return renamed,
    }
    let kind = fs::symlink_metadata(from)?;
    if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            take(&from.join(&name), &to.join(&name))?;
        }
        return fs::remove_dir(from);
    }
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    }
    fs::remove_file(from)
}

/// Removes the directories of the quarantine out of which everything was taken.
fn remove_empty(root: &Path, kept: &[(TreePath, String)]) {
    let mut dirs: Vec<&Path> =
        kept.iter().flat_map(|(_, kept)| Path::new(kept).ancestors().skip(1)).collect();
    dirs.sort_unstable_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    dirs.dedup();
    for dir in dirs.into_iter().filter(|dir| dir.components().count() > 1) {
        // One that holds something else stays.
        let _ = fs::remove_dir(root.join(".atomtree").join(dir));
    }
}
