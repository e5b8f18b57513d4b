//! Every place that calls storage, in every phase in which it does, fails in every way: what is told must be true, what
//! is there must be whole, and the next open must be fine.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use atomtree::ErrorKind;
use atomtree::vfs::faults::{Call, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;

use crate::call_sites::{self, Mention, Site};
use crate::crash::{Crash, judge};
use crate::history::Random;
use crate::injection::{Errno, Injection, Lasting};
use crate::workload::{Act, Failure, Interpose, Workload, World};

/// What the engine is doing when it calls storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Opening a store, a new one included, up to recovery.
    Open,
    /// Recovery, and the sweep of what processes left.
    Recover,
    /// Operations of a transaction.
    Begin,
    /// Planning and staging.
    Stage,
    /// The comparison under the commit lock.
    Check,
    /// Appending to the log.
    Log,
    /// The log's sync.
    Sync,
    /// Putting in place.
    Apply,
    /// A checkpoint.
    Checkpoint,
    /// Closing.
    Close,
    /// Looking from outside.
    Look,
}

/// The phase that a call belongs to, by the files that are on the stack.
fn phase(stack: &[(String, u32)], verb: Verb, act: Option<&Act>) -> Phase {
    let is_in = |name: &str| stack.iter().any(|(file, _)| file == name);
    if is_in("engine/src/inspect.rs") {
        Phase::Look
    } else if is_in("engine/src/checkpointer.rs") {
        if matches!(act, Some(Act::Reopen)) { Phase::Close } else { Phase::Checkpoint }
    } else if is_in("recovery/src/recover.rs") || is_in("recovery/src/sweep.rs") {
        Phase::Recover
    } else if is_in("engine/src/transaction/files.rs") || is_in("engine/src/transaction/names.rs") {
        Phase::Begin
    } else if !is_in("engine/src/commit.rs") {
        if matches!(act, None | Some(Act::Reopen | Act::Crash(_) | Act::OpenTwice | Act::Rejoin)) {
            Phase::Open
        } else {
            Phase::Begin
        }
    } else if is_in("recovery/src/apply.rs") && !is_in("engine/src/check.rs") && !is_in("engine/src/stage.rs")
    {
        Phase::Apply
    } else if is_in("wal/src/log.rs") {
        if verb.is_sync() { Phase::Sync } else { Phase::Log }
    } else if is_in("engine/src/check.rs") {
        Phase::Check
    } else {
        Phase::Stage
    }
}

/// A place that calls storage, and what for.
pub type Key = (Site, Phase);

/// Which calls of which workloads come from where.
pub struct Survey {
    workloads: Vec<Workload>,
    /// Workload and number of each call.
    calls: BTreeMap<Key, Vec<(usize, u64)>>,
}

/// One cell of the matrix.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Where the call comes from.
    pub key: Key,
    /// How it fails.
    pub errno: Errno,
    /// How long.
    pub lasting: Lasting,
    workload: usize,
    number: u64,
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (site, phase) = &self.key;
        let Self { errno, lasting, workload, number, .. } = self;
        write!(formatter, "{site} in {phase:?}, {errno:?} {lasting:?}, call {number} of workload {workload}")
    }
}

impl Survey {
    /// Runs each workload without a fault, and keeps those that reach a place, or a phase of one, that none before did.
    ///
    /// # Panics
    /// Where one fails.
    pub fn new(candidates: Vec<Workload>) -> Self {
        let mut survey = Self { workloads: Vec::new(), calls: BTreeMap::new() };
        let mentions = call_sites::mentions();
        let (one, other) = candidates.split_at(candidates.len() / 2);
        let watch_all = |some: &[Workload]| some.iter().map(|one| watch(one, &mentions)).collect::<Vec<_>>();
        let seen = std::thread::scope(|scope| {
            let other = scope.spawn(|| watch_all(other));
            [watch_all(one), other.join().expect("it says why if it panics")].concat()
        });
        for (workload, seen) in candidates.into_iter().zip(seen) {
            let is_news = seen.iter().any(|(key, _)| !survey.calls.contains_key(key));
            if !is_news {
                continue;
            }
            for (key, number) in seen {
                survey.calls.entry(key).or_default().push((survey.workloads.len(), number));
            }
            survey.workloads.push(workload);
        }
        survey
    }

