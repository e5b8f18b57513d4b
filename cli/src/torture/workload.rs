//! What the writers of `atomtree torture` do: the transactions of each worker, and what its part of the tree holds after
//! each of them.
//!
//! Both follow from the seed, the worker and the number of the transaction, so that whoever finds a tree knows what has
//! to be in it. A worker owns one directory and starts it over every [`LAP`] transactions, which bounds what it takes
//! and what has to be worked out.

use std::collections::BTreeMap;
use std::fmt;

use atomtree::{Error, Transaction};

/// Workers whose transactions do everything that transactions can do. The number of the last one stands in a file.
const MIXED: u64 = 6;
/// All of them; those after the first [`MIXED`] submit their transactions, and what they write is numbered.
pub(super) const WORKERS: u64 = 8;
/// How many transactions a worker that submits leaves standing.
const SUBMITTED_KEPT: u64 = 32;
/// How many of them are on their way at most: those that touch the same names must not be.
pub(super) const IN_FLIGHT_MAX: usize = 16;
/// After so many transactions a worker starts over.
const LAP: u64 = 64;
/// What one worker's files may take before it writes small ones only.
const BYTES_MAX: usize = 4 << 20;
const FILE_BYTES_MAX: u64 = 300_000;
/// Names of a directory that files get, and that links and directories get.
const NAMES: u64 = 8;
const DEPTH_MAX: usize = 4;

/// What stands at a name.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Node {
    File {
        content: Vec<u8>,
        mode: u32,
    },
    Dir {
        mode: u32,
    },
    Link(String),
    /// What no worker makes.
    Other,
}

/// Names below the root, and what stands there.
pub(super) type Nodes = BTreeMap<String, Node>;

/// One step of a transaction.
#[derive(Debug)]
pub(super) enum Op {
    /// A new file gets the mode; one that is there keeps its own.
    Write {
        path: String,
        content: Vec<u8>,
        mode: Option<u32>,
    },
    Append {
        path: String,
        content: Vec<u8>,
    },
    Patch {
        path: String,
        offset: usize,
        content: Vec<u8>,
    },
    Remove(String),
    Rename {
        from: String,
        to: String,
    },
    MakeDir {
        path: String,
        mode: u32,
    },
    RemoveDir(String),
    Symlink {
        path: String,
        target: String,
    },
    SetMode {
        path: String,
        mode: u32,
    },
}

/// All that there is to know to tell what a tree has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) seed: u64,
    /// Whether directories are made, moved and removed; on overlayfs they can't be.
    pub(super) moves_dirs: bool,
}

/// The directory of a worker.
pub(super) fn directory(worker: u64) -> String {
    format!("w{worker}")
}

/// Whether the worker submits its transactions instead of waiting for each.
pub(super) fn submits(worker: u64) -> bool {
    worker >= MIXED
}

impl Workload {
    /// The number of the worker's last transaction, by what is in its directory; 0 if there is none.
    pub(super) fn last(worker: u64, found: &Nodes) -> Option<u64> {
        let top = directory(worker);
        if !found.contains_key(&top) {
            return Some(0);
        }
        if submits(worker) {
            let numbers = found.keys().filter_map(|path| path.strip_prefix(&format!("{top}/")));
            return numbers.filter_map(|name| name.split('-').next()?.parse().ok()).max();
        }
        match found.get(&format!("{top}/last"))? {
            Node::File { content, .. } => str::from_utf8(content).ok()?.trim().parse().ok(),
            _ => None,
        }
    }

    /// What the worker's directory holds after its transaction `last`.
    pub(super) fn state(self, worker: u64, last: u64) -> Nodes {
        let mut nodes = Nodes::new();
        if last == 0 {
            return nodes;
        }
        let top = directory(worker);
        nodes.insert(top.clone(), Node::Dir { mode: 0o755 });
        if submits(worker) {
            for n in (last + 1).saturating_sub(SUBMITTED_KEPT).max(1)..=last {
                submitted(worker, n).into_iter().for_each(|op| op.change(&mut nodes));
            }
            return nodes;
        }
        let first = (last - 1) / LAP * LAP + 1;
        if first == 1 {
            nodes.clear();
        } else if !self.moves_dirs {
            nodes.extend(fixed_dirs(&top).map(|path| (path, Node::Dir { mode: 0o755 })));
        }
        for n in first..=last {
            self.step(worker, n, &mut nodes);
        }
        nodes
    }

