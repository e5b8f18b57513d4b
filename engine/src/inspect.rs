//! Looks into a store without opening it: no lock is taken and nothing is written, not even by recovery.
//!
//! Another process may be committing meanwhile; what is returned was true at some moment during the call.

mod contents;
mod stats;

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::{Analysis, analyze};
use atomtree_recovery::guards::{self, Seen as GuardSeen};
use atomtree_recovery::manifest::{self, ChangeSummary, Summary};
use atomtree_recovery::places::{Places, StoreFile};
use atomtree_recovery::plan::{TransactionId, Who};
use atomtree_recovery::verify::{Verification, verify};
use atomtree_vfs::ProcessIdentity;
use atomtree_wal::{Lsn, scan};

use crate::error::{Error, OnPath};
use crate::lock::{LOCK_FILE, Member, holder_of, members};
use crate::options::Options;

pub use contents::Contents;
pub use stats::Stats;

/// How often a look is repeated when it seems to find damage while another process has the store open: a segment may
/// have been taken back between two reads.
const ATTEMPTS_BESIDE_A_WRITER: usize = 5;

/// A store that is looked at from outside.
pub struct Inspection {
    places: Places,
    warnings: Vec<String>,
}

/// The state of a store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Of the processes that have it open, the one that has had it longest.
    pub holder: Option<ProcessIdentity>,
    /// The processes that have it open, those first that have had it longest.
    pub members: Vec<Member>,
    /// Who holds the commit lock, and since when.
    pub committing: Option<Member>,
    /// Guards that are open, or left by their owners, those first that were begun first.
    pub guards: Vec<GuardSeen>,
    /// Whether it was closed: then the next open has nothing to replay.
    pub is_clean: bool,
    /// Committed transactions that are not settled yet.
    pub unsettled: u64,
    /// The last committed transaction; 0 if there was none.
    pub last_tx: TransactionId,
    /// Everything up to here is settled.
    pub checkpoint_lsn: Lsn,
    /// When something was settled last, in nanoseconds since the Unix epoch; as far as the history remembers.
    pub checkpoint_ns: Option<i64>,
    /// Segments of the log: how many there are.
    pub log_segments: usize,
    /// How many of them are free.
    pub log_segments_free: usize,
    /// What accepted frames take, in bytes.
    pub log_bytes: u64,
    /// What originals that are kept take, in bytes.
    pub image_bytes: u64,
    /// Files in quarantine.
    pub quarantined: u64,
    /// Name of the file system.
    pub file_system: String,
    /// Why durability or atomicity is not promised there, if it isn't.
    pub warnings: Vec<String>,
}

/// A transaction as the history knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PastTransaction {
    /// Its number.
    pub tx: TransactionId,
    /// LSN of its commit record.
    pub lsn: Lsn,
    /// When it was logged: nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// Why, in the caller's words.
    pub label: Option<String>,
    /// On whose behalf, in the caller's words.
    pub agent: Option<String>,
    /// From which process; not known of transactions of earlier versions.
    pub who: Option<Who>,
    /// Whether it is settled: durable in place, and forgotten by the log.
    pub is_settled: bool,
    /// What it changed.
    pub changes: Vec<ChangeSummary>,
}

impl PastTransaction {
    fn new(summary: Summary, is_settled: bool) -> Self {
        let Summary { begin, lsn, changes, .. } = summary;
        Self {
            tx: begin.tx,
            lsn: Lsn(lsn),
            time_ns: begin.time_ns,
            label: begin.label,
            agent: begin.agent,
            who: begin.who,
            is_settled,
            changes,
        }
    }
}

impl Inspection {
    /// Opens the store of the tree at `root` for looking.
    ///
    /// # Errors
    /// `not_found` if there is none; `permission`.
    pub fn open(root: impl AsRef<Path>, options: &Options) -> Result<Self, Error> {
        let root = root.as_ref();
        let vfs = options.vfs.clone();
        let root = vfs.open_root(root).on("open", root)?;
        let warnings: Vec<String> =
            root.file_system().on("describe the file system of", ".")?.caveat.into_iter().collect();
        Ok(Self { places: Places::open(vfs, root)?, warnings })
    }

    /// Looks into a store that is open.
    pub(crate) fn of(places: &Places) -> Self {
        Self { places: places.clone(), warnings: Vec::new() }
    }

