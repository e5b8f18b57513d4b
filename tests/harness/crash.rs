//! Drives an engine on a simulated machine, stops the machine before every operation, and judges what recovery makes
//! of what is left.
//!
//! One run of a history gives a [`Moment`] for each operation on the storage: the machine as it is just before, which
//! can be killed and cut in many ways without running the history again. Recoveries are run the same way, so crashes
//! nest. A [`Case`] names one path through this, and replays it.

use std::ffi::OsStr;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atomtree::vfs::faults::{Call, Fault, Faults, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Dir, Kind, Vfs};
use atomtree::{Checkpoints, Durability, Error, Options, Store};

use crate::history::{Entry, History, Operation, Random, Settings, Step, Tree};

/// Where the tree lies on the simulated machine.
pub const ROOT: &str = "/tree";
/// The smallest segments there are, so that logs rotate.
const SEGMENT_BYTES: u64 = 64 << 10;
/// More than any content in a test.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

/// How far a run had come when it was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Transactions that had been acknowledged.
    pub committed: usize,
    /// Whether another one was under way, whose outcome is open.
    pub in_flight: bool,
}

impl Progress {
    /// The trees that recovery may make of it.
    pub fn allowed<'a>(&self, trees: &'a [Tree]) -> &'a [Tree] {
        &trees[self.committed..=self.committed + usize::from(self.in_flight)]
    }
}

/// The machine just before an operation.
#[derive(Clone)]
pub struct Moment {
    /// The machine with all its processes killed; cutting its power is the same as cutting it then.
    pub machine: Sim,
    /// The number of the operation that was about to be done.
    pub operation: u64,
    /// How far the run had come.
    pub progress: Progress,
}

/// What happens to the machine, and what the storage answers: called before each operation, with its number.
pub type Meddle = dyn Fn(&Sim, u64, &Call) -> Option<Fault> + Send + Sync;

/// Watches a machine run.
pub struct Watch {
    /// The machine.
    pub sim: Sim,
    moments: Mutex<Option<Vec<Moment>>>,
    progress: Mutex<Progress>,
    meddle: Option<Box<Meddle>>,
}

impl Watch {
    /// Watches without remembering anything yet.
    pub fn new(sim: &Sim, meddle: Option<Box<Meddle>>) -> Arc<Self> {
        Arc::new(Self {
            sim: sim.clone(),
            moments: Mutex::new(None),
            progress: Mutex::new(Progress::default()),
            meddle,
        })
    }

    /// Remembers each moment from now on.
    pub fn start(&self) {
        *locked(&self.moments) = Some(Vec::new());
    }

    /// Ends the watch; the last moment is the end.
    pub fn finish(&self) -> Vec<Moment> {
        self.remember(self.sim.operations() + 1);
        locked(&self.moments).take().expect("it was started")
    }

    /// The storage as the engine shall see it.
    pub fn vfs(self: &Arc<Self>) -> Arc<dyn Vfs> {
        let this = Arc::clone(self);
        Arc::new(Faults::new(Arc::new(self.sim.clone()), Arc::new(move |call| this.before(call))))
    }

    /// How far the run has come.
    pub fn progress(&self) -> Progress {
        *locked(&self.progress)
    }

    fn before(&self, call: &Call) -> Option<Fault> {
        if !is_operation(call.verb) {
            return None;
        }
        let operation = self.sim.operations() + 1;
        let fault = self.meddle.as_ref().and_then(|meddle| meddle(&self.sim, operation, call));
        self.remember(operation);
        fault
    }

    fn remember(&self, operation: u64) {
        if let Some(moments) = &mut *locked(&self.moments) {
            moments.push(Moment { machine: self.sim.kill(), operation, progress: *locked(&self.progress) });
        }
    }

    fn set_in_flight(&self, in_flight: bool) {
        locked(&self.progress).in_flight = in_flight;
    }

