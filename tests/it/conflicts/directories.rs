//! Isolation of what transactions do to directories, links and modes, and of what they ask about them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use atomtree::{Error, ErrorKind, Store, Transaction};

use crate::basics::{commit, manual, opened, tree};

/// What is done to a transaction, and to the tree by another program.
type Usage = fn(&mut Transaction) -> Result<(), Error>;
type Edit = fn(&Path);

/// A tree with a bit of everything in `d`, and something to move.
fn prepare(root: &Path) {
    for name in ["d", "e", "moved", "aside", "target", "empty", "source"] {
        let path = root.join(name);
        let _ = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
    fs::create_dir_all(root.join("d/in/deep")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for file in ["d/file", "d/other", "d/in/file", "d/in/deep/file", "source"] {
        fs::write(root.join(file), "old").unwrap();
    }
    symlink("file", root.join("d/link")).unwrap();
}

/// Lets `usage` look, `edit` intervene, and the transaction commit; the conflict's path, or `None` if it committed.
/// A conflict leaves everything as it was.
fn conflict(store: &Store, root: &Path, what: &str, usage: Usage, edit: Edit) -> Option<String> {
    prepare(root);
    // Long enough ago for times to prove something, in every other case.
    if what.len().is_multiple_of(2) {
        std::thread::sleep(std::time::Duration::from_millis(12));
    }
    let mut tx = store.begin().unwrap();
    usage(&mut tx).unwrap_or_else(|error| panic!("{what}: {error}"));
    edit(root);
    let before = tree(root);
    match tx.commit() {
        Ok(_) => None,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
            assert_eq!(tree(root), before, "{what}: {error}");
            let path = error.path().expect("a conflict has a path").display().to_string();
            assert!(error.into_transaction().is_some(), "{what}");
            Some(path)
        }
    }
}

/// Edits in and around `d`, each with the name that it is about.
const EDITS: [(&str, Edit, &str); 18] = [
    ("a file made", |r| fs::write(r.join("d/new"), "x").unwrap(), "d/new"),
    ("a file made deeper", |r| fs::write(r.join("d/in/deep/new"), "x").unwrap(), "d/in/deep/new"),
    ("a directory made", |r| fs::create_dir(r.join("d/in/new")).unwrap(), "d/in/new"),
    ("a link made", |r| symlink("x", r.join("d/new")).unwrap(), "d/new"),
    ("a file changed", |r| fs::write(r.join("d/file"), "new").unwrap(), "d/file"),
    ("a file changed deeper", |r| fs::write(r.join("d/in/deep/file"), "newer").unwrap(), "d/in/deep/file"),
    ("a file replaced", |r| replace(r, "d/in/file"), "d/in/file"),
    ("a file removed", |r| fs::remove_file(r.join("d/in/file")).unwrap(), "d/in/file"),
    ("a file renamed", |r| fs::rename(r.join("d/other"), r.join("d/another")).unwrap(), "d/another d/other"),
    ("a file moved in", |r| fs::rename(r.join("source"), r.join("d/in/s")).unwrap(), "d/in/s"),
    ("a file moved out", |r| fs::rename(r.join("d/in/file"), r.join("aside")).unwrap(), "d/in/file"),
    ("a link flipped", flip, "d/link"),
    ("a file made a directory", kind, "d/in/file"),
    ("a directory removed", |r| fs::remove_dir_all(r.join("d/in/deep")).unwrap(), "d/in/deep d/in/deep/file"),
    ("a directory moved out", |r| fs::rename(r.join("d/in/deep"), r.join("aside")).unwrap(), "d/in/deep"),
    ("a directory replaced", |r| swap(r, "d/in/deep"), "d/in/deep d/in/deep/file"),
    ("it moved", |r| fs::rename(r.join("d"), r.join("aside")).unwrap(), "d"),
    ("it replaced", |r| swap(r, "d"), "d"),
];

fn replace(root: &Path, name: &str) {
    fs::write(root.join("aside"), "new").unwrap();
    fs::rename(root.join("aside"), root.join(name)).unwrap();
}

fn swap(root: &Path, name: &str) {
    fs::rename(root.join(name), root.join("aside")).unwrap();
    fs::create_dir(root.join(name)).unwrap();
}

fn flip(root: &Path) {
    fs::remove_file(root.join("d/link")).unwrap();
    symlink("other", root.join("d/link")).unwrap();
}

fn kind(root: &Path) {
    fs::remove_file(root.join("d/in/file")).unwrap();
    fs::create_dir(root.join("d/in/file")).unwrap();
}

/// Goal: whatever is made, changed or removed in a directory between its removal and the commit is a conflict that names
/// it, at every depth. Method: eighteen edits, by the removal of everything in one call and of one after another.
#[test]
fn a_removed_directory_has_to_hold_what_was_seen() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let usages: [(&str, Usage); 2] = [
        ("remove_dir_all", |tx| tx.remove_dir_all("d")),
        ("one by one", |tx| {
            for name in ["d/file", "d/other", "d/link", "d/in/file", "d/in/deep/file"] {
                tx.remove(name)?;
            }
            ["d/in/deep", "d/in", "d"].iter().try_for_each(|dir| tx.remove_dir(dir))
        }),
    ];
    for (usage_name, usage) in usages {
        for (edit_name, edit, names) in EDITS {
            let what = format!("{usage_name}, {edit_name}");
            let path =
                conflict(&store, root, &what, usage, edit).unwrap_or_else(|| panic!("{what}: no conflict"));
            assert!(names.split(' ').any(|name| name == path), "{what}: it names {path}");
        }
        let path = conflict(&store, root, usage_name, usage, |_| {});
        assert_eq!(path, None, "{usage_name}");
        assert!(!root.join("d").exists());
    }
    store.close().unwrap();
}

