//! The log, bit by bit: small ones, of which every bit, length and sector of what is used is damaged. What must come of
//! it is forecast from which frame is the first that changes, and whether a later one proves that it had been synced.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use atomtree::vfs::Vfs;
use atomtree::vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;
use atomtree_recovery::places::StoreFile;
use atomtree_wal::format::{FrameHeader, HEADER_AREA_BYTES, Header, HeaderSector, State};
use atomtree_wal::{Epoch, SegmentId, Tail};

use super::{
    Damage, Nodes, ROOT, SECTOR_BYTES, STORE, Verdict, earlier_contents, end, files, judge, judge_with,
    on_two_threads, options, user_tree,
};

/// A frame that counts.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) segment: PathBuf,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) lsn: u64,
    synced: u64,
}

/// A segment's file.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) header: Header,
    /// Behind its last frame that counts.
    pub(super) used: usize,
    /// What it held earlier.
    earlier: Vec<Vec<u8>>,
}

impl Segment {
    pub(super) fn name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }

    pub(super) fn is_free(&self) -> bool {
        self.header.state == State::Free
    }
}

/// A machine that went down with a store on it.
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) sim: Sim,
    pub(super) segments: Vec<Segment>,
    pub(super) frames: Vec<Frame>,
    pub(super) is_closed: bool,
    /// The tree as it shall be.
    pub(super) tree: Nodes,
    /// As it was before the last transaction.
    tree_without_last: Nodes,
    /// Whether the last transaction was applied.
    is_applied: bool,
}

/// What must come of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forecast {
    /// Refused, with this offset.
    Refused(usize),
    /// Does no harm.
    Harmless,
    /// Ends the log before its last synced batch is complete.
    EndsLog,
    /// The one or the other, because a displaced frame may prove what was synced.
    EndsLogOrRefused(usize),
    /// Refused or harmless: an older header is a whole one.
    Older,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Closed,
    Killed,
    /// Killed when the last transaction was durable, and before anything of it was applied.
    KilledBeforeApply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    OneSegment,
    /// Each segment has been used before, for longer.
    Reused,
    /// The same; and an append failed, so that the log went on in the next segment.
    TwoSegments,
}

/// Every shape with the endings that make a difference: closing settles everything, which leaves one active segment; and
/// what holds for two segments that were used before holds for one.
pub(super) const ALL: [(Shape, Ending); 6] = [
    (Shape::OneSegment, Ending::Closed),
    (Shape::OneSegment, Ending::Killed),
    (Shape::OneSegment, Ending::KilledBeforeApply),
    (Shape::TwoSegments, Ending::Killed),
    (Shape::TwoSegments, Ending::KilledBeforeApply),
    (Shape::Reused, Ending::Closed),
];

impl Machine {
    pub(super) fn new(shape: Shape, ending: Ending) -> Self {
        let sim = Sim::new(5);
        sim.write_file("/root/a", b"first");
        sim.write_file("/root/gone", b"to be removed");
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let store = options(Arc::new(faults.clone())).open(ROOT).unwrap();
        let mut earlier = vec![sim.kill()];
        if shape != Shape::OneSegment {
            let is_gone_round =
                || files(&sim, "wal").iter().any(|(_, bytes)| header_of(bytes).epoch > Epoch(3));
            for round in 0_u32.. {
                let mut tx = store.begin().unwrap();
                tx.write("a", round.to_le_bytes().repeat(150)).unwrap();
                tx.commit().unwrap();
                store.checkpoint().unwrap();
                if round.is_multiple_of(9) {
                    earlier.push(sim.kill());
                }
                if is_gone_round() {
                    break;
                }
            }
        }
        let commit = |number: u8| {
            let mut tx = store.begin().unwrap();
            tx.write("a", [number; 9]).unwrap();
            tx.write(format!("new/{number}"), [number; 30]).unwrap();
            if number == 3 {
                tx.remove("gone").unwrap();
            }
            tx.commit()
        };
        commit(1).unwrap();
        earlier.push(sim.kill());
        commit(2).unwrap();
        earlier.push(sim.kill());
        if shape == Shape::TwoSegments {
            faults.set_rule(Arc::new(|call| {
                (call.verb == Verb::WriteAt && is_of_log(call)).then_some(Fault::Error(5))
            }));
            commit(9).unwrap_err();
            faults.set_rule(fail_nothing());
        }
        let without_last = user_tree(&sim);
        let synced = Arc::new(Mutex::new(None));
        let (machine, seen) = (sim.clone(), Arc::clone(&synced));
        faults.set_rule(Arc::new(move |call| {
            if matches!(call.verb, Verb::Exchange | Verb::Rename | Verb::CreateDir) {
                seen.lock().unwrap().get_or_insert_with(|| machine.kill());
            }
            None
        }));
        commit(3).unwrap();
        faults.set_rule(fail_nothing());
        let tree = user_tree(&sim);
        let sim = match ending {
            Ending::Closed | Ending::Killed => end(&sim, store, ending == Ending::Closed),
            Ending::KilledBeforeApply => {
                std::mem::forget(store);
                synced.lock().unwrap().take().expect("something was applied")
            }
        };
        let name = format!("{shape:?}, {ending:?}");
        let is_applied = ending != Ending::KilledBeforeApply;
        Self { is_applied, ..Self::of(name, sim, &earlier, tree, without_last) }
    }

