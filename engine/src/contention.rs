//! How those go on whose transactions meet again and again: one after another.
//!
//! A transaction that is repeated beside many others that change the same file mostly meets them again, and all its work is
//! for nothing. So those that have met one queue for the place of who repeats, across processes, and so do, for a
//! moment, those that come from the same line of the program. It is only a matter of speed: who does not get the place in time
//! goes on without it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomtree_wal::sync::{TurnGuard, now};

use crate::store::Engine;

/// How long the place is waited for at most: whoever is in front may have been stopped.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a line of the program counts as one whose transactions meet, after the last time that they did.
const REMEMBERED: Duration = Duration::from_millis(50);
const LINES: usize = 64;

/// Which lines of the program run transactions that have met others of late.
pub(crate) struct Contention {
    begun: Instant,
    /// Until when, in microseconds since then.
    until_us: [AtomicU64; LINES],
}

impl Default for Contention {
    fn default() -> Self {
        Self { begun: now(), until_us: [const { AtomicU64::new(0) }; LINES] }
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

    fn remember(&self, line: usize) {
        self.until_us[line].store(self.elapsed_us() + REMEMBERED.as_micros() as u64, Ordering::Relaxed);
    }

    fn elapsed_us(&self) -> u64 {
        (now() - self.begun).as_micros() as u64
    }
}

/// The place of who repeats a transaction, until it is dropped.
pub(crate) struct RetryPlace<'a> {
    engine: &'a Engine,
    is_taken: bool,
    _turn: TurnGuard<'a>,
}

impl<'a> RetryPlace<'a> {
    /// Waits for it, though not for ever. `has_met` says that the transaction was a conflict.
    pub(crate) fn take(engine: &'a Engine, line: usize, has_met: bool) -> Self {
        let begun = now();
        let turn = engine.retry_turn.lock();
        let is_taken = engine.locks.take_retry(now() + WAIT_MAX.min(engine.options.lock_timeout));
        // Whoever had to wait for it is not the only one.
        if has_met || now() - begun > Duration::from_micros(50) {
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
