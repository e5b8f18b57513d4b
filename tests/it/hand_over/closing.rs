//! A close beside another of the same store, by another handle.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use atomtree::vfs::faults::{Call, Faults, Verb, fail_nothing};
use atomtree::vfs::os::Os;
use atomtree::{Checkpoints, Error, ErrorKind, Options};
use rustix::fs::{FlockOperation, flock};

thread_local! {
    /// Whether this thread is to find the checkpoint's lock held.
    static IS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Long enough for another thread to come to where it waits, on a machine that has little else to do. Nothing tells that it
/// waits there: what it waits for is a lock of this process.
const A_MOMENT: Duration = Duration::from_millis(100);
/// The commit has to be done within five moments, which a busy machine may not get: each attempt takes longer ones.
const ATTEMPTS: u32 = 10;

/// The checkpoint's lock, as another process would hold it; `None` if somebody has it.
fn hold(root: &Path) -> Option<File> {
    let file = File::open(root.join(".atomtree/checkpoint")).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file)
}

/// One attempt: `None` if the threads came in another order.
fn close_twice(moment: Duration) -> Option<()> {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("file"), "original").unwrap();
    let options = || Options::new().checkpoints(Checkpoints::Manual).lock_timeout(10 * moment);
    let beside = options().open(root).unwrap();
    let faults = Faults::new(Arc::new(Os), fail_nothing());
    let store = options().vfs(Arc::new(faults.clone())).open(root).unwrap();
    let holder: Arc<Mutex<Option<File>>> = Arc::default();
    let (held, place) = (Arc::clone(&holder), root.to_owned());
    faults.set_rule(Arc::new(move |call: &Call| {
        let is_checkpoint = call.name.as_deref().is_some_and(|name| name == "checkpoint");
        if is_checkpoint && call.verb == Verb::TryLock && IS_REFUSED.take() {
            *held.lock().unwrap() = hold(&place);
        }
        None
    }));
    let lock = hold(root).unwrap();
    let (closed, refused) = thread::scope(|scope| {
        let first = store.clone();
        let closes = scope.spawn(|| first.close());
        thread::sleep(moment);
        let refused = scope.spawn(|| {
            IS_REFUSED.set(true);
            let refused = store.clone().close();
            if refused.is_err() {
                // Commits are taken again.
                let mut tx = store.begin().unwrap();
                tx.write("file", "replaced").unwrap();
                tx.commit().unwrap();
            }
            drop(holder.lock().unwrap().take());
            refused
        });
        // So much longer does the first wait in the end.
        thread::sleep(5 * moment);
        // The first makes its checkpoint; the second has waited for that, and comes before what the first does next.
        drop(lock);
        (closes.join().unwrap(), refused.join().unwrap())
    });
    let error: Error = refused.err()?;
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    match closed {
        // On a slow machine the commit took too long.
        Err(error) if error.kind() == ErrorKind::Locked => return None,
        closed => closed.unwrap(),
    }
    let stages = fs::read_dir(root.join(".atomtree/stage")).unwrap().count();
    assert_eq!(stages, 1, "who has left leaves something in stage");
    beside.close().unwrap();
    Some(())
}

/// Goal: who leaves has settled what it committed, also what came in because another handle's close failed meanwhile.
/// Method: the one close has made its checkpoint when the other is told that the lock is held; a commit by that thread
/// comes before the one goes on.
#[test]
fn a_commit_between_two_closes_is_settled() {
    let is_done = (0..ATTEMPTS).any(|attempt| close_twice(A_MOMENT + A_MOMENT * attempt / 5).is_some());
    assert!(is_done, "the threads never came in the order that is wanted");
}
