//! Directories: making and removing them.

use std::path::Path;

use atomtree_vfs::Kind;

use super::Transaction;
use super::lookup::{SYMLINKS_MAX, asked, check_mode, exists};
use crate::error::{Error, ErrorKind};
use crate::view::Stands;

impl Transaction {
    /// Makes a directory, with what the umask or a default ACL leaves of mode 0777.
    ///
    /// # Errors
    /// `exists` if anything stands there, `not_found` if the directory above it is not there; else as for
    /// [`Transaction::write`].
    pub fn create_dir(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.make_directory(path.as_ref(), None)
    }

    /// As [`Transaction::create_dir`], and gives the directory exactly this mode (`0o7777` at most).
    pub fn create_dir_with_mode(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        self.make_directory(path.as_ref(), Some(mode))
    }

    pub(super) fn make_directory(&mut self, path: &Path, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = asked(path)?;
        let Some(spot) = self.view.spot(&asked)? else {
            let reason = "the directory above it is not there; create_dir_all makes it as well";
            return Err(Error::refused(ErrorKind::NotFound, path, reason));
        };
        if !matches!(self.view.stands(&spot), Stands::Nothing) {
            return Err(exists(&spot));
        }
        let attributes = self.default_attributes(spot.dir, &spot.path, 0o777, mode, Kind::Dir)?;
        self.view.make_dir(&spot, attributes, false);
        Ok(())
    }

    /// Makes a directory and those above it, as far as they are missing. One that is there already is left as it is.
    ///
    /// # Errors
    /// `exists` if something that is no directory stands there; else as for [`Transaction::write`].
    pub fn create_dir_all(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.create_dir_all_with_mode(path.as_ref(), None)
    }

    /// As [`Transaction::create_dir_all`]; the last directory gets this mode if one is given and it has to be made.
    pub fn create_dir_all_with_mode(&mut self, path: &Path, mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        let asked = asked(path)?;
        let mut spot = match self.view.spot(&asked)? {
            Some(spot) => spot,
            None => self.make_spot(&asked)?,
        };
        let mut is_link = false;
        for _ in 0..SYMLINKS_MAX {
            let Stands::Symlink(target) = self.view.stands(&spot) else { break };
            let target = target.to_vec();
            is_link = true;
            self.note_read(&spot);
            spot = self.view.through_link(&spot, &target)?.ok_or_else(|| exists(&spot))?;
        }
        match self.view.stands(&spot) {
            Stands::Dir => Ok(()),
            // A link that leads nowhere is in the way.
            Stands::Nothing if !is_link => {
                let attributes = self.default_attributes(spot.dir, &spot.path, 0o777, mode, Kind::Dir)?;
                self.view.make_dir(&spot, attributes, mode.is_none());
                Ok(())
            }
            _ => Err(exists(&spot)),
        }
    }

    /// Removes an empty directory. That makes the transaction a barrier; see [`Transaction::rename`].
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`, `not_empty`; else as for [`Transaction::write`].
    pub fn remove_dir(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let (spot, id) = self.existing_dir(path.as_ref())?;
        self.check_moves(&spot)?;
        // Everything that is there on disk has to be known, to be compared at the commit.
        if !self.view.list(id)?.is_empty() {
            let reason = "it is not empty; remove_dir_all removes what is in it as well";
            return Err(Error::refused(ErrorKind::NotEmpty, spot.path.as_path(), reason));
        }
        self.view.remove_dir(&spot)
    }

    /// Removes a directory and everything in it, of whatever kind. It leaves the tree in one rename; but everything in
    /// it is looked at first, and takes a record in the log. That makes the transaction a barrier; see
    /// [`Transaction::rename`].
    ///
    /// # Errors
    /// `not_found`, `not_a_directory`; `mount_point` and `cross_device` if another file system lies in it; else as for
    /// [`Transaction::write`].
    pub fn remove_dir_all(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let (top, id) = self.existing_dir(path.as_ref())?;
        self.check_moves(&top)?;
        // First everything is looked at, which can fail; then it is all taken away, the deepest first.
        let mut spots = vec![top];
        let mut unseen = vec![id];
        while let Some(id) = unseen.pop() {
            for name in self.view.list(id)?.into_keys() {
                let spot = self.view.spot_below(id, &name)?;
                if matches!(self.view.stands(&spot), Stands::Dir) {
                    unseen.push(self.view.dir_at(&spot)?);
                }
                self.check_not_patched(&spot)?;
                spots.push(spot);
            }
        }
        for spot in spots.into_iter().rev() {
            if matches!(self.view.stands(&spot), Stands::Dir) {
                self.view.remove_dir(&spot)?;
            } else {
                self.clear(&spot);
            }
        }
        Ok(())
    }
}
