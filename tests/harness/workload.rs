//! What somebody does with a store on a simulated machine, the same each time it is done: acts on a tree, with the model
//! of what becomes of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atomtree::vfs::faults::{Call, Fault, Faults, Rule, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, File, Lock, Vfs};
use atomtree::{Durability, Error, ErrorKind, Inspection, Options, Store, Transaction};

use crate::crash::{Crash, ROOT, differences, is_operation, options, quarantine_of, tree_of};
use crate::history::{Entry, History, Operation, Random, Settings, Step, Tree};

/// One thing that is done.
#[derive(Clone, Debug)]
pub enum Act {
    /// A transaction, committed.
    Commit(Vec<Operation>),
    /// A transaction of anything that operations are not made for, and what it makes of the model.
    Transact(fn(&mut Transaction) -> Result<(), Error>, fn(&mut Tree)),
    /// A call on the store that commits one transaction at most, and what it makes of the model.
    OnStore(fn(&Store) -> Result<(), Error>, fn(&mut Tree)),
    /// A transaction that is given up.
    Abandon(fn(&mut Transaction) -> Result<(), Error>),
    /// A transaction, submitted and waited for.
    Submit(Vec<Operation>),
    /// `Store::checkpoint`.
    Checkpoint,
    /// `Store::close`, and open again.
    Reopen,
    /// The machine goes down, and the store is opened again.
    Crash(Crash),
    /// The machine goes down, and the store is opened again until the machine stops at the so-manieth operation of
    /// that; another crash follows.
    HaltedOpen(Crash, u64),
    /// A transaction that whoever is in the way makes fail, unless something else did before.
    Refused(Vec<Operation>),
    /// A transaction during which the machine stops, at the so-manieth operation of it; a crash follows.
    Halted(Vec<Operation>, u64),
    /// Time enough for the clock to tell what changed before from what changes after.
    Wait,
    /// Everything that an inspection can say.
    Look,
    /// Another process tries to open the store.
    OpenTwice,
    /// The machine goes down, and nobody opens the store.
    Down(Crash),
    /// Another process opens the store beside this one, and keeps it open. None of its calls fails.
    Join,
    /// The other process commits a transaction.
    Beside(Vec<Operation>),
    /// The other process makes a checkpoint.
    SettlesBeside,
    /// One more process dies at the so-manieth operation of a transaction.
    DiesBeside(Vec<Operation>, u64),
    /// A sync of one more process fails in a transaction, which poisons the store; then that process ends.
    PoisonsBeside(Vec<Operation>),
    /// The other process closes the store.
    Leave,
    /// This process dies, and another one opens the store in its place.
    Rejoin,
    /// Somebody holds the lock with this name until it is waited for, while the store is committed to and settled.
    Waits(&'static str, Vec<Operation>),
    /// Something that other programs do.
    Outside(fn(&Sim)),
}

/// What another program does in the middle of a call, or the storage: called before each call.
/// Says whether it did anything where it matters.
pub type Meddler = fn(&Sim, &Call, &AtomicBool) -> Option<Fault>;

/// Acts, and the machine that they are done on.
#[derive(Clone)]
pub struct Workload {
    /// For messages.
    pub name: String,
    /// The storage and the store.
    pub settings: Settings,
    /// Options beyond those that all histories have.
    pub tune: fn(Options) -> Options,
    /// What stands in the tree before the store is created, durably.
    pub initial: Tree,
    /// What else is so before.
    pub prepare: fn(&Sim),
    /// What is done.
    pub acts: Vec<Act>,
    /// Who is in the way.
    pub meddler: Option<Meddler>,
    /// What another program writes, which must be in the tree or in quarantine in the end.
    pub theirs: Option<&'static [u8]>,
    /// Whether any other transaction does here what the model says, and may be tried after it.
    pub is_ordinary: bool,
}

impl Workload {
    /// A generated history, with a crash in its last transaction and others at its end.
    pub fn generate(seed: u64) -> Self {
        let history = History::generate(seed);
        let mut random = Random::new(seed ^ 0x5eed);
        let crash =
            |random: &mut Random| if random.percent(40) { Crash::Kill } else { Crash::Cut(random.next()) };
        let mut acts: Vec<Act> = (history.prelude.iter().chain(&history.steps))
            .map(|step| match step {
                Step::Commit(operations) if random.percent(20) => Act::Submit(operations.clone()),
                Step::Commit(operations) => Act::Commit(operations.clone()),
                Step::Checkpoint => Act::Checkpoint,
                Step::Reopen => Act::Reopen,
                Step::Wait => Act::Wait,
            })
            .collect();
        if let Some(at) = acts.iter().rposition(|act| matches!(act, Act::Commit(_))) {
            let Act::Commit(operations) = acts[at].clone() else { unreachable!("it was just found") };
            acts.truncate(at);
            acts.push(Act::Halted(operations, 10 + random.below(30)));
            if random.percent(30) {
                acts.push(Act::HaltedOpen(crash(&mut random), 10 + random.below(30)));
            }
            acts.push(Act::Crash(crash(&mut random)));
        }
        acts.extend([Act::Checkpoint, Act::Reopen]);
        Self {
            name: format!("generated {seed}"),
            settings: history.settings,
            tune: |options| options,
            initial: history.initial,
            prepare: |_| {},
            acts,
            meddler: None,
            theirs: None,
            is_ordinary: true,
        }
    }

