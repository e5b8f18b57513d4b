//! A store inside the tree of another: a directory like others, which is moved and removed whole.

use std::fs;
use std::sync::Arc;

use atomtree::ErrorKind;
use atomtree::vfs::faults::{Faults, fail_from, fail_nothing};
use atomtree::vfs::os::Os;

use super::{EIO, refused, reopened, seen};
use crate::basics::{commit, manual, opened};

/// Goal: a nested store goes along with its tree and is usable there, with transactions that are not settled; and is
/// removed with it. Method: renamed while it is unsettled, opened, removed.
#[test]
fn a_nested_store_goes_along_with_its_tree() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir_all(root.join("d/project")).unwrap();
    let faults = Faults::new(Arc::new(Os), fail_nothing());
    let nested = manual().vfs(Arc::new(faults.clone())).open(root.join("d/project")).unwrap();
    commit(&nested, |tx| tx.write("settled", "1")).unwrap();
    nested.checkpoint().unwrap();
    commit(&nested, |tx| tx.write("unsettled", "2")).unwrap();
    // Its process dies.
    faults.set_rule(fail_from(0, EIO));
    drop(nested);
    let before = seen(&root.join("d"));
    commit(&store, |tx| tx.rename("d", "moved")).unwrap();
    assert_eq!(seen(&root.join("moved")), before);
    let nested = reopened(&root.join("moved/project")).unwrap();
    assert_eq!(nested.recovery().redone, 1);
    commit(&nested, |tx| tx.append("unsettled", "3")).unwrap();
    // And while it is open.
    commit(&store, |tx| {
        assert!(tx.list("moved/project")?.iter().any(|(name, _)| name == ".atomtree"));
        tx.rename("moved", "again")
    })
    .unwrap();
    commit(&nested, |tx| tx.append("unsettled", "4")).unwrap();
    nested.close().unwrap();
    assert_eq!(fs::read(root.join("again/project/unsettled")).unwrap(), b"234");
    store.close().unwrap();
}

/// Goal: the outer store's own names are nobody's, however they are spelled; an inner one's are removed with their tree.
#[test]
fn a_nested_store_is_removed_with_its_tree() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir_all(root.join("d/project")).unwrap();
    let nested = manual().open(root.join("d/project")).unwrap();
    commit(&nested, |tx| tx.write("file", "1")).unwrap();
    nested.close().unwrap();
    for operation in 0..6 {
        refused(root, &store, ErrorKind::InvalidPath, |tx| match operation {
            0 => tx.remove_dir_all(".atomtree"),
            1 => tx.rename(".atomtree", "x"),
            2 => tx.rename("d", ".atomtree"),
            3 => tx.set_mode(".atomtree", 0o755),
            4 => tx.create_dir_all(".atomtree/stage/x"),
            _ => tx.symlink(".ATOMTREE", "d"),
        });
    }
    commit(&store, |tx| tx.rename("d", "e")).unwrap();
    let nested = manual().open(root.join("e/project")).unwrap();
    commit(&nested, |tx| tx.append("file", "2")).unwrap();
    nested.close().unwrap();
    commit(&store, |tx| tx.remove_dir_all("e")).unwrap();
    store.close().unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 1, "the store alone");
    assert_eq!(fs::read_dir(root.join(".atomtree/quarantine")).unwrap().count(), 0);
}
