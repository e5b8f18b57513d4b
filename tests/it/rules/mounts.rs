//! Boundaries inside the tree, found before the commit point: mount points, bind mounts of files and directories, btrfs
//! subvolumes. What lies above them moves with them or stays, whole.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use atomtree::{ErrorKind, Store, Transaction};
use atomtree_tests::volume::{Kind, Volume, or_skip};

use super::{Operation, refused_as, seen};
use crate::basics::{commit, is_root, manual, shell, small, tree};
use crate::errors::Mount;

/// A mount point `m/P`, as a name: no operation may touch it.
const ON: [(&str, fn(&mut Transaction, &str) -> Result<(), atomtree::Error>); 11] = [
    ("write", |tx, at| tx.write(at, "x")),
    ("append", |tx, at| tx.append(at, "x")),
    ("patch", |tx, at| tx.patch(at, 0, "x")),
    ("remove", |tx, at| tx.remove(at)),
    ("rename", |tx, at| tx.rename(at, "moved")),
    ("rename over", |tx, at| tx.rename("source", at)),
    ("create_dir", |tx, at| tx.create_dir(at)),
    ("symlink", |tx, at| tx.symlink(at, "target")),
    ("set_mode", |tx, at| tx.set_mode(at, 0o700)),
    ("remove_dir", |tx, at| tx.remove_dir(at)),
    ("remove_dir_all", |tx, at| tx.remove_dir_all(at)),
];

/// What lies beyond the boundary is out of reach of every operation.
const BEYOND: [(&str, fn(&mut Transaction, &str) -> Result<(), atomtree::Error>); 14] = [
    ("write", |tx, at| tx.write(format!("{at}/file"), "x")),
    ("write new", |tx, at| tx.write(format!("{at}/new"), "x")),
    ("write deep", |tx, at| tx.write(format!("{at}/a/b"), "x")),
    ("append", |tx, at| tx.append(format!("{at}/file"), "x")),
    ("patch", |tx, at| tx.patch(format!("{at}/file"), 0, "x")),
    ("remove", |tx, at| tx.remove(format!("{at}/file"))),
    ("rename out", |tx, at| tx.rename(format!("{at}/file"), "moved")),
    ("rename in", |tx, at| tx.rename("source", format!("{at}/moved"))),
    ("rename a directory in", |tx, at| tx.rename("dir", format!("{at}/moved"))),
    ("create_dir", |tx, at| tx.create_dir(format!("{at}/new"))),
    ("create_dir_all", |tx, at| tx.create_dir_all(format!("{at}/new/deep"))),
    ("symlink", |tx, at| tx.symlink(format!("{at}/link"), "x")),
    ("set_mode", |tx, at| tx.set_mode(format!("{at}/file"), 0o600)),
    ("remove_dir_all", |tx, at| tx.remove_dir_all(format!("{at}/dir"))),
];

/// Unmounts and hands a panic on.
pub(super) fn with_mounts(root: &Path, mounts: &str, unmounts: &str, test: impl FnOnce()) {
    shell(&format!("cd '{}'; {mounts}", root.display()));
    let result = catch_unwind(AssertUnwindSafe(test));
    shell(&format!(
        "cd '{}'; for m in {unmounts}; do umount \"$m\" || umount -l \"$m\"; done",
        root.display()
    ));
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Asserts that nothing can be done at nor beyond the directory `at`, and that what lies above it isn't removed.
fn is_a_boundary(root: &Path, store: &Store, at: &str, kind: ErrorKind) {
    for (what, act) in ON {
        let message = refused_as(root, store, &[kind], &format!("{what} {at}"), |tx| act(tx, at));
        assert!(message.contains(at), "{message}");
    }
    for (what, act) in BEYOND {
        refused_as(root, store, &[ErrorKind::CrossDevice], &format!("{what} beyond {at}"), |tx| act(tx, at));
    }
    refused_as(root, store, &[kind], at, |tx| tx.remove_dir_all("m"));
}

/// Goal: mount points of each kind are found before the commit point by every operation at and beyond them, and nothing
/// changes on either side. Method: a file system in memory, a bound directory and a bound file, in one directory.
#[test]
fn mount_points_are_boundaries_for_every_operation() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let root = mount.0.path();
    let store = small().open(root).unwrap();
    shell(&format!(
        "cd '{}'; mkdir -p m/memory m/bound other/dir dir; echo x > m/file; echo y > m/bound-file
         echo s > source; echo o > other/file",
        root.display()
    ));
    let mounts = "mount -t tmpfs -o size=1m tmpfs m/memory; mkdir m/memory/dir; echo x > m/memory/file
         mount --bind other m/bound; mount --bind m/file m/bound-file";
    with_mounts(root, mounts, "m/memory m/bound m/bound-file", || {
        is_a_boundary(root, &store, "m/memory", ErrorKind::MountPoint);
        is_a_boundary(root, &store, "m/bound", ErrorKind::MountPoint);
        for (what, act) in ON {
            let kinds = &[ErrorKind::MountPoint];
            refused_as(root, &store, kinds, &format!("{what} a bound file"), |tx| act(tx, "m/bound-file"));
        }
        // What is bound elsewhere is an ordinary file and directory at its own name.
        commit(&store, |tx| {
            tx.write("m/file", "written")?;
            tx.append("other/file", "appended")?;
            tx.set_mode("other", 0o711)
        })
        .unwrap();
    });
    commit(&store, |tx| tx.remove_dir_all("m")).unwrap();
    assert!(!root.join("m").exists());
    store.close().unwrap();
}

