//! The log that is written: appends, syncs, goes on from segment to segment, and takes them back when they are done.
//!
//! There is one owner: whoever holds the `Log` appends. What may be believed after a crash is decided by `scan`; this
//! file keeps the order that makes it decidable. A header is durable before the first frame under it, and says that
//! everything before was. After a failed append or a torn end the log goes on in the next segment, so that what was
//! voided can never be taken for a continuation. After a failed sync it does not go on at all.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::num::NonZeroU8;
use std::ops::Range;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Timestamp};

use crate::error::{Doing, Error};
use crate::format::{
    FRAME_ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, HEADER_AREA_BYTES, Header, LogId, State, frame_bytes,
    padding,
};
use crate::lsn::{Epoch, Lsn, SegmentId};
use crate::scan::{Familiar, Position, Scan, Search, scan_with};
use crate::segment::Segment;

/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How large a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Length of a segment, from [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`], a multiple of 4096; fixed when the
    /// log is created.
    pub segment_bytes: u64,
    /// What all segments together may take; at least three segments.
    pub log_bytes_max: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, log_bytes_max: 256 << 20 }
    }
}

/// What goes into one frame.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// What the payload is; the log does not care.
    pub kind: NonZeroU8,
    /// The payload, as parts that are written one after another without being put together first.
    pub parts: &'a [&'a [u8]],
}

impl Record<'_> {
    fn payload_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

/// Which spare segments an append may take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserve {
    /// All but one.
    Keep,
    /// All.
    Use,
}

/// An open log.
pub struct Log {
    dir: Arc<dyn Dir>,
    id: LogId,
    options: LogOptions,
    active: Segment,
    /// Where the next frame goes in the active segment.
    offset: u64,
    /// Where the last frame stands in it, if there is one.
    last_offset: Option<u64>,
    /// Older segments that hold frames, oldest first, each with the position of its last one.
    sealed: VecDeque<(Segment, Lsn)>,
    free: Vec<Segment>,
    /// Names to be used again: creation was cut short.
    unfinished: Vec<SegmentId>,
    next_segment: SegmentId,
    next_epoch: Epoch,
    next_lsn: Lsn,
    /// CRC of the last frame.
    link: u32,
    /// Behind the last frame of a whole run: up to there nothing is void, and nothing will be.
    known: Position,
    /// The directory's time of modification at which its names are all known; `None` if they have to be read.
    names_at: Option<Timestamp>,
    synced_lsn: Lsn,
    /// Whether the active segment has frames that are not known durable.
    is_dirty: bool,
    /// Whether the active segment must not be written any more.
    is_torn: bool,
    /// What a failed append has left where its first frame would stand; `None` if that is unknown.
    leftover: Option<[u8; FRAME_HEADER_BYTES]>,
    poisoned: Option<String>,
}

impl Log {
    /// Creates a log in an empty directory: one active segment and one spare. Replaces their files, which an attempt
    /// that was cut short may have left.
    ///
    /// # Durability
    /// Both segments and their names are durable when this returns; the directory's own name is the caller's to sync.
    ///
    /// # Panics
    /// If `segment_bytes` is not what [`LogOptions`] allows.
    pub fn create(dir: Arc<dyn Dir>, id: LogId, options: LogOptions) -> Result<Self, Error> {
        let allowed = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        assert!(allowed.contains(&options.segment_bytes), "{} bytes in a segment", options.segment_bytes);
        assert!(options.segment_bytes.is_multiple_of(HEADER_AREA_BYTES), "segments are whole pages");
        let spare = Segment::create(&*dir, id, SegmentId(1), options.segment_bytes, true)?;
        let mut active = Segment::create(&*dir, id, SegmentId(0), options.segment_bytes, true)?;
        let header = Header { state: State::Active, epoch: Epoch(1), first_lsn: Lsn(1), ..active.header };
        active.write_header(header)?;
        active.file.sync_data().doing("sync", active.id())?;
        Ok(Self {
            dir,
            id,
            options,
            active,
            offset: HEADER_AREA_BYTES,
            last_offset: None,
            sealed: VecDeque::new(),
            free: vec![spare],
            unfinished: Vec::new(),
            next_segment: SegmentId(2),
            next_epoch: Epoch(2),
            next_lsn: Lsn(1),
            link: 0,
            known: Position {
                epoch: Epoch(1),
                offset: HEADER_AREA_BYTES,
                next_lsn: Lsn(1),
                link: 0,
                last_offset: None,
            },
            names_at: None,
            synced_lsn: Lsn(0),
            is_dirty: false,
            is_torn: false,
            leftover: None,
            poisoned: None,
        })
    }

    /// Opens the log and reads it. Writes nothing: what is done about a torn end happens at the first append.
    ///
    /// Before anything that was read is believed to be durable, it has to be written again with [`Log::rewrite`],
    /// unless [`Scan::tail`] is [`crate::Tail::Closed`].
    ///
    /// # Errors
    /// As for [`crate::scan`].
    pub fn open(dir: Arc<dyn Dir>, id: LogId, options: LogOptions) -> Result<(Self, Scan), Error> {
        Self::open_with(dir, id, options, Search::Whole)
    }

    /// As [`Log::open`], of a log that other processes have open too, none of which writes meanwhile: what follows the
    /// last frame is as the last of them left it, and is not searched for what a power cut may have done.
    pub fn join(dir: Arc<dyn Dir>, id: LogId, options: LogOptions) -> Result<(Self, Scan), Error> {
        Self::open_with(dir, id, options, Search::Near)
    }

    fn open_with(
        dir: Arc<dyn Dir>,
        id: LogId,
        options: LogOptions,
        search: Search,
    ) -> Result<(Self, Scan), Error> {
        let scan = scan_with(&*dir, id, Access::ReadWrite, search, None)?;
        Ok((Self::of_scan(dir, id, options, &scan)?, scan))
    }

    /// What other processes have appended since this one last looked, if anything. None of them may be writing meanwhile.
    /// To go on behind it, hand it to [`Log::go_on`]. `now` and `granularity_ns` are the clock's and its file times'.
    ///
    /// # Errors
    /// [`Error::SetBack`] if what this process knows of the log is not there any more, and as for [`crate::scan`].
    pub fn news(&mut self, now: Timestamp, granularity_ns: i64) -> Result<Option<Scan>, Error> {
        if self.is_poisoned() {
            // Whatever is there, this process does not go on behind it.
            return Ok(None);
        }
        let modified = self.dir.own_metadata().on_directory("look at")?.modified;
        let are_names_known = match self.names_at {
            Some(known) if known == modified => true,
            _ => self.has_known_names()?,
        };
        // A name that comes within the same tick as this look leaves the directory's time as it is.
        self.names_at = Some(modified).filter(|_| are_names_known && modified.plus_ns(granularity_ns) < now);
        let are_headers_known = are_names_known && self.has_known_headers()?;
        if are_headers_known && self.ends_as_known()? {
            return Ok(None);
        }
        // One that was cut is opened again, and refused.
        let is_all = are_headers_known && self.has_known_lengths()?;
        let familiar = Familiar {
            position: self.known,
            segments: self.segments().cloned().collect(),
            last_lsns: self.sealed.iter().map(|(segment, last)| (segment.header.epoch, *last)).collect(),
            is_all,
        };
        scan_with(&*self.dir, self.id, Access::ReadWrite, Search::Near, Some(&familiar)).map(Some)
    }

    /// Every segment that is open.
    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.sealed.iter().map(|(segment, _)| segment).chain(&self.free).chain([&self.active])
    }

    /// Whether the directory holds the segments that are open, under their names, and no other.
    fn has_known_names(&self) -> Result<bool, Error> {
        let mut known: BTreeSet<SegmentId> = self.segments().map(Segment::id).collect();
        for entry in self.dir.list().on_directory("list")? {
            let Some(id) = entry.name.to_str().and_then(SegmentId::from_file_name) else { continue };
            if !known.remove(&id) {
                return Ok(false);
            }
        }
        for segment in self.segments() {
            if !segment.is_named_in(&*self.dir).doing("look at", segment.id())? {
                return Ok(false);
            }
        }
        Ok(known.is_empty())
    }

    /// Whether every segment has the header that is known.
    fn has_known_headers(&self) -> Result<bool, Error> {
        for segment in self.segments() {
            if !segment.has_known_header()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether no segment has been cut.
    fn has_known_lengths(&self) -> Result<bool, Error> {
        for segment in self.segments() {
            let length = segment.file.metadata().doing("read the metadata of", segment.id())?.size;
            if length != segment.header.segment_bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the last frame is there, and none follows it.
    fn ends_as_known(&self) -> Result<bool, Error> {
        // What an append of this very process that failed has left is not news. Others, who saw nothing there, have written
        // in its place; or, if they saw something, gone on in another segment.
        if self.is_torn {
            return Ok(self.leftover.is_some() && self.leftover == self.header_at_end()?);
        }
        self.known.check_last_frame(&self.active)?;
        let Position { epoch, next_lsn, .. } = self.known;
        let next = self.header_at_end()?.as_ref().and_then(FrameHeader::decode);
        Ok(next.is_none_or(|header| (header.epoch, header.lsn) != (epoch, next_lsn)))
    }

    /// What stands where the header of the next frame would stand in the active segment, if there is room for one.
    fn header_at_end(&self) -> Result<Option<[u8; FRAME_HEADER_BYTES]>, Error> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        if self.offset + bytes.len() as u64 > self.options.segment_bytes {
            return Ok(None);
        }
        self.active.file.read_exact_at(&mut bytes, self.offset).doing("read", self.active.id())?;
        Ok(Some(bytes))
    }

    /// Goes on behind what [`Log::news`] has found.
    pub fn go_on(&mut self, scan: &Scan) -> Result<(), Error> {
        let synced_lsn = self.synced_lsn.min(scan.end_lsn());
        // Still the names that were known before, if the scan had no need to list them.
        let names_at = self.names_at;
        *self = Self { names_at, ..Self::of_scan(self.dir.clone(), self.id, self.options, scan)? };
        self.synced_lsn = self.synced_lsn.max(synced_lsn);
        self.is_dirty = self.synced_lsn < scan.end_lsn();
        Ok(())
    }

    fn of_scan(dir: Arc<dyn Dir>, id: LogId, options: LogOptions, scan: &Scan) -> Result<Self, Error> {
        let stretches = scan.stretches.iter().map(|stretch| (stretch.segment.clone(), stretch.last_lsn));
        let mut sealed: VecDeque<_> = scan.older.iter().cloned().chain(stretches).collect();
        // The last stretch is never void: nothing comes after it that could void it.
        let last = scan.stretches.last().ok_or(Error::Missing)?;
        sealed.pop_back();
        let ids = scan.older.iter().map(|(segment, _)| segment.id());
        let ids = ids.chain(scan.stretches.iter().map(|stretch| stretch.segment.id()));
        let ids = ids.chain(scan.free.iter().map(Segment::id)).chain(scan.unfinished.iter().copied());
        let segment_bytes = last.segment.header.segment_bytes;
        let position = scan.position().ok_or(Error::Missing)?;
        Ok(Self {
            dir,
            id,
            options: LogOptions { segment_bytes, ..options },
            active: last.segment.clone(),
            offset: last.end,
            last_offset: last.last_offset,
            sealed,
            free: scan
                .free
                .iter()
                .filter(|spare| spare.header.segment_bytes == segment_bytes)
                .cloned()
                .collect(),
            unfinished: scan.unfinished.clone(),
            next_segment: SegmentId(ids.map(|id| id.0).max().unwrap_or(0) + 1),
            next_epoch: Epoch(scan.epoch_max.0 + 1),
            next_lsn: position.next_lsn,
            link: position.link,
            known: position,
            names_at: None,
            synced_lsn: scan.known_synced(),
            is_dirty: scan.known_synced() < scan.end_lsn(),
            is_torn: scan.tail().is_torn(),
            leftover: None,
            poisoned: None,
        })
    }

    /// Lets nothing more be written to the active segment: the next frame goes to another one. For what somebody else left
    /// there who died while writing.
    pub fn leave_segment(&mut self) {
        self.is_torn = true;
    }

    /// Appends records as one run of frames and returns the position of the last. One spare segment is always left.
    ///
    /// # Durability
    /// None before [`Log::sync`].
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::TooLarge`] before anything is written. After [`Error::Io`] the run is void, and
    /// the log goes on without it; if it ends here, records from the start of the run may be read back, the last
    /// of them never. [`Error::OutcomeUnknown`] if a segment that had to be finished could not be synced:
    /// then the log is poisoned.
    pub fn append(&mut self, records: &[Record<'_>]) -> Result<Lsn, Error> {
        self.append_run(records, Reserve::Keep)
    }

    /// As [`Log::append`], but may take the last spare: for records that make room.
    pub fn append_reserved(&mut self, records: &[Record<'_>]) -> Result<Lsn, Error> {
        self.append_run(records, Reserve::Use)
    }

    fn append_run(&mut self, records: &[Record<'_>], reserve: Reserve) -> Result<Lsn, Error> {
        self.check_poison()?;
        self.check_room(records, reserve)?;
        self.reopen()?;
        let before = (self.next_lsn, self.link, self.known);
        match self.write_run(records) {
            Ok(()) => {
                self.known = self.position();
                Ok(self.next_lsn.previous())
            }
            Err(error) => {
                // Part of the run may be in the file. Its positions are used again, in another segment.
                (self.next_lsn, self.link, self.known) = before;
                self.is_torn = true;
                self.leftover = self.header_at_end().unwrap_or(None);
                // The run may have filled segments and had them synced; none of that counts any more.
                let last = self.next_lsn.previous();
                self.synced_lsn = self.synced_lsn.min(last);
                self.sealed.iter_mut().for_each(|(_, sealed_last)| *sealed_last = last.min(*sealed_last));
                Err(error)
            }
        }
    }

    /// Whether the run fits, found out before its first byte is written.
    fn check_room(&self, records: &[Record<'_>], reserve: Reserve) -> Result<(), Error> {
        let bytes_max = self.options.segment_bytes - HEADER_AREA_BYTES;
        let mut left = if self.is_torn { 0 } else { self.options.segment_bytes - self.offset };
        let (mut segments, mut needed_bytes) = (0, 0);
        for record in records {
            let bytes = match u32::try_from(record.payload_bytes()) {
                Ok(length) => frame_bytes(length),
                Err(_) => record.payload_bytes(),
            };
            if bytes > bytes_max {
                return Err(Error::TooLarge { bytes, bytes_max });
            }
            if bytes > left {
                segments += 1;
                left = bytes_max;
            }
            left -= bytes;
            needed_bytes += bytes;
        }
        let kept = usize::from(reserve == Reserve::Keep);
        let reusable = usize::from(self.is_reusable());
        // The reserve counts even if the run fits the active segment: once a checkpoint's record has had to take it,
        // filling the segment that it took would leave the next record without any.
        if segments + kept > self.free.len() + reusable {
            return Err(Error::Full { needed_bytes });
        }
        Ok(())
    }

    fn write_run(&mut self, records: &[Record<'_>]) -> Result<(), Error> {
        let mut rest = records;
        while !rest.is_empty() {
            let mut left = if self.is_torn { 0 } else { self.options.segment_bytes - self.offset };
            let fitting = rest
                .iter()
                .take_while(|record| {
                    let bytes = frame_bytes(record.payload_bytes() as u32);
                    let fits = bytes <= left;
                    left = left.saturating_sub(bytes);
                    fits
                })
                .count();
            if fitting == 0 {
                self.rotate()?;
                continue;
            }
            let (stretch, later) = rest.split_at(fitting);
            self.write_stretch(stretch)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes frames that fit into the active segment, in one call.
    fn write_stretch(&mut self, records: &[Record<'_>]) -> Result<(), Error> {
        let (mut lsn, mut link, mut bytes, mut before_last) = (self.next_lsn, self.link, 0, 0);
        let mut headers = Vec::with_capacity(records.len());
        for record in records {
            let header = FrameHeader {
                kind: record.kind,
                length: record.payload_bytes() as u32,
                link,
                epoch: self.active.header.epoch,
                lsn,
                synced_lsn: self.synced_lsn,
            };
            let (encoded, checksum) = header.encode(record.parts.iter().copied());
            headers.push((encoded, padding(header.length)));
            (before_last, bytes) = (bytes, bytes + header.frame_bytes());
            (lsn, link) = (lsn.next(), checksum);
        }
        let mut parts = Vec::with_capacity(records.len() * 4);
        for (record, (header, padding)) in records.iter().zip(&headers) {
            parts.push(IoSlice::new(header));
            parts.extend(record.parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)));
            if *padding > 0 {
                parts.push(IoSlice::new(&[0; FRAME_ALIGNMENT][..*padding]));
            }
        }
        debug_assert!(headers.iter().all(|(header, _)| header.len() == FRAME_HEADER_BYTES));
        self.is_dirty = true;
        self.active.file.write_at(&parts, self.offset).doing("append to", self.active.id())?;
        self.last_offset = Some(self.offset + before_last);
        self.offset += bytes;
        (self.next_lsn, self.link) = (lsn, link);
        Ok(())
    }

    /// Makes everything appended so far durable, by one sync, and returns the last position.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`]: what was appended since the last sync may or may not be durable. The log is
    /// poisoned: a second sync could succeed without having written anything.
    pub fn sync(&mut self) -> Result<Lsn, Error> {
        self.check_poison()?;
        if self.is_dirty {
            self.sync_active()?;
        }
        self.synced_lsn = self.next_lsn.previous();
        Ok(self.synced_lsn)
    }

    /// Syncs, and says in the active segment's header that the log ends here and is closed. The next scan then looks for
    /// nothing behind it. Appending goes on as before, and takes the word back first.
    ///
    /// # Durability
    /// Everything appended, and that it is all, is durable when this returns.
    ///
    /// # Errors
    /// As for [`Log::sync`].
    pub fn close(&mut self) -> Result<(), Error> {
        let last = self.sync()?;
        // Behind a torn end, or with nothing in it, the segment's header has nothing to say.
        if self.is_torn || last < self.active.header.first_lsn {
            return Ok(());
        }
        self.mark_closed(last)
    }

    /// Whether the log says that it is closed.
    pub fn is_closed(&self) -> bool {
        self.active.header.closed != Lsn(0)
    }

    /// Takes back that the log is closed, durably, before the first frame behind it: otherwise damage there could pass
    /// for the end.
    fn reopen(&mut self) -> Result<(), Error> {
        if self.active.header.closed == Lsn(0) { Ok(()) } else { self.mark_closed(Lsn(0)) }
    }

    fn mark_closed(&mut self, closed: Lsn) -> Result<(), Error> {
        let header = Header { closed, ..self.active.header };
        let written = self.active.write_header(header);
        if written.as_ref().is_err_and(|error| self.active.is_untouched_after(error)) {
            return written;
        }
        let id = self.active.id();
        let written = written.and_then(|()| self.active.file.sync_data().doing("sync", id));
        if let Err(error) = &written {
            self.poisoned = Some(error.to_string());
        }
        written
    }

    fn sync_active(&mut self) -> Result<(), Error> {
        if let Err(source) = self.active.file.sync_data() {
            let segment = self.active.id();
            self.poisoned = Some(format!("segment {segment}: {source}"));
            return Err(Error::OutcomeUnknown { segment, source });
        }
        self.is_dirty = false;
        Ok(())
    }

    /// Goes on in the next segment. Everything before it is durable when this returns.
    ///
    /// # Errors
    /// [`Error::Full`] without a free segment; otherwise the log is poisoned.
    pub fn rotate(&mut self) -> Result<(), Error> {
        self.check_poison()?;
        let is_reused = self.is_reusable();
        if self.free.is_empty() && !is_reused {
            return Err(Error::Full { needed_bytes: 0 });
        }
        if self.is_dirty {
            self.sync_active()?;
        }
        let mut next = if is_reused { self.active.clone() } else { self.free.remove(0) };
        let header = Header {
            state: State::Active,
            epoch: self.next_epoch,
            first_lsn: self.next_lsn,
            link: self.link,
            closed: Lsn(0),
            ..next.header
        };
        let written = next.write_header(header);
        if written.as_ref().is_err_and(|error| next.is_untouched_after(error)) {
            if !is_reused {
                self.free.insert(0, next);
            }
            return written;
        }
        let written = written.and_then(|()| next.file.sync_data().doing("sync", header.segment));
        if let Err(error) = written {
            // Whether the new header counts is unknown, and so is where the log goes on.
            self.poisoned = Some(error.to_string());
            return Err(error);
        }
        let sealed = std::mem::replace(&mut self.active, next);
        if !is_reused {
            self.sealed.push_back((sealed, self.next_lsn.previous()));
        }
        self.next_epoch = Epoch(self.next_epoch.0 + 1);
        (self.offset, self.last_offset) = (HEADER_AREA_BYTES, None);
        self.synced_lsn = self.next_lsn.previous();
        self.is_torn = false;
        self.known = self.position();
        Ok(())
    }

    fn position(&self) -> Position {
        let (epoch, offset, last_offset) = (self.active.header.epoch, self.offset, self.last_offset);
        Position { epoch, offset, next_lsn: self.next_lsn, link: self.link, last_offset }
    }

    /// Whether the torn active segment holds nothing that counts. Under a new epoch it is as good as a free one, so that
    /// a log whose last spare was torn can still go on.
    fn is_reusable(&self) -> bool {
        self.is_torn && self.active.header.first_lsn >= self.next_lsn
    }

    /// Writes the segments that hold `from` or anything later again: the accepted frames, same bytes at the same
    /// offsets, and their headers, and those of free segments; and syncs them. Needs no space, and may be repeated.
    ///
    /// After a failed write-back the cache can show what the disk does not hold. This makes what was read true. The
    /// scan is the one that [`Log::open`] returned, before anything was appended.
    pub fn rewrite(&mut self, scan: &Scan, from: Lsn) -> Result<(), Error> {
        self.check_poison()?;
        let active = self.active.id();
        let stretches =
            scan.live().filter(|stretch| stretch.last_lsn >= from || stretch.segment.id() == active);
        for stretch in stretches {
            let (id, file) = (stretch.segment.id(), &*stretch.segment.file);
            rewrite_range(file, 0..stretch.end).doing("rewrite", id)?;
            if let Err(source) = file.sync_data() {
                self.poisoned = Some(format!("segment {id}: {source}"));
                return Err(Error::OutcomeUnknown { segment: id, source });
            }
        }
        // A segment whose retirement did not reach the disk would come back with a gap behind it, once the next ones
        // are retired.
        for spare in &mut self.free {
            let id = spare.id();
            spare.write_header(spare.header)?;
            if let Err(source) = spare.file.sync_data() {
                self.poisoned = Some(format!("segment {id}: {source}"));
                return Err(Error::OutcomeUnknown { segment: id, source });
            }
        }
        self.is_dirty = false;
        self.synced_lsn = self.next_lsn.previous();
        Ok(())
    }

    /// Writes what is not known to be synced of the active segment again, in place, and syncs it. Who joins others has not
    /// heard of a failure to write it back that one of them was told of and died with; a frame behind one that is in the
    /// cache alone would be lost with it. The scan is the one that [`Log::join`] returned; its frames are to be read after
    /// this, not before.
    pub fn rewrite_tail(&mut self, scan: &Scan) -> Result<(), Error> {
        self.check_poison()?;
        let Some(from) = scan.offset_of(self.synced_lsn.next())? else { return Ok(()) };
        let id = self.active.id();
        rewrite_range(&*self.active.file, from..self.offset).doing("rewrite", id)?;
        self.sync_active()?;
        self.synced_lsn = self.next_lsn.previous();
        Ok(())
    }

    /// Frees the segments whose last frame is before `below`, oldest first, each durably; the active one stays, and so do
    /// those that there is no space for saying so of, until later. Returns how many.
    ///
    /// # Errors
    /// A failed sync poisons the log: whether the segment still counts is unknown.
    pub fn retire(&mut self, below: Lsn) -> Result<usize, Error> {
        self.check_poison()?;
        let mut retired = 0;
        while self.sealed.front().is_some_and(|(_, last)| *last < below) {
            let (mut segment, last) = self.sealed.pop_front().expect("there is a front");
            let written = segment.write_header(Header { state: State::Free, ..segment.header });
            if written.as_ref().is_err_and(|error| segment.is_untouched_after(error)) {
                self.sealed.push_front((segment, last));
                break;
            }
            let freed = written.and_then(|()| segment.file.sync_data().doing("sync", segment.id()));
            if let Err(error) = freed {
                self.poisoned = Some(error.to_string());
                return Err(error);
            }
            self.free.push(segment);
            retired += 1;
        }
        Ok(retired)
    }

    /// Overwrites what former uses have left in free segments, and behind the last frame. Frames that are not retired stay.
    /// Nobody else may append meanwhile. Returns how many bytes were overwritten.
    ///
    /// # Durability
    /// It is overwritten durably when this returns, as far as the storage writes in place.
    ///
    /// # Errors
    /// It can be tried again, unless it was a sync that failed, which poisons the log.
    pub fn wipe_unused(&mut self) -> Result<u64, Error> {
        self.check_poison()?;
        // Behind a torn end stands what this log has to recognise.
        let active = Some((&self.active, self.offset)).filter(|_| !self.is_torn);
        let free = self.free.iter().map(|segment| (segment, HEADER_AREA_BYTES));
        let mut wiped = 0;
        for (segment, from) in free.chain(active) {
            let bytes = segment.wipe(from)?;
            if bytes == 0 {
                continue;
            }
            if let Err(error) = segment.file.sync_data().doing("sync", segment.id()) {
                self.poisoned = Some(error.to_string());
                return Err(error);
            }
            wiped += bytes;
        }
        Ok(wiped)
    }

    /// Whether no segment but the active one holds frames that count.
    pub fn is_one_segment(&self) -> bool {
        self.sealed.is_empty()
    }

    /// Whether another spare should be made: the active segment is more than half full, at most the one that is
    /// always kept is left, and the log may still grow.
    pub fn wants_spare(&self) -> bool {
        self.free.len() < 2 && self.offset > self.options.segment_bytes / 2 && self.may_grow()
    }

    /// Whether another segment would stay within the log's bound.
    pub fn may_grow(&self) -> bool {
        let segments = (self.sealed.len() + self.free.len() + 1) as u64;
        (segments + 1) * self.options.segment_bytes <= self.options.log_bytes_max
    }

    /// Prepares the making of a spare, which takes long and can go on elsewhere meanwhile.
    pub fn spare_builder(&mut self) -> SpareBuilder {
        let unfinished = self.unfinished.pop();
        let id = unfinished.unwrap_or_else(|| {
            self.next_segment = SegmentId(self.next_segment.0 + 1);
            SegmentId(self.next_segment.0 - 1)
        });
        SpareBuilder {
            dir: self.dir.clone(),
            log: self.id,
            id,
            segment_bytes: self.options.segment_bytes,
            is_unfinished: unfinished.is_some(),
        }
    }

    /// Takes a spare that was made, unless it was found already.
    pub fn add_spare(&mut self, spare: Spare) {
        if self.segments().all(|known| known.id() != spare.0.id()) {
            self.free.push(spare.0);
        }
    }

    /// The position that the next frame gets.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Everything up to here is known durable.
    pub fn synced_lsn(&self) -> Lsn {
        self.synced_lsn
    }

    /// What frames take in the active segment.
    pub fn active_bytes(&self) -> u64 {
        self.offset - HEADER_AREA_BYTES
    }

    /// Whether going on in the next segment gains anything: the active one must not be written any more, or an eighth of
    /// it is used.
    pub fn is_worth_rotating(&self) -> bool {
        self.is_torn || self.active_bytes() > self.options.segment_bytes / 8
    }

    /// What frames take in all segments, those that may be retired included.
    pub fn used_bytes(&self) -> u64 {
        self.sealed.len() as u64 * self.options.segment_bytes + self.active_bytes()
    }

    /// The log's options; `segment_bytes` as it was created with.
    pub fn options(&self) -> LogOptions {
        self.options
    }

    /// Whether a sync has failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }

    fn check_poison(&self) -> Result<(), Error> {
        match &self.poisoned {
            Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

/// Writes bytes of a file again, as reads show them, so that they are dirty once more.
fn rewrite_range(file: &dyn File, range: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; (range.end - range.start).min(1 << 20) as usize];
    let mut offset = range.start;
    while offset < range.end {
        let length = (piece.len() as u64).min(range.end - offset) as usize;
        file.read_exact_at(&mut piece[..length], offset)?;
        file.write_at(&[IoSlice::new(&piece[..length])], offset)?;
        offset += length as u64;
    }
    Ok(())
}

/// Makes a spare segment; from [`Log::spare_builder`].
pub struct SpareBuilder {
    dir: Arc<dyn Dir>,
    log: LogId,
    id: SegmentId,
    segment_bytes: u64,
    is_unfinished: bool,
}

impl SpareBuilder {
    /// Creates the segment, writes zeros to all of it and syncs it.
    pub fn build(self) -> Result<Spare, Error> {
        Segment::create(&*self.dir, self.log, self.id, self.segment_bytes, self.is_unfinished).map(Spare)
    }
}

/// A segment that is ready to be used; for [`Log::add_spare`].
pub struct Spare(Segment);