/// Goal: other operations are conflicts exactly if what they replace, move or make has changed. Method: each operation
/// with the edits that concern it, and with some that don't.
#[test]
fn each_operation_conflicts_with_what_concerns_it() {
    let usages: [(&str, Usage, &[(Edit, Option<&str>)]); 9] = [
        (
            "remove_dir",
            |tx| tx.remove_dir("empty"),
            &[
                (|r| fs::write(r.join("empty/new"), "x").unwrap(), Some("empty/new")),
                (|r| fs::remove_dir(r.join("empty")).unwrap(), Some("empty")),
                (|r| swap(r, "empty"), Some("empty")),
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
            ],
        ),
        (
            "rename of a directory",
            |tx| tx.rename("d", "moved"),
            &[
                (|r| swap(r, "d"), Some("d")),
                (|r| fs::rename(r.join("d"), r.join("aside")).unwrap(), Some("d")),
                (|r| fs::create_dir(r.join("moved")).unwrap(), Some("moved")),
                (|r| fs::write(r.join("moved"), "x").unwrap(), Some("moved")),
                (|r| fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o700)).unwrap(), None),
                // What lies in it goes along, as it is by then, and so does what was done to it.
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
                (|r| fs::write(r.join("d/file"), "new").unwrap(), None),
                (|r| fs::remove_file(r.join("d/in/file")).unwrap(), None),
            ],
        ),
        (
            "rename over a directory",
            |tx| tx.rename("d", "empty"),
            &[
                (|r| fs::write(r.join("empty/new"), "x").unwrap(), Some("empty/new")),
                (|r| fs::remove_dir(r.join("empty")).unwrap(), Some("empty")),
                (|r| swap(r, "empty"), Some("empty")),
            ],
        ),
        (
            "rename of a file",
            |tx| tx.rename("source", "target"),
            &[
                (|r| replace(r, "source"), Some("source")),
                (|r| fs::remove_file(r.join("source")).unwrap(), Some("source")),
                (|r| fs::write(r.join("target"), "x").unwrap(), Some("target")),
                (|r| fs::create_dir(r.join("target")).unwrap(), Some("target")),
                (|r| symlink("x", r.join("target")).unwrap(), Some("target")),
            ],
        ),
        (
            "rename of a link",
            |tx| tx.rename("d/link", "target"),
            &[
                (flip, Some("d/link")),
                (|r| fs::remove_file(r.join("d/link")).unwrap(), Some("d/link")),
                (|r| symlink("x", r.join("target")).unwrap(), Some("target")),
            ],
        ),
        (
            "create_dir",
            |tx| tx.create_dir("target"),
            &[
                (|r| fs::create_dir(r.join("target")).unwrap(), Some("target")),
                (|r| fs::write(r.join("target"), "x").unwrap(), Some("target")),
            ],
        ),
        (
            "create_dir_all",
            |tx| tx.create_dir_all("target/deep"),
            &[
                (|r| fs::create_dir_all(r.join("target/deep")).unwrap(), None),
                (|r| fs::write(r.join("target"), "x").unwrap(), Some("target")),
            ],
        ),
        (
            "symlink",
            |tx| tx.symlink("d/link", "elsewhere"),
            &[
                (flip, Some("d/link")),
                (|r| fs::remove_file(r.join("d/link")).unwrap(), Some("d/link")),
                (|r| fs::write(r.join("d/file"), "new").unwrap(), None),
            ],
        ),
        (
            "set_mode",
            |tx| tx.set_mode("d", 0o711).and_then(|()| tx.set_mode("source", 0o600)),
            &[
                (|r| fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o700)).unwrap(), Some("d")),
                (|r| swap(r, "d"), Some("d")),
                (|r| replace(r, "source"), Some("source")),
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
            ],
        ),
    ];
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for (what, usage, edits) in usages {
        for (number, (edit, expected)) in edits.iter().enumerate() {
            let what = format!("{what}, edit {number}");
            assert_eq!(conflict(&store, root, &what, usage, *edit).as_deref(), *expected, "{what}");
        }
        assert_eq!(conflict(&store, root, what, usage, |_| {}), None, "{what}");
    }
    store.close().unwrap();
}

