//! What counts and what is void: torn batches, stale frames, segments that were stepped over, unfinished files.

use std::ffi::OsStr;
use std::io::IoSlice;

use atomtree_vfs::Access;
use atomtree_wal::format::{Header, HeaderSector};
use atomtree_wal::{Epoch, Error, Record, Tail};

use crate::*;

/// Overwrites bytes of a segment, as a crash or another program might.
fn overwrite(sim: &Sim, id: SegmentId, offset: u64, bytes: &[u8]) {
    let file = dir(sim).open_file(OsStr::new(&id.file_name()), Access::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

fn header_of(sim: &Sim, id: u32) -> Header {
    let bytes = sim.read_file(segment(id)).unwrap();
    match Header::decode(bytes[..512].try_into().unwrap()) {
        HeaderSector::Header(header) => header,
        other => panic!("{other:?}"),
    }
}

fn rewrite_header(sim: &Sim, id: u32, change: impl FnOnce(&mut Header)) {
    let mut header = header_of(sim, id);
    change(&mut header);
    overwrite(sim, SegmentId(id), 0, &header.encode());
}

/// F4: a power cut kept the later frames of a batch and lost an earlier one. Nobody was told that any of it was
/// durable, so that is where the log ends; with a later frame that knows better it is corrupt.
#[test]
fn a_hole_is_corrupt_only_if_it_was_synced() {
    for proven in [false, true] {
        let sim = machine();
        let mut log = create(&sim);
        add_spare(&mut log);
        append_synced(&mut log, &[b"settled"]);
        append(&mut log, &[b"five", b"six", b"seven"]).unwrap();
        if proven {
            log.sync().unwrap();
            append(&mut log, &[b"eight"]).unwrap();
        }
        let hole = places(&scan(&sim).unwrap())[1];
        overwrite(&sim, hole.0, hole.1 + 40, b"F");
        if proven {
            assert_eq!(corrupt_at(scan(&sim)), hole);
        } else {
            let (mut log, scanned) = open(&sim).unwrap();
            assert_eq!((payloads(&scanned), torn_at(&scanned)), (vec![b"settled".to_vec()], hole));
            // The header of the next segment steps over the torn end, which is no hole then.
            append_synced(&mut log, &[b"again"]);
            let scan = scan(&sim).unwrap();
            assert_eq!(payloads(&scan), [b"settled".to_vec(), b"again".to_vec()]);
            assert_eq!((scan.tail(), places(&scan)[1]), (Tail::Clean, (SegmentId(1), 4096)));
        }
    }
}

/// F5: after a torn end the log goes on elsewhere, also when the new bytes are the very ones that were torn, so that
/// they would end exactly where a voided frame begins and link to it.
#[test]
fn voided_frames_stay_void() {
    let sim = machine();
    let mut log = create(&sim);
    add_spare(&mut log);
    append_synced(&mut log, &[b"settled"]);
    append(&mut log, &[b"five", b"six!", b"seven"]).unwrap();
    let five = places(&scan(&sim).unwrap())[1];
    let whole = sim.read_file(segment(0)).unwrap();
    overwrite(&sim, five.0, five.1, &[0; 8]);
    let (mut log, scanned) = open(&sim).unwrap();
    assert_eq!(torn_at(&scanned), five);
    append_synced(&mut log, &[b"five"]);
    // Even if the torn frame heals, as when a sector was remapped.
    sim.write_file(segment(0), &whole);
    let (mut log, scanned) = open(&sim).unwrap();
    assert_eq!(payloads(&scanned), [b"settled".to_vec(), b"five".to_vec()]);
    append_synced(&mut log, &[b"six?"]);
    assert_eq!(payloads(&scan(&sim).unwrap())[1..], [b"five".to_vec(), b"six?".to_vec()]);
}

/// A recycled segment is full of whole frames of its former uses, at the very places where new ones end.
#[test]
fn stale_frames_of_former_uses_are_ignored() {
    let sim = machine();
    let mut log = create(&sim);
    add_spare(&mut log);
    let mut expected = Vec::new();
    for round in 0..30_u8 {
        for index in 0..=round % 5 {
            let payload = vec![round ^ index; 1000];
            append_synced(&mut log, &[&payload]);
            expected.push(payload);
            let scan = scan(&sim).unwrap();
            assert_eq!(scan.tail(), Tail::Clean);
            let found: Vec<Vec<u8>> = frames(&scan).into_iter().map(|(_, payload)| payload).collect();
            assert_eq!(found, expected[expected.len() - found.len()..]);
            assert_eq!(scan.end_lsn(), Lsn(expected.len() as u64));
        }
        log.rotate().unwrap();
        assert_eq!(log.retire(log.next_lsn()).unwrap(), 1);
    }
}

/// Goal: a torn first frame in the last spare does not use the log up. Method: tear it again and again; each time the
/// log goes on in the same segment under a new epoch.
#[test]
fn a_segment_torn_at_its_first_frame_is_used_again() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"settled"]);
    append(&mut log, &[b"torn"]).unwrap();
    let torn = places(&scan(&sim).unwrap())[1];
    overwrite(&sim, torn.0, torn.1 + 40, b"T");
    for round in 0..20 {
        let (mut log, scanned) = open(&sim).unwrap();
        assert!(scanned.tail().is_torn(), "round {round}");
        assert_eq!(payloads(&scanned), [b"settled".to_vec()]);
        log.append_reserved(&[Record { kind: kind(), parts: &[b"checkpoint"] }]).unwrap();
        log.sync().unwrap();
        assert_eq!(payloads(&scan(&sim).unwrap()).len(), 2);
        overwrite(&sim, SegmentId(1), 4096 + 40, b"C");
    }
    assert_eq!(header_of(&sim, 1).epoch, Epoch(21));
}

