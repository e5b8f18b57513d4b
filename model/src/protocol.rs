//! The state of the modelled machine, and the committing process: commit, apply, checkpoint, discard.
//!
//! Each step is what may stand between two crashes. What decides and what acts on it are one step: an operation that
//! replaces nothing fails, and decides again, if another program was quicker.

use crate::disk::{Cell, Disk, EMPTY, FRESH, Inode, QUARANTINE, STAGE};
use crate::plan::{Change, Path, Plan, Shapes, What};
use std::rc::Rc;

/// The rules that can be left out, to see what breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Before a barrier is logged, what is unsettled at or beneath its names is settled.
    SettleBeforeBarrier,
    /// Before a change at or beneath a name of an unsettled barrier is logged, that barrier is settled.
    SettleAfterBarrier,
    /// Before a barrier is logged, the file system is synced.
    SyncBeforeBarrier,
    /// Moved directories are taken from the deepest place first.
    TakeDeepestFirst,
    /// Accepted records are written again and synced before recovery acts.
    WriteRecordsAgain,
    /// Recovery syncs the file system before it acts.
    SyncBeforeRepair,
    /// Recovery knows directories by inode, not by name.
    KnowByInode,
    /// Recovery looks for moved directories before it decides, and in slots.
    LocateInSlots,
    /// It looks for them at their original places.
    LocateAtOriginal,
    /// It looks for them at their final places.
    LocateAtFinal,
    /// It looks for them through other moved directories, wherever those are.
    LocateThroughMoved,
    /// It looks for them through removed directories, wherever those are.
    LocateThroughRemoved,
    /// It looks for them through directories that were staged, but are not in place.
    LocateThroughStaged,
    /// A directory is in place only if those above it are the right ones.
    InPlaceFromTheTop,
    /// If its slot is taken, a moved directory goes to a fresh one.
    FreshSlot,
    /// Goals are reached by path, parents first.
    ParentsFirst,
    /// Recovery syncs the file system before its checkpoint record.
    SyncAfterRepair,
    /// What is in a slot, and all beneath it, is compared before it is discarded.
    CompareBeforeDiscard,
    /// What is in a slot is explained by its own transaction's records: inode numbers are used again.
    ExplainByOwner,
    /// What was discarded to quarantine is durable before the log is retired.
    SyncBeforeRetire,
    /// A direct move that finds its target taken goes through its slot after all.
    DirectGivesWay,
    /// A move is direct only if nothing that comes first changes what is above its source.
    DirectFromUnchanged,
}

/// One machine, with what it is going to do.
pub(crate) struct Run {
    pub(crate) scripts: Vec<&'static str>,
    pub(crate) omitted: Option<Rule>,
    /// A single move to a free name goes there at once.
    pub(crate) is_direct: bool,
    pub(crate) crashes: u8,
    pub(crate) edits: bool,
    pub(crate) start: Disk,
    /// The tree after so many transactions.
    pub(crate) expected: Vec<Shapes>,
}

impl Run {
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.omitted != Some(rule)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Commit(u8),
    /// A checkpoint: so many transactions are settled.
    Settled(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Commit {
    Begin,
    Stage,
    SyncTree,
    Log,
    SyncLog,
    Apply(u8),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Checkpoint {
    Idle,
    SyncTree,
    Record,
    SyncLog,
    Discard,
    SyncSlots,
    Retire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recovery {
    Off,
    WriteAgain,
    SyncTree,
    Locate,
    Goals(u8),
    Checkpoint,
    Complete,
}

/// What another program has done, and what is remembered of it to judge the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Edit {
    None,
    Created,
    Away { at: Path, inodes: Vec<Inode> },
    Put { at: Path, dir: Inode },
    Mode { inode: Inode },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) disk: Disk,
    pub(crate) log: Vec<Record>,
    /// How many records are durable.
    pub(crate) synced: usize,
    pub(crate) plans: Vec<Rc<Plan>>,
    /// The transaction at hand; as many were applied before it.
    pub(crate) at: u8,
    pub(crate) commit: Commit,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) covered: u8,
    pub(crate) settled: u8,
    pub(crate) recovery: Recovery,
    pub(crate) crashes: u8,
    /// How many transactions callers were told of.
    pub(crate) acknowledged: u8,
    pub(crate) edit: Edit,
    /// A power cut took the edit, which its program never synced.
    pub(crate) is_edit_lost: bool,
}

impl State {
    pub(crate) fn new(run: &Run) -> Self {
        Self {
            disk: run.start.clone(),
            log: Vec::new(),
            synced: 0,
            plans: Vec::new(),
            at: 0,
            commit: Commit::Begin,
            checkpoint: Checkpoint::Idle,
            covered: 0,
            settled: 0,
            recovery: Recovery::Off,
            crashes: 0,
            acknowledged: 0,
            edit: Edit::None,
            is_edit_lost: false,
        }
    }

