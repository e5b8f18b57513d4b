//! The command, with all that it starts: started so that it can be found again, waited for, ended.
//!
//! What is started first is this program again: it notes in the guard who it is, enters the control group, and only then
//! becomes the command. So whoever finds the guard knows what runs under it, whenever this program was killed.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use atomtree::vfs::os::command;
use atomtree::vfs::{Command as Started, ProcessIdentity};
use atomtree::{Guard, GuardedCommand};
use signal_hook::consts::SIGTERM;

use super::Signals;
use crate::answer::{Failure, complain};
use crate::arguments::Common;

/// How long a command may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How often signals are looked for.
const LOOK: Duration = Duration::from_millis(10);

/// The exit status of what could not be executed, and of what was not found, as in a shell.
const NOT_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself, or by a signal from elsewhere, with this exit status.
    Exited(u8),
    /// It took too long.
    TimedOut,
    /// This program was asked to stop by this signal.
    Interrupted(i32),
}

/// The running command.
pub(super) struct Child {
    process: Option<ProcessIdentity>,
    started: Started,
    /// Whether it leads a process group of its own.
    is_leader: bool,
    ended: Receiver<io::Result<ExitStatus>>,
}

impl Child {
    pub(super) fn start(common: &Common, guard: &Guard, words: &[OsString]) -> Result<Self, Failure> {
        // What loses its parents becomes ours, and is found.
        command::adopt_orphans().map_err(|error| Failure::of_io("adopt what the command leaves", &error))?;
        let group = command::make_group(&format!("atomtree-{}", guard.id()));
        let GuardedCommand { name, value } = guard.command();
        let mut first = Command::new("/proc/self/exe");
        first.arg0("atomtree").arg("--root").arg(&common.root).args(["run-child", guard.id()]);
        if let Some(group) = &group {
            first.arg("--group").arg(group);
        }
        first.arg("--").args(words).env(&name, &value);
        // A group of its own can be signalled as a whole; but at a terminal it would be in the background.
        let is_leader = !io::stdin().is_terminal();
        if is_leader {
            first.process_group(0);
        }
        let mut child = first.spawn().map_err(|error| Failure::of_io("start the command", &error))?;
        // It can't be gone before it was waited for.
        let process = command::identity(child.id()).ok();
        let leader = process.clone();
        let started = Started { variable: format!("{name}={value}"), leader, group };
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            // Nobody listens any more if it had to be ended.
            let _ = sender.send(child.wait());
        });
        Ok(Self { process, started, is_leader, ended })
    }

    /// Waits until the command ends, or has to be ended; then it was asked to, and may have done so or not.
    pub(super) fn wait(&self, signals: &Signals, deadline: Option<Instant>) -> Ending {
        loop {
            if let Some(status) = self.wait_for(LOOK) {
                return Ending::Exited(status);
            }
            if let Some(signal) = signals.take() {
                // At a terminal the command has got an interrupt too, and decides itself what that means.
                if self.is_leader || signal == SIGTERM {
                    self.ask(signal, signals);
                    return Ending::Interrupted(signal);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.ask(SIGTERM, signals);
                return Ending::TimedOut;
            }
        }
    }

    /// Asks the command to end, and gives it a while; not if asked again.
    fn ask(&self, signal: i32, signals: &Signals) {
        if let Some(process) = &self.process {
            // Whatever can't be asked is killed later.
            let _ = command::signal(process, signal, self.is_leader);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && signals.take().is_none() {
            if self.wait_for(LOOK).is_some() {
                return;
            }
        }
    }

    fn wait_for(&self, time: Duration) -> Option<u8> {
        match self.ended.recv_timeout(time) {
            Ok(Ok(status)) => Some(match (status.code(), status.signal()) {
                (Some(code), _) => code as u8,
                (None, Some(signal)) => super::by_signal(signal),
                (None, None) => super::OWN_FAILURE,
            }),
            Err(RecvTimeoutError::Timeout) => None,
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Some(super::OWN_FAILURE),
        }
    }

    /// Kills everything that the command has started. Returns what can't be ended.
    pub(super) fn end(self) -> io::Result<Vec<ProcessIdentity>> {
        let left = command::end(&self.started, &[std::process::id()]);
        command::reap_orphans();
        left
    }
}

/// What was started first: says who it is, and becomes the command. Returns only if that fails, with the exit status.
pub(crate) fn enter(common: &Common, id: &str, group: Option<&PathBuf>, words: &[OsString]) -> u8 {
    let group = group.filter(|group| match command::enter_group(group) {
        Ok(()) => true,
        Err(_) => false,
    });
    if let Err(error) = atomtree::note_guarded_command(&common.root, id, group.map(PathBuf::as_path)) {
        complain(&format!("the command is not started: {error}"));
        return super::OWN_FAILURE;
    }
    let Some((program, arguments)) = words.split_first() else { return NOT_FOUND };
    let error = Command::new(program).args(arguments).exec();
    complain(&format!("could not start {}: {error}", Path::new(program).display()));
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTED }
}
