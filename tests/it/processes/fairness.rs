//! Whether a process with many threads leaves the others their turn, and one whose transactions come first those that meet
//! them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atomtree::ErrorKind;

use super::{PATIENCE, Worker, duration, end, given, go, number, prepared, ready};
use crate::basics::{child_root, commit, inspect, small};
use crate::kills::say;

const SINGLES: u64 = 4;
const THREADS: u64 = 16;

/// Commits to files of its own with as many threads as it is told to; says how often, and the longest that one took.
fn commit_until_stopped(root: &Path) {
    let (name, threads) = (given("NAME"), given("THREADS"));
    let store = small().open(root).unwrap();
    let wanted = ready();
    let (count, longest) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (store, wanted, count, longest) = (&store, &wanted, &count, &longest);
            scope.spawn(move || {
                while wanted.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let text = count.fetch_add(1, Ordering::Relaxed).to_string();
                    commit(store, |tx| tx.write(format!("{name}/{thread}"), text)).unwrap();
                    longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    say(&format!("count {} {}", count.into_inner(), longest.into_inner()));
    store.close().unwrap();
}

/// Goal: a process in which many threads wait does not starve others in which one does: a turn is a batch, and turns go
/// round. Method: one process with sixteen threads beside four with one, for a while; of the four each gets about as many
/// commits as another, and the sixteen no more than sixteen times as many, generously.
#[test]
fn many_threads_leave_others_their_turn() {
    if let Some(root) = child_root() {
        return commit_until_stopped(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = small().open(root).unwrap();
    commit(&store, |tx| (0..=SINGLES).try_for_each(|name| tx.create_dir(name.to_string()))).unwrap();
    store.close().unwrap();
    let mut workers: Vec<Worker> = (0..=SINGLES)
        .map(|name| {
            let settings = [("NAME", name), ("THREADS", if name == 0 { THREADS } else { 1 })];
            let test = "processes::fairness::many_threads_leave_others_their_turn";
            Worker::start(test, root, format!("process {name}"), &settings)
        })
        .collect();
    go(&mut workers);
    let begun = Instant::now();
    std::thread::sleep(duration(Duration::from_secs(3)));
    let said = end(workers).into_iter();
    let shares: Vec<(u64, Duration)> = said
        .map(|lines| {
            let words: Vec<&str> = lines[0].split(' ').collect();
            assert_eq!(words[0], "count", "{lines:#?}");
            (words[1].parse().unwrap(), Duration::from_micros(words[2].parse().unwrap()))
        })
        .collect();
    let time = begun.elapsed().as_secs_f64();
    let ((many, _), singles) = (shares[0], &shares[1..]);
    let [least, most] = [singles.iter().min(), singles.iter().max()].map(|one| one.unwrap().0);
    let batches = many / THREADS;
    println!(
        "in {time:.1} s: {many} commits of {THREADS} threads, about {batches} full batches; {least} to {most} of single threads; \
         the longest waits were {:.1?}",
        shares.iter().map(|(_, longest)| *longest).collect::<Vec<_>>()
    );
    // The kernel wakes all who wait for a lock, and who comes first gets it: on a busy machine that is far from even.
    let mean = singles.iter().map(|one| one.0).sum::<u64>() / SINGLES;
    assert!(50 * least >= mean, "one of the single threads starves: {shares:?}");
    assert!(batches <= 6 * mean, "the sixteen threads take all turns: {shares:?}");
    assert!(mean <= 12 * batches.max(1), "the sixteen threads starve: {shares:?}");
    assert!(inspect(root).verify().unwrap().problems.is_empty());
}

/// Goal: a process that comes, commits and leaves does not wait for a moment in which no other process commits: there may be
/// none. Method: four that commit all the time, with two threads each, and a store that is opened, committed to and closed
/// beside them, several times; how long that takes is measured.
#[test]
fn leaving_does_not_wait_for_others() {
    let test = "processes::fairness::leaving_does_not_wait_for_others";
    if let Some(root) = child_root() {
        return commit_until_stopped(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    small().open(root).unwrap().close().unwrap();
    let mut workers: Vec<Worker> = (0..SINGLES)
        .map(|name| Worker::start(test, root, format!("process {name}"), &[("NAME", name), ("THREADS", 2)]))
        .collect();
    go(&mut workers);
    let mut longest = Duration::ZERO;
    for round in 0..5 {
        let (sender, done) = std::sync::mpsc::channel();
        let (root, begun) = (root.to_owned(), Instant::now());
        std::thread::spawn(move || {
            let store = small().open(root).unwrap();
            commit(&store, |tx| tx.write("visitor", round.to_string())).unwrap();
            store.close().unwrap();
            sender.send(()).unwrap();
        });
        done.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("round {round}: it can't leave"));
        longest = longest.max(begun.elapsed());
    }
    println!("to come, commit and leave beside {SINGLES} busy processes took {longest:.2?} at most");
    end(workers);
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    assert!(inspect(root).verify().unwrap().problems.is_empty());
}

/// How many processes count one counter up, and how far each has to come.
const COUNTING: u64 = 8;
const FAR: u64 = 30;

/// Goal: of those that change one file by reading it first, none is starved by others that always come first: they meet, and
/// from then on take turns. Method: eight processes count one counter up, each beside a file of its own, until each has come
/// so far; by then none has come much further. Those that starve come one step further a second, or give up.
#[test]
fn who_meets_others_gets_its_turn() {
    let test = "processes::fairness::who_meets_others_gets_its_turn";
    if let Some(root) = child_root() {
        return count_until_stopped(&root);
    }
    let scratch = prepared(small());
    let root = scratch.path();
    let mut workers: Vec<Worker> = (0..COUNTING)
        .map(|name| Worker::start(test, root, format!("process {name}"), &[("NAME", name)]))
        .collect();
    go(&mut workers);
    let begun = Instant::now();
    workers.iter_mut().for_each(|worker| drop(worker.wait_for("far")));
    let time = begun.elapsed();
    let said: Vec<Vec<String>> = end(workers);
    let counts: Vec<u64> = said.iter().map(|lines| lines.last().unwrap().parse().unwrap()).collect();
    println!("each of {COUNTING} processes had counted {FAR} times in {time:.1?}, and in the end {counts:?}");
    let mean = counts.iter().sum::<u64>() / COUNTING;
    assert!(mean <= 10 * FAR, "some starve: {counts:?}");
    assert_eq!(std::fs::read_to_string(root.join("one")).unwrap(), counts.iter().sum::<u64>().to_string());
}

fn count_until_stopped(root: &Path) {
    let name = given("NAME");
    let store = small().open(root).unwrap();
    let wanted = ready();
    let mut count = 0_u64;
    while wanted.load(Ordering::Relaxed) {
        let counted = store.transact(|tx| {
            let next = number(tx, "one")? + 1;
            tx.write("one", next.to_string())?;
            tx.write(name.to_string(), next.to_string())
        });
        match counted {
            Ok(_) => count += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
        if count == FAR {
            say("far");
        }
    }
    say(&count.to_string());
    store.close().unwrap();
}
