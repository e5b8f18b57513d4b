//! Commits of some files of some size, from some threads, one commit or a few each in a sample.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::bench::{Bench, Open};
use crate::failure::Failure;
use crate::rivals::{BARE_BYTES, Role, Writer};
use crate::rounds::{Case, Effort, Sample};

/// With several committers a sample is so many commits together, or four each.
const COMMITS_MIN: usize = 64;
const COMMITS_EACH_MIN: usize = 4;
/// What the floor repeats at most, when the others commit from many threads.
const SERIAL_COMMITS_MAX: usize = 64;
/// Where a commit is this large, rounds are fewer: everybody keeps all that it has written until the case ends.
const BIG_BYTES: usize = 16 << 20;
const BIG_ROUNDS_MAX: usize = 5;

/// What a commit is, and who commits.
#[derive(Clone, Copy)]
struct Shape {
    files: usize,
    bytes: usize,
    replaces: bool,
    committers: usize,
    commits_each: usize,
}

/// Workload `files`.
pub(super) fn files(bench: &Bench) -> Result<(), Failure> {
    let counts = chosen(&bench.chosen.files, bench.either(&[1, 10, 100], &[1, 10, 100, 1000]));
    let sizes = chosen(&bench.chosen.bytes, bench.either(&[1 << 10], &[1 << 10, 4 << 10, 64 << 10]));
    let mut shapes = Vec::new();
    for bytes in sizes {
        for files in counts.iter().copied() {
            for replaces in [false, true] {
                shapes.push(Shape { files, bytes, replaces, committers: 1, commits_each: 1 });
            }
        }
    }
    measure_all(bench, "files", &shapes)
}

/// Workload `committers`.
pub(super) fn committers(bench: &Bench) -> Result<(), Failure> {
    let counts = chosen(&bench.chosen.committers, bench.either(&[1, 4, 16], &[1, 2, 4, 8, 16, 64]));
    let counts_of_files = chosen(&bench.chosen.files, &[4]);
    let sizes = chosen(&bench.chosen.bytes, &[1 << 10]);
    let mut shapes = Vec::new();
    for committers in counts {
        let commits_each = COMMITS_EACH_MIN.max(bench.either(16, COMMITS_MIN) / committers);
        for files in counts_of_files.iter().copied() {
            for bytes in sizes.iter().copied() {
                for replaces in bench.either(&[false][..], &[false, true][..]).iter().copied() {
                    shapes.push(Shape { files, bytes, replaces, committers, commits_each });
                }
            }
        }
    }
    measure_all(bench, "committers", &shapes)
}

/// Workload `large`.
pub(super) fn large(bench: &Bench) -> Result<(), Failure> {
    let sizes = [(4, 1 << 20), (1, bench.either(16 << 20, 64 << 20))];
    let shapes = sizes.map(|(files, bytes)| {
        [false, true].map(|replaces| Shape { files, bytes, replaces, committers: 1, commits_each: 1 })
    });
    measure_all(bench, "large", &shapes.concat())
}

fn measure_all(bench: &Bench, workload: &'static str, shapes: &[Shape]) -> Result<(), Failure> {
    let mut allowance = bench.allowance(shapes.len());
    shapes.iter().try_for_each(|shape| measure(bench, workload, *shape, allowance.next_case()))
}

fn chosen(own: &[usize], default: &[usize]) -> Vec<usize> {
    if own.is_empty() { default.to_vec() } else { own.to_vec() }
}

fn measure(bench: &Bench, workload: &'static str, shape: Shape, until: Instant) -> Result<(), Failure> {
    let Shape { files, bytes, replaces, committers, .. } = shape;
    let kind = if replaces { "replaced" } else { "new" };
    let mut case = format!("{files} {kind} x {}", size(bytes));
    if workload == "committers" {
        case = format!("{committers} committers, {case}");
    }
    if files * bytes * committers > BARE_BYTES {
        let most = BARE_BYTES >> 20;
        return Err(Failure::new(
            "measure",
            case,
            format!("all commits at once may have {most} MiB; choose less"),
        ));
    }
    let rivals = bench.of_roles(&[Role::Floor, Role::Limit, Role::Ours, Role::Rival]);
    let effort = if files * bytes >= BIG_BYTES { few_rounds(bench.effort) } else { bench.effort };
    bench.contest((workload, &case), &rivals, effort, until, &mut Commits { shape, random: Random::new(1) })
}

fn few_rounds(effort: Effort) -> Effort {
    Effort { rounds: effort.rounds.min(BIG_ROUNDS_MAX), rounds_min: effort.rounds_min.min(2), ..effort }
}

/// Bytes for people.
pub(super) fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

struct Commits {
    shape: Shape,
    random: Random,
}

/// For each committer what it commits, one after another.
struct Input {
    dir: String,
    batches: Vec<Vec<Batch>>,
}

impl Case<Open> for Commits {
    type Input = Input;

    fn input(&mut self, round: usize) -> Input {
        let Shape { files, bytes, replaces, committers, commits_each } = self.shape;
        let dir = if replaces { "kept".to_owned() } else { format!("round{round}") };
        let of = |committer: usize, commit: usize, random: &mut Random| {
            let prefix = if replaces { format!("{committer}-") } else { format!("{committer}-{commit}-") };
            // The round that warms up makes what the others replace.
            let exists = replaces && (round > 0 || commit > 0);
            Batch::new(random, &dir, &prefix, files, bytes, exists)
        };
        let batches = (0..committers)
            .map(|committer| {
                (0..commits_each).map(|commit| of(committer, commit, &mut self.random)).collect()
            })
            .collect();
        Input { dir, batches }
    }

    fn prepare(&self, writer: &mut Open, input: &Input) -> Result<(), Failure> {
        if input.batches.iter().flatten().all(Batch::replaces) {
            return Ok(());
        }
        writer.create_dir(&input.dir)?;
        writer.tidy()
    }

    fn measure(&self, writer: &mut Open, input: &Input) -> Result<Sample, Failure> {
        commit_all(&**writer, &input.batches)
    }

    fn clear(&self, writer: &mut Open) -> Result<(), Failure> {
        writer.tidy()
    }
}

/// Commits everything, a thread for each list; the time is from the first begin to the last end.
fn commit_all(writer: &dyn Writer, lists: &[Vec<Batch>]) -> Result<Sample, Failure> {
    if lists.len() == 1 || writer.is_serial() {
        let batches: Vec<&Batch> = lists.iter().flatten().take(SERIAL_COMMITS_MAX).collect();
        let commits = batches.len() as u64;
        return Sample::time(commits, || batches.into_iter().try_for_each(|batch| writer.put(batch)));
    }
    let start_line = Barrier::new(lists.len());
    let committer = |list: &Vec<Batch>| -> Result<(Instant, Instant), Failure> {
        start_line.wait();
        let start = Instant::now();
        list.iter().try_for_each(|batch| writer.put(batch))?;
        Ok((start, Instant::now()))
    };
    let committer = &committer;
    let spans: Result<Vec<(Instant, Instant)>, Failure> = thread::scope(|scope| {
        let threads: Vec<_> = lists.iter().map(|list| scope.spawn(move || committer(list))).collect();
        threads.into_iter().map(|thread| thread.join().expect("committers don't panic")).collect()
    });
    let spans = spans?;
    let first = spans.iter().map(|span| span.0).min();
    let last = spans.iter().map(|span| span.1).max();
    let time = last.zip(first).map_or(Duration::ZERO, |(last, first)| last - first);
    Ok(Sample { time, commits: lists.iter().map(Vec::len).sum::<usize>() as u64, ..Sample::default() })
}
