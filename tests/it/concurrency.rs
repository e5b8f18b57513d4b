//! Many threads: everything that is acknowledged is true, and nobody who reads the tree meanwhile misses a name.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomtree::{Checkpoints, ErrorKind, Inspection, Options, RecoveryReport, TransactionId};

use crate::basics::{Random, commit, opened, small, tree};

/// Sets a flag when it goes, so that a panic ends the threads that wait for it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goal: commits of disjoint names by 1, 4, 16 and 64 threads all succeed, through small segments and background
/// checkpoints; receipts have distinct numbers, and the history tells the same story as the receipts. Method: each
/// thread has names of its own.
#[test]
fn disjoint_commits_all_succeed() {
    for (threads, commits_each) in [(1, 64), (4, 24), (16, 8), (64, 3)] {
        let options = small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(10));
        let (scratch, store) = opened(options);
        let root = scratch.path();
        let receipts = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (store, receipts) = (&store, &receipts);
                scope.spawn(move || {
                    for n in 0..commits_each {
                        let content = format!("{n}").repeat(1 + 700 * (n % 5));
                        let receipt = commit(store, |tx| {
                            tx.set_label(format!("{thread}-{n}"));
                            tx.write(format!("d{}/{thread}-a", thread % 3), content.clone())?;
                            tx.append(format!("{thread}-b"), format!("{n},"))
                        })
                        .unwrap();
                        assert!(receipt.displaced().is_empty());
                        let label = format!("{thread}-{n}");
                        assert!(receipts.lock().unwrap().insert(receipt.tx(), label).is_none());
                    }
                });
            }
        });
        let receipts = receipts.into_inner().unwrap();
        assert_eq!(receipts.len(), threads * commits_each);
        for thread in 0..threads {
            let appended = fs::read_to_string(root.join(format!("{thread}-b"))).unwrap();
            let expected: String = (0..commits_each).map(|n| format!("{n},")).collect();
            assert_eq!(appended, expected);
        }
        store.close().unwrap();
        let history = Inspection::open(root, &Options::new()).unwrap().log(10_000).unwrap();
        let history: BTreeMap<TransactionId, String> =
            history.into_iter().map(|past| (past.tx, past.label.unwrap())).collect();
        assert_eq!(history, receipts);
        assert_eq!(*small().open(root).unwrap().recovery(), RecoveryReport::default());
    }
}

/// Goal: commits of overlapping names are serial: each takes effect whole, on top of one that it saw. Method: threads
/// move tokens between few files in transactions of two; the number of tokens never changes, and every acknowledged
/// move is counted in a file of its own thread.
#[test]
fn overlapping_commits_are_serial() {
    for threads in [4, 16] {
        let options = small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(10));
        let (scratch, store) = opened(options);
        let root = scratch.path();
        let accounts = 6;
        commit(&store, |tx| (0..accounts).try_for_each(|a| tx.write(format!("account-{a}"), "100"))).unwrap();
        let seed = Random::from_environment().next();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let store = &store;
                scope.spawn(move || {
                    let mut choice = seed ^ thread;
                    let mut moved = 0;
                    for _ in 0..240 / threads {
                        choice = choice
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let (from, to) = ((choice >> 33) % accounts, (choice >> 43) % accounts);
                        let result = store.transact(|tx| {
                            let mut balance = |name: &str| -> Result<i64, atomtree::Error> {
                                Ok(String::from_utf8(tx.read(name)?).unwrap().parse().unwrap())
                            };
                            let (from, to) = (format!("account-{from}"), format!("account-{to}"));
                            if from == to {
                                return Ok(());
                            }
                            let (source, target) = (balance(&from)?, balance(&to)?);
                            tx.write(&from, (source - 1).to_string())?;
                            tx.write(&to, (target + 1).to_string())?;
                            tx.append(format!("moves-{thread}"), ".")
                        });
                        match result {
                            Ok(_) => moved += usize::from(from != to),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                        }
                    }
                    let counted = fs::read(root.join(format!("moves-{thread}"))).unwrap_or_default().len();
                    assert_eq!(counted, moved);
                });
            }
        });
        let total: i64 = (0..accounts)
            .map(|a| fs::read_to_string(root.join(format!("account-{a}"))).unwrap().parse::<i64>().unwrap())
            .sum();
        assert_eq!(total, 100 * accounts as i64);
        store.close().unwrap();
        assert_eq!(Inspection::open(root, &Options::new()).unwrap().status().unwrap().quarantined, 0);
    }
}