    /// The places that were seen to call storage, with the phases in which they did.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.calls.keys()
    }

    /// The workloads that were kept.
    pub fn workloads(&self) -> impl Iterator<Item = &str> {
        self.workloads.iter().map(|workload| workload.name.as_str())
    }

    /// Every cell of the matrix, each with one of the calls that are its own, drawn by `seed`.
    pub fn cells(&self, seed: u64) -> Vec<Cell> {
        let mut random = Random::new(seed);
        let mut cells = Vec::new();
        for (key, seen) in &self.calls {
            if call_sites::is_excepted("unshown", &key.0.file, key.0.line, &[key.0.verb]) {
                continue;
            }
            for errno in Errno::ALL {
                if errno == Errno::Short && key.0.verb != Verb::WriteAt {
                    continue;
                }
                for lasting in Lasting::ALL {
                    let (workload, number) = *random.pick(seen);
                    cells.push(Cell { key: key.clone(), errno, lasting, workload, number });
                }
            }
        }
        cells
    }

    /// Judges one cell. `Err` says which promise was broken, and how to get there.
    pub fn judge(&self, cell: &Cell, seed: u64) -> Result<(), String> {
        let workload = &self.workloads[cell.workload];
        let mut random = Random::new(seed ^ cell.number << 32);
        let mut trace = Vec::new();
        let verdict = judge_cell(workload, cell, &mut random, &mut trace);
        verdict.map_err(|reason| {
            format!(
                "{cell} ({}), seed {seed}: {reason}\n{:?}\n{:#?}\n{}",
                workload.name,
                workload.settings,
                workload.acts,
                trace.join("\n")
            )
        })
    }
}

/// The calls of a workload in which nothing fails.
fn watch(workload: &Workload, mentions: &[Mention]) -> Vec<(Key, u64)> {
    let seen = Arc::new(Mutex::new((Vec::new(), 0)));
    let (seen_by_rule, acts) = (Arc::clone(&seen), workload.acts.clone());
    let interpose: Interpose = Arc::new(move |sim: &Sim, call: &Call, act: usize| {
        let stack = call_sites::stack();
        let act = act.checked_sub(1).map(|index| &acts[index]);
        let mut seen = seen_by_rule.lock().expect("nothing panics while it is held");
        seen.1 += 1;
        // What a machine answers that has stopped is no test.
        if let (Some((file, line)), false) = (stack.first(), sim.is_halted()) {
            let site = Site { file: file.clone(), line: *line, verb: call.verb };
            let number = seen.1;
            seen.0.push(((site, phase(&stack, call.verb, act)), number));
        }
        None
    });
    let mut world = World::new(workload, interpose);
    let mut result = world.open();
    for number in 1..=workload.acts.len() {
        if let Err(failure) = &result {
            panic!("{}, before act {number} of {:#?}: {failure:?}", workload.name, workload.acts);
        }
        result = world.act(number);
    }
    result.unwrap_or_else(|failure| panic!("{}, its last act: {failure:?}", workload.name));
    let (seen, _) = std::mem::take(&mut *seen.lock().expect("nothing panics while it is held"));
    let place = |((site, phase), number)| ((call_sites::true_place(site, mentions), phase), number);
    seen.into_iter().map(place).collect()
}

fn judge_cell(
    workload: &Workload,
    cell: &Cell,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    let injection = Injection::new(cell.number, cell.errno, cell.lasting);
    let by_rule = injection.clone();
    let mut world = World::new(workload, Arc::new(move |sim, call, _| by_rule.answer(sim, call)));
    world.sim.set_trace(true);
    let result = run(workload, cell, &injection, &mut world, random, trace);
    trace.extend(world.sim.trace());
    result?;
    match injection.hit() {
        Some(verb) if verb == cell.key.0.verb => {}
        Some(verb) => return Err(format!("the workload does not do the same each time: {verb:?}")),
        None => return Err("the call did not come".into()),
    }
    end(workload, cell, world, random, trace)
}

