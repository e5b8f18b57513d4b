//! One edit by another program among transactions that move, replace, remove and make directories, at any operation of
//! a run or a recovery, with and without crashes behind it.
//!
//! The oracle: what the other program wrote and synced is in the tree or in quarantine afterwards; every name that the
//! edit does not excuse (`Excuse`) is exactly as one allowed tree has it; each content of that tree which the other
//! program did not destroy is somewhere; nothing is in quarantine, and nothing is reported, that the edit does not
//! explain; what a recovery moved to quarantine is in its report; and a second open changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::IoSlice;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use atomtree::vfs::faults::Call;
use atomtree::vfs::sim::{NodeBody, Sim};
use atomtree::vfs::{Dir, Vfs};
use atomtree::{ErrorKind, RecoveryReport, Store};

use crate::crash::{
    Crash, ROOT, Watch, check_stage_is_empty, commit_as, differences, images_of, machine, open,
    quarantine_of, tree_of,
};
use crate::foreign::When;
use crate::history::{
    DIRECTORIES, Entry, History, Operation, Random, Settings, Tree, generate_directory_operations,
};

/// What the other program does. All of it is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Puts a new file into a directory.
    CreateFile,
    /// Makes a directory, with a file in it, in a directory.
    CreateDir,
    /// Puts a file into a directory that it has had open since before the run, wherever that is by now.
    CreateThroughHandle,
    /// Puts a file at a free name that the transactions use.
    PutFile,
    /// Makes a directory, with a file in it, at a free name that the transactions use.
    PutDir,
    /// Renames a directory of its own, with a file in it, to a free name that the transactions use.
    MoveInto,
    /// Replaces a file by renaming another over it.
    Replace,
    /// Writes a file anew in place.
    Rewrite,
    /// Removes a file.
    RemoveFile,
    /// Renames a file to a name that nobody else uses.
    RenameFileAway,
    /// Renames a directory to a name that nobody else uses.
    RenameDirAway,
    /// The same, and makes another in its place, with a file in it.
    ReplaceDir,
    /// Removes a directory with everything in it.
    RemoveDir,
    /// Sets permission bits.
    Chmod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::CreateFile,
        Self::CreateDir,
        Self::CreateThroughHandle,
        Self::PutFile,
        Self::PutDir,
        Self::MoveInto,
        Self::Replace,
        Self::Rewrite,
        Self::RemoveFile,
        Self::RenameFileAway,
        Self::RenameDirAway,
        Self::ReplaceDir,
        Self::RemoveDir,
        Self::Chmod,
    ];

    fn writes(self) -> bool {
        !matches!(
            self,
            Self::RemoveFile | Self::RenameFileAway | Self::RenameDirAway | Self::RemoveDir | Self::Chmod
        )
    }

    /// Whether it does something to a directory that may hold anything.
    fn is_of_dir(self) -> bool {
        matches!(self, Self::RenameDirAway | Self::ReplaceDir | Self::RemoveDir)
    }
}

/// The other program's names: in a directory of somebody else, at the top, and where it takes things to.
const THEIRS: &str = "theirs";
const THEIR_DIR: &str = "their-dir";
const OUTSIDE: &str = "outside";
const AWAY: &str = "away";

/// One scenario, decided by its seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Decides everything else.
    pub seed: u64,
    settings: Settings,
    kind: Kind,
    when: When,
    content: Vec<u8>,
    /// The operation of the run at which it crashes, counted like [`When::InRun`]; `None` if it ends well.
    crash: Option<(u64, Crash)>,
    /// The operation of the recovery at which that crashes.
    crash_in_recovery: Option<(u64, Crash)>,
}

/// What was done, and to what.
#[derive(Clone, Debug)]
struct Done {
    /// The name, or the directory that something was put into.
    path: String,
    /// What stood at the name then and below it; empty for nothing.
    stood: Vec<String>,
    /// Contents that are nowhere any more.
    destroyed: Vec<Arc<Vec<u8>>>,
    /// What was taken away, if it was one file.
    taken: Option<Arc<Vec<u8>>>,
    /// Whether a commit was under way.
    in_commit: bool,
}

#[derive(Default)]
struct Shared {
    done: Option<Done>,
    /// Names that the transaction under way uses, and all others.
    names: (Vec<String>, Vec<String>),
    handle: Option<(String, Arc<dyn Dir>)>,
    in_commit: bool,
}

/// What is shared with the hook that edits.
struct Editor {
    scenario: Scenario,
    shared: Mutex<Shared>,
}

