//! A log on its own: threads commit records together, several with each sync, and the log is read back.
//!
//! Run it with an empty or new directory: `cargo run --release --example log -- /tmp/log`. Run it again, and it goes on
//! where it stopped; kill it in between if you like.

use std::error::Error;
use std::fs;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use atomtree_vfs::{Vfs, os::Os};
use atomtree_wal::{GroupCommit, Log, LogOptions, Lsn, Record, Tail, scan};
use parking_lot::Mutex;

const THREADS: usize = 8;
const RECORDS_EACH: usize = 250;
const ID: [u8; 16] = *b"log example's id";
const KIND: NonZeroU8 = NonZeroU8::MIN;

/// A log that threads share: whoever comes first leads, appends what all have handed in, and syncs once.
struct SharedLog {
    log: Mutex<Log>,
    group: GroupCommit<String, Result<Lsn, String>>,
    syncs: AtomicU64,
}

impl SharedLog {
    /// Returns the record's position once it survives a power cut.
    fn commit(&self, record: String) -> Result<Lsn, Box<dyn Error>> {
        // What an error of the sync says holds for every record of the batch.
        Ok(self.group.announce().submit(record, |batch| self.lead(&batch))??)
    }

    fn lead(&self, batch: &[String]) -> Vec<Result<Lsn, String>> {
        let mut log = self.log.lock();
        let appended: Vec<_> = batch.iter().map(|record| append(&mut log, record)).collect();
        self.syncs.fetch_add(1, Ordering::Relaxed);
        match log.sync() {
            Ok(_) => appended,
            Err(error) => vec![Err(error.to_string()); batch.len()],
        }
    }
}

fn append(log: &mut Log, record: &str) -> Result<Lsn, String> {
    if log.wants_spare() {
        // In a program that must not stall, another thread builds it meanwhile.
        let spare = log.spare_builder().build().map_err(|error| error.to_string())?;
        log.add_spare(spare);
    }
    let parts = [record.as_bytes()];
    log.append(&[Record { kind: KIND, parts: &parts }]).map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("give a directory for the log")?;
    fs::create_dir_all(&path)?;
    let dir = Os.open_root(path.as_ref())?;
    let options = LogOptions { segment_bytes: 1 << 20, log_bytes_max: 64 << 20 };
    let log = if dir.list()?.is_empty() {
        Log::create(dir.clone(), ID, options)?
    } else {
        let (mut log, found) = Log::open(dir.clone(), ID, options)?;
        println!("found records {} to {}, {:?}", found.first_lsn(), found.end_lsn(), found.tail());
        if found.tail() != Tail::Closed {
            // After a crash the cache may show what the disk does not hold.
            log.rewrite(&found, found.first_lsn())?;
        }
        log
    };

    let shared = SharedLog { log: Mutex::new(log), group: GroupCommit::new(), syncs: AtomicU64::new(0) };
    let start = Instant::now();
    thread::scope(|scope| {
        let commit_all = |thread: usize| {
            for number in 0..RECORDS_EACH {
                shared
                    .commit(format!("thread {thread}, record {number}"))
                    .map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || commit_all(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    let (commits, syncs) = ((THREADS * RECORDS_EACH) as u64, shared.syncs.load(Ordering::Relaxed));
    println!(
        "{commits} commits by {THREADS} threads in {:.2?}: {syncs} syncs, {} for every 100 commits",
        start.elapsed(),
        syncs * 100 / commits
    );
    shared.log.into_inner().close()?;

    let found = scan(&*dir, ID)?;
    println!(
        "read back records {} to {}, {:?}; the last ones:",
        found.first_lsn(),
        found.end_lsn(),
        found.tail()
    );
    let frames: Vec<_> = found.frames().collect::<Result<_, _>>()?;
    for frame in frames.iter().rev().take(3) {
        println!("  {}: {}", frame.lsn, String::from_utf8_lossy(&frame.payload));
    }
    Ok(())
}
