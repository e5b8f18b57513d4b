//! The log, piece by piece: frames where none belong, headers that are whole and wrong, segments exchanged and removed.

use std::path::Path;

use atomtree::vfs::sim::Sim;
use atomtree_wal::format::{FrameHeader, HEADER_AREA_BYTES, HEADER_BYTES, Header, State};
use atomtree_wal::{Epoch, Lsn};

use super::log::{ALL, Ending, Machine, Segment, Shape};
use super::{Damage, Nodes, Verdict, files, judge, store, store_of, user_tree};

fn overwritten(sim: &Sim, path: &Path, at: usize, bytes: &[u8]) -> Sim {
    Damage::Overwrite(at, bytes.to_vec()).done(sim, path)
}

/// Goal: frames do not come back to life. Method: in a log whose segments were used before, the frames of a former use,
/// and those that count, a sample of each and all of that, are planted at each place behind the end and in each free
/// segment.
#[test]
fn planted_frames_are_no_frames() {
    for ending in [Ending::Closed, Ending::Killed, Ending::KilledBeforeApply] {
        let machine = Machine::new(Shape::Reused, ending);
        let newest = machine.newest();
        // Behind the end of the newest segment lies what its former use wrote there, and it has all of it.
        let former: Vec<Vec<u8>> = machine.former_frames().into_iter().step_by(9).collect();
        assert!(former.len() > 5, "{} frames of former uses", former.len());
        let own = machine.frames.iter().map(|frame| newest.bytes[frame.start..frame.end].to_vec());
        let mut runs: Vec<Vec<u8>> = former.iter().cloned().chain(own).collect();
        runs.extend([former.concat(), runs[former.len()..].concat()]);
        let mut tried = 0;
        for segment in &machine.segments {
            let start = if segment.is_free() { HEADER_AREA_BYTES as usize } else { segment.used };
            for (number, run) in runs.iter().enumerate() {
                for at in [0, 8, 16, 40, 512, 4096] {
                    let Some(_) = segment.bytes.get(start + at + run.len()) else { continue };
                    let sim = overwritten(&machine.sim, &segment.path, start + at, run);
                    let what = || format!("{}, {}: run {number} at {at}", machine.name, segment.name());
                    match judge(&sim, &machine.tree, &what) {
                        Verdict::Accepted => {}
                        // The first frame of a use whose header has been lost would stand there.
                        Verdict::Refused(message) => {
                            let is_newer =
                                segment.is_free() && at == 0 && epoch_of(run) > segment.header.epoch;
                            assert!(is_newer && message.contains("offset 0,"), "{}: {message}", what());
                        }
                    }
                    tried += 1;
                }
            }
        }
        assert!(tried > 100, "{tried} runs were planted");
    }
}

fn epoch_of(frame: &[u8]) -> Epoch {
    FrameHeader::decode(frame.first_chunk().unwrap()).unwrap().epoch
}

/// What must come of a forged header. One that says its segment is free, or void, takes whole frames away.
fn check_forged(machine: &Machine, over: &Segment, header: Header) -> bool {
    let sim = overwritten(&machine.sim, &over.path, 0, &header.encode());
    let what = || format!("{}: {header:?}", machine.name);
    match judge(&sim, &machine.tree, &what) {
        Verdict::Accepted => false,
        Verdict::Refused(message) => {
            let is_placed = message.contains(" is corrupt at offset ")
                && message.contains(" found, ")
                && message.ends_with(" expected");
            let is_gap = message.ends_with("a segment has been removed");
            assert!(is_placed || is_gap, "{}: {message}", what());
            true
        }
    }
}

/// Goal: of two headers that are both whole, the wrong one does no harm. Method: over each free segment the headers of
/// the others, as they are, with its own number, and with each epoch up to the newest, each first position and link that
/// the log has. One that says the log went on there under a later epoch is no damage: nothing but the log writes one.
#[test]
fn two_headers_that_are_whole() {
    for (shape, ending) in ALL {
        let machine = Machine::new(shape, ending);
        let newest = machine.newest().header;
        let (mut refused, mut accepted) = (0, 0);
        for over in machine.segments.iter().filter(|segment| segment.header.epoch != newest.epoch) {
            for other in machine.segments.iter().filter(|other| other.path != over.path) {
                let sim = overwritten(&machine.sim, &over.path, 0, &other.bytes[..HEADER_BYTES]);
                let what = || format!("{}: the header of {}", machine.name, other.name());
                let verdict = judge(&sim, &machine.tree, &what);
                let named = format!("the header of segment {} found", other.name());
                assert!(
                    matches!(&verdict, Verdict::Refused(message) if message.contains(&named)
                            && message.contains(over.name()) && message.contains("offset 0,")),
                    "{}: {verdict:?}",
                    what()
                );
            }
            let end = machine.frames.last().unwrap().lsn;
            let positions = machine.segments.iter().map(|segment| segment.header.first_lsn.0);
            let mut positions: Vec<u64> = positions.chain([0, 1, end / 2, end, end + 1, end + 2]).collect();
            positions.sort_unstable();
            positions.dedup();
            let links =
                [0, newest.link, over.header.link, machine.link_before(end), machine.link_before(end + 1)];
            for epoch in 0..=newest.epoch.0 {
                for first_lsn in &positions {
                    for link in links {
                        for state in [State::Free, State::Active] {
                            let header = Header {
                                state,
                                epoch: Epoch(epoch),
                                first_lsn: Lsn(*first_lsn),
                                link,
                                closed: Lsn(0),
                                ..over.header
                            };
                            *(if check_forged(&machine, over, header) {
                                &mut refused
                            } else {
                                &mut accepted
                            }) += 1;
                        }
                    }
                }
            }
        }
        println!("{}: {refused} refused, {accepted} accepted", machine.name);
        assert!(refused > 30 && accepted > 30, "{refused} refused, {accepted} accepted");
    }
}

