//! An open store: opening and creating it, handing out transactions, closing it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::Committed;
use atomtree_recovery::ballast::Ballast;
use atomtree_recovery::keeper::Keeper;
use atomtree_recovery::known::Known;
use atomtree_recovery::places::{Places, StoreFile};
use atomtree_recovery::plan::{TransactionId, Who};
use atomtree_recovery::recover::{Recovery, Report};
use atomtree_recovery::retention::{Shelves, finish_pruning};
use atomtree_recovery::stage::Stage;
use atomtree_recovery::sweep::Sweep;
use atomtree_recovery::tree_path::STORE_DIR;
use atomtree_recovery::{analyze, apply};
use atomtree_vfs::Dir;
use atomtree_wal::sync::{Condvar, Mutex, Thread, Turn};
use atomtree_wal::{GroupCommit, Log, Lsn, Tail};

use crate::checkpointer::{self, Unsettled};
use crate::commit::Outcome;
use crate::create::{create, discard_unfinished};
use crate::error::{Error, ErrorKind, OnPath};
use crate::lock::StoreLock;
use crate::options::{Checkpoints, Options};
use crate::stage::Prepared;
use crate::submit::Submits;
use crate::trace;
use crate::transaction::Transaction;

/// How often [`Store::transact`] repeats its closure after a conflict.
const TRANSACT_ATTEMPTS: u32 = 16;

/// The store of one tree. Cheap to clone; clones share it, and the last one that is dropped closes it.
///
/// Any number of threads may use it. Another process that opens the same tree meanwhile gets
/// [`ErrorKind::Locked`].
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

/// What clones and transactions share. Dropping the last one closes the store.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) checkpointer: Mutex<Option<Thread<()>>>,
}

/// The store's parts.
pub(crate) struct Engine {
    pub(crate) places: Places,
    pub(crate) options: Options,
    pub(crate) ballast: Ballast,
    pub(crate) can_exchange: bool,
    stage: Stage,
    /// The commit lock: held for a batch, across its sync, and for the records of a checkpoint.
    pub(crate) commits: Mutex<CommitState>,
    /// What is handed in is a parcel of transactions; what comes back, one outcome for each.
    pub(crate) group: GroupCommit<Vec<Prepared>, Vec<Outcome>>,
    /// What waits for the thread that commits what was submitted.
    pub(crate) submits: Submits,
    /// Held while a checkpoint is made. Taken before `commits`, never after.
    pub(crate) checkpoint_turn: Turn,
    /// Held while a segment is being added. Taken before `commits`, and never with `checkpoint_turn`.
    pub(crate) spare_turn: Mutex<()>,
    /// Taken after `commits`, for moments only.
    pub(crate) unsettled: Mutex<Unsettled>,
    /// Wakes the checkpointer; goes with `unsettled`.
    pub(crate) wake: Condvar,
    health: Mutex<Health>,
    /// Id of the process that opened the store.
    opened_by: u32,
    /// Whether an inode keeps its number when it gets another name: not on overlayfs, which copies what lies in a lower
    /// layer, and refuses to rename a directory there.
    pub(crate) moves_inodes: bool,
    /// Whether inodes of this store may only go where the same project or encryption policy holds.
    pub(crate) is_bound: bool,
    /// Whom transactions are from.
    pub(crate) who: Who,
    /// What the history holds. Taken after `checkpoint_turn`.
    pub(crate) shelves: Mutex<Shelves>,
    report: Report,
    warnings: Vec<String>,
    /// Given up when the store is closed, even while clones of it live on.
    lock: Mutex<Option<StoreLock>>,
}

/// What only the holder of the commit lock touches.
pub(crate) struct CommitState {
    pub(crate) log: Log,
    pub(crate) next_tx: TransactionId,
    /// Everything up to here is settled.
    pub(crate) settled: Lsn,
    /// What is applied and not settled, in order.
    pub(crate) unsettled: Vec<Arc<Committed<'static>>>,
    /// How many of those move or remove directories, or change what kind of thing a name is.
    pub(crate) unsettled_barriers: usize,
    /// Whether every commit in the log has been applied: between a round's appends and its apply none may be settled.
    pub(crate) is_all_applied: bool,
    /// Whether the log says that it is closed.
    pub(crate) is_closed: bool,
}

/// Whether commits are taken.
enum Health {
    Open,
    Poisoned(String),
    /// No new ones, while those that came in are being settled.
    Closing,
    Closed,
}

impl Health {
    /// Whether commits are taken.
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Poisoned(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            Self::Closing | Self::Closed => Err(Error::closed()),
        }
    }
}

