//! Full disks: no space, quota, inodes or descriptors at any point before the commit point leave the tree identical, and
//! the store is usable once there is room. After the commit point: ballast, then `committed_not_applied`, then recovery.

mod after_commit;
mod limits;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atomtree::{Error, ErrorKind, Inspection, Options, RecoveryReport, Store, Transaction};
use atomtree_tests::filler::Filler;
use atomtree_tests::volume::{Kind, Volume, or_skip};

use crate::basics::{Seen, child, child_root, commit, kind_of, small, tree};
use crate::errors::as_user;

/// More pages than any of the transactions takes, ballast and the file system's own needs included.
const PAGES_MAX: usize = 3000;

/// A transaction that wants room, told apart from the others by what it wants most.
struct Wanting {
    name: &'static str,
    change: fn(&mut Transaction, u8) -> Result<(), Error>,
}

/// Each is possible again and again; the number makes its contents new.
const WANTING: [Wanting; 5] = [
    Wanting {
        name: "contents in the log",
        change: |tx, round| {
            tx.write("small", vec![round; 3000])?;
            tx.write("new/small", vec![round; 100])?;
            tx.append("grows", vec![round; 5000])?;
            tx.remove("other")?;
            tx.write("other-2", "x")
        },
    },
    Wanting {
        name: "contents by reference",
        change: |tx, round| {
            tx.write("small", vec![round; 10])?;
            tx.write("large", vec![round; 300_000])?;
            tx.write("new/large", vec![round; 100_000])
        },
    },
    Wanting {
        name: "names and directories",
        change: |tx, round| {
            tx.write("small", vec![round; 20])?;
            (0..60).try_for_each(|n| tx.write(format!("made-{round}/d{}/{n:0>200}", n % 12), "x"))
        },
    },
    Wanting {
        name: "several segments of the log",
        change: |tx, round| {
            tx.write("small", vec![round; 25])?;
            (0..400).try_for_each(|n| tx.write(format!("many-{round}/{n:0>200}"), vec![round; 10]))
        },
    },
    Wanting {
        name: "a changed copy",
        change: |tx, round| {
            tx.patch("huge", 1_000_000, vec![round; 9000])?;
            tx.rename("small", "moved")?;
            tx.write("small", vec![round; 30])
        },
    },
];

/// What the transactions act on.
fn lay_out(store: &Store, round: u8) {
    commit(store, |tx| {
        tx.write("small", vec![round; 50])?;
        tx.write("other", "x")?;
        tx.write("grows", vec![round; 100])?;
        tx.write("huge", vec![round; 2 << 20])?;
        // Gone, so that the next time they are new again.
        for name in ["new/small", "new/large", "large", "moved", "other-2"] {
            match tx.remove(name) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    })
    .unwrap_or_else(|error| panic!("round {round}: with all the room: {error}"));
}

fn options() -> Options {
    small().settle_after(Duration::from_millis(20))
}

/// Nothing is left behind by what was refused.
fn staged(root: &Path) -> Vec<PathBuf> {
    let dirs = fs::read_dir(root.join(".atomtree/stage")).unwrap().map(|dir| dir.unwrap().path());
    let files = dirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()));
    files.filter(|path| path.file_name().unwrap() != "lock").collect()
}

/// What ends a sweep.
enum End {
    Committed,
    Stuck(Error),
}

/// What is allowed of apply on a disk that is almost full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// The ballast is always enough.
    Never,
    /// What does not get through is finished by recovery.
    Recovers,
}

/// Whether the tree is what the transaction of this round makes of it, as far as all of them have it in common.
fn is_done(root: &Path, round: u8) -> bool {
    tree(root)[Path::new("small")].content.first() == Some(&(round + 100))
}

