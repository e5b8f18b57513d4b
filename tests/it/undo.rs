//! Going back: undo, redo, restore and cat, of every kind of operation; conflicts, and forcing them; how much is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atomtree::{
    Checkpoints, Error, ErrorKind, Keep, Moment, Options, Receipt, Store, Transaction, TransactionId,
    UndoOptions,
};
use atomtree_tests::crash::{check_stage_is_empty, quarantine_of, tree_of};
use atomtree_tests::history::{
    DIRECTORIES, Entry, History, Random, Tree, generate_directory_operations, generate_operations,
};
use atomtree_vfs::faults::{Faults, fail_nothing};
use atomtree_vfs::sim::Sim;

use crate::crash_points::sum_over;

pub(crate) fn machine(initial: &Tree) -> Sim {
    let history = History { initial: initial.clone(), ..History::generate(1) };
    let sim = atomtree_tests::crash::machine(&history);
    sim.set_exchange_supported(true);
    sim.set_inode_reuse(false);
    sim
}

pub(crate) fn options(sim: &Sim) -> Options {
    options_on(Arc::new(sim.clone()))
}

pub(crate) fn options_on(vfs: Arc<dyn atomtree_vfs::Vfs>) -> Options {
    Options::new().vfs(vfs).segment_bytes(64 << 10).log_bytes_max(1 << 20).checkpoints(Checkpoints::Manual)
}

pub(crate) fn file(content: &[u8]) -> Entry {
    Entry::file(content.to_vec(), 0o644)
}

pub(crate) fn tree(entries: &[(&str, Entry)]) -> Tree {
    entries.iter().map(|(path, entry)| ((*path).to_owned(), entry.clone())).collect()
}

pub(crate) fn change(
    store: &Store,
    change: impl FnMut(&mut Transaction) -> Result<(), Error>,
) -> TransactionId {
    store.transact(change).expect("nothing is in the way").1.tx()
}

/// What files hold of the store's part with this name: how many, and how long together.
pub(crate) fn weigh(sim: &Sim, part: &str) -> (usize, u64) {
    let tree = sim.tree(format!("/tree/.atomtree/{part}"));
    let lengths = tree.values().filter_map(|node| match &node.body {
        atomtree_vfs::sim::NodeBody::File(bytes) => Some(bytes.len() as u64),
        _ => None,
    });
    lengths.fold((0, 0), |(count, sum), length| (count + 1, sum + length))
}

/// Goal: whatever a transaction did, undoing it leaves the tree that was there before, redoing it the one after, and
/// undoing or redoing those again does so too. Method: generated transactions of files and of directories, on all kinds
/// of stores, each undone and redone several times, settled or not.
#[test]
fn undo_and_redo_bring_every_tree_back() {
    let done = sum_over(0..400, |seed| {
        let base = if seed % 2 == 0 { seed } else { DIRECTORIES + seed };
        let history = History::generate(base);
        let sim = atomtree_tests::crash::machine(&history);
        let store = atomtree_tests::crash::open(Arc::new(sim.clone()), &history.settings).unwrap();
        let mut random = Random::new(seed ^ 0xdead);
        let mut now = history.initial.clone();
        let mut done = 0;
        for round in 0..4 {
            let before = now.clone();
            let operations = if seed % 2 == 0 {
                generate_operations(&mut random, &mut now)
            } else {
                generate_directory_operations(&mut random, &mut now)
            };
            let context = || format!("seed {seed}, round {round}: {operations:?}");
            let receipt = atomtree_tests::crash::commit(&store, &operations).unwrap();
            if receipt.tx().0 == 0 {
                continue;
            }
            let expect = |allowed: &Tree, what: &str| {
                let found = tree_of(&sim);
                let differences =
                    || atomtree_tests::crash::differences(&found, std::slice::from_ref(allowed));
                assert!(found == *allowed, "{}, {what}\n{}", context(), differences());
            };
            let told = |result: Result<Receipt, Error>, what: &str| {
                result.unwrap_or_else(|error| panic!("{}, {what}: {error}", context()))
            };
            expect(&now, "committed");
            let undone = told(store.undo(receipt.tx()), "undo");
            expect(&before, "undone");
            if undone.tx().0 == 0 {
                // A directory gave way to another one like it.
                continue;
            }
            let again = told(store.undo(undone.tx()), "undoing the undo");
            expect(&now, "undo undone");
            told(store.undo(again.tx()), "undoing that");
            expect(&before, "undone again");
            told(store.redo(receipt.tx()), "redo");
            expect(&now, "redone");
            done += 4;
            if random.percent(50) {
                sim.advance(20_000_000);
            }
        }
        // All of it, at once.
        let first = store.history().unwrap().into_iter().map(|past| past.tx).min();
        if first.is_some() {
            let whole: &[&str] = &[];
            let restored = store.restore(Moment::After(TransactionId(0)), whole, &UndoOptions::new());
            restored.unwrap_or_else(|error| panic!("seed {seed}, restore: {error}"));
            assert_eq!(tree_of(&sim), history.initial, "seed {seed}: restored");
        }
        assert!(quarantine_of(&sim).is_empty());
        store.close().unwrap();
        check_stage_is_empty(&sim).unwrap();
        done
    });
    println!("{done} undone and redone");
}

