//! What every workload works with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::allowance::Allowance;
use crate::failure::Failure;
use crate::place::Place;
use crate::progress::Progress;
use crate::report::{Report, Row};
use crate::rivals::{Opening, Rival, Role, Writer};
use crate::rounds::{self, Case, Effort, Lane};

/// The place, the participants, and how much is done.
pub struct Bench {
    /// Where.
    pub place: Place,
    /// Shows what is going on.
    pub progress: Progress,
    /// Takes the rows.
    pub report: Report,
    /// Who takes part.
    pub rivals: Vec<&'static dyn Rival>,
    /// How much is done in a case of small commits.
    pub effort: Effort,
    /// Whether it shall all be over in two minutes.
    pub is_quick: bool,
    /// What was chosen on the command line.
    pub chosen: Chosen,
    /// How long the workload may take that runs now.
    pub time: Duration,
    /// Set when the program is told to stop.
    pub interrupt: Arc<AtomicBool>,
}

/// Sizes for the workload `files` and numbers of threads for `committers`, if they were chosen.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Files in a commit.
    pub files: Vec<usize>,
    /// Bytes of a file.
    pub bytes: Vec<usize>,
    /// Threads.
    pub committers: Vec<usize>,
}

/// What takes part with an open store.
pub type Open = Box<dyn Writer>;

impl Bench {
    /// One of two, the first in a quick run.
    pub fn either<T>(&self, quick: T, whole: T) -> T {
        if self.is_quick { quick } else { whole }
    }

    /// Deals this workload's time out to its cases.
    pub fn allowance(&self, cases: usize) -> Allowance {
        Allowance::new(self.time, cases)
    }

    /// Fails if the program is told to stop, so that everything is cleared up.
    pub fn check_interrupt(&self) -> Result<(), Failure> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(Failure::new("go on", "measuring", "it was interrupted"));
        }
        Ok(())
    }

    /// Opens a store for each of these, in directories of their own below `dir`. Those that can't are reported.
    pub fn open(
        &self,
        dir: &Path,
        rivals: &[&'static dyn Rival],
        opening: Opening,
        title: (&'static str, &str),
    ) -> Result<(Vec<Lane<Open>>, Vec<Row>), Failure> {
        let (mut lanes, mut rows) = (Vec::new(), Vec::new());
        for rival in rivals {
            let own = dir.join(rival.name());
            match std::fs::create_dir_all(&own)
                .map_err(|error| Failure::new("make", own.display(), error))
                .and_then(|()| rival.open(&own, opening))
            {
                Ok(state) => lanes.push(Lane { who: rival.name().to_owned(), role: rival.role(), state }),
                Err(failure) => rows.push(Row::absent(title, rival.name(), &failure)),
            }
        }
        Ok((lanes, rows))
    }

    /// Those that take part, of some roles.
    pub fn of_roles(&self, roles: &[Role]) -> Vec<&'static dyn Rival> {
        self.rivals.iter().copied().filter(|rival| roles.contains(&rival.role())).collect()
    }

    /// Runs a case in which each participant has one store open all the time, and reports it.
    pub fn contest<C: Case<Open>>(
        &self,
        title: (&'static str, &str),
        rivals: &[&'static dyn Rival],
        effort: Effort,
        until: Instant,
        case: &mut C,
    ) -> Result<(), Failure> {
        let dir = self.place.fresh(&title.1.replace([' ', ',', ':'], "-"))?;
        let (mut lanes, absent) = self.open(&dir, rivals, Opening::QUIET, title)?;
        let mut rows = rounds::run(self, title, effort, until, &mut lanes, case)?;
        for (lane, row) in lanes.into_iter().zip(&mut rows) {
            if let Err(failure) = lane.state.close() {
                row.note.get_or_insert_with(|| failure.to_string());
            }
        }
        rows.extend(absent);
        self.report.add(rows)?;
        self.place.remove(&dir)
    }
}
