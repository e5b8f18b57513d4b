//! The locks by which processes share a store, each on a file that is never renamed or removed, and each freed by the
//! kernel when its holder dies.
//!
//! `lock` is the commit lock: who holds it checks, appends, syncs and applies. It is queued for in `turn`. `checkpoint` is
//! held while a checkpoint is made; it is taken before `lock`, and who holds `lock` may only try it. `retry`, which is
//! queued for in `retry-turn`, is no more than good manners of those whose transactions meet, and is taken before all others. Every process that has
//! the store open shares `members`; alone on it is who recovers with nobody else there, closes the log, or asked to be.

mod note;
mod waited;

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use atomtree_recovery::Doing;
use atomtree_recovery::places::Places;
use atomtree_recovery::stage::LOCK_FILE as STAGE_LOCK_FILE;
use atomtree_recovery::tree_path::STORE_DIR;
use atomtree_vfs::{Access, Dir, File, Lock, Timestamp, Vfs};
use atomtree_wal::sync::now;

use crate::error::Error;

pub use note::Member;
pub(crate) use note::{Mark, Meeting};
use waited::Waited;

/// The commit lock's file.
pub(crate) const LOCK_FILE: &str = "lock";
/// Where processes queue for the commit lock.
pub(crate) const TURN_FILE: &str = "turn";
/// Held while a checkpoint is made.
pub(crate) const CHECKPOINT_FILE: &str = "checkpoint";
/// Where those queue whose transactions meet one another again and again.
pub(crate) const RETRY_FILE: &str = "retry";
/// Where processes queue for that.
pub(crate) const RETRY_TURN_FILE: &str = "retry-turn";
/// The file that every process with the store open shares.
pub(crate) const MEMBERS_FILE: &str = "members";

/// How long between two looks at `members` while others have to leave.
const MEMBERS_PAUSE: Duration = Duration::from_millis(5);

/// The lock files of an open store.
pub(crate) struct Locks {
    commit: Waited,
    checkpoint: Waited,
    retry: Waited,
    members: Arc<dyn File>,
    /// The commit lock's file, which also says who took it last and whether the store is poisoned.
    file: Arc<dyn File>,
    inode: u64,
    store_inode: u64,
    log_inode: u64,
    me: Member,
    /// The lock file in this process's own part of `stage/`, where others read whether it waits.
    own: OnceLock<Arc<dyn File>>,
}

