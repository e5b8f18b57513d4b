//! Frames and logs: the decoder of headers, and opening a directory of hostile segments.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::Path;

use atomtree_vfs::Vfs;
use atomtree_vfs::sim::Sim;
use atomtree_wal::format::{FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, Header, HeaderSector, State};
use atomtree_wal::{Epoch, Error, Log, LogOptions, Lsn, Record, SegmentId};

use super::{Input, SEGMENT_BYTES};

/// Headers of segments and frames: what decodes is what was encoded, bit for bit.
pub fn frame(bytes: &[u8]) {
    if let Some(sector) = bytes.first_chunk::<HEADER_BYTES>()
        && let HeaderSector::Header(header) = Header::decode(sector)
    {
        assert_eq!(Header::decode(&header.encode()), HeaderSector::Header(header));
    }
    if let Some(first) = bytes.first_chunk::<FRAME_HEADER_BYTES>()
        && let Some(header) = FrameHeader::decode(first)
    {
        assert!(header.frame_bytes() >= u64::from(header.length) + FRAME_HEADER_BYTES as u64);
        let (encoded, _) = header.encode([].into_iter());
        assert_eq!(encoded[4..], first[4..]);
    }
}

/// A directory of hostile segments is refused, or read and written to: then what was read is there, and what was
/// appended follows it.
pub fn log(bytes: &[u8]) {
    let sim = Sim::new(0);
    sim.create_dir("/wal");
    plant_segments(&sim, bytes);
    let dir = sim.open_root(Path::new("/wal")).expect("it was just made");
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, log_bytes_max: 1 << 20 };
    let Ok((mut log, scan)) = Log::open(dir.clone(), ID, options) else { return };
    let before = frames(&scan);
    if log.rewrite(&scan, scan.first_lsn()).is_err() {
        return;
    }
    let again = atomtree_wal::scan(&*dir, ID).expect("rewriting changes nothing");
    assert_eq!((frames(&again), again.tail()), (before.clone(), scan.tail()));
    let kind = NonZeroU8::MIN;
    match log.append_reserved(&[Record { kind, parts: &[b"appended"] }]) {
        Ok(lsn) => {
            log.sync().expect("the simulation does not fail");
            let after = atomtree_wal::scan(&*dir, ID).expect("what was written is read");
            let mut expected = before;
            expected.push((lsn, b"appended".to_vec()));
            assert_eq!(frames(&after), expected);
        }
        Err(Error::Full { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// The id of the log that is planted.
pub const ID: [u8; 16] = *b"sixteen byte id.";

fn frames(scan: &atomtree_wal::Scan) -> Vec<(Lsn, Vec<u8>)> {
    let frames = scan.frames().map(|frame| frame.expect("what was accepted is read"));
    frames.map(|frame| (frame.lsn, frame.payload.into_owned())).collect()
}

/// Builds segments in `/wal` from a little program, because random bytes never have the right checksum.
pub fn plant_segments(sim: &Sim, bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut segments: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let (mut id, mut offset, mut epoch, mut lsn, mut link) = (0, 4096_usize, 1, 1, 0);
    while !input.is_empty() {
        match input.byte() % 8 {
            0 | 1 => {
                (id, offset) = (u32::from(input.byte() % 5), 4096);
                (epoch, lsn) = (input.number(), if input.byte() % 2 == 0 { lsn } else { input.number() });
                let state = if input.byte() % 4 == 3 { State::Free } else { State::Active };
                let closed = if input.byte() % 4 == 3 { input.number() } else { 0 };
                let length = if input.byte() == 77 { input.number() } else { SEGMENT_BYTES };
                let header = Header {
                    log: ID,
                    segment: SegmentId(id),
                    state,
                    segment_bytes: length,
                    epoch: Epoch(epoch),
                    first_lsn: Lsn(lsn),
                    link,
                    closed: Lsn(closed),
                };
                let segment = segments.entry(id).or_default();
                segment.resize((length as usize).min(SEGMENT_BYTES as usize), 0);
                let sector = header.encode();
                let fits = segment.len().min(HEADER_BYTES);
                segment[..fits].copy_from_slice(&sector[..fits]);
            }
            2..=4 => {
                let flags = input.byte();
                let payload = input.some_bytes();
                let synced = input.number();
                let claimed = if flags & 64 == 0 { payload.len() as u64 } else { input.number() };
                let header = FrameHeader {
                    kind: NonZeroU8::new(flags & 7).unwrap_or(NonZeroU8::MIN),
                    length: claimed as u32,
                    link: if flags & 16 == 0 { link } else { 7 },
                    epoch: Epoch(epoch),
                    lsn: Lsn(lsn),
                    synced_lsn: Lsn(synced),
                };
                let (head, checksum) = header.encode([payload].into_iter());
                let frame_bytes = (header.frame_bytes() as usize).min(SEGMENT_BYTES as usize);
                if let Some(target) = segments.get_mut(&id).and_then(|segment| segment.get_mut(offset..))
                    && let Some(target) = target.get_mut(..frame_bytes)
                {
                    target.fill(0);
                    target[..FRAME_HEADER_BYTES].copy_from_slice(&head);
                    let fits = payload.len().min(frame_bytes - FRAME_HEADER_BYTES);
                    target[FRAME_HEADER_BYTES..][..fits].copy_from_slice(&payload[..fits]);
                    offset += frame_bytes;
                    (lsn, link) = (lsn.saturating_add(1), checksum);
                }
            }
            5 => {
                let bytes = input.some_bytes();
                if let Some(target) = segments.get_mut(&id).and_then(|segment| segment.get_mut(offset..)) {
                    let fits = bytes.len().min(target.len());
                    target[..fits].copy_from_slice(&bytes[..fits]);
                    offset += fits.next_multiple_of(8);
                }
            }
            6 => {
                let length = input.number() as usize;
                if let Some(segment) = segments.get_mut(&id) {
                    segment.truncate(length);
                }
            }
            _ => {
                (offset, lsn) = (offset + usize::from(input.byte()) * 8, input.number());
            }
        }
    }
    for (id, bytes) in segments {
        sim.write_file(Path::new("/wal").join(SegmentId(id).file_name()), &bytes);
    }
}
