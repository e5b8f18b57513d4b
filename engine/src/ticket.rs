//! A ticket: what the caller of `submit` holds while its transaction commits on another thread.
//!
//! The ticket and its promise share one small state. The promise's side notes the commit point and then the outcome,
//! each once; the ticket's side waits, by blocking or as a future. Invariant: every promise is settled, in a thread
//! that unwinds too, so that nobody waits for ever. How transactions get there is `submit.rs`'s business.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use atomtree_recovery::plan::TransactionId;
use atomtree_wal::sync::{Condvar, Guard, Mutex};

use crate::commit::Receipt;
use crate::error::Error;

#[cfg(all(test, loom))]
mod models;

/// A transaction that was submitted and commits behind its caller's back. Made by [`crate::Transaction::submit`].
///
/// Dropping a ticket does not cancel anything: the transaction commits all the same. A ticket outlives the handles of
/// its store; the last of those waits, when it is dropped, until everything that was submitted has an outcome.
///
/// It is also a future, of any runtime or none, that is ready when [`Ticket::applied`] would return. It is woken from
/// the store's committing thread, so its waker should do no more than wake: while it blocks, nothing that was submitted
/// goes on.
///
/// ```
/// # let scratch = tempfile::tempdir()?;
/// # let store = atomtree::Store::open(scratch.path())?;
/// let mut tickets = Vec::new();
/// for n in 0..100 {
///     let mut tx = store.begin()?;
///     tx.write(format!("reports/{n}.txt"), format!("report {n}\n"))?;
///     tickets.push(tx.submit()?);                       // staged; a few syncs will do for all of them
/// }
/// for ticket in &tickets {
///     ticket.durable()?;                                // survives power loss
///     let receipt = ticket.applied()?;                  // and is in place
///     assert!(receipt.files() > 0);
/// }
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the transaction commits all the same, but only its ticket tells whether it did"]
pub struct Ticket {
    state: Arc<TicketState>,
}

/// What a ticket and its promise share.
pub(crate) struct TicketState {
    progress: Mutex<Progress>,
    /// Wakes those who block for the next step; goes with `progress`.
    news: Condvar,
    /// Id of the process whose thread settles it; in a forked child nothing ever does.
    opened_by: u32,
}

/// How far the transaction has come. Guarded by the lock of [`TicketState::progress`].
#[derive(Default)]
struct Progress {
    /// Its number, once the commit point has passed.
    durable: Option<TransactionId>,
    /// What became of it. An error is replaced by an equivalent one when it is handed out.
    outcome: Option<Result<Receipt, Error>>,
    /// Whom the outcome is to wake, if the ticket was polled.
    waker: Option<Waker>,
}

impl Ticket {
    /// Blocks until the transaction is durable, and returns its number; 0 if it changed nothing and was only
    /// validated.
    ///
    /// # Durability
    /// When this returns `Ok`, the transaction survives power loss, and so does everything that was submitted to this
    /// store before it and did not fail. It may not be in place yet: who reads the tree directly finds it after
    /// [`Ticket::applied`], or after recovery.
    ///
    /// # Errors
    /// As [`crate::Transaction::commit`]. An error can be asked for again, here and from [`Ticket::applied`], and is
    /// then of the same kind, path and message. `unsupported` in a forked child, where nothing is committed.
    pub fn durable(&self) -> Result<TransactionId, Error> {
        let mut progress = self.wait_until(|progress| progress.durable.is_some())?;
        match progress.durable {
            Some(tx) => Ok(tx),
            None => progress.tell().map(|receipt| receipt.tx()),
        }
    }

    /// Blocks until the transaction is in place, and for [`crate::Durability::Settled`] until it is settled.
    ///
    /// # Durability
    /// As [`crate::Transaction::commit`].
    ///
    /// # Errors
    /// As [`Ticket::durable`], and `committed_not_applied` for a transaction that is durable and that recovery will
    /// put in place.
    pub fn applied(&self) -> Result<Receipt, Error> {
        self.wait_until(|_| false)?.tell()
    }

    /// Whether the outcome is known, so that [`Ticket::applied`] and [`Ticket::durable`] return at once.
    pub fn is_done(&self) -> bool {
        self.state.progress.lock().outcome.is_some()
    }

    /// Blocks until there is an outcome, or `is_enough` says that what there is will do.
    fn wait_until(&self, is_enough: impl Fn(&Progress) -> bool) -> Result<Guard<'_, Progress>, Error> {
        let mut progress = self.state.progress.lock();
        while progress.outcome.is_none() && !is_enough(&progress) {
            self.state.check_process()?;
            progress = self.state.news.wait(progress);
        }
        Ok(progress)
    }
}

impl Future for Ticket {
    type Output = Result<Receipt, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut progress = self.state.progress.lock();
        if progress.outcome.is_some() {
            return Poll::Ready(progress.tell());
        }
        if let Err(error) = self.state.check_process() {
            return Poll::Ready(Err(error));
        }
        let previous = match &progress.waker {
            Some(waker) if waker.will_wake(context.waker()) => None,
            _ => progress.waker.replace(context.waker().clone()),
        };
        drop(progress);
        // After the unlock: what a waker's drop runs is its owner's business.
        drop(previous);
        Poll::Pending
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.state.progress.lock();
        f.debug_struct("Ticket")
            .field("durable", &progress.durable)
            .field("outcome", &progress.outcome)
            .finish_non_exhaustive()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody polls any more, and a waker may keep a whole task alive.
        let waker = self.state.progress.lock().waker.take();
        drop(waker);
    }
}

