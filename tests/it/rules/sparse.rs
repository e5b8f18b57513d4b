//! Sparse files: a rename keeps their holes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::crash_at_every_call;
use crate::basics::{commit, manual, opened};

/// A file of this size that holds one page, in its middle.
fn make_sparse(path: &Path, size: u64) {
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&[7; 4096], size / 2).unwrap();
    file.sync_all().unwrap();
}

fn blocks(path: &Path) -> u64 {
    fs::File::open(path).unwrap().sync_all().unwrap();
    fs::metadata(path).unwrap().blocks()
}

/// Goal: a renamed file takes the blocks that it took, wherever its content travels, and a directory's files do as well.
/// Method: sizes on either side of every limit, by `st_blocks`.
#[test]
fn a_rename_keeps_the_holes() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for size in [16 << 10, 64 << 10, 1 << 20, (1 << 20) + 4096, 64 << 20] {
        make_sparse(&root.join("from"), size);
        let (before, content) = (blocks(&root.join("from")), fs::read(root.join("from")).unwrap());
        if before * 512 >= size {
            println!("skipped: this file system keeps no holes in {size} bytes");
            continue;
        }
        commit(&store, |tx| tx.rename("from", "dir/to")).unwrap();
        assert_eq!(blocks(&root.join("dir/to")), before, "{size} bytes");
        assert!(fs::read(root.join("dir/to")).unwrap() == content, "{size} bytes");
        // Over a file, and with its directory.
        fs::write(root.join("other"), "x").unwrap();
        commit(&store, |tx| tx.rename("dir/to", "other")).unwrap();
        commit(&store, |tx| tx.rename("other", "dir/to")).unwrap();
        commit(&store, |tx| tx.rename("dir", "moved")).unwrap();
        assert_eq!(blocks(&root.join("moved/to")), before, "{size} bytes");
        assert!(fs::read(root.join("moved/to")).unwrap() == content, "{size} bytes");
        commit(&store, |tx| tx.remove_dir_all("moved")).unwrap();
    }
    store.close().unwrap();
}

/// Goal: a recovered rename keeps them too, small or large. Method: the death of the process at every call.
#[test]
fn a_recovered_rename_keeps_the_content() {
    let scratch = tempfile::tempdir().unwrap();
    for size in [64 << 10, 3 << 20] {
        let prepare = |root: &Path| make_sparse(&root.join("from"), size);
        crash_at_every_call(scratch.path(), prepare, |tx| tx.rename("from", "dir/to"));
    }
}
