//! `status`, `log`, `show` and `verify`: what a store says of itself, without opening or changing it.
//!
//! They work beside a process that has the store open, and on a store too damaged to open.

use std::fmt::Write as _;

use atomtree::{ErrorKind, Inspection, PastTransaction, TransactionId};
use serde::Serialize;

use crate::answer::{Failure, json, print};
use crate::arguments::Common;
use crate::path::JsonPath;
use crate::text::{counted, printable, utc};

fn inspect(common: &Common) -> Result<Inspection, Failure> {
    if !common.has_store() {
        common.check_root()?;
        let root = common.root.display();
        let message = format!(
            "there is no store in {root}: the first `atomtree apply` or `batch` makes one, and --root names another directory"
        );
        return Err(Failure::new(ErrorKind::NotFound, message));
    }
    Ok(Inspection::open(&common.root, &common.options())?)
}

/// Runs `atomtree status`.
pub(crate) fn status(common: &Common) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Holder<'a> {
        pid: u32,
        program: &'a str,
    }
    #[derive(Serialize)]
    struct Status<'a> {
        ok: bool,
        clean: bool,
        last_tx: u64,
        unsettled: u64,
        checkpoint_lsn: u64,
        log_segments: usize,
        log_segments_free: usize,
        log_bytes: u64,
        quarantined: u64,
        file_system: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<Holder<'a>>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        warnings: &'a [String],
    }
    let found = inspect(common)?.status()?;
    let holder = found.holder.as_ref().map(|holder| Holder { pid: holder.pid, program: &holder.program });
    if common.json {
        print(&json(&Status {
            ok: true,
            clean: found.is_clean,
            last_tx: found.last_tx.0,
            unsettled: found.unsettled,
            checkpoint_lsn: found.checkpoint_lsn.0,
            log_segments: found.log_segments,
            log_segments_free: found.log_segments_free,
            log_bytes: found.log_bytes,
            quarantined: found.quarantined,
            file_system: &found.file_system,
            holder,
            warnings: &found.warnings,
        }))?;
        return Ok(0);
    }
    let state = match holder {
        Some(Holder { pid, program }) => format!("open in process {pid} ({})", printable(program)),
        None if found.is_clean => "closed".to_owned(),
        None => "not closed; the next command that opens it recovers it".to_owned(),
    };
    let mut said = format!(
        "state        {state}\n\
         last         transaction {}\n\
         unsettled    {}\n\
         log          {} ({} free), {} used, settled up to lsn {}\n\
         quarantine   {}\n\
         file system  {}",
        found.last_tx,
        counted(found.unsettled, "transaction"),
        counted(found.log_segments as u64, "segment"),
        found.log_segments_free,
        counted(found.log_bytes, "byte"),
        found.checkpoint_lsn,
        counted(found.quarantined, "file"),
        found.file_system,
    );
    for warning in &found.warnings {
        let _ = write!(said, "\nwarning      {warning}");
    }
    print(&said)?;
    Ok(0)
}

/// A transaction in `log` and `show`.
#[derive(Serialize)]
struct Past<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    tx: u64,
    lsn: u64,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    settled: bool,
    files: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Change>>,
}

/// One name that it changed; nothing before means that it was made, nothing after that it was removed.
#[derive(Serialize)]
struct Change {
    path: JsonPath,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<State>,
}

#[derive(Serialize)]
struct State {
    kind: &'static str,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

impl<'a> Past<'a> {
    fn new(past: &'a PastTransaction) -> Self {
        Self {
            ok: None,
            tx: past.tx.0,
            lsn: past.lsn.0,
            time: utc(past.time_ns),
            label: past.label.as_deref(),
            agent: past.agent.as_deref(),
            settled: past.is_settled,
            files: past.changes.len(),
            changes: None,
        }
    }
}

impl State {
    fn new(state: &atomtree::State) -> Self {
        Self {
            kind: match (state.directory, state.symlink) {
                (true, _) => "directory",
                (false, true) => "symlink",
                (false, false) => "file",
            },
            mode: format!("{:04o}", state.mode),
            size: (!state.directory).then_some(state.size),
            blake3: state.digest.map(|digest| digest.to_string()),
        }
    }

