//! What damage to a store's files does: a precise error with nothing changed, or the right tree.
//!
//! The parts of a store have a file each: the log, what waits in `stage/`, and the rest. Here is what they share: how
//! damage is done, and how an open of what it leaves is judged.

mod log;
mod log_pieces;
mod others;
mod staged;

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree::vfs::sim::{Node, Sim};
use atomtree::vfs::{Access, Vfs};
use atomtree::{Checkpoints, ErrorKind, Inspection, Options, Store};

const ROOT: &str = "/root";
const STORE: &str = "/root/.atomtree";
const SECTOR_BYTES: usize = 512;

/// Whether so many operations change nothing but the note of who holds the lock, which is emptied, written and emptied
/// again, before and after anything else is read.
fn is_lock_alone(operations: u64) -> bool {
    [0, 3].contains(&operations)
}

type Nodes = BTreeMap<PathBuf, Node>;

fn options(vfs: Arc<dyn Vfs>) -> Options {
    let options = Options::new().segment_bytes(64 << 10).log_bytes_max(1 << 20);
    options.vfs(vfs).checkpoints(Checkpoints::Manual)
}

fn options_of(sim: &Sim) -> Options {
    options(Arc::new(sim.clone()))
}

/// A store whose log fills two segments and more, with manifests of what is settled; closed, or killed with commits
/// that are not.
fn store(closed: bool) -> Sim {
    store_of(14, closed)
}

fn store_of(rounds: u8, closed: bool) -> Sim {
    let sim = Sim::new(3);
    sim.write_file("/root/config", b"version 0");
    sim.write_file("/root/dir/kept", b"never touched");
    let store = options_of(&sim).open(ROOT).unwrap();
    for round in 0..rounds {
        let mut tx = store.begin().unwrap();
        tx.write("config", format!("version {round}").as_bytes()).unwrap();
        tx.write("dir/data", vec![round; 9000]).unwrap();
        tx.write(format!("new/{round}"), b"one each").unwrap();
        if round > 0 {
            tx.remove(format!("new/{}", round - 1)).unwrap();
        }
        tx.commit().unwrap();
        if round == 2 || round == 5 {
            store.checkpoint().unwrap();
        }
    }
    end(&sim, store, closed)
}

/// The machine after the store was closed, or its process killed.
fn end(sim: &Sim, store: Store, closed: bool) -> Sim {
    if closed {
        store.close().unwrap();
        sim.kill()
    } else {
        let killed = sim.kill();
        std::mem::forget(store);
        killed
    }
}

/// The user's files.
fn user_tree(sim: &Sim) -> Nodes {
    sim.tree(ROOT).into_iter().filter(|(path, _)| !path.starts_with(".atomtree")).collect()
}

/// One file's damage.
#[derive(Clone, Debug)]
enum Damage {
    Overwrite(usize, Vec<u8>),
    Cut(usize),
    Replace(Vec<u8>),
    Remove,
}

impl Damage {
    fn flip(bytes: &[u8], bit: usize) -> Self {
        Self::Overwrite(bit / 8, vec![bytes[bit / 8] ^ 1 << (bit % 8)])
    }

    /// What can become of the sector at `at`, by name; `earlier` are the file's contents earlier in its life.
    fn of_sector(bytes: &[u8], at: usize, earlier: &[Vec<u8>]) -> Vec<(&'static str, Self)> {
        let sector = |bytes: &[u8], at: usize| {
            bytes[at.min(bytes.len())..(at + SECTOR_BYTES).min(bytes.len())].to_vec()
        };
        let (own, next) = (sector(bytes, at), sector(bytes, at + SECTOR_BYTES));
        let mut all = vec![("zeroed", vec![0; own.len()])];
        if next.len() == own.len() {
            all.push(("duplicated from the next", next.clone()));
            all.push(("duplicated into the next", [&own[..], &own].concat()));
            all.push(("swapped with the next", [next, own].concat()));
        }
        let stale = earlier.iter().map(|earlier| ("stale", sector(earlier, at)));
        all.extend(stale.filter(|(_, stale)| !stale.is_empty()));
        all.dedup();
        let all = all.into_iter().filter(|(_, damage)| !bytes[at..].starts_with(damage));
        all.map(|(verb, damage)| (verb, Self::Overwrite(at, damage))).collect()
    }

    /// The file's bytes afterwards; `None` if it is gone.
    fn of(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        match self {
            Self::Overwrite(at, damage) => {
                bytes.resize(bytes.len().max(at + damage.len()), 0);
                bytes[*at..at + damage.len()].copy_from_slice(damage);
            }
            Self::Cut(length) => bytes.truncate(*length),
            Self::Replace(other) => bytes.clone_from(other),
            Self::Remove => return None,
        }
        Some(bytes)
    }

