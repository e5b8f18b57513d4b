//! Power cuts at chosen storage operations, of recovery above all.

use atomtree_tests::chosen::{Target, list};
use atomtree_tests::volume::Kind;

use super::{cut, volume};
use crate::basics::{child, child_root};
use crate::kills::operations::{Plan, chosen, live};
use crate::kills::{Chain, Speaking};

/// For each file system; every second of them is to hit a recovery, if it takes that long.
const ROUNDS: u64 = 24;

/// Goal: a power cut before any storage operation, of commits, moves of directories, checkpoints and closing, and of the
/// recovery from the cut before, and of the recovery from that, keeps what was acknowledged, in whole versions, on a store
/// that is never cleaned. Method: a child stops before an operation that is drawn from all of them, the power goes, and
/// the next child begins with recovery.
#[test]
fn a_power_cut_at_any_operation_of_commits_and_recoveries_is_recovered() {
    let test = "power_cuts::operations::a_power_cut_at_any_operation_of_commits_and_recoveries_is_recovered";
    if let Some(root) = child_root() {
        let stops = || loop {
            std::thread::park();
        };
        return live(&root, &chosen("stopped", stops));
    }
    for kind in Kind::ALL {
        let Some((volume, root)) = volume(kind) else { continue };
        let mut plan = Plan::new(false);
        let mut chain = Chain::default();
        let mut hits = Vec::new();
        for round in 0..ROUNDS {
            let targets: Vec<Target> = match round % 4 {
                // The second hits the recovery from the first, the third the recovery from that.
                0 => plan.somewhere(),
                1 | 2 => [vec![plan.any("recover")], plan.somewhere()].concat(),
                _ => plan.next(),
            };
            let targets = list(&targets);
            let label = format!("{} round {round}, cut at {targets}", kind.name());
            let mut speaking = Speaking::start(
                child(test, &root).env("ATOMTREE_TARGETS", &targets).env("ATOMTREE_THREADS", "1"),
            );
            let said = speaking.wait_for("stopped");
            match said.last().and_then(|line| line.strip_prefix("stopped ")) {
                Some(operation) => hits.push(operation.to_owned()),
                None => assert_eq!(said.last().map(String::as_str), Some("ended"), "{label}: {said:#?}"),
            }
            cut(&volume, speaking, said, &mut chain, (), &label);
        }
        chain.check_history(&root);
        let in_recovery = hits.iter().filter(|operation| operation.starts_with("recover")).count();
        println!(
            "{}: {} cuts, {in_recovery} of them in recovery, {} commits, {} redone; at {hits:?}",
            kind.name(),
            hits.len(),
            chain.commits(),
            chain.redone
        );
        assert!(hits.len() as u64 > ROUNDS / 2 && in_recovery > 0, "{}: {hits:?}", kind.name());
        assert!(chain.redone > 0, "{}: cuts hit nothing", kind.name());
    }
}
