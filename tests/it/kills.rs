//! Processes that are killed: what was acknowledged is there, and no transaction is there in part.
//!
//! The children are this binary, running the test of the same name with `ATOMTREE_CHILD` set. They write a line to
//! standard error for each commit, after it was acknowledged; one `write` each, so that lines are never torn.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use atomtree::{ErrorKind, Inspection, Options, RecoveryReport, Store};

use crate::basics::{Random, child, child_root, commit, small};

/// A log so small that kills meet rotations, full logs and checkpoints often.
fn tiny() -> Options {
    small().log_bytes_max(256 << 10).settle_after(Duration::from_millis(5))
}

/// What a thread's files hold after its commit number `n`: every file of the transaction says which one it is.
fn contents(thread: u64, n: u64) -> Vec<(String, Option<Vec<u8>>)> {
    let text = |bytes: usize| Some(format!("{thread}:{n};").into_bytes().repeat(1 + bytes / 8));
    let odd = n % 2 == 1;
    vec![
        (format!("t{thread}/small"), text(10)),
        (format!("t{thread}/deep/er/medium"), text(1000 * (n % 9) as usize)),
        // Above `inline_bytes_max`, so it travels by reference every seventh time.
        (format!("t{thread}/large"), text(if n.is_multiple_of(7) { 20_000 } else { 100 })),
        (format!("t{thread}/odd"), if odd { text(5) } else { None }),
        (format!("t{thread}/moved-{}", n % 2), text(50)),
        (format!("t{thread}/moved-{}", (n + 1) % 2), None),
    ]
}

/// The number of the commit whose files stand there; 0 if none do.
///
/// # Panics
/// If the files are of different commits.
fn standing(root: &Path, thread: u64) -> u64 {
    let small = fs::read_to_string(root.join(format!("t{thread}/small"))).unwrap_or_default();
    let n = small.split([':', ';']).nth(1).map_or(0, |n| n.parse().unwrap());
    if n == 0 {
        for name in ["large", "odd", "moved-0", "moved-1", "deep/er/medium"] {
            assert!(
                !root.join(format!("t{thread}/{name}")).exists(),
                "thread {thread}: {name} without the rest"
            );
        }
        return 0;
    }
    for (name, expected) in contents(thread, n) {
        let found = fs::read(root.join(&name)).ok();
        assert!(found == expected, "thread {thread}, commit {n}: {name} is of another commit");
    }
    n
}

/// Acknowledges on standard error, in one write.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What a committing child does: as many threads as `ATOMTREE_THREADS` says commit until the process is killed.
fn commit_until_killed(root: &Path) {
    let threads: u64 = std::env::var("ATOMTREE_THREADS").unwrap().parse().unwrap();
    let store = match tiny().inline_bytes_max(8000).open(root) {
        Ok(store) => store,
        Err(error) => panic!("not opened: {error}"),
    };
    say(&format!("opened {}", store.recovery().redone));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let store = &store;
            scope.spawn(move || {
                for n in standing(root, thread) + 1.. {
                    let receipt = commit(store, |tx| {
                        tx.set_label(format!("{thread}:{n}"));
                        for (name, content) in contents(thread, n) {
                            let is_moved = name.contains("moved");
                            match content {
                                Some(content) if is_moved && n > 1 => {
                                    tx.rename(format!("t{thread}/moved-{}", (n + 1) % 2), &name)?;
                                    tx.write(name, content)?;
                                }
                                Some(content) => tx.write(name, content)?,
                                None if !is_moved && n > 1 => tx.remove(name)?,
                                None => {}
                            }
                        }
                        Ok(())
                    })
                    .unwrap();
                    say(&format!("ack {thread} {n} {}", receipt.tx()));
                    if n.is_multiple_of(3) {
                        // One file that all threads change; conflicts are repeated.
                        let count = store.transact(|tx| {
                            let count: u64 = if tx.exists("shared")? {
                                String::from_utf8(tx.read("shared")?).unwrap().parse().unwrap()
                            } else {
                                0
                            };
                            tx.write("shared", (count + 1).to_string())?;
                            Ok(count + 1)
                        });
                        match count {
                            Ok((count, _)) => say(&format!("shared {count}")),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                        }
                    }
                }
            });
        }
    });
}

/// What a killed child had said.
#[derive(Default)]
struct Said {
    acknowledged: BTreeMap<u64, u64>,
    shared: u64,
    is_opened: bool,
}

/// Starts a committing child, kills it after `after` from when it has the store open (or from its start), and returns
/// what it had said.
fn kill_after(root: &Path, threads: u64, after: Duration, from_start: bool) -> Said {
    let mut child: Child = child("kills::acknowledged_commits_survive_kills", root)
        .env("ATOMTREE_THREADS", threads.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Said::default();
    let mut problems = Vec::new();
    let mut take = |line: String, said: &mut Said| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["opened", _] => said.is_opened = true,
            ["ack", thread, n, _] => {
                said.acknowledged.insert(thread.parse().unwrap(), n.parse().unwrap());
            }
            ["shared", count] => said.shared = said.shared.max(count.parse().unwrap()),
            _ => problems.push(line),
        }
    };
    if !from_start && let Some(line) = lines.next() {
        take(line.unwrap(), &mut said);
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        take(line.unwrap(), &mut said);
    }
    assert!(problems.is_empty(), "the child complained: {problems:#?}");
    said
}

