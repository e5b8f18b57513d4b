//! Workloads with other processes that have the same store open: they commit, wait, die and fail.

use super::{SETTINGS, bytes, file, of};
use crate::crash::Crash;
use crate::history::{Operation as Op, Settings};
use crate::workload::{Act, Workload};

const WITHOUT_EXCHANGE: Settings = Settings { can_exchange: false, ..SETTINGS };

pub(super) fn all() -> Vec<Workload> {
    [turns(), waits(), deaths(), poisoned()].concat()
}

/// What one writes to the name.
fn write(name: &'static str, length: usize) -> Vec<Op> {
    vec![Op::Write(name, bytes(length))]
}

/// One after another, each reading what the other has added.
fn turns() -> Vec<Workload> {
    let initial = [("a", file(300)), ("b", file(20))];
    let acts = vec![
        Act::Commit(write("a", 50)),
        Act::Join,
        Act::Beside(write("b", 60)),
        Act::Look,
        Act::Commit(write("c", 70)),
        Act::SettlesBeside,
        Act::Commit(write("a", 80)),
        Act::Beside(write("c", 90)),
        Act::Checkpoint,
        Act::Beside(write("c", 91)),
        Act::Reopen,
        Act::Beside(write("b", 92)),
        Act::Rejoin,
        Act::Checkpoint,
        Act::OpenTwice,
        Act::Leave,
        Act::Commit(write("b", 100)),
    ];
    // So much that the log goes on in other segments.
    let fills =
        |number: usize| [Act::Beside(write("fill", 15_000 + number)), Act::Commit(write("a", 40 + number))];
    let long =
        [Act::Join].into_iter().chain((0..12).flat_map(fills)).chain([Act::Rejoin, Act::Leave]).collect();
    let own =
        |number: usize| [Act::Commit(write("fill", 15_000 + number)), Act::Beside(write("a", 40 + number))];
    let own = [Act::Join].into_iter().chain((0..12).flat_map(own)).chain([Act::Rejoin]).collect();
    vec![
        of("turns", SETTINGS, &initial, acts.clone()),
        of("turns without exchange", WITHOUT_EXCHANGE, &initial, acts),
        of("turns over segments", SETTINGS, &initial, long),
        of("turns over own segments", SETTINGS, &initial, own),
    ]
}

/// Somebody has a lock at first.
fn waits() -> Vec<Workload> {
    let initial = [("a", file(300))];
    ["lock", "turn", "checkpoint"]
        .into_iter()
        .map(|lock| {
            let acts = vec![
                Act::Commit(write("b", 10)),
                Act::Waits(lock, write("a", 50)),
                Act::Waits(lock, write("a", 51)),
                Act::Reopen,
            ];
            of(&format!("a wait for {lock}"), SETTINGS, &initial, acts)
        })
        .collect()
}

/// Somebody dies in a commit, and this process goes on, or opens the store then.
fn deaths() -> Vec<Workload> {
    let initial = [("a", file(300)), ("b", file(20)), ("d", file(30))];
    let mut all = Vec::new();
    for settings in [SETTINGS, WITHOUT_EXCHANGE] {
        for at in 1..16 {
            let dies = || Act::DiesBeside([write("a", 50), write("b", 60), write("new", 8)].concat(), at);
            let goes_on = vec![
                Act::Commit(write("d", 40)),
                dies(),
                Act::Commit(write("c", 70)),
                Act::Join,
                dies(),
                Act::Checkpoint,
                Act::Beside(write("c", 71)),
                dies(),
                Act::Rejoin,
                Act::Commit(write("c", 72)),
                Act::Leave,
                Act::Crash(Crash::Kill),
            ];
            all.push(of(&format!("a death at {at}"), settings, &initial, goes_on));
        }
    }
    all
}

/// A sync of somebody else fails, and somebody recovers the store for all.
fn poisoned() -> Vec<Workload> {
    let initial = [("a", file(300)), ("b", file(20)), ("d", file(30))];
    let poisons = || Act::PoisonsBeside([write("a", 50), write("b", 60)].concat());
    let by_another = vec![
        Act::Commit(write("d", 40)),
        poisons(),
        Act::Join,
        Act::Commit(write("c", 70)),
        Act::Beside(write("a", 70)),
        // A checkpoint of this process would be a recovery, and that still syncs through the root's old descriptor,
        // which has the failure to tell once more.
        Act::Crash(Crash::Kill),
    ];
    let by_itself = vec![
        Act::Join,
        Act::Beside(write("d", 40)),
        poisons(),
        Act::Rejoin,
        Act::Beside(write("c", 70)),
        Act::Commit(write("a", 70)),
        Act::Reopen,
    ];
    [SETTINGS, WITHOUT_EXCHANGE]
        .into_iter()
        .flat_map(|settings| {
            [
                of("poisoned, recovered by another", settings, &initial, by_another.clone()),
                of("poisoned, recovered by itself", settings, &initial, by_itself.clone()),
            ]
        })
        .collect()
}
