//! Whole histories with cuts: bytes become transactions, guards with edits in place, undos and redos; the machine goes
//! down at an operation that they choose, perhaps again during recovery, and the harness's oracle judges what is left.

use std::path::Path;
use std::sync::Arc;

use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Dir, Vfs};
use atomtree::{ErrorKind, GuardOptions, Receipt, RecoveryReport, Store, TransactionId};
use atomtree_tests::crash::{
    Crash, ROOT, check_stage_is_empty, commit_as, differences, judge, machine, open, tree_of,
};
use atomtree_tests::guarded::{Edit, leftovers};
use atomtree_tests::history::{
    DEEP_DIRS, DEEP_FILES, DIRS, Entry, History, Operation, PATHS, Random, Settings, Step, Tree,
};

use super::Input;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const COMMITS_MAX: usize = 3;
const OPERATIONS_MAX: usize = 8;
const EDITS_MAX: usize = 8;
/// Guards, undos and redos behind each commit.
const TURNS_MAX: usize = 4;
/// Crashes, those of recoveries included.
const DEPTH_MAX: u8 = 3;
/// About as many operations as a history has, and a recovery.
const HISTORY_OPERATIONS: u64 = 1000;
const RECOVERY_OPERATIONS: u64 = 60;

/// Each transaction is whole or absent, and there if it was acknowledged, wherever the machine goes down; what was guarded
/// is as it was, or as it was kept; what is undone is as it was before, or untouched.
pub fn model(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (depth, at, seed) = (input.byte() % DEPTH_MAX, input.two_bytes(), input.byte());
    let crashes: Vec<(u64, Crash)> = (0..=depth)
        .map(|_| match (u64::from(input.byte()), input.byte()) {
            (at, 0..64) => (at, Crash::Kill),
            (at, seed) => (at, Crash::Cut(u64::from(seed))),
        })
        .collect();
    let (settings, names, initial) = beginning(&mut input);
    let history = History { seed: 0, settings, initial, prelude: Vec::new(), steps: Vec::new() };
    let whole = machine(&history);
    let mut run = Run::new(&whole, &history);
    let mut machine = stopped(&whole, at as u64 % HISTORY_OPERATIONS, |vfs| run.go(vfs, &mut input, &names));
    for (level, (at, crash)) in crashes.iter().enumerate() {
        machine = crash.of(&machine);
        if level < crashes.len() - 1 {
            let recovering = machine.clone();
            machine = stopped(&recovering, at % RECOVERY_OPERATIONS, |vfs| drop(open(vfs, &settings)));
        }
    }
    let result = open(Arc::new(machine.clone()) as Arc<dyn Vfs>, &settings);
    let mut random = Random::new(u64::from(seed));
    let fail =
        |reason: &str| -> ! { panic!("{crashes:?} from {at}: {reason}\n{history:#?}\n{:#?}", run.acts) };
    if let Err(reason) = judge(result, &machine, &settings, &run.allowed, &mut random, seed.is_multiple_of(4))
    {
        fail(&reason);
    }
    let left = leftovers(&machine);
    if !left.is_empty() {
        fail(&format!("guards are left: {left:?}"));
    }
}

/// Runs something until it is about to do operation number `at`, or to its end. Returns the machine as it is then, with
/// its processes killed. Nothing later has any effect.
fn stopped(sim: &Sim, at: u64, run: impl FnOnce(Arc<dyn Vfs>)) -> Sim {
    sim.halt_at(sim.operations() + 1 + at);
    run(Arc::new(sim.clone()));
    sim.kill()
}

/// One thing of a history.
#[derive(Clone, Debug)]
enum Act {
    Step(Step),
    /// A guard on a name and all below it, or on everything.
    Guard {
        name: Option<&'static str>,
        edits: Vec<Edit>,
        write: Option<Operation>,
        end: End,
    },
    /// Which of the transactions so far.
    Undo(usize),
    Redo(usize),
}

/// How a guard ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Kept,
    RolledBack,
    Dropped,
    /// Nobody ends it, and the store is opened again.
    Left,
}

/// Whether a transaction is undone or redone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Back,
    Forth,
}

/// A transaction that is in the history.
struct Past {
    tx: TransactionId,
    before: Tree,
    after: Tree,
    touches: Touches,
}

