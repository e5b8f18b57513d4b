//! A disk that fills up after the commit point: nothing is taken back. The ballast makes room; if that is not enough, the
//! caller is told, and the next open finishes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use atomtree::vfs::faults::{Call, Fault, Faults, Rule, Verb, fail_nothing};
use atomtree::vfs::os::Os;
use atomtree::vfs::sim::Sim;
use atomtree::{Error, ErrorKind, Receipt, Store};
use atomtree_tests::filler::Filler;
use atomtree_tests::volume::Kind;

use crate::basics::{commit, kind_of, manual, tree};

const ENOSPC: i32 = 28;

/// Calls that can meet a full disk after the commit point. The log is not among them: its segments are allocated.
fn takes_room(call: &Call) -> bool {
    use Verb as V;
    let is_log = is_segment(call);
    !is_log
        && matches!(
            call.verb,
            V::CreateFile
                | V::CreateDir
                | V::CreateSymlink
                | V::Rename
                | V::RenameOver
                | V::Exchange
                | V::Link
                | V::WriteAt
                | V::Allocate
                | V::CopyFrom
                | V::SetXattr
        )
}

fn is_segment(call: &Call) -> bool {
    call.name.as_ref().is_some_and(|name| Path::new(name).extension().is_some_and(|end| end == "seg"))
}

/// Fails calls that take room from the `first` one after the log's sync on, until the ballast is given up; or for ever.
/// Counts them.
fn full_after_sync(first: u64, is_relieved: bool) -> (Rule, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let (is_durable, has_room) = (AtomicBool::new(false), AtomicBool::new(false));
    let counted = Arc::clone(&count);
    let rule = move |call: &Call| {
        if call.verb == Verb::SyncData && is_segment(call) {
            is_durable.store(true, Ordering::SeqCst);
        }
        if call.verb == Verb::SetLen && call.name.as_ref().is_some_and(|name| name == "ballast") {
            has_room.store(is_relieved, Ordering::SeqCst);
        }
        if !is_durable.load(Ordering::SeqCst) || !takes_room(call) {
            return None;
        }
        let number = counted.fetch_add(1, Ordering::SeqCst);
        (number >= first && !has_room.load(Ordering::SeqCst)).then_some(Fault::Error(ENOSPC))
    };
    (Arc::new(rule), count)
}

fn change(store: &Store) -> Result<Receipt, Error> {
    commit(store, |tx| {
        tx.write("replaced", "new")?;
        tx.write("made/deep/er/file", "new")?;
        tx.write("created", "new")?;
        tx.rename("from", "to")?;
        tx.remove("removed")
    })
}

fn lay_out(sim: &Sim) {
    sim.create_dir("/tree");
    for name in ["replaced", "from", "removed"] {
        sim.write_file(format!("/tree/{name}"), b"old");
    }
}

fn is_new(sim: &Sim) -> bool {
    let read = |name: &str| sim.read_file(format!("/tree/{name}"));
    let new = Some(b"new".to_vec());
    ["replaced", "made/deep/er/file", "created"].iter().all(|name| read(name) == new)
        && read("to") == Some(b"old".to_vec())
        && read("from").is_none()
        && read("removed").is_none()
}

/// Goal: at whichever call of apply the disk turns out to be full, the ballast lets it finish. Method: on a simulated
/// machine, with names that can be exchanged and that can't, every such call in turn fails until the ballast is gone.
#[test]
fn a_disk_that_fills_after_the_commit_point_is_relieved_by_the_ballast() {
    for can_exchange in [true, false] {
        for first in 0.. {
            let sim = Sim::new(first);
            sim.set_exchange_supported(can_exchange);
            lay_out(&sim);
            let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
            let store = manual().vfs(Arc::new(faults.clone())).open("/tree").unwrap();
            let (rule, count) = full_after_sync(first, true);
            faults.set_rule(rule);
            let receipt = change(&store).unwrap_or_else(|error| panic!("call {first} of apply: {error}"));
            assert!(receipt.displaced().is_empty() && is_new(&sim), "call {first} of apply: {receipt:?}");
            faults.set_rule(fail_nothing());
            let ballast = sim.read_file("/tree/.atomtree/ballast").unwrap().len();
            let is_hit = count.load(Ordering::SeqCst) > first;
            assert_eq!(ballast == 0, is_hit, "call {first} of apply: the ballast has {ballast} bytes");
            // The next commit takes it back.
            commit(&store, |tx| tx.write("next", "x")).unwrap();
            assert!(!sim.read_file("/tree/.atomtree/ballast").unwrap().is_empty());
            store.close().unwrap();
            if !is_hit {
                assert!(first > 4, "apply made only {first} calls");
                break;
            }
        }
    }
}

