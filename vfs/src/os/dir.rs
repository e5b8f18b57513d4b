//! An open directory, and what is reached through it.
//!
//! Only [`Dir::open_dir`] resolves a path, and the kernel confines it. All else takes one name, checked to be a
//! single component, and follows no symlink, so nothing here can reach what lies outside.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, IFlags, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags, XattrFlags};
use rustix::io::{Errno, retry_on_intr};

use super::file::OsFile;
use super::{component, descriptor_path, file_system, kind, metadata_at, metadata_of, owner, xattr};
use crate::{Access, Dir, DirFlags, Entry, File, FileSystem, Kind, Metadata, Xattr};

/// Whether this process may act as the owner of files that belong to others.
fn overrides_owners() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::FOWNER))
}

/// `FS_ENCRYPT_FL` and `FS_CASEFOLD_FL`, which rustix does not name.
const ENCRYPTED: IFlags = IFlags::from_bits_retain(0x800);
const CASE_FOLDED: IFlags = IFlags::from_bits_retain(0x4000_0000);

/// The longest path handed to the kernel at once, which takes at most 4096 bytes with the terminating zero.
const RESOLVED_BYTES_MAX: usize = 4000;

/// How often a resolution that raced with a rename or a mount is tried again before its `EAGAIN` is passed on.
const RESOLUTIONS_MAX: usize = 128;

/// An open directory.
pub(super) struct OsDir {
    descriptor: OwnedFd,
    /// Whether it is open for reading, which listing and syncing need. A directory that the process may pass through
    /// but not read is held as a mere place (`O_PATH`).
    readable: bool,
}

/// Opens a directory by path, symlinks included.
pub(super) fn open_root(path: &Path) -> io::Result<OsDir> {
    OsDir::open_with(|flags| rustix::fs::openat(CWD, path, flags, Mode::empty()))
}

/// Resolves below `directory`, never following a symlink nor crossing a mount.
fn resolve(directory: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let confined = ResolveFlags::BENEATH
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW;
    for _ in 1..RESOLUTIONS_MAX {
        match rustix::fs::openat2(directory, path, flags, Mode::empty(), confined) {
            Err(Errno::AGAIN) => {}
            resolved => return resolved,
        }
    }
    rustix::fs::openat2(directory, path, flags, Mode::empty(), confined)
}

