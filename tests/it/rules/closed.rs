//! Directories that their owner may not write to when a transaction is through, and that it fills: by a user who is not
//! root, with the death of the process at every call, for whom such a directory is closed in recovery as well.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use atomtree::{Error, Transaction};

use super::{Operation, crash_at_every_call, trees};
use crate::basics::{child, child_root, is_root};
use crate::errors::as_user;

fn prepare(root: &Path) {
    for dir in ["d/deep", "moving/deep", "target"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["d/file", "d/gone", "d/deep/file", "moving/file", "source"] {
        fs::write(root.join(file), "old").unwrap();
    }
    fs::set_permissions(root.join("moving/deep"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// Made closed, and filled.
fn make_closed(tx: &mut Transaction) -> Result<(), Error> {
    tx.create_dir_with_mode("made", 0o555)?;
    tx.write("made/file", "x")?;
    tx.create_dir_with_mode("made/inner", 0o500)?;
    tx.symlink("made/inner/link", "../file")?;
    tx.write("made/inner/file", "x")?;
    tx.create_dir_with_mode("made/inner/none", 0)?;
    tx.rename("source", "made/inner/moved")
}

/// There already, changed in every way and closed by the same transaction.
fn close_existing(tx: &mut Transaction) -> Result<(), Error> {
    tx.set_mode("d", 0o555)?;
    tx.write("d/new", "x")?;
    tx.append("d/file", "+")?;
    tx.remove("d/gone")?;
    tx.symlink("d/link", "file")?;
    tx.write("d/deep/made/file", "x")?;
    tx.set_mode("d/deep", 0o500)?;
    tx.rename("source", "d/moved")
}

/// Moved, changed and closed.
fn close_moved(tx: &mut Transaction) -> Result<(), Error> {
    tx.rename("moving", "target/moved")?;
    tx.set_mode("target/moved", 0o555)?;
    tx.write("target/moved/file", "new")?;
    tx.write("target/moved/new", "x")?;
    tx.set_mode("target", 0o555)
}

/// Goal: a directory may be closed by the transaction that fills it, made, found or moved there; and be recovered.
#[test]
fn a_directory_is_filled_and_closed_at_once() {
    let test = "rules::closed::a_directory_is_filled_and_closed_at_once";
    let changes: [(&str, Operation); 3] =
        [("made", make_closed), ("found", close_existing), ("moved", close_moved)];
    if let Some(root) = child_root() {
        for (what, change) in changes {
            eprintln!("{what}");
            let (old, new) = crash_at_every_call(&root, prepare, change);
            assert!(old > 0 && new > 0, "{what}");
        }
        eprintln!("passed");
        return;
    }
    let scratch = trees();
    if is_root() {
        std::os::unix::fs::chown(scratch.path(), Some(1234), Some(1234)).unwrap();
        if let Some(text) = as_user(1234, &mut child(test, scratch.path())) {
            assert!(text.contains("passed"), "{text}");
        }
    } else {
        for (_, change) in changes {
            crash_at_every_call(scratch.path(), prepare, change);
        }
    }
}

/// Goal: files that their owner may not read are recovered: written, moved and changed to such modes. Method: as above.
#[test]
fn closed_files_are_recovered() {
    let prepare = |root: &Path| {
        for (name, bytes) in
            [("small", 10), ("large", 2 << 20), ("changed", 10), ("written", 10), ("gone/in", 10)]
        {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![b'x'; bytes]).unwrap();
            let mode = if ["changed", "written"].contains(&name) { 0o644 } else { 0 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let change = |tx: &mut Transaction| {
        tx.rename("small", "moved/small")?;
        tx.rename("large", "moved/large")?;
        tx.set_mode("changed", 0)?;
        tx.write_with_mode("written", "new", 0o200)?;
        tx.write_with_mode("new", "new", 0)?;
        tx.remove_dir_all("gone")
    };
    if let Some(root) = child_root() {
        crash_at_every_call(&root, prepare, change);
        eprintln!("passed");
        return;
    }
    let scratch = trees();
    if is_root() {
        std::os::unix::fs::chown(scratch.path(), Some(1234), Some(1234)).unwrap();
        let test = "rules::closed::closed_files_are_recovered";
        if let Some(text) = as_user(1234, &mut child(test, scratch.path())) {
            assert!(text.contains("passed"), "{text}");
        }
    } else {
        crash_at_every_call(scratch.path(), prepare, change);
    }
}