/// Goal: an answer that a transaction was given still holds when it commits, and nothing else counts. Method: each
/// question, with edits that change its answer and edits that don't.
#[test]
fn answers_still_hold_at_the_commit() {
    let questions: [(&str, Usage, &[(Edit, Option<&str>)]); 8] = [
        (
            "list",
            |tx| tx.list("d").map(drop),
            &[
                (|r| fs::write(r.join("d/new"), "x").unwrap(), Some("d/new")),
                (|r| fs::create_dir(r.join("d/new")).unwrap(), Some("d/new")),
                (|r| fs::remove_file(r.join("d/other")).unwrap(), Some("d/other")),
                (|r| fs::rename(r.join("d/other"), r.join("d/a")).unwrap(), Some("d/other")),
                (
                    |r| {
                        fs::remove_file(r.join("d/file")).unwrap();
                        fs::create_dir(r.join("d/file")).unwrap();
                    },
                    Some("d/file"),
                ),
                (|r| swap(r, "d"), Some("d")),
                (|r| fs::write(r.join("d/file"), "new").unwrap(), None),
                (|r| replace(r, "d/file"), None),
                (|r| fs::write(r.join("d/in/new"), "x").unwrap(), None),
            ],
        ),
        (
            "list of the root",
            |tx| tx.list("").map(drop),
            &[
                (|r| fs::write(r.join("target"), "x").unwrap(), Some("target")),
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
            ],
        ),
        (
            "exists",
            |tx| tx.exists("d/file").map(|is| assert!(is)),
            &[
                (|r| fs::remove_file(r.join("d/file")).unwrap(), Some("d/file")),
                (|r| fs::write(r.join("d/other"), "new").unwrap(), None),
            ],
        ),
        (
            "exists, and it doesn't",
            |tx| tx.exists("target/x").map(|is| assert!(!is)),
            &[
                (
                    |r| {
                        fs::create_dir(r.join("target")).unwrap();
                        fs::write(r.join("target/x"), "x").unwrap();
                    },
                    Some("target"),
                ),
                (|r| fs::write(r.join("d/new"), "new").unwrap(), None),
            ],
        ),
        (
            "exists of a directory",
            |tx| tx.exists("d").map(drop),
            &[
                (|r| fs::rename(r.join("d"), r.join("aside")).unwrap(), Some("d")),
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
            ],
        ),
        (
            "metadata",
            |tx| tx.metadata("d/file").map(drop),
            &[
                (
                    |r| fs::set_permissions(r.join("d/file"), fs::Permissions::from_mode(0o600)).unwrap(),
                    Some("d/file"),
                ),
                (|r| fs::write(r.join("d/file"), "longer").unwrap(), Some("d/file")),
                (|r| fs::write(r.join("d/other"), "new").unwrap(), None),
            ],
        ),
        (
            "metadata of a directory",
            |tx| tx.metadata("d").map(drop),
            &[
                (|r| fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o700)).unwrap(), Some("d")),
                (|r| swap(r, "d"), Some("d")),
                (|r| fs::write(r.join("d/new"), "x").unwrap(), None),
            ],
        ),
        (
            "read_link",
            |tx| tx.read_link("d/link").map(drop),
            &[
                (flip, Some("d/link")),
                (|r| fs::remove_file(r.join("d/link")).unwrap(), Some("d/link")),
                (|r| fs::write(r.join("d/file"), "new").unwrap(), None),
            ],
        ),
    ];
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for (what, question, edits) in questions {
        for (number, (edit, expected)) in edits.iter().enumerate() {
            let what = format!("{what}, edit {number}");
            assert_eq!(conflict(&store, root, &what, question, *edit).as_deref(), *expected, "{what}");
        }
    }
    store.close().unwrap();
}

