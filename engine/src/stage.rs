//! What a committer does on its own, before the commit lock: plan the net changes, find out early what can fail, and
//! write the new contents beside the tree.
//!
//! Nothing here is visible to anybody. A transaction that goes no further leaves nothing behind.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::apply::{Parent, is_no_directory};
use atomtree_recovery::image::{Attributes, Bytes, Content, Digest, Image};
use atomtree_recovery::plan::{After, Change, Moved};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Dir, File, Kind, Timestamp};

use crate::content::{NewContent, NewFile, NewSymlink, PIECE_BYTES, StagedSlot, Writer};
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::Durability;
use crate::store::Engine;
use crate::ticket::TicketState;
use crate::transaction::Transaction;
use crate::view::{DirId, Directory, Name, Now, Read, View};

/// Up to this many files are synced one by one; more of them by one sync of the file system.
const SYNC_EACH_MAX: usize = 4;

/// A transaction that is planned and staged, and waits to be logged.
pub(crate) struct Prepared {
    pub(crate) label: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) planned: Vec<Planned>,
    pub(crate) reads: Vec<Read>,
    /// When it began.
    pub(crate) begun: Timestamp,
    /// The slots that new contents wait in.
    staged: Vec<Staged>,
    /// Where its commit point is to be noted, if it was submitted.
    pub(crate) ticket: Option<Arc<TicketState>>,
}

/// One net change, and how it is checked.
pub(crate) struct Planned {
    pub(crate) change: Change<'static>,
    /// Where the name stands on disk until the transaction is applied; `None` where nothing can stand, or where what
    /// stands there moves away and is checked with that.
    pub(crate) disk: Option<TreePath>,
    /// Whether a directory that somebody else makes meanwhile does as well.
    pub(crate) is_implied: bool,
    /// The directories that go, by their path below the name, empty for the one that stands there: what each holds on
    /// disk before the transaction is applied.
    pub(crate) listings: Vec<(Box<[u8]>, BTreeSet<OsString>)>,
}

/// A slot with new content, owned by this transaction or by a stream of its own.
enum Staged {
    Here(StagedSlot),
    Streamed(Arc<crate::content::StreamedFile>),
}

impl Prepared {
    /// From here on the log's records explain the slots, and only a checkpoint or recovery may unlink them.
    pub(crate) fn keep_staged(&mut self) {
        for staged in self.staged.drain(..) {
            match &staged {
                Staged::Here(slot) => slot.keep(),
                Staged::Streamed(streamed) => streamed.slot.keep(),
            }
        }
    }

    /// Whether it moves or removes directories, changes what kind of thing a name is, or writes inside of inodes.
    pub(crate) fn is_barrier(&self) -> bool {
        self.planned.iter().any(|planned| planned.change.is_barrier())
    }

    /// Whether it moves or removes directories, or changes what kind of thing a name is.
    pub(crate) fn moves_inodes(&self) -> bool {
        self.planned.iter().any(|planned| planned.change.moves_inodes())
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
    /// What the file system is synced through if there are many; older than all of them.
    sync_root: Option<Arc<dyn Dir>>,
    /// Files in the tree that are to be synced before it, because they are patched where they stand: after a power cut a
    /// sector has to be one of the two that the log knows.
    patched: Vec<Arc<dyn File>>,
}

impl Staging {
    /// Keeps a staged file open for its sync; no more of them than are synced one by one, since descriptors are few.
    fn keep_for_sync(&mut self, staged: Arc<dyn File>) {
        if self.to_sync.len() <= SYNC_EACH_MAX {
            self.to_sync.push(staged);
        }
    }

    /// The same for a file that is patched in place.
    fn keep_patched(&mut self, file: Arc<dyn File>) {
        if self.patched.len() <= SYNC_EACH_MAX {
            self.patched.push(file);
        }
    }
}

impl Engine {
    /// How many bytes of a transaction's contents travel in the log at most.
    pub(crate) fn inline_bytes(&self) -> u64 {
        self.options.log.segment_bytes / 4
    }