    /// The transactions whose records are still there.
    pub(crate) fn logged(&self) -> impl Iterator<Item = u8> + '_ {
        self.log.iter().filter_map(|record| if let Record::Commit(at) = record { Some(*at) } else { None })
    }

    pub(crate) fn is_complete(&self) -> bool {
        let is_idle = self.commit == Commit::Ended && self.checkpoint == Checkpoint::Idle;
        is_idle
            && (self.recovery == Recovery::Complete || self.recovery == Recovery::Off && self.log.is_empty())
    }
}

/// Slots are names in `stage/`, some for each transaction, then those of recovery.
pub(crate) const RECOVERY_SLOT: u8 = 64;

pub(crate) fn slot(at: u8, change: usize) -> Cell {
    (STAGE, at * 16 + change as u8)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Take(usize),
    Put(usize),
    Mode(usize),
    Out(usize),
}

/// Whether the one move may skip its slot: its target is free, and no change above its source comes first.
fn is_direct(run: &Run, plan: &Plan) -> bool {
    let mut moves = plan.moves();
    let (Some((index, _, from)), None) = (moves.next(), moves.next()) else { return false };
    let is_free = plan.0[index].original.is_none();
    let stays = |change: &Change| {
        !from.starts_with(&change.path) || matches!(change.what, What::Vacated | What::Mode | What::Absent)
    };
    run.is_direct && is_free && (plan.0.iter().all(stays) || !run.has(Rule::DirectFromUnchanged))
}

fn acts(run: &Run, plan: &Plan) -> Vec<Act> {
    let mut takes: Vec<(usize, &Path)> = plan.moves().map(|(index, _, from)| (index, from)).collect();
    takes.sort_by_key(|take| take.1.len());
    if run.has(Rule::TakeDeepestFirst) {
        takes.reverse();
    }
    let mut acts = Vec::new();
    if !is_direct(run, plan) {
        acts.extend(takes.iter().map(|take| Act::Take(take.0)));
    }
    for (index, change) in plan.0.iter().enumerate() {
        if matches!(change.what, What::Moved { .. } | What::MakeDir | What::File { .. }) {
            acts.push(Act::Put(index));
        }
        if change.mode.is_some() && !matches!(change.what, What::File { .. }) {
            acts.push(Act::Mode(index));
        }
    }
    let is_out = |index: &usize| plan.0[*index].what == What::Absent;
    acts.extend((0..plan.0.len()).filter(is_out).map(Act::Out));
    acts
}

/// Carries out one act. False if it has to be done again: something had to make way first.
fn act(run: &Run, disk: &mut Disk, at: u8, plan: &Plan, act: Act) -> bool {
    let (Act::Take(index) | Act::Put(index) | Act::Mode(index) | Act::Out(index)) = act;
    let change = &plan.0[index];
    let own = slot(at, index);
    let Some(cell) = disk.cell(&change.path).or((matches!(act, Act::Take(_))).then_some(own)) else {
        return true;
    };
    let found = disk.child(cell);
    match (act, &change.what) {
        (Act::Take(_), What::Moved { inode, from }) => {
            if let Some(place) = disk.cell(from).filter(|&place| disk.child(place) == Some(*inode)) {
                disk.rename(place, own);
            }
        }
        (Act::Put(_), What::Moved { inode, from }) if is_direct(run, plan) => {
            if let Some(place) = disk.cell(from).filter(|&place| disk.child(place) == Some(*inode)) {
                if !run.has(Rule::DirectGivesWay) {
                    disk.put(place, cell);
                } else if !disk.rename(place, cell) {
                    // Another program was quicker. What it put there must not come to stand at the old name.
                    disk.rename(place, own);
                    return false;
                }
            } else if disk.child(own) == Some(*inode) {
                disk.put(own, cell);
            }
        }
        (Act::Put(_), What::MakeDir) if disk.child(own).is_none() => match found {
            Some(found) if disk.is_dir(found) => {}
            Some(_) => {
                let place = disk.free_name(QUARANTINE, 0);
                disk.rename(cell, place);
                return false;
            }
            None => disk.create(cell, true, EMPTY, FRESH),
        },
        (Act::Put(_), _) => {
            if disk.child(own).is_some() {
                disk.put(own, cell);
            }
        }
        (Act::Mode(_), _) => {
            if let (Some(found), Some((_, after))) = (found, change.mode) {
                disk.set_mode(found, after);
            }
        }
        (Act::Out(_), _) => {
            if found.is_some() {
                disk.rename(cell, own);
            }
        }
        (Act::Take(_), _) => {}
    }
    true
}

