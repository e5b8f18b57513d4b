//! How a checkpoint is made: the tree is made durable, the manifest written, the log told, and only then is cleared up.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::{Committed, Slots, slots_of};
use atomtree_recovery::apply::{Applier, Parents};
use atomtree_recovery::keeper::Keeper;
use atomtree_recovery::known::Known;
use atomtree_recovery::log_records::append_checkpoint;
use atomtree_recovery::manifest::{self, Summary};
use atomtree_recovery::plan::Checkpoint;
use atomtree_recovery::sweep::{Sweep, dead_stages, left_slots};
use atomtree_vfs::Dir;
use atomtree_wal::{self as wal, Lsn};

use crate::checkpointer::Wanted;
use crate::error::{Error, ErrorKind};
use crate::hand_over::{CheckpointTurn, CommitLock, CommitState};
use crate::options::Checkpoints;
use crate::store::Engine;
use crate::trace;

/// In about how many portions a checkpoint settles what fills the log.
const PORTIONS_MAX: u64 = 16;

/// What a name takes in the log, about, if little is written to it.
const NAME_BYTES: u64 = 2 << 10;

/// How long who has something synced waits to be woken.
const SYNC_LOOK: Duration = Duration::from_millis(100);

/// The log is rotated at a clean close if its active segment holds more than this, so that the next open has little
/// to read.
const CLOSE_BYTES_MAX: u64 = 256 << 10;

/// What a checkpoint settles.
struct Backlog {
    transactions: Vec<Arc<Committed<'static>>>,
    /// What others have settled and may not have cleared.
    uncleared: Vec<Arc<Committed<'static>>>,
    sync_root: Arc<dyn Dir>,
}

/// How a checkpoint ended that did not fail.
pub(crate) enum Progress {
    Settled,
    /// A recovery has settled it.
    Recovered,
    /// There was no reason for one any more.
    NotDue,
    /// There was no space for the manifest, or somebody held a lock for too long, and nothing was given up: it can be tried
    /// again.
    PutOff(Error),
}

/// How many of these transactions are settled before the log is given back what they took, about so much of it: but one at
/// least. Where there are many, all at once would keep who commits waiting for long.
fn portion(transactions: &[Arc<Committed<'static>>], bytes_max: u64) -> usize {
    let mut bytes = 0;
    let is_within = |transaction: &&Arc<Committed<'static>>| {
        let changes = transaction.changes.iter();
        bytes += changes
            .map(|change| NAME_BYTES * (1 + change.contents.len() as u64) + change.after.inline_bytes())
            .sum::<u64>();
        bytes <= bytes_max
    };
    transactions.iter().take_while(is_within).count().max(1).min(transactions.len())
}

impl Engine {
    /// Makes a checkpoint, for who has the turn, and perhaps the commit lock. See [`Engine::settle_in_turn`].
    pub(crate) fn settle(
        &self,
        turn: &CheckpointTurn<'_>,
        wanted: Wanted,
        mut held: Option<&mut CommitState>,
    ) -> Result<Progress, Error> {
        let backlog = {
            let mut lock = None;
            let commits = match self.held_or_locked(turn, &mut held, &mut lock) {
                Ok(commits) => commits,
                Err(error) => return Ok(Progress::PutOff(error)),
            };
            // Taking the lock has told what others have settled.
            if !self.begin_checkpoint(wanted) {
                return Ok(Progress::NotDue);
            }
            if commits.has_older_than_itself() {
                // A failure to write it may have been told to others only: then nothing but a recovery tells.
                let settled = self.take_over(turn, commits);
                return Ok(settled.map_or_else(Progress::PutOff, |()| Progress::Settled));
            }
            Backlog {
                transactions: commits.unsettled.clone(),
                uncleared: commits.uncleared.clone(),
                sync_root: commits.sync_root.clone(),
            }
        };
        let transactions = &backlog.transactions;
        if transactions.is_empty() && wanted != Wanted::Always {
            return Ok(Progress::Settled);
        }
        trace::span!("atomtree.checkpoint", transactions = transactions.len());
        // Targets, originals and all their directories. The descriptor is older than all of them, so that no write-back
        // error of theirs has been reported elsewhere alone.
        self.sync_filesystem(turn, held.is_some(), &*backlog.sync_root)
            .doing("sync the file system of", "the root")?;
        let log = self.options.log;
        // Who holds the commit lock lets nobody profit, and whose segments are small would profit too little.
        let portion_bytes =
            if held.is_some() { u64::MAX } else { log.segment_bytes.max(log.log_bytes_max / PORTIONS_MAX) };
        let mut settled = 0;
        loop {
            let rest = &transactions[settled..];
            let portion = settled..settled + portion(rest, portion_bytes);
            settled = portion.end;
            match self.settle_synced(turn, &backlog, portion, &mut held)? {
                Progress::Settled if settled < transactions.len() => {}
                progress => {
                    if !matches!(progress, Progress::Settled) {
                        // There may be a manifest that no record says anything of.
                        self.shelves.lock().forget();
                    }
                    return Ok(progress);
                }
            }
        }
    }

