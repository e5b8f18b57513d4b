//! Logs that were made to do harm: bounded time, bounded memory, no panic.

use std::time::{Duration, Instant};

use atomtree_vfs::SECTOR_BYTES;
use atomtree_wal::format::{FrameHeader, HEADER_AREA_BYTES, Header, State};
use atomtree_wal::{Epoch, Error};

use crate::*;

fn header() -> Header {
    Header {
        log: ID,
        segment: SegmentId(0),
        state: State::Active,
        segment_bytes: 1 << 20,
        epoch: Epoch(0x0101_0101_0101_0101),
        first_lsn: Lsn(1),
        link: 0,
        closed: Lsn(0),
    }
}

/// A segment whose header is right and whose rest is `body`, repeated.
fn segment_of(header: Header, body: &[u8]) -> Sim {
    let sim = machine();
    let mut bytes = vec![0; header.segment_bytes as usize];
    bytes[..SECTOR_BYTES].copy_from_slice(&header.encode());
    for (target, source) in bytes[HEADER_AREA_BYTES as usize..].iter_mut().zip(body.iter().cycle()) {
        *target = *source;
    }
    sim.write_file(segment(header.segment.0), &bytes);
    sim
}

fn within_a_second(sim: &Sim) -> Result<Scan, Error> {
    let start = Instant::now();
    let result = scan(sim);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    result
}

/// Goal: looking for proofs behind the end is bounded. Method: 1 MiB of words that are a kind, a length, an epoch and
/// a position at once, so that each multiple of 8 may start a frame as long as the rest.
#[test]
fn a_segment_of_would_be_frames_ends_in_time() {
    // Lengths from small to as much as is left.
    for length in [64_u32, 4096, 100_000, 900_000] {
        let mut body = Vec::new();
        // A frame's kind stands 16 bytes before its epoch: three words in turn are kind and length, epoch, position.
        let mut head = [0; 8];
        head[4] = 1;
        body.extend(head);
        body.extend(u64::from(length).to_le_bytes());
        body.extend(header().epoch.0.to_le_bytes());
        body.extend(5_u64.to_le_bytes());
        let sim = segment_of(header(), &body);
        match within_a_second(&sim) {
            Ok(scan) => assert_eq!(scan.end_lsn(), Lsn(0)),
            Err(Error::Corrupt { segment: SegmentId(0), .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let word = header().epoch.0.to_le_bytes();
    let all_alike = segment_of(Header { first_lsn: Lsn(header().epoch.0 - 1), ..header() }, &word);
    assert_eq!(within_a_second(&all_alike).unwrap().end_lsn().0, header().epoch.0 - 2);
}

/// A length is bounded by what is left of the segment before anything is allocated; the fuzzer checks it with a limit
/// on the allocator. Here: neither time nor a panic.
#[test]
fn claimed_lengths_cost_nothing() {
    for length in [u32::MAX, u32::MAX - 7, 1 << 31, 1 << 20, (1 << 20) - 4096 - 40 + 1] {
        let frame = FrameHeader {
            kind: kind(),
            length,
            link: 0,
            epoch: header().epoch,
            lsn: Lsn(1),
            synced_lsn: Lsn(0),
        };
        let (bytes, _) = frame.encode([].into_iter());
        let sim = segment_of(header(), &bytes);
        let scan = within_a_second(&sim).unwrap();
        assert_eq!((scan.end_lsn(), scan.tail().is_torn()), (Lsn(0), true));
    }
}

/// The highest numbers leave no next ones: they are refused, and nothing overflows.
#[test]
fn the_highest_numbers_are_refused() {
    let hostile = [
        Header { epoch: Epoch(u64::MAX), ..header() },
        Header { first_lsn: Lsn(0), ..header() },
        Header { first_lsn: Lsn(u64::MAX), ..header() },
        Header { segment_bytes: 8192, ..header() },
    ];
    for header in hostile {
        let sim = segment_of(header, &[0]);
        assert_eq!(corrupt_at(scan(&sim)), (SegmentId(0), 0), "{header:?}");
    }
    // Free ones count as well.
    let sim = segment_of(header(), &[0]);
    let free = Header { segment: SegmentId(1), state: State::Free, epoch: Epoch(u64::MAX), ..header() };
    let mut bytes = vec![0; 1 << 20];
    bytes[..SECTOR_BYTES].copy_from_slice(&free.encode());
    sim.write_file(segment(1), &bytes);
    assert_eq!(corrupt_at(scan(&sim)), (SegmentId(1), 0));
}

/// File names that are numbers beyond any log's, or not canonical, are not segments. A number of theirs is not used.
#[test]
fn odd_file_names_are_left_alone() {
    let sim = machine();
    let mut log = create(&sim);
    append_synced(&mut log, &[b"payload"]);
    for name in
        ["4294967295.seg", "99999999999.seg", "1.seg", "00001.seg", "+001.seg", "0001.seg.bak", ".seg"]
    {
        sim.write_file(Path::new("/wal").join(name), b"not a segment");
    }
    let (mut log, scanned) = open(&sim).unwrap();
    assert_eq!(payloads(&scanned).len(), 1);
    add_spare(&mut log);
    assert!(sim.read_file(segment(2)).is_some());
}

/// A frame that knows of syncs in its own future was not written by a log, whatever its checksum.
#[test]
fn a_frame_from_the_future_is_not_accepted() {
    let frame = FrameHeader {
        kind: kind(),
        length: 0,
        link: 0,
        epoch: header().epoch,
        lsn: Lsn(1),
        synced_lsn: Lsn(1),
    };
    let sim = segment_of(header(), &[0]);
    let mut bytes = sim.read_file(segment(0)).unwrap();
    bytes[4096..4136].copy_from_slice(&frame.encode([].into_iter()).0);
    sim.write_file(segment(0), &bytes);
    let scan = scan(&sim).unwrap();
    assert_eq!((scan.end_lsn(), torn_at(&scan)), (Lsn(0), (SegmentId(0), 4096)));
}

/// A frame of the segment's former life is not accepted, even if its position and link are the next ones.
#[test]
fn a_frame_of_a_former_epoch_is_not_accepted() {
    let former = Epoch(header().epoch.0 - 1);
    let frame =
        FrameHeader { kind: kind(), length: 0, link: 0, epoch: former, lsn: Lsn(1), synced_lsn: Lsn(0) };
    let sim = segment_of(header(), &[0]);
    let mut bytes = sim.read_file(segment(0)).unwrap();
    bytes[4096..4136].copy_from_slice(&frame.encode([].into_iter()).0);
    sim.write_file(segment(0), &bytes);
    let scan = scan(&sim).unwrap();
    assert_eq!((scan.end_lsn(), scan.tail()), (Lsn(0), Tail::Clean));
}
