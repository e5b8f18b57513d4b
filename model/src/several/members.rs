//! Joining and leaving.

use super::checkpoint::process_instance;
use super::commit::{Actor, who};
use super::{Life, Membership, Purpose, RECOVERY_SLOT, Rule, Stage, State, Step, Thread};
use crate::disk::STAGE;

impl State {
    /// What the kernel does when a process ends.
    pub(crate) fn end_process(&mut self, at: usize) {
        for thread in 0..2 {
            for lock in [&mut self.commit_lock, &mut self.checkpoint_lock] {
                if *lock == Some(who(at, thread)) {
                    *lock = None;
                }
            }
        }
        let count = self.processes.len() as u8;
        let process = &mut self.processes[at];
        process.life = Life::Gone;
        process.instance += count;
        (process.member, process.stage) = (Membership::None, Stage::None);
        (process.told_log, process.told_tree) = (false, false);
        (process.known, process.known_mark, process.joined) = (None, false, 0);
        if process.is_staged {
            // Nobody knows what became of it.
            (process.at, process.is_staged) = (process.at + 1, false);
        }
        (process.seen, process.staged_at) = ([0; 2], 0);
        process.threads = [Thread::REST; 2];
    }
}

impl Actor<'_> {
    pub(crate) fn start_opening(&self, state: &mut State) {
        state.processes[self.at].life = Life::Opening;
        if self.run.has(Rule::DescriptorFirst) {
            self.open_descriptors(state);
        }
        self.go_for(state, Purpose::Open, Step::TakeL);
    }

    fn open_descriptors(&self, state: &mut State) {
        let unseen = state.unseen;
        let process = &mut state.processes[self.at];
        (process.told_log, process.told_tree) = (unseen.log, unseen.tree);
    }

    pub(crate) fn member(&self, state: &mut State, step: Step) {
        match step {
            Step::Join => {
                let end = self.known(state).end;
                let process = &mut state.processes[self.at];
                (process.joined, process.member) = (end, Membership::Shared);
                if self.run.has(Rule::RewriteOnJoin) && !self.known(state).is_closed {
                    state.log.rewrite();
                    return self.go(state, Step::SyncJoin);
                }
                self.have_joined(state);
            }
            Step::SyncJoin => {
                if state.sync_log(self.at) {
                    if self.run.has(Rule::ReadAgain) && !self.read_anew(state) {
                        return;
                    }
                    if self.known(state).is_unfinished() {
                        self.give_up_commit_lock(state);
                        return self.go_for(state, Purpose::OpenWithBoth, Step::TakeC);
                    }
                    self.have_joined(state);
                } else {
                    self.go(state, Step::Mark);
                }
            }
            Step::MakeStage => {
                state.processes[self.at].stage = Stage::Made;
                self.go(state, Step::LockStage);
            }
            Step::LockStage => {
                state.processes[self.at].stage = Stage::Locked;
                self.are_open(state);
            }
            Step::OpenDescriptors => {
                self.open_descriptors(state);
                self.open_now(state);
            }
            Step::SyncClosed => {
                let step = if state.sync_log(self.at) { Step::Closed } else { Step::Mark };
                self.go(state, step);
            }
            _ => {
                let end = self.known(state).end;
                state.log.closed = Some(end - 1);
                self.remove_stage(state);
                self.go(state, Step::Leave);
            }
        }
    }

    fn have_joined(&self, state: &mut State) {
        if self.run.has(Rule::StageUnderLock) {
            state.processes[self.at].stage = Stage::Locked;
            self.are_open(state);
        } else {
            self.release(state);
            self.go(state, Step::MakeStage);
        }
    }

    fn release(&self, state: &mut State) {
        self.give_up_commit_lock(state);
        if self.holds_checkpoint_lock(state) {
            state.checkpoint_lock = None;
        }
    }

    fn are_open(&self, state: &mut State) {
        self.release(state);
        if !self.run.has(Rule::DescriptorFirst) {
            return self.go(state, Step::OpenDescriptors);
        }
        self.open_now(state);
    }

    fn open_now(&self, state: &mut State) {
        state.processes[self.at].life = Life::Open;
        *self.now(state) = Thread::REST;
    }

    pub(crate) fn start_closing(&self, state: &mut State) {
        state.processes[self.at].life = Life::Closing;
        self.go_for(state, Purpose::Close, Step::TakeC);
    }

    /// Under C and L.
    pub(crate) fn close(&self, state: &mut State) {
        let known = self.known(state).clone();
        if !known.unsettled.is_empty() {
            self.now(state).purpose = Purpose::Remember;
            return self.remember(state);
        }
        let is_anothers = known.settled_by != 0 && known.settled_by != process_instance(state, self.at);
        if is_anothers && self.run.has(Rule::DiscardBeforeLeaving) {
            return self.go(state, Step::Again);
        }
        self.close_now(state);
    }

    pub(crate) fn close_now(&self, state: &mut State) {
        let mut others = state.processes.iter().enumerate().filter(|(at, _)| *at != self.at);
        let is_alone = others.all(|(_, process)| process.member == Membership::None);
        if is_alone || !self.run.has(Rule::CloseAlone) {
            self.go(state, Step::SyncClosed);
        } else {
            self.remove_stage(state);
            self.go(state, Step::Leave);
        }
    }

    /// Nothing in it is looked at any more.
    fn remove_stage(&self, state: &mut State) {
        let instance = process_instance(state, self.at);
        for slot in state.slots() {
            if state.owner(slot) == instance {
                let was_logged = state.order.iter().any(|logged| logged.tx == slot / 2);
                if slot >= RECOVERY_SLOT || was_logged {
                    state.say("an original is unlinked uncompared by who leaves");
                }
                state.disk.unlink((STAGE, slot));
            }
        }
    }
}
