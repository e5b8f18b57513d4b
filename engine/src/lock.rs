//! Who has the store: a lock that the kernel frees when its holder dies, and a note that says who that is.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use atomtree_recovery::Doing;
use atomtree_recovery::places::Places;
use atomtree_vfs::{Access, Dir, File, Lock, ProcessIdentity, Vfs};

use crate::error::Error;

/// The file that is locked.
pub(crate) const LOCK_FILE: &str = "lock";
/// The file that every process with the store open shares.
pub(crate) const MEMBERS_FILE: &str = "members";

/// How often a lock is tried that nobody living says to hold, and how long between.
const ATTEMPTS_WITHOUT_HOLDER: u32 = 50;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(2);

/// A note is four short lines.
const NOTE_BYTES_MAX: u64 = 4096;

/// The locks of an open store, held until it is dropped.
pub(crate) struct StoreLock {
    lock: Arc<dyn File>,
    members: Arc<dyn File>,
    taken_by: u32,
}

impl StoreLock {
    /// Takes the store, or says who has it.
    pub(crate) fn take(places: &Places) -> Result<Self, Error> {
        let open = |name: &str| match places.store.open_file(OsStr::new(name), Access::ReadWrite) {
            // A backup may have left it out; nothing else is lost with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                places.store.create_file(OsStr::new(name), 0o600)
            }
            result => result,
        };
        let lock = open(LOCK_FILE).doing("open", ".atomtree/lock")?;
        let mut attempts = 0;
        while !lock.try_lock(Lock::Exclusive).doing("lock", ".atomtree/lock")? {
            // A holder that has died may have left the lock, for a moment, to a process that it had just forked.
            let holder = read_note(&*lock).filter(|process| places.vfs.is_alive(process));
            attempts += 1;
            if holder.is_some() || attempts > ATTEMPTS_WITHOUT_HOLDER {
                return Err(Error::Locked { holder: describe(holder) });
            }
            std::thread::sleep(ATTEMPT_PAUSE);
        }
        let members = open(MEMBERS_FILE).doing("open", ".atomtree/members")?;
        members.try_lock(Lock::Shared).doing("lock", ".atomtree/members")?;
        // Only a hint for whoever finds the lock taken; the lock itself is the kernel's.
        let process = places.vfs.process().doing("read the identity of", "this process")?;
        let note = format!(
            "pid {}\nstarted {}\nboot {}\nprogram {}\n",
            process.pid,
            process.started,
            process.boot,
            process.program.replace('\n', " ")
        );
        lock.set_len(0).doing("write", ".atomtree/lock")?;
        lock.write_at(&[IoSlice::new(note.as_bytes())], 0).doing("write", ".atomtree/lock")?;
        Ok(Self { lock, members, taken_by: std::process::id() })
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        if std::process::id() != self.taken_by {
            // A forked child: the locks are its parent's.
            return;
        }
        // The note outlives the lock otherwise, and names a process that may still live. It is only a hint, so a
        // failure changes nothing.
        let _ = self.lock.set_len(0);
        // Closing is not enough: a process that this one has just forked holds the same open files until it executes
        // its program, and with them the locks.
        let _ = self.lock.unlock();
        let _ = self.members.unlock();
    }
}

/// The process that has the store open, if one has; `None` also when it left no note.
pub(crate) fn holder(vfs: &dyn Vfs, store: &dyn Dir) -> io::Result<Option<ProcessIdentity>> {
    let lock = match store.open_file(OsStr::new(LOCK_FILE), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    // The lock is not tried: for the moment of the trial this process would be in the way of one that opens the store.
    Ok(read_note(&*lock).filter(|process| vfs.is_alive(process)))
}

fn describe(holder: Option<ProcessIdentity>) -> String {
    match holder {
        Some(process) => format!("process {} ({})", process.pid, process.program),
        None => "another process".into(),
    }
}

fn read_note(lock: &dyn File) -> Option<ProcessIdentity> {
    let text = String::from_utf8(lock.read_all(NOTE_BYTES_MAX).ok()?).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Some(ProcessIdentity {
        pid: field("pid")?.parse().ok()?,
        started: field("started")?.parse().ok()?,
        boot: field("boot")?.to_owned(),
        program: field("program")?.to_owned(),
    })
}
