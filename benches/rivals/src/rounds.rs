//! Interleaved rounds: in each one, everybody once, in an order that rotates, on a file system that has come to rest.
//!
//! A round that warms up comes first and is not counted. Whoever is slow drops out when its budget of time is used up;
//! the floor and atomtree stay in, because ratios are formed within a round. When the time for the case is over, it
//! ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::failure::Failure;
use crate::report::{OUT_OF_TIME, Row};
use crate::rivals::Role;
use crate::spread::Spread;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// At most so many rounds, the one that warms up left out.
    pub rounds: usize,
    /// Nobody drops out before so many.
    pub rounds_min: usize,
    /// What one participant may take in a case, in timed work.
    pub budget: Duration,
    /// Whether a round comes first that is not counted.
    pub warms_up: bool,
}

/// One participant in one case.
pub struct Lane<T> {
    /// What the row is called.
    pub who: String,
    /// What it is to the comparison.
    pub role: Role,
    /// Its own things: the store, most of the time.
    pub state: T,
}

/// What was measured once.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What passed on the clock.
    pub time: Duration,
    /// What it is divided by; 0 where nothing is committed.
    pub commits: u64,
    /// What only this workload has.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Sample {
    /// Runs the work and takes the time.
    pub fn time(commits: u64, work: impl FnOnce() -> Result<(), Failure>) -> Result<Self, Failure> {
        let start = Instant::now();
        work()?;
        Ok(Self { time: start.elapsed(), commits, figures: BTreeMap::new() })
    }

    fn us(&self) -> f64 {
        self.time.as_secs_f64() * 1e6 / self.commits.max(1) as f64
    }
}

/// What is done with a participant in each round.
pub trait Case<T> {
    /// What all of them get in a round: the contents, most of the time.
    type Input;

    /// Makes it.
    fn input(&mut self, round: usize) -> Self::Input;

    /// What comes before the file system is settled; not timed.
    fn prepare(&self, _: &mut T, _: &Self::Input) -> Result<(), Failure> {
        Ok(())
    }

    /// What is measured.
    fn measure(&self, state: &mut T, input: &Self::Input) -> Result<Sample, Failure>;

    /// What comes behind; not timed.
    fn clear(&self, _: &mut T) -> Result<(), Failure> {
        Ok(())
    }
}

/// What has been measured of one participant.
#[derive(Default)]
struct Taken {
    /// For each round that it took part in: what was measured, flushes and bytes for each commit.
    samples: BTreeMap<usize, (Sample, Option<(f64, f64)>)>,
    spent: Duration,
    failed: Option<String>,
}

impl Taken {
    fn is_done(&self, effort: Effort) -> bool {
        let rounds = self.samples.len();
        self.failed.is_some()
            || rounds >= effort.rounds
            || (rounds >= effort.rounds_min && self.spent >= effort.budget)
    }
}

/// Runs a case to its end, or until its time is over.
///
/// # Errors
/// If the program is told to stop.
pub fn run<T, C: Case<T>>(
    bench: &Bench,
    title: (&'static str, &str),
    effort: Effort,
    until: Instant,
    lanes: &mut [Lane<T>],
    case: &mut C,
) -> Result<Vec<Row>, Failure> {
    let mut taken: Vec<Taken> = lanes.iter().map(|_| Taken::default()).collect();
    let first = usize::from(!effort.warms_up);
    for round in first..=effort.rounds {
        if Instant::now() >= until || taken.iter().all(|lane| lane.is_done(effort)) {
            break;
        }
        let input = case.input(round);
        for turn in 0..lanes.len() {
            let index = (round + turn) % lanes.len();
            let (lane, taken) = (&mut lanes[index], &mut taken[index]);
            let stays = matches!(lane.role, Role::Floor | Role::Ours) && taken.failed.is_none();
            if !stays && (taken.is_done(effort) || Instant::now() >= until) {
                continue;
            }
            bench.check_interrupt()?;
            let progress =
                format!("{}: {}: round {round} of {}: {}", title.0, title.1, effort.rounds, lane.who);
            bench.progress.show(&progress);
            match sample(bench, case, &mut lane.state, &input) {
                Ok(sample) if round > 0 => {
                    taken.spent += sample.0.time;
                    taken.samples.insert(round, sample);
                }
                Ok(_) => {}
                Err(failure) => taken.failed = Some(failure.to_string()),
            }
        }
    }
    bench.progress.clear();
    for lane in taken.iter_mut().filter(|lane| lane.samples.is_empty()) {
        lane.failed.get_or_insert_with(|| OUT_OF_TIME.to_owned());
    }
    Ok(rows(title, lanes, &taken))
}

fn sample<T, C: Case<T>>(
    bench: &Bench,
    case: &C,
    state: &mut T,
    input: &C::Input,
) -> Result<(Sample, Option<(f64, f64)>), Failure> {
    case.prepare(state, input)?;
    bench.place.settle()?;
    let before = bench.place.device().work();
    let sample = case.measure(state, input)?;
    let work = before.zip(bench.place.device().work()).map(|(before, after)| {
        let (work, commits) = (after - before, sample.commits.max(1) as f64);
        (work.flushes as f64 / commits, work.bytes as f64 / commits)
    });
    case.clear(state)?;
    Ok((sample, work))
}

fn rows<T>((workload, case): (&'static str, &str), lanes: &[Lane<T>], taken: &[Taken]) -> Vec<Row> {
    let of_role = |role| lanes.iter().position(|lane| lane.role == role).map(|at| &taken[at]);
    let (floor, ours) = (of_role(Role::Floor), of_role(Role::Ours));
    let row = |lane: &Lane<T>, own: &Taken| {
        let median = |values: Vec<f64>| Spread::of(values).map(|spread| spread.median);
        let of_work = |pick: fn((f64, f64)) -> f64| {
            median(own.samples.values().filter_map(|(_, work)| work.map(pick)).collect())
        };
        let flushes = of_work(|work| work.0);
        let names = own.samples.values().flat_map(|(sample, _)| sample.figures.keys());
        let figures = names.filter_map(|name| {
            let values = own.samples.values().filter_map(|(sample, _)| sample.figures.get(name).copied());
            Some((*name, median(values.collect())?))
        });
        let commits = own.samples.values().any(|(sample, _)| sample.commits > 0);
        let suspect = (commits && flushes == Some(0.0))
            .then(|| "[the device was never flushed: not durable?]".to_owned());
        Row {
            workload,
            case: case.to_owned(),
            who: lane.who.clone(),
            samples: own.samples.len(),
            us: Spread::of(own.samples.values().map(|(sample, _)| sample.us()).collect()),
            per_bare: floor.and_then(|floor| ratios(own, floor)),
            per_atomtree: ours
                .filter(|_| matches!(lane.role, Role::Rival | Role::Limit))
                .and_then(|ours| ratios(own, ours)),
            flushes,
            device_bytes: of_work(|work| work.1),
            figures: figures.collect(),
            note: own.failed.clone().or(suspect),
        }
    };
    lanes.iter().zip(taken).map(|(lane, own)| row(lane, own)).collect()
}

/// Of what was measured in the same round.
fn ratios(own: &Taken, other: &Taken) -> Option<Spread> {
    let ratio = |(round, (sample, _)): (&usize, &(Sample, _))| {
        other.samples.get(round).map(|(other, _)| sample.us() / other.us())
    };
    Spread::of(own.samples.iter().filter_map(ratio).collect())
}
