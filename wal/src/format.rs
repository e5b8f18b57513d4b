//! Segment headers and frames, byte for byte. No I/O; writer and reader share it.
//!
//! All numbers are little-endian. Changing anything here changes the format version.
//!
//! ```text
//! segment file        NNNN.seg, as long as the log's options say, never renamed
//! +--------------------+---------+---------+-----+------------------------------+
//! | header area, 4 KiB | frame   | frame   | ... | zeros, or a former use's rest |
//! +--------------------+---------+---------+-----+------------------------------+
//!
//! header              the first sector; the rest of the area is zero
//!  0        8         12        16                                              32
//! +---------+---------+---------+-----------------------------------------------+
//! | magic   | version | CRC-32  | id of the log                                 |
//! +---------+----+----+---------+-----------+-----------+------+----------------+
//! | segment | state| segment bytes | epoch    | first LSN | link | 0 | closed LSN |
//! +---------+------+---------------+----------+-----------+------+---+------------+
//! 32       36     40              48         56          64     68  72
//!
//! frame               at a multiple of 8
//!  0      4    5          8      12     16      24    32         40
//! +------+----+----------+------+------+-------+-----+----------+---------+-------+
//! | CRC  |kind|    0     |length| link | epoch | LSN | synced   | payload | zeros |
//! |  32  |    |          |      |      |       |     |   LSN    |         | to 8  |
//! +------+----+----------+------+------+-------+-----+----------+---------+-------+
//! ```
//!
//! The header's CRC covers the sector except itself; a frame's covers everything after itself, padding included. A
//! frame's link is its predecessor's CRC, across segments; its synced LSN is the position that was known durable when
//! it was written. Kind 0 is no frame, so space never written reads as the end.

use std::num::NonZeroU8;

use crate::lsn::{Epoch, Lsn, SegmentId};

/// The version of this format.
pub const FORMAT_VERSION: u32 = 1;
/// What is set aside for the header.
pub const HEADER_AREA_BYTES: u64 = 4096;
/// What a header takes: one sector, which storage writes whole or not at all.
pub const HEADER_BYTES: usize = 512;
/// What a frame takes before its payload.
pub const FRAME_HEADER_BYTES: usize = 40;
/// Frames start at multiples of this, so that no field of theirs is torn.
pub const FRAME_ALIGNMENT: usize = 8;

const MAGIC: [u8; 8] = *b"ATOMTLOG";
const STATE_FREE: u32 = 1;
const STATE_ACTIVE: u32 = 2;

const _: () = assert!(HEADER_BYTES == atomtree_vfs::SECTOR_BYTES);
const _: () = assert!(HEADER_AREA_BYTES >= HEADER_BYTES as u64);
const _: () = assert!(HEADER_AREA_BYTES.is_multiple_of(FRAME_ALIGNMENT as u64));
const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(FRAME_ALIGNMENT));

/// Identifies a log: random, the same in all its segments.
pub type LogId = [u8; 16];

/// What a segment is being used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing: its frames are a former use's.
    Free,
    /// It holds frames of the log.
    Active,
}

/// A segment's header.
///
/// One with [`State::Active`] says that all frames before `first_lsn`, up to the one with CRC `link`, were durable
/// when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log it belongs to.
    pub log: LogId,
    /// Its own number.
    pub segment: SegmentId,
    /// Free or active.
    pub state: State,
    /// Length of the file.
    pub segment_bytes: u64,
    /// Number of this use; of the last one, if it is free.
    pub epoch: Epoch,
    /// LSN of its first frame.
    pub first_lsn: Lsn,
    /// CRC of the frame before that; 0 for the very first.
    pub link: u32,
    /// LSN of the frame after which the writer closed the log, and which was durable by then; 0 while it is open.
    pub closed: Lsn,
}

/// What the first sector of a segment file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderSector {
    /// A header.
    Header(Header),
    /// All zeros: the file's creation was cut short.
    Blank,
    /// Another version of this format.
    Version(u32),
    /// Not a header, or a damaged one.
    Damaged {
        /// Checksum that the sector should have.
        expected: u32,
        /// Checksum that it carries.
        found: u32,
    },
}

