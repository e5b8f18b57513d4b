//! How long originals are kept: by bytes, by age and by number, the oldest first.
//!
//! A manifest goes durably before the first of its images: it gets another name, under which nobody looks for images,
//! and what a crash leaves to be unlinked is found there again. Whoever is reading images holds a pin meanwhile, in
//! whatever process, and nothing is taken away then.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use atomtree_vfs::{Access, File, Kind, Lock, Timestamp};

use crate::error::{Doing, Error};
use crate::image::Digest;
use crate::images::{self, ImageName};
use crate::manifest::{self, Head, Summary};
use crate::places::Places;
use crate::plan::TransactionId;
use crate::tree_path::TreePath;

/// The file whose lock says that images are being read.
const PINS: &str = "pins";

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// What manifests and images may take, in bytes.
    pub bytes_max: u64,
    /// How old a transaction may get; `None` for any age.
    pub age_max: Option<Duration>,
    /// How many transactions are kept at most, but for those of one manifest.
    pub transactions_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        let age_max = Some(Duration::from_hours(30 * 24));
        Self { bytes_max: 1 << 30, age_max, transactions_max: u64::MAX }
    }
}

/// What one manifest amounts to.
#[derive(Clone, Copy, Debug)]
struct Shelf {
    head: Head,
    /// Length of its own file.
    manifest_bytes: u64,
}

impl Shelf {
    fn bytes(&self) -> u64 {
        self.head.image_bytes.saturating_add(self.manifest_bytes)
    }
}

/// The manifests that there are, oldest first. Their heads are read once.
#[derive(Debug, Default)]
pub struct Shelves(BTreeMap<OsString, Shelf>);

impl Shelves {
    /// Takes note of manifests that have come, and forgets those that have gone.
    pub fn look(&mut self, places: &Places) -> Result<(), Error> {
        let names = manifest::list(&*places.history)?;
        let present: BTreeSet<&OsString> = names.iter().collect();
        self.0.retain(|name, _| present.contains(name));
        for name in names {
            if !self.0.contains_key(&name) {
                self.add(places, name)?;
            }
        }
        Ok(())
    }

    /// Takes note of the manifest of these transactions, which was just written. `false` if others may have come before it: a
    /// manifest tells of every transaction behind the one before, so those that follow upon each other need no look at a
    /// directory that may have many.
    fn follow(
        &mut self,
        places: &Places,
        (first, last): (TransactionId, TransactionId),
    ) -> Result<bool, Error> {
        let newest = self.0.keys().next_back().and_then(|name| manifest::range_of(name));
        let is_next = newest.is_some_and(|(_, newest)| newest.0.checked_add(1) == Some(first.0));
        if is_next {
            self.add(places, manifest::file_name(first, last))?;
        }
        Ok(is_next)
    }

    fn add(&mut self, places: &Places, name: OsString) -> Result<(), Error> {
        let head = manifest::read_head(&*places.history, &name)?;
        let label = format!("history/{}", name.to_string_lossy());
        let found = places.history.metadata(&name).doing("read the metadata of", &label)?;
        self.0.insert(name, Shelf { head, manifest_bytes: found.size });
        Ok(())
    }

    /// Forgets everything, so that the next to need it looks: manifests were written anew, or one may have come that is not
    /// known.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// The manifests that go, oldest first. No time passes backwards: one that is newer than `now` stays.
    fn surplus(&self, retention: &Retention, now: Timestamp) -> Vec<OsString> {
        let sum = |of: fn(&Shelf) -> u64| self.0.values().map(of).fold(0, u64::saturating_add);
        let (mut bytes, mut transactions) = (sum(Shelf::bytes), sum(|shelf| shelf.head.transactions));
        let age_max = retention.age_max.and_then(|age| i64::try_from(age.as_nanos()).ok());
        let mut surplus = Vec::new();
        for (name, shelf) in &self.0 {
            let left = transactions.saturating_sub(shelf.head.transactions);
            let is_old = age_max.is_some_and(|age| now.0.saturating_sub(shelf.head.newest_ns) > age);
            if bytes <= retention.bytes_max && left < retention.transactions_max && !is_old {
                break;
            }
            bytes = bytes.saturating_sub(shelf.bytes());
            transactions = left;
            surplus.push(name.clone());
        }
        surplus
    }
}

/// What pruning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many transactions were forgotten.
    pub transactions: u64,
    /// What their manifests and images took, in bytes.
    pub bytes: u64,
}

/// Says that images are being read: until it is dropped, none is taken away.
pub struct Pin(Arc<dyn File>);

impl Drop for Pin {
    fn drop(&mut self) {
        // Closing is not enough, if a process was just forked that has not executed its program yet.
        let _ = self.0.unlock();
    }
}

impl Pin {
    /// For one of many readers; `None` while some are being taken away.
    pub fn of_reader(places: &Places) -> Result<Option<Self>, Error> {
        Self::take(places, Lock::Shared)
    }

