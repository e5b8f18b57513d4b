//! Directories that fold case: names in them are refused, with the remedy; they themselves are directories like others.

use std::fs;

use atomtree::ErrorKind;
use atomtree_tests::volume::{Kind, Volume};

use super::{Operation, refused_as, seen};
use crate::basics::{commit, is_root, shell, small};

const OPERATIONS: [(&str, Operation); 15] = [
    ("write", |tx| tx.write("fold/file", "x")),
    ("write new", |tx| tx.write("fold/new", "x")),
    ("write deep", |tx| tx.write("fold/new/deep", "x")),
    ("write below", |tx| tx.write("fold/dir/new", "x")),
    ("other case", |tx| tx.write("fold/FILE", "x")),
    ("append", |tx| tx.append("fold/file", "x")),
    ("patch", |tx| tx.patch("fold/file", 0, "x")),
    ("remove", |tx| tx.remove("fold/file")),
    ("rename", |tx| tx.rename("fold/file", "fold/File")),
    ("rename out", |tx| tx.rename("fold/file", "moved")),
    ("rename in", |tx| tx.rename("source", "fold/moved")),
    ("rename a directory out", |tx| tx.rename("fold/dir", "moved")),
    ("create_dir", |tx| tx.create_dir("fold/new")),
    ("symlink", |tx| tx.symlink("fold/new", "x")),
    ("remove_dir_all", |tx| tx.remove_dir_all("fold/dir")),
];

/// Goal: in a directory that folds case every operation is `unsupported`, says how to go on, and changes nothing, on the
/// store's own names in any case as well. The directory as a whole can be renamed and removed. Method: an ext4 image.
#[test]
fn directories_that_fold_case_are_refused() {
    if !is_root() {
        return;
    }
    let volume = match Volume::create_with(Kind::Ext4, 0, false, &["-O", "casefold"], "") {
        Ok(volume) => volume,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let root = volume.path().join("tree");
    fs::create_dir_all(root.join("fold")).unwrap();
    let folded = std::process::Command::new("chattr").arg("+F").arg(root.join("fold")).status();
    if !folded.is_ok_and(|status| status.success()) {
        println!("skipped: this kernel folds no case");
        return;
    }
    shell(&format!(
        "cd '{}'; mkdir fold/dir; echo x > fold/file; echo y > fold/dir/file; echo s > source",
        root.display()
    ));
    let store = small().open(&root).unwrap();
    for (what, operation) in OPERATIONS {
        let message = refused_as(&root, &store, &[ErrorKind::Unsupported], what, operation);
        assert!(message.contains("chattr -F"), "{what}: {message}");
    }
    refused_as(&root, &store, &[ErrorKind::Unsupported], "set_mode", |tx| tx.set_mode("fold/file", 0o600));
    commit(&store, |tx| {
        assert_eq!(tx.read("fold/file")?, b"x\n");
        tx.set_mode("fold", 0o711)
    })
    .unwrap();
    let before = seen(&root.join("fold"));
    commit(&store, |tx| tx.rename("fold", "moved")).unwrap();
    assert_eq!(seen(&root.join("moved")), before);
    commit(&store, |tx| tx.remove_dir_all("moved")).unwrap();
    assert!(!root.join("moved").exists());
    store.close().unwrap();
}
