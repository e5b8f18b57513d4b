//! What is measured. One file each.

mod commits;
mod full_log;
mod going_back;
mod patch;
mod processes;
mod recovery;
mod scan;
mod sustained;

use crate::bench::Bench;
use crate::failure::Failure;

/// Something that is measured.
pub struct Workload {
    /// As `--workload` takes it.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// How many minutes it may take in an ordinary run; a quick one has a part of that.
    pub minutes: u64,
    /// Measures and reports it.
    pub run: fn(&Bench) -> Result<(), Failure>,
}

/// All of them, in the order in which they run.
pub const ALL: [Workload; 10] = [
    Workload {
        name: "files",
        about: "commits of 1 to 1000 files of 1 to 64 KiB, new and replaced, one committer",
        minutes: 9,
        run: commits::files,
    },
    Workload {
        name: "committers",
        about: "commits of 4 files of 1 KiB from 1 to 64 threads; BARE is one serial committer",
        minutes: 4,
        run: commits::committers,
    },
    Workload { name: "large", about: "4 files of 1 MiB; one of 64 MiB", minutes: 3, run: commits::large },
    Workload { name: "patch", about: "1 KiB changed in a file of 64 MiB", minutes: 1, run: patch::run },
    Workload {
        name: "going-back",
        about: "100 and 10,000 changed files brought back: undo, roll back, or committed again",
        minutes: 2,
        run: going_back::run,
    },
    Workload {
        name: "sustained",
        about: "10,000 commits of 10 files with checkpoints: in small and large stores, beside another writer",
        minutes: 6,
        run: sustained::run,
    },
    Workload {
        name: "full-log",
        about: "commits of 10 files while the log is empty, and nearly full",
        minutes: 1,
        run: full_log::run,
    },
    Workload {
        name: "recovery",
        about: "opening after kill -9 with 10,000 committed files in the log; BARE is creating them, and one sync",
        minutes: 1,
        run: recovery::run,
    },
    Workload {
        name: "scan",
        about: "scanning a log of 1 GiB; BARE is reading as much memory",
        minutes: 1,
        run: scan::run,
    },
    Workload {
        name: "processes",
        about: "1 to 8 processes of 1 or 4 threads commit to one store; BARE is one serial committer",
        minutes: 4,
        run: processes::run,
    },
];
