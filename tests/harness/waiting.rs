//! Waits that have an end: what hangs is told as a failure of the test that waits.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything in a test takes, on a machine that is busy with other things.
pub const TOO_LONG: Duration = Duration::from_mins(1);
/// Long enough for what must not happen to happen.
pub const A_WHILE: Duration = Duration::from_millis(100);

/// What runs in a thread of its own.
pub struct Running<T> {
    done: mpsc::Receiver<T>,
    thread: thread::JoinHandle<()>,
}

/// Runs what may block.
pub fn start<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Running<T> {
    let (sender, done) = mpsc::channel();
    let thread = thread::spawn(move || drop(sender.send(run())));
    Running { done, thread }
}

impl<T> Running<T> {
    /// What it returned, or why not: [`mpsc::RecvTimeoutError::Disconnected`] if it panicked.
    pub fn outcome(&self) -> Result<T, mpsc::RecvTimeoutError> {
        self.done.recv_timeout(TOO_LONG)
    }

    /// What it returned. It must not hang; if it panicked, so does this.
    #[track_caller]
    pub fn end(self) -> T {
        match self.outcome() {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
            Err(mpsc::RecvTimeoutError::Disconnected) => match self.thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("it sends before it ends"),
            },
        }
    }

    /// It must not have come to an end after a while.
    #[track_caller]
    pub fn assert_blocked(&self) {
        assert!(self.done.recv_timeout(A_WHILE).is_err(), "it should have waited");
    }
}

/// Runs what may block, within a time.
#[track_caller]
pub fn within<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    start(run).end()
}

/// Unparks the thread that made it.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A whole runtime, of `std` only.
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(TOO_LONG);
        assert!(start.elapsed() < TOO_LONG, "nobody wakes it");
    }
}
