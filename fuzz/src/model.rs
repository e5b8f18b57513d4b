//! Whole transactions with cuts: bytes become a history, the machine goes down at an operation that they choose, perhaps
//! again during recovery, and the harness's oracle judges what is left.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use atomtree::vfs::Vfs;
use atomtree::vfs::sim::Sim;
use atomtree_tests::crash::{Crash, Moment, Watch, judge, machine, open, step};
use atomtree_tests::history::{
    DEEP_DIRS, DEEP_FILES, DIRS, Entry, History, Operation, PATHS, Random, Settings, Step, Tree,
};

use super::Input;

const COMMITS_MAX: usize = 3;
const OPERATIONS_MAX: usize = 8;
/// Crashes, those of recoveries included.
const DEPTH_MAX: u8 = 3;
/// About as many operations as a history has, and a recovery.
const HISTORY_OPERATIONS: u64 = 400;
const RECOVERY_OPERATIONS: u64 = 60;

/// Each transaction is whole or absent, and there if it was acknowledged, wherever the machine goes down.
pub fn model(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (depth, at, seed) = (input.byte() % DEPTH_MAX, input.two_bytes(), input.byte());
    let crashes: Vec<(u64, Crash)> = (0..=depth)
        .map(|_| match (u64::from(input.byte()), input.byte()) {
            (at, 0..64) => (at, Crash::Kill),
            (at, seed) => (at, Crash::Cut(u64::from(seed))),
        })
        .collect();
    let history = history(&mut input);
    let whole = machine(&history);
    let moment = stopped(&whole, at as u64 % HISTORY_OPERATIONS, |watch| {
        let mut store = open(watch.vfs(), &history.settings).ok();
        for one in &history.steps {
            if store.is_none() || whole.is_halted() {
                break;
            }
            let done = match (one, &mut store) {
                // A machine that stops within a close has no `stage/` that could be looked at.
                (Step::Reopen, store) => store.take().expect("it is open").close().and_then(|()| {
                    *store = Some(open(watch.vfs(), &history.settings)?);
                    Ok(())
                }),
                (one, store) => step(watch, store, one, &history.settings),
            };
            match done {
                Err(error) if !whole.is_halted() => panic!("{one:?}: {error}\n{history:#?}"),
                _ => {}
            }
        }
    });
    let trees = history.trees();
    let allowed = moment.progress.allowed(&trees);
    let mut machine = moment.machine;
    for (level, (at, crash)) in crashes.iter().enumerate() {
        machine = crash.of(&machine);
        if level < crashes.len() - 1 {
            let recovering = machine.clone();
            machine = stopped(&recovering, at % RECOVERY_OPERATIONS, |watch| {
                drop(open(watch.vfs(), &history.settings));
            })
            .machine;
        }
    }
    let result = open(Arc::new(machine.clone()) as Arc<dyn Vfs>, &history.settings);
    let mut random = Random::new(u64::from(seed));
    if let Err(reason) = judge(result, &machine, &history.settings, allowed, &mut random, seed % 4 == 0) {
        panic!("{crashes:?} from {at}: {reason}\n{history:#?}");
    }
}

/// Runs something until it is about to do operation number `at`, or to its end. Returns the machine as it is then, with
/// its processes killed. Nothing later has any effect.
fn stopped(sim: &Sim, at: u64, run: impl FnOnce(&Arc<Watch>)) -> Moment {
    let (found, this) = (Arc::new(Mutex::new(None)), Arc::new(OnceLock::<Weak<Watch>>::new()));
    let (kept, own, at) = (Arc::clone(&found), Arc::clone(&this), sim.operations() + 1 + at);
    let stop = move |sim: &Sim, operation: u64, _: &_| {
        if operation == at && !sim.is_halted() {
            let watch = own.get().and_then(Weak::upgrade).expect("it is watching");
            let moment = Moment { machine: sim.kill(), operation, progress: watch.progress() };
            *kept.lock().expect("nobody panics with it") = Some(moment);
            sim.halt_at(operation);
        }
        None
    };
    let watch = Watch::new(sim, Some(Box::new(stop)));
    this.set(Arc::downgrade(&watch)).expect("it is set once");
    run(&watch);
    let stopped = found.lock().expect("nobody panics with it").take();
    stopped.unwrap_or_else(|| Moment {
        machine: sim.kill(),
        operation: sim.operations(),
        progress: watch.progress(),
    })
}

fn history(input: &mut Input<'_>) -> History {
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
    let initial = tree.clone();
    let mut steps = Vec::new();
    let commits = 1 + usize::from(input.byte()) % COMMITS_MAX;
    for _ in 0..commits {
        let mut operations = Vec::new();
        for _ in 0..=usize::from(input.byte()) % OPERATIONS_MAX {
            let operation = operation(input, &names, &tree);
            if operation.is_possible(&tree) {
                operation.perform_on(&mut tree);
                operations.push(operation);
            }
        }
        steps.push(Step::Commit(operations));
        match input.byte() % 8 {
            0 => steps.push(Step::Checkpoint),
            1 => steps.push(Step::Reopen),
            2 => steps.push(Step::Wait),
            _ => {}
        }
    }
    History { seed: 0, settings, initial, prelude: Vec::new(), steps }
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
