//! What people and their shells get: color and progress on terminals and nowhere else, completions, manual pages.

use std::fs;
use std::process::Command;
use std::time::Instant;

use super::{Ran, Tree, program, run};

/// The commands that the help lists, in its order.
pub(super) fn commands() -> Vec<String> {
    let help = Tree::new().run(&["help"]).out;
    let listed = help.split("\nCommands:\n").nth(1).expect("it lists commands");
    let listed = listed.split("\n\n").next().unwrap();
    listed.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

const WRITE: &str = r#"{"label":"why","ops":[{"op":"write","path":"a","text":"x"}]}"#;

/// Runs a shell command on a terminal of its own; what it says there, standard error included.
fn on_a_terminal(tree: &Tree, script: &str, variables: &[(&str, &str)]) -> Option<Ran> {
    let mut command = Command::new("script");
    command.args(["-qec", script, "/dev/null"]).current_dir(tree.dir.path()).env("PROGRAM", program());
    command.env_remove("NO_COLOR").env("TERM", "xterm").envs(variables.iter().copied());
    let is_there = Command::new("script").arg("--version").output().is_ok();
    if !is_there {
        println!("skipped: there is no script(1)");
    }
    is_there.then(|| run(command, b""))
}

const ESCAPE: char = '\x1b';

#[test]
fn color_is_for_terminals_unless_asked_for() {
    let tree = Tree::new();
    tree.applied(WRITE);
    let looks = [["status"].as_slice(), &["log"], &["show", "1"], &["verify"], &["stats"]];
    for look in looks {
        for plain in
            [[].as_slice(), &["--color", "auto"], &["--color=never"], &["--json", "--color", "always"]]
        {
            let ran = tree.run(&[plain, look].concat());
            assert!(ran.status == 0 && !ran.out.contains(ESCAPE), "{plain:?} {look:?}: {ran:?}");
        }
        let colored = tree.run(&[&["--color", "always"], look].concat());
        assert!(colored.out.contains(ESCAPE), "{look:?}: {colored:?}");
        let words = look.join(" ");
        let is_colored = |flags: &str, variables: &[(&str, &str)]| {
            let ran = on_a_terminal(&tree, &format!("\"$PROGRAM\" {flags} {words}"), variables)?;
            assert_eq!(ran.status, 0, "{ran:?}");
            Some(ran.out.contains(ESCAPE))
        };
        let Some(by_default) = is_colored("", &[]) else { return };
        assert!(by_default, "{look:?} has color on a terminal");
        assert_eq!(is_colored("", &[("NO_COLOR", "1")]), Some(false));
        assert_eq!(is_colored("", &[("NO_COLOR", "")]), Some(true), "an empty NO_COLOR says nothing");
        assert_eq!(is_colored("", &[("TERM", "dumb")]), Some(false));
        assert_eq!(is_colored("--color never", &[]), Some(false));
        assert_eq!(is_colored("--json", &[]), Some(false));
    }
    // Clap's own words follow the same flag.
    let help = |flags: &str| on_a_terminal(&tree, &format!("\"$PROGRAM\" {flags} --help"), &[]).unwrap().out;
    assert!(help("").contains(ESCAPE) && !help("--color=never").contains(ESCAPE));
    assert!(!help("--color never").contains(ESCAPE));
}

/// Goal: what takes long says so, where somebody watches, and takes it back. Method: a document that comes late.
#[test]
fn progress_is_shown_on_terminals_after_a_second() {
    let tree = Tree::new();
    let late = format!("(sleep 1.6; echo '{WRITE}') | \"$PROGRAM\" ");
    let Some(ran) = on_a_terminal(&tree, &format!("{late} apply -"), &[]) else { return };
    assert!(ran.out.contains("\rreading the document ... 1 s\x1b[K"), "{ran:?}");
    let said = ran.out.find("\r\x1b[K").expect("the line is taken back");
    assert!(
        said < ran.out.find("transaction 1: 1 name changed in ").expect("the answer comes after"),
        "{ran:?}"
    );
    // Answers on the terminal are progress enough; in a file nobody sees them.
    let ran = on_a_terminal(&tree, &format!("{late} batch"), &[]).unwrap();
    assert!(ran.out.starts_with(r#"{"line":1,"ok":true,"#) && !ran.out.contains(ESCAPE), "{ran:?}");
    let slow = format!("(echo '{WRITE}'; sleep 1.6) | \"$PROGRAM\" batch > answers");
    let ran = on_a_terminal(&tree, &slow, &[]).unwrap();
    assert!(ran.out.contains("\r1 transactions answered ... 1 s\x1b[K"), "{ran:?}");
    assert!(tree.read("answers").starts_with(r#"{"line":1,"ok":true,"#));
    // Whoever types is not written over.
    let typed =
        format!("(sleep 1.6; echo '{WRITE}'; sleep 0.2) | script -qec '\"$PROGRAM\" apply -' /dev/null");
    let ran = on_a_terminal(&tree, &typed, &[]).unwrap();
    assert!(ran.out.contains("transaction 4: 1 name changed in ") && !ran.out.contains(ESCAPE), "{ran:?}");
    // Torture works in the current directory if none is named, and leaves nothing there.
    let ran = on_a_terminal(&tree, "\"$PROGRAM\" torture --minutes 0.05", &[]).unwrap();
    assert!(ran.status == 0 && ran.out.contains(" ... 1 s\x1b[K"), "{ran:?}");
    assert!(ran.out.contains("/atomtree-torture-") && ran.out.contains("Fine: "), "{ran:?}");
    let is_left = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().starts_with("atomtree-torture-")
    };
    assert!(!fs::read_dir(tree.dir.path()).unwrap().any(is_left));
    // In a pipe there is none.
    let started = Instant::now();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{late} apply -")]).current_dir(tree.dir.path()).env("PROGRAM", program());
    let ran = run(command, b"");
    assert!(started.elapsed().as_secs() >= 1 && ran.status == 0, "{ran:?}");
    assert!(ran.err.is_empty() && !ran.out.contains(ESCAPE), "{ran:?}");
}

#[test]
fn completions_know_every_command_and_nothing_hidden() {
    let tree = Tree::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = tree.run(&["completions", shell]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        for command in commands() {
            assert!(ran.out.contains(&command), "{shell} does not know {command}");
        }
        for word in ["segment-bytes", "allow-remote", "hard-links"] {
            assert!(ran.out.contains(word), "{shell} does not know {word}");
        }
        for hidden in ["demo-writer", "torture-writer"] {
            assert!(!ran.out.contains(hidden), "{shell} offers {hidden}");
        }
    }
    assert_eq!(tree.run(&["completions", "cobol"]).status, 2);
    // Bash reads it without complaint.
    let script = tree.run(&["completions", "bash"]).out;
    let mut bash = Command::new("bash");
    bash.arg("-n");
    let read = run(bash, script.as_bytes());
    assert_eq!((read.status, read.err.as_str()), (0, ""));
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let tree = Tree::new();
    let page = tree.run(&["man"]);
    assert_eq!((page.status, page.err.as_str()), (0, ""));
    assert!(page.out.contains(".TH atomtree 1") && page.out.contains("Exit status: 0 done"), "{}", page.out);
    fs::create_dir(tree.path("pages")).unwrap();
    let ran = tree.run(&["man", "--dir", tree.path("pages").to_str().unwrap()]);
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    let mut expected = vec!["atomtree.1".to_owned()];
    for command in commands().into_iter().filter(|command| command != "help") {
        assert!(
            page.out.contains(&format!("atomtree\\-{command}(1)")),
            "the page does not mention {command}"
        );
        let own = tree.read(&format!("pages/atomtree-{command}.1"));
        assert!(own.contains(".SH NAME") && own.contains("\\-\\-root"), "{command}: {own}");
        expected.push(format!("atomtree-{command}.1"));
    }
    expected.sort();
    let mut pages: Vec<_> = fs::read_dir(tree.path("pages"))
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    assert_eq!(pages, expected);
    let recover = tree.read("pages/atomtree-recover.1");
    assert!(recover.contains("\\-\\-all") && recover.contains("\\-\\-segment\\-bytes"), "{recover}");
}

/// Goal: the flags of the store are on every command that opens one for writing, and on no other.
#[test]
fn commands_that_write_take_the_options_of_the_store() {
    let tree = Tree::new();
    let flags = [
        "--segment-bytes",
        "--log-bytes-max",
        "--inline-bytes-max",
        "--image-bytes-max",
        "--ballast-bytes",
        "--settle-after-ms",
        "--history-bytes-max",
        "--history-age-max-days",
        "--history-transactions-max",
        "--guard-cache-bytes-max",
        "--adopt",
        "--allow-remote",
        "--exclusive",
        "--wait",
    ];
    for command in commands().iter().filter(|command| *command != "help") {
        let help = tree.run(&[command, "--help"]).out;
        let goes_back = ["undo", "redo", "restore", "cat", "prune", "scrub"].contains(&command.as_str());
        let writes =
            goes_back || ["apply", "batch", "run", "recover", "checkpoint"].contains(&command.as_str());
        for flag in flags {
            assert_eq!(help.contains(flag), writes, "{command} {flag}");
        }
        assert!(help.contains("--allow-owner") && help.contains("--color"), "{command}");
    }
    let ran = tree.run_on(
        &["--json", "apply", "--segment-bytes", "65536", "--log-bytes-max", "5", "-"],
        b"{\"ops\":[]}",
    );
    assert!(ran.status == 1 && ran.out.contains("log_bytes_max is 5"), "{ran:?}");
    let ran = tree.run_on(&["--json", "batch", "--segment-bytes", "131072"], b"{\"ops\":[]}");
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(tree.read(".atomtree/store").contains("segment_bytes 131072"));
}

/// Goal: the unit that comes with the program starts what the program understands. Method: its command line with
/// scratch directories in the place of its own; systemd's own check where there is one.
#[test]
fn the_unit_for_boot_runs() {
    let unit =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/dist/atomtree-recover.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    let words = start.strip_prefix("/usr/local/bin/atomtree ").expect("it starts the program");
    let tree = Tree::new();
    tree.applied(WRITE);
    let dir = tree.dir.path().to_str().unwrap();
    let mut command = Command::new(program());
    command.args(words.split_whitespace().map(|word| if word == "$DIRS" { dir } else { word }));
    let ran = run(command, b"");
    assert_eq!((ran.status, ran.out), (0, format!("{dir}: nothing to recover\n1 store recovered\n")));
    for line in ["Type=oneshot", "DefaultDependencies=no", "After=local-fs.target", "Before=sysinit.target"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let path = tree.path("atomtree-recover.service");
    fs::write(&path, unit.replace("/usr/local/bin/atomtree", program().to_str().unwrap())).unwrap();
    let Ok(verified) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output()
    else {
        println!("skipped: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("atomtree"), "{said}");
}
