//! How a process comes to have a store open: alone, or beside others.
//!
//! All of it happens under the commit lock, so that nobody joins or leaves meanwhile. Who is alone recovers a log that was
//! not closed, and believes nothing that the cache shows. Who is not alone reads the log, and has to do no more, unless
//! somebody has died in a commit, or the store is poisoned.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze;
use atomtree_recovery::apply::{Applier, Parents};
use atomtree_recovery::ballast::Ballast;
use atomtree_recovery::keeper::Keeper;
use atomtree_recovery::known::Known;
use atomtree_recovery::places::{Places, StoreFile};
use atomtree_recovery::recover::{Recovery, Report};
use atomtree_recovery::retention::finish_pruning;
use atomtree_recovery::stage::{Stage, all_staged};
use atomtree_recovery::sweep::{Sweep, dead_stages};
use atomtree_wal::sync::{Condvar, Mutex, Turn, now};
use atomtree_wal::{GroupCommit, Log, Lsn, Tail};

use crate::checkpointer::Unsettled;
use crate::contention::Contention;
use crate::create::discard_unfinished;
use crate::error::Error;
use crate::hand_over::{CommitState, SyncRoot, note_report};
use crate::lock::{Locks, Mark, wait_for_others};
use crate::options::Options;
use crate::store::{Engine, Health, ProcessId, who};
use crate::submit::Submits;
use crate::trace;

/// The commit lock while there is no engine yet.
struct Taken<'a>(&'a Locks);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.give_up_commit();
    }
}

