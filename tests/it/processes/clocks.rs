//! Processes whose clocks disagree, and one whose clock jumps back.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use atomtree::vfs::os::Os;
use atomtree::vfs::{Dir, Identity, ProcessIdentity, Timestamp, Vfs};
use atomtree::{ErrorKind, Options, Store};

use super::{insist, number};
use crate::basics::{commit, inspect, kind_of, small};

/// Storage with a clock that is wrong by so many nanoseconds, for now.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicI64>);

impl Clock {
    fn is_wrong_by(&self, seconds: i64) {
        self.0.store(seconds * 1_000_000_000, Ordering::Relaxed);
    }
}

impl Vfs for Clock {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        Os.open_root(path)
    }
    fn now(&self) -> Timestamp {
        Os.now().plus_ns(self.0.load(Ordering::Relaxed))
    }
    fn timestamp_granularity_ns(&self) -> i64 {
        Os.timestamp_granularity_ns()
    }
    fn random(&self) -> io::Result<u128> {
        Os.random()
    }
    fn identity(&self) -> io::Result<Identity> {
        Os.identity()
    }
    fn process(&self) -> io::Result<ProcessIdentity> {
        Os.process()
    }
    fn fork_generation(&self) -> u64 {
        Os.fork_generation()
    }
    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        Os.is_alive(process)
    }
    fn end_command(&self, command: &atomtree::vfs::Command) -> io::Result<Vec<ProcessIdentity>> {
        Os.end_command(command)
    }
}

fn options(clock: &Clock) -> Options {
    small().log_bytes_max(256 << 10).settle_after(Duration::from_millis(5)).vfs(Arc::new(clock.clone()))
}

fn increment(store: &Store) {
    insist(store, |tx| {
        let next = number(tx, "counter")? + 1;
        tx.write("counter", next.to_string())
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

/// Goal: what the clock says decides nothing about who comes first or what is new: counters are exact, edits by others a
/// conflict, and who waits is told an age that makes sense, whatever clocks do. Method: members with clocks an hour apart,
/// which jump back and forth between transactions; small segments, so that the log goes round many times meanwhile.
#[test]
fn clocks_that_jump_lose_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let clocks: [Clock; 3] = Default::default();
    clocks[1].is_wrong_by(3600);
    clocks[2].is_wrong_by(-3600);
    let members: Vec<Store> = clocks.iter().map(|clock| options(clock).open(root).unwrap()).collect();
    std::thread::scope(|scope| {
        for (clock, member) in clocks.iter().zip(&members) {
            scope.spawn(move || {
                for round in 0..60 {
                    increment(member);
                    clock.is_wrong_by([0, -7200, 3, -3, 86_400][round % 5]);
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "180");
    for (clock, member) in clocks.iter().zip(&members) {
        for wrong in [-7200, 7200] {
            clock.is_wrong_by(wrong);
            let mut tx = member.begin().unwrap();
            tx.append("counter", "?").unwrap();
            clock.is_wrong_by(-wrong);
            fs::write(root.join("counter"), "edited by another program").unwrap();
            assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict);
            commit(member, |tx| tx.write("counter", "180")).unwrap();
            assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "180");
        }
    }
    clocks[0].is_wrong_by(-86_400);
    let alone = options(&clocks[0]).exclusive(true).lock_timeout(Duration::ZERO);
    let error = alone.open(root).map(drop).unwrap_err();
    assert!(error.kind() == ErrorKind::Locked && error.to_string().contains("for 0.0 s"), "{error}");
    inspect(root).status().unwrap();
    for member in members {
        member.close().unwrap();
    }
    let verification = inspect(root).verify().unwrap();
    assert!(verification.problems.is_empty() && verification.closed, "{verification:?}");
}
