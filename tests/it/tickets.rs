//! Submitted transactions and their tickets: order, shared syncs, futures, and what a failed sync, a full log, a panic, a
//! close and a crash do to them.
//!
//! Every wait has an end: what blocks runs in a thread of its own, and the test fails when that is not done in time.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use atomtree::{
    Checkpoints, Durability, Error, ErrorKind, Options, Receipt, RecoveryReport, Store, Ticket, Transaction,
    TransactionId,
};
use atomtree_tests::waiting::{A_WHILE, Running, TOO_LONG, block_on, start, within};
use atomtree_vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree_vfs::sim::Sim;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[track_caller]
fn durable(ticket: &Arc<Ticket>) -> Result<TransactionId, Error> {
    let ticket = ticket.clone();
    within(move || ticket.durable())
}

#[track_caller]
fn applied(ticket: &Arc<Ticket>) -> Result<Receipt, Error> {
    let ticket = ticket.clone();
    within(move || ticket.applied())
}

/// Where a disk can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// In a sync of the log.
    Sync,
    /// Before a name is put in place.
    Apply,
}

/// A simulated disk that can be stopped, and that counts.
#[derive(Clone)]
struct Disk {
    sim: Sim,
    faults: Faults,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    closed_at: Option<Point>,
    /// How many have come to a closed gate.
    arrived: u64,
    /// How many syncs of the log there were.
    syncs: u64,
    /// How long each takes.
    delay: Duration,
    /// What the next sync of the log does, once it may go on.
    fate: Option<Fate>,
}

#[derive(Clone, Copy)]
enum Fate {
    Fails,
    Panics,
}

impl Disk {
    fn new() -> Self {
        let sim = Sim::new(5);
        sim.create_dir("/tree");
        let faults = Faults::new(Arc::new(sim.clone()), fail_nothing());
        let gate = Arc::new((Mutex::default(), Condvar::new()));
        let disk = Self { sim, faults, gate };
        let judge = disk.gate.clone();
        disk.faults.set_rule(Arc::new(move |call| pass(&judge, call)));
        disk
    }

    fn options(&self) -> Options {
        Options::new()
            .vfs(Arc::new(self.faults.clone()))
            .segment_bytes(64 << 10)
            .log_bytes_max(1 << 20)
            .checkpoints(Checkpoints::Manual)
    }

    fn open(&self) -> Store {
        self.options().open("/tree").unwrap()
    }

    fn set(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.0.lock().unwrap());
        self.gate.1.notify_all();
    }

    fn close_at(&self, point: Point) {
        self.set(|gate| gate.closed_at = Some(point));
    }

    fn let_go(&self) {
        self.set(|gate| gate.closed_at = None);
    }

    fn syncs(&self) -> u64 {
        self.gate.0.lock().unwrap().syncs
    }

    /// Waits until this many have come to a closed gate.
    #[track_caller]
    fn wait_for(&self, arrived: u64) {
        let gate = self.gate.0.lock().unwrap();
        let (_gate, waited) =
            self.gate.1.wait_timeout_while(gate, TOO_LONG, |gate| gate.arrived < arrived).unwrap();
        assert!(!waited.timed_out(), "nobody comes to the gate");
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.sim.read_file(Path::new("/tree").join(path))
    }
}

fn pass((gate, news): &(Mutex<Gate>, Condvar), call: &Call) -> Option<Fault> {
    let is_segment = call.name.as_ref().is_some_and(|name| name.to_string_lossy().ends_with(".seg"));
    let point = match call.verb {
        Verb::SyncData if is_segment => Point::Sync,
        Verb::Rename | Verb::Exchange => Point::Apply,
        _ => return None,
    };
    let mut gate = gate.lock().unwrap();
    if point == Point::Sync {
        gate.syncs += 1;
        let delay = gate.delay;
        if !delay.is_zero() {
            drop(gate);
            thread::sleep(delay);
            return None;
        }
    }
    if gate.closed_at == Some(point) {
        gate.arrived += 1;
        news.notify_all();
        (gate, _) = news.wait_timeout_while(gate, TOO_LONG, |gate| gate.closed_at == Some(point)).unwrap();
    }
    let fate = if point == Point::Sync { gate.fate.take() } else { None };
    drop(gate);
    match fate? {
        Fate::Fails => Some(Fault::LoseData(EIO)),
        Fate::Panics => panic!("a panic on purpose"),
    }
}

