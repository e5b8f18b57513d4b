//! The search: every state that steps, crashes and edits lead to, breadth first, so that a trace is a shortest one.

use crate::check::{edit_is_there, edits, show, violation};
use crate::disk::{Disk, QUARANTINE, ROOT, STAGE};
use crate::plan::{Path, Thought};
use crate::protocol::{Checkpoint, Commit, Edit, Recovery, Rule, Run, State, checkpoint, commit};
use crate::recovery::recover;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The outcome for one machine.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) ends: usize,
    /// The first violation, with the steps that lead there.
    pub(crate) violation: Option<(String, Vec<String>)>,
}

fn steps(run: &Run, state: &State) -> Vec<(&'static str, State)> {
    let mut steps = Vec::new();
    if state.recovery == Recovery::Off {
        steps.extend(commit(run, state));
        steps.extend(checkpoint(run, state));
    } else {
        steps.extend(recover(run, state));
    }
    steps
}

fn crash(state: &State, disk: Disk, records: usize) -> State {
    let mut next = State { disk, ..state.clone() };
    next.log.truncate(records);
    (next.commit, next.checkpoint, next.recovery) = (Commit::Ended, Checkpoint::Idle, Recovery::WriteAgain);
    next.crashes += 1;
    let is_content = matches!(state.edit, Edit::Created | Edit::Put { .. });
    next.is_edit_lost |= is_content && !edit_is_there(&next);
    next
}

fn crashes(run: &Run, state: &State) -> Vec<(&'static str, State)> {
    if state.crashes >= run.crashes || state.is_complete() {
        return Vec::new();
    }
    let mut crashes = vec![("KILL", crash(state, state.disk.clone(), state.log.len()))];
    for disk in state.disk.cuts() {
        for records in state.synced..=state.log.len() {
            let mut next = crash(state, disk.clone(), records);
            next.synced = records;
            crashes.push(("POWER CUT", next));
        }
    }
    crashes
}

fn fingerprint(state: &State) -> u128 {
    let (mut first, mut second) = (DefaultHasher::new(), DefaultHasher::new());
    state.hash(&mut first);
    (1, state).hash(&mut second);
    u128::from(first.finish()) << 64 | u128::from(second.finish())
}

fn successors(run: &Run, state: &State) -> Vec<(&'static str, State)> {
    let mut next = steps(run, state);
    next.extend(edits(run, state));
    next.extend(crashes(run, state));
    for (_, state) in &mut next {
        state.disk.forget_nameless();
    }
    next
}

pub(crate) fn explore(run: &Run) -> Outcome {
    let start = State::new(run);
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut parents: Vec<(u32, u16)> = vec![(0, 0)];
    let mut queue = VecDeque::from([(0, start)]);
    let mut ends = 0;
    while let Some((index, state)) = queue.pop_front() {
        let next = successors(run, &state);
        let mut problem = None;
        if state.is_complete() {
            ends += 1;
            problem = violation(run, &state);
        } else if steps(run, &state).iter().all(|(_, next)| *next == state) {
            problem = Some("stuck".to_owned());
        }
        if let Some(problem) = problem {
            let violation = Some((problem, trace(run, &parents, index)));
            return Outcome { states: parents.len(), ends, violation };
        }
        if state.is_complete() {
            continue;
        }
        for (choice, (_, state)) in next.into_iter().enumerate() {
            if seen.insert(fingerprint(&state)) {
                parents.push((index, choice as u16));
                queue.push_back((parents.len() as u32 - 1, state));
            }
        }
    }
    Outcome { states: parents.len(), ends, violation: None }
}

/// Goes the way to a state once more, and tells it.
fn trace(run: &Run, parents: &[(u32, u16)], mut index: u32) -> Vec<String> {
    let mut choices = Vec::new();
    while index != 0 {
        let (parent, choice) = parents[index as usize];
        choices.push(choice);
        index = parent;
    }
    let mut state = State::new(run);
    let mut lines = vec![format!("start: {}", tree(&state.disk))];
    for choice in choices.into_iter().rev() {
        let (label, next) = successors(run, &state).swap_remove(usize::from(choice));
        let is_quiet = next.disk.names == state.disk.names && !label.starts_with("POWER");
        lines.push(if is_quiet { label.to_owned() } else { format!("{label}: {}", tree(&next.disk)) });
        state = next;
    }
    lines
}

