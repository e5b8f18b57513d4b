//! Reads a log without changing anything, and tells how it ends.
//!
//! Frames are accepted one after another for as long as each is whole, belongs to its segment's epoch, has the next
//! LSN and links to the one before. What follows the last of them is judged by whether anything later proves that it
//! had once been synced: then it is damage, and the log is refused. Otherwise it is where a crash cut the log off, and
//! whatever stands behind it was never acknowledged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::thread;

use atomtree_vfs::{Access, Dir, File, Map};

use crate::error::{Doing, Error};
use crate::format::{
    FRAME_ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, HEADER_AREA_BYTES, Header, LogId, State,
    checksum_expected, checksum_found, u64_at,
};
use crate::lsn::{Epoch, Lsn, SegmentId};
use crate::segment::{Opened, Segment};

/// The scan reads segments in pieces: a small one first, because a log that was closed cleanly ends early, and so does what
/// another process has added since the lock was held last; each later one is twice as long, up to a bound.
const FIRST_PIECE_BYTES: usize = 32 << 10;
const PIECE_BYTES: usize = 1 << 20;

/// Segments that are together at least this large are read by two threads: copying and checksumming is what takes long, and
/// twice as much memory is read in the time.
const TWO_THREADS_BYTES_MIN: u64 = 64 << 20;

/// How often a segment's length may be checksummed while looking for proofs behind its end. Bytes that look like
/// frames everywhere were made to, and are refused rather than searched for ever.
const SEARCH_PASSES_MAX: u64 = 64;

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With the frame after which the log was closed.
    Closed,
    /// Nothing of the log follows.
    Clean,
    /// With a frame that is incomplete, or followed by frames that were never acknowledged.
    Torn {
        /// Where.
        segment: SegmentId,
        /// Byte offset of what is torn.
        offset: u64,
    },
}

impl Tail {
    /// Whether a crash cut the log off in the middle of a frame or batch.
    pub fn is_torn(&self) -> bool {
        matches!(self, Self::Torn { .. })
    }
}

/// One accepted frame.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// Its position.
    pub lsn: Lsn,
    /// What its payload is.
    pub kind: NonZeroU8,
    /// Its payload.
    pub payload: Cow<'a, [u8]>,
    /// What was known durable when it was written.
    pub synced_lsn: Lsn,
    /// Where it stands.
    pub segment: SegmentId,
    /// Byte offset of its header there.
    pub offset: u64,
}

/// Where a reader of the log stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// The use of a segment in which the last frame was read, or shall be written.
    pub(crate) epoch: Epoch,
    /// Byte offset there behind it.
    pub(crate) offset: u64,
    /// The position of the next frame.
    pub(crate) next_lsn: Lsn,
    /// CRC of the last frame.
    pub(crate) link: u32,
    /// Byte offset of that frame, if it is in the same use.
    pub(crate) last_offset: Option<u64>,
}

impl Position {
    /// Refuses a segment in which the last frame that is known does not stand where it stood.
    pub(crate) fn check_last_frame(&self, segment: &Segment) -> Result<(), Error> {
        let Some(last_offset) = self.last_offset else { return Ok(()) };
        let mut bytes = [0; FRAME_HEADER_BYTES];
        segment.file.read_exact_at(&mut bytes, last_offset).doing("read", segment.id())?;
        if checksum_found(&bytes) == self.link {
            return Ok(());
        }
        let found = "another frame, or none, where the last one stood".into();
        Err(Error::SetBack { found, expected: format!("lsn {}", self.next_lsn.previous()) })
    }
}

/// What an open log knows already, so that only the rest is read.
pub(crate) struct Familiar {
    pub(crate) position: Position,
    /// Every segment that is open.
    pub(crate) segments: Vec<Segment>,
    /// The positions of the last frames of older segments, by epoch.
    pub(crate) last_lsns: BTreeMap<Epoch, Lsn>,
    /// Whether those segments, with the headers that are known, are all there are: then only frames are new.
    pub(crate) is_all: bool,
}

/// How much of a segment is searched for proofs that what stands behind the end had been synced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// All of it: the power may have failed, and frames may survive in any order.
    Whole,
    /// What has been read anyway: other processes have the log open, so that it is as they left it in the cache, up to
    /// where the last of them was when it died.
    Near,
}

