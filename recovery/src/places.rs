//! The store's directory, its parts held open, and the file that says whose it is.
//!
//! ```text
//! <root>/.atomtree/     0700
//!   store               id, format version, creation options, its own inode number
//!   lock, members       flocks; never renamed or removed
//!   wal/                segments
//!   stage/<random>/     slots
//!   history/            manifests of settled transactions
//!   images/             originals that retained transactions need
//!   quarantine/         displaced foreign content
//! ```
//!
//! Building it is the first open's work: everything is made under another name, made durable, and renamed into place,
//! so that a store either stands whole or not at all.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, Kind, Timestamp, Vfs};

use crate::error::{Doing, Error};
use crate::tree_path::STORE_DIR;

/// The version of everything on disk: segments, records, manifests and the store file.
pub const FORMAT_VERSION: u32 = 1;

const STORE_FILE: &str = "store";
const STORE_FILE_NEW: &str = "store.new";
/// The store file is a handful of short lines.
const STORE_FILE_BYTES_MAX: u64 = 4096;

/// The open directories of a store and the tree it guards.
#[derive(Clone)]
pub struct Places {
    /// The machine.
    pub vfs: Arc<dyn Vfs>,
    /// The user's tree.
    pub root: Arc<dyn Dir>,
    /// `.atomtree`.
    pub store: Arc<dyn Dir>,
    /// `.atomtree/wal`.
    pub wal: Arc<dyn Dir>,
    /// `.atomtree/stage`.
    pub stage: Arc<dyn Dir>,
    /// `.atomtree/history`.
    pub history: Arc<dyn Dir>,
    /// `.atomtree/images`.
    pub images: Arc<dyn Dir>,
    /// `.atomtree/quarantine`.
    pub quarantine: Arc<dyn Dir>,
}

/// The names of the directories inside a store.
pub const STORE_PARTS: [&str; 5] = ["wal", "stage", "history", "images", "quarantine"];

impl Places {
    /// Opens the store below `root`.
    ///
    /// # Errors
    /// `NotFound` (as [`Error::Io`]) if there is none.
    pub fn open(vfs: Arc<dyn Vfs>, root: Arc<dyn Dir>) -> Result<Self, Error> {
        let store = root.open_dir(Path::new(STORE_DIR)).doing("open the store directory", STORE_DIR)?;
        Self::of_store(vfs, root, store)
    }

    /// The parts of the store whose directory is `store`, wherever it stands.
    pub fn of_store(vfs: Arc<dyn Vfs>, root: Arc<dyn Dir>, store: Arc<dyn Dir>) -> Result<Self, Error> {
        let part = |name: &str| match store.open_dir(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::StoreFile { reason: format!("the directory {name} beside it is missing") })
            }
            result => result.doing("open the store's directory", &format!("{STORE_DIR}/{name}")),
        };
        let [wal, stage, history, images, quarantine] = STORE_PARTS;
        Ok(Self {
            wal: part(wal)?,
            stage: part(stage)?,
            history: part(history)?,
            images: part(images)?,
            quarantine: part(quarantine)?,
            vfs,
            root,
            store,
        })
    }

    /// Refuses a store that someone else could have planted or could change: each directory and the store file must
    /// belong to one of `owners` and be closed to group and others.
    ///
    /// # Errors
    /// [`Error::Permission`], naming what is wrong and how to mend it.
    pub fn check_ownership(&self, owners: &[u32]) -> Result<(), Error> {
        let dirs =
            [("", &self.store), ("/wal", &self.wal), ("/stage", &self.stage), ("/history", &self.history)];
        let dirs = dirs.into_iter().chain([("/images", &self.images), ("/quarantine", &self.quarantine)]);
        for (name, dir) in dirs {
            let path = format!("{STORE_DIR}{name}");
            let metadata = dir.own_metadata().doing("read the metadata of", &path)?;
            check_owner(&path, metadata.uid, owners)?;
            check_closed(&path, metadata.mode, "0700")?;
        }
        let path = format!("{STORE_DIR}/{STORE_FILE}");
        let metadata = match self.store.metadata(OsStr::new(STORE_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::StoreFile { reason: "it is missing".into() });
            }
            result => result.doing("read the metadata of", &path)?,
        };
        check_owner(&path, metadata.uid, owners)?;
        check_closed(&path, metadata.mode, "0600")?;
        if metadata.kind != Kind::File || metadata.links != 1 {
            return Err(Error::Permission {
                path,
                reason: "it is not a regular file with a single name; a planted store is not opened".into(),
            });
        }
        Ok(())
    }
}

