//! Names: the operations that change them, and the order in which those reach the durable side.
//!
//! A name operation is a list of slots with what stood and what stands there, so that create, rename, exchange and
//! unlink are one thing. It takes effect on the cached side at once and waits in `State::pending`; on the durable side
//! operations are applied in order, each wholly or not at all, and only where the directory tree stays a tree.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use super::errno::{self, error};
use super::state::{Body, Id, NAME_BYTES, Name, ROOT, State};
use crate::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    pub(super) dir: Id,
    pub(super) name: Name,
}

/// What one name operation does to one slot.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) slot: Slot,
    pub(super) before: Option<Id>,
    pub(super) after: Option<Id>,
}

#[derive(Clone, Debug)]
pub(super) struct NameOperation {
    pub(super) changes: Vec<Change>,
    /// A sync that should have covered it failed: no later one makes it durable, though it may survive by luck.
    adrift: bool,
}

impl NameOperation {
    fn inodes(&self) -> BTreeSet<Id> {
        self.changes.iter().flat_map(|change| change.before.into_iter().chain(change.after)).collect()
    }

    fn before(&self, id: Id) -> Option<&Slot> {
        self.changes.iter().find(|change| change.before == Some(id)).map(|change| &change.slot)
    }

    fn after(&self, id: Id) -> Option<&Slot> {
        self.changes.iter().find(|change| change.after == Some(id)).map(|change| &change.slot)
    }

    /// The inodes that go from one directory to another.
    fn moved(&self) -> impl Iterator<Item = (Id, Id)> {
        self.changes.iter().filter_map(|change| {
            let id = change.after?;
            self.before(id).filter(|from| from.dir != change.slot.dir).map(|_| (id, change.slot.dir))
        })
    }

    /// The inodes that lose a name and get no other in the same operation.
    fn dropped(&self) -> impl Iterator<Item = Id> {
        self.changes.iter().filter_map(|change| change.before).filter(|id| self.after(*id).is_none())
    }

    fn added(&self) -> impl Iterator<Item = Id> {
        self.changes.iter().filter_map(|change| change.after).filter(|id| self.before(*id).is_none())
    }

    pub(super) fn involves(&self, dir: Id) -> bool {
        self.changes.iter().any(|change| change.slot.dir == dir)
    }
}

impl State {
    /// Creates an inode at a free name.
    pub(super) fn create(&mut self, dir: Id, name: &OsStr, body: Body, mode: u32) -> io::Result<Id> {
        let slot = self.slot(dir, name)?;
        if self.lookup(dir, name).is_ok() {
            return Err(error(errno::EEXIST));
        }
        self.space.take(NAME_BYTES)?;
        let id = self.new_inode(body, mode, Some(dir));
        self.change_names(vec![Change { slot, before: None, after: Some(id) }]);
        Ok(id)
    }

