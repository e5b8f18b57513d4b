//! Money that goes from account to account, and readers in other processes that count it.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atomtree::{Error, ErrorKind, Transaction};

use super::{Worker, duration, end, given, go, number, ready};
use crate::basics::{Random, child_root, commit, inspect, small};
use crate::kills::say;

const ACCOUNTS: u64 = 24;
const FUNDS: u64 = 1000;

/// In several directories.
fn account(number: u64) -> String {
    format!("branch-{}/account-{number}", number % 4)
}

fn sum(tx: &mut Transaction) -> Result<u64, Error> {
    (0..ACCOUNTS).map(|account_number| number(tx, &account(account_number))).sum()
}

/// Moves money as long as it is wanted; says how often.
fn transfer(root: &Path) {
    let store = small().settle_after(Duration::from_millis(20)).open(root).unwrap();
    let (threads, seed) = (given("THREADS"), given("CHOICES"));
    let wanted = ready();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (store, wanted) = (&store, &wanted);
            let mut random = Random::new(seed ^ thread << 32);
            scope.spawn(move || {
                let (mut moved, mut conflicts) = (0, 0);
                while wanted.load(Ordering::Relaxed) {
                    // From one account to several others, up to half of what it has.
                    let from = random.below(ACCOUNTS);
                    let to: Vec<u64> = (0..=random.below(3)).map(|_| random.below(ACCOUNTS)).collect();
                    let share = random.below(10);
                    let result = store.transact(|tx| {
                        for to in to.iter().filter(|to| **to != from) {
                            let (source, target) = (number(tx, &account(from))?, number(tx, &account(*to))?);
                            let amount = source * share / 20;
                            tx.write(account(from), (source - amount).to_string())?;
                            tx.write(account(*to), (target + amount).to_string())?;
                        }
                        Ok(())
                    });
                    match result {
                        Ok(_) => moved += 1,
                        Err(error) if error.kind() == ErrorKind::Conflict => conflicts += 1,
                        Err(error) => panic!("{error}"),
                    }
                    // So that readers of all accounts get through now and then.
                    std::thread::sleep(Duration::from_micros(random.below(20_000)));
                }
                say(&format!("moved {moved} {conflicts}"));
            });
        }
    });
    store.close().unwrap();
}

/// Counts the money as long as it is wanted; says how often that was validated, and how often it would have been wrong.
fn audit(root: &Path) {
    let store = small().open(root).unwrap();
    let wanted = ready();
    let (mut validated, mut conflicts, mut wrong) = (0, 0, 0);
    while wanted.load(Ordering::Relaxed) {
        let mut tx = store.begin().unwrap();
        let found = match sum(&mut tx) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::Conflict => {
                conflicts += 1;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let is_right = found == ACCOUNTS * FUNDS;
        match tx.commit() {
            Ok(receipt) => {
                assert!(is_right, "a validated transaction saw {found}, not {}", ACCOUNTS * FUNDS);
                assert_eq!(receipt.tx().0, 0, "it only reads");
                validated += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                conflicts += 1;
                wrong += u64::from(!is_right);
            }
        }
    }
    say(&format!("audited {validated} {conflicts} {wrong}"));
    store.close().unwrap();
}

/// Goal: who reads in a transaction that commits sees one moment of the tree, whatever other processes do meanwhile; and no
/// money comes or goes. Method: three processes transfer between 24 files in four directories, two count all of it, and
/// commit what they read. That what they read was often wrong when it did not commit shows that there was something to see.
#[test]
fn auditors_never_see_a_transfer_by_half() {
    if let Some(root) = child_root() {
        return if given("AUDITS") == 1 { audit(&root) } else { transfer(&root) };
    }
    let seed = Random::from_environment().next();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = small().open(root).unwrap();
    commit(&store, |tx| (0..ACCOUNTS).try_for_each(|one| tx.write(account(one), FUNDS.to_string()))).unwrap();
    store.close().unwrap();
    let mut workers: Vec<Worker> = (0..5)
        .map(|process| {
            let settings =
                [("AUDITS", u64::from(process >= 3)), ("THREADS", 1 + process), ("CHOICES", seed ^ process)];
            let test = "processes::bank::auditors_never_see_a_transfer_by_half";
            Worker::start(test, root, format!("process {process}"), &settings)
        })
        .collect();
    go(&mut workers);
    let begun = Instant::now();
    std::thread::sleep(duration(Duration::from_secs(3)));
    let mut totals = [0_u64; 3];
    let mut moved = 0;
    for line in end(workers).into_iter().flatten() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
        match words[0] {
            "moved" => moved += numbers[0],
            "audited" => totals.iter_mut().zip(numbers).for_each(|(total, number)| *total += number),
            _ => panic!("{line}"),
        }
    }
    let [validated, conflicts, wrong] = totals;
    println!(
        "{moved} transfers, {validated} validated sums, {conflicts} conflicts, {wrong} of them with a wrong sum, {:.1?}",
        begun.elapsed()
    );
    let read = |one| fs::read_to_string(root.join(account(one))).unwrap().parse::<u64>().unwrap();
    assert_eq!((0..ACCOUNTS).map(read).sum::<u64>(), ACCOUNTS * FUNDS);
    assert!(moved > 20 && validated > 5, "there was no race");
    assert!(inspect(root).verify().unwrap().problems.is_empty());
}
