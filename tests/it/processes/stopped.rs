//! A member that is stopped while it holds a lock: it is waited for, named, and never robbed.

use std::path::Path;
use std::time::{Duration, Instant};

use atomtree::{Checkpoints, Error, ErrorKind, Options, Store};
use atomtree_tests::signals::Signal;

use super::{PATIENCE, Worker, end, go, ready};
use crate::basics::{child, child_root, commit, inspect, kind_of, small};
use crate::kills::operations::stopping;
use crate::kills::say;

/// How long the others wait for it.
const TIMEOUT: Duration = Duration::from_millis(300);
/// What they may take on top, on a slow machine.
const SLACK: Duration = Duration::from_secs(5);

fn options() -> Options {
    small().checkpoints(Checkpoints::Manual)
}

/// A child that stops itself at an operation of the phase `commit` or `checkpoint`, and says so.
fn stop_at_operation(root: &Path) {
    let storage = stopping();
    let store = options().vfs(storage.vfs()).open(root).unwrap();
    ready();
    storage.enter("commit");
    let receipt = commit(&store, |tx| {
        tx.write("a", "by who was stopped")?;
        tx.write("b", "by who was stopped")
    })
    .unwrap();
    say(&format!("committed {}", receipt.tx().0));
    storage.enter("checkpoint");
    store.checkpoint().unwrap();
    say("checkpointed");
    storage.enter("close");
    store.close().unwrap();
}

fn stopped(test: &str, root: &Path, target: &str) -> Worker {
    let mut command = child(test, root);
    let mut worker = Worker::start_command(command.env("ATOMTREE_TARGETS", target), target);
    worker.wait_for("ready");
    worker.tell("go");
    worker.wait_for("stops");
    worker
}

/// The error names the process, its program and how long it has had what it has.
#[track_caller]
fn check_named(error: &Error, pid: u32, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("process {pid} (")), "{text}");
    assert!(text.contains(&format!("has had {what} for ")) && text.contains("--wait"), "{text}");
    assert!(!text.contains("namespace"), "{text}");
}

/// Goal: who is stopped in the middle of a commit keeps the lock for as long as that lasts; others are told in time who has
/// it, change nothing, and go on once it does, or is dead. Method: a child stops itself before the sync of its commit, or
/// before it puts the second name in place; all that takes the lock is tried meanwhile, by sixteen threads as well; then it
/// is let go, or killed.
#[test]
fn a_stopped_holder_is_never_robbed() {
    let test = "processes::stopped::a_stopped_holder_is_never_robbed";
    if let Some(root) = child_root() {
        return stop_at_operation(&root);
    }
    for (target, is_killed, is_there) in [
        // Before a whole record is in the log, before the commit point, and behind it.
        ("commit:WriteAt:1", true, Some(false)),
        ("commit:SyncData:1", false, Some(true)),
        ("commit:SyncData:1", true, Some(true)),
        ("commit:Rename:1", false, Some(true)),
        ("commit:Rename:2", true, Some(true)),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let store = options().lock_timeout(TIMEOUT).open(root).unwrap();
        commit(&store, |tx| tx.write("first", "1")).unwrap();
        let mut worker = stopped(test, root, target);
        let pid = worker.pid();
        let label = format!("{target}, then killed: {is_killed}");
        let is_holding = inspect(root).status().unwrap().committing.is_some();
        if !is_holding {
            // Contents are staged with the same verbs, before the lock is taken: nobody is in the way.
            assert_eq!(target, "commit:WriteAt:1", "{label}");
            commit(&store, |tx| tx.write("other", "2")).unwrap();
            worker.kill();
            assert!(!root.join("a").exists(), "{label}");
            store.close().unwrap();
            continue;
        }
        for _ in 0..3 {
            let begun = Instant::now();
            let error = commit(&store, |tx| tx.write("other", "refused")).unwrap_err();
            check_named(&error, pid, "the commit lock");
            let waited = begun.elapsed();
            assert!((TIMEOUT..TIMEOUT + SLACK).contains(&waited), "{label}: {waited:?}");
        }
        // One that only reads is validated under the lock.
        assert_eq!(kind_of(commit(&store, |tx| tx.read("first").map(drop))), ErrorKind::Locked, "{label}");
        check_named(&store.checkpoint().unwrap_err(), pid, "the commit lock");
        check_named(
            &options().lock_timeout(TIMEOUT).open(root).map(drop).unwrap_err(),
            pid,
            "the commit lock",
        );
        let status = inspect(root).status().unwrap();
        assert_eq!(status.committing.unwrap().process.pid, pid, "{label}");
        assert_eq!(status.members.len(), 2, "{label}: {:?}", status.members);
        assert!(!root.join("other").exists(), "{label}");
        if is_killed {
            worker.kill();
        } else {
            worker.signal(Signal::CONT);
            worker.wait_for("committed");
            worker.end();
        }
        let begun = Instant::now();
        commit(&store, |tx| tx.write("other", "2")).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert!(begun.elapsed() < SLACK, "{label}: {:?}", begun.elapsed());
        let both = ["a", "b"].map(|name| root.join(name).exists());
        assert_eq!(both[0], both[1], "{label}: half a transaction");
        if let Some(is_there) = is_there {
            assert_eq!(both[0], is_there, "{label}");
        }
        store.close().unwrap();
    }
}