/// An active segment and the part of it that counts.
pub(crate) struct Stretch {
    pub(crate) segment: Segment,
    map: Arc<dyn Map>,
    /// Offset and position of the first frame that is read.
    start: u64,
    start_lsn: Lsn,
    /// Offset behind the last accepted frame.
    pub(crate) end: u64,
    /// Offset of that frame.
    pub(crate) last_offset: Option<u64>,
    /// LSN of the last accepted frame up to its end.
    pub(crate) last_lsn: Lsn,
    /// Whether a later segment took over at or before this one's first frame, so that nothing in it counts.
    pub(crate) is_void: bool,
}

/// What the log holds, as it was when it was read.
pub struct Scan {
    /// Active segments by epoch, void ones included; from the one on that holds the first frame that was not known.
    pub(crate) stretches: Vec<Stretch>,
    /// Active segments before those, each with the position of its last frame.
    pub(crate) older: Vec<(Segment, Lsn)>,
    pub(crate) free: Vec<Segment>,
    /// Segments whose creation was cut short.
    pub(crate) unfinished: Vec<SegmentId>,
    /// CRC of the last accepted frame.
    pub(crate) link: u32,
    pub(crate) epoch_max: Epoch,
    known_synced: Lsn,
    tail: Tail,
}

/// Reads the log in `dir`. Changes nothing, and may run beside a writer; what it sees is then some moment's state of
/// each segment.
///
/// # Errors
/// [`Error::Corrupt`] for damage in what had been synced, [`Error::FormatVersion`], [`Error::ForeignSegment`],
/// [`Error::Missing`] without an active segment, [`Error::Io`].
pub fn scan(dir: &dyn Dir, log: LogId) -> Result<Scan, Error> {
    scan_with(dir, log, Access::Read, Search::Whole, None)
}

