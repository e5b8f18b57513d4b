//! An open store: opening and creating it, handing out transactions, closing it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use atomtree_recovery::ballast::Ballast;
use atomtree_recovery::guards::Lookout;
use atomtree_recovery::places::Places;
use atomtree_recovery::plan::Who;
use atomtree_recovery::quarantine::Fullness;
use atomtree_recovery::recover::Report;
use atomtree_recovery::retention::Shelves;
use atomtree_recovery::stage::Stage;
use atomtree_recovery::tree_path::STORE_DIR;
use atomtree_vfs::{Dir, Vfs};
use atomtree_wal::GroupCommit;
use atomtree_wal::sync::{Condvar, Mutex, Thread, Turn};

use crate::checkpointer::{self, Unsettled};
use crate::commit::Outcome;
use crate::contention::{Contention, Line, RetryPlace};
use crate::create;
use crate::error::{Error, ErrorKind, OnPath};
use crate::hand_over::CommitState;
use crate::lock::{Locks, Mark};
use crate::options::{Checkpoints, Options};
use crate::stage::Prepared;
use crate::submit::Submits;
use crate::trace;
use crate::transaction::Transaction;

/// How often [`Store::transact`] runs its closure at most.
const TRANSACT_ATTEMPTS: u32 = 16;

/// The store of one tree. Cheap to clone; clones share it, and the last one that is dropped closes it.
///
/// Any number of threads and processes may use it at once. Those that commit take turns, for a batch each; nothing else
/// waits for them. One that dies holds nobody up; one that is stopped does, for [`Options::lock_timeout`] at most.
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
    pub(crate) stage: Stage,
    /// What other processes wait for too.
    pub(crate) locks: Locks,
    /// This process's part of the commit lock, which is held for a batch, across its sync, and for the records of a
    /// checkpoint. See [`crate::hand_over`].
    pub(crate) commits: Mutex<CommitState>,
    /// What is handed in is a parcel of transactions; what comes back, one outcome for each.
    pub(crate) group: GroupCommit<Vec<Prepared>, Vec<Outcome>>,
    /// What waits for the thread that commits what was submitted.
    pub(crate) submits: Submits,
    /// This process's part of the right to make a checkpoint, or a segment. Taken before `commits`, never after.
    pub(crate) checkpoint_turn: Turn,
    /// This process's part of the place of who repeats a transaction.
    pub(crate) retry_turn: Turn,
    /// The guards that there are, as seen by the last commit. Taken after `commits`.
    pub(crate) lookout: Mutex<Lookout>,
    /// How full the quarantine was, as seen by the last commit. Taken after `commits`.
    pub(crate) fullness: Mutex<Fullness>,
    /// Who queues for it.
    pub(crate) contention: Contention,
    /// Taken after `commits`, for moments only.
    pub(crate) unsettled: Mutex<Unsettled>,
    /// Wakes the checkpointer; goes with `unsettled`.
    pub(crate) wake: Condvar,
    pub(crate) health: Mutex<Health>,
    /// The last recovery from a poisoning that this process knows of.
    pub(crate) recovered: Mutex<Option<u128>>,
    /// Which process opened the store.
    pub(crate) opened_by: ProcessId,
    /// Whether an inode keeps its number when it gets another name: not on overlayfs, which copies what lies in a lower
    /// layer, and refuses to rename a directory there.
    pub(crate) moves_inodes: bool,
    /// Whether inodes of this store may only go where the same project or encryption policy holds.
    pub(crate) is_bound: bool,
    /// Whom transactions are from.
    pub(crate) who: Who,
    /// What the history holds. Taken after `checkpoint_turn`.
    pub(crate) shelves: Mutex<Shelves>,
    /// How often the log was given segments, or some of its own back. No condition goes by it without a time limit, so loom
    /// need not know it.
    pub(crate) room: AtomicU64,
    pub(crate) report: Report,
    /// What this process finished for others since.
    pub(crate) take_overs: Mutex<Vec<Report>>,
    pub(crate) warnings: Vec<String>,
}

/// Whether commits are taken.
pub(crate) enum Health {
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

/// A process, told apart from the children that it forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pid: u32,
    forks: u64,
}

impl ProcessId {
    pub(crate) fn now(vfs: &dyn Vfs) -> Self {
        Self { pid: std::process::id(), forks: vfs.fork_generation() }
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }
}

