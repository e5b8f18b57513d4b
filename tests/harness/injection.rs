//! A fault: which call of storage fails, how, and for how long.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use atomtree::ErrorKind;
use atomtree::vfs::faults::{Call, Fault, Verb};
use atomtree::vfs::sim::Sim;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errno {
    /// Input/output error. A sync loses what it should have kept.
    Io,
    /// No space left on device.
    NoSpace,
    /// Disk quota exceeded.
    Quota,
    /// Interrupted system call.
    Interrupted,
    /// Too many open files.
    Descriptors,
    /// Read-only file system.
    ReadOnly,
    /// Permission denied.
    Permission,
    /// A write that stops within; no space is left for the rest.
    Short,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Io,
        Self::NoSpace,
        Self::Quota,
        Self::Interrupted,
        Self::Descriptors,
        Self::ReadOnly,
        Self::Permission,
        Self::Short,
    ];

    fn number(self) -> i32 {
        match self {
            Self::Io => 5,
            Self::NoSpace | Self::Short => 28,
            Self::Quota => 122,
            Self::Interrupted => 4,
            Self::Descriptors => 24,
            Self::ReadOnly => 30,
            Self::Permission => 13,
        }
    }

    /// What a call may be told to have failed with, besides what poisons.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Io | Self::Interrupted | Self::Descriptors => ErrorKind::Io,
            Self::NoSpace | Self::Quota | Self::Short => ErrorKind::NoSpace,
            Self::ReadOnly | Self::Permission => ErrorKind::Permission,
        }
    }

    /// The fault of this call. A failed sync loses what it should have kept, unless it was interrupted. Of a failed
    /// sync of names nothing is lost by itself: no file system goes on after losing those.
    fn fault(self, sim: &Sim, call: &Call) -> Fault {
        match self {
            // Storage takes whole sectors: of a segment's header, which is one, all that says anything or nothing.
            Self::Short if call.verb == Verb::WriteAt => {
                Fault::ShortWrite([0, 512, 600][call.number as usize % 3])
            }
            Self::Interrupted => Fault::Error(self.number()),
            _ => match call.verb {
                Verb::SyncData | Verb::SyncAll => Fault::LoseData(self.number()),
                Verb::SyncFilesystem => {
                    sim.fail_write_back();
                    Fault::Error(self.number())
                }
                _ => Fault::Error(self.number()),
            },
        }
    }
}

/// How long a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lasting {
    /// That call alone.
    Once,
    /// Every later call of the same verb too.
    Verb,
    /// Every later call too.
    Everything,
}

impl Lasting {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Once, Self::Verb, Self::Everything];
}

/// Fails the call with this number, counted over all machines that it answers for, and perhaps later ones.
#[derive(Clone, Debug)]
pub struct Injection {
    number: u64,
    errno: Errno,
    lasting: Lasting,
    /// Only calls of this verb are counted, if there is one.
    counted: Option<Verb>,
    count: Arc<AtomicU64>,
    hit: Arc<OnceLock<Verb>>,
    is_healed: Arc<AtomicBool>,
}

impl Injection {
    /// The first call has the number 1.
    pub fn new(number: u64, errno: Errno, lasting: Lasting) -> Self {
        let (count, hit, is_healed) = Default::default();
        Self { number, errno, lasting, counted: None, count, hit, is_healed }
    }

    /// As it is, with only calls of this verb counted.
    #[must_use]
    pub fn counting(mut self, verb: Verb) -> Self {
        self.counted = Some(verb);
        self
    }

    /// What becomes of a call.
    pub fn answer(&self, sim: &Sim, call: &Call) -> Option<Fault> {
        let is_counted = self.counted.is_none_or(|verb| verb == call.verb);
        let number = if is_counted { self.count.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        let fails = if number == self.number {
            let _ = self.hit.set(call.verb);
            true
        } else {
            self.hit().is_some_and(|hit| match self.lasting {
                Lasting::Once => false,
                Lasting::Verb => call.verb == hit,
                Lasting::Everything => true,
            })
        };
        (fails && !self.is_healed.load(Ordering::Relaxed)).then(|| self.errno.fault(sim, call))
    }

    /// What the call was that failed first; `None` if it has not come.
    pub fn hit(&self) -> Option<Verb> {
        self.hit.get().copied()
    }

    /// How many calls were counted.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// From now on nothing fails.
    pub fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }
}
