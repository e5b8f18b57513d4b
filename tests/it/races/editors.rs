//! Editors that rewrite files while transactions replace, append to, rename and remove them.
//!
//! Every edit carries a mark of its own, and none is overwritten by its editor before somebody else has replaced it. In
//! the end each must be somewhere: it stands in the tree; or a transaction that replaced it had read it; or it is in
//! quarantine. What DESIGN.md leaves out is counted apart: a write through a descriptor that was opened before the file
//! was replaced may land after the last comparison. Whether that can have happened the editor sees at once, because the
//! name leads to another inode by then; no other edit may be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use atomtree::vfs::faults::{Faults, Verb, fail_nothing};
use atomtree::vfs::os::Os;
use atomtree::{Error, ErrorKind, Options, Store, Transaction};

use super::{PATIENCE, Running, Tally};
use crate::basics::{Random, child, child_root, commit, inspect, kind_of, manual, small};
use crate::kills::{Speaking, say};

/// How an editor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// A new file beside, renamed over: vim, and most others.
    RenameOver,
    /// The program itself.
    Sed,
    /// Opened, emptied and written.
    InPlace,
    /// The shell's `>>`.
    Append,
    /// Removed, and made anew.
    Recreate,
}

const STYLES: [Style; 5] = [Style::RenameOver, Style::Sed, Style::InPlace, Style::Append, Style::Recreate];

/// The edits, by their marks.
#[derive(Default)]
pub(crate) struct Edits {
    /// Those that were finished.
    done: Mutex<BTreeSet<String>>,
    /// Those whose descriptor led elsewhere by the time they were finished.
    late: Mutex<BTreeSet<String>>,
    /// What transactions that committed had read of what they replaced.
    seen: Mutex<BTreeSet<String>>,
}

/// The marks in a content.
fn marks(content: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(content);
    let parts = text.split('<').skip(1).filter_map(|part| part.split_once('>'));
    parts.map(|(mark, _)| mark.to_owned()).collect()
}

/// The marks in all files at and below a path.
fn marks_below(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut unseen = vec![path.to_owned()];
    while let Some(path) = unseen.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            unseen.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.is_file() {
            found.extend(marks(&fs::read(&path).unwrap()));
        }
    }
    found
}

/// One edit, with a pause while the file is open. Returns whether the descriptor still led to the file when all was
/// written.
fn edit(path: &Path, style: Style, mark: &str, pause: Duration) -> io::Result<bool> {
    let text = format!("<{mark}> by an editor\n");
    let leads_here = |file: &File| {
        let inode = file.metadata()?.ino();
        io::Result::Ok(fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode))
    };
    match style {
        Style::RenameOver => {
            let aside = path.with_extension("swp");
            fs::write(&aside, text)?;
            fs::rename(aside, path)?;
            Ok(true)
        }
        Style::Sed => {
            let script = format!("1{{s/.*/<{mark}> by sed/;w /dev/stdout\n}}");
            let output = Command::new("sed").args(["-i", &script]).arg(path).output()?;
            // A file that was empty at that moment has no first line, and one that was not there none at all.
            let is_done = output.status.success() && !output.stdout.is_empty();
            if is_done { Ok(true) } else { Err(io::ErrorKind::NotFound.into()) }
        }
        Style::InPlace => {
            let mut file = File::options().write(true).truncate(true).open(path)?;
            std::thread::sleep(pause);
            file.write_all(text.as_bytes())?;
            leads_here(&file)
        }
        Style::Append => {
            let mut file = File::options().append(true).open(path)?;
            std::thread::sleep(pause);
            file.write_all(text.as_bytes())?;
            leads_here(&file)
        }
        Style::Recreate => {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::create_new(path)?;
            std::thread::sleep(pause);
            file.write_all(text.as_bytes())?;
            leads_here(&file)
        }
    }
}