    fn acknowledge(&self) {
        let mut progress = locked(&self.progress);
        *progress = Progress { committed: progress.committed + 1, in_flight: false };
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the verb changes or syncs something, and so counts as an operation of the machine.
pub fn is_operation(verb: Verb) -> bool {
    use Verb as V;
    verb.is_sync()
        || matches!(
            verb,
            V::CreateFile
                | V::CreateDir
                | V::CreateSymlink
                | V::SetDirXattr
                | V::RemoveDirXattr
                | V::SetDirMode
                | V::SetDirOwner
                | V::SetModeOf
                | V::SetOwnerOf
                | V::Rename
                | V::RenameOver
                | V::Exchange
                | V::Link
                | V::RemoveFile
                | V::RemoveDir
                | V::WriteAt
                | V::SetLen
                | V::Allocate
                | V::SetMode
                | V::SetOwner
                | V::SetModified
                | V::SetXattr
                | V::RemoveXattr
                | V::CopyFrom
        )
}

/// A machine with the history's initial tree on it.
pub fn machine(history: &History) -> Sim {
    let sim = Sim::new(history.seed);
    sim.set_exchange_supported(history.settings.can_exchange);
    sim.set_inode_reuse(history.settings.inode_reuse);
    sim.set_cache_pinned(history.settings.cache_pinned);
    sim.set_sync_keeps_names(history.settings.sync_keeps_names);
    sim.create_dir(ROOT);
    for (path, entry) in &history.initial {
        let path = format!("{ROOT}/{path}");
        match entry {
            Entry::File { content, mode } => {
                sim.write_file(&path, content);
                sim.set_mode(&path, *mode);
            }
            Entry::Dir(mode) => {
                sim.create_dir(&path);
                sim.set_mode(&path, *mode);
            }
            Entry::Link(target) => sim.create_symlink(&path, target),
            Entry::Other => sim.create_other(&path),
        }
    }
    sim.advance(1_000_000_000);
    sim
}

/// The options with which histories are run.
pub fn options(vfs: Arc<dyn Vfs>, settings: &Settings) -> Options {
    Options::new()
        .vfs(vfs)
        .segment_bytes(SEGMENT_BYTES)
        .log_bytes_max(4 * SEGMENT_BYTES)
        .inline_bytes_max(settings.inline_bytes_max)
        .checkpoints(Checkpoints::Manual)
        // Who waits at all in a simulated machine waits for ever.
        .lock_timeout(Duration::from_secs(2))
}

/// Opens the store, which recovers it.
pub fn open(vfs: Arc<dyn Vfs>, settings: &Settings) -> Result<Store, Error> {
    options(vfs, settings).open(ROOT)
}

/// Commits operations as one transaction.
pub fn commit(store: &Store, operations: &[Operation]) -> Result<atomtree::Receipt, Error> {
    commit_as(store, operations, false)
}

/// The same, settled when it returns if that is wanted.
pub fn commit_as(store: &Store, operations: &[Operation], settled: bool) -> Result<atomtree::Receipt, Error> {
    let mut transaction = store.begin()?;
    if settled {
        transaction.set_durability(Durability::Settled);
    }
    for operation in operations {
        operation.perform(&mut transaction)?;
    }
    transaction.commit()
}

/// Does one step, and keeps the watch's progress. The store is gone if closing it or opening it again failed.
pub fn step(
    watch: &Arc<Watch>,
    store: &mut Option<Store>,
    step: &Step,
    settings: &Settings,
) -> Result<(), Error> {
    let open_store = store.as_ref().expect("a step is done on an open store");
    match step {
        Step::Commit(operations) => {
            watch.set_in_flight(true);
            commit_as(open_store, operations, settings.settled)?;
            watch.acknowledge();
        }
        Step::Checkpoint => open_store.checkpoint()?,
        Step::Reopen => {
            store.take().expect("it was there").close()?;
            check_stage_is_empty(&watch.sim).expect("a clean close leaves nothing in stage");
            let reopened = open(watch.vfs(), settings)?;
            assert_eq!(reopened.recovery(), &atomtree::RecoveryReport::default(), "after a clean close");
            *store = Some(reopened);
        }
        Step::Wait => watch.sim.advance(20_000_000),
    }
    Ok(())
}

/// Runs a history from the creation of its store to its close, and returns its moments.
pub fn record(history: &History, trace: bool) -> (Vec<Moment>, Sim) {
    let sim = machine(history);
    sim.set_trace(trace);
    let watch = Watch::new(&sim, None);
    let whole = history.prelude.is_empty();
    if whole {
        watch.start();
    }
    let mut store = Some(open(watch.vfs(), &history.settings).expect("a new store opens"));
    let run = |store: &mut Option<Store>, steps: &[Step]| {
        for one in steps {
            if let Err(error) = step(&watch, store, one, &history.settings) {
                panic!("history {}: {one:?}: {error}\n{:#?}", history.seed, history.steps);
            }
        }
    };
    run(&mut store, &history.prelude);
    if !whole {
        watch.start();
    }
    run(&mut store, &history.steps);
    store.take().expect("it is open").close().expect("a healthy store closes");
    check_stage_is_empty(&sim).expect("a clean close leaves nothing in stage");
    (watch.finish(), sim)
}

/// How a machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// All processes are killed.
    Kill,
    /// The power is cut, with this seed.
    Cut(u64),
    /// The power is cut where there are few ways, and this is the way it goes.
    Way(u64),
}

/// Up to this many ways of a power cut are all tried.
const WAYS_MAX: u64 = 24;

impl Crash {
    /// The machine afterwards.
    pub fn of(self, machine: &Sim) -> Sim {
        match self {
            Self::Kill => machine.kill(),
            Self::Cut(seed) => machine.power_cut(seed),
            Self::Way(number) => {
                let ways = machine.power_cut_exhaustive(WAYS_MAX);
                ways.expect("a way was chosen because there are few").swap_remove(number as usize)
            }
        }
    }
}

/// One path through crashes and recoveries: the history, and at which operation of each run the machine went down how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The history's seed.
    pub history: u64,
    /// The first is in the history, the others each in the recovery after the one before.
    pub crashes: Vec<(u64, Crash)>,
}

