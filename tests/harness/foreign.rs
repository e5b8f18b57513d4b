//! Edits by programs that don't use atomtree, at any operation of a run, with and without a crash behind them.
//!
//! The oracle: what the other program wrote and synced is at its name or in quarantine afterwards, every other name is
//! as some allowed tree has it, and a recovery that follows changes nothing any more.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::path::Path;
use std::sync::{Arc, Mutex};

use atomtree::vfs::faults::{Call, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, File, Vfs};
use atomtree::{ErrorKind, Store};

use crate::crash::{Crash, ROOT, Watch, differences, images_of, machine, open, quarantine_of, tree_of};
use crate::history::{Entry, History, Operation, PATHS, Random, Settings, Tree, generate_operations_on};

/// What the other program does to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Replaces it by renaming a synced file over it, or creates it.
    Replace,
    /// Writes it anew in place, and syncs; or creates it.
    Rewrite,
    /// Writes it anew in place, without syncing; or creates it.
    RewriteUnsynced,
    /// Removes it.
    Remove,
    /// Writes through a descriptor that was opened before everything, and syncs.
    OldDescriptor,
}

/// When it does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before this operation of the run, counted from the first after the store was opened.
    InRun(u64),
    /// Between crash and recovery.
    AfterCrash,
    /// Before this operation of the recovery.
    InRecovery(u64),
}

/// One scenario, decided by its seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Decides everything else.
    pub seed: u64,
    settings: Settings,
    kind: Kind,
    when: When,
    path: &'static str,
    content: Vec<u8>,
    /// The operation of the run at which it crashes, counted like [`When::InRun`]; `None` if it ends well.
    crash: Option<(u64, Crash)>,
    /// The operation of the recovery at which that crashes.
    crash_in_recovery: Option<(u64, Crash)>,
}

/// What is shared with the hook that edits.
struct Editor {
    scenario: Scenario,
    descriptor: Mutex<Option<Arc<dyn File>>>,
    /// Whether the edit has been made.
    done: Mutex<bool>,
}

impl Editor {
    /// Opens what stands at the name now, for a write much later.
    fn open_descriptor(&self, sim: &Sim) {
        let path = format!("{ROOT}/{}", self.scenario.path);
        let path = Path::new(&path);
        let name = path.file_name().unwrap_or(OsStr::new(""));
        let dir = sim.another_process().open_root(path.parent().unwrap_or(Path::new("/")));
        let file = dir.and_then(|dir| dir.open_file(name, Access::ReadWrite));
        *self.descriptor.lock().expect("nothing panics while it is held") = file.ok();
    }

    fn is_done(&self) -> bool {
        *self.done.lock().expect("nothing panics while it is held")
    }

    fn edit(&self, sim: &Sim, call: Option<&Call>) {
        let path = format!("{ROOT}/{}", self.scenario.path);
        let content = &self.scenario.content;
        let mut done = self.done.lock().expect("nothing panics while it is held");
        if *done {
            return;
        }
        *done = match self.scenario.kind {
            Kind::Replace => {
                sim.replace_file(&path, content);
                true
            }
            Kind::Rewrite => {
                sim.write_file(&path, content);
                true
            }
            Kind::RewriteUnsynced => {
                sim.write_file_unsynced(&path, content);
                true
            }
            Kind::Remove => {
                sim.remove(&path);
                true
            }
            Kind::OldDescriptor => {
                let file = self.descriptor.lock().expect("nothing panics while it is held").clone();
                // Comparing and unlinking a file are two calls, and what is written in between is lost: the documents
                // say so.
                let late = call.is_some_and(|call| call.verb == Verb::RemoveFile);
                match file {
                    Some(file) if !late && file.metadata().is_ok_and(|found| found.links > 0) => {
                        let written = file
                            .set_len(0)
                            .and_then(|()| file.write_at(&[IoSlice::new(content)], 0))
                            .and_then(|()| file.sync_all());
                        written.is_ok()
                    }
                    _ => false,
                }
            }
        };
    }
}

