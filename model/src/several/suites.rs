//! What is walked.

use super::search::{Outcome, explore};
use super::{Rule, Scenario};

fn base(name: &'static str, scripts: &[&[u8]], masks: &[u8]) -> Scenario {
    Scenario {
        name,
        omitted: None,
        masks: masks.to_vec(),
        scripts: scripts.iter().map(|script| script.to_vec()).collect(),
        is_open: vec![true; scripts.len()],
        closes: false,
        checkpoints: 1,
        segment_frames: 4,
        deaths: 0,
        reopens: 0,
        cuts: 0,
        failures: 0,
        evicts: false,
        stuck: 0,
        edits: 0,
    }
}

pub(crate) fn suites() -> Vec<Scenario> {
    let two: &[&[u8]] = &[&[0], &[1]];
    let more: &[&[u8]] = &[&[0, 2], &[1]];
    let all = Scenario { deaths: 1, reopens: 1, ..base("", two, &[3, 1]) };
    vec![
        Scenario { deaths: 1, ..base("one commit each, a death", two, &[3, 1]) },
        Scenario { failures: 1, ..base("one commit each, a failure", two, &[3, 1]) },
        Scenario { closes: true, ..base("one commit each, closes", two, &[3, 1]) },
        Scenario { edits: 1, ..base("one commit each, an edit", two, &[3, 1]) },
        Scenario { edits: 1, stuck: 1, reopens: 1, ..base("an edit, stuck", two, &[3, 1]) },
        Scenario { name: "a death, an open", ..all.clone() },
        Scenario { name: "two deaths, an open", deaths: 2, ..all.clone() },
        Scenario { name: "a death, an open, a failure", failures: 1, evicts: true, ..all.clone() },
        Scenario { name: "a death, an edit", deaths: 1, edits: 1, reopens: 0, ..all.clone() },
        Scenario { name: "closes, a death, an open", closes: true, ..all.clone() },
        Scenario { name: "closes, a late opener", closes: true, is_open: vec![true, false], ..all.clone() },
        Scenario { name: "three commits", reopens: 0, ..base("", more, &[3, 1, 2]) },
        Scenario {
            name: "three commits, a death, two checkpoints",
            deaths: 1,
            checkpoints: 2,
            ..base("", more, &[3, 1, 2])
        },
        Scenario { name: "a power cut", cuts: 1, ..base("", two, &[3, 1]) },
        Scenario { name: "closes, a death, an open, an edit", closes: true, edits: 1, ..all.clone() },
        Scenario {
            name: "stuck, closes, an open, an edit",
            closes: true,
            edits: 1,
            stuck: 1,
            deaths: 0,
            ..all.clone()
        },
    ]
}

/// All rules.
pub(crate) const RULES: [Rule; 28] = [
    Rule::TakeOver,
    Rule::BothLocks,
    Rule::ReadOnNote,
    Rule::CheckUnderLock,
    Rule::RewriteRecords,
    Rule::NextSegment,
    Rule::DropCaches,
    Rule::SyncAfterRepair,
    Rule::RecoverIfOlder,
    Rule::OldAsItsFiles,
    Rule::NewAfterError,
    Rule::DiscardAgain,
    Rule::DiscardOfLiving,
    Rule::DiscardBeforeLeaving,
    Rule::Compare,
    Rule::SpareLiving,
    Rule::StageUnderLock,
    Rule::LookForMark,
    Rule::Mark,
    Rule::ClearMarkLast,
    Rule::CloseAlone,
    Rule::RewriteOnJoin,
    Rule::DescriptorFirst,
    Rule::TakeBackClosed,
    Rule::CoverBeforeSync,
    Rule::ForgetUnsynced,
    Rule::DiscardOfRecoveries,
    Rule::ReadAgain,
];

pub(crate) fn walk(run: &Scenario, omitted: Option<Rule>, most: usize) -> Outcome {
    explore(&Scenario { omitted, ..run.clone() }, most)
}

/// Walks what is named so, and tells; or leaves out each rule that is named so.
pub(crate) fn report(only: &str, rule: Option<&str>, most: usize) {
    if let Some(rule) = rule {
        let named = RULES.into_iter().filter(|each| format!("{each:?}").contains(rule));
        return named.for_each(|rule| without(only, rule, most));
    }
    for run in suites().iter().filter(|run| run.name.contains(only)) {
        let start = std::time::Instant::now();
        tell(run.name, &walk(run, None, most), start);
    }
}

fn without(only: &str, rule: Rule, most: usize) {
    let start = std::time::Instant::now();
    let mut states = 0;
    for run in suites().iter().filter(|run| run.name.contains(only)) {
        let outcome = walk(run, Some(rule), most);
        states += outcome.states;
        if outcome.violation.is_some() {
            return tell(&format!("without {rule:?}: {}", run.name), &outcome, start);
        }
    }
    println!("without {rule:?}: nothing found in {states} states, {:.1} s", start.elapsed().as_secs_f32());
}

fn tell(name: &str, outcome: &Outcome, start: std::time::Instant) {
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
