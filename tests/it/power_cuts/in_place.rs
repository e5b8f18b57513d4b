//! Patches in place, when the power goes between their writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atomtree::{Checkpoints, Options, Store};

use super::*;

/// Where the number stands that each transaction patches in: across sectors, and far apart.
const PLACES: [usize; 3] = [508, 500_000, 1_000_001];

fn open(root: &Path, label: &str) -> Store {
    let options = Options::new().segment_bytes(64 << 10).checkpoints(Checkpoints::Manual);
    options.open(root).unwrap_or_else(|error| panic!("{label}: {error}"))
}

/// What all the places hold; it has to be the same, and what an ordinary file of the same transactions holds.
fn number(root: &Path, label: &str) -> u64 {
    let large = fs::read(root.join("large")).unwrap();
    let at = |place: usize| u64::from_le_bytes(large[place..place + 8].try_into().unwrap());
    let text = fs::read_to_string(root.join("number")).unwrap();
    assert_eq!(PLACES.map(at), [text.parse::<u64>().unwrap(); 3], "{label}");
    at(PLACES[0])
}

/// Goal: what was acknowledged of patches survives, whole, and together with the other files of its transaction. Method:
/// one transaction after another patches a number in at three places, and writes it to a file; the power goes at a random
/// instant. Of btrfs the image is copied between two of them.
#[test]
fn patches_in_place_are_whole_after_a_power_cut() {
    let mut random = Random::from_environment();
    for kind in Kind::ALL {
        let Some((volume, root)) = volume(kind) else { continue };
        fs::write(root.join("large"), vec![0; 1 << 20]).unwrap();
        fs::write(root.join("number"), "0").unwrap();
        let (mut last, mut redone) = (0, 0);
        for round in 0..ROUNDS {
            let label = format!("{} round {round}", kind.name());
            let store = open(&root, &label);
            let (acknowledged, stops) = (AtomicU64::new(last), AtomicBool::new(false));
            thread::scope(|scope| {
                let patching = scope.spawn(|| {
                    for number in last + 1.. {
                        let done = store.transact(|tx| {
                            for place in PLACES {
                                tx.patch_in_place("large", place as u64, number.to_le_bytes())?;
                            }
                            tx.write("number", number.to_string())
                        });
                        if done.is_err() || stops.load(Ordering::SeqCst) {
                            break;
                        }
                        acknowledged.store(number, Ordering::SeqCst);
                    }
                });
                thread::sleep(Duration::from_micros(20_000 + random.below(150_000)));
                if kind == Kind::Btrfs {
                    stops.store(true, Ordering::SeqCst);
                    patching.join().unwrap();
                }
                volume.cut_power().unwrap_or_else(|reason| panic!("{label}: {reason}"));
                stops.store(true, Ordering::SeqCst);
            });
            drop(store);
            volume.mount_again().unwrap_or_else(|reason| panic!("{label}: {reason}"));
            let store = open(&root, &label);
            let found = number(&root, &label);
            let acknowledged = acknowledged.into_inner();
            assert!(found >= acknowledged, "{label}: {found} after {acknowledged} was acknowledged");
            assert!(store.recovery().superseded.is_empty(), "{label}: {:?}", store.recovery());
            redone += store.recovery().redone;
            last = found;
            store.close().unwrap();
        }
        println!("{}: {ROUNDS} cuts, {last} patches, {redone} redone", kind.name());
        assert!(last > 0 && redone > 0, "{}: cuts hit nothing", kind.name());
    }
}