    /// The worker's transaction `n`. `nodes` is what its directory holds before, and after it has returned, afterwards.
    pub(super) fn step(self, worker: u64, n: u64, nodes: &mut Nodes) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut add = |op: Op, nodes: &mut Nodes| {
            op.change(nodes);
            ops.push(op);
        };
        let top = directory(worker);
        if n == 1 {
            add(Op::MakeDir { path: top.clone(), mode: 0o755 }, nodes);
        }
        if submits(worker) {
            submitted(worker, n).into_iter().for_each(|op| add(op, nodes));
            if let Some(old) = n.checked_sub(SUBMITTED_KEPT).filter(|old| *old > 0) {
                submitted_names(worker, old).into_iter().for_each(|name| add(Op::Remove(name), nodes));
            }
            return ops;
        }
        if n % LAP == 1 {
            let old = self.clearing(&top, n, nodes);
            old.into_iter().for_each(|op| add(op, nodes));
        }
        let mut random = Random::new(self.seed, worker, n);
        for part in 0..=random.below(4) {
            let text = format!("{worker}:{n}:{part};");
            let op = choose(&mut random, self.moves_dirs, &format!("{top}/t"), &text, nodes);
            add(op, nodes);
        }
        add(write(nodes, format!("{top}/last"), format!("{n}\n").into_bytes(), 0o644), nodes);
        ops
    }

    /// Starts the directory `t` over.
    fn clearing(self, top: &str, n: u64, nodes: &Nodes) -> Vec<Op> {
        let make = |path: String| Op::MakeDir { path, mode: 0o755 };
        let t = format!("{top}/t");
        if self.moves_dirs {
            let old = (n > 1).then(|| Op::RemoveDir(t.clone()));
            return old.into_iter().chain(fixed_dirs(top).map(make)).collect();
        }
        if n == 1 {
            return fixed_dirs(top).map(make).collect();
        }
        let is_old = |(path, node): &(&String, &Node)| below(path, &t) && !matches!(node, Node::Dir { .. });
        nodes.iter().filter(is_old).map(|(path, _)| Op::Remove(path.clone())).collect()
    }
}

fn fixed_dirs(top: &str) -> impl Iterator<Item = String> {
    ["", "/d0", "/d1", "/d1/d2"].map(|dir| format!("{top}/t{dir}")).into_iter()
}

fn submitted_names(worker: u64, n: u64) -> [String; 2] {
    ["a", "b"].map(|part| format!("{}/{n}-{part}", directory(worker)))
}

fn submitted(worker: u64, n: u64) -> Vec<Op> {
    // The second is above `inline_bytes_max` now and then.
    let bytes = [200, if n.is_multiple_of(7) { 20_000 } else { 2000 }];
    let names = submitted_names(worker, n).into_iter().zip(bytes);
    let text = format!("{worker}:{n};");
    names.map(|(path, bytes)| Op::Write { path, content: fill(&text, bytes), mode: Some(0o640) }).collect()
}

