//! A log that is appended to by stores to a mapping, as it might have been: what `append` is measured beside.

#![expect(unsafe_code, reason = "who stores to a mapping has to promise that nobody else does")]

use std::fs::File;
use std::io;

use memmap2::MmapRaw;

/// A file of zeros that is mapped, and how far it has been written.
pub struct MappedLog {
    map: MmapRaw,
    end: usize,
}

impl MappedLog {
    /// Maps a new file of so many zeros, which are written, so that no block is missing.
    pub fn create(bytes: usize) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        write_zeros(&file, bytes)?;
        Ok(Self { map: MmapRaw::map_raw(&file)?, end: 0 })
    }

    /// Stores the bytes behind those before, or from the start where there is no room.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.end + bytes.len() > self.map.len() {
            self.end = 0;
        }
        assert!(bytes.len() <= self.map.len() - self.end);
        // SAFETY: the range lies within the mapping, as asserted; the file has no name, so nobody else has it, and there are
        // no references into it.
        unsafe { self.map.as_mut_ptr().add(self.end).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.end += bytes.len();
    }

    /// Makes durable what was stored last.
    pub fn sync(&self, bytes: usize) -> io::Result<()> {
        self.map.flush_range(self.end - bytes, bytes)
    }
}

fn write_zeros(file: &File, bytes: usize) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 1 << 20];
    for offset in (0..bytes).step_by(zeros.len()) {
        file.write_all_at(&zeros[..zeros.len().min(bytes - offset)], offset as u64)?;
    }
    file.sync_all()
}
