//! How a transaction commits, in one place.
//!
//! Each committer plans and stages on its own. Then one of those who wait leads: under the commit lock it checks every
//! waiting transaction against the tree, appends those that pass to the log, makes them durable with one sync, which
//! is the commit point, and applies them. The others only wait for their result.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use atomtree_recovery::analyze::Committed;
use atomtree_recovery::apply::{Applier, Displaced, Parent, Parents, is_no_directory};
use atomtree_recovery::image::{Content, Digest, Image, ImageLimits, Slot, is_recent};
use atomtree_recovery::log_records::{append_applied, with_records};
use atomtree_recovery::plan::{After, Applied, Begin, Change, Plan, TransactionId};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Dir, File, Kind, Metadata, is_symlink_error};
use atomtree_wal::{self as wal, Log, Lsn};

use crate::error::{Error, ErrorKind, OnPath, kind_of_log_error};
use crate::options::Durability;
use crate::store::{CommitState, Engine};
use crate::transaction::{EditedFile, NewContent, NewFile, Now, Transaction, inline};

/// Up to this many files are synced one by one; more of them by one sync of the file system.
const SYNC_EACH_MAX: usize = 4;

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    tx: TransactionId,
    files: usize,
    displaced: Vec<Displaced>,
}

impl Receipt {
    /// Its number in the history; 0 for a transaction that changed nothing and was only validated.
    pub fn tx(&self) -> TransactionId {
        self.tx
    }

    /// How many names it changed, directories included.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Edits by other programs that slipped in after the last check: they had to give way, and are kept.
    pub fn displaced(&self) -> &[Displaced] {
        &self.displaced
    }
}

/// A transaction that is planned and staged, and waits to be logged.
pub(crate) struct Prepared {
    label: Option<String>,
    agent: Option<String>,
    changes: Vec<Change<'static>>,
    reads: Vec<Read>,
    staged: Staged,
}

/// A name that was read and is not changed.
struct Read {
    path: TreePath,
    parent: u64,
    original: Option<Image<'static>>,
}

/// Staged files that nobody has seen yet. They are unlinked unless the log has come to own them.
struct Staged {
    dir: Arc<dyn Dir>,
    slots: Vec<Slot>,
}

