//! What opening a store does after any stop that was not a clean close.
//!
//! Everything that the cache shows is doubted first: after a failed write-back it can show records, and files, that
//! the disk does not hold. Then each name is decided once, for all unsettled transactions together, and brought to the
//! after-image of the last one that touches it. Nothing is renamed over and nothing of the user's is unlinked. A crash
//! anywhere in here leads to the same end when it runs again, because the log is retired last.

mod ahead;
mod in_place;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use atomtree_vfs::{Dir, File, Identity, Kind};
use atomtree_wal::{self as wal, Log, Lsn, Scan};

use self::ahead::{Ahead, Doubted};
use crate::acl::{ACCESS_ACL, DEFAULT_ACL};
use crate::analyze::{Analysis, Committed, analyze, slots_of, watermark};
use crate::apply::{
    Applier, Displaced, Parents, is_no_directory, is_no_file, is_no_space, passing_mode, quarantine_name,
};
use crate::ballast::Ballast;
use crate::decision::{Action, Found, Goal, Proof, decide};
use crate::error::{Doing, Error};
use crate::image::{Attribute, Attributes, Content, Digest, Image, MADE_DIR_MODE, Slot, open_own};
use crate::images::sweep_orphans;
use crate::keeper::{Keeper, to_write};
use crate::known::{Known, Likeness};
use crate::locate::{Located, Place, locate};
use crate::log_records::append_checkpoint;
use crate::manifest::{self, Summary};
use crate::places::Places;
use crate::plan::{After, Change, Checkpoint, Moved, TransactionId};
use crate::retention::finish_pruning;
use crate::stage::Stage;
use crate::sweep::{Sweep, dead_stages, left_slots};
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
    /// Whether the file system has been mounted, and the store open in some process, ever since what is unsettled was
    /// applied. Then a name that is not what it was made is some other program's, and all that may be missing is what
    /// could not be written back.
    pub is_live: bool,
    /// Up to how many bytes originals are kept in `images/`.
    pub image_bytes_max: u64,
}

impl Recovery<'_> {
    /// Settles everything that the log holds and clears up behind it. Returns what was done, and the number of the
    /// next transaction.
    ///
    /// # Durability
    /// When this returns `Ok`, every accepted transaction is in the tree, durably, and the log replays nothing. Other
    /// processes may have the store open, if neither a commit nor a checkpoint of theirs is under way.
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
        let unsettled: Vec<Summary> = (analysis.unsettled())
            .map(|transaction| Summary::of(transaction, self.image_bytes_max))
            .collect();
        let mut keeper = Keeper::of_nothing(self.places);
        keeper.want(&unsettled)?;
        repair.write_originals(&keeper)?;
        self.places.root.sync_filesystem().doing("sync the file system of", "the root")?;

        if !unsettled.is_empty() {
            manifest::write(&*self.places.history, &unsettled)?;
        }
        repair.clear_settled(&mut keeper)?;
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

        repair.clear_up(&mut keeper)?;
        log.retire(lsn)?;

        let mut report = repair.report;
        let is_redone = |transaction: &&Committed<'_>| !self.is_live || transaction.lsn > analysis.applied;
        report.redone = analysis.unsettled().filter(is_redone).count() as u64;
        report.voided = analysis.voided + u64::from(scan.tail().is_torn() && analysis.voided == 0);
        report.quarantined = repair.applier.take_displaced();
        Ok((report, analysis.next_tx))
    }
}

/// A name's goal.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// The transaction that set it.
    transaction: &'a Committed<'a>,
    change: &'a Change<'a>,
    /// The attributes that a later transaction gave to what stands there.
    attributes: Option<&'a Attributes>,
    /// What stood there when the last transaction looked that changed the mode alone.
    seen: Option<&'a Image<'a>>,
    /// LSN of the last transaction that has a part in it.
    last: Lsn,
}

impl<'a> Target<'a> {
    fn attributes(&self) -> Option<&'a Attributes> {
        self.attributes.or(self.change.after.attributes())
    }
}

type Goals<'a> = BTreeMap<&'a TreePath, Target<'a>>;