/// Goal: retirement may be cut off after any segment. Method: a log with a void segment in the middle, from a run that
/// failed in its third; free one after another, read after each.
#[test]
fn retiring_past_a_void_segment_leaves_a_readable_log() {
    let sim = machine();
    let faults =
        atomtree_vfs::faults::Faults::new(Arc::new(sim.clone()), atomtree_vfs::faults::fail_nothing());
    let mut log = create(&faults);
    (0..4).for_each(|_| add_spare(&mut log));
    append_synced(&mut log, &[b"one"]);
    let large = vec![1; ROOM_BYTES - 40];
    // Its frames fill segment 1, so that segment 2 is where it fails: the second write that is no header.
    faults.set_rule(Arc::new(|call| {
        let third = call.name.as_deref() == Some(OsStr::new("0002.seg"));
        let is_write = call.verb == atomtree_vfs::faults::Verb::WriteAt;
        (third && is_write).then_some(atomtree_vfs::faults::Fault::ShortWrite(usize::MAX))
    }));
    // A failed header poisons; so let that one pass, by rotating once more beforehand.
    drop(log);
    faults.set_rule(atomtree_vfs::faults::fail_nothing());
    let (mut log, _) = open(&faults).unwrap();
    let writes = Arc::new(std::sync::atomic::AtomicU32::new(0));
    faults.set_rule(Arc::new(move |call| {
        let third = call.name.as_deref() == Some(OsStr::new("0002.seg"));
        let is_write = call.verb == atomtree_vfs::faults::Verb::WriteAt;
        let is_frame = third && is_write && writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1;
        is_frame.then_some(atomtree_vfs::faults::Fault::ShortWrite(100))
    }));
    let result = append(&mut log, &[b"two", &large, &large]);
    assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    assert_eq!((log.next_lsn(), log.synced_lsn()), (Lsn(2), Lsn(1)));
    append_synced(&mut log, &[b"two again", b"three"]);
    let expected = [b"one".to_vec(), b"two again".to_vec(), b"three".to_vec()];
    assert_eq!(payloads(&scan(&sim).unwrap()), expected);
    // The third was void from the start, and is in use again; the second is void and still there.
    assert_eq!(header_of(&sim, 1).first_lsn, Lsn(3));
    assert_eq!(header_of(&sim, 2).first_lsn, Lsn(2));
    for operation in 1..10 {
        let copy = sim.kill();
        let (mut log, _) = open(&copy).unwrap();
        copy.halt_at(operation);
        let done = log.retire(Lsn(2)).is_ok();
        for seed in 0..8 {
            let cut = copy.power_cut(seed);
            let scan = scan(&cut).unwrap();
            assert_eq!(scan.end_lsn(), Lsn(3), "operation {operation}, seed {seed}");
            assert_eq!(frames(&scan).last().unwrap().1, b"three");
        }
        if done {
            assert_eq!(frames(&scan(&copy).unwrap()).len(), 2);
            return;
        }
    }
    panic!("retirement takes less");
}

