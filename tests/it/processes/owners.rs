//! A store of another user: refused, but for root where it says for whom it acts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use atomtree::{ErrorKind, Options};
use atomtree_tests::volume::skip;

use super::{Worker, insist, number, ready};
use crate::basics::{child, child_root, commit, inspect, is_root, shell, small};
use crate::kills::say;

/// Nobody in particular.
const USER: u32 = 12_345;

fn options() -> Options {
    small().settle_after(Duration::from_millis(10))
}

/// A tree of the user's, and a program that the user may execute.
fn prepared() -> Option<tempfile::TempDir> {
    if !is_root() {
        return None;
    }
    let scratch = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(program);
    if !command
        .arg("--version")
        .uid(USER)
        .gid(USER)
        .output()
        .is_ok_and(|output| output.status.code().is_some())
    {
        skip("a store of another user", "that user can't execute this program");
        return None;
    }
    shell(&format!("chown {USER}:{USER} '{}'", scratch.path().display()));
    Some(scratch)
}

/// Counts `counter` up for as often as it is told to, and once more when it is told again.
fn count_up(root: &Path) {
    let store = options().open(root).unwrap_or_else(|error| panic!("{error}"));
    ready();
    for _ in 0..50 {
        insist(&store, |tx| {
            let next = number(tx, "counter")? + 1;
            tx.write("counter", next.to_string())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
    say("counted");
    store.close().unwrap_or_else(|error| panic!("{error}"));
}

fn as_user(test: &str, root: &Path) -> Worker {
    let mut command = child(test, root);
    Worker::start_command(command.uid(USER).gid(USER), "the user")
}

/// Goal: a store of somebody else is refused, closed or while its owner has it open, and one that is open to others as
/// well; nothing is changed. Root that says for whom it acts joins the owner, and both go on. Method: a child of another
/// user counts, beside root.
#[test]
fn root_joins_a_user_only_where_it_says_so() {
    let test = "processes::owners::root_joins_a_user_only_where_it_says_so";
    if let Some(root) = child_root() {
        return count_up(&root);
    }
    let Some(scratch) = prepared() else { return };
    let root = scratch.path();
    let mut worker = as_user(test, root);
    worker.wait_for("ready");
    let refused = |options: Options| {
        let error = options.open(root).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(error.to_string().contains("--allow-owner 12345"), "{error}");
    };
    refused(options());
    refused(options().allow_owner(USER + 1));
    assert_eq!(inspect(root).members().unwrap().len(), 1);
    let store = options().allow_owner(USER).open(root).unwrap();
    assert_eq!(inspect(root).members().unwrap().len(), 2);
    worker.tell("go");
    for n in 0..50 {
        commit(&store, |tx| tx.write("by-root", n.to_string()))
            .unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    worker.wait_for("counted");
    store.checkpoint().unwrap();
    worker.end();
    store.close().unwrap();
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "50");
    // The owner goes on alone.
    let mut worker = as_user(test, root);
    worker.wait_for("ready");
    worker.tell("go");
    worker.wait_for("counted");
    worker.end();
    refused(options());
    fs::set_permissions(root.join(".atomtree"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = options().allow_owner(USER).open(root).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
}

/// Goal: what root leaves that is killed, its stage directory above all, does not keep the owner from going on, nor from
/// opening the store again. Method: root is a child that is killed while it commits, beside the user and before it.
#[test]
fn root_that_is_killed_leaves_the_owner_its_store() {
    let test = "processes::owners::root_that_is_killed_leaves_the_owner_its_store";
    if let Some(root) = child_root() {
        if !rustix::process::getuid().is_root() {
            return count_up(&root);
        }
        let store = options().allow_owner(USER).open(root).unwrap();
        say("ready");
        for n in 0_u64.. {
            commit(&store, |tx| tx.write("by-root", n.to_string())).unwrap();
        }
    }
    let Some(scratch) = prepared() else { return };
    let root = scratch.path();
    let mut user = as_user(test, root);
    user.wait_for("ready");
    let mut other = Worker::start(test, root, "root", &[]);
    other.wait_for("ready");
    std::thread::sleep(Duration::from_millis(100));
    other.kill();
    user.tell("go");
    user.wait_for("counted");
    user.end();
    let mut next = as_user(test, root);
    next.wait_for("ready");
    next.tell("go");
    next.wait_for("counted");
    next.end();
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "100");
}
