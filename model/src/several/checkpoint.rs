//! A checkpoint, by any process, of the transactions of all.

use super::commit::Actor;
use super::log::{Lsn, Record};
use super::{Life, NOTHING, Purpose, Repair, Rule, Scenario, State, Step, Thread, content, slot};
use crate::disk::{EMPTY, QUARANTINE, STAGE};
use std::ops::RangeInclusive;

impl Actor<'_> {
    /// Under C and L.
    pub(crate) fn remember(&self, state: &mut State) {
        let known = self.known(state).clone();
        let process = &state.processes[self.at];
        let (joined, life) = (process.joined, process.life);
        if known.unsettled.is_empty() {
            debug_assert!(life != Life::Closing, "close asks first");
            return self.go(state, Step::Leave);
        }
        let is_older = |staged_at, lsn| {
            let since = if self.run.has(Rule::OldAsItsFiles) { staged_at } else { lsn };
            since <= joined
        };
        let is_old = known.unsettled.iter().any(|committed| is_older(committed.staged_at, committed.lsn));
        if is_old && self.run.has(Rule::RecoverIfOlder) {
            return self.go(state, Step::Recover(Repair::Rewrite));
        }
        let now = self.now(state);
        (now.from, now.covered) = (known.watermark, known.end - 1);
        self.give_up_commit_lock(state);
        let is_anothers = known.settled_by != 0 && known.settled_by != process_instance(state, self.at);
        let again = is_anothers && self.run.has(Rule::DiscardAgain);
        self.go(state, if again { Step::Again } else { Step::SyncTree });
    }

    pub(crate) fn checkpoint(&self, state: &mut State, now: Thread) {
        match now.step {
            Step::Again => {
                let watermark = self.known(state).watermark;
                let is_cleared = !discard(self.run, state, 0..=watermark) && !self.clear_recoveries(state);
                if is_cleared {
                    state.disk.sync_dirs(&[STAGE, QUARANTINE]);
                    if now.purpose == Purpose::Close {
                        self.close_now(state);
                    } else {
                        self.go(state, Step::SyncTree);
                    }
                }
            }
            Step::SyncTree => {
                if state.sync_tree(self.run, self.at) {
                    self.go_for(state, Purpose::Record, Step::TakeL);
                } else {
                    self.go(state, Step::Mark);
                }
            }
            Step::Record => {
                if state.log.used() >= self.run.segment_frames {
                    if !state.sync_log(self.at) {
                        return self.go(state, Step::Mark);
                    }
                    let known = self.known(state).clone();
                    state.log.next_segment(&known);
                }
                let known = self.known(state);
                let is_late = !self.run.has(Rule::CoverBeforeSync);
                let watermark = if is_late { known.end - 1 } else { now.covered };
                let next_number = known.next_number;
                let by = process_instance(state, self.at);
                self.append(state, Record::Checkpoint { watermark, next_number, by });
                self.known(state).set_settled(watermark, by);
                self.now(state).covered = watermark;
                self.go(state, Step::SyncRecord);
            }
            Step::SyncRecord => {
                if state.sync_log(self.at) {
                    self.give_up_commit_lock(state);
                    self.go(state, Step::Discard);
                } else {
                    self.go(state, Step::Mark);
                }
            }
            Step::Discard => {
                if !discard(self.run, state, now.from + 1..=now.covered) {
                    self.go(state, Step::SyncSlots);
                }
            }
            Step::SyncSlots => {
                state.disk.sync_dirs(&[STAGE, QUARANTINE]);
                self.go_for(state, Purpose::Retire, Step::TakeL);
            }
            _ => {
                state.log.retire(now.covered);
                self.go(state, Step::Leave);
            }
        }
    }
}

pub(crate) fn process_instance(state: &State, at: usize) -> u8 {
    state.processes[at].instance
}

/// Removes one thing from the slots of the transactions with these LSNs. What no record
/// explains goes to quarantine. False if nothing is left.
pub(crate) fn discard(run: &Scenario, state: &mut State, lsns: RangeInclusive<Lsn>) -> bool {
    let committed: Vec<u8> =
        state.log.committed().into_iter().filter(|&tx| state.log.has_commit(tx, lsns.clone())).collect();
    let found = committed.iter().find_map(|&tx| {
        let mut names = run.names(tx).into_iter();
        names.find(|&name| state.disk.child(slot(tx, name)).is_some()).map(|name| (tx, name))
    });
    let Some((tx, name)) = found else { return false };
    discard_slot(run, state, tx, name);
    true
}

/// Compares what is in a slot with the record of its transaction, and unlinks it, or puts it into quarantine.
pub(crate) fn discard_slot(run: &Scenario, state: &mut State, tx: u8, name: u8) {
    let found = state.content_at(slot(tx, name));
    let originals = state.log.originals(tx);
    let was_logged = state.order.iter().any(|logged| logged.tx == tx);
    if originals.is_none() && was_logged && ![content(tx, name), EMPTY, NOTHING].contains(&found) {
        state.say("an original is unlinked that no record explains");
    }
    let is_known =
        |originals: [u8; 2]| [originals[usize::from(name)], content(tx, name), EMPTY].contains(&found);
    if originals.is_none_or(is_known) || !run.has(Rule::Compare) {
        state.disk.unlink(slot(tx, name));
    } else {
        let place = state.disk.free_name(QUARANTINE, 0);
        state.disk.rename(slot(tx, name), place);
    }
}
