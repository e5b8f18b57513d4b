//! When checkpoints are made: a thread of the store's own, off the committers' path. How one is made is here too,
//! since it is short: make the tree durable, write the manifest, say so in the log, and only then clear up.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::{Committed, Slots, slots_of};
use atomtree_recovery::apply::{Applier, Parents};
use atomtree_recovery::keeper::Keeper;
use atomtree_recovery::known::Known;
use atomtree_recovery::log_records::append_checkpoint;
use atomtree_recovery::manifest::{self, Summary};
use atomtree_recovery::plan::{Change, Checkpoint};
use atomtree_recovery::sweep::{Sweep, dead_stages, left_slots};
use atomtree_vfs::Dir;
use atomtree_wal::sync::{self, Thread, now};
use atomtree_wal::{self as wal, Log, Lsn};

use crate::error::{Error, ErrorKind};
use crate::hand_over::{CheckpointTurn, CommitLock, CommitState};
use crate::options::Checkpoints;
use crate::store::Engine;
use crate::trace;

/// Under load, checkpoints take at most about a tenth of the time.
const PAUSE_FACTOR: u32 = 10;

/// In about how many portions a checkpoint settles what fills the log.
const PORTIONS_MAX: u64 = 16;

/// What a name takes in the log, about, if little is written to it.
const NAME_BYTES: u64 = 2 << 10;

/// How long who has something synced waits to be woken.
const SYNC_LOOK: Duration = Duration::from_millis(100);

/// How often who waits for room in the log looks whether another process has made some.
const ROOM_LOOK: Duration = Duration::from_millis(20);

/// The log is rotated at a clean close if its active segment holds more than this, so that the next open has little
/// to read.
const CLOSE_BYTES_MAX: u64 = 256 << 10;

/// What waits for a checkpoint. Guarded by the engine's `unsettled` mutex.
#[derive(Default)]
pub(crate) struct Unsettled {
    /// When the first of what is unsettled was applied, or seen.
    since: Option<Instant>,
    /// Whether a checkpoint is wanted at once.
    is_urgent: bool,
    wants_spare: bool,
    is_stopping: bool,
    last_duration: Duration,
    last_end: Option<Instant>,
}

/// When a checkpoint is made, once it is somebody's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// If something is unsettled.
    IfAny,
    /// If what is unsettled has still to be settled: another process may have done so while this one waited for its turn.
    IfDue,
    /// In any case.
    Always,
}

