//! `git add` and `git commit` of the changed files. What is durable is the commit; the work tree's own files are as git
//! leaves them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, rewrite};

/// Nothing in the background, nothing of the user's own settings, and everything synced.
const SETTINGS: [(&str, &str); 6] = [
    ("core.fsync", "all"),
    ("core.fsyncMethod", "fsync"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("user.name", "rivals"),
    ("user.email", "rivals@localhost"),
];

/// See the file's head.
pub(super) struct Git;

impl Rival for Git {
    fn name(&self) -> &'static str {
        "git"
    }

    fn version(&self) -> String {
        let answer = Command::new("git").arg("--version").output();
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
        text.map_or("not installed".into(), |text| text.replace("git version ", ""))
    }

    fn setting(&self) -> &'static str {
        "core.fsync=all, core.fsyncMethod=fsync; add and commit of the changed paths, no gc"
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        if opening.is_shared {
            return Err(Failure::Unsupported("refuses a commit while another process commits"));
        }
        let writer = Open { root: dir.to_owned(), turn: Mutex::new(()) };
        if !dir.join(".git").exists() {
            writer.run(&["init", "--quiet"], b"")?;
            for (key, value) in SETTINGS {
                writer.run(&["config", key, value], b"")?;
            }
        }
        Ok(Box::new(writer))
    }
}

struct Open {
    root: PathBuf,
    /// Two commits at once would be refused.
    turn: Mutex<()>,
}

impl Open {
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Failure> {
        let run = || {
            let mut child = Command::new("git")
                .current_dir(&self.root)
                .args(arguments)
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            child.stdin.take().expect("it is a pipe").write_all(input)?;
            child.wait_with_output()
        };
        let output = run().on("run git in", &self.root)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let reason =
            format!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        Err(Failure::new("use the repository", self.root.display(), reason))
    }
}

impl Writer for Open {
    fn create_dir(&self, dir: &str) -> Result<(), Failure> {
        create_dir(&self.root, dir)
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let mut paths = String::new();
        for file in batch.files() {
            let path = self.root.join(file.path);
            fs::write(&path, file.content).on("write", path)?;
            paths += file.path;
            paths.push('\n');
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.run(&["add", "--pathspec-from-file=-"], paths.as_bytes())?;
        self.run(&["commit", "--quiet", "--no-verify", "--message", "measured"], b"").map(drop)
    }

    /// From the last commit, not from the work tree.
    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.run(&["show", &format!("HEAD:{path}")], b"")
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