fn writing(store: &Store, path: &str, content: &str) -> Transaction {
    let mut tx = store.begin().unwrap();
    tx.write(path, content).unwrap();
    tx
}

/// Submits one file; what blocks in it fails the test.
#[track_caller]
fn submit(store: &Store, path: &str, content: &str) -> Arc<Ticket> {
    let tx = writing(store, path, content);
    Arc::new(within(move || tx.submit()).unwrap())
}

/// Counts how often it wakes, and tells a test.
struct Bell {
    count: AtomicU64,
    rung: mpsc::SyncSender<()>,
}

impl Bell {
    fn new() -> (Arc<Self>, mpsc::Receiver<()>) {
        let (rung, heard) = mpsc::sync_channel(100);
        (Arc::new(Self { count: AtomicU64::new(0), rung }), heard)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let _ = self.rung.try_send(());
    }
}

fn poll(ticket: &mut Ticket, waker: &Waker) -> Poll<Result<Receipt, Error>> {
    Pin::new(ticket).poll(&mut Context::from_waker(waker))
}

// Order.

/// Goal: submit returns before the sync; `durable` after it and before the apply; `applied` after that. Method: a disk
/// that stops at each of the two.
#[test]
fn durable_comes_after_the_sync_and_before_the_apply() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let ticket = submit(&store, "a", "1");
    disk.wait_for(1);
    let (first, second) = (ticket.clone(), ticket.clone());
    let waits_for_durable = start(move || first.durable());
    let waits_for_applied = start(move || second.applied());
    waits_for_durable.assert_blocked();
    assert!(!ticket.is_done());
    assert!(format!("{ticket:?}").contains("durable: None"), "{ticket:?}");

    disk.close_at(Point::Apply);
    let tx = waits_for_durable.end().unwrap();
    disk.wait_for(2);
    assert_eq!(tx, TransactionId(1));
    waits_for_applied.assert_blocked();
    assert!(!ticket.is_done() && disk.read("a").is_none());

    disk.let_go();
    let receipt = waits_for_applied.end().unwrap();
    assert_eq!((receipt.tx(), receipt.files()), (tx, 1));
    assert_eq!(disk.read("a").unwrap(), b"1");
    assert!(ticket.is_done());
    assert_eq!((durable(&ticket).unwrap(), applied(&ticket).unwrap()), (tx, receipt));
    store.close().unwrap();
}

/// Goal: what `durable` acknowledges survives a power cut in that very moment, before anything is in place.
#[test]
fn what_is_durable_survives_before_it_is_applied() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Apply);
    let ticket = submit(&store, "a", "1");
    durable(&ticket).unwrap();
    assert!(disk.read("a").is_none());
    for seed in 0..50 {
        let machine = disk.sim.power_cut(seed);
        let store = Options::new().vfs(Arc::new(machine.clone())).open("/tree").unwrap();
        assert_eq!(machine.read_file("/tree/a").unwrap(), b"1", "seed {seed}");
        assert_eq!(store.recovery().redone, 1);
    }
    disk.let_go();
    applied(&ticket).unwrap();
}

