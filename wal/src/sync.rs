//! The locks, threads and clock that atomtree's hand-made synchronisation is built of: `parking_lot` and `std` in every
//! ordinary build, loom with `--cfg loom`, where the models run.
//!
//! The two differ in how a guard passes through a condition variable, in poisoning and in time; here they look alike, so
//! that the code under the models is the code that ships. What nobody uses is left out. A wait may end for no reason, so
//! callers check their condition in a loop.

#[cfg(loom)]
pub use modelled::{
    Condvar, Guard, Mutex, Thread, ThreadId, Turn, TurnGuard, current_thread, explore, now, spawn, try_lock,
};
#[cfg(not(loom))]
pub use ordinary::{
    Condvar, Guard, Mutex, Thread, ThreadId, Turn, TurnGuard, current_thread, now, spawn, try_lock,
};

#[cfg(not(loom))]
mod ordinary {
    use std::io;
    use std::thread;
    use std::time::{Duration, Instant};

    pub use std::thread::{JoinHandle as Thread, ThreadId};

    pub use parking_lot::{Mutex, MutexGuard as Guard};

    /// A lock that is also tried, and that goes to who waits and not to who has just given it up: it is held for long.
    pub type Turn = parking_lot::FairMutex<()>;

    /// Gives the lock up when it is dropped.
    pub type TurnGuard<'a> = parking_lot::FairMutexGuard<'a, ()>;

    /// Takes a lock if nobody has it, and perhaps not even then.
    pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<Guard<'_, T>> {
        mutex.try_lock()
    }

    /// What threads wait on.
    #[derive(Default)]
    pub struct Condvar(parking_lot::Condvar);

    impl Condvar {
        /// One that nobody waits on.
        pub fn new() -> Self {
            Self::default()
        }

        /// Gives the lock up, waits, and takes it again.
        pub fn wait<'a, T>(&self, mut guard: Guard<'a, T>) -> Guard<'a, T> {
            self.0.wait(&mut guard);
            guard
        }

        /// Waits at most `longest`. It does not say why it ended: callers have a condition and the time.
        pub fn wait_timeout<'a, T>(&self, mut guard: Guard<'a, T>, longest: Duration) -> Guard<'a, T> {
            self.0.wait_for(&mut guard, longest);
            guard
        }

        /// Wakes one of those who wait.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all who wait.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// The time, for measuring how long something takes.
    pub fn now() -> Instant {
        Instant::now()
    }

    /// Starts a thread.
    pub fn spawn<R: Send + 'static>(
        name: &str,
        run: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<Thread<R>> {
        thread::Builder::new().name(name.into()).spawn(run)
    }

    /// Which thread this is.
    pub fn current_thread() -> ThreadId {
        thread::current().id()
    }
}

#[cfg(loom)]
mod modelled {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Arc, OnceLock};
    use std::time::{Duration, Instant};

    use loom::thread;

    pub use loom::sync::MutexGuard as Guard;
    pub use loom::thread::{JoinHandle as Thread, ThreadId};

    const NO_POISON: &str = "loom's locks return no poison errors";

    /// Loom's threads have 32 KiB each by default, which is too little for a store. In machine words.
    const STACK_WORDS: usize = 64 << 10;

    /// A lock.
    #[derive(Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// An unlocked one.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> Guard<'_, T> {
            self.0.lock().expect(NO_POISON)
        }
    }

    /// A lock that is also tried. In loom 0.7.2 a thread that is about to try a lock of its own blocks while another holds
    /// that, as if it waited for it, so this one is put together.
    #[derive(Default)]
    pub struct Turn {
        is_taken: Mutex<bool>,
        free: Condvar,
    }

    /// Gives the lock up when it is dropped.
    pub struct TurnGuard<'a>(&'a Turn);

    impl Turn {
        /// Waits for the lock.
        pub fn lock(&self) -> TurnGuard<'_> {
            let mut is_taken = self.is_taken.lock();
            while *is_taken {
                is_taken = self.free.wait(is_taken);
            }
            *is_taken = true;
            TurnGuard(self)
        }

        /// Waits for the lock: no time passes in loom.
        pub fn try_lock_until(&self, _deadline: Instant) -> Option<TurnGuard<'_>> {
            Some(self.lock())
        }

        /// Takes the lock if nobody has it.
        pub fn try_lock(&self) -> Option<TurnGuard<'_>> {
            let was_taken = std::mem::replace(&mut *self.is_taken.lock(), true);
            (!was_taken).then(|| TurnGuard(self))
        }
    }

    impl Drop for TurnGuard<'_> {
        fn drop(&mut self) {
            *self.0.is_taken.lock() = false;
            self.0.free.notify_one();
        }
    }

    /// Takes no lock: see [`Turn`].
    pub fn try_lock<T>(_mutex: &Mutex<T>) -> Option<Guard<'_, T>> {
        None
    }

    /// What threads wait on.
    #[derive(Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        /// One that nobody waits on.
        pub fn new() -> Self {
            Self::default()
        }

        /// Gives the lock up, waits, and takes it again.
        pub fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
            self.0.wait(guard).expect(NO_POISON)
        }

        /// Waits until notified: loom has no timeouts, so a wake-up that a timeout would hide shows as a deadlock.
        pub fn wait_timeout<'a, T>(&self, guard: Guard<'a, T>, _longest: Duration) -> Guard<'a, T> {
            self.wait(guard)
        }

        /// Wakes one of those who wait.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all who wait.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Always the same: what loom runs has to be repeatable, so no time passes in it.
    pub fn now() -> Instant {
        static NOW: OnceLock<Instant> = OnceLock::new();
        *NOW.get_or_init(Instant::now)
    }

    /// Starts a thread.
    pub fn spawn<R: Send + 'static>(
        name: &str,
        run: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<Thread<R>> {
        thread::Builder::new().name(name.into()).stack_size(STACK_WORDS).spawn(run)
    }

    /// Which thread this is.
    pub fn current_thread() -> ThreadId {
        thread::current().id()
    }

    /// Runs `model` on every schedule with at most `preemptions` preemptions, or on all schedules. The model counts in
    /// its argument what must occur on some schedule, which is unknown to loom and so costs no schedules.
    pub fn explore(
        name: &str,
        preemptions: Option<usize>,
        model: impl Fn(&Arc<AtomicUsize>) + Send + Sync + 'static,
    ) {
        let schedules = Arc::new(AtomicUsize::new(0));
        let occurrences = Arc::new(AtomicUsize::new(0));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.max_branches = 10_000;
        let begun = Instant::now();
        builder.check({
            let (schedules, occurrences) = (Arc::clone(&schedules), Arc::clone(&occurrences));
            move || {
                schedules.fetch_add(1, Relaxed);
                model(&occurrences);
            }
        });
        let elapsed = begun.elapsed();
        println!("{name}: {schedules:?} schedules, the situation in {occurrences:?}, {elapsed:.1?}");
        assert!(occurrences.load(Relaxed) > 0, "{name}: the situation never occurred");
    }
}