pub(crate) fn scan_with(
    dir: &dyn Dir,
    log: LogId,
    access: Access,
    search: Search,
    familiar: Option<&Familiar>,
) -> Result<Scan, Error> {
    let (segments, unfinished) = match familiar {
        Some(familiar) if familiar.is_all => (familiar.segments.clone(), Vec::new()),
        _ => open_segments(dir, log, access, familiar)?,
    };
    let (mut free, mut active): (Vec<_>, Vec<_>) =
        segments.into_iter().partition(|segment| segment.header.state == State::Free);
    active.sort_by_key(|segment| segment.header.epoch);
    free.sort_by_key(Segment::id);
    if let Some(pair) = active.windows(2).find(|pair| pair[0].header.epoch == pair[1].header.epoch) {
        return Err(Error::Corrupt {
            segment: pair[1].id(),
            offset: 0,
            lsn: Lsn(0),
            found: format!("epoch {}, which segment {} has too", pair[1].header.epoch, pair[0].id()),
            expected: "an epoch of its own".into(),
        });
    }
    if let Some(familiar) = familiar {
        familiar.check_not_set_back(&active)?;
    }
    let epoch_max = active.iter().chain(&free).map(|segment| segment.header.epoch).max().unwrap_or_default();
    // A segment ends where the earliest of its successors begins: one that went on at an LSN voids everything at and
    // after it in older segments.
    let limits: Vec<Option<Lsn>> = (0..active.len())
        .map(|index| active[index + 1..].iter().map(|later| later.header.first_lsn).min())
        .collect();
    // Void ones say nothing about where the log begins: those before them may have been retired already. The last is
    // never void.
    let is_void = |header: &Header, limit: Option<Lsn>| limit.is_some_and(|limit| limit <= header.first_lsn);
    let first = active
        .iter()
        .zip(&limits)
        .find(|(segment, limit)| !is_void(&segment.header, **limit))
        .map(|(segment, _)| segment.header)
        .ok_or(Error::Missing)?;
    let mut scan = Scan {
        stretches: Vec::new(),
        older: Vec::new(),
        free,
        unfinished,
        link: first.link,
        epoch_max,
        known_synced: first.first_lsn.previous(),
        tail: Tail::Clean,
    };
    let mut end_lsn = first.first_lsn.previous();
    // What is known of a segment is not read again; if it has been retired since, all of it was settled.
    let resumed = familiar
        .map(|familiar| (familiar, familiar.position))
        .filter(|(_, position)| active.iter().any(|segment| segment.header.epoch == position.epoch));
    let is_older = |header: &Header| resumed.is_some_and(|(_, position)| header.epoch < position.epoch);
    let resumed_in = |header: &Header| {
        resumed.map(|(_, position)| position).filter(|position| position.epoch == header.epoch)
    };
    let walks = active.iter().zip(&limits).map(|(segment, limit)| {
        let (header, walk) = (&segment.header, Walk::new(&segment.file, &segment.header, *limit));
        match resumed_in(header) {
            Some(Position { offset, next_lsn, link, .. }) => {
                Some(Walk { offset, end_lsn: next_lsn.previous(), link, ..walk })
            }
            None => (!is_older(header) && !is_void(header, *limit)).then_some(walk),
        }
    });
    let mut walks: Vec<Option<Walk>> = walks.collect();
    walk_all(walks.iter_mut().flatten());
    for ((segment, limit), walk) in active.into_iter().zip(limits).zip(walks) {
        let header = segment.header;
        if let Some((familiar, position)) = resumed.filter(|_| is_older(&header)) {
            let last_lsn = familiar.last_lsns.get(&header.epoch).copied();
            scan.older.push((segment, last_lsn.unwrap_or(position.next_lsn.previous())));
            continue;
        }
        let (mut start, mut start_lsn) = (HEADER_AREA_BYTES, header.first_lsn);
        let map = segment.map().doing("map", header.segment)?;
        let resumed_here = resumed_in(&header);
        if let Some(position) = resumed_here {
            position.check_last_frame(&segment)?;
            (start, start_lsn) = (position.offset, position.next_lsn);
            (end_lsn, scan.link) = (start_lsn.previous(), position.link);
        }
        let Some(mut walk) = walk else {
            // Nothing in it keeps it from being retired, so its last position is its predecessor's.
            let (end, last_offset, last_lsn, is_void) = (start, None, end_lsn, true);
            let stretch = Stretch { segment, map, start, start_lsn, end, last_offset, last_lsn, is_void };
            scan.stretches.push(stretch);
            continue;
        };
        if resumed_here.is_none() && (header.first_lsn, header.link) != (end_lsn.next(), scan.link) {
            return Err(Error::Corrupt {
                segment: header.segment,
                offset: 0,
                lsn: header.first_lsn,
                found: format!("a header that goes on from lsn {end_lsn} with link {:#010x}", scan.link),
                expected: format!("lsn {} with link {:#010x}", header.first_lsn.previous(), header.link),
            });
        }
        walk.outcome.take().unwrap_or(Ok(()))?;
        (end_lsn, scan.link) = (walk.end_lsn, walk.link);
        scan.known_synced = scan.known_synced.max(walk.known_synced);
        let end = walk.offset;
        let last_offset = walk.last_offset.or(resumed_here.and_then(|position| position.last_offset));
        match limit {
            // The next header was written only when everything up to it was durable.
            Some(limit) if end_lsn.next() != limit => {
                return Err(Error::Corrupt {
                    segment: header.segment,
                    offset: end,
                    lsn: end_lsn.next(),
                    found: "no whole frame".into(),
                    expected: format!("the frames up to lsn {limit}, which a later segment goes on from"),
                });
            }
            Some(limit) => scan.known_synced = scan.known_synced.max(limit.previous()),
            // The log was closed after this frame, and nothing was written behind it: the header would say so.
            None if header.closed > Lsn(0) && header.closed == end_lsn => {
                scan.tail = Tail::Closed;
                scan.known_synced = end_lsn;
            }
            None if header.closed > end_lsn => {
                return Err(Error::Corrupt {
                    segment: header.segment,
                    offset: end,
                    lsn: end_lsn.next(),
                    found: "no whole frame".into(),
                    expected: format!(
                        "the frames up to lsn {}, with which the log was closed",
                        header.closed
                    ),
                });
            }
            None => scan.tail = walk.judge_tail(end_lsn.next(), search)?,
        }
        let (last_lsn, is_void) = (end_lsn, false);
        scan.stretches.push(Stretch { segment, map, start, start_lsn, end, last_offset, last_lsn, is_void });
    }
    Ok(scan)
}