fn must_settle(run: &Run, state: &State, plan: &Plan) -> bool {
    let is_in = |names: &[&Path], regions: &[&Path]| {
        names.iter().any(|name| regions.iter().any(|region| name.starts_with(region)))
    };
    let unsettled = &state.plans[usize::from(state.settled)..usize::from(state.at)];
    unsettled.iter().any(|earlier| {
        run.has(Rule::SettleBeforeBarrier) && is_in(&earlier.names(), &plan.barrier_names())
            || run.has(Rule::SettleAfterBarrier) && is_in(&plan.names(), &earlier.barrier_names())
    })
}

/// The next step of the committing process. None if there is none, or it waits for a checkpoint.
pub(crate) fn commit(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let at = state.at;
    let plan = state.plans.get(usize::from(at)).cloned();
    let step = match state.commit {
        Commit::Begin => {
            let script = run.scripts.get(usize::from(at)).filter(|_| state.edit == Edit::None);
            let plan = script.and_then(|script| Plan::new(&state.disk, script, at));
            let Some(plan) = plan else {
                next.commit = Commit::Ended;
                return Some(("no more transactions", next));
            };
            if must_settle(run, state, &plan) {
                return None;
            }
            next.plans.push(Rc::new(plan));
            next.commit = Commit::Stage;
            "begin"
        }
        Commit::Stage => {
            for (index, change) in plan?.0.iter().enumerate() {
                let staged = slot(at, index);
                match change.what {
                    What::File { content } => next.disk.create(staged, false, content, change.mode?.1),
                    What::MakeDir if change.replaced().is_some() => {
                        next.disk.create(staged, true, EMPTY, FRESH);
                    }
                    _ => {}
                }
            }
            next.commit = Commit::SyncTree;
            "stage"
        }
        Commit::SyncTree => {
            if run.has(Rule::SyncBeforeBarrier) && !plan?.barrier_names().is_empty() {
                next.disk.sync();
            }
            next.commit = Commit::Log;
            "sync the tree before a barrier"
        }
        Commit::Log if state.edit != Edit::None => {
            for index in 0..plan?.0.len() {
                next.disk.unlink(slot(at, index));
            }
            next.plans.pop();
            next.commit = Commit::Ended;
            "conflict"
        }
        Commit::Log => {
            next.log.push(Record::Commit(at));
            next.commit = Commit::SyncLog;
            "log"
        }
        Commit::SyncLog => {
            next.synced = next.log.len();
            next.acknowledged = at + 1;
            next.commit = Commit::Apply(0);
            "sync the log: the commit point"
        }
        Commit::Apply(index) => {
            let plan = plan?;
            if let Some(&step) = acts(run, &plan).get(usize::from(index)) {
                if act(run, &mut next.disk, at, &plan, step) {
                    next.commit = Commit::Apply(index + 1);
                }
            } else {
                (next.commit, next.at) = (Commit::Begin, at + 1);
            }
            "apply"
        }
        Commit::Ended => return None,
    };
    Some((step, next))
}

