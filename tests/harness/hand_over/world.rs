//! The machine, its processes, and what is expected of each of their acts.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use atomtree::vfs::faults::{Call, Fault, Faults, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Lock, Vfs};
use atomtree::{Error, ErrorKind, RecoveryReport, Store};

use crate::crash::{ROOT, commit, differences, is_operation, options, quarantine_of, tree_of};
use crate::history::{
    Entry, Operation, PATHS, Random, Settings, Tree, generate_operations, generate_operations_on,
    some_content,
};

use super::model::{Model, THEIRS, after};
use super::{
    Case, Interruption, Kind, PROCESSES, Planned, Scenario, Visited, check_history, find_theirs, stages_of,
    without_edited,
};

/// Input/output error, as Linux numbers it.
const EIO: i32 = 5;

/// How often an act is tried again, and a poisoned store recovered.
const ATTEMPTS: usize = 8;

/// The machine at one moment of a run.
pub(super) struct Moment {
    /// With all its processes killed.
    pub(super) machine: Sim,
    /// The trees that recovery may make of it.
    pub(super) possible: Arc<Vec<Tree>>,
    /// The transactions that must be in its history.
    pub(super) acknowledged: Vec<u64>,
    /// Whether another program had written what it writes.
    pub(super) is_edited: bool,
    /// For messages.
    pub(super) when: String,
}

struct Process {
    sim: Sim,
    faults: Faults,
    store: Option<Store>,
    is_alive: bool,
}

/// The machine and its processes.
pub(super) struct World(Arc<Shared>);

struct Shared {
    observer: Sim,
    settings: Settings,
    with_directories: bool,
    processes: Vec<Mutex<Option<Process>>>,
    state: Mutex<State>,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "what has happened so far is many questions with two answers each"
)]
struct State {
    model: Model,
    random: Random,
    /// Decides which moments are kept: apart from what is done, so that a replay may keep more.
    sampler: Random,
    plan: VecDeque<Planned>,
    is_watching: bool,
    moments_per_mille: u64,
    moments: Vec<Moment>,
    /// Of each process, since the last interruption: calls, and of those the ones that change something.
    counts: [(u64, u64); PROCESSES],
    step_counts: (u64, u64),
    step: Vec<Operation>,
    /// Which process is to die at its next call.
    dies_next: Option<usize>,
    /// Whether somebody died, and nobody has had the lock since.
    is_unfinished: bool,
    /// Whether a sync has failed. What it lost may be told to others later.
    has_sync_failed: bool,
    is_edited: bool,
    /// Changes by whoever else.
    changes: u64,
    deaths: u64,
    visited: Visited,
    told: Vec<String>,
    failure: Option<String>,
    trace: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn new(case: &Case, scenario: &Scenario, moments_per_mille: u64) -> Self {
        let observer = scenario.machine(case.seed);
        let salt = case.plan.iter().fold(0_u64, |salt, planned| {
            salt.wrapping_mul(1009).wrapping_add(planned.call << 3 | planned.process as u64)
        });
        let state = State {
            model: Model::new(scenario.initial.clone()),
            random: Random::new(case.seed),
            sampler: Random::new(case.seed ^ salt << 20),
            plan: VecDeque::new(),
            is_watching: false,
            moments_per_mille,
            moments: Vec::new(),
            counts: Default::default(),
            step_counts: Default::default(),
            step: Vec::new(),
            dies_next: None,
            is_unfinished: false,
            has_sync_failed: false,
            is_edited: false,
            changes: 0,
            deaths: 0,
            visited: Visited::default(),
            told: Vec::new(),
            failure: None,
            trace: false,
        };
        Self(Arc::new(Shared {
            observer,
            settings: scenario.settings,
            with_directories: scenario.directories,
            processes: std::iter::repeat_with(Mutex::default).take(PROCESSES).collect(),
            state: Mutex::new(state),
        }))
    }

