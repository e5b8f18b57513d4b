//! Crashes before every operation on the storage, in commits, checkpoints, closes and recoveries, on a simulated
//! machine.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::num::NonZeroU8;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atomtree::vfs::faults::{Call, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Vfs};
use atomtree_tests::crash::{
    Case, Effort, Moment, NESTED_MAX, Watch, commit, explore, machine, open, quarantine_of, replay, tree_of,
};
use atomtree_tests::failing::{chain, fail_every_sync, lose_data_in_background};
use atomtree_tests::foreign::{Scenario, Tally};
use atomtree_tests::history::{Entry, History, Operation, Random, Step, Tree};
use atomtree_wal::{Log, LogOptions, Record};

/// How many histories each ordinary run explores; `ATOMTREE_CRASH_HISTORIES=first..end` explores others.
pub(crate) fn histories(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("ATOMTREE_CRASH_HISTORIES") else { return 0..count };
    let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Whether somebody asked for other histories than the ordinary ones.
fn is_chosen() -> bool {
    std::env::var_os("ATOMTREE_CRASH_HISTORIES").is_some()
}

/// Goal: whatever operation a crash hits, in a history or in recovery, each transaction is whole or absent, and there if
/// it was acknowledged. Method: generated histories, each moment killed and cut several ways, and recoveries of a sample
/// of those crashed in turn, three deep.
#[test]
fn every_crash_leaves_whole_transactions() {
    let effort = Effort { cuts: 4, nested_per_mille: [60, 2, 20] };
    let visited = explore_all(histories(90), effort);
    // A history that got shorter, or a hook that sees less than it did, shows here.
    assert!(is_chosen() || visited > 200_000, "only {visited} crash states were visited");
}

/// Explores the histories with these seeds, and prints and adds up what was visited.
pub(crate) fn explore_all(seeds: std::ops::Range<u64>, effort: Effort) -> u64 {
    let by_depth: [AtomicU64; NESTED_MAX + 1] = Default::default();
    let visited = sum_over(seeds, |seed| {
        let visited = explore(&History::generate(seed), effort);
        by_depth.iter().zip(visited).for_each(|(sum, count)| _ = sum.fetch_add(count, Ordering::Relaxed));
        visited.iter().sum()
    });
    println!("{visited} crash states visited, by crashes in a row {by_depth:?}");
    assert!(is_chosen() || by_depth.iter().all(|sum| sum.load(Ordering::Relaxed) > 0), "{by_depth:?}");
    visited
}

/// Adds up what `visit` says of each seed, on two threads.
pub(crate) fn sum_over(seeds: std::ops::Range<u64>, visit: impl Fn(u64) -> u64 + Sync) -> u64 {
    let (next, sum) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    sum.fetch_add(visit(seed), Ordering::Relaxed);
                }
            });
        }
    });
    sum.into_inner()
}

/// Goal: a failed sync is final: nothing is acknowledged after it, and opening again tells the truth. Method: each sync
/// of generated histories fails once, losing what it should have written; then each sync of the recovery.
#[test]
fn every_failed_sync_is_final() {
    let visited = sum_over(histories(25), |seed| fail_every_sync(&History::generate(seed)));
    println!("{visited} recoveries after failed syncs");
    assert!(is_chosen() || visited > 30_000, "only {visited} recoveries");
}

/// Goal: data that the disk silently never got is not believed because reads still show it. Method: all unsynced data is
/// lost at a random operation, the machine goes down soon after, and what recovery makes durable is cut again.
#[test]
fn data_lost_in_the_background_is_written_again() {
    let visited = sum_over(histories(150), |seed| lose_data_in_background(&History::generate(seed)));
    println!("{visited} recoveries after lost data");
}

/// Goal: no number of crashes wears the store out. Method: chains of crash, recovery and commits on one machine.
#[test]
fn a_long_chain_of_crashes_loses_nothing() {
    let recovered = sum_over(histories(12), |seed| chain(seed, 200));
    println!("{recovered} recoveries in chains");
}

/// Goal: a torn file is recognised although the log knows its content first without its bytes. Method: a file too large
/// for its original to be logged whole is renamed, which logs the same content whole under the new name; then the power
/// is cut.
#[test]
fn a_torn_file_is_recognised_by_bytes_logged_at_another_name() {
    let content = Random::new(1).bytes(9000);
    let (history, machine) = machine_with_a(&content);
    let store = open(Arc::new(machine.clone()), &history.settings).expect("a new store opens");
    commit(&store, &[Operation::Rename("a", "b")]).expect("nothing is in the way");
    let expected = Tree::from([("b".into(), Entry::file(content, 0o644))]);
    for seed in 0..100 {
        let cut = machine.power_cut(seed);
        let store = open(Arc::new(cut.clone()), &history.settings).expect("recovery succeeds");
        assert_eq!(store.recovery().superseded, [], "seed {seed}");
        assert_eq!(tree_of(&cut), expected, "seed {seed}");
    }
}