    /// Opens the store on a machine that others may meddle with too, if they always do.
    pub fn open_on(&self, machine: &Sim, then: Rule, has_meddled: &Arc<AtomicBool>) -> Result<Store, Error> {
        let quiet = Self { meddler: self.meddler.filter(|_| !self.is_ordinary), ..self.clone() };
        let interpose: Interpose = Arc::new(move |_, call, _| then(call));
        self.open(Arc::new(attach(&quiet, machine, &interpose, &Arc::default(), has_meddled)))
    }

    fn machine(&self) -> Sim {
        let history = History {
            seed: 1,
            settings: self.settings,
            initial: self.initial.clone(),
            prelude: Vec::new(),
            steps: Vec::new(),
        };
        let sim = crate::crash::machine(&history);
        (self.prepare)(&sim);
        sim
    }

    /// Opens the store as this workload does.
    pub fn open(&self, vfs: Arc<dyn Vfs>) -> Result<Store, Error> {
        (self.tune)(options(vfs, &self.settings)).open(ROOT)
    }

    /// The tree as it may be compared: without the name that the other program writes to.
    fn seen(&self, mut tree: Tree) -> Tree {
        if self.theirs.is_some() {
            tree.remove("a");
        }
        tree
    }

    /// Which of the trees a machine has, whoever else writes to it left out.
    pub fn find(&self, machine: &Sim, allowed: &[Tree]) -> Result<usize, String> {
        let found = self.seen(tree_of(machine));
        let allowed: Vec<Tree> = allowed.iter().cloned().map(|tree| self.seen(tree)).collect();
        let index = allowed.iter().position(|allowed| *allowed == found);
        index.ok_or_else(|| format!("the tree is none of those allowed\n{}", differences(&found, &allowed)))
    }

