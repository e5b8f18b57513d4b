//! The only door to storage: every file and tree verb that atomtree uses, each with its contract.
//!
//! Three implementations stand behind the traits. [`os`] talks to Linux. [`sim`] is an in-memory file system that can
//! lose power and keeps no promise that real file systems don't make. [`faults`] wraps either and fails chosen calls.
//! Nothing here knows of logs or transactions.
//!
//! All access is relative to an open directory. A name is one component; a path has normal components only, and
//! resolving one never follows a symlink, never leaves the directory it starts from and never crosses a mount.
//!
//! Errors are [`io::Error`]s that carry the operating system's error number, in every implementation; the caller, who
//! knows the path and the purpose, adds both.
//!
//! # Durability
//!
//! No verb makes anything durable unless its name says `sync`. What survives power loss without one is any subset:
//! data and names may vanish or survive independently, torn at 512 bytes ([`SECTOR_BYTES`]).

pub mod faults;
#[expect(unsafe_code, reason = "handlers of forks; what makes each call sound is stated beside it")]
mod fork;
#[expect(unsafe_code, reason = "memory maps; the invariant that makes each use sound is stated beside it")]
mod map;
pub mod os;
pub mod sim;

use std::any::Any;
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[doc(hidden)]
pub use fork::fork_for_test;
#[doc(hidden)]
pub use map::MappedForBench;

/// The largest unit that storage is assumed to write atomically.
pub const SECTOR_BYTES: usize = 512;

/// A point in time: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time plus `ns` nanoseconds, saturating.
    #[must_use]
    pub fn plus_ns(self, ns: i64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe: nothing that atomtree writes or replaces.
    Other,
}

/// What `statx` says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// File, directory, symlink or other.
    pub kind: Kind,
    /// Inode number, unique on its device while the inode lives.
    pub inode: u64,
    /// Device number: differs between btrfs subvolumes, is shared by bind mounts.
    pub device: u64,
    /// Mount id: differs between bind mounts, is shared by btrfs subvolumes.
    pub mount: u64,
    /// Permission bits, setuid, setgid and sticky included (`0o7777`), without the kind.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Number of names.
    pub links: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the inode; no program can set it.
    pub changed: Timestamp,
    /// Creation time where the file system keeps one: tells a reused inode number apart.
    pub born: Option<Timestamp>,
    /// Whether a flag of the inode, immutable or append-only, keeps everybody from replacing or removing it, or, of a
    /// directory, from changing its names.
    pub is_fixed: bool,
    /// Whether it takes less room than its length: then it has holes, or is compressed.
    pub is_sparse: bool,
}

/// What the flags of a directory's inode say about the names in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirFlags {
    /// Inodes from a directory without the same project id or encryption policy may not be renamed into it.
    pub binds_inodes: bool,
    /// Names that differ in case alone are the same name.
    pub folds_case: bool,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, a single component; never `.` or `..`.
    pub name: OsString,
    /// What stands there; `Other` too when the file system does not say.
    pub kind: Kind,
}

/// An extended attribute: its full name (`user.comment`, `system.posix_acl_access`) and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Name with namespace prefix, without a terminating zero.
    pub name: OsString,
    /// Value, verbatim.
    pub value: Vec<u8>,
}

/// Who this process is to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// File mode creation mask, as the process has it now; it is read, never set.
    pub umask: u32,
}

/// A running process, told apart from a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Process id in this pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Name of the program (`/proc/PID/comm`).
    pub program: String,
}

/// A command that was started, with all that descends from it, whatever became of its parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// `NAME=value` in the environment of everything that it started.
    pub variable: String,
    /// The process that was started first, where it got so far: leads a process group, if it has one of its own.
    pub leader: Option<ProcessIdentity>,
    /// The control group that was made for it, as an absolute path.
    pub group: Option<PathBuf>,
}

