//! A transaction while it is being put together: the operations that callers ask for.
//!
//! Each acts on what those before it left, in a [`View`] of the tree; nothing is written to the tree before `commit`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree_recovery::acl::{ACCESS_ACL, DEFAULT_ACL, inherited};
use atomtree_recovery::image::{Attribute, Attributes, Content, Digest, Image, ImageLimits};
use atomtree_recovery::plan::Moved;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Dir, File, Kind, Timestamp};

use crate::commit::Receipt;
use crate::content::{EditedFile, Failed, NewContent, NewFile, NewSymlink};
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::{Durability, HardLinks, Symlinks};
use crate::store::Shared;
use crate::ticket::Ticket;
use crate::view::{DirId, Now, ROOT, Saved, Spot, Stands, View, invalid_path};

/// Contents up to this size are edited in memory; larger ones in a copy of the file.
const EDIT_IN_MEMORY_BYTES_MAX: u64 = 1 << 20;

/// As many final symlinks as are followed one after another.
const SYMLINKS_MAX: usize = 40;

/// The longest target of a symlink, as the kernel takes it.
const TARGET_BYTES_MAX: usize = 4095;

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
    serial: u128,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("label", &self.label).finish_non_exhaustive()
    }
}

/// What a new name in a directory gets.
struct Defaults {
    uid: u32,
    gid: u32,
    setgid: bool,
    umask: u32,
    acl: Option<Vec<u8>>,
}

