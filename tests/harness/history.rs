//! Histories for crash tests: a tree as it should be, transactions that change it, and a generator of both.
//!
//! The model is deliberately dumb: names and contents in a map. It knows nothing of logs, slots or syncs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use atomtree::{Error, Transaction};

/// Splitmix64: the same numbers everywhere for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that `seed` decides.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        random.next();
        random
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something of this likelihood happens.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// Bytes that repeat nothing, so that no content is another's tear by chance; now and then with a sector of zeros,
    /// which is what a tear looks like.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(count).collect();
        if count > 1024 && self.percent(25) {
            bytes[512..1024].fill(0);
        }
        bytes
    }
}

/// What stands at a name of the model.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File {
        /// Its content.
        content: Arc<Vec<u8>>,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory with these permission bits.
    Dir(u32),
    /// A symlink that leads there.
    Link(String),
    /// Anything else.
    Other,
}

impl Entry {
    /// A regular file.
    pub fn file(content: Vec<u8>, mode: u32) -> Self {
        Self::File { content: Arc::new(content), mode }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { content, mode } => {
                let shown = &content[..content.len().min(12)];
                let zeros = content.iter().filter(|byte| **byte == 0).count();
                write!(
                    formatter,
                    "{mode:04o} {} bytes {} ({zeros} zeros)",
                    content.len(),
                    shown.escape_ascii()
                )
            }
            Self::Dir(mode) => write!(formatter, "{mode:04o} directory"),
            Self::Link(target) => write!(formatter, "symlink to {target}"),
            Self::Other => formatter.write_str("neither file nor directory"),
        }
    }
}

/// A tree of files, by path from the root.
pub type Tree = BTreeMap<String, Entry>;

/// The mode that a new file gets under the simulated umask.
pub const NEW_FILE_MODE: u32 = 0o644;
/// The mode that a new directory gets.
pub const NEW_DIR_MODE: u32 = 0o755;

/// The names that histories use: few, so that transactions meet, and at several depths.
pub const PATHS: [&str; 7] = ["a", "b", "dir/x", "dir/y", "new/deep/z", "new/w", "fill"];

/// The directories that histories make, move, remove and put other things in the place of.
pub const DIRS: [&str; 6] = ["dir", "new", "new/deep", "dir/in", "other", "b"];

/// Histories with seeds from here on are of directories, for the most part.
pub const DIRECTORIES: u64 = 1 << 40;

/// Histories with seeds from here on, of directories or not as the rest of the seed says, patch files in place as well.
pub const IN_PLACE: u64 = 1 << 41;

/// The directories of histories of directories: enough depth for moves within moves.
pub const DEEP_DIRS: [&str; 10] =
    ["d", "e", "n", "hold", "d/in", "d/in/deep", "e/in", "n/in", "e/in/deep", "b"];

/// Their files; one of the names is a directory's too, in another life.
pub const DEEP_FILES: [&str; 10] =
    ["a", "b", "d/x", "d/in/y", "d/in/deep/z", "e/w", "e/in/v", "n/u", "n/in/u", "d/in/deep/s"];

