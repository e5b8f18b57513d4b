//! Several processes with one store on a simulated machine: what one does is interrupted at each of its calls of storage
//! by another, by its death, by a failing sync or by somebody's edit; then those who are left go on.
//!
//! It all runs on one thread: whoever is interrupted is in a call, and the other one acts within it. Nobody waits for a
//! lock, so that whoever needs one that is taken has to be told so. A [`Case`] names one such run, and replays it.

mod model;
mod world;

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use atomtree::vfs::sim::Sim;

use crate::crash::{Crash, differences, judge, open, quarantine_of, tree_of};
use crate::history::{Entry, History, PATHS, Random, Settings, Tree};
use crate::workload::names_in;

use self::model::THEIRS;
use self::world::{Moment, World};

/// How many processes there are at most.
const PROCESSES: usize = 3;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Commits a transaction.
    Commit,
    /// Makes a checkpoint.
    Checkpoint,
    /// Opens the store.
    Open,
    /// Closes it.
    Close,
}

/// What comes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// Another process does something, from beginning to end.
    Other(Kind),
    /// The process dies.
    Death,
    /// The sync that it is about to do fails, or else the next.
    FailedSync,
    /// As before, and it dies before it can tell anybody.
    FailedSyncAndDeath,
    /// Another program replaces a file.
    Edit,
}

impl Interruption {
    const ALL: [(char, Self); 8] = [
        ('c', Self::Other(Kind::Commit)),
        ('p', Self::Other(Kind::Checkpoint)),
        ('o', Self::Other(Kind::Open)),
        ('l', Self::Other(Kind::Close)),
        ('d', Self::Death),
        ('f', Self::FailedSync),
        ('g', Self::FailedSyncAndDeath),
        ('e', Self::Edit),
    ];

    /// Whether it may come at calls that change nothing, too. Who dies at one of those might as well die at the next
    /// that does.
    fn is_at_every_call(self) -> bool {
        matches!(self, Self::Other(_))
    }
}

/// What comes when: at the so-manieth call of a process since the one before, or since the step began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Whose call.
    pub process: usize,
    /// Which, from 1 on.
    pub call: u64,
    /// What.
    pub what: Interruption,
}

/// One run: a scenario and what comes between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Decides the scenario.
    pub seed: u64,
    /// In this order.
    pub plan: Vec<Planned>,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.seed)?;
        self.plan.iter().try_for_each(|Planned { process, call, what }| {
            let code =
                Interruption::ALL.iter().find(|(_, known)| known == what).map_or('?', |(code, _)| *code);
            write!(formatter, "/{process}:{call}{code}")
        })
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
        let mut parts = text.split('/');
        let seed = number(parts.next().unwrap_or_default())?;
        let plan = parts.map(|part| {
            let (process, rest) = part.split_once(':').ok_or_else(|| format!("{part:?} names no process"))?;
            let (call, code) = rest.split_at(rest.len() - 1);
            let what = Interruption::ALL.iter().find(|(known, _)| code.starts_with(*known));
            let (_, what) = what.ok_or_else(|| format!("{code:?} is no interruption"))?;
            Ok(Planned { process: number(process)? as usize, call: number(call)?, what: *what })
        });
        Ok(Self { seed, plan: plan.collect::<Result<_, String>>()? })
    }
}

/// What is so before, and what process 0 then does that is interrupted.
#[derive(Clone, Debug)]
struct Scenario {
    settings: Settings,
    initial: Tree,
    prelude: Vec<(usize, Kind)>,
    step: Kind,
    /// Whether process 0 has moved directories about, and so settles early.
    directories: bool,
}

impl Scenario {
    fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xface);
        let settings = Settings {
            inline_bytes_max: *random.pick(&[1 << 20, 1 << 20, 1000, 100]),
            can_exchange: random.percent(85),
            inode_reuse: random.percent(30),
            cache_pinned: random.percent(15),
            sync_keeps_names: random.percent(25),
            settled: false,
        };
        let initial = History::generate(seed).initial;
        // One in eight is about making the store, and about opening it; closing is rare as well.
        let step = *random.pick(&[
            Kind::Commit,
            Kind::Commit,
            Kind::Commit,
            Kind::Commit,
            Kind::Checkpoint,
            Kind::Checkpoint,
            Kind::Close,
            Kind::Open,
        ]);
        let mut prelude = Vec::new();
        let is_creation = step == Kind::Open && random.percent(30);
        if !is_creation {
            let opener = usize::from(step == Kind::Open);
            prelude.push((opener, Kind::Open));
            if step != Kind::Open {
                prelude.push((1, Kind::Open));
            }
            for _ in 0..random.below(4) {
                let process = if step == Kind::Open { 1 } else { random.below(2) as usize };
                let kind = if random.percent(75) { Kind::Commit } else { Kind::Checkpoint };
                prelude.push((process, kind));
            }
            if step == Kind::Checkpoint {
                prelude.push((random.below(2) as usize, Kind::Commit));
            }
            if step == Kind::Open && random.percent(40) {
                prelude.push((1, Kind::Close));
            }
        }
        Self { settings, initial, prelude, step, directories: random.percent(35) }
    }

    fn machine(&self, seed: u64) -> Sim {
        let history = History {
            seed,
            settings: self.settings,
            initial: self.initial.clone(),
            prelude: Vec::new(),
            steps: Vec::new(),
        };
        crate::crash::machine(&history)
    }
}

