//! Guards on a machine that goes down before every operation, and again in the recovery.

use atomtree_tests::guarded::{Scene, explore, fail_every_call};

use atomtree::vfs::sim::Sim;
use atomtree::{Checkpoints, Options};
use std::sync::Arc;

use crate::crash_points::sum_over;

/// Goal: until a guard is kept a crash brings back what was guarded, whole; after that, what was kept; a roll back ends
/// in the same state however often it is interrupted; and nothing is left lying. Method: generated scenes of one or two
/// guards with edits of every kind, the machine killed and cut before every operation of opening, editing, keeping and
/// rolling back, and up to two more times in the openings that follow.
/// `ATOMTREE_GUARD_SCENES=first..end` chooses others.
#[test]
fn every_crash_under_a_guard_ends_as_promised() {
    let scenes = match std::env::var("ATOMTREE_GUARD_SCENES") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
            first.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => 0..60_u64,
    };
    let judged = sum_over(scenes, |seed| explore(&Scene::generate(seed), 2, 3));
    println!("{judged} openings judged");
}

/// Goal: whatever call of storage fails while a guard is opened, kept or rolled back, what is told is true, the store
/// takes no more commits if a guard could not be ended, what it does not cover stays as it is, and the next open ends it.
/// Method: each call of generated scenes, reads included, with every error and for every duration that the matrix of
/// `faults` has, and in half of the cases a call of the recovery too.
/// `ATOMTREE_FAULT_SEED` draws others.
#[test]
fn every_call_under_a_guard_fails() {
    let chosen = std::env::var("ATOMTREE_FAULT_SEED").ok();
    let seed = chosen.map_or(1, |text| text.parse().expect("a number"));
    let judged = sum_over(1000..1060, |scene| fail_every_call(&Scene::generate(scene), seed));
    println!("{judged} failures judged");
}

/// Goal: an image is not used again for a file that may have been edited since in the same tick. Method: a clock whose
/// ticks are long, and edits that leave the size as it was: before a guard, after it was kept, and under the next.
#[test]
fn an_edit_in_the_tick_of_a_capture_is_no_reason_to_use_its_image_again() {
    let sim = Sim::new(7);
    sim.create_dir("/tree");
    sim.set_timestamp_granularity_ns(3_600_000_000_000);
    let options = Options::new().segment_bytes(64 << 10).log_bytes_max(256 << 10);
    let options = options.checkpoints(Checkpoints::Manual).vfs(Arc::new(sim.clone()));
    let store = options.open("/tree").unwrap();
    sim.write_file("/tree/a", b"one");
    store.guard(["**"]).unwrap().keep().unwrap();
    sim.write_file("/tree/a", b"two");
    let guard = store.guard(["**"]).unwrap();
    sim.write_file("/tree/a", b"333");
    guard.roll_back().unwrap();
    assert_eq!(sim.read_file("/tree/a").unwrap(), b"two");
    store.close().unwrap();
}
