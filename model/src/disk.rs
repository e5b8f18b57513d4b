//! A file system with two sides: names, modes and contents as programs see them, and as the disk has them.
//!
//! A name operation is atomic. A power cut keeps any subset of the unsynced ones in which none survives without the
//! earlier ones on its names, and in which the disk stays a tree. A mode or content that was not synced is the old one
//! or the new one; a new file's old content is empty. Inode numbers are used again as soon as nothing has them.

use std::collections::{BTreeSet, HashSet};

pub(crate) type Inode = u8;
/// A name: the directory that holds it, and its one byte.
pub(crate) type Cell = (Inode, u8);

pub(crate) const ROOT: Inode = 1;
pub(crate) const STAGE: Inode = 2;
pub(crate) const QUARANTINE: Inode = 3;
/// The mode of what was just created, before it is given its own.
pub(crate) const FRESH: u8 = 1;
pub(crate) const EMPTY: u8 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Node {
    pub(crate) is_dir: bool,
    pub(crate) content: u8,
    pub(crate) mode: u8,
    durable_content: u8,
    durable_mode: u8,
    /// Its write-back failed: the cache shows the content as clean, and the disk doesn't have it.
    is_lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum NameOp {
    Link(Cell, Inode),
    Unlink(Cell),
    Rename(Cell, Cell),
    Exchange(Cell, Cell),
}

impl NameOp {
    fn cells(self) -> [Cell; 2] {
        match self {
            Self::Link(cell, _) | Self::Unlink(cell) => [cell, cell],
            Self::Rename(from, to) | Self::Exchange(from, to) => [from, to],
        }
    }
}

/// One side's names, sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Names(Vec<(Cell, Inode)>);

impl Names {
    fn get(&self, cell: Cell) -> Option<Inode> {
        self.0.binary_search_by_key(&cell, |name| name.0).ok().map(|index| self.0[index].1)
    }

    fn set(&mut self, cell: Cell, inode: Option<Inode>) {
        match (self.0.binary_search_by_key(&cell, |name| name.0), inode) {
            (Ok(index), Some(inode)) => self.0[index].1 = inode,
            (Ok(index), None) => drop(self.0.remove(index)),
            (Err(index), Some(inode)) => self.0.insert(index, (cell, inode)),
            (Err(_), None) => {}
        }
    }

    pub(crate) fn children(&self, dir: Inode) -> impl Iterator<Item = (u8, Inode)> + '_ {
        self.0.iter().filter(move |name| name.0.0 == dir).map(|name| (name.0.1, name.1))
    }

    pub(crate) fn place(&self, inode: Inode) -> Option<Cell> {
        self.0.iter().find(|name| name.1 == inode).map(|name| name.0)
    }

    /// The one of the three fixed directories above this directory, unless `below` comes first.
    fn top(&self, mut dir: Inode, below: Inode) -> Option<Inode> {
        while dir > QUARANTINE {
            if dir == below {
                return None;
            }
            dir = self.place(dir)?.0;
        }
        Some(dir)
    }

    /// Carries the operation out, or refuses it, because it would not leave a tree.
    fn apply(&mut self, op: NameOp) -> bool {
        match op {
            NameOp::Link(cell, inode) => {
                let is_fine = self.get(cell).is_none() && self.top(cell.0, 0).is_some();
                if is_fine {
                    self.set(cell, Some(inode));
                }
                is_fine
            }
            NameOp::Unlink(cell) => {
                let is_fine = self.get(cell).is_some_and(|inode| self.children(inode).next().is_none());
                if is_fine {
                    self.set(cell, None);
                }
                is_fine
            }
            NameOp::Rename(from, to) | NameOp::Exchange(from, to) => {
                let (first, second) = (self.get(from), self.get(to));
                let Some(inode) = first else { return false };
                let fits = |inode, dir| self.top(dir, inode).is_some();
                let is_fine = second.is_some() == matches!(op, NameOp::Exchange(..))
                    && fits(inode, to.0)
                    && second.is_none_or(|inode| fits(inode, from.0));
                if is_fine {
                    self.set(from, second);
                    self.set(to, first);
                }
                is_fine
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    pub(crate) names: Names,
    pub(crate) durable: Names,
    pending: Vec<NameOp>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let dir = Node { is_dir: true, mode: FRESH, durable_mode: FRESH, ..Node::default() };
        let nodes = vec![Node::default(), dir, dir, dir];
        Self { nodes, names: Names::default(), durable: Names::default(), pending: Vec::new() }
    }

    pub(crate) fn node(&self, inode: Inode) -> Node {
        self.nodes[usize::from(inode)]
    }

    pub(crate) fn child(&self, cell: Cell) -> Option<Inode> {
        self.names.get(cell)
    }

    pub(crate) fn is_dir(&self, inode: Inode) -> bool {
        self.node(inode).is_dir
    }

    pub(crate) fn resolve(&self, path: &[u8]) -> Option<Inode> {
        path.iter().try_fold(ROOT, |dir, &name| self.child((dir, name)))
    }

    /// The name that a path ends in, if its parent is there and a directory.
    pub(crate) fn cell(&self, path: &[u8]) -> Option<Cell> {
        let (&name, parent) = path.split_last()?;
        self.resolve(parent).filter(|&dir| self.is_dir(dir)).map(|dir| (dir, name))
    }

    pub(crate) fn free_name(&self, dir: Inode, first: u8) -> Cell {
        (first..=u8::MAX)
            .map(|name| (dir, name))
            .find(|&cell| self.child(cell).is_none())
            .expect("few names are taken")
    }

    fn name_op(&mut self, op: NameOp) -> bool {
        let is_done = self.names.apply(op);
        if is_done {
            self.pending.push(op);
        }
        is_done
    }

    /// Gives a new inode this name. Its content and mode are not durable.
    pub(crate) fn create(&mut self, cell: Cell, is_dir: bool, content: u8, mode: u8) {
        let node =
            Node { is_dir, content, mode, durable_content: EMPTY, durable_mode: FRESH, is_lost: false };
        let free = (4..self.nodes.len()).find(|&index| self.nodes[index] == Node::default());
        let index = free.unwrap_or(self.nodes.len());
        self.nodes.resize(self.nodes.len().max(index + 1), Node::default());
        self.nodes[index] = node;
        self.name_op(NameOp::Link(cell, index as Inode));
    }

    /// Does not replace.
    pub(crate) fn rename(&mut self, from: Cell, to: Cell) -> bool {
        self.name_op(NameOp::Rename(from, to))
    }

    /// Moves a name to another, by exchange if something stands there.
    pub(crate) fn put(&mut self, from: Cell, to: Cell) -> bool {
        let is_taken = self.child(to).is_some();
        self.name_op(if is_taken { NameOp::Exchange(from, to) } else { NameOp::Rename(from, to) })
    }

    pub(crate) fn unlink(&mut self, cell: Cell) -> bool {
        self.name_op(NameOp::Unlink(cell))
    }

    pub(crate) fn set_mode(&mut self, inode: Inode, mode: u8) {
        self.nodes[usize::from(inode)].mode = mode;
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.names.clone();
        self.pending.clear();
        for node in self.nodes.iter_mut().filter(|node| !node.is_lost) {
            (node.durable_content, node.durable_mode) = (node.content, node.mode);
        }
    }

    /// Gives a new inode a name that is durable. Its content isn't.
    pub(crate) fn stage(&mut self, cell: Cell, content: u8) {
        self.create(cell, false, content, FRESH);
        self.pending.pop();
        self.durable.set(cell, self.names.get(cell));
    }

    /// Contents that a write-back would write now.
    pub(crate) fn is_dirty(&self) -> bool {
        self.nodes.iter().any(|node| !node.is_lost && node.content != node.durable_content)
    }

    /// A write-back fails: what it was to write counts as clean from now on.
    pub(crate) fn lose(&mut self) {
        for node in &mut self.nodes {
            node.is_lost |= node.content != node.durable_content;
        }
    }

    /// Drops what is clean from the cache: what was lost shows as the disk has it.
    pub(crate) fn drop_caches(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_lost) {
            (node.content, node.is_lost) = (node.durable_content, false);
        }
    }

    /// Another program puts its own file at a name, and syncs it with its directory.
    pub(crate) fn replace_durably(&mut self, cell: Cell, content: u8) {
        self.names.set(cell, None);
        self.stage(cell, content);
        self.durable = self.names.clone();
        self.pending.clear();
        self.write_durably(cell, content);
    }

    /// Another program writes into what has this name, and syncs it.
    pub(crate) fn write_durably(&mut self, cell: Cell, content: u8) {
        if let Some(inode) = self.names.get(cell) {
            let node = &mut self.nodes[usize::from(inode)];
            (node.content, node.durable_content, node.is_lost) = (content, content, false);
        }
    }

    /// Syncs directories: the operations on their names, with all earlier ones that those need.
    pub(crate) fn sync_dirs(&mut self, dirs: &[Inode]) {
        let mut needed: HashSet<Cell> = HashSet::new();
        let mut is_needed = vec![false; self.pending.len()];
        for (index, op) in self.pending.iter().enumerate().rev() {
            // A removal takes what emptied the directory along.
            let is_gone = |dir: Inode| dir > QUARANTINE && self.names.place(dir).is_none();
            let is_wanted = |cell: &Cell| dirs.contains(&cell.0) || is_gone(cell.0) || needed.contains(cell);
            if op.cells().iter().any(is_wanted) {
                is_needed[index] = true;
                needed.extend(op.cells());
            }
        }
        let mut is_needed = is_needed.into_iter();
        let durable = &mut self.durable;
        self.pending.retain(|&op| !(is_needed.next() == Some(true) && durable.apply(op)));
    }

    /// Whether everything below this directory is on the disk as it is seen.
    pub(crate) fn is_durable(&self, dir: Inode) -> bool {
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            let children: Vec<_> = self.names.children(dir).collect();
            if children != self.durable.children(dir).collect::<Vec<_>>() {
                return false;
            }
            for (_, inode) in children {
                let node = self.node(inode);
                if (node.content, node.mode) != (node.durable_content, node.durable_mode) {
                    return false;
                }
                dirs.push(inode);
            }
        }
        true
    }

    /// Forgets inodes that have no name on either side, so that equal states are equal.
    pub(crate) fn forget_nameless(&mut self) {
        for index in 4..self.nodes.len() {
            let inode = index as Inode;
            let links =
                self.pending.iter().any(|op| matches!(op, NameOp::Link(_, linked) if *linked == inode));
            if !links && self.names.place(inode).is_none() && self.durable.place(inode).is_none() {
                self.nodes[index] = Node::default();
            }
        }
    }

    /// Every state in which a power cut may leave the disk.
    pub(crate) fn cuts(&self) -> Vec<Self> {
        fn survive(ops: &[NameOp], names: &Names, lost: &[Cell], sides: &mut BTreeSet<Names>) {
            let Some((&op, rest)) = ops.split_first() else {
                sides.insert(names.clone());
                return;
            };
            let cells = op.cells();
            if !cells.iter().any(|cell| lost.contains(cell)) {
                let mut with = names.clone();
                if with.apply(op) {
                    survive(rest, &with, lost, sides);
                }
            }
            survive(rest, names, &[lost, &cells].concat(), sides);
        }
        let mut sides = BTreeSet::new();
        survive(&self.pending, &self.durable, &[], &mut sides);
        let mut cuts = Vec::new();
        for names in sides {
            let mut nodes = vec![self.nodes.clone()];
            for (index, node) in self.nodes.iter().enumerate() {
                let is_clean = (node.content, node.mode) == (node.durable_content, node.durable_mode);
                if is_clean || names.place(index as Inode).is_none() {
                    continue;
                }
                let old =
                    Node { content: node.durable_content, mode: node.durable_mode, is_lost: false, ..*node };
                if node.is_lost {
                    nodes.iter_mut().for_each(|nodes| nodes[index] = old);
                    continue;
                }
                let with_old = nodes.iter().cloned().map(|mut nodes| {
                    nodes[index] = old;
                    nodes
                });
                nodes.extend(with_old.collect::<Vec<_>>());
            }
            for nodes in nodes {
                let mut cut =
                    Self { nodes, names: names.clone(), durable: names.clone(), pending: Vec::new() };
                cut.sync();
                cut.forget_nameless();
                cuts.push(cut);
            }
        }
        cuts
    }
}