impl Places {
    /// Whom the store belongs to.
    pub fn owner(&self) -> Result<u32, Error> {
        Ok(self.store.own_metadata().doing("read the metadata of", STORE_DIR)?.uid)
    }

    /// Gives the store's owner the files that root has made in it since then. By what is open, not by name, and nothing that
    /// is older or has another name: whoever owns the directory can put there what is root's and not meant for him.
    pub fn give_to_owner(&self, since: Timestamp) -> Result<(), Error> {
        let owner = self.store.own_metadata().doing("read the metadata of", STORE_DIR)?;
        let since = since.plus_ns(-self.vfs.timestamp_granularity_ns());
        let parts = [("", &self.store), ("/wal", &self.wal), ("/history", &self.history)];
        for (part, dir) in parts.into_iter().filter(|_| owner.uid != 0) {
            let label = format!("{STORE_DIR}{part}");
            for entry in
                dir.list().doing("list", &label)?.into_iter().filter(|entry| entry.kind == Kind::File)
            {
                let Ok(file) = dir.open_file(&entry.name, Access::Read) else { continue };
                let found = file.metadata().doing("look into", &label)?;
                if found.uid == 0 && found.links == 1 && found.born.is_some_and(|born| born >= since) {
                    file.set_owner(owner.uid, owner.gid).doing("give to its owner what is in", &label)?;
                }
            }
        }
        Ok(())
    }
}

fn check_owner(path: &str, found: u32, owners: &[u32]) -> Result<(), Error> {
    if owners.contains(&found) {
        return Ok(());
    }
    Err(Error::Permission {
        path: path.into(),
        reason: format!(
            "it belongs to user {found}, and this process acts for user {}; run as that user, or as root with --allow-owner {found}",
            owners[0]
        ),
    })
}

/// The permission bits that nobody but the owner has a use for.
const GROUP_AND_OTHERS: u32 = 0o077;

fn check_closed(path: &str, mode: u32, wanted: &str) -> Result<(), Error> {
    if mode & GROUP_AND_OTHERS == 0 {
        return Ok(());
    }
    Err(Error::Permission {
        path: path.into(),
        reason: format!(
            "its mode is {mode:04o}, open to others than its owner; check its content, then chmod {wanted}"
        ),
    })
}

/// What the store file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFile {
    /// Random name of this store, also in each segment's header.
    pub id: [u8; 16],
    /// The store file's own inode number when it was created: differs in a copy.
    pub inode: u64,
    /// Length of a segment, fixed at creation.
    pub segment_bytes: u64,
}

impl StoreFile {
    /// Creates the file with the inode number it turns out to get, and syncs it; its name is the caller's to sync.
    pub fn create(dir: &dyn Dir, id: [u8; 16], segment_bytes: u64) -> io::Result<Self> {
        let file = dir.create_file(OsStr::new(STORE_FILE), 0o600)?;
        let this = Self { id, inode: file.metadata()?.inode, segment_bytes };
        file.write_at(&[IoSlice::new(this.to_text().as_bytes())], 0)?;
        file.sync_all()?;
        Ok(this)
    }

    /// Says that this copy is the store from now on: writes the file anew, with the inode number that it then has.
    ///
    /// # Durability
    /// The file and its name are durable when this returns; a crash leaves the one or the other.
    pub fn adopt(&self, dir: &dyn Dir) -> io::Result<()> {
        let new = OsStr::new(STORE_FILE_NEW);
        match dir.remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = dir.create_file(new, 0o600)?;
        let this = Self { inode: file.metadata()?.inode, ..self.clone() };
        file.write_at(&[IoSlice::new(this.to_text().as_bytes())], 0)?;
        file.sync_all()?;
        dir.rename_over(new, dir, OsStr::new(STORE_FILE))?;
        dir.sync()
    }

