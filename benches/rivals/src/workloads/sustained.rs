//! Many commits one after another, with all that stores put off and must do in the end: how long on average, and how long
//! at worst.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::bench::{Bench, Open};
use crate::children::{Actor, NeighbourAnswer};
use crate::failure::{Failure, On};
use crate::place::Place;
use crate::rivals::{Opening, Rival, Role};
use crate::rounds::{self, Case, Effort, Lane, Sample};
use crate::spread::quantile;

const FILES: usize = 10;
const FILE_BYTES: usize = 1 << 10;
const COMMITS_PER_DIR: usize = 100;
/// What is replaced is replaced again after so many commits: a working set of 1000 files.
const REPLACED_AGAIN_AFTER: usize = 100;
const POPULATION_PER_COMMIT: usize = 1000;
/// Rivals that have not done all commits by then stop.
const RIVAL_TIME_MAX: Duration = Duration::from_secs(5);
const QUICK_TIME_MAX: Duration = Duration::from_millis(300);
/// Of timed work in a case.
const BUDGET: Duration = Duration::from_secs(4);

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let commits = bench.either(100, 10_000);
    let population = bench.either(1000, 100_000);
    let mut allowance = bench.allowance(4);
    for replaces in [false, true] {
        let kind = if replaces { "replaced" } else { "new" };
        let case = format!("{commits} commits x {FILES} {kind} x 1 KiB, checkpoints included");
        measure(
            bench,
            &case,
            everybody(bench),
            Stream::new(commits, replaces, false),
            allowance.next_case(),
        )?;
    }
    let case = format!("{commits} commits x {FILES} new x 1 KiB, in stores of 10 and {population} files");
    let mut lanes = Vec::new();
    for rival in bench.of_roles(&[Role::Floor, Role::Ours]) {
        lanes.push(lane(rival, rival.name().to_owned(), rival.role(), 10));
        if rival.role() == Role::Ours {
            let who = format!("{}, {population} files", rival.name());
            lanes.push(lane(rival, who, Role::Rival, population));
        }
    }
    measure(bench, &case, lanes, Stream::new(commits, false, false), allowance.next_case())?;

    let case = format!("{commits} commits x {FILES} replaced x 1 KiB, beside a writer of 100 MB/s");
    measure(bench, &case, everybody(bench), Stream::new(commits, true, true), allowance.next_case())
}

fn everybody<'a>(bench: &Bench) -> Vec<Lane<Running<'a>>> {
    let rivals = bench.of_roles(&[Role::Floor, Role::Limit, Role::Ours, Role::Rival]);
    rivals.into_iter().map(|rival| lane(rival, rival.name().to_owned(), rival.role(), 10)).collect()
}

fn measure<'a>(
    bench: &'a Bench,
    case: &str,
    mut lanes: Vec<Lane<Running<'a>>>,
    mut stream: Stream,
    until: Instant,
) -> Result<(), Failure> {
    let dir = bench.place.fresh("sustained")?;
    for lane in &mut lanes {
        lane.state.root = dir.join(lane.who.replace([' ', ','], "-"));
        lane.state.place = Some(&bench.place);
        lane.state.time_max = bench.either(QUICK_TIME_MAX, RIVAL_TIME_MAX);
    }
    let effort = Effort { rounds: bench.either(1, 3), rounds_min: 1, budget: BUDGET, warms_up: false };
    let rows = rounds::run(bench, ("sustained", case), effort, until, &mut lanes, &mut stream)?;
    bench.report.add(rows)?;
    drop(lanes);
    bench.place.remove(&dir)
}

fn lane<'a>(rival: &'static dyn Rival, who: String, role: Role, population: usize) -> Lane<Running<'a>> {
    let state = Running {
        rival,
        population,
        root: PathBuf::new(),
        place: None,
        time_max: RIVAL_TIME_MAX,
        writer: None,
    };
    Lane { who, role, state }
}

/// A participant: its store is made anew in each round.
struct Running<'a> {
    rival: &'static dyn Rival,
    population: usize,
    root: PathBuf,
    place: Option<&'a Place>,
    /// After that it stops early, if it is a rival.
    time_max: Duration,
    writer: Option<Open>,
}

struct Stream {
    commits: usize,
    replaces: bool,
    has_neighbour: bool,
    random: Random,
}

