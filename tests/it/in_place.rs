//! Files that are patched inside their inode: what is refused, what is a conflict, and what crashes and other programs make
//! of it.

use std::fs;
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atomtree::vfs::faults::{Call, Fault, Faults};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Vfs};
use atomtree::{Checkpoints, ErrorKind, Options, Store, Transaction};
use atomtree_tests::crash::{
    Effort, Watch, commit, explore, is_operation, machine, open, quarantine_of, tree_of,
};
use atomtree_tests::history::{DIRECTORIES, Entry, History, IN_PLACE, Operation, Random, Step, Tree};
use tempfile::TempDir;

use crate::crash_points::{histories, sum_over};

/// A directory with a file of so many bytes, and a store in it.
fn store_with(bytes: usize) -> (TempDir, Store, Vec<u8>) {
    let root = tempfile::tempdir().expect("a scratch directory");
    let content = Random::new(bytes as u64).bytes(bytes);
    fs::write(root.path().join("file"), &content).expect("it can be written");
    // Longer than a tick of the clock that stamps files, so that a later edit shows in their times.
    std::thread::sleep(Duration::from_millis(20));
    let store = Options::new().checkpoints(Checkpoints::Manual).open(root.path()).expect("a new store");
    (root, store, content)
}

fn kind_of(result: Result<(), atomtree::Error>) -> ErrorKind {
    result.expect_err("it is refused").kind()
}

/// Goal: bytes are written, and nothing else changes: not the inode, not whoever has it open. Method: ranges at and around
/// the edges of sectors and of the file, alone and several in one transaction, read back within the transaction too.
#[test]
fn bytes_are_written_inside_the_inode() {
    let (root, store, mut content) = store_with(70_001);
    let path = root.path().join("file");
    let (inode, held) = (fs::metadata(&path).unwrap().ino(), fs::File::open(&path).unwrap());
    let ranges =
        [(0, 1), (511, 2), (512, 512), (1024, 513), (69_999, 2), (0, 70_001), (30_000, 0), (70_001, 0)];
    for (number, (offset, length)) in ranges.into_iter().enumerate() {
        let bytes = Random::new(number as u64).bytes(length);
        let mut tx = store.begin().unwrap();
        tx.patch_in_place("file", offset as u64, &bytes).unwrap();
        content[offset..offset + length].copy_from_slice(&bytes);
        assert_eq!(tx.read("file").unwrap(), content);
        assert_eq!(fs::read(&path).unwrap() == content, length == 0, "nothing is written before the commit");
        let receipt = tx.commit().unwrap();
        assert_eq!((receipt.files(), receipt.lost().len()), (usize::from(length > 0), 0));
        assert_eq!(fs::read(&path).unwrap(), content, "{offset} {length}");
    }
    let mut tx = store.begin().unwrap();
    for offset in [5000_usize, 5600, 5100, 40_000, 5599, 4000] {
        let bytes = Random::new(offset as u64).bytes(600);
        tx.patch_in_place("file", offset as u64, &bytes).unwrap();
        content[offset..offset + 600].copy_from_slice(&bytes);
    }
    tx.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
    let mut seen = vec![0; content.len()];
    held.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!((fs::metadata(&path).unwrap().ino(), seen), (inode, content));
    store.close().unwrap();
}

/// Goal: what a transaction has patched it sees, in every way it can ask. Method: each question.
#[test]
fn a_transaction_sees_what_it_patches() {
    let (_root, store, mut content) = store_with(2000);
    let mut tx = store.begin().unwrap();
    tx.patch_in_place("file", 700, "patched").unwrap();
    content[700..707].copy_from_slice(b"patched");
    assert!(tx.exists("file").unwrap());
    assert_eq!(tx.metadata("file").unwrap().bytes, 2000);
    assert!(tx.list("").unwrap().contains(&("file".into(), atomtree::vfs::Kind::File)));
    assert_eq!(tx.read("file").unwrap(), content);
    tx.expect("file", atomtree::Expectation::Blake3(*blake3::hash(&content).as_bytes())).unwrap();
    tx.commit().unwrap();
    store.close().unwrap();
}

