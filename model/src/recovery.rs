//! Recovery: look for the moved directories, bring each name to its goal, settle.

use crate::disk::{Cell, Disk, EMPTY, FRESH, Inode, QUARANTINE, ROOT, STAGE};
use crate::plan::{Change, Path, Plan, What};
use crate::protocol::{Checkpoint, RECOVERY_SLOT, Record, Recovery, Rule, Run, State, checkpoint, slot};

/// The next step of recovery.
pub(crate) fn recover(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let step = match state.recovery {
        Recovery::Off | Recovery::Complete => return None,
        Recovery::WriteAgain => {
            if run.has(Rule::WriteRecordsAgain) {
                next.synced = next.log.len();
            }
            next.recovery = Recovery::SyncTree;
            "write the records again"
        }
        Recovery::SyncTree => {
            if run.has(Rule::SyncBeforeRepair) {
                next.disk.sync();
            }
            next.recovery = Recovery::Locate;
            "sync the tree before repair"
        }
        Recovery::Locate => {
            if !take_one(run, state, &mut next.disk) {
                next.recovery = Recovery::Goals(0);
            }
            "locate and take"
        }
        Recovery::Goals(index) => {
            match goals(run, state).get(usize::from(index)) {
                None => {
                    next.recovery = Recovery::Checkpoint;
                    next.covered = watermark(state).max(state.logged().max().map_or(0, |at| at + 1));
                    next.checkpoint = Checkpoint::SyncTree;
                }
                Some(goal) => {
                    if !goal.approach(run, state, &mut next.disk) {
                        next.recovery = Recovery::Goals(index + 1);
                    }
                }
            }
            "repair"
        }
        Recovery::Checkpoint => return checkpoint(run, state),
    };
    Some((step, next))
}

fn watermark(state: &State) -> u8 {
    let settled = |record: &Record| if let Record::Settled(count) = record { *count } else { 0 };
    state.log.iter().map(settled).max().unwrap_or(0)
}

fn unsettled(state: &State) -> Vec<u8> {
    state.logged().filter(|&at| at >= watermark(state)).collect()
}

/// What one transaction's directories are known to stand at.
struct Search<'a> {
    run: &'a Run,
    disk: &'a Disk,
    at: u8,
    plan: &'a Plan,
    found: Vec<Inode>,
}

impl<'a> Search<'a> {
    /// Looks for all directories that the transaction moves or removes, through one another, until no more are found.
    fn new(run: &'a Run, disk: &'a Disk, at: u8, plan: &'a Plan) -> Self {
        let mut search = Self { run, disk, at, plan, found: Vec::new() };
        loop {
            let new = plan.0.iter().find_map(|change| search.look_for(change));
            let Some(new) = new else { return search };
            search.found.push(new);
        }
    }

    fn look_for(&self, change: &Change) -> Option<Inode> {
        let removed = change.replaced().filter(|original| original.is_dir).map(|original| original.inode);
        let moved = if let What::Moved { inode, from } = &change.what { Some((*inode, from)) } else { None };
        let is_new = |inode: Inode| !self.found.contains(&inode);
        let has = |dirs: Vec<Inode>, name: u8, inode: Inode| {
            dirs.into_iter().any(|dir| self.disk.child((dir, name)) == Some(inode))
        };
        let is_at = |path: &Path, is_after: bool, inode: Inode| {
            let (&name, above) = path.split_last().expect("a change has a name");
            has(self.dirs(above, is_after), name, inode)
        };
        let in_slot = |inode| {
            self.run.has(Rule::LocateInSlots) && self.disk.names.children(STAGE).any(|child| child.1 == inode)
        };
        let is_found = |(inode, from): (Inode, &Path)| {
            in_slot(inode)
                || self.run.has(Rule::LocateAtFinal) && is_at(&change.path, true, inode)
                || self.run.has(Rule::LocateAtOriginal) && is_at(from, false, inode)
        };
        if let Some(moved) = moved.filter(|&moved| is_new(moved.0) && is_found(moved)) {
            return Some(moved.0);
        }
        removed.filter(|&inode| {
            let is_there = || is_at(&change.path_before, false, inode) || is_at(&change.path, true, inode);
            self.run.has(Rule::LocateThroughRemoved) && is_new(inode) && (in_slot(inode) || is_there())
        })
    }

