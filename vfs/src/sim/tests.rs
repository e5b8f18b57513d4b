//! Each sentence of the crash model, as a test that fails if the sentence is not true.
//!
//! Where something may happen, some seed has to show it; where something must not, no seed may. The last tests walk
//! random histories and check the rules that hold for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::crash::Random;
use super::{Node, NodeBody, Sim, errno};
use crate::{Access, Dir, File, Identity, Kind, Lock, Timestamp, Vfs};

const SEEDS: u64 = 300;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn root(sim: &Sim) -> Arc<dyn Dir> {
    sim.open_root(Path::new("/")).unwrap()
}

fn create(dir: &dyn Dir, file: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = dir.create_file(name(file), 0o644).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file
}

fn open(dir: &dyn Dir, file: &str) -> Arc<dyn File> {
    dir.open_file(name(file), Access::ReadWrite).unwrap()
}

fn write(file: &dyn File, bytes: &[u8], offset: u64) {
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

/// What the cuts of all seeds show, each distinct outcome once.
fn outcomes<T: Ord>(sim: &Sim, look: impl Fn(&Sim) -> T) -> BTreeSet<T> {
    (0..SEEDS).map(|seed| look(&sim.power_cut(seed))).collect()
}

fn names(sim: &Sim) -> Vec<String> {
    sim.tree("/").into_keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}

fn error_number<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn an_unsynced_create_survives_or_vanishes() {
    let sim = Sim::new(1);
    create(&*root(&sim), "a", b"a");
    assert_eq!(outcomes(&sim, names), BTreeSet::from([vec![], vec!["a".to_owned()]]));
}

#[test]
fn a_synced_directory_keeps_its_names() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    create(&*dir, "a", b"a");
    dir.create_dir(name("d"), 0o755).unwrap();
    dir.sync().unwrap();
    assert_eq!(outcomes(&sim, names), BTreeSet::from([vec!["a".to_owned(), "d".to_owned()]]));
    assert!(
        outcomes(&sim, |sim| sim.read_file("a")).contains(&Some(vec![])),
        "the name is kept, not the content"
    );
}

#[test]
fn a_file_sync_keeps_content_but_not_the_name() {
    let sim = Sim::new(1);
    create(&*root(&sim), "a", b"content").sync_all().unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a")), BTreeSet::from([None, Some(b"content".to_vec())]));

    sim.set_sync_keeps_names(true);
    open(&*root(&sim), "a").sync_data().unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a")), BTreeSet::from([Some(b"content".to_vec())]));
}

#[test]
fn a_new_directory_keeps_its_names_only_with_its_own() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    dir.create_dir(name("d"), 0o755).unwrap();
    let below = dir.open_dir(Path::new("d")).unwrap();
    create(&*below, "a", b"a");
    below.sync().unwrap();
    let both = vec!["d".to_owned(), "d/a".to_owned()];
    assert_eq!(outcomes(&sim, names), BTreeSet::from([vec![], both.clone()]));
    dir.sync().unwrap();
    assert_eq!(outcomes(&sim, names), BTreeSet::from([both]));
}

#[test]
fn names_in_a_directory_that_vanished_vanish() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    dir.create_dir(name("d"), 0o755).unwrap();
    let below = dir.open_dir(Path::new("d")).unwrap();
    create(&*below, "a", b"a");
    create(&*dir, "b", b"b");
    dir.sync_filesystem().unwrap();
    // Nothing that the root reaches may get lost by moving to where it doesn't.
    dir.create_dir(name("new"), 0o755).unwrap();
    let new = dir.open_dir(Path::new("new")).unwrap();
    dir.rename(name("b"), &*new, name("b")).unwrap();
    dir.rename(name("d"), &*new, name("d")).unwrap();
    let found = outcomes(&sim, |sim| {
        let found = names(sim);
        let has = |path: &str| found.contains(&path.to_owned());
        assert!(has("b") != has("new/b") && has("d/a") != has("new/d/a"), "{found:?}");
        found
    });
    assert!(found.iter().any(|names| !names.contains(&"new".to_owned())));
    assert!(found.iter().any(|names| names.contains(&"new/d/a".to_owned())));
    assert!(found.iter().any(|names| names.contains(&"new".to_owned()) && names.contains(&"d/a".to_owned())));
}

#[test]
fn syncing_a_moved_to_directory_keeps_what_was_moved() {
    let sim = Sim::new(1);
    sim.write_file("b", b"b");
    let dir = root(&sim);
    dir.create_dir(name("new"), 0o755).unwrap();
    let new = dir.open_dir(Path::new("new")).unwrap();
    dir.rename(name("b"), &*new, name("b")).unwrap();
    new.sync().unwrap();
    assert_eq!(outcomes(&sim, names), BTreeSet::from([vec!["new".to_owned(), "new/b".to_owned()]]));
}

