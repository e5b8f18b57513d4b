//! What `atomtree run` says when the command has ended: to people on standard error, because standard output is the
//! command's; to programs as the last line of standard output.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use atomtree::{Displaced, GuardChanges, TreePath};
use serde::Serialize;

use super::child::Ending;
use super::shown::Shown;
use crate::answer::{Failure, Kept, complain, json, print};
use crate::arguments::Common;
use crate::diff::{Change, table_of};
use crate::path::JsonPath;
use crate::text::{counted, printable, span_of_ms};

/// So many names are told to people.
const NAMES_TOLD: usize = 50;

/// What had changed when the command ended.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) changes: GuardChanges,
    /// Of a dry run.
    pub(super) shown: Option<Shown>,
    pub(super) saved: Vec<(TreePath, PathBuf)>,
    /// What was in the way of a roll back, and where in the store it is.
    pub(super) quarantined: Vec<Displaced>,
    pub(super) lost: Vec<TreePath>,
    pub(super) took: Duration,
}

/// How it all ended.
pub(super) struct Outcome {
    pub(super) is_kept: bool,
    pub(super) is_dry_run: bool,
    pub(super) status: u8,
    pub(super) ending: Ending,
    pub(super) summary: Summary,
}

#[derive(Serialize)]
struct Ran<'a> {
    ok: bool,
    kept: bool,
    status: u8,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    timed_out: bool,
    created: Vec<JsonPath>,
    changed: Vec<JsonPath>,
    removed: Vec<JsonPath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Difference<'a>>>,
    /// Whether there was too much to show all.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    saved: Vec<Saved>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<Kept>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<JsonPath>,
    ms: f64,
}

/// What a dry run shows of a name.
#[derive(Serialize)]
struct Difference<'a> {
    #[serde(flatten)]
    change: &'a Change,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'a str>,
}

#[derive(Serialize)]
struct Saved {
    path: JsonPath,
    saved: JsonPath,
}

fn names(paths: &[TreePath]) -> Vec<JsonPath> {
    paths.iter().map(|path| JsonPath::from(path.as_path())).collect()
}

fn differences(shown: &Shown) -> Vec<Difference<'_>> {
    shown.changes.iter().map(|(change, diff)| Difference { change, diff: diff.as_deref() }).collect()
}

fn told_lost(path: &TreePath) -> String {
    format!(
        "{}: another program destroyed its image; it is left as it was found",
        printable(&path.to_string())
    )
}

/// Says what could not be brought back.
pub(super) fn tell_lost(lost: &[TreePath]) {
    lost.iter().for_each(|path| complain(&told_lost(path)));
}

impl Outcome {
    /// Says it.
    pub(super) fn tell(&self, common: &Common) -> Result<(), Failure> {
        let Summary { changes, shown, saved, quarantined, lost, took } = &self.summary;
        let ms = (took.as_secs_f64() * 100_000.0).round() / 100.0;
        if common.json {
            let saved = saved.iter().map(|(path, saved)| Saved {
                path: JsonPath::from(path.as_path()),
                saved: JsonPath::from(saved.as_path()),
            });
            return print(&json(&Ran {
                ok: self.status == 0,
                kept: self.is_kept,
                status: self.status,
                timed_out: self.ending == Ending::TimedOut,
                created: names(&changes.created),
                changed: names(&changes.changed),
                removed: names(&changes.removed),
                changes: shown.as_ref().map(differences),
                cut: shown.as_ref().filter(|shown| shown.is_cut).map(|_| true),
                saved: saved.collect(),
                quarantined: Kept::all(quarantined),
                lost: names(lost),
                ms,
            }));
        }
        // Names are printable already. That it could not be said can't be said either.
        let _ = io::stderr().write_all(format!("atomtree: {}\n", self.told(ms)).as_bytes());
        Ok(())
    }

    fn told(&self, ms: f64) -> String {
        let Summary { changes, shown, saved, quarantined, lost, .. } = &self.summary;
        let what = match (self.is_kept, self.is_dry_run, self.ending) {
            (true, ..) => "kept".to_owned(),
            (false, _, Ending::TimedOut) => "rolled back, because it took too long".to_owned(),
            (false, _, Ending::Interrupted(_)) => "rolled back, because it was interrupted".to_owned(),
            (false, true, Ending::Exited(0)) => "rolled back, because it was a dry run".to_owned(),
            (false, _, Ending::Exited(status)) => format!("rolled back, because it exited with {status}"),
        };
        let mut lines = vec![format!(
            "{what}: {} created, {} changed, {} removed in {}",
            counted(changes.created.len() as u64, "name"),
            changes.changed.len(),
            changes.removed.len(),
            span_of_ms(ms)
        )];
        let all = (changes.created.iter().map(|path| ('+', path)))
            .chain(changes.changed.iter().map(|path| ('~', path)))
            .chain(changes.removed.iter().map(|path| ('-', path)));
        let count = changes.created.len() + changes.changed.len() + changes.removed.len();
        if let Some(Shown { changes, is_cut }) = shown {
            // On standard error, whose colors nobody has asked for.
            lines.push(table_of(changes.iter().map(|(change, _)| change)).text(false));
            lines
                .extend(changes.iter().filter_map(|(_, diff)| diff.as_ref()).map(|diff| format!("\n{diff}")));
            if *is_cut {
                lines.push("  and more than can be shown".into());
            }
        }
        let told = if shown.is_some() { 0 } else { NAMES_TOLD };
        for (mark, path) in all.take(told) {
            lines.push(format!("  {mark} {}", printable(&path.to_string())));
        }
        if shown.is_none() && count > NAMES_TOLD {
            lines.push(format!("  and {} more (--json has all)", count - NAMES_TOLD));
        }
        for (path, saved) in saved.iter().take(NAMES_TOLD) {
            let saved = printable(&saved.to_string_lossy());
            lines.push(format!("  {} is saved as {saved}", printable(&path.to_string())));
        }
        for Displaced { path, kept } in quarantined {
            let kept = printable(kept);
            lines.push(format!(
                "  {}: it was in the way, and is in .atomtree/{kept}",
                printable(&path.to_string())
            ));
        }
        lines.extend(lost.iter().map(|path| format!("  {}", told_lost(path))));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_names_what_changed() {
        let path = |path: &str| TreePath::new(path).unwrap();
        let changes =
            GuardChanges { created: vec![path("a")], changed: vec![path("b")], removed: vec![path("c")] };
        let summary = Summary {
            changes,
            shown: None,
            quarantined: Vec::new(),
            saved: vec![(path("a"), "out/a".into())],
            lost: vec![path("d")],
            took: Duration::from_millis(3),
        };
        let ending = Ending::Exited(3);
        let outcome = Outcome { is_kept: false, is_dry_run: false, status: 3, ending, summary };
        let told = outcome.told(3.0);
        assert!(
            told.starts_with(
                "rolled back, because it exited with 3: 1 name created, 1 changed, 1 removed in"
            )
        );
        assert_eq!(told.lines().count(), 6, "{told}");
    }
}