/// Walks through segments: each header says what its first frame goes on from, so that none waits for the one before.
fn walk_all<'a>(walks: impl Iterator<Item = &'a mut Walk>) {
    let mut walks: Vec<&mut Walk> = walks.collect();
    let bytes: u64 = walks.iter().map(|walk| walk.segment_bytes - walk.offset).sum();
    let half = walks.len() / 2;
    if half > 0 && bytes >= TWO_THREADS_BYTES_MIN {
        let (near, far) = walks.split_at_mut(half);
        thread::scope(|scope| {
            // Without another thread this one does all of it, below.
            let _ = thread::Builder::new()
                .spawn_scoped(scope, || far.iter_mut().for_each(|walk| walk.run_once()));
            near.iter_mut().for_each(|walk| walk.run_once());
        });
    }
    walks.into_iter().for_each(Walk::run_once);
}

/// Opens every segment that has been finished, and names the others.
fn open_segments(
    dir: &dyn Dir,
    log: LogId,
    access: Access,
    familiar: Option<&Familiar>,
) -> Result<(Vec<Segment>, Vec<SegmentId>), Error> {
    let (mut segments, mut unfinished) = (Vec::new(), Vec::new());
    for entry in dir.list().on_directory("list")? {
        let Some(id) = entry.name.to_str().and_then(SegmentId::from_file_name) else { continue };
        match open_segment(dir, log, id, access, familiar)? {
            Opened::Unfinished => unfinished.push(id),
            Opened::Segment(segment) => segments.push(segment),
        }
    }
    Ok((segments, unfinished))
}

/// Opens a segment, or reads the header again of one that is open.
fn open_segment(
    dir: &dyn Dir,
    log: LogId,
    id: SegmentId,
    access: Access,
    familiar: Option<&Familiar>,
) -> Result<Opened, Error> {
    if let Some(known) = familiar.and_then(|familiar| familiar.segments.iter().find(|known| known.id() == id))
    {
        if !known.is_named_in(dir).doing("look at", id)? {
            return Err(Error::SetBack {
                found: format!("another file as segment {id}"),
                expected: "the one that this process has open".into(),
            });
        }
        return known.again(log);
    }
    let opened = Segment::open(dir, log, id, access)?;
    match &opened {
        Opened::Segment(segment) if check_header_is_newest(segment).is_err() => {}
        _ => return Ok(opened),
    }
    // A writer may have gone on in it since its header was read; then the second look is at the new one.
    let opened = Segment::open(dir, log, id, access)?;
    if let Opened::Segment(segment) = &opened {
        check_header_is_newest(segment)?;
    }
    Ok(opened)
}

impl Familiar {
    /// Refuses a log that does not go on from what is known of it.
    fn check_not_set_back(&self, active: &[Segment]) -> Result<(), Error> {
        let Position { epoch, next_lsn, .. } = self.position;
        let later = active.iter().filter(|segment| segment.header.epoch > epoch);
        let goes_on_at = later.map(|segment| segment.header.first_lsn).min();
        let is_there = active.iter().any(|segment| segment.header.epoch == epoch);
        if goes_on_at.map_or(is_there, |first_lsn| first_lsn >= next_lsn) {
            return Ok(());
        }
        let found = match goes_on_at {
            Some(lsn) => format!("a segment that goes on at lsn {lsn}"),
            None => {
                format!("segments up to epoch {}", active.last().map_or(Epoch(0), |last| last.header.epoch))
            }
        };
        Err(Error::SetBack {
            found,
            expected: format!("epoch {epoch} or later, and lsn {next_lsn} or later"),
        })
    }
}

/// Refuses a header that stands before the first frame of a later use: that use's header was durable before its frames
/// were written, so storage has lost it, and shows an older one.
fn check_header_is_newest(segment: &Segment) -> Result<(), Error> {
    let header = &segment.header;
    let mut bytes = [0; FRAME_HEADER_BYTES];
    match segment.file.read_exact_at(&mut bytes, HEADER_AREA_BYTES) {
        // Nothing in it counts.
        Err(_) if header.state == State::Free => return Ok(()),
        read => read.doing("read", header.segment)?,
    }
    let Some(first) = FrameHeader::decode(&bytes).filter(|first| first.epoch > header.epoch) else {
        return Ok(());
    };
    let mut later = Walk::new(&segment.file, &Header { epoch: first.epoch, ..*header }, None);
    if later.frame_at(HEADER_AREA_BYTES, None)?.is_none() {
        return Ok(());
    }
    Err(Error::Corrupt {
        segment: header.segment,
        offset: 0,
        lsn: first.lsn,
        found: format!("the header of epoch {}", header.epoch),
        expected: format!("that of epoch {}, whose frames follow it", first.epoch),
    })
}

