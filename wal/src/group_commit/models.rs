//! Loom models of group commit: what the unit tests try on a few schedules holds here on every schedule within the
//! bound that stands at each model. `RUSTFLAGS="--cfg loom" cargo test -p atomtree-wal --release --lib models` runs
//! them; with `-- --nocapture` it prints how many schedules there were.
//!
//! A thread that nobody wakes is reported by loom as a deadlock. Each model also asserts that the situation it is
//! about occurred on some schedule.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::*;
use crate::sync::explore;

/// Makes leaders dally in a model, where no time passes and a dally ends with the last announcement alone.
const SOME_TIME: Duration = Duration::from_secs(1);

/// A group and what its leaders did.
struct Model<R> {
    group: GroupCommit<usize, R>,
    /// How often each item was led, counted when its lead ends. These are loom's atomics used relaxed, and not
    /// incremented atomically: without a happens-before edge from lead to lead and from lead to submitter, there are
    /// schedules with a lost or a stale count.
    led: [AtomicUsize; 3],
}

impl<R> Model<R> {
    fn new(recent_lead: Duration) -> Arc<Self> {
        let group = GroupCommit::new();
        group.state.lock().recent_lead = recent_lead;
        Arc::new(Self { group, led: Default::default() })
    }

    fn count_led(&self, batch: &[usize]) {
        for &item in batch {
            let count = self.led[item].load(Relaxed);
            self.led[item].store(count + 1, Relaxed);
        }
    }

    fn assert_led_once(&self, item: usize) {
        assert_eq!(self.led[item].load(Relaxed), 1);
    }

    fn assert_at_rest(&self) {
        let state = self.group.state.lock();
        assert!(state.queue.is_empty());
        assert!(!state.leading);
        assert!(!state.dallying);
        assert_eq!(state.announced, 0);
    }
}

/// Runs `commit` for the items 0, 1 and 2, each in its own thread, and returns what it returned.
fn in_three_threads<O: 'static>(commit: impl Fn(usize) -> O + Send + Sync + 'static) -> [O; 3] {
    let commit = Arc::new(commit);
    let others = [1, 2].map(|item| {
        let commit = Arc::clone(&commit);
        thread::spawn(move || commit(item))
    });
    let own = commit(0);
    let [first, second] = others.map(|other| other.join().unwrap());
    [own, first, second]
}

/// No submit returns before the end of a lead that contained its item, each item is led once, and results match.
///
/// Bound: 5 preemptions. All schedules, 1.4 million, take minutes and hold too.
#[test]
fn three_committers() {
    explore("three committers", Some(5), |shared_batches| {
        let model = Model::new(Duration::ZERO);
        let shared = Arc::clone(&model);
        let batch_lengths = in_three_threads(move |item| {
            let mut batch_length = 0;
            let result = shared.group.announce().submit(item, |batch| {
                batch_length = batch.len();
                shared.count_led(&batch);
                batch.iter().map(|item| item * 2).collect()
            });
            assert_eq!(result, Ok(item * 2));
            shared.assert_led_once(item);
            batch_length
        });
        shared_batches.fetch_add(usize::from(batch_lengths.contains(&2)), Relaxed);
        model.assert_at_rest();
    });
}

/// When a lead fails in an orderly way, its error reaches every submitter in the batch.
///
/// Bound: 5 preemptions. Leaders dally, so that batches hold up to three items.
#[test]
fn failing_leader() {
    explore("failing leader", Some(5), |full_batches| {
        let model = Model::new(SOME_TIME);
        let shared = Arc::clone(&model);
        let errors = in_three_threads(move |item| {
            let result = shared.group.announce().submit(item, |batch| {
                shared.count_led(&batch);
                vec![Err(batch.len()); batch.len()]
            });
            shared.assert_led_once(item);
            let failed: Result<(), usize> = result.expect("the leader returned a result for each item");
            failed.expect_err("the lead failed")
        });
        full_batches.fetch_add(usize::from(errors == [3; 3]), Relaxed);
        model.assert_at_rest();
    });
}

