//! Crashes before every operation on the storage, in commits, checkpoints, closes and recoveries, on a simulated
//! machine.

use std::sync::atomic::{AtomicU64, Ordering};

use atomtree_tests::crash::{Case, Effort, explore, replay};
use atomtree_tests::foreign::{Scenario, Tally};
use atomtree_tests::history::History;

/// How many histories each ordinary run explores; `ATOMTREE_CRASH_HISTORIES=first..end` explores others.
fn histories(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("ATOMTREE_CRASH_HISTORIES") else { return 0..count };
    let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Goal: whatever operation a crash hits, in a history or in recovery, each transaction is whole or absent, and there if
/// it was acknowledged. Method: generated histories, each moment killed and cut several ways, and recoveries of a sample
/// of those crashed in turn, twice deep.
#[test]
fn every_crash_leaves_whole_transactions() {
    let visited = AtomicU64::new(0);
    let next = AtomicU64::new(0);
    let range = histories(40);
    let effort = Effort { cuts: 4, nested_per_mille: 60, nested_again_per_mille: 2 };
    next.store(range.start, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        break;
                    }
                    visited.fetch_add(explore(&History::generate(seed), effort), Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} crash states visited", visited.into_inner());
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
