//! The crate `atomic-write-file`, file by file. Its `commit` syncs the file, renames it and syncs the directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use ::atomic_write_file::AtomicWriteFile;

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, create_dir, locked_version, read, rewrite};

/// See the file's head.
pub(super) struct PerFile;

impl Rival for PerFile {
    fn name(&self) -> &'static str {
        "atomic-write-file"
    }

    fn version(&self) -> String {
        locked_version("atomic-write-file")
    }

    fn setting(&self) -> &'static str {
        "defaults; each file: fsync, rename, fsync of the directory"
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
        for file in batch.files() {
            let path = self.root.join(file.path);
            let written = AtomicWriteFile::open(&path).and_then(|mut new| {
                new.write_all(file.content)?;
                new.commit()
            });
            written.on("write", path)?;
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
