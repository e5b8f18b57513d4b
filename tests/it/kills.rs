//! Processes that are killed: what was acknowledged is there, and no transaction is there in part.
//!
//! The children are this binary, running the test of the same name with `ATOMTREE_CHILD` set. They write a line to
//! standard error for each commit, after it was acknowledged; one `write` each, so that lines are never torn. Each child
//! checks what it finds when it has opened the store, so that a process that is not the killed one recovers and judges.
//!
//! `ATOMTREE_KILLS=n` makes each chain of kills at least `n` long. `SEED=s` repeats the choices: kills of a child with one
//! thread at chosen operations are then the very same.

mod creation;
pub(crate) mod instants;
pub(crate) mod operations;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use atomtree::{Checkpoints, Error, ErrorKind, Inspection, Options, RecoveryReport, Store, Transaction};
use atomtree_tests::versions::Versions;

use crate::basics::{commit, small};

/// The ordinary run makes so many kills at least: each test asserts its part.
const KILLS_MIN: u64 = 500;
const _: () = assert!(
    instants::KILLS + operations::KILLS_OF_ONE_THREAD + operations::KILLS_OF_MANY_THREADS + creation::KILLS
        >= KILLS_MIN
);

/// As many threads commit at most.
pub(crate) const THREADS_MAX: u64 = 16;

/// How many kills a chain makes: so many in the ordinary run.
fn kills(ordinary: u64) -> u64 {
    let asked = std::env::var("ATOMTREE_KILLS").map(|n| n.parse().expect("ATOMTREE_KILLS is a number"));
    asked.map_or(ordinary, |n: u64| n.max(ordinary))
}

/// A log so small that kills meet rotations, full logs and checkpoints often; contents above 8000 bytes travel by
/// reference.
pub(crate) fn tiny() -> Options {
    small().log_bytes_max(256 << 10).settle_after(Duration::from_millis(5)).inline_bytes_max(8000)
}

/// A thread commits versions of a directory of its own. One of them has a file that takes many writes.
pub(crate) fn versions(thread: u64) -> Versions {
    Versions::new(format!("t{thread}"), if thread == 1 { 1 << 20 } else { 20_000 })
}

/// Speaks to the parent on standard error, in one write.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// For children: opens the store, checks what recovery says and that the tree holds whole versions, and tells.
pub(crate) fn open_and_tell(options: Options, root: &Path) -> (Store, BTreeMap<u64, u64>) {
    let store = options.open(root).unwrap_or_else(|error| panic!("not opened: {error}"));
    let report = store.recovery();
    check_report(report, "a child");
    let mut lines = format!("opened {}", report.redone);
    let mut standing = BTreeMap::new();
    for thread in 0..THREADS_MAX {
        let version = versions(thread).standing(root, "a child");
        lines += &format!("\nstands {thread} {version}");
        standing.insert(thread, version);
    }
    say(&lines);
    (store, standing)
}

/// Nothing foreign is there, so nothing is quarantined, lost or kept.
pub(crate) fn check_report(report: &RecoveryReport, label: &str) {
    let expected = RecoveryReport { redone: report.redone, voided: report.voided, ..Default::default() };
    assert_eq!(*report, expected, "{label}");
    assert!(report.voided <= 1, "{label}: {report:?}");
}

/// Commits one version of a thread's directory, under a label that says which.
pub(crate) fn commit_version(store: &Store, thread: u64, n: u64) -> Result<(), Error> {
    let change = |tx: &mut Transaction| {
        tx.set_label(format!("{thread}:{n}"));
        versions(thread).change(tx, n)
    };
    commit(store, change).map(drop)
}

/// For children: one version after another of a thread's directory, `count` of them; now and then a file that all
/// threads change. Before each, `enter` is told whether it is a barrier.
pub(crate) fn commit_versions(store: &Store, thread: u64, standing: u64, count: u64, enter: &dyn Fn(bool)) {
    for n in (standing + 1..).take(usize::try_from(count).unwrap()) {
        enter(Versions::is_barrier(n));
        commit_version(store, thread, n).unwrap();
        say(&format!("ack {thread} {n}"));
        if n.is_multiple_of(3) {
            match store.transact(|tx| {
                let count: u64 = if tx.exists("shared")? {
                    String::from_utf8(tx.read("shared")?).unwrap().parse().unwrap()
                } else {
                    0
                };
                tx.write("shared", (count + 1).to_string())?;
                Ok(count + 1)
            }) {
                Ok((count, _)) => say(&format!("shared {count}")),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
        }
    }
}

/// What is known of a chain of crashes on one store, which is never cleaned.
#[derive(Default)]
pub(crate) struct Chain {
    /// The version of each thread that was acknowledged, or found, last.
    versions: BTreeMap<u64, u64>,
    shared: u64,
    pub(crate) redone: u64,
    pub(crate) recoveries: u64,
    /// Not all that was acknowledged has been heard.
    is_behind: bool,
    /// The newest version of each thread that copies have had.
    copied: BTreeMap<u64, u64>,
}

/// A child that speaks, and what of it nobody has listened to yet.
pub(crate) struct Speaking {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
}

impl Speaking {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// What it says up to a line that begins like this, or its end.
    pub(crate) fn wait_for(&mut self, start: &str) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_mins(1)) {
                Ok(line) => said.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return said,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the child says no {start}, only {said:#?}"),
            }
            if said.last().is_some_and(|line| line.starts_with(start)) {
                return said;
            }
        }
    }

    /// What it has said by now.
    pub(crate) fn so_far(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// What else it says, and how it ends.
    pub(crate) fn end(mut self) -> (Vec<String>, ExitStatus) {
        let said = self.lines.iter().collect();
        (said, self.child.wait().unwrap())
    }
}

