//! What callers are told when something can't be done.
//!
//! Each error has a kind that programs can rely on, the path it is about where there is one, and a message that says
//! what to do. Unless its kind says otherwise, nothing was changed.

use std::io;
use std::path::{Path, PathBuf};

use atomtree_recovery as recovery;
use atomtree_recovery::apply::{is_no_directory, is_no_space};
use atomtree_recovery::error::Refusal;
use atomtree_recovery::plan::TransactionId;
use atomtree_recovery::tree_path::PathError;
use atomtree_vfs::is_symlink_error;
use atomtree_wal as wal;

use crate::trace;
use crate::transaction::Transaction;

/// What kind of error it is: stable, and spelled the same in the JSON answers of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that the transaction read, expected or replaces has changed.
    Conflict,
    /// Another process has the store.
    Locked,
    /// No space, quota or inodes; or the log cannot take a transaction of this size.
    NoSpace,
    /// The call makes no sense.
    InvalidInput,
    /// The path cannot name anything in the tree.
    InvalidPath,
    /// Nothing stands there.
    NotFound,
    /// Something stands there already.
    Exists,
    /// A component of the path is no directory.
    NotADirectory,
    /// A directory stands where a file is wanted.
    IsADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// The path leads to another file system.
    CrossDevice,
    /// Something is mounted there.
    MountPoint,
    /// The process may not, or the store belongs to someone else.
    Permission,
    /// It can't be done here or yet; the message says what can.
    Unsupported,
    /// The store is damaged.
    Corrupt,
    /// An earlier sync failed; open the store again.
    Poisoned,
    /// This sync failed: the transaction may or may not be durable. Open the store again to find out.
    OutcomeUnknown,
    /// The transaction is durable and could not be put in place; recovery finishes it.
    CommittedNotApplied,
    /// The operating system reported something else.
    Io,
}

impl ErrorKind {
    /// The kind as JSON answers spell it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Locked => "locked",
            Self::NoSpace => "no_space",
            Self::InvalidInput => "invalid_input",
            Self::InvalidPath => "invalid_path",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::NotADirectory => "not_a_directory",
            Self::IsADirectory => "is_a_directory",
            Self::NotEmpty => "not_empty",
            Self::CrossDevice => "cross_device",
            Self::MountPoint => "mount_point",
            Self::Permission => "permission",
            Self::Unsupported => "unsupported",
            Self::Corrupt => "corrupt",
            Self::Poisoned => "poisoned",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::CommittedNotApplied => "committed_not_applied",
            Self::Io => "io",
        }
    }

    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            _ if is_no_space(error) => Self::NoSpace,
            io::ErrorKind::InvalidData => Self::Corrupt,
            _ if is_symlink_error(error) => Self::NotADirectory,
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists => Self::Exists,
            io::ErrorKind::NotADirectory => Self::NotADirectory,
            io::ErrorKind::IsADirectory => Self::IsADirectory,
            io::ErrorKind::DirectoryNotEmpty => Self::NotEmpty,
            io::ErrorKind::CrossesDevices => Self::CrossDevice,
            io::ErrorKind::ResourceBusy => Self::MountPoint,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission,
            io::ErrorKind::InvalidFilename => Self::InvalidPath,
            io::ErrorKind::Unsupported => Self::Unsupported,
            _ => Self::Io,
        }
    }
}

