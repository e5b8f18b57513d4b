//! `status`, `log`, `show` and `verify`: what a store says of itself, without opening or changing it.
//!
//! They work beside a process that has the store open, and on a store too damaged to open.

use std::fmt::Write as _;

use atomtree::vfs::ProcessIdentity;
use atomtree::{ErrorKind, GuardSeen, Inspection, Member, PastTransaction, TransactionId};
use serde::Serialize;

use crate::answer::{Failure, json, print};
use crate::arguments::Common;
use crate::color::Style;
use crate::diff::{Change, DIFF_BYTES_MAX, State, diff_of, table_of};
use crate::path::JsonPath;
use crate::progress::Progress;
use crate::table::{Align, Cell, Table, cell};
use crate::text::{ago, counted, moment, printable, size, utc};

/// The store to be looked at.
pub(crate) fn inspect(common: &Common) -> Result<Inspection, Failure> {
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
    struct Process<'a> {
        pid: u32,
        program: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        waiting_since: Option<String>,
    }
    impl<'a> Process<'a> {
        fn new(member: &'a Member) -> Self {
            let Member { process, since, waiting_since, .. } = member;
            let waiting_since = waiting_since.map(|since| utc(since.0));
            Self { pid: process.pid, program: &process.program, since: Some(utc(since.0)), waiting_since }
        }
    }
    #[derive(Serialize)]
    struct OpenGuard<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        program: Option<&'a str>,
        since: String,
        abandoned: bool,
        guarded: &'a [String],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        ignored: &'a [String],
    }
    impl<'a> OpenGuard<'a> {
        fn new(guard: &'a GuardSeen) -> Self {
            let GuardSeen { id, owner, is_abandoned, since, patterns } = guard;
            Self {
                name: id,
                pid: owner.as_ref().map(|owner| owner.pid),
                program: owner.as_ref().map(|owner| &*owner.program),
                since: utc(since.0),
                abandoned: *is_abandoned,
                guarded: &patterns.guarded,
                ignored: &patterns.ignored,
            }
        }
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
        image_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        checkpoint_time: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<Process<'a>>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        members: &'a [Process<'a>],
        #[serde(skip_serializing_if = "Option::is_none")]
        committing: Option<Process<'a>>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        guards: &'a [OpenGuard<'a>],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        warnings: &'a [String],
    }
    let progress = Progress::of("reading the log");
    let found = inspect(common)?.status()?;
    drop(progress);
    let members: Vec<Process<'_>> = found.members.iter().map(Process::new).collect();
    let holder = found.holder.as_ref().map(|ProcessIdentity { pid, program, .. }| Process {
        pid: *pid,
        program,
        since: None,
        waiting_since: None,
    });
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
            image_bytes: found.image_bytes,
            checkpoint_time: found.checkpoint_ns.map(utc),
            holder,
            members: &members,
            committing: found.committing.as_ref().map(Process::new),
            guards: &found.guards.iter().map(OpenGuard::new).collect::<Vec<_>>(),
            warnings: &found.warnings,
        }))?;
        return Ok(0);
    }
    let mut table = Table::of_facts();
    let state = match &holder {
        Some(Process { pid, program, .. }) if members.len() == 1 => {
            cell(format!("open in process {pid} ({program})"), Style::Strong)
        }
        Some(_) => cell(format!("open in {} processes", members.len()), Style::Strong),
        None if found.is_clean => cell("closed", Style::Good),
        None => cell("not closed; the next command that opens it recovers it", Style::Notice),
    };
    table.fact("state", state);
    for member in found.members.iter().filter(|_| members.len() > 1) {
        let Member { process, since, waiting_since, .. } = member;
        let waiting =
            waiting_since.map(|since| format!(", waits for the commit lock since {}", moment(since.0)));
        let (pid, program, waiting) = (process.pid, &process.program, waiting.unwrap_or_default());
        table.fact("", format!("process {pid} ({program}) since {}{waiting}", moment(since.0)));
    }
    if let Some(Member { process, since, .. }) = &found.committing {
        let (pid, program) = (process.pid, &process.program);
        table.fact("commit lock", format!("process {pid} ({program}) since {}", moment(since.0)));
    }
    for GuardSeen { owner, is_abandoned, since, patterns, .. } in &found.guards {
        let owner = match owner {
            Some(ProcessIdentity { pid, program, .. }) => format!("process {pid} ({program})"),
            None => "a process".to_owned(),
        };
        let covered: Vec<_> = patterns.guarded.iter().map(|pattern| printable(pattern)).collect();
        let guard = format!("{} by {owner} since {}", covered.join(", "), moment(since.0));
        let left = "which has gone; the next command that opens the store rolls it back";
        table.fact(
            "guard",
            if *is_abandoned {
                cell(format!("{guard}, {left}"), Style::Notice)
            } else {
                cell(guard, Style::Plain)
            },
        );
    }
    table.fact("last", format!("transaction {}", found.last_tx));
    table.fact("unsettled", counted(found.unsettled, "transaction"));
    let (segments, free) = (counted(found.log_segments as u64, "segment"), found.log_segments_free);
    let (used, lsn) = (size(found.log_bytes), found.checkpoint_lsn);
    table.fact("log", format!("{segments} ({free} free), {used} used, settled up to lsn {lsn}"));
    if let Some(time) = found.checkpoint_ns {
        table.fact("settled", moment(time));
    }
    table.fact("images", size(found.image_bytes));
    table.fact("quarantine", counted(found.quarantined, "file"));
    table.fact("file system", &found.file_system);
    for warning in &found.warnings {
        table.fact("warning", cell(warning, Style::Notice));
    }
    print(&table.text(common.is_colored()))?;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<&'a str>,
    settled: bool,
    files: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Change>>,
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
            uid: past.who.as_ref().map(|who| who.uid),
            pid: past.who.as_ref().map(|who| who.pid),
            program: past.who.as_ref().map(|who| who.program.as_str()),
            settled: past.is_settled,
            files: past.changes.len(),
            changes: None,
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
    let progress = Progress::of("reading the history");
    let found = inspect(common)?.log(count)?;
    drop(progress);
    if common.json {
        print(&json(&Log { ok: true, transactions: found.iter().map(Past::new).collect() }))?;
        return Ok(0);
    }
    if found.is_empty() {
        print("no transactions yet")?;
        return Ok(0);
    }
    let [left, right] = [Align::Left, Align::Right];
    let mut table = Table::new([right, left, right, right, left, left]);
    table.row(["tx", "time (UTC)", "", "names", "state", "label"].map(|heading| cell(heading, Style::Faint)));
    for past in &found {
        let agent = past.agent.as_ref().map(|agent| format!("[{agent}] ")).unwrap_or_default();
        table.row([
            cell(past.tx.to_string(), Style::Strong),
            moment(past.time_ns).into(),
            cell(ago(past.time_ns), Style::Faint),
            past.changes.len().to_string().into(),
            settled(past),
            format!("{agent}{}", past.label.as_deref().unwrap_or_default()).into(),
        ]);
    }
    print(&table.text(common.is_colored()))?;
    Ok(0)
}

