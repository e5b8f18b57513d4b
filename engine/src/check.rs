//! The decisive check, under the commit lock: is everything that a transaction read or replaces still what it saw?
//!
//! Identity and times answer fast where they can; content answers where they can't.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use atomtree_recovery::apply::{Parent, Parents, is_no_directory};
use atomtree_recovery::image::{Content, Image, ImageLimits, is_recent};
use atomtree_recovery::plan::{After, Change, Moved};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Kind, Metadata, is_symlink_error};

use crate::error::{Error, ErrorKind, OnPath};
use crate::stage::{Planned, Prepared};
use crate::store::Engine;
use crate::view::{Read, list_of};

impl Engine {
    /// The decisive check: everything that was read or is replaced is still what was seen, and every staged file is
    /// still the one that was staged.
    pub(crate) fn check(&self, parents: &mut Parents, prepared: &mut Prepared) -> Result<(), Error> {
        for read in &mut prepared.reads {
            match read {
                Read::Name { path, parent, original } => {
                    if let Some(fresh) = self.check_name(parents, path, *parent, original.as_ref())? {
                        *original = Some(fresh);
                    }
                }
                Read::Listing { path, inode, names } => check_listing(parents, path, *inode, names)?,
            }
        }
        let mut made_meanwhile: HashSet<TreePath> = HashSet::new();
        // Directories, by inode, in which names may still be changed.
        let mut writable: HashSet<u64> = HashSet::new();
        // Directories that are not there and that this transaction makes: nothing can stand in them.
        let mut to_be_made: HashSet<TreePath> = HashSet::new();
        for planned in &mut prepared.planned {
            let change = &mut planned.change;
            if let Some(moved) = change.moved() {
                check_moved(parents, moved)?;
                check_writable(parents, &moved.from, &mut writable)?;
            }
            if let Some(disk) = &planned.disk {
                let is_in_new_dir = disk.parent().is_some_and(|parent| to_be_made.contains(&parent));
                if planned.is_implied && change.before.is_none() {
                    // Somebody else has made the directory: then there is nothing to make, and nothing in the way.
                    if !is_in_new_dir && is_directory(parents, disk).on("look at", disk.as_path())? {
                        made_meanwhile.insert(change.path.clone());
                        continue;
                    }
                }
                if change.patched().is_some() {
                    check_patched(parents, disk, change)?;
                    continue;
                }
                if !is_in_new_dir && !matches!(change.after, After::Same { .. }) {
                    check_writable(parents, disk, &mut writable)?;
                }
                if matches!(change.after, After::Dir { .. }) && change.before.is_none() {
                    to_be_made.insert(disk.clone());
                }
                if !is_in_new_dir
                    && let Some(fresh) =
                        self.check_name(parents, disk, change.parent, change.before.as_ref())?
                {
                    if change.before.as_ref().is_some_and(|before| fresh.links > before.links)
                        && fresh.kind != Kind::Dir
                    {
                        let reason = "it was given another hard link since the transaction looked";
                        return Err(Error::conflict(disk.as_path(), reason));
                    }
                    change.before = Some(fresh);
                }
                if change.takes_directory() {
                    self.check_contents(parents, disk, &planned.change, &planned.listings)?;
                }
            }
            self.check_slot(&planned.change)?;
        }
        if !made_meanwhile.is_empty() {
            prepared.planned.retain(|planned| !made_meanwhile.contains(&planned.change.path));
        }
        self.check_inodes(prepared)
    }

    /// Whether directories can be made that are only made by the apply; files have their inodes by now.
    fn check_inodes(&self, prepared: &Prepared) -> Result<(), Error> {
        let is_made = |planned: &&Planned| matches!(planned.change.after, After::Dir { .. });
        let needed = prepared.planned.iter().filter(is_made).count() as u64;
        if needed == 0 {
            return Ok(());
        }
        // And a file for the manifest of the checkpoint.
        let needed = needed + 1;
        match self.places.root.available_inodes().on("count the free inodes of", ".")? {
            Some(available) if available < needed => {
                let reason = format!(
                    "{needed} directories and files are to be made, and the file system has {available} inodes left"
                );
                Err(Error::invalid(ErrorKind::NoSpace, reason))
            }
            _ => Ok(()),
        }
    }

