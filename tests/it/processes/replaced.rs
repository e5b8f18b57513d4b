//! A store, or one of its locks, that goes or gives way to another while processes have it open.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use atomtree::{Checkpoints, ErrorKind, Options, Store};

use super::{Worker, ready};
use crate::basics::{child_root, commit, inspect, kind_of, shell, small};
use crate::kills::say;

fn options() -> Options {
    small().checkpoints(Checkpoints::Manual)
}

/// Every file at and below a path: what it holds and when it was changed last. Of directories that they are there, because
/// what is staged comes and goes.
pub(super) fn snapshot(top: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut unseen = vec![top.to_owned()];
    while let Some(path) = unseen.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let seen = if metadata.is_dir() {
            unseen.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            (Vec::new(), 0, 0)
        } else {
            (fs::read(&path).unwrap_or_default(), metadata.mtime(), metadata.mtime_nsec())
        };
        found.insert(path, seen);
    }
    found
}

/// What differs between two snapshots, for people.
pub(super) fn changes(before: &Path, was: &BTreeMap<PathBuf, (Vec<u8>, i64, i64)>) -> Vec<PathBuf> {
    let is = snapshot(before);
    was.keys().chain(is.keys()).filter(|path| was.get(*path) != is.get(*path)).cloned().collect()
}

/// For children: a member that commits `a`, and then tries everything once it is told to.
fn member(root: &Path) {
    let store = options().open(root).unwrap();
    commit(&store, |tx| tx.write("a", "from the member")).unwrap();
    ready();
    let mut staged = store.begin().unwrap();
    let written = staged.write("a", "into the void");
    say(&format!("commit {}", kind_of(written.and_then(|()| staged.commit())).code()));
    say(&format!("again {}", kind_of(commit(&store, |tx| tx.write("a", "into the void"))).code()));
    say(&format!("checkpoint {}", kind_of(store.checkpoint()).code()));
    say(&format!("close {}", kind_of(store.close()).code()));
}

/// Ways to take a store, or its lock, from under those who have it open.
const WAYS: [(&str, &str); 8] = [
    ("the lock removed", "rm .atomtree/lock"),
    ("the lock replaced", "cp -p .atomtree/lock new; mv new .atomtree/lock"),
    ("the store renamed", "mv .atomtree aside"),
    ("the store removed", "rm -r .atomtree"),
    ("a copy of the store in its place", "cp -a .atomtree new; mv .atomtree aside; mv new .atomtree"),
    ("an exchange with a copy", "cp -a .atomtree aside; mv .atomtree new; mv aside .atomtree; mv new aside"),
    ("the log's directory removed, and the store with it", "rm -r .atomtree/wal; rm -r .atomtree"),
    ("a symlink in its place", "mv .atomtree aside; ln -s aside .atomtree"),
];

/// Goal: a lock file or a whole store that is removed, renamed or replaced under living processes is noticed at the next
/// commit of each, and neither the tree nor anything of the old store or the new one is written. Method: two members, a child
/// and this process, with what they committed not settled; each tries to commit, to make a checkpoint and to close.
#[test]
fn what_was_taken_away_is_noticed_and_not_written_to() {
    let test = "processes::replaced::what_was_taken_away_is_noticed_and_not_written_to";
    if let Some(root) = child_root() {
        return member(&root);
    }
    for (what, way) in WAYS {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let here = options().open(root).unwrap();
        commit(&here, |tx| tx.write("b", "from here")).unwrap();
        let mut worker = Worker::start(test, root, what, &[]);
        worker.wait_for("ready");
        shell(&format!("cd '{}'; {way}", root.display()));
        let before = snapshot(root);
        let error = commit(&here, |tx| tx.write("b", "into the void")).map(drop).unwrap_err();
        println!("{what}: {error}");
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{what}: {error}");
        assert!(error.to_string().contains("removed or replaced"), "{what}: {error}");
        worker.tell("go");
        let said = worker.end();
        let expected = ["commit poisoned", "again poisoned", "checkpoint poisoned", "close poisoned"];
        assert_eq!(said, expected, "{what}");
        assert_eq!(kind_of(here.close()), ErrorKind::Poisoned, "{what}");
        assert_eq!(changes(root, &before), Vec::<PathBuf>::new(), "{what}: something was written");
        if !root.join(".atomtree").is_dir() || way.contains("ln -s") {
            continue;
        }
        // What is left is a store like any other; a copy asks whether it was meant.
        let is_copy = way.contains("cp -a");
        if is_copy {
            assert_eq!(kind_of(options().open(root)), ErrorKind::Unsupported, "{what}");
        }
        let store = options().adopt(is_copy).open(root).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "from the member");
        commit(&store, |tx| tx.write("a", "next")).unwrap();
        store.close().unwrap();
        assert!(inspect(root).verify().unwrap().problems.is_empty(), "{what}");
    }
}

