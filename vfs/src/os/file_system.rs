//! Describes the file system under a directory: its name, what is free, and why atomtree's promises may not hold.
//!
//! Durability is promised on ext4, xfs and btrfs as they are mounted by default. What speaks against it is collected
//! from the mount's options and, for ext4, from what the driver says of itself; what cannot be found out is said too.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::Dev;
use rustix::io::retry_on_intr;

use crate::FileSystem;

/// Where a file system keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On a device of this machine, on one of the file systems that the promise names.
    Promised,
    /// On a device of this machine.
    Device,
    Memory,
    /// On another machine, or in a user's process.
    Remote,
}

use Place::{Device, Memory, Promised, Remote};

/// File systems by the magic number that `fstatfs` gives.
const KNOWN: &[(u32, &str, Place)] = &[
    (0xef53, "ext4", Promised),
    (0x5846_5342, "xfs", Promised),
    (0x9123_683e, "btrfs", Promised),
    (0xf2f5_2010, "f2fs", Device),
    (0xca45_1a4e, "bcachefs", Device),
    (0x2fc1_2fc1, "zfs", Device),
    (0x3153_464a, "jfs", Device),
    (0x5265_4973, "reiserfs", Device),
    (0x3434, "nilfs2", Device),
    (0x4d44, "vfat", Device),
    (0x2011_bab0, "exfat", Device),
    (0x5346_544e, "ntfs", Device),
    (0x7366_746e, "ntfs3", Device),
    (0x482b, "hfsplus", Device),
    (0x1501_3346, "udf", Device),
    (0xf15f, "ecryptfs", Device),
    (0x794c_7630, "overlayfs", Device),
    (0x0102_1994, "tmpfs", Memory),
    (0x8584_58f6, "ramfs", Memory),
    (0x6969, "nfs", Remote),
    (0x517b, "smb", Remote),
    (0xff53_4d42, "cifs", Remote),
    (0xfe53_4d42, "smb2", Remote),
    // virtiofs answers with this number too.
    (0x6573_5546, "fuse", Remote),
    (0x0102_1997, "9p", Remote),
    (0x5346_414f, "afs", Remote),
    (0x6b41_4653, "afs", Remote),
    (0x00c3_6400, "ceph", Remote),
    (0x7375_7245, "coda", Remote),
    (0x786f_4256, "vboxsf", Remote),
    (0x0bd0_0bd0, "lustre", Remote),
    (0x4750_4653, "gpfs", Remote),
    (0x2003_0528, "orangefs", Remote),
    // Shared disks: local ones, but other machines write them too, and locks may end at this one.
    (0x0116_1970, "gfs2", Remote),
    (0x7461_636f, "ocfs2", Remote),
];

pub(super) fn describe(directory: BorrowedFd<'_>) -> io::Result<FileSystem> {
    let space = retry_on_intr(|| rustix::fs::fstatfs(directory))?;
    let metadata = super::metadata_of(directory)?;
    let magic = space.f_type.cast_unsigned() as u32;
    let known = KNOWN.iter().find(|known| known.0 == magic);
    // A mount that is not listed (another namespace, a changed root) has no options to tell.
    let mount = fs::read("/proc/self/mountinfo").ok().and_then(|text| Mount::find(&text, metadata.mount));
    let mut mount = mount.unwrap_or_default();

    let mut name = known.map_or_else(|| format!("{magic:#x}"), |known| known.1.to_owned());
    let mut journal = None;
    if name == "ext4" {
        // Its driver serves all three generations under one number.
        if matches!(mount.file_system.as_str(), "ext2" | "ext3") {
            name.clone_from(&mount.file_system);
        }
        let driver = Ext4::ask(metadata.device);
        journal = driver.journal;
        mount.options.extend(driver.options);
    }

    let place = known.map_or(Device, |known| known.2);
    Ok(FileSystem {
        caveat: caveat(&name, place, journal, &mount.options),
        name,
        remote: place == Remote,
        available_bytes: space.f_bavail.saturating_mul(block_bytes(space.f_frsize, space.f_bsize)),
    })
}

/// The unit that free space is counted in; some file systems leave the fragment size at zero.
fn block_bytes(fragment: i64, block: i64) -> u64 {
    u64::try_from(if fragment == 0 { block } else { fragment }).unwrap_or(0)
}

