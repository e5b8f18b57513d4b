//! Immutable and append-only files and directories: found before the commit point, wherever they lie.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};

use atomtree::{ErrorKind, Options, Transaction};

use super::{Operation, refused_as, seen};
use crate::basics::{commit, is_root, manual, opened};

fn chattr(flag: &str, path: &Path) -> bool {
    let done = Command::new("chattr").arg(flag).arg(path).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

fn prepare(root: &Path) {
    let _ = fs::remove_dir_all(root.join("d"));
    let _ = fs::remove_dir_all(root.join("moved"));
    fs::create_dir_all(root.join("d/in/deep")).unwrap();
    fs::write(root.join("d/in/file"), "old").unwrap();
    fs::write(root.join("d/in/deep/file"), "old").unwrap();
    fs::write(root.join("source"), "source").unwrap();
}

/// On the file `d/in/file`.
const ON_FILE: [(&str, Operation); 9] = [
    ("write", |tx| tx.write("d/in/file", "new")),
    ("append", |tx| tx.append("d/in/file", "+")),
    ("patch", |tx| tx.patch("d/in/file", 0, "p")),
    ("remove", |tx| tx.remove("d/in/file")),
    ("rename", |tx| tx.rename("d/in/file", "moved")),
    ("rename over", |tx| tx.rename("source", "d/in/file")),
    ("set_mode", |tx| tx.set_mode("d/in/file", 0o600)),
    ("remove_dir_all", |tx| tx.remove_dir_all("d/in")),
    ("remove_dir_all above", |tx| tx.remove_dir_all("d")),
];

/// On the directory `d/in`, and on names in it.
const ON_DIR: [(&str, Operation); 15] = [
    ("rename it", |tx| tx.rename("d/in", "moved")),
    ("remove_dir_all", |tx| tx.remove_dir_all("d/in")),
    ("remove_dir_all above", |tx| tx.remove_dir_all("d")),
    ("set_mode", |tx| tx.set_mode("d/in", 0o700)),
    ("write", |tx| tx.write("d/in/file", "new")),
    ("write new", |tx| tx.write("d/in/new", "new")),
    ("append", |tx| tx.append("d/in/file", "+")),
    ("patch", |tx| tx.patch("d/in/file", 0, "p")),
    ("remove", |tx| tx.remove("d/in/file")),
    ("rename out", |tx| tx.rename("d/in/file", "moved")),
    ("rename in", |tx| tx.rename("source", "d/in/new")),
    ("create_dir", |tx| tx.create_dir("d/in/new")),
    ("create_dir_all", |tx| tx.create_dir_all("d/in/new/deep")),
    ("symlink", |tx| tx.symlink("d/in/new", "x")),
    ("remove_dir", |tx| tx.remove("d/in/deep/file").and_then(|()| tx.remove_dir("d/in/deep"))),
];

/// Goal: what no one may change is found before the commit point by every operation, however deep it lies in what goes;
/// nothing changes, nothing is left in the store, and the store goes on. What only passes by on its way is moved along.
/// Method: both flags on a file and on a directory, every operation, a rename of the directory above.
#[test]
fn fixed_files_and_directories_are_found_by_every_operation() {
    if !is_root() {
        return;
    }
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("probe"), "").unwrap();
    if !chattr("+i", &root.join("probe")) {
        println!("skipped: there is no chattr, or the file system has no such flags");
        return;
    }
    chattr("-i", &root.join("probe"));
    for (set, clear) in [("+i", "-i"), ("+a", "-a")] {
        for (at, operations) in [("d/in/file", &ON_FILE[..]), ("d/in", &ON_DIR)] {
            prepare(root);
            assert!(chattr(set, &root.join(at)));
            let result = catch_unwind(AssertUnwindSafe(|| {
                for (what, operation) in operations {
                    let what = format!("{set} {at}, {what}");
                    refused_as(root, &store, &[ErrorKind::Permission], &what, operation);
                    commit(&store, |tx| tx.write("good", what.clone())).unwrap();
                    store.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }));
            for path in [root.join(at), root.join("moved").join(&at["d/".len()..])] {
                chattr(clear, &path);
            }
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        // What lies in a directory that is renamed goes along, flag and all.
        prepare(root);
        let before = seen(&root.join("d"));
        chattr(set, &root.join("d/in/file"));
        let renamed = commit(&store, |tx| tx.rename("d", "moved"));
        let still = fs::write(root.join("moved/in/file"), "x").is_err();
        chattr(clear, &root.join("moved/in/file"));
        chattr(clear, &root.join("d/in/file"));
        renamed.unwrap();
        assert!(still, "the flag went along");
        assert_eq!(seen(&root.join("moved")), before);
    }
    store.close().unwrap();
    assert_eq!(fs::read_dir(root.join(".atomtree/quarantine")).unwrap().count(), 0);
}

/// Goal: a flag that is set between the look and the commit is found by the check. Method: on a file that is replaced,
/// removed, changed in mode, and inside a directory that is removed.
#[test]
fn flags_that_are_set_meanwhile_are_found_at_the_check() {
    if !is_root() {
        return;
    }
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    prepare(root);
    if !chattr("+i", &root.join("source")) {
        println!("skipped: there is no chattr, or the file system has no such flags");
        return;
    }
    chattr("-i", &root.join("source"));
    for (what, operation) in ON_FILE {
        prepare(root);
        let mut tx: Transaction = store.begin().unwrap();
        operation(&mut tx).unwrap();
        chattr("+i", &root.join("d/in/file"));
        let before = seen(root);
        let result = tx.commit();
        let after = seen(root);
        chattr("-i", &root.join("d/in/file"));
        let error = result.expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::Permission | ErrorKind::Conflict), "{what}: {error}");
        assert_eq!(after, before, "{what}: {error}");
        commit(&store, |tx| tx.write("good", what)).unwrap();
    }
    store.close().unwrap();
    let store = Options::new().open(root).unwrap();
    store.close().unwrap();
}