#[test]
fn a_removed_directory_takes_nothing_with_it() {
    let sim = Sim::new(1);
    sim.write_file("d/a", b"a");
    let dir = root(&sim);
    let below = dir.open_dir(Path::new("d")).unwrap();
    below.rename(name("a"), &*dir, name("a")).unwrap();
    dir.remove_dir(name("d")).unwrap();
    let found = outcomes(&sim, |sim| {
        let found = names(sim);
        assert_eq!(found.iter().filter(|name| name.ends_with('a')).count(), 1, "{found:?}");
        found
    });
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(error_number(below.create_file(name("late"), 0o644)), Some(errno::ENOENT));
}

#[test]
fn an_exchange_happens_whole_or_not() {
    let sim = Sim::new(1);
    sim.write_file("d/a", b"one");
    sim.write_file("b", b"two");
    let dir = root(&sim);
    dir.exchange(name("b"), &*dir.open_dir(Path::new("d")).unwrap(), name("a")).unwrap();
    let found = outcomes(&sim, |sim| (sim.read_file("d/a").unwrap(), sim.read_file("b").unwrap()));
    let (one, two) = (b"one".to_vec(), b"two".to_vec());
    assert_eq!(found, BTreeSet::from([(one.clone(), two.clone()), (two, one)]));

    sim.set_exchange_supported(false);
    assert_eq!(error_number(dir.exchange(name("b"), &*dir, name("d"))), Some(errno::EINVAL));
}

#[test]
fn a_rename_across_directories_happens_whole_or_not() {
    let sim = Sim::new(1);
    sim.write_file("d/a", b"a");
    sim.write_file("e/x", b"x");
    let dir = root(&sim);
    let (from, to) = (dir.open_dir(Path::new("d")).unwrap(), dir.open_dir(Path::new("e")).unwrap());
    from.rename_over(name("a"), &*to, name("x")).unwrap();
    let found = outcomes(&sim, |sim| (sim.read_file("d/a"), sim.read_file("e/x")));
    let (a, x) = (Some(b"a".to_vec()), Some(b"x".to_vec()));
    assert_eq!(found, BTreeSet::from([(a.clone(), x), (None, a.clone())]));
    // Either directory's sync is enough for both ends.
    from.sync().unwrap();
    assert_eq!(
        outcomes(&sim, |sim| (sim.read_file("d/a"), sim.read_file("e/x"))),
        BTreeSet::from([(None, a)])
    );
}

#[test]
fn operations_on_one_name_keep_their_order_and_others_do_not() {
    let sim = Sim::new(1);
    sim.write_file("a", b"a");
    let dir = root(&sim);
    dir.rename(name("a"), &*dir, name("b")).unwrap();
    dir.rename(name("b"), &*dir, name("c")).unwrap();
    create(&*dir, "d", b"d");
    create(&*dir, "e", b"e");
    let found = outcomes(&sim, names);
    for names in &found {
        assert_eq!(
            names.iter().filter(|name| ["a", "b", "c"].contains(&name.as_str())).count(),
            1,
            "{names:?}"
        );
    }
    let has = |wanted: &str, not: &str| {
        found.iter().any(|names| names.contains(&wanted.to_owned()) && !names.contains(&not.to_owned()))
    };
    assert!(has("a", "c") && has("b", "c") && has("c", "a"), "each step is seen: {found:?}");
    assert!(has("d", "e") && has("e", "d"), "names without a relation come in any order: {found:?}");
}

#[test]
fn a_directory_sync_brings_along_earlier_operations_on_the_same_names() {
    let sim = Sim::new(1);
    sim.write_file("d/a", b"a");
    sim.write_file("e/x", b"x");
    let dir = root(&sim);
    let (from, to) = (dir.open_dir(Path::new("d")).unwrap(), dir.open_dir(Path::new("e")).unwrap());
    from.rename(name("a"), &*from, name("b")).unwrap();
    create(&*from, "unrelated", b"");
    from.rename(name("b"), &*to, name("b")).unwrap();
    to.sync().unwrap();
    let found = outcomes(&sim, names);
    let expected = ["d", "e", "e/b", "e/x"].map(str::to_owned).to_vec();
    let with_other = ["d", "d/unrelated", "e", "e/b", "e/x"].map(str::to_owned).to_vec();
    assert_eq!(found, BTreeSet::from([expected, with_other]));
}

#[test]
fn an_unlinked_file_may_come_back() {
    let sim = Sim::new(1);
    sim.write_file("a", b"a");
    let dir = root(&sim);
    let file = open(&*dir, "a");
    dir.remove_file(name("a")).unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a")), BTreeSet::from([None, Some(b"a".to_vec())]));
    dir.sync().unwrap();
    assert_eq!(outcomes(&sim, names), BTreeSet::from([vec![]]));
    assert_eq!(file.read_all(10).unwrap(), b"a", "an open file outlives its names");
    assert_eq!(file.metadata().unwrap().links, 0);
}