/// Goal: a directory above mount points is renamed as rename(2) does it, and they go along. Method: to a free name, and
/// over an empty directory, which takes the way through a slot.
#[test]
fn what_lies_above_a_mount_point_is_renamed_with_it() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let root = mount.0.path();
    let store = small().open(root).unwrap();
    shell(&format!("cd '{}'; mkdir -p m/deep/memory empty; echo y > m/file", root.display()));
    let mounts = "mount -t tmpfs -o size=1m tmpfs m/deep/memory; echo x > m/deep/memory/file";
    with_mounts(root, mounts, "*/deep/memory", || {
        for (from, to) in [("m", "moved"), ("moved", "empty")] {
            commit(&store, |tx| tx.rename(from, to)).unwrap();
            assert_eq!(fs::read(root.join(to).join("deep/memory/file")).unwrap(), b"x\n", "{to}");
            assert!(!root.join(from).exists());
            store.checkpoint().unwrap();
        }
        refused_as(root, &store, &[ErrorKind::MountPoint], "removed", |tx| tx.remove_dir_all("empty"));
        // An empty directory that is a mount point is not replaced either.
        shell(&format!("cd '{}'; mkdir free d; mount -t tmpfs -o size=1m tmpfs free", root.display()));
        refused_as(root, &store, &[ErrorKind::MountPoint], "replaced", |tx| tx.rename("d", "free"));
        shell(&format!("cd '{}'; umount free", root.display()));
    });
    store.close().unwrap();
}

/// Goal: what is mounted between the look and the commit is found by the check. Method: on each name that each operation
/// concerns.
#[test]
fn what_is_mounted_meanwhile_is_found_at_the_check() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let root = mount.0.path();
    let store = manual().open(root).unwrap();
    shell(&format!(
        "cd '{}'; mkdir -p d/e; echo x > d/file; echo y > d/e/file; echo z > other",
        root.display()
    ));
    let operations: [(&str, Operation, &str); 10] = [
        ("write", |tx| tx.write("d/file", "new"), "d/file"),
        ("remove", |tx| tx.remove("d/file"), "d/file"),
        ("rename", |tx| tx.rename("d/file", "moved"), "d/file"),
        ("rename over", |tx| tx.rename("other", "d/file"), "d/file"),
        ("set_mode", |tx| tx.set_mode("d/file", 0o600), "d/file"),
        ("set_mode of a directory", |tx| tx.set_mode("d/e", 0o700), "d/e"),
        ("write below", |tx| tx.write("d/e/file", "new"), "d/e"),
        ("rename a directory", |tx| tx.rename("d/e", "moved"), "d/e"),
        ("remove_dir_all", |tx| tx.remove_dir_all("d"), "d/e"),
        ("remove_dir_all above a file", |tx| tx.remove_dir_all("d"), "d/file"),
    ];
    for (what, operation, at) in operations {
        let mut tx = store.begin().unwrap();
        operation(&mut tx).unwrap();
        let source = if at == "d/e" { "d" } else { "other" };
        with_mounts(root, &format!("mount --bind {source} {at}"), at, || {
            let before = tree(root);
            let error = tx.commit().expect_err(what);
            let kinds = [ErrorKind::MountPoint, ErrorKind::CrossDevice, ErrorKind::Conflict];
            assert!(kinds.contains(&error.kind()), "{what}: {error}");
            assert_eq!(tree(root), before, "{what}: {error}");
        });
        commit(&store, |tx| tx.write("good", what)).unwrap();
    }
    store.close().unwrap();
}

/// Goal: a btrfs subvolume is a boundary like a mount point, and goes along when a directory above it is renamed.
/// Method: a btrfs image with one in a directory.
#[test]
fn subvolumes_are_boundaries() {
    if !is_root() {
        return;
    }
    let Some(volume) = or_skip(Volume::create(Kind::Btrfs, 0, false), "subvolumes") else { return };
    let root = volume.path().join("tree");
    shell(&format!(
        "mkdir '{0}'; cd '{0}'; mkdir -p m dir; echo s > source; btrfs -q subvolume create m/sub
         mkdir m/sub/dir; echo x > m/sub/file",
        root.display()
    ));
    let store = small().open(&root).unwrap();
    is_a_boundary(&root, &store, "m/sub", ErrorKind::CrossDevice);
    let before = seen(&root.join("m"));
    commit(&store, |tx| tx.rename("m", "moved")).unwrap();
    assert_eq!(seen(&root.join("moved")), before);
    assert!(!root.join("m").exists());
    refused_as(&root, &store, &[ErrorKind::CrossDevice], "removed", |tx| tx.remove_dir_all("moved"));
    store.close().unwrap();
    let store = small().open(&root).unwrap();
    assert_eq!(seen(&root.join("moved")), before);
    store.close().unwrap();
}
