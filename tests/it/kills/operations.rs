//! Kills at chosen storage operations: before the n-th write, rename, sync and so on, of each phase of a child's life.

use std::path::Path;
use std::time::Instant;

use atomtree_tests::chosen::{Chosen, Counts, Target, list, parse_list};

use super::{Chain, Speaking, THREADS_MAX, commit_versions, kills, open_and_tell, repeatable, say, tiny};
use crate::basics::{Random, child, child_root};

pub(super) const KILLS_OF_ONE_THREAD: u64 = 200;
pub(super) const KILLS_OF_MANY_THREADS: u64 = 90;

/// What children do in each phase of their life, by verb, and about how much of it; the phases in their order. A barrier is
/// a version that moves and removes directories. With several threads barriers come among the commits, and there is ten
/// times as much.
const OPERATIONS: [(&str, &[(&str, u64)]); 5] = [
    (
        "recover",
        &[
            ("Allocate", 1),
            ("CreateDir", 5),
            ("CreateFile", 16),
            ("CreateSymlink", 2),
            ("DropCache", 16),
            ("Exchange", 8),
            ("RemoveDir", 6),
            ("RemoveFile", 50),
            ("Rename", 17),
            ("RenameOver", 1),
            ("SetDirMode", 5),
            ("SetLen", 1),
            ("SetMode", 11),
            ("SetModeOf", 1),
            ("SetModified", 2),
            ("SyncAll", 1),
            ("SyncData", 5),
            ("SyncDir", 10),
            ("SyncFilesystem", 2),
            ("WriteAt", 19),
        ],
    ),
    (
        "commit",
        &[
            ("Allocate", 1),
            ("CreateDir", 5),
            ("CreateFile", 30),
            ("CreateSymlink", 4),
            ("Exchange", 20),
            ("Rename", 30),
            ("SetDirMode", 5),
            ("SetMode", 30),
            ("SetModified", 4),
            ("SyncAll", 2),
            ("SyncData", 8),
            ("SyncDir", 3),
            ("WriteAt", 42),
        ],
    ),
    (
        "barrier",
        &[
            ("Allocate", 1),
            ("CreateDir", 9),
            ("CreateFile", 26),
            ("CreateSymlink", 5),
            ("Exchange", 15),
            ("RemoveDir", 4),
            ("RemoveFile", 33),
            ("Rename", 32),
            ("RenameOver", 1),
            ("SetDirMode", 7),
            ("SetMode", 24),
            ("SetModeOf", 4),
            ("SetModified", 2),
            ("SyncAll", 1),
            ("SyncData", 8),
            ("SyncDir", 3),
            ("SyncFilesystem", 3),
            ("WriteAt", 38),
        ],
    ),
    (
        "checkpoint",
        &[
            ("CreateFile", 1),
            ("RemoveDir", 4),
            ("RemoveFile", 41),
            ("RenameOver", 1),
            ("SyncAll", 1),
            ("SyncData", 2),
            ("SyncDir", 3),
            ("SyncFilesystem", 1),
            ("WriteAt", 3),
        ],
    ),
    (
        "close",
        &[
            ("CreateFile", 1),
            ("RemoveDir", 5),
            ("RemoveFile", 25),
            ("RenameOver", 1),
            ("SetLen", 1),
            ("SyncAll", 1),
            ("SyncData", 4),
            ("SyncDir", 3),
            ("SyncFilesystem", 1),
            ("WriteAt", 5),
        ],
    ),
];

/// What no child lives without, so that there must have been a kill at each of them; with several threads, what no
/// commits do without.
const NEEDED: [(&str, &[&str]); 4] = [
    ("recover", &["WriteAt", "SyncData", "SyncFilesystem", "RemoveFile"]),
    ("commit", &["CreateFile", "WriteAt", "SyncData", "Exchange", "Rename", "SetMode", "CreateSymlink"]),
    ("checkpoint", &["WriteAt", "SyncData", "SyncFilesystem", "RemoveFile"]),
    ("close", &["WriteAt", "SyncData", "SyncFilesystem", "RemoveFile"]),
];

/// For children: storage on which `event` happens at the operations in `ATOMTREE_TARGETS`, after this process has said
/// `word` and which it is.
pub(crate) fn chosen(word: &'static str, event: fn()) -> Chosen {
    let targets = std::env::var("ATOMTREE_TARGETS").unwrap_or_default();
    Chosen::new(
        parse_list(&targets).unwrap(),
        Box::new(move |which, counts| {
            say(&format!("{}{word} {which}", lines_of(counts)));
            event();
        }),
    )
}

/// For children: SIGKILL at the first of those operations that is reached.
pub(crate) fn deadly() -> Chosen {
    chosen("killed", || {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
        loop {
            std::thread::park();
        }
    })
}

/// For children: SIGSTOP at each of those operations.
pub(crate) fn stopping() -> Chosen {
    chosen("stops", || {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::STOP).unwrap();
        // Another thread may be the one that gets the signal, and stops this one a moment later.
        std::thread::sleep(std::time::Duration::from_millis(100));
    })
}

