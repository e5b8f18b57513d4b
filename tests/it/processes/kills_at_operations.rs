//! Members that are killed at chosen operations, and others, open all the while, that go on.

use atomtree::{Options, Store};
use atomtree_tests::chosen::list;

use super::{PATIENCE, Worker};
use crate::basics::{Random, child, child_root, commit};
use crate::kills::operations::{Plan, deadly, live};
use crate::kills::{Chain, check_report, tiny, versions};

/// As many kills in the ordinary run.
const KILLS: u64 = 60;

fn options() -> Options {
    tiny().lock_timeout(PATIENCE)
}

/// Goal: who dies before any operation of joining, committing, checkpointing or leaving holds nobody up: the next member that
/// commits finishes or voids what it left, without opening the store again; what was acknowledged is there, and no
/// transaction by half. Method: children that are killed at a chosen operation, one after another, beside two stores that
/// stay open, of which one, the other or none commits next; what stands is judged at once.
#[test]
fn members_finish_what_the_dead_have_left() {
    let test = "processes::kills_at_operations::members_finish_what_the_dead_have_left";
    if let Some(root) = child_root() {
        return live(&root, &deadly());
    }
    let rounds = std::env::var("ATOMTREE_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let mut random = Random::from_environment();
    let members: [Store; 2] = [options().open(root).unwrap(), options().open(root).unwrap()];
    let (mut plan, mut chain) = (Plan::new(false), Chain::default());
    let (mut killed, mut round) = (0, 0);
    while killed < rounds {
        assert!(round < 4 * rounds, "too few of the children are killed: {killed} of {round}");
        let targets = plan.next();
        let label = format!("round {round}, killed at {}", list(&targets));
        let mut command = child(test, root);
        command.env("ATOMTREE_THREADS", "1").env("ATOMTREE_TARGETS", list(&targets));
        let (said, status) = Worker::start_command(&mut command, label.clone()).ended();
        let rest = chain.hear(said.into_iter(), &label);
        let is_killed = rest.iter().any(|line| line.starts_with("killed"));
        assert!(
            rest.iter()
                .all(|line| line.starts_with("count") || line.starts_with("killed") || line == "ended"),
            "{label}: the child complained: {rest:#?}"
        );
        assert_eq!(status, (!is_killed).then_some(0), "{label}");
        killed += u64::from(is_killed);
        round += 1;
        let which = random.below(3) as usize;
        let Some(member) = members.get(which) else {
            // The next child finds it.
            continue;
        };
        commit(member, |tx| tx.write(format!("by-{which}"), label.clone()))
            .unwrap_or_else(|error| panic!("{label}: member {which} can't commit: {error}"));
        let stands = format!("stands 0 {}", versions(0).standing(root, &label));
        assert!(chain.hear([stands].into_iter(), &label).is_empty());
    }
    let mut redone = 0;
    for member in &members {
        for report in member.take_overs() {
            check_report(&report, "a member");
            redone += report.redone;
        }
    }
    for member in members {
        member.close().unwrap();
    }
    chain.check_history(root);
    println!(
        "{killed} kills in {round} rounds, {} commits; {redone} redone by members, {} by who opened the store",
        chain.commits(),
        chain.redone
    );
    assert!(redone > 0, "the members had nothing to finish");
}