    /// Reads and checks the file. Also tells whether it is still the inode that it was created as: it is not after the
    /// store has been copied or restored.
    ///
    /// # Errors
    /// [`Error::FormatVersion`] for another version, [`Error::StoreFile`] for anything that is not a store file.
    pub fn read(dir: &dyn Dir) -> Result<(Self, bool), Error> {
        let path = format!("{STORE_DIR}/{STORE_FILE}");
        let file = match dir.open_file(OsStr::new(STORE_FILE), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::StoreFile { reason: "it is missing".into() });
            }
            result => result.doing("open", &path)?,
        };
        let bytes = match file.read_all(STORE_FILE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Error::StoreFile {
                    reason: format!("it is longer than {STORE_FILE_BYTES_MAX} bytes"),
                });
            }
            result => result.doing("read", &path)?,
        };
        let text =
            String::from_utf8(bytes).map_err(|_| Error::StoreFile { reason: "it is not text".into() })?;
        let this = Self::from_text(&text)?;
        let original = file.metadata().doing("read the metadata of", &path)?.inode == this.inode;
        Ok((this, original))
    }

    fn to_text(&self) -> String {
        let id = u128::from_be_bytes(self.id);
        let body = format!(
            "atomtree store {FORMAT_VERSION}\nid {id:032x}\ninode {}\nsegment_bytes {}\n",
            self.inode, self.segment_bytes
        );
        let checksum = Self::checksum(&body);
        format!("{body}checksum {checksum}\n")
    }

    fn checksum(body: &str) -> String {
        blake3::hash(body.as_bytes()).to_hex()[..16].to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Error> {
        let damaged = |reason: String| Error::StoreFile { reason };
        let version = text
            .strip_prefix("atomtree store ")
            .and_then(|rest| rest.split_once('\n'))
            .ok_or_else(|| damaged("it does not start with `atomtree store` and a version".into()))?
            .0;
        if version != FORMAT_VERSION.to_string() {
            let found =
                version.parse().map_err(|_| damaged(format!("its version is {version:?}, not a number")))?;
            return Err(Error::FormatVersion { found, expected: FORMAT_VERSION });
        }
        let at = text.find("checksum ").ok_or_else(|| damaged("its checksum is missing".into()))?;
        let (body, checksum) = text.split_at(at);
        let (found, expected) = (checksum, format!("checksum {}\n", Self::checksum(body)));
        if found != expected {
            return Err(damaged(format!("{:?} found, {:?} expected", found.trim_end(), expected.trim_end())));
        }
        let field = |name: &str| {
            body.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or_else(|| damaged(format!("its field {name} is missing")))
        };
        let number = |name: &str| {
            field(name)?.parse::<u64>().map_err(|_| damaged(format!("its field {name} is not a number")))
        };
        let id = u128::from_str_radix(field("id")?, 16)
            .map_err(|_| damaged("its id is not hexadecimal".into()))?;
        Ok(Self { id: id.to_be_bytes(), inode: number("inode")?, segment_bytes: number("segment_bytes")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StoreFile {
        StoreFile { id: *b"0123456789abcdef", inode: 77, segment_bytes: 1 << 24 }
    }

    #[test]
    fn text_is_pinned_and_reads_back() {
        let text = sample().to_text();
        assert_eq!(
            text,
            "atomtree store 1\nid 30313233343536373839616263646566\ninode 77\nsegment_bytes 16777216\nchecksum "
                .to_owned()
                + &text[text.len() - 17..]
        );
        assert_eq!(StoreFile::from_text(&text).unwrap(), sample());
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let text = sample().to_text();
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(damaged) = String::from_utf8(bytes) else { continue };
                assert!(StoreFile::from_text(&damaged).is_err(), "byte {at} bit {bit}");
            }
            assert!(StoreFile::from_text(&text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let newer = sample().to_text().replace("store 1", "store 9");
        assert!(matches!(StoreFile::from_text(&newer), Err(Error::FormatVersion { found: 9, expected: 1 })));
    }
}
