//! When checkpoints are made: a thread of the store's own, off the committers' path. How one is made is here too,
//! since it is short: make the tree durable, write the manifest, say so in the log, and only then clear up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::Committed;
use atomtree_recovery::log_records::append_checkpoint;
use atomtree_recovery::manifest::{self, Summary};
use atomtree_recovery::plan::{Change, Checkpoint};
use atomtree_wal as wal;
use atomtree_wal::sync::{self, Thread, now};

use crate::error::{Error, ErrorKind};
use crate::store::{CommitState, Engine};
use crate::trace;

/// Under load, checkpoints take at most about a tenth of the time.
const PAUSE_FACTOR: u32 = 10;

/// The log is rotated at a clean close if its active segment holds more than this, so that the next open has little
/// to read.
const CLOSE_BYTES_MAX: u64 = 256 << 10;

/// What waits for a checkpoint. Guarded by the engine's `unsettled` mutex.
#[derive(Default)]
pub(crate) struct Unsettled {
    /// Applied and not settled, in order.
    transactions: Vec<Arc<Committed<'static>>>,
    /// When the first of them was applied.
    since: Option<Instant>,
    /// Whether a checkpoint is wanted at once.
    is_urgent: bool,
    wants_spare: bool,
    is_stopping: bool,
    last_duration: Duration,
    last_end: Option<Instant>,
}

/// How a checkpoint ended that did not fail.
enum Progress {
    Settled,
    /// There was no space for the manifest, and nothing was given up: it can be tried again.
    PutOff(Error),
}

