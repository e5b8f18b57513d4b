//! Whether two trees are alike: every name, and of each kind, mode, owner, size, content, target and extended attributes;
//! times of modification where both keep them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::basics::{Seen, tree};

/// What can be seen of a whole tree.
pub(crate) type Trees = BTreeMap<PathBuf, Seen>;

/// Which times of modification have to agree.
#[derive(Clone, Copy)]
pub(crate) enum Times<'a> {
    /// None.
    Ignored,
    /// Those that lie before this second: whoever made the expected tree has kept them. Not those of directories, which
    /// change with every name in them, in ways of everybody's own.
    KeptBefore(i64),
    /// As above, and only of names that are the same in this tree.
    UntouchedSince(i64, &'a Trees),
}

/// The ways in which the tree at `root` differs from what is expected; none if they are alike.
pub(crate) fn differences(expected: &Trees, root: &Path, times: Times<'_>) -> Vec<String> {
    let found = tree(root);
    let missing = expected.keys().filter(|path| !found.contains_key(*path));
    let mut differences: Vec<String> = missing.map(|path| format!("{}: missing", path.display())).collect();
    for (path, found) in &found {
        let Some(expected) = expected.get(path) else {
            differences.push(format!("{}: should not be there", path.display()));
            continue;
        };
        let mut differs = |what: &str, is_different: bool, text: String| {
            if is_different {
                differences.push(format!("{}: {what} {text}", path.display()));
            }
        };
        let (wanted, is) = (expected, found);
        differs("mode", wanted.mode != is.mode, format!("{:o}, not {:o}", is.mode, wanted.mode));
        differs("owner", wanted.owner != is.owner, format!("{:?}, not {:?}", is.owner, wanted.owner));
        let lengths = (is.content.len(), wanted.content.len());
        differs("content", wanted.content != is.content, format!("{} bytes, not {}", lengths.0, lengths.1));
        differs(
            "attributes",
            wanted.xattrs != is.xattrs,
            format!("{:?}, not {:?}", is.xattrs, wanted.xattrs),
        );
        let is_wrong = has_to_agree(path, expected, times) && wanted.modified != is.modified;
        differs("time", is_wrong, format!("{:?}, not {:?}", is.modified, wanted.modified));
    }
    differences
}

fn has_to_agree(path: &Path, expected: &Seen, times: Times<'_>) -> bool {
    const KIND: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    let is_kept = |second: i64| expected.mode & KIND != DIRECTORY && expected.modified.0 < second;
    match times {
        Times::Ignored => false,
        Times::KeptBefore(second) => is_kept(second),
        Times::UntouchedSince(second, old) => {
            let is_same =
                |old: &Seen| Seen { inode: 0, ..old.clone() } == Seen { inode: 0, ..expected.clone() };
            is_kept(second) && old.get(path).is_some_and(is_same)
        }
    }
}
