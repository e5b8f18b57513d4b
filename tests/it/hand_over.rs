//! Several processes with one store, on a simulated machine: whatever one is at when another acts, or when it dies, when a
//! sync fails or somebody edits a file, nothing that was acknowledged is lost, and whoever is left goes on.

mod closing;
mod log_ends;
mod originals;

use std::sync::Mutex;

use atomtree_tests::hand_over::{Case, Effort, Visited, check, explore, replay};

use crate::crash_points::sum_over;

/// How many scenarios each ordinary run explores; `ATOMTREE_HAND_OVER_SEEDS=first..end` explores others, thoroughly.
fn seeds(count: u64) -> (std::ops::Range<u64>, bool) {
    let Ok(text) = std::env::var("ATOMTREE_HAND_OVER_SEEDS") else { return (0..count, false) };
    let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
    (first.parse().expect("a number")..end.parse().expect("a number"), true)
}

/// Goal: P1, P2, P4, P5, P7 and P9 among processes. Method: generated scenarios of two and three processes, of which one is
/// interrupted at each of its calls: by a whole act of another, by its death, by a failing sync, or by an edit; then the
/// others go on, are interrupted themselves, and the machine goes down at moments all along.
#[test]
fn whoever_is_interrupted_the_others_go_on() {
    let (seeds, is_chosen) = seeds(60);
    let effort = if is_chosen {
        Effort { interruptions_per_mille: 1000, nested: 3, moments_per_mille: 30 }
    } else {
        Effort { interruptions_per_mille: 250, nested: 1, moments_per_mille: 15 }
    };
    let sum = Mutex::new(Visited::default());
    sum_over(seeds, |seed| {
        let visited = explore(seed, effort);
        *sum.lock().expect("it is held for a moment") += visited;
        visited.runs
    });
    let visited = sum.into_inner().expect("it is held for a moment");
    println!("{visited:#?}");
    assert!(is_chosen || visited.machines > 10_000, "{visited:?}");
}

/// Goal: what two processes leave that die one after the other, each while it clears up, goes with the next checkpoint, also
/// from the directory of one that lives. Method: two cases that the exploration found, with the second death at each
/// operation around the one that left something.
#[test]
fn what_two_deaths_leave_goes_with_the_next_checkpoint() {
    for first in ["62/0:4l/1:12d", "63/0:76c/0:1d"] {
        for call in 25..60 {
            let case: Case = format!("{first}/2:{call}d").parse().expect("a case");
            check(&case).unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
}

/// Goal: who knows of a failed sync goes on once it has been recovered from, also if somebody has died in another recovery
/// since. Method: a case that the exploration found, with that death at each operation of the recovery.
#[test]
fn who_was_poisoned_goes_on_behind_a_recovery_that_was_cut_short() {
    for call in 60..110 {
        let case: Case = format!("13/0:16f/1:{call}d").parse().expect("a case");
        check(&case).unwrap_or_else(|reason| panic!("{reason}"));
    }
}

/// Goal: a case that a failure names can be looked at. Method: `ATOMTREE_HAND_OVER_CASE` replays it.
#[test]
fn a_case_is_replayed() {
    let text = std::env::var("ATOMTREE_HAND_OVER_CASE").unwrap_or_else(|_| "0/0:7d/1:9d".to_owned());
    let case: Case = text.parse().expect("a case");
    assert_eq!(case.to_string(), text);
    match replay(&case) {
        Ok(told) => println!("{told}"),
        Err(reason) => panic!("{reason}"),
    }
}