    /// Plans and stages: after this only the tree itself can stop the transaction.
    pub(crate) fn prepare(&self, transaction: &mut Transaction) -> Result<Prepared, Error> {
        let now = self.places.vfs.now();
        let begun = transaction.begun;
        // An inode that changed after the transaction had begun, before it was first looked at. One whose time lies in
        // the future says nothing.
        let is_late = |image: &Image<'_>| image.changed > begun && image.changed <= now;
        let mut plan = Plan::new(self, transaction);
        for id in plan.view.dirs().map(|(id, _)| id).collect::<Vec<_>>() {
            plan.directory(id, &is_late)?;
        }
        let Plan { mut prepared, staging, .. } = plan;
        prepared.planned.sort_by(|one, other| {
            (one.change.order(), &one.change.path).cmp(&(other.change.order(), &other.change.path))
        });
        self.sync_staged(&staging, prepared.moves_inodes())?;
        Ok(prepared)
    }

    /// Makes contents that are not in the log durable, and their names up to the store, before the log's sync; and what
    /// moves or goes, where it stands, since whoever put it there may not have synced that.
    fn sync_staged(&self, staging: &Staging, moves_inodes: bool) -> Result<(), Error> {
        let (files, patched) = (&staging.to_sync, &staging.patched);
        let is_whole = moves_inodes || files.len() > SYNC_EACH_MAX || patched.len() > SYNC_EACH_MAX;
        // Nothing refers to these files yet, so a failure is this transaction's alone.
        let told = |synced: io::Result<()>| synced.on("sync the staged contents in", ".atomtree/stage");
        if is_whole {
            // Not on the root's descriptor, whose errors are the checkpoint's to hear; nor on one that other transactions
            // use: what could not be written would be told to one of them, and this one would commit it. What is only moved
            // is nobody's yet.
            let sync_root = staging.sync_root.clone().unwrap_or_else(|| self.places.stage.clone());
            return told(sync_root.sync_filesystem());
        }
        let synced = patched.iter().try_for_each(|file| file.sync_data());
        synced.on("sync what is to be patched in", ".")?;
        if files.is_empty() {
            return Ok(());
        }
        let synced = files
            .iter()
            .try_for_each(|file| file.sync_all())
            .and_then(|()| self.stage().dir().sync())
            .and_then(|()| self.places.stage.sync());
        told(synced)
    }

    /// Whether names in a directory may be changed, and by renames from the store, found out before the commit point.
    fn check_parent(&self, parent: &Parent, path: &TreePath) -> Result<(), Error> {
        parent.dir.check_writable().on("change names in the directory of", path.as_path())?;
        let flags = parent.dir.flags().on("read the flags of the directory of", path.as_path())?;
        if flags.binds_inodes && !self.is_bound {
            let reason = "its directory has a project quota or an encryption policy that the root has not, and nothing can be renamed into it; open a store there";
            return Err(Error::refused(ErrorKind::CrossDevice, path.as_path(), reason));
        }
        if flags.folds_case {
            let reason = "its directory folds case, so that other names may be the same; `chattr -F` on an empty directory turns that off";
            return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
        }
        Ok(())
    }
}

/// The net changes of a transaction, while they are being found.
struct Plan<'a> {
    engine: &'a Engine,
    view: &'a mut View,
    /// Where inodes stand, other than directories, that get another name.
    moved: HashSet<TreePath>,
    /// Directories, by inode, in which names may be changed.
    permitted: HashSet<u64>,
    staging: Staging,
    prepared: Prepared,
}

impl<'a> Plan<'a> {
    fn new(engine: &'a Engine, transaction: &'a mut Transaction) -> Self {
        let (label, agent) = (transaction.label.clone(), transaction.agent.clone());
        let staging = Staging {
            // What is patched in place travels in the log in any case.
            inline_budget: engine.inline_bytes().saturating_sub(transaction.view.patched_bytes()),
            // Readers that don't wait for recovery find whole files only if those were durable before the exchange.
            sync_all: transaction.durability == Durability::Settled,
            to_sync: Vec::new(),
            sync_root: transaction.sync_root.clone(),
            patched: Vec::new(),
        };
        let moved = transaction.view.moved_from();
        let reads = transaction.view.kept_reads.clone();
        let begun = transaction.begun;
        let prepared =
            Prepared { label, agent, planned: Vec::new(), reads, begun, staged: Vec::new(), ticket: None };
        Self { engine, view: &mut transaction.view, moved, permitted: HashSet::new(), staging, prepared }
    }

