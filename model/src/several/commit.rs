//! Taking L, what is done first under it, and a commit.

use super::log::{Record, View};
use super::{
    Label, Life, Logged, Membership, Purpose, Repair, Rule, Scenario, State, Step, Thread, cell, content,
    slot,
};
use crate::disk::{EMPTY, QUARANTINE};

pub(crate) fn who(at: usize, thread: usize) -> u8 {
    (at * 2 + thread) as u8
}

/// The next step of a thread that is at something. None if it waits.
pub(crate) fn advance(run: &Scenario, state: &State, at: usize, thread: usize) -> Option<(Label, State)> {
    let now = state.processes[at].threads[thread];
    let waits = match now.step {
        Step::Rest => true,
        Step::TakeC => state.checkpoint_lock.is_some(),
        Step::TakeL => state.commit_lock.is_some(),
        _ => false,
    };
    if waits {
        return None;
    }
    let mut next = state.clone();
    let me = Actor { run, at, thread };
    match now.step {
        Step::TakeC => {
            next.checkpoint_lock = Some(who(at, thread));
            me.go(&mut next, Step::TakeL);
        }
        Step::TakeL => {
            next.commit_lock = Some(who(at, thread));
            me.go(&mut next, Step::Look);
        }
        Step::Look => me.look(&mut next),
        Step::Mark => me.mark(&mut next),
        Step::Leave => me.leave(&mut next),
        Step::Recover(repair) => me.repair(&mut next, repair),
        Step::Again
        | Step::SyncTree
        | Step::Record
        | Step::SyncRecord
        | Step::Discard
        | Step::SyncSlots
        | Step::Retire => me.checkpoint(&mut next, now),
        Step::Join
        | Step::SyncJoin
        | Step::MakeStage
        | Step::LockStage
        | Step::OpenDescriptors
        | Step::SyncClosed
        | Step::Closed => me.member(&mut next, now.step),
        _ => me.commit(&mut next, now.step),
    }
    Some((Label::Step(at, thread, now.step, now.purpose), next))
}

/// One thread of one process.
#[derive(Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub(crate) run: &'a Scenario,
    pub(crate) at: usize,
    pub(crate) thread: usize,
}

