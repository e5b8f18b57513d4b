//! File capabilities, which a write in place takes away and a replacement keeps.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Operation, crash_at_every_call, trees};
use crate::basics::{commit, is_root, look, manual, opened, shell};

/// Gives the file capabilities; `None`, with the reason printed, where that can't be done.
fn set_capability(path: &Path) -> Option<()> {
    let done = Command::new("setcap").arg("cap_net_raw,cap_net_admin+ep").arg(path).status();
    if done.is_ok_and(|status| status.success()) {
        return Some(());
    }
    println!("skipped: there is no setcap, or the file system keeps no capabilities");
    None
}

fn capability(path: &Path) -> Option<Vec<u8>> {
    look(path).xattrs.into_iter().find(|(name, _)| name == "security.capability").map(|(_, value)| value)
}

const OPERATIONS: [(&str, Operation, &str); 9] = [
    ("write", |tx| tx.write("d/file", "new"), "d/file"),
    ("write_with_mode", |tx| tx.write_with_mode("d/file", "new", 0o700), "d/file"),
    ("write large", |tx| tx.write_from("d/file", &vec![1; 3 << 20][..]).map(drop), "d/file"),
    ("append", |tx| tx.append("d/file", "+"), "d/file"),
    ("patch", |tx| tx.patch("d/file", 0, "p"), "d/file"),
    ("set_mode", |tx| tx.set_mode("d/file", 0o711), "d/file"),
    ("rename", |tx| tx.rename("d/file", "moved"), "moved"),
    ("rename over", |tx| tx.rename("d/file", "other"), "other"),
    ("rename the directory", |tx| tx.rename("d", "e"), "e/file"),
];

/// Goal: capabilities are kept by everything that leaves the file standing, and handed to nobody else. Method: each
/// operation, on small and large files, of root and of another user.
#[test]
fn capabilities_are_kept() {
    if !is_root() {
        return;
    }
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for (size, owner) in [(10, "0:0"), (2 << 20, "0:0"), (10, "4711:4712")] {
        for (what, operation, name) in OPERATIONS {
            for old in ["d", "e", "moved", "other"] {
                let _ = fs::remove_dir_all(root.join(old)).or_else(|_| fs::remove_file(root.join(old)));
            }
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("other"), "x").unwrap();
            fs::write(root.join("d/file"), vec![b'x'; size]).unwrap();
            shell(&format!("cd '{}'; chown {owner} d/file; chmod 755 d/file", root.display()));
            let Some(()) = set_capability(&root.join("d/file")) else { return };
            let before = capability(&root.join("d/file"));
            assert!(before.is_some());
            commit(&store, operation).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(capability(&root.join(name)), before, "{what}, {size} bytes of {owner}");
            // Replaced by something else, the name has what that has.
            commit(&store, |tx| {
                tx.write("plain", "x")?;
                tx.rename("plain", name)
            })
            .unwrap();
            assert_eq!(capability(&root.join(name)), None, "{what}");
        }
    }
    store.close().unwrap();
}

/// Goal: they are recovered. Method: the death of the process at every call.
#[test]
fn capabilities_are_recovered() {
    if !is_root() {
        return;
    }
    let scratch = trees();
    let probe = scratch.path().join("probe");
    fs::write(&probe, "").unwrap();
    if set_capability(&probe).is_none() {
        return;
    }
    let prepare = |root: &Path| {
        for name in ["written", "appended", "renamed", "changed"] {
            fs::write(root.join(name), "x").unwrap();
            set_capability(&root.join(name)).unwrap();
        }
    };
    crash_at_every_call(scratch.path(), prepare, |tx| {
        tx.write("written", "new")?;
        tx.append("appended", "+")?;
        tx.rename("renamed", "moved")?;
        tx.set_mode("changed", 0o711)
    });
}
