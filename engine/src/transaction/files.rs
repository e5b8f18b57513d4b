//! Regular files: writing, appending, patching, removing, reading.

use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Dir, File};

use super::Transaction;
use super::lookup::{Purpose, asked, check_mode};
use crate::content::{EditedFile, Failed, NewContent, NewFile};
use crate::error::{Error, ErrorKind, OnPath};
use crate::view::{Now, Spot, Stands};

/// Contents up to this size are edited in memory; larger ones in a copy of the file.
const EDIT_IN_MEMORY_BYTES_MAX: u64 = 1 << 20;
/// What is streamed is held in memory up to this size: beyond, to sync the file takes less than to write it twice.
const STREAM_IN_MEMORY_BYTES_MAX: u64 = 512 << 10;

impl Transaction {
    /// Gives the file at `path` this content, and makes it if it isn't there, with the directories above it. An existing
    /// file keeps its mode, owner, ACLs and extended attributes.
    ///
    /// A slice is copied into memory first. Where it is larger than 512 KiB, [`Transaction::write_from`] takes half the time.
    ///
    /// # Errors
    /// Nothing has been changed by any of them: `is_a_directory`; `unsupported` for a final symlink or a file with
    /// several hard links, unless the options say otherwise; `invalid_path`, `not_a_directory`, `mount_point`,
    /// `cross_device`, `permission`, `io`.
    pub fn write(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::bytes(content.into()), None)
    }

    /// As [`Transaction::write`], and gives the file exactly this mode (`0o7777` at most).
    pub fn write_with_mode(
        &mut self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        mode: u32,
    ) -> Result<(), Error> {
        self.write_file(path.as_ref(), NewContent::bytes(content.into()), Some(mode))
    }

    /// As [`Transaction::write`], with everything that `source` has, which may be more than fits into memory. Returns its
    /// length in bytes.
    ///
    /// Contents of more than 512 KiB, or than `inline_bytes_max` if that is less, do not travel in the log: they are
    /// written beside the tree as they come, into `.atomtree/stage`. About 3 MiB are held in memory at most.
    ///
    /// # Errors
    /// As for [`Transaction::write`]; `io`, naming the path, if `source` fails; `no_space`.
    pub fn write_from(&mut self, path: impl AsRef<Path>, source: impl io::Read) -> Result<u64, Error> {
        self.write_from_with_mode(path, source, None)
    }

    /// As [`Transaction::write_from`], and gives the file this mode if one is given.
    pub fn write_from_with_mode(
        &mut self,
        path: impl AsRef<Path>,
        mut source: impl io::Read,
        mode: Option<u32>,
    ) -> Result<u64, Error> {
        let path = path.as_ref();
        check_mode(path, mode)?;
        // What can be refused is refused before anything is read.
        let asked = asked(path)?;
        self.file_to_write(&asked)?;
        let engine = &self.shared.engine;
        engine.check_health()?;
        let memory = usize::try_from(engine.options.inline_bytes_max.min(STREAM_IN_MEMORY_BYTES_MAX))
            .expect("half a megabyte at most");
        let mut failed = Failed::Reading;
        let (stage, sync_root) = (engine.stage(), &mut self.sync_root);
        let content = NewContent::stream(stage, &mut source, memory, sync_root, &mut failed);
        let verb = match failed {
            Failed::Reading => "read the new content of",
            Failed::Writing => "stage the new content of",
        };
        let content = content.on(verb, path)?;
        let bytes = content.size();
        self.write_file(path, content, mode)?;
        Ok(bytes)
    }

    pub(super) fn write_file(
        &mut self,
        path: &Path,
        content: Arc<NewContent>,
        mode: Option<u32>,
    ) -> Result<(), Error> {
        check_mode(path, mode)?;
        let spot = self.spot_to_write(path)?;
        self.write_at(&spot, content, mode)
    }

    fn write_at(&mut self, spot: &Spot, content: Arc<NewContent>, mode: Option<u32>) -> Result<(), Error> {
        let attributes = self.attributes_of(spot, mode)?;
        self.put(spot, NewFile { content, attributes, modified: None });
        Ok(())
    }

    /// Where a write to a path goes, in directories that are made where they are missing.
    fn spot_to_write(&mut self, path: &Path) -> Result<Spot, Error> {
        let asked = asked(path)?;
        match self.file_to_write(&asked)? {
            Some(spot) => Ok(spot),
            None => self.make_spot(&asked),
        }
    }

    /// Where a write to a path goes, if the directory is there.
    pub(super) fn file_to_write(&mut self, asked: &TreePath) -> Result<Option<Spot>, Error> {
        let Some(spot) = self.touch(asked, Purpose::Write)? else { return Ok(None) };
        self.check_writable(&spot)?;
        Ok(Some(spot))
    }

    /// Appends to the file at `path`, and makes it if it isn't there. Errors as for [`Transaction::write`].
    pub fn append(&mut self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), Error> {
        self.append_with_mode(path.as_ref(), content.as_ref(), None)
    }

    /// As [`Transaction::append`], and gives the file this mode if one is given.
    pub fn append_with_mode(&mut self, path: &Path, content: &[u8], mode: Option<u32>) -> Result<(), Error> {
        check_mode(path, mode)?;
        // Looked at once: somebody may just be making the file, and that is either seen or in the way.
        let spot = self.spot_to_write(path)?;
        if !self.is_there(&spot) {
            return self.write_at(&spot, NewContent::bytes(content.to_vec()), mode);
        }
        self.edit(&spot, Ok, content)?;
        if let (Some(mode), Now::File(file)) = (mode, &mut self.view.name_mut(&spot).now) {
            file.attributes = file.attributes.with_mode(mode);
        }
        Ok(())
    }

    /// Overwrites the file at `path` from byte `offset` on, extending it where needed.
    ///
    /// The file is not written in place: the new content is built from a reflink where the file system has it, else
    /// from a copy, and exchanged, so that every promise holds.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` if `offset` lies past the end; else as for [`Transaction::write`].
    pub fn patch(
        &mut self,
        path: impl AsRef<Path>,
        offset: u64,
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let spot = self.existing(path.as_ref(), Purpose::Write)?;
        self.check_writable(&spot)?;
        let at = spot.path.clone();
        self.edit(
            &spot,
            |size| {
                if offset <= size {
                    return Ok(offset);
                }
                let reason = format!("offset {offset} lies past the end, at {size}");
                Err(Error::refused(ErrorKind::InvalidInput, at.as_path(), reason))
            },
            bytes.as_ref(),
        )
    }

    /// Writes `bytes` where `offset_of` says, given the present size.
    pub(super) fn edit(
        &mut self,
        spot: &Spot,
        offset_of: impl FnOnce(u64) -> Result<u64, Error>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        // A symlink that may be replaced can't be edited: there is nothing in it.
        self.check_regular(spot)?;
        self.load(spot)?;
        let Now::File(file) = &mut self.view.name_mut(spot).now else { unreachable!("it was loaded") };
        let offset = offset_of(file.content.size())?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            let reason = "the file would be larger than a file can be";
            return Err(Error::refused(ErrorKind::InvalidInput, spot.path.as_path(), reason));
        }
        Arc::make_mut(&mut file.content).write(offset, bytes);
        // Whatever time a rename carried over, this is a modification.
        file.modified = None;
        Ok(())
    }

    /// Makes a file that stands on disk, there or elsewhere, a new one of the same content, so that it can be edited.
    pub(super) fn load(&mut self, spot: &Spot) -> Result<(), Error> {
        if !matches!(self.view.stands(spot), Stands::File(_)) {
            let file = self.loaded(spot)?;
            self.put(spot, file);
        }
        Ok(())
    }

    pub(super) fn loaded(&mut self, spot: &Spot) -> Result<NewFile, Error> {
        let (size, attributes) = match self.view.stands(spot) {
            Stands::Inode { image } => (image.size, image.attributes.clone()),
            Stands::Moved(moved) => (moved.size, moved.attributes.clone()),
            Stands::File(file) => return Ok(file.clone()),
            _ => unreachable!("it was checked to be a regular file, and not to be patched in place"),
        };
        let attributes = match self.view.name(spot).mode {
            Some(mode) => attributes.with_mode(mode),
            None => attributes,
        };
        let base = self.open(spot)?;
        let content = if size <= EDIT_IN_MEMORY_BYTES_MAX {
            NewContent::bytes(self.read_original(&*base, spot, EDIT_IN_MEMORY_BYTES_MAX)?)
        } else {
            Arc::new(NewContent::Edited(EditedFile::new(base, size)))
        };
        Ok(NewFile { content, attributes, modified: None })
    }

    pub(super) fn put(&mut self, spot: &Spot, file: NewFile) {
        let name = self.view.name_mut(spot);
        (name.now, name.mode) = (Now::File(file), None);
    }

    /// Opens the file that stands on disk, there or where it is moved from.
    pub(super) fn open(&mut self, spot: &Spot) -> Result<Arc<dyn File>, Error> {
        let (dir, name) = match self.view.stands(spot) {
            Stands::Moved(moved) => {
                let from = moved.from.clone();
                let parent = self.view.parents.of(&from).or_raced("open the directory of", from.as_path())?;
                (parent.dir, from.name().to_owned())
            }
            _ => (self.disk(spot)?, spot.name.clone()),
        };
        dir.open_file(&name, Access::Read).or_raced("open", spot.path.as_path())
    }

    /// The directory on disk that holds the original.
    pub(super) fn disk(&mut self, spot: &Spot) -> Result<Arc<dyn Dir>, Error> {
        Ok(self.view.handle(spot.dir)?.expect("an original stands in a directory on disk").dir)
    }

    /// Removes what stands at `path` and is no directory: a file, or a symlink itself.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`; else as for [`Transaction::write`].
    pub fn remove(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        if matches!(self.view.stands(&spot), Stands::Dir) {
            return Err(Error::refused(
                ErrorKind::IsADirectory,
                spot.path.as_path(),
                "it is a directory; remove_dir removes one",
            ));
        }
        self.check_not_patched(&spot)?;
        self.clear(&spot);
        Ok(())
    }

    pub(super) fn clear(&mut self, spot: &Spot) {
        let name = self.view.name_mut(spot);
        (name.now, name.mode) = (Now::Absent, None);
    }

    /// The content of the file at `path`, as this transaction leaves it. What is read is checked again at `commit`:
    /// if it has changed by then, the transaction is a conflict.
    ///
    /// # Errors
    /// `not_found`, `is_a_directory`, `unsupported` for a symlink, unless the options say to follow it.
    pub fn read(&mut self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Read)?;
        self.check_regular(&spot)?;
        if let Stands::File(file) = self.view.stands(&spot) {
            return file.content.read().on("read", spot.path.as_path());
        }
        let file = self.open(&spot)?;
        let mut bytes = self.read_original(&*file, &spot, u64::MAX)?;
        if let Stands::Patched { in_place, .. } = self.view.stands(&spot) {
            in_place.patch(&mut bytes);
        }
        Ok(bytes)
    }
}
