//! Processes that fork while they have a store open: the store stays the parent's, and dies with it.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atomtree::vfs::fork_for_test;
use atomtree::{Error, ErrorKind, Store, Transaction};

use super::{Worker, duration, shoot};
use crate::basics::{child_root, commit, inspect, small};
use crate::kills::{check_report, say};
use crate::races::Running;

/// So that a forked child without a parent does not stay for ever.
const LIFE: Duration = Duration::from_secs(50);

/// The exit status that says what a forked child could do, which should be nothing.
fn verdict(allowed: &[&str]) -> i32 {
    if allowed.is_empty() {
        return 0;
    }
    say(&format!("a forked child could {allowed:?}"));
    1
}

fn is_refused<T>(result: Result<T, Error>) -> bool {
    result.is_err_and(|error| {
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("open it again in the child")
    })
}

/// Tries everything with a store and a transaction of the parent's.
fn use_all(store: Store, begun: Transaction) -> i32 {
    let mut allowed = Vec::new();
    let mut note = |what, is_refused: bool| {
        if !is_refused {
            allowed.push(what);
        }
    };
    note("begin", is_refused(store.begin()));
    note("transact", is_refused(store.transact(|tx| tx.write("by-the-child", "x"))));
    note("commit", is_refused(begun.commit()));
    note("checkpoint", is_refused(store.checkpoint()));
    note("close", is_refused(store.clone().close()));
    drop(store);
    verdict(&allowed)
}

/// Waits for a child of this very process.
fn wait(pid: u32) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(pid as i32);
    let waited = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
    waited.unwrap().1.exit_status()
}

/// Opens the store, begins a transaction, forks, lets the child try everything, and commits what had begun.
fn fork_and_go_on(root: &Path) {
    let store = small().open(root).unwrap();
    let mut begun = store.begin().unwrap();
    // Staged already.
    begun.write_from("streamed", std::io::repeat(b'x').take(2 << 20)).unwrap();
    begun.write("small", "x").unwrap();
    let mut other = store.begin().unwrap();
    other.write_from("other", std::io::repeat(b'y').take(2 << 20)).unwrap();
    let guards = (0..3).map(|n| store.guard([format!("/guarded-{n}")]).unwrap());
    let mut guards = Some(guards.collect::<Vec<_>>());
    let (mut other, mut shared) = (Some(other), Some(store.clone()));
    let child = fork_for_test(|| {
        let mut guards = guards.take().unwrap().into_iter();
        let kept = guards.next().unwrap().keep();
        let rolled_back = guards.next().unwrap().roll_back();
        guards.next().unwrap().leave();
        if !is_refused(kept) || !is_refused(rolled_back) {
            return verdict(&["end a guard"]);
        }
        use_all(shared.take().unwrap(), other.take().unwrap())
    })
    .unwrap();
    assert_eq!(wait(child), Some(0), "the forked child was not refused everything");
    assert_eq!(inspect(root).status().unwrap().guards.len(), 3, "the parent has them all");
    drop(guards);
    begun.commit().unwrap();
    other.unwrap().commit().unwrap();
    commit(&store, |tx| tx.write("after", "the fork")).unwrap();
    // Dropping all that it has, and ending as programs do, is nothing either.
    let mut kept = Some((store.clone(), store.begin().unwrap()));
    let child = fork_for_test(|| {
        drop(kept.take());
        0
    })
    .unwrap();
    assert_eq!(wait(child), Some(0));
    commit(&store, |tx| tx.write("after", "both")).unwrap();
    assert_eq!(store.take_overs(), []);
    drop(kept);
    store.close().unwrap();
    say("fine");
}