    fn take(places: &Places, lock: Lock) -> Result<Option<Self>, Error> {
        let (name, label) = (OsStr::new(PINS), "history/pins");
        let opened = match places.history.open_file(name, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match places.history.create_file(name, 0o600) {
                    // Somebody else was faster, and is asked again.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                    created => created,
                }
            }
            opened => opened,
        };
        let file = opened.doing("open", label)?;
        file.hide_from_forks().doing("hide", label)?;
        Ok(file.try_lock(lock).doing("lock", label)?.then(|| Self(file)))
    }
}

/// Takes away what retention does not cover; nothing while somebody reads images. With the numbers of the first and the last
/// transaction of a manifest that was just `written`, if that is why.
///
/// # Durability
/// What is taken away is gone durably when this returns, and until then only what no manifest names any more.
pub fn prune(
    places: &Places,
    shelves: &mut Shelves,
    retention: &Retention,
    now: Timestamp,
    written: Option<(TransactionId, TransactionId)>,
) -> Result<Pruned, Error> {
    let mut pruned = Pruned::default();
    let is_followed = written.map_or(Ok(false), |written| shelves.follow(places, written))?;
    if is_followed && shelves.surplus(retention, now).is_empty() {
        return Ok(pruned);
    }
    // Others may have taken away some already.
    shelves.look(places)?;
    let surplus = shelves.surplus(retention, now);
    if surplus.is_empty() {
        return Ok(pruned);
    }
    let Some(pin) = Pin::take(places, Lock::Exclusive)? else { return Ok(pruned) };
    for name in &surplus {
        let label = format!("history/{}", name.to_string_lossy());
        let going = manifest::going_name(name);
        match places.history.rename_over(name, &*places.history, &going) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.doing("rename", &label)?,
        }
        if let Some(shelf) = shelves.0.remove(name) {
            pruned.transactions += shelf.head.transactions;
            pruned.bytes += shelf.bytes();
        }
    }
    places.history.sync().doing("sync", "history")?;
    drop(pin);
    finish_pruning(places)?;
    Ok(pruned)
}

