//! Space kept back for the moment when a durable transaction meets a full disk.
//!
//! Renames to new names may need a block. After the commit point there is no way back, so the store keeps a file of
//! allocated blocks; apply gives them up when it runs out of space, and they are taken again before the next commit.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atomtree_vfs::{Access, Dir, File};

const BALLAST_FILE: &str = "ballast";

/// The reserve of one store.
pub struct Ballast {
    file: Arc<dyn File>,
    bytes: u64,
    full: AtomicBool,
}

impl Ballast {
    /// Opens the store's ballast, of this many bytes, creating it (empty) if it is missing.
    pub fn open(store: &dyn Dir, bytes: u64) -> io::Result<Self> {
        let name = OsStr::new(BALLAST_FILE);
        let file = match store.open_file(name, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create_file(name, 0o600)?,
            result => result?,
        };
        let full = AtomicBool::new(file.metadata()?.size == bytes);
        Ok(Self { file, bytes, full })
    }

    /// Gives the space up; `false` if that has been done already.
    pub fn release(&self) -> io::Result<bool> {
        if !self.full.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        self.file.set_len(0)?;
        Ok(true)
    }

    /// Whether the space is there to be given up.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Takes the space (again). Costs nothing while it is there.
    ///
    /// # Errors
    /// `ENOSPC`: then no commit may begin, because its apply could get stuck.
    pub fn fill(&self) -> io::Result<()> {
        if self.full.load(Ordering::Acquire) {
            return Ok(());
        }
        self.file.allocate(self.bytes)?;
        self.full.store(true, Ordering::Release);
        Ok(())
    }
}