/// What a transaction has to do with beside files in their places.
#[derive(Clone, Copy, Debug, Default)]
struct Touches {
    /// Whether directories were made, moved or removed.
    directories: bool,
    /// Whether anything was renamed.
    moves: bool,
}

/// What comes of undoing or redoing a transaction.
enum Turned {
    /// This tree, unless what moved is not the same inode any more.
    To(Tree),
    /// Nothing: a name has moved on.
    Refused,
    /// The model is too dumb to know.
    Unknown,
}

/// A machine with a store, and what has to be found.
struct Run<'a> {
    sim: &'a Sim,
    settings: &'a Settings,
    acts: Vec<Act>,
    past: Vec<Past>,
    /// Undos and redos that nothing can be in the way of: of what was done last.
    sure: Vec<(usize, Way)>,
    now: Tree,
    /// What may be there if the machine goes down.
    allowed: Vec<Tree>,
}

/// A machine's store while it is open, and the tree as other programs get at it.
struct Machine {
    vfs: Arc<dyn Vfs>,
    store: Option<Store>,
    outside: Arc<dyn Dir>,
}

impl<'a> Run<'a> {
    fn new(sim: &'a Sim, history: &'a History) -> Self {
        let now = history.initial.clone();
        let (acts, past, sure, allowed) = (Vec::new(), Vec::new(), Vec::new(), vec![now.clone()]);
        Self { sim, settings: &history.settings, acts, past, sure, now, allowed }
    }