/// Goal: thousands of submits from several threads share few syncs; each thread's become durable in its order. Method:
/// a disk that takes 2 ms a sync, and counts.
#[test]
fn many_submits_share_few_syncs() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let disk = Disk::new();
    let store = disk.options().segment_bytes(4 << 20).log_bytes_max(64 << 20).open("/tree").unwrap();
    disk.set(|gate| gate.delay = Duration::from_millis(2));
    let before = disk.syncs();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let store = store.clone();
            start(move || {
                let submit = |n| writing(&store, &format!("{thread}/{n}"), "x").submit().unwrap();
                let tickets: Vec<Ticket> = (0..EACH).map(submit).collect();
                let transactions: Vec<_> = tickets.iter().map(|ticket| ticket.durable().unwrap()).collect();
                for (ticket, tx) in tickets.iter().zip(&transactions) {
                    assert_eq!(ticket.applied().unwrap().tx(), *tx);
                }
                assert!(transactions.windows(2).all(|pair| pair[0] < pair[1]), "in the order of submission");
                transactions
            })
        })
        .collect();
    let transactions: BTreeSet<TransactionId> = threads.into_iter().flat_map(Running::end).collect();
    assert_eq!(transactions.len(), THREADS * EACH);
    let syncs = disk.syncs() - before;
    assert!(syncs * 10 < (THREADS * EACH) as u64, "{syncs} syncs");
    for (thread, n) in [(0, 0), (THREADS - 1, EACH - 1)] {
        assert_eq!(disk.read(&format!("{thread}/{n}")).unwrap(), b"x");
    }
    disk.set(|gate| gate.delay = Duration::ZERO);
    store.close().unwrap();
}

/// Goal: submitted and ordinary commits of several threads go together, conflicts included. Method: threads of both
/// kinds add to files of their own and one of all; nothing acknowledged is lost.
#[test]
fn submits_and_commits_go_together() {
    let disk = Disk::new();
    let store = disk
        .options()
        .checkpoints(Checkpoints::Background)
        .settle_after(Duration::ZERO)
        .open("/tree")
        .unwrap();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let store = store.clone();
            start(move || {
                let mut counted = 0;
                for _ in 0..100 {
                    let mut tx = store.begin().unwrap();
                    let put = tx.append(format!("own-{thread}"), ".").and_then(|()| tx.append("all", "."));
                    let result = match put {
                        Ok(()) if thread % 2 == 0 => tx.submit().and_then(|ticket| ticket.applied()),
                        Ok(()) => tx.commit(),
                        Err(error) => Err(error),
                    };
                    match result {
                        Ok(_) => counted += 1,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                    }
                }
                (thread, counted)
            })
        })
        .collect();
    let mut total = 0;
    for (thread, counted) in threads.into_iter().map(Running::end) {
        assert_eq!(disk.read(&format!("own-{thread}")).unwrap_or_default().len(), counted);
        total += counted;
    }
    assert!(total > 0);
    assert_eq!(disk.read("all").unwrap().len(), total);
    within(move || store.close()).unwrap();
}

/// Goal: a bounded number waits; who submits more blocks until there is room.
#[test]
fn submit_blocks_when_too_many_wait() {
    let disk = Disk::new();
    let refused = disk.options().submitted_max(0).open("/tree").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let store = disk.options().submitted_max(2).open("/tree").unwrap();
    disk.close_at(Point::Sync);
    let tickets = [submit(&store, "a", "1"), submit(&store, "b", "2")];
    let tx = writing(&store, "c", "3");
    let third = start(move || tx.submit());
    third.assert_blocked();
    disk.let_go();
    let third = Arc::new(third.end().unwrap());
    assert_eq!(applied(&third).unwrap().tx(), TransactionId(3));
    assert!(tickets.iter().all(|ticket| applied(ticket).is_ok()));
    within(move || store.close()).unwrap();
}

/// A transaction that changes nothing has no number, and is durable as it is.
#[test]
fn a_transaction_that_only_reads_gets_a_ticket_too() {
    let disk = Disk::new();
    let store = disk.open();
    let before = disk.syncs();
    let mut tx = store.begin().unwrap();
    assert!(!tx.exists("a").unwrap());
    let ticket = Arc::new(tx.submit().unwrap());
    assert_eq!(durable(&ticket).unwrap(), TransactionId(0));
    assert_eq!(applied(&ticket).unwrap().files(), 0);
    assert_eq!(disk.syncs(), before);
    store.close().unwrap();
}