#[test]
fn unsynced_data_is_torn_by_sector_and_synced_data_never() {
    let sim = Sim::new(1);
    sim.write_file("a", &[b'o'; 4096]);
    let file = open(&*root(&sim), "a");
    write(&*file, &[b'n'; 2048], 100);
    let sectors = |sim: &Sim| {
        let content = sim.read_file("a").unwrap();
        assert_eq!(content.len(), 4096);
        content.chunks(512).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (old, new) = (vec![vec![b'o'; 512]; 8], sectors(&sim));
    let found = outcomes(&sim, sectors);
    for content in &found {
        for (index, sector) in content.iter().enumerate() {
            assert!(*sector == old[index] || *sector == new[index], "a sector in place is old or new");
        }
    }
    assert!(found.contains(&old) && found.contains(&new) && found.len() > 10);
    file.sync_data().unwrap();
    assert_eq!(outcomes(&sim, sectors), BTreeSet::from([new]));
}

#[test]
fn a_length_can_survive_without_data_and_the_reverse() {
    let sim = Sim::new(1);
    sim.write_file("a", b"");
    let file = open(&*root(&sim), "a");
    write(&*file, &[b'n'; 2000], 0);
    let found = outcomes(&sim, |sim| sim.read_file("a").unwrap());
    assert!(found.contains(&vec![b'n'; 2000]), "all of it");
    assert!(found.contains(&vec![]), "none of it");
    assert!(found.contains(&vec![0; 2000]), "the length alone");
    assert!(found.contains(&vec![b'n'; 512]), "the data up to a sector");
    assert!(found.iter().all(|content| content.iter().all(|byte| matches!(byte, 0 | b'n'))));
}

#[test]
fn rewriting_after_truncation_can_leave_zeros_and_any_length() {
    let sim = Sim::new(1);
    sim.write_file("a", &[b'o'; 1024]);
    sim.write_file_unsynced("a", &[b'n'; 1024]);
    let found = outcomes(&sim, |sim| sim.read_file("a").unwrap());
    for expected in [vec![b'o'; 1024], vec![b'n'; 1024], vec![0; 1024], vec![]] {
        assert!(found.contains(&expected));
    }
    sim.write_file("a", &[b's'; 1024]);
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a").unwrap()), BTreeSet::from([vec![b's'; 1024]]));
}

#[test]
fn growing_over_a_truncated_part_reads_zeros_before_and_after_a_sync() {
    let sim = Sim::new(1);
    sim.write_file("a", &[b'o'; 5000]);
    let file = open(&*root(&sim), "a");
    file.set_len(700).unwrap();
    file.set_len(4000).unwrap();
    write(&*file, b"end", 4500);
    let mut expected = vec![b'o'; 700];
    expected.resize(4500, 0);
    expected.extend_from_slice(b"end");
    assert_eq!(sim.read_file("a").unwrap(), expected);
    file.sync_data().unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a").unwrap()), BTreeSet::from([expected]));
}

#[test]
fn metadata_is_kept_by_sync_all_only_and_independent_of_data() {
    let sim = Sim::new(1);
    sim.write_file("a", b"old");
    let file = open(&*root(&sim), "a");
    write(&*file, b"new", 0);
    file.set_owner(5, 6).unwrap();
    file.set_mode(0o4700).unwrap();
    file.set_xattr(name("user.x"), b"1").unwrap();
    let look = |sim: &Sim| {
        let Node { body, mode, uid, gid, xattrs } = sim.tree("/").remove(Path::new("a")).unwrap();
        (matches!(body, NodeBody::File(bytes) if bytes == b"new"), (mode, uid, gid), xattrs.len())
    };
    let (old, new) = ((0o644, 1000, 1000), (0o4700, 5, 6));
    let found = outcomes(&sim, look);
    for data in [false, true] {
        for attributes in [old, new] {
            for xattrs in [0, 1] {
                assert!(found.contains(&(data, attributes, xattrs)), "{data} {attributes:?} {xattrs}");
            }
        }
    }
    assert_eq!(found.len(), 8);
    file.sync_data().unwrap();
    assert!(outcomes(&sim, look).contains(&(true, old, 0)));
    file.sync_all().unwrap();
    assert_eq!(outcomes(&sim, look), BTreeSet::from([(true, new, 1)]));
}

#[test]
fn syncing_the_file_system_keeps_everything() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    dir.create_dir(name("d"), 0o755).unwrap();
    let below = dir.open_dir(Path::new("d")).unwrap();
    create(&*below, "a", b"a").set_mode(0o600).unwrap();
    below.set_mode(0o700).unwrap();
    dir.create_symlink(name("s"), name("d/a")).unwrap();
    let before = sim.tree("/");
    assert!(sim.outcomes() > 0);
    below.sync_filesystem().unwrap();
    assert_eq!(sim.outcomes(), 0);
    for seed in 0..SEEDS {
        assert_eq!(sim.power_cut(seed).tree("/"), before);
    }
}

