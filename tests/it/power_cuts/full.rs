//! Power cuts on small disks that are full most of the time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use atomtree::ErrorKind;
use atomtree_tests::filler::Filler;
use atomtree_tests::volume::Kind;

use super::{cut, volume};
use crate::basics::{Random, child, child_root};
use crate::kills::{Chain, Speaking, check_report, commit_version, say, tiny, versions};

const ROUNDS: u64 = 5;

/// Commits versions until the process is killed, for all that the disk lets it. What is refused is tried again; what
/// can't be put in place takes another open.
fn commit_for_want_of_room(root: &Path) {
    loop {
        let store = match tiny().open(root) {
            Ok(store) => store,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "not opened: {error}");
                say("refused an open");
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
        };
        check_report(store.recovery(), "a child");
        let mut standing = versions(0).standing(root, "a child");
        say(&format!("opened {}\nstands 0 {standing}", store.recovery().redone));
        loop {
            let Err(error) = commit_version(&store, 0, standing + 1) else {
                standing += 1;
                say(&format!("ack 0 {standing}"));
                continue;
            };
            say(&format!("refused {:?}", error.kind()));
            match error.kind() {
                ErrorKind::NoSpace => std::thread::sleep(Duration::from_millis(1)),
                ErrorKind::CommittedNotApplied | ErrorKind::Poisoned | ErrorKind::OutcomeUnknown => break,
                _ => panic!("{error}"),
            }
        }
    }
}

/// Goal: on a disk that is full, or has a few pages left, a power cut leaves what was acknowledged, in whole versions; and
/// a recovery that finds no room says so, and works once there is some. Method: a file takes all the room and gives back a
/// few pages at a time, and takes them again, while a child commits; each cut is at a random instant.
#[test]
fn a_power_cut_on_a_full_disk_keeps_every_acknowledged_version() {
    if let Some(root) = child_root() {
        return commit_for_want_of_room(&root);
    }
    let mut random = Random::from_environment();
    for kind in Kind::ALL {
        let Some((volume, root)) = volume(kind) else { continue };
        let mut chain = Chain::default();
        let (mut refused, mut refused_opens) = (0, 0);
        // The directories and the log are there before the disk is full.
        let store = tiny().open(&root).unwrap();
        commit_version(&store, 0, 1).unwrap();
        store.close().unwrap();
        chain.hear(["ack 0 1".to_owned()].into_iter(), "the first");
        for round in 0..ROUNDS {
            let label = format!("a full {} round {round}", kind.name());
            let mut filler = Filler::take_all(&volume.path().join("filler")).unwrap();
            let test = "power_cuts::full::a_power_cut_on_a_full_disk_keeps_every_acknowledged_version";
            let mut speaking = Speaking::start(&mut child(test, &root));
            let mut said = Vec::new();
            let end = Instant::now() + Duration::from_micros(400_000 + random.below(400_000));
            for step in 0.. {
                // Up to some megabytes: what a transaction takes differs from one file system to the next.
                for _ in 0..random.below(8 << (step % 10)) {
                    assert!(filler.give_page().unwrap(), "{label}: nothing is left to give");
                }
                std::thread::sleep(Duration::from_millis(random.below(20)));
                if Instant::now() > end {
                    break;
                }
                if step % 10 == 9 {
                    filler.take_the_rest().unwrap();
                }
            }
            said.extend(speaking.so_far());
            refused += said.iter().filter(|line| line.starts_with("refused")).count();
            cut(&volume, speaking, said, &mut chain, filler, &label);
            // As far as it was synced, what the filler took is still taken.
            if let Err(error) = tiny().open(&root) {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{label}: {error}");
                refused_opens += 1;
            }
            for entry in fs::read_dir(volume.path()).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_string_lossy().starts_with("filler") {
                    fs::remove_file(path).unwrap();
                }
            }
            chain.open(&root, &label).close().unwrap();
        }
        chain.check_history(&root);
        println!(
            "a full {}: {ROUNDS} cuts, {} commits, {refused} refused, {refused_opens} recoveries refused, {} redone",
            kind.name(),
            chain.commits(),
            chain.redone
        );
        assert!(refused > 0, "the {} was never full", kind.name());
        assert!(chain.commits() > 2 * ROUNDS, "the {} was always full", kind.name());
    }
}
