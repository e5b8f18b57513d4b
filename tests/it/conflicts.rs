//! Isolation: a transaction commits only if what it read and what it replaces are still what it saw; and it commits
//! whenever they are.

mod directories;
mod handed_back;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atomtree::vfs::faults::{Faults, Verb, fail_nothing};
use atomtree::vfs::{Dir, Identity, ProcessIdentity, Timestamp, Vfs, os::Os};
use atomtree::{ErrorKind, Expectation, Inspection, Options, Transaction};

use crate::basics::{commit, kind_of, manual, opened, shell, tree};

/// What a foreign program does to `target` in the directory `d`, in the shape of a shell that needs no time.
const EDITS: &[(&str, fn(&Path))] = &[
    ("longer", |d| fs::write(d.join("target"), "longer than before").unwrap()),
    ("same size", |d| fs::write(d.join("target"), "2").unwrap()),
    ("emptied", |d| fs::write(d.join("target"), "").unwrap()),
    ("appended", |d| {
        use std::io::Write;
        fs::File::options().append(true).open(d.join("target")).unwrap().write_all(b"+").unwrap();
    }),
    ("replaced", |d| {
        fs::write(d.join("aside"), "2").unwrap();
        fs::rename(d.join("aside"), d.join("target")).unwrap();
    }),
    ("removed", |d| fs::remove_file(d.join("target")).unwrap()),
    ("renamed away", |d| fs::rename(d.join("target"), d.join("elsewhere")).unwrap()),
    ("chmod", |d| fs::set_permissions(d.join("target"), fs::Permissions::from_mode(0o640)).unwrap()),
    ("now a directory", |d| {
        fs::remove_file(d.join("target")).unwrap();
        fs::create_dir(d.join("target")).unwrap();
    }),
    ("now a symlink", |d| {
        fs::remove_file(d.join("target")).unwrap();
        std::os::unix::fs::symlink("elsewhere", d.join("target")).unwrap();
    }),
    ("directory replaced", |d| {
        fs::rename(d, d.with_file_name("old")).unwrap();
        fs::create_dir(d).unwrap();
        fs::write(d.join("target"), "1").unwrap();
    }),
    ("directory moved", |d| fs::rename(d, d.with_file_name("old")).unwrap()),
    ("directory now a symlink", |d| {
        fs::rename(d, d.with_file_name("old")).unwrap();
        std::os::unix::fs::symlink("old", d).unwrap();
    }),
    ("same size, times put back", |d| {
        let before = fs::metadata(d.join("target")).unwrap();
        fs::write(d.join("target"), "2").unwrap();
        let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
        fs::File::options().write(true).open(d.join("target")).unwrap().set_times(times).unwrap();
    }),
];

/// What a transaction does with `d/target`.
const USES: &[(&str, fn(&mut Transaction) -> Result<(), atomtree::Error>)] = &[
    ("read", |tx| tx.read("d/target").map(drop)),
    ("read and write elsewhere", |tx| {
        let seen = tx.read("d/target")?;
        tx.write("copy", seen)
    }),
    ("expect", |tx| tx.expect("d/target", Expectation::Blake3(*blake3::hash(b"1").as_bytes()))),
    ("exists", |tx| tx.exists("d/target").map(drop)),
    ("write", |tx| tx.write("d/target", "mine")),
    ("append", |tx| tx.append("d/target", "mine")),
    ("patch", |tx| tx.patch("d/target", 0, "mine")),
    ("remove", |tx| tx.remove("d/target")),
    ("rename", |tx| tx.rename("d/target", "moved")),
    ("rename over", |tx| {
        tx.write("source", "mine")?;
        tx.rename("source", "d/target")
    }),
];

/// Goal: every edit of a name between a transaction's first look and its commit is a conflict, however soon after,
/// whatever the transaction does with the name; nothing changes, and the next transaction commits. Method: all edits
/// against all uses, on files just written and on older ones.
#[test]
fn every_edit_after_the_first_look_is_a_conflict() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for is_old in [false, true] {
        for (edit_name, edit) in EDITS {
            for (use_name, usage) in USES {
                for name in ["d", "old"] {
                    let path = root.join(name);
                    if path.is_symlink() {
                        fs::remove_file(path).unwrap();
                    } else if path.exists() {
                        fs::remove_dir_all(path).unwrap();
                    }
                }
                fs::create_dir(root.join("d")).unwrap();
                fs::write(root.join("d/target"), "1").unwrap();
                if is_old {
                    std::thread::sleep(Duration::from_millis(12));
                }
                let mut tx = store.begin().unwrap();
                usage(&mut tx).unwrap();
                edit(&root.join("d"));
                let before = tree(root);
                let result = tx.commit();
                assert!(
                    matches!(&result, Err(error) if error.kind() == ErrorKind::Conflict),
                    "{edit_name} after {use_name}, old {is_old}: {result:?}"
                );
                assert_eq!(tree(root), before, "{edit_name} after {use_name}");
            }
            commit(&store, |tx| tx.write("good", *edit_name)).unwrap();
        }
    }
    store.close().unwrap();
}

