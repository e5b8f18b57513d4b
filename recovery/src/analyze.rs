//! What the log's records say: which transactions are committed, which of them are not settled, and what every slot
//! that is named may hold. No I/O beyond reading the frames it is given.

use std::collections::BTreeMap;

use atomtree_vfs::Kind;
use atomtree_wal::{self as wal, Lsn, Scan};

use crate::error::Error;
use crate::image::{Image, Slot};
use crate::plan::{After, Begin, Change, Checkpoint, Commit, Record, RecordKind, TransactionId, decode};
use crate::tree_path::TreePath;

/// No log has as many: a number beyond it was planted, and would leave none for the next.
const TRANSACTION_MAX: TransactionId = TransactionId(u64::MAX / 2);

/// A committed transaction, as it was logged.
#[derive(Clone, Debug)]
pub struct Committed<'a> {
    /// Number, time, label and agent.
    pub begin: Begin,
    /// LSN of its commit record.
    pub lsn: Lsn,
    /// What it changes, each with its original filled in.
    pub changes: Vec<Change<'a>>,
}

/// What the accepted part of the log says.
#[derive(Debug)]
pub struct Analysis<'a> {
    /// Every committed transaction that is still in the log, settled or not, in order.
    pub committed: Vec<Committed<'a>>,
    /// LSN below or at which everything is settled.
    pub watermark: Lsn,
    /// Commits up to this LSN had been applied, though perhaps not durably.
    pub applied: Lsn,
    /// Number of the next transaction.
    pub next_tx: TransactionId,
    /// Runs without a commit record, above the watermark.
    pub voided: u64,
    /// Whether the last run has no commit record, and nothing follows it.
    pub is_cut: bool,
    /// The watermarks of all checkpoint records, in order.
    pub watermarks: Vec<Lsn>,
}

/// What is known of the log before it is read, or read on.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Everything up to here has been read.
    pub read: Lsn,
    /// LSN below or at which everything is settled.
    pub watermark: Lsn,
    /// Commits up to this LSN have been applied.
    pub applied: Lsn,
    /// Number of the next transaction.
    pub next_tx: TransactionId,
}

impl Default for Standing {
    fn default() -> Self {
        Self { read: Lsn(0), watermark: Lsn(0), applied: Lsn(0), next_tx: TransactionId(1) }
    }
}

impl<'a> Analysis<'a> {
    /// Whether somebody died, or failed, between the beginning of a transaction's run and the note that it is applied.
    pub fn is_unfinished(&self) -> bool {
        self.is_cut || self.committed.iter().any(|transaction| transaction.lsn > self.applied)
    }

    /// The committed transactions that are not settled.
    pub fn unsettled(&self) -> impl Iterator<Item = &Committed<'a>> {
        self.committed.iter().filter(|transaction| transaction.lsn > self.watermark)
    }

    /// Every slot that a record names, with the change it belongs to.
    pub fn slots(&self) -> Slots<'_, 'a> {
        slots_of(&self.committed)
    }
}

/// Slots, with the changes that they belong to.
pub type Slots<'a, 'b> = BTreeMap<Slot, (&'a Committed<'b>, &'a Change<'b>)>;

/// Every slot of these transactions.
pub fn slots_of<'a, 'b>(transactions: impl IntoIterator<Item = &'a Committed<'b>>) -> Slots<'a, 'b>
where
    'b: 'a,
{
    let slots_of = |transaction: &'a Committed<'b>| {
        let slot = move |change: &'a Change<'b>| Some((change.slot.clone()?, (transaction, change)));
        transaction.changes.iter().filter_map(slot)
    };
    transactions.into_iter().flat_map(slots_of).collect()
}

/// The highest watermark in the accepted part of the log.
pub fn watermark(scan: &Scan) -> Result<Lsn, Error> {
    let mut watermark = Lsn(0);
    for frame in scan.frames() {
        let frame = frame?;
        if RecordKind::from_code(frame.kind) == Some(RecordKind::Checkpoint)
            && let Record::Checkpoint(checkpoint) = decode(frame.lsn, frame.kind, frame.payload)?
        {
            watermark = watermark.max(Lsn(checkpoint.watermark));
        }
    }
    Ok(watermark)
}

/// A transaction's run while it is being read.
struct Run<'a> {
    begin: Begin,
    images: BTreeMap<TreePath, Image<'a>>,
    contents: BTreeMap<TreePath, Vec<(TreePath, Image<'a>)>>,
    changes: Vec<Change<'a>>,
    image_count: u32,
}