impl Case {
    /// The same, with another crash.
    #[must_use]
    pub fn then(&self, operation: u64, crash: Crash) -> Self {
        let mut case = self.clone();
        case.crashes.push((operation, crash));
        case
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.history)?;
        self.crashes.iter().try_for_each(|(operation, crash)| match crash {
            Crash::Kill => write!(formatter, "/{operation}k"),
            Crash::Cut(seed) => write!(formatter, "/{operation}c{seed}"),
            Crash::Way(way) => write!(formatter, "/{operation}w{way}"),
        })
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
        let mut parts = text.split('/');
        let history = number(parts.next().unwrap_or_default())?;
        let crashes = parts.map(|part| {
            if let Some(operation) = part.strip_suffix('k') {
                return Ok((number(operation)?, Crash::Kill));
            }
            if let Some((operation, way)) = part.split_once('w') {
                return Ok((number(operation)?, Crash::Way(number(way)?)));
            }
            let (operation, seed) = part.split_once('c').ok_or_else(|| format!("{part:?} is no crash"))?;
            Ok((number(operation)?, Crash::Cut(number(seed)?)))
        });
        Ok(Self { history, crashes: crashes.collect::<Result<_, String>>()? })
    }
}

/// Runs a recovery. Returns its moments, if they are wanted, all with the progress that the crash was at.
pub fn recover(
    machine: &Sim,
    settings: &Settings,
    progress: Progress,
    watching: bool,
) -> (Result<Store, Error>, Vec<Moment>) {
    if !watching {
        return (open(Arc::new(machine.clone()), settings), Vec::new());
    }
    let watch = Watch::new(machine, None);
    *locked(&watch.progress) = progress;
    watch.start();
    let result = open(watch.vfs(), settings);
    (result, watch.finish())
}

/// Everything in the tree but the store, as any program sees it.
pub fn tree_of(machine: &Sim) -> Tree {
    let root = machine.open_root(Path::new(ROOT)).expect("the root is durable");
    let mut tree = Tree::new();
    collect(&*root, "", &mut tree).expect("nothing fails while a tree is looked at");
    tree
}