/// Goal: a settled transaction's ticket is durable with the log, and applied when readers that don't recover find whole
/// files. Method: a disk stopped in the checkpoint, and power cuts afterwards.
#[test]
fn a_settled_transaction_is_applied_when_it_is_settled() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Apply);
    let mut tx = writing(&store, "a", "settled");
    tx.set_durability(Durability::Settled);
    let ticket = Arc::new(within(move || tx.submit()).unwrap());
    disk.wait_for(1);
    durable(&ticket).unwrap();
    // From here on the only sync of the log is the checkpoint's.
    disk.close_at(Point::Sync);
    disk.wait_for(2);
    assert_eq!(disk.read("a").unwrap(), b"settled");
    assert!(!ticket.is_done());
    disk.let_go();
    applied(&ticket).unwrap();
    for seed in 0..50 {
        let found = disk.sim.power_cut(seed).read_file("/tree/a");
        assert_eq!(found.as_deref(), Some(&b"settled"[..]), "seed {seed}");
    }
    store.close().unwrap();
}

// Futures.

/// Goal: a future is woken once, by the waker that it was polled with last, and is ready then; polled again it says the
/// same.
#[test]
fn a_future_wakes_the_waker_that_it_was_polled_with_last() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let tx = writing(&store, "a", "1");
    let mut ticket = within(move || tx.submit()).unwrap();
    let ((early, _early), (late, heard)) = (Bell::new(), Bell::new());
    assert!(poll(&mut ticket, &early.clone().into()).is_pending());
    for _ in 0..3 {
        assert!(poll(&mut ticket, &late.clone().into()).is_pending());
    }
    assert_eq!(Arc::strong_count(&early), 1, "the first waker was let go of");
    assert!(heard.recv_timeout(A_WHILE).is_err(), "it is not woken for nothing");
    disk.let_go();
    heard.recv_timeout(TOO_LONG).expect("nobody wakes it");
    for _ in 0..2 {
        let Poll::Ready(outcome) = poll(&mut ticket, &late.clone().into()) else {
            panic!("woken for nothing")
        };
        assert_eq!(outcome.unwrap().tx(), TransactionId(1));
    }
    assert_eq!((early.count.load(Ordering::SeqCst), late.count.load(Ordering::SeqCst)), (0, 1));
    drop(ticket);
    store.close().unwrap();
    assert_eq!(Arc::strong_count(&late), 1);
}

/// Goal: awaiting works with nothing but `std`. Method: an async function that awaits several tickets, also an error.
#[test]
fn tickets_can_be_awaited_without_a_runtime() {
    let disk = Disk::new();
    let store = disk.open();
    let (first, second) = (writing(&store, "a", "1"), writing(&store, "a", "2"));
    let work = async move {
        let first = first.submit()?;
        let second = second.submit()?;
        let receipt = first.await?;
        Ok::<_, Error>((receipt, second.await))
    };
    let (receipt, conflict) = within(move || block_on(work)).unwrap();
    assert_eq!(receipt.tx(), TransactionId(1));
    assert_eq!(conflict.unwrap_err().kind(), ErrorKind::Conflict);
    store.close().unwrap();
}

/// A waker that panics is its owner's trouble: others are woken, and the store goes on.
#[test]
fn a_waker_that_panics_harms_nobody() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a panic on purpose");
        }
    }
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let tx = writing(&store, "a", "1");
    let mut bad = within(move || tx.submit()).unwrap();
    assert!(poll(&mut bad, &Arc::new(Panics).into()).is_pending());
    let good = submit(&store, "b", "2");
    disk.let_go();
    applied(&good).unwrap();
    assert!(bad.is_done());
    applied(&submit(&store, "c", "3")).unwrap();
    within(move || store.close()).unwrap();
}

