//! Walks every state of three small models: of how directories and metadata are committed and recovered; with the argument
//! `several`, of several processes with one store; with `in-place`, of files that are patched inside their inode.

mod check;
mod disk;
mod in_place;
mod plan;
mod protocol;
mod recovery;
mod search;
mod several;
mod suites;

use protocol::Rule;
use search::Tally;
use std::time::Instant;
use suites::{RULES, suites, walk};

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    if only == "several" {
        return several::suites::report(&std::env::args().nth(2).unwrap_or_default());
    }
    if only == "in-place" {
        return in_place::report();
    }
    if only != "rules" {
        for (suite, crashes) in suites().iter().filter(|(suite, _)| suite.name.contains(&only)) {
            let start = Instant::now();
            let tally = walk(suite, *crashes, None, false);
            report(&format!("{}, {crashes} crashes", suite.name), &tally, start);
        }
    }
    if only.is_empty() || only == "rules" {
        RULES.into_iter().for_each(without);
    }
}

/// Looks for a machine that needs the rule: with one crash, then, where that is soon done, with two.
fn without(rule: Rule) {
    let start = Instant::now();
    for crashes in [1, 2] {
        for (suite, most) in &suites() {
            let is_quick = !suite.name.starts_with("two transactions, an") && (crashes == 1 || *most == 3);
            if !is_quick {
                continue;
            }
            let tally = walk(suite, crashes, Some(rule), false);
            if !tally.violations.is_empty() {
                return report(
                    &format!("without {rule:?}: {}, {crashes} crashes", suite.name),
                    &tally,
                    start,
                );
            }
        }
    }
    println!("without {rule:?}: holds in what is covered, {:.1} s", start.elapsed().as_secs_f32());
}

fn report(name: &str, tally: &Tally, start: Instant) {
    let Tally { machines, states, ends, violations } = tally;
    let outcome = if violations.is_empty() { "holds" } else { "VIOLATED" };
    let seconds = start.elapsed().as_secs_f32();
    println!("{name}: {machines} machines, {states} states, {ends} ends, {seconds:.1} s: {outcome}");
    for (kind, (count, example, steps)) in violations {
        println!("  {kind} ({count} machines), shortest: {example}");
        steps.iter().for_each(|step| println!("    {step}"));
    }
}