fn collect(dir: &dyn Dir, path: &str, tree: &mut Tree) -> io::Result<()> {
    for found in dir.list()? {
        let name = found.name.to_str().expect("tests use plain names").to_owned();
        // What is left of a creation is nobody's file; `it::kills` looks at when it goes.
        if path.is_empty() && [".atomtree", ".atomtree.new"].contains(&name.as_str()) {
            continue;
        }
        let at = if path.is_empty() { name } else { format!("{path}/{name}") };
        let mode = dir.metadata(&found.name)?.mode;
        let entry = match found.kind {
            Kind::File => {
                Entry::file(dir.open_file(&found.name, Access::Read)?.read_all(CONTENT_BYTES_MAX)?, mode)
            }
            Kind::Dir => {
                collect(&*dir.open_dir(Path::new(&found.name))?, &at, tree)?;
                Entry::Dir(mode)
            }
            Kind::Symlink => Entry::Link(dir.read_link(&found.name)?.to_string_lossy().into_owned()),
            Kind::Other => Entry::Other,
        };
        tree.insert(at, entry);
    }
    Ok(())
}

/// What lies in quarantine, by name.
pub fn quarantine_of(machine: &Sim) -> Tree {
    part_of(machine, "quarantine")
}

/// The originals that the history keeps, by name. A write through a descriptor that was opened before the replacement,
/// after the last comparison, lands here.
pub fn images_of(machine: &Sim) -> Tree {
    part_of(machine, "images")
}

fn part_of(machine: &Sim, part: &str) -> Tree {
    let mut tree = Tree::new();
    let path = format!("{ROOT}/.atomtree/{part}");
    let dir = machine.open_root(Path::new(&path)).expect("the store stands");
    collect(&*dir, "", &mut tree).expect("nothing fails while a part of the store is looked at");
    tree
}

/// After a clean close nothing is left in `stage/`.
pub fn check_stage_is_empty(machine: &Sim) -> Result<(), String> {
    let dir = machine.open_root(Path::new(&format!("{ROOT}/.atomtree/stage"))).expect("the store stands");
    let mut left = Tree::new();
    collect(&*dir, "", &mut left).expect("nothing fails while stage is looked at");
    if left.is_empty() { Ok(()) } else { Err(format!("stage holds {left:#?}")) }
}

/// Says how a tree differs from those that are allowed.
pub fn differences(found: &Tree, allowed: &[Tree]) -> String {
    let mut text = String::new();
    for (number, tree) in allowed.iter().enumerate() {
        let _ = writeln!(text, "against allowed tree {number}:");
        for path in tree.keys().chain(found.keys().filter(|path| !tree.contains_key(*path))) {
            let (wanted, found) = (tree.get(path), found.get(path));
            if wanted != found {
                let _ = writeln!(text, "  {path}: wanted {wanted:?}, found {found:?}");
            }
        }
    }
    text
}

/// The oracle for machines on which nobody but the engine touched the tree. Looks at a recovered store; `allowed` are
/// the trees that may be there. Returns the number of the one that is.
///
/// Each promise is checked for every state: the tree is one of those allowed, durably; nothing was displaced, lost or
/// left; nothing is in quarantine. With `thorough`, a second open is tried as well, and that the store works.
pub fn judge(
    result: Result<Store, Error>,
    machine: &Sim,
    settings: &Settings,
    allowed: &[Tree],
    random: &mut Random,
    thorough: bool,
) -> Result<usize, String> {
    let store = result.map_err(|error| format!("recovery failed: {error}"))?;
    let report = store.recovery().clone();
    let tree = tree_of(machine);
    let Some(index) = allowed.iter().position(|allowed| *allowed == tree) else {
        return Err(format!("the tree is none of those allowed\n{}", differences(&tree, allowed)));
    };
    let clean = report.quarantined.is_empty()
        && report.superseded.is_empty()
        && report.lost.is_empty()
        && report.metadata_kept.is_empty();
    if !clean {
        return Err(format!("nobody else touched the tree, and recovery reports {report:#?}"));
    }
    let mut quarantine = quarantine_of(machine);
    // What a recovery beside others had taken out when it died may be known to nobody any more, and is kept. Nothing of a
    // recovery that was alone is.
    quarantine.retain(|name, _| !(name.starts_with("0000000000000000-") && name.contains("-r")));
    if !quarantine.is_empty() {
        return Err(format!("nobody else touched the tree, and quarantine holds {quarantine:#?}"));
    }
    // What recovery says is durable stays through the worst cut, the one that keeps nothing unsynced, or any other.
    let after = machine.power_cut(random.next());
    let kept = tree_of(&after);
    if kept != tree {
        return Err(format!("recovery's result was not durable\n{}", differences(&kept, &[tree])));
    }
    if thorough {
        let again = if random.percent(50) { after } else { machine.kill() };
        reopen(&again, settings, &tree, random)?;
    }
    Ok(index)
}

