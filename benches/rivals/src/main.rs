//! The program: chooses the place, the participants and the workloads, and runs them one after another.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use atomtree_rivals::arguments::Arguments;
use atomtree_rivals::bench::{Bench, Chosen};
use atomtree_rivals::failure::{Failure, On};
use atomtree_rivals::place::Place;
use atomtree_rivals::progress::Progress;
use atomtree_rivals::report::Report;
use atomtree_rivals::rivals::{self, Rival, Role};
use atomtree_rivals::rounds::Effort;
use atomtree_rivals::workloads::{self, Workload};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};

/// What the volume has to hold.
const VOLUME_BYTES: u64 = 12 << 30;
const QUICK_VOLUME_BYTES: u64 = 2 << 30;
/// Of the time of an ordinary run, which is half an hour.
const QUICK_PART: u32 = 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(role) => role.play().map(|()| true),
        None if arguments.list => {
            list();
            Ok(true)
        }
        None => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("atomtree-rivals: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether atomtree did everything that it was asked to.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let rivals = chosen_rivals(&arguments.only)?;
    let workloads = chosen_workloads(&arguments.workload)?;
    let bytes = if arguments.quick { QUICK_VOLUME_BYTES } else { VOLUME_BYTES };
    let progress = Progress::new();
    progress.show("making the volume");
    let place = match &arguments.volume {
        Some(dir) => Place::in_dir(dir, bytes)?,
        None => Place::of_kind(arguments.fs, bytes)?,
    };
    progress.clear();
    let has_counters = place.device().work().is_some();
    let report = Report::new(place.description(), has_counters, &rivals, arguments.json.clone());
    report.introduce();
    let interrupt = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register(number, interrupt.clone()).on("listen to", "signals")?;
    }
    let mut bench = Bench {
        place,
        progress,
        report,
        rivals,
        effort: effort(arguments),
        is_quick: arguments.quick,
        chosen: Chosen {
            files: arguments.files.clone(),
            bytes: arguments.bytes.clone(),
            committers: arguments.committers.clone(),
        },
        time: Duration::ZERO,
        interrupt,
    };
    for workload in workloads {
        let time = Duration::from_mins(workload.minutes);
        bench.time = if arguments.quick { time / QUICK_PART } else { time };
        (workload.run)(&bench)?;
    }
    bench.report.judge()?;
    let failures = bench.report.failures();
    failures.iter().for_each(|failure| eprintln!("atomtree-rivals: {failure}"));
    Ok(failures.is_empty())
}

fn effort(arguments: &Arguments) -> Effort {
    let (rounds, rounds_min, budget) = if arguments.quick {
        (5, 1, Duration::from_millis(100))
    } else {
        (25, 3, Duration::from_millis(1200))
    };
    let rounds = arguments.rounds.unwrap_or(rounds).max(1);
    Effort { rounds, rounds_min: rounds_min.min(rounds), budget, warms_up: true }
}

/// The floor, the limit and atomtree always: the others are compared with them.
fn chosen_rivals(only: &[String]) -> Result<Vec<&'static dyn Rival>, Failure> {
    for name in only {
        rivals::named(name).ok_or_else(|| Failure::new("find a rival named", name, "see --list"))?;
    }
    let takes_part = |rival: &&dyn Rival| {
        only.is_empty() || rival.role() != Role::Rival || only.iter().any(|name| name == rival.name())
    };
    Ok(rivals::ALL.into_iter().filter(takes_part).collect())
}

fn chosen_workloads(names: &[String]) -> Result<Vec<Workload>, Failure> {
    for name in names {
        if !workloads::ALL.iter().any(|workload| workload.name == name) {
            return Err(Failure::new("find a workload named", name, "see --list"));
        }
    }
    let is_chosen = |workload: &Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(workloads::ALL.into_iter().filter(is_chosen).collect())
}

fn list() {
    println!("workloads:");
    for workload in workloads::ALL {
        println!("  {:<20} {}", workload.name, workload.about);
    }
    println!("rivals:");
    for rival in rivals::ALL {
        println!("  {:<20} {:<34} {}", rival.name(), rival.version(), rival.setting());
    }
}
