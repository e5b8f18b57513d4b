//! What waits in `stage/`: new contents on their way in, originals on their way out. Damaged in any way, at any moment of
//! a commit or a checkpoint, they never end up in the tree: a content that is in the log is taken from there, and one
//! that was nowhere else is reported as lost, its name left as it was.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use atomtree::vfs::faults::{Faults, Verb, fail_nothing};
use atomtree::vfs::sim::{NodeBody, Sim};
use atomtree::vfs::{Access, Vfs};
use atomtree::{ErrorKind, Inspection, Options, Store};
use atomtree_tests::crash::is_operation;
use atomtree_tests::history::Random;

use super::{
    Damage, Nodes, ROOT, SECTOR_BYTES, STORE, files, is_lock_alone, on_two_threads, options, user_tree,
};

/// Contents above this are by reference.
const INLINE_BYTES_MAX: u64 = 100;

fn staging(sim: &Sim) -> Options {
    options(Arc::new(sim.clone())).inline_bytes_max(INLINE_BYTES_MAX)
}

/// One commit and its checkpoint.
struct Run {
    before: Nodes,
    after: Nodes,
    /// The machine before each operation from the commit point on, with its processes killed.
    moments: Vec<Sim>,
}

/// One transaction with every kind of content, in the log and by reference, over names that are taken and free.
fn change(store: &Store) {
    let mut random = Random::new(9);
    let mut tx = store.begin().unwrap();
    tx.write("inline", b"the second, in the log").unwrap();
    tx.write("large", random.bytes(700)).unwrap();
    tx.write("new/inline", random.bytes(90)).unwrap();
    tx.write("new/large", random.bytes(1100)).unwrap();
    tx.remove("goes").unwrap();
    tx.symlink("link", "inline").unwrap();
    tx.commit().unwrap();
}

fn run(can_exchange: bool) -> Run {
    let sim = Sim::new(8);
    sim.set_exchange_supported(can_exchange);
    let mut random = Random::new(4);
    sim.write_file("/root/inline", b"the first");
    sim.write_file("/root/large", &random.bytes(600));
    sim.write_file("/root/goes", &random.bytes(300));
    sim.write_file("/root/stays", b"untouched");
    sim.advance(1_000_000_000);
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let store = options(Arc::new(faults.clone())).inline_bytes_max(INLINE_BYTES_MAX).open(ROOT).unwrap();
    let before = user_tree(&sim);
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (machine, seen, is_committed) = (sim.clone(), Arc::clone(&moments), AtomicBool::new(false));
    faults.set_rule(Arc::new(move |call| {
        if is_operation(call.verb) && is_committed.load(Ordering::Relaxed) {
            seen.lock().unwrap().push(machine.kill());
        }
        let is_segment = call.name.as_deref().is_some_and(|name| name.to_string_lossy().ends_with(".seg"));
        if call.verb == Verb::SyncData && is_segment {
            is_committed.store(true, Ordering::Relaxed);
        }
        None
    }));
    change(&store);
    let after = user_tree(&sim);
    store.checkpoint().unwrap();
    faults.set_rule(fail_nothing());
    std::mem::forget(store);
    let moments = std::mem::take(&mut *moments.lock().unwrap());
    Run { before, after, moments }
}

/// Does the damage as storage would, without a new time of modification; or as a program would, with one.
fn done(whole: &Sim, path: &Path, damage: &Damage, silently: bool) -> Sim {
    let open = |sim: &Sim| {
        let dir = sim.open_root(path.parent().unwrap()).unwrap();
        dir.open_file(path.file_name().unwrap(), Access::ReadWrite).unwrap()
    };
    let modified = open(whole).metadata().unwrap().modified;
    let sim = damage.done(whole, path);
    if silently && !matches!(damage, Damage::Remove) {
        open(&sim).set_modified(modified).unwrap();
    }
    sim
}

#[derive(Debug, Default)]
struct Tally {
    whole: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
}

/// Judges what recovery makes of a damaged slot. `damaged` are its bytes, if they have to be kept somewhere when the
/// content is lost.
fn judge(run: &Run, sim: &Sim, damaged: Option<&[u8]>, tally: &Tally, what: &dyn Fn() -> String) {
    let operations = sim.operations();
    let store = match staging(sim).open(ROOT) {
        Ok(store) => store,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}: {error}", what());
            let done = sim.operations() - operations;
            assert!(is_lock_alone(done), "{}: a refused open changes nothing", what());
            tally.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let report = store.recovery().clone();
    let tree = user_tree(sim);
    let is_lost = |path: &Path| report.lost.iter().any(|lost| lost.as_path() == path);
    for path in tree.keys().chain(run.after.keys()) {
        let (found, wanted) = (tree.get(path), run.after.get(path));
        let is_left = is_lost(path) && found == run.before.get(path);
        assert!(found == wanted || is_left, "{}: {}: {found:?}\n{report:#?}", what(), path.display());
    }
    assert!(report.superseded.is_empty() && report.metadata_kept.is_empty(), "{}: {report:#?}", what());
    for displaced in &report.quarantined {
        assert!(sim.tree(STORE).contains_key(Path::new(&displaced.kept)), "{}: {displaced:?}", what());
    }
    if report.lost.is_empty() {
        tally.whole.fetch_add(1, Ordering::Relaxed);
    } else {
        tally.lost.fetch_add(1, Ordering::Relaxed);
        let is_kept = |damaged| files(sim, "quarantine").iter().any(|(_, bytes)| bytes == damaged);
        assert!(damaged.is_none_or(is_kept), "{}: what is left of it is kept", what());
    }
    store.close().unwrap();
    // What was decided stays.
    let verified = Inspection::open(ROOT, &staging(sim)).unwrap().verify().unwrap();
    assert!(
        verified.problems.is_empty() && verified.closed && verified.slots == 0,
        "{}: {verified:?}",
        what()
    );
    let store = staging(sim).open(ROOT).unwrap();
    assert_eq!(user_tree(sim), tree, "{}", what());
    store.close().unwrap();
}