/// An error of the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that the transaction read, expected or replaces has changed. Nothing was changed.
    #[error("{}: {reason}; read it again and repeat the transaction", path.display())]
    Conflict {
        /// The name.
        path: PathBuf,
        /// What was seen and what is there.
        reason: String,
        /// The transaction that has changed it, if one has and is still known.
        by: Option<TransactionId>,
        /// The transaction, if it was being committed; see [`Error::into_transaction`].
        transaction: Option<Box<Transaction>>,
    },
    /// Names that can't be put back because they have moved on since. Nothing was changed.
    #[error("{reason}")]
    MovedOn {
        /// The names, one at least.
        paths: Vec<PathBuf>,
        /// Which, since when, and what to do.
        reason: String,
    },
    /// Another process, or thread, is in the way, and did not go within [`crate::Options::lock_timeout`]. Nothing was
    /// changed.
    #[error("{holder}; wait longer for it (--wait), or end it")]
    Locked {
        /// Who has what, and for how long.
        holder: String,
    },
    /// A path that cannot name anything in the tree.
    #[error("{}: {source}", path.display())]
    InvalidPath {
        /// The path as it was given.
        path: PathBuf,
        /// Which rule it breaks.
        #[source]
        source: PathError,
    },
    /// An operation that its path does not allow, with the kind that says why.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// Why, for programs.
        kind: ErrorKind,
        /// The name.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A call or option that makes no sense, or can't be served.
    #[error("{reason}")]
    Invalid {
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, and what to do.
        reason: String,
    },
    /// The operating system refused something.
    #[error("could not {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A sync of the log failed while this transaction waited for it.
    #[error("whether the transaction is durable is unknown: {reason}; open the store again to find out")]
    OutcomeUnknown {
        /// What failed.
        reason: String,
    },
    /// The store takes no more commits.
    #[error("the store takes no more commits: {reason}; open it again")]
    Poisoned {
        /// What happened.
        reason: String,
    },
    /// The transaction is durable and could not be put in place.
    #[error("transaction {tx} is durable but could not be put in place at {}: {source}; mend that and open the store again, recovery finishes it", path.display())]
    CommittedNotApplied {
        /// The transaction.
        tx: TransactionId,
        /// The first name that resisted.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store or its log refused.
    #[error(transparent)]
    Store(#[from] recovery::Error),
    /// What an earlier caller was told in full, in the same words.
    #[error("{message}")]
    Again {
        /// What it was.
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conflict { .. } | Self::MovedOn { .. } => ErrorKind::Conflict,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::InvalidPath { .. } => ErrorKind::InvalidPath,
            Self::Refused { kind, .. } | Self::Invalid { kind, .. } | Self::Again { kind, .. } => *kind,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::Poisoned { .. } => ErrorKind::Poisoned,
            Self::CommittedNotApplied { .. } => ErrorKind::CommittedNotApplied,
            Self::Store(error) => kind_of_store_error(error),
        }
    }

    /// The path it is about, relative to the root, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Conflict { path, .. }
            | Self::InvalidPath { path, .. }
            | Self::Refused { path, .. }
            | Self::Io { path, .. }
            | Self::CommittedNotApplied { path, .. } => Some(path),
            Self::MovedOn { paths, .. } => paths.first().map(PathBuf::as_path),
            Self::Store(recovery::Error::Refused { path, .. }) => Some(Path::new(path)),
            _ => None,
        }
    }

    /// All paths that it is about, relative to the root: several where a transaction can't be undone because of them.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::MovedOn { paths, .. } => paths.iter().map(PathBuf::as_path).collect(),
            _ => self.path().into_iter().collect(),
        }
    }

    /// The transaction of a conflict at its commit, as it was before: with everything that was written to it, and what it
    /// saw. Committing it again is a conflict again, for as long as what it saw is not what is there; what it holds can be
    /// read and written to a new one.
    pub fn into_transaction(self) -> Option<Transaction> {
        match self {
            Self::Conflict { transaction, .. } => transaction.map(|transaction| *transaction),
            _ => None,
        }
    }

    /// Hands a transaction back that met another one.
    pub(crate) fn with_transaction(mut self, handed_back: Transaction) -> Self {
        if let Self::Conflict { transaction, .. } = &mut self {
            *transaction = Some(Box::new(handed_back));
        }
        self
    }

    /// The same error for someone else: of the same kind, path and message. The system's own error behind it is the
    /// same number, or else the same text.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Conflict { path, reason, by, .. } => {
                Self::Conflict { path: path.clone(), reason: reason.clone(), by: *by, transaction: None }
            }
            Self::MovedOn { paths, reason } => Self::MovedOn { paths: paths.clone(), reason: reason.clone() },
            Self::Locked { holder } => Self::Locked { holder: holder.clone() },
            Self::InvalidPath { path, source } => Self::InvalidPath { path: path.clone(), source: *source },
            Self::Refused { kind, path, reason } => Self::refused(*kind, path, reason),
            Self::Invalid { kind, reason } => Self::invalid(*kind, reason),
            Self::Io { verb, path, source } => {
                Self::Io { verb, path: path.clone(), source: io_error_again(source) }
            }
            Self::OutcomeUnknown { reason } => Self::OutcomeUnknown { reason: reason.clone() },
            Self::Poisoned { reason } => Self::Poisoned { reason: reason.clone() },
            Self::CommittedNotApplied { tx, path, source } => {
                Self::CommittedNotApplied { tx: *tx, path: path.clone(), source: io_error_again(source) }
            }
            Self::Store(recovery::Error::Refused { kind, path, reason }) => {
                Self::refused(kind_of_refusal(*kind), path, reason)
            }
            Self::Store(_) | Self::Again { .. } => {
                Self::Again { kind: self.kind(), message: self.to_string() }
            }
        }
    }

    /// Whether a sync has failed: whatever it was for, nothing tells what it has covered.
    pub(crate) fn is_failed_sync(&self) -> bool {
        match self {
            Self::Io { verb, .. } | Self::Store(recovery::Error::Io { verb, .. }) => verb.starts_with("sync"),
            _ => false,
        }
    }

    pub(crate) fn closed() -> Self {
        Self::invalid(ErrorKind::InvalidInput, "the store has been closed")
    }

    /// For a forked child of the process that opened the store.
    pub(crate) fn in_fork() -> Self {
        let reason = "the store was opened before this process was forked; open it again in the child";
        Self::invalid(ErrorKind::Unsupported, reason)
    }

    pub(crate) fn refused(kind: ErrorKind, path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Refused { kind, path: path.as_ref().to_owned(), reason: reason.into() }
    }

    pub(crate) fn conflict(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        let (path, reason) = (path.as_ref().to_owned(), reason.into());
        trace::event!(DEBUG, "conflict", path = path.display().to_string(), reason = reason.as_str());
        Self::Conflict { path, reason, by: None, transaction: None }
    }

    pub(crate) fn invalid(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Invalid { kind, reason: reason.into() }
    }
}