    /// The changes of one directory's names, and of its mode.
    fn directory(&mut self, id: DirId, is_late: &dyn Fn(&Image<'_>) -> bool) -> Result<(), Error> {
        let directory = self.view.dir(id);
        self.prepared.reads.extend(directory.listing_read());
        if directory.is_gone {
            // What it held goes along with it, and is checked with that.
            return Ok(());
        }
        let names: Vec<OsString> = directory.names.keys().cloned().collect();
        for name in names {
            self.name(id, &name, is_late)?;
        }
        Ok(())
    }

    fn name(
        &mut self,
        id: DirId,
        name: &OsString,
        is_late: &dyn Fn(&Image<'_>) -> bool,
    ) -> Result<(), Error> {
        let path = self.view.path_in(id, name)?;
        let directory = self.view.dir(id);
        let disk = directory.disk_path(name);
        let parent = directory.inode.unwrap_or(0);
        let entry = directory.names[name].clone();
        let is_changed = self.is_changed(id, &entry);
        let is_patched = matches!(entry.now, Now::Patched(_));
        if let Some(original) = &entry.original
            && (entry.is_read || is_changed && !is_patched)
            // What lies in a directory is compared name by name, where it counts.
            && original.kind != Kind::Dir
            && is_late(original)
        {
            let reason = "it was changed by someone else after the transaction had begun";
            return Err(Error::conflict(path.as_path(), reason));
        }
        if !is_changed {
            // What was made and is gone again shall not be there, whoever else has made it since.
            if let Some(disk) = disk.filter(|_| entry.is_read || matches!(entry.now, Now::Absent)) {
                self.prepared.reads.push(Read::Name { path: disk, parent, original: entry.original });
            }
            return Ok(());
        }
        let has_left = self.view.has_left(id, name, &self.moved);
        if let Some(disk) = disk.clone().filter(|_| (has_left || is_patched) && entry.is_read) {
            // Its mover knows it by its inode, who patches it by some sectors; what was read is more than that.
            self.prepared.reads.push(Read::Name { path: disk, parent, original: entry.original.clone() });
        }
        // In a directory that this transaction makes, everything is permitted; and neither a mode nor a content is a name.
        if parent != 0 && !matches!(entry.now, Now::Original | Now::Patched(_)) {
            self.check_permitted(id, &path, entry.original.as_ref())?;
        }
        if has_left && matches!(entry.now, Now::Absent) {
            // The name's change is that of the one where it stands by then.
            return Ok(());
        }
        let listings = self.listings(&entry, has_left);
        self.check_emptied(&path, &entry, &listings)?;
        let contents: Vec<(TreePath, Image<'static>)> = match &entry.original {
            Some(image) if image.kind == Kind::Dir && !has_left && !matches!(entry.now, Now::Original) => {
                let replaced =
                    || Error::conflict(path.as_path(), "it was replaced since the transaction looked");
                let gone = self.view.dir_of_inode(image.inode).ok_or_else(replaced)?;
                self.view.contents(gone, &self.moved)
            }
            _ => Vec::new(),
        };
        if let Some((below, _)) = contents.iter().find(|(_, image)| image.is_fixed) {
            return Err(fixed(path.as_path().join(below.as_path())));
        }
        if let Some(disk) = disk.as_ref().filter(|_| is_patched) {
            let file =
                self.view.parents.of(disk).and_then(|parent| parent.dir.open_file(disk.name(), Access::Read));
            self.staging.keep_patched(still(file, "open", disk.as_path())?);
        }
        let (after, is_implied) = self.after(&path, &entry)?;
        self.check_mode(&path, &entry, &after)?;
        let mut before = entry.original.filter(|_| !has_left);
        if let Some(before) = before.as_mut().filter(|_| is_patched) {
            // Of what it holds only the patches are anybody's business.
            before.content = Content::Unread;
        }
        let is_in_place = match &after {
            After::Same { .. } | After::Patched(_) => true,
            After::Dir { .. } => before.is_none(),
            _ => false,
        };
        let slot = match after {
            _ if is_in_place => None,
            // The new content waits in it already.
            After::File { .. } | After::Symlink { .. } => self.prepared.staged.last().map(Staged::slot),
            _ => Some(self.engine.stage().new_slot()),
        };
        let change = Change { path, parent, before, contents, after, slot };
        let disk = disk.filter(|_| !has_left);
        self.prepared.planned.push(Planned { change, disk, is_implied, listings });
        Ok(())
    }

    /// Whether anything at the name is to be other than it is.
    fn is_changed(&self, id: DirId, entry: &Name) -> bool {
        match &entry.now {
            Now::Original => self.new_mode(entry).is_some(),
            Now::Absent => entry.original.is_some(),
            Now::File(_) | Now::Symlink(_) | Now::Moved { .. } | Now::Patched(_) => true,
            Now::Dir(_) => {
                debug_assert!(!self.view.dir(id).is_gone);
                true
            }
        }
    }

    /// The mode that what stays at a name gets.
    fn new_mode(&self, entry: &Name) -> Option<u32> {
        match &entry.original {
            Some(image) if image.kind == Kind::Dir => {
                let mode = self.view.dir(self.view.dir_of_inode(image.inode)?).mode?;
                (mode != image.attributes.mode).then_some(mode)
            }
            Some(_) => entry.mode,
            None => None,
        }
    }

    /// What shall stand at the name; new contents are staged.
    fn after(&mut self, path: &TreePath, entry: &Name) -> Result<(After<'static>, bool), Error> {
        let after = match &entry.now {
            Now::Original => {
                let original = entry.original.as_ref().expect("its mode is changed");
                let mode = self.new_mode(entry).unwrap_or(original.attributes.mode);
                After::Same { attributes: original.attributes.with_mode(mode) }
            }
            Now::Absent => After::Absent,
            Now::Symlink(link) => self.stage_symlink(link).on("stage the symlink", path.as_path())?,
            Now::File(file) => self.stage_file(file).on("stage the new content of", path.as_path())?,
            Now::Moved { moved, .. } => After::Moved(moved.clone()),
            Now::Patched(in_place) => After::Patched(in_place.patched()),
            Now::Dir(id) => {
                let directory = self.view.dir(*id);
                if let Some(made) = &directory.made {
                    return Ok((After::Dir { attributes: made.attributes.clone() }, made.is_implied));
                }
                After::Moved(Box::new(self.moved_dir(*id)?))
            }
        };
        Ok((after, false))
    }

    /// A directory that stood elsewhere.
    fn moved_dir(&mut self, id: DirId) -> Result<Moved, Error> {
        let Directory { disk, mode, .. } = self.view.dir(id);
        let (disk, mode) = (disk.clone().expect("it stood on disk"), *mode);
        let from = TreePath::from_bytes(&disk).expect("the root is never moved");
        let parent = still(self.view.parents.of(&from), "open the directory of", from.as_path())?;
        let found = still(parent.dir.metadata(from.name()), "look at", from.as_path())?;
        if self.view.dir(id).inode != Some(found.inode) {
            return Err(Error::conflict(from.as_path(), "it was replaced since the transaction looked"));
        }
        let dir = self.view.handle(id)?.expect("it stood on disk").dir;
        // Its entry `..` changes as well, which takes the right to write to it.
        dir.check_writable().on("move the directory", from.as_path())?;
        let before = Attributes::of_dir(&*dir).on("read the attributes of", from.as_path())?;
        let attributes = mode.map_or_else(|| before.clone(), |mode| before.with_mode(mode));
        Ok(Moved {
            from,
            from_parent: parent.metadata.inode,
            kind: Kind::Dir,
            inode: found.inode,
            born: found.born,
            size: found.size,
            before,
            attributes,
        })
    }

    /// What each directory that goes from a name holds, so that what comes into it meanwhile is noticed.
    fn listings(&self, entry: &Name, has_left: bool) -> Vec<(Box<[u8]>, BTreeSet<OsString>)> {
        let mut listings = Vec::new();
        let Some(image) = entry
            .original
            .as_ref()
            .filter(|image| image.kind == Kind::Dir && !has_left && !matches!(entry.now, Now::Original))
        else {
            return listings;
        };
        let mut unseen = vec![(image.inode, Box::<[u8]>::default())];
        while let Some((inode, below)) = unseen.pop() {
            let Some(id) = self.view.dir_of_inode(inode) else { continue };
            let mut names = BTreeSet::new();
            for (name, entry) in &self.view.dir(id).names {
                let Some(image) = &entry.original else { continue };
                names.insert(name.clone());
                if image.kind == Kind::Dir && !self.view.has_left(id, name, &self.moved) {
                    let slash: &[u8] = if below.is_empty() { b"" } else { b"/" };
                    unseen.push((image.inode, [&below, slash, name.as_bytes()].concat().into()));
                }
            }
            listings.push((below, names));
        }
        listings
    }

    /// Whether the directories that go may be moved and emptied, which takes the right to write to each of them.
    fn check_emptied(
        &mut self,
        path: &TreePath,
        entry: &Name,
        listings: &[(Box<[u8]>, BTreeSet<OsString>)],
    ) -> Result<(), Error> {
        let (Some(_), Some(original)) = (listings.first(), &entry.original) else { return Ok(()) };
        let id = self.view.dir_of_inode(original.inode).expect("it was listed");
        let top = self.view.handle(id)?.expect("it stands on disk").dir;
        for (below, names) in listings {
            if below.is_empty() || !names.is_empty() {
                let below = Path::new(std::ffi::OsStr::from_bytes(below));
                let checked = top.open_dir(below).and_then(|dir| {
                    dir.check_writable()?;
                    let is_sticky = dir.own_metadata()?.mode & 0o1000 != 0;
                    names.iter().filter(|_| is_sticky).try_for_each(|name| dir.check_removable(name))
                });
                still(checked, "remove the directory", &path.as_path().join(below))?;
            }
        }
        Ok(())
    }

    /// Whether the name may be changed and its original taken away, found out before anything is.
    fn check_permitted(
        &mut self,
        id: DirId,
        path: &TreePath,
        original: Option<&Image<'_>>,
    ) -> Result<(), Error> {
        let disk = self.view.dir(id).disk.clone().expect("it stands on disk");
        let parent = self
            .view
            .parents
            .open(Path::new(std::ffi::OsStr::from_bytes(&disk)))
            .or_raced("open the directory of", path.as_path())?;
        if self.permitted.insert(parent.metadata.inode) {
            self.engine.check_parent(&parent, path)?;
        }
        let Some(original) = original else { return Ok(()) };
        if original.is_fixed {
            return Err(fixed(path.as_path()));
        }
        if parent.metadata.mode & 0o1000 != 0 {
            parent
                .dir
                .check_removable(path.name())
                .or_raced("replace, in a sticky directory,", path.as_path())?;
        }
        Ok(())
    }

    /// Whether what stays at a name, moves there or is made there can be given its mode: by its owner, and the setgid bit
    /// by a member of its group, for everybody else would lose it without being told.
    fn check_mode(&self, path: &TreePath, entry: &Name, after: &After<'_>) -> Result<(), Error> {
        let (before, wanted) = match (after, &entry.original) {
            (After::Same { attributes }, Some(original)) => (&original.attributes, attributes),
            (After::Moved(moved), _) if moved.before.mode != moved.attributes.mode => {
                (&moved.before, &moved.attributes)
            }
            (After::Dir { attributes }, _) => (attributes, attributes),
            _ => return Ok(()),
        };
        let identity = self.engine.places.vfs.identity().on("read the identity of", "this process")?;
        let refused = |reason| Err(Error::refused(ErrorKind::Permission, path.as_path(), reason));
        if identity.uid != 0 && identity.uid != before.uid {
            return refused("it belongs to another user, who alone may change its mode");
        }
        if identity.uid != 0 && identity.gid != wanted.gid && wanted.mode & 0o2000 != 0 {
            // Whether the process is in a group shows when it gives a file of its own to that.
            let stage = self.engine.stage();
            let probe = StagedSlot::new(stage);
            let group = Attributes { mode: 0o600, uid: identity.uid, gid: wanted.gid, xattrs: Vec::new() };
            match stage.write(&probe.slot, b"", &group) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return refused("it has the setgid bit and a group that this process is not in");
                }
                written => drop(written.on("stage a file for the group of", path.as_path())?),
            }
        }
        Ok(())
    }

