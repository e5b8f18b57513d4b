//! What went wrong, on which path, and what to do about it.

use std::fmt::Display;
use std::path::Path;

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was tried and failed.
    #[error("cannot {doing} {path}: {reason}")]
    Failed {
        /// The verb.
        doing: &'static str,
        /// On what.
        path: String,
        /// The cause, with the remedy where there is one.
        reason: String,
    },
    /// This rival does no such thing.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Failure {
    /// What failed, on what, and why.
    pub fn new(doing: &'static str, path: impl Display, reason: impl Display) -> Self {
        Self::Failed { doing, path: path.to_string(), reason: reason.to_string() }
    }
}

/// Says what was done to which path when an error comes up.
pub trait On<T> {
    /// Names the deed and the path.
    fn on(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, Failure>;
}

impl<T, E: Display> On<T> for Result<T, E> {
    fn on(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(doing, path.as_ref().display(), error))
    }
}