/// Goal: whatever operation a crash hits, in a history or in the recovery after it, what recovery leaves is history that
/// leads back: undoing every transaction, one after another, leaves each tree that there was. Method: generated histories,
/// each moment killed and cut, some of those recoveries killed or cut in turn at a random operation.
#[test]
fn every_crash_leaves_a_history_that_leads_back() {
    let checked = sum_over(0..40, |seed| {
        let base = if seed % 2 == 0 { seed } else { DIRECTORIES + seed };
        let mut history = History::generate(base);
        history.prelude.clear();
        // Without an exchange a power cut may take originals that are too large for the log.
        history.settings.can_exchange = true;
        let (moments, _) = atomtree_tests::crash::record(&history, false);
        let trees = history.trees();
        let mut random = Random::new(seed ^ 0xbac);
        let mut checked = 0;
        for moment in moments.iter().filter(|moment| moment.operation > 40) {
            let mut machine = if random.percent(40) {
                moment.machine.kill()
            } else {
                moment.machine.power_cut(random.next())
            };
            if random.percent(40) {
                machine.halt_at(10 + random.below(50));
                drop(atomtree_tests::crash::open(Arc::new(machine.clone()), &history.settings));
                machine = if random.percent(50) { machine.kill() } else { machine.power_cut(random.next()) };
            }
            let context = || format!("seed {seed}, before operation {}", moment.operation);
            let store = atomtree_tests::crash::open(Arc::new(machine.clone()), &history.settings)
                .unwrap_or_else(|error| panic!("{}: {error}", context()));
            let transactions: Vec<_> = store.history().unwrap().into_iter().map(|past| past.tx).collect();
            let mut past = trees.iter().rev().skip_while(|tree| **tree != tree_of(&machine));
            for tx in transactions {
                store.undo(tx).unwrap_or_else(|error| panic!("{}, transaction {tx}: {error}", context()));
                let found = tree_of(&machine);
                // One that changed nothing is in no history.
                let is_before = past.any(|tree| *tree == found) || found == trees[0];
                assert!(is_before, "{}, transaction {tx}: {found:#?}", context());
                checked += 1;
            }
            assert_eq!(tree_of(&machine), trees[0], "{}", context());
            store.close().unwrap();
        }
        checked
    });
    println!("{checked} transactions undone after crashes");
    assert!(checked > 1000, "only {checked}");
}

const ALL: &[&str] = &[];

fn forced() -> UndoOptions {
    UndoOptions::new().force(true)
}

