//! Bringing files back that were changed: undoing a commit, and rolling back what a program did in place under a guard.
//! Who has nothing for that commits the old contents again, which it has to have kept.

use std::fs;
use std::path::{Path, PathBuf};

use atomtree::{Checkpoints, Guard, Options, Store, TransactionId};
use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::bench::{Bench, Open};
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Role};
use crate::rounds::{self, Case, Effort, Lane, Sample};
use crate::workloads::commits::size;

const FILE_BYTES: usize = 1 << 10;
const DIR: &str = "dir";

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let counts: &[usize] = bench.either(&[100], &[100, 10_000]);
    let mut allowance = bench.allowance(counts.len());
    for (number, count) in counts.iter().enumerate() {
        // With thousands of files most rivals would take minutes for one sample.
        let roles: &[Role] =
            if number == 0 { &[Role::Floor, Role::Limit, Role::Rival] } else { &[Role::Floor, Role::Limit] };
        let case = format!("{count} x {}", size(FILE_BYTES));
        let title = ("going-back", case.as_str());
        let dir = bench.place.fresh("going-back")?;
        let (opened, absent) = bench.open(&dir, &bench.of_roles(roles), Opening::QUIET, title)?;
        let mut lanes: Vec<_> = (opened.into_iter())
            .map(|lane| Lane { who: lane.who, role: lane.role, state: Party::Again(lane.state) })
            .collect();
        let undoing = Atomtree::open(dir.join("undoing"))?;
        lanes.push(Lane {
            who: "atomtree, undo".into(),
            role: Role::Ours,
            state: Party::Undo(undoing, TransactionId(0)),
        });
        let guarding = Atomtree::open(dir.join("guarding"))?;
        let state = Party::RollBack(guarding, None);
        lanes.push(Lane { who: "atomtree, roll back".into(), role: Role::Rival, state });
        let mut case = GoingBack { count: *count, random: Random::new(5) };
        let effort = Effort {
            rounds: if number == 0 { bench.effort.rounds } else { bench.effort.rounds.min(9) },
            ..bench.effort
        };
        let mut rows = rounds::run(bench, title, effort, allowance.next_case(), &mut lanes, &mut case)?;
        for lane in lanes {
            lane.state.close()?;
        }
        rows.extend(absent);
        bench.report.add(rows)?;
        bench.place.remove(&dir)?;
    }
    Ok(())
}

/// A store, and where it is.
struct Atomtree {
    root: PathBuf,
    store: Store,
}

impl Atomtree {
    fn open(root: PathBuf) -> Result<Self, Failure> {
        fs::create_dir_all(root.join(DIR)).on("make", &root)?;
        let store =
            Options::new().checkpoints(Checkpoints::Manual).open(&root).on("open the store of", &root)?;
        Ok(Self { root, store })
    }

    fn commit(&self, batch: &Batch) -> Result<TransactionId, Failure> {
        let done =
            self.store.transact(|tx| batch.files().try_for_each(|file| tx.write(file.path, file.content)));
        done.map(|((), receipt)| receipt.tx()).on("commit to", &self.root)
    }

    fn checkpoint(&self) -> Result<(), Failure> {
        self.store.checkpoint().on("checkpoint", &self.root)
    }
}

/// How a participant goes back.
enum Party {
    Again(Open),
    /// The transaction that is to be undone.
    Undo(Atomtree, TransactionId),
    RollBack(Atomtree, Option<Box<Guard>>),
}

impl Party {
    fn close(self) -> Result<(), Failure> {
        match self {
            Self::Again(writer) => writer.close(),
            Self::Undo(atomtree, _) | Self::RollBack(atomtree, _) => {
                atomtree.store.close().on("close the store of", atomtree.root)
            }
        }
    }
}

struct GoingBack {
    count: usize,
    random: Random,
}

struct Input {
    old: Batch,
    new: Batch,
}

impl Case<Party> for GoingBack {
    type Input = Input;

    fn input(&mut self, round: usize) -> Input {
        let mut batch = |replaces| Batch::new(&mut self.random, DIR, "f", self.count, FILE_BYTES, replaces);
        Input { old: batch(round > 0), new: batch(true) }
    }

    fn prepare(&self, party: &mut Party, Input { old, new }: &Input) -> Result<(), Failure> {
        match party {
            Party::Again(writer) => {
                writer.create_dir(DIR)?;
                writer.put(old)?;
                writer.tidy()?;
                writer.put(new)?;
                writer.tidy()
            }
            Party::Undo(atomtree, undone) => {
                atomtree.commit(old)?;
                *undone = atomtree.commit(new)?;
                atomtree.checkpoint()
            }
            Party::RollBack(atomtree, guard) => {
                write_in_place(&atomtree.root, old)?;
                *guard = Some(Box::new(atomtree.store.guard([DIR]).on("guard", &atomtree.root)?));
                write_in_place(&atomtree.root, new)
            }
        }
    }

    fn measure(&self, party: &mut Party, Input { old, .. }: &Input) -> Result<Sample, Failure> {
        match party {
            Party::Again(writer) => Sample::time(1, || writer.put(old)),
            Party::Undo(atomtree, undone) => {
                Sample::time(1, || atomtree.store.undo(*undone).map(drop).on("undo in", &atomtree.root))
            }
            Party::RollBack(atomtree, guard) => {
                let guard = guard.take().expect("it was opened before");
                Sample::time(1, || guard.roll_back().map(drop).on("roll back", &atomtree.root))
            }
        }
    }

    fn clear(&self, party: &mut Party) -> Result<(), Failure> {
        match party {
            Party::Again(writer) => writer.tidy(),
            Party::Undo(atomtree, _) | Party::RollBack(atomtree, _) => atomtree.checkpoint(),
        }
    }
}

fn write_in_place(root: &Path, batch: &Batch) -> Result<(), Failure> {
    for file in batch.files() {
        let path = root.join(file.path);
        fs::write(&path, file.content).on("write", path)?;
    }
    Ok(())
}
