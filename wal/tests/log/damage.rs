//! What damage to a log's files does: every bit flipped, every length cut.

use std::ffi::OsStr;
use std::io::IoSlice;

use atomtree_vfs::{Access, Dir, File};
use atomtree_wal::{Error, Tail};

use crate::*;

/// Three synced batches of three frames in one segment, and a fourth of one frame that may close the log.
fn small_log(closed: bool) -> (Sim, Vec<Vec<u8>>) {
    let sim = machine();
    let mut log = create(&sim);
    let all: Vec<Vec<u8>> = (0..10_u8).map(|index| vec![index; usize::from(index) * 7 + 1]).collect();
    for batch in all[..9].chunks(3) {
        append_synced(&mut log, &batch.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    append_synced(&mut log, &[&all[9]]);
    if closed {
        log.close().unwrap();
    }
    (sim, all)
}

fn flip(file: &dyn File, bit: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_at(&[IoSlice::new(&byte)], bit / 8).unwrap();
}

fn open_segment(dir: &dyn Dir, id: u32) -> Arc<dyn File> {
    dir.open_file(OsStr::new(&SegmentId(id).file_name()), Access::ReadWrite).unwrap()
}

/// Goal: damage is noticed wherever it is, and told apart. Method: flip each bit of the header and of the frames, and
/// a sample of those that nothing uses. Whatever a later frame knows to be synced is corrupt, at the right offset;
/// damage in the last batch ends the log there; slack doesn't matter.
#[test]
fn every_flipped_bit_is_told_apart() {
    for closed in [false, true] {
        let (sim, all) = small_log(closed);
        let tail = if closed { Tail::Closed } else { Tail::Clean };
        let whole = scan(&sim).unwrap();
        assert_eq!((payloads(&whole), whole.tail()), (all.clone(), tail));
        let starts: Vec<u64> = places(&whole).iter().map(|(_, offset)| *offset).collect();
        let end = starts[9] + 40 + 64;
        let dir = dir(&sim);
        let file = open_segment(&*dir, 0);
        let used = (0..512 * 8).chain(4096 * 8..(end + 64) * 8);
        let slack = (512 * 8..4096 * 8).chain(end * 8..SEGMENT_BYTES * 8).step_by(1009);
        for bit in used.chain(slack) {
            flip(&*file, bit);
            let result = atomtree_wal::scan(&*dir, ID);
            let offset = bit / 8;
            match starts.iter().rposition(|start| *start <= offset && offset < end) {
                _ if offset < 512 => assert_eq!(corrupt_at(result), (SegmentId(0), 0), "bit {bit}"),
                // A closed log knows that its last batch was synced, too.
                Some(index) if index < 9 || closed => {
                    assert_eq!(corrupt_at(result), (SegmentId(0), starts[index]), "bit {bit}");
                }
                Some(index) => {
                    let scan = result.unwrap();
                    assert_eq!(payloads(&scan), all[..index], "bit {bit}");
                    assert_ne!(scan.tail(), Tail::Closed);
                }
                None => {
                    let scan = result.unwrap();
                    assert_eq!((payloads(&scan), scan.tail()), (all.clone(), tail), "bit {bit}");
                }
            }
            flip(&*file, bit);
        }
    }
}

/// As above, for the last batch: damage in a frame of it, with whole frames of the same batch behind, voids them all.
#[test]
fn damage_in_the_last_batch_ends_the_log_there() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"proven"]);
    append_synced(&mut log, &[b"one", b"two", b"three"]);
    let places = places(&scan(&sim).unwrap());
    let dir = dir(&sim);
    let file = open_segment(&*dir, 0);
    for (index, place) in places.iter().copied().enumerate().skip(1) {
        for bit in place.1 * 8..(place.1 + 40) * 8 {
            flip(&*file, bit);
            let scan = atomtree_wal::scan(&*dir, ID).unwrap();
            assert_eq!(payloads(&scan).len(), index, "bit {bit}");
            if index < 3 {
                assert_eq!(torn_at(&scan), place, "bit {bit}");
            }
            flip(&*file, bit);
        }
    }
}

