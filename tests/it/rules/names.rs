//! Names at the edge of what a name can be, for every kind of thing and every operation: not UTF-8, 255 bytes long,
//! and things that hold nothing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use atomtree::{Error, ErrorKind, Transaction};

use super::{crash_at_every_call, refused, seen, trees};
use crate::basics::{commit, manual, opened, tree};

/// Names that other programs stumble over.
fn strange_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        &b"\xff\xfe"[..],
        b"caf\xe9",
        b"line\nbreak",
        b"-rf",
        b"back\\slash",
        b" ",
        b"\x01\x7f",
        b"...",
        b"*",
    ]
    .map(|name| OsString::from_vec(name.to_vec()))
    .into();
    names.push(OsString::from_vec(vec![b'n'; 255]));
    names.push(OsString::from_vec(vec![0xff; 255]));
    names
}

/// Every operation, on names made of this one: a directory `D`, and in it a file, a directory and a symlink.
fn every_operation(tx: &mut Transaction, name: &OsStr) -> Result<(), Error> {
    let top = Path::new(name);
    let (below, linked) = (top.join(name), Path::new("links").join(name));
    tx.create_dir(top)?;
    tx.write(&below, "written")?;
    tx.append(&below, "+")?;
    tx.patch(&below, 0, "W")?;
    tx.set_mode(&below, 0o640)?;
    tx.create_dir_all(Path::new("made").join(name).join(name))?;
    tx.symlink(&linked, name)?;
    assert_eq!(tx.read_link(&linked)?, Path::new(name));
    assert_eq!(tx.list(top)?.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), [name]);
    Ok(())
}

/// What the above has made is moved and changed, as it stands on disk.
fn every_later_operation(tx: &mut Transaction, name: &OsStr) -> Result<(), Error> {
    let top = Path::new(name);
    assert_eq!(tx.read(top.join(name))?, b"Written+");
    tx.rename(top, Path::new("moved").join(name))?;
    tx.append(Path::new("moved").join(name).join(name), "!")?;
    tx.set_mode(Path::new("moved").join(name), 0o711)?;
    tx.rename(Path::new("links").join(name), Path::new("elsewhere").join(name))?;
    tx.remove_dir(Path::new("made").join(name).join(name))?;
    tx.symlink(Path::new("made").join(name).join(name), name)
}

fn every_removal(tx: &mut Transaction, name: &OsStr) -> Result<(), Error> {
    tx.remove(Path::new("elsewhere").join(name))?;
    tx.remove_dir_all(Path::new("moved").join(name))?;
    tx.remove_dir_all(Path::new("made").join(name))
}

/// Goal: a name is a name, whatever its bytes and as long as names can be, in directories that are made, moved and
/// removed. Method: every operation with every name, in three transactions; one byte more is refused.
#[test]
fn strange_names_are_names_for_every_operation() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let names = strange_names();
    let expected = |paths: &[&str]| -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            names.iter().flat_map(|name| paths.iter().map(|path| path_with(path, name))).collect();
        all.sort();
        all
    };
    let found = |with: &[&str]| -> Vec<PathBuf> {
        seen(root).into_keys().filter(|path| !with.iter().any(|top| path == Path::new(top))).collect()
    };
    commit(&store, |tx| names.iter().try_for_each(|name| every_operation(tx, name))).unwrap();
    let made = ["N", "N/N", "links/N", "made/N", "made/N/N"];
    assert_eq!(found(&["links", "made"]), expected(&made));
    commit(&store, |tx| names.iter().try_for_each(|name| every_later_operation(tx, name))).unwrap();
    let moved = ["moved/N", "moved/N/N", "elsewhere/N", "made/N", "made/N/N"];
    assert_eq!(found(&["links", "made", "moved", "elsewhere"]), expected(&moved));
    for name in &names {
        let below = Path::new("moved").join(name).join(name);
        assert_eq!(fs::read(root.join(&below)).unwrap(), b"Written+!", "{below:?}");
        assert_eq!(fs::read_link(root.join("elsewhere").join(name)).unwrap(), Path::new(name));
    }
    store.checkpoint().unwrap();
    commit(&store, |tx| names.iter().try_for_each(|name| every_removal(tx, name))).unwrap();
    assert_eq!(found(&["links", "made", "moved", "elsewhere"]), Vec::<PathBuf>::new());
    store.close().unwrap();
    assert_eq!(fs::read_dir(root.join(".atomtree/quarantine")).unwrap().count(), 0);

    let store = manual().open(root).unwrap();
    let long = "n".repeat(256);
    for operation in 0..6 {
        refused(root, &store, ErrorKind::InvalidPath, |tx| match operation {
            0 => tx.create_dir(&long),
            1 => tx.create_dir_all(format!("made/{long}/x")),
            2 => tx.symlink(&long, "x"),
            3 => tx.rename("made", &long),
            4 => tx.remove_dir_all(&long),
            _ => tx.set_mode(&long, 0o700),
        });
    }
    store.close().unwrap();
}

