//! Submitted transactions: the queue, the thread that commits them, and the tickets and wakers on the other side.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake};

use loom::future::block_on;

use super::*;
use crate::Ticket;

fn submit(store: &Store, path: &str) -> Result<Ticket, Error> {
    writing(store, path, b"new")?.submit()
}

/// Two threads submit: `durable` returns after a sync that covers it, `applied` when it is in place.
///
/// Bound: 3 preemptions.
#[test]
fn two_submitters() {
    let begin = prepared(|_| ());
    explore("two submitters", Some(3), move |shared_syncs| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let run = |path: &'static str| {
            let (machine, store) = (Arc::clone(&machine), store.clone());
            move || {
                let ticket = submit(&store, path).unwrap();
                ticket.durable().unwrap();
                let cut = machine.cut();
                ticket.applied().unwrap();
                assert_eq!(read(&machine.sim, path).unwrap(), b"new");
                assert_eq!(read(&recovered(&cut).0, path).unwrap(), b"new");
            }
        };
        let other = start(run("two"));
        run("one")();
        other.join().unwrap();
        shared_syncs.fetch_add(usize::from(machine.syncs.begun.load(Relaxed) == 1), Relaxed);
    });
}

/// What is submitted becomes durable in its order, and at most as many wait as may; an ordinary commit beside them is
/// led by the committing thread or leads it.
///
/// Bound: 2 preemptions.
#[test]
fn order_beside_a_committer() {
    let begin = prepared(|_| ());
    explore("order beside a committer", Some(2), move |led_together| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options.submitted_max(2));
        let committer = {
            let store = store.clone();
            start(move || commit(&store, "beside", b"new").unwrap())
        };
        let tickets = ["one", "two", "three"].map(|path| submit(&store, path).unwrap());
        assert!(read(&machine.sim, "one").is_some(), "three were waiting");
        tickets[2].durable().unwrap();
        let cut = machine.cut();
        let found = recovered(&cut).0;
        assert!(["one", "two", "three"].iter().all(|path| read(&found, path).is_some()), "not in order");
        tickets.iter().for_each(|ticket| assert_eq!(ticket.applied().unwrap().files(), 1));
        committer.join().unwrap();
        led_together.fetch_add(usize::from(machine.syncs.first_batch.load(Relaxed) > 1), Relaxed);
    });
}

/// A failed sync tells every ticket, those that it was for and those behind, and an ordinary committer; and the store
/// can still be given up.
///
/// Bound: 3 preemptions.
#[test]
fn failed_sync() {
    let begin = prepared(|_| ());
    explore("failed sync of submitted ones", Some(3), move |unknown_and_poisoned| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        machine.sim.fail_next_sync();
        let committer = {
            let store = store.clone();
            start(move || commit(&store, "beside", b"new").unwrap_err().kind())
        };
        let tickets = ["one", "two"].map(|path| submit(&store, path));
        let mut kinds = vec![committer.join().unwrap()];
        kinds.extend(tickets.map(|ticket| match ticket {
            Ok(ticket) => {
                let kind = ticket.durable().unwrap_err().kind();
                assert_eq!(ticket.applied().unwrap_err().kind(), kind);
                kind
            }
            Err(error) => error.kind(),
        }));
        let unknown = kinds.iter().filter(|kind| **kind == ErrorKind::OutcomeUnknown).count();
        let poisoned = kinds.iter().filter(|kind| **kind == ErrorKind::Poisoned).count();
        assert_eq!(unknown + poisoned, 3, "{kinds:?}");
        assert_eq!(unknown, machine.syncs.first_batch.load(Relaxed), "one batch, and no other");
        assert_eq!(machine.syncs.begun.load(Relaxed), 1, "nothing is synced after a failed sync");
        unknown_and_poisoned.fetch_add(usize::from(unknown == 2), Relaxed);
    });
}

/// A task that awaits tickets is woken for each, while another thread submits.
///
/// Bound: 2 preemptions.
#[test]
fn awaited() {
    let begin = prepared(|_| ());
    explore("awaited tickets", Some(2), move |both_in_flight| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let other = {
            let store = store.clone();
            start(move || drop(submit(&store, "dropped").unwrap()))
        };
        let (one, two) = (submit(&store, "one").unwrap(), submit(&store, "two").unwrap());
        let is_in_flight = read(&machine.sim, "one").is_none();
        assert_eq!(block_on(async { two.await.unwrap().files() + one.await.unwrap().files() }), 2);
        other.join().unwrap();
        store.close().unwrap();
        assert!(read(&machine.sim, "dropped").is_some(), "a dropped ticket cancels nothing");
        both_in_flight.fetch_add(usize::from(is_in_flight), Relaxed);
    });
}

/// A task's waker that holds the last handle of the store and lets go of it.
struct LastHandle {
    store: std::sync::Mutex<Option<Store>>,
    was_last: Arc<AtomicBool>,
}

impl Wake for LastHandle {
    fn wake(self: Arc<Self>) {
        let store = self.store.lock().unwrap().take();
        let is_last = store.as_ref().is_some_and(|store| Arc::strong_count(&store.shared) == 1);
        self.was_last.fetch_or(is_last, Relaxed);
        drop(store);
    }
}

/// A waker that drops the last handle, on the committing thread, has that thread close the store; nobody else has to.
///
/// Bound: 3 preemptions.
#[test]
fn last_handle_in_a_waker() {
    let begin = prepared(|_| ());
    explore("last handle in a waker", Some(3), move |dropped_there| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let was_last = Arc::new(AtomicBool::new(false));
        let mut first = submit(&store, "one").unwrap();
        let second = submit(&store, "two").unwrap();
        let waker = LastHandle { store: std::sync::Mutex::new(Some(store)), was_last: was_last.clone() };
        let waker = Arc::new(waker).into();
        let polled = Pin::new(&mut first).poll(&mut Context::from_waker(&waker));
        drop(waker);
        assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(_))));
        second.applied().unwrap();
        first.applied().unwrap();
        // Held until the store is closed. If the waker was woken, that is on its way; else the drop has done it.
        drop((first, second));
        while machine.is_locked() {
            loom::thread::yield_now();
        }
        let (found, report) = recovered(&machine.sim);
        assert_eq!(report, Report::default());
        assert!(["one", "two"].iter().all(|path| read(&found, path).is_some()));
        dropped_there.fetch_add(usize::from(was_last.load(Relaxed)), Relaxed);
    });
}
