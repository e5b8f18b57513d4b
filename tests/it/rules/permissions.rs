//! What a user who is not root may not do is found out before the commit point; what he may do is done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use atomtree::{ErrorKind, Transaction};

use super::{Operation, refused_as};
use crate::basics::{child, child_root, commit, is_root, shell, small, tree};
use crate::errors::as_user;

/// A tree of user 1234, with what that user may not change, each in a directory of its own below `N`.
const TREE: &str = "
    mkdir -p closed/in closed-empty/in unreadable-file searchless/in unlistable/in foreign-file foreign-dir/in \
        foreign-full/in sticky/in plain top
    echo x > closed/in/file; echo x > unreadable-file/file; echo x > searchless/in/file; echo x > unlistable/in/file
    echo x > foreign-file/file; echo x > foreign-full/in/file; echo x > sticky/in/file; echo x > plain/file
    echo x > large; head -c 2000000 /dev/zero > unreadable-large; echo x > unreadable; echo x > foreign
    mkdir foreign-top; echo x > group; mkdir group-dir; echo x > top/file
    chown -R 1234:1234 .; chown -R 4711:4711 foreign-file/file foreign-dir/in foreign-full/in sticky/in foreign foreign-top
    chgrp 4712 group group-dir; chmod 1777 sticky/in; chmod 644 foreign
    chmod 555 closed/in closed-empty/in top; chmod 0 unreadable-file/file unreadable unreadable-large searchless/in
    chmod 333 unlistable/in";

/// Runs the rest of a test as user 1234 in a tree made by `script`; false in the parent, or where it can't be run.
fn is_user(test: &str, script: &str) -> bool {
    if child_root().is_some() {
        return true;
    }
    if is_root() {
        let scratch = tempfile::tempdir().unwrap();
        shell(&format!("cd '{}'; {script}; chown 1234:1234 .; chmod 755 .", scratch.path().display()));
        if let Some(text) = as_user(1234, &mut child(test, scratch.path())) {
            assert!(text.contains("passed"), "{text}");
        }
    }
    false
}

/// Goal: removing a directory is refused for what lies in it exactly where rm would fail, and nothing changes; where rm
/// succeeds, it is done. Method: directories that hold something that is closed, unreadable, foreign or sticky.
#[test]
fn directories_are_removed_where_rm_could() {
    if !is_user("rules::permissions::directories_are_removed_where_rm_could", TREE) {
        return;
    }
    let root = child_root().unwrap();
    let store = small().open(&root).unwrap();
    for dir in ["closed", "searchless", "unlistable", "foreign-full", "sticky", "top"] {
        refused_as(&root, &store, &[ErrorKind::Permission], dir, |tx| tx.remove_dir_all(dir));
        refused_as(&root, &store, &[ErrorKind::Permission], dir, |tx| {
            tx.write("plain/other", "x")?;
            tx.remove_dir_all(dir)
        });
    }
    for dir in ["closed-empty", "unreadable-file", "foreign-file", "foreign-dir", "plain"] {
        commit(&store, |tx| tx.remove_dir_all(dir)).unwrap_or_else(|error| panic!("{dir}: {error}"));
        assert!(!root.join(dir).exists());
        store.checkpoint().unwrap_or_else(|error| panic!("{dir}: {error}"));
    }
    store.close().unwrap();
    assert_eq!(fs::read_dir(root.join(".atomtree/quarantine")).unwrap().count(), 0);
    eprintln!("passed");
}

/// Goal: a directory is renamed whatever lies in it; it is refused only where the directory itself may not be moved.
/// Method: the same directories, to another name and into another directory, over an empty directory as well.
#[test]
fn directories_are_renamed_whatever_they_hold() {
    if !is_user("rules::permissions::directories_are_renamed_whatever_they_hold", TREE) {
        return;
    }
    let root = child_root().unwrap();
    let store = small().open(&root).unwrap();
    for dir in [
        "closed",
        "closed-empty",
        "unreadable-file",
        "searchless",
        "unlistable",
        "foreign-file",
        "foreign-dir",
        "foreign-full",
        "sticky",
        "plain",
    ] {
        fs::create_dir_all(root.join("target/empty")).unwrap();
        for (from, to) in [(dir, "moved"), ("moved", "target/moved"), ("target/moved", "target/empty")] {
            commit(&store, |tx| tx.rename(from, to)).unwrap_or_else(|error| panic!("{dir} to {to}: {error}"));
            assert!(!root.join(from).exists() && root.join(to).exists(), "{dir} to {to}");
        }
        commit(&store, |tx| tx.rename("target/empty", dir)).unwrap();
    }
    // Closed directories themselves, and what lies in them.
    refused_as(&root, &store, &[ErrorKind::Permission], "closed/in", |tx| tx.rename("closed/in", "moved"));
    refused_as(&root, &store, &[ErrorKind::Permission], "foreign", |tx| tx.rename("foreign-top", "plain/x"));
    for operation in 0..8 {
        refused_as(&root, &store, &[ErrorKind::Permission], "in closed/in", |tx| match operation {
            0 => tx.rename("closed/in/file", "moved"),
            1 => tx.rename("plain/file", "closed/in/new"),
            2 => tx.create_dir("closed/in/new"),
            3 => tx.create_dir_all("closed/in/new/deep"),
            4 => tx.symlink("closed/in/new", "x"),
            5 => tx.remove("closed/in/file"),
            6 => tx.append("closed/in/file", "+"),
            _ => tx.patch("closed/in/file", 0, "p"),
        });
    }
    store.close().unwrap();
    eprintln!("passed");
}

