//! Several processes with one store at once: real ones, which count, transfer, die, stop, fork and lose their store.
//!
//! Children are this binary, running the test of the same name with `ATOMTREE_CHILD` set. They open the store, say so,
//! wait to be told to go, and end when their standard input does. Nobody waits longer than [`PATIENCE`] for anybody, so that
//! who is stuck fails the test that it is stuck in.
//!
//! `ATOMTREE_PROCESSES_SECONDS=n` makes those that go on for a time go on for `n` seconds, and `ATOMTREE_COUNTS=n` makes
//! each process count to `n`. `SEED=s` repeats the choices.

mod bank;
mod clocks;
mod command_line;
mod copies;
mod counters;
mod editors;
mod fairness;
mod forks;
mod histories;
mod kills;
mod kills_at_operations;
mod namespaces;
mod owners;
mod poison;
mod replaced;
mod stopped;

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atomtree::{Error, ErrorKind, Options, Receipt, Store, Transaction};
use atomtree_tests::signals::{Signal, signal};
use tempfile::TempDir;

use crate::basics::child;
use crate::kills::{Speaking, say};

/// Longer than anything takes that is not stuck, on a slow machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long tests go on that do so for a time: so long in the ordinary run.
fn duration(ordinary: Duration) -> Duration {
    let asked = std::env::var("ATOMTREE_PROCESSES_SECONDS").ok();
    asked.map_or(ordinary, |seconds| Duration::from_secs(seconds.parse().expect("a number of seconds")))
}

/// A number that a child was given.
fn given(name: &str) -> u64 {
    let value = std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}"))
}

/// A child that is killed when its test ends before it does.
struct Worker {
    speaking: Option<Speaking>,
    label: String,
}

impl Worker {
    /// Starts a child of the test with this path.
    fn start(test: &str, root: &Path, label: impl Into<String>, settings: &[(&str, u64)]) -> Self {
        let mut command = child(test, root);
        command.envs(settings.iter().map(|(name, value)| (name, value.to_string())));
        Self::start_command(&mut command, label)
    }

    fn start_command(command: &mut Command, label: impl Into<String>) -> Self {
        let speaking = Speaking::start(command.stdin(Stdio::piped()));
        Self { speaking: Some(speaking), label: label.into() }
    }

    fn speaking(&mut self) -> &mut Speaking {
        self.speaking.as_mut().expect("it was not ended")
    }

    fn pid(&mut self) -> u32 {
        self.speaking().child.id()
    }

    /// Waits for a line that begins like this; returns what it said up to there.
    #[track_caller]
    fn wait_for(&mut self, start: &str) -> Vec<String> {
        let label = self.label.clone();
        let said = self.speaking().wait_for(start);
        assert!(
            said.last().is_some_and(|line| line.starts_with(start)),
            "{label}: no {start}, but {said:#?}"
        );
        said
    }

    /// What it has said by now.
    fn so_far(&mut self) -> Vec<String> {
        self.speaking().so_far()
    }

    /// Gives it a line to read.
    #[track_caller]
    fn tell(&mut self, line: &str) {
        let label = self.label.clone();
        let input = self.speaking().child.stdin.as_mut().expect("it is a pipe");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{label} is not told {line}: {error}"));
    }

    /// Tells it to end.
    fn stop(&mut self) {
        self.speaking().child.stdin = None;
    }

    fn signal(&mut self, which: Signal) {
        signal(&self.speaking().child, which);
    }

    /// Kills it; returns what else it said.
    #[track_caller]
    fn kill(mut self) -> Vec<String> {
        self.signal(Signal::KILL);
        self.ended().0
    }

    /// Tells it to end, and returns what else it said; it must end well.
    #[track_caller]
    fn end(mut self) -> Vec<String> {
        self.stop();
        let label = self.label.clone();
        let (said, status) = self.ended();
        assert_eq!(status, Some(0), "{label}: {said:#?}");
        said
    }

    /// What it says to its end, which must come, and how that was.
    #[track_caller]
    fn ended(&mut self) -> (Vec<String>, Option<i32>) {
        let mut speaking = self.speaking.take().expect("it was not ended before");
        speaking.child.stdin = None;
        let (pid, label) = (speaking.child.id(), self.label.clone());
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(speaking.end()));
        let Ok((said, status)) = ended.recv_timeout(PATIENCE) else {
            let threads = threads_of(pid);
            shoot(pid);
            panic!("{label}: process {pid} does not end:{threads}");
        };
        (said, status.code())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut speaking) = self.speaking.take() {
            let _ = speaking.child.kill();
            let _ = speaking.child.wait();
        }
    }
}

/// What the threads of a process wait for, for people.
fn threads_of(pid: u32) -> String {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: std::path::PathBuf| {
        format!("\n{} in {}", read(task.join("comm")).trim(), read(task.join("wchan")))
    };
    tasks.map(|task| line(task.path())).collect()
}

/// Kills a process that nobody has waited for yet.
fn shoot(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// For children: says that the store is open, and waits to be told to go. What is returned turns false when the parent
/// wants the child to end.
fn ready() -> Arc<AtomicBool> {
    say("ready");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let is_wanted = Arc::new(AtomicBool::new(!line.is_empty()));
    let wanted = Arc::clone(&is_wanted);
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {}
        wanted.store(false, Ordering::Relaxed);
    });
    is_wanted
}

/// An empty tree whose store has been made.
fn prepared(options: Options) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    options.open(scratch.path()).unwrap().close().unwrap();
    scratch
}

/// Which of these took the commit lock last, as its file says, if one did.
fn holder(root: &Path, workers: &mut [Worker]) -> Option<usize> {
    let note = std::fs::read_to_string(root.join(".atomtree/lock")).ok()?;
    let pid: u32 = note.lines().next()?.strip_prefix("pid ")?.parse().ok()?;
    workers.iter_mut().position(|worker| worker.pid() == pid)
}

/// Lets all begin at once.
fn go(workers: &mut [Worker]) {
    workers.iter_mut().for_each(|worker| drop(worker.wait_for("ready")));
    workers.iter_mut().for_each(|worker| worker.tell("go"));
}

/// Lets all end at once; returns what each of them still said.
#[track_caller]
fn end(mut workers: Vec<Worker>) -> Vec<Vec<String>> {
    workers.iter_mut().for_each(Worker::stop);
    workers.into_iter().map(Worker::end).collect()
}

/// As [`Store::transact`], for as many conflicts as it takes. Returns how often it gave up besides.
fn insist<T>(
    store: &Store,
    mut change: impl FnMut(&mut Transaction) -> Result<T, Error>,
) -> Result<(T, Receipt, u64), Error> {
    let begun = Instant::now();
    for given_up in 0.. {
        match store.transact(&mut change) {
            Err(error) if error.kind() == ErrorKind::Conflict && begun.elapsed() < PATIENCE => {}
            result => return result.map(|(value, receipt)| (value, receipt, given_up)),
        }
    }
    unreachable!("it is over when the patience is")
}

/// The number in a file; 0 if there is none.
fn number(tx: &mut Transaction, path: &str) -> Result<u64, Error> {
    if !tx.exists(path)? {
        return Ok(0);
    }
    let text = String::from_utf8(tx.read(path)?).expect("it is text");
    Ok(text.trim_end().parse().unwrap_or_else(|error| panic!("{path} holds {text:?}: {error}")))
}
