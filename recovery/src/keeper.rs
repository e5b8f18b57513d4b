//! Finds the originals that manifests name and that are not in `images/` yet, after a crash: in slots, in what recovery
//! took out of the tree, and in the log.
//!
//! They are known by content, so that it does not matter who put them where they are found; those that were not read by
//! their length and time of modification, directories by their inode.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;

use atomtree_vfs::{Dir, Kind, Timestamp};

use crate::analyze::Committed;
use crate::apply::Applier;
use crate::error::{Doing, Error};
use crate::image::{Digest, Image, Slot, open_own};
use crate::images::{self, ImageName};
use crate::known::Known;
use crate::manifest::{self, State, Summary};
use crate::places::Places;
use crate::plan::{Change, TransactionId};

/// The originals that are looked for.
pub struct Keeper<'a> {
    places: &'a Places,
    by_digest: HashMap<(u64, Digest), Vec<ImageName>>,
    by_time: HashMap<(u64, Timestamp), Vec<ImageName>>,
    by_inode: HashMap<(u64, Option<Timestamp>), ImageName>,
    /// Where a content is that was found; another image may want the same.
    found: HashMap<(u64, Digest), ImageName>,
}

impl<'a> Keeper<'a> {
    /// Looks for nothing.
    pub fn of_nothing(places: &'a Places) -> Self {
        let (by_digest, by_time, by_inode) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { places, by_digest, by_time, by_inode, found: HashMap::new() }
    }

    /// Looks for the images of these transactions too, as far as they are not kept yet.
    pub fn want(&mut self, summaries: &[Summary]) -> Result<(), Error> {
        for change in summaries.iter().flat_map(|summary| &summary.changes) {
            // What lies in a directory is found with it.
            let Some(image) = change.image.as_ref().filter(|image| image.is_top()) else { continue };
            let Some(before) = &change.before else { continue };
            match self.places.images.metadata(image.as_path().as_os_str()) {
                Ok(_) => self.note_found(image, before),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.look_for(image, before),
                Err(error) => {
                    return Err(error).doing("look at", &format!("images/{}", image.as_path().display()));
                }
            }
        }
        Ok(())
    }

    fn note_found(&mut self, image: &ImageName, before: &State) {
        if let Some(digest) = before.digest {
            self.found.insert((before.size, digest), image.clone());
        }
    }

    fn look_for(&mut self, image: &ImageName, before: &State) {
        match (before.kind, before.digest, before.modified) {
            (Kind::Dir, ..) => drop(self.by_inode.insert((before.inode, before.born), image.clone())),
            (_, Some(digest), _) => {
                self.by_digest.entry((before.size, digest)).or_default().push(image.clone());
            }
            (_, None, Some(time)) => {
                self.by_time.entry((before.size, time)).or_default().push(image.clone());
            }
            (_, None, None) => {}
        }
    }

    /// Looks for the images of settled transactions that the log still has too: a crash may have come before they were
    /// moved. What can't be read of the history is not looked for.
    pub fn want_settled(&mut self, settled: &BTreeSet<TransactionId>) -> Result<(), Error> {
        let (Some(first), Some(last)) = (settled.first(), settled.last()) else { return Ok(()) };
        for name in manifest::list(&*self.places.history)? {
            if !manifest::range_of(&name).is_some_and(|(from, to)| from <= *last && *first <= to) {
                continue;
            }
            match manifest::read(&*self.places.history, &name) {
                Ok(mut summaries) => {
                    summaries.retain(|summary| settled.contains(&summary.begin.tx));
                    self.want(&summaries)?;
                }
                Err(Error::Manifest { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves what stands at the name to where it is looked for, if it is. `change` is the one that took a directory out
    /// of the tree.
    pub fn keep(
        &mut self,
        applier: &mut Applier<'_>,
        dir: &dyn Dir,
        name: &OsStr,
        change: Option<&Change<'_>>,
    ) -> io::Result<bool> {
        let found = dir.metadata(name)?;
        let image = match found.kind {
            Kind::Dir => {
                let Some(image) = self.by_inode.remove(&(found.inode, found.born)) else { return Ok(false) };
                let Some(change) = change else { return Ok(false) };
                applier.sift_directory(dir, name, &change.path, &change.contents)?;
                // What did not belong there must not be back in it, and taken for ours, after a crash.
                self.places.quarantine.sync()?;
                images::part_below(dir, name, change)?;
                image
            }
            Kind::File => match self.take_file(dir, name, found.size, found.modified)? {
                Some(image) => image,
                None => return Ok(false),
            },
            Kind::Symlink | Kind::Other => return Ok(false),
        };
        if images::is_shared(dir, name)? {
            // Its other names can be edited, and nobody would tell this one.
            images::copy_into(self.places, dir, name, &image)?;
            return Ok(false);
        }
        match images::move_into(&*self.places.images, dir, name, &image) {
            Err(error) if crate::apply::is_no_space(&error) => Ok(false),
            moved => moved.map(|()| true),
        }
    }

    fn take_file(
        &mut self,
        dir: &dyn Dir,
        name: &OsStr,
        size: u64,
        modified: Timestamp,
    ) -> io::Result<Option<ImageName>> {
        if let Some(image) = self.by_time.get_mut(&(size, modified)).and_then(Vec::pop) {
            return Ok(Some(image));
        }
        if !self.by_digest.keys().any(|(wanted, _)| *wanted == size) {
            return Ok(None);
        }
        let key = Digest::of_file(&*open_own(dir, name)?)?;
        let Some(image) = self.by_digest.get_mut(&key).and_then(Vec::pop) else { return Ok(None) };
        self.found.insert(key, image.clone());
        Ok(Some(image))
    }

    /// Whether this original is looked for, and known by its content.
    pub fn wants(&self, image: &Image<'_>) -> bool {
        let key = image.content.digest().map(|digest| (image.size, digest));
        key.is_some_and(|key| self.by_digest.get(&key).is_some_and(|images| !images.is_empty()))
    }

    /// Copies contents that were found once and are looked for several times.
    pub fn finish(&mut self) -> Result<(), Error> {
        for (key, wanted) in std::mem::take(&mut self.by_digest) {
            let Some(found) = self.found.get(&key).filter(|_| !wanted.is_empty()) else { continue };
            for image in wanted {
                let name = found.as_path().as_os_str();
                match images::copy_into(self.places, &*self.places.images, name, &image) {
                    // One that is gone can't be kept; what is committed comes first.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    copied => copied.doing("copy", &format!("images/{}", found.as_path().display()))?,
                }
            }
        }
        self.places.images.sync().doing("sync", "images")
    }
}

/// The originals of these transactions whose bytes the log has, and which are not in their slots: they have to be
/// written.
pub(crate) fn to_write<'a>(
    keeper: &Keeper<'_>,
    transactions: impl Iterator<Item = &'a Committed<'a>>,
    known: &Known<'a>,
    mut slot_holds: impl FnMut(&Slot, &Image<'_>) -> io::Result<bool>,
) -> io::Result<Vec<&'a [u8]>> {
    let mut bytes = Vec::new();
    for change in transactions.flat_map(|transaction| &transaction.changes) {
        let (Some(image), Some(slot)) = (&change.before, &change.slot) else { continue };
        if image.kind == Kind::File && keeper.wants(image) && !slot_holds(slot, image)? {
            bytes.extend(image.content.digest().and_then(|digest| known.bytes_of(digest)));
        }
    }
    Ok(bytes)
}