impl Editor {
    fn new(scenario: &Scenario) -> Self {
        Self { scenario: scenario.clone(), shared: Mutex::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics while it is held")
    }

    fn done(&self) -> Option<Done> {
        self.shared().done.clone()
    }

    /// Opens a directory now, for a file much later.
    fn open_handle(&self, sim: &Sim) {
        let mut random = Random::new(self.scenario.seed ^ 0x4a4d);
        let tree = tree_now(sim);
        let dirs: Vec<&String> = dirs_of(&tree).collect();
        if dirs.is_empty() {
            return;
        }
        let path = (*random.pick(&dirs)).clone();
        let dir = sim.another_process().open_root(Path::new(&format!("{ROOT}/{path}")));
        self.shared().handle = dir.ok().map(|dir| (path, dir));
    }

    /// Makes the edit, unless it has been made or nothing is there to make it on.
    fn edit(&self, sim: &Sim) {
        let mut shared = self.shared();
        if shared.done.is_some() || sim.is_halted() {
            return;
        }
        let mut random = Random::new(self.scenario.seed ^ 0xed17);
        let tree = tree_now(sim);
        let kind = self.scenario.kind;
        let wanted: Vec<String> = match kind {
            Kind::CreateThroughHandle => shared.handle.iter().map(|(path, _)| path.clone()).collect(),
            Kind::PutFile | Kind::PutDir | Kind::MoveInto => {
                let names = shared.names.0.iter().chain(&shared.names.1);
                let is_free = |name: &&String| {
                    !tree.contains_key(*name)
                        && parent_of(name).is_none_or(|dir| matches!(tree.get(dir), Some(Entry::Dir(_))))
                };
                names.filter(is_free).cloned().collect()
            }
            Kind::Replace | Kind::Rewrite | Kind::RemoveFile | Kind::RenameFileAway => {
                let files = tree.iter().filter(|(_, entry)| matches!(entry, Entry::File { .. }));
                files.map(|(path, _)| path.clone()).collect()
            }
            Kind::CreateFile | Kind::CreateDir | Kind::RenameDirAway | Kind::ReplaceDir | Kind::RemoveDir => {
                dirs_of(&tree).cloned().collect()
            }
            Kind::Chmod => tree
                .iter()
                .filter(|(_, entry)| !matches!(entry, Entry::Link(_)))
                .map(|(path, _)| path.clone())
                .collect(),
        };
        let all: Vec<String> = wanted.into_iter().filter(|path| !is_at_or_below(path, OUTSIDE)).collect();
        let used = &shared.names.0;
        let near: Vec<String> = all
            .iter()
            .filter(|path| used.iter().any(|name| is_at_or_below(path, name) || is_at_or_below(name, path)))
            .cloned()
            .collect();
        let all = if near.is_empty() || random.percent(20) { all } else { near };
        if all.is_empty() {
            return;
        }
        let path = random.pick(&all).clone();
        let stood: Vec<String> = tree.keys().filter(|name| is_at_or_below(name, &path)).cloned().collect();
        let contents = stood.iter().filter_map(|name| content_of(tree.get(name)));
        let destroyed = match kind {
            Kind::Replace | Kind::Rewrite | Kind::RemoveFile | Kind::RemoveDir => contents.collect(),
            _ => Vec::new(),
        };
        let taken = content_of(tree.get(&path)).filter(|_| kind == Kind::RenameFileAway);
        let at = |path: &str| format!("{ROOT}/{path}");
        let content = &self.scenario.content;
        let is_done = match kind {
            Kind::CreateFile | Kind::PutDir => {
                sim.write_file(at(&format!("{path}/{THEIRS}")), content);
                true
            }
            Kind::CreateDir => {
                sim.write_file(at(&format!("{path}/{THEIR_DIR}/{THEIRS}")), content);
                true
            }
            Kind::CreateThroughHandle => {
                let dir = shared.handle.as_ref().expect("its path was there").1.clone();
                let name = OsStr::new(THEIRS);
                let created = dir.create_file(name, 0o644).and_then(|file| {
                    file.write_at(&[IoSlice::new(content)], 0)?;
                    file.sync_all()?;
                    dir.sync()
                });
                created.is_ok()
            }
            Kind::PutFile | Kind::Rewrite => {
                sim.write_file(at(&path), content);
                true
            }
            Kind::MoveInto => sim.rename(at(OUTSIDE), at(&path)),
            Kind::Replace => {
                sim.replace_file(at(&path), content);
                true
            }
            Kind::RemoveFile | Kind::RemoveDir => {
                sim.remove(at(&path));
                true
            }
            Kind::RenameFileAway | Kind::RenameDirAway => sim.rename(at(&path), at(AWAY)),
            Kind::ReplaceDir => {
                let is_away = sim.rename(at(&path), at(AWAY));
                if is_away {
                    sim.write_file(at(&format!("{path}/{THEIRS}")), content);
                }
                is_away
            }
            Kind::Chmod => {
                let mode = if matches!(tree[&path], Entry::Dir(_)) { 0o751 } else { 0o604 };
                sim.set_mode(at(&path), mode);
                true
            }
        };
        if is_done {
            let in_commit = shared.in_commit;
            shared.done = Some(Done { path, stood, destroyed, taken, in_commit });
        }
    }
}

/// The tree as any program sees it, on a machine that may be down.
fn tree_now(sim: &Sim) -> Tree {
    let nodes = sim.tree(ROOT).into_iter();
    let named = nodes.map(|(path, node)| (path.to_str().expect("tests use plain names").to_owned(), node));
    named
        .filter(|(path, _)| !is_at_or_below(path, ".atomtree"))
        .map(|(path, node)| {
            let entry = match node.body {
                NodeBody::File(content) => Entry::file(content, node.mode),
                NodeBody::Dir => Entry::Dir(node.mode),
                NodeBody::Symlink(target) => Entry::Link(target.to_string_lossy().into_owned()),
                NodeBody::Other => Entry::Other,
            };
            (path, entry)
        })
        .collect()
}

fn dirs_of(tree: &Tree) -> impl Iterator<Item = &String> {
    tree.iter().filter(|(_, entry)| matches!(entry, Entry::Dir(_))).map(|(path, _)| path)
}

fn content_of(entry: Option<&Entry>) -> Option<Arc<Vec<u8>>> {
    match entry {
        Some(Entry::File { content, .. }) => Some(Arc::clone(content)),
        _ => None,
    }
}

fn parent_of(path: &str) -> Option<&str> {
    path.rfind('/').map(|at| &path[..at])
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A model tree with an identity for each name, which goes along when it is renamed.
#[derive(Clone)]
struct Snapshot {
    tree: Tree,
    ids: BTreeMap<String, u64>,
}

impl Snapshot {
    fn new(tree: Tree) -> Self {
        let ids = tree.keys().cloned().zip(1..).collect();
        Self { tree, ids }
    }

    fn perform(&mut self, operation: &Operation, fresh: &mut u64) {
        if let Operation::Rename(from, to) = operation
            && from != to
        {
            self.ids.retain(|path, _| !is_at_or_below(path, to));
            let moved: Vec<String> =
                self.ids.keys().filter(|path| is_at_or_below(path, from)).cloned().collect();
            for path in moved {
                let id = self.ids.remove(&path).expect("it was just listed");
                self.ids.insert(format!("{to}{}", &path[from.len()..]), id);
            }
        }
        operation.perform_on(&mut self.tree);
        self.ids.retain(|path, _| self.tree.contains_key(path));
        for path in self.tree.keys() {
            if !self.ids.contains_key(path) {
                *fresh += 1;
                self.ids.insert(path.clone(), *fresh);
            }
        }
    }
}

/// Every name that what stood at `path` has in one of the trees, and every name that `path` has through the directory
/// that holds it.
fn names_of(path: &str, snapshots: &[Snapshot]) -> BTreeSet<String> {
    let mut names = BTreeSet::from([path.to_owned()]);
    if let Some(parent) = parent_of(path) {
        let last = &path[parent.len()..];
        names.extend(names_of(parent, snapshots).into_iter().map(|parent| parent + last));
    }
    let ids: BTreeSet<u64> =
        snapshots.iter().flat_map(|one| names.iter().filter_map(|name| one.ids.get(name).copied())).collect();
    for one in snapshots {
        names.extend(one.ids.iter().filter(|(_, id)| ids.contains(id)).map(|(path, _)| path.clone()));
    }
    names
}

/// What an edit excuses: these names, and for edits of whole directories everything below them as well.
///
/// * Something new in a directory: that, at any name that the directory has had. Nothing else.
/// * Something at a name that was free: that it stays there, in the place of a file or of nothing, or that its
///   directory is the one that was to be made there. A directory that moves there is never kept out.
/// * An edit of a file: that at any of its names stands the edit, or what another allowed tree has there, or nothing if
///   it was removed or stands at another of them; or, at and below a name that is reported lost, what stood there before:
///   an inode that moves, and that the other program destroyed, cannot be put anywhere.
/// * A mode: that mode, at any of the names.
/// * A directory taken away, replaced or removed: everything at and below any name that it, or anything in it, has in
///   any of the trees. The contents of the allowed tree are somewhere all the same, but for those that were removed.
struct Excuse<'a> {
    scenario: &'a Scenario,
    done: &'a Done,
    names: BTreeSet<String>,
    allowed: &'a [Tree],
    snapshots: &'a [Snapshot],
    /// Names that a receipt or a report called lost.
    lost: BTreeSet<String>,
}

impl<'a> Excuse<'a> {
    fn new(scenario: &'a Scenario, done: &'a Done, outcome: &'a Outcome, reports: &[RecoveryReport]) -> Self {
        let mut names = names_of(&done.path, &outcome.snapshots);
        if scenario.kind.is_of_dir() {
            let mut below = done.stood.clone();
            for one in &outcome.snapshots {
                let is_below = |path: &&String| names.iter().any(|name| is_at_or_below(path, name));
                below.extend(one.tree.keys().filter(is_below).cloned());
            }
            names.extend(below.iter().flat_map(|path| names_of(path, &outcome.snapshots)));
        }
        let reported = reports.iter().flat_map(|report| &report.lost).map(ToString::to_string);
        let lost = outcome.lost.iter().cloned().chain(reported).collect();
        Self { scenario, done, names, allowed: &outcome.allowed, snapshots: &outcome.snapshots, lost }
    }

