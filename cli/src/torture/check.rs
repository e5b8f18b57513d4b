//! Whether a tree holds what was promised: what was acknowledged is there, every transaction whole or absent, nothing was
//! taken for another program's, and the store and its history agree with all that.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use atomtree::{ErrorKind, Inspection, Options, RecoveryReport, Store};

use crate::answer::Failure;
use crate::torture::found;
use crate::torture::workload::{Node, Nodes, WORKERS, Workload, directory};

/// Kept settled transactions, at least: more than are committed from one check to the next.
const HISTORY_TRANSACTIONS: u64 = 10_000;
/// A file that every worker counts up, and the label of the transactions that do.
pub(super) const SHARED: &str = "shared";
/// A file that counts the checks, each of which commits it.
const CHECKED: &str = "checked";

/// Why it can't go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// A promise is broken: what was found, and what was expected.
    Broken(String),
    /// Nothing can be said: the disk is full or fails, or what is needed is refused.
    Failed(Failure),
}

/// What the disk or the system may answer. Any other error is one that nothing explains: workers have directories of
/// their own, and do only what can be done there.
const NOBODYS_FAULT: [ErrorKind; 7] = [
    ErrorKind::NoSpace,
    ErrorKind::Io,
    ErrorKind::Permission,
    ErrorKind::Unsupported,
    ErrorKind::Poisoned,
    ErrorKind::OutcomeUnknown,
    ErrorKind::CommittedNotApplied,
];

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        if NOBODYS_FAULT.contains(&failure.kind) {
            return Self::Failed(failure);
        }
        Self::Broken(format!("an error that nothing explains: {}", failure.message))
    }
}

impl Stop {
    /// Spelled for a line that [`Stop::of_line`] reads.
    pub(super) fn line(&self) -> String {
        let line = match self {
            Self::Broken(what) => format!("broken {what}"),
            Self::Failed(failure) => format!("failed {} {}", failure.kind.code(), failure.message),
        };
        line.replace('\n', " ")
    }

    pub(super) fn of_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        if word == "broken" {
            return Some(Self::Broken(rest.to_owned()));
        }
        let (code, message) = rest.split_once(' ')?;
        let kind = NOBODYS_FAULT.into_iter().find(|kind| kind.code() == code)?;
        (word == "failed").then(|| Self::Failed(Failure::new(kind, message)))
    }
}

impl From<atomtree::Error> for Stop {
    fn from(error: atomtree::Error) -> Self {
        Failure::from(error).into()
    }
}

fn unreadable(error: &std::io::Error) -> Stop {
    Failure::of_io("read the tree", error).into()
}

/// How far everybody has come: the number of the last transaction of each worker, and the shared count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) workers: [u64; WORKERS as usize],
    pub(super) shared: u64,
}

impl Standing {
    /// Where each of the two is further.
    pub(super) fn raise(&mut self, other: &Self) {
        for (own, other) in self.workers.iter_mut().zip(other.workers) {
            *own = other.max(*own);
        }
        self.shared = self.shared.max(other.shared);
    }

    fn parts(&self) -> impl Iterator<Item = (String, u64)> {
        let workers = (0..).zip(self.workers).map(|(worker, n)| (directory(worker), n));
        workers.chain([(SHARED.to_owned(), self.shared)])
    }

    /// Spelled for the log: `w0=5 w1=7 ... shared=3`.
    pub(super) fn spelled(&self) -> String {
        let parts = self.parts().map(|(name, n)| format!("{name}={n}"));
        parts.collect::<Vec<_>>().join(" ")
    }

    /// Reads what [`Standing::spelled`] has written, as far as it goes: a number that was torn off is smaller.
    pub(super) fn of_spelled(text: &str) -> Self {
        let mut found = Self::default();
        for (name, n) in text.split(' ').filter_map(|part| part.split_once('=')) {
            let Ok(n) = n.parse() else { continue };
            match (0..WORKERS).find(|worker| directory(*worker) == name) {
                Some(worker) => found.workers[worker as usize] = n,
                None if name == SHARED => found.shared = n,
                None => {}
            }
        }
        found
    }
}