impl Stream {
    fn new(commits: usize, replaces: bool, has_neighbour: bool) -> Self {
        Self { commits, replaces, has_neighbour, random: Random::new(5) }
    }

    /// Where a commit's files lie.
    fn names(&self, commit: usize) -> (String, String) {
        if self.replaces {
            ("set".to_owned(), format!("{}-", commit % REPLACED_AGAIN_AFTER))
        } else {
            (format!("dir{}", commit / COMMITS_PER_DIR), format!("{commit}-"))
        }
    }

    fn batch(&self, random: &mut Random, commit: usize, exists: bool) -> Batch {
        let (dir, prefix) = self.names(commit);
        Batch::new(random, &dir, &prefix, FILES, FILE_BYTES, exists)
    }
}

impl<'a> Case<Running<'a>> for Stream {
    type Input = Vec<Batch>;

    fn input(&mut self, round: usize) -> Vec<Batch> {
        let mut random = Random::new(self.random.next() ^ round as u64);
        (0..self.commits).map(|commit| self.batch(&mut random, commit, self.replaces)).collect()
    }

    fn prepare(&self, running: &mut Running<'a>, batches: &Vec<Batch>) -> Result<(), Failure> {
        std::fs::create_dir_all(&running.root).on("make", &running.root)?;
        let writer = running.rival.open(&running.root, Opening::SUSTAINED)?;
        let mut random = Random::new(6);
        for start in (0..running.population).step_by(POPULATION_PER_COMMIT) {
            let count = POPULATION_PER_COMMIT.min(running.population - start);
            let dir = format!("old{}", start / POPULATION_PER_COMMIT);
            writer.create_dir(&dir)?;
            writer.put(&Batch::new(&mut random, &dir, "", count, FILE_BYTES, false))?;
        }
        let mut made = None;
        for batch in batches {
            if made != Some(batch.dir()) {
                writer.create_dir(batch.dir())?;
                made = Some(batch.dir());
            }
        }
        if self.replaces {
            for commit in 0..REPLACED_AGAIN_AFTER {
                writer.put(&self.batch(&mut random, commit, false))?;
            }
        }
        writer.tidy()?;
        running.writer = Some(writer);
        Ok(())
    }

    fn measure(&self, running: &mut Running<'a>, batches: &Vec<Batch>) -> Result<Sample, Failure> {
        let writer = running.writer.as_ref().expect("it was prepared");
        let neighbour = match running.place.filter(|_| self.has_neighbour) {
            Some(place) => {
                let dir = place.fresh("neighbour")?;
                Some(Actor::start("neighbour", &[dir.display().to_string()])?)
            }
            None => None,
        };
        let is_patient = running.rival.role() != Role::Rival;
        let start = Instant::now();
        let mut times = Vec::new();
        for batch in batches {
            if !is_patient && start.elapsed() > running.time_max {
                break;
            }
            let begun = Instant::now();
            writer.put(batch)?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let commits = times.len() as u64;
        writer.tidy()?;
        let time = start.elapsed();
        let mut figures = latencies(&mut times);
        if let Some(mut neighbour) = neighbour {
            neighbour.go()?;
            let answer: NeighbourAnswer = neighbour.answer()?;
            figures.insert("neighbour_MB/s", answer.megabytes_per_s);
            figures.insert("neighbour_p99_us", answer.p99_us);
            figures.insert("neighbour_max_us", answer.max_us);
        }
        Ok(Sample { time, commits, figures })
    }

    fn clear(&self, running: &mut Running<'a>) -> Result<(), Failure> {
        if let Some(writer) = running.writer.take() {
            writer.close()?;
        }
        let root = &running.root;
        std::fs::remove_dir_all(root).on("remove", root)
    }
}

fn latencies(times: &mut [f64]) -> BTreeMap<&'static str, f64> {
    let mut figures = BTreeMap::new();
    for (name, at) in [("p50_us", 500), ("p99_us", 990), ("max_us", 1000)] {
        figures.extend(quantile(times, at).map(|value| (name, value)));
    }
    if let (Some(max), Some(median)) = (figures.get("max_us"), figures.get("p50_us")) {
        let ratio = max / median;
        figures.insert("max_per_p50", ratio);
    }
    figures
}