/// The next step of a checkpoint: in the background of commits, or as the end of recovery.
pub(crate) fn checkpoint(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let is_recovery = state.recovery != Recovery::Off;
    let (step, checkpoint) = match state.checkpoint {
        Checkpoint::Idle => {
            if state.at <= state.settled || is_recovery {
                return None;
            }
            next.covered = state.at;
            ("checkpoint starts", Checkpoint::SyncTree)
        }
        Checkpoint::SyncTree => {
            if !is_recovery || run.has(Rule::SyncAfterRepair) {
                next.disk.sync();
            }
            ("sync the tree", Checkpoint::Record)
        }
        Checkpoint::Record => {
            next.log.push(Record::Settled(state.covered));
            ("checkpoint record", Checkpoint::SyncLog)
        }
        Checkpoint::SyncLog => {
            next.synced = next.log.len();
            next.settled = state.covered;
            ("sync the checkpoint record", Checkpoint::Discard)
        }
        Checkpoint::Discard => {
            let is_done = !discard(run, &mut next);
            ("discard", if is_done { Checkpoint::SyncSlots } else { Checkpoint::Discard })
        }
        Checkpoint::SyncSlots => {
            if run.has(Rule::SyncBeforeRetire) {
                next.disk.sync_dirs(&[STAGE, QUARANTINE]);
            }
            ("sync the slots and the quarantine", Checkpoint::Retire)
        }
        Checkpoint::Retire => {
            if state.logged().all(|at| at < state.covered) {
                next.log.clear();
                next.synced = 0;
            }
            if is_recovery {
                next.recovery = Recovery::Complete;
            }
            ("retire", Checkpoint::Idle)
        }
    };
    next.checkpoint = checkpoint;
    Some((step, next))
}

/// Removes one thing from the slots that are settled: the first leaf. What no record explains goes to quarantine.
/// False if there is nothing left.
fn discard(run: &Run, state: &mut State) -> bool {
    let logged: Vec<u8> = state.logged().collect();
    let is_recovery = state.recovery != Recovery::Off;
    let is_covered = |name: u8| is_recovery || name < state.covered * 16;
    let Some((name, inode)) = state.disk.names.children(STAGE).find(|&(name, _)| is_covered(name)) else {
        return false;
    };
    let disk = &mut state.disk;
    let changes: Vec<&Change> = logged.iter().flat_map(|&at| &state.plans[usize::from(at)].0).collect();
    // A slot that no record names was never visible.
    let is_orphan = name < RECOVERY_SLOT && !logged.contains(&(name / 16));
    let explains_all = is_orphan || logged.is_empty() || !run.has(Rule::CompareBeforeDiscard);
    let is_known = |content: u8| {
        let knows = |change: &&Change| {
            let original = change.original.as_ref();
            let beneath =
                original.iter().flat_map(|original| original.beneath.iter().filter_map(|image| image.1));
            change.what == What::File { content }
                || original.is_some_and(|original| !original.is_dir && original.content == content)
                || beneath.into_iter().any(|image| image == content)
        };
        content == EMPTY || changes.iter().any(knows)
    };
    let own = state.plans.get(usize::from(name / 16)).and_then(|plan| plan.0.get(usize::from(name % 16)));
    let is_staged = own.is_some_and(|change| change.what == What::MakeDir);
    // Inode numbers are used again: a slot is explained by its own transaction, one of recovery's by the latest.
    let is_any = name >= RECOVERY_SLOT || !run.has(Rule::ExplainByOwner);
    let explains = |at: u8| is_any || at == name / 16;
    let removal = logged.iter().rev().filter(|&&at| explains(at)).find_map(|&at| {
        let mut originals = state.plans[usize::from(at)].0.iter().filter_map(Change::replaced);
        originals.find(|original| original.is_dir && original.inode == inode).map(|original| (at, original))
    });
    let (mut cell, mut leaf, mut below) = ((STAGE, name), inode, Path::new());
    loop {
        let node = disk.node(leaf);
        let is_explained = explains_all
            || match removal {
                _ if below.is_empty() && !node.is_dir => is_known(node.content),
                Some(_) if below.is_empty() => true,
                Some((_, original)) => {
                    original.beneath.contains(&(below.clone(), (!node.is_dir).then_some(node.content)))
                }
                None => is_staged && (node.is_dir || is_known(node.content)),
            };
        if !is_explained {
            let place = disk.free_name(QUARANTINE, 0);
            return disk.rename(cell, place);
        }
        let Some((name, child)) = disk.names.children(leaf).next() else { break };
        (cell, leaf) = ((leaf, name), child);
        below.push(name);
    }
    disk.unlink(cell)
}
