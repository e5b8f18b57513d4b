//! Space kept back for the moment when a durable transaction meets a full disk.
//!
//! Renames to new names may need a block. After the commit point there is no way back, so the store keeps a file of
//! allocated blocks; apply gives them up when it runs out of space, and they are taken again before the next commit.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File};
use atomtree_wal::sync::Mutex;

#[cfg(all(test, loom))]
mod models;

const BALLAST_FILE: &str = "ballast";

/// The reserve of one store.
pub struct Ballast {
    file: Arc<dyn File>,
    bytes: u64,
    /// Whether the file holds the space. Locked while that changes: a checkpoint may give up what a commit is taking.
    is_full: Mutex<bool>,
}

impl Ballast {
    /// Opens the store's ballast, of this many bytes, creating it (empty) if it is missing.
    pub fn open(store: &dyn Dir, bytes: u64) -> io::Result<Self> {
        let name = OsStr::new(BALLAST_FILE);
        let file = match store.open_file(name, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create_file(name, 0o600)?,
            result => result?,
        };
        let is_full = Mutex::new(file.metadata()?.size == bytes);
        Ok(Self { file, bytes, is_full })
    }

    /// Gives the space up; `false` if that has been done already.
    pub fn release(&self) -> io::Result<bool> {
        let mut is_full = self.is_full.lock();
        if !std::mem::take(&mut *is_full) {
            return Ok(false);
        }
        self.file.set_len(0)?;
        Ok(true)
    }

    /// Whether the space is there to be given up.
    pub fn is_full(&self) -> bool {
        *self.is_full.lock()
    }

    /// Takes the space (again), if this process or another one has given it up.
    ///
    /// # Errors
    /// `ENOSPC`: then no commit may begin, because its apply could get stuck.
    pub fn fill(&self) -> io::Result<()> {
        let mut is_full = self.is_full.lock();
        if *is_full && self.file.metadata()?.size >= self.bytes {
            return Ok(());
        }
        self.file.allocate(self.bytes)?;
        *is_full = true;
        Ok(())
    }
}