/// Goal: an edit before the first look is a conflict for a transaction that had begun, as soon as the clock can tell;
/// if it can't, the transaction sees the edit. Method: edits right after `begin` and a while later, then a look.
#[test]
fn an_edit_before_the_first_look_is_seen_or_a_conflict() {
    for pause in [0, 20] {
        let (scratch, store) = opened(manual());
        for n in 0..20 {
            let (name, path) = (format!("f{n}"), scratch.path().join(format!("f{n}")));
            fs::write(&path, "1").unwrap();
            let mut tx = store.begin().unwrap();
            std::thread::sleep(Duration::from_millis(pause));
            match n % 4 {
                0 | 1 => fs::write(&path, "2").unwrap(),
                2 => {
                    fs::write(path.with_extension("aside"), "2").unwrap();
                    fs::rename(path.with_extension("aside"), &path).unwrap();
                }
                _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
            }
            let expected = fs::read(&path).unwrap();
            assert_eq!(tx.read(&name).unwrap(), expected);
            tx.append(&name, "+").unwrap();
            match tx.commit() {
                Ok(_) => {
                    assert_eq!(pause, 0, "the clock could tell");
                    assert_eq!(fs::read(&path).unwrap(), [&expected[..], b"+"].concat());
                    let mode = if n % 4 == 3 { 0o600 } else { 0o644 };
                    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict);
                    assert_eq!(fs::read(&path).unwrap(), expected);
                }
            }
        }
        store.close().unwrap();
    }
}

/// Goal: absence is validated like presence, also of names in directories that are not there. Method: names looked at
/// in each way, then made by another program.
#[test]
fn absence_is_validated() {
    let uses: [fn(&mut Transaction) -> Result<(), atomtree::Error>; 5] = [
        |tx| tx.exists("d/new").map(drop),
        |tx| tx.expect("d/new", Expectation::Absent),
        |tx| tx.read("d/new").map(drop).or(Ok(())),
        |tx| tx.write("d/new", "mine"),
        |tx| tx.append("d/new", "mine"),
    ];
    for (number, usage) in uses.into_iter().enumerate() {
        for has_dir in [true, false] {
            let (scratch, store) = opened(manual());
            let dir = scratch.path().join("d");
            if has_dir {
                fs::create_dir(&dir).unwrap();
            }
            let mut tx = store.begin().unwrap();
            usage(&mut tx).unwrap();
            tx.write("other", "x").unwrap();
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("new"), "theirs").unwrap();
            let before = tree(scratch.path());
            assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict, "use {number}, directory {has_dir}");
            assert_eq!(tree(scratch.path()), before);
            store.close().unwrap();
        }
    }
}

/// Goal: a directory that a transaction would make and another program makes first is no conflict, and neither is a
/// name beside those that it uses. Method: made between the write and the commit.
#[test]
fn a_directory_made_meanwhile_is_no_conflict() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let mut tx = store.begin().unwrap();
    tx.write("d/e/new", "x").unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(root.join("d/beside"), "theirs").unwrap();
    let receipt = tx.commit().unwrap();
    assert_eq!(receipt.files(), 2);
    assert_eq!(fs::read(root.join("d/e/new")).unwrap(), b"x");
    assert_eq!(fs::metadata(root.join("d")).unwrap().mode() & 0o777, 0o711);
    store.close().unwrap();
}

/// Goal: extended attributes and owners count as well. Method: set between the write and the commit.
#[test]
fn attributes_set_meanwhile_are_a_conflict() {
    let (scratch, store) = opened(manual());
    let path = scratch.path().join("a");
    let edits = ["setfattr -n user.note -v 1", "setfacl -m u:4711:r", "chown 4711"];
    for edit in &edits[..if crate::basics::is_root() { 3 } else { 2 }] {
        fs::write(&path, "1").unwrap();
        let mut tx = store.begin().unwrap();
        tx.write("a", "mine").unwrap();
        shell(&format!("{edit} '{}'", path.display()));
        assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict, "{edit}");
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }
    store.close().unwrap();
}