/// The slots' files: path and content. Those that hold a symlink have none that could be damaged.
fn slots(sim: &Sim) -> Vec<(PathBuf, Vec<u8>)> {
    files(sim, "stage").into_iter().filter(|(path, _)| path.file_name() != Some(OsStr::new("lock"))).collect()
}

/// Goal: no damaged byte gets from `stage/` into the tree, and what recovery can't put there is reported. Method: at each
/// operation from the commit point to the end of the checkpoint, each slot: a bit of each byte flipped (every bit at the
/// first), cut to each length, each sector zeroed, duplicated, swapped and as it was before it was written, the other
/// slots' contents in its place, and none.
#[test]
fn damaged_slots_never_reach_the_tree() {
    for can_exchange in [true, false] {
        let run = run(can_exchange);
        assert!(run.moments.len() > 20, "{} moments", run.moments.len());
        let tally = Tally::default();
        for (number, whole) in run.moments.iter().enumerate() {
            let slots = slots(whole);
            for (path, bytes) in &slots {
                let mut damages: Vec<(String, Damage, bool)> = Vec::new();
                // Each moment has its own sample.
                let step = if number == 0 { 1 } else { 8 * 5 + 1 };
                damages.extend(
                    (number % 8..bytes.len() * 8)
                        .step_by(step)
                        .map(|bit| (format!("bit {bit}"), Damage::flip(bytes, bit), true)),
                );
                let step = if number == 0 { 1 } else { 7 };
                damages.extend(
                    (0..bytes.len())
                        .step_by(step)
                        .map(|length| (format!("cut to {length}"), Damage::Cut(length), false)),
                );
                for at in (0..bytes.len()).step_by(SECTOR_BYTES) {
                    let sectors = Damage::of_sector(bytes, at, &[vec![0; bytes.len()]]);
                    damages.extend(
                        sectors
                            .into_iter()
                            .map(|(verb, damage)| (format!("sector at {at} {verb}"), damage, false)),
                    );
                }
                let others = slots.iter().filter(|(other, _)| other != path);
                damages.extend(others.map(|(other, bytes)| {
                    (format!("{} in its place", other.display()), Damage::Replace(bytes.clone()), false)
                }));
                damages.push(("removed".into(), Damage::Remove, false));
                on_two_threads(damages.len(), |index| {
                    let (what, damage, is_flip) = &damages[index];
                    let what =
                        || format!("exchange {can_exchange}, moment {number}, {}: {what}", path.display());
                    let sim = done(whole, path, damage, index % 2 == 0);
                    let kept = damage.of(bytes).filter(|_| *is_flip);
                    judge(&run, &sim, kept.as_deref(), &tally, &what);
                });
            }
        }
        println!("exchange {can_exchange}: {tally:?}");
        let (whole, lost) = (tally.whole.into_inner(), tally.lost.into_inner());
        assert!(whole > 5000 && lost > 5000, "{whole} whole, {lost} lost");
    }
}

/// As above, for what is no slot: the directory of the process that is gone, its lock, and strangers.
#[test]
fn damaged_directories_of_slots() {
    let run = run(true);
    for (number, whole) in run.moments.iter().enumerate() {
        let dirs: Vec<PathBuf> = (whole.tree(STORE).into_iter())
            .filter(|(path, node)| path.parent() == Some(Path::new("stage")) && node.body == NodeBody::Dir)
            .map(|(path, _)| Path::new(STORE).join(path))
            .collect();
        for dir in dirs {
            let tally = Tally::default();
            let attempts: [(&str, &dyn Fn(&Sim)); 6] = [
                ("removed", &|sim| sim.remove(&dir)),
                ("without its lock", &|sim| sim.remove(dir.join("lock"))),
                ("with a lock of garbage", &|sim| sim.write_file(dir.join("lock"), b"garbage")),
                ("with a stranger", &|sim| sim.write_file(dir.join("ff"), b"stranger")),
                ("with a stranger like recovery's", &|sim| sim.write_file(dir.join("r0"), b"stranger")),
                ("beside a stranger", &|sim| sim.write_file(dir.with_file_name("stranger/1"), b"stranger")),
            ];
            for (what, attempt) in attempts {
                let sim = whole.kill();
                attempt(&sim);
                judge(&run, &sim, None, &tally, &|| format!("moment {number}, {}: {what}", dir.display()));
            }
            assert!(tally.whole.into_inner() >= 5, "only one of them took contents away");
        }
    }
}
