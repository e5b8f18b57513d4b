//! Copies of a store, and older copies of it that come to stand in its place while processes have it open.

use std::fs;
use std::path::{Path, PathBuf};

use atomtree::{Checkpoints, ErrorKind, Options};

use super::Worker;
use super::replaced::{changes, snapshot};
use crate::basics::{child_root, commit, inspect, kind_of, shell, small};
use crate::kills::say;

fn options() -> Options {
    small().checkpoints(Checkpoints::Manual)
}

/// Goal: a copy of a tree whose store was open, with transactions that were not settled, is refused unless it is adopted, and
/// then recovers; the original does not mind. The same for a store that was restored beside its tree.
#[test]
fn a_copy_of_an_open_store_is_refused_unless_adopted() {
    let scratch = tempfile::tempdir().unwrap();
    let [root, copy, restored] = ["root", "copy", "restored"].map(|name| scratch.path().join(name));
    fs::create_dir(&root).unwrap();
    let members = [options().open(&root).unwrap(), options().open(&root).unwrap()];
    for (n, member) in members.iter().enumerate() {
        commit(member, |tx| tx.write(format!("by-{n}"), "x")).unwrap();
    }
    let copied = |to: &Path| shell(&format!("cp -a '{}' '{}'", root.display(), to.display()));
    copied(&copy);
    copied(&restored);
    for place in [&copy, &restored] {
        let before = snapshot(place);
        let error = options().open(place).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("--adopt"), "{error}");
        let changed = changes(place, &before);
        assert!(
            changed.iter().all(|path| path.ends_with("lock") || path.ends_with(".atomtree")),
            "a refused open has written {changed:?}"
        );
    }
    // What the copy's stage directories say of living processes is about the original.
    let adopted = options().adopt(true).open(&copy).unwrap();
    let other = options().open(&copy).unwrap();
    commit(&other, |tx| tx.write("by-1", "changed in the copy")).unwrap();
    commit(&adopted, |tx| tx.write("by-0", "changed in the copy")).unwrap();
    other.close().unwrap();
    adopted.close().unwrap();
    assert!(inspect(&copy).verify().unwrap().problems.is_empty());
    for (n, member) in members.into_iter().enumerate() {
        commit(&member, |tx| tx.append(format!("by-{n}"), "y")).unwrap();
        assert_eq!(fs::read_to_string(root.join(format!("by-{n}"))).unwrap(), "xy");
        member.close().unwrap();
    }
}

/// A member that commits when it is told to, and says what came of it.
fn commit_on_demand(root: &Path) {
    let store = options().open(root).unwrap();
    say("ready");
    for line in std::io::stdin().lines().map(Result::unwrap) {
        let result = match line.as_str() {
            "checkpoint" => store.checkpoint(),
            name => commit(&store, |tx| tx.write(name, "x")).map(drop),
        };
        match result {
            Ok(()) => say(&format!("{line} done")),
            Err(error) => say(&format!("{line} {} {error}", error.kind().code())),
        }
    }
    // As it would end if it were killed.
    std::mem::forget(store);
}

/// Ways to put an older copy of the log, in `old`, in its place.
const WAYS: [(&str, &str); 3] = [
    ("written over", "for f in old/*; do cat $f > .atomtree/wal/${f##*/}; done"),
    ("renamed over", "for f in old/*; do mv $f .atomtree/wal/${f##*/}; done"),
    ("the directory exchanged", "mv .atomtree/wal away; mv old .atomtree/wal"),
];

/// Goal: an older copy of the log that is put in the place of the present one under living processes, as a restored backup
/// would, is noticed at the next commit of each of them, and nothing is written: neither into the log nor into the tree.
/// Method: two members commit, the log is copied, they commit again, and the copy is put back in three ways, with a
/// checkpoint between or not.
#[test]
fn an_older_log_under_living_processes_is_noticed() {
    let test = "processes::copies::an_older_log_under_living_processes_is_noticed";
    if let Some(root) = child_root() {
        return commit_on_demand(&root);
    }
    for (what, way) in WAYS {
        for has_checkpoint in [false, true] {
            let label = format!("{what}, with a checkpoint between: {has_checkpoint}");
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path();
            let here = options().open(root).unwrap();
            let mut worker = Worker::start(test, root, &label, &[]);
            worker.wait_for("ready");
            let mut ask = |order: &str| {
                worker.tell(order);
                worker.wait_for(order).pop().unwrap()
            };
            commit(&here, |tx| tx.write("here-1", "x")).unwrap();
            assert_eq!(ask("there-1"), "there-1 done", "{label}");
            shell(&format!("cd '{}'; cp -a .atomtree/wal old", root.display()));
            if has_checkpoint {
                here.checkpoint().unwrap();
            }
            commit(&here, |tx| tx.write("here-2", "x")).unwrap();
            assert_eq!(ask("there-2"), "there-2 done", "{label}");
            shell(&format!("cd '{}'; {way}", root.display()));
            let before = snapshot(root);
            let result = commit(&here, |tx| tx.write("here-3", "x"));
            let there = ask("there-3");
            println!("{label}: {:?}; {there}", result.as_ref().map_err(ToString::to_string));
            // Another log in the old files, or another directory than the one that is open.
            let kind = result.map_err(|error| error.kind()).map(drop);
            let expected = if way.contains("away") { ErrorKind::Poisoned } else { ErrorKind::Corrupt };
            assert_eq!(kind, Err(expected), "{label}");
            assert!(!there.ends_with("done"), "{label}: not noticed there: {there}");
            assert!(kind_of(commit(&here, |tx| tx.write("here-4", "x"))) == ErrorKind::Poisoned, "{label}");
            assert!(!ask("there-4").ends_with("done"), "{label}");
            assert!(here.checkpoint().is_err() && !ask("checkpoint").ends_with("done"), "{label}");
            drop(here);
            // Who has a lock says so in its file.
            let is_lock = |path: &PathBuf| {
                [".atomtree/lock", ".atomtree/checkpoint"].iter().any(|name| path.ends_with(name))
            };
            let written: Vec<PathBuf> =
                changes(root, &before).into_iter().filter(|path| !is_lock(path)).collect();
            assert!(written.is_empty(), "{label}: something was written: {written:?}");
            worker.kill();
        }
    }
}