    fn is_named(&self, path: &str) -> bool {
        self.names.contains(path)
            || self.scenario.kind.is_of_dir() && self.names.iter().any(|name| is_at_or_below(path, name))
    }

    fn is_edit(&self, entry: Option<&Entry>) -> bool {
        matches!(entry, Some(Entry::File { content, .. }) if **content == self.scenario.content)
    }

    /// Whether `found` may stand at the path where `wanted` should.
    fn covers(&self, tree: &Tree, path: &str, found: Option<&Entry>, wanted: Option<&Entry>) -> bool {
        let is_name = self.names.contains(path);
        let is_below_name = |last: &str| {
            path.strip_suffix(last)
                .and_then(|path| path.strip_suffix('/'))
                .is_some_and(|path| self.names.contains(path))
        };
        let is_new_edit = wanted.is_none() && self.is_edit(found);
        let holds_edit = || self.is_edit(tree.get(&format!("{path}/{THEIRS}")));
        // A name that is reported lost is left as it was found.
        let is_left = || {
            self.lost.iter().any(|lost| is_at_or_below(path, lost))
                && (found.is_none() || self.snapshots.iter().any(|one| one.tree.get(path) == found))
        };
        let is_of_other = || self.allowed.iter().any(|tree| tree.get(path) == found);
        match self.scenario.kind {
            Kind::CreateFile | Kind::CreateThroughHandle => is_new_edit && is_below_name(THEIRS),
            Kind::CreateDir => {
                is_new_edit && is_below_name(&format!("{THEIR_DIR}/{THEIRS}"))
                    || wanted.is_none() && matches!(found, Some(Entry::Dir(_))) && is_below_name(THEIR_DIR)
            }
            Kind::PutFile => is_name && self.is_edit(found) && !matches!(wanted, Some(Entry::Dir(_))),
            Kind::PutDir | Kind::MoveInto => {
                is_new_edit && is_below_name(THEIRS)
                    || is_name && matches!(found, Some(Entry::Dir(_))) && holds_edit()
                    || self.scenario.kind == Kind::MoveInto
                        && is_at_or_below(path, OUTSIDE)
                        && found.is_none()
            }
            Kind::Replace | Kind::Rewrite => {
                let stands_elsewhere = || self.names.iter().any(|name| self.is_edit(tree.get(name)));
                is_left()
                    || is_name
                        && (self.is_edit(found) || is_of_other() || found.is_none() && stands_elsewhere())
            }
            Kind::RemoveFile => is_left() || is_name && (found.is_none() || is_of_other()),
            Kind::RenameFileAway => {
                is_left()
                    || is_name && (found.is_none() || is_of_other())
                    || path == AWAY && content_of(found).is_some() && content_of(found) == self.done.taken
            }
            Kind::RenameDirAway | Kind::ReplaceDir => self.is_named(path) || is_at_or_below(path, AWAY),
            Kind::RemoveDir => self.is_named(path),
            Kind::Chmod => {
                is_name
                    && match (found, wanted) {
                        (Some(Entry::Dir(_)), Some(Entry::Dir(_))) => true,
                        (Some(Entry::File { .. }), Some(Entry::File { .. })) => {
                            content_of(found) == content_of(wanted)
                        }
                        _ => false,
                    }
            }
        }
    }
}

/// What came of scenarios.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Commits that were conflicts.
    pub conflicts: u64,
    /// Commits that were durable and could not be put in place.
    pub stuck: u64,
    /// Edits found in the tree, by kind.
    pub in_tree: BTreeMap<Kind, u64>,
    /// Edits found in quarantine, by kind.
    pub quarantined: BTreeMap<Kind, u64>,
    /// Receipts and reports that named something lost.
    pub lost: u64,
    /// Names that reports call superseded.
    pub superseded: u64,
    /// Scenarios in which no edit was made.
    pub void: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.conflicts += other.conflicts;
        self.stuck += other.stuck;
        self.lost += other.lost;
        self.superseded += other.superseded;
        self.void += other.void;
        let kinds = |to: &mut BTreeMap<Kind, u64>, from: &BTreeMap<Kind, u64>| {
            from.iter().for_each(|(kind, count)| *to.entry(*kind).or_default() += count);
        };
        kinds(&mut self.in_tree, &other.in_tree);
        kinds(&mut self.quarantined, &other.quarantined);
    }
}

