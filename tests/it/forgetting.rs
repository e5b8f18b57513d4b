//! Forgetting: a secret is scrubbed from the whole store, nothing is pruned that is needed, and the quarantine is bounded.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atomtree::{ErrorKind, Inspection, Keep};
use atomtree_tests::crash::{quarantine_of, tree_of};
use atomtree_tests::history::Tree;
use atomtree_vfs::faults::{Faults, Verb, fail_nothing};
use atomtree_vfs::sim::{NodeBody, Sim};

use crate::undo::{change, file, machine, options, options_on, tree, weigh};

const SECRET: &[u8] = b"correct horse battery staple";

/// The files of the store that hold the secret.
fn holding(sim: &Sim) -> Vec<PathBuf> {
    let holds = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|window| window == SECRET);
    let nodes = sim.tree("/tree/.atomtree").into_iter();
    nodes
        .filter(|(_, node)| matches!(&node.body, NodeBody::File(bytes) if holds(bytes)))
        .map(|(path, _)| path)
        .collect()
}

/// Goal: a scrub reaches everything in the store: all segments of the log, those that are free included, whichever process
/// filled them, and what guards have left. Other processes go on as before. Method: a secret in many commits of two
/// processes, and in the images of a guard; every file of the store is searched for it.
#[test]
fn a_scrub_reaches_the_whole_store() {
    let secret = SECRET.repeat(100);
    let sim = machine(&tree(&[("config", file(&secret)), ("b", file(b"0"))]));
    let store = options(&sim).open("/tree").unwrap();
    let beside = options(&sim.another_process()).open("/tree").unwrap();
    store.guard(["config"]).unwrap().keep().unwrap();
    for number in 0..60_u8 {
        let by = if number % 2 == 0 { &store } else { &beside };
        change(by, |tx| tx.write("config", [&secret[..], &[number]].concat()));
        if number % 7 == 0 {
            by.checkpoint().unwrap();
        }
    }
    change(&beside, |tx| tx.write("config", "clean"));
    store.checkpoint().unwrap();
    let found = holding(&sim);
    let count_in = |part: &str| found.iter().filter(|path| path.to_string_lossy().contains(part)).count();
    assert!(count_in("wal/") > 1 && count_in("images/") > 50, "{found:?}");
    assert_eq!(count_in("guards/cache/"), 1, "{found:?}");

    let scrubbed = store.scrub("config").unwrap();
    assert_eq!(holding(&sim), Vec::<PathBuf>::new());
    assert!(scrubbed.is_log_clean && scrubbed.log_bytes > 100_000, "{scrubbed:?}");
    assert_eq!((scrubbed.guard_images, scrubbed.copies.len()), (1, 0), "{scrubbed:?}");
    assert_eq!(store.scrub("config").unwrap().log_bytes, 60 << 10, "the segment with the last record alone");
    // The other process reads on behind it, and the log is whole.
    change(&beside, |tx| tx.write("b", "1"));
    change(&store, |tx| tx.write("b", "2"));
    let found = Inspection::open("/tree", &options(&sim)).unwrap().verify().unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    let killed = sim.kill();
    let again = options(&killed).open("/tree").unwrap();
    assert_eq!(killed.read_file("/tree/b").unwrap(), b"2");
    assert_eq!(killed.read_file("/tree/config").unwrap(), b"clean");
    again.close().unwrap();
    beside.close().unwrap();
    store.close().unwrap();
}

/// Goal: a scrub leaves alone what others need or have written, and says so. Method: the secret in the image of a guard
/// that is open, in quarantine, and there under another content that came from the same name.
#[test]
fn a_scrub_tells_what_it_leaves() {
    let secret = SECRET.repeat(100);
    let sim = machine(&tree(&[("config", file(&secret))]));
    let store = options(&sim).open("/tree").unwrap();
    let tx = change(&store, |tx| tx.write("config", "clean"));
    change(&store, |tx| tx.write("config", secret.clone()));
    store.checkpoint().unwrap();
    let guard = store.guard(["config"]).unwrap();
    sim.write_file("/tree/.atomtree/quarantine/found", &secret);
    let path = atomtree::TreePath::new("config").unwrap();
    let name = atomtree_recovery::apply::quarantine_name(atomtree::Lsn(9), &path, "");
    let displaced = format!("quarantine/{}", name.to_string_lossy());
    sim.write_file(format!("/tree/.atomtree/{displaced}"), b"an edit of it");
    let scrubbed = store.scrub("config").unwrap();
    let [image, by_name, by_content] = &scrubbed.copies[..] else { panic!("{scrubbed:?}") };
    assert!(image.starts_with("guards/cache/"), "{scrubbed:?}");
    assert_eq!((by_name, by_content.as_str()), (&displaced, "quarantine/found"));
    assert_eq!(holding(&sim).len(), 2);
    sim.write_file("/tree/config", b"edited");
    guard.roll_back().unwrap();
    assert!(sim.read_file("/tree/config").unwrap() == secret, "the guard had its image");
    assert_eq!(store.undo(tx).unwrap_err().kind(), ErrorKind::Conflict);
    store.close().unwrap();
}

