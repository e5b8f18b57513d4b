//! The tree as a transaction leaves it: which directories it knows, what stood at each name that it touched, and what
//! shall stand there.
//!
//! A name is known by the directory that holds it and its last component, so two spellings of one file meet, and a
//! directory that is renamed takes along everything that was said about it. Each directory has two paths: where it
//! stands on disk, and where the transaction leaves it. Nothing here writes.

mod resolve;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::apply::{Parent, Parents, is_no_directory};
use atomtree_recovery::image::{Attributes, Content, Image, ImageLimits};
use atomtree_recovery::plan::Moved;
use atomtree_recovery::tree_path::{PathError, TreePath};
use atomtree_vfs::{Dir, Kind, Vfs};

pub(crate) use self::resolve::invalid_path;
use crate::content::{InPlace, NewFile, NewSymlink};
use crate::error::{Error, OnPath};

/// A directory that the transaction knows, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DirId(usize);

/// The tree's top.
pub(crate) const ROOT: DirId = DirId(0);

/// What a transaction knows of the tree, and makes of it.
pub(crate) struct View {
    pub(crate) parents: Parents,
    vfs: Arc<dyn Vfs>,
    limits: ImageLimits,
    dirs: Vec<Directory>,
    next_serial: u64,
    by_inode: HashMap<u64, DirId>,
    /// Directories that are not gone, by the path that the transaction leaves them; the root's is empty.
    by_path: BTreeMap<Box<[u8]>, DirId>,
    /// What was read of directories that a return to a savepoint made unknown again.
    pub(crate) kept_reads: Vec<Read>,
    /// What the log takes of what is patched in place.
    patched_bytes: u64,
}

/// A directory.
#[derive(Clone)]
pub(crate) struct Directory {
    /// Where it stands on disk, or would if somebody else made it; `None` where something else stands.
    pub(crate) disk: Option<Box<[u8]>>,
    /// Its inode number; `None` for one that the transaction makes.
    pub(crate) inode: Option<u64>,
    /// Where the transaction leaves it.
    pub(crate) path: Box<[u8]>,
    /// Tells it from another that had its number before a return to a savepoint.
    serial: u64,
    /// Whether the transaction removes it.
    pub(crate) is_gone: bool,
    /// Of one that the transaction makes.
    pub(crate) made: Option<Made>,
    /// Its new permission bits, for one that stands on disk.
    pub(crate) mode: Option<u32>,
    pub(crate) names: BTreeMap<OsString, Name>,
    /// The names in it as they were listed, if the caller relies on them.
    pub(crate) listing: Option<BTreeMap<OsString, Kind>>,
}

/// A directory that the transaction makes.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) attributes: Attributes,
    /// In which directory it is made.
    pub(crate) parent: DirId,
    /// Whether it is only made because something in it needs it: then somebody else may have made it meanwhile.
    pub(crate) is_implied: bool,
}

/// A name that the transaction has touched.
#[derive(Clone)]
pub(crate) struct Name {
    /// What stood there at first sight.
    pub(crate) original: Option<Image<'static>>,
    /// What shall stand there.
    pub(crate) now: Now,
    /// Whether the caller was told of the original, or relies on it.
    pub(crate) is_read: bool,
    /// The new permission bits of an original that is no directory and stays.
    pub(crate) mode: Option<u32>,
    /// Whether what is in it was not even looked at, because it is patched in place.
    pub(crate) is_unread: bool,
}

/// What shall stand at a name.
#[derive(Clone)]
pub(crate) enum Now {
    /// What stands there.
    Original,
    /// Nothing.
    Absent,
    /// A regular file.
    File(NewFile),
    /// A symlink.
    Symlink(NewSymlink),
    /// A directory: a new one, or one that stood elsewhere.
    Dir(DirId),
    /// Another inode that stood elsewhere.
    Moved {
        moved: Box<Moved>,
        /// Where it leads, if it is a symlink.
        target: Option<Vec<u8>>,
    },
    /// What stands there, patched inside its inode.
    Patched(Arc<InPlace>),
}