    pub(super) fn set_trace(&self, trace: bool) {
        self.state().trace = trace;
        self.0.observer.set_trace(trace);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    pub(super) fn visited(&self) -> Visited {
        self.state().visited
    }

    pub(super) fn note_machine(&self) {
        self.state().visited.machines += 1;
    }

    pub(super) fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.state().moments)
    }

    /// How many calls the step made, or how many that change something.
    pub(super) fn step_calls(&self, every_call: bool) -> u64 {
        let (calls, operations) = self.state().step_counts;
        if every_call { calls } else { operations }
    }

    /// How many operations process 1 has done since the last interruption.
    pub(super) fn calls_after_interruption(&self) -> u64 {
        self.state().counts[1].1
    }

    /// Whether it can be told what becomes of an edit of the first path in the step.
    pub(super) fn may_be_edited(&self) -> bool {
        let state = self.state();
        let edited = PATHS[0];
        let is_simple =
            state.step.iter().filter(|operation| operation.paths().contains(&edited)).all(|one| {
                matches!(
                    one,
                    Operation::Write(..)
                        | Operation::WriteWithMode(..)
                        | Operation::Append(..)
                        | Operation::Patch(..)
                        | Operation::Remove(_)
                )
            });
        is_simple
            && self.0.settings.can_exchange
            && matches!(state.model.seen().get(edited), None | Some(Entry::File { .. }))
    }

    /// What was done, for messages.
    pub(super) fn told(&self) -> String {
        let told = self.state().told.join("\n");
        let trace = if self.state().trace { self.0.observer.trace().join("\n") } else { String::new() };
        [told, trace].join("\n")
    }

    /// Does it all.
    pub(super) fn run(&self, scenario: &Scenario, plan: &[Planned]) -> Result<(), String> {
        let shared = &self.0;
        for &(process, kind) in &scenario.prelude {
            shared.act(process, kind)?;
        }
        {
            let mut state = shared.state();
            (state.plan, state.is_watching) = (plan.iter().copied().collect(), true);
            state.counts = Default::default();
        }
        shared.act(0, scenario.step)?;
        {
            let mut state = shared.state();
            if plan.is_empty() {
                state.step_counts = state.counts[0];
                state.counts = Default::default();
            }
            // What follows is another thing with each plan.
            let salt = plan.iter().map(|one| one.call << 4 | one.process as u64).sum::<u64>();
            state.random = Random::new(state.random.next() ^ salt << 16);
        }
        shared.go_on()?;
        shared.end()?;
        shared.remember("at the end", true);
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &self.0.processes {
            // A store refers to its process's calls, and those to the world.
            let process = locked(process).take();
            if let Some(process) = process {
                process.sim.end_process();
                process.faults.set_rule(Arc::new(|_| None));
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        let mut state = self.state();
        let at = self.observer.operations();
        let text = text();
        state.told.push(format!("[{at}] {text}"));
    }

    fn store(&self, process: usize) -> Option<Store> {
        locked(&self.processes[process]).as_ref().filter(|one| one.is_alive)?.store.clone()
    }

    fn is_alive(&self, process: usize) -> bool {
        locked(&self.processes[process]).as_ref().is_some_and(|one| one.is_alive)
    }

    /// What is left of a process that died goes as well: its open files.
    fn bury(&self, process: usize) {
        let dead = {
            let mut slot = locked(&self.processes[process]);
            if slot.as_ref().is_some_and(|one| !one.is_alive) { slot.take() } else { None }
        };
        drop(dead);
    }

    fn open_ones(&self) -> Vec<usize> {
        (0..PROCESSES).filter(|&process| self.store(process).is_some()).collect()
    }

    fn remember(&self, when: &str, is_certain: bool) {
        let mut state = self.state();
        let per_mille = state.moments_per_mille;
        if !state.is_watching || !(state.sampler.below(1000) < per_mille || is_certain) {
            return;
        }
        let moment = Moment {
            machine: self.observer.kill(),
            possible: state.model.possible(),
            acknowledged: state.model.acknowledged().to_vec(),
            is_edited: state.is_edited,
            when: format!("{when}, operation {}", self.observer.operations()),
        };
        state.moments.push(moment);
    }

    // In the calls of storage.

    fn before(self: &Arc<Self>, process: usize, call: &Call) -> Option<Fault> {
        if !self.is_alive(process) {
            return None;
        }
        let is_operation = is_operation(call.verb);
        if is_operation {
            self.remember(&format!("before {:?} by {process}", call.verb), false);
        }
        let mut state = self.state();
        if state.dies_next == Some(process) {
            state.dies_next = None;
            drop(state);
            return Some(self.die(process));
        }
        let (calls, operations) = &mut state.counts[process];
        *calls += 1;
        *operations += u64::from(is_operation);
        let (calls, operations) = (*calls, *operations);
        let planned = *state.plan.front().filter(|planned| planned.process == process)?;
        let is_due = match planned.what {
            Interruption::Other(_) => calls == planned.call,
            Interruption::FailedSync | Interruption::FailedSyncAndDeath => {
                operations >= planned.call && call.verb.is_sync()
            }
            Interruption::Death | Interruption::Edit => is_operation && operations == planned.call,
        };
        if !is_due {
            return None;
        }
        state.plan.pop_front();
        state.counts = Default::default();
        drop(state);
        self.interrupt(process, planned.what, call)
    }

    fn interrupt(self: &Arc<Self>, process: usize, what: Interruption, call: &Call) -> Option<Fault> {
        self.tell(|| format!("  {what:?} of {process} before {:?} {:?}", call.verb, call.name));
        match what {
            Interruption::Death => Some(self.die(process)),
            Interruption::FailedSync | Interruption::FailedSyncAndDeath => {
                let mut state = self.state();
                state.has_sync_failed = true;
                if what == Interruption::FailedSyncAndDeath {
                    state.dies_next = Some(process);
                }
                drop(state);
                Some(match call.verb {
                    Verb::SyncData | Verb::SyncAll => Fault::LoseData(EIO),
                    Verb::SyncFilesystem => {
                        self.observer.fail_write_back();
                        Fault::Error(EIO)
                    }
                    _ => Fault::Error(EIO),
                })
            }
            Interruption::Edit => {
                self.observer.replace_file(format!("{ROOT}/{}", PATHS[0]), THEIRS);
                let mut state = self.state();
                (state.is_edited, state.changes) = (true, state.changes + 1);
                None
            }
            Interruption::Other(kind) => {
                let other = if process == 1 { 2 } else { 1 };
                if let Err(reason) = self.act_within(other, kind) {
                    self.state().failure.get_or_insert(reason);
                }
                None
            }
        }
    }

    fn die(&self, process: usize) -> Fault {
        if let Some(process) = &mut *locked(&self.processes[process]) {
            process.sim.end_process();
            process.is_alive = false;
        }
        let mut state = self.state();
        state.model.leave_open_all_of(process);
        (state.is_unfinished, state.changes, state.deaths) = (true, state.changes + 1, state.deaths + 1);
        Fault::Error(EIO)
    }

    /// Whether somebody has a lock now.
    fn is_held(&self, name: &str) -> bool {
        let store = self.observer.open_root(Path::new(&format!("{ROOT}/.atomtree")));
        let file = store.and_then(|store| store.open_file(name.as_ref(), Access::Read));
        // Before the store is there, nobody has.
        file.and_then(|file| file.try_lock(Lock::Exclusive)).is_ok_and(|is_free| !is_free)
    }

    /// What another process does while one is in a call: it gets what is free at once, and is told of what is not.
    fn act_within(self: &Arc<Self>, process: usize, kind: Kind) -> Result<(), String> {
        if self.store(process).is_some() == (kind == Kind::Open) {
            self.tell(|| format!("  {process} can't {kind:?}"));
            return Ok(());
        }
        if kind == Kind::Open {
            self.start(process);
        }
        let has_store = self.observer.open_root(Path::new(&format!("{ROOT}/.atomtree"))).is_ok();
        let (is_commit_held, is_checkpoint_held) =
            (self.is_held("lock") || self.is_held("turn"), self.is_held("checkpoint"));
        let (operations, is_unfinished) = (self.operations_for(kind), self.state().is_unfinished);
        let finished = self.count_take_overs(process);
        let result = self.once(process, kind, &operations);
        if !self.is_alive(process) {
            self.bury(process);
            return Ok(());
        }
        let has_finished = self.count_take_overs(process) > finished;
        let what = || {
            format!(
                "{kind:?} {operations:?} of {process}, with the commit lock {} and the checkpoint's {}",
                if is_commit_held { "held" } else { "free" },
                if is_checkpoint_held { "held" } else { "free" },
            )
        };
        let mut state = self.state();
        match result {
            Ok(()) if is_commit_held => Err(format!("{} came through", what())),
            Ok(()) if is_checkpoint_held && matches!(kind, Kind::Checkpoint | Kind::Close) => {
                Err(format!("{} came through", what()))
            }
            Ok(()) => {
                state.visited.admitted += 1;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Locked => {
                let may_need_checkpoint = kind != Kind::Commit && kind != Kind::Open
                    || is_unfinished
                    // Directories that were moved are settled first, and a full log is emptied.
                    || self.with_directories
                    || self.is_log_long();
                if is_commit_held || is_checkpoint_held && may_need_checkpoint || !has_store {
                    state.visited.refused += 1;
                    Ok(())
                } else {
                    Err(format!("{} was told {error}", what()))
                }
            }
            Err(error) if state.has_sync_failed && is_of_a_failed_sync(&error) => Ok(()),
            // Without exchange a file that is being put in place has two names for a moment.
            Err(error)
                if is_commit_held
                    && !self.settings.can_exchange
                    && kind == Kind::Commit
                    && error.kind() == ErrorKind::Unsupported =>
            {
                Ok(())
            }
            // What somebody left half done is seen before it is finished.
            Err(_) if (is_unfinished || has_finished) && kind == Kind::Commit => Ok(()),
            Err(error) => Err(format!("{} failed: {error}", what())),
        }
    }

    fn is_log_long(&self) -> bool {
        let wal = format!("{ROOT}/.atomtree/wal");
        let active = self.observer.tree(wal).len();
        active > 2
    }

    // On top.

    fn operations_for(&self, kind: Kind) -> Vec<Operation> {
        if kind != Kind::Commit {
            return Vec::new();
        }
        let mut state = self.state();
        let possible = state.model.possible();
        let is_edited = state.is_edited;
        let random = &mut state.random;
        for _ in 0..30 {
            let mut tree = possible[0].clone();
            let operations = if self.with_directories {
                generate_operations(random, &mut tree)
            } else {
                generate_operations_on(random, &mut tree, &PATHS)
            };
            let is_fine = possible.iter().all(|tree| after(tree, &operations).is_some())
                && !(is_edited && operations.iter().any(|one| one.paths().contains(&PATHS[0])));
            if is_fine && !operations.is_empty() {
                return operations;
            }
        }
        vec![Operation::Write("always", some_content(random))]
    }

    /// Does something that nobody is in the way of, however often that takes.
    fn act(self: &Arc<Self>, process: usize, kind: Kind) -> Result<(), String> {
        let operations = self.operations_for(kind);
        self.act_with(process, kind, &operations)
    }

    fn act_with(
        self: &Arc<Self>,
        process: usize,
        kind: Kind,
        operations: &[Operation],
    ) -> Result<(), String> {
        if !self.state().is_watching || self.state().step.is_empty() {
            self.state().step = operations.to_vec();
        }
        if kind == Kind::Open {
            self.start(process);
        }
        for _ in 0..ATTEMPTS {
            let (changes, finished) = (self.state().changes, self.count_take_overs(process));
            let result = self.once(process, kind, operations);
            if let Some(reason) = self.state().failure.take() {
                return Err(reason);
            }
            if !self.is_alive(process) {
                self.bury(process);
                return Ok(());
            }
            let Err(error) = result else { return self.check_quarantine() };
            let what = format!("{kind:?} {operations:?} of {process} failed: {error} ({:?})", error.kind());
            let (has_sync_failed, is_unfinished, is_edited, has_changed) = {
                let state = self.state();
                (state.has_sync_failed, state.is_unfinished, state.is_edited, state.changes > changes)
            };
            // What a recovery has put in place anew is another file.
            let has_changed = has_changed || self.count_take_overs(process) > finished;
            if has_sync_failed && is_of_a_failed_sync(&error) {
                let has_ended = matches!(kind, Kind::Open | Kind::Close);
                if !has_ended && !self.is_poisoned(process, &error)? {
                    continue;
                }
                return self.recover_poisoned(process, &what);
            }
            if kind == Kind::Open && error.kind() == ErrorKind::Locked && self.state().model.last_tx() == 0 {
                // Another was just creating the store, and has done so.
                continue;
            }
            if !(has_changed || is_unfinished) || error.kind() == ErrorKind::Locked || kind != Kind::Commit {
                return Err(what);
            }
            if is_edited && operations.iter().any(|one| one.paths().contains(&PATHS[0])) {
                return Ok(());
            }
            // What was seen may have been half done by somebody who died; now it is whole.
            if is_unfinished {
                match self.once(process, Kind::Checkpoint, &[]) {
                    _ if !self.is_alive(process) => {
                        self.bury(process);
                        return Ok(());
                    }
                    Ok(()) => {}
                    Err(error) if has_sync_failed && is_of_a_failed_sync(&error) => {
                        return self.recover_poisoned(process, &error.to_string());
                    }
                    Err(error) => {
                        return Err(format!("a checkpoint that has to finish a commit failed: {error}"));
                    }
                }
            }
            if self.state().model.possible().iter().any(|tree| after(tree, operations).is_none()) {
                return Ok(());
            }
        }
        Err(format!("{kind:?} {operations:?} of {process} failed {ATTEMPTS} times\n"))
    }

    /// Nobody else touches the tree, so nothing is to be kept for anybody.
    fn check_quarantine(&self) -> Result<(), String> {
        if self.state().is_edited {
            return find_theirs(&self.observer);
        }
        let quarantine = quarantine_of(&self.observer);
        if quarantine.is_empty() { Ok(()) } else { Err(format!("quarantine holds {quarantine:#?}")) }
    }

    fn start(self: &Arc<Self>, process: usize) {
        self.bury(process);
        let mut slot = locked(&self.processes[process]);
        if slot.is_some() {
            return;
        }
        let sim = self.observer.another_process();
        let shared: Weak<Self> = Arc::downgrade(self);
        let rule = move |call: &Call| shared.upgrade()?.before(process, call);
        let faults = Faults::new(Arc::new(sim.clone()), Arc::new(rule));
        *slot = Some(Process { sim, faults, store: None, is_alive: true });
    }

    /// Tries an act, and keeps the model.
    fn once(&self, process: usize, kind: Kind, operations: &[Operation]) -> Result<(), Error> {
        self.tell(|| format!("{process} begins to {kind:?} {operations:?}"));
        let deaths = self.state().deaths;
        let result = match kind {
            Kind::Commit => self.commit(process, operations),
            Kind::Checkpoint => self.store(process).expect("it is open").checkpoint(),
            Kind::Open => {
                let vfs: Arc<dyn Vfs> = {
                    let slot = locked(&self.processes[process]);
                    Arc::new(slot.as_ref().expect("it was started").faults.clone())
                };
                let opened = options(vfs, &self.settings).lock_timeout(Duration::ZERO).open(ROOT);
                opened.map(|store| {
                    self.note_report(process, store.recovery());
                    if let Some(process) = &mut *locked(&self.processes[process]) {
                        process.store = Some(store);
                    }
                })
            }
            Kind::Close => {
                let store = self.store(process).expect("it is open");
                let closed = store.clone().close();
                if !closed.as_ref().is_err_and(|error| error.kind() == ErrorKind::Locked) {
                    self.note_take_overs(process, &store);
                    let kept = locked(&self.processes[process]).as_mut().and_then(|one| one.store.take());
                    drop((kept, store));
                }
                closed
            }
        };
        if self.state().dies_next == Some(process) {
            self.state().dies_next = None;
            self.die(process);
        }
        self.tell(|| match &result {
            Ok(()) => format!("{process} has done {kind:?}"),
            Err(error) => format!("{process} could not {kind:?}: {error} ({:?})", error.kind()),
        });
        // Who died within may have died after this one had the lock for the last time.
        let has_anybody_died = self.state().deaths > deaths;
        if result.is_ok() && self.is_alive(process) && !has_anybody_died {
            self.see(process, kind);
        }
        result
    }

    fn commit(&self, process: usize, operations: &[Operation]) -> Result<(), Error> {
        let store = self.store(process).expect("it is open");
        let (id, last_tx) = {
            let mut state = self.state();
            (state.model.begin(process, operations), state.model.last_tx())
        };
        let result = commit(&store, operations);
        if !self.is_alive(process) {
            return result.map(drop);
        }
        let mut state = self.state();
        match &result {
            Ok(receipt) => {
                let tx = receipt.tx().0;
                state.changes += u64::from(tx > 0);
                if tx > 0 && (tx <= last_tx || state.model.acknowledged().contains(&tx)) {
                    state.failure = Some(format!("transaction {tx} comes after {last_tx}"));
                }
                if !(state.is_edited || receipt.displaced().is_empty() && receipt.lost().is_empty()) {
                    state.failure = Some(format!("nobody else touched the tree: {receipt:?}"));
                }
                state.model.acknowledge(id, tx);
            }
            Err(error) => match error.kind() {
                ErrorKind::OutcomeUnknown | ErrorKind::CommittedNotApplied => state.model.leave_open(id),
                _ => state.model.withdraw(id),
            },
        }
        drop(state);
        self.note_take_overs(process, &store);
        result.map(drop)
    }

    /// Nobody has the lock who is in the middle of something: the tree is whole.
    fn see(&self, process: usize, kind: Kind) {
        let found = tree_of(&self.observer);
        let mut state = self.state();
        let is_edited = state.is_edited;
        let possible = state.model.possible();
        let is_it = |tree: &Tree| {
            if is_edited { without_edited(tree) == without_edited(&found) } else { *tree == found }
        };
        state.is_unfinished = false;
        if state.model.see(is_it).is_none() {
            let differences = differences(&found, &possible);
            let reason =
                format!("after {kind:?} of {process} the tree is none of those allowed\n{differences}");
            state.failure.get_or_insert(reason);
        }
    }

    fn note_report(&self, process: usize, report: &RecoveryReport) {
        let mut state = self.state();
        let is_clean = report.quarantined.is_empty()
            && report.superseded.is_empty()
            && report.lost.is_empty()
            && report.metadata_kept.is_empty();
        if !is_clean && !state.is_edited {
            state
                .failure
                .get_or_insert(format!("nobody else touched the tree, and {process} reports {report:#?}"));
        }
        state.visited.take_overs += u64::from(report.redone > 0);
        state.changes += u64::from(*report != RecoveryReport::default());
    }

    fn count_take_overs(&self, process: usize) -> usize {
        self.store(process).map_or(0, |store| store.take_overs().len())
    }

    fn note_take_overs(&self, process: usize, store: &Store) {
        let reports = store.take_overs();
        if let Some(last) = reports.last() {
            self.note_report(process, last);
        }
    }

    // Failed syncs.

    /// Whether the process takes no more commits; it has to be so if it could not tell what became of something.
    fn is_poisoned(&self, process: usize, error: &Error) -> Result<bool, String> {
        if error.kind() == ErrorKind::Poisoned {
            // It may be another that is, and this one is told whenever it tries.
            return Ok(true);
        }
        let must_be = matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::CommittedNotApplied);
        match self.store(process).expect("it is open").begin() {
            Ok(_) if must_be => Err(format!("after {error}, a transaction may begin")),
            Ok(_) => Ok(false),
            Err(refused) if refused.kind() == ErrorKind::Poisoned => Ok(true),
            Err(refused) => Err(format!("after {error}, begin says {refused}")),
        }
    }

    /// Everybody else is refused, until somebody opens the store; then all go on.
    fn recover_poisoned(self: &Arc<Self>, process: usize, what: &str) -> Result<(), String> {
        self.tell(|| what.to_owned());
        let probe = [Operation::Write("probe", b"refused".to_vec())];
        let is_known = self.store(process).is_some();
        for other in self.open_ones().into_iter().filter(|other| *other != process && is_known) {
            let result = self.once(other, Kind::Commit, &probe);
            if let Some(reason) = self.state().failure.take() {
                return Err(reason);
            }
            if !self.is_alive(other) {
                self.bury(other);
                continue;
            }
            match result {
                Err(error) if error.kind() == ErrorKind::Poisoned => {}
                other => return Err(format!("{what}; then another process got {other:?}")),
            }
        }
        self.state().visited.poisoned += 1;
        for _ in 0..ATTEMPTS {
            let opener = (0..PROCESSES).rev().find(|&one| self.store(one).is_none());
            let opener = opener.unwrap_or_else(|| {
                // As the end of a process would.
                let _ = self.once(PROCESSES - 1, Kind::Close, &[]);
                PROCESSES - 1
            });
            self.start(opener);
            let result = self.once(opener, Kind::Open, &[]);
            if let Some(reason) = self.state().failure.take() {
                return Err(reason);
            }
            if !self.is_alive(opener) {
                self.bury(opener);
                continue;
            }
            return result.map_err(|error| format!("{what}; then opening failed: {error}"));
        }
        Err(format!("{what}; then nobody lived to open it"))
    }

    // What comes after.

    /// Those who are left go on.
    fn go_on(self: &Arc<Self>) -> Result<(), String> {
        let acts = 3 + self.state().random.below(4);
        for _ in 0..acts {
            let open = self.open_ones();
            let closed: Vec<usize> = (0..PROCESSES).filter(|one| !open.contains(one)).collect();
            let mut state = self.state();
            let next = state.plan.front().map(|planned| planned.process);
            let random = &mut state.random;
            let chosen = match (next, random.below(100)) {
                (Some(next), _) if closed.contains(&next) => (next, Kind::Open),
                (Some(next), 0..60) => (next, Kind::Commit),
                (Some(next), _) => (next, Kind::Checkpoint),
                _ if open.is_empty() => (*random.pick(&closed), Kind::Open),
                (_, 0..50) => (*random.pick(&open), Kind::Commit),
                (_, 50..70) => (*random.pick(&open), Kind::Checkpoint),
                (_, 70..85) if !closed.is_empty() => (*random.pick(&closed), Kind::Open),
                (_, 85..92) => (*random.pick(&open), Kind::Close),
                _ => {
                    drop(state);
                    self.observer.advance(20_000_000);
                    continue;
                }
            };
            drop(state);
            self.act(chosen.0, chosen.1)?;
        }
        Ok(())
    }

    /// A last commit and checkpoint leave nothing of the dead; perhaps all close then.
    fn end(self: &Arc<Self>) -> Result<(), String> {
        self.state().plan.clear();
        let last = if let Some(&open) = self.open_ones().first() {
            open
        } else {
            self.act(0, Kind::Open)?;
            0
        };
        // What changes something, so that there is something to settle.
        self.act_with(last, Kind::Commit, &[Operation::Write("last", b"committed".to_vec())])?;
        if self.store(last).is_none() {
            return Ok(());
        }
        self.act(last, Kind::Checkpoint)?;
        if self.state().has_sync_failed {
            // What a failed sync lost may be told to others even now.
            return Ok(());
        }
        let stages = stages_of(&self.observer);
        let has_left = |(_, files, is_alive): &&(String, Vec<String>, bool)| !*is_alive || !files.is_empty();
        if let Some(left) = stages.iter().find(has_left) {
            return Err(format!("after a checkpoint {left:?} is left in stage"));
        }
        if stages.len() != self.open_ones().len() {
            return Err(format!("{:?} have the store open, and {stages:?} is in stage", self.open_ones()));
        }
        if self.state().random.percent(50) {
            return Ok(());
        }
        for process in self.open_ones() {
            self.act(process, Kind::Close)?;
        }
        crate::crash::check_stage_is_empty(&self.observer)?;
        self.act(1, Kind::Open)?;
        let opened = self.store(1).expect("it was opened");
        if *opened.recovery() != RecoveryReport::default() {
            return Err(format!("after everybody closed, opening did {:#?}", opened.recovery()));
        }
        let acknowledged = self.state().model.acknowledged().to_vec();
        check_history(&self.observer, &self.settings, &acknowledged)
    }
}

/// Whether an error is one that a failed sync may give, at once or later.
fn is_of_a_failed_sync(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::OutcomeUnknown | ErrorKind::Poisoned | ErrorKind::CommittedNotApplied
    )
}
