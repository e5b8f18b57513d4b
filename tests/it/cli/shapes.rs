//! Every shape of JSON that the program prints, to the byte: programs are written against these lines.
//!
//! What depends on the moment or the machine is masked by its key and nothing else is, so that a field that comes, goes,
//! moves or changes its type is seen here. A new command is missing in the list at the end until its shape is frozen.

use std::process::Command;

use super::{Ran, Tree, program, run};

/// `text` with the values of these keys, numbers or strings, replaced by `#`.
fn masked(text: &str, keys: &[&str]) -> String {
    let mut masked = text.trim_end().to_owned();
    for key in keys {
        let key = format!("\"{key}\":");
        let mut from = 0;
        while let Some(at) = masked[from..].find(&key) {
            let start = from + at + key.len();
            let value = serde_json::Deserializer::from_str(&masked[start..])
                .into_iter::<serde_json::Value>()
                .next()
                .expect("a value follows")
                .expect("it is JSON");
            let end = start + value.to_string().len();
            assert!(
                value.is_number() || value.as_str().is_some_and(|text| !text.is_empty()),
                "{key} {value}"
            );
            masked.replace_range(start..end, "#");
            from = start;
        }
    }
    masked
}

fn json(tree: &Tree, arguments: &[&str]) -> Ran {
    tree.run(&[&["--json"], arguments].concat())
}

#[track_caller]
fn assert_shape(ran: &Ran, status: i32, keys: &[&str], expected: &str) {
    assert_eq!((ran.status, ran.err.as_str()), (status, ""), "{ran:?}");
    assert_eq!(masked(&ran.out, keys), expected);
    assert!(ran.out.ends_with("}\n"), "each answer is a line: {ran:?}");
}

const TWO: &str = r#"{"id":"t1","label":"why","agent":"me","ops":[
  {"op":"write","path":"config.json","text":"{}","mode":"0640"},
  {"op":"write","path":"dir/a.sql","text":"select 1;","mode":"0600"}]}"#;
const THIRD: &str =
    r#"{"ops":[{"op":"write","path":"config.json","text":"{\"a\":1}"},{"op":"remove","path":"dir/a.sql"}]}"#;

