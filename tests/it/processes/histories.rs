//! Histories of several processes: could what all of them saw and did have been done by one after another?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atomtree::{Error, ErrorKind, Options, Store, Transaction};
use atomtree_tests::serializability::{Done, Key, Seen, check};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use super::{PATIENCE, Worker, duration, end, given, go, holder, prepared, ready};
use crate::basics::{Random, child_root, inspect, small};
use crate::kills::say;

/// So few that transactions meet, and so many that not all do.
const REGISTERS: u64 = 8;
const PROCESSES: u64 = 5;
const THREADS: u64 = 3;

fn options() -> Options {
    small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(10))
}

/// Nanoseconds of a clock that is the same in all processes.
fn clock() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn register(key: Key) -> String {
    format!("registers/{key}")
}

fn read(tx: &mut Transaction, key: Key) -> Result<Option<u64>, Error> {
    if !tx.exists(register(key))? {
        return Ok(None);
    }
    let text = String::from_utf8(tx.read(register(key))?).expect("it is text");
    Ok(Some(text.parse().unwrap_or_else(|error| panic!("register {key} holds {text:?}: {error}"))))
}

/// What a transaction saw and is about to leave.
#[derive(Default)]
struct Plan {
    reads: Vec<(Key, Seen)>,
    writes: Vec<(Key, Option<u64>)>,
}

/// Looks at some registers, or at which there are, and changes some, all of which it has looked at or none.
fn plan(tx: &mut Transaction, random: &mut Random, value: u64) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    let mut known: BTreeMap<Key, Option<u64>> = BTreeMap::new();
    if random.below(6) == 0 {
        let listed: BTreeSet<String> =
            tx.list("registers")?.into_iter().map(|(name, _)| name.into_string().unwrap()).collect();
        let seen = |key: Key| (key, Seen::Presence(listed.contains(&key.to_string())));
        plan.reads.extend((0..REGISTERS).map(seen));
    }
    for _ in 0..random.below(5) {
        let key = random.below(REGISTERS);
        let value = read(tx, key)?;
        plan.reads.push((key, Seen::Value(value)));
        known.insert(key, value);
    }
    for _ in 0..random.below(4) {
        let key = random.below(REGISTERS);
        if plan.writes.iter().any(|(other, _)| *other == key) {
            continue;
        }
        let is_there = match known.get(&key) {
            Some(value) => value.is_some(),
            None if random.below(2) == 0 => {
                let is_there = tx.exists(register(key))?;
                plan.reads.push((key, Seen::Presence(is_there)));
                is_there
            }
            None => false,
        };
        if is_there && random.below(4) == 0 {
            tx.remove(register(key))?;
            plan.writes.push((key, None));
        } else {
            // Without having looked: this replaces whatever stands there.
            tx.write(register(key), value.to_string())?;
            plan.writes.push((key, Some(value)));
        }
    }
    Ok(plan)
}

fn text_of(plan: &Plan) -> String {
    let mut words = Vec::new();
    for (key, seen) in &plan.reads {
        words.push(match seen {
            Seen::Value(Some(value)) => format!("r{key}={value}"),
            Seen::Value(None) => format!("r{key}=none"),
            Seen::Presence(is_there) => format!("p{key}={is_there}"),
        });
    }
    for (key, value) in &plan.writes {
        words.push(format!("w{key}={}", value.map_or("none".into(), |value| value.to_string())));
    }
    words.join(" ")
}

fn plan_of(words: &[&str]) -> Plan {
    let mut plan = Plan::default();
    for word in words {
        let (key, value) = word[1..].split_once('=').unwrap_or_else(|| panic!("{word}"));
        let key = key.parse().unwrap();
        match &word[..1] {
            "r" => plan.reads.push((key, Seen::Value(value.parse().ok()))),
            "p" => plan.reads.push((key, Seen::Presence(value == "true"))),
            _ => plan.writes.push((key, value.parse().ok())),
        }
    }
    plan
}

