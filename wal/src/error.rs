//! What can go wrong with a log.

use std::io;

use crate::format::FORMAT_VERSION;
use crate::lsn::{Lsn, SegmentId};

/// An error of the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("could not {verb} segment {segment}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which segment.
        segment: SegmentId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something about the directory.
    #[error("could not {verb} the log's directory: {source}")]
    Directory {
        /// What was tried.
        verb: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something is damaged that is known to have been synced. Nothing was changed; restore the segment from a copy,
    /// or keep it as evidence.
    #[error(
        "segment {segment} is corrupt at offset {offset}, where the log has lsn {lsn}: {found} found, {expected} expected"
    )]
    Corrupt {
        /// The segment.
        segment: SegmentId,
        /// Byte offset in it.
        offset: u64,
        /// The position that should be there; 0 for a header.
        lsn: Lsn,
        /// What is there.
        found: String,
        /// What should be there, and what proves it.
        expected: String,
    },
    /// The segment was written in another format.
    #[error("segment {segment} has format version {found}, and this program reads version {FORMAT_VERSION}")]
    FormatVersion {
        /// The segment.
        segment: SegmentId,
        /// Its version.
        found: u32,
    },
    /// The segment belongs to another log.
    #[error("segment {segment} belongs to log {found:032x}, not to {expected:032x}; it was copied here")]
    ForeignSegment {
        /// The segment.
        segment: SegmentId,
        /// Its log.
        found: u128,
        /// This log.
        expected: u128,
    },
    /// The log is behind what this process has read of it: somebody has put an older copy in its place.
    #[error(
        "the log was set back: {found} found, {expected} expected; an older copy of the store was put in place while this process had it open. Nothing was written; stop every program that uses the store, make sure which copy is the right one, and open it again"
    )]
    SetBack {
        /// What the log has now.
        found: String,
        /// What this process knows of it.
        expected: String,
    },
    /// There is no active segment.
    #[error("the log's directory holds no active segment; its segments are missing")]
    Missing,
    /// The records do not fit until segments are retired. Nothing was written.
    #[error("the log is full: {needed_bytes} bytes do not fit until older segments are retired")]
    Full {
        /// What the records take.
        needed_bytes: u64,
    },
    /// One record does not fit into a segment, however empty. Nothing was written.
    #[error("a record of {bytes} bytes does not fit into a segment, which holds {bytes_max}")]
    TooLarge {
        /// What the record takes.
        bytes: u64,
        /// What a segment holds.
        bytes_max: u64,
    },
    /// An earlier sync failed: what the disk holds is unknown, and nothing more is written until the log is opened
    /// again.
    #[error("an earlier sync of the log failed ({reason}); open it again to find out what is durable")]
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// This very sync failed: whether what was appended is durable is unknown.
    #[error("the sync of segment {segment} failed, so whether its records are durable is unknown: {source}")]
    OutcomeUnknown {
        /// The segment.
        segment: SegmentId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the system had no space, or no quota left.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } | Self::Directory { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Names what was being done when an operating-system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, verb: &'static str, segment: SegmentId) -> Result<T, Error>;
    fn on_directory(self, verb: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, verb: &'static str, segment: SegmentId) -> Result<T, Error> {
        self.map_err(|source| Error::Io { verb, segment, source })
    }

    fn on_directory(self, verb: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Directory { verb, source })
    }
}
