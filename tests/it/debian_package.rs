//! Real input: whole Debian packages, unpacked as one transaction over their older versions, and compared with what
//! `dpkg-deb -x` makes of the new ones; whole, killed and without power, on ext4, xfs and btrfs.
//!
//! The packages come from the archive that this machine's apt knows, once, and are kept below the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use atomtree::{Error, Options, Transaction};
use atomtree_tests::interrupted::{Interrupted, say, wait_for_parent};
use atomtree_tests::volume::{Kind, Volume, or_skip};

use crate::alike::{Times, Trees, differences};
use crate::basics::{child, child_root, tree};

/// Small packages with two versions in a stable release and its updates: the one has hundreds of symlinks, the other
/// files that come and go, and programs.
const PACKAGES: [&str; 2] = ["tzdata", "ca-certificates"];
const UNPACKED: &str = "ATOMTREE_UNPACKED";

/// Two versions of a package.
struct Package {
    name: &'static str,
    old: PathBuf,
    new: PathBuf,
}

/// The packages, downloaded at most once; those that can't be had are left out, with the reason printed.
fn packages() -> &'static [Package] {
    static PACKAGES_HERE: OnceLock<Vec<Package>> = OnceLock::new();
    PACKAGES_HERE.get_or_init(|| {
        let found = PACKAGES.into_iter().map(|name| download(name).map_err(|reason| (name, reason)));
        found
            .filter_map(|found| found.map_err(|(name, why)| println!("skipped: {name}: {why}")).ok())
            .collect()
    })
}

fn download(name: &'static str) -> Result<Package, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debs").join(name);
    let package = Package { name, old: dir.join("old.deb"), new: dir.join("new.deb") };
    if package.old.exists() && package.new.exists() {
        return Ok(package);
    }
    // One line for each version and archive, the newest first.
    let known = run(Command::new("apt-cache").args(["madison", name]))?;
    let versions: Vec<&str> =
        known.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).collect();
    let (Some(newest), Some(oldest)) = (versions.first(), versions.last()) else {
        return Err("apt knows no version of it; `apt-get update` may help".into());
    };
    if newest == oldest {
        return Err(format!("apt knows one version of it only, {newest}"));
    }
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    for (version, path) in [(oldest, &package.old), (newest, &package.new)] {
        let scratch = tempfile::tempdir_in(&dir).map_err(|error| error.to_string())?;
        let asked = format!("{name}={version}");
        run(Command::new("apt-get").args(["download", "-q", &asked]).current_dir(scratch.path()))?;
        let mut files = fs::read_dir(scratch.path()).map_err(|error| error.to_string())?;
        let file =
            files.next().ok_or("apt-get said yes and left nothing")?.map_err(|error| error.to_string())?;
        fs::rename(file.path(), path).map_err(|error| error.to_string())?;
    }
    println!("{name}: {oldest} and {newest}");
    Ok(package)
}

fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn unpack(package: &Path, root: &Path) {
    run(Command::new("dpkg-deb").arg("-x").args([package, root])).unwrap();
}

fn kind_of(trees: &Trees, path: &Path) -> Option<u32> {
    trees.get(path).map(|seen| seen.mode & 0o170_000)
}

/// Makes the tree what `new` is: what it lacks goes, and everything that it has is written.
fn unpack_in(tx: &mut Transaction, old: &Trees, unpacked: &Path) -> Result<(), Error> {
    const DIRECTORY: u32 = 0o040_000;
    const SYMLINK: u32 = 0o120_000;
    let new = tree(unpacked);
    for path in old.keys().rev().filter(|path| kind_of(old, path) != kind_of(&new, path)) {
        match kind_of(old, path) {
            Some(DIRECTORY) => tx.remove_dir(path)?,
            _ => tx.remove(path)?,
        }
    }
    for (path, seen) in &new {
        let mode = seen.mode & 0o7777;
        match seen.mode & 0o170_000 {
            DIRECTORY if kind_of(old, path) == Some(DIRECTORY) => tx.set_mode(path, mode)?,
            DIRECTORY => tx.create_dir_with_mode(path, mode)?,
            SYMLINK => tx.symlink(path, fs::read_link(unpacked.join(path)).unwrap())?,
            _ => tx.write_with_mode(path, seen.content.clone(), mode)?,
        }
    }
    Ok(())
}

