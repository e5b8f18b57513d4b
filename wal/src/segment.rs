//! One segment file: made once, zero-written, and then used again and again under new headers.
//!
//! Its length never changes and its blocks are never given back, so that a commit's sync has no metadata to write.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::sync::{Arc, OnceLock};

use atomtree_vfs::{Access, Dir, File, Map};

use crate::error::{Doing, Error};
use crate::format::{HEADER_BYTES, Header, HeaderSector, LogId, State};
use crate::log::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::lsn::{Epoch, Lsn, SegmentId};

/// No log gets this far, and a header that claims it would leave no numbers for what comes next.
const EPOCH_MAX: Epoch = Epoch(u64::MAX / 2);
const LSN_MAX: Lsn = Lsn(u64::MAX / 2);

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

/// An open segment and its header, as it is on disk.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) header: Header,
    /// Made when it is first read through, and kept: its length never changes.
    map: Arc<OnceLock<Arc<dyn Map>>>,
}

/// What a segment file turned out to be.
pub(crate) enum Opened {
    Segment(Segment),
    /// Its creation was cut short, or its length is not the log's: it holds nothing.
    Unfinished,
}

impl Segment {
    fn new(file: Arc<dyn File>, header: Header) -> Self {
        Self { file, header, map: Arc::default() }
    }

    /// The whole file, mapped.
    pub(crate) fn map(&self) -> io::Result<Arc<dyn Map>> {
        if let Some(map) = self.map.get() {
            return Ok(map.clone());
        }
        let map = self.file.map()?;
        Ok(self.map.get_or_init(|| map).clone())
    }

    /// Whether it is still the file that has its name.
    pub(crate) fn is_named_in(&self, dir: &dyn Dir) -> io::Result<bool> {
        let name = self.id().file_name();
        Ok(dir.metadata(OsStr::new(&name))?.inode == self.file.metadata()?.inode)
    }

