//! Clears `stage/`: what the history keeps goes to `images/`, what else is ours and done with is unlinked, and what is not
//! ours goes to quarantine.
//!
//! Nothing that a record names is unlinked unread: another program may have written to it through a descriptor that it
//! opened before the replacement. Of a process that lives only the slots that records name are cleared, and only after the
//! record that settles their transactions is durable.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Kind, Lock};

use crate::analyze::{Committed, Slots};
use crate::apply::Applier;
use crate::error::{Doing, Error};
use crate::image::Slot;
use crate::images::{self, ImageName, keep_original};
use crate::keeper::Keeper;
use crate::known::{Known, Likeness};
use crate::places::Places;
use crate::plan::Change;
use crate::stage::{LOCK_FILE, is_from_recovery};
use crate::tree_path::TreePath;

/// Moves the originals of settled transactions from their slots, whichever processes these belong to, to `images/`, where
/// their manifest says that they are; what nothing is kept of is unlinked. Everything is compared first.
///
/// # Durability
/// What it removed and moved is durable when it returns. It may be done again, by another process too.
pub fn keep_originals<'a, 'b: 'a>(
    places: &Places,
    applier: &mut Applier<'_>,
    transactions: impl IntoIterator<Item = &'a Committed<'b>>,
    image_bytes_max: u64,
) -> Result<(), Error> {
    let mut dirs = SlotDirs::default();
    for transaction in transactions {
        applier.set_lsn(transaction.lsn);
        for (index, change) in transaction.changes.iter().enumerate() {
            let Some(slot) = change.before.as_ref().and(change.slot.as_ref()) else { continue };
            let Some(dir) = dirs.of(places, slot)? else { continue };
            let kept = ImageName::of(transaction.begin.tx, index, change, image_bytes_max);
            keep_original(places, applier, &*dir, change, kept.as_ref())
                .doing("clear the original of", &change.path.to_string())?;
        }
    }
    dirs.sync(places)
}

/// The slot that a file in `stage/` is, or belongs to: on a file system without exchange the original waits under the
/// slot's name with a suffix.
fn slot_of(dir_name: &str, name: &OsStr) -> Option<Slot> {
    let name = name.to_str()?;
    Some(Slot { dir: dir_name.to_owned(), name: name.strip_suffix("-old").unwrap_or(name).to_owned() })
}

/// The directories of slots, each opened once; `None` for one that has been swept.
#[derive(Default)]
struct SlotDirs(HashMap<String, Option<Arc<dyn Dir>>>);

impl SlotDirs {
    fn of(&mut self, places: &Places, slot: &Slot) -> Result<Option<Arc<dyn Dir>>, Error> {
        if let Some(dir) = self.0.get(&slot.dir) {
            return Ok(dir.clone());
        }
        let dir = match places.stage.open_dir(Path::new(&slot.dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened.doing("open", &format!("stage/{}", slot.dir))?),
        };
        self.0.insert(slot.dir.clone(), dir.clone());
        Ok(dir)
    }

    fn sync(&self, places: &Places) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        places.images.sync().doing("sync", "images")?;
        self.0.values().flatten().try_for_each(|dir| dir.sync()).doing("sync", "stage")?;
        places.quarantine.sync().doing("sync", "quarantine")
    }
}

/// A process's directory in `stage/` whose process is gone; with its lock.
pub struct DeadStage {
    name: String,
    dir: Arc<dyn Dir>,
    _lock: Arc<dyn File>,
}

/// The directories of all processes that are gone. To be called under the store's commit lock.
pub fn dead_stages(places: &Places, own: &str) -> Result<Vec<DeadStage>, Error> {
    let mut dead = Vec::new();
    for entry in places.stage.list().doing("list", "stage")? {
        let Some(name) = entry.name.to_str().filter(|name| *name != own) else { continue };
        let label = format!("stage/{name}");
        let dir = places.stage.open_dir(Path::new(name)).doing("open", &label)?;
        if let Some(lock) = lock_of_dead_process(&*dir).doing("lock", &label)? {
            dead.push(DeadStage { name: name.to_owned(), dir, _lock: lock });
        }
    }
    Ok(dead)
}

