//! How the log goes on from segment to segment, and what it refuses before it writes anything.

use atomtree_vfs::os::Os;
use atomtree_vfs::sim::Sim;
use atomtree_wal::{Error, Record, Tail};

use crate::*;

/// Goal: whether a run fits is decided before its first byte. Method: sizes around each limit; nothing may be written
/// by those that are refused.
#[test]
fn what_does_not_fit_is_refused_untouched() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"payload"]);
    let before = sim.tree("/wal");
    let operations = sim.operations();
    let largest = vec![1; ROOM_BYTES - 40];
    let too_large = vec![1; ROOM_BYTES - 40 + 1];
    let result = append(&mut log, &[b"fits", &too_large]);
    let expected = (ROOM_BYTES as u64 + 8, ROOM_BYTES as u64);
    assert!(
        matches!(result, Err(Error::TooLarge { bytes, bytes_max }) if (bytes, bytes_max) == expected),
        "{result:?}"
    );
    // The only spare is kept back.
    let result = append(&mut log, &[b"fits", &largest]);
    assert!(matches!(result, Err(Error::Full { needed_bytes }) if needed_bytes == 48 + ROOM_BYTES as u64));
    // Two segments are needed, and there is one.
    let parts = [largest.as_slice()];
    let run = [Record { kind: kind(), parts: &parts }; 2];
    assert!(matches!(log.append_reserved(&run), Err(Error::Full { .. })));
    assert_eq!((sim.tree("/wal"), sim.operations()), (before, operations));
    assert_eq!(log.append_reserved(&run[..1]).unwrap(), Lsn(2));
    assert!(matches!(append(&mut log, &[b""]), Err(Error::Full { .. })));
    log.sync().unwrap();
    // Once the first segment is free again there is one spare, and that is kept back again.
    assert_eq!(log.retire(Lsn(2)).unwrap(), 1);
    assert!(matches!(append(&mut log, &[b""]), Err(Error::Full { .. })));
    add_spare(&mut log);
    assert_eq!(append(&mut log, &[b""]).unwrap(), Lsn(3));
    assert_eq!(frames(&scan(&sim).unwrap()), [(2, largest), (3, Vec::new())]);
}

/// A run that fills the active segment to the last byte needs no other, and one that ends within a frame's header of
/// the end is read back as well.
#[test]
fn a_segment_is_filled_to_the_last_byte() {
    for left in [0, 8, 32, 40, 48] {
        let sim = machine();
        let mut log = create(&sim);
        let payload = vec![7; ROOM_BYTES - 40 - left];
        append_synced(&mut log, &[&payload]);
        let scanned = scan(&sim).unwrap();
        assert_eq!((payloads(&scanned), scanned.tail()), (vec![payload], Tail::Clean));
        add_spare(&mut log);
        let (mut log, _) = open(&sim).unwrap();
        append_synced(&mut log, &[b"12345678"]);
        let expected = if left >= 48 { SegmentId(0) } else { SegmentId(1) };
        assert_eq!(places(&scan(&sim).unwrap())[1].0, expected, "{left} bytes left");
    }
}

/// A run over three segments, in the simulation and on a disk; parts are put together, and empty ones are fine.
#[test]
fn a_run_may_span_segments() {
    let scratch = tempfile::tempdir().unwrap();
    let sim = machine();
    let dirs = [dir(&sim), Os.open_root(scratch.path()).unwrap()];
    for dir in dirs {
        let mut log = Log::create(dir.clone(), ID, OPTIONS).unwrap();
        (0..3).for_each(|_| add_spare(&mut log));
        let pieces: Vec<Vec<u8>> = (0..60_u8).map(|index| vec![index; 3000 + usize::from(index)]).collect();
        let parts: Vec<[&[u8]; 4]> =
            pieces.iter().map(|piece| [&b""[..], &piece[..10], &piece[10..], &b""[..]]).collect();
        let records: Vec<_> = parts.iter().map(|parts| Record { kind: kind(), parts }).collect();
        assert_eq!(log.append(&records).unwrap(), Lsn(60));
        log.sync().unwrap();
        let scan = atomtree_wal::scan(&*dir, ID).unwrap();
        assert_eq!(payloads(&scan), pieces);
        assert_eq!(places(&scan).last().unwrap().0, SegmentId(3));
        assert_eq!(scan.usage().0, 5);
        // Those behind know that all before were durable.
        assert!(scan.frames().all(|frame| {
            let frame = frame.unwrap();
            frame.segment == SegmentId(0) || frame.synced_lsn >= Lsn(19)
        }));
        // The maps of a scan outlive the log.
        drop(log);
        assert_eq!(payloads(&scan), pieces);
    }
}

