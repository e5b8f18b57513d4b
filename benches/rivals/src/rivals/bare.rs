//! BARE: one write of the same bytes, one sync. What durable bytes cost, without names and without atomicity.

use std::path::{Path, PathBuf};

use atomtree_tests::floor::Bare;

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Role, Writer, read};

/// The most that is written at once.
pub const BARE_BYTES: usize = 64 << 20;

/// See the file's head.
pub struct BareFloor;

impl Rival for BareFloor {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn version(&self) -> String {
        String::new()
    }

    fn setting(&self) -> &'static str {
        "one pwrite of the same bytes and one fdatasync, in a file whose blocks are written"
    }

    fn is_atomic(&self) -> bool {
        false
    }

    fn role(&self) -> Role {
        Role::Floor
    }

    fn open(&self, dir: &Path, _: Opening) -> Result<Box<dyn Writer>, Failure> {
        let path = dir.join("bare");
        let file = Bare::create(&path, BARE_BYTES).on("make", path)?;
        Ok(Box::new(Open { dir: dir.to_owned(), file }))
    }
}

struct Open {
    dir: PathBuf,
    file: Bare,
}

impl Writer for Open {
    fn is_serial(&self) -> bool {
        true
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        self.file.write(batch.all()).on("write", self.dir.join("bare"))
    }

    /// Everything, as there are no names.
    fn get(&self, _: &str) -> Result<Vec<u8>, Failure> {
        read(&self.dir, "bare")
    }

    fn patch(&self, _: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_at(bytes, offset as u64).on("write", self.dir.join("bare"))
    }
}
