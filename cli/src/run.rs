//! `atomtree run`: a command whose edits are kept if it succeeds, and rolled back otherwise.
//!
//! The guard stands before the command starts. Whatever ends the command, everything that it started is ended before the
//! tree is rolled back; if this program is killed, the next one that opens the store does both.

mod child;
mod save;
mod shown;
mod summary;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atomtree::{Displaced, ErrorKind, Guard, GuardOptions};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::answer::{Failure, report};
use crate::arguments::Common;
use crate::duration;
use crate::run::child::{Child, Ending};
use crate::run::save::SavedTo;
use crate::run::shown::Shown;
use crate::run::summary::{Outcome, Summary, tell_lost};
use crate::store_flags::StoreFlags;

pub(crate) use child::enter;

/// The exit status of what this program could not do itself.
const OWN_FAILURE: u8 = 125;
/// The exit status after `--timeout`, as of timeout(1).
const TIMED_OUT: u8 = 124;

/// What is run, and under what guard.
#[derive(Args)]
pub(crate) struct RunFlags {
    /// Guard what this pattern covers, written as in a .gitignore; may be given again. Default: everything, `.git` too
    #[arg(long, value_name = "GLOB")]
    guard: Vec<String>,
    /// Leave out what this pattern covers, with everything in it; may be given again
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
    /// Leave out what the tree's .gitignore files leave out; without it, ignored files are guarded too
    #[arg(long)]
    gitignore: bool,
    /// End the command after this long, and roll back: 90, 90s, 5m, 1h
    #[arg(long, value_name = "D", value_parser = duration::parse_positive)]
    timeout: Option<Duration>,
    /// Show what the command has changed, text line by line, and roll back all the same
    #[arg(long)]
    dry_run: bool,
    /// Keep what a roll back removes or replaces in this directory
    #[arg(long, value_name = "DIR")]
    save_failed: Option<PathBuf>,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs `atomtree run`.
pub(crate) fn run(common: &Common, store: &StoreFlags, flags: &RunFlags) -> u8 {
    guarded(common, store, flags).unwrap_or_else(|failure| {
        report(common, &failure);
        OWN_FAILURE
    })
}

/// The signals that ask this program to stop. The last one that came.
struct Signals(Arc<AtomicUsize>);

impl Signals {
    fn watch() -> Result<Self, Failure> {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_usize(signal, last.clone(), signal as usize)
                .map_err(|error| Failure::of_io("watch for signals", &error))?;
        }
        Ok(Self(last))
    }

    fn take(&self) -> Option<i32> {
        let signal = self.0.swap(0, Ordering::SeqCst);
        (signal != 0).then_some(signal as i32)
    }
}

fn guarded(common: &Common, store: &StoreFlags, flags: &RunFlags) -> Result<u8, Failure> {
    let signals = Signals::watch()?;
    let start = Instant::now();
    let saved_to = flags.save_failed.as_deref().map(SavedTo::prepare).transpose()?;
    let store = store.open(common)?;
    let options = flags.guard.iter().fold(GuardOptions::new(), GuardOptions::guard);
    let options = flags.ignore.iter().fold(options, GuardOptions::ignore).gitignore(flags.gitignore);
    let guard = store.guard_with(&options)?;
    if let Some(signal) = signals.take() {
        // Nothing has been started.
        guard.roll_back()?;
        store.close()?;
        return Ok(by_signal(signal));
    }
    let child = Child::start(common, &guard, &flags.command)?;
    let ending = child.wait(&signals, flags.timeout.map(|timeout| Instant::now() + timeout));
    let status = match ending {
        Ending::Exited(status) => status,
        Ending::TimedOut => TIMED_OUT,
        Ending::Interrupted(signal) => by_signal(signal),
    };
    let is_kept = matches!(ending, Ending::Exited(0)) && !flags.dry_run;
    let summary = if is_kept {
        keep(guard, start)?
    } else {
        end(child, guard, flags, saved_to.as_ref(), &common.root, start)?
    };
    // What could not be brought back is this program's failure, whatever the command's status says of the command.
    let status = if summary.lost.is_empty() { status } else { OWN_FAILURE };
    let outcome = Outcome { is_kept, is_dry_run: flags.dry_run, status, ending, summary };
    outcome.tell(common)?;
    store.close()?;
    Ok(status)
}

fn by_signal(signal: i32) -> u8 {
    128 + (signal as u8 & 0x7f)
}

fn keep(guard: Guard, start: Instant) -> Result<Summary, Failure> {
    let changes = guard.changes()?;
    guard.keep()?;
    Ok(Summary { changes, took: start.elapsed(), ..Summary::default() })
}

/// Ends everything that the command started, and rolls back.
fn end(
    child: Child,
    guard: Guard,
    flags: &RunFlags,
    saved_to: Option<&SavedTo>,
    root: &std::path::Path,
    start: Instant,
) -> Result<Summary, Failure> {
    if let Some(left) =
        child.end().map_err(|error| Failure::of_io("end what the command has started", &error))?.first()
    {
        let message = format!(
            "process {} ({}), which the command has started, can't be ended; the tree is as it left it: end it, then run `atomtree recover`, which rolls back",
            left.pid, left.program
        );
        guard.leave();
        return Err(Failure::new(ErrorKind::Locked, message));
    }
    let shown = if flags.dry_run { Some(Shown::read(&guard)?) } else { None };
    let is_kept = saved_to.is_some() && !flags.dry_run;
    let done = if is_kept { guard.roll_back_keeping()? } else { guard.roll_back()? };
    let (saved, quarantined) = match saved_to {
        Some(saved_to) if is_kept => {
            let saved = saved_to.take(root, &done.kept);
            // Otherwise the summary tells.
            (saved.inspect_err(|_| tell_lost(&done.lost))?, Vec::new())
        }
        // What was in the way, and not guarded itself.
        _ => {
            let displaced = |(path, kept)| Displaced { path, kept };
            (Vec::new(), done.kept.into_iter().map(displaced).collect())
        }
    };
    Ok(Summary { changes: done.changes, shown, saved, quarantined, lost: done.lost, took: start.elapsed() })
}