/// What clearing up goes by.
pub struct Sweep<'a, 'b> {
    /// The store and the tree.
    pub places: &'a Places,
    /// Every slot that a record names, with the change it belongs to.
    pub slots: &'a Slots<'a, 'b>,
    /// The contents that records explain.
    pub known: &'a Known<'a>,
    /// Moves to quarantine.
    pub applier: &'a mut Applier<'b>,
    /// Moves to `images/`.
    pub keeper: &'a mut Keeper<'b>,
}

/// Files in one of the directories in `stage/`.
pub struct Left {
    name: String,
    dir: Arc<dyn Dir>,
    files: Vec<OsString>,
}

/// What waits in slots that records name, and in those of recoveries, in the directories of all processes, the living
/// included: somebody else may have died, or failed, before he had cleared it. But not what a recovery that is under way
/// has in its `own`.
pub fn left_slots(places: &Places, slots: &Slots<'_, '_>, own: &BTreeSet<Slot>) -> Result<Vec<Left>, Error> {
    let mut left = Vec::new();
    for entry in places.stage.list().doing("list", "stage")? {
        let Some(name) = entry.name.to_str() else { continue };
        let label = format!("stage/{name}");
        let dir = match places.stage.open_dir(Path::new(name)) {
            // Whoever leaves removes his own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.doing("open", &label)?,
        };
        let is_left = |file: &OsString| {
            slot_of(name, file).is_some_and(|slot| {
                (is_from_recovery(file) && !own.contains(&slot)) || slots.contains_key(&slot)
            })
        };
        let files = dir.list().doing("list", &label)?.into_iter().map(|entry| entry.name);
        let files: Vec<_> = files.filter(is_left).collect();
        if !files.is_empty() {
            left.push(Left { name: name.to_owned(), dir, files });
        }
    }
    Ok(left)
}

impl Sweep<'_, '_> {
    /// Clears what was left in slots; see [`left_slots`]. To be called by who alone may recover.
    ///
    /// # Durability
    /// What it removed and moved is durable when it returns.
    pub fn left(&mut self, left: Vec<Left>) -> Result<(), Error> {
        for Left { name, dir, files } in left {
            for file in files {
                self.file(&*dir, &name, &file)
                    .doing("clear", &format!("stage/{name}/{}", file.to_string_lossy()))?;
            }
            self.sync(&*dir, &name)?;
        }
        Ok(())
    }

    /// Clears the directories of processes that are gone, and removes them.
    ///
    /// # Durability
    /// What it removed and moved is durable when it returns.
    pub fn dead(&mut self, dead: Vec<DeadStage>) -> Result<(), Error> {
        if dead.is_empty() {
            return Ok(());
        }
        for DeadStage { name, dir, _lock } in dead {
            let label = format!("stage/{name}");
            for file in dir.list().doing("list", &label)? {
                if file.name == LOCK_FILE {
                    continue;
                }
                self.file(&*dir, &name, &file.name)
                    .doing("clear", &format!("{label}/{}", file.name.to_string_lossy()))?;
            }
            self.sync(&*dir, &name)?;
            dir.remove_file(OsStr::new(LOCK_FILE)).doing("remove the lock file of", &label)?;
            self.places.stage.remove_dir(OsStr::new(&name)).doing("remove", &label)?;
        }
        self.places.stage.sync().doing("sync", "stage")
    }

    fn sync(&self, dir: &dyn Dir, name: &str) -> Result<(), Error> {
        self.places.images.sync().doing("sync", "images")?;
        dir.sync().doing("sync", &format!("stage/{name}"))?;
        self.places.quarantine.sync().doing("sync", "quarantine")
    }

    fn file(&mut self, dir: &dyn Dir, dir_name: &str, name: &OsStr) -> io::Result<()> {
        // Made by nobody else, and gone if the directory beside which it lay has been kept since it was listed.
        if images::is_copy(name) {
            return images::remove(dir, name);
        }
        if let Some((transaction, change)) = slot_of(dir_name, name).and_then(|slot| self.slots.get(&slot)) {
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
/// crash; nobody else can be making one while the commit lock is held.
fn lock_of_dead_process(dir: &dyn Dir) -> io::Result<Option<Arc<dyn File>>> {
    let name = OsStr::new(LOCK_FILE);
    let file = match dir.open_file(name, Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.create_file(name, 0o600)?,
        result => result?,
    };
    Ok(file.try_lock(Lock::Exclusive)?.then_some(file))
}