    /// Whether the new content still waits in its slot.
    fn check_slot(&self, change: &Change<'_>) -> Result<(), Error> {
        let (inode, kind) = match &change.after {
            After::File { inode, .. } => (*inode, Kind::File),
            After::Symlink { inode, .. } => (*inode, Kind::Symlink),
            _ => return Ok(()),
        };
        let slot = change.slot.as_ref().expect("a new content has a slot");
        match self.stage().dir().metadata(&slot.os_name()) {
            Ok(found) if found.kind == kind && found.inode == inode => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).on("look at the staged content of", change.path.as_path());
            }
            _ => {}
        }
        let reason = "its staged content in .atomtree/stage was removed or replaced by another program";
        Err(Error::refused(ErrorKind::Io, change.path.as_path(), reason))
    }

    /// Whether a directory that goes still holds what was seen in it, and nothing else.
    fn check_contents(
        &self,
        parents: &mut Parents,
        disk: &TreePath,
        change: &Change<'_>,
        listings: &[(Box<[u8]>, BTreeSet<OsString>)],
    ) -> Result<(), Error> {
        let dir = parents.of(disk).on("open the directory of", disk.as_path())?.dir;
        let top = dir.open_dir(Path::new(disk.name())).on("open", disk.as_path())?;
        let images: HashMap<&[u8], &Image<'_>> =
            change.contents.iter().map(|(path, image)| (path.as_bytes(), image)).collect();
        for (below, expected) in listings {
            let below = Path::new(OsStr::from_bytes(below));
            let path = disk.as_path().join(below);
            let dir = match top.open_dir(below) {
                Err(error) if is_no_directory(&error) => {
                    return Err(Error::conflict(
                        path,
                        "it was removed or replaced since the transaction looked",
                    ));
                }
                opened => opened.on("open", &path)?,
            };
            let mut found = BTreeSet::new();
            for entry in dir.list().on("list", &path)? {
                let below = below.join(&entry.name);
                let conflict = |reason: &str| Err(Error::conflict(path.join(&entry.name), reason));
                if !expected.contains(&entry.name) {
                    return conflict("it was put into a directory that is to be removed");
                }
                if let Some(image) = images.get(below.as_os_str().as_bytes()) {
                    if dir.metadata(&entry.name).is_ok_and(|found| found.is_fixed) {
                        let reason = "it was made immutable or append-only since the transaction looked";
                        return Err(Error::refused(ErrorKind::Permission, path.join(&entry.name), reason));
                    }
                    match image.is_unchanged_at(&*self.places.vfs, &*dir, &entry.name) {
                        Ok(true) => {}
                        Ok(false) => return conflict("it was changed since the transaction looked"),
                        Err(error) => return Err(error).or_raced("look at", path.join(&entry.name)),
                    }
                }
                found.insert(entry.name);
            }
            if let Some(missing) = expected.difference(&found).next() {
                let reason = "it was removed or renamed since the transaction looked";
                return Err(Error::conflict(path.join(missing), reason));
            }
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
                // Nothing can stand in a directory that was not there, and one that was there would be made anew.
                let is_as_seen = seen.is_none() && parent == 0 && !is_symlink_error(&error);
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
            (None, Some(found)) => {
                let found = describe(found.kind, found.size);
                conflict(&format!("nothing stood there when the transaction looked, and {found} does now"))
            }
            (Some(seen), None) => {
                let seen = describe(seen.kind, seen.size);
                conflict(&format!(
                    "it was removed or renamed since the transaction looked, when {seen} stood there"
                ))
            }
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
        check_place(above, path.as_path(), found)?;
        if seen.has_times_of(found) && !is_recent(seen.changed, seen.captured, vfs) {
            return Ok(None);
        }
        if seen.kind == Kind::Dir && !seen.is_directory(found) {
            return Err(Error::conflict(path.as_path(), "it was replaced since the transaction looked"));
        }
        // Its times prove nothing: they are too recent to tell a second change, or they have moved although nothing
        // that counts has. The content decides.
        let limits = ImageLimits { digest_bytes: self.options.inline_bytes_max, ..ImageLimits::default() };
        let limits = match &seen.content {
            Content::Digest(_) => ImageLimits { digest_bytes: limits.digest_bytes.max(seen.size), ..limits },
            Content::Inline(_) | Content::Unread => limits,
        };
        let fresh =
            Image::capture(vfs, &*above.dir, path.name(), limits).or_raced("look at", path.as_path())?;
        let Some(fresh) = fresh else {
            return Err(Error::conflict(path.as_path(), "it was removed while it was being looked at"));
        };
        let same_content = match seen.content {
            // What lies in it is compared name by name, where it counts.
            Content::Unread if seen.kind == Kind::Dir => true,
            Content::Unread => seen.has_times_of(found),
            Content::Inline(_) | Content::Digest(_) => fresh.has_content_of(seen) == Some(true),
        };
        if fresh.kind != seen.kind || !same_content {
            let (seen, found) = (describe(seen.kind, seen.size), describe(fresh.kind, fresh.size));
            let reason = format!(
                "its content was changed since the transaction looked, when {seen} stood there; {found} does now"
            );
            return Err(Error::conflict(path.as_path(), reason));
        }
        if fresh.attributes != seen.attributes {
            let reason = "its mode, owner or extended attributes were changed since the transaction looked";
            return Err(Error::conflict(path.as_path(), reason));
        }
        Ok(Some(fresh))
    }
}