/// What was read of the tree on disk and is not changed.
#[derive(Clone)]
pub(crate) enum Read {
    /// What stood at a name, in the directory with the inode number `parent`; 0 if there was none.
    Name { path: TreePath, parent: u64, original: Option<Image<'static>> },
    /// The names in a directory.
    Listing { path: Box<[u8]>, inode: u64, names: BTreeMap<OsString, Kind> },
}

/// A name in a directory that is there, for this transaction.
#[derive(Clone)]
pub(crate) struct Spot {
    pub(crate) dir: DirId,
    pub(crate) name: OsString,
    /// The path where the transaction leaves it.
    pub(crate) path: TreePath,
}

/// What stands at a name, for this transaction.
pub(crate) enum Stands<'a> {
    Nothing,
    /// A file that the transaction writes.
    File(&'a NewFile),
    /// What stands on disk, there or elsewhere, and is no directory.
    Inode {
        image: &'a Image<'static>,
    },
    /// An inode that stood elsewhere and is neither directory nor symlink.
    Moved(&'a Moved),
    Symlink(&'a [u8]),
    Dir,
    /// A regular file that stands on disk and is patched there.
    Patched {
        image: &'a Image<'static>,
        in_place: &'a InPlace,
    },
}

impl View {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, root: Arc<dyn Dir>, limits: ImageLimits) -> io::Result<Self> {
        let mut parents = Parents::new(root)?;
        let inode = parents.open(Path::new(""))?.metadata.inode;
        let root = Directory::new(Some(Box::default()), Some(inode), Box::default());
        Ok(Self {
            parents,
            vfs,
            limits,
            dirs: vec![root],
            next_serial: 1,
            by_inode: HashMap::from([(inode, ROOT)]),
            by_path: BTreeMap::from([(Box::default(), ROOT)]),
            kept_reads: Vec::new(),
            patched_bytes: 0,
        })
    }

    /// Whether the transaction relies on the names in this directory.
    pub(crate) fn lists(&self, path: &Path) -> bool {
        let is_it = |disk: &[u8]| disk == path.as_os_str().as_encoded_bytes();
        self.dirs().any(|(_, dir)| dir.listing.is_some() && dir.disk.as_deref().is_some_and(is_it))
    }

    pub(crate) fn limits(&self) -> ImageLimits {
        self.limits
    }

    pub(crate) fn dirs(&self) -> impl Iterator<Item = (DirId, &Directory)> {
        self.dirs.iter().enumerate().map(|(index, dir)| (DirId(index), dir))
    }

    /// How many names were touched.
    pub(crate) fn touched(&self) -> usize {
        self.dirs.iter().map(|directory| directory.names.len()).sum()
    }

    pub(crate) fn dir(&self, id: DirId) -> &Directory {
        &self.dirs[id.0]
    }

    pub(crate) fn dir_mut(&mut self, id: DirId) -> &mut Directory {
        &mut self.dirs[id.0]
    }

    /// The directory with this inode number, if it is known.
    pub(crate) fn dir_of_inode(&self, inode: u64) -> Option<DirId> {
        self.by_inode.get(&inode).copied()
    }

    /// What the log takes of what is patched in place.
    pub(crate) fn patched_bytes(&self) -> u64 {
        self.patched_bytes
    }

    pub(crate) fn note_patched(&mut self, bytes: u64) {
        self.patched_bytes += bytes;
    }

    /// A name, if it was looked at.
    pub(crate) fn known(&self, spot: &Spot) -> Option<&Name> {
        self.dir(spot.dir).names.get(&spot.name)
    }

    /// Notes what was found at a name, and what shall stand there.
    pub(crate) fn set(&mut self, spot: &Spot, name: Name) {
        self.dir_mut(spot.dir).names.insert(spot.name.clone(), name);
    }

    pub(crate) fn name(&self, spot: &Spot) -> &Name {
        &self.dir(spot.dir).names[&spot.name]
    }

    pub(crate) fn name_mut(&mut self, spot: &Spot) -> &mut Name {
        self.dir_mut(spot.dir).names.get_mut(&spot.name).expect("it was looked at")
    }

    /// What stands at a name that was looked at.
    pub(crate) fn stands(&self, spot: &Spot) -> Stands<'_> {
        self.stands_in(spot.dir, &spot.name)
    }

    fn stands_in(&self, dir: DirId, name: &OsStr) -> Stands<'_> {
        let name = &self.dir(dir).names[name];
        match (&name.now, &name.original) {
            (Now::Absent, _) | (Now::Original | Now::Patched(_), None) => Stands::Nothing,
            (Now::Patched(in_place), Some(image)) => Stands::Patched { image, in_place },
            (Now::File(file), _) => Stands::File(file),
            (Now::Symlink(link), _) => Stands::Symlink(&link.target),
            (Now::Dir(_), _) => Stands::Dir,
            (Now::Moved { target: Some(target), .. }, _) => Stands::Symlink(target),
            (Now::Moved { moved, target: None }, _) => Stands::Moved(moved),
            (Now::Original, Some(image)) => match (image.kind, &image.content) {
                (Kind::Dir, _) => Stands::Dir,
                (Kind::Symlink, Content::Inline(target)) => Stands::Symlink(target),
                _ => Stands::Inode { image },
            },
        }
    }

