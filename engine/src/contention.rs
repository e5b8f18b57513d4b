//! How those go on whose transactions meet again and again: one after another.
//!
//! A transaction that is repeated beside many others that change the same file mostly meets them again, and all its work is
//! for nothing. So those that have met one queue for the place of who repeats, across processes, and so do, for a moment,
//! those that come from the same line of the program. Who always comes first never meets anybody, and would starve the
//! others: so what comes from the same line and thread as a change of what was met queues as well.
//!
//! It is only a matter of speed: who does not get the place in time goes on without it, and of several names at which
//! transactions meet at once only the last is told to others.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomtree_recovery::plan::Change;
use atomtree_wal::sync::{TurnGuard, current_thread, now};

use crate::error::Error;
use crate::lock::Meeting;
use crate::store::Engine;

/// How long the place is waited for at most: whoever is in front may have been stopped, or waits for this very thread.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a line of the program counts as one whose transactions meet, and a name as one where they do, after the last time
/// that they did. Not longer for having waited for the place: those that no longer meet would keep each other in line.
pub(crate) const REMEMBERED: Duration = Duration::from_millis(50);
const LINES: usize = 256;

/// Which lines of the program run transactions that have met others of late.
pub(crate) struct Contention {
    begun: Instant,
    /// Until when, in microseconds since then.
    until_us: [AtomicU64; LINES],
}

/// Where a closure stands in the program, or a line that shares its fate; on any thread, and on this one.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    anywhere: usize,
    here: usize,
}

impl Line {
    pub(crate) fn of<F>(closure: &F) -> Self {
        let line = std::any::type_name_of_val(closure).as_ptr().addr();
        let mut hasher = DefaultHasher::new();
        (line, current_thread()).hash(&mut hasher);
        Self { anywhere: line / 8 % LINES, here: hasher.finish() as usize % LINES }
    }
}

impl Default for Contention {
    fn default() -> Self {
        Self { begun: now(), until_us: [const { AtomicU64::new(0) }; LINES] }
    }
}

impl Contention {
    /// Whether a transaction of this line has met others of late, or was met on this thread.
    pub(crate) fn is_remembered(&self, line: Line) -> bool {
        let now = self.elapsed_us();
        [line.anywhere, line.here].iter().any(|&slot| self.until_us[slot].load(Ordering::Relaxed) > now)
    }

    /// Takes note that a transaction of this line was met by another, which is repeated.
    pub(crate) fn note_met(&self, line: Line) {
        self.remember(line.here);
    }

    fn remember(&self, slot: usize) {
        self.until_us[slot].store(self.elapsed_us() + REMEMBERED.as_micros() as u64, Ordering::Relaxed);
    }

    fn elapsed_us(&self) -> u64 {
        (now() - self.begun).as_micros() as u64
    }
}

impl Meeting {
    /// Whether these changes are of what the transaction met, or in a directory that it has listed.
    pub(crate) fn is_at_any(&self, changes: &[Change<'_>]) -> bool {
        let mut names = changes.iter().flat_map(Change::names);
        names.any(|name| self.is_at(name.as_path()) || self.is_at(name.parent_path()))
    }
}

impl Engine {
    /// Notes that a transaction from this line has been a conflict, for this process and for others.
    pub(crate) fn note_conflict(&self, line: Line, error: &Error) {
        self.contention.remember(line.anywhere);
        let Error::Conflict { path, transaction, .. } = error else { return };
        // Who relies on a listing meets whoever adds a name there, each time another one.
        let listed = path
            .parent()
            .filter(|above| transaction.as_ref().is_some_and(|transaction| transaction.view.lists(above)));
        self.locks.note_meeting(Meeting::at(listed.unwrap_or(path), self.places.vfs.now()));
    }
}

/// The place of who repeats a transaction, until it is dropped.
pub(crate) struct RetryPlace<'a> {
    engine: &'a Engine,
    is_taken: bool,
    /// Of this process's threads one at a time waits for it, or has it.
    _turn: Option<TurnGuard<'a>>,
}

