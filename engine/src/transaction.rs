//! A transaction while it is being put together: what it saw, and what it wants.
//!
//! For every name that it touches it remembers what stood there at first sight, and what shall stand there; operations
//! act on the latter, one after another. Nothing is written anywhere before `commit`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree_recovery::acl::{ACCESS_ACL, DEFAULT_ACL, inherited};
use atomtree_recovery::apply::Parents;
use atomtree_recovery::image::{Attribute, Attributes, Content, Digest, Image, ImageLimits};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Dir, File, Kind, Timestamp};

use crate::commit::Receipt;
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::{Durability, HardLinks, Symlinks};
use crate::resolve::{Pending, canonical, invalid_path, through_link};
use crate::store::Shared;
use crate::ticket::Ticket;

/// Contents up to this size are edited in memory; larger ones in a copy of the file.
const EDIT_IN_MEMORY_BYTES_MAX: u64 = 1 << 20;

/// What a name must hold for the transaction to go on; for [`Transaction::expect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing.
    Absent,
    /// A regular file whose content has this BLAKE3 digest.
    Blake3([u8; 32]),
}

/// A set of changes that takes effect wholly or not at all. Made by [`crate::Store::begin`].
///
/// Operations act in order, each on the result of those before it. Paths are relative to the root; missing parent
/// directories are made. Dropping a transaction abandons it: nothing was written yet.
#[must_use = "a transaction changes nothing until it is committed"]
pub struct Transaction {
    pub(crate) shared: Arc<Shared>,
    pub(crate) begun: Timestamp,
    pub(crate) label: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) names: BTreeMap<TreePath, Name>,
    symlinks: Symlinks,
    hard_links: HardLinks,
    pub(crate) durability: Durability,
    pub(crate) parents: Parents,
    /// By directory, whether it exists or not.
    defaults: HashMap<PathBuf, Arc<Defaults>>,
}

/// A name that the transaction has touched.
pub(crate) struct Name {
    /// Inode number of the directory that holds it; 0 if there is none yet.
    pub(crate) parent: u64,
    /// What stood there at first sight.
    pub(crate) original: Option<Image<'static>>,
    /// What shall stand there.
    pub(crate) now: Now,
    /// Whether the caller was told of the original, or relies on it.
    pub(crate) is_read: bool,
}

/// What shall stand at a name.
pub(crate) enum Now {
    /// What stands there.
    Original,
    /// Nothing.
    Absent,
    /// A regular file.
    File(NewFile),
    /// A directory, made because something in it needs it.
    Dir(Attributes),
}

/// A regular file to be written.
pub(crate) struct NewFile {
    pub(crate) content: NewContent,
    pub(crate) attributes: Attributes,
    /// The time of modification to carry over, for a file that was renamed.
    pub(crate) modified: Option<Timestamp>,
}

/// Its content.
pub(crate) enum NewContent {
    /// All of it.
    Bytes(Vec<u8>),
    /// That of an existing file, with changes.
    Edited(EditedFile),
}

/// A file too large to be held in memory, and what changes in it.
pub(crate) struct EditedFile {
    pub(crate) base: Arc<dyn File>,
    pub(crate) size: u64,
    /// In order; a later one wins.
    pub(crate) edits: Vec<(u64, Vec<u8>)>,
}

/// What a new name in a directory gets.
struct Defaults {
    uid: u32,
    gid: u32,
    setgid: bool,
    umask: u32,
    acl: Option<Vec<u8>>,
}

impl NewContent {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Edited(edited) => edited.size,
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        match self {
            Self::Bytes(content) => {
                let start = usize::try_from(offset).expect("checked against the content's length");
                let end = start + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
            Self::Edited(edited) => {
                edited.size = edited.size.max(offset + bytes.len() as u64);
                edited.edits.push((offset, bytes.to_vec()));
            }
        }
    }

