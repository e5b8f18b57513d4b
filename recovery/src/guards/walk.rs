//! Looks at every name that a guard covers.
//!
//! No symlink is followed and no mount entered. Directories are opened from the root by their whole path, one at a time,
//! so neither their number nor their depth takes descriptors.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Dir, Kind, Metadata};

use super::patterns::{Cover, Patterns, is_store_dir};
use crate::apply::is_no_directory;
use crate::error::{Doing, Error, Refusal};
use crate::places::Places;
use crate::tree_path::TreePath;

/// The owner's right to do anything in a directory.
pub const OWNER_RIGHTS: u32 = 0o700;

/// What stands at a name that a guard covers, or in which something may.
#[derive(Clone, Debug)]
pub struct Found {
    /// The name.
    pub path: TreePath,
    /// What stands there.
    pub metadata: Metadata,
    /// Whether it is guarded itself; else it is a directory in which something may be.
    pub is_guarded: bool,
}

/// What the walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To guard what is found: whatever can't be guarded is an error.
    Capture,
    /// To see what has become of it.
    Compare,
    /// To put it back: what is closed to its owner is opened, and gets its mode back at the end.
    Restore,
}

/// Everything that is covered, sorted by path, so that directories come before what lies in them.
///
/// # Errors
/// For a capture also what lies beyond a mount point or in another subvolume.
pub fn walk(places: &Places, patterns: &Patterns, purpose: Purpose) -> Result<Vec<Found>, Error> {
    let root = places.root.own_metadata().doing("read the metadata of", ".")?;
    let mut found = Vec::new();
    let mut dirs: Vec<(Option<TreePath>, Cover)> = vec![(None, Cover::Outside)];
    while let Some((path, cover)) = dirs.pop() {
        let label = path.as_ref().map_or(".".to_owned(), ToString::to_string);
        let Some((dir, entries)) = list(places, path.as_ref(), purpose).doing("list", &label)? else {
            continue;
        };
        for entry in entries {
            let Some(path) = join(path.as_ref(), &entry.name)? else { continue };
            let metadata = match dir.metadata(&entry.name) {
                // It was there a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read.doing("read the metadata of", &path)?,
            };
            let is_dir = metadata.kind == Kind::Dir;
            let cover = patterns.cover(cover, &path, is_dir);
            if cover == Cover::LeftOut || cover == Cover::Outside && !is_dir {
                continue;
            }
            if (metadata.mount, metadata.device) != (root.mount, root.device) {
                if purpose == Purpose::Capture {
                    return Err(beyond(&path, metadata.mount == root.mount));
                }
                continue;
            }
            if is_dir {
                dirs.push((Some(path.clone()), cover));
            }
            found.push(Found { path, metadata, is_guarded: cover == Cover::Guarded });
        }
    }
    found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// The directory and what lies in it; `None` if it is none any more.
fn list(
    places: &Places,
    path: Option<&TreePath>,
    purpose: Purpose,
) -> io::Result<Option<(Arc<dyn Dir>, Vec<atomtree_vfs::Entry>)>> {
    let opened = path.map_or(Path::new(""), TreePath::as_path);
    let listed = places.root.open_dir(opened).and_then(|dir| Ok((dir.list()?, dir)));
    let listed = match (listed, path) {
        (Err(error), Some(path))
            if error.kind() == io::ErrorKind::PermissionDenied && purpose == Purpose::Restore =>
        {
            open_to_owner(places, path)?;
            let dir = places.root.open_dir(opened)?;
            Ok((dir.list()?, dir))
        }
        (listed, _) => listed,
    };
    match listed {
        Ok((entries, dir)) => Ok(Some((dir, entries))),
        Err(error) if is_no_directory(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives the owner of a directory back what a change of mode took.
pub fn open_to_owner(places: &Places, path: &TreePath) -> io::Result<()> {
    let above = places.root.open_dir(path.parent_path())?;
    let mode = above.metadata(path.name())?.mode;
    above.set_mode_of(path.name(), mode | OWNER_RIGHTS)
}

/// The path of a name in a directory; `None` for the store itself.
fn join(dir: Option<&TreePath>, name: &OsStr) -> Result<Option<TreePath>, Error> {
    let joined = match dir {
        Some(dir) => dir.join(name),
        None => TreePath::from_bytes_below(name.as_encoded_bytes()),
    };
    match joined {
        Ok(path) => Ok((!is_store_dir(&path)).then_some(path)),
        Err(error) => Err(Error::Refused {
            kind: Refusal::InvalidPath,
            path: dir.map_or(".".to_owned(), ToString::to_string),
            reason: format!("a name in it can't be guarded, because {error}; leave it out, or move it away"),
        }),
    }
}

fn beyond(path: &TreePath, is_same_mount: bool) -> Error {
    let (kind, what) = if is_same_mount {
        (Refusal::CrossDevice, "is another subvolume")
    } else {
        (Refusal::MountPoint, "is a mount point")
    };
    let reason = format!("it {what}, and only one file system can be guarded; leave it out (--ignore)");
    Error::Refused { kind, path: path.to_string(), reason }
}