/// One transaction after another; each is told before it commits, and when it has.
fn work(store: &Store, name: u64, random: &mut Random, is_wanted: &dyn Fn() -> bool) {
    for round in 0_u64.. {
        if !is_wanted() {
            return;
        }
        let id = name << 32 | round;
        let begin = clock();
        let result = store.begin().and_then(|mut tx| {
            tx.set_label(id.to_string());
            let plan = plan(&mut tx, random, id)?;
            if random.below(4) == 0 {
                std::thread::sleep(Duration::from_micros(random.below(2000)));
            }
            say(&format!("will {id} {begin} {}", text_of(&plan)));
            tx.commit()
        });
        match result {
            Ok(receipt) => say(&format!("did {id} {} {}", clock(), receipt.tx().0)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
    }
}

fn live(root: &Path) {
    let (name, threads, seed) = (given("NAME"), given("THREADS"), given("CHOICES"));
    let store = options().open(root).unwrap();
    let wanted = ready();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (store, wanted) = (&store, &wanted);
            let mut random = Random::new(seed ^ thread << 32);
            scope.spawn(move || {
                work(store, name << 8 | thread, &mut random, &|| wanted.load(Ordering::Relaxed));
            });
        }
    });
    store.close().unwrap();
}

/// What the processes said, as a history. What nobody was told of is in it if the store knows of it.
fn history_of(lines: &[String], root: &Path) -> Vec<Done> {
    let mut planned: BTreeMap<u64, Done> = BTreeMap::new();
    let mut history = Vec::new();
    let complaints: Vec<&String> =
        lines.iter().filter(|line| !["will ", "did "].iter().any(|word| line.starts_with(word))).collect();
    assert!(complaints.is_empty(), "a child complained: {complaints:#?}");
    for line in lines {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|error| panic!("{line}: {error}"));
        match words[0] {
            "will" => {
                let Plan { reads, writes } = plan_of(&words[3..]);
                let done = Done { begin: number(2), end: u64::MAX, number: None, reads, writes };
                planned.insert(number(1), done);
            }
            "did" => {
                let mut done =
                    planned.remove(&number(1)).unwrap_or_else(|| panic!("{line}: it was not planned"));
                (done.end, done.number) = (number(2), Some(number(3)).filter(|number| *number > 0));
                assert_eq!(done.number.is_none(), done.writes.is_empty(), "{line}: {done:?}");
                history.push(done);
            }
            _ => unreachable!("{line}"),
        }
    }
    let past = inspect(root).log(usize::MAX).unwrap();
    let known: BTreeMap<u64, u64> = past
        .iter()
        .filter_map(|past| Some((past.label.as_ref()?.parse().expect("a number"), past.tx.0)))
        .collect();
    assert_eq!(past.len(), known.len(), "each label is in the log once");
    for (id, mut done) in planned {
        if let Some(tx) = known.get(&id) {
            done.number = Some(*tx);
            history.push(done);
        }
    }
    let written = history.iter().filter(|done| done.number.is_some()).count();
    assert_eq!(written, known.len(), "what was told and what the log knows differ");
    history
}

/// Checks the history; tells where all of it is kept if it is wrong.
fn judge(root: &Path, lines: &[String]) -> Vec<Done> {
    let history = history_of(lines, root);
    if let Err(violation) = check(&BTreeMap::new(), &history) {
        let kept = std::env::temp_dir().join(format!("atomtree-history-{}", std::process::id()));
        fs::write(&kept, lines.join("\n")).unwrap();
        panic!("{violation}\nAll that was said is in {}", kept.display());
    }
    let mut last: BTreeMap<Key, Option<u64>> = BTreeMap::new();
    let mut writers: Vec<&Done> = history.iter().filter(|done| done.number.is_some()).collect();
    writers.sort_by_key(|done| done.number);
    writers.iter().flat_map(|done| &done.writes).for_each(|(key, value)| {
        last.insert(*key, *value);
    });
    for (key, value) in last {
        let stands = fs::read_to_string(root.join(register(key))).ok().map(|text| text.parse().unwrap());
        assert_eq!(stands, value, "register {key}");
    }
    history
}

