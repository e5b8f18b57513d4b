//! A program of somebody else's that writes 100 MB a second to the same file system, and never syncs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::children::{answer, wait_for_go};
use crate::failure::{Failure, On};
use crate::spread::quantile;

const WRITE_BYTES: usize = 1_000_000;
const PACE: Duration = Duration::from_millis(10);
/// The file is written over and over.
const WRITES_MAX: u64 = 512;

/// How it fared.
#[derive(Debug, Deserialize, Serialize)]
pub struct NeighbourAnswer {
    /// What it managed to write, in millions of bytes a second.
    pub megabytes_per_s: f64,
    /// What all but one in a hundred writes took at most, in microseconds.
    pub p99_us: f64,
    /// The longest write, in microseconds.
    pub max_us: f64,
}

pub(super) fn play(dir: &Path) -> Result<(), Failure> {
    let path = dir.join("neighbour");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).on("make", &path)?;
    let content = vec![7; WRITE_BYTES];
    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let times: Result<Vec<f64>, Failure> = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut times = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let number = times.len() as u64;
                // Behind its pace it catches up.
                let due = PACE * number as u32;
                thread::sleep(due.saturating_sub(start.elapsed()));
                let begun = Instant::now();
                let offset = number % WRITES_MAX * WRITE_BYTES as u64;
                file.write_all_at(&content, offset).on("write", &path)?;
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            Ok(times)
        });
        let told = wait_for_go();
        is_over.store(true, Ordering::Relaxed);
        let times = writer.join().expect("the writer doesn't panic");
        told.and(times)
    });
    let mut times = times?;
    let megabytes_per_s = (times.len() * WRITE_BYTES) as f64 / 1e6 / start.elapsed().as_secs_f64();
    let [p99_us, max_us] = [990, 1000].map(|at| quantile(&mut times, at).unwrap_or_default());
    answer(&NeighbourAnswer { megabytes_per_s, p99_us, max_us })
}
