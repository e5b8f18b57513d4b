//! How the log is handed from process to process.
//!
//! The log is the only truth. Who takes the commit lock reads what others have added since it had it last, and knows
//! then what is committed, applied and settled. If a commit stands there that is not noted as applied, its process died
//! in the middle: then a recovery runs, under both locks, before anything else, and nobody has to open the store again.

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::{self, Analysis, Committed, Standing};
use atomtree_recovery::image::Slot;
use atomtree_recovery::places::{Places, StoreFile};
use atomtree_recovery::plan::{Change, TransactionId};
use atomtree_recovery::recover::{Recovery, Report};
use atomtree_recovery::stage::all_staged;
use atomtree_vfs::Dir;
use atomtree_wal::sync::{Guard, TurnGuard};
use atomtree_wal::{self as wal, Log, Lsn};

use crate::error::{Error, ErrorKind};
use crate::lock::{Mark, Meeting};
use crate::store::{Engine, Health};
use crate::trace;

/// What only the holder of the commit lock touches: the log, and what it says, as of when the lock was taken.
pub(crate) struct CommitState {
    pub(crate) log: Log,
    pub(crate) next_tx: TransactionId,
    /// Everything up to here is settled.
    pub(crate) settled: Lsn,
    /// Everything up to here has been applied.
    pub(crate) applied: Lsn,
    /// The last commit of this process.
    pub(crate) last_own: Lsn,
    /// What is applied and not settled, by whichever process, in order.
    pub(crate) unsettled: Vec<Arc<Committed<'static>>>,
    /// How many of those move or remove directories, or change what kind of thing a name is.
    pub(crate) unsettled_barriers: usize,
    /// What the last record of another process's checkpoint settled. That may have died before it discarded the originals.
    pub(crate) uncleared: Vec<Arc<Committed<'static>>>,
    /// Whether every commit in the log has been applied: between a round's appends and its apply none may be settled.
    pub(crate) is_all_applied: bool,
    /// Whether somebody died, or failed, in a commit, as of when the whole log was read.
    pub(crate) is_unfinished: bool,
    /// What the file system is synced through. It learns of every failure to write back since it was opened.
    pub(crate) sync_root: Arc<dyn Dir>,
    /// Where the log ended then: what is older may have failed without this process learning of it.
    pub(crate) joined: Lsn,
    /// What was staged by then, and may be logged later.
    staged_before: HashSet<Slot>,
    /// Where a transaction that is repeated was a conflict, as of when the lock was taken.
    pub(crate) meeting: Option<Meeting>,
}

/// What the file system is synced through from some moment on.
pub(crate) struct SyncRoot {
    pub(crate) dir: Arc<dyn Dir>,
    /// What was staged by then.
    pub(crate) staged_before: HashSet<Slot>,
}

/// What a look at the log of another process's making found.
pub(crate) enum Found {
    /// Everything is known now.
    Known,
    /// Somebody died in a commit.
    Unfinished,
}

impl CommitState {
    /// What has been read of a whole log, which `is_torn` at its end or not.
    pub(crate) fn new(log: Log, analysis: &Analysis<'_>, is_torn: bool, sync_root: SyncRoot) -> Self {
        let joined = log.next_lsn().previous();
        let unfinished = Self {
            log,
            next_tx: analysis.next_tx,
            settled: analysis.watermark,
            applied: analysis.applied,
            last_own: Lsn(0),
            unsettled: Vec::new(),
            unsettled_barriers: 0,
            uncleared: Vec::new(),
            is_all_applied: true,
            is_unfinished: is_torn || analysis.is_unfinished(),
            sync_root: sync_root.dir,
            joined,
            staged_before: sync_root.staged_before,
            meeting: None,
        };
        let (unsettled, settled) =
            analysis.committed.iter().map(owned).partition(|one| one.lsn > analysis.watermark);
        let mut this = Self { uncleared: settled, ..unfinished };
        this.note_unsettled(unsettled);
        this
    }

    /// What a recovery leaves: everything is settled, and its originals are gone.
    pub(crate) fn settle_all(&mut self, next_tx: TransactionId) {
        let settled = self.log.next_lsn().previous();
        (self.next_tx, self.is_all_applied, self.is_unfinished) = (next_tx, true, false);
        (self.settled, self.applied) = (settled, settled);
        (self.unsettled, self.uncleared, self.unsettled_barriers) = Default::default();
    }

    /// Takes up what others have added to the log.
    pub(crate) fn take_up(&mut self, analysis: &Analysis<'_>) {
        let transactions = analysis.committed.iter().map(owned).collect();
        self.note_unsettled(transactions);
        if let Some((last, earlier)) = analysis.watermarks.split_last() {
            // Whoever wrote a checkpoint's record had seen to it that what the one before settled was cleared.
            let cleared = earlier.last().copied().unwrap_or(self.settled).max(self.settled);
            let settled = self.unsettled.iter().filter(|one| one.lsn > cleared && one.lsn <= *last);
            self.uncleared = settled.cloned().collect();
            self.note_settled(analysis.watermark.max(self.settled));
        }
        (self.next_tx, self.applied) = (analysis.next_tx, analysis.applied);
    }