impl Engine {
    /// Joins those who have the store open, or is the first.
    pub(crate) fn open(
        places: Places,
        options: Options,
        warnings: Vec<String>,
        uid: u32,
    ) -> Result<Arc<Self>, Error> {
        let opened_by = ProcessId::now(&*places.vfs);
        let locks = Locks::open(&places)?;
        let (begun, deadline) = (now(), options.deadline());
        let (taken, is_alone) = loop {
            locks.take_commit_quietly(&places, deadline)?;
            let taken = Taken(&locks);
            if locks.is_alone()? {
                break (taken, true);
            }
            if !options.exclusive && locks.join()? {
                break (taken, false);
            }
            drop(taken);
            wait_for_others(&places, begun, deadline)?;
        };
        discard_unfinished(&*places.root, uid);
        let (store_file, is_original) = StoreFile::read(&*places.store)?;
        let open_log = if is_alone { Log::open } else { Log::join };
        let (mut log, scan) = open_log(places.wal.clone(), store_file.id, options.log)
            .map_err(atomtree_recovery::Error::Log)?;
        let mut options = options;
        options.log = log.options();
        let ballast =
            Ballast::open(&*places.store, options.ballast_bytes).doing("open", ".atomtree/ballast")?;
        if !is_alone {
            log.rewrite_tail(&scan).map_err(|error| {
                if log.is_poisoned() {
                    locks.poison(&*places.vfs, &error.to_string());
                }
                atomtree_recovery::Error::Log(error)
            })?;
        }
        let is_closed = scan.tail() == Tail::Closed;
        let analysis = analyze::analyze(&scan)?;
        if !is_closed && !is_original && !options.adopt && analysis.unsettled().next().is_some() {
            return Err(atomtree_recovery::Error::NotAdopted.into());
        }
        // Whoever is refused has changed nothing.
        locks.note_commit(&*places.vfs);
        let who = who(&places)?;
        let stage = Stage::create(&places, &locks.me().to_text())?;
        locks.note_waiting_in(stage.lock_file().clone());
        let is_bound = stage.dir().flags().doing("read the flags of", ".atomtree/stage")?.binds_inodes;
        let file_system = places.root.file_system().doing("describe the file system of", ".")?;
        let moves_inodes = file_system.name != "overlayfs";
        let can_exchange = stage.probe_exchange().doing("try an exchange in", ".atomtree/stage")?;
        let mark = locks.mark()?;
        let image_bytes_max = options.retention.bytes_max;
        let recovery = Recovery {
            places: &places,
            stage: &stage,
            ballast: &ballast,
            can_exchange,
            is_live: false,
            image_bytes_max,
        };
        let settled = match (is_alone, is_closed) {
            (false, _) => Ok(None),
            (true, true) => sweep_alone(&recovery).map(|()| None),
            (true, false) => {
                trace::span!("atomtree.recovery");
                recovery.run(&mut log, &scan).map(Some)
            }
        };
        let settled = settled.inspect_err(|_| {
            // Unless it holds something, which the next recovery looks at.
            let _ = stage.remove(&places);
        })?;
        let is_torn = scan.tail().is_torn();
        // The root is open since before the log was read.
        let staged_before = if is_alone { HashSet::new() } else { all_staged(&places)? };
        let sync_root = SyncRoot { dir: places.root.clone(), staged_before };
        let mut commits = CommitState::new(log, &analysis, is_torn, sync_root);
        let mut report = Report::default();
        if let Some((done, next_tx)) = settled {
            note_report(&done);
            commits.settle_all(next_tx);
            report = done;
        }
        let has_to_recover = !is_alone
            && (commits.is_unfinished || matches!(mark, Mark::Poisoned { .. } | Mark::Recovering { .. }));
        drop(analysis);
        drop(scan);
        let mut recovered = None;
        if is_alone {
            if !is_original {
                // Nothing is unsettled any more: whatever tree this is, it is the one that the store belongs to now.
                store_file.adopt(&*places.store).doing("adopt", ".atomtree/store")?;
            }
            // What was said to others says nothing any more.
            if mark != Mark::None {
                locks.set_mark(&Mark::None).doing("write", ".atomtree/lock")?;
            }
            if !options.exclusive {
                // Nobody can come between: who joins takes the commit lock first.
                locks.join()?;
            }
        } else if let Mark::Recovered { id } = mark {
            recovered = Some(id);
        }
        drop(taken);
        let mut engine = Self {
            places,
            options,
            ballast,
            can_exchange,
            stage,
            locks,
            commits: Mutex::new(commits),
            group: GroupCommit::new(),
            submits: Submits::default(),
            checkpoint_turn: Turn::default(),
            retry_turn: Turn::default(),
            lookout: Mutex::default(),
            fullness: Mutex::default(),
            contention: Contention::default(),
            unsettled: Mutex::new(Unsettled::default()),
            wake: Condvar::new(),
            health: Mutex::new(Health::Open),
            recovered: Mutex::new(recovered),
            opened_by,
            moves_inodes,
            is_bound,
            who,
            shelves: Mutex::default(),
            room: AtomicU64::new(0),
            report,
            take_overs: Mutex::default(),
            warnings,
        };
        if has_to_recover {
            engine.recover_for_all()?;
            let take_over = engine.take_overs.lock().pop();
            engine.report = take_over.unwrap_or_default();
        }
        // No transaction touches what a guard covers, so the log comes first.
        engine.roll_back_abandoned_at_open()?;
        engine.note_unsettled(&engine.commits.lock(), true);
        Ok(Arc::new(engine))
    }
}

/// Clears what processes left in `stage/` that died before they logged anything.
fn sweep_alone(recovery: &Recovery<'_>) -> Result<(), atomtree_recovery::Error> {
    let Recovery { places, stage, ballast, can_exchange, .. } = *recovery;
    let parents = Parents::new(places.root.clone()).doing("read the metadata of", "the root")?;
    let mut applier = Applier::new(places, parents, ballast, can_exchange, Lsn(0));
    let (slots, known) = (BTreeMap::new(), Known::default());
    let mut keeper = Keeper::of_nothing(places);
    Sweep { places, slots: &slots, known: &known, applier: &mut applier, keeper: &mut keeper }
        .dead(dead_stages(places, stage.name())?)?;
    finish_pruning(places)
}