impl Chain {
    /// Takes in what a child said. Returns what the chain does not know of.
    pub(crate) fn hear(&mut self, lines: impl Iterator<Item = String>, label: &str) -> Vec<String> {
        let mut rest = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[..] {
                ["opened", _] => {
                    self.redone += number(1);
                    self.recoveries += 1;
                }
                ["stands", ..] => {
                    let (thread, n) = (number(1), number(2));
                    let before = self.versions.insert(thread, n).unwrap_or(0);
                    // The one whose commit the kill hit is there or not.
                    let newest = if self.is_behind { u64::MAX } else { before + 1 };
                    assert!(
                        (before..=newest).contains(&n),
                        "{label}: thread {thread} has version {n}, acknowledged was {before}"
                    );
                }
                ["ack", ..] => {
                    let (thread, n) = (number(1), number(2));
                    let before = self.versions.insert(thread, n).unwrap_or(0);
                    assert_eq!(n, before + 1, "{label}: thread {thread}");
                }
                ["shared", _] => self.shared = self.shared.max(number(1)),
                _ => rest.push(line),
            }
        }
        rest
    }

    /// The parent recovers, and finds what was acknowledged.
    pub(crate) fn open(&mut self, root: &Path, label: &str) -> Store {
        let store = tiny().open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
        check_report(store.recovery(), label);
        let mut lines = vec![format!("opened {}", store.recovery().redone)];
        lines.extend((0..THREADS_MAX).map(|thread| {
            let version = versions(thread).standing(root, label);
            format!("stands {thread} {version}")
        }));
        assert_eq!(self.hear(lines.into_iter(), label), Vec::<String>::new());
        for (thread, copied) in &self.copied {
            let version = self.versions[thread];
            assert!(
                version >= *copied,
                "{label}: thread {thread} has version {version}, a copy had {copied}"
            );
        }
        let count = std::fs::read_to_string(root.join("shared")).map_or(0, |text| text.parse().unwrap());
        assert!(count >= self.shared, "{label}: shared {count}, acknowledged was {}", self.shared);
        self.shared = count;
        store
    }

    /// Finds in a copy what was acknowledged when it was made, by one who goes on and may not have been heard to the end.
    pub(crate) fn open_copy(&mut self, root: &Path, label: &str) {
        let (versions, shared) = (self.versions.clone(), self.shared);
        let mut copied = Self { versions, shared, is_behind: true, ..Self::default() };
        copied.open(root, label).close().unwrap();
        self.redone += copied.redone;
        // The store itself has as much, in the end.
        self.copied = copied.versions;
    }

    /// The history lists every transaction once, without gaps, newest first, and tells of each thread what stands there.
    pub(crate) fn check_history(&mut self, root: &Path) {
        self.open(root, "the last open").close().unwrap();
        let inspection = Inspection::open(root, &Options::new()).unwrap();
        let verification = inspection.verify().unwrap();
        assert!(verification.problems.is_empty() && verification.closed, "{verification:?}");
        assert_eq!(inspection.status().unwrap().quarantined, 0);
        assert_eq!(std::fs::read_dir(root.join(".atomtree/stage")).unwrap().count(), 0);
        let history = inspection.log(usize::MAX).unwrap();
        let numbers: Vec<u64> = history.iter().map(|past| past.tx.0).collect();
        let gap = numbers.windows(2).find(|pair| pair[0] != pair[1] + 1);
        assert!(gap.is_none(), "the history has gaps or repeats: {gap:?}");
        let mut found: BTreeMap<u64, u64> = BTreeMap::new();
        for past in history.iter().rev() {
            let Some((thread, n)) = past.label.as_deref().and_then(|label| label.split_once(':')) else {
                continue;
            };
            let (thread, n): (u64, u64) = (thread.parse().unwrap(), n.parse().unwrap());
            if let Some(before) = found.insert(thread, n) {
                assert_eq!(n, before + 1, "thread {thread} in its own order");
            }
        }
        // The history keeps what is recent; the ordinary run does not commit more than that.
        let is_whole = numbers.last() == Some(&1);
        assert!(is_whole || numbers.len() >= 10_000, "the history begins with {:?}", numbers.last());
        for (thread, n) in &self.versions {
            let known = found.get(thread).copied().unwrap_or(if is_whole { 0 } else { *n });
            assert_eq!(known, *n, "thread {thread}: history and tree differ");
        }
    }

    pub(crate) fn commits(&self) -> u64 {
        self.versions.values().sum()
    }
}

/// Options of a child with one thread, which does the same each time.
fn repeatable() -> Options {
    tiny().checkpoints(Checkpoints::Manual)
}
