//! What is walked.

use super::search::{Outcome, explore};
use super::{Rule, Scenario};
use std::time::Instant;

fn base(name: &'static str, scripts: &[&[u8]], masks: &[u8]) -> Scenario {
    Scenario {
        name,
        omitted: None,
        masks: masks.to_vec(),
        scripts: scripts.iter().map(|script| script.to_vec()).collect(),
        is_open: vec![true; scripts.len()],
        closes: false,
        checkpoints: vec![1; scripts.len()],
        is_free: false,
        segment_frames: 4,
        deaths: 0,
        reopens: 0,
        cuts: 0,
        failures: 0,
        drops_log: false,
        stuck: 0,
        edits: 0,
    }
}

pub(crate) fn suites() -> Vec<Scenario> {
    let two = base("", &[&[0], &[1]], &[3, 1]);
    let death = Scenario { deaths: 1, ..two.clone() };
    let open = Scenario { reopens: 1, ..death.clone() };
    let failure = Scenario { failures: 1, ..open.clone() };
    let left = |name| Scenario { name, segment_frames: 2, ..base("", &[&[0, 1], &[]], &[3, 1]) };
    vec![
        Scenario { name: "a death", ..death.clone() },
        Scenario { name: "a failure", failures: 1, ..two.clone() },
        Scenario { name: "closes", closes: true, ..two.clone() },
        Scenario { name: "an edit", edits: 1, ..two.clone() },
        Scenario { name: "stuck, an open, an edit", edits: 1, stuck: 1, reopens: 1, ..two.clone() },
        Scenario { name: "a death, an edit", edits: 1, ..death.clone() },
        Scenario { name: "a death, an edit, a name that is free", is_free: true, edits: 1, ..death.clone() },
        Scenario { name: "a death, an open", ..open.clone() },
        Scenario { name: "two deaths, an open", deaths: 2, ..open.clone() },
        Scenario { name: "three commits", ..base("", &[&[0, 2], &[1]], &[3, 1, 2]) },
        Scenario {
            name: "three commits, two checkpoints, a death",
            deaths: 1,
            checkpoints: vec![2; 2],
            ..base("", &[&[0, 2], &[1]], &[3, 1, 2])
        },
        Scenario { name: "a checkpoint left undone", deaths: 1, ..left("") },
        Scenario { name: "a late opener closes", closes: true, is_open: vec![true, false], ..open.clone() },
        Scenario { name: "a death, an open, closes", closes: true, ..open.clone() },
        Scenario { name: "a death, an open, closes, an edit", closes: true, edits: 1, ..open.clone() },
        Scenario {
            name: "stuck, an open, closes, an edit",
            closes: true,
            edits: 1,
            stuck: 1,
            reopens: 1,
            ..two.clone()
        },
        Scenario { name: "a failure, closes", failures: 1, closes: true, reopens: 1, ..two.clone() },
        Scenario { name: "a failure, two checkpoints", failures: 1, checkpoints: vec![2, 1], ..two.clone() },
        Scenario {
            name: "a failure, an opener is younger",
            scripts: vec![vec![], vec![0]],
            checkpoints: vec![2, 0],
            ..failure.clone()
        },
        Scenario {
            name: "a failure, staged before an open",
            masks: vec![1, 2],
            checkpoints: vec![2, 0],
            ..failure.clone()
        },
        Scenario {
            name: "a failure, staged before a recovery",
            failures: 1,
            is_open: vec![true, true, false],
            checkpoints: vec![2, 0, 0],
            ..base("", &[&[0], &[1], &[]], &[1, 2])
        },
        Scenario {
            name: "a failure, a recoverer dies",
            is_open: vec![true, false],
            checkpoints: vec![1, 0],
            reopens: 0,
            ..Scenario { scripts: vec![vec![0, 1], vec![]], ..failure.clone() }
        },
        Scenario {
            name: "a failure, a late descriptor",
            is_open: vec![false, true],
            checkpoints: vec![1, 2],
            reopens: 0,
            ..Scenario { scripts: vec![vec![], vec![0, 1]], masks: vec![1, 1], ..failure.clone() }
        },
        Scenario { name: "a failure, a death, an open", drops_log: true, ..failure.clone() },
        Scenario {
            name: "two failures, a death, an open, one commits",
            failures: 2,
            drops_log: true,
            scripts: vec![vec![0], vec![]],
            ..open.clone()
        },
        Scenario {
            name: "three processes, a death",
            deaths: 1,
            checkpoints: vec![1, 0, 0],
            ..base("", &[&[0], &[1], &[2]], &[3, 1, 2])
        },
        Scenario { name: "a power cut", cuts: 1, ..two.clone() },
        Scenario { name: "a power cut, a death", cuts: 1, ..death.clone() },
    ]
}

