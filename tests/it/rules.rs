//! The rules that users hit first: what is kept exactly, and what is refused before anything changes, with the reason.
//! Each module is one kind of thing that a tree can hold; here is what they share.

mod bits;
mod capabilities;
mod case_folding;
mod closed;
mod deep;
mod flags;
mod hard_links;
mod inherited;
mod mounts;
mod names;
mod nested;
mod overlay;
mod permissions;
mod sparse;
mod symlinks;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atomtree::vfs::faults::{Faults, fail_from, fail_nothing};
use atomtree::vfs::{Access, Dir, Kind, Vfs, os::Os};
use atomtree::{Error, ErrorKind, RecoveryReport, Store, Transaction};

use tempfile::TempDir;

use crate::basics::{commit, manual, tree};

/// Input/output error, as Linux numbers it.
const EIO: i32 = 5;

/// What a transaction is made of, for matrices of operations.
type Operation = fn(&mut Transaction) -> Result<(), Error>;

/// Asserts that `change` fails with `kind`, and that nothing changes by it.
#[track_caller]
fn refused(
    root: &Path,
    store: &Store,
    kind: ErrorKind,
    change: impl FnOnce(&mut Transaction) -> Result<(), Error>,
) -> String {
    refused_as(root, store, &[kind], "", change)
}

/// As [`refused`], with any of these kinds; `what` says which case it is.
#[track_caller]
fn refused_as(
    root: &Path,
    store: &Store,
    kinds: &[ErrorKind],
    what: &str,
    change: impl FnOnce(&mut Transaction) -> Result<(), Error>,
) -> String {
    let before = tree(root);
    match commit(store, change) {
        Ok(_) => panic!("{what}: it is not refused"),
        Err(error) => {
            assert!(kinds.contains(&error.kind()), "{what}: {:?}, {error}", error.kind());
            assert_eq!(tree(root), before, "{what}: {error}");
            error.to_string()
        }
    }
}

/// All that counts of every name below `root`, however deep, but times and inode numbers; without the store.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut unseen = vec![(PathBuf::new(), Os.open_root(root).unwrap())];
    while let Some((at, dir)) = unseen.pop() {
        let Ok(entries) = dir.list() else { continue };
        for entry in entries {
            let path = at.join(&entry.name);
            if path == Path::new(".atomtree") {
                continue;
            }
            found.insert(path.clone(), one_seen(&*dir, &entry.name));
            if entry.kind == Kind::Dir
                && let Ok(below) = dir.open_dir(Path::new(&entry.name))
            {
                unseen.push((path, below));
            }
        }
    }
    found
}

fn one_seen(dir: &dyn Dir, name: &OsString) -> String {
    let found = dir.metadata(name).unwrap();
    let (content, xattrs) = match found.kind {
        Kind::Symlink => (dir.read_link(name).unwrap().as_bytes().to_vec(), Ok(Vec::new())),
        Kind::Dir => (Vec::new(), dir.open_dir(Path::new(name)).and_then(|dir| dir.xattrs())),
        _ => match dir.open_file(name, Access::Read) {
            Ok(file) => (file.read_all(u64::MAX).unwrap(), file.xattrs()),
            Err(_) => (b"unreadable".into(), Ok(Vec::new())),
        },
    };
    let digest = blake3::hash(&content);
    let (kind, mode, owner) = (found.kind, found.mode, (found.uid, found.gid));
    format!("{kind:?} {mode:o} {owner:?} {digest} {:?}", xattrs.unwrap_or_default())
}

/// Opens a store whose process has died. Another test's child may hold what it inherited until it runs its program.
fn reopened(root: &Path) -> Result<Store, Error> {
    for _ in 0..500 {
        match manual().open(root) {
            Err(error) if error.kind() == ErrorKind::Locked => std::thread::sleep(Duration::from_millis(2)),
            opened => return opened,
        }
    }
    manual().open(root)
}

/// Where [`crash_at_every_call`] makes its many trees: in memory, where there is such a place.
fn trees() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Commits `change` to a tree that `prepare` makes in an empty directory, and lets the process die at each call that
/// reaches storage; whatever the next open finds has to become the whole old or the whole new tree. `base` is where the
/// trees may be made. Returns how many were found old and how many new.
#[track_caller]
fn crash_at_every_call(
    base: &Path,
    prepare: impl Fn(&Path),
    change: impl Fn(&mut Transaction) -> Result<(), Error>,
) -> (usize, usize) {
    let fresh = || {
        let scratch = tempfile::Builder::new().prefix("tree").tempdir_in(base).unwrap();
        prepare(scratch.path());
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let store = manual().ballast_bytes(4096).vfs(Arc::new(faults.clone())).open(scratch.path()).unwrap();
        (scratch, faults, store)
    };
    let (scratch, faults, store) = fresh();
    let old = seen(scratch.path());
    let before = faults.calls();
    commit(&store, &change).unwrap();
    let calls = faults.calls() - before;
    let new = seen(scratch.path());
    store.close().unwrap();
    assert_eq!(seen(scratch.path()), new, "closing changes nothing");
    assert_ne!(old, new, "there is something to recover");
    let mut found = (0, 0);
    for number in 1..=calls + 1 {
        let (scratch, faults, store) = fresh();
        faults.set_rule(fail_from(faults.calls() + number, EIO));
        let acknowledged = commit(&store, &change).is_ok();
        drop(store);
        let store = reopened(scratch.path()).unwrap_or_else(|error| panic!("at {number}: {error}"));
        let is = seen(scratch.path());
        let report = store.recovery().clone();
        assert!(is == new || (is == old && !acknowledged), "at {number} of {calls}: {is:#?}");
        *if is == new { &mut found.1 } else { &mut found.0 } += 1;
        let expected = RecoveryReport { redone: report.redone, voided: report.voided, ..Default::default() };
        assert_eq!(report, expected, "at {number} of {calls}");
        store.close().unwrap();
        assert_eq!(seen(scratch.path()), is, "at {number} of {calls}");
    }
    println!("{calls} calls: {} times the old tree, {} times the new one", found.0, found.1);
    found
}
