//! Setuid, setgid and sticky bits, of files and directories: set exactly, kept by whatever else is done, recovered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use atomtree::{ErrorKind, Transaction};

use super::{Operation, crash_at_every_call, refused, trees};
use crate::basics::{commit, look, manual, opened};

const MODES: [u32; 9] = [0o4755, 0o2755, 0o1755, 0o6711, 0o7777, 0o7000, 0o2644, 0o000, 0o1777];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Goal: every bit that is asked for is set, and no other, by each way to ask for it, on new and old files and
/// directories, alone and together with other changes. Method: all ways, nine modes.
#[test]
fn every_bit_is_set_that_is_asked_for() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for wanted in MODES {
        for dir in ["old", "moved", "new", "deep"] {
            let _ = fs::remove_dir_all(root.join(dir));
        }
        fs::create_dir_all(root.join("old/dir/inside")).unwrap();
        for file in ["old/file", "old/moving", "old/written", "old/large", "old/linked"] {
            fs::write(root.join(file), if file.ends_with("large") { vec![1; 2 << 20] } else { vec![1] })
                .unwrap();
        }
        let _ = fs::remove_file(root.join("link"));
        fs::hard_link(root.join("old/linked"), root.join("link")).unwrap();
        commit(&store, |tx| {
            tx.set_mode("old/file", wanted)?;
            tx.set_mode("old/linked", wanted)?;
            tx.set_mode("old/dir", wanted)?;
            tx.set_mode("old/moving", wanted)?;
            tx.rename("old/moving", "moved/before")?;
            tx.rename("old/large", "moved/after")?;
            tx.set_mode("moved/after", wanted)?;
            tx.write_with_mode("old/written", "x", wanted)?;
            tx.write_with_mode("new/file", "x", wanted)?;
            tx.append_with_mode(Path::new("new/appended"), b"x", Some(wanted))?;
            tx.write_from_with_mode("new/large", &vec![2; 2 << 20][..], Some(wanted)).map(drop)?;
            tx.create_dir_with_mode("new/dir", wanted)?;
            tx.create_dir_all_with_mode(Path::new("deep/er/dir"), Some(wanted))?;
            tx.create_dir("new/plain")?;
            tx.set_mode("new/plain", wanted)
        })
        .unwrap_or_else(|error| panic!("{wanted:o}: {error}"));
        for path in [
            "old/file",
            "old/linked",
            "link",
            "old/dir",
            "moved/before",
            "moved/after",
            "old/written",
            "new/file",
            "new/appended",
            "new/large",
            "new/dir",
            "deep/er/dir",
            "new/plain",
        ] {
            assert_eq!(
                mode(&root.join(path)),
                wanted,
                "{path}: {:o}, not {wanted:o}",
                mode(&root.join(path))
            );
        }
        commit(&store, |tx| {
            assert_eq!(tx.metadata("old/file")?.mode, wanted);
            assert_eq!(tx.metadata("old/dir")?.mode, wanted);
            Ok(())
        })
        .unwrap();
    }
    refused(root, &store, ErrorKind::InvalidInput, |tx| tx.set_mode("old/file", 0o10_000));
    refused(root, &store, ErrorKind::InvalidInput, |tx| tx.create_dir_with_mode("x", 0o10_000));
    store.close().unwrap();
}

/// Goal: whatever else is done to a file or directory keeps its bits. Method: every operation that leaves it standing.
#[test]
fn every_bit_is_kept() {
    let operations: [(&str, Operation, &str); 7] = [
        ("write", |tx| tx.write("d/file", "new"), "d/file"),
        ("write large", |tx| tx.write("d/file", vec![3; 2 << 20]), "d/file"),
        ("append", |tx| tx.append("d/file", "+"), "d/file"),
        ("patch", |tx| tx.patch("d/file", 0, "p"), "d/file"),
        ("rename", |tx| tx.rename("d/file", "d/moved"), "d/moved"),
        ("rename a directory", |tx| tx.rename("d", "e"), "e/file"),
        ("a name in the directory", |tx| tx.write("d/other", "x"), "d/file"),
    ];
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for bits in MODES {
        for (what, operation, name) in operations {
            let _ = fs::remove_dir_all(root.join("d"));
            let _ = fs::remove_dir_all(root.join("e"));
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/file"), "old").unwrap();
            // Root may do without the owner's bits; who isn't root keeps those of the directory.
            let of_dir = bits | 0o700;
            fs::set_permissions(root.join("d/file"), fs::Permissions::from_mode(bits | 0o400)).unwrap();
            fs::set_permissions(root.join("d"), fs::Permissions::from_mode(of_dir)).unwrap();
            commit(&store, operation).unwrap_or_else(|error| panic!("{what}, {bits:o}: {error}"));
            let path = root.join(name);
            assert_eq!(mode(&path), bits | 0o400, "{what}, {bits:o}");
            assert_eq!(mode(path.parent().unwrap()), of_dir, "the directory: {what}, {bits:o}");
        }
    }
    store.close().unwrap();
}

/// Goal: bits are recovered. Method: the death of the process at every call.
#[test]
fn every_bit_is_recovered() {
    let scratch = trees();
    let prepare = |root: &Path| {
        fs::create_dir_all(root.join("dir/inside")).unwrap();
        fs::create_dir(root.join("moving")).unwrap();
        for file in ["file", "program", "dir/inside/file"] {
            fs::write(root.join(file), "x").unwrap();
            fs::set_permissions(root.join(file), fs::Permissions::from_mode(0o6755)).unwrap();
        }
        assert_eq!(look(&root.join("file")).mode & 0o7777, 0o6755);
    };
    crash_at_every_call(scratch.path(), prepare, |tx: &mut Transaction| {
        tx.set_mode("file", 0o4711)?;
        tx.append("program", "+")?;
        tx.set_mode("dir", 0o3775)?;
        tx.set_mode("dir/inside/file", 0o2711)?;
        tx.rename("moving", "moved")?;
        tx.set_mode("moved", 0o1777)?;
        tx.write_with_mode("moved/new", "x", 0o6700)?;
        tx.create_dir_with_mode("made", 0o2770)
    });
}
