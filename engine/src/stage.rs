//! What a committer does on its own, before the commit lock: plan the net changes, find out early what can fail, and
//! write the new contents beside the tree.
//!
//! Nothing here is visible to anybody. A transaction that goes no further leaves nothing behind.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use atomtree_recovery::apply::Parent;
use atomtree_recovery::image::{Content, Digest, Image, Slot};
use atomtree_recovery::plan::{After, Change};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Dir, File};

use crate::error::{Error, ErrorKind, OnPath};
use crate::options::Durability;
use crate::store::Engine;
use crate::ticket::TicketState;
use crate::transaction::{EditedFile, NewContent, NewFile, Now, Transaction, inline};

/// Up to this many files are synced one by one; more of them by one sync of the file system.
const SYNC_EACH_MAX: usize = 4;

/// A transaction that is planned and staged, and waits to be logged.
pub(crate) struct Prepared {
    pub(crate) label: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) changes: Vec<Change<'static>>,
    pub(crate) reads: Vec<Read>,
    pub(crate) staged: Staged,
    /// Where its commit point is to be noted, if it was submitted.
    pub(crate) ticket: Option<Arc<TicketState>>,
}

/// A name that was read and is not changed.
pub(crate) struct Read {
    pub(crate) path: TreePath,
    pub(crate) parent: u64,
    pub(crate) original: Option<Image<'static>>,
}

/// Staged files that nobody has seen yet. They are unlinked unless the log has come to own them.
pub(crate) struct Staged {
    pub(crate) dir: Arc<dyn Dir>,
    slots: Vec<Slot>,
}

impl Staged {
    /// From here on the log's records explain the slots, and only a checkpoint or recovery may unlink them.
    pub(crate) fn keep(&mut self) {
        self.slots.clear();
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for slot in &self.slots {
            // What can't be removed now is swept at the next open.
            let _ = self.dir.remove_file(&slot.os_name());
        }
    }
}

/// What staging keeps account of.
struct Staging {
    /// How many bytes of content the log still takes.
    inline_budget: u64,
    /// Whether contents that travel in the log are to be synced as well.
    sync_all: bool,
    /// Files to be synced before the log.
    to_sync: Vec<Arc<dyn File>>,
}

impl Staging {
    /// Keeps a staged file open for its sync; no more of them than are synced one by one, since descriptors are few.
    fn keep_for_sync(&mut self, staged: Arc<dyn File>) {
        if self.to_sync.len() <= SYNC_EACH_MAX {
            self.to_sync.push(staged);
        }
    }
}