/// Files whose creation was cut short hold nothing; they are skipped, and made anew when a spare is wanted.
#[test]
fn unfinished_segments_are_skipped_and_made_again() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"payload"]);
    let spare = sim.read_file(segment(1)).unwrap();
    let unfinished = [
        Vec::new(),
        vec![0; 100],
        vec![0; 5000],
        vec![0; SEGMENT_BYTES as usize],
        // Its header arrived and its length did not.
        spare[..8192].to_vec(),
    ];
    for bytes in unfinished {
        sim.write_file(segment(1), &bytes);
        let (mut log, scanned) = open(&sim).unwrap();
        assert_eq!(payloads(&scanned).len(), 1);
        assert_eq!(scanned.usage(), (1, 0, 48));
        assert!(matches!(log.rotate(), Err(Error::Full { .. })));
        add_spare(&mut log);
        assert_eq!(sim.read_file(segment(1)).unwrap(), spare);
    }
}

/// The builder replaces what it knows to be unfinished and nothing else: not a file that came to be meanwhile.
#[test]
fn a_spare_is_never_made_over_a_file_that_is_there() {
    let sim = machine();
    let mut log = create(&sim);
    sim.write_file(segment(2), b"whoever made it");
    let result = log.spare_builder().build();
    assert!(matches!(result.err().unwrap(), Error::Io { segment: SegmentId(2), .. }));
    assert_eq!(sim.read_file(segment(2)).unwrap(), b"whoever made it");
}

#[test]
fn an_epoch_is_used_once() {
    let sim = machine();
    create(&sim);
    let epoch = header_of(&sim, 0).epoch;
    rewrite_header(&sim, 1, |header| {
        (header.state, header.epoch, header.first_lsn) = (header_of(&sim, 0).state, epoch, Lsn(1));
    });
    let error = scan(&sim).err().unwrap();
    assert!(matches!(error, Error::Corrupt { offset: 0, .. }), "{error}");
    assert!(error.to_string().contains("epoch 1, which segment 0000.seg has too"), "{error}");
}

#[test]
fn foreign_and_newer_segments_are_refused_by_name() {
    let sim = machine();
    create(&sim);
    let original = header_of(&sim, 1);
    rewrite_header(&sim, 1, |header| header.log = *b"another log's id");
    let error = scan(&sim).err().unwrap();
    assert!(matches!(error, Error::ForeignSegment { segment: SegmentId(1), .. }), "{error}");

    let mut sector = original.encode();
    sector[8] = 2;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sector[..12]);
    hasher.update(&sector[16..]);
    sector[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    overwrite(&sim, SegmentId(1), 0, &sector);
    let error = scan(&sim).err().unwrap();
    assert!(matches!(error, Error::FormatVersion { segment: SegmentId(1), found: 2 }), "{error}");
}

/// `Closed` means that nothing was written since the log was closed, and nothing else does.
#[test]
fn a_log_is_closed_until_something_is_written() {
    let sim = machine();
    let mut log = create(&sim);
    let tail = || scan(&sim).unwrap().tail();
    assert_eq!(tail(), Tail::Clean);
    append_synced(&mut log, &[b"payload"]);
    assert_eq!(tail(), Tail::Clean);
    log.close().unwrap();
    assert_eq!(tail(), Tail::Closed);
    append(&mut log, &[b"more"]).unwrap();
    assert_eq!(tail(), Tail::Clean);
    log.close().unwrap();
    assert_eq!(tail(), Tail::Closed);
    // Somebody was at work since, even if no frame has come of it.
    log.rotate().unwrap();
    assert_eq!(tail(), Tail::Clean);
}

/// Goal: a log that says that it is closed is believed without being written again. Method: each sync of the closing
/// fails once; the log goes on in the same boot, and the power goes.
#[test]
fn a_closing_whose_sync_failed_does_not_leave_a_hole() {
    for payload_bytes in [8, 400, 3000] {
        for fails_at in 0..2 {
            let sim = machine();
            let mut log = create(&sim);
            append_synced(&mut log, &[b"payload"]);
            append(&mut log, &[&vec![1; payload_bytes]]).unwrap();
            if fails_at == 1 {
                log.sync().unwrap();
            }
            sim.fail_next_sync();
            log.close().unwrap_err();
            let sim = sim.kill();
            let (mut log, scanned) = open(&sim).unwrap();
            if scanned.tail() != Tail::Closed {
                log.rewrite(&scanned, Lsn(1)).unwrap();
            }
            append_synced(&mut log, &[&vec![2; 600]]);
            append_synced(&mut log, &[&vec![3; 600]]);
            for seed in 0..20 {
                assert_eq!(payloads(&scan(&sim.power_cut(seed)).unwrap()).len(), 4, "seed {seed}");
            }
        }
    }
}

