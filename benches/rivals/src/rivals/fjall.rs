//! The database `fjall`, the files as values. One process at a time.

use std::path::{Path, PathBuf};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, locked_version, rewrite};

/// See the file's head.
pub(super) struct Fjall;

impl Rival for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn version(&self) -> String {
        locked_version("fjall")
    }

    fn setting(&self) -> &'static str {
        "a write batch with PersistMode::SyncData: fdatasync of the journal at each commit"
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        if opening.is_shared {
            return Err(Failure::Unsupported("can be open in one process only"));
        }
        let path = dir.join("fjall");
        let database = Database::builder(&path).open().on("open", &path)?;
        let files = database.keyspace("files", KeyspaceCreateOptions::default).on("open", &path)?;
        Ok(Box::new(Open { path, database, files }))
    }
}

struct Open {
    path: PathBuf,
    database: Database,
    files: Keyspace,
}

impl Writer for Open {
    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let mut changes = self.database.batch().durability(Some(PersistMode::SyncData));
        for file in batch.files() {
            changes.insert(&self.files, file.path, file.content);
        }
        changes.commit().on("commit to", &self.path)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let content = self.files.get(path).on("read from", &self.path)?;
        content.map(|value| value.to_vec()).ok_or_else(|| Failure::new("find", path, "there is no such key"))
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