/// What speaks against relying on this file system, if anything does.
fn caveat(name: &str, place: Place, journal: Option<bool>, options: &[String]) -> Option<String> {
    let has = |option: &str| options.iter().any(|found| found == option);
    let mut caveats: Vec<&str> = Vec::new();
    match (place, name) {
        (Promised, "ext2" | "ext3" | "ext4") => match journal {
            Some(true) => {}
            Some(false) => caveats.push("mounted without a journal: a power cut can lose or mix up names"),
            None => caveats.push("whether there is a journal cannot be read from /sys/fs/ext4"),
        },
        (Promised, _) => {}
        (Device, "overlayfs") => {
            caveats.push("errors and durability of the layer beneath are passed on in part only");
        }
        (Device, _) => caveats.push("durability is promised on ext4, xfs and btrfs only"),
        (Memory, _) => caveats.push("kept in memory only: nothing survives power loss"),
        (Remote, _) => {
            caveats.push("kept by another machine or process, which may lose what it has confirmed");
        }
    }
    if has("nobarrier") || has("barrier=0") {
        caveats.push("mounted with nobarrier: the device's cache is not flushed by a sync");
    }
    if has("data=writeback") {
        caveats.push("mounted with data=writeback: a file may show stale blocks after a power cut");
    }
    if has("noload") || has("norecovery") {
        caveats.push("mounted without journal recovery: what a power cut left is not repaired");
    }
    if has("volatile") {
        caveats.push("mounted volatile: syncs are ignored");
    }
    (!caveats.is_empty()).then(|| caveats.join("; "))
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mount {
    file_system: String,
    /// Options of the mount, then of the file system.
    options: Vec<String>,
}

impl Mount {
    fn find(mountinfo: &[u8], id: u64) -> Option<Self> {
        // Paths escape blanks, so blanks separate; they may hold bytes that are no UTF-8, but are not looked at.
        let mountinfo = String::from_utf8_lossy(mountinfo);
        let id = id.to_string();
        let line = mountinfo.lines().find(|line| line.split(' ').next() == Some(&id))?;
        // id parent major:minor root point options [tags ...] - file-system source super-options
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let name = file_system.next()?.to_owned();
        let lists = [mount.split(' ').nth(5)?, file_system.nth(1)?];
        let options = lists.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
        Some(Self { file_system: name, options })
    }
}

/// What the driver of ext2, ext3 and ext4 says of one mounted device.
#[derive(Debug, Default)]
struct Ext4 {
    /// Whether a journal is in use; `None` if it cannot be read, as in some containers.
    journal: Option<bool>,
    /// All options in force: mountinfo leaves out those that are defaults in the superblock, `nobarrier` included.
    options: Vec<String>,
}

impl Ext4 {
    fn ask(device: Dev) -> Self {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let Ok(link) = fs::read_link(format!("/sys/dev/block/{major}:{minor}")) else {
            return Self::default();
        };
        let Some(name) = link.file_name().and_then(|name| name.to_str()) else {
            return Self::default();
        };
        let options = fs::read_to_string(format!("/proc/fs/ext4/{name}/options")).unwrap_or_default();
        Self {
            // The pid of the thread that writes the journal, or `<none>`: without one, and where it is not loaded.
            journal: fs::read_to_string(format!("/sys/fs/ext4/{name}/journal_task"))
                .ok()
                .map(|task| task.trim() != "<none>"),
            options: options.lines().map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vfs;
    use crate::os::Os;
    use crate::os::tests::scratch;
    use std::path::Path;
    use std::process::Command;

    const MOUNTINFO: &[u8] = b"27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n\
        128 27 7:0 / /a\\040b ro,noatime - btrfs /dev/loop0 rw,nobarrier,subvol=/\n\
        28 27 7:1 / /\xff rw master:2 propagate_from:3 - xfs /dev/loop1 rw\n\
        29 27 7:1 / /broken rw\n";

    #[test]
    fn mounts_are_found_by_id() {
        let mount = |file_system: &str, options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            Some(Mount { file_system: file_system.to_owned(), options })
        };
        assert_eq!(Mount::find(MOUNTINFO, 27), mount("ext4", &["rw", "relatime", "rw", "discard"]));
        let expected = mount("btrfs", &["ro", "noatime", "rw", "nobarrier", "subvol=/"]);
        assert_eq!(Mount::find(MOUNTINFO, 128), expected);
        assert_eq!(Mount::find(MOUNTINFO, 28), mount("xfs", &["rw", "rw"]));
        for missing in [1, 2, 12, 29] {
            assert_eq!(Mount::find(MOUNTINFO, missing), None, "mount {missing}");
        }
    }

    #[test]
    fn promised_file_systems_have_no_caveat_by_default() {
        let options = ["rw".to_owned(), "barrier".to_owned(), "data=ordered".to_owned()];
        assert_eq!(caveat("ext4", Promised, Some(true), &options), None);
        assert_eq!(caveat("xfs", Promised, None, &options), None);
        assert_eq!(caveat("btrfs", Promised, None, &options), None);
        for (name, place, journal) in [
            ("ext4", Promised, Some(false)),
            ("ext4", Promised, None),
            ("tmpfs", Memory, None),
            ("nfs", Remote, None),
            ("overlayfs", Device, None),
            ("0x1", Device, None),
        ] {
            assert!(caveat(name, place, journal, &options).is_some(), "{name}");
        }
        for option in ["nobarrier", "barrier=0", "data=writeback", "noload", "norecovery", "volatile"] {
            assert!(caveat("ext4", Promised, Some(true), &[option.to_owned()]).is_some(), "{option}");
        }
    }

    #[test]
    fn magic_numbers_are_listed_once() {
        for (index, known) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..index].iter().all(|other| other.0 != known.0), "{}", known.1);
        }
    }

    /// Compares with what coreutils finds out by other means.
    #[test]
    fn description_agrees_with_stat() {
        let (directory, root) = scratch();
        let output =
            Command::new("stat").args(["-f", "-c", "%T %c %d"]).arg(directory.path()).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let [name, inodes, inodes_free] = output.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{output}");
        };
        let found = root.file_system().unwrap();
        assert!(found.available_bytes > 0);
        let available = root.available_inodes().unwrap();
        assert_eq!(available.is_some(), inodes != "0");
        if let Some(available) = available {
            // Other tests create files at the same time.
            assert!(available.abs_diff(inodes_free.parse().unwrap()) < 100_000);
        }
        // `stat` knows the ext generations as one.
        assert!(
            name == found.name || (name == "ext2/ext3" && found.name.starts_with("ext")),
            "{name} {found:?}"
        );
    }

    #[test]
    fn memory_only_is_said() {
        let Ok(root) = Os.open_root(Path::new("/dev/shm")) else {
            println!("skipped: there is no /dev/shm");
            return;
        };
        let found = root.file_system().unwrap();
        assert_eq!((found.name.as_str(), found.remote), ("tmpfs", false));
        assert!(found.caveat.unwrap().contains("memory"));
    }

    /// Goal: a journal that is missing, or options that break the promise, are noticed on a real ext4, those in the
    /// superblock included. Method: loop mounts, taken down before anything is compared.
    #[test]
    fn ext4_without_a_journal_is_noticed() {
        let directory = tempfile::TempDir::new().unwrap();
        for (features, superblock, mount, expected) in [
            ("has_journal", "", "rw", None),
            ("^has_journal", "", "rw", Some("without a journal")),
            ("has_journal", "", "nobarrier", Some("nobarrier")),
            ("has_journal", "nobarrier", "rw", Some("nobarrier")),
            ("has_journal", "journal_data_writeback", "rw", Some("data=writeback")),
            ("has_journal", "", "ro,noload", Some("journal recovery")),
        ] {
            let script = format!(
                "set -e; cd '{}'; rm -rf image point; mkdir point; truncate -s 32M image
                 mkfs.ext4 -q -F -O {features} image; [ -z '{superblock}' ] || tune2fs -o '{superblock}' image >&2
                 mount -o loop,{mount} image point",
                directory.path().display()
            );
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            if !output.status.success() {
                let reason = String::from_utf8_lossy(&output.stderr);
                println!("skipped: needs root, loop devices and mkfs.ext4: {reason}");
                return;
            }
            let point = directory.path().join("point");
            let found = Os.open_root(&point).and_then(|root| root.file_system());
            assert!(Command::new("umount").arg(&point).status().unwrap().success());
            let found = found.unwrap();
            assert_eq!(found.name, "ext4");
            match expected {
                None => assert_eq!(found.caveat, None),
                Some(part) => {
                    assert!(found.caveat.as_ref().is_some_and(|text| text.contains(part)), "{found:?}");
                }
            }
        }
    }
}