fn tree(disk: &Disk) -> String {
    let mut dirs: Vec<_> = [(ROOT, ""), (STAGE, "stage"), (QUARANTINE, "quarantine")]
        .map(|(dir, name)| (dir, name.to_owned()))
        .into();
    let mut names: Vec<String> = Vec::new();
    while let Some((dir, at)) = dirs.pop() {
        for (name, inode) in disk.names.children(dir) {
            let name = if dir == STAGE || dir == QUARANTINE { name.to_string() } else { show(&[name]) };
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            let node = disk.node(inode);
            let what = if node.is_dir { format!("#{inode}") } else { format!("={}", node.content) };
            names.push(format!("{path}{what}({})", node.mode));
            dirs.push((inode, path));
        }
    }
    names.sort();
    names.join(" ")
}

/// A family of machines: each initial tree, each list of transactions.
pub(crate) struct Family {
    pub(crate) crashes: u8,
    pub(crate) edits: bool,
    pub(crate) is_direct: bool,
    pub(crate) omitted: Option<Rule>,
}

/// Builds an initial tree: a script whose outcome is durable, then one whose outcome nobody has synced.
pub(crate) fn initial(synced: &[&str], unsynced: &[(&str, &str)]) -> Disk {
    let mut disk = Disk::new();
    let add = |disk: &mut Disk, text: &str| {
        let (text, content) =
            text.split_once('=').map_or((text, None), |(path, content)| (path, content.parse().ok()));
        let cell = disk.cell(&crate::plan::path(text)).expect("parents come first");
        disk.create(cell, content.is_none(), content.unwrap_or(0), 2);
    };
    synced.iter().for_each(|text| add(&mut disk, text));
    disk.sync();
    for (text, from) in unsynced {
        if from.is_empty() {
            add(&mut disk, text);
        } else {
            let cell = |path: &str| -> Path { crate::plan::path(path) };
            let (from, to) = (disk.cell(&cell(from)), disk.cell(&cell(text)));
            disk.rename(from.expect("it is there"), to.expect("its parent is there"));
        }
    }
    disk
}

/// The machine for these transactions, if they can be done one after the other.
pub(crate) fn machine(family: &Family, start: &Disk, scripts: &[&'static str]) -> Option<Run> {
    let mut thought = Thought::of(start);
    let mut expected = vec![thought.shapes()];
    for (at, script) in scripts.iter().enumerate() {
        thought.run(script, at as u8)?;
        expected.push(thought.shapes());
    }
    Some(Run {
        scripts: scripts.to_vec(),
        omitted: family.omitted,
        is_direct: family.is_direct,
        crashes: family.crashes,
        edits: family.edits,
        start: start.clone(),
        expected,
    })
}

/// Counts by kind of violation, with the shortest example.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) machines: usize,
    pub(crate) states: usize,
    pub(crate) ends: usize,
    pub(crate) violations: BTreeMap<String, (usize, String, Vec<String>)>,
}

impl Tally {
    pub(crate) fn add(&mut self, run: &Run) {
        let outcome = explore(run);
        self.machines += 1;
        self.states += outcome.states;
        self.ends += outcome.ends;
        if let Some((problem, steps)) = outcome.violation {
            let kind = problem.split([':', ',']).next().unwrap_or_default().to_owned();
            let entry = self.violations.entry(kind).or_insert((0, String::new(), Vec::new()));
            entry.0 += 1;
            if entry.2.is_empty() || steps.len() < entry.2.len() {
                entry.1 = format!("{:?}: {problem}", run.scripts);
                entry.2 = steps;
            }
        }
    }
}