/// Goal: a file that may not be read is removed, renamed and given a mode as `rm`, `mv` and `chmod` do it, and kept
/// exactly; what needs its content is refused. Method: a small and a large one.
#[test]
fn unreadable_files_are_kept_or_refused() {
    if !is_user("rules::permissions::unreadable_files_are_kept_or_refused", TREE) {
        return;
    }
    let root = child_root().unwrap();
    let store = small().open(&root).unwrap();
    for name in ["unreadable", "unreadable-large"] {
        let operations: [(&str, fn(&mut Transaction, &str) -> Result<(), atomtree::Error>); 4] = [
            ("write", |tx, name| tx.write(name, "x")),
            ("append", |tx, name| tx.append(name, "x")),
            ("patch", |tx, name| tx.patch(name, 0, "x")),
            ("read", |tx, name| tx.read(name).map(drop)),
        ];
        for (what, operation) in operations {
            refused_as(&root, &store, &[ErrorKind::Permission], what, |tx| operation(tx, name));
        }
        let before = fs::metadata(root.join(name)).unwrap();
        commit(&store, |tx| tx.rename(name, "moved")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let after = fs::metadata(root.join("moved")).unwrap();
        assert_eq!((after.len(), after.permissions().mode()), (before.len(), before.permissions().mode()));
        commit(&store, |tx| tx.rename("moved", "top-of/it")).unwrap();
        commit(&store, |tx| tx.set_mode("top-of/it", 0o640)).unwrap();
        let content = fs::read(root.join("top-of/it")).unwrap();
        assert!(content == b"x\n" || content == vec![0; 2_000_000], "{name}");
        fs::set_permissions(root.join("top-of/it"), fs::Permissions::from_mode(0o000)).unwrap();
        commit(&store, |tx| tx.remove("top-of/it")).unwrap();
    }
    store.close().unwrap();
    eprintln!("passed");
}

/// Goal: `chmod` of what belongs to somebody else is refused before the commit point, and no bit is dropped silently.
/// Method: files and directories of another user, alone, after a rename and with other changes; setgid where the user
/// is not in the group.
#[test]
fn modes_are_set_or_refused() {
    if !is_user("rules::permissions::modes_are_set_or_refused", TREE) {
        return;
    }
    let root = child_root().unwrap();
    let store = small().open(&root).unwrap();
    let operations: [(&str, Operation); 6] = [
        ("a file", |tx| tx.set_mode("foreign", 0o600)),
        ("a directory", |tx| tx.set_mode("foreign-top", 0o700)),
        ("with others", |tx| tx.write("new", "x").and_then(|()| tx.set_mode("foreign", 0o600))),
        ("a renamed file", |tx| tx.rename("foreign", "moved").and_then(|()| tx.set_mode("moved", 0o600))),
        ("setgid", |tx| tx.set_mode("group", 0o2755)),
        ("setgid of a directory", |tx| tx.set_mode("group-dir", 0o2775)),
    ];
    for (what, operation) in operations {
        refused_as(&root, &store, &[ErrorKind::Permission], what, operation);
        commit(&store, |tx| tx.write("good", what)).unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
    commit(&store, |tx| {
        tx.set_mode("group", 0o755)?;
        tx.set_mode("group-dir", 0o700)?;
        tx.set_mode("plain", 0o2755)
    })
    .unwrap();
    assert_eq!(tree(&root)[Path::new("plain")].mode & 0o7777, 0o2755);
    // Where nothing may be made or removed, a mode can be changed all the same, or is refused.
    match commit(&store, |tx| tx.set_mode("top/file", 0o600)) {
        Ok(_) => assert_eq!(tree(&root)[Path::new("top/file")].mode & 0o7777, 0o600),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Permission, "{error}"),
    }
    // Opened and filled in one transaction: done, or refused as a whole.
    let before = tree(&root);
    match commit(&store, |tx| tx.set_mode("top", 0o755).and_then(|()| tx.write("top/new", "x"))) {
        Ok(_) => assert_eq!(fs::read(root.join("top/new")).unwrap(), b"x"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
            assert_eq!(tree(&root), before);
        }
    }
    store.close().unwrap();
    eprintln!("passed");
}