    /// The directories that may be the one at this path, of the tree before or after the transaction.
    fn dirs(&self, path: &[u8], is_after: bool) -> Vec<Inode> {
        let Some((&name, above)) = path.split_last() else { return vec![ROOT] };
        let through_moved = self.run.has(Rule::LocateThroughMoved);
        let known = self.plan.0.iter().find_map(|change| match &change.what {
            What::Moved { inode, from }
                if through_moved && (if is_after { &change.path } else { from }) == path =>
            {
                Some(*inode)
            }
            _ => {
                let removed = change.replaced().filter(|original| original.is_dir);
                let is_it =
                    !is_after && change.path_before == path && self.run.has(Rule::LocateThroughRemoved);
                removed.filter(|_| is_it).map(|original| original.inode)
            }
        });
        if let Some(inode) = known {
            return if self.found.contains(&inode) { vec![inode] } else { Vec::new() };
        }
        let above = self.dirs(above, is_after).into_iter();
        let mut dirs: Vec<Inode> = above.filter_map(|dir| self.disk.child((dir, name))).collect();
        let made = self.plan.0.iter().position(|change| change.path == path && change.what == What::MakeDir);
        if let Some(index) = made.filter(|_| is_after && self.run.has(Rule::LocateThroughStaged)) {
            dirs.extend(self.disk.child(slot(self.at, index)));
        }
        dirs
    }
}

/// Whether a directory stands at its final name, and everything above it is what shall be there.
fn is_in_place(run: &Run, disk: &Disk, plan: &Plan, path: &Path, inode: Inode) -> bool {
    let is_right = |above: &Path| {
        let change = plan.0.iter().find(|change| change.path == *above);
        let found = disk.resolve(above);
        change.is_none_or(|change| match &change.what {
            What::Moved { inode, .. } => found == Some(*inode),
            What::MakeDir => {
                found.is_some() && found != change.original.as_ref().map(|original| original.inode)
            }
            _ => true,
        })
    };
    let is_right_above = (1..path.len()).all(|length| is_right(&path[..length].to_vec()));
    disk.resolve(path) == Some(inode) && (is_right_above || !run.has(Rule::InPlaceFromTheTop))
}

/// Takes one moved directory that is not in place into its slot. False if there is none.
fn take_one(run: &Run, state: &State, disk: &mut Disk) -> bool {
    for at in unsettled(state) {
        let plan = &state.plans[usize::from(at)];
        let search = Search::new(run, &state.disk, at, plan);
        for (index, inode, _) in plan.moves() {
            let Some(place) = state.disk.names.place(inode).filter(|_| search.found.contains(&inode)) else {
                continue;
            };
            if place.0 == STAGE || is_in_place(run, &state.disk, plan, &plan.0[index].path, inode) {
                continue;
            }
            let own = Some(slot(at, index)).filter(|&own| disk.child(own).is_none());
            if own.is_none() && !run.has(Rule::FreshSlot) {
                continue;
            }
            let to = own.unwrap_or_else(|| disk.free_name(STAGE, RECOVERY_SLOT));
            if disk.rename(place, to) {
                return true;
            }
        }
    }
    false
}

/// What shall stand at one name, over all unsettled transactions.
struct Goal<'a> {
    change: &'a Change,
    slot: Cell,
    /// The modes that are ours, and the one to be reached.
    modes: Vec<u8>,
    mode: Option<u8>,
    /// What the unsettled transactions knew at this name.
    contents: Vec<u8>,
}