fn with_registers() -> TempDir {
    let scratch = prepared(options());
    fs::create_dir(scratch.path().join("registers")).unwrap();
    scratch
}

/// Whether a test goes on: for its time, and on a slow machine until something has come of it.
fn is_wanted(begun: Instant, time: Duration, lines: &[String]) -> bool {
    let committed = || lines.iter().filter(|line| line.starts_with("did")).count();
    begun.elapsed() < time || begun.elapsed() < PATIENCE && committed() < 200
}

fn start(test: &str, root: &Path, name: u64, seed: u64) -> Worker {
    let settings = [("NAME", name), ("THREADS", 1 + name % THREADS), ("CHOICES", seed ^ name)];
    Worker::start(test, root, format!("process {name}"), &settings)
}

/// Goal: transactions of all processes are strictly serializable: as if done one after another, in the order of their
/// numbers, each between its beginning and its end; those that only read as well. Method: five processes with up to three
/// threads read, list, write and remove eight registers, with values that are written once, and say when and what.
#[test]
fn histories_are_strictly_serializable() {
    let test = "processes::histories::histories_are_strictly_serializable";
    if let Some(root) = child_root() {
        return live(&root);
    }
    let seed = Random::from_environment().next();
    let scratch = with_registers();
    let root = scratch.path();
    let mut workers: Vec<Worker> = (0..PROCESSES).map(|name| start(test, root, name, seed)).collect();
    go(&mut workers);
    let (begun, mut lines) = (Instant::now(), Vec::new());
    while is_wanted(begun, duration(Duration::from_secs(2)), &lines) {
        std::thread::sleep(Duration::from_millis(5));
        lines.extend(workers.iter_mut().flat_map(Worker::so_far));
    }
    lines.extend(end(workers).into_iter().flatten());
    let planned = lines.iter().filter(|line| line.starts_with("will")).count();
    let history = judge(root, &lines);
    let readers = history.iter().filter(|done| done.number.is_none()).count();
    println!(
        "{} committed, {readers} of them only read; {} conflicts",
        history.len(),
        planned - history.len()
    );
    assert!(history.len() > 100 && readers > 20 && planned > history.len(), "there was no race");
}

/// Goal: they are with kills as well: what a killed process had not been told of is done whole or not at all, and what others
/// saw of it fits. Method: as above, with processes that are killed at random instants and followed by others; of what was
/// not acknowledged the log says whether it is done.
#[test]
fn histories_with_kills_are_strictly_serializable() {
    let test = "processes::histories::histories_with_kills_are_strictly_serializable";
    if let Some(root) = child_root() {
        return live(&root);
    }
    let mut random = Random::from_environment();
    let seed = random.next();
    let scratch = with_registers();
    let root = scratch.path();
    let mut workers: Vec<Worker> = (0..PROCESSES).map(|name| start(test, root, name, seed)).collect();
    go(&mut workers);
    let (begun, mut lines, mut names) = (Instant::now(), Vec::new(), PROCESSES..);
    while is_wanted(begun, duration(Duration::from_secs(3)), &lines) {
        lines.extend(workers.iter_mut().flat_map(Worker::so_far));
        std::thread::sleep(Duration::from_micros(random.below(150_000)));
        // Often who is in the middle of a commit.
        let holder = if random.below(4) > 0 { holder(root, &mut workers) } else { None };
        let victim = holder.unwrap_or_else(|| random.below(PROCESSES) as usize);
        lines.extend(workers.swap_remove(victim).kill());
        let mut next = start(test, root, names.next().unwrap(), seed);
        next.wait_for("ready");
        next.tell("go");
        workers.push(next);
    }
    lines.extend(end(workers).into_iter().flatten());
    let history = judge(root, &lines);
    let untold = history.iter().filter(|done| done.end == u64::MAX).count();
    println!(
        "{} committed, {} kills, {untold} of whose transactions are done",
        history.len(),
        names.start - PROCESSES
    );
    assert!(history.len() > 100, "there was no race");
}
