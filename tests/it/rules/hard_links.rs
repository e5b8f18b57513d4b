//! Files with several names: parted only if that is asked for, and whole directories of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use atomtree::{ErrorKind, HardLinks, Options, Symlinks, Transaction};

use super::{Operation, refused_as};
use crate::basics::{commit, manual, opened, tree};

const PARTING: [(&str, Operation); 8] = [
    ("write", |tx| tx.write("d/one", "new")),
    ("write_with_mode", |tx| tx.write_with_mode("d/one", "new", 0o600)),
    ("write_from", |tx| tx.write_from("d/one", &b"new"[..]).map(drop)),
    ("append", |tx| tx.append("d/one", "+")),
    ("patch", |tx| tx.patch("d/one", 0, "p")),
    ("rename over", |tx| tx.rename("single", "d/one")),
    ("set_mode and append", |tx| tx.set_mode("d/one", 0o600).and_then(|()| tx.append("d/one", "+"))),
    ("through a link", |tx| {
        tx.set_symlinks(Symlinks::Follow);
        tx.write("link", "new")
    }),
];

fn prepare(root: &Path) {
    for name in ["d", "e"] {
        let _ = fs::remove_dir_all(root.join(name));
    }
    for name in ["two", "link", "single"] {
        let _ = fs::remove_file(root.join(name));
    }
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/one"), "old").unwrap();
    fs::write(root.join("single"), "single").unwrap();
    fs::hard_link(root.join("d/one"), root.join("two")).unwrap();
    std::os::unix::fs::symlink("d/one", root.join("link")).unwrap();
}

/// Goal: what would part a file from its other names is refused with a hint, and done if it is asked for, by the
/// transaction or by the store's options. Method: every operation that replaces a file.
#[test]
fn parting_is_refused_or_asked_for() {
    for asked_of_store in [false, true] {
        let options: Options = manual();
        let (scratch, store) =
            opened(if asked_of_store { options.hard_links(HardLinks::Break) } else { options });
        let root = scratch.path();
        for (what, operation) in PARTING {
            prepare(root);
            if !asked_of_store {
                let message = refused_as(root, &store, &[ErrorKind::Unsupported], what, operation);
                assert!(message.contains("hard links are to be broken"), "{what}: {message}");
            }
            let before = tree(root);
            commit(&store, |tx: &mut Transaction| {
                if !asked_of_store {
                    tx.set_hard_links(HardLinks::Break);
                }
                operation(tx)
            })
            .unwrap_or_else(|error| panic!("{what}: {error}"));
            let after = tree(root);
            assert_eq!(after[Path::new("two")], before[Path::new("two")], "{what}: the other name");
            assert_ne!(after[Path::new("d/one")].content, b"old", "{what}");
            assert_eq!(fs::metadata(root.join("d/one")).unwrap().nlink(), 1, "{what}");
        }
        store.close().unwrap();
    }
}

/// Goal: what concerns the inode or the name alone is done without asking: all names show a new mode, a renamed name
/// stays one of the inode's, and a removed one leaves the others. Method: each, on the file and on its directory.
#[test]
fn what_parts_nothing_is_done() {
    let operations: [(&str, Operation, &str); 6] = [
        ("set_mode", |tx| tx.set_mode("d/one", 0o4711), "d/one"),
        ("rename", |tx| tx.rename("d/one", "d/three"), "d/three"),
        ("rename and set_mode", |tx| tx.rename("d/one", "x").and_then(|()| tx.set_mode("x", 0o600)), "x"),
        ("rename the directory", |tx| tx.rename("d", "e"), "e/one"),
        ("remove", |tx| tx.remove("d/one"), ""),
        ("remove_dir_all", |tx| tx.remove_dir_all("d"), ""),
    ];
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for (what, operation, name) in operations {
        prepare(root);
        let _ = fs::remove_file(root.join("x"));
        let inode = fs::metadata(root.join("two")).unwrap().ino();
        commit(&store, operation).unwrap_or_else(|error| panic!("{what}: {error}"));
        store.checkpoint().unwrap();
        let two = fs::metadata(root.join("two")).unwrap();
        assert_eq!(fs::read(root.join("two")).unwrap(), b"old", "{what}");
        // What the history keeps of a directory that went is a copy: an edit in place would change the inode's own content.
        assert_eq!((two.ino(), two.nlink()), (inode, 1 + u64::from(!name.is_empty())), "{what}");
        if !name.is_empty() {
            assert_eq!(fs::metadata(root.join(name)).unwrap().ino(), inode, "{what}");
        }
        let is_new_mode = two.mode() & 0o7777 == if what == "set_mode" { 0o4711 } else { 0o600 };
        assert!(is_new_mode || !what.contains("set_mode"), "{what}: {:o}", two.mode());
    }
    store.close().unwrap();
}
