//! Kills at random instants, of children with one to sixteen threads.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Chain, Speaking, THREADS_MAX, commit_versions, kills, open_and_tell, tiny};
use crate::basics::{Random, child, child_root, commit};

pub(super) const KILLS: u64 = 170;

/// As many threads as `ATOMTREE_THREADS` says commit until the process is killed.
pub(crate) fn commit_until_killed(root: &Path) {
    let threads: u64 = std::env::var("ATOMTREE_THREADS").unwrap().parse().unwrap();
    let (store, standing) = open_and_tell(tiny(), root);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (store, standing) = (&store, standing[&thread]);
            scope.spawn(move || commit_versions(store, thread, standing, u64::MAX, &|_| {}));
        }
    });
}

/// Goal: whatever a child had acknowledged before SIGKILL is there after recovery, no transaction is mixed, nothing of
/// anybody's is quarantined or reported lost, and this holds crash after crash on one store that is never cleaned.
/// Method: kills at random instants of children with one to sixteen threads that act on files, directories, symlinks
/// and modes; some are killed while they recover, after which the next child recovers instead of the parent.
#[test]
fn acknowledged_commits_survive_kills() {
    if let Some(root) = child_root() {
        commit_until_killed(&root);
        return;
    }
    let mut random = Random::from_environment();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let mut chain = Chain::default();
    let (mut killed, mut between) = (0, 0);
    let start = Instant::now();
    for round in 0..kills(KILLS) {
        let threads = 1 + random.below(THREADS_MAX);
        let from_start = random.below(4) == 0;
        let after = Duration::from_micros(random.below(45_000));
        let label = format!("round {round}, {threads} threads, after {after:?}");
        let mut speaking = Speaking::start(
            child("kills::instants::acknowledged_commits_survive_kills", root)
                .env("ATOMTREE_THREADS", threads.to_string()),
        );
        let mut lines = if from_start { Vec::new() } else { speaking.wait_for("opened") };
        std::thread::sleep(after);
        speaking.child.kill().unwrap();
        let (later, status) = speaking.end();
        lines.extend(later);
        let rest = chain.hear(lines.into_iter(), &label);
        assert_eq!(rest, Vec::<String>::new(), "{label}: the child complained");
        assert_eq!(status.code(), None, "{label}: it ended by itself");
        killed += 1;
        if random.below(3) > 0 {
            continue;
        }
        let store = chain.open(root, &label);
        commit(&store, |tx| tx.write("between", label.clone())).unwrap();
        between += 1;
        // Closed cleanly, or left to the next child as it is.
        if random.below(2) == 0 {
            store.close().unwrap();
        }
    }
    chain.check_history(root);
    println!(
        "{killed} kills, {} recoveries by other processes, {} commits, {} redone, {:?}",
        chain.recoveries,
        chain.commits(),
        chain.redone,
        start.elapsed()
    );
    assert!(chain.redone > 20 && chain.commits() > 100 && between > 20, "kills hit nothing");
    assert!(killed >= kills(KILLS));
}
