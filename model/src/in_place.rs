//! Walks every state of a third small model: of patches that are written inside an inode, beside files that are replaced.
//!
//! One name and one file of two sectors; up to two transactions, each of which patches both sectors in place or replaces the
//! file; a checkpoint in the background; kills, kills after a write-back that failed, and every power cut, up to two of
//! them; and one edit by another program at any moment: in a sector, synced or not, or another file in the place of this
//! one. A sector is written whole, or keeps what the disk had. What decides and what acts on it are one step.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// The rules that can be left out, to see what breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The file is synced before a patch of it is logged: else a cut shows what was there before the bytes before.
    SyncFileBeforeLog,
    /// What is patched is compared with the bytes before.
    Check,
    /// Before a patch is logged, what is unsettled at its name is settled.
    SettleBefore,
    /// Before anything at the name of an unsettled patch is logged, that is settled.
    SettleAfter,
    /// Nothing is written, at commit, into another inode than the one that was checked.
    IdentityAtApply,
    /// Nor in recovery.
    IdentityInRecovery,
    /// A checkpoint syncs before its record.
    SyncBeforeRecord,
    /// Accepted records are written again and synced before recovery acts.
    WriteRecordsAgain,
    /// A sector that reads as the bytes after is written all the same: what the cache shows proves nothing.
    AlwaysWrite,
    /// Where the system lets us, what is clean is read from the disk: else an edit could stay that only the cache has.
    DropCache,
    /// A sector that is neither before nor after is kept before it is written over.
    KeepForeign,
    /// And is durable there before.
    KeepForeignDurably,
    /// What came after the apply stays, and the bytes after are kept elsewhere.
    NewerStays,
}

const RULES: [Rule; 13] = [
    Rule::SyncFileBeforeLog,
    Rule::Check,
    Rule::SettleBefore,
    Rule::SettleAfter,
    Rule::IdentityAtApply,
    Rule::IdentityInRecovery,
    Rule::SyncBeforeRecord,
    Rule::WriteRecordsAgain,
    Rule::AlwaysWrite,
    Rule::DropCache,
    Rule::KeepForeign,
    Rule::KeepForeignDurably,
    Rule::NewerStays,
];

const SECTORS: usize = 2;
type Content = [u8; SECTORS];

/// The file that stands there, the one that a transaction stages, the other program's, and those of recoveries.
const FILE: u8 = 0;
const STAGED: u8 = 1;
const THEIRS: u8 = 2;
const FRESH: [u8; 2] = [3, 4];
const FILES: usize = 5;

const OLDER: Content = [1, 2];
const START: Content = [3, 4];
const FOREIGN: u8 = 99;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Patch(Content),
    Write(Content),
}

impl Operation {
    fn after(self) -> Content {
        let (Self::Patch(after) | Self::Write(after)) = self;
        after
    }
}

struct Run {
    name: &'static str,
    script: &'static [Operation],
    /// Whether what the file holds at first is on the disk.
    is_synced: bool,
    /// Whether the cache can't be dropped.
    is_pinned: bool,
    edits: bool,
    crashes: u8,
    omitted: Option<Rule>,
}

impl Run {
    fn has(&self, rule: Rule) -> bool {
        self.omitted != Some(rule)
    }
}

/// What stands at the name, and in the slot.
type Names = (u8, Option<u8>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    cached: [Content; FILES],
    durable: [Content; FILES],
    /// A write-back failed: what the cache shows counts as clean, and the disk doesn't have it.
    lost: [[bool; SECTORS]; FILES],
    /// As they are on the disk, and after each change since.
    names: Vec<Names>,
    /// What is kept of others, and of what gave way to others: a content, and whether it is on the disk.
    quarantine: Vec<(u8, bool)>,
}

impl Disk {
    fn name(&self) -> u8 {
        self.names[self.names.len() - 1].0
    }

    fn slot(&self) -> Option<u8> {
        self.names[self.names.len() - 1].1
    }

    fn here(&self) -> Content {
        self.cached[usize::from(self.name())]
    }

    fn write(&mut self, inode: u8, sector: usize, value: u8) {
        self.cached[usize::from(inode)][sector] = value;
        self.lost[usize::from(inode)][sector] = false;
    }

