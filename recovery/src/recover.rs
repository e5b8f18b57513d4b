//! What opening a store does after any stop that was not a clean close.
//!
//! Everything that the cache shows is doubted first: after a failed write-back it can show records, and files, that
//! the disk does not hold. Then each name is decided once, for all unsettled transactions together, and brought to the
//! after-image of the last one that touches it. Nothing is renamed over and nothing of the user's is unlinked. A crash
//! anywhere in here leads to the same end when it runs again, because the log is retired last.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use atomtree_vfs::{Access, File, Kind};
use atomtree_wal::{self as wal, Log, Lsn, Scan};

use crate::analyze::{Analysis, Committed, analyze, watermark};
use crate::apply::{Applier, Displaced, Parents, is_no_directory, quarantine_name};
use crate::ballast::Ballast;
use crate::decision::{Action, Found, Goal, Proof, decide};
use crate::error::{Doing, Error};
use crate::image::{Attributes, Content, Digest, Image, Slot};
use crate::known::{Known, Likeness};
use crate::log_records::append_checkpoint;
use crate::manifest::{self, Summary};
use crate::places::Places;
use crate::plan::{After, Change, Checkpoint, TransactionId};
use crate::stage::Stage;
use crate::sweep::sweep;
use crate::tree_path::TreePath;

/// A name whose later edit by another program was left in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// The name.
    pub path: TreePath,
    /// The transaction whose change the edit replaced.
    pub tx: TransactionId,
    /// Where our content is kept, relative to the store's directory; `None` if the transaction had removed the name.
    pub kept: Option<String>,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Committed transactions that were not settled and are now.
    pub redone: u64,
    /// Guards that were rolled back.
    pub rolled_back: u64,
    /// Transactions that had begun to be logged and never committed.
    pub voided: u64,
    /// Later edits by other programs, left in place.
    pub superseded: Vec<Superseded>,
    /// Foreign content that had to give way.
    pub quarantined: Vec<Displaced>,
    /// Names whose content is lost because another program destroyed its only copy; left as they were found.
    pub lost: Vec<TreePath>,
    /// Names whose mode, owner or attributes were changed by someone else since; left as they were found.
    pub metadata_kept: Vec<TreePath>,
}

/// What recovery works with.
pub struct Recovery<'a> {
    /// The store and the tree.
    pub places: &'a Places,
    /// This process's own slots.
    pub stage: &'a Stage,
    /// The store's reserve of space.
    pub ballast: &'a Ballast,
    /// Whether the file system can exchange names.
    pub can_exchange: bool,
}

impl Recovery<'_> {
    /// Settles everything that the log holds and clears up behind it. Returns what was done, and the number of the
    /// next transaction.
    ///
    /// # Durability
    /// When this returns `Ok`, every accepted transaction is in the tree, durably, and the log replays nothing.
    ///
    /// # Errors
    /// Nothing is worse than before, and running it again is safe. Without space nothing foreign has been moved that
    /// is not in quarantine.
    pub fn run(&self, log: &mut Log, scan: &Scan) -> Result<(Report, TransactionId), Error> {
        // Records that were read may be in the cache alone, the checkpoint's among them: from the first that is not
        // known synced, and from the first unsettled, they are written again where they stand.
        let doubted = Lsn(scan.known_synced().0.min(watermark(scan)?.0) + 1);
        log.rewrite(scan, doubted)?;
        let analysis = analyze(scan)?;
        // Only clean pages can be dropped from the cache.
        self.places.root.sync_filesystem().doing("sync the file system of", "the root")?;

        let mut repair = Repair::new(self, &analysis)?;
        repair.all_names()?;
        self.places.root.sync_filesystem().doing("sync the file system of", "the root")?;

        let unsettled: Vec<Summary> = analysis.unsettled().map(Summary::of).collect();
        if !unsettled.is_empty() {
            manifest::write(&*self.places.history, &unsettled)?;
        }
        // The watermark covers all that was read, what was found settled included: the record that said so may have
        // been in the cache alone.
        let record = Checkpoint { watermark: scan.end_lsn().0, next_tx: analysis.next_tx };
        let lsn = match append_checkpoint(log, record) {
            // The crash came while the reserve was in use.
            Err(wal::Error::Full { .. }) => {
                let spare = log.spare_builder().build()?;
                log.add_spare(spare);
                append_checkpoint(log, record)?
            }
            result => result?,
        };
        log.sync()?;

        let everything = Known::of(analysis.committed.iter());
        sweep(self.places, self.stage.name(), &analysis.slots(), &everything, &mut repair.applier)?;
        repair.clear_own_slots()?;
        log.retire(lsn)?;

        let mut report = repair.report;
        report.redone = unsettled.len() as u64;
        report.voided = analysis.voided + u64::from(scan.tail().is_torn() && analysis.voided == 0);
        report.quarantined = repair.applier.take_displaced();
        Ok((report, analysis.next_tx))
    }
}