/// What came of a scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Commits that were conflicts.
    pub conflicts: u64,
    /// Edits found at their names.
    pub in_place: u64,
    /// Edits found in quarantine.
    pub quarantined: u64,
    /// Scenarios in which no edit was made, or none whose fate is promised.
    pub void: u64,
}

struct Outcome {
    /// The trees that may be there, the name edited aside.
    allowed: Vec<Tree>,
    conflicts: u64,
    /// Names in quarantine that receipts gave for the edited name.
    kept: Vec<String>,
    /// Names that what stood at the edited one was renamed to: a large file moves with whatever is in it.
    moved_to: BTreeSet<&'static str>,
    operations: u64,
    store: Option<Store>,
    /// Names where what the other program destroyed was to be moved to, as recoveries said.
    lost: BTreeSet<String>,
}

impl Outcome {
    /// Takes down what a recovery said.
    fn note_lost(&mut self, store: &Store) {
        let lost = store.recovery().lost.iter().map(ToString::to_string);
        self.lost.extend(lost.filter(|path| self.moved_to.contains(path.as_str())));
    }

    /// The names at which what the other program wrote in place may stand.
    fn names(&self, edited: &'static str) -> Vec<&'static str> {
        std::iter::once(edited).chain(self.moved_to.iter().copied()).collect()
    }
}

impl Scenario {
    /// The scenario that `seed` decides, for a run of this many operations and a recovery of that many.
    fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xf0e1);
        let mut settings = History::generate(seed).settings;
        let kind = *random.pick(&[
            Kind::Replace,
            Kind::Replace,
            Kind::Rewrite,
            Kind::Rewrite,
            Kind::RewriteUnsynced,
            Kind::Remove,
            Kind::OldDescriptor,
        ]);
        let when = match random.below(10) {
            0..6 => When::InRun(0),
            6 => When::AfterCrash,
            _ => When::InRecovery(0),
        };
        // Without an exchange, edits between the calls that stand for one are lost: the documents say so.
        settings.can_exchange |= matches!(when, When::InRun(_)) || random.percent(70);
        let length = 20 + random.below(3000) as usize;
        let mut content = format!("foreign {seed} ").into_bytes();
        content.extend(random.bytes(length).iter().map(|byte| byte | 1));
        Self {
            seed,
            settings,
            kind,
            when,
            path: *random.pick(&PATHS[..6]),
            content,
            crash: None,
            crash_in_recovery: None,
        }
    }

    fn history(&self) -> History {
        History { settings: self.settings, ..History::generate(self.seed) }
    }

    /// Runs it: transactions on a fresh machine, the edit among them, up to the crash.
    fn run(&self, sim: &Sim, editor: &Arc<Editor>) -> Outcome {
        let mut random = Random::new(self.seed ^ 0x1234);
        let history = self.history();
        let meddle = {
            let editor = Arc::clone(editor);
            let start = Arc::new(Mutex::new(None));
            move |sim: &Sim, operation: u64, call: &Call| {
                let mut start = start.lock().expect("nothing panics while it is held");
                let start = *start.get_or_insert(operation);
                if let When::InRun(at) = editor.scenario.when
                    && operation >= start + at
                {
                    editor.edit(sim, Some(call));
                }
                None
            }
        };
        let mut tree = history.initial.clone();
        let mut outcome = Outcome {
            allowed: vec![tree.clone()],
            conflicts: 0,
            kept: Vec::new(),
            moved_to: BTreeSet::new(),
            operations: 0,
            store: None,
            lost: BTreeSet::new(),
        };
        // The store exists before anything is edited.
        open(Arc::new(sim.clone()), &self.settings).expect("a new store opens").close().expect("it closes");
        editor.open_descriptor(sim);
        let first = sim.operations() + 1;
        if let Some((at, _)) = self.crash {
            sim.halt_at(first + at);
        }
        let watch = Watch::new(sim, Some(Box::new(meddle)));
        let Ok(store) = open(watch.vfs(), &self.settings) else {
            assert!(sim.is_halted(), "a store opens");
            return outcome;
        };
        for _ in 0..=random.below(3) {
            let was_done = editor.is_done();
            let paths: Vec<&'static str> = PATHS
                .into_iter()
                .filter(|path| !was_done || !outcome.names(self.path).contains(path))
                .collect();
            let mut next = tree.clone();
            let operations = generate_operations_on(&mut random, &mut next, &paths);
            outcome.allowed = vec![tree.clone(), next.clone()];
            for operation in &operations {
                if let Operation::Rename(from, to) = operation
                    && (*from == self.path || outcome.moved_to.contains(from))
                {
                    outcome.moved_to.insert(to);
                }
            }
            match crate::crash::commit(&store, &operations) {
                Ok(receipt) => {
                    tree = next;
                    outcome.allowed.remove(0);
                    outcome.lost.extend(receipt.lost().iter().map(ToString::to_string));
                    outcome.kept.extend(
                        receipt
                            .displaced()
                            .iter()
                            .filter(|displaced| displaced.path.to_string() == self.path)
                            .map(|displaced| displaced.kept.clone()),
                    );
                }
                Err(error) if sim.is_halted() => {
                    drop(error);
                    break;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{operations:?}: {error}");
                    assert!(editor.is_done() && !was_done, "{operations:?}: a conflict with nobody: {error}");
                    outcome.conflicts += 1;
                    outcome.allowed.truncate(1);
                    // What was generated on top of it never was.
                    break;
                }
            }
            if random.percent(40) && store.checkpoint().is_err() {
                assert!(sim.is_halted(), "a checkpoint succeeds");
                break;
            }
            if random.percent(30) {
                sim.advance(20_000_000);
            }
        }
        outcome.operations = sim.operations() + 1 - first;
        outcome.store = Some(store);
        outcome
    }

    /// Runs the scenario and judges what is left.
    pub fn judge(seed: u64) -> Result<Tally, String> {
        let mut scenario = Self::generate(seed);
        let mut random = Random::new(seed ^ 0x77);
        let crash = |random: &mut Random| {
            if random.percent(50) { Crash::Kill } else { Crash::Cut(random.next() >> 32) }
        };
        // A first run without edit and crash tells how long it is.
        let dry = Self { when: When::AfterCrash, ..scenario.clone() };
        let sim = machine(&scenario.history());
        let run = dry.run(&sim, &Arc::new(Editor::new(&dry)));
        let length = run.operations.max(1);
        let recovery_length = 60;
        if let When::InRun(at) = &mut scenario.when {
            *at = random.below(length);
        }
        if let When::InRecovery(at) = &mut scenario.when {
            *at = 1 + random.below(recovery_length);
        }
        match scenario.when {
            When::InRun(at) if random.percent(60) => {
                scenario.crash = Some((at + random.below(length - at), crash(&mut random)));
            }
            When::InRun(_) => {}
            _ => scenario.crash = Some((random.below(length + 1), crash(&mut random))),
        }
        if scenario.crash.is_some() && random.percent(50) {
            scenario.crash_in_recovery = Some((1 + random.below(recovery_length), crash(&mut random)));
        }
        drop(run);
        let mut trace = Vec::new();
        scenario.judge_self(&mut random, &mut trace).map_err(|reason| {
            let scenario = Self { content: scenario.content[..20].to_vec(), ..scenario.clone() };
            format!("foreign edit {seed}: {reason}\n{scenario:#?}\n{}", trace.join("\n"))
        })
    }

    fn judge_self(&self, random: &mut Random, trace: &mut Vec<String>) -> Result<Tally, String> {
        let sim = machine(&self.history());
        sim.set_trace(true);
        let editor = Arc::new(Editor::new(self));
        let mut outcome = self.run(&sim, &editor);
        trace.extend(sim.trace());
        let mut synced = self.kind != Kind::RewriteUnsynced;
        let mut cut = false;
        let mut kept_in_recovery = Vec::new();
        let last = if let Some((_, crash)) = self.crash {
            drop(outcome.store.take());
            cut |= matches!(crash, Crash::Cut(_));
            let mut machine = crash.of(&sim);
            trace.push(format!("{crash:?} leaves {:#?}", tree_of(&machine)));
            if !matches!(self.when, When::InRun(_)) {
                editor.open_descriptor(&machine);
            }
            if self.when == When::AfterCrash {
                editor.edit(&machine, None);
            }
            let edits = {
                let editor = Arc::clone(&editor);
                move |sim: &Sim, operation: u64, call: &Call| {
                    if let When::InRecovery(at) = editor.scenario.when
                        && operation >= at
                    {
                        editor.edit(sim, Some(call));
                    }
                    None
                }
            };
            machine.set_trace(true);
            if let Some((at, crash)) = self.crash_in_recovery {
                machine.halt_at(at);
                let result = open(Watch::new(&machine, Some(Box::new(edits.clone()))).vfs(), &self.settings);
                trace.push("recovery".into());
                trace.extend(machine.trace());
                if machine.is_halted() || result.is_ok() {
                    result.iter().for_each(|store| outcome.note_lost(store));
                    drop(result);
                    cut |= matches!(crash, Crash::Cut(_));
                    machine = crash.of(&machine);
                    trace.push(format!("{crash:?} leaves {:#?}", tree_of(&machine)));
                    machine.set_trace(true);
                }
            }
            let store = open(Watch::new(&machine, Some(Box::new(edits))).vfs(), &self.settings);
            trace.push("recovery".into());
            trace.extend(machine.trace());
            let store = store.map_err(|error| format!("recovery failed: {error}"))?;
            trace.push(format!("{:#?}", store.recovery()));
            outcome.note_lost(&store);
            let displaced = store.recovery().quarantined.iter();
            kept_in_recovery.extend(
                displaced
                    .filter(|displaced| displaced.path.to_string() == self.path)
                    .map(|displaced| displaced.kept.clone()),
            );
            outcome.store = Some(store);
            machine
        } else {
            sim.clone()
        };
        if !editor.is_done() {
            return Ok(Tally { void: 1, ..Tally::default() });
        }
        if self.kind == Kind::OldDescriptor && cut {
            // A cut can take the names of an inode that nobody synced a name of.
            synced = false;
        }
        if self.kind == Kind::OldDescriptor && self.crash.is_none() {
            // What has become of an original shows when it is compared for the last time.
            let store = outcome.store.as_ref().expect("nothing crashed");
            store.checkpoint().map_err(|error| format!("no checkpoint: {error}"))?;
        }
        let promised = synced || !cut;
        self.check(&last, &outcome, promised)?;
        let in_place = self.is_in_place(&last, &outcome);
        // It was displaced by a commit that was acknowledged, or by a recovery, and neither was cut short.
        let kept = &outcome.kept;
        if self.crash.is_none() && promised && self.kind != Kind::Remove && !in_place {
            let told = kept.iter().chain(&kept_in_recovery).any(|kept| {
                last.read_file(format!("{ROOT}/.atomtree/{kept}")).is_some_and(|found| found == self.content)
            });
            if !told && self.kind != Kind::OldDescriptor {
                return Err(format!("no receipt told where the edit is kept: {kept:?}"));
            }
        }
        // A clean close, or a crash and another recovery, change nothing.
        let store = outcome.store.take().expect("it was opened");
        let way = random.below(3);
        if way == 0 {
            store.close().map_err(|error| format!("it did not close: {error}"))?;
        }
        let cut = way == 0 || way == 1 && self.crash.is_some();
        let after = if cut { last.power_cut(random.next()) } else { last.kill() };
        let promised = promised && (synced || !cut);
        let again = open(Arc::new(after.clone()), &self.settings)
            .map_err(|error| format!("the second open failed: {error}"))?;
        if self.crash.is_some() && again.recovery().redone != 0 {
            return Err(format!("the second open was not idle: {:#?}", again.recovery()));
        }
        self.check(&after, &outcome, promised).map_err(|reason| format!("after all that: {reason}"))?;
        let quarantined = promised && self.kind != Kind::Remove && !self.is_in_place(&after, &outcome);
        Ok(Tally {
            conflicts: outcome.conflicts,
            in_place: u64::from(promised && !quarantined),
            quarantined: u64::from(quarantined),
            void: u64::from(!promised),
        })
    }

    fn is_in_place(&self, machine: &Sim, outcome: &Outcome) -> bool {
        let tree = tree_of(machine);
        outcome.names(self.path).into_iter().any(|path| self.is_edit(tree.get(path)))
    }

    fn is_edit(&self, entry: Option<&Entry>) -> bool {
        matches!(entry, Some(Entry::File { content, .. }) if **content == self.content)
    }

    /// The edit is somewhere, and every other name is as one allowed tree has it.
    fn check(&self, machine: &Sim, outcome: &Outcome, promised: bool) -> Result<(), String> {
        let allowed = &outcome.allowed;
        let mut found = tree_of(machine);
        // What was to be moved from the name is gone where another program has put its own in that place, or nothing: the
        // receipt or recovery says so, and the target is left as it was.
        let is_source_gone = matches!(self.kind, Kind::Replace | Kind::Remove)
            && (self.crash.is_some() || matches!(self.when, When::AfterCrash | When::InRecovery(_)));
        let has_moved_along = outcome.moved_to.iter().any(|path| self.is_edit(found.get(*path)));
        // What nobody synced, and a power cut took the content of, moves along as what the cut has left.
        let is_moved = |path: &&str| is_source_gone || !promised || self.is_edit(found.get(*path));
        let moved: Vec<&str> = outcome.moved_to.iter().copied().filter(is_moved).collect();
        moved.iter().for_each(|path| drop(found.remove(*path)));
        outcome.lost.iter().for_each(|path| drop(found.remove(path)));
        let here = found.remove(self.path);
        let is_parent = |path: &String| Path::new(self.path).starts_with(path);
        // Directories on the way to the edited name may have been made by the other program.
        found.retain(|path, entry| !(is_parent(path) && matches!(entry, Entry::Dir(_))));
        let others = |tree: &Tree| {
            let mut tree = tree.clone();
            tree.remove(self.path);
            moved.iter().for_each(|path| drop(tree.remove(*path)));
            outcome.lost.iter().for_each(|path| drop(tree.remove(path)));
            tree.retain(|path, entry| !(is_parent(path) && matches!(entry, Entry::Dir(_))));
            tree
        };
        let trees: Vec<Tree> = allowed.iter().map(others).collect();
        let matching: Vec<usize> = (0..trees.len()).filter(|index| trees[*index] == found).collect();
        if matching.is_empty() {
            return Err(format!("another name is wrong\n{}", differences(&found, &trees)));
        }
        let edited = self.is_edit(here.as_ref()) || has_moved_along;
        if edited || !promised {
            return Ok(());
        }
        let as_logged = matching.iter().any(|index| allowed[*index].get(self.path) == here.as_ref());
        if !(as_logged || self.kind == Kind::Remove && here.is_none()) {
            return Err(format!("{} is neither the edit nor what was committed: {here:?}", self.path));
        }
        let quarantine = quarantine_of(machine);
        let images = images_of(machine);
        let late = images.values().filter(|_| self.kind == Kind::OldDescriptor);
        let kept = quarantine
            .values()
            .chain(late)
            .any(|entry| matches!(entry, Entry::File { content, .. } if **content == self.content));
        if self.kind == Kind::Remove || kept {
            return Ok(());
        }
        Err(format!(
            "the edit of {} is lost; there is {here:?}, and in quarantine {quarantine:#?}",
            self.path
        ))
    }
}

impl Editor {
    fn new(scenario: &Scenario) -> Self {
        Self { scenario: scenario.clone(), descriptor: Mutex::new(None), done: Mutex::new(false) }
    }
}