    fn add(&mut self, directory: Directory) {
        self.dirs.push(Directory { serial: self.next_serial, ..directory });
        self.next_serial += 1;
    }

    /// The directory on disk, open; `None` for one that the transaction makes.
    pub(crate) fn handle(&mut self, id: DirId) -> Result<Option<Parent>, Error> {
        let Directory { disk: Some(disk), inode: Some(_), .. } = &self.dirs[id.0] else { return Ok(None) };
        let disk = Path::new(OsStr::from_bytes(disk));
        match self.parents.open(disk) {
            Ok(parent) => Ok(Some(parent)),
            Err(error) if is_no_directory(&error) => {
                Err(Error::conflict(disk, "it was moved or removed since the transaction first looked"))
            }
            Err(error) => Err(error).on("open", disk),
        }
    }

    /// The directory that stands at a spot.
    pub(crate) fn dir_at(&mut self, spot: &Spot) -> Result<DirId, Error> {
        let not_there =
            || Error::conflict(spot.path.as_path(), "it was replaced while the transaction looked");
        let id = self.child(spot.dir, &spot.name, &spot.path)?.ok_or_else(not_there)?;
        match self.name(spot) {
            Name { now: Now::Original, original: Some(image), .. }
                if self.dir(id).inode != Some(image.inode) =>
            {
                Err(not_there())
            }
            _ => Ok(id),
        }
    }

    /// Puts a new directory at a spot where nothing stands.
    pub(crate) fn make_dir(&mut self, spot: &Spot, attributes: Attributes, is_implied: bool) -> DirId {
        let above = self.dir(spot.dir);
        // What stood on disk was removed or moved away, and is not what this one would be.
        let is_free = self.name(spot).original.is_none();
        let disk = above.disk.as_ref().filter(|_| is_free).map(|disk| join(disk, &spot.name).into());
        let mut directory = Directory::new(disk, None, spot.path.as_bytes().into());
        directory.made = Some(Made { attributes, parent: spot.dir, is_implied });
        let id = DirId(self.dirs.len());
        self.add(directory);
        self.by_path.insert(spot.path.as_bytes().into(), id);
        self.name_mut(spot).now = Now::Dir(id);
        id
    }

    /// Every name in a directory, with its kind, as the transaction leaves it; sorted.
    pub(crate) fn list(&mut self, id: DirId) -> Result<BTreeMap<OsString, Kind>, Error> {
        // What was told once is what is told again, and what the commit compares.
        let mut names = match &self.dir(id).listing {
            Some(names) => names.clone(),
            None => self.list_disk(id)?,
        };
        let known: Vec<OsString> = self.dir(id).names.keys().cloned().collect();
        for name in known {
            let kind = match self.stands_in(id, &name) {
                Stands::Nothing => None,
                Stands::File(_) | Stands::Patched { .. } => Some(Kind::File),
                Stands::Symlink(_) => Some(Kind::Symlink),
                Stands::Dir => Some(Kind::Dir),
                Stands::Inode { image } => Some(image.kind),
                Stands::Moved(moved) => Some(moved.kind),
            };
            match kind {
                Some(kind) => drop(names.insert(name, kind)),
                None => drop(names.remove(&name)),
            }
        }
        Ok(names)
    }

    /// Every name in a directory on disk. The store's own directory is nobody's business.
    pub(crate) fn list_disk(&mut self, id: DirId) -> Result<BTreeMap<OsString, Kind>, Error> {
        let Some(disk) = self.handle(id)? else { return Ok(BTreeMap::new()) };
        list_of(&*disk.dir, id == ROOT).on("list", Path::new(OsStr::from_bytes(&self.dir(id).path)))
    }