/// Goal: the files that are not the commit lock's own are noticed as well, or are harmless: what is committed by those who
/// have the old one and those who have the new one is all there. Method: each is removed under a member; another opens the
/// store, which makes it anew; both commit, make checkpoints, and the new one closes; then the old one is killed.
#[test]
fn a_lesser_lock_that_was_removed_loses_nothing() {
    let test = "processes::replaced::a_lesser_lock_that_was_removed_loses_nothing";
    if let Some(root) = child_root() {
        let store = options().open(root).unwrap();
        commit(&store, |tx| tx.write("old-0", "x")).unwrap();
        say("ready");
        for line in std::io::stdin().lines().map(Result::unwrap) {
            let done = match line.as_str() {
                "checkpoint" => store.checkpoint(),
                name => commit(&store, |tx| tx.write(name, "x")).map(drop),
            };
            say(&format!("{line} {}", done.map_or_else(|error| error.to_string(), |()| "done".into())));
        }
        return;
    }
    for name in ["turn", "checkpoint", "members"] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let mut old = Worker::start(test, root, name, &[]);
        old.wait_for("ready");
        fs::remove_file(root.join(".atomtree").join(name)).unwrap();
        let new = options().open(root).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut done = Vec::new();
        for round in 1..4 {
            let own = format!("old-{round}");
            for order in [own.as_str(), "checkpoint"] {
                old.tell(order);
                let answer = old.wait_for(order).pop().unwrap();
                if answer == format!("{own} done") {
                    done.push(own.clone());
                } else {
                    println!("{name}: {answer}");
                }
            }
            commit(&new, |tx| tx.write(format!("new-{round}"), "x"))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            done.push(format!("new-{round}"));
            new.checkpoint().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        new.close().unwrap_or_else(|error| panic!("{name}: {error}"));
        old.tell("old-last");
        let answer = old.wait_for("old-last").pop().unwrap();
        println!("{name}, after the new one closed: {answer}");
        if answer == "old-last done" {
            done.push("old-last".to_owned());
        }
        old.kill();
        let store = options().open(root).unwrap_or_else(|error| panic!("{name}: {error}"));
        for path in &done {
            assert_eq!(fs::read_to_string(root.join(path)).unwrap(), "x", "{name}: {path}");
        }
        let known: Vec<String> = inspect(root)
            .log(usize::MAX)
            .unwrap()
            .iter()
            .flat_map(|past| {
                past.changes.iter().map(|change| String::from_utf8_lossy(&change.path).into_owned())
            })
            .collect();
        assert_eq!(known.len(), done.len() + 1, "{name}: the history knows {known:?}, done was {done:?}");
        commit(&store, |tx| tx.write("a", "next")).unwrap();
        store.close().unwrap();
        assert!(inspect(root).verify().unwrap().problems.is_empty(), "{name}");
    }
}

/// Goal: a tree that is renamed takes its store along, and nobody who has it open minds; one that is removed, or whose name
/// leads to another tree, is noticed or gone on with where it is now, and the other tree is not written to.
#[test]
fn a_root_that_moves_keeps_its_store() {
    let scratch = tempfile::tempdir().unwrap();
    let [root, moved] = ["root", "moved"].map(|name| scratch.path().join(name));
    fs::create_dir(&root).unwrap();
    let members: [Store; 2] = [options().open(&root).unwrap(), options().open(&root).unwrap()];
    commit(&members[0], |tx| tx.write("a", "1")).unwrap();
    fs::rename(&root, &moved).unwrap();
    commit(&members[1], |tx| tx.write("a", "2")).unwrap();
    // Another tree comes to stand under the old name.
    fs::create_dir(&root).unwrap();
    let other = options().open(&root).unwrap();
    commit(&other, |tx| tx.write("b", "other")).unwrap();
    commit(&members[0], |tx| tx.write("a", "3")).unwrap();
    assert_eq!(fs::read_to_string(moved.join("a")).unwrap(), "3");
    assert!(!root.join("a").exists() && !moved.join("b").exists());
    other.close().unwrap();
    members[0].checkpoint().unwrap();
    fs::remove_dir_all(&moved).unwrap();
    for member in members {
        let error = commit(&member, |tx| tx.write("a", "into the void")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
    assert!(!moved.exists());
}
