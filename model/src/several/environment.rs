//! What happens to the processes: beginnings, deaths, failed write-backs, edits by another program, power cuts.

use super::commit::Actor;
use super::{FOREIGN, Label, Life, Purpose, Scenario, State, Step, cell, original};
use crate::disk::{Disk, QUARANTINE, ROOT, STAGE};

type Next = Vec<(Label, State)>;

/// What a process that is at nothing may begin.
pub(crate) fn beginnings(run: &Scenario, state: &State) -> Next {
    let mut nexts = Next::new();
    for (at, process) in state.processes.iter().enumerate() {
        let actor = |thread| Actor { run, at, thread };
        let mut add = |label: &'static str, begin: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            begin(&mut next);
            nexts.push((Label::Process(at, label), next));
        };
        let is_at_rest = |thread: usize| process.threads[thread].step == Step::Rest;
        match process.life {
            Life::Absent => add("opens", &|next| actor(0).start_opening(next)),
            Life::Gone if state.budget.reopens > 0 => add("opens", &|next| {
                next.budget.reopens -= 1;
                actor(0).start_opening(next);
            }),
            Life::Open => {
                if is_at_rest(0) && usize::from(process.at) < run.scripts[at].len() {
                    add("begins and stages", &|next| actor(0).begin(next));
                } else if is_at_rest(0) && is_at_rest(1) && run.closes {
                    add("closes", &|next| actor(0).start_closing(next));
                }
                if is_at_rest(1) && process.checkpoints > 0 {
                    add("begins a checkpoint", &|next| {
                        next.processes[at].checkpoints -= 1;
                        actor(1).go_for(next, Purpose::Remember, Step::TakeC);
                    });
                }
            }
            _ => {}
        }
    }
    nexts
}

/// Everything else that may happen.
pub(crate) fn events(run: &Scenario, state: &State) -> Next {
    let mut nexts = Next::new();
    let mut add = |label: Label, happen: &dyn Fn(&mut State)| {
        let mut next = state.clone();
        happen(&mut next);
        nexts.push((label, next));
    };
    let budget = state.budget;
    for (at, process) in state.processes.iter().enumerate() {
        let is_living = matches!(process.life, Life::Opening | Life::Open | Life::Closing);
        if budget.deaths > 0 && is_living {
            add(Label::Process(at, "DIES"), &|next| {
                next.budget.deaths -= 1;
                next.end_process(at);
            });
        }
        if budget.stuck > 0 && matches!(process.threads[0].step, Step::Apply(0)) {
            add(Label::Process(at, "IS STUCK"), &|next| {
                next.budget.stuck -= 1;
                next.processes[at].threads[0].step = Step::Mark;
            });
        }
        if budget.stuck > 0 && matches!(process.threads[0].step, Step::Compare(0)) {
            add(Label::Process(at, "IS STUCK before it compares"), &|next| {
                next.budget.stuck -= 1;
                next.processes[at].threads[0].step = Step::Mark;
            });
        }
    }
    let tell = |next: &mut State, is_log: bool| {
        next.budget.failures -= 1;
        for process in next.processes.iter_mut().filter(|process| process.life != Life::Gone) {
            process.told_tree |= process.life != Life::Absent;
            process.told_log |= is_log && process.life != Life::Absent;
        }
        next.unseen.tree = true;
        next.unseen.log |= is_log;
    };
    if budget.failures > 0 && state.disk.is_dirty() {
        add(Label::Event("WRITE-BACK OF FILES FAILS"), &|next| {
            next.disk.lose();
            tell(next, false);
        });
    }
    if budget.failures > 0 && state.log.is_dirty() {
        add(Label::Event("WRITE-BACK OF THE LOG FAILS"), &|next| {
            next.log.lose();
            tell(next, true);
        });
    }
    if run.drops_log && state.log.has_lost() {
        add(Label::Event("THE LOG'S CACHE IS DROPPED"), &|next| next.log.drop_caches());
    }
    if budget.edits > 0 && !state.order.is_empty() {
        add(Label::Event("EDIT: another file at name 0"), &|next| {
            next.budget.edits -= 1;
            next.edited = Some(0);
            next.disk.replace_durably(cell(0), FOREIGN);
        });
        if let Some(place) = find(&state.disk, original(0)) {
            add(Label::Event("EDIT: a write into the original of name 0"), &|next| {
                next.budget.edits -= 1;
                next.edited = Some(0);
                next.disk.write_durably(place, FOREIGN);
            });
        }
    }
    if budget.cuts > 0 {
        for mut next in cuts(state) {
            next.budget.cuts -= 1;
            nexts.push((Label::Event("POWER CUT"), next));
        }
    }
    nexts
}

fn find(disk: &Disk, content: u8) -> Option<(u8, u8)> {
    [ROOT, STAGE, QUARANTINE].into_iter().find_map(|dir| {
        let mut children = disk.names.children(dir);
        children.find(|child| disk.node(child.1).content == content).map(|child| (dir, child.0))
    })
}

/// Every state in which a power cut may leave the machine. All processes may open the store again.
pub(crate) fn cuts(state: &State) -> Vec<State> {
    let mut dead = state.clone();
    for at in 0..dead.processes.len() {
        dead.end_process(at);
        dead.processes[at].life = Life::Absent;
    }
    (dead.mark, dead.unseen, dead.note) = (false, super::Unseen::default(), 0);
    let disks = state.disk.cuts();
    let logs = state.log.cuts();
    let pairs = disks.iter().flat_map(|disk| logs.iter().map(move |log| (disk, log)));
    pairs.map(|(disk, log)| State { disk: disk.clone(), log: log.clone(), ..dead.clone() }).collect()
}