    pub(super) fn of(name: String, sim: Sim, earlier: &[Sim], tree: Nodes, tree_without_last: Nodes) -> Self {
        let store = sim.open_root(Path::new(STORE)).unwrap();
        let (file, _) = StoreFile::read(&*store).unwrap();
        let scan = atomtree_wal::scan(&*store.open_dir(Path::new("wal")).unwrap(), file.id).unwrap();
        let frames: Vec<Frame> = (scan.frames().map(Result::unwrap))
            .map(|frame| Frame {
                segment: Path::new(STORE).join("wal").join(frame.segment.file_name()),
                start: frame.offset as usize,
                end: frame.offset as usize + (40 + frame.payload.len()).next_multiple_of(8),
                lsn: frame.lsn.0,
                synced: frame.synced_lsn.0,
            })
            .collect();
        let segments = files(&sim, "wal").into_iter().map(|(path, bytes)| {
            let header = header_of(&bytes);
            let used = frames.iter().filter(|frame| frame.segment == path).map(|frame| frame.end).max();
            let earlier = earlier_contents(earlier, &path);
            Segment { path, bytes, header, used: used.unwrap_or(HEADER_AREA_BYTES as usize), earlier }
        });
        let (is_closed, segments) = (scan.tail() == Tail::Closed, segments.collect());
        Self { name, sim, segments, frames, is_closed, tree, tree_without_last, is_applied: true }
    }

    /// All there are.
    fn all() -> Vec<Self> {
        let all: Vec<Self> = ALL.into_iter().map(|(shape, ending)| Self::new(shape, ending)).collect();
        for machine in &all {
            assert!(machine.frames.len() >= 10, "{}: {:?}", machine.name, machine.frames);
            let active = machine.segments.iter().filter(|segment| !segment.is_free());
            let expected = 1 + usize::from(machine.name.starts_with("TwoSegments"));
            assert_eq!(active.count(), expected, "{}", machine.name);
        }
        all
    }

    pub(super) fn newest(&self) -> &Segment {
        let active = self.segments.iter().filter(|segment| !segment.is_free());
        active.max_by_key(|segment| segment.header.epoch).unwrap()
    }

    /// The link of the frame at this position: the checksum of the one before, across segments.
    pub(super) fn link_before(&self, lsn: u64) -> u32 {
        let frame = self.frames.iter().rfind(|frame| frame.lsn < lsn).unwrap();
        let segment = self.segments.iter().find(|segment| segment.path == frame.segment).unwrap();
        u32::from_le_bytes(segment.bytes[frame.start..frame.start + 4].try_into().unwrap())
    }