/// What an operation is going to do to a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To look at what a final symlink leads to.
    Read,
    /// To write the file that stands there, or that a final symlink leads to.
    Write,
    /// To change the mode of what stands there, or of what a final symlink leads to.
    ChangeMode,
    /// To act on the name itself, whatever stands there.
    Name,
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

    // Files.

    /// Gives the file at `path` this content, and makes it if it isn't there, with the directories above it. An existing
    /// file keeps its mode, owner, ACLs and extended attributes.
    ///
    /// # Errors
    /// Nothing has been changed by any of them: `is_a_directory`; `unsupported` for a final symlink or a file with
    /// several hard links, unless the options say otherwise; `invalid_path`, `not_a_directory`, `mount_point`,
    /// `cross_device`, `permission`, `io`.
    pub fn write(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::bytes(content.into()), None)
    }

    /// As [`Transaction::write`], and gives the file exactly this mode (`0o7777` at most).
    pub fn write_with_mode(
        &mut self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        mode: u32,
    ) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::bytes(content.into()), Some(mode))
    }

    /// As [`Transaction::write`], with everything that `source` has, which may be more than fits into memory. Returns its
    /// length in bytes.
    ///
    /// Contents that do not travel in the log are written beside the tree as they come, into `.atomtree/stage`; at most
    /// 1 MiB is held in memory.
    ///
    /// # Errors
    /// As for [`Transaction::write`]; `io`, naming the path, if `source` fails; `no_space`.
    pub fn write_from(&mut self, path: impl AsRef<Path>, source: impl io::Read) -> Result<u64, Error> {
        self.write_from_with_mode(path, source, None)
    }

    /// As [`Transaction::write_from`], and gives the file this mode if one is given.
    pub fn write_from_with_mode(
        &mut self,
        path: impl AsRef<Path>,
        mut source: impl io::Read,
        mode: Option<u32>,
    ) -> Result<u64, Error> {
        let path = path.as_ref();
        check_mode(path, mode)?;
        // What can be refused is refused before anything is read.
        let asked = TreePath::new(path).map_err(|source| invalid_path(path, source))?;
        self.file_to_write(&asked)?;
        let engine = &self.shared.engine;
        engine.check_health()?;
        let memory = usize::try_from(engine.options.inline_bytes_max.min(EDIT_IN_MEMORY_BYTES_MAX))
            .expect("a megabyte at most");
        let mut failed = Failed::Reading;
        let content = NewContent::stream(engine.stage(), &mut source, memory, &mut failed);
        let verb = match failed {
            Failed::Reading => "read the new content of",
            Failed::Writing => "stage the new content of",
        };
        let content = content.on(verb, path)?;
        let bytes = content.size();
        self.write_file(path, content, mode)?;
        Ok(bytes)
    }

    fn write_file(&mut self, path: &Path, content: Arc<NewContent>, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = TreePath::new(path).map_err(|source| invalid_path(path, source))?;
        let spot = match self.file_to_write(&asked)? {
            Some(spot) => spot,
            None => self.make_spot(&asked)?,
        };
        let attributes = self.attributes_of(&spot, mode)?;
        self.put(&spot, NewFile { content, attributes, modified: None });
        Ok(())
    }

    /// Where a write to a path goes, if the directory is there.
    fn file_to_write(&mut self, asked: &TreePath) -> Result<Option<Spot>, Error> {
        let Some(spot) = self.touch(asked, Purpose::Write)? else { return Ok(None) };
        self.check_writable(&spot)?;
        Ok(Some(spot))
    }

    /// Appends to the file at `path`, and makes it if it isn't there. Errors as for [`Transaction::write`].
    pub fn append(&mut self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), Error> {
        self.append_with_mode(path.as_ref(), content.as_ref(), None)
    }

    /// As [`Transaction::append`], and gives the file this mode if one is given.
    pub fn append_with_mode(&mut self, path: &Path, content: &[u8], mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = TreePath::new(path).map_err(|source| invalid_path(path, source))?;
        let existing = self.file_to_write(&asked)?.filter(|spot| self.is_there(spot));
        let Some(spot) = existing else {
            return self.write_file(path, NewContent::bytes(content.to_vec()), mode);
        };
        self.edit(&spot, Ok, content)?;
        if let (Some(mode), Now::File(file)) = (mode, &mut self.view.name_mut(&spot).now) {
            file.attributes = file.attributes.with_mode(mode);
        }
        Ok(())
    }

    /// Overwrites the file at `path` from byte `offset` on, extending it where needed.
    ///
    /// The file is not written in place: the new content is built from a reflink where the file system has it, else
    /// from a copy, and exchanged, so that every promise holds.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` if `offset` lies past the end; else as for [`Transaction::write`].
    pub fn patch(
        &mut self,
        path: impl AsRef<Path>,
        offset: u64,
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let spot = self.existing(path.as_ref(), Purpose::Write)?;
        self.check_writable(&spot)?;
        let at = spot.path.clone();
        self.edit(
            &spot,
            |size| {
                if offset <= size {
                    return Ok(offset);
                }
                let reason = format!("offset {offset} lies past the end, at {size}");
                Err(Error::refused(ErrorKind::InvalidInput, at.as_path(), reason))
            },
            bytes.as_ref(),
        )
    }

    /// Writes `bytes` where `offset_of` says, given the present size.
    fn edit(
        &mut self,
        spot: &Spot,
        offset_of: impl FnOnce(u64) -> Result<u64, Error>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        // A symlink that may be replaced can't be edited: there is nothing in it.
        self.check_regular(spot)?;
        self.load(spot)?;
        let Now::File(file) = &mut self.view.name_mut(spot).now else { unreachable!("it was loaded") };
        let offset = offset_of(file.content.size())?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            let reason = "the file would be larger than a file can be";
            return Err(Error::refused(ErrorKind::InvalidInput, spot.path.as_path(), reason));
        }
        Arc::make_mut(&mut file.content).write(offset, bytes);
        // Whatever time a rename carried over, this is a modification.
        file.modified = None;
        Ok(())
    }

    /// Makes a file that stands on disk, there or elsewhere, a new one of the same content, so that it can be edited.
    fn load(&mut self, spot: &Spot) -> Result<(), Error> {
        if !matches!(self.view.stands(spot), Stands::File(_)) {
            let file = self.loaded(spot)?;
            self.put(spot, file);
        }
        Ok(())
    }

    fn loaded(&mut self, spot: &Spot) -> Result<NewFile, Error> {
        let (size, attributes) = match self.view.stands(spot) {
            Stands::Inode { image } => (image.size, image.attributes.clone()),
            Stands::Moved(moved) => (moved.size, moved.attributes.clone()),
            Stands::File(file) => return Ok(file.clone()),
            _ => unreachable!("it was checked to be a regular file"),
        };
        let attributes = match self.view.name(spot).mode {
            Some(mode) => attributes.with_mode(mode),
            None => attributes,
        };
        let base = self.open(spot)?;
        let content = if size <= EDIT_IN_MEMORY_BYTES_MAX {
            NewContent::bytes(self.read_original(&*base, spot, EDIT_IN_MEMORY_BYTES_MAX)?)
        } else {
            Arc::new(NewContent::Edited(EditedFile::new(base, size)))
        };
        Ok(NewFile { content, attributes, modified: None })
    }

    fn put(&mut self, spot: &Spot, file: NewFile) {
        let name = self.view.name_mut(spot);
        (name.now, name.mode) = (Now::File(file), None);
    }

    /// Opens the file that stands on disk, there or where it is moved from.
    fn open(&mut self, spot: &Spot) -> Result<Arc<dyn File>, Error> {
        let (dir, name) = match self.view.stands(spot) {
            Stands::Moved(moved) => {
                let from = moved.from.clone();
                let parent = self.view.parents.of(&from).on("open the directory of", from.as_path())?;
                (parent.dir, from.name().to_owned())
            }
            _ => (self.disk(spot)?, spot.name.clone()),
        };
        dir.open_file(&name, Access::Read).on("open", spot.path.as_path())
    }

    /// The directory on disk that holds the original.
    fn disk(&mut self, spot: &Spot) -> Result<Arc<dyn Dir>, Error> {
        Ok(self.view.handle(spot.dir)?.expect("an original stands in a directory on disk"))
    }

    /// Removes what stands at `path` and is no directory: a file, or a symlink itself.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`; else as for [`Transaction::write`].
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        if matches!(self.view.stands(&spot), Stands::Dir) {
            return Err(Error::refused(
                ErrorKind::IsADirectory,
                spot.path.as_path(),
                "it is a directory; remove_dir removes one",
            ));
        }
        self.clear(&spot);
        Ok(())
    }

    fn clear(&mut self, spot: &Spot) {
        let name = self.view.name_mut(spot);
        (name.now, name.mode) = (Now::Absent, None);
    }

    /// The content of the file at `path`, as this transaction leaves it. What is read is checked again at `commit`:
    /// if it has changed by then, the transaction is a conflict.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`, `unsupported` for a symlink, unless the options say to follow it.
    pub fn read(&mut self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Read)?;
        self.check_regular(&spot)?;
        if let Stands::File(file) = self.view.stands(&spot) {
            return file.content.read().on("read", spot.path.as_path());
        }
        let file = self.open(&spot)?;
        self.read_original(&*file, &spot, u64::MAX)
    }

    // Names of every kind.

    /// Renames a file, directory or symlink, replacing what stands at `to` like `rename(2)`: a file or symlink, or by a
    /// directory an empty one. Directories above `to` are made. What is renamed keeps its mode, owner, ACLs, extended
    /// attributes and time of modification, and a directory everything in it.
    ///
    /// A regular file of up to `inline_bytes_max` bytes with a single name and without holes gets a new inode, by which it
    /// travels in the log; everything else keeps its own. Renaming a directory costs the same whatever lies in it. It settles the
    /// store first if something at or below either name is not settled, and commits alone.
    ///
    /// # Errors
    /// `not_found` if nothing stands at `from`; `is_a_directory`, `not_a_directory` and `not_empty` for a target that
    /// can't be replaced; `invalid_input` for a directory that would come to lie in itself; else as for
    /// [`Transaction::write`].
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let from = self.existing(from.as_ref(), Purpose::Name)?;
        let (given, asked) = (to.as_ref(), self.asked(to.as_ref())?);
        let is_dir = matches!(self.view.stands(&from), Stands::Dir);
        // A link takes the place of another; a file does only if it may.
        let purpose = match self.view.stands(&from) {
            Stands::Dir | Stands::Symlink(_) => Purpose::Name,
            _ => Purpose::Write,
        };
        let target = self.touch(&asked, purpose)?;
        let place = target.as_ref().map_or(&asked, |target| &target.path);
        if is_dir && place != &from.path && place.is_at_or_below(&from.path) {
            let reason = format!("{} cannot be moved into itself", from.path);
            return Err(Error::refused(ErrorKind::InvalidInput, given, reason));
        }
        if target.as_ref().is_some_and(|target| (target.dir, &target.name) == (from.dir, &from.name)) {
            return Ok(());
        }
        if let Some(target) = &target {
            self.check_replaceable(target, is_dir)?;
        }
        let moving = if is_dir { None } else { Some(self.take_up(&from)?) };
        // Whatever can fail comes before the source gives its name up.
        let to = match target {
            Some(target) => target,
            None => self.make_spot(&asked)?,
        };
        if is_dir {
            self.check_inheritance(&from, &to)?;
        }
        if matches!(self.view.stands(&to), Stands::Dir) {
            self.view.remove_dir(&to)?;
        }
        match moving {
            Some(now) => {
                self.clear(&from);
                let name = self.view.name_mut(&to);
                (name.now, name.mode) = (now, None);
                self.settle_return(&to);
                Ok(())
            }
            None => self.view.move_dir(&from, &to),
        }
    }

    /// Whether a directory that is still to be made gets the same from where it shall stand as from where it was asked
    /// for: it is made there.
    fn check_inheritance(&mut self, from: &Spot, to: &Spot) -> Result<(), Error> {
        let id = self.view.dir_at(from)?;
        if self.view.dir(id).made.is_none()
            || self.defaults_in(from.dir)?.acl == self.defaults_in(to.dir)?.acl
        {
            return Ok(());
        }
        let reason = "it is made by this transaction under another default ACL; make it where it shall stand";
        Err(Error::refused(ErrorKind::Unsupported, from.path.as_path(), reason))
    }

    /// Whether something renamed may take the place of what stands there.
    fn check_replaceable(&mut self, target: &Spot, by_dir: bool) -> Result<(), Error> {
        let refused = |kind, reason: &str| Err(Error::refused(kind, target.path.as_path(), reason));
        match (self.view.stands(target), by_dir) {
            (Stands::Nothing, _) => Ok(()),
            (Stands::Dir, false) => {
                refused(ErrorKind::IsADirectory, "it is a directory, and only a directory can take its place")
            }
            (Stands::Dir, true) => {
                let id = self.view.dir_at(target)?;
                if self.view.list(id)?.is_empty() {
                    return Ok(());
                }
                refused(ErrorKind::NotEmpty, "it is a directory that is not empty; remove it first")
            }
            (_, true) => refused(ErrorKind::NotADirectory, "a directory cannot take the place of a file"),
            (Stands::Inode { image: Image { kind: Kind::Other, .. } }, false) => {
                refused(ErrorKind::Unsupported, "it is a device, socket or pipe; remove it first")
            }
            (_, false) => self.check_hard_links(target),
        }
    }

    /// What is at a name, in a form that can stand at another.
    fn take_up(&mut self, from: &Spot) -> Result<Now, Error> {
        let inline = self.shared.engine.options.inline_bytes_max;
        let mode = self.view.name(from).mode;
        let image = match self.view.stands(from) {
            Stands::Inode { image } => image.clone(),
            Stands::Symlink(_) | Stands::Moved(_) => match &self.view.name(from).now {
                Now::Original => self.view.name(from).original.clone().expect("it stands on disk"),
                now => return Ok(now.clone()),
            },
            Stands::File(file) => return Ok(Now::File(file.clone())),
            Stands::Nothing | Stands::Dir => unreachable!("neither is taken up"),
        };
        let travels = image.kind == Kind::File
            && image.links == 1
            && image.size <= inline
            // Who may not read it may rename it all the same.
            && image.content != Content::Unread
            // A copy would fill the holes.
            && !self.disk(from)?.metadata(&from.name).on("look at", from.path.as_path())?.is_sparse;
        if travels {
            return Ok(Now::File(NewFile { modified: Some(image.modified), ..self.loaded(from)? }));
        }
        let directory = self.view.dir(from.dir);
        let place = directory.disk_path(&from.name).expect("an original stands on disk");
        let attributes =
            mode.map_or_else(|| image.attributes.clone(), |mode| image.attributes.with_mode(mode));
        let target = match (&image.kind, &image.content) {
            (Kind::Symlink, Content::Inline(target)) => Some(target.to_vec()),
            _ => None,
        };
        let moved = Moved {
            from: place,
            from_parent: directory.inode.unwrap_or(0),
            kind: image.kind,
            inode: image.inode,
            born: image.born,
            size: image.size,
            before: image.attributes,
            attributes,
        };
        Ok(Now::Moved { moved: Box::new(moved), target })
    }

    /// An inode that is back where it stood has not moved.
    fn settle_return(&mut self, spot: &Spot) {
        let name = self.view.name_mut(spot);
        if let (Now::Moved { moved, .. }, Some(original)) = (&name.now, &name.original)
            && moved.inode == original.inode
        {
            let mode = moved.attributes.mode;
            name.mode = (mode != original.attributes.mode).then_some(mode);
            name.now = Now::Original;
        }
    }

    /// Makes a symlink at `path` that leads to `target`, which is stored verbatim and need not exist. Directories above
    /// it are made. A symlink that stands there already is replaced; atomically, as everything.
    ///
    /// # Errors
    /// `exists` if anything else stands there; `invalid_input` for a target that is empty, longer than 4095 bytes or
    /// holds a zero byte; else as for [`Transaction::write`].
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), Error> {
        let asked = self.asked(path.as_ref())?;
        let target = target.as_ref().as_os_str().as_bytes();
        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
            let reason =
                format!("a symlink's target is 1 to {TARGET_BYTES_MAX} bytes, and none of them zero");
            return Err(Error::refused(ErrorKind::InvalidInput, asked.as_path(), reason));
        }
        let spot = match self.view.spot(&asked)? {
            Some(spot) => spot,
            None => self.make_spot(&asked)?,
        };
        if !matches!(self.view.stands(&spot), Stands::Nothing | Stands::Symlink(_)) {
            return Err(exists(&spot));
        }
        // The mode of a symlink is always the same, and asked by nobody.
        let attributes = Attributes {
            mode: 0o777,
            xattrs: Vec::new(),
            ..self.default_attributes(spot.dir, &spot.path, 0o777, None, Kind::File)?
        };
        let name = self.view.name_mut(&spot);
        (name.now, name.mode) = (Now::Symlink(NewSymlink { target: target.to_vec(), attributes }), None);
        Ok(())
    }

    /// Where the symlink at `path` leads, as this transaction leaves it. The answer is checked again at `commit`.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` if something else stands there.
    pub fn read_link(&mut self, path: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        self.note_read(&spot);
        match self.view.stands(&spot) {
            Stands::Symlink(target) => Ok(PathBuf::from(std::ffi::OsStr::from_bytes(target))),
            _ => Err(Error::refused(ErrorKind::InvalidInput, spot.path.as_path(), "it is no symlink")),
        }
    }

    /// Sets the permission bits (`0o7777` at most) of the file or directory at `path`.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` for more than permission bits; `unsupported` for a symlink, unless the options say
    /// to follow it; `permission`.
    pub fn set_mode(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        check_mode(path.as_ref(), Some(mode))?;
        let spot = self.existing(path.as_ref(), Purpose::ChangeMode)?;
        if matches!(self.view.stands(&spot), Stands::Dir) {
            let id = self.view.dir_at(&spot)?;
            let directory = self.view.dir_mut(id);
            match &mut directory.made {
                Some(made) => made.attributes = made.attributes.with_mode(mode),
                None => directory.mode = Some(mode),
            }
            return Ok(());
        }
        let name = self.view.name_mut(&spot);
        match &mut name.now {
            Now::File(file) => file.attributes = file.attributes.with_mode(mode),
            Now::Moved { moved, .. } => moved.attributes = moved.attributes.with_mode(mode),
            _ => {
                let is_news = name.original.as_ref().is_none_or(|original| original.attributes.mode != mode);
                name.mode = is_news.then_some(mode);
            }
        }
        Ok(())
    }

    // Directories.

    /// Makes a directory, with what the umask or a default ACL leaves of mode 0777.
    ///
    /// # Errors
    /// `exists` if anything stands there, `not_found` if the directory above it is not there; else as for
    /// [`Transaction::write`].
    pub fn create_dir(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.make_directory(path.as_ref(), None)
    }

    /// As [`Transaction::create_dir`], and gives the directory exactly this mode (`0o7777` at most).
    pub fn create_dir_with_mode(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        self.make_directory(path.as_ref(), Some(mode))
    }

    fn make_directory(&mut self, path: &Path, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = self.asked(path)?;
        let Some(spot) = self.view.spot(&asked)? else {
            let reason = "the directory above it is not there; create_dir_all makes it as well";
            return Err(Error::refused(ErrorKind::NotFound, path, reason));
        };
        if !matches!(self.view.stands(&spot), Stands::Nothing) {
            return Err(exists(&spot));
        }
        let attributes = self.default_attributes(spot.dir, &spot.path, 0o777, mode, Kind::Dir)?;
        self.view.make_dir(&spot, attributes, false);
        Ok(())
    }

    /// Makes a directory and those above it, as far as they are missing. One that is there already is left as it is.
    ///
    /// # Errors
    /// `exists` if something that is no directory stands there; else as for [`Transaction::write`].
    pub fn create_dir_all(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.create_dir_all_with_mode(path.as_ref(), None)
    }

    /// As [`Transaction::create_dir_all`]; the last directory gets this mode if one is given and it has to be made.
    pub fn create_dir_all_with_mode(&mut self, path: &Path, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = self.asked(path)?;
        let mut spot = match self.view.spot(&asked)? {
            Some(spot) => spot,
            None => self.make_spot(&asked)?,
        };
        let mut is_link = false;
        for _ in 0..SYMLINKS_MAX {
            let Stands::Symlink(target) = self.view.stands(&spot) else { break };
            let target = target.to_vec();
            is_link = true;
            self.note_read(&spot);
            spot = self.view.through_link(&spot, &target)?.ok_or_else(|| exists(&spot))?;
        }
        match self.view.stands(&spot) {
            Stands::Dir => Ok(()),
            // A link that leads nowhere is in the way.
            Stands::Nothing if !is_link => {
                let attributes = self.default_attributes(spot.dir, &spot.path, 0o777, mode, Kind::Dir)?;
                self.view.make_dir(&spot, attributes, mode.is_none());
                Ok(())
            }
            _ => Err(exists(&spot)),
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`, `not_empty`; else as for [`Transaction::write`].
    pub fn remove_dir(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let (spot, id) = self.existing_dir(path.as_ref())?;
        // Everything that is there on disk has to be known, to be compared at the commit.
        if !self.view.list(id)?.is_empty() {
            let reason = "it is not empty; remove_dir_all removes what is in it as well";
            return Err(Error::refused(ErrorKind::NotEmpty, spot.path.as_path(), reason));
        }
        self.view.remove_dir(&spot)
    }

    /// Removes a directory and everything in it, of whatever kind. It leaves the tree in one rename.
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`; `mount_point` and `cross_device` if another file system lies in it; else as for
    /// [`Transaction::write`].
    pub fn remove_dir_all(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let (top, id) = self.existing_dir(path.as_ref())?;
        // First everything is looked at, which can fail; then it is all taken away, the deepest first.
        let mut spots = vec![top];
        let mut unseen = vec![id];
        while let Some(id) = unseen.pop() {
            for name in self.view.list(id)?.into_keys() {
                let spot = self.view.spot_below(id, &name)?;
                if matches!(self.view.stands(&spot), Stands::Dir) {
                    unseen.push(self.view.dir_at(&spot)?);
                }
                spots.push(spot);
            }
        }
        for spot in spots.into_iter().rev() {
            if matches!(self.view.stands(&spot), Stands::Dir) {
                self.view.remove_dir(&spot)?;
            } else {
                self.clear(&spot);
            }
        }
        Ok(())
    }

    // Questions.

    /// Whether anything stands at `path`, as this transaction leaves it: a file, a directory, a symlink wherever it leads.
    /// The answer is checked again at `commit`.
    ///
    /// # Errors
    /// As for [`Transaction::read`], without `not_found`.
    pub fn exists(&mut self, path: impl AsRef<Path>) -> Result<bool, Error> {
        let asked = self.asked(path.as_ref())?;
        match self.view.spot(&asked)? {
            Some(spot) => {
                self.note_read(&spot);
                Ok(self.is_there(&spot))
            }
            None => {
                self.note_missing(&asked)?;
                Ok(false)
            }
        }
    }

    /// What stands at `path`, as this transaction leaves it, without following a final symlink. The answer is checked
    /// again at `commit`.
    ///
    /// # Errors
    /// `not_found`; else as for [`Transaction::read`].
    pub fn metadata(&mut self, path: impl AsRef<Path>) -> Result<FileMetadata, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        self.note_read(&spot);
        let mode = self.view.name(&spot).mode;
        let of = |kind: Kind, bytes: u64, attributes: &Attributes, mode: Option<u32>| FileMetadata {
            kind,
            bytes,
            mode: mode.unwrap_or(attributes.mode),
            uid: attributes.uid,
            gid: attributes.gid,
        };
        Ok(match self.view.stands(&spot) {
            Stands::Nothing => unreachable!("it was found to be there"),
            Stands::File(file) => of(Kind::File, file.content.size(), &file.attributes, None),
            Stands::Moved(moved) => of(moved.kind, moved.size, &moved.attributes, None),
            Stands::Inode { image } => of(image.kind, image.size, &image.attributes, mode),
            Stands::Symlink(target) => {
                let name = self.view.name(&spot);
                let attributes = match (&name.now, &name.original) {
                    (Now::Symlink(link), _) => link.attributes.clone(),
                    (Now::Moved { moved, .. }, _) => moved.attributes.clone(),
                    (_, Some(image)) => image.attributes.clone(),
                    (_, None) => unreachable!("a symlink stands there"),
                };
                of(Kind::Symlink, target.len() as u64, &attributes, None)
            }
            Stands::Dir => {
                let id = self.view.dir_at(&spot)?;
                let directory = self.view.dir(id);
                let (mode, made) = (directory.mode, directory.made.as_ref());
                match made {
                    Some(made) => of(Kind::Dir, 0, &made.attributes, None),
                    None => of(Kind::Dir, 0, &self.attributes_of_dir(id)?, mode),
                }
            }
        })
    }

    /// The names in the directory at `path` and their kinds, sorted, as this transaction leaves it; an empty path or `.`
    /// is the root, whose list leaves out the store. At `commit` the names and kinds are checked again; what has changed
    /// inside a file is no conflict.
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`; else as for [`Transaction::read`].
    pub fn list(&mut self, path: impl AsRef<Path>) -> Result<Vec<(std::ffi::OsString, Kind)>, Error> {
        let path = path.as_ref();
        let id = if path.as_os_str().is_empty() || path == Path::new(".") {
            ROOT
        } else {
            let (spot, id) = self.existing_dir(path)?;
            self.note_read(&spot);
            id
        };
        if self.view.dir(id).listing.is_none() && self.view.dir(id).inode.is_some() {
            let names: BTreeMap<_, _> = self.view.list_disk(id)?;
            self.view.dir_mut(id).listing = Some(names);
        }
        Ok(self.view.list(id)?.into_iter().collect())
    }

    /// Goes on only if the name holds what is expected, now and at `commit`.
    ///
    /// # Errors
    /// `conflict`, naming what was found; `unsupported` for a directory or symlink.
    pub fn expect(&mut self, path: impl AsRef<Path>, expectation: Expectation) -> Result<(), Error> {
        let asked = self.asked(path.as_ref())?;
        let Some(spot) = self.touch(&asked, Purpose::Read)? else {
            self.note_missing(&asked)?;
            return meets(expectation, None).map_err(|reason| Error::conflict(asked.as_path(), reason));
        };
        self.note_read(&spot);
        let found = match self.view.stands(&spot) {
            Stands::Nothing => None,
            Stands::File(file) => Some(file.content.digest().on("read", spot.path.as_path())?),
            Stands::Inode { image: Image { kind: Kind::File, content, .. } } => match content.digest() {
                Some(digest) => Some(digest),
                None => Some(self.digest_original(&spot)?),
            },
            Stands::Moved(Moved { kind: Kind::File, .. }) => {
                let file = self.open(&spot)?;
                Some(Digest::of_file(&*file).on("read", spot.path.as_path())?.1)
            }
            Stands::Dir | Stands::Symlink(_) | Stands::Inode { .. } | Stands::Moved(_) => {
                let reason = "an expectation can be about a file or about nothing, and this is neither";
                return Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason));
            }
        };
        meets(expectation, found).map_err(|reason| Error::conflict(spot.path.as_path(), reason))
    }

    /// Reads a large original once, so that the check can compare its content.
    fn digest_original(&mut self, spot: &Spot) -> Result<Digest, Error> {
        let file = self.open(spot)?;
        let (_, digest) = Digest::of_file(&*file).on("read", spot.path.as_path())?;
        let name = self.view.name_mut(spot);
        name.original.as_mut().expect("it stands on disk").content = Content::Digest(digest);
        Ok(digest)
    }

    // The whole.

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

    // What the operations are made of.

    fn asked(&self, path: &Path) -> Result<TreePath, Error> {
        TreePath::new(path).map_err(|source| invalid_path(path, source))
    }

    /// Resolves a path, final symlinks as the purpose asks, and takes a first look at what stands there. `None` if the
    /// directory that should hold it is not there.
    fn touch(&mut self, asked: &TreePath, purpose: Purpose) -> Result<Option<Spot>, Error> {
        let Some(mut spot) = self.view.spot(asked)? else { return Ok(None) };
        for _ in 0..SYMLINKS_MAX {
            let Some(target) = self.link_to_follow(&spot, purpose)? else { return Ok(Some(spot)) };
            // The link itself was read: if it leads elsewhere by then, this transaction is a conflict.
            self.note_read(&spot);
            let Some(next) = self.view.through_link(&spot, &target)? else {
                let reason = "it is a symlink into a directory that is not there";
                return Err(Error::refused(ErrorKind::NotFound, spot.path.as_path(), reason));
            };
            spot = next;
        }
        Err(Error::refused(ErrorKind::InvalidPath, asked.as_path(), "symlinks lead in a circle"))
    }

    /// Where a final symlink leads, if one stands there and is to be followed.
    fn link_to_follow(&self, spot: &Spot, purpose: Purpose) -> Result<Option<Vec<u8>>, Error> {
        let Stands::Symlink(target) = self.view.stands(spot) else { return Ok(None) };
        match (purpose, self.symlinks) {
            (Purpose::Name, _) | (Purpose::Write, Symlinks::Replace) => Ok(None),
            (_, Symlinks::Follow) => Ok(Some(target.to_vec())),
            (_, Symlinks::Refuse | Symlinks::Replace) => {
                let reason = "it is a symlink; name the file that it leads to, or say that symlinks are to be followed";
                Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
            }
        }
    }

    /// The spot of a path where something has to stand.
    fn existing(&mut self, path: &Path, purpose: Purpose) -> Result<Spot, Error> {
        let asked = self.asked(path)?;
        let spot = self.touch(&asked, purpose)?;
        if let Some(spot) = &spot {
            if purpose == Purpose::Read {
                self.note_read(spot);
            }
            if self.is_there(spot) {
                return Ok(spot.clone());
            }
        } else if purpose == Purpose::Read {
            self.note_missing(&asked)?;
        }
        let path = spot.map_or(asked, |spot| spot.path);
        Err(Error::refused(ErrorKind::NotFound, path.as_path(), "no such file"))
    }

    fn existing_dir(&mut self, path: &Path) -> Result<(Spot, DirId), Error> {
        let spot = self.existing(path, Purpose::Name)?;
        if !matches!(self.view.stands(&spot), Stands::Dir) {
            return Err(Error::refused(
                ErrorKind::NotADirectory,
                spot.path.as_path(),
                "it is not a directory",
            ));
        }
        let id = self.view.dir_at(&spot)?;
        Ok((spot, id))
    }

    /// The spot of a path of which directories are missing, which are made.
    fn make_spot(&mut self, asked: &TreePath) -> Result<Spot, Error> {
        let (mut dir, missing) = self.view.deepest(asked)?;
        let (last, above) = missing.split_last().expect("its directory is not there");
        for name in above {
            let spot = self.view.spot_in(dir, name)?;
            // A symlink that leads nowhere can't be made a directory.
            if !matches!(self.view.stands(&spot), Stands::Nothing) {
                return Err(exists(&spot));
            }
            let attributes = self.default_attributes(dir, &spot.path, 0o777, None, Kind::Dir)?;
            dir = self.view.make_dir(&spot, attributes, true);
        }
        self.view.spot_in(dir, last)
    }

    fn is_there(&self, spot: &Spot) -> bool {
        !matches!(self.view.stands(spot), Stands::Nothing)
    }

    /// The caller is told of what stands there, or relies on it.
    fn note_read(&mut self, spot: &Spot) {
        let name = self.view.name_mut(spot);
        name.is_read |= matches!(name.now, Now::Original);
    }

    /// The caller is told that nothing stands at a path whose directory is missing.
    fn note_missing(&mut self, asked: &TreePath) -> Result<(), Error> {
        let (dir, missing) = self.view.deepest(asked)?;
        if let Some(first) = missing.first() {
            let spot = self.view.spot_in(dir, first)?;
            self.note_read(&spot);
        }
        Ok(())
    }

    /// Refuses what can't be written.
    fn check_writable(&mut self, spot: &Spot) -> Result<(), Error> {
        match self.view.stands(spot) {
            Stands::Nothing | Stands::Symlink(_) => return Ok(()),
            // What can't be read can't be replaced by something with the same attributes.
            Stands::Inode { image: Image { kind: Kind::File, content: Content::Unread, .. } } => {
                self.open(spot)?;
            }
            _ => {}
        }
        self.check_regular(spot)?;
        self.check_hard_links(spot)
    }

    /// Refuses what is no regular file.
    fn check_regular(&self, spot: &Spot) -> Result<(), Error> {
        let refused = |kind, reason| Err(Error::refused(kind, spot.path.as_path(), reason));
        match self.view.stands(spot) {
            Stands::Dir => refused(ErrorKind::IsADirectory, "it is a directory"),
            Stands::Inode { image: Image { kind: Kind::Other, .. } }
            | Stands::Moved(Moved { kind: Kind::Other, .. }) => {
                refused(ErrorKind::Unsupported, "it is a device, socket or pipe")
            }
            Stands::Symlink(_) => refused(ErrorKind::Unsupported, "it is a symlink"),
            _ => Ok(()),
        }
    }

    fn check_hard_links(&self, spot: &Spot) -> Result<(), Error> {
        match self.view.stands(spot) {
            Stands::Inode { image }
                if image.kind == Kind::File && image.links > 1 && self.hard_links == HardLinks::Refuse =>
            {
                let reason = format!(
                    "it has {} hard links, and replacing it would part it from the others; say that hard links are to be broken",
                    image.links
                );
                Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
            }
            _ => Ok(()),
        }
    }

    /// Reads an original that has been looked at before, while a new image of it is taken, so that the bytes are those
    /// that the check compares.
    ///
    /// # Errors
    /// `conflict` if it is no longer what was seen: the check could only compare with one of the two.
    fn read_original(&mut self, file: &dyn File, spot: &Spot, limit: u64) -> Result<Vec<u8>, Error> {
        let vfs = &*self.shared.engine.places.vfs;
        let (image, bytes) = Image::capture_with_content(vfs, file, self.view.limits(), limit)
            .on("read", spot.path.as_path())?;
        if let Stands::Moved(moved) = self.view.stands(spot) {
            // The name where it stood is not this one; the mover's check knows it by its inode.
            if moved.inode == image.inode {
                return Ok(bytes);
            }
        } else if let Some(seen) = &mut self.view.name_mut(spot).original {
            let same_content = match seen.content.digest() {
                None => seen.has_times_of_image(&image),
                digest => seen.size == image.size && digest == image.content.digest(),
            };
            if same_content && seen.attributes == image.attributes {
                *seen = image;
                return Ok(bytes);
            }
        }
        Err(Error::conflict(spot.path.as_path(), "it was changed since the transaction first looked"))
    }

    /// The attributes that a file at this name has, or would get.
    fn attributes_of(&mut self, spot: &Spot, mode: Option<u32>) -> Result<Attributes, Error> {
        let changed = self.view.name(spot).mode;
        let kept = match self.view.stands(spot) {
            Stands::File(file) => Some(file.attributes.clone()),
            Stands::Inode { image } if image.kind == Kind::File => Some(image.attributes.clone()),
            Stands::Moved(moved) if moved.kind == Kind::File => Some(moved.attributes.clone()),
            _ => None,
        };
        match (kept, mode.or(changed)) {
            (Some(attributes), Some(mode)) => Ok(attributes.with_mode(mode)),
            (Some(attributes), None) => Ok(attributes),
            (None, _) => self.default_attributes(spot.dir, &spot.path, 0o666, mode, Kind::File),
        }
    }

    fn attributes_of_dir(&mut self, id: DirId) -> Result<Attributes, Error> {
        let path = self.view.dir(id).path.clone();
        let dir = self.view.handle(id)?.expect("it stands on disk");
        Attributes::of_dir(&*dir).on("read the attributes of", Path::new(std::ffi::OsStr::from_bytes(&path)))
    }

    /// What creating a name in the directory in place would give it.
    fn default_attributes(
        &mut self,
        dir: DirId,
        path: &TreePath,
        base_mode: u32,
        mode: Option<u32>,
        kind: Kind,
    ) -> Result<Attributes, Error> {
        let defaults = self.defaults_in(dir)?;
        let mut attributes =
            Attributes { mode: base_mode, uid: defaults.uid, gid: defaults.gid, xattrs: Vec::new() };
        match &defaults.acl {
            Some(acl) => {
                let wanted = mode.unwrap_or(base_mode);
                let Some((inherited_mode, access)) = inherited(acl, wanted) else {
                    let reason = "its directory has a default ACL of an unknown version";
                    return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
                };
                attributes.mode = inherited_mode;
                let access = access.map(|value| Attribute { name: ACCESS_ACL.to_vec(), value });
                attributes.xattrs.extend(access);
            }
            None => attributes.mode = mode.unwrap_or(base_mode & !defaults.umask),
        }
        if kind == Kind::Dir && defaults.setgid {
            attributes.mode |= 0o2000;
        }
        Ok(attributes)
    }

    /// The defaults of a directory, or of the nearest one above it that stands on disk.
    fn defaults_in(&mut self, dir: DirId) -> Result<Arc<Defaults>, Error> {
        let mut above = dir;
        let defaults = loop {
            if let Some(defaults) = self.defaults.get(&above) {
                break defaults.clone();
            }
            match &self.view.dir(above).made {
                Some(made) => above = made.parent,
                None => break Arc::new(self.defaults_on_disk(above)?),
            }
        };
        self.defaults.insert(above, defaults.clone());
        self.defaults.insert(dir, defaults.clone());
        Ok(defaults)
    }

    fn defaults_on_disk(&mut self, dir: DirId) -> Result<Defaults, Error> {
        let vfs = self.shared.engine.places.vfs.clone();
        let identity = vfs.identity().on("read the identity of", "this process")?;
        let found = self.attributes_of_dir(dir)?;
        let setgid = found.mode & 0o2000 != 0;
        let acl = found.xattrs.into_iter().find(|xattr| xattr.name == DEFAULT_ACL).map(|xattr| xattr.value);
        let gid = if setgid { found.gid } else { identity.gid };
        Ok(Defaults { uid: identity.uid, gid, setgid, umask: identity.umask, acl })
    }
}

fn exists(spot: &Spot) -> Error {
    Error::refused(ErrorKind::Exists, spot.path.as_path(), "something stands there already; remove it first")
}

/// Whether a name holds what is expected; else what is wrong.
fn meets(expectation: Expectation, found: Option<Digest>) -> Result<(), String> {
    Err(match (expectation, found) {
        (Expectation::Absent, None) => return Ok(()),
        (Expectation::Blake3(expected), Some(found)) if expected == found.0 => return Ok(()),
        (Expectation::Absent, Some(found)) => {
            format!("nothing was expected, and a file with blake3 {found} is there")
        }
        (Expectation::Blake3(expected), None) => {
            format!("blake3 {} was expected, and nothing is there", Digest(expected))
        }
        (Expectation::Blake3(expected), Some(found)) => {
            format!("blake3 {} was expected, and {found} is there", Digest(expected))
        }
    })
}

fn check_mode(path: &Path, mode: Option<u32>) -> Result<(), Error> {
    match mode {
        Some(mode) if mode > 0o7777 => Err(Error::refused(
            ErrorKind::InvalidInput,
            path,
            format!("mode {mode:o} has more than permission bits"),
        )),
        _ => Ok(()),
    }
}