/// All rules, each with the smallest suite that breaks without it.
pub(crate) const RULES: [(Rule, &str); 28] = [
    (Rule::TakeOver, "a death"),
    (Rule::BothLocks, ""),
    (Rule::ReadOnNote, "a death"),
    (Rule::CheckUnderLock, "a death"),
    (Rule::RewriteRecords, "a failure, closes"),
    (Rule::NextSegment, "a death"),
    (Rule::DropCaches, "a failure"),
    (Rule::SyncAfterRepair, "a death"),
    (Rule::RecoverIfOlder, "a failure, an opener is younger"),
    (Rule::OldAsItsFiles, "a failure, staged before an open"),
    (Rule::NewAfterError, "a failure, staged before a recovery"),
    (Rule::DiscardAgain, "a checkpoint left undone"),
    (Rule::DiscardOfLiving, "a death, an open"),
    (Rule::DiscardOfRecoveries, "two deaths, an open"),
    (Rule::DiscardBeforeLeaving, "a death, an open, closes"),
    (Rule::Compare, "an edit"),
    (Rule::SpareLiving, "a death, an open"),
    (Rule::StageUnderLock, "a late opener closes"),
    (Rule::LookForMark, "a failure"),
    (Rule::Mark, "a failure"),
    (Rule::ClearMarkLast, "a failure, a recoverer dies"),
    (Rule::CloseAlone, "closes"),
    (Rule::TakeBackClosed, "a late opener closes"),
    (Rule::RewriteOnJoin, "a failure, staged before an open"),
    (Rule::ReadAgain, "a failure, a death, an open"),
    (Rule::ForgetUnsynced, "a failure, a death, an open"),
    (Rule::DescriptorFirst, "a failure, a late descriptor"),
    (Rule::CoverBeforeSync, "a checkpoint left undone"),
];

fn without(run: &Scenario, rule: Rule, most: usize) -> Outcome {
    explore(&Scenario { omitted: Some(rule), ..run.clone() }, most)
}

/// Walks what is named so, and tells; then leaves out each rule.
pub(crate) fn report(only: &str) {
    let name = |rule: Rule| format!("without {rule:?}");
    for run in suites().iter().filter(|run| run.name.contains(only)) {
        let start = Instant::now();
        tell(run.name, &explore(run, usize::MAX), start);
    }
    for (rule, suite) in RULES.into_iter().filter(|(rule, _)| name(*rule).contains(only)) {
        let start = Instant::now();
        let all = suites();
        let (mut runs, mut states) = (all.iter().filter(|run| run.name == suite || suite.is_empty()), 0);
        let found = runs.find_map(|run| {
            let outcome = without(run, rule, 2_000_000);
            states += outcome.states;
            outcome.violation.is_some().then_some((run, outcome))
        });
        match found {
            Some((run, outcome)) => tell(&format!("{}: {}", name(rule), run.name), &outcome, start),
            None => println!("{}: nothing found in {states} states", name(rule)),
        }
    }
}

fn tell(name: &str, outcome: &Outcome, start: Instant) {
    let Outcome { states, ends, violation, is_cut_short } = outcome;
    let seconds = start.elapsed().as_secs_f32();
    let verdict = match violation {
        Some((problem, _)) => problem,
        None if *is_cut_short => "cut short",
        None => "holds",
    };
    println!("{name}: {states} states, {ends} ends, {seconds:.1} s: {verdict}");
    for line in violation.iter().flat_map(|violation| &violation.1) {
        println!("    {line}");
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the protocol holds, and each rule is needed. Method: the suites that are soon walked; then, for each rule,
    //! the smallest suite that breaks without it, as far as it is soon found.

    use super::*;

    /// States that take a second or two.
    const MOST: usize = 250_000;

    #[test]
    fn the_protocol_holds() {
        let mut walked = 0;
        for run in suites() {
            let Outcome { states, violation, .. } = explore(&run, MOST / 10);
            assert!(violation.is_none(), "{}: {violation:#?}", run.name);
            walked += states;
        }
        assert!(walked > 300_000, "{walked} states only");
    }

    #[test]
    fn every_rule_that_matters_is_needed() {
        // These take longer to be missed, or were not missed yet.
        let late = [Rule::OldAsItsFiles, Rule::DescriptorFirst, Rule::DiscardOfRecoveries, Rule::ReadAgain];
        for (rule, name) in RULES {
            if name.is_empty() || late.contains(&rule) {
                continue;
            }
            let run = suites().into_iter().find(|run| run.name == name).expect("the suite is there");
            assert!(without(&run, rule, MOST).violation.is_some(), "{rule:?} is not needed for {name}");
        }
    }
}
