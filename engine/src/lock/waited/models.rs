//! Loom models of a lock that several processes wait for: each is a handle of its own on one lock of the kernel's.
//!
//! No time passes in loom, so that a lock is waited for for ever, or not at all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use atomtree_wal::sync::{Condvar, Mutex, explore, now, spawn};

use super::{Lockable, Waited};

/// A lock of the kernel's: who has it, if somebody has.
#[derive(Default)]
struct Kernel {
    holder: Mutex<Option<u32>>,
    freed: Condvar,
}

/// One process's open file.
#[derive(Clone)]
struct Handle(Arc<Kernel>, u32);

impl Lockable for Handle {
    fn try_lock(&self) -> io::Result<bool> {
        let mut holder = self.0.holder.lock();
        Ok(*holder.get_or_insert(self.1) == self.1)
    }

    fn wait_for_lock(&self) -> io::Result<()> {
        let mut holder = self.0.holder.lock();
        while *holder.get_or_insert(self.1) != self.1 {
            holder = self.0.freed.wait(holder);
        }
        Ok(())
    }

    fn unlock(&self) -> io::Result<()> {
        let mut holder = self.0.holder.lock();
        if *holder == Some(self.1) {
            *holder = None;
            self.0.freed.notify_all();
        }
        Ok(())
    }
}

/// Two processes that want the lock twice each get it in the end, one at a time, and nothing is left locked.
///
/// Bound: 3 preemptions.
#[test]
fn two_processes() {
    explore("two processes wait for a lock", Some(3), |waited| {
        let (lock, queue) = (Arc::new(Kernel::default()), Arc::new(Kernel::default()));
        let inside = Arc::new(Mutex::new(false));
        let run = |process: u32, times: u32| {
            let (lock, queue, inside) = (lock.clone(), queue.clone(), inside.clone());
            let waited = waited.clone();
            move || {
                let mine = Waited::new(Handle(lock, process), Some(Handle(queue, process)));
                for _ in 0..times {
                    if !mine.try_take().unwrap() {
                        waited.fetch_add(1, Relaxed);
                        assert!(mine.take(now() + Duration::from_secs(1)).unwrap());
                    }
                    assert!(!std::mem::replace(&mut *inside.lock(), true), "both have it");
                    *inside.lock() = false;
                    mine.give_up();
                }
            }
        };
        let other = spawn("other", run(2, 2)).unwrap();
        run(1, 2)();
        other.join().unwrap();
        assert_eq!((*lock.holder.lock(), *queue.holder.lock()), (None, None));
    });
}

/// Who does not wait leaves no place in the queue taken.
///
/// Bound: 3 preemptions.
#[test]
fn impatient() {
    explore("an impatient process", Some(3), |refused| {
        let (lock, queue) = (Arc::new(Kernel::default()), Arc::new(Kernel::default()));
        let patient = Waited::new(Handle(lock.clone(), 1), Some(Handle(queue.clone(), 1)));
        let impatient = {
            let (lock, queue, refused) = (lock.clone(), queue.clone(), refused.clone());
            spawn("impatient", move || {
                let mine = Waited::new(Handle(lock, 2), Some(Handle(queue, 2)));
                if mine.take(now()).unwrap() {
                    mine.give_up();
                } else {
                    refused.fetch_add(1, Relaxed);
                }
            })
            .unwrap()
        };
        assert!(patient.take(now() + Duration::from_secs(1)).unwrap());
        patient.give_up();
        impatient.join().unwrap();
        assert!(patient.try_take().unwrap(), "nobody has it");
        patient.give_up();
        assert_eq!((*lock.holder.lock(), *queue.holder.lock()), (None, None));
    });
}