/// Segments are freed oldest first, only those whose last frame is below, and never the active one.
#[test]
fn retirement_is_in_order_and_stops_at_the_first_that_is_needed() {
    let sim = machine();
    let mut log = create(&sim);
    (0..4).for_each(|_| add_spare(&mut log));
    for _ in 0..3 {
        append_synced(&mut log, &[b"one", b"two"]);
        log.rotate().unwrap();
    }
    append_synced(&mut log, &[b"active"]);
    assert_eq!(log.retire(Lsn(2)).unwrap(), 0);
    assert_eq!(log.retire(Lsn(3)).unwrap(), 1);
    assert_eq!(log.retire(Lsn(4)).unwrap(), 0);
    assert_eq!(scan(&sim).unwrap().first_lsn(), Lsn(3));
    sim.set_trace(true);
    assert_eq!(log.retire(Lsn(u64::MAX)).unwrap(), 2);
    // Each is durable before the next: a gap is never left.
    let verbs: Vec<String> =
        sim.trace().iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(verbs, ["write", "sync", "write", "sync"], "{:?}", sim.trace());
    assert_eq!(frames(&scan(&sim).unwrap()), [(7, b"active".to_vec())]);
    assert_eq!(log.used_bytes(), 48);
}

/// A spare is wanted when the active segment is half full and only the kept one is left, within the log's bound.
#[test]
fn spares_are_wanted_in_time_and_within_the_bound() {
    let sim = machine();
    let options = LogOptions { log_bytes_max: 4 * SEGMENT_BYTES, ..OPTIONS };
    let mut log = Log::create(dir(&sim), ID, options).unwrap();
    assert!(!log.wants_spare());
    append(&mut log, &[&vec![0; ROOM_BYTES / 2]]).unwrap();
    assert!(log.wants_spare() && log.may_grow());
    add_spare(&mut log);
    assert!(!log.wants_spare() && log.may_grow());
    append(&mut log, &[&vec![0; ROOM_BYTES * 3 / 4]]).unwrap();
    assert!(log.wants_spare());
    add_spare(&mut log);
    assert!(!log.wants_spare() && !log.may_grow());
    assert_eq!((log.used_bytes() / SEGMENT_BYTES, log.active_bytes()), (1, 46120));
    // An open counts what is there.
    log.sync().unwrap();
    drop(log);
    let (mut log, _) = Log::open(dir(&sim), ID, options).unwrap();
    assert!(!log.may_grow());
    // More than the bound allows is not refused, if somebody makes it anyway.
    add_spare(&mut log);
    assert!(sim.read_file(segment(4)).is_some());
}

/// A spare that is being made while the log goes on is whole when it is used.
#[test]
fn a_spare_made_meanwhile_is_used() {
    let sim = machine();
    let mut log = create(&sim);
    let (first, second) = (log.spare_builder(), log.spare_builder());
    append_synced(&mut log, &[b"one"]);
    let second = second.build().unwrap();
    log.rotate().unwrap();
    log.add_spare(second);
    log.add_spare(first.build().unwrap());
    append_synced(&mut log, &[b"more"]);
    log.rotate().unwrap();
    append_synced(&mut log, &[b"more"]);
    log.rotate().unwrap();
    log.append_reserved(&[Record { kind: kind(), parts: &[b"last"] }]).unwrap();
    log.sync().unwrap();
    for seed in 0..10 {
        assert_eq!(payloads(&scan(&sim.power_cut(seed)).unwrap()).len(), 4);
    }
}

/// A log that was never written to, appends of nothing, and syncs of nothing.
#[test]
fn nothing_is_nothing() {
    let sim: Sim = machine();
    assert!(matches!(scan(&sim), Err(Error::Missing)));
    let mut log = create(&sim);
    assert_eq!(log.sync().unwrap(), Lsn(0));
    assert_eq!(log.append(&[]).unwrap(), Lsn(0));
    let scanned = scan(&sim).unwrap();
    assert_eq!((scanned.first_lsn(), scanned.end_lsn(), scanned.tail()), (Lsn(1), Lsn(0), Tail::Clean));
    assert_eq!((scanned.known_synced(), scanned.usage()), (Lsn(0), (2, 1, 0)));
    log.rotate().unwrap();
    assert_eq!(log.retire(Lsn(1)).unwrap(), 1);
    assert_eq!(scan(&sim).unwrap().frames().count(), 0);
}

#[test]
#[should_panic(expected = "bytes in a segment")]
fn a_segment_without_a_size_is_a_mistake() {
    let _ = Log::create(dir(&machine()), ID, LogOptions { segment_bytes: 0, ..OPTIONS });
}

/// Goal: a log always has room for the record that makes room. Method: a checkpoint's record has to take the last spare;
/// then nothing else is appended before a segment has been freed, although the active one is all but empty.
#[test]
fn nothing_is_appended_while_the_reserve_is_in_use() {
    let sim = machine();
    let mut log = create(&sim);
    let all_but_a_frame = vec![1; ROOM_BYTES - 40 - 40];
    append_synced(&mut log, &[&all_but_a_frame]);
    let last = log.append_reserved(&[Record { kind: kind(), parts: &[b"checkpoint"] }]).unwrap();
    log.sync().unwrap();
    assert_eq!(scan(&sim).unwrap().usage().1, 0, "no segment is free");
    assert!(matches!(append(&mut log, &[b"payload"]), Err(Error::Full { .. })));
    // The next record that makes room fits, whatever happens meanwhile.
    log.append_reserved(&[Record { kind: kind(), parts: &[b"checkpoint"] }]).unwrap();
    log.sync().unwrap();
    assert_eq!(log.retire(last).unwrap(), 1);
    append_synced(&mut log, &[b"payload"]);
}
