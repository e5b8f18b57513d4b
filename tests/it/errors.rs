//! What is refused, with which kind of error, and that nothing changes: after each of them the tree is the same in every
//! byte and attribute, `stage/` is empty, and the next commit works.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use atomtree::{Error, ErrorKind, HardLinks, Options, Store, Symlinks, Transaction};

use crate::basics::{child, child_root, commit, is_root, kind_of, manual, opened, shell, small, tree};

/// Asserts that `change` fails with `kind`, that nothing changes by it, and that a good commit works afterwards.
#[track_caller]
fn refused(
    root: &Path,
    store: &Store,
    kind: ErrorKind,
    change: impl FnOnce(&mut Transaction) -> Result<(), Error>,
) -> Error {
    let before = tree(root);
    let error = commit(store, change).map(drop).expect_err("it is refused");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(tree(root), before, "{error}");
    commit(store, |tx| tx.write("good", "commit")).unwrap_or_else(|next| panic!("after {error}: {next}"));
    commit(store, |tx| tx.remove("good")).unwrap();
    error
}

/// Goal: a path that cannot name anything in the tree is `invalid_path` for every operation that takes one. Method: a
/// matrix of paths and operations.
#[test]
fn paths_that_name_nothing_in_the_tree_are_refused() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "1").unwrap();
    fs::create_dir(root.join("d")).unwrap();
    let long = "n".repeat(256);
    let longer = format!("d/{long}/x");
    let deep = "d/".repeat(40_000) + "x";
    let paths = [
        "..",
        "../a",
        "d/../../a",
        "d/../a",
        "/a",
        "/etc/passwd",
        "",
        ".",
        "./a",
        "d/./a",
        "a/",
        "d//a",
        "a\0b",
        ".atomtree",
        ".atomtree/store",
        ".atomtree/wal/x",
        ".AtomTree/store",
        ".ATOMTREE",
        ".atomtree.new",
        ".Atomtree.New/lock",
        &long,
        &longer,
        &deep,
    ];
    for path in paths {
        let shown = &path[..path.len().min(40)];
        let mut tx = store.begin().unwrap();
        tx.write("other", "x").unwrap();
        let results = [
            tx.write(path, "x"),
            tx.write_with_mode(path, "x", 0o600),
            tx.append(path, "x"),
            tx.patch(path, 0, "x"),
            tx.remove(path),
            tx.rename(path, "b"),
            tx.rename("a", path),
            tx.read(path).map(drop),
            tx.exists(path).map(drop),
            tx.expect(path, atomtree::Expectation::Absent),
        ];
        for (operation, result) in results.into_iter().enumerate() {
            assert_eq!(kind_of(result), ErrorKind::InvalidPath, "{shown:?}, operation {operation}");
        }
        assert_eq!(tx.read("a").unwrap(), b"1", "what failed left the transaction as it was");
    }
    refused(root, &store, ErrorKind::InvalidPath, |tx| {
        tx.write("fine", "x")?;
        tx.write("../out", "x")
    });
    store.close().unwrap();
}

