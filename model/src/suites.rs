//! What is walked: initial trees, transactions, pairs of them, and each rule left out.

use crate::disk::Disk;
use crate::protocol::Rule;
use crate::search::{Family, Tally, initial, machine};

/// Directories with a file each, one in another; and a file.
const TREE: [&str; 7] = ["a", "a/f=11", "a/x", "a/x/g=12", "b", "b/h=13", "k=14"];

/// Transactions that move or remove a directory, or change a name's kind.
pub(crate) const BARRIERS: [&str; 20] = [
    "mv a c",
    "mv a/x c",
    "mv a/x x; mv a x/a",
    "mv a t; mv b a; mv t b",
    "mv a/x c; rm a",
    "mkdir d; mv a d/a",
    "rm a",
    "rm a; mkdir a; write a/f 21",
    "rm a; write a 22",
    "rm k; mkdir k; mv a k/a",
    "mv a c; write c/f 23; mode c 5",
    "mv a t; mv b a; mv t b; mv b/x a/x",
    "rm b; mv a b",
    "mv a/x c; rm a; mkdir a; mv c a/x",
    "mv a c; rm c/x; mode c/f 6",
    "mv a c; mkdir a; write a/f 24",
    "mv a b/a; mv b c",
    "mv a/x t; mv a c; mv b a; mv t b",
    "mv a/x c; rm a; write a 25",
    "mv a/x t; rm b; mkdir b; mv t b/x; write b/h 26; mode b 6",
];

const PLAIN: [&str; 7] = [
    "write a/f 31",
    "mkdir d; write d/f 32; mode d 5",
    "mode a/f 5; mode a 6",
    "write b/h 33; mode b 6",
    "write c 34",
    "rm k",
    "write a/x/g 35; mode a/x/g 7",
];

/// Transactions that go on in what an earlier one moved or made.
const LATER: [&str; 11] = [
    "write c/f 36",
    "mv c e",
    "rm c",
    "mode c 7; mode c/f 6",
    "mv b c/b",
    "mv d/a e",
    "write d/f 37; mode d 6",
    "mv d a",
    "rm b",
    "mkdir a; write a/f 38",
    "write k 39; mode k 6",
];

pub(crate) struct Suite {
    pub(crate) name: &'static str,
    starts: Vec<Disk>,
    scripts: Vec<Vec<&'static str>>,
    pub(crate) edits: bool,
    is_direct: bool,
}

fn singles() -> Vec<Vec<&'static str>> {
    BARRIERS.iter().chain(&PLAIN).map(|script| vec![*script]).collect()
}

fn pairs() -> Vec<Vec<&'static str>> {
    let all = || BARRIERS.iter().chain(&PLAIN).chain(&LATER);
    all().flat_map(|first| all().map(|second| vec![*first, *second])).collect()
}

/// What is walked with edits, which are many: what often stands first, before anything.
fn few_pairs() -> Vec<Vec<&'static str>> {
    let firsts = ["mv a c", "rm a", "mkdir d; mv a d/a", "write a/f 31", "mode a/f 5; mode a 6"];
    pairs().into_iter().filter(|pair| firsts.contains(&pair[0])).collect()
}

fn triples() -> Vec<Vec<&'static str>> {
    let triples = [
        ["mv a c", "write b/h 33; mode b 6", "mv c e"],
        ["mode a/f 5; mode a 6", "mv a c", "write c/f 36"],
        ["write a/f 31", "rm a", "mkdir a; write a/f 38"],
        ["mkdir d; mv a d/a", "write d/f 37; mode d 6", "mv d a"],
        ["mv a t; mv b a; mv t b", "write a/h 34", "mv a t; mv b a; mv t b"],
        ["rm a; write a 22", "rm a; mkdir a; write a/f 21", "rm a; write a 22"],
        ["mv a/x x; mv a x/a", "mv x/a a", "mv x a/x"],
    ];
    triples.map(Vec::from).into()
}

/// Trees that another program left without a sync: made, or named otherwise before.
fn unsynced() -> Vec<Disk> {
    let rest = ["b", "b/h=13", "k=14"];
    let made = [("a", ""), ("a/f=11", ""), ("a/x", ""), ("a/x/g=12", "")];
    let named = ["p", "p/f=11", "p/x", "p/x/g=12", "b", "b/h=13", "k=14"];
    let moved = ["a", "a/f=11", "p", "p/g=12", "b", "b/h=13", "k=14"];
    vec![initial(&rest, &made), initial(&named, &[("a", "p")]), initial(&moved, &[("a/x", "p")])]
}

pub(crate) fn suites() -> Vec<(Suite, u8)> {
    let suite = |name, edits, is_direct, scripts| Suite {
        name,
        starts: vec![initial(&TREE, &[])],
        scripts,
        edits,
        is_direct,
    };
    vec![
        (suite("one transaction", false, false, singles()), 3),
        (suite("one transaction, direct moves", false, true, singles()), 3),
        (suite("one transaction, an edit", true, false, singles()), 2),
        (suite("one transaction, an edit, direct moves", true, true, singles()), 2),
        (
            Suite {
                name: "one transaction on an unsynced tree",
                starts: unsynced(),
                scripts: BARRIERS.iter().map(|script| vec![*script]).collect(),
                edits: false,
                is_direct: false,
            },
            2,
        ),
        (suite("two transactions", false, false, pairs()), 2),
        (suite("two transactions, direct moves", false, true, pairs()), 1),
        (suite("three transactions", false, false, triples()), 2),
        (suite("two transactions, an edit", true, false, few_pairs()), 1),
    ]
}

