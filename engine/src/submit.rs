//! Submitted transactions: the queue that callers put them in, and the one thread for each store that commits them.
//!
//! The thread takes everything that waits as one parcel and hands it in like any other committer; while that is being
//! synced the next parcel fills up, so that syncs are shared without anybody waiting for company. It keeps the order of
//! submission: what stands behind a transaction for which the log has no room is held back with it.
//!
//! The thread starts with the first submit and holds the engine only, so that it keeps no store open.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use atomtree_recovery::tree_path::STORE_DIR;
use atomtree_wal::sync::{self, Condvar, Mutex, Thread, ThreadId};

use crate::commit::Outcome;
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::Durability;
use crate::stage::Prepared;
use crate::store::Engine;
use crate::ticket::{Promise, Ticket};
use crate::trace;
use crate::transaction::Transaction;

/// The queue, and who works on it. Its lock is held for moments only, and no other is taken under it.
#[derive(Default)]
pub(crate) struct Submits {
    state: Mutex<State>,
    /// Wakes the committing thread: there is something to commit, or nothing more will come. Goes with `state`.
    work: Condvar,
    /// Wakes those who wait for a place, or for all to be finished. Goes with `state`.
    finished: Condvar,
}

/// Guarded by the lock of [`Submits::state`].
#[derive(Default)]
struct State {
    queue: VecDeque<Submitted>,
    /// How many are queued or in the thread's hands.
    unfinished: usize,
    /// How many are closing the store, or have closed it: nothing is taken meanwhile.
    closers: usize,
    is_stopping: bool,
    /// Whether the last handle was dropped on the committing thread itself, which then closes the store.
    is_orphaned: bool,
    /// The committing thread, until someone joins it.
    thread: Option<Thread<()>>,
    /// Its id, for good.
    thread_id: Option<ThreadId>,
}

/// A transaction on its way to the committing thread.
struct Submitted {
    prepared: Prepared,
    order: Order,
}

/// What is to be done for a submitted transaction once it is committed.
struct Order {
    promise: Promise,
    durability: Durability,
}

impl Engine {
    /// Prepares on this thread, and leaves the rest to the committing one.
    pub(crate) fn submit(self: &Arc<Self>, mut transaction: Transaction) -> Result<Ticket, Error> {
        trace::span!(
            "atomtree.submit",
            label = transaction.label.as_deref(),
            agent = transaction.agent.as_deref(),
            names = transaction.view.touched(),
        );
        self.check_health()?;
        let durability = transaction.durability;
        let mut prepared = match self.plan_and_stage(&mut transaction) {
            Ok(prepared) => prepared,
            Err(error) => return Err(error.with_transaction(transaction)),
        };
        let (promise, ticket) = Promise::new(self.opened_by.pid());
        prepared.ticket = promise.state();
        self.enqueue(Submitted { prepared, order: Order { promise, durability } })?;
        Ok(ticket)
    }

    /// Puts a transaction at the end of the queue, when there is a place.
    fn enqueue(self: &Arc<Self>, submitted: Submitted) -> Result<(), Error> {
        let submits = &self.submits;
        let mut state = submits.state.lock();
        while state.closers == 0 && state.unfinished >= self.options.submitted_max {
            state = submits.finished.wait(state);
        }
        if state.closers > 0 {
            return Err(Error::closed());
        }
        if state.thread_id.is_none() {
            let engine = self.clone();
            let thread = sync::spawn("atomtree-committer", move || run(&engine))
                .on("start a thread for", STORE_DIR)?;
            state.thread_id = Some(thread.thread().id());
            state.thread = Some(thread);
        }
        state.unfinished += 1;
        state.queue.push_back(submitted);
        drop(state);
        submits.work.notify_one();
        Ok(())
    }

    /// Takes nothing more, and waits until everything that was submitted has an outcome.
    ///
    /// # Errors
    /// `invalid_input` on the committing thread itself, which would wait for its own end.
    pub(crate) fn drain_submits(&self) -> Result<(), Error> {
        let submits = &self.submits;
        if self.is_committing_thread() {
            let reason = "a ticket's waker can't close the store; wake a thread that does";
            return Err(Error::invalid(ErrorKind::InvalidInput, reason));
        }
        let mut state = submits.state.lock();
        state.closers += 1;
        // Those who wait for a place get none any more.
        submits.finished.notify_all();
        while state.unfinished > 0 {
            state = submits.finished.wait(state);
        }
        Ok(())
    }

