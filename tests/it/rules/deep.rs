//! Paths deeper than the kernel takes in one piece, reached through directory handles.

use std::path::Path;
use std::sync::Arc;

use atomtree::vfs::Vfs;
use atomtree::vfs::sim::Sim;
use atomtree::{Error, ErrorKind, Store, Transaction};

use super::{crash_at_every_call, refused, seen, trees};
use crate::basics::{commit, manual, opened};

/// A path of 5,300 bytes below the directory, with a file's name of 255 bytes at its end.
fn deep(top: &str) -> String {
    let middle: Vec<String> = (0..20).map(|n| format!("{n:02}{}", "d".repeat(248))).collect();
    let path = format!("{top}/{}/{}", middle.join("/"), "f".repeat(255));
    assert!(path.len() > 5_200 && path.len() > 4096);
    path
}

/// The directory that holds the deep file.
fn deep_dir(top: &str) -> String {
    let path = deep(top);
    path[..path.len() - 256].to_owned()
}

fn change(tx: &mut Transaction) -> Result<(), Error> {
    tx.rename("old", "moved")?;
    tx.append(deep("moved"), "+")?;
    tx.symlink(format!("{}/link", deep_dir("moved")), &deep_dir("far")[..4000])?;
    tx.write_with_mode(deep("new"), "new", 0o600)?;
    tx.create_dir(format!("{}/dir", deep_dir("new")))?;
    tx.remove_dir_all("gone")
}

fn make(tx: &mut Transaction) -> Result<(), Error> {
    for top in ["old", "gone"] {
        tx.write(deep(top), top)?;
    }
    Ok(())
}

/// Goal: depth is no limit for any operation. Method: each, on a path of more than 5,000 bytes; what stands there is
/// looked at through handles as well.
#[test]
fn paths_deeper_than_the_kernel_takes_are_paths() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let (file, dir) = (deep("a"), deep_dir("a"));
    commit(&store, |tx| tx.write(&file, "written")).unwrap();
    assert_eq!(seen(root).len(), 22);
    commit(&store, |tx| {
        tx.append(&file, "+")?;
        tx.patch(&file, 0, "W")?;
        tx.set_mode(&file, 0o640)?;
        tx.set_mode(&dir, 0o711)?;
        tx.create_dir_all(format!("{dir}/x/y"))?;
        tx.symlink(format!("{dir}/link"), "x/y")?;
        tx.write_from(format!("{dir}/link/through"), &b"link"[..])?;
        assert_eq!(tx.list(&dir)?.len(), 3);
        Ok(())
    })
    .unwrap();
    commit(&store, |tx| {
        assert_eq!(tx.read(&file)?, b"Written+");
        assert_eq!(tx.metadata(&file)?.mode, 0o640);
        assert_eq!(tx.read(format!("{dir}/x/y/through"))?, b"link");
        assert!(tx.exists(format!("{dir}/link"))?);
        tx.rename(&file, format!("{dir}/x/renamed"))?;
        tx.rename(format!("{dir}/x"), format!("{dir}/z"))?;
        tx.remove(format!("{dir}/link"))
    })
    .unwrap();
    store.checkpoint().unwrap();
    // At the top, where it costs one rename; then back in between and away.
    commit(&store, |tx| tx.rename("a", "b")).unwrap();
    commit(&store, |tx| tx.rename(format!("{}/z", deep_dir("b")), "z")).unwrap();
    commit(&store, |tx| {
        assert_eq!(tx.read("z/renamed")?, b"Written+");
        tx.rename("z", format!("{}/z", deep_dir("b")))
    })
    .unwrap();
    commit(&store, |tx| tx.remove_dir_all("b")).unwrap();
    assert_eq!(seen(root).len(), 0);
    // There is an end to it, which is the tree's own.
    let endless = "d/".repeat(40_000) + "x";
    std::fs::write(root.join("a"), "x").unwrap();
    for operation in 0..3 {
        refused(root, &store, ErrorKind::InvalidPath, |tx| match operation {
            0 => tx.create_dir_all(&endless),
            1 => tx.symlink(&endless, "x"),
            _ => tx.rename("a", &endless),
        });
    }
    store.close().unwrap();
    assert_eq!(std::fs::read_dir(root.join(".atomtree/quarantine")).unwrap().count(), 0);
}

/// Goal: deep paths are recovered. Method: a transaction that moves, edits, makes and removes them, and the death of the
/// process at every call.
#[test]
fn deep_paths_are_recovered_after_a_kill() {
    let scratch = trees();
    let prepare = |root: &Path| {
        let store = manual().ballast_bytes(4096).open(root).unwrap();
        commit(&store, make).unwrap();
        store.close().unwrap();
    };
    crash_at_every_call(scratch.path(), prepare, change);
}

/// Goal: the same when the power goes. Method: on a simulated machine, a cut at every operation.
#[test]
fn deep_paths_are_recovered_after_a_power_cut() {
    let machine = || -> (Sim, Store) {
        let sim = Sim::new(7);
        sim.create_dir("/tree");
        let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
        commit(&store, make).unwrap();
        store.checkpoint().unwrap();
        (sim, store)
    };
    let look = |sim: &Sim| {
        let mut tree = sim.tree("/tree");
        tree.retain(|path, _| !path.starts_with(".atomtree") && !path.starts_with("/tree/.atomtree"));
        let names: Vec<_> = tree.keys().cloned().collect();
        let top = sim.open_root(Path::new("/tree")).unwrap();
        let content = ["old", "moved", "new"].map(|name| {
            let dir = top.open_dir(Path::new(&deep_dir(name))).ok()?;
            let file = dir.open_file("f".repeat(255).as_ref(), atomtree::vfs::Access::Read).ok()?;
            file.read_all(100).ok()
        });
        (names, content)
    };
    let (sim, store) = machine();
    let (old, start) = (look(&sim), sim.operations());
    commit(&store, change).unwrap();
    let (new, operations) = (look(&sim), sim.operations() - start);
    assert_eq!(new.1, [None, Some(b"old+".to_vec()), Some(b"new".to_vec())]);
    drop(store);
    for number in 1..=operations + 1 {
        let (sim, store) = machine();
        sim.halt_at(sim.operations() + number);
        let acknowledged = commit(&store, change).is_ok();
        drop(store);
        let sim = sim.power_cut(number);
        let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
        let found = look(&sim);
        assert!(found == new || (found == old && !acknowledged), "cut at {number} of {operations}");
        store.close().unwrap();
    }
}
