//! How those go on whose transactions meet again and again: one after another.
//!
//! A transaction that is repeated beside many others that change the same file mostly meets them again, and all its work is
//! for nothing. So those that have met one queue for the place of who repeats, across processes, and so do, for a
//! moment, those that come from the same line of the program, and those that change what it was met at: who always comes first
//! would never queue otherwise, and the others never come first. It is only a matter of speed: who does not get the place in
//! time goes on without it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomtree_recovery::plan::Change;
use atomtree_vfs::Timestamp;
use atomtree_wal::sync::{Mutex, TurnGuard, now};

use crate::lock::Meeting;
use crate::store::Engine;

/// How long the place is waited for at most: whoever is in front may have been stopped.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a line of the program counts as one whose transactions meet, and a name as one where they do, after the last time
/// that they did.
const REMEMBERED: Duration = Duration::from_millis(50);
const LINES: usize = 64;

/// Which lines of the program run transactions that have met others of late, and where one has in some process.
pub(crate) struct Contention {
    begun: Instant,
    /// Until when, in microseconds since then.
    until_us: [AtomicU64; LINES],
    /// As of when the commit lock was taken.
    meeting: Mutex<Option<Meeting>>,
}

impl Default for Contention {
    fn default() -> Self {
        let until_us = [const { AtomicU64::new(0) }; LINES];
        Self { begun: now(), until_us, meeting: Mutex::default() }
    }
}

impl Contention {
    /// The line that a closure stands in, or one that shares its fate.
    pub(crate) fn line_of<F>(closure: &F) -> usize {
        std::any::type_name_of_val(closure).as_ptr().addr() / 8 % LINES
    }

    pub(crate) fn is_remembered(&self, line: usize) -> bool {
        self.until_us[line].load(Ordering::Relaxed) > self.elapsed_us()
    }

    pub(crate) fn remember(&self, line: usize) {
        self.until_us[line].store(self.elapsed_us() + REMEMBERED.as_micros() as u64, Ordering::Relaxed);
    }

    /// Takes up what the lock's file says, unless that is old, or of a clock that has been set back since.
    pub(crate) fn take_up(&self, meeting: Option<Meeting>, now: Timestamp) {
        let is_of_late = |met: &Meeting| now < met.until && met.until <= remembered_until(now);
        *self.meeting.lock() = meeting.filter(is_of_late);
    }

    /// Whether somebody has met a transaction at a name that these change, or, listing it, at the directory above.
    pub(crate) fn is_met_at(&self, changes: &[Change<'_>]) -> bool {
        let Some(meeting) = *self.meeting.lock() else { return false };
        let mut names = changes.iter().flat_map(Change::names);
        names.any(|name| meeting.is_at(name.as_path()) || meeting.is_at(name.parent_path()))
    }

    fn elapsed_us(&self) -> u64 {
        (now() - self.begun).as_micros() as u64
    }
}

fn remembered_until(now: Timestamp) -> Timestamp {
    now.plus_ns(REMEMBERED.as_nanos() as i64)
}

impl Engine {
    /// Notes that a transaction from this line has been a conflict at this name, for this process and others.
    pub(crate) fn note_conflict(&self, line: usize, path: &Path) {
        self.contention.remember(line);
        self.locks.note_meeting(Meeting::at(path, remembered_until(self.places.vfs.now())));
    }
}

/// The place of who repeats a transaction, until it is dropped.
pub(crate) struct RetryPlace<'a> {
    engine: &'a Engine,
    is_taken: bool,
    _turn: TurnGuard<'a>,
}

impl<'a> RetryPlace<'a> {
    /// Waits for it, though not for ever.
    pub(crate) fn take(engine: &'a Engine, line: usize) -> Self {
        let begun = now();
        let turn = engine.retry_turn.lock();
        let is_taken = engine.locks.take_retry(now() + WAIT_MAX.min(engine.options.lock_timeout));
        // Whoever had to wait for it is not the only one.
        if now() - begun > Duration::from_micros(50) {
            engine.contention.remember(line);
        }
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
    use super::*;

    /// Goal: a hint of another time keeps nobody in line: one that is over, or of a clock that was set back since.
    #[test]
    fn only_what_was_met_of_late_counts() {
        let contention = Contention::default();
        let now = Timestamp(1_000_000_000_000);
        let met = |until| {
            contention.take_up(Some(Meeting::at(Path::new("dir/name"), until)), now);
            contention.meeting.lock().is_some_and(|meeting| meeting.is_at(Path::new("dir/name")))
        };
        assert!(met(remembered_until(now)) && met(now.plus_ns(1)));
        assert!(!met(now) && !met(remembered_until(now).plus_ns(1)) && !met(Timestamp(i64::MAX)));
        contention.take_up(None, now);
        assert_eq!(*contention.meeting.lock(), None);
    }
}
