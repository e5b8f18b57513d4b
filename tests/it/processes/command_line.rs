//! The `atomtree` program on a store that others have open.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use atomtree::Checkpoints;
use atomtree_tests::signals::Signal;
use serde_json::Value;

use super::{PATIENCE, Worker, ready};
use crate::basics::{child, child_root, commit, inspect, small};
use crate::cli::program;
use crate::kills::operations::stopping;
use crate::kills::say;

/// The exit status of a store that others have.
const LOCKED: i32 = 3;

fn start(root: &Path, arguments: &[&str], input: &str) -> Child {
    let mut command = Command::new(program());
    command.arg("--root").arg(root).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that is refused at once may not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child
}

fn run(root: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = start(root, arguments, input).wait_with_output().unwrap();
    let said = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code(), said)
}

fn status(root: &Path) -> Value {
    let (code, said) = run(root, &["--json", "status"], "");
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// A member that commits once it is told to; it stops itself where `ATOMTREE_TARGETS` says.
fn commit_once(root: &Path) {
    let storage = stopping();
    let options = small().checkpoints(Checkpoints::Manual).lock_timeout(PATIENCE);
    let store = options.vfs(storage.vfs()).open(root).unwrap();
    let wanted = ready();
    storage.enter("commit");
    say("commits");
    commit(&store, |tx| tx.write(format!("by-{}", std::process::id()), "x")).unwrap();
    storage.enter("rest");
    say("committed");
    while wanted.load(std::sync::atomic::Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    store.close().unwrap();
}

/// Goal: `status` says who has the store open, who holds the commit lock and who waits for it, and since when, as text and
/// as JSON, without waiting itself; `--wait` and `--exclusive` do what they say, and name who is in the way. Method: one
/// member that stops itself in a commit, one that waits for it, and one that does nothing.
#[test]
fn status_shows_who_holds_and_who_waits() {
    let test = "processes::command_line::status_shows_who_holds_and_who_waits";
    if let Some(root) = child_root() {
        return commit_once(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let begun = Instant::now();
    let mut workers: Vec<Worker> = [("holder", "commit:SyncData:1"), ("waiter", ""), ("idle", "")]
        .into_iter()
        .map(|(label, target)| {
            let mut worker = Worker::start_command(child(test, root).env("ATOMTREE_TARGETS", target), label);
            worker.wait_for("ready");
            worker
        })
        .collect();
    let pids: Vec<u64> = workers.iter_mut().map(|worker| u64::from(worker.pid())).collect();
    let found = status(root);
    let members = |found: &Value| -> Vec<u64> {
        found["members"].as_array().unwrap().iter().map(|member| member["pid"].as_u64().unwrap()).collect()
    };
    assert_eq!(members(&found), pids, "in the order in which they came: {found}");
    assert!(found.get("committing").is_none(), "{found}");
    assert_eq!(found["holder"]["pid"].as_u64(), Some(pids[0]), "{found}");
    workers[0].tell("go");
    workers[0].wait_for("stops");
    workers[1].tell("go");
    workers[1].wait_for("commits");
    let found = loop {
        let found = status(root);
        if found["members"][1].get("waiting_since").is_some() {
            break found;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody is said to wait: {found}");
    };
    assert_eq!(found["committing"]["pid"].as_u64(), Some(pids[0]), "{found}");
    assert_eq!(found["committing"]["program"], found["members"][0]["program"], "{found}");
    for time in
        [&found["committing"]["since"], &found["members"][2]["since"], &found["members"][1]["waiting_since"]]
    {
        let time = time.as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{found}");
    }
    for other in [0, 2] {
        assert!(found["members"][other].get("waiting_since").is_none(), "{found}");
    }
    let (code, table) = run(root, &["status"], "");
    assert_eq!(code, Some(0), "{table}");
    assert!(table.contains("open in 3 processes"), "{table}");
    for (pid, waits) in pids.iter().zip([false, true, false]) {
        let line = table.lines().find(|line| line.contains(&format!("process {pid} ("))).unwrap();
        assert_eq!(line.contains("waits for the commit lock since"), waits, "{table}");
    }
    let line =
        table.lines().find(|line| line.starts_with("commit lock")).unwrap_or_else(|| panic!("{table}"));
    assert!(line.contains(&format!("process {} (", pids[0])), "{table}");

    let document = r#"{"ops":[{"op":"write","path":"applied","text":"x"}]}"#;
    for (wait, least) in [("0", Duration::ZERO), ("400ms", Duration::from_millis(400))] {
        let asked = Instant::now();
        let (code, said) = run(root, &["--json", "apply", "--wait", wait, "-"], document);
        assert_eq!(code, Some(LOCKED), "{said}");
        assert!(said.contains(&format!("process {} (", pids[0])) && said.contains("--wait"), "{said}");
        assert!((least..least + Duration::from_secs(5)).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    }
    assert!(!root.join("applied").exists());
    workers[0].signal(Signal::CONT);
    workers[0].wait_for("committed");
    workers[1].wait_for("committed");
    let found = status(root);
    assert!(
        found.get("committing").is_none() && found["members"][1].get("waiting_since").is_none(),
        "{found}"
    );
    assert_eq!((found["unsettled"].as_u64(), members(&found).len()), (Some(2), 3), "{found}");

    // Not beside others.
    let (code, said) = run(root, &["--json", "apply", "--exclusive", "--wait", "0", "-"], document);
    assert_eq!(code, Some(LOCKED), "{said}");
    assert!(said.contains("has had the store open for"), "{said}");
    let waiting = start(root, &["--json", "apply", "--exclusive", "-"], document);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!root.join("applied").exists());
    workers.into_iter().for_each(|worker| drop(worker.end()));
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(root.join("applied")).unwrap(), "x");
    let found = status(root);
    assert!(found.get("members").is_none() && found["clean"] == true, "{found}");
    let (_, table) = run(root, &["status"], "");
    assert!(table.contains("closed"), "{table}");
}

/// Goal: many programs apply documents to one tree at once, while others look at it; each of them succeeds, or says that it
/// was a conflict; none is told of damage. Method: sixteen that append to one file and write one of their own, several
/// times, with `status`, `verify` and `log` in between.
#[test]
fn many_programs_apply_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let mut appended = 0;
    let begun = Instant::now();
    for round in 0..4 {
        let running: Vec<Child> = (0..16)
            .map(|number| {
                let document = format!(
                    r#"{{"ops":[{{"op":"append","path":"shared","text":"{round}-{number}\n"}},{{"op":"write","path":"own/{number}","text":"{round}"}}]}}"#
                );
                start(root, &["--json", "apply", "--segment-bytes", "65536", "-"], &document)
            })
            .collect();
        if round > 0 {
            for look in [&["--json", "status"][..], &["--json", "verify"], &["--json", "log"]] {
                let (code, said) = run(root, look, "");
                assert_eq!(code, Some(0), "{look:?}: {said}");
            }
        }
        for child in running {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(output.stderr.is_empty(), "{said} {}", String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "round {round}: {said}");
            appended += 1;
        }
    }
    let shared = fs::read_to_string(root.join("shared")).unwrap();
    let mut lines: Vec<&str> = shared.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!((lines.len(), shared.lines().count()), (appended, appended), "{shared}");
    let status = inspect(root).status().unwrap();
    assert!(status.is_clean && status.last_tx.0 == appended as u64, "{status:?}");
    println!("{appended} programs in {:.1?}", begun.elapsed());
}