/// Goal: a task that is dropped by its own waker, and with it the last handle of the store, closes the store without
/// waiting for itself; closing from a waker is refused. Method: a waker that owns handles; then the store opens again.
#[test]
fn a_waker_may_drop_the_last_handle() {
    struct Owner(Mutex<Option<(Store, Store)>>, mpsc::SyncSender<ErrorKind>);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            let (one, other) = self.0.lock().unwrap().take().unwrap();
            let _ = self.1.send(one.close().unwrap_err().kind());
            drop(other);
        }
    }
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let tx = writing(&store, "a", "1");
    let mut ticket = within(move || tx.submit()).unwrap();
    disk.wait_for(1);
    let later = submit(&store, "b", "2");
    let (sender, refused) = mpsc::sync_channel(1);
    let owner = Owner(Mutex::new(Some((store.clone(), store))), sender);
    assert!(poll(&mut ticket, &Arc::new(owner).into()).is_pending());
    disk.let_go();
    assert_eq!(refused.recv_timeout(TOO_LONG).expect("it hangs"), ErrorKind::InvalidInput);
    applied(&later).unwrap();
    let start = Instant::now();
    let again = loop {
        match disk.options().exclusive(true).lock_timeout(Duration::ZERO).open("/tree") {
            Err(error) if error.kind() == ErrorKind::Locked => {
                assert!(start.elapsed() < TOO_LONG, "nobody closes it");
                thread::sleep(Duration::from_millis(1));
            }
            result => break result.unwrap(),
        }
    };
    assert_eq!(*again.recovery(), RecoveryReport::default(), "it was closed");
    assert_eq!((disk.read("a").unwrap(), disk.read("b").unwrap()), (b"1".to_vec(), b"2".to_vec()));
}

// Dropping and closing.

/// Dropping tickets cancels nothing.
#[test]
fn a_dropped_ticket_commits_all_the_same() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    for n in 0..20 {
        drop(submit(&store, &format!("{n}"), "x"));
    }
    disk.let_go();
    within(move || store.close()).unwrap();
    assert!((0..20).all(|n| disk.read(&n.to_string()).unwrap() == b"x"));
}

/// Goal: dropping the last handle waits for everything that was submitted, and tickets outlive it. Method: a stopped
/// disk; the tree is checked through another open.
#[test]
fn dropping_the_store_waits_and_tickets_outlive_it() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let tickets: Vec<_> = (0..5).map(|n| submit(&store, &n.to_string(), "x")).collect();
    let dropping = start(move || drop(store));
    dropping.assert_blocked();
    assert!(tickets.iter().all(|ticket| !ticket.is_done()));
    disk.let_go();
    dropping.end();
    for ticket in &tickets {
        assert!(ticket.is_done());
        assert_eq!(applied(ticket).unwrap().files(), 1);
    }
    assert_eq!(*disk.open().recovery(), RecoveryReport::default());
}