/// Goal: sixteen threads that wait for the same stopped holder are all told in about the time that each may wait, not one
/// after another.
#[test]
fn all_threads_wait_no_longer_than_they_may() {
    let test = "processes::stopped::all_threads_wait_no_longer_than_they_may";
    if let Some(root) = child_root() {
        return stop_at_operation(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = options().lock_timeout(TIMEOUT).open(root).unwrap();
    let mut worker = stopped(test, root, "commit:SyncData:1");
    let pid = worker.pid();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let store = &store;
            scope.spawn(move || {
                let result = if thread % 4 == 3 {
                    store.begin().and_then(|mut tx| {
                        tx.write(format!("submitted-{thread}"), "x")?;
                        tx.submit()?.applied()
                    })
                } else {
                    commit(store, |tx| tx.write(format!("thread-{thread}"), "x"))
                };
                check_named(&result.unwrap_err(), pid, "the commit lock");
            });
        }
    });
    let waited = begun.elapsed();
    println!("sixteen threads waited {waited:.2?}, each of them {TIMEOUT:?} at most");
    assert!(waited < 5 * TIMEOUT, "they wait one after another: {waited:?}");
    worker.signal(Signal::CONT);
    worker.end();
    commit(&store, |tx| tx.write("after", "x")).unwrap();
    store.close().unwrap();
}

/// Goal: who is stopped in the middle of a checkpoint holds up only those who want one, and they are told who it is; others
/// commit. Method: a child stops itself before the sync of the file system; then it is let go, or killed.
#[test]
fn a_stopped_checkpoint_holds_up_no_commits() {
    let test = "processes::stopped::a_stopped_checkpoint_holds_up_no_commits";
    if let Some(root) = child_root() {
        return stop_at_operation(&root);
    }
    for is_killed in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let store: Store = options().lock_timeout(TIMEOUT).open(root).unwrap();
        let mut worker = stopped(test, root, "checkpoint:SyncFilesystem:1");
        let pid = worker.pid();
        for round in 0..20 {
            commit(&store, |tx| tx.write("a", round.to_string())).unwrap();
        }
        check_named(&store.checkpoint().unwrap_err(), pid, "the checkpoint lock");
        // It does not count as a failure, of this store or of any other.
        commit(&store, |tx| tx.write("a", "once more")).unwrap();
        if is_killed {
            worker.kill();
        } else {
            worker.signal(Signal::CONT);
            worker.wait_for("checkpointed");
            worker.end();
        }
        let begun = Instant::now();
        store.checkpoint().unwrap();
        assert!(begun.elapsed() < PATIENCE);
        assert_eq!(inspect(root).status().unwrap().unsettled, 0);
        assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "once more");
        store.close().unwrap();
        assert!(inspect(root).verify().unwrap().problems.is_empty());
    }
}

/// Goal: who opens a store while another process is making it waits for that, as long as it may, and is not refused at once.
/// Method: eight open an empty tree at the same moment, several times; and one stops itself in the middle of making it.
#[test]
fn who_makes_the_store_is_waited_for() {
    let test = "processes::stopped::who_makes_the_store_is_waited_for";
    if let Some(root) = child_root() {
        let storage = stopping();
        ready();
        storage.enter("create");
        let store = options().vfs(storage.vfs()).open(root).unwrap_or_else(|error| panic!("{error}"));
        storage.enter("rest");
        commit(&store, |tx| tx.write(std::process::id().to_string(), "x")).unwrap();
        return store.close().unwrap();
    }
    for _ in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let mut workers: Vec<Worker> =
            (0..8).map(|number| Worker::start(test, root, format!("process {number}"), &[])).collect();
        go(&mut workers);
        end(workers);
        assert_eq!(inspect(root).status().unwrap().last_tx.0, 8);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let mut maker = stopped(test, root, "create:SyncFilesystem:1");
    let begun = Instant::now();
    let error = options().lock_timeout(TIMEOUT).open(root).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert!(begun.elapsed() >= TIMEOUT, "{error}, after {:?}", begun.elapsed());
    maker.signal(Signal::CONT);
    options().open(root).unwrap().close().unwrap();
    maker.end();
}
