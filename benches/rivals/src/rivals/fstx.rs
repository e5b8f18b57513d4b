//! The crate `fstx`: atomic transactions of many files, with an undo journal. One at a time: the root is locked from
//! `begin` to the end.

use std::path::{Path, PathBuf};

use ::fstx::Transaction;

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, locked_version, read, rewrite};

/// See the file's head.
pub(super) struct Fstx;

impl Rival for Fstx {
    fn name(&self) -> &'static str {
        "fstx"
    }

    fn version(&self) -> String {
        locked_version("fstx")
    }

    fn setting(&self) -> &'static str {
        "defaults (always durable): fsync of each file, directory and journal"
    }

    fn open(&self, dir: &Path, _: Opening) -> Result<Box<dyn Writer>, Failure> {
        // Makes its directory: two that begin at once in a fresh root would both try, and one would fail.
        drop(Transaction::begin(dir).on("begin a transaction in", dir)?);
        Ok(Box::new(Open { root: dir.to_owned() }))
    }
}

struct Open {
    root: PathBuf,
}

impl Writer for Open {
    fn create_dir(&self, dir: &str) -> Result<(), Failure> {
        create_dir(&self.root, dir)
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let mut tx = Transaction::begin(&self.root).on("begin a transaction in", &self.root)?;
        for file in batch.files() {
            tx.write(file.path, file.content).on("write", self.root.join(file.path))?;
        }
        tx.commit().on("commit to", &self.root)
    }

    fn count(&self, counter: &str, batch: &Batch) -> Result<(), Failure> {
        let mut tx = Transaction::begin(&self.root).on("begin a transaction in", &self.root)?;
        let text = tx.read(counter).on("read", self.root.join(counter))?;
        let number: u64 = String::from_utf8_lossy(&text).parse().unwrap_or_default();
        tx.write(counter, (number + 1).to_string()).on("write", self.root.join(counter))?;
        for file in batch.files() {
            tx.write(file.path, file.content).on("write", self.root.join(file.path))?;
        }
        tx.commit().on("commit to", &self.root)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.root, path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
