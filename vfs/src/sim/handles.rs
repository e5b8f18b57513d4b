//! Open directories, open files and maps of a [`Sim`]: the traits' verbs, each one step under the one lock.
//!
//! Every handle counts as an open of its inode, so that what is unlinked stays usable through it. Verbs that change or
//! sync something go through [`Sim::changing`], where they are counted, traced and halted.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Sim;
use super::errno::{self, error};
use super::names::NameOperation;
use super::state::{Body, Id, Inode, State};
use crate::{Access, Dir, DirFlags, Entry, File, FileSystem, Kind, Lock, Map, Metadata, Timestamp, Xattr};

/// How long somebody who waits for a lock leaves between two looks at it.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// One open of one inode.
struct Handle {
    sim: Sim,
    inode: Id,
    /// Tells the holders of locks apart.
    number: u64,
    /// The write-back errors that this handle needs not report: older than it, or reported.
    failures_seen: AtomicU64,
}

impl Handle {
    fn open(sim: &Sim, state: &mut State, inode: Id) -> Self {
        state.inode_mut(inode).opens += 1;
        state.next_handle += 1;
        let failures = match state.inode(inode).body {
            Body::Dir { .. } => state.failures,
            _ => state.inode(inode).failures,
        };
        Self { sim: sim.clone(), inode, number: state.next_handle, failures_seen: AtomicU64::new(failures) }
    }

    fn reading<R>(&self, read: impl FnOnce(&State, &Inode) -> R) -> io::Result<R> {
        self.sim.reading(|state| Ok(read(state, state.inode(self.inode))))
    }

    /// Changes the inode, whose change time moves.
    fn changing(&self, verb: &str, change: impl FnOnce(&mut Inode) -> io::Result<()>) -> io::Result<()> {
        self.sim.changing(
            |state| format!("{verb} {}", state.path_of(self.inode).display()),
            |state| {
                let now = state.file_time();
                let inode = state.inode_mut(self.inode);
                change(inode)?;
                inode.cached.changed = now;
                inode.attributes_dirty = true;
                Ok(())
            },
        )
    }

    /// Reports a write-back error that this handle has not reported yet.
    fn check_failures(&self, failures: u64) -> io::Result<()> {
        if self.failures_seen.swap(failures, Ordering::Relaxed) == failures {
            Ok(())
        } else {
            Err(error(errno::EIO))
        }
    }

    fn sync_file(&self, verb: &str, attributes: bool) -> io::Result<()> {
        self.sim.changing(
            |state| format!("{verb} {}", state.path_of(self.inode).display()),
            |state| {
                if std::mem::take(&mut state.fail_next_sync) {
                    state.lose_data(self.inode);
                } else {
                    state.sync_file(self.inode, attributes);
                }
                self.check_failures(state.inode(self.inode).failures)
            },
        )
    }

    fn sync_dir(&self, verb: &str, whole: bool) -> io::Result<()> {
        self.sim.changing(
            |state| format!("{verb} {}", state.path_of(self.inode).display()),
            |state| {
                if std::mem::take(&mut state.fail_next_sync) {
                    self.lose(state, whole);
                    self.failures_seen.store(state.failures, Ordering::Relaxed);
                    return Err(error(errno::EIO));
                }
                if whole {
                    state.sync_everything();
                    return self.check_failures(state.failures);
                }
                state.sync_names(|operation| operation.involves(self.inode));
                let inode = state.inode_mut(self.inode);
                inode.durable = inode.cached.clone();
                inode.attributes_dirty = false;
                Ok(())
            },
        )
    }

    /// Loses what a failing sync of this directory, or of the whole file system, should have written.
    fn lose(&self, state: &mut State, whole: bool) {
        if whole {
            state.dirty_files().into_iter().for_each(|id| state.lose_data(id));
        }
        state.lose_names(|operation: &NameOperation| whole || operation.involves(self.inode));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.sim.state.lock();
        state.unlock(self.inode, self.number);
        state.inode_mut(self.inode).opens -= 1;
        state.collect(self.inode);
    }
}

fn set_mode(inode: &mut Inode, mode: u32) {
    inode.cached.mode = mode & 0o7777;
}

fn set_owner(inode: &mut Inode, uid: u32, gid: u32) {
    (inode.cached.uid, inode.cached.gid) = (uid, gid);
    if inode.body.kind() == Kind::File {
        // Setgid without group execution once meant mandatory locking, and stays.
        let cleared = if inode.cached.mode & 0o010 == 0 { 0o4000 } else { 0o6000 };
        inode.cached.mode &= !cleared;
    }
}

