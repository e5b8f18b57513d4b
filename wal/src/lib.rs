//! A write-ahead log: makes bytes durable in order.
//!
//! A [`Log`] is a sequence of frames in segment files that are made once, zero-written, and used again for ever.
//! Records are appended with positioned writes and made durable by one sync, for one committer or, with
//! [`GroupCommit`], for all who wait. [`scan()`] reads a log back through a memory map and tells three ends apart: a
//! clean one, one that a crash tore off, which is normal, and damage in what had been synced, which is refused.
//!
//! It knows nothing of what the records mean.
//!
//! ```
//! use std::num::NonZeroU8;
//! use std::path::Path;
//! use atomtree_vfs::{Vfs, os::Os};
//! use atomtree_wal::{Log, LogOptions, Record};
//!
//! # let scratch = tempfile::tempdir()?;
//! # let path: &Path = scratch.path();
//! let dir = Os::default().open_root(path)?;
//! let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
//! let mut log = Log::create(dir.clone(), *b"sixteen byte id.", options)?;
//! let kind = NonZeroU8::new(1).unwrap();
//! log.append(&[Record { kind, parts: &[b"hello, ", b"world"] }])?;
//! log.sync()?; // now it survives a power cut
//!
//! let scan = atomtree_wal::scan(&*dir, *b"sixteen byte id.")?;
//! let frame = scan.frames().next().unwrap()?;
//! assert_eq!(*frame.payload, *b"hello, world");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Durability
//!
//! What [`Log::sync`] has covered survives power loss, on storage that writes a sector of 512 bytes whole or not at
//! all and whose syncs tell the truth. Damage inside the very last synced batch cannot be told from a torn end, unless
//! the log was closed.
//!
//! # Not promised
//!
//! One process writes at a time; nothing here locks. A checksum finds accidents, not forgeries. Each segment's header
//! proves what came before it: a file that is removed or emptied is noticed if a later segment is there, and not if it
//! was the newest of several.

mod error;
pub mod format;
mod group_commit;
mod log;
mod lsn;
mod scan;
mod segment;
#[doc(hidden)]
pub mod sync;

pub use error::Error;
pub use format::LogId;
pub use group_commit::{Abandoned, Announcement, GroupCommit, NotLed};
pub use log::{Log, LogOptions, Record, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, Spare, SpareBuilder};
pub use lsn::{Epoch, Lsn, SegmentId};
pub use scan::{Frame, Frames, Scan, Tail, scan};
