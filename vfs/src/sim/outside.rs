//! The other programs of a simulated machine, and the observer: short forms for tests.
//!
//! Nothing here counts as an operation, is halted, or syncs more than it says: a directory is never synced as a whole,
//! so that the program under test gets no durability it did not ask for. Paths start at the root of the simulated tree
//! and are not resolved through symlinks; a path that cannot be used panics.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Sim;
use super::data::FileData;
use super::names::NameOperation;
use super::state::{Body, Id, ROOT, State};
use crate::Xattr;

/// One name of a simulated tree and what stands there, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Kind and content.
    pub body: NodeBody,
    /// Permission bits.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// What kind of thing a [`Node`] is, with its content.
#[derive(Clone, PartialEq, Eq)]
pub enum NodeBody {
    /// A regular file.
    File(Vec<u8>),
    /// A directory; its names are nodes of their own.
    Dir,
    /// A symlink and its target.
    Symlink(OsString),
    /// Neither.
    Other,
}

impl fmt::Debug for NodeBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES: usize = 60;
        match self {
            Self::File(bytes) => {
                let shown = &bytes[..bytes.len().min(SHOWN_BYTES)];
                let more = if bytes.len() > SHOWN_BYTES { "..." } else { "" };
                write!(formatter, "File({} bytes: \"{}{more}\")", bytes.len(), shown.escape_ascii())
            }
            Self::Dir => formatter.write_str("Dir"),
            Self::Symlink(target) => write!(formatter, "Symlink({target:?})"),
            Self::Other => formatter.write_str("Other"),
        }
    }
}

/// For tests: what other programs do, and what an observer sees.
impl Sim {
    /// Writes a file as another program would that syncs its work: in place if it exists (truncated first), and with
    /// any missing directories. Content, metadata and this name are durable; other unsynced names in the directory
    /// stay unsynced.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let mut state = self.outside();
        let id = write(&mut state, path.as_ref(), bytes);
        state.sync_file(id, true);
        state.sync_name(path.as_ref());
    }

    /// Writes a file as [`Sim::write_file`] does, without syncing anything.
    pub fn write_file_unsynced(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        write(&mut self.outside(), path.as_ref(), bytes);
    }

    /// Replaces a file as careful editors do: a new inode, synced, renamed over the name, which is synced too.
    pub fn replace_file(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let path = path.as_ref();
        let (dir, name) = split(path);
        let mut new = path.as_os_str().to_owned();
        new.push(".sim-replacement");
        let new = PathBuf::from(new);
        let mut state = self.outside();
        let id = write(&mut state, &new, bytes);
        state.sync_file(id, true);
        let dir = state.walk(ROOT, below_root(dir)).expect("the replacement was created there");
        let from = new.file_name().expect("it was just composed");
        state.rename((dir, from), (dir, name), true).expect("what is replaced is no directory");
        state.sync_name(path);
    }

    /// Creates a directory, and its parents where they are missing; durable.
    pub fn create_dir(&self, path: impl AsRef<Path>) {
        let mut state = self.outside();
        directory(&mut state, path.as_ref());
        state.sync_name(path.as_ref());
    }

    /// Creates a symlink; durable.
    pub fn create_symlink(&self, path: impl AsRef<Path>, target: impl AsRef<OsStr>) {
        let mut state = self.outside();
        create(&mut state, path.as_ref(), Body::Symlink(target.as_ref().into()), 0o777);
        state.sync_name(path.as_ref());
    }

    /// Creates something that is neither file nor directory nor symlink, like a pipe; durable.
    pub fn create_other(&self, path: impl AsRef<Path>) {
        let mut state = self.outside();
        create(&mut state, path.as_ref(), Body::Other, 0o644);
        state.sync_name(path.as_ref());
    }

    /// Sets permission bits; durable.
    pub fn set_mode(&self, path: impl AsRef<Path>, mode: u32) {
        self.set_attributes(path.as_ref(), |attributes| attributes.mode = mode & 0o7777);
    }

    /// Sets the owner, leaving the mode; durable.
    pub fn set_owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) {
        self.set_attributes(path.as_ref(), |attributes| (attributes.uid, attributes.gid) = (uid, gid));
    }

    /// Sets an extended attribute; durable.
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<OsStr>, value: &[u8]) {
        self.set_attributes(path.as_ref(), |attributes| {
            Arc::make_mut(&mut attributes.xattrs).insert(name.as_ref().to_owned(), value.to_owned());
        });
    }

    /// Removes what stands at the path, with everything below it; durable. Nothing there is fine.
    pub fn remove(&self, path: impl AsRef<Path>) {
        let mut state = self.outside();
        remove(&mut state, path.as_ref());
        state.sync_name(path.as_ref());
    }

    /// Renames to a free name in a directory that is there, with everything below; all of that, and both names, are
    /// durable. Returns whether it could.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> bool {
        let (from, to) = (from.as_ref(), to.as_ref());
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        let mut state = self.outside();
        let (Ok(from_dir), Ok(to_dir)) = (state.walk(ROOT, from_dir), state.walk(ROOT, to_dir)) else {
            return false;
        };
        if state.rename((from_dir, from_name), (to_dir, to_name), false).is_err() {
            return false;
        }
        state.sync_name(from);
        state.sync_name(to);
        sync_below(&mut state, to);
        true
    }

    /// Removes as [`Sim::remove`] does, without syncing anything, like `rm -r`.
    pub fn remove_unsynced(&self, path: impl AsRef<Path>) {
        remove(&mut self.outside(), path.as_ref());
    }

    /// The content of a regular file as reads show it now; `None` if there is none.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state.lock();
        match &state.inode(state.find(path.as_ref())?).body {
            Body::File(data) => Some(data.cached.to_vec()),
            _ => None,
        }
    }

    /// Everything below a directory as reads show it now, by path relative to it. The directory itself is not in it;
    /// nothing there means an empty result.
    pub fn tree(&self, path: impl AsRef<Path>) -> BTreeMap<PathBuf, Node> {
        let state = self.state.lock();
        let mut nodes = BTreeMap::new();
        if let Some(id) = state.find(path.as_ref()) {
            collect(&state, id, Path::new(""), &mut nodes);
        }
        nodes
    }

    fn outside(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.clock_ns += state.step_ns;
        state
    }

    fn set_attributes(&self, path: &Path, set: impl Fn(&mut super::state::Attributes)) {
        let mut state = self.outside();
        let now = state.file_time();
        let id = state.find(path).unwrap_or_else(|| panic!("{} exists", path.display()));
        let inode = state.inode_mut(id);
        // Set on both sides rather than synced, so that unsynced changes of the other attributes stay unsynced.
        set(&mut inode.cached);
        set(&mut inode.durable);
        inode.cached.changed = now;
    }
}