impl Header {
    /// The sector.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut sector = [0; HEADER_BYTES];
        let state = match self.state {
            State::Free => STATE_FREE,
            State::Active => STATE_ACTIVE,
        };
        sector[0..8].copy_from_slice(&MAGIC);
        sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sector[16..32].copy_from_slice(&self.log);
        sector[32..36].copy_from_slice(&self.segment.0.to_le_bytes());
        sector[36..40].copy_from_slice(&state.to_le_bytes());
        sector[40..48].copy_from_slice(&self.segment_bytes.to_le_bytes());
        sector[48..56].copy_from_slice(&self.epoch.0.to_le_bytes());
        sector[56..64].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        sector[64..68].copy_from_slice(&self.link.to_le_bytes());
        sector[72..80].copy_from_slice(&self.closed.0.to_le_bytes());
        let checksum = header_checksum(&sector);
        sector[12..16].copy_from_slice(&checksum.to_le_bytes());
        sector
    }

    /// Reads a sector.
    pub fn decode(sector: &[u8; HEADER_BYTES]) -> HeaderSector {
        if sector.iter().all(|&byte| byte == 0) {
            return HeaderSector::Blank;
        }
        let expected = header_checksum(sector);
        let found = u32_at(sector, 12);
        let damaged = HeaderSector::Damaged { expected, found };
        if sector[0..8] != MAGIC || found != expected {
            return damaged;
        }
        let version = u32_at(sector, 8);
        if version != FORMAT_VERSION {
            return HeaderSector::Version(version);
        }
        let state = match u32_at(sector, 36) {
            STATE_FREE => State::Free,
            STATE_ACTIVE => State::Active,
            _ => return damaged,
        };
        HeaderSector::Header(Self {
            log: sector[16..32].try_into().expect("sixteen bytes"),
            segment: SegmentId(u32_at(sector, 32)),
            state,
            segment_bytes: u64_at(sector, 40),
            epoch: Epoch(u64_at(sector, 48)),
            first_lsn: Lsn(u64_at(sector, 56)),
            link: u32_at(sector, 64),
            closed: Lsn(u64_at(sector, 72)),
        })
    }
}

fn header_checksum(sector: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sector[..12]);
    hasher.update(&sector[16..]);
    hasher.finalize()
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is; the log does not care.
    pub kind: NonZeroU8,
    /// Length of the payload.
    pub length: u32,
    /// CRC of the frame before.
    pub link: u32,
    /// The segment's epoch.
    pub epoch: Epoch,
    /// The frame's position.
    pub lsn: Lsn,
    /// The position known durable when it was written.
    pub synced_lsn: Lsn,
}

impl FrameHeader {
    /// The header's bytes, with the CRC over them, the payload and the padding.
    pub fn encode<'a>(&self, payload: impl Iterator<Item = &'a [u8]>) -> ([u8; FRAME_HEADER_BYTES], u32) {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[4] = self.kind.get();
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.link.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.synced_lsn.0.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[4..]);
        payload.for_each(|part| hasher.update(part));
        hasher.update(&[0; FRAME_ALIGNMENT][..padding(self.length)]);
        let checksum = hasher.finalize();
        bytes[0..4].copy_from_slice(&checksum.to_le_bytes());
        (bytes, checksum)
    }

    /// Reads a header; `None` for anything that no frame starts with. The checksum is the caller's to compare, once
    /// the length has turned out to fit.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let kind = NonZeroU8::new(bytes[4])?;
        if bytes[5..8] != [0, 0, 0] {
            return None;
        }
        Some(Self {
            kind,
            length: u32_at(bytes, 8),
            link: u32_at(bytes, 12),
            epoch: Epoch(u64_at(bytes, 16)),
            lsn: Lsn(u64_at(bytes, 24)),
            synced_lsn: Lsn(u64_at(bytes, 32)),
        })
    }

    /// What the whole frame takes.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.length)
    }
}