impl Store {
    /// Opens the store of the tree at `root`, an existing directory; creates it in `.atomtree` if there is none, and
    /// recovers it if it was not closed, or if it is poisoned. What recovery did, [`Store::recovery`] tells.
    ///
    /// # Durability
    /// When this returns, every transaction that was ever acknowledged is in the tree, durably, unless other processes
    /// have the store open: then it is in the tree, and durable in the log.
    ///
    /// # Errors
    /// `not_found` or `not_a_directory` for the root; `locked` if the lock that it takes to open a store was not free for
    /// [`Options::lock_timeout`], or somebody has the store for himself ([`Options::exclusive`]); `permission`
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
        create::ensure(&root, &options)?;
        let places = Places::open(vfs.clone(), root)?;
        let identity = vfs.identity().on("read the identity of", "this process")?;
        // Root may act for somebody else, and for itself on a tree where it has made the store.
        let allowed = options.allow_owner.filter(|_| identity.uid == 0);
        places.check_ownership(&[Some(identity.uid), allowed].into_iter().flatten().collect::<Vec<_>>())?;
        // What root makes there its owner can't open until root has left, and has given it to him.
        let mut options = options;
        options.exclusive |= places.owner()? != identity.uid;
        let engine = Engine::open(places, options, warnings, identity.uid)?;
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

    /// What this store has had to finish since it was opened, for other processes that died in the middle of a commit.
    pub fn take_overs(&self) -> Vec<Report> {
        self.shared.engine.take_overs.lock().clone()
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
    /// Those that have met a conflict go on one after another, whichever process they are in, and so do, for a moment, those
    /// that change what they met, so that many who change the same files get through in turn. Who commits otherwise, by
    /// [`Store::begin`] or [`Transaction::submit`], is not held up.
    ///
    /// # Errors
    /// What `change` returns, or `commit`; `conflict` if it was one each time.
    pub fn transact<T>(
        &self,
        mut change: impl FnMut(&mut Transaction) -> Result<T, Error>,
    ) -> Result<(T, crate::Receipt), Error> {
        let engine = &self.shared.engine;
        let line = Line::of(&change);
        let mut place = engine.contention.is_remembered(line).then(|| RetryPlace::take(engine));
        for attempt in 1.. {
            let mut transaction = self.begin()?;
            let result = change(&mut transaction).and_then(|value| Ok((value, transaction.commit()?)));
            match &result {
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < TRANSACT_ATTEMPTS => {
                    engine.note_conflict(line, error);
                }
                Ok((_, receipt)) if receipt.is_met() => {
                    engine.contention.note_met(line);
                    return result;
                }
                _ => return result,
            }
            match place {
                None => place = Some(RetryPlace::take(engine)),
                Some(_) => self.pause(attempt),
            }
        }
        unreachable!("attempts are bounded")
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
    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Whether commits are taken.
    pub(crate) fn check_health(&self) -> Result<(), Error> {
        if self.is_in_fork() {
            return Err(Error::in_fork());
        }
        match self.health.lock().check() {
            // Who takes the commit lock next finds out the rest.
            Err(Error::Poisoned { .. }) if self.was_recovered() => Ok(()),
            health => health,
        }
    }

    /// Whether another process has recovered the store since this one learned that it was poisoned; somebody may have died in
    /// yet another recovery since, which is marked as under way only where the one before had been marked as done.
    fn was_recovered(&self) -> bool {
        matches!(
            self.locks.mark(),
            Ok(Mark::Recovered { id } | Mark::Recovering { id }) if *self.recovered.lock() != Some(id)
        )
    }

    /// Whether this is a forked child of the process that opened the store: what it has are copies, and using them would
    /// write over what the parent writes.
    pub(crate) fn is_in_fork(&self) -> bool {
        ProcessId::now(&*self.places.vfs) != self.opened_by
    }

    /// Whether what has been committed can be settled.
    pub(crate) fn check_settling(&self) -> Result<(), Error> {
        if self.is_in_fork() {
            return Err(Error::in_fork());
        }
        // One look: between two of them a close could begin, and would pass for one that is done.
        match &*self.health.lock() {
            Health::Closing => Ok(()),
            // Who takes the commit lock next finds out the rest.
            Health::Poisoned(_) if self.was_recovered() => Ok(()),
            health => health.check(),
        }
    }

    /// Whether nothing has failed, in any process, that nobody has recovered from.
    pub(crate) fn check_unpoisoned(&self) -> Result<(), Error> {
        match (self.check_settling(), self.locks.mark()?) {
            (Err(error @ Error::Poisoned { .. }), _) => Err(error),
            (_, Mark::Poisoned { reason, .. }) => Err(Error::Poisoned { reason }),
            _ => Ok(()),
        }
    }

    /// Takes no more commits, in any process, until somebody recovers the store. The first reason stays. Not with
    /// `unsettled` locked.
    pub(crate) fn poison(&self, reason: &str) {
        if !self.poison_here(reason) {
            return;
        }
        self.locks.poison(&*self.places.vfs, reason);
    }

    /// Takes no more commits through this store. Returns whether it did.
    pub(crate) fn poison_here(&self, reason: &str) -> bool {
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
        is_first
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
            Health::Poisoned(_) if self.was_recovered() => *health = Health::Closing,
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
        Ok(())
    }
}

/// Whom transactions of this process are from.
pub(crate) fn who(places: &Places) -> Result<Who, Error> {
    let uid = places.vfs.identity().on("read the identity of", "this process")?.uid;
    let process = places.vfs.process().on("read the identity of", "this process")?;
    Ok(Who { uid, pid: process.pid, program: process.program })
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