pub(super) fn lines_of(counts: &Counts) -> String {
    counts.iter().map(|((phase, verb), count)| format!("count {phase} {verb} {count}\n")).collect()
}

/// Recovers, commits with as many threads as `ATOMTREE_THREADS` says, checkpoints, commits again and closes; unless what
/// happens at one of the chosen operations ends it.
pub(crate) fn live(root: &Path, chosen: &Chosen) {
    let threads: u64 = std::env::var("ATOMTREE_THREADS").unwrap().parse().unwrap();
    let options = if threads == 1 { repeatable() } else { tiny() };
    chosen.enter(if root.join(".atomtree").exists() { "recover" } else { "create" });
    let (store, standing) = open_and_tell(options.vfs(chosen.vfs()), root);
    let mut done = 0;
    let counts = if threads == 1 { [4, 2] } else { [2, 1] };
    for count in counts {
        if threads == 1 {
            let enter = |is_barrier| chosen.enter(if is_barrier { "barrier" } else { "commit" });
            commit_versions(&store, 0, standing[&0] + done, count, &enter);
        } else {
            chosen.enter("commit");
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (store, standing) = (&store, standing[&thread] + done);
                    scope.spawn(move || commit_versions(store, thread, standing, count, &|_| {}));
                }
            });
        }
        done += count;
        if done == counts[0] {
            chosen.enter("checkpoint");
            store.checkpoint().unwrap();
        }
    }
    chosen.enter("close");
    store.close().unwrap();
    say(&format!("{}ended", lines_of(&chosen.counts())));
}

/// What is to be hit next, in an order that depends on the seed alone.
pub(crate) struct Plan {
    pub(crate) random: Random,
    next: Vec<Vec<Target>>,
    is_of_many: bool,
}

impl Plan {
    pub(crate) fn new(is_of_many: bool) -> Self {
        Self { random: Random::from_environment(), next: Vec::new(), is_of_many }
    }

    /// The targets of the next child, of which the first that is reached kills it.
    pub(crate) fn next(&mut self) -> Vec<Target> {
        if self.next.is_empty() {
            self.refill();
        }
        self.next.pop().unwrap()
    }

    /// Each operation once, at a random one of its kind or at the first; in between any operation of a phase.
    fn refill(&mut self) {
        let mut pairs: Vec<(&str, &str, u64)> = OPERATIONS
            .iter()
            .flat_map(|(phase, verbs)| verbs.iter().map(|(verb, most)| (*phase, *verb, *most)))
            .filter(|(phase, ..)| !self.is_of_many || *phase != "barrier")
            .collect();
        while !pairs.is_empty() {
            let (phase, verb, most) = pairs.swap_remove(self.random.below(pairs.len() as u64) as usize);
            let factor = if self.is_of_many && phase == "commit" { 10 } else { 1 };
            // Recoveries differ the most: of what one does plenty, another does once.
            let is_first = phase == "recover" || self.random.below(2) == 0;
            let number = if is_first { 1 } else { 1 + self.random.below(most * factor) };
            let target = Target { phase: phase.into(), verb: Some(verb.into()), number };
            let (close, somewhere) = (self.any("close"), self.somewhere());
            self.next.push(vec![target, close]);
            if phase == "recover" && !self.is_of_many {
                // It is popped before the other: there is much to recover then.
                self.next.push(somewhere);
            } else if self.random.below(3) == 0 {
                let any = self.any(phase);
                self.next.push(vec![any]);
            }
        }
    }

    /// What was to be hit once, and was done less often than that, has another turn, at the first one.
    fn ask_again(&mut self, target: &Target, coverage: &Coverage) {
        let Target { phase, verb: Some(verb), number: 2.. } = target else { return };
        if !coverage.hits.contains_key(&(phase.clone(), verb.clone())) {
            let close = self.any("close");
            self.next.push(vec![Target { number: 1, ..target.clone() }, close]);
        }
    }

    /// In the middle of committing.
    pub(crate) fn somewhere(&mut self) -> Vec<Target> {
        vec![self.any("barrier"), self.any("commit"), self.any("close")]
    }

    pub(crate) fn any(&mut self, phase: &str) -> Target {
        let (_, verbs) = OPERATIONS.iter().find(|(name, _)| *name == phase).expect("a phase");
        let factor = if self.is_of_many && phase == "commit" { 10 } else { 1 };
        let total: u64 = verbs.iter().map(|(_, most)| most * factor).sum();
        Target { phase: phase.into(), verb: None, number: 1 + self.random.below(total) }
    }
}

/// What was killed where, and what could be.
#[derive(Default)]
struct Coverage {
    /// The most that one child did of each operation in each phase.
    most: Counts,
    /// How many kills hit it.
    hits: Counts,
}