/// `path` with `N` replaced by the name.
fn path_with(path: &str, name: &OsStr) -> PathBuf {
    path.split('/').map(|part| if part == "N" { name } else { OsStr::new(part) }).collect()
}

/// Goal: such names are recovered. Method: the death of the process at every call of a transaction that makes, moves and
/// removes them.
#[test]
fn strange_names_are_recovered() {
    let scratch = trees();
    for name in [OsStr::from_bytes(b"\xff\n"), OsStr::from_bytes(&[0xfe; 255])] {
        let prepare = |root: &Path| {
            fs::create_dir_all(root.join(name).join(name)).unwrap();
            fs::create_dir_all(root.join("gone").join(name)).unwrap();
            fs::write(root.join("gone").join(name).join(name), "x").unwrap();
        };
        crash_at_every_call(scratch.path(), prepare, |tx| {
            tx.rename(name, Path::new("moved").join(name))?;
            tx.write(Path::new("moved").join(name).join(name).join(name), "x")?;
            tx.symlink(name, name)?;
            tx.remove_dir_all("gone")
        });
    }
}

/// Goal: what holds nothing is something all the same. Method: empty files and directories made, moved, replaced,
/// edited and removed, with the death of the process at every call as well.
#[test]
fn empty_files_and_directories_are_kept() {
    let scratch = trees();
    let prepare = |root: &Path| {
        for dir in ["dir", "replaced", "gone/deep", "full/inside"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in ["file", "appended", "patched", "gone/file", "emptied", "over"] {
            fs::write(root.join(file), if file == "emptied" { "full" } else { "" }).unwrap();
        }
    };
    let change = |tx: &mut Transaction| {
        tx.write("new", "")?;
        tx.append("made/by/append", "")?;
        tx.write("emptied", "")?;
        tx.append("appended", "")?;
        tx.patch("patched", 0, "")?;
        tx.rename("file", "moved/file")?;
        tx.rename("over", "appended")?;
        tx.rename("dir", "replaced")?;
        tx.create_dir("made/dir")?;
        tx.remove_dir_all("gone")?;
        tx.remove_dir("full/inside")
    };
    crash_at_every_call(scratch.path(), prepare, change);

    let (scratch, store) = opened(manual());
    prepare(scratch.path());
    commit(&store, change).unwrap();
    let names: Vec<String> = tree(scratch.path()).keys().map(|path| path.display().to_string()).collect();
    let expected = [
        "appended",
        "emptied",
        "full",
        "made",
        "made/by",
        "made/by/append",
        "made/dir",
        "moved",
        "moved/file",
        "new",
        "patched",
        "replaced",
    ];
    assert_eq!(names, expected);
    assert!(tree(scratch.path()).values().all(|one| one.content.is_empty()));
    store.close().unwrap();
}
