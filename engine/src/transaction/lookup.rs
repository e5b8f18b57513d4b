//! From what the caller names to what stands there: the first look at a name, and what may be done to it.

use std::path::Path;

use atomtree_recovery::image::{Content, Image};
use atomtree_recovery::plan::Moved;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{File, Kind};

use super::Transaction;
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::{HardLinks, Symlinks};
use crate::view::{DirId, Spot, Stands, invalid_path};

/// As many final symlinks as are followed one after another.
pub(super) const SYMLINKS_MAX: usize = 40;

/// What an operation is going to do to a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To look at what a final symlink leads to.
    Read,
    /// To write the file that stands there, or that a final symlink leads to.
    Write,
    /// To change the mode of what stands there, or of what a final symlink leads to.
    ChangeMode,
    /// To act on the name itself, whatever stands there.
    Name,
}

impl Transaction {
    /// Resolves a path, final symlinks as the purpose asks, and takes a first look at what stands there. `None` if the
    /// directory that should hold it is not there.
    pub(super) fn touch(&mut self, asked: &TreePath, purpose: Purpose) -> Result<Option<Spot>, Error> {
        let Some(mut spot) = self.view.spot(asked)? else { return Ok(None) };
        for _ in 0..SYMLINKS_MAX {
            let Some(target) = self.link_to_follow(&spot, purpose)? else { return Ok(Some(spot)) };
            // The link itself was read: if it leads elsewhere by then, this transaction is a conflict.
            self.note_read(&spot);
            let Some(next) = self.view.through_link(&spot, &target)? else {
                let reason = "it is a symlink into a directory that is not there";
                return Err(Error::refused(ErrorKind::NotFound, spot.path.as_path(), reason));
            };
            spot = next;
        }
        Err(Error::refused(ErrorKind::InvalidPath, asked.as_path(), "symlinks lead in a circle"))
    }

    /// Where a final symlink leads, if one stands there and is to be followed.
    pub(super) fn link_to_follow(&self, spot: &Spot, purpose: Purpose) -> Result<Option<Vec<u8>>, Error> {
        let Stands::Symlink(target) = self.view.stands(spot) else { return Ok(None) };
        match (purpose, self.symlinks) {
            (Purpose::Name, _) | (Purpose::Write, Symlinks::Replace) => Ok(None),
            (_, Symlinks::Follow) => Ok(Some(target.to_vec())),
            (_, Symlinks::Refuse | Symlinks::Replace) => {
                let reason = "it is a symlink; name the file that it leads to, or say that symlinks are to be followed";
                Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
            }
        }
    }

    /// The spot of a path where something has to stand.
    pub(super) fn existing(&mut self, path: &Path, purpose: Purpose) -> Result<Spot, Error> {
        let asked = asked(path)?;
        let spot = self.touch(&asked, purpose)?;
        if let Some(spot) = &spot {
            if purpose == Purpose::Read {
                self.note_read(spot);
            }
            if self.is_there(spot) {
                return Ok(spot.clone());
            }
        } else if purpose == Purpose::Read {
            self.note_missing(&asked)?;
        }
        let path = spot.map_or(asked, |spot| spot.path);
        Err(Error::refused(ErrorKind::NotFound, path.as_path(), "no such file"))
    }

    pub(super) fn existing_dir(&mut self, path: &Path) -> Result<(Spot, DirId), Error> {
        let spot = self.existing(path, Purpose::Name)?;
        if !matches!(self.view.stands(&spot), Stands::Dir) {
            return Err(Error::refused(
                ErrorKind::NotADirectory,
                spot.path.as_path(),
                "it is not a directory",
            ));
        }
        let id = self.view.dir_at(&spot)?;
        Ok((spot, id))
    }

    /// The spot of a path of which directories are missing, which are made.
    pub(super) fn make_spot(&mut self, asked: &TreePath) -> Result<Spot, Error> {
        let (mut dir, missing) = self.view.deepest(asked)?;
        let Some((last, above)) = missing.split_last() else {
            let reason = "it was made while the transaction looked, and is a directory";
            return Err(Error::conflict(asked.as_path(), reason));
        };
        for name in above {
            let spot = self.view.spot_in(dir, name)?;
            match self.view.stands(&spot) {
                Stands::Nothing => {}
                // Somebody has made it since it was found missing.
                Stands::Dir => {
                    dir = self.view.dir_at(&spot)?;
                    continue;
                }
                // A symlink that leads nowhere can't be made a directory.
                _ => return Err(exists(&spot)),
            }
            let attributes = self.default_attributes(dir, &spot.path, 0o777, None, Kind::Dir)?;
            dir = self.view.make_dir(&spot, attributes, true);
        }
        self.view.spot_in(dir, last)
    }

