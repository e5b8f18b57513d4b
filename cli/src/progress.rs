//! A line on standard error that says what takes so long, and vanishes when it is done.
//!
//! Only where somebody watches: on a terminal, and not before a second has passed.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::color::is_capable;
use crate::text::printable;

/// What is done within this time is not worth a word.
const SILENCE: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_millis(250);
/// Longer lines would be broken, and a broken line can't be taken back.
const WIDTH_MAX: usize = 60;

/// The line, until it is dropped. Nothing else may be written to the terminal before.
pub(crate) struct Progress(Option<Shown>);

struct Shown {
    what: Arc<Mutex<String>>,
    /// Dropped to stop the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins something that may take long.
    pub(crate) fn of(what: impl Display) -> Self {
        Self::unless(false, what)
    }

    /// As [`Progress::of`], but never shown if something else needs the terminal.
    pub(crate) fn unless(is_hidden: bool, what: impl Display) -> Self {
        if is_hidden || !is_capable(&io::stderr()) {
            return Self(None);
        }
        let what = Arc::new(Mutex::new(what.to_string()));
        let (stop, stopped) = channel();
        let watched = what.clone();
        // Without a thread there is no line, and nothing else is missing.
        let thread = thread::Builder::new().spawn(move || tick(&watched, &stopped, &mut io::stderr())).ok();
        Self(Some(Shown { what, stop: Some(stop), thread }))
    }

    /// Whether somebody may see it.
    pub(crate) fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    /// Says what is done from now on.
    pub(crate) fn say(&self, what: impl Display) {
        if let Some(shown) = &self.0 {
            *shown.what.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the line over and over until the other end of `stopped` is dropped, and takes it back.
fn tick(what: &Mutex<String>, stopped: &Receiver<()>, terminal: &mut impl Write) {
    let started = Instant::now();
    let mut pause = SILENCE;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
        let what = printable(&what.lock().unwrap_or_else(PoisonError::into_inner));
        let what: String = what.chars().take(WIDTH_MAX).collect();
        // Whether it is seen doesn't matter. The sequence clears the rest of the line.
        let _ = write!(terminal, "\r{what} ... {} s\x1b[K", started.elapsed().as_secs());
        let _ = terminal.flush();
        pause = REFRESH;
    }
    if pause == REFRESH {
        let _ = write!(terminal, "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quick_says_nothing_and_what_is_slow_leaves_nothing() {
        let what = Mutex::new(format!("recovering \u{1b}{}", "x".repeat(100)));
        let shown = |time: Duration| {
            let (stop, stopped) = channel();
            let what = &what;
            thread::scope(|scope| {
                let ticking = scope.spawn(move || {
                    let mut terminal = Vec::new();
                    tick(what, &stopped, &mut terminal);
                    String::from_utf8(terminal).unwrap()
                });
                thread::sleep(time);
                drop(stop);
                ticking.join().unwrap()
            })
        };
        assert_eq!(shown(Duration::from_millis(50)), "");
        let slow = shown(SILENCE + REFRESH);
        assert!(slow.starts_with("\rrecovering \\u{1b}xxx") && slow.contains(" ... 1 s\x1b[K"), "{slow:?}");
        assert!(slow.ends_with("\r\x1b[K"), "{slow:?}");
        assert!(slow.split('\r').all(|line| line.chars().count() < 80), "{slow:?}");
    }
}
