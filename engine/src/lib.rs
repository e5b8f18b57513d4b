//! Changes **many ordinary files** atomically and durably: all of a transaction's files change or none does, through
//! errors, `kill -9` and power loss.
//!
//! ```
//! # let scratch = tempfile::tempdir()?;
//! # let project = scratch.path();
//! # let (config, schema, migration) = ("{}", "create table t(a);", "alter table t add b;");
//! let store = atomtree::Store::open(project)?;              // creates or recovers; store.recovery() tells what was done
//! let mut tx = store.begin()?;
//! tx.write("config.json", config)?;
//! tx.write("schema.sql", schema)?;
//! tx.write("migrations/0042.sql", migration)?;
//! let receipt = tx.commit()?;                               // durable, and in place
//! assert_eq!(receipt.files(), 4);                           // the directory that was missing counts
//! # store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! When [`Transaction::commit`] returns `Ok`, the transaction survives power loss on ext4, xfs and btrfs with default
//! mount options. After any error, kill or power cut, and the next [`Store::open`], each transaction's effect is there
//! whole or not at all. A transaction commits only if what it read and what it replaces are still what it saw;
//! otherwise it is a conflict, and nothing changed. Edits by programs that don't use atomtree are never silently
//! destroyed. Replaced files keep their mode, owner, ACLs and extended attributes.
//!
//! Any number of processes may have the store open at once. Killing one never blocks or corrupts the others; one that is
//! stopped in a commit is waited for, for [`Options::lock_timeout`], and then named ([`ErrorKind::Locked`]).
//!
//! # What a transaction can do
//!
//! Write, append to, patch, rename and remove files; make, move and remove directories; make symlinks; set modes. It
//! sees its own changes and goes back to a [`Savepoint`]. [`Transaction::write_from`] streams contents larger than
//! memory; [`Transaction::patch_in_place`] changes a little in a large file, and gives up something for it.
//! [`Store::transact`] repeats on a conflict. [`Transaction::submit`] returns as soon as the new contents are staged,
//! with a [`Ticket`] that can be waited for or awaited; a few syncs then do for many transactions.
//!
//! [`embedding`] says which call is durable when, how to size a store, and what to do on each error.
//!
//! # What other readers see
//!
//! Programs that read the tree directly see whole transactions, except
//!
//! 1. during the renames of a commit, which take microseconds; directories that change places are under neither name
//!    for a moment,
//! 2. after a kill in the middle of those, until the store is next opened by anyone,
//! 3. after a power cut, until recovery has run: files of commits that were not settled yet may then be **empty, old
//!    or torn**. A checkpoint settles them, in the background, about a second after the commit. If a program reads
//!    such files at boot, run `atomtree recover` before it, or commit them with [`Durability::Settled`].
//!
//! # Not promised
//!
//! An edit by another program that
//! lands before the checkpoint and whose bytes equal one of the log's images, or that leaves nothing, zeros or a prefix
//! of one, is taken for ours. An edit that was never synced may be torn by a power cut. A write through a descriptor
//! that was opened before the file was replaced goes to the old file; it is kept if it lands before the old file is
//! unlinked. Damage inside the very last synced batch of a store that was not closed cannot be told from a torn end of
//! the log.
//!
//! # Features
//!
//! `tracing`, off by default: spans `atomtree.open`, `.recovery`, `.commit`, `.submit`, `.stage`, `.sync`, `.apply`,
//! `.checkpoint` and `.guard`, and events for conflicts, a full log, released ballast, displaced and quarantined content, and
//! poisoning. Without it they cost nothing.

#[doc = include_str!("../docs/embedding.md")]
pub mod embedding {}

mod check;
mod checkpointer;
mod commit;
mod content;
mod contention;
mod create;
mod culprit;
mod error;
mod guard;
mod hand_over;
mod history;
mod inspect;
mod lock;
#[cfg(all(test, loom))]
mod models;
mod open;
mod options;
mod scrub;
mod settle;
mod stage;
mod store;
mod submit;
mod ticket;
mod trace;
mod transaction;
mod undo;
mod view;

pub use atomtree_recovery::apply::Displaced;
pub use atomtree_recovery::guards::{
    Changes as GuardChanges, PatternTexts, RolledBack, Seen as GuardSeen, Stood,
};
pub use atomtree_recovery::image::{Attribute, Attributes, Digest};
pub use atomtree_recovery::images::ImageName;
pub use atomtree_recovery::manifest::{ChangeSummary, State};
pub use atomtree_recovery::plan::{TransactionId, Who};
pub use atomtree_recovery::recover::{Report as RecoveryReport, Superseded};
pub use atomtree_recovery::retention::Pruned;
pub use atomtree_recovery::tree_path::{PathError, TreePath};
pub use atomtree_recovery::verify::Verification;
pub use atomtree_vfs as vfs;
pub use atomtree_vfs::Kind;
pub use atomtree_wal::Lsn;
pub use commit::Receipt;
pub use error::{Error, ErrorKind};
pub use guard::{Guard, GuardOptions, GuardedCommand, note_guarded_command};
pub use history::Keep;
pub use inspect::{Contents, Inspection, PastTransaction, Stats, Status};
pub use lock::Member;
pub use options::{Checkpoints, Durability, HardLinks, Options, Symlinks};
pub use scrub::Scrubbed;
pub use store::Store;
pub use ticket::Ticket;
pub use transaction::{Expectation, FileMetadata, Savepoint, Transaction};
pub use undo::{Moment, UndoOptions};
