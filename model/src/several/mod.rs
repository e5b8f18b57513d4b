//! Several processes with one store: what each of them does, one storage operation at a time, beside the others.

mod check;
mod checkpoint;
mod commit;
mod environment;
mod log;
mod members;
mod recover;
mod search;
pub(crate) mod suites;

use crate::disk::{Cell, Disk, Names, ROOT, STAGE};
use log::{Log, Lsn, Tx, View};

/// The rules that can be left out, to see what breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Who takes L and finds a commit unfinished recovers.
    TakeOver,
    /// For that it takes C as well.
    BothLocks,
    /// What the log says is read again if another process took L since.
    ReadOnNote,
    /// The names are compared under L.
    CheckUnderLock,
    /// Recovery writes the accepted records again before it believes them.
    RewriteRecords,
    /// Recovery goes on in the next segment.
    NextSegment,
    /// Recovery syncs the file system and drops caches before it decides.
    DropCaches,
    /// Recovery syncs the file system before its record.
    SyncAfterRepair,
    /// Transactions that are older than the descriptor are settled by recovery.
    RecoverIfOlder,
    /// A transaction is as old as its staged files.
    OldAsItsFiles,
    /// A process that was told of an error takes its descriptor for as new as that.
    NewAfterError,
    /// A checkpoint discards again what an earlier one by another process settled.
    DiscardAgain,
    /// Recovery discards what living processes have in their slots, too.
    DiscardOfLiving,
    /// Who closes discards again what a checkpoint by another process settled.
    DiscardBeforeLeaving,
    /// What a slot holds is compared before it is unlinked.
    Compare,
    /// Recovery spares what living processes have staged.
    SpareLiving,
    /// A stage directory is made and locked under L.
    StageUnderLock,
    /// The mark is looked for whenever L was taken.
    LookForMark,
    /// A failed sync writes the mark.
    Mark,
    /// The mark is cleared after recovery's record is durable.
    ClearMarkLast,
    /// The log is closed by the last member alone.
    CloseAlone,
    /// Who joins writes again what it read of the log and may not be durable.
    RewriteOnJoin,
    /// Descriptors are opened before the joined LSN is read, under L.
    DescriptorFirst,
    /// A log that was closed is opened durably before the next frame.
    TakeBackClosed,
    /// What is known of the log and was not durable may be gone again.
    ForgetUnsynced,
    /// What was written again is read again before anything relies on it.
    ReadAgain,
    /// A checkpoint that discards again, and a recovery, clear the slots of all recoveries.
    DiscardOfRecoveries,
    /// A checkpoint covers what was committed before its `syncfs`, not what came later.
    CoverBeforeSync,
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) omitted: Option<Rule>,
    /// The names that each transaction changes, one bit each.
    pub(crate) masks: Vec<u8>,
    /// The transactions of each process.
    pub(crate) scripts: Vec<Vec<Tx>>,
    /// Which processes have the store open at the start.
    pub(crate) is_open: Vec<bool>,
    pub(crate) closes: bool,
    /// How many checkpoints each process may begin.
    pub(crate) checkpoints: Vec<u8>,
    /// Name 0 is free at the start.
    pub(crate) is_free: bool,
    /// How many frames a segment holds before a run or record starts the next.
    pub(crate) segment_frames: usize,
    pub(crate) deaths: u8,
    pub(crate) reopens: u8,
    pub(crate) cuts: u8,
    pub(crate) failures: u8,
    /// The kernel drops log pages whose write-back failed.
    pub(crate) drops_log: bool,
    pub(crate) stuck: u8,
    pub(crate) edits: u8,
}

