//! Reading a whole log back, checksums included, beside reading as much memory.

use std::hint::black_box;
use std::num::NonZeroU8;
use std::sync::Arc;

use atomtree_tests::history::Random;
use atomtree_vfs::os::Os;
use atomtree_vfs::{Dir, Vfs};
use atomtree_wal::{Log, LogOptions, Lsn, Record, scan};

use crate::batch::random_bytes;
use crate::bench::Bench;
use crate::failure::{Failure, On};
use crate::rivals::Role;
use crate::rounds::{self, Case, Effort, Lane, Sample};
use crate::workloads::commits::size;

const ID: [u8; 16] = *b"a log to measure";
const RECORD_BYTES: usize = 64 << 10;

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let bytes: usize = bench.either(128 << 20, 1 << 30);
    let dir = bench.place.fresh("scan")?;
    let log_dir = Os.open_root(&dir).on("open", &dir)?;
    let options = LogOptions { segment_bytes: 64 << 20, log_bytes_max: 2 * bytes as u64 };
    bench.progress.show("scan: writing the log");
    let mut log = Log::create(log_dir.clone(), ID, options).on("make a log in", &dir)?;
    let payload = random_bytes(&mut Random::new(3), RECORD_BYTES);
    for _ in 0..bytes / RECORD_BYTES {
        if log.wants_spare() {
            let spare = log.spare_builder().build().on("make a segment in", &dir)?;
            log.add_spare(spare);
        }
        log.append(&[Record { kind: NonZeroU8::MIN, parts: &[&payload] }])
            .on("append to the log in", &dir)?;
    }
    log.sync().on("sync the log in", &dir)?;
    // The same bytes, outside any file.
    let memory: Vec<u64> = vec![0x5a5a_5a5a; bytes / 8];

    let case = size(bytes);
    let title = ("scan", case.as_str());
    let mut lanes = vec![
        Lane { who: "reading memory".to_owned(), role: Role::Floor, state: Reader::Memory(memory) },
        Lane { who: "atomtree_wal::scan".to_owned(), role: Role::Ours, state: Reader::Log(log_dir) },
    ];
    let effort = Effort { rounds: bench.effort.rounds.min(11), ..bench.effort };
    let mut scan = Scan { end: log.synced_lsn() };
    let rows = rounds::run(bench, title, effort, bench.allowance(1).next_case(), &mut lanes, &mut scan)?;
    bench.report.add(rows)?;
    drop((lanes, log));
    bench.place.remove(&dir)
}

enum Reader {
    Memory(Vec<u64>),
    Log(Arc<dyn Dir>),
}

struct Scan {
    /// Where the log ends that was written.
    end: Lsn,
}

impl Case<Reader> for Scan {
    type Input = ();

    fn input(&mut self, _: usize) {}

    fn measure(&self, reader: &mut Reader, (): &()) -> Result<Sample, Failure> {
        Sample::time(0, || match reader {
            Reader::Memory(words) => {
                black_box(words.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
                Ok(())
            }
            Reader::Log(dir) => {
                let found = scan(&**dir, ID).on("scan", "the log")?;
                if found.end_lsn() == self.end {
                    return Ok(());
                }
                let reason = format!("it ends at {} instead of {}", found.end_lsn(), self.end);
                Err(Failure::new("scan", "the log", reason))
            }
        })
    }
}
