//! What a conflict leaves to its caller, and what a return to a savepoint does not forget.

use std::fs;
use std::path::Path;

use atomtree::{ErrorKind, Transaction};

use crate::basics::{commit, kind_of, manual, opened, tree};

/// Goal: a conflict hands the transaction back with everything that it read and wrote readable in it, so that it can be
/// written to a new one; committing it again is a conflict again, and nothing of it is left behind. Method: a
/// transaction of every kind of operation.
#[test]
fn a_conflict_hands_back_everything() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for dir in ["d/in", "gone", "moving"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["read", "appended", "renamed", "moving/file", "gone/file", "contested"] {
        fs::write(root.join(file), file).unwrap();
    }
    let mut tx = store.begin().unwrap();
    assert_eq!(tx.read("read").unwrap(), b"read");
    tx.write("contested", "mine").unwrap();
    tx.write("new/file", vec![7; 100]).unwrap();
    tx.write_from("new/large", &vec![8; 3 << 20][..]).unwrap();
    tx.append("appended", "+").unwrap();
    tx.rename("renamed", "to").unwrap();
    tx.rename("moving", "moved").unwrap();
    tx.remove_dir_all("gone").unwrap();
    tx.symlink("link", "target").unwrap();
    tx.set_mode("read", 0o600).unwrap();
    fs::write(root.join("contested"), "theirs").unwrap();
    let before = tree(root);
    let check = |tx: &mut Transaction| {
        assert_eq!(tx.read("read").unwrap(), b"read");
        assert_eq!(tx.read("contested").unwrap(), b"mine");
        assert_eq!(tx.read("new/file").unwrap(), vec![7; 100]);
        assert_eq!(tx.read("new/large").unwrap(), vec![8; 3 << 20]);
        assert_eq!(tx.read("appended").unwrap(), b"appended+");
        assert_eq!(tx.read("to").unwrap(), b"renamed");
        assert_eq!(tx.read("moved/file").unwrap(), b"moving/file");
        assert!(!tx.exists("gone").unwrap() && !tx.exists("renamed").unwrap());
        assert_eq!(tx.read_link("link").unwrap(), Path::new("target"));
        assert_eq!(tx.metadata("read").unwrap().mode, 0o600);
        assert_eq!(tx.list("new").unwrap().len(), 2);
    };
    for _ in 0..2 {
        let error = tx.commit().expect_err("somebody else was faster");
        assert_eq!((error.kind(), error.path().unwrap()), (ErrorKind::Conflict, Path::new("contested")));
        assert_eq!(tree(root), before);
        tx = error.into_transaction().expect("it is handed back");
        check(&mut tx);
    }
    // What it holds goes into a new one; the old one is dropped.
    let mut again = store.begin().unwrap();
    assert_eq!(again.read("contested").unwrap(), b"theirs");
    for name in ["contested", "new/file", "new/large", "appended"] {
        again.write(name, tx.read(name).unwrap()).unwrap();
    }
    drop(tx);
    again.commit().unwrap();
    assert_eq!(fs::read(root.join("new/large")).unwrap(), vec![8; 3 << 20]);
    assert_eq!(fs::read(root.join("contested")).unwrap(), b"mine");
    store.close().unwrap();
    let left: Vec<_> = fs::read_dir(root.join(".atomtree/stage")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Goal: errors that are no conflict hand nothing back.
#[test]
fn other_errors_hand_nothing_back() {
    let (_scratch, store) = opened(manual());
    let mut tx = store.begin().unwrap();
    let error = tx.remove("missing").unwrap_err();
    assert!(error.into_transaction().is_none());
    let conflict = tx.expect("missing", atomtree::Expectation::Blake3([0; 32])).unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert!(conflict.into_transaction().is_none(), "the caller has it still");
    tx.write("a", "1").unwrap();
    tx.commit().unwrap();
    store.close().unwrap();
}

/// Goal: a savepoint can be returned to again and again, from wherever the transaction has got to, past inner ones; one
/// of another transaction is refused and undoes nothing. Method: each, with every kind of operation in between.
#[test]
fn savepoints_are_returned_to() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir_all(root.join("d/in")).unwrap();
    for file in ["a", "d/file", "d/in/file"] {
        fs::write(root.join(file), file).unwrap();
    }
    let changes = |tx: &mut Transaction| {
        tx.write("a", "changed").unwrap();
        tx.rename("d", "moved").unwrap();
        tx.append("moved/file", "+").unwrap();
        tx.remove_dir_all("moved/in").unwrap();
        tx.create_dir("made").unwrap();
        tx.symlink("made/link", "x").unwrap();
        tx.set_mode("moved", 0o700).unwrap();
    };
    let mut tx = store.begin().unwrap();
    tx.write("kept", "kept").unwrap();
    let outer = tx.savepoint();
    for _ in 0..3 {
        changes(&mut tx);
        let inner = tx.savepoint();
        for _ in 0..2 {
            tx.write("inner", "x").unwrap();
            tx.remove("a").unwrap();
            tx.rename("moved", "again").unwrap();
            tx.return_to(&inner).unwrap();
            assert_eq!(tx.read("a").unwrap(), b"changed");
            assert_eq!(tx.read("moved/file").unwrap(), b"d/file+");
            assert!(!tx.exists("moved/in").unwrap() && !tx.exists("inner").unwrap());
        }
        tx.return_to(&outer).unwrap();
        assert_eq!(tx.read("a").unwrap(), b"a");
        assert_eq!(tx.read("d/in/file").unwrap(), b"d/in/file");
        assert_eq!(tx.read("kept").unwrap(), b"kept");
        for name in ["moved", "made", "inner"] {
            assert!(!tx.exists(name).unwrap(), "{name}");
        }
    }
    let mut other = store.begin().unwrap();
    other.write("b", "1").unwrap();
    let foreign = other.savepoint();
    assert_eq!(kind_of(tx.return_to(&foreign)), ErrorKind::InvalidInput);
    assert_eq!(kind_of(other.return_to(&outer)), ErrorKind::InvalidInput);
    assert_eq!(other.read("b").unwrap(), b"1");
    drop(other);
    let receipt = tx.commit().unwrap();
    assert_eq!(receipt.files(), 1);
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(root.join("d/in/file")).unwrap(), b"d/in/file");
    store.close().unwrap();
}

