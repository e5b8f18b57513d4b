//! Loom models of the engine: whole stores on a simulated disk, with every lock, condition variable and thread of the
//! engine in loom's hands. What is under them is the code that ships; `atomtree_wal::sync` alone is another.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p atomtree --release --lib models` runs them; with `-- --nocapture` it prints how
//! many schedules there were. Each states its bound, and asserts that the situation it is about occurred. A thread that
//! nobody wakes is a deadlock, which loom reports.
//!
//! # What they leave out
//!
//! Storage verbs happen at once, but for the syncs of the log, within which others run. No time passes: a wait for a while
//! lasts until somebody ends it, and a checkpoint is due at once or never. Panics under a lock are left to
//! `tickets::a_panic_wakes_everybody`, because loom's locks poison; reference counts and the few plain atomics are std's,
//! and left to `tests/stress` under `ThreadSanitizer`.

mod checkpointing;
mod closing;
mod committing;
mod submitting;

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize as Plain};
use std::sync::{Arc, LazyLock};

use atomtree_recovery::recover::Report;
use atomtree_vfs::Vfs;
use atomtree_vfs::faults::{Call, Faults, Verb, fail_nothing};
use atomtree_vfs::sim::Sim;
use atomtree_wal::sync::{self, Thread};
use loom::sync::atomic::AtomicUsize;

use crate::{Checkpoints, Error, ErrorKind, Options, Receipt, Store, Transaction};

const ROOT: &str = "/tree";

/// Explores a model that opens stores, which takes a larger stack than loom's threads have. One of the five threads that
/// loom allows waits for it.
fn explore(name: &str, preemptions: Option<usize>, model: impl Fn(&Plain) + Send + Sync + 'static) {
    let model = Arc::new(model);
    sync::explore(name, preemptions, move |occurrences| {
        let (model, occurrences) = (Arc::clone(&model), Arc::clone(occurrences));
        start(move || model(&occurrences)).join().unwrap();
    });
}

fn start<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> Thread<R> {
    sync::spawn("model", run).unwrap()
}

/// A machine with a closed store in which `fill` was done.
fn prepared(fill: impl Fn(&Store) + Send + Sync + 'static) -> Sim {
    let sim = Sim::new(7);
    sim.create_dir(ROOT);
    let (fill, disk) = (Arc::new(fill), sim.clone());
    // Locks are loom's, so that no store can be opened outside of a model. On one schedule: each would go on with the disk
    // of the one before.
    let mut builder = loom::model::Builder::new();
    builder.max_permutations = Some(1);
    builder.check(move || {
        let (fill, disk) = (Arc::clone(&fill), disk.clone());
        let run = move || {
            let store = options(Arc::new(disk)).open(ROOT).unwrap();
            fill(&store);
            store.close().unwrap();
        };
        start(run).join().unwrap();
    });
    sim
}

fn options(vfs: Arc<dyn Vfs>) -> Options {
    Options::new()
        .vfs(vfs)
        .segment_bytes(64 << 10)
        .log_bytes_max(256 << 10)
        .ballast_bytes(4096)
        .checkpoints(Checkpoints::Manual)
}

/// A transaction that writes one file.
fn writing(store: &Store, path: &str, content: &[u8]) -> Result<Transaction, Error> {
    let mut transaction = store.begin()?;
    transaction.write(path, content)?;
    Ok(transaction)
}

fn commit(store: &Store, path: &str, content: &[u8]) -> Result<Receipt, Error> {
    writing(store, path, content)?.commit()
}

/// A simulated machine with a store on it, made anew for each schedule.
struct Machine {
    sim: Sim,
    faults: Faults,
    syncs: Arc<LogSyncs>,
}

impl Machine {
    /// A copy of a machine that [`prepared`] returned.
    fn new(prepared: &Sim) -> Arc<Self> {
        let sim = prepared.kill();
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        Arc::new(Self { sim, faults, syncs: Arc::default() })
    }

    /// Opens the store, and commits the file `first`. From then on [`LogSyncs`] looks.
    fn open(&self, set: impl FnOnce(Options) -> Options) -> Store {
        let store = set(options(Arc::new(self.faults.clone()))).open(ROOT).unwrap();
        // The first one takes back that the log is closed, with a sync of its own.
        commit(&store, "first", b"").unwrap();
        let syncs = Arc::clone(&self.syncs);
        self.faults.set_rule(Arc::new(move |call| {
            syncs.note(call);
            None
        }));
        store
    }

    /// Whether a process has the store open.
    fn is_locked(&self) -> bool {
        // Whoever leaves removes his directory first.
        !self.sim.tree(format!("{ROOT}/.atomtree/stage")).is_empty()
    }

    /// What a power cut now leaves, if nothing survives that was not synced.
    fn cut(&self) -> Sim {
        static KEEPS_NOTHING: LazyLock<u64> = LazyLock::new(|| {
            let sim = Sim::new(0);
            let old: Vec<String> = (0..32).map(|n| format!("/old-{n}")).collect();
            old.iter().for_each(|path| sim.write_file(path, b"old"));
            old.iter().for_each(|path| sim.write_file_unsynced(path, b"new"));
            (0..32).for_each(|n| sim.write_file_unsynced(format!("/new-{n}"), b"new"));
            let is_lost = |cut: &Sim| {
                cut.tree("/").len() == old.len()
                    && old.iter().all(|path| cut.read_file(path).is_some_and(|content| content == b"old"))
            };
            (0..).find(|seed| is_lost(&sim.power_cut(*seed))).unwrap()
        });
        self.sim.power_cut(*KEEPS_NOTHING)
    }
}

/// The machine after a kill and recovery, and what that had to do.
fn recovered(machine: &Sim) -> (Sim, Report) {
    let machine = machine.kill();
    let store = options(Arc::new(machine.clone())).open(ROOT).unwrap();
    let report = store.recovery().clone();
    (machine, report)
}

fn read(machine: &Sim, path: &str) -> Option<Vec<u8>> {
    machine.read_file(format!("{ROOT}/{path}"))
}

/// What the log's syncs are doing.
#[derive(Default)]
struct LogSyncs {
    /// Touched in the middle of each: whoever touches it too comes before, behind, or within.
    middle: AtomicUsize,
    is_under_way: AtomicBool,
    /// How many have begun, and how many appends there were before the first.
    begun: Plain,
    first_batch: Plain,
}

impl LogSyncs {
    fn note(&self, call: &Call) {
        // Whether a name is put in place before or behind a checkpoint's sync makes a difference.
        if [Verb::SyncFilesystem, Verb::Rename].contains(&call.verb) {
            self.middle.fetch_add(1, SeqCst);
        }
        if !call.name.as_ref().is_some_and(|name| name.as_encoded_bytes().ends_with(b".seg")) {
            return;
        }
        match call.verb {
            Verb::WriteAt if self.begun.load(Relaxed) == 0 => {
                self.first_batch.fetch_add(1, Relaxed);
            }
            Verb::SyncData => {
                self.begun.fetch_add(1, Relaxed);
                self.is_under_way.store(true, Relaxed);
                self.middle.fetch_add(1, SeqCst);
                self.is_under_way.store(false, Relaxed);
            }
            _ => {}
        }
    }

    /// Comes before, behind or within each sync, depending on the schedule; returns whether it is within.
    fn meet(&self) -> bool {
        self.middle.fetch_add(1, SeqCst);
        self.is_under_way.load(Relaxed)
    }
}