/// Does all acts, or those up to a failure that can't be repeated.
fn run(
    workload: &Workload,
    cell: &Cell,
    injection: &Injection,
    world: &mut World<'_>,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    let is_sync = cell.key.0.verb.is_sync();
    let mut told = 0;
    let mut number = 0;
    while number <= workload.acts.len() {
        let result = if number == 0 { world.open() } else { world.act(number) };
        let error = match result {
            Ok(()) => {
                number += 1;
                continue;
            }
            Err(Failure::Broken(reason)) => return Err(format!("act {number}: {reason}")),
            // What this process failed in is in the way of others, or was told to them, until it is gone.
            Err(Failure::Beside(error))
                if injection.hit().is_some()
                    && (is_truthful(error.kind(), cell)
                        || is_sync && error.kind() == ErrorKind::Io
                        || error.kind() == ErrorKind::Locked) =>
            {
                trace.push(format!("act {number}, beside: {error} ({:?})", error.kind()));
                return Ok(());
            }
            Err(Failure::Beside(error)) => return Err(format!("act {number}, beside: {error}")),
            Err(Failure::Told(error)) => error,
        };
        trace.push(format!("act {number} failed: {error} ({:?})", error.kind()));
        // What a sync lost is told again to others who had written it, or had it written.
        if told > 3 * u64::from(is_sync) || injection.hit().is_none() {
            return Err(format!("act {number} failed without a fault: {error}"));
        }
        told += 1;
        if !(is_truthful(error.kind(), cell) || is_sync && error.kind() == ErrorKind::Io) {
            return Err(format!("act {number} is told to have failed with {:?}: {error}", error.kind()));
        }
        let is_open = world.store.is_some();
        if is_open
            && !world.is_unfinished
            && !matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::CommittedNotApplied)
        {
            workload.find(&world.sim, &world.allowed).map_err(|reason| format!("after {error}, {reason}"))?;
        }
        if is_original_lost(error.kind(), cell) || cell.lasting != Lasting::Once && random.percent(50) {
            return Ok(());
        }
        // The device is well again.
        injection.heal();
        if is_open && is_poisoned(world, &error, cell)? {
            return Ok(());
        }
        // What failed is done again, but for a crash, after which opening may be tried again without another.
        if matches!(workload.acts.get(number.wrapping_sub(1)), Some(Act::Crash(_))) && random.percent(50) {
            match world.open() {
                Ok(()) => number += 1,
                Err(failure) => return Err(format!("the next open failed: {failure:?}")),
            }
        }
    }
    if is_sync && told == 0 && !world.has_failed_as_planned && !can_be_written_anew(cell) {
        return Err("a sync failed and nobody was told".into());
    }
    Ok(())
}

/// Whether the kind says what the storage said, or that the outcome is open.
fn is_truthful(kind: ErrorKind, cell: &Cell) -> bool {
    kind == cell.errno.kind()
        || matches!(
            kind,
            ErrorKind::OutcomeUnknown | ErrorKind::CommittedNotApplied | ErrorKind::Poisoned
        )
        // Where `openat2` is refused, nothing is known to stay inside the root.
        || cell.errno == Errno::Permission && kind == ErrorKind::Unsupported
        || is_original_lost(kind, cell)
        // A file that could be read and can't any more was changed by somebody.
        || cell.errno == Errno::Permission && kind == ErrorKind::Conflict && cell.key.0.verb == Verb::OpenFile
}

/// Whether there was no space for keeping an original, and it was to be brought back.
fn is_original_lost(kind: ErrorKind, cell: &Cell) -> bool {
    cell.errno.kind() == ErrorKind::NoSpace
        && kind == ErrorKind::NotFound
        && cell.key.0.file == "recovery/src/images.rs"
}

/// Whether the failure is of a sync after which nothing may be acknowledged any more.
fn is_final(cell: &Cell) -> bool {
    let (Site { verb, .. }, phase) = &cell.key;
    verb.is_sync() && matches!(phase, Phase::Sync | Phase::Checkpoint) && !can_be_written_anew(cell)
}

