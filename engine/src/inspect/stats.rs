//! Figures of a store: what its history adds up to, and what it takes on disk.
//!
//! The history is read a manifest at a time, so that what this needs does not grow with it.

use std::io;
use std::path::Path;

use atomtree_recovery::Doing;
use atomtree_recovery::guards;
use atomtree_recovery::manifest::{self, ChangeSummary};
use atomtree_recovery::places::StoreFile;
use atomtree_recovery::stage::LOCK_FILE;
use atomtree_vfs::{Dir, Kind};

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
    /// Manifests of the history, one for each checkpoint.
    pub manifests: u64,
    /// Their length in bytes.
    pub manifest_bytes: u64,
    /// When the newest of them was written, in nanoseconds since the Unix epoch: the last checkpoint that settled
    /// something.
    pub settled_ns: Option<i64>,
    /// Files in `stage/`.
    pub staged: u64,
    /// Length in bytes of the files in quarantine.
    pub quarantined_bytes: u64,
    /// Images of guards, open ones and those that ended: [`crate::Options::guard_cache_bytes_max`] bounds what the latter leave.
    pub guard_images: u64,
    /// Their length in bytes.
    pub guard_image_bytes: u64,
}

impl Inspection {
    /// Counts what is in the store, and changes nothing.
    ///
    /// # Errors
    /// `corrupt` for damage.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.patiently(|| {
            let (store, _) = StoreFile::read(&*self.places.store)?;
            let guarded = match guards::cache(&self.places).doing("open", "guards/cache")? {
                Some(cache) => weigh(&*cache, "guards/cache", None)?,
                None => Weight::default(),
            };
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
                staged: weigh(&*self.places.stage, "stage", Some(LOCK_FILE))?.files,
                quarantined_bytes: weigh(&*self.places.quarantine, "quarantine", None)?.bytes,
                guard_images: guarded.files,
                guard_image_bytes: guarded.bytes,
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

#[derive(Default)]
struct Weight {
    files: u64,
    bytes: u64,
}

/// The files below a directory of the store but those of one name. What vanishes meanwhile is not counted.
fn weigh(dir: &dyn Dir, label: &str, except: Option<&str>) -> Result<Weight, Error> {
    let mut weight = Weight::default();
    for entry in dir.list().doing("list", label)? {
        if except.is_some_and(|name| entry.name == name) {
            continue;
        }
        let label = format!("{label}/{}", entry.name.to_string_lossy());
        if entry.kind == Kind::Dir {
            match dir.open_dir(Path::new(&entry.name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    let Weight { files, bytes } = weigh(&*result.doing("open", &label)?, &label, except)?;
                    weight.files += files;
                    weight.bytes += bytes;
                }
            }
            continue;
        }
        match dir.metadata(&entry.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                weight.files += 1;
                weight.bytes += result.doing("read the metadata of", &label)?.size;
            }
        }
    }
    Ok(weight)
}
