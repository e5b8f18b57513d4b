//! The goals that the project has set itself, and how far a run came.

use serde::Serialize;

use crate::report::Row;

/// Who writes file by file, each durably.
const PER_FILE: &[&str] = &["naive", "atomic-write-file", "tempfile"];
/// Who else changes ordinary files together.
const TRANSACTIONS: &[&str] = &["fstx", "fs-transaction"];

/// What is compared.
#[derive(Clone, Copy)]
enum Measure {
    /// The time of this participant as a multiple of BARE's.
    PerBare(&'static str),
    /// atomtree's time as a multiple of LIMIT's.
    PerLimit,
    /// How many times as long as atomtree the fastest of these takes.
    Fastest(&'static [&'static str]),
    /// The time of this participant as a multiple of atomtree's.
    PerAtomtree(&'static str),
    /// How many times as long the first takes as the second.
    Between(&'static str, &'static str),
    /// Flushes of the device for a commit.
    Flushes,
    /// The longest commit as a multiple of the median.
    Stall,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

struct Goal {
    workload: &'static str,
    case: String,
    measure: Measure,
    bound: Bound,
    /// Only where files can share their blocks.
    needs_reflinks: bool,
}

/// A goal that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// The workload and the case.
    pub case: String,
    /// What is compared with what.
    pub what: String,
    /// The bound.
    pub goal: String,
    /// What it came to: the median of the rounds' ratios, where both take part in each.
    pub reached: f64,
    /// Whether that is within the bound.
    pub is_met: bool,
}

/// Every goal that these rows say something about.
pub fn judge(rows: &[Row], volume: &str) -> Vec<Reached> {
    let has_reflinks = ["xfs", "btrfs"].iter().any(|kind| volume.starts_with(kind));
    let goals = goals().into_iter().filter(|goal| has_reflinks || !goal.needs_reflinks);
    goals.filter_map(|goal| reached(rows, &goal)).collect()
}

fn reached(rows: &[Row], goal: &Goal) -> Option<Reached> {
    let row = |who: &str| {
        rows.iter().find(|row| row.workload == goal.workload && row.case == goal.case && row.who == who)
    };
    let per_atomtree = |who: &str| Some(row(who)?.per_atomtree?.median);
    let (what, reached) = match goal.measure {
        Measure::PerBare(who) => (format!("{who} / BARE"), row(who)?.per_bare?.median),
        Measure::PerLimit => ("atomtree / LIMIT".to_owned(), per_atomtree("limit")?.recip()),
        Measure::Fastest(rivals) => {
            let each = rivals.iter().filter_map(|who| per_atomtree(who));
            let name = if rivals.len() == 1 {
                rivals[0].to_owned()
            } else {
                format!("best of {}", rivals.join(", "))
            };
            (format!("{name} / atomtree"), each.min_by(f64::total_cmp)?)
        }
        Measure::PerAtomtree(who) => (format!("{who} / atomtree"), per_atomtree(who)?),
        Measure::Between(one, other) => {
            (format!("{one} / {other}"), row(one)?.us?.median / row(other)?.us?.median)
        }
        Measure::Flushes => ("flushes a commit".to_owned(), row("atomtree")?.flushes?),
        Measure::Stall => ("longest / median".to_owned(), *row("atomtree")?.figures.get("max_per_p50")?),
    };
    let (text, is_met) = match goal.bound {
        Bound::AtMost(most) => (format!("<= {most}"), reached <= most),
        Bound::AtLeast(least) => (format!(">= {least}"), reached >= least),
    };
    let case = format!("{}: {}", goal.workload, goal.case);
    Some(Reached { case, what, goal: text, reached, is_met })
}

fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    use Measure::{Between, Fastest, Flushes, PerAtomtree, PerBare, PerLimit, Stall};

    let mut goals = Vec::new();
    let mut add = |workload, case: String, measure, bound| {
        goals.push(Goal { workload, case, measure, bound, needs_reflinks: false });
    };
    let ours = PerBare("atomtree");
    for (kind, most) in
        [("new", [1.35, 1.7, 5.5, f64::INFINITY]), ("replaced", [f64::INFINITY, 1.6, 5.0, 16.0])]
    {
        for ((files, most), place) in [1, 10, 100, 1000].into_iter().zip(most).zip(0..) {
            let case = |bytes: &str| format!("{files} {kind} x {bytes}");
            if most.is_finite() {
                add("files", case("1 KiB"), ours, AtMost(most));
            }
            add("files", case("1 KiB"), PerLimit, AtMost(1.1));
            add("files", case("4 KiB"), PerLimit, AtMost(1.1));
            add("files", case("1 KiB"), Fastest(TRANSACTIONS), AtLeast([4.0, 15.0, 25.0, 25.0][place]));
            if let Some(least) = [4.0, 20.0, 45.0].get(place) {
                add("files", case("1 KiB"), Fastest(PER_FILE), AtLeast(*least));
            }
            if let Some(least) = [2.5, 1.8, 1.0].get(place) {
                add("files", case("1 KiB"), Fastest(&["sqlite-wal"]), AtLeast(*least));
            }
            if files <= 10 {
                add("files", case("1 KiB"), Fastest(&["redb"]), AtLeast(1.5));
            }
            add("files", case("1 KiB"), Fastest(&["git"]), AtLeast(45.0));
        }
        add("files", format!("10 {kind} x 64 KiB"), ours, AtMost(1.5));
        add("large", format!("4 {kind} x 1 MiB"), ours, AtMost(1.2));
        add("large", format!("1 {kind} x 64 MiB"), ours, AtMost(1.05));
        for (committers, most) in [(2, Some(1.1)), (4, None), (8, None), (16, Some(0.3)), (64, Some(0.22))] {
            let case = format!("{committers} committers, 4 {kind} x 1 KiB");
            if let Some(most) = most {
                add("committers", case.clone(), ours, AtMost(most));
            }
            add("committers", case, Flushes, AtMost(2.2 / f64::from(committers) + 0.03));
        }
        let case = format!("10000 commits x 10 {kind} x 1 KiB, checkpoints included");
        add("sustained", case.clone(), ours, AtMost(if kind == "new" { 1.6 } else { 1.8 }));
        add("sustained", case, Stall, AtMost(25.0));
    }
    let case = "10000 commits x 10 new x 1 KiB, in stores of 10 and 100000 files".to_owned();
    add("sustained", case, PerAtomtree("atomtree, 100000 files"), AtMost(1.05));
    add("full-log", "10 new x 1 KiB".to_owned(), PerAtomtree("atomtree, log nearly full"), AtMost(1.05));
    let case = "1 KiB in 64 MiB".to_owned();
    add("patch", case.clone(), Between("atomtree, rewriting", "atomtree, in place"), AtLeast(50.0));
    add("scan", "1024 MiB".to_owned(), PerBare("atomtree_wal::scan"), AtMost(1.0));
    for who in ["atomtree, files lost", "atomtree, files in place"] {
        add("recovery", "1000 commits x 10 new x 1 KiB".to_owned(), PerBare(who), AtMost(1.5));
    }
    let patch = Between("atomtree, rewriting", "atomtree");
    goals.push(Goal { workload: "patch", case, measure: patch, bound: AtLeast(20.0), needs_reflinks: true });
    goals
}
