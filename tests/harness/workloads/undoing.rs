//! Workloads that go back, and that forget: undo, redo, restore, cat, prune, scrub, with crashes in between.

use std::path::Path;

use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Dir, Vfs};
use atomtree::{Error, ErrorKind, HardLinks, Keep, Moment, Store, Transaction, TransactionId, UndoOptions};

use super::{BY_REFERENCE, SETTINGS, bytes, dir, file, of};
use crate::crash::{Crash, ROOT};
use crate::history::{Entry, Operation as Op, Settings, Tree};
use crate::workload::{Act, Workload};

fn initial() -> Vec<(&'static str, Entry)> {
    vec![
        ("a", file(300)),
        ("b", file(9000)),
        ("c", file(20)),
        ("d", dir()),
        ("d/in", dir()),
        ("d/in/x", file(700)),
        ("d/y", file(30)),
        ("link", Entry::Link("a".into())),
        ("s", dir()),
        ("s/l", Entry::Link("a".into())),
    ]
}

fn changes() -> Vec<Op> {
    vec![
        Op::Write("a", bytes(500)),
        Op::Patch("b", 10, bytes(100)),
        Op::Rename("c", "made/c"),
        Op::SetMode("d", 0o700),
        Op::Symlink("link", "b"),
    ]
}

fn removals() -> Vec<Op> {
    vec![Op::RemoveDirAll("d"), Op::RemoveDirAll("s"), Op::Remove("b"), Op::Write("a", bytes(50))]
}

fn tree_after(lists: &[Vec<Op>]) -> Tree {
    let mut tree = super::tree(&initial());
    lists.iter().flatten().for_each(|operation| operation.perform_on(&mut tree));
    tree
}

fn newest(store: &Store) -> Result<TransactionId, Error> {
    Ok(store.history()?.first().expect("there is one").tx)
}

fn undo_newest(store: &Store) -> Result<(), Error> {
    store.undo(newest(store)?).map(drop)
}

/// The original may not have been kept, where there was no space for a copy.
fn undo_or_write(store: &Store) -> Result<(), Error> {
    match undo_newest(store) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            store.transact(|tx| tx.write("a", bytes(300))).map(drop)
        }
        undone => undone,
    }
}

fn redo_first(store: &Store) -> Result<(), Error> {
    store.redo_all([TransactionId(1)], &UndoOptions::new().force(true)).map(drop)
}

fn restore_all(store: &Store) -> Result<(), Error> {
    let all: &[&str] = &[];
    store.restore(Moment::After(TransactionId(0)), all, &UndoOptions::new()).map(drop)
}

fn read_past(store: &Store) -> Result<(), Error> {
    assert!(store.cat(TransactionId(0), "a")? == bytes(300));
    assert!(store.cat(newest(store)?, "a")?.len() == 500);
    Ok(())
}

fn prune_to_one(store: &Store) -> Result<(), Error> {
    store.prune(&Keep::new().transactions_max(1)).map(drop)
}

fn prune_all(store: &Store) -> Result<(), Error> {
    store.prune(&Keep::new().bytes_max(0)).map(drop)
}

fn scrub(store: &Store) -> Result<(), Error> {
    store.scrub("a")?;
    store.scrub("d/in/x")?;
    store.scrub("d").map(drop)
}

fn empty_quarantine(store: &Store) -> Result<(), Error> {
    store.empty_quarantine().map(drop)
}

fn nothing(_: &mut Tree) {}

fn to_initial(tree: &mut Tree) {
    *tree = tree_after(&[]);
}

fn to_changed(tree: &mut Tree) {
    *tree = tree_after(&[changes()]);
}

/// Another program at work in the store.
fn part(sim: &Sim, part: &str) -> std::sync::Arc<dyn Dir> {
    let path = format!("{ROOT}/.atomtree/{part}");
    sim.another_process().open_root(Path::new(&path)).expect("the store stands")
}

/// Somebody takes the catalogue away.
fn lose_manifests(sim: &Sim) {
    let history = part(sim, "history");
    for entry in history.list().expect("it is there") {
        history.remove_file(&entry.name).expect("it was just listed");
    }
    history.sync().expect("nothing fails");
}

/// A manifest that nobody can read.
fn spoil_manifest(sim: &Sim) {
    let path = format!("{ROOT}/.atomtree/history/0000000000000001-0000000000000001.manifest");
    sim.replace_file(&path, b"no manifest");
}

/// What an attempt before has left where originals go.
fn leave_images(sim: &Sim) {
    sim.write_file(format!("{ROOT}/.atomtree/images/0000000000000001-0"), b"left");
}

