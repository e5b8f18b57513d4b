//! The long mode of the tests on simulated storage: crashes, faults, edits by others, for as long as one likes.
//!
//! `cargo run --release -p atomtree-soak -- --cycles 1000 --seed 7`. A cycle is what one seed decides; one that fails
//! says how to run it again, and ends the run.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use atomtree_tests::crash::{Effort, explore};
use atomtree_tests::failing::{chain, fail_calls, fail_every_sync, lose_data_in_background};
use atomtree_tests::history::{DIRECTORIES, History};
use atomtree_tests::{foreign, foreign_dirs};
use clap::Parser;
use clap::builder::RangedU64ValueParser;

/// Crashes, faults and edits by other programs on simulated storage, judged by an oracle that knows every content.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = u64::MAX, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cycles: u64,
    /// The first seed; by default one that was not run before, from the clock
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..SEEDS))]
    seed: Option<u64>,
    /// How many run at once
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from), value_name = "N",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    threads: usize,
}

/// Edits by other programs in each cycle.
const EDITS: u64 = 50;

/// So many seeds there are: histories and scenarios of one never meet those of another cycle.
const SEEDS: u64 = DIRECTORIES / EDITS;

/// What has been seen.
#[derive(Default)]
struct Figures {
    cycles: AtomicU64,
    crashes: AtomicU64,
    faults: AtomicU64,
    edits: AtomicU64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or_else(from_clock);
    let seeds = first..first.saturating_add(arguments.cycles).min(SEEDS);
    println!("from seed {first}, on {} threads", arguments.threads);
    let (figures, start) = (Figures::default(), Instant::now());
    let failed = run(seeds, arguments.threads, &figures, start);
    figures.print(start);
    match failed {
        None => ExitCode::SUCCESS,
        Some(seed) => {
            println!("seed {seed} failed; to run it again:");
            println!("cargo run --release -p atomtree-soak -- --cycles 1 --seed {seed}");
            ExitCode::FAILURE
        }
    }
}

/// So that many cycles can follow it.
fn from_clock() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    since % (SEEDS / 2)
}

/// Runs the seeds. Returns the first that failed.
fn run(seeds: Range<u64>, threads: usize, figures: &Figures, start: Instant) -> Option<u64> {
    let (next, is_over) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if catch_unwind(AssertUnwindSafe(|| cycle(seed, figures))).is_err() {
                        is_over.store(true, Ordering::Relaxed);
                        failed.lock().expect("nothing panics while it is held").get_or_insert(seed);
                    } else if figures.cycles.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
                        figures.print(start);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("nothing panics while it is held")
}

/// Everything that one seed decides.
///
/// # Panics
/// Where a promise is broken, with what replays it.
fn cycle(seed: u64, figures: &Figures) {
    let effort = Effort { cuts: 6, nested_per_mille: [60, 5, 10] };
    let add = |sum: &AtomicU64, count| _ = sum.fetch_add(count, Ordering::Relaxed);
    for seed in [seed, DIRECTORIES + seed] {
        let history = History::generate(seed);
        add(&figures.crashes, explore(&history, effort).iter().sum());
        add(&figures.faults, fail_every_sync(&history));
        add(&figures.faults, lose_data_in_background(&history));
    }
    // Histories of directories need nothing to have been done before.
    add(&figures.faults, fail_calls(&History::generate(DIRECTORIES + seed), 40));
    add(&figures.crashes, chain(seed, 200));
    for edit in seed * EDITS..(seed + 1) * EDITS {
        let judged = foreign::Scenario::judge(edit)
            .map(drop)
            .and_then(|()| foreign_dirs::Scenario::judge(edit).map(drop));
        if let Err(reason) = judged {
            panic!("edit {edit}: {reason}");
        }
        add(&figures.edits, 2);
    }
}

impl Figures {
    fn print(&self, start: Instant) {
        println!(
            "{:>8.0?}  {} seeds, {} crashes, {} faults and {} edits by others recovered from",
            start.elapsed(),
            self.cycles.load(Ordering::Relaxed),
            self.crashes.load(Ordering::Relaxed),
            self.faults.load(Ordering::Relaxed),
            self.edits.load(Ordering::Relaxed)
        );
    }
}
