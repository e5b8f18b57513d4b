//! Commits: what is acknowledged is durable, whoever led; a failed sync is everybody's; a full log stops nobody.

use super::*;

/// How a commit returned, and what a power cut in that moment leaves.
struct Returned {
    outcome: Result<Receipt, Error>,
    cut: Sim,
}

/// Commits to files of their own, 0 and so on, each in a thread.
fn commit_each<const N: usize>(
    machine: &Arc<Machine>,
    store: &Store,
    contents: [&'static [u8]; N],
) -> [Returned; N] {
    let run = |n: usize| {
        let (machine, store) = (Arc::clone(machine), store.clone());
        move || Returned { outcome: commit(&store, &n.to_string(), contents[n]), cut: machine.cut() }
    };
    let others: Vec<_> = (1..N).map(|n| start(run(n))).collect();
    let mut returned = vec![run(0)()];
    returned.extend(others.into_iter().map(|other| other.join().unwrap()));
    returned.try_into().ok().unwrap()
}

/// Each is acknowledged, and survives a power cut in that moment.
fn assert_durable<const N: usize>(returned: &[Returned; N], contents: [&[u8]; N]) {
    for (n, (returned, content)) in returned.iter().zip(contents).enumerate() {
        assert_eq!(returned.outcome.as_ref().unwrap().files(), 1);
        let found = read(&recovered(&returned.cut).0, &n.to_string());
        assert!(found.as_deref() == Some(content), "{n} is not durable");
    }
}

/// No commit returns before a sync that covers it; two share one on some schedule.
///
/// Bound: none, these are all schedules.
#[test]
fn two_committers() {
    let start = prepared(|_| ());
    explore("two committers of a store", None, move |shared_syncs| {
        let machine = Machine::new(&start);
        let store = machine.open(|options| options);
        let returned = commit_each(&machine, &store, [b"one", b"two"]);
        assert_durable(&returned, [b"one", b"two"]);
        shared_syncs.fetch_add(usize::from(machine.syncs.begun.load(Relaxed) == 1), Relaxed);
    });
}

/// As [`two_committers`]; all three share one sync on some schedule.
///
/// Bound: 3 preemptions.
#[test]
fn three_committers() {
    let start = prepared(|_| ());
    explore("three committers of a store", Some(3), move |shared_syncs| {
        let machine = Machine::new(&start);
        let store = machine.open(|options| options);
        let returned = commit_each(&machine, &store, [b"one", b"two", b"three"]);
        assert_durable(&returned, [b"one", b"two", b"three"]);
        shared_syncs.fetch_add(usize::from(machine.syncs.begun.load(Relaxed) == 1), Relaxed);
    });
}

/// Two that come while a third leads are led by one of the two, which got the lead handed over.
///
/// Bound: 3 preemptions.
#[test]
fn hand_off() {
    let start = prepared(|_| ());
    explore("hand-off in a store", Some(3), move |hand_offs| {
        let machine = Machine::new(&start);
        let store = machine.open(|options| options);
        let returned = commit_each(&machine, &store, [b"one", b"two", b"three"]);
        assert_durable(&returned, [b"one", b"two", b"three"]);
        let LogSyncs { begun, first_batch, .. } = &*machine.syncs;
        let is_hand_off = (first_batch.load(Relaxed), begun.load(Relaxed)) == (1, 2);
        hand_offs.fetch_add(usize::from(is_hand_off), Relaxed);
    });
}

/// After a failed sync its whole batch is told that the outcome is unknown, those behind it that the store is poisoned,
/// and nothing is synced, acknowledged or begun any more.
///
/// Bound: 3 preemptions.
#[test]
fn failed_sync() {
    let start = prepared(|_| ());
    explore("failed sync", Some(3), move |batches_of_two| {
        let machine = Machine::new(&start);
        let store = machine.open(|options| options);
        machine.sim.fail_next_sync();
        let returned = commit_each(&machine, &store, [b"one", b"two", b"three"]);
        let mut kinds = returned.map(|returned| returned.outcome.unwrap_err().kind());
        kinds.sort_by_key(|kind| *kind == ErrorKind::Poisoned);
        let unknown = kinds.iter().filter(|kind| **kind == ErrorKind::OutcomeUnknown).count();
        assert!(kinds[unknown..].iter().all(|kind| *kind == ErrorKind::Poisoned), "{kinds:?}");
        assert_eq!(unknown, machine.syncs.first_batch.load(Relaxed), "one batch, and no other");
        assert_eq!(machine.syncs.begun.load(Relaxed), 1, "nothing is synced after a failed sync");
        assert_eq!(store.begin().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Poisoned);
        batches_of_two.fetch_add(usize::from(unknown == 2), Relaxed);
    });
}

/// Travels in the log. Four fill a segment but for an eighth, in which small ones find room.
static LARGE: [u8; 13_000] = [b'x'; 13_000];

/// A store whose active segment has no room for [`LARGE`] any more, with this many spare ones.
fn nearly_full(spares: usize) -> Sim {
    let machine = prepared(move |store| {
        // What goes beyond the first segment adds another one, and a checkpoint then frees the first.
        (0..4 * spares).for_each(|n| drop(commit(store, &format!("old-{n}"), &LARGE).unwrap()));
    });
    assert_eq!(segments(&machine), 1 + spares);
    machine
}

fn segments(machine: &Sim) -> usize {
    machine.tree(format!("{ROOT}/.atomtree/wal")).len()
}

/// A leader whose batch does not fit the active segment goes on in the next one, and all of the batch is durable.
///
/// Bound: none, these are all schedules.
#[test]
fn rotation_in_a_batch() {
    let start = nearly_full(2);
    explore("rotation in a batch", None, move |shared_syncs| {
        let machine = Machine::new(&start);
        let store = machine.open(|options| options);
        let returned = commit_each(&machine, &store, [b"one", &LARGE]);
        assert_durable(&returned, [b"one", &LARGE]);
        assert_eq!(segments(&machine.sim), 3);
        // Going on takes two syncs, of the segment that is left and of the next one's header.
        let is_shared = machine.syncs.begun.load(Relaxed) == 3;
        shared_syncs.fetch_add(usize::from(is_shared), Relaxed);
    });
}

/// Committers that find the log full together all make room, within its bound, and commit. Method: each adds a segment
/// where two fit; where one fits, the other uses what that has made room for.
///
/// Bound: 2 preemptions.
#[test]
fn full_log() {
    for segments_max in [3, 4] {
        let start = nearly_full(1);
        explore("full log", Some(2), move |at_the_bound| {
            let machine = Machine::new(&start);
            let store = machine.open(|options| options.log_bytes_max(segments_max as u64 * (64 << 10)));
            let returned = commit_each(&machine, &store, [&LARGE, &LARGE, b"three"]);
            assert_durable(&returned, [&LARGE, &LARGE, b"three"]);
            let segments = segments(&machine.sim);
            assert!(
                (3..=segments_max).contains(&segments),
                "{segments} segments, {segments_max} are allowed"
            );
            at_the_bound.fetch_add(usize::from(segments == segments_max), Relaxed);
        });
    }
}
