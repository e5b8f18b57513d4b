//! Forgetting a path for good, because a secret was committed: in the history, in the log, and in what guards have left.

use std::path::Path;

use atomtree_recovery::copies;
use atomtree_recovery::guards;
use atomtree_recovery::retention::scrub;
use atomtree_recovery::tree_path::TreePath;
use atomtree_wal as wal;

use crate::checkpointer::Wanted;
use crate::error::Error;
use crate::hand_over::{CheckpointTurn, CommitState};
use crate::store::{Engine, Store};
use crate::view::invalid_path;

/// What [`Store::scrub`] did, and how far it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrubbed {
    /// How many transactions had something to do with the path.
    pub transactions: u64,
    /// How many originals were removed.
    pub images: u64,
    /// How long they were, in bytes.
    pub bytes: u64,
    /// How many of those were not overwritten before, because they have another name, which may be in the tree.
    pub shared: u64,
    /// How many images that guards had left were overwritten and removed.
    pub guard_images: u64,
    /// How much of the log was overwritten, in bytes.
    pub log_bytes: u64,
    /// Whether that was all of it. It is not if there was no space for going on in another segment.
    pub is_log_clean: bool,
    /// Files of the store that hold what the path held, and stay, as paths below `.atomtree`: in quarantine, where they are
    /// other programs'; originals of other paths; what an open guard needs, or a process has staged.
    pub copies: Vec<String>,
}

impl Store {
    /// Removes the originals of everything at or below `path` for good, and what the history tells of their contents:
    /// for when a secret was committed. Each is overwritten before it is unlinked, and so is everything in the log, and
    /// what guards have left of the path.
    ///
    /// What stands in the tree stays, and so do what [`Scrubbed`] tells of, other names of the same content, backups, and
    /// what storage keeps that writes elsewhere than in place, as btrfs and flash do. Nobody commits meanwhile. It may be
    /// repeated.
    ///
    /// # Durability
    /// What was removed and overwritten is gone durably when this returns.
    ///
    /// # Errors
    /// `invalid_path`; `locked` while another thread or process is undoing something; else as for [`Store::checkpoint`],
    /// which is made first.
    pub fn scrub(&self, path: impl AsRef<Path>) -> Result<Scrubbed, Error> {
        let path = path.as_ref();
        let at = TreePath::new(path).map_err(|source| invalid_path(path, source))?;
        let engine = &self.shared.engine;
        engine.checkpoint()?;
        let deadline = engine.options.deadline();
        let turn = engine.checkpoint_turn(deadline)?;
        // Held to the end: what is committed in between could have it in the log again.
        let mut commits = engine.lock_commits_in(&turn, deadline)?;
        engine.settle_in_turn(&turn, Wanted::IfAny, Some(&mut commits))?;
        let Some(history) = scrub(&engine.places, &mut engine.shelves.lock(), &at)? else {
            return Err(Error::Locked { holder: "a thread or process that is reading originals".into() });
        };
        let (log_bytes, is_log_clean) = engine.wipe_log(&turn, &mut commits)?;
        let guard_images = guards::scrub(&engine.places, &at, &history.contents)?;
        let copies = copies::find(&engine.places, &history.contents, &at)?;
        Ok(Scrubbed {
            transactions: history.transactions,
            images: history.images,
            bytes: history.bytes,
            shared: history.shared,
            guard_images,
            log_bytes,
            is_log_clean,
            copies,
        })
    }
}

impl Engine {
    /// Overwrites all that the log holds of settled transactions. Everything has to be settled. Returns how many bytes,
    /// and whether that was all.
    fn wipe_log(&self, turn: &CheckpointTurn<'_>, commits: &mut CommitState) -> Result<(u64, bool), Error> {
        // The active segment is one of those that hold it: the log goes on in another one, with a record there that says
        // that all before is settled, and this one is freed.
        match commits.log.rotate() {
            Ok(()) => self.settle_in_turn(turn, Wanted::Always, Some(commits))?,
            Err(wal::Error::Full { .. }) => {}
            Err(error) if error.is_no_space() && !commits.log.is_poisoned() => {}
            Err(error) => return Err(self.log_failed(commits, error)),
        }
        let is_clean = commits.log.is_one_segment();
        let wiped = commits.log.wipe_unused();
        wiped.map(|bytes| (bytes, is_clean)).map_err(|error| self.log_failed(commits, error))
    }

    fn log_failed(&self, commits: &CommitState, error: wal::Error) -> Error {
        if commits.log.is_poisoned() {
            self.poison(&error.to_string());
        }
        atomtree_recovery::Error::Log(error).into()
    }
}