    pub(super) fn remove(&mut self, dir: Id, name: &OsStr) -> io::Result<()> {
        let id = self.lookup(dir, name)?;
        self.space.give(NAME_BYTES);
        self.change_names(vec![Change { slot: self.slot(dir, name)?, before: Some(id), after: None }]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (Id, &OsStr), to: (Id, &OsStr), replace: bool) -> io::Result<()> {
        let id = self.lookup(from.0, from.1)?;
        let (source, target) = (self.slot(from.0, from.1)?, self.slot(to.0, to.1)?);
        let old = self.lookup(to.0, to.1).ok();
        if self.is_below(to.0, id) {
            return Err(error(errno::EINVAL));
        }
        if let Some(old) = old {
            if !replace {
                return Err(error(errno::EEXIST));
            }
            if old == id {
                return Ok(());
            }
            match (&self.inode(id).body, &self.inode(old).body) {
                (Body::Dir { .. }, Body::Dir { cached, .. }) if !cached.entries.is_empty() => {
                    return Err(error(errno::ENOTEMPTY));
                }
                (Body::Dir { .. }, Body::Dir { .. }) => {}
                (Body::Dir { .. }, _) => return Err(error(errno::ENOTDIR)),
                (_, Body::Dir { .. }) => return Err(error(errno::EISDIR)),
                _ => {}
            }
        } else {
            self.space.take(NAME_BYTES)?;
        }
        self.space.give(NAME_BYTES);
        self.change_names(vec![
            Change { slot: source, before: Some(id), after: None },
            Change { slot: target, before: old, after: Some(id) },
        ]);
        Ok(())
    }

    pub(super) fn exchange(&mut self, one: (Id, &OsStr), two: (Id, &OsStr)) -> io::Result<()> {
        let (first, second) = (self.lookup(one.0, one.1)?, self.lookup(two.0, two.1)?);
        if !self.exchange_supported || self.is_below(two.0, first) || self.is_below(one.0, second) {
            return Err(error(errno::EINVAL));
        }
        if first != second {
            self.change_names(vec![
                Change { slot: self.slot(one.0, one.1)?, before: Some(first), after: Some(second) },
                Change { slot: self.slot(two.0, two.1)?, before: Some(second), after: Some(first) },
            ]);
        }
        Ok(())
    }

    pub(super) fn link(&mut self, from: (Id, &OsStr), to: (Id, &OsStr)) -> io::Result<()> {
        let id = self.lookup(from.0, from.1)?;
        let slot = self.slot(to.0, to.1)?;
        if self.lookup(to.0, to.1).is_ok() {
            return Err(error(errno::EEXIST));
        }
        if self.inode(id).body.kind() == Kind::Dir {
            return Err(error(errno::EPERM));
        }
        self.space.take(NAME_BYTES)?;
        self.change_names(vec![Change { slot, before: None, after: Some(id) }]);
        Ok(())
    }

    /// Whether a directory is, or lies below, the inode.
    fn is_below(&self, dir: Id, id: Id) -> bool {
        let mut at = Some(dir);
        while let Some(current) = at {
            if current == id {
                return true;
            }
            at = self.parent(current);
        }
        false
    }

    pub(super) fn parent(&self, dir: Id) -> Option<Id> {
        match &self.inode(dir).body {
            Body::Dir { cached, .. } => cached.parent,
            _ => None,
        }
    }

    fn durable_parent(&self, dir: Id) -> Option<Id> {
        match &self.inode(dir).body {
            Body::Dir { durable, .. } => durable.parent,
            _ => None,
        }
    }

    /// Carries a name operation out on the cached side and remembers it for the durable one.
    fn change_names(&mut self, changes: Vec<Change>) {
        let now = self.file_time();
        let operation = NameOperation { changes, adrift: false };
        for change in &operation.changes {
            let dir = self.inode_mut(change.slot.dir);
            (dir.cached.modified, dir.cached.changed) = (now, now);
            if let Body::Dir { cached, .. } = &mut dir.body {
                set_entry(&mut cached.entries, change);
            }
        }
        for id in operation.inodes() {
            let (slot, dropped) = (operation.after(id).map(|slot| slot.dir), operation.before(id).is_some());
            let inode = self.inode_mut(id);
            inode.links = inode.links + u64::from(slot.is_some()) - u64::from(dropped);
            inode.cached.changed = now;
            inode.pending += 1;
            if let Body::Dir { cached, .. } = &mut inode.body {
                cached.parent = slot;
            }
        }
        let inodes = operation.inodes();
        self.pending.push(Arc::new(operation));
        for id in inodes {
            self.collect(id);
        }
    }

    /// Carries a name operation out on the durable side, or leaves it and returns false where the disk could not hold
    /// the result: a directory removed with names in it, something moved to where the root does not reach, one inode
    /// number used twice.
    pub(super) fn apply_durably(&mut self, operation: &NameOperation) -> bool {
        let full =
            |id| matches!(&self.inode(id).body, Body::Dir { durable, .. } if !durable.entries.is_empty());
        if operation.dropped().any(full) || operation.added().any(|id| self.number_is_taken(id)) {
            return false;
        }
        // What was out of reach already has nothing to lose by the move.
        let moved: Vec<Id> =
            operation.moved().map(|(id, _)| id).filter(|id| self.reached(operation.before(*id))).collect();
        self.set_durably(operation, false);
        let lost = moved.iter().any(|id| !self.reached(operation.after(*id)));
        if lost {
            self.set_durably(operation, true);
        }
        !lost
    }

    fn set_durably(&mut self, operation: &NameOperation, undo: bool) {
        for change in &operation.changes {
            let (before, after) =
                if undo { (change.after, change.before) } else { (change.before, change.after) };
            if let Body::Dir { durable, .. } = &mut self.inode_mut(change.slot.dir).body {
                debug_assert_eq!(
                    durable.entries.get(&change.slot.name).copied(),
                    before,
                    "pending order per name"
                );
                set_entry(&mut durable.entries, &Change { slot: change.slot.clone(), before, after });
            }
        }
        for id in operation.inodes() {
            let (mut from, mut to) = (operation.before(id), operation.after(id));
            if undo {
                (from, to) = (to, from);
            }
            let (from, to) = (from.is_some(), to.map(|slot| slot.dir));
            let inode = self.inode_mut(id);
            inode.durable_links = inode.durable_links + u64::from(to.is_some()) - u64::from(from);
            if let Body::Dir { durable, .. } = &mut inode.body {
                durable.parent = to;
            }
        }
    }

    /// Whether the durable side reaches a slot's directory from the root; a cycle doesn't.
    fn reached(&self, slot: Option<&Slot>) -> bool {
        let mut at = slot.map(|slot| slot.dir);
        for _ in 0..=self.inodes.len() {
            match at {
                Some(ROOT) => return true,
                Some(dir) => at = self.durable_parent(dir),
                None => return false,
            }
        }
        false
    }

    fn number_is_taken(&self, id: Id) -> bool {
        let inode = self.inode(id);
        self.inode_reuse
            && inode.durable_links == 0
            && self
                .inodes
                .iter()
                .any(|(other, at)| *other != id && at.number == inode.number && at.durable_links > 0)
    }

    /// Makes the wanted pending operations durable, and with them all that they cannot do without.
    pub(super) fn sync_names(&mut self, wanted: impl Fn(&NameOperation) -> bool) {
        let selected = self.with_what_they_need(wanted);
        let mut blocked: HashSet<Slot> = HashSet::new();
        let pending = std::mem::take(&mut self.pending);
        let mut touched = BTreeSet::new();
        for (operation, selected) in pending.into_iter().zip(selected) {
            let free = operation.changes.iter().all(|change| !blocked.contains(&change.slot));
            if selected && free && !operation.adrift && self.apply_durably(&operation) {
                for id in operation.inodes() {
                    self.inode_mut(id).pending -= 1;
                    touched.insert(id);
                }
                for change in &operation.changes {
                    let dir = self.inode_mut(change.slot.dir);
                    dir.durable.modified = dir.cached.modified;
                    dir.durable.changed = dir.cached.changed;
                }
            } else {
                debug_assert!(
                    !selected || !free || operation.adrift || self.names_adrift(),
                    "a sync left a name out"
                );
                blocked.extend(operation.changes.iter().map(|change| change.slot.clone()));
                self.pending.push(operation);
            }
        }
        for id in touched {
            self.collect(id);
        }
    }

    fn names_adrift(&self) -> bool {
        self.pending.iter().any(|operation| operation.adrift)
    }

    /// Backwards through the pending operations: what is wanted, and each earlier one that touches the same names,
    /// empties a directory that is removed, puts in place a directory that something moves to, or frees a number.
    fn with_what_they_need(&self, wanted: impl Fn(&NameOperation) -> bool) -> Vec<bool> {
        let mut slots: HashSet<&Slot> = HashSet::new();
        let mut emptied: HashSet<Id> = HashSet::new();
        let mut placed: HashSet<Id> = HashSet::new();
        let mut numbers: HashSet<u64> = HashSet::new();
        let mut selected = vec![false; self.pending.len()];
        for (index, operation) in self.pending.iter().enumerate().rev() {
            let needed = wanted(operation)
                || operation.changes.iter().any(|change| {
                    slots.contains(&change.slot)
                        || emptied.contains(&change.slot.dir)
                        || change.after.is_some_and(|id| placed.contains(&id))
                        || change.before.is_some_and(|id| numbers.contains(&self.inode(id).number))
                });
            if !needed {
                continue;
            }
            selected[index] = true;
            slots.extend(operation.changes.iter().map(|change| &change.slot));
            emptied.extend(operation.dropped());
            if self.inode_reuse {
                numbers.extend(operation.added().map(|id| self.inode(id).number));
            }
            for (_, dir) in operation.moved() {
                self.place_with_parents(dir, &mut placed);
            }
            for change in &operation.changes {
                if change.after.is_some_and(|id| placed.contains(&id)) {
                    self.place_with_parents(change.slot.dir, &mut placed);
                }
            }
        }
        selected
    }

    fn place_with_parents(&self, dir: Id, placed: &mut HashSet<Id>) {
        for parent in [Self::parent, Self::durable_parent] {
            let mut at = Some(dir);
            for _ in 0..=self.inodes.len() {
                let Some(current) = at else { break };
                placed.insert(current);
                at = parent(self, current);
            }
        }
    }

    /// Sets the wanted pending operations adrift: no sync makes them durable any more.
    pub(super) fn lose_names(&mut self, wanted: impl Fn(&NameOperation) -> bool) {
        for operation in self.pending.iter_mut().filter(|operation| wanted(operation)) {
            Arc::make_mut(operation).adrift = true;
        }
    }
}

fn set_entry(entries: &mut Arc<BTreeMap<Name, Id>>, change: &Change) {
    let entries = Arc::make_mut(entries);
    match change.after {
        Some(id) => entries.insert(change.slot.name.clone(), id),
        None => entries.remove(&change.slot.name),
    };
}
