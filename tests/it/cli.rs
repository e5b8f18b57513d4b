//! The `atomtree` program as scripts and agents meet it: real processes, real files, and what they print to the byte.
//!
//! This file drives the program. The modules below it freeze every shape of its answers, ask what errors, streams and
//! hostile documents do to it, what terminals are shown, and whether the demo and the torture hold.

mod batch;
mod demo;
mod errors;
mod hostile;
mod run;
mod shapes;
mod terminal;
mod torture;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;

/// The program, built once with the profile and into the target directory of these tests.
///
/// Cargo tells tests where the binaries of their own package are, and this one belongs to another.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let tests = std::env::current_exe().expect("a process knows its program");
        let profile_dir = tests.ancestors().nth(2).expect("tests lie in <target>/<profile>/deps");
        let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--package", "atomtree-cli", "--profile", profile, "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .arg("--target-dir")
            .arg(profile_dir.parent().expect("a profile lies in the target directory"))
            .status()
            .expect("cargo can be started");
        assert!(built.success(), "the program does not build");
        profile_dir.join("atomtree")
    })
}

/// A scratch tree, its store not made yet.
struct Tree {
    dir: TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Tree {
    fn new() -> Self {
        Self { dir: TempDir::new().expect("there is room for a scratch directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).expect(name);
        std::fs::write(self.path(name), content).expect(name);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.dir.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_on(arguments, b"")
    }

    /// Runs the program to its end with this on standard input.
    fn run_on(&self, arguments: &[&str], input: &[u8]) -> Ran {
        run(self.command(arguments), input)
    }

    /// `atomtree --json apply -` of this document.
    fn apply(&self, document: &str) -> Ran {
        self.apply_with(&[], document)
    }

    /// The same with more arguments.
    fn apply_with(&self, arguments: &[&str], document: &str) -> Ran {
        let arguments = [&["--json", "apply", "--segment-bytes", "65536", "-"], arguments].concat();
        self.run_on(&arguments, document.as_bytes())
    }

    /// As [`Tree::apply`], for documents that only prepare a test.
    fn applied(&self, document: &str) {
        let ran = self.apply(document);
        assert_eq!(ran.status, 0, "{document}: {ran:?}");
    }

    /// A batch that goes on until its input is closed.
    fn batch(&self, arguments: &[&str]) -> Batch {
        let arguments = [&["batch", "--segment-bytes", "65536"], arguments].concat();
        let mut child =
            self.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().try_for_each(|line| sender.send(line.unwrap()))
        });
        Batch { child, input, answers }
    }
}

fn run(mut command: Command, input: &[u8]) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // The program may end without reading it.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    Ran {
        status: output.status.code().expect("the program ends by itself"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// How long a test waits for what should come at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running batch.
struct Batch {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Batch {
    fn say(&mut self, line: &str) {
        self.input.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn answer(&mut self) -> String {
        // One that never comes is a failed test, not a hanging one.
        without_ms(&self.answers.recv_timeout(PATIENCE).expect("an answer comes"))
    }

    /// Closes its input and waits for its end.
    fn end(mut self) -> i32 {
        drop(self.input.take());
        self.child.wait().unwrap().code().expect("the program ends by itself")
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The answer without what depends on the moment: the values of `ms` and `time`, and without LSNs, which count
/// records that nobody outside knows.
fn without_ms(answer: &str) -> String {
    let mut text = String::new();
    let mut rest = answer.trim_end();
    let keys = ["\"ms\":", "\"time\":", "\"lsn\":", "\"uid\":", "\"pid\":"];
    while let Some(at) = keys.iter().filter_map(|key| Some(rest.find(key)? + key.len())).min() {
        text.push_str(&rest[..at]);
        let length = rest[at..].find([',', '}']).expect("a value ends");
        let value: serde_json::Value = serde_json::from_str(&rest[at..at + length]).expect("it is a value");
        let is_root = rest[..at].ends_with("\"uid\":") && value == 0;
        assert!(is_root || value.as_f64().is_some_and(|ms| ms > 0.0) || value.is_string(), "{answer}");
        text.push('#');
        rest = &rest[at + length..];
    }
    text + rest
}

const FIRST: &str = r#"{"id":"t1","label":"why","agent":"me","ops":[
  {"op":"write","path":"config.json","text":"{}","mode":"0640"},
  {"op":"write","path":"migrations/0001.sql","base64":"c2VsZWN0IDE7","mode":"0600"},
  {"op":"append","path":"log.txt","text":"line\n"}]}"#;

fn blake3(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[test]
fn apply_answers_as_the_contract_says() {
    let tree = Tree::new();
    let ran = tree.apply(FIRST);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(without_ms(&ran.out), r#"{"id":"t1","ok":true,"tx":1,"files":4,"ms":#}"#);
    assert!(ran.out.ends_with("}\n"), "one line: {:?}", ran.out);
    assert_eq!((tree.read("config.json").as_str(), tree.read("log.txt").as_str()), ("{}", "line\n"));
    assert_eq!(tree.read("migrations/0001.sql"), "select 1;");

    // Every other operation that exists, in order, each on the result of those before it.
    tree.write("outside", "from a file");
    let outside = tree.path("outside");
    let document = format!(
        r#"{{"ops":[{{"op":"expect","path":"config.json","blake3":"{}"}},
            {{"op":"patch","path":"config.json","offset":1,"text":"\"a\":1}}"}},
            {{"op":"rename","from":"config.json","to":"etc/config.json"}},
            {{"op":"remove","path":"log.txt"}},
            {{"op":"expect","path":"log.txt","absent":true}},
            {{"op":"write","path":"copy","file":{outside:?}}}],
            "symlinks":"follow","hard_links":"break","durability":"settled"}}"#,
        blake3("{}")
    );
    let ran = tree.apply(&document);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran:?}");
    // config.json, etc, etc/config.json, log.txt and copy.
    assert_eq!(without_ms(&ran.out), r#"{"line":1,"ok":true,"tx":2,"files":5,"ms":#}"#);
    assert_eq!(
        (tree.read("etc/config.json").as_str(), tree.read("copy").as_str()),
        ("{\"a\":1}", "from a file")
    );
    assert!(!tree.path("config.json").exists() && !tree.path("log.txt").exists());

    let ran = tree.apply(r#"{"id":"none","ops":[]}"#);
    assert_eq!(without_ms(&ran.out), r#"{"id":"none","ok":true,"tx":0,"files":0,"ms":#}"#);
    let ran = tree.apply(r#"{"id":"t3","ops":[{"op":"expect","path":"copy","absent":true}]}"#);
    let message = format!(
        "copy: nothing was expected, and a file with blake3 {} is there; read it again and repeat the transaction",
        blake3("from a file")
    );
    assert_eq!(
        (ran.out, ran.status),
        (
            format!(r#"{{"id":"t3","ok":false,"error":"conflict","path":"copy","message":"{message}"}}"#)
                + "\n",
            1
        )
    );
}

#[test]
fn looking_answers_as_frozen_and_changes_nothing() {
    let tree = Tree::new();
    tree.applied(FIRST);
    tree.applied(r#"{"ops":[{"op":"remove","path":"log.txt"}]}"#);
    tree.write("copied", "");
    let before = everything_in(&tree);

    let look = |arguments: &[&str]| {
        let ran = tree.run(&[&["--json"], arguments].concat());
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{arguments:?}: {ran:?}");
        without_ms(&ran.out)
    };
    let first = r#""tx":1,"lsn":#,"time":#,"label":"why","agent":"me","uid":#,"pid":#,"program":"atomtree","settled":true,"files":4"#;
    let second = r#""tx":2,"lsn":#,"time":#,"uid":#,"pid":#,"program":"atomtree","settled":true,"files":1"#;
    assert_eq!(look(&["log"]), format!(r#"{{"ok":true,"transactions":[{{{second}}},{{{first}}}]}}"#));
    assert_eq!(look(&["log", "-n", "1"]), format!(r#"{{"ok":true,"transactions":[{{{second}}}]}}"#));
    let file = |mode: &str, text: &str| {
        let (size, digest) = (text.len(), blake3(text));
        format!(r#"{{"kind":"file","mode":"{mode}","size":{size},"blake3":"{digest}"}}"#)
    };
    // New files get what the umask leaves, and so did this one.
    let (log_mode, dir_mode) = (mode_of(&tree, "copied"), mode_of(&tree, "migrations"));
    assert_eq!(
        look(&["show", "1"]),
        [
            format!(r#"{{"ok":true,{first},"changes":["#),
            format!(r#"{{"path":"migrations","after":{{"kind":"directory","mode":"{dir_mode}"}}}},"#),
            format!(r#"{{"path":"config.json","after":{}}},"#, file("0640", "{}")),
            format!(r#"{{"path":"log.txt","after":{}}},"#, file(&log_mode, "line\n")),
            format!(r#"{{"path":"migrations/0001.sql","after":{}}}]}}"#, file("0600", "select 1;")),
        ]
        .concat()
    );
    assert_eq!(
        look(&["show", "2"]),
        format!(
            r#"{{"ok":true,{second},"changes":[{{"path":"log.txt","before":{}}}]}}"#,
            file(&log_mode, "line\n")
        )
    );
    assert_eq!(
        look(&["verify"]),
        r#"{"ok":true,"closed":true,"torn":false,"settled":2,"unsettled":0,"quarantined":0,"slots":0,"problems":[]}"#
    );
    let status: serde_json::Value = serde_json::from_str(&look(&["status"])).unwrap();
    let keys: Vec<_> =
        look(&["status"]).split("\":").map(|part| part.rsplit('"').next().unwrap().to_owned()).collect();
    assert_eq!(
        keys[..10],
        [
            "ok",
            "clean",
            "last_tx",
            "unsettled",
            "checkpoint_lsn",
            "log_segments",
            "log_segments_free",
            "log_bytes",
            "quarantined",
            "file_system"
        ]
    );
    assert_eq!((&status["clean"], &status["last_tx"]), (&true.into(), &2.into()), "{status}");
    for arguments in [["status"].as_slice(), &["log"], &["show", "1"], &["verify"], &["stats"]] {
        let ran = tree.run(arguments);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran:?}");
        assert!(ran.out.lines().count() >= 3 && !ran.out.starts_with('{'), "{}", ran.out);
    }
    assert_eq!(everything_in(&tree), before);
}

fn mode_of(tree: &Tree, name: &str) -> String {
    let metadata = std::fs::metadata(tree.path(name)).expect(name);
    format!("{:04o}", metadata.permissions().mode() & 0o7777)
}

/// Every file's name, inode, length, mode and times of change.
fn everything_in(tree: &Tree) -> String {
    let listed = Command::new("find")
        .arg(tree.dir.path())
        .args(["-printf", "%p %i %s %m %T@ %C@\n"])
        .output()
        .expect("find is there");
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn recovery_and_checkpoint_answer_as_the_contract_says() {
    let tree = Tree::new();
    let nothing =
        "{\"ok\":true,\"redone\":0,\"rolled_back\":0,\"voided\":0,\"superseded\":[],\"quarantined\":[]}\n";
    // Without a store there is nothing to do, and none is made.
    let ran = tree.run(&["recover", "--json"]);
    assert_eq!((ran.status, ran.out.as_str()), (0, nothing));
    assert_eq!(tree.run(&["checkpoint", "--json"]).out, "{\"ok\":true}\n");
    assert!(!tree.path(".atomtree").exists());

    let mut batch = tree.batch(&[]);
    batch.say(r#"{"ops":[{"op":"write","path":"a","text":"1"},{"op":"write","path":"b","text":"1"}]}"#);
    assert_eq!(batch.answer(), r#"{"line":1,"ok":true,"tx":1,"files":2,"ms":#}"#);
    batch.say(r#"{"ops":[{"op":"write","path":"a","text":"2"}]}"#);
    batch.answer();
    batch.kill();
    // It looks like another program's, because no transaction ever left it.
    tree.write("a", "an edit after the kill");
    let ran = tree.run(&["recover", "--json"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran:?}");
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let kept = found["superseded"][0]["kept"].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        ran.out,
        format!(
            "{{\"ok\":true,\"redone\":2,\"rolled_back\":0,\"voided\":0,\"superseded\":[{{\"path\":\"a\",\"tx\":2,\"kept\":\"{kept}\"}}],\"quarantined\":[]}}\n"
        )
    );
    assert!(kept.starts_with("quarantine/"), "{kept}");
    assert_eq!(tree.read(&format!(".atomtree/{kept}")), "2");
    assert_eq!((tree.read("a").as_str(), tree.read("b").as_str()), ("an edit after the kill", "1"));

    assert_eq!(tree.run(&["recover", "--json"]).out, nothing);
    assert_eq!(tree.run(&["recover"]).out, "nothing to recover\n");
    assert_eq!(tree.run(&["checkpoint", "--json"]).out, "{\"ok\":true}\n");
}

#[test]
fn people_are_answered_in_words() {
    let tree = Tree::new();
    let ran = tree.run_on(&["apply", "-"], FIRST.as_bytes());
    assert!(ran.out.starts_with("transaction 1: 4 names changed in "), "{ran:?}");
    let ran = tree.run_on(&["apply", "-"], br#"{"ops":[{"op":"remove","path":"x\u001b[2Jy"}]}"#);
    assert_eq!((ran.status, ran.out.as_str()), (1, ""));
    assert_eq!(ran.err, "atomtree: x\\u{1b}[2Jy: no such file\n", "what a terminal would obey is escaped");
    let show = tree.run(&["show", "1"]).out;
    assert!(show.starts_with("transaction  1\ntime         2"), "{show}");
    assert!(show.contains("\nlabel        why\nagent        me\nby           atomtree (process "), "{show}");
    let changes: Vec<_> = show.split("\n\n").nth(1).unwrap().lines().collect();
    // Names stand below one another, whatever stands before them.
    let columns: Vec<_> = changes.iter().map(|line| line.rfind("  ")).collect();
    assert!(changes.len() == 4 && columns.iter().all(|column| *column == columns[0]), "{show}");
    assert!(changes[1].contains("0640        2 B  config.json"), "{show}");
    let log = tree.run(&["log"]).out;
    assert!(log.lines().nth(1).is_some_and(|line| line.ends_with("settled  [me] why")), "{log}");
    let stats = tree.run(&["stats"]).out;
    assert!(stats.contains("\nchanged       4 names: 4 created, 0 replaced, 0 removed\n"), "{stats}");
    assert!(stats.contains("\ncontent       16 B written\n"), "{stats}");
}