#[test]
fn a_failed_sync_loses_data_that_reads_still_show() {
    let sim = Sim::new(1);
    sim.write_file("a", b"old");
    let dir = root(&sim);
    let (file, other) = (open(&*dir, "a"), open(&*dir, "a"));
    write(&*file, b"new", 0);
    sim.fail_next_sync();
    assert_eq!(error_number(file.sync_data()), Some(errno::EIO));
    assert_eq!(sim.read_file("a").unwrap(), b"new");
    file.sync_data().unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a").unwrap()), BTreeSet::from([b"old".to_vec()]));

    // Whoever had the file or the file system open hears of it once; who opens it later, never.
    assert_eq!(error_number(other.sync_all()), Some(errno::EIO));
    other.sync_all().unwrap();
    assert_eq!(error_number(dir.sync_filesystem()), Some(errno::EIO));
    dir.sync_filesystem().unwrap();
    open(&*dir, "a").sync_data().unwrap();

    sim.set_cache_pinned(true);
    assert!(!file.drop_cache().unwrap());
    assert_eq!(sim.read_file("a").unwrap(), b"new");
    sim.set_cache_pinned(false);
    assert!(file.drop_cache().unwrap());
    assert_eq!(sim.read_file("a").unwrap(), b"old");
}

#[test]
fn dropping_the_cache_keeps_dirty_sectors() {
    let sim = Sim::new(1);
    sim.write_file("a", &[b'o'; 1024]);
    let file = open(&*root(&sim), "a");
    write(&*file, &[b'l'; 1024], 0);
    assert!(Sim::lose_unsynced_data(&*file));
    write(&*file, b"d", 512);
    assert!(!file.drop_cache().unwrap());
    let content = sim.read_file("a").unwrap();
    assert_eq!((content[0], content[512], content[513]), (b'o', b'd', b'l'));
    file.sync_data().unwrap();
    assert!(file.drop_cache().unwrap());
    assert_eq!(sim.read_file("a").unwrap(), content);
}

#[test]
fn a_failed_write_back_is_told_to_those_who_had_the_file_open() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    let file = create(&*dir, "a", b"a");
    sim.fail_write_back();
    open(&*dir, "a").sync_all().unwrap();
    assert_eq!(error_number(file.sync_all()), Some(errno::EIO));
    assert_eq!(error_number(dir.sync_filesystem()), Some(errno::EIO));
}

#[test]
fn names_of_a_failed_directory_sync_are_never_safe_again() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    create(&*dir, "a", b"");
    sim.fail_next_sync();
    assert_eq!(error_number(dir.sync()), Some(errno::EIO));
    dir.rename(name("a"), &*dir, name("b")).unwrap();
    create(&*dir, "c", b"");
    dir.sync().unwrap();
    let found = outcomes(&sim, names);
    let survived: Vec<&[String]> = found.iter().map(Vec::as_slice).collect();
    assert_eq!(
        survived,
        [&["a", "c"].map(str::to_owned)[..], &["b", "c"].map(str::to_owned), &["c".to_owned()]]
    );
}

#[test]
fn a_halt_comes_before_the_operation_and_stops_everything() {
    let sim = Sim::new(1);
    sim.write_file("a", b"old");
    sim.set_trace(true);
    let dir = root(&sim);
    let file = open(&*dir, "a");
    write(&*file, b"new", 0);
    assert_eq!(sim.operations(), 1, "opening is no operation");
    let before = sim.tree("/");
    sim.halt_at(2);
    assert!(!sim.is_halted());
    assert_eq!(file.read_all(10).unwrap(), b"new");
    assert_eq!(error_number(dir.rename(name("a"), &*dir, name("b"))), Some(errno::EIO));
    assert!(sim.is_halted());
    assert_eq!(error_number(file.sync_all()), Some(errno::EIO));
    assert_eq!(error_number(dir.list()), Some(errno::EIO));
    assert_eq!(sim.tree("/"), before);
    assert_eq!(sim.operations(), 1);
    assert_eq!(sim.trace(), ["1 write a, 3 bytes at 0"]);
    assert_eq!(outcomes(&sim, |sim| sim.read_file("a").unwrap() == b"new"), BTreeSet::from([false, true]));

    let after = sim.kill();
    let dir = root(&after);
    dir.rename(name("a"), &*dir, name("b")).unwrap();
    assert_eq!(after.operations(), 1);
}

#[test]
fn a_kill_keeps_the_cached_side_and_frees_locks() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    let file = create(&*dir, "a", b"a");
    let gone = create(&*dir, "gone", b"");
    dir.remove_file(name("gone")).unwrap();
    assert!(file.try_lock(Lock::Exclusive).unwrap());
    let process = sim.process().unwrap();
    let (before, open_choices) = (sim.tree("/"), sim.outcomes());
    let after = sim.kill();
    assert_eq!(after.tree("/"), before);
    assert_eq!(after.outcomes(), open_choices, "what was unsynced still is");
    assert_eq!(outcomes(&after, |sim| sim.read_file("a").is_some()), BTreeSet::from([false, true]));
    assert!(open(&*root(&after), "a").try_lock(Lock::Exclusive).unwrap());
    assert!(!open(&*dir, "a").try_lock(Lock::Shared).unwrap(), "this machine is as it was");
    assert!(sim.is_alive(&process) && !after.is_alive(&process));
    assert_eq!(gone.metadata().unwrap().links, 0);
    assert_ne!(sim.power_cut(0).process().unwrap().boot, process.boot);
}

