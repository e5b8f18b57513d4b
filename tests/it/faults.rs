//! Storage that fails: every call from every place in the sources, in every way, and everybody who waits for a sync.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use atomtree::vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;
use atomtree::{Checkpoints, Durability, Error, ErrorKind, Options, Store};
use atomtree_tests::call_sites::{Site, compare, mentions};
use atomtree_tests::fault_matrix::Survey;
use atomtree_tests::history::{DIRECTORIES, IN_PLACE};
use atomtree_tests::waiting::{Running, block_on, start};
use atomtree_tests::workload::Workload;
use atomtree_tests::workloads;

use crate::crash_points::sum_over;

/// The workloads that reach every place, found once.
static SURVEY: LazyLock<Survey> = LazyLock::new(|| {
    let seeds = (0..60).chain(DIRECTORIES..DIRECTORIES + 60).chain(IN_PLACE..IN_PLACE + 20);
    let generated = seeds.map(Workload::generate);
    Survey::new(workloads::all().into_iter().chain(generated).collect())
});

/// Goal: no place that calls storage is left out of the matrix below. Method: the places that the sources show, against
/// those that are seen on the stacks of calls; each list must hold the other. That the second is not empty shows that
/// the test profile has line tables.
#[test]
fn every_place_that_calls_storage_is_reached() {
    let mentions = mentions();
    // Guards have a loop of their own, in `guards::explored`; what every open and commit asks of them is in this one too.
    let sites = SURVEY.keys().map(|(site, _)| site).filter(|site| !site.file.contains("guard"));
    let seen: BTreeSet<Site> = sites.cloned().collect();
    let (unseen, unlisted) = compare(&mentions, &seen);
    println!(
        "{} places in the sources, {} calls seen there, {} with their phases; {} workloads",
        mentions.len(),
        seen.len(),
        SURVEY.keys().count(),
        SURVEY.workloads().count()
    );
    assert!(mentions.len() > 300, "only {} places", mentions.len());
    assert!(
        unseen.is_empty() && unlisted.is_empty(),
        "no workload calls storage from {unseen:#?}; calls of storage that the sources do not show: {unlisted:#?}"
    );
}

