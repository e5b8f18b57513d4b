//! Guards on a real file system: whatever a program does in place is kept whole, or is as if it had not been.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atomtree::vfs::{Access, Vfs, os::Os, sim::Sim};
use atomtree::{ErrorKind, GuardOptions, Store};
use tempfile::TempDir;

use crate::basics::{commit, kind_of, manual};

mod cost;
mod edits;
mod explored;

/// All that a roll back has to bring back of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stood {
    /// Kind and permission bits.
    mode: u32,
    owner: (u32, u32),
    /// Content of a file, target of a symlink.
    content: Vec<u8>,
    /// Of a file.
    modified: Option<(i64, i64)>,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The first name of the same inode, if there are several.
    twin: Option<PathBuf>,
}

/// Everything below `root` but the store.
pub(crate) fn all(root: &Path) -> BTreeMap<PathBuf, Stood> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let name = dir.join(entry.unwrap().file_name());
            if name == Path::new(".atomtree") {
                continue;
            }
            let path = root.join(&name);
            let metadata = fs::symlink_metadata(&path).unwrap();
            let (content, modified) = if metadata.is_file() {
                (fs::read(&path).unwrap(), Some((metadata.mtime(), metadata.mtime_nsec())))
            } else if metadata.is_symlink() {
                (fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(), None)
            } else {
                (Vec::new(), None)
            };
            let stood = Stood {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                content,
                modified,
                xattrs: xattrs(&path, &metadata),
                twin: Some(PathBuf::from(metadata.ino().to_string()))
                    .filter(|_| metadata.is_file() && metadata.nlink() > 1),
            };
            if metadata.is_dir() {
                dirs.push(name.clone());
            }
            found.insert(name, stood);
        }
    }
    // Inode numbers differ after a roll back; which names share one does not.
    let mut first: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (name, stood) in &mut found {
        stood.twin =
            stood.twin.take().map(|inode| first.entry(inode).or_insert_with(|| name.clone()).clone());
    }
    found
}

