//! `atomtree run`: what commands do is kept or undone, whatever they start and however they, or it, end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atomtree_tests::signals::{Signal, signal};

use super::{Ran, Tree, run};
use crate::guards::{Stood, all, left};

impl Tree {
    /// `atomtree run FLAGS -- sh -c SCRIPT`, in the tree.
    fn under_guard(&self, flags: &[&str], script: &str) -> Ran {
        run(self.guarded(flags, script), b"")
    }

    fn guarded(&self, flags: &[&str], script: &str) -> Command {
        let arguments = [&["run", "--segment-bytes", "65536"], flags, &["--", "sh", "-c", script]].concat();
        let mut command = self.command(&arguments);
        command.current_dir(self.dir.path());
        command
    }

    fn started(&self, flags: &[&str], script: &str) -> Child {
        let mut command = self.guarded(flags, script);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn all(&self) -> BTreeMap<PathBuf, Stood> {
        all(self.dir.path())
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Runs a script that uses git, with nobody's configuration, and returns what it says.
    fn git(&self, script: &str) -> String {
        let script = format!(
            "set -e; export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; {script}"
        );
        let output = Command::new("sh").args(["-c", &script]).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn sources() -> Tree {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("src/deep")).unwrap();
    for number in 0..20 {
        tree.write(&format!("src/{number}.rs"), &format!("fn old_name_{number}() {{ old_name(); }}\n"));
        tree.write(&format!("src/deep/{number}.rs"), "old_name\n");
    }
    tree.write("top", "top\n");
    tree
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ticks(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.len())
}

/// Something that goes on writing to `ticking` in the tree, and to a file outside of it.
fn ticker(outside: &Path) -> String {
    format!("while :; do echo x >> ticking; echo x >> {}; sleep 0.01; done", outside.display())
}

fn is_still(outside: &Path) -> bool {
    let before = ticks(outside);
    std::thread::sleep(Duration::from_millis(100));
    before == ticks(outside)
}

/// Goal: kept on success, undone otherwise; the status is the command's. Method: `sed -i` over a source tree, and every
/// way to fail.
#[test]
fn edits_stand_or_fall_with_the_command() {
    let tree = sources();
    let before = tree.all();
    let sed = "sed -i s/old_name/new_name/g src/*.rs src/deep/*.rs; chmod 700 src; rm top; echo x > made;";
    for (script, status) in [
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exec /no/such/program", 127),
        ("exec /etc/passwd", 126),
    ] {
        let ran = tree.under_guard(&[], &format!("{sed} {script}"));
        assert_eq!(ran.status, status, "{script}: {ran:?}");
        assert_eq!(tree.all(), before, "{script}");
        assert!(ran.err.contains("1 name created, 41 changed, 1 removed"), "{ran:?}");
    }
    let missing = tree.run(&["run", "--", "/no/such/program"]);
    assert_eq!(missing.status, 127, "{missing:?}");
    let ran = tree.under_guard(&["--dry-run"], sed);
    assert_eq!(ran.status, 0);
    assert!(ran.err.contains("--- src/7.rs before\n+++ src/7.rs after\n"), "{ran:?}");
    assert!(ran.err.contains("\n+fn new_name_7() { new_name(); }"), "{ran:?}");
    assert_eq!(tree.all(), before);
    let changes =
        "chmod 600 src/1.rs; ln -sf top src/2.rs; printf '\\0\\1' > src/3.rs; head -c 400000 /dev/zero > big";
    let ran = tree.under_guard(&["--json", "--dry-run"], changes);
    let said: serde_json::Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let shown = |path: &str| {
        let all = said["changes"].as_array().unwrap();
        all.iter().find(|change| change["path"] == path).unwrap_or_else(|| panic!("{path}: {ran:?}")).clone()
    };
    assert_eq!((&shown("src/1.rs")["after"]["mode"], shown("src/1.rs").get("diff")), (&"0600".into(), None));
    assert_eq!(shown("src/2.rs")["after"]["kind"], "symlink");
    assert!(shown("src/2.rs")["diff"].as_str().unwrap().contains("\n+top"), "{ran:?}");
    assert_eq!((shown("src/3.rs")["after"]["size"].clone(), shown("src/3.rs").get("diff")), (2.into(), None));
    assert_eq!((shown("big")["after"]["size"].clone(), shown("big").get("before")), (400_000.into(), None));
    assert_eq!(tree.all(), before);
    let ran = tree.under_guard(&[], sed);
    assert_eq!((ran.status, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(ran.err.starts_with("atomtree: kept: 1 name created"), "{ran:?}");
    assert_eq!(tree.read("src/7.rs"), "fn new_name_7() { new_name(); }\n");
    assert!(tree.has("made") && !tree.has("top"));
    assert_eq!(left(tree.dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn answers_are_frozen() {
    let tree = sources();
    let masked = |ran: &Ran| {
        let (head, _) = ran.out.rsplit_once("\"ms\":").unwrap_or_else(|| panic!("{ran:?}"));
        head.to_owned()
    };
    let script = "echo x > made; echo y > src/1.rs; rm src/2.rs; exit 4";
    let failed = tree.under_guard(&["--json"], script);
    assert_eq!(failed.status, 4);
    let names = r#""created":["made"],"changed":["src/1.rs"],"removed":["src/2.rs"],"#;
    assert_eq!(masked(&failed), format!(r#"{{"ok":false,"kept":false,"status":4,{names}"#));
    let saved = tree.path("saved");
    let ran =
        tree.under_guard(&["--json", "--ignore", "/saved", "--save-failed", saved.to_str().unwrap()], script);
    let (made, edited) = (saved.join("made"), saved.join("src/1.rs"));
    let expected = format!(
        r#"{{"ok":false,"kept":false,"status":4,{names}"saved":[{{"path":"made","saved":"{}"}},{{"path":"src/1.rs","saved":"{}"}}],"#,
        made.display(),
        edited.display()
    );
    assert_eq!(masked(&ran), expected);
    assert_eq!(
        (fs::read_to_string(made).unwrap(), fs::read_to_string(edited).unwrap()),
        ("x\n".into(), "y\n".into())
    );
    let late = tree.under_guard(&["--json", "--timeout", "0.2"], "sleep 60");
    assert_eq!(late.status, 124);
    let nothing = r#""created":[],"changed":[],"removed":[],"#;
    assert_eq!(
        masked(&late),
        format!(r#"{{"ok":false,"kept":false,"status":124,"timed_out":true,{nothing}"#)
    );
    let kept = tree.under_guard(&["--json"], "echo said; echo x > made");
    let (said, answer) = kept.out.split_once('\n').unwrap();
    assert_eq!(said, "said");
    assert!(answer.starts_with(
        r#"{"ok":true,"kept":true,"status":0,"created":["made"],"changed":[],"removed":[],"ms":"#
    ));
    // What it can't do itself is 125, whatever the command would have answered.
    let refused = tree.run(&["--json", "run", "--guard", "", "--", "true"]);
    assert_eq!(refused.status, 125);
    assert!(refused.out.starts_with(r#"{"ok":false,"error":"invalid_input","message":"#), "{refused:?}");
    assert_eq!(tree.run(&["run", "true"]).status, 2, "a command comes after two dashes");
}

/// Goal: nothing that the command has started writes on after a roll back, whatever it did to get away.
#[test]
fn what_detaches_is_ended_before_a_roll_back() {
    let tree = sources();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let ticker = ticker(outside.path());
    let before = tree.all();
    for start in [
        format!("({ticker}) &"),
        format!("setsid sh -c '{ticker}' &"),
        format!("(setsid sh -c '{ticker}' &) &"),
        format!("nohup setsid sh -c 'trap \"\" TERM HUP; {ticker}' >/dev/null 2>&1 &"),
        format!("env -i PATH=$PATH setsid sh -c '{ticker}' &"),
    ] {
        fs::write(outside.path(), "").unwrap();
        let ran =
            tree.under_guard(&[], &format!("{start} while [ ! -s ticking ]; do sleep 0.01; done; exit 9"));
        assert_eq!(ran.status, 9, "{start}: {ran:?}");
        assert!(is_still(outside.path()), "{start}");
        assert_eq!(tree.all(), before, "{start}");
    }
}

/// Goal: whoever asks this program to stop finds the tree as it was. Method: each signal, to the program alone.
#[test]
fn signals_roll_back() {
    let tree = sources();
    let before = tree.all();
    for (sent, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        for trap in ["", "trap '' INT TERM HUP; "] {
            let mut child = tree
                .started(&[], &format!("{trap}echo x > src/1.rs; touch started; sleep 60 & wait; sleep 60"));
            wait_for("the command has started", || tree.has("started"));
            signal(&child, sent);
            if !trap.is_empty() {
                // Nobody has to wait for a command that does not listen.
                std::thread::sleep(Duration::from_millis(100));
                signal(&child, sent);
            }
            assert_eq!(child.wait().unwrap().code(), Some(status), "{sent:?} {trap}");
            assert_eq!(tree.all(), before, "{sent:?} {trap}");
        }
    }
}

/// Goal: when `atomtree run` itself is killed, the next command that opens the store ends what goes on, and rolls back;
/// what never writes leaves both alone. Method: kills, beside commands that detach and go on.
#[test]
fn a_killed_run_is_rolled_back_by_the_next_open() {
    let tree = sources();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let ticker = ticker(outside.path());
    let before = tree.all();
    for script in [
        format!("rm -r src/deep; {ticker}"),
        format!("rm -r src/deep; (setsid sh -c '{ticker}' &); sleep 60"),
        format!(
            "mv src moved; ln -s moved src; (setsid sh -c 'trap \"\" HUP TERM; {ticker}' &) ; exec sleep 60"
        ),
    ] {
        fs::write(outside.path(), "").unwrap();
        let mut child = tree.started(&[], &script);
        wait_for("the command has started", || ticks(outside.path()) > 3);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_still(outside.path()), "the command goes on: {script}");
        let looked = tree.run(&["status"]);
        assert_eq!(looked.status, 0, "{looked:?}");
        assert!(!is_still(outside.path()));
        let recovered = tree.run(&["--json", "recover"]);
        assert_eq!(recovered.status, 0, "{script}: {recovered:?}");
        assert!(recovered.out.contains(r#""rolled_back":1,"#), "{script}: {recovered:?}");
        assert!(is_still(outside.path()), "{script}");
        assert_eq!(tree.all(), before, "{script}");
    }
    // One that the command itself has started ends nobody: it would end itself.
    let program = super::program().display();
    let script =
        format!("touch started; sleep 0.5; {program} recover >/dev/null 2>&1; echo $? >> status; sleep 60");
    let mut child = tree.started(&[], &script);
    wait_for("the command has started", || tree.has("started"));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the command has tried", || tree.has("status") && !tree.read("status").is_empty());
    assert_eq!(tree.read("status"), "3\n");
    let recovered = tree.run(&["recover"]);
    assert_eq!(recovered.status, 0, "{recovered:?}");
    assert_eq!(tree.all(), before);
}

/// Goal: `status` tells which guards are open, whose, since when and on what, and which were left; and changes nothing.
#[test]
fn open_guards_are_told() {
    let tree = sources();
    let told = || {
        let ran = tree.run(&["--json", "status"]);
        assert_eq!(ran.status, 0, "{ran:?}");
        let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        (status["guards"].clone(), tree.run(&["status"]).out)
    };
    let mut child =
        tree.started(&["--guard", "/src", "--ignore", "*.log"], "echo x > src/1.rs; exec sleep 60");
    wait_for("the command has started", || tree.read("src/1.rs") == "x\n");
    let (guards, table) = told();
    assert_eq!(guards.as_array().map(Vec::len), Some(1), "{guards}");
    let guard = &guards[0];
    assert_eq!((&guard["pid"], &guard["program"]), (&child.id().into(), &"atomtree".into()));
    assert_eq!(guard["abandoned"], false);
    assert_eq!((&guard["guarded"], &guard["ignored"]), (&vec!["/src"].into(), &vec!["*.log"].into()));
    assert!(
        guard["since"].as_str().unwrap().starts_with("20") && guard["name"].as_str().unwrap().len() == 16
    );
    let line = format!("/src by process {} (atomtree) since", child.id());
    assert!(table.contains(&line) && !table.contains("has gone"), "{table}");
    child.kill().unwrap();
    child.wait().unwrap();
    let (guards, table) = told();
    assert_eq!(guards[0]["abandoned"], true, "{guards}");
    assert!(table.contains(&line) && table.contains("the next command that opens the store rolls it back"));
    assert_eq!(tree.read("src/1.rs"), "x\n", "looking changes nothing");
    assert_eq!(tree.run(&["recover"]).status, 0);
    assert_eq!(told().0, serde_json::Value::Null);
    assert!(tree.read("src/1.rs").starts_with("fn old"));
}

/// Kills at random instants, of opening, running, keeping and rolling back.
#[test]
fn a_run_killed_at_any_instant_leaves_the_old_tree_or_the_new() {
    let tree = sources();
    let before = tree.all();
    let script = |status: u32| {
        format!("sed -i s/old/new/ src/*.rs; mv src/deep src/other; echo x > made; exit {status}")
    };
    let whole = Instant::now();
    assert_eq!(tree.under_guard(&[], &script(1)).status, 1);
    let took = whole.elapsed();
    assert_eq!(tree.all(), before);
    let (mut old, mut new) = (0, 0);
    for round in 0..40_u32 {
        let scratch = sources();
        assert_eq!(scratch.under_guard(&[], "exit 1").status, 1);
        let before = scratch.all();
        let status = round % 2;
        let mut child = scratch.started(&[], &script(status));
        std::thread::sleep(took * (round / 2) / 16);
        child.kill().unwrap();
        let ended = child.wait().unwrap().code();
        let recovered = scratch.run(&["recover"]);
        assert_eq!(recovered.status, 0, "round {round}: {recovered:?}");
        let found = scratch.all();
        if found == before {
            old += 1;
            assert!(ended != Some(0), "round {round}: it was kept, and is gone");
        } else {
            new += 1;
            assert_eq!(status, 0, "round {round}: it was not to be kept");
            let names = |name: &str| scratch.has(name);
            assert!(names("made") && names("src/other/3.rs") && !names("src/deep"), "round {round}");
            assert!((0..20).all(|number| scratch.read(&format!("src/{number}.rs")).starts_with("fn new")));
        }
    }
    println!("{old} old trees, {new} new ones");
}

/// Goal: thousands of renames come back. Method: every name gets another, then the command fails; and once it succeeds.
#[test]
fn a_storm_of_renames_comes_back() {
    let tree = Tree::new();
    for dir in 0..50 {
        fs::create_dir(tree.path(&format!("d{dir}"))).unwrap();
        for file in 0..100 {
            tree.write(&format!("d{dir}/f{file}"), &format!("{dir} {file}"));
        }
    }
    let before = tree.all();
    let script = "for d in d*; do for f in $d/*; do echo \"$f $f.renamed\"; done; done > list;
        python3 -c 'import os,sys\nfor l in open(\"list\"):\n a,b=l.split()\n os.rename(a,b)' || exit 77; rm list;
        for d in d1 d2 d3; do mv $d x$d; done; mv d4 xd4/ 2>/dev/null;";
    let start = Instant::now();
    let ran = tree.under_guard(&["--json"], &format!("{script} exit 5"));
    if ran.status == 77 {
        println!("skipped: there is no python3");
        return;
    }
    assert_eq!(ran.status, 5, "{}", ran.err);
    assert_eq!(tree.all(), before);
    println!("{:?} for it all", start.elapsed());
    let ran = tree.under_guard(&[], script);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(tree.has("d9/f99.renamed") && !tree.has("d9/f99") && tree.has("xd1/f5.renamed"));
}

fn is_there(program: &str) -> bool {
    let is_there = Command::new("sh").args(["-c", &format!("command -v {program} >/dev/null")]).status();
    is_there.is_ok_and(|status| status.success()) || {
        println!("skipped: there is no {program}");
        false
    }
}

/// Goal: programs that people run come back whole. Method: a checkout of another branch, interrupted; `.git` with it.
#[test]
fn a_checkout_is_undone() {
    if !is_there("git") {
        return;
    }
    let tree = sources();
    let git = |script: &str| tree.git(script);
    git(
        "git init -q -b main; echo .atomtree > .git/info/exclude; git add -A; git commit -qm one; git checkout -qb other; \
        sed -i s/old/new/ src/*.rs; git rm -q top; echo x > made; git add -A; git commit -qm two; git checkout -q main",
    );
    let before = tree.all();
    let ran = tree.under_guard(&[], "git checkout -q other && test -e made && exit 1");
    assert_eq!(ran.status, 1, "{ran:?}");
    assert_eq!(tree.all(), before);
    assert_eq!(git("git symbolic-ref --short HEAD; git fsck"), "main\n");
    let ran = tree.under_guard(&[], "git checkout -q other");
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(git("git symbolic-ref --short HEAD; git status --short"), "other\n");
}

/// Goal: git's own files are not touched unless the guard covers them. Method: a commit under a guard of the sources
/// alone, which is rolled back: the sources are, the commit stays.
#[test]
fn a_repository_outside_the_guard_is_left_alone() {
    if !is_there("git") {
        return;
    }
    let tree = sources();
    tree.git("git init -q -b main; echo .atomtree > .git/info/exclude; git add -A; git commit -qm one");
    let sources_before = fs::read(tree.path("src/1.rs")).unwrap();
    let script = "sed -i s/old/new/ src/1.rs; git -c user.name=a -c user.email=a@b commit -qam two; exit 3";
    let ran =
        tree.under_guard(&["--guard", "/src"], &format!("export GIT_CONFIG_GLOBAL=/dev/null; {script}"));
    assert_eq!(ran.status, 3, "{ran:?}");
    assert_eq!(fs::read(tree.path("src/1.rs")).unwrap(), sources_before);
    assert_eq!(tree.git("git fsck; git log --format=%s"), "two\none\n");
    // What stands there is what the first commit had.
    assert_eq!(tree.git("git status --short; git diff --stat HEAD^"), " M src/1.rs\n");
}

/// Goal: `--gitignore` leaves out what git ignores, and nothing else; without it, ignored files are guarded too. Method:
/// every file is edited and a roll back follows; which edits stay is compared with what git itself ignores.
#[test]
fn what_git_ignores_is_left_alone_if_asked() {
    if !is_there("git") {
        return;
    }
    let tree = Tree::new();
    for (file, patterns) in [
        (
            ".gitignore",
            "# built\n*.log\n/target/\n!kept.log\nx{1,2}\ndocs/*.html\ncache/\n\\#odd\nspace\\ \n[z-a]\n**/any/where\n",
        ),
        ("sub/.gitignore", "!*.log\r\n/only\r\n"),
        ("a[b/.gitignore", "deep/*\n!deep/kept\n"),
        ("target/.gitignore", "!*\n"),
    ] {
        tree.write(file, patterns);
    }
    let files = [
        "a.log",
        "kept.log",
        "deep/a.log",
        "deep/kept.log",
        "sub/a.log",
        "sub/only",
        "sub/deep/only",
        "target/x",
        "sub/target/x",
        "x1",
        "x{1,2}",
        "docs/a.html",
        "docs/deep/a.html",
        "cache/a",
        "sub/cache/a",
        "cached",
        "#odd",
        "space ",
        "space",
        "z-a",
        "q/any/where",
        "any/where/x",
        "a[b/deep/x",
        "a[b/deep/kept",
        "ab/deep/x",
        "plain",
    ];
    for file in files {
        tree.write(file, "old");
    }
    tree.git("git init -q; echo .atomtree > .git/info/exclude");
    let ignored = tree.git("git ls-files -z --others --ignored --exclude-per-directory=.gitignore");
    let mut ignored: Vec<_> =
        ignored.split_terminator('\0').filter(|name| !name.starts_with(".atomtree")).collect();
    // Not edited below.
    ignored.retain(|name| *name != "target/.gitignore");
    ignored.sort_unstable();
    assert!(ignored.contains(&"deep/a.log") && !ignored.contains(&"x1"), "{ignored:?}");
    let edit_all = "find . -path ./.git -prune -o -path ./.atomtree -prune -o -type f ! -name .gitignore \
        -exec sh -c 'for f; do echo new > \"$f\"; done' sh {} +; echo new > fresh.log; echo new > fresh; exit 1";
    let edited = || {
        let mut names: Vec<_> = files.iter().copied().filter(|file| tree.read(file) == "new\n").collect();
        names.sort_unstable();
        names
    };
    assert_eq!(tree.under_guard(&[], edit_all).status, 1);
    assert_eq!(edited(), [""; 0], "ignored files are guarded too");
    assert_eq!(tree.under_guard(&["--gitignore"], edit_all).status, 1);
    assert_eq!(edited(), ignored);
    assert!(tree.has("fresh.log") && !tree.has("fresh"));
    for file in files {
        tree.write(file, "old");
    }
    assert_eq!(
        tree.under_guard(&["--gitignore", "--ignore", "!cache", "--ignore", "plain"], edit_all).status,
        1
    );
    let expected = files.iter().filter(|file| ignored.contains(file) || **file == "plain");
    let mut expected: Vec<_> = expected.copied().filter(|file| !file.contains("cache/")).collect();
    expected.sort_unstable();
    assert_eq!(edited(), expected);
}

/// Goal: a list that can't be read is told before the command starts, with the file's name and what to do.
#[test]
fn a_gitignore_that_can_not_be_read_is_refused() {
    let tree = sources();
    for (content, reason) in [
        (&b"!caf\xe9\n"[..], "no UTF-8"),
        (&"a-rather-long-name\n".repeat(5000).into_bytes(), "bytes long"),
        (&vec![b'#'; (1 << 20) + 1], "more than 1048576 bytes"),
    ] {
        fs::write(tree.path("src/.gitignore"), content).unwrap();
        let ran = tree.under_guard(&["--gitignore"], "touch started");
        assert_eq!(ran.status, 125, "{ran:?}");
        assert!(ran.err.contains("src/.gitignore") && ran.err.contains(reason), "{ran:?}");
        assert!(!tree.has("started"));
        assert_eq!(tree.under_guard(&[], "exit 0").status, 0);
    }
}

/// Goal: a tool that mends sources one by one, and finds that the last does not parse, has changed nothing.
#[test]
fn a_tool_that_mends_sources_is_undone() {
    if !is_there("python3") {
        return;
    }
    let tree = sources();
    tree.write("src/zz.rs", "fn broken( {\n");
    let before = tree.all();
    // As `cargo fix` does: read all, write each in place or through another file, then check what came of it.
    let tool = r"python3 - <<'EOF'
import os, pathlib, sys
for number, path in enumerate(sorted(pathlib.Path('src').rglob('*.rs'))):
    mended = path.read_text().replace('old_name', 'new_name')
    if number % 2:
        path.write_text(mended)
    else:
        new = path.with_suffix('.new'); new.write_text(mended); os.replace(new, path)
broken = [path for path in pathlib.Path('src').rglob('*.rs') if '(' in path.read_text() and ')' not in path.read_text()]
sys.exit(101 if broken else 0)
EOF";
    assert_eq!(tree.under_guard(&[], tool).status, 101);
    assert_eq!(tree.all(), before);
    tree.write("src/zz.rs", "fn whole() {}\n");
    assert_eq!(tree.under_guard(&[], tool).status, 0);
    assert!(tree.read("src/7.rs").contains("new_name_7") && tree.read("src/deep/7.rs").contains("new_name"));
}

/// Goal: a migration that fails half way leaves no half. Method: a database that is changed in two transactions, the
/// second of which fails.
#[test]
fn a_failing_migration_is_undone() {
    if !is_there("python3") {
        return;
    }
    let tree = Tree::new();
    let migrate = |text: &str| {
        format!(
            "python3 - <<'EOF'\nimport sqlite3\ndb=sqlite3.connect('app.db')\ndb.execute('pragma journal_mode=wal')\n{text}\nEOF"
        )
    };
    let first = "db.execute('create table t(a)')\ndb.execute('insert into t values (1)')\ndb.commit()";
    let ran = tree.under_guard(&[], &migrate(first));
    assert_eq!(ran.status, 0, "{ran:?}");
    tree.write("schema.sql", "create table t(a);\n");
    let before = tree.all();
    let second = "db.execute('alter table t add column b')\ndb.commit()\nopen('schema.sql','a').write('-- half')\n\
        db.execute('alter table missing add column c')";
    let ran = tree.under_guard(&[], &migrate(second));
    assert_eq!(ran.status, 1, "{ran:?}");
    assert_eq!(tree.all(), before);
    let look = Command::new("python3")
        .args(["-c", "import sqlite3;print(sqlite3.connect('app.db').execute('select * from t').fetchall())"])
        .current_dir(tree.dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(look.stdout).unwrap(), "[(1,)]\n");
}

/// Goal: an installation that is killed half way leaves nothing. Method: a wheel made here, of many files.
#[test]
fn an_installation_that_is_killed_leaves_nothing() {
    let has_pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !has_pip.is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no pip");
        return;
    }
    let tree = Tree::new();
    let wheels = tempfile::tempdir().unwrap();
    let packing = "import zipfile,sys\nz=zipfile.ZipFile(sys.argv[1]+'/big-1-py3-none-any.whl','w')\nr=[]\n\
        for i in range(1500):\n n='big/m%d.py'%i; z.writestr(n,'x=%d\\n'%i*50); r.append(n+',,')\n\
        d='big-1.dist-info/'\nz.writestr(d+'METADATA','Metadata-Version: 2.1\\nName: big\\nVersion: 1\\n')\n\
        z.writestr(d+'WHEEL','Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        z.writestr(d+'RECORD','\\n'.join(r)+'\\n'+d+'METADATA,,\\n'+d+'WHEEL,,\\n'+d+'RECORD,,\\n')\nz.close()\n";
    let made = Command::new("python3").args(["-c", packing]).arg(wheels.path()).status().unwrap();
    assert!(made.success());
    fs::create_dir(tree.path("site")).unwrap();
    tree.write("site/kept.py", "x = 1\n");
    assert_eq!(tree.under_guard(&[], "exit 1").status, 1);
    let before = tree.all();
    let install = format!(
        "python3 -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target site {}/big-1-py3-none-any.whl",
        wheels.path().display()
    );
    // It moves what it has unpacked to its place name by name.
    let mut child = tree.started(&[], &format!("TMPDIR=$PWD {install}"));
    let start = Instant::now();
    wait_for("something is installed", || {
        all(tree.dir.path()).len() > before.len() + 50 || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    println!("killed after {:?}", start.elapsed());
    let is_half = tree.all() != before;
    let recovered = tree.run(&["recover"]);
    assert_eq!(recovered.status, 0, "{recovered:?}");
    assert!(is_half || tree.has("site/big"), "it was killed half way");
    if !tree.has("site/big/m1499.py") || !tree.has("site/big-1.dist-info/RECORD") {
        assert_eq!(tree.all(), before);
    }
    let ran = tree.under_guard(&[], &format!("rm -rf site/big*; {install}"));
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(tree.has("site/big/m1499.py") && tree.has("site/kept.py"));
}

/// Goal: patterns say what is guarded, on the command line as in the library.
#[test]
fn patterns_say_what_is_guarded() {
    let tree = sources();
    let ran = tree.under_guard(
        &["--guard", "/src", "--ignore", "*.log"],
        "echo x > src/1.rs; echo x > src/a.log; echo x > top; exit 1",
    );
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(tree.read("src/1.rs").starts_with("fn old"));
    assert_eq!((tree.read("src/a.log"), tree.read("top")), ("x\n".into(), "x\n".into()));
}

/// Goal: a full disk is told before the command starts. Method: a tree on a small file system, with no room for images.
#[test]
fn no_space_is_told_before_the_command_starts() {
    let mount = tempfile::tempdir().unwrap();
    let made =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(mount.path()).output();
    if !made.is_ok_and(|output| output.status.success()) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let root = mount.path().to_str().unwrap();
    fs::write(mount.path().join("big"), vec![1; 12 << 20]).unwrap();
    let program = super::program().to_str().unwrap();
    let output = Command::new("sh")
        .args([
            "-c",
            &format!("{program} --root {root} --json run --segment-bytes 65536 -- touch {root}/started"),
        ])
        .output()
        .unwrap();
    let has_started = mount.path().join("started").exists();
    let is_gone = Command::new("umount").arg(mount.path()).status().unwrap();
    assert!(is_gone.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.starts_with(r#"{"ok":false,"error":"no_space""#), "{said}");
    assert!(!has_started);
}

/// Goal: a store that belongs to root is not opened to others by a guard: everything in it is closed.
#[test]
fn a_guard_is_closed_to_others() {
    let tree = sources();
    assert_eq!(tree.under_guard(&[], "exit 0").status, 0);
    for entry in fs::read_dir(tree.path(".atomtree/guards")).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}

/// Goal: a roll back that could not bring everything back is a failure of this program's, whatever the command ended with; and
/// what was in its way is told. Method: a command that removes the images; one that puts a file where a directory was that is
/// not guarded itself.
#[test]
fn what_a_roll_back_lost_or_moved_is_told() {
    let tree = sources();
    let script = "rm .atomtree/guards/cache/*; echo edited > top; exit 3";
    let ran = tree.under_guard(&["--json"], script);
    assert_eq!(ran.status, 125, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains(r#""lost":["top"]"#), "{}", ran.out);
    // There is nothing left that could be shown.
    assert_eq!(tree.under_guard(&["--dry-run"], script).status, 125);
    let script = "rm -r src; echo precious > src; exit 3";
    let ran = tree.under_guard(&["--json", "--guard", "src/1.rs"], script);
    assert_eq!(ran.status, 3, "{}{}", ran.out, ran.err);
    let kept = ran.out.split(r#""quarantined":[{"path":"src","kept":""#).nth(1).expect(&ran.out);
    let kept = tree.path(".atomtree").join(kept.split('"').next().unwrap());
    assert_eq!(fs::read_to_string(kept).unwrap(), "precious\n");
}
