//! Clears `stage/`: what the history keeps goes to `images/`, what else is ours and done with is unlinked, and what is not
//! ours goes to quarantine.
//!
//! Nothing that a record names is unlinked unread: another program may have written to it through a descriptor that it
//! opened before the replacement. Only directories of processes that are gone are entered, and only after the record
//! that settles their transactions is durable.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_vfs::{Access, Dir, Kind, Lock};

use crate::analyze::Committed;
use crate::apply::Applier;
use crate::error::{Doing, Error};
use crate::image::Slot;
use crate::keeper::Keeper;
use crate::known::{Known, Likeness};
use crate::places::Places;
use crate::plan::Change;
use crate::stage::{LOCK_FILE, is_from_recovery};
use crate::tree_path::TreePath;

/// What clearing up goes by.
pub struct Sweep<'a, 'b> {
    /// The store and the tree.
    pub places: &'a Places,
    /// Every slot that a record names, with the change it belongs to.
    pub slots: &'a BTreeMap<Slot, (&'a Committed<'b>, &'a Change<'b>)>,
    /// The contents that records explain.
    pub known: &'a Known<'a>,
    /// Moves to quarantine.
    pub applier: &'a mut Applier<'b>,
    /// Moves to `images/`.
    pub keeper: &'a mut Keeper<'b>,
}

impl Sweep<'_, '_> {
    /// Clears the directories of all processes that are gone but `own`. Returns how many it removed.
    ///
    /// # Durability
    /// What it removed and moved is durable when it returns.
    pub fn all(&mut self, own: &str) -> Result<usize, Error> {
        let places = self.places;
        let mut removed = 0;
        for entry in places.stage.list().doing("list", "stage")? {
            let Some(dir_name) = entry.name.to_str().filter(|name| *name != own) else { continue };
            let label = format!("stage/{dir_name}");
            let dir = places.stage.open_dir(Path::new(dir_name)).doing("open", &label)?;
            let Some(lock) = lock_of_dead_process(&*dir).doing("lock", &label)? else { continue };
            for file in dir.list().doing("list", &label)? {
                if file.name == LOCK_FILE {
                    continue;
                }
                self.file(&*dir, dir_name, &file.name)
                    .doing("clear", &format!("{label}/{}", file.name.to_string_lossy()))?;
            }
            places.images.sync().doing("sync", "images")?;
            dir.sync().doing("sync", &label)?;
            places.quarantine.sync().doing("sync", "quarantine")?;
            dir.remove_file(OsStr::new(LOCK_FILE)).doing("remove the lock file of", &label)?;
            places.stage.remove_dir(OsStr::new(dir_name)).doing("remove", &label)?;
            drop(lock);
            removed += 1;
        }
        if removed > 0 {
            places.stage.sync().doing("sync", "stage")?;
        }
        Ok(removed)
    }

    fn file(&mut self, dir: &dyn Dir, dir_name: &str, name: &OsStr) -> io::Result<()> {
        // On a file system without exchange the original waits under the slot's name with a suffix.
        let base = name.to_str().map(|name| name.strip_suffix("-old").unwrap_or(name));
        let slot = base.map(|base| Slot { dir: dir_name.to_owned(), name: base.to_owned() });
        if let Some((transaction, change)) = slot.and_then(|slot| self.slots.get(&slot)) {
            self.applier.set_lsn(transaction.lsn);
            if let Some(image) = &change.before
                && image.kind != Kind::Dir
                && image.is_unchanged_at(&*self.places.vfs, dir, name)?
            {
                return self.clear_known(dir, name);
            }
            let found = dir.metadata(name)?;
            if found.kind == Kind::Dir {
                // Inode numbers are used again: only its own record explains what a slot holds.
                return match &change.before {
                    Some(image) if change.takes_directory() && image.is_directory(&found) => {
                        self.clear_directory(dir, name, change)
                    }
                    _ => self.applier.quarantine(dir, name, &change.path),
                };
            }
            return match self.known.likeness(dir, name)? {
                Likeness::Image | Likeness::Torn => self.clear_known(dir, name),
                Likeness::Foreign => self.applier.quarantine(dir, name, &change.path),
            };
        }
        // No record names it. Staged by a commit that was never logged, it was visible to nobody. Taken out of the tree
        // by a recovery that did not finish, it may be anybody's.
        let is_dir = dir.metadata(name)?.kind == Kind::Dir;
        if (!is_from_recovery(name) && !is_dir) || self.known.likeness(dir, name)? != Likeness::Foreign {
            return self.clear_known(dir, name);
        }
        let path = TreePath::new(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.applier.quarantine(dir, name, &path)
    }

    /// Keeps what has been recognised, if the history wants it, and unlinks it otherwise.
    pub fn clear_known(&mut self, dir: &dyn Dir, name: &OsStr) -> io::Result<()> {
        match self.known.taken_directory(&dir.metadata(name)?) {
            Some(change) => self.clear_directory(dir, name, change),
            None if self.keeper.keep(self.applier, dir, name, None)? => Ok(()),
            None => dir.remove_file(name),
        }
    }

    fn clear_directory(&mut self, dir: &dyn Dir, name: &OsStr, change: &Change<'_>) -> io::Result<()> {
        if self.keeper.keep(self.applier, dir, name, Some(change))? {
            return Ok(());
        }
        self.applier.clear_directory(dir, name, &change.path, &change.contents)
    }
}

/// The directory's lock, if its process is gone. A directory without a lock file was being made, or removed, at the
/// crash; nobody else can be making one while the store's lock is held.
fn lock_of_dead_process(dir: &dyn Dir) -> io::Result<Option<std::sync::Arc<dyn atomtree_vfs::File>>> {
    let name = OsStr::new(LOCK_FILE);
    let file = match dir.open_file(name, Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.create_file(name, 0o600)?,
        result => result?,
    };
    Ok(file.try_lock(Lock::Exclusive)?.then_some(file))
}
