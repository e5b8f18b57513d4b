//! Directories and files that another program exchanges with symlinks that lead out, all the time, while transactions
//! use what lies at and below them, and while processes that do so are killed and others recover.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use atomtree::vfs::faults::{Faults, Verb, fail_nothing};
use atomtree::vfs::{Vfs, os::Os};
use atomtree::{Error, ErrorKind, Inspection, Options, Store, Symlinks, Transaction};

use super::{PATIENCE, Running, Tally};
use crate::basics::{Random, Seen, child, child_root, commit, kind_of, manual, small, tree};
use crate::kills::{Speaking, say};

/// What is exchanged with a symlink: its path, whether it is a file, and where the symlink leads, which is put together
/// from the absolute path of the directory outside.
struct Swap {
    path: &'static str,
    is_file: bool,
    leads: fn(&Path) -> PathBuf,
}

const SWAPS: [Swap; 6] = [
    Swap { path: "absolute", is_file: false, leads: |outside| outside.join("absolute") },
    Swap { path: "relative", is_file: false, leads: |_| "../outside/relative".into() },
    Swap { path: "deep/er/most", is_file: false, leads: |outside| outside.join("deep/er/most") },
    // What is used lies two directories below.
    Swap { path: "grand", is_file: false, leads: |_| "../outside/grand".into() },
    Swap { path: "final/file", is_file: true, leads: |_| "../../outside/final/file".into() },
    Swap { path: "own", is_file: false, leads: |_| ".atomtree".into() },
];

/// Directories that transactions use.
const USED: [&str; 6] = ["absolute", "relative", "deep/er/most", "grand/parent/used", "final", "own"];

const SECRET: &str = "SECRET of the outside";

fn lay_out_dir(dir: &Path, content: &str) {
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    for file in ["file", "other", "sub/file", "sub/deeper/file"] {
        fs::write(dir.join(file), content).unwrap();
    }
}

/// A tree, and what lies outside of it: the same names and one more, all with another content.
fn lay_out(scratch: &Path) -> (PathBuf, PathBuf) {
    let (root, outside) = (scratch.join("tree"), scratch.join("outside"));
    for used in USED {
        lay_out_dir(&root.join(used), "inside");
        lay_out_dir(&outside.join(used), SECRET);
        fs::write(outside.join(used).join("only outside"), SECRET).unwrap();
        fs::set_permissions(outside.join(used).join("file"), fs::Permissions::from_mode(0o604)).unwrap();
    }
    for swap in &SWAPS {
        symlink((swap.leads)(&outside), root.join(format!("{}.swap", swap.path))).unwrap();
    }
    (root, outside)
}

/// Exchanges for as long as it is wanted to, and mends what transactions have taken away.
fn swap_until(wanted: &AtomicBool, root: &Path, outside: &Path, swaps: &AtomicU64, first: usize) {
    // Of its own, so that nothing is ever made through a symlink.
    let made = outside.with_file_name(format!("made {first}"));
    let mut random = Random::new(first as u64);
    for swap in SWAPS.iter().cycle().skip(first) {
        if !wanted.load(Ordering::Relaxed) {
            return;
        }
        let path = root.join(swap.path);
        let aside = root.join(format!("{}.swap", swap.path));
        let (name, other) = (path.file_name().unwrap(), aside.file_name().unwrap());
        // The directory above may be gone, or be a symlink itself at the moment.
        let _ = fs::create_dir_all(path.parent().unwrap());
        let exchange = || {
            let dir = Os.open_root(path.parent().unwrap())?;
            dir.exchange(name, &*dir, OsStr::new(other))
        };
        // Now and then a few at once, so that both stand there for a while in turn.
        for _ in 0..=random.below(4) {
            if exchange().is_ok() {
                swaps.fetch_add(1, Ordering::Relaxed);
            } else {
                mend(swap, &path, &aside, outside, &made);
            }
            if random.below(3) == 0 {
                std::thread::sleep(Duration::from_micros(random.below(400)));
            }
        }
    }
}

/// Makes whichever of the two is missing, at `made`, and moves it there, unless somebody is faster.
fn mend(swap: &Swap, path: &Path, aside: &Path, outside: &Path, made: &Path) {
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let missing = [path, aside].into_iter().filter(|path| !is_there(path)).collect::<Vec<_>>();
    for missing in missing {
        if is_link(path) || is_link(aside) {
            if swap.is_file {
                fs::write(made, "inside").unwrap();
                let _ = fs::rename(made, missing);
                let _ = fs::remove_file(made);
            } else {
                let used = USED.iter().find(|used| used.starts_with(swap.path)).expect("one is below");
                let below = used.strip_prefix(swap.path).expect("it is").trim_start_matches('/');
                lay_out_dir(&made.join(below), "inside");
                let _ = fs::rename(made, missing);
                let _ = fs::remove_dir_all(made);
            }
        } else {
            let _ = symlink((swap.leads)(outside), missing);
        }
    }
}