/// A history's machine with one file on it, at `a`.
fn machine_with_a(content: &[u8]) -> (History, Sim) {
    let mut history = History::generate(0);
    history.settings.inline_bytes_max = 1 << 20;
    history.initial = Tree::from([("a".into(), Entry::file(content.to_vec(), 0o644))]);
    let machine = machine(&history);
    (history, machine)
}

/// Goal: a closing frame that the disk never got is no hole once commits follow it. Method: each sync of a close fails,
/// for many positions of the log within a sector; the next open reads the frame from the cache, a commit follows, and
/// the power is cut.
#[test]
fn a_closing_frame_that_only_the_cache_had_is_no_hole() {
    for length in (0..600).step_by(8) {
        for failing in 0..3 {
            let (history, machine) = machine_with_a(b"");
            let syncs = Arc::new(AtomicU64::new(u64::MAX / 2));
            let counter = Arc::clone(&syncs);
            let fail = move |sim: &Sim, _: u64, call: &Call| {
                if call.verb == Verb::SyncData && counter.fetch_add(1, Ordering::Relaxed) == failing {
                    sim.fail_next_sync();
                }
                None
            };
            let watch = Watch::new(&machine, Some(Box::new(fail)));
            let store = open(watch.vfs(), &history.settings).expect("a new store opens");
            commit(&store, &[Operation::Write("a", vec![1; length])]).expect("nothing is in the way");
            store.checkpoint().expect("nothing fails yet");
            syncs.store(0, Ordering::Relaxed);
            let closed = store.close();
            assert_eq!(closed.is_err(), syncs.load(Ordering::Relaxed) > failing, "{length}: {closed:?}");
            let machine = machine.kill();
            let store = open(Arc::new(machine.clone()), &history.settings).expect("it opens again");
            commit(&store, &[Operation::Write("b", b"after".to_vec())]).expect("nothing is in the way");
            for seed in 0..4 {
                let cut = machine.power_cut(seed);
                if let Err(error) = open(Arc::new(cut.clone()), &history.settings) {
                    panic!("length {length}, sync {failing}, seed {seed}: {error}");
                }
                let found = cut.read_file("/tree/b");
                assert_eq!(
                    found.as_deref(),
                    Some(&b"after"[..]),
                    "length {length}, sync {failing}, seed {seed}"
                );
            }
        }
    }
}

/// Goal: a record outlives every file that it explains. Method: another program writes through an old descriptor to an
/// original that a commit replaced; the log goes on in another segment; a kill at each operation of the checkpoint
/// that then frees the first segment must leave the edit in the original's slot for recovery, or in quarantine.
#[test]
fn no_segment_is_freed_before_the_originals_it_explains_are_compared() {
    let edit = b"written through an old descriptor";
    let (history, machine) = machine_with_a(b"the original");
    machine.set_trace(true);
    let watch = Watch::new(&machine, None);
    let store = open(watch.vfs(), &history.settings).expect("a new store opens");
    let root = machine.another_process().open_root(Path::new("/tree")).expect("it is there");
    let old = root.open_file(OsStr::new("a"), Access::ReadWrite).expect("it is there");
    let fill = |number| {
        let fill = Random::new(number).bytes(15_000);
        commit(&store, &[Operation::Write("fill", fill)]).expect("nothing is in the way");
    };
    // The log grows to three segments, so that the next rotation needs no checkpoint.
    (0..4).for_each(fill);
    store.checkpoint().expect("nothing fails");
    commit(&store, &[Operation::Write("a", b"replaced".to_vec())]).expect("nothing is in the way");
    (4..7).for_each(fill);
    old.write_at(&[IoSlice::new(edit)], 0).expect("the original is still there");
    watch.start();
    store.checkpoint().expect("nothing fails");
    store.close().expect("nothing fails");
    let moments = watch.finish();
    assert!(moments.len() > 10, "{} moments", moments.len());
    for moment in moments {
        let killed = moment.machine.kill();
        killed.set_trace(true);
        open(Arc::new(killed.clone()), &history.settings).expect("recovery succeeds");
        let quarantine = quarantine_of(&killed);
        let kept = quarantine
            .values()
            .any(|entry| matches!(entry, Entry::File { content, .. } if content.starts_with(edit)));
        assert!(
            kept,
            "killed before operation {}: {quarantine:?}\n{}\n{}",
            moment.operation,
            machine.trace().join("\n"),
            killed.trace().join("\n")
        );
    }
}

