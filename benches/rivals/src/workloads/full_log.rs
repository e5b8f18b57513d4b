//! Commits while the log holds next to nothing, and while it is nearly full of what is not settled.

use atomtree::{Checkpoints, Options, Store};
use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::bench::Bench;
use crate::failure::{Failure, On};
use crate::rivals::Role;
use crate::rounds::{self, Case, Lane, Sample};

const FILES: usize = 10;
const FILE_BYTES: usize = 1 << 10;
const SEGMENT_BYTES: u64 = 16 << 20;
const LOG_BYTES_MAX: u64 = 4 * SEGMENT_BYTES;
/// One segment is always kept as a spare.
const FILLED_BYTES: usize = (LOG_BYTES_MAX - SEGMENT_BYTES) as usize / 10 * 9;
/// What a commit takes that fills it.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 256 << 10;

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let dir = bench.place.fresh("full-log")?;
    let mut lanes = Vec::new();
    for (who, role, is_full) in
        [("atomtree", Role::Ours, false), ("atomtree, log nearly full", Role::Rival, true)]
    {
        let root = dir.join(if is_full { "full" } else { "empty" });
        std::fs::create_dir(&root).on("make", &root)?;
        let options = Options::new()
            .checkpoints(Checkpoints::Manual)
            .segment_bytes(SEGMENT_BYTES)
            .log_bytes_max(LOG_BYTES_MAX);
        let store = options.open(&root).on("open the store of", &root)?;
        lanes.push(Lane { who: who.to_owned(), role, state: Filled { store, is_full } });
    }
    let case = format!("{FILES} new x 1 KiB");
    let title = ("full-log", case.as_str());
    let mut commits = Commits { random: Random::new(4) };
    let until = bench.allowance(1).next_case();
    bench.report.add(rounds::run(bench, title, bench.effort, until, &mut lanes, &mut commits)?)?;
    for lane in lanes {
        lane.state.store.close().on("close the store of", &dir)?;
    }
    bench.place.remove(&dir)
}

struct Filled {
    store: Store,
    is_full: bool,
}

impl Filled {
    fn commit(&self, batch: &Batch) -> Result<(), Failure> {
        let done =
            self.store.transact(|tx| batch.files().try_for_each(|file| tx.write(file.path, file.content)));
        done.map(drop).on("commit to", batch.dir())
    }
}

struct Commits {
    random: Random,
}

struct Input {
    /// What fills the log, in the round that warms up.
    filling: Vec<Batch>,
    batch: Batch,
}

impl Case<Filled> for Commits {
    type Input = Input;

    fn input(&mut self, round: usize) -> Input {
        let commits = if round == 0 { FILLED_BYTES / (PIECES * PIECE_BYTES) } else { 0 };
        let mut piece = |commit| {
            Batch::new(&mut self.random, "filling", &format!("{commit}-"), PIECES, PIECE_BYTES, false)
        };
        let filling = (0..commits).map(&mut piece).collect();
        let batch = Batch::new(&mut self.random, &format!("round{round}"), "", FILES, FILE_BYTES, false);
        Input { filling, batch }
    }

    fn prepare(&self, filled: &mut Filled, input: &Input) -> Result<(), Failure> {
        for dir in ["filling", input.batch.dir()] {
            filled.store.transact(|tx| tx.create_dir_all(dir)).on("make", dir)?;
        }
        if filled.is_full { input.filling.iter().try_for_each(|batch| filled.commit(batch)) } else { Ok(()) }
    }

    fn measure(&self, filled: &mut Filled, input: &Input) -> Result<Sample, Failure> {
        Sample::time(1, || filled.commit(&input.batch))
    }

    fn clear(&self, filled: &mut Filled) -> Result<(), Failure> {
        if filled.is_full { Ok(()) } else { filled.store.checkpoint().on("checkpoint", "the store") }
    }
}