/// When a leader panics, its followers are abandoned, whoever queued behind the batch goes on, and nobody hangs.
///
/// Bound: 5 preemptions. Leaders do not dally here: loom runs all threads of a model in one, so while one unwinds
/// the others seem to panic too, and would poison the lock that they hold while they wake a dallying leader.
#[test]
fn panicking_leader() {
    explore("panicking leader", Some(5), |abandoned| {
        let model = Model::<()>::new(Duration::ZERO);
        let shared = Arc::clone(&model);
        let followed = in_three_threads(move |item| {
            let submit = || {
                shared.group.announce().submit(item, |batch| {
                    shared.count_led(&batch);
                    // Unlike a plain panic, this prints nothing.
                    panic::resume_unwind(Box::new("the lead panics"))
                })
            };
            let ended = panic::catch_unwind(AssertUnwindSafe(submit));
            shared.assert_led_once(item);
            match ended {
                Ok(result) => assert_eq!(result, Err(Abandoned)),
                Err(_) => return false,
            }
            true
        });
        abandoned.fetch_add(usize::from(followed.contains(&true)), Relaxed);
        model.assert_at_rest();
    });
}

/// When a leader returns too few results, its whole batch is abandoned, itself included, and nobody hangs.
///
/// Bound: 5 preemptions. Leaders dally, unlike in [`panicking_leader`].
#[test]
fn miscounting_leader() {
    explore("miscounting leader", Some(5), |full_batches| {
        let model = Model::<()>::new(SOME_TIME);
        let shared = Arc::clone(&model);
        let batch_lengths = in_three_threads(move |item| {
            let mut batch_length = 0;
            let result = shared.group.announce().submit(item, |batch| {
                batch_length = batch.len();
                shared.count_led(&batch);
                vec![(); batch.len() - 1]
            });
            assert_eq!(result, Err(Abandoned));
            shared.assert_led_once(item);
            batch_length
        });
        full_batches.fetch_add(usize::from(batch_lengths.contains(&3)), Relaxed);
        model.assert_at_rest();
    });
}

/// Items that are submitted while a leader runs are led after it, by the one of their submitters that queued first.
///
/// Bound: 4 preemptions. All schedules, 0.9 million, take minutes and hold too.
#[test]
fn hand_off() {
    explore("hand-off", Some(4), |hand_offs| {
        let model = Model::new(Duration::ZERO);
        let late = |item: usize| {
            let shared = Arc::clone(&model);
            thread::spawn(move || {
                let mut batch_length = 0;
                let result = shared.group.announce().submit(item, |batch| {
                    batch_length = batch.len();
                    shared.count_led(&batch);
                    batch
                });
                assert_eq!(result, Ok(item));
                shared.assert_led_once(item);
                batch_length
            })
        };
        let mut threads = Vec::new();
        let result = model.group.announce().submit(0, |batch| {
            threads.extend([late(1), late(2)]);
            while model.group.state.lock().queue.len() < 2 {
                thread::yield_now();
            }
            model.count_led(&batch);
            batch
        });
        assert_eq!(result, Ok(0));
        let mut batch_lengths: Vec<usize> = threads.into_iter().map(|late| late.join().unwrap()).collect();
        batch_lengths.sort_unstable();
        assert_eq!(batch_lengths, [0, 2], "one leads both, the other follows");
        hand_offs.fetch_add(1, Relaxed);
        model.assert_at_rest();
    });
}

/// An announcement that is dropped while the leader dallies does not hang it, though others submit meanwhile.
///
/// Bound: none, these are all schedules.
#[test]
fn withdrawn_announcement() {
    explore("withdrawn announcement", None, |dallies| {
        let model = Model::new(SOME_TIME);
        let withdrawn = model.group.announce();
        let threads = [0, 1].map(|item| {
            let shared = Arc::clone(&model);
            thread::spawn(move || {
                let result = shared.group.announce().submit(item, |batch| {
                    shared.count_led(&batch);
                    batch
                });
                assert_eq!(result, Ok(item));
                shared.assert_led_once(item);
            })
        });
        dallies.fetch_add(usize::from(model.group.state.lock().dallying), Relaxed);
        drop(withdrawn);
        for thread in threads {
            thread.join().unwrap();
        }
        model.assert_at_rest();
    });
}
