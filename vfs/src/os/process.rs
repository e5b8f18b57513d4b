//! Tells processes apart, and the living from the dead, by what `/proc` says.
//!
//! A lock whose holder lives is never taken over, so in doubt a process counts as alive.

use std::fs;
use std::io::{self, Read};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::ProcessIdentity;

/// The process that has this pid now.
pub(super) fn identify(pid: u32) -> io::Result<ProcessIdentity> {
    let stat = Stat::read(pid)?;
    Ok(ProcessIdentity { pid, started: stat.started, boot: boot_id()?, program: stat.program })
}

pub(super) fn is_alive(process: &ProcessIdentity) -> bool {
    if boot_id().is_ok_and(|boot| boot != process.boot) {
        return false;
    }
    match Stat::read(process.pid) {
        Ok(stat) => stat.started == process.started && stat.is_running(),
        // A mount with `hidepid` shows other users' processes to nobody: only a signal tells whether one is there.
        Err(_) => exists(process.pid),
    }
}

/// The process's name comes first, of at most 15 bytes, which may be escaped to four each.
const UMASK_WITHIN_BYTES: usize = 256;

/// The file mode creation mask of this thread.
pub(super) fn umask() -> io::Result<u32> {
    // The calling thread's, since the main thread's is gone once that thread has ended. The mask stands on the second
    // line, so that one short read finds it.
    let mut status = fs::File::open("/proc/thread-self/status")?;
    let mut head = [0; UMASK_WITHIN_BYTES];
    let read = status.read(&mut head)?;
    let lines = head[..read].iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    parse_umask(&head[..lines]).ok_or_else(unreadable)
}

fn parse_umask(status: &[u8]) -> Option<u32> {
    let digits = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Umask:"))?;
    u32::from_str_radix(str::from_utf8(digits).ok()?.trim(), 8).ok()
}

pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn exists(pid: u32) -> bool {
    match i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) {
        Some(pid) => rustix::process::test_kill_process(pid) != Err(Errno::SRCH),
        None => false,
    }
}

/// What `/proc` holds is text that this code understands, or it is not Linux's.
fn unreadable() -> io::Error {
    Errno::PROTO.into()
}

/// The part of `/proc/PID/stat` that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) program: String,
    state: char,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    threads: u64,
    /// Clock ticks since boot.
    pub(super) started: u64,
}

impl Stat {
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(unreadable)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(line);
        // A program's name may hold spaces and parentheses; the fields after it hold neither.
        let (start, end) = (line.find('(')?, line.rfind(')')?);
        let program = line.get(start + 1..end)?.to_owned();
        let fields: Vec<&str> = line.get(end + 1..)?.split_ascii_whitespace().collect();
        // Field 3 of the line, the state, is the first after the name.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            program,
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
        })
    }

    pub(super) fn is_running(&self) -> bool {
        match self.state {
            'X' | 'x' => false,
            // A zombie has given up its locks. But the state is the main thread's, and others may outlive it.
            'Z' => self.threads > 1,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vfs;
    use crate::os::Os;
    use rustix::process::Signal;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    fn sleeper() -> (Child, ProcessIdentity) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = identify(child.id()).unwrap();
        (child, identity)
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn this_process_is_alive() {
        let process = Os.process().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert!(process.started > 0);
        assert_eq!(process.boot.len(), 36);
        assert_eq!(process.program, fs::read_to_string("/proc/self/comm").unwrap().trim());
        assert!(Os.is_alive(&process));
    }

    /// Alive while it runs and while it is stopped, dead as a zombie and after it was waited for.
    #[test]
    fn a_killed_child_is_dead_before_it_is_reaped() {
        let (mut child, process) = sleeper();
        assert!(Os.is_alive(&process));

        rustix::process::kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
        wait_until("the child stops", || Stat::read(process.pid).unwrap().state == 'T');
        assert!(Os.is_alive(&process));

        child.kill().unwrap();
        wait_until("the child becomes a zombie", || Stat::read(process.pid).unwrap().state == 'Z');
        assert!(!Os.is_alive(&process));

        child.wait().unwrap();
        assert!(!Os.is_alive(&process));
    }

    #[test]
    fn another_process_with_the_same_pid_is_another() {
        let process = Os.process().unwrap();
        assert!(!Os.is_alive(&ProcessIdentity { started: process.started + 1, ..process.clone() }));
        assert!(!Os.is_alive(&ProcessIdentity { boot: "another".into(), ..process.clone() }));
        for pid in [0, i32::MAX as u32, u32::MAX] {
            assert!(!Os.is_alive(&ProcessIdentity { pid, ..process.clone() }), "pid {pid}");
        }
        // The first process can't be seen under `hidepid`, but signals know of it.
        assert!(exists(1));
    }

    #[test]
    fn stat_is_parsed_after_the_last_parenthesis() {
        let tail = "S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 3 0 4711 1 2";
        let parsed = Stat::parse(format!("12 (a) R 1 (b) {tail}").as_bytes()).unwrap();
        let expected = Stat {
            program: "a) R 1 (b".into(),
            state: 'S',
            parent: 1,
            group: 2,
            session: 3,
            threads: 3,
            started: 4711,
        };
        assert_eq!(parsed, expected);
        for broken in ["", "12", "12 (a", "12 )a(", "12 (a) S 1 2", "12 (a)"] {
            assert_eq!(Stat::parse(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn a_main_thread_that_ended_leaves_the_process_alive() {
        let stat = |state, threads| {
            let program = String::new();
            Stat { program, state, parent: 1, group: 1, session: 1, threads, started: 0 }
        };
        assert!(stat('Z', 2).is_running());
        assert!(!stat('Z', 1).is_running());
        assert!(!stat('X', 1).is_running());
        for state in ['R', 'S', 'D', 'T', 't', 'I'] {
            assert!(stat(state, 1).is_running());
        }
    }

    #[test]
    fn umask_is_parsed_as_octal() {
        assert_eq!(parse_umask(b"Name:\tx\nUmask:\t0022\nState:\tR\n"), Some(0o22));
        assert_eq!(parse_umask(b"Name:\tx\n"), None);
    }
}
