//! Closing: it ends, whatever the others are doing, and what was acknowledged is there without a recovery.

use super::*;
use crate::Inspection;

/// A close during a commit's sync waits for it. A commit that comes later is refused and leaves nothing.
///
/// Bound: none, these are all schedules.
#[test]
fn close_during_a_sync() {
    let begin = prepared(|_| ());
    explore("close during a sync", None, move |within_a_sync| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let committer = {
            let store = store.clone();
            start(move || commit(&store, "new", b"new"))
        };
        let is_within = machine.syncs.meet();
        store.close().unwrap();
        let at_close = machine.cut();
        let outcome = committer.join().unwrap();
        let (found, report) = recovered(&at_close);
        assert_eq!(
            report,
            Report::default(),
            "a closed store has nothing to recover, not even after a power cut"
        );
        match outcome {
            Ok(receipt) => {
                assert_eq!(read(&found, "new").unwrap(), b"new");
                let inspection = Inspection::open(ROOT, &options(Arc::new(found))).unwrap();
                let history = inspection.log(10).unwrap();
                assert!(history.iter().any(|past| past.tx == receipt.tx()), "it was not settled");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert_eq!(read(&machine.sim, "new"), None);
            }
        }
        within_a_sync.fetch_add(usize::from(is_within), Relaxed);
    });
}

/// Closing during a sync that fails: both end, neither well, whichever of the two made it.
///
/// Bound: none, these are all schedules.
#[test]
fn close_during_a_failed_sync() {
    let begin = prepared(|_| ());
    explore("close during a failed sync", None, move |within_a_sync| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        machine.sim.fail_next_sync();
        let committer = {
            let store = store.clone();
            start(move || commit(&store, "new", b"new"))
        };
        let is_within = machine.syncs.meet();
        let kind = store.clone().close().unwrap_err().kind();
        assert!([ErrorKind::Poisoned, ErrorKind::Io].contains(&kind), "{kind:?}");
        let kind = committer.join().unwrap().unwrap_err().kind();
        // Refused by the close, by what the close's own sync did to the store, or its sync is the one that failed.
        let expected = [ErrorKind::InvalidInput, ErrorKind::Poisoned, ErrorKind::OutcomeUnknown];
        assert!(expected.contains(&kind), "{kind:?}");
        assert_eq!(store.begin().unwrap_err().kind(), ErrorKind::Poisoned);
        within_a_sync.fetch_add(usize::from(is_within && kind == ErrorKind::OutcomeUnknown), Relaxed);
    });
}

/// Two close at once, beside a committer: both succeed.
///
/// Bound: 2 preemptions.
#[test]
fn two_closes() {
    let begin = prepared(|_| ());
    explore("two closes", Some(2), move |refused| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let (committing, closing) = (store.clone(), store.clone());
        let committer = start(move || commit(&committing, "new", b"new"));
        let closer = start(move || closing.close());
        store.close().unwrap();
        closer.join().unwrap().unwrap();
        let is_committed = committer.join().unwrap().is_ok();
        let (found, report) = recovered(&machine.cut());
        assert_eq!(report, Report::default());
        assert_eq!(read(&found, "new").is_some(), is_committed);
        refused.fetch_add(usize::from(!is_committed), Relaxed);
    });
}

/// What was submitted has an outcome when a close returns, which waits for it: a sync that is under way, a place in the
/// queue, the committing thread itself. Who waits for a place is told that the store is being closed.
///
/// Bound: 3 preemptions.
#[test]
fn close_beside_submits() {
    let begin = prepared(|_| ());
    explore("close beside submits", Some(3), move |refused_behind| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options.submitted_max(1));
        let submitter = {
            let store = store.clone();
            start(move || ["one", "two"].map(|path| writing(&store, path, b"new")?.submit()))
        };
        let is_within = machine.syncs.meet();
        store.close().unwrap();
        let tickets = submitter.join().unwrap();
        let (found, report) = recovered(&machine.cut());
        assert_eq!(report, Report::default());
        let is_taken = tickets.map(|ticket| match ticket {
            Ok(ticket) => {
                assert!(ticket.is_done());
                ticket.applied().unwrap();
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                false
            }
        });
        assert_eq!(["one", "two"].map(|path| read(&found, path).is_some()), is_taken);
        refused_behind.fetch_add(usize::from(is_within && is_taken == [true, false]), Relaxed);
    });
}

/// The last handle closes the store, in whatever thread that is, and whoever has one can still commit.
///
/// Bound: none, these are all schedules.
#[test]
fn last_handle() {
    let begin = prepared(|_| ());
    explore("last handle", None, move |dropped_within_a_sync| {
        let machine = Machine::new(&begin);
        let store = machine.open(|options| options);
        let committer = {
            let store = store.clone();
            start(move || {
                commit(&store, "new", b"new").unwrap();
            })
        };
        let is_within = machine.syncs.meet();
        drop(store);
        committer.join().unwrap();
        let (found, report) = recovered(&machine.cut());
        assert_eq!(report, Report::default());
        assert_eq!(read(&found, "new").unwrap(), b"new");
        dropped_within_a_sync.fetch_add(usize::from(is_within), Relaxed);
    });
}
