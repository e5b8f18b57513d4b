//! `atomtree torture`: lets users see on their own disk what the kill tests of atomtree see on ours.
//!
//! Writers are killed again and again at random instants, and what is left is checked against what they had
//! acknowledged. The power is not cut, so what storage does with syncs is not shown; `--check` is for those who cut it.

mod check;
mod found;
mod place;
mod rounds;
mod workload;
pub(crate) mod writer;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atomtree::vfs::FileSystem;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::answer::{Failure, complain, json, print};
use crate::arguments::Common;
use crate::color::Style;
use crate::path::JsonPath;
use crate::progress::Progress;
use crate::table::Table;
use crate::text::{counted, printable, size};
use crate::torture::check::{Checker, Standing, Stop};
use crate::torture::place::{BYTES_MAX, Place};
use crate::torture::rounds::{Figures, Rounds};

const HOW_TO_CUT: &str =
    "; to test one, cut the power while this runs, and look at the same --root with --check";
/// The exit status if a promise is broken.
const BROKEN: u8 = 7;

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Fine,
    Broken,
    /// No writer lived long enough to acknowledge anything.
    Nothing,
}

/// What was done, and what it shows.
#[derive(Serialize)]
struct Found {
    ok: bool,
    verdict: Verdict,
    /// What was found, and what was expected, if a promise is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    broken: Option<String>,
    /// Whether a signal ended it early.
    stopped: bool,
    #[serde(flatten)]
    figures: Figures,
    /// Transactions in the history of the tree that stays.
    commits: u64,
    redone: u64,
    voided: u64,
    /// How often everything was compared.
    checked: u64,
    seconds: f64,
    seed: u64,
    file_system: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    not_shown: &'static str,
    /// Where everything still is, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<JsonPath>,
}

/// Runs `atomtree torture`.
pub(crate) fn torture(
    common: &Common,
    time: Duration,
    seed: Option<u64>,
    is_kept: bool,
) -> Result<u8, Failure> {
    let stop = listen().map_err(|error| Failure::of_io("listen to signals", &error))?;
    // Short enough to be typed, and for programs that keep numbers in floating point.
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let mut place = Place::create(common, seed)?;
    if !common.json {
        announce(&place, time)?;
    }
    let progress = Progress::unless(common.json, "beginning");
    let started = Instant::now();
    let mut rounds = Rounds::new(&mut place, stop.clone());
    let ended = rounds.run(time, &progress, !common.json && !progress.is_shown());
    drop(progress);
    let Rounds { figures, checker, .. } = rounds;
    let has_shown = figures.kills > 0 && figures.acknowledged > 0;
    let mut found = Found::new(&place, figures, &checker, started.elapsed());
    found.stopped = stop.load(Ordering::Relaxed);
    found.conclude(ended, has_shown, &mut place)?;
    let dir = JsonPath::from(place.dir.as_path());
    let removed = if is_kept || found.verdict == Verdict::Broken { None } else { Some(place.remove()) };
    found.kept = (!matches!(removed, Some(Ok(())))).then_some(dir);
    if let Some(Err(failure)) = removed.filter(|_| !common.json) {
        complain(&failure.message);
    }
    found.tell(common)
}

/// Runs `atomtree torture --check`.
pub(crate) fn check_left(common: &Common) -> Result<u8, Failure> {
    let (mut place, acknowledged) = Place::open(&common.root)?;
    let progress = Progress::unless(common.json, "recovering and checking");
    let started = Instant::now();
    let mut checker = Checker::new(place.workload, place.compares_modes);
    let ended = check_all(&mut checker, &place, &acknowledged);
    drop(progress);
    let has_shown = acknowledged != Standing::default();
    let mut found = Found::new(&place, Figures::default(), &checker, started.elapsed());
    found.not_shown = "what was acknowledged after the last line of torture.log";
    found.conclude(ended, has_shown, &mut place)?;
    found.kept = Some(JsonPath::from(place.dir.as_path()));
    found.tell(common)
}

fn check_all(checker: &mut Checker, place: &Place, acknowledged: &Standing) -> Result<(), Stop> {
    checker.check(&place.tree(), acknowledged)?;
    if let Some(new) = place.new_tree_left() {
        Checker::new(place.workload, place.compares_modes).check(&new, &Standing::default())?;
    }
    Ok(())
}

