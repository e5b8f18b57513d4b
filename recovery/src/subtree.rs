//! What lies in a directory that was taken out of the tree: compares it with what was logged, and clears it away.
//!
//! A removed directory leaves the tree in one rename, with everything in it. What somebody put into it after the last
//! look, or changed there, goes to quarantine; the rest is unlinked once the removal is settled.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree_vfs::{Dir, Kind, Vfs};

use crate::image::Image;
use crate::tree_path::TreePath;

/// How often a directory that is not empty is looked at again before the error is handed up.
const ATTEMPTS: usize = 8;

/// A directory outside of the tree, with what the log says that it holds.
pub struct Subtree<'a> {
    vfs: &'a dyn Vfs,
    top: Arc<dyn Dir>,
    contents: BTreeMap<&'a [u8], &'a Image<'a>>,
}

impl<'a> Subtree<'a> {
    /// The directory at `name`, of which these images were taken, by their paths below it.
    pub fn open(
        vfs: &'a dyn Vfs,
        dir: &dyn Dir,
        name: &OsStr,
        contents: &'a [(TreePath, Image<'a>)],
    ) -> io::Result<Self> {
        let top = dir.open_dir(Path::new(name))?;
        Ok(Self {
            vfs,
            top,
            contents: contents.iter().map(|(path, image)| (path.as_bytes(), image)).collect(),
        })
    }

    /// Hands `displace` everything that is not exactly what was logged, with the directory that holds it and its path
    /// below the top. A strange directory is handed over as a whole.
    pub fn displace_strangers(
        &self,
        mut displace: impl FnMut(&dyn Dir, &TreePath) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut unseen: Vec<Option<TreePath>> = vec![None];
        while let Some(at) = unseen.pop() {
            let dir = self.top.open_dir(at.as_ref().map_or(Path::new(""), TreePath::as_path))?;
            for entry in dir.list()? {
                let path = match &at {
                    Some(at) => [at.as_bytes(), b"/", entry.name.as_encoded_bytes()].concat(),
                    None => entry.name.as_encoded_bytes().to_vec(),
                };
                let path = TreePath::from_bytes_below(&path)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidFilename, error))?;
                match self.contents.get(path.as_bytes()) {
                    Some(image) if image.is_unchanged_at(self.vfs, &*dir, &entry.name)? => {
                        if image.kind == Kind::Dir {
                            unseen.push(Some(path));
                        }
                    }
                    _ => displace(&*dir, &path)?,
                }
            }
        }
        Ok(())
    }

    /// Unlinks everything in the directory, and then itself, at `name`. What is not what was logged is handed to
    /// `displace` first.
    ///
    /// # Durability
    /// None; it can be repeated.
    pub fn clear(
        self,
        dir: &dyn Dir,
        name: &OsStr,
        mut displace: impl FnMut(&dyn Dir, &TreePath) -> io::Result<()>,
    ) -> io::Result<()> {
        for attempt in 1.. {
            self.displace_strangers(&mut displace)?;
            self.unlink_contents()?;
            match dir.remove_dir(name) {
                // Somebody who still has it open put something into it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < ATTEMPTS => {}
                result => return result,
            }
        }
        unreachable!("the loop returns at its last attempt")
    }

    /// Unlinks what was logged, the deepest first; what is gone already is fine.
    fn unlink_contents(&self) -> io::Result<()> {
        let mut by_directory: BTreeMap<PathBuf, Vec<(&OsStr, Kind)>> = BTreeMap::new();
        for (path, image) in &self.contents {
            let path = Path::new(os(path));
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            by_directory.entry(parent.to_owned()).or_default().push((name, image.kind));
        }
        let mut directories: Vec<_> = by_directory.into_iter().collect();
        directories.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        for (path, names) in directories {
            let dir = match self.top.open_dir(&path) {
                Ok(dir) => dir,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for (name, kind) in names {
                let result = if kind == Kind::Dir { dir.remove_dir(name) } else { dir.remove_file(name) };
                match result {
                    Err(error)
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                        ) =>
                    {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn os(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