impl Engine {
    /// Plans and stages a transaction.
    pub(crate) fn prepare(&self, transaction: Transaction) -> Result<Prepared, Error> {
        let Transaction { begun, label, agent, names, durability, mut parents, .. } = transaction;
        let now = self.places.vfs.now();
        let mut prepared = Prepared {
            label,
            agent,
            changes: Vec::new(),
            reads: Vec::new(),
            staged: Staged { dir: self.stage().dir().clone(), slots: Vec::new() },
            ticket: None,
        };
        // An inode that changed after the transaction had begun, before it was first looked at. One whose time lies in
        // the future says nothing.
        let is_late = |original: &Option<Image<'_>>| {
            original.as_ref().is_some_and(|o| o.changed > begun && o.changed <= now)
        };
        // Directories in which names may be changed.
        let mut permitted = HashSet::new();
        let mut staging = Staging {
            inline_budget: self.options.log.segment_bytes / 4,
            // Readers that don't wait for recovery find whole files only if those were durable before the exchange.
            sync_all: durability == Durability::Settled,
            to_sync: Vec::new(),
        };
        for (path, name) in names {
            let is_used = name.is_read || !matches!(name.now, Now::Original);
            if is_used && is_late(&name.original) {
                let reason = "it was changed by someone else after the transaction had begun";
                return Err(Error::conflict(path.as_path(), reason));
            }
            let is_changed = match &name.now {
                Now::Original => false,
                Now::Absent => name.original.is_some(),
                Now::File(_) | Now::Dir(_) => true,
            };
            // In a directory that this transaction makes, everything is permitted.
            if is_changed && name.parent != 0 {
                let parent = parents.of(&path).on("open the directory of", path.as_path())?;
                if permitted.insert(parent.metadata.inode) {
                    self.check_parent(&parent, &path)?;
                }
                if let Some(original) = &name.original {
                    check_permitted(&parent, &path, original)?;
                }
            }
            let after = match name.now {
                Now::Original => {
                    if name.is_read {
                        prepared.reads.push(Read { path, parent: name.parent, original: name.original });
                    }
                    continue;
                }
                Now::Absent if name.original.is_none() => continue,
                Now::Absent => After::Absent,
                Now::Dir(attributes) => After::Dir { attributes },
                Now::File(file) => {
                    let slot = self.stage().new_slot();
                    prepared.staged.slots.push(slot.clone());
                    let after = self
                        .stage_file(&slot, file, &mut staging)
                        .on("stage the new content of", path.as_path())?;
                    prepared.changes.push(Change {
                        path,
                        parent: name.parent,
                        before: name.original,
                        after,
                        slot: Some(slot),
                    });
                    continue;
                }
            };
            // A removal needs a slot as well: the original moves there.
            let slot = matches!(after, After::Absent).then(|| self.stage().new_slot());
            prepared.changes.push(Change { path, parent: name.parent, before: name.original, after, slot });
        }
        prepared.changes.sort_by_key(Change::order);
        self.sync_staged(&staging.to_sync)?;
        Ok(prepared)
    }

    /// Writes one new content beside the tree, with its final metadata. What does not travel in the log is digested as
    /// it will be found, and its file put on the list of those to be synced.
    fn stage_file(&self, slot: &Slot, file: NewFile, staging: &mut Staging) -> io::Result<After<'static>> {
        let NewFile { content, attributes, modified } = file;
        let (staged, size, content) = match content {
            NewContent::Bytes(bytes) => {
                let size = bytes.len() as u64;
                let staged = self.stage().write(slot, &bytes, &attributes)?;
                if size <= self.options.inline_bytes_max.min(staging.inline_budget) {
                    staging.inline_budget -= size;
                    (staged, size, inline(bytes))
                } else {
                    (staged, size, Content::Digest(Digest::of(&bytes)))
                }
            }
            NewContent::Edited(EditedFile { base, size, edits }) => {
                let staged = self.stage().create_file(slot)?;
                staged.copy_from(&*base)?;
                for (offset, bytes) in &edits {
                    staged.write_at(&[io::IoSlice::new(bytes)], *offset)?;
                }
                attributes.set_on_file(&*staged)?;
                let digest = Digest::of_file(&*staged)?.1;
                (staged, size, Content::Digest(digest))
            }
        };
        if let Some(time) = modified {
            staged.set_modified(time)?;
        }
        let inode = staged.metadata()?.inode;
        if staging.sync_all || matches!(content, Content::Digest(_)) {
            staging.keep_for_sync(staged);
        }
        Ok(After::File { attributes, size, content, inode })
    }

    /// Makes contents that are not in the log durable, and their names up to the store, before the log's sync.
    fn sync_staged(&self, files: &[Arc<dyn File>]) -> Result<(), Error> {
        if files.is_empty() {
            return Ok(());
        }
        let result = if files.len() > SYNC_EACH_MAX {
            // Not on the root's descriptor: an error of other files, which that one reports once, is the checkpoint's.
            self.places.stage.sync_filesystem()
        } else {
            files
                .iter()
                .try_for_each(|file| file.sync_all())
                .and_then(|()| self.stage().dir().sync())
                .and_then(|()| self.places.stage.sync())
        };
        // Nothing refers to these files yet, so a failure is this transaction's alone.
        result.on("sync the staged contents in", ".atomtree/stage")
    }

    /// Whether names in a directory may be changed, and by renames from the store, found out before the commit point.
    fn check_parent(&self, parent: &Parent, path: &TreePath) -> Result<(), Error> {
        parent.dir.check_writable().on("change names in the directory of", path.as_path())?;
        let is_bound = parent.dir.binds_inodes().on("read the flags of the directory of", path.as_path())?;
        if is_bound && !self.is_bound {
            let reason = "its directory has a project quota or an encryption policy that the root has not, and nothing can be renamed into it; open a store there";
            return Err(Error::refused(ErrorKind::CrossDevice, path.as_path(), reason));
        }
        Ok(())
    }
}

/// Whether the original may be taken away, found out before anything is changed.
fn check_permitted(parent: &Parent, path: &TreePath, original: &Image<'_>) -> Result<(), Error> {
    if original.is_fixed {
        let reason = "it is immutable or append-only; `chattr -i -a` takes the flag off";
        return Err(Error::refused(ErrorKind::Permission, path.as_path(), reason));
    }
    if parent.metadata.mode & 0o1000 != 0 {
        parent.dir.check_removable(path.name()).on("replace, in a sticky directory,", path.as_path())?;
    }
    Ok(())
}