/// What follows a closed end is not looked for, so that opening costs the same however long the segment is; and a frame
/// that is missing before it is damage, even in the last batch.
#[test]
fn damage_before_a_closed_end_is_noticed_in_the_last_batch() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"payload"]);
    append(&mut log, &[b"last"]).unwrap();
    log.close().unwrap();
    let (_, offset) = places(&scan(&sim).unwrap())[1];
    overwrite(&sim, SegmentId(0), offset, &[0; 8]);
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(0), offset));
}

/// A retirement that only the cache shows is repeated by `rewrite`. Otherwise the segment would come back after later
/// ones were freed, with a gap behind it.
#[test]
fn a_retirement_whose_sync_failed_does_not_become_a_gap() {
    let sim = machine();
    let mut log = create(&sim);
    (0..2).for_each(|_| add_spare(&mut log));
    for _ in 0..2 {
        append_synced(&mut log, &[b"payload"]);
        log.rotate().unwrap();
    }
    append_synced(&mut log, &[b"payload"]);
    sim.fail_next_sync();
    assert!(log.retire(Lsn(2)).is_err());
    let sim = sim.kill();
    let (mut log, scanned) = open(&sim).unwrap();
    log.rewrite(&scanned, Lsn(1)).unwrap();
    assert_eq!(log.retire(Lsn(3)).unwrap(), 1);
    for seed in 0..20 {
        let scan = scan(&sim.power_cut(seed)).unwrap();
        assert_eq!(frames(&scan), [(3, b"payload".to_vec())], "seed {seed}");
    }
}

/// A reader beside a writer that has recycled the segment meanwhile gets an error, once, and no other payload.
#[test]
fn frames_that_changed_since_the_scan_are_an_error() {
    let sim = machine();
    let mut log = create(&sim);
    add_spare(&mut log);
    append_synced(&mut log, &[b"one", b"two"]);
    let before = scan(&sim).unwrap();
    for _ in 0..3 {
        log.rotate().unwrap();
        append_synced(&mut log, &[b"ONE", b"TWO"]);
        log.retire(log.next_lsn()).unwrap();
    }
    let read: Vec<_> = before.frames().take(10).collect();
    assert_eq!(read.len(), 1);
    assert!(matches!(read[0], Err(Error::Io { segment: SegmentId(0), .. })), "{:?}", read[0]);
}

/// Goal: wiping leaves nothing of what was retired, on the disk either, and all that was not; the log goes on. Method: a
/// freed segment and a former use of the active one, whose bytes are looked through after a power cut.
#[test]
fn wiping_leaves_what_counts_and_nothing_else() {
    let sim = machine();
    let mut log = create(&sim);
    add_spare(&mut log);
    let (secret, kept) = (vec![b's'; 20_000], vec![b'k'; 10_000]);
    for _ in 0..2 {
        append_synced(&mut log, &[&secret]);
        append_synced(&mut log, &[&secret]);
        log.rotate().unwrap();
        log.retire(log.next_lsn()).unwrap();
    }
    append_synced(&mut log, &[&kept]);
    let runs_of = |sim: &Sim, byte: u8| -> usize {
        let names = dir(sim).list().unwrap().into_iter().map(|entry| entry.name);
        let files = names.map(|name| sim.read_file(Path::new("/wal").join(name)).unwrap());
        files.map(|bytes| bytes.windows(64).filter(|window| **window == [byte; 64]).count()).sum()
    };
    assert!(runs_of(&sim, b's') > 40_000, "both segments are full of it");
    assert!(log.wipe_unused().unwrap() > 40_000);
    assert_eq!(log.wipe_unused().unwrap(), 0, "there is nothing left to do");
    for machine in [sim.clone(), sim.power_cut(1)] {
        assert_eq!((runs_of(&machine, b's'), runs_of(&machine, b'k')), (0, 10_000 - 63));
    }
    append_synced(&mut log, &[b"more"]);
    drop(log);
    let (_, found) = open(&sim).unwrap();
    let left: Vec<Vec<u8>> = frames(&found).into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(left, [kept, b"more".to_vec()]);
}