/// Goal: what has moved on since is told, all of it, and nothing is changed; forced, it gives way, and comes back when the
/// undo is undone. Method: a transaction of several names, some of which change afterwards, by transactions and by
/// another program.
#[test]
fn what_has_moved_on_is_a_conflict_unless_it_is_forced() {
    let initial = tree(&[("a", file(b"old a")), ("b", file(b"old b")), ("c", file(b"old c"))]);
    let sim = machine(&initial);
    let store = options(&sim).open("/tree").unwrap();
    let first = change(&store, |tx| {
        tx.write("a", "new a")?;
        tx.write("b", "new b")?;
        tx.remove("c")?;
        tx.write("made/d", "new d")
    });
    sim.advance(20_000_000);
    change(&store, |tx| tx.write("b", "newer b"));
    sim.replace_file("/tree/c", b"another c");
    sim.replace_file("/tree/made/e", b"another e");
    let before = tree_of(&sim);
    let error = store.undo(first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let paths: Vec<_> = error.paths().iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["b", "c"], "{error}");
    assert!(error.to_string().contains("these have moved on since: b, c;"), "{error}");
    assert_eq!(tree_of(&sim), before);

    let undone = store.undo_all([first], &forced()).unwrap();
    let expected = [
        &initial.into_iter().collect::<Vec<_>>()[..],
        &[("made".to_owned(), Entry::Dir(0o755)), ("made/e".to_owned(), file(b"another e"))],
    ]
    .concat();
    assert_eq!(
        tree_of(&sim),
        expected.into_iter().collect::<Tree>(),
        "what others put into a new directory keeps it"
    );
    store.undo(undone.tx()).unwrap();
    assert_eq!(tree_of(&sim), before);
    assert_eq!(quarantine_of(&sim), Tree::new());
    store.close().unwrap();
}

/// Goal: several transactions are undone as one, and what lies between them is a conflict. Method: three writes of one
/// file, and one of another.
#[test]
fn several_are_undone_as_one() {
    let sim = machine(&tree(&[("a", file(b"0"))]));
    let store = options(&sim).open("/tree").unwrap();
    let [one, two, three] = ["1", "2", "3"].map(|content| change(&store, |tx| tx.write("a", content)));
    let other = change(&store, |tx| tx.write("b", "other"));
    let conflict = store.undo_all([three, one], &UndoOptions::new()).unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict, "{conflict}");
    assert_eq!(sim.read_file("/tree/a").unwrap(), b"3");
    let undone =
        store.undo_all([one, other, three, two, two], &UndoOptions::new().label("all of it")).unwrap();
    assert_eq!(tree_of(&sim), tree(&[("a", file(b"0"))]));
    let history = store.history().unwrap();
    assert_eq!(history[0].tx, undone.tx());
    assert_eq!(history[0].label.as_deref(), Some("all of it"));
    let who = history[0].who.as_ref().expect("this version says who");
    assert_eq!((who.uid, who.pid > 0, who.program.is_empty()), (1000, true, false));
    store.redo_all([three, two, one, other], &UndoOptions::new()).unwrap();
    assert_eq!(tree_of(&sim), tree(&[("a", file(b"3")), ("b", file(b"other"))]));
    assert_eq!(store.undo(TransactionId(77)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.undo_all([], &UndoOptions::new()).unwrap_err().kind(), ErrorKind::InvalidInput);
    store.close().unwrap();
}

