//! What was found: a table for people while it comes up, a document for machines.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use crate::failure::{Failure, On};
use crate::goals::{self, Reached};
use crate::rivals::Rival;
use crate::spread::Spread;

/// The note of whoever was not measured because the workload's time was over.
pub const OUT_OF_TIME: &str = "[no time left: choose fewer workloads, or no --quick]";

/// Everything that was found.
#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    rivals: Vec<Taking>,
    rows: RefCell<Vec<Row>>,
    goals: RefCell<Vec<Reached>>,
    #[serde(skip)]
    json: Option<PathBuf>,
    /// The workload that the table's head was printed for.
    #[serde(skip)]
    head: RefCell<String>,
}

/// Where it was found.
#[derive(Serialize)]
struct Machine {
    volume: String,
    kernel: String,
    processors: usize,
    has_device_counters: bool,
}

/// Somebody who takes part.
#[derive(Serialize)]
struct Taking {
    name: &'static str,
    version: String,
    setting: &'static str,
    is_atomic: bool,
}

/// One participant in one case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The workload.
    pub workload: &'static str,
    /// Which of its cases.
    pub case: String,
    /// Who.
    pub who: String,
    /// How many rounds it took part in.
    pub samples: usize,
    /// Wall-clock microseconds for each commit, or for the whole where nothing is committed.
    pub us: Option<Spread>,
    /// The same divided by BARE's of the same round.
    pub per_bare: Option<Spread>,
    /// The same divided by atomtree's of the same round.
    pub per_atomtree: Option<Spread>,
    /// Flushes of the device for each commit, the median.
    pub flushes: Option<f64>,
    /// Bytes written to the device for each commit until it returned, the median.
    pub device_bytes: Option<f64>,
    /// What only this workload has; medians of the rounds.
    pub figures: BTreeMap<&'static str, f64>,
    /// Why there are no figures, or what is suspect about them.
    pub note: Option<String>,
}

impl Row {
    fn is_out_of_time(&self) -> bool {
        self.note.as_deref() == Some(OUT_OF_TIME)
    }

    /// Somebody who does not take part in a case, and why.
    pub fn absent(
        (workload, case): (&'static str, &str),
        who: impl Into<String>,
        reason: &impl std::fmt::Display,
    ) -> Self {
        Self {
            workload,
            case: case.to_owned(),
            who: who.into(),
            samples: 0,
            us: None,
            per_bare: None,
            per_atomtree: None,
            flushes: None,
            device_bytes: None,
            figures: BTreeMap::new(),
            note: Some(reason.to_string()),
        }
    }
}

impl Report {
    /// Empty yet; written to `json` after each case.
    pub fn new(
        volume: &str,
        has_device_counters: bool,
        rivals: &[&'static dyn Rival],
        json: Option<PathBuf>,
    ) -> Self {
        let machine = Machine {
            volume: volume.to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            has_device_counters,
        };
        let rivals = rivals.iter().map(|rival| Taking {
            name: rival.name(),
            version: rival.version(),
            setting: rival.setting(),
            is_atomic: rival.is_atomic(),
        });
        let rivals = rivals.collect();
        Self {
            machine,
            rivals,
            rows: RefCell::default(),
            goals: RefCell::default(),
            json,
            head: RefCell::default(),
        }
    }

    /// Says where it is measured and who takes part.
    pub fn introduce(&self) {
        let Machine { volume, kernel, processors, .. } = &self.machine;
        println!("volume: {volume}; Linux {kernel}; {processors} processors");
        if !self.machine.has_device_counters {
            println!("there is no block device under it: flushes and bytes are unknown");
        }
        for rival in &self.rivals {
            let set = if rival.is_atomic { "" } else { " [a set of files is not atomic]" };
            let name = format!("{} {}", rival.name, rival.version);
            println!("  {name:<38} {}{set}", rival.setting);
        }
    }

    /// Adds the rows of one case, and prints them.
    pub fn add(&self, rows: Vec<Row>) -> Result<(), Failure> {
        let Some(first) = rows.first() else { return Ok(()) };
        if *self.head.borrow() != first.workload {
            first.workload.clone_into(&mut self.head.borrow_mut());
            println!(
                "\n{:<30} {:>3} {:>10} {:>21} {:>21} {:>8} {:>9}",
                first.workload, "n", "us", "x BARE (p10-p90)", "x atomtree (p10-p90)", "flushes", "KiB"
            );
        }
        if rows.iter().all(Row::is_out_of_time) {
            println!("{}: {OUT_OF_TIME}", first.case);
        } else {
            println!("{}", first.case);
            rows.iter().for_each(|row| println!("{}", line(row)));
        }
        self.rows.borrow_mut().extend(rows);
        self.write()
    }

    /// Says how far atomtree came towards its goals.
    pub fn judge(&self) -> Result<(), Failure> {
        let goals = goals::judge(&self.rows.borrow(), &self.machine.volume);
        if goals.is_empty() {
            return Ok(());
        }
        println!("\n{:<52} {:<58} {:>9} {:>9}", "goals", "", "goal", "reached");
        for Reached { case, what, goal, reached, is_met } in &goals {
            let missed = if *is_met { "" } else { "  missed" };
            println!("{case:<52} {what:<58} {goal:>9} {:>9}{missed}", short(*reached));
        }
        let met = goals.iter().filter(|goal| goal.is_met).count();
        println!("{met} of {} met", goals.len());
        *self.goals.borrow_mut() = goals;
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let Some(path) = &self.json else { return Ok(()) };
        let text = serde_json::to_vec_pretty(self).on("put together", path)?;
        fs::write(path, text).on("write", path)
    }

    /// Where atomtree failed, or lost something.
    pub fn failures(&self) -> Vec<String> {
        let is_failed =
            |row: &&Row| row.who.starts_with("atomtree") && row.samples == 0 && !row.is_out_of_time();
        let text = |row: &Row| {
            let note = row.note.as_deref().unwrap_or_default();
            format!("{}: {}: {}: {note}", row.workload, row.case, row.who)
        };
        self.rows.borrow().iter().filter(is_failed).map(text).collect()
    }
}

fn line(row: &Row) -> String {
    let ratio = |spread: Option<Spread>| match spread {
        Some(Spread { p10, median, p90 }) => format!("{} ({}-{})", short(median), short(p10), short(p90)),
        None => "-".into(),
    };
    let number = |value: Option<f64>| value.map_or("-".into(), short);
    let mut line = format!(
        "  {:<28} {:>3} {:>10} {:>21} {:>21} {:>8} {:>9}",
        row.who,
        row.samples,
        number(row.us.map(|us| us.median)),
        ratio(row.per_bare),
        ratio(row.per_atomtree),
        number(row.flushes),
        number(row.device_bytes.map(|bytes| bytes / 1024.0)),
    );
    for (name, value) in &row.figures {
        line += &format!("  {name} {}", short(*value));
    }
    if let Some(note) = &row.note {
        line += &format!("  {note}");
    }
    line
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