    /// The frames that former uses of the segments left, in the order of their first appearance.
    pub(super) fn former_frames(&self) -> Vec<Vec<u8>> {
        let mut former: Vec<Vec<u8>> = Vec::new();
        for segment in &self.segments {
            for bytes in &segment.earlier {
                if header_of(bytes).epoch == self.newest().header.epoch {
                    continue;
                }
                let mut at = HEADER_AREA_BYTES as usize;
                while let Some(frame) = FrameHeader::decode(bytes[at..].first_chunk().unwrap()) {
                    let end = at + frame.frame_bytes() as usize;
                    former.push(bytes[at..end].to_vec());
                    at = end;
                }
            }
        }
        former.sort();
        former.dedup();
        former
    }

    fn forecast(&self, segment: &Segment, damaged: &[u8], is_flip: bool) -> Forecast {
        let bytes = &segment.bytes[..];
        if damaged.len() != bytes.len() {
            let mut sector = damaged[..damaged.len().min(SECTOR_BYTES)].to_vec();
            sector.resize(SECTOR_BYTES, 0);
            return match segment.is_free() {
                // One whose creation was cut short is made again.
                true if damaged.is_empty() || sector == bytes[..SECTOR_BYTES] => Forecast::Harmless,
                _ if sector == bytes[..SECTOR_BYTES] => Forecast::Refused(damaged.len()),
                _ => Forecast::Refused(0),
            };
        }
        if bytes[..SECTOR_BYTES] != damaged[..SECTOR_BYTES] {
            return match Header::decode(damaged.first_chunk().unwrap()) {
                HeaderSector::Header(_) => Forecast::Older,
                HeaderSector::Blank if damaged.iter().all(|byte| *byte == 0) => Forecast::Harmless,
                _ => Forecast::Refused(0),
            };
        }
        let own = self.frames.iter().filter(|frame| frame.segment == segment.path);
        let is_whole = |frame: &Frame| bytes[frame.start..frame.end] == damaged[frame.start..frame.end];
        let Some(first) = own.clone().find(|frame| !is_whole(frame)) else { return Forecast::Harmless };
        let is_proven = self.is_closed
            || segment.path != self.newest().path
            || own.clone().any(|frame| is_whole(frame) && frame.synced >= first.lsn);
        match (is_proven, is_flip) {
            (true, _) => Forecast::Refused(first.start),
            (false, true) => Forecast::EndsLog,
            (false, false) => Forecast::EndsLogOrRefused(first.start),
        }
    }

    /// Does the damage and holds what comes of it against the forecast. Returns whether it was refused.
    pub(super) fn check(
        &self,
        segment: &Segment,
        damage: &Damage,
        is_flip: bool,
        what: &dyn Fn() -> String,
    ) -> bool {
        let damaged = damage.of(&segment.bytes).expect("it is not removed");
        let forecast = self.forecast(segment, &damaged, is_flip);
        let what = || format!("{}, {}, {}: {forecast:?}", self.name, segment.name(), what());
        let sim = damage.done(&self.sim, &segment.path);
        let verdict = match forecast {
            // Of a last batch that was applied only the record that says so is not proven.
            Forecast::EndsLog if self.is_applied => judge(&sim, &self.tree, &what),
            Forecast::EndsLogOrRefused(_) if self.is_applied => {
                judge_with(&sim, &[&self.tree, &self.tree_without_last], &what)
            }
            Forecast::EndsLog | Forecast::EndsLogOrRefused(_) => judge(&sim, &self.tree_without_last, &what),
            _ => judge(&sim, &self.tree, &what),
        };
        match (verdict, forecast) {
            (Verdict::Refused(message), Forecast::Refused(offset) | Forecast::EndsLogOrRefused(offset)) => {
                let place = format!("segment {} is corrupt at offset {offset}, ", segment.name());
                assert!(message.starts_with(&place), "{}: {message}", what());
                assert!(
                    message.contains(" found, ") && message.ends_with(" expected"),
                    "{}: {message}",
                    what()
                );
                true
            }
            (Verdict::Refused(message), Forecast::Older) => {
                assert!(message.contains(" is corrupt at offset "), "{}: {message}", what());
                assert!(
                    message.contains(" found, ") && message.ends_with(" expected"),
                    "{}: {message}",
                    what()
                );
                true
            }
            (Verdict::Accepted, Forecast::Refused(_)) => panic!("{}: accepted", what()),
            (Verdict::Refused(message), _) => panic!("{}: {message}", what()),
            (Verdict::Accepted, _) => false,
        }
    }
}