/// How every process opens the store: a log so small that kills meet rotations, full logs and checkpoints often.
pub(super) fn options(settle_after_ms: u64) -> Options {
    Options::new()
        .segment_bytes(64 << 10)
        .log_bytes_max(1 << 20)
        .inline_bytes_max(8000)
        .image_bytes_max(1000)
        .history_transactions_max(HISTORY_TRANSACTIONS)
        .settle_after(Duration::from_millis(settle_after_ms))
}

/// What recovery must not report, because nobody else writes.
pub(super) fn check_report(report: &RecoveryReport) -> Result<(), Stop> {
    let expected = RecoveryReport { redone: report.redone, voided: report.voided, ..Default::default() };
    if *report == expected {
        return Ok(());
    }
    Err(Stop::Broken(format!("recovery took for another program's what nobody else has written: {report:?}")))
}

/// Compares a worker's directory with what its last transaction left, and returns the number of that.
pub(super) fn check_worker(
    root: &Path,
    workload: Workload,
    worker: u64,
    compares_modes: bool,
) -> Result<u64, Stop> {
    let top = directory(worker);
    let mut found = found::nodes(root, &top).map_err(|error| unreadable(&error))?;
    let Some(last) = Workload::last(worker, &found) else {
        return Err(Stop::Broken(format!("{top} does not say which transaction was its last")));
    };
    let mut expected = workload.state(worker, last);
    if !compares_modes {
        [&mut found, &mut expected].into_iter().for_each(forget_modes);
    }
    match first_difference(&expected, &found) {
        None => Ok(last),
        Some(difference) => Err(Stop::Broken(format!("after transaction {last} of {top}, {difference}"))),
    }
}

fn forget_modes(nodes: &mut Nodes) {
    for node in nodes.values_mut() {
        if let Node::File { mode, .. } | Node::Dir { mode } = node {
            *mode = 0;
        }
    }
}

fn first_difference(expected: &Nodes, found: &Nodes) -> Option<String> {
    let mut paths: Vec<&String> = expected.keys().chain(found.keys()).collect();
    paths.sort();
    let path = paths.into_iter().find(|path| expected.get(*path) != found.get(*path))?;
    let told = |nodes: &Nodes| nodes.get(path).map_or("nothing".to_owned(), ToString::to_string);
    let mut difference = format!("{path}: expected {}, found {}", told(expected), told(found));
    if let (Some(Node::File { content: old, .. }), Some(Node::File { content: new, .. })) =
        (expected.get(path), found.get(path))
        && let Some(at) = (0..old.len().max(new.len())).find(|&at| old.get(at) != new.get(at))
    {
        difference += &format!("; they differ from byte {at} on");
    }
    Some(difference)
}

/// What checks have found so far in one tree.
pub(super) struct Checker {
    workload: Workload,
    compares_modes: bool,
    pub(super) checks: u64,
    pub(super) redone: u64,
    pub(super) voided: u64,
    /// Up to here the history was looked at.
    pub(super) last_tx: u64,
    /// What it says each worker's last transaction is.
    in_history: Standing,
    /// Whether the history was found cut off, so that it can't be counted.
    is_cut_off: bool,
}

impl Checker {
    pub(super) fn new(workload: Workload, compares_modes: bool) -> Self {
        Self {
            workload,
            compares_modes,
            checks: 0,
            redone: 0,
            voided: 0,
            last_tx: 0,
            in_history: Standing::default(),
            is_cut_off: false,
        }
    }

