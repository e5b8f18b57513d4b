//! This program run again as somebody else: a member of several that share a store, a neighbour that writes to the same
//! file system, a victim to be killed.
//!
//! A child says `ready`, waits for a line, works, and answers with one line of JSON. It ends when its standard input
//! does, so none outlives its parent.

mod member;
mod neighbour;
mod victim;

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use atomtree_tests::signals::{Signal, signal};
use clap::Subcommand;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, On};

pub use member::{COUNTER, DIR, MemberAnswer};
pub use neighbour::NeighbourAnswer;
pub use victim::{VICTIM_COMMITS, VICTIM_FILES_EACH, victims_path};

/// What a child is told to be.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// One of several processes that commit to a store.
    #[command(hide = true)]
    Member(member::Member),
    /// Writes 100 MB a second.
    #[command(hide = true)]
    Neighbour {
        /// Where.
        dir: PathBuf,
    },
    /// Commits, and waits to be killed.
    #[command(hide = true)]
    Victim {
        /// The root.
        dir: PathBuf,
    },
}

impl Role {
    /// What the child does.
    pub fn play(&self) -> Result<(), Failure> {
        match self {
            Self::Member(member) => member.play(),
            Self::Neighbour { dir } => neighbour::play(dir),
            Self::Victim { dir } => victim::play(dir),
        }
    }
}

/// A child of this program.
pub struct Actor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    what: &'static str,
}

impl Actor {
    /// Starts one, and waits until it is ready.
    pub fn start(what: &'static str, arguments: &[String]) -> Result<Self, Failure> {
        let program = std::env::current_exe().on("find", "this program")?;
        let mut child = Command::new(&program)
            .arg(what)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .on("run", program)?;
        let input = child.stdin.take().expect("it is a pipe");
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut actor = Self { child, input, output, what };
        let line = actor.line()?;
        if line == "ready" { Ok(actor) } else { Err(actor.failure(&line)) }
    }

    /// Lets it begin, or end what has no end of its own.
    pub fn go(&mut self) -> Result<(), Failure> {
        self.input.write_all(b"go\n").on("talk to", self.what)
    }

    /// Its answer, when it has one.
    pub fn answer<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let line = self.line()?;
        let Ok(answer) = serde_json::from_str(&line) else { return Err(self.failure(&line)) };
        self.child.wait().on("wait for", self.what)?;
        Ok(answer)
    }

    /// Kills it at once.
    pub fn kill(mut self) -> Result<(), Failure> {
        signal(&self.child, Signal::KILL);
        self.child.wait().map(drop).on("wait for", self.what)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line).on("listen to", self.what)?;
        Ok(line.trim().to_owned())
    }

    /// What the child says on standard error is the reason.
    fn failure(&mut self, line: &str) -> Failure {
        let mut reason = String::new();
        if let Some(error) = self.child.stderr.take() {
            // It has said something unexpected or nothing, so it is about to end.
            let _ = BufReader::new(error).read_line(&mut reason);
        }
        let reason = reason.trim().trim_start_matches("atomtree-rivals: ");
        Failure::new("use the process that is a", self.what, if reason.is_empty() { line } else { reason })
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that this child is ready, and waits for the parent.
fn wait_for_go() -> Result<(), Failure> {
    say("ready")?;
    let mut line = String::new();
    let bytes = stdin().read_line(&mut line).on("listen to", "the parent")?;
    if bytes == 0 {
        return Err(Failure::new("go on without", "the parent", "it has closed the pipe"));
    }
    Ok(())
}

fn answer(value: &impl Serialize) -> Result<(), Failure> {
    say(&serde_json::to_string(value).on("put together", "an answer")?)
}

fn say(line: &str) -> Result<(), Failure> {
    writeln!(stdout(), "{line}").and_then(|()| stdout().flush()).on("talk to", "the parent")
}