/// Goal: no symlink leads an operation out of the tree or into the store, whatever its shape. Method: links as a
/// component and as the last name, with links followed and refused; what lies outside stays as it was.
#[test]
fn symlinks_do_not_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let before = tree(outside.path());
    for options in [manual(), manual().symlinks(Symlinks::Follow)] {
        let (scratch, store) = opened(options);
        let root = scratch.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/file"), "1").unwrap();
        let up = "../".repeat(30);
        let relative = format!("{up}{}", &outside.path().to_str().unwrap()[1..]);
        for (link, target) in [
            ("absolute", outside.path().to_str().unwrap()),
            ("inside-absolute", root.join("d").to_str().unwrap()),
            ("relative", relative.as_str()),
            ("parent", ".."),
            ("loop", "loop"),
            ("loop-1", "loop-2"),
            ("loop-2", "loop-1"),
            ("store", ".atomtree"),
            ("self", "."),
            ("d/store", "../.atomtree/stage"),
            ("chain", "d/store"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for path in [
            "absolute/secret",
            "absolute/new",
            "inside-absolute/file",
            "relative/secret",
            "parent/x",
            "loop/x",
            "loop-1/x",
            "store/store",
            "store/wal/x",
            "self/.atomtree/store",
            "self/self/.atomtree.new",
            "d/store/x",
            "chain/x",
        ] {
            refused(root, &store, ErrorKind::InvalidPath, |tx| tx.write(path, "x"));
            refused(root, &store, ErrorKind::InvalidPath, |tx| tx.read(path).map(drop));
            refused(root, &store, ErrorKind::InvalidPath, |tx| {
                tx.write("fine", "y")?;
                tx.rename("fine", path)
            });
        }
        store.close().unwrap();
    }
    assert_eq!(tree(outside.path()), before);
}

/// Goal: a symlink at the end is refused unless it is to be followed, and then only within the tree. Method: each
/// shape of link, with both settings; links on the way that stay inside work.
#[test]
fn final_symlinks_are_refused_or_followed_inside() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/file"), "1").unwrap();
    for (link, target) in [
        ("to-file", "d/file"),
        ("d/e/up", "../../to-file"),
        ("dangling", "d/missing"),
        ("to-dir", "d"),
        ("out", "../../../../../../../../etc/passwd"),
        ("absolute", "/etc/passwd"),
        ("loop", "loop"),
        ("into-store", ".atomtree/store"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    for link in ["to-file", "d/e/up", "dangling", "to-dir", "out", "absolute", "loop", "into-store"] {
        refused(root, &store, ErrorKind::Unsupported, |tx| tx.write(link, "x"));
        refused(root, &store, ErrorKind::Unsupported, |tx| tx.append(link, "x"));
        refused(root, &store, ErrorKind::Unsupported, |tx| tx.rename("d/file", link));
    }
    for link in ["out", "absolute", "loop", "into-store"] {
        refused(root, &store, ErrorKind::InvalidPath, |tx| {
            tx.set_symlinks(Symlinks::Follow);
            tx.write(link, "x")
        });
    }
    refused(root, &store, ErrorKind::IsADirectory, |tx| {
        tx.set_symlinks(Symlinks::Follow);
        tx.write("to-dir", "x")
    });
    commit(&store, |tx| {
        tx.set_symlinks(Symlinks::Follow);
        tx.append("to-file", "2")?;
        tx.append("d/e/up", "3")?;
        assert_eq!(tx.read("to-dir/file")?, b"123", "three spellings of one name");
        tx.write("dangling", "made")
    })
    .unwrap();
    assert_eq!(fs::read(root.join("d/file")).unwrap(), b"123");
    assert_eq!(fs::read(root.join("d/missing")).unwrap(), b"made");
    assert!(fs::symlink_metadata(root.join("to-file")).unwrap().is_symlink());
    store.close().unwrap();
}

/// Goal: what stands at a name decides what can be done to it. Method: each kind of thing against each operation.
#[test]
fn each_kind_of_thing_refuses_what_does_not_suit_it() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/inside"), "x").unwrap();
    fs::write(root.join("file"), "x").unwrap();
    shell(&format!("mkfifo '{}'", root.join("fifo").display()));
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let mut others = vec!["fifo", "socket"];
    if is_root() {
        shell(&format!("mknod '{}' c 1 3", root.join("device").display()));
        others.push("device");
    }
    for name in &others {
        for operation in 0..5 {
            refused(root, &store, ErrorKind::Unsupported, |tx| match operation {
                0 => tx.write(name, "x"),
                1 => tx.append(name, "x"),
                2 => tx.patch(name, 0, "x"),
                3 => tx.rename("file", name),
                _ => tx.read(name).map(drop),
            });
        }
        refused(root, &store, ErrorKind::NotADirectory, |tx| tx.write(format!("{name}/x"), "x"));
    }
    for operation in 0..6 {
        refused(root, &store, ErrorKind::IsADirectory, |tx| match operation {
            0 => tx.write("dir", "x"),
            1 => tx.append("dir", "x"),
            2 => tx.patch("dir", 0, "x"),
            3 => tx.remove("dir"),
            4 => tx.rename("file", "dir"),
            _ => tx.read("dir").map(drop),
        });
    }
    refused(root, &store, ErrorKind::Unsupported, |tx| tx.expect("dir", atomtree::Expectation::Absent));
    for path in ["file/x", "file/x/y"] {
        refused(root, &store, ErrorKind::NotADirectory, |tx| tx.write(path, "x"));
        refused(root, &store, ErrorKind::NotADirectory, |tx| tx.rename("dir/inside", path));
    }
    refused(root, &store, ErrorKind::NotFound, |tx| tx.remove("missing"));
    refused(root, &store, ErrorKind::NotFound, |tx| tx.remove("missing/deep"));
    refused(root, &store, ErrorKind::NotFound, |tx| tx.rename("missing", "a"));
    refused(root, &store, ErrorKind::NotFound, |tx| tx.patch("missing", 0, "x"));
    refused(root, &store, ErrorKind::NotFound, |tx| tx.read("missing").map(drop));
    refused(root, &store, ErrorKind::InvalidInput, |tx| tx.patch("file", 2, "x"));
    refused(root, &store, ErrorKind::InvalidInput, |tx| tx.write_with_mode("file", "x", 0o10_000));
    store.close().unwrap();
}

/// Goal: a file with several names is not parted from them unasked, by any operation. Method: a pair of links, each
/// operation refused, then allowed by `HardLinks::Break`.
#[test]
fn hard_links_are_not_broken_unasked() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("one"), "x").unwrap();
    fs::write(root.join("single"), "y").unwrap();
    fs::hard_link(root.join("one"), root.join("two")).unwrap();
    refused(root, &store, ErrorKind::Unsupported, |tx| tx.write("one", "z"));
    refused(root, &store, ErrorKind::Unsupported, |tx| tx.append("two", "z"));
    refused(root, &store, ErrorKind::Unsupported, |tx| tx.patch("two", 0, "z"));
    refused(root, &store, ErrorKind::Unsupported, |tx| tx.rename("single", "one"));
    // A rename moves the inode, and parts nothing.
    commit(&store, |tx| tx.rename("one", "three")).unwrap();
    assert_eq!(
        fs::metadata(root.join("three")).unwrap().ino(),
        fs::metadata(root.join("two")).unwrap().ino()
    );
    commit(&store, |tx| tx.rename("three", "one")).unwrap();
    commit(&store, |tx| tx.read("one").map(drop)).unwrap();
    commit(&store, |tx| {
        tx.set_hard_links(HardLinks::Break);
        tx.append("one", "z")
    })
    .unwrap();
    assert_eq!(
        (fs::read(root.join("one")).unwrap(), fs::read(root.join("two")).unwrap()),
        (b"xz".into(), b"x".into())
    );
    // Removing a name leaves the other one alone.
    fs::hard_link(root.join("two"), root.join("three")).unwrap();
    commit(&store, |tx| tx.remove("two")).unwrap();
    assert_eq!(fs::read(root.join("three")).unwrap(), b"x");
    store.close().unwrap();
}

