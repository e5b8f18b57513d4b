//! Several processes with one store: small commits for a fixed time, under names of their own, or with a counter that all
//! of them add to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::bench::{Bench, Open};
use crate::children::{Actor, COUNTER, DIR, MemberAnswer};
use crate::failure::{Failure, On};
use crate::report::Row;
use crate::rivals::{Opening, Rival, Role, Writer};
use crate::rounds::{self, Case, Effort, Lane, Sample};

/// As the members commit.
const FILES: usize = 4;
const FILE_BYTES: usize = 1 << 10;

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let mut loads = Vec::new();
    for counts in [false, true] {
        for processes in bench.either(&[1, 2][..], &[1, 2, 4, 8][..]).iter().copied() {
            for threads in bench.either(&[4][..], &[1, 4][..]).iter().copied() {
                loads.push(Load::new(processes, threads, counts, bench.either(200, 1000)));
            }
        }
    }
    let mut allowance = bench.allowance(loads.len());
    for (number, mut load) in loads.into_iter().enumerate() {
        let kind = if load.counts { "4 files and a counter" } else { "4 files" };
        let case = format!("{} processes x {} threads, {kind}", load.processes, load.threads);
        // Why some don't take part is said once.
        measure(bench, &case, &mut load, number == 0, allowance.next_case())?;
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    case: &str,
    load: &mut Load,
    is_first: bool,
    until: Instant,
) -> Result<(), Failure> {
    let title = ("processes", case);
    let dir = bench.place.fresh("processes")?;
    let (mut lanes, mut absent) = (Vec::new(), Vec::new());
    for rival in bench.of_roles(&[Role::Floor, Role::Limit, Role::Ours, Role::Rival]) {
        if rival.role() == Role::Rival && !rival.is_atomic() {
            let reason = Failure::Unsupported("has no transactions of several files");
            absent.push(Row::absent(title, rival.name(), &reason));
            continue;
        }
        let root = dir.join(rival.name());
        std::fs::create_dir_all(&root).on("make", &root)?;
        // Tried once, so that those that can't are told from those that fail.
        match rival.open(&root, Opening::SHARED) {
            Ok(writer) => {
                writer.close()?;
                lanes.push(Lane {
                    who: rival.name().to_owned(),
                    role: rival.role(),
                    state: Shared { rival, root, floor: None },
                });
            }
            Err(failure @ Failure::Unsupported(_)) => absent.push(Row::absent(title, rival.name(), &failure)),
            Err(failure) => return Err(failure),
        }
        std::fs::remove_dir_all(dir.join(rival.name())).on("remove", dir.join(rival.name()))?;
    }
    let budget = Duration::from_mins(1);
    let effort = Effort { rounds: bench.either(1, 3), rounds_min: 1, budget, warms_up: false };
    let mut rows = rounds::run(bench, title, effort, until, &mut lanes, load)?;
    if is_first {
        rows.extend(absent);
    }
    bench.report.add(rows)?;
    bench.place.remove(&dir)
}

struct Shared {
    rival: &'static dyn Rival,
    root: PathBuf,
    /// Open, if this is a floor: its file is not made while the device's counters are watched.
    floor: Option<Open>,
}

impl Shared {
    /// Where this member finds its store. LIMIT is what the system takes for what they all do, so each has its own.
    fn dir_of(&self, number: usize) -> PathBuf {
        if self.rival.role() == Role::Limit { self.root.join(number.to_string()) } else { self.root.clone() }
    }
}

struct Load {
    processes: usize,
    threads: usize,
    counts: bool,
    milliseconds: u64,
    random: Random,
}

impl Case<Shared> for Load {
    /// What the floors write, for the first time and later.
    type Input = [Batch; 2];

    fn input(&mut self, _: usize) -> [Batch; 2] {
        [false, true].map(|replaces| Batch::new(&mut self.random, DIR, "floor-", FILES, FILE_BYTES, replaces))
    }

