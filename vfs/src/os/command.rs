//! Finds and ends everything that a command started, whatever became of its parents.
//!
//! A process belongs to the command if it is in the control group that was made for it, if its environment says so, if
//! it is in the process group or session that the first process leads, or if one of its parents belongs. What detaches,
//! cleans its environment and was orphaned is found by its parents only, as long as those that adopt orphans are told
//! apart: so whoever runs a command adopts them itself ([`adopt_orphans`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::process::{Stat, boot_id, identify};
use crate::{Command, ProcessIdentity};

/// How long a process may take to die that was killed: one that waits for a disk does so at the end of that wait.
const DYING_MAX: Duration = Duration::from_secs(10);

/// From now on what is orphaned below this process becomes its child.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Who the process with this pid is.
pub fn identity(pid: u32) -> io::Result<ProcessIdentity> {
    identify(pid)
}

/// Takes the exit status of every child that has ended.
pub fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Sends a signal, by its number, to a process, or to the process group that it leads. What is gone needs none.
pub fn signal(process: &ProcessIdentity, number: i32, to_group: bool) -> io::Result<()> {
    let (Some(pid), Some(signal)) = (pid_of(process.pid), Signal::from_named_raw(number)) else {
        return Err(Errno::INVAL.into());
    };
    if !Stat::read(process.pid).is_ok_and(|stat| stat.started == process.started) {
        return Ok(());
    }
    let sent = if to_group {
        rustix::process::kill_process_group(pid, signal)
    } else {
        rustix::process::kill_process(pid, signal)
    };
    match sent {
        Err(Errno::SRCH) => Ok(()),
        sent => Ok(sent?),
    }
}

/// Makes a control group of this name below the one that this process is in; `None` where that is not permitted.
pub fn make_group(name: &str) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(|mount| Path::new(mount).join(own))
        .find(|path| path.join("cgroup.procs").exists())?
        .join(name);
    fs::create_dir(&group).ok()?;
    // Without this file, which came with Linux 5.14, a group is of no use here.
    if group.join("cgroup.kill").exists() {
        return Some(group);
    }
    let _ = fs::remove_dir(&group);
    None
}

