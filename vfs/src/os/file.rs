//! An open regular file.
//!
//! Interrupted and short calls are continued here, so a caller sees either all of its request or an error. Syncs are
//! the exception: each is one call, whose answer is passed on as it is.

use std::any::Any;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, Mode, SeekFrom, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::{Errno, retry_on_intr};

use super::{NS_PER_SECOND, metadata_of, owner, xattr};
use crate::fork::HiddenFd;
use crate::{File, Lock, Map, Metadata, Timestamp, Xattr, map};

/// The most parts that Linux takes in one call.
const PARTS_MAX: usize = 1024;
/// What one `copy_file_range` is asked for: bounded, so that a signal is not kept waiting.
const COPY_BYTES: usize = 128 << 20;
const COPY_BUFFER_BYTES: usize = 256 << 10;

/// An open file. The descriptor is shared with the file's maps, which check through it that the file still is as long
/// as they are.
pub(super) struct OsFile {
    /// Set once forked children let go of the descriptor. Before it, so that it is dropped before that is closed.
    hidden: OnceLock<HiddenFd>,
    descriptor: Arc<OwnedFd>,
}

impl OsFile {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self { hidden: OnceLock::new(), descriptor: Arc::new(descriptor) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl File for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::pread(self.fd(), &mut *buffer, offset))?)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        for parts in parts.chunks(PARTS_MAX) {
            offset =
                write_parts(parts, offset, |parts, offset| rustix::io::pwritev(self.fd(), parts, offset))?;
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::ftruncate(self.fd(), bytes))?)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            // `fallocate` takes no empty range.
            return Ok(());
        }
        match retry_on_intr(|| rustix::fs::fallocate(self.fd(), FallocateFlags::empty(), 0, bytes)) {
            // Space can't be reserved here, but the length is still promised.
            Err(Errno::OPNOTSUPP) if self.metadata()?.size < bytes => self.set_len(bytes),
            Err(Errno::OPNOTSUPP) => Ok(()),
            allocated => Ok(allocated?),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        // Moves the descriptor's own position, which nothing else here goes by.
        Ok(retry_on_intr(|| rustix::fs::seek(self.fd(), SeekFrom::Hole(offset)))?)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Never repeated, not even when interrupted: by then a write-back error may have been taken off this
        // descriptor, and a second call would report success for pages that the device never got.
        Ok(rustix::fs::fdatasync(self.fd())?)
    }

    fn sync_all(&self) -> io::Result<()> {
        // Never repeated, as in `sync_data`.
        Ok(rustix::fs::fsync(self.fd())?)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        metadata_of(self.fd())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fchmod(self.fd(), Mode::from_raw_mode(mode)))?)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        Ok(retry_on_intr(|| rustix::fs::fchown(self.fd(), uid, gid))?)
    }

    fn set_modified(&self, time: Timestamp) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            // Rounded towards the past, so that nanoseconds stay positive before the epoch too.
            last_modification: Timespec {
                tv_sec: time.0.div_euclid(NS_PER_SECOND),
                tv_nsec: time.0.rem_euclid(NS_PER_SECOND),
            },
        };
        Ok(retry_on_intr(|| rustix::fs::futimens(self.fd(), &times))?)
    }

    fn xattrs(&self) -> io::Result<Vec<Xattr>> {
        xattr::read_all(
            |buffer| rustix::fs::flistxattr(self.fd(), buffer),
            |name, buffer| rustix::fs::fgetxattr(self.fd(), name, buffer),
        )
    }

    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fsetxattr(self.fd(), name, value, XattrFlags::empty()))?)
    }

    fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fremovexattr(self.fd(), name))?)
    }

    fn copy_from(&self, source: &dyn File) -> io::Result<u64> {
        if self.reflink_from(source) {
            return Ok(self.metadata()?.size);
        }
        // A wrapped file can only be read through its wrapper.
        let source_here = source.as_any().downcast_ref::<Self>();
        copy_rest(source, self, source_here.map_or(0, |source| copy_in_kernel(source, self)))
    }

    fn reflink_from(&self, source: &dyn File) -> bool {
        let source = source.as_any().downcast_ref::<Self>();
        source.is_some_and(|source| rustix::fs::ioctl_ficlone(self.fd(), source.fd()).is_ok())
    }

    fn drop_cache(&self) -> io::Result<bool> {
        // Length zero, to the end: a length would spare the last page unless it ended with one.
        retry_on_intr(|| rustix::fs::fadvise(self.fd(), 0, None, Advice::DontNeed))?;
        Ok(!map::any_resident(self.fd(), self.metadata()?.size)?)
    }

    fn read_ahead(&self) {
        let _ = rustix::fs::fadvise(self.fd(), 0, None, Advice::WillNeed);
    }

    fn start_write_back(&self, offset: u64, bytes: u64) {
        // Dirty pages are sent on their way; those that are clean by the end of the call are dropped from the cache, which few
        // are. `sync_file_range` would say it more plainly, but rustix does not wrap it, and it took as long (DESIGN.md). No
        // bytes would mean all.
        if bytes == 0 {
            return;
        }
        let _ = rustix::fs::fadvise(self.fd(), offset, NonZeroU64::new(bytes), Advice::DontNeed);
    }

    fn wait_for_lock(&self, lock: Lock) -> io::Result<()> {
        let operation = match lock {
            Lock::Shared => FlockOperation::LockShared,
            Lock::Exclusive => FlockOperation::LockExclusive,
        };
        Ok(retry_on_intr(|| rustix::fs::flock(self.fd(), operation))?)
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let operation = match lock {
            Lock::Shared => FlockOperation::NonBlockingLockShared,
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match retry_on_intr(|| rustix::fs::flock(self.fd(), operation)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::flock(self.fd(), FlockOperation::NonBlockingUnlock))?)
    }

    fn hide_from_forks(&self) -> io::Result<()> {
        if self.hidden.get().is_none() {
            let _ = self.hidden.set(HiddenFd::new(self.fd())?);
        }
        Ok(())
    }

    fn map(&self) -> io::Result<Arc<dyn Map>> {
        Ok(Arc::new(map::FileMap::new(&self.descriptor, self.metadata()?.size)?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Writes all of at most [`PARTS_MAX`] parts through `write`, and returns the offset after them.
fn write_parts(
    parts: &[IoSlice<'_>],
    mut offset: u64,
    write: impl Fn(&[IoSlice<'_>], u64) -> rustix::io::Result<usize>,
) -> io::Result<u64> {
    let mut left: usize = parts.iter().map(|part| part.len()).sum();
    let mut rest = Vec::new();
    while left > 0 {
        // Nearly always all is written by the first call; the parts are copied only to go on after a short one.
        let written = retry_on_intr(|| write(if rest.is_empty() { parts } else { &rest }, offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        left -= written;
        if left > 0 {
            if rest.is_empty() {
                rest = parts.to_vec();
            }
            let mut slices = &mut rest[..];
            IoSlice::advance_slices(&mut slices, written);
            rest = slices.to_vec();
        }
    }
    Ok(offset)
}

/// Copies from the start as far as the kernel does it, and returns how far that was. Errors are left for the reads
/// and writes that follow to find, as many only say that it cannot be done this way.
fn copy_in_kernel(source: &OsFile, target: &OsFile) -> u64 {
    let mut copied = 0;
    loop {
        let (mut from, mut to) = (copied, copied);
        let range = (Some(&mut from), Some(&mut to));
        match rustix::fs::copy_file_range(source.fd(), range.0, target.fd(), range.1, COPY_BYTES) {
            // The end, or a file system that does not know the end: reading decides.
            Ok(0) => return copied,
            Ok(bytes) => copied += bytes as u64,
            Err(Errno::INTR) => {}
            Err(_) => return copied,
        }
    }
}

/// Copies from `copied` to the end by reading and writing, and returns the length of the whole.
fn copy_rest(source: &dyn File, target: &OsFile, mut copied: u64) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        let read = source.read_at(&mut buffer, copied)?;
        if read == 0 {
            return Ok(copied);
        }
        target.write_at(&[IoSlice::new(&buffer[..read])], copied)?;
        copied += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::tests::{assert_errno, scratch};
    use crate::{Access, Dir};
    use std::cell::RefCell;
    use std::time::{Duration, Instant};

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn file_with(root: &dyn Dir, file: &str, content: &[u8]) -> Arc<dyn File> {
        let file = root.create_file(name(file), 0o600).unwrap();
        file.write_at(&[IoSlice::new(content)], 0).unwrap();
        file
    }

    /// Bytes without a period that a page or a buffer would hide.
    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn writes_more_parts_than_one_call_takes() {
        let (_directory, root) = scratch();
        let file = root.create_file(name("file"), 0o600).unwrap();
        let content = pattern(3000 * 7);
        let mut parts: Vec<IoSlice<'_>> = content.chunks(7).map(IoSlice::new).collect();
        parts.insert(1500, IoSlice::new(&[]));
        file.write_at(&parts, 5).unwrap();
        file.write_at(&[], 1 << 40).unwrap();
        file.write_at(&[IoSlice::new(&[])], 1 << 40).unwrap();
        let read = file.read_all(1 << 20).unwrap();
        assert_eq!(read[..5], [0; 5]);
        assert_eq!(read[5..], content);
        assert_eq!(file.read_at(&mut [0; 8], 1 << 40).unwrap(), 0);
    }

    /// Every mixture of short and interrupted writes ends with all parts written in order.
    #[test]
    fn short_and_interrupted_writes_are_continued() {
        let content = pattern(100);
        let parts: Vec<IoSlice<'_>> = content.chunks(9).map(IoSlice::new).collect();
        for step in 1..=100 {
            let (written, interrupted) = (RefCell::new(Vec::<u8>::new()), RefCell::new(false));
            let end = write_parts(&parts, 40, |parts, offset| {
                if !interrupted.replace_with(|interrupted| !*interrupted) {
                    return Err(Errno::INTR);
                }
                let mut written = written.borrow_mut();
                assert_eq!(offset, 40 + written.len() as u64);
                let before = written.len();
                written.extend(parts.iter().flat_map(|part| part.iter()).take(step));
                Ok(written.len() - before)
            });
            assert_eq!(end.unwrap(), 140);
            assert_eq!(*written.borrow(), content, "{step} bytes at a time");
        }
        let stuck = write_parts(&parts, 0, |_, _| Ok(0));
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::WriteZero);
        assert_errno(write_parts(&parts, 0, |_, _| Err(Errno::NOSPC)), Errno::NOSPC);
    }

    #[test]
    fn offsets_beyond_four_gibibytes_are_kept() {
        let (_directory, root) = scratch();
        let file = root.create_file(name("file"), 0o600).unwrap();
        let far = (1 << 33) + 3;
        file.write_at(&[IoSlice::new(b"far")], far).unwrap();
        assert_eq!(file.metadata().unwrap().size, far + 3);
        let mut read = [0; 3];
        file.read_exact_at(&mut read, far).unwrap();
        assert_eq!(&read, b"far");
        assert_eq!(&*file.map().unwrap().read(far as usize..far as usize + 3).unwrap(), b"far");
    }

    #[test]
    fn allocating_extends_and_never_shortens() {
        let (_directory, root) = scratch();
        let file = file_with(&*root, "file", b"content");
        file.allocate(0).unwrap();
        file.allocate(3).unwrap();
        assert_eq!(file.metadata().unwrap().size, 7);
        file.allocate(5000).unwrap();
        assert_eq!(file.metadata().unwrap().size, 5000);
        let content = file.read_all(5000).unwrap();
        assert_eq!(&content[..7], b"content");
        assert!(content[7..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn metadata_is_set_on_the_inode() {
        let (_directory, root) = scratch();
        let file = file_with(&*root, "file", b"content");
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        file.set_mode(0o4751).unwrap();
        for time in [Timestamp(1_234_567_890_123_456_789), Timestamp(-1), Timestamp(0)] {
            file.set_modified(time).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.mode, metadata.modified), (0o4751, time));
            assert_eq!(metadata, root.metadata(name("file")).unwrap());
        }
        let metadata = file.metadata().unwrap();
        file.set_owner(metadata.uid, metadata.gid).unwrap();
        assert_errno(file.set_owner(u32::MAX, metadata.gid), Errno::INVAL);
        if rustix::process::geteuid().is_root() {
            file.set_owner(4711, 4712).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.uid, metadata.gid), (4711, 4712));
        }
    }

    #[test]
    fn xattrs_come_back_sorted() {
        let (_directory, root) = scratch();
        let file = file_with(&*root, "file", b"");
        // Longer than the first buffer, but shorter than ext4's block.
        let long = pattern(2000);
        if let Err(error) = file.set_xattr(name("user.b"), &long) {
            assert_eq!(error.raw_os_error(), Some(Errno::NOTSUP.raw_os_error()), "{error}");
            println!("skipped: the file system of the temporary directory has no extended attributes");
            return;
        }
        file.set_xattr(name("user.c"), b"").unwrap();
        file.set_xattr(name("user.a"), b"old").unwrap();
        file.set_xattr(name("user.a"), &[0, 1, 0]).unwrap();
        let user = |xattrs: Vec<Xattr>| -> Vec<Xattr> {
            xattrs.into_iter().filter(|xattr| xattr.name.to_string_lossy().starts_with("user.")).collect()
        };
        let expected = [
            Xattr { name: "user.a".into(), value: vec![0, 1, 0] },
            Xattr { name: "user.b".into(), value: long },
            Xattr { name: "user.c".into(), value: Vec::new() },
        ];
        assert_eq!(user(file.xattrs().unwrap()), expected);
        file.remove_xattr(name("user.b")).unwrap();
        assert_errno(file.remove_xattr(name("user.b")), Errno::NODATA);
        assert_eq!(user(file.xattrs().unwrap()).len(), 2);
    }

    /// An ACL travels as an attribute: set on one file, read back, set on another.
    #[test]
    fn acls_are_attributes() {
        let (_directory, root) = scratch();
        // Version 2; then tag, permissions and id of: owner, user 4711, group, mask, other.
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1_u16, 6_u16, !0_u32), (2, 4, 4711), (4, 4, !0), (16, 4, !0), (32, 0, !0)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        let access = name("system.posix_acl_access");
        let file = file_with(&*root, "file", b"");
        if file.set_xattr(access, &acl).is_err() {
            println!("skipped: the file system of the temporary directory has no ACLs");
            return;
        }
        let expected = Xattr { name: access.into(), value: acl };
        assert!(file.xattrs().unwrap().contains(&expected));
        let copy = file_with(&*root, "copy", b"");
        copy.set_xattr(access, &expected.value).unwrap();
        assert_eq!(copy.xattrs().unwrap(), file.xattrs().unwrap());
        assert_eq!(copy.metadata().unwrap().mode, 0o640);
    }

    /// All ways to copy give the same content: through the kernel, and by reading and writing, from the start and
    /// from within; with a hole, and empty.
    #[test]
    fn copies_are_exact() {
        let (_directory, root) = scratch();
        let source = root.create_file(name("source"), 0o600).unwrap();
        let content = pattern(700_001);
        source.write_at(&[IoSlice::new(&content)], 0).unwrap();
        source.write_at(&[IoSlice::new(b"end")], 3_000_000).unwrap();
        let expected = source.read_all(1 << 30).unwrap();
        assert_eq!(expected.len(), 3_000_003);

        let copy = root.create_file(name("copy"), 0o600).unwrap();
        assert_eq!(copy.copy_from(&*source).unwrap(), 3_000_003);
        assert_eq!(copy.read_all(1 << 30).unwrap(), expected);

        let own = |file: &Arc<dyn File>| OsFile {
            hidden: OnceLock::new(),
            descriptor: file.as_any().downcast_ref::<OsFile>().unwrap().descriptor.clone(),
        };
        let copy = root.create_file(name("kernel"), 0o600).unwrap();
        let copied = copy_in_kernel(&own(&source), &own(&copy));
        assert_eq!(copy.read_all(1 << 30).unwrap(), expected[..copied as usize]);

        let copy = root.create_file(name("buffer"), 0o600).unwrap();
        assert_eq!(copy_rest(&*source, &own(&copy), 0).unwrap(), 3_000_003);
        assert_eq!(copy.read_all(1 << 30).unwrap(), expected);

        let empty = root.create_file(name("empty"), 0o600).unwrap();
        let copy = root.create_file(name("empty copy"), 0o600).unwrap();
        assert_eq!(copy.copy_from(&*empty).unwrap(), 0);
    }

    /// Clean pages go, mapped ones stay and are reported.
    #[test]
    fn dropping_the_cache_tells_what_stays() {
        let (_directory, root) = scratch();
        let file = root.create_file(name("file"), 0o600).unwrap();
        assert!(file.drop_cache().unwrap(), "an empty file has nothing cached");
        let content = pattern(1_000_001);
        file.write_at(&[IoSlice::new(&content)], 0).unwrap();
        file.sync_all().unwrap();
        if root.file_system().unwrap().name == "tmpfs" {
            assert!(!file.drop_cache().unwrap());
            println!("skipped: the temporary directory is kept in memory");
            return;
        }
        assert!(file.drop_cache().unwrap());
        assert_eq!(file.read_all(1 << 30).unwrap(), content);
        assert!(file.drop_cache().unwrap());

        let map = file.map().unwrap();
        assert_eq!(*map.read(0..1000).unwrap(), content[..1000]);
        assert!(!file.drop_cache().unwrap(), "a mapped page cannot be dropped");
        drop(map);
        assert!(file.drop_cache().unwrap());
    }

    #[test]
    fn locks_belong_to_the_open_file() {
        let (_directory, root) = scratch();
        let first = root.create_file(name("lock"), 0o600).unwrap();
        let open = || root.open_file(name("lock"), Access::Read).unwrap();
        let (second, third) = (open(), open());
        assert!(first.try_lock(Lock::Exclusive).unwrap());
        assert!(!second.try_lock(Lock::Exclusive).unwrap());
        assert!(!second.try_lock(Lock::Shared).unwrap());
        first.unlock().unwrap();
        assert!(second.try_lock(Lock::Shared).unwrap());
        assert!(third.try_lock(Lock::Shared).unwrap());
        assert!(!first.try_lock(Lock::Exclusive).unwrap());
        drop((second, third));
        // A child that another test is just starting holds copies of all descriptors until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !first.try_lock(Lock::Exclusive).unwrap() {
            assert!(Instant::now() < deadline, "closed files keep their locks");
        }
    }
}
