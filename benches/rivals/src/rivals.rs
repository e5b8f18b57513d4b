//! Who takes part: atomtree, what bounds it, and what people use instead.
//!
//! One file each, behind two small traits. Each is opened at its own best setting of those that are durable, which it
//! names; a sample that issues no flush at all is reported as suspect.

mod atomic_write_file;
mod atomtree;
mod bare;
mod fjall;
mod fs_transaction;
mod fstx;
mod git;
mod limit;
mod naive;
mod redb;
mod sqlite;
mod tempfile;

use std::fs::{self, File};
use std::path::Path;

use crate::batch::Batch;
use crate::failure::{Failure, On};

pub use atomtree::Atomtree;
pub use bare::{BARE_BYTES, BareFloor};

/// Somebody who can make changes durable.
pub trait Rival: Sync {
    /// As `--only` takes it.
    fn name(&self) -> &'static str;

    /// Which release.
    fn version(&self) -> String;

    /// What makes it durable, for people.
    fn setting(&self) -> &'static str;

    /// Whether a batch of files changes wholly or not at all.
    fn is_atomic(&self) -> bool {
        true
    }

    /// What it is to the comparison.
    fn role(&self) -> Role {
        Role::Rival
    }

    /// Opens or creates a store in an existing directory.
    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure>;
}

/// What somebody is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Ratios are to this one.
    Floor,
    /// As well as the floor can be reached with files that have names.
    Limit,
    /// Ratios of rivals are to this one too.
    Ours,
    /// The others.
    Rival,
}

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// When what is put off gets done.
    pub upkeep: Upkeep,
    /// Whether other processes have the store open as well.
    pub is_shared: bool,
}

impl Opening {
    /// By this process alone, with upkeep between samples.
    pub const QUIET: Self = Self { upkeep: Upkeep::BetweenSamples, is_shared: false };
    /// By this process alone, with upkeep whenever the store likes.
    pub const SUSTAINED: Self = Self { upkeep: Upkeep::Own, is_shared: false };
    /// By several processes.
    pub const SHARED: Self = Self { upkeep: Upkeep::Own, is_shared: true };
}

/// When a store checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Only when [`Writer::tidy`] is called.
    BetweenSamples,
    /// As it does by default.
    Own,
}

/// An open store. Several threads commit to it at once, under different names.
pub trait Writer: Send + Sync {
    /// Whether only one thread commits, whatever the workload says.
    fn is_serial(&self) -> bool {
        false
    }

    /// Makes a directory for files to come; stores without directories need none.
    fn create_dir(&self, _dir: &str) -> Result<(), Failure> {
        Ok(())
    }

    /// Makes the batch durable.
    fn put(&self, batch: &Batch) -> Result<(), Failure>;

    /// What the file holds.
    fn get(&self, path: &str) -> Result<Vec<u8>, Failure>;

    /// Changes some bytes of a file, durably.
    fn patch(&self, _path: &str, _offset: usize, _bytes: &[u8]) -> Result<(), Failure> {
        Err(Failure::Unsupported("has nothing to change a part of a file with"))
    }

    /// The same, where the file lies.
    fn patch_in_place(&self, _path: &str, _offset: usize, _bytes: &[u8]) -> Result<(), Failure> {
        Err(Failure::Unsupported("has nothing to change a file where it lies with"))
    }

    /// Adds one to a number that is kept in a file, and makes the batch durable with it.
    fn count(&self, _counter: &str, _batch: &Batch) -> Result<(), Failure> {
        Err(Failure::Unsupported("has no transactions that read"))
    }

    /// Does what can be put off: a checkpoint.
    fn tidy(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Closes the store.
    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

/// All of them; the floor, the limit and atomtree first.
pub const ALL: [&dyn Rival; 15] = [
    &BareFloor,
    &limit::LimitFloor::PLAIN,
    &limit::LimitFloor::CHECKED,
    &Atomtree,
    &naive::Naive,
    &atomic_write_file::PerFile,
    &tempfile::Persisted,
    &fstx::Fstx,
    &fs_transaction::FsTransaction,
    &sqlite::Sqlite::WAL,
    &sqlite::Sqlite::DELETE,
    &sqlite::Sqlite::DELETE_EXTRA,
    &redb::Redb,
    &fjall::Fjall,
    &git::Git,
];

/// The one of this name.
pub fn named(name: &str) -> Option<&'static dyn Rival> {
    ALL.into_iter().find(|rival| rival.name() == name)
}

/// The release of a crate that this program was built with, from its own lock file.
fn locked_version(of: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let package = format!("name = \"{of}\"\nversion = \"");
    let version = lock.split_once(&package).and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("?", |(version, _)| version).to_owned()
}

fn read(root: &Path, path: &str) -> Result<Vec<u8>, Failure> {
    let path = root.join(path);
    fs::read(&path).on("read", path)
}

fn create_dir(root: &Path, dir: &str) -> Result<(), Failure> {
    let dir = root.join(dir);
    fs::create_dir_all(&dir).on("make", dir)
}

fn sync_dir(dir: &Path) -> Result<(), Failure> {
    File::open(dir).and_then(|dir| dir.sync_all()).on("sync", dir)
}

/// What programs do that can only write whole files.
pub(crate) fn rewrite(writer: &dyn Writer, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
    let mut content = writer.get(path)?;
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    let (dir, name) = path.rsplit_once('/').expect("files lie in directories");
    writer.put(&Batch::of(dir, name, content, true))
}