/// Goal: of transactions that use the same name, the first to commit wins, and exactly it. Method: pairs of uses, one
/// committed between the other's look and commit, also with names that only overlap in what is read.
#[test]
fn the_first_committer_wins() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let uses: [fn(&mut Transaction) -> Result<(), atomtree::Error>; 5] = [
        |tx| tx.write("a", "w"),
        |tx| tx.append("a", "+"),
        |tx| tx.remove("a"),
        |tx| tx.rename("a", "b"),
        |tx| tx.read("a").and_then(|_| tx.write("c", "x")),
    ];
    for (one, first) in uses.iter().enumerate() {
        for (other, second) in uses.iter().enumerate() {
            commit(&store, |tx| tx.write("a", "start")).unwrap();
            let (mut winner, mut loser) = (store.begin().unwrap(), store.begin().unwrap());
            second(&mut loser).unwrap();
            first(&mut winner).unwrap();
            winner.commit().unwrap();
            let before = tree(root);
            let result = loser.commit().map_err(|error| error.kind());
            if one == 4 && other != 4 {
                // It changed no more than a name that the other did not look at.
                assert!(result.is_ok(), "{one} then {other}: {result:?}");
            } else {
                // Two that only read `a` both write `c`.
                assert_eq!(result.map(drop), Err(ErrorKind::Conflict), "{one} then {other}");
                assert_eq!(tree(root), before);
            }
            commit(&store, |tx| {
                ["b", "c"].iter().try_for_each(|name| if tx.exists(name)? { tx.remove(name) } else { Ok(()) })
            })
            .unwrap();
        }
    }
    store.close().unwrap();
}

/// Goal: no update is lost. Method: 8 threads increment one counter 200 times each; the total is exact, and so is the
/// number of transactions.
#[test]
fn increments_by_many_threads_add_up() {
    let (scratch, store) = opened(Options::new().segment_bytes(1 << 20).log_bytes_max(8 << 20));
    fs::write(scratch.path().join("counter"), "0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut done = 0;
                while done < 200 {
                    let result = store.transact(|tx| {
                        let value: u64 = String::from_utf8(tx.read("counter")?).unwrap().parse().unwrap();
                        tx.write("counter", (value + 1).to_string())
                    });
                    match result {
                        Ok(_) => done += 1,
                        // Sixteen times in a row: allowed, and nothing was changed.
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(scratch.path().join("counter")).unwrap(), "1600");
    store.close().unwrap();
    let status = Inspection::open(scratch.path(), &Options::new()).unwrap().status().unwrap();
    assert_eq!((status.last_tx.0, status.quarantined), (1600, 0));
}

/// Goal: two transactions that each read what the other writes do not both commit (write skew). Method: both orders.
#[test]
fn write_skew_is_a_conflict() {
    let (_scratch, store) = opened(manual());
    commit(&store, |tx| {
        tx.write("a", "1")?;
        tx.write("b", "1")
    })
    .unwrap();
    let (mut one, mut other) = (store.begin().unwrap(), store.begin().unwrap());
    one.read("a").unwrap();
    one.write("b", "0").unwrap();
    other.read("b").unwrap();
    other.write("a", "0").unwrap();
    one.commit().unwrap();
    assert_eq!(kind_of(other.commit()), ErrorKind::Conflict);
    store.close().unwrap();
}

/// Goal: what a transaction made and removed again is not there after it, so that somebody who made it meanwhile is a conflict.
/// Method: a file and a directory, made meanwhile by another transaction and by another program.
#[test]
fn what_was_made_and_removed_again_is_still_absent() {
    let (scratch, store) = opened(manual());
    for is_foreign in [false, true] {
        for make_and_remove in [
            |tx: &mut Transaction| tx.write("x", "mine").and_then(|()| tx.remove("x")),
            |tx: &mut Transaction| tx.create_dir("x").and_then(|()| tx.remove_dir("x")),
            |tx: &mut Transaction| tx.symlink("x", "anywhere").and_then(|()| tx.remove("x")),
        ] {
            let mut tx = store.begin().unwrap();
            make_and_remove(&mut tx).unwrap();
            tx.write("other", "content").unwrap();
            if is_foreign {
                fs::write(scratch.path().join("x"), "theirs").unwrap();
            } else {
                commit(&store, |tx| tx.write("x", "theirs")).unwrap();
            }
            assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict);
            assert_eq!(fs::read(scratch.path().join("x")).unwrap(), b"theirs");
            commit(&store, |tx| tx.remove("x")).unwrap();
            // And nobody is in the way where nobody made it.
            commit(&store, make_and_remove).unwrap();
        }
    }
    store.close().unwrap();
}

/// Goal: what other programs did before `begin`, however shortly, is no conflict, and neither are the store's own
/// commits. Method: loops without pauses: a foreign write, then a commit; and 2,000 commits of one file.
#[test]
fn there_are_no_false_conflicts() {
    let (scratch, store) = opened(manual().segment_bytes(1 << 20).log_bytes_max(8 << 20));
    let path = scratch.path().join("a");
    for n in 0..300 {
        match n % 3 {
            0 => fs::write(&path, format!("{n}")).unwrap(),
            1 => {
                fs::write(path.with_extension("aside"), format!("{n}")).unwrap();
                fs::rename(path.with_extension("aside"), &path).unwrap();
            }
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + n)).unwrap(),
        }
        commit(&store, |tx| match n % 4 {
            0 => tx.write("a", "mine"),
            1 => tx.append("a", "mine"),
            2 => tx.read("a").map(drop),
            _ => tx.rename("a", "b").and_then(|()| tx.rename("b", "a")),
        })
        .unwrap_or_else(|error| panic!("round {n}: {error}"));
    }
    for n in 0..2000 {
        commit(&store, |tx| tx.write("a", format!("{n}")))
            .unwrap_or_else(|error| panic!("commit {n}: {error}"));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "1999");
    store.close().unwrap();
}