#[test]
fn processes_of_one_machine_share_files_but_not_locks() {
    let sim = Sim::new(1);
    let other = sim.another_process();
    let file = create(&*root(&sim), "a", b"a");
    let theirs = open(&*root(&other), "a");
    assert!(file.try_lock(Lock::Shared).unwrap() && theirs.try_lock(Lock::Shared).unwrap());
    assert!(!theirs.try_lock(Lock::Exclusive).unwrap());
    file.unlock().unwrap();
    assert!(theirs.try_lock(Lock::Exclusive).unwrap() && !file.try_lock(Lock::Shared).unwrap());
    let process = other.process().unwrap();
    other.end_process();
    assert!(file.try_lock(Lock::Exclusive).unwrap() && !sim.is_alive(&process));
    assert_eq!(error_number(theirs.metadata()), Some(errno::EIO));
    drop(file);
    assert!(open(&*root(&sim), "a").try_lock(Lock::Exclusive).unwrap(), "a lock goes with its handle");
}

#[test]
fn a_cut_is_decided_by_its_seed_and_leaves_the_machine_alone() {
    let build = || {
        let sim = Sim::new(7);
        sim.write_file("a", &[b'o'; 3000]);
        sim.write_file_unsynced("a", &[b'n'; 9000]);
        sim.write_file_unsynced("d/b", &[b'b'; 9000]);
        sim
    };
    let (one, two) = (build(), build());
    let before = one.tree("/");
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let tree = one.power_cut(seed).tree("/");
        assert_eq!(tree, one.power_cut(seed).tree("/"), "seed {seed}");
        assert_eq!(tree, two.power_cut(seed).tree("/"), "seed {seed}");
        seen.insert(format!("{tree:?}"));
    }
    assert_eq!(one.tree("/"), before);
    assert!(seen.len() > 5);
    assert_eq!(one.random().unwrap(), two.random().unwrap());
    assert_ne!(one.random().unwrap(), Sim::new(8).random().unwrap());
}

#[test]
fn after_a_cut_the_cache_holds_what_the_disk_holds() {
    let sim = Sim::new(1);
    sim.write_file_unsynced("d/a", &[b'a'; 3000]);
    for seed in 0..SEEDS {
        let after = sim.power_cut(seed);
        assert_eq!(after.outcomes(), 0);
        assert_eq!(after.power_cut(seed + 1).tree("/"), after.tree("/"));
    }
}

#[test]
fn exhaustive_cuts_visit_each_subset_once() {
    let sim = Sim::new(1);
    sim.write_file("a", b"a");
    let dir = root(&sim);
    dir.rename(name("a"), &*dir, name("b")).unwrap();
    dir.rename(name("b"), &*dir, name("c")).unwrap();
    create(&*dir, "d", b"").set_mode(0o600).unwrap();
    assert_eq!(sim.outcomes(), 4);
    assert!(sim.power_cut_exhaustive(15).is_none());
    let found: Vec<_> = sim.power_cut_exhaustive(16).unwrap().iter().map(|sim| sim.tree("/")).collect();
    assert_eq!(found.len(), 3 * 2 * 2, "three ends of the renames, with or without d, old or new mode");
    let distinct: BTreeSet<String> = found.iter().map(|tree| format!("{tree:?}")).collect();
    assert_eq!(distinct.len(), 3 * 3, "the mode of a file that is not there makes no difference");
}

#[test]
fn a_reused_number_never_stands_for_two_inodes() {
    let sim = Sim::new(1);
    sim.set_inode_reuse(true);
    sim.write_file("a", b"a");
    let dir = root(&sim);
    let number = dir.metadata(name("a")).unwrap().inode;
    dir.remove_file(name("a")).unwrap();
    create(&*dir, "b", b"b");
    assert_eq!(dir.metadata(name("b")).unwrap().inode, number);
    let both = outcomes(&sim, names);
    assert_eq!(both, BTreeSet::from([vec![], vec!["a".to_owned()], vec!["b".to_owned()]]));
}