    /// Whether its header is still the one that was read or written.
    pub(crate) fn has_known_header(&self) -> Result<bool, Error> {
        let mut sector = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut sector, 0).doing("read the header of", self.id())?;
        Ok(sector == self.header.encode())
    }

    /// The same segment with the header that it has now.
    pub(crate) fn again(&self, log: LogId) -> Result<Opened, Error> {
        Ok(match Self::read(self.file.clone(), log, self.id())? {
            Opened::Segment(segment) => Opened::Segment(Self { map: self.map.clone(), ..segment }),
            Opened::Unfinished => Opened::Unfinished,
        })
    }

    pub(crate) fn id(&self) -> SegmentId {
        self.header.segment
    }

    /// Makes a segment, free, with every block written. Replaces what stands at the name only if that `is_unfinished`.
    ///
    /// # Durability
    /// The segment and its name are durable when this returns.
    pub(crate) fn create(
        dir: &dyn Dir,
        log: LogId,
        id: SegmentId,
        segment_bytes: u64,
        is_unfinished: bool,
    ) -> Result<Self, Error> {
        let name = id.file_name();
        if SegmentId::from_file_name(&name) != Some(id) {
            return Err(io::ErrorKind::InvalidInput.into()).doing("name", id);
        }
        let name = OsStr::new(&name);
        match dir.create_file(name, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_unfinished => {
                dir.remove_file(name).doing("remove the unfinished", id)?;
                dir.create_file(name, 0o600).doing("create", id)?;
            }
            result => drop(result.doing("create", id)?),
        }
        // Opened anew, because it is read at each commit: then its time of access stays.
        let opened = dir.open_file(name, Access::ReadWrite).doing("open", id);
        let made = opened.and_then(|file| Self::fill(file, dir, log, id, segment_bytes));
        let segment = made.inspect_err(|_| {
            // What it has taken of a full disk is given back. If that fails too, the file is used again later.
            let _ = dir.remove_file(name);
        })?;
        // From its header on others may commit to it, who know nothing of this: it keeps its name, whatever fails.
        segment.file.sync_data().doing("sync", id)?;
        Ok(segment)
    }

    /// Writes every block of a new segment, and syncs it and its name; then its header.
    fn fill(
        file: Arc<dyn File>,
        dir: &dyn Dir,
        log: LogId,
        id: SegmentId,
        segment_bytes: u64,
    ) -> Result<Self, Error> {
        file.allocate(segment_bytes).doing("allocate", id)?;
        // Space that is only allocated costs a sync its metadata at the first write: 2.6 to 3.7 times a commit's.
        let zeros = vec![0; ZEROS_BYTES.min(segment_bytes as usize)];
        for offset in (0..segment_bytes).step_by(zeros.len()) {
            let length = (segment_bytes - offset).min(zeros.len() as u64) as usize;
            file.write_at(&[IoSlice::new(&zeros[..length])], offset).doing("write zeros to", id)?;
        }
        file.sync_all().doing("sync", id)?;
        dir.sync().on_directory("sync")?;
        // Last: what others may commit to has a durable name. Without it the file is one that was never finished.
        let header = Header {
            log,
            segment: id,
            state: State::Free,
            segment_bytes,
            epoch: Epoch(0),
            first_lsn: Lsn(0),
            link: 0,
            closed: Lsn(0),
        };
        let mut segment = Self::new(file, header);
        segment.write_header(header)?;
        Ok(segment)
    }

    /// Opens a segment and reads its header.
    pub(crate) fn open(dir: &dyn Dir, log: LogId, id: SegmentId, access: Access) -> Result<Opened, Error> {
        let name = id.file_name();
        Self::read(dir.open_file(OsStr::new(&name), access).doing("open", id)?, log, id)
    }

    /// Reads the header of an open segment.
    pub(crate) fn read(file: Arc<dyn File>, log: LogId, id: SegmentId) -> Result<Opened, Error> {
        let length = file.metadata().doing("read the metadata of", id)?.size;
        // What is past the end reads as zeros here, so that a header that is still there counts, however short the
        // file has become.
        let mut sector = [0; HEADER_BYTES];
        let present = length.min(HEADER_BYTES as u64) as usize;
        file.read_exact_at(&mut sector[..present], 0).doing("read the header of", id)?;
        let corrupt = |found: String, expected: String| Error::Corrupt {
            segment: id,
            offset: 0,
            lsn: Lsn(0),
            found,
            expected,
        };
        let header = match Header::decode(&sector) {
            HeaderSector::Header(header) => header,
            HeaderSector::Blank if Self::has_frames(&*file, length).doing("read", id)? => {
                return Err(corrupt("zeros, and something behind them".into(), "a header".into()));
            }
            HeaderSector::Blank => return Ok(Opened::Unfinished),
            HeaderSector::Version(found) => return Err(Error::FormatVersion { segment: id, found }),
            // A sector is written whole or not at all, so a damaged one is never our own torn write.
            HeaderSector::Damaged { expected, found } => {
                return Err(corrupt(
                    format!("a header with checksum {found:#010x}"),
                    format!("checksum {expected:#010x}"),
                ));
            }
        };
        if header.log != log {
            return Err(Error::ForeignSegment {
                segment: id,
                found: u128::from_be_bytes(header.log),
                expected: u128::from_be_bytes(log),
            });
        }
        if header.segment != id {
            return Err(corrupt(
                format!("the header of segment {}", header.segment),
                format!("that of {id}"),
            ));
        }
        if length != header.segment_bytes {
            if header.state == State::Free {
                return Ok(Opened::Unfinished);
            }
            return Err(Error::Corrupt {
                segment: id,
                offset: length,
                lsn: header.first_lsn,
                found: format!("a file of {length} bytes"),
                expected: format!("{} bytes", header.segment_bytes),
            });
        }
        let is_possible_length = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&length);
        if !is_possible_length || header.epoch > EPOCH_MAX || header.first_lsn > LSN_MAX {
            return Err(corrupt(
                format!("{length} bytes, epoch {} and lsn {}", header.epoch, header.first_lsn),
                format!("{SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX} bytes and smaller numbers"),
            ));
        }
        Ok(Opened::Segment(Self::new(file, header)))
    }

    /// Whether anything stands where a new file's zeros would: then its header was there, too. The first frame of a
    /// use lies within what is looked at; the header doesn't, because another process that makes the segment may have
    /// written it since.
    fn has_frames(file: &dyn File, length: u64) -> io::Result<bool> {
        let header = HEADER_BYTES as u64;
        let mut bytes = vec![0; length.min(SEGMENT_BYTES_MIN).saturating_sub(header) as usize];
        file.read_exact_at(&mut bytes, header)?;
        Ok(bytes.iter().any(|&byte| byte != 0))
    }

    /// Whether a header that could not be written has left the old one, for want of space: nothing was taken then, not even
    /// by the cache, as far as can be read. Where writing a block again takes a new one, as on btrfs, it may pass.
    pub(crate) fn is_untouched_after(&self, error: &Error) -> bool {
        let mut found = [0; HEADER_BYTES];
        error.is_no_space()
            && self.file.read_exact_at(&mut found, 0).is_ok_and(|()| found == self.header.encode())
    }

    /// Writes a new header. Not durable until the file is synced.
    pub(crate) fn write_header(&mut self, header: Header) -> Result<(), Error> {
        self.file
            .write_at(&[IoSlice::new(&header.encode())], 0)
            .doing("write the header of", header.segment)?;
        self.header = header;
        Ok(())
    }

    /// Writes zeros over whatever there is from `from` on, and returns how many bytes that were. Not durable until the file
    /// is synced.
    pub(crate) fn wipe(&self, from: u64) -> Result<u64, Error> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut found = vec![0; ZEROS_BYTES];
        let (mut offset, end, mut wiped) = (from, self.header.segment_bytes, 0);
        while offset < end {
            let length = (end - offset).min(ZEROS_BYTES as u64) as usize;
            self.file.read_exact_at(&mut found[..length], offset).doing("read", self.id())?;
            // What is zero already is not made dirty.
            if found[..length] != zeros[..length] {
                let parts = [IoSlice::new(&zeros[..length])];
                self.file.write_at(&parts, offset).doing("write zeros to", self.id())?;
                wiped += length as u64;
            }
            offset += length as u64;
        }
        Ok(wiped)
    }
}
