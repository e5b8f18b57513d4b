//! Questions: what stands in the tree, as the transaction leaves it. What is answered is checked again at the commit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use atomtree_recovery::image::{Attributes, Content, Digest, Image};
use atomtree_recovery::plan::Moved;
use atomtree_vfs::Kind;

use super::lookup::{Purpose, asked};
use super::{Expectation, FileMetadata, Transaction};
use crate::error::{Error, ErrorKind, OnPath};
use crate::view::{Now, ROOT, Spot, Stands};

impl Transaction {
    /// Whether anything stands at `path`, as this transaction leaves it: a file, a directory, a symlink wherever it leads.
    /// The answer is checked again at `commit`.
    ///
    /// # Errors
    /// As for [`Transaction::read`], without `not_found`.
    pub fn exists(&mut self, path: impl AsRef<Path>) -> Result<bool, Error> {
        let asked = asked(path.as_ref())?;
        let Some(spot) = self.view.spot(&asked)? else {
            self.note_missing(&asked)?;
            return Ok(false);
        };
        self.note_read(&spot);
        Ok(self.is_there(&spot))
    }

    /// What stands at `path`, as this transaction leaves it, without following a final symlink. The answer is checked
    /// again at `commit`.
    ///
    /// # Errors
    /// `not_found`; else as for [`Transaction::read`].
    pub fn metadata(&mut self, path: impl AsRef<Path>) -> Result<FileMetadata, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        self.note_read(&spot);
        let mode = self.view.name(&spot).mode;
        let of = |kind: Kind, bytes: u64, attributes: &Attributes, mode: Option<u32>| FileMetadata {
            kind,
            bytes,
            mode: mode.unwrap_or(attributes.mode),
            uid: attributes.uid,
            gid: attributes.gid,
        };
        Ok(match self.view.stands(&spot) {
            Stands::Nothing => unreachable!("it was found to be there"),
            Stands::File(file) => of(Kind::File, file.content.size(), &file.attributes, None),
            Stands::Moved(moved) => of(moved.kind, moved.size, &moved.attributes, None),
            Stands::Inode { image } | Stands::Patched { image, .. } => {
                of(image.kind, image.size, &image.attributes, mode)
            }
            Stands::Symlink(target) => {
                let name = self.view.name(&spot);
                let attributes = match (&name.now, &name.original) {
                    (Now::Symlink(link), _) => link.attributes.clone(),
                    (Now::Moved { moved, .. }, _) => moved.attributes.clone(),
                    (_, Some(image)) => image.attributes.clone(),
                    (_, None) => unreachable!("a symlink stands there"),
                };
                of(Kind::Symlink, target.len() as u64, &attributes, None)
            }
            Stands::Dir => {
                let id = self.view.dir_at(&spot)?;
                let directory = self.view.dir(id);
                let mode = directory.mode;
                match &directory.made {
                    Some(new) => of(Kind::Dir, 0, &new.attributes, None),
                    None => of(Kind::Dir, 0, &self.attributes_of_dir(id)?, mode),
                }
            }
        })
    }

    /// The names in the directory at `path` and their kinds, sorted, as this transaction leaves it; an empty path or `.`
    /// is the root, whose list leaves out the store. At `commit` the names and kinds are checked again; what has changed
    /// inside a file is no conflict.
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`; else as for [`Transaction::read`].
    pub fn list(&mut self, path: impl AsRef<Path>) -> Result<Vec<(OsString, Kind)>, Error> {
        let path = path.as_ref();
        let id = if path.as_os_str().is_empty() || path == Path::new(".") {
            ROOT
        } else {
            let (spot, id) = self.existing_dir(path)?;
            self.note_read(&spot);
            id
        };
        if self.view.dir(id).listing.is_none() && self.view.dir(id).inode.is_some() {
            let names: BTreeMap<_, _> = self.view.list_disk(id)?;
            self.view.dir_mut(id).listing = Some(names);
        }
        Ok(self.view.list(id)?.into_iter().collect())
    }

    /// Goes on only if the name holds what is expected, now and at `commit`.
    ///
    /// # Errors
    /// `conflict`, naming what was found; `unsupported` for a directory or symlink.
    pub fn expect(&mut self, path: impl AsRef<Path>, expectation: Expectation) -> Result<(), Error> {
        let asked = asked(path.as_ref())?;
        let Some(spot) = self.touch(&asked, Purpose::Read)? else {
            self.note_missing(&asked)?;
            return meets(expectation, None).map_err(|reason| Error::conflict(asked.as_path(), reason));
        };
        self.note_read(&spot);
        let found = match self.view.stands(&spot) {
            Stands::Nothing => None,
            Stands::File(file) => Some(file.content.digest().on("read", spot.path.as_path())?),
            Stands::Patched { .. } => Some(Digest::of(&self.read(spot.path.as_path())?)),
            Stands::Inode { image: Image { kind: Kind::File, .. } }
            | Stands::Moved(Moved { kind: Kind::File, .. }) => Some(self.digest_original(&spot)?),
            Stands::Dir | Stands::Symlink(_) | Stands::Inode { .. } | Stands::Moved(_) => {
                let reason = "an expectation can be about a file or about nothing, and this is neither";
                return Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason));
            }
        };
        meets(expectation, found).map_err(|reason| Error::conflict(spot.path.as_path(), reason))
    }

    /// The digest of the file that stands on disk, there or where it is moved from. It is read once, so that the check
    /// compares the same.
    pub(super) fn digest_original(&mut self, spot: &Spot) -> Result<Digest, Error> {
        let source = self.view.source_mut(spot).and_then(|name| name.original.as_ref());
        if let Some(digest) = source.and_then(|seen| seen.content.digest()) {
            return Ok(digest);
        }
        let file = self.open(spot)?;
        let (_, digest) = Digest::of_file(&*file).on("read", spot.path.as_path())?;
        if let Some(seen) = self.view.source_mut(spot).and_then(|name| name.original.as_mut()) {
            seen.content = Content::Digest(digest);
        }
        Ok(digest)
    }
}

/// Whether a name holds what is expected; else what is wrong.
fn meets(expectation: Expectation, found: Option<Digest>) -> Result<(), String> {
    Err(match (expectation, found) {
        (Expectation::Absent, None) => return Ok(()),
        (Expectation::Blake3(expected), Some(found)) if expected == found.0 => return Ok(()),
        (Expectation::Absent, Some(found)) => {
            format!("nothing was expected, and a file with blake3 {found} is there")
        }
        (Expectation::Blake3(expected), None) => {
            format!("blake3 {} was expected, and nothing is there", Digest(expected))
        }
        (Expectation::Blake3(expected), Some(found)) => {
            format!("blake3 {} was expected, and {found} is there", Digest(expected))
        }
    })
}