/// Whether what a failed sync is of can be written anew, as another file: a new segment, and where there was no space a
/// manifest.
fn can_be_written_anew(cell: &Cell) -> bool {
    match cell.key.0.file.as_str() {
        "wal/src/segment.rs" => true,
        "recovery/src/manifest.rs" => cell.errno.kind() == ErrorKind::NoSpace,
        _ => false,
    }
}

/// Whether the store takes no more commits; then it takes none of anything, though nothing fails any more.
fn is_poisoned(world: &mut World<'_>, error: &atomtree::Error, cell: &Cell) -> Result<bool, String> {
    let store = world.store.as_ref().expect("it is open");
    let must_be = matches!(
        error.kind(),
        ErrorKind::OutcomeUnknown | ErrorKind::CommittedNotApplied | ErrorKind::Poisoned
    ) || is_final(cell);
    match store.begin() {
        Ok(_) if must_be => return Err(format!("after {error}, a transaction may begin")),
        Ok(_) => return Ok(false),
        Err(refused) if refused.kind() == ErrorKind::Poisoned => {}
        Err(refused) => return Err(format!("after {error}, begin says {refused}")),
    }
    match store.checkpoint() {
        Err(refused) if refused.kind() == ErrorKind::Poisoned => {}
        other => return Err(format!("after {error}, a checkpoint says {other:?}")),
    }
    match world.store.take().expect("it is open").close() {
        Err(refused) if refused.kind() == ErrorKind::Poisoned => Ok(true),
        other => Err(format!("after {error}, close says {other:?}")),
    }
}

/// The machine goes down, or the process opens the store again; perhaps with another fault, and down again.
fn end(
    workload: &Workload,
    cell: &Cell,
    mut world: World<'_>,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    if random.percent(30) {
        // The same machine, and perhaps a store to be closed first.
        world.heal();
        world.end_beside();
        world.store = None;
    } else {
        let crash = if random.percent(50) { Crash::Kill } else { Crash::Cut(random.next()) };
        trace.push(format!("{crash:?}"));
        world.crash(crash);
    }
    let mut machine = world.sim.clone();
    if random.percent(50) {
        machine = fail_in_recovery(workload, cell, &machine, &world.has_meddled, random, trace)?;
    }
    machine.set_trace(true);
    let result = workload.open_on(&machine, fail_nothing(), &world.has_meddled);
    let opened = result.as_ref().err().map(ToString::to_string);
    let verdict = match (workload.theirs, opened) {
        (Some(_), None) => workload.find(&machine, &world.allowed).and_then(|_| {
            if world.has_meddled.load(Ordering::Relaxed) { workload.find_theirs(&machine) } else { Ok(()) }
        }),
        (Some(_), Some(error)) => Err(format!("the next open failed: {error}")),
        (None, _) => {
            let thorough = random.percent(30) && workload.is_ordinary;
            judge(result, &machine, &workload.settings, &world.allowed, random, thorough).map(drop)
        }
    };
    verdict.map_err(|reason| format!("{reason}\n{}", machine.trace().join("\n")))
}

/// The same verb fails in the recovery too, and the machine goes down after it.
fn fail_in_recovery(
    workload: &Workload,
    cell: &Cell,
    machine: &Sim,
    has_meddled: &Arc<AtomicBool>,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<Sim, String> {
    let (first, lasting) = (1 + random.below(6), *random.pick(&Lasting::ALL));
    let (verb, errno) = (cell.key.0.verb, cell.errno);
    let injection = Injection::new(first, errno, lasting).counting(verb);
    let sim = machine.clone();
    let rule = move |call: &Call| injection.answer(&sim, call);
    machine.set_trace(true);
    let result = workload.open_on(machine, Arc::new(rule), has_meddled);
    trace.push(format!("recovery, {verb:?} {first} failing {lasting:?}: {:?}", result.as_ref().err()));
    trace.extend(machine.trace());
    if let Err(error) = &result
        && !is_truthful(error.kind(), cell)
    {
        return Err(format!("recovery is told to have failed with {:?}: {error}", error.kind()));
    }
    let after = if random.percent(50) { machine.kill() } else { machine.power_cut(random.next()) };
    Ok(after)
}
