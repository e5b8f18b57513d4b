//! Guards on a machine that goes down before every operation, and again in the recovery.

use atomtree_tests::guarded::{Scene, explore, fail_every_call};

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
/// takes no more commits if a guard could not be ended, and the next open ends it. Method: each call of generated scenes,
/// reads included, once or from then on.
#[test]
fn every_call_under_a_guard_fails() {
    let judged = sum_over(1000..1030, |seed| fail_every_call(&Scene::generate(seed)));
    println!("{judged} failures judged");
}