impl Scenario {
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.omitted != Some(rule)
    }

    pub(crate) fn names(&self, tx: Tx) -> Vec<u8> {
        (0..2).filter(|name| self.masks[usize::from(tx)] >> name & 1 == 1).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Repair {
    Rewrite,
    SyncLog,
    SyncTree,
    Drop,
    Name(u8),
    SyncAgain,
    Record,
    SyncRecord,
    ClearMark,
    Discard,
    SyncSlots,
    Retire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Rest,
    TakeC,
    TakeL,
    Look,
    Check,
    Rotate,
    Body,
    Commit,
    Sync,
    Apply(u8),
    Compare(u8),
    Applied,
    Again,
    SyncTree,
    Record,
    SyncRecord,
    Discard,
    SyncSlots,
    Retire,
    Recover(Repair),
    Join,
    SyncJoin,
    MakeStage,
    LockStage,
    OpenDescriptors,
    SyncClosed,
    Closed,
    Mark,
    Leave,
}

/// What L is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Commit,
    Remember,
    Record,
    Retire,
    Open,
    OpenWithBoth,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Thread {
    pub(crate) step: Step,
    pub(crate) purpose: Purpose,
    /// The watermark before its checkpoint, and the one that it is going to write.
    pub(crate) from: Lsn,
    pub(crate) covered: Lsn,
}

impl Thread {
    const REST: Self = Self { step: Step::Rest, purpose: Purpose::Commit, from: 0, covered: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Absent,
    Opening,
    Open,
    Closing,
    /// Closed or dead for good.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Membership {
    None,
    Shared,
    Exclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    None,
    Made,
    Locked,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts, not one state")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) life: Life,
    /// Its random id; another after each open.
    pub(crate) instance: u8,
    pub(crate) member: Membership,
    pub(crate) stage: Stage,
    /// Its descriptors will report a failed write-back: of the log, of the file system.
    pub(crate) told_log: bool,
    pub(crate) told_tree: bool,
    pub(crate) known: Option<View>,
    pub(crate) known_mark: bool,
    pub(crate) joined: Lsn,
    /// The transaction at hand.
    pub(crate) at: u8,
    pub(crate) is_staged: bool,
    pub(crate) seen: [u8; 2],
    pub(crate) staged_at: Lsn,
    pub(crate) checkpoints: u8,
    /// One commits, opens and closes; one makes checkpoints.
    pub(crate) threads: [Thread; 2],
}

/// Which write-back errors were reported to nobody yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Unseen {
    pub(crate) log: bool,
    pub(crate) tree: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    pub(crate) deaths: u8,
    pub(crate) reopens: u8,
    pub(crate) cuts: u8,
    pub(crate) failures: u8,
    pub(crate) stuck: u8,
    pub(crate) edits: u8,
}

pub(crate) type Who = u8;

/// A transaction that was checked and logged, at least in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Logged {
    pub(crate) tx: Tx,
    pub(crate) number: u8,
    /// What it saw at its names.
    pub(crate) seen: [u8; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) disk: Disk,
    pub(crate) log: Log,
    pub(crate) commit_lock: Option<Who>,
    pub(crate) checkpoint_lock: Option<Who>,
    /// The instance that took L last.
    pub(crate) note: u8,
    pub(crate) mark: bool,
    pub(crate) unseen: Unseen,
    pub(crate) processes: Vec<Process>,
    pub(crate) budget: Budget,
    /// Remembered to judge: commits in the order of their check, with what they saw.
    pub(crate) order: Vec<Logged>,
    pub(crate) acknowledged: u8,
    /// The instance that staged each transaction.
    pub(crate) staged_by: Vec<u8>,
    /// Whether another program has written, and where.
    pub(crate) edited: Option<u8>,
    pub(crate) problem: Option<&'static str>,
}

/// What leads from one state to the next.
#[derive(Clone, Copy)]
pub(crate) enum Label {
    Step(usize, usize, Step, Purpose),
    Process(usize, &'static str),
    Event(&'static str),
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Step(at, thread, step, purpose) => {
                let thread = ["", "'s checkpointer"][*thread];
                write!(f, "process {at}{thread}: {step:?} (for {purpose:?})")
            }
            Self::Process(at, what) => write!(f, "process {at} {what}"),
            Self::Event(what) => write!(f, "{what}"),
        }
    }
}