impl Coverage {
    /// Takes in what a child said last. Returns whether it was killed.
    fn hear(&mut self, lines: &[String], label: &str) -> bool {
        let mut is_killed = false;
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let pair = |phase: &str, verb: &str| (phase.to_owned(), verb.to_owned());
            match words[..] {
                // Creation has a test of its own.
                ["count", "create", ..] | ["ended"] => {}
                ["count", phase, verb, count] => {
                    let most = self.most.entry(pair(phase, verb)).or_default();
                    *most = (*most).max(count.parse().unwrap());
                }
                ["killed", phase, verb, _] => {
                    *self.hits.entry(pair(phase, verb)).or_default() += 1;
                    is_killed = true;
                }
                _ => panic!("{label}: the child complained: {lines:#?}"),
            }
        }
        is_killed
    }

    /// Most of what children do was hit, and of each phase all that it can't do without. What is missing is done by few of
    /// them, such as making the first directories.
    fn check(&self, is_of_many: bool) {
        let mut table = String::new();
        for (phase, _) in OPERATIONS {
            let of_phase = self.most.iter().filter(|(pair, _)| pair.0 == phase);
            let row: Vec<String> = of_phase
                .map(|(pair, most)| format!("{} {}/{most}", pair.1, self.hits.get(pair).unwrap_or(&0)))
                .collect();
            table += &format!("{phase}: {}\n", row.join(", "));
        }
        println!("kills by phase and verb, of the most that one child did:\n{table}");
        assert!(self.is_enough(is_of_many), "{} of {} were hit", self.hits.len(), self.most.len());
    }

    fn is_enough(&self, is_of_many: bool) -> bool {
        let mut needed = NEEDED
            .iter()
            .filter(|(phase, _)| !is_of_many || *phase == "commit")
            .flat_map(|(phase, verbs)| verbs.iter().map(|verb| ((*phase).to_owned(), (*verb).to_owned())));
        needed.all(|pair| self.hits.contains_key(&pair)) && 10 * self.hits.len() >= 6 * self.most.len()
    }
}

/// Kills children with one thread, or with up to sixteen, on one store that is never cleaned.
fn kill_at_operations(test: &str, rounds: u64, is_of_many: bool) {
    let mut plan = Plan::new(is_of_many);
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let (mut chain, mut coverage) = (Chain::default(), Coverage::default());
    let mut killed = 0;
    let mut digest = blake3::Hasher::new();
    let start = Instant::now();
    let mut round = 0;
    // A seed that leaves out what has to be hit goes on until it isn't.
    while killed < rounds || !coverage.is_enough(is_of_many) {
        assert!(round < 2 * rounds + 20, "too few of the children are killed: {killed} of {round}");
        let threads = if is_of_many { 2 + plan.random.below(THREADS_MAX - 1) } else { 1 };
        let mut command = child(test, root);
        command.env("ATOMTREE_THREADS", threads.to_string());
        // The first lives to its end, and tells what there is to be hit.
        let targets = if round == 0 { Vec::new() } else { plan.next() };
        command.env("ATOMTREE_TARGETS", list(&targets));
        let label = format!("round {round}, {threads} threads, killed at {}", list(&targets));
        let (lines, status) = Speaking::start(&mut command).end();
        for line in lines.iter().filter(|line| !line.starts_with("count")) {
            digest.update(line.as_bytes());
        }
        let rest = chain.hear(lines.into_iter(), &label);
        let is_killed = coverage.hear(&rest, &label);
        assert_eq!(status.code(), (!is_killed).then_some(0), "{label}: {status}");
        killed += u64::from(is_killed);
        if let Some(target) = targets.first() {
            plan.ask_again(target, &coverage);
        }
        round += 1;
    }
    chain.check_history(root);
    coverage.check(is_of_many);
    println!(
        "{killed} kills in {round} rounds, {} recoveries by other processes, {} commits, {} redone, {:?}, told {}",
        chain.recoveries,
        chain.commits(),
        chain.redone,
        start.elapsed(),
        digest.finalize().to_hex().split_at(16).0
    );
    assert!(chain.redone > killed / 4, "kills hit nothing: {} redone", chain.redone);
}

/// Goal: a kill before any storage operation leaves what was acknowledged, and whole transactions, on one store that is
/// never cleaned. Method: every verb in every phase has its turn, and most of them several; one thread, and checkpoints
/// only when asked for, so that the seed repeats every kill: then what was `told` is the same.
#[test]
fn kills_at_chosen_operations_of_one_thread() {
    if let Some(root) = child_root() {
        return live(&root, &deadly());
    }
    kill_at_operations(
        "kills::operations::kills_at_chosen_operations_of_one_thread",
        kills(KILLS_OF_ONE_THREAD),
        false,
    );
}

/// Goal: the same where up to sixteen threads share syncs, and the background makes checkpoints beside them.
#[test]
fn kills_at_chosen_operations_of_many_threads() {
    if let Some(root) = child_root() {
        return live(&root, &deadly());
    }
    kill_at_operations(
        "kills::operations::kills_at_chosen_operations_of_many_threads",
        kills(KILLS_OF_MANY_THREADS),
        true,
    );
}
