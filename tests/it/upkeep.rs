//! What a store does about the odds and ends of its life: copies, full disks, file systems that can do less, forks.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use atomtree::{Checkpoints, Error, ErrorKind, Options, Store};
use atomtree_vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree_vfs::sim::Sim;
use atomtree_vfs::{Access, Lock, Vfs};

fn machine() -> Sim {
    let sim = Sim::new(3);
    sim.create_dir("/tree");
    sim
}

fn options(vfs: &(impl Vfs + Clone)) -> Options {
    Options::new()
        .vfs(Arc::new(vfs.clone()))
        .segment_bytes(64 << 10)
        .log_bytes_max(1 << 20)
        .checkpoints(Checkpoints::Manual)
}

fn put(store: &Store, path: &str, content: &[u8]) -> Result<(), Error> {
    let mut tx = store.begin()?;
    tx.write(path, content)?;
    tx.commit().map(drop)
}

fn names(sim: &Sim, dir: &str) -> Vec<String> {
    let dir = sim.open_root(Path::new(dir)).unwrap();
    let mut names: Vec<_> =
        dir.list().unwrap().into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// A store that was copied asks once whether it was meant, and belongs to its new tree from then on.
#[test]
fn a_copied_store_is_adopted_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (original, copy) = (scratch.path().join("original"), scratch.path().join("copy"));
    std::fs::create_dir(&original).unwrap();
    let options = || Options::new().checkpoints(Checkpoints::Manual);
    let store = options().open(&original).unwrap();
    put(&store, "a", b"1").unwrap();
    let status = std::process::Command::new("cp").arg("-a").args([&original, &copy]).status().unwrap();
    assert!(status.success());
    drop(store);
    let refused = options().open(&copy).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("--adopt"), "{refused}");
    let store = options().adopt(true).open(&copy).unwrap();
    put(&store, "a", b"2").unwrap();
    store.close().unwrap();
    let inode = |root: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(root.join(".atomtree/store")).unwrap().ino()
    };
    let text = std::fs::read_to_string(copy.join(".atomtree/store")).unwrap();
    assert!(text.contains(&format!("inode {}\n", inode(&copy))), "{text}");
}

/// A segment that could not be made on a full disk leaves nothing behind.
#[test]
fn a_spare_that_does_not_fit_is_removed() {
    let sim = machine();
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let store = options(&faults).open("/tree").unwrap();
    let before = names(&sim, "/tree/.atomtree/wal");
    faults.set_rule(Arc::new(|call| {
        let is_segment = call
            .name
            .as_ref()
            .is_some_and(|name| Path::new(name).extension().is_some_and(|end| end == "seg"));
        (call.verb == Verb::Allocate && is_segment).then_some(Fault::Error(28))
    }));
    for _ in 0..3 {
        let mut tx = store.begin().unwrap();
        for file in 0..40 {
            tx.write(format!("{file}"), vec![1; 4000 + 250 * file]).unwrap();
        }
        let result = tx.commit();
        assert!(
            result.is_ok() || result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace),
            "{result:?}"
        );
        assert_eq!(names(&sim, "/tree/.atomtree/wal"), before);
    }
}

