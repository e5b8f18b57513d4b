//! Counters that many processes count up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use atomtree::{Error, Transaction};

use super::{PATIENCE, Worker, end, given, go, insist, number, prepared, ready};
use crate::basics::{Random, child_root, inspect, small};
use crate::kills::say;

/// Processes and threads in each of them.
const SHAPES: [(u64, u64); 4] = [(2, 1), (4, 4), (8, 1), (16, 2)];

/// How far each process counts: so far in the ordinary run.
fn count(ordinary: u64) -> u64 {
    std::env::var("ATOMTREE_COUNTS").map_or(ordinary, |count| count.parse().expect("a number"))
}

fn increment(tx: &mut Transaction, name: &str) -> Result<u64, Error> {
    let next = number(tx, name)? + 1;
    tx.write(name, next.to_string())?;
    Ok(next)
}

/// What one process does: each of its transactions counts one of two counters up, or three at once.
fn count_up(root: &Path) {
    let (threads, times, seed) = (given("THREADS"), given("TIMES"), given("CHOICES"));
    let store = small().open(root).unwrap();
    ready();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let store = &store;
            let mut random = Random::new(seed ^ thread << 32);
            scope.spawn(move || {
                for _ in 0..times / threads {
                    let names: &[&str] = match random.below(8) {
                        0 => &["one", "two", "dir/three"],
                        1..4 => &["one"],
                        _ => &["two"],
                    };
                    let counted = insist(store, |tx| {
                        names.iter().map(|name| increment(tx, name)).collect::<Result<Vec<u64>, Error>>()
                    });
                    let (values, receipt, given_up) = counted.unwrap_or_else(|error| panic!("{error}"));
                    let pairs = names.iter().zip(values).map(|(name, value)| format!("{name}={value}"));
                    let pairs: Vec<String> = pairs.collect();
                    say(&format!("counted {} {given_up} {}", receipt.tx().0, pairs.join(" ")));
                }
            });
        }
    });
    store.close().unwrap();
}

/// Goal: no increment is lost and none is counted twice, with any number of processes and threads, in transactions of one
/// counter and of several. Method: 2 to 16 processes read, add one and write; each value of each counter is acknowledged
/// exactly once, larger values by later transactions, and what stands in the end is how many there were.
#[test]
fn counters_are_exact() {
    if let Some(root) = child_root() {
        return count_up(&root);
    }
    let seed = Random::from_environment().next();
    for (processes, threads) in SHAPES {
        let scratch = prepared(small());
        let root = scratch.path();
        let times = count(160 / processes);
        let label = format!("{processes} processes with {threads} threads, {times} times each");
        let mut workers: Vec<Worker> = (0..processes)
            .map(|process| {
                let settings = [("THREADS", threads), ("TIMES", times), ("CHOICES", seed ^ process)];
                let test = "processes::counters::counters_are_exact";
                Worker::start(test, root, format!("{label}: {process}"), &settings)
            })
            .collect();
        go(&mut workers);
        let begun = Instant::now();
        let (mut transactions, mut given_up) = (BTreeMap::new(), 0);
        let mut counters: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
        let commits = times / threads * threads * processes;
        let (mut lines, mut heard) = (Vec::new(), Instant::now());
        while (lines.len() as u64) < commits && heard.elapsed() < PATIENCE {
            let said = lines.len();
            lines.extend(workers.iter_mut().flat_map(Worker::so_far));
            if lines.len() > said {
                heard = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let time = begun.elapsed();
        lines.extend(end(workers).into_iter().flatten());
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[0], "counted", "{label}: {line}");
            let tx: u64 = words[1].parse().unwrap();
            given_up += words[2].parse::<u64>().unwrap();
            assert!(
                transactions.insert(tx, line.clone()).is_none(),
                "{label}: transaction {tx} twice: {line}"
            );
            for (name, value) in words[3..].iter().filter_map(|pair| pair.split_once('=')) {
                let counter = counters.entry(name.to_owned()).or_default();
                let other = counter.insert(value.parse().unwrap(), tx);
                assert!(other.is_none(), "{label}: lost: {line}, and transaction {other:?} says the same");
            }
        }
        assert_eq!(transactions.len() as u64, commits, "{label}");
        for (name, counter) in counters {
            let stands: u64 = fs::read_to_string(root.join(&name)).unwrap().parse().unwrap();
            assert_eq!(stands, counter.len() as u64, "{label}: {name}");
            assert!(counter.values().is_sorted(), "{label}: {name} was not counted in the log's order");
        }
        let status = inspect(root).status().unwrap();
        assert!(status.is_clean && status.members.is_empty(), "{label}: {status:?}");
        assert_eq!(status.last_tx.0, commits, "{label}: the log has one order");
        println!(
            "{label}: {commits} commits in {time:.1?}, {} a second; gave up {given_up} times",
            u128::from(commits) * 1000 / time.as_millis().max(1)
        );
    }
}