/// Gives files of which a workload has made second names, beside the others, the mode that they have: what changes that of one
/// name changes the other's.
fn share_modes(machine: &Sim, tree: &mut Tree) {
    let root = machine.open_root(Path::new(ROOT)).expect("it is there");
    for (name, entry) in tree.iter_mut().filter(|(name, _)| !name.contains('/')) {
        if let (Entry::File { mode, .. }, Ok(found)) = (entry, root.metadata(OsStr::new(name)))
            && found.links > 1
        {
            *mode = found.mode;
        }
    }
}

/// A recovered store replays nothing, changes nothing, and takes another commit that survives.
fn reopen(machine: &Sim, settings: &Settings, tree: &Tree, random: &mut Random) -> Result<(), String> {
    let store = open(Arc::new(machine.clone()), settings)
        .map_err(|error| format!("the second open after a recovery failed: {error}"))?;
    let report = store.recovery();
    if report.redone != 0 || !report.quarantined.is_empty() || !report.superseded.is_empty() {
        return Err(format!("the second open after a recovery was not idle: {report:#?}"));
    }
    let found = tree_of(machine);
    if found != *tree {
        return Err(format!(
            "the second open changed the tree\n{}",
            differences(&found, std::slice::from_ref(tree))
        ));
    }
    let mut next = tree.clone();
    let operations = crate::history::generate_operations(random, &mut next);
    match commit(&store, &operations) {
        // The workload has given a file a second name, which this commit has not been told to break.
        Err(error) if error.to_string().contains("hard links are to be broken") => return Ok(()),
        committed => {
            committed.map_err(|error| format!("a recovered store refused {operations:?}: {error}"))?
        }
    };
    share_modes(machine, &mut next);
    let crashed = if random.percent(50) { machine.kill() } else { machine.power_cut(random.next()) };
    if random.percent(30) {
        store.close().map_err(|error| format!("a recovered store did not close: {error}"))?;
        check_stage_is_empty(machine)?;
    }
    let before = tree_of(&crashed);
    crashed.set_trace(true);
    let store = open(Arc::new(crashed.clone()), settings)
        .map_err(|error| format!("recovery after {operations:?} failed: {error}"))?;
    let found = tree_of(&crashed);
    if found != next {
        let report = store.recovery();
        let differences = differences(&found, &[next]);
        let trace = crashed.trace();
        return Err(format!(
            "{operations:?} did not survive\n{differences}{report:#?}, from {before:#?}\n{trace:#?}"
        ));
    }
    store.close().map_err(|error| format!("a recovered store did not close: {error}"))?;
    check_stage_is_empty(&crashed)
}

/// How much of what there is to explore is explored.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Power cuts at each moment of the history, besides the kill, unless there are few enough to try all.
    pub cuts: u64,
    /// Of 1000 crashed machines, how many have their recovery crashed at every operation; of 1000 machines that crashed
    /// in such a recovery, how many have the next one crashed; and once more.
    pub nested_per_mille: [u64; NESTED_MAX],
}

/// How many recoveries after one another are crashed.
pub const NESTED_MAX: usize = 3;

/// How many crashed machines were recovered and judged: after a crash of the history itself, of the recovery after that,
/// of the recovery after that, and so on.
pub type Visited = [u64; NESTED_MAX + 1];

/// Explores a history's crashes.
///
/// # Panics
/// With the case, its history and its trace, where a promise is broken.
pub fn explore(history: &History, effort: Effort) -> Visited {
    let (moments, _) = record(history, false);
    let trees = history.trees();
    let mut visited = Visited::default();
    let case = Case { history: history.seed, crashes: Vec::new() };
    for moment in &moments {
        let allowed = moment.progress.allowed(&trees);
        explore_moment(history, moment, allowed, &case, effort, &mut visited);
    }
    visited
}

