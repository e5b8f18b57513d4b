//! Races with other programs on a real file system: directories that turn into symlinks to somewhere else while they are
//! used, and editors that rewrite files while they are committed.

pub(crate) mod editors;
mod swaps;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a race goes on, on a machine so slow that what it is about does not come sooner.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What happened how often, for people and for the assertions that it did.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    pub(crate) fn count(&self, what: impl Into<String>) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: impl Into<String>, count: u64) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += count;
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

/// Ends the threads beside a test, also when it panics.
pub(crate) struct Running<'a>(pub(crate) &'a AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