/// One to three operations below the directories that are exchanged. Nothing of the outside is ever seen.
fn use_some(tx: &mut Transaction, random: &mut Random, number: u64) -> Result<(), Error> {
    tx.set_symlinks([Symlinks::Refuse, Symlinks::Follow, Symlinks::Replace][random.below(3) as usize]);
    let read = |tx: &mut Transaction, path: &str| -> Result<(), Error> {
        let content = String::from_utf8_lossy(&tx.read(path)?).into_owned();
        assert!(!content.contains("SECRET"), "{path} was read outside of the tree");
        let is_ours = content.contains("inside") || content.is_empty();
        assert!(is_ours, "{path} was read in the store: {content:?}");
        Ok(())
    };
    for _ in 0..=random.below(3) {
        let dir = USED[random.below(USED.len() as u64) as usize];
        let name = |name: &str| format!("{dir}/{name}");
        match random.below(18) {
            0 | 1 => tx.write(name("file"), format!("inside {number}"))?,
            2 => tx.write(name(&format!("sub/new-{}", number % 5)), format!("inside {number}"))?,
            3 => tx.append(name("file"), "inside, appended")?,
            4 => tx.patch(name("other"), 0, "inside")?,
            5 => tx.rename(name("file"), name("other"))?,
            6 => tx.rename(name("other"), format!("kept/{}", number % 7))?,
            7 => tx.remove(name("sub/file"))?,
            8 => tx.create_dir_all(name("made/in/it"))?,
            9 => tx.remove_dir_all(name("sub"))?,
            10 => tx.set_mode(name("file"), 0o640)?,
            11 => tx.set_mode(dir, 0o750 + (number % 6) as u32)?,
            12 => tx.symlink(name("link"), "file")?,
            13 => {
                for path in ["file", "only outside", "store", "sub/deeper/file"] {
                    match read(tx, &name(path)) {
                        Ok(()) => {
                            let is_ours = path != "only outside" && path != "store";
                            assert!(is_ours, "{} is there", name(path));
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            14 => {
                for (listed, _) in tx.list(dir)? {
                    assert!(listed != "only outside" && listed != "wal", "{dir} was listed elsewhere");
                }
            }
            15 => {
                let is_there = tx.exists(name("only outside"))? || tx.exists(name("wal"))?;
                assert!(!is_there, "a name in {dir} was looked for elsewhere");
            }
            16 => tx.rename(dir, "kept/dir")?,
            _ => tx.remove_dir_all(dir)?,
        }
    }
    Ok(())
}

/// What a transaction may be told when the ground moves under it: nothing was changed.
const REFUSED: [ErrorKind; 11] = [
    ErrorKind::Conflict,
    ErrorKind::NotFound,
    ErrorKind::NotADirectory,
    ErrorKind::IsADirectory,
    ErrorKind::Exists,
    ErrorKind::NotEmpty,
    ErrorKind::Unsupported,
    ErrorKind::InvalidPath,
    ErrorKind::InvalidInput,
    ErrorKind::CrossDevice,
    ErrorKind::Permission,
];

fn options() -> Options {
    small().log_bytes_max(512 << 10).settle_after(Duration::from_millis(3)).inline_bytes_max(4000)
}

/// Transactions for as long as they are wanted, on a store that is opened again when it has to be.
fn transact_until(wanted: &AtomicBool, store: &Store, random: &mut Random, tally: &Tally) {
    while wanted.load(Ordering::Relaxed) {
        let number = random.next();
        let result = store.begin().and_then(|mut tx| {
            use_some(&mut tx, random, number)?;
            tx.commit()
        });
        match result {
            Ok(receipt) => {
                tally.count("committed");
                receipt.displaced().iter().for_each(|_| tally.count("displaced"));
                receipt.lost().iter().for_each(|_| tally.count("lost"));
            }
            Err(error) => {
                tally.count(format!("{:?}", error.kind()));
                if matches!(error.kind(), ErrorKind::CommittedNotApplied | ErrorKind::Poisoned) {
                    return tally.count(format!("ended by: {error}"));
                }
                assert!(REFUSED.contains(&error.kind()), "{error} ({error:?})");
                tally.count("refused");
            }
        }
    }
}

/// The outside is as it was, in every byte and attribute; nothing of it is in the tree; and the store is whole, and has
/// nothing in it that a transaction put there through a symlink.
fn check(root: &Path, outside: &Path, before: &BTreeMap<PathBuf, Seen>, label: &str) {
    let after = tree(outside);
    let names = before.keys().chain(after.keys());
    let changed = names.filter(|name| before.get(*name) != after.get(*name));
    let changed: BTreeMap<_, _> = changed.map(|name| (name, (before.get(name), after.get(name)))).collect();
    assert!(changed.is_empty(), "{label}: changed outside of the tree: {changed:#?}");
    for (path, seen) in tree(root) {
        let content = String::from_utf8_lossy(&seen.content).into_owned();
        assert!(!content.contains("SECRET"), "{label}: {} was copied in", path.display());
    }
    let own: Vec<String> = fs::read_dir(root.join(".atomtree"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    for name in ["file", "other", "sub", "made", "link", "deeper"] {
        assert!(!own.iter().any(|found| found == name), "{label}: the store holds {own:?}");
    }
    let verification = Inspection::open(root, &Options::new()).unwrap().verify().unwrap();
    assert!(verification.problems.is_empty(), "{label}: {verification:?}");
}

/// Opens the store. A recovery whose directory is exchanged between two of its calls fails, has lost nothing, and is made
/// again.
fn open_until(root: &Path, deadline: Instant) -> Store {
    loop {
        match options().open(root) {
            Err(error) if error.kind() == ErrorKind::NotADirectory && Instant::now() < deadline => {}
            opened => return opened.unwrap(),
        }
    }
}

/// Goal: no transaction writes, makes, removes, changes or reads anything outside of the tree or in the store, whatever is
/// exchanged with a symlink while it runs. Method: two threads exchange directories, the directories above them, and a
/// file with symlinks, absolute and relative, to the outside and into `.atomtree`; four threads transact, and one makes
/// checkpoints.
#[test]
fn exchanged_symlinks_lead_no_transaction_out() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, outside) = lay_out(scratch.path());
    let before = tree(&outside);
    let seed = Random::from_environment().next();
    let (tally, swaps) = (Tally::default(), AtomicU64::new(0));
    let start = Instant::now();
    let mut rounds = 0;
    let was_race =
        || swaps.load(Ordering::Relaxed) > 500 && tally.of("committed") > 50 && tally.of("refused") > 50;
    while rounds < 2 || start.elapsed() < Duration::from_secs(5) || !was_race() && start.elapsed() < PATIENCE
    {
        rounds += 1;
        let wanted = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for first in [0, 3] {
                let (wanted, root, outside, swaps) = (&wanted, &root, &outside, &swaps);
                scope.spawn(move || swap_until(wanted, root, outside, swaps, first));
            }
            // The next round opens the store while they are at it.
            let running = Running(&wanted);
            let store = open_until(&root, start + PATIENCE);
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let (wanted, store, tally) = (&wanted, store.clone(), &tally);
                    let mut random = Random::new(seed ^ thread ^ (rounds << 8));
                    scope.spawn(move || transact_until(wanted, &store, &mut random, tally))
                })
                .collect();
            let round = Instant::now();
            while round.elapsed() < Duration::from_secs(2)
                && !threads.iter().any(ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_millis(20));
                match store.checkpoint() {
                    Ok(()) => tally.count("checkpoints"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}"),
                }
            }
            drop(running);
        });
    }
    let store = options().open(&root).unwrap();
    store.close().unwrap();
    check(&root, &outside, &before, "in the end");
    println!("{swaps:?} swaps in {rounds} rounds, {:?}", tally.0.lock().unwrap());
    assert!(was_race(), "there was no race");
}