/// Goal: close waits for everything that was submitted, with whatever outcome, and refuses what comes meanwhile. Method:
/// a stopped disk, also one on which someone waits for a place in the queue.
#[test]
fn close_waits_for_everything_submitted() {
    let disk = Disk::new();
    let store = disk.options().submitted_max(3).open("/tree").unwrap();
    disk.close_at(Point::Sync);
    let tickets: Vec<_> = (0..3).map(|n| submit(&store, &n.to_string(), "x")).collect();
    let (late, later) = (writing(&store, "late", "x"), writing(&store, "later", "x"));
    let waits_for_a_place = start(move || late.submit());
    waits_for_a_place.assert_blocked();
    let closing = start({
        let store = store.clone();
        move || store.close()
    });
    assert_eq!(waits_for_a_place.end().unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(within(move || later.submit()).unwrap_err().kind(), ErrorKind::InvalidInput);
    closing.assert_blocked();
    disk.let_go();
    closing.end().unwrap();
    for ticket in &tickets {
        assert!(ticket.is_done());
        applied(ticket).unwrap();
    }
    assert_eq!(store.begin().err().unwrap().kind(), ErrorKind::InvalidInput);
    assert!(disk.read("late").is_none() && disk.read("later").is_none());
    assert_eq!(*disk.open().recovery(), RecoveryReport::default());
}

/// A close that fails leaves a store that takes transactions again.
#[test]
fn a_close_that_fails_can_be_tried_again() {
    let disk = Disk::new();
    let store = disk.open();
    applied(&submit(&store, "a", "1")).unwrap();
    // The manifest is written under this name, twice, because the first time the reserve helps.
    let is_manifest =
        |call: &Call| call.verb == Verb::WriteAt && call.name.as_ref().is_some_and(|name| name == "new");
    disk.faults.set_rule(Arc::new(move |call| is_manifest(call).then_some(Fault::Error(ENOSPC))));
    assert_eq!(store.clone().close().unwrap_err().kind(), ErrorKind::NoSpace);
    disk.faults.set_rule(fail_nothing());
    applied(&submit(&store, "b", "2")).unwrap();
    within(move || store.close()).unwrap();
    assert_eq!(*disk.open().recovery(), RecoveryReport::default());
}

/// The last handle may be the transaction's own: then submitting closes the store, after the commit.
#[test]
fn a_transaction_may_be_the_last_handle() {
    let disk = Disk::new();
    let tx = writing(&disk.open(), "a", "1");
    let ticket = within(move || tx.submit()).unwrap();
    assert!(ticket.is_done());
    ticket.applied().unwrap();
    assert_eq!(*disk.open().recovery(), RecoveryReport::default());
    assert_eq!(disk.read("a").unwrap(), b"1");
}

// What goes wrong.

/// Goal: what a submitted transaction changes is a conflict for whoever saw it without that, whether the two share a
/// batch or not; the others of the batch commit; an error can be asked for again.
#[test]
fn a_submitted_transaction_conflicts_like_any_other() {
    let disk = Disk::new();
    let store = disk.open();
    disk.close_at(Point::Sync);
    let first = submit(&store, "first", "holds the disk up");
    disk.wait_for(1);
    // These are one parcel.
    let winner = submit(&store, "a", "1");
    let other = submit(&store, "b", "1");
    let loser = submit(&store, "a", "2");
    let mut tx = store.begin().unwrap();
    assert!(!tx.exists("b").unwrap());
    tx.write("c", "3").unwrap();
    let reader = Arc::new(within(move || tx.submit()).unwrap());
    disk.let_go();
    for ticket in [&first, &winner, &other] {
        applied(ticket).unwrap();
    }
    for (ticket, path) in [(&loser, "a"), (&reader, "b")] {
        let told = [durable(ticket).map(drop), applied(ticket).map(drop), applied(ticket).map(drop)];
        let told = told.map(Result::unwrap_err);
        for error in &told {
            assert_eq!((error.kind(), error.path()), (ErrorKind::Conflict, Some(Path::new(path))));
            assert_eq!(error.to_string(), told[0].to_string());
        }
    }
    assert!(disk.read("c").is_none());
    applied(&submit(&store, "a", "3")).unwrap();
    assert_eq!(disk.read("a").unwrap(), b"3");
    store.close().unwrap();
}

/// Goal: two transactions that make the same directory are no conflict, even if one makes it while the other looks for
/// it, as happens all the time when many are submitted. Method: a directory that comes into being between the two looks.
#[test]
fn a_directory_made_between_two_looks_is_no_conflict() {
    let disk = Disk::new();
    let store = disk.open();
    let mut tx = store.begin().unwrap();
    let sim = disk.sim.clone();
    disk.faults.set_rule(Arc::new(move |call| {
        // Taking an image of it comes after opening it as a directory was tried in vain.
        let is_look = call.verb == Verb::OpenFile && call.name.as_ref().is_some_and(|name| name == "d");
        if is_look && sim.read_file("/tree/d/marker").is_none() {
            sim.advance(20_000_000);
            sim.create_dir("/tree/d");
            sim.write_file("/tree/d/marker", b"made meanwhile");
        }
        None
    }));
    tx.write("d/file", "1").unwrap();
    assert!(disk.read("d/marker").is_some(), "the test's premise");
    let ticket = Arc::new(within(move || tx.submit()).unwrap());
    assert_eq!(applied(&ticket).unwrap().files(), 1);
    assert_eq!(disk.read("d/file").unwrap(), b"1");
    store.close().unwrap();
}

/// Goal: a full log makes submitted transactions wait, in their order, and one that never fits fails alone. Method: a
/// log of three segments, transactions large and small in one parcel, and one with too many names among them.
#[test]
fn a_full_log_keeps_the_order() {
    let disk = Disk::new();
    let store = disk.options().log_bytes_max(3 * (64 << 10)).open("/tree").unwrap();
    disk.close_at(Point::Sync);
    let first = submit(&store, "first", "holds the disk up");
    disk.wait_for(1);
    let mut tickets = Vec::new();
    for n in 0..60 {
        let bytes = if n % 3 == 0 { 14_000 } else { 10 };
        tickets.push(submit(&store, &n.to_string(), &"x".repeat(bytes)));
        if n == 20 {
            let mut tx = store.begin().unwrap();
            for f in 0..2500 {
                tx.write(format!("dir/{f:0>200}"), "names count as well").unwrap();
            }
            let too_large = Arc::new(within(move || tx.submit()).unwrap());
            tickets.push(too_large);
        }
    }
    disk.let_go();
    applied(&first).unwrap();
    let refused = tickets.remove(21);
    assert_eq!(applied(&refused).unwrap_err().kind(), ErrorKind::NoSpace);
    let transactions: Vec<u64> = tickets.iter().map(|ticket| applied(ticket).unwrap().tx().0).collect();
    assert_eq!(transactions, (2..62).collect::<Vec<_>>());
    assert_eq!(durable(&refused).unwrap_err().kind(), ErrorKind::NoSpace);
    within(move || store.close()).unwrap();
}

/// Goal: a failed sync wakes every ticket: those that it was for with `outcome_unknown`, those behind it with
/// `poisoned`; nothing is acknowledged afterwards, and dropping the store does not wait. Method: a sync that fails while
/// others wait, blocked, as futures, and for a place.
#[test]
fn a_failed_sync_wakes_everybody() {
    let disk = Disk::new();
    let store = disk.options().submitted_max(5).open("/tree").unwrap();
    disk.close_at(Point::Sync);
    let first = submit(&store, "0", "x");
    disk.wait_for(1);
    let behind: Vec<_> = (1..4).map(|n| submit(&store, &n.to_string(), "x")).collect();
    let tx = writing(&store, "4", "x");
    let future = within(move || tx.submit()).unwrap();
    let last = writing(&store, "5", "x");
    let after = writing(&store, "6", "x");
    let waits_for_a_place = start(move || last.submit().and_then(|ticket| ticket.applied()));
    let waits = first.clone();
    let blocked = start(move || waits.durable());
    let awaits = start(move || block_on(future));
    blocked.assert_blocked();
    disk.set(|gate| {
        gate.fate = Some(Fate::Fails);
        gate.closed_at = None;
    });
    let error = blocked.end().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(applied(&first).unwrap_err().to_string(), error.to_string());
    for ticket in &behind {
        assert_eq!(durable(ticket).unwrap_err().kind(), ErrorKind::Poisoned);
    }
    assert_eq!(awaits.end().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(waits_for_a_place.end().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(within(move || after.submit()).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(store.begin().err().unwrap().kind(), ErrorKind::Poisoned);
    within(move || drop(store));
    let machine = disk.sim.power_cut(1);
    drop(Options::new().vfs(Arc::new(machine.clone())).open("/tree").unwrap());
    assert!((1..=6).all(|n| machine.read_file(format!("/tree/{n}")).is_none()));
}

/// Goal: a panic in whoever leads a batch, the committing thread or another, wakes every ticket of it with
/// `outcome_unknown` and later ones with `poisoned`; nothing hangs. Method: a disk that panics in a sync.
#[test]
fn a_panic_wakes_everybody() {
    for led_by_a_commit in [false, true] {
        let disk = Disk::new();
        let store = disk.open();
        disk.close_at(Point::Sync);
        let first = submit(&store, "first", "holds the disk up");
        disk.wait_for(1);
        let commit = led_by_a_commit.then(|| {
            let tx = writing(&store, "commit", "x");
            let running = start(move || tx.commit());
            running.assert_blocked();
            running
        });
        let behind: Vec<_> = (0..3).map(|n| submit(&store, &n.to_string(), "x")).collect();
        if led_by_a_commit {
            // The first sync is held and the panic is the next one's, which is led by the one that waited longest.
            let gate = disk.gate.clone();
            disk.faults.set_rule(Arc::new(move |call| {
                gate.0.lock().unwrap().fate = Some(Fate::Panics);
                pass(&gate, call)
            }));
        } else {
            disk.set(|gate| gate.fate = Some(Fate::Panics));
        }
        disk.let_go();
        let kinds: Vec<_> = behind.iter().map(|ticket| applied(ticket).unwrap_err().kind()).collect();
        if let Some(commit) = commit {
            applied(&first).unwrap();
            // Its thread has panicked, or been abandoned by the one that did.
            let ended = commit.outcome();
            assert!(!matches!(ended, Ok(Ok(_)) | Err(mpsc::RecvTimeoutError::Timeout)), "{ended:?}");
        } else {
            assert_eq!(durable(&first).unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        }
        let is_told = |kind| matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Poisoned);
        assert!(kinds.into_iter().all(is_told));
        disk.faults.set_rule(fail_nothing());
        assert_eq!(store.begin().err().unwrap().kind(), ErrorKind::Poisoned);
        within(move || drop(store));
    }
}

// Crashes.

/// One of these per transaction; two files, so that halves show.
fn names(n: usize) -> [String; 2] {
    [format!("{n}/one"), format!("{n}/two")]
}

/// Goal: whatever the moment of a kill or a power cut, each submitted transaction is there whole or not at all, those
/// that `durable` had acknowledged are there, and none without those before it. Method: a machine that stops at each of
/// its operations while a dozen are submitted, some of them too large to travel in the log; every other time the disk
/// is slow, so that parcels are large.
#[test]
fn crashes_leave_submitted_transactions_whole_in_order() {
    const TRANSACTIONS: usize = 12;
    let run = |halt_at: Option<u64>, delay: Duration| {
        let disk = Disk::new();
        let store = disk.options().inline_bytes_max(3000).open("/tree").unwrap();
        disk.set(|gate| gate.delay = delay);
        let before = disk.sim.operations();
        if let Some(operation) = halt_at {
            disk.sim.halt_at(before + operation);
        }
        let mut tickets = Vec::new();
        for n in 0..TRANSACTIONS {
            let submitted = store.begin().and_then(|mut tx| {
                let bytes = if n % 5 == 4 { 5000 } else { 100 };
                names(n).into_iter().try_for_each(|name| tx.write(name, vec![b'x'; bytes]))?;
                tx.submit()
            });
            match submitted {
                Ok(ticket) => tickets.push(Arc::new(ticket)),
                Err(error) => assert!(disk.sim.is_halted(), "{error}"),
            }
        }
        let acknowledged: Vec<usize> = (0..tickets.len()).filter(|n| durable(&tickets[*n]).is_ok()).collect();
        let operations = disk.sim.operations() - before;
        within(move || drop(store));
        (disk.sim, acknowledged, operations)
    };
    let (_, acknowledged, operations) = run(None, Duration::ZERO);
    assert_eq!(acknowledged.len(), TRANSACTIONS);
    let mut found = BTreeSet::new();
    for operation in 1..=operations {
        let delay = Duration::from_micros(if operation % 2 == 0 { 0 } else { 300 });
        let (sim, acknowledged, _) = run(Some(operation), delay);
        for seed in 0..8 {
            let machine = if seed == 0 { sim.kill() } else { sim.power_cut(seed) };
            let store = Options::new().vfs(Arc::new(machine.clone())).open("/tree").unwrap();
            let context = format!("operation {operation}, seed {seed}, acknowledged {acknowledged:?}");
            let is_there = |n: usize| {
                let there = names(n).map(|name| machine.read_file(Path::new("/tree").join(name)).is_some());
                assert_eq!(there[0], there[1], "{context}: half of {n}");
                there[0]
            };
            let there: Vec<bool> = (0..TRANSACTIONS).map(is_there).collect();
            let count = there.iter().filter(|is_there| **is_there).count();
            assert!(there[..count].iter().all(|is_there| *is_there), "{context}: a gap in {there:?}");
            assert!(acknowledged.iter().all(|n| there[*n]), "{context}: lost one of {there:?}");
            found.insert(count);
            drop(store);
        }
    }
    assert!(found.len() > 3, "it was always the same: {found:?}");
}
