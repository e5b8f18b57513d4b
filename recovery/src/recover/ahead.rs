//! What recovery is going to look at, opened and emptied out of the cache, so that the disk reads it meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use atomtree_vfs::{Dir, File};

use super::Goals;
use crate::apply::{Parents, is_no_directory, is_no_file};
use crate::image::open_own;
use crate::places::Places;
use crate::plan::{After, Change};
use crate::tree_path::TreePath;

/// How many files are being read while the ones before are looked at.
const FILES_AHEAD: usize = 64;

/// A file whose cache was emptied.
pub(super) struct Doubted {
    pub(super) file: Arc<dyn File>,
    /// Whether what is read next comes from the disk.
    pub(super) from_disk: bool,
}

impl Doubted {
    pub(super) fn open(dir: &dyn Dir, name: &OsStr) -> io::Result<Self> {
        let file = open_own(dir, name)?;
        let from_disk = file.drop_cache()?;
        Ok(Self { file, from_disk })
    }
}

/// Files that are looked at soon and that the disk reads meanwhile: one after another it would be waited for each.
pub(super) struct Ahead<'a> {
    coming: std::vec::IntoIter<&'a Change<'a>>,
    /// Its own: what a path leads to can be another directory by the time it is its turn.
    parents: Parents,
    files: HashMap<&'a TreePath, (u64, Doubted)>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(places: &Places, goals: &Goals<'a>) -> io::Result<Self> {
        let is_read = |change: &&Change<'_>| matches!(change.after, After::File { .. });
        let coming: Vec<_> = goals.values().map(|target| target.change).filter(is_read).collect();
        let parents = Parents::new(places.root.clone())?;
        Ok(Self { coming: coming.into_iter(), parents, files: HashMap::new() })
    }

    /// Has some more files read. What can't be opened here is told where it is looked at.
    pub(super) fn go_on(&mut self) {
        while self.files.len() < FILES_AHEAD
            && let Some(Change { path, .. }) = self.coming.next()
        {
            let opened = self.parents.of(path).and_then(|above| {
                let doubted = Doubted::open(&*above.dir, path.name())?;
                Ok((doubted.file.metadata()?.inode, doubted))
            });
            match opened {
                Ok((inode, doubted)) => {
                    doubted.file.read_ahead();
                    self.files.insert(path, (inode, doubted));
                }
                Err(error) if is_no_directory(&error) || is_no_file(&error) => {}
                // It may be for want of descriptors, which those who come to look shall not be in.
                Err(_) => {
                    (self.coming, self.files) = (Vec::new().into_iter(), HashMap::new());
                    self.parents.forget();
                }
            }
        }
    }

    /// The file at the name, if it is this one.
    pub(super) fn take(&mut self, path: &TreePath, inode: u64) -> Option<Doubted> {
        self.files.remove(path).filter(|(found, _)| *found == inode).map(|(_, doubted)| doubted)
    }

    /// Lets go of what is at a name that has been dealt with.
    pub(super) fn leave(&mut self, path: &TreePath) {
        self.files.remove(path);
    }
}