    /// Opens the store, which recovers it, and looks at everything. Nothing may be missing of what was `acknowledged`.
    pub(super) fn check(&mut self, root: &Path, acknowledged: &Standing) -> Result<Standing, Stop> {
        let store = options(1000).open(root)?;
        check_report(store.recovery())?;
        self.redone += store.recovery().redone;
        self.voided += store.recovery().voided;
        let standing = self.check_tree(root)?;
        for ((name, there), (_, acknowledged)) in standing.parts().zip(acknowledged.parts()) {
            if there < acknowledged {
                return Err(Stop::Broken(format!(
                    "{name} is at {there}, and {acknowledged} was acknowledged: durable transactions are lost"
                )));
            }
        }
        self.commit_check(root, &store)?;
        store.close()?;
        check_store(root)?;
        self.check_history(root, &standing)?;
        self.checks += 1;
        Ok(standing)
    }

    fn check_tree(&self, root: &Path) -> Result<Standing, Stop> {
        let mut standing = Standing::default();
        for worker in 0..WORKERS {
            standing.workers[worker as usize] =
                check_worker(root, self.workload, worker, self.compares_modes)?;
        }
        let shared = found::number(root, SHARED).map_err(|error| unreadable(&error))?;
        standing.shared =
            shared.ok_or_else(|| Stop::Broken(format!("{SHARED} holds something else than a count")))?;
        let names = found::top(root).map_err(|error| unreadable(&error))?;
        let is_known = |name: &String| {
            [SHARED, CHECKED].contains(&name.as_str()) || (0..WORKERS).any(|w| directory(w) == *name)
        };
        match names.iter().find(|name| !is_known(name)) {
            Some(name) => Err(Stop::Broken(format!("{name} was made by no transaction"))),
            None => Ok(standing),
        }
    }

    /// Commits right after recovery, and sees that the commit before it is still there.
    fn commit_check(&self, root: &Path, store: &Store) -> Result<(), Stop> {
        let count = found::number(root, CHECKED).map_err(|error| unreadable(&error))?;
        if self.checks > 0 && count != Some(self.checks) {
            let expected = self.checks;
            return Err(Stop::Broken(format!("{CHECKED}: expected the count {expected}, found {count:?}")));
        }
        let next = count.unwrap_or(0) + 1;
        store.transact(|transaction| {
            transaction.set_label(CHECKED);
            transaction.write(CHECKED, next.to_string())
        })?;
        Ok(())
    }

    /// The history goes on where it was, without gaps, lists the transactions of each worker in their order, and ends
    /// where the tree does.
    fn check_history(&mut self, root: &Path, standing: &Standing) -> Result<(), Stop> {
        let inspection = Inspection::open(root, &Options::new())?;
        let last_tx = inspection.status()?.last_tx.0;
        let new = last_tx.saturating_sub(self.last_tx);
        let history = inspection.log(usize::try_from(new).unwrap_or(usize::MAX))?;
        let mut next = self.last_tx + 1;
        if let Some(oldest) = history.last()
            && oldest.tx.0 > next
            && history.len() as u64 >= HISTORY_TRANSACTIONS
        {
            self.is_cut_off = true;
            next = oldest.tx.0;
        }
        let mut first_seen = BTreeMap::new();
        for past in history.iter().rev() {
            if past.tx.0 != next {
                return Err(Stop::Broken(format!(
                    "the history has transaction {} after {}",
                    past.tx,
                    next - 1
                )));
            }
            next += 1;
            match past.label.as_deref() {
                Some(SHARED) => self.in_history.shared += 1,
                Some(label) => {
                    let Some((worker, n)) = numbers(label) else { continue };
                    let known = &mut self.in_history.workers[worker as usize];
                    let is_first = first_seen.insert(worker, n).is_none() && self.is_cut_off;
                    if n != *known + 1 && !is_first {
                        let (worker, tx) = (directory(worker), past.tx);
                        return Err(Stop::Broken(format!(
                            "transaction {tx} of the history is number {n} of {worker}, after its number {known}"
                        )));
                    }
                    *known = n;
                }
                None => {}
            }
        }
        if next != last_tx + 1 {
            return Err(Stop::Broken(format!("the history ends at {}, the log at {last_tx}", next - 1)));
        }
        self.last_tx = last_tx;
        if self.is_cut_off {
            return Ok(());
        }
        match standing.parts().zip(self.in_history.parts()).find(|(tree, history)| tree != history) {
            None => Ok(()),
            Some(((name, tree), (_, history))) => {
                Err(Stop::Broken(format!("{name} is at {tree} in the tree and at {history} in the history")))
            }
        }
    }
}