/// Goal: what recovery took out of the tree is compared once more before it is unlinked. Method: recovery replaces a
/// file that a commit could not; right after, another program writes to it through a descriptor that it opened before.
#[test]
fn recovery_keeps_what_is_written_to_a_file_that_it_took_out() {
    let edit = b"written through an old descriptor";
    let (history, sim) = machine_with_a(b"the original");
    let watch = Watch::new(&sim, None);
    let store = open(watch.vfs(), &history.settings).expect("a new store opens");
    watch.start();
    commit(&store, &[Operation::Write("a", b"ours".to_vec())]).expect("nothing is in the way");
    let moments = watch.finish();
    let is_applied = |moment: &Moment| moment.machine.read_file("/tree/a").as_deref() == Some(b"ours");
    let applied = moments.iter().position(is_applied).expect("it was applied");
    let killed = moments[applied - 1].machine.kill();
    let root = killed.another_process().open_root(Path::new("/tree")).expect("it is there");
    let old = root.open_file(OsStr::new("a"), Access::ReadWrite).expect("it is there");
    let written = AtomicU64::new(0);
    let write = move |sim: &Sim, _: u64, _: &Call| {
        let is_out = sim.read_file("/tree/a").as_deref() == Some(b"ours");
        if is_out && written.fetch_add(1, Ordering::Relaxed) == 0 {
            old.write_at(&[IoSlice::new(edit)], 0).expect("the file is still there");
        }
        None
    };
    let watch = Watch::new(&killed, Some(Box::new(write)));
    let store = open(watch.vfs(), &history.settings).expect("recovery succeeds");
    assert_eq!(store.recovery().quarantined.len(), 1);
    let quarantine: Vec<Entry> = quarantine_of(&killed).into_values().collect();
    assert_eq!(quarantine, [Entry::file(edit.to_vec(), 0o644)]);
}

/// Goal: an edit that is newer than a change stays at its name, one that is older gives way, and both are reported.
/// Method: a file is edited after it was replaced, or before it could be; then everything is killed.
#[test]
fn a_newer_edit_stays_and_an_older_one_gives_way() {
    for is_newer in [true, false] {
        let (history, sim) = machine_with_a(b"the original");
        let watch = Watch::new(&sim, None);
        let store = open(watch.vfs(), &history.settings).expect("a new store opens");
        watch.start();
        commit(&store, &[Operation::Write("a", b"ours".to_vec())]).expect("nothing is in the way");
        let moments = watch.finish();
        let is_applied = |moment: &&Moment| moment.machine.read_file("/tree/a").as_deref() == Some(b"ours");
        let applied = moments.iter().position(|moment| is_applied(&moment)).expect("it was applied");
        let killed = moments[if is_newer { applied } else { applied - 1 }].machine.kill();
        killed.replace_file("/tree/a", b"theirs");
        let store = open(Arc::new(killed.clone()), &history.settings).expect("recovery succeeds");
        let (superseded, quarantined) = (&store.recovery().superseded, &store.recovery().quarantined);
        let (stays, gives_way) = if is_newer { ("theirs", "ours") } else { ("ours", "theirs") };
        assert_eq!((superseded.len(), quarantined.len()), if is_newer { (1, 0) } else { (0, 1) });
        assert_eq!(killed.read_file("/tree/a").as_deref(), Some(stays.as_bytes()));
        let quarantine: Vec<Entry> = quarantine_of(&killed).into_values().collect();
        assert_eq!(quarantine, [Entry::file(gives_way.into(), 0o644)]);
    }
}

