//! Figures of a store: what its history adds up to, and what it takes on disk.
//!
//! The history is read a manifest at a time, so that what this needs does not grow with it.

use atomtree_recovery::Doing;
use atomtree_recovery::manifest::{self, ChangeSummary};
use atomtree_recovery::places::StoreFile;
use atomtree_recovery::stage::LOCK_FILE;
use atomtree_recovery::weight::{weigh, weigh_part};

use super::{Inspection, PastTransaction, Status};
use crate::error::Error;

/// What [`Inspection::stats`] counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// The state of the store at about the same moment.
    pub status: Status,
    /// Length of a segment in bytes, fixed when the store was created.
    pub segment_bytes: u64,
    /// Transactions that the history still knows.
    pub transactions: u64,
    /// The oldest and the newest of them, without their changes.
    pub oldest_and_newest: Option<(PastTransaction, PastTransaction)>,
    /// Names that were created, over all of them; directories count.
    pub created: u64,
    /// Names that were replaced.
    pub replaced: u64,
    /// Names that were removed.
    pub removed: u64,
    /// New content of files, in bytes: what the transactions left, not what they wrote into the log.
    pub content_bytes: u64,
    /// Manifests of the history, one or more for each checkpoint.
    pub manifests: u64,
    /// Their length in bytes.
    pub manifest_bytes: u64,
    /// When the newest of them was written, in nanoseconds since the Unix epoch: the last checkpoint that settled
    /// something.
    pub settled_ns: Option<i64>,
    /// Files in `stage/`.
    pub staged: u64,
    /// Length of those in bytes.
    pub staged_bytes: u64,
    /// Files in `images/`, by which transactions can be undone.
    pub images: u64,
    /// Length of those in bytes.
    pub image_bytes: u64,
    /// Files in `guards/cache/`: images of open guards, and of the last ones, which save the next one copying.
    pub guard_images: u64,
    /// Length of those in bytes.
    pub guard_image_bytes: u64,
    /// Files in quarantine, those in directories there included.
    pub quarantined_files: u64,
    /// Length of those in bytes.
    pub quarantined_bytes: u64,
    /// Length in bytes of everything that the store keeps, whole segments of the log included.
    pub store_bytes: u64,
}

impl Inspection {
    /// Counts what is in the store, and changes nothing.
    ///
    /// # Errors
    /// `corrupt` for damage.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.patiently(|| {
            let (store, _) = StoreFile::read(&*self.places.store)?;
            let staged = weigh(&*self.places.stage, "stage", Some(LOCK_FILE))?;
            let images = weigh(&*self.places.images, "images", None)?;
            let guard_images = weigh_part(&self.places, "guards/cache")?;
            let quarantined = weigh(&*self.places.quarantine, "quarantine", None)?;
            let mut stats = Stats {
                status: self.status()?,
                segment_bytes: store.segment_bytes,
                transactions: 0,
                oldest_and_newest: None,
                created: 0,
                replaced: 0,
                removed: 0,
                content_bytes: 0,
                manifests: 0,
                manifest_bytes: 0,
                settled_ns: None,
                staged: staged.files,
                staged_bytes: staged.bytes,
                images: images.files,
                image_bytes: images.bytes,
                guard_images: guard_images.files,
                guard_image_bytes: guard_images.bytes,
                quarantined_files: quarantined.files,
                quarantined_bytes: quarantined.bytes,
                store_bytes: weigh_part(&self.places, "")?.bytes,
            };
            // Newest first. After a crash behind a manifest, and when something is settled meanwhile, the log and a
            // manifest tell the same; it is counted once.
            self.unsettled()?.into_iter().for_each(|past| stats.add(past));
            for name in manifest::list(&*self.places.history)?.into_iter().rev() {
                self.read_manifest(&name)?.into_iter().rev().for_each(|past| stats.add(past));
                let label = format!("history/{}", name.to_string_lossy());
                let metadata = self.places.history.metadata(&name).doing("read the metadata of", &label)?;
                stats.manifests += 1;
                stats.manifest_bytes += metadata.size;
                stats.settled_ns = stats.settled_ns.max(Some(metadata.modified.0));
            }
            Ok(stats)
        })
    }
}

impl Stats {
    /// Adds a transaction that is older than those before; one that isn't has been counted.
    fn add(&mut self, mut past: PastTransaction) {
        if self.oldest_and_newest.as_ref().is_some_and(|(oldest, _)| past.tx >= oldest.tx) {
            return;
        }
        self.transactions += 1;
        for ChangeSummary { before, after, .. } in std::mem::take(&mut past.changes) {
            match (&before, &after) {
                (None, Some(_)) => self.created += 1,
                (Some(_), Some(_)) => self.replaced += 1,
                _ => self.removed += 1,
            }
            self.content_bytes += after.map_or(0, |after| after.size);
        }
        let newest = self.oldest_and_newest.take().map_or_else(|| past.clone(), |(_, newest)| newest);
        self.oldest_and_newest = Some((past, newest));
    }
}
