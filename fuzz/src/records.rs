//! Decoders of what stands in frames: records, and the paths in them.

use std::borrow::Cow;
use std::num::NonZeroU8;

use atomtree::TreePath;
use atomtree_recovery::plan::{Record as TreeRecord, decode};
use atomtree_wal::Lsn;

use super::Input;

/// A record's payload decodes or not; whatever path or slot comes out names nothing outside.
pub fn record(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Some(kind) = NonZeroU8::new(input.byte()) else { return };
    let payload = input.0;
    let borrowed = decode(Lsn(1), kind, Cow::Borrowed(payload));
    let owned = decode(Lsn(1), kind, Cow::Owned(payload.to_vec()));
    match (&borrowed, &owned) {
        (Ok(borrowed), Ok(owned)) => assert_eq!(borrowed, owned),
        (Err(_), Err(_)) => return,
        _ => panic!("borrowed and owned differ"),
    }
    match borrowed {
        Ok(TreeRecord::Image(path, _)) => check_path(&path),
        Ok(TreeRecord::ImageBelow(path, below, _)) => {
            check_path(&path);
            below.as_bytes().split(|byte| *byte == b'/').for_each(check_name);
        }
        Ok(TreeRecord::Change(change)) => {
            check_path(&change.path);
            if let Some(moved) = change.moved() {
                check_path(&moved.from);
            }
            if let Some(slot) = change.slot {
                check_name(slot.dir.as_bytes());
                check_name(slot.name.as_bytes());
            }
        }
        _ => {}
    }
}

/// Paths: what is accepted stays below the root and out of the store, and is what was given.
pub fn tree_path(bytes: &[u8]) {
    let Ok(path) = TreePath::from_bytes(bytes) else { return };
    assert_eq!(path.as_bytes(), bytes);
    check_path(&path);
    if let Some(parent) = path.parent() {
        check_path(&parent);
        assert_eq!(parent.join(path.name()).expect("it was a path"), path);
        assert_eq!(parent.depth() + 1, path.depth());
    }
    assert_eq!(path.parent_path().join(path.name()), path.as_path());
}

pub(super) fn check_path(path: &TreePath) {
    let components: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
    for component in &components {
        check_name(component);
    }
    assert!(!components[0].eq_ignore_ascii_case(b".atomtree"));
    assert_eq!(path.as_path().components().count(), components.len());
    assert_eq!(path.depth(), components.len());
}

pub(super) fn check_name(name: &[u8]) {
    assert!(!name.is_empty() && name != b"." && name != b"..");
    assert!(!name.contains(&b'/') && !name.contains(&0) && name.len() <= 255);
}