    /// Whether what the other program wrote is still somewhere.
    pub fn find_theirs(&self, machine: &Sim) -> Result<(), String> {
        let Some(theirs) = self.theirs else { return Ok(()) };
        let (tree, quarantine) = (tree_of(machine), quarantine_of(machine));
        let is_theirs =
            |entry: &Entry| matches!(entry, Entry::File { content, .. } if content.as_slice() == theirs);
        if tree.values().chain(quarantine.values()).any(is_theirs) {
            return Ok(());
        }
        Err(format!("what another program wrote is gone: {tree:#?} {quarantine:#?}"))
    }
}

/// Sees each call, on the machine that it is made on, in the act with this number.
pub type Interpose = Arc<dyn Fn(&Sim, &Call, usize) -> Option<Fault> + Send + Sync>;

/// A workload being done.
pub struct World<'a> {
    workload: &'a Workload,
    interpose: Interpose,
    /// The machine.
    pub sim: Sim,
    faults: Faults,
    /// The store, if it is open.
    pub store: Option<Store>,
    /// The other process, if there is one, and its store.
    beside: Option<(Sim, Store)>,
    /// A lock that somebody has until it is waited for.
    held: Held,
    /// Whether a process has died in a commit that nobody has finished.
    pub is_unfinished: bool,
    /// The trees that may be there: one, unless an outcome is open.
    pub allowed: Vec<Tree>,
    /// Which act is being done, from 1 on; 0 while the store is created.
    act: Arc<AtomicUsize>,
    /// Whether the other program has written what it writes.
    pub has_meddled: Arc<AtomicBool>,
    /// Whether something failed that was to fail: what was halted, or refused.
    pub has_failed_as_planned: bool,
}

/// An act that failed.
#[derive(Debug)]
pub enum Failure {
    /// As the engine says.
    Told(Error),
    /// Not as it may.
    Broken(String),
    /// Another process was told this, none of whose calls fails.
    Beside(Error),
}

/// A lock's file that somebody holds.
type Held = Arc<Mutex<Option<Arc<dyn File>>>>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

impl<'a> World<'a> {
    /// A machine with the tree on it and no store; `interpose` sees every call.
    pub fn new(workload: &'a Workload, interpose: Interpose) -> Self {
        let (sim, act) = (workload.machine(), Arc::new(AtomicUsize::new(0)));
        let (has_meddled, held) = (Arc::default(), Held::default());
        let interpose = gives_up(&held, interpose);
        let faults = attach(workload, &sim, &interpose, &act, &has_meddled);
        Self {
            workload,
            interpose,
            sim,
            faults,
            store: None,
            beside: None,
            held,
            is_unfinished: false,
            allowed: vec![workload.initial.clone()],
            act,
            has_meddled,
            has_failed_as_planned: false,
        }
    }

    /// Opens the store.
    pub fn open(&mut self) -> Result<(), Failure> {
        self.store = Some(self.workload.open(Arc::new(self.faults.clone()))?);
        self.settle_outcome()
    }