    pub(super) fn is_there(&self, spot: &Spot) -> bool {
        !matches!(self.view.stands(spot), Stands::Nothing)
    }

    /// Whether the directory at a spot can get another name, or go: it can't where inodes don't.
    pub(super) fn check_moves(&mut self, spot: &Spot) -> Result<(), Error> {
        let id = self.view.dir_at(spot)?;
        if self.shared.engine.moves_inodes || self.view.dir(id).made.is_some() {
            return Ok(());
        }
        let reason = "overlayfs may refuse to rename a directory, and removing one is a rename too; move or remove the files in it";
        Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
    }

    /// The caller is told of what stands there, or relies on it.
    pub(super) fn note_read(&mut self, spot: &Spot) {
        if let Some(name) = self.view.source_mut(spot) {
            name.is_read = true;
        }
    }

    /// The caller is told that nothing stands at a path whose directory is missing.
    pub(super) fn note_missing(&mut self, asked: &TreePath) -> Result<(), Error> {
        let (dir, missing) = self.view.deepest(asked)?;
        if let Some(first) = missing.first() {
            let spot = self.view.spot_in(dir, first)?;
            self.note_read(&spot);
        }
        Ok(())
    }

    /// Refuses what can't be written.
    pub(super) fn check_writable(&mut self, spot: &Spot) -> Result<(), Error> {
        self.check_not_patched(spot)?;
        match self.view.stands(spot) {
            Stands::Nothing | Stands::Symlink(_) => return Ok(()),
            // What can't be read can't be replaced by something with the same attributes.
            Stands::Inode { image: Image { kind: Kind::File, content: Content::Unread, .. } } => {
                self.open(spot)?;
            }
            _ => {}
        }
        self.check_regular(spot)?;
        self.check_hard_links(spot)
    }

    /// Refuses what is no regular file.
    pub(super) fn check_regular(&self, spot: &Spot) -> Result<(), Error> {
        let refused = |kind, reason| Err(Error::refused(kind, spot.path.as_path(), reason));
        match self.view.stands(spot) {
            Stands::Dir => refused(ErrorKind::IsADirectory, "it is a directory"),
            Stands::Inode { image: Image { kind: Kind::Other, .. } }
            | Stands::Moved(Moved { kind: Kind::Other, .. }) => {
                refused(ErrorKind::Unsupported, "it is a device, socket or pipe")
            }
            Stands::Symlink(_) => refused(ErrorKind::Unsupported, "it is a symlink"),
            _ => Ok(()),
        }
    }

    pub(super) fn check_hard_links(&self, spot: &Spot) -> Result<(), Error> {
        match self.view.stands(spot) {
            Stands::Inode { image }
                if image.kind == Kind::File && image.links > 1 && self.hard_links == HardLinks::Refuse =>
            {
                let reason = format!(
                    "it has {} hard links, and replacing it would part it from the others; say that hard links are to be broken",
                    image.links
                );
                Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
            }
            _ => Ok(()),
        }
    }

    /// Reads an original that has been looked at before, while a new image of it is taken, so that the bytes are those
    /// that the check compares.
    ///
    /// # Errors
    /// `conflict` if it is no longer what was seen: the check could only compare with one of the two.
    pub(super) fn read_original(
        &mut self,
        file: &dyn File,
        spot: &Spot,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let vfs = &*self.shared.engine.places.vfs;
        let (image, bytes) = Image::capture_with_content(vfs, file, self.view.limits(), limit)
            .on("read", spot.path.as_path())?;
        if let Some(seen) = self.view.source_mut(spot).and_then(|name| name.original.as_mut()) {
            let same_content = match seen.content {
                Content::Unread => seen.has_times_of_image(&image),
                Content::Inline(_) | Content::Digest(_) => seen.has_content_of(&image) == Some(true),
            };
            if same_content && seen.attributes == image.attributes {
                *seen = image;
                return Ok(bytes);
            }
        }
        Err(Error::conflict(spot.path.as_path(), "it was changed since the transaction first looked"))
    }
}

/// A path as the caller gives it, checked.
pub(super) fn asked(path: &Path) -> Result<TreePath, Error> {
    TreePath::new(path).map_err(|source| invalid_path(path, source))
}

pub(super) fn exists(spot: &Spot) -> Error {
    Error::refused(ErrorKind::Exists, spot.path.as_path(), "something stands there already; remove it first")
}

pub(super) fn check_mode(path: &Path, mode: Option<u32>) -> Result<(), Error> {
    match mode {
        Some(mode) if mode > 0o7777 => Err(Error::refused(
            ErrorKind::InvalidInput,
            path,
            format!("mode {mode:o} has more than permission bits"),
        )),
        _ => Ok(()),
    }
}
