//! Everything at once on real threads and real files, for a few seconds: committers, submitters with every way to use a
//! ticket, moved directories, contents by reference, background and other checkpoints, a full log, inspection, and in the
//! midst of it a close, or a failed sync. What was acknowledged is there afterwards, whole, and nobody hangs.
//!
//! Under `ThreadSanitizer` this looks for data races in what loom can't hold (CONTRIBUTING.md has the command).
//! `ATOMTREE_STRESS_SECONDS` makes each test run longer than a second.

#![cfg(test)]

use std::future::Future;
use std::io::Cursor;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use atomtree::{Durability, Error, ErrorKind, Inspection, Options, Receipt, RecoveryReport, Store, Ticket};
use atomtree_tests::waiting::{block_on, within};
use atomtree_vfs::faults::{Fault, Faults, Verb, fail_nothing};
use atomtree_vfs::os::Os;
use tempfile::TempDir;

/// How many threads commit, and how many submit.
const COMMITTERS: u64 = 3;
const SUBMITTERS: u64 = 3;

/// Long enough for each thread to get through, on a slow machine under a sanitizer.
const PATIENCE: Duration = Duration::from_secs(30);

fn duration() -> Duration {
    let seconds = std::env::var("ATOMTREE_STRESS_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// A log that is full all the time, and checkpoints that never pause.
fn busy() -> Options {
    Options::new()
        .segment_bytes(64 << 10)
        .log_bytes_max(256 << 10)
        .settle_after(Duration::from_millis(1))
        .submitted_max(4)
}

/// An empty tree with an open store.
fn opened(options: Options) -> (TempDir, Store) {
    let scratch = tempfile::tempdir().unwrap();
    let store = options.open(scratch.path()).unwrap();
    (scratch, store)
}

/// How far each thread's files have come: the last number that was acknowledged.
#[derive(Default)]
struct Acknowledged([AtomicU64; (COMMITTERS + SUBMITTERS) as usize]);

impl Acknowledged {
    fn note(&self, thread: u64, n: u64) {
        self.0[thread as usize].fetch_max(n, Ordering::Relaxed);
    }

    /// Whether every thread got through.
    fn has_all(&self) -> bool {
        self.0.iter().all(|acknowledged| acknowledged.load(Ordering::Relaxed) > 0)
    }

    /// Each thread's two files say the same, and at least what was acknowledged.
    fn check(&self, root: &Path) {
        for (thread, acknowledged) in self.0.iter().enumerate() {
            let number = |name: String| -> u64 {
                let text = std::fs::read_to_string(root.join(name)).unwrap_or_default();
                text.trim_end_matches('.').parse().unwrap_or(0)
            };
            let (one, two) = (number(format!("{thread}-a")), number(format!("{thread}-b")));
            assert_eq!(one, two, "thread {thread}: half a transaction");
            let acknowledged = acknowledged.load(Ordering::Relaxed);
            assert!(acknowledged > 0, "thread {thread} never got through");
            assert!(one >= acknowledged, "thread {thread}: {acknowledged} was acknowledged, found {one}");
        }
    }
}

/// Commits until that is refused; writes and streams contents, in the log and by reference, and moves a directory.
fn committer(store: &Store, thread: u64, acknowledged: &Acknowledged) -> Error {
    for n in 1_u64.. {
        let text = format!("{n}{}", ".".repeat((n % 7 * 900) as usize));
        let commit = || -> Result<Receipt, Error> {
            let mut tx = store.begin()?;
            tx.write(format!("{thread}-a"), text.clone())?;
            tx.write(format!("{thread}-b"), text.clone())?;
            match n % 16 {
                5 => _ = tx.write_from(format!("{thread}-large"), Cursor::new(vec![b'x'; 40_000]))?,
                7 => tx.write(format!("dir-{thread}/{n}"), "moved")?,
                8 => tx.rename(format!("dir-{thread}"), format!("moved-{thread}"))?,
                9 => tx.rename(format!("moved-{thread}"), format!("dir-{thread}"))?,
                _ => {}
            }
            tx.commit()
        };
        match commit() {
            Ok(_) => acknowledged.note(thread, n),
            Err(error) => return error,
        }
    }
    unreachable!("it ends with an error")
}

/// Submits until that is refused, and uses each ticket in another way.
fn submitter(store: &Store, thread: u64, acknowledged: &Acknowledged) -> Error {
    let submit = |n: u64, names: [String; 2]| -> Result<Ticket, Error> {
        let mut tx = store.begin()?;
        tx.set_durability(if n.is_multiple_of(32) { Durability::Settled } else { Durability::Synced });
        names.iter().try_for_each(|name| tx.write(name, n.to_string()))?;
        tx.submit()
    };
    for n in 1_u64.. {
        let names = if n % 6 < 2 { "dropped" } else { "" };
        let names = ["a", "b"].map(|name| match names {
            // Nobody waits for these, and what comes next must not meet them.
            "dropped" => format!("dropped/{thread}-{name}-{n}"),
            _ => format!("{thread}-{name}"),
        });
        let mut ticket = match submit(n, names) {
            Ok(ticket) => ticket,
            Err(error) => return error,
        };
        let result = match n % 6 {
            0 => {
                drop(ticket);
                continue;
            }
            1 => {
                let _ = poll(&mut ticket);
                continue;
            }
            2 => ticket.durable().and_then(|_| ticket.applied()),
            3 => block_on(ticket),
            // Polled here, with a waker that goes nowhere, and awaited elsewhere.
            4 => match poll(&mut ticket) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => thread::spawn(|| block_on(ticket)).join().unwrap(),
            },
            _ => thread::scope(|scope| {
                let durable = scope.spawn(|| ticket.durable());
                let applied = ticket.applied();
                durable.join().unwrap().and(applied)
            }),
        };
        match result {
            Ok(_) => acknowledged.note(thread, n),
            Err(error) => return error,
        }
    }
    unreachable!("it ends with an error")
}

fn poll(ticket: &mut Ticket) -> Poll<Result<Receipt, Error>> {
    Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs all kinds of threads until `end` has stopped them, which comes a while after all of them got through. Returns how
/// each ended.
fn stress(
    store: Store,
    root: &Path,
    acknowledged: &Arc<Acknowledged>,
    end: impl FnOnce(Store),
) -> Vec<Error> {
    let is_over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for thread in 0..COMMITTERS + SUBMITTERS {
        let (store, acknowledged) = (store.clone(), Arc::clone(acknowledged));
        let work = if thread < COMMITTERS { committer } else { submitter };
        threads.push(thread::spawn(move || work(&store, thread, &acknowledged)));
    }
    let checkpointing = store.clone();
    threads.push(thread::spawn(move || {
        loop {
            if let Err(error) = checkpointing.checkpoint() {
                return error;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }));
    let (inspection, over) = (Inspection::open(root, &Options::new()).unwrap(), Arc::clone(&is_over));
    let inspecting = thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            inspection.status().unwrap();
            inspection.log(5).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
    });
    let start = Instant::now();
    // Whoever never gets through fails the check.
    while !acknowledged.has_all() && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(duration());
    end(store);
    let errors = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    is_over.store(true, Ordering::Relaxed);
    inspecting.join().unwrap();
    errors
}

/// Goal: a close in the midst of everything succeeds, refuses the rest, and leaves nothing to recover.
#[test]
fn everything_until_a_close() {
    within(|| {
        let (scratch, store) = opened(busy());
        let root = scratch.path();
        let acknowledged = Arc::default();
        let errors = stress(store, root, &acknowledged, |store| store.close().unwrap());
        assert!(errors.iter().all(|error| error.kind() == ErrorKind::InvalidInput), "{errors:?}");
        let store = busy().open(root).unwrap();
        assert_eq!(*store.recovery(), RecoveryReport::default());
        acknowledged.check(root);
    });
}

/// Goal: a sync of the log that fails in the midst of everything ends it for everybody, and recovery finds what had been
/// acknowledged. Method: a rule that fails all of them from some moment on.
#[test]
fn everything_until_a_failed_sync() {
    within(|| {
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let (scratch, store) = opened(busy().vfs(Arc::new(faults.clone())));
        let root = scratch.path();
        let acknowledged = Arc::default();
        let errors = stress(store, root, &acknowledged, |store| {
            faults.set_rule(Arc::new(|call| {
                let is_log =
                    call.name.as_ref().is_some_and(|name| name.as_encoded_bytes().ends_with(b".seg"));
                (is_log && call.verb == Verb::SyncData).then_some(Fault::Error(5))
            }));
            drop(store);
        });
        // A transaction that was to be settled may be durable and not more.
        let expected =
            [ErrorKind::Poisoned, ErrorKind::OutcomeUnknown, ErrorKind::CommittedNotApplied, ErrorKind::Io];
        assert!(errors.iter().all(|error| expected.contains(&error.kind())), "{errors:?}");
        let store = busy().open(root).unwrap();
        acknowledged.check(root);
        store.close().unwrap();
    });
}
