//! Clears `stage/`: unlinks what is ours and done with, and keeps in quarantine what is not.
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
use crate::known::{Known, Likeness};
use crate::places::Places;
use crate::plan::Change;
use crate::stage::{LOCK_FILE, is_from_recovery};
use crate::tree_path::TreePath;

/// Unlinks the original that a settled change left in its slot, or quarantines what has become of it.
///
/// # Durability
/// None yet: the caller syncs `stage/`, the slot's directory and `quarantine/` before it retires the record.
pub fn discard_original(
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

/// Clears the directories of all processes that are gone. Returns how many it removed.
///
/// # Durability
/// What it removed and moved is durable when it returns.
pub fn sweep(
    places: &Places,
    own: &str,
    slots: &BTreeMap<Slot, (&Committed<'_>, &Change<'_>)>,
    known: &Known<'_>,
    applier: &mut Applier<'_>,
) -> Result<usize, Error> {
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
            sweep_file(places, &*dir, dir_name, &file.name, slots, known, applier)
                .doing("clear", &format!("{label}/{}", file.name.to_string_lossy()))?;
        }
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
    slots: &BTreeMap<Slot, (&Committed<'_>, &Change<'_>)>,
    known: &Known<'_>,
    applier: &mut Applier<'_>,
) -> io::Result<()> {
    // On a file system without exchange the original waits under the slot's name with a suffix.
    let base = name.to_str().map(|name| name.strip_suffix("-old").unwrap_or(name));
    let slot = base.map(|base| Slot { dir: dir_name.to_owned(), name: base.to_owned() });
    if let Some((transaction, change)) = slot.and_then(|slot| slots.get(&slot)) {
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