/// Goal: a hard link made after the transaction looked is no more broken than one from before. Method: linked between
/// the write and the commit.
#[test]
fn a_hard_link_made_meanwhile_is_a_conflict() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("one"), "x").unwrap();
    let mut tx = store.begin().unwrap();
    tx.write("one", "y").unwrap();
    fs::hard_link(root.join("one"), root.join("two")).unwrap();
    assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict);
    assert_eq!(fs::read(root.join("one")).unwrap(), b"x");
    store.close().unwrap();
}

/// Goal: what the process may not do is found out before the commit point. Method: a directory, a sticky directory
/// and a file that a user who is not root may not change, and a whole tree owned by someone else; tried by a child.
#[test]
fn permission_is_found_out_before_the_commit_point() {
    if let Some(root) = child_root() {
        let store = small().open(&root).unwrap();
        let root: &Path = &root;
        for operation in 0..4 {
            refused(root, &store, ErrorKind::Permission, |tx| match operation {
                0 => tx.write("closed/new", "x"),
                1 => tx.write("closed/file", "x"),
                2 => tx.remove("closed/file"),
                _ => {
                    tx.write("fine", "x")?;
                    tx.rename("closed/file", "moved")
                }
            });
        }
        refused(root, &store, ErrorKind::Permission, |tx| tx.write("closed/new/dir/file", "x"));
        refused(root, &store, ErrorKind::Permission, |tx| tx.remove("sticky/foreign"));
        refused(root, &store, ErrorKind::Permission, |tx| tx.write("sticky/foreign", "x"));
        refused(root, &store, ErrorKind::Permission, |tx| tx.write("unreadable", "x"));
        refused(root, &store, ErrorKind::Permission, |tx| tx.write("searchless/x", "x"));
        commit(&store, |tx| tx.write("sticky/own", "x")).unwrap();
        commit(&store, |tx| tx.write("sticky/own", "y")).unwrap();
        store.close().unwrap();
        eprintln!("passed");
        return;
    }
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    shell(&format!(
        "cd '{}'; mkdir closed sticky searchless; echo 1 > closed/file; echo 1 > sticky/foreign
         echo 1 > unreadable; chown -R 1234:1234 .; chown 0:0 sticky sticky/foreign
         chmod 666 sticky/foreign; chmod 1777 sticky; chmod 555 closed; chmod 0 unreadable searchless",
        root.display()
    ));
    let output = as_user(1234, &mut child("errors::permission_is_found_out_before_the_commit_point", root));
    let Some(output) = output else { return };
    assert!(output.contains("passed"), "{output}");

    // A tree that belongs to someone else, and one that the user may not write to.
    assert_eq!(kind_of(Store::open(root).map(drop)), ErrorKind::Permission, "root is not the owner");
    Options::new().allow_owner(1234).open(root).unwrap().close().unwrap();
    assert_eq!(kind_of(Options::new().allow_owner(1235).open(root).map(drop)), ErrorKind::Permission);
}