/// What is known about the file system under a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name: `ext4`, `xfs`, `btrfs`, `tmpfs`, `overlayfs`, `nfs`, ... or `0x<magic>` when unknown.
    pub name: String,
    /// Why durability or atomicity is not promised here (no journal, memory only, a network), if it isn't.
    pub caveat: Option<String>,
    /// Whether the file system lives on another machine or in a user's process (NFS, CIFS, FUSE, 9p, ...).
    pub remote: bool,
    /// Bytes available to this user.
    pub available_bytes: u64,
}

/// How an existing file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// How a file is locked. Locks belong to the open file and vanish with it or its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Any number of holders.
    Shared,
    /// One holder.
    Exclusive,
}

/// Whether the error says that a symlink was met where none is followed.
pub fn is_symlink_error(error: &io::Error) -> bool {
    // `ErrorKind::FilesystemLoop` is not stable yet.
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// A machine's storage, clock and randomness.
pub trait Vfs: Send + Sync + 'static {
    /// Opens the directory at `path`, which is resolved as the operating system does, symlinks included. It becomes a
    /// root: nothing opened through it lies outside.
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>>;

    /// The wall clock, which may jump.
    fn now(&self) -> Timestamp;

    /// How far a file's timestamps may lag behind [`Vfs::now`], in nanoseconds: two changes closer than this can carry
    /// the same time.
    fn timestamp_granularity_ns(&self) -> i64;

    /// 128 unpredictable bits.
    fn random(&self) -> io::Result<u128>;

    /// The effective user and group, and the umask.
    fn identity(&self) -> io::Result<Identity>;

    /// This process.
    fn process(&self) -> io::Result<ProcessIdentity>;

    /// A number that differs between a process and the children that it forks.
    fn fork_generation(&self) -> u64;

    /// Whether the process is still running, stopped included: same pid, same start time, same boot.
    fn is_alive(&self, process: &ProcessIdentity) -> bool;

    /// Kills what still runs of a command, and waits a while until it is gone. Returns what could not be ended.
    ///
    /// # Errors
    /// That running processes can't be looked at.
    fn end_command(&self, command: &Command) -> io::Result<Vec<ProcessIdentity>>;
}

/// An open directory.
///
/// Methods that take a second directory need one from the same [`Vfs`] and panic otherwise.
pub trait Dir: Any + Send + Sync {
    /// Opens the directory at `path` below this one, however long it is; an empty path opens this one again.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` when a component is a symlink, `ENOTDIR` when it is anything else, `EXDEV` when the path
    /// leaves the directory or crosses a mount, `ENOENT`.
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>>;

    /// Opens an existing regular file. Reading it leaves its time of access as it is, where the process may ask for that and
    /// nobody holds a lease on the file.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, `EISDIR` for a directory, `EINVAL` for anything else that is no regular file (which is
    /// never opened in a way that blocks or has effects), `ENOENT`.
    fn open_file(&self, name: &OsStr, access: Access) -> io::Result<Arc<dyn File>>;

    /// Creates a regular file with exactly these permission bits less the umask, open for reading and writing.
    /// `EEXIST` if anything stands at the name, a dangling symlink included.
    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>>;

    /// Creates a directory with these permission bits less the umask (or what a default ACL makes of them). `EEXIST`.
    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()>;

    /// Creates a symlink whose content is `target`, verbatim. `EEXIST`.
    fn create_symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()>;

    /// The content of a symlink. `EINVAL` if the name is none.
    fn read_link(&self, name: &OsStr) -> io::Result<OsString>;

    /// Metadata of what stands at the name, never following a symlink. `ENOENT`.
    fn metadata(&self, name: &OsStr) -> io::Result<Metadata>;

    /// Metadata of this directory.
    fn own_metadata(&self) -> io::Result<Metadata>;

    /// All names in this directory, in no particular order.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Extended attributes of this directory that the process can read, sorted by name.
    fn xattrs(&self) -> io::Result<Vec<Xattr>>;

    /// Sets one extended attribute of this directory.
    fn set_dir_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()>;

    /// Removes one extended attribute of this directory. `ENODATA` if it is not set.
    fn remove_dir_xattr(&self, name: &OsStr) -> io::Result<()>;

    /// Sets this directory's permission bits.
    fn set_mode(&self, mode: u32) -> io::Result<()>;

