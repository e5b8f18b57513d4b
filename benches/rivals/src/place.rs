//! Where it is measured: a volume of one's own, or a directory that is given.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use atomtree_tests::device::Device;
use atomtree_tests::volume::{Kind, Volume};
use rustix::fs::{statvfs, syncfs};
use tempfile::TempDir;

use crate::failure::{Failure, On};

/// A directory that is ours alone, and the device under it.
pub struct Place {
    root: PathBuf,
    handle: File,
    device: Device,
    description: String,
    // What is dropped last: unmounts, or removes.
    _home: Home,
}

enum Home {
    Volume { _mounted: Volume },
    Scratch { _dir: TempDir },
}

impl Place {
    /// Makes a file system of `bytes` bytes in a loop device, every block of it written.
    ///
    /// # Errors
    /// If there is no root, no loop device or no `mkfs`: give a directory instead.
    pub fn of_kind(kind: Kind, bytes: u64) -> Result<Self, Failure> {
        let volume = Volume::create(kind, bytes, true).map_err(|reason| {
            let remedy =
                "run as root with the file system's programs installed, or give a directory with --volume";
            Failure::new("make a volume of kind", kind.name(), format!("{reason}; {remedy}"))
        })?;
        let description = format!("{}, defaults, {} GiB in a loop device", kind.name(), bytes >> 30);
        Self::at(volume.path().to_owned(), description, Home::Volume { _mounted: volume })
    }

    /// Takes a directory of its own below `dir`, on whose file system `bytes` bytes must be free.
    ///
    /// # Errors
    /// If it can't be written to, or there is too little room.
    pub fn in_dir(dir: &Path, bytes: u64) -> Result<Self, Failure> {
        let scratch = tempfile::Builder::new().prefix("rivals-").tempdir_in(dir).on("write in", dir)?;
        let space = statvfs(dir).on("look at", dir)?;
        let free = space.f_bavail * space.f_frsize;
        if free < bytes {
            let reason =
                format!("{} MiB are free, {} MiB may be needed; --quick needs less", free >> 20, bytes >> 20);
            return Err(Failure::new("measure in", dir.display(), reason));
        }
        let description = format!("{}, given", dir.display());
        Self::at(scratch.path().to_owned(), description, Home::Scratch { _dir: scratch })
    }

    fn at(root: PathBuf, description: String, home: Home) -> Result<Self, Failure> {
        let handle = File::open(&root).on("open", &root)?;
        let device = Device::under(&root);
        Ok(Self { root, handle, device, description, _home: home })
    }

    /// What it is, for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The device's counters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until the file system has nothing left to write.
    pub fn settle(&self) -> Result<(), Failure> {
        syncfs(&self.handle).on("sync the file system of", &self.root)
    }

    /// A fresh directory.
    pub fn fresh(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).on("make", &path)?;
        Ok(path)
    }

    /// Removes a directory and what is in it, and lets the file system come to rest.
    pub fn remove(&self, path: &Path) -> Result<(), Failure> {
        fs::remove_dir_all(path).on("remove", path)?;
        self.settle()
    }
}