fn xattrs(path: &Path, metadata: &fs::Metadata) -> Vec<(String, Vec<u8>)> {
    let dir = Os.open_root(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap();
    let found = if metadata.is_dir() {
        dir.open_dir(Path::new(name)).unwrap().xattrs().unwrap()
    } else if metadata.is_file() {
        dir.open_file(name, Access::Read).unwrap().xattrs().unwrap()
    } else {
        Vec::new()
    };
    found.into_iter().map(|one| (one.name.to_string_lossy().into_owned(), one.value)).collect()
}

pub(crate) fn set_xattr(path: &Path, value: &[u8]) {
    let dir = Os.open_root(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap();
    let user = std::ffi::OsStr::new("user.test");
    if path.is_dir() {
        dir.open_dir(Path::new(name)).unwrap().set_dir_xattr(user, value).unwrap();
    } else {
        dir.open_file(name, Access::ReadWrite).unwrap().set_xattr(user, value).unwrap();
    }
}

/// A tree with something of everything, with times that the clock can tell from later ones.
pub(crate) fn tree() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    for dir in ["config/deep", "empty", "src/a/b", "swap/one", "swap/two", "closed"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (file, content) in [
        ("config/app.toml", "name = 1\n".repeat(10)),
        ("config/deep/x", "x".repeat(9000)),
        ("src/a/b/main.rs", "fn main() {}\n".to_owned()),
        ("src/lib.rs", String::new()),
        ("swap/one/f", "one".to_owned()),
        ("swap/two/f", "two".to_owned()),
        ("closed/f", "closed".to_owned()),
        ("top", "top".to_owned()),
        ("run.sh", "#!/bin/sh\n".to_owned()),
    ] {
        fs::write(root.join(file), content).unwrap();
    }
    fs::hard_link(root.join("top"), root.join("src/linked")).unwrap();
    symlink("config/app.toml", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("src/dangling")).unwrap();
    fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    set_xattr(&root.join("config/app.toml"), b"kept");
    set_xattr(&root.join("config"), b"kept too");
    std::thread::sleep(Duration::from_millis(30));
    scratch
}

pub(crate) fn open(root: &Path) -> Store {
    manual().open(root).unwrap()
}

/// What is in `.atomtree/guards` of guards that stand, or have left something.
pub(crate) fn left(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join(".atomtree/guards")) else { return Vec::new() };
    let names = entries.map(|entry| PathBuf::from(entry.unwrap().file_name()));
    names.filter(|name| !["cache", "turn", "index"].contains(&name.to_str().unwrap())).collect()
}

/// Goal: nothing that a program may do in place outlives a roll back: contents, names, kinds, modes, attributes, times,
/// hard links. Method: each edit alone, then all of them at once, rolled back by hand, by a drop, and by the next open
/// after the process was as good as killed; what was not edited keeps its inode.
#[test]
fn whatever_is_done_in_place_is_rolled_back() {
    for (number, edit) in edits::ALL.iter().map(|edit| edits::one(edit)).chain([edits::all()]).enumerate() {
        for way in ["by hand", "dropped", "left"] {
            let scratch = tree();
            let root = scratch.path();
            let before = all(root);
            let untouched = fs::metadata(root.join("config/deep/x")).unwrap().ino();
            let store = open(root);
            let guard = store.guard(["**"]).unwrap();
            edit(root);
            assert_ne!(all(root), before, "edit {number} does something");
            match way {
                "by hand" => drop(guard.roll_back().unwrap()),
                "dropped" => drop(guard),
                _ => {
                    guard.leave();
                    drop(store);
                    let store = open(root);
                    assert_eq!(store.recovery().rolled_back, 1, "edit {number}");
                    assert_eq!(store.recovery().lost, [], "edit {number}");
                }
            }
            assert_eq!(all(root), before, "edit {number}, {way}");
            assert_eq!(left(root), Vec::<PathBuf>::new(), "edit {number}, {way}");
            if number == 0 {
                assert_eq!(fs::metadata(root.join("config/deep/x")).unwrap().ino(), untouched);
            }
        }
    }
}

/// Goal: what is kept is what the program left, and the next guard starts from there.
#[test]
fn what_is_kept_stays() {
    let scratch = tree();
    let root = scratch.path();
    let store = open(root);
    let guard = store.guard(["**"]).unwrap();
    edits::all()(root);
    fs::remove_file(root.join("swap/two/f")).unwrap();
    let after = all(root);
    let changes = guard.changes().unwrap();
    assert!(!changes.created.is_empty() && !changes.changed.is_empty() && !changes.removed.is_empty());
    guard.keep().unwrap();
    assert_eq!(all(root), after);
    assert_eq!(left(root), Vec::<PathBuf>::new());
    store.close().unwrap();
    let store = open(root);
    assert_eq!(store.recovery().rolled_back, 0);
    assert_eq!(all(root), after);
    let guard = store.guard(["**"]).unwrap();
    assert!(guard.changes().unwrap().is_empty());
    fs::write(root.join("new again"), "x").unwrap();
    guard.roll_back().unwrap();
    assert_eq!(all(root), after);
}

/// Goal: what the patterns do not cover is nobody's business. Method: edits on both sides.
#[test]
fn only_what_is_covered_is_rolled_back() {
    let scratch = tree();
    let root = scratch.path();
    let store = open(root);
    let options = GuardOptions::new().guard("config/**").guard("*.rs").ignore("deep");
    let guard = store.guard_with(&options).unwrap();
    for file in ["config/app.toml", "config/deep/x", "src/lib.rs", "src/a/b/main.rs", "top"] {
        fs::write(root.join(file), "edited").unwrap();
    }
    fs::create_dir_all(root.join("fresh/down")).unwrap();
    fs::write(root.join("fresh/down/new.rs"), "new").unwrap();
    fs::write(root.join("config/new"), "new").unwrap();
    fs::write(root.join("other"), "new").unwrap();
    let done = guard.roll_back().unwrap();
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    assert_eq!(read("config/app.toml"), "name = 1\n".repeat(10));
    assert_eq!((read("src/lib.rs"), read("src/a/b/main.rs")), (String::new(), "fn main() {}\n".into()));
    assert_eq!(
        (read("config/deep/x"), read("top"), read("other")),
        ("edited".into(), "edited".into(), "new".into())
    );
    assert!(!root.join("config/new").exists());
    assert!(!root.join("fresh").exists(), "a directory that was made for what is guarded goes with it");
    let names = |paths: &[atomtree::TreePath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&done.changes.created), ["config/new", "fresh/down/new.rs"]);
    assert_eq!(names(&done.changes.changed), ["config/app.toml", "src/a/b/main.rs", "src/lib.rs"]);
    assert_eq!(names(&done.changes.removed), [""; 0]);
}

