//! Which transaction stands behind a conflict.
//!
//! A conflict tells what was seen and what is there. If one of the store's own transactions has come between, the log or the
//! history knows it; if none is found, it was some other program.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::analyze::Committed;
use atomtree_recovery::manifest;
use atomtree_recovery::plan::{Begin, Change};
use atomtree_vfs::Timestamp;

use crate::error::Error;
use crate::hand_over::CommitState;
use crate::store::Engine;

impl Engine {
    /// Adds to a conflict the last transaction since `since` that touched the name, or what lies above it.
    pub(crate) fn with_culprit(&self, error: Error, commits: &CommitState, since: Timestamp) -> Error {
        let Error::Conflict { path, reason, transaction, by: None } = error else { return error };
        let remembered = commits.unsettled.iter().rev().chain(commits.uncleared.iter().rev());
        let found = find(remembered, &path, since).or_else(|| self.find_settled(&path, since));
        let Some(begin) = found else { return Error::Conflict { path, reason, transaction, by: None } };
        let said = |what: &str, said: &Option<String>| {
            said.as_ref().map(|said| format!(", {what} {said:?}")).unwrap_or_default()
        };
        let (tx, label, agent) = (begin.tx, said("labelled", &begin.label), said("of", &begin.agent));
        let reason = format!("{reason}; it was touched by transaction {tx}{label}{agent}");
        Error::Conflict { path, reason, transaction, by: Some(tx) }
    }

    /// Looks into the manifests that were written since. Whatever can't be read is not worth another error.
    fn find_settled(&self, path: &Path, since: Timestamp) -> Option<Begin> {
        let history = &*self.places.history;
        for name in manifest::list(history).ok()?.into_iter().rev() {
            if history.metadata(&name).ok()?.modified < since {
                break;
            }
            let Ok(settled) = manifest::read(history, &name) else { continue };
            let is_it = |name: &[u8]| touches(Path::new(OsStr::from_bytes(name)), path);
            let newest = settled.into_iter().rev().take_while(|one| one.begin.time_ns > since.0);
            let mut newest = newest.filter(|one| one.changes.iter().any(|change| is_it(&change.path)));
            if let Some(found) = newest.next() {
                return Some(found.begin);
            }
        }
        None
    }
}

fn find<'a>(
    newest_first: impl Iterator<Item = &'a Arc<Committed<'static>>>,
    path: &Path,
    since: Timestamp,
) -> Option<Begin> {
    let touches = |change: &Change<'_>| change.names().any(|name| touches(name.as_path(), path));
    newest_first
        .take_while(|transaction| transaction.begin.time_ns > since.0)
        .find(|transaction| transaction.changes.iter().any(touches))
        .map(|transaction| transaction.begin.clone())
}

/// Whether a change of one name can be why another one is not what it was: it is the same, or lies above.
fn touches(changed: &Path, conflicting: &Path) -> bool {
    conflicting.starts_with(changed)
}
