//! A failure in one process that all must know of, and the one recovery that lets all go on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atomtree::vfs::Vfs;
use atomtree::vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree::vfs::os::Os;
use atomtree::{Checkpoints, Error, ErrorKind, Options, Store, Transaction};

use super::{PATIENCE, Worker, duration, insist};
use crate::basics::{child_root, commit, inspect, kind_of, small};
use crate::cli::program;
use crate::kills::{Chain, check_report, say, versions};
use crate::races::Running;

/// Input/output error, as Linux numbers it.
const EIO: i32 = 5;

fn options() -> Options {
    small().checkpoints(Checkpoints::Manual)
}

fn is_log(call: &Call) -> bool {
    call.name.as_ref().is_some_and(|name| name.as_encoded_bytes().ends_with(b".seg"))
}

/// What fails, once.
#[derive(Clone, Copy, Debug)]
enum Failing {
    /// The sync of the log, in a commit.
    Commit,
    /// Putting in place, behind the commit point.
    Apply,
    /// The sync of the file system, in a checkpoint.
    Checkpoint,
    /// The sync of the log, in a checkpoint.
    Record,
}

impl Failing {
    const ALL: [Self; 4] = [Self::Commit, Self::Apply, Self::Checkpoint, Self::Record];

    fn is_it(self, call: &Call) -> bool {
        match self {
            Self::Commit | Self::Record => call.verb == Verb::SyncData && is_log(call),
            Self::Apply => call.verb == Verb::Exchange,
            Self::Checkpoint => call.verb == Verb::SyncFilesystem,
        }
    }

    /// Lets it fail for as long as the rule stands.
    fn arm(self, faults: &Faults) {
        faults.set_rule(Arc::new(move |call| self.is_it(call).then_some(Fault::Error(EIO))));
    }

    /// Runs into it.
    fn meet(self, store: &Store) -> Result<(), Error> {
        match self {
            Self::Commit | Self::Apply => commit(store, |tx| {
                tx.write("both-1", "failing")?;
                tx.write("both-2", "failing")
            })
            .map(drop),
            Self::Checkpoint | Self::Record => store.checkpoint(),
        }
    }
}

/// A member whose storage can be made to fail.
fn frail(root: &Path) -> (Faults, Store) {
    let faults = Faults::new(Arc::new(Os), fail_nothing());
    let vfs: Arc<dyn Vfs> = Arc::new(faults.clone());
    let store = options().vfs(vfs).open(root).unwrap();
    (faults, store)
}

/// Commits and says what came of it, as it is told to; `fail N` makes its storage fail, `mend` mends it.
fn obey(root: &Path) {
    let (faults, store) = frail(root);
    say("ready");
    for line in std::io::stdin().lines().map(Result::unwrap) {
        let result = match line.split(' ').collect::<Vec<_>>()[..] {
            ["fail", number] => {
                Failing::ALL[number.parse::<usize>().unwrap()].arm(&faults);
                Ok(())
            }
            ["meet", number] => Failing::ALL[number.parse::<usize>().unwrap()].meet(&store),
            ["mend"] => {
                faults.set_rule(fail_nothing());
                Ok(())
            }
            _ => commit(&store, |tx| tx.write(&line, "x")).map(drop),
        };
        say(&format!("{line}: {}", result.map_or_else(|error| error.kind().code(), |()| "done")));
    }
    store.close().unwrap();
}

