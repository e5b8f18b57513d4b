//! When checkpoints are made: by a thread of the store's own, off the committers' path, or by who finds the log full. How is
//! in `settle.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atomtree_recovery::analyze::Committed;
use atomtree_recovery::plan::Change;
use atomtree_wal::Log;
use atomtree_wal::sync::{self, Thread, now};

use crate::error::{Error, ErrorKind};
use crate::hand_over::{CheckpointTurn, CommitState};
use crate::settle::Progress;
use crate::store::Engine;
use crate::trace;

/// Under load, checkpoints take at most about a tenth of the time.
const PAUSE_FACTOR: u32 = 10;

/// How often who waits for room in the log looks whether another process has made some.
const ROOM_LOOK: Duration = Duration::from_millis(20);

/// For how long a checkpoint that can't be begun is put off at most.
const PUT_OFF_MAX: Duration = Duration::from_secs(1);

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
    /// When one that could not be begun is tried again.
    not_before: Option<Instant>,
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

    pub(crate) fn note_room(&self) {
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

    /// Waits a while with the next attempt. What could not even be begun is still due, perhaps for as long as nobody has
    /// recovered the store from another process's failure: it would be tried again and again without a pause.
    fn put_off(&self) {
        let pause = self.options.settle_after.min(PUT_OFF_MAX);
        self.unsettled.lock().not_before = now().checked_add(pause);
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

    /// Begins a checkpoint, if it still is wanted: what is noted from now on is for the next one.
    pub(crate) fn begin_checkpoint(&self, wanted: Wanted) -> bool {
        let mut unsettled = self.unsettled.lock();
        let is_due = || due_at(self, &unsettled).is_some_and(|due| due <= now());
        let is_wanted = wanted != Wanted::IfDue || is_due();
        if is_wanted {
            (unsettled.since, unsettled.is_urgent) = (None, false);
        }
        is_wanted
    }

    /// Adds a segment to the log if one is wanted while a long checkpoint is being made: commits go on, and nobody else makes it.
    /// Not for who holds the commit lock.
    pub(crate) fn add_wanted_spare(&self, turn: &CheckpointTurn<'_>, holds_commits: bool) {
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

    pub(crate) fn stop_checkpointer(&self) {
        self.unsettled.lock().is_stopping = true;
        self.wake.notify_all();
    }
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
                // A failure has poisoned the store, which is how committers learn of it; or it is to be tried again.
                if engine.checkpoint_if_due().is_err() {
                    engine.put_off();
                }
            }
            Some(due) => drop(engine.wake.wait_timeout(unsettled, due - now)),
            None => drop(engine.wake.wait(unsettled)),
        }
    }
}

/// When the next checkpoint is due.
fn due_at(engine: &Engine, unsettled: &Unsettled) -> Option<Instant> {
    let not_before = unsettled.not_before;
    if unsettled.is_urgent {
        return Some(not_before.unwrap_or_else(now));
    }
    let since = unsettled.since?;
    let pause = unsettled.last_end.map(|end| end + unsettled.last_duration * PAUSE_FACTOR);
    // A time too far away to be told is never.
    let due = since.checked_add(engine.options.settle_after)?;
    Some(due).max(pause).max(not_before)
}