fn header_of(bytes: &[u8]) -> Header {
    match Header::decode(bytes.first_chunk().unwrap()) {
        HeaderSector::Header(header) => header,
        other => panic!("{other:?}"),
    }
}

fn is_of_log(call: &Call) -> bool {
    let name = call.name.as_deref().and_then(|name| name.to_str());
    name.is_some_and(|name| SegmentId::from_file_name(name).is_some())
}

/// Counts refused and accepted cases.
#[derive(Default)]
struct Tally {
    refused: AtomicU64,
    accepted: AtomicU64,
}

impl Tally {
    fn count(&self, is_refused: bool) {
        let counter = if is_refused { &self.refused } else { &self.accepted };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Prints the counts, and asserts that there were so many of each.
    fn at_least(self, refused: u64, accepted: u64) {
        let found = (self.refused.into_inner(), self.accepted.into_inner());
        println!("{} refused, {} accepted", found.0, found.1);
        assert!(found.0 >= refused && found.1 >= accepted, "{found:?}");
    }
}

/// Goal: no flipped bit in the log does harm unnoticed, and the error names the frame. Method: every bit of each
/// header's sector and of every frame, and samples of what nothing uses.
#[test]
fn every_flipped_bit_of_the_log() {
    let tally = Tally::default();
    for machine in &Machine::all() {
        for segment in &machine.segments {
            let unused = (SECTOR_BYTES..HEADER_AREA_BYTES as usize).step_by(211);
            let unused = unused.chain((segment.used..segment.bytes.len()).step_by(997));
            let places: Vec<usize> =
                (0..SECTOR_BYTES).chain(HEADER_AREA_BYTES as usize..segment.used).chain(unused).collect();
            on_two_threads(places.len() * 8, |number| {
                let bit = places[number / 8] * 8 + number % 8;
                let damage = Damage::flip(&segment.bytes, bit);
                tally.count(machine.check(segment, &damage, true, &|| format!("bit {bit} flipped")));
            });
        }
    }
    tally.at_least(100_000, 10_000);
}

/// Goal: a segment that has become shorter is never read as a shorter log. Method: every length of what is used, and
/// samples behind. What tells that the newest segment was ever used is in that file alone: one of no length looks like
/// one whose creation was cut short, which `removed_segments` is about.
#[test]
fn every_length_of_the_log() {
    let tally = Tally::default();
    for machine in &Machine::all() {
        for segment in &machine.segments {
            let first = usize::from(!segment.is_free());
            let area = (SECTOR_BYTES..HEADER_AREA_BYTES as usize).step_by(101);
            let lengths = (first..SECTOR_BYTES).chain(area).chain(HEADER_AREA_BYTES as usize..segment.used);
            let lengths: Vec<usize> =
                lengths.chain((segment.used..segment.bytes.len()).step_by(499)).collect();
            on_two_threads(lengths.len(), |number| {
                let damage = Damage::Cut(lengths[number]);
                tally
                    .count(machine.check(segment, &damage, false, &|| format!("cut to {}", lengths[number])));
            });
        }
    }
    tally.at_least(15_000, 3_000);
}

/// Goal: sectors that storage lost, doubled, misplaced or forgot to write are noticed. Method: each sector of what is
/// used, and the next, zeroed, duplicated, swapped, and as it was at each earlier moment of the store's life.
#[test]
fn every_sector_of_the_log() {
    let tally = Tally::default();
    for machine in &Machine::all() {
        for segment in &machine.segments {
            on_two_threads(segment.used / SECTOR_BYTES + 2, |sector| {
                let at = sector * SECTOR_BYTES;
                for (verb, damage) in Damage::of_sector(&segment.bytes, at, &segment.earlier) {
                    let what = || format!("sector {sector} {verb}");
                    tally.count(machine.check(segment, &damage, false, &what));
                }
            });
        }
    }
    tally.at_least(200, 100);
}