fn kind_of_store_error(error: &recovery::Error) -> ErrorKind {
    match error {
        recovery::Error::Io { source, .. } | recovery::Error::NotApplied { source, .. } => {
            ErrorKind::of_io(source)
        }
        recovery::Error::Permission { .. } => ErrorKind::Permission,
        recovery::Error::FormatVersion { .. } | recovery::Error::NotAdopted => ErrorKind::Unsupported,
        recovery::Error::StoreFile { .. }
        | recovery::Error::Record(_)
        | recovery::Error::Sequence { .. }
        | recovery::Error::Manifest { .. }
        | recovery::Error::GuardManifest { .. } => ErrorKind::Corrupt,
        recovery::Error::Refused { kind, .. } => kind_of_refusal(*kind),
        recovery::Error::Log(error) => kind_of_log_error(error),
        _ => ErrorKind::Io,
    }
}

fn kind_of_refusal(refusal: Refusal) -> ErrorKind {
    match refusal {
        Refusal::Locked => ErrorKind::Locked,
        Refusal::Conflict => ErrorKind::Conflict,
        Refusal::NoSpace => ErrorKind::NoSpace,
        Refusal::MountPoint => ErrorKind::MountPoint,
        Refusal::CrossDevice => ErrorKind::CrossDevice,
        Refusal::InvalidPath => ErrorKind::InvalidPath,
        Refusal::InvalidInput => ErrorKind::InvalidInput,
        Refusal::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

pub(crate) fn kind_of_log_error(error: &wal::Error) -> ErrorKind {
    match error {
        wal::Error::Io { source, .. } | wal::Error::Directory { source, .. } => ErrorKind::of_io(source),
        wal::Error::Corrupt { .. }
        | wal::Error::ForeignSegment { .. }
        | wal::Error::SetBack { .. }
        | wal::Error::Missing => ErrorKind::Corrupt,
        wal::Error::FormatVersion { .. } => ErrorKind::Unsupported,
        wal::Error::Full { .. } | wal::Error::TooLarge { .. } => ErrorKind::NoSpace,
        wal::Error::Poisoned { .. } => ErrorKind::Poisoned,
        wal::Error::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
        _ => ErrorKind::Io,
    }
}

fn io_error_again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Names what was being done, on which path of the tree, when an operating-system call failed.
pub(crate) trait OnPath<T> {
    fn on(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;

    /// The same for a look at something that is there: a conflict if it went, or became another kind of thing, between
    /// two calls of one look.
    fn or_raced(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { verb, path: path.as_ref().to_owned(), source })
    }

    fn or_raced(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        match self {
            // What is no symlink any more can't be read as one: an invalid argument.
            Err(error) if is_no_directory(&error) || error.kind() == io::ErrorKind::InvalidInput => {
                Err(Error::conflict(path, "it was removed or replaced while it was being looked at"))
            }
            result => result.on(verb, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// Goal: an error that is told twice is the same to whoever asks. Method: one of each variant, told, told again.
    #[test]
    fn an_error_again_has_the_same_kind_path_and_message() {
        let path = PathBuf::from("a/b");
        let source = || io::Error::from_raw_os_error(28);
        let source_path = PathError::Empty;
        let errors = [
            Error::Conflict { path: path.clone(), reason: "r".into(), by: None, transaction: None },
            Error::MovedOn { paths: vec![path.clone()], reason: "r".into() },
            Error::Locked { holder: "process 7".into() },
            Error::InvalidPath { path: path.clone(), source: source_path },
            Error::refused(ErrorKind::MountPoint, &path, "r"),
            Error::invalid(ErrorKind::Unsupported, "r"),
            Error::Io { verb: "open", path: path.clone(), source: source() },
            Error::Io { verb: "open", path: path.clone(), source: io::Error::other(Error::closed()) },
            Error::Io { verb: "open", path: path.clone(), source: io::ErrorKind::NotFound.into() },
            Error::OutcomeUnknown { reason: "r".into() },
            Error::Poisoned { reason: "r".into() },
            Error::CommittedNotApplied { tx: TransactionId(3), path, source: source() },
            Error::Store(recovery::Error::NotAdopted),
            Error::Store(recovery::Error::Refused {
                kind: Refusal::Locked,
                path: "a/b".into(),
                reason: "r".into(),
            }),
            Error::Store(recovery::Error::Log(wal::Error::Poisoned { reason: "r".into() })),
        ];
        for error in errors {
            let again = error.again();
            let twice = again.again();
            for other in [&again, &twice] {
                assert_eq!(other.kind(), error.kind(), "{error:?}");
                assert_eq!(other.path(), error.path(), "{error:?}");
                assert_eq!(other.to_string(), error.to_string(), "{error:?}");
            }
            if let Error::Io { .. } = error {
                assert!(again.source().is_some(), "{error:?}");
            }
        }
    }
}
