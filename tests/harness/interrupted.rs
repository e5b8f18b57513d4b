//! One transaction, committed by a child process that is killed or loses power at instants all along its commit.
//!
//! The child opens the store, puts its transaction together and says `committing` on standard error; commits, and says
//! `acknowledged`; then waits for its input to end before it closes. Whoever started it kills it, or cuts the power of
//! the volume, and judges what the next open makes of the tree.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use crate::signals::{Signal, signal};
use crate::volume::{Kind, Volume};

/// For the child: says what the parent waits for, in one write.
pub fn say(word: &str) {
    // A parent that is gone has nothing to be told.
    let _ = std::io::stderr().write_all(format!("{word}\n").as_bytes());
}

/// For the child: returns when the parent wants it to go on to its end.
pub fn wait_for_parent() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// A transaction on a tree, and how to judge what became of it.
pub struct Interrupted<'a> {
    /// Where the trees are.
    pub volume: &'a Volume,
    /// The tree as it is before, on the volume, without a store.
    pub original: &'a Path,
    /// The child, on the tree with this root.
    pub child: &'a dyn Fn(&Path) -> Command,
    /// Opens the tree's store and panics unless it is exactly the old or the new tree; whether it is the new one.
    pub is_new: &'a dyn Fn(&Path, &str) -> bool,
}

/// How many trees were found old, and how many new.
#[derive(Debug, Default)]
pub struct Found {
    /// Nothing of the transaction was there.
    pub old: usize,
    /// All of it was.
    pub new: usize,
}

impl Interrupted<'_> {
    /// Lets the child run to its end. Returns how long the commit took, and the tree.
    pub fn uninterrupted(&self) -> (Duration, PathBuf) {
        let root = self.copy("whole");
        let mut running = Running::start((self.child)(&root));
        running.wait_for("committing");
        let start = Instant::now();
        running.wait_for("acknowledged");
        let took = start.elapsed();
        running.end();
        (took, root)
    }

    /// Kills a child at each of `count` instants, the last of them after the commit was acknowledged.
    pub fn kill(&self, took: Duration, count: u32) -> Found {
        let mut found = Found::default();
        for number in 0..count {
            let label = format!("{}, kill {number}", self.volume.kind().name());
            let root = self.copy("killed");
            let mut running = Running::start((self.child)(&root));
            running.go_on_until(took, number, count);
            let is_acknowledged = running.kill();
            self.judge(&root, is_acknowledged, &label, &mut found);
        }
        found
    }

    /// Cuts the power at each of `count` instants, the last of them after the commit was acknowledged.
    pub fn cut_power(&self, took: Duration, count: u32) -> Found {
        let mut found = Found::default();
        for number in 0..count {
            let label = format!("{}, cut {number}", self.volume.kind().name());
            let root = self.copy("cut");
            run("sync", &["-f", root.to_str().expect("UTF-8")]);
            let mut running = Running::start((self.child)(&root));
            running.go_on_until(took, number, count);
            if self.volume.kind() == Kind::Btrfs {
                // Its image is copied, and must show one moment.
                signal(&running.child, Signal::STOP);
            }
            self.volume.cut_power().unwrap_or_else(|reason| panic!("{label}: {reason}"));
            let is_acknowledged = running.kill();
            self.volume.mount_again().unwrap_or_else(|reason| panic!("{label}: {reason}"));
            self.judge(&root, is_acknowledged, &label, &mut found);
        }
        found
    }

    fn judge(&self, root: &Path, is_acknowledged: bool, label: &str, found: &mut Found) {
        let is_new = (self.is_new)(root, label);
        assert!(is_new || !is_acknowledged, "{label}: it was acknowledged, and the old tree is there");
        *if is_new { &mut found.new } else { &mut found.old } += 1;
        fs::remove_dir_all(root).expect("a test's tree can be removed");
    }

    /// A fresh copy of the original.
    fn copy(&self, name: &str) -> PathBuf {
        let root = self.volume.path().join(name);
        run("cp", &["-a", self.original.to_str().expect("UTF-8"), root.to_str().expect("UTF-8")]);
        root
    }
}

/// A child, and what it says.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    is_acknowledged: bool,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child can be started");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Self { child, lines, is_acknowledged: false }
    }

    /// Waits until the child says this word.
    fn wait_for(&mut self, word: &str) {
        let mut said = Vec::new();
        for line in self.lines.by_ref().map_while(Result::ok) {
            self.is_acknowledged |= line == "acknowledged";
            if line == word {
                return;
            }
            said.push(line);
        }
        panic!("the child ended before it was {word}: {said:#?}");
    }

    /// Lets the child go on to instant `number` of `count`: parts of twice the time that the commit took, then its end.
    fn go_on_until(&mut self, took: Duration, number: u32, count: u32) {
        self.wait_for("committing");
        if number + 1 == count {
            self.wait_for("acknowledged");
        } else {
            // A copy later, with others at work, it may well take twice as long.
            std::thread::sleep(took * 2 * number / (count - 1));
        }
    }

    /// Whether it had acknowledged by then.
    fn kill(mut self) -> bool {
        let _ = self.child.kill();
        self.child.wait().expect("it was started");
        self.is_acknowledged || self.lines.map_while(Result::ok).any(|line| line == "acknowledged")
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        let said: Vec<_> = self.lines.map_while(Result::ok).collect();
        let status = self.child.wait().expect("it was started");
        assert!(status.success(), "{said:#?}");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the tools of every system");
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {reason}");
}
