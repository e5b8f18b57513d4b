//! Everything behind the lock of a [`Sim`](super::Sim): inodes with their two sides, locks, and settings.
//!
//! What changes names is in `names.rs`. An inode lives as long as a name on either side, a pending name operation or a
//! handle refers to it; `collect` is called wherever one of them goes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::crash::Random;
use super::data::{FileData, Space};
use super::errno::{self, error};
use super::names::{NameOperation, Slot};
use crate::{Identity, Kind, Lock, Metadata, Timestamp};

/// Names one inode for good, unlike its number, which may be used again.
pub(super) type Id = u64;
pub(super) type Name = Arc<OsStr>;

pub(super) const ROOT: Id = 1;
/// What a name takes from the space left.
pub(super) const NAME_BYTES: u64 = 256;
const NAME_LENGTH_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timestamp,
    pub(super) changed: Timestamp,
    pub(super) xattrs: Arc<BTreeMap<OsString, Vec<u8>>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) entries: Arc<BTreeMap<Name, Id>>,
    pub(super) parent: Option<Id>,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(FileData),
    Dir { cached: Names, durable: Names },
    Symlink(Name),
    Other,
}

impl Body {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::File(_) => Kind::File,
            Self::Dir { .. } => Kind::Dir,
            Self::Symlink(_) => Kind::Symlink,
            Self::Other => Kind::Other,
        }
    }

    pub(super) fn empty_dir() -> Self {
        Self::Dir { cached: Names::default(), durable: Names::default() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct HeldLock {
    handle: u64,
    process: u32,
    lock: Lock,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) born: Timestamp,
    pub(super) body: Body,
    pub(super) cached: Attributes,
    pub(super) durable: Attributes,
    /// Set when mode, owner, xattrs or a time were set; times that change by themselves don't count.
    pub(super) attributes_dirty: bool,
    pub(super) links: u64,
    pub(super) durable_links: u64,
    /// How many pending name operations speak of it.
    pub(super) pending: u64,
    pub(super) opens: u64,
    /// Whether its space and number were given back.
    pub(super) released: bool,
    /// Write-back errors so far; every handle open at the time reports each once.
    pub(super) failures: u64,
    pub(super) locks: Vec<HeldLock>,
}

impl Inode {
    pub(super) fn metadata(&self) -> Metadata {
        let size = match &self.body {
            Body::File(data) => data.cached.len(),
            Body::Dir { .. } => 4096,
            Body::Symlink(target) => target.len() as u64,
            Body::Other => 0,
        };
        Metadata {
            kind: self.body.kind(),
            inode: self.number,
            device: 1,
            mount: 1,
            mode: self.cached.mode,
            uid: self.cached.uid,
            gid: self.cached.gid,
            links: self.links,
            is_fixed: false,
            is_sparse: false,
            size,
            modified: self.cached.modified,
            changed: self.cached.changed,
            born: Some(self.born),
        }
    }

    pub(super) fn data_dirty(&self) -> bool {
        matches!(&self.body, Body::File(data) if data.is_dirty())
    }

    /// Whether a power cut has a choice here that can matter.
    pub(super) fn undecided(&self) -> bool {
        (self.durable_links > 0 || self.pending > 0) && (self.data_dirty() || self.attributes_dirty)
    }
}

/// Everything a simulated machine has: disk, cache, processes, clock. Copies share what neither has changed since.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub(super) struct State {
    pub(super) inodes: BTreeMap<Id, Arc<Inode>>,
    pub(super) pending: Vec<Arc<NameOperation>>,
    pub(super) next_id: Id,
    next_number: u64,
    pub(super) free_numbers: BTreeSet<u64>,
    pub(super) next_handle: u64,
    pub(super) space: Space,
    pub(super) identity: Identity,
    pub(super) clock_ns: i64,
    pub(super) step_ns: i64,
    pub(super) granularity_ns: i64,
    pub(super) random: Random,
    pub(super) alive: BTreeSet<u32>,
    pub(super) next_pid: u32,
    pub(super) boot: u32,
    pub(super) operations: u64,
    pub(super) halt_at: Option<u64>,
    pub(super) halted: bool,
    pub(super) tracing: bool,
    pub(super) trace: Arc<Vec<String>>,
    pub(super) fail_next_sync: bool,
    /// Write-back errors of the whole file system, as [`Inode::failures`].
    pub(super) failures: u64,
    pub(super) exchange_supported: bool,
    pub(super) reflinks_supported: bool,
    pub(super) cache_pinned: bool,
    pub(super) inode_reuse: bool,
    pub(super) sync_keeps_names: bool,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = Self {
            inodes: BTreeMap::new(),
            pending: Vec::new(),
            next_id: ROOT,
            next_number: 2,
            free_numbers: BTreeSet::new(),
            next_handle: 1,
            space: Space(None),
            identity: Identity { uid: 1000, gid: 1000, umask: 0o022 },
            clock_ns: 1_700_000_000_000_000_000,
            step_ns: 1_000,
            granularity_ns: 4_000_000,
            random: Random::new(seed),
            alive: BTreeSet::new(),
            next_pid: 100,
            boot: 1,
            operations: 0,
            halt_at: None,
            halted: false,
            tracing: false,
            trace: Arc::default(),
            fail_next_sync: false,
            failures: 0,
            exchange_supported: true,
            reflinks_supported: false,
            cache_pinned: false,
            inode_reuse: false,
            sync_keeps_names: false,
        };
        let root = state.new_inode(Body::empty_dir(), 0o755, None);
        let root = state.inode_mut(root);
        (root.links, root.durable_links) = (1, 1);
        state
    }

    pub(super) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    pub(super) fn inode_mut(&mut self, id: Id) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&id).expect("a handle or a name refers to it"))
    }

    /// The content of a regular file, with the space that growing it takes.
    pub(super) fn data_mut(&mut self, id: Id) -> (&mut FileData, &mut Space) {
        let inode = Arc::make_mut(self.inodes.get_mut(&id).expect("an open file refers to it"));
        match &mut inode.body {
            Body::File(data) => (data, &mut self.space),
            _ => unreachable!("only regular files are opened as such"),
        }
    }

    pub(super) fn data(&self, id: Id) -> &FileData {
        match &self.inode(id).body {
            Body::File(data) => data,
            _ => unreachable!("only regular files are opened as such"),
        }
    }

    pub(super) fn file_time(&self) -> Timestamp {
        Timestamp(self.clock_ns - self.clock_ns.rem_euclid(self.granularity_ns.max(1)))
    }

    pub(super) fn entries(&self, dir: Id) -> &Arc<BTreeMap<Name, Id>> {
        match &self.inode(dir).body {
            Body::Dir { cached, .. } => &cached.entries,
            _ => unreachable!("only directories are opened as such"),
        }
    }

    pub(super) fn lookup(&self, dir: Id, name: &OsStr) -> io::Result<Id> {
        check_name(name)?;
        self.entries(dir).get(name).copied().ok_or_else(|| error(errno::ENOENT))
    }

    /// The slot for a new name: valid, in a directory that still exists.
    pub(super) fn slot(&self, dir: Id, name: &OsStr) -> io::Result<Slot> {
        check_name(name)?;
        if self.inode(dir).links == 0 {
            return Err(error(errno::ENOENT));
        }
        Ok(Slot { dir, name: name.into() })
    }

    pub(super) fn new_inode(&mut self, body: Body, mode: u32, parent: Option<Id>) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        let number = self.free_numbers.pop_first().unwrap_or_else(|| {
            self.next_number += 1;
            self.next_number - 1
        });
        let mut attributes = Attributes {
            mode,
            uid: self.identity.uid,
            gid: self.identity.gid,
            modified: self.file_time(),
            changed: self.file_time(),
            xattrs: Arc::default(),
        };
        if let Some(parent) = parent.map(|parent| &self.inode(parent).cached)
            && parent.mode & 0o2000 != 0
        {
            attributes.gid = parent.gid;
            if matches!(body, Body::Dir { .. }) {
                attributes.mode |= 0o2000;
            }
        }
        let inode = Inode {
            number,
            born: self.file_time(),
            body,
            cached: attributes.clone(),
            durable: attributes,
            attributes_dirty: false,
            links: 0,
            durable_links: 0,
            pending: 0,
            opens: 0,
            released: false,
            failures: 0,
            locks: Vec::new(),
        };
        self.inodes.insert(id, Arc::new(inode));
        id
    }

    pub(super) fn sync_file(&mut self, id: Id, attributes: bool) {
        let inode = self.inode_mut(id);
        if let Body::File(data) = &mut inode.body {
            data.sync();
        }
        if attributes {
            inode.durable = inode.cached.clone();
            inode.attributes_dirty = false;
        }
        if self.sync_keeps_names {
            self.sync_names(|_| true);
        }
    }

    /// Drops a file's unsynced data as a failed write-back does.
    pub(super) fn lose_data(&mut self, id: Id) {
        self.failures += 1;
        let inode = self.inode_mut(id);
        inode.failures += 1;
        if let Body::File(data) = &mut inode.body {
            data.lose();
        }
    }

    pub(super) fn dirty_files(&self) -> Vec<Id> {
        self.inodes.iter().filter(|(_, inode)| inode.data_dirty()).map(|(id, _)| *id).collect()
    }

    pub(super) fn sync_everything(&mut self) {
        let ids: Vec<Id> = self.inodes.keys().copied().collect();
        for id in ids {
            // Where a file's sync keeps names, it may have been the last thing that a removed inode waited for.
            let Some(inode) = self.inodes.get(&id) else { continue };
            if inode.data_dirty() || inode.attributes_dirty || inode.cached != inode.durable {
                self.sync_file(id, true);
            }
        }
        self.sync_names(|_| true);
    }

    /// Gives back space and number of an inode that nothing cached uses, and forgets it when the disk does not know it
    /// either.
    pub(super) fn collect(&mut self, id: Id) {
        let Some(inode) = self.inodes.get(&id) else { return };
        if inode.links > 0 || inode.opens > 0 {
            return;
        }
        if !inode.released {
            if let Body::File(data) = &inode.body {
                self.space.give(data.cached.allocated_bytes());
            }
            if self.inode_reuse {
                self.free_numbers.insert(inode.number);
            }
            self.inode_mut(id).released = true;
        }
        let inode = self.inode(id);
        if inode.durable_links == 0 && inode.pending == 0 {
            self.inodes.remove(&id);
        }
    }

    pub(super) fn try_lock(&mut self, id: Id, handle: u64, process: u32, lock: Lock) -> bool {
        let inode = self.inode_mut(id);
        let in_the_way = |held: &HeldLock| {
            held.handle != handle && (lock == Lock::Exclusive || held.lock == Lock::Exclusive)
        };
        if inode.locks.iter().any(in_the_way) {
            return false;
        }
        inode.locks.retain(|held| held.handle != handle);
        inode.locks.push(HeldLock { handle, process, lock });
        true
    }

    pub(super) fn unlock(&mut self, id: Id, handle: u64) {
        if self.inodes.get(&id).is_some_and(|inode| inode.locks.iter().any(|held| held.handle == handle)) {
            self.inode_mut(id).locks.retain(|held| held.handle != handle);
        }
    }

    pub(super) fn unlock_process(&mut self, process: u32) {
        let holders: Vec<Id> =
            self.inodes.iter().filter(|(_, inode)| !inode.locks.is_empty()).map(|(id, _)| *id).collect();
        for id in holders {
            self.inode_mut(id).locks.retain(|held| held.process != process);
        }
    }

    /// Resolves a path below a directory, component by component and never through a symlink.
    pub(super) fn walk(&self, from: Id, path: &Path) -> io::Result<Id> {
        let mut at = from;
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => {
                    at = self.lookup(at, name)?;
                    match self.inode(at).body.kind() {
                        Kind::Dir => {}
                        Kind::Symlink => return Err(error(errno::ELOOP)),
                        Kind::File | Kind::Other => return Err(error(errno::ENOTDIR)),
                    }
                }
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(error(errno::EXDEV));
                }
            }
        }
        Ok(at)
    }

    /// Resolves a path as the operating system does, symlinks included; relative ones start at the root.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<Id> {
        let mut at = vec![ROOT];
        let mut left: Vec<OsString> = reversed(path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            let here = *at.last().expect("the root stays");
            match name.as_encoded_bytes() {
                b"/" => at.truncate(1),
                b"." => {}
                b".." => at.truncate(at.len().max(2) - 1),
                _ => {
                    let id = self.lookup(here, &name)?;
                    match &self.inode(id).body {
                        Body::Dir { .. } => at.push(id),
                        Body::Symlink(_) if links == 40 => return Err(error(errno::ELOOP)),
                        Body::Symlink(target) => {
                            links += 1;
                            left.extend(reversed(Path::new(&**target)));
                        }
                        Body::File(_) | Body::Other => return Err(error(errno::ENOTDIR)),
                    }
                }
            }
        }
        Ok(*at.last().expect("the root stays"))
    }

    /// Some path of an inode from the root, for the trace.
    pub(super) fn path_of(&self, id: Id) -> PathBuf {
        let named =
            |dir: Id| self.entries(dir).iter().find(|(_, at)| **at == id).map(|(name, _)| name.clone());
        let is_dir = |id: &Id| self.inode(*id).body.kind() == Kind::Dir && self.inode(*id).links > 0;
        if id == ROOT {
            return PathBuf::new();
        }
        let dirs: Vec<Id> = match self.parent(id) {
            Some(parent) => vec![parent],
            None => self.inodes.keys().copied().filter(is_dir).collect(),
        };
        match dirs.into_iter().find_map(|dir| named(dir).map(|name| (dir, name))) {
            Some((dir, name)) => self.path_of(dir).join(&*name),
            None => PathBuf::from(format!("(inode {})", self.inode(id).number)),
        }
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|component| component.as_os_str().to_owned()).collect()
}

fn check_name(name: &OsStr) -> io::Result<()> {
    let bytes = name.as_encoded_bytes();
    if bytes.is_empty() {
        Err(error(errno::ENOENT))
    } else if bytes.len() > NAME_LENGTH_MAX {
        Err(error(errno::ENAMETOOLONG))
    } else if matches!(bytes, b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        Err(error(errno::EINVAL))
    } else {
        Ok(())
    }
}
