//! What a file is besides its content: replacing keeps it, and a new name gets what creating it in place would give.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use atomtree::{ErrorKind, Store, Transaction};

use crate::basics::{Seen, child, child_root, commit, is_root, kind_of, look, manual, opened, shell, small};
use crate::errors::{Mount, as_user};

/// Gives a file the capability to use raw sockets (version 2 of the attribute), without a tool for it.
const CAPABILITY: &str = "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 file";

/// The kept part: everything but content, times and inode number.
fn kept(seen: &Seen) -> (u32, (u32, u32), Vec<(String, Vec<u8>)>) {
    (seen.mode, seen.owner, seen.xattrs.clone())
}

/// Asserts that the file at `name` keeps its metadata through every way to replace it.
#[track_caller]
fn keeps_metadata(root: &Path, store: &Store, what: &str) {
    let before = look(&root.join("file"));
    let changes: [fn(&mut Transaction) -> Result<(), atomtree::Error>; 6] = [
        |tx| tx.write("file", "replaced"),
        |tx| tx.append("file", "appended"),
        |tx| tx.patch("file", 0, "patched"),
        |tx| tx.rename("file", "moved").and_then(|()| tx.rename("moved", "file")),
        |tx| tx.write("file", vec![b'l'; 3 << 20]),
        |tx| tx.append("file", "to a large one"),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        commit(store, change).unwrap();
        assert_eq!(kept(&look(&root.join("file"))), kept(&before), "{what}, change {number}");
    }
    // To another name, over a file that was another's, and back.
    fs::write(root.join("other"), "x").unwrap();
    commit(store, |tx| tx.rename("file", "other")).unwrap();
    assert_eq!(kept(&look(&root.join("other"))), kept(&before), "{what}, renamed");
    commit(store, |tx| tx.rename("other", "dir/file")).unwrap();
    assert_eq!(kept(&look(&root.join("dir/file"))), kept(&before), "{what}, renamed into a new directory");
    fs::remove_dir_all(root.join("dir")).unwrap();
}

/// Goal: mode, owner, ACLs and extended attributes of every namespace are kept when a file is replaced, whether by small
/// or large contents. Method: one file for each attribute, and one with all of them.
#[test]
fn replacing_keeps_everything() {
    let (scratch, store) = opened(manual().log_bytes_max(1 << 20));
    let root = scratch.path();
    let mut settings: Vec<(&str, &str)> = vec![
        ("private", "chmod 600 file"),
        ("open", "chmod 666 file"),
        ("nothing", "chmod 0 file"),
        ("program", "chmod 755 file"),
        ("setuid", "chmod 4755 file"),
        ("setgid", "chmod 2755 file"),
        ("sticky", "chmod 1644 file"),
        ("all bits", "chmod 7777 file"),
        ("user attribute", "setfattr -n user.note -v value file; setfattr -n user.empty file"),
        ("binary attribute", "setfattr -n user.bytes -v 0x00ff00 file"),
        ("ACL", "setfacl -m u:4711:rw,g:4712:r file"),
        ("ACL with a mask", "setfacl -m u:4711:rwx,m::r file"),
        ("ACL on a private file", "chmod 600 file; setfacl -m u:4711:r file"),
    ];
    if is_root() {
        settings.extend([
            ("owner", "chown 4711:4712 file"),
            ("owner and setuid", "chown 4711:4712 file; chmod 6755 file"),
            ("trusted attribute", "setfattr -n trusted.note -v value file"),
            ("capability", CAPABILITY),
            ("capability of another's", "chown 4711 file; CAPABILITY"),
            (
                "all",
                "chown 4711:4712 file; chmod 4750 file; setfacl -m u:4713:rx file; setfattr -n user.a -v 1 file
                 setfattr -n trusted.b -v 2 file; CAPABILITY",
            ),
        ]);
    }
    for (what, setting) in settings {
        let setting = setting.replace("CAPABILITY", CAPABILITY);
        shell(&format!("cd '{}'; rm -f file; echo content > file; {setting}", root.display()));
        keeps_metadata(root, &store, what);
    }
    store.close().unwrap();
}