/// A file in a directory, and a name outside of it.
fn give_outer_name(sim: &Sim) {
    let root = sim.another_process().open_root(Path::new(ROOT)).expect("it is there");
    let dir = root.open_dir(Path::new("d")).expect("it is there");
    root.remove_file("twin".as_ref()).expect("it is there");
    dir.link("y".as_ref(), &*root, "twin".as_ref()).expect("nothing is in the way");
    root.sync_filesystem().expect("nothing fails");
}

fn give_second_name(sim: &Sim) {
    let root = sim.another_process().open_root(Path::new(ROOT)).expect("it is there");
    root.link("a".as_ref(), &*root, "twin".as_ref()).expect("nothing is in the way");
    root.sync_filesystem().expect("nothing fails");
}

fn break_link(tx: &mut Transaction) -> Result<(), Error> {
    tx.set_hard_links(HardLinks::Break);
    tx.write("a", bytes(500))
}

fn broken(tree: &mut Tree) {
    Op::Write("a", bytes(500)).perform_on(tree);
}

fn with_twin(tree: &mut Tree) {
    to_initial(tree);
    tree.insert("twin".into(), file(300));
}

/// All of them.
pub(super) fn all() -> Vec<Workload> {
    let without_exchange = Settings { can_exchange: false, ..SETTINGS };
    let mut all = Vec::new();
    for (number, settings) in [SETTINGS, BY_REFERENCE, without_exchange].into_iter().enumerate() {
        let there_and_back = vec![
            Act::Commit(changes()),
            Act::Look,
            Act::OnStore(read_past, nothing),
            Act::OnStore(undo_newest, to_initial),
            Act::Look,
            Act::OnStore(redo_first, to_changed),
            Act::Commit(vec![Op::Remove("a")]),
            Act::OnStore(restore_all, to_initial),
            Act::Commit(removals()),
            Act::OnStore(undo_newest, to_initial),
            Act::OnStore(prune_to_one, nothing),
            Act::Reopen,
            Act::Commit(removals()),
            Act::OnStore(scrub, nothing),
            Act::OnStore(prune_all, nothing),
            Act::Look,
        ];
        all.push(of(&format!("there and back {number}"), settings, &initial(), there_and_back));
        if !settings.can_exchange {
            // A power cut may take originals there that are too large for the log.
            continue;
        }
        for at in [8, 14, 20] {
            for crash in [Crash::Kill, Crash::Cut(at)] {
                let nested = vec![
                    Act::Commit(changes()),
                    Act::Halted(removals(), at),
                    Act::HaltedOpen(crash, 20 + at),
                    Act::HaltedOpen(crash, 40 + at),
                    Act::Crash(crash),
                    Act::OnStore(restore_all, to_initial),
                ];
                let name = format!("restored {number}, halted at {at}, {crash:?}");
                all.push(of(&name, settings, &initial(), nested));
            }
        }
    }
    let lost = vec![
        Act::Outside(leave_images),
        Act::Commit(removals()),
        Act::Checkpoint,
        Act::Outside(lose_manifests),
        Act::Commit(vec![Op::Write("a", bytes(60))]),
        Act::Crash(Crash::Kill),
        Act::OnStore(empty_quarantine, nothing),
        Act::Commit(vec![Op::Write("a", bytes(70))]),
        Act::Checkpoint,
    ];
    all.push(of("a history that was lost", SETTINGS, &initial(), lost));
    let spoilt = vec![
        Act::Outside(spoil_manifest),
        Act::Commit(vec![Op::Write("a", bytes(60))]),
        Act::Commit(vec![Op::Write("a", bytes(70))]),
        Act::Checkpoint,
        Act::Reopen,
    ];
    all.push(of("a manifest that was spoilt", SETTINGS, &initial(), spoilt).unlike_others());
    let mut shared = of(
        "an original of two names",
        SETTINGS,
        &initial(),
        vec![Act::Transact(break_link, broken), Act::Checkpoint, Act::OnStore(undo_or_write, with_twin)],
    );
    shared.initial.insert("twin".into(), file(300));
    all.push(shared.prepared(|sim| {
        let root = sim.another_process().open_root(Path::new(ROOT)).expect("it is there");
        root.remove_file("twin".as_ref()).expect("it is there");
        give_second_name(sim);
    }));
    let with_copy = [&removals()[..], &[Op::Remove("z")]].concat();
    let mut secret = of(
        "a secret that other names have too",
        SETTINGS,
        &initial(),
        vec![Act::Commit(with_copy), Act::Checkpoint, Act::OnStore(scrub, nothing)],
    );
    secret.initial.insert("twin".into(), file(30));
    secret.initial.insert("z".into(), file(300));
    all.push(secret.prepared(give_outer_name));
    all
}