struct Repair<'a> {
    recovery: &'a Recovery<'a>,
    analysis: &'a Analysis<'a>,
    goals: Goals<'a>,
    known: Known<'a>,
    /// Every set of attributes, before and after, that an unsettled transaction logged for a name.
    logged: BTreeMap<&'a TreePath, Vec<&'a Attributes>>,
    applier: Applier<'a>,
    /// Who made what the log speaks of, unless somebody else opens the store.
    identity: Identity,
    /// Slots of this recovery that may hold what came out of the tree.
    own: BTreeSet<Slot>,
    /// The slots of the inodes that are on their way to their names.
    moving: BTreeMap<&'a TreePath, Slot>,
    report: Report,
}

/// What stands at a name, and what matters about it.
struct Examined {
    found: Found,
    /// The open file, where it is a regular one.
    file: Option<Arc<dyn File>>,
    /// The open directory, where it is one.
    dir: Option<Arc<dyn Dir>>,
    attributes: Option<Attributes>,
    /// Whether it may be the goal itself, of which some or all could not be written: as long, and its own or zeros in each
    /// sector, or in the cache alone.
    is_unwritten: bool,
}

impl Examined {
    fn nothing(found: Found) -> Self {
        Self { found, file: None, dir: None, attributes: None, is_unwritten: false }
    }

    fn directory(found: Found, dir: Arc<dyn Dir>) -> io::Result<Self> {
        let attributes = Some(Attributes::of_dir(&*dir)?);
        Ok(Self { found, dir: Some(dir), attributes, ..Self::nothing(found) })
    }
}