/// Goal: what is not meant to be patched in place is refused, with nothing changed, and the message says what to do.
/// Method: each of them.
#[test]
fn what_cannot_be_patched_in_place_is_refused() {
    let (root, store, content) = store_with(20_000);
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("file", at("link")).unwrap();
    fs::write(at("one"), "one").unwrap();
    fs::hard_link(at("one"), at("two")).unwrap();
    let holes = fs::File::create(at("holes")).unwrap();
    holes.write_all_at(b"data", 0).unwrap();
    holes.write_all_at(b"data", 1 << 20).unwrap();
    holes.sync_all().unwrap();
    fs::write(at("large"), vec![7; 5 << 20]).unwrap();
    let refused = |kind: ErrorKind, says: &str, path: &str, offset: u64, bytes: &[u8]| {
        let mut tx = store.begin().unwrap();
        tx.set_symlinks(atomtree::Symlinks::Follow);
        tx.set_hard_links(atomtree::HardLinks::Break);
        let error = tx.patch_in_place(path, offset, bytes).expect_err(path);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        tx.commit().expect("an operation that fails changes nothing");
    };
    refused(ErrorKind::NotFound, "no such file", "none", 0, b"x");
    refused(ErrorKind::NotFound, "no such file", "none/none", 0, b"x");
    refused(ErrorKind::IsADirectory, "directory", "dir", 0, b"x");
    refused(ErrorKind::NotADirectory, "directory", "file/x", 0, b"x");
    refused(ErrorKind::Unsupported, "symlink", "link", 0, b"x");
    refused(ErrorKind::Unsupported, "2 hard links", "one", 0, b"x");
    refused(ErrorKind::InvalidInput, "`patch` lengthens it", "file", 19_999, b"xx");
    refused(ErrorKind::InvalidInput, "`patch` lengthens it", "file", 20_001, b"");
    refused(ErrorKind::InvalidInput, "`patch` lengthens it", "file", u64::MAX, b"x");
    refused(ErrorKind::Unsupported, "`patch` does it", "large", 100, &vec![1; 3 << 20]);
    if holes.metadata().unwrap().blocks() * 512 < 1 << 20 {
        refused(ErrorKind::Unsupported, "`patch` fills it", "holes", 500_000, b"x");
        refused(ErrorKind::Unsupported, "`patch` fills it", "holes", 10, &[1; 10_000]);
        let mut tx = store.begin().unwrap();
        tx.patch_in_place("holes", 4, "beside").unwrap();
        tx.commit().unwrap();
    }
    // Nor several that are too much together.
    let mut tx = store.begin().unwrap();
    tx.patch_in_place("large", 0, vec![1; 1 << 20]).unwrap();
    tx.patch_in_place("large", 100, vec![2; 1 << 20]).unwrap();
    assert_eq!(kind_of(tx.patch_in_place("large", 2 << 20, vec![1; 2 << 20])), ErrorKind::Unsupported);
    tx.commit().unwrap();
    assert_eq!(fs::read(at("file")).unwrap(), content);
    assert_eq!(fs::read(at("one")).unwrap(), b"one");
    store.close().unwrap();
}

/// Goal: one name is patched in place or changed otherwise, not both. Method: every other operation, before and after, then
/// that the transaction goes on as if it had not been asked.
#[test]
fn nothing_else_is_done_to_the_name() {
    type Do = fn(&mut Transaction) -> Result<(), atomtree::Error>;
    let others: [(&str, Do); 11] = [
        ("write", |tx| tx.write("d/file", "w")),
        ("write_with_mode", |tx| tx.write_with_mode("d/file", "w", 0o600)),
        ("write_from", |tx| tx.write_from("d/file", &b"w"[..]).map(drop)),
        ("append", |tx| tx.append("d/file", "w")),
        ("patch", |tx| tx.patch("d/file", 0, "w")),
        ("remove", |tx| tx.remove("d/file")),
        ("rename", |tx| tx.rename("d/file", "elsewhere")),
        ("rename over", |tx| tx.rename("other", "d/file")),
        ("set_mode", |tx| tx.set_mode("d/file", 0o600)),
        ("remove_dir_all", |tx| tx.remove_dir_all("d")),
        ("symlink", |tx| tx.symlink("d/file", "x")),
    ];
    for (name, other) in others {
        let (root, store, _) = store_with(10);
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/file"), "0123456789").unwrap();
        fs::write(root.path().join("other"), "other").unwrap();
        let mut tx = store.begin().unwrap();
        tx.patch_in_place("d/file", 2, "in").unwrap();
        let error = other(&mut tx).expect_err(name);
        let expected = if name == "symlink" { ErrorKind::Exists } else { ErrorKind::Unsupported };
        assert_eq!(error.kind(), expected, "{name}: {error}");
        tx.commit().unwrap();
        assert_eq!(fs::read(root.path().join("d/file")).unwrap(), b"01in456789", "{name}");
        if name == "symlink" {
            continue;
        }
        let mut tx = store.begin().unwrap();
        other(&mut tx).expect(name);
        let error = tx.patch_in_place("d/file", 2, "in").expect_err(name);
        let is_gone = ["remove", "rename", "remove_dir_all"].contains(&name);
        let expected = if is_gone { ErrorKind::NotFound } else { ErrorKind::Unsupported };
        assert_eq!(error.kind(), expected, "{name}: {error}");
        store.close().unwrap();
    }
}

