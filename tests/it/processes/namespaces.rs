//! Processes whose numbers say nothing: in other pid namespaces, where everybody is number one, and numbers that others have
//! got since.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use atomtree::{ErrorKind, Store};

use super::{Worker, insist, number, ready};
use crate::basics::{child, child_root, commit, inspect, is_root, small};
use crate::kills::operations::chosen;
use crate::kills::say;

/// The same test binary in a pid namespace of its own, which ends with the program that made it. `None` where that is not
/// allowed.
fn unshared(test: &str, root: &Path) -> Option<Command> {
    if !is_root() {
        return None;
    }
    let wrapper = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let works = Command::new("unshare").args(wrapper).arg("true").output();
    if !works.is_ok_and(|output| output.status.success()) {
        atomtree_tests::volume::skip("pid namespaces", "unshare is refused");
        return None;
    }
    let inner = child(test, root);
    let mut command = Command::new("unshare");
    command.args(wrapper).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap());
    }
    Some(command)
}

fn count_up(store: &Store, times: u64) {
    for _ in 0..times {
        insist(store, |tx| {
            let next = number(tx, "counter")? + 1;
            tx.write("counter", next.to_string())
        })
        .unwrap();
    }
}

/// Goal: processes in different pid namespaces, which have the same number, share a store like any others: counters are
/// exact, all of them are listed, and none is taken for dead. Method: two of them in namespaces of their own beside this one.
#[test]
fn processes_with_the_same_number_share_a_store() {
    let test = "processes::namespaces::processes_with_the_same_number_share_a_store";
    if let Some(root) = child_root() {
        let store = small().settle_after(Duration::from_millis(5)).open(root).unwrap();
        say(&format!("pid {}", std::process::id()));
        ready();
        count_up(&store, 40);
        say("counted");
        let _ = std::io::read_to_string(std::io::stdin());
        return store.close().unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = small().settle_after(Duration::from_millis(5)).open(root).unwrap();
    let mut workers = Vec::new();
    for name in ["one", "another"] {
        let Some(mut command) = unshared(test, root) else { return };
        workers.push(Worker::start_command(&mut command, name));
    }
    let pids: Vec<String> = workers.iter_mut().flat_map(|worker| worker.wait_for("ready")).collect();
    assert_eq!(pids[0], pids[2], "they have the same number: {pids:?}");
    let members = inspect(root).members().unwrap();
    assert_eq!(members.len(), 3, "{members:?}");
    workers.iter_mut().for_each(|worker| worker.tell("go"));
    count_up(&store, 40);
    for worker in &mut workers {
        worker.wait_for("counted");
        assert_eq!(inspect(root).members().unwrap().len(), 3);
    }
    // Checkpoints and sweeps of this process leave what is theirs.
    commit(&store, |tx| tx.write("a", "x")).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(inspect(root).members().unwrap().len(), 3);
    for worker in workers {
        worker.end();
        store.checkpoint().unwrap();
    }
    assert_eq!(inspect(root).members().unwrap().len(), 1);
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "120");
    assert_eq!(store.take_overs(), []);
    store.close().unwrap();
}

/// Goal: a holder in another namespace is waited for, and the error says that its number may be of another namespace; when
/// it dies in a commit, another finishes for it. Method: it sleeps before the sync of its commit, and is killed with its
/// namespace.
#[test]
fn a_holder_in_another_namespace_is_waited_for() {
    let test = "processes::namespaces::a_holder_in_another_namespace_is_waited_for";
    if let Some(root) = child_root() {
        let sleeping = chosen("sleeps", || std::thread::sleep(Duration::from_secs(50)));
        let store = small().vfs(sleeping.vfs()).open(root).unwrap();
        sleeping.enter("commit");
        return drop(commit(&store, |tx| tx.write("theirs", "x")));
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = small().lock_timeout(Duration::from_millis(300)).open(root).unwrap();
    commit(&store, |tx| tx.write("first", "x")).unwrap();
    let Some(mut command) = unshared(test, root) else { return };
    let command = command.env("ATOMTREE_TARGETS", "commit:SyncData:1");
    let mut worker = Worker::start_command(command, "in another namespace");
    worker.wait_for("sleeps");
    for _ in 0..2 {
        let error = commit(&store, |tx| tx.write("ours", "x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.to_string().contains("which may be in another pid namespace"), "{error}");
    }
    let status = inspect(root).status().unwrap();
    assert_eq!((status.members.len(), status.committing.is_some()), (2, true), "{status:?}");
    worker.kill();
    let store = {
        // It goes when the kernel has got round to it.
        let waiting = small().open(root).unwrap();
        commit(&waiting, |tx| tx.write("ours", "x")).unwrap();
        waiting.close().unwrap();
        store
    };
    assert!(root.join("theirs").exists(), "its record was whole");
    commit(&store, |tx| tx.write("ours", "y")).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(inspect(root).members().unwrap().len(), 1);
    store.close().unwrap();
}

/// Goal: who has got the number of a dead member is not taken for it: it isn't listed, and what the dead one left is swept.
/// Method: a member is killed, and its note is given the number of this process, which lives, and then of the first one.
#[test]
fn a_number_that_somebody_else_has_got_is_nobody() {
    let test = "processes::namespaces::a_number_that_somebody_else_has_got_is_nobody";
    if let Some(root) = child_root() {
        let _store = small().open(root).unwrap();
        ready();
        return;
    }
    for pid in [std::process::id(), 1] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let store = small().open(root).unwrap();
        let stage = root.join(".atomtree/stage");
        let own: Vec<_> = fs::read_dir(&stage).unwrap().map(|entry| entry.unwrap().path()).collect();
        let mut worker = Worker::start(test, root, "the dead one", &[]);
        worker.wait_for("ready");
        let was = worker.pid();
        worker.kill();
        let mut left = fs::read_dir(&stage).unwrap().map(|entry| entry.unwrap().path());
        let dead = left.find(|path| !own.contains(path)).expect("it was a member");
        let note = fs::read_to_string(dead.join("lock")).unwrap();
        assert!(note.starts_with(&format!("pid {was}\n")), "{note}");
        fs::write(dead.join("lock"), note.replacen(&was.to_string(), &pid.to_string(), 1)).unwrap();
        let members = inspect(root).members().unwrap();
        assert_eq!(members.len(), 1, "{members:?}");
        commit(&store, |tx| tx.write("a", "x")).unwrap();
        store.checkpoint().unwrap();
        assert!(!dead.exists(), "what it left is swept");
        store.close().unwrap();
    }
}