/// Fills the disk, then makes room page by page until the transaction commits. Each refusal leaves the tree as it was in
/// every byte and attribute. Returns how many refusals there were, and what came then; by then there is room.
fn sweep(root: &Path, store: &Store, wanting: &Wanting, round: u8, label: &str) -> (usize, End) {
    let label = format!("{label}, {}", wanting.name);
    lay_out(store, round);
    store.checkpoint().unwrap_or_else(|error| panic!("{label}: {error}"));
    let mut filler = Filler::take_all(&root.join("../filler")).unwrap();
    let before = tree(root);
    for refusals in 0..PAGES_MAX {
        match commit(store, |tx| (wanting.change)(tx, round + 100)) {
            Ok(receipt) => {
                assert!(receipt.displaced().is_empty(), "{label}: {receipt:?}");
                return (refusals, End::Committed);
            }
            Err(error) if error.kind() == ErrorKind::CommittedNotApplied => {
                return (refusals, End::Stuck(error));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{label}, {refusals} pages: {error}");
                same_tree(root, &before, &format!("{label}, {refusals} pages: {error}"));
                assert_eq!(staged(root), Vec::<PathBuf>::new(), "{label}, {refusals} pages: {error}");
            }
        }
        assert!(filler.give_page().unwrap(), "{label}: refused with all the room there is");
    }
    panic!("{label}: still refused with {PAGES_MAX} pages of room");
}

/// Says which names differ, where printing both trees would bury them.
#[track_caller]
fn same_tree(root: &Path, before: &BTreeMap<PathBuf, Seen>, label: &str) {
    let after = tree(root);
    if after == *before {
        return;
    }
    let names = before.keys().chain(after.keys());
    let differing: Vec<_> = names.filter(|name| before.get(*name) != after.get(*name)).collect();
    assert!(differing.is_empty(), "{label}: changed {differing:?}");
}

/// All the transactions, one after another, on one store; then everything is in its history, and nothing to recover.
fn sweep_all(root: &Path, stuck: Stuck, label: &str) {
    let mut store = options().open(root).unwrap();
    let mut refusals = Vec::new();
    for (round, wanting) in WANTING.iter().enumerate() {
        let (count, end) = sweep(root, &store, wanting, round as u8, label);
        refusals.push(count);
        if let End::Stuck(error) = end {
            assert!(stuck == Stuck::Recovers, "{label}, {}, {count} pages: {error}", wanting.name);
            println!("{label}, {}, {count} pages: {error}", wanting.name);
            assert_eq!(kind_of(store.begin().map(drop)), ErrorKind::Poisoned, "{label}");
            drop(store);
            store = options().open(root).unwrap();
            assert_eq!(store.recovery().redone, 1, "{label}");
            assert!(store.recovery().quarantined.is_empty(), "{label}: {:?}", store.recovery());
        }
        assert!(is_done(root, round as u8), "{label}, {}", wanting.name);
        // The filler is gone: there is room.
        commit(&store, |tx| tx.write("room", [round as u8])).unwrap_or_else(|e| panic!("{label}: {e}"));
    }
    store.close().unwrap();
    println!("{label}: {refusals:?} refusals");
    assert!(refusals.iter().sum::<usize>() > 0, "{label}: the disk was never full");
    let store = options().open(root).unwrap();
    assert_eq!(*store.recovery(), RecoveryReport::default(), "{label}");
    store.close().unwrap();
    let history = Inspection::open(root, &Options::new()).unwrap().log(1000).unwrap();
    assert_eq!(history.len(), 3 * WANTING.len(), "{label}: refused ones leave no trace in the history");
}

fn volume(kind: Kind, mkfs: &[&str], options: &'static str) -> Option<Volume> {
    let (volume, what) =
        (Volume::create_with(kind, 0, false, mkfs, options), format!("a full {} {mkfs:?}", kind.name()));
    if options.is_empty() {
        return or_skip(volume, &what);
    }
    // Not every kernel has them.
    volume.map_err(|reason| println!("skipped: {what} {options:?}: {reason}")).ok()
}

// At no fill level does a commit do anything but succeed or change nothing: a full disk is emptied in steps of 4 KiB.

fn fill_and_empty(kind: Kind, mkfs: &[&str], after: Stuck) {
    let Some(volume) = volume(kind, mkfs, "") else { return };
    let root = volume.path().join("tree");
    fs::create_dir(&root).unwrap();
    sweep_all(&root, after, &format!("{} {mkfs:?}", kind.name()));
}

#[test]
fn a_full_ext4_refuses_at_every_fill_level_and_the_tree_is_identical() {
    fill_and_empty(Kind::Ext4, &[], Stuck::Never);
}

#[test]
fn a_full_xfs_refuses_at_every_fill_level_and_the_tree_is_identical() {
    fill_and_empty(Kind::Xfs, &[], Stuck::Never);
}