/// One operation of a transaction.
#[derive(Clone)]
pub enum Operation {
    /// `Transaction::write`.
    Write(&'static str, Vec<u8>),
    /// `Transaction::write_with_mode`.
    WriteWithMode(&'static str, Vec<u8>, u32),
    /// `Transaction::append`.
    Append(&'static str, Vec<u8>),
    /// `Transaction::patch`.
    Patch(&'static str, u64, Vec<u8>),
    /// `Transaction::patch_in_place`.
    PatchInPlace(&'static str, u64, Vec<u8>),
    /// `Transaction::remove`.
    Remove(&'static str),
    /// `Transaction::rename`.
    Rename(&'static str, &'static str),
    /// `Transaction::create_dir`.
    CreateDir(&'static str),
    /// `Transaction::remove_dir`.
    RemoveDir(&'static str),
    /// `Transaction::remove_dir_all`.
    RemoveDirAll(&'static str),
    /// `Transaction::symlink`.
    Symlink(&'static str, &'static str),
    /// `Transaction::set_mode`.
    SetMode(&'static str, u32),
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(path, bytes) => write!(formatter, "write {path} {}", bytes.len()),
            Self::WriteWithMode(path, bytes, mode) => {
                write!(formatter, "write {path} {} {mode:04o}", bytes.len())
            }
            Self::Append(path, bytes) => write!(formatter, "append {path} {}", bytes.len()),
            Self::Patch(path, offset, bytes) => write!(formatter, "patch {path} {} at {offset}", bytes.len()),
            Self::PatchInPlace(path, offset, bytes) => {
                write!(formatter, "patch {path} in place {} at {offset}", bytes.len())
            }
            Self::Remove(path) => write!(formatter, "remove {path}"),
            Self::Rename(from, to) => write!(formatter, "rename {from} {to}"),
            Self::CreateDir(path) => write!(formatter, "mkdir {path}"),
            Self::RemoveDir(path) => write!(formatter, "rmdir {path}"),
            Self::RemoveDirAll(path) => write!(formatter, "rmdir {path} and all in it"),
            Self::Symlink(path, target) => write!(formatter, "symlink {path} to {target}"),
            Self::SetMode(path, mode) => write!(formatter, "chmod {path} {mode:04o}"),
        }
    }
}

impl Operation {
    /// The names that it touches.
    pub fn paths(&self) -> Vec<&'static str> {
        match self {
            Self::Rename(from, to) => vec![from, to],
            Self::Write(path, _)
            | Self::WriteWithMode(path, ..)
            | Self::Append(path, _)
            | Self::Patch(path, ..)
            | Self::PatchInPlace(path, ..)
            | Self::CreateDir(path)
            | Self::RemoveDir(path)
            | Self::RemoveDirAll(path)
            | Self::Symlink(path, _)
            | Self::SetMode(path, _)
            | Self::Remove(path) => vec![path],
        }
    }

    /// Asks the engine for it.
    pub fn perform(&self, transaction: &mut Transaction) -> Result<(), Error> {
        match self {
            Self::Write(path, bytes) => transaction.write(path, bytes.clone()),
            Self::WriteWithMode(path, bytes, mode) => transaction.write_with_mode(path, bytes.clone(), *mode),
            Self::Append(path, bytes) => transaction.append(path, bytes),
            Self::Patch(path, offset, bytes) => transaction.patch(path, *offset, bytes),
            Self::PatchInPlace(path, offset, bytes) => transaction.patch_in_place(path, *offset, bytes),
            Self::Remove(path) => transaction.remove(path),
            Self::Rename(from, to) => transaction.rename(from, to),
            Self::CreateDir(path) => transaction.create_dir(path),
            Self::RemoveDir(path) => transaction.remove_dir(path),
            Self::RemoveDirAll(path) => transaction.remove_dir_all(path),
            Self::Symlink(path, target) => transaction.symlink(path, target),
            Self::SetMode(path, mode) => transaction.set_mode(path, *mode),
        }
    }

    /// Does it to the model.
    pub fn perform_on(&self, tree: &mut Tree) {
        match self {
            Self::Write(path, bytes) => {
                let mode = match tree.get(*path) {
                    Some(Entry::File { mode, .. }) => *mode,
                    _ => NEW_FILE_MODE,
                };
                put(tree, path, Entry::file(bytes.clone(), mode));
            }
            Self::WriteWithMode(path, bytes, mode) => put(tree, path, Entry::file(bytes.clone(), *mode)),
            Self::Append(path, bytes) => {
                let (mut content, mode) = content_of(tree, path);
                content.extend(bytes);
                put(tree, path, Entry::file(content, mode));
            }
            Self::Patch(path, offset, bytes) | Self::PatchInPlace(path, offset, bytes) => {
                let (mut content, mode) = content_of(tree, path);
                let end = *offset as usize + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset as usize..end].copy_from_slice(bytes);
                put(tree, path, Entry::file(content, mode));
            }
            Self::Remove(path) | Self::RemoveDir(path) => drop(tree.remove(*path)),
            Self::Rename(from, to) if from == to => {}
            Self::Rename(from, to) => {
                let entry = tree.remove(*from).expect("the generator renames what is there");
                let below: Vec<String> = names_below(tree, from);
                put(tree, to, entry);
                for name in below {
                    let entry = tree.remove(&name).expect("it was just listed");
                    tree.insert(format!("{to}{}", &name[from.len()..]), entry);
                }
            }
            Self::CreateDir(path) => put(tree, path, Entry::Dir(NEW_DIR_MODE)),
            Self::RemoveDirAll(path) => {
                names_below(tree, path).iter().for_each(|name| drop(tree.remove(name)));
                tree.remove(*path);
            }
            Self::Symlink(path, target) => put(tree, path, Entry::Link((*target).to_owned())),
            Self::SetMode(path, new) => {
                if let Some(Entry::File { mode, .. } | Entry::Dir(mode)) = tree.get_mut(*path) {
                    *mode = *new;
                }
            }
        }
    }

    /// Whether it can be done to this tree.
    pub fn is_possible(&self, tree: &Tree) -> bool {
        let is_reachable = |path: &str| {
            path.match_indices('/').all(|(at, _)| matches!(tree.get(&path[..at]), None | Some(Entry::Dir(_))))
        };
        let is_dir = |path: &str| matches!(tree.get(path), Some(Entry::Dir(_)));
        let is_link = |path: &str| matches!(tree.get(path), Some(Entry::Link(_)));
        let is_empty = |path: &str| names_below(tree, path).is_empty();
        let has_parent = |path: &str| path.rfind('/').is_none_or(|at| is_dir(&path[..at]));
        self.paths().into_iter().all(is_reachable)
            && match self {
                Self::Write(path, _) | Self::WriteWithMode(path, ..) | Self::Append(path, _) => {
                    !is_dir(path) && !is_link(path)
                }
                Self::Patch(path, offset, _) => match tree.get(*path) {
                    Some(Entry::File { content, .. }) => *offset <= content.len() as u64,
                    _ => false,
                },
                Self::PatchInPlace(path, offset, bytes) => match tree.get(*path) {
                    Some(Entry::File { content, .. }) => offset + bytes.len() as u64 <= content.len() as u64,
                    _ => false,
                },
                Self::Remove(path) => tree.contains_key(*path) && !is_dir(path),
                Self::Rename(from, to) if is_dir(from) => {
                    !to.starts_with(&format!("{from}/"))
                        && (!tree.contains_key(*to) || from == to || is_dir(to) && is_empty(to))
                }
                Self::Rename(from, to) => {
                    tree.contains_key(*from) && !is_dir(to) && (!is_link(to) || is_link(from))
                }
                Self::CreateDir(path) => !tree.contains_key(*path) && has_parent(path),
                Self::RemoveDir(path) => is_dir(path) && is_empty(path),
                Self::RemoveDirAll(path) => is_dir(path),
                Self::Symlink(path, _) => !tree.contains_key(*path) || is_link(path),
                Self::SetMode(path, _) => tree.contains_key(*path) && !is_link(path),
            }
    }
}

fn names_below(tree: &Tree, path: &str) -> Vec<String> {
    let below = format!("{path}/");
    tree.keys().filter(|name| name.starts_with(&below)).cloned().collect()
}

fn content_of(tree: &Tree, path: &str) -> (Vec<u8>, u32) {
    match tree.get(path) {
        Some(Entry::File { content, mode }) => (content.to_vec(), *mode),
        _ => (Vec::new(), NEW_FILE_MODE),
    }
}

fn put(tree: &mut Tree, path: &str, entry: Entry) {
    for (at, _) in path.match_indices('/') {
        tree.entry(path[..at].to_owned()).or_insert(Entry::Dir(NEW_DIR_MODE));
    }
    tree.insert(path.to_owned(), entry);
}

/// One step of a history.
#[derive(Clone, Debug)]
pub enum Step {
    /// A transaction.
    Commit(Vec<Operation>),
    /// `Store::checkpoint`.
    Checkpoint,
    /// `Store::close`, and open again.
    Reopen,
    /// Time enough for the clock to tell what changed before from what changes after.
    Wait,
}

/// What the storage and the store are like.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Settings {
    /// `Options::inline_bytes_max`.
    pub inline_bytes_max: u64,
    /// Whether names can be exchanged.
    pub can_exchange: bool,
    /// Whether inode numbers are used again at once.
    pub inode_reuse: bool,
    /// Whether the page cache can't be dropped.
    pub cache_pinned: bool,
    /// Whether a file's sync keeps earlier name operations.
    pub sync_keeps_names: bool,
    /// Whether commits are settled when they return.
    pub settled: bool,
}

/// A tree, and what is done to it.
#[derive(Clone, Debug)]
pub struct History {
    /// What decided all of this.
    pub seed: u64,
    /// The storage and the store.
    pub settings: Settings,
    /// What stands in the tree before the store is created, durably.
    pub initial: Tree,
    /// Steps before crashes are of interest: they move the log to where it is interesting.
    pub prelude: Vec<Step>,
    /// The steps during which crashes are tried.
    pub steps: Vec<Step>,
}

impl History {
    /// The history that `seed` decides. From [`DIRECTORIES`] on it is one of directories, for the most part; from
    /// [`IN_PLACE`] on the seed's rest says the same, and files are patched in place.
    pub fn generate(seed: u64) -> Self {
        if seed % IN_PLACE >= DIRECTORIES {
            return Self::generate_directories(seed);
        }
        let mut random = Random::new(seed);
        let settings = Settings {
            inline_bytes_max: *random.pick(&[1 << 20, 1 << 20, 1000, 100]),
            can_exchange: random.percent(85),
            inode_reuse: random.percent(30),
            cache_pinned: random.percent(15),
            sync_keeps_names: random.percent(25),
            settled: false,
        };
        let mut initial = Tree::new();
        for path in PATHS {
            if random.percent(50) {
                let mode = *random.pick(&[0o644, 0o600, 0o755, 0o640]);
                let content = some_content(&mut random);
                put(&mut initial, path, Entry::file(content, mode));
            }
        }
        let mut tree = initial.clone();
        let mut prelude = Vec::new();
        if random.percent(40) {
            // Enough to reach the end of a segment of 64 KiB, or of several, or nearly.
            for _ in 0..random.below(14) {
                let length = 4000 + random.below(11_000) as usize;
                let fill = vec![Operation::Write("fill", random.bytes(length))];
                fill.iter().for_each(|operation| operation.perform_on(&mut tree));
                prelude.push(Step::Commit(fill));
            }
            match random.below(3) {
                0 => prelude.push(Step::Checkpoint),
                1 => prelude.push(Step::Reopen),
                _ => {}
            }
        }
        let commits = 1 + random.below(3);
        let mut steps = Vec::new();
        for number in 0..commits {
            if number > 0 {
                match random.below(10) {
                    0..3 => steps.push(Step::Checkpoint),
                    3 => steps.push(Step::Reopen),
                    4..7 => steps.push(Step::Wait),
                    _ => {}
                }
            }
            let mut operations = Vec::new();
            // Now and then nothing else, so that files are patched that were just patched.
            if seed < IN_PLACE || random.percent(60) {
                operations = generate_operations(&mut random, &mut tree);
            }
            if seed >= IN_PLACE {
                patch_in_place(&mut random, &mut tree, &PATHS, &mut operations);
            }
            steps.push(Step::Commit(operations));
        }
        if random.percent(30) {
            steps.push(Step::Checkpoint);
        }
        Self { seed, settings, initial, prelude, steps }
    }

    /// Transactions that move, replace, remove and make directories at several depths. A third of these histories is
    /// run with [`Durability::Settled`], a third on a file system that cannot exchange names.
    fn generate_directories(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let settings = Settings {
            inline_bytes_max: *random.pick(&[1 << 20, 1000, 100]),
            can_exchange: random.percent(67),
            inode_reuse: random.percent(60),
            cache_pinned: random.percent(15),
            sync_keeps_names: random.percent(25),
            settled: random.percent(33),
        };
        let mut initial = Tree::new();
        for path in DEEP_FILES {
            if random.percent(60) {
                let mode = *random.pick(&[0o644, 0o600, 0o755]);
                let content = some_content(&mut random);
                put(&mut initial, path, Entry::file(content, mode));
            }
        }
        let mut tree = initial.clone();
        let mut steps = Vec::new();
        for number in 0..=random.below(3) {
            if number > 0 {
                match random.below(10) {
                    0 => steps.push(Step::Checkpoint),
                    1 => steps.push(Step::Reopen),
                    2..5 => steps.push(Step::Wait),
                    _ => {}
                }
            }
            let mut operations = generate_directory_operations(&mut random, &mut tree);
            if seed >= IN_PLACE {
                patch_in_place(&mut random, &mut tree, &DEEP_FILES, &mut operations);
            }
            steps.push(Step::Commit(operations));
        }
        if random.percent(30) {
            steps.push(Step::Checkpoint);
        }
        Self { seed, settings, initial, prelude: Vec::new(), steps }
    }

    /// The tree after each number of transactions, the first being the initial one.
    pub fn trees(&self) -> Vec<Tree> {
        let mut trees = vec![self.initial.clone()];
        for step in self.prelude.iter().chain(&self.steps) {
            if let Step::Commit(operations) = step {
                let mut tree = trees[trees.len() - 1].clone();
                operations.iter().for_each(|operation| operation.perform_on(&mut tree));
                trees.push(tree);
            }
        }
        trees
    }
}

/// Operations of one transaction, each possible after those before it; done to the tree. Half of the transactions touch
/// files alone.
pub fn generate_operations(random: &mut Random, tree: &mut Tree) -> Vec<Operation> {
    if random.percent(50) {
        return generate_operations_on(random, tree, &PATHS);
    }
    let mut operations = Vec::new();
    while operations.is_empty() || random.percent(60) {
        let operation = generate_any(random);
        if operation.is_possible(tree) {
            operation.perform_on(tree);
            operations.push(operation);
        }
    }
    operations
}

/// Operations of one transaction that has to do with directories, each possible after those before it; done to the
/// tree.
pub fn generate_directory_operations(random: &mut Random, tree: &mut Tree) -> Vec<Operation> {
    let mut operations = Vec::new();
    while operations.is_empty() || random.percent(60) {
        for operation in some_directory_operations(random) {
            if !operation.is_possible(tree) {
                break;
            }
            operation.perform_on(tree);
            operations.push(operation);
        }
    }
    operations
}

/// Adds patches in place to a transaction, up to three, of files that it leaves alone.
fn patch_in_place(
    random: &mut Random,
    tree: &mut Tree,
    paths: &[&'static str],
    operations: &mut Vec<Operation>,
) {
    let is_near = |one: &str, other: &str| {
        one == other || other.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'))
    };
    let others: Vec<_> = operations.iter().flat_map(Operation::paths).collect();
    let is_free = |path: &str| !others.iter().any(|other| is_near(other, path));
    for _ in 0..=random.below(4).min(2) {
        let path = *random.pick(paths);
        let Some(Entry::File { content, .. }) = tree.get(path).filter(|_| is_free(path)) else { continue };
        let length = content.len() as u64;
        let offset = random.below(length + 1);
        let most = (length - offset).min(1500);
        let bytes = if random.percent(30) { most } else { random.below(most + 1) };
        let operation = Operation::PatchInPlace(path, offset, random.bytes(bytes as usize));
        operation.perform_on(tree);
        operations.push(operation);
    }
}

/// Operations that belong together, possible or not.
fn some_directory_operations(random: &mut Random) -> Vec<Operation> {
    let dir = |random: &mut Random| *random.pick(&DEEP_DIRS);
    let file = |random: &mut Random| *random.pick(&DEEP_FILES);
    let any = |random: &mut Random| {
        if random.percent(75) { *random.pick(&DEEP_DIRS) } else { *random.pick(&DEEP_FILES) }
    };
    match random.below(24) {
        0..6 => vec![Operation::Rename(dir(random), dir(random))],
        6..8 => vec![Operation::Rename(any(random), any(random))],
        // A swap, of two directories or of a file and a directory.
        8..11 => {
            let (one, two) = (any(random), any(random));
            vec![Operation::Rename(one, "hold"), Operation::Rename(two, one), Operation::Rename("hold", two)]
        }
        // A cycle.
        11 => {
            let (one, two, three) = (dir(random), dir(random), dir(random));
            vec![
                Operation::Rename(one, "hold"),
                Operation::Rename(two, one),
                Operation::Rename(three, two),
                Operation::Rename("hold", three),
            ]
        }
        // Another directory, or a file, in the place of one.
        12 => {
            let dir = dir(random);
            vec![Operation::RemoveDirAll(dir), Operation::CreateDir(dir)]
        }
        13 => {
            let dir = dir(random);
            vec![Operation::RemoveDirAll(dir), Operation::Write(dir, some_content(random))]
        }
        14 => vec![Operation::RemoveDirAll(dir(random))],
        15 => vec![Operation::RemoveDir(dir(random))],
        16 => vec![Operation::CreateDir(dir(random))],
        17..21 => vec![Operation::Write(file(random), some_content(random))],
        21 => vec![Operation::Remove(file(random))],
        22 => vec![Operation::Symlink(any(random), ["a", "d/x", "nowhere"][random.below(3) as usize])],
        _ => vec![Operation::SetMode(any(random), *random.pick(&[0o700, 0o755, 0o711, 0o500]))],
    }
}

/// An operation of any kind, possible or not.
fn generate_any(random: &mut Random) -> Operation {
    let (file, dir) = (*random.pick(&PATHS), *random.pick(&DIRS));
    let any = |random: &mut Random| {
        let names: &[&'static str] = if random.percent(50) { &DIRS } else { &PATHS[..6] };
        *random.pick(names)
    };
    let (one, other) = (any(random), any(random));
    match random.below(20) {
        0..3 => Operation::Write(file, some_content(random)),
        3 => Operation::Write(one, some_content(random)),
        4 => Operation::Remove(one),
        5..10 => Operation::Rename(one, other),
        10..12 => Operation::CreateDir(dir),
        12 => Operation::RemoveDir(dir),
        13..16 => Operation::RemoveDirAll(dir),
        16 => Operation::Symlink(one, ["a", "dir/x", "nowhere"][random.below(3) as usize]),
        17 => Operation::Append(file, some_content(random)),
        _ => Operation::SetMode(one, [0o700, 0o755, 0o644, 0o500][random.below(4) as usize]),
    }
}

/// Operations on files of these names only, as for [`generate_operations`].
pub fn generate_operations_on(
    random: &mut Random,
    tree: &mut Tree,
    paths: &[&'static str],
) -> Vec<Operation> {
    let mut operations = Vec::new();
    for _ in 0..=random.below(4) {
        let path = *random.pick(paths);
        let length = match tree.get(path) {
            Some(Entry::File { content, .. }) => Some(content.len() as u64),
            _ => None,
        };
        let operation = match (random.below(20), length) {
            (0..8, _) | (12.., None) => Operation::Write(path, some_content(random)),
            (8..10, _) => {
                let mode = *random.pick(&[0o600, 0o644, 0o755, 0o400]);
                Operation::WriteWithMode(path, some_content(random), mode)
            }
            (10..12, _) => Operation::Append(path, some_content(random)),
            (12..14, Some(length)) => Operation::Patch(path, random.below(length + 1), some_content(random)),
            (14..17, Some(_)) => Operation::Remove(path),
            (_, Some(_)) => {
                let to = *random.pick(paths);
                Operation::Rename(path, to)
            }
        };
        if operation.is_possible(tree) {
            operation.perform_on(tree);
            operations.push(operation);
        }
    }
    operations
}

/// Contents of the lengths that matter: nothing, less than a sector, one, several, more than a page.
pub fn some_content(random: &mut Random) -> Vec<u8> {
    let length = match random.below(10) {
        0 => 0,
        1..4 => 1 + random.below(511),
        4 => 512,
        5..8 => 513 + random.below(1500),
        8 => 4000 + random.below(300),
        _ => 5000 + random.below(9000),
    };
    random.bytes(length as usize)
}
