//! Final symlinks: each policy, each shape of link, each operation; and links that are flipped under a reader's eyes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use atomtree::{Error, ErrorKind, Expectation, Symlinks, Transaction};

use super::{crash_at_every_call, refused_as, trees};
use crate::basics::{Seen, commit, manual, opened, tree};

/// The shapes of links, and where they lead.
const SHAPES: [(&str, &str); 9] = [
    ("to-file", "d/file"),
    ("to-link", "to-file"),
    ("to-dir", "d"),
    ("dangling", "d/missing"),
    ("dangling-deep", "d/none/missing"),
    ("loop", "loop"),
    ("outside", "../../../../../../../../../../etc/passwd"),
    ("absolute", "/etc/passwd"),
    ("into-store", ".atomtree/store"),
];

/// What is done to a link.
type Act = fn(&mut Transaction, &str) -> Result<(), Error>;

/// Operations that are about what a link leads to.
const THROUGH: [(&str, Act); 9] = [
    ("write", |tx, link| tx.write(link, "new")),
    ("write_with_mode", |tx, link| tx.write_with_mode(link, "new", 0o600)),
    ("write_from", |tx, link| tx.write_from(link, &b"new"[..]).map(drop)),
    ("rename over", |tx, link| tx.rename("source", link)),
    ("append", |tx, link| tx.append(link, "+")),
    ("patch", |tx, link| tx.patch(link, 0, "p")),
    ("set_mode", |tx, link| tx.set_mode(link, 0o711)),
    ("read", |tx, link| tx.read(link).map(drop)),
    ("expect", |tx, link| match tx.expect(link, Expectation::Absent) {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        result => result,
    }),
];

/// What an operation through a link comes to: the name that it changes, or the kind of its refusal.
fn outcome(policy: Symlinks, operation: &str, link: &'static str) -> Result<Option<&'static str>, ErrorKind> {
    let is_write = matches!(operation, "write" | "write_with_mode" | "write_from" | "rename over");
    match policy {
        Symlinks::Replace if is_write => return Ok(Some(link)),
        Symlinks::Refuse | Symlinks::Replace => return Err(ErrorKind::Unsupported),
        _ => {}
    }
    let is_question = matches!(operation, "read" | "expect");
    match link {
        "to-file" | "to-link" => Ok((!is_question).then_some("d/file")),
        "to-dir" => match operation {
            "set_mode" => Ok(Some("d")),
            "expect" => Err(ErrorKind::Unsupported),
            _ => Err(ErrorKind::IsADirectory),
        },
        "dangling" => match operation {
            "expect" => Ok(None),
            "patch" | "set_mode" | "read" => Err(ErrorKind::NotFound),
            _ => Ok(Some("d/missing")),
        },
        "dangling-deep" => Err(ErrorKind::NotFound),
        _ => Err(ErrorKind::InvalidPath),
    }
}

/// Operations that are about the link itself, whatever the policy: the names that they change, or their refusal.
fn on_the_link(link: &'static str) -> Vec<(&'static str, Act, Result<Vec<&'static str>, ErrorKind>)> {
    let dir_all = match link {
        "to-dir" => Ok(vec![]),
        "outside" | "absolute" | "into-store" => Err(ErrorKind::InvalidPath),
        _ => Err(ErrorKind::Exists),
    };
    vec![
        ("remove", |tx, link| tx.remove(link), Ok(vec![link])),
        ("rename", |tx, link| tx.rename(link, "moved"), Ok(vec![link, "moved"])),
        ("rename over a file", |tx, link| tx.rename(link, "source"), Ok(vec![link, "source"])),
        ("rename over a link", |tx, link| tx.rename(link, "beside"), Ok(vec![link, "beside"])),
        ("rename a link over it", |tx, link| tx.rename("beside", link), Ok(vec![link, "beside"])),
        ("symlink", |tx, link| tx.symlink(link, "elsewhere"), Ok(vec![link])),
        ("questions", questions, Ok(vec![])),
        ("create_dir", |tx, link| tx.create_dir(link), Err(ErrorKind::Exists)),
        ("create_dir_all", |tx, link| tx.create_dir_all(link), dir_all),
        ("remove_dir", |tx, link| tx.remove_dir(link), Err(ErrorKind::NotADirectory)),
        ("remove_dir_all", |tx, link| tx.remove_dir_all(link), Err(ErrorKind::NotADirectory)),
        ("list", |tx, link| tx.list(link).map(drop), Err(ErrorKind::NotADirectory)),
        ("rename a directory over it", |tx, link| tx.rename("dir", link), Err(ErrorKind::NotADirectory)),
    ]
}

fn questions(tx: &mut Transaction, link: &str) -> Result<(), Error> {
    let (_, target) = SHAPES.iter().find(|(name, _)| *name == link).unwrap();
    assert!(tx.exists(link)?);
    assert_eq!(tx.read_link(link)?, Path::new(target));
    let metadata = tx.metadata(link)?;
    assert_eq!((metadata.kind, metadata.bytes), (atomtree::vfs::Kind::Symlink, target.len() as u64));
    Ok(())
}

/// The tree anew, with the store left alone.
fn prepare(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            if !path.ends_with(".atomtree") {
                fs::remove_dir_all(path).unwrap();
            }
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    fs::create_dir_all(root.join("d")).unwrap();
    fs::create_dir_all(root.join("dir/inside")).unwrap();
    fs::write(root.join("d/file"), "old").unwrap();
    fs::write(root.join("source"), "source").unwrap();
    symlink("d", root.join("beside")).unwrap();
    for (link, target) in SHAPES {
        symlink(target, root.join(link)).unwrap();
    }
}

/// Names that differ, times of directories aside.
fn changed(root: &Path, before: &std::collections::BTreeMap<PathBuf, Seen>) -> BTreeSet<PathBuf> {
    let after = tree(root);
    let same = |one: &Seen, other: &Seen| {
        one == other
            || (one.mode & 0o170_000 == 0o040_000 && (one.mode, one.inode) == (other.mode, other.inode))
    };
    let names = before.keys().chain(after.keys());
    names
        .filter(|path| match (before.get(*path), after.get(*path)) {
            (Some(one), Some(other)) => !same(one, other),
            _ => true,
        })
        .cloned()
        .collect()
}

fn paths(names: &[&str]) -> BTreeSet<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// Goal: an operation through a final symlink changes exactly the name that the policy says, or nothing. Method: three
/// policies, nine shapes of link, every operation that follows links; the names that differ afterwards.
#[test]
fn operations_through_a_link_do_as_the_policy_says() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for policy in [Symlinks::Refuse, Symlinks::Follow, Symlinks::Replace] {
        for (link, _) in SHAPES {
            for (operation, act) in THROUGH {
                prepare(root);
                let what = format!("{policy:?}, {operation}, {link}");
                let run = |tx: &mut Transaction| {
                    tx.set_symlinks(policy);
                    act(tx, link)
                };
                match outcome(policy, operation, link) {
                    Err(kind) => {
                        let message = refused_as(root, &store, &[kind], &what, run);
                        assert!(message.len() > link.len() + 10, "{what}: {message}");
                    }
                    Ok(name) => {
                        let before = tree(root);
                        commit(&store, run).unwrap_or_else(|error| panic!("{what}: {error}"));
                        let mut expected: Vec<&str> = name.into_iter().collect();
                        if operation == "rename over" {
                            expected.push("source");
                        }
                        assert_eq!(changed(root, &before), paths(&expected), "{what}");
                        assert!(name != Some(link) || !root.join(link).is_symlink(), "{what}: replaced");
                    }
                }
            }
        }
    }
    store.close().unwrap();
}