/// Runs a child of this binary as another user; what it wrote to standard error, or `None` with a reason printed where
/// that user can't run it.
pub(crate) fn as_user(uid: u32, command: &mut Command) -> Option<String> {
    let mut wrapped = Command::new("setpriv");
    let id = uid.to_string();
    wrapped.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap());
    }
    let output = wrapped.output().unwrap();
    if matches!(output.status.code(), Some(126 | 127)) {
        println!("skipped: user {uid} may not run {}", command.get_program().display());
        return None;
    }
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    Some(text)
}

/// Goal: files and directories that no one may change are found out before the commit point. Method: the immutable and
/// append-only flags, on a file and on its directory.
#[test]
fn immutable_files_are_found_out_before_the_commit_point() {
    if !is_root() {
        return;
    }
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/file"), "x").unwrap();
    let flag = |flag: &str, name: &str| {
        Command::new("chattr").arg(flag).arg(root.join(name)).stderr(std::process::Stdio::null()).status()
    };
    if !flag("+i", "d/file").is_ok_and(|status| status.success()) {
        println!("skipped: there is no chattr, or the file system has no such flags");
        return;
    }
    flag("-i", "d/file").unwrap();
    for (set, clear, name) in
        [("+i", "-i", "d/file"), ("+a", "-a", "d/file"), ("+i", "-i", "d"), ("+a", "-a", "d")]
    {
        flag(set, name).unwrap();
        let results = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            refused(root, &store, ErrorKind::Permission, |tx| tx.write("d/file", "y"));
            refused(root, &store, ErrorKind::Permission, |tx| tx.remove("d/file"));
            if (set, name) == ("+i", "d") {
                refused(root, &store, ErrorKind::Permission, |tx| tx.write("d/new", "y"));
            }
        }));
        flag(clear, name).unwrap();
        results.unwrap_or_else(|_| panic!("{set} {name}"));
    }
    store.close().unwrap();
}