impl<'a> Run<'a> {
    fn finish(self, lsn: Lsn, commit: Commit) -> Result<Committed<'a>, Error> {
        let found = (self.begin.tx, self.image_count, self.changes.len() as u32);
        let expected = (commit.tx, commit.images, commit.changes);
        if found != expected {
            return Err(Error::Sequence {
                lsn,
                reason: format!(
                    "its run is (transaction, images, changes) {found:?}, the commit says {expected:?}"
                ),
            });
        }
        let Self { begin, mut images, mut contents, mut changes, .. } = self;
        for change in &mut changes {
            change.before = images.remove(&change.path);
            if let After::Patched(patched) = &change.after
                && change.before.as_ref().map(|image| (image.kind, image.size))
                    != Some((Kind::File, patched.size()))
            {
                let reason = format!("a patch of {} without an image of a file as long", change.path);
                return Err(Error::Sequence { lsn, reason });
            }
            if change.takes_directory() {
                change.contents = contents.remove(&change.path).unwrap_or_default();
            }
        }
        match images.into_keys().chain(contents.into_keys()).next() {
            None => Ok(Committed { begin, lsn, changes }),
            Some(path) => {
                Err(Error::Sequence { lsn, reason: format!("an image of {path} without a change") })
            }
        }
    }
}

/// Reads the accepted part of the log.
///
/// # Errors
/// [`Error::Log`] for damage in frames, [`Error::Record`] and [`Error::Sequence`] for frames that are whole and make
/// no sense.
pub fn analyze(scan: &Scan) -> Result<Analysis<'_>, Error> {
    analyze_on(scan, Standing::default())
}

/// Reads what has come since.
///
/// # Errors
/// As for [`analyze`].
pub fn analyze_on(scan: &Scan, standing: Standing) -> Result<Analysis<'_>, Error> {
    let mut analysis = Analysis {
        committed: Vec::new(),
        watermark: standing.watermark,
        applied: standing.applied,
        next_tx: standing.next_tx,
        voided: 0,
        is_cut: false,
        watermarks: Vec::new(),
    };
    let mut void_runs: Vec<Lsn> = Vec::new();
    let mut run: Option<(Lsn, Run<'_>)> = None;
    for frame in scan.frames() {
        let wal::Frame { lsn, kind, payload, .. } = frame?;
        match (decode(lsn, kind, payload)?, &mut run) {
            (Record::Begin(begin), _) if begin.tx > TRANSACTION_MAX => {
                return Err(Error::Sequence { lsn, reason: format!("transaction {}, beyond any", begin.tx) });
            }
            (Record::Begin(begin), _) => {
                // A run that ends without a commit was cut short by a crash or a failed append, and never counted.
                void_runs.extend(run.as_ref().map(|(lsn, _)| *lsn));
                let (images, contents) = (BTreeMap::new(), BTreeMap::new());
                run = Some((lsn, Run { begin, images, contents, changes: Vec::new(), image_count: 0 }));
            }
            (Record::Image(path, image), Some((_, run))) => {
                run.image_count += 1;
                run.images.insert(path, image);
            }
            (Record::ImageBelow(path, below, image), Some((_, run))) => {
                run.image_count += 1;
                run.contents.entry(path).or_default().push((below, image));
            }
            (Record::Change(change), Some((_, run))) => run.changes.push(change),
            (Record::Commit(commit), Some(_)) => {
                let (_, run) = run.take().expect("matched above");
                let transaction = run.finish(lsn, commit)?;
                analysis.next_tx =
                    analysis.next_tx.max(TransactionId(transaction.begin.tx.0.saturating_add(1)));
                analysis.committed.push(transaction);
            }
            // What a run's beginning explained may have been retired with its segment; then it is settled.
            (Record::Image(..) | Record::ImageBelow(..) | Record::Change(_) | Record::Commit(_), None)
                if analysis.committed.is_empty() => {}
            (Record::Image(..) | Record::ImageBelow(..) | Record::Change(_) | Record::Commit(_), None) => {
                return Err(Error::Sequence {
                    lsn,
                    reason: "a transaction's record outside of its run".into(),
                });
            }
            (Record::Applied(applied), _) => {
                void_runs.extend(run.take().map(|(lsn, _)| lsn));
                analysis.applied = analysis.applied.max(Lsn(applied.through));
            }
            (Record::Checkpoint(Checkpoint { watermark, next_tx }), _) => {
                void_runs.extend(run.take().map(|(lsn, _)| lsn));
                if next_tx > TRANSACTION_MAX {
                    return Err(Error::Sequence {
                        lsn,
                        reason: format!("transaction {next_tx}, beyond any"),
                    });
                }
                if watermark > lsn.0 {
                    return Err(Error::Sequence {
                        lsn,
                        reason: format!("a watermark of {watermark}, in the future"),
                    });
                }
                analysis.watermark = analysis.watermark.max(Lsn(watermark));
                analysis.watermarks.push(Lsn(watermark));
                analysis.next_tx = analysis.next_tx.max(next_tx);
            }
        }
    }
    analysis.is_cut = run.is_some();
    void_runs.extend(run.map(|(lsn, _)| lsn));
    // Segments are freed only below a watermark that is durable in a later one by then.
    if scan.first_lsn() > analysis.watermark.max(standing.read).next() {
        return Err(Error::Sequence {
            lsn: scan.first_lsn(),
            reason: format!(
                "it begins there, and the records from lsn {} on are not settled; a segment has been removed",
                analysis.watermark.next()
            ),
        });
    }
    analysis.voided = void_runs.iter().filter(|lsn| **lsn > analysis.watermark).count() as u64;
    analysis.applied = analysis.applied.max(analysis.watermark);
    Ok(analysis)
}