fn explore_moment(
    history: &History,
    moment: &Moment,
    allowed: &[Tree],
    case: &Case,
    effort: Effort,
    visited: &mut Visited,
) {
    let depth = case.crashes.len();
    let cuts = if depth == 0 { effort.cuts } else { 1 };
    let mut random = Random::new(history.seed ^ moment.operation << 20 ^ (depth as u64) << 50);
    for (operation, crash) in &case.crashes {
        let salt = match crash {
            Crash::Kill => 7,
            Crash::Cut(number) | Crash::Way(number) => *number,
        };
        random = Random::new(random.next() ^ operation << 8 ^ salt);
    }
    let mut crashes = vec![Crash::Kill];
    // Where little is unsynced, chance would only repeat itself.
    let ways = if depth == 0 { moment.machine.power_cut_exhaustive(WAYS_MAX) } else { None };
    match ways {
        Some(ways) => crashes.extend((0..ways.len() as u64).map(Crash::Way)),
        None => crashes.extend((0..cuts).map(|_| Crash::Cut(random.below(1 << 32)))),
    }
    for crash in crashes {
        let per_mille = effort.nested_per_mille.get(depth).copied().unwrap_or(0);
        let nested = random.below(1000) < per_mille;
        let thorough = random.percent(10);
        let case = case.then(moment.operation, crash);
        let machine = crash.of(&moment.machine);
        let (result, inner) = recover(&machine, &history.settings, moment.progress, nested);
        let verdict = judge(result, &machine, &history.settings, allowed, &mut random, thorough);
        visited[depth] += 1;
        if let Err(reason) = verdict {
            panic!("{}", explain(history, &case, &reason));
        }
        for moment in &inner {
            explore_moment(history, moment, allowed, &case, effort, visited);
        }
    }
}

/// Replays one case and says everything about it; `Err` if it fails again.
pub fn replay(case: &Case) -> Result<String, String> {
    let history = History::generate(case.history);
    let text = explain(&history, case, "replayed");
    let (machine, progress) = last_machine(&history, case, &mut String::new())?;
    let trees = history.trees();
    for seed in 0..50 {
        let machine = machine.kill();
        let (result, _) = recover(&machine, &history.settings, progress, false);
        let mut random = Random::new(seed);
        judge(result, &machine, &history.settings, progress.allowed(&trees), &mut random, true)
            .map_err(|reason| format!("{reason}\n{text}"))?;
    }
    Ok(text)
}

fn last_machine(history: &History, case: &Case, text: &mut String) -> Result<(Sim, Progress), String> {
    let (mut moments, sim) = record(history, true);
    let mut trace = sim.trace();
    let mut last = None;
    for (number, (operation, crash)) in case.crashes.iter().enumerate() {
        let Some(moment) = moments.iter().find(|moment| moment.operation == *operation) else {
            return Err(format!("run {number} has no operation {operation}"));
        };
        let done = trace.iter().take_while(|line| {
            line.split(' ').next().and_then(|number| number.parse::<u64>().ok()) < Some(*operation)
        });
        let _ = writeln!(text, "run {number}, up to operation {operation}:");
        done.for_each(|line| *text += &["  ", line, "\n"].concat());
        let machine = crash.of(&moment.machine);
        let _ = writeln!(text, "{crash:?}, {:?}, leaves\n{:#?}", moment.progress, tree_of(&machine));
        let progress = moment.progress;
        last = Some((machine.kill(), progress));
        machine.set_trace(true);
        moments = recover(&machine, &history.settings, progress, true).1;
        trace = machine.trace();
    }
    *text += "the last recovery:\n";
    trace.iter().for_each(|line| *text += &["  ", line, "\n"].concat());
    last.ok_or_else(|| "a case has a crash at least".to_owned())
}

fn explain(history: &History, case: &Case, reason: &str) -> String {
    let mut text = String::new();
    if let Err(error) = last_machine(history, case, &mut text) {
        text += &error;
    }
    format!(
        "case {case}: {reason}\nreplay it with ATOMTREE_CRASH_CASE={case}\n{:?}\ninitial {:#?}\nprelude {:?}\nsteps {:#?}\n{text}",
        history.settings, history.initial, history.prelude, history.steps
    )
}