    /// Does what the input says, until the machine stops.
    fn go(&mut self, vfs: Arc<dyn Vfs>, input: &mut Input<'_>, names: &[&'static str]) {
        match self.try_go(vfs, input, names) {
            Err(reason) if !self.sim.is_halted() => {
                panic!("{reason}\n{:?}\n{:#?}", self.settings, self.acts)
            }
            _ => {}
        }
    }

    fn try_go(&mut self, vfs: Arc<dyn Vfs>, input: &mut Input<'_>, names: &[&'static str]) -> Outcome {
        let store = Some(open(vfs.clone(), self.settings)?);
        let outside = vfs.open_root(Path::new(ROOT))?;
        let mut machine = Machine { vfs, store, outside };
        self.expect(&self.now)?;
        for _ in 0..=usize::from(input.byte()) % COMMITS_MAX {
            let operations = operations(input, names, &self.now);
            self.perform(&mut machine, Act::Step(Step::Commit(operations)))?;
            for _ in 0..TURNS_MAX {
                let Some(act) = turn(input, names, self.past.len()) else { break };
                let is_step = matches!(act, Act::Step(_));
                self.perform(&mut machine, act)?;
                if is_step {
                    break;
                }
            }
        }
        Ok(())
    }

    fn perform(&mut self, machine: &mut Machine, act: Act) -> Outcome {
        self.acts.push(act.clone());
        match act {
            Act::Step(step) => self.step(machine, &step)?,
            Act::Guard { name, edits, write, end } => {
                self.guard(machine, name, &edits, write, end)?;
                // What came back is other inodes, by which what moved is known.
                self.sure.clear();
            }
            Act::Undo(number) => self.turn_back(machine, number, Way::Back)?,
            Act::Redo(number) => self.turn_back(machine, number, Way::Forth)?,
        }
        self.expect(&self.now)
    }

    fn step(&mut self, machine: &mut Machine, step: &Step) -> Outcome {
        match step {
            Step::Commit(operations) => self.commit(machine.store(), operations),
            Step::Checkpoint => Ok(machine.store().checkpoint()?),
            Step::Reopen => {
                machine.store.take().expect("it is open").close()?;
                self.check_running()?;
                check_stage_is_empty(self.sim)?;
                let report = machine.open(self.settings)?;
                let is_clean = report == RecoveryReport::default();
                if is_clean { Ok(()) } else { Err(format!("after a clean close: {report:#?}").into()) }
            }
            Step::Wait => {
                self.sim.advance(20_000_000);
                Ok(())
            }
        }
    }

    fn commit(&mut self, store: &Store, operations: &[Operation]) -> Outcome {
        let (next, touches) = after(&self.now, operations);
        self.allowed = vec![self.now.clone(), next.clone()];
        let receipt = commit_as(store, operations, self.settings.settled)?;
        self.has_committed(&receipt, next, touches);
        Ok(())
    }

    fn has_committed(&mut self, receipt: &Receipt, next: Tree, touches: Touches) {
        self.allowed = vec![next.clone()];
        let before = std::mem::replace(&mut self.now, next);
        self.sure.clear();
        // One that changed nothing is in no history.
        if receipt.tx().0 != 0 {
            self.sure.push((self.past.len(), Way::Back));
            self.past.push(Past { tx: receipt.tx(), before, after: self.now.clone(), touches });
        }
    }

    /// Undoes or redoes a transaction, where the model knows what comes of that.
    fn turn_back(&mut self, machine: &Machine, number: usize, way: Way) -> Outcome {
        let past = &self.past[number];
        let (from, to) = match way {
            Way::Back => (&past.after, &past.before),
            Way::Forth => (&past.before, &past.after),
        };
        let next = match turned(&self.now, from, to, past.touches) {
            Turned::To(next) => Some(next),
            Turned::Refused => None,
            Turned::Unknown => return Ok(()),
        };
        let (tx, touches) = (past.tx, past.touches);
        let is_sure = self.sure.contains(&(number, way));
        self.allowed = [Some(self.now.clone()), next.clone()].into_iter().flatten().collect();
        let (done, refusals) = match way {
            Way::Back => (machine.store().undo(tx), vec![ErrorKind::Conflict]),
            // What a transaction made that was never undone, and has moved away since, is kept nowhere.
            Way::Forth => (machine.store().redo(tx), vec![ErrorKind::Conflict, ErrorKind::NotFound]),
        };
        match (done, next) {
            (Ok(_), None) => Err(format!("{way:?} of transaction {tx}, although a name has moved on").into()),
            (Ok(receipt), Some(next)) => {
                self.has_committed(&receipt, next, touches);
                if way == Way::Back {
                    self.sure.push((number, Way::Forth));
                }
                Ok(())
            }
            (Err(error), _) if !is_sure && refusals.contains(&error.kind()) => {
                self.allowed = vec![self.now.clone()];
                Ok(())
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn guard(
        &mut self,
        machine: &mut Machine,
        name: Option<&'static str>,
        edits: &[Edit],
        write: Option<Operation>,
        end: End,
    ) -> Outcome {
        let mut options = GuardOptions::new();
        if let Some(name) = name {
            options = options.guard(format!("/{name}"));
        }
        let guard = machine.store().guard_with(&options)?;
        for edit in edits {
            // What can't be done is not.
            let _ = edit.try_perform(&*machine.outside);
        }
        self.check_running()?;
        let mut edited = tree_of(self.sim);
        if let Some(write) = write.filter(|write| write.is_possible(&edited) && write.is_possible(&self.now))
        {
            let is_locked = write.paths().into_iter().any(|path| is_covered(name, path));
            let write = [write];
            if is_locked {
                match commit_as(machine.store(), &write, self.settings.settled) {
                    Err(error) if error.kind() == ErrorKind::Locked => {}
                    other => return Err(format!("a transaction under a guard: {other:?}").into()),
                }
            } else {
                self.commit(machine.store(), &write)?;
                write[0].perform_on(&mut edited);
            }
            self.expect(&edited)?;
        }
        match end {
            End::Kept => {
                self.allowed = vec![self.now.clone(), edited.clone()];
                guard.keep()?;
                self.allowed = vec![edited.clone()];
                self.now = edited;
            }
            End::RolledBack => {
                let lost = guard.roll_back()?.lost;
                if !lost.is_empty() {
                    return Err(format!("lost in a roll back: {lost:?}").into());
                }
            }
            End::Dropped => drop(guard),
            End::Left => {
                guard.leave();
                drop(machine.store.take());
                let report = machine.open(self.settings)?;
                if (report.rolled_back, report.lost.len()) != (1, 0) {
                    return Err(format!("a guard was left, and {report:#?}").into());
                }
            }
        }
        Ok(())
    }

    /// What every program sees now.
    fn expect(&self, tree: &Tree) -> Outcome {
        self.check_running()?;
        let found = tree_of(self.sim);
        if found == *tree {
            return Ok(());
        }
        Err(format!("the tree is another one\n{}", differences(&found, std::slice::from_ref(tree))).into())
    }

    fn check_running(&self) -> Outcome {
        if self.sim.is_halted() { Err("the machine has stopped".into()) } else { Ok(()) }
    }
}

impl Machine {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    fn open(&mut self, settings: &Settings) -> Outcome<RecoveryReport> {
        let store = open(self.vfs.clone(), settings)?;
        let report = store.recovery().clone();
        self.store = Some(store);
        Ok(report)
    }
}

/// The tree behind these operations, and what they touch.
fn after(tree: &Tree, operations: &[Operation]) -> (Tree, Touches) {
    let mut next = tree.clone();
    let mut touches = Touches::default();
    for operation in operations {
        match operation {
            Operation::CreateDir(_) | Operation::RemoveDir(_) | Operation::RemoveDirAll(_) => {
                touches.directories = true;
            }
            Operation::Rename(from, _) => {
                touches.moves = true;
                touches.directories |= is_dir(next.get(*from));
            }
            _ => {}
        }
        operation.perform_on(&mut next);
    }
    (next, touches)
}

fn is_dir(entry: Option<&Entry>) -> bool {
    matches!(entry, Some(Entry::Dir(_)))
}

/// The tree that a transaction leaves when it is gone through from the one to the other of two trees.
fn turned(now: &Tree, from: &Tree, to: &Tree, touches: Touches) -> Turned {
    if now == from {
        return Turned::To(to.clone());
    }
    let mut next = now.clone();
    let changed = from.keys().chain(to.keys()).filter(|path| from.get(*path) != to.get(*path));
    for path in changed {
        let (left, wanted, found) = (from.get(path), to.get(path), now.get(path));
        // What others put into a directory goes where that goes, or keeps it there.
        if touches.directories || is_dir(left) || is_dir(wanted) {
            return Turned::Unknown;
        }
        let entry = match (left, wanted, found) {
            // Where only the mode was changed, only the mode is, whatever is in the file by now.
            (
                Some(Entry::File { content: left, mode: mode_left }),
                Some(Entry::File { content: wanted, mode: mode_wanted }),
                Some(Entry::File { content, mode }),
            ) if left == wanted && mode == mode_left => {
                Some(Entry::File { content: content.clone(), mode: *mode_wanted })
            }
            // An inode that moved is known by itself, and goes back with whatever is in it by now.
            _ if found != left && touches.moves => return Turned::Unknown,
            _ if found != left => return Turned::Refused,
            _ => wanted.cloned(),
        };
        match entry {
            Some(entry) => drop(next.insert(path.clone(), entry)),
            None => drop(next.remove(path)),
        }
    }
    let has_parent = |path: &String| path.rfind('/').is_none_or(|at| is_dir(next.get(&path[..at])));
    if next.keys().all(has_parent) { Turned::To(next) } else { Turned::Unknown }
}

/// Whether a guard on this name, or on everything, covers the path.
fn is_covered(name: Option<&str>, path: &str) -> bool {
    let Some(name) = name else { return true };
    path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The storage, the names and the tree of a history.
fn beginning(input: &mut Input<'_>) -> (Settings, Vec<&'static str>, Tree) {
    let flags = input.byte();
    let settings = Settings {
        inline_bytes_max: [1 << 20, 1000, 100, 0][usize::from(flags % 4)],
        can_exchange: flags & 4 == 0,
        inode_reuse: flags & 8 != 0,
        cache_pinned: flags & 16 != 0,
        sync_keeps_names: flags & 32 != 0,
        settled: flags & 64 != 0,
    };
    let names: Vec<&'static str> = match flags & 128 {
        0 => PATHS.iter().chain(&DIRS).copied().collect(),
        _ => DEEP_FILES.iter().chain(&DEEP_DIRS).copied().collect(),
    };
    let mut tree = Tree::new();
    for _ in 0..input.byte() % 8 {
        let operation = Operation::WriteWithMode(name(input, &names), content(input), 0o644);
        if operation.is_possible(&tree) {
            operation.perform_on(&mut tree);
        }
    }
    // Directories that only their files imply are listed, too.
    debug_assert!(tree.values().all(|entry| !matches!(entry, Entry::Link(_) | Entry::Other)));
    (settings, names, tree)
}

/// What a transaction does, each thing possible after those before it.
fn operations(input: &mut Input<'_>, names: &[&'static str], tree: &Tree) -> Vec<Operation> {
    let mut tree = tree.clone();
    let mut operations = Vec::new();
    for _ in 0..=usize::from(input.byte()) % OPERATIONS_MAX {
        let operation = operation(input, names, &tree);
        if operation.is_possible(&tree) {
            operation.perform_on(&mut tree);
            operations.push(operation);
        }
    }
    operations
}

/// What happens behind so many transactions, if anything does.
fn turn(input: &mut Input<'_>, names: &[&'static str], past: usize) -> Option<Act> {
    let act = match input.byte() {
        200.. => match input.byte() % 8 {
            4 | 5 if past > 0 => Act::Undo(usize::from(input.byte()) % past),
            6 if past > 0 => Act::Redo(usize::from(input.byte()) % past),
            _ => guard(input, names),
        },
        byte => match byte % 8 {
            0 => Act::Step(Step::Checkpoint),
            1 => Act::Step(Step::Reopen),
            2 => Act::Step(Step::Wait),
            _ => return None,
        },
    };
    Some(act)
}