    /// The state of the store.
    ///
    /// # Errors
    /// `corrupt` for damage.
    pub fn status(&self) -> Result<Status, Error> {
        let members = self.members()?;
        let committing = holder_of(&*self.places.store, LOCK_FILE).on("look at", ".atomtree/lock")?;
        let guards = guards::seen(&self.places)?;
        let image_bytes = self.image_bytes()?;
        let checkpoint_ns = self.last_checkpoint()?;
        let file_system = self.places.root.file_system().on("describe the file system of", ".")?.name;
        let quarantined = self.places.quarantine.list().doing("list", "quarantine")?.len() as u64;
        self.patiently(|| {
            let (store, _) = StoreFile::read(&*self.places.store)?;
            let scan = scan(&*self.places.wal, store.id).map_err(atomtree_recovery::Error::Log)?;
            let analysis = analyze(&scan)?;
            let (log_segments, log_segments_free, log_bytes) = scan.usage();
            Ok(Status {
                holder: members.first().map(|member| member.process.clone()),
                members: members.clone(),
                committing: committing.clone(),
                guards: guards.clone(),
                is_clean: scan.tail() == atomtree_wal::Tail::Closed,
                unsettled: analysis.unsettled().count() as u64,
                last_tx: TransactionId(analysis.next_tx.0 - 1),
                checkpoint_lsn: analysis.watermark,
                checkpoint_ns,
                log_segments,
                log_segments_free,
                log_bytes,
                image_bytes,
                quarantined,
                file_system: file_system.clone(),
                warnings: self.warnings.clone(),
            })
        })
    }

    /// The newest `count` transactions, newest first.
    pub fn log(&self, count: usize) -> Result<Vec<PastTransaction>, Error> {
        self.patiently(|| {
            let mut transactions = self.unsettled()?;
            transactions.truncate(count);
            for name in manifest::list(&*self.places.history)?.into_iter().rev() {
                if transactions.len() >= count {
                    break;
                }
                let settled = self.read_manifest(&name)?;
                // A crash between a manifest and the record that says so leaves both the log and a longer manifest to
                // tell the same; so does a checkpoint since the log was read.
                let known = transactions.last().map_or(TransactionId(u64::MAX), |past| past.tx);
                let older = settled.into_iter().rev().filter(|past| past.tx < known);
                transactions.extend(older.take(count - transactions.len()));
            }
            Ok(transactions)
        })
    }

    /// One transaction, if the history knows it.
    pub fn transaction(&self, tx: TransactionId) -> Result<Option<PastTransaction>, Error> {
        self.patiently(|| {
            if let Some(found) = self.unsettled()?.into_iter().find(|past| past.tx == tx) {
                return Ok(Some(found));
            }
            for name in manifest::list(&*self.places.history)?.into_iter().rev() {
                if manifest::range_of(&name).is_some_and(|(first, last)| (first..=last).contains(&tx)) {
                    return Ok(self.read_manifest(&name)?.into_iter().find(|past| past.tx == tx));
                }
            }
            Ok(None)
        })
    }

    /// Checks everything and changes nothing.
    pub fn verify(&self) -> Result<Verification, Error> {
        let mut found = verify(&self.places)?;
        for _ in 1..ATTEMPTS_BESIDE_A_WRITER {
            if found.problems.is_empty() || self.holder()?.is_none() {
                break;
            }
            found = verify(&self.places)?;
        }
        Ok(found)
    }

    /// A process that has the store open, if one has: of several the one that has had it longest.
    pub fn holder(&self) -> Result<Option<ProcessIdentity>, Error> {
        Ok(self.members()?.into_iter().next().map(|member| member.process))
    }

    /// The processes that have the store open.
    pub fn members(&self) -> Result<Vec<Member>, Error> {
        members(&*self.places.vfs, &*self.places.stage).on("read", ".atomtree/stage")
    }

    fn image_bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        for entry in self.places.images.list().doing("list", "images")? {
            match self.places.images.metadata(&entry.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => bytes += found.doing("look at", "images")?.size,
            }
        }
        Ok(bytes)
    }

    fn last_checkpoint(&self) -> Result<Option<i64>, Error> {
        let Some(last) = manifest::list(&*self.places.history)?.pop() else { return Ok(None) };
        match self.places.history.metadata(&last) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok(Some(found.doing("look at", "history")?.modified.0)),
        }
    }

    /// Committed transactions that only the log knows, newest first.
    fn unsettled(&self) -> Result<Vec<PastTransaction>, Error> {
        let (store, _) = StoreFile::read(&*self.places.store)?;
        let scan = scan(&*self.places.wal, store.id).map_err(atomtree_recovery::Error::Log)?;
        let analysis: Analysis<'_> = analyze(&scan)?;
        let mut transactions: Vec<_> = analysis
            .unsettled()
            .map(|transaction| PastTransaction::new(Summary::of(transaction, 0), false))
            .collect();
        transactions.reverse();
        Ok(transactions)
    }

    fn read_manifest(&self, name: &OsStr) -> Result<Vec<PastTransaction>, Error> {
        let summaries = manifest::read(&*self.places.history, name)?;
        Ok(summaries.into_iter().map(|summary| PastTransaction::new(summary, true)).collect())
    }

    fn patiently<T>(&self, look: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let mut result = look();
        for _ in 1..ATTEMPTS_BESIDE_A_WRITER {
            if result.is_ok() || self.holder()?.is_none() {
                break;
            }
            result = look();
        }
        result
    }
}