    /// Sets this directory's owner.
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;

    /// Sets the permission bits of what stands at the name, which need not be readable.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, which has none; `EPERM` unless the process owns it.
    fn set_mode_of(&self, name: &OsStr, mode: u32) -> io::Result<()>;

    /// Sets the owner of what stands at the name, never following a symlink.
    fn set_owner_of(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()>;

    /// Renames; what stands at the destination stays. Atomic.
    ///
    /// # Errors
    /// `EEXIST` if the destination exists, `ENOENT`, `EXDEV`, `ENOSPC`, `EBUSY` for a mount point.
    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()>;

    /// Renames over whatever stands at the destination. Atomic; the file replaced is gone. Only for own files, and
    /// for targets on file systems that cannot exchange.
    fn rename_over(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()>;

    /// Swaps two existing names. Atomic.
    ///
    /// # Errors
    /// `ENOENT` unless both exist, `EINVAL` or `ENOSYS` where the file system cannot, `EXDEV`, `EBUSY`.
    fn exchange(&self, name: &OsStr, other_dir: &dyn Dir, other: &OsStr) -> io::Result<()>;

    /// Whether this process may make and remove names in this directory, as far as that can be told without doing it.
    ///
    /// # Errors
    /// Those of the calls that would do it: `EACCES`, `EPERM` for an immutable or append-only directory, `EROFS`.
    fn check_writable(&self) -> io::Result<()>;

    /// What the flags of this directory's inode say; none where the file system has none.
    fn flags(&self) -> io::Result<DirFlags>;

    /// Whether this process may take away what stands at the name, given that the directory is writable: in a sticky
    /// one only the owners may.
    ///
    /// # Errors
    /// `EPERM` if not.
    fn check_removable(&self, name: &OsStr) -> io::Result<()>;

    /// How many more files and directories the file system takes; `None` where that has no fixed number.
    fn available_inodes(&self) -> io::Result<Option<u64>>;

    /// Gives a file a second name. `EEXIST`, `EPERM` where links are refused.
    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()>;

    /// Removes a name that is no directory. `EISDIR` (or `EPERM`) otherwise.
    fn remove_file(&self, name: &OsStr) -> io::Result<()>;

    /// Removes an empty directory. `ENOTEMPTY`, `ENOTDIR`.
    fn remove_dir(&self, name: &OsStr) -> io::Result<()>;

    /// Makes every earlier change of names in this directory durable, renames to and from elsewhere included.
    ///
    /// # Errors
    /// Any error means that what was written may be lost although reads still show it; syncing again proves nothing.
    fn sync(&self) -> io::Result<()>;

    /// Makes everything written to this file system so far durable, whoever wrote it. Errors are as for
    /// [`Dir::sync`], and may stem from another program's file; a handle reports each earlier write-back error once.
    fn sync_filesystem(&self) -> io::Result<()>;

    /// Describes the file system under this directory.
    fn file_system(&self) -> io::Result<FileSystem>;

    /// For implementations to recognise their own.
    fn as_any(&self) -> &dyn Any;
}

/// An open regular file.
pub trait File: Any + Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; 0 at or past the end. Interrupted calls are repeated.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `parts`, one after another, from `offset`, extending the file where needed. On error any part of
    /// them may have been written. `EIO` with kind `WriteZero` if the file system accepts nothing.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Sets the length; what is added reads as zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Reserves space for the first `bytes` bytes and makes the file at least that long.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Where the first hole at or behind `offset` begins; the file's length if there is none, and on file systems that do
    /// not tell. What is reserved and was never written is a hole too.
    ///
    /// # Errors
    /// `ENXIO` unless `offset` lies inside the file.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;

    /// Makes the content, and the length needed to read it, durable.
    ///
    /// # Errors
    /// Any error means that what was written may be lost although reads still show it; syncing again proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes content and metadata durable; not the file's name. Errors as for [`File::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// Metadata of this inode.
    fn metadata(&self) -> io::Result<Metadata>;

    /// Sets the permission bits. After [`File::set_owner`], which clears setuid and setgid.
    fn set_mode(&self, mode: u32) -> io::Result<()>;

    /// Sets the owner. `EPERM` unless the process may.
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;

    /// Sets the time of last modification, leaving the time of last access.
    fn set_modified(&self, time: Timestamp) -> io::Result<()>;

    /// Extended attributes that the process can read, sorted by name; ACLs travel as `system.posix_acl_access`.
    /// Empty where the file system has none.
    fn xattrs(&self) -> io::Result<Vec<Xattr>>;

    /// Sets one extended attribute.
    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()>;

    /// Removes one extended attribute. `ENODATA` if it is not set.
    fn remove_xattr(&self, name: &OsStr) -> io::Result<()>;

    /// Makes this empty file's content that of `source`: by reflink where the file system can, else by
    /// `copy_file_range`, else by reading and writing. Holes may be filled. Returns the bytes copied.
    fn copy_from(&self, source: &dyn File) -> io::Result<u64>;

    /// Makes this empty file share the blocks of `source`, where the file system can, and tells whether it does. Only a
    /// matter of speed and space: who is told no copies, over whatever part has come to be shared all the same.
    fn reflink_from(&self, source: &dyn File) -> bool;

    /// Asks the system to forget cached pages, and tells whether none is left: then the next read shows what the
    /// device holds. Dirty pages stay; sync first.
    fn drop_cache(&self) -> io::Result<bool>;

    /// Asks the system to begin reading the file, of which nothing may come: only a matter of speed.
    fn read_ahead(&self);

    /// Asks the system to begin writing these bytes to the device, without waiting: only a matter of speed. They are durable
    /// once a sync says so, and no sooner.
    fn start_write_back(&self, offset: u64, bytes: u64);

    /// Waits for the lock, for as long as it takes.
    fn wait_for_lock(&self, lock: Lock) -> io::Result<()>;

    /// Takes the lock without waiting; `false` if another open file holds it in the way.
    fn try_lock(&self, lock: Lock) -> io::Result<bool>;

    /// Gives the lock up.
    fn unlock(&self) -> io::Result<()>;

    /// Has children that are forked from now on, and execute no program, let go of this open file: otherwise they would
    /// keep its lock alive. What they read and write through it then is nothing.
    fn hide_from_forks(&self) -> io::Result<()>;

    /// Maps the whole file, as long as it is now, for reading.
    fn map(&self) -> io::Result<Arc<dyn Map>>;

    /// For implementations to recognise their own.
    fn as_any(&self) -> &dyn Any;
}

/// A file mapped for reading.
pub trait Map: Send + Sync {
    /// Length of the mapping in bytes.
    fn len(&self) -> usize;