/// Enters a control group; what this process starts will be in it too.
pub fn enter_group(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// Kills what still runs of the command, and everything below `parents`, until nothing is left or it takes too long.
/// Returns what could not be ended. If the calling process belongs to the command itself, it ends nothing, and returns
/// that.
pub fn end(command: &Command, parents: &[u32]) -> io::Result<Vec<ProcessIdentity>> {
    let own = std::process::id();
    let boot = boot_id()?;
    let deadline = Instant::now() + DYING_MAX;
    let mut pause = Duration::from_micros(200);
    loop {
        let running = running()?;
        let members = members(&running, command, parents, &boot);
        if members.contains(&own) && !parents.contains(&own) {
            return Ok(vec![identify(own)?]);
        }
        let members: Vec<u32> = members.into_iter().filter(|pid| !parents.contains(pid)).collect();
        if members.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let identity = |pid: &u32| {
                let stat = &running[pid];
                let (boot, program) = (boot.clone(), stat.program.clone());
                ProcessIdentity { pid: *pid, started: stat.started, boot, program }
            };
            return Ok(members.iter().map(identity).collect());
        }
        if let Some(group) = &command.group {
            // All at once, and without those that are just being forked slipping away. It may be gone already.
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        for pid in members {
            kill(pid, running[&pid].started);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
        if !parents.is_empty() {
            reap_orphans();
        }
    }
    if let Some(group) = &command.group {
        // Nothing is in it any more; one that stays costs a name.
        let _ = fs::remove_dir(group);
    }
    Ok(Vec::new())
}

/// Kills the process that has this pid, if it still is the one that was seen.
fn kill(pid: u32, started: u64) {
    let Some(pid) = pid_of(pid) else { return };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => {
            // Held now, its pid can't pass to another.
            let is_same = Stat::read(pid.as_raw_nonzero().get().cast_unsigned())
                .is_ok_and(|stat| stat.started == started);
            if is_same {
                // Not permitted, or gone: the next look tells.
                let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
            }
        }
        Err(Errno::NOSYS | Errno::PERM) => {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        Err(_) => {}
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Every process that runs and can be seen.
fn running() -> io::Result<BTreeMap<u32, Stat>> {
    let mut running = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended since.
        if let Ok(stat) = Stat::read(pid)
            && stat.is_running()
        {
            running.insert(pid, stat);
        }
    }
    Ok(running)
}

/// Those of the running processes that belong to the command or lie below one of `parents`, which belong too.
fn members(running: &BTreeMap<u32, Stat>, command: &Command, parents: &[u32], boot: &str) -> BTreeSet<u32> {
    let mut members: BTreeSet<u32> = parents.iter().copied().collect();
    if let Some(group) = &command.group
        && let Ok(pids) = fs::read_to_string(group.join("cgroup.procs"))
    {
        members.extend(
            pids.lines().filter_map(|pid| pid.parse::<u32>().ok()).filter(|pid| running.contains_key(pid)),
        );
    }
    // A number that another process has by now says nothing.
    let leader = command.leader.as_ref().filter(|leader| {
        leader.boot == boot && running.get(&leader.pid).is_none_or(|stat| stat.started == leader.started)
    });
    for (pid, stat) in running {
        let is_led = leader.is_some_and(|leader| {
            [*pid, stat.group, stat.session].contains(&leader.pid) && stat.started >= leader.started
        });
        if is_led || has_variable(*pid, &command.variable) {
            members.insert(*pid);
        }
    }
    loop {
        let below = running
            .iter()
            .filter(|(pid, stat)| members.contains(&stat.parent) && !members.contains(pid))
            .map(|(pid, _)| *pid)
            .collect::<Vec<_>>();
        if below.is_empty() {
            return members;
        }
        members.extend(below);
    }
}

/// Whether the environment that the process was started with holds the variable; what can't be read does not.
fn has_variable(pid: u32, variable: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|byte| *byte == 0).any(|found| found == std::ffi::OsStr::new(variable).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command as Program, Stdio};

    fn command(variable: &str) -> Command {
        Command { variable: variable.into(), leader: None, group: None }
    }

    fn wait_for(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn belonging(command: &Command) -> Vec<u32> {
        let running = running().unwrap();
        members(&running, command, &[], &boot_id().unwrap()).into_iter().collect()
    }

    /// What has detached itself from its parents and its session is found by its environment, and what has cleaned that
    /// by its group.
    #[test]
    fn detached_processes_are_found_and_ended() {
        let variable = format!("ATOMTREE_TEST_{}=1", std::process::id());
        let (name, value) = variable.split_once('=').unwrap();
        let script = "setsid sleep 61 & env -i sleep 61 & sleep 61";
        let mut child = Program::new("sh")
            .args(["-c", script])
            .env(name, value)
            .process_group(0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sought = Command { leader: Some(identify(child.id()).unwrap()), ..command(&variable) };
        wait_for("the three sleep", || belonging(&sought).len() == 4);
        // The shell goes first: then nothing but the variable leads to the one that detached.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(belonging(&command(&variable)).len() >= 2);
        assert_eq!(end(&command(&variable), &[]).unwrap(), []);
        assert_eq!(belonging(&command(&variable)), Vec::<u32>::new());
        let by_group = Command { variable: "ATOMTREE_TEST_NONE=1".into(), ..sought };
        assert_eq!(belonging(&by_group).len(), 1);
        assert_eq!(end(&by_group, &[]).unwrap(), []);
        assert_eq!(belonging(&by_group), Vec::<u32>::new());
    }

    #[test]
    fn whoever_belongs_itself_ends_nothing() {
        let own = identify(std::process::id()).unwrap();
        let sought = Command { leader: Some(own.clone()), ..command("ATOMTREE_TEST_NOBODY=1") };
        assert_eq!(end(&sought, &[]).unwrap().as_slice(), std::slice::from_ref(&own));
        // Another process that has its number by now is another.
        let stale = ProcessIdentity { started: own.started + 1, ..own };
        let sought = Command { leader: Some(stale), ..command("ATOMTREE_TEST_NOBODY=1") };
        assert_eq!(end(&sought, &[]).unwrap(), []);
    }
}