impl Locks {
    /// Opens the files, making those that are missing, and locks none.
    pub(crate) fn open(places: &Places) -> Result<Self, Error> {
        let open = |name: &str| {
            let open = || -> io::Result<Arc<dyn File>> {
                let name = OsStr::new(name);
                let file = loop {
                    match places.store.open_file(name, Access::ReadWrite) {
                        // A backup may have left it out, or it is older than this file; nothing else is lost with it.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        opened => break opened?,
                    }
                    // Then it is opened, so that its time of access stays when it is read.
                    match places.store.create_file(name, 0o600) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        created => drop(created?),
                    }
                };
                file.hide_from_forks()?;
                Ok(file)
            };
            open().doing("open", &format!("{STORE_DIR}/{name}"))
        };
        let file = open(LOCK_FILE)?;
        let process = places.vfs.process().doing("read the identity of", "this process")?;
        Ok(Self {
            commit: Waited::new(file.clone(), Some(open(TURN_FILE)?)),
            checkpoint: Waited::new(open(CHECKPOINT_FILE)?, None),
            retry: Waited::new(open(RETRY_FILE)?, Some(open(RETRY_TURN_FILE)?)),
            members: open(MEMBERS_FILE)?,
            inode: file.metadata().doing("look at", ".atomtree/lock")?.inode,
            store_inode: places.store.own_metadata().doing("look at", STORE_DIR)?.inode,
            log_inode: places.wal.own_metadata().doing("look at", ".atomtree/wal")?.inode,
            file,
            me: Member::new(process, places.vfs.now()),
            own: OnceLock::new(),
        })
    }

    /// Who this process is, for others to read.
    pub(crate) fn me(&self) -> &Member {
        &self.me
    }

    /// Says where this process is to note that it waits.
    pub(crate) fn note_waiting_in(&self, own: Arc<dyn File>) {
        let _ = self.own.set(own);
    }

    fn note_waiting(&self, since: Option<Timestamp>) {
        if let Some(own) = self.own.get() {
            // For `status` alone.
            let _ = Member { waiting_since: since, ..self.me.clone() }.write(&**own);
        }
    }

    /// Takes the commit lock, waiting for it if need be.
    fn wait_for_commit(&self, vfs: &dyn Vfs, deadline: Instant) -> io::Result<bool> {
        if self.commit.try_take()? {
            return Ok(true);
        }
        if deadline <= now() {
            return Ok(false);
        }
        self.note_waiting(Some(vfs.now()));
        let is_taken = self.commit.take(deadline);
        self.note_waiting(None);
        is_taken
    }

    /// Takes the commit lock, and makes sure that it still is the store's.
    ///
    /// # Errors
    /// `locked` at the deadline, naming the holder.
    pub(crate) fn take_commit(&self, places: &Places, deadline: Instant) -> Result<(), Error> {
        self.take_commit_quietly(places, deadline)?;
        self.note_commit(&*places.vfs);
        Ok(())
    }

    /// As [`Locks::take_commit`], writing nothing.
    pub(crate) fn take_commit_quietly(&self, places: &Places, deadline: Instant) -> Result<(), Error> {
        let begun = now();
        if !self.wait_for_commit(&*places.vfs, deadline).doing("lock", ".atomtree/lock")? {
            let holder = Member::read(&*self.file).map(|note| (note, "the commit lock"));
            return Err(locked(&*places.vfs, holder, begun));
        }
        self.check_in_place(places).inspect_err(|_| self.give_up_commit())
    }

    /// Says who holds the commit lock: only a hint, for those who wait and for `status`; the lock itself is the kernel's.
    pub(crate) fn note_commit(&self, vfs: &dyn Vfs) {
        let _ = Member { since: vfs.now(), ..self.me.clone() }.write(&*self.file);
    }

    /// Gives the commit lock up.
    pub(crate) fn give_up_commit(&self) {
        self.commit.give_up();
    }

    /// Whether the store and its lock are the ones that stand under the root: otherwise there may be others, who lock
    /// another file.
    pub(crate) fn check_in_place(&self, places: &Places) -> Result<(), Error> {
        let is_in_place = || -> io::Result<bool> {
            Ok(places.root.metadata(OsStr::new(STORE_DIR))?.inode == self.store_inode
                && places.store.metadata(OsStr::new(LOCK_FILE))?.inode == self.inode
                && places.store.metadata(OsStr::new("wal"))?.inode == self.log_inode)
        };
        match is_in_place() {
            Ok(true) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing("look at", ".atomtree/lock").map_err(Error::from)
            }
            _ => Err(Error::Poisoned {
                reason: "the store's directory or lock file was removed or replaced while this process had it open, and nothing was written to it".into(),
            }),
        }
    }

    /// Takes the right to make a checkpoint.
    ///
    /// # Errors
    /// `locked` at the deadline, naming the holder.
    pub(crate) fn take_checkpoint(&self, vfs: &dyn Vfs, deadline: Instant) -> Result<(), Error> {
        let begun = now();
        if !self.checkpoint.take(deadline).doing("lock", ".atomtree/checkpoint")? {
            let holder = Member::read(self.checkpoint.file()).map(|note| (note, "the checkpoint lock"));
            return Err(locked(vfs, holder, begun));
        }
        let _ = Member { since: vfs.now(), ..self.me.clone() }.write(self.checkpoint.file());
        Ok(())
    }

    /// As [`Locks::take_checkpoint`], without waiting; `false` if somebody else has it.
    pub(crate) fn try_checkpoint(&self, vfs: &dyn Vfs) -> Result<bool, Error> {
        let is_taken = self.checkpoint.try_take().doing("lock", ".atomtree/checkpoint")?;
        if is_taken {
            let _ = Member { since: vfs.now(), ..self.me.clone() }.write(self.checkpoint.file());
        }
        Ok(is_taken)
    }

    /// Gives it up.
    pub(crate) fn give_up_checkpoint(&self) {
        self.checkpoint.give_up();
    }

    /// Takes the place of who repeats a transaction. Whether it is had is only a matter of speed.
    pub(crate) fn take_retry(&self, deadline: Instant) -> bool {
        self.retry.take(deadline).unwrap_or(false)
    }

    /// Gives it up.
    pub(crate) fn give_up_retry(&self) {
        self.retry.give_up();
    }

    /// Whether no other process has the store open. Under the commit lock, which each takes before it joins or leaves;
    /// otherwise this process is no member any more.
    pub(crate) fn is_alone(&self) -> Result<bool, Error> {
        Ok(self.members.try_lock(Lock::Exclusive).doing("lock", ".atomtree/members")?)
    }

    /// Joins those who have the store open; `false` if one wants it for itself. Under the commit lock.
    pub(crate) fn join(&self) -> Result<bool, Error> {
        Ok(self.members.try_lock(Lock::Shared).doing("lock", ".atomtree/members")?)
    }

    /// What the lock file says of failures: under the commit lock, except for a first look.
    pub(crate) fn mark(&self) -> Result<Mark, Error> {
        Ok(Mark::read(&*self.file).doing("read", ".atomtree/lock")?)
    }

    /// The same, and where transactions have met, if they have. Under the commit lock.
    pub(crate) fn mark_and_meeting(&self) -> Result<(Mark, Option<Meeting>), Error> {
        Ok(Mark::read_with_meeting(&*self.file).doing("read", ".atomtree/lock")?)
    }

    /// Tells those who commit changes of a name that somebody meets them there. It is only a matter of speed.
    pub(crate) fn note_meeting(&self, meeting: Meeting) {
        let _ = meeting.write(&*self.file);
    }

    /// Writes what others shall know of failures.
    pub(crate) fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        mark.write(&*self.file)
    }

    /// Tells everybody of a failure that is final. Those who can't be told find an unfinished commit, or the same failure.
    pub(crate) fn poison(&self, vfs: &dyn Vfs, reason: &str) {
        let _ = match (self.mark(), vfs.random()) {
            (Ok(Mark::Poisoned { .. }), _) => Ok(()),
            (_, Ok(id)) => self.set_mark(&Mark::Poisoned { id, reason: reason.to_owned() }),
            (_, Err(error)) => Err(error),
        };
    }

    /// Leaves the members. What else is locked goes with the files.
    pub(crate) fn leave(&self) {
        // Closing is not enough: a process that this one has just forked holds the same open files until its handler has
        // run or it executes its program.
        let _ = self.members.unlock();
    }
}