/// Goal: a symlink that is no symlink any more, in the middle of a look at it, is a conflict and no error of the system.
/// Method: a directory takes its place just before it is read, by a rule that watches the calls; on the way to a name, and
/// as the name itself.
#[test]
fn a_symlink_replaced_in_the_middle_of_a_look_is_a_conflict() {
    let uses: [fn(&mut Transaction) -> Result<(), Error>; 3] = [
        |tx| tx.write("link/file", "x"),
        |tx| tx.read_link("link").map(drop),
        |tx| tx.rename("link", "moved"),
    ];
    for usage in uses {
        let scratch = tempfile::tempdir().unwrap();
        let link = scratch.path().join("link");
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let store = manual().vfs(Arc::new(faults.clone())).open(scratch.path()).unwrap();
        symlink("somewhere", &link).unwrap();
        let replaced = link.clone();
        faults.set_rule(Arc::new(move |call| {
            if call.verb == Verb::ReadLink && fs::remove_file(&replaced).is_ok() {
                fs::create_dir(&replaced).unwrap();
            }
            None
        }));
        assert_eq!(kind_of(commit(&store, usage)), ErrorKind::Conflict);
        assert!(link.is_dir(), "nothing was looked at");
        faults.set_rule(fail_nothing());
        store.close().unwrap();
    }
}

