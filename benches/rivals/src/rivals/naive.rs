//! What a careful program does with the standard library: for each file a temporary one beside it, synced, renamed, and
//! the directory synced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, read, rewrite};

/// See the file's head.
pub(super) struct Naive;

impl Rival for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn version(&self) -> String {
        String::new()
    }

    fn setting(&self) -> &'static str {
        "each file: temporary, fsync, rename, fsync of the directory"
    }

    fn is_atomic(&self) -> bool {
        false
    }

    fn open(&self, dir: &Path, _: Opening) -> Result<Box<dyn Writer>, Failure> {
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
        let dir = self.root.join(batch.dir());
        let handle = File::open(&dir).on("open", &dir)?;
        for file in batch.files() {
            let temporary = dir.join(format!(".{}.new", file.name));
            let target = self.root.join(file.path);
            let written = File::create(&temporary).and_then(|mut new| {
                new.write_all(file.content)?;
                new.sync_all()
            });
            written.on("write", &temporary)?;
            fs::rename(&temporary, &target).on("rename to", &target)?;
            handle.sync_all().on("sync", &dir)?;
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.root, path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