/// Goal: a header that storage lost is missed, though the one before it is whole. Method: a segment in its second use gets
/// each header back that it had before; with no frame under the new one, nothing is lost.
#[test]
fn an_older_header_over_newer_frames_is_refused() {
    let sim = machine();
    let mut log = create(&sim);
    let header = |id| sim.read_file(segment(id)).unwrap()[..512].to_vec();
    let put = |id, header: &[u8]| {
        open_segment(&*dir(&sim), id).write_at(&[IoSlice::new(header)], 0).unwrap();
    };
    add_spare(&mut log);
    let unused = header(1);
    append_synced(&mut log, &[b"in the first"]);
    log.rotate().unwrap();
    let new = header(1);
    put(1, &unused);
    assert_eq!(payloads(&scan(&sim).unwrap()).len(), 1);
    put(1, &new);
    append_synced(&mut log, &[b"in the second"]);
    put(1, &unused);
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(1), 0));
    put(1, &new);
    // Settled up to here: the first is used again, from its beginning.
    let first = header(0);
    assert_eq!(log.retire(log.next_lsn()).unwrap(), 1);
    let freed = header(0);
    log.rotate().unwrap();
    append_synced(&mut log, &[b"in the third"]);
    assert_eq!(log.retire(log.next_lsn()).unwrap(), 1);
    log.rotate().unwrap();
    append_synced(&mut log, &[b"in the first again"]);
    let (again, end) = (header(0), log.next_lsn());
    for older in [first, freed] {
        put(0, &older);
        assert_eq!(corrupt_at(scan(&sim)), (SegmentId(0), 0));
    }
    put(0, &again);
    assert_eq!(scan(&sim).unwrap().end_lsn().next(), end);
}

/// Goal: a file that has become shorter is refused, never read as a shorter log. Method: every length, in a log of one
/// active segment and in the last of two. Nothing but the file itself says that it was ever used, so one of no length
/// looks like one whose creation was cut short; that much is promised only while another one proves more.
#[test]
fn every_cut_is_noticed() {
    for active in [0, 1] {
        let (sim, all) = small_log(false);
        let (mut log, _) = open(&sim).unwrap();
        if active == 1 {
            add_spare(&mut log);
            log.rotate().unwrap();
            append_synced(&mut log, &[b"in the second segment"]);
        }
        drop(log);
        let bytes = sim.read_file(segment(active)).unwrap();
        let mut lengths: Vec<u64> = (1..SEGMENT_BYTES).rev().step_by(13).collect();
        lengths.extend((1..6000).rev());
        let dir = dir(&sim);
        let file = open_segment(&*dir, active);
        for length in lengths {
            file.set_len(length).unwrap();
            let (id, offset) = corrupt_at(atomtree_wal::scan(&*dir, ID));
            assert_eq!(id, SegmentId(active), "{length} bytes");
            assert!(offset == 0 || offset == length, "{length} bytes: offset {offset}");
            file.set_len(SEGMENT_BYTES).unwrap();
            file.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
        }
        file.set_len(0).unwrap();
        match (active, atomtree_wal::scan(&*dir, ID)) {
            (0, Err(Error::Missing)) => {}
            (1, Ok(scan)) => assert_eq!(payloads(&scan), all),
            (_, other) => panic!("{:?}", other.map(|scan| scan.tail())),
        }
    }
}

/// A torn write, by the bytes of the last frame that arrived: what was synced is there, and the log ends where it did.
#[test]
fn every_prefix_of_the_last_frame_ends_the_log_before_it() {
    let (sim, all) = small_log(false);
    let start = places(&scan(&sim).unwrap())[9].1;
    let dir = dir(&sim);
    let file = open_segment(&*dir, 0);
    let mut bytes = vec![0; 40 + 64];
    file.read_exact_at(&mut bytes, start).unwrap();
    for length in 0..bytes.len() {
        file.write_at(&[IoSlice::new(&bytes[..length]), IoSlice::new(&vec![0; bytes.len() - length])], start)
            .unwrap();
        let scan = atomtree_wal::scan(&*dir, ID).unwrap();
        assert_eq!(payloads(&scan), all[..9], "{length} bytes");
        // From where its position can be told.
        assert_eq!(scan.tail().is_torn(), length > 24, "{length} bytes");
    }
}