    /// Syncs the file system, which takes long where others have written much. Commits go on meanwhile, so the log may need
    /// another segment, for which nobody else has the turn.
    fn sync_filesystem(&self, turn: &CheckpointTurn<'_>, is_held: bool, root: &dyn Dir) -> io::Result<()> {
        let sync = || root.sync_filesystem();
        // Under the commit lock nobody commits; without a thread of the store's own nobody adds segments ahead of time; and
        // loom knows no threads that borrow.
        if is_held || self.options.checkpoints == Checkpoints::Manual || cfg!(loom) {
            return sync();
        }
        let is_done = AtomicBool::new(false);
        let sync_and_tell = || {
            let synced = sync();
            is_done.store(true, Ordering::Relaxed);
            drop(self.unsettled.lock());
            self.wake.notify_all();
            synced
        };
        std::thread::scope(|scope| {
            let builder = Builder::new().name("atomtree-sync".into());
            let Ok(syncing) = builder.spawn_scoped(scope, sync_and_tell) else { return sync() };
            while !syncing.is_finished() {
                self.add_wanted_spare(turn, false);
                let unsettled = self.unsettled.lock();
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                drop(self.wake.wait_timeout(unsettled, SYNC_LOOK));
            }
            syncing.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Settles a portion of the backlog, which has been synced: writes its manifest, says so in the log, moves its originals
    /// and frees its segments.
    fn settle_synced(
        &self,
        turn: &CheckpointTurn<'_>,
        backlog: &Backlog,
        portion: Range<usize>,
        held: &mut Option<&mut CommitState>,
    ) -> Result<Progress, Error> {
        let (transactions, uncleared) = (&backlog.transactions[portion.clone()], &backlog.uncleared);
        match self.write_manifest(transactions) {
            // Nothing has been given up yet, and each attempt writes a file of its own.
            Err(error) if error.kind() == ErrorKind::NoSpace => return Ok(Progress::PutOff(error)),
            result => result?,
        }
        if portion.start == 0 {
            self.clear_again(uncleared, &backlog.transactions)?;
        }
        let recorded = {
            let mut lock = None;
            match self.held_or_locked(turn, held, &mut lock) {
                // Somebody died meanwhile, and taking the lock was a recovery, which has settled more than this.
                Ok(commits) if transactions.last().is_some_and(|last| last.lsn <= commits.settled) => {
                    return Ok(Progress::Recovered);
                }
                Ok(commits) => self.record(commits, transactions)?,
                Err(error) => return Ok(Progress::PutOff(error)),
            }
        };
        let watermark = match recorded {
            Ok(watermark) => watermark,
            Err(error) => return Ok(Progress::PutOff(error.into())),
        };
        let is_held = held.is_some();
        self.keep_originals(transactions, || self.add_wanted_spare(turn, is_held))?;
        // A record outlives every file that it explains; the one that says so stays until a later one does.
        let mut lock = None;
        let Ok(commits) = self.held_or_locked(turn, held, &mut lock) else {
            // They are retired after the next one.
            return Ok(Progress::Settled);
        };
        if commits.log.retire(watermark.next()).map_err(atomtree_recovery::Error::Log)? > 0 {
            self.note_room();
        }
        if commits.unsettled.is_empty() {
            self.sweep_dead(uncleared.iter().chain(&backlog.transactions))?;
        }
        drop(lock);
        if !transactions.is_empty() {
            match self.prune_history(&self.options.retention, transactions) {
                // The next one finds what is left.
                Err(error) if error.kind() == ErrorKind::NoSpace && !error.is_failed_sync() => {}
                pruned => drop(pruned?),
            }
        }
        Ok(Progress::Settled)
    }

    /// Says in the log that these transactions, and all before them, are settled. Returns up to where.
    fn record(
        &self,
        commits: &mut CommitState,
        transactions: &[Arc<Committed<'static>>],
    ) -> Result<Result<Lsn, atomtree_recovery::Error>, Error> {
        // A transaction that got stuck after its commit point is in nobody's list, and must not be covered.
        self.check_settling()?;
        // If nothing was applied meanwhile, the records behind the last commit are covered too: they explain nothing,
        // and would keep their segment from being freed.
        let is_all = commits.unsettled.len() == transactions.len() && commits.is_all_applied;
        let settled = match transactions.last() {
            _ if is_all => commits.log.next_lsn().previous(),
            Some(last) => last.lsn,
            None => commits.settled,
        };
        let record = Checkpoint { watermark: settled.0, next_tx: commits.next_tx };
        loop {
            match append_checkpoint(&mut commits.log, record) {
                Ok(_) => break,
                // Where writing a block again takes a new one, as on btrfs, there may be no space. The log goes on
                // without the record.
                Err(error) if error.is_no_space() && !commits.log.is_poisoned() => {
                    if !self.ballast.release().doing("release", ".atomtree/ballast")? {
                        return Ok(Err(atomtree_recovery::Error::Log(error)));
                    }
                }
                Err(error) => return Err(atomtree_recovery::Error::Log(error).into()),
            }
        }
        commits.log.sync().map_err(atomtree_recovery::Error::Log)?;
        commits.note_settled(settled);
        commits.uncleared.clear();
        Ok(Ok(settled))
    }

    /// The state that the caller holds, or, for as long as `lock` lives, the one behind the lock.
    fn held_or_locked<'a, 'b>(
        &'a self,
        turn: &CheckpointTurn<'_>,
        held: &'b mut Option<&mut CommitState>,
        lock: &'b mut Option<CommitLock<'a>>,
    ) -> Result<&'b mut CommitState, Error> {
        match held {
            Some(commits) => Ok(commits),
            None => Ok(lock.insert(self.lock_commits_in(turn, self.options.deadline())?)),
        }
    }

    /// Clears what another process's checkpoint or recovery settled, in case that died before it had done so. Before there is
    /// a record that says so: see [`CommitState::take_up`]. A recovery that died may have held what is unsettled.
    fn clear_again(
        &self,
        uncleared: &[Arc<Committed<'static>>],
        unsettled: &[Arc<Committed<'static>>],
    ) -> Result<(), Error> {
        let settled = uncleared.iter().map(|transaction| &**transaction);
        let slots = slots_of(settled.clone());
        let left = left_slots(&self.places, &slots, &BTreeSet::new())?;
        if left.is_empty() {
            return Ok(());
        }
        let known = Known::of(settled.clone().chain(unsettled.iter().map(|transaction| &**transaction)));
        self.sweep(settled, &slots, &known, |sweep| sweep.left(left))
    }

    /// Clears up with what the history wants of these transactions.
    fn sweep<'a>(
        &self,
        settled: impl Iterator<Item = &'a Committed<'static>>,
        slots: &Slots<'_, 'static>,
        known: &Known<'_>,
        clear: impl FnOnce(&mut Sweep<'_, '_>) -> Result<(), atomtree_recovery::Error>,
    ) -> Result<(), Error> {
        let (places, mut applier) = (&self.places, self.applier()?);
        let mut keeper = Keeper::of_nothing(places);
        keeper.want_settled(&settled.map(|transaction| transaction.begin.tx).collect())?;
        clear(&mut Sweep { places, slots, known, applier: &mut applier, keeper: &mut keeper })?;
        Ok(keeper.finish()?)
    }

    /// Clears what processes have left in `stage/` that died while nothing of theirs was unsettled. Under the commit lock.
    fn sweep_dead<'a>(
        &self,
        settled: impl Iterator<Item = &'a Arc<Committed<'static>>> + Clone,
    ) -> Result<(), Error> {
        let dead = dead_stages(&self.places, self.stage().name())?;
        if dead.is_empty() {
            return Ok(());
        }
        let settled = settled.map(|transaction| &**transaction);
        let (slots, known) = (slots_of(settled.clone()), Known::of(settled.clone()));
        self.sweep(settled, &slots, &known, |sweep| sweep.dead(dead))
    }

    pub(crate) fn applier(&self) -> Result<Applier<'_>, Error> {
        let parents = Parents::new(self.places.root.clone()).doing("read the metadata of", "the root")?;
        Ok(Applier::new(&self.places, parents, &self.ballast, self.can_exchange, Lsn(0)))
    }

    /// Writes the manifest of these transactions, from the ballast if need be.
    fn write_manifest(&self, transactions: &[Arc<Committed<'static>>]) -> Result<(), Error> {
        if transactions.is_empty() {
            return Ok(());
        }
        let summaries: Vec<Summary> =
            transactions.iter().map(|transaction| Summary::of(transaction, self.image_bytes_max())).collect();
        let write = || manifest::write(&*self.places.history, &summaries).map_err(Error::from);
        match write() {
            Err(error)
                if error.kind() == ErrorKind::NoSpace
                    && self.ballast.release().doing("release", ".atomtree/ballast")? =>
            {
                trace::event!(WARN, "ballast released");
                write()
            }
            result => result,
        }
    }

    /// Settles what this process has committed, and, if no other one has the store open, everything; says in the log then
    /// that nothing follows.
    pub(crate) fn close_log(&self) -> Result<(), Error> {
        loop {
            self.checkpoint()?;
            // With both locks held nothing comes in, and nothing is being settled by another thread.
            let deadline = self.options.deadline();
            let turn = self.checkpoint_turn(deadline)?;
            let mut commits = self.lock_commits_in(&turn, deadline)?;
            self.check_settling()?;
            // What others have committed meanwhile is theirs, or nobody would ever get away from those who commit all the
            // time.
            if commits.settled < commits.last_own {
                continue;
            }
            self.clear_again(&commits.uncleared, &commits.unsettled)?;
            commits.uncleared.clear();
            let left = match self.locks.is_alone() {
                Ok(false) => Ok(true),
                Ok(true) if !commits.unsettled.is_empty() => Ok(false),
                Ok(true) => close_settled_log(&mut commits).map(|()| true),
                Err(error) => Err(error),
            };
            if !matches!(left, Ok(true)) {
                // The store stays open, and others may have it too, as before.
                if !self.options.exclusive {
                    self.locks.join()?;
                }
                if !left? {
                    continue;
                }
            }
            // What can't be removed is swept by others.
            let _ = self.stage().remove(&self.places);
            if self.options.exclusive {
                self.places.give_to_owner(self.locks.me().since)?;
            }
            self.locks.leave();
            self.note_closed();
            return Ok(());
        }
    }
}

/// Says in a log in which everything is settled that nothing follows.
fn close_settled_log(commits: &mut CommitState) -> Result<(), Error> {
    if commits.log.is_closed() {
        return Ok(());
    }
    let log = atomtree_recovery::Error::Log;
    if commits.log.active_bytes() > CLOSE_BYTES_MAX {
        match commits.log.rotate() {
            // Without a spare, or space for its header, the next open reads more, and that is all.
            Ok(()) | Err(wal::Error::Full { .. }) => {}
            Err(error) if error.is_no_space() && !commits.log.is_poisoned() => {}
            Err(error) => return Err(log(error).into()),
        }
    }
    let record = Checkpoint { watermark: commits.log.next_lsn().previous().0, next_tx: commits.next_tx };
    let lsn = append_checkpoint(&mut commits.log, record).map_err(log)?;
    commits.log.sync().map_err(log)?;
    commits.log.retire(lsn).map_err(log)?;
    commits.log.close().map_err(log)?;
    Ok(())
}