fn guard(input: &mut Input<'_>, names: &[&'static str]) -> Act {
    let guarded = if input.byte() < 128 { None } else { Some(name(input, names)) };
    let end = [End::Kept, End::RolledBack, End::Dropped, End::Left][usize::from(input.byte() % 4)];
    let write = if input.byte().is_multiple_of(4) {
        Some(Operation::Write(name(input, names), content(input)))
    } else {
        None
    };
    let covered: Vec<&'static str> = names.iter().copied().filter(|name| is_covered(guarded, name)).collect();
    let mut edits = Vec::new();
    for _ in 0..usize::from(input.byte()) % EDITS_MAX {
        edits.push(match edit(input, &covered) {
            // Through a name beside the guarded one.
            Edit::Replace(path, bytes) if guarded.is_some() => Edit::Create(path, bytes),
            // Later transactions would have to be told what to do with it.
            Edit::HardLink(path, _) if matches!(end, End::Kept) => Edit::Remove(path),
            edit => edit,
        });
    }
    Act::Guard { name: guarded, edits, write, end }
}

fn edit(input: &mut Input<'_>, names: &[&'static str]) -> Edit {
    let (verb, path) = (input.byte(), name(input, names));
    match verb % 16 {
        0..3 => Edit::Write(path, input.two_bytes() as u64 % 5000, content(input)),
        3 => Edit::SetLen(path, input.two_bytes() as u64 % 5000),
        4 => Edit::Create(path, content(input)),
        5 => Edit::Replace(path, content(input)),
        6 => Edit::MakeDir(path),
        7 => Edit::Link(path, "nowhere"),
        8 => Edit::HardLink(path, name(input, names)),
        9 => Edit::Remove(path),
        10 => Edit::RemoveDir(path),
        11 => Edit::Rename(path, name(input, names)),
        12 => Edit::Exchange(path, name(input, names)),
        13 => Edit::SetMode(path, [0o700, 0o755, 0o644, 0o500][usize::from(input.byte() % 4)]),
        14 => Edit::SetTime(path, 1),
        _ => Edit::Sync(path),
    }
}