/// A log that cannot grow, because the disk is full, goes round in the segments that it has.
#[test]
fn commits_go_on_in_a_log_that_cannot_grow() {
    let sim = machine();
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let store = options(&faults).open("/tree").unwrap();
    faults.set_rule(Arc::new(|call| {
        let is_segment = call
            .name
            .as_ref()
            .is_some_and(|name| Path::new(name).extension().is_some_and(|end| end == "seg"));
        (call.verb == Verb::Allocate && is_segment).then_some(Fault::Error(28))
    }));
    for round in 0..100_u8 {
        put(&store, "a", &[round; 4000]).unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    assert_eq!(sim.read_file("/tree/a").unwrap(), [99; 4000]);
    store.close().unwrap();
}

/// A recovery that finds no space leaves no more behind each time it is tried, and succeeds once there is room.
#[test]
fn recovery_without_space_can_be_repeated() {
    let sim = machine();
    let store = options(&sim).segment_bytes(1 << 20).log_bytes_max(4 << 20).open("/tree").unwrap();
    for file in 0..4 {
        put(&store, &format!("{file}"), &vec![file; 200_000]).unwrap();
    }
    let after = sim.power_cut(3);
    after.set_space(Some(70_000));
    let mut left = Vec::new();
    for _ in 0..4 {
        let error = options(&after).open("/tree").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        left.push(names(&after, "/tree/.atomtree/stage").len());
    }
    assert!(left.iter().all(|count| *count == left[0]), "directories in stage/ after each: {left:?}");
    after.set_space(None);
    let store = options(&after).open("/tree").unwrap();
    assert_eq!(store.recovery().redone, 4);
    assert_eq!(after.read_file("/tree/3").unwrap(), vec![3; 200_000]);
    store.close().unwrap();
    assert!(names(&after, "/tree/.atomtree/stage").is_empty());
}

/// Goal: an original survives on a file system that cannot exchange names, also where links are refused, and is known for
/// ours. Method: a small one, known by its content, and a large one, known by its inode; then power cuts.
#[test]
fn originals_survive_where_names_can_be_neither_exchanged_nor_linked() {
    for (links, bytes) in [(true, 3), (false, 3), (true, 2 << 20), (false, 2 << 20)] {
        let sim = machine();
        sim.write_file("/tree/a", &vec![b'o'; bytes]);
        sim.set_exchange_supported(false);
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let store = options(&faults).open("/tree").unwrap();
        if !links {
            faults.set_rule(Arc::new(|call| (call.verb == Verb::Link).then_some(Fault::Error(1))));
        }
        put(&store, "a", b"new").unwrap();
        assert_eq!(sim.read_file("/tree/a").unwrap(), b"new");
        for seed in 0..40 {
            let cut = sim.power_cut(seed);
            let store = options(&cut).open("/tree").unwrap();
            assert_eq!(cut.read_file("/tree/a").unwrap(), b"new", "links {links}, seed {seed}");
            assert!(store.recovery().quarantined.is_empty(), "links {links}, seed {seed}");
        }
        store.close().unwrap();
        assert_eq!(names(&sim, "/tree/.atomtree/quarantine"), [""; 0], "links {links}, {bytes} bytes");
    }
}

/// A directory with a project quota of its own takes no inodes from elsewhere: found out before the commit point.
#[test]
fn a_directory_with_a_project_of_its_own_is_refused_before_the_commit_point() {
    use atomtree_tests::volume::{Kind, Volume, or_skip, skip};
    let Some(volume) = or_skip(Volume::create(Kind::Xfs, 0, false), "project quotas") else { return };
    let root = volume.path().join("tree");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    let flag = ["-c", "chproj 77", "-c", "chattr +P"];
    let set = std::process::Command::new("xfs_io").args(flag).arg(root.join("sub")).status();
    if !set.is_ok_and(|status| status.success()) {
        return skip("project quotas", "there is no xfs_io");
    }
    let store = Store::open(&root).unwrap();
    let error = put(&store, "sub/file", b"1").unwrap_err();
    assert_eq!(
        (error.kind(), error.path()),
        (ErrorKind::CrossDevice, Some(Path::new("sub/file"))),
        "{error}"
    );
    put(&store, "file", b"1").unwrap();
    store.close().unwrap();
}

/// Goal: recovery leaves alone the slots of a process that lives, and clears them once it is gone. Method: after a kill,
/// another process holds the lock of the directory that the killed one left in `stage/`.
#[test]
fn the_slots_of_a_living_process_are_left_alone() {
    let sim = machine();
    let store = options(&sim).open("/tree").unwrap();
    put(&store, "a", b"1").unwrap();
    put(&store, "a", b"2").unwrap();
    let killed = sim.kill();
    let stage = killed.another_process().open_root(Path::new("/tree/.atomtree/stage")).unwrap();
    let [left] = &stage.list().unwrap()[..] else { panic!("one process had the store open") };
    let slots = stage.open_dir(Path::new(&left.name)).unwrap();
    let lock = slots.open_file("lock".as_ref(), Access::ReadWrite).unwrap();
    assert!(lock.try_lock(Lock::Exclusive).unwrap());
    let originals = slots.list().unwrap().len();
    assert!(originals > 1, "it holds an original");
    // And what a commit of his that is under way has staged.
    slots.create_file("77".as_ref(), 0o600).unwrap();

    std::mem::forget(options(&killed).open("/tree").unwrap());
    let mut left: Vec<_> = slots.list().unwrap().into_iter().map(|entry| entry.name).collect();
    left.sort();
    assert_eq!(left, ["77", "lock"], "originals of what was settled are nobody's");

    let gone = killed.kill();
    options(&gone).open("/tree").unwrap().close().unwrap();
    let stage = gone.open_root(Path::new("/tree/.atomtree/stage")).unwrap();
    assert_eq!(stage.list().unwrap(), []);
}

/// Goal: a checkpoint that finds no space for the header of a segment, when its record needs another one or when one is
/// freed, can be made again, and commits go on once there is space. Method: many small commits, so that some checkpoint's
/// record is the one that does not fit; writing its header fails, or that of the segment before. There is never room for
/// a third.
#[test]
fn a_checkpoint_that_finds_no_space_for_a_header_is_made_later() {
    let sim = machine();
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let store = options(&faults).open("/tree").unwrap();
    let is_of_segment = |call: &Call, verb: Verb| {
        let name = call.name.as_ref().map(|name| name.to_string_lossy());
        call.verb == verb && name.is_some_and(|name| name.ends_with(".seg"))
    };
    let (mut put_off, mut hit) = (0, 0);
    for n in 0..6000_usize {
        let active = Arc::new(Mutex::new(None));
        let last = Arc::clone(&active);
        faults.set_rule(Arc::new(move |call| {
            if is_of_segment(call, Verb::WriteAt) {
                *last.lock().unwrap() = call.name.clone();
            }
            is_of_segment(call, Verb::Allocate).then_some(Fault::Error(28))
        }));
        put(&store, "a", &vec![1; n % 89]).unwrap_or_else(|error| panic!("commit {n}: {error}"));
        let active = active.lock().unwrap().clone();
        // Either the record's new segment is refused, or, once it has been taken, that the old one is free.
        let (has_rotated, is_hit) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
        let was_hit = Arc::clone(&is_hit);
        faults.set_rule(Arc::new(move |call| {
            if !is_of_segment(call, Verb::WriteAt) {
                return is_of_segment(call, Verb::Allocate).then_some(Fault::Error(28));
            }
            let is_new = call.name != active;
            let fails = if n % 2 == 0 { is_new } else { !is_new && has_rotated.load(Ordering::Relaxed) };
            has_rotated.fetch_or(is_new, Ordering::Relaxed);
            was_hit.fetch_or(fails, Ordering::Relaxed);
            fails.then_some(Fault::Error(28))
        }));
        if let Err(error) = store.checkpoint() {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            put_off += 1;
        }
        hit += u64::from(is_hit.load(Ordering::Relaxed));
    }
    faults.set_rule(fail_nothing());
    assert!(put_off > 0 && hit > put_off, "{put_off} of {hit} were put off");
    store.checkpoint().unwrap();
    store.close().unwrap();
    assert_eq!(options(&sim).open("/tree").unwrap().recovery(), &atomtree::RecoveryReport::default());
}

const FILES: u8 = 20;

/// Four transactions that each write all files, so many that a checkpoint settles each in a portion of its own.
fn commit_rounds(store: &Store) {
    for round in 0..4_u8 {
        let mut tx = store.begin().unwrap();
        (0..FILES).for_each(|number| tx.write(format!("f{number}"), [round, number]).unwrap());
        tx.commit().unwrap();
    }
}

/// Whether the tree is as that round left it.
fn shows(sim: &Sim, round: u8) -> bool {
    (0..FILES).all(|number| sim.read_file(format!("/tree/f{number}")).unwrap() == [round, number])
}

/// Goal: a checkpoint of many transactions gives the log back in portions, and one that is cut short anywhere, by a kill or a
/// power cut, costs nothing: neither content nor history. Method: each of its operations; then a recovery, the tree, the
/// history, and everything undone.
#[test]
fn a_checkpoint_in_portions_is_cut_short_anywhere() {
    let manifests = |sim: &Sim| {
        sim.tree("/tree/.atomtree/history")
            .keys()
            .filter(|path| path.to_string_lossy().ends_with(".manifest"))
            .count()
    };
    let mut cut = 0;
    for operation in 1.. {
        let sim = machine();
        let store = options(&sim).open("/tree").unwrap();
        commit_rounds(&store);
        assert_eq!(manifests(&sim), 0);
        sim.halt_at(operation);
        if store.checkpoint().is_ok() {
            assert_eq!(manifests(&sim), 4, "a portion is a segment's worth, which two transactions pass");
            break;
        }
        cut += 1;
        for machine in [sim.kill(), sim.power_cut(operation), sim.power_cut(1000 + operation)] {
            let context = format!("operation {operation}");
            let store = options(&machine).open("/tree").unwrap_or_else(|error| panic!("{context}: {error}"));
            let report = store.recovery();
            assert!(report.superseded.is_empty() && report.lost.is_empty(), "{context}: {report:?}");
            assert!(shows(&machine, 3), "{context}");
            assert!(names(&machine, "/tree/.atomtree/quarantine").is_empty(), "{context}");
            let history = store.history().unwrap();
            assert_eq!(history.len(), 4, "{context}");
            for (past, round) in history.iter().zip([2, 1, 0]) {
                store.undo(past.tx).unwrap_or_else(|error| panic!("{context}, {round}: {error}"));
                assert!(shows(&machine, round), "{context}");
            }
            store.close().unwrap();
        }
    }
    println!("{cut} operations of a checkpoint");
    assert!(cut > 4 * 20, "{cut}");
}

/// Goal: a process that reads the log between two portions of another's checkpoint knows what is settled and what is not.
/// Method: at each call of the checkpoint the other one commits, unless the lock is in its way, and then settles the rest;
/// the tree, the history, and everything undone by it.
#[test]
fn portions_of_a_checkpoint_are_taken_up_by_another_process() {
    let (mut went_on, mut call) = (0, 0);
    loop {
        call += 1;
        let sim = machine();
        let beside = options(&sim.another_process()).lock_timeout(Duration::ZERO).open("/tree").unwrap();
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let store = options(&faults).open("/tree").unwrap();
        commit_rounds(&store);
        let at = faults.calls() + call;
        let (shared, has_committed) = (beside.clone(), Arc::new(AtomicBool::new(false)));
        let committed = Arc::clone(&has_committed);
        faults.set_rule(Arc::new(move |made| {
            if made.number == at {
                let done = put(&shared, "beside", b"1");
                committed.store(done.is_ok(), Ordering::Relaxed);
            }
            None
        }));
        store.checkpoint().unwrap();
        let last = faults.calls();
        faults.set_rule(fail_nothing());
        let context = format!("call {call}");
        let is_committed = has_committed.load(Ordering::Relaxed);
        went_on += u64::from(is_committed);
        beside.checkpoint().unwrap_or_else(|error| panic!("{context}: {error}"));
        let history = beside.history().unwrap();
        assert_eq!(history.len(), 4 + usize::from(is_committed), "{context}");
        assert!(shows(&sim, 3), "{context}");
        let rounds = history.iter().skip(usize::from(is_committed));
        for (past, round) in rounds.zip([2, 1, 0]) {
            beside.undo(past.tx).unwrap_or_else(|error| panic!("{context}, {round}: {error}"));
            assert!(shows(&sim, round), "{context}");
        }
        put(&store, "last", b"1").unwrap_or_else(|error| panic!("{context}: {error}"));
        store.close().unwrap();
        beside.close().unwrap();
        assert!(names(&sim, "/tree/.atomtree/quarantine").is_empty(), "{context}");
        if last < at {
            break;
        }
    }
    println!("{went_on} of {call} times the other process committed");
    assert!(went_on > 100 && went_on < call, "{went_on} of {call}");
}

/// Goal: commits go on for as long as the log may grow while a checkpoint syncs the file system, which takes long where
/// others have written much. Method: a sync that does not return before the log has several segments more.
#[test]
fn commits_go_on_while_a_checkpoint_syncs() {
    #[derive(Default)]
    struct Sync {
        is_reached: bool,
        is_released: bool,
        has_given_up: bool,
    }
    let sim = machine();
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let sync = Arc::new((Mutex::new(Sync::default()), Condvar::new()));
    let store = options(&faults)
        .checkpoints(Checkpoints::Background)
        .settle_after(Duration::from_millis(1))
        .lock_timeout(Duration::from_secs(10))
        .open("/tree")
        .unwrap();
    let slow = sync.clone();
    faults.set_rule(Arc::new(move |call| {
        if call.verb == Verb::SyncFilesystem {
            let mut sync = slow.0.lock().unwrap();
            sync.is_reached = true;
            slow.1.notify_all();
            let longest = Duration::from_secs(20);
            let (mut sync, waited) =
                slow.1.wait_timeout_while(sync, longest, |sync| !sync.is_released).unwrap();
            sync.has_given_up |= waited.timed_out();
        }
        None
    }));
    put(&store, "a", b"0").unwrap();
    drop(sync.1.wait_while(sync.0.lock().unwrap(), |sync| !sync.is_reached).unwrap());
    // Some two thirds of what the log may take.
    let committed = (0..80_u32).try_for_each(|number| put(&store, "a", &number.to_le_bytes().repeat(1000)));
    let has_given_up = {
        let mut sync = sync.0.lock().unwrap();
        sync.is_released = true;
        sync.has_given_up
    };
    sync.1.notify_all();
    committed.unwrap();
    assert!(!has_given_up, "commits waited for the sync");
    store.close().unwrap();
}