    /// Does the act with this number, from 1 on.
    pub fn act(&mut self, number: usize) -> Result<(), Failure> {
        self.act.store(number, Ordering::Relaxed);
        match &self.workload.acts[number - 1] {
            Act::Commit(operations) => {
                let settled = self.workload.settings.settled;
                let result = crate::crash::commit_as(self.open_store(), operations, settled).map(drop);
                self.note_on_each(result.as_ref(), operations);
                result?;
                self.settle_outcome()
            }
            Act::Transact(change, model) => {
                let mut next = self.allowed[0].clone();
                model(&mut next);
                self.commit(next, |store| store.transact(change).map(drop))
            }
            Act::OnStore(call, model) => {
                let mut next = self.allowed[0].clone();
                model(&mut next);
                self.commit(next, call)
            }
            Act::Abandon(change) => Ok(change(&mut self.open_store().begin()?)?),
            Act::Submit(operations) => self.submit(operations),
            Act::Checkpoint => Ok(self.open_store().checkpoint()?),
            Act::Reopen => {
                if let Some(store) = self.store.take() {
                    store.close()?;
                }
                self.open()
            }
            Act::Crash(crash) => {
                self.crash(*crash);
                self.open()
            }
            Act::Halted(operations, after_operations) => {
                self.sim.halt_at(self.sim.operations() + after_operations);
                let next = after(operations, &self.allowed[0]);
                let settled = self.workload.settings.settled;
                let result = crate::crash::commit_as(self.open_store(), operations, settled);
                self.has_failed_as_planned |= result.is_err();
                self.note(result.map(drop).as_ref(), next);
                Ok(())
            }
            Act::HaltedOpen(crash, after_operations) => {
                self.crash(*crash);
                self.sim.halt_at(self.sim.operations() + after_operations);
                self.has_failed_as_planned |= self.open().is_err();
                Ok(())
            }
            Act::Refused(operations) => {
                let next = after(operations, &self.allowed[0]);
                let refusals = ["Operation not permitted", "No space left on device"];
                match self.commit(next, |store| crate::crash::commit_as(store, operations, false).map(drop)) {
                    Err(Failure::Told(error))
                        if matches!(
                            error.kind(),
                            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Permission
                        ) && refusals.iter().any(|refusal| error.to_string().contains(refusal)) =>
                    {
                        self.has_failed_as_planned = true;
                        self.settle_outcome()
                    }
                    result => result,
                }
            }
            Act::Wait => {
                self.sim.advance(20_000_000);
                Ok(())
            }
            Act::Look => self.look(),
            Act::OpenTwice => self.open_twice(),
            Act::Down(crash) => {
                self.crash(*crash);
                Ok(())
            }
            Act::Join => {
                let process = self.sim.another_process();
                let store = self.open_beside(Arc::new(process.clone()))?;
                self.beside = Some((process, store));
                self.settle_outcome()
            }
            Act::Beside(operations) => {
                let (_, store) = self.beside.as_ref().expect("it has joined");
                let result = crate::crash::commit(store, operations).map(drop);
                self.note_on_each(result.as_ref(), operations);
                result.map_err(Failure::Beside)?;
                self.settle_outcome()
            }
            Act::SettlesBeside => {
                let (_, store) = self.beside.as_ref().expect("it has joined");
                store.checkpoint().map_err(Failure::Beside)
            }
            Act::DiesBeside(operations, at) => self.fail_beside(operations, *at, false),
            Act::PoisonsBeside(operations) => self.fail_beside(operations, 1, true),
            Act::Leave => match self.beside.take() {
                Some((_, store)) => store.close().map_err(Failure::Beside),
                None => Ok(()),
            },
            Act::Rejoin => {
                self.faults.set_rule(fail_nothing());
                let process = self.sim.another_process();
                self.sim.end_process();
                self.store = None;
                self.sim = process;
                self.faults = attach(self.workload, &self.sim, &self.interpose, &self.act, &self.has_meddled);
                self.open()
            }
            Act::Waits(lock, operations) => self.wait(lock, operations),
            Act::Outside(change) => {
                change(&self.sim);
                self.has_meddled.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The machine goes down, if it has not; what had the store open is gone.
    pub fn crash(&mut self, crash: Crash) {
        self.faults.set_rule(fail_nothing());
        let sim = crash.of(&self.sim);
        self.end_beside();
        self.store = None;
        self.sim = sim;
        self.faults = attach(self.workload, &self.sim, &self.interpose, &self.act, &self.has_meddled);
    }

    /// From now on every call comes through.
    pub fn heal(&mut self) {
        self.faults.set_rule(fail_nothing());
    }

    /// The other process ends, if there is one.
    pub fn end_beside(&mut self) {
        if let Some((process, store)) = self.beside.take() {
            process.end_process();
            drop(store);
        }
    }

    /// Opens the store in a process that waits for nobody: all that it could wait for is on this thread.
    fn open_beside(&self, vfs: Arc<dyn Vfs>) -> Result<Store, Failure> {
        let options = (self.workload.tune)(options(vfs, &self.workload.settings));
        options.lock_timeout(Duration::ZERO).open(ROOT).map_err(Failure::Beside)
    }

    /// Another process begins a transaction beside this one; it dies at an operation of it, or one of its syncs fails.
    fn fail_beside(&mut self, operations: &[Operation], at: u64, fails_sync: bool) -> Result<(), Failure> {
        let process = self.sim.another_process();
        let (dying, count) = (process.clone(), AtomicU64::new(0));
        let is_armed = Arc::new(AtomicBool::new(false));
        let armed = Arc::clone(&is_armed);
        let rule = move |call: &Call| {
            let counts = if fails_sync { call.verb == Verb::SyncData } else { is_operation(call.verb) };
            if !counts || !armed.load(Ordering::Relaxed) || count.fetch_add(1, Ordering::Relaxed) + 1 != at {
                return None;
            }
            if fails_sync {
                return Some(Fault::LoseData(5));
            }
            dying.end_process();
            Some(Fault::Error(5))
        };
        let faults = Faults::new(Arc::new(process.clone()), Arc::new(rule));
        let store = self.open_beside(Arc::new(faults))?;
        is_armed.store(true, Ordering::Relaxed);
        let result = crate::crash::commit(&store, operations).map(drop);
        process.end_process();
        drop(store);
        // Whatever it was told itself, nobody else knows.
        let nexts: Vec<Tree> = self.allowed.iter().map(|tree| after(operations, tree)).collect();
        match result {
            Ok(()) => self.allowed = nexts,
            Err(error) if matches!(error.kind(), ErrorKind::Locked | ErrorKind::Poisoned) && !fails_sync => {
                return Err(Failure::Beside(error));
            }
            Err(_) => self.allowed.extend(nexts),
        }
        (self.is_unfinished, self.has_failed_as_planned) = (true, true);
        Ok(())
    }

    /// Commits while somebody holds a lock, who gives it up as soon as it is waited for.
    fn wait(&mut self, lock: &str, operations: &[Operation]) -> Result<(), Failure> {
        let holder = self.sim.another_process();
        let dir = holder.open_root(Path::new(&format!("{ROOT}/.atomtree"))).expect("the store stands");
        let file = dir.open_file(lock.as_ref(), Access::ReadWrite).expect("its locks stand");
        if file.try_lock(Lock::Exclusive).expect("nothing of it fails") {
            *self.held.lock().expect("it is held for a moment") = Some(file);
        }
        let result = crate::crash::commit(self.open_store(), operations).map(drop);
        self.note_on_each(result.as_ref(), operations);
        let result = result.and_then(|()| self.open_store().checkpoint());
        *self.held.lock().expect("it is held for a moment") = None;
        holder.end_process();
        result?;
        self.settle_outcome()
    }

    /// As [`World::note`], where the tree before may be one of several.
    fn note_on_each(&mut self, result: Result<&(), &Error>, operations: &[Operation]) {
        let nexts = self.allowed.iter().map(|tree| after(operations, tree));
        match result.map_err(Error::kind) {
            Err(ErrorKind::OutcomeUnknown) => self.allowed.extend(nexts.collect::<Vec<_>>()),
            Ok(()) | Err(ErrorKind::CommittedNotApplied) => self.allowed = nexts.collect(),
            Err(_) => {}
        }
    }

    fn open_store(&self) -> &Store {
        self.store.as_ref().expect("acts that need it come while it is open")
    }

    fn commit(
        &mut self,
        next: Tree,
        commit: impl FnOnce(&Store) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        let result = commit(self.open_store());
        self.note(result.as_ref(), next);
        result?;
        self.settle_outcome()
    }

    /// Takes down what an outcome says of the tree.
    fn note(&mut self, result: Result<&(), &Error>, next: Tree) {
        match result.map_err(Error::kind) {
            Err(ErrorKind::OutcomeUnknown) => self.allowed.push(next),
            Ok(()) | Err(ErrorKind::CommittedNotApplied) => self.allowed = vec![next],
            Err(_) => {}
        }
    }

    fn submit(&mut self, operations: &[Operation]) -> Result<(), Failure> {
        let mut transaction = self.open_store().begin()?;
        if self.workload.settings.settled {
            transaction.set_durability(Durability::Settled);
        }
        operations.iter().try_for_each(|operation| operation.perform(&mut transaction))?;
        let ticket = transaction.submit()?;
        let durable = ticket.durable();
        let applied = ticket.applied();
        let next = after(operations, &self.allowed[0]);
        self.note(applied.as_ref().map(|_| &()), next);
        match (durable, applied.map_err(|error| (error.kind(), error))) {
            (Ok(_), Err((kind, error))) if kind != ErrorKind::CommittedNotApplied => {
                Err(Failure::Broken(format!("it was durable, and then {error}")))
            }
            (Err(error), Ok(_)) => Err(Failure::Broken(format!("it was applied, and not durable: {error}"))),
            (_, Err((_, error))) => Err(error.into()),
            (Ok(_), Ok(_)) => self.settle_outcome(),
        }
    }

    /// What the tree is, now that everybody can see it.
    fn settle_outcome(&mut self) -> Result<(), Failure> {
        let index = self.workload.find(&self.sim, &self.allowed).map_err(Failure::Broken)?;
        self.allowed = vec![self.allowed.swap_remove(index)];
        self.is_unfinished = false;
        Ok(())
    }

    fn look(&self) -> Result<(), Failure> {
        let options = (self.workload.tune)(options(Arc::new(self.faults.clone()), &self.workload.settings));
        let inspection = Inspection::open(ROOT, &options)?;
        inspection.status()?;
        inspection.holder()?;
        inspection.stats()?;
        let verification = inspection.verify()?;
        for past in inspection.log(5)? {
            inspection.contents(&past, 1 << 20)?;
            if inspection.transaction(past.tx)?.is_none() {
                return Err(Failure::Broken(format!("{past:?} is listed and not found")));
            }
        }
        drop(verification);
        Ok(())
    }

    fn open_twice(&self) -> Result<(), Failure> {
        let other = self.sim.another_process();
        let faults = attach(self.workload, &other, &self.interpose, &self.act, &self.has_meddled);
        let workload = self.workload;
        let options = (workload.tune)(options(Arc::new(faults), &workload.settings));
        match options.exclusive(true).lock_timeout(Duration::ZERO).open(ROOT) {
            Ok(_) => Err(Failure::Broken("two processes have the store open".into())),
            Err(error) if error.kind() == ErrorKind::Locked => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn after(operations: &[Operation], tree: &Tree) -> Tree {
    let mut next = tree.clone();
    operations.iter().for_each(|operation| operation.perform_on(&mut next));
    next
}

/// Whoever has a lock that is waited for gives it up.
fn gives_up(held: &Held, then: Interpose) -> Interpose {
    let held = Arc::clone(held);
    Arc::new(move |sim, call, act| {
        if call.verb == Verb::WaitForLock {
            *held.lock().expect("it is held for a moment") = None;
        }
        then(sim, call, act)
    })
}

fn attach(
    workload: &Workload,
    sim: &Sim,
    interpose: &Interpose,
    act: &Arc<AtomicUsize>,
    has_meddled: &Arc<AtomicBool>,
) -> Faults {
    let (machine, interpose, act) = (sim.clone(), Arc::clone(interpose), Arc::clone(act));
    let has_meddled = Arc::clone(has_meddled);
    let in_the_way = workload.meddler;
    let rule = move |call: &Call| {
        let answer = in_the_way.and_then(|meddle| meddle(&machine, call, &has_meddled));
        interpose(&machine, call, act.load(Ordering::Relaxed)).or(answer)
    };
    Faults::new(Arc::new(sim.clone()), Arc::new(rule))
}

/// Names below a directory of a machine, for those who look for something that has a random name.
pub fn names_in(sim: &Sim, dir: &str) -> BTreeSet<String> {
    let Ok(dir) = sim.open_root(Path::new(dir)) else { return BTreeSet::new() };
    let entries = dir.list().unwrap_or_default();
    entries.into_iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect()
}