/// Reads one segment frame by frame, in pieces that are copied out: what is not accepted yet may be being written.
struct Walk {
    file: Arc<dyn File>,
    segment: SegmentId,
    segment_bytes: u64,
    epoch: Epoch,
    limit: Option<Lsn>,
    offset: u64,
    /// The last frame that was accepted, or the one before the first.
    end_lsn: Lsn,
    /// CRC of that frame.
    link: u32,
    /// The highest position that the frames prove to have been durable.
    known_synced: Lsn,
    /// Offset of the last frame that was accepted.
    last_offset: Option<u64>,
    piece: Vec<u8>,
    piece_offset: u64,
    /// Bytes read and checksummed while judging the tail.
    work: u64,
    /// How it ended, once it has been run.
    outcome: Option<Result<(), Error>>,
}

impl Walk {
    /// From the first frame under the header.
    fn new(file: &Arc<dyn File>, header: &Header, limit: Option<Lsn>) -> Self {
        Self {
            file: file.clone(),
            segment: header.segment,
            segment_bytes: header.segment_bytes,
            epoch: header.epoch,
            limit,
            offset: HEADER_AREA_BYTES,
            end_lsn: header.first_lsn.previous(),
            link: header.link,
            known_synced: Lsn(0),
            last_offset: None,
            piece: Vec::new(),
            piece_offset: 0,
            work: 0,
            outcome: None,
        }
    }

    fn run_once(&mut self) {
        if self.outcome.is_none() {
            self.outcome = Some(self.run());
        }
        if self.limit.is_some() {
            // The others are run before this one is dropped, and only the last one's end is looked at.
            self.piece = Vec::new();
        }
    }

    /// Accepts frames up to the limit or the first that is not the next one.
    fn run(&mut self) -> Result<(), Error> {
        while self.limit.is_none_or(|limit| self.end_lsn.next() < limit) {
            let Some((header, checksum)) = self.frame_at(self.offset, Some(self.end_lsn.next()))? else {
                return Ok(());
            };
            // One that knows of syncs in its own future was not written by us, whatever its checksum.
            if header.link != self.link || header.synced_lsn >= header.lsn {
                return Ok(());
            }
            self.last_offset = Some(self.offset);
            self.offset += header.frame_bytes();
            self.end_lsn = header.lsn;
            self.link = checksum;
            self.known_synced = self.known_synced.max(header.synced_lsn);
        }
        Ok(())
    }

    /// The whole frame of this epoch at `offset`, with its checksum; only the one with this LSN, if one is given.
    fn frame_at(&mut self, offset: u64, lsn: Option<Lsn>) -> Result<Option<(FrameHeader, u32)>, Error> {
        let left = self.segment_bytes - offset;
        if left < FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let epoch = self.epoch;
        let bytes = self.bytes(offset, FRAME_HEADER_BYTES)?;
        let Some(header) = FrameHeader::decode(bytes.try_into().expect("as many as asked for")) else {
            return Ok(None);
        };
        let is_wanted = header.epoch == epoch && lsn.is_none_or(|lsn| header.lsn == lsn);
        if !is_wanted || header.frame_bytes() > left {
            return Ok(None);
        }
        self.work += header.frame_bytes();
        let bytes = self.bytes(offset, header.frame_bytes() as usize)?;
        let found = checksum_found(bytes);
        Ok((found == checksum_expected(bytes)).then_some((header, found)))
    }

    /// How many bytes from `offset` on have been read already.
    fn in_piece(&self, offset: u64) -> usize {
        match offset.checked_sub(self.piece_offset) {
            Some(at) => self.piece.len().saturating_sub(usize::try_from(at).unwrap_or(usize::MAX)),
            None => 0,
        }
    }