/// Goal: names come back as they were at a moment, given by a transaction or a time, alone or all together, and nothing
/// else changes; contents of any moment can be read. Method: a small history with a move, read and restored.
#[test]
fn moments_of_the_past_are_read_and_restored() {
    let sim = machine(&tree(&[("a", file(b"a0")), ("d", Entry::Dir(0o755)), ("d/x", file(b"x0"))]));
    let store = options(&sim).open("/tree").unwrap();
    let one = change(&store, |tx| {
        tx.write("a", "a1")?;
        tx.write("d/x", "x1")
    });
    sim.advance(1_000_000_000);
    let between = atomtree_vfs::Vfs::now(&sim).0;
    sim.advance(1_000_000_000);
    let two = change(&store, |tx| tx.rename("d", "e"));
    let three = change(&store, |tx| {
        tx.write("e/x", "x3")?;
        tx.remove("a")
    });
    let cat = |tx: u64, path: &str| {
        let read = store.cat(TransactionId(tx), path);
        read.map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|error| error.kind())
    };
    assert_eq!(cat(0, "a"), Ok("a0".into()));
    assert_eq!(cat(one.0, "a"), Ok("a1".into()));
    assert_eq!(cat(one.0, "d/x"), Ok("x1".into()), "through the move of its directory");
    assert_eq!(cat(0, "d/x"), Ok("x0".into()));
    assert_eq!(cat(three.0, "e/x"), Ok("x3".into()));
    assert_eq!(cat(three.0, "a"), Err(ErrorKind::NotFound));
    assert_eq!(cat(0, "e"), Err(ErrorKind::NotFound));
    assert_eq!(cat(one.0, "d"), Err(ErrorKind::IsADirectory));
    assert_eq!(cat(9, "a"), Err(ErrorKind::NotFound));

    let refused = store.restore(Moment::After(one), &["d/x"], &UndoOptions::new()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    store.restore(Moment::At(between), &["a"], &UndoOptions::new()).unwrap();
    assert_eq!(sim.read_file("/tree/a").unwrap(), b"a1");
    assert_eq!(sim.read_file("/tree/e/x").unwrap(), b"x3", "nothing else");
    store.restore(Moment::At(between), ALL, &UndoOptions::new()).unwrap();
    let then = tree(&[("a", file(b"a1")), ("d", Entry::Dir(0o755)), ("d/x", file(b"x1"))]);
    assert_eq!(tree_of(&sim), then);
    // An edit by another program is a conflict here too.
    sim.replace_file("/tree/a", b"another");
    let refused = store.restore(Moment::After(TransactionId(0)), ALL, &UndoOptions::new()).unwrap_err();
    assert_eq!((refused.kind(), refused.paths().len()), (ErrorKind::Conflict, 1), "{refused}");
    store.restore(Moment::After(TransactionId(0)), ALL, &forced()).unwrap();
    assert_eq!(sim.read_file("/tree/a").unwrap(), b"a0");
    store.restore(Moment::After(two), ALL, &UndoOptions::new()).unwrap();
    assert_eq!(tree_of(&sim), tree(&[("a", file(b"a1")), ("e", Entry::Dir(0o755)), ("e/x", file(b"x1"))]));
    store.close().unwrap();
}

/// Goal: each bound of the history holds, the oldest goes first, and what is left can be undone. Method: many
/// transactions, each settled, under each bound; what is found on the machine, and what can be undone.
#[test]
fn the_history_keeps_to_each_of_its_bounds() {
    let many = 40_u64;
    let run = |tune: fn(Options) -> Options| {
        let sim = machine(&tree(&[("a", file(b"0"))]));
        let store = tune(options(&sim)).open("/tree").unwrap();
        for number in 1..=many {
            change(&store, |tx| tx.write("a", vec![number as u8; 5000]));
            store.checkpoint().unwrap();
            sim.advance(1_000_000_000);
        }
        let kept: Vec<u64> = store.history().unwrap().into_iter().map(|past| past.tx.0).collect();
        for tx in 1..=many {
            let found = store.cat(TransactionId(tx - 1), "a");
            assert_eq!(found.is_ok(), kept.contains(&tx), "{tx}: {found:?}");
        }
        (kept, weigh(&sim, "images"), weigh(&sim, "history").1, sim, store)
    };
    let (kept, images, ..) = run(|options| options);
    assert_eq!((kept.len(), images.0), (40, 40));
    // 8 KiB for each image, and its manifest.
    let (kept, images, manifests, ..) = run(|options| options.history_bytes_max(50_000));
    assert_eq!((kept.as_slice(), images.0), ([40, 39, 38, 37, 36].as_slice(), 5), "{images:?} {manifests}");
    let (kept, images, ..) = run(|options| options.history_transactions_max(3));
    assert_eq!((kept.as_slice(), images.0), ([40, 39, 38].as_slice(), 3));
    let (kept, images, ..) = run(|options| options.history_age_max(Some(Duration::from_millis(4500))));
    assert_eq!((kept.as_slice(), images.0), ([40, 39, 38, 37, 36].as_slice(), 5));
    let (kept, images, manifests, ..) = run(|options| options.history_bytes_max(0));
    assert_eq!((kept.len(), images, manifests), (0, (0, 0), 0));
    // An original that alone is too large leaves the others of its time alone.
    let (_, _, _, sim, store) = run(|options| options.history_bytes_max(60_000));
    change(&store, |tx| tx.write("large", vec![1; 100_000]));
    store.checkpoint().unwrap();
    let large = change(&store, |tx| tx.write("large", "small"));
    store.checkpoint().unwrap();
    assert_eq!(store.undo(large).unwrap_err().kind(), ErrorKind::NotFound);
    let last = change(&store, |tx| tx.write("a", "last"));
    store.undo(last).unwrap();
    assert_eq!(sim.read_file("/tree/a").unwrap(), [40; 5000]);

    let pruned = store.prune(&Keep::new().transactions_max(2)).unwrap();
    assert!(pruned.transactions > 0 && pruned.bytes > 0, "{pruned:?}");
    assert_eq!(store.history().unwrap().len(), 2);
    assert_eq!(store.prune(&Keep::new()).unwrap().transactions, 0);
    store.prune(&Keep::new().bytes_max(0)).unwrap();
    assert_eq!((weigh(&sim, "images"), weigh(&sim, "history").1), ((0, 0), 0));
    let refused = store.undo(last).unwrap_err();
    assert!(refused.to_string().contains("history_bytes_max"), "{refused}");
    store.close().unwrap();
}