/// What another program writes.
pub(crate) const FOREIGN: u8 = 99;
/// What is seen at a name that isn't there.
pub(crate) const NOTHING: u8 = 255;
/// The first of recovery's slots: four for each instance.
pub(crate) const RECOVERY_SLOT: u8 = 64;

pub(crate) fn original(name: u8) -> u8 {
    10 + name
}

pub(crate) fn content(tx: Tx, name: u8) -> u8 {
    20 + tx * 2 + name
}

pub(crate) fn slot(tx: Tx, name: u8) -> Cell {
    (STAGE, tx * 2 + name)
}

pub(crate) fn cell(name: u8) -> Cell {
    (ROOT, name)
}

impl State {
    pub(crate) fn new(run: &Scenario) -> Self {
        let mut disk = Disk::new();
        for name in u8::from(run.is_free)..2 {
            disk.create(cell(name), false, original(name), 1);
        }
        disk.sync();
        let log = Log::new();
        let view = log.scan().expect("it is empty");
        let process = |(index, is_open): (usize, &bool)| Process {
            life: if *is_open { Life::Open } else { Life::Absent },
            instance: index as u8 + 1,
            member: if *is_open { Membership::Shared } else { Membership::None },
            stage: if *is_open { Stage::Locked } else { Stage::None },
            told_log: false,
            told_tree: false,
            known: is_open.then(|| view.clone()),
            known_mark: false,
            joined: 0,
            at: 0,
            is_staged: false,
            seen: [0; 2],
            staged_at: 0,
            checkpoints: run.checkpoints[index],
            threads: [Thread::REST; 2],
        };
        Self {
            disk,
            log,
            commit_lock: None,
            checkpoint_lock: None,
            note: 0,
            mark: false,
            unseen: Unseen::default(),
            processes: run.is_open.iter().enumerate().map(process).collect(),
            budget: Budget {
                deaths: run.deaths,
                reopens: run.reopens,
                cuts: run.cuts,
                failures: run.failures,
                stuck: run.stuck,
                edits: run.edits,
            },
            order: Vec::new(),
            acknowledged: 0,
            staged_by: vec![0; run.masks.len()],
            edited: None,
            problem: None,
        }
    }

    /// What is seen at a name, or in a slot.
    pub(crate) fn content_at(&self, cell: Cell) -> u8 {
        self.disk.child(cell).map_or(NOTHING, |inode| self.disk.node(inode).content)
    }

    pub(crate) fn slots(&self) -> Vec<u8> {
        let names: &Names = &self.disk.names;
        names.children(STAGE).map(|child| child.0).collect()
    }

    /// The instance in whose stage directory a slot lies.
    pub(crate) fn owner(&self, slot: u8) -> u8 {
        if slot >= RECOVERY_SLOT { (slot - RECOVERY_SLOT) / 4 } else { self.staged_by[usize::from(slot / 2)] }
    }

    pub(crate) fn is_living(&self, instance: u8) -> bool {
        self.processes.iter().any(|process| process.instance == instance && process.stage == Stage::Locked)
    }

    pub(crate) fn say(&mut self, problem: &'static str) {
        self.problem.get_or_insert(problem);
    }

    /// The process's descriptor of the log is synced. False if it reports an error.
    pub(crate) fn sync_log(&mut self, at: usize) -> bool {
        self.log.sync();
        let is_told = std::mem::take(&mut self.processes[at].told_log);
        if is_told {
            self.unseen.log = false;
        } else if let Some(known) = &mut self.processes[at].known {
            known.synced = known.end - 1;
        }
        !is_told
    }

    /// `syncfs` on the process's descriptor. False if it reports an error.
    pub(crate) fn sync_tree(&mut self, run: &Scenario, at: usize) -> bool {
        self.log.sync();
        self.disk.sync();
        let is_told = std::mem::take(&mut self.processes[at].told_tree);
        if is_told {
            self.unseen.tree = false;
            if run.has(Rule::NewAfterError) {
                // Whatever is staged or logged by now is older than what it will be told from now on.
                self.processes[at].joined = u8::MAX;
            }
        }
        !is_told
    }
}
