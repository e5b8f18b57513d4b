//! Members that are killed and stopped at random instants, while others go on.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atomtree::{Options, Transaction};
use atomtree_tests::signals::Signal;

use super::{PATIENCE, Worker, duration, end, given, holder, insist, prepared, ready};
use crate::basics::{Random, child_root};
use crate::kills::{Chain, check_report, say, tiny, versions};

const PROCESSES: u64 = 5;

fn options() -> Options {
    // Everybody waits for who is stopped.
    tiny().lock_timeout(PATIENCE)
}

/// Commits versions of this process's own directory, and now and then counts up what all share. Others may have rewritten
/// a file of its own in a recovery, so that a version is tried again.
fn commit_versions(root: &Path) {
    let own = given("OWN");
    let store = options().open(root).unwrap_or_else(|error| panic!("not opened: {error}"));
    check_report(store.recovery(), "a child");
    let label = format!("process {own}");
    say(&format!("opened {}", store.recovery().redone));
    let mut standing = versions(own).standing(root, &label);
    say(&format!("stands {own} {standing}"));
    let wanted = ready();
    while wanted.load(Ordering::Relaxed) {
        standing += 1;
        let ((), receipt, _) = insist(&store, |tx: &mut Transaction| {
            tx.set_label(format!("{own}:{standing}"));
            versions(own).change(tx, standing)
        })
        .unwrap_or_else(|error| panic!("version {standing}: {error}"));
        assert!(receipt.displaced().is_empty() && receipt.lost().is_empty(), "{receipt:?}");
        say(&format!("ack {own} {standing}"));
        if standing.is_multiple_of(3) {
            let (count, ..) = insist(&store, |tx| {
                let count = super::number(tx, "shared")? + 1;
                tx.write("shared", count.to_string())?;
                Ok(count)
            })
            .unwrap_or_else(|error| panic!("shared: {error}"));
            say(&format!("shared {count}"));
        }
    }
    for report in store.take_overs() {
        check_report(&report, &label);
        say(&format!("took {}", report.redone));
    }
    store.close().unwrap();
}

/// The members, by what directory is theirs, and what they have done.
struct Crew<'a> {
    test: &'a str,
    root: &'a Path,
    workers: Vec<Worker>,
    chain: Chain,
    acknowledged: u64,
    /// Transactions that others finished for those who died.
    taken_over: u64,
}

impl Crew<'_> {
    fn start(&self, own: u64) -> Worker {
        Worker::start(self.test, self.root, format!("process {own}"), &[("OWN", own)])
    }

    fn hear(&mut self, lines: Vec<String>, label: &str) {
        self.acknowledged += lines.iter().filter(|line| line.starts_with("ack")).count() as u64;
        for line in self.chain.hear(lines.into_iter(), label) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["ready"] => {}
                ["took", redone] => self.taken_over += redone.parse::<u64>().unwrap(),
                _ => panic!("{label}: a child complained: {line}"),
            }
        }
    }

    /// Takes in what all have said by now.
    fn listen(&mut self, label: &str) {
        for index in 0..self.workers.len() {
            let said = self.workers[index].so_far();
            self.hear(said, label);
        }
    }

    /// How long it takes until another so many versions are acknowledged.
    fn next(&mut self, count: u64, label: &str) -> Duration {
        let (begun, wanted) = (Instant::now(), self.acknowledged + count);
        while self.acknowledged < wanted {
            assert!(begun.elapsed() < PATIENCE, "{label}: nobody gets on");
            std::thread::sleep(Duration::from_millis(1));
            self.listen(label);
        }
        begun.elapsed()
    }
}

/// Goal: members die and stop at any instant, and the others go on with the same store: nothing that was acknowledged is
/// lost, each transaction is there whole or not at all, nobody is stuck, and they are as fast afterwards as before. Method:
/// five processes make versions of directories of their own, with every kind of operation, and count up a shared file; of
/// them one after another is killed and followed by another, or stopped for a while. Each who opens the store checks the
/// directory that it takes up; the history is checked in the end.
#[test]
fn members_die_and_stop_and_the_others_go_on() {
    let test = "processes::kills::members_die_and_stop_and_the_others_go_on";
    if let Some(root) = child_root() {
        return commit_versions(&root);
    }
    let mut random = Random::from_environment();
    let scratch = prepared(options());
    let root = scratch.path();
    let (workers, chain) = (Vec::new(), Chain::default());
    let mut crew = Crew { test, root, workers, chain, acknowledged: 0, taken_over: 0 };
    crew.workers = (0..PROCESSES).map(|own| crew.start(own)).collect();
    for worker in &mut crew.workers {
        // Not heard: nothing stands yet.
        worker.wait_for("ready");
    }
    crew.workers.iter_mut().for_each(|worker| worker.tell("go"));
    let begun = Instant::now();
    let before = crew.next(60, "at first");
    let (mut kills, mut stops, mut longest) = (0, 0, Duration::ZERO);
    // On a slow machine until there was something to survive.
    while begun.elapsed() < duration(Duration::from_secs(5))
        || (kills <= 5 || stops == 0) && begun.elapsed() < PATIENCE
    {
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        // Often who is in the middle of a commit.
        let holder = if random.below(4) > 0 { holder(root, &mut crew.workers) } else { None };
        let own = holder.unwrap_or_else(|| random.below(PROCESSES) as usize);
        let label = format!("kill {kills}, stop {stops}, process {own}");
        if random.below(4) == 0 {
            crew.workers[own].signal(Signal::STOP);
            std::thread::sleep(Duration::from_micros(random.below(50_000)));
            // Dead while it was stopped, now and then.
            if random.below(3) > 0 {
                crew.workers[own].signal(Signal::CONT);
                stops += 1;
                longest = longest.max(crew.next(1, &label));
                continue;
            }
        }
        let said = crew.workers.remove(own).kill();
        crew.hear(said, &label);
        kills += 1;
        longest = longest.max(crew.next(1, &label));
        let mut follower = crew.start(own as u64);
        let said = follower.wait_for("ready");
        crew.hear(said, &label);
        follower.tell("go");
        crew.workers.insert(own, follower);
    }
    let after = crew.next(60, "at last");
    for said in end(std::mem::take(&mut crew.workers)) {
        crew.hear(said, "at the end");
    }
    let Crew { mut chain, acknowledged, taken_over, .. } = crew;
    chain.check_history(root);
    println!(
        "{kills} kills, {stops} stops, {acknowledged} versions; {taken_over} transactions finished by others, {} by openers; \
         60 versions took {before:.2?} at first and {after:.2?} at last; nobody waited longer than {longest:.2?}",
        chain.redone
    );
    assert!(kills > 5 && stops > 0, "there was nothing to survive");
    assert!(after < before * 20 + Duration::from_secs(10), "they have become slow: {before:?}, {after:?}");
}
