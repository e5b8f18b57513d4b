//! What becomes of an original whose checkpoint was cut short.

use std::sync::Arc;

use atomtree::vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;

use super::log_ends::{EIO, machine, open, write};

/// A process that dies at its first call of this kind, once it is armed.
fn dying_at(sim: &Sim, verb: Verb) -> (Faults, impl Fn() + use<>) {
    let process = sim.another_process();
    let faults = Faults::new(Arc::new(process.clone()), fail_nothing());
    let armed = faults.clone();
    let arm = move || {
        let process = process.clone();
        armed.set_rule(Arc::new(move |call: &Call| {
            (call.verb == verb).then(|| {
                process.end_process();
                Fault::Error(EIO)
            })
        }));
    };
    (faults, arm)
}

/// Goal: a recovery keeps the originals that a checkpoint had settled and not moved, when they wait in its own process's
/// slots alone. Method: one dies before it has moved the other's original, a third with nothing staged when its removal is
/// logged; the other finishes that, and undoes what it had committed.
#[test]
fn an_original_in_ones_own_slot_is_kept() {
    let sim = machine();
    sim.write_file("/tree/file", b"original");
    sim.write_file("/tree/other", b"other");
    sim.advance(1_000_000_000);
    let living = open(sim.another_process());
    let (faults, arm) = dying_at(&sim, Verb::Rename);
    let settling = open(faults);
    let tx = write(&living, "file", b"replaced").unwrap();
    arm();
    settling.checkpoint().unwrap_err();
    drop(settling);
    let (faults, arm) = dying_at(&sim, Verb::Rename);
    let removing = open(faults);
    arm();
    let mut removal = removing.begin().unwrap();
    removal.remove("other").unwrap();
    removal.commit().unwrap_err();
    drop(removing);
    write(&living, "last", b"last").unwrap();
    assert_eq!(living.take_overs().len(), 1);
    living.undo(atomtree::TransactionId(tx)).unwrap();
    assert_eq!(sim.read_file("/tree/file").as_deref(), Some(&b"original"[..]));
}
