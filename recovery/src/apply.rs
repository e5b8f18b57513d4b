//! Carries out changes on the user's tree: the only code that does, at commit and in recovery alike.
//!
//! Nothing is synced here. What moves leaves its place first, while the tree is as it was. An existing name is replaced
//! by an exchange with the slot that holds the new content, so the original ends up in the slot; a new name is filled by
//! a rename that replaces nothing; a removal is a rename into the slot. Whatever comes out of the tree is compared with
//! what was expected there, and moved to quarantine if it is something else: an edit that slipped in after the last check
//! is displaced, never destroyed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree_vfs::{Dir, File, Kind, Metadata, is_symlink_error};
use atomtree_wal::Lsn;

use crate::ballast::Ballast;
use crate::image::{Attributes, Image, MADE_DIR_MODE, Slot, open_own_to_write};
use crate::patched::Patched;
use crate::places::Places;
use crate::plan::{After, Change, Moved};
use crate::stage::Stage;
use crate::subtree::Subtree;
use crate::tree_path::TreePath;

/// Open directory handles are bounded, however many directories a transaction touches.
const PARENTS_MAX: usize = 64;

/// The owner's rights to pass through a directory and to change its names.
const OWNER_CHANGES: u32 = 0o300;

/// How often a name may change under our hands before the error is handed up.
const ATTEMPTS: usize = 8;

/// Foreign content that had to give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// The name it had.
    pub path: TreePath,
    /// Where it is now, relative to the store's directory: `quarantine/...`.
    pub kept: String,
}

/// A directory of the tree, with what changes are checked against.
#[derive(Clone)]
pub struct Parent {
    /// The directory, open.
    pub dir: Arc<dyn Dir>,
    /// Its metadata, as it was opened.
    pub metadata: Metadata,
}

/// Directories of the tree, opened on first use and kept open for one batch. Never longer: what a path leads to is
/// only known while nobody had time to change it.
pub struct Parents {
    root: Parent,
    device: u64,
    open: HashMap<OsString, Parent>,
}

impl Parents {
    /// None open yet.
    pub fn new(root: Arc<dyn Dir>) -> io::Result<Self> {
        let metadata = root.own_metadata()?;
        let root = Parent { dir: root, metadata };
        Ok(Self { root, device: metadata.device, open: HashMap::new() })
    }

    /// The directory that holds the name.
    ///
    /// # Errors
    /// As for [`Dir::open_dir`]; `EXDEV` also for a directory on another device (a nested btrfs subvolume).
    pub fn of(&mut self, path: &TreePath) -> io::Result<Parent> {
        self.open(path.parent_path())
    }

    /// The directory at this path below the root.
    pub fn open(&mut self, path: &Path) -> io::Result<Parent> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        // As bytes: a path is hashed and compared by its components, which takes long.
        if let Some(parent) = self.open.get(path.as_os_str()) {
            return Ok(parent.clone());
        }
        let dir = self.root.dir.open_dir(path)?;
        let metadata = dir.own_metadata()?;
        if metadata.device != self.device {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if self.open.len() >= PARENTS_MAX {
            self.open.clear();
        }
        let parent = Parent { dir, metadata };
        self.open.insert(path.as_os_str().to_owned(), parent.clone());
        Ok(parent)
    }

    /// Closes those that are open, because a path may lead elsewhere by now.
    pub fn forget(&mut self) {
        self.open.clear();
    }
}

/// Slot directories, opened on first use.
#[derive(Default)]
struct SlotDirs(HashMap<String, Arc<dyn Dir>>);

impl SlotDirs {
    fn of(&mut self, places: &Places, slot: &Slot) -> io::Result<Arc<dyn Dir>> {
        if let Some(dir) = self.0.get(&slot.dir) {
            return Ok(dir.clone());
        }
        let dir = places.stage.open_dir(Path::new(&slot.dir))?;
        self.0.insert(slot.dir.clone(), dir.clone());
        Ok(dir)
    }
}

/// Decides whether what came out of the tree into a slot was expected there.
pub type Recognise<'a> = &'a mut dyn FnMut(&dyn Dir, &OsStr) -> io::Result<bool>;