    fn exchange(&mut self) {
        let (name, slot) = (self.name(), self.slot());
        self.names.push((slot.expect("something is staged"), Some(name)));
    }

    fn sync_file(&mut self, inode: u8) {
        let inode = usize::from(inode);
        for sector in 0..SECTORS {
            if !self.lost[inode][sector] {
                self.durable[inode][sector] = self.cached[inode][sector];
            }
        }
    }

    fn sync(&mut self) {
        (0..FILES as u8).for_each(|inode| self.sync_file(inode));
        self.names = vec![self.names[self.names.len() - 1]];
        self.quarantine.iter_mut().for_each(|kept| kept.1 = true);
    }

    fn keep(&mut self, value: u8, durably: bool) {
        match self.quarantine.iter_mut().find(|kept| kept.0 == value) {
            Some(kept) => kept.1 |= durably,
            None => self.quarantine.push((value, durably)),
        }
    }

    /// What is dirty is lost, and counts as clean.
    fn lose(&mut self) {
        for inode in 0..FILES {
            for sector in 0..SECTORS {
                self.lost[inode][sector] |= self.cached[inode][sector] != self.durable[inode][sector];
            }
        }
    }

    /// What is clean is shown as the disk has it.
    fn drop_cache(&mut self) {
        for inode in 0..FILES {
            for sector in 0..SECTORS {
                if std::mem::take(&mut self.lost[inode][sector]) {
                    self.cached[inode][sector] = self.durable[inode][sector];
                }
            }
        }
    }