/// Goal: what is changed by others in the sectors that are patched is a conflict, and nothing else is, unless it was read.
/// Method: an edit between the patch and the commit.
#[test]
fn edits_in_the_sectors_are_a_conflict_and_others_are_none() {
    let edit = |path: &Path, offset: u64| {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"theirs", offset).unwrap();
    };
    for (offset, reads, conflicts) in [
        (1024, false, true),
        (1530, false, true),
        (1019, false, true),
        (1018, false, false),
        (1536, false, false),
        (5000, true, true),
    ] {
        let (root, store, content) = store_with(9000);
        let path = root.path().join("file");
        let mut tx = store.begin().unwrap();
        if reads {
            tx.read("file").unwrap();
        }
        tx.patch_in_place("file", 1100, "ours").unwrap();
        edit(&path, offset);
        let result = tx.commit();
        assert_eq!(result.is_err(), conflicts, "{offset}: {result:?}");
        if let Err(error) = result {
            assert_eq!((error.kind(), error.path()), (ErrorKind::Conflict, Some(Path::new("file"))));
        }
        let mut expected = content;
        expected[offset as usize..][..6].copy_from_slice(b"theirs");
        if !conflicts {
            expected[1100..1104].copy_from_slice(b"ours");
        }
        assert_eq!(fs::read(&path).unwrap(), expected, "{offset}");
        store.close().unwrap();
    }
    let changes: [(&str, fn(&Path)); 5] = [
        ("replaced", |path| {
            fs::copy(path, path.with_extension("new")).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("linked", |path| fs::hard_link(path, path.with_extension("link")).unwrap()),
        ("lengthened", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9001).unwrap()),
        ("cut short", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap()),
    ];
    for (name, change) in changes {
        let (root, store, _) = store_with(9000);
        let path = root.path().join("file");
        let mut tx = store.begin().unwrap();
        tx.patch_in_place("file", 1100, "ours").unwrap();
        change(&path);
        assert_eq!(tx.commit().expect_err(name).kind(), ErrorKind::Conflict, "{name}");
        store.close().unwrap();
    }
}

/// Goal: a savepoint brings back what was patched before it, and what is done to the name after that is done as if it had
/// never been patched. Method: patches before and after a savepoint; then a write.
#[test]
fn savepoints_bring_patches_back() {
    let (root, store, mut content) = store_with(3000);
    let path = root.path().join("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let mut tx = store.begin().unwrap();
    let nothing = tx.savepoint();
    tx.patch_in_place("file", 100, "one").unwrap();
    let one = tx.savepoint();
    tx.patch_in_place("file", 101, "two").unwrap();
    tx.patch_in_place("file", 2000, "three").unwrap();
    tx.return_to(&one).unwrap();
    content[100..103].copy_from_slice(b"one");
    assert_eq!(tx.read("file").unwrap(), content);
    tx.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);

    let mut tx = store.begin().unwrap();
    let start = tx.savepoint();
    assert_eq!(tx.return_to(&nothing).unwrap_err().kind(), ErrorKind::InvalidInput);
    tx.patch_in_place("file", 100, "four").unwrap();
    tx.return_to(&start).unwrap();
    tx.write("file", "written").unwrap();
    tx.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"written");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    store.close().unwrap();
}