/// Applies changes, one after another.
pub struct Applier<'a> {
    places: &'a Places,
    /// Directories of the tree.
    pub parents: Parents,
    slots: SlotDirs,
    ballast: &'a Ballast,
    /// Whether the file system can exchange names.
    can_exchange: bool,
    /// Names the quarantine's files.
    lsn: Lsn,
    displaced: Vec<Displaced>,
    /// Names where something should have been moved to, or patched, that another program took away.
    lost: Vec<TreePath>,
}

impl<'a> Applier<'a> {
    /// An applier whose quarantined files carry `lsn` in their names.
    pub fn new(
        places: &'a Places,
        parents: Parents,
        ballast: &'a Ballast,
        can_exchange: bool,
        lsn: Lsn,
    ) -> Self {
        Self {
            places,
            parents,
            slots: SlotDirs::default(),
            ballast,
            can_exchange,
            lsn,
            displaced: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Keeps a process's own slots open, where they are.
    pub fn open_slots_of(&mut self, stage: &Stage) {
        self.slots.0.insert(stage.name().to_owned(), stage.dir().clone());
    }

    /// What has been displaced since this was last asked.
    pub fn take_displaced(&mut self) -> Vec<Displaced> {
        std::mem::take(&mut self.displaced)
    }

    /// Which names have got nothing since this was last asked, because another program took away what was to be moved or
    /// patched there, after the last check.
    pub fn take_lost(&mut self) -> Vec<TreePath> {
        std::mem::take(&mut self.lost)
    }

    /// What quarantined files carry in their names.
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Goes on for another transaction, whose quarantined files carry `lsn`.
    pub fn set_lsn(&mut self, lsn: Lsn) {
        self.lsn = lsn;
    }

    /// Applies a committed transaction, whose changes are in the order of [`Change::order`]. Afterwards each slot holds
    /// the original, if there was one.
    ///
    /// # Durability
    /// None; the log has it.
    ///
    /// # Errors
    /// With the name that resisted. What stood in the way was neither removed nor changed; recovery finishes it.
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Result<(), (PathBuf, io::Error)> {
        // What moves leaves its place before anything else happens, while the tree is as it was: the deepest first, so
        // that each still stands where it stood.
        let mut moving: Vec<_> = changes.iter().filter(|change| change.moved().is_some()).collect();
        let at_once = moves_at_once(changes);
        if !at_once {
            moving.sort_by_key(|change| change.moved().map(|moved| std::cmp::Reverse(moved.from.depth())));
            for change in moving {
                let (Some(moved), Some(slot)) = (change.moved(), &change.slot) else { continue };
                if !self.take_moved(moved, slot).map_err(|error| (moved.from.as_path().to_owned(), error))? {
                    self.lost.push(change.path.clone());
                }
            }
        }
        for change in changes {
            self.apply_one(change, at_once).map_err(|error| (change.path.as_path().to_owned(), error))?;
        }
        self.close_directories(changes.iter().filter_map(|change| {
            let is_made = matches!(change.after, After::Dir { .. } | After::Moved(_));
            let mode = change.after.attributes().filter(|_| is_made)?.mode;
            Some((&change.path, mode))
        }))
    }

    /// Takes the owner's right to change names away where that is wanted, the deepest first: until now something had to
    /// be put there.
    pub fn close_directories<'b>(
        &mut self,
        modes: impl Iterator<Item = (&'b TreePath, u32)>,
    ) -> Result<(), (PathBuf, io::Error)> {
        let mut closing: Vec<_> = modes.filter(|(_, mode)| mode & OWNER_CHANGES != OWNER_CHANGES).collect();
        closing.sort_by_key(|(path, _)| std::cmp::Reverse(path.depth()));
        for (path, mode) in closing {
            let is_open = |found: &Metadata| found.kind == Kind::Dir && found.mode == mode | OWNER_CHANGES;
            self.set_mode_if(is_open, path, mode).map_err(|error| (path.as_path().to_owned(), error))?;
        }
        Ok(())
    }

    fn apply_one(&mut self, change: &Change<'_>, at_once: bool) -> io::Result<()> {
        let vfs = self.places.vfs.clone();
        let mut as_checked = |dir: &dyn Dir, name: &OsStr| match &change.before {
            Some(image) => image.is_unchanged_at(&*vfs, dir, name),
            None => Ok(false),
        };
        let (path, exists) = (&change.path, change.before.is_some());
        match (&change.after, &change.slot) {
            (After::Same { attributes }, _) => {
                let is_as_checked = |found: &Metadata| {
                    let before = change.before.as_ref();
                    before.is_some_and(|image| (image.kind, image.inode) == (found.kind, found.inode))
                };
                self.set_mode_if(is_as_checked, path, attributes.mode)?;
            }
            (After::Patched(patched), _) => self.patch(change, patched)?,
            (After::Dir { attributes }, None) => self.make_dir(path, attributes)?,
            (After::Dir { attributes }, Some(slot)) => {
                self.take_out(path, slot, &mut as_checked)?;
                self.make_dir(path, attributes)?;
            }
            (After::Moved(_), _) if self.lost.contains(path) => {}
            (After::Moved(moved), Some(slot)) => {
                if at_once {
                    self.move_at_once(moved, path, slot)?;
                } else {
                    self.put(slot, path, exists, &mut as_checked)?;
                }
                self.parents.forget();
                self.set_moved_mode(moved, path, moved.attributes.mode)?;
            }
            (After::File { .. } | After::Symlink { .. }, Some(slot)) => {
                self.put(slot, path, exists, &mut as_checked)?;
            }
            (After::Absent, Some(slot)) => self.take_out(path, slot, &mut as_checked)?,
            (_, None) => unreachable!("a change has a slot: plans are made and decoded that way"),
        }
        if change.takes_directory()
            && let Some(slot) = &change.slot
        {
            self.parents.forget();
            self.displace_strangers(change, slot)?;
        }
        Ok(())
    }

    /// Takes what stands at the place of an inode that moves into its slot: that inode, or what another program has put
    /// there since the check, which moves in its place. Returns false if nothing stands there any more.
    fn take_moved(&mut self, moved: &Moved, slot: &Slot) -> io::Result<bool> {
        let dir = match self.parents.of(&moved.from) {
            Ok(parent) => parent.dir,
            Err(error) if is_no_directory(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let slot_dir = self.slots.of(self.places, slot)?;
        let taken = self.with_ballast(|_| dir.rename(moved.from.name(), &*slot_dir, &slot.os_name()));
        self.parents.forget();
        match taken {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            taken => taken.map(|()| true),
        }
    }

    /// Renames an inode from the one place to the other, by way of its slot if somebody has put something there since
    /// the check.
    fn move_at_once(&mut self, moved: &Moved, path: &TreePath, slot: &Slot) -> io::Result<()> {
        let to = self.parent(path)?;
        let direct = match self.parents.of(&moved.from) {
            Ok(from) => self.with_ballast(|_| from.dir.rename(moved.from.name(), &*to, path.name())),
            Err(error) if is_no_directory(&error) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        };
        match direct {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.lost.push(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.take_moved(moved, slot)? {
                    self.put(slot, path, true, &mut |_, _| Ok(false))?;
                } else {
                    self.lost.push(path.clone());
                }
            }
            direct => direct?,
        }
        Ok(())
    }

    /// Gives what has moved to the name its mode, if that is another one and the inode still stands there.
    pub fn set_moved_mode(&mut self, moved: &Moved, path: &TreePath, mode: u32) -> io::Result<()> {
        if mode == moved.before.mode {
            return Ok(());
        }
        self.set_mode_if(|found| moved.is(found), path, passing_mode(moved.kind, mode))
    }

    /// Sets the permission bits of what stands at the name, if it is what they are meant for: whatever else another
    /// program has put there since has a mode of its own.
    fn set_mode_if(
        &mut self,
        is_meant: impl Fn(&Metadata) -> bool,
        path: &TreePath,
        mode: u32,
    ) -> io::Result<()> {
        let result = self.parents.of(path).and_then(|parent| {
            if is_meant(&parent.dir.metadata(path.name())?) {
                parent.dir.set_mode_of(path.name(), mode)?;
            }
            Ok(())
        });
        match result {
            Err(error) if is_no_directory(&error) => Ok(()),
            result => result,
        }
    }

    /// Writes a patch inside the inode that was checked. If another stands there by now, it is left alone, and the name has
    /// lost the patch.
    fn patch(&mut self, change: &Change<'_>, patched: &Patched<'_>) -> io::Result<()> {
        let Some(file) = self.open_patched(change)? else {
            self.lost.push(change.path.clone());
            return Ok(());
        };
        patched.patches().try_for_each(|patch| self.write_in_place(&*file, patch.offset, patch.after))
    }

    /// The file that a change patches, for reading and writing; `None` if it does not stand at its name any more.
    pub fn open_patched(&mut self, change: &Change<'_>) -> io::Result<Option<Arc<dyn File>>> {
        let is_it = |found: &Metadata| change.before.as_ref().is_some_and(|image| image.is_inode(found));
        let opened = self.parents.of(&change.path).and_then(|parent| {
            // Looked at first: what is none of ours is not even opened.
            if !is_it(&parent.dir.metadata(change.path.name())?) {
                return Ok(None);
            }
            let file = open_own_to_write(&*parent.dir, change.path.name())?;
            let is_still_it = is_it(&file.metadata()?);
            Ok(Some(file).filter(|_| is_still_it))
        });
        match opened {
            Err(error) if is_no_directory(&error) || is_no_file(&error) => Ok(None),
            opened => opened,
        }
    }

    /// Overwrites bytes inside a file. Nothing is synced.
    pub fn write_in_place(&self, file: &dyn File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_ballast(|_| file.write_at(&[IoSlice::new(bytes)], offset))
    }

    /// Notes what had to give way.
    pub(crate) fn note_displaced(&mut self, displaced: Displaced) {
        self.displaced.push(displaced);
    }

    /// Moves what the log does not explain out of the directory in the slot, to quarantine.
    fn displace_strangers(&mut self, change: &Change<'_>, slot: &Slot) -> io::Result<()> {
        let slot_dir = self.slots.of(self.places, slot)?;
        let name = slot.os_name();
        match slot_dir.metadata(&name) {
            Ok(found) if change.before.as_ref().is_some_and(|image| image.is_directory(&found)) => {}
            // It went to quarantine as a whole, or was not there any more.
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        let vfs = self.places.vfs.clone();
        Subtree::open(&*vfs, &*slot_dir, &name, &change.contents)?
            .displace_strangers(|dir, path| self.quarantine_below(dir, path, &change.path))
    }

    /// Unlinks a directory that was taken out of the tree at `path`, with everything in it that was logged.
    pub fn clear_directory(
        &mut self,
        dir: &dyn Dir,
        name: &OsStr,
        path: &TreePath,
        contents: &[(TreePath, Image<'_>)],
    ) -> io::Result<()> {
        let vfs = self.places.vfs.clone();
        Subtree::open(&*vfs, dir, name, contents)?
            .clear(dir, name, |dir, below| self.quarantine_below(dir, below, path))
    }

    /// Moves what was not logged out of a directory that was taken out of the tree at `path`, to quarantine.
    pub fn sift_directory(
        &mut self,
        dir: &dyn Dir,
        name: &OsStr,
        path: &TreePath,
        contents: &[(TreePath, Image<'_>)],
    ) -> io::Result<()> {
        let vfs = self.places.vfs.clone();
        Subtree::open(&*vfs, dir, name, contents)?
            .displace_strangers(|dir, below| self.quarantine_below(dir, below, path))
    }

    fn quarantine_below(&mut self, dir: &dyn Dir, below: &TreePath, top: &TreePath) -> io::Result<()> {
        let path = top.below(below).unwrap_or_else(|| top.clone());
        self.quarantine(dir, below.name(), &path)
    }

    /// Puts the slot's file at the name. What stood there comes out into the slot and is compared.
    pub fn put(
        &mut self,
        slot: &Slot,
        path: &TreePath,
        expect_existing: bool,
        recognise: Recognise<'_>,
    ) -> io::Result<()> {
        let mut exists = expect_existing;
        for attempt in 1.. {
            let dir = self.parent(path)?;
            let slot_dir = self.slots.of(self.places, slot)?;
            // Without an exchange a power cut could keep the rename that destroys a name, and not the second name that
            // was given before. That does not matter for what the log explains; anything else leaves by one rename.
            if exists && !self.can_exchange {
                match recognise(&*dir, path.name()) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.quarantine(&*dir, path.name(), path)?;
                        exists = false;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            let result = if exists {
                self.with_ballast(|this| this.exchange(&*slot_dir, slot, &*dir, path.name()))
            } else {
                self.with_ballast(|_| slot_dir.rename(&slot.os_name(), &*dir, path.name()))
            };
            match result {
                Ok(()) if exists => return self.judge(slot, path, recognise),
                Ok(()) => {
                    let original = original_name(slot);
                    if !self.can_exchange && !is_free(&*slot_dir, &original)? {
                        // An attempt that found the name taken again had come as far as this.
                        slot_dir.rename(&original, &*slot_dir, &slot.os_name())?;
                        return self.judge(slot, path, recognise);
                    }
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => return Err(error),
                // The name came or went since it was looked at: the other way, then.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => exists = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    exists = dir.metadata(path.name()).is_ok();
                    self.parents.forget();
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop returns at its last attempt")
    }

    /// Moves what stands at the name into the slot, where it is compared. Nothing there is fine.
    pub fn take_out(&mut self, path: &TreePath, slot: &Slot, recognise: Recognise<'_>) -> io::Result<()> {
        let dir = match self.parents.of(path) {
            Ok(parent) => parent.dir,
            Err(error) if is_no_directory(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let slot_dir = self.slots.of(self.places, slot)?;
        match self.with_ballast(|_| dir.rename(path.name(), &*slot_dir, &slot.os_name())) {
            Ok(()) => self.judge(slot, path, recognise),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, which its owner may change until [`Applier::close_directories`], with its parents where
    /// somebody removed them. One that is already there stays as it is; anything else in its place goes to quarantine.
    pub fn make_dir(&mut self, path: &TreePath, attributes: &Attributes) -> io::Result<()> {
        for attempt in 1.. {
            let dir = self.parent(path)?;
            let mode = passing_mode(Kind::Dir, attributes.mode);
            // Open to nobody else before it has the mode that it shall have.
            match self.with_ballast(|_| dir.create_dir(path.name(), MADE_DIR_MODE)) {
                Ok(()) => {
                    let new = match dir.open_dir(Path::new(path.name())) {
                        // Another program has taken it away already.
                        Err(error) if is_no_directory(&error) && attempt < ATTEMPTS => continue,
                        opened => opened?,
                    };
                    let found = new.own_metadata()?;
                    if (found.uid, found.gid) != (attributes.uid, attributes.gid) {
                        new.set_owner(attributes.uid, attributes.gid)?;
                    }
                    if new.own_metadata()?.mode != mode {
                        new.set_mode(mode)?;
                    }
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match dir.metadata(path.name())
                {
                    Ok(found) if found.kind == Kind::Dir => return Ok(()),
                    Ok(_) => self.quarantine(&*dir, path.name(), path)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.parents.forget(),
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop returns at its last attempt")
    }

    /// The directory that holds the name, made again if somebody removed it since the check; an obstacle in its place
    /// goes to quarantine, because a durable transaction is never rolled back.
    fn parent(&mut self, path: &TreePath) -> io::Result<Arc<dyn Dir>> {
        match self.parents.of(path) {
            Err(error) if is_no_directory(&error) => {
                // What is open may have been moved away meanwhile.
                self.parents.forget();
                let mut missing = Vec::new();
                let mut above = Some(path.parent().ok_or(error)?);
                while let Some(dir) = above {
                    match self.parents.open(dir.as_path()) {
                        Ok(_) => break,
                        Err(error) if is_no_directory(&error) => {}
                        Err(error) => return Err(error),
                    }
                    above = dir.parent();
                    missing.push(dir);
                }
                let identity = self.places.vfs.identity()?;
                let attributes = Attributes {
                    mode: 0o777 & !identity.umask,
                    uid: identity.uid,
                    gid: identity.gid,
                    xattrs: Vec::new(),
                };
                missing.iter().rev().try_for_each(|dir| self.make_dir(dir, &attributes))?;
                Ok(self.parents.of(path)?.dir)
            }
            result => Ok(result?.dir),
        }
    }

    fn exchange(&self, slot_dir: &dyn Dir, slot: &Slot, dir: &dyn Dir, name: &OsStr) -> io::Result<()> {
        if self.can_exchange {
            return slot_dir.exchange(&slot.os_name(), dir, name);
        }
        // Without an exchange the original gets a second name first, so that it survives being renamed over. An edit
        // by another program between the two calls is lost on such a file system; `status` says so.
        let original = original_name(slot);
        if is_free(slot_dir, &slot.os_name())? && !is_free(slot_dir, &original)? {
            // An attempt that ran out of space had come as far as this.
            return slot_dir.rename(&original, slot_dir, &slot.os_name());
        }
        // A directory has one name, and links may be refused here, by the file system or for files of others. Then there is
        // a moment without any; a copy would be another inode, which is all that is known of a large original.
        let is_dir = |dir: &dyn Dir, name: &OsStr| Ok::<_, io::Error>(dir.metadata(name)?.kind == Kind::Dir);
        let is_linked = if is_dir(dir, name)? || is_dir(slot_dir, &slot.os_name())? {
            false
        } else {
            match slot_dir.remove_file(&original) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match dir.link(name, slot_dir, &original) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                linked => linked.is_ok(),
            }
        };
        if !is_linked {
            dir.rename(name, slot_dir, &original)?;
            slot_dir.rename(&slot.os_name(), dir, name)?;
            return slot_dir.rename(&original, slot_dir, &slot.os_name());
        }
        match slot_dir.rename_over(&slot.os_name(), dir, name) {
            // The directory went meanwhile, with the name: then nothing came out, and nothing shall wait here as if it had.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                slot_dir.remove_file(&original)?;
                return Err(error);
            }
            result => result?,
        }
        slot_dir.rename(&original, slot_dir, &slot.os_name())
    }

    /// Compares what came out into the slot, and quarantines it if it was not expected.
    fn judge(&mut self, slot: &Slot, path: &TreePath, recognise: Recognise<'_>) -> io::Result<()> {
        let slot_dir = self.slots.of(self.places, slot)?;
        if recognise(&*slot_dir, &slot.os_name())? {
            return Ok(());
        }
        self.quarantine(&*slot_dir, &slot.os_name(), path)
    }

    /// Moves what stands at `name` to quarantine, as content that had the name `path`.
    pub fn quarantine(&mut self, dir: &dyn Dir, name: &OsStr, path: &TreePath) -> io::Result<()> {
        for number in 0..u32::MAX {
            let kept = quarantine_name(
                self.lsn,
                path,
                &if number > 0 { format!("{number}-") } else { String::new() },
            );
            match self.with_ballast(|this| dir.rename(name, &*this.places.quarantine, &kept)) {
                Ok(()) => {
                    let kept = format!("quarantine/{}", kept.to_string_lossy());
                    self.displaced.push(Displaced { path: path.clone(), kept });
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Tries again with the ballast released if there was no space.
    fn with_ballast(&self, mut call: impl FnMut(&Self) -> io::Result<()>) -> io::Result<()> {
        match call(self) {
            Err(error) if is_no_space(&error) && self.ballast.release()? => call(self),
            result => result,
        }
    }
}

/// The mode that something gets for as long as names may have to be changed in it.
pub fn passing_mode(kind: Kind, mode: u32) -> u32 {
    if kind == Kind::Dir { mode | OWNER_CHANGES } else { mode }
}

/// Whether all there is to move is one inode, to a free name in a directory that is there already: then one rename
/// does it, and no reader ever misses it.
fn moves_at_once(changes: &[Change<'_>]) -> bool {
    let mut moving = changes.iter().filter(|change| change.moved().is_some());
    match (moving.next(), moving.next()) {
        (Some(change), None) => {
            let is_left_free =
                |from: &TreePath| !changes.iter().any(|other| from.is_at_or_below(&other.path));
            change.before.is_none()
                && change.parent != 0
                && change.moved().is_some_and(|moved| is_left_free(&moved.from))
        }
        _ => false,
    }
}

/// Where the original waits, on a file system without exchange, until the slot is free for it.
fn original_name(slot: &Slot) -> OsString {
    format!("{}-old", slot.name).into()
}

fn is_free(dir: &dyn Dir, name: &OsStr) -> io::Result<bool> {
    match dir.metadata(name) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the error says that a path leads to no directory.
pub fn is_no_directory(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) || is_symlink_error(error)
}

/// Whether there is no regular file to open at a name.
pub(crate) fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput
    ) || is_symlink_error(error)
}

/// Whether the error says that there is no space, or that a quota is used up.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The name of a quarantined file: the LSN that displaced it, a digest of its whole path, what tells it from others
/// of the same (nothing for the first), and the path's last component as far as it fits.
pub fn quarantine_name(lsn: Lsn, path: &TreePath, distinction: &str) -> OsString {
    let digest = blake3::hash(path.as_bytes()).to_hex();
    let mut name = format!("{:016x}-{}-{distinction}", lsn.0, &digest[..8]).into_bytes();
    let last = path.name().as_bytes();
    name.extend(&last[..last.len().min(200)]);
    OsString::from_vec(name)
}