impl Actor<'_> {
    pub(crate) fn now<'s>(&self, state: &'s mut State) -> &'s mut Thread {
        &mut state.processes[self.at].threads[self.thread]
    }

    pub(crate) fn go(&self, state: &mut State, step: Step) {
        self.now(state).step = step;
    }

    pub(crate) fn go_for(&self, state: &mut State, purpose: Purpose, step: Step) {
        self.now(state).purpose = purpose;
        self.go(state, step);
    }

    pub(crate) fn holds_checkpoint_lock(&self, state: &State) -> bool {
        state.checkpoint_lock == Some(who(self.at, self.thread))
    }

    pub(crate) fn give_up_commit_lock(&self, state: &mut State) {
        if state.commit_lock == Some(who(self.at, self.thread)) {
            state.commit_lock = None;
        }
    }

    pub(crate) fn known<'s>(&self, state: &'s mut State) -> &'s mut View {
        state.processes[self.at].known.as_mut().expect("it has read the log")
    }

    pub(crate) fn append(&self, state: &mut State, record: Record) {
        if self.run.has(Rule::TakeBackClosed) && std::mem::take(&mut self.known(state).is_closed) {
            state.log.closed = None;
        }
        let State { log, processes, .. } = state;
        log.append(processes[self.at].known.as_mut().expect("it has read the log"), record);
    }

    /// Reads the log, from what is known on or anew. False if it is refused.
    pub(crate) fn read(&self, state: &mut State) -> bool {
        let view = match &state.processes[self.at].known {
            Some(known) => state.log.catch_up(known, self.run.has(Rule::ForgetUnsynced)),
            None => state.log.scan(),
        };
        match view {
            Ok(view) => {
                let process = &mut state.processes[self.at];
                process.known = Some(view);
                true
            }
            Err(refused) => {
                state.say(refused);
                false
            }
        }
    }

    pub(crate) fn read_anew(&self, state: &mut State) -> bool {
        state.processes[self.at].known = None;
        self.read(state)
    }

    fn is_alone(&self, state: &State) -> bool {
        let mut others = state.processes.iter().enumerate().filter(|(at, _)| *at != self.at);
        others.all(|(_, process)| process.member == Membership::None)
    }

    /// What is done first under L.
    fn look(&self, state: &mut State) {
        let purpose = self.now(state).purpose;
        let instance = state.processes[self.at].instance;
        let is_opener = matches!(purpose, Purpose::Open | Purpose::OpenWithBoth);
        if !is_opener && state.mark && self.run.has(Rule::LookForMark) {
            state.processes[self.at].known_mark = true;
            return self.refuse(state);
        }
        let process = &mut state.processes[self.at];
        if std::mem::take(&mut process.known_mark) {
            // Somebody has recovered.
            process.known = None;
        }
        let is_current = state.note == instance && process.known.is_some() && !is_opener;
        let reads = !is_current && (self.run.has(Rule::ReadOnNote) || process.known.is_none());
        state.note = instance;
        if reads && !self.read(state) {
            return;
        }
        let is_unfinished = self.known(state).is_unfinished() && self.run.has(Rule::TakeOver);
        match purpose {
            Purpose::Open => {
                let is_alone = self.is_alone(state);
                state.processes[self.at].member =
                    if is_alone { Membership::Exclusive } else { Membership::Shared };
                let is_left = if is_alone { !self.known(state).is_closed } else { is_unfinished };
                if !state.mark && !is_left {
                    self.go(state, Step::Join);
                } else if is_alone || !self.run.has(Rule::BothLocks) {
                    self.go(state, Step::Recover(Repair::Rewrite));
                } else {
                    self.give_up_commit_lock(state);
                    self.go_for(state, Purpose::OpenWithBoth, Step::TakeC);
                }
            }
            Purpose::OpenWithBoth => {
                let is_needed = state.mark || is_unfinished;
                self.go(state, if is_needed { Step::Recover(Repair::Rewrite) } else { Step::Join });
            }
            _ if is_unfinished => {
                if self.holds_checkpoint_lock(state) || !self.run.has(Rule::BothLocks) {
                    self.go(state, Step::Recover(Repair::Rewrite));
                } else {
                    self.give_up_commit_lock(state);
                    self.go(state, Step::TakeC);
                }
            }
            _ => self.go_on(state, purpose),
        }
    }

    /// The store is as it should be: goes on with what L was taken for.
    pub(crate) fn go_on(&self, state: &mut State, purpose: Purpose) {
        match purpose {
            Purpose::Commit => {
                // Recovery took C as well.
                if self.holds_checkpoint_lock(state) {
                    state.checkpoint_lock = None;
                }
                self.go(state, Step::Check);
            }
            Purpose::Remember => self.remember(state),
            Purpose::Record => self.go(state, Step::Record),
            Purpose::Retire => self.go(state, Step::Retire),
            Purpose::Close => self.close(state),
            Purpose::Open | Purpose::OpenWithBoth => self.go(state, Step::Join),
        }
    }

    /// The store is poisoned.
    fn refuse(&self, state: &mut State) {
        let purpose = self.now(state).purpose;
        if purpose == Purpose::Commit {
            self.abandon(state);
        }
        self.go(state, Step::Leave);
    }

    fn abandon(&self, state: &mut State) {
        let tx = self.tx(state);
        for name in self.run.names(tx) {
            state.disk.unlink(slot(tx, name));
        }
        self.next_transaction(state);
    }

    fn next_transaction(&self, state: &mut State) {
        let process = &mut state.processes[self.at];
        (process.at, process.is_staged) = (process.at + 1, false);
        (process.seen, process.staged_at) = ([0; 2], 0);
    }

    fn tx(&self, state: &State) -> u8 {
        self.run.scripts[self.at][usize::from(state.processes[self.at].at)]
    }

    /// An error that nothing may follow.
    fn mark(&self, state: &mut State) {
        if self.run.has(Rule::Mark) {
            state.mark = true;
            state.processes[self.at].known_mark = true;
        }
        if self.now(state).purpose == Purpose::Commit && state.processes[self.at].is_staged {
            self.next_transaction(state);
        }
        self.go(state, Step::Leave);
    }

    fn leave(&self, state: &mut State) {
        self.give_up_commit_lock(state);
        if self.holds_checkpoint_lock(state) {
            state.checkpoint_lock = None;
        }
        let purpose = self.now(state).purpose;
        *self.now(state) = Thread::REST;
        let process = &mut state.processes[self.at];
        if process.life == Life::Opening {
            // What failed while opening closes everything.
            state.end_process(self.at);
            state.processes[self.at].life = Life::Absent;
        } else if process.life == Life::Closing && purpose != Purpose::Close && !process.known_mark {
            self.go_for(state, Purpose::Close, Step::TakeC);
        } else if process.life == Life::Closing {
            state.end_process(self.at);
        }
    }

    /// Stages the next transaction, without a lock.
    pub(crate) fn begin(&self, state: &mut State) {
        let tx = self.tx(state);
        let process = &state.processes[self.at];
        let (instance, staged_at) = (process.instance, process.known.as_ref().map_or(0, |known| known.end));
        state.staged_by[usize::from(tx)] = instance;
        for name in self.run.names(tx) {
            state.processes[self.at].seen[usize::from(name)] = state.content_at(cell(name));
            state.disk.stage(slot(tx, name), content(tx, name));
        }
        let process = &mut state.processes[self.at];
        (process.is_staged, process.staged_at) = (true, staged_at);
        self.go_for(state, Purpose::Commit, Step::TakeL);
    }

    fn commit(&self, state: &mut State, step: Step) {
        let tx = self.tx(state);
        let names = self.run.names(tx);
        match step {
            Step::Check => {
                let seen = state.processes[self.at].seen;
                let is_same =
                    names.iter().all(|&name| state.content_at(cell(name)) == seen[usize::from(name)]);
                if names.iter().any(|&name| state.disk.child(slot(tx, name)).is_none()) {
                    state.say("a staged file of a living process was swept");
                } else if is_same || !self.run.has(Rule::CheckUnderLock) {
                    let is_full = state.log.used() >= self.run.segment_frames;
                    self.go(state, if is_full { Step::Rotate } else { Step::Body });
                } else {
                    self.abandon(state);
                    self.go(state, Step::Leave);
                }
            }
            Step::Rotate => {
                let step = if state.sync_log(self.at) { Step::Body } else { Step::Mark };
                if step == Step::Body {
                    let known = self.known(state).clone();
                    state.log.next_segment(&known);
                }
                self.go(state, step);
            }
            Step::Body => {
                let process = &state.processes[self.at];
                let (originals, staged_at) = (process.seen, process.staged_at);
                let number = self.known(state).next_number;
                self.known(state).next_number = number + 1;
                state.order.push(Logged { tx, number, seen: originals });
                self.append(state, Record::Body { tx, number, originals, staged_at });
                self.go(state, Step::Commit);
            }
            Step::Commit => {
                self.append(state, Record::Commit { tx });
                let staged_at = state.processes[self.at].staged_at;
                let known = self.known(state);
                known.unsettled.push(super::log::Committed { tx, lsn: known.end - 1, staged_at });
                self.go(state, Step::Sync);
            }
            Step::Sync => {
                if state.sync_log(self.at) {
                    let number_of =
                        |tx| state.order.iter().find(|logged| logged.tx == tx).map(|logged| logged.number);
                    let mut others =
                        state.order.iter().filter(|logged| state.acknowledged >> logged.tx & 1 == 1);
                    if others.any(|logged| number_of(tx) == Some(logged.number)) {
                        state.say("two transactions have one number");
                    }
                    state.acknowledged |= 1 << tx;
                    self.go(state, Step::Apply(0));
                } else {
                    self.go(state, Step::Mark);
                }
            }
            Step::Apply(index) => match names.get(usize::from(index)) {
                Some(&name) => {
                    if ![content(tx, name), EMPTY].contains(&state.content_at(slot(tx, name))) {
                        state.say("a slot is applied twice");
                    }
                    state.disk.put(slot(tx, name), cell(name));
                    self.go(state, Step::Compare(index));
                }
                None => self.go(state, Step::Applied),
            },
            Step::Compare(index) => {
                let name = names[usize::from(index)];
                let seen = state.processes[self.at].seen[usize::from(name)];
                if state.content_at(slot(tx, name)) != seen {
                    let place = state.disk.free_name(QUARANTINE, 0);
                    state.disk.rename(slot(tx, name), place);
                }
                self.go(state, Step::Apply(index + 1));
            }
            _ => {
                let known = self.known(state);
                let up_to = known.end - 1;
                self.append(state, Record::Applied { up_to });
                self.known(state).set_applied(up_to);
                self.next_transaction(state);
                self.go(state, Step::Leave);
            }
        }
    }
}