    /// Takes transactions again, after a close that failed.
    pub(crate) fn take_submits_again(&self) {
        self.submits.state.lock().closers -= 1;
    }

    /// Ends the committing thread, which has nothing left to do.
    pub(crate) fn stop_submits(&self) {
        let mut state = self.submits.state.lock();
        state.is_stopping = true;
        let thread = state.thread.take();
        drop(state);
        self.submits.work.notify_one();
        if let Some(thread) = thread {
            // Its panics were caught, and have poisoned the store.
            let _ = thread.join();
        }
    }

    /// Whether this is the thread that commits what was submitted; then some ticket's waker is running.
    pub(crate) fn is_committing_thread(&self) -> bool {
        self.submits.state.lock().thread_id == Some(sync::current_thread())
    }

    /// Leaves it to the committing thread, which is this one, to close the store when it has done everything.
    pub(crate) fn orphan_submits(&self) {
        let mut state = self.submits.state.lock();
        (state.is_stopping, state.is_orphaned) = (true, true);
    }

    /// Waits for transactions and takes all there are; `None` if none will come any more.
    fn next_parcel(&self) -> Option<Vec<Submitted>> {
        let mut state = self.submits.state.lock();
        while state.queue.is_empty() && !state.is_stopping {
            state = self.submits.work.wait(state);
        }
        if state.queue.is_empty() { None } else { Some(std::mem::take(&mut state.queue).into()) }
    }

    /// Commits a parcel and tells each ticket; goes on until every one has an outcome.
    fn commit_parcel(&self, parcel: Vec<Submitted>) {
        let (mut parcel, mut orders): (Vec<Prepared>, Vec<Order>) =
            parcel.into_iter().map(|Submitted { prepared, order }| (prepared, order)).unzip();
        while !parcel.is_empty() {
            let room = self.room();
            let outcomes = match self.hand_in(self.group.announce(), std::mem::take(&mut parcel)) {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    orders.into_iter().for_each(|order| order.promise.settle(Err(error.again())));
                    return;
                }
            };
            let (mut used_bytes, mut unsettled) = (None, Vec::new());
            for (outcome, order) in outcomes.into_iter().zip(std::mem::take(&mut orders)) {
                match outcome {
                    Outcome::Committed(receipt) if order.durability == Durability::Settled => {
                        unsettled.push((receipt, order.promise));
                    }
                    Outcome::Committed(receipt) => order.promise.settle(Ok(receipt)),
                    Outcome::Failed(error) => order.promise.settle(Err(error)),
                    Outcome::Full(again, used) => {
                        used_bytes = Some(used);
                        parcel.push(*again);
                        orders.push(order);
                    }
                    Outcome::Unsettled(again) => {
                        parcel.push(*again);
                        orders.push(order);
                    }
                }
            }
            // One checkpoint settles them all; those after the first find nothing left to settle.
            for (receipt, promise) in unsettled {
                promise.settle(self.settle_receipt(receipt));
            }
            if parcel.is_empty() {
                return;
            }
            let result = match used_bytes {
                Some(used_bytes) => self.make_room(used_bytes, room),
                None => self.checkpoint(),
            };
            if let Err(error) = result {
                // There is no room for the first; those that were held back behind it may fit.
                drop(parcel.remove(0));
                orders.remove(0).promise.settle(Err(error));
            }
        }
    }

    fn note_finished(&self, count: usize) {
        self.submits.state.lock().unfinished -= count;
        self.submits.finished.notify_all();
    }
}

/// What the committing thread does.
fn run(engine: &Engine) {
    while let Some(parcel) = engine.next_parcel() {
        let count = parcel.len();
        // Unwinding has told every ticket. The thread lives on, to tell those that come later.
        if catch_unwind(AssertUnwindSafe(|| engine.commit_parcel(parcel))).is_err() {
            engine.poison("a thread panicked while it was committing");
        }
        engine.note_finished(count);
    }
    if engine.submits.state.lock().is_orphaned {
        // Nothing is lost by an error here: what is not settled, the next open settles.
        let _ = engine.close();
        engine.stop_checkpointer();
    }
}
