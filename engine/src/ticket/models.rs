//! Loom models of a ticket and its promise alone. All of them are exhaustive: every schedule, without a bound.
//!
//! What a waiter or a task does is dropped, replaced or repeated at every moment of the other side's two steps. Nobody may
//! sleep on, which loom reports as a deadlock, and no waker may be kept.

use std::sync::atomic::AtomicUsize as Plain;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Wake;

use atomtree_wal::sync::explore;
use loom::future::block_on;
use loom::thread;

use super::*;
use crate::error::ErrorKind;

const TX: TransactionId = TransactionId(7);

fn promised() -> (Promise, Ticket) {
    Promise::new(std::process::id())
}

/// What the committing side does: the commit point, then an outcome that is known by its kind.
fn keep(promise: Promise) {
    promise.state().unwrap().note_durable(TX);
    promise.settle(Err(Error::closed()));
}

fn assert_told<T>(outcome: Result<T, Error>) {
    assert_eq!(outcome.err().unwrap().kind(), ErrorKind::InvalidInput);
}

/// Counts how often it was woken; how many hold it, its `Arc` counts.
#[derive(Default)]
struct Count(Plain);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Count {
    fn is_pending(self: &Arc<Self>, ticket: &mut Ticket) -> bool {
        match Pin::new(ticket).poll(&mut Context::from_waker(&self.clone().into())) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                assert_told(outcome);
                false
            }
        }
    }

    fn woken(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// Three that block on one ticket, for either step, are all woken.
#[test]
fn everybody_who_blocks_is_woken() {
    explore("blocked on a ticket", None, |between_the_steps| {
        let (promise, ticket) = promised();
        let ticket = Arc::new(ticket);
        let applied = {
            let ticket = Arc::clone(&ticket);
            thread::spawn(move || assert_told(ticket.applied()))
        };
        let durable = {
            let ticket = Arc::clone(&ticket);
            thread::spawn(move || {
                assert_eq!(ticket.durable().unwrap(), TX);
                !ticket.is_done()
            })
        };
        keep(promise);
        applied.join().unwrap();
        between_the_steps.fetch_add(usize::from(durable.join().unwrap()), Relaxed);
        assert_told(ticket.applied());
    });
}

/// A promise that is dropped, by a thread that unwinds for instance, tells a waiter and a task all the same.
#[test]
fn a_dropped_promise_wakes() {
    explore("dropped promise", None, |waited| {
        let (promise, ticket) = promised();
        let waiter = thread::spawn(move || {
            let is_waiting = !ticket.is_done();
            assert_eq!(ticket.durable().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
            is_waiting
        });
        drop(promise);
        waited.fetch_add(usize::from(waiter.join().unwrap()), Relaxed);

        let (promise, ticket) = promised();
        let task = thread::spawn(move || block_on(ticket).unwrap_err().kind());
        drop(promise);
        assert_eq!(task.join().unwrap(), ErrorKind::OutcomeUnknown);
    });
}

/// A task that awaits is woken for the outcome, and not before.
#[test]
fn a_task_is_woken() {
    explore("awaited ticket", None, |was_durable| {
        let (promise, ticket) = promised();
        let state = promise.state().unwrap();
        let promising = thread::spawn(move || keep(promise));
        let is_durable = {
            let progress = state.progress.lock();
            progress.durable.is_some() && progress.outcome.is_none()
        };
        assert_told(block_on(ticket));
        promising.join().unwrap();
        was_durable.fetch_add(usize::from(is_durable), Relaxed);
    });
}

/// Of two wakers that a ticket was polled with the last one is woken, once, unless the poll had the outcome already; the
/// first one only if the outcome came before it was replaced.
#[test]
fn a_replaced_waker_is_not_woken() {
    explore("replaced waker", None, |second_woken| {
        let (promise, mut ticket) = promised();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let promising = thread::spawn(move || keep(promise));
        let is_first_pending = first.is_pending(&mut ticket);
        let is_second_pending = second.is_pending(&mut ticket);
        promising.join().unwrap();
        let expected = (usize::from(is_first_pending && !is_second_pending), usize::from(is_second_pending));
        assert_eq!((first.woken(), second.woken()), expected);
        assert!(!first.is_pending(&mut ticket), "it has an outcome");
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 1));
        second_woken.fetch_add(second.woken(), Relaxed);
    });
}

/// A ticket that was polled and goes to another thread, where it is awaited with that one's waker, wakes that thread.
#[test]
fn a_ticket_that_changes_threads_wakes_the_new_one() {
    explore("ticket that changes threads", None, |moved_pending| {
        let (promise, mut ticket) = promised();
        let first = Arc::new(Count::default());
        let promising = thread::spawn(move || keep(promise));
        let is_pending = first.is_pending(&mut ticket);
        thread::spawn(move || assert_told(block_on(ticket))).join().unwrap();
        promising.join().unwrap();
        assert_eq!(Arc::strong_count(&first), 1);
        moved_pending.fetch_add(usize::from(is_pending && first.woken() == 0), Relaxed);
    });
}

/// A future that is dropped lets go of its waker, woken or not, and the other side goes on.
#[test]
fn a_dropped_future_keeps_no_waker() {
    explore("dropped future", None, |never_woken| {
        let (promise, mut ticket) = promised();
        let count = Arc::new(Count::default());
        let promising = thread::spawn(move || keep(promise));
        let is_pending = count.is_pending(&mut ticket);
        drop(ticket);
        promising.join().unwrap();
        assert_eq!(Arc::strong_count(&count), 1, "the waker is kept");
        assert!(count.woken() <= usize::from(is_pending));
        never_woken.fetch_add(usize::from(is_pending && count.woken() == 0), Relaxed);
    });
}

/// A waker may drop the task that owns the ticket, and the ticket with it.
#[test]
fn a_waker_may_drop_its_ticket() {
    struct Task(std::sync::Mutex<Option<Ticket>>, Arc<Plain>);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.1.fetch_add(usize::from(self.0.lock().unwrap().take().is_some()), Relaxed);
        }
    }

    explore("waker that drops its ticket", None, |dropped_there| {
        let (promise, mut ticket) = promised();
        let dropped = Arc::new(Plain::new(0));
        let task = Arc::new(Task(std::sync::Mutex::default(), Arc::clone(&dropped)));
        let polled = Pin::new(&mut ticket).poll(&mut Context::from_waker(&task.clone().into()));
        assert!(polled.is_pending());
        *task.0.lock().unwrap() = Some(ticket);
        thread::spawn(move || keep(promise)).join().unwrap();
        assert_eq!((Arc::strong_count(&task), dropped.load(Relaxed)), (1, 1));
        dropped_there.fetch_add(1, Relaxed);
    });
}
