//! Tests of the log as its users see it, in one binary; each module is one question.

mod crashes;
mod damage;
mod faults;
mod hostile;
mod rules;
mod several;
mod writing;

use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree_vfs::sim::Sim;
use atomtree_vfs::{Dir, Vfs};
use atomtree_wal::format::LogId;
use atomtree_wal::{Error, Log, LogOptions, Lsn, Record, Scan, SegmentId, Tail};

const ID: LogId = *b"sixteen byte id.";
const SEGMENT_BYTES: u64 = 64 << 10;
/// What frames may take in a segment.
const ROOM_BYTES: usize = (64 << 10) - 4096;
const OPTIONS: LogOptions = LogOptions { segment_bytes: SEGMENT_BYTES, log_bytes_max: 1 << 20 };

/// A machine with an empty directory for a log.
fn machine() -> Sim {
    let sim = Sim::new(1);
    sim.create_dir("/wal");
    sim
}

fn dir(vfs: &dyn Vfs) -> Arc<dyn Dir> {
    vfs.open_root(Path::new("/wal")).unwrap()
}

fn create(vfs: &dyn Vfs) -> Log {
    Log::create(dir(vfs), ID, OPTIONS).unwrap()
}

fn open(vfs: &dyn Vfs) -> Result<(Log, Scan), Error> {
    Log::open(dir(vfs), ID, OPTIONS)
}

fn scan(vfs: &dyn Vfs) -> Result<Scan, Error> {
    atomtree_wal::scan(&*dir(vfs), ID)
}

/// Path of a segment's file in the simulated tree.
fn segment(id: u32) -> PathBuf {
    Path::new("/wal").join(SegmentId(id).file_name())
}

fn kind() -> NonZeroU8 {
    NonZeroU8::new(7).unwrap()
}

/// Appends one run.
fn append(log: &mut Log, payloads: &[&[u8]]) -> Result<Lsn, Error> {
    let parts: Vec<[&[u8]; 1]> = payloads.iter().map(|payload| [*payload]).collect();
    let records: Vec<_> = parts.iter().map(|parts| Record { kind: kind(), parts }).collect();
    log.append(&records)
}

fn append_synced(log: &mut Log, payloads: &[&[u8]]) -> Lsn {
    append(log, payloads).unwrap();
    log.sync().unwrap()
}

fn add_spare(log: &mut Log) {
    let spare = log.spare_builder().build().unwrap();
    log.add_spare(spare);
}

/// Everything that was accepted, by position.
fn frames(scan: &Scan) -> Vec<(u64, Vec<u8>)> {
    scan.frames().map(|frame| frame.unwrap()).map(|frame| (frame.lsn.0, frame.payload.into_owned())).collect()
}

/// The payloads, which must be at positions from 1 on.
fn payloads(scan: &Scan) -> Vec<Vec<u8>> {
    let frames = frames(scan);
    assert!(frames.iter().map(|(lsn, _)| *lsn).eq(1..=frames.len() as u64), "positions have no gaps");
    assert_eq!(scan.end_lsn(), Lsn(frames.len() as u64));
    frames.into_iter().map(|(_, payload)| payload).collect()
}

/// Where the frames stand, as (segment, offset).
fn places(scan: &Scan) -> Vec<(SegmentId, u64)> {
    scan.frames().map(|frame| frame.unwrap()).map(|frame| (frame.segment, frame.offset)).collect()
}

fn torn_at(scan: &Scan) -> (SegmentId, u64) {
    match scan.tail() {
        Tail::Torn { segment, offset } => (segment, offset),
        tail => panic!("{tail:?} is not torn"),
    }
}

#[track_caller]
fn corrupt_at(result: Result<Scan, Error>) -> (SegmentId, u64) {
    match result {
        Err(Error::Corrupt { segment, offset, .. }) => (segment, offset),
        Err(error) => panic!("another error: {error}"),
        Ok(scan) => panic!("accepted up to {}, {:?}", scan.end_lsn(), scan.tail()),
    }
}