/// Goal: where the ballast is not enough, the caller is told that the transaction is durable and not in place, the store
/// takes no more commits, and the next open that has room finishes it, also when others failed before. Method: as above,
/// with a disk that stays full for the commit and for two recoveries.
#[test]
fn a_disk_that_stays_full_after_the_commit_point_is_committed_not_applied_and_recovered() {
    for can_exchange in [true, false] {
        for first in 0.. {
            let sim = Sim::new(first);
            sim.set_exchange_supported(can_exchange);
            lay_out(&sim);
            let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
            let open = || manual().vfs(Arc::new(faults.clone())).open("/tree");
            let store = open().unwrap();
            let (rule, count) = full_after_sync(first, false);
            faults.set_rule(rule);
            let result = change(&store);
            if count.load(Ordering::SeqCst) <= first {
                result.unwrap();
                assert!(first > 4, "apply made only {first} calls");
                break;
            }
            let error = result.expect_err("nothing gave it room");
            assert_eq!(error.kind(), ErrorKind::CommittedNotApplied, "call {first} of apply: {error}");
            assert_eq!(kind_of(store.begin().map(drop)), ErrorKind::Poisoned, "call {first} of apply");
            drop(store);
            faults.set_rule(Arc::new(|call| takes_room(call).then_some(Fault::Error(ENOSPC))));
            for attempt in 0..2 {
                let result = open().map(drop);
                assert_eq!(kind_of(result), ErrorKind::NoSpace, "call {first}, recovery {attempt}");
            }
            faults.set_rule(fail_nothing());
            let store = open().unwrap_or_else(|error| panic!("call {first} of apply: {error}"));
            let report = store.recovery();
            assert_eq!(
                (report.redone, report.quarantined.len()),
                (1, 0),
                "call {first} of apply: {report:?}"
            );
            assert!(is_new(&sim), "call {first} of apply");
            commit(&store, |tx| tx.write("next", "x")).unwrap();
            store.close().unwrap();
        }
    }
}

/// Goal: the same on real file systems. Method: the disk is filled to the last page in the instant after the log was
/// synced, by a rule that watches the calls. Some directories fit into the ballast; thousands don't.
#[test]
fn real_disks_that_fill_in_the_instant_after_the_commit_point() {
    for (kind, dirs) in Kind::ALL.into_iter().flat_map(|kind| [(kind, 20), (kind, 2000)]) {
        let Some(volume) = super::volume(kind, &[], "") else { continue };
        let root = volume.path().join("tree");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("replaced"), "old").unwrap();
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        // One segment takes the whole transaction, so that the first sync of one is the commit point.
        let options = || manual().segment_bytes(4 << 20).log_bytes_max(12 << 20);
        let store = options().vfs(Arc::new(faults.clone())).open(&root).unwrap();
        let filler = Arc::new(Mutex::new(None));
        let (path, taken) = (volume.path().join("filler"), Arc::clone(&filler));
        let is_durable = AtomicBool::new(false);
        faults.set_rule(Arc::new(move |call| {
            let mut taken = taken.lock().unwrap();
            if is_durable.load(Ordering::SeqCst) && taken.is_none() {
                *taken = Some(Filler::take_all(&path).unwrap());
            }
            is_durable.fetch_or(call.verb == Verb::SyncData && is_segment(call), Ordering::SeqCst);
            None
        }));
        let result = commit(&store, |tx| {
            tx.write("replaced", "new")?;
            (0..dirs).try_for_each(|n| tx.write(format!("made/{n:0>200}/{n}"), format!("{n}")))
        });
        let label = format!("{}, {dirs} directories", kind.name());
        faults.set_rule(fail_nothing());
        assert!(filler.lock().unwrap().take().is_some(), "{label}: the log was never synced");
        match result {
            Ok(_) => {
                println!("{label}: applied");
                commit(&store, |tx| tx.write("next", "x")).unwrap();
                store.close().unwrap();
            }
            Err(error) => {
                println!("{label}: {error}");
                assert_eq!(error.kind(), ErrorKind::CommittedNotApplied, "{label}: {error}");
                assert!(dirs > 20, "{label} do not fit into the ballast: {error}");
                assert_eq!(kind_of(store.begin().map(drop)), ErrorKind::Poisoned, "{label}");
                drop(store);
                let store = options().open(&root).unwrap_or_else(|error| panic!("{label}: {error}"));
                assert_eq!(store.recovery().redone, 1, "{label}");
                assert!(store.recovery().quarantined.is_empty(), "{label}: {:?}", store.recovery());
                store.close().unwrap();
            }
        }
        let tree = tree(&root);
        assert_eq!(tree[Path::new("replaced")].content, b"new", "{label}");
        for n in 0..dirs {
            let content = &tree[&Path::new("made").join(format!("{n:0>200}/{n}"))].content;
            assert_eq!(*content, format!("{n}").into_bytes(), "{label}");
        }
    }
}

/// Goal: where overwriting an allocated segment takes room, as on btrfs, a full disk is no failed sync: what did not reach
/// the log is refused, and the store goes on once there is room. Method: writes to the next segment fail for a while.
#[test]
fn a_log_that_finds_no_room_for_its_next_segment_refuses_and_goes_on() {
    let sim = Sim::new(1);
    lay_out(&sim);
    let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
    let store = manual().vfs(Arc::new(faults.clone())).open("/tree").unwrap();
    faults.set_rule(Arc::new(|call| {
        let is_next = call.name.as_ref().is_some_and(|name| name == "0001.seg");
        (is_next && call.verb == Verb::WriteAt).then_some(Fault::Error(ENOSPC))
    }));
    let fill = |n: u8| commit(&store, |tx| tx.write("filling", vec![n; 15_000]));
    let error = (0..20).find_map(|n| fill(n).err()).expect("a segment holds four of them");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    faults.set_rule(fail_nothing());
    fill(100).unwrap_or_else(|later| panic!("after {error}: {later}"));
    assert_eq!(sim.read_file("/tree/filling").unwrap(), [100; 15_000]);
    store.close().unwrap();
}