    /// A fresh store, with the counter at 0 and nobody in it.
    fn prepare(&self, shared: &mut Shared, [first, _]: &[Batch; 2]) -> Result<(), Failure> {
        std::fs::create_dir_all(&shared.root).on("make", &shared.root)?;
        if shared.rival.role() == Role::Limit {
            return (0..self.processes).try_for_each(|number| {
                let own = shared.dir_of(number);
                std::fs::create_dir(&own).on("make", own)
            });
        }
        if shared.rival.role() == Role::Floor {
            let floor = shared.rival.open(&shared.root, Opening::QUIET)?;
            floor.create_dir(DIR)?;
            floor.put(first)?;
            shared.floor = Some(floor);
            return Ok(());
        }
        let writer = shared.rival.open(&shared.root, Opening::SHARED)?;
        writer.create_dir(DIR)?;
        writer.put(&Batch::of(DIR, "counter", b"0".to_vec(), false))?;
        writer.tidy()?;
        writer.close()
    }

    fn measure(&self, shared: &mut Shared, [_, later]: &[Batch; 2]) -> Result<Sample, Failure> {
        if let Some(floor) = &shared.floor {
            return self.floor(&**floor, later);
        }
        let mut members = Vec::new();
        for number in 0..self.processes {
            members.push(Actor::start("member", &self.arguments(shared, number))?);
        }
        members.iter_mut().try_for_each(Actor::go)?;
        let answers: Result<Vec<MemberAnswer>, Failure> = members.into_iter().map(Actor::answer).collect();
        let answers = answers?;
        let commits = answers.iter().map(|answer| answer.commits).sum();
        if shared.rival.role() != Role::Limit {
            self.check(shared, commits)?;
        }
        let most = |pick: fn(&MemberAnswer) -> f64| answers.iter().map(pick).fold(0.0, f64::max);
        let share = |commits: u64, all: u64| commits as f64 * self.processes as f64 / all.max(1) as f64;
        let mut sample = Sample {
            time: Duration::from_secs_f64(most(|answer| answer.seconds)),
            commits,
            ..Sample::default()
        };
        let (least, greatest) = answers
            .iter()
            .map(|answer| answer.commits)
            .fold((u64::MAX, 0), |(least, greatest), own| (least.min(own), greatest.max(own)));
        sample.figures.insert("commits/s", commits as f64 / most(|answer| answer.seconds));
        // 1 is an equal share.
        sample.figures.insert("share_min", share(least, commits));
        sample.figures.insert("share_max", share(greatest, commits));
        sample.figures.insert("p99_us", most(|answer| answer.p99_us));
        sample.figures.insert("max_us", most(|answer| answer.max_us));
        Ok(sample)
    }

    fn clear(&self, shared: &mut Shared) -> Result<(), Failure> {
        shared.floor = None;
        std::fs::remove_dir_all(&shared.root).on("remove", &shared.root)
    }
}

impl Load {
    fn new(processes: usize, threads: usize, counts: bool, milliseconds: u64) -> Self {
        Self { processes, threads, counts, milliseconds, random: Random::new(7) }
    }

    fn arguments(&self, shared: &Shared, number: usize) -> Vec<String> {
        let mut arguments = vec![
            shared.rival.name().to_owned(),
            shared.dir_of(number).display().to_string(),
            number.to_string(),
            self.threads.to_string(),
            self.milliseconds.to_string(),
        ];
        // Without a counter nothing of LIMIT's would be shared.
        if self.counts && shared.rival.role() != Role::Limit {
            arguments.push("--counts".to_owned());
        }
        arguments
    }

    /// One serial committer, for as long.
    fn floor(&self, writer: &dyn Writer, batch: &Batch) -> Result<Sample, Failure> {
        let (start, mut commits) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(self.milliseconds) {
            writer.put(batch)?;
            commits += 1;
        }
        Ok(Sample { time: start.elapsed(), commits, ..Sample::default() })
    }

    /// Whether every member's commits are there.
    fn check(&self, shared: &Shared, commits: u64) -> Result<(), Failure> {
        let writer = shared.rival.open(&shared.root, Opening::SHARED)?;
        let last = FILES - 1;
        for member in 0..self.processes {
            writer.get(&format!("{DIR}/{member}-0-{last}"))?;
        }
        let counter = String::from_utf8_lossy(&writer.get(COUNTER)?).into_owned();
        writer.close()?;
        let expected = if self.counts { commits } else { 0 };
        if counter == expected.to_string() {
            return Ok(());
        }
        let reason = format!("it is {counter} after {expected} commits that add to it");
        Err(Failure::new("trust the counter of", shared.rival.name(), reason))
    }
}