/// How much of what there is to explore is explored.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of 1000 possible interruptions, how many are tried; of each kind.
    pub interruptions_per_mille: u64,
    /// How many second interruptions are tried after each death.
    pub nested: u64,
    /// Of 1000 moments of a run, how many are judged after a kill and a power cut.
    pub moments_per_mille: u64,
}

/// What was done, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visited {
    /// Runs with an interruption.
    pub runs: u64,
    /// Of those, how many had a second one.
    pub nested: u64,
    /// Acts of a process within a call of another that had to be refused, since that held the lock.
    pub refused: u64,
    /// Those that had to succeed.
    pub admitted: u64,
    /// Machines that went down in a run, and were recovered and judged.
    pub machines: u64,
    /// Commits left unfinished that another process finished.
    pub take_overs: u64,
    /// Runs in which the store was poisoned, and recovered by an opener.
    pub poisoned: u64,
}

impl std::ops::AddAssign for Visited {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.nested += other.nested;
        self.refused += other.refused;
        self.admitted += other.admitted;
        self.machines += other.machines;
        self.take_overs += other.take_overs;
        self.poisoned += other.poisoned;
    }
}

/// Explores a scenario.
///
/// # Panics
/// With the case, where a promise is broken.
pub fn explore(seed: u64, effort: Effort) -> Visited {
    let mut visited = Visited::default();
    let mut random = Random::new(seed ^ 0xe4f0);
    let failures = RefCell::new(Vec::new());
    let try_case = |case: &Case, visited: &mut Visited| -> Option<World> {
        match run(case, effort.moments_per_mille, false) {
            Ok(world) => {
                *visited += world.visited();
                visited.runs += 1;
                visited.nested += u64::from(case.plan.len() > 1);
                Some(world)
            }
            Err(reason) => {
                failures.borrow_mut().push(explain(case, &reason));
                None
            }
        }
    };
    let plain = Case { seed, plan: Vec::new() };
    let Some(whole) = try_case(&plain, &mut visited) else { panic!("{}", failures.borrow()[0]) };
    for (_, what) in Interruption::ALL {
        let calls = whole.step_calls(what.is_at_every_call());
        if what == Interruption::Edit && !whole.may_be_edited() {
            continue;
        }
        for call in 1..=calls {
            // Commits by another meet the most.
            let factor =
                if what.is_at_every_call() && what != Interruption::Other(Kind::Commit) { 3 } else { 1 };
            if random.below(1000 * factor) >= effort.interruptions_per_mille {
                continue;
            }
            let case = Case { seed, plan: vec![Planned { process: 0, call, what }] };
            let Some(first) = try_case(&case, &mut visited) else { continue };
            let others = first.calls_after_interruption();
            drop(first);
            for _ in 0..effort.nested {
                let second = match what {
                    Interruption::Death | Interruption::FailedSyncAndDeath => {
                        let what = *random.pick(&[
                            Interruption::Death,
                            Interruption::Death,
                            Interruption::Death,
                            Interruption::FailedSyncAndDeath,
                            Interruption::Other(Kind::Commit),
                            Interruption::Other(Kind::Open),
                            Interruption::Other(Kind::Checkpoint),
                        ]);
                        Planned { process: 1, call: 1 + random.below(others.max(1)), what }
                    }
                    Interruption::Edit => {
                        let call = 1 + random.below(calls - call + 1);
                        Planned { process: 0, call, what: Interruption::Death }
                    }
                    Interruption::FailedSync => {
                        let call = 1 + random.below(others.max(1));
                        let process = 1 + random.below(2) as usize;
                        Planned { process, call, what: Interruption::Death }
                    }
                    Interruption::Other(_) => {
                        let call = 1 + random.below(20);
                        Planned { process: random.below(2) as usize, call, what: Interruption::Death }
                    }
                };
                let mut case = case.clone();
                case.plan.push(second);
                if second.what == Interruption::Death && random.percent(20) {
                    let call = 1 + random.below(60);
                    case.plan.push(Planned { process: 2, call, what: Interruption::Death });
                }
                try_case(&case, &mut visited);
            }
        }
    }
    let failures = failures.into_inner();
    assert!(
        failures.is_empty(),
        "{} cases failed, as these:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n\n")
    );
    visited
}

/// Replays one case, and judges every moment of it; `Err` if it fails again.
pub fn replay(case: &Case) -> Result<String, String> {
    match run(case, 1000, true) {
        Ok(world) => Ok(world.told()),
        Err(reason) => Err(explain(case, &reason)),
    }
}

/// Runs one case, as it is done in an exploration; `Err` if it fails.
pub fn check(case: &Case) -> Result<(), String> {
    run(case, 15, false).map(drop).map_err(|reason| explain(case, &reason))
}

