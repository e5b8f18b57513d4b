//! Kills while a store is being created, and processes that create one at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atomtree::vfs::faults::{Faults, Verb, fail_nothing};
use atomtree::vfs::os::Os;
use atomtree::{ErrorKind, Inspection, Options, Store};

use super::operations::{deadly, lines_of};
use super::{Speaking, say};
use crate::basics::{Random, child, child_root, commit, small, tree};

/// At chosen operations alone; those at random instants come on top.
pub(super) const KILLS: u64 = 60;

/// A store was created here in the end: it works, and nothing else has come.
fn check_created(root: &Path, label: &str) {
    let store = Store::open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    store.close().unwrap();
    assert!(!root.join(".atomtree.new").exists(), "{label}");
    let names: Vec<_> = tree(root).into_keys().collect();
    assert_eq!(names, [Path::new("a"), Path::new("user's file")], "{label}");
    let verification = Inspection::open(root, &Options::new()).unwrap().verify().unwrap();
    assert!(verification.problems.is_empty(), "{label}: {verification:?}");
}

/// Goal: a kill before any operation of a store's creation leaves either no store or a whole one, and the next open
/// works; even after kill upon kill. Method: every operation in turn, in a fresh directory; then, in the same directory,
/// one that was chosen at random, of the creation that begins anew or of the open.
#[test]
fn a_kill_at_any_operation_of_the_creation_is_harmless() {
    if let Some(root) = child_root() {
        let chosen = deadly();
        chosen.enter("create");
        let store = small().vfs(chosen.vfs()).open(root).unwrap();
        say(&format!("{}opened", lines_of(&chosen.counts())));
        return drop(store);
    }
    let mut random = Random::from_environment();
    let mut verbs = BTreeMap::new();
    let (mut killed, mut operations) = (0_u64, 0);
    for number in 1.. {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::write(root.join("user's file"), "stays").unwrap();
        let mut run = |number: u64| {
            let speaking = Speaking::start(
                child("kills::creation::a_kill_at_any_operation_of_the_creation_is_harmless", root)
                    .env("ATOMTREE_TARGETS", format!("create:any:{number}")),
            );
            let (said, status) = speaking.end();
            let last = said.last().map(|line| line.split(' ').collect::<Vec<_>>());
            match last.as_deref() {
                Some(["killed", _, verb, _]) => {
                    *verbs.entry((*verb).to_owned()).or_insert(0) += 1;
                    killed += 1;
                    true
                }
                Some(["opened"]) if status.success() => false,
                _ => panic!("operation {number}: {said:#?}"),
            }
        };
        let is_killed = run(number);
        if is_killed {
            operations = number;
            run(1 + random.below(number));
        }
        check_created(root, &format!("killed at operation {number}"));
        if !is_killed {
            break;
        }
    }
    println!("{killed} kills at {operations} operations of the creation: {verbs:?}");
    assert!(killed >= KILLS, "only {killed} kills");
    for verb in ["CreateDir", "CreateFile", "WriteAt", "SyncData", "SyncDir", "Rename"] {
        assert!(verbs.contains_key(verb), "no kill at a {verb}: {verbs:?}");
    }
}

/// Goal: the same at any instant, that is, in the middle of a system call as well. Method: children killed at random
/// instants from their start, in fresh directories and in directories where others had been killed before.
#[test]
fn a_kill_during_creation_is_harmless() {
    if let Some(root) = child_root() {
        let store = small().segment_bytes(1 << 20).log_bytes_max(4 << 20).open(root).unwrap();
        say("opened");
        std::thread::sleep(Duration::from_secs(5));
        drop(store);
        return;
    }
    let mut random = Random::from_environment();
    let mut stages = BTreeMap::new();
    for round in 0..25 {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::write(root.join("user's file"), "stays").unwrap();
        for _ in 0..=random.below(3) {
            let mut child = child("kills::creation::a_kill_during_creation_is_harmless", root)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Waits for the first name of the store, so that the instants lie within its creation.
            let start = Instant::now();
            while !root.join(".atomtree.new").exists() && !root.join(".atomtree").exists() {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(random.below(6_000)));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!text.contains("panicked"), "{text}");
            let stage = match (root.join(".atomtree").exists(), text.contains("opened")) {
                (false, _) => "unfinished",
                (true, false) => "whole",
                (true, true) => "opened",
            };
            *stages.entry(stage).or_insert(0) += 1;
        }
        check_created(root, &format!("round {round}"));
    }
    println!("killed while {stages:?}");
    assert!(stages.contains_key("unfinished"), "no kill hit the creation: {stages:?}");
}

/// Goal: who finds no store, and then that another has just made one, leaves nothing behind. Method: a store is made just
/// before the first name of another.
#[test]
fn a_store_made_by_another_meanwhile_is_opened() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let faults = Faults::new(Arc::new(Os), fail_nothing());
    let (is_made, made_at) = (AtomicBool::new(false), root.to_owned());
    faults.set_rule(Arc::new(move |call| {
        if call.verb == Verb::CreateDir && !is_made.swap(true, Ordering::Relaxed) {
            let store = small().open(&made_at).unwrap();
            commit(&store, |tx| tx.write("by another", "x")).unwrap();
            store.close().unwrap();
        }
        None
    }));
    let store = small().vfs(Arc::new(faults)).open(root).unwrap();
    assert!(!root.join(".atomtree.new").exists());
    assert_eq!(commit(&store, |tx| tx.write("a", "1")).unwrap().tx().0, 2);
    store.close().unwrap();
}

/// Goal: several processes that open a fresh tree at once agree on one store: one has it, the others are told that it
/// is locked, and all of them get it in the end. Method: four children that try until they have committed once.
#[test]
fn processes_that_create_at_once_agree() {
    if let Some(root) = child_root() {
        let number = std::env::var("ATOMTREE_NUMBER").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match small().open(&root) {
                Ok(store) => {
                    commit(&store, |tx| tx.write(format!("f{number}"), "x")).unwrap();
                    return store.close().unwrap();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Locked, "{error}"),
            }
            assert!(Instant::now() < deadline, "starved");
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    for _ in 0..5 {
        let scratch = tempfile::tempdir().unwrap();
        let children: Vec<_> = (0..4)
            .map(|number| {
                child("kills::creation::processes_that_create_at_once_agree", scratch.path())
                    .env("ATOMTREE_NUMBER", number.to_string())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
        }
        let inspection = Inspection::open(scratch.path(), &Options::new()).unwrap();
        assert_eq!(inspection.log(10).unwrap().len(), 4);
        assert!(!scratch.path().join(".atomtree.new").exists());
    }
}