/// The log was closed, opened again and written to; the first frame after its former end is damaged, and later ones
/// prove that it was synced. It must not pass for a closed log.
#[test]
fn damage_behind_a_former_end_is_noticed() {
    let (sim, all) = small_log(true);
    let (mut log, scanned) = open(&sim).unwrap();
    assert_eq!(scanned.tail(), Tail::Closed);
    append_synced(&mut log, &[b"one"]);
    append_synced(&mut log, &[b"two"]);
    let (_, first) = places(&scan(&sim).unwrap())[10];
    let dir = dir(&sim);
    let file = open_segment(&*dir, 0);
    flip(&*file, first * 8);
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(0), first));
    // Not proven synced: the log goes on at once, and the frame that stands behind the hole doesn't come back.
    let (sim, _) = small_log(true);
    let (mut log, _) = open(&sim).unwrap();
    append(&mut log, &[b"one", b"two"]).unwrap();
    let dir = crate::dir(&sim);
    flip(&*open_segment(&*dir, 0), first * 8);
    let (mut log, scanned) = open(&sim).unwrap();
    assert_eq!((payloads(&scanned), torn_at(&scanned)), (all.clone(), (SegmentId(0), first)));
    add_spare(&mut log);
    append_synced(&mut log, &[b"one"]);
    let expected: Vec<Vec<u8>> = all.into_iter().chain([b"one".to_vec()]).collect();
    assert_eq!(payloads(&scan(&sim).unwrap()), expected);
}

/// A header that is zeroed is damage if frames stand behind it, and an unfinished file otherwise.
#[test]
fn a_zeroed_header_before_frames_is_noticed() {
    let (sim, _) = small_log(false);
    let (mut log, _) = open(&sim).unwrap();
    add_spare(&mut log);
    log.rotate().unwrap();
    append_synced(&mut log, &[b"in the second segment"]);
    let file = open_segment(&*dir(&sim), 1);
    file.write_at(&[IoSlice::new(&[0; 512])], 0).unwrap();
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(1), 0));
}

/// Whole sectors zeroed, doubled and swapped, as storage does that misdirects writes: never a wrong payload.
#[test]
fn misplaced_sectors_are_noticed() {
    let sim = machine();
    let mut log = create(&sim);
    let all: Vec<Vec<u8>> = (0..40_u8).map(|index| vec![index; 300]).collect();
    for payload in &all {
        append_synced(&mut log, &[payload]);
    }
    let original = sim.read_file(segment(0)).unwrap();
    let sectors = (4096 + 40 * 344_usize).div_ceil(512);
    let sector = |index: usize| index * 512..(index + 1) * 512;
    for first in 0..sectors {
        for second in [first, first + 1, (first * 7 + 3) % sectors] {
            for swap in [false, true] {
                let mut damaged = original.clone();
                if second == first {
                    damaged[sector(first)].fill(0);
                } else {
                    damaged[sector(second)].copy_from_slice(&original[sector(first)]);
                    if swap {
                        damaged[sector(first)].copy_from_slice(&original[sector(second)]);
                    }
                }
                sim.write_file(segment(0), &damaged);
                match scan(&sim) {
                    Ok(scan) => {
                        let found = payloads(&scan);
                        assert_eq!(found, all[..found.len()], "sectors {first}, {second}");
                        assert!(damaged == original || found.len() >= 38, "sectors {first}, {second}");
                    }
                    Err(Error::Corrupt { segment: SegmentId(0), .. }) => {}
                    Err(error) => panic!("sectors {first}, {second}: {error}"),
                }
            }
        }
    }
}

