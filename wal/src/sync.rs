//! The locks and the clock of group commit: `parking_lot` in every ordinary build, loom where the models run.
//!
//! The two differ in how a guard passes through a condition variable and in poisoning; here they look alike, so
//! that the code under the models is the code that ships. What group commit does not use is left out. A wait may
//! end for no reason, so callers check their condition in a loop.

#[cfg(all(test, loom))]
pub(crate) use modelled::{Condvar, Guard, Mutex, Stopwatch};
#[cfg(not(all(test, loom)))]
pub(crate) use ordinary::{Condvar, Guard, Mutex, Stopwatch};

#[cfg(not(all(test, loom)))]
mod ordinary {
    use std::time::{Duration, Instant};

    pub(crate) use parking_lot::{Mutex, MutexGuard as Guard};

    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(parking_lot::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(&self, mut guard: Guard<'a, T>) -> Guard<'a, T> {
            self.0.wait(&mut guard);
            guard
        }

        /// Waits at most `longest`. It does not say why it ended: callers have a condition and a [`Stopwatch`].
        pub(crate) fn wait_timeout<'a, T>(&self, mut guard: Guard<'a, T>, longest: Duration) -> Guard<'a, T> {
            self.0.wait_for(&mut guard, longest);
            guard
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }

    /// Measures how long something takes.
    pub(crate) struct Stopwatch(Instant);

    impl Stopwatch {
        pub(crate) fn start() -> Self {
            Self(Instant::now())
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.0.elapsed()
        }
    }
}

#[cfg(all(test, loom))]
mod modelled {
    use std::time::Duration;

    pub(crate) use loom::sync::MutexGuard as Guard;

    const NO_POISON: &str = "loom's locks return no poison errors";

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            self.0.lock().expect(NO_POISON)
        }
    }

    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
            self.0.wait(guard).expect(NO_POISON)
        }

        /// Waits until notified: loom has no timeouts, so a wake-up that a timeout would hide shows as a deadlock.
        pub(crate) fn wait_timeout<'a, T>(&self, guard: Guard<'a, T>, _longest: Duration) -> Guard<'a, T> {
            self.wait(guard)
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }

    /// Measures nothing: what loom runs has to be repeatable, so no time passes in it.
    pub(crate) struct Stopwatch(Duration);

    impl Stopwatch {
        pub(crate) fn start() -> Self {
            Self(Duration::ZERO)
        }

        pub(crate) fn elapsed(&self) -> Duration {
            self.0
        }
    }
}
