//! The store's other files: the one that says whose it is, manifests, and what holds nothing that is needed.

use std::path::{Path, PathBuf};

use atomtree::vfs::sim::Sim;
use atomtree::{ErrorKind, Inspection};

use super::{
    Damage, Nodes, ROOT, SECTOR_BYTES, STORE, Verdict, files, judge, on_two_threads, options_of, store,
    user_tree,
};

/// Each bit of it, each length, and each sector as it may become.
fn damages(bytes: &[u8], earlier: &[Vec<u8>]) -> Vec<(String, Damage)> {
    let flips = (0..bytes.len() * 8).map(|bit| (format!("bit {bit} flipped"), Damage::flip(bytes, bit)));
    let cuts = (0..bytes.len()).map(|length| (format!("cut to {length}"), Damage::Cut(length)));
    let sectors = (0..bytes.len()).step_by(SECTOR_BYTES).flat_map(|at| {
        let damages = Damage::of_sector(bytes, at, earlier).into_iter();
        damages.map(move |(verb, damage)| (format!("sector at {at} {verb}"), damage))
    });
    flips.chain(cuts).chain(sectors).collect()
}

/// Goal: whose store it is, and in what format, is never guessed. Method: each bit, length and sector of the store file;
/// that of another store; text behind it; nothing.
#[test]
fn a_damaged_store_file_is_refused() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let path = Path::new(STORE).join("store");
        let bytes = whole.read_file(&path).unwrap();
        let another = Sim::new(77);
        another.create_dir(ROOT);
        options_of(&another).open(ROOT).unwrap().close().unwrap();
        let another = another.read_file(&path).unwrap();
        let mut damages = damages(&bytes, std::slice::from_ref(&another));
        damages.push(("text behind it".into(), Damage::Overwrite(bytes.len(), b"x".to_vec())));
        damages.push(("much behind it".into(), Damage::Overwrite(bytes.len(), vec![b'x'; 5000])));
        damages.push(("removed".into(), Damage::Remove));
        on_two_threads(damages.len(), |number| {
            let (what, damage) = &damages[number];
            let what = || format!("closed {closed}: {what}");
            match judge(&damage.done(&whole, &path), &expected, &what) {
                Verdict::Refused(message) => {
                    let says = [".atomtree/store", "format version", "belongs to log"];
                    assert!(says.iter().any(|says| message.contains(says)), "{}: {message}", what());
                }
                Verdict::Accepted => panic!("{} is accepted", what()),
            }
        });
    }
}

/// The manifests of a store, with everything that they may become; each also in the place of each other.
fn manifest_damages(whole: &Sim) -> Vec<(PathBuf, String, Damage)> {
    let manifests = files(whole, "history");
    assert!(manifests.len() >= 2);
    let mut all = Vec::new();
    for (path, bytes) in &manifests {
        let others: Vec<Vec<u8>> = manifests.iter().map(|(_, bytes)| bytes.clone()).collect();
        all.extend(damages(bytes, &others).into_iter().map(|(what, damage)| (path.clone(), what, damage)));
        for (other, bytes) in manifests.iter().filter(|(other, _)| other != path) {
            let what = format!("{} in its place", other.display());
            all.push((path.clone(), what, Damage::Replace(bytes.clone())));
        }
    }
    all
}

/// Goal: history is told as it was, or not at all; and it keeps nobody from opening. Method: each bit, length and sector
/// of each manifest, and each in the place of another. Verification and whoever reads it name the file and the offset.
#[test]
fn a_damaged_manifest_is_named() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        let damages = manifest_damages(&whole);
        on_two_threads(damages.len(), |number| {
            let (path, what, damage) = &damages[number];
            let name = path.file_name().unwrap().to_str().unwrap();
            let sim = damage.done(&whole, path);
            let inspection = Inspection::open(ROOT, &options_of(&sim)).unwrap();
            let problems = inspection.verify().unwrap().problems;
            let [problem] = &problems[..] else { panic!("{name}, {what}: {problems:?}") };
            let message = problem.to_string();
            let place = format!("manifest {name} is damaged at offset ");
            assert!(message.starts_with(&place), "{what}: {message}");
            let error = inspection.log(1000).unwrap_err();
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Corrupt, message), "{what}");
            // Every one of them takes long, and opening doesn't look at them.
            if number % 7 == 0 {
                assert_eq!(judge(&sim, &expected, &|| what.clone()), Verdict::Accepted);
            }
        });
    }
}

fn accepted(sim: &Sim, expected: &Nodes, what: &str) {
    assert_eq!(judge(sim, expected, &|| what.to_owned()), Verdict::Accepted, "{what}");
}

/// What holds nothing that is needed may be damaged or gone: ballast, the lists of members and of what git ignores, what
/// a crash left beside a manifest or store file, and what somebody put there.
#[test]
fn other_files_of_the_store_do_not_matter() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        for name in ["ballast", ".gitignore", "lock", "members"] {
            for damage in ["removed", "emptied", "garbage"] {
                let sim = whole.kill();
                let path = Path::new(STORE).join(name);
                match damage {
                    "removed" if name == "lock" => continue,
                    "removed" => sim.remove(&path),
                    "emptied" => sim.write_file(&path, b""),
                    _ => sim.write_file(&path, b"\xff garbage"),
                }
                accepted(&sim, &expected, &format!("{name} {damage}"));
            }
        }
        let strangers = [
            "store.new",
            "history/new",
            "history/0.manifest",
            "wal/1.seg",
            "wal/new",
            "quarantine/x",
            "stranger",
        ];
        for name in strangers {
            let sim = whole.kill();
            sim.write_file(Path::new(STORE).join(name), b"\xff garbage");
            accepted(&sim, &expected, &format!("{name} planted"));
        }
    }
}

/// A part of the store that is gone is named.
#[test]
fn a_missing_part_is_named() {
    for closed in [true, false] {
        let whole = store(closed);
        let expected = user_tree(&whole);
        for part in ["wal", "stage", "history", "images", "quarantine"] {
            let sim = whole.kill();
            sim.remove(Path::new(STORE).join(part));
            match judge(&sim, &expected, &|| part.into()) {
                Verdict::Refused(message) => assert!(message.contains(part), "{message}"),
                Verdict::Accepted => panic!("{part} is not missed"),
            }
        }
    }
}
