//! What can go wrong while the tree is changed, checkpointed or recovered.

use std::io;

use atomtree_wal as wal;

use crate::plan::{DecodeError, TransactionId};

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Somebody else has it.
    Locked,
    /// It is changing.
    Conflict,
    /// There is not enough space.
    NoSpace,
    /// Something is mounted there.
    MountPoint,
    /// It lies on another file system.
    CrossDevice,
    /// It has a name that can't be handled.
    InvalidPath,
    /// What was asked for makes no sense.
    InvalidInput,
    /// It can't be done here.
    Unsupported,
}

/// An error of this crate. Each message says what was tried, on what, and what is left to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("could not {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store or a part of it is not ours to use.
    #[error("{path}: {reason}")]
    Permission {
        /// The part.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The store was written in another format.
    #[error(
        "the store has format version {found}, and this program reads version {expected}; use a program that reads {found}"
    )]
    FormatVersion {
        /// The store's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// The store file is damaged.
    #[error(".atomtree/store is damaged: {reason}; restore it from a backup of this store")]
    StoreFile {
        /// In what way.
        reason: String,
    },
    /// The store has unsettled transactions and is not where, or what, it was when it wrote them.
    #[error(
        "the store has unsettled transactions and looks copied or restored (.atomtree/store has another inode number than it was created with); make sure that this is the tree they belong to, then run `atomtree recover --adopt`"
    )]
    NotAdopted,
    /// A record's checksum holds and its content makes no sense.
    #[error(transparent)]
    Record(#[from] DecodeError),
    /// Records contradict each other.
    #[error("the log is inconsistent at lsn {lsn}: {reason}")]
    Sequence {
        /// Where.
        lsn: wal::Lsn,
        /// How.
        reason: String,
    },
    /// A manifest in `history/` is damaged.
    #[error("manifest {name} is damaged at offset {offset}: {reason}")]
    Manifest {
        /// File name in `history/`.
        name: String,
        /// Byte offset of the damaged record.
        offset: u64,
        /// In what way.
        reason: String,
    },
    /// A guard's list of originals is damaged.
    #[error(
        "{path} is damaged: {reason}; what the guard covers can't be put back from it: compare the tree with a backup, then remove the directory that holds it"
    )]
    GuardManifest {
        /// The file.
        path: String,
        /// In what way.
        reason: String,
    },
    /// Something that its path does not allow.
    #[error("{path}: {reason}")]
    Refused {
        /// Why, for programs.
        kind: Refusal,
        /// The name, relative to the root.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The log refused something, or is damaged.
    #[error(transparent)]
    Log(#[from] wal::Error),
    /// What a committed transaction has to put in place could not be put there.
    #[error(
        "transaction {tx} is durable but could not be applied at {path}: {source}; mend that and open the store again, recovery finishes it"
    )]
    NotApplied {
        /// The transaction.
        tx: TransactionId,
        /// The first name that resisted.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Names what was being done when an operating-system call failed.
pub trait Doing<T> {
    /// Turns the error into an [`Error::Io`].
    fn doing(self, verb: &'static str, path: &(impl ToString + ?Sized)) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, verb: &'static str, path: &(impl ToString + ?Sized)) -> Result<T, Error> {
        self.map_err(|source| Error::Io { verb, path: path.to_string(), source })
    }
}