/// Edits a file for as long as it is wanted to. Each edit waits until somebody else has replaced the one before.
fn edit_until(wanted: &AtomicBool, path: &Path, name: &str, style: Style, edits: &Edits, tally: &Tally) {
    let mut random = Random::new(name.len() as u64);
    for number in 0.. {
        let mark = format!("{name}:{number}");
        let pause = Duration::from_micros(if random.below(2) == 0 { 0 } else { random.below(500) });
        match edit(path, style, &mark, pause) {
            Ok(leads_here) => {
                edits.done.lock().unwrap().insert(mark.clone());
                tally.count(format!("edits {style:?}"));
                if !leads_here {
                    edits.late.lock().unwrap().insert(mark.clone());
                }
            }
            // It was not there: nothing to edit.
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::AlreadyExists].contains(&error.kind()) => {
                tally.count("edits of nothing");
            }
            Err(error) => panic!("{style:?} of {}: {error}", path.display()),
        }
        loop {
            if !wanted.load(Ordering::Relaxed) {
                return;
            }
            // An appender destroys nothing.
            let stands =
                style != Style::Append && fs::read(path).is_ok_and(|found| marks(&found).contains(&mark));
            if !stands {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(random.below(if style == Style::Append {
            6000
        } else {
            1500
        })));
    }
}

fn path_of(style: Style, number: usize) -> String {
    // One in the root, one in a directory.
    if number == 0 { format!("{style:?}") } else { format!("dir/{style:?}-{number}") }
}

/// One transaction on one or two of the files. What it replaces it has read. Returns the marks that it replaces.
fn rewrite(tx: &mut Transaction, random: &mut Random) -> Result<BTreeSet<String>, Error> {
    let mut replaced = BTreeSet::new();
    for _ in 0..=random.below(2) {
        let style = STYLES[random.below(STYLES.len() as u64) as usize];
        let path = path_of(style, random.below(2) as usize);
        let number = random.next();
        let content = match tx.read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tx.write(&path, format!("made anew by {number}\n"))?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match random.below(10) {
            0..=4 => {
                tx.write(&path, format!("written by {number}\n"))?;
                replaced.extend(marks(&content));
            }
            // The edits stay, one after another, up to a limit.
            5 | 6 if content.len() < 20_000 => tx.append(&path, format!("appended by {number}\n"))?,
            5 | 6 => {
                tx.write(&path, format!("shortened by {number}\n"))?;
                replaced.extend(marks(&content));
            }
            7 => {
                tx.patch(&path, 0, format!("patched by {number}\n"))?;
                replaced.extend(marks(&content));
            }
            8 => {
                let kept = format!("kept/{}", number % 10);
                if tx.exists(&kept)? {
                    replaced.extend(marks(&tx.read(&kept)?));
                }
                tx.rename(&path, kept)?;
            }
            _ => {
                tx.remove(&path)?;
                replaced.extend(marks(&content));
            }
        }
    }
    Ok(replaced)
}

pub(crate) fn options() -> Options {
    small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(2)).inline_bytes_max(8000)
}

/// Rewrites files for as long as it is wanted to; tells `will` what a transaction replaces before it commits, and `did`
/// that it has.
fn rewrite_until(
    wanted: &AtomicBool,
    store: &Store,
    random: &mut Random,
    tally: &Tally,
    will: &dyn Fn(&BTreeSet<String>),
    did: &dyn Fn(BTreeSet<String>),
) {
    while wanted.load(Ordering::Relaxed) {
        let mut replaced = BTreeSet::new();
        let result = store.begin().and_then(|mut tx| {
            replaced = rewrite(&mut tx, random)?;
            if random.below(3) == 0 {
                // Time for an edit.
                std::thread::sleep(Duration::from_micros(random.below(1000)));
            }
            will(&replaced);
            tx.commit()
        });
        match result {
            Ok(receipt) => {
                did(replaced);
                tally.count("committed");
                receipt.displaced().iter().for_each(|_| tally.count("displaced"));
                receipt.lost().iter().for_each(|_| tally.count("lost"));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error} ({error:?})");
                tally.count("conflicts");
            }
        }
    }
}

pub(crate) fn lay_out(root: &Path) {
    fs::create_dir_all(root.join("dir")).unwrap();
    fs::create_dir_all(root.join("kept")).unwrap();
    for (style, number) in STYLES.into_iter().flat_map(|style| [(style, 0), (style, 1)]) {
        fs::write(root.join(path_of(style, number)), "from the beginning\n").unwrap();
    }
}

/// Starts an editor for each file.
pub(crate) fn start_editors<'scope>(
    scope: &'scope Scope<'scope, '_>,
    wanted: &'scope AtomicBool,
    root: &'scope Path,
    edits: &'scope Edits,
    tally: &'scope Tally,
) {
    for (style, number) in STYLES.into_iter().flat_map(|style| [(style, 0), (style, 1)]) {
        let path: PathBuf = root.join(path_of(style, number));
        scope.spawn(move || edit_until(wanted, &path, &format!("{style:?}{number}"), style, edits, tally));
    }
}

