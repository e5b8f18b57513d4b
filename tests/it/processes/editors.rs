//! Editors beside several processes that commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{PATIENCE, Worker, duration, end, prepared, ready};
use crate::basics::{Random, child_root, inspect};
use crate::races::editors::{
    Edits, check, hear, lay_out, options, rewrite_until_killed, start_editors, wanting,
};
use crate::races::{Running, Tally};

const PROCESSES: u64 = 3;

/// Goal: an edit by another program is never lost, whenever it lands and whichever process commits next: its transaction is a
/// conflict, or both are intact, one of them perhaps in quarantine. Method: editors of five styles, `sed -i` among them, on ten
/// files, against three processes with three threads each, of which one is killed now and then and followed by another.
#[test]
fn editors_beside_several_processes_lose_nothing() {
    let test = "processes::editors::editors_beside_several_processes_lose_nothing";
    if let Some(root) = child_root() {
        let wanted = ready();
        return rewrite_until_killed(&root, &wanted);
    }
    let scratch = prepared(options());
    let root = scratch.path();
    lay_out(root);
    let mut random = Random::from_environment();
    let (edits, tally) = (Edits::default(), Tally::default());
    let wanted = AtomicBool::new(true);
    let start = |name: u64, random: &mut Random| {
        let settings = [("ATOMTREE_THREAD_SEED", random.next() >> 1)];
        let mut worker = Worker::start(test, root, format!("process {name}"), &settings);
        worker.wait_for("ready");
        worker.tell("go");
        worker
    };
    let mut workers: Vec<Worker> = (0..PROCESSES).map(|name| start(name, &mut random)).collect();
    let mut kills = 0;
    std::thread::scope(|scope| {
        let running = Running(&wanted);
        start_editors(scope, &wanted, root, &edits, &tally);
        let begun = Instant::now();
        let is_over = || {
            let time = begun.elapsed();
            time > PATIENCE || time > duration(Duration::from_secs(4)) && wanting(root, &tally).is_none()
        };
        while !is_over() {
            std::thread::sleep(Duration::from_micros(random.below(300_000)));
            let victim = workers.swap_remove(random.below(PROCESSES) as usize);
            // One in two is told to end instead, and has to say what it still has to say.
            let (label, said) = if random.below(2) == 0 {
                kills += 1;
                (format!("kill {kills}"), victim.kill())
            } else {
                ("an end".to_owned(), victim.end())
            };
            hear(&said, &edits, &tally, &label);
            workers.push(start(PROCESSES + kills, &mut random));
        }
        drop(running);
    });
    for said in end(workers) {
        hear(&said, &edits, &tally, "the last");
    }
    options().open(root).unwrap().close().unwrap();
    check(root, edits, &tally);
    println!("{kills} kills, {} redone by openers", tally.of("redone"));
    assert!(kills > 2 && !wanted.load(Ordering::Relaxed), "there was no race");
    assert_eq!(wanting(root, &tally), None);
    assert!(inspect(root).verify().unwrap().problems.is_empty());
}