/// Goal: what was read after a savepoint counts although it was returned to, because the caller may have decided by it:
/// contents, answers and lists, of directories moved meanwhile as well. Method: each, then an edit by somebody else.
#[test]
fn what_was_read_counts_after_a_return() {
    let reads: [(&str, fn(&mut Transaction), fn(&Path)); 5] = [
        ("read", |tx| drop(tx.read("a").unwrap()), |root| fs::write(root.join("a"), "theirs").unwrap()),
        (
            "exists",
            |tx| assert!(!tx.exists("new").unwrap()),
            |root| fs::write(root.join("new"), "x").unwrap(),
        ),
        ("list", |tx| drop(tx.list("d/in").unwrap()), |root| fs::write(root.join("d/in/new"), "x").unwrap()),
        (
            "a moved one",
            |tx| {
                tx.rename("d", "moved").unwrap();
                drop(tx.read("moved/in/file").unwrap());
            },
            |root| fs::write(root.join("d/in/file"), "theirs").unwrap(),
        ),
        (
            "metadata",
            |tx| assert_eq!(tx.metadata("d/file").unwrap().bytes, 6),
            |root| fs::remove_file(root.join("d/file")).unwrap(),
        ),
    ];
    for is_edited in [true, false] {
        for (what, read, edit) in reads {
            let (scratch, store) = opened(manual());
            let root = scratch.path();
            fs::create_dir_all(root.join("d/in")).unwrap();
            for file in ["a", "d/file", "d/in/file"] {
                fs::write(root.join(file), file).unwrap();
            }
            let mut tx = store.begin().unwrap();
            let savepoint = tx.savepoint();
            read(&mut tx);
            tx.return_to(&savepoint).unwrap();
            tx.write("mine", "x").unwrap();
            if is_edited {
                edit(root);
                assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict, "{what}");
                assert!(!root.join("mine").exists());
            } else {
                tx.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            commit(&store, |tx| tx.write("good", "commit")).unwrap();
            store.close().unwrap();
        }
    }
}