/// Goal: no name is under a transaction and a guard at once: those that a guard covers are locked until it ends, and what
/// was committed before is settled.
#[test]
fn transactions_keep_off_what_is_guarded() {
    let scratch = tree();
    let root = scratch.path();
    let store = open(root);
    commit(&store, |tx| tx.write("config/app.toml", "committed")).unwrap();
    let guard = store.guard(["config/**"]).unwrap();
    let refused = commit(&store, |tx| tx.write("config/app.toml", "x")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    assert_eq!(refused.path(), Some(Path::new("config/app.toml")));
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    for change in [
        |tx: &mut atomtree::Transaction| tx.write("config/new", "x"),
        |tx: &mut atomtree::Transaction| tx.remove("config/deep/x"),
        |tx: &mut atomtree::Transaction| tx.rename("config", "moved"),
        |tx: &mut atomtree::Transaction| tx.remove_dir_all("config"),
        |tx: &mut atomtree::Transaction| tx.rename("top", "config/top"),
        |tx: &mut atomtree::Transaction| tx.set_mode("config/app.toml", 0o600),
    ] {
        assert_eq!(kind_of(commit(&store, change)), ErrorKind::Locked);
    }
    let mut tx = store.begin().unwrap();
    tx.write("config/a", "submitted").unwrap();
    assert_eq!(kind_of(tx.submit().unwrap().durable()), ErrorKind::Locked);
    // Beside it everything goes on.
    commit(&store, |tx| tx.write("top2", "beside")).unwrap();
    commit(&store, |tx| tx.rename("swap", "elsewhere")).unwrap();
    assert_eq!(kind_of(store.guard(["**"])), ErrorKind::Locked);
    assert_eq!(kind_of(store.guard(["config/app.toml"])), ErrorKind::Locked);
    let other = store.guard(["src/**"]).unwrap();
    fs::write(root.join("config/app.toml"), "edited").unwrap();
    fs::write(root.join("src/lib.rs"), "edited").unwrap();
    other.keep().unwrap();
    guard.roll_back().unwrap();
    assert_eq!(fs::read_to_string(root.join("config/app.toml")).unwrap(), "committed");
    assert_eq!(fs::read_to_string(root.join("src/lib.rs")).unwrap(), "edited");
    commit(&store, |tx| tx.write("config/app.toml", "free again")).unwrap();
    store.guard(["**"]).unwrap().keep().unwrap();
    store.close().unwrap();
}

/// Goal: what can't be guarded is refused, named, and leaves nothing behind.
#[test]
fn what_can_not_be_guarded_is_refused() {
    let scratch = tree();
    let root = scratch.path();
    let store = open(root);
    for patterns in [vec![], vec![""], vec!["# x"], vec!["!x"]] {
        assert_eq!(kind_of(store.guard(patterns.clone())), ErrorKind::InvalidInput, "{patterns:?}");
    }
    let before = all(root);
    let mounted = root.join("empty");
    let mount = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mounted).output().unwrap();
    if mount.status.success() {
        let refused = store.guard(["**"]).err().expect("it is refused");
        let left_out = store.guard_with(&GuardOptions::new().ignore("/empty")).map(atomtree::Guard::keep);
        assert!(Command::new("umount").arg(&mounted).status().unwrap().success());
        assert_eq!((refused.kind(), refused.path()), (ErrorKind::MountPoint, Some(Path::new("empty"))));
        left_out.unwrap().unwrap();
    } else {
        println!("skipped in part: nothing can be mounted here");
    }
    assert_eq!(all(root), before);
    assert_eq!(left(root), Vec::<PathBuf>::new());
    assert_eq!(
        fs::read_dir(root.join(".atomtree/guards/cache")).unwrap().count() > 0,
        mount.status.success()
    );
    store.close().unwrap();
}