impl Staged {
    /// From here on the log's records explain the slots, and only a checkpoint or recovery may unlink them.
    fn keep(&mut self) {
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

/// What became of a transaction that was handed in.
pub(crate) enum Outcome {
    /// It is durable and applied.
    Committed(Receipt),
    /// It failed; the error says in what state things are.
    Failed(Error),
    /// The log, which held this many bytes, has no room until a checkpoint has been made.
    Full(Box<Prepared>, u64),
}

impl Engine {
    /// Commits: prepares on this thread, and waits until a leader, perhaps this one, has logged and applied it.
    pub(crate) fn commit(&self, transaction: Transaction) -> Result<Receipt, Error> {
        self.check_health()?;
        let durability = transaction.durability;
        let mut announcement = self.group.announce();
        let mut prepared = self.prepare(transaction)?;
        loop {
            match announcement.submit(prepared, |batch| self.lead(batch)) {
                Ok(Outcome::Committed(receipt)) if durability == Durability::Settled => {
                    return self.settle_receipt(receipt);
                }
                Ok(Outcome::Committed(receipt)) => return Ok(receipt),
                Ok(Outcome::Failed(error)) => return Err(error),
                Ok(Outcome::Full(again, used_bytes)) => {
                    prepared = *again;
                    self.make_room(used_bytes)?;
                    announcement = self.group.announce();
                }
                Err(wal::Abandoned) => {
                    return Err(Error::OutcomeUnknown {
                        reason: "the thread that was committing it panicked".into(),
                    });
                }
            }
        }
    }

    /// Makes the names durable that were put in place.
    fn settle_receipt(&self, receipt: Receipt) -> Result<Receipt, Error> {
        if receipt.files == 0 {
            return Ok(receipt);
        }
        match self.checkpoint() {
            Ok(()) => Ok(receipt),
            // Any other error would claim that nothing was changed.
            Err(error) => {
                self.poison(&format!("transaction {} could not be settled: {error}", receipt.tx));
                Err(Error::CommittedNotApplied {
                    tx: receipt.tx,
                    path: PathBuf::from("."),
                    source: io::Error::other(error),
                })
            }
        }
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

    // Before the commit lock: plan and stage.

    fn prepare(&self, transaction: Transaction) -> Result<Prepared, Error> {
        let Transaction { begun, label, agent, names, durability, mut parents, .. } = transaction;
        let now = self.places.vfs.now();
        let mut prepared = Prepared {
            label,
            agent,
            changes: Vec::new(),
            reads: Vec::new(),
            staged: Staged { dir: self.stage().dir().clone(), slots: Vec::new() },
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

    // Under the commit lock.

    fn lead(&self, batch: Vec<Prepared>) -> Vec<Outcome> {
        let mut commits = self.commits.lock();
        let guard = PoisonOnPanic(self);
        let mut waiting: VecDeque<Prepared> = batch.into();
        let mut outcomes = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            self.round(&mut commits, &mut waiting, &mut outcomes);
        }
        self.note_log(&commits.log);
        std::mem::forget(guard);
        outcomes
    }

    /// Takes transactions from the front for as long as none touches what an earlier one of this round changes, and
    /// commits them together. The rest is checked against the tree that they leave.
    fn round(
        &self,
        commits: &mut CommitState,
        waiting: &mut VecDeque<Prepared>,
        outcomes: &mut Vec<Outcome>,
    ) {
        let first = outcomes.len();
        let mut logged: Vec<(usize, Committed<'static>)> = Vec::new();
        let mut changed: HashSet<TreePath> = HashSet::new();
        let mut parents = match Parents::new(self.places.root.clone()).on("read the metadata of", ".") {
            Ok(parents) => parents,
            Err(error) => {
                waiting.pop_front();
                outcomes.push(Outcome::Failed(error));
                return;
            }
        };
        while let Some(prepared) = waiting.pop_front() {
            let touches = |path: &TreePath| changed.contains(path);
            let overlaps = prepared.changes.iter().any(|change| touches(&change.path))
                || prepared.reads.iter().any(|read| touches(&read.path));
            if overlaps {
                waiting.push_front(prepared);
                break;
            }
            match self.check_and_log(commits, &mut parents, prepared) {
                Ok(Some(transaction)) => {
                    changed.extend(transaction.changes.iter().map(|change| change.path.clone()));
                    logged.push((outcomes.len(), transaction));
                    // Filled in below, once the sync and the apply have been.
                    outcomes
                        .push(Outcome::Failed(Error::OutcomeUnknown { reason: "it was not synced".into() }));
                }
                Ok(None) => outcomes.push(Outcome::Committed(Receipt {
                    tx: TransactionId(0),
                    files: 0,
                    displaced: Vec::new(),
                })),
                Err(outcome) => outcomes.push(outcome),
            }
        }
        if logged.is_empty() {
            return;
        }
        // The commit point.
        if let Err(error) = commits.log.sync() {
            let reason = error.to_string();
            self.poison(&reason);
            for outcome in &mut outcomes[first..] {
                if matches!(outcome, Outcome::Failed(Error::OutcomeUnknown { .. })) {
                    *outcome = Outcome::Failed(Error::OutcomeUnknown { reason: reason.clone() });
                }
            }
            return;
        }
        self.apply(commits, parents, logged, outcomes);
    }

    /// Checks one transaction and appends its records. `None` if it changes nothing.
    fn check_and_log(
        &self,
        commits: &mut CommitState,
        parents: &mut Parents,
        mut prepared: Prepared,
    ) -> Result<Option<Committed<'static>>, Outcome> {
        let failed = Outcome::Failed;
        self.check_health().map_err(failed)?;
        self.check(parents, &mut prepared).map_err(failed)?;
        if prepared.changes.is_empty() {
            return Ok(None);
        }
        self.ballast.fill().on("keep space back in", ".atomtree/ballast").map_err(failed)?;
        let begin = Begin {
            tx: commits.next_tx,
            time_ns: self.places.vfs.now().0,
            label: prepared.label.take(),
            agent: prepared.agent.take(),
        };
        let plan = Plan { begin, changes: std::mem::take(&mut prepared.changes) };
        let appended = with_records(&plan.payloads(), |records| commits.log.append(records));
        match appended {
            Ok(lsn) => {
                prepared.staged.keep();
                commits.next_tx = TransactionId(commits.next_tx.0 + 1);
                commits.is_closed = false;
                Ok(Some(Committed { begin: plan.begin, lsn, changes: plan.changes }))
            }
            Err(wal::Error::Full { .. }) => {
                (prepared.label, prepared.agent, prepared.changes) =
                    (plan.begin.label, plan.begin.agent, plan.changes);
                Err(Outcome::Full(Box::new(prepared), commits.log.used_bytes()))
            }
            Err(error) => {
                if matches!(kind_of_log_error(&error), ErrorKind::Poisoned | ErrorKind::OutcomeUnknown)
                    || commits.log.is_poisoned()
                {
                    self.poison(&error.to_string());
                }
                Err(failed(atomtree_recovery::Error::Log(error).into()))
            }
        }
    }

    /// The decisive check: everything that was read or is replaced is still what was seen, and every staged file is
    /// still the one that was staged.
    fn check(&self, parents: &mut Parents, prepared: &mut Prepared) -> Result<(), Error> {
        for read in &mut prepared.reads {
            if let Some(fresh) = self.check_name(parents, &read.path, read.parent, read.original.as_ref())? {
                read.original = Some(fresh);
            }
        }
        let mut made_meanwhile = Vec::new();
        // Directories that are not there and that this transaction makes: nothing can stand in them.
        let mut to_be_made: HashSet<TreePath> = HashSet::new();
        for change in &mut prepared.changes {
            let is_in_new_dir = change.path.parent().is_some_and(|parent| to_be_made.contains(&parent));
            if matches!(change.after, After::Dir { .. }) {
                // Somebody else has made the directory: then there is nothing to make, and nothing in the way.
                if !is_in_new_dir
                    && is_directory(parents, &change.path).on("look at", change.path.as_path())?
                {
                    made_meanwhile.push(change.path.clone());
                    continue;
                }
                to_be_made.insert(change.path.clone());
            }
            if !is_in_new_dir
                && let Some(fresh) =
                    self.check_name(parents, &change.path, change.parent, change.before.as_ref())?
            {
                if change.before.as_ref().is_some_and(|before| fresh.links > before.links) {
                    let reason = "it was given another hard link since the transaction looked";
                    return Err(Error::conflict(change.path.as_path(), reason));
                }
                change.before = Some(fresh);
            }
            if let (After::File { inode, .. }, Some(slot)) = (&change.after, &change.slot) {
                let found = prepared.staged.dir.metadata(&slot.os_name());
                if !found.is_ok_and(|found| found.kind == Kind::File && found.inode == *inode) {
                    let reason =
                        "its staged content in .atomtree/stage was removed or replaced by another program";
                    return Err(Error::refused(ErrorKind::Io, change.path.as_path(), reason));
                }
            }
        }
        if !made_meanwhile.is_empty() {
            prepared.changes.retain(|change| !made_meanwhile.contains(&change.path));
        }
        Ok(())
    }

    /// Compares a name with what was seen there. Returns a new image if the same content and metadata have got a new
    /// inode or new times.
    fn check_name(
        &self,
        parents: &mut Parents,
        path: &TreePath,
        parent: u64,
        seen: Option<&Image<'_>>,
    ) -> Result<Option<Image<'static>>, Error> {
        let conflict = |reason: &str| Err(Error::conflict(path.as_path(), reason));
        let above = match parents.of(path) {
            Ok(above) => above,
            Err(error) if is_no_directory(&error) => {
                let is_as_seen = seen.is_none() && !is_symlink_error(&error);
                return if is_as_seen { Ok(None) } else { conflict("its directory was moved or replaced") };
            }
            Err(error) => return Err(error).on("open the directory of", path.as_path()),
        };
        if parent != 0 && above.metadata.inode != parent {
            return conflict("its directory was replaced");
        }
        let found = match above.dir.metadata(path.name()) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).on("look at", path.as_path()),
        };
        match (seen, found) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                conflict("nothing stood there when the transaction looked, and something does now")
            }
            (Some(_), None) => conflict("it was removed or renamed since the transaction looked"),
            (Some(seen), Some(found)) => self.check_image(&above, path, seen, &found),
        }
    }

    fn check_image(
        &self,
        above: &Parent,
        path: &TreePath,
        seen: &Image<'_>,
        found: &Metadata,
    ) -> Result<Option<Image<'static>>, Error> {
        let vfs = &*self.places.vfs;
        if found.mount != above.metadata.mount {
            let reason = "something has been mounted there since the transaction looked";
            return Err(Error::refused(ErrorKind::MountPoint, path.as_path(), reason));
        }
        if found.is_fixed {
            let reason = "it was made immutable or append-only since the transaction looked";
            return Err(Error::refused(ErrorKind::Permission, path.as_path(), reason));
        }
        if seen.has_times_of(found) && !is_recent(seen.changed, seen.captured, vfs) {
            return Ok(None);
        }
        // Its times prove nothing: they are too recent to tell a second change, or they have moved although nothing
        // that counts has. The content decides.
        let limits = ImageLimits { digest_bytes: self.options.inline_bytes_max, ..ImageLimits::default() };
        let limits = match &seen.content {
            Content::Digest(_) => ImageLimits { digest_bytes: limits.digest_bytes.max(seen.size), ..limits },
            Content::Inline(_) | Content::Unread => limits,
        };
        let fresh = Image::capture(vfs, &*above.dir, path.name(), limits).on("look at", path.as_path())?;
        let Some(fresh) = fresh else {
            return Err(Error::conflict(path.as_path(), "it was removed while it was being looked at"));
        };
        let same_content = match seen.content.digest() {
            Some(digest) => fresh.has_content(seen.size, digest) == Some(true),
            None => seen.has_times_of(found),
        };
        if fresh.kind != seen.kind || !same_content {
            return Err(Error::conflict(
                path.as_path(),
                "its content was changed since the transaction looked",
            ));
        }
        if fresh.attributes != seen.attributes {
            let reason = "its mode, owner or extended attributes were changed since the transaction looked";
            return Err(Error::conflict(path.as_path(), reason));
        }
        Ok(Some(fresh))
    }

    /// Puts durable transactions in place. From here on nothing is rolled back.
    fn apply(
        &self,
        commits: &mut CommitState,
        parents: Parents,
        logged: Vec<(usize, Committed<'static>)>,
        outcomes: &mut [Outcome],
    ) {
        let mut applier = Applier::new(&self.places, parents, &self.ballast, self.can_exchange, Lsn(0));
        let mut finished = Vec::with_capacity(logged.len());
        let mut is_stuck = false;
        for (index, transaction) in logged {
            applier.set_lsn(transaction.lsn);
            let result = transaction.changes.iter().try_for_each(|change| {
                applier.apply(change).map_err(|source| (change.path.as_path().to_owned(), source))
            });
            let tx = transaction.begin.tx;
            outcomes[index] = match result {
                Ok(()) => Outcome::Committed(Receipt {
                    tx,
                    files: transaction.changes.len(),
                    displaced: applier.take_displaced(),
                }),
                Err((path, source)) => {
                    is_stuck = true;
                    self.poison(&format!(
                        "transaction {tx} could not be put in place at {}: {source}",
                        path.display()
                    ));
                    Outcome::Failed(Error::CommittedNotApplied { tx, path, source })
                }
            };
            finished.push(transaction);
        }
        if is_stuck {
            // Nothing is settled any more by this process: recovery will.
            return;
        }
        let through = finished.last().expect("there was one at least").lsn;
        // Only a hint for recovery, which finds out without it; if it can't be written, the next append says so.
        let _ = append_applied(&mut commits.log, Applied { through: through.0 });
        self.note_applied(finished);
    }

    /// Tells the checkpointer how full the log is.
    fn note_log(&self, log: &Log) {
        self.note_log_usage(log.used_bytes(), log.wants_spare());
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

fn is_directory(parents: &mut Parents, path: &TreePath) -> io::Result<bool> {
    match parents.of(path).and_then(|parent| parent.dir.metadata(path.name())) {
        Ok(found) => Ok(found.kind == Kind::Dir),
        Err(error) if is_no_directory(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A panic under the commit lock leaves records whose fate is unknown; then nothing more is committed.
struct PoisonOnPanic<'a>(&'a Engine);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        self.0.poison("a thread panicked while it was committing");
    }
}
