//! What damage to a store's files does: a precise error with nothing changed, or the right tree. Also replays what the
//! fuzzer saved.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree::vfs::sim::{Node, Sim};
use atomtree::vfs::{Access, Vfs};
use atomtree::{Checkpoints, ErrorKind, Inspection, Options};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

const ROOT: &str = "/root";
const STORE: &str = "/root/.atomtree";
const SECTOR_BYTES: usize = 512;

fn options(sim: &Sim) -> Options {
    let options = Options::new().segment_bytes(64 << 10).log_bytes_max(1 << 20);
    options.vfs(Arc::new(sim.clone())).checkpoints(Checkpoints::Manual)
}

/// A store whose log fills two segments and more, with manifests of what is settled; closed, or killed with commits
/// that are not.
fn store(closed: bool) -> Sim {
    let sim = Sim::new(3);
    sim.write_file("/root/config", b"version 0");
    sim.write_file("/root/dir/kept", b"never touched");
    let store = options(&sim).open(ROOT).unwrap();
    for round in 0..14_u8 {
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
fn user_tree(sim: &Sim) -> BTreeMap<PathBuf, Node> {
    sim.tree(ROOT).into_iter().filter(|(path, _)| !path.starts_with(".atomtree")).collect()
}

/// Everything, without what tells who holds the lock.
fn all_files(sim: &Sim) -> BTreeMap<PathBuf, Node> {
    sim.tree(ROOT).into_iter().filter(|(path, _)| !path.ends_with(".atomtree/lock")).collect()
}

fn overwrite(sim: &Sim, path: &Path, offset: u64, bytes: &[u8]) {
    let dir = sim.open_root(path.parent().unwrap()).unwrap();
    let file = dir.open_file(path.file_name().unwrap(), Access::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
    file.sync_all().unwrap();
}

fn cut(sim: &Sim, path: &Path, length: u64) {
    let dir = sim.open_root(path.parent().unwrap()).unwrap();
    dir.open_file(path.file_name().unwrap(), Access::ReadWrite).unwrap().set_len(length).unwrap();
}

/// What opening made of the damage.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused(String),
}

/// Opens the damaged store and judges: refused means that nothing has changed and that the message says where;
/// accepted means that the tree is right. Verification, before, must have said the same.
fn judge(sim: &Sim, expected: &BTreeMap<PathBuf, Node>, what: &str) -> Verdict {
    let before = all_files(sim);
    let looked = Inspection::open(ROOT, &options(sim)).and_then(|inspection| inspection.verify());
    assert_eq!(all_files(sim), before, "{what}: looking changes nothing");
    let problems = match looked {
        Ok(found) => found.problems.iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    };
    match options(sim).open(ROOT) {
        Ok(opened) => {
            opened.close().unwrap();
            assert_eq!(user_tree(sim), *expected, "{what}");
            // Manifests are read when history is asked for, not at every open.
            assert!(problems.iter().all(|problem| problem.contains("manifest")), "{what}: {problems:?}");
            Verdict::Accepted
        }
        Err(error) => {
            assert_eq!(all_files(sim), before, "{what}: a refused open changes nothing");
            let message = error.to_string();
            let expected_kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NotFound];
            assert!(expected_kinds.contains(&error.kind()), "{what}: {:?} {message}", error.kind());
            assert!(problems.contains(&message), "{what}: {message}, verification says {problems:?}");
            Verdict::Refused(message)
        }
    }
}

/// The store's files, by kind, with their contents.
fn files(sim: &Sim, part: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let names = sim.tree(STORE).into_keys().filter(|path| path.starts_with(part));
    let files = names.map(|name| Path::new(STORE).join(name));
    files.filter_map(|path| sim.read_file(&path).map(|bytes| (path, bytes))).collect()
}

/// Where frames begin in a segment, found by their epoch, which stands 16 bytes into each.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 4096;
    while at + 40 <= bytes.len() && bytes[at + 4] != 0 {
        starts.push(at);
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        at += (40 + length).next_multiple_of(8);
    }
    starts
}

