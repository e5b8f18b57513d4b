//! Measures what durable changes to N small files cost, with atomtree and one file at a time.
//!
//! Both write in the same directory, turn by turn. Before each turn everything is settled, so that neither pays for
//! the other; what settling costs stands in a column of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use atomtree::{Checkpoints, Options, Store};
use serde::Serialize;

use crate::answer::Failure;
use crate::demo::Progress;

const FILE_BYTES: usize = 1024;
/// Numbers of files.
const SIZES: [usize; 3] = [1, 10, 100];
/// Rounds are repeated this long for each size, and at least `ROUNDS_MIN` times.
const TIME_EACH: Duration = Duration::from_millis(800);
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 101;

/// Medians for one number of files.
#[derive(Serialize)]
pub(super) struct Speed {
    pub(super) files: usize,
    pub(super) rounds: usize,
    pub(super) atomtree_ms: f64,
    /// The same and a checkpoint, after which the files themselves are durable.
    pub(super) settled_ms: f64,
    pub(super) one_at_a_time_ms: f64,
    /// How many times as long one at a time takes.
    pub(super) ratio: f64,
}

pub(super) fn measure(root: &Path, progress: &Progress) -> Result<Vec<Speed>, Failure> {
    let store = Options::new().checkpoints(Checkpoints::Manual).open(root)?;
    let dir = root.join("speed");
    fs::create_dir(&dir).map_err(|error| Failure::of_io("make a directory", &error))?;
    let mut speeds = Vec::new();
    for files in SIZES {
        progress.show(&format!("measuring {files} files"));
        speeds.push(measure_one(&store, &dir, files)?);
    }
    store.close()?;
    Ok(speeds)
}

fn measure_one(store: &Store, dir: &Path, files: usize) -> Result<Speed, Failure> {
    let (mut committed, mut settled, mut one_by_one) = (Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    for round in 0..=ROUNDS_MAX {
        if round > ROUNDS_MIN && started.elapsed() > TIME_EACH {
            break;
        }
        let content = vec![b'a' + (round % 26) as u8; FILE_BYTES];
        let start = Instant::now();
        store.transact(|transaction| {
            (0..files).try_for_each(|file| transaction.write(format!("speed/a{file:03}"), content.as_slice()))
        })?;
        let commit = start.elapsed();
        store.checkpoint()?;
        let settle = start.elapsed();

        let start = Instant::now();
        write_one_by_one(dir, files, &content)
            .map_err(|error| Failure::of_io("write one at a time", &error))?;
        // The first round makes the files that the others replace.
        if round > 0 {
            committed.push(commit);
            settled.push(settle);
            one_by_one.push(start.elapsed());
        }
    }
    let rounds = committed.len();
    let [atomtree_ms, settled_ms, one_at_a_time_ms] = [committed, settled, one_by_one].map(median_ms);
    let ratio = (one_at_a_time_ms / atomtree_ms * 10.0).round() / 10.0;
    Ok(Speed { files, rounds, atomtree_ms, settled_ms, one_at_a_time_ms, ratio })
}

/// What a careful program does for each file without atomtree.
fn write_one_by_one(dir: &Path, files: usize, content: &[u8]) -> io::Result<()> {
    let handle = File::open(dir)?;
    for file in 0..files {
        let temporary = dir.join("temporary");
        let mut new = File::create(&temporary)?;
        new.write_all(content)?;
        new.sync_all()?;
        fs::rename(temporary, dir.join(format!("r{file:03}")))?;
        handle.sync_all()?;
    }
    Ok(())
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    (times[times.len() / 2].as_secs_f64() * 100_000.0).round() / 100.0
}