impl State {
    pub(super) fn find(&self, path: &Path) -> Option<Id> {
        let path = below_root(path);
        match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => self.lookup(self.walk(ROOT, dir).ok()?, name).ok(),
            _ => Some(ROOT),
        }
    }

    /// Makes durable whatever stands, or stands no longer, at each name on the path.
    fn sync_name(&mut self, path: &Path) {
        let mut dir = ROOT;
        for name in below_root(path) {
            let wanted = |operation: &NameOperation| {
                operation.changes.iter().any(|change| change.slot.dir == dir && *change.slot.name == *name)
            };
            self.sync_names(wanted);
            match self.lookup(dir, name) {
                Ok(id) if matches!(self.inode(id).body, Body::Dir { .. }) => dir = id,
                _ => return,
            }
        }
    }
}

fn below_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn split(path: &Path) -> (&Path, &OsStr) {
    let path = below_root(path);
    let name = path.file_name().unwrap_or_else(|| panic!("{} names a file", path.display()));
    (path.parent().expect("a path with a last name has a parent"), name)
}

fn directory(state: &mut State, path: &Path) -> Id {
    let mode = 0o777 & !state.identity.umask;
    below_root(path).iter().fold(ROOT, |dir, name| {
        (state.lookup(dir, name))
            .or_else(|_| state.create(dir, name, Body::empty_dir(), mode))
            .unwrap_or_else(|error| panic!("create {}: {error}", path.display()))
    })
}

fn create(state: &mut State, path: &Path, body: Body, mode: u32) -> Id {
    let (dir, name) = split(path);
    let dir = directory(state, dir);
    state.create(dir, name, body, mode).unwrap_or_else(|error| panic!("create {}: {error}", path.display()))
}

fn write(state: &mut State, path: &Path, bytes: &[u8]) -> Id {
    let mode = 0o666 & !state.identity.umask;
    let found = state.find(path);
    let id = found.unwrap_or_else(|| create(state, path, Body::File(FileData::default()), mode));
    let now = state.file_time();
    let (data, space) = state.data_mut(id);
    data.set_len(0, space);
    data.write(bytes, 0, space).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    let inode = state.inode_mut(id);
    (inode.cached.modified, inode.cached.changed) = (now, now);
    id
}

/// Makes what stands at the path durable, with everything below it.
fn sync_below(state: &mut State, path: &Path) {
    let Some(id) = state.find(path) else { return };
    state.sync_file(id, true);
    if let Body::Dir { cached, .. } = &state.inode(id).body {
        let below: Vec<PathBuf> = cached.entries.keys().map(|name| path.join(&**name)).collect();
        for path in below {
            state.sync_name(&path);
            sync_below(state, &path);
        }
    }
}

fn remove(state: &mut State, path: &Path) {
    let (dir, name) = split(path);
    if let Some(id) = state.find(path) {
        if let Body::Dir { cached, .. } = &state.inode(id).body {
            let below: Vec<PathBuf> = cached.entries.keys().map(|name| path.join(&**name)).collect();
            for path in below {
                remove(state, &path);
            }
        }
        let dir = state.walk(ROOT, dir).expect("something was found in it");
        state.remove(dir, name).expect("something was found there");
    }
}

fn collect(state: &State, dir: Id, path: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
    let Body::Dir { cached, .. } = &state.inode(dir).body else { return };
    for (name, id) in &*cached.entries {
        let inode = state.inode(*id);
        let body = match &inode.body {
            Body::File(data) => NodeBody::File(data.cached.to_vec()),
            Body::Dir { .. } => NodeBody::Dir,
            Body::Symlink(target) => NodeBody::Symlink(target.to_os_string()),
            Body::Other => NodeBody::Other,
        };
        let xattrs = inode.cached.xattrs.iter();
        let xattrs = xattrs.map(|(name, value)| Xattr { name: name.clone(), value: value.clone() }).collect();
        let (mode, uid, gid) = (inode.cached.mode, inode.cached.uid, inode.cached.gid);
        let path = path.join(&**name);
        collect(state, *id, &path, nodes);
        nodes.insert(path, Node { body, mode, uid, gid, xattrs });
    }
}
