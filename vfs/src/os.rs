//! The storage, clock and randomness of the Linux machine this runs on.
//!
//! One module for each part: `dir` and `file` hold the verbs, `xattr` reads extended attributes, `file_system`
//! says what may be expected of a mount, `process` tells processes apart, and `command` ends those of a command. Everything is
//! reached from an open descriptor; only a root is opened by path. Nothing here retries a failed sync, keeps a
//! cache of what another process can change, or sets process-wide state.

pub mod command;
mod dir;
mod file;
mod file_system;
mod process;
mod xattr;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Dev, FileType, Gid, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Uid};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::GetRandomFlags;
use rustix::time::{ClockId, Timespec};

use crate::{Command, Dir, Identity, Kind, Metadata, ProcessIdentity, Timestamp, Vfs, fork};

const NS_PER_SECOND: i64 = 1_000_000_000;

/// The operating system: Linux 5.8 or later, for `openat2` and mount ids, with `/proc` mounted. Memory maps are read
/// without a copy from 5.14 on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

impl Vfs for Os {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(dir::open_root(path)?))
    }

    fn now(&self) -> Timestamp {
        timestamp(rustix::time::clock_gettime(ClockId::Realtime))
    }

    fn timestamp_granularity_ns(&self) -> i64 {
        static GRANULARITY_NS: OnceLock<i64> = OnceLock::new();
        // File systems stamp with the clock of the last timer tick. Doubled, because the tick itself can be late.
        *GRANULARITY_NS.get_or_init(|| {
            timestamp(rustix::time::clock_getres(ClockId::RealtimeCoarse)).0.saturating_mul(2)
        })
    }

    fn random(&self) -> io::Result<u128> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            filled +=
                retry_on_intr(|| rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
        }
        Ok(u128::from_ne_bytes(bytes))
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: process::umask()?,
        })
    }

    fn process(&self) -> io::Result<ProcessIdentity> {
        process::identify(std::process::id())
    }

    fn fork_generation(&self) -> u64 {
        fork::generation()
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        process::is_alive(process)
    }

    fn end_command(&self, command: &Command) -> io::Result<Vec<ProcessIdentity>> {
        command::end(command, &[])
    }
}

/// The name, if it is a single normal component.
///
/// The `*at` calls would resolve `a/b` and `..` as happily as a name, symlinks included, so this check is what keeps
/// them inside the directory.
fn component(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    let normal = !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/');
    debug_assert!(normal, "{} is no single component", name.display());
    if normal { Ok(name) } else { Err(Errno::INVAL.into()) }
}

/// The path of an open descriptor, for the calls that take no descriptor or none opened with `O_PATH`. It names the
/// inode itself: no name in the tree is resolved.
fn descriptor_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Metadata of what a descriptor refers to.
fn metadata_of(descriptor: BorrowedFd<'_>) -> io::Result<Metadata> {
    metadata_at(descriptor, OsStr::new(""), AtFlags::EMPTY_PATH)
}

fn metadata_at(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> io::Result<Metadata> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    metadata(&retry_on_intr(|| rustix::fs::statx(dir, name, flags, wanted))?)
}

fn metadata(stat: &Statx) -> io::Result<Metadata> {
    let known = StatxFlags::from_bits_retain(stat.stx_mask);
    if !known.contains(StatxFlags::MNT_ID) {
        // Without mount ids every mount would look like the store's own, and a boundary would be found only by the
        // rename that fails at it, after the commit point.
        return Err(Errno::NOSYS.into());
    }
    Ok(Metadata {
        kind: kind(FileType::from_raw_mode(stat.stx_mode.into())),
        inode: stat.stx_ino,
        device: device(stat),
        mount: stat.stx_mnt_id,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        links: stat.stx_nlink.into(),
        is_fixed: stat.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        is_sparse: stat.stx_blocks.saturating_mul(512) < stat.stx_size,
        size: stat.stx_size,
        modified: file_time(&stat.stx_mtime),
        changed: file_time(&stat.stx_ctime),
        born: known.contains(StatxFlags::BTIME).then(|| file_time(&stat.stx_btime)),
    })
}

fn device(stat: &Statx) -> Dev {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

fn file_time(time: &StatxTimestamp) -> Timestamp {
    Timestamp(time.tv_sec.saturating_mul(NS_PER_SECOND).saturating_add(time.tv_nsec.into()))
}

fn timestamp(time: Timespec) -> Timestamp {
    Timestamp(time.tv_sec.saturating_mul(NS_PER_SECOND).saturating_add(time.tv_nsec))
}

/// User and group as `chown` takes them. The highest number is none: to `chown` it means "leave as it is", and a
/// caller who passes it on from a damaged record must not be told that it was set.
fn owner(uid: u32, gid: u32) -> io::Result<(Option<Uid>, Option<Gid>)> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL.into());
    }
    Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A temporary directory, and the same as a root.
    pub(super) fn scratch() -> (TempDir, Arc<dyn Dir>) {
        let directory = TempDir::new().unwrap();
        let root = Os.open_root(directory.path()).unwrap();
        (directory, root)
    }

    /// Checks that a call failed with this error number.
    #[track_caller]
    pub(super) fn assert_errno<T>(result: io::Result<T>, expected: Errno) {
        let error = result.err().expect("the call fails");
        assert_eq!(error.raw_os_error(), Some(expected.raw_os_error()), "{error}");
    }

    #[test]
    fn clock_and_file_times_agree_within_the_granularity() {
        let (_directory, root) = scratch();
        let granularity = Os.timestamp_granularity_ns();
        assert!((1_000_000..=40_000_000).contains(&granularity), "{granularity} ns");
        let before = Os.now();
        let file = root.create_file(OsStr::new("file"), 0o600).unwrap();
        let after = Os.now();
        let modified = file.metadata().unwrap().modified;
        assert!(modified.plus_ns(granularity) >= before && modified <= after, "{modified:?}");
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(Os.random().unwrap(), Os.random().unwrap());
    }

    #[test]
    fn identity_is_what_a_child_is_told() {
        let shell = |command| {
            let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let identity = Os.identity().unwrap();
        assert_eq!(identity.umask, u32::from_str_radix(&shell("umask"), 8).unwrap());
        assert_eq!(identity.uid.to_string(), shell("id -u"));
        assert_eq!(identity.gid.to_string(), shell("id -g"));
    }

    /// Every name that is no single component is refused, by an assertion in debug builds and `EINVAL` in others.
    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/a", "a/", "../a"] {
            let checked = std::panic::catch_unwind(|| component(OsStr::new(name)).map(OsStr::to_owned));
            assert_eq!(checked.is_err(), cfg!(debug_assertions), "{name:?}");
            if let Ok(result) = checked {
                assert_errno(result, Errno::INVAL);
            }
        }
        for name in ["a", "...", "..a", ".atomtree", "a b", "\u{e4}"] {
            assert_eq!(component(OsStr::new(name)).unwrap(), name);
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_order() {
        let file = |sec, nsec| timestamp(Timespec { tv_sec: sec, tv_nsec: nsec }).0;
        assert_eq!(file(-1, 999_999_999), -1);
        assert_eq!(file(-2, 0), -2 * NS_PER_SECOND);
        assert_eq!(file(i64::MAX, 0), i64::MAX);
    }

    #[test]
    fn the_number_that_means_no_change_is_no_owner() {
        assert_errno(owner(u32::MAX, 0), Errno::INVAL);
        assert_errno(owner(0, u32::MAX), Errno::INVAL);
        assert!(owner(0, 0).is_ok());
    }
}