#[test]
fn figures_and_states_are_frozen() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[]}"#);
    let nothing = r#"{"ok":true,"transactions":0,"unsettled":0,"files":0,"created":0,"replaced":0,"removed":0,"content_bytes":0,"log_segments":2,"log_segments_free":1,"segment_bytes":65536,"log_bytes":#,"checkpoint_lsn":#,"manifests":0,"manifest_bytes":0,"staged":0,"quarantined":0,"quarantined_bytes":0,"guard_images":0,"guard_image_bytes":0}"#;
    let lsns = ["log_bytes", "checkpoint_lsn"];
    assert_shape(&json(&tree, &["stats"]), 0, &lsns, nothing);
    let empty_log = json(&tree, &["log"]);
    assert_shape(&empty_log, 0, &[], r#"{"ok":true,"transactions":[]}"#);

    tree.applied(TWO);
    tree.applied(THIRD);
    let counted = r#"{"ok":true,"transactions":2,"first":{"tx":1,"time":#},"last":{"tx":2,"time":#},"unsettled":0,"files":5,"created":3,"replaced":1,"removed":1,"content_bytes":18,"log_segments":2,"log_segments_free":1,"segment_bytes":65536,"log_bytes":#,"checkpoint_lsn":#,"checkpoint_time":#,"manifests":2,"manifest_bytes":#,"staged":0,"quarantined":0,"quarantined_bytes":0,"guard_images":0,"guard_image_bytes":0}"#;
    let keys = ["time", "log_bytes", "checkpoint_lsn", "checkpoint_time", "manifest_bytes"];
    assert_shape(&json(&tree, &["stats"]), 0, &keys, counted);

    // Whether there is a warning depends on the file system, and its shape does not.
    let status = json(&tree, &["status"]);
    let state = masked(
        &status.out,
        &["checkpoint_lsn", "log_bytes", "file_system", "image_bytes", "checkpoint_time"],
    );
    let state = state.split(",\"warnings\":[").next().unwrap().trim_end_matches('}');
    assert_eq!(
        state,
        r#"{"ok":true,"clean":true,"last_tx":2,"unsettled":0,"checkpoint_lsn":#,"log_segments":2,"log_segments_free":1,"log_bytes":#,"quarantined":0,"file_system":#,"image_bytes":#,"checkpoint_time":#"#
    );
    let found: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let warnings = found.get("warnings").map(|warnings| warnings.as_array().expect("a list"));
    assert!(warnings.is_none_or(|warnings| warnings.iter().all(serde_json::Value::is_string)), "{status:?}");

    assert_shape(
        &json(&tree, &["verify"]),
        0,
        &[],
        r#"{"ok":true,"closed":true,"torn":false,"settled":2,"unsettled":0,"quarantined":0,"slots":0,"problems":[]}"#,
    );
    let old = r#""tx":1,"lsn":#,"time":#,"label":"why","agent":"me","uid":#,"pid":#,"program":"atomtree","settled":true,"files":3"#;
    let new = r#""tx":2,"lsn":#,"time":#,"uid":#,"pid":#,"program":"atomtree","settled":true,"files":2"#;
    assert_shape(
        &json(&tree, &["log"]),
        0,
        &["lsn", "time", "uid", "pid"],
        &format!(r#"{{"ok":true,"transactions":[{{{new}}},{{{old}}}]}}"#),
    );
    let file =
        |mode: &str, size: u64| format!(r#"{{"kind":"file","mode":"{mode}","size":{size},"blake3":#}}"#);
    let (before, after) = (file("0640", 2), file("0640", 7));
    assert_shape(
        &json(&tree, &["show", "2"]),
        0,
        &["lsn", "time", "uid", "pid", "blake3"],
        &format!(
            r#"{{"ok":true,{new},"changes":[{{"path":"config.json","before":{before},"after":{after}}},{{"path":"dir/a.sql","before":{}}}]}}"#,
            file("0600", 9)
        ),
    );
    let directory = super::mode_of(&tree, "dir");
    assert_shape(
        &json(&tree, &["show", "1"]),
        0,
        &["lsn", "time", "uid", "pid", "blake3"],
        &format!(
            r#"{{"ok":true,{old},"changes":[{{"path":"dir","after":{{"kind":"directory","mode":"{directory}"}}}},{{"path":"config.json","after":{before}}},{{"path":"dir/a.sql","after":{}}}]}}"#,
            file("0600", 9)
        ),
    );
}

#[test]
fn what_moves_leads_and_goes_is_shown() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[{"op":"write","path":"d/a","text":"1","mode":"0600"},{"op":"write","path":"gone/b","text":"2","mode":"0600"},{"op":"symlink","path":"l","target":"d"}]}"#);
    // A file that changed just before it was looked at is digested, whatever becomes of it.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let ran = tree.apply(
        r#"{"ops":[{"op":"rename","from":"d","to":"e"},{"op":"rmdir","path":"gone","recursive":true},{"op":"symlink","path":"l","target":"e"},{"op":"chmod","path":"e/a","mode":"0640"}]}"#,
    );
    assert_eq!(super::without_ms(&ran.out), "{\"line\":1,\"ok\":true,\"tx\":2,\"files\":6,\"ms\":#}");
    let file = |mode: &str| format!(r#"{{"kind":"file","mode":"{mode}","size":1,"blake3":#}}"#);
    let link = r#"{"kind":"symlink","mode":"0777","size":1,"blake3":#}"#;
    let directory = format!(r#"{{"kind":"directory","mode":"{}"}}"#, super::mode_of(&tree, "e"));
    assert_shape(
        &json(&tree, &["show", "2"]),
        0,
        &["lsn", "time", "uid", "pid", "blake3"],
        &format!(
            r#"{{"ok":true,"tx":2,"lsn":#,"time":#,"uid":#,"pid":#,"program":"atomtree","settled":true,"files":6,"changes":[{{"path":"e","from":"d","after":{directory}}},{{"path":"l","before":{link},"after":{link}}},{{"path":"gone","before":{directory}}},{{"path":"e/a","before":{},"after":{}}},{{"path":"d","before":{directory}}},{{"path":"gone/b","before":{}}}]}}"#,
            file("0600"),
            file("0640"),
            r#"{"kind":"file","mode":"0600","size":1}"#,
        ),
    );
}

#[test]
fn what_goes_back_answers_as_frozen() {
    let tree = Tree::new();
    let none = json(&tree, &["undo", "1"]);
    assert!(
        none.status == 1 && none.out.contains(r#""error":"not_found","message":"there is no store in "#),
        "{none:?}"
    );
    tree.applied(TWO);
    tree.applied(THIRD);
    let done = |tx: u64, files: u64| format!(r#"{{"ok":true,"tx":{tx},"files":{files},"ms":#}}"#);
    assert_shape(&json(&tree, &["undo", "2"]), 0, &["ms"], &done(3, 2));
    assert_eq!(tree.read("config.json"), "{}");
    assert_shape(&json(&tree, &["redo", "2", "--label", "after all"]), 0, &["ms"], &done(4, 2));
    let moved_on = r#"{"ok":false,"error":"conflict","path":"config.json","paths":["config.json","dir/a.sql"],"message":"transaction 1 can't be undone, because these have moved on since: config.json, dir/a.sql; undo what changed them first, or force it"}"#;
    assert_shape(&json(&tree, &["undo", "1"]), 1, &[], moved_on);
    assert_shape(&json(&tree, &["restore", "--to", "1", "config.json"]), 0, &["ms"], &done(5, 1));
    assert_eq!(tree.run(&["cat", "0:config.json"]).status, 1);
    assert_eq!(tree.run(&["cat", "1:config.json"]).out, "{}");
    assert_shape(
        &json(&tree, &["cat", "1:dir"]),
        1,
        &[],
        r#"{"ok":false,"error":"is_a_directory","path":"dir","message":"dir: it was a directory"}"#,
    );
    let scrubbed = r#"{"ok":true,"transactions":5,"images":#,"bytes":#,"left":["tree","log","storage"]}"#;
    assert_shape(&json(&tree, &["scrub", "config.json"]), 0, &["images", "bytes"], scrubbed);
    let pruned = r#"{"ok":true,"transactions":4,"bytes":#}"#;
    assert_shape(&json(&tree, &["prune", "--keep", "1"]), 0, &["bytes"], pruned);
    assert_shape(
        &json(&tree, &["prune", "--keep-days", "1"]),
        0,
        &[],
        r#"{"ok":true,"transactions":0,"bytes":0}"#,
    );
    assert_shape(&json(&tree, &["prune", "--quarantine"]), 0, &[], r#"{"ok":true,"files":0}"#);
    let gone = r#"{"ok":false,"error":"not_found","message":"the history keeps transaction 1 no longer; a larger history_bytes_max or history_age_max keeps more"}"#;
    assert_shape(&json(&tree, &["undo", "1"]), 1, &[], gone);
    assert_eq!(json(&tree, &["restore", "--to", "yesterday"]).status, 2);
}

/// Goal: people see what changed in a text, and sizes of the rest. Method: a text and something else, changed together.
#[test]
fn show_prints_what_changed_in_a_text() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[{"op":"write","path":"a","text":"one\ntwo\nthree\n"},{"op":"write","path":"b","base64":"AAEC"}]}"#);
    tree.applied(r#"{"ops":[{"op":"write","path":"a","text":"one\n2\nthree\n"},{"op":"write","path":"b","base64":"AAE="}]}"#);
    let shown = tree.run(&["show", "2"]).out;
    let diff = "--- a before\n+++ a after\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n";
    assert!(shown.ends_with(diff), "{shown}");
    assert!(!shown.contains("b after"), "{shown}");
    tree.applied(r#"{"ops":[{"op":"remove","path":"a"}]}"#);
    assert!(tree.run(&["show", "2"]).out.ends_with(diff), "what it left is kept by the next one");
}

#[test]
fn an_open_store_names_its_holder() {
    let tree = Tree::new();
    let mut batch = tree.batch(&["--settle-after-ms", "3600000"]);
    batch.say(TWO.replace('\n', " ").as_str());
    batch.answer();
    let pid = batch.child.id();
    let status = json(&tree, &["status"]);
    assert!(status.out.contains(&format!(r#","holder":{{"pid":{pid},"program":"atomtree"}}"#)), "{status:?}");
    assert!(status.out.starts_with(r#"{"ok":true,"clean":false,"last_tx":1,"unsettled":1,"#), "{status:?}");
    let figures = json(&tree, &["stats"]);
    assert!(
        figures.out.contains(r#""tx":1,"#) && figures.out.contains(r#","unsettled":1,"files":3,"#),
        "{figures:?}"
    );
    assert!(!figures.out.contains("checkpoint_time"), "nothing was settled yet: {figures:?}");
    let members = format!(r#","members":[{{"pid":{pid},"program":"atomtree","since":""#);
    assert!(status.out.contains(&members), "{status:?}");
    assert_eq!(batch.end(), 0);
    let mut batch = tree.batch(&["--exclusive"]);
    batch.say(r#"{"ops":[]}"#);
    batch.answer();
    let pid = batch.child.id();
    let locked = format!(
        r#"{{"ok":false,"error":"locked","message":"process {pid} (atomtree) has had the store open for "#
    );
    let starts = |ran: Ran, start: &str| {
        let end = " s; wait longer for it (--wait), or end it\"}\n";
        assert!(ran.status == 3 && ran.out.starts_with(start) && ran.out.ends_with(end), "{ran:?}");
    };
    for command in ["recover", "checkpoint", "batch"] {
        starts(json(&tree, &[command, "--wait", "0"]), &locked);
    }
    let root = tree.dir.path().to_str().unwrap();
    let at = locked.replacen('{', &format!(r#"{{"root":"{root}","#), 1);
    starts(run(recover_all(&["--json"], &[root, "--wait", "0"]), b""), &at);
    let apply = tree.apply_with(&["--wait", "0"], r#"{"id":"x","ops":[]}"#);
    starts(apply, &locked.replacen('{', r#"{"id":"x","#, 1));
    assert_eq!(batch.end(), 0);
}

#[test]
fn what_changes_a_store_answers_as_frozen() {
    let tree = Tree::new();
    assert_shape(&tree.apply(TWO), 0, &["ms"], r#"{"id":"t1","ok":true,"tx":1,"files":3,"ms":#}"#);
    assert_shape(&tree.apply(THIRD), 0, &["ms"], r#"{"line":1,"ok":true,"tx":2,"files":2,"ms":#}"#);
    let refused = r#"{"id":"x","ops":[{"op":"remove","path":"none"}]}"#;
    let refusal = r#"{"id":"x","ok":false,"error":"not_found","path":"none","message":"none: no such file"}"#;
    assert_shape(&tree.apply(refused), 1, &[], refusal);
    let unread = r#"{"line":1,"ok":false,"error":"invalid_input","message":"not a transaction document: missing field `ops`, at column 2"}"#;
    assert_shape(&tree.apply("{}"), 1, &[], unread);
    let batch = tree.run_on(&["batch"], format!("{{}}\n{refused}\n{{\"ops\":[]}}\n").as_bytes());
    let nothing = r#"{"line":3,"ok":true,"tx":0,"files":0,"ms":#}"#;
    assert_shape(&batch, 1, &["ms"], &[unread, refusal, nothing].join("\n"));
    assert_shape(&json(&tree, &["checkpoint"]), 0, &[], r#"{"ok":true}"#);
    let recovered = r#"{"ok":true,"redone":0,"rolled_back":0,"voided":0,"superseded":[],"quarantined":[]}"#;
    assert_shape(&json(&tree, &["recover"]), 0, &[], recovered);
    // Its figures are those of the machine, but for the zeros.
    let demo = json(&tree, &["demo", "--rounds", "1"]);
    let keys = ["acknowledged", "redone", "voided", "mid_change", "file_system"];
    let begin = r#"{"ok":true,"kills":1,"acknowledged":#,"redone":#,"voided":#,"mid_change":#,"displaced":0,"lost":0,"mixed":0,"file_system":#,"#;
    let shape = masked(&demo.out, &keys);
    assert!(demo.status == 0 && shape.starts_with(begin), "{demo:?}");
    let speed = masked(&shape, &["rounds", "atomtree_ms", "settled_ms", "one_at_a_time_ms", "ratio"]);
    let row = |files| {
        format!(
            r#"{{"files":{files},"rounds":#,"atomtree_ms":#,"settled_ms":#,"one_at_a_time_ms":#,"ratio":#}}"#
        )
    };
    assert!(speed.ends_with(&format!(r#""speed":[{},{},{}]}}"#, row(1), row(10), row(100))), "{speed}");
}

#[test]
fn refusals_of_each_command_are_frozen() {
    let tree = Tree::new();
    let root = tree.dir.path().to_str().unwrap();
    let none = format!(
        r#"{{"ok":false,"error":"not_found","message":"there is no store in {root}: the first `atomtree apply` or `batch` makes one, and --root names another directory"}}"#
    );
    for command in [["status"].as_slice(), &["log"], &["show", "1"], &["verify"], &["stats"]] {
        assert_shape(&json(&tree, command), 1, &[], &none);
    }
    let at = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(["--root", "/does/not/exist", "--json"]).args(arguments);
        run(command, b"")
    };
    let gone = r#"{"ok":false,"error":"not_found","path":"/does/not/exist","message":"could not open the root /does/not/exist (see --root): No such file or directory (os error 2)"}"#;
    for command in [["status"].as_slice(), &["stats"], &["verify"], &["recover"], &["checkpoint"]] {
        assert_shape(&at(command), 1, &[], gone);
    }
    assert_shape(
        &at(&["batch"]),
        1,
        &[],
        r#"{"ok":false,"error":"not_found","path":"/does/not/exist","message":"could not open /does/not/exist: No such file or directory (os error 2)"}"#,
    );
    assert_shape(
        &json(&tree, &["apply", "/does/not/exist"]),
        1,
        &[],
        r#"{"ok":false,"error":"not_found","message":"could not read the document /does/not/exist: No such file or directory (os error 2); `-` stands for standard input"}"#,
    );
    assert_shape(
        &json(&tree, &["man", "--dir", "/does/not/exist"]),
        1,
        &[],
        r#"{"ok":false,"error":"not_found","message":"could not write the pages into /does/not/exist: No such file or directory (os error 2)"}"#,
    );
    tree.applied(TWO);
    assert_shape(
        &json(&tree, &["show", "7"]),
        1,
        &[],
        r#"{"ok":false,"error":"not_found","message":"transaction 7 is not in the history; `atomtree log` lists those that are"}"#,
    );

    damage(&tree);
    let damaged = r#"{"ok":false,"error":"corrupt","message":#}"#;
    for command in [["status"].as_slice(), &["log"], &["stats"], &["recover"], &["checkpoint"], &["batch"]] {
        assert_shape(&json(&tree, command), 4, &["message"], damaged);
    }
    assert_shape(
        &json(&tree, &["verify"]),
        4,
        &["message"],
        r#"{"ok":false,"closed":false,"torn":false,"settled":1,"unsettled":0,"quarantined":0,"slots":0,"problems":[{"error":"corrupt","message":#}]}"#,
    );
    let with_remedy = tree.run(&["recover"]);
    assert!(
        with_remedy.err.contains("`atomtree verify` lists"),
        "people are told what to do: {with_remedy:?}"
    );
}

/// Makes the store file worthless.
fn damage(tree: &Tree) {
    let mut store = std::fs::read(tree.path(".atomtree/store")).unwrap();
    store[0] ^= 1;
    std::fs::write(tree.path(".atomtree/store"), store).unwrap();
}

fn recover_all(flags: &[&str], dirs: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(flags).args(["recover", "--all"]).args(dirs);
    command
}

/// Goal: every store is found and recovered, whatever is wrong with others, and nothing outside is touched. Method: a
/// tree of sound, interrupted, damaged and nested stores, with symlinks and half-made stores between them.
#[test]
fn recover_all_finds_each_store_once_and_goes_on_after_a_failure() {
    let tree = Tree::new();
    let at = |name: &str| tree.path(name).to_str().unwrap().to_owned();
    let make = |name: &str, document: &str| {
        std::fs::create_dir_all(tree.path(name)).unwrap();
        let mut command = Command::new(program());
        command.args(["--root", &at(name), "apply", "--segment-bytes", "65536", "-"]);
        assert_eq!(run(command, document.as_bytes()).status, 0);
    };
    make("a/bad", r#"{"ops":[]}"#);
    make("a/outer", TWO);
    make("a/outer/dir/inner", TWO);
    make("elsewhere", TWO);
    let store = tree.path("a/bad/.atomtree/store");
    std::fs::write(&store, "worthless").unwrap();
    std::os::unix::fs::symlink(tree.path("elsewhere"), tree.path("a/link")).unwrap();
    std::fs::create_dir_all(tree.path("a/half/.atomtree.new/.atomtree")).unwrap();
    std::fs::create_dir_all(tree.path("a/outer/.atomtree/quarantine/x/.atomtree")).unwrap();

    // Killed with a transaction that nothing has settled.
    let mut command = Command::new(program());
    command.args(["--root", &at("a/outer"), "batch", "--settle-after-ms", "3600000"]);
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{THIRD}\n").as_bytes()).unwrap();
    let mut answer = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let (bad, outer, inner, missing) = (at("a/bad"), at("a/outer"), at("a/outer/dir/inner"), at("missing"));
    let recovered = |root: &str, redone: u64| {
        format!(
            r#"{{"root":"{root}","ok":true,"redone":{redone},"rolled_back":0,"voided":0,"superseded":[],"quarantined":[]}}"#
        )
    };
    let refused = format!(r#"{{"root":"{bad}","ok":false,"error":"corrupt","message":#}}"#);
    let unseen =
        format!(r#"{{"root":"{missing}","ok":false,"error":"not_found","path":"{missing}","message":#}}"#);
    let ran = run(recover_all(&["--json"], &[&missing, &at("a"), &outer]), b"");
    // The one that was to be found twice is answered once.
    let expected = [unseen, refused.clone(), recovered(&outer, 1), recovered(&inner, 0)];
    assert_shape(&ran, 4, &["message"], &expected.join("\n"));
    assert_eq!(std::fs::read_to_string(tree.path("a/outer/config.json")).unwrap(), r#"{"a":1}"#);

    let again = run(recover_all(&["--json"], &[&at("a")]), b"");
    assert_shape(&again, 4, &["message"], &[refused, recovered(&outer, 0), recovered(&inner, 0)].join("\n"));
    let people = run(recover_all(&[], &[&at("a")]), b"");
    assert_eq!(people.status, 4);
    assert_eq!(
        people.out,
        format!("{outer}: nothing to recover\n{inner}: nothing to recover\n2 stores recovered\n")
    );
    assert!(people.err.starts_with(&format!("atomtree: {bad} was not recovered:\n")), "{people:?}");

    std::fs::create_dir(tree.path("empty")).unwrap();
    let nothing = run(recover_all(&["--json"], &[&at("empty")]), b"");
    assert_eq!((nothing.status, nothing.out.as_str()), (0, ""));
    let nothing = run(recover_all(&[], &[&at("empty")]), b"");
    assert_eq!(nothing.out, format!("no store at or below {}: nothing to recover\n", at("empty")));
    for flags in [["--root", "/"].as_slice(), &["--adopt"]] {
        let misuse = tree.run(&[&["recover", "--all", &at("empty")], flags].concat());
        assert_eq!(misuse.status, 2, "{misuse:?}");
    }
}

/// Goal: no other file system is entered. Method: a store on one that is mounted below, in a namespace of its own.
#[test]
fn recover_all_stays_on_its_file_system() {
    let tree = Tree::new();
    tree.applied(TWO);
    let script = r#"mkdir "$1/mnt" && mount -t tmpfs none "$1/mnt" && mkdir "$1/mnt/.atomtree" &&
        "$2" --json recover --all "$1" && echo inside: && "$2" --json recover --all "$1/mnt""#;
    let in_namespace = |flags: &str, script: &str| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", script, "sh"]).arg(tree.dir.path()).arg(program());
        run(command, b"")
    };
    let mount = r#"mkdir -p "$1/mnt" && mount -t tmpfs none "$1/mnt""#;
    let Some(flags) = ["-m", "-rm"].into_iter().find(|flags| in_namespace(flags, mount).status == 0) else {
        println!("skipped: mounting is not allowed here");
        return;
    };
    std::fs::remove_dir(tree.path("mnt")).unwrap();
    let ran = in_namespace(flags, script);
    let (outside, inside) = ran.out.split_once("inside:\n").unwrap_or_else(|| panic!("{ran:?}"));
    assert_eq!(outside.lines().count(), 1, "{ran:?}");
    assert!(inside.contains(r#"/mnt","ok":false"#), "the mounted one is there to be found: {ran:?}");
}

/// Goal: every command's answer is frozen. Method: the help lists the commands, and each is named here with the test
/// that has its shape.
#[test]
fn no_command_is_without_a_frozen_shape() {
    let frozen = [
        "apply",
        "batch",
        // In `run.rs`, beside what it does.
        "run",
        "status",
        "log",
        "show",
        "undo",
        "redo",
        "restore",
        // Prints what it is asked for.
        "cat",
        "prune",
        "scrub",
        "verify",
        "stats",
        "recover",
        "checkpoint",
        "demo",
        // In `torture.rs`, beside what it judges.
        "torture",
        // Prints no JSON.
        "completions",
        "help",
    ];
    assert_eq!(super::terminal::commands(), frozen);
}