/// Each edit is somewhere.
pub(crate) fn check(root: &Path, edits: Edits, tally: &Tally) {
    let standing: BTreeSet<String> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with(".atomtree"))
        .flat_map(|path| marks_below(&path))
        .collect();
    let quarantined = marks_below(&root.join(".atomtree/quarantine"));
    let [done, late, seen] = [edits.done, edits.late, edits.seen].map(|set| set.into_inner().unwrap());
    let missing: Vec<&String> = done
        .iter()
        .filter(|mark| ![&standing, &quarantined, &seen].iter().any(|found| found.contains(*mark)))
        .collect();
    let (excused, lost): (Vec<&String>, Vec<&String>) =
        missing.into_iter().partition(|mark| late.contains(*mark));
    println!(
        "{} edits: {} stand, {} in quarantine, {} seen; {} through a descriptor of what was replaced, {} of them too late; {:?}",
        done.len(),
        standing.len(),
        quarantined.len(),
        done.intersection(&seen).count(),
        late.len(),
        excused.len(),
        tally.0.lock().unwrap()
    );
    assert!(lost.is_empty(), "edits were lost: {lost:?}");
}

/// What the race is about, and has not come yet.
pub(crate) fn wanting(root: &Path, tally: &Tally) -> Option<String> {
    if tally.of("committed") <= 100 || tally.of("conflicts") <= 10 {
        return Some("there was no race".to_owned());
    }
    if tally.of("displaced") == 0 || marks_below(&root.join(".atomtree/quarantine")).is_empty() {
        return Some("no edit ever slipped in after the last check".to_owned());
    }
    let idle = STYLES.into_iter().find(|style| tally.of(&format!("edits {style:?}")) <= 5);
    idle.map(|style| format!("{style:?} never came to edit"))
}

/// Goal: an edit by another program is never lost, whenever it lands: its transaction is a conflict, or both are intact.
/// Method: editors of five styles on ten files, against four committing threads and frequent checkpoints.
#[test]
fn editors_beside_commits_lose_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    lay_out(root);
    let seed = Random::from_environment().next();
    let store = options().open(root).unwrap();
    let (edits, tally) = (Edits::default(), Tally::default());
    let wanted = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let running = Running(&wanted);
        start_editors(scope, &wanted, root, &edits, &tally);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (wanted, store, edits, tally) = (&wanted, &store, &edits, &tally);
                let mut random = Random::new(seed ^ thread);
                scope.spawn(move || {
                    let did = |replaced| edits.seen.lock().unwrap().extend(replaced);
                    rewrite_until(wanted, store, &mut random, tally, &|_| {}, &did);
                })
            })
            .collect();
        let start = Instant::now();
        let is_over = || {
            let time = start.elapsed();
            time > PATIENCE || time > Duration::from_secs(6) && wanting(root, &tally).is_none()
        };
        while !is_over() && !threads.iter().any(ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(15));
            store.checkpoint().unwrap();
        }
        drop(running);
    });
    store.close().unwrap();
    check(root, edits, &tally);
    assert_eq!(wanting(root, &tally), None);
}

/// Goal: a file that goes in the middle of a transaction's own look at it is a conflict, not a file that was never there.
/// Method: it is removed just before it is opened for the second time, by a rule that watches the calls.
#[test]
fn a_file_removed_in_the_middle_of_a_look_is_a_conflict() {
    let uses: [fn(&mut Transaction) -> Result<(), Error>; 4] = [
        |tx| tx.read("file").map(drop),
        |tx| tx.append("file", "x"),
        |tx| tx.patch("file", 0, "x"),
        |tx| tx.rename("file", "moved"),
    ];
    for usage in uses {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "x".repeat(10_000)).unwrap();
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let store = manual().vfs(Arc::new(faults.clone())).open(scratch.path()).unwrap();
        let (opened, removed) = (AtomicU64::new(0), path.clone());
        faults.set_rule(Arc::new(move |call| {
            let is_it = call.verb == Verb::OpenFile && call.name.as_deref() == removed.file_name();
            if is_it && opened.fetch_add(1, Ordering::Relaxed) == 1 {
                fs::remove_file(&removed).unwrap();
            }
            None
        }));
        assert_eq!(kind_of(commit(&store, usage)), ErrorKind::Conflict);
        assert!(!path.exists(), "it was opened only once");
        faults.set_rule(fail_nothing());
        store.close().unwrap();
    }
}