/// Goal: an owner who is not root can replace a read-only file with attributes of its own, and a recovery can write it anew: to
/// set an attribute takes the right to write. Method: a child commits and ends; its file is removed, as a power cut may have
/// it; another one opens the store.
#[test]
fn a_read_only_file_with_attributes_is_replaced_and_recovered() {
    if let Some(root) = child_root() {
        let is_lost = !root.join("file").exists();
        let store = small().checkpoints(atomtree::Checkpoints::Manual).open(&root).unwrap();
        if is_lost {
            store.close().unwrap();
        } else {
            commit(&store, |tx| tx.write("file", "replaced")).unwrap();
            // Neither closed nor settled.
            std::process::exit(0);
        }
        return;
    }
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    shell(&format!(
        "cd '{}'; echo 1 > file; setfattr -n user.note -v 1 file; chmod 444 file; chown -R 1234:1234 .",
        root.display()
    ));
    let before = kept(&look(&root.join("file")));
    assert_eq!((before.0 & 0o7777, before.2.len()), (0o444, 1));
    let test = "metadata::a_read_only_file_with_attributes_is_replaced_and_recovered";
    for is_lost in [false, true] {
        if is_lost {
            fs::remove_file(root.join("file")).unwrap();
        }
        if as_user(1234, &mut child(test, root)).is_none() {
            return;
        }
        assert_eq!(fs::read(root.join("file")).unwrap(), b"replaced");
        assert_eq!(kept(&look(&root.join("file"))), before);
    }
}

/// Goal: `write_with_mode` and `append_with_mode` set exactly that mode, on new and on existing files, and keep the rest.
#[test]
fn an_explicit_mode_is_set() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    shell(&format!("cd '{}'; echo x > old; setfattr -n user.note -v 1 old; chmod 640 old", root.display()));
    let xattrs = look(&root.join("old")).xattrs;
    for mode in [0o600, 0o644, 0o777, 0o000, 0o4755, 0o1777] {
        let new = format!("new-{mode:o}");
        commit(&store, |tx| {
            tx.write_with_mode(&new, "x", mode)?;
            tx.write_with_mode("old", "y", mode)?;
            tx.append_with_mode(Path::new(&format!("{new}-appended")), b"x", Some(mode))
        })
        .unwrap();
        for name in [&new, "old", &format!("{new}-appended")] {
            assert_eq!(look(&root.join(name)).mode & 0o7777, mode, "{name}");
        }
        assert_eq!(look(&root.join("old")).xattrs, xattrs);
    }
    commit(&store, |tx| tx.append_with_mode(Path::new("old"), b"z", None)).unwrap();
    assert_eq!(look(&root.join("old")).mode & 0o7777, 0o1777);
    store.close().unwrap();
}

/// Creates a file and a directory in place, and the same by a transaction, in each of the directories; the
/// attributes must agree.
#[track_caller]
fn agrees_with_creating_in_place(root: &Path, store: &Store, dirs: &[&str]) {
    for dir in dirs {
        let in_place = root.join(dir).join("in-place");
        fs::create_dir_all(in_place.join("below")).unwrap();
        fs::write(in_place.join("below/file"), "x").unwrap();
        fs::write(root.join(dir).join("in-place-file"), "x").unwrap();
        fs::write(root.join(dir).join("in-place-large"), "x").unwrap();
        commit(store, |tx| {
            tx.write(format!("{dir}/ours/below/file"), "x")?;
            tx.append(format!("{dir}/ours-file"), "x")?;
            tx.write(format!("{dir}/ours-large"), vec![0; 2 << 20])
        })
        .unwrap();
        for (ours, theirs) in [
            ("ours-file", "in-place-file"),
            ("ours-large", "in-place-large"),
            ("ours", "in-place"),
            ("ours/below", "in-place/below"),
            ("ours/below/file", "in-place/below/file"),
        ] {
            let look = |name: &str| kept(&look(&root.join(dir).join(name)));
            assert_eq!(look(ours), look(theirs), "{dir}/{ours}");
        }
        // Replaced, they are still the same.
        commit(store, |tx| tx.write(format!("{dir}/ours-file"), "y")).unwrap();
        let look = |name: &str| kept(&look(&root.join(dir).join(name)));
        assert_eq!(look("ours-file"), look("in-place-file"), "{dir}, replaced");
    }
}