/// Goal: what a torn end voided never comes back to life. Method: two records are appended; a cut keeps the second
/// alone; the log is opened, and the very bytes of the first are appended again. The second must not follow them.
#[test]
fn a_voided_frame_does_not_come_back_behind_the_same_bytes() {
    let id = *b"sixteen byte id.";
    let options = LogOptions { segment_bytes: 64 << 10, log_bytes_max: 256 << 10 };
    let kind = NonZeroU8::new(1).expect("one is not zero");
    let (first, second) = (vec![1; 2000], vec![2; 2000]);
    let machine = Sim::new(1);
    let dir = machine.open_root(Path::new("/")).expect("it is there");
    let mut log = Log::create(dir, id, options).expect("nothing fails");
    machine.open_root(Path::new("/")).and_then(|dir| dir.sync()).expect("nothing fails");
    log.append(&[Record { kind, parts: &[&first] }, Record { kind, parts: &[&second] }]).expect("it fits");
    let mut tried = 0;
    for seed in 0..400 {
        let cut = machine.power_cut(seed);
        let dir = cut.open_root(Path::new("/")).expect("it is there");
        let (mut log, scan) = Log::open(dir.clone(), id, options).expect("a torn end is no damage");
        if scan.frames().count() > 0 || !scan.tail().is_torn() {
            continue;
        }
        tried += 1;
        log.rewrite(&scan, scan.end_lsn().next()).expect("nothing fails");
        log.append(&[Record { kind, parts: &[&first] }]).expect("it fits");
        log.sync().expect("nothing fails");
        let scan = atomtree_wal::scan(&*dir, id).expect("nothing is damaged");
        assert_eq!(scan.frames().count(), 1, "seed {seed}");
    }
    assert!(tried > 10, "only {tried} cuts tore the end off");
}

/// Goal: a failure that a test printed can be looked at. Method: replays the case in `ATOMTREE_CRASH_CASE`, if there is
/// one, and prints its trace.
#[test]
fn the_case_in_the_environment_is_replayed() {
    let Ok(case) = std::env::var("ATOMTREE_CRASH_CASE") else { return };
    let case: Case = case.parse().expect("a case as a test printed it");
    match replay(&case) {
        Ok(text) => println!("{text}"),
        Err(text) => panic!("{text}"),
    }
}

/// Goal: what another program wrote and synced is never lost, whenever it did, and nothing else is disturbed. Method:
/// generated scenarios; one edit at a random operation of a commit, a checkpoint or a recovery, most of them with a
/// crash behind it. `ATOMTREE_FOREIGN_EDITS=first..end` runs others.
#[test]
fn edits_by_other_programs_are_kept() {
    let range = match std::env::var("ATOMTREE_FOREIGN_EDITS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
            first.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => 0..6000_u64,
    };
    let mut tally = Tally::default();
    for seed in range {
        match Scenario::judge(seed) {
            Ok(one) => {
                tally.conflicts += one.conflicts;
                tally.in_place += one.in_place;
                tally.quarantined += one.quarantined;
                tally.void += one.void;
            }
            Err(reason) => panic!("{reason}"),
        }
    }
    println!("{tally:?}");
}

/// Goal: a directory that moves out of another, and into the one that takes the other's place, does not go along with
/// the other. Method: every crash of that one transaction; a recovery that took the path for the place would lose it.
#[test]
fn what_moves_into_the_successor_of_its_directory_survives() {
    let mut history = History::generate(7);
    history.settings.can_exchange = true;
    history.initial = Tree::from([
        ("a".into(), Entry::Dir(0o755)),
        ("a/goes".into(), Entry::file(b"goes".to_vec(), 0o644)),
        ("a/x".into(), Entry::Dir(0o755)),
        ("a/x/stays".into(), Entry::file(b"stays".to_vec(), 0o644)),
    ]);
    history.prelude.clear();
    history.steps = vec![Step::Commit(vec![
        Operation::Rename("a/x", "c"),
        Operation::RemoveDirAll("a"),
        Operation::CreateDir("a"),
        Operation::Rename("c", "a/x"),
    ])];
    let visited = explore(&history, Effort { cuts: 6, nested_per_mille: [200, 10, 2] });
    assert!(visited.iter().sum::<u64>() > 300, "only {visited:?} crash states were visited");
}

/// Goal: as above, where the successor is made only because something moves into it. Method: as above.
#[test]
fn what_moves_back_to_where_its_directory_stood_survives() {
    let mut history = History::generate(7);
    history.settings.can_exchange = true;
    history.initial = Tree::from([
        ("e".into(), Entry::Dir(0o755)),
        ("d".into(), Entry::Dir(0o755)),
        ("d/in".into(), Entry::Dir(0o755)),
        ("d/in/y".into(), Entry::file(b"goes".to_vec(), 0o644)),
        ("d/in/deep".into(), Entry::Dir(0o755)),
        ("d/in/deep/s".into(), Entry::file(b"stays".to_vec(), 0o644)),
    ]);
    history.prelude.clear();
    history.steps = vec![Step::Commit(vec![
        Operation::Rename("d/in", "e/in"),
        Operation::Rename("e/in/deep", "d/in/deep"),
    ])];
    let visited = explore(&history, Effort { cuts: 6, nested_per_mille: [200, 10, 2] });
    assert!(visited.iter().sum::<u64>() > 300, "only {visited:?} crash states were visited");
}