    fn told(&self) -> String {
        match self.size {
            Some(size) => format!("{} {}", self.mode, counted(size, "byte")),
            None => format!("{} {}", self.mode, self.kind),
        }
    }
}

/// Runs `atomtree log`.
pub(crate) fn log(common: &Common, count: usize) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Log<'a> {
        ok: bool,
        transactions: Vec<Past<'a>>,
    }
    let found = inspect(common)?.log(count)?;
    if common.json {
        print(&json(&Log { ok: true, transactions: found.iter().map(Past::new).collect() }))?;
        return Ok(0);
    }
    let mut said = format!("{:>8}  {:<24}  {:>6}  {:<9}  label", "tx", "time", "names", "");
    for past in &found {
        let settled = if past.is_settled { "settled" } else { "unsettled" };
        let agent = past.agent.as_ref().map(|agent| format!("[{agent}] ")).unwrap_or_default();
        let label = printable(&format!("{agent}{}", past.label.as_deref().unwrap_or_default()));
        let (tx, time, names) = (past.tx.0, utc(past.time_ns), past.changes.len());
        let line = format!("\n{tx:>8}  {time:<24}  {names:>6}  {settled:<9}  {label}");
        said += line.trim_end_matches(' ');
    }
    print(if found.is_empty() { "no transactions yet" } else { &said })?;
    Ok(0)
}

/// Runs `atomtree show`.
pub(crate) fn show(common: &Common, tx: u64) -> Result<u8, Failure> {
    let Some(found) = inspect(common)?.transaction(TransactionId(tx))? else {
        let message = format!("transaction {tx} is not in the history; `atomtree log` lists those that are");
        return Err(Failure::new(ErrorKind::NotFound, message));
    };
    let changes: Vec<Change> = found
        .changes
        .iter()
        .map(|change| Change {
            path: JsonPath::from_bytes(&change.path),
            before: change.before.as_ref().map(State::new),
            after: change.after.as_ref().map(State::new),
        })
        .collect();
    if common.json {
        print(&json(&Past { ok: Some(true), changes: Some(changes), ..Past::new(&found) }))?;
        return Ok(0);
    }
    let settled = if found.is_settled { "settled" } else { "unsettled" };
    let mut said = format!("transaction {tx}, {}, lsn {}, {settled}", utc(found.time_ns), found.lsn);
    for (name, value) in [("label", &found.label), ("agent", &found.agent)] {
        if let Some(value) = value {
            let _ = write!(said, "\n{name}: {}", printable(value));
        }
    }
    for Change { path, before, after } in &changes {
        let path = printable(&path.0.to_string_lossy());
        let _ = match (before, after) {
            (None, Some(after)) => write!(said, "\n  + {path}  {}", after.told()),
            (Some(before), Some(after)) => {
                write!(said, "\n  ~ {path}  {} -> {}", before.told(), after.told())
            }
            (Some(before), None) => write!(said, "\n  - {path}  {}", before.told()),
            (None, None) => write!(said, "\n    {path}"),
        };
    }
    print(&said)?;
    Ok(0)
}

/// Runs `atomtree verify`. What is found is the answer, so damage is not an error of the command; its exit status is
/// that of damage all the same.
pub(crate) fn verify(common: &Common) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Problem {
        error: &'static str,
        message: String,
    }
    #[derive(Serialize)]
    struct Verified {
        ok: bool,
        closed: bool,
        torn: bool,
        settled: u64,
        unsettled: u64,
        quarantined: u64,
        slots: u64,
        problems: Vec<Problem>,
    }
    let found = inspect(common)?.verify()?;
    let problem = |problem| {
        let error = atomtree::Error::from(problem);
        Problem { error: error.kind().code(), message: error.to_string() }
    };
    let problems: Vec<Problem> = found.problems.into_iter().map(problem).collect();
    let status = if problems.is_empty() { 0 } else { 4 };
    if common.json {
        print(&json(&Verified {
            ok: problems.is_empty(),
            closed: found.closed,
            torn: found.torn,
            settled: found.settled,
            unsettled: found.unsettled,
            quarantined: found.quarantined,
            slots: found.slots,
            problems,
        }))?;
        return Ok(status);
    }
    let log = match (found.closed, found.torn) {
        (true, _) => "closed",
        (false, true) => "not closed, with an end torn off by a crash, which is normal",
        (false, false) => "not closed",
    };
    let mut said = format!(
        "log          {log}\n\
         settled      {}\n\
         unsettled    {}\n\
         quarantine   {}\n\
         staged       {}\n\
         problems     {}",
        counted(found.settled, "transaction"),
        counted(found.unsettled, "transaction"),
        counted(found.quarantined, "file"),
        counted(found.slots, "file"),
        problems.len(),
    );
    for problem in &problems {
        let _ = write!(said, "\n  {}: {}", problem.error, printable(&problem.message));
    }
    print(&said)?;
    Ok(status)
}