/// Goal: damage in the log is refused precisely, or does no harm. Method: in each segment flip bits of the header and
/// of every frame, and some in between, in a store that was closed and in one that was killed. Only the very last
/// frame may be lost unnoticed, and only in the latter.
#[test]
fn flipped_bits_in_the_log() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let (mut refused, mut accepted) = (0, 0);
        for (path, bytes) in files(&whole, "wal") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_free = bytes[36] == 1;
            let starts = frame_starts(&bytes);
            let mut places: Vec<usize> = (0..72).step_by(3).chain([300, 600, 4000]).collect();
            places.extend(starts.iter().flat_map(|start| [start + 1, start + 26, start + 45]));
            places.extend((4096..bytes.len()).step_by(5003));
            for at in places {
                let sim = whole.kill();
                overwrite(&sim, &path, at as u64, &[bytes[at] ^ 1 << (at % 8)]);
                let what = format!("closed {closed}, {name}, offset {at}");
                match judge(&sim, &expected, &what) {
                    Verdict::Accepted => {
                        accepted += 1;
                        let last = starts.last().copied().unwrap_or(4096);
                        let is_slack = (512..4096).contains(&at) || at >= last;
                        assert!(is_slack || is_free && at >= 512, "{what}");
                    }
                    Verdict::Refused(message) => {
                        refused += 1;
                        assert!(message.contains(&name) && message.contains("offset"), "{what}: {message}");
                        assert!(
                            message.contains("found") && message.contains("expected"),
                            "{what}: {message}"
                        );
                    }
                }
            }
        }
        assert!(refused > 50 && accepted > 10, "{refused} refused, {accepted} accepted");
    }
}

/// As above: segments cut short, removed, exchanged, with sectors zeroed, doubled and swapped.
#[test]
fn misplaced_pieces_of_the_log() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let segments = files(&whole, "wal");
        assert!(segments.len() >= 3, "the log has several segments");
        for (path, bytes) in &segments {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_free = bytes[36] == 1;
            for length in [1, 40, 68, 511, 512, 4095, 4096, 4100, 30_000, 65_535] {
                let sim = whole.kill();
                cut(&sim, path, length);
                let what = format!("closed {closed}, {name} cut to {length}");
                match judge(&sim, &expected, &what) {
                    Verdict::Accepted => assert!(is_free, "{what}"),
                    Verdict::Refused(message) => assert!(message.contains(name), "{what}: {message}"),
                }
            }
            let used = frame_starts(bytes).last().map_or(4096, |last| last + 40);
            for sector in (0..used / SECTOR_BYTES).step_by(5) {
                let at = sector * SECTOR_BYTES;
                let next = at + SECTOR_BYTES..at + 2 * SECTOR_BYTES;
                let damages: [(&str, Vec<u8>); 3] = [
                    ("zeroed", vec![0; SECTOR_BYTES]),
                    ("doubled", bytes[next.clone()].to_vec()),
                    ("swapped", [&bytes[next.clone()], &bytes[at..next.start]].concat()),
                ];
                for (verb, damage) in damages {
                    if bytes[at..].starts_with(&damage) {
                        continue;
                    }
                    let sim = whole.kill();
                    overwrite(&sim, path, at as u64, &damage);
                    let what = format!("closed {closed}, {name}, sector {sector} {verb}");
                    // Stale frames of a free segment, the unused rest of a header's area, or the last frame.
                    let may_pass = is_free || (1..8).contains(&sector) || at + 3 * SECTOR_BYTES > used;
                    if judge(&sim, &expected, &what) == Verdict::Accepted {
                        assert!(may_pass, "{what}");
                    }
                }
            }
        }
        for pair in segments.windows(2) {
            let sim = whole.kill();
            overwrite(&sim, &pair[0].0, 0, &pair[1].1);
            overwrite(&sim, &pair[1].0, 0, &pair[0].1);
            let verdict = judge(&sim, &expected, "segments exchanged");
            assert!(
                matches!(verdict, Verdict::Refused(message) if message.contains("the header of segment"))
            );
        }
    }
}

/// Whole segments removed. One that is free is not missed. Nothing that is left knows of the newest, so that much is
/// accepted if an older one is active; any other is.
#[test]
fn removed_segments() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let segments = files(&whole, "wal");
        let epoch = |bytes: &[u8]| u64::from_le_bytes(bytes[48..56].try_into().unwrap());
        let active: Vec<_> = segments.iter().filter(|(_, bytes)| bytes[36] == 2).collect();
        let mut gap_was_noticed = false;
        let newest = active.iter().map(|(_, bytes)| epoch(bytes)).max().unwrap();
        for (path, bytes) in &segments {
            let sim = whole.kill();
            sim.remove(path);
            let what = format!("closed {closed}, {} removed", path.display());
            let is_only = active.len() == 1;
            match judge(&sim, &expected, &what) {
                Verdict::Accepted => assert!(bytes[36] == 1 || epoch(bytes) == newest && !is_only, "{what}"),
                Verdict::Refused(message) => {
                    let says = ["missing", "removed", "later segment"];
                    assert!(says.iter().any(|word| message.contains(word)), "{what}: {message}");
                    gap_was_noticed |= message.contains("a segment has been removed");
                }
            }
        }
        // The oldest of several: what it held is not settled.
        assert!(closed || gap_was_noticed);
    }
}