fn set_xattr(inode: &mut Inode, name: &OsStr, value: &[u8]) {
    Arc::make_mut(&mut inode.cached.xattrs).insert(name.to_owned(), value.to_owned());
}

fn remove_xattr(inode: &mut Inode, name: &OsStr) -> io::Result<()> {
    let removed = Arc::make_mut(&mut inode.cached.xattrs).remove(name);
    removed.map(drop).ok_or_else(|| error(errno::ENODATA))
}

fn xattrs(inode: &Inode) -> Vec<Xattr> {
    (inode.cached.xattrs.iter())
        .map(|(name, value)| Xattr { name: name.clone(), value: value.clone() })
        .collect()
}

/// An open directory of a [`Sim`].
pub(crate) struct SimDir(Handle);

impl SimDir {
    pub(super) fn open(sim: &Sim, state: &mut State, id: Id) -> Arc<dyn Dir> {
        Arc::new(Self(Handle::open(sim, state, id)))
    }

    /// Fails a sync as a disk would: data and names are lost, and no later sync brings them back.
    pub(crate) fn lose_unsynced(&self, whole_file_system: bool) {
        let mut state = self.0.sim.state.lock();
        self.0.lose(&mut state, whole_file_system);
        self.0.failures_seen.store(state.failures, Ordering::Relaxed);
    }

    fn other(&self, dir: &dyn Dir) -> Id {
        let dir =
            dir.as_any().downcast_ref::<Self>().expect("both directories come from a simulated file system");
        assert!(
            Arc::ptr_eq(&self.0.sim.state, &dir.0.sim.state),
            "both directories come from the same file system"
        );
        dir.0.inode
    }

    fn create(&self, verb: &str, name: &OsStr, body: Body, mode: u32) -> io::Result<Id> {
        self.changing_name(verb, name, |state, dir| {
            let mode = mode & 0o7777 & !state.identity.umask;
            state.create(dir, name, body, mode)
        })
    }

    fn changing_name<R>(
        &self,
        verb: &str,
        name: &OsStr,
        change: impl FnOnce(&mut State, Id) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.sim.changing(
            |state| format!("{verb} {}", state.path_of(self.0.inode).join(name).display()),
            |state| change(state, self.0.inode),
        )
    }

    /// Changes what stands at the name, without following a symlink.
    fn changing_inode_at(
        &self,
        verb: &str,
        name: &OsStr,
        change: impl FnOnce(&mut Inode) -> io::Result<()>,
    ) -> io::Result<()> {
        let handle = self.0.sim.reading(|state| {
            let id = state.lookup(self.0.inode, name)?;
            Ok(Handle::open(&self.0.sim, state, id))
        })?;
        handle.changing(verb, change)
    }

    fn changing_two(
        &self,
        verb: &str,
        (one, other): (&OsStr, &OsStr),
        other_dir: &dyn Dir,
        change: impl FnOnce(&mut State, (Id, &OsStr), (Id, &OsStr)) -> io::Result<()>,
    ) -> io::Result<()> {
        let (dir, other_dir) = (self.0.inode, self.other(other_dir));
        self.0.sim.changing(
            |state| {
                let (from, to) = (state.path_of(dir).join(one), state.path_of(other_dir).join(other));
                format!("{verb} {} -> {}", from.display(), to.display())
            },
            |state| change(state, (dir, one), (other_dir, other)),
        )
    }
}