fn settled(past: &PastTransaction) -> Cell {
    if past.is_settled { cell("settled", Style::Plain) } else { cell("unsettled", Style::Notice) }
}

/// Runs `atomtree show`.
pub(crate) fn show(common: &Common, tx: u64) -> Result<u8, Failure> {
    let progress = Progress::of("reading the history");
    let inspection = inspect(common)?;
    let found = inspection.transaction(TransactionId(tx))?;
    drop(progress);
    let Some(found) = found else {
        let message = format!("transaction {tx} is not in the history; `atomtree log` lists those that are");
        return Err(Failure::new(ErrorKind::NotFound, message));
    };
    let changes: Vec<Change> = found
        .changes
        .iter()
        .map(|change| Change {
            path: JsonPath::from_bytes(&change.path),
            from: change.from.as_deref().map(JsonPath::from_bytes),
            before: change.before.as_deref().map(State::new),
            after: change.after.as_deref().map(State::new),
        })
        .collect();
    if common.json {
        print(&json(&Past { ok: Some(true), changes: Some(changes), ..Past::new(&found) }))?;
        return Ok(0);
    }
    let mut facts = Table::of_facts();
    facts.fact("transaction", cell(tx.to_string(), Style::Strong));
    facts.fact("time", format!("{} UTC, {}", moment(found.time_ns), ago(found.time_ns)));
    facts.fact("state", settled(&found));
    facts.fact("lsn", found.lsn.to_string());
    for (name, value) in [("label", &found.label), ("agent", &found.agent)] {
        if let Some(value) = value {
            facts.fact(name, value);
        }
    }
    if let Some(who) = &found.who {
        facts.fact("by", format!("{} (process {}, user {})", who.program, who.pid, who.uid));
    }
    let mut said = facts.text(common.is_colored());
    if !changes.is_empty() {
        said += "\n\n";
        said += &table_of(&changes).text(common.is_colored());
    }
    for (change, contents) in changes.iter().zip(inspection.contents(&found, DIFF_BYTES_MAX)?) {
        said += &diff_of(change, contents).map(|diff| format!("\n\n{diff}")).unwrap_or_default();
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
    let progress = Progress::of("checking the log and the history");
    let found = inspect(common)?.verify()?;
    drop(progress);
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
    let mut table = Table::of_facts();
    table.fact("log", log);
    table.fact("settled", counted(found.settled, "transaction"));
    table.fact("unsettled", counted(found.unsettled, "transaction"));
    table.fact("quarantine", counted(found.quarantined, "file"));
    table.fact("staged", counted(found.slots, "file"));
    let style = if problems.is_empty() { Style::Good } else { Style::Bad };
    table.fact("problems", cell(problems.len().to_string(), style));
    let mut said = table.text(common.is_colored());
    for problem in &problems {
        let _ = write!(said, "\n  {}: {}", problem.error, printable(&problem.message));
    }
    print(&said)?;
    Ok(status)
}