/// For children: rewrites files with three threads for as long as it is wanted to, and says what it replaces.
pub(crate) fn rewrite_until_killed(root: &Path, wanted: &AtomicBool) {
    let store = options().open(root).unwrap_or_else(|error| panic!("not opened: {error}"));
    say(&format!("opened {} {}", store.recovery().redone, store.recovery().superseded.len()));
    let seed: u64 = std::env::var("ATOMTREE_THREAD_SEED").unwrap().parse().unwrap();
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, tally) = (&store, &tally);
            let mut random = Random::new(seed ^ thread);
            scope.spawn(move || {
                let tell = |word: &str, marks: &BTreeSet<String>| {
                    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
                    say(&format!("{word} {thread} {}", marks.join(" ")));
                };
                let (will, did) =
                    (|marks: &BTreeSet<String>| tell("will", marks), |marks| tell("did", &marks));
                rewrite_until(wanted, store, &mut random, tally, &will, &did);
            });
        }
    });
    say(&format!("ended {} {}", tally.of("displaced"), tally.of("conflicts")));
    store.close().unwrap();
}

/// Takes in what such a child said to its end: what it replaced, and what it may have been about to.
pub(crate) fn hear(said: &[String], edits: &Edits, tally: &Tally, label: &str) {
    let mut last = BTreeMap::new();
    for line in said {
        let words: Vec<&str> = line.split_whitespace().collect();
        let add = |what: &str, count: &str| tally.add(what, count.parse().unwrap());
        match words[..] {
            ["opened", redone, superseded] => {
                add("redone", redone);
                add("superseded", superseded);
            }
            ["ended", displaced, conflicts] => {
                add("displaced", displaced);
                add("conflicts", conflicts);
                // What had not committed by then never did.
                last.clear();
            }
            ["will", thread, ..] => drop(last.insert(thread, words[2..].to_vec())),
            ["did", thread, ..] => {
                last.remove(thread);
                edits.seen.lock().unwrap().extend(words[2..].iter().map(|mark| (*mark).to_owned()));
                tally.count("committed");
            }
            _ => panic!("{label}: {said:#?}"),
        }
    }
    edits.seen.lock().unwrap().extend(last.into_values().flatten().map(str::to_owned));
}

/// Goal: nor is one lost when processes are killed in the middle, and others recover, while the editors go on. Method: as
/// above, with the transactions in children that are killed at random instants; what one was about to replace when it was
/// killed counts as seen.
#[test]
fn editors_beside_kills_and_recoveries_lose_nothing() {
    if let Some(root) = child_root() {
        return rewrite_until_killed(&root, &AtomicBool::new(true));
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    lay_out(root);
    let mut random = Random::from_environment();
    let (edits, tally) = (Edits::default(), Tally::default());
    let wanted = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let running = Running(&wanted);
        start_editors(scope, &wanted, root, &edits, &tally);
        let start = Instant::now();
        for round in 0..30 {
            // On a slow machine a few rounds have as much in them.
            if start.elapsed() > Duration::from_secs(12) && tally.of("redone") > 50 {
                break;
            }
            let mut speaking = Speaking::start(
                child("races::editors::editors_beside_kills_and_recoveries_lose_nothing", root)
                    .env("ATOMTREE_THREAD_SEED", random.next().to_string()),
            );
            let mut said = if random.below(4) == 0 { Vec::new() } else { speaking.wait_for("opened") };
            std::thread::sleep(Duration::from_micros(random.below(80_000)));
            speaking.child.kill().unwrap();
            said.extend(speaking.end().0);
            hear(&said, &edits, &tally, &format!("round {round}"));
        }
        drop(running);
    });
    options().open(root).unwrap().close().unwrap();
    check(root, edits, &tally);
    println!(
        "{} redone, {} edits left where they were by recovery",
        tally.of("redone"),
        tally.of("superseded")
    );
    assert!(tally.of("redone") > 10 && tally.of("committed") > 30, "there was no race");
    assert!(inspect(root).verify().unwrap().problems.is_empty());
    let store = options().open(root).unwrap();
    commit(&store, |tx| tx.write("good", "commit")).unwrap();
    store.close().unwrap();
}
