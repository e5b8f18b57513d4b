//! Names of whatever kind: renaming, symlinks, modes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use atomtree_recovery::image::{Attributes, Content, Image};
use atomtree_recovery::plan::Moved;
use atomtree_vfs::Kind;

use super::Transaction;
use super::lookup::{Purpose, asked, check_mode, exists};
use crate::content::{NewFile, NewSymlink};
use crate::error::{Error, ErrorKind, OnPath};
use crate::view::{Now, Spot, Stands};

/// The longest target of a symlink, as the kernel takes it.
const TARGET_BYTES_MAX: usize = 4095;

impl Transaction {
    /// Renames a file, directory or symlink, replacing what stands at `to` like `rename(2)`: a file or symlink, or by a
    /// directory an empty one. Directories above `to` are made. What is renamed keeps its mode, owner, ACLs, extended
    /// attributes and time of modification, and a directory everything in it.
    ///
    /// A regular file of up to `inline_bytes_max` bytes with a single name and without holes gets a new inode, by which
    /// it travels in the log; everything else keeps its own. Renaming a directory costs the same whatever lies in it.
    ///
    /// Whatever keeps its inode makes the transaction a barrier: it settles the store first if something at or below
    /// either name is not settled, syncs the file system before the log, commits alone, and is settled at once.
    ///
    /// # Errors
    /// `not_found` if nothing stands at `from`; `is_a_directory`, `not_a_directory` and `not_empty` for a target that
    /// can't be replaced; `invalid_input` for a directory that would come to lie in itself; else as for
    /// [`Transaction::write`].
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let from = self.existing(from.as_ref(), Purpose::Name)?;
        let (given, asked) = (to.as_ref(), asked(to.as_ref())?);
        let is_dir = matches!(self.view.stands(&from), Stands::Dir);
        self.check_not_patched(&from)?;
        if is_dir {
            self.check_moves(&from)?;
        }
        // A link takes the place of another; a file does only if it may.
        let purpose = match self.view.stands(&from) {
            Stands::Dir | Stands::Symlink(_) => Purpose::Name,
            _ => Purpose::Write,
        };
        let target = self.touch(&asked, purpose)?;
        let place = target.as_ref().map_or(&asked, |target| &target.path);
        if is_dir && place != &from.path && place.is_at_or_below(&from.path) {
            let reason = format!("{} cannot be moved into itself", from.path);
            return Err(Error::refused(ErrorKind::InvalidInput, given, reason));
        }
        if target.as_ref().is_some_and(|target| (target.dir, &target.name) == (from.dir, &from.name)) {
            return Ok(());
        }
        if let Some(target) = &target {
            self.check_replaceable(target, is_dir)?;
        }
        let moving = if is_dir { None } else { Some(self.take_up(&from)?) };
        // Whatever can fail comes before the source gives its name up.
        let to = match target {
            Some(target) => target,
            None => self.make_spot(&asked)?,
        };
        if is_dir {
            self.check_inheritance(&from, &to)?;
        }
        if matches!(self.view.stands(&to), Stands::Dir) {
            self.view.remove_dir(&to)?;
        }
        match moving {
            Some(now) => {
                self.clear(&from);
                let name = self.view.name_mut(&to);
                (name.now, name.mode) = (now, None);
                self.settle_return(&to);
                Ok(())
            }
            None => self.view.move_dir(&from, &to),
        }
    }

    /// Whether a directory that is still to be made gets the same from where it shall stand as from where it was asked
    /// for: it is made there.
    fn check_inheritance(&mut self, from: &Spot, to: &Spot) -> Result<(), Error> {
        let id = self.view.dir_at(from)?;
        if self.view.dir(id).made.is_none()
            || self.defaults_in(from.dir)?.acl == self.defaults_in(to.dir)?.acl
        {
            return Ok(());
        }
        let reason = "it is made by this transaction under another default ACL; make it where it shall stand";
        Err(Error::refused(ErrorKind::Unsupported, from.path.as_path(), reason))
    }

    /// Whether something renamed may take the place of what stands there.
    pub(super) fn check_replaceable(&mut self, target: &Spot, by_dir: bool) -> Result<(), Error> {
        let refused = |kind, reason: &str| Err(Error::refused(kind, target.path.as_path(), reason));
        self.check_not_patched(target)?;
        match (self.view.stands(target), by_dir) {
            (Stands::Nothing, _) => Ok(()),
            (Stands::Dir, false) => {
                refused(ErrorKind::IsADirectory, "it is a directory, and only a directory can take its place")
            }
            (Stands::Dir, true) => {
                let id = self.view.dir_at(target)?;
                if self.view.list(id)?.is_empty() {
                    return Ok(());
                }
                refused(ErrorKind::NotEmpty, "it is a directory that is not empty; remove it first")
            }
            (_, true) => refused(ErrorKind::NotADirectory, "a directory cannot take the place of a file"),
            (Stands::Inode { image: Image { kind: Kind::Other, .. } }, false) => {
                refused(ErrorKind::Unsupported, "it is a device, socket or pipe; remove it first")
            }
            (_, false) => self.check_hard_links(target),
        }
    }

    /// What is at a name, in a form that can stand at another.
    pub(super) fn take_up(&mut self, from: &Spot) -> Result<Now, Error> {
        let inline = self.shared.engine.options.inline_bytes_max;
        let mode = self.view.name(from).mode;
        let image = match self.view.stands(from) {
            Stands::Inode { image } => image.clone(),
            Stands::Symlink(_) | Stands::Moved(_) => match &self.view.name(from).now {
                Now::Original => self.view.name(from).original.clone().expect("it stands on disk"),
                now => return Ok(now.clone()),
            },
            Stands::File(file) => return Ok(Now::File(file.clone())),
            Stands::Nothing | Stands::Dir | Stands::Patched { .. } => {
                unreachable!("none of these is taken up")
            }
        };
        let keeps_inode = self.shared.engine.moves_inodes;
        if !keeps_inode && image.kind == Kind::Symlink {
            let Content::Inline(target) = &image.content else { unreachable!("a symlink's image holds it") };
            let (target, attributes) = (target.to_vec(), image.attributes);
            return Ok(Now::Symlink(NewSymlink { target, attributes }));
        }
        if !keeps_inode {
            self.check_regular(from)?;
            self.check_hard_links(from)?;
        }
        let travels = image.links == 1
            && image.size <= inline
            // Who may not read it may rename it all the same.
            && image.content != Content::Unread
            // A copy would fill the holes.
            && !self.disk(from)?.metadata(&from.name).or_raced("look at", from.path.as_path())?.is_sparse;
        if image.kind == Kind::File && (!keeps_inode || travels) {
            return Ok(Now::File(NewFile { modified: Some(image.modified), ..self.loaded(from)? }));
        }
        let directory = self.view.dir(from.dir);
        let place = directory.disk_path(&from.name).expect("an original stands on disk");
        let attributes =
            mode.map_or_else(|| image.attributes.clone(), |mode| image.attributes.with_mode(mode));
        let target = match (&image.kind, &image.content) {
            (Kind::Symlink, Content::Inline(target)) => Some(target.to_vec()),
            _ => None,
        };
        let moved = Moved {
            from: place,
            from_parent: directory.inode.unwrap_or(0),
            kind: image.kind,
            inode: image.inode,
            born: image.born,
            size: image.size,
            before: image.attributes,
            attributes,
        };
        Ok(Now::Moved { moved: Box::new(moved), target })
    }

    /// An inode that is back where it stood has not moved.
    pub(super) fn settle_return(&mut self, spot: &Spot) {
        let place = self.view.dir(spot.dir).disk_path(&spot.name);
        let name = self.view.name_mut(spot);
        if let (Now::Moved { moved, .. }, Some(original)) = (&name.now, &name.original)
            && place.as_ref() == Some(&moved.from)
        {
            let mode = moved.attributes.mode;
            name.mode = (mode != original.attributes.mode).then_some(mode);
            name.now = Now::Original;
        }
    }

    /// Makes a symlink at `path` that leads to `target`, which is stored verbatim and need not exist. Directories above
    /// it are made. A symlink that stands there already is replaced; atomically, as everything.
    ///
    /// # Errors
    /// `exists` if anything else stands there; `invalid_input` for a target that is empty, longer than 4095 bytes or
    /// holds a zero byte; else as for [`Transaction::write`].
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), Error> {
        let asked = asked(path.as_ref())?;
        let target = target.as_ref().as_os_str().as_bytes();
        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
            let reason =
                format!("a symlink's target is 1 to {TARGET_BYTES_MAX} bytes, and none of them zero");
            return Err(Error::refused(ErrorKind::InvalidInput, asked.as_path(), reason));
        }
        let spot = match self.view.spot(&asked)? {
            Some(spot) => spot,
            None => self.make_spot(&asked)?,
        };
        if !matches!(self.view.stands(&spot), Stands::Nothing | Stands::Symlink(_)) {
            return Err(exists(&spot));
        }
        // The mode of a symlink is always the same, and asked by nobody.
        let attributes = Attributes {
            mode: 0o777,
            xattrs: Vec::new(),
            ..self.default_attributes(spot.dir, &spot.path, 0o777, None, Kind::File)?
        };
        let name = self.view.name_mut(&spot);
        (name.now, name.mode) = (Now::Symlink(NewSymlink { target: target.to_vec(), attributes }), None);
        Ok(())
    }

    /// Where the symlink at `path` leads, as this transaction leaves it. The answer is checked again at `commit`.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` if something else stands there.
    pub fn read_link(&mut self, path: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let spot = self.existing(path.as_ref(), Purpose::Name)?;
        self.note_read(&spot);
        match self.view.stands(&spot) {
            Stands::Symlink(target) => Ok(PathBuf::from(OsStr::from_bytes(target))),
            _ => Err(Error::refused(ErrorKind::InvalidInput, spot.path.as_path(), "it is no symlink")),
        }
    }

    /// Sets the permission bits (`0o7777` at most) of the file or directory at `path`.
    ///
    /// # Errors
    /// `not_found`; `invalid_input` for more than permission bits; `unsupported` for a symlink, unless the options say
    /// to follow it; `permission`.
    pub fn set_mode(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        check_mode(path.as_ref(), Some(mode))?;
        let spot = self.existing(path.as_ref(), Purpose::ChangeMode)?;
        self.check_not_patched(&spot)?;
        if matches!(self.view.stands(&spot), Stands::Dir) {
            let id = self.view.dir_at(&spot)?;
            let directory = self.view.dir_mut(id);
            match &mut directory.made {
                Some(new) => new.attributes = new.attributes.with_mode(mode),
                None => directory.mode = Some(mode),
            }
            return Ok(());
        }
        let name = self.view.name_mut(&spot);
        match &mut name.now {
            Now::File(file) => file.attributes = file.attributes.with_mode(mode),
            Now::Moved { moved, .. } => moved.attributes = moved.attributes.with_mode(mode),
            _ => {
                let is_news = name.original.as_ref().is_none_or(|original| original.attributes.mode != mode);
                name.mode = is_news.then_some(mode);
            }
        }
        Ok(())
    }
}