/// The store file: every byte changed, every length, and none.
#[test]
fn a_damaged_store_file_is_refused() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let path = Path::new(STORE).join("store");
        let bytes = whole.read_file(&path).unwrap();
        let refused = |sim: &Sim, what: &str| match judge(sim, &expected, what) {
            Verdict::Refused(message) => {
                assert!(
                    message.contains(".atomtree/store") || message.contains("version"),
                    "{what}: {message}"
                );
            }
            Verdict::Accepted => panic!("{what} is accepted"),
        };
        for (at, byte) in bytes.iter().enumerate() {
            let sim = whole.kill();
            overwrite(&sim, &path, at as u64, &[byte ^ 1 << (at % 8)]);
            refused(&sim, &format!("byte {at}"));
            let sim = whole.kill();
            cut(&sim, &path, at as u64);
            refused(&sim, &format!("cut to {at}"));
        }
        let sim = whole.kill();
        overwrite(&sim, &path, bytes.len() as u64, &[b'x'; 5000]);
        assert!(options(&sim).open(ROOT).is_err());
    }
}

/// Manifests: damage is found where history is read, and named; it keeps nobody from opening.
#[test]
fn a_damaged_manifest_is_named() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let manifests = files(&whole, "history");
        assert!(!manifests.is_empty());
        for (path, bytes) in manifests {
            let name = path.file_name().unwrap().to_str().unwrap();
            for at in (0..bytes.len()).step_by(11) {
                for is_cut in [false, true] {
                    let sim = whole.kill();
                    if is_cut {
                        cut(&sim, &path, at as u64);
                    } else {
                        overwrite(&sim, &path, at as u64, &[bytes[at] ^ 1 << (at % 8)]);
                    }
                    let inspection = Inspection::open(ROOT, &options(&sim)).unwrap();
                    let problems = inspection.verify().unwrap().problems;
                    // One that is cut between two summaries is shorter, and whole as far as it goes.
                    if !is_cut {
                        let [problem] = &problems[..] else { panic!("{name}, byte {at}: {problems:?}") };
                        let message = problem.to_string();
                        assert!(message.contains(name) || message.contains("version"), "{message}");
                        let error = inspection.log(1000).unwrap_err();
                        assert!([ErrorKind::Corrupt, ErrorKind::Unsupported].contains(&error.kind()));
                    }
                    if at % 5 == 0 {
                        assert_eq!(judge(&sim, &expected, name), Verdict::Accepted);
                    }
                }
            }
        }
    }
}

/// What holds nothing that is needed may be damaged or gone: ballast, the lists of members and of what git ignores.
#[test]
fn other_files_of_the_store_do_not_matter() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        for name in ["ballast", ".gitignore", "lock"] {
            for damage in ["removed", "emptied", "garbage"] {
                let sim = whole.kill();
                let path = Path::new(STORE).join(name);
                match damage {
                    "removed" if name == "lock" => continue,
                    "removed" => sim.remove(&path),
                    "emptied" => sim.write_file(&path, b""),
                    _ => sim.write_file(&path, b"\xff garbage"),
                }
                assert_eq!(judge(&sim, &expected, &format!("{name} {damage}")), Verdict::Accepted);
            }
        }
    }
}

/// Goal: what the fuzzer saved stays mended. Method: run each saved input through its target.
#[test]
fn saved_fuzzer_inputs() {
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let targets = [
        ("frame", targets::frame as fn(&[u8])),
        ("log", targets::log),
        ("record", targets::record),
        ("tree_path", targets::tree_path),
        ("recovery", targets::recovery),
    ];
    for (name, target) in targets {
        let mut inputs: Vec<PathBuf> =
            std::fs::read_dir(saved.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(inputs.len() >= 3, "{name} has a corpus");
        for input in inputs {
            println!("{name} {}", input.file_name().unwrap_or(OsStr::new("?")).display());
            target(&std::fs::read(&input).unwrap());
        }
    }
}