    /// Moves the directory at `from` to `to`, with everything known below it.
    pub(crate) fn move_dir(&mut self, from: &Spot, to: &Spot) -> Result<(), Error> {
        let id = self.dir_at(from)?;
        self.name_mut(from).now = Now::Absent;
        let stays = self
            .name(to)
            .original
            .as_ref()
            .is_some_and(|image| image.kind == Kind::Dir && self.dir(id).inode == Some(image.inode));
        self.name_mut(to).now = if stays { Now::Original } else { Now::Dir(id) };
        if self.dir(id).made.is_some() {
            self.move_place(id, to);
        }
        // What lies below has a path that begins with this one and a slash.
        let below = [from.path.as_bytes(), b"/"].concat();
        let moving: Vec<Box<[u8]>> = std::iter::once(from.path.as_bytes().into())
            .chain(
                self.by_path
                    .range::<[u8], _>((Bound::Included(&*below), Bound::Unbounded))
                    .map(|(path, _)| path)
                    .take_while(|path| path.starts_with(&below))
                    .cloned(),
            )
            .collect();
        for old in moving {
            let Some(id) = self.by_path.remove(&old) else { continue };
            let new: Box<[u8]> = [to.path.as_bytes(), &old[from.path.as_bytes().len()..]].concat().into();
            self.dir_mut(id).path.clone_from(&new);
            self.by_path.insert(new, id);
        }
        Ok(())
    }

    /// Notes where on disk somebody else would have to make a directory that the transaction makes, and now elsewhere.
    fn move_place(&mut self, id: DirId, to: &Spot) {
        let is_free = self.name(to).original.is_none();
        let above = self.dir(to.dir).disk.clone().filter(|_| is_free);
        let new = above.map(|disk| join(&disk, &to.name));
        if let Some(made) = &mut self.dir_mut(id).made {
            made.parent = to.dir;
        }
        let Some(old) = self.dir(id).disk.clone() else { return };
        for directory in self.dirs.iter_mut().filter(|directory| directory.made.is_some()) {
            let rest = directory.disk.as_ref().and_then(|disk| disk.strip_prefix(&*old));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest[0] == b'/') {
                directory.disk = new.as_ref().map(|new| [new, rest].concat().into());
            }
        }
    }

    /// Notes that a directory is removed.
    pub(crate) fn remove_dir(&mut self, spot: &Spot) -> Result<(), Error> {
        let id = self.dir_at(spot)?;
        self.dir_mut(id).is_gone = true;
        self.by_path.remove(&*self.dirs[id.0].path);
        self.name_mut(spot).now = Now::Absent;
        Ok(())
    }

    fn index(&mut self) {
        self.by_path = self
            .dirs()
            .filter(|(_, directory)| !directory.is_gone)
            .map(|(id, directory)| (directory.path.clone(), id))
            .collect();
    }

    /// Everything that was logged or can be of a directory that goes, by path below it.
    ///
    /// `moved` are the places of [`View::moved_from`].
    pub(crate) fn contents(&self, id: DirId, moved: &HashSet<TreePath>) -> Vec<(TreePath, Image<'static>)> {
        let mut contents = Vec::new();
        let mut unseen = vec![(id, Vec::new())];
        while let Some((id, prefix)) = unseen.pop() {
            for (name, entry) in &self.dir(id).names {
                let Some(image) = entry.original.as_ref().filter(|_| !self.has_left(id, name, moved)) else {
                    continue;
                };
                let path = join(&prefix, name);
                if let Some(child) = self.dir_of_inode(image.inode).filter(|_| image.kind == Kind::Dir) {
                    unseen.push((child, path.clone()));
                }
                let path = TreePath::from_bytes_below(&path).expect("it was listed on disk");
                contents.push((path, image.clone()));
            }
        }
        contents.sort_by(|one, other| one.0.cmp(&other.0));
        contents
    }

    /// Whether what stood at a name stands elsewhere when the transaction is through.
    pub(crate) fn has_left(&self, dir: DirId, name: &OsStr, moved: &HashSet<TreePath>) -> bool {
        let entry = &self.dir(dir).names[name];
        let Some(original) = &entry.original else { return false };
        if original.kind != Kind::Dir {
            // Not by its inode, which may have other names.
            return !matches!(entry.now, Now::Original)
                && self.dir(dir).disk_path(name).is_some_and(|disk| moved.contains(&disk));
        }
        match (self.dir_of_inode(original.inode), &entry.now) {
            (Some(_), Now::Original) | (None, _) => false,
            (Some(id), _) => !self.dir(id).is_gone,
        }
    }

    /// The name on disk of what stands at a spot: its own, or the one that it is moved from; `None` if it is new.
    pub(crate) fn source_mut(&mut self, spot: &Spot) -> Option<&mut Name> {
        let (from_parent, from) = match &self.name(spot).now {
            Now::Original | Now::Patched(_) => return Some(self.name_mut(spot)),
            Now::Moved { moved, .. } => (moved.from_parent, moved.from.name().to_owned()),
            Now::Absent | Now::File(_) | Now::Symlink(_) | Now::Dir(_) => return None,
        };
        let id = self.dir_of_inode(from_parent)?;
        self.dir_mut(id).names.get_mut(&from)
    }

    /// Where inodes stand on disk, other than directories, that get another name.
    pub(crate) fn moved_from(&self) -> HashSet<TreePath> {
        let names =
            self.dirs.iter().filter(|directory| !directory.is_gone).flat_map(|dir| dir.names.values());
        names
            .filter_map(|name| match &name.now {
                Now::Moved { moved, .. } => Some(moved.from.clone()),
                _ => None,
            })
            .collect()
    }

    /// What can be returned to.
    pub(crate) fn save(&self) -> Saved {
        Saved { dirs: self.dirs.clone(), patched_bytes: self.patched_bytes }
    }

    /// Forgets what was to be changed since, but not what was read: the caller may have decided by it.
    pub(crate) fn return_to(&mut self, saved: &Saved) {
        self.patched_bytes = saved.patched_bytes;
        let since = std::mem::replace(&mut self.dirs, saved.dirs.clone());
        for (index, later) in since.into_iter().enumerate() {
            let same = self.dirs.get_mut(index).filter(|directory| directory.serial == later.serial);
            let Some(directory) = same else {
                self.kept_reads.extend(later.into_reads());
                continue;
            };
            directory.listing = directory.listing.take().or(later.listing);
            for (name, entry) in later.names {
                if entry.is_unread && !directory.names.contains_key(&name) {
                    // Whoever touches it next has to look again, and better.
                    if let Some(path) = directory.disk_path(&name).filter(|_| entry.is_read) {
                        let parent = directory.inode.unwrap_or(0);
                        self.kept_reads.push(Read::Name { path, parent, original: entry.original });
                    }
                    continue;
                }
                let fresh = Name { now: Now::Original, mode: None, ..entry.clone() };
                let kept = directory.names.entry(name).or_insert(fresh);
                kept.is_read |= entry.is_read;
                kept.original = entry.original;
            }
        }
        self.by_inode = self.dirs().filter_map(|(id, directory)| Some((directory.inode?, id))).collect();
        self.index();
    }
}

