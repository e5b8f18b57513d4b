//! Power cuts on real file systems: ext4, xfs and btrfs in loop devices.
//!
//! A child process commits numbered versions of a set of files, small ones that travel in the log and a large one that
//! doesn't, and says which versions were acknowledged. The power goes at a random instant; the store is opened again,
//! and must hold one version of everything, no older than the last acknowledged.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use atomtree::{Options, Store};
use atomtree_tests::volume::{Kind, Volume};

const CHILD: &str = "ATOMTREE_POWER_CUTS_CHILD";
const ROUNDS: usize = 6;
const LARGE_BYTES: usize = 3 << 20;

/// Small segments, so that rotation and recycling happen between two cuts.
fn options() -> Options {
    Options::new().segment_bytes(256 << 10).log_bytes_max(2 << 20).settle_after(Duration::from_millis(20))
}

#[test]
fn a_power_cut_in_the_middle_of_commits_keeps_every_acknowledged_version() {
    for kind in Kind::ALL {
        let Some(volume) = volume(kind) else { continue };
        let root = volume.path().join("tree");
        fs::create_dir(&root).unwrap();
        fs::File::open(volume.path()).unwrap().sync_all().unwrap();
        let mut last = 0;
        for round in 0..ROUNDS {
            let mut child = Committer::start(&root);
            std::thread::sleep(child.after_a_moment(round));
            if kind == Kind::Btrfs {
                // Its image is copied, and must show one moment.
                child.signal("-STOP");
            }
            volume.cut_power().unwrap();
            let acknowledged = child.end().unwrap_or(last);
            volume.mount_again().unwrap();
            last = check(&root, acknowledged, &format!("{} round {round}", kind.name()));
        }
        assert!(last > 0, "no version was ever committed on {}", kind.name());
    }
}

#[test]
fn an_image_copied_in_the_middle_of_commits_keeps_every_acknowledged_version() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(volume) = volume(kind) else { continue };
        let root = volume.path().join("tree");
        fs::create_dir(&root).unwrap();
        fs::File::open(volume.path()).unwrap().sync_all().unwrap();
        let mut child = Committer::start(&root);
        let mut last = 0;
        for round in 0..ROUNDS {
            std::thread::sleep(child.after_a_moment(round));
            child.signal("-STOP");
            let acknowledged = child.acknowledged().unwrap_or(last);
            let cut = volume.power_cut().unwrap();
            last = check(&cut.path().join("tree"), acknowledged, &format!("{} copy {round}", kind.name()));
            child.signal("-CONT");
        }
        child.end();
    }
}

/// Not a test by itself: the process that commits until the power goes.
#[test]
fn child() {
    let Ok(root) = std::env::var(CHILD) else { return };
    // After the cut every call fails; whichever notices first ends the process.
    let Ok(store) = options().open(&root) else { return };
    let first = version_of(&store).map_or(1, |version| version + 1);
    for version in first.. {
        if commit(&store, version).is_err() {
            return;
        }
        if writeln!(std::io::stdout(), "acknowledged {version}").is_err() {
            return;
        }
    }
}

fn version_of(store: &Store) -> Option<u64> {
    let mut tx = store.begin().ok()?;
    let config = tx.read("config").ok()?;
    String::from_utf8(config).ok()?.trim().parse().ok()
}

/// One version of everything: replaced, appended to, created, removed, small and large.
fn commit(store: &Store, version: u64) -> Result<(), atomtree::Error> {
    let mut tx = store.begin()?;
    tx.write("config", format!("{version}\n"))?;
    tx.write("deep/er/schema", format!("{version}\n").repeat(700))?;
    tx.append("log", format!("{version}\n"))?;
    tx.write(format!("new/{version}"), format!("{version}\n"))?;
    if version > 1 {
        tx.remove(format!("new/{}", version - 1))?;
    }
    if version.is_multiple_of(5) {
        tx.write("large", large(version))?;
    }
    tx.commit()?;
    Ok(())
}

fn large(version: u64) -> Vec<u8> {
    format!("{version} ").bytes().cycle().take(LARGE_BYTES).collect()
}

/// Opens the store and checks that the tree holds one version of everything. Returns it.
fn check(root: &Path, acknowledged: u64, label: &str) -> u64 {
    let store = options().open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
    let report = store.recovery();
    assert_eq!((report.quarantined.len(), report.superseded.len()), (0, 0), "{label}: {report:?}");
    assert_eq!((report.lost.len(), report.metadata_kept.len()), (0, 0), "{label}: {report:?}");
    let version = version_of(&store).unwrap_or(0);
    assert!(version >= acknowledged, "{label}: version {version}, and {acknowledged} was acknowledged");
    let read =
        |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{label}: {path}: {e}"));
    if version > 0 {
        assert_eq!(read("config"), format!("{version}\n"), "{label}");
        assert_eq!(read("deep/er/schema"), format!("{version}\n").repeat(700), "{label}");
        let log: String = (1..=version).map(|version| format!("{version}\n")).collect();
        assert!(read("log") == log, "{label}: the log does not count to {version}");
        let names: Vec<_> =
            fs::read_dir(root.join("new")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [version.to_string().as_str()], "{label}");
        assert_eq!(read(&format!("new/{version}")), format!("{version}\n"), "{label}");
    }
    if version >= 5 {
        assert!(
            fs::read(root.join("large")).unwrap() == large(version / 5 * 5),
            "{label}: large, version {version}"
        );
    }
    // The store works, and a second open has nothing to do.
    store.close().unwrap();
    let store = options().open(root).unwrap();
    assert_eq!(store.recovery().redone, 0, "{label}");
    store.close().unwrap();
    version
}

fn volume(kind: Kind) -> Option<Volume> {
    match Volume::create(kind, 0, false) {
        Ok(volume) => Some(volume),
        Err(reason) => {
            println!("skipped: power cuts on {}: {reason}", kind.name());
            None
        }
    }
}

/// The child, and what it has acknowledged.
struct Committer {
    child: Child,
    versions: mpsc::Receiver<u64>,
}

impl Committer {
    fn start(root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power_cuts::child", "--nocapture"])
            .env(CHILD, root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, versions) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test runner's own output stands on the same line as the first of ours.
                if let Some((_, version)) = line.rsplit_once("acknowledged ")
                    && sender.send(version.parse().unwrap()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, versions }
    }

    /// Waits for the first version, then says how long to let it go on: different in each round and run.
    fn after_a_moment(&mut self, round: usize) -> Duration {
        let _ = self.versions.recv_timeout(Duration::from_secs(10));
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), round);
        Duration::from_micros(random % 120_000)
    }

    /// The last version that it has acknowledged since this was last asked.
    fn acknowledged(&mut self) -> Option<u64> {
        // What it wrote before it was stopped may still be on its way through the pipe.
        let mut last = None;
        while let Ok(version) = self.versions.recv_timeout(Duration::from_millis(50)) {
            last = Some(version);
        }
        last
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn end(&mut self) -> Option<u64> {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.acknowledged()
    }
}