    /// Does it to a file, on a machine of its own.
    fn done(&self, whole: &Sim, path: &Path) -> Sim {
        let sim = whole.kill();
        let open = || {
            let dir = sim.open_root(path.parent().unwrap()).unwrap();
            dir.open_file(path.file_name().unwrap(), Access::ReadWrite).unwrap()
        };
        match self {
            Self::Overwrite(at, bytes) => {
                let file = open();
                file.write_at(&[IoSlice::new(bytes)], *at as u64).unwrap();
                file.sync_all().unwrap();
            }
            Self::Cut(length) => open().set_len(*length as u64).unwrap(),
            Self::Replace(bytes) => sim.write_file(path, bytes),
            Self::Remove => sim.remove(path),
        }
        sim
    }
}

/// What opening made of the damage.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused(String),
}

/// Opens the damaged store and judges: refused means that nothing has changed and that the message says where;
/// accepted means that the tree is right, and nothing was lost, displaced or superseded. Verification, before, must
/// have said the same.
fn judge(sim: &Sim, expected: &Nodes, what: &dyn Fn() -> String) -> Verdict {
    judge_with(sim, &[expected], what)
}

/// As [`judge`], where the last synced batch of a store that was not closed may be lost. What it had put in place may then
/// be taken for another program's, so that each name has what it has in one of these trees.
fn judge_with(sim: &Sim, expected: &[&Nodes], what: &dyn Fn() -> String) -> Verdict {
    let operations = sim.operations();
    let looked = Inspection::open(ROOT, &options_of(sim)).and_then(|inspection| inspection.verify());
    assert_eq!(sim.operations(), operations, "{}: looking changes nothing", what());
    let (problems, unsettled) = match looked {
        Ok(found) => (found.problems.iter().map(ToString::to_string).collect(), Some(found.unsettled)),
        Err(error) => (vec![error.to_string()], None),
    };
    match options_of(sim).open(ROOT) {
        Ok(opened) => {
            let report = opened.recovery().clone();
            let is_whole =
                report.superseded.is_empty() && report.lost.is_empty() && report.quarantined.is_empty();
            let is_whole = is_whole && report.metadata_kept.is_empty();
            assert!(is_whole || expected.len() > 1, "{}: {report:?}", what());
            opened.close().unwrap();
            let tree = user_tree(sim);
            for path in expected.iter().flat_map(|tree| tree.keys()).chain(tree.keys()) {
                let (found, all) = (tree.get(path), expected.iter().map(|tree| tree.get(path)));
                let is_right = all.clone().any(|wanted| wanted == found);
                assert!(
                    is_right,
                    "{}: {}: {found:?}, not {:?}",
                    what(),
                    path.display(),
                    all.collect::<Vec<_>>()
                );
            }
            // Manifests are read when history is asked for, not at every open.
            let is_history = |problem: &String| problem.starts_with("manifest ");
            assert!(problems.iter().all(is_history), "{}: {problems:?}", what());
            assert_eq!(unsettled, Some(report.redone), "{}", what());
            Verdict::Accepted
        }
        Err(error) => {
            let done = sim.operations() - operations;
            assert!(is_lock_alone(done), "{}: a refused open changes nothing", what());
            let message = error.to_string();
            let expected_kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NotFound];
            assert!(expected_kinds.contains(&error.kind()), "{}: {:?} {message}", what(), error.kind());
            assert!(problems.contains(&message), "{}: {message}, verification says {problems:?}", what());
            Verdict::Refused(message)
        }
    }
}

/// The store's files below a name, with their contents.
fn files(sim: &Sim, part: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let names = sim.tree(STORE).into_keys().filter(|path| path.starts_with(part));
    let files = names.map(|name| Path::new(STORE).join(name));
    files.filter_map(|path| sim.read_file(&path).map(|bytes| (path, bytes))).collect()
}

/// What a file of the store held earlier in its life, each content once.
fn earlier_contents(snapshots: &[Sim], path: &Path) -> Vec<Vec<u8>> {
    let mut contents: Vec<Vec<u8>> = snapshots.iter().filter_map(|sim| sim.read_file(path)).collect();
    contents.dedup();
    contents
}

/// Does something with each number, on two threads.
fn on_two_threads(count: usize, visit: impl Fn(usize) + Sync) {
    crate::crash_points::sum_over(0..count as u64, |number| {
        visit(number as usize);
        1
    });
}
