//! Files that are patched inside their inode: alone, with crashes, and with others' edits of the same sectors.

use std::sync::atomic::Ordering;

use atomtree::vfs::faults::Verb;
use atomtree::vfs::sim::Sim;
use atomtree::{Error, Transaction};

use super::{SETTINGS, bytes, dir, file, of};
use crate::crash::Crash;
use crate::history::{Operation as Op, Settings, Tree};
use crate::workload::{Act, Workload};

/// What another program writes: a sector.
const THEIRS: &[u8] = &[99; 512];

pub(super) fn all() -> Vec<Workload> {
    fn asks(tx: &mut Transaction) -> Result<(), Error> {
        tx.patch_in_place("b", 10, bytes(20))?;
        tx.patch_in_place("b", 500, bytes(90))?;
        tx.metadata("b")?;
        assert_eq!(tx.read("b")?.len(), 9000);
        let before = tx.savepoint();
        tx.patch_in_place("dir/x", 0, bytes(9))?;
        tx.exists("dir/x")?;
        tx.return_to(&before)
    }
    fn asked(tree: &mut Tree) {
        Op::PatchInPlace("b", 10, bytes(20)).perform_on(tree);
        Op::PatchInPlace("b", 500, bytes(90)).perform_on(tree);
    }
    fn touched_unchanged(sim: &Sim) {
        let b = sim.read_file("/tree/b").expect("it stands");
        sim.write_file("/tree/b", &b);
    }
    let initial = [
        ("b", file(9000)),
        ("dir", dir()),
        ("dir/x", file(1500)),
        ("dir/y", file(600)),
        ("dir/z", file(700)),
        ("new", dir()),
        ("new/w", file(800)),
        ("fill", file(900)),
    ];
    let first = vec![
        Op::PatchInPlace("b", 700, bytes(900)),
        Op::PatchInPlace("dir/x", 1000, bytes(500)),
        Op::PatchInPlace("b", 5000, bytes(10)),
        Op::Write("a", bytes(40)),
    ];
    let many: Vec<Op> = ["b", "dir/x", "dir/y", "dir/z", "new/w", "fill"]
        .map(|path| Op::PatchInPlace(path, 100, bytes(300)))
        .to_vec();
    let moves = vec![Op::Rename("dir", "moved"), Op::PatchInPlace("moved/x", 3, bytes(30))];
    let whole = vec![
        Act::Commit(first.clone()),
        Act::Commit(first.clone()),
        Act::Wait,
        Act::Transact(asks, asked),
        Act::Commit(many.clone()),
        Act::Look,
        Act::Checkpoint,
        Act::Submit(first.clone()),
        Act::Commit(vec![Op::Write("b", bytes(9100))]),
        Act::Reopen,
        Act::Commit(moves),
    ];
    let settled = Settings { settled: true, ..SETTINGS };
    let pinned = Settings { cache_pinned: true, ..SETTINGS };
    let mut all = vec![
        of("patches in place", SETTINGS, &initial, whole.clone()),
        of("settled patches in place", settled, &initial, whole),
        // The file's times have moved since it was synced, and its bytes have not.
        of(
            "patches of what was written again",
            SETTINGS,
            &initial,
            vec![Act::Commit(first.clone()), Act::Wait],
        )
        .meddled(|sim, call, has_meddled| {
            if call.verb == Verb::NextHole {
                touched_unchanged(sim);
                has_meddled.store(true, Ordering::Relaxed);
            }
            None
        }),
    ];
    for settings in [SETTINGS, pinned] {
        for at in [3, 6, 8, 10, 11, 12, 13] {
            for crash in [Crash::Kill, Crash::Cut(at)] {
                let acts = vec![
                    Act::Halted(first.clone(), at),
                    Act::Crash(crash),
                    Act::Commit(many.clone()),
                    Act::Checkpoint,
                ];
                let name = format!("patches in place, pinned {}, halted at {at}", settings.cache_pinned);
                all.push(of(&name, settings, &initial, acts));
            }
        }
    }
    all.extend(theirs());
    all
}

/// Another program writes the sector that is patched, or puts a file of its own in the place of that one, once the process
/// is dead that patches.
fn theirs() -> Vec<Workload> {
    fn write(sim: &Sim) {
        sim.write_file("/tree/a", THEIRS);
    }
    fn replace(sim: &Sim) {
        sim.replace_file("/tree/a", THEIRS);
    }
    let initial = [("a", file(512)), ("b", file(300))];
    let patch = vec![Op::PatchInPlace("a", 0, bytes(512)), Op::Write("b", bytes(30))];
    let mut all = Vec::new();
    for (how, edit) in [("written", write as fn(&Sim)), ("replaced", replace)] {
        for at in 3..12 {
            for again in [None, Some(11), Some(13), Some(15), Some(17), Some(19)] {
                let mut acts = vec![Act::Halted(patch.clone(), at), Act::Outside(edit)];
                acts.extend(again.map(|again| Act::HaltedOpen(Crash::Kill, again)));
                acts.extend([Act::Crash(Crash::Kill), Act::Checkpoint]);
                let name = format!("a file {how} after a patch that halted at {at}, and opened {again:?}");
                let one = of(&name, SETTINGS, &initial, acts);
                all.push(Workload { theirs: Some(THEIRS), ..one }.unlike_others());
            }
        }
    }
    all
}