/// One operation that can be done on what stands there.
fn choose(random: &mut Random, moves_dirs: bool, t: &str, text: &str, nodes: &Nodes) -> Op {
    let kind = random.below(if moves_dirs { 100 } else { 88 });
    let all = |is_meant: fn(&Node) -> bool| -> Vec<String> {
        let inside = nodes.iter().filter(|(path, node)| below(path, t) && is_meant(node));
        inside.map(|(path, _)| path.clone()).collect()
    };
    let files = all(|node| matches!(node, Node::File { .. }));
    let movable = all(|node| matches!(node, Node::File { .. } | Node::Link(_)));
    let below_t = all(|node| matches!(node, Node::Dir { .. }));
    let mut dirs = below_t.clone();
    dirs.push(t.to_owned());
    let used: usize = nodes.values().map(Node::bytes).sum();

    let dir = random.pick(&dirs).clone();
    let number = random.below(NAMES);
    let is_free = |path: &str| !nodes.contains_key(path);
    let may_hold_dirs = |dir: &str| dir.matches('/').count() < DEPTH_MAX;
    match kind {
        30..40 if !files.is_empty() => {
            Op::Append { path: random.pick(&files).clone(), content: fill(text, random.below(3000) as usize) }
        }
        40..48 if !files.is_empty() => {
            let path = random.pick(&files).clone();
            let offset = random.below(nodes[&path].bytes() as u64 + 1) as usize;
            Op::Patch { path, offset, content: fill(text, random.below(5000) as usize) }
        }
        48..58 if !movable.is_empty() => Op::Remove(random.pick(&movable).clone()),
        58..68 if !movable.is_empty() => {
            let from = random.pick(&movable).clone();
            let letter = if matches!(nodes[&from], Node::Link(_)) { 'l' } else { 'f' };
            Op::Rename { from, to: format!("{dir}/{letter}{number}") }
        }
        68..76 => Op::Symlink { path: format!("{dir}/l{number}"), target: format!("../{text}") },
        76..82 if !files.is_empty() => {
            let mode = *random.pick(&[0o600, 0o644, 0o755, 0o440]);
            Op::SetMode { path: random.pick(&files).clone(), mode }
        }
        88..90 if !below_t.is_empty() => {
            Op::SetMode { path: random.pick(&below_t).clone(), mode: *random.pick(&[0o700, 0o755, 0o711]) }
        }
        90..95 if may_hold_dirs(&dir) && is_free(&format!("{dir}/d{number}")) => {
            Op::MakeDir { path: format!("{dir}/d{number}"), mode: *random.pick(&[0o700, 0o755]) }
        }
        95..98 if !below_t.is_empty() && may_hold_dirs(&dir) && is_free(&format!("{dir}/d{number}")) => {
            let from = random.pick(&below_t).clone();
            if dir == from || below(&dir, &from) {
                return Op::RemoveDir(from);
            }
            Op::Rename { from, to: format!("{dir}/d{number}") }
        }
        98.. if !below_t.is_empty() => Op::RemoveDir(random.pick(&below_t).clone()),
        _ => {
            let bytes_max = match random.below(20) {
                _ if used > BYTES_MAX => 2000,
                0..12 => 2000,
                12..17 => 16_000,
                17..19 => 60_000,
                _ => FILE_BYTES_MAX,
            };
            let content = fill(text, random.below(bytes_max) as usize);
            write(nodes, format!("{dir}/f{number}"), content, *random.pick(&[0o600, 0o644, 0o755]))
        }
    }
}

fn write(nodes: &Nodes, path: String, content: Vec<u8>, mode: u32) -> Op {
    let mode = (!nodes.contains_key(&path)).then_some(mode);
    Op::Write { path, content, mode }
}

/// `bytes` bytes that say all over whose they are.
fn fill(text: &str, bytes: usize) -> Vec<u8> {
    let mut content = text.as_bytes().repeat(bytes / text.len() + 1);
    content.truncate(bytes);
    content
}

fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

impl Op {
    /// Does it in a transaction.
    pub(super) fn run(&self, transaction: &mut Transaction) -> Result<(), Error> {
        match self {
            // Large contents come as streams do.
            Self::Write { path, content, mode } if content.len() > 60_000 => {
                transaction.write_from_with_mode(path, content.as_slice(), *mode).map(|_| ())
            }
            Self::Write { path, content, mode: Some(mode) } => {
                transaction.write_with_mode(path, content.as_slice(), *mode)
            }
            Self::Write { path, content, mode: None } => transaction.write(path, content.as_slice()),
            Self::Append { path, content } => transaction.append(path, content),
            Self::Patch { path, offset, content } => transaction.patch(path, *offset as u64, content),
            Self::Remove(path) => transaction.remove(path),
            Self::Rename { from, to } => transaction.rename(from, to),
            Self::MakeDir { path, mode } => transaction.create_dir_with_mode(path, *mode),
            Self::RemoveDir(path) => transaction.remove_dir_all(path),
            Self::Symlink { path, target } => transaction.symlink(path, target),
            Self::SetMode { path, mode } => transaction.set_mode(path, *mode),
        }
    }

