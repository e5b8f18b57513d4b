//! The parts that a commit is made of, so that a regression is seen where it happens. Runs on the file system of the
//! temporary directory; for figures beside the bare log write, on a volume of its own, see `commit.rs`.

use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroU8;

use atomtree::{Checkpoints, Options};
use atomtree_vfs::Vfs;
use atomtree_vfs::os::Os;
use atomtree_wal::{Log, LogOptions, Record, scan};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const ID: [u8; 16] = *b"a log to measure";

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: 16 << 20, log_bytes_max: 64 << 20 }
}

/// Appending to the log, with and without the sync that makes it durable.
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

/// Opening a store that was closed.
fn open(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().unwrap();
    Options::new().open(scratch.path()).unwrap().close().unwrap();
    criterion.bench_function("open and close", |bencher| {
        bencher.iter(|| Options::new().open(scratch.path()).unwrap().close().unwrap());
    });
}

criterion_group!(parts, append, scan_segment, commit, open);
criterion_main!(parts);