/// Waits a moment for others to leave, without the commit lock.
///
/// # Errors
/// `locked` at the deadline, naming one of them.
pub(crate) fn wait_for_others(places: &Places, begun: Instant, deadline: Instant) -> Result<(), Error> {
    if now() < deadline {
        std::thread::sleep(MEMBERS_PAUSE);
        return Ok(());
    }
    let members = members(&*places.vfs, &*places.stage).unwrap_or_default();
    let first = members.into_iter().next();
    Err(locked(&*places.vfs, first.map(|note| (note, "the store open")), begun))
}

/// The processes that have the store open, as far as they can be told: each has a directory in `stage/`, with a lock file
/// that says who it is.
pub(crate) fn members(vfs: &dyn Vfs, stage: &dyn Dir) -> io::Result<Vec<Member>> {
    let mut members = Vec::new();
    for entry in stage.list()? {
        let lock = stage
            .open_dir(entry.name.as_ref())
            .and_then(|dir| dir.open_file(OsStr::new(STAGE_LOCK_FILE), Access::Read));
        let lock = match lock {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            lock => lock?,
        };
        let Some(note) = Member::read(&*lock) else { continue };
        // In another pid namespace its pid says nothing here; the lock does.
        if vfs.is_alive(&note.process) || is_locked(&*lock)? {
            members.push(note);
        }
    }
    members.sort_by_key(|note| (note.since, note.process.pid));
    Ok(members)
}

/// Who holds a lock now, if somebody does. For the moment of the look, shared, it stands in the way of who tries it.
pub(crate) fn holder_of(store: &dyn Dir, name: &str) -> io::Result<Option<Member>> {
    let file = match store.open_file(OsStr::new(name), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    Ok(if is_locked(&*file)? { Member::read(&*file) } else { None })
}

fn is_locked(file: &dyn File) -> io::Result<bool> {
    let is_free = file.try_lock(Lock::Shared)?;
    if is_free {
        file.unlock()?;
    }
    Ok(!is_free)
}

/// The error of who has waited in vain.
pub(crate) fn locked(vfs: &dyn Vfs, holder: Option<(Member, &str)>, begun: Instant) -> Error {
    let waited = (now() - begun).as_secs_f32();
    let holder = match holder {
        Some((Member { process, since, .. }, what)) => {
            let age = Duration::from_nanos(vfs.now().0.saturating_sub(since.0).max(0) as u64);
            let state = if vfs.is_alive(&process) { "" } else { ", which may be in another pid namespace" };
            format!(
                "process {} ({}{state}) has had {what} for {:.1} s",
                process.pid,
                process.program,
                age.as_secs_f32()
            )
        }
        None => "another process has it".into(),
    };
    Error::Locked { holder: format!("{holder}, and was waited for {waited:.1} s") }
}
