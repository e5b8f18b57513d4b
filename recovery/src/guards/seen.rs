//! Which guards there are, for whoever looks from outside: nothing is locked, made or changed.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_vfs::{Access, Dir, ProcessIdentity, Timestamp};

use super::{
    GUARD_FILE, GUARDS_DIR, LOCK_FILE, MANIFEST_FILE, PatternTexts, is_guard_name, note, patterns_of,
};
use crate::error::{Doing, Error};
use crate::places::Places;

/// A guard that is open, or left by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name in `guards/`.
    pub id: String,
    /// Whose it is; `None` if that can't be read.
    pub owner: Option<ProcessIdentity>,
    /// Whether the owner has gone: whoever opens the store next rolls back what it covers.
    pub is_abandoned: bool,
    /// When it was begun.
    pub since: Timestamp,
    /// What it covers.
    pub patterns: PatternTexts,
}

/// All that exist, those first that were begun first.
pub fn seen(places: &Places) -> Result<Vec<Seen>, Error> {
    let guards = match places.store.open_dir(Path::new(GUARDS_DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.doing("open", GUARDS_DIR)?,
    };
    let mut all = Vec::new();
    for entry in guards.list().doing("list", GUARDS_DIR)? {
        let Some(id) = entry.name.to_str().filter(|name| is_guard_name(name)) else { continue };
        match one(places, &*guards, id) {
            Ok(found) => all.extend(found),
            // It has just ended.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|guard| guard.since);
    Ok(all)
}

/// The guard in this directory; `None` if it does not exist yet, or any more.
fn one(places: &Places, guards: &dyn Dir, id: &str) -> Result<Option<Seen>, Error> {
    let label = format!("{GUARDS_DIR}/{id}");
    let dir = guards.open_dir(Path::new(id)).doing("open", &label)?;
    let metadata = |name: &str| dir.metadata(OsStr::new(name)).doing("look at", &label);
    metadata(MANIFEST_FILE)?;
    let since = metadata(GUARD_FILE)?.modified;
    let Some(patterns) = patterns_of(&*dir, &label)? else { return Ok(None) };
    let lock = dir.open_file(OsStr::new(LOCK_FILE), Access::Read).doing("open", &label)?;
    let owner = note::read(&*lock);
    let is_abandoned = owner.as_ref().is_none_or(|owner| !places.vfs.is_alive(owner));
    Ok(Some(Seen { id: id.to_owned(), owner, is_abandoned, since, patterns: patterns.texts().clone() }))
}
