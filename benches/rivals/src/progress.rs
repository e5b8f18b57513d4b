//! What is going on, on the last line of a terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr};

/// Shows what is measured now, if somebody is looking.
pub struct Progress {
    is_shown: bool,
    width: Cell<usize>,
}

impl Progress {
    /// On standard error, if that is a terminal.
    pub fn new() -> Self {
        Self { is_shown: stderr().is_terminal(), width: Cell::new(0) }
    }

    /// Replaces the line.
    pub fn show(&self, text: &str) {
        if self.is_shown {
            let _ = write!(stderr(), "\r{text:<width$}", width = self.width.replace(text.len()));
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if self.is_shown {
            let _ = write!(stderr(), "\r{:width$}\r", "", width = self.width.replace(0));
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
