//! Files mapped for reading, and which of their pages are in memory: the crate's unsafe code.
//!
//! A map is of pages that other programs can change and cut off, which Rust's references don't allow for. Two rules
//! make it sound to hand out slices. Callers ask only for bytes that nobody writes any more, and a range is read in
//! and found to lie within the file before it is lent, so that what a device or a truncation did earlier is an error.
//! What remains is another program that truncates the file while a slice is in use: that ends in SIGBUS. Store files
//! are accessible to their owner only, and atomtree itself never shortens one that is mapped.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::slice;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::Map;

/// The least that a page has on any machine.
const PAGE_BYTES_MIN: usize = 4 << 10;
/// What residency is asked for in one call: a multiple of any machine's page size.
const RESIDENCY_BYTES: usize = 64 << 20;

/// A whole file mapped for reading.
pub(crate) struct FileMap {
    /// Kept to check the length and to find out what is wrong with a page.
    file: Arc<OwnedFd>,
    /// `None` for an empty file, which cannot be mapped.
    pages: Option<MmapRaw>,
}

impl FileMap {
    /// Maps the first `bytes` bytes, which the file has now.
    pub(crate) fn new(file: &Arc<OwnedFd>, bytes: u64) -> io::Result<Self> {
        Ok(Self { file: file.clone(), pages: map(file.as_fd(), bytes)? })
    }

    /// Reads the range with calls instead, which say what is wrong.
    fn read_unmapped(&self, range: Range<usize>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        let mut filled = 0;
        while filled < bytes.len() {
            let offset = (range.start + filled) as u64;
            match retry_on_intr(|| rustix::io::pread(&self.file, &mut bytes[filled..], offset))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(bytes)
    }
}

impl Map for FileMap {
    fn len(&self) -> usize {
        self.pages.as_ref().map_or(0, MmapRaw::len)
    }