impl Store {
    /// Opens the store of the tree at `root`, an existing directory; creates it in `.atomtree` if there is none, and
    /// recovers it if it was not closed. What recovery did, [`Store::recovery`] tells.
    ///
    /// # Durability
    /// When this returns, every transaction that was ever acknowledged is in the tree, durably.
    ///
    /// # Errors
    /// `not_found` or `not_a_directory` for the root; `locked` while another process has the store open; `permission`
    /// if the store belongs to someone else or is open to others; `corrupt` for damage in what had been synced, with
    /// nothing changed; `no_space`, after which it can be tried again; `unsupported` for a format version or file
    /// system that is not.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, Error> {
        Options::default().open(root)
    }

    pub(crate) fn open_with(root: &Path, options: Options) -> Result<Self, Error> {
        trace::span!("atomtree.open", root = root.display().to_string());
        let vfs = options.vfs.clone();
        let root = vfs.open_root(root).on("open", root)?;
        check_confinement(&*root)?;
        let warnings = check_file_system(&*root, &options)?;
        if let Err(error) = root.metadata(OsStr::new(STORE_DIR)) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error).on("look at", STORE_DIR);
            }
            create(&root, &options)?;
        }
        let places = Places::open(vfs.clone(), root)?;
        let identity = vfs.identity().on("read the identity of", "this process")?;
        // Root may act for somebody else, and for itself on a tree where it has made the store.
        let allowed = options.allow_owner.filter(|_| identity.uid == 0);
        places.check_ownership(&[Some(identity.uid), allowed].into_iter().flatten().collect::<Vec<_>>())?;
        let lock = StoreLock::take(&places)?;
        discard_unfinished(&*places.root, identity.uid);
        let engine = Engine::open(places, options, lock, warnings)?;
        let checkpointer = match engine.options.checkpoints {
            Checkpoints::Background => {
                Some(checkpointer::start(&engine).on("start a thread for", STORE_DIR)?)
            }
            Checkpoints::Manual => None,
        };
        Ok(Self { shared: Arc::new(Shared { engine, checkpointer: Mutex::new(checkpointer) }) })
    }

    /// What opening this store had to do.
    pub fn recovery(&self) -> &Report {
        &self.shared.engine.report
    }

    /// Why durability or atomicity is not promised on this file system, if it isn't.
    pub fn warnings(&self) -> &[String] {
        &self.shared.engine.warnings
    }

    /// Begins a transaction. It sees the tree as it is when it looks, and commits only if what it saw still holds.
    ///
    /// # Errors
    /// `poisoned` if the store takes no more commits.
    pub fn begin(&self) -> Result<Transaction, Error> {
        self.shared.engine.check_health()?;
        Transaction::begin(self.shared.clone())
    }

    /// Runs `change` in a transaction and commits it; on a conflict runs it again, up to sixteen times, with growing
    /// pauses. It may therefore run several times, and should do nothing but read and change the transaction.
    ///
    /// # Errors
    /// What `change` returns, or `commit`; `conflict` if it was one each time.
    pub fn transact<T>(
        &self,
        mut change: impl FnMut(&mut Transaction) -> Result<T, Error>,
    ) -> Result<(T, crate::Receipt), Error> {
        let mut attempt = 0;
        loop {
            let mut transaction = self.begin()?;
            let result = change(&mut transaction).and_then(|value| Ok((value, transaction.commit()?)));
            match result {
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < TRANSACT_ATTEMPTS - 1 => {
                    self.pause(attempt);
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Waits a random while, up to twice as long each time, at most about 100 ms.
    fn pause(&self, attempt: u32) {
        let random = self.shared.engine.places.vfs.random().unwrap_or_default() as u64;
        let most_us = 100_u64 << attempt.min(10);
        std::thread::sleep(Duration::from_micros(random % most_us));
    }

    /// Makes a checkpoint now: everything committed so far is durable in place when this returns, and the log forgets
    /// it. What was submitted and is not applied yet is not waited for.
    ///
    /// # Errors
    /// `no_space`, after which it can be tried again, unless it was a sync that met it. Then, and after any other, the
    /// store is poisoned; the log still has everything.
    pub fn checkpoint(&self) -> Result<(), Error> {
        self.shared.engine.checkpoint()
    }

    /// Closes the store, for all its clones: the next open has nothing to replay. What was submitted commits first.
    ///
    /// Dropping the last clone closes it too, and keeps errors to itself; then the next open recovers.
    ///
    /// # Errors
    /// As for [`Store::checkpoint`]. `invalid_input` in a ticket's waker, which runs on the thread to be waited for.
    pub fn close(self) -> Result<(), Error> {
        self.shared.close()
    }
}

impl Shared {
    fn close(&self) -> Result<(), Error> {
        if self.engine.is_in_fork() {
            return self.engine.check_health();
        }
        self.engine.drain_submits()?;
        if let Err(error) = self.engine.close() {
            self.engine.take_submits_again();
            return Err(error);
        }
        self.stop_checkpointer();
        self.engine.stop_submits();
        Ok(())
    }

    fn stop_checkpointer(&self) {
        self.engine.stop_checkpointer();
        if let Some(thread) = self.checkpointer.lock().take() {
            // It panics only if it is broken, and then the log is left for recovery.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.engine.is_in_fork() {
            // The store is the parent's, and so is the thread. Its locks are not given up here.
            return;
        }
        if self.engine.is_committing_thread() {
            // A ticket's waker held the last handle, or the task that it woke did.
            self.engine.orphan_submits();
            return;
        }
        // Nothing is lost by an error here: what is not settled, the next open settles.
        let _ = self.close();
        self.stop_checkpointer();
        self.engine.stop_submits();
    }
}

impl Engine {
    fn open(
        places: Places,
        options: Options,
        lock: StoreLock,
        warnings: Vec<String>,
    ) -> Result<Arc<Self>, Error> {
        let (store_file, is_original) = StoreFile::read(&*places.store)?;
        let (mut log, scan) = Log::open(places.wal.clone(), store_file.id, options.log)
            .map_err(atomtree_recovery::Error::Log)?;
        let mut options = options;
        options.log = log.options();
        let ballast =
            Ballast::open(&*places.store, options.ballast_bytes).doing("open", ".atomtree/ballast")?;
        let is_closed = scan.tail() == Tail::Closed;
        let analysis = analyze::analyze(&scan)?;
        if !is_closed && !is_original && !options.adopt && analysis.unsettled().next().is_some() {
            return Err(atomtree_recovery::Error::NotAdopted.into());
        }
        let (mut next_tx, settled) = (analysis.next_tx, analysis.watermark);
        drop(analysis);
        let who = who(&places)?;
        let stage = Stage::create(&places)?;
        let is_bound = stage.dir().flags().doing("read the flags of", ".atomtree/stage")?.binds_inodes;
        let file_system = places.root.file_system().doing("describe the file system of", ".")?;
        let moves_inodes = file_system.name != "overlayfs";
        let can_exchange = stage.probe_exchange().doing("try an exchange in", ".atomtree/stage")?;
        let image_bytes_max = options.retention.bytes_max;
        let recovery =
            Recovery { places: &places, stage: &stage, ballast: &ballast, can_exchange, image_bytes_max };
        let mut report = Report::default();
        let recovered = if is_closed {
            // Nothing to replay; a process that died before it logged anything may have left its staged files.
            recovery_free_sweep(&places, &stage, &ballast, can_exchange)
        } else {
            trace::span!("atomtree.recovery");
            recovery.run(&mut log, &scan).map(|done| (report, next_tx) = done).map_err(Error::from)
        };
        for one in &report.quarantined {
            trace::event!(WARN, "quarantined", path = one.path.to_string(), kept = one.kept.as_str());
        }
        if let Err(error) = recovered {
            // Unless it holds something, which the next recovery looks at.
            let _ = stage.remove(&places);
            return Err(error);
        }
        let settled = if is_closed { settled } else { log.next_lsn().previous() };
        drop(scan);
        if !is_original {
            // Nothing is unsettled any more: whatever tree this is, it is the one that the store belongs to now.
            store_file.adopt(&*places.store).doing("adopt", ".atomtree/store")?;
        }
        Ok(Arc::new(Self {
            places,
            options,
            ballast,
            can_exchange,
            stage,
            commits: Mutex::new(CommitState {
                log,
                next_tx,
                settled,
                unsettled: Vec::new(),
                unsettled_barriers: 0,
                is_all_applied: true,
                is_closed,
            }),
            group: GroupCommit::new(),
            submits: Submits::default(),
            checkpoint_turn: Turn::default(),
            spare_turn: Mutex::new(()),
            unsettled: Mutex::new(Unsettled::default()),
            wake: Condvar::new(),
            health: Mutex::new(Health::Open),
            opened_by: std::process::id(),
            moves_inodes,
            is_bound,
            who,
            shelves: Mutex::new(Shelves::default()),
            report,
            warnings,
            lock: Mutex::new(Some(lock)),
        }))
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Whether commits are taken.
    pub(crate) fn check_health(&self) -> Result<(), Error> {
        if self.is_in_fork() {
            return Err(Error::in_fork());
        }
        self.health.lock().check()
    }

    /// Id of the process that opened the store.
    pub(crate) fn opened_by(&self) -> u32 {
        self.opened_by
    }

    /// Whether this is a forked child of the process that opened the store: what it has are copies, and using them would
    /// write over what the parent writes.
    fn is_in_fork(&self) -> bool {
        std::process::id() != self.opened_by
    }

    /// Whether what has been committed can be settled.
    pub(crate) fn check_settling(&self) -> Result<(), Error> {
        if self.is_in_fork() {
            return Err(Error::in_fork());
        }
        // One look: between two of them a close could begin, and would pass for one that is done.
        match &*self.health.lock() {
            Health::Closing => Ok(()),
            health => health.check(),
        }
    }

    /// Takes no more commits. The first reason stays. Not with `unsettled` locked.
    pub(crate) fn poison(&self, reason: &str) {
        let mut health = self.health.lock();
        let is_first = matches!(*health, Health::Open | Health::Closing);
        if is_first {
            *health = Health::Poisoned(reason.to_owned());
        }
        drop(health);
        if is_first {
            trace::event!(ERROR, "poisoned", reason = reason);
        }
        // A checkpointer that has looked before is waiting when its lock is free, and not about to.
        drop(self.unsettled.lock());
        self.wake.notify_all();
    }

    /// Takes no more commits, because the log says that nothing follows.
    pub(crate) fn note_closed(&self) {
        *self.health.lock() = Health::Closed;
    }

    /// Settles everything and gives the store up. Nothing that was submitted may be waiting.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let mut health = self.health.lock();
        match &*health {
            Health::Open => *health = Health::Closing,
            Health::Closing => {}
            Health::Closed => return Ok(()),
            Health::Poisoned(reason) => return Err(Error::Poisoned { reason: reason.clone() }),
        }
        drop(health);
        if let Err(error) = self.close_log() {
            let mut health = self.health.lock();
            match *health {
                // Another handle was faster.
                Health::Closed => return Ok(()),
                Health::Closing => *health = Health::Open,
                Health::Open | Health::Poisoned(_) => {}
            }
            return Err(error);
        }
        // What can't be removed is swept at the next open.
        let _ = self.stage.remove(&self.places);
        drop(self.lock.lock().take());
        Ok(())
    }
}

/// Whom transactions of this process are from.
fn who(places: &Places) -> Result<Who, Error> {
    let uid = places.vfs.identity().on("read the identity of", "this process")?.uid;
    let process = places.vfs.process().on("read the identity of", "this process")?;
    Ok(Who { uid, pid: process.pid, program: process.program })
}

/// Clears what processes left in `stage/` that died before they logged anything.
fn recovery_free_sweep(
    places: &Places,
    stage: &Stage,
    ballast: &Ballast,
    can_exchange: bool,
) -> Result<(), Error> {
    let parents = apply::Parents::new(places.root.clone()).doing("read the metadata of", "the root")?;
    let mut applier = apply::Applier::new(places, parents, ballast, can_exchange, Lsn(0));
    let (slots, known) = (std::collections::BTreeMap::new(), Known::default());
    let mut keeper = Keeper::of_nothing(places);
    Sweep { places, slots: &slots, known: &known, applier: &mut applier, keeper: &mut keeper }
        .all(stage.name())?;
    finish_pruning(places)?;
    Ok(())
}

/// Everything is resolved by `openat2`. Old kernels lack it, and old container runtimes refuse it.
fn check_confinement(root: &dyn Dir) -> Result<(), Error> {
    match root.open_dir(Path::new("")) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
        {
            let reason = format!(
                "the system call openat2, which keeps every path inside the root, is refused here ({error}); use Linux 5.8 or later, and in a container a runtime whose seccomp filter knows it"
            );
            Err(Error::invalid(ErrorKind::Unsupported, reason))
        }
        result => result.map(drop).on("open", "."),
    }
}

fn check_file_system(root: &dyn Dir, options: &Options) -> Result<Vec<String>, Error> {
    let file_system = root.file_system().on("describe the file system of", ".")?;
    if file_system.remote && !options.allow_remote {
        let reason = format!(
            "the root lies on {}, where none of atomtree's promises is known to hold; use a local file system, or allow it (--allow-remote)",
            file_system.name
        );
        return Err(Error::invalid(ErrorKind::Unsupported, reason));
    }
    Ok(file_system.caveat.into_iter().collect())
}