/// Goal: a scrub that is cut short anywhere, by a kill or a power cut, costs nothing but what it was asked to remove, and
/// can be made again. Method: each of its operations; then a recovery, the tree, what can still be undone, and a second
/// scrub, after which the secret is nowhere.
#[test]
fn a_scrub_that_is_cut_short_is_made_again() {
    let secret = SECRET.repeat(10);
    let mut cut = 0;
    for operation in 1.. {
        let sim = machine(&tree(&[("config", file(&secret)), ("b", file(b"0"))]));
        let store = options(&sim).open("/tree").unwrap();
        store.guard(["config"]).unwrap().keep().unwrap();
        change(&store, |tx| tx.write("config", "clean"));
        let tx = change(&store, |tx| tx.write("b", "1"));
        sim.halt_at(operation);
        if store.scrub("config").is_ok() {
            break;
        }
        cut += 1;
        let seeds = [operation, 1000 + operation];
        for machine in [sim.kill(), sim.power_cut(seeds[0]), sim.power_cut(seeds[1])] {
            let context = format!("operation {operation}");
            let store = options(&machine).open("/tree").unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(machine.read_file("/tree/config").unwrap(), b"clean", "{context}");
            assert_eq!(quarantine_of(&machine), Tree::new(), "{context}");
            store.undo(tx).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(machine.read_file("/tree/b").unwrap(), b"0", "{context}");
            let scrubbed = store.scrub("config").unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(scrubbed.is_log_clean && scrubbed.copies.is_empty(), "{context}: {scrubbed:?}");
            store.close().unwrap();
            assert_eq!(holding(&machine), Vec::<PathBuf>::new(), "{context}");
        }
    }
    println!("{cut} operations of a scrub");
    assert!(cut > 30, "{cut}");
}

/// Goal: what an undo under way reads is not taken away, whichever process forgets history meanwhile. Method: at each call
/// of an undo another process prunes everything; the undo either was too late and changed nothing, or is done whole.
#[test]
fn nothing_is_pruned_that_is_being_undone() {
    let initial = tree(&[("a", file(&[1; 5000])), ("b", file(&[2; 5000]))]);
    let (mut done, mut late) = (0, 0);
    for operation in 0.. {
        let sim = machine(&initial);
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let store = options_on(Arc::new(faults.clone())).open("/tree").unwrap();
        let tx = change(&store, |tx| {
            tx.write("a", "new a")?;
            tx.remove("b")
        });
        store.checkpoint().unwrap();
        let after = tree_of(&sim);
        let other = sim.another_process();
        let forgetful = options(&other).lock_timeout(Duration::ZERO).open("/tree").unwrap();
        let (calls, pruned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let too_late = Arc::new(AtomicU64::new(0));
        let (seen, told, broken) = (calls.clone(), pruned.clone(), too_late.clone());
        let is_pinned = std::sync::atomic::AtomicBool::new(false);
        faults.set_rule(Arc::new(move |call| {
            // Where the undo holds a lock, that is in the way.
            if seen.fetch_add(1, Ordering::Relaxed) == operation
                && let Ok(found) = forgetful.prune(&Keep::new().bytes_max(0))
            {
                told.fetch_add(found.transactions, Ordering::Relaxed);
                if is_pinned.load(Ordering::Relaxed) {
                    broken.fetch_add(found.transactions, Ordering::Relaxed);
                }
            }
            let is_pin = call.verb == Verb::TryLock && call.name.as_ref().is_some_and(|name| name == "pins");
            is_pinned.fetch_or(is_pin, Ordering::Relaxed);
            None
        }));
        let undone = store.undo(tx);
        faults.set_rule(fail_nothing());
        assert_eq!(too_late.load(Ordering::Relaxed), 0, "call {operation}: pruned what was being undone");
        match undone {
            Ok(_) => {
                assert_eq!(tree_of(&sim), initial, "call {operation}");
                done += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "call {operation}: {error}");
                assert!(
                    pruned.load(Ordering::Relaxed) > 0,
                    "call {operation}: {error}, and nothing was pruned"
                );
                assert_eq!(tree_of(&sim), after, "call {operation}");
                late += 1;
            }
        }
        assert_eq!(quarantine_of(&sim), Tree::new());
        if calls.load(Ordering::Relaxed) <= operation {
            break;
        }
    }
    println!("{done} undone, {late} too late");
    assert!(done > 50 && late > 0, "{done} undone, {late} too late");
}