/// Goal: after scrubbing a path nothing of its past is in the history, and everything else can still be undone. Method:
/// a secret under several names, in files and in a directory that went; the machine's files are searched for it.
#[test]
fn a_secret_is_scrubbed_from_the_history() {
    let secret = b"correct horse battery staple";
    let sim = machine(&tree(&[("config", file(secret)), ("d", Entry::Dir(0o755)), ("d/key", file(secret))]));
    let store = options(&sim).open("/tree").unwrap();
    let one = change(&store, |tx| {
        tx.write("config", "clean")?;
        tx.write("other", "one")
    });
    let two = change(&store, |tx| tx.remove_dir_all("d"));
    let three = change(&store, |tx| tx.write("other", "two"));
    store.checkpoint().unwrap();
    let holds = |part: &str| {
        let nodes = sim.tree(format!("/tree/.atomtree/{part}")).into_values();
        nodes
            .filter(|node| {
                matches!(&node.body, atomtree_vfs::sim::NodeBody::File(bytes)
            if bytes.windows(secret.len()).any(|window| window == secret))
            })
            .count()
    };
    assert_eq!(holds("images"), 2);
    assert!(holds("wal") > 0);
    let scrubbed = store.scrub("config").unwrap();
    assert_eq!(scrubbed.copies, ["images/0000000000000002-0/key"], "another path had it too");
    assert_eq!((scrubbed.transactions, scrubbed.images, scrubbed.bytes), (1, 1, secret.len() as u64));
    assert_eq!(holds("images"), 1);
    assert_eq!(
        store.undo(one).unwrap_err().kind(),
        ErrorKind::Conflict,
        "the digest of what it left is gone too"
    );
    let scrubbed = store.scrub("d").unwrap();
    assert_eq!((scrubbed.images, holds("images"), holds("history")), (1, 0, 0));
    assert_eq!((holds(""), scrubbed.is_log_clean, scrubbed.copies.len()), (0, true, 0));
    assert_eq!(store.undo(two).unwrap_err().kind(), ErrorKind::NotFound);
    store.undo(three).unwrap();
    assert_eq!(sim.read_file("/tree/other").unwrap(), b"one");
    assert_eq!(store.scrub("nothing").unwrap().transactions, 0);
    assert_eq!(store.scrub("../x").unwrap_err().kind(), ErrorKind::InvalidPath);
    store.close().unwrap();
    assert_eq!(holds(""), 0, "nor anywhere else in the store, its log included");
    // What was taken away does not come back when the log is read again.
    let killed = sim.kill();
    options(&killed).open("/tree").unwrap().close().unwrap();
}