    /// Adds what has been applied.
    pub(crate) fn note_unsettled(&mut self, applied: Vec<Arc<Committed<'static>>>) {
        self.unsettled_barriers += applied.iter().filter(|transaction| is_barrier(transaction)).count();
        self.unsettled.extend(applied);
    }

    /// Forgets what is settled.
    pub(crate) fn note_settled(&mut self, settled: Lsn) {
        self.settled = settled;
        self.unsettled.retain(|transaction| transaction.lsn > settled);
        if self.unsettled_barriers > 0 {
            self.unsettled_barriers =
                self.unsettled.iter().filter(|transaction| is_barrier(transaction)).count();
        }
    }

    /// Whether something is unsettled of which this process may not have heard that it could not be written.
    pub(crate) fn has_older_than_itself(&self) -> bool {
        let was_staged =
            |change: &Change<'_>| change.slot.as_ref().is_some_and(|slot| self.staged_before.contains(slot));
        self.unsettled.first().is_some_and(|oldest| oldest.lsn <= self.joined)
            || !self.staged_before.is_empty()
                && self.unsettled.iter().flat_map(|transaction| &transaction.changes).any(was_staged)
    }
}

pub(crate) fn is_barrier(transaction: &Committed<'_>) -> bool {
    transaction.changes.iter().any(Change::is_barrier)
}

fn owned(transaction: &Committed<'_>) -> Arc<Committed<'static>> {
    let Committed { begin, lsn, changes } = transaction.clone();
    Arc::new(Committed { begin, lsn, changes: changes.into_iter().map(Change::into_owned).collect() })
}

/// The commit lock, held, with the log known to its end.
pub(crate) struct CommitLock<'a> {
    engine: &'a Engine,
    /// Given up after the file's lock, by the order of the fields and the drop below.
    state: Guard<'a, CommitState>,
}

impl Deref for CommitLock<'_> {
    type Target = CommitState;

    fn deref(&self) -> &CommitState {
        &self.state
    }
}

impl DerefMut for CommitLock<'_> {
    fn deref_mut(&mut self) -> &mut CommitState {
        &mut self.state
    }
}

impl Drop for CommitLock<'_> {
    fn drop(&mut self) {
        self.engine.locks.give_up_commit();
    }
}

/// The right to make checkpoints, and to recover.
pub(crate) struct CheckpointTurn<'a> {
    engine: &'a Engine,
    _turn: TurnGuard<'a>,
}

impl Drop for CheckpointTurn<'_> {
    fn drop(&mut self) {
        self.engine.locks.give_up_checkpoint();
    }
}

