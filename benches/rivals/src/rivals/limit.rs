//! LIMIT: BARE, and each file created, written and renamed without a sync. What any design costs that leaves ordinary
//! files behind. Threads make their files at once, and those that are done by then share one write and one sync.
//!
//! With checks, what is replaced is looked at before, compared before the exchange and after it, and written to the log if it
//! is small: what atomtree's protocol asks of the system, without anything that keeps its books.

use std::path::{Path, PathBuf};

use atomtree_tests::floor::{Bare, Limit, ORIGINAL_BYTES_MAX};
use atomtree_wal::GroupCommit;

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{BARE_BYTES, Opening, Rival, Role, Writer, read};

/// See the file's head.
pub(super) struct LimitFloor {
    checks: bool,
}

impl LimitFloor {
    pub(super) const PLAIN: Self = Self { checks: false };
    pub(super) const CHECKED: Self = Self { checks: true };
}

impl Rival for LimitFloor {
    fn name(&self) -> &'static str {
        if self.checks { "limit-checked" } else { "limit" }
    }

    fn version(&self) -> String {
        String::new()
    }

    fn setting(&self) -> &'static str {
        if self.checks {
            "limit, and what is replaced read, logged up to 4 KiB, and compared before and after the exchange"
        } else {
            "bare, and each file created, written and renamed or exchanged, unsynced"
        }
    }

    fn role(&self) -> Role {
        Role::Limit
    }

    fn open(&self, dir: &Path, _: Opening) -> Result<Box<dyn Writer>, Failure> {
        let path = dir.join("bare");
        let file = Bare::create(&path, (1 + usize::from(self.checks)) * BARE_BYTES).on("make", path)?;
        let names = Limit::new(dir).on("prepare", dir)?.with_checks(self.checks);
        Ok(Box::new(Open {
            dir: dir.to_owned(),
            file,
            names,
            checks: self.checks,
            group: GroupCommit::new(),
        }))
    }
}

struct Open {
    dir: PathBuf,
    file: Bare,
    names: Limit,
    checks: bool,
    group: GroupCommit<(), Result<(), Failure>>,
}

impl Writer for Open {
    fn create_dir(&self, dir: &str) -> Result<(), Failure> {
        self.names.create_dir(dir).on("make", self.dir.join(dir))
    }

    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        let announced = self.group.announce();
        let files = batch.files().map(|file| (file.name, file.content));
        self.names.put(batch.dir(), batch.replaces(), files).on("write", self.dir.join(batch.dir()))?;
        // What is replaced is as large.
        let is_small = batch.files().all(|file| file.content.len() as u64 <= ORIGINAL_BYTES_MAX);
        let images = 1 + usize::from(self.checks && batch.replaces() && is_small);
        let write = |batch_of: Vec<()>| {
            // Commits are of one size, and whose bytes they are makes no difference to the device.
            let written = match images * batch_of.len() {
                1 => self.file.write(batch.all()),
                several => self.file.write(&batch.all().repeat(several)),
            };
            batch_of.iter().map(|()| written.as_ref().copied().on("write", self.dir.join("bare"))).collect()
        };
        announced.submit((), write).on("share the sync of", &self.dir)?
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.dir, path)
    }

    fn tidy(&self) -> Result<(), Failure> {
        self.names.clear().on("clear", &self.dir)
    }
}