/// Goal: an original in a directory that went shares no inode with a name that is still in the tree, by which it could be
/// edited. Method: files of several names, a small and a large one, edited by their other names after a checkpoint, and
/// after a recovery.
#[test]
fn an_original_in_a_directory_has_no_other_name() {
    use atomtree_vfs::Vfs;
    for is_killed in [false, true] {
        let mut sim = machine(&tree(&[("d", Entry::Dir(0o755)), ("d/e", Entry::Dir(0o755))]));
        let large = vec![7; 2 << 20];
        sim.write_file("/tree/d/e/small", b"small");
        sim.write_file("/tree/d/e/large", &large);
        sim.write_file("/tree/d/alone", b"alone");
        let [root, inner] = ["/tree", "/tree/d/e"].map(|path| sim.open_root(path.as_ref()).unwrap());
        for name in ["small", "large"] {
            inner.link(name.as_ref(), &*root, name.as_ref()).unwrap();
        }
        let mut store = options(&sim).open("/tree").unwrap();
        let tx = change(&store, |tx| tx.remove_dir_all("d"));
        if is_killed {
            sim = sim.kill();
            store = options(&sim).open("/tree").unwrap();
        }
        store.checkpoint().unwrap();
        let root = sim.open_root("/tree".as_ref()).unwrap();
        let edit = |name: &str| {
            assert_eq!(root.metadata(name.as_ref()).unwrap().links, 1, "{name}, killed {is_killed}");
            let file = root.open_file(name.as_ref(), atomtree_vfs::Access::ReadWrite).unwrap();
            file.write_at(&[std::io::IoSlice::new(b"EDIT")], 0).unwrap();
        };
        edit("small");
        edit("large");
        let cat = |path: &str| store.cat(TransactionId(0), path).map_err(|error| error.kind());
        assert_eq!(cat("d/e/small"), Ok(b"small".to_vec()), "killed {is_killed}");
        assert!(cat("d/e/large") == Ok(large.clone()), "killed {is_killed}");
        store.undo(tx).unwrap();
        assert_eq!(sim.read_file("/tree/d/e/small").unwrap(), b"small");
        assert_eq!(sim.read_file("/tree/d/alone").unwrap(), b"alone");
        assert_eq!(sim.read_file("/tree/small").unwrap(), b"EDITl");
        assert_eq!(quarantine_of(&sim), Tree::new());
        store.close().unwrap();
        check_stage_is_empty(&sim).unwrap();
    }
}

/// Goal: scrubbing overwrites nothing that has a name in the tree. Method: an image that is given one, as an earlier
/// version could have left it.
#[test]
fn scrubbing_overwrites_no_name_in_the_tree() {
    use atomtree_vfs::Vfs;
    let sim = machine(&tree(&[("a", file(b"the original"))]));
    let store = options(&sim).open("/tree").unwrap();
    change(&store, |tx| tx.write("a", "new"));
    store.checkpoint().unwrap();
    let [root, images] =
        ["/tree", "/tree/.atomtree/images"].map(|path| sim.open_root(path.as_ref()).unwrap());
    images.link("0000000000000001-0".as_ref(), &*root, "other".as_ref()).unwrap();
    let scrubbed = store.scrub("a").unwrap();
    assert_eq!((scrubbed.images, scrubbed.shared), (1, 1));
    assert_eq!(sim.read_file("/tree/other").unwrap(), b"the original");
    assert_eq!(weigh(&sim, "images"), (0, 0));
    store.close().unwrap();
}

/// Goal: an original is checked before it is used, and a damaged or missing one is told, with nothing changed. Method:
/// images that were changed, cut short and removed.
#[test]
fn a_damaged_original_is_not_used() {
    for damage in 0..3 {
        let sim = machine(&tree(&[("a", file(b"the original"))]));
        let store = options(&sim).open("/tree").unwrap();
        let tx = change(&store, |tx| tx.write("a", "new"));
        store.checkpoint().unwrap();
        let image = "/tree/.atomtree/images/0000000000000001-0";
        assert_eq!(sim.read_file(image).unwrap(), b"the original");
        match damage {
            0 => sim.replace_file(image, b"another text"),
            1 => sim.replace_file(image, b"the"),
            _ => {
                let images = atomtree_vfs::Vfs::open_root(&sim, "/tree/.atomtree/images".as_ref()).unwrap();
                images.remove_file("0000000000000001-0".as_ref()).unwrap();
            }
        }
        let error = store.undo(tx).unwrap_err();
        let expected = if damage == 2 { ErrorKind::NotFound } else { ErrorKind::Corrupt };
        assert_eq!((error.kind(), error.path().unwrap().to_str()), (expected, Some("a")), "{error}");
        assert_eq!(sim.read_file("/tree/a").unwrap(), b"new");
        store.close().unwrap();
    }
}