/// Opens the store, which recovers it; or the program does.
fn recover(root: &Path, by_program: bool) {
    if by_program {
        let output =
            Command::new(program()).args(["--json", "recover", "--root"]).arg(root).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let store = options().open(root).unwrap();
    commit(&store, |tx| tx.write("opener", "x")).unwrap();
    store.close().unwrap();
}

/// Goal: a failed sync, or a commit that gets stuck, in one process stops all of them: nothing more is acknowledged by any;
/// then one of them that opens the store recovers it, and all go on without opening it again, the one whose storage failed
/// as well. Method: that one is a child, and two more members are in this process; each of four failures in turn, on one
/// store that is never cleaned; recovered by an opener, or by `atomtree recover`.
#[test]
fn one_recovery_mends_the_store_for_all() {
    let test = "processes::poison::one_recovery_mends_the_store_for_all";
    if let Some(root) = child_root() {
        return obey(&root);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let members = [options().open(root).unwrap(), options().open(root).unwrap()];
    let mut worker = Worker::start(test, root, "the failing one", &[]);
    worker.wait_for("ready");
    let mut tell = |order: String| {
        worker.tell(&order);
        let answer = worker.wait_for(&format!("{order}: ")).pop().unwrap();
        answer.rsplit(' ').next().unwrap().to_owned()
    };
    commit(&members[0], |tx| {
        tx.write("both-1", "before")?;
        tx.write("both-2", "before")
    })
    .unwrap();
    for round in 0..8 {
        let (number, by_program) = (round % 4, round >= 4);
        let failing = Failing::ALL[number];
        let label = format!("round {round}, {failing:?}, recovered by the program: {by_program}");
        assert_eq!(tell(format!("there-{round}")), "done", "{label}");
        commit(&members[0], |tx| tx.write(format!("here-{round}"), "x")).unwrap();
        assert_eq!(tell(format!("fail {number}")), "done", "{label}");
        let told = tell(format!("meet {number}"));
        let expected = match failing {
            Failing::Commit => "outcome_unknown",
            Failing::Apply => "committed_not_applied",
            Failing::Checkpoint => "io",
            Failing::Record => "poisoned",
        };
        assert_eq!(told, expected, "{label}");
        for (index, member) in members.iter().enumerate() {
            let refused = commit(member, |tx| tx.write("refused", "x"));
            let refused = refused.map(drop).expect_err(&label);
            assert_eq!(refused.kind(), ErrorKind::Poisoned, "{label}, member {index}: {refused}");
            assert_eq!(kind_of(member.checkpoint()), ErrorKind::Poisoned, "{label}, member {index}");
        }
        assert_eq!(tell("refused".into()), "poisoned", "{label}");
        assert_eq!(tell("mend".into()), "done", "{label}");
        assert_eq!(tell("refused".into()), "poisoned", "{label}: a mended disk proves nothing");
        assert!(!root.join("refused").exists(), "{label}");
        recover(root, by_program);
        // Any of them may be first.
        let mut order: Vec<usize> = vec![0, 1, 2];
        order.rotate_left(round % 3);
        for who in order {
            match members.get(who) {
                Some(member) => {
                    commit(member, |tx| tx.write(format!("after-{round}-{who}"), "x"))
                        .unwrap_or_else(|error| panic!("{label}, member {who}: {error}"));
                }
                None => assert_eq!(tell(format!("after-{round}-{who}")), "done", "{label}"),
            }
        }
        let both = ["both-1", "both-2"].map(|name| fs::read_to_string(root.join(name)).unwrap());
        assert_eq!(both[0], both[1], "{label}: half a transaction");
        if matches!(failing, Failing::Apply) {
            assert_eq!(both[0], "failing", "{label}: it was durable");
        }
        commit(&members[1], |tx| {
            tx.write("both-1", "before")?;
            tx.write("both-2", "before")
        })
        .unwrap();
        // What is older than the failing one's look at the log is settled, so that its next checkpoint is no recovery.
        members[0].checkpoint().unwrap();
    }
    worker.end();
    for member in members {
        member.checkpoint().unwrap();
        member.close().unwrap();
    }
    let verification = inspect(root).verify().unwrap();
    assert!(verification.problems.is_empty() && verification.closed, "{verification:?}");
    assert_eq!(inspect(root).status().unwrap().quarantined, 0);
}

/// Goal: the same while many threads of all members are at it: what was acknowledged before the failure or after the
/// recovery is there, counters never go back, nobody hangs, and nobody is told that something is committed that is not.
/// Method: three members with three threads each make versions of their own directories and count up a file; one's syncs
/// fail now and then; whoever is told that the store is poisoned opens it, if nobody has yet.
#[test]
fn failures_in_the_midst_of_everything_lose_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let busy = || small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(5));
    let faults: Vec<Faults> = (0..3).map(|_| Faults::new(Arc::new(Os), fail_nothing())).collect();
    let members: Vec<Store> =
        faults.iter().map(|faults| busy().vfs(Arc::new(faults.clone())).open(root).unwrap()).collect();
    let wanted = AtomicBool::new(true);
    let chain = Mutex::new(Chain::default());
    let mut failures = 0;
    let hear = |line: String| {
        assert!(chain.lock().unwrap().hear([line].into_iter(), "a thread").is_empty());
    };
    std::thread::scope(|scope| {
        for (index, member) in members.iter().enumerate() {
            for thread in 0..3 {
                let (own, hear, wanted) = (index as u64 * 3 + thread, &hear, &wanted);
                scope.spawn(move || {
                    let mut next = 1;
                    while wanted.load(Ordering::Relaxed) {
                        let done = insist(member, |tx| {
                            tx.set_label(format!("{own}:{next}"));
                            versions(own).change(tx, next)
                        });
                        let is_done = match done {
                            Ok(_) => true,
                            Err(error) => {
                                let allowed = [
                                    ErrorKind::Poisoned,
                                    ErrorKind::OutcomeUnknown,
                                    ErrorKind::CommittedNotApplied,
                                    ErrorKind::Io,
                                ];
                                assert!(allowed.contains(&error.kind()), "thread {own}, {next}: {error:?}");
                                // Once it is recovered, the tree says what came of it.
                                let version = loop {
                                    match member.transact(|tx| number_of(tx, own)) {
                                        Ok((version, _)) => break version,
                                        Err(_) if !wanted.load(Ordering::Relaxed) => return,
                                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                                    }
                                };
                                assert!(version == next || version + 1 == next, "thread {own}: {version}");
                                version == next
                            }
                        };
                        if is_done {
                            hear(format!("ack {own} {next}"));
                            next += 1;
                        }
                    }
                });
            }
        }
        let running = Running(&wanted);
        let begun = Instant::now();
        // On a slow machine a few failures take longer.
        while begun.elapsed() < duration(Duration::from_secs(3)) || failures < 6 && begun.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_millis(40));
            let failing = Failing::ALL[failures % 4];
            let which = &faults[failures % 3];
            failing.arm(which);
            let waiting = Instant::now();
            while members[2].transact(|tx| tx.exists("nothing")).is_ok() {
                assert!(waiting.elapsed() < PATIENCE, "{failing:?} is not met");
                std::thread::sleep(Duration::from_millis(1));
            }
            which.set_rule(fail_nothing());
            failures += 1;
            let opener = busy().open(root).unwrap_or_else(|error| panic!("failure {failures}: {error}"));
            check_report(opener.recovery(), "the opener");
            opener.close().unwrap_or_else(|error| panic!("failure {failures}, the opener's close: {error}"));
        }
        drop(running);
    });
    for (index, member) in members.into_iter().enumerate() {
        member.close().unwrap_or_else(|error| panic!("member {index}: {error}"));
    }
    let mut chain = chain.into_inner().unwrap();
    chain.check_history(root);
    println!("{failures} failures, {} versions", chain.commits());
    assert!(failures >= 6 && chain.commits() > 100, "there was nothing to survive");
}

