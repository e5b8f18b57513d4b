//! Failures to write something back: the system tells each open descriptor of one once, so whoever is told must be the one
//! who relies on what was lost.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use atomtree::{ErrorKind, Options, Store, Transaction};
use atomtree_vfs::sim::Sim;

use crate::basics::{commit, kind_of, manual};

/// Contents larger than this are staged, and not in the log.
const INLINE_BYTES_MAX: u64 = 1000;
/// More than are synced one by one.
const MANY: usize = 6;

fn options(sim: &Sim) -> Options {
    manual().inline_bytes_max(INLINE_BYTES_MAX).vfs(Arc::new(sim.clone()))
}

/// A machine with some files, and a store open on it.
fn machine() -> (Sim, Store) {
    let sim = Sim::new(11);
    sim.create_dir("/tree");
    for name in ["a", "b", "c"] {
        sim.write_file(format!("/tree/{name}"), b"old");
    }
    let store = options(&sim).open("/tree").unwrap();
    (sim, store)
}

/// What another program does.
fn edit(sim: &Sim, name: &str) {
    sim.write_file(format!("/tree/{name}"), b"edited");
}

fn content(sim: &Sim, name: &str) -> Option<Vec<u8>> {
    sim.read_file(Path::new("/tree").join(name))
}

/// Stages many contents from their sources.
fn stream(store: &Store, prefix: &str) -> Transaction {
    let mut tx = store.begin().unwrap();
    for number in 0..MANY {
        let source = io::repeat(number as u8 + 1).take(3 * INLINE_BYTES_MAX);
        tx.write_from(format!("{prefix}{number}"), source).unwrap();
    }
    tx
}

/// Goal: what a transaction had staged and the disk lost is told to that transaction, whoever syncs first. Method: two of
/// them, of which the second stages and commits after the loss.
#[test]
fn what_was_staged_and_lost_is_told_to_its_own_transaction() {
    let (sim, store) = machine();
    let lost = stream(&store, "lost");
    sim.fail_write_back();
    stream(&store, "whole").commit().unwrap();
    assert_eq!(kind_of(lost.commit()), ErrorKind::Io);
    for seed in 0..10 {
        let cut = sim.power_cut(seed);
        drop(options(&cut).open("/tree").unwrap());
        for number in 0..MANY {
            let expected = vec![number as u8 + 1; 3 * INLINE_BYTES_MAX as usize];
            assert_eq!(content(&cut, &format!("whole{number}")), Some(expected), "seed {seed}");
            assert_eq!(content(&cut, &format!("lost{number}")), None, "seed {seed}");
        }
    }
}

/// Goal: what a committed file lost is told to the checkpoint that would give the log up, whatever guards synced before.
/// Method: the loss comes between the commit and the roll back of a guard that its owner left.
#[test]
fn what_was_committed_and_lost_is_told_to_the_checkpoint() {
    let (sim, store) = machine();
    let guard = store.guard(["/a"]).unwrap();
    edit(&sim, "a");
    guard.leave();
    commit(&store, |tx| tx.write("b", "new")).unwrap();
    sim.fail_write_back_of("/tree/b");
    // Rolls back first, which is a conflict once.
    store.transact(|tx| tx.write("a", "new")).unwrap();
    assert_eq!(kind_of(store.checkpoint()), ErrorKind::Io);
    assert_eq!(kind_of(commit(&store, |tx| tx.write("c", "new"))), ErrorKind::Poisoned);
    drop(store);
    for seed in 0..20 {
        let cut = sim.power_cut(seed);
        drop(options(&cut).open("/tree").unwrap());
        for name in ["a", "b"] {
            assert_eq!(content(&cut, name).as_deref(), Some(&b"new"[..]), "{name}, seed {seed}");
        }
    }
}

/// Goal: edits that the disk lost are not kept, whoever else was told of the loss. Method: a checkpoint of other names, or
/// another guard, is told first.
#[test]
fn edits_that_were_lost_are_not_kept() {
    for by_a_guard in [false, true] {
        let (sim, store) = machine();
        let (guard, other) = (store.guard(["/a"]).unwrap(), store.guard(["/b"]).unwrap());
        commit(&store, |tx| tx.write("c", "new")).unwrap();
        edit(&sim, "a");
        sim.fail_write_back();
        if by_a_guard {
            assert_eq!(kind_of(other.keep()), ErrorKind::Io);
        } else {
            assert_eq!(kind_of(store.checkpoint()), ErrorKind::Io);
        }
        assert_eq!(kind_of(guard.keep()), ErrorKind::Poisoned);
        drop(store);
        let store = options(&sim).open("/tree").unwrap();
        assert_eq!(store.recovery().rolled_back, if by_a_guard { 2 } else { 1 });
        assert_eq!(content(&sim, "a").as_deref(), Some(&b"old"[..]));
    }
}
