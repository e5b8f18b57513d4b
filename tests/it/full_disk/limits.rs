//! Limits of the process: descriptors and the size of files. The program runs under a shell that sets them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::basics::{small, tree};
use crate::cli::program;

/// What the program does under a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It answered that the transaction is committed.
    Committed,
    /// It answered, or complained, that nothing has changed.
    Refused,
    /// It said that recovery has to finish what is durable.
    NotApplied,
    /// A signal ended it.
    Killed,
}

/// Four names of every kind: replaced, new in new directories, in the log and by reference.
fn document(round: u64) -> String {
    format!(
        r#"{{"ops":[{{"op":"write","path":"a","text":"new {round}"}},
            {{"op":"write","path":"made-{round}/deep/b","text":"new {round}"}},
            {{"op":"append","path":"c","text":"new {round}"}},
            {{"op":"write","path":"large","text":"{}"}}]}}"#,
        format!("{round:08}").repeat(25_000)
    )
}

/// Runs one transaction of the program under a shell that has set limits.
fn run_under(limits: &str, root: &Path, round: u64) -> (End, String) {
    let file = root.with_extension("json");
    fs::write(&file, document(round)).unwrap();
    // The core dump of a signal would be larger than the limit, and is of no interest.
    let script = format!(
        "ulimit -c 0; {limits}; exec '{}' --root '{}' --json apply --segment-bytes 65536 '{}'",
        program().display(),
        root.display(),
        file.display()
    );
    let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{limits}: {text}");
    let end = match output.status.code() {
        None => End::Killed,
        Some(0) => End::Committed,
        Some(_) if text.contains(r#""committed_not_applied""#) => End::NotApplied,
        Some(_) => End::Refused,
    };
    (end, text)
}

/// Runs a transaction under each limit. Whatever comes of it, without the limit the store opens, and the tree is the old
/// or the new one, whichever was answered.
fn sweep(limits: impl Iterator<Item = String>) -> Vec<End> {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("tree");
    fs::create_dir(&root).unwrap();
    assert_eq!(run_under("true", &root, 0).0, End::Committed);
    let mut ends = Vec::new();
    for (round, limits) in (1..).zip(limits) {
        let before = tree(&root);
        let (end, text) = run_under(&limits, &root, round);
        let label = format!("{limits}: {end:?}: {text}");
        let is_same = tree(&root) == before;
        assert!(end != End::Refused || is_same, "{label}: the tree has changed");
        let store = small().open(&root).unwrap_or_else(|error| panic!("{label}: then {error}"));
        let report = store.recovery().clone();
        assert!(report.quarantined.is_empty() && report.lost.is_empty(), "{label}: {report:?}");
        store.close().unwrap();
        let after = tree(&root);
        let is_new = ["a", &format!("made-{round}/deep/b")].iter().all(|name| {
            after.get(Path::new(name)).is_some_and(|seen| seen.content == format!("new {round}").as_bytes())
        });
        match end {
            End::Committed => assert!(is_new, "{label}"),
            End::NotApplied => assert!(is_new && report.redone == 1, "{label}: {report:?}"),
            End::Refused => assert!(after == before, "{label}: the tree has changed by opening"),
            End::Killed => assert!(is_new || after == before, "{label}: a mixture"),
        }
        ends.push(end);
    }
    // The store is as good as ever.
    assert_eq!(run_under("true", &root, 999).0, End::Committed);
    ends
}

fn count(ends: &[End], end: End) -> usize {
    ends.iter().filter(|found| **found == end).count()
}

/// Goal: running out of descriptors is refused before anything has changed, or told as `committed_not_applied`. Method:
/// every limit from what no program can start with to what is enough.
#[test]
fn few_descriptors_refuse_at_every_limit_and_the_tree_is_identical() {
    let ends = sweep((4..48).map(|limit| format!("ulimit -n {limit}")));
    println!("{ends:?}");
    assert!(count(&ends, End::Refused) > 3 && count(&ends, End::Committed) > 3, "{ends:?}");
    assert_eq!(ends.last(), Some(&End::Committed), "47 descriptors are enough for four names");
}

/// Goal: the same for the limit on a file's size, with its signal ignored, so that calls fail. Method: limits from
/// nothing to more than the largest file, which is the ballast.
#[test]
fn a_limit_on_file_sizes_refuses_and_the_tree_is_identical() {
    let ends = sweep((0..40).map(|n| format!("trap '' XFSZ; ulimit -f {}", n * n * 2)));
    println!("{ends:?}");
    assert_eq!(count(&ends, End::Killed), 0, "{ends:?}");
    assert!(count(&ends, End::Refused) > 3 && count(&ends, End::Committed) > 3, "{ends:?}");
}

/// Goal: the limit's signal is a kill like any other. Method: the same limits, with the signal let through.
#[test]
fn a_limit_on_file_sizes_that_kills_leaves_all_or_nothing() {
    let ends = sweep((0..40).step_by(3).map(|n| format!("ulimit -f {}", n * n * 2)));
    println!("{ends:?}");
    assert!(count(&ends, End::Killed) > 0, "{ends:?}");
}
