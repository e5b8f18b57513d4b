//! A guard on a simulated machine: programs edit the tree in place, the machine goes down before every operation, and
//! again in what follows; what is left must be what the guard promises.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atomtree::vfs::faults::{Call, Faults};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Dir, Timestamp, Vfs};
use atomtree::{Error, ErrorKind, Guard, GuardOptions, Store};

use crate::crash::{Crash, ROOT, differences, is_operation, machine, open, tree_of};
use crate::history::{Entry, History, Random, Settings, Tree};
use crate::injection::{Errno, Injection, Lasting};

/// What a program does to a file, or to a name, without any transaction.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Writes these bytes at this offset, in place.
    Write(&'static str, u64, Vec<u8>),
    /// Cuts a file short, or lengthens it.
    SetLen(&'static str, u64),
    /// Makes a file of these bytes.
    Create(&'static str, Vec<u8>),
    /// Makes a file and renames it over another name.
    Replace(&'static str, Vec<u8>),
    /// Makes a directory.
    MakeDir(&'static str),
    /// Makes a symlink.
    Link(&'static str, &'static str),
    /// Gives a file a second name.
    HardLink(&'static str, &'static str),
    /// Removes a name that is no directory.
    Remove(&'static str),
    /// Removes an empty directory.
    RemoveDir(&'static str),
    /// Renames to a free name.
    Rename(&'static str, &'static str),
    /// Swaps two names.
    Exchange(&'static str, &'static str),
    /// Changes a mode.
    SetMode(&'static str, u32),
    /// Sets an attribute of a directory.
    SetXattr(&'static str),
    /// Sets the time of the last change back, as `tar` does.
    SetTime(&'static str, i64),
    /// Makes a file durable.
    Sync(&'static str),
    /// Makes a directory's names durable.
    SyncDir(&'static str),
}

fn split(path: &str) -> (&str, &OsStr) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir, OsStr::new(name))
}

fn one(random: &mut Random, all: &[&'static str]) -> &'static str {
    all[random.below(all.len() as u64) as usize]
}

impl Edit {
    /// Does it, below this directory. What is not there to be edited is left alone.
    pub fn perform(&self, root: &dyn Dir) {
        match self.try_perform(root) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::IsADirectory
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::InvalidInput
                ) && error.raw_os_error() != Some(40) =>
            {
                panic!("{self:?}: {error}")
            }
            _ => {}
        }
    }

    /// Does it, below this directory.
    ///
    /// # Errors
    /// It can't be done there; a part of it may have been.
    pub fn try_perform(&self, root: &dyn Dir) -> io::Result<()> {
        let dir = |path: &str| root.open_dir(Path::new(split(path).0));
        let file = |path: &str| dir(path)?.open_file(split(path).1, Access::ReadWrite);
        let create = |path: &str, bytes: &[u8]| {
            let file = dir(path)?.create_file(split(path).1, 0o644)?;
            file.write_at(&[IoSlice::new(bytes)], 0)
        };
        match self {
            Self::Write(path, offset, bytes) => file(path)?.write_at(&[IoSlice::new(bytes)], *offset),
            Self::SetLen(path, bytes) => file(path)?.set_len(*bytes),
            Self::Create(path, bytes) => create(path, bytes),
            Self::Replace(path, bytes) => {
                create("passing", bytes)?;
                root.rename_over(OsStr::new("passing"), &*dir(path)?, split(path).1)
            }
            Self::MakeDir(path) => dir(path)?.create_dir(split(path).1, 0o755),
            Self::Link(path, target) => dir(path)?.create_symlink(split(path).1, OsStr::new(target)),
            Self::HardLink(from, to) => dir(from)?.link(split(from).1, &*dir(to)?, split(to).1),
            Self::Remove(path) => dir(path)?.remove_file(split(path).1),
            Self::RemoveDir(path) => dir(path)?.remove_dir(split(path).1),
            Self::Rename(from, to) => dir(from)?.rename(split(from).1, &*dir(to)?, split(to).1),
            Self::Exchange(one, other) => dir(one)?.exchange(split(one).1, &*dir(other)?, split(other).1),
            Self::SetMode(path, mode) => dir(path)?.set_mode_of(split(path).1, *mode),
            Self::SetXattr(path) => root.open_dir(Path::new(path))?.set_dir_xattr(OsStr::new("user.x"), b"1"),
            Self::SetTime(path, time) => file(path)?.set_modified(Timestamp(*time)),
            Self::Sync(path) => file(path)?.sync_all(),
            Self::SyncDir(path) => root.open_dir(Path::new(path))?.sync(),
        }
    }

    fn generate(random: &mut Random) -> Self {
        let names: &[&'static str] = &["a", "b", "d/a", "d/b", "d/e/a", "new", "d/new", "link", "twin"];
        let dirs: &[&'static str] = &["d", "d/e", "empty", "new dir", "d/new dir"];
        let path = one(random, names);
        let length = *random.pick(&[3, 600, 2000]);
        match random.below(22) {
            0..=3 => Self::Write(path, random.below(1200), random.bytes(length)),
            4 => Self::SetLen(path, random.below(1500)),
            5 | 6 => Self::Create(path, random.bytes(length)),
            7 | 8 => Self::Replace(path, random.bytes(length)),
            9 => Self::MakeDir(one(random, dirs)),
            10 => Self::Link(path, "d/a"),
            11 => Self::HardLink(path, one(random, names)),
            12 | 13 => Self::Remove(path),
            14 => Self::RemoveDir(one(random, dirs)),
            15 => Self::Rename(path, one(random, names)),
            16 => Self::Rename(one(random, dirs), one(random, dirs)),
            17 => Self::Exchange(one(random, dirs), one(random, dirs)),
            18 => Self::SetMode(if random.percent(50) { path } else { one(random, dirs) }, 0o700),
            19 => Self::SetXattr(one(random, dirs)),
            20 => Self::SetTime(path, 1),
            _ if random.percent(50) => Self::SyncDir(one(random, &["", "d", "d/e"])),
            _ => Self::Sync(path),
        }
    }
}

/// How a guard ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is kept.
    Kept,
    /// It is rolled back.
    RolledBack,
    /// It is rolled back, and what goes is kept.
    RolledBackKeeping,
    /// Nobody ends it.
    Left,
}

/// A guard, what is done under it, and how it ends; then another.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Decides everything.
    pub seed: u64,
    settings: Settings,
    initial: Tree,
    /// What is guarded.
    patterns: Vec<&'static str>,
    rounds: Vec<(Vec<Edit>, End)>,
}

impl Scene {
    /// The scene of this number.
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6a2d);
        let file = |random: &mut Random, bytes| Entry::file(random.bytes(bytes), 0o644);
        let mut initial = Tree::new();
        for (path, bytes) in [("a", 700), ("b", 0), ("d/a", 2500), ("d/b", 20), ("d/e/a", 1100)] {
            initial.insert(path.into(), file(&mut random, bytes));
        }
        for (path, mode) in [("d", 0o755), ("d/e", 0o750), ("empty", 0o711)] {
            initial.insert(path.into(), Entry::Dir(mode));
        }
        initial.insert("link".into(), Entry::Link("d/a".into()));
        initial.insert("other".into(), Entry::Other);
        let settings = Settings {
            can_exchange: random.percent(80),
            inode_reuse: random.percent(50),
            cache_pinned: random.percent(20),
            sync_keeps_names: random.percent(50),
            ..History::generate(seed).settings
        };
        let patterns = random.pick(&[vec!["**"], vec!["**"], vec!["d/**"], vec!["a", "/d"]]).clone();
        let mut rounds = Vec::new();
        let count = 1 + random.below(2);
        for _ in 0..count {
            let edits = (0..=random.below(7)).map(|_| Edit::generate(&mut random)).collect();
            let end = *random.pick(&[
                End::Kept,
                End::Kept,
                End::RolledBack,
                End::RolledBack,
                End::RolledBackKeeping,
                End::Left,
            ]);
            rounds.push((edits, end));
        }
        Self { seed, settings, initial, patterns, rounds }
    }

    fn machine(&self) -> Sim {
        let history = History {
            seed: self.seed,
            settings: self.settings,
            initial: self.initial.clone(),
            prelude: Vec::new(),
            steps: Vec::new(),
        };
        let sim = machine(&history);
        if self.seed.is_multiple_of(2) {
            let dir = sim.open_root(Path::new(ROOT)).expect("it is there");
            dir.link(OsStr::new("a"), &*dir, OsStr::new("twin")).expect("links can be made");
            dir.sync_filesystem().expect("nothing fails");
            sim.advance(1_000_000_000);
        }
        sim
    }

    fn options(&self) -> GuardOptions {
        self.patterns.iter().fold(GuardOptions::new(), |options, pattern| options.guard(*pattern))
    }

    /// The tree without the names that no guard covers.
    fn covered(&self, tree: Tree) -> Tree {
        tree.into_iter().filter(|(path, _)| self.covers(path)).collect()
    }

    /// What no guard covers; without directories: those that were made for what is covered go with that.
    fn files_beside(&self, tree: Tree) -> Tree {
        let is_beside = |path: &str, entry: &Entry| !self.covers(path) && !matches!(entry, Entry::Dir(_));
        tree.into_iter().filter(|(path, entry)| is_beside(path, entry)).collect()
    }

    fn covers(&self, path: &str) -> bool {
        self.patterns.contains(&"**")
            || path.starts_with("d/")
            || self.patterns.contains(&"a") && (["a", "d"].contains(&path) || path.ends_with("/a"))
    }
}

/// The machine just before an operation, and what may be found after it has gone down there.
#[derive(Clone)]
struct Moment {
    machine: Sim,
    operation: u64,
    allowed: Vec<Tree>,
}

/// Remembers the machine before every operation.
struct Recorder {
    sim: Sim,
    moments: Mutex<Vec<Moment>>,
    allowed: Mutex<Vec<Tree>>,
}

impl Recorder {
    fn new(sim: &Sim, allowed: Vec<Tree>) -> Arc<Self> {
        Arc::new(Self { sim: sim.clone(), moments: Mutex::default(), allowed: Mutex::new(allowed) })
    }

    fn vfs(self: &Arc<Self>) -> Arc<dyn Vfs> {
        let this = Arc::clone(self);
        let rule = move |call: &Call| {
            if is_operation(call.verb) {
                this.remember();
            }
            None
        };
        Arc::new(Faults::new(Arc::new(self.sim.clone()), Arc::new(rule)))
    }

    fn remember(&self) {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (machine, operation) = (self.sim.kill(), self.sim.operations() + 1);
        let moment = Moment { machine, operation, allowed };
        self.moments.lock().unwrap_or_else(PoisonError::into_inner).push(moment);
    }

    fn allow(&self, trees: Vec<Tree>) {
        *self.allowed.lock().unwrap_or_else(PoisonError::into_inner) = trees;
    }

    fn finish(&self) -> Vec<Moment> {
        self.remember();
        std::mem::take(&mut *self.moments.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the scene to its end, and returns its moments.
fn record(scene: &Scene) -> Vec<Moment> {
    let sim = scene.machine();
    let mut tree = scene.covered(tree_of(&sim));
    let recorder = Recorder::new(&sim, vec![tree.clone()]);
    let outside = recorder.vfs().open_root(Path::new(ROOT)).expect("it is there");
    let mut store = Some(open(recorder.vfs(), &scene.settings).expect("a new store opens"));
    for (edits, end) in &scene.rounds {
        let guard: Guard = store
            .as_ref()
            .expect("it is open")
            .guard_with(&scene.options())
            .expect("everything can be guarded");
        for edit in edits {
            edit.perform(&*outside);
            if scene.seed.is_multiple_of(3) {
                sim.advance(20_000_000);
            }
        }
        let edited = scene.covered(tree_of(&sim));
        match end {
            End::Kept => {
                recorder.allow(vec![tree, edited.clone()]);
                guard.keep().expect("nothing fails");
                tree = edited;
                recorder.allow(vec![tree.clone()]);
            }
            End::RolledBack => assert_eq!(guard.roll_back().expect("nothing fails").lost, []),
            End::RolledBackKeeping => drop(guard.roll_back_keeping().expect("nothing fails")),
            End::Left => {
                guard.leave();
                drop(store.take());
                let reopened = open(recorder.vfs(), &scene.settings).expect("it opens again");
                assert_eq!(reopened.recovery().rolled_back, 1);
                assert_eq!(reopened.recovery().lost, []);
                store = Some(reopened);
            }
        }
        compare(scene, &sim, std::slice::from_ref(&tree))
            .unwrap_or_else(|reason| panic!("{scene:#?}: {reason}"));
    }
    store.take().expect("it is open").close().expect("a healthy store closes");
    recorder.finish()
}

fn compare(scene: &Scene, machine: &Sim, allowed: &[Tree]) -> Result<usize, String> {
    let found = scene.covered(tree_of(machine));
    let index = allowed.iter().position(|allowed| *allowed == found);
    index.ok_or_else(|| format!("the tree is none of those allowed\n{}", differences(&found, allowed)))
}

/// What is left of guards; nothing, if all is well.
pub fn leftovers(machine: &Sim) -> Vec<String> {
    let Ok(guards) = machine.open_root(Path::new(&format!("{ROOT}/.atomtree/guards"))) else {
        return Vec::new();
    };
    let names = guards.list().expect("it can be listed").into_iter();
    let names = names.map(|entry| entry.name.to_string_lossy().into_owned());
    names.filter(|name| name.len() == 16).collect()
}

fn opened(machine: &Sim, scene: &Scene) -> Result<Store, Error> {
    open(Arc::new(machine.clone()), &scene.settings)
}

/// Lets the machine go down before every operation of the scene, and of what the next opens do after that, up to
/// `depth` more times. Returns how many openings were judged.
///
/// # Panics
/// With the way there, when a promise is broken.
pub fn explore(scene: &Scene, depth: u32, cuts: u64) -> u64 {
    let mut judged = 0;
    let mut random = Random::new(scene.seed ^ 0xc4a5);
    for moment in record(scene) {
        for crash in crashes(&mut random, cuts) {
            let path = vec![(moment.operation, crash)];
            judged += go_down(scene, &moment, &path, depth, &mut random);
        }
    }
    judged
}

fn crashes(random: &mut Random, cuts: u64) -> Vec<Crash> {
    let mut all = vec![Crash::Kill];
    all.extend((0..cuts).map(|_| Crash::Cut(random.next())));
    all
}

fn go_down(scene: &Scene, moment: &Moment, path: &[(u64, Crash)], depth: u32, random: &mut Random) -> u64 {
    let crash = path.last().expect("there is one").1;
    let machine = crash.of(&moment.machine);
    machine.set_trace(true);
    let fail = |machine: &Sim, reason: &str| -> ! {
        panic!("{path:?} of {scene:#?}: {reason}\n{}", machine.trace().join("\n"))
    };
    let recorder = Recorder::new(&machine, moment.allowed.clone());
    let store = match open(recorder.vfs(), &scene.settings) {
        Ok(store) => store,
        Err(error) => fail(&machine, &format!("it does not open: {error}")),
    };
    let lost = store.recovery().lost.clone();
    if !lost.is_empty() {
        fail(&machine, &format!("lost: {lost:?}"));
    }
    let found = match compare(scene, &machine, &moment.allowed) {
        Ok(index) => moment.allowed[index].clone(),
        Err(reason) => fail(&machine, &reason),
    };
    let left = leftovers(&machine);
    if !left.is_empty() {
        fail(&machine, &format!("guards are left: {left:?}"));
    }
    drop(store);
    // Now that somebody has opened it, it is what it was found to be.
    let after = Moment { machine: machine.power_cut(random.next()), operation: 0, allowed: vec![found] };
    let again = match opened(&after.machine, scene) {
        Ok(store) => store,
        Err(error) => fail(&after.machine, &format!("after a cut it does not open: {error}")),
    };
    if let Err(reason) = compare(scene, &after.machine, &after.allowed) {
        fail(&after.machine, &format!("after a cut of a store that had been opened, {reason}"));
    }
    if random.percent(5) {
        go_on(scene, &again, &after.machine, random).unwrap_or_else(|reason| fail(&after.machine, &reason));
    }
    let mut judged = 2;
    // Not after each, so that the number of paths stays in bounds.
    if depth > 0 && random.percent(20) {
        let moments = recorder.finish();
        let chosen = (0..3).map(|_| random.pick(&moments).clone()).collect::<Vec<_>>();
        for inner in chosen {
            let crash = if random.percent(40) { Crash::Kill } else { Crash::Cut(random.next()) };
            let path = [path, &[(inner.operation, crash)]].concat();
            judged += go_down(scene, &inner, &path, depth - 1, random);
        }
    }
    judged
}

/// The store works: another guard, rolled back, and one that is kept.
fn go_on(scene: &Scene, store: &Store, machine: &Sim, random: &mut Random) -> Result<(), String> {
    let outside = machine.open_root(Path::new(ROOT)).map_err(|error| error.to_string())?;
    for keep in [false, true] {
        let before = scene.covered(tree_of(machine));
        let guard = store.guard_with(&scene.options()).map_err(|error| error.to_string())?;
        (0..3).for_each(|_| Edit::generate(random).perform(&*outside));
        let edited = scene.covered(tree_of(machine));
        if keep {
            guard.keep().map_err(|error| error.to_string())?;
        } else {
            guard.roll_back().map_err(|error| error.to_string())?;
        }
        compare(scene, machine, &[if keep { edited } else { before }])?;
    }
    Ok(())
}

/// Whether `error` says what the storage said, or that it can't be known.
fn is_truthful(error: &Error, errno: Errno) -> bool {
    let kind = error.kind();
    kind == errno.kind()
        || matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Poisoned)
        // Where `openat2` is refused, nothing is known to stay inside the root.
        || errno == Errno::Permission && kind == ErrorKind::Unsupported
}

/// Runs the scene with a call failing, counted from the first guard on, until something is told. Returns what may be found.
fn run_failing(scene: &Scene, sim: &Sim, injection: &Injection, errno: Errno) -> Result<Vec<Tree>, String> {
    let is_on = Arc::new(AtomicBool::new(false));
    let (by_rule, on, machine) = (injection.clone(), Arc::clone(&is_on), sim.clone());
    let rule =
        move |call: &Call| on.load(Ordering::Relaxed).then(|| by_rule.answer(&machine, call)).flatten();
    let faults: Arc<dyn Vfs> = Arc::new(Faults::new(Arc::new(sim.clone()), Arc::new(rule)));
    let outside = sim.open_root(Path::new(ROOT)).expect("it is there");
    let store = open(faults, &scene.settings).expect("nothing fails yet");
    let told = |error: &Error| {
        if injection.hit().is_none() {
            return Err(format!("it fails by itself: {error}"));
        }
        let is_told = is_truthful(error, errno).then_some(());
        is_told.ok_or_else(|| format!("it is told to have failed with {:?}: {error}", error.kind()))
    };
    let mut tree = scene.covered(tree_of(sim));
    let mut allowed = vec![tree.clone()];
    for (edits, end) in &scene.rounds {
        is_on.store(true, Ordering::Relaxed);
        let guard = match store.guard_with(&scene.options()) {
            Ok(guard) => guard,
            Err(error) => {
                told(&error)?;
                compare(scene, sim, &allowed)?;
                break;
            }
        };
        edits.iter().for_each(|edit| edit.perform(&*outside));
        let all = tree_of(sim);
        let (edited, beside) = (scene.covered(all.clone()), scene.files_beside(all));
        let ended = match end {
            End::Kept => {
                allowed = vec![tree.clone(), edited.clone()];
                guard.keep().map(|()| allowed = vec![edited.clone()])
            }
            End::RolledBackKeeping => guard.roll_back_keeping().map(drop),
            End::RolledBack => guard.roll_back().map(drop),
            End::Left => {
                guard.leave();
                break;
            }
        };
        if scene.files_beside(tree_of(sim)) != beside {
            return Err("files that no guard covers have changed".into());
        }
        if let Err(error) = ended {
            told(&error)?;
            let kind = store.begin().err().map(|error| error.kind());
            if kind != Some(ErrorKind::Poisoned) {
                return Err(format!("after {error}, begin says {kind:?}"));
            }
            break;
        }
        compare(scene, sim, &allowed)?;
        tree = allowed[0].clone();
    }
    // The device is well again, and whoever had the store open is gone.
    is_on.store(false, Ordering::Relaxed);
    Ok(allowed)
}

/// Fails one call of the scene after the other, in a way that `seed` draws, and often one of the recovery that follows;
/// judges what is told, and what the next open makes of it. Returns how many were judged.
///
/// # Panics
/// With the way there, when a promise is broken.
pub fn fail_every_call(scene: &Scene, seed: u64) -> u64 {
    let unhit = Injection::new(u64::MAX, Errno::Io, Lasting::Once);
    run_failing(scene, &scene.machine(), &unhit, Errno::Io)
        .unwrap_or_else(|reason| panic!("{scene:#?}: {reason}"));
    let mut random = Random::new(scene.seed ^ seed << 32 ^ 0xfa11);
    for number in 1..=unhit.count() {
        let (errno, lasting) = (*random.pick(&Errno::ALL), *random.pick(&Lasting::ALL));
        let sim = scene.machine();
        sim.set_trace(true);
        let mut trace = vec![format!("call {number} failing with {errno:?}, {lasting:?}")];
        let result = run_failing(scene, &sim, &Injection::new(number, errno, lasting), errno);
        trace.extend(sim.trace());
        let verdict =
            result.and_then(|allowed| fail_afterwards(scene, &sim, &allowed, errno, &mut random, &mut trace));
        verdict.unwrap_or_else(|reason| panic!("{scene:#?}, {seed}: {reason}\n{}", trace.join("\n")));
    }
    unhit.count()
}

/// The machine goes down, often a call of the recovery fails and it goes down again, and then the store opens.
fn fail_afterwards(
    scene: &Scene,
    sim: &Sim,
    allowed: &[Tree],
    errno: Errno,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    let goes_down = |sim: &Sim, random: &mut Random, trace: &mut Vec<String>| {
        let crash = if random.percent(50) { Crash::Kill } else { Crash::Cut(random.next()) };
        trace.push(format!("{crash:?}"));
        let machine = crash.of(sim);
        machine.set_trace(true);
        machine
    };
    let mut machine = goes_down(sim, random, trace);
    if random.percent(50) {
        let injection = Injection::new(1 + random.below(120), errno, *random.pick(&Lasting::ALL));
        trace.push(format!("recovery, {injection:?}"));
        let (by_rule, failing) = (injection.clone(), machine.clone());
        let rule = move |call: &Call| by_rule.answer(&failing, call);
        let result = open(Arc::new(Faults::new(Arc::new(machine.clone()), Arc::new(rule))), &scene.settings);
        if let Err(error) = &result
            && !(injection.hit().is_some() && is_truthful(error, errno))
        {
            return Err(format!("recovery is told to have failed with {:?}: {error}", error.kind()));
        }
        trace.extend(machine.trace());
        machine = goes_down(&machine, random, trace);
    }
    let store = opened(&machine, scene).map_err(|error| format!("it does not open: {error}"));
    trace.extend(machine.trace());
    let lost = store?.recovery().lost.clone();
    if !lost.is_empty() {
        return Err(format!("lost: {lost:?}"));
    }
    compare(scene, &machine, allowed)?;
    let left = leftovers(&machine);
    if left.is_empty() { Ok(()) } else { Err(format!("guards are left: {left:?}")) }
}
