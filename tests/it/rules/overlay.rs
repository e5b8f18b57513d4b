//! Overlayfs, which refuses to rename a directory of a lower layer and gives a file of one another inode: directories
//! are neither moved nor removed there, and everything else is written anew.

use std::fs;

use atomtree::ErrorKind;

use super::mounts::with_mounts;
use crate::basics::{commit, is_root, manual, tree};

/// Goal: on overlayfs what can't be promised is refused before anything changes, and the rest works. Method: a store on
/// one, whose lower layer holds a directory, files of every size and a link.
#[test]
fn directories_stay_on_overlayfs() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let layers = scratch.path();
    for dir in ["lower/d", "upper", "work", "root"] {
        fs::create_dir_all(layers.join(dir)).unwrap();
    }
    fs::write(layers.join("lower/d/in"), "in").unwrap();
    fs::write(layers.join("lower/large"), vec![b'l'; 5000]).unwrap();
    std::os::unix::fs::symlink("d", layers.join("lower/link")).unwrap();
    let mount = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root || mount -t tmpfs none root";
    with_mounts(layers, mount, "root", || {
        let root = layers.join("root");
        if !root.join("d").exists() {
            println!("skipped: this kernel mounts no overlayfs here");
            return;
        }
        let store = manual().inline_bytes_max(1000).open(&root).unwrap();
        assert_eq!(store.warnings().len(), 1, "{:?}", store.warnings());
        let before = tree(&root);
        for operation in 0..3 {
            let result = commit(&store, |tx| match operation {
                0 => tx.rename("d", "e"),
                1 => tx.remove_dir("d").or_else(|_| tx.remove_dir_all("d")),
                _ => tx.remove_dir_all("d"),
            });
            assert_eq!(result.map_err(|error| error.kind()).map(drop), Err(ErrorKind::Unsupported));
        }
        assert_eq!(tree(&root), before);
        commit(&store, |tx| {
            tx.rename("large", "renamed")?;
            tx.rename("link", "current")?;
            tx.rename("d/in", "out")?;
            tx.create_dir("new")?;
            tx.rename("new", "newer")?;
            tx.write("newer/file", "x")
        })
        .unwrap();
        assert_eq!(fs::read(root.join("renamed")).unwrap(), vec![b'l'; 5000]);
        assert_eq!(fs::read_link(root.join("current")).unwrap().to_str(), Some("d"));
        assert_eq!(fs::read(root.join("out")).unwrap(), b"in");
        assert!(
            root.join("newer/file").exists() && !root.join("large").exists() && !root.join("d/in").exists()
        );
        store.close().unwrap();
    });
}