/// Goal: whatever call of storage fails, what is told is true, every transaction is whole or absent, a failed sync is
/// final, and the next open is fine. Method: every place, in each phase in which it calls storage, with each error, once,
/// for that verb from then on, and for every call from then on; and again in the recovery that follows.
/// `ATOMTREE_FAULT_SEEDS=first..end` draws other calls of each place.
#[test]
fn every_call_of_storage_fails_in_every_way() {
    let seeds = match std::env::var("ATOMTREE_FAULT_SEEDS") {
        Ok(text) => {
            let (first, end) = text.split_once("..").expect("two numbers with two dots between them");
            first.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => 0..2_u64,
    };
    let mut judged = 0;
    for seed in seeds {
        let cells = SURVEY.cells(seed);
        let sites: BTreeSet<_> = cells.iter().map(|cell| (&cell.key.0, cell.errno, cell.lasting)).collect();
        assert!(sites.len() > 6500, "only {} of place, error and duration", sites.len());
        assert!(cells.len() > 10_000, "only {} with their phases", cells.len());
        println!("seed {seed}: {} of place, error and duration; {} with phases", sites.len(), cells.len());
        judged += sum_over(0..cells.len() as u64, |index| {
            if let Err(reason) = SURVEY.judge(&cells[index as usize], seed) {
                panic!("{reason}");
            }
            1
        });
    }
    println!("{judged} failures judged");
}

/// Goal: a sync that fails while a process reads anew what another has recovered is as final as any, for all. Method: one
/// process poisons the store, another recovers it, and the first sync of a third after that fails.
#[test]
fn a_failed_sync_after_anothers_recovery_is_final() {
    let sim = Sim::new(7);
    sim.create_dir("/tree");
    let options =
        || Options::new().segment_bytes(64 << 10).log_bytes_max(256 << 10).checkpoints(Checkpoints::Manual);
    let open = |vfs| options().vfs(vfs).open("/tree");
    let write = |store: &Store, name: &str| store.transact(|tx| tx.write(name, "content"));
    let faults = Faults::new(Arc::new(sim.another_process()), fail_nothing());
    let third = open(Arc::new(faults.clone())).unwrap();
    write(&third, "a").unwrap();
    let first = open(Arc::new(sim.another_process())).unwrap();
    sim.fail_next_sync();
    assert_eq!(write(&first, "b").unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let second = open(Arc::new(sim.another_process())).unwrap();
    faults.set_rule(Arc::new(|call| (call.verb == Verb::SyncData).then_some(Fault::LoseData(EIO))));
    assert_eq!(write(&third, "c").unwrap_err().kind(), ErrorKind::Poisoned);
    faults.set_rule(fail_nothing());
    assert_eq!(third.begin().map(drop).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(write(&second, "d").unwrap_err().kind(), ErrorKind::Poisoned);
    let fourth = open(Arc::new(sim.another_process())).unwrap();
    write(&fourth, "e").unwrap();
    write(&third, "f").unwrap();
    assert_eq!(sim.read_file("/tree/a").unwrap(), b"content");
}

/// Input/output error, as Linux numbers it.
const EIO: i32 = 5;

/// What somebody waits for.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Commit,
    Settled,
    Durable,
    Applied,
    Future,
    Checkpoint,
}

const WAITS: [Wait; 7] =
    [Wait::Commit, Wait::Commit, Wait::Settled, Wait::Durable, Wait::Applied, Wait::Future, Wait::Checkpoint];

impl Wait {
    /// Writes two files, and waits.
    fn wait(self, store: &Store, name: &str) -> Result<(), Error> {
        if let Self::Checkpoint = self {
            return store.checkpoint();
        }
        let mut transaction = store.begin()?;
        transaction.write(format!("{name}/one"), vec![1; 3000])?;
        transaction.write(format!("{name}/two"), vec![2; 3000])?;
        match self {
            Self::Settled => transaction.set_durability(Durability::Settled),
            Self::Commit => {}
            _ => {
                let ticket = transaction.submit()?;
                return match self {
                    Self::Durable => ticket.durable().map(drop),
                    Self::Applied => ticket.applied().map(drop),
                    _ => block_on(ticket).map(drop),
                };
            }
        }
        transaction.commit().map(drop)
    }
}

/// Goal: a failed sync wakes everybody, whatever they wait for, and nothing is acknowledged that it lost, though the
/// device is well again. Method: threads that wait in different ways; each sync of their run fails once, losing what it
/// should have kept; then the power is cut.
#[test]
fn a_failed_sync_wakes_whoever_waits() {
    let woken = sum_over(0..40, |number| {
        let sim = Sim::new(number);
        sim.create_dir("/tree");
        let (syncs, has_failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, failed) = (Arc::clone(&syncs), Arc::clone(&has_failed));
        let machine = sim.clone();
        let rule = move |call: &Call| {
            let is_it = call.verb.is_sync() && count.fetch_add(1, Ordering::Relaxed) == number;
            failed.fetch_or(is_it, Ordering::Relaxed);
            is_it.then(|| match call.verb {
                Verb::SyncData | Verb::SyncAll => Fault::LoseData(EIO),
                verb => {
                    if verb == Verb::SyncFilesystem {
                        machine.fail_write_back();
                    }
                    Fault::Error(EIO)
                }
            })
        };
        let options = Options::new().segment_bytes(64 << 10).log_bytes_max(256 << 10);
        let options = options.checkpoints(Checkpoints::Manual);
        let plain = options.clone().vfs(Arc::new(sim.clone()));
        // Recovery and creation have tests of their own; the count begins here.
        plain.clone().open("/tree").expect("nothing fails yet").close().expect("nothing fails yet");
        syncs.store(u64::MAX / 2, Ordering::Relaxed);
        let faults = Faults::new(Arc::new(sim.clone()), Arc::new(rule));
        let store = options.vfs(Arc::new(faults)).open("/tree").expect("nothing fails yet");
        syncs.store(0, Ordering::Relaxed);
        let running: Vec<_> = (WAITS.iter().enumerate())
            .map(|(thread, wait)| {
                let store = store.clone();
                start(move || {
                    let names = (0..20).map(|round| format!("{thread}-{round}"));
                    let mut acknowledged = Vec::new();
                    for name in names {
                        match wait.wait(&store, &name) {
                            Ok(()) => acknowledged.push(name),
                            Err(error) => return (acknowledged, Some(error)),
                        }
                    }
                    (acknowledged, None)
                })
            })
            .collect();
        let ended: Vec<_> = running.into_iter().map(Running::end).collect();
        assert!(has_failed.load(Ordering::Relaxed), "there is no sync {number}");
        for (wait, (_, error)) in WAITS.iter().zip(&ended) {
            let kind = error.as_ref().map(Error::kind);
            let is_told = matches!(
                kind,
                Some(
                    ErrorKind::OutcomeUnknown
                        | ErrorKind::Poisoned
                        | ErrorKind::Io
                        | ErrorKind::CommittedNotApplied
                )
            );
            // Whoever had come to the end before the sync failed was not concerned.
            assert!(is_told || kind.is_none(), "sync {number}, {wait:?}: {error:?}");
        }
        assert!(ended.iter().any(|(_, error)| error.is_some()), "sync {number} failed and nobody was told");
        let kinds: Vec<_> = ended.iter().filter_map(|(_, error)| error.as_ref().map(Error::kind)).collect();
        if kinds == [ErrorKind::Io] {
            // It was of contents that one transaction had staged, and nobody else relies on those.
            store.close().expect("nothing fails any more");
        } else {
            let refused = store.begin().err().map(|error| error.kind());
            assert_eq!(refused, Some(ErrorKind::Poisoned), "sync {number}");
            assert_eq!(store.checkpoint().unwrap_err().kind(), ErrorKind::Poisoned, "sync {number}");
            assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Poisoned, "sync {number}");
        }
        let machine = sim.power_cut(number);
        let store = plain.vfs(Arc::new(machine.clone())).open("/tree").expect("the next open is fine");
        for (wait, (acknowledged, _)) in WAITS.iter().zip(&ended) {
            for name in acknowledged.iter().filter(|_| !matches!(wait, Wait::Checkpoint)) {
                let file = |file| machine.read_file(format!("/tree/{name}/{file}"));
                assert_eq!(file("one"), Some(vec![1; 3000]), "sync {number}: {wait:?} {name}");
                assert_eq!(file("two"), Some(vec![2; 3000]), "sync {number}: {wait:?} {name}");
            }
        }
        let tree = machine.tree("/tree");
        for path in tree.keys().filter(|path| path.ends_with("one") || path.ends_with("two")) {
            let other = path.with_file_name(if path.ends_with("one") { "two" } else { "one" });
            assert!(tree.contains_key(&other), "sync {number}: half of {}", path.display());
        }
        store.close().expect("nothing fails any more");
        ended.iter().filter(|(_, error)| error.is_some()).count() as u64
    });
    println!("{woken} waits were ended by an error");
}