const DIRS: &str = "mkdir plain setgid acl acl-named acl-mask acl-setgid acl-closed
    chmod 2775 setgid acl-setgid
    setfacl -d -m u::rwx,g::rx,o::- acl
    setfacl -d -m u:4711:rwx,g:4712:rx acl-named acl-setgid
    setfacl -d -m u:4711:rwx,m::r acl-mask
    setfacl -d -m u::rw,g::-,o::- acl-closed";
const DIR_NAMES: [&str; 7] = ["plain", "setgid", "acl", "acl-named", "acl-mask", "acl-setgid", "acl-closed"];

/// Goal: a new file or directory is what creating it in place would give, under several umasks, in setgid directories
/// and under default ACLs. Method: both side by side, compared attribute by attribute; umasks in children.
#[test]
fn new_names_are_as_if_created_in_place() {
    if let Some(root) = child_root() {
        let store = small().open(&root).unwrap();
        agrees_with_creating_in_place(&root, &store, &DIR_NAMES);
        store.close().unwrap();
        return;
    }
    for umask in ["000", "022", "027", "077", "002"] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        shell(&format!("cd '{}'; {DIRS}", root.display()));
        if is_root() {
            for dir in ["setgid", "acl-setgid"] {
                chown(root.join(dir), None, Some(4712)).unwrap();
                fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o2775)).unwrap();
            }
        }
        let script = format!(
            "umask {umask}; exec '{}' --exact metadata::new_names_are_as_if_created_in_place",
            std::env::current_exe().unwrap().display()
        );
        let output = Command::new("sh").args(["-c", &script]).env("ATOMTREE_CHILD", root).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "umask {umask}: {text}");
    }
}

/// Goal: the same when the root itself has a default ACL or the setgid bit, so that the store inherits it.
#[test]
fn a_root_that_hands_on_attributes_does_not_leak_them() {
    for setting in ["setfacl -d -m u:4711:rwx,g::rwx,o::rx .", "chmod 2775 .", "chmod 1777 ."] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        shell(&format!("cd '{}'; {setting}; {DIRS}; mkdir stripped; setfacl -b stripped", root.display()));
        let store = small().open(root).unwrap();
        agrees_with_creating_in_place(root, &store, &["stripped"]);
        fs::write(root.join("in-place"), "x").unwrap();
        commit(&store, |tx| tx.write("ours", "x")).unwrap();
        assert_eq!(kept(&look(&root.join("ours"))), kept(&look(&root.join("in-place"))), "{setting}");
        // A file without any ACL stays without one.
        shell(&format!("cd '{}'; echo x > bare; setfacl -b bare; chmod 640 bare", root.display()));
        let before = kept(&look(&root.join("bare")));
        commit(&store, |tx| tx.write("bare", "y")).unwrap();
        commit(&store, |tx| tx.append("bare", vec![0; 2 << 20])).unwrap();
        assert_eq!(kept(&look(&root.join("bare"))), before, "{setting}");
        store.close().unwrap();
    }
}