/// Goal: a store that someone else could have planted or could change is not opened. Method: each sign of it in turn,
/// set and taken back; the store opens again afterwards.
#[test]
fn planted_stores_are_not_opened() {
    let (scratch, store) = opened(small());
    let root = scratch.path();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    store.close().unwrap();
    let own = root.join(".atomtree");
    let chmod = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let opens = || Store::open(root).map(drop);
    for part in ["", "wal", "stage", "history", "images", "quarantine", "store"] {
        let path = if part.is_empty() { own.clone() } else { own.join(part) };
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        for wider in [0o020, 0o002, 0o004, 0o010] {
            chmod(&path, mode | wider);
            assert_eq!(kind_of(opens()), ErrorKind::Permission, "{part} {wider:o}");
        }
        chmod(&path, mode);
        if is_root() {
            std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
            assert_eq!(kind_of(opens()), ErrorKind::Permission, "{part} of another user");
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
    }
    fs::hard_link(own.join("store"), root.join("second")).unwrap();
    assert_eq!(kind_of(opens()), ErrorKind::Permission, "a store file with two names");
    fs::remove_file(root.join("second")).unwrap();
    opens().unwrap();

    // Symlinks in the place of the store or a part of it.
    for part in ["", "wal", "stage", "store", "lock"] {
        let path = if part.is_empty() { own.clone() } else { own.join(part) };
        let aside = root.join("aside");
        fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        let kind = kind_of(opens());
        assert!(
            matches!(kind, ErrorKind::Permission | ErrorKind::NotADirectory),
            "{part} is a symlink: {kind:?}"
        );
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    opens().unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
}

/// Goal: a symlink or a directory of someone else in the place where a store is built leads nowhere. Method: planted
/// before the first open.
#[test]
fn what_is_planted_before_creation_is_not_used() {
    let (elsewhere, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in [".atomtree", ".atomtree.new"] {
        symlink(elsewhere.path(), scratch.path().join(name)).unwrap();
        let kind = kind_of(Store::open(scratch.path()).map(drop));
        assert!(matches!(kind, ErrorKind::Permission | ErrorKind::NotADirectory), "{name}: {kind:?}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        fs::remove_file(scratch.path().join(name)).unwrap();
    }
    if is_root() {
        let planted = scratch.path().join(".atomtree.new");
        fs::create_dir(&planted).unwrap();
        std::os::unix::fs::chown(&planted, Some(4711), Some(4711)).unwrap();
        assert_eq!(kind_of(Store::open(scratch.path()).map(drop)), ErrorKind::Permission);
        assert!(!scratch.path().join(".atomtree").exists(), "it was not made the store");
        // Beside a store it is in nobody's way.
        fs::remove_dir(&planted).unwrap();
        Store::open(scratch.path()).unwrap().close().unwrap();
        fs::create_dir(&planted).unwrap();
        fs::write(planted.join("lock"), "").unwrap();
        std::os::unix::fs::chown(&planted, Some(4711), Some(4711)).unwrap();
        Store::open(scratch.path()).unwrap().close().unwrap();
        assert!(planted.join("lock").exists(), "it is somebody else's");
    }
}

/// Goal: a store file or segment header that is damaged or of another version is refused, each for its own reason, and
/// stays as it is. Method: every byte of the store file flipped, every length; version numbers rewritten with whatever
/// checksum goes with them.
#[test]
fn damaged_store_files_are_refused() {
    let (scratch, store) = opened(small());
    let root = scratch.path();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    store.close().unwrap();
    let path = root.join(".atomtree/store");
    let whole = fs::read(&path).unwrap();
    let opens_as = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let kind = kind_of(small().open(root).map(drop));
        assert_eq!(fs::read(&path).unwrap(), bytes, "it is left as it is");
        kind
    };
    for length in 0..whole.len() {
        assert_eq!(opens_as(&whole[..length]), ErrorKind::Corrupt, "cut at {length}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        let kind = opens_as(&bytes);
        let is_version = at == "atomtree store ".len();
        assert!(
            kind == ErrorKind::Corrupt || (is_version && kind == ErrorKind::Unsupported),
            "byte {at}: {kind:?}"
        );
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    assert_eq!(opens_as(text.replace("store 1\n", "store 2\n").as_bytes()), ErrorKind::Unsupported);
    assert_eq!(opens_as(&vec![b'x'; 100_000]), ErrorKind::Corrupt);
    fs::write(&path, &whole).unwrap();
    small().open(root).unwrap().close().unwrap();

    // Without its log a store is damaged, never a new one.
    let (wal, aside) = (root.join(".atomtree/wal"), root.join("aside"));
    fs::rename(&wal, &aside).unwrap();
    assert_eq!(kind_of(small().open(root).map(drop)), ErrorKind::Corrupt, "no wal directory");
    fs::create_dir(&wal).unwrap();
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(kind_of(small().open(root).map(drop)), ErrorKind::Corrupt, "an empty wal directory");
    fs::remove_dir(&wal).unwrap();
    fs::rename(&aside, &wal).unwrap();
    fs::rename(&path, &aside).unwrap();
    assert_eq!(kind_of(small().open(root).map(drop)), ErrorKind::Corrupt, "no store file");
    fs::rename(&aside, &path).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
    let store = small().open(root).unwrap();
    commit(&store, |tx| tx.write("a", "2")).unwrap();
    store.close().unwrap();
}

/// Goal: options out of range, and roots that are none, are refused before anything is made.
#[test]
fn senseless_options_and_roots_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    for options in [
        Options::new().segment_bytes(0),
        Options::new().segment_bytes((64 << 10) - 1),
        Options::new().segment_bytes((64 << 10) + 1),
        Options::new().segment_bytes((1 << 30) + 4096),
        Options::new().segment_bytes(u64::MAX),
        Options::new().segment_bytes(1 << 20).log_bytes_max((3 << 20) - 1),
        Options::new().log_bytes_max(0),
    ] {
        assert_eq!(kind_of(options.open(root).map(drop)), ErrorKind::InvalidInput);
    }
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    fs::write(root.join("file"), "").unwrap();
    assert_eq!(kind_of(Store::open(root.join("missing")).map(drop)), ErrorKind::NotFound);
    assert_eq!(kind_of(Store::open(root.join("file")).map(drop)), ErrorKind::NotADirectory);
    assert_eq!(kind_of(Store::open("").map(drop)), ErrorKind::NotFound);
    assert_eq!(
        kind_of(atomtree::Inspection::open(root, &Options::new()).map(drop)),
        ErrorKind::NotFound,
        "looking makes no store"
    );
    // The longest wait is none at all.
    let store = small().settle_after(std::time::Duration::MAX).open(root).unwrap();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    // Large contents are settled at once, if there still is a thread to do it.
    commit(&store, |tx| tx.write("large", vec![0; 2 << 20])).unwrap();
    let inspection = atomtree::Inspection::open(root, &Options::new()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while inspection.status().unwrap().unsettled > 0 {
        assert!(std::time::Instant::now() < deadline, "nothing is settled any more");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    store.close().unwrap();
}

/// A mount that goes away with its test.
pub(crate) struct Mount(pub(crate) tempfile::TempDir);

impl Mount {
    /// A small file system in memory; `None`, with the reason printed, where that can't be mounted.
    pub(crate) fn tmpfs(options: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("skipped: a tmpfs cannot be mounted");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Fills the file system up to the last byte, but for `left` bytes.
fn fill(root: &Path, left: usize) -> PathBuf {
    use std::io::Write;
    let path = root.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(left as u64)).unwrap();
    path
}

/// Gives its space back. A process that another test has just forked may hold the removed file open for a moment.
fn empty(filler: &Path) {
    fs::File::options().write(true).open(filler).unwrap().set_len(0).unwrap();
    fs::remove_file(filler).unwrap();
}

/// Goal: on a full file system a commit fails with `no_space`, the tree is as it was, and the store goes on once there
/// is space again, without being opened anew. Method: a small tmpfs filled up to various margins, with contents small
/// and large, before and after the background checkpoint has had its turn; and the same with inodes used up.
#[test]
fn a_full_file_system_refuses_and_recovers() {
    let Some(mount) = Mount::tmpfs("size=6m,nr_inodes=400") else { return };
    let root = mount.0.path();
    let store = small()
        .log_bytes_max(256 << 10)
        .settle_after(std::time::Duration::from_millis(20))
        .open(root)
        .unwrap();
    for (margin, pages) in [(0, 1), (4096, 3), (40_960, 20), (400_000, 200), (0, 0)] {
        commit(&store, |tx| {
            tx.write("file", "content")?;
            tx.write("other", "content")
        })
        .unwrap();
        let filler = fill(root, margin);
        let before = tree(root);
        let content = vec![2; pages * 4096 + 1];
        let result = commit(&store, |tx| {
            tx.write("file", "changed")?;
            tx.write("new/file", content.clone())?;
            tx.append("other", content)
        });
        assert_eq!(kind_of(result), ErrorKind::NoSpace, "margin {margin}, {pages} pages");
        assert_eq!(tree(root), before);
        // The checkpoint of the commit before meets the full disk as well.
        std::thread::sleep(std::time::Duration::from_millis(60));
        empty(&filler);
        commit(&store, |tx| tx.write("file", "there is space")).unwrap();
        assert_eq!(fs::read(root.join("file")).unwrap(), b"there is space");
    }
    let mut inodes = 0;
    while fs::write(root.join(format!("inode-{inodes}")), "").is_ok() {
        inodes += 1;
    }
    let before = tree(root);
    let result = commit(&store, |tx| (0..20).try_for_each(|n| tx.write(format!("new/{n}"), "x")));
    assert_eq!(kind_of(result), ErrorKind::NoSpace, "no inodes");
    assert_eq!(tree(root), before);
    for inode in 0..inodes {
        fs::remove_file(root.join(format!("inode-{inode}"))).unwrap();
    }
    commit(&store, |tx| tx.write("file", "inodes again")).unwrap();
    store.close().unwrap();
    drop(small().open(root).unwrap());
}

/// Goal: a checkpoint that finds no space for its manifest is put off, not fatal: what is committed stays committed, and
/// the store settles it once there is space. Method: a commit, a disk filled to the last byte, a checkpoint.
#[test]
fn a_checkpoint_without_space_is_put_off() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let root = mount.0.path();
    let store = manual().log_bytes_max(192 << 10).open(root).unwrap();
    commit(&store, |tx| (0..50).try_for_each(|n| tx.write(format!("file-{n}"), "content"))).unwrap();
    let filler = fill(root, 0);
    // The store's reserve is enough for one manifest; it is gone after that, and nothing new is committed without it.
    let first = store.checkpoint();
    assert!(first.is_ok(), "{first:?}");
    assert_eq!(kind_of(commit(&store, |tx| tx.remove("file-1"))), ErrorKind::NoSpace);
    empty(&filler);
    commit(&store, |tx| tx.write("file-1", "again")).unwrap();
    // Once more, with nothing in the reserve.
    fs::File::options().write(true).open(root.join(".atomtree/ballast")).unwrap().set_len(0).unwrap();
    let filler = fill(root, 0);
    for _ in 0..2 {
        assert_eq!(kind_of(store.checkpoint()), ErrorKind::NoSpace);
    }
    assert_eq!(fs::read(root.join("file-1")).unwrap(), b"again");
    empty(&filler);
    store.checkpoint().unwrap();
    commit(&store, |tx| tx.write("file-2", "again")).unwrap();
    store.close().unwrap();
    let store = manual().open(root).unwrap();
    assert_eq!(*store.recovery(), atomtree::RecoveryReport::default());
    store.close().unwrap();
    let history = atomtree::Inspection::open(root, &Options::new()).unwrap().log(10).unwrap();
    assert_eq!(history.len(), 3);
}

/// Goal: a read-only file system refuses to be opened for writing and can be looked at. Method: a tmpfs remounted.
#[test]
fn a_read_only_file_system_is_refused() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let root = mount.0.path();
    let remount = |mode: &str| {
        shell(&format!("mount -o remount,{mode} '{}'", root.display()));
    };
    remount("ro");
    assert_eq!(kind_of(small().open(root).map(drop)), ErrorKind::Permission, "nothing can be made");
    remount("rw");
    let store = small().open(root).unwrap();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    store.close().unwrap();
    remount("ro");
    assert_eq!(kind_of(small().open(root).map(drop)), ErrorKind::Permission);
    let inspection = atomtree::Inspection::open(root, &Options::new()).unwrap();
    assert!(inspection.status().unwrap().is_clean);
    assert_eq!(inspection.log(5).unwrap().len(), 1);
    remount("rw");
    let store = small().open(root).unwrap();
    commit(&store, |tx| tx.write("a", "2")).unwrap();
    store.close().unwrap();
}

/// Goal: a mount inside the tree is a boundary, found out before the commit point. Method: a file system mounted on a
/// directory, a file bound onto a file.
#[test]
fn mounts_inside_the_tree_are_boundaries() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let root = mount.0.path();
    let store = small().open(root).unwrap();
    fs::create_dir(root.join("mounted")).unwrap();
    for name in ["file", "bound"] {
        fs::write(root.join(name), name).unwrap();
    }
    shell(&format!(
        "cd '{}'; mount -t tmpfs -o size=1m tmpfs mounted; echo x > mounted/x; mount --bind file bound",
        root.display()
    ));
    let results = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for path in ["mounted/x", "mounted/new", "mounted/deep/new"] {
            refused(root, &store, ErrorKind::CrossDevice, |tx| tx.write(path, "x"));
            refused(root, &store, ErrorKind::CrossDevice, |tx| tx.rename("file", path));
        }
        refused(root, &store, ErrorKind::MountPoint, |tx| tx.write("bound", "x"));
        refused(root, &store, ErrorKind::MountPoint, |tx| tx.remove("bound"));
    }));
    shell(&format!("cd '{}'; umount mounted; umount bound", root.display()));
    results.unwrap();
    commit(&store, |tx| tx.write("bound", "x")).unwrap();
    store.close().unwrap();
}

/// Goal: running out of descriptors is an error like any other. Method: a child that may have few, and opens files
/// until none is left; the limits go from too few for anything to enough.
#[test]
fn running_out_of_descriptors_changes_nothing() {
    if let Some(root) = child_root() {
        let store = match small().open(&root) {
            Ok(store) => store,
            Err(error) => {
                eprintln!("not opened: {error}");
                return;
            }
        };
        commit(&store, |tx| tx.write("file", "content")).unwrap();
        let before = tree(&root);
        // All but `left` descriptors are taken; 0 to 12 of them go through every call of a commit that opens one.
        for left in 0..12 {
            let mut taken = Vec::new();
            while let Ok(file) = fs::File::open("/dev/null") {
                taken.push(file);
            }
            taken.truncate(taken.len() - left.min(taken.len()));
            let result = commit(&store, |tx| {
                tx.write("file", "changed")?;
                tx.write("a/b/new", vec![0; 2 << 20])?;
                tx.append("other", "x")
            });
            drop(taken);
            match result {
                // Apply opens directories too; what it can't open, the next open of the store finishes.
                Err(error) if error.kind() == ErrorKind::CommittedNotApplied => {
                    assert_eq!(kind_of(store.begin().map(drop)), ErrorKind::Poisoned);
                    eprintln!("stuck with {left} left: {error}");
                    return;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{left} left: {error}");
                    assert_eq!(tree(&root), before, "{left} left: {error}");
                }
                Ok(_) => {
                    commit(&store, |tx| tx.write("file", "content")).unwrap();
                    eprintln!("committed with {left} left");
                    break;
                }
            }
        }
        commit(&store, |tx| tx.write("file", "good")).unwrap();
        store.close().unwrap();
        eprintln!("passed");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let mut passed = 0;
    for limit in [8, 12, 16, 27, 31, 60] {
        let script = format!(
            "ulimit -n {limit}; exec '{}' --exact errors::running_out_of_descriptors_changes_nothing --nocapture",
            exe.display()
        );
        let output =
            Command::new("sh").args(["-c", &script]).env("ATOMTREE_CHILD", scratch.path()).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "limit {limit}: {text}");
        passed += usize::from(text.contains("passed"));
        let store = small().open(scratch.path()).unwrap();
        let is_stuck = text.contains("stuck with");
        assert!(!is_stuck || store.recovery().redone > 0, "limit {limit}");
        if is_stuck {
            assert_eq!(fs::read(scratch.path().join("file")).unwrap(), b"changed");
            assert_eq!(fs::metadata(scratch.path().join("a/b/new")).unwrap().len(), 2 << 20);
            commit(&store, |tx| {
                tx.remove("a/b/new")?;
                tx.remove("other")
            })
            .unwrap();
        }
        store.close().unwrap();
        // What the child could not close, this process has recovered.
        fs::remove_dir_all(scratch.path().join("a")).ok();
    }
    assert!(passed > 0, "no limit was enough for anything");
}