    /// Bytes of the segment, from the piece that has been read or from a new one. The length is bounded by what is
    /// left of the segment, whatever a frame claims.
    fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], Error> {
        if self.in_piece(offset) < length {
            let piece_bytes = (2 * self.piece.len()).clamp(FIRST_PIECE_BYTES, PIECE_BYTES);
            let wanted = (piece_bytes.max(length) as u64).min(self.segment_bytes - offset) as usize;
            self.work += wanted as u64;
            self.piece.resize(wanted, 0);
            self.piece_offset = offset;
            self.file.read_exact_at(&mut self.piece, offset).doing("read", self.segment)?;
        }
        let start = (offset - self.piece_offset) as usize;
        Ok(&self.piece[start..start + length])
    }

    /// Tells what follows the last accepted frame, where the frame `lsn` would be.
    fn judge_tail(&mut self, lsn: Lsn, search: Search) -> Result<Tail, Error> {
        let end = self.offset;
        let torn = Tail::Torn { segment: self.segment, offset: end };
        let mut tail = Tail::Clean;
        if self.segment_bytes - end >= FRAME_HEADER_BYTES as u64 {
            let epoch = self.epoch;
            let bytes = self.bytes(end, FRAME_HEADER_BYTES)?;
            let begun = FrameHeader::decode(bytes.try_into().expect("as many as asked for"))
                .is_some_and(|header| header.epoch == epoch && header.lsn == lsn);
            if begun {
                tail = torn;
            }
        }
        self.work = 0;
        let mut offset = end + FRAME_ALIGNMENT as u64;
        while let Some(candidate) = self.next_candidate(offset, lsn, search)? {
            if let Some((header, _)) = self.frame_at(candidate, None)? {
                if header.synced_lsn >= lsn && header.synced_lsn < header.lsn {
                    return Err(self.corrupt_end(
                        lsn,
                        "no whole frame",
                        format!(
                            "the one that lsn {}, at offset {candidate}, knows to have been synced",
                            header.lsn
                        ),
                    ));
                }
                tail = torn;
            }
            if self.work > SEARCH_PASSES_MAX * self.segment_bytes {
                let found = "bytes that look like frames everywhere";
                return Err(self.corrupt_end(lsn, found, "the end of the log".into()));
            }
            offset = candidate + FRAME_ALIGNMENT as u64;
        }
        Ok(tail)
    }

    fn corrupt_end(&self, lsn: Lsn, found: &str, expected: String) -> Error {
        Error::Corrupt { segment: self.segment, offset: self.offset, lsn, found: found.into(), expected }
    }

    /// The next offset, from `offset` on, where a later frame of this epoch could start.
    fn next_candidate(&mut self, mut offset: u64, lsn: Lsn, search: Search) -> Result<Option<u64>, Error> {
        let epoch = self.epoch.0;
        let lsn_max = lsn.0.saturating_add(self.segment_bytes / FRAME_HEADER_BYTES as u64);
        let segment_bytes = self.segment_bytes;
        while offset + FRAME_HEADER_BYTES as u64 <= segment_bytes {
            // What has been read already is looked at before anything is read, so that many candidates cost no more
            // than one.
            let length = match self.in_piece(offset) {
                left if left >= FRAME_HEADER_BYTES => left,
                _ if search == Search::Near => return Ok(None),
                _ => (PIECE_BYTES as u64).min(segment_bytes - offset) as usize,
            };
            let bytes = self.bytes(offset, length)?;
            let last = length - FRAME_HEADER_BYTES;
            for at in (0..=last).step_by(FRAME_ALIGNMENT) {
                if u64_at(bytes, at + 16) != epoch || bytes[at + 4] == 0 {
                    continue;
                }
                let found = u64_at(bytes, at + 24);
                if found > lsn.0 && found <= lsn_max {
                    return Ok(Some(offset + at as u64));
                }
            }
            offset += (last / FRAME_ALIGNMENT * FRAME_ALIGNMENT + FRAME_ALIGNMENT) as u64;
        }
        Ok(None)
    }
}

impl Scan {
    /// How the log ends.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The last accepted frame's position; the one before the first if there is none.
    pub fn end_lsn(&self) -> Lsn {
        self.live().last().map_or(Lsn(0), |stretch| stretch.last_lsn)
    }

    /// The position of the oldest frame that was read, or would be: of those that are still there, or, of a log that
    /// was known in part, of those that were not known.
    pub fn first_lsn(&self) -> Lsn {
        self.live().next().map_or(Lsn(1), |stretch| stretch.start_lsn)
    }

    /// The highest position that accepted frames and headers prove to have been durable.
    pub fn known_synced(&self) -> Lsn {
        self.known_synced
    }