/// The store says of itself that it is whole, closed and empty.
fn check_store(root: &Path) -> Result<(), Stop> {
    let found = Inspection::open(root, &Options::new())?.verify()?;
    let left = (found.unsettled, found.quarantined, found.slots);
    if found.problems.is_empty() && found.closed && left == (0, 0, 0) {
        return Ok(());
    }
    Err(Stop::Broken(format!("`atomtree verify` of the closed store: {found:?}")))
}

/// The label of a worker's transaction.
pub(super) fn label(worker: u64, n: u64) -> String {
    format!("{worker}:{n}")
}

fn numbers(label: &str) -> Option<(u64, u64)> {
    let (worker, n) = label.split_once(':')?;
    let worker = worker.parse().ok().filter(|worker| *worker < WORKERS)?;
    Some((worker, n.parse().ok()?))
}

/// Looks at a store that a process has open: it must be found whole, nobody gets it for himself, and who joins finds
/// nothing to recover.
pub(super) fn check_beside(root: &Path, pid: u32) -> Result<(), Stop> {
    match options(1000).exclusive(true).lock_timeout(Duration::ZERO).open(root) {
        Err(error) if error.kind() == ErrorKind::Locked => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            return Err(Stop::Broken(format!(
                "process {pid} has the store open, and another one can have it for itself"
            )));
        }
    }
    let joined = options(1000).open(root)?;
    if joined.recovery().redone > 0 {
        return Err(Stop::Broken(format!("process {pid} lives, and was recovered: {:?}", joined.recovery())));
    }
    joined.close()?;
    let inspection = Inspection::open(root, &Options::new())?;
    let holder = inspection.status()?.holder.map(|holder| holder.pid);
    if holder != Some(pid) {
        return Err(Stop::Broken(format!("process {pid} has the store open, and {holder:?} is said to")));
    }
    let found = inspection.verify()?;
    if !found.problems.is_empty() {
        return Err(Stop::Broken(format!("`atomtree verify` beside process {pid}: {:?}", found.problems)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever a power cut leaves of a line of the log claims no more than was acknowledged. Method: every prefix.
    #[test]
    fn a_torn_line_claims_less() {
        let standing = Standing { workers: [7, 0, 312, 4, 5, 6, 70_000, 8], shared: 123 };
        let spelled = standing.spelled();
        assert_eq!(Standing::of_spelled(&spelled), standing);
        for end in 0..spelled.len() {
            let mut raised = standing.clone();
            raised.raise(&Standing::of_spelled(&spelled[..end]));
            assert_eq!(raised, standing, "{}", &spelled[..end]);
        }
    }

    #[test]
    fn why_a_writer_stops_passes_through_its_line() {
        let failed = Failure::new(ErrorKind::NoSpace, "a\nb c");
        let line = Stop::from(failed).line();
        assert_eq!(line, "failed no_space a b c");
        let Some(Stop::Failed(read)) = Stop::of_line(&line) else { panic!("{line}") };
        assert_eq!((read.kind, read.message.as_str()), (ErrorKind::NoSpace, "a b c"));
        let conflict = Stop::from(Failure::new(ErrorKind::Conflict, "x")).line();
        assert!(matches!(Stop::of_line(&conflict), Some(Stop::Broken(what)) if what.ends_with(": x")));
        assert!(Stop::of_line("ack 1 2").is_none() && Stop::of_line("failed x y").is_none());
    }
}