/// What the first signal to end sets. The second one ends the process at once.
fn listen() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn announce(place: &Place, time: Duration) -> Result<(), Failure> {
    let FileSystem { name, caveat, available_bytes, .. } = &place.file_system;
    let (free, most) = (size(*available_bytes), size(BYTES_MAX));
    let dir = place.dir.display();
    let mut lines = vec![
        format!("{dir} on {name}, {free} free, of which up to {most} are used; seed {}", place.workload.seed),
        format!("Writers are killed and checked for {} s; Ctrl-C ends it early.", time.as_secs_f64()),
    ];
    lines.extend(caveat.iter().map(|caveat| format!("Durability is not promised here: {caveat}.")));
    if !place.workload.moves_dirs {
        lines.push("Directories are neither moved nor removed here.".to_owned());
    }
    if !place.compares_modes {
        lines.push("Modes are not compared: a default ACL decides on them here.".to_owned());
    }
    print(&lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n"))
}

impl Found {
    fn new(place: &Place, figures: Figures, checker: &Checker, took: Duration) -> Self {
        Self {
            ok: false,
            verdict: Verdict::Nothing,
            broken: None,
            stopped: false,
            figures,
            commits: checker.last_tx,
            redone: checker.redone,
            voided: checker.voided,
            checked: checker.checks,
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
            seed: place.workload.seed,
            file_system: place.file_system.name.clone(),
            warning: place.file_system.caveat.clone(),
            not_shown: "power cuts",
            kept: None,
        }
    }

    /// Makes the verdict.
    ///
    /// # Errors
    /// What kept it from being made; nothing was removed.
    fn conclude(
        &mut self,
        ended: Result<(), Stop>,
        has_shown: bool,
        place: &mut Place,
    ) -> Result<(), Failure> {
        self.verdict = match ended {
            Ok(()) if has_shown => Verdict::Fine,
            Ok(()) => Verdict::Nothing,
            Err(Stop::Broken(what)) => {
                // The verdict stands, whether or not the log can say it.
                if let Err(failure) = place.say(&format!("broken: {what}")) {
                    complain(&failure.message);
                }
                self.broken = Some(what);
                Verdict::Broken
            }
            Err(Stop::Failed(failure)) => {
                let dir = place.dir.display();
                let message =
                    format!("{}; nothing is shown, and everything is kept in {dir}", failure.message);
                return Err(Failure { message, ..failure });
            }
        };
        self.ok = self.verdict == Verdict::Fine;
        Ok(())
    }

    fn tell(&self, common: &Common) -> Result<u8, Failure> {
        print(&if common.json { json(self) } else { self.told(common) })?;
        Ok(match self.verdict {
            Verdict::Fine => 0,
            Verdict::Nothing => 1,
            Verdict::Broken => BROKEN,
        })
    }

    fn told(&self, common: &Common) -> String {
        let Figures { rounds, kills, kills_opening, kills_creating, acknowledged } = self.figures;
        let mut table = Table::of_facts();
        if rounds > 0 {
            table.fact("rounds", format!("{rounds} in {} s", self.seconds));
            let (opening, creating) = (kills_opening, kills_creating);
            let told =
                format!("{kills}: {opening} while the store was opened, {creating} while one was made");
            table.fact("kills", told);
            table.fact("acknowledged", counted(acknowledged, "transaction"));
        }
        table.fact("committed", counted(self.commits, "transaction"));
        table.fact("recovered", format!("{} redone, {} voided", self.redone, self.voided));
        table.fact("checked", counted(self.checked, "time"));
        table.fact("seed", self.seed.to_string());
        let kept = self.kept.as_ref().map(|kept| kept.0.display().to_string());
        if let Some(kept) = kept {
            table.fact("kept in", kept);
        }
        let (style, verdict) = match (&self.broken, self.verdict) {
            (Some(broken), _) => (
                Style::Bad,
                format!(
                    "BROKEN: {broken}. If no other program has written there, this is a fault of atomtree: please \
                     report it with the seed and with what was kept."
                ),
            ),
            (None, Verdict::Nothing) => (
                Style::Notice,
                "Nothing is shown: no transaction was acknowledged; take more --minutes.".to_owned(),
            ),
            (None, _) => (
                Style::Good,
                format!(
                    "Fine: nothing that was acknowledged is lost, every transaction is whole or absent. Not shown: {}{}.",
                    self.not_shown,
                    if rounds == 0 { "" } else { HOW_TO_CUT },
                ),
            ),
        };
        let verdict = printable(&verdict);
        let verdict = if common.is_colored() { style.paint(&verdict) } else { verdict };
        format!("\n{}\n\n{verdict}", table.text(common.is_colored()))
    }
}