/// Goal: the history names a patch, and says that it can't be undone; what is undone across it is. Method: a write, a patch,
/// undo of each, and a restore.
#[test]
fn the_history_lists_a_patch_and_keeps_nothing_of_it() {
    let (root, store, content) = store_with(3000);
    let path = root.path().join("file");
    let write = store.transact(|tx| tx.write("file", vec![1; 2000])).unwrap().1.tx();
    let patched = store.transact(|tx| tx.patch_in_place("file", 700, "patched")).unwrap().1.tx();
    store.checkpoint().unwrap();
    assert_eq!(fs::read_dir(root.path().join(".atomtree/images")).unwrap().count(), 1);
    let log = atomtree::Inspection::open(root.path(), &Options::new()).unwrap().log(1).unwrap();
    let change = &log[0].changes[0];
    let sizes = [&change.before, &change.after].map(|state| state.as_ref().map(|state| state.size));
    assert_eq!((&*change.path, sizes, &change.image), (&b"file"[..], [Some(2000); 2], &None));
    let error = store.undo(patched).unwrap_err();
    assert!(error.to_string().contains("the history keeps the original no longer, or never did"), "{error}");
    assert_eq!(error.path(), Some(Path::new("file")));
    assert_eq!(store.undo(write).unwrap_err().kind(), ErrorKind::Conflict);
    let forced = atomtree::UndoOptions::new().force(true);
    store.undo_all([write], &forced).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
    let back = store.transact(|tx| tx.patch_in_place("file", 700, "patched")).unwrap().1.tx();
    assert!(back > patched);
    let before = atomtree::Moment::After(atomtree::TransactionId(write.0 - 1));
    store.restore(before, &[] as &[&Path], &atomtree::UndoOptions::new()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
    store.close().unwrap();
}

/// Goal: a settled commit leaves nothing to settle, and patches follow each other without a call in between. Method: patches
/// of one file, and of two, with each durability.
#[test]
fn patches_follow_each_other() {
    let (root, store, mut content) = store_with(9000);
    for number in 0..20_u8 {
        let offset = usize::from(number) * 300;
        let mut tx = store.begin().unwrap();
        if number % 3 == 0 {
            tx.set_durability(atomtree::Durability::Settled);
        }
        tx.patch_in_place("file", offset as u64, vec![number; 700]).unwrap();
        tx.write("beside", vec![number; 10]).unwrap();
        tx.commit().unwrap();
        content[offset..offset + 700].fill(number);
    }
    let mut tx = store.begin().unwrap();
    tx.write("file", "at last").unwrap();
    tx.commit().unwrap();
    assert_eq!(fs::read(root.path().join("file")).unwrap(), b"at last");
    store.close().unwrap();
}

/// Goal: a crash at any operation leaves the patch whole or not there, and whatever else the transaction does with it; also in
/// recoveries, one after another. Method: generated histories with patches in place, every moment killed and cut.
#[test]
fn every_crash_leaves_patches_whole() {
    let effort = Effort { cuts: 4, nested_per_mille: [40, 2, 20] };
    let visited =
        sum_over(histories(40), |seed| explore(&History::generate(IN_PLACE + seed), effort).iter().sum());
    let deep = sum_over(histories(20), |seed| {
        explore(&History::generate(IN_PLACE + DIRECTORIES + seed), effort).iter().sum()
    });
    println!("{visited} and {deep} crash states of histories with patches in place");
}

fn machine_with_a(content: &[u8], seed: u64) -> (History, Sim) {
    let mut history = History::generate(seed);
    history.settings.inline_bytes_max = 1 << 20;
    history.initial =
        Tree::from([("d".into(), Entry::Dir(0o755)), ("d/a".into(), Entry::file(content.to_vec(), 0o644))]);
    let machine = machine(&history);
    (history, machine)
}

/// Another program writes into the file, and does not sync it.
fn write_into_a(machine: &Sim, bytes: &[u8], offset: u64) {
    let dir = machine.another_process().open_root(Path::new("/tree/d")).unwrap();
    let file = dir.open_file("a".as_ref(), Access::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

/// Goal: the same where the directory of the file is renamed by the transaction that patches it. Method: every crash of it.
#[test]
fn a_file_is_patched_in_a_directory_that_moves() {
    let (mut history, _) = machine_with_a(&Random::new(4).bytes(3000), 7);
    history.prelude.clear();
    history.steps = vec![Step::Commit(vec![
        Operation::PatchInPlace("d/a", 600, vec![1; 700]),
        Operation::Rename("d", "e"),
        Operation::PatchInPlace("e/a", 2900, vec![2; 100]),
    ])];
    let visited = explore(&history, Effort { cuts: 6, nested_per_mille: [200, 10, 2] });
    assert!(visited.iter().sum::<u64>() > 300, "only {visited:?} crash states were visited");
}

/// Goal: after a crash an edit in a patched sector that is newer than the patch stays, and our bytes are kept; one that is
/// older gives way, and is kept; both are reported, and the other sectors are patched. Method: the machine is killed at
/// each operation of a commit, and a sector edited then.
#[test]
fn a_newer_sector_stays_and_an_older_one_gives_way() {
    let content = Random::new(9).bytes(2000);
    let theirs = vec![99; 512];
    let (mut newer, mut older) = (0, 0);
    for is_killed_again in [false, true] {
        let (history, sim) = machine_with_a(&content, 0);
        let watch = Watch::new(&sim, None);
        let store = open(watch.vfs(), &history.settings).unwrap();
        watch.start();
        commit(&store, &[Operation::PatchInPlace("d/a", 100, vec![1; 1000])]).unwrap();
        let mut expected = content.clone();
        expected[100..1100].fill(1);
        for moment in watch.finish() {
            let killed = moment.machine.kill();
            let was = killed.read_file("/tree/d/a").unwrap();
            write_into_a(&killed, &theirs, 512);
            if is_killed_again {
                let again = Watch::new(&killed, None);
                again.start();
                drop(open(again.vfs(), &history.settings).unwrap());
                for moment in again.finish() {
                    let killed = moment.machine.kill();
                    open(Arc::new(killed.clone()), &history.settings).unwrap();
                    let (found, kept) = (killed.read_file("/tree/d/a").unwrap(), quarantine_of(&killed));
                    let is_kept = kept.values().any(|entry| *entry == Entry::file(theirs.clone(), 0o600));
                    assert!(found[512..1024] == theirs || is_kept, "at {}: {kept:?}", moment.operation);
                }
                continue;
            }
            let store = open(Arc::new(killed.clone()), &history.settings).unwrap();
            let report = store.recovery();
            let found = killed.read_file("/tree/d/a").unwrap();
            let kept: Vec<Entry> = quarantine_of(&killed).into_values().collect();
            match (report.superseded.len(), report.quarantined.len()) {
                // It was not committed.
                (0, 0) => assert_eq!(
                    [&found[..512], &found[1024..]].concat(),
                    [&content[..512], &content[1024..]].concat()
                ),
                (1, 0) => {
                    newer += 1;
                    assert_eq!(was, expected, "at {}", moment.operation);
                    assert_eq!(kept, [Entry::file(vec![1; 512], 0o600)]);
                    assert_eq!(
                        [&found[..512], &found[1024..]].concat(),
                        [&expected[..512], &expected[1024..]].concat()
                    );
                    assert_eq!(found[512..1024], theirs);
                }
                (0, 1) => {
                    older += 1;
                    assert_eq!(kept, [Entry::file(theirs.clone(), 0o600)]);
                    assert_eq!(found, expected, "at {}", moment.operation);
                }
                _ => panic!("at {}: {report:?}", moment.operation),
            }
        }
    }
    assert!(newer > 0 && older > 0, "{newer} newer, {older} older");
}

/// Goal: another file in the place of the one that was patched is never written to; our bytes are kept, and it is reported.
/// Method: the machine is killed at each operation of a commit, and the file replaced, or removed, then.
#[test]
fn another_file_at_the_name_stays() {
    let content = Random::new(9).bytes(2000);
    for is_removed in [false, true] {
        let (history, sim) = machine_with_a(&content, 0);
        let watch = Watch::new(&sim, None);
        let store = open(watch.vfs(), &history.settings).unwrap();
        watch.start();
        commit(
            &store,
            &[
                Operation::PatchInPlace("d/a", 100, vec![1; 300]),
                Operation::PatchInPlace("d/a", 1990, vec![2; 10]),
            ],
        )
        .unwrap();
        let mut kept_some = false;
        for moment in watch.finish() {
            let killed = moment.machine.kill();
            if is_removed {
                killed.remove("/tree/d/a");
            } else {
                killed.replace_file("/tree/d/a", &content);
            }
            let store = open(Arc::new(killed.clone()), &history.settings).unwrap();
            let report = store.recovery();
            assert_eq!(killed.read_file("/tree/d/a"), (!is_removed).then(|| content.clone()));
            let kept = quarantine_of(&killed);
            assert_eq!((report.superseded.len(), report.quarantined.len()), (kept.len(), 0));
            assert!([0, 2].contains(&kept.len()), "{kept:?}");
            kept_some |= !kept.is_empty();
        }
        assert!(kept_some);
    }
}

/// Goal: a rename over the name between the check and the write is seen, nothing is written into the other file, and the
/// receipt names it. Method: another program replaces the file before each operation of the commit.
#[test]
fn a_file_that_is_replaced_meanwhile_is_lost_and_named() {
    let content = Random::new(9).bytes(2000);
    let (mut lost, mut conflicts) = (0, 0);
    for at in 1.. {
        let (history, sim) = machine_with_a(&content, 0);
        let started = Arc::new(AtomicU64::new(u64::MAX));
        let start = started.clone();
        let meddle = move |sim: &Sim, operation: u64, _: &Call| {
            if operation == start.load(Ordering::Relaxed).saturating_add(at) {
                sim.replace_file("/tree/d/a", b"theirs");
            }
            None
        };
        let watch = Watch::new(&sim, Some(Box::new(meddle)));
        let store = open(watch.vfs(), &history.settings).unwrap();
        started.store(sim.operations(), Ordering::Relaxed);
        let result = commit(&store, &[Operation::PatchInPlace("d/a", 100, vec![1; 300])]);
        let found = sim.read_file("/tree/d/a").unwrap();
        match result {
            Ok(receipt) if receipt.lost().is_empty() => {
                if found.len() == 2000 {
                    break;
                }
                assert_eq!(found, b"theirs", "behind the write");
            }
            Ok(receipt) => {
                lost += 1;
                assert_eq!(receipt.lost()[0].to_string(), "d/a");
                assert_eq!(found, b"theirs");
            }
            Err(error) => {
                conflicts += 1;
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                assert_eq!(found, b"theirs");
            }
        }
    }
    assert!(lost > 0 && conflicts > 0, "{lost} lost, {conflicts} conflicts");
}

/// Goal: what others have not synced is not there after a power cut in the place of what the log knows. Method: the file is
/// written by another program and not synced, patched, and the power cut in many ways.
#[test]
fn a_patch_survives_where_what_it_patches_was_never_synced() {
    let content = Random::new(9).bytes(2000);
    let (history, sim) = machine_with_a(&content, 0);
    let store = open(Arc::new(sim.clone()), &history.settings).unwrap();
    write_into_a(&sim, &[7; 1500], 0);
    sim.advance(20_000_000);
    commit(&store, &[Operation::PatchInPlace("d/a", 100, vec![1; 1000])]).unwrap();
    let expected = tree_of(&sim);
    for seed in 0..300 {
        let cut = sim.power_cut(seed);
        let store = open(Arc::new(cut.clone()), &history.settings).unwrap();
        let report = store.recovery();
        assert_eq!((report.superseded.len(), report.quarantined.len()), (0, 0), "seed {seed}");
        assert_eq!(tree_of(&cut), expected, "seed {seed}");
    }
}

/// Goal: the process that finds another dead in the middle finishes the patch, without opening the store again. Method: one
/// process dies before each operation of a commit; another that has the store open commits.
#[test]
fn a_living_process_finishes_the_patch_of_a_dead_one() {
    let content = Random::new(9).bytes(3000);
    let patch = [
        Operation::PatchInPlace("d/a", 100, vec![1; 600]),
        Operation::PatchInPlace("d/a", 2000, vec![2; 900]),
    ];
    let mut expected = content.clone();
    expected[100..700].fill(1);
    expected[2000..2900].fill(2);
    let (mut before, mut after) = (0, 0);
    for at in 1.. {
        let (history, sim) = machine_with_a(&content, 0);
        let living = sim.another_process();
        let store = open(Arc::new(living.clone()), &history.settings).unwrap();
        let dying = sim.another_process();
        let (process, count, is_armed) = (dying.clone(), AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
        let armed = is_armed.clone();
        let die = move |call: &Call| {
            let counts = is_operation(call.verb) && armed.load(Ordering::Relaxed);
            if !counts || count.fetch_add(1, Ordering::Relaxed) + 1 != at {
                return None;
            }
            process.end_process();
            Some(Fault::Error(5))
        };
        let faults = Faults::new(Arc::new(dying.clone()), Arc::new(die));
        let doomed = open(Arc::new(faults), &history.settings).unwrap();
        is_armed.store(true, Ordering::Relaxed);
        let is_through = commit(&doomed, &patch).is_ok();
        dying.end_process();
        drop(doomed);
        commit(&store, &[Operation::Write("b", b"beside".to_vec())]).unwrap();
        let found = sim.read_file("/tree/d/a").unwrap();
        if found == content {
            before += 1;
        } else {
            after += 1;
        }
        assert!(found == content && !is_through || found == expected, "before operation {at}");
        let cut = sim.power_cut(at);
        open(Arc::new(cut.clone()), &history.settings).unwrap();
        assert_eq!(cut.read_file("/tree/d/a").unwrap(), found, "before operation {at}");
        if is_through {
            break;
        }
    }
    assert!(before > 0 && after > 1, "{before} before, {after} after");
}
