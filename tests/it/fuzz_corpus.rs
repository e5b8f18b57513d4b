//! What the fuzzer saved, run as ordinary tests; on real directories, too, where a target's storage is simulated.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use atomtree::vfs::Vfs;
use atomtree::vfs::os::Os;
use atomtree::{Checkpoints, Options};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// The saved inputs of a target, in order.
fn saved(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "{target} has a corpus");
    inputs
}

/// Goal: what the fuzzer saved stays mended. Method: run each saved input through its target.
#[test]
fn saved_inputs_hold() {
    let targets = [
        ("frame", targets::frame as fn(&[u8])),
        ("log", targets::log),
        ("record", targets::record),
        ("tree_path", targets::tree_path),
        ("recovery", targets::recovery),
        ("directory", targets::directory),
        ("document", targets::document),
        ("guard", targets::guard),
        ("model", targets::model),
    ];
    for (name, target) in targets {
        for input in saved(name) {
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}

/// Every name below a directory, with its kind, mode, inode, times and content.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_file() => fs::read(&path).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        if metadata.is_dir() {
            found.extend(everything(&path));
        }
        let about = (metadata.mode(), metadata.ino(), metadata.mtime_nsec(), metadata.ctime_nsec(), content);
        found.insert(path, about);
    }
    found
}

/// Goal: a hostile store directory reaches nothing outside on a real file system either. Method: the saved inputs of
/// `directory`, each on a copy of a tree and its store, beside a directory that must stay as it is to the nanosecond.
#[test]
fn hostile_directories_stay_in_their_jail() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir_all(outside.join("wal")).unwrap();
    for name in ["canary", "wal/0000.seg", "store"] {
        fs::write(outside.join(name), b"untouched").unwrap();
        fs::set_permissions(outside.join(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    let whole = scratch.path().join("whole");
    fs::create_dir(&whole).unwrap();
    let options = Options::new().segment_bytes(64 << 10).ballast_bytes(4096).checkpoints(Checkpoints::Manual);
    let store = options.open(&whole).unwrap();
    targets::fill(&store);
    std::os::unix::fs::symlink("../outside", whole.join("link")).unwrap();
    let before = everything(&outside);
    let vfs: Arc<dyn Vfs> = Arc::new(Os);
    for input in saved("directory") {
        let jail = scratch.path().join("jail");
        let copied = Command::new("cp").arg("-a").args([&whole, &jail]).status().unwrap();
        assert!(copied.success());
        targets::directory_on(&vfs, &jail, &fs::read(&input).unwrap());
        assert_eq!(everything(&outside), before, "{}", input.display());
        fs::remove_dir_all(&jail).unwrap();
    }
    store.close().unwrap();
}
