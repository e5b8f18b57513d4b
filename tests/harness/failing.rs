//! Histories in which one sync fails, or one call, and chains of crashes on one machine.

use std::sync::{Arc, Mutex};

use atomtree::vfs::Vfs;
use atomtree::vfs::faults::{Call, Fault, Faults, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::{Error, ErrorKind, Store};

use crate::crash::{
    Crash, Meddle, Progress, Watch, check_stage_is_empty, commit, commit_as, differences, judge, machine,
    open, recover, step, tree_of,
};
use crate::history::{History, Random, Step, Tree, generate_operations};

/// Input/output error, as Linux numbers it.
const EIO: i32 = 5;

/// Makes one sync fail as disks do: what it should have written is lost, though reads still show it. Of a failed sync
/// of names nothing is lost by itself, because no file system goes on after losing those.
fn fail(sim: &Sim, verb: Verb) -> Option<Fault> {
    match verb {
        Verb::SyncData | Verb::SyncAll => {
            sim.fail_next_sync();
            None
        }
        Verb::SyncFilesystem => {
            sim.fail_write_back();
            Some(Fault::Error(EIO))
        }
        _ => Some(Fault::Error(EIO)),
    }
}

/// A hook that fails the sync with this number, from 0 on, and counts them.
fn failing(number: Option<u64>, count: &Arc<Mutex<u64>>) -> Box<Meddle> {
    let count = Arc::clone(count);
    Box::new(move |sim: &Sim, _, call: &Call| {
        if !call.verb.is_sync() {
            return None;
        }
        let mut count = count.lock().expect("nothing panics while it is held");
        *count += 1;
        if number == Some(*count - 1) { fail(sim, call.verb) } else { None }
    })
}

/// Fails each sync of a history in turn, from the store's creation to its close, and each sync of the recovery that
/// follows. Returns how many machines were recovered and judged.
pub fn fail_every_sync(history: &History) -> u64 {
    let mut visited = 0;
    for number in 0.. {
        let mut trace = Vec::new();
        match fail_one_sync(history, number, &mut trace) {
            Ok(Some(judged)) => visited += judged,
            Ok(None) => return visited,
            Err(reason) => panic!(
                "history {}, failing sync {number}: {reason}\n{:?}\nprelude {:?}\nsteps {:#?}\n{}",
                history.seed,
                history.settings,
                history.prelude,
                history.steps,
                trace.join("\n")
            ),
        }
    }
    unreachable!("a history has an end")
}

/// `None` if there is no such sync.
fn fail_one_sync(history: &History, number: u64, trace: &mut Vec<String>) -> Result<Option<u64>, String> {
    let sim = machine(history);
    sim.set_trace(true);
    let count = Arc::new(Mutex::new(0));
    let watch = Watch::new(&sim, Some(failing(Some(number), &count)));
    let counted = || *count.lock().expect("nothing panics while it is held");
    let trees = history.trees();
    let result = run_until_failure(history, &watch);
    trace.extend(sim.trace());
    if counted() <= number {
        return Ok(None);
    }
    let Some(failure) = result? else { return Err("a sync failed and nobody was told".into()) };
    trace.push(format!("the failure was told as {failure:?}, {:?}", watch.progress()));
    let mut progress = watch.progress();
    match failure {
        Failure::NothingChanged => progress.in_flight = false,
        Failure::Committed => progress = Progress { committed: progress.committed + 1, in_flight: false },
        Failure::Poisoned | Failure::NoStore => {}
    }
    let allowed = progress.allowed(&trees);
    let mut random = Random::new(history.seed ^ number << 32);
    let mut visited = 0;
    for crash in [Crash::Kill, Crash::Cut(random.next()), Crash::Cut(random.next())] {
        let machine = crash.of(&sim);
        let (result, _) = recover(&machine, &history.settings, progress, false);
        judge(result, &machine, &history.settings, allowed, &mut random, true)
            .map_err(|reason| format!("{crash:?}: {reason}"))?;
        visited += 1;
        for inner in 0.. {
            let machine = crash.of(&sim);
            machine.set_trace(true);
            let count = Arc::new(Mutex::new(0));
            let watch = Watch::new(&machine, Some(failing(Some(inner), &count)));
            let result = open(watch.vfs(), &history.settings);
            if *count.lock().expect("nothing panics while it is held") <= inner {
                break;
            }
            let case = format!("{crash:?}, failing sync {inner} of recovery");
            let traced = machine.trace();
            if result.is_ok() {
                return Err(format!("{case}: nobody was told\n{}", traced.join("\n")));
            }
            drop(result);
            for again in [Crash::Kill, Crash::Cut(random.next())] {
                let machine = again.of(&machine);
                let (result, _) = recover(&machine, &history.settings, progress, false);
                judge(result, &machine, &history.settings, allowed, &mut random, false)
                    .map_err(|reason| format!("{case}, {again:?}: {reason}\n{}", traced.join("\n")))?;
                visited += 1;
            }
        }
    }
    Ok(Some(visited))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The transaction is promised not to have happened.
    NothingChanged,
    /// It is durable, and not settled as it was to be.
    Committed,
    /// The store takes no more commits.
    Poisoned,
    /// The store did not open, or not close.
    NoStore,
}

/// Runs until something fails; `None` if nothing does. Checks what is promised about the store then.
fn run_until_failure(history: &History, watch: &Arc<Watch>) -> Result<Option<Failure>, String> {
    let Ok(store) = open(watch.vfs(), &history.settings) else { return Ok(Some(Failure::NoStore)) };
    let mut store = Some(store);
    for one in history.prelude.iter().chain(&history.steps) {
        let Err(error) = step(watch, &mut store, one, &history.settings) else { continue };
        let Some(store) = &store else { return Ok(Some(Failure::NoStore)) };
        let poisoned = match store.begin() {
            Ok(_) => false,
            Err(refused) if refused.kind() == ErrorKind::Poisoned => true,
            Err(refused) => return Err(format!("after {error}, begin says {refused}")),
        };
        return match (one, error.kind(), poisoned) {
            (Step::Commit(_), ErrorKind::OutcomeUnknown, true) | (Step::Checkpoint, _, true) => {
                Ok(Some(Failure::Poisoned))
            }
            (Step::Commit(_), ErrorKind::CommittedNotApplied, true) if history.settings.settled => {
                Ok(Some(Failure::Committed))
            }
            // A sync before the log's, of contents by reference or of a checkpoint to make room.
            (Step::Commit(_), ErrorKind::Io | ErrorKind::Poisoned, _) => Ok(Some(Failure::NothingChanged)),
            _ => Err(format!("{one:?} failed with {error:?}, and poisoned is {poisoned}")),
        };
    }
    let closed = store.take().expect("it is open").close();
    Ok(closed.err().map(|_| Failure::NoStore))
}

/// Loses all unsynced data once, at a random operation, as a failure to write it in the background does; crashes
/// before or after anybody has noticed; and judges recoveries. Returns how many machines were recovered.
pub fn lose_data_in_background(history: &History) -> u64 {
    let trees = history.trees();
    let mut random = Random::new(history.seed ^ 0xbac4);
    let length = {
        let sim = machine(history);
        let watch = Watch::new(&sim, None);
        run_until_failure(history, &watch).expect("nothing fails");
        sim.operations()
    };
    let mut visited = 0;
    for _ in 0..20 {
        let sim = machine(history);
        sim.set_trace(true);
        let lost_at = 1 + random.below(length);
        let halt_at = lost_at + 1 + random.below(12);
        let is_gone = Mutex::new(false);
        let lose = move |sim: &Sim, operation: u64, _: &Call| {
            let mut is_gone = is_gone.lock().expect("nothing panics while it is held");
            if operation >= lost_at && !*is_gone {
                *is_gone = true;
                sim.fail_write_back();
            }
            None
        };
        let watch = Watch::new(&sim, Some(Box::new(lose)));
        sim.halt_at(halt_at);
        let failure = run_quietly(history, &watch);
        let mut progress = watch.progress();
        progress.in_flight &= failure;
        for crash in [Crash::Kill, Crash::Cut(random.next())] {
            let machine = crash.of(&sim);
            machine.set_trace(true);
            let (result, _) = recover(&machine, &history.settings, progress, false);
            let allowed = progress.allowed(&trees);
            let verdict = judge(result, &machine, &history.settings, allowed, &mut random, true);
            if let Err(reason) = verdict {
                panic!(
                    "history {}, data lost at {lost_at}, {crash:?} at {halt_at}: {reason}\n{:?}\n{:#?}\n{}\n{}",
                    history.seed,
                    history.settings,
                    history.steps,
                    sim.trace().join("\n"),
                    machine.trace().join("\n")
                );
            }
            visited += 1;
        }
    }
    visited
}

/// Runs until something fails, and says whether something did.
fn run_quietly(history: &History, watch: &Arc<Watch>) -> bool {
    let Ok(store) = open(watch.vfs(), &history.settings) else { return true };
    let mut store = Some(store);
    for one in history.prelude.iter().chain(&history.steps) {
        let sim = &watch.sim;
        // Reopening a store on a halted machine is no step that can be done.
        if sim.is_halted() {
            return true;
        }
        let result = match one {
            Step::Reopen => {
                let closed = store.take().expect("it was open").close();
                closed.and_then(|()| open(watch.vfs(), &history.settings)).map(|open| store = Some(open))
            }
            other => step(watch, &mut store, other, &history.settings),
        };
        if result.is_err() {
            return true;
        }
    }
    false
}

/// Crash, recover, commit, crash, ... on one machine, for so many rounds. Returns how many recoveries ended well.
pub fn chain(seed: u64, rounds: u64) -> u64 {
    let mut random = Random::new(seed);
    let history = History { prelude: Vec::new(), steps: Vec::new(), ..History::generate(seed) };
    let settings = history.settings;
    let mut machine = machine(&history);
    // The trees that may be there.
    let mut allowed: Vec<Tree> = vec![history.initial.clone()];
    let mut log = Vec::new();
    let mut recovered = 0;
    for round in 0..rounds {
        // The number of operations a recovery takes varies; now and then the machine goes down within.
        let halt_at = 1 + random.below(150);
        machine.halt_at(halt_at);
        machine.set_trace(true);
        log.push(format!("round {round}, stopped at {halt_at}"));
        let vfs: Arc<dyn Vfs> = Arc::new(machine.clone());
        match open(vfs, &settings) {
            Ok(store) => {
                recovered += 1;
                let tree = tree_if_running(&machine);
                if let Some(tree) = tree {
                    assert!(
                        allowed.contains(&tree),
                        "chain {seed}: not what is allowed\n{}{}\n{:#?}",
                        differences(&tree, &allowed),
                        log.join("\n"),
                        machine.trace()
                    );
                    let report = store.recovery();
                    assert!(
                        report.quarantined.is_empty()
                            && report.superseded.is_empty()
                            && report.lost.is_empty()
                            && report.metadata_kept.is_empty(),
                        "chain {seed}: {report:#?}\n{}\n{:#?}",
                        log.join("\n"),
                        machine.trace()
                    );
                    allowed = vec![tree];
                    commit_until_stopped(&store, &machine, &mut allowed, &mut random, &mut log);
                }
                drop_or_close(store, &machine, &mut random);
            }
            Err(error) => assert!(machine.is_halted(), "chain {seed}: {error}\n{}", log.join("\n")),
        }
        machine = if random.percent(40) {
            log.push("kill".into());
            machine.kill()
        } else {
            let cut = random.next();
            log.push(format!("cut {cut}"));
            machine.power_cut(cut)
        };
    }
    recovered
}

/// The tree, unless the machine is down.
fn tree_if_running(machine: &Sim) -> Option<Tree> {
    if machine.is_halted() { None } else { Some(tree_of(machine)) }
}

fn commit_until_stopped(
    store: &Store,
    machine: &Sim,
    allowed: &mut Vec<Tree>,
    random: &mut Random,
    log: &mut Vec<String>,
) {
    for _ in 0..random.below(4) {
        let mut next = allowed[0].clone();
        let operations = generate_operations(random, &mut next);
        match commit(store, &operations) {
            Ok(_) => {
                log.push(format!("committed {operations:?}"));
                *allowed = vec![next];
            }
            Err(error) => {
                assert!(machine.is_halted(), "{operations:?}: {error}\n{}", log.join("\n"));
                log.push(format!("stopped in {operations:?}"));
                allowed.push(next);
                return;
            }
        }
        if random.percent(30) && store.checkpoint().is_err() {
            assert!(machine.is_halted(), "a checkpoint failed\n{}", log.join("\n"));
            return;
        }
    }
}

fn drop_or_close(store: Store, machine: &Sim, random: &mut Random) {
    if random.percent(30) && store.close().is_ok() && !machine.is_halted() {
        check_stage_is_empty(machine).expect("a clean close leaves nothing in stage");
    }
}

/// Fails calls of a history, once or from then on, with the usual errors; and calls of recoveries of it. Every call has
/// its turn if there are no more than `sample` of them; else so many are drawn. Returns how many failures were judged.
///
/// # Panics
/// With the history and its trace, where a promise is broken.
pub fn fail_calls(history: &History, sample: u64) -> u64 {
    let mut random = Random::new(history.seed ^ 0xfa11);
    let mut judged = 0;
    let calls = count_calls(history);
    for _ in 0..sample {
        let failure = CallFailure {
            number: 1 + random.below(calls),
            errno: *random.pick(&[EIO, ENOSPC, EACCES]),
            is_for_ever: random.percent(50),
        };
        let mut trace = Vec::new();
        let verdict = fail_call(history, failure, &mut random, &mut trace);
        judged += 1;
        if let Err(reason) = verdict {
            panic!(
                "history {}, {failure:?}: {reason}\n{:?}\ninitial {:#?}\nsteps {:#?}\n{}",
                history.seed,
                history.settings,
                history.initial,
                history.steps,
                trace.join("\n")
            );
        }
    }
    judged
}

/// No space left on device.
const ENOSPC: i32 = 28;
/// Permission denied.
const EACCES: i32 = 13;

/// Which call fails, and how.
#[derive(Clone, Copy, Debug)]
struct CallFailure {
    number: u64,
    errno: i32,
    is_for_ever: bool,
}

impl CallFailure {
    /// The storage as the engine shall see it, and whether the failure has come.
    fn vfs(self, sim: &Sim, told: &Arc<Mutex<Vec<String>>>) -> Faults {
        let told = Arc::clone(told);
        let rule = move |call: &Call| {
            let fails = call.number == self.number || self.is_for_ever && call.number > self.number;
            // A failed sync is a matter of its own, above.
            if !fails || call.verb.is_sync() {
                return None;
            }
            let mut told = told.lock().expect("nothing panics while it is held");
            if told.len() < 20 {
                told.push(format!("{call:?}"));
            }
            Some(Fault::Error(self.errno))
        };
        Faults::new(Arc::new(sim.clone()), Arc::new(rule))
    }
}

fn count_calls(history: &History) -> u64 {
    let sim = machine(history);
    let vfs = Faults::new(Arc::new(sim.clone()), atomtree::vfs::faults::fail_nothing());
    run_steps(history, &Arc::new(vfs.clone()), &sim).1.expect("nothing fails");
    vfs.calls()
}

/// How many transactions were acknowledged, and what went wrong with which step.
fn run_steps(history: &History, vfs: &Arc<Faults>, sim: &Sim) -> (usize, Result<(), (Option<Step>, Error)>) {
    let mut committed = 0;
    let settings = &history.settings;
    let mut store = match open(vfs.clone(), settings) {
        Ok(store) => store,
        Err(error) => return (committed, Err((None, error))),
    };
    for one in &history.steps {
        let result = match one {
            Step::Commit(operations) => {
                commit_as(&store, operations, settings.settled).map(|_| committed += 1)
            }
            Step::Checkpoint => store.checkpoint(),
            Step::Reopen => match store.close().and_then(|()| open(vfs.clone(), settings)) {
                Ok(reopened) => {
                    store = reopened;
                    Ok(())
                }
                Err(error) => return (committed, Err((Some(one.clone()), error))),
            },
            Step::Wait => {
                sim.advance(20_000_000);
                Ok(())
            }
        };
        if let Err(error) = result {
            return (committed, Err((Some(one.clone()), error)));
        }
    }
    let closed = store.close();
    (committed, closed.map_err(|error| (None, error)))
}

fn fail_call(
    history: &History,
    failure: CallFailure,
    random: &mut Random,
    trace: &mut Vec<String>,
) -> Result<(), String> {
    let trees = history.trees();
    let sim = machine(history);
    sim.set_trace(true);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (committed, result) = run_steps(history, &Arc::new(failure.vfs(&sim, &told)), &sim);
    trace.extend(sim.trace());
    trace.push(format!("{:#?}", told.lock().expect("nothing panics while it is held")));
    trace.push(format!("{committed} committed, {result:?}"));
    let allowed: &[Tree] = match &result {
        Err((Some(Step::Commit(operations)), error)) => {
            match error.kind() {
                ErrorKind::OutcomeUnknown => &trees[committed..=committed + 1],
                ErrorKind::CommittedNotApplied => &trees[committed + 1..=committed + 1],
                // Anything else says that nothing was changed, and that can be seen at once.
                _ => {
                    let tree = tree_of(&sim);
                    let poisoned = error.kind() == ErrorKind::Poisoned;
                    if tree != trees[committed] && !poisoned {
                        return Err(format!(
                            "{operations:?}: {error}, and yet\n{}",
                            differences(&tree, &trees[committed..=committed])
                        ));
                    }
                    &trees[committed..=committed]
                }
            }
        }
        _ => &trees[committed..=committed],
    };
    // The recovery of what is left has calls that fail as well.
    let crash = if random.percent(60) { Crash::Kill } else { Crash::Cut(random.next()) };
    let machine = crash.of(&sim);
    if random.percent(60) {
        let again = CallFailure {
            number: 1 + random.below(400),
            errno: *random.pick(&[EIO, ENOSPC, EACCES]),
            is_for_ever: random.percent(50),
        };
        let told = Arc::new(Mutex::new(Vec::new()));
        machine.set_trace(true);
        let opened = open(Arc::new(again.vfs(&machine, &told)), &history.settings);
        trace.push(format!("{crash:?}, recovery with {again:?}: {:?}", opened.as_ref().err()));
        trace.extend(machine.trace());
        trace.push(format!("{:#?}", told.lock().expect("nothing panics while it is held")));
    }
    let machine = if random.percent(50) { machine.kill() } else { machine.power_cut(random.next()) };
    machine.set_trace(true);
    let (result, _) = recover(&machine, &history.settings, Progress::default(), false);
    let verdict = judge(result, &machine, &history.settings, allowed, random, true);
    verdict.map(drop).map_err(|reason| format!("{reason}\n{}", machine.trace().join("\n")))
}