impl<'a> RetryPlace<'a> {
    /// Waits for it, though not for ever.
    pub(crate) fn take(engine: &'a Engine) -> Self {
        let deadline = now() + WAIT_MAX.min(engine.options.lock_timeout);
        let turn = engine.retry_turn.try_lock_until(deadline);
        let is_taken = turn.is_some() && engine.locks.take_retry(deadline);
        Self { engine, is_taken, _turn: turn }
    }
}

impl Drop for RetryPlace<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            self.engine.locks.give_up_retry();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use atomtree_vfs::Vfs;
    use atomtree_vfs::sim::Sim;

    use crate::options::{Checkpoints, Options};
    use crate::{Store, Transaction};

    use super::*;

    fn open(sim: Sim) -> Store {
        let vfs: Arc<dyn Vfs> = Arc::new(sim);
        let options = Options::new().vfs(vfs).checkpoints(Checkpoints::Manual);
        options.lock_timeout(2 * REMEMBERED).open("/tree").unwrap()
    }

    /// Goal: who commits changes of what another process's transaction has met queues from then on, and nobody else. Method:
    /// two processes; one reads a name, or lists a directory, the other changes something meanwhile and then something more.
    #[test]
    fn who_is_met_queues() {
        type Read = fn(&mut Transaction) -> Result<(), Error>;
        let reads: Read = |tx| tx.read("dir/one").map(drop);
        let lists: Read = |tx| tx.list("dir").map(drop);
        for (read, first, second, is_met) in [
            (reads, "dir/one", "dir/one", true),
            (reads, "dir/one", "dir/two", false),
            (reads, "dir/one", "other", false),
            (lists, "dir/new", "dir/newer", true),
            (lists, "dir/new", "other", false),
        ] {
            let sim = Sim::new(1);
            sim.create_dir("/tree");
            let (meets, beside) = (open(sim.clone()), open(sim.another_process()));
            meets.transact(|tx| tx.write("dir/one", "1").and_then(|()| tx.write("dir/two", "2"))).unwrap();
            let mut attempts = 0_u32;
            let change = |name: &'static str, attempt: u32| {
                let change = move |tx: &mut Transaction| tx.write(name, attempt.to_string() + "th");
                let line = Line::of(&change);
                beside.transact(change).unwrap();
                // However long ago that is by now.
                beside.shared.engine.contention.until_us[line.here].load(Ordering::Relaxed) > 0
            };
            let repeated = meets.transact(|tx| {
                read(tx)?;
                attempts += 1;
                match attempts {
                    1 => assert!(!change(first, 1), "nobody has met it yet"),
                    2 => assert_eq!(change(second, 2), is_met, "{first}, {second}"),
                    _ => {}
                }
                tx.write("own", "own")
            });
            repeated.unwrap();
            assert_eq!(attempts, if is_met { 3 } else { 2 }, "{first}, {second}");
        }
    }

    /// Goal: a transaction that is run inside another one's closure does not wait for ever for the place that its own thread
    /// has, and having waited keeps nobody in line. Method: both, with a wait that is longer than what is remembered.
    #[test]
    fn who_waits_in_vain_goes_on_and_is_forgotten() {
        let sim = Sim::new(1);
        sim.create_dir("/tree");
        let store = open(sim);
        let contention = &store.shared.engine.contention;
        let place = RetryPlace::take(&store.shared.engine);
        assert!(place.is_taken);
        let inner = |tx: &mut Transaction| tx.write("inner", "1");
        let line = Line::of(&inner);
        contention.note_met(line);
        let begun = now();
        store.transact(inner).unwrap();
        assert!(now() - begun >= REMEMBERED, "it did not wait for the place");
        assert!(!contention.is_remembered(line));
        drop(place);
        assert!(RetryPlace::take(&store.shared.engine).is_taken);
    }
}
