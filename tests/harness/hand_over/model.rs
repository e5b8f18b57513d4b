//! What the tree may be, given what was acknowledged and what is open.

use std::sync::Arc;

use crate::history::{Operation, Tree};

/// What another program writes.
pub(super) const THEIRS: &[u8] = b"written by another program";

/// A transaction that the tree last seen may not hold yet.
struct Transaction {
    id: u64,
    owner: usize,
    operations: Vec<Operation>,
    /// Its number, once it is acknowledged.
    tx: Option<u64>,
    /// Whether its process is still at it.
    is_running: bool,
    /// Whether the tree was seen since it began, so that it may have been in it.
    may_be_seen: bool,
}

/// The tree as it was last seen, and what has come since.
pub(super) struct Model {
    seen: Tree,
    /// The highest number that the tree seen holds.
    seen_tx: u64,
    transactions: Vec<Transaction>,
    next_id: u64,
    possible: Arc<Vec<Tree>>,
    acknowledged: Vec<u64>,
}

impl Model {
    pub(super) fn new(initial: Tree) -> Self {
        let possible = Arc::new(vec![initial.clone()]);
        let (transactions, acknowledged) = (Vec::new(), Vec::new());
        Self { seen: initial, seen_tx: 0, transactions, next_id: 0, possible, acknowledged }
    }

    /// The trees that there may be if everything went down now.
    pub(super) fn possible(&self) -> Arc<Vec<Tree>> {
        Arc::clone(&self.possible)
    }

    /// The numbers of all acknowledged transactions, in the order of their acknowledgement.
    pub(super) fn acknowledged(&self) -> &[u64] {
        &self.acknowledged
    }

    /// The highest of them.
    pub(super) fn last_tx(&self) -> u64 {
        self.acknowledged.iter().max().copied().unwrap_or(0)
    }

    /// The tree as it was last seen.
    pub(super) fn seen(&self) -> &Tree {
        &self.seen
    }

    /// A transaction is handed in.
    pub(super) fn begin(&mut self, owner: usize, operations: &[Operation]) -> u64 {
        self.next_id += 1;
        self.transactions.push(Transaction {
            id: self.next_id,
            owner,
            operations: operations.to_vec(),
            tx: None,
            is_running: true,
            may_be_seen: false,
        });
        self.combine();
        self.next_id
    }

    /// It is acknowledged, with this number, or without one if it changed nothing.
    pub(super) fn acknowledge(&mut self, id: u64, tx: u64) {
        let at = self.transactions.iter().position(|one| one.id == id).expect("it had begun");
        if tx > 0 {
            self.acknowledged.push(tx);
        }
        let one = &mut self.transactions[at];
        if tx == 0 || one.may_be_seen && tx < self.seen_tx {
            self.transactions.remove(at);
        } else {
            (one.tx, one.is_running) = (Some(tx), false);
        }
        self.combine();
    }

    /// It failed, and is promised to have changed nothing.
    pub(super) fn withdraw(&mut self, id: u64) {
        self.transactions.retain(|one| one.id != id);
        self.combine();
    }

    /// It failed, and may be there or not.
    pub(super) fn leave_open(&mut self, id: u64) {
        self.transactions.iter_mut().filter(|one| one.id == id).for_each(|one| one.is_running = false);
    }

    /// The process is gone.
    pub(super) fn leave_open_all_of(&mut self, owner: usize) {
        self.transactions.iter_mut().filter(|one| one.owner == owner).for_each(|one| one.is_running = false);
    }

    /// The tree is this one, now that somebody has had the lock; then what nobody is at any more is decided. `None` if it
    /// may not be.
    pub(super) fn see(&mut self, is_it: impl Fn(&Tree) -> bool) -> Option<()> {
        self.seen = self.possible.iter().find(|tree| is_it(tree))?.clone();
        let numbers = self.transactions.iter().filter_map(|one| one.tx);
        self.seen_tx = numbers.fold(self.seen_tx, u64::max);
        self.transactions.retain(|one| one.is_running);
        self.transactions.iter_mut().for_each(|one| one.may_be_seen = true);
        self.combine();
        Some(())
    }

    fn combine(&mut self) {
        let mut acknowledged: Vec<&Transaction> =
            self.transactions.iter().filter(|one| one.tx.is_some()).collect();
        acknowledged.sort_by_key(|one| one.tx);
        let open: Vec<&Transaction> = self.transactions.iter().filter(|one| one.tx.is_none()).collect();
        let mut found = Vec::new();
        extend(&self.seen, &acknowledged, &open, &mut found);
        self.possible = Arc::new(found);
    }
}

/// Every tree that the acknowledged ones lead to in their order, with any of the open ones at any place between.
fn extend(tree: &Tree, acknowledged: &[&Transaction], open: &[&Transaction], found: &mut Vec<Tree>) {
    match acknowledged.split_first() {
        None if !found.contains(tree) => found.push(tree.clone()),
        None => {}
        Some((first, rest)) => {
            if let Some(tree) = after(tree, &first.operations) {
                extend(&tree, rest, open, found);
            }
        }
    }
    for (index, one) in open.iter().enumerate() {
        if let Some(tree) = after(tree, &one.operations) {
            let rest: Vec<_> =
                open.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, one)| *one).collect();
            extend(&tree, acknowledged, &rest, found);
        }
    }
}

/// The tree after these operations, if each is possible.
pub(super) fn after(tree: &Tree, operations: &[Operation]) -> Option<Tree> {
    let mut next = tree.clone();
    for operation in operations {
        if !operation.is_possible(&next) {
            return None;
        }
        operation.perform_on(&mut next);
    }
    Some(next)
}
