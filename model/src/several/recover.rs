//! Recovery, with both locks held, or alone: beside living processes that wait for L.

use super::checkpoint::{discard, discard_slot, process_instance};
use super::commit::Actor;
use super::log::{Committed, Lsn, Record};
use super::{NOTHING, Purpose, RECOVERY_SLOT, Repair, Rule, Stage, State, Step, Thread, cell, content, slot};
use crate::disk::{EMPTY, FRESH, QUARANTINE, STAGE};

impl Actor<'_> {
    pub(crate) fn repair(&self, state: &mut State, repair: Repair) {
        let step = |is_fine: bool, next: Repair| if is_fine { Step::Recover(next) } else { Step::Mark };
        let next = match repair {
            Repair::Rewrite => {
                if !self.run.has(Rule::ClearMarkLast) {
                    state.mark = false;
                }
                if self.run.has(Rule::RewriteRecords) {
                    state.log.rewrite();
                }
                step(true, Repair::SyncLog)
            }
            Repair::SyncLog => {
                let is_fine = state.sync_log(self.at);
                if is_fine && self.run.has(Rule::ReadAgain) && !self.read_anew(state) {
                    return;
                }
                step(is_fine, Repair::SyncTree)
            }
            Repair::SyncTree => step(state.sync_tree(self.run, self.at), Repair::Drop),
            Repair::Drop => {
                if self.run.has(Rule::DropCaches) {
                    state.disk.drop_caches();
                }
                step(true, Repair::Name(0))
            }
            Repair::Name(2) => step(true, Repair::SyncAgain),
            Repair::Name(name) => {
                let is_done = !self.approach(state, name);
                step(true, if is_done { Repair::Name(name + 1) } else { repair })
            }
            Repair::SyncAgain => {
                let is_fine = !self.run.has(Rule::SyncAfterRepair) || state.sync_tree(self.run, self.at);
                step(is_fine, Repair::Record)
            }
            Repair::Record => {
                let known = self.known(state).clone();
                if self.run.has(Rule::NextSegment) {
                    state.log.next_segment(&known);
                }
                let by = process_instance(state, self.at);
                let (watermark, next_number) = (known.end - 1, known.next_number);
                self.append(state, Record::Checkpoint { watermark, next_number, by });
                step(true, Repair::SyncRecord)
            }
            Repair::SyncRecord => step(state.sync_log(self.at), Repair::ClearMark),
            Repair::ClearMark => {
                state.mark = false;
                let process = &mut state.processes[self.at];
                (process.known_mark, process.known) = (false, None);
                if !self.read(state) {
                    return;
                }
                if state.processes[self.at].joined == u8::MAX {
                    // What is staged by now is older.
                    state.processes[self.at].joined = self.known(state).end;
                }
                step(true, Repair::Discard)
            }
            Repair::Discard => step(true, if self.clear(state) { repair } else { Repair::SyncSlots }),
            Repair::SyncSlots => {
                state.disk.sync_dirs(&[STAGE, QUARANTINE]);
                step(true, Repair::Retire)
            }
            Repair::Retire => {
                let watermark = self.known(state).watermark;
                state.log.retire(watermark);
                let purpose = self.now(state).purpose;
                if matches!(purpose, Purpose::Remember | Purpose::Record | Purpose::Retire) {
                    Step::Leave
                } else {
                    return self.go_on(state, purpose);
                }
            }
        };
        self.go(state, next);
    }

    /// Brings a name one step nearer to its goal. False if it is there.
    fn approach(&self, state: &mut State, name: u8) -> bool {
        let unsettled = self.known(state).unsettled.clone();
        let touches = |committed: &&Committed| self.run.names(committed.tx).contains(&name);
        let Some(goal) = unsettled.iter().rev().find(touches) else { return false };
        let wanted = content(goal.tx, name);
        let found = state.content_at(cell(name));
        let own = self.own_slot(state);
        if let Some(own) = own.filter(|&own| !is_ours(state, own.1)) {
            let place = state.disk.free_name(QUARANTINE, 0);
            return state.disk.rename(own, place);
        }
        if found == wanted {
            return false;
        }
        let is_known = [EMPTY, NOTHING].contains(&found) || images(state).contains(&found);
        let originals = state.log.originals(goal.tx).unwrap_or_default();
        let is_applied = match originals[usize::from(name)] {
            NOTHING => state.log.is_applied(goal.lsn),
            original => state.content_at(slot(goal.tx, name)) == original,
        };
        if !is_known && is_applied {
            return false;
        }
        let is_fresh = |slot: &u8| state.content_at((STAGE, *slot)) == wanted;
        if let Some(fresh) = self.own_slots(state).into_iter().find(is_fresh) {
            return state.disk.put((STAGE, fresh), cell(name));
        }
        let fresh = state.disk.free_name(STAGE, RECOVERY_SLOT + process_instance(state, self.at) * 4);
        state.disk.create(fresh, false, wanted, FRESH);
        true
    }

    fn own_slots(&self, state: &State) -> Vec<u8> {
        let instance = process_instance(state, self.at);
        let is_own = |slot: &u8| *slot >= RECOVERY_SLOT && state.owner(*slot) == instance;
        state.slots().into_iter().filter(is_own).collect()
    }

    /// A slot of this recovery whose content is nobody's.
    fn own_slot(&self, state: &State) -> Option<(u8, u8)> {
        let slots = self.own_slots(state);
        slots.into_iter().find(|&slot| !is_ours(state, slot)).map(|slot| (STAGE, slot))
    }

    /// Empties one slot of a recovery: whoever ran it, it is over, since it would hold C.
    pub(crate) fn clear_recoveries(&self, state: &mut State) -> bool {
        let found = state.slots().into_iter().find(|slot| *slot >= RECOVERY_SLOT);
        let Some(slot) = found.filter(|_| self.run.has(Rule::DiscardOfRecoveries)) else { return false };
        let repairs = |thread: &Thread| matches!(thread.step, Step::Recover(Repair::Name(_)));
        if state.processes.iter().any(|process| process.threads.iter().any(repairs)) {
            state.say("a slot is cleared under a recovery");
        }
        Self::clear_recovery(state, slot);
        true
    }

    fn clear_recovery(state: &mut State, slot: u8) {
        if is_ours(state, slot) {
            state.disk.unlink((STAGE, slot));
        } else {
            let place = state.disk.free_name(QUARANTINE, 0);
            state.disk.rename((STAGE, slot), place);
        }
    }

    /// Empties one slot: of what is settled, of recoveries, and of the dead.
    fn clear(&self, state: &mut State) -> bool {
        if self.run.has(Rule::DiscardOfLiving) && discard(self.run, state, 0..=Lsn::MAX) {
            return true;
        }
        if self.clear_recoveries(state) {
            return true;
        }
        let instance = process_instance(state, self.at);
        for slot in state.slots() {
            let owner = state.owner(slot);
            let is_living = state.is_living(owner) && owner != instance;
            if is_living && self.run.has(Rule::SpareLiving) {
                continue;
            }
            if slot < RECOVERY_SLOT {
                if owner == instance && !state.log.committed().contains(&(slot / 2)) {
                    continue;
                }
                if is_living {
                    state.say("a living process's slot is swept");
                }
                discard_slot(self.run, state, slot / 2, slot % 2);
            } else {
                Self::clear_recovery(state, slot);
            }
            return true;
        }
        for process in &mut state.processes {
            if process.stage == Stage::Made && process.instance != instance {
                process.stage = Stage::None;
                state.problem.get_or_insert("a living process's stage directory is swept");
                break;
            }
        }
        false
    }
}

/// The contents that the log's committed transactions tell of.
fn images(state: &State) -> Vec<u8> {
    let committed = state.log.committed().into_iter();
    let both = committed.flat_map(|tx| {
        let originals = state.log.originals(tx).unwrap_or_default();
        [originals[0], originals[1], content(tx, 0), content(tx, 1)]
    });
    both.filter(|image| ![0, NOTHING].contains(image)).collect()
}

/// Whether what a slot holds is explained by a record.
fn is_ours(state: &State, slot: u8) -> bool {
    let found = state.content_at((STAGE, slot));
    found == EMPTY || images(state).contains(&found)
}