impl Dir for SimDir {
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.0.sim.reading(|state| {
            let id = state.walk(self.0.inode, path)?;
            Ok(Self::open(&self.0.sim, state, id))
        })
    }

    fn open_file(&self, name: &OsStr, access: Access) -> io::Result<Arc<dyn File>> {
        self.0.sim.reading(|state| {
            let id = state.lookup(self.0.inode, name)?;
            match state.inode(id).body.kind() {
                Kind::File => Ok(SimFile::open(&self.0.sim, state, id, access)),
                Kind::Symlink => Err(error(errno::ELOOP)),
                Kind::Dir => Err(error(errno::EISDIR)),
                Kind::Other => Err(error(errno::EINVAL)),
            }
        })
    }

    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        self.changing_name("create", name, |state, dir| {
            let mode = mode & 0o7777 & !state.identity.umask;
            let id = state.create(dir, name, Body::File(super::data::FileData::default()), mode)?;
            Ok(SimFile::open(&self.0.sim, state, id, Access::ReadWrite))
        })
    }

    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        self.create("mkdir", name, Body::empty_dir(), mode).map(drop)
    }

    fn create_symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        self.changing_name("symlink", name, |state, dir| {
            state.create(dir, name, Body::Symlink(target.into()), 0o777).map(drop)
        })
    }

    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        self.0.sim.reading(|state| match &state.inode(state.lookup(self.0.inode, name)?).body {
            Body::Symlink(target) => Ok(target.to_os_string()),
            _ => Err(error(errno::EINVAL)),
        })
    }

    fn metadata(&self, name: &OsStr) -> io::Result<Metadata> {
        self.0.sim.reading(|state| Ok(state.inode(state.lookup(self.0.inode, name)?).metadata()))
    }

    fn own_metadata(&self) -> io::Result<Metadata> {
        self.0.reading(|_, inode| inode.metadata())
    }

    /// Permissions are not simulated.
    fn check_writable(&self) -> io::Result<()> {
        Ok(())
    }

    fn flags(&self) -> io::Result<DirFlags> {
        Ok(DirFlags::default())
    }

    fn available_inodes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn check_removable(&self, _name: &OsStr) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.0.reading(|state, _| {
            (state.entries(self.0.inode).iter())
                .map(|(name, id)| Entry { name: name.to_os_string(), kind: state.inode(*id).body.kind() })
                .collect()
        })
    }

    fn xattrs(&self) -> io::Result<Vec<Xattr>> {
        self.0.reading(|_, inode| xattrs(inode))
    }

    fn set_dir_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.0.changing("set xattr of", |inode| {
            set_xattr(inode, name, value);
            Ok(())
        })
    }

    fn remove_dir_xattr(&self, name: &OsStr) -> io::Result<()> {
        self.0.changing("remove xattr of", |inode| remove_xattr(inode, name))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.0.changing("chmod", |inode| {
            set_mode(inode, mode);
            Ok(())
        })
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.0.changing("chown", |inode| {
            set_owner(inode, uid, gid);
            Ok(())
        })
    }

    fn set_mode_of(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        self.changing_inode_at("chmod", name, |inode| {
            if inode.body.kind() == Kind::Symlink {
                return Err(error(errno::ELOOP));
            }
            set_mode(inode, mode);
            Ok(())
        })
    }

    fn set_owner_of(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        self.changing_inode_at("chown", name, |inode| {
            set_owner(inode, uid, gid);
            Ok(())
        })
    }

    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.changing_two("rename", (from, to), to_dir, |state, from, to| state.rename(from, to, false))
    }

    fn rename_over(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.changing_two("rename over", (from, to), to_dir, |state, from, to| state.rename(from, to, true))
    }

    fn exchange(&self, name: &OsStr, other_dir: &dyn Dir, other: &OsStr) -> io::Result<()> {
        self.changing_two("exchange", (name, other), other_dir, State::exchange)
    }

    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.changing_two("link", (from, to), to_dir, State::link)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.changing_name("unlink", name, |state, dir| {
            match state.inode(state.lookup(dir, name)?).body.kind() {
                Kind::Dir => Err(error(errno::EISDIR)),
                _ => state.remove(dir, name),
            }
        })
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.changing_name("rmdir", name, |state, dir| {
            let id = state.lookup(dir, name)?;
            match state.inode(id).body.kind() {
                Kind::Dir if state.entries(id).is_empty() => state.remove(dir, name),
                Kind::Dir => Err(error(errno::ENOTEMPTY)),
                _ => Err(error(errno::ENOTDIR)),
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_dir("sync directory", false)
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        self.0.sync_dir("sync file system of", true)
    }

    fn file_system(&self) -> io::Result<FileSystem> {
        self.0.reading(|state, _| FileSystem {
            name: "sim".to_owned(),
            caveat: None,
            remote: false,
            available_bytes: state.space.0.unwrap_or(1 << 40),
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// An open file of a [`Sim`].
pub(crate) struct SimFile {
    handle: Handle,
    access: Access,
}

impl SimFile {
    fn open(sim: &Sim, state: &mut State, id: Id, access: Access) -> Arc<dyn File> {
        Arc::new(Self { handle: Handle::open(sim, state, id), access })
    }

    /// Fails a sync as a disk would: reads still show the data, the disk never gets it.
    pub(crate) fn lose_unsynced(&self) {
        let mut state = self.handle.sim.state.lock();
        state.lose_data(self.handle.inode);
        self.handle.failures_seen.store(state.inode(self.handle.inode).failures, Ordering::Relaxed);
    }

    fn writing<R>(
        &self,
        describe: impl FnOnce(std::path::Display<'_>) -> String,
        write: impl FnOnce(&mut State, Id) -> io::Result<R>,
    ) -> io::Result<R> {
        let id = self.handle.inode;
        self.handle.sim.changing(
            |state| describe(state.path_of(id).display()),
            |state| {
                if self.access != Access::ReadWrite {
                    return Err(error(errno::EBADF));
                }
                let now = state.file_time();
                let result = write(state, id)?;
                let inode = state.inode_mut(id);
                (inode.cached.modified, inode.cached.changed) = (now, now);
                Ok(result)
            },
        )
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.handle.reading(|state, _| state.data(self.handle.inode).cached.read_at(buffer, offset))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.writing(
            |path| format!("write {path}, {length} bytes at {offset}"),
            |state, id| {
                let (data, space) = state.data_mut(id);
                let mut at = offset;
                for part in parts {
                    data.write(part, at, space)?;
                    at += part.len() as u64;
                }
                Ok(())
            },
        )
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.writing(
            |path| format!("truncate {path} to {bytes}"),
            |state, id| {
                let (data, space) = state.data_mut(id);
                data.set_len(bytes, space);
                Ok(())
            },
        )
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.writing(
            |path| format!("allocate {path} up to {bytes}"),
            |state, id| {
                let (data, space) = state.data_mut(id);
                data.allocate(bytes, space)
            },
        )
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.handle.sim.reading(|state| {
            state.data(self.handle.inode).cached.next_hole(offset).ok_or_else(|| error(errno::ENXIO))
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.handle.sync_file("sync data of", false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.handle.sync_file("sync", true)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.handle.reading(|_, inode| inode.metadata())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.handle.changing("chmod", |inode| {
            set_mode(inode, mode);
            Ok(())
        })
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.handle.changing("chown", |inode| {
            set_owner(inode, uid, gid);
            Ok(())
        })
    }

    fn set_modified(&self, time: Timestamp) -> io::Result<()> {
        self.handle.changing("touch", |inode| {
            inode.cached.modified = time;
            Ok(())
        })
    }

    fn xattrs(&self) -> io::Result<Vec<Xattr>> {
        self.handle.reading(|_, inode| xattrs(inode))
    }

    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.handle.changing("set xattr of", |inode| {
            set_xattr(inode, name, value);
            Ok(())
        })
    }

    fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        self.handle.changing("remove xattr of", |inode| remove_xattr(inode, name))
    }

    fn copy_from(&self, source: &dyn File) -> io::Result<u64> {
        let source = (source.as_any().downcast_ref::<Self>())
            .filter(|source| Arc::ptr_eq(&source.handle.sim.state, &self.handle.sim.state))
            .ok_or_else(|| error(errno::EXDEV))?;
        self.writing(
            |path| format!("copy into {path}"),
            |state, id| {
                let content = state.data(source.handle.inode).cached.clone();
                let (data, space) = state.data_mut(id);
                data.share(&content, space)?;
                Ok(content.len())
            },
        )
    }

    fn drop_cache(&self) -> io::Result<bool> {
        self.handle.sim.reading(|state| {
            if state.cache_pinned {
                return Ok(false);
            }
            let (data, space) = state.data_mut(self.handle.inode);
            Ok(data.drop_cache(space))
        })
    }

    fn reflink_from(&self, source: &dyn File) -> bool {
        self.handle.sim.state.lock().reflinks_supported && self.copy_from(source).is_ok()
    }

    fn read_ahead(&self) {}

    /// Nothing: a cut keeps any part of what was not synced anyway.
    fn start_write_back(&self, _: u64, _: u64) {}

    fn wait_for_lock(&self, lock: Lock) -> io::Result<()> {
        // Simulated machines have no threads of their own: those of the test are asked again and again.
        while !self.try_lock(lock)? {
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(())
    }

    fn hide_from_forks(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let handle = &self.handle;
        handle.sim.reading(|state| Ok(state.try_lock(handle.inode, handle.number, handle.sim.process, lock)))
    }

    fn unlock(&self) -> io::Result<()> {
        self.handle.sim.reading(|state| {
            state.unlock(self.handle.inode, self.handle.number);
            Ok(())
        })
    }

    fn map(&self) -> io::Result<Arc<dyn Map>> {
        let (sim, id) = (&self.handle.sim, self.handle.inode);
        sim.reading(|state| {
            let length = state.data(id).cached.len() as usize;
            // A map keeps the inode but not the lock, so it is an open of its own.
            Ok(Arc::new(SimMap { handle: Handle::open(sim, state, id), length }) as Arc<dyn Map>)
        })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct SimMap {
    handle: Handle,
    length: usize,
}

impl Map for SimMap {
    fn len(&self) -> usize {
        self.length
    }

    fn read(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = vec![0; range.len()];
        let read = self.handle.reading(|state, _| {
            state.data(self.handle.inode).cached.read_at(&mut bytes, range.start as u64)
        })?;
        if read < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Cow::Owned(bytes))
    }
}