fn options() -> Options {
    Options::new().segment_bytes(4 << 20).log_bytes_max(64 << 20)
}

/// Not a test by itself: the process that unpacks.
#[test]
fn child_that_unpacks() {
    let (Some(root), Some(unpacked)) = (child_root(), std::env::var_os(UNPACKED)) else { return };
    let store = options().open(&root).unwrap();
    let mut tx = store.begin().unwrap();
    tx.set_label("upgrade");
    unpack_in(&mut tx, &tree(&root), Path::new(&unpacked)).unwrap();
    say("committing");
    tx.commit().unwrap();
    say("acknowledged");
    wait_for_parent();
    store.close().unwrap();
}

/// Opens the store of an interrupted tree, which must then be exactly the old or the new version.
fn is_new(root: &Path, old: &Trees, new: &Trees, second: i64, label: &str) -> bool {
    let store = options().open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
    let report = store.recovery().clone();
    assert!(report.quarantined.is_empty() && report.superseded.is_empty(), "{label}: {report:?}");
    assert!(report.lost.is_empty() && report.metadata_kept.is_empty(), "{label}: {report:?}");
    store.close().unwrap();
    let from_old = differences(old, root, Times::KeptBefore(second));
    if from_old.is_empty() {
        return false;
    }
    // What is unpacked gets the time at which it is.
    let from_new = differences(new, root, Times::Ignored);
    assert!(from_new.is_empty(), "{label}: {report:?}\nfrom old {from_old:#?}\nfrom new {from_new:#?}");
    true
}

fn upgrade_on(kind: Kind) {
    for package in packages() {
        let volume = Volume::create(kind, 512 << 20, false);
        let Some(volume) = or_skip(volume, &format!("packages on {}", kind.name())) else { return };
        let (original, unpacked) = (volume.path().join("original"), volume.path().join("unpacked"));
        unpack(&package.old, &original);
        unpack(&package.new, &unpacked);
        let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let (old, new) = (tree(&original), tree(&unpacked));
        let changed = differences(&new, &original, Times::Ignored).len();
        assert!(changed > 10, "{}: the versions differ in {changed} ways only", package.name);
        let trial = Interrupted {
            volume: &volume,
            original: &original,
            child: &|root| {
                let mut command = child("debian_package::child_that_unpacks", root);
                command.env(UNPACKED, &unpacked);
                command
            },
            is_new: &|root, label| is_new(root, &old, &new, second, &format!("{}, {label}", package.name)),
        };
        let (took, whole) = trial.uninterrupted();
        let differing = differences(&new, &whole, Times::Ignored);
        assert!(differing.is_empty(), "{} on {}: {differing:#?}", package.name, kind.name());
        fs::remove_dir_all(whole).unwrap();
        let killed = trial.kill(took, 6);
        let cut = trial.cut_power(took, 5);
        println!(
            "{} on {}: {changed} of {} differ, {took:?}, killed {killed:?}, without power {cut:?}",
            package.name,
            kind.name(),
            new.len()
        );
        assert!(killed.new > 0 && cut.new > 0, "what was acknowledged counts: {killed:?}, {cut:?}");
    }
}

#[test]
fn a_package_is_upgraded_wholly_or_not_at_all_on_ext4() {
    upgrade_on(Kind::Ext4);
}

#[test]
fn a_package_is_upgraded_wholly_or_not_at_all_on_xfs() {
    upgrade_on(Kind::Xfs);
}

#[test]
fn a_package_is_upgraded_wholly_or_not_at_all_on_btrfs() {
    upgrade_on(Kind::Btrfs);
}