    /// Segments as (total, free, bytes of accepted frames).
    pub fn usage(&self) -> (usize, usize, u64) {
        let used = self.live().map(|stretch| stretch.end - HEADER_AREA_BYTES).sum();
        (self.stretches.len() + self.free.len(), self.free.len(), used)
    }

    /// All accepted frames, in order.
    pub fn frames(&self) -> Frames<'_> {
        Frames { stretches: self.live().collect::<Vec<_>>().into_iter(), current: None }
    }

    /// Where the frame at `lsn` stands in the last segment, or the first one there that is later; `None` if there is none.
    pub(crate) fn offset_of(&self, lsn: Lsn) -> Result<Option<u64>, Error> {
        let Some(last) = self.stretches.last().filter(|last| last.last_lsn >= lsn) else { return Ok(None) };
        let mut region = Frames::read(last)?;
        while region.next_lsn < lsn {
            region.next_frame()?;
        }
        Ok(Some(region.start + region.at as u64))
    }

    /// Where it ends.
    pub(crate) fn position(&self) -> Option<Position> {
        let Stretch { segment, end, last_offset, .. } = self.stretches.last()?;
        Some(Position {
            epoch: segment.header.epoch,
            offset: *end,
            next_lsn: self.end_lsn().next(),
            link: self.link,
            last_offset: *last_offset,
        })
    }

    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = &Stretch> {
        self.stretches.iter().filter(|stretch| !stretch.is_void)
    }
}

/// Iterator over accepted frames; from [`Scan::frames`]. Ends after an error.
pub struct Frames<'a> {
    stretches: std::vec::IntoIter<&'a Stretch>,
    current: Option<Region<'a>>,
}

/// The accepted part of one segment, read through the map at once.
struct Region<'a> {
    segment: SegmentId,
    epoch: Epoch,
    next_lsn: Lsn,
    bytes: Cow<'a, [u8]>,
    /// Offset of the first of them.
    start: u64,
    at: usize,
}

impl<'a> Frames<'a> {
    fn read(stretch: &'a Stretch) -> Result<Region<'a>, Error> {
        let Header { segment, epoch, .. } = stretch.segment.header;
        let start = stretch.start;
        let bytes = stretch.map.read(start as usize..stretch.end as usize).doing("read", segment)?;
        Ok(Region { segment, epoch, next_lsn: stretch.start_lsn, bytes, start, at: 0 })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let error = match self.current.as_mut().filter(|region| region.at < region.bytes.len()) {
                Some(region) => match region.next_frame() {
                    Ok(frame) => return Some(Ok(frame)),
                    Err(error) => error,
                },
                None => match Self::read(self.stretches.next()?) {
                    Ok(region) => {
                        self.current = Some(region);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            (self.current, self.stretches) = (None, Vec::new().into_iter());
            return Some(Err(error));
        }
    }
}

impl<'a> Region<'a> {
    fn next_frame(&mut self) -> Result<Frame<'a>, Error> {
        let rest = &self.bytes[self.at..];
        let offset = self.start + self.at as u64;
        // The scan accepted these bytes. That they are others now means that a writer has recycled the segment since,
        // or that the cache has forgotten what it could not write back.
        let header = rest
            .first_chunk()
            .and_then(FrameHeader::decode)
            .filter(|header| (header.epoch, header.lsn) == (self.epoch, self.next_lsn))
            .filter(|header| header.frame_bytes() <= rest.len() as u64)
            .filter(|header| {
                let frame = &rest[..header.frame_bytes() as usize];
                checksum_found(frame) == checksum_expected(frame)
            })
            .ok_or_else(|| io::Error::other("the segment changed while it was being read"))
            .doing("read", self.segment)?;
        let payload = self.at + FRAME_HEADER_BYTES..self.at + FRAME_HEADER_BYTES + header.length as usize;
        self.at += header.frame_bytes() as usize;
        self.next_lsn = self.next_lsn.next();
        let payload = match &self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[payload]),
            Cow::Owned(bytes) => Cow::Owned(bytes[payload].to_vec()),
        };
        let FrameHeader { lsn, kind, synced_lsn, .. } = header;
        Ok(Frame { lsn, kind, payload, synced_lsn, segment: self.segment, offset })
    }
}