#[test]
fn space_runs_out_for_new_pages_and_names_but_not_for_old_ones() {
    let sim = Sim::new(1);
    sim.write_file("a", &[1; 8192]);
    let dir = root(&sim);
    let file = open(&*dir, "a");
    sim.set_space(Some(4096 + 300));
    create(&*dir, "b", b"");
    assert_eq!(error_number(dir.create_dir(name("c"), 0o755)), None);
    sim.set_space(Some(0));
    write(&*file, &[2; 8192], 0);
    dir.rename_over(name("b"), &*dir, name("a")).unwrap();
    assert_eq!(error_number(dir.rename(name("a"), &*dir, name("e"))), None, "a replaced name left room");
    assert_eq!(error_number(file.write_at(&[IoSlice::new(&[3])], 8192)), Some(errno::ENOSPC));
    assert_eq!(error_number(file.allocate(10_000)), Some(errno::ENOSPC));
    drop(file);
    assert_eq!(
        dir.file_system().unwrap().available_bytes,
        8192 + 256,
        "the last handle gives the pages back"
    );
    open(&*dir, "e").allocate(8192).unwrap();
    let after = sim.power_cut(0);
    assert!(after.read_file("e").is_none() || after.read_file("a").is_none());
}

#[test]
fn paths_never_lead_out_or_through_symlinks() {
    let sim = Sim::new(1);
    sim.write_file("d/e/a", b"a");
    sim.create_symlink("d/s", "/d/e");
    sim.create_other("d/pipe");
    let dir = sim.open_root(Path::new("/d")).unwrap();
    let open_dir = |path: &str| error_number(dir.open_dir(Path::new(path)));
    assert_eq!(open_dir(""), None);
    assert_eq!(open_dir("e/."), None);
    for (path, number) in [
        ("s", errno::ELOOP),
        ("s/x", errno::ELOOP),
        ("e/a", errno::ENOTDIR),
        ("e/..", errno::EXDEV),
        ("/d", errno::EXDEV),
        ("none", errno::ENOENT),
    ] {
        assert_eq!(open_dir(path), Some(number), "{path}");
    }
    let open_file = |file: &str| error_number(dir.open_file(name(file), Access::Read));
    assert_eq!(open_file("s"), Some(errno::ELOOP));
    assert_eq!(open_file("e"), Some(errno::EISDIR));
    assert_eq!(open_file("pipe"), Some(errno::EINVAL));
    assert_eq!(open_file("e/a"), Some(errno::EINVAL), "a name is one component");
    assert_eq!(open_file(".."), Some(errno::EINVAL));
    assert_eq!(open_file("none"), Some(errno::ENOENT));
    assert_eq!(error_number(dir.create_file(name("s"), 0o644)), Some(errno::EEXIST));
    assert_eq!(dir.read_link(name("s")).unwrap(), "/d/e");
    assert_eq!(error_number(dir.read_link(name("e"))), Some(errno::EINVAL));
    assert_eq!(dir.metadata(name("s")).unwrap().kind, Kind::Symlink);
    // A root is opened as the operating system does it.
    assert_eq!(sim.open_root(Path::new("/d/s/../s")).unwrap().list().unwrap()[0].name, "a");
    assert_eq!(error_number(sim.open_root(Path::new("/none"))), Some(errno::ENOENT));
}

#[test]
fn names_change_as_the_contract_says() {
    let sim = Sim::new(1);
    sim.write_file("d/a", b"a");
    sim.write_file("b", b"b");
    let dir = root(&sim);
    let below = dir.open_dir(Path::new("d")).unwrap();
    assert_eq!(error_number(dir.rename(name("b"), &*below, name("a"))), Some(errno::EEXIST));
    assert_eq!(error_number(dir.rename(name("none"), &*below, name("x"))), Some(errno::ENOENT));
    assert_eq!(error_number(dir.rename(name("d"), &*below, name("x"))), Some(errno::EINVAL));
    assert_eq!(error_number(dir.exchange(name("d"), &*below, name("a"))), Some(errno::EINVAL));
    assert_eq!(error_number(dir.exchange(name("b"), &*below, name("none"))), Some(errno::ENOENT));
    assert_eq!(error_number(dir.rename_over(name("b"), &*dir, name("d"))), Some(errno::EISDIR));
    assert_eq!(error_number(dir.rename_over(name("d"), &*dir, name("b"))), Some(errno::ENOTDIR));
    assert_eq!(error_number(dir.remove_file(name("d"))), Some(errno::EISDIR));
    assert_eq!(error_number(dir.remove_dir(name("b"))), Some(errno::ENOTDIR));
    assert_eq!(error_number(dir.remove_dir(name("d"))), Some(errno::ENOTEMPTY));
    assert_eq!(error_number(dir.link(name("d"), &*dir, name("x"))), Some(errno::EPERM));
    assert_eq!(error_number(dir.link(name("b"), &*below, name("a"))), Some(errno::EEXIST));
    dir.link(name("b"), &*below, name("b")).unwrap();
    assert_eq!(dir.metadata(name("b")).unwrap().links, 2);
    assert_eq!(dir.metadata(name("b")).unwrap().inode, below.metadata(name("b")).unwrap().inode);
    let reader = dir.open_file(name("b"), Access::Read).unwrap();
    assert_eq!(error_number(reader.write_at(&[IoSlice::new(b"x")], 0)), Some(errno::EBADF));
    assert_eq!(error_number(reader.remove_xattr(name("user.none"))), Some(errno::ENODATA));
}

