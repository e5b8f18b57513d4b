//! Power cuts on real file systems: ext4, xfs and btrfs in loop devices.
//!
//! The children are those of `kills`: they commit versions of directories, with every kind of operation, and say which
//! were acknowledged. The power goes at a random instant, or while a child waits before a chosen storage operation; the
//! store is opened again, and must hold whole versions, none older than the last acknowledged. ext4 and xfs are shut down;
//! of btrfs, which can't be, the image is copied while it is mounted, and of the others it is as well.

mod full;
mod in_place;
mod operations;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atomtree_tests::signals::{Signal, signal};
use atomtree_tests::volume::{Kind, Volume, or_skip};

use crate::basics::{Random, child, child_root};
use crate::kills::instants::commit_until_killed;
use crate::kills::{Chain, Speaking};

const ROUNDS: u64 = 6;

/// A volume with an empty tree, which is durable.
fn volume(kind: Kind) -> Option<(Volume, PathBuf)> {
    let volume = or_skip(Volume::create(kind, 0, false), &format!("power cuts on {}", kind.name()))?;
    let root = volume.path().join("tree");
    fs::create_dir(&root).unwrap();
    fs::File::open(volume.path()).unwrap().sync_all().unwrap();
    Some((volume, root))
}

fn committer(root: &Path, test: &str, random: &mut Random) -> Speaking {
    let threads = 1 + random.below(4);
    Speaking::start(child(&format!("power_cuts::{test}"), root).env("ATOMTREE_THREADS", threads.to_string()))
}

/// Cuts the power under a child, and mounts the volume again. What of it is open in this process is given in `open`, to
/// be closed in between. Of what the child says after the cut its acknowledgements count; that everything fails by then is
/// no complaint.
fn cut<T>(
    volume: &Volume,
    mut speaking: Speaking,
    mut said: Vec<String>,
    chain: &mut Chain,
    open: T,
    label: &str,
) {
    if volume.kind() == Kind::Btrfs {
        // Its image is copied, and must show one moment.
        signal(&speaking.child, Signal::STOP);
    }
    said.extend(speaking.so_far());
    volume.cut_power().unwrap_or_else(|reason| panic!("{label}: {reason}"));
    // An error that is told within this moment was told by the cut.
    let is_complaint = |line: &String| line.contains("panicked");
    assert!(!said.iter().any(is_complaint), "{label}: the child complained: {said:#?}");
    speaking.child.kill().unwrap();
    said.extend(speaking.end().0);
    chain.hear(said.into_iter(), label);
    drop(open);
    volume.mount_again().unwrap_or_else(|reason| panic!("{label}: {reason}"));
}

#[test]
fn a_power_cut_in_the_middle_of_commits_keeps_every_acknowledged_version() {
    if let Some(root) = child_root() {
        return commit_until_killed(&root);
    }
    let mut random = Random::from_environment();
    for kind in Kind::ALL {
        let Some((volume, root)) = volume(kind) else { continue };
        let mut chain = Chain::default();
        for round in 0..ROUNDS {
            let label = format!("{} round {round}", kind.name());
            let test = "a_power_cut_in_the_middle_of_commits_keeps_every_acknowledged_version";
            let mut speaking = committer(&root, test, &mut random);
            let said = speaking.wait_for("ack");
            std::thread::sleep(Duration::from_micros(random.below(120_000)));
            cut(&volume, speaking, said, &mut chain, (), &label);
            // Or the next child recovers.
            if random.below(2) == 0 {
                chain.open(&root, &label).close().unwrap();
            }
        }
        chain.check_history(&root);
        println!("{}: {ROUNDS} cuts, {} commits, {} redone", kind.name(), chain.commits(), chain.redone);
        assert!(chain.commits() > 0 && chain.redone > 0, "{}: cuts hit nothing", kind.name());
    }
}

#[test]
fn an_image_copied_in_the_middle_of_commits_keeps_every_acknowledged_version() {
    if let Some(root) = child_root() {
        return commit_until_killed(&root);
    }
    let mut random = Random::from_environment();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some((volume, root)) = volume(kind) else { continue };
        let test = "an_image_copied_in_the_middle_of_commits_keeps_every_acknowledged_version";
        let mut speaking = committer(&root, test, &mut random);
        let mut chain = Chain::default();
        let mut said = speaking.wait_for("ack");
        for round in 0..ROUNDS {
            let label = format!("{} copy {round}", kind.name());
            std::thread::sleep(Duration::from_micros(random.below(120_000)));
            signal(&speaking.child, Signal::STOP);
            // For most of what it wrote before it was stopped to come through the pipe; the rest is heard next time.
            std::thread::sleep(Duration::from_millis(50));
            said.extend(speaking.so_far());
            assert_eq!(chain.hear(said.drain(..), &label), Vec::<String>::new(), "{label}: it complained");
            let cut = volume.power_cut().unwrap();
            chain.open_copy(&cut.path().join("tree"), &label);
            signal(&speaking.child, Signal::CONT);
        }
        speaking.child.kill().unwrap();
        let (rest, _) = speaking.end();
        println!("{}: {ROUNDS} copies, {} commits, {} redone", kind.name(), chain.commits(), chain.redone);
        assert!(chain.commits() > 0 && chain.redone > 0, "{}: cuts hit nothing", kind.name());
        chain.hear(rest.into_iter(), kind.name());
        chain.open(&root, kind.name()).close().unwrap();
    }
}
