//! What a child that is forked without executing a program must not take along: the crate's other unsafe code.
//!
//! A lock belongs to an open file, and a forked child has its parent's open files: while it lives, it would keep the
//! locks of a parent that has died. So a handler that runs in the child, before anything else does there, puts
//! `/dev/null` in the place of every descriptor that was hidden. Not unlocked, which would take the lock from the parent,
//! and not closed, because the child's copy of the handle will close that number once more.
//!
//! Handlers run for `fork(2)` as the C library makes it. Who makes the system call behind its back forks unnoticed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

/// A place where no descriptor stands.
const NONE: RawFd = -1;
const BLOCK_SLOTS: usize = 64;

/// What children let go of, as a list without locks: a child may have been forked while any other thread held one.
struct Block {
    descriptors: [AtomicI32; BLOCK_SLOTS],
    next: OnceLock<Box<Block>>,
}

impl Block {
    const fn new() -> Self {
        Self { descriptors: [const { AtomicI32::new(NONE) }; BLOCK_SLOTS], next: OnceLock::new() }
    }
}

static HIDDEN: Block = Block::new();

/// How many forks lie between the first process and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// What stands in the place of hidden descriptors in a child.
static NULL: OnceLock<OwnedFd> = OnceLock::new();

/// A descriptor that forked children let go of, until this is dropped. To be dropped before the descriptor is closed.
pub(crate) struct HiddenFd(&'static AtomicI32);

impl HiddenFd {
    /// Hides a descriptor.
    pub(crate) fn new(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        install()?;
        if NULL.get().is_none() {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            let _ = NULL.set(null);
        }
        let mut block = &HIDDEN;
        loop {
            let is_mine = |slot: &&AtomicI32| {
                slot.compare_exchange(NONE, descriptor.as_raw_fd(), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            };
            if let Some(slot) = block.descriptors.iter().find(is_mine) {
                return Ok(Self(slot));
            }
            block = block.next.get_or_init(|| Box::new(Block::new()));
        }
    }
}

impl Drop for HiddenFd {
    fn drop(&mut self) {
        self.0.store(NONE, Ordering::Relaxed);
    }
}

/// A number that differs between a process and every child that it has forked, from the first hidden descriptor on.
pub(crate) fn generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handler is a function of the program, which is never unloaded under it; what it does is argued there.
    let result = *INSTALLED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Runs in a child before anything else: only atomics are read, nothing is allocated, and no lock is taken.
extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    let Some(null) = NULL.get() else { return };
    let mut block = Some(&HIDDEN);
    while let Some(Block { descriptors, next }) = block {
        for descriptor in descriptors.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|fd| *fd != NONE)
        {
            // SAFETY: an open descriptor comes to stand for another open file, which the safe code that owns it can't tell
            // but by what it reads. There is nobody to report an error to: the child keeps the lock then.
            unsafe { libc::dup3(null.as_raw_fd(), descriptor, libc::O_CLOEXEC) };
        }
        block = next.get().map(|next| &**next);
    }
}

/// Forks, runs `run` in the child, which then ends without unwinding, and returns the child's process id.
///
/// For tests alone: between a fork and the end of the child only what is safe after a fork may be done, which most of Rust
/// is not if the process has other threads. Tests that use it have none that hold locks then.
#[doc(hidden)]
pub fn fork_for_test(run: impl FnOnce() -> i32) -> io::Result<u32> {
    // SAFETY: as the documentation asks of the caller.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = run();
            // SAFETY: ends the child at once; nothing of the parent's is flushed or dropped by it.
            unsafe { libc::_exit(status) }
        }
        child => Ok(child as u32),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Access, Lock, Vfs, os::Os};

    fn wait(child: u32) -> i32 {
        let pid = rustix::process::Pid::from_raw(child as i32);
        let waited = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        waited.unwrap().unwrap().1.exit_status().unwrap()
    }

    /// Goal: a forked child keeps no hidden lock, and takes none from its parent. Method: the parent locks and forks; the
    /// child tries to, and then waits to be killed; meanwhile the parent gives up its only handle.
    #[test]
    fn a_forked_child_keeps_no_lock_and_takes_none() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Os.open_root(scratch.path()).unwrap();
        let name = OsStr::new("lock");
        let file = root.create_file(name, 0o600).unwrap();
        file.hide_from_forks().unwrap();
        assert!(file.try_lock(Lock::Exclusive).unwrap());
        let again = root.open_file(name, Access::ReadWrite).unwrap();
        let child = fork_for_test(|| {
            // Unlocking what it has must not reach the parent's lock.
            let _ = file.unlock();
            std::thread::sleep(Duration::from_secs(20));
            0
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!again.try_lock(Lock::Exclusive).unwrap(), "the child has unlocked the parent's file");
        drop(file);
        let begun = Instant::now();
        while !again.try_lock(Lock::Exclusive).unwrap() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child keeps the lock");
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(child as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        let _ = rustix::process::waitpid(
            rustix::process::Pid::from_raw(child as i32),
            rustix::process::WaitOptions::empty(),
        );
    }

    #[test]
    fn a_child_has_another_generation() {
        install().unwrap();
        let before = generation();
        let child = fork_for_test(|| i32::from(generation() != before)).unwrap();
        assert_eq!((wait(child), generation()), (1, before));
    }
}