/// Goal: whose checkpoint can't be made, because another process has failed and nobody has recovered, tries again now and then,
/// and not without a pause. Method: one process has something to settle when the other fails; its tries of locks are counted.
#[test]
fn a_checkpoint_that_is_put_off_is_not_tried_without_a_pause() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let failing = Faults::new(Arc::new(Os), fail_nothing());
    let tries = Arc::new(AtomicU64::new(0));
    let counting = {
        let tries = tries.clone();
        let count = move |call: &Call| {
            tries.fetch_add(u64::from(call.verb == Verb::TryLock), Ordering::Relaxed);
            None
        };
        Faults::new(Arc::new(Os), Arc::new(count))
    };
    let member = small().settle_after(Duration::from_secs(1)).vfs(Arc::new(counting)).open(root).unwrap();
    let other = options().vfs(Arc::new(failing.clone())).open(root).unwrap();
    commit(&member, |tx| tx.write("a", "x")).unwrap();
    Failing::Commit.arm(&failing);
    assert_eq!(kind_of(commit(&other, |tx| tx.write("b", "x"))), ErrorKind::OutcomeUnknown);
    let (before, begun) = (tries.load(Ordering::Relaxed), Instant::now());
    while tries.load(Ordering::Relaxed) == before {
        assert!(begun.elapsed() < PATIENCE, "it is never due");
        std::thread::sleep(Duration::from_millis(1));
    }
    // By far enough for thousands.
    std::thread::sleep(Duration::from_millis(500));
    let during = tries.load(Ordering::Relaxed) - before;
    assert!(during < 200, "{during} tries of locks in half a second");
}

/// The version of a thread's directory, as its small file says it.
fn number_of(tx: &mut Transaction, own: u64) -> Result<u64, Error> {
    let path = format!("t{own}/small");
    if !tx.exists(&path)? {
        return Ok(0);
    }
    let text = String::from_utf8(tx.read(&path)?).expect("it is text");
    Ok(text.split(';').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{text:?}")))
}