    /// All of it, in memory.
    fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Edited(edited) => {
                let mut bytes = edited.base.read_all(u64::MAX)?;
                bytes.resize(edited.size as usize, 0);
                for (offset, edit) in &edited.edits {
                    bytes[*offset as usize..][..edit.len()].copy_from_slice(edit);
                }
                Ok(bytes)
            }
        }
    }
}

impl Transaction {
    pub(crate) fn begin(shared: Arc<Shared>) -> Result<Self, Error> {
        let places = &shared.engine.places;
        let parents = Parents::new(places.root.clone()).on("read the metadata of", ".")?;
        let options = &shared.engine.options;
        let (symlinks, hard_links, durability) = (options.symlinks, options.hard_links, options.durability);
        let begun = places.vfs.now();
        Ok(Self {
            shared,
            begun,
            label: None,
            agent: None,
            names: BTreeMap::new(),
            symlinks,
            hard_links,
            durability,
            parents,
            defaults: HashMap::new(),
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

    /// Gives the file at `path` this content, and makes it if it isn't there. An existing file keeps its mode, owner,
    /// ACLs and extended attributes.
    ///
    /// # Errors
    /// Nothing has been changed by any of them: `is_a_directory`; `unsupported` for a final symlink or a file with
    /// several hard links, unless the options say otherwise; `invalid_path`, `not_a_directory`, `mount_point`,
    /// `permission`, `io`.
    pub fn write(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::Bytes(content.into()), None)
    }

    /// As [`Transaction::write`], and gives the file exactly this mode (`0o7777` at most).
    pub fn write_with_mode(
        &mut self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        mode: u32,
    ) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::Bytes(content.into()), Some(mode))
    }

    fn write_file(&mut self, path: &Path, content: NewContent, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let path = self.touch_file(path, Purpose::Replace)?;
        let attributes = self.attributes_of(&path, mode)?;
        self.set(&path, Now::File(NewFile { content, attributes, modified: None }))
    }

    /// Appends to the file at `path`, and makes it if it isn't there. Errors as for [`Transaction::write`].
    pub fn append(&mut self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), Error> {
        self.append_with_mode(path.as_ref(), content.as_ref(), None)
    }

    /// As [`Transaction::append`], and gives the file this mode if one is given.
    pub fn append_with_mode(&mut self, path: &Path, content: &[u8], mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let path = self.touch_file(path, Purpose::Replace)?;
        if !self.is_file(&path) {
            return self.write_file(path.as_path(), NewContent::Bytes(content.to_vec()), mode);
        }
        self.edit(&path, Ok, content)?;
        if let (Some(mode), Now::File(file)) =
            (mode, &mut self.names.get_mut(&path).expect("it was touched").now)
        {
            file.attributes.mode = mode;
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
        let path = self.touch_file(path.as_ref(), Purpose::Replace)?;
        self.check_file(&path)?;
        let at = path.clone();
        self.edit(
            &path,
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
        path: &TreePath,
        offset_of: impl FnOnce(u64) -> Result<u64, Error>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.load(path)?;
        let name = self.names.get_mut(path).expect("it was touched");
        let Now::File(file) = &mut name.now else { unreachable!("it was loaded") };
        let offset = offset_of(file.content.size())?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            let reason = "the file would be larger than a file can be";
            return Err(Error::refused(ErrorKind::InvalidInput, path.as_path(), reason));
        }
        file.content.write(offset, bytes);
        // Whatever time a rename carried over, this is a modification.
        file.modified = None;
        Ok(())
    }

    /// Makes an untouched original a new file of the same content, so that it can be edited or moved.
    fn load(&mut self, path: &TreePath) -> Result<(), Error> {
        let name = &self.names[path];
        let (Now::Original, Some(original)) = (&name.now, &name.original) else { return Ok(()) };
        let attributes = original.attributes.clone();
        let dir = self.parents.of(path).on("open the directory of", path.as_path())?.dir;
        let base = dir.open_file(path.name(), Access::Read).on("open", path.as_path())?;
        let content = if original.size <= EDIT_IN_MEMORY_BYTES_MAX {
            NewContent::Bytes(self.read_original(&*base, path, EDIT_IN_MEMORY_BYTES_MAX)?)
        } else {
            NewContent::Edited(EditedFile { base, size: original.size, edits: Vec::new() })
        };
        self.set(path, Now::File(NewFile { content, attributes, modified: None }))
    }

    /// Removes the file at `path`.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`; else as for [`Transaction::write`].
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = self.touch_file(path.as_ref(), Purpose::Remove)?;
        self.check_file(&path)?;
        self.set(&path, Now::Absent)
    }

