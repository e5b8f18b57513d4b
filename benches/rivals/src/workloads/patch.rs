//! A small change in a large file: with what a rival has for that, or by writing the whole file anew.

use atomtree_tests::history::Random;

use crate::batch::{Batch, random_bytes};
use crate::bench::{Bench, Open};
use crate::failure::Failure;
use crate::rivals::{Opening, Role, rewrite};
use crate::rounds::{self, Case, Lane, Sample};
use crate::workloads::commits::size;

const PATCH_BYTES: usize = 1 << 10;
const PATH: &str = "dir/large";

/// How a participant does it.
#[derive(Clone, Copy)]
enum Way {
    Patch,
    InPlace,
    Rewrite,
}

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let bytes = bench.either(16 << 20, 64 << 20);
    let case = format!("{} in {}", size(PATCH_BYTES), size(bytes));
    let title = ("patch", case.as_str());
    let dir = bench.place.fresh("patch")?;
    let rivals = bench.of_roles(&[Role::Floor, Role::Ours, Role::Rival]);
    let (opened, absent) = bench.open(&dir, &rivals, Opening::QUIET, title)?;
    let mut lanes = Vec::new();
    for lane in opened {
        lanes.push(Lane { who: lane.who, role: lane.role, state: (lane.state, Way::Patch) });
    }
    // The other ways of atomtree's, each in a store of its own.
    let ways = [("in place", Way::InPlace), ("rewriting", Way::Rewrite)];
    for rival in bench.of_roles(&[Role::Ours]) {
        for (number, (how, way)) in ways.into_iter().enumerate() {
            let own = bench.place.fresh(&format!("patch/own-{number}"))?;
            let state = (rival.open(&own, Opening::QUIET)?, way);
            lanes.push(Lane { who: format!("{}, {how}", rival.name()), role: Role::Rival, state });
        }
    }
    let mut case = Patch { bytes, random: Random::new(2) };
    let mut rows =
        rounds::run(bench, title, bench.effort, bench.allowance(1).next_case(), &mut lanes, &mut case)?;
    for lane in lanes {
        lane.state.0.close()?;
    }
    rows.extend(absent);
    bench.report.add(rows)?;
    bench.place.remove(&dir)
}

struct Patch {
    bytes: usize,
    random: Random,
}

struct Input {
    /// The whole file, in the round that warms up.
    whole: Option<Batch>,
    offset: usize,
    bytes: Vec<u8>,
}

impl Case<(Open, Way)> for Patch {
    type Input = Input;

    fn input(&mut self, round: usize) -> Input {
        let whole = (round == 0)
            .then(|| Batch::of("dir", "large", random_bytes(&mut self.random, self.bytes), false));
        let offset = self.random.below((self.bytes - PATCH_BYTES) as u64) as usize;
        Input { whole, offset, bytes: random_bytes(&mut self.random, PATCH_BYTES) }
    }

    fn prepare(&self, (writer, _): &mut (Open, Way), input: &Input) -> Result<(), Failure> {
        let Some(whole) = &input.whole else { return Ok(()) };
        writer.create_dir(whole.dir())?;
        writer.put(whole)?;
        writer.tidy()
    }

    fn measure(&self, (writer, way): &mut (Open, Way), input: &Input) -> Result<Sample, Failure> {
        Sample::time(1, || match way {
            Way::Patch => writer.patch(PATH, input.offset, &input.bytes),
            Way::InPlace => writer.patch_in_place(PATH, input.offset, &input.bytes),
            Way::Rewrite => rewrite(&**writer, PATH, input.offset, &input.bytes),
        })
    }

    fn clear(&self, (writer, _): &mut (Open, Way)) -> Result<(), Failure> {
        writer.tidy()
    }
}