/// Goal: a file that only looks different, because it was touched or replaced by an equal one, is no conflict.
#[test]
fn equal_content_is_no_conflict() {
    let (scratch, store) = opened(manual());
    let path = scratch.path().join("a");
    for edit in 0..3 {
        fs::write(&path, "same").unwrap();
        let mut tx = store.begin().unwrap();
        assert_eq!(tx.read("a").unwrap(), b"same");
        tx.write("a", "mine").unwrap();
        match edit {
            0 => shell(&format!("touch '{}'", path.display())),
            1 => fs::write(&path, "same").unwrap(),
            _ => shell(&format!("cd '{}'; cp -p a b; mv b a", scratch.path().display())),
        }
        tx.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
    store.close().unwrap();
}

/// A machine whose clock is ahead of the one that stamps its files.
struct ClockAhead(Os);

impl Vfs for ClockAhead {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.0.open_root(path)
    }
    fn now(&self) -> Timestamp {
        self.0.now().plus_ns(3_600_000_000_000)
    }
    fn timestamp_granularity_ns(&self) -> i64 {
        self.0.timestamp_granularity_ns()
    }
    fn random(&self) -> io::Result<u128> {
        self.0.random()
    }
    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
    fn process(&self) -> io::Result<ProcessIdentity> {
        self.0.process()
    }
    fn fork_generation(&self) -> u64 {
        self.0.fork_generation()
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        self.0.is_alive(process)
    }
    fn end_command(&self, command: &atomtree::vfs::Command) -> io::Result<Vec<ProcessIdentity>> {
        self.0.end_command(command)
    }
}

/// Goal: what was read once must still stand when the same transaction reads or edits it again; the later look must
/// not make it forget the earlier one. Method: an edit in between, with a clock so far ahead that no time tells.
#[test]
fn a_second_look_does_not_hide_an_edit_after_the_first() {
    let (scratch, store) = opened(manual().vfs(Arc::new(ClockAhead(Os))));
    let path = scratch.path().join("a");
    let looks: [fn(&mut Transaction) -> Result<(), atomtree::Error>; 3] =
        [|tx| tx.read("a").map(drop), |tx| tx.append("a", "+"), |tx| tx.rename("a", "b")];
    for look in looks {
        for is_chmod in [false, true] {
            fs::write(&path, "1").unwrap();
            let mut tx = store.begin().unwrap();
            assert!(tx.exists("a").unwrap());
            assert_eq!(tx.read("a").unwrap(), b"1");
            if is_chmod {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
            } else {
                fs::write(&path, "2").unwrap();
            }
            let before = tree(scratch.path());
            let result = look(&mut tx).and_then(|()| tx.commit().map(drop));
            assert_eq!(kind_of(result), ErrorKind::Conflict);
            assert_eq!(tree(scratch.path()), before);
            fs::remove_file(&path).unwrap();
        }
    }
    store.close().unwrap();
}

/// Goal: what a transaction is told of a directory is what its commit compares, however it changes meanwhile, even between
/// two looks of one call. Method: a file comes before the second time that a directory is listed, and is gone again at the
/// commit.
#[test]
fn what_was_listed_is_what_is_compared() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("dir/came");
    fs::create_dir(scratch.path().join("dir")).unwrap();
    let faults = Faults::new(Arc::new(Os), fail_nothing());
    let store = manual().vfs(Arc::new(faults.clone())).open(scratch.path()).unwrap();
    let mut tx = store.begin().unwrap();
    let (looks, comes) = (AtomicU64::new(0), path.clone());
    faults.set_rule(Arc::new(move |call| {
        if call.verb == Verb::List && looks.fetch_add(1, Ordering::Relaxed) == 1 {
            fs::write(&comes, "came").unwrap();
        }
        None
    }));
    let listed = [tx.list("dir").unwrap(), tx.list("dir").unwrap()];
    faults.set_rule(fail_nothing());
    assert_eq!(listed[0], listed[1]);
    tx.write("found", format!("{listed:?}")).unwrap();
    if path.exists() {
        fs::remove_file(&path).unwrap();
    }
    let is_conflict = tx.commit().is_err();
    assert_eq!(is_conflict, !listed[0].is_empty(), "{listed:?}");
    store.close().unwrap();
}