/// Goal: whatever a child had acknowledged before SIGKILL is there after recovery, no transaction is mixed, nothing of
/// anybody's is quarantined or reported lost, and this holds crash after crash on one store that is never cleaned.
/// Method: 150 kills at random instants of children with one to eight threads; some are killed while they recover,
/// after which the next child recovers instead of the parent.
#[test]
fn acknowledged_commits_survive_kills() {
    if let Some(root) = child_root() {
        commit_until_killed(&root);
        return;
    }
    let mut random = Random::from_environment();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut shared, mut redone, mut commits) = (0, 0, 0);
    let start = Instant::now();
    for round in 0..150 {
        let threads = 1 + random.below(8);
        let from_start = random.below(4) == 0;
        let after = Duration::from_micros(random.below(if from_start { 40_000 } else { 45_000 }));
        let said = kill_after(root, threads, after, from_start);
        for (thread, n) in said.acknowledged {
            let before = acknowledged.insert(thread, n).unwrap_or(0);
            assert!(n > before, "round {round}: thread {thread} went from {before} to {n}");
        }
        shared = shared.max(said.shared);
        if random.below(3) == 0 {
            continue;
        }
        let context = format!("round {round}, {threads} threads, after {after:?}, opened {}", said.is_opened);
        let store = tiny().open(root).unwrap_or_else(|error| panic!("{context}: {error}"));
        let report = store.recovery().clone();
        redone += report.redone;
        let expected = RecoveryReport { redone: report.redone, voided: report.voided, ..Default::default() };
        assert_eq!(report, expected, "{context}");
        assert!(report.voided <= 1, "{context}: {report:?}");
        for thread in 0..8 {
            let n = standing(root, thread);
            let at_least = acknowledged.get(&thread).copied().unwrap_or(0);
            assert!(n >= at_least, "{context}: thread {thread} has {n}, acknowledged was {at_least}");
            acknowledged.insert(thread, n);
        }
        let count = fs::read_to_string(root.join("shared")).map_or(0, |text| text.parse().unwrap());
        assert!(count >= shared, "{context}: shared {count}, acknowledged was {shared}");
        shared = count;
        commit(&store, |tx| tx.write("between", context.clone())).unwrap();
        commits += 1;
        // Closed cleanly, or left to the next child as it is.
        if random.below(2) == 0 {
            store.close().unwrap();
            assert_eq!(fs::read_dir(root.join(".atomtree/stage")).unwrap().count(), 0, "{context}");
        }
    }
    let total: u64 = acknowledged.values().sum();
    println!("{total} commits, {redone} redone, {:?}", start.elapsed());
    assert!(redone > 0 && commits > 50, "kills hit nothing: {redone} redone");
    check_history(root, &acknowledged);
}

/// The history lists every transaction once, without gaps, newest first, and knows every acknowledged one.
fn check_history(root: &Path, acknowledged: &BTreeMap<u64, u64>) {
    tiny().open(root).unwrap().close().unwrap();
    let inspection = Inspection::open(root, &Options::new()).unwrap();
    let verification = inspection.verify().unwrap();
    assert!(verification.problems.is_empty() && verification.closed, "{verification:?}");
    assert_eq!(inspection.status().unwrap().quarantined, 0);
    let history = inspection.log(usize::MAX).unwrap();
    let numbers: Vec<u64> = history.iter().map(|past| past.tx.0).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).rev().collect();
    assert!(
        numbers == expected,
        "the history has gaps or repeats: {:?}",
        first_difference(&numbers, &expected)
    );
    let mut found: BTreeMap<u64, u64> = BTreeMap::new();
    for past in history.iter().rev() {
        let Some((thread, n)) = past.label.as_deref().and_then(|label| label.split_once(':')) else {
            continue;
        };
        let (thread, n): (u64, u64) = (thread.parse().unwrap(), n.parse().unwrap());
        assert_eq!(n, found.insert(thread, n).unwrap_or(0) + 1, "thread {thread} in its own order");
    }
    for thread in 0..8 {
        // What the last child had committed without living to say so is there as well, in both.
        let n = standing(root, thread);
        assert!(n >= acknowledged.get(&thread).copied().unwrap_or(0), "thread {thread}");
        assert_eq!(found.get(&thread).copied().unwrap_or(0), n, "thread {thread}: history and tree differ");
    }
}

fn first_difference(found: &[u64], expected: &[u64]) -> Option<(usize, u64, u64)> {
    (0..found.len()).find(|&at| found[at] != expected[at]).map(|at| (at, found[at], expected[at]))
}

/// Goal: a kill while a store is being created leaves either no store or a whole one, and the next open works; even
/// after kill upon kill. Method: children killed at random instants from their start, in fresh directories and in
/// directories where others had been killed before.
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
    for _ in 0..25 {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::write(root.join("user's file"), "stays").unwrap();
        for _ in 0..=random.below(3) {
            let mut child = child("kills::a_kill_during_creation_is_harmless", root)
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
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
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
        let store = Store::open(root).unwrap();
        commit(&store, |tx| tx.write("a", "1")).unwrap();
        store.close().unwrap();
        assert!(!root.join(".atomtree.new").exists());
        let names: Vec<_> = crate::basics::tree(root).into_keys().collect();
        assert_eq!(names, [Path::new("a"), Path::new("user's file")]);
        assert!(Inspection::open(root, &Options::new()).unwrap().verify().unwrap().problems.is_empty());
    }
    println!("killed while {stages:?}");
    assert!(stages.contains_key("unfinished"), "no kill hit the creation: {stages:?}");
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
                child("kills::processes_that_create_at_once_agree", scratch.path())
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