/// A name's goal, with the transaction that set it.
type Goals<'a> = BTreeMap<&'a TreePath, (&'a Committed<'a>, &'a Change<'a>)>;

struct Repair<'a> {
    recovery: &'a Recovery<'a>,
    analysis: &'a Analysis<'a>,
    goals: Goals<'a>,
    known: Known<'a>,
    /// Every set of attributes, before and after, that an unsettled transaction logged for a name.
    logged: BTreeMap<&'a TreePath, Vec<&'a Attributes>>,
    applier: Applier<'a>,
    /// Slots of this recovery that may hold what came out of the tree.
    own: Vec<Slot>,
    report: Report,
}

/// What stands at a name, and what matters about it.
struct Examined {
    found: Found,
    /// The open file, where it is a regular one.
    file: Option<Arc<dyn File>>,
    attributes: Option<Attributes>,
}

impl Examined {
    fn nothing(found: Found) -> Self {
        Self { found, file: None, attributes: None }
    }
}

impl<'a> Repair<'a> {
    fn new(recovery: &'a Recovery<'a>, analysis: &'a Analysis<'a>) -> Result<Self, Error> {
        let places = recovery.places;
        let mut goals = Goals::new();
        let mut logged: BTreeMap<&TreePath, Vec<&Attributes>> = BTreeMap::new();
        for transaction in analysis.unsettled() {
            for change in &transaction.changes {
                goals.insert(&change.path, (transaction, change));
                let before = change.before.as_ref().map(|image| &image.attributes);
                let after = match &change.after {
                    After::File { attributes, .. } => Some(attributes),
                    After::Absent | After::Dir { .. } => None,
                };
                logged.entry(&change.path).or_default().extend(before.into_iter().chain(after));
            }
        }
        let parents = Parents::new(places.root.clone()).doing("read the metadata of", "the root")?;
        let applier = Applier::new(places, parents, recovery.ballast, recovery.can_exchange, Lsn(0));
        let known = Known::of(analysis.unsettled());
        Ok(Self {
            recovery,
            analysis,
            goals,
            known,
            logged,
            applier,
            own: Vec::new(),
            report: Report::default(),
        })
    }

    /// Decides and repairs every name, parents before what they hold.
    fn all_names(&mut self) -> Result<(), Error> {
        // Contents by reference are looked up before anything is moved, since a move could bury the only copy.
        let mut sources = BTreeMap::new();
        let goals = self.goals.clone();
        for (path, (_, change)) in &goals {
            if change.after.is_by_reference() {
                let source = self.find_content(change).doing("look for the content of", path)?;
                sources.insert((*path).clone(), source);
            }
        }
        for (path, (transaction, change)) in goals {
            self.applier.set_lsn(transaction.lsn);
            let source = sources.remove(path).flatten();
            self.one_name(transaction, change, source).doing("recover", path)?;
        }
        Ok(())
    }

