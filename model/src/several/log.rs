//! The log: segments of frames, each with a side in the cache and one on the disk.
//!
//! A frame counts if it has the LSN and the link that are expected. A power cut keeps any subset of the frames that
//! were not synced. A write-back that failed leaves a frame in the cache alone, where it counts as clean.

use std::hash::{DefaultHasher, Hash, Hasher};

pub(crate) type Lsn = u8;
/// A transaction: which one of all those that the processes are to commit.
pub(crate) type Tx = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    /// All of a run but its commit: its number, the originals, and the LSN from which on it was staged.
    Body {
        tx: Tx,
        number: u8,
        originals: [u8; 2],
        staged_at: Lsn,
    },
    Commit {
        tx: Tx,
    },
    Applied {
        up_to: Lsn,
    },
    Checkpoint {
        watermark: Lsn,
        next_number: u8,
        by: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Frame {
    lsn: Lsn,
    link: u32,
    /// What its writer knew to be durable.
    synced: Lsn,
    record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    cache: Option<Frame>,
    disk: Option<Frame>,
    /// A write-back would write it.
    is_dirty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Segment {
    epoch: u8,
    first: Lsn,
    link: u32,
    places: Vec<Place>,
}

impl Segment {
    fn check(&self, frame: &Frame) -> u32 {
        let mut hasher = DefaultHasher::new();
        (self.epoch, frame).hash(&mut hasher);
        hasher.finish() as u32
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    segments: Vec<Segment>,
    /// The LSN at which it was closed, durably.
    pub(crate) closed: Option<Lsn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Committed {
    pub(crate) tx: Tx,
    pub(crate) lsn: Lsn,
    pub(crate) staged_at: Lsn,
}

/// What a process knows of the log: what a scan tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct View {
    /// The LSN of the next frame.
    pub(crate) end: Lsn,
    link: u32,
    /// Up to here it is known to be durable.
    pub(crate) synced: Lsn,
    pub(crate) watermark: Lsn,
    pub(crate) next_number: u8,
    /// Above the watermark.
    pub(crate) unsettled: Vec<Committed>,
    applied: Lsn,
    /// Who wrote the last checkpoint record.
    pub(crate) settled_by: u8,
    is_torn: bool,
    /// The log said so when it was opened, and nothing was written since.
    pub(crate) is_closed: bool,
}

impl View {
    /// A holder died inside a commit.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.is_torn || self.unsettled.iter().any(|committed| committed.lsn > self.applied)
    }

    pub(crate) fn set_applied(&mut self, up_to: Lsn) {
        self.applied = up_to;
    }

    pub(crate) fn set_settled(&mut self, watermark: Lsn, by: u8) {
        (self.watermark, self.settled_by) = (watermark, by);
        self.unsettled.retain(|committed| committed.lsn > watermark);
    }
}

/// What the log says where it should have said something else.
pub(crate) type Refused = &'static str;

impl Log {
    pub(crate) fn new() -> Self {
        Self { segments: vec![Segment { epoch: 1, first: 1, link: 0, places: Vec::new() }], closed: None }
    }

    fn accepted(&self) -> Result<Vec<(Frame, u32)>, Refused> {
        let oldest = &self.segments[0];
        let (mut lsn, mut link) = (oldest.first, oldest.link);
        let mut frames = Vec::new();
        for (index, segment) in self.segments.iter().enumerate() {
            let next = self.segments.get(index + 1);
            if segment.first != lsn || segment.link != link {
                return Err("the log has a hole where it was synced");
            }
            for frame in segment.places.iter().map_while(|place| place.cache) {
                if frame.lsn != lsn || frame.link != link || next.is_some_and(|next| next.first == lsn) {
                    break;
                }
                (lsn, link) = (lsn + 1, segment.check(&frame));
                frames.push((frame, link));
            }
        }
        Ok(frames)
    }

    /// Reads all of it, as who opens it does.
    pub(crate) fn scan(&self) -> Result<View, Refused> {
        let closed = self.closed.unwrap_or(Lsn::MAX);
        let mut view = self.view(closed)?;
        if let Some(closed) = self.closed {
            if view.end <= closed {
                return Err("the log ends before it was closed");
            }
            // Nothing is looked for behind it.
            (view.is_closed, view.is_torn) = (true, false);
        }
        Ok(view)
    }

    fn view(&self, last: Lsn) -> Result<View, Refused> {
        let mut frames = self.accepted()?;
        frames.retain(|(frame, _)| frame.lsn <= last);
        let oldest = &self.segments[0];
        let mut view = View { end: oldest.first, link: oldest.link, next_number: 1, ..View::default() };
        // A header comes after the sync of what is before it.
        view.synced = self.segments[self.segments.len() - 1].first - 1;
        let mut run = None;
        let mut commits = Vec::new();
        for (frame, check) in &frames {
            (view.end, view.link) = (frame.lsn + 1, *check);
            view.synced = view.synced.max(frame.synced);
            match frame.record {
                Record::Body { tx, number, staged_at, .. } => {
                    run = Some((tx, staged_at));
                    view.next_number = view.next_number.max(number + 1);
                }
                Record::Commit { tx } => {
                    if let Some((_, staged_at)) = run.take().filter(|run| run.0 == tx) {
                        commits.push(Committed { tx, lsn: frame.lsn, staged_at });
                    }
                }
                Record::Applied { up_to } => view.applied = view.applied.max(up_to),
                Record::Checkpoint { watermark, next_number, by } => {
                    run = None;
                    view.watermark = view.watermark.max(watermark);
                    view.next_number = view.next_number.max(next_number);
                    view.settled_by = by;
                }
            }
        }
        view.unsettled = commits.into_iter().filter(|committed| committed.lsn > view.watermark).collect();
        let last = &self.segments[self.segments.len() - 1];
        let accepted = usize::from(view.end - last.first);
        let is_left =
            last.places[accepted.min(last.places.len())..].iter().any(|place| place.cache.is_some());
        view.is_torn = run.is_some() || is_left;
        Ok(view)
    }

    /// Reads on from what is known.
    pub(crate) fn catch_up(&self, known: &View, is_unsynced_forgotten: bool) -> Result<View, Refused> {
        let mut view = self.view(Lsn::MAX)?;
        view.is_closed = known.is_closed;
        view.synced = view.synced.max(known.synced.min(view.end - 1));
        let first = self.segments[0].first;
        if known.end < first {
            let is_settled = first <= view.watermark + 1;
            return if is_settled { Ok(view) } else { Err("what was retired is not settled") };
        }
        let link = match known.end - first {
            0 => Some(self.segments[0].link),
            count => self.accepted()?.get(usize::from(count) - 1).map(|frame| frame.1),
        };
        // What was not durable may be gone after a failed write-back.
        if link == Some(known.link) || is_unsynced_forgotten && view.end > known.synced {
            return Ok(view);
        }
        Err(if link.is_none() { "the log was set back" } else { "the log has another link" })
    }

    /// Writes a frame where the writer believes the log to end.
    pub(crate) fn append(&mut self, known: &mut View, record: Record) {
        let frame = Frame { lsn: known.end, link: known.link, synced: known.synced, record };
        let segment = self.segments.last_mut().expect("there is always one");
        let at = usize::from(known.end.saturating_sub(segment.first));
        let empty = Place { cache: None, disk: None, is_dirty: false };
        segment.places.resize(segment.places.len().max(at + 1), empty);
        segment.places[at] = Place { cache: Some(frame), is_dirty: true, ..segment.places[at] };
        (known.end, known.link) = (known.end + 1, segment.check(&frame));
    }

    /// How many places of the newest segment are in use.
    pub(crate) fn used(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.places.len())
    }

    /// Goes on in the next segment. What it steps over never counts again.
    pub(crate) fn next_segment(&mut self, known: &View) {
        let last = self.segments.last().expect("there is always one");
        let next = Segment { epoch: last.epoch + 1, first: known.end, link: known.link, places: Vec::new() };
        self.segments.push(next);
    }

    /// Frees the oldest segments that the watermark covers whole.
    pub(crate) fn retire(&mut self, watermark: Lsn) {
        while self.segments.len() > 1 && self.segments[1].first <= watermark + 1 {
            self.segments.remove(0);
        }
    }

    pub(crate) fn sync(&mut self) {
        for place in self.segments.iter_mut().flat_map(|segment| &mut segment.places) {
            if place.is_dirty {
                (place.disk, place.is_dirty) = (place.cache, false);
            }
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.segments.iter().flat_map(|segment| &segment.places).any(|place| place.is_dirty)
    }

    /// Writes all that counts again, in place.
    pub(crate) fn rewrite(&mut self) {
        for place in self.segments.iter_mut().flat_map(|segment| &mut segment.places) {
            place.is_dirty |= place.cache.is_some() && place.cache != place.disk;
        }
    }

    pub(crate) fn lose(&mut self) {
        for place in self.segments.iter_mut().flat_map(|segment| &mut segment.places) {
            place.is_dirty = false;
        }
    }

    pub(crate) fn has_lost(&self) -> bool {
        self.segments
            .iter()
            .flat_map(|segment| &segment.places)
            .any(|place| !place.is_dirty && place.cache != place.disk)
    }

    pub(crate) fn drop_caches(&mut self) {
        for place in self.segments.iter_mut().flat_map(|segment| &mut segment.places) {
            if !place.is_dirty {
                place.cache = place.disk;
            }
        }
    }

    /// Every state in which a power cut may leave the log.
    pub(crate) fn cuts(&self) -> Vec<Self> {
        let mut cuts = vec![self.clone()];
        for segment in 0..self.segments.len() {
            for index in 0..self.segments[segment].places.len() {
                let place = self.segments[segment].places[index];
                if place.cache == place.disk {
                    continue;
                }
                let mut old = cuts.clone();
                for cut in &mut old {
                    cut.segments[segment].places[index].cache = place.disk;
                }
                if place.is_dirty {
                    cuts.extend(old);
                } else {
                    cuts = old;
                }
            }
        }
        for cut in &mut cuts {
            for place in cut.segments.iter_mut().flat_map(|segment| &mut segment.places) {
                (place.disk, place.is_dirty) = (place.cache, false);
            }
            for segment in &mut cut.segments {
                while segment.places.last().is_some_and(|place| place.cache.is_none()) {
                    segment.places.pop();
                }
            }
        }
        cuts
    }

    /// The run of a transaction, if it is still there: its originals.
    pub(crate) fn originals(&self, tx: Tx) -> Option<[u8; 2]> {
        self.accepted().ok()?.iter().rev().find_map(|(frame, _)| match frame.record {
            Record::Body { tx: other, originals, .. } if other == tx => Some(originals),
            _ => None,
        })
    }

    /// The committed transactions that the log still tells of.
    pub(crate) fn committed(&self) -> Vec<Tx> {
        let frames = self.accepted().unwrap_or_default();
        let tx = |(frame, _): &(Frame, u32)| match frame.record {
            Record::Commit { tx } => Some(tx),
            _ => None,
        };
        frames.iter().filter_map(tx).collect()
    }

    /// Whether an `applied` record covers this LSN.
    pub(crate) fn is_applied(&self, lsn: Lsn) -> bool {
        let frames = self.accepted().unwrap_or_default();
        frames.iter().any(|(frame, _)| matches!(frame.record, Record::Applied { up_to } if up_to >= lsn))
    }

    /// Whether the transaction's commit is among these LSNs.
    pub(crate) fn has_commit(&self, tx: Tx, lsns: std::ops::RangeInclusive<Lsn>) -> bool {
        let frames = self.accepted().unwrap_or_default();
        frames.iter().any(|(frame, _)| lsns.contains(&frame.lsn) && frame.record == Record::Commit { tx })
    }
}