/// Goal: a reader never finds a name absent, empty or torn that always exists, and sees single files whole. Method: a
/// thread opens, reads and lists without pause while others replace the files by small and large contents.
#[test]
fn readers_never_miss_a_name() {
    let (scratch, store) = opened(small().settle_after(Duration::from_millis(5)));
    let root = scratch.path();
    let names = ["one", "two", "three"];
    let content = |n: usize, length: usize| format!("{n:09} ").repeat(length / 10);
    commit(&store, |tx| names.iter().try_for_each(|name| tx.write(name, content(0, 100)))).unwrap();
    let is_done = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (is_done, looks) = (&is_done, &looks);
                scope.spawn(move || {
                    while !is_done.load(Ordering::Relaxed) {
                        for name in names {
                            let text = fs::read_to_string(root.join(name)).expect("the name always exists");
                            assert!(
                                text.len() >= 100 && text.len().is_multiple_of(10),
                                "{} bytes",
                                text.len()
                            );
                            let first = &text[..10];
                            assert!(
                                text.as_bytes().chunks(10).all(|chunk| chunk == first.as_bytes()),
                                "torn"
                            );
                        }
                        if reader == 0 {
                            let listed = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
                            let found = listed.filter(|name| names.iter().any(|n| name == n)).count();
                            assert_eq!(found, 3);
                        }
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let done = SetOnDrop(&is_done);
        let start = Instant::now();
        for n in 1.. {
            let length = if n % 20 == 0 { 2 << 20 } else { 100 + 10 * (n % 900) };
            commit(&store, |tx| {
                names.iter().try_for_each(|name| tx.write(name, content(n, length / 10 * 10)))
            })
            .unwrap();
            if start.elapsed() > Duration::from_secs(2) && n > 40
                || readers.iter().any(std::thread::ScopedJoinHandle::is_finished)
            {
                break;
            }
        }
        drop(done);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert!(looks.into_inner() > 100);
    store.close().unwrap();
}

/// Goal: checkpoints from several threads, from the background and from a full log go together with commits. Method:
/// all at once, then everything is there and settled.
#[test]
fn checkpoints_and_commits_go_together() {
    for checkpoints in [Checkpoints::Background, Checkpoints::Manual] {
        let options =
            small().log_bytes_max(256 << 10).settle_after(Duration::from_millis(1)).checkpoints(checkpoints);
        let (scratch, store) = opened(options);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..40 {
                        let content = vec![b'a' + n % 26; 8000];
                        commit(store, |tx| tx.write(format!("f{thread}"), content)).unwrap();
                        if thread == 0 && n % 4 == 0 {
                            store.checkpoint().unwrap();
                        }
                    }
                });
            }
            let store = &store;
            scope.spawn(move || (0..20).for_each(|_| store.checkpoint().unwrap()));
        });
        store.checkpoint().unwrap();
        let status = Inspection::open(scratch.path(), &Options::new()).unwrap().status().unwrap();
        assert_eq!((status.unsettled, status.last_tx.0), (0, 160));
        store.close().unwrap();
        assert!(tree(scratch.path()).values().all(|seen| seen.content == vec![b'a' + 39 % 26; 8000]));
    }
}

/// Goal: a background checkpoint settles commits without being asked, soon after `settle_after` and not before.
#[test]
fn the_background_settles_after_the_time_that_was_set() {
    let (scratch, store) = opened(small().settle_after(Duration::from_millis(300)));
    let inspection = Inspection::open(scratch.path(), &Options::new()).unwrap();
    let start = Instant::now();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    if start.elapsed() < Duration::from_millis(200) {
        assert_eq!(inspection.status().unwrap().unsettled, 1);
    }
    while inspection.status().unwrap().unsettled > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody settles");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    store.close().unwrap();
}

/// Goal: looking from outside while others commit never sees damage, and what it sees only grows. Method: status, log
/// and verify in a loop beside four committers and busy checkpoints.
#[test]
fn inspection_beside_committers_sees_no_damage() {
    let (scratch, store) = opened(small().log_bytes_max(256 << 10).settle_after(Duration::from_millis(1)));
    let inspection = Inspection::open(scratch.path(), &Options::new()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let committers: Vec<_> = (0..3)
            .map(|thread| {
                let (store, is_done) = (&store, &is_done);
                scope.spawn(move || {
                    while !is_done.load(Ordering::Relaxed) {
                        commit(store, |tx| tx.write(format!("f{thread}"), vec![b'x'; 5000])).unwrap();
                    }
                })
            })
            .collect();
        let _done = SetOnDrop(&is_done);
        let start = Instant::now();
        let mut last = 0;
        while start.elapsed() < Duration::from_secs(2)
            && !committers.iter().any(std::thread::ScopedJoinHandle::is_finished)
        {
            let status = inspection.status().unwrap();
            assert!(status.last_tx.0 >= last, "{} after {last}", status.last_tx);
            last = status.last_tx.0;
            let log = inspection.log(50).unwrap();
            assert!(log.windows(2).all(|pair| pair[0].tx > pair[1].tx), "each once, newest first");
            let verification = inspection.verify().unwrap();
            assert!(verification.problems.is_empty(), "{:?}", verification.problems);
        }
    });
    store.close().unwrap();
}
