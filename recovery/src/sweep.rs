//! Clears `stage/`: unlinks what is ours and done with, and keeps in quarantine what is not.
//!
//! Nothing that a record names is unlinked unread: another program may have written to it through a descriptor that it
//! opened before the replacement. Only directories of processes that are gone are entered, and only after the record
//! that settles their transactions is durable.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Kind, Lock};

use crate::analyze::{Committed, Slots, slots_of};
use crate::apply::Applier;
use crate::error::{Doing, Error};
use crate::image::Slot;
use crate::known::{Known, Likeness};
use crate::places::Places;
use crate::plan::Change;
use crate::stage::{LOCK_FILE, is_from_recovery};
use crate::tree_path::TreePath;

/// Unlinks the original that a settled change left in its slot, or quarantines what has become of it. Not durable yet.
fn discard_original(
    places: &Places,
    applier: &mut Applier<'_>,
    dir: &dyn Dir,
    change: &Change<'_>,
) -> io::Result<()> {
    let (Some(image), Some(slot)) = (&change.before, &change.slot) else { return Ok(()) };
    let name = slot.os_name();
    match image.is_unchanged_at(&*places.vfs, dir, &name) {
        Ok(true) if image.kind == Kind::Dir => {
            applier.clear_directory(dir, &name, &change.path, &change.contents)
        }
        Ok(true) => dir.remove_file(&name),
        Ok(false) => applier.quarantine(dir, &name, &change.path),
        // A foreign content went to quarantine as soon as it came out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Unlinks the originals that settled transactions left in their slots, whichever processes these belong to.
///
/// # Durability
/// What it removed and moved is durable when it returns. It may be done again, by another process too.
pub fn discard_originals<'a, 'b: 'a>(
    places: &Places,
    applier: &mut Applier<'_>,
    transactions: impl IntoIterator<Item = &'a Committed<'b>>,
) -> Result<(), Error> {
    let mut dirs = SlotDirs::default();
    for transaction in transactions {
        applier.set_lsn(transaction.lsn);
        for change in &transaction.changes {
            let Some(slot) = change.before.as_ref().and(change.slot.as_ref()) else { continue };
            let Some(dir) = dirs.of(places, slot)? else { continue };
            discard_original(places, applier, &*dir, change)
                .doing("clear the original of", &change.path.to_string())?;
        }
    }
    dirs.sync(places)
}

/// Clears the slots that these settled transactions name, and those of recoveries, in the directories of all processes, the
/// living included: somebody else may have died, or failed, before he did. What is `known` besides is recognised in the latter. What else the living have staged stays. To be
/// called by who alone may recover.
///
/// # Durability
/// As for [`discard_originals`].
pub fn clear_slots<'a, 'b: 'a>(
    places: &Places,
    settled: impl IntoIterator<Item = &'a Committed<'b>> + Clone,
    known: impl IntoIterator<Item = &'a Committed<'b>> + Clone,
    applier: &mut Applier<'_>,
) -> Result<(), Error> {
    let slots = slots_of(settled.clone());
    let all = || Known::of(settled.clone().into_iter().chain(known.clone()));
    // Contents are hashed only if something is there to be recognised.
    let mut images = None;
    for entry in places.stage.list().doing("list", "stage")? {
        let Some(dir_name) = entry.name.to_str() else { continue };
        let label = format!("stage/{dir_name}");
        let dir = match places.stage.open_dir(Path::new(dir_name)) {
            // Whoever leaves removes his own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.doing("open", &label)?,
        };
        let mut is_changed = false;
        for file in dir.list().doing("list", &label)? {
            if !is_from_recovery(&file.name)
                && !slot_of(dir_name, &file.name).is_some_and(|slot| slots.contains_key(&slot))
            {
                continue;
            }
            let known = images.get_or_insert_with(all);
            sweep_file(places, &*dir, dir_name, &file.name, &slots, known, applier)
                .doing("clear", &format!("{label}/{}", file.name.to_string_lossy()))?;
            is_changed = true;
        }
        if is_changed {
            dir.sync().doing("sync", &label)?;
            places.quarantine.sync().doing("sync", "quarantine")?;
        }
    }
    Ok(())
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

/// Clears the directories of processes that are gone, and removes them.
///
/// # Durability
/// What it removed and moved is durable when it returns.
pub fn sweep(
    places: &Places,
    dead: Vec<DeadStage>,
    slots: &Slots<'_, '_>,
    known: &Known<'_>,
    applier: &mut Applier<'_>,
) -> Result<(), Error> {
    if dead.is_empty() {
        return Ok(());
    }
    for DeadStage { name, dir, _lock } in dead {
        let label = format!("stage/{name}");
        for file in dir.list().doing("list", &label)? {
            if file.name == LOCK_FILE {
                continue;
            }
            sweep_file(places, &*dir, &name, &file.name, slots, known, applier)
                .doing("clear", &format!("{label}/{}", file.name.to_string_lossy()))?;
        }
        dir.sync().doing("sync", &label)?;
        places.quarantine.sync().doing("sync", "quarantine")?;
        dir.remove_file(OsStr::new(LOCK_FILE)).doing("remove the lock file of", &label)?;
        places.stage.remove_dir(OsStr::new(&name)).doing("remove", &label)?;
    }
    places.stage.sync().doing("sync", "stage")
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

/// Unlinks what has been recognised.
fn clear_known(dir: &dyn Dir, name: &OsStr, known: &Known<'_>, applier: &mut Applier<'_>) -> io::Result<()> {
    match known.taken_directory(&dir.metadata(name)?) {
        Some(change) => applier.clear_directory(dir, name, &change.path, &change.contents),
        None => dir.remove_file(name),
    }
}

fn sweep_file(
    places: &Places,
    dir: &dyn Dir,
    dir_name: &str,
    name: &OsStr,
    slots: &Slots<'_, '_>,
    known: &Known<'_>,
    applier: &mut Applier<'_>,
) -> io::Result<()> {
    if let Some((transaction, change)) = slot_of(dir_name, name).and_then(|slot| slots.get(&slot)) {
        applier.set_lsn(transaction.lsn);
        if let Some(image) = &change.before
            && image.kind != Kind::Dir
            && image.is_unchanged_at(&*places.vfs, dir, name)?
        {
            return dir.remove_file(name);
        }
        let found = dir.metadata(name)?;
        if found.kind == Kind::Dir {
            // Inode numbers are used again: only its own record explains what a slot holds.
            return match &change.before {
                Some(image) if change.takes_directory() && image.is_directory(&found) => {
                    applier.clear_directory(dir, name, &change.path, &change.contents)
                }
                _ => applier.quarantine(dir, name, &change.path),
            };
        }
        return match known.likeness(dir, name)? {
            Likeness::Image | Likeness::Torn => clear_known(dir, name, known, applier),
            Likeness::Foreign => applier.quarantine(dir, name, &change.path),
        };
    }
    // No record names it. Staged by a commit that was never logged, it was visible to nobody. Taken out of the tree by
    // a recovery that did not finish, it may be anybody's.
    let is_dir = dir.metadata(name)?.kind == Kind::Dir;
    if (!is_from_recovery(name) && !is_dir) || known.likeness(dir, name)? != Likeness::Foreign {
        return clear_known(dir, name, known, applier);
    }
    let path = TreePath::new(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    applier.quarantine(dir, name, &path)
}