#[derive(Default)]
struct Outcome {
    /// The trees that may be there, but for the edit.
    allowed: Vec<Tree>,
    /// The initial tree, and that after each transaction that may have happened.
    snapshots: Vec<Snapshot>,
    /// The operations of the last transaction, if it was acknowledged.
    acknowledged: Option<Vec<Operation>>,
    conflicts: u64,
    stuck: u64,
    /// Names in quarantine that receipts gave.
    kept: BTreeSet<String>,
    /// Names that receipts called lost.
    lost: Vec<String>,
    operations: u64,
    store: Option<Store>,
    log: Vec<String>,
}

impl Scenario {
    fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x00d1_f0e1);
        let mut settings = History::generate(DIRECTORIES + seed).settings;
        let kind = *random.pick(&Kind::ALL);
        let when = match random.below(10) {
            0..6 => When::InRun(0),
            6 => When::AfterCrash,
            _ => When::InRecovery(0),
        };
        // Without an exchange, edits of a file between the calls that stand for one are lost: the documents say so.
        let is_of_file = matches!(kind, Kind::Replace | Kind::Rewrite | Kind::RenameFileAway);
        settings.can_exchange |= is_of_file && matches!(when, When::InRun(_));
        let length = 20 + random.below(2000) as usize;
        let mut content = format!("foreign {seed} ").into_bytes();
        content.extend(random.bytes(length).iter().map(|byte| byte | 1));
        Self { seed, settings, kind, when, content, crash: None, crash_in_recovery: None }
    }

    fn history(&self) -> History {
        let mut history = History { settings: self.settings, ..History::generate(DIRECTORIES + self.seed) };
        if self.kind == Kind::MoveInto {
            history.initial.insert(OUTSIDE.to_owned(), Entry::Dir(0o755));
            history.initial.insert(format!("{OUTSIDE}/{THEIRS}"), Entry::file(self.content.clone(), 0o644));
        }
        history
    }

    /// Whether what the other program wrote has to be somewhere. A power cut can take a directory that a crashed commit
    /// made, and whose name nobody has synced, with everything that was put into it through a handle.
    fn is_promised(&self) -> bool {
        let is_in_doubt = self.kind == Kind::CreateThroughHandle
            && !matches!(self.when, When::InRun(_))
            && matches!(self.crash_in_recovery, Some((_, Crash::Cut(_))));
        self.kind.writes() && !is_in_doubt
    }

    /// Runs it: transactions on a fresh machine, the edit among them, up to the crash.
    fn run(&self, sim: &Sim, editor: &Arc<Editor>) -> Outcome {
        let mut random = Random::new(self.seed ^ 0x1234);
        let first = Arc::new(Mutex::new(u64::MAX));
        let meddle = {
            let (editor, first) = (Arc::clone(editor), Arc::clone(&first));
            move |sim: &Sim, operation: u64, _: &Call| {
                let first = *first.lock().expect("nothing panics while it is held");
                if let When::InRun(at) = editor.scenario.when
                    && operation >= first.saturating_add(at)
                {
                    editor.edit(sim);
                }
                None
            }
        };
        let initial = Snapshot::new(self.history().initial);
        let mut fresh = 1 << 20;
        let mut outcome =
            Outcome { allowed: vec![initial.tree.clone()], snapshots: vec![initial], ..Outcome::default() };
        open(Arc::new(sim.clone()), &self.settings).expect("a new store opens").close().expect("it closes");
        editor.open_handle(sim);
        let watch = Watch::new(sim, Some(Box::new(meddle)));
        let store = open(watch.vfs(), &self.settings).expect("a store opens");
        let start = sim.operations() + 1;
        *first.lock().expect("nothing panics while it is held") = start;
        if let Some((at, _)) = self.crash {
            sim.halt_at(start + at);
        }
        for _ in 0..=random.below(3) {
            let tree = &outcome.snapshots[outcome.snapshots.len() - 1];
            let operations = generate_directory_operations(&mut random, &mut tree.tree.clone());
            let mut next = tree.clone();
            operations.iter().for_each(|operation| next.perform(operation, &mut fresh));
            outcome.allowed = vec![tree.tree.clone(), next.tree.clone()];
            {
                let mut shared = editor.shared();
                let used = operations.iter().flat_map(Operation::paths).map(str::to_owned).collect();
                let others = tree.tree.keys().chain(next.tree.keys()).cloned().collect();
                (shared.names, shared.in_commit) = ((used, others), true);
            }
            outcome.snapshots.push(next);
            outcome.log.push(format!("{operations:?}"));
            let committed = commit_as(&store, &operations, self.settings.settled);
            editor.shared().in_commit = false;
            match committed {
                Ok(receipt) => {
                    outcome.allowed.remove(0);
                    outcome.kept.extend(receipt.displaced().iter().map(|displaced| displaced.kept.clone()));
                    outcome.lost.extend(receipt.lost().iter().map(ToString::to_string));
                    outcome.log.push(format!("{receipt:?}"));
                    outcome.acknowledged = Some(operations);
                }
                Err(error) if sim.is_halted() => {
                    outcome.log.push(format!("halted: {error}"));
                    outcome.acknowledged = None;
                    break;
                }
                Err(error) => {
                    outcome.log.push(format!("{error}"));
                    assert!(editor.done().is_some(), "{operations:?}: an error with nobody: {error}");
                    match error.kind() {
                        ErrorKind::Conflict => {
                            outcome.conflicts += 1;
                            outcome.allowed.truncate(1);
                            outcome.snapshots.pop();
                        }
                        ErrorKind::CommittedNotApplied => {
                            outcome.stuck += 1;
                            outcome.allowed.remove(0);
                        }
                        kind => panic!("seed {}: {kind:?}: {error}\n{:#?}", self.seed, outcome.log),
                    }
                    outcome.acknowledged = None;
                    break;
                }
            }
            if random.percent(40) && store.checkpoint().is_err() {
                assert!(sim.is_halted(), "seed {}: a checkpoint succeeds", self.seed);
                break;
            }
            if editor.done().is_some() {
                break;
            }
            if random.percent(30) {
                sim.advance(20_000_000);
            }
        }
        outcome.operations = sim.operations() + 1 - start;
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
        let length = dry.run(&sim, &Arc::new(Editor::new(&dry))).operations.max(1);
        let recovery_length = 90;
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
        let mut trace = Vec::new();
        scenario.judge_self(&mut random, &mut trace).map_err(|reason| {
            let initial = scenario.history().initial;
            let scenario = Self { content: scenario.content[..20].to_vec(), ..scenario.clone() };
            format!(
                "foreign edit of directories {seed}: {reason}\n{scenario:#?}\ninitial {initial:#?}\n{}",
                trace.join("\n")
            )
        })
    }

    fn judge_self(&self, random: &mut Random, trace: &mut Vec<String>) -> Result<Tally, String> {
        let sim = machine(&self.history());
        sim.set_trace(true);
        let editor = Arc::new(Editor::new(self));
        let mut outcome = self.run(&sim, &editor);
        trace.extend(sim.trace());
        trace.append(&mut outcome.log);
        trace.push(format!("edited: {:#?}", editor.done()));
        let mut tally = Tally { conflicts: outcome.conflicts, stuck: outcome.stuck, ..Tally::default() };
        let mut reports = Vec::new();
        // What became stuck is finished by whoever opens the store next.
        let crash = self.crash.or((outcome.stuck > 0).then_some((0, Crash::Kill)));
        let last = match crash {
            Some((_, crash)) => {
                drop(outcome.store.take());
                let machine = crash.of(&sim);
                trace.push(format!("{crash:?} leaves {:#?}", tree_of(&machine)));
                let (machine, store) = self.recover(machine, &editor, &mut reports, trace)?;
                outcome.store = Some(store);
                machine
            }
            None => sim.clone(),
        };
        if self.kind == Kind::CreateThroughHandle && crash.is_none() && editor.done().is_some() {
            // What has come into a directory that was taken out shows when that is compared for the last time.
            let store = outcome.store.as_ref().expect("nothing crashed");
            store.checkpoint().map_err(|error| format!("no checkpoint: {error}"))?;
        }
        let Some(done) = editor.done() else {
            return Ok(Tally { void: 1, ..Tally::default() });
        };
        trace.push(format!("edited: {done:#?}, allowed {:#?}", outcome.allowed));
        let store = outcome.store.take().expect("it was opened");
        let excuse = Excuse::new(self, &done, &outcome, &reports);
        trace.push(format!("excused: {:?}", excuse.names));
        reports.iter().try_for_each(|report| excuse.check_report(report))?;
        tally.lost =
            outcome.lost.len() as u64 + reports.iter().map(|report| report.lost.len() as u64).sum::<u64>();
        tally.superseded = reports.iter().map(|report| report.superseded.len() as u64).sum();
        excuse.check(&last, &outcome)?;
        if crash.is_none() {
            excuse.check_receipt(&last, &outcome)?;
        }
        // A clean close, or a crash and another recovery, change nothing.
        let before = tree_of(&last);
        let way = random.below(3);
        if way == 0 {
            store.close().map_err(|error| format!("it did not close: {error}"))?;
            check_stage_is_empty(&last)?;
        }
        let is_cut = way == 0 || way == 1 && crash.is_some();
        let after = if is_cut { last.power_cut(random.next()) } else { last.kill() };
        let again = open(Arc::new(after.clone()), &self.settings)
            .map_err(|error| format!("the second open failed: {error}"))?;
        if crash.is_some() && (again.recovery().redone != 0 || !again.recovery().superseded.is_empty()) {
            return Err(format!("the second open was not idle: {:#?}", again.recovery()));
        }
        let found = tree_of(&after);
        if (crash.is_some() || way == 0) && found != before {
            return Err(format!("the second open changed the tree\n{}", differences(&found, &[before])));
        }
        excuse.check(&after, &outcome).map_err(|reason| format!("after all that: {reason}"))?;
        again.close().map_err(|error| format!("it did not close at last: {error}"))?;
        check_stage_is_empty(&after)?;
        if self.kind.writes() {
            let is_in_tree = found.values().any(|entry| excuse.is_edit(Some(entry)));
            let tallied = if is_in_tree { &mut tally.in_tree } else { &mut tally.quarantined };
            tallied.insert(self.kind, 1);
        }
        Ok(tally)
    }

    /// Opens the store on a crashed machine, with whatever happens to that recovery.
    fn recover(
        &self,
        mut machine: Sim,
        editor: &Arc<Editor>,
        reports: &mut Vec<RecoveryReport>,
        trace: &mut Vec<String>,
    ) -> Result<(Sim, Store), String> {
        if !matches!(self.when, When::InRun(_)) {
            editor.open_handle(&machine);
        }
        if self.when == When::AfterCrash {
            editor.edit(&machine);
        }
        let edits = {
            let editor = Arc::clone(editor);
            move |sim: &Sim, operation: u64, _: &Call| {
                if let When::InRecovery(at) = editor.scenario.when
                    && operation >= at
                {
                    editor.edit(sim);
                }
                None
            }
        };
        machine.set_trace(true);
        if let Some((at, crash)) = self.crash_in_recovery {
            machine.halt_at(at);
            let before = quarantine_of(&machine);
            let result = open(Watch::new(&machine, Some(Box::new(edits.clone()))).vfs(), &self.settings);
            trace.push("recovery".into());
            trace.extend(machine.trace());
            if let Ok(store) = &result {
                trace.push(format!("{:#?}", store.recovery()));
                reports.push(store.recovery().clone());
                if !machine.is_halted() {
                    check_told(&before, &machine, store.recovery())?;
                }
            }
            if let Err(error) = &result
                && !machine.is_halted()
            {
                return Err(format!("recovery failed before it was stopped: {error}"));
            }
            drop(result);
            machine = crash.of(&machine);
            trace.push(format!("{crash:?} leaves {:#?}", tree_of(&machine)));
            machine.set_trace(true);
        }
        let before = quarantine_of(&machine);
        let store = open(Watch::new(&machine, Some(Box::new(edits))).vfs(), &self.settings);
        trace.push("recovery".into());
        trace.extend(machine.trace());
        let store = store.map_err(|error| format!("recovery failed: {error}"))?;
        trace.push(format!("{:#?}", store.recovery()));
        reports.push(store.recovery().clone());
        check_told(&before, &machine, store.recovery())?;
        Ok((machine, store))
    }
}

