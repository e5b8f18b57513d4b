//! The block device under a directory, for what was written to it and how often it was flushed.

use std::fs;
use std::ops::Sub;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The device's counters in `/sys`.
pub struct Device(Option<PathBuf>);

/// What a device has done, since it exists or between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Flushes of its cache.
    pub flushes: u64,
    /// Bytes written.
    pub bytes: u64,
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { flushes: self.flushes - earlier.flushes, bytes: self.bytes - earlier.bytes }
    }
}

impl Device {
    /// The device that the directory's file system is on.
    pub fn under(dir: &Path) -> Self {
        Self(counters(dir))
    }

    /// What it has done so far; nothing if there is no such device, as under tmpfs and overlayfs.
    pub fn work(&self) -> Option<Work> {
        let text = fs::read_to_string(self.0.as_ref()?).ok()?;
        let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
        // Documentation/block/stat.rst: sectors of 512 bytes written, and flushes.
        Some(Work { flushes: *fields.get(15)?, bytes: *fields.get(6)? * 512 })
    }
}

fn counters(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.st_dev();
    // btrfs gives its files a device number of its own; then the mount tells the device.
    let device = stat_file(device)
        .map_or_else(|| fs::metadata(source(dir)?).ok().map(|m| m.st_rdev()), |_| Some(device))?;
    let path = stat_file(device)?;
    // A partition's own counters leave flushes out.
    let whole = path.canonicalize().ok()?;
    let is_partition = whole.with_file_name("partition").exists();
    Some(if is_partition { whole.parent()?.parent()?.join("stat") } else { whole })
}

fn stat_file(device: u64) -> Option<PathBuf> {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
    path.exists().then_some(path)
}

/// What is mounted where `dir` lies.
fn source(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mount_point = PathBuf::from(before.split(' ').nth(4)?);
        let source = PathBuf::from(after.split(' ').nth(1)?);
        dir.starts_with(&mount_point).then_some((mount_point, source))
    };
    // The longest wins; of two mounts on one directory the later.
    mounts
        .lines()
        .filter_map(of_line)
        .max_by_key(|(mount_point, _)| mount_point.components().count())
        .map(|(_, source)| source)
}