    /// Writes one new content beside the tree, with its final metadata. What does not travel in the log is digested as
    /// it will be found, and its file put on the list of those to be synced.
    fn stage_file(&mut self, file: &NewFile) -> io::Result<After<'static>> {
        let NewFile { content, attributes, modified } = file;
        let (staging, stage) = (&mut self.staging, self.engine.stage());
        let inline_bytes_max = self.engine.options.inline_bytes_max.min(staging.inline_budget);
        let is_whole = matches!(**content, NewContent::Bytes(_) | NewContent::Kept(_));
        let travels = is_whole && content.size() <= inline_bytes_max && !staging.sync_all;
        if !travels && staging.sync_root.is_none() {
            staging.sync_root = Some(stage.dir().open_dir(Path::new(""))?);
        }
        // What travels in the log is held in memory until it is settled anyway.
        let read = match &**content {
            NewContent::Kept(kept) if kept.size <= inline_bytes_max => Some(NewContent::bytes(kept.read()?)),
            _ => None,
        };
        let inode_of = |file: &dyn File| file.metadata().map(|found| found.inode);
        let by_reference = |write: &dyn Fn(&dyn File) -> io::Result<(u64, Digest)>| {
            let slot = StagedSlot::new(stage);
            let staged = stage.create_file(&slot.slot)?;
            let (size, digest) = write(&*staged)?;
            attributes.set_on_file(&*staged)?;
            let inode = inode_of(&*staged)?;
            Ok::<_, io::Error>((staged, inode, Staged::Here(slot), size, Content::Digest(digest)))
        };
        let (staged, inode, owner, size, content) = match &**read.as_ref().unwrap_or(content) {
            // Of a short one nothing would be on its way early.
            NewContent::Bytes(bytes) if bytes.len() as u64 <= inline_bytes_max.max(PIECE_BYTES as u64) => {
                let slot = StagedSlot::new(stage);
                let (staged, inode) = stage.write(&slot.slot, bytes, attributes)?;
                let size = bytes.len() as u64;
                let content = if size <= inline_bytes_max {
                    staging.inline_budget -= size;
                    Content::Inline(Bytes::Shared(bytes.clone()))
                } else {
                    Content::Digest(Digest::of(bytes))
                };
                (staged, inode, Staged::Here(slot), size, content)
            }
            NewContent::Bytes(bytes) => by_reference(&|file| {
                let (mut writer, mut piece) = (Writer::new(file), Vec::new());
                for bytes in bytes.chunks(PIECE_BYTES) {
                    piece.clear();
                    piece.extend_from_slice(bytes);
                    piece = writer.write(piece)?;
                }
                Ok(writer.finish())
            })?,
            NewContent::Kept(kept) => by_reference(&|file| {
                file.copy_from(&*kept.open()?)?;
                // What was copied is compared, and not what it was copied from.
                let (size, digest) = Digest::of_file(file)?;
                kept.check(digest)?;
                Ok((size, digest))
            })?,
            NewContent::Edited(edited) => by_reference(&|file| edited.write_to(file))?,
            NewContent::Streamed(streamed) => {
                attributes.set_on_file(&*streamed.file)?;
                let (size, digest, inode) = (streamed.size, streamed.digest, inode_of(&*streamed.file)?);
                let owner = Staged::Streamed(streamed.clone());
                (streamed.file.clone(), inode, owner, size, Content::Digest(digest))
            }
        };
        if let Some(time) = modified {
            staged.set_modified(*time)?;
        }
        if staging.sync_all || matches!(content, Content::Digest(_)) {
            staging.keep_for_sync(staged);
        }
        self.prepared.staged.push(owner);
        Ok(After::File { attributes: attributes.clone(), size, content, inode })
    }

    fn stage_symlink(&mut self, link: &NewSymlink) -> io::Result<After<'static>> {
        let stage = self.engine.stage();
        let slot = StagedSlot::new(stage);
        let target = std::ffi::OsStr::from_bytes(&link.target);
        stage.write_symlink(&slot.slot, target, &link.attributes)?;
        let inode = stage.dir().metadata(&slot.slot.os_name())?.inode;
        self.prepared.staged.push(Staged::Here(slot));
        Ok(After::Symlink { target: link.target.clone(), attributes: link.attributes.clone(), inode })
    }
}

/// What was there when the transaction looked, and is not any more, is a conflict.
fn still<T>(result: io::Result<T>, verb: &'static str, path: &Path) -> Result<T, Error> {
    match result {
        Err(error) if is_no_directory(&error) => {
            Err(Error::conflict(path, "it was moved or removed since the transaction looked"))
        }
        result => result.on(verb, path),
    }
}

pub(crate) fn fixed(path: impl AsRef<Path>) -> Error {
    let reason = "it is immutable or append-only; `chattr -i -a` takes the flag off";
    Error::refused(ErrorKind::Permission, path, reason)
}

impl Staged {
    fn slot(&self) -> atomtree_recovery::image::Slot {
        match self {
            Self::Here(staged) => staged.slot.clone(),
            Self::Streamed(streamed) => streamed.slot.slot.clone(),
        }
    }
}
