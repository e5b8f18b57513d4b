//! `atomtree demo`: shows the promise being kept, on real files and with real kills, in a few seconds.
//!
//! First a writer is killed again and again while it changes a set of files, and what recovery leaves is checked; then
//! the price is measured beside what a careful program does without atomtree.

mod kills;
mod set;
mod speed;
pub(crate) mod writer;

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::answer::{Failure, json, print};
use crate::arguments::Common;
use crate::color::is_capable;
use crate::demo::kills::Kills;
use crate::demo::speed::Speed;
use crate::text::{counted, printable};

/// What the demo found.
#[derive(Serialize)]
struct Found {
    ok: bool,
    #[serde(flatten)]
    kills: Kills,
    file_system: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    speed: Vec<Speed>,
}

/// Runs `atomtree demo`.
pub(crate) fn demo(common: &Common, dir: Option<&Path>, rounds: u32) -> Result<u8, Failure> {
    let dir = dir.unwrap_or(&common.root);
    let scratch = tempfile::Builder::new()
        .prefix("atomtree-demo-")
        .tempdir_in(dir)
        .map_err(|error| Failure::of_io(&format!("make a scratch tree in {}", dir.display()), &error))?;
    let progress = Progress { is_shown: !common.json && is_capable(&io::stderr()) };

    let kills = kills::run(scratch.path(), rounds, &progress)?;
    let speed = speed::measure(scratch.path(), &progress)?;
    let status = atomtree::Inspection::open(scratch.path(), &common.options())?.status()?;
    progress.show("");

    let found = Found {
        ok: kills.is_fine(),
        kills,
        file_system: status.file_system,
        warnings: status.warnings,
        speed,
    };
    print(&if common.json { json(&found) } else { found.told() })?;
    if found.ok {
        return Ok(0);
    }
    let kept = scratch.keep();
    crate::answer::complain(&format!("a check failed; the tree is kept in {}", kept.display()));
    Ok(1)
}

/// A line that is written over again and again, where somebody watches.
struct Progress {
    is_shown: bool,
}

impl Progress {
    fn show(&self, text: &str) {
        if self.is_shown {
            // Whether it is seen doesn't matter. The sequence clears the rest of the line.
            let _ = write!(io::stderr(), "\r{text}\x1b[K");
        }
    }
}

impl Found {
    fn told(&self) -> String {
        let Kills { rounds, acknowledged, redone, voided, mid_change, displaced, lost, mixed } = &self.kills;
        let verdict = if self.ok {
            "Every file of the set carried the same version after every kill, and nothing acknowledged was lost."
        } else {
            "A CHECK FAILED: see the figures that should be 0."
        };
        let times = counted(u64::from(*rounds), "time");
        let mut lines = vec![
            format!(
                "A writer that changes config.json, schema.sql and migrations/ together, killed {times}:"
            ),
            String::new(),
            format!("{acknowledged:>8}  transactions acknowledged"),
            format!("{redone:>8}  finished by recovery (redone)"),
            format!("{voided:>8}  begun and never committed (voided)"),
            format!("{mid_change:>8}  kills that left the files in mid-change, before recovery"),
            format!("{displaced:>8}  files displaced, though nobody else wrote: should be 0"),
            format!("{lost:>8}  acknowledged transactions lost: should be 0"),
            format!("{mixed:>8}  mixed states after recovery: should be 0"),
            String::new(),
            verdict.to_owned(),
            String::new(),
            "Milliseconds until N files of 1 KiB are durable (medians):".to_owned(),
            String::new(),
            "   files    atomtree  atomtree, settled  one at a time   ratio".to_owned(),
        ];
        lines.extend(self.speed.iter().map(|speed| {
            let Speed { files, atomtree_ms, settled_ms, one_at_a_time_ms, ratio, .. } = speed;
            format!(
                "{files:>8}  {atomtree_ms:>10.2}  {settled_ms:>17.2}  {one_at_a_time_ms:>13.2}  {ratio:>5.1}x"
            )
        }));
        lines.push(String::new());
        lines.push(
            "One at a time: a temporary file, fsync, rename, fsync of the directory; not atomic as a set."
                .to_owned(),
        );
        lines.push(format!(
            "Measured on {}; the figures depend on the file system and the device.",
            self.file_system
        ));
        lines.extend(
            self.warnings
                .iter()
                .map(|warning| format!("Durability is not promised here: {}.", printable(warning))),
        );
        lines.join("\n")
    }
}