/// A recovery that ended names everything that it put into quarantine, and nothing else.
fn check_told(before: &Tree, machine: &Sim, report: &RecoveryReport) -> Result<(), String> {
    let after = quarantine_of(machine);
    let is_new = |name: &&String| !name.contains('/') && !before.contains_key(*name);
    let kept: BTreeSet<String> =
        after.keys().filter(is_new).map(|name| format!("quarantine/{name}")).collect();
    let displaced = report.quarantined.iter().map(|displaced| displaced.kept.clone());
    let told: BTreeSet<String> =
        displaced.chain(report.superseded.iter().filter_map(|one| one.kept.clone())).collect();
    let is_there = |name: &&String| after.contains_key(name.trim_start_matches("quarantine/"));
    if !kept.is_subset(&told) || told.iter().any(|name| !is_there(&name)) {
        return Err(format!("recovery told of {told:?}, and put {kept:?} into quarantine"));
    }
    Ok(())
}

impl Excuse<'_> {
    /// The edit is somewhere, every name that it does not excuse is as one allowed tree has it, and so is every content.
    fn check(&self, machine: &Sim, outcome: &Outcome) -> Result<(), String> {
        let (found, quarantine) = (tree_of(machine), quarantine_of(machine));
        self.check_quarantine(&quarantine, outcome)?;
        let everything = || found.values().chain(quarantine.values());
        // What comes into a directory after its last comparison stays with it.
        let images = images_of(machine);
        let is_late = self.scenario.kind == Kind::CreateThroughHandle
            && images.values().any(|entry| self.is_edit(Some(entry)));
        if self.scenario.is_promised() && !is_late && !everything().any(|entry| self.is_edit(Some(entry))) {
            return Err(format!("the edit is lost; there is {found:#?}, and in quarantine {quarantine:#?}"));
        }
        if let Some(taken) = self.done.taken.as_ref().filter(|taken| !taken.is_empty())
            && content_of(found.get(AWAY)).as_ref() != Some(taken)
        {
            return Err(format!("what was taken away is not there: {:?}", found.get(AWAY)));
        }
        let contents: BTreeSet<Arc<Vec<u8>>> =
            everything().filter_map(|entry| content_of(Some(entry))).collect();
        let mut reasons = String::new();
        for tree in &outcome.allowed {
            let names: BTreeSet<&String> = found.keys().chain(tree.keys()).collect();
            let wrong: Vec<&String> = names
                .into_iter()
                .filter(|path| {
                    let (found_here, wanted) = (found.get(*path), tree.get(*path));
                    found_here != wanted && !self.covers(&found, path, found_here, wanted)
                })
                .collect();
            let is_lost = |entry: &&Entry| {
                let Some(content) = content_of(Some(entry)).filter(|content| !content.is_empty()) else {
                    return false;
                };
                !contents.contains(&content) && !self.done.destroyed.contains(&content)
            };
            let lost: Vec<(&String, &Entry)> = tree.iter().filter(|(_, entry)| is_lost(entry)).collect();
            let misplaced = self.scenario.is_promised() && self.is_misplaced(&found, tree, outcome);
            if wrong.is_empty() && lost.is_empty() && !misplaced {
                return Ok(());
            }
            reasons += &format!("wrong {wrong:?}, lost {lost:?}, edit not with its directory: {misplaced}\n");
        }
        Err(format!("{reasons}{}quarantine {quarantine:#?}", differences(&found, &outcome.allowed)))
    }

    /// Whether the edit, put into a directory that every transaction kept, is not in it.
    fn is_misplaced(&self, found: &Tree, tree: &Tree, outcome: &Outcome) -> bool {
        let last = match self.scenario.kind {
            Kind::CreateFile | Kind::CreateThroughHandle => THEIRS.to_owned(),
            Kind::CreateDir => format!("{THEIR_DIR}/{THEIRS}"),
            _ => return false,
        };
        let ids: BTreeSet<u64> = outcome
            .snapshots
            .iter()
            .flat_map(|one| self.names.iter().map(|name| one.ids.get(name).copied()))
            .flatten()
            .collect();
        // With one identity it is plain which directory was meant.
        let Some(id) = ids.first().filter(|_| ids.len() == 1) else { return false };
        let Some(one) = outcome.snapshots.iter().rev().find(|one| one.tree == *tree) else { return false };
        let path = one.ids.iter().find(|(_, other)| *other == id).map(|(path, _)| path);
        path.is_some_and(|path| !self.is_edit(found.get(&format!("{path}/{last}"))))
    }

    /// In quarantine is the edit, or what some transaction wanted at, or found at, an excused name; nothing else.
    fn check_quarantine(&self, quarantine: &Tree, outcome: &Outcome) -> Result<(), String> {
        let trees = outcome.snapshots.iter().map(|one| &one.tree);
        let excused: BTreeSet<Arc<Vec<u8>>> = trees
            .flat_map(|tree| tree.iter().filter(|(path, _)| self.is_named(path)))
            .filter_map(|(_, entry)| content_of(Some(entry)))
            .collect();
        for (name, entry) in quarantine {
            let is_explained = match entry {
                Entry::File { content, .. } => self.is_edit(Some(entry)) || excused.contains(content),
                Entry::Dir(_) => {
                    self.scenario.kind.is_of_dir()
                        || quarantine
                            .iter()
                            .any(|(path, entry)| is_at_or_below(path, name) && self.is_edit(Some(entry)))
                }
                Entry::Link(_) => outcome
                    .snapshots
                    .iter()
                    .any(|one| one.tree.iter().any(|(path, found)| found == entry && self.is_named(path))),
                Entry::Other => false,
            };
            if !is_explained {
                return Err(format!("{name} has no reason to be in quarantine: {quarantine:#?}"));
            }
        }
        Ok(())
    }

    /// A report names nothing that the edit does not excuse.
    fn check_report(&self, report: &RecoveryReport) -> Result<(), String> {
        let loses = !matches!(
            self.scenario.kind,
            Kind::CreateFile
                | Kind::CreateDir
                | Kind::CreateThroughHandle
                | Kind::PutFile
                | Kind::PutDir
                | Kind::MoveInto
                | Kind::Chmod
        );
        let gives_way = !matches!(
            self.scenario.kind,
            Kind::CreateFile | Kind::CreateDir | Kind::CreateThroughHandle | Kind::Chmod
        );
        let lost = report.lost.iter().filter(|path| !(loses && self.is_named(&path.to_string())));
        let superseded = report.superseded.iter().map(|one| &one.path);
        let superseded = superseded.filter(|path| !(gives_way && self.is_named(&path.to_string())));
        let kept = report.metadata_kept.iter().filter(|path| !self.is_named(&path.to_string()));
        let wrong: Vec<String> = lost.chain(superseded).chain(kept).map(ToString::to_string).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("a report names {wrong:?}: {report:#?}")) }
    }

    /// Without a crash the receipt tells where the edit is kept, and what could not be moved.
    fn check_receipt(&self, machine: &Sim, outcome: &Outcome) -> Result<(), String> {
        let quarantine = quarantine_of(machine);
        // What comes through a handle into a directory that was taken out already is found at the checkpoint.
        if self.scenario.kind != Kind::CreateThroughHandle {
            let is_told = |name: &&String| {
                let top = name.split('/').next().unwrap_or(name);
                outcome.kept.contains(&format!("quarantine/{top}"))
            };
            let untold: Vec<&String> = quarantine.keys().filter(|name| !is_told(name)).collect();
            if !untold.is_empty() {
                return Err(format!("no receipt told of {untold:?}"));
            }
        }
        let Some(operations) = &outcome.acknowledged else { return Ok(()) };
        let is_away = matches!(self.scenario.kind, Kind::RenameDirAway | Kind::RenameFileAway)
            || self.scenario.kind == Kind::RemoveDir;
        let [.., before, after] = &outcome.snapshots[..] else { return Ok(()) };
        let path = &self.done.path;
        let is_moved = operations.iter().any(|one| matches!(one, Operation::Rename(from, _) if from == path));
        let was = before.ids.get(path);
        let to = after.ids.iter().find(|(_, id)| Some(*id) == was).map(|(path, _)| path);
        let is_of_dir = matches!(before.tree.get(path), Some(Entry::Dir(_)));
        // It still stood where it was, and never came to where it should be.
        if is_away
            && self.done.in_commit
            && is_moved
            && is_of_dir
            && was.is_some()
            && !after.ids.contains_key(path)
            && to.is_some_and(|to| to != path && !outcome.lost.contains(to))
            && parent_of(path).is_none_or(|parent| before.ids.get(parent) == after.ids.get(parent))
        {
            return Err(format!("nobody told that {to:?} is lost, only {:?}", outcome.lost));
        }
        Ok(())
    }
}