/// Goal: special files come back, and the lock of a guard keeps nobody out that has a right to come.
#[test]
fn special_files_come_back() {
    let scratch = tree();
    let root = scratch.path();
    let pipe = root.join("src/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let store = open(root);
    for edit in [
        |pipe: &Path| fs::remove_file(pipe).unwrap(),
        |pipe: &Path| fs::set_permissions(pipe, fs::Permissions::from_mode(0o600)).unwrap(),
        |pipe: &Path| fs::rename(pipe, pipe.with_file_name("moved")).unwrap(),
        |pipe: &Path| {
            fs::remove_file(pipe).unwrap();
            fs::write(pipe, "no pipe").unwrap();
        },
    ] {
        fs::set_permissions(&pipe, fs::Permissions::from_mode(0o644)).unwrap();
        let before = all(root);
        let guard = store.guard(["**"]).unwrap();
        edit(&pipe);
        guard.roll_back().unwrap();
        assert_eq!(all(root), before);
    }
    store.close().unwrap();
}

/// Goal: what a roll back removes or replaces can be kept, under its own name.
#[test]
fn what_is_rolled_back_can_be_kept() {
    let scratch = tree();
    let root = scratch.path();
    let before = all(root);
    let store = open(root);
    let guard = store.guard(["**"]).unwrap();
    fs::write(root.join("top"), "failed").unwrap();
    fs::create_dir_all(root.join("new/deep")).unwrap();
    fs::write(root.join("new/deep/file"), "made").unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::write(root.join("link"), "a file now").unwrap();
    let done = guard.roll_back_keeping().unwrap();
    assert_eq!(all(root), before);
    let mut kept: Vec<_> = (done.kept.iter())
        .map(|(path, kept)| {
            (path.to_string(), fs::read_to_string(root.join(".atomtree").join(kept)).unwrap())
        })
        .collect();
    kept.sort();
    let expected = [
        ("link", "a file now"),
        ("new/deep/file", "made"),
        // Two names of one inode.
        ("src/linked", "failed"),
        ("top", "failed"),
    ];
    assert_eq!(kept, expected.map(|(path, content)| (path.to_owned(), content.to_owned())));
    store.close().unwrap();
}

/// Goal: an image that somebody has damaged is not put anywhere, and the name is reported. Method: each image of a guard
/// that was left is written to, or removed, before the next open.
#[test]
fn damaged_images_are_reported_and_not_used() {
    for damage in [
        |image: &Path| fs::remove_file(image).unwrap(),
        |image: &Path| {
            fs::OpenOptions::new().write(true).open(image).unwrap().write_at(b"?", 0).map(drop).unwrap();
        },
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::write(root.join("a"), "original").unwrap();
        fs::write(root.join("b"), "same").unwrap();
        let store = open(root);
        let guard = store.guard(["**"]).unwrap();
        fs::write(root.join("a"), "edited").unwrap();
        guard.leave();
        drop(store);
        for entry in fs::read_dir(root.join(".atomtree/guards/cache")).unwrap() {
            damage(&entry.unwrap().path());
        }
        let store = open(root);
        let lost: Vec<_> = store.recovery().lost.iter().map(ToString::to_string).collect();
        assert_eq!(lost, ["a"]);
        assert_eq!(fs::read(root.join("a")).unwrap(), b"edited");
        store.close().unwrap();
    }
}

/// Goal: a copy of a tree with a guard that was left is rolled back like the tree itself.
#[test]
fn a_copy_is_rolled_back_too() {
    let scratch = tree();
    let root = scratch.path();
    let before = all(root);
    let store = open(root);
    let guard = store.guard(["**"]).unwrap();
    edits::all()(root);
    guard.leave();
    drop(store);
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    assert!(Command::new("cp").arg("-a").arg(root).arg(&copy).status().unwrap().success());
    let store = open(&copy);
    assert_eq!((store.recovery().rolled_back, store.recovery().lost.len()), (1, 0));
    assert_eq!(all(&copy), before);
    store.close().unwrap();
}

/// Goal: damage to a guard's list is told, and nothing is guessed.
#[test]
fn a_damaged_list_is_refused() {
    let scratch = tree();
    let root = scratch.path();
    let store = open(root);
    let guard = store.guard(["**"]).unwrap();
    let path = root.join(".atomtree/guards").join(guard.id()).join("manifest");
    guard.leave();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    for at in [0, 9, 13, 21, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        let refused = manual().open(root).err().expect("it is refused");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "byte {at}: {refused}");
        assert!(refused.to_string().contains("guards/"), "{refused}");
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(root).recovery().rolled_back, 1);
}