/// Goal: an operation on a link itself changes that and not what it leads to, whatever the policy. Method: as above.
#[test]
fn operations_on_a_link_leave_alone_what_it_leads_to() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for policy in [Symlinks::Refuse, Symlinks::Follow, Symlinks::Replace] {
        for (link, target) in SHAPES {
            for (operation, act, expected) in on_the_link(link) {
                prepare(root);
                let what = format!("{policy:?}, {operation}, {link}");
                let run = |tx: &mut Transaction| {
                    tx.set_symlinks(policy);
                    act(tx, link)
                };
                match expected {
                    Err(kind) => drop(refused_as(root, &store, &[kind], &what, run)),
                    Ok(names) => {
                        let before = tree(root);
                        commit(&store, run).unwrap_or_else(|error| panic!("{what}: {error}"));
                        assert_eq!(changed(root, &before), paths(&names), "{what}");
                        let moved = names.get(1).filter(|_| !operation.starts_with("rename a link"));
                        if let Some(moved) = moved {
                            assert_eq!(fs::read_link(root.join(moved)).unwrap(), Path::new(target), "{what}");
                        }
                    }
                }
            }
        }
    }
    store.close().unwrap();
}

/// Goal: a link that is flipped is never absent, and never leads anywhere but to the old or the new place. Method: a
/// thread polls while the link is made anew, and while another link is renamed over it.
#[test]
fn a_flipped_link_is_never_absent() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for release in ["7", "8"] {
        fs::create_dir_all(root.join("releases").join(release)).unwrap();
        fs::write(root.join("releases").join(release).join("version"), release).unwrap();
    }
    symlink("releases/7", root.join("current")).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            let mut found = BTreeSet::new();
            while !is_done.load(Ordering::Relaxed) {
                found.insert(fs::read_link(root.join("current")).expect("it is never absent"));
                fs::read(root.join("current/version")).expect("it leads somewhere");
            }
            found
        });
        let flips = (0..60).try_for_each(|n| {
            let target = format!("releases/{}", 7 + (n + 1) % 2);
            if n % 4 == 3 {
                symlink(&target, root.join("prepared")).unwrap();
            }
            commit(&store, |tx| match n % 4 {
                0 | 1 => tx.symlink("current", &target),
                2 => {
                    tx.symlink("next", &target)?;
                    tx.rename("next", "current")
                }
                _ => tx.rename("prepared", "current"),
            })
            .map(drop)
        });
        is_done.store(true, Ordering::Relaxed);
        flips.unwrap();
        let found = poller.join().unwrap();
        assert_eq!(found, paths(&["releases/7", "releases/8"]));
    });
    assert!(!root.join("next").is_symlink() && !root.join("prepared").is_symlink());
    store.close().unwrap();
}

/// Goal: a flip is recovered whole. Method: both ways, with the death of the process at every call.
#[test]
fn a_flip_is_recovered() {
    let scratch = trees();
    let prepare = |root: &Path| {
        fs::create_dir_all(root.join("releases/8")).unwrap();
        symlink("releases/7", root.join("current")).unwrap();
        symlink("releases/8", root.join("next")).unwrap();
    };
    crash_at_every_call(scratch.path(), prepare, |tx| tx.symlink("current", "releases/8"));
    crash_at_every_call(scratch.path(), prepare, |tx| tx.rename("next", "current"));
}
