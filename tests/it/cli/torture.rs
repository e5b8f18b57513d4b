//! `atomtree torture`: it finds nothing wrong where nothing is, finds whatever is wrong, and leaves what it says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use atomtree_tests::signals::{Signal, signal};
use atomtree_tests::volume::{Kind, Volume};
use serde_json::Value;

use super::{PATIENCE, Ran, Tree, program, run};

/// The exit status of a broken promise.
const BROKEN: i32 = 7;

fn torture(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["--json", "torture", "--root"]).arg(root).args(arguments);
    command
}

fn tortured(root: &Path, arguments: &[&str]) -> (Value, Ran) {
    let ran = run(torture(root, arguments), b"");
    assert_eq!(ran.err, "", "{ran:?}");
    (serde_json::from_str(&ran.out).unwrap(), ran)
}

#[test]
fn a_short_run_finds_nothing_wrong_and_leaves_nothing() {
    let tree = Tree::new();
    let (found, ran) = tortured(&tree.path("made/for/it"), &["--minutes", "0.03", "--seed", "5"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.out.starts_with(r#"{"ok":true,"verdict":"fine","stopped":false,"rounds":"#), "{ran:?}");
    for key in ["rounds", "kills", "kills_creating", "commits", "acknowledged", "checked"] {
        assert!(found[key].as_u64().is_some_and(|count| count > 0), "{key}: {ran:?}");
    }
    assert!(found["seconds"].as_f64().is_some_and(|seconds| seconds >= 1.8), "{ran:?}");
    assert_eq!((&found["seed"], &found["not_shown"]), (&5.into(), &"power cuts".into()), "{ran:?}");
    assert!(found["file_system"].is_string() && found.get("kept").is_none(), "{ran:?}");
    assert_eq!(fs::read_dir(tree.path("made/for")).unwrap().count(), 0);

    // An empty directory is taken, and given back empty; people are told what will be done, and what was shown.
    fs::create_dir(tree.path("empty")).unwrap();
    let mut command = Command::new(program());
    command.arg("torture").arg("--root").arg(tree.path("empty")).args(["--minutes", "0.01"]);
    let ran = run(command, b"");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.contains(" free, of which up to 128 MiB are used; seed "), "{ran:?}");
    assert!(ran.out.lines().last().unwrap().starts_with("Fine: nothing that was acknowledged"), "{ran:?}");
    assert_eq!(fs::read_dir(tree.path("empty")).unwrap().count(), 0);
}

#[test]
fn it_runs_on_a_file_system_of_its_own() {
    let volume = match Volume::create(Kind::Ext4, 512 << 20, false) {
        Ok(volume) => volume,
        Err(reason) => {
            println!("skipped: torture on ext4: {reason}");
            return;
        }
    };
    let root = volume.path().join("torture");
    let (found, ran) = tortured(&root, &["--minutes", "0.03", "--keep"]);
    assert_eq!((ran.status, &found["file_system"]), (0, &"ext4".into()), "{ran:?}");
    assert!(found.get("warning").is_none() && found["kept"] == root.to_str().unwrap(), "{ran:?}");
    let (checked, ran) = tortured(&root, &["--check"]);
    assert_eq!((ran.status, &checked["checked"]), (0, &1.into()), "{ran:?}");
    assert_eq!(checked["commits"], found["commits"].as_u64().unwrap() + 1, "{ran:?}");

    // What it does not do itself: the power goes while it runs.
    let running = Running::start(volume.path().join("cut"));
    let root = running.root.clone();
    // A log that the power takes away shows nothing; the run goes on before it is cut.
    let log = fs::File::open(root.join("torture.log")).unwrap();
    log.sync_all().unwrap();
    let bytes = || log.metadata().unwrap().len();
    let synced = bytes();
    wait_until(|| bytes() > synced);
    drop(log);
    let cut = volume.cut_power();
    if let Err(reason) = &cut {
        println!("skipped: a power cut while torture runs: {reason}");
        signal(&running.child, Signal::KILL);
    }
    let (failed, output) = running.end();
    if cut.is_ok() {
        // Which call met it first decides on the error.
        let error = (output.status.code(), failed["error"].as_str().unwrap_or_default());
        let errors = [(1, "io"), (4, "poisoned"), (5, "committed_not_applied"), (6, "outcome_unknown")];
        assert!(errors.iter().any(|(status, code)| error == (Some(*status), *code)), "{output:?}");
        let told = failed["message"].as_str().unwrap_or_default();
        assert!(told.contains("nothing is shown, and everything is kept in "), "{told}");
        volume.mount_again().unwrap();
        let (checked, ran) = tortured(&root, &["--check"]);
        assert_eq!((ran.status, &checked["verdict"]), (0, &"fine".into()), "{ran:?}");
    }
    drop(volume);

    let small = Volume::create(Kind::Ext4, 0, false).expect("a larger one could be had");
    let (refused, ran) = tortured(&small.path().join("torture"), &[]);
    assert_eq!((ran.status, &refused["error"]), (1, &"no_space".into()), "{ran:?}");
    assert!(!small.path().join("torture").exists());
}

#[test]
fn what_is_not_its_own_is_refused() {
    let tree = Tree::new();
    tree.write("file", "stays");
    let refused = |root: &Path, arguments: &[&str]| {
        let (answer, ran) = tortured(root, arguments);
        assert_eq!((ran.status, &answer["ok"]), (1, &false.into()), "{ran:?}");
        assert_eq!(answer["path"], root.to_str().unwrap(), "{ran:?}");
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        (text("error"), text("message"))
    };
    let root = tree.dir.path();
    let (code, message) = refused(root, &[]);
    assert_eq!(code, "not_empty");
    assert!(
        message.starts_with(root.to_str().unwrap()) && message.contains("name one that is empty"),
        "{message}"
    );
    assert_eq!(refused(&tree.path("file"), &[]).0, "not_a_directory");
    let (code, message) = refused(root, &["--check"]);
    assert!(code == "not_found" && message.contains("torture.log"), "{message}");
    tree.write("torture.log", "atomtree 0 torture, seed=many\n");
    assert_eq!(refused(root, &["--check"]).0, "invalid_input");
    assert_eq!(fs::read_dir(root).unwrap().count(), 2);
    for misuse in [["--minutes", "0"], ["--minutes", "-1"], ["--minutes", "NaN"], ["--check", "--keep"]] {
        assert_eq!(run(torture(root, &misuse), b"").status, 2, "{misuse:?}");
    }
}

/// A run that goes on until it is ended.
struct Running {
    child: Child,
    root: PathBuf,
}

impl Running {
    fn start(root: PathBuf) -> Self {
        let mut command = torture(&root, &["--minutes", "5"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let running = Self { child, root };
        // Until something that was acknowledged has survived a kill.
        let is_acknowledged = |line: &&str| {
            let counts = line.split("; acknowledged ").nth(1).unwrap_or_default();
            line.starts_with("round ") && counts.split('=').skip(1).any(|count| !count.starts_with('0'))
        };
        wait_until(|| {
            let log = fs::read_to_string(running.root.join("torture.log")).unwrap_or_default();
            log.lines().skip_while(|line| !is_acknowledged(line)).any(|line| line.contains("is fine"))
        });
        running
    }

    fn end(self) -> (Value, Output) {
        let output = self.child.wait_with_output().unwrap();
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output)
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "it never comes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a writer works below this directory.
fn has_writer(root: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let is_one = |line: &Vec<u8>| {
        let line = String::from_utf8_lossy(line);
        line.contains("torture-writer") && line.contains(root.to_str().unwrap())
    };
    lines.into_iter().any(|line| is_one(&line))
}

/// Goal: however it is ended, no writer outlives it, and a verdict is given where one can be. Method: the signal of
/// Ctrl-C, after which nothing is left; and a kill, after which everything is, and is found whole.
#[test]
fn it_ends_when_it_is_told_to_and_takes_its_writers_along() {
    let tree = Tree::new();
    let running = Running::start(tree.path("torture"));
    signal(&running.child, Signal::INT);
    let root = running.root.clone();
    let (found, output) = running.end();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
    assert_eq!((&found["verdict"], &found["stopped"]), (&"fine".into(), &true.into()), "{output:?}");
    assert!(found["checked"].as_u64().is_some_and(|checked| checked > 1), "{output:?}");
    assert!(!root.exists() && !has_writer(&root));

    let running = Running::start(tree.path("torture"));
    wait_until(|| has_writer(&root));
    signal(&running.child, Signal::KILL);
    running.end();
    wait_until(|| !has_writer(&root));
    let (found, ran) = tortured(&root, &["--check"]);
    assert_eq!((ran.status, &found["verdict"]), (0, &"fine".into()), "{ran:?}");
    assert_eq!(found["not_shown"], "what was acknowledged after the last line of torture.log");
}

/// Goal: what somebody else does to the tree is no transaction's effect, and is found while it runs. Method: a name
/// that no worker gives.
#[test]
fn a_tree_that_changes_meanwhile_is_a_broken_promise() {
    let tree = Tree::new();
    let running = Running::start(tree.path("torture"));
    let root = running.root.clone();
    // Moved in, so that nobody finds it before it is written.
    fs::write(tree.path("stranger"), "x").unwrap();
    wait_until(|| fs::rename(tree.path("stranger"), root.join("tree/w0/stranger")).is_ok());
    let (found, output) = running.end();
    assert_eq!(output.status.code(), Some(BROKEN), "{output:?}");
    assert_eq!((&found["ok"], &found["verdict"]), (&false.into(), &"broken".into()), "{output:?}");
    let told = found["broken"].as_str().unwrap();
    assert!(told.contains("w0/stranger: expected nothing, found a file of 1 bytes"), "{told}");
    assert_eq!(found["kept"], root.to_str().unwrap(), "{output:?}");
    let log = fs::read_to_string(root.join("torture.log")).unwrap();
    assert!(log.ends_with(&format!("broken: {told}\n")) && log.contains(&format!("seed={}", found["seed"])));
    assert!(root.join("tree/w0/stranger").exists());
}

/// Goal: each kind of harm is found and named. Method: a tree that a run has left is copied, one thing in the copy is
/// changed, and the copy checked.
#[test]
fn whatever_is_changed_in_a_tree_is_found() {
    let tree = Tree::new();
    let kept = tree.path("kept");
    // On a machine that does much else a short run may not come to what is changed below.
    for minutes in ["0.03", "0.1", "0.3", "1"] {
        let (_, ran) = tortured(&kept, &["--minutes", minutes, "--keep"]);
        assert_eq!(ran.status, 0, "{ran:?}");
        if kept.join("tree/w7").exists() && kept.join("tree/shared").exists() {
            break;
        }
        fs::remove_dir_all(&kept).unwrap();
    }
    let largest = |dir: &Path| largest_file_below(dir).1;
    let harms: [(&str, &dyn Fn(&Path), &str); 14] = [
        ("nothing", &|_| {}, ""),
        (
            "a byte",
            &|root| change(&largest(&root.join("tree/w7")), |content| content[50] ^= 1),
            "from byte 50 on",
        ),
        (
            "an end",
            &|root| change(&largest(&root.join("tree/w7")), |content| content.truncate(content.len() - 1)),
            "after transaction",
        ),
        ("a file", &|root| fs::remove_file(largest(&root.join("tree/w7"))).unwrap(), "found nothing"),
        ("a mode", &|root| set_mode(&largest(&root.join("tree/w7")), 0o611), "mode 0611"),
        (
            "a directory's mode",
            &|root| set_mode(&root.join("tree/w7"), 0o711),
            "w7: expected a directory, mode 0755",
        ),
        ("a kind", &|root| replace_by_link(&largest(&root.join("tree/w7"))), "found a symlink to x"),
        (
            "a new name",
            &|root| fs::write(root.join("tree/new"), "").unwrap(),
            "new was made by no transaction",
        ),
        ("a worker", &|root| fs::remove_dir_all(root.join("tree/w7")).unwrap(), "w7 is at 0, and"),
        ("a count", &|root| fs::write(root.join("tree/shared"), "0").unwrap(), "shared is at 0, and"),
        ("an acknowledgement", &append_to_log, "w7 is at "),
        (
            "a quarantine",
            &|root| fs::write(root.join("tree/.atomtree/quarantine/1"), "").unwrap(),
            "quarantined: 1",
        ),
        ("the history", &remove_oldest_manifests, "the history has transaction"),
        (
            "the store",
            &|root| change(&root.join("tree/.atomtree/store"), |content| content[20] ^= 1),
            ".atomtree/store",
        ),
    ];
    for (harm, harmed, told) in harms {
        let copy = tree.path("copy");
        let copied = Command::new("cp").arg("-a").arg(&kept).arg(&copy).status().unwrap();
        assert!(copied.success());
        harmed(&copy);
        let (found, ran) = tortured(&copy, &["--check"]);
        let broken = found["broken"].as_str().unwrap_or_default();
        let status = if told.is_empty() { 0 } else { BROKEN };
        assert!(ran.status == status && broken.contains(told), "{harm}: {ran:?}");
        fs::remove_dir_all(copy).unwrap();
    }

    // Where the log says of nothing that it was acknowledged, nothing can be missing, and so nothing is shown.
    change(&kept.join("torture.log"), |log| {
        log.truncate(log.iter().position(|byte| *byte == b'\n').expect("the line of the seed") + 1);
    });
    let (found, ran) = tortured(&kept, &["--check"]);
    assert_eq!((ran.status, &found["verdict"]), (1, &"nothing".into()), "{ran:?}");
}

fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(path).unwrap();
    edit(&mut content);
    fs::write(path, content).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn replace_by_link(path: &Path) {
    fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("x", path).unwrap();
}

fn append_to_log(root: &Path) {
    change(&root.join("torture.log"), |log| log.extend(b"; acknowledged w7=999999\n"));
}

fn largest_file_below(dir: &Path) -> (u64, PathBuf) {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (fs::metadata(&path).unwrap().len(), path)).max().expect("there is a file")
}

/// Removes all manifests that begin with the oldest transaction: after a kill a longer one may stand beside a shorter.
fn remove_oldest_manifests(root: &Path) {
    let history = fs::read_dir(root.join("tree/.atomtree/history")).unwrap();
    let manifests: Vec<PathBuf> = history.map(|entry| entry.unwrap().path()).collect();
    let first =
        |path: &Path| path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    let oldest = manifests.iter().map(|path| first(path)).min().expect("something was settled");
    manifests.iter().filter(|path| first(path) == oldest).for_each(|path| fs::remove_file(path).unwrap());
}