/// Goal: a guard that its owner left is nothing to whoever opens another: it is rolled back and cleared away at once. Method:
/// the second has the turn that clearing up takes; it waited for itself for a minute, with the commit lock.
#[test]
fn a_guard_that_was_left_is_cleared_up_by_who_opens_another() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    ["a", "b"].iter().for_each(|name| fs::write(root.join(name), "old").unwrap());
    let store = manual().open(root).unwrap();
    store.guard(["a"]).unwrap().leave();
    fs::write(root.join("a"), "edited").unwrap();
    let begun = Instant::now();
    let guard = store.guard(["b"]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "old");
    assert_eq!(store.take_overs().iter().map(|report| report.rolled_back).sum::<u64>(), 1);
    let left = fs::read_dir(root.join(".atomtree/guards")).unwrap();
    let dirs = left.filter(|entry| entry.as_ref().unwrap().file_name().len() == 16);
    assert_eq!(dirs.count(), 1, "the one that is open");
    guard.roll_back().unwrap();
    store.close().unwrap();
}

/// Goal: what is committed behind the end of a guard stays, although its owner died before that was durable. Method: the list
/// is gone and nobody has synced that, as after a kill in the middle of keeping; then a commit, and power cuts.
#[test]
fn what_is_committed_behind_the_end_of_a_guard_stays() {
    let sim = Sim::new(3);
    sim.create_dir("/tree");
    sim.write_file("/tree/a", b"old");
    let options = || manual().vfs(Arc::new(sim.clone()));
    let store = options().open("/tree").unwrap();
    let guard = store.guard(["a"]).unwrap();
    sim.write_file("/tree/a", b"edited");
    let dir = sim.open_root(&Path::new("/tree/.atomtree/guards").join(guard.id())).unwrap();
    dir.sync_filesystem().unwrap();
    dir.remove_file("manifest".as_ref()).unwrap();
    guard.leave();
    commit(&store, |tx| tx.write("a", "new")).unwrap();
    for seed in 0..50 {
        let cut = sim.power_cut(seed);
        let store = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
        assert_eq!(cut.read_file("/tree/a").as_deref(), Some(&b"new"[..]), "seed {seed}");
        store.close().unwrap();
    }
}

/// Everything in a tree's directory, the store's images included, as a command finds it that is let loose on all of it.
fn images(root: &Path) -> Vec<PathBuf> {
    let cache = fs::read_dir(root.join(".atomtree/guards/cache")).unwrap();
    cache.map(|entry| entry.unwrap().path()).collect()
}