fn name(input: &mut Input<'_>, names: &[&'static str]) -> &'static str {
    names[usize::from(input.byte()) % names.len()]
}

fn content(input: &mut Input<'_>) -> Vec<u8> {
    let length = usize::from(input.byte()) * if input.byte() < 192 { 1 } else { 16 };
    Random::new(u64::from(input.byte())).bytes(length)
}

fn operation(input: &mut Input<'_>, names: &[&'static str], tree: &Tree) -> Operation {
    let (verb, path) = (input.byte(), name(input, names));
    match verb % 16 {
        0..3 => Operation::Write(path, content(input)),
        3 => Operation::WriteWithMode(
            path,
            content(input),
            [0o600, 0o644, 0o755, 0o400][usize::from(input.byte() % 4)],
        ),
        4 => Operation::Append(path, content(input)),
        5 => {
            let length = match tree.get(path) {
                Some(Entry::File { content, .. }) => content.len() as u64,
                _ => 0,
            };
            Operation::Patch(path, input.number() % (length + 1), content(input))
        }
        6 => Operation::Remove(path),
        7..11 => Operation::Rename(path, name(input, names)),
        11 => Operation::CreateDir(path),
        12 => Operation::RemoveDir(path),
        13 => Operation::RemoveDirAll(path),
        14 => Operation::Symlink(path, ["a", "dir/x", "nowhere"][usize::from(input.byte() % 3)]),
        _ => Operation::SetMode(path, [0o700, 0o755, 0o644, 0o500][usize::from(input.byte() % 4)]),
    }
}