/// Goal: on a real file system everything that a file has comes back: mode, extended attributes, its content whatever
/// its size; a file of several names is parted from none. Method: each removed or replaced, and undone.
#[test]
fn everything_comes_back_on_a_real_file_system() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let large: Vec<u8> = Random::new(5).bytes(3 << 20);
    std::fs::write(at("large"), &large).unwrap();
    std::fs::write(at("run.sh"), "#!/bin/sh").unwrap();
    std::fs::set_permissions(at("run.sh"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::write(at("shared"), "shared").unwrap();
    std::fs::hard_link(at("shared"), at("twin")).unwrap();
    std::fs::create_dir_all(at("d/e")).unwrap();
    std::fs::write(at("d/e/f"), "deep").unwrap();
    symlink("d/e", at("link")).unwrap();
    let store = Options::new().checkpoints(Checkpoints::Manual).open(scratch.path()).unwrap();
    let tx = change(&store, |tx| {
        tx.set_hard_links(atomtree::HardLinks::Break);
        tx.write("large", "small now")?;
        tx.remove("run.sh")?;
        tx.write("shared", "parted")?;
        tx.remove_dir_all("d")?;
        tx.remove("link")
    });
    store.checkpoint().unwrap();
    std::fs::write(at("twin"), "edited in place").unwrap();
    store.undo(tx).unwrap();
    assert!(std::fs::read(at("large")).unwrap() == large);
    assert_eq!(std::fs::metadata(at("run.sh")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(std::fs::read(at("d/e/f")).unwrap(), b"deep");
    assert_eq!(std::fs::read_link(at("link")).unwrap().to_str(), Some("d/e"));
    assert_eq!(std::fs::read(at("shared")).unwrap(), b"shared", "the image was no link");
    assert_eq!(std::fs::read(at("twin")).unwrap(), b"edited in place");
    store.close().unwrap();
}

/// Goal: rolling many files back is quick, and a checkpoint keeps originals at no great cost. Method: 100 files, changed
/// in one transaction and undone; the times are printed, and bounded with room for a busy machine.
#[test]
fn a_hundred_files_are_undone_quickly() {
    let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let store = Options::new().checkpoints(Checkpoints::Manual).open(scratch.path()).unwrap();
    let write = |content: &str| {
        change(&store, |tx| (0..100).try_for_each(|number| tx.write(format!("{number}"), content)))
    };
    write("before");
    store.checkpoint().unwrap();
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let tx = write("after");
        store.checkpoint().unwrap();
        let start = std::time::Instant::now();
        store.undo(tx).unwrap();
        best = best.min(start.elapsed());
    }
    println!("100 files undone in {best:?} at best of 5");
    assert!(best < Duration::from_millis(500), "{best:?}");
    store.close().unwrap();
}

/// Goal: what a file holds behind a transaction is not what one that comes while it is read makes of it. Method: another
/// process changes the file at each call of the read in turn.
#[test]
fn cat_is_not_deceived_by_what_comes_meanwhile() {
    for at in 1.. {
        let sim = machine(&tree(&[("file", file(b"first"))]));
        let other = options_on(Arc::new(sim.another_process()));
        let other = other.lock_timeout(Duration::ZERO).open("/tree").unwrap();
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let store = options_on(Arc::new(faults.clone())).open("/tree").unwrap();
        let tx = change(&store, |tx| tx.write("beside", "x"));
        store.checkpoint().unwrap();
        let (count, came) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
        let comes = Arc::clone(&came);
        faults.set_rule(Arc::new(move |_| {
            // Where a lock is held it gets none, and comes later.
            if count.fetch_add(1, Ordering::Relaxed) >= at && !comes.load(Ordering::Relaxed) {
                let mut tx = other.begin().unwrap();
                tx.write("file", "later").unwrap();
                comes.store(tx.commit().is_ok(), Ordering::Relaxed);
            }
            None
        }));
        assert_eq!(store.cat(tx, "file").unwrap(), b"first", "call {at}");
        if !came.load(Ordering::Relaxed) {
            return;
        }
    }
}