/// Unlinks the images of manifests that have gone, and those manifests; also what a crash has left of that.
///
/// # Durability
/// As for [`prune`].
pub fn finish_pruning(places: &Places) -> Result<(), Error> {
    let entries = places.history.list().doing("list", "history")?;
    let going: Vec<OsString> = entries
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| manifest::range_of_going(name).is_some())
        .collect();
    if going.is_empty() {
        return Ok(());
    }
    for name in &going {
        match manifest::read(&*places.history, name) {
            Ok(summaries) => unlink_images(places, name, &summaries)?,
            // What it named is swept by the next recovery.
            Err(Error::Manifest { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    places.images.sync().doing("sync", "images")?;
    for name in &going {
        let label = format!("history/{}", name.to_string_lossy());
        match places.history.remove_file(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.doing("remove", &label)?,
        }
    }
    places.history.sync().doing("sync", "history")
}

fn unlink_images(places: &Places, going: &OsStr, summaries: &[Summary]) -> Result<(), Error> {
    let named = named_elsewhere(places, going)?;
    let images =
        summaries.iter().flat_map(|summary| &summary.changes).filter_map(|change| change.image.as_ref());
    let images: BTreeSet<&ImageName> = images.filter(|image| !named.contains(image)).collect();
    // What lies in a directory goes with it.
    let is_alone = |image: &&&ImageName| image.is_top() || !images.contains(&image.top());
    for image in images.iter().filter(is_alone) {
        let doing =
            |result: io::Result<()>| result.doing("remove", &format!("images/{}", image.as_path().display()));
        if image.is_top() {
            doing(images::remove(&*places.images, image.as_path().as_os_str()))?;
        } else {
            doing(images::remove_below(&*places.images, image))?;
        }
    }
    Ok(())
}

/// What manifests that stay name, as far as they tell of the same transactions: after a crash several may, and after a
/// scrub one tells of the rest.
fn named_elsewhere(places: &Places, going: &OsStr) -> Result<BTreeSet<ImageName>, Error> {
    let mut named = BTreeSet::new();
    let Some((first, last)) = manifest::range_of_going(going) else { return Ok(named) };
    for name in manifest::list(&*places.history)? {
        let overlaps = manifest::range_of(&name).is_some_and(|(from, to)| from <= last && first <= to);
        if !overlaps {
            continue;
        }
        match manifest::read(&*places.history, &name) {
            Ok(summaries) => {
                let changes = summaries.into_iter().flat_map(|summary| summary.changes);
                named.extend(changes.filter_map(|change| change.image));
            }
            // It can be read by nobody.
            Err(Error::Manifest { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(named)
}

/// What scrubbing the history did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// How many transactions had something to do with the path.
    pub transactions: u64,
    /// How many images were overwritten and unlinked.
    pub images: u64,
    /// How long they were, in bytes.
    pub bytes: u64,
    /// How many of them were not overwritten, because they have another name, which may be in the tree.
    pub shared: u64,
    /// The contents that the path had, as far as the history knew them: lengths and digests.
    pub contents: Contents,
}

/// Contents, by length and digest.
pub type Contents = HashSet<(u64, Digest)>;

/// Removes the images of everything at or below a path, and what the history tells of their contents. `None` while
/// somebody reads images.
///
/// # Durability
/// When this returns, no manifest names them and they are gone, each overwritten before it was unlinked.
pub fn scrub(places: &Places, shelves: &mut Shelves, path: &TreePath) -> Result<Option<Scrubbed>, Error> {
    let Some(pin) = Pin::take(places, Lock::Exclusive)? else { return Ok(None) };
    let mut scrubbed = Scrubbed::default();
    let mut wiped = Vec::new();
    for name in manifest::list(&*places.history)? {
        let mut summaries = manifest::read(&*places.history, &name)?;
        let gone = take_path(&mut summaries, path, &mut scrubbed, &mut wiped);
        if !gone.is_empty() {
            // In this order: what is to be unlinked is found again after a crash, and nothing that is named is unlinked.
            manifest::write_going(&*places.history, &gone)?;
            manifest::write(&*places.history, &summaries)?;
            shelves.forget();
        }
    }
    for image in &wiped {
        match images::wipe(&*places.images, image) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                let is_wiped = result.doing("overwrite", &format!("images/{}", image.as_path().display()))?;
                scrubbed.shared += u64::from(!is_wiped);
            }
        }
    }
    drop(pin);
    finish_pruning(places)?;
    Ok(Some(scrubbed))
}

/// Takes the images at or below a path out of the summaries of one manifest, with all that tells of contents. Returns
/// what is to be unlinked: nothing if nothing was found.
fn take_path(
    summaries: &mut [Summary],
    path: &TreePath,
    scrubbed: &mut Scrubbed,
    wiped: &mut Vec<ImageName>,
) -> Vec<Summary> {
    let mut gone: Vec<Summary> =
        summaries.iter().map(|summary| Summary { changes: Vec::new(), ..summary.clone() }).collect();
    let mut is_any = false;
    for (summary, gone) in summaries.iter_mut().zip(&mut gone) {
        let mut is_concerned = false;
        for change in &mut summary.changes {
            let is_at = |bytes: &[u8]| TreePath::from_bytes(bytes).is_ok_and(|at| at.is_at_or_below(path));
            if !is_at(&change.path) && !change.from.as_deref().is_some_and(is_at) {
                continue;
            }
            is_concerned = true;
            let mut states = [change.before.as_deref_mut(), change.after.as_deref_mut()];
            for state in states.iter_mut().flatten() {
                // An empty one tells nothing, and is everywhere.
                if state.kind == Kind::File && state.size > 0 {
                    scrubbed.contents.extend(state.digest.map(|digest| (state.size, digest)));
                }
                (state.digest, state.target) = (None, None);
            }
            let Some(image) = change.image.take() else { continue };
            let is_file = change.before.as_ref().is_some_and(|state| state.kind == Kind::File);
            if is_file {
                scrubbed.images += 1;
                scrubbed.bytes += change.before.as_ref().map_or(0, |state| state.size);
                wiped.push(image.clone());
            }
            gone.changes.push(manifest::ChangeSummary { image: Some(image), ..change.clone() });
        }
        scrubbed.transactions += u64::from(is_concerned);
        is_any |= is_concerned;
    }
    if is_any { gone } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelves(of: &[(u64, u64, i64)]) -> Shelves {
        let shelf = |(transactions, image_bytes, newest_ns): &(u64, u64, i64)| Shelf {
            head: Head { transactions: *transactions, image_bytes: *image_bytes, newest_ns: *newest_ns },
            manifest_bytes: 10,
        };
        let names = (0..of.len()).map(|number| OsString::from(number.to_string()));
        Shelves(names.zip(of.iter().map(shelf)).collect())
    }

    #[test]
    fn each_bound_takes_the_oldest_first() {
        let second = 1_000_000_000;
        let shelves = shelves(&[(3, 100, second), (2, 0, 2 * second), (5, 50, 3 * second)]);
        let all = Retention { bytes_max: 180, age_max: None, transactions_max: u64::MAX };
        let count = |retention: Retention| shelves.surplus(&retention, Timestamp(4 * second)).len();
        assert_eq!(count(all), 0, "180 bytes in all");
        assert_eq!(count(Retention { bytes_max: 179, ..all }), 1);
        assert_eq!(count(Retention { bytes_max: 69, ..all }), 2);
        assert_eq!(count(Retention { bytes_max: 0, ..all }), 3, "the newest goes too");
        assert_eq!(count(Retention { transactions_max: 8, ..all }), 0, "seven would be left");
        assert_eq!(count(Retention { transactions_max: 7, ..all }), 1);
        assert_eq!(count(Retention { transactions_max: 5, ..all }), 2);
        let aged = |seconds| Retention { age_max: Some(Duration::from_secs(seconds)), ..all };
        assert_eq!((count(aged(3)), count(aged(2)), count(aged(0))), (0, 1, 3));
        assert!(shelves.surplus(&aged(0), Timestamp(0)).is_empty(), "a clock that was put back");
    }
}
