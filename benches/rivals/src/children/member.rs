//! One of several processes that commit to one store for a fixed time.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use atomtree_tests::history::Random;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::children::{answer, wait_for_go};
use crate::failure::Failure;
use crate::rivals::{self, Opening, Role, Writer};
use crate::spread::quantile;

/// The directory that everybody writes in.
pub const DIR: &str = "shared";
/// The file that holds the number of commits.
pub const COUNTER: &str = "shared/counter";

const FILES: usize = 4;
const FILE_BYTES: usize = 1 << 10;

/// What one of them is told.
#[derive(Args, Clone, Debug)]
pub struct Member {
    /// Whose store.
    rival: String,
    /// Where.
    dir: PathBuf,
    /// Which of them this is.
    number: usize,
    /// How many threads commit.
    threads: usize,
    /// How long, in milliseconds.
    milliseconds: u64,
    /// Whether each commit also adds one to the counter.
    #[arg(long)]
    counts: bool,
}

/// What it has done.
#[derive(Debug, Deserialize, Serialize)]
pub struct MemberAnswer {
    /// Commits of all threads.
    pub commits: u64,
    /// From the first begin to the last end.
    pub seconds: f64,
    /// What all but one in a hundred commits took at most, in microseconds.
    pub p99_us: f64,
    /// The longest commit, in microseconds.
    pub max_us: f64,
}

impl Member {
    pub(super) fn play(&self) -> Result<(), Failure> {
        let rival = rivals::named(&self.rival)
            .ok_or_else(|| Failure::new("find a rival named", &self.rival, "see --list"))?;
        let writer = rival.open(&self.dir, Opening::SHARED)?;
        if rival.role() == Role::Limit {
            writer.create_dir(DIR)?;
        }
        wait_for_go()?;
        let start = Instant::now();
        let times: Result<Vec<Vec<f64>>, Failure> = thread::scope(|scope| {
            let writer = &*writer;
            let threads: Vec<_> = (0..self.threads)
                .map(|number| scope.spawn(move || self.commit(writer, number, start)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("committers don't panic")).collect()
        });
        let mut times: Vec<f64> = times?.concat();
        let seconds = start.elapsed().as_secs_f64();
        writer.close()?;
        let [p99_us, max_us] = [990, 1000].map(|at| quantile(&mut times, at).unwrap_or_default());
        answer(&MemberAnswer { commits: times.len() as u64, seconds, p99_us, max_us })
    }

    /// What one thread does; how long each commit took, in microseconds.
    fn commit(&self, writer: &dyn Writer, thread: usize, start: Instant) -> Result<Vec<f64>, Failure> {
        let prefix = format!("{}-{thread}-", self.number);
        let mut random = Random::new((self.number * 1000 + thread) as u64);
        let mut times = Vec::new();
        while start.elapsed() < Duration::from_millis(self.milliseconds) {
            let batch = Batch::new(&mut random, DIR, &prefix, FILES, FILE_BYTES, !times.is_empty());
            let begun = Instant::now();
            if self.counts {
                writer.count(COUNTER, &batch)?;
            } else {
                writer.put(&batch)?;
            }
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }
}