/// What a checkpoint settles.
struct Backlog {
    transactions: Vec<Arc<Committed<'static>>>,
    /// What others have settled and may not have cleared.
    uncleared: Vec<Arc<Committed<'static>>>,
    sync_root: Arc<dyn Dir>,
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

/// How a checkpoint ended that did not fail.
enum Progress {
    Settled,
    /// A recovery has settled it.
    Recovered,
    /// There was no reason for one any more.
    NotDue,
    /// There was no space for the manifest, or somebody held a lock for too long, and nothing was given up: it can be tried
    /// again.
    PutOff(Error),
}

impl Engine {
    /// Tells the checkpointer of transactions that have been applied.
    pub(crate) fn note_applied(&self, transactions: &[Arc<Committed<'static>>]) {
        let mut unsettled = self.unsettled.lock();
        // A content outside of the log has only one copy in reach until it is settled; and what moves directories makes
        // whoever touches them wait.
        let is_urgent = |change: &Change<'_>| change.after.is_by_reference() || change.is_barrier();
        unsettled.is_urgent |=
            transactions.iter().flat_map(|transaction| &transaction.changes).any(is_urgent);
        // Otherwise the checkpointer knows already when to wake; waking it at each commit would cost each a switch.
        let is_news = unsettled.is_urgent || unsettled.since.is_none();
        unsettled.since.get_or_insert_with(now);
        if is_news {
            self.wake.notify_all();
        }
    }

    /// Tells the checkpointer what others have left to settle. They may settle it themselves; they may also be gone. What
    /// `has_settled` some of it, be it another process, is as good as a checkpoint of this one's: many that each made theirs
    /// would do little else.
    pub(crate) fn note_unsettled(&self, commits: &CommitState, has_settled: bool) {
        let mut unsettled = self.unsettled.lock();
        if commits.unsettled.is_empty() {
            (unsettled.since, unsettled.is_urgent) = (None, false);
        } else if unsettled.since.is_none() || has_settled {
            unsettled.since = Some(now());
            self.wake.notify_all();
        }
    }

    pub(crate) fn note_log_usage(&self, used_bytes: u64, wants_spare: bool) {
        let mut unsettled = self.unsettled.lock();
        unsettled.wants_spare = wants_spare;
        // Settled long before the log is full, so that nobody has to wait.
        unsettled.is_urgent |= used_bytes > self.options.log.log_bytes_max / 2;
        if unsettled.is_urgent || wants_spare {
            self.wake.notify_all();
        }
    }

    /// How often the log was given segments, or some of its own back, by this process.
    pub(crate) fn room(&self) -> u64 {
        self.room.load(Ordering::Relaxed)
    }

    fn note_room(&self) {
        self.room.fetch_add(1, Ordering::Relaxed);
        // Whoever has looked in vain waits by now.
        drop(self.unsettled.lock());
        self.wake.notify_all();
    }

    /// Makes a checkpoint; or, while another is being made, which frees segments in portions and adds others, waits until it
    /// has. Returns whether there may be room without a checkpoint of one's own.
    fn checkpoint_or_room(&self, used_bytes: u64, room_before: u64) -> Result<bool, Error> {
        let begun = now();
        let deadline = self.options.deadline();
        // Who looks now and then is served after those who wait, so in the end it waits as they do. In loom no time passes.
        let look_until = if cfg!(loom) { begun } else { begun + (deadline - begun) / 2 };
        while now() < look_until {
            self.check_settling()?;
            if let Some(turn) = self.try_checkpoint_turn()? {
                self.settle_in_turn(&turn, Wanted::IfAny, None)?;
                return Ok(false);
            }
            let unsettled = self.unsettled.lock();
            if self.room() > room_before {
                return Ok(true);
            }
            drop(self.wake.wait_timeout(unsettled, ROOM_LOOK));
            if self.room() > room_before || self.lock_commits(deadline)?.log.used_bytes() < used_bytes {
                return Ok(true);
            }
        }
        let turn = self.checkpoint_turn(deadline)?;
        self.settle_in_turn(&turn, Wanted::IfAny, None)?;
        Ok(false)
    }

    /// Makes room in a log that was full when it held `used_bytes`, and had been given room so often: by a checkpoint, else
    /// by another segment, else by going on in the next one so that the present one can be freed.
    ///
    /// # Errors
    /// `no_space` if none of these helps: then the transaction is too large for this log.
    pub(crate) fn make_room(&self, used_bytes: u64, room_before: u64) -> Result<(), Error> {
        trace::event!(INFO, "log full", used_bytes = used_bytes);
        match self.checkpoint_or_room(used_bytes, room_before) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // A part of what it settled may have made room all the same.
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Locked) => {
                return if self.room() > room_before { Ok(()) } else { Err(error) };
            }
            Err(error) => return Err(error),
        }
        let used_now = self.lock_commits(self.options.deadline())?.log.used_bytes();
        if used_now < used_bytes {
            return Ok(());
        }
        // On a full disk the log makes do with the segments that it has.
        let no_space = match self.add_spare(Log::may_grow) {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) if error.kind() == ErrorKind::NoSpace => Some(error),
            Err(error) => return Err(error),
        };
        let deadline = self.options.deadline();
        let turn = self.checkpoint_turn(deadline)?;
        let mut commits = self.lock_commits_in(&turn, deadline)?;
        if !commits.unsettled.is_empty() || commits.log.used_bytes() < used_bytes {
            // Others took the room that had been made, and what they filled can be settled as well; or have made room
            // meanwhile.
            return Ok(());
        }
        // Now the log is as empty as it gets, but for segments that there was no space for freeing, and its active one.
        let settled = commits.settled;
        let mut made = commits.log.retire(settled.next()).map(|freed| freed > 0);
        if matches!(made, Ok(false)) && commits.log.is_worth_rotating() {
            made = commits.log.rotate().map(|()| true);
            if made.is_ok() {
                drop(commits);
                // In the same turn: until the segment is freed, nothing is unsettled and the log is full all the same.
                return self.settle_in_turn(&turn, Wanted::Always, None);
            }
        }
        match made {
            Ok(true) => return Ok(()),
            // This transaction is not in the log, so its outcome is known.
            Err(error) if commits.log.is_poisoned() => {
                let reason = error.to_string();
                self.poison(&reason);
                return Err(Error::Poisoned { reason });
            }
            Ok(false) | Err(_) => {}
        }
        let reason = "the transaction does not fit into the log; raise log_bytes_max, or split it";
        Err(no_space.unwrap_or_else(|| Error::invalid(ErrorKind::NoSpace, reason)))
    }

    /// Settles everything that has been applied, by any process.
    ///
    /// # Errors
    /// `no_space` if there was none for the manifest or the log's record: then it can be tried again, as after `locked`.
    /// After any other the store is poisoned, because what the disk holds is unknown; the log still has everything.
    pub(crate) fn checkpoint(&self) -> Result<(), Error> {
        self.check_settling()?;
        // One at a time; a second one waits and then settles what has come in since.
        let turn = self.checkpoint_turn(self.options.deadline())?;
        self.settle_in_turn(&turn, Wanted::IfAny, None)
    }

    /// As [`Engine::checkpoint`], unless another process has just made one.
    fn checkpoint_if_due(&self) -> Result<(), Error> {
        let turn = self.checkpoint_turn(self.options.deadline())?;
        self.settle_in_turn(&turn, Wanted::IfDue, None)
    }

    /// As [`Engine::checkpoint`], for who holds the commit lock already; `None` if one is being made by another thread or
    /// process, which waits for that lock.
    pub(crate) fn checkpoint_held(&self, commits: &mut CommitState) -> Option<Result<(), Error>> {
        match self.try_checkpoint_turn() {
            Ok(turn) => Some(self.settle_in_turn(&turn?, Wanted::IfAny, Some(commits))),
            Err(error) => Some(Err(error)),
        }
    }

    /// As [`Engine::checkpoint`], for who has the turn, and perhaps the commit lock.
    pub(crate) fn settle_in_turn(
        &self,
        turn: &CheckpointTurn<'_>,
        wanted: Wanted,
        held: Option<&mut CommitState>,
    ) -> Result<(), Error> {
        self.check_settling()?;
        let start = now();
        let result = self.settle(turn, wanted, held);
        if matches!(result, Ok(Progress::NotDue)) {
            // The pauses go by those that were made.
            return Ok(());
        }
        let mut unsettled = self.unsettled.lock();
        unsettled.last_duration = now() - start;
        unsettled.last_end = Some(now());
        match result {
            Ok(Progress::Settled | Progress::Recovered | Progress::NotDue) => Ok(()),
            Ok(Progress::PutOff(error)) => {
                unsettled.since.get_or_insert_with(now);
                // Whoever tried may not have been the checkpointer, which has to come back to it.
                self.wake.notify_all();
                Err(error)
            }
            Err(error) => {
                drop(unsettled);
                let reason = format!("a checkpoint failed: {error}");
                self.poison(&reason);
                // What is unknown is no transaction's outcome.
                let is_unknown = error.kind() == ErrorKind::OutcomeUnknown;
                Err(if is_unknown { Error::Poisoned { reason } } else { error })
            }
        }
    }

    fn settle(
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
            let mut unsettled = self.unsettled.lock();
            // Taking the lock has told what others have settled.
            if wanted == Wanted::IfDue && due_at(self, &unsettled).is_none_or(|due| due > now()) {
                return Ok(Progress::NotDue);
            }
            // What is noted from now on is for the next one.
            (unsettled.since, unsettled.is_urgent) = (None, false);
            drop(unsettled);
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

    /// Adds a segment to the log if one is wanted while a long checkpoint is being made: commits go on, and nobody else makes it.
    /// Not for who holds the commit lock.
    fn add_wanted_spare(&self, turn: &CheckpointTurn<'_>, holds_commits: bool) {
        if !holds_commits && std::mem::take(&mut self.unsettled.lock().wants_spare) {
            // Without another segment the log is only smaller.
            let _ = self.add_spare_in_turn(turn, Log::wants_spare);
        }
    }

    /// Adds a segment to the log if that still is wanted once it is this process's turn. Returns whether it did.
    fn add_spare(&self, is_wanted: impl FnOnce(&Log) -> bool) -> Result<bool, Error> {
        // One at a time, of all processes: two that both found room for one more would pass the log's bound, and one that
        // is being made looks like one whose making was cut short.
        let turn = self.checkpoint_turn(self.options.deadline())?;
        self.add_spare_in_turn(&turn, is_wanted)
    }

    /// As [`Engine::add_spare`], for who has the turn.
    fn add_spare_in_turn(
        &self,
        turn: &CheckpointTurn<'_>,
        is_wanted: impl FnOnce(&Log) -> bool,
    ) -> Result<bool, Error> {
        let builder = {
            let mut commits = self.lock_commits_in(turn, self.options.deadline())?;
            if !is_wanted(&commits.log) {
                return Ok(false);
            }
            commits.log.spare_builder()
        };
        // Zero-writing takes long, so nobody waits for it.
        let spare = builder.build().map_err(atomtree_recovery::Error::Log)?;
        let mut commits = self.lock_commits_in(turn, self.options.deadline())?;
        commits.log.add_spare(spare);
        self.note_room();
        Ok(true)
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

    pub(crate) fn stop_checkpointer(&self) {
        self.unsettled.lock().is_stopping = true;
        self.wake.notify_all();
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

/// Starts the thread.
pub(crate) fn start(engine: &Arc<Engine>) -> std::io::Result<Thread<()>> {
    let engine = engine.clone();
    sync::spawn("atomtree-checkpointer", move || run(&engine))
}

fn run(engine: &Engine) {
    loop {
        let mut unsettled = engine.unsettled.lock();
        if unsettled.is_stopping {
            return;
        }
        if engine.check_health().is_err() {
            // Closed, or poisoned, from which another process may recover it.
            drop(engine.wake.wait(unsettled));
            continue;
        }
        if unsettled.wants_spare {
            unsettled.wants_spare = false;
            drop(unsettled);
            // Without another segment the log is only smaller; commits then wait for checkpoints.
            let _ = engine.add_spare(Log::wants_spare);
            continue;
        }
        // In this order: what is urgent is due now.
        let (due, now) = (due_at(engine, &unsettled), now());
        match due {
            Some(due) if due <= now => {
                drop(unsettled);
                // A failure has poisoned the store, which is how committers learn of it.
                let _ = engine.checkpoint_if_due();
            }
            Some(due) => drop(engine.wake.wait_timeout(unsettled, due - now)),
            None => drop(engine.wake.wait(unsettled)),
        }
    }
}

/// When the next checkpoint is due.
fn due_at(engine: &Engine, unsettled: &Unsettled) -> Option<Instant> {
    if unsettled.is_urgent {
        return Some(now());
    }
    let since = unsettled.since?;
    let pause = unsettled.last_end.map(|end| end + unsettled.last_duration * PAUSE_FACTOR);
    // A time too far away to be told is never.
    let due = since.checked_add(engine.options.settle_after)?;
    Some(pause.map_or(due, |pause| due.max(pause)))
}