    /// Every state in which a power cut may leave the disk.
    fn cuts(&self) -> Vec<Self> {
        let mut cuts: Vec<Self> = Vec::new();
        for names in &self.names {
            cuts.push(Self { names: vec![*names], ..self.clone() });
        }
        for inode in 0..FILES {
            for sector in 0..SECTORS {
                let old = self.durable[inode][sector];
                if self.cached[inode][sector] == old {
                    continue;
                }
                let with_old = cuts.clone().into_iter().map(|mut cut| {
                    cut.cached[inode][sector] = old;
                    cut
                });
                cuts = if self.lost[inode][sector] {
                    with_old.collect()
                } else {
                    cuts.iter().cloned().chain(with_old).collect()
                };
            }
        }
        for (value, is_durable) in &self.quarantine {
            if !is_durable {
                let without = cuts.clone().into_iter().map(|mut cut| {
                    cut.quarantine.retain(|kept| kept.0 != *value);
                    cut
                });
                cuts = cuts.iter().cloned().chain(without).collect();
            }
        }
        for cut in &mut cuts {
            (cut.durable, cut.lost) = (cut.cached, Default::default());
            cut.quarantine.iter_mut().for_each(|kept| kept.1 = true);
        }
        cuts
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Record {
    Commit(u8),
    Applied(u8),
    Settled(u8),
}

/// What a transaction saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    inode: u8,
    before: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Commit {
    Begin,
    Sync,
    Log,
    SyncLog,
    Apply(u8),
    Note,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Checkpoint {
    Idle,
    Sync,
    Record,
    SyncLog,
    Discard,
    Retire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Recovery {
    Off,
    WriteAgain,
    Sync,
    Sector(u8),
    Checkpoint,
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Edit {
    None,
    Sector(u8),
    Replaced,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    disk: Disk,
    log: Vec<Record>,
    synced: usize,
    seen: Vec<Seen>,
    at: u8,
    commit: Commit,
    checkpoint: Checkpoint,
    covered: u8,
    settled: u8,
    recovery: Recovery,
    crashes: u8,
    acknowledged: u8,
    edit: Edit,
    /// The edit came when this many transactions were known to be applied.
    edited_after: u8,
    /// The edit came between a check and the end of its apply.
    is_edit_late: bool,
    /// The edit is nobody's loss: its program never synced it, or an apply that had begun wrote over it.
    is_edit_gone: bool,
}

impl State {
    fn new(run: &Run) -> Self {
        let mut cached = [[0; SECTORS]; FILES];
        cached[usize::from(FILE)] = START;
        let mut durable = cached;
        if !run.is_synced {
            durable[usize::from(FILE)] = OLDER;
        }
        let names = vec![(FILE, None)];
        Self {
            disk: Disk { cached, durable, lost: Default::default(), names, quarantine: Vec::new() },
            log: Vec::new(),
            synced: 0,
            seen: Vec::new(),
            at: 0,
            commit: Commit::Begin,
            checkpoint: Checkpoint::Idle,
            covered: 0,
            settled: 0,
            recovery: Recovery::Off,
            crashes: 0,
            acknowledged: 0,
            edit: Edit::None,
            edited_after: 0,
            is_edit_late: false,
            is_edit_gone: false,
        }
    }

    fn is_complete(&self) -> bool {
        let is_idle = self.commit == Commit::Ended && self.checkpoint == Checkpoint::Idle;
        is_idle
            && (self.recovery == Recovery::Complete || self.recovery == Recovery::Off && self.log.is_empty())
    }

    fn applied(&self) -> u8 {
        let of = |record: &Record| if let Record::Applied(count) = record { *count } else { 0 };
        self.log.iter().map(of).max().unwrap_or(0)
    }

    fn watermark(&self) -> u8 {
        let of = |record: &Record| if let Record::Settled(count) = record { *count } else { 0 };
        self.log.iter().map(of).max().unwrap_or(0)
    }

    fn committed(&self) -> u8 {
        let of = |record: &Record| if let Record::Commit(at) = record { at + 1 } else { 0 };
        self.log.iter().map(of).max().unwrap_or(0)
    }
}

fn commit(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let at = state.at;
    let operation = run.script.get(usize::from(at)).copied();
    let step = match state.commit {
        Commit::Begin => {
            let Some(operation) = operation else {
                next.commit = Commit::Ended;
                return Some(("no more transactions", next));
            };
            let is_patch = matches!(operation, Operation::Patch(_));
            let is_after_patch = (state.settled..at)
                .any(|earlier| matches!(run.script[usize::from(earlier)], Operation::Patch(_)));
            let waits = state.settled < at
                && (is_patch && run.has(Rule::SettleBefore) || is_after_patch && run.has(Rule::SettleAfter));
            if waits {
                return None;
            }
            let before = state.disk.here();
            // What it saw it may replace.
            next.is_edit_gone |= before.contains(&FOREIGN);
            next.seen.push(Seen { inode: state.disk.name(), before });
            next.commit = Commit::Sync;
            "begin"
        }
        Commit::Sync => {
            match operation? {
                Operation::Patch(_) if run.has(Rule::SyncFileBeforeLog) => {
                    next.disk.sync_file(state.seen[usize::from(at)].inode);
                }
                Operation::Patch(_) => {}
                Operation::Write(after) => {
                    next.disk.cached[usize::from(STAGED)] = after;
                    let last = next.disk.names.len() - 1;
                    next.disk.names[last].1 = Some(STAGED);
                }
            }
            next.commit = Commit::Log;
            "stage, or sync what is patched"
        }
        Commit::Log => {
            let seen = state.seen[usize::from(at)];
            let is_same = (state.disk.name(), state.disk.here()) == (seen.inode, seen.before);
            if !is_same && run.has(Rule::Check) {
                (next.commit, next.seen) = (Commit::Ended, state.seen[..usize::from(at)].to_vec());
                if next.disk.slot() == Some(STAGED) {
                    let last = next.disk.names.len() - 1;
                    next.disk.names[last].1 = None;
                }
                return Some(("conflict", next));
            }
            next.log.push(Record::Commit(at));
            next.commit = Commit::SyncLog;
            "check and log"
        }
        Commit::SyncLog => {
            next.synced = next.log.len();
            next.acknowledged = at + 1;
            next.commit = Commit::Apply(0);
            "sync the log: the commit point"
        }
        Commit::Apply(sector) => {
            match operation? {
                Operation::Patch(after) => {
                    let inode = state.disk.name();
                    let seen = state.seen[usize::from(at)];
                    let sector_at = usize::from(sector);
                    if inode == seen.inode || !run.has(Rule::IdentityAtApply) {
                        let found = state.disk.cached[usize::from(inode)][sector_at];
                        // A file in another's place is never written over; a sector may be, after the check.
                        let is_sector = found == FOREIGN && matches!(state.edit, Edit::Sector(_));
                        next.is_edit_gone |= is_sector && state.is_edit_late;
                        next.disk.write(inode, sector_at, after[sector_at]);
                    }
                    let is_last = sector_at + 1 == SECTORS;
                    next.commit = if is_last { Commit::Note } else { Commit::Apply(sector + 1) };
                }
                Operation::Write(_) => {
                    next.disk.exchange();
                    let seen = state.seen[usize::from(at)];
                    let out = next.disk.slot().expect("it was exchanged");
                    let content = next.disk.cached[usize::from(out)];
                    if content != seen.before {
                        content.into_iter().for_each(|value| next.disk.keep(value, false));
                    }
                    next.commit = Commit::Note;
                }
            }
            "apply"
        }
        Commit::Note => {
            next.log.push(Record::Applied(at + 1));
            (next.commit, next.at) = (Commit::Begin, at + 1);
            "note that it is applied"
        }
        Commit::Ended => return None,
    };
    Some((step, next))
}

fn checkpoint(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let is_recovery = state.recovery != Recovery::Off;
    let (step, checkpoint) = match state.checkpoint {
        Checkpoint::Idle => {
            if state.at <= state.settled || is_recovery {
                return None;
            }
            next.covered = state.at;
            ("checkpoint starts", Checkpoint::Sync)
        }
        Checkpoint::Sync => {
            if run.has(Rule::SyncBeforeRecord) {
                next.disk.sync();
            }
            ("sync the tree", Checkpoint::Record)
        }
        Checkpoint::Record => {
            next.log.push(Record::Settled(state.covered));
            ("checkpoint record", Checkpoint::SyncLog)
        }
        Checkpoint::SyncLog => {
            next.synced = next.log.len();
            next.settled = state.covered;
            ("sync the checkpoint record", Checkpoint::Discard)
        }
        Checkpoint::Discard => {
            let is_write = |operation: &Operation| matches!(operation, Operation::Write(_));
            let write = run.script.iter().position(is_write);
            let is_covered = is_recovery || write.is_some_and(|at| at < usize::from(state.covered));
            if let Some(out) = state.disk.slot().filter(|_| is_covered) {
                let content = state.disk.cached[usize::from(out)];
                let is_known = state.seen.iter().any(|seen| seen.before == content)
                    || run.script.iter().any(|operation| operation.after() == content)
                    || out == STAGED
                    || FRESH.contains(&out);
                if !is_known {
                    content.into_iter().for_each(|value| next.disk.keep(value, false));
                }
                let name = state.disk.name();
                next.disk.names.push((name, None));
            }
            next.disk.sync();
            ("discard", Checkpoint::Retire)
        }
        Checkpoint::Retire => {
            if state.committed() <= state.covered {
                next.log.clear();
                next.synced = 0;
            }
            if is_recovery {
                next.recovery = Recovery::Complete;
            }
            ("retire", Checkpoint::Idle)
        }
    };
    next.checkpoint = checkpoint;
    Some((step, next))
}

fn recover(run: &Run, state: &State) -> Option<(&'static str, State)> {
    let mut next = state.clone();
    let last = state.committed().checked_sub(1).filter(|last| *last >= state.watermark());
    let step = match state.recovery {
        Recovery::Off | Recovery::Complete => return None,
        Recovery::WriteAgain => {
            if run.has(Rule::WriteRecordsAgain) {
                next.synced = next.log.len();
            }
            next.recovery = Recovery::Sync;
            "write the records again"
        }
        Recovery::Sync => {
            next.disk.sync();
            if !run.is_pinned && run.has(Rule::DropCache) {
                next.disk.drop_cache();
                // What its program never synced was lost before.
                next.is_edit_gone |= next.edit != Edit::None && !is_edit_there(&next.disk);
            }
            next.recovery = Recovery::Sector(0);
            "sync the tree before repair"
        }
        Recovery::Sector(sector) => {
            let is_done = match last.map(|last| (last, run.script[usize::from(last)])) {
                None => true,
                Some((last, Operation::Patch(after))) => {
                    let is_done = !repair_sector(run, state, &mut next.disk, last, after, sector);
                    if is_done && usize::from(sector) + 1 < SECTORS {
                        next.recovery = Recovery::Sector(sector + 1);
                        return Some(("repair a sector", next));
                    }
                    is_done
                }
                Some((last, Operation::Write(after))) => !repair_file(state, &mut next.disk, last, after),
            };
            if is_done {
                next.recovery = Recovery::Checkpoint;
                next.covered = state.watermark().max(state.committed());
                next.checkpoint = Checkpoint::Sync;
            }
            "repair"
        }
        Recovery::Checkpoint => return checkpoint(run, state),
    };
    Some((step, next))
}

/// Brings a sector of the last transaction nearer to what it shall be. False if it is, or there is no way.
fn repair_sector(run: &Run, state: &State, disk: &mut Disk, last: u8, after: Content, sector: u8) -> bool {
    let (at, seen) = (usize::from(sector), state.seen[usize::from(last)]);
    let inode = disk.name();
    if inode != seen.inode && run.has(Rule::IdentityInRecovery) {
        disk.keep(after[at], true);
        return false;
    }
    let found = disk.cached[usize::from(inode)][at];
    let is_ours = found == after[at] || found == seen.before[at];
    if !is_ours && state.applied() > last && run.has(Rule::NewerStays) {
        disk.keep(after[at], true);
        return false;
    }
    if !is_ours && run.has(Rule::KeepForeign) && !disk.quarantine.iter().any(|kept| kept.0 == found) {
        disk.keep(found, run.has(Rule::KeepForeignDurably));
        return true;
    }
    if found != after[at] || run.has(Rule::AlwaysWrite) {
        disk.write(inode, at, after[at]);
    }
    false
}

/// The same for a file that is replaced: always by a fresh one.
fn repair_file(state: &State, disk: &mut Disk, last: u8, after: Content) -> bool {
    let seen = state.seen[usize::from(last)];
    let here = disk.here();
    let is_goal = here == after && !disk.lost[usize::from(disk.name())].contains(&true);
    if is_goal {
        return false;
    }
    let is_torn =
        |whole: Content| (0..SECTORS).all(|sector| here[sector] == whole[sector] || here[sector] == 0);
    let knows = |content: Content| state.seen.iter().any(|seen| seen.before == content);
    let is_ours = is_torn(after) || knows(here);
    let is_applied = disk.slot().is_some_and(|slot| disk.cached[usize::from(slot)] == seen.before);
    if !is_ours && is_applied {
        after.iter().for_each(|value| disk.keep(*value, true));
        return false;
    }
    if !is_ours {
        here.into_iter().for_each(|value| disk.keep(value, true));
    }
    let name = disk.name();
    let fresh = FRESH[usize::from(name == FRESH[0])];
    (0..SECTORS).for_each(|sector| disk.write(fresh, sector, after[sector]));
    disk.names.push((fresh, Some(name)));
    true
}

fn crash(state: &State, disk: Disk, records: usize) -> State {
    let mut next = State { disk, ..state.clone() };
    next.log.truncate(records);
    next.synced = next.synced.min(records);
    (next.commit, next.checkpoint, next.recovery) = (Commit::Ended, Checkpoint::Idle, Recovery::WriteAgain);
    next.crashes += 1;
    next.edited_after = next.edited_after.min(next.applied().max(next.watermark()));
    // Only what its program did not sync may be lost in a cut.
    next.is_edit_gone |= next.edit != Edit::None && !is_edit_there(&next.disk) && is_edit_unsynced(state);
    next
}

fn is_edit_there(disk: &Disk) -> bool {
    disk.here().contains(&FOREIGN)
        || disk.slot().is_some_and(|slot| disk.cached[usize::from(slot)].contains(&FOREIGN))
        || disk.quarantine.iter().any(|kept| kept.0 == FOREIGN)
}

fn is_edit_unsynced(state: &State) -> bool {
    let is_durable = state.disk.durable.iter().any(|content| content.contains(&FOREIGN))
        || state.disk.quarantine.contains(&(FOREIGN, true));
    !is_durable
}

fn successors(run: &Run, state: &State) -> Vec<(&'static str, State)> {
    let mut next = Vec::new();
    if state.recovery == Recovery::Off {
        next.extend(commit(run, state));
        next.extend(checkpoint(run, state));
    } else {
        next.extend(recover(run, state));
    }
    // What becomes of edits beside files that are replaced is another model's question.
    let is_write = |operation: &Operation| matches!(operation, Operation::Write(_));
    let has_write = run.script[usize::from(state.settled)..state.seen.len()].iter().any(is_write);
    if run.edits && state.edit == Edit::None && !state.is_complete() && !has_write {
        let is_late = matches!(state.commit, Commit::SyncLog | Commit::Apply(_));
        let edit = |mut edited: State, edit: Edit| {
            edited.edited_after = state.applied().max(state.settled);
            State { edit, is_edit_late: is_late, ..edited }
        };
        for sector in 0..SECTORS as u8 {
            for is_synced in [false, true] {
                let mut edited = state.clone();
                let inode = edited.disk.name();
                edited.disk.write(inode, usize::from(sector), FOREIGN);
                if is_synced {
                    edited.disk.sync_file(inode);
                }
                next.push(("EDIT: write a sector", edit(edited, Edit::Sector(sector))));
            }
        }
        let mut edited = state.clone();
        let theirs = usize::from(THEIRS);
        (edited.disk.cached[theirs], edited.disk.durable[theirs]) = ([FOREIGN; SECTORS], [FOREIGN; SECTORS]);
        let slot = edited.disk.slot();
        edited.disk.names = vec![(THEIRS, slot)];
        next.push(("EDIT: replace the file", edit(edited, Edit::Replaced)));
    }
    if state.crashes < run.crashes && !state.is_complete() {
        next.push(("KILL", crash(state, state.disk.clone(), state.log.len())));
        // An edit that was never synced, and that the cache alone has for good, is taken for one that stays.
        if !(run.is_pinned && run.edits) {
            let mut lost = state.disk.clone();
            lost.lose();
            next.push(("A WRITE-BACK FAILS, AND A KILL", crash(state, lost, state.log.len())));
        }
        for disk in state.disk.cuts() {
            for records in state.synced..=state.log.len() {
                next.push(("POWER CUT", crash(state, disk.clone(), records)));
            }
        }
    }
    next
}

/// What is wrong with a state in which all is done.
fn violation(run: &Run, state: &State) -> Option<String> {
    let disk = &state.disk;
    let here = disk.here();
    let expected = |count: u8| match count {
        0 => START,
        count => run.script[usize::from(count) - 1].after(),
    };
    let is_edit = |value: u8| value == FOREIGN && state.edit != Edit::None;
    let is_whole = |content: Content| {
        (0..SECTORS).all(|sector| here[sector] == content[sector] || is_edit(here[sector]))
    };
    // What nobody had synced may be lost before the first commit.
    let may_be_old = state.acknowledged == 0 && !run.is_synced;
    let counts = state.acknowledged..=run.script.len() as u8;
    if !may_be_old && !counts.clone().any(|count| is_whole(expected(count))) {
        return Some(format!("not whole: {here:?}, {} acknowledged", state.acknowledged));
    }
    let kept = |value: u8| disk.quarantine.iter().any(|kept| kept.0 == value);
    let is_in_tree = here.contains(&FOREIGN);
    if state.edit != Edit::None && !state.is_edit_gone && !is_in_tree && !kept(FOREIGN) {
        return Some("the edit is lost".to_owned());
    }
    if state.edit == Edit::Replaced
        && disk.name() == THEIRS
        && here != [FOREIGN; SECTORS]
        && !state.is_edit_gone
    {
        return Some("another's file was written into".to_owned());
    }
    let is_newest = state.edited_after >= run.script.len() as u8 && !state.is_edit_gone;
    if state.edit != Edit::None && is_newest && !is_in_tree {
        return Some("a newer edit gave way".to_owned());
    }
    // A file that is replaced is not synced before: what is older than what was seen is somebody's.
    let has_write = run.script.iter().any(|operation| matches!(operation, Operation::Write(_)));
    if state.edit == Edit::None && !disk.quarantine.is_empty() && (run.is_synced || !has_write) {
        return Some("quarantine without an edit".to_owned());
    }
    let name = usize::from(disk.name());
    let is_durable = (0..SECTORS).all(|sector| {
        disk.cached[name][sector] == disk.durable[name][sector] || is_edit(here[sector]) || may_be_old
    });
    if !is_durable {
        return Some("not durable in the end".to_owned());
    }
    None
}

fn explore(run: &Run) -> (usize, usize, Option<(String, Vec<&'static str>)>) {
    let start = State::new(run);
    let mut parents: Vec<(usize, &'static str)> = vec![(0, "start")];
    let mut seen: HashMap<State, usize> = HashMap::from([(start.clone(), 0)]);
    let mut queue = VecDeque::from([(0, start)]);
    let mut ends = 0;
    while let Some((index, state)) = queue.pop_front() {
        let problem = if state.is_complete() {
            ends += 1;
            violation(run, &state)
        } else {
            let next = successors(run, &state);
            let is_stuck = next.is_empty();
            for (step, next) in next {
                if !seen.contains_key(&next) {
                    seen.insert(next.clone(), parents.len());
                    queue.push_back((parents.len(), next));
                    parents.push((index, step));
                }
            }
            is_stuck.then(|| "stuck".to_owned())
        };
        if let Some(problem) = problem {
            let mut steps = Vec::new();
            let mut at = index;
            while at > 0 {
                steps.push(parents[at].1);
                at = parents[at].0;
            }
            steps.reverse();
            return (parents.len(), ends, Some((problem, steps)));
        }
    }
    (parents.len(), ends, None)
}

const PATCH: Operation = Operation::Patch([11, 12]);
const PATCH_AGAIN: Operation = Operation::Patch([21, 22]);
const WRITE: Operation = Operation::Write([31, 32]);

fn runs(crashes: u8, omitted: Option<Rule>) -> Vec<Run> {
    let scripts: [(&'static str, &'static [Operation]); 5] = [
        ("a patch", &[PATCH]),
        ("two patches", &[PATCH, PATCH_AGAIN]),
        ("a patch, a write", &[PATCH, WRITE]),
        ("a write, a patch", &[WRITE, PATCH]),
        ("a write", &[WRITE]),
    ];
    let mut runs = Vec::new();
    for (name, script) in scripts {
        for is_synced in [true, false] {
            for is_pinned in [false, true] {
                for edits in [false, true] {
                    let crashes = if edits && script.len() > 1 { 1 } else { crashes };
                    runs.push(Run { name, script, is_synced, is_pinned, edits, crashes, omitted });
                }
            }
        }
    }
    runs
}

/// Walks all of it, then leaves out one rule at a time.
pub(crate) fn report() {
    for run in runs(2, None) {
        let start = Instant::now();
        let (states, ends, violation) = explore(&run);
        let outcome = if violation.is_none() { "holds" } else { "VIOLATED" };
        let seconds = start.elapsed().as_secs_f32();
        let Run { name, is_synced, is_pinned, edits, crashes, .. } = run;
        println!(
            "{name}, {crashes} crashes, synced {is_synced}, pinned {is_pinned}, edits {edits}: {states} states, {ends} ends, {seconds:.1} s: {outcome}"
        );
        show(violation);
    }
    for rule in RULES {
        match without(rule) {
            Some((name, violation)) => {
                println!("without {rule:?}: VIOLATED in {name}");
                show(Some(violation));
            }
            None => println!("without {rule:?}: holds in what is covered"),
        }
    }
}

fn show(violation: Option<(String, Vec<&'static str>)>) {
    if let Some((problem, steps)) = violation {
        println!("  {problem}");
        steps.iter().for_each(|step| println!("    {step}"));
    }
}

type Violation = (String, Vec<&'static str>);

fn without(rule: Rule) -> Option<(&'static str, Violation)> {
    [1, 2].into_iter().find_map(|crashes| {
        runs(crashes, Some(rule)).into_iter().find_map(|run| Some((run.name, explore(&run).2?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the protocol holds, in all that is covered. Method: every state, with a crash.
    #[test]
    fn everything_holds_with_all_rules() {
        for run in runs(1, None) {
            let (states, ends, violation) = explore(&run);
            assert_eq!(violation, None, "{}, synced {}, edits {}", run.name, run.is_synced, run.edits);
            assert!(states > 50 && ends > 0, "{}: {states} states", run.name);
        }
    }

    /// Goal: each rule is needed. Method: it is left out.
    #[test]
    fn every_rule_is_missed() {
        for rule in RULES {
            assert!(without(rule).is_some(), "nothing breaks without {rule:?}");
        }
    }
}