#[test]
fn a_full_btrfs_refuses_at_every_fill_level_and_the_tree_is_identical() {
    fill_and_empty(Kind::Btrfs, &[], Stuck::Never);
}

/// With data and metadata in one pool both run out at once, and a name can't be exchanged in the room that the ballast
/// leaves: that is told, and the next open finishes it.
#[test]
fn a_full_btrfs_of_one_pool_refuses_or_recovers_at_every_fill_level() {
    fill_and_empty(Kind::Btrfs, &["--mixed"], Stuck::Recovers);
}

// The same when inodes run out, those of directories included: empty files are removed one by one.

fn take_and_give_inodes(kind: Kind, mkfs: &[&str]) {
    let Some(volume) = volume(kind, mkfs, "") else { return };
    let (root, taken) = (volume.path().join("tree"), volume.path().join("taken"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&taken).unwrap();
    let store = options().open(&root).unwrap();
    commit(&store, |tx| tx.write("file", "old")).unwrap();
    store.checkpoint().unwrap();
    let mut count = 0;
    while fs::write(taken.join(count.to_string()), "").is_ok() {
        count += 1;
    }
    let before = tree(&root);
    let mut refusals = 0;
    let change = |tx: &mut Transaction| {
        tx.write("file", "new")?;
        (0..12).try_for_each(|n| tx.write(format!("made/d{}/{n}", n % 4), "x"))
    };
    while let Err(error) = commit(&store, change) {
        let label = format!("{}, {refusals} inodes: {error}", kind.name());
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{label}");
        same_tree(&root, &before, &label);
        assert_eq!(staged(&root), Vec::<PathBuf>::new(), "{label}");
        refusals += 1;
        fs::remove_file(taken.join((count - refusals).to_string())).unwrap();
    }
    println!("{}: {refusals} refusals, {count} inodes taken", kind.name());
    assert!(refusals > 5, "{}: inodes never ran out", kind.name());
    assert_eq!(fs::read_dir(root.join("made")).unwrap().count(), 4);
    store.close().unwrap();
}

#[test]
fn an_ext4_without_inodes_refuses_at_every_count_and_the_tree_is_identical() {
    take_and_give_inodes(Kind::Ext4, &["-N", "128"]);
}

#[test]
fn an_xfs_without_inodes_refuses_at_every_count_and_the_tree_is_identical() {
    take_and_give_inodes(Kind::Xfs, &["-i", "maxpct=1"]);
}

/// Goal: a quota is a full disk. Method: a group of btrfs extents that is limited, for root and for a user; and user
/// quotas of ext4 and xfs, where the kernel has them.
#[test]
fn a_used_up_quota_refuses_at_every_fill_level_and_the_tree_is_identical() {
    if let Some(root) = child_root() {
        sweep_all(&root, Stuck::Never, "as a user with a quota");
        eprintln!("passed");
        return;
    }
    let set: [(Kind, &[&str], &str, &str); 3] = [
        (
            Kind::Btrfs,
            &[],
            "",
            "btrfs -q subvolume create sub; btrfs -q quota enable .; btrfs qgroup limit 24M sub",
        ),
        (Kind::Ext4, &["-O", "quota"], "usrquota", "mkdir sub; setquota -u 1234 0 24000 0 0 ."),
        (Kind::Xfs, &[], "uquota", "mkdir sub; xfs_quota -x -c 'limit -u bhard=24m 1234' ."),
    ];
    for (kind, mkfs, options, script) in set {
        let Some(volume) = volume(kind, mkfs, options) else { continue };
        let script =
            format!("cd '{}'; {script}; mkdir sub/tree; chown -R 1234:1234 sub", volume.path().display());
        let output = std::process::Command::new("sh").args(["-ec", &script]).output().unwrap();
        if !output.status.success() {
            println!("skipped: a quota on {}: {}", kind.name(), String::from_utf8_lossy(&output.stderr));
            continue;
        }
        // Others may pass to the tree through the directories above it.
        crate::basics::shell(&format!("cd '{}'; chmod 755 . ..", volume.path().display()));
        let root = volume.path().join("sub/tree");
        let name = "full_disk::a_used_up_quota_refuses_at_every_fill_level_and_the_tree_is_identical";
        if let Some(output) = as_user(1234, &mut child(name, &root)) {
            print!("{}: {output}", kind.name());
            assert!(output.contains("passed"), "{output}");
        }
    }
}
