//! Sizes: contents larger than memory, transactions of very many files, records larger than a segment.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atomtree::vfs::sim::Sim;
use atomtree::{Error, ErrorKind, Inspection, Options, Store, Transaction};
use atomtree_tests::volume::{Kind, Volume, or_skip};
use tempfile::TempDir;

use crate::basics::{Random, child, child_root, commit, kind_of, manual, shell, tree};
use crate::cli::program;

const GIB: u64 = 1 << 30;
const MEMORY_KIB_MAX: u64 = 32 << 10;

/// Bytes free where temporary files go.
fn free_bytes(path: &Path) -> u64 {
    let output = Command::new("df").args(["-B1", "--output=avail"]).arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap().trim().parse().unwrap()
}

/// A sparse file with data at its start, at its end, and here and there between.
fn sparse(path: &Path, bytes: u64) {
    let mut random = Random::from_environment();
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let piece = 1 << 20;
    for number in 0..64 {
        let offset = match number {
            0 => 0,
            1 => bytes - piece,
            _ => random.below(bytes - piece),
        };
        file.write_all_at(&random.bytes(piece as usize), offset).unwrap();
    }
}

fn digest(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

/// The most memory that a process ever had, in KiB; `None` once it has ended.
fn peak_memory_kib(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Goal: contents of any size, in bounded memory. Method: the program writes a file of 5 GiB beside three small ones, one
/// of them there before; its peak memory is what the kernel says until it ends.
#[test]
fn a_file_of_5_gib_beside_three_small_ones_takes_less_than_32_mib() {
    let scratch = tempfile::tempdir().unwrap();
    let (source, root) = (scratch.path().join("source"), scratch.path().join("tree"));
    // The copy, and as much again for whatever else goes on here.
    let free = free_bytes(scratch.path());
    let bytes = if free >= 12 * GIB { 5 * GIB } else { free / 12 * 5 };
    if bytes < 5 * GIB {
        println!("{free} bytes are free where 12 GiB are wanted: a file of {bytes} bytes instead of 5 GiB");
    }
    sparse(&source, bytes);
    fs::create_dir(&root).unwrap();
    fs::write(root.join("old"), "old").unwrap();
    let start = Instant::now();
    let mut child = Command::new(program())
        .args(["--root", root.to_str().unwrap(), "batch"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let document = format!(
        r#"{{"ops":[{{"op":"write","path":"old","text":"new"}},{{"op":"write","path":"a/b","text":"ab"}},{{"op":"write","path":"big","file":"{}"}},{{"op":"write","path":"z","text":"z"}}]}}"#,
        source.display()
    );
    writeln!(input, "{document}").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains(r#""ok":true"#), "{answer}");
    let mut peak = peak_memory_kib(&child).unwrap();
    println!("{:?}, {peak} KiB: {answer}", start.elapsed());
    drop(input);
    let status = loop {
        peak = peak.max(peak_memory_kib(&child).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    println!("closed after {:?}, {peak} KiB", start.elapsed());
    for (name, content) in [("old", "new"), ("a/b", "ab"), ("z", "z")] {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content);
    }
    assert_eq!(digest(&root.join("big")), digest(&source));
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB at the peak");
}

const FILES: usize = 100_000;

/// Writes every file, in hundreds of directories.
fn write_many(tx: &mut Transaction) -> Result<(), Error> {
    (0..FILES).try_for_each(|n| tx.write(format!("many/{:03}/{n}", n % 1000), format!("{n}\n")))
}

/// Checks every one of them.
fn check_many(root: &Path) {
    for n in 0..FILES {
        let path = root.join(format!("many/{:03}/{n}", n % 1000));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{n}\n"), "{}", path.display());
    }
    let dirs = fs::read_dir(root.join("many")).unwrap();
    let files = dirs.map(|dir| fs::read_dir(dir.unwrap().path()).unwrap().count());
    assert_eq!(files.sum::<usize>(), FILES);
}

/// Where they go: an ext4 of their own, because some of those that people use discard each block that is freed, which
/// takes minutes for so many; else the usual place.
struct Home {
    path: PathBuf,
    _volume: Option<Volume>,
    _scratch: TempDir,
}

impl Home {
    fn for_many() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let volume = Volume::create_with(Kind::Ext4, 2 << 30, false, &["-N", "500000"], "")
            .map_err(|reason| println!("not on a volume of its own: {reason}"))
            .ok();
        let path = volume.as_ref().map_or(scratch.path(), Volume::path).join("tree");
        fs::create_dir(&path).unwrap();
        Self { path, _volume: volume, _scratch: scratch }
    }
}

/// Goal: one transaction of 100,000 files, in time that goes with their number. Method: one of a tenth for comparison.
#[test]
fn a_hundred_thousand_files_are_one_transaction() {
    let home = Home::for_many();
    let store = Store::open(&home.path).unwrap();
    let start = Instant::now();
    commit(&store, |tx| {
        (0..FILES / 10).try_for_each(|n| tx.write(format!("few/{:02}/{n}", n % 100), format!("{n}\n")))
    })
    .unwrap();
    let tenth = start.elapsed();
    let start = Instant::now();
    let receipt = commit(&store, write_many).unwrap();
    let whole = start.elapsed();
    println!("{} files in {tenth:?}, {FILES} in {whole:?}", FILES / 10);
    assert_eq!(receipt.files(), FILES + 1001, "with their directories");
    check_many(&home.path);
    store.close().unwrap();
    // Ten times as many take ten times as long; something quadratic would take a hundred times.
    assert!(whole < tenth * 40 + Duration::from_secs(5), "{tenth:?} for a tenth, {whole:?} for all");
}

/// Goal: all or nothing of 100,000 files. Method: a child is killed while it stages, and, as soon as the first directory
/// appears, while it applies; both on one tree.
#[test]
fn a_hundred_thousand_files_killed_in_the_middle_are_all_or_nothing() {
    if let Some(root) = child_root() {
        let store = Store::open(root).unwrap();
        let _ = commit(&store, write_many);
        return;
    }
    let home = Home::for_many();
    let root = home.path.as_path();
    Store::open(root).unwrap().close().unwrap();
    let name = "large::a_hundred_thousand_files_killed_in_the_middle_are_all_or_nothing";
    for moment in ["staging", "applying"] {
        let mut child = child(name, root).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let is_reached = || match moment {
            "staging" => {
                let dirs = fs::read_dir(root.join(".atomtree/stage")).unwrap();
                let counts = dirs.map(|dir| fs::read_dir(dir.unwrap().path()).map_or(0, Iterator::count));
                counts.sum::<usize>() > FILES / 3
            }
            _ => root.join("many/500").exists(),
        };
        while !is_reached() {
            assert!(start.elapsed() < Duration::from_mins(2), "{moment} was never reached");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let start = Instant::now();
        let store = Store::open(root).unwrap();
        println!("killed while {moment}: {:?}, recovered in {:?}", store.recovery().redone, start.elapsed());
        let expected = usize::from(moment == "applying");
        assert_eq!(store.recovery().redone as usize, expected, "{moment}");
        assert!(store.recovery().quarantined.is_empty(), "{moment}");
        store.close().unwrap();
        if moment == "applying" {
            check_many(root);
        } else {
            assert!(!root.join("many").exists());
        }
        assert_eq!(fs::read_dir(root.join(".atomtree/stage")).unwrap().count(), 0, "{moment}");
    }
}

/// Goal: a transaction whose records fill many segments is as atomic as any. Method: on a simulated machine with segments
/// of 64 KiB, one of some twenty; the machine goes down at operations all along its commit, and its power is cut.
#[test]
fn a_transaction_of_many_segments_is_all_or_nothing() {
    const NAMES: usize = 2000;
    let machine = || {
        let sim = Sim::new(11);
        sim.create_dir("/tree");
        let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
        (sim, store)
    };
    let change = |store: &Store| {
        commit(store, |tx| {
            (0..NAMES).try_for_each(|n| tx.write(format!("{:02}/{n:0>150}", n % 20), vec![n as u8; 600]))
        })
    };
    let count = |sim: &Sim| {
        let read = |n: usize| sim.read_file(format!("/tree/{:02}/{n:0>150}", n % 20));
        (0..NAMES).filter(|n| read(*n).is_some_and(|bytes| bytes == vec![*n as u8; 600])).count()
    };
    let (sim, store) = machine();
    let before = sim.operations();
    change(&store).unwrap();
    let operations = sim.operations() - before;
    let segments = sim_segments(&sim);
    assert!(segments > 10, "it took only {segments} segments");
    drop(store);
    let mut seen = [0, 0];
    for part in 1..=40 {
        let (sim, store) = machine();
        sim.halt_at(sim.operations() + operations * part / 40);
        let is_acknowledged = change(&store).is_ok();
        drop(store);
        for cut in [sim.kill(), sim.power_cut(part), sim.power_cut(part + 1000)] {
            let store = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
            assert!(store.recovery().quarantined.is_empty(), "part {part}: {:?}", store.recovery());
            let count = count(&cut);
            assert!(count == 0 || count == NAMES, "part {part}: {count} of {NAMES}");
            assert!(count == NAMES || !is_acknowledged, "part {part}: acknowledged and gone");
            seen[usize::from(count > 0)] += 1;
            store.close().unwrap();
        }
    }
    println!("{segments} segments, {} with nothing, {} with all", seen[0], seen[1]);
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

fn sim_segments(sim: &Sim) -> usize {
    use atomtree::vfs::Vfs;
    sim.open_root(Path::new("/tree/.atomtree/wal")).unwrap().list().unwrap().len()
}

/// Goal: one record that no segment can hold is refused before anything changes. Method: a label, and, on xfs, attributes
/// of a file that is replaced; with segments that can hold them both are fine.
#[test]
fn a_record_larger_than_a_segment_is_refused_early() {
    let volume = or_skip(Volume::create(Kind::Xfs, 0, false), "large attributes");
    let scratch = tempfile::tempdir().unwrap();
    let root = volume.as_ref().map_or(scratch.path(), |volume| volume.path()).join("tree");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("heavy"), "old").unwrap();
    let attributes = match &volume {
        Some(_) => {
            let value = "61".repeat(40 << 10);
            for name in ["one", "two"] {
                shell(&format!("cd '{}'; setfattr -n user.{name} -v 0x{value} heavy", root.display()));
            }
            true
        }
        None => false,
    };
    let change = |store: &Store, is_label: bool| {
        commit(store, |tx| {
            if is_label {
                tx.set_label("why ".repeat(25_000));
            }
            tx.write("light", "new")?;
            tx.write(if is_label { "other" } else { "heavy" }, "new")
        })
    };
    let store = manual().open(&root).unwrap();
    for is_label in [true, false].into_iter().filter(|is_label| *is_label || attributes) {
        let before = tree(&root);
        assert_eq!(kind_of(change(&store, is_label)), ErrorKind::NoSpace, "label {is_label}");
        assert_eq!(tree(&root), before, "label {is_label}");
        commit(&store, |tx| tx.write("small", "fits")).unwrap();
    }
    store.close().unwrap();
    fs::remove_dir_all(root.join(".atomtree")).unwrap();
    let store = Options::new().open(&root).unwrap();
    let before = tree(&root)[Path::new("heavy")].xattrs.clone();
    change(&store, true).unwrap();
    change(&store, false).unwrap();
    assert_eq!(tree(&root)[Path::new("heavy")].xattrs, before);
    store.close().unwrap();
    let label = Inspection::open(&root, &Options::new()).unwrap().log(2).unwrap()[1].label.clone();
    assert_eq!(label.map(|label| label.len()), Some(100_000));
}