    fn one_name(
        &mut self,
        transaction: &Committed<'_>,
        change: &Change<'_>,
        source: Option<Source>,
    ) -> io::Result<()> {
        let examined = self.examine(change)?;
        let goal = match &change.after {
            After::Absent => Goal::Nothing,
            After::Dir { .. } => Goal::Directory,
            After::File { content: Content::Inline(_), .. } => Goal::File,
            After::File { .. } if source.is_some() || examined.found == Found::Goal => Goal::File,
            After::File { .. } => Goal::LostFile,
        };
        let proof = self.proof(transaction, change)?;
        match decide(goal, examined.found, proof) {
            Action::Keep => self.keep_metadata(change, &examined),
            Action::Put | Action::Replace => self.put(change, &examined, source),
            Action::TakeOut => self.take_out(change),
            Action::MakeDirectory => self.make_dir(change),
            Action::ReplaceByDirectory => {
                self.take_out(change)?;
                self.make_dir(change)
            }
            Action::Supersede => self.supersede(transaction, change, source),
            Action::Leave => {
                self.report.lost.push(change.path.clone());
                Ok(())
            }
        }
    }

    /// Looks at the name, through a cache that has been emptied where the system let us.
    fn examine(&mut self, change: &Change<'_>) -> io::Result<Examined> {
        let name = change.path.name();
        let dir = match self.applier.parents.of(&change.path) {
            Ok(parent) => parent.dir,
            Err(error) if is_no_directory(&error) => return Ok(Examined::nothing(Found::Absent)),
            Err(error) => return Err(error),
        };
        let metadata = match dir.metadata(name) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Examined::nothing(Found::Absent));
            }
            Err(error) => return Err(error),
        };
        if metadata.kind == Kind::Dir && matches!(change.after, After::Dir { .. }) {
            return Ok(Examined::nothing(Found::Goal));
        }
        if metadata.kind != Kind::File {
            return Ok(Examined::nothing(Found::Foreign));
        }
        let file = dir.open_file(name, Access::Read)?;
        let from_disk = file.drop_cache()?;
        let attributes = Some(Attributes::of_file(&*file)?);
        let (likeness, size, digest) = self.known.examine(&*file, &metadata)?;
        let is_goal = matches!(&change.after, After::File { size: goal_size, content, .. }
            if *goal_size == size && content.digest() == Some(digest));
        let found = match likeness {
            // What stays in the cache proves nothing about the disk. A content from the log is written anew; one by
            // reference was synced before its commit, and is synced again on a descriptor of its own.
            _ if is_goal && !from_disk && !change.after.is_by_reference() => Found::Ours,
            _ if is_goal => {
                if !from_disk {
                    file.sync_all()?;
                }
                Found::Goal
            }
            Likeness::Image => Found::Ours,
            Likeness::Torn => Found::Torn,
            Likeness::Foreign => Found::Foreign,
        };
        Ok(Examined { found, file: Some(file), attributes })
    }

    /// Whether the slot of the name's last change shows that it was applied.
    fn proof(&self, transaction: &Committed<'_>, change: &Change<'_>) -> io::Result<Proof> {
        let applied = match (&change.before, &change.slot) {
            (Some(image), Some(slot)) => {
                let original = Slot { name: format!("{}-old", slot.name), ..slot.clone() };
                self.slot_holds(slot, image)? || self.slot_holds(&original, image)?
            }
            _ => self.analysis.applied >= transaction.lsn,
        };
        Ok(if applied { Proof::Applied } else { Proof::Unproven })
    }

    fn slot_holds(&self, slot: &Slot, image: &Image<'_>) -> io::Result<bool> {
        let Some(file) = self.open_slot(slot)? else { return Ok(false) };
        let metadata = file.metadata()?;
        if image.content == Content::Unread {
            return Ok(image.has_content_times_of(&metadata));
        }
        if metadata.size != image.size {
            return Ok(false);
        }
        let (size, digest) = Digest::of_file(&*file)?;
        Ok(image.has_content(size, digest) == Some(true))
    }

    fn open_slot(&self, slot: &Slot) -> io::Result<Option<Arc<dyn File>>> {
        let dir = match self.recovery.places.stage.open_dir(slot.dir.as_ref()) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match dir.open_file(&slot.os_name(), Access::Read) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The content stands at the goal. Metadata that is a mix of what we logged is brought to the goal too; anything
    /// else was set by someone since, and stays.
    fn keep_metadata(&mut self, change: &Change<'_>, examined: &Examined) -> io::Result<()> {
        if let (Some(file), Some(found)) = (&examined.file, &examined.attributes) {
            let wanted = self.attributes_for(change, Some(found))?;
            if wanted != *found {
                wanted.set_on_file(&**file)?;
            }
        }
        Ok(())
    }

    /// The attributes that the name shall have, given those found.
    fn attributes_for(&mut self, change: &Change<'_>, found: Option<&Attributes>) -> io::Result<Attributes> {
        let After::File { attributes: goal, .. } = &change.after else {
            unreachable!("asked for files only")
        };
        let Some(found) = found else { return Ok(goal.clone()) };
        let identity = self.recovery.places.vfs.identity()?;
        // Any transaction that has not settled may have given the file what was found.
        if Attributes::is_mix(found, &self.logged[&change.path], &identity) {
            return Ok(goal.clone());
        }
        self.report.metadata_kept.push(change.path.clone());
        Ok(found.clone())
    }

    /// Puts the goal at the name, from a fresh file: what stands there came out of a cache we cannot trust.
    fn put(&mut self, change: &Change<'_>, examined: &Examined, source: Option<Source>) -> io::Result<()> {
        let foreign = examined.found == Found::Foreign;
        let found = examined.attributes.as_ref().filter(|_| !foreign);
        let attributes = self.attributes_for(change, found)?;
        let slot = match (&change.after, source) {
            (After::File { content: Content::Inline(bytes), .. }, _) => {
                let slot = self.new_slot();
                self.recovery.stage.write(&slot, bytes, &attributes)?;
                slot
            }
            (_, Some(Source::OwnSlot(slot))) => {
                if let Some(file) = self.open_slot(&slot)?
                    && Attributes::of_file(&*file)? != attributes
                {
                    attributes.set_on_file(&*file)?;
                }
                slot
            }
            (_, Some(Source::Elsewhere(file))) => {
                // A copy cut short would not be recognised, so it gets recovery's name only when it is whole.
                let copying = self.recovery.stage.new_slot();
                let copy = self.recovery.stage.create_file(&copying)?;
                copy.copy_from(&*file)?;
                attributes.set_on_file(&*copy)?;
                copy.sync_all()?;
                let slot = self.new_slot();
                let dir = self.recovery.stage.dir();
                dir.rename(&copying.os_name(), &**dir, &slot.os_name())?;
                slot
            }
            (_, None) => unreachable!("a content that is nowhere is left alone"),
        };
        if !self.recovery.can_exchange {
            // Nothing is renamed over in recovery, so the name is emptied first.
            self.take_out(change)?;
        }
        let known = &self.known;
        self.applier.put(&slot, &change.path, examined.found != Found::Absent, &mut |dir, name| {
            Ok(known.likeness(dir, name)? != Likeness::Foreign)
        })
    }

    fn take_out(&mut self, change: &Change<'_>) -> io::Result<()> {
        let slot = self.new_slot();
        let known = &self.known;
        self.applier.take_out(&change.path, &slot, &mut |dir, name| {
            Ok(known.likeness(dir, name)? != Likeness::Foreign)
        })
    }

    fn make_dir(&mut self, change: &Change<'_>) -> io::Result<()> {
        let After::Dir { attributes } = &change.after else { unreachable!("the goal is a directory") };
        self.applier.make_dir(&change.path, attributes)
    }

    /// Leaves a later edit in place and keeps our content in quarantine.
    fn supersede(
        &mut self,
        transaction: &Committed<'_>,
        change: &Change<'_>,
        source: Option<Source>,
    ) -> io::Result<()> {
        let mut kept = None;
        if let After::File { attributes, content, .. } = &change.after {
            let slot = self.recovery.stage.new_slot();
            let file = self.recovery.stage.create_file(&slot)?;
            match (content, source) {
                (Content::Inline(bytes), _) => file.write_at(&[io::IoSlice::new(bytes)], 0)?,
                (_, Some(Source::Elsewhere(from))) => drop(file.copy_from(&*from)?),
                (_, Some(Source::OwnSlot(from))) => {
                    if let Some(from) = self.open_slot(&from)? {
                        file.copy_from(&*from)?;
                    }
                }
                (_, None) => {}
            }
            attributes.set_on_file(&*file)?;
            file.sync_all()?;
            // The name says which change it is, so a second recovery finds the first one's copy and adds none.
            let name = quarantine_name(transaction.lsn, &change.path, "ours-");
            let stage = self.recovery.stage.dir();
            match stage.rename(&slot.os_name(), &*self.recovery.places.quarantine, &name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    stage.remove_file(&slot.os_name())?;
                }
                result => result?,
            }
            kept = Some(format!("quarantine/{}", name.to_string_lossy()));
        }
        self.report.superseded.push(Superseded { path: change.path.clone(), tx: transaction.begin.tx, kept });
        Ok(())
    }

    /// Where a content by reference can be had: its own slot, or any name that the store knows.
    fn find_content(&mut self, change: &Change<'_>) -> io::Result<Option<Source>> {
        let After::File { size, content, .. } = &change.after else { return Ok(None) };
        let digest = content.digest().expect("a content by reference has a digest");
        let holds = |file: &dyn File| -> io::Result<bool> {
            Ok(file.metadata()?.size == *size && Digest::of_file(file)? == (*size, digest))
        };
        if let Some(slot) = &change.slot
            && let Some(file) = self.open_slot(slot)?
            && holds(&*file)?
        {
            return Ok(Some(Source::OwnSlot(slot.clone())));
        }
        if let Ok(parent) = self.applier.parents.of(&change.path)
            && let Ok(file) = parent.dir.open_file(change.path.name(), Access::Read)
            && holds(&*file)?
        {
            return Ok(Some(Source::Elsewhere(file)));
        }
        for slot in self.analysis.slots().keys() {
            if let Some(file) = self.open_slot(slot)?
                && holds(&*file)?
            {
                return Ok(Some(Source::Elsewhere(file)));
            }
        }
        for path in self.goals.keys() {
            let Ok(parent) = self.applier.parents.of(path) else { continue };
            match parent.dir.open_file(path.name(), Access::Read) {
                Ok(file) if holds(&*file)? => return Ok(Some(Source::Elsewhere(file))),
                _ => {}
            }
        }
        Ok(None)
    }

    fn new_slot(&mut self) -> Slot {
        let slot = self.recovery.stage.new_recovery_slot();
        self.own.push(slot.clone());
        slot
    }

    /// Unlinks what this recovery took out of the tree. It was recognised then; it is compared once more, because a
    /// descriptor opened before may have written to it since.
    fn clear_own_slots(&mut self) -> Result<(), Error> {
        let everything = Known::of(self.analysis.committed.iter());
        let dir = self.recovery.stage.dir();
        for slot in &self.own {
            let name = slot.os_name();
            let result = match everything.likeness(&**dir, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(Likeness::Image | Likeness::Torn) => dir.remove_file(&name),
                Ok(Likeness::Foreign) => {
                    let path = TreePath::new(&name).expect("a slot's name is a plain one");
                    self.applier.quarantine(&**dir, &name, &path)
                }
            };
            result.doing("clear", &format!("stage/{}/{}", slot.dir, slot.name))?;
        }
        dir.sync().doing("sync", "stage")?;
        self.recovery.places.quarantine.sync().doing("sync", "quarantine")
    }
}

/// Where a content by reference was found.
enum Source {
    /// In the slot of the change itself, from where it goes in by the same exchange as at commit.
    OwnSlot(Slot),
    /// Under another name, from where it is copied.
    Elsewhere(Arc<dyn File>),
}
