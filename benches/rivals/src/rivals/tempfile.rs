//! The crate `tempfile`: `NamedTempFile::persist` syncs nothing by itself, so the program syncs each file before and the
//! directory once behind all of them.

use std::io::Write;
use std::path::{Path, PathBuf};

use ::tempfile::NamedTempFile;

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, locked_version, read, rewrite, sync_dir};

/// See the file's head.
pub(super) struct Persisted;

impl Rival for Persisted {
    fn name(&self) -> &'static str {
        "tempfile"
    }

    fn version(&self) -> String {
        locked_version("tempfile")
    }

    fn setting(&self) -> &'static str {
        "each file: fsync, persist; one fsync of the directory for all of them"
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
        for file in batch.files() {
            let path = self.root.join(file.path);
            let mut new = NamedTempFile::new_in(&dir).on("make a file in", &dir)?;
            new.write_all(file.content).and_then(|()| new.as_file().sync_all()).on("write", &path)?;
            new.persist(&path).on("rename to", path)?;
        }
        sync_dir(&dir)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.root, path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }
}