impl Engine {
    /// Hands transactions over that have been applied.
    pub(crate) fn note_applied(&self, mut transactions: Vec<Arc<Committed<'static>>>) {
        let mut unsettled = self.unsettled.lock();
        // A content outside of the log has only one copy in reach until it is settled; and what moves directories makes
        // whoever touches them wait.
        let is_urgent = |change: &Change<'_>| change.after.is_by_reference() || change.is_barrier();
        unsettled.is_urgent |=
            transactions.iter().flat_map(|transaction| &transaction.changes).any(is_urgent);
        // Otherwise the checkpointer knows already when to wake; waking it at each commit would cost each a switch.
        let is_news = unsettled.is_urgent || unsettled.since.is_none();
        unsettled.since.get_or_insert_with(now);
        unsettled.transactions.append(&mut transactions);
        if is_news {
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

    /// Makes room in a log that was full when it held `used_bytes`: by a checkpoint, else by another segment, else by
    /// going on in the next one so that the present one can be freed.
    ///
    /// # Errors
    /// `no_space` if none of these helps: then the transaction is too large for this log.
    pub(crate) fn make_room(&self, used_bytes: u64) -> Result<(), Error> {
        trace::event!(INFO, "log full", used_bytes = used_bytes);
        self.checkpoint()?;
        let used_now = self.commits.lock().log.used_bytes();
        if used_now < used_bytes {
            return Ok(());
        }
        // On a full disk the log makes do with the segments that it has.
        let no_space = match self.add_spare() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) if error.kind() == ErrorKind::NoSpace => Some(error),
            Err(error) => return Err(error),
        };
        let _turn = self.checkpoint_turn.lock();
        let mut commits = self.commits.lock();
        if !self.unsettled.lock().transactions.is_empty() || commits.log.used_bytes() < used_bytes {
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
                return self.settle_in_turn(true, None);
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

    /// Settles everything that has been applied.
    ///
    /// # Errors
    /// `no_space` if there was none for the manifest or the log's record: then it can be tried again. After any other
    /// the store is poisoned, because what the disk holds is unknown; the log still has everything.
    pub(crate) fn checkpoint(&self) -> Result<(), Error> {
        // One at a time; a second one waits and then settles what has come in since.
        let _turn = self.checkpoint_turn.lock();
        self.settle_in_turn(false, None)
    }

    /// As [`Engine::checkpoint`], for who holds the commit lock already; `None` if one is being made by another thread,
    /// which waits for that lock.
    pub(crate) fn checkpoint_held(&self, commits: &mut CommitState) -> Option<Result<(), Error>> {
        let _turn = self.checkpoint_turn.try_lock()?;
        Some(self.settle_in_turn(false, Some(commits)))
    }

    fn settle_in_turn(&self, even_if_empty: bool, held: Option<&mut CommitState>) -> Result<(), Error> {
        self.check_settling()?;
        let transactions = {
            let mut unsettled = self.unsettled.lock();
            (unsettled.since, unsettled.is_urgent) = (None, false);
            std::mem::take(&mut unsettled.transactions)
        };
        let start = now();
        let result = if transactions.is_empty() && !even_if_empty {
            Ok(Progress::Settled)
        } else {
            self.settle_these(&transactions, held)
        };
        let mut unsettled = self.unsettled.lock();
        unsettled.last_duration = now() - start;
        unsettled.last_end = Some(now());
        match result {
            Ok(Progress::Settled) => Ok(()),
            Ok(Progress::PutOff(error)) => {
                unsettled.transactions.splice(0..0, transactions);
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

    fn settle_these(
        &self,
        transactions: &[Arc<Committed<'static>>],
        mut held: Option<&mut CommitState>,
    ) -> Result<Progress, Error> {
        trace::span!("atomtree.checkpoint", transactions = transactions.len());
        let places = &self.places;
        // Targets, originals and all their directories. The descriptor is as old as the store's opening, so that no
        // write-back error of ours has been reported elsewhere.
        places.root.sync_filesystem().doing("sync the file system of", "the root")?;
        match self.write_manifest(transactions) {
            // Nothing has been given up yet, and each attempt writes a file of its own.
            Err(error) if error.kind() == ErrorKind::NoSpace => return Ok(Progress::PutOff(error)),
            result => result?,
        }
        let recorded = self.with_commits(&mut held, |commits| {
            // A transaction that got stuck after its commit point is in nobody's list, and must not be covered.
            self.check_settling()?;
            // If nothing was applied meanwhile, the records behind the last commit are covered too: they explain
            // nothing, and would keep their segment from being freed.
            let settled = match transactions.last() {
                _ if self.unsettled.lock().transactions.is_empty() && commits.is_all_applied => {
                    commits.log.next_lsn().previous()
                }
                Some(last) => last.lsn,
                None => commits.settled,
            };
            let record = Checkpoint { watermark: settled.0, next_tx: commits.next_tx };
            let lsn = loop {
                match append_checkpoint(&mut commits.log, record) {
                    Ok(lsn) => break lsn,
                    // Where writing a block again takes a new one, as on btrfs, there may be no space. The log goes on
                    // without the record.
                    Err(error) if error.is_no_space() && !commits.log.is_poisoned() => {
                        if !self.ballast.release().doing("release", ".atomtree/ballast")? {
                            return Ok(Err(atomtree_recovery::Error::Log(error)));
                        }
                    }
                    Err(error) => return Err(atomtree_recovery::Error::Log(error).into()),
                }
            };
            commits.log.sync().map_err(atomtree_recovery::Error::Log)?;
            commits.is_closed = false;
            commits.note_settled(settled);
            Ok::<_, Error>(Ok((settled, lsn)))
        })?;
        let (watermark, lsn) = match recorded {
            Ok(recorded) => recorded,
            Err(error) => return Ok(Progress::PutOff(error.into())),
        };
        self.keep_originals(transactions)?;
        // A record outlives every file that it explains; the one that says so stays until a later one does.
        debug_assert!(watermark <= lsn);
        self.with_commits(&mut held, |commits| commits.log.retire(watermark.next()))
            .map_err(atomtree_recovery::Error::Log)?;
        if !transactions.is_empty() {
            match self.prune_history(&self.options.retention) {
                // The next one finds what is left.
                Err(error) if error.kind() == ErrorKind::NoSpace => {}
                pruned => drop(pruned?),
            }
        }
        Ok(Progress::Settled)
    }

    /// Takes the commit lock, unless the caller holds it.
    fn with_commits<R>(
        &self,
        held: &mut Option<&mut CommitState>,
        act: impl FnOnce(&mut CommitState) -> R,
    ) -> R {
        match held {
            Some(commits) => act(commits),
            None => act(&mut self.commits.lock()),
        }
    }

    /// Adds a segment to the log if it may grow. Returns whether it did.
    fn add_spare(&self) -> Result<bool, Error> {
        // One at a time: two that both found room for one more would pass the log's bound.
        let _turn = self.spare_turn.lock();
        let builder = {
            let mut commits = self.commits.lock();
            if !commits.log.may_grow() {
                return Ok(false);
            }
            commits.log.spare_builder()
        };
        // Zero-writing takes long, so nobody waits for it.
        let spare = builder.build().map_err(atomtree_recovery::Error::Log)?;
        let mut commits = self.commits.lock();
        commits.log.add_spare(spare);
        Ok(true)
    }

    /// Settles everything, says in the log that nothing follows, and sees to it that nothing does.
    pub(crate) fn close_log(&self) -> Result<(), Error> {
        loop {
            self.checkpoint()?;
            // With both locks held nothing comes in, and nothing is being settled by another thread.
            let _turn = self.checkpoint_turn.lock();
            let mut commits = self.commits.lock();
            self.check_settling()?;
            if self.unsettled.lock().transactions.is_empty() {
                close_settled_log(&mut commits)?;
                self.note_closed();
                return Ok(());
            }
        }
    }

    pub(crate) fn stop_checkpointer(&self) {
        self.unsettled.lock().is_stopping = true;
        self.wake.notify_all();
    }
}

/// Says in a log in which everything is settled that nothing follows.
fn close_settled_log(commits: &mut CommitState) -> Result<(), Error> {
    if commits.is_closed {
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
    commits.is_closed = true;
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
        if unsettled.is_stopping || engine.check_health().is_err() {
            return;
        }
        if unsettled.wants_spare {
            unsettled.wants_spare = false;
            drop(unsettled);
            // Without another segment the log is only smaller; commits then wait for checkpoints.
            let _ = engine.add_spare();
            continue;
        }
        // In this order: what is urgent is due now.
        let (due, now) = (due_at(engine, &unsettled), now());
        match due {
            Some(due) if due <= now => {
                drop(unsettled);
                // A failure has poisoned the store, which is how committers learn of it.
                let _ = engine.checkpoint();
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
