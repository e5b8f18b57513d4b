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

/// Goal: a store of somebody else is refused, closed or while its owner has it open; root that says for whom it acts gets it
/// once nobody has it, keeps it to itself meanwhile, and leaves it to its owner as it was. Method: a child of another user
/// counts before, beside and after.
#[test]
fn root_gets_the_store_of_a_user_only_where_it_says_so_and_alone() {
    let test = "processes::owners::root_gets_the_store_of_a_user_only_where_it_says_so_and_alone";
    if let Some(root) = child_root() {
        return count_up(&root);
    }
    let Some(scratch) = prepared() else { return };
    let root = scratch.path();
    let mut worker = as_user(test, root);
    worker.wait_for("ready");
    let pid = worker.pid();
    let refused = |options: Options, kind: ErrorKind, hint: &str| {
        let error = options.open(root).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    };
    refused(options(), ErrorKind::Permission, "--allow-owner 12345");
    refused(options().allow_owner(USER + 1), ErrorKind::Permission, "--allow-owner 12345");
    let waiting = || options().allow_owner(USER).lock_timeout(Duration::from_millis(100));
    refused(waiting(), ErrorKind::Locked, &format!("process {pid} ("));
    assert_eq!(inspect(root).members().unwrap().len(), 1);
    worker.tell("go");
    worker.wait_for("counted");
    worker.end();

    let store = options().allow_owner(USER).open(root).unwrap();
    for n in 0..50 {
        commit(&store, |tx| {
            tx.write("by-root", n.to_string())?;
            tx.write(format!("made/{n}"), vec![b'x'; 10_000])
        })
        .unwrap();
    }
    // The owner waits meanwhile.
    let mut worker = as_user(test, root);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(worker.so_far(), Vec::<String>::new());
    store.close().unwrap();
    worker.wait_for("ready");
    worker.tell("go");
    worker.wait_for("counted");
    worker.end();
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), "100");
    fs::set_permissions(root.join(".atomtree"), fs::Permissions::from_mode(0o755)).unwrap();
    refused(options().allow_owner(USER), ErrorKind::Permission, "0700");
}

/// Goal: what root leaves that is killed is not damage: the owner is told that it may not, or gets on; and once root has
/// opened and closed the store again, and has given it back where that was not enough, the owner gets on. Method: root is a child that is killed while it commits.
#[test]
fn what_root_leaves_that_is_killed_root_puts_in_order() {
    let test = "processes::owners::what_root_leaves_that_is_killed_root_puts_in_order";
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
    let count = || {
        let mut user = as_user(test, root);
        let (said, status) = {
            user.tell("go");
            user.stop();
            user.ended()
        };
        (said.last().cloned().unwrap_or_default(), said.join("\n"), status)
    };
    assert_eq!(count().0, "counted");
    let mut other = Worker::start(test, root, "root", &[]);
    other.wait_for("ready");
    std::thread::sleep(Duration::from_millis(100));
    other.kill();
    let (last, said, _) = count();
    println!("behind a killed root the owner is told: {said}");
    let is_on = last == "counted";
    assert!(is_on || said.contains("Permission denied"), "{said}");
    options().allow_owner(USER).open(root).unwrap().close().unwrap();
    let mut ended = count();
    if ended.1.contains("Permission denied") {
        println!("behind root that has opened and closed it: {}", ended.1);
        shell(&format!("chown -R {USER}:{USER} '{}'", root.join(".atomtree").display()));
        ended = count();
    }
    assert_eq!((ended.0.as_str(), ended.2), ("counted", Some(0)), "{}", ended.1);
    assert_eq!(fs::read_to_string(root.join("counter")).unwrap(), if is_on { "150" } else { "100" });
}
