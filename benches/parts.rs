//! The parts that a commit is made of, so that a regression is seen where it happens. Runs on the file system of the
//! temporary directory; for figures beside the bare log write, on a volume of its own, see `commit.rs`.

use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroU8;
use std::thread;
use std::time::{Duration, Instant};

use atomtree::{Checkpoints, Options, Store, Transaction};
use atomtree_vfs::os::Os;
use atomtree_vfs::{MappedForBench, Vfs};
use atomtree_wal::format::FrameHeader;
use atomtree_wal::{Epoch, Log, LogOptions, Lsn, Record, scan};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const ID: [u8; 16] = *b"a log to measure";
/// Of whole transactions.
const FILES: usize = 10;

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: 16 << 20, log_bytes_max: 64 << 20 }
}

/// A frame's header, with the checksum over what follows.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for bytes in [1_usize << 10, 64 << 10] {
        let payload = vec![7; bytes];
        let header = FrameHeader {
            kind: NonZeroU8::MIN,
            length: bytes as u32,
            link: 1,
            epoch: Epoch(1),
            lsn: Lsn(1),
            synced_lsn: Lsn(0),
        };
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{} KiB", bytes >> 10), |bencher| {
            bencher.iter(|| header.encode(std::iter::once(black_box(&payload[..]))));
        });
    }
    group.finish();
}

/// Appending to the log by a positioned write, with and without the sync that makes it durable; and the same bytes stored to
/// a mapping, which is how it is not done: the kernel may write back the whole folio around them.
fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for bytes in [1 << 10, 64 << 10] {
        let payload = vec![7; bytes];
        let kind = NonZeroU8::MIN;
        group.throughput(Throughput::Bytes(bytes as u64));
        for sync in [false, true] {
            let scratch = tempfile::tempdir().unwrap();
            let dir = Os.open_root(scratch.path()).unwrap();
            let mut log = Log::create(dir, ID, log_options()).unwrap();
            group.bench_function(
                format!("{} KiB{}", bytes >> 10, if sync { ", synced" } else { "" }),
                |bencher| {
                    bencher.iter(|| {
                        if log.append(&[Record { kind, parts: &[&payload] }]).is_err() {
                            // The log is full: everything in it is done with.
                            log.rotate().unwrap();
                            log.retire(log.next_lsn()).unwrap();
                        }
                        if sync {
                            log.sync().unwrap();
                        }
                    });
                },
            );
            let mut mapped = MappedForBench::new(scratch.path(), 16 << 20).unwrap();
            group.bench_function(
                format!("{} KiB{}, through a map", bytes >> 10, if sync { ", synced" } else { "" }),
                |bencher| {
                    bencher.iter(|| {
                        mapped.append(&payload);
                        if sync {
                            mapped.sync(payload.len()).unwrap();
                        }
                    });
                },
            );
        }
    }
    group.finish();
}

/// Reading a full segment back, checksums included.
fn scan_segment(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    let dir = Os.open_root(scratch.path()).unwrap();
    let mut log = Log::create(dir.clone(), ID, log_options()).unwrap();
    let payload = vec![7; 4000];
    let count = (15 << 20) / payload.len();
    for _ in 0..count {
        log.append(&[Record { kind: NonZeroU8::MIN, parts: &[&payload] }]).unwrap();
    }
    log.sync().unwrap();
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Bytes((count * payload.len()) as u64));
    group.bench_function("15 MiB of 4 KiB frames", |bencher| {
        bencher.iter(|| black_box(scan(&*dir, ID).unwrap().frames().count()));
    });
    group.finish();
}

/// Whole transactions: planned, staged, logged, synced, applied.
fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    for count in [1, 10, 100] {
        for replaced in [false, true] {
            let scratch = tempfile::tempdir().unwrap();
            let store = Options::new().checkpoints(Checkpoints::Manual).open(scratch.path()).unwrap();
            let round = Cell::new(0);
            let name = format!("{count} {} files of 1 KiB", if replaced { "replaced" } else { "new" });
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || {
                        round.set(round.get() + 1);
                        store.checkpoint().unwrap();
                        if replaced { 0 } else { round.get() }
                    },
                    |dir| {
                        let mut tx = store.begin().unwrap();
                        for file in 0..count {
                            tx.write(format!("{dir}/{file}"), vec![(round.get() % 251) as u8; 1024]).unwrap();
                        }
                        tx.commit().unwrap()
                    },
                    BatchSize::PerIteration,
                );
            });
            store.close().unwrap();
        }
    }
    group.finish();
}

fn store() -> (TempDir, Store) {
    let scratch = tempfile::tempdir().unwrap();
    let store = Options::new().checkpoints(Checkpoints::Manual).open(scratch.path()).unwrap();
    (scratch, store)
}

/// A transaction that replaces some files.
fn transaction(store: &Store, dir: &str, round: u64) -> Transaction {
    let mut tx = store.begin().unwrap();
    for file in 0..FILES {
        tx.write(format!("{dir}/{file}"), vec![(round % 251) as u8; 1024]).unwrap();
    }
    tx
}

/// The stages of a transaction that replaces files, each on its own: what comes before and behind is not timed.
fn stages(criterion: &mut Criterion) {
    let (_scratch, store) = store();
    transaction(&store, "dir", 0).commit().unwrap();
    let mut group = criterion.benchmark_group(format!("{FILES} replaced files of 1 KiB"));
    // Times one of the moments between beginning, submitting, durability and being in place.
    let mut stage = |name: &str, at: usize| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let mut spent = Duration::ZERO;
                for round in 1..=count {
                    store.checkpoint().unwrap();
                    let mut times = vec![Instant::now()];
                    let tx = transaction(&store, "dir", round);
                    times.push(Instant::now());
                    let ticket = tx.submit().unwrap();
                    times.push(Instant::now());
                    ticket.durable().unwrap();
                    times.push(Instant::now());
                    ticket.applied().unwrap();
                    times.push(Instant::now());
                    spent += times[at + 1] - times[at];
                }
                spent
            });
        });
    };
    stage("look at what stands there", 0);
    stage("plan and stage", 1);
    stage("check, log and sync", 2);
    stage("apply", 3);
    group.finish();
    store.close().unwrap();
}

/// Commits of one file each, from several threads at once: time for each commit.
fn group_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("group commit");
    for threads in [1_u32, 4, 16] {
        let (_scratch, store) = store();
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter_custom(|count| {
                let each = u32::try_from(count).expect("criterion is not that patient").div_ceil(threads);
                let start = Instant::now();
                thread::scope(|scope| {
                    for thread in 0..threads {
                        let store = &store;
                        scope.spawn(move || {
                            for round in 0..each {
                                let mut tx = store.begin().unwrap();
                                tx.write(format!("{thread}"), round.to_le_bytes()).unwrap();
                                tx.commit().unwrap();
                            }
                        });
                    }
                });
                let spent = start.elapsed();
                store.checkpoint().unwrap();
                spent.mul_f64(f64::from(count as u32) / f64::from(each * threads))
            });
        });
        store.close().unwrap();
    }
    group.finish();
}

/// Opening a store that was closed.
fn open(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    Options::new().open(scratch.path()).unwrap().close().unwrap();
    criterion.bench_function("open and close", |bencher| {
        bencher.iter(|| Options::new().open(scratch.path()).unwrap().close().unwrap());
    });
}

criterion_group!(parts, encode, append, scan_segment, stages, commit, group_commit, open);
criterion_main!(parts);
