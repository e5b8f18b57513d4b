//! A transaction while it is being put together: the operations that callers ask for.
//!
//! Each acts on what those before it left, in a [`View`] of the tree; nothing is written to the tree before `commit`.

mod directories;
mod files;
mod in_place;
mod lookup;
mod names;
mod new_names;
mod questions;
pub(crate) mod revert;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use atomtree_recovery::image::ImageLimits;
use atomtree_vfs::{Dir, Kind, Timestamp};

use self::new_names::Defaults;
use crate::commit::Receipt;
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::{Durability, HardLinks, Symlinks};
use crate::store::Shared;
use crate::ticket::Ticket;
use crate::view::{DirId, Saved, View};

/// What a name must hold for the transaction to go on; for [`Transaction::expect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing.
    Absent,
    /// A regular file whose content has this BLAKE3 digest.
    Blake3([u8; 32]),
}

/// What [`Transaction::metadata`] says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileMetadata {
    /// File, directory, symlink or other.
    pub kind: Kind,
    /// Length in bytes; of a symlink, of where it leads; 0 for a directory.
    pub bytes: u64,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

/// A state of a transaction that can be returned to; made by [`Transaction::savepoint`].
#[derive(Clone)]
pub struct Savepoint {
    saved: Saved,
    /// Of which transaction.
    serial: u128,
}

impl fmt::Debug for Savepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Savepoint").finish_non_exhaustive()
    }
}

/// A set of changes that takes effect wholly or not at all. Made by [`crate::Store::begin`].
///
/// Operations act in order, each on the result of those before it. Paths are relative to the root. Dropping a
/// transaction abandons it: nothing was written to the tree yet.
///
/// A path's intermediate symlinks are followed inside the root, and never out of it. What a final symlink means is said
/// with each operation.
///
/// # Errors
/// An operation that fails changes nothing, and the transaction can go on without it.
#[must_use = "a transaction changes nothing until it is committed"]
pub struct Transaction {
    pub(crate) shared: Arc<Shared>,
    pub(crate) begun: Timestamp,
    pub(crate) label: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) view: View,
    symlinks: Symlinks,
    hard_links: HardLinks,
    pub(crate) durability: Durability,
    defaults: HashMap<DirId, Arc<Defaults>>,
    /// What the file system is synced through for contents that are staged already; older than all of them. The system tells
    /// a failure to write something back once to each older descriptor: through one that transactions share, it would be told
    /// to one that has nothing to do with it.
    pub(crate) sync_root: Option<Arc<dyn Dir>>,
    serial: u128,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("label", &self.label).finish_non_exhaustive()
    }
}

impl Transaction {
    pub(crate) fn begin(shared: Arc<Shared>) -> Result<Self, Error> {
        let places = &shared.engine.places;
        let options = &shared.engine.options;
        let limits = ImageLimits {
            inline_bytes: options.image_bytes_max,
            digest_bytes: options.inline_bytes_max.max(options.image_bytes_max),
        };
        let view =
            View::new(places.vfs.clone(), places.root.clone(), limits).on("read the metadata of", ".")?;
        let (symlinks, hard_links, durability) = (options.symlinks, options.hard_links, options.durability);
        let begun = places.vfs.now();
        Ok(Self {
            shared,
            begun,
            label: None,
            agent: None,
            view,
            symlinks,
            hard_links,
            durability,
            defaults: HashMap::new(),
            sync_root: None,
            serial: 0,
        })
    }

    /// Says why, in the history.
    pub fn set_label(&mut self, label: impl Into<String>) {
        self.label = Some(label.into());
    }

    /// Says on whose behalf, in the history.
    pub fn set_agent(&mut self, agent: impl Into<String>) {
        self.agent = Some(agent.into());
    }

    /// What writing through a final symlink does from now on, instead of what the store's options say.
    pub fn set_symlinks(&mut self, symlinks: Symlinks) {
        self.symlinks = symlinks;
    }

    /// What replacing a file with several hard links does from now on, instead of what the store's options say.
    pub fn set_hard_links(&mut self, hard_links: HardLinks) {
        self.hard_links = hard_links;
    }

    /// What is durable when this transaction's commit returns, instead of what the store's options say.
    pub fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }

    /// A state that [`Transaction::return_to`] brings back. Costs memory in proportion to the names touched so far;
    /// contents are shared.
    #[must_use]
    pub fn savepoint(&mut self) -> Savepoint {
        if self.serial == 0 {
            self.serial = self.shared.engine.places.vfs.random().unwrap_or(1);
        }
        Savepoint { saved: self.view.save(), serial: self.serial }
    }

    /// Undoes every operation since the savepoint, which can be returned to again. What was read since is still checked
    /// at `commit`, because the caller may have decided by it.
    ///
    /// # Errors
    /// `invalid_input` for a savepoint of another transaction; nothing was undone.
    pub fn return_to(&mut self, savepoint: &Savepoint) -> Result<(), Error> {
        if savepoint.serial != self.serial {
            let reason = "the savepoint belongs to another transaction";
            return Err(Error::invalid(ErrorKind::InvalidInput, reason));
        }
        self.defaults.clear();
        self.view.return_to(&savepoint.saved);
        Ok(())
    }

    /// Commits: everything takes effect, or nothing does.
    ///
    /// # Durability
    /// When this returns `Ok`, the changes are in place and survive power loss. Until the next checkpoint, programs
    /// that read the tree after a power cut and before recovery may find the files empty, old or torn; not with
    /// [`Durability::Settled`].
    ///
    /// # Errors
    /// `conflict` if anything that was read or is replaced is no longer what was seen, and every other kind: nothing
    /// was changed. A conflict hands the transaction back ([`Error::into_transaction`]). Except `outcome_unknown`,
    /// after a failed sync: open the store again to find out; and `committed_not_applied`: recovery finishes it.
    pub fn commit(self) -> Result<Receipt, Error> {
        // The transaction may be the last that keeps the store open; it stays open until the commit is through.
        let shared = self.shared.clone();
        shared.engine.commit(self)
    }

    /// Submits: everything that can fail early fails here, and the rest goes on behind the caller's back. Returns once
    /// the new contents are staged, before the sync; [`Ticket`] tells how it went. Transactions that are submitted one
    /// after another share syncs without a thread for each.
    ///
    /// They become durable in the order in which they were submitted, unless they fail. Blocks while as many as
    /// [`crate::Options::submitted_max`] wait. A transaction that reads or changes what a submitted one changes should
    /// begin after [`Ticket::applied`]: otherwise it sees the tree without that, and one of the two is a conflict.
    ///
    /// If this transaction is the last that keeps the store open, that is closed here, which waits for everything.
    ///
    /// # Durability
    /// None when this returns: after a crash the transaction is there whole or not at all. [`Ticket::durable`] waits
    /// for more.
    ///
    /// # Errors
    /// Those that [`Transaction::commit`] finds before the commit lock: nothing was changed. What comes up later, a
    /// conflict for instance, the ticket tells. `invalid_input` while the store is being closed.
    pub fn submit(self) -> Result<Ticket, Error> {
        // The store stays open until the transaction is in the queue, which closing waits for.
        let shared = self.shared.clone();
        shared.engine.submit(self)
    }
}
