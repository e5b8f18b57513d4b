//! Every state that steps and events lead to, breadth first, so that a trace is a shortest one.

use super::check::judge;
use super::commit::advance;
use super::environment::{beginnings, events};
use super::{Label, Scenario, State, Step};
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) ends: usize,
    pub(crate) violation: Option<(String, Vec<String>)>,
    /// The limit of states came first.
    pub(crate) is_cut_short: bool,
}

/// Fast, and wide enough that no two of some ten million states meet.
struct Fingerprint(u128);

impl Fingerprint {
    fn add(&mut self, word: u64) {
        let mixed = (self.0 ^ u128::from(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        self.0 = mixed ^ mixed >> 67;
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0 as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }
}

pub(crate) fn fingerprint(state: &State) -> u128 {
    let mut hasher = Fingerprint(0x243F_6A88_85A3_08D3_1319_8A2E_0370_7344);
    state.hash(&mut hasher);
    hasher.0
}

fn steps(run: &Scenario, state: &State) -> Vec<(Label, State)> {
    let threads = (0..state.processes.len()).flat_map(|at| [(at, 0), (at, 1)]);
    threads.filter_map(|(at, thread)| advance(run, state, at, thread)).collect()
}

fn successors(run: &Scenario, state: &State) -> Vec<(Label, State)> {
    let mut next = steps(run, state);
    next.extend(beginnings(run, state));
    next.extend(events(run, state));
    for (_, state) in &mut next {
        state.disk.forget_nameless();
    }
    next
}

fn is_stuck(run: &Scenario, state: &State) -> bool {
    let waits = |thread: &super::Thread| thread.step != Step::Rest;
    steps(run, state).is_empty() && state.processes.iter().any(|process| process.threads.iter().any(waits))
}

pub(crate) fn explore(run: &Scenario, most: usize) -> Outcome {
    let start = State::new(run);
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut judged = HashSet::new();
    let mut parents: Vec<(u32, u16)> = vec![(0, 0)];
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((index, state)) = queue.pop_front() {
        let problem = state
            .problem
            .map(str::to_owned)
            .or_else(|| is_stuck(run, &state).then(|| "stuck".to_owned()))
            .or_else(|| judge(run, &state, &mut judged));
        let is_cut_short = parents.len() > most;
        if problem.is_some() || is_cut_short {
            let violation = problem.map(|problem| (problem, trace(run, &parents, index)));
            return Outcome { states: parents.len(), ends: judged.len(), violation, is_cut_short };
        }
        for (choice, (_, state)) in successors(run, &state).into_iter().enumerate() {
            if seen.insert(fingerprint(&state)) {
                parents.push((index, choice as u16));
                queue.push_back((parents.len() as u32 - 1, state));
            }
        }
    }
    Outcome { states: parents.len(), ends: judged.len(), violation: None, is_cut_short: false }
}

/// Goes the way to a state once more, and tells it.
fn trace(run: &Scenario, parents: &[(u32, u16)], mut index: u32) -> Vec<String> {
    let mut choices = Vec::new();
    while index != 0 {
        let (parent, choice) = parents[index as usize];
        choices.push(choice);
        index = parent;
    }
    let mut state = State::new(run);
    let mut lines = Vec::new();
    for choice in choices.into_iter().rev() {
        let (label, next) = successors(run, &state).swap_remove(usize::from(choice));
        lines.push(label.to_string());
        state = next;
    }
    lines
}