fn explain(case: &Case, reason: &str) -> String {
    let scenario = Scenario::generate(case.seed);
    format!("case {case}: {reason}\nreplay it with ATOMTREE_HAND_OVER_CASE={case}\n{scenario:#?}")
}

/// Runs a case, and judges some of its moments.
fn run(case: &Case, moments_per_mille: u64, trace: bool) -> Result<World, String> {
    let scenario = Scenario::generate(case.seed);
    let world = World::new(case, &scenario, moments_per_mille);
    world.set_trace(trace);
    let ended = world.run(&scenario, &case.plan);
    let with_what_was_done = |reason: String| format!("{reason}\n{}", world.told());
    ended.map_err(with_what_was_done)?;
    let mut random = Random::new(case.seed ^ 0x10c4);
    for moment in world.take_moments() {
        for crash in [Crash::Kill, Crash::Cut(random.next())] {
            judge_moment(&scenario, &moment, crash, &mut random)
                .map_err(|reason| with_what_was_done(format!("{crash:?} {}: {reason}", moment.when)))?;
            world.note_machine();
        }
    }
    Ok(world)
}

/// Recovers a machine that went down, and judges what has become of it.
fn judge_moment(
    scenario: &Scenario,
    moment: &Moment,
    crash: Crash,
    random: &mut Random,
) -> Result<(), String> {
    let machine = crash.of(&moment.machine);
    let result = open(std::sync::Arc::new(machine.clone()), &scenario.settings);
    if moment.is_edited {
        let store = result.map_err(|error| format!("recovery failed: {error}"))?;
        let found = without_edited(&tree_of(&machine));
        let allowed: Vec<Tree> = moment.possible.iter().map(without_edited).collect();
        if !allowed.contains(&found) {
            return Err(format!("the tree is none of those allowed\n{}", differences(&found, &allowed)));
        }
        find_theirs(&machine)?;
        store.close().map_err(|error| format!("a recovered store did not close: {error}"))?;
    } else {
        let thorough = random.percent(10);
        judge(result, &machine, &scenario.settings, &moment.possible, random, thorough)?;
    }
    check_history(&machine, &scenario.settings, &moment.acknowledged)
}

/// Every acknowledged transaction is in the history, once.
fn check_history(machine: &Sim, settings: &Settings, acknowledged: &[u64]) -> Result<(), String> {
    let vfs = std::sync::Arc::new(machine.another_process());
    let options = crate::crash::options(vfs, settings);
    let inspection = atomtree::Inspection::open(crate::crash::ROOT, &options)
        .map_err(|error| format!("the store can't be looked at: {error}"))?;
    let log = inspection.log(1000).map_err(|error| format!("the history can't be read: {error}"))?;
    let numbers: Vec<u64> = log.iter().map(|past| past.tx.0).collect();
    if !numbers.is_sorted_by(|one, other| one > other) {
        return Err(format!("the history is out of order: {numbers:?}"));
    }
    if let Some(lost) = acknowledged.iter().find(|tx| !numbers.contains(tx)) {
        return Err(format!("the history has {numbers:?}, and {lost} was acknowledged"));
    }
    let lsns: Vec<u64> = log.iter().map(|past| past.lsn.0).collect();
    if !lsns.is_sorted_by(|one, other| one > other) {
        return Err(format!("the history's positions are out of order: {lsns:?}"));
    }
    let found = inspection.verify().map_err(|error| format!("verifying failed: {error}"))?;
    if found.problems.is_empty() { Ok(()) } else { Err(format!("verifying found {:?}", found.problems)) }
}

/// A tree without the name that somebody edits.
fn without_edited(tree: &Tree) -> Tree {
    tree.iter()
        .filter(|(path, _)| *path != PATHS[0])
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
}

/// What another program wrote is in the tree, or in quarantine.
fn find_theirs(machine: &Sim) -> Result<(), String> {
    let (tree, quarantine) = (tree_of(machine), quarantine_of(machine));
    let is_theirs =
        |entry: &Entry| matches!(entry, Entry::File { content, .. } if content.as_slice() == THEIRS);
    if tree.get(PATHS[0]).is_some_and(is_theirs) || quarantine.values().any(is_theirs) {
        return Ok(());
    }
    Err(format!("what another program wrote is gone: {tree:#?} {quarantine:#?}"))
}

/// What lies in `stage/`: the files of each process's part but its lock, and whether that process lives.
fn stages_of(machine: &Sim) -> Vec<(String, Vec<String>, bool)> {
    use atomtree::vfs::{Access, Lock, Vfs};
    let stage = format!("{}/.atomtree/stage", crate::crash::ROOT);
    let looker = machine.another_process();
    names_in(machine, &stage)
        .into_iter()
        .map(|name| {
            let path = format!("{stage}/{name}");
            let mut files = names_in(machine, &path);
            files.remove("lock");
            let dir = looker.open_root(path.as_ref());
            let lock = dir.and_then(|dir| dir.open_file("lock".as_ref(), Access::Read));
            let is_free = lock.and_then(|lock| lock.try_lock(Lock::Exclusive)).unwrap_or(true);
            (name, files.into_iter().collect(), !is_free)
        })
        .collect()
}
