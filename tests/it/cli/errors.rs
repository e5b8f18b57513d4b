//! Every error that can be met from the command line, with its code, its path and its exit status.
//!
//! `outcome_unknown`, `committed_not_applied` and `poisoned` need a sync or a rename that fails, which no argument can
//! ask for: the program's own tests fix their exit status.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::{Ran, Tree, program, run};

/// The code, the path and the exit status of a failed run.
fn refusal(ran: &Ran) -> (String, String, i32) {
    assert_eq!(ran.err, "", "with --json errors are printed like answers: {ran:?}");
    let answer: serde_json::Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(answer["ok"], false, "{ran:?}");
    assert!(answer["message"].as_str().is_some_and(|message| message.len() > 8), "{ran:?}");
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    (text("error"), text("path"), ran.status)
}

#[track_caller]
fn assert_refused(ran: &Ran, code: &str, path: &str, status: i32) {
    assert_eq!(refusal(ran), (code.to_owned(), path.to_owned(), status), "{ran:?}");
}

#[test]
fn each_operation_is_refused_with_its_code_and_path() {
    let tree = Tree::new();
    tree.applied(
        r#"{"ops":[{"op":"write","path":"file","text":"abc"},{"op":"write","path":"dir/x","text":""}]}"#,
    );
    symlink("file", tree.path("link")).unwrap();
    symlink("/etc", tree.path("out")).unwrap();
    tree.write("one", "");
    fs::hard_link(tree.path("one"), tree.path("two")).unwrap();
    let long = format!(r#"{{"op":"write","path":"{}","text":""}}"#, "x".repeat(256));
    for (op, code, path) in [
        (r#"{"op":"expect","path":"file","absent":true}"#, "conflict", "file"),
        (r#"{"op":"patch","path":"file","offset":4,"text":"x"}"#, "invalid_input", "file"),
        (r#"{"op":"patch","path":"none","offset":0,"text":"x"}"#, "not_found", "none"),
        (r#"{"op":"remove","path":"none"}"#, "not_found", "none"),
        (r#"{"op":"rename","from":"none","to":"file"}"#, "not_found", "none"),
        (r#"{"op":"remove","path":"dir"}"#, "is_a_directory", "dir"),
        (r#"{"op":"write","path":"dir","text":""}"#, "is_a_directory", "dir"),
        (r#"{"op":"rename","from":"file","to":"dir"}"#, "is_a_directory", "dir"),
        (r#"{"op":"write","path":"file/x","text":""}"#, "not_a_directory", "file/x"),
        (r#"{"op":"write","path":"../x","text":""}"#, "invalid_path", "../x"),
        (r#"{"op":"write","path":"/x","text":""}"#, "invalid_path", "/x"),
        (r#"{"op":"write","path":"","text":""}"#, "invalid_path", ""),
        (r#"{"op":"write","path":".atomtree/store","text":""}"#, "invalid_path", ".atomtree/store"),
        (r#"{"op":"write","path":"out/x","text":""}"#, "invalid_path", "out/x"),
        (&long, "invalid_path", &"x".repeat(256)),
        (r#"{"op":"write","path":"link","text":""}"#, "unsupported", "link"),
        (r#"{"op":"write","path":"one","text":""}"#, "unsupported", "one"),
        (r#"{"op":"expect","path":"dir","absent":true}"#, "unsupported", "dir"),
        (r#"{"op":"mkdir","path":"dir"}"#, "exists", "dir"),
        (r#"{"op":"mkdir","path":"file","parents":true,"mode":"0755"}"#, "exists", "file"),
        (r#"{"op":"mkdir","path":"a/b"}"#, "not_found", "a/b"),
        (r#"{"op":"rmdir","path":"dir"}"#, "not_empty", "dir"),
        (r#"{"op":"rmdir","path":"file","recursive":true}"#, "not_a_directory", "file"),
        (r#"{"op":"rmdir","path":"none"}"#, "not_found", "none"),
        (r#"{"op":"rename","from":"dir","to":"dir/sub"}"#, "invalid_input", "dir/sub"),
        (r#"{"op":"rename","from":"dir","to":"file"}"#, "not_a_directory", "file"),
        (r#"{"op":"symlink","path":"file","target":"t"}"#, "exists", "file"),
        (r#"{"op":"symlink","path":"s","target":""}"#, "invalid_input", "s"),
        (r#"{"op":"chmod","path":"none","mode":"0755"}"#, "not_found", "none"),
        (r#"{"op":"chmod","path":"link","mode":"0755"}"#, "unsupported", "link"),
        (r#"{"op":"write","path":"x","file":"/does/not/exist"}"#, "not_found", "x"),
        (r#"{"op":"write","path":"x","file":"/dev/zero"}"#, "invalid_input", "x"),
    ] {
        let before = super::everything_in(&tree);
        let document = format!(r#"{{"ops":[{{"op":"write","path":"new","text":""}},{op}]}}"#);
        assert_refused(&tree.apply(&document), code, path, 1);
        let user_files = |listed: &str| {
            let own = |line: &&str| !line.contains("/.atomtree");
            listed.lines().filter(own).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(user_files(&super::everything_in(&tree)), user_files(&before), "{op}: nothing changed");
    }
}

#[test]
fn policies_are_taken_from_flags_and_documents_override_them() {
    let tree = Tree::new();
    tree.write("file", "");
    symlink("file", tree.path("link")).unwrap();
    fs::hard_link(tree.path("file"), tree.path("two")).unwrap();
    let follow =
        ["--json", "apply", "-", "--symlinks", "follow", "--hard-links", "break", "--durability", "settled"];
    let write = br#"{"ops":[{"op":"write","path":"link","text":"through"}]}"#;
    let ran = tree.run_on(&follow, write);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!((tree.read("file").as_str(), tree.read("two").as_str()), ("through", ""));
    assert!(tree.path("link").is_symlink());
    let refuse = br#"{"symlinks":"refuse","ops":[{"op":"write","path":"link","text":"x"}]}"#;
    assert_refused(&tree.run_on(&follow, refuse), "unsupported", "link", 1);
}

#[test]
fn commands_without_what_they_need_say_so() {
    let tree = Tree::new();
    for arguments in [["status"].as_slice(), &["log"], &["verify"], &["show", "1"]] {
        let ran = tree.run(&[&["--json"], arguments].concat());
        assert_refused(&ran, "not_found", "", 1);
        assert!(ran.out.contains("there is no store in") && ran.out.contains("--root"), "{ran:?}");
        let ran = tree.run(arguments);
        assert!(ran.status == 1 && ran.out.is_empty() && ran.err.starts_with("atomtree: there is no store"));
    }
    assert!(!tree.path(".atomtree").exists(), "looking makes no store");
    assert_refused(&tree.run(&["--json", "apply", "/does/not/exist"]), "not_found", "", 1);
    tree.applied(r#"{"ops":[]}"#);
    assert_refused(&tree.run(&["--json", "show", "7"]), "not_found", "", 1);
    assert_refused(&tree.apply("{}"), "invalid_input", "", 1);
    for command in ["status", "recover", "checkpoint", "batch"] {
        let ran = run(command_at("/does/not/exist", &["--json", command]), b"");
        assert_refused(&ran, "not_found", "/does/not/exist", 1);
    }
    let ran = tree.run(&["--json", "apply", "-", "--segment-bytes", "5"]);
    assert_refused(&ran, "invalid_input", "", 1);
    for misuse in [["no-such-command"].as_slice(), &[], &["apply"], &["show", "x"], &["batch", "--jobs", "0"]]
    {
        assert_eq!(tree.run(misuse).status, 2, "{misuse:?}");
    }
}

fn command_at(root: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["--root", root]).args(arguments);
    command
}

#[test]
fn a_second_process_is_told_who_has_the_store() {
    let tree = Tree::new();
    let mut batch = tree.batch(&["--exclusive"]);
    batch.say(r#"{"ops":[]}"#);
    batch.answer();
    let pid = format!("process {} (atomtree)", batch.child.id());
    let locked = tree.apply_with(&["--wait", "0"], r#"{"id":"x","ops":[]}"#);
    assert_refused(&locked, "locked", "", 3);
    assert!(locked.out.starts_with(r#"{"id":"x","ok":false,"error":"locked","message":""#), "{locked:?}");
    assert!(locked.out.contains(&pid), "{locked:?}");
    for command in ["recover", "checkpoint", "batch"] {
        assert_refused(&tree.run(&["--json", command, "--wait", "0"]), "locked", "", 3);
        let ran = tree.run(&[command, "--wait", "0"]);
        assert!(ran.status == 3 && ran.err.contains(&pid), "{ran:?}");
    }
    // Looking needs no lock.
    assert!(tree.run(&["status"]).out.contains(&pid));
    assert_eq!(tree.run(&["verify"]).status, 0);
    assert_eq!(batch.end(), 0);
    assert_eq!(tree.apply(r#"{"ops":[]}"#).status, 0);
}

#[test]
fn damage_is_reported_and_told_apart() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[{"op":"write","path":"a","text":"1"}]}"#);
    let mut store = fs::read(tree.path(".atomtree/store")).unwrap();
    store[0] ^= 1;
    fs::write(tree.path(".atomtree/store"), store).unwrap();
    for arguments in [["status"].as_slice(), &["log"], &["recover"], &["checkpoint"], &["batch"]] {
        assert_refused(&tree.run(&[&["--json"], arguments].concat()), "corrupt", "", 4);
        assert_eq!(tree.run(arguments).status, 4);
    }
    assert_refused(&tree.apply(r#"{"ops":[]}"#), "corrupt", "", 4);
    let ran = tree.run(&["--json", "verify"]);
    assert_eq!(ran.status, 4);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&found["ok"], &found["problems"][0]["error"]), (&false.into(), &"corrupt".into()), "{ran:?}");
    assert!(tree.run(&["verify"]).out.contains("\n  corrupt: .atomtree/store is damaged"));
}

#[test]
fn a_store_of_someone_else_is_refused_unless_root_is_told_to() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[]}"#);
    let store = tree.path(".atomtree");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    assert_refused(&tree.apply(r#"{"ops":[]}"#), "permission", "", 1);
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    let given = Command::new("chown").args(["-R", "12345"]).arg(&store).output().unwrap().status.success();
    if !given {
        println!("skipped: only root can give files away");
        return;
    }
    assert_refused(&tree.apply(r#"{"ops":[]}"#), "permission", "", 1);
    let ran = tree.run(&["--json", "--allow-owner", "12345", "recover"]);
    assert_eq!(ran.status, 0, "{ran:?}");
}

/// Goal: what only a mount can bring about has its code. Method: a namespace of its own, gone with the process.
#[test]
fn mounts_and_full_disks_have_their_codes() {
    let tree = Tree::new();
    let in_namespace = |flags: &str, script: &str, input: &[u8]| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", script, "sh"]).arg(tree.dir.path()).arg(program());
        run(command, input)
    };
    let mount = r#"mount -t tmpfs -o size=24m none "$1""#;
    let Some(flags) = ["-m", "-rm"].into_iter().find(|flags| in_namespace(flags, mount, b"").status == 0)
    else {
        println!("skipped: mounting is not allowed here");
        return;
    };
    let script = format!(
        r#"{mount} && mkdir "$1/mnt" && mount -t tmpfs none "$1/mnt" && touch "$1/file" "$1/over" &&
        mount --bind "$1/file" "$1/over" && exec "$2" --root "$1" --json apply --segment-bytes 65536 -"#
    );
    let refused = |document: &str| in_namespace(flags, &script, document.as_bytes());
    let write =
        |path: &str, text: &str| format!(r#"{{"ops":[{{"op":"write","path":"{path}","text":"{text}"}}]}}"#);
    assert_refused(&refused(&write("mnt/x", "")), "cross_device", "mnt/x", 1);
    assert_refused(&refused(&write("over", "")), "mount_point", "over", 1);
    assert_refused(&refused(&write("large", &"x".repeat(30 << 20))), "no_space", "large", 1);
}

/// Goal: what is done is not taken for nothing where it can't be told. Method: a transaction, and its undoing, whose answers go
/// to a device that is full.
#[test]
fn what_is_done_and_can_not_be_told_is_no_failure_to_do_it() {
    let tree = Tree::new();
    tree.applied(r#"{"ops":[{"op":"write","path":"file","text":"old"}]}"#);
    tree.write("document", r#"{"ops":[{"op":"append","path":"file","text":"x"}]}"#);
    for json in [&[][..], &["--json"]] {
        for (arguments, expected) in [(["apply", "document"], "oldx"), (["undo", "last"], "old")] {
            let log = run(tree.command(&["log", "--json"]), b"");
            let last = log.out.split(r#""tx":"#).nth(1).unwrap().split(',').next().unwrap().to_owned();
            let arguments = arguments.map(|argument| if argument == "last" { &*last } else { argument });
            let mut command = tree.command(&[&arguments[..], json].concat());
            command.current_dir(tree.path(""));
            command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(6), "{arguments:?}: {said}");
            assert!(said.contains("it is done"), "{said}");
            assert_eq!(fs::read_to_string(tree.path("file")).unwrap(), expected, "{arguments:?}");
        }
    }
    // What is refused is refused all the same, and of several answers the worst counts.
    let refused = r#"{"ops":[{"op":"remove","path":"none"}]}"#;
    let done = r#"{"ops":[{"op":"append","path":"file","text":"y"}]}"#;
    for (lines, arguments, expected) in [
        (refused.to_owned(), &["apply", "-", "--json"][..], 1),
        (refused.to_owned(), &["batch"], 1),
        (format!("{done}\n{done}"), &["batch"], 6),
    ] {
        tree.write("lines", &format!("{lines}\n"));
        let mut command = tree.command(arguments);
        command.stdin(fs::File::open(tree.path("lines")).unwrap());
        command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {output:?}");
    }
    // Nobody is told of more, so nothing more is done.
    assert_eq!(fs::read_to_string(tree.path("file")).unwrap(), "oldy");
}