/// Damage in a sealed segment is proven by the next one's header alone.
#[test]
fn a_later_header_proves_what_came_before() {
    let sim = machine();
    let mut log = create(&sim);
    append(&mut log, &[b"one", b"two", b"three"]).unwrap();
    add_spare(&mut log);
    log.rotate().unwrap();
    let places = places(&scan(&sim).unwrap());
    let dir = dir(&sim);
    let file = open_segment(&*dir, 0);
    for place in places {
        flip(&*file, place.1 * 8);
        assert_eq!(corrupt_at(scan(&sim)), place);
        flip(&*file, place.1 * 8);
    }
    assert_eq!(payloads(&scan(&sim).unwrap()).len(), 3);
}

/// A segment in the middle that is gone, or another's copy, leaves a gap that the next header knows of.
#[test]
fn a_missing_or_copied_segment_is_noticed() {
    let sim = machine();
    let mut log = create(&sim);
    add_spare(&mut log);
    for _ in 0..2 {
        append_synced(&mut log, &[b"payload"]);
        add_spare(&mut log);
        log.rotate().unwrap();
    }
    append_synced(&mut log, &[b"payload"]);
    assert_eq!(payloads(&scan(&sim).unwrap()).len(), 3);
    let middle = sim.read_file(segment(1)).unwrap();
    sim.remove(segment(1));
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(0), 4096 + 48));
    sim.write_file(segment(1), &middle);
    sim.write_file(segment(5), &middle);
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(5), 0));
}

/// Goal: a whole frame of the right epoch and position is not accepted where it is not the successor of the one before: a
/// backup restored in part, say. Method: the second frame of a log that differs from it in the first, in its place.
#[test]
fn a_frame_of_another_history_is_not_accepted() {
    let write = |first: &[u8]| {
        let sim = machine();
        let mut log = create(&sim);
        for payload in [first, b"second", b"third"] {
            append_synced(&mut log, &[payload]);
        }
        sim
    };
    let (sim, other) = (write(b"first"), write(b"FIRST"));
    let second = places(&scan(&sim).unwrap())[1];
    let range = second.1 as usize..second.1 as usize + 40 + 8;
    let mut mixed = sim.read_file(segment(0)).unwrap();
    mixed[range.clone()].copy_from_slice(&other.read_file(segment(0)).unwrap()[range]);
    sim.write_file(segment(0), &mixed);
    assert_eq!(corrupt_at(scan(&sim)), second);
}

/// Goal: a log that is large enough to be read by two threads is read as a small one is. Method: frames in five segments of
/// 16 MiB; damage in the second, in the fourth, and in both, where the first is told.
#[test]
fn a_large_log_is_read_alike() {
    const BYTES: u64 = 16 << 20;
    let (sim, options) = (machine(), LogOptions { segment_bytes: BYTES, log_bytes_max: 8 * BYTES });
    let mut log = Log::create(dir(&sim), ID, options).unwrap();
    let payload = vec![5; 3 << 20];
    for _ in 0..22 {
        if log.wants_spare() {
            add_spare(&mut log);
        }
        append_synced(&mut log, &[&payload]);
    }
    let whole = scan(&sim).unwrap();
    assert_eq!((whole.end_lsn(), whole.tail()), (Lsn(22), Tail::Clean));
    let all: Vec<_> = whole.frames().map(Result::unwrap).collect();
    assert!(all.iter().all(|frame| *frame.payload == *payload));
    let places: Vec<_> = all.iter().map(|frame| (frame.segment, frame.offset)).collect();
    let (second, fourth) = (places[7], places[17]);
    assert_eq!((places.len(), second.0, fourth.0), (22, SegmentId(1), SegmentId(3)), "{places:?}");
    let dir = dir(&sim);
    let damage =
        |(segment, offset): (SegmentId, u64)| flip(&*open_segment(&*dir, segment.0), (offset + 99) * 8);
    damage(fourth);
    assert_eq!(corrupt_at(scan(&sim)), fourth);
    damage(second);
    assert_eq!(corrupt_at(scan(&sim)), second);
    damage(fourth);
    assert_eq!(corrupt_at(scan(&sim)), second);
    damage(second);
    assert_eq!(frames(&scan(&sim).unwrap()).len(), 22);
}