/// What stands at a name, for people.
fn describe(kind: Kind, size: u64) -> String {
    match kind {
        Kind::File => format!("a file of {size} bytes"),
        Kind::Dir => "a directory".into(),
        Kind::Symlink => "a symlink".into(),
        Kind::Other => "a special file".into(),
    }
}

/// Refuses what has become a file system of its own, or what a flag keeps from being changed.
fn check_place(above: &Parent, path: &Path, found: &Metadata) -> Result<(), Error> {
    if found.mount != above.metadata.mount {
        let reason = "something has been mounted there since the transaction looked";
        return Err(Error::refused(ErrorKind::MountPoint, path, reason));
    }
    if found.is_fixed {
        let reason = "it was made immutable or append-only since the transaction looked";
        return Err(Error::refused(ErrorKind::Permission, path, reason));
    }
    Ok(())
}

/// Whether the file that is to be patched is still the one that was seen, as long as it was, and holds what it held in the
/// sectors that are patched: what else has become of it is nobody's business.
fn check_patched(parents: &mut Parents, disk: &TreePath, change: &Change<'_>) -> Result<(), Error> {
    let (Some(seen), Some(patched)) = (&change.before, change.patched()) else {
        unreachable!("what is patched was seen")
    };
    let path = disk.as_path();
    let conflict = |reason: &str| Err(Error::conflict(path, reason));
    let above = match parents.of(disk) {
        Err(error) if is_no_directory(&error) => return conflict("its directory was moved or replaced"),
        above => above.on("open the directory of", path)?,
    };
    let file = match above.dir.metadata(disk.name()) {
        Ok(found) if !seen.is_inode(&found) => {
            return conflict("it was replaced since the transaction looked");
        }
        // For writing, so that whatever keeps it from being written is found out before it is logged.
        Ok(_) => above.dir.open_file(disk.name(), Access::ReadWrite).or_raced("open for writing", path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return conflict("it was removed or renamed since the transaction looked");
        }
        Err(error) => return Err(error).on("look at", path),
    };
    let found = file.metadata().on("look at", path)?;
    if above.metadata.inode != change.parent || !seen.is_inode(&found) {
        return conflict("it was replaced since the transaction looked");
    }
    check_place(&above, path, &found)?;
    if found.links > 1 {
        return conflict("it was given another hard link since the transaction looked");
    }
    if found.size != patched.size() {
        let reason =
            format!("it had {} bytes when the transaction looked, and has {} now", seen.size, found.size);
        return conflict(&reason);
    }
    for patch in patched.patches() {
        let mut bytes = vec![0; patch.before.len()];
        let read = file.read_exact_at(&mut bytes, patch.offset);
        let is_same = match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            read => read.on("read", path).map(|()| bytes == patch.before)?,
        };
        if !is_same {
            let end = patch.offset + patch.before.len() as u64;
            let reason =
                format!("its bytes {} to {end} were changed since the transaction looked", patch.offset);
            return conflict(&reason);
        }
    }
    // It was synced when it was staged; since then somebody may have written these sectors and put them back.
    if (found.modified, found.changed) != (seen.modified, seen.changed) {
        file.sync_data().on("sync", path)?;
    }
    Ok(())
}

