//! `Durability::Settled`: what readers find that don't wait for recovery.

use std::path::Path;
use std::sync::Arc;

use atomtree::{Checkpoints, Durability, Error, Options, Store};
use atomtree_vfs::sim::Sim;

const OLD: [(&str, &[u8]); 2] = [("/tree/config", &[1; 700]), ("/tree/schema", &[2; 5000])];
const NEW: [(&str, &[u8]); 3] =
    [("/tree/config", &[3; 900]), ("/tree/schema", &[4; 100]), ("/tree/new/one", &[5; 1500])];

fn machine() -> Sim {
    let sim = Sim::new(7);
    sim.create_dir("/tree");
    for (path, content) in OLD {
        sim.write_file(path, content);
    }
    sim
}

fn open(sim: &Sim) -> Result<Store, Error> {
    Options::new()
        .vfs(Arc::new(sim.clone()))
        .segment_bytes(64 << 10)
        .log_bytes_max(1 << 20)
        .checkpoints(Checkpoints::Manual)
        .open("/tree")
}

fn commit(store: &Store, durability: Durability) -> Result<(), Error> {
    let mut tx = store.begin()?;
    tx.set_durability(durability);
    for (path, content) in NEW {
        tx.write(path.strip_prefix("/tree/").unwrap(), content)?;
    }
    tx.commit().map(drop)
}

fn old_of(path: &str) -> Option<&'static [u8]> {
    OLD.iter().find(|(old, _)| *old == path).map(|(_, content)| *content)
}

/// How many files are neither old nor new, as a reader finds them that does not recover.
fn damaged(sim: &Sim) -> usize {
    NEW.iter()
        .filter(|(path, new)| {
            let found = sim.read_file(Path::new(path));
            found.as_deref() != Some(new) && found.as_deref() != old_of(path)
        })
        .count()
}

/// Goal: with `Settled` no reader ever finds a file that is neither old nor new, and after `Ok` every one is new, without
/// recovery. Method: a power cut at every storage operation of the commit, many seeds each.
#[test]
fn readers_that_do_not_recover_find_whole_files() {
    let total = {
        let sim = machine();
        let store = open(&sim).unwrap();
        let before = sim.operations();
        commit(&store, Durability::Settled).unwrap();
        for seed in 0..200 {
            let cut = sim.power_cut(seed);
            for (path, new) in NEW {
                assert_eq!(cut.read_file(Path::new(path)).as_deref(), Some(new), "{path}, seed {seed}");
            }
        }
        sim.operations() - before
    };
    for operation in 1..=total {
        let sim = machine();
        let store = open(&sim).unwrap();
        sim.halt_at(sim.operations() + operation);
        let _ = commit(&store, Durability::Settled);
        for seed in 0..40 {
            assert_eq!(damaged(&sim.power_cut(seed)), 0, "operation {operation}, seed {seed}");
        }
    }
}

/// The same cut finds damaged files with `Synced`: otherwise the test above could not fail.
#[test]
fn without_it_they_may_not() {
    let sim = machine();
    let store = open(&sim).unwrap();
    commit(&store, Durability::Synced).unwrap();
    let found: usize = (0..200).map(|seed| damaged(&sim.power_cut(seed))).sum();
    assert!(found > 0);
}