    /// Renames a file, replacing what stands at `to`, like `rename(2)`. The file keeps its mode, owner, ACLs, extended
    /// attributes and time of modification. It gets a new inode: its content is copied, by reflink where the file
    /// system has it.
    ///
    /// # Errors
    /// `not_found` if nothing stands at `from`, `is_a_directory` if either is one; else as for [`Transaction::write`].
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let from = self.touch_file(from.as_ref(), Purpose::Move)?;
        self.check_file(&from)?;
        let to = self.touch_file(to.as_ref(), Purpose::Replace)?;
        if from == to {
            return Ok(());
        }
        let modified = match &self.names[&from] {
            Name { now: Now::Original, original: Some(original), .. } => Some(original.modified),
            _ => None,
        };
        self.load(&from)?;
        // Whatever can fail comes before the source gives its content up.
        self.make_parents(&to)?;
        let name = self.names.get_mut(&from).expect("it was touched");
        let Now::File(mut file) = std::mem::replace(&mut name.now, Now::Absent) else {
            unreachable!("it was loaded")
        };
        file.modified = file.modified.or(modified);
        self.set(&to, Now::File(file))
    }

    /// The content of the file at `path`, as this transaction leaves it. What is read is checked again at `commit`:
    /// if it has changed by then, the transaction is a conflict.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`, `unsupported` for a symlink, unless the options say to follow it.
    pub fn read(&mut self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let path = self.touch_file(path.as_ref(), Purpose::Read)?;
        self.check_file(&path)?;
        if let Now::File(file) = &self.names[&path].now {
            return file.content.read().on("read", path.as_path());
        }
        let dir = self.parents.of(&path).on("open the directory of", path.as_path())?.dir;
        let file = dir.open_file(path.name(), Access::Read).on("open", path.as_path())?;
        self.read_original(&*file, &path, u64::MAX)
    }

    /// Whether a file stands at `path`, as this transaction leaves it. The answer is checked again at `commit`.
    ///
    /// # Errors
    /// As for [`Transaction::read`], without `not_found`.
    pub fn is_present(&mut self, path: impl AsRef<Path>) -> Result<bool, Error> {
        let path = self.touch_file(path.as_ref(), Purpose::Read)?;
        Ok(self.is_file(&path))
    }

    /// Goes on only if the name holds what is expected, now and at `commit`.
    ///
    /// # Errors
    /// `conflict`, naming what was found; `unsupported` for a directory or symlink.
    pub fn expect(&mut self, path: impl AsRef<Path>, expectation: Expectation) -> Result<(), Error> {
        let asked = path.as_ref();
        let path = match self.touch_file(asked, Purpose::Read) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                let reason = "an expectation can be about a file or about nothing, and this is a directory";
                return Err(Error::refused(ErrorKind::Unsupported, asked, reason));
            }
            result => result?,
        };
        let found = match (&self.names[&path].now, &self.names[&path].original) {
            (Now::Absent, _) | (Now::Original, None) => None,
            (Now::File(file), _) => Some(Digest::of(&file.content.read().on("read", path.as_path())?)),
            (Now::Original, Some(Image { content: Content::Unread, .. })) => {
                let dir = self.parents.of(&path).on("open the directory of", path.as_path())?.dir;
                let file = dir.open_file(path.name(), Access::Read).on("open", path.as_path())?;
                let (_, digest) = Digest::of_file(&*file).on("read", path.as_path())?;
                let name = self.names.get_mut(&path).expect("it was touched");
                name.original.as_mut().expect("matched above").content = Content::Digest(digest);
                Some(digest)
            }
            (Now::Original, Some(original)) => original.content.digest(),
            (Now::Dir(_), _) => unreachable!("touching a directory as a file is an error"),
        };
        let reason = match (expectation, found) {
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
        };
        Err(Error::conflict(path.as_path(), reason))
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
    /// was changed. Except `outcome_unknown`, after a failed sync: open the store again to find out; and
    /// `committed_not_applied`: recovery finishes it.
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

    /// Resolves a path and takes a first look at what stands there, which must not be a directory.
    fn touch_file(&mut self, asked: &Path, purpose: Purpose) -> Result<TreePath, Error> {
        let mut path = TreePath::new(asked).map_err(|source| invalid_path(asked, source))?;
        path = canonical(&mut self.parents, &path, |path| pending(&self.names, path))?;
        for _ in 0..SYMLINKS_MAX {
            if !self.names.contains_key(&path) {
                self.look(&path)?;
            }
            match self.link_target(&path, purpose)? {
                None => {
                    self.check_touched(&path, purpose)?;
                    return Ok(path);
                }
                Some(target) => {
                    path =
                        through_link(&mut self.parents, &path, &target, |path| pending(&self.names, path))?;
                }
            }
        }
        Err(Error::refused(ErrorKind::InvalidPath, asked, "symlinks lead in a circle"))
    }

    /// Takes an image of what stands at a canonical path.
    fn look(&mut self, path: &TreePath) -> Result<(), Error> {
        let places = self.shared.engine.places.clone();
        let is_in_new_dir = path.parent().is_some_and(|parent| {
            self.names.get(&parent).is_some_and(|name| matches!(name.now, Now::Dir(_)))
        });
        let above = if is_in_new_dir { Err(io::ErrorKind::NotFound.into()) } else { self.parents.of(path) };
        let (parent, original) = match above {
            Ok(parent) => {
                let image = Image::capture(&*places.vfs, &*parent.dir, path.name(), self.image_limits())
                    .on("look at", path.as_path())?;
                if let Some(image) = &image
                    && image.mount != parent.metadata.mount
                {
                    let reason =
                        "something is mounted there, and a mount point can't be exchanged; unmount it first";
                    return Err(Error::refused(ErrorKind::MountPoint, path.as_path(), reason));
                }
                (parent.metadata.inode, image)
            }
            // Below a file there is nothing either: one that this transaction removes, since the path was resolved.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                (0, None)
            }
            Err(error) => return Err(error).on("open the directory of", path.as_path()),
        };
        self.names.insert(path.clone(), Name { parent, original, now: Now::Original, is_read: false });
        Ok(())
    }

    fn image_limits(&self) -> ImageLimits {
        ImageLimits { digest_bytes: self.shared.engine.options.inline_bytes_max, ..ImageLimits::default() }
    }

    /// Reads an original that has been looked at before, while a new image of it is taken, so that the bytes are those
    /// that the check compares.
    ///
    /// # Errors
    /// `conflict` if it is no longer what was seen: the check could only compare with one of the two.
    fn read_original(&mut self, file: &dyn File, path: &TreePath, limit: u64) -> Result<Vec<u8>, Error> {
        let (vfs, limits) = (&*self.shared.engine.places.vfs, self.image_limits());
        let (image, bytes) =
            Image::capture_with_content(vfs, file, limits, limit).on("read", path.as_path())?;
        let seen = &mut self.names.get_mut(path).expect("it was touched").original;
        let is_as_seen = seen.as_ref().is_some_and(|seen| {
            let same_content = match seen.content {
                Content::Unread => seen.has_times_of_image(&image),
                Content::Inline(_) | Content::Digest(_) => seen.content == image.content,
            };
            same_content && seen.attributes == image.attributes
        });
        if !is_as_seen {
            return Err(Error::conflict(path.as_path(), "it was changed since the transaction first looked"));
        }
        *seen = Some(image);
        Ok(bytes)
    }

    /// Where a final symlink leads, if one stands there and is to be followed.
    fn link_target(&mut self, path: &TreePath, purpose: Purpose) -> Result<Option<OsString>, Error> {
        let Name { now: Now::Original, original: Some(Image { kind: Kind::Symlink, content, .. }), .. } =
            &self.names[path]
        else {
            return Ok(None);
        };
        if self.symlinks == Symlinks::Refuse || matches!(purpose, Purpose::Remove | Purpose::Move) {
            let reason =
                "it is a symlink; name the file that it leads to, or say that symlinks are to be followed";
            return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
        }
        let Content::Inline(target) = content else { unreachable!("a symlink's image holds its target") };
        let target = std::ffi::OsStr::from_bytes(target).to_owned();
        // The link itself was read: if it leads elsewhere by then, this transaction is a conflict.
        self.names.get_mut(path).expect("it was touched").is_read = true;
        Ok(Some(target))
    }

    /// Refuses what the operation cannot act on.
    fn check_touched(&mut self, path: &TreePath, purpose: Purpose) -> Result<(), Error> {
        let hard_links = self.hard_links;
        let name = self.names.get_mut(path).expect("it was touched");
        if purpose == Purpose::Read && matches!(name.now, Now::Original) {
            name.is_read = true;
        }
        let is_directory = || Error::refused(ErrorKind::IsADirectory, path.as_path(), "it is a directory");
        match (&name.now, &name.original) {
            (Now::Dir(_), _) => Err(is_directory()),
            (Now::Original, Some(original)) => match original.kind {
                Kind::Dir => Err(is_directory()),
                Kind::Other => {
                    let reason = "it is a device, socket or pipe";
                    Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason))
                }
                Kind::File
                    if original.links > 1
                        && hard_links == HardLinks::Refuse
                        && matches!(purpose, Purpose::Replace | Purpose::Move) =>
                {
                    let reason = format!(
                        "it has {} hard links, and replacing it would part it from the others; say that hard links are to be broken",
                        original.links
                    );
                    Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason))
                }
                Kind::File | Kind::Symlink => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn is_file(&self, path: &TreePath) -> bool {
        match (&self.names[path].now, &self.names[path].original) {
            (Now::File(_), _) => true,
            (Now::Original, original) => original.is_some(),
            (Now::Absent | Now::Dir(_), _) => false,
        }
    }

    fn check_file(&self, path: &TreePath) -> Result<(), Error> {
        if self.is_file(path) {
            return Ok(());
        }
        Err(Error::refused(ErrorKind::NotFound, path.as_path(), "no such file"))
    }

    /// Gives a name its new state, making the parents that it lacks.
    fn set(&mut self, path: &TreePath, now: Now) -> Result<(), Error> {
        if matches!(now, Now::File(_)) {
            self.make_parents(path)?;
        }
        self.names.get_mut(path).expect("it was touched").now = now;
        Ok(())
    }

    fn make_parents(&mut self, path: &TreePath) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut next = path.parent();
        while let Some(parent) = next {
            match self.names.get(&parent).map(|name| (&name.now, &name.original)) {
                Some((Now::Dir(_), _)) => break,
                // A file only in passing: nothing stands there on disk.
                Some((Now::Absent, None)) => {
                    next = parent.parent();
                    missing.push(parent);
                    continue;
                }
                Some((Now::Absent | Now::File(_), _)) => {
                    let reason = format!(
                        "{parent} is a file, and replacing it by a directory takes a transaction of its own: remove it first"
                    );
                    return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
                }
                Some((Now::Original, _)) | None => {}
            }
            match self.parents.open(parent.as_path()) {
                Ok(_) => break,
                // Whether a file above is one that this transaction removes, the next rounds find out.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error).on("open", parent.as_path()),
            }
            next = parent.parent();
            missing.push(parent);
        }
        for parent in missing.into_iter().rev() {
            let attributes = self.default_attributes(&parent, 0o777, None, Kind::Dir)?;
            let is_first_look = !self.names.contains_key(&parent);
            if is_first_look {
                self.look(&parent)?;
            }
            let name = self.names.get_mut(&parent).expect("it was looked at");
            if is_first_look && name.original.as_ref().is_some_and(|original| original.kind == Kind::Dir) {
                // Someone has made it since it was found missing, and the check leaves it alone if it still stands there.
                name.original = None;
            }
            if name.original.as_ref().is_some_and(|original| original.kind != Kind::Dir) {
                let reason = format!("{parent} is not a directory");
                return Err(Error::refused(ErrorKind::NotADirectory, path.as_path(), reason));
            }
            name.now = Now::Dir(attributes);
        }
        Ok(())
    }

    /// The attributes that a file at this name has, or would get.
    fn attributes_of(&mut self, path: &TreePath, mode: Option<u32>) -> Result<Attributes, Error> {
        let kept = match (&self.names[path].now, &self.names[path].original) {
            (Now::File(file), _) => Some(file.attributes.clone()),
            (Now::Original, Some(original)) => Some(original.attributes.clone()),
            _ => None,
        };
        match kept {
            Some(attributes) => Ok(Attributes { mode: mode.unwrap_or(attributes.mode), ..attributes }),
            None => self.default_attributes(path, 0o666, mode, Kind::File),
        }
    }

    /// What creating the name in place would give it.
    fn default_attributes(
        &mut self,
        path: &TreePath,
        base_mode: u32,
        mode: Option<u32>,
        kind: Kind,
    ) -> Result<Attributes, Error> {
        let defaults = self.defaults_below(path)?;
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

    /// The defaults of the nearest directory above the name that exists.
    fn defaults_below(&mut self, path: &TreePath) -> Result<Arc<Defaults>, Error> {
        let mut at = path.parent_path();
        let dir: Arc<dyn Dir> = loop {
            if let Some(defaults) = self.defaults.get(at).cloned() {
                self.defaults.insert(path.parent_path().to_owned(), defaults.clone());
                return Ok(defaults);
            }
            match self.parents.open(at) {
                Ok(parent) => break parent.dir,
                // Something that is no directory can only be a file that this transaction removes.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    at = at.parent().unwrap_or(Path::new(""));
                }
                Err(error) => return Err(error).on("open", at),
            }
        };
        let identity = self.shared.engine.places.vfs.identity().on("read the identity of", "this process")?;
        let found = Attributes::of_dir(&*dir).on("read the attributes of", at)?;
        let setgid = found.mode & 0o2000 != 0;
        let acl = found.xattrs.into_iter().find(|xattr| xattr.name == DEFAULT_ACL).map(|xattr| xattr.value);
        let gid = if setgid { found.gid } else { identity.gid };
        let defaults = Arc::new(Defaults { uid: identity.uid, gid, setgid, umask: identity.umask, acl });
        for below in [at, path.parent_path()] {
            self.defaults.insert(below.to_owned(), defaults.clone());
        }
        Ok(defaults)
    }
}

/// As many final symlinks as are followed one after another.
const SYMLINKS_MAX: usize = 40;

/// What an operation is going to do to a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Replace,
    Remove,
    /// The content goes on under another name, in another inode.
    Move,
}

/// What the transaction itself makes of a name; `None` if it leaves that to the disk.
fn pending(names: &BTreeMap<TreePath, Name>, path: &TreePath) -> Option<Pending> {
    match names.get(path)?.now {
        Now::Dir(_) => Some(Pending::Dir),
        Now::File(_) => Some(Pending::File),
        Now::Absent => Some(Pending::Absent),
        Now::Original => None,
    }
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

/// A content as it is logged.
pub(crate) fn inline(bytes: Vec<u8>) -> Content<'static> {
    Content::Inline(Cow::Owned(bytes))
}