/// Whether names in the directory of one may still be changed. It is nobody's fault but the transaction's own if not, so
/// it fails here and not after the commit point.
fn check_writable(parents: &mut Parents, path: &TreePath, known: &mut HashSet<u64>) -> Result<(), Error> {
    match parents.of(path) {
        Ok(above) if known.insert(above.metadata.inode) => {
            above.dir.check_writable().on("change names in the directory of", path.as_path())
        }
        // What is missing is told by who looks at the name.
        _ => Ok(()),
    }
}

/// Whether an inode that moves still stands where it stood.
fn check_moved(parents: &mut Parents, moved: &Moved) -> Result<(), Error> {
    let path = moved.from.as_path();
    let found = parents.of(&moved.from).and_then(|parent| {
        let found = parent.dir.metadata(moved.from.name())?;
        Ok((parent, found))
    });
    match found {
        Ok((above, found)) if above.metadata.inode == moved.from_parent && moved.is(&found) => {
            check_place(&above, path, &found)?;
            if (found.mode, found.uid, found.gid) != (moved.before.mode, moved.before.uid, moved.before.gid) {
                return Err(Error::conflict(
                    path,
                    "its mode or owner was changed since the transaction looked",
                ));
            }
            Ok(())
        }
        Ok(_) => Err(Error::conflict(path, "it was replaced since the transaction looked")),
        Err(error) if is_no_directory(&error) => {
            Err(Error::conflict(path, "it was moved or removed since the transaction looked"))
        }
        Err(error) => Err(error).on("look at", path),
    }
}

/// Whether a directory holds the names that it held, of the same kinds.
fn check_listing(
    parents: &mut Parents,
    path: &[u8],
    inode: u64,
    names: &BTreeMap<OsString, Kind>,
) -> Result<(), Error> {
    let path = Path::new(OsStr::from_bytes(path));
    let dir = match parents.open(path) {
        Ok(parent) if parent.metadata.inode == inode => parent.dir,
        Ok(_) => return Err(Error::conflict(path, "the directory was replaced since it was listed")),
        Err(error) if is_no_directory(&error) => {
            return Err(Error::conflict(path, "the directory was removed since it was listed"));
        }
        Err(error) => return Err(error).on("open", path),
    };
    let found = list_of(&*dir, path.as_os_str().is_empty()).on("list", path)?;
    let differs = |(name, kind): (&OsString, &Kind)| found.get(name) != Some(kind);
    let gone = names.iter().find(|(name, kind)| differs((name, kind))).map(|(name, _)| name);
    let other = gone.or_else(|| found.keys().find(|name| !names.contains_key(*name)));
    match other {
        None => Ok(()),
        Some(name) => {
            let reason = "it came, went or changed its kind since its directory was listed";
            Err(Error::conflict(path.join(name), reason))
        }
    }
}

fn is_directory(parents: &mut Parents, path: &TreePath) -> io::Result<bool> {
    match parents.of(path).and_then(|parent| parent.dir.metadata(path.name())) {
        Ok(found) => Ok(found.kind == Kind::Dir),
        Err(error) if is_no_directory(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
