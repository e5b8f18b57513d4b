//! What has become of the names under a guard since it was opened.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_vfs::{Dir, Kind, Metadata, Timestamp};

use super::manifest::{Manifest, Original};
use super::walk::Found;
use crate::apply::Parents;
use crate::error::{Doing, Error};
use crate::image::{Attributes, Digest, is_recent, open_own};
use crate::places::Places;
use crate::tree_path::TreePath;

/// How far the times of an inode are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// This kernel has seen every change since the guard was opened: what has the same times is the same, where the
    /// clock can tell.
    Times,
    /// The power may have been cut: a content may have reached the disk without its times. Everything is read.
    Nothing,
}

/// The names that changed, each list sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names that have appeared, directories included.
    pub created: Vec<TreePath>,
    /// Names with another content, another kind of thing, or other metadata.
    pub changed: Vec<TreePath>,
    /// Names that have gone.
    pub removed: Vec<TreePath>,
}

impl Changes {
    /// Whether everything is as it was.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// What is found, against what was: by index in the manifest, and in the walk.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Found, and not known: guarded, or a directory in which something guarded may have appeared.
    pub(super) created: Vec<usize>,
    /// Known, and other than it was: original and what is found.
    pub(super) changed: Vec<(usize, usize)>,
    /// Known, and not found.
    pub(super) removed: Vec<usize>,
}

impl Difference {
    pub(super) fn names(&self, manifest: &Manifest, found: &[Found]) -> Changes {
        let original = |index: &usize| &manifest.originals[*index];
        let is_guarded = |index: &&usize| original(index).is_guarded;
        let mut created: Vec<TreePath> = (self.created.iter())
            .filter(|index| found[**index].is_guarded)
            .map(|index| found[*index].path.clone())
            .collect();
        created.sort();
        let changed = self.changed.iter().filter(|(index, _)| original(index).is_guarded);
        Changes {
            created,
            changed: changed.map(|(index, _)| original(index).tree_path()).collect(),
            removed: self
                .removed
                .iter()
                .filter(is_guarded)
                .map(|index| original(index).tree_path())
                .collect(),
        }
    }
}

/// Compares what is found with what was.
pub(super) fn compare(
    places: &Places,
    manifest: &Manifest,
    found: &[Found],
    trust: Trust,
) -> Result<Difference, Error> {
    let mut comparer = Comparer {
        places,
        parents: Parents::new(places.root.clone()).doing("read the metadata of", ".")?,
        captured: Timestamp(manifest.captured_ns),
        trust,
    };
    let by_path: HashMap<&[u8], usize> =
        found.iter().enumerate().map(|(index, one)| (one.path.as_bytes(), index)).collect();
    let mut difference = Difference::default();
    // First names that are not what they were: their other names are not either.
    let mut altered: HashSet<&[u8]> = HashSet::new();
    for (index, original) in manifest.originals.iter().enumerate() {
        let Some(&at) = by_path.get(original.path.as_slice()) else {
            altered.insert(&original.path);
            difference.removed.push(index);
            continue;
        };
        let one = &found[at];
        let is_same = match &original.twin {
            // Another name of an inode that has been found already.
            Some(first) => {
                let first =
                    (!altered.contains(first.as_slice())).then(|| by_path.get(first.as_slice())).flatten();
                first.is_some_and(|first| found[*first].metadata.inode == one.metadata.inode)
            }
            None => comparer.is_same(original, one).doing("compare", &one.path)?,
        };
        if !is_same {
            altered.insert(&original.path);
            difference.changed.push((index, at));
        }
    }
    // All names of one inode go back together: one that was edited through another name was edited too.
    let known: HashSet<&[u8]> = manifest.originals.iter().map(|original| original.path.as_slice()).collect();
    let created = (0..found.len()).filter(|index| !known.contains(found[*index].path.as_bytes()));
    difference.created = created.collect();
    Ok(difference)
}

struct Comparer<'a> {
    places: &'a Places,
    parents: Parents,
    captured: Timestamp,
    trust: Trust,
}

impl Comparer<'_> {
    fn is_same(&mut self, original: &Original, found: &Found) -> io::Result<bool> {
        if original.kind() != found.metadata.kind {
            return Ok(false);
        }
        if original.kind() == Kind::Dir {
            return self.is_same_directory(original, found);
        }
        // A roll back that was interrupted had put the image at its name.
        if original.image.as_ref().is_some_and(|image| image.is(&found.metadata)) {
            return Ok(original.kind() != Kind::Other || original.has_mode_and_owner_of(&found.metadata));
        }
        if !original.has_times_of(&found.metadata) {
            return Ok(false);
        }
        let is_told = !is_recent(original.changed(), self.captured, &*self.places.vfs);
        if self.trust == Trust::Times && is_told {
            return Ok(true);
        }
        let dir = self.parents.of(&found.path)?.dir;
        is_same_content(original, &*dir, found.path.name(), &found.metadata)
    }

    /// Of a directory, what lies in it is compared name by name.
    fn is_same_directory(&mut self, original: &Original, found: &Found) -> io::Result<bool> {
        if !original.is_guarded {
            return Ok(true);
        }
        if !original.has_mode_and_owner_of(&found.metadata) {
            return Ok(false);
        }
        if self.trust == Trust::Times && original.has_times_of(&found.metadata) {
            return Ok(true);
        }
        let dir = self.parents.of(&found.path)?.dir.open_dir(Path::new(found.path.name()))?;
        Ok(Attributes::of_dir(&*dir)? == original.attributes)
    }
}

/// Whether what stands at the name has the original's content and attributes.
pub(super) fn is_same_content(
    original: &Original,
    dir: &dyn Dir,
    name: &OsStr,
    found: &Metadata,
) -> io::Result<bool> {
    let Some(image) = &original.image else { return Ok(true) };
    match found.kind {
        Kind::File => {
            let file = open_own(dir, name)?;
            let content = Digest::of_file(&*file)?;
            Ok(content == (original.size, image.digest)
                && Attributes::of_file(&*file)? == original.attributes)
        }
        Kind::Symlink => Ok(Digest::of(dir.read_link(name)?.as_encoded_bytes()) == image.digest),
        Kind::Dir | Kind::Other => Ok(true),
    }
}
