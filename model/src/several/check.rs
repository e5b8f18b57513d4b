//! What must hold whenever all processes die, or the power fails, and somebody opens the store: what was acknowledged
//! is there, each transaction whole or not at all, and nothing of another program's is lost.

use super::commit::{Actor, advance};
use super::environment::cuts;
use super::search::fingerprint;
use super::{
    FOREIGN, Life, Logged, Membership, NOTHING, Process, Scenario, Stage, State, Step, Thread, Unseen, cell,
    content, original,
};
use crate::disk::{QUARANTINE, ROOT};
use std::collections::HashSet;

/// The one that opens the store in the end.
const REFEREE: u8 = 15;

fn referee() -> Process {
    Process {
        life: Life::Absent,
        instance: REFEREE,
        member: Membership::None,
        stage: Stage::None,
        told_log: false,
        told_tree: false,
        known: None,
        known_mark: false,
        joined: 0,
        at: 0,
        is_staged: false,
        seen: [0; 2],
        staged_at: 0,
        checkpoints: 0,
        threads: [Thread::REST; 2],
    }
}

/// All ends of this state, and what is wrong with the first that is not as it should be. Ends that were seen before
/// are skipped.
pub(crate) fn judge(run: &Scenario, state: &State, judged: &mut HashSet<u128>) -> Option<String> {
    let alone = |mut end: State, unseen: Unseen| {
        (end.processes, end.commit_lock, end.checkpoint_lock) = (vec![referee()], None, None);
        (end.unseen, end.budget, end.note) = (unseen, super::Budget::default(), 0);
        end
    };
    let dead = alone(state.clone(), state.unseen);
    if !judged.insert(fingerprint(&dead)) {
        return None;
    }
    if let Some(problem) = open_and_check(run, dead) {
        return Some(format!("{problem} (all die, then an open)"));
    }
    for cut in cuts(state) {
        let mut end = alone(cut, Unseen::default());
        end.disk.forget_nameless();
        if !judged.insert(fingerprint(&end)) {
            continue;
        }
        if let Some(problem) = open_and_check(run, end) {
            return Some(format!("{problem} (a power cut, then an open)"));
        }
    }
    None
}

fn open_and_check(run: &Scenario, mut state: State) -> Option<String> {
    for _ in 0..4 {
        let actor = Actor { run, at: 0, thread: 0 };
        actor.start_opening(&mut state);
        while state.processes[0].threads[0].step != Step::Rest && state.problem.is_none() {
            let Some(next) = advance(run, &state, 0, 0) else {
                return Some("an open waits for itself".to_owned());
            };
            state = next.1;
        }
        if let Some(problem) = state.problem {
            return Some(problem.to_owned());
        }
        if state.processes[0].life == Life::Open {
            return violation(run, &state);
        }
    }
    Some("the store cannot be opened".to_owned())
}

fn violation(run: &Scenario, state: &State) -> Option<String> {
    let is_in = |dir, wanted: u8| {
        state.disk.names.children(dir).any(|child| state.disk.node(child.1).content == wanted)
    };
    if !state.disk.is_durable(ROOT) || !state.disk.is_durable(QUARANTINE) {
        return Some("not durable in the end".to_owned());
    }
    match state.edited {
        None if state.disk.names.children(QUARANTINE).next().is_some() => {
            return Some("quarantine without an edit".to_owned());
        }
        Some(_) => {
            let was_seen = state.order.iter().any(|logged| logged.seen.contains(&FOREIGN));
            if !was_seen && !is_in(ROOT, FOREIGN) && !is_in(QUARANTINE, FOREIGN) {
                return Some("the edit is lost".to_owned());
            }
        }
        None => {}
    }
    let tree = [0, 1].map(|name| state.content_at(cell(name)));
    let count = state.order.len();
    let is_possible = |chosen: u32| {
        let mut now = [if run.is_free { NOTHING } else { original(0) }, original(1)];
        for (index, Logged { tx, seen, .. }) in state.order.iter().enumerate() {
            if chosen >> index & 1 == 0 {
                if state.acknowledged >> tx & 1 == 1 {
                    return false;
                }
                continue;
            }
            for name in run.names(*tx) {
                let at = usize::from(name);
                if seen[at] != now[at] && state.edited != Some(name) {
                    return false;
                }
                now[at] = content(*tx, name);
            }
        }
        let is_right = |name: u8| {
            let found = tree[usize::from(name)];
            found == now[usize::from(name)] || state.edited == Some(name) && found == FOREIGN
        };
        is_right(0) && is_right(1)
    };
    if (0..1 << count).any(is_possible) {
        return None;
    }
    Some(format!("not whole: {tree:?} after {:?}, acknowledged {:#b}", state.order, state.acknowledged))
}