/// Goal: the quarantine is bounded, and nothing in it is lost for that. Method: foreign content, more of it than the
/// bound; commits are refused, with nothing changed, by every process, also by one that has just opened the store, and go
/// on once it was emptied.
#[test]
fn a_full_quarantine_takes_no_more_commits() {
    let sim = machine(&tree(&[("a", file(b"0"))]));
    let bounded = |sim: &Sim| options(sim).quarantine_bytes_max(Some(10_000)).open("/tree").unwrap();
    let store = bounded(&sim);
    sim.write_file("/tree/.atomtree/quarantine/one", &[1; 1000]);
    change(&store, |tx| tx.write("a", "1"));
    sim.write_file("/tree/.atomtree/quarantine/two", &[2; 1000]);
    let unbounded = options(&sim.another_process()).quarantine_bytes_max(None).open("/tree").unwrap();
    for (number, refusing) in [store, bounded(&sim.another_process())].into_iter().enumerate() {
        let before = tree_of(&sim);
        let error = refusing.transact(|tx| tx.write("a", "2")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("prune --quarantine"), "{error}");
        assert_eq!(error.path().unwrap().to_str(), Some(".atomtree/quarantine"));
        assert_eq!(tree_of(&sim), before);
        change(&unbounded, |tx| tx.write("a", format!("by another {number}")));
        refusing.checkpoint().unwrap();
        refusing.close().unwrap();
    }
    assert_eq!(weigh(&sim, "quarantine"), (2, 2000), "nothing was taken away");
    let store = bounded(&sim);
    assert_eq!(store.empty_quarantine().unwrap(), 2);
    change(&store, |tx| tx.write("a", "3"));
    store.close().unwrap();
    unbounded.close().unwrap();
}

/// Goal: a checkpoint that follows upon one of the same process does not list the history, which may be long; what others have
/// added counts all the same. Method: the calls that list a directory in each checkpoint of two processes, under a bound
/// that is looked at in vain and then holds.
#[test]
fn a_checkpoint_lists_the_history_only_behind_anothers() {
    let sim = machine(&tree(&[("a", file(b"0"))]));
    let lists = Arc::new(AtomicU64::new(0));
    let counting = |sim: &Sim| {
        let lists = lists.clone();
        Faults::new(
            Arc::new(sim.clone()),
            Arc::new(move |call| {
                lists.fetch_add(u64::from(call.verb == Verb::List), Ordering::Relaxed);
                None
            }),
        )
    };
    let open =
        |sim: &Sim| options_on(Arc::new(counting(sim))).history_transactions_max(8).open("/tree").unwrap();
    let (store, beside) = (open(&sim), open(&sim.another_process()));
    let mut number = 0_u64;
    let mut checkpoint = |by: &atomtree::Store| {
        number += 1;
        let name = if number.is_multiple_of(5) { "now and then" } else { "a" };
        change(by, |tx| tx.write(name, number.to_string()));
        let before = lists.load(Ordering::Relaxed);
        by.checkpoint().unwrap();
        let listed = lists.load(Ordering::Relaxed) - before;
        assert_eq!(store.history().unwrap().len() as u64, number.min(8), "checkpoint {number}");
        listed
    };
    let first = checkpoint(&store);
    let following = checkpoint(&store);
    assert!(following < first, "{following}, {first}");
    assert_eq!(checkpoint(&store), following);
    assert_eq!(checkpoint(&beside), first);
    assert_eq!(checkpoint(&store), first, "behind another's");
    assert_eq!(checkpoint(&store), following);
    for number in 0..12 {
        checkpoint(if number % 3 == 0 { &beside } else { &store });
    }
    // A scrub writes manifests anew, here one of several: what is known of them is nothing any more.
    assert_eq!(store.scrub("now and then").unwrap().transactions, 1);
    for _ in 0..3 {
        checkpoint(&store);
    }
}
