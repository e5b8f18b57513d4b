//! Checkpoints: made beside committers, by anyone and by the background thread, which is woken, stopped and poisoned.

use super::*;
use crate::commit::Outcome;

/// When a checkpoint returns, what was committed before is durable in place, whoever else makes one.
///
/// Bound: 3 preemptions.
#[test]
fn two_checkpoints_beside_a_committer() {
    let begin = prepared(|_| ());
    explore("two checkpoints beside a committer", Some(3), move |settled_alone| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let committer = {
            let (machine, store) = (Arc::clone(&machine), store.clone());
            start(move || {
                commit(&store, "new", b"new").unwrap();
                let is_settled = read(&machine.cut(), "new").is_some();
                store.checkpoint().unwrap();
                assert_eq!(read(&machine.cut(), "new").unwrap(), b"new");
                is_settled
            })
        };
        store.checkpoint().unwrap();
        assert!(read(&machine.cut(), "first").is_some(), "it was committed before the checkpoint");
        let is_settled = committer.join().unwrap();
        let (_, report) = recovered(&machine.sim);
        assert_eq!(report.redone, 0, "everything is settled");
        settled_alone.fetch_add(usize::from(is_settled), Relaxed);
    });
}

/// A checkpoint that fails poisons the store for those who commit beside it, and what they were told stays true.
///
/// Bound: none, these are all schedules.
#[test]
fn failed_checkpoint_beside_a_committer() {
    let begin = prepared(|_| ());
    explore("failed checkpoint beside a committer", None, move |refused| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let committer = {
            let (machine, store) = (Arc::clone(&machine), store.clone());
            start(move || (commit(&store, "new", b"new"), machine.cut()))
        };
        machine.sim.fail_next_sync();
        store.checkpoint().unwrap_err();
        let (outcome, cut) = committer.join().unwrap();
        match outcome {
            Ok(_) => assert_eq!(read(&recovered(&cut).0, "new").unwrap(), b"new"),
            Err(error) => {
                assert!([ErrorKind::Poisoned, ErrorKind::OutcomeUnknown].contains(&error.kind()), "{error}");
                refused.fetch_add(usize::from(error.kind() == ErrorKind::Poisoned), Relaxed);
            }
        }
        assert_eq!(store.begin().unwrap_err().kind(), ErrorKind::Poisoned);
    });
}

/// A transaction that moves a directory, in which something is unsettled, beside a checkpoint: one that is being made,
/// and waits for the commit lock, is waited for without that lock, and everything gets done.
///
/// Bound: none, these are all schedules.
#[test]
fn barrier_beside_a_checkpoint() {
    let begin = prepared(|store| {
        let mut transaction = store.begin().unwrap();
        transaction.create_dir("dir").unwrap();
        transaction.commit().unwrap();
    });
    explore("barrier beside a checkpoint", None, move |came_back| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        commit(&store, "dir/file", b"new").unwrap();
        let checkpointer = {
            let store = store.clone();
            start(move || store.checkpoint().unwrap())
        };
        let mut transaction = store.begin().unwrap();
        transaction.rename("dir", "moved").unwrap();
        // As a commit does, to see whether it has to come back.
        let engine = &store.shared.engine;
        let mut parcel = vec![engine.plan_and_stage(&mut transaction).unwrap()];
        loop {
            match engine.hand_in(engine.group.announce(), parcel).unwrap().remove(0) {
                Outcome::Committed(receipt) => break assert!(receipt.files() > 0),
                Outcome::Unsettled(again) => {
                    came_back.fetch_add(1, Relaxed);
                    engine.checkpoint().unwrap();
                    parcel = vec![*again];
                }
                Outcome::Failed(error) => panic!("{error}"),
                Outcome::Full(..) => panic!("the log is empty"),
            }
        }
        let cut = machine.cut();
        checkpointer.join().unwrap();
        assert_eq!(read(&recovered(&cut).0, "moved/file").unwrap(), b"new");
    });
}

/// The background thread, with a checkpoint due at once after each commit, beside a committer and a close.
///
/// Bound: 3 preemptions.
#[test]
fn background() {
    let begin = prepared(|_| ());
    explore("background checkpoints", Some(3), move |settled_before_the_close| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| {
            options.checkpoints(Checkpoints::Background).settle_after(std::time::Duration::ZERO)
        });
        let committer = {
            let store = store.clone();
            start(move || commit(&store, "new", b"new").is_ok())
        };
        machine.syncs.meet();
        let is_settled = read(&machine.cut(), "first").is_some();
        store.close().unwrap();
        let is_committed = committer.join().unwrap();
        let (found, report) = recovered(&machine.sim);
        assert_eq!(report, Report::default());
        assert_eq!(read(&found, "new").is_some(), is_committed);
        settled_before_the_close.fetch_add(usize::from(is_settled), Relaxed);
    });
}

/// Commits to a store with a background thread, and waits until that makes a checkpoint, for which nobody asks.
fn wait_for_the_background(name: &str, set: impl Fn(Options) -> Options + Send + Sync + 'static) {
    let begin = prepared(|_| ());
    explore(name, Some(3), move |settled_later| {
        let machine = Machine::new(&begin);
        let store = set(options(Arc::new(machine.faults.clone())))
            .checkpoints(Checkpoints::Background)
            .open(ROOT)
            .unwrap();
        let settling = Arc::new((sync::Mutex::new(false), sync::Condvar::new()));
        let news = Arc::clone(&settling);
        // Nothing else syncs the whole file system.
        machine.faults.set_rule(Arc::new(move |call| {
            if call.verb == Verb::SyncFilesystem {
                *news.0.lock() = true;
                news.1.notify_one();
            }
            None
        }));
        commit(&store, "new", b"new").unwrap();
        let mut is_settling = settling.0.lock();
        settled_later.fetch_add(usize::from(!*is_settling), Relaxed);
        while !*is_settling {
            is_settling = settling.1.wait(is_settling);
        }
        drop(is_settling);
        store.close().unwrap();
    });
}

/// The background thread hears of what can't wait, a content by reference, though it sleeps until a time that never comes.
///
/// Bound: 3 preemptions.
#[test]
fn urgent() {
    wait_for_the_background("urgent checkpoint", |options| options.inline_bytes_max(0));
}

/// The background thread, with nothing to wait for, hears of the first commit.
///
/// Bound: 3 preemptions.
#[test]
fn due() {
    wait_for_the_background("due checkpoint", |options| options.settle_after(std::time::Duration::ZERO));
}

/// The background thread of a poisoned store, which another process may recover, stays, and ends when it is told to.
///
/// Bound: none, these are all schedules.
#[test]
fn poisoned_background() {
    let begin = prepared(|_| ());
    explore("poisoned background", None, move |poisoned| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options.checkpoints(Checkpoints::Background));
        let thread = store.shared.checkpointer.lock().take().unwrap();
        store.shared.engine.poison("the model says so");
        store.shared.engine.stop_checkpointer();
        thread.join().unwrap();
        poisoned.fetch_add(1, Relaxed);
    });
}
