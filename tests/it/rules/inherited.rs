//! What new names get from the directory that they are made in: as if they had been made in place.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use atomtree::{ErrorKind, Store, Transaction};

use super::{crash_at_every_call, trees};
use crate::basics::{child_root, commit, is_root, look, manual, shell, small};
use crate::errors::as_user;

/// Directories that hand something on.
const DIRS: &str = "mkdir plain setgid acl acl-named acl-mask acl-setgid acl-closed
    setfacl -d -m u::rwx,g::rx,o::- acl
    setfacl -d -m u:4711:rwx,g:4712:rx acl-named acl-setgid
    setfacl -d -m u:4711:rwx,m::r acl-mask
    setfacl -d -m u::rwx,g::-,o::- acl-closed";
const DIR_NAMES: [&str; 7] = ["plain", "setgid", "acl", "acl-named", "acl-mask", "acl-setgid", "acl-closed"];

/// What a name has got, by `stat` and by `getfacl`.
fn got(path: &Path) -> (u32, (u32, u32), BTreeMap<String, Vec<u8>>, String) {
    let seen = look(path);
    let acl = if path.is_symlink() {
        String::new()
    } else {
        let output = Command::new("getfacl").args(["-n", "-c", "-p"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    (seen.mode, seen.owner, seen.xattrs.into_iter().collect(), acl)
}

/// Names made in place, in the directory `at`.
fn make_in_place(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::create_dir_all(at.join("all/of/it")).unwrap();
    fs::create_dir_all(at.join("implied/by")).unwrap();
    fs::write(at.join("implied/by/file"), "x").unwrap();
    fs::write(at.join("dir/file"), "x").unwrap();
    fs::write(at.join("file"), "x").unwrap();
    fs::write(at.join("large"), vec![1; 2 << 20]).unwrap();
    symlink("target", at.join("link")).unwrap();
    symlink("target", at.join("all/link")).unwrap();
    for mode in [0o700, 0o750, 0o2771] {
        let path = at.join(format!("dir-{mode:o}"));
        fs::DirBuilder::new().mode(mode).create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for mode in [0o600, 0o664] {
        let path = at.join(format!("file-{mode:o}"));
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// The same by a transaction.
fn make(tx: &mut Transaction, at: &str) -> Result<(), atomtree::Error> {
    tx.create_dir(format!("{at}/dir"))?;
    tx.create_dir_all(format!("{at}/all/of/it"))?;
    tx.write(format!("{at}/implied/by/file"), "x")?;
    tx.write(format!("{at}/dir/file"), "x")?;
    tx.append(format!("{at}/file"), "x")?;
    tx.write_from(format!("{at}/large"), &vec![1; 2 << 20][..])?;
    tx.symlink(format!("{at}/link"), "target")?;
    tx.symlink(format!("{at}/all/link"), "target")?;
    for mode in [0o700, 0o750, 0o2771] {
        tx.create_dir(format!("{at}/dir-{mode:o}"))?;
        tx.set_mode(format!("{at}/dir-{mode:o}"), mode)?;
    }
    for mode in [0o600, 0o664] {
        tx.write(format!("{at}/file-{mode:o}"), "x")?;
        tx.set_mode(format!("{at}/file-{mode:o}"), mode)?;
    }
    Ok(())
}

const MADE: [&str; 16] = [
    "dir",
    "dir/file",
    "all",
    "all/of",
    "all/of/it",
    "all/link",
    "implied",
    "implied/by",
    "implied/by/file",
    "file",
    "large",
    "link",
    "dir-700",
    "dir-750",
    "dir-2771",
    "file-600",
];

/// Compares both ways in one directory; the transaction's may be refused for `permission`, and then leaves nothing.
fn compare(root: &Path, store: &Store, dir: &str, may_refuse: bool) {
    for side in ["in-place", "ours"] {
        fs::create_dir(root.join(dir).join(side)).unwrap();
    }
    make_in_place(&root.join(dir).join("in-place"));
    let ours = root.join(dir).join("ours");
    match commit(store, |tx| make(tx, &format!("{dir}/ours"))) {
        Err(error) if may_refuse => {
            assert_eq!(error.kind(), ErrorKind::Permission, "{dir}: {error}");
            assert_eq!(fs::read_dir(&ours).unwrap().count(), 0, "{dir}");
            eprintln!("refused in {dir}: {error}");
            // What needs no group of its own is made, or refused on its own.
            for number in 0..3 {
                let _ = commit(store, |tx| match number {
                    0 => tx.create_dir(format!("{dir}/ours/dir")),
                    1 => tx.create_dir_all(format!("{dir}/ours/all/of/it")),
                    _ => tx.symlink(format!("{dir}/ours/link"), "target"),
                });
            }
        }
        result => drop(result.unwrap_or_else(|error| panic!("{dir}: {error}"))),
    }
    for name in MADE {
        let path = ours.join(name);
        if may_refuse && !path.exists() && !path.is_symlink() {
            continue;
        }
        assert_eq!(got(&path), got(&root.join(dir).join("in-place").join(name)), "{dir}, {name}");
    }
}

/// Goal: files, directories (asked for, above others, and those that only a file needs) and symlinks get what `mkdir`,
/// `touch` and `ln` in place would give: owner, setgid group and bit, default ACL, umask. Method: side by side in seven
/// directories under five umasks; as root, and as a user who is not in the directories' group.
#[test]
fn new_names_are_as_if_made_in_place() {
    if let Some(root) = child_root() {
        let store = small().open(&root).unwrap();
        for dir in DIR_NAMES {
            compare(&root, &store, dir, fs::metadata("/proc/self").map(|m| uid(&m)).unwrap() != 0);
        }
        store.close().unwrap();
        eprintln!("passed");
        return;
    }
    for umask in ["000", "022", "027", "077", "002"] {
        for runs_as in [0, 1234] {
            if runs_as != 0 && !is_root() {
                continue;
            }
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path();
            shell(&format!("cd '{}'; {DIRS}", root.display()));
            if is_root() {
                shell(&format!(
                    "cd '{}'; chown -R {runs_as}:{runs_as} .; chgrp 4712 setgid acl-setgid",
                    root.display()
                ));
            }
            shell(&format!("cd '{}'; chmod 2775 setgid acl-setgid", root.display()));
            let name = "rules::inherited::new_names_are_as_if_made_in_place";
            let exe = std::env::current_exe().unwrap();
            let mut command = Command::new("sh");
            let script = format!(
                "umask {umask}; exec '{}' --exact {name} --nocapture --test-threads 1",
                exe.display()
            );
            command.args(["-c", &script]).env("ATOMTREE_CHILD", root);
            let said = if runs_as == 0 {
                let output = command.output().unwrap();
                assert!(
                    output.status.success(),
                    "umask {umask}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                String::from_utf8_lossy(&output.stderr).into_owned()
            } else {
                let Some(said) = as_user(runs_as, &mut command) else { continue };
                said
            };
            assert!(said.contains("passed"), "umask {umask}, user {runs_as}: {said}");
        }
    }
}

fn uid(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(metadata)
}

/// Goal: what a new directory has been handed on stays with it when it is renamed in the same transaction, as if all
/// was done one by one. Method: made where there is a default ACL and moved out, and the other way round.
#[test]
fn what_is_made_and_renamed_keeps_what_it_got() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    shell(&format!("cd '{}'; {DIRS}; mkdir in-place ours", root.display()));
    let store = manual().open(root).unwrap();
    for dir in DIR_NAMES {
        for (at, to) in [(dir, "plain"), ("plain", dir)] {
            for kind in ["file", "link", "dir"] {
                let (from, to) = (root.join(at).join("made"), format!("{to}/{at}-{kind}-in-place"));
                let ours = to.replace("in-place", "ours");
                match kind {
                    "file" => fs::write(&from, "x").unwrap(),
                    "link" => symlink("x", &from).unwrap(),
                    _ => fs::create_dir(&from).unwrap(),
                }
                fs::rename(&from, root.join(&to)).unwrap();
                let result = commit(&store, |tx| {
                    let from = format!("{at}/made");
                    match kind {
                        "file" => tx.write(&from, "x")?,
                        "link" => tx.symlink(&from, "x")?,
                        _ => tx.create_dir(&from)?,
                    }
                    tx.rename(&from, &ours)
                });
                match result {
                    Ok(_) => {
                        assert_eq!(got(&root.join(&ours)), got(&root.join(&to)), "{kind} from {at} to {to}");
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unsupported, "{kind} from {at} to {to}: {error}");
                    }
                }
            }
        }
    }
    store.close().unwrap();
}

/// Goal: an ACL and its mask come through a change of mode and through recovery. Method: files and directories with
/// ACLs get new modes, new names are made under default ACLs, and the process dies at every call.
#[test]
fn acls_and_changed_modes_are_recovered() {
    let scratch = trees();
    let prepare = |root: &Path| {
        shell(&format!(
            "cd '{}'; {DIRS}; echo x > file; echo x > appended; mkdir dir moving; echo x > moving/file
             setfacl -m u:4711:rwx,g:4712:r file appended dir moving; chmod 2770 setgid acl-setgid",
            root.display()
        ));
    };
    let change = |tx: &mut Transaction| {
        tx.set_mode("file", 0o640)?;
        tx.set_mode("appended", 0o600)?;
        tx.append("appended", "+")?;
        tx.set_mode("dir", 0o2750)?;
        tx.rename("moving", "moved")?;
        tx.set_mode("moved", 0o711)?;
        tx.create_dir_with_mode("acl-named/dir", 0o750)?;
        tx.write("acl-setgid/implied/file", "x")?;
        tx.write_with_mode("acl-mask/file", "x", 0o664)
    };
    crash_at_every_call(scratch.path(), prepare, change);

    // And it is what `chmod` makes of them.
    let (ours, in_place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for root in [ours.path(), in_place.path()] {
        prepare(root);
    }
    let store = manual().open(ours.path()).unwrap();
    commit(&store, change).unwrap();
    shell(&format!(
        "cd '{}'; chmod 640 file; chmod 600 appended; chmod 2750 dir; mv moving moved; chmod 711 moved
         mkdir -m 750 acl-named/dir; mkdir acl-setgid/implied; touch acl-setgid/implied/file",
        in_place.path().display()
    ));
    for name in ["file", "appended", "dir", "moved", "moved/file", "acl-named/dir", "acl-setgid/implied/file"]
    {
        assert_eq!(got(&ours.path().join(name)), got(&in_place.path().join(name)), "{name}");
    }
    store.close().unwrap();
}