    /// Whether the mapping has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in `range`, made resident first, so that an unreadable sector is an error and not a signal.
    ///
    /// The caller asks only for bytes that nobody writes while the result lives.
    ///
    /// # Errors
    /// `EIO` for an unreadable sector; `UnexpectedEof` if the file has been cut short; `InvalidInput` for a range
    /// beyond the mapping.
    fn read(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>>;
}

impl dyn File + '_ {
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let read = self.read_at(buffer, offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[read..];
            offset += read as u64;
        }
        Ok(())
    }

    /// Reads the whole file, at most `limit` bytes; `FileTooLarge` beyond. Memory grows with what is read, not with
    /// what the metadata claims.
    pub fn read_all(&self, limit: u64) -> io::Result<Vec<u8>> {
        let expected = self.metadata()?.size.min(limit) as usize;
        let mut bytes = vec![0; expected.min(1 << 20)];
        let mut filled = 0;
        loop {
            if filled == bytes.len() {
                // One byte more than expected is asked for, so that a file of the expected length costs one growth
                // at most and a longer one is noticed.
                bytes.resize((filled * 2).clamp(filled + 1, (filled + (1 << 20)).max(expected + 1)), 0);
            }
            let read = self.read_at(&mut bytes[filled..], filled as u64)?;
            if read == 0 {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            filled += read;
            if filled as u64 > limit {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
    }
}
