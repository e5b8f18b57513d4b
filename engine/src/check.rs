//! The decisive check, under the commit lock: is everything that a transaction read or replaces still what it saw?
//!
//! Identity and times answer fast where they can; content answers where they can't.

use std::collections::HashSet;
use std::io;

use atomtree_recovery::apply::{Parent, Parents, is_no_directory};
use atomtree_recovery::image::{Content, Image, ImageLimits, is_recent};
use atomtree_recovery::plan::After;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Kind, Metadata, is_symlink_error};

use crate::error::{Error, ErrorKind, OnPath};
use crate::stage::Prepared;
use crate::store::Engine;

impl Engine {
    /// The decisive check: everything that was read or is replaced is still what was seen, and every staged file is
    /// still the one that was staged.
    pub(crate) fn check(&self, parents: &mut Parents, prepared: &mut Prepared) -> Result<(), Error> {
        for read in &mut prepared.reads {
            if let Some(fresh) = self.check_name(parents, &read.path, read.parent, read.original.as_ref())? {
                read.original = Some(fresh);
            }
        }
        let mut made_meanwhile = Vec::new();
        // Directories that are not there and that this transaction makes: nothing can stand in them.
        let mut to_be_made: HashSet<TreePath> = HashSet::new();
        for change in &mut prepared.changes {
            let is_in_new_dir = change.path.parent().is_some_and(|parent| to_be_made.contains(&parent));
            if matches!(change.after, After::Dir { .. }) {
                // Somebody else has made the directory: then there is nothing to make, and nothing in the way.
                if !is_in_new_dir
                    && is_directory(parents, &change.path).on("look at", change.path.as_path())?
                {
                    made_meanwhile.push(change.path.clone());
                    continue;
                }
                to_be_made.insert(change.path.clone());
            }
            if !is_in_new_dir
                && let Some(fresh) =
                    self.check_name(parents, &change.path, change.parent, change.before.as_ref())?
            {
                if change.before.as_ref().is_some_and(|before| fresh.links > before.links) {
                    let reason = "it was given another hard link since the transaction looked";
                    return Err(Error::conflict(change.path.as_path(), reason));
                }
                change.before = Some(fresh);
            }
            if let (After::File { inode, .. }, Some(slot)) = (&change.after, &change.slot) {
                let found = prepared.staged.dir.metadata(&slot.os_name());
                if !found.is_ok_and(|found| found.kind == Kind::File && found.inode == *inode) {
                    let reason =
                        "its staged content in .atomtree/stage was removed or replaced by another program";
                    return Err(Error::refused(ErrorKind::Io, change.path.as_path(), reason));
                }
            }
        }
        if !made_meanwhile.is_empty() {
            prepared.changes.retain(|change| !made_meanwhile.contains(&change.path));
        }
        Ok(())
    }

    /// Compares a name with what was seen there. Returns a new image if the same content and metadata have got a new
    /// inode or new times.
    fn check_name(
        &self,
        parents: &mut Parents,
        path: &TreePath,
        parent: u64,
        seen: Option<&Image<'_>>,
    ) -> Result<Option<Image<'static>>, Error> {
        let conflict = |reason: &str| Err(Error::conflict(path.as_path(), reason));
        let above = match parents.of(path) {
            Ok(above) => above,
            Err(error) if is_no_directory(&error) => {
                let is_as_seen = seen.is_none() && !is_symlink_error(&error);
                return if is_as_seen { Ok(None) } else { conflict("its directory was moved or replaced") };
            }
            Err(error) => return Err(error).on("open the directory of", path.as_path()),
        };
        if parent != 0 && above.metadata.inode != parent {
            return conflict("its directory was replaced");
        }
        let found = match above.dir.metadata(path.name()) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).on("look at", path.as_path()),
        };
        match (seen, found) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                conflict("nothing stood there when the transaction looked, and something does now")
            }
            (Some(_), None) => conflict("it was removed or renamed since the transaction looked"),
            (Some(seen), Some(found)) => self.check_image(&above, path, seen, &found),
        }
    }

    fn check_image(
        &self,
        above: &Parent,
        path: &TreePath,
        seen: &Image<'_>,
        found: &Metadata,
    ) -> Result<Option<Image<'static>>, Error> {
        let vfs = &*self.places.vfs;
        if found.mount != above.metadata.mount {
            let reason = "something has been mounted there since the transaction looked";
            return Err(Error::refused(ErrorKind::MountPoint, path.as_path(), reason));
        }
        if found.is_fixed {
            let reason = "it was made immutable or append-only since the transaction looked";
            return Err(Error::refused(ErrorKind::Permission, path.as_path(), reason));
        }
        if seen.has_times_of(found) && !is_recent(seen.changed, seen.captured, vfs) {
            return Ok(None);
        }
        // Its times prove nothing: they are too recent to tell a second change, or they have moved although nothing
        // that counts has. The content decides.
        let limits = ImageLimits { digest_bytes: self.options.inline_bytes_max, ..ImageLimits::default() };
        let limits = match &seen.content {
            Content::Digest(_) => ImageLimits { digest_bytes: limits.digest_bytes.max(seen.size), ..limits },
            Content::Inline(_) | Content::Unread => limits,
        };
        let fresh = Image::capture(vfs, &*above.dir, path.name(), limits).on("look at", path.as_path())?;
        let Some(fresh) = fresh else {
            return Err(Error::conflict(path.as_path(), "it was removed while it was being looked at"));
        };
        let same_content = match seen.content.digest() {
            Some(digest) => fresh.has_content(seen.size, digest) == Some(true),
            None => seen.has_times_of(found),
        };
        if fresh.kind != seen.kind || !same_content {
            return Err(Error::conflict(
                path.as_path(),
                "its content was changed since the transaction looked",
            ));
        }
        if fresh.attributes != seen.attributes {
            let reason = "its mode, owner or extended attributes were changed since the transaction looked";
            return Err(Error::conflict(path.as_path(), reason));
        }
        Ok(Some(fresh))
    }
}

fn is_directory(parents: &mut Parents, path: &TreePath) -> io::Result<bool> {
    match parents.of(path).and_then(|parent| parent.dir.metadata(path.name())) {
        Ok(found) => Ok(found.kind == Kind::Dir),
        Err(error) if is_no_directory(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
