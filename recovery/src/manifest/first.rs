//! Manifests as the first version of the format had them: what transactions changed, without originals. They are read
//! for ever, and written no more.

use atomtree_vfs::Kind;
use serde::Deserialize;

use super::{ChangeSummary, State, Summary, as_they_come};
use crate::image::{Attributes, Digest};
use crate::plan::Begin;

#[derive(Deserialize)]
pub(super) struct OldSummary {
    begin: Begin,
    lsn: u64,
    #[serde(deserialize_with = "as_they_come")]
    changes: Vec<OldChange>,
}

#[derive(Deserialize)]
struct OldChange {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    before: Option<OldState>,
    after: Option<OldState>,
    #[serde(default, with = "serde_bytes")]
    from: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct OldState {
    directory: bool,
    mode: u32,
    size: u64,
    digest: Option<Digest>,
    #[serde(default)]
    symlink: bool,
}

impl From<OldSummary> for Summary {
    fn from(old: OldSummary) -> Self {
        let changes = old.changes.into_iter().map(ChangeSummary::from).collect();
        Self { begin: old.begin, lsn: old.lsn, changes, has_images: false }
    }
}

impl From<OldChange> for ChangeSummary {
    fn from(old: OldChange) -> Self {
        let state = |state: Option<OldState>| state.map(|state| Box::new(state.into()));
        Self {
            path: old.path,
            before: state(old.before),
            after: state(old.after),
            from: old.from,
            was: None,
            image: None,
        }
    }
}

impl From<OldState> for State {
    fn from(old: OldState) -> Self {
        let kind = match (old.directory, old.symlink) {
            (true, _) => Kind::Dir,
            (false, true) => Kind::Symlink,
            (false, false) => Kind::File,
        };
        Self {
            kind,
            size: old.size,
            attributes: Attributes { mode: old.mode, ..Attributes::default() },
            digest: old.digest,
            target: None,
            inode: 0,
            born: None,
            modified: None,
        }
    }
}