/// Goal: a command that touches everything it finds, or changes its mode or attributes, has touched the images too, and
/// everything comes back all the same. Method: each such change to the tree and the images, with the content edited.
#[test]
fn what_touches_everything_has_not_destroyed_the_images() {
    type Meddle = fn(&Path);
    let meddles: [(&str, Meddle); 3] = [
        ("times", |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("modes", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap()),
        ("attributes", |path| {
            let dir = Os.open_root(path.parent().unwrap()).unwrap();
            let file = dir.open_file(path.file_name().unwrap(), Access::ReadWrite).unwrap();
            file.set_xattr("user.meddled".as_ref(), b"with").unwrap();
        }),
    ];
    for (what, meddle) in meddles {
        for is_edited in [false, true] {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path();
            fs::write(root.join("file"), "precious").unwrap();
            fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
            let before = all(root);
            let store = manual().open(root).unwrap();
            let guard = store.guard(["**"]).unwrap();
            images(root).iter().for_each(|image| meddle(image));
            meddle(&root.join("file"));
            if is_edited {
                fs::write(root.join("file"), "edited").unwrap();
            }
            assert_eq!(guard.roll_back().unwrap().lost, [], "{what}, {is_edited}");
            assert_eq!(all(root), before, "{what}, {is_edited}");
            store.close().unwrap();
        }
    }
}

/// Goal: what was put back with an image that a command had touched is as it was, wherever a roll back is cut off. Method: power
/// cuts at every operation on the storage.
#[test]
fn touched_images_are_mended_before_they_are_put_back() {
    let stands = |sim: &Sim| {
        let found = sim.open_root(Path::new("/tree")).unwrap().metadata("a".as_ref()).unwrap();
        (found.mode, found.modified, sim.read_file("/tree/a").unwrap())
    };
    for operation in 1.. {
        let sim = Sim::new(operation);
        sim.create_dir("/tree");
        sim.write_file("/tree/a", b"old");
        let before = stands(&sim);
        sim.advance(1_000_000_000);
        let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
        let guard = store.guard(["a"]).unwrap();
        let cache = sim.open_root(Path::new("/tree/.atomtree/guards/cache")).unwrap();
        for image in cache.list().unwrap() {
            cache.set_mode_of(&image.name, 0o777).unwrap();
            let file = cache.open_file(&image.name, Access::ReadWrite).unwrap();
            file.set_modified(sim.now()).unwrap();
        }
        sim.write_file("/tree/a", b"edited");
        // So that there is something worse to go back to.
        cache.sync_filesystem().unwrap();
        let begun = sim.operations();
        sim.halt_at(begun + operation);
        let is_done = guard.roll_back().is_ok();
        drop(store);
        for seed in 0..20 {
            let cut = sim.power_cut(seed);
            let store = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
            assert_eq!(store.recovery().lost, [], "operation {operation}, seed {seed}");
            assert_eq!(stands(&cut), before, "operation {operation}, seed {seed}");
        }
        if is_done {
            return;
        }
    }
}

/// Goal: an image that an earlier guard left is taken for what stands there only if nobody has touched it; one whose content
/// is another is never put into the tree. Method: images with another content, one with its old times.
#[test]
fn images_that_are_not_what_they_were_are_made_anew_or_not_believed() {
    for keeps_times in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::write(root.join("file"), "precious").unwrap();
        // Old enough for its times to be believed.
        std::thread::sleep(Duration::from_nanos(2 * Os.timestamp_granularity_ns() as u64));
        let store = manual().open(root).unwrap();
        store.guard(["**"]).unwrap().keep().unwrap();
        let image = images(root).pop().unwrap();
        let modified = fs::metadata(&image).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(b"rotten!!", 0).unwrap();
        if keeps_times {
            file.set_modified(modified).unwrap();
        }
        let guard = store.guard(["**"]).unwrap();
        assert_eq!(guard.copied(), u64::from(!keeps_times));
        fs::write(root.join("file"), "edited").unwrap();
        let lost = guard.roll_back().unwrap().lost.len();
        let expected = if keeps_times { (1, "edited") } else { (0, "precious") };
        assert_eq!((lost, &*fs::read_to_string(root.join("file")).unwrap()), expected);
        store.close().unwrap();
    }
}

/// Goal: where something is that a roll back kept can be told, and it is there, whatever its name. Method: names that are no
/// text, short and as long as names get, of files and directories, two of which are told as one.
#[test]
fn what_has_a_name_that_is_no_text_is_kept_where_it_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = manual().open(root).unwrap();
    let guard = store.guard(["**"]).unwrap();
    let long = [0xff; 255];
    for name in [&b"x\xff"[..], &b"y\xfe"[..], &long] {
        let dir = root.join(OsStr::from_bytes(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(OsStr::from_bytes(name)), "precious").unwrap();
    }
    // Told as one of the directories is.
    fs::write(root.join(OsStr::from_bytes(b"x\xfe")), "precious").unwrap();
    let kept = guard.roll_back_keeping().unwrap().kept;
    let found: Vec<_> =
        kept.iter().map(|(_, kept)| fs::read(root.join(".atomtree").join(kept)).unwrap()).collect();
    assert_eq!(found, vec![b"precious".to_vec(); 4]);
    store.close().unwrap();
}