fn goals<'a>(run: &Run, state: &'a State) -> Vec<Goal<'a>> {
    let mut goals: Vec<Goal> = Vec::new();
    for at in unsettled(state) {
        for (index, change) in state.plans[usize::from(at)].0.iter().enumerate() {
            let position = goals.iter().position(|goal| goal.change.path == change.path);
            let position = position.unwrap_or_else(|| {
                let (modes, contents) = (vec![], vec![EMPTY]);
                goals.push(Goal { change, slot: slot(at, index), modes, mode: None, contents });
                goals.len() - 1
            });
            let goal = &mut goals[position];
            goal.modes.extend(change.mode.iter().flat_map(|mode| [mode.0, mode.1]));
            goal.contents.extend(change.original.iter().map(|original| original.content));
            if let What::File { content } = change.what {
                goal.contents.push(content);
            }
            if change.what == What::Mode {
                goal.mode = change.mode.map(|mode| mode.1).or(goal.mode);
            } else {
                (goal.change, goal.slot) = (change, slot(at, index));
                goal.mode = change.mode.map(|mode| mode.1);
            }
        }
    }
    let is_late = |goal: &Goal| matches!(goal.change.what, What::Moved { .. } | What::MakeDir);
    goals.sort_by_key(|goal| {
        let order =
            if run.has(Rule::ParentsFirst) { goal.change.path.len() } else { usize::from(is_late(goal)) };
        (order, goal.change.path.clone())
    });
    goals
}

impl Goal<'_> {
    /// Brings the name one step nearer to its goal. False if it is there, or there is no way.
    fn approach(&self, run: &Run, state: &State, disk: &mut Disk) -> bool {
        let Some(cell) = disk.cell(&self.change.path) else { return false };
        let found = disk.child(cell);
        let dir = found.filter(|&found| disk.is_dir(found));
        let by_inode = run.has(Rule::KnowByInode);
        let original = self.change.original.as_ref().filter(|original| original.is_dir);
        let is_original = |inode| match dir {
            Some(_) => original.is_some_and(|original| !by_inode || original.inode == inode),
            None => self.contents.contains(&disk.node(inode).content),
        };
        match &self.change.what {
            What::Moved { inode, .. } => {
                let is_it = found == Some(*inode) || !by_inode && dir.is_some();
                if is_it {
                    return self.set_mode(disk, found);
                }
                let mut slots = state.disk.names.children(STAGE).filter(|_| run.has(Rule::LocateInSlots));
                slots.find(|child| child.1 == *inode).is_some_and(|child| disk.put((STAGE, child.0), cell))
            }
            What::MakeDir => match found {
                Some(inode) if dir.is_some() && !(by_inode && is_original(inode)) => {
                    self.set_mode(disk, found)
                }
                Some(_) => disk.rename(cell, self.free_slot(disk)),
                None => {
                    disk.create(cell, true, EMPTY, FRESH);
                    true
                }
            },
            What::File { content } => {
                if found.is_some_and(|found| dir.is_none() && disk.node(found).content == *content) {
                    return self.set_mode(disk, found);
                }
                let is_ours = found.is_none_or(is_original);
                if !is_ours && self.is_applied(disk) {
                    return false;
                }
                // Always a fresh file: what was found may be open elsewhere.
                let fresh = disk.free_name(STAGE, RECOVERY_SLOT);
                disk.create(fresh, false, *content, self.mode.unwrap_or(FRESH));
                disk.put(fresh, cell)
            }
            What::Absent => match found {
                None => false,
                Some(inode) if is_original(inode) => disk.rename(cell, self.free_slot(disk)),
                Some(_) if self.is_applied(disk) => false,
                Some(_) => disk.rename(cell, disk.free_name(QUARANTINE, 0)),
            },
            What::Vacated => false,
            What::Mode => self.set_mode(disk, found),
        }
    }

    fn set_mode(&self, disk: &mut Disk, found: Option<Inode>) -> bool {
        let Some((found, mode)) = found.zip(self.mode) else { return false };
        let old = disk.node(found).mode;
        let is_ours = self.modes.contains(&old) && old != mode;
        if is_ours {
            disk.set_mode(found, mode);
        }
        is_ours
    }

    fn free_slot(&self, disk: &Disk) -> Cell {
        let own = Some(self.slot).filter(|&own| disk.child(own).is_none());
        own.unwrap_or_else(|| disk.free_name(STAGE, RECOVERY_SLOT))
    }

    /// The slot holds what the change replaced: what stands at the name came later.
    fn is_applied(&self, disk: &Disk) -> bool {
        let original = self.change.original.as_ref();
        let inode = disk.child(self.slot);
        inode.zip(original).is_some_and(|(inode, original)| {
            let node = disk.node(inode);
            if original.is_dir {
                inode == original.inode
            } else {
                !node.is_dir && node.content == original.content
            }
        })
    }
}