impl<'a> Repair<'a> {
    fn new(recovery: &'a Recovery<'a>, analysis: &'a Analysis<'a>) -> Result<Self, Error> {
        let places = recovery.places;
        let mut goals = Goals::new();
        let mut logged: BTreeMap<&TreePath, Vec<&Attributes>> = BTreeMap::new();
        for transaction in analysis.unsettled() {
            for change in &transaction.changes {
                let before = change.before.as_ref().map(|image| &image.attributes);
                let moved = change.moved().map(|moved| &moved.before);
                let all = before.into_iter().chain(moved).chain(change.after.attributes());
                logged.entry(&change.path).or_default().extend(all);
                match (&change.after, goals.get_mut(&change.path)) {
                    // What an earlier transaction puts there gets the attributes of the later one.
                    (After::Same { attributes }, Some(target)) => {
                        (target.attributes, target.seen) = (Some(attributes), change.before.as_ref());
                        target.last = transaction.lsn;
                    }
                    (after, _) => {
                        let seen = change.before.as_ref().filter(|_| matches!(after, After::Same { .. }));
                        let (attributes, last) = (None, transaction.lsn);
                        goals.insert(&change.path, Target { transaction, change, attributes, seen, last });
                    }
                }
            }
        }
        let parents = Parents::new(places.root.clone()).doing("read the metadata of", "the root")?;
        let applier = Applier::new(places, parents, recovery.ballast, recovery.can_exchange, Lsn(0));
        let known = Known::of(analysis.unsettled());
        let identity = places.vfs.identity().doing("read the identity of", "this process")?;
        Ok(Self {
            recovery,
            analysis,
            goals,
            known,
            logged,
            applier,
            identity,
            own: BTreeSet::new(),
            moving: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// Decides and repairs every name, parents before what they hold.
    fn all_names(&mut self) -> Result<(), Error> {
        // Contents by reference are looked up before anything is moved, since a move could bury the only copy.
        let mut sources = BTreeMap::new();
        let goals = self.goals.clone();
        for (path, target) in &goals {
            let change = target.change;
            if change.after.is_by_reference() && !self.is_done(target) {
                let source = self.find_content(change).doing("look for the content of", path)?;
                sources.insert((*path).clone(), source);
            }
        }
        self.take_moving()?;
        let mut ahead = Ahead::new(self.recovery.places, &goals).doing("read the metadata of", "the root")?;
        for (path, target) in goals {
            ahead.go_on();
            self.applier.set_lsn(target.transaction.lsn);
            let source = sources.remove(path).flatten();
            self.one_name(target, source, &mut ahead).doing("recover", path)?;
            ahead.leave(path);
        }
        let modes =
            self.goals.values().filter_map(|target| Some((&target.change.path, target.attributes()?.mode)));
        self.applier
            .close_directories(modes)
            .map_err(|(path, error)| (path.display().to_string(), error))
            .or_else(|(path, error)| Err(error).doing("recover", &path))
    }

    /// Takes every inode that moves, and does not stand at its new name yet, into a slot: from there it goes to its name
    /// in turn, parents before what they hold.
    fn take_moving(&mut self) -> Result<(), Error> {
        let targets = self.goals.values().filter(|target| !self.is_done(target));
        let changes: Vec<&'a Change<'a>> = targets.map(|target| target.change).collect();
        let located = locate(self.recovery.places, &mut self.applier.parents, &changes)
            .doing("look for what was moved in", "the root")?;
        let leaving: HashMap<u64, (&Moved, &TreePath)> = changes
            .iter()
            .filter_map(|change| Some((change.moved()?, &change.path)))
            .map(|(moved, to)| (moved.inode, (moved, to)))
            .collect();
        for Located { change, moved, place } in located {
            let Some(place) = place else { continue };
            if self.is_in_place(change, moved, &leaving).doing("look at", &change.path)? {
                continue;
            }
            let Place { dir, name, slot } = place;
            let slot = if let Some(slot) = slot {
                slot
            } else {
                let slot = self.new_slot();
                let stage = self.recovery.stage.dir();
                match dir.rename(&name, &**stage, &slot.os_name()) {
                    // Another program has taken it away since it was found.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    taken => taken.doing("take out", &moved.from)?,
                }
                slot
            };
            self.moving.insert(&change.path, slot);
            self.applier.parents.forget();
        }
        Ok(())
    }

    /// Whether an inode stands where it shall stand, in directories that are all those that shall be there: else it would
    /// go along with one that goes.
    fn is_in_place(
        &mut self,
        change: &Change<'_>,
        moved: &Moved,
        leaving: &HashMap<u64, (&Moved, &TreePath)>,
    ) -> io::Result<bool> {
        let mut at = Some(change.path.clone());
        while let Some(path) = at {
            let found = match self.applier.parents.of(&path).and_then(|above| above.dir.metadata(path.name()))
            {
                Ok(found) => found,
                Err(error) if is_no_directory(&error) => return Ok(false),
                Err(error) => return Err(error),
            };
            let is_right = if path == change.path {
                moved.is(&found)
            } else {
                self.goals.get(&path).is_none_or(|target| match &target.change.after {
                    After::Moved(above) => above.is(&found),
                    After::Same { .. } => true,
                    _ => !target.change.before.as_ref().is_some_and(|image| image.is_directory(&found)),
                })
                // Nor one that moves away, and leaves the name to another.
                && !leaving.get(&found.inode).is_some_and(|(moved, to)| moved.is(&found) && **to != path)
            };
            if !is_right {
                return Ok(false);
            }
            at = path.parent();
        }
        Ok(true)
    }

    /// Whether a name was brought to its goal before, and may have become another program's since.
    fn is_done(&self, target: &Target<'_>) -> bool {
        self.recovery.is_live && target.last <= self.analysis.applied
    }

    fn one_name(
        &mut self,
        target: Target<'a>,
        source: Option<Source>,
        ahead: &mut Ahead<'_>,
    ) -> io::Result<()> {
        let Target { transaction, change, .. } = target;
        if let Some(patched) = change.patched() {
            return self.patch(&target, patched);
        }
        let examined = self.examine(change, ahead)?;
        if self.is_done(&target) && !examined.is_unwritten {
            return Ok(());
        }
        if matches!(change.after, After::Same { .. })
            && let Some(seen) = target.seen
            && !self.is_seen(seen, &change.path)?
        {
            // Somebody has put something else there since, with a mode of its own.
            self.report.metadata_kept.extend(examined.attributes.map(|_| change.path.clone()));
            return Ok(());
        }
        let source = match self.moving.get(&change.path) {
            Some(slot) => Some(Source::Moving(slot.clone())),
            None => source,
        };
        let goal = match &change.after {
            After::Absent => Goal::Nothing,
            After::Dir { .. } => Goal::Directory,
            After::Moved(_) if source.is_some() || examined.found == Found::Goal => Goal::Moved,
            After::Moved(_) => Goal::LostMove,
            After::Same { .. } | After::Patched(_) => Goal::Same,
            After::Symlink { .. } | After::File { content: Content::Inline(_), .. } => Goal::File,
            After::File { .. } if source.is_some() || examined.found == Found::Goal => Goal::File,
            After::File { .. } => Goal::LostFile,
        };
        let proof = self.proof(transaction, change)?;
        match decide(goal, examined.found, proof) {
            Action::Keep => self.keep_metadata(target, &examined),
            Action::Put | Action::Replace => self.put(target, &examined, source),
            Action::TakeOut => self.take_out(change),
            Action::MakeDirectory => self.make_dir(target),
            Action::ReplaceByDirectory => {
                self.take_out(change)?;
                self.make_dir(target)
            }
            Action::Supersede => self.supersede(transaction, change, source),
            Action::Leave => {
                self.report.lost.push(change.path.clone());
                Ok(())
            }
        }
    }

    /// Whether the inode of an image stands at a name.
    fn is_seen(&mut self, seen: &Image<'_>, path: &TreePath) -> io::Result<bool> {
        match self.applier.parents.of(path).and_then(|parent| parent.dir.metadata(path.name())) {
            Ok(found) => Ok(seen.is_inode(&found)),
            Err(error) if is_no_directory(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks at the name, through a cache that has been emptied where the system let us.
    fn examine(&mut self, change: &Change<'_>, ahead: &mut Ahead<'_>) -> io::Result<Examined> {
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
        let of_goal = |is_goal: bool| if is_goal { Found::Goal } else { Found::Foreign };
        let is_moved = change.moved().map(|moved| moved.is(&metadata));
        match metadata.kind {
            Kind::Dir => {
                let found = match (&change.after, is_moved) {
                    (_, Some(true)) => Found::Goal,
                    _ if change.before.as_ref().is_some_and(|image| image.is_directory(&metadata))
                        && change.takes_directory() =>
                    {
                        Found::Ours
                    }
                    (After::Dir { .. }, _) => Found::Goal,
                    _ => Found::Foreign,
                };
                return Examined::directory(found, dir.open_dir(name.as_ref())?);
            }
            Kind::Symlink => {
                let leads_to = dir.read_link(name)?;
                let is_goal = is_moved == Some(true)
                    || matches!(&change.after, After::Symlink { target, .. } if *target == leads_to.as_bytes());
                let found = match self.known.likeness(&*dir, name)? {
                    Likeness::Image if !is_goal => Found::Ours,
                    _ => of_goal(is_goal),
                };
                return Ok(Examined::nothing(found));
            }
            Kind::Other => {
                let (mode, uid, gid) = (metadata.mode, metadata.uid, metadata.gid);
                let attributes = Some(Attributes { mode, uid, gid, xattrs: Vec::new() });
                return Ok(Examined { attributes, ..Examined::nothing(of_goal(is_moved == Some(true))) });
            }
            Kind::File if is_moved == Some(true) || matches!(change.after, After::Same { .. }) => {
                let file = open_own(&*dir, name)?;
                let attributes = Some(Attributes::of_file(&*file)?);
                return Ok(Examined { file: Some(file), attributes, ..Examined::nothing(Found::Goal) });
            }
            Kind::File => {}
        }
        let Doubted { file, from_disk } = match ahead.take(&change.path, metadata.inode) {
            Some(doubted) => doubted,
            None => Doubted::open(&*dir, name)?,
        };
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
        let is_as_long = matches!(change.after, After::File { size: goal_size, .. } if goal_size == size);
        let is_unwritten = found == Found::Ours && is_goal || found == Found::Torn && is_as_long;
        Ok(Examined { file: Some(file), attributes, is_unwritten, ..Examined::nothing(found) })
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
        if image.kind != Kind::File {
            let held = self
                .open_slot_dir(slot)?
                .map(|dir| image.is_unchanged_at(&*self.recovery.places.vfs, &*dir, &slot.os_name()));
            return match held {
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Some(held) => held,
                None => Ok(false),
            };
        }
        let Some(file) = self.open_slot(slot)? else { return Ok(false) };
        let metadata = file.metadata()?;
        if image.content == Content::Unread {
            return Ok(image.has_content_times_of(&metadata));
        }
        if metadata.size != image.size {
            return Ok(false);
        }
        Ok(image.is_content_of(&*file)? == Some(true))
    }

    fn open_slot(&self, slot: &Slot) -> io::Result<Option<Arc<dyn File>>> {
        let Some(dir) = self.open_slot_dir(slot)? else { return Ok(None) };
        match open_own(&*dir, &slot.os_name()) {
            Ok(file) => Ok(Some(file)),
            // What stood there before may have been a directory or a symlink, and is in the slot by now.
            Err(error) if is_no_file(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_slot_dir(&self, slot: &Slot) -> io::Result<Option<Arc<dyn Dir>>> {
        match self.recovery.places.stage.open_dir(slot.dir.as_ref()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The content stands at the goal. Metadata that is a mix of what we logged is brought to the goal too; anything
    /// else was set by someone since, and stays.
    fn keep_metadata(&mut self, target: Target<'_>, examined: &Examined) -> io::Result<()> {
        let Some(found) = &examined.attributes else { return Ok(()) };
        let Some(mut wanted) = self.attributes_for(target, Some(found), examined.dir.is_some()) else {
            return Ok(());
        };
        if examined.dir.is_some() && target.attributes().is_some_and(|goal| goal.mode == wanted.mode) {
            // What is in it comes later, and then it is closed again.
            wanted.mode = passing_mode(Kind::Dir, wanted.mode);
        }
        if wanted == *found {
            return Ok(());
        }
        match (&examined.file, &examined.dir) {
            (Some(file), _) => wanted.set_on_file(&**file),
            (None, Some(dir)) => {
                if (wanted.uid, wanted.gid) != (found.uid, found.gid) {
                    dir.set_owner(wanted.uid, wanted.gid)?;
                }
                dir.set_mode(wanted.mode)
            }
            // A device, socket or pipe, which is not opened.
            (None, None) => {
                let path = &target.change.path;
                self.applier.parents.of(path)?.dir.set_mode_of(path.name(), wanted.mode)
            }
        }
    }

    /// The attributes that the name shall have, given those found; `None` for a name that shall be empty.
    fn attributes_for(
        &mut self,
        target: Target<'_>,
        found: Option<&Attributes>,
        is_dir: bool,
    ) -> Option<Attributes> {
        let (Some(goal), Some(found)) = (target.attributes(), found) else {
            return target.attributes().cloned();
        };
        let path = &target.change.path;
        let mut logged = self.logged[path].clone();
        // Between being made and being filled a directory has other bits than it shall have.
        let passing: Vec<Attributes> = (logged.iter().filter(|_| is_dir))
            .map(|one| Attributes { mode: passing_mode(Kind::Dir, one.mode), ..(*one).clone() })
            .collect();
        logged.extend(&passing);
        // A directory that is made gets its ACLs from the one above it, by the kernel, and none of them are logged.
        let is_acl = |name: &[u8]| name == ACCESS_ACL || name == DEFAULT_ACL;
        let is_made = matches!(target.change.after, After::Dir { .. });
        // A staged file had what `stage/` hands on, until that was taken off. Every process's part of it hands on the same.
        let is_staged = matches!(target.change.after, After::File { .. });
        let fresh = &self.recovery.stage.fresh().xattrs;
        let is_from_above =
            |xattr: &Attribute| is_made && is_acl(&xattr.name) || is_staged && fresh.contains(xattr);
        let xattrs = found.xattrs.iter().filter(|xattr| !is_from_above(xattr)).cloned().collect();
        // Any transaction that has not settled may have given the file what was found.
        let made_mode = match target.change.after {
            After::File { .. } => Some(0o600),
            After::Dir { .. } => Some(MADE_DIR_MODE),
            _ => None,
        };
        if Attributes::is_mix(&Attributes { xattrs, ..found.clone() }, &logged, &self.identity, made_mode) {
            return Some(goal.clone());
        }
        self.report.metadata_kept.push(path.clone());
        Some(found.clone())
    }

    /// Puts the goal at the name, from a fresh file: what stands there came out of a cache we cannot trust.
    fn put(&mut self, target: Target<'a>, examined: &Examined, source: Option<Source>) -> io::Result<()> {
        let change = target.change;
        // What was found on another kind of thing, or another inode, says nothing about this one.
        let is_same_file = examined.found != Found::Foreign && examined.file.is_some();
        let found = examined.attributes.as_ref().filter(|_| is_same_file && change.moved().is_none());
        let attributes = self.attributes_for(target, found, false).expect("something shall stand there");
        let slot = match (&change.after, source) {
            (_, Some(Source::Moving(slot))) => slot,
            (After::Symlink { target, .. }, _) => {
                let slot = self.new_slot();
                self.recovery.stage.write_symlink(&slot, OsStr::from_bytes(target), &attributes)?;
                slot
            }
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
        })?;
        if let Some(moved) = change.moved() {
            self.applier.parents.forget();
            self.applier.set_moved_mode(moved, &change.path, attributes.mode)?;
        }
        Ok(())
    }

    fn take_out(&mut self, change: &Change<'_>) -> io::Result<()> {
        let slot = self.new_slot();
        self.applier.parents.forget();
        let known = &self.known;
        self.applier.take_out(&change.path, &slot, &mut |dir, name| {
            Ok(known.likeness(dir, name)? != Likeness::Foreign)
        })
    }

    fn make_dir(&mut self, target: Target<'_>) -> io::Result<()> {
        let attributes = target.attributes().expect("the goal is a directory");
        self.applier.make_dir(&target.change.path, attributes)
    }

    /// Leaves a later edit in place and keeps our content in quarantine.
    fn supersede(
        &mut self,
        transaction: &Committed<'_>,
        change: &Change<'_>,
        source: Option<Source>,
    ) -> io::Result<()> {
        let mut kept = None;
        if let After::Symlink { target, attributes, .. } = &change.after {
            let slot = self.recovery.stage.new_slot();
            self.recovery.stage.write_symlink(&slot, OsStr::from_bytes(target), attributes)?;
            kept = Some(self.keep_ours(transaction, change, &slot)?);
        }
        if let After::File { attributes, content, .. } = &change.after {
            let slot = self.recovery.stage.new_slot();
            let file = self.recovery.stage.create_file(&slot)?;
            match (content, source) {
                (Content::Inline(bytes), _) => file.write_at(&[io::IoSlice::new(bytes)], 0)?,
                (_, Some(Source::Moving(_))) => unreachable!("what moves is never superseded"),
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
            kept = Some(self.keep_ours(transaction, change, &slot)?);
        }
        self.report.superseded.push(Superseded { path: change.path.clone(), tx: transaction.begin.tx, kept });
        Ok(())
    }

    /// Moves what a later edit replaced, built anew in the slot, to quarantine. Returns where it is kept.
    fn keep_ours(&self, transaction: &Committed<'_>, change: &Change<'_>, slot: &Slot) -> io::Result<String> {
        // The name says which change it is, so a second recovery finds the first one's copy and adds none.
        let name = quarantine_name(transaction.lsn, &change.path, "ours-");
        let stage = self.recovery.stage.dir();
        match stage.rename(&slot.os_name(), &*self.recovery.places.quarantine, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                stage.remove_file(&slot.os_name())?;
            }
            result => result?,
        }
        Ok(format!("quarantine/{}", name.to_string_lossy()))
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
            && let Ok(file) = open_own(&*parent.dir, change.path.name())
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
            match open_own(&*parent.dir, path.name()) {
                Ok(file) if holds(&*file)? => return Ok(Some(Source::Elsewhere(file))),
                _ => {}
            }
        }
        Ok(None)
    }

    fn new_slot(&mut self) -> Slot {
        let slot = self.recovery.stage.new_recovery_slot();
        self.own.insert(slot.clone());
        slot
    }

    /// Writes originals whose only copy is in the log, into slots from where they are kept. Without space they are not:
    /// what is committed comes first.
    fn write_originals(&mut self, keeper: &Keeper<'_>) -> Result<(), Error> {
        let unsettled = self.analysis.unsettled();
        let contents = to_write(keeper, unsettled, &self.known, |slot, image| self.slot_holds(slot, image))
            .doing("look for originals in", "stage")?;
        for bytes in contents {
            let slot = self.recovery.stage.new_recovery_slot();
            match self.recovery.stage.write(&slot, bytes, self.recovery.stage.fresh()) {
                Err(error) if is_no_space(&error) => break,
                written => drop(written.doing("write an original to", "stage")?),
            }
            self.own.insert(slot);
        }
        Ok(())
    }

    /// Clears what was settled before this recovery and is left in slots, as whoever settled it died before he had done so.
    /// To be called before there is a record of this recovery: whoever lives and reads that one clears what it settles, and
    /// takes everything before it for cleared.
    fn clear_settled(&mut self, keeper: &mut Keeper<'a>) -> Result<(), Error> {
        let places = self.recovery.places;
        let watermark = self.analysis.watermark;
        let settled = || self.analysis.committed.iter().filter(|transaction| transaction.lsn <= watermark);
        let slots = slots_of(settled());
        let left = left_slots(places, &slots, &self.own)?;
        if left.is_empty() {
            return Ok(());
        }
        keeper.want_settled(&settled().map(|transaction| transaction.begin.tx).collect())?;
        // A recovery that died may have held what is unsettled.
        let known = &Known::of(self.analysis.committed.iter());
        Sweep { places, slots: &slots, known, applier: &mut self.applier, keeper }.left(left)
    }

    /// Clears `stage/` up, once everything is settled: what the history wants is kept, the rest unlinked. What this
    /// recovery took out of the tree was recognised then; it is compared once more, because a descriptor opened before
    /// may have written to it since.
    fn clear_up(&mut self, keeper: &mut Keeper<'a>) -> Result<(), Error> {
        let Recovery { places, stage, .. } = self.recovery;
        let everything = Known::of(self.analysis.committed.iter());
        let slots = self.analysis.slots();
        let logged: BTreeSet<TransactionId> =
            self.analysis.committed.iter().map(|transaction| transaction.begin.tx).collect();
        let mut sweep =
            Sweep { places, slots: &slots, known: &everything, applier: &mut self.applier, keeper };
        let dir = stage.dir();
        for slot in &self.own {
            let name = slot.os_name();
            let result = match everything.likeness(&**dir, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(Likeness::Image | Likeness::Torn) => sweep.clear_known(&**dir, &name),
                Ok(Likeness::Foreign) => {
                    let path = TreePath::new(&name).expect("a slot's name is a plain one");
                    sweep.applier.quarantine(&**dir, &name, &path)
                }
            };
            result.doing("clear", &format!("stage/{}/{}", slot.dir, slot.name))?;
        }
        sweep.dead(dead_stages(places, stage.name())?)?;
        sweep.left(left_slots(places, &slots, &BTreeSet::new())?)?;
        keeper.finish()?;
        dir.sync().doing("sync", "stage")?;
        places.quarantine.sync().doing("sync", "quarantine")?;
        finish_pruning(places)?;
        sweep_orphans(places, &logged)
    }
}

/// Where a content by reference was found.
enum Source {
    /// In the slot of the change itself, from where it goes in by the same exchange as at commit.
    OwnSlot(Slot),
    /// Under another name, from where it is copied.
    Elsewhere(Arc<dyn File>),
    /// In a slot: the inode that the change moves.
    Moving(Slot),
}
