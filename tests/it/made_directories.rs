//! Directories that a transaction makes with a mode: whenever the process is killed or the power goes, recovery leaves
//! them with exactly that mode, or not at all.

use std::path::Path;
use std::sync::Arc;

use atomtree::vfs::Vfs;
use atomtree::vfs::sim::Sim;
use atomtree::{Error, Store};

use crate::basics::{commit, manual};

/// Modes that `mkdir` can't give at once: special bits, and what a usual umask takes away.
const MODES: [u32; 6] = [0o777, 0o1777, 0o2775, 0o700, 0o000, 0o4755];

fn machine() -> (Sim, Store) {
    let sim = Sim::new(5);
    sim.create_dir("/tree");
    let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
    (sim, store)
}

fn change(store: &Store) -> Result<(), Error> {
    commit(store, |tx| MODES.iter().try_for_each(|mode| tx.create_dir_with_mode(format!("d{mode:o}"), *mode)))
        .map(drop)
}

/// Goal: no crash window between making a directory and giving it its mode. Method: on a simulated machine, a kill and
/// two power cuts at every operation of the commit.
#[test]
fn a_directory_made_with_a_mode_has_it_after_a_crash_at_any_operation() {
    let (sim, store) = machine();
    let before = sim.operations();
    change(&store).unwrap();
    let operations = sim.operations() - before;
    drop(store);
    let mut wrong = Vec::new();
    for number in 1..=operations + 1 {
        let (sim, store) = machine();
        sim.halt_at(sim.operations() + number);
        let _ = change(&store);
        drop(store);
        let crashed =
            [("killed", sim.kill()), ("cut", sim.power_cut(number)), ("cut", sim.power_cut(!number))];
        for (how, sim) in crashed {
            let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
            let report = store.recovery().clone();
            let root = sim.open_root(Path::new("/tree")).unwrap();
            let modes: Vec<Option<u32>> = MODES
                .iter()
                .map(|mode| {
                    let metadata = root.metadata(format!("d{mode:o}").as_ref()).ok()?;
                    Some(metadata.mode & 0o7777)
                })
                .collect();
            let is_old = modes.iter().all(Option::is_none);
            let is_new = modes.iter().zip(MODES).all(|(found, mode)| *found == Some(mode));
            if !(is_old || is_new) || !report.metadata_kept.is_empty() {
                let found: Vec<_> = modes.iter().map(|mode| mode.map(|mode| format!("{mode:o}"))).collect();
                wrong.push(format!(
                    "{how} at {number} of {operations}: {found:?}, {:?}",
                    report.metadata_kept
                ));
            }
            store.close().unwrap();
        }
    }
    assert!(wrong.is_empty(), "{} of {} crashes:\n{}", wrong.len(), 3 * (operations + 1), wrong.join("\n"));
}