impl Progress {
    /// The outcome, which is there. An error stays behind in an equivalent form.
    fn tell(&mut self) -> Result<Receipt, Error> {
        match self.outcome.as_mut().expect("it was waited for") {
            Ok(receipt) => Ok(receipt.clone()),
            Err(error) => {
                let again = error.again();
                Err(std::mem::replace(error, again))
            }
        }
    }
}

impl TicketState {
    /// Notes that the commit point has passed. Wakes only those who block: futures wait for the outcome, and no waker
    /// may run here, under the commit lock.
    pub(crate) fn note_durable(&self, tx: TransactionId) {
        self.progress.lock().durable = Some(tx);
        self.news.notify_all();
    }

    fn check_process(&self) -> Result<(), Error> {
        if std::process::id() == self.opened_by { Ok(()) } else { Err(Error::in_fork()) }
    }

    fn settle(&self, outcome: Result<Receipt, Error>) {
        let mut progress = self.progress.lock();
        assert!(progress.outcome.is_none(), "an outcome is final");
        progress.outcome = Some(match (outcome, progress.durable) {
            // Its outcome is known as far as the log goes.
            (Err(Error::OutcomeUnknown { reason }), Some(tx)) => Err(Error::CommittedNotApplied {
                tx,
                path: PathBuf::from("."),
                source: io::Error::other(reason),
            }),
            (outcome, _) => outcome,
        });
        let waker = progress.waker.take();
        drop(progress);
        self.news.notify_all();
        if let Some(waker) = waker {
            // Another's waker that panics is no reason to stop committing; the panic hook has told of it.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// The duty to tell a ticket what became of its transaction.
///
/// Dropping it unsettled, as a thread does that unwinds, tells that nobody knows.
pub(crate) struct Promise {
    /// Absent once settled.
    state: Option<Arc<TicketState>>,
}

impl Promise {
    /// A promise and its ticket, in the process with this id.
    pub(crate) fn new(opened_by: u32) -> (Self, Ticket) {
        let state = Arc::new(TicketState { progress: Mutex::default(), news: Condvar::new(), opened_by });
        (Self { state: Some(state.clone()) }, Ticket { state })
    }

    /// Where the commit point is to be noted.
    pub(crate) fn state(&self) -> Option<Arc<TicketState>> {
        self.state.clone()
    }

    /// Tells the outcome, and wakes whoever waits for it.
    pub(crate) fn settle(mut self, outcome: Result<Receipt, Error>) {
        if let Some(state) = self.state.take() {
            state.settle(outcome);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let reason = "the thread that was committing it panicked".into();
            state.settle(Err(Error::OutcomeUnknown { reason }));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::error::ErrorKind;

    struct Idle;

    impl Wake for Idle {
        fn wake(self: Arc<Self>) {}
    }

    fn poll(ticket: &mut Ticket, idle: &Arc<Idle>) -> Poll<Result<Receipt, Error>> {
        Pin::new(ticket).poll(&mut Context::from_waker(&idle.clone().into()))
    }

    /// A promise that nobody keeps says so; if the commit point has passed, that much is known.
    #[test]
    fn a_dropped_promise_tells_what_is_known() {
        let (promise, ticket) = Promise::new(std::process::id());
        drop(promise);
        assert_eq!(ticket.durable().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(ticket.applied().unwrap_err().kind(), ErrorKind::OutcomeUnknown);

        let (promise, ticket) = Promise::new(std::process::id());
        promise.state().unwrap().note_durable(TransactionId(7));
        drop(promise);
        assert_eq!(ticket.durable().unwrap(), TransactionId(7));
        for _ in 0..2 {
            let error = ticket.applied().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CommittedNotApplied, "{error}");
        }
    }

    /// In a forked child there is no thread that would ever settle a ticket. Method: another process's id.
    #[test]
    fn nobody_waits_in_a_forked_child() {
        let (promise, mut ticket) = Promise::new(std::process::id() + 1);
        assert_eq!(ticket.durable().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(ticket.applied().unwrap_err().kind(), ErrorKind::Unsupported);
        let Poll::Ready(outcome) = poll(&mut ticket, &Arc::new(Idle)) else {
            panic!("it would wait for ever")
        };
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported);
        // What was known before the fork is known after it.
        promise.settle(Err(Error::closed()));
        assert_eq!(ticket.applied().unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    /// A waker often owns its task, so that a future that is dropped must not keep it.
    #[test]
    fn a_dropped_ticket_lets_go_of_its_waker() {
        let (promise, mut ticket) = Promise::new(std::process::id());
        let idle = Arc::new(Idle);
        assert!(poll(&mut ticket, &idle).is_pending());
        assert_eq!(Arc::strong_count(&idle), 2);
        drop(ticket);
        assert_eq!(Arc::strong_count(&idle), 1);
        promise.settle(Err(Error::closed()));
    }
}