/// Walks a suite; stops at the first machine with a violation if only that matters.
pub(crate) fn walk(suite: &Suite, crashes: u8, omitted: Option<Rule>, until_violation: bool) -> Tally {
    let family = Family { crashes, edits: suite.edits, is_direct: suite.is_direct, omitted };
    let mut tally = Tally::default();
    for start in &suite.starts {
        for scripts in &suite.scripts {
            if let Some(run) = machine(&family, start, scripts) {
                tally.add(&run);
            }
            if until_violation && !tally.violations.is_empty() {
                return tally;
            }
        }
    }
    tally
}

/// All rules.
pub(crate) const RULES: [Rule; 22] = [
    Rule::SettleBeforeBarrier,
    Rule::SettleAfterBarrier,
    Rule::SyncBeforeBarrier,
    Rule::TakeDeepestFirst,
    Rule::WriteRecordsAgain,
    Rule::SyncBeforeRepair,
    Rule::KnowByInode,
    Rule::LocateInSlots,
    Rule::LocateAtOriginal,
    Rule::LocateAtFinal,
    Rule::LocateThroughMoved,
    Rule::LocateThroughRemoved,
    Rule::LocateThroughStaged,
    Rule::InPlaceFromTheTop,
    Rule::FreshSlot,
    Rule::ParentsFirst,
    Rule::SyncAfterRepair,
    Rule::CompareBeforeDiscard,
    Rule::ExplainByOwner,
    Rule::SyncBeforeRetire,
    Rule::DirectGivesWay,
    Rule::DirectFromUnchanged,
];

#[cfg(test)]
mod tests {
    //! Goal: the rules hold, and each is needed. Method: all that is quick with one crash; then, for each rule, the
    //! smallest machine that breaks without it.

    use super::*;

    fn suite(scripts: &[&[&'static str]], edits: bool, is_direct: bool) -> Suite {
        let scripts = scripts.iter().map(|scripts| scripts.to_vec()).collect();
        Suite { name: "quick", starts: vec![initial(&TREE, &[])], scripts, edits, is_direct }
    }

    fn holds(suite: &Suite, crashes: u8) {
        let tally = walk(suite, crashes, None, true);
        assert!(tally.violations.is_empty(), "{}: {:#?}", suite.name, tally.violations);
    }

    #[test]
    fn the_protocol_holds() {
        for (suite, _) in &suites() {
            if suite.name.starts_with("one") {
                holds(suite, 1);
            }
        }
        let pairs: Vec<Vec<&str>> = pairs().into_iter().step_by(7).collect();
        let pairs: Vec<&[&'static str]> = pairs.iter().map(Vec::as_slice).collect();
        holds(&suite(&pairs, false, false), 1);
        holds(&suite(&[&["mv a c", "mv c e"], &["rm a", "mkdir a; write a/f 38"]], true, false), 1);
    }

    #[test]
    fn every_rule_that_matters_is_needed() {
        use Rule::*;
        let table: [(Rule, &[&'static str], bool, bool, u8); 18] = [
            (SettleBeforeBarrier, &["write a/f 31", "mv a t; mv b a; mv t b"], false, false, 1),
            (SettleAfterBarrier, &["rm a", "mkdir a; write a/f 38"], false, false, 1),
            (TakeDeepestFirst, &["mv a/x x; mv a x/a"], false, false, 0),
            (WriteRecordsAgain, &["mode a/f 5; mode a 6"], false, false, 2),
            (KnowByInode, &["rm b; mv a b"], false, false, 1),
            (LocateInSlots, &["mv a c"], false, false, 1),
            (LocateAtOriginal, &["mv a c"], false, false, 1),
            (LocateAtFinal, &["mv a t; mv b a; mv t b; mv b/x a/x"], false, false, 1),
            (LocateThroughMoved, &["mv a/x x; mv a x/a"], false, false, 1),
            (LocateThroughRemoved, &["mv a/x c; rm a; write a 25"], false, false, 1),
            (LocateThroughStaged, &["rm k; mkdir k; mv a k/a"], false, false, 1),
            (InPlaceFromTheTop, &["mv a/x c; rm a; mkdir a; mv c a/x"], false, false, 1),
            (ParentsFirst, &["mkdir d; write d/f 32; mode d 5"], false, false, 1),
            (SyncAfterRepair, &["write c 34"], false, false, 1),
            (CompareBeforeDiscard, &["rm a"], true, false, 0),
            (SyncBeforeRetire, &["rm a"], true, false, 0),
            (ExplainByOwner, &["rm a; write a 22", "rm a; mkdir a; write a/f 21"], false, false, 1),
            (DirectGivesWay, &["mv a c"], true, true, 0),
        ];
        for (rule, scripts, edits, is_direct, crashes) in table {
            let tally = walk(&suite(&[scripts], edits, is_direct), crashes, Some(rule), true);
            assert!(!tally.violations.is_empty(), "{rule:?} is not needed for {scripts:?}");
        }
        let unsynced = suites().into_iter().find(|(suite, _)| suite.name.ends_with("unsynced tree"));
        let unsynced = unsynced.expect("the suite is there").0;
        assert!(!walk(&unsynced, 1, Some(SyncBeforeBarrier), true).violations.is_empty());
    }
}
