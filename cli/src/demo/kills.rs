//! Kills the writer at random instants, recovers, and checks what is left.
//!
//! After each recovery all files must carry one version, and it must be the last that was acknowledged or, if the
//! commit that was on its way got through, the one after it.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use atomtree::{ErrorKind, Store};
use serde::Serialize;

use crate::answer::Failure;
use crate::demo::Progress;
use crate::demo::set::{self, Version};

/// What became of all the kills.
#[derive(Default, Serialize)]
pub(super) struct Kills {
    #[serde(rename = "kills")]
    pub(super) rounds: u32,
    pub(super) acknowledged: u64,
    pub(super) redone: u64,
    pub(super) voided: u64,
    /// Kills after which the files did not agree until recovery ran: what a program without atomtree is left with.
    pub(super) mid_change: u32,
    /// Files that recovery took for another program's. There is none, so it must be 0.
    pub(super) displaced: u64,
    /// Must be 0.
    pub(super) lost: u64,
    /// Must be 0.
    pub(super) mixed: u32,
}

impl Kills {
    pub(super) fn is_fine(&self) -> bool {
        self.displaced == 0 && self.lost == 0 && self.mixed == 0
    }
}

/// Makes the set in `root` and kills a writer of it `rounds` times. Stops at the first check that fails, so that the
/// tree can be looked at.
pub(super) fn run(root: &Path, rounds: u32, progress: &Progress) -> Result<Kills, Failure> {
    let store = Store::open(root)?;
    store.transact(|transaction| set::write(transaction, 1))?;
    store.close()?;
    let mut kills = Kills::default();
    let mut version = 1;
    for round in 1..=rounds {
        progress.show(&format!("kill {round} of {rounds}, version {version}"));
        // Every fourth writer is not waited for, so that opening a store is hit too.
        let acknowledged = kill_one(root, round % 4 == 0)?.unwrap_or(version);
        kills.rounds += 1;
        kills.acknowledged += acknowledged - version;
        kills.mid_change += u32::from(read_version(root)?.is_none());

        let store = Store::open(root)?;
        let report = store.recovery();
        kills.redone += report.redone;
        kills.voided += report.voided;
        kills.displaced += (report.superseded.len() + report.quarantined.len() + report.lost.len()) as u64;
        let found = read_version(root)?;
        store.close()?;
        match found {
            None => kills.mixed += 1,
            Some(found) if (acknowledged..=acknowledged + 1).contains(&found) => version = found,
            Some(found) => kills.lost += acknowledged.abs_diff(found),
        }
        if !kills.is_fine() {
            break;
        }
    }
    Ok(kills)
}

fn read_version(root: &Path) -> Result<Option<Version>, Failure> {
    set::version(root).map_err(|error| Failure::of_io("read the set", &error))
}

/// Starts a writer, kills it at a random instant, and returns the last version that it acknowledged.
fn kill_one(root: &Path, early: bool) -> Result<Option<Version>, Failure> {
    let start = || -> std::io::Result<Child> {
        Command::new(std::env::current_exe()?)
            .arg("--root")
            .arg(root)
            .arg("demo-writer")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut child = start().map_err(|error| Failure::of_io("start a writer", &error))?;
    let mut output = BufReader::new(child.stdout.take().expect("it was asked for"));
    let mut said = String::new();
    let watched = (|| {
        if !early {
            output.read_line(&mut said)?;
        }
        thread::sleep(Duration::from_micros(1_000 + random() % 59_000));
        child.kill()?;
        // The pipe holds more than a writer can say in this time, and a kill loses nothing of what is in it.
        output.read_to_string(&mut said)?;
        child.wait()
    })();
    let status = watched.map_err(|error| Failure::of_io("watch the writer", &error))?;
    if status.code().is_some() {
        let message = format!("the writer ended by itself, with {status}; its own message stands above");
        return Err(Failure::new(ErrorKind::Io, message));
    }
    Ok(said.lines().filter_map(|line| line.parse().ok()).next_back())
}

fn random() -> u64 {
    // Each one has keys of its own, taken from the system's randomness.
    RandomState::new().hash_one(0)
}