    fn read(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.len() {
            return Err(Errno::INVAL.into());
        }
        let Some(pages) = self.pages.as_ref().filter(|_| !range.is_empty()) else {
            return Ok(Cow::Borrowed(&[]));
        };
        if pages.advise_range(Advice::PopulateRead, range.start, range.len()).is_err() {
            // The kernel says only that a fault would have been a signal, or it is older than 5.14 and can't tell.
            // Reading gives the real error, and if it succeeds after all, the bytes.
            return self.read_unmapped(range).map(Cow::Owned);
        }
        // After populating, not before: pages that have been cut off fail to populate, and this finds a cut within
        // the last page, whose rest reads as zeros. It also leaves less time for a truncation to slip in.
        let bytes = retry_on_intr(|| rustix::fs::fstat(&self.file))?.st_size;
        if u64::try_from(bytes).unwrap_or(0) < range.end as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: `range` lies within the mapping, which lives as long as `self` and so as the slice. Nothing writes
        // these bytes meanwhile: `Map::read` is only asked for such bytes (of the log once accepted, of an image once
        // synced), and all others are outside of every slice, since the mapping is held raw. The bytes were within
        // the file a moment ago; a truncation by another program from now on is the remaining risk described above.
        let bytes = unsafe { slice::from_raw_parts(pages.as_ptr().add(range.start), range.len()) };
        Ok(Cow::Borrowed(bytes))
    }
}

/// Whether any page of the file's first `bytes` bytes is in the page cache.
///
/// Pages of a file that this process may neither write nor owns count as resident, since the kernel does not say.
pub(crate) fn any_resident(file: BorrowedFd<'_>, bytes: u64) -> io::Result<bool> {
    // The map is only asked about and never read, so nothing is brought in by looking.
    let Some(pages) = map(file, bytes)? else {
        return Ok(false);
    };
    let mut resident = vec![0_u8; pages.len().min(RESIDENCY_BYTES).div_ceil(PAGE_BYTES_MIN)];
    for start in (0..pages.len()).step_by(RESIDENCY_BYTES) {
        let length = (pages.len() - start).min(RESIDENCY_BYTES);
        let address = pages.as_mut_ptr().wrapping_add(start).cast();
        // SAFETY: `address` is the start of a page of a live mapping, which reaches `length` bytes further; memory is
        // only asked about. One byte is written for each page, and `resident` has one for each of the smallest size.
        let result = unsafe { libc::mincore(address, length, resident.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // The other bits have no meaning yet. Bytes beyond `length` are a previous round's, which were not resident.
        if resident.iter().any(|page| page & 1 != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Maps the first `bytes` bytes of a file, or nothing if there are none.
///
/// Raw, not as memmap2's `Mmap`: that is a slice of the whole file, bytes that are being written included.
fn map(file: BorrowedFd<'_>, bytes: u64) -> io::Result<Option<MmapRaw>> {
    if bytes == 0 {
        return Ok(None);
    }
    let length = usize::try_from(bytes).map_err(|_| Errno::OVERFLOW)?;
    Ok(Some(MmapOptions::new().len(length).map_raw_read_only(file.as_raw_fd())?))
}

/// A log that is appended to by stores to a mapping, as it might have been: for benchmarks alone, to stand beside.
#[doc(hidden)]
pub struct MappedForBench {
    pages: MmapRaw,
    end: usize,
}

impl MappedForBench {
    /// Maps a file without a name, of so many zeros, all of them written, on the file system of a directory.
    pub fn new(dir: &Path, bytes: usize) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600))?;
        let zeros = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < bytes {
            offset += rustix::io::pwrite(&file, &zeros[..zeros.len().min(bytes - offset)], offset as u64)?;
        }
        rustix::fs::fsync(&file)?;
        Ok(Self { pages: MmapRaw::map_raw(file.as_raw_fd())?, end: 0 })
    }

    /// Stores the bytes behind those before, or from the start where there is no room.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.end + bytes.len() > self.pages.len() {
            self.end = 0;
        }
        assert!(bytes.len() <= self.pages.len() - self.end, "it has no room for {} bytes", bytes.len());
        // SAFETY: the range lies within the mapping, as asserted. Nobody else has the file, which never had a name, and
        // there are no references into the mapping.
        unsafe {
            let to = self.pages.as_mut_ptr().add(self.end);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.end += bytes.len();
    }

    /// Makes durable what was stored last, that many bytes.
    pub fn sync(&self, bytes: usize) -> io::Result<()> {
        self.pages.flush_range(self.end.saturating_sub(bytes), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Os;
    use crate::{Access, File, Vfs};
    use std::ffi::OsStr;
    use std::io::IoSlice;
    use tempfile::TempDir;

    fn file_of(bytes: usize) -> (TempDir, Arc<dyn File>, Vec<u8>) {
        let directory = TempDir::new().unwrap();
        let root = Os.open_root(directory.path()).unwrap();
        let file = root.create_file(OsStr::new("file"), 0o600).unwrap();
        let content: Vec<u8> = (0..bytes).map(|index| (index / 7) as u8).collect();
        file.write_at(&[IoSlice::new(&content)], 0).unwrap();
        (directory, file, content)
    }

    #[track_caller]
    fn assert_kind(map: &dyn Map, range: Range<usize>, kind: io::ErrorKind) {
        assert_eq!(map.read(range).expect_err("the read fails").kind(), kind);
    }

    #[test]
    fn ranges_are_lent_without_a_copy() {
        let (_directory, file, content) = file_of(20_000);
        let map = file.map().unwrap();
        assert_eq!(map.len(), 20_000);
        for range in [0..20_000, 0..1, 4095..4097, 5000..5000, 19_999..20_000, 20_000..20_000] {
            let read = map.read(range.clone()).unwrap();
            assert_eq!(*read, content[range.clone()]);
            // Populating needs Linux 5.14, which any machine that runs these tests has.
            assert!(matches!(read, Cow::Borrowed(_)), "{range:?}");
        }
    }

    #[test]
    fn ranges_beyond_the_map_are_refused() {
        let (_directory, file, _) = file_of(5000);
        let map = file.map().unwrap();
        file.set_len(10_000).unwrap();
        let backwards = Range { start: 2, end: 1 };
        for range in [0..5001, 5001..5001, 6000..7000, backwards, 0..usize::MAX, usize::MAX..usize::MAX] {
            assert_kind(&*map, range, io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_empty_file_has_an_empty_map() {
        let (_directory, file, _) = file_of(0);
        let map = file.map().unwrap();
        assert!(map.is_empty());
        assert_eq!(map.read(0..0).unwrap().len(), 0);
        assert_kind(&*map, 0..1, io::ErrorKind::InvalidInput);
    }

    /// A file cut short within a page, at its end and to nothing: what is gone is an error, what is left is read.
    #[test]
    fn a_file_cut_short_is_an_error_and_no_signal() {
        for left in [0, 1, 100, 4096, 8192, 9000] {
            let (_directory, file, content) = file_of(12_000);
            let map = file.map().unwrap();
            assert_eq!(map.read(0..12_000).unwrap().len(), 12_000);
            file.set_len(left as u64).unwrap();
            assert_eq!(*map.read(0..left).unwrap(), content[..left]);
            assert_kind(&*map, 0..left + 1, io::ErrorKind::UnexpectedEof);
            assert_kind(&*map, left..left + 1, io::ErrorKind::UnexpectedEof);
            assert_kind(&*map, 11_000..12_000, io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_map_outlives_its_file_and_sees_later_writes() {
        let (_directory, file, content) = file_of(5000);
        let map = file.map().unwrap();
        file.write_at(&[IoSlice::new(b"later")], 1000).unwrap();
        drop(file);
        assert_eq!(&*map.read(1000..1005).unwrap(), b"later");
        assert_eq!(*map.read(0..1000).unwrap(), content[..1000]);
    }

    /// Reading with calls gives what the map gives, so that old kernels differ in speed only.
    #[test]
    fn the_fallback_reads_the_same() {
        let (directory, file, content) = file_of(12_000);
        let descriptor: OwnedFd = std::fs::File::open(directory.path().join("file")).unwrap().into();
        let map = FileMap::new(&Arc::new(descriptor), 12_000).unwrap();
        assert_eq!(map.read_unmapped(3..9000).unwrap(), content[3..9000]);
        file.set_len(8000).unwrap();
        assert_eq!(map.read_unmapped(0..8001).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// A single page at the end of a file of several rounds is found. The file is sparse: reading one byte brings in
    /// that page and what is read ahead.
    #[test]
    fn one_resident_page_is_enough() {
        let directory = TempDir::new().unwrap();
        let root = Os.open_root(directory.path()).unwrap();
        if root.file_system().unwrap().name == "tmpfs" {
            println!("skipped: in memory a hole is read without a page");
            return;
        }
        let file = root.create_file(OsStr::new("file"), 0o600).unwrap();
        let bytes = 3 * RESIDENCY_BYTES as u64 - 1000;
        file.set_len(bytes).unwrap();
        file.sync_all().unwrap();
        let resident = || {
            let descriptor = std::fs::File::open(directory.path().join("file")).unwrap();
            any_resident(descriptor.as_fd(), bytes).unwrap()
        };
        assert!(!resident());
        let reader = root.open_file(OsStr::new("file"), Access::Read).unwrap();
        reader.read_exact_at(&mut [0], bytes - 1).unwrap();
        assert!(resident());
    }
}