/// Goal: directories that are made while a transaction looks for them are seen, or a conflict. Method: they, and one at the
/// name that is written itself, are made before each call in turn.
#[test]
fn directories_made_at_any_call_of_a_look_are_seen_or_a_conflict() {
    let mut kinds = BTreeMap::new();
    for number in 1.. {
        let scratch = tempfile::tempdir().unwrap();
        let faults = Faults::new(Arc::new(Os), fail_nothing());
        let store = manual().vfs(Arc::new(faults.clone())).open(scratch.path()).unwrap();
        let (first, path) = (faults.calls(), scratch.path().join("d/e/f"));
        faults.set_rule(Arc::new(move |call| {
            if call.number == first + number {
                fs::create_dir_all(&path).unwrap();
            }
            None
        }));
        let mut tx = store.begin().unwrap();
        let result = tx.write("d/e/f", "x");
        let is_over = faults.calls() < first + number;
        faults.set_rule(fail_nothing());
        *kinds.entry(format!("{:?}", result.as_ref().map_err(Error::kind).err())).or_insert(0) += 1;
        match result {
            // It was too late to be seen.
            Ok(()) if !is_over => assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict, "call {number}"),
            Ok(()) => {
                assert_eq!(tx.commit().unwrap().files(), 3);
                break;
            }
            Err(error) => {
                let is_told = [ErrorKind::Conflict, ErrorKind::IsADirectory].contains(&error.kind());
                assert!(is_told, "call {number}: {error}");
            }
        }
        store.close().unwrap();
    }
    println!("{kinds:?}");
    assert!(kinds.len() == 3, "{kinds:?}");
}

/// Goal: recovery goes nowhere else either. Method: children that transact as above are killed at random instants, while
/// this process exchanges; the next one recovers meanwhile.
#[test]
fn exchanged_symlinks_lead_no_recovery_out() {
    if let Some(root) = child_root() {
        let store =
            options().open(&root).unwrap_or_else(|error| panic!("not opened: {:?}: {error}", error.kind()));
        say(&format!("opened {}", store.recovery().redone));
        let (wanted, tally) = (AtomicBool::new(true), Tally::default());
        let seed: u64 = std::env::var("ATOMTREE_THREAD_SEED").unwrap().parse().unwrap();
        return std::thread::scope(|scope| {
            for thread in 0..3 {
                let (wanted, store, tally) = (&wanted, &store, &tally);
                let mut random = Random::new(seed ^ thread);
                scope.spawn(move || transact_until(wanted, store, &mut random, tally));
            }
        });
    }
    let scratch = tempfile::tempdir().unwrap();
    let (root, outside) = lay_out(scratch.path());
    let before = tree(&outside);
    let mut random = Random::from_environment();
    let swaps = AtomicU64::new(0);
    let (mut redone, mut opened) = (0, 0);
    let was_race = |redone, opened| redone > 10 && opened > 20 && swaps.load(Ordering::Relaxed) > 500;
    let start = Instant::now();
    let wanted = AtomicBool::new(true);
    let running = Running(&wanted);
    std::thread::scope(|scope| {
        for first in [0, 3] {
            let (wanted, root, outside, swaps) = (&wanted, &root, &outside, &swaps);
            scope.spawn(move || swap_until(wanted, root, outside, swaps, first));
        }
        let running = running;
        for round in 0.. {
            if round >= 40 && (was_race(redone, opened) || start.elapsed() > PATIENCE) {
                break;
            }
            let mut speaking = Speaking::start(
                child("races::swaps::exchanged_symlinks_lead_no_recovery_out", &root)
                    .env("ATOMTREE_THREAD_SEED", random.next().to_string()),
            );
            let mut said = if random.below(4) == 0 { Vec::new() } else { speaking.wait_for("opened") };
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            speaking.child.kill().unwrap();
            said.extend(speaking.end().0);
            for line in &said {
                if let Some(count) = line.strip_prefix("opened ") {
                    opened += 1;
                    redone += count.parse::<u64>().unwrap();
                }
            }
            let complaints: Vec<_> = said.iter().filter(|line| !line.starts_with("opened")).collect();
            assert!(complaints.is_empty(), "round {round}: {complaints:#?}");
        }
        drop(running);
    });
    options().open(&root).unwrap().close().unwrap();
    check(&root, &outside, &before, "in the end");
    println!("{swaps:?} swaps, {opened} recoveries, {redone} redone");
    assert!(was_race(redone, opened), "there was no race");
}
