//! A file that takes up all the room there is, and gives it back a page at a time.
//!
//! What a file system calls full depends on what it has not written yet: delayed allocations and reservations come and
//! go. So the file grows, is synced, and grows again until nothing more is to be had.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The smallest step in which room is given back.
pub const PAGE_BYTES: u64 = 4096;

/// How many files of one page are made before the rest is filled. A copy-on-write file system that is quite full, or
/// whose quota is, can't shorten a file, but it can still remove one.
const LOOSE_PAGES: usize = 64;

/// The file, and some small ones beside it; removed when dropped, which makes room.
pub struct Filler {
    file: File,
    path: PathBuf,
    loose: Vec<PathBuf>,
}

impl Filler {
    /// Fills the file system, or the quota, that `path` counts against.
    ///
    /// # Errors
    /// Anything but that there is no more room.
    pub fn take_all(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let mut filler = Self { file, path: path.to_owned(), loose: Vec::new() };
        for number in 0..LOOSE_PAGES {
            let path = path.with_extension(number.to_string());
            match fs::write(&path, [b'f'; PAGE_BYTES as usize]) {
                Ok(()) => filler.loose.push(path),
                Err(error) if is_no_room(&error) => drop(fs::remove_file(path)),
                Err(error) => return Err(error),
            }
        }
        filler.take_the_rest()?;
        Ok(filler)
    }

    /// Takes what room there is by now.
    ///
    /// # Errors
    /// As [`Filler::take_all`].
    pub fn take_the_rest(&mut self) -> io::Result<()> {
        loop {
            let before = self.bytes()?;
            for piece in [1 << 20, 64 << 10, PAGE_BYTES as usize] {
                self.grow_by(piece)?;
            }
            // Space that was promised may turn out not to be there; that is no room either.
            let _ = self.file.sync_all();
            if self.bytes()? == before {
                return Ok(());
            }
        }
    }

    /// Grows in steps of `piece` bytes for as long as there is room.
    fn grow_by(&mut self, piece: usize) -> io::Result<()> {
        let page = vec![b'f'; piece];
        loop {
            match self.file.write_all(&page) {
                Ok(()) => {}
                Err(error) if is_no_room(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Makes room for one more page; `false` if there is nothing left to give.
    ///
    /// # Errors
    /// The file can't be shortened.
    pub fn give_page(&mut self) -> io::Result<bool> {
        let bytes = self.bytes()?;
        match (self.file.set_len(bytes.saturating_sub(PAGE_BYTES)), self.loose.pop()) {
            (Err(error), Some(loose)) if is_no_room(&error) => fs::remove_file(loose)?,
            (result, loose) => {
                self.loose.extend(loose);
                result?;
            }
        }
        Ok(bytes > PAGE_BYTES)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        for path in self.loose.iter().chain([&self.path]) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether the error says that there is no space or that a quota is used up.
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