    /// Does it to what is expected.
    fn change(&self, nodes: &mut Nodes) {
        match self {
            Self::Write { path, content, mode } => {
                let mode = match (nodes.get(path), mode) {
                    (_, Some(mode)) | (Some(Node::File { mode, .. }), None) => *mode,
                    _ => unreachable!("a file that is new gets a mode"),
                };
                nodes.insert(path.clone(), Node::File { content: content.clone(), mode });
            }
            Self::Append { path, content: more } => {
                if let Some(Node::File { content, .. }) = nodes.get_mut(path) {
                    content.extend_from_slice(more);
                }
            }
            Self::Patch { path, offset, content: new } => {
                if let Some(Node::File { content, .. }) = nodes.get_mut(path) {
                    content.resize(content.len().max(offset + new.len()), 0);
                    content[*offset..][..new.len()].copy_from_slice(new);
                }
            }
            Self::Remove(path) => {
                nodes.remove(path);
            }
            Self::Rename { from, to } => {
                let moved: Vec<_> =
                    nodes.keys().filter(|path| *path == from || below(path, from)).cloned().collect();
                let moved: Vec<_> = moved
                    .into_iter()
                    .map(|path| (format!("{to}{}", &path[from.len()..]), nodes.remove(&path)))
                    .collect();
                nodes.extend(moved.into_iter().filter_map(|(path, node)| Some((path, node?))));
            }
            Self::MakeDir { path, mode } => {
                nodes.insert(path.clone(), Node::Dir { mode: *mode });
            }
            Self::RemoveDir(dir) => nodes.retain(|path, _| path != dir && !below(path, dir)),
            Self::Symlink { path, target } => {
                nodes.insert(path.clone(), Node::Link(target.clone()));
            }
            Self::SetMode { path, mode: new } => {
                if let Some(Node::File { mode, .. } | Node::Dir { mode }) = nodes.get_mut(path) {
                    *mode = *new;
                }
            }
        }
    }
}

impl Node {
    fn bytes(&self) -> usize {
        if let Self::File { content, .. } = self { content.len() } else { 0 }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { content, mode } => {
                let begin = content[..content.len().min(24)].escape_ascii();
                write!(
                    formatter,
                    "a file of {} bytes, mode {mode:04o}, that begins \"{begin}\"",
                    content.len()
                )
            }
            Self::Dir { mode } => write!(formatter, "a directory, mode {mode:04o}"),
            Self::Link(target) => write!(formatter, "a symlink to {target}"),
            Self::Other => formatter.write_str("neither file nor directory nor symlink"),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Splitmix64: the same numbers everywhere for the same seed.
pub(super) struct Random(u64);

impl Random {
    /// Numbers that the seed, and what they are for, decide.
    pub(super) fn new(seed: u64, purpose: u64, number: u64) -> Self {
        let mut random = Self(seed);
        for salt in [purpose, number] {
            random.0 = random.next() ^ salt;
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is worked out for a tree that was found is what its worker has done one by one. Method: both, for
    /// more than two laps of each worker; and no operation is missing from them.
    #[test]
    fn the_state_is_what_the_steps_lead_to() {
        let mut seen = BTreeMap::<String, u32>::new();
        for moves_dirs in [true, false] {
            let workload = Workload { seed: 7, moves_dirs };
            for worker in 0..WORKERS {
                let mut nodes = Nodes::new();
                for n in 1..=2 * LAP + 5 {
                    for op in workload.step(worker, n, &mut nodes) {
                        let name = format!("{op:?}");
                        let name = name.split([' ', '(']).next().unwrap().to_owned();
                        let is_dir_op = ["MakeDir", "RemoveDir"].contains(&name.as_str());
                        assert!(moves_dirs || n == 1 || !is_dir_op, "{worker}:{n}");
                        *seen.entry(name).or_default() += 1;
                    }
                    assert!(workload.state(worker, n) == nodes, "{worker}:{n}");
                    assert_eq!(Workload::last(worker, &nodes), Some(n));
                    assert!(nodes.values().map(Node::bytes).sum::<usize>() < BYTES_MAX + (1 << 20));
                }
            }
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
        assert!(seen.values().all(|count| *count > 20), "{seen:?}");
    }
}