/// Two segments' contents exchanged: each says whose it is.
#[test]
fn exchanged_segments() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let segments = files(&whole, "wal");
        assert!(segments.len() >= 3, "the log has several segments");
        for one in 0..segments.len() {
            for other in one + 1..segments.len() {
                let (one, other) = (&segments[one], &segments[other]);
                let sim = overwritten(&whole, &one.0, 0, &other.1);
                let sim = overwritten(&sim, &other.0, 0, &one.1);
                let verdict = judge(&sim, &expected, &|| "segments exchanged".into());
                assert!(
                    matches!(&verdict, Verdict::Refused(message) if message.contains("the header of segment")),
                    "{verdict:?}"
                );
            }
        }
    }
}

/// Whole segments removed, or emptied, which is the same. One that is free is not missed. Nothing that is left knows of
/// the newest, so that much is accepted if an older one is active; any other is.
#[test]
fn removed_segments() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        for damage in [Damage::Remove, Damage::Cut(0)] {
            let gap_was_noticed = remove_each(&whole, &expected, &damage, closed);
            // The oldest of several: what it held is not settled.
            assert!(closed || gap_was_noticed);
        }
    }
}

fn remove_each(whole: &Sim, expected: &Nodes, damage: &Damage, closed: bool) -> bool {
    let segments = files(whole, "wal");
    let epoch = |bytes: &[u8]| u64::from_le_bytes(bytes[48..56].try_into().unwrap());
    let active: Vec<_> = segments.iter().filter(|(_, bytes)| bytes[36] == 2).collect();
    let mut gap_was_noticed = false;
    let newest = active.iter().map(|(_, bytes)| epoch(bytes)).max().unwrap();
    for (path, bytes) in &segments {
        let sim = damage.done(whole, path);
        let what = || format!("closed {closed}, {}: {damage:?}", path.display());
        let is_only = active.len() == 1;
        let is_unseen = epoch(bytes) == newest && !is_only;
        // What recovery then takes for edits by others is the tree as it shall be.
        match judge(&sim, expected, &what) {
            Verdict::Accepted => assert!(bytes[36] == 1 || is_unseen, "{}", what()),
            Verdict::Refused(message) => {
                let says = ["missing", "removed", "later segment"];
                assert!(says.iter().any(|word| message.contains(word)), "{}: {message}", what());
                gap_was_noticed |= message.contains("a segment has been removed");
            }
        }
    }
    gap_was_noticed
}

/// Goal: what holds for small logs holds for one that has gone round. Method: samples of bits, lengths and sectors of a
/// log of several segments that is half settled, against the same forecast.
#[test]
fn samples_of_a_larger_log() {
    for closed in [true, false] {
        let whole = store(closed);
        let tree = user_tree(&whole);
        let machine =
            Machine::of(format!("closed {closed}"), whole, &[], tree, user_tree(&store_of(13, closed)));
        let mut refused = 0;
        for segment in &machine.segments {
            let own = machine.frames.iter().filter(|frame| frame.segment == segment.path);
            let mut places: Vec<usize> = (0..72).step_by(3).chain([300, 600, 4000]).collect();
            places.extend(own.flat_map(|frame| [frame.start + 1, frame.start + 26, frame.start + 45]));
            places.extend((4096..segment.bytes.len()).step_by(5003));
            for at in places {
                let damage = Damage::flip(&segment.bytes, at * 8 + at % 8);
                refused += u32::from(machine.check(segment, &damage, true, &|| format!("offset {at}")));
            }
            for length in [1, 40, 68, 511, 512, 4095, 4096, 4100, 30_000, 65_535] {
                let damage = Damage::Cut(length);
                refused += u32::from(machine.check(segment, &damage, false, &|| format!("cut to {length}")));
            }
            for at in (0..segment.used).step_by(5 * 512) {
                for (verb, damage) in Damage::of_sector(&segment.bytes, at, &[]) {
                    let what = || format!("sector at {at} {verb}");
                    refused += u32::from(machine.check(segment, &damage, false, &what));
                }
            }
        }
        assert!(refused > 100, "{refused} refused");
    }
}
