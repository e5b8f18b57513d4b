//! atomtree itself.

use std::path::{Path, PathBuf};

use atomtree::{Checkpoints, ErrorKind, Options, Store};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Role, Upkeep, Writer, locked_version, read};

/// See the file's head.
pub struct Atomtree;

impl Rival for Atomtree {
    fn name(&self) -> &'static str {
        "atomtree"
    }

    fn version(&self) -> String {
        locked_version("atomtree")
    }

    fn setting(&self) -> &'static str {
        "defaults (Durability::Synced); one fdatasync of the log for each batch of commits"
    }

    fn role(&self) -> Role {
        Role::Ours
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        let checkpoints = match opening.upkeep {
            Upkeep::BetweenSamples => Checkpoints::Manual,
            Upkeep::Own => Checkpoints::Background,
        };
        let store = Options::new().checkpoints(checkpoints).open(dir).on("open the store of", dir)?;
        Ok(Box::new(Open { dir: dir.to_owned(), store }))
    }
}

/// Larger contents are streamed, as the documentation of `write` advises.
const WRITTEN_BYTES_MAX: usize = 512 << 10;

struct Open {
    dir: PathBuf,
    store: Store,
}

impl Writer for Open {
    fn create_dir(&self, dir: &str) -> Result<(), Failure> {
        let made = self.store.transact(|tx| tx.create_dir_all(dir));
        made.map(drop).on("make", self.dir.join(dir))
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let done = self.store.transact(|tx| {
            batch.files().try_for_each(|file| match file.content.len() {
                0..=WRITTEN_BYTES_MAX => tx.write(file.path, file.content),
                _ => tx.write_from(file.path, file.content).map(drop),
            })
        });
        done.map(drop).on("commit to", &self.dir)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.dir, path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        let done = self.store.transact(|tx| tx.patch(path, offset as u64, bytes));
        done.map(drop).on("patch", self.dir.join(path))
    }

    fn patch_in_place(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        let done = self.store.transact(|tx| tx.patch_in_place(path, offset as u64, bytes));
        done.map(drop).on("patch", self.dir.join(path))
    }

    fn count(&self, counter: &str, batch: &Batch) -> Result<(), Failure> {
        let add = || {
            self.store.transact(|tx| {
                let text = tx.read(counter)?;
                let number: u64 = String::from_utf8_lossy(&text).parse().unwrap_or_default();
                tx.write(counter, (number + 1).to_string())?;
                batch.files().try_for_each(|file| tx.write(file.path, file.content))
            })
        };
        // It gives up after some conflicts, and here everybody wants the same file.
        loop {
            match add() {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done.map(drop).on("commit to", &self.dir),
            }
        }
    }

    fn tidy(&self) -> Result<(), Failure> {
        self.store.checkpoint().on("checkpoint", &self.dir)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.store.close().on("close the store of", self.dir)
    }
}
