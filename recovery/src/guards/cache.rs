//! Images that guards have left, for the next to use again, and the index that tells what they are of.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;

use super::{GUARDS_DIR, GuardPlaces, MANIFEST_FILE, Manifest, Patterns, manifest, remove_if_there};
use crate::error::{Doing, Error};

pub(super) const INDEX_FILE: &str = "index";
const INDEX_FILE_NEW: &str = "index.new";

/// What earlier guards left; nothing if that can't be read, because it only saves work.
pub(super) fn index(guards: &GuardPlaces) -> Manifest {
    manifest::read(&*guards.guards, INDEX_FILE, INDEX_FILE).ok().flatten().unwrap_or_default()
}

/// Takes the images of a guard that has ended into the index: they are durable, and nobody else refers to them. Returns
/// the index if that has changed it: then there may be images that nobody needs any more.
pub(super) fn take_in(
    guards: &GuardPlaces,
    ended: &Manifest,
    cache_bytes_max: u64,
) -> io::Result<Option<Manifest>> {
    let before = index(guards);
    let mut index = before.clone();
    let has_image = |original: &&manifest::Original| original.image.is_some();
    // A name that has gone would otherwise be known for ever.
    let patterns = Patterns::new(ended.patterns.clone()).map_err(io::Error::other)?;
    let has_gone = |known: &manifest::Original| {
        ended.find(&known.path).is_none() && patterns.concerns(&known.tree_path(), false)
    };
    index.originals.retain(|known| ended.find(&known.path).is_none() && !has_gone(known));
    index.originals.extend(ended.originals.iter().filter(has_image).cloned());
    // What was put back is in the tree.
    let cached: HashSet<OsString> = guards.cache.list()?.into_iter().map(|entry| entry.name).collect();
    let is_cached = |image: &manifest::ImageOf| cached.contains(OsStr::new(&image.name));
    index.originals.retain(|original| original.image.as_ref().is_some_and(is_cached));
    keep_within(&mut index.originals, cache_bytes_max);
    index.originals.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    if index == before {
        return Ok(None);
    }
    replace_index(guards, &index)?;
    Ok(Some(index))
}

/// Puts another index in the place of the one that stands. Not synced: one that is torn after a power cut is as good as none.
pub(super) fn replace_index(guards: &GuardPlaces, index: &Manifest) -> io::Result<()> {
    remove_if_there(&*guards.guards, INDEX_FILE_NEW)?;
    manifest::write(&*guards.guards, INDEX_FILE_NEW, index)?;
    guards.guards.rename_over(OsStr::new(INDEX_FILE_NEW), &*guards.guards, OsStr::new(INDEX_FILE))
}

/// Leaves out what does not fit beside images that were used later: of those of one guard, the largest.
fn keep_within(originals: &mut Vec<manifest::Original>, bytes_max: u64) {
    originals.sort_unstable_by_key(|original| {
        let used = original.image.as_ref().map(|image| image.captured_ns);
        (Reverse(used), original.size)
    });
    let mut left = bytes_max;
    originals.retain(|original| {
        let is_kept = left.checked_sub(original.image_bytes());
        left = is_kept.unwrap_or(left);
        is_kept.is_some()
    });
}

/// Removes images that neither the index nor a guard refers to.
pub(super) fn clear(guards: &GuardPlaces, index: &Manifest) -> Result<(), Error> {
    let mut needed = needed_images(guards)?;
    needed.extend(images_of(index));
    for entry in guards.cache.list().doing("list", "guards/cache")? {
        if !entry.name.to_str().is_some_and(|name| needed.contains(name)) {
            guards.cache.remove_file(&entry.name).doing("clear", "guards/cache")?;
        }
    }
    Ok(())
}

/// The images that guards need that exist.
pub(super) fn needed_images(guards: &GuardPlaces) -> Result<HashSet<String>, Error> {
    let mut needed = HashSet::new();
    for name in guards.names().doing("list", GUARDS_DIR)? {
        let label = format!("guards/{name}");
        let Some(dir) = guards.dir(&name).doing("open", &label)? else { continue };
        if let Some(manifest) = manifest::read(&*dir, MANIFEST_FILE, &label)? {
            needed.extend(images_of(&manifest));
        }
    }
    Ok(needed)
}

pub(super) fn images_of(manifest: &Manifest) -> impl Iterator<Item = String> + '_ {
    manifest.originals.iter().filter_map(|original| Some(original.image.as_ref()?.name.clone()))
}
