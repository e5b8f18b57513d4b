//! Forgets the images that earlier guards have left of a path, or of certain contents.

use std::ffi::OsStr;
use std::io;

use atomtree_vfs::{Access, Kind};

use super::GuardPlaces;
use super::cache::{self, INDEX_FILE, images_of, needed_images, replace_index};
use crate::error::{Doing, Error};
use crate::images::wipe_file;
use crate::places::Places;
use crate::retention::Contents;
use crate::tree_path::TreePath;

/// Overwrites and removes the images of everything at or below the path, and of these contents, that no guard needs; and
/// those that are in no list. Returns how many; nothing while a guard is being opened.
///
/// # Durability
/// They are gone durably when this returns.
pub fn scrub(places: &Places, path: &TreePath, contents: &Contents) -> Result<u64, Error> {
    let Some(guards) = GuardPlaces::open(places)? else { return Ok(0) };
    let Some(_turn) = guards.try_turn()? else { return Ok(0) };
    let mut index = cache::index(&guards);
    let known = index.originals.len();
    index.originals.retain(|known| {
        let is_of_content =
            known.image.as_ref().is_some_and(|image| contents.contains(&(known.size, image.digest)));
        !is_of_content && !known.tree_path().is_at_or_below(path)
    });
    if index.originals.len() < known {
        // Durably before an image is overwritten: a guard that found it in the index would rely on it.
        replace_index(&guards, &index).doing("write", "guards/index")?;
        sync_index(&guards).doing("sync", "guards/index")?;
    }
    // After a power cut the index may be lost, and what is in nobody's list may be of any path.
    let mut needed = needed_images(&guards)?;
    needed.extend(images_of(&index));
    let mut wiped = 0;
    for entry in guards.cache.list().doing("list", "guards/cache")? {
        if entry.name.to_str().is_some_and(|name| needed.contains(name)) {
            continue;
        }
        let label = format!("guards/cache/{}", entry.name.to_string_lossy());
        if guards.cache.metadata(&entry.name).doing("look at", &label)?.kind == Kind::File {
            wipe_file(&*guards.cache, &entry.name).doing("overwrite", &label)?;
        }
        guards.cache.remove_file(&entry.name).doing("remove", &label)?;
        wiped += 1;
    }
    guards.cache.sync().doing("sync", "guards/cache")?;
    Ok(wiped)
}

/// Makes the index that stands durable.
fn sync_index(guards: &GuardPlaces) -> io::Result<()> {
    guards.guards.open_file(OsStr::new(INDEX_FILE), Access::ReadWrite)?.sync_all()?;
    guards.guards.sync()
}