impl Engine {
    /// Takes the commit lock, and learns what others have added to the log; finishes it first if one of them died.
    pub(crate) fn lock_commits(&self, deadline: Instant) -> Result<CommitLock<'_>, Error> {
        if let (commits, Found::Known) = self.hold_commits(deadline)? {
            return Ok(commits);
        }
        // That lock has been given up: this one comes first.
        let turn = self.checkpoint_turn(deadline)?;
        self.lock_commits_in(&turn, deadline)
    }

    /// As [`Engine::lock_commits`], for who may recover at once.
    pub(crate) fn lock_commits_in(
        &self,
        turn: &CheckpointTurn<'_>,
        deadline: Instant,
    ) -> Result<CommitLock<'_>, Error> {
        let (mut commits, found) = self.hold_commits(deadline)?;
        if let Found::Unfinished = found {
            self.take_over(turn, &mut commits)?;
        }
        Ok(commits)
    }

    /// Takes the right to make a checkpoint. Not under the commit lock.
    pub(crate) fn checkpoint_turn(&self, deadline: Instant) -> Result<CheckpointTurn<'_>, Error> {
        // Threads of this process wait for one another however long it takes: whoever is first waits no longer than it may.
        let turn = self.checkpoint_turn.lock();
        self.locks.take_checkpoint(&*self.places.vfs, deadline)?;
        Ok(CheckpointTurn { engine: self, _turn: turn })
    }

    /// As [`Engine::checkpoint_turn`], without waiting.
    pub(crate) fn try_checkpoint_turn(&self) -> Result<Option<CheckpointTurn<'_>>, Error> {
        let Some(turn) = self.checkpoint_turn.try_lock() else { return Ok(None) };
        let is_taken = self.locks.try_checkpoint(&*self.places.vfs)?;
        Ok(is_taken.then_some(CheckpointTurn { engine: self, _turn: turn }))
    }

    /// Takes the commit lock and learns what the log says.
    fn hold_commits(&self, deadline: Instant) -> Result<(CommitLock<'_>, Found), Error> {
        let state = self.commits.lock();
        self.locks.take_commit(&self.places, deadline).inspect_err(|error| {
            if let Error::Poisoned { reason } = error {
                self.poison_here(reason);
            }
        })?;
        let mut commits = CommitLock { engine: self, state };
        let (mark, meeting) = self.locks.mark_and_meeting()?;
        commits.meeting = meeting.filter(|meeting| meeting.is_of_late(self.places.vfs.now()));
        if let Mark::Poisoned { reason, .. } = mark {
            return Err(Error::Poisoned { reason });
        }
        if let Mark::Recovered { id } | Mark::Recovering { id } = mark
            && *self.recovered.lock() != Some(id)
        {
            // The old one may have a failure to tell that has been recovered from. What this process has staged may have
            // met it, too.
            let dir = self.places.root.open_dir("".as_ref()).doing("open", "the root")?;
            let sync_root = SyncRoot { dir, staged_before: all_staged(&self.places)? };
            let found = self.read_anew(&mut commits, sync_root, None).inspect_err(|error| {
                // Where the mark can't be written it takes another recovery than this one to go on.
                if error.kind() == ErrorKind::Poisoned {
                    *self.recovered.lock() = Some(id);
                }
            })?;
            *self.recovered.lock() = Some(id);
            self.forget_poison();
            let is_recovered = matches!(mark, Mark::Recovered { .. });
            return Ok((commits, if is_recovered { found } else { Found::Unfinished }));
        }
        self.check_settling()?;
        if let Mark::Recovering { .. } = mark {
            return Ok((commits, Found::Unfinished));
        }
        let found = self.read_on(&mut commits)?;
        Ok((commits, found))
    }

    /// Reads what others have added to the log since this process read it last.
    fn read_on(&self, commits: &mut CommitState) -> Result<Found, Error> {
        if commits.is_unfinished {
            // Somebody else may have finished it meanwhile.
            return self.read_again(commits, None);
        }
        let vfs = &self.places.vfs;
        let log = atomtree_recovery::Error::Log;
        let scan = match commits.log.news(vfs.now(), vfs.timestamp_granularity_ns()) {
            Err(error @ wal::Error::SetBack { .. }) => return self.read_back(commits, error),
            news => news.map_err(log)?,
        };
        let Some(scan) = scan else { return Ok(Found::Known) };
        let standing = Standing {
            read: commits.log.next_lsn().previous(),
            watermark: commits.settled,
            applied: commits.applied,
            next_tx: commits.next_tx,
        };
        let analysis = analyze::analyze_on(&scan, standing)?;
        if scan.tail().is_torn() || analysis.is_unfinished() {
            return Ok(Found::Unfinished);
        }
        commits.log.go_on(&scan).map_err(log)?;
        let settled = commits.settled;
        commits.take_up(&analysis);
        self.note_log(&commits.log);
        self.note_unsettled(commits, commits.settled > settled);
        Ok(Found::Known)
    }

    /// Reads a log anew that ends before what this process knows of it. What was never synced may be gone, when it could not
    /// be written back; what was synced may not.
    fn read_back(&self, commits: &mut CommitState, error: wal::Error) -> Result<Found, Error> {
        let synced = commits.log.synced_lsn();
        self.read_again(commits, Some((synced, error)))
    }

    /// Reads the whole log again. What this process may not have heard of is the same as before.
    fn read_again(
        &self,
        commits: &mut CommitState,
        synced: Option<(Lsn, wal::Error)>,
    ) -> Result<Found, Error> {
        let (dir, joined, last_own) = (commits.sync_root.clone(), commits.joined, commits.last_own);
        let sync_root = SyncRoot { dir, staged_before: commits.staged_before.clone() };
        let found = self.read_anew(commits, sync_root, synced)?;
        (commits.joined, commits.last_own) = (joined, last_own);
        Ok(found)
    }

    /// Reads the whole log, which is to be synced through this descriptor from now on. What is known to have been `synced` has
    /// to be there, or the error is told.
    fn read_anew(
        &self,
        commits: &mut CommitState,
        sync_root: SyncRoot,
        synced: Option<(Lsn, wal::Error)>,
    ) -> Result<Found, Error> {
        let (store, _) = StoreFile::read(&*self.places.store)?;
        let (mut log, scan) = Log::join(self.places.wal.clone(), store.id, self.options.log)
            .map_err(atomtree_recovery::Error::Log)?;
        if let Some((synced, error)) = synced
            && log.next_lsn() <= synced
        {
            // Nothing is written to what somebody has put in the log's place.
            self.poison_here(&error.to_string());
            return Err(atomtree_recovery::Error::Log(error).into());
        }
        log.rewrite_tail(&scan).map_err(|error| {
            if log.is_poisoned() {
                // Nothing of this process's is in there, so that no outcome is unknown.
                let reason = error.to_string();
                self.poison(&reason);
                return Error::Poisoned { reason };
            }
            atomtree_recovery::Error::Log(error).into()
        })?;
        let analysis = analyze::analyze(&scan)?;
        *commits = CommitState::new(log, &analysis, scan.tail().is_torn(), sync_root);
        self.note_unsettled(commits, true);
        Ok(if commits.is_unfinished { Found::Unfinished } else { Found::Known })
    }

    /// Recovers the store while others have it open: neither a commit nor a checkpoint is under way, and what they have
    /// staged is theirs.
    pub(crate) fn take_over(
        &self,
        _turn: &CheckpointTurn<'_>,
        commits: &mut CommitState,
    ) -> Result<(), Error> {
        trace::span!("atomtree.take_over");
        // Whoever died may have left a manifest, and this recovery writes one.
        self.shelves.lock().forget();
        let (store, _) = StoreFile::read(&*self.places.store)?;
        let (mut log, scan) = Log::open(self.places.wal.clone(), store.id, self.options.log)
            .map_err(atomtree_recovery::Error::Log)?;
        // A name that is written anew without an exchange is nowhere for a moment. Whoever comes after a death in that moment
        // has to know, and takes no absence for another program's doing.
        let mark = self.locks.mark()?;
        let is_cut_short = matches!(mark, Mark::Poisoned { .. } | Mark::Recovering { .. });
        if let Mark::Recovering { id } = mark {
            // Now it is this one's, and a failure in it is final.
            *self.recovered.lock() = Some(id);
        }
        let is_live = self.can_exchange || !is_cut_short;
        if !self.can_exchange && !is_cut_short {
            let id = self.places.vfs.random().doing("read randomness for", ".atomtree/lock")?;
            self.locks.set_mark(&Mark::Recovering { id }).doing("write", ".atomtree/lock")?;
            *self.recovered.lock() = Some(id);
        }
        // What somebody else has left unfinished is not written behind: one whose append failed, and who lives, would take
        // the end that it knows for the end that there is.
        log.leave_segment();
        let Self { stage, ballast, can_exchange, .. } = self;
        // A descriptor that is as old as this recovery: an older one may have a failure to tell that was recovered from.
        let root = self.places.root.open_dir("".as_ref()).doing("open", "the root")?;
        let places = &Places { root, ..self.places.clone() };
        let recovery = Recovery {
            places,
            stage,
            ballast,
            can_exchange: *can_exchange,
            is_live,
            image_bytes_max: self.image_bytes_max(),
        };
        let (report, next_tx) = recovery.run(&mut log, &scan).map_err(|error| {
            let error = Error::from(error);
            // Without space nothing was given up, and it can be tried again.
            if log.is_poisoned() || error.kind() != ErrorKind::NoSpace || error.is_failed_sync() {
                self.poison(&format!("a recovery failed: {error}"));
            }
            error
        })?;
        note_report(&report);
        commits.log = log;
        commits.settle_all(next_tx);
        if matches!(self.locks.mark()?, Mark::Poisoned { .. } | Mark::Recovering { .. }) {
            let id = self.places.vfs.random().doing("read randomness for", ".atomtree/lock")?;
            self.locks.set_mark(&Mark::Recovered { id }).doing("write", ".atomtree/lock")?;
            *self.recovered.lock() = Some(id);
        }
        self.note_unsettled(commits, true);
        self.take_overs.lock().push(report);
        Ok(())
    }

    /// Recovers a store that is poisoned, or in which somebody died, and lets all who have it open go on.
    pub(crate) fn recover_for_all(&self) -> Result<(), Error> {
        let deadline = self.options.deadline();
        let turn = self.checkpoint_turn(deadline)?;
        let state = self.commits.lock();
        self.locks.take_commit(&self.places, deadline)?;
        let mut commits = CommitLock { engine: self, state };
        let is_poisoned = matches!(self.locks.mark()?, Mark::Poisoned { .. } | Mark::Recovering { .. });
        if let Found::Known = self.read_again(&mut commits, None)?
            && !is_poisoned
        {
            return Ok(());
        }
        self.take_over(&turn, &mut commits)
    }

    /// Takes commits again after somebody has recovered the store.
    fn forget_poison(&self) {
        let mut health = self.health.lock();
        if matches!(*health, Health::Poisoned { .. }) {
            *health = Health::Open;
        }
        drop(health);
        drop(self.unsettled.lock());
        self.wake.notify_all();
    }
}

/// Says what a recovery has moved.
pub(crate) fn note_report(report: &Report) {
    for one in &report.quarantined {
        trace::event!(WARN, "quarantined", path = one.path.to_string(), kept = one.kept.as_str());
    }
}