#[test]
fn new_inodes_take_umask_identity_and_the_setgid_group() {
    let sim = Sim::new(1);
    sim.set_identity(Identity { uid: 1, gid: 2, umask: 0o027 });
    sim.create_dir("d");
    sim.set_owner("d", 8, 9);
    sim.set_mode("d", 0o2775);
    let below = root(&sim).open_dir(Path::new("d")).unwrap();
    let file = below.create_file(name("a"), 0o666).unwrap();
    below.create_dir(name("e"), 0o777).unwrap();
    let (a, e) = (file.metadata().unwrap(), below.metadata(name("e")).unwrap());
    assert_eq!((a.mode, a.uid, a.gid), (0o640, 1, 9));
    assert_eq!((e.mode, e.uid, e.gid), (0o2750, 1, 9));
    file.set_mode(0o6755).unwrap();
    file.set_owner(3, 4).unwrap();
    assert_eq!(file.metadata().unwrap().mode, 0o755, "a change of owner clears setuid and setgid");
}

#[test]
fn timestamps_tick_coarsely() {
    let sim = Sim::new(1);
    let file = create(&*root(&sim), "a", b"a");
    let first = file.metadata().unwrap();
    write(&*file, b"b", 0);
    assert_eq!(file.metadata().unwrap().modified, first.modified, "an edit within the same tick");
    assert!(sim.now() > first.modified && sim.now().0 - first.modified.0 < sim.timestamp_granularity_ns());
    sim.advance(sim.timestamp_granularity_ns());
    write(&*file, b"c", 0);
    assert!(file.metadata().unwrap().modified > first.modified);
    file.set_modified(Timestamp(5)).unwrap();
    assert_eq!(file.metadata().unwrap().modified, Timestamp(5));
    assert_eq!(first.born, file.metadata().unwrap().born);
}

