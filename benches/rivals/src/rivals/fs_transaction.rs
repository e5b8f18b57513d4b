//! The crate `fs-transaction`: change sets behind a journal. It locks nothing, so committers take turns; a set of one
//! file skips the journal.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ::fs_transaction::exec::block_on;
use ::fs_transaction::{ChangeSet, StdFs};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, locked_version, read, rewrite};

/// See the file's head.
pub(super) struct FsTransaction;

impl Rival for FsTransaction {
    fn name(&self) -> &'static str {
        "fs-transaction"
    }

    fn version(&self) -> String {
        locked_version("fs-transaction")
    }

    fn setting(&self) -> &'static str {
        "ChangeSet::apply on StdFs, which is Durability::Durable: fsync of the journal, each file and directory"
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        if opening.is_shared {
            return Err(Failure::Unsupported(
                "takes no lock: several processes would damage each other's journal",
            ));
        }
        Ok(Box::new(Open { root: dir.to_owned(), turn: Mutex::new(()) }))
    }
}

struct Open {
    root: PathBuf,
    turn: Mutex<()>,
}

impl Writer for Open {
    fn create_dir(&self, dir: &str) -> Result<(), Failure> {
        create_dir(&self.root, dir)
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let mut changes = ChangeSet::new();
        for file in batch.files() {
            changes.write(file.path, file.content);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        block_on(changes.apply(&StdFs, &self.root)).on("apply a change set to", &self.root)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.root, path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
