//! A file's lock that is waited for with a timeout.
//!
//! `flock` waits for ever or not at all. So who finds the lock taken has a thread of this lock's own wait for it, and waits
//! for that thread. What it gets when nobody wants it any more, it gives back.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use atomtree_vfs::{File, Lock};
use atomtree_wal::sync::{self, Condvar, Mutex, now};

#[cfg(all(test, loom))]
mod models;

/// What can be locked by one of several processes.
pub(crate) trait Lockable: Send + Sync + 'static {
    fn try_lock(&self) -> io::Result<bool>;
    fn wait_for_lock(&self) -> io::Result<()>;
    fn unlock(&self) -> io::Result<()>;
}

impl Lockable for Arc<dyn File> {
    fn try_lock(&self) -> io::Result<bool> {
        (**self).try_lock(Lock::Exclusive)
    }

    fn wait_for_lock(&self) -> io::Result<()> {
        (**self).wait_for_lock(Lock::Exclusive)
    }

    fn unlock(&self) -> io::Result<()> {
        (**self).unlock()
    }
}

/// The lock. One thread of this process at a time may want it, or have it.
pub(crate) struct Waited<L: Lockable = Arc<dyn File>>(Arc<Shared<L>>);

struct Shared<L> {
    file: L,
    /// A second file that is locked while waiting for the first, so that those who wait get their turn before those who
    /// had the lock and want it again.
    queue: Option<L>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    wait: Wait,
    is_ending: bool,
}

/// What the thread does.
#[derive(Default)]
enum Wait {
    /// There is none.
    #[default]
    NoThread,
    /// Nothing: it waits to be asked.
    Idle,
    /// It waits for the lock, or is about to; whether somebody wants that still.
    Waiting { is_wanted: bool },
    /// It has come back.
    Done(io::Result<()>),
}

impl Waited {
    /// The file.
    pub(crate) fn file(&self) -> &dyn File {
        &*self.0.file
    }
}

impl<L: Lockable> Waited<L> {
    /// The lock of a file, with a queue in front of it.
    pub(crate) fn new(file: L, queue: Option<L>) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { file, queue, state, changed }))
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_take(&self) -> io::Result<bool> {
        self.take_at_once(&self.0.state.lock(), false)
    }

    /// Takes the lock, or returns `false` at the deadline.
    pub(crate) fn take(&self, deadline: Instant) -> io::Result<bool> {
        let shared = &self.0;
        let mut state = shared.state.lock();
        let may_wait = now() < deadline;
        if self.take_at_once(&state, may_wait)? {
            return Ok(true);
        }
        if !may_wait {
            return Ok(false);
        }
        let has_thread = !matches!(state.wait, Wait::NoThread);
        state.wait = Wait::Waiting { is_wanted: true };
        if !has_thread {
            let thread = shared.clone();
            if let Err(error) = sync::spawn("atomtree-lock", move || thread.run()) {
                state.wait = Wait::NoThread;
                shared.leave_queue();
                return Err(error);
            }
        }
        shared.changed.notify_all();
        loop {
            match &mut state.wait {
                Wait::Done(result) => {
                    let result = std::mem::replace(result, Ok(()));
                    state.wait = Wait::Idle;
                    return result.map(|()| true);
                }
                Wait::Waiting { is_wanted } if deadline <= now() => {
                    *is_wanted = false;
                    return Ok(false);
                }
                _ => state = shared.changed.wait_timeout(state, deadline.saturating_duration_since(now())),
            }
        }
    }

    /// Takes the lock if nobody has it. Otherwise the place at the head of the queue, if this process got that, is kept for
    /// who `will_wait`.
    fn take_at_once(&self, state: &State, will_wait: bool) -> io::Result<bool> {
        // A thread that is waiting still, for somebody who has given up, shares this process's open files.
        if matches!(state.wait, Wait::Waiting { .. }) {
            return Ok(false);
        }
        if let Some(queue) = &self.0.queue
            && !queue.try_lock()?
        {
            return Ok(false);
        }
        let is_taken = self.0.file.try_lock();
        if !(will_wait && matches!(is_taken, Ok(false))) {
            self.0.leave_queue();
        }
        is_taken
    }

    /// Gives the lock up.
    pub(crate) fn give_up(&self) {
        // It goes with the file, if it can't be given up.
        let _ = self.0.file.unlock();
    }
}

impl<L: Lockable> Drop for Waited<L> {
    fn drop(&mut self) {
        // A thread that waits ends when it has the lock, and gives it back.
        self.0.state.lock().is_ending = true;
        self.0.changed.notify_all();
    }
}

impl<L: Lockable> Shared<L> {
    fn leave_queue(&self) {
        if let Some(queue) = &self.queue {
            let _ = queue.unlock();
        }
    }

    fn wait_for_lock(&self) -> io::Result<()> {
        if let Some(queue) = &self.queue {
            queue.wait_for_lock()?;
        }
        let result = self.file.wait_for_lock();
        self.leave_queue();
        result
    }

    /// What the thread does.
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.is_ending {
            if !matches!(state.wait, Wait::Waiting { .. }) {
                state = self.changed.wait(state);
                continue;
            }
            drop(state);
            let result = self.wait_for_lock();
            state = self.state.lock();
            if matches!(state.wait, Wait::Waiting { is_wanted: true }) && !state.is_ending {
                state.wait = Wait::Done(result);
            } else {
                let _ = self.file.unlock();
                state.wait = Wait::Idle;
            }
            self.changed.notify_all();
        }
    }
}