/// A state of a view.
#[derive(Clone)]
pub(crate) struct Saved {
    dirs: Vec<Directory>,
    patched_bytes: u64,
}

impl Directory {
    fn new(disk: Option<Box<[u8]>>, inode: Option<u64>, path: Box<[u8]>) -> Self {
        Self {
            disk,
            inode,
            path,
            serial: 0,
            is_gone: false,
            made: None,
            mode: None,
            names: BTreeMap::new(),
            listing: None,
        }
    }

    /// Where a name of the directory stands on disk, or would.
    pub(crate) fn disk_path(&self, name: &OsStr) -> Option<TreePath> {
        TreePath::from_bytes(&join(self.disk.as_ref()?, name)).ok()
    }

    /// What was read in the directory, and of it.
    pub(crate) fn into_reads(self) -> Vec<Read> {
        let parent = self.inode.unwrap_or(0);
        let mut reads = Vec::new();
        for (name, entry) in &self.names {
            if let Some(path) = self.disk_path(name).filter(|_| entry.is_read) {
                reads.push(Read::Name { path, parent, original: entry.original.clone() });
            }
        }
        reads.extend(self.listing_read());
        reads
    }

    /// The names as they were listed, if they were.
    pub(crate) fn listing_read(&self) -> Option<Read> {
        Some(Read::Listing { path: self.disk.clone()?, inode: self.inode?, names: self.listing.clone()? })
    }
}

impl Name {
    fn new(original: Option<Image<'static>>) -> Self {
        Self { original, now: Now::Original, is_read: false, mode: None, is_unread: false }
    }
}

/// Every name in a directory, with its kind; without the store's own in the root.
pub(crate) fn list_of(dir: &dyn Dir, is_root: bool) -> io::Result<BTreeMap<OsString, Kind>> {
    let is_ours =
        |name: &OsStr| is_root && TreePath::from_bytes(name.as_bytes()) == Err(PathError::StoreDirectory);
    let mut names = BTreeMap::new();
    for entry in dir.list()? {
        if is_ours(&entry.name) {
            continue;
        }
        let kind = match entry.kind {
            // Some file systems do not say.
            Kind::Other => match dir.metadata(&entry.name) {
                Ok(found) => found.kind,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
            kind => kind,
        };
        names.insert(entry.name, kind);
    }
    Ok(names)
}

fn join(dir: &[u8], name: &OsStr) -> Vec<u8> {
    if dir.is_empty() { name.as_bytes().to_vec() } else { [dir, b"/", name.as_bytes()].concat() }
}