/// Goal: of two transactions that concern the same directory the first to commit wins, as between any two. Method: pairs
/// of operations, both begun before either commits.
#[test]
fn the_first_committer_wins_directories() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let pairs: [(&str, Usage, Usage, bool); 8] = [
        ("write into what is removed", |tx| tx.write("d/new", "x"), |tx| tx.remove_dir_all("d"), true),
        ("remove what is written into", |tx| tx.remove_dir_all("d"), |tx| tx.write("d/new", "x"), true),
        ("write into what is moved", |tx| tx.rename("d", "moved"), |tx| tx.write("d/new", "x"), true),
        ("move what is written into", |tx| tx.write("d/new", "x"), |tx| tx.rename("d", "moved"), false),
        ("make the same", |tx| tx.create_dir("e"), |tx| tx.create_dir("e"), true),
        ("need the same", |tx| tx.write("e/one", "x"), |tx| tx.write("e/other", "x"), false),
        ("list and make", |tx| tx.write("d/new", "x"), |tx| tx.list("d").map(drop), true),
        ("list and change", |tx| tx.write("d/file", "x"), |tx| tx.list("d").map(drop), false),
    ];
    for (what, first, second, is_conflict) in pairs {
        prepare(root);
        let (mut winner, mut loser) = (store.begin().unwrap(), store.begin().unwrap());
        second(&mut loser).unwrap();
        first(&mut winner).unwrap();
        winner.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
        let before = tree(root);
        let result = loser.commit().map_err(|error| error.kind());
        if is_conflict {
            assert_eq!(result.map(drop), Err(ErrorKind::Conflict), "{what}");
            assert_eq!(tree(root), before, "{what}");
        } else {
            result.unwrap_or_else(|kind| panic!("{what}: {kind:?}"));
        }
        commit(&store, |tx| tx.write("good", what)).unwrap();
    }
    store.close().unwrap();
}
