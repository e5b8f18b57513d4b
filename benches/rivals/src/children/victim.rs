//! A process that has committed a lot, settled nothing, and is killed.

use std::path::Path;

use atomtree_tests::history::Random;

use crate::batch::Batch;
use crate::children::wait_for_go;
use crate::failure::Failure;
use crate::rivals::{Atomtree, Opening, Rival};

/// How many transactions it commits.
pub const VICTIM_COMMITS: usize = 1000;
/// Of how many files each.
pub const VICTIM_FILES_EACH: usize = 10;

const FILE_BYTES: usize = 1 << 10;
const COMMITS_PER_DIR: usize = 100;

/// The directory and the prefix of the names of a commit's files.
pub fn victims_path(commit: usize) -> (String, String) {
    (format!("dir{}", commit / COMMITS_PER_DIR), format!("{commit}-"))
}

pub(super) fn play(dir: &Path) -> Result<(), Failure> {
    // Upkeep between samples: nothing is settled before the end.
    let writer = Atomtree.open(dir, Opening::QUIET)?;
    let mut random = Random::new(4);
    for commit in 0..VICTIM_COMMITS {
        let (dir, prefix) = victims_path(commit);
        writer.put(&Batch::new(&mut random, &dir, &prefix, VICTIM_FILES_EACH, FILE_BYTES, false))?;
    }
    wait_for_go()
}
