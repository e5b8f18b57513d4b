//! Transactions on directories: crashes, failing calls, and edits by other programs, on a simulated machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atomtree::ErrorKind;
use atomtree::vfs::faults::{Call, Verb};
use atomtree::vfs::sim::Sim;
use atomtree_tests::crash::{
    Effort, Watch, check_stage_is_empty, commit, machine, open, quarantine_of, tree_of,
};
use atomtree_tests::failing::fail_calls;
use atomtree_tests::foreign_dirs::{Scenario, Tally};
use atomtree_tests::history::{DIRECTORIES, Entry, History, Operation, Tree};

use crate::crash_points::{explore_all, sum_over};

/// The seeds in the environment variable, as `first..end`, or so many.
fn seeds(variable: &str, count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var(variable) else { return 0..count };
    let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Goal: what another program does to directories that transactions move, replace and remove is never lost, whenever it
/// does it, and nothing else is disturbed. Method: generated scenarios; one edit at a random operation of a commit, a
/// checkpoint or a recovery, most of them with a crash behind it. `ATOMTREE_FOREIGN_DIRS=first..end` runs others, and
/// prints all that fail.
#[test]
fn edits_of_directories_by_other_programs_are_kept() {
    let is_chosen = std::env::var_os("ATOMTREE_FOREIGN_DIRS").is_some();
    let tally = std::sync::Mutex::new(Tally::default());
    let failed = sum_over(seeds("ATOMTREE_FOREIGN_DIRS", 6000), |seed| {
        match std::panic::catch_unwind(|| Scenario::judge(seed))
            .unwrap_or_else(|_| Err(format!("{seed} panicked")))
        {
            Ok(one) => {
                tally.lock().unwrap().add(&one);
                0
            }
            Err(reason) if is_chosen => {
                println!("{reason}\n=====");
                1
            }
            Err(reason) => panic!("{reason}"),
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("{tally:#?}");
    assert_eq!(failed, 0, "scenarios failed");
    assert_eq!(tally.stuck, 0, "no edit stands in the way of a commit for good");
}

/// Goal: whatever operation a crash hits, in a history of directories or in recovery, each transaction is whole or
/// absent. Method: as `crash_points::every_crash_leaves_whole_transactions`, three crashes in a row, some of the
/// histories settled, or without exchange. `ATOMTREE_DIRECTORY_CRASHES=first..end` runs others.
#[test]
fn every_crash_leaves_whole_transactions_on_directories() {
    let effort = Effort { cuts: 2, nested_per_mille: [60, 8, 2] };
    let range = seeds("ATOMTREE_DIRECTORY_CRASHES", 40);
    explore_all(DIRECTORIES + range.start..DIRECTORIES + range.end, effort);
}

/// Goal: a call that fails, once or from then on, leaves whole transactions and a truthful error, and the next open
/// mends everything. Method: a sample of all calls of histories of directories, and of the recoveries of crashed ones,
/// fails with each of three errors. `ATOMTREE_DIRECTORY_FAULTS=first..end` runs others.
#[test]
fn a_failing_call_leaves_whole_transactions_on_directories() {
    let range = seeds("ATOMTREE_DIRECTORY_FAULTS", 60);
    let visited = sum_over(range, |seed| fail_calls(&History::generate(DIRECTORIES + seed), 40));
    println!("{visited} failures");
}

/// A history's machine with these files on it, and an exchange of names or none.
fn machine_with(files: &[&str], can_exchange: bool) -> (History, Sim) {
    let mut history = History::generate(0);
    history.settings.can_exchange = can_exchange;
    history.settings.inline_bytes_max = 1 << 20;
    let file = |path: &&str| ((*path).to_owned(), Entry::file(path.as_bytes().to_vec(), 0o644));
    history.initial = files.iter().map(file).collect();
    let machine = machine(&history);
    (history, machine)
}

/// A watch that lets another program act once, before the first call of this verb after it is armed.
fn watch_with(sim: &Sim, verb: Verb, act: fn(&Sim)) -> (Arc<Watch>, Arc<AtomicBool>) {
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&is_armed);
    let meddle = move |sim: &Sim, _: u64, call: &Call| {
        if call.verb == verb && armed.swap(false, Ordering::Relaxed) {
            act(sim);
        }
        None
    };
    (Watch::new(sim, Some(Box::new(meddle))), is_armed)
}

/// Goal: a directory that goes before the transaction that moves or removes it commits is a conflict, so that whoever
/// tries again on conflicts does. Method: another program removes it, or renames it away, between the two.
#[test]
fn a_directory_that_went_before_the_commit_is_a_conflict() {
    for operation in [Operation::Rename("d", "e"), Operation::RemoveDirAll("d")] {
        for act in
            [|sim: &Sim| sim.remove("/tree/d"), |sim: &Sim| assert!(sim.rename("/tree/d", "/tree/away"))]
        {
            let (history, sim) = machine_with(&["d/x", "d/in/y"], true);
            let store = open(Arc::new(sim.clone()), &history.settings).expect("a new store opens");
            let mut transaction = store.begin().expect("nothing fails");
            operation.perform(&mut transaction).expect("it is there");
            act(&sim);
            let before = tree_of(&sim);
            let error = transaction.commit().expect_err("it has gone");
            assert_eq!(error.kind(), ErrorKind::Conflict, "{operation:?}: {error}");
            assert_eq!(tree_of(&sim), before, "{operation:?}");
        }
    }
}

/// Goal: without an exchange of names, an attempt that failed because the directory went leaves nothing in `stage/`.
/// Method: another program removes the directory just before the rename that replaces a file in it.
#[test]
fn a_directory_that_went_under_a_replacement_leaves_nothing_in_stage() {
    let (history, sim) = machine_with(&["d/x", "d/y"], false);
    let (watch, is_armed) = watch_with(&sim, Verb::RenameOver, |sim| sim.remove("/tree/d"));
    let store = open(watch.vfs(), &history.settings).expect("a new store opens");
    is_armed.store(true, Ordering::Relaxed);
    commit(&store, &[Operation::Write("d/x", b"ours".to_vec())]).expect("the directory is made again");
    store.close().expect("nothing fails");
    check_stage_is_empty(&sim).expect("a clean close leaves nothing in stage");
    let expected = Tree::from([
        ("d".to_owned(), Entry::Dir(0o755)),
        ("d/x".to_owned(), Entry::file(b"ours".to_vec(), 0o644)),
    ]);
    assert_eq!(tree_of(&sim), expected);
}

/// Goal: without an exchange of names, a power cut after a replacement does not take what another program had put there
/// since the check, and synced. Method: it does so while the log is being synced, at a name that exists and at one that
/// does not; then the power is cut in many ways.
#[test]
fn what_is_displaced_without_an_exchange_survives_a_power_cut() {
    let acts: [(&'static str, fn(&Sim)); 2] = [
        ("a", |sim| sim.replace_file("/tree/a", b"theirs")),
        ("new", |sim| sim.write_file("/tree/new", b"theirs")),
    ];
    for (path, act) in acts {
        let (history, sim) = machine_with(&["a", "b"], false);
        let (watch, is_armed) = watch_with(&sim, Verb::SyncData, act);
        let store = open(watch.vfs(), &history.settings).expect("a new store opens");
        // The first commit after an open syncs more than its own records.
        commit(&store, &[Operation::Write("b", b"before".to_vec())]).expect("nothing is in the way");
        is_armed.store(true, Ordering::Relaxed);
        let receipt = commit(&store, &[Operation::Write(path, b"ours".to_vec())]).expect("it is displaced");
        assert_eq!(receipt.displaced().len(), 1, "{path}");
        for seed in 0..300 {
            let cut = sim.power_cut(seed);
            open(Arc::new(cut.clone()), &history.settings).expect("recovery succeeds");
            let theirs = Entry::file(b"theirs".to_vec(), 0o644);
            let is_there =
                tree_of(&cut).values().chain(quarantine_of(&cut).values()).any(|one| *one == theirs);
            assert!(is_there, "{path}, cut {seed}: {:?} {:?}", tree_of(&cut), quarantine_of(&cut));
        }
    }
}

/// Goal: a directory that another program takes away between two calls of an apply stops nothing. Method: the scenario
/// in which it went between being looked at and being given its mode.
#[test]
fn a_directory_that_goes_before_it_is_closed_stops_nothing() {
    assert_eq!(Scenario::judge(321_756).unwrap().stuck, 0);
}

/// Goal: recovery takes no file of its own for what was moved. Method: the scenario in which what was moved is gone, and
/// its inode number has been used again for recovery's own lock.
#[test]
fn a_lock_with_the_number_of_what_is_gone_is_left_alone() {
    Scenario::judge(392_079).unwrap();
}