#[test]
fn maps_read_what_is_there_and_say_when_it_is_gone() {
    let sim = Sim::new(1);
    let file = create(&*root(&sim), "a", b"hello");
    let map = file.map().unwrap();
    write(&*file, b"J", 0);
    assert_eq!(&*map.read(0..5).unwrap(), b"Jello");
    assert_eq!(map.read(0..6).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    file.set_len(2).unwrap();
    assert_eq!(map.read(0..5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn copies_are_independent_and_unsynced() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    let source = create(&*dir, "a", &[7; 10_000]);
    let copy = create(&*dir, "b", b"");
    dir.sync().unwrap();
    assert_eq!(copy.copy_from(&*source).unwrap(), 10_000);
    write(&*source, b"x", 0);
    assert_eq!(sim.read_file("b").unwrap(), [7; 10_000]);
    assert!(outcomes(&sim, |sim| sim.read_file("b").unwrap().len()).contains(&0));
    copy.sync_data().unwrap();
    assert_eq!(outcomes(&sim, |sim| sim.read_file("b").unwrap()), BTreeSet::from([vec![7; 10_000]]));
}

#[test]
fn outside_programs_sync_their_own_names_only() {
    let sim = Sim::new(1);
    let dir = root(&sim);
    create(&*dir, "ours", b"");
    sim.write_file("d/theirs", b"1");
    sim.replace_file("d/theirs", b"2");
    assert_eq!(sim.operations(), 2, "only our create and write count");
    let found = outcomes(&sim, |sim| (sim.read_file("ours").is_some(), sim.read_file("d/theirs")));
    assert_eq!(found, BTreeSet::from([(false, Some(b"2".to_vec())), (true, Some(b"2".to_vec()))]));
    sim.remove("d");
    assert_eq!(outcomes(&sim, |sim| sim.tree("d").len()), BTreeSet::from([0]));
    sim.write_file("d/theirs", b"3");
    sim.remove_unsynced("d/theirs");
    assert_eq!(outcomes(&sim, |sim| sim.tree("d").len()), BTreeSet::from([0, 1]));
}

/// Random content operations against a plain vector: reads always show it, a sync keeps it, and a cut shows nothing
/// that never was: each byte is one that was written at its place since the last sync, or zero.
#[test]
fn random_writes_read_back_and_syncs_keep_them() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut below = move |bound: u64| random.next() % bound;
        let sim = Sim::new(seed);
        let file = create(&*root(&sim), "a", b"");
        root(&sim).sync_filesystem().unwrap();
        let mut model: Vec<u8> = Vec::new();
        // For each offset a bit for each byte that it held since the last sync.
        let mut possible = vec![1_u64; 20_000];
        for step in 0..40_u8 {
            match below(8) {
                0..=3 => {
                    let (offset, length) = (below(12_000) as usize, below(5_000) as usize + 1);
                    write(&*file, &vec![step + 1; length], offset as u64);
                    model.resize(model.len().max(offset + length), 0);
                    model[offset..offset + length].fill(step + 1);
                }
                4 => {
                    let length = below(12_000);
                    file.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
                5 => {
                    let length = below(12_000);
                    file.allocate(length).unwrap();
                    model.resize(model.len().max(length as usize), 0);
                }
                6 => {
                    file.drop_cache().unwrap();
                }
                _ => {
                    file.sync_data().unwrap();
                    assert_eq!(sim.power_cut(u64::from(step)).read_file("a").unwrap(), model, "seed {seed}");
                    possible.fill(1);
                }
            }
            assert_eq!(sim.read_file("a").unwrap(), model, "seed {seed}, step {step}");
            for (bits, byte) in possible.iter_mut().zip(&model) {
                *bits |= 1 << byte;
            }
            let cut = sim.power_cut(below(u64::MAX)).read_file("a").unwrap();
            for (offset, byte) in cut.iter().enumerate() {
                assert!(
                    possible[offset] & (1 << byte) != 0,
                    "seed {seed}, step {step}, offset {offset}: {byte}"
                );
            }
        }
    }
}

/// Random changes of a small tree with random syncs. After each step, cuts of several seeds must leave a tree in which
/// every directory that was synced, with all its parents, and not changed since, lists what it listed; no synced
/// content is lost; and no two inodes share a number.
#[test]
fn random_histories_keep_what_was_synced() {
    const DIRS: [&str; 4] = ["", "d", "d/e", "f"];
    let mut cuts = 0;
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut below = move |bound: u64| (random.next() % bound) as usize;
        let sim = Sim::new(seed);
        sim.set_inode_reuse(seed % 2 == 0);
        let mut safe: BTreeMap<PathBuf, BTreeMap<PathBuf, Node>> = BTreeMap::new();
        for step in 0..60 {
            let dirs: Vec<Arc<dyn Dir>> =
                DIRS.iter().filter_map(|path| root(&sim).open_dir(Path::new(path)).ok()).collect();
            let (one, two) = (&dirs[below(dirs.len() as u64)], &dirs[below(dirs.len() as u64)]);
            let names = ["d", "e", "f", "x", "y"];
            let (from, to) = (name(names[below(5)]), name(names[below(5)]));
            let choice = below(12);
            // Most of these fail on most trees, which is fine.
            let changed = match choice {
                0 | 1 => one.create_dir(from, 0o755).is_ok(),
                2 | 3 => (one.create_file(from, 0o644))
                    .map(|file| {
                        write(&*file, format!("{seed} {step}").as_bytes(), 0);
                        file.sync_all().unwrap();
                    })
                    .is_ok(),
                4 => one.rename(from, &**two, to).is_ok(),
                5 => one.rename_over(from, &**two, to).is_ok(),
                6 => one.exchange(from, &**two, to).is_ok(),
                7 => one.link(from, &**two, to).is_ok(),
                8 => one.remove_file(from).is_ok(),
                9 => one.remove_dir(from).is_ok(),
                10 => {
                    one.sync().unwrap();
                    false
                }
                _ => {
                    // All directories on a path: what they list is safe until something changes.
                    let path = Path::new(DIRS[below(4)]);
                    let ancestors: Vec<&Path> = path.ancestors().collect();
                    for path in &ancestors {
                        if let Ok(dir) = root(&sim).open_dir(path) {
                            dir.sync().unwrap();
                        }
                    }
                    for path in ancestors {
                        let tree = sim.tree(path);
                        let here =
                            tree.into_iter().filter(|(name, _)| name.components().count() == 1).collect();
                        safe.insert(path.to_owned(), here);
                    }
                    false
                }
            };
            if changed {
                safe.clear();
            }
            for _ in 0..4 {
                cuts += 1;
                let cut = below(u64::MAX) as u64;
                let after = sim.power_cut(cut);
                for (path, expected) in &safe {
                    let mut found = after.tree(path);
                    found.retain(|name, _| name.components().count() == 1);
                    assert_eq!(found, *expected, "seed {seed}, step {step}, cut {cut}, {}", path.display());
                }
                check_tree(&after);
            }
        }
        let (nothing, all) = (sim.kill(), sim.tree("/"));
        root(&nothing).sync_filesystem().unwrap();
        assert_eq!(nothing.outcomes(), 0);
        assert_eq!(nothing.power_cut(0).tree("/"), all, "seed {seed}");
    }
    assert!(cuts > 10_000);
}

/// Nothing is empty that was written and synced before it had a name that could survive, and numbers are unique.
fn check_tree(sim: &Sim) {
    let mut numbers: BTreeMap<u64, (Kind, u64)> = BTreeMap::new();
    for (path, node) in sim.tree("/") {
        if let NodeBody::File(bytes) = &node.body {
            assert!(!bytes.is_empty(), "{}", path.display());
        }
        let dir = root(sim).open_dir(path.parent().unwrap()).unwrap();
        let metadata = dir.metadata(path.file_name().unwrap()).unwrap();
        let (kind, count) = numbers.entry(metadata.inode).or_insert((metadata.kind, 0));
        *count += 1;
        assert!(*kind == metadata.kind && *count <= metadata.links, "{}", path.display());
    }
}