/// The CRC that a frame carries.
pub fn checksum_found(frame: &[u8]) -> u32 {
    u32_at(frame, 0)
}

/// The CRC that a whole frame, padding included, should carry.
pub fn checksum_expected(frame: &[u8]) -> u32 {
    crc32fast::hash(&frame[4..])
}

/// What a frame with a payload of `length` bytes takes in the segment.
pub fn frame_bytes(length: u32) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(length) + padding(length) as u64
}

/// How many zeros follow a payload of `length` bytes.
pub fn padding(length: u32) -> usize {
    (length as usize).wrapping_neg() % FRAME_ALIGNMENT
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The little-endian number at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            log: *b"0123456789abcdef",
            segment: SegmentId(3),
            state: State::Active,
            segment_bytes: 1 << 24,
            epoch: Epoch(7),
            first_lsn: Lsn(1000),
            link: 0xDEAD_BEEF,
            closed: Lsn(1001),
        }
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader {
            kind: NonZeroU8::new(3).unwrap(),
            length: payload.len() as u32,
            link: 0x0102_0304,
            epoch: Epoch(7),
            lsn: Lsn(1000),
            synced_lsn: Lsn(999),
        };
        let mut bytes = header.encode([payload].into_iter()).0.to_vec();
        bytes.extend(payload);
        bytes.resize(header.frame_bytes() as usize, 0);
        bytes
    }

    /// Goal: the format does not change unnoticed. These bytes are version 1 for ever.
    #[test]
    fn golden_header() {
        let sector = header().encode();
        let mut expected = Vec::new();
        expected.extend(b"ATOMTLOG\x01\0\0\0");
        expected.extend(0x588a_6122_u32.to_le_bytes());
        expected.extend(b"0123456789abcdef\x03\0\0\0\x02\0\0\0\0\0\0\x01\0\0\0\0\x07\0\0\0\0\0\0\0");
        expected.extend(b"\xe8\x03\0\0\0\0\0\0\xef\xbe\xad\xde\0\0\0\0\xe9\x03\0\0\0\0\0\0");
        expected.resize(HEADER_BYTES, 0);
        assert_eq!(sector.as_slice(), expected, "crc {:#010x}", u32_at(&sector, 12));
    }

    #[test]
    fn golden_frame() {
        let bytes = frame(b"hello");
        let mut expected = Vec::new();
        expected.extend(0xd42b_d58b_u32.to_le_bytes());
        expected.extend(b"\x03\0\0\0\x05\0\0\0\x04\x03\x02\x01\x07\0\0\0\0\0\0\0");
        expected.extend(b"\xe8\x03\0\0\0\0\0\0\xe7\x03\0\0\0\0\0\0hello\0\0\0");
        assert_eq!(bytes, expected, "crc {:#010x}", u32_at(&bytes, 0));
    }

    #[test]
    fn a_header_reads_back_and_every_flipped_bit_is_noticed() {
        let sector = header().encode();
        assert_eq!(Header::decode(&sector), HeaderSector::Header(header()));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = sector;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&damaged), HeaderSector::Damaged { .. }), "bit {bit}");
        }
        assert_eq!(Header::decode(&[0; HEADER_BYTES]), HeaderSector::Blank);
    }

    #[test]
    fn a_frame_reads_back_and_every_flipped_bit_is_noticed() {
        let bytes = frame(b"hello");
        let decode = |bytes: &[u8]| FrameHeader::decode(bytes[..FRAME_HEADER_BYTES].try_into().unwrap());
        assert_eq!(decode(&bytes).unwrap().lsn, Lsn(1000));
        assert_eq!(checksum_found(&bytes), checksum_expected(&bytes));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let noticed =
                decode(&damaged).is_none() || checksum_found(&damaged) != checksum_expected(&damaged);
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn frames_stay_aligned() {
        for length in 0..100 {
            assert_eq!(frame_bytes(length) % FRAME_ALIGNMENT as u64, 0);
            assert!(frame_bytes(length) - u64::from(length) < 40 + FRAME_ALIGNMENT as u64);
        }
    }
}
