//! Crashes before every operation on the storage, in commits, checkpoints, closes and recoveries, on a simulated
//! machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atomtree_tests::crash::{Case, Effort, commit, explore, machine, open, replay, tree_of};
use atomtree_tests::failing::{chain, fail_every_sync, lose_data_in_background};
use atomtree_tests::foreign::{Scenario, Tally};
use atomtree_tests::history::{Entry, History, Operation, Random, Tree};

/// How many histories each ordinary run explores; `ATOMTREE_CRASH_HISTORIES=first..end` explores others.
fn histories(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("ATOMTREE_CRASH_HISTORIES") else { return 0..count };
    let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Whether somebody asked for other histories than the ordinary ones.
fn is_chosen() -> bool {
    std::env::var_os("ATOMTREE_CRASH_HISTORIES").is_some()
}

/// Goal: whatever operation a crash hits, in a history or in recovery, each transaction is whole or absent, and there if
/// it was acknowledged. Method: generated histories, each moment killed and cut several ways, and recoveries of a sample
/// of those crashed in turn, twice deep.
#[test]
fn every_crash_leaves_whole_transactions() {
    let effort = Effort { cuts: 4, nested_per_mille: 60, nested_again_per_mille: 2 };
    let visited = sum_over(histories(70), |seed| explore(&History::generate(seed), effort));
    println!("{visited} crash states visited");
    // A history that got shorter, or a hook that sees less than it did, shows here.
    assert!(is_chosen() || visited > 200_000, "only {visited} crash states were visited");
}

/// Adds up what `visit` says of each seed, on two threads.
fn sum_over(seeds: std::ops::Range<u64>, visit: impl Fn(u64) -> u64 + Sync) -> u64 {
    let (next, sum) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    sum.fetch_add(visit(seed), Ordering::Relaxed);
                }
            });
        }
    });
    sum.into_inner()
}

/// Goal: a failed sync is final: nothing is acknowledged after it, and opening again tells the truth. Method: each sync
/// of generated histories fails once, losing what it should have written; then each sync of the recovery.
#[test]
fn every_failed_sync_is_final() {
    let visited = sum_over(histories(25), |seed| fail_every_sync(&History::generate(seed)));
    println!("{visited} recoveries after failed syncs");
    assert!(is_chosen() || visited > 30_000, "only {visited} recoveries");
}

/// Goal: data that the disk silently never got is not believed because reads still show it. Method: all unsynced data is
/// lost at a random operation, the machine goes down soon after, and what recovery makes durable is cut again.
#[test]
fn data_lost_in_the_background_is_written_again() {
    let visited = sum_over(histories(150), |seed| lose_data_in_background(&History::generate(seed)));
    println!("{visited} recoveries after lost data");
}

/// Goal: no number of crashes wears the store out. Method: chains of crash, recovery and commits on one machine.
#[test]
fn a_long_chain_of_crashes_loses_nothing() {
    let recovered = sum_over(histories(12), |seed| chain(seed, 200));
    println!("{recovered} recoveries in chains");
}

/// Goal: a torn file is recognised although the log knows its content first without its bytes. Method: a file too large
/// for its original to be logged whole is renamed, which logs the same content whole under the new name; then the power
/// is cut.
#[test]
fn a_torn_file_is_recognised_by_bytes_logged_at_another_name() {
    let content = Random::new(1).bytes(9000);
    let mut history = History::generate(0);
    history.settings.inline_bytes_max = 1 << 20;
    history.initial = Tree::from([("a".into(), Entry::file(content.clone(), 0o644))]);
    let machine = machine(&history);
    let store = open(Arc::new(machine.clone()), &history.settings).expect("a new store opens");
    commit(&store, &[Operation::Rename("a", "b")]).expect("nothing is in the way");
    let expected = Tree::from([("b".into(), Entry::file(content, 0o644))]);
    for seed in 0..100 {
        let cut = machine.power_cut(seed);
        let store = open(Arc::new(cut.clone()), &history.settings).expect("recovery succeeds");
        assert_eq!(store.recovery().superseded, [], "seed {seed}");
        assert_eq!(tree_of(&cut), expected, "seed {seed}");
    }
}

/// Goal: a failure that a test printed can be looked at. Method: replays the case in `ATOMTREE_CRASH_CASE`, if there is
/// one, and prints its trace.
#[test]
fn the_case_in_the_environment_is_replayed() {
    let Ok(case) = std::env::var("ATOMTREE_CRASH_CASE") else { return };
    let case: Case = case.parse().expect("a case as a test printed it");
    match replay(&case) {
        Ok(text) => println!("{text}"),
        Err(text) => panic!("{text}"),
    }
}

/// Goal: what another program wrote and synced is never lost, whenever it did, and nothing else is disturbed. Method:
/// generated scenarios; one edit at a random operation of a commit, a checkpoint or a recovery, most of them with a
/// crash behind it. `ATOMTREE_FOREIGN_EDITS=first..end` runs others.
#[test]
fn edits_by_other_programs_are_kept() {
    let range = match std::env::var("ATOMTREE_FOREIGN_EDITS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
            first.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => 0..6000_u64,
    };
    let mut tally = Tally::default();
    for seed in range {
        match Scenario::judge(seed) {
            Ok(one) => {
                tally.conflicts += one.conflicts;
                tally.in_place += one.in_place;
                tally.quarantined += one.quarantined;
                tally.void += one.void;
            }
            Err(reason) => panic!("{reason}"),
        }
    }
    println!("{tally:?}");
}
