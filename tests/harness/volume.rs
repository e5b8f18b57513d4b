//! File systems of their own to test on: images mounted through loop devices, and copies of them as a power cut would
//! leave them.
//!
//! Two kinds of power cut: the file system is shut down in the middle of its work and mounted again, which ext4 and xfs
//! can do; or its image is copied while it is mounted, and the copy is mounted: what the kernel had not written to the
//! device is not in it. Whoever writes must be stopped meanwhile, or the copy shows several moments at once. It all
//! needs root and loop devices; where they are missing, callers print the reason and skip, unless
//! `ATOMTREE_REQUIRE_VOLUMES` is set.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A file system to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4 with the defaults of `mkfs.ext4`.
    Ext4,
    /// xfs with the defaults of `mkfs.xfs`.
    Xfs,
    /// btrfs with the defaults of `mkfs.btrfs`.
    Btrfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Its name, as `mount` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest image that `mkfs` makes one in.
    fn bytes_min(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 128 << 20,
        }
    }
}

/// The environment variable by which whoever runs the tests insists that nothing is skipped for want of root, loop devices
/// or the file systems' programs. What a kernel lacks, such as quotas or case folding, may still be skipped.
pub const REQUIRE: &str = "ATOMTREE_REQUIRE_VOLUMES";

/// Says what is skipped, and why.
///
/// # Panics
/// If [`REQUIRE`] is set.
pub fn skip(what: &str, reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, and {what} can't be tested: {reason}");
    println!("skipped: {what}: {reason}");
}

/// The volume; or nothing, said by [`skip`].
///
/// # Panics
/// As [`skip`].
pub fn or_skip(volume: Result<Volume, String>, what: &str) -> Option<Volume> {
    volume.map_err(|reason| skip(what, &reason)).ok()
}

/// A mounted image, unmounted and removed when dropped.
pub struct Volume {
    kind: Kind,
    image: PathBuf,
    mount: PathBuf,
    /// For `mount`, besides what every volume gets.
    options: &'static str,
    _scratch: TempDir,
}

impl Volume {
    /// Makes and mounts an image of at least `bytes` bytes, below `scratch` (default: the system's temporary
    /// directory). Every block of it is written once, so that its figures are not those of a sparse file.
    ///
    /// # Errors
    /// Why it can't be had here, for people.
    pub fn create(kind: Kind, bytes: u64, is_prewritten: bool) -> Result<Self, String> {
        Self::create_with(kind, bytes, is_prewritten, &[], "")
    }

    /// As [`Volume::create`], with further arguments for `mkfs` and options for `mount`, separated by commas.
    ///
    /// # Errors
    /// Why it can't be had here, for people; also what the kernel lacks for those options.
    pub fn create_with(
        kind: Kind,
        bytes: u64,
        is_prewritten: bool,
        mkfs_arguments: &[&str],
        mount_options: &'static str,
    ) -> Result<Self, String> {
        let scratch =
            tempfile::Builder::new().prefix("atomtree-volume-").tempdir().map_err(|e| e.to_string())?;
        let image = scratch.path().join("image");
        let mut file = File::create(&image).map_err(|e| e.to_string())?;
        let bytes = bytes.max(kind.bytes_min());
        if is_prewritten {
            let zeros = vec![0; 1 << 20];
            for _ in 0..bytes.div_ceil(zeros.len() as u64) {
                file.write_all(&zeros).map_err(|e| e.to_string())?;
            }
            file.sync_all().map_err(|e| e.to_string())?;
        } else {
            file.set_len(bytes).map_err(|e| e.to_string())?;
        }
        let image_arg = image.to_str().expect("temporary paths are UTF-8");
        let mkfs = format!("mkfs.{}", kind.name());
        // mkfs would discard the blocks that were just written.
        let arguments: &[&str] = match kind {
            Kind::Ext4 => &["-q", "-E", "nodiscard", image_arg],
            Kind::Xfs | Kind::Btrfs => &["-q", "-K", image_arg],
        };
        run(&mkfs, &[mkfs_arguments, arguments].concat())?;
        Self::mount(kind, image, mount_options, scratch)
    }

    fn mount(kind: Kind, image: PathBuf, options: &'static str, scratch: TempDir) -> Result<Self, String> {
        let mount = scratch.path().join("mnt");
        fs::create_dir(&mount).map_err(|e| e.to_string())?;
        let volume = Self { kind, image, mount, options, _scratch: scratch };
        volume.attach()?;
        Ok(volume)
    }

    fn attach(&self) -> Result<(), String> {
        // A copy of an xfs has its original's UUID, and both may be mounted at once.
        let mut options = if self.kind == Kind::Xfs { "loop,nouuid" } else { "loop" }.to_owned();
        if !self.options.is_empty() {
            options = format!("{options},{}", self.options);
        }
        let paths = (self.image.to_str().expect("UTF-8"), self.mount.to_str().expect("UTF-8"));
        run("mount", &["-t", self.kind.name(), "-o", &options, paths.0, paths.1])
    }

    /// Cuts the power now: nothing that is written from here on will be found again. ext4 and xfs are shut down, and
    /// whoever writes gets errors; btrfs can't be, so its image is copied, and whoever writes must be stopped.
    ///
    /// # Errors
    /// Why it can't be done.
    pub fn cut_power(&self) -> Result<(), String> {
        match self.kind {
            Kind::Ext4 | Kind::Xfs => {
                run("xfs_io", &["-x", "-c", "shutdown", self.mount.to_str().expect("UTF-8")])
            }
            Kind::Btrfs => self.copy_image(&self.cut_image()),
        }
    }

    /// Mounts the volume again after [`Volume::cut_power`]. Everything on it must be closed.
    ///
    /// # Errors
    /// Why it can't be mounted.
    pub fn mount_again(&self) -> Result<(), String> {
        run("umount", &[self.mount.to_str().expect("UTF-8")])?;
        if self.cut_image().exists() {
            fs::rename(self.cut_image(), &self.image).map_err(|error| error.to_string())?;
        }
        self.attach()
    }

    fn cut_image(&self) -> PathBuf {
        self.image.with_extension("cut")
    }

    fn copy_image(&self, to: &Path) -> Result<(), String> {
        run("cp", &["--sparse=always", self.image.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")])
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// What kind of file system it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The volume as it would be found after a power cut right now. This one goes on. Whoever writes must be stopped.
    ///
    /// # Errors
    /// Why it can't be copied or mounted; always for btrfs, of which the kernel won't mount two with one id.
    pub fn power_cut(&self) -> Result<Self, String> {
        if self.kind == Kind::Btrfs {
            return Err("two btrfs with one id can't be mounted".into());
        }
        let scratch =
            tempfile::Builder::new().prefix("atomtree-cut-").tempdir().map_err(|e| e.to_string())?;
        let image = scratch.path().join("image");
        self.copy_image(&image)?;
        Self::mount(self.kind, image, self.options, scratch)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mount = self.mount.to_str().expect("UTF-8");
        if run("umount", &[mount]).is_err() {
            let _ = run("umount", &["-l", mount]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