impl OsDir {
    /// Opens for reading if that is permitted, else as a place.
    fn open_with(open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        match retry_on_intr(|| open(flags | OFlags::RDONLY)) {
            Err(Errno::ACCESS) => {
                Ok(Self { descriptor: retry_on_intr(|| open(flags | OFlags::PATH))?, readable: false })
            }
            opened => Ok(Self { descriptor: opened?, readable: true }),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// A second descriptor with a position of its own, open for reading: else the error says why it can't be.
    fn reopen(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        retry_on_intr(|| rustix::fs::openat(self.fd(), ".", flags, Mode::empty()))
    }

    /// Runs one sync call, once, on this directory.
    fn sync_with(&self, sync: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>) -> io::Result<()> {
        // On the own descriptor whenever possible: a fresh one doesn't see write-back errors from before it was
        // opened. Not repeated when interrupted either, because the call may have taken such an error off the
        // descriptor already, and a second one would hide it.
        if self.readable { Ok(sync(self.fd())?) } else { Ok(sync(self.reopen()?.as_fd())?) }
    }

    /// Opens a regular file that another process holds a lease on, waiting until that is given up, which the kernel
    /// enforces after `/proc/sys/fs/lease-break-time`.
    fn open_leased(&self, name: &OsStr, access: OFlags) -> io::Result<OwnedFd> {
        // The inode is pinned and known to be a regular file before the call that may wait.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = retry_on_intr(|| rustix::fs::openat(self.fd(), name, flags, Mode::empty()))?;
        require_regular(kind_at(found.as_fd(), OsStr::new(""))?)?;
        let path = descriptor_path(found.as_fd());
        Ok(retry_on_intr(|| rustix::fs::openat(CWD, &*path, access | OFlags::CLOEXEC, Mode::empty()))?)
    }

    fn rename_with(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr, flags: RenameFlags) -> io::Result<()> {
        let (from, to) = (component(from)?, component(to)?);
        Ok(rustix::fs::renameat_with(self.fd(), from, own(to_dir).fd(), to, flags)?)
    }
}

impl Dir for OsDir {
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        // The kernel refuses a `..` that leaves, but resolves one that doesn't, and then has to guard against races.
        // Neither is a path in normal form, so both get the same answer.
        if path.components().any(|part| matches!(part, Component::ParentDir | Component::RootDir)) {
            return Err(Errno::XDEV.into());
        }
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let (mut first, mut rest) = divide(path);
        let mut dir = Self::open_with(|flags| resolve(self.fd(), first, flags))?;
        while let Some(path) = rest {
            (first, rest) = divide(path);
            dir = Self::open_with(|flags| resolve(dir.fd(), first, flags))?;
        }
        Ok(Arc::new(dir))
    }

    fn open_file(&self, name: &OsStr, access: Access) -> io::Result<Arc<dyn File>> {
        let name = component(name)?;
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        // Opening a pipe wakes who waits at its other end, and opening a device may do anything, so the kind is asked
        // for first, by name. That costs one call more than opening alone; holding the inode with `O_PATH` meanwhile
        // would cost three. The price is a race: whoever swaps the name between two calls has a pipe or device of
        // their own opened, still without blocking, and refused below.
        require_regular(kind_at(self.fd(), name)?)?;
        let flags = access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| retry_on_intr(|| rustix::fs::openat(self.fd(), name, flags, Mode::empty()));
        // A new time of access is a change of the inode for each file that was written since it was last read, which costs
        // as much as the reading. Only the owner may ask for none.
        let opened = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            opened => opened,
        };
        let descriptor = match opened {
            // For a regular file this means a lease (samba takes them) that the open may not wait for.
            Err(Errno::AGAIN) => self.open_leased(name, access)?,
            opened => opened?,
        };
        require_regular(kind_at(descriptor.as_fd(), OsStr::new(""))?)?;
        Ok(Arc::new(OsFile::new(descriptor)))
    }

    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        let name = component(name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let descriptor = retry_on_intr(|| rustix::fs::openat(self.fd(), name, flags, mode))?;
        Ok(Arc::new(OsFile::new(descriptor)))
    }

    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(self.fd(), component(name)?, Mode::from_raw_mode(mode))?)
    }

    fn create_symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, self.fd(), component(name)?)?)
    }

    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(self.fd(), component(name)?, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn metadata(&self, name: &OsStr) -> io::Result<Metadata> {
        metadata_at(self.fd(), component(name)?, AtFlags::empty())
    }

    fn own_metadata(&self) -> io::Result<Metadata> {
        metadata_of(self.fd())
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::new(self.reopen()?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries
                    .push(Entry { name: OsStr::from_bytes(name).to_owned(), kind: kind(entry.file_type()) });
            }
        }
        Ok(entries)
    }

    fn xattrs(&self) -> io::Result<Vec<Xattr>> {
        if self.readable {
            return xattr::read_all(
                |buffer| rustix::fs::flistxattr(self.fd(), buffer),
                |name, buffer| rustix::fs::fgetxattr(self.fd(), name, buffer),
            );
        }
        let path = descriptor_path(self.fd());
        xattr::read_all(
            |buffer| rustix::fs::listxattr(&*path, buffer),
            |name, buffer| rustix::fs::getxattr(&*path, name, buffer),
        )
    }

    fn set_dir_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        let flags = XattrFlags::empty();
        if self.readable {
            return Ok(retry_on_intr(|| rustix::fs::fsetxattr(self.fd(), name, value, flags))?);
        }
        let path = descriptor_path(self.fd());
        Ok(retry_on_intr(|| rustix::fs::setxattr(&*path, name, value, flags))?)
    }

    fn remove_dir_xattr(&self, name: &OsStr) -> io::Result<()> {
        if self.readable {
            return Ok(retry_on_intr(|| rustix::fs::fremovexattr(self.fd(), name))?);
        }
        let path = descriptor_path(self.fd());
        Ok(retry_on_intr(|| rustix::fs::removexattr(&*path, name))?)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        if self.readable {
            return Ok(rustix::fs::fchmod(self.fd(), mode)?);
        }
        Ok(rustix::fs::chmodat(CWD, &*descriptor_path(self.fd()), mode, AtFlags::empty())?)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        Ok(rustix::fs::chownat(self.fd(), "", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    fn set_mode_of(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        // Held as a mere place, because whoever may change the mode need not be allowed to read.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = component(name)?;
        let found = retry_on_intr(|| rustix::fs::openat(self.fd(), name, flags, Mode::empty()))?;
        if kind_at(found.as_fd(), OsStr::new(""))? == Kind::Symlink {
            return Err(Errno::LOOP.into());
        }
        let path = descriptor_path(found.as_fd());
        Ok(rustix::fs::chmodat(CWD, &*path, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    fn set_owner_of(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        Ok(rustix::fs::chownat(self.fd(), component(name)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.rename_with(from, to_dir, to, RenameFlags::NOREPLACE)
    }

    fn rename_over(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.rename_with(from, to_dir, to, RenameFlags::empty())
    }

    fn exchange(&self, name: &OsStr, other_dir: &dyn Dir, other: &OsStr) -> io::Result<()> {
        self.rename_with(name, other_dir, other, RenameFlags::EXCHANGE)
    }

    fn check_writable(&self) -> io::Result<()> {
        let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        retry_on_intr(|| rustix::fs::accessat(self.fd(), ".", wanted, AtFlags::EACCESS))?;
        if self.own_metadata()?.is_fixed { Err(Errno::PERM.into()) } else { Ok(()) }
    }

    fn flags(&self) -> io::Result<DirFlags> {
        match rustix::fs::ioctl_getflags(self.fd()) {
            Ok(flags) => Ok(DirFlags {
                binds_inodes: flags.intersects(IFlags::PROJECT_INHERIT | ENCRYPTED),
                folds_case: flags.intersects(CASE_FOLDED),
            }),
            // No such flags here, or a directory that may be passed through but not read.
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF | Errno::INVAL) => {
                Ok(DirFlags::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn available_inodes(&self) -> io::Result<Option<u64>> {
        let found = retry_on_intr(|| rustix::fs::fstatvfs(self.fd()))?;
        // Btrfs makes inodes as it needs them and counts none.
        Ok((found.f_files > 0).then_some(found.f_favail))
    }

    fn check_removable(&self, name: &OsStr) -> io::Result<()> {
        let (found, dir) = (self.metadata(name)?, self.own_metadata()?);
        let user = rustix::process::geteuid().as_raw();
        // The rule of the kernel's `may_delete`: the sticky bit leaves a name to the owners, and to who has the
        // capability.
        let is_left_to_others =
            dir.mode & 0o1000 != 0 && user != found.uid && user != dir.uid && !overrides_owners();
        if is_left_to_others { Err(Errno::PERM.into()) } else { Ok(()) }
    }

    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        let (from, to) = (component(from)?, component(to)?);
        // Without flags a symlink is linked itself, not what it points to.
        Ok(rustix::fs::linkat(self.fd(), from, own(to_dir).fd(), to, AtFlags::empty())?)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.fd(), component(name)?, AtFlags::empty())?)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.fd(), component(name)?, AtFlags::REMOVEDIR)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_with(|descriptor| rustix::fs::fsync(descriptor))
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        self.sync_with(|descriptor| rustix::fs::syncfs(descriptor))
    }

    fn file_system(&self) -> io::Result<FileSystem> {
        file_system::describe(self.fd())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// As much of a path as the kernel takes at once, and what is left of it.
fn divide(path: &Path) -> (&Path, Option<&Path>) {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= RESOLVED_BYTES_MAX {
        return (path, None);
    }
    // A component is far shorter than that, or the kernel says that it is too long.
    let Some(at) = bytes[..RESOLVED_BYTES_MAX].iter().rposition(|&byte| byte == b'/') else {
        return (path, None);
    };
    let part = |bytes| Path::new(OsStr::from_bytes(bytes));
    (part(&bytes[..at]), Some(part(&bytes[at + 1..])))
}

fn own(dir: &dyn Dir) -> &OsDir {
    dir.as_any().downcast_ref().expect("both directories come from the same Vfs, as the contract asks")
}

/// The kind alone, which costs the file system less than all metadata. An empty name means the descriptor's own.
fn kind_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Kind> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let stat = retry_on_intr(|| rustix::fs::statx(dir, name, flags, StatxFlags::TYPE))?;
    Ok(kind(rustix::fs::FileType::from_raw_mode(stat.stx_mode.into())))
}

fn require_regular(kind: Kind) -> io::Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Errno::ISDIR.into()),
        Kind::Symlink => Err(Errno::LOOP.into()),
        Kind::Other => Err(Errno::INVAL.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vfs;
    use crate::os::Os;
    use crate::os::tests::{assert_errno, scratch};
    use std::io::IoSlice;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn write(dir: &dyn Dir, file: &str, content: &str) {
        let file = dir.create_file(name(file), 0o600).unwrap();
        file.write_at(&[IoSlice::new(content.as_bytes())], 0).unwrap();
    }

    fn read(dir: &dyn Dir, file: &str) -> String {
        String::from_utf8(dir.open_file(name(file), Access::Read).unwrap().read_all(1 << 20).unwrap())
            .unwrap()
    }

    fn make_dirs(root: &dyn Dir, path: &str) -> Arc<dyn Dir> {
        let mut dir = root.open_dir(Path::new("")).unwrap();
        for part in Path::new(path) {
            let _ = dir.create_dir(part, 0o755);
            dir = dir.open_dir(Path::new(part)).unwrap();
        }
        dir
    }

    #[track_caller]
    fn assert_symlink_refused(dir: &dyn Dir, path: &str) {
        let error = dir.open_dir(Path::new(path)).err().expect("a symlink is refused");
        let refused = [Errno::LOOP, Errno::NOTDIR].map(Errno::raw_os_error);
        assert!(refused.contains(&error.raw_os_error().unwrap()), "{path}: {error}");
    }

    fn umask() -> u32 {
        Os.identity().unwrap().umask
    }

    #[test]
    fn directories_are_opened_by_path() {
        let (_directory, root) = scratch();
        let deep = make_dirs(&*root, "a/b/c");
        let inode = |dir: &dyn Dir| dir.own_metadata().unwrap().inode;
        assert_eq!(inode(&*root.open_dir(Path::new("a/b/c")).unwrap()), inode(&*deep));
        assert_eq!(inode(&*root.open_dir(Path::new("")).unwrap()), inode(&*root));
        assert_eq!(deep.own_metadata().unwrap().mount, root.own_metadata().unwrap().mount);
        assert_errno(root.open_dir(Path::new("a/missing/c")), Errno::NOENT);
        write(&*root, "file", "");
        assert_errno(root.open_dir(Path::new("file")), Errno::NOTDIR);
        assert_errno(root.open_dir(Path::new("file/b")), Errno::NOTDIR);
    }

    /// Symlinks to a directory inside and outside, absolute, relative and dangling, in every position of a path.
    #[test]
    fn symlinks_are_refused_in_every_position() {
        let (directory, root) = scratch();
        let deep = make_dirs(&*root, "a/b/c");
        let inside = directory.path().join("a");
        for target in ["a", ".", "..", "/", "/tmp", "missing", inside.to_str().unwrap()] {
            for (position, path) in
                ["link", "link/b/c", "a/link/c", "a/b/link", "a/b/link/."].iter().enumerate()
            {
                let holder = ["", "", "a", "a/b", "a/b"][position];
                let holder = root.open_dir(Path::new(holder)).unwrap();
                holder.create_symlink(name("link"), name(target)).unwrap();
                assert_symlink_refused(&*root, path);
                holder.remove_file(name("link")).unwrap();
            }
        }
        drop(deep);
        // The root itself is the caller's business and may be reached through one.
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        let through = Os.open_root(&directory.path().join("link")).unwrap();
        let inode = root.metadata(name("a")).unwrap().inode;
        assert_eq!(through.own_metadata().unwrap().inode, inode);
    }

    #[test]
    fn paths_that_leave_are_refused() {
        let (directory, root) = scratch();
        let deep = make_dirs(&*root, "a/b");
        for path in ["..", "../a", "a/..", "a/../..", "a/../a", "a/b/../b", "/", "/tmp", "//"] {
            assert_errno(root.open_dir(Path::new(path)), Errno::XDEV);
            // The kernel, asked directly, agrees wherever the path really leaves.
            let resolved = resolve(own(&*root).fd(), Path::new(path), OFlags::DIRECTORY | OFlags::CLOEXEC);
            let leaves = path.starts_with("..") || path.starts_with('/') || path == "a/../..";
            assert_eq!(resolved.is_err(), leaves, "{path}");
        }
        assert_errno(deep.open_dir(Path::new("..")), Errno::XDEV);
        assert_errno(root.open_dir(directory.path()), Errno::XDEV);
    }

    #[test]
    fn mounts_are_not_crossed() {
        let root = Os.open_root(Path::new("/")).unwrap();
        let proc = root.metadata(name("proc")).unwrap();
        if proc.mount == root.own_metadata().unwrap().mount {
            println!("skipped: /proc is no mount of its own");
            return;
        }
        assert_errno(root.open_dir(Path::new("proc")), Errno::XDEV);
        assert_errno(root.open_dir(Path::new("proc/self")), Errno::XDEV);
        // A magic link is a symlink too, wherever it leads.
        let own_link = descriptor_path(own(&*root).fd());
        let (descriptors, link) = own_link.rsplit_once('/').unwrap();
        let descriptors = Os.open_root(Path::new(descriptors)).unwrap();
        assert_symlink_refused(&*descriptors, link);
        assert_symlink_refused(&*descriptors, &format!("{link}/tmp"));
    }

    /// What is read leaves no trace, be it to compare it or for a transaction.
    #[test]
    fn reading_leaves_the_time_of_access() {
        let (directory, root) = scratch();
        write(&*root, "file", "content");
        let path = directory.path().join("file");
        // Older than the content, so that the first reading would set it anew.
        let accessed = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
        std::fs::File::open(&path)
            .unwrap()
            .set_times(std::fs::FileTimes::new().set_accessed(accessed))
            .unwrap();
        let time_of_access = || std::fs::metadata(&path).unwrap().accessed().unwrap();
        for access in [Access::Read, Access::ReadWrite] {
            let file = root.open_file(name("file"), access).unwrap();
            assert_eq!(file.read_all(1 << 20).unwrap(), b"content");
            assert_eq!(time_of_access(), accessed);
        }
        std::fs::read(&path).unwrap();
        if time_of_access() == accessed {
            println!("skipped: the file system of the temporary directory keeps no times of access");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let (directory, root) = scratch();
        write(&*root, "file", "content");
        root.create_dir(name("dir"), 0o755).unwrap();
        root.create_symlink(name("link"), name("file")).unwrap();
        root.create_symlink(name("dangling"), name("missing")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        for access in [Access::Read, Access::ReadWrite] {
            assert!(root.open_file(name("file"), access).is_ok());
            assert_errno(root.open_file(name("dir"), access), Errno::ISDIR);
            assert_errno(root.open_file(name("link"), access), Errno::LOOP);
            assert_errno(root.open_file(name("dangling"), access), Errno::LOOP);
            assert_errno(root.open_file(name("socket"), access), Errno::INVAL);
            assert_errno(root.open_file(name("missing"), access), Errno::NOENT);
        }
        let devices = Os.open_root(Path::new("/dev")).unwrap();
        assert_errno(devices.open_file(name("null"), Access::ReadWrite), Errno::INVAL);
        let reader = root.open_file(name("file"), Access::Read).unwrap();
        assert_errno(reader.write_at(&[IoSlice::new(b"no")], 0), Errno::BADF);
    }

    /// Opening a pipe neither blocks nor wakes a process that waits for a reader.
    #[test]
    fn pipes_are_left_alone() {
        let (directory, root) = scratch();
        rustix::fs::mkfifoat(own(&*root).fd(), "pipe", Mode::RUSR | Mode::WUSR).unwrap();
        let path = directory.path().join("pipe");
        let opened = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                opened.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(30));
            for access in [Access::Read, Access::ReadWrite] {
                assert_errno(root.open_file(name("pipe"), access), Errno::INVAL);
                assert_errno(own(&*root).open_leased(name("pipe"), OFlags::RDONLY), Errno::INVAL);
            }
            std::thread::sleep(Duration::from_millis(30));
            let woken = opened.load(Ordering::SeqCst);
            std::fs::OpenOptions::new().read(true).open(&path).unwrap();
            assert!(!woken, "the writer was woken");
        });
    }

    #[test]
    fn a_leased_file_is_opened_through_its_inode() {
        let (_directory, root) = scratch();
        write(&*root, "file", "content");
        root.create_dir(name("dir"), 0o755).unwrap();
        root.create_symlink(name("link"), name("file")).unwrap();
        let dir = own(&*root);
        let file = OsFile::new(dir.open_leased(name("file"), OFlags::RDWR).unwrap());
        assert_eq!(file.metadata().unwrap(), root.metadata(name("file")).unwrap());
        file.write_at(&[IoSlice::new(b"changed")], 0).unwrap();
        assert_eq!(read(&*root, "file"), "changed");
        assert_errno(dir.open_leased(name("dir"), OFlags::RDONLY), Errno::ISDIR);
        assert_errno(dir.open_leased(name("link"), OFlags::RDONLY), Errno::LOOP);
    }

    #[test]
    fn creating_never_replaces_and_follows_the_umask() {
        let (_directory, root) = scratch();
        root.create_symlink(name("dangling"), name("missing")).unwrap();
        write(&*root, "file", "content");
        for taken in ["dangling", "file"] {
            assert_errno(root.create_file(name(taken), 0o600), Errno::EXIST);
            assert_errno(root.create_dir(name(taken), 0o700), Errno::EXIST);
            assert_errno(root.create_symlink(name(taken), name("x")), Errno::EXIST);
        }
        assert_errno(root.metadata(name("missing")), Errno::NOENT);
        for mode in [0o600, 0o666, 0o777, 0o000] {
            let file = root.create_file(name("new"), mode).unwrap();
            assert_eq!(file.metadata().unwrap().mode, mode & !umask());
            file.write_at(&[IoSlice::new(b"writable")], 0).unwrap();
            root.remove_file(name("new")).unwrap();
        }
        root.create_dir(name("dir"), 0o777).unwrap();
        let created = root.metadata(name("dir")).unwrap();
        assert_eq!((created.kind, created.mode & 0o777), (Kind::Dir, 0o777 & !umask()));
    }

    #[test]
    fn symlinks_are_seen_not_followed() {
        let (_directory, root) = scratch();
        write(&*root, "file", "content");
        // Close to the longest that xfs stores.
        let long = "x/".repeat(500);
        for (link, target) in [("a", "file"), ("b", "../out"), ("c", &long), ("d", "/etc/passwd")] {
            root.create_symlink(name(link), name(target)).unwrap();
            assert_eq!(root.read_link(name(link)).unwrap(), target);
            let metadata = root.metadata(name(link)).unwrap();
            assert_eq!((metadata.kind, metadata.size), (Kind::Symlink, target.len() as u64));
        }
        assert_errno(root.read_link(name("file")), Errno::INVAL);
        root.link(name("a"), &*root, name("e")).unwrap();
        assert_eq!(root.metadata(name("e")).unwrap().kind, Kind::Symlink);
        root.remove_file(name("a")).unwrap();
        assert_eq!(read(&*root, "file"), "content");
    }

    #[test]
    fn metadata_tells_kinds_links_and_birth() {
        let (_directory, root) = scratch();
        write(&*root, "file", "content");
        root.link(name("file"), &*root, name("second")).unwrap();
        let file = root.metadata(name("file")).unwrap();
        assert_eq!((file.kind, file.size, file.links), (Kind::File, 7, 2));
        assert_eq!(file, root.metadata(name("second")).unwrap());
        assert_eq!(file.device, root.own_metadata().unwrap().device);
        if let Some(born) = file.born {
            assert!(born <= file.changed);
        }
        assert_eq!(root.own_metadata().unwrap().kind, Kind::Dir);
        let (null, other) = (Os.open_root(Path::new("/dev")).unwrap(), Kind::Other);
        assert_eq!(null.metadata(name("null")).unwrap().kind, other);
        assert_errno(root.link(name("file"), &*root, name("second")), Errno::EXIST);
    }

    #[test]
    fn all_names_are_listed_again_and_again() {
        let (_directory, root) = scratch();
        let mut expected: Vec<Entry> = (0..1000)
            .map(|number| Entry { name: format!("file {number}").into(), kind: Kind::File })
            .collect();
        for entry in &expected {
            root.create_file(&entry.name, 0o600).unwrap();
        }
        let strange = OsStr::from_bytes(b"\xff\n..");
        root.create_dir(strange, 0o700).unwrap();
        root.create_symlink(name("link"), name("x")).unwrap();
        expected.push(Entry { name: strange.into(), kind: Kind::Dir });
        expected.push(Entry { name: "link".into(), kind: Kind::Symlink });
        expected.sort_by(|one, other| one.name.cmp(&other.name));
        for _ in 0..2 {
            let mut listed = root.list().unwrap();
            listed.sort_by(|one, other| one.name.cmp(&other.name));
            assert_eq!(listed, expected);
        }
    }

    #[test]
    fn rename_keeps_what_stands_at_the_destination() {
        let (_directory, root) = scratch();
        let other = make_dirs(&*root, "other");
        write(&*root, "one", "1");
        write(&*other, "two", "2");
        assert_errno(root.rename(name("one"), &*other, name("two")), Errno::EXIST);
        assert_eq!((read(&*root, "one"), read(&*other, "two")), ("1".into(), "2".into()));
        root.create_symlink(name("dangling"), name("missing")).unwrap();
        assert_errno(root.rename(name("one"), &*root, name("dangling")), Errno::EXIST);
        assert_errno(root.rename(name("missing"), &*other, name("new")), Errno::NOENT);

        root.rename(name("one"), &*other, name("new")).unwrap();
        assert_errno(root.metadata(name("one")), Errno::NOENT);
        other.rename_over(name("new"), &*other, name("two")).unwrap();
        assert_eq!(read(&*other, "two"), "1");
        assert_eq!(other.list().unwrap().len(), 1);
    }

    #[test]
    fn exchange_swaps_names_of_any_kind() {
        let (_directory, root) = scratch();
        let other = make_dirs(&*root, "other");
        write(&*root, "file", "1");
        write(&*other, "file", "2");
        let inodes =
            || (root.metadata(name("file")).unwrap().inode, other.metadata(name("file")).unwrap().inode);
        let before = inodes();
        if let Err(error) = root.exchange(name("file"), &*other, name("file")) {
            println!("skipped: the file system of the temporary directory cannot exchange: {error}");
            return;
        }
        assert_eq!(inodes(), (before.1, before.0));
        assert_eq!((read(&*root, "file"), read(&*other, "file")), ("2".into(), "1".into()));
        root.create_dir(name("dir"), 0o700).unwrap();
        root.exchange(name("dir"), &*other, name("file")).unwrap();
        assert_eq!(other.metadata(name("file")).unwrap().kind, Kind::Dir);
        assert_eq!(read(&*root, "dir"), "1");
        assert_errno(root.exchange(name("file"), &*root, name("missing")), Errno::NOENT);
        assert_errno(root.exchange(name("missing"), &*root, name("file")), Errno::NOENT);
    }

    #[test]
    fn removing_takes_the_right_kind() {
        let (_directory, root) = scratch();
        let dir = make_dirs(&*root, "dir");
        write(&*dir, "file", "");
        let error = root.remove_file(name("dir")).unwrap_err().raw_os_error().unwrap();
        assert!([Errno::ISDIR, Errno::PERM].map(Errno::raw_os_error).contains(&error));
        assert_errno(dir.remove_dir(name("file")), Errno::NOTDIR);
        assert_errno(root.remove_dir(name("dir")), Errno::NOTEMPTY);
        dir.remove_file(name("file")).unwrap();
        root.remove_dir(name("dir")).unwrap();
        assert_errno(root.remove_dir(name("dir")), Errno::NOENT);
        assert_errno(root.remove_file(name("dir")), Errno::NOENT);
    }

    #[test]
    fn directories_are_changed_and_synced_through_their_descriptor() {
        let (directory, root) = scratch();
        let dir = make_dirs(&*root, "dir");
        dir.set_mode(0o2711).unwrap();
        let metadata = dir.own_metadata().unwrap();
        assert_eq!(metadata.mode, 0o2711);
        dir.set_owner(metadata.uid, metadata.gid).unwrap();
        dir.sync().unwrap();
        dir.sync_filesystem().unwrap();
        let path = directory.path().join("dir");
        if rustix::fs::setxattr(&path, "user.a", b"1", rustix::fs::XattrFlags::empty()).is_ok() {
            let expected = Xattr { name: "user.a".into(), value: b"1".to_vec() };
            assert!(dir.xattrs().unwrap().contains(&expected));
        } else {
            println!("skipped: the file system of the temporary directory has no extended attributes");
        }
    }

    /// A directory held as a place, as one that may not be read is, does all that needs no reading. Root may read
    /// anything, so the place is made here rather than found.
    #[test]
    fn a_place_does_all_that_needs_no_reading() {
        let (_directory, root) = scratch();
        let dir = make_dirs(&*root, "dir");
        write(&*dir, "file", "content");
        make_dirs(&*dir, "below");
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let descriptor = resolve(own(&*root).fd(), Path::new("dir"), flags).unwrap();
        let place = OsDir { descriptor, readable: false };
        assert_eq!(place.own_metadata().unwrap(), dir.own_metadata().unwrap());
        assert_eq!(place.file_system().unwrap().name, root.file_system().unwrap().name);
        assert_eq!(place.xattrs().unwrap(), dir.xattrs().unwrap());
        assert_eq!(read(&place, "file"), "content");
        place.open_dir(Path::new("below")).unwrap();
        place.rename(name("file"), &place, name("moved")).unwrap();
        place.set_mode(0o311).unwrap();
        let metadata = dir.own_metadata().unwrap();
        assert_eq!(metadata.mode, 0o311);
        place.set_owner(metadata.uid, metadata.gid).unwrap();
        if rustix::process::geteuid().is_root() {
            println!("skipped: root may read every directory");
            return;
        }
        let place = root.open_dir(Path::new("dir")).unwrap();
        assert!(!own(&*place).readable);
        assert_errno(place.list(), Errno::ACCESS);
        assert_errno(place.sync(), Errno::ACCESS);
        place.set_mode(0o700).unwrap();
        assert_eq!(place.list().unwrap().len(), 2);
        place.sync().unwrap();
    }

    /// Without permission on the way there is no place either.
    #[test]
    fn opening_fails_where_passing_is_forbidden() {
        let attempts = std::cell::Cell::new(0);
        let opened = OsDir::open_with(|_| {
            attempts.set(attempts.get() + 1);
            Err(Errno::ACCESS)
        });
        assert_errno(opened.map(|_| ()), Errno::ACCESS);
        assert_eq!(attempts.get(), 2);
        let refused = OsDir::open_with(|_| Err(Errno::NOSYS));
        assert_errno(refused.map(|_| ()), Errno::NOSYS);
    }
}