/// Goal: a mode given for a new file is what creating it in place with that mode and setting it gives.
#[test]
fn a_mode_for_a_new_directory_entry_is_not_widened() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let file = |mode: u32, path: &Path| {
        fs::File::options().create_new(true).write(true).mode(mode).open(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o600, 0o640, 0o755] {
        file(mode, &root.join(format!("place-{mode:o}")));
        commit(&store, |tx| tx.write_with_mode(format!("ours-{mode:o}"), "", mode)).unwrap();
        let look = |name: &str| kept(&look(&root.join(format!("{name}-{mode:o}"))));
        assert_eq!(look("ours"), look("place"));
    }
    fs::DirBuilder::new().mode(0o700).create(root.join("closed")).unwrap();
    commit(&store, |tx| tx.write("closed/a", "x")).unwrap();
    assert_eq!(look(&root.join("closed")).mode & 0o7777, 0o700);
    store.close().unwrap();
}

/// Goal: a renamed file keeps its time of modification to the nanosecond, small or large; a written one gets the
/// present. Method: times before the epoch, odd nanoseconds and the far future.
#[test]
fn renamed_files_keep_their_times() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for (number, time) in
        ["1969-12-31T23:59:58.123456789Z", "2001-02-03T04:05:06.000000001Z", "2100-01-01T00:00:00.5Z"]
            .into_iter()
            .enumerate()
    {
        for size in [0, 10, 2 << 20] {
            let (from, to) = (format!("from-{number}-{size}"), format!("to-{number}-{size}"));
            fs::write(root.join(&from), vec![1; size]).unwrap();
            shell(&format!("touch -d {time} '{}'", root.join(&from).display()));
            let before = look(&root.join(&from)).modified;
            commit(&store, |tx| tx.rename(&from, &to)).unwrap();
            assert_eq!(look(&root.join(&to)).modified, before, "{time}, {size}");
            commit(&store, |tx| tx.write(&to, "x")).unwrap();
            assert_ne!(look(&root.join(&to)).modified, before, "{time}, {size}");
        }
    }
    store.close().unwrap();
}

/// Goal: what cannot be kept is refused before anything changes. Method: a user who is not root replaces a file of
/// another user, and one that carries what only root can set.
#[test]
fn what_cannot_be_kept_is_refused() {
    if let Some(root) = child_root() {
        let store = small().open(&root).unwrap();
        for name in ["foreign", "capable", "group"] {
            let before = look(&root.join(name));
            let result = commit(&store, |tx| tx.write(name, "mine"));
            assert_eq!(kind_of(result), ErrorKind::Permission, "{name}");
            assert_eq!(look(&root.join(name)), before, "{name}");
        }
        commit(&store, |tx| tx.write("own", "mine")).unwrap();
        store.close().unwrap();
        eprintln!("passed");
        return;
    }
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    shell(&format!(
        "cd '{}'; for name in own foreign capable group; do echo x > $name; done
         chown -R 1234:1234 .; chown 4711 foreign; chmod 666 foreign; chgrp 4711 group; chmod 666 group
         cp capable file; {CAPABILITY}; chown 1234:1234 file; {CAPABILITY}; mv file capable",
        scratch.path().display()
    ));
    let mut command = crate::basics::child("metadata::what_cannot_be_kept_is_refused", scratch.path());
    if let Some(output) = as_user(1234, &mut command) {
        assert!(output.contains("passed"), "{output}");
    }
}

/// Goal: a file system in memory keeps what it can, and says that it is not durable. Method: a tmpfs.
#[test]
fn a_file_system_in_memory_works_with_a_warning() {
    let Some(mount) = Mount::tmpfs("size=64m") else { return };
    let root = mount.0.path();
    let store = small().open(root).unwrap();
    assert!(!store.warnings().is_empty(), "a tmpfs is not durable");
    shell(&format!(
        "cd '{}'; echo x > file; chown 4711 file; chmod 4711 file; setfacl -m u:4712:r file",
        root.display()
    ));
    keeps_metadata(root, &store, "on a tmpfs");
    commit(&store, |tx| tx.write("d/new", "z")).unwrap();
    store.close().unwrap();
}