/// Goal: in a forked child the store is unusable, with an error that says what to do, and whatever the child does with its
/// copies is nothing to the parent, whose transactions commit. Method: a child of this test forks with transactions begun.
#[test]
fn a_forked_child_can_do_nothing() {
    if let Some(root) = child_root() {
        return fork_and_go_on(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let test = "processes::forks::a_forked_child_can_do_nothing";
    assert_eq!(Worker::start(test, root, "the forking child", &[]).end(), ["fine"]);
    assert_eq!(std::fs::read(root.join("streamed")).unwrap().len(), 2 << 20);
    assert_eq!(std::fs::read_to_string(root.join("after")).unwrap(), "both");
    assert!(!root.join("by-the-child").exists());
    let status = inspect(root).status().unwrap();
    assert!(status.is_clean && status.members.is_empty(), "{status:?}");
    assert_eq!(std::fs::read_dir(root.join(".atomtree/stage")).unwrap().count(), 0);
}

/// The store is open, the lock held now and then, and children that do nothing live.
fn fork_and_die(root: &Path) {
    let store = small().open(root).unwrap();
    let _guard = store.guard(["guarded"]).unwrap();
    std::fs::write(root.join("guarded"), "edited").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let store = &store;
            scope.spawn(move || {
                for n in 0_u64.. {
                    commit(store, |tx| tx.write(format!("thread-{thread}"), n.to_string())).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(30));
        for _ in 0..4 {
            let child = fork_for_test(|| {
                std::thread::sleep(LIFE);
                0
            });
            say(&format!("forked {}", child.unwrap()));
            std::thread::sleep(Duration::from_millis(3));
        }
        let mut program = Command::new("sleep").arg(LIFE.as_secs().to_string()).spawn().unwrap();
        say(&format!("forked {}", program.id()));
        say("ready");
        let _ = program.wait();
    });
}

/// Goal: children that were forked from a process with the store open, in the middle of its threads' commits, or programs
/// that it started, keep none of its locks: when it dies, the store is free. Method: they sleep on while their
/// parent is killed; the next one wants the store for itself, and waits for less than they live.
#[test]
fn forked_children_keep_no_lock_alive() {
    if let Some(root) = child_root() {
        return fork_and_die(&root);
    }
    for round in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        std::fs::write(root.join("guarded"), "old").unwrap();
        let test = "processes::forks::forked_children_keep_no_lock_alive";
        let mut parent = Worker::start(test, root, format!("round {round}"), &[]);
        let said = parent.wait_for("ready");
        let forked: Vec<u32> =
            said.iter().filter_map(|line| line.strip_prefix("forked ")?.parse().ok()).collect();
        assert_eq!(forked.len(), 5, "{said:#?}");
        let speaking = parent.speaking();
        speaking.child.kill().unwrap();
        speaking.child.wait().unwrap();
        // A child that was forked last may not have come to let go yet.
        let opened = small().exclusive(true).lock_timeout(LIFE / 5).open(root);
        let living = forked.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
        forked.iter().for_each(|pid| shoot(*pid));
        let store = opened.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(living, 5, "they ended before they could be in the way");
        let mut report = store.recovery().clone();
        assert_eq!(std::mem::take(&mut report.rolled_back), 1, "{report:?}");
        check_report(&report, "the next one");
        assert_eq!(std::fs::read_to_string(root.join("guarded")).unwrap(), "old", "it is rolled back");
        assert_eq!(inspect(root).members().unwrap().len(), 1);
        commit(&store, |tx| tx.write("next", "x")).unwrap();
        store.close().unwrap();
    }
}

/// Forks again and again beside threads.
fn fork_beside_threads(root: &Path) {
    let store = small().open(root).unwrap();
    let wanted = AtomicBool::new(true);
    let mut refused = 0;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, wanted) = (&store, &wanted);
            scope.spawn(move || {
                for n in 0_u64.. {
                    if !wanted.load(Ordering::Relaxed) {
                        return;
                    }
                    commit(store, |tx| tx.write(format!("thread-{thread}"), n.to_string())).unwrap();
                }
            });
        }
        let running = Running(&wanted);
        let begun = Instant::now();
        while begun.elapsed() < duration(Duration::from_secs(1)) {
            let child = fork_for_test(|| i32::from(!is_refused(store.begin())));
            assert_eq!(wait(child.unwrap()), Some(0), "child {refused}");
            refused += 1;
        }
        drop(running);
    });
    store.close().unwrap();
    say(&format!("forked {refused}"));
}

/// Goal: threads that commit go on beside forks, and each forked child is refused. Method: forks one after another beside four
/// committing threads. Opening the store anew in such a child is not asked for: what the threads' locks share is copied in
/// whatever state it is.
#[test]
fn threads_and_forks_go_together() {
    if let Some(root) = child_root() {
        return fork_beside_threads(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let said = Worker::start("processes::forks::threads_and_forks_go_together", root, "the child", &[]).end();
    println!("{said:?}");
    let forked: u64 = said.last().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(forked > 5, "{said:?}");
    let verification = inspect(root).verify().unwrap();
    assert!(verification.problems.is_empty() && verification.closed, "{verification:?}");
}
