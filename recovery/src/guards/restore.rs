//! Puts everything under a guard back: the second, and last, code that changes the user's tree.
//!
//! What was created goes first, the deepest first; then directories come back, parents first, and with them files, each
//! by one rename of the image that was made ready for it; last, directories get their modes, owners and attributes. So
//! nothing needs space but names, for which some is kept back, and whoever still holds an edited file open holds an inode
//! that is in the tree no more. A name that is as it was is left alone, so whatever interrupts this, it can be done again.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Kind};

use super::changes::{Changes, Difference, Trust, compare, is_same_content};
use super::manifest::{ImageOf, Manifest, Original};
use super::patterns::Patterns;
use super::walk::{Found, OWNER_RIGHTS, Purpose, open_to_owner, walk};
use super::{GuardPlaces, RESERVE_FILE};
use crate::apply::{Parents, is_no_directory, is_no_space};
use crate::error::{Doing, Error};
use crate::image::{Attributes, Digest, MADE_DIR_MODE, open_own};
use crate::places::Places;
use crate::tree_path::{NAME_BYTES_MAX, TreePath};

/// Where in the guard's directory a name is made before it is renamed into the tree.
const PASSING_NAME: &str = "passing";

/// What a roll back did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// What had changed, and is as it was.
    pub changes: Changes,
    /// What is kept of it: the name, and where it is in the store.
    pub kept: Vec<(TreePath, String)>,
    /// Names that could not be put back, because another program destroyed their images.
    pub lost: Vec<TreePath>,
}

/// Whether what is replaced and removed is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is gone.
    Nothing,
    /// In the store's quarantine.
    InQuarantine,
}

/// A roll back of one guard.
pub(super) struct Restore<'a> {
    places: &'a Places,
    guards: &'a GuardPlaces,
    /// The guard's own directory.
    guard: &'a dyn Dir,
    manifest: &'a Manifest,
    parents: Parents,
    trust: Trust,
    keep: Keep,
    /// What the file system is synced through; see [`super::Announced`]. Images were durable before.
    sync_root: Arc<dyn Dir>,
    /// Directory of this guard in the quarantine, made when something is put there.
    quarantine: Quarantine,
    done: RolledBack,
}

struct Quarantine {
    name: String,
    dir: Option<Arc<dyn Dir>>,
}

/// Puts back what has changed. Everything is durable when this returns, and the guard still exists.
pub(super) fn restore(
    places: &Places,
    guards: &GuardPlaces,
    guard: (&str, &dyn Dir),
    manifest: &Manifest,
    trust: Trust,
    keep: Keep,
) -> Result<RolledBack, Error> {
    let patterns = Patterns::new(manifest.patterns.clone())
        .map_err(|reason| Error::GuardManifest { path: format!("guards/{}/manifest", guard.0), reason })?;
    let found = walk(places, &patterns, Purpose::Restore)?;
    let difference = compare(places, manifest, &found, trust)?;
    let mut restore = Restore {
        places,
        guards,
        guard: guard.1,
        manifest,
        parents: Parents::new(places.root.clone()).doing("read the metadata of", ".")?,
        trust,
        keep,
        sync_root: places.root.open_dir(Path::new("")).doing("open", ".")?,
        quarantine: Quarantine { name: format!("guard-{}", guard.0), dir: None },
        done: RolledBack { changes: difference.names(manifest, &found), ..RolledBack::default() },
    };
    restore.remove_created(&found, &difference)?;
    restore.put_back(&found, &difference)?;
    restore.close_directories(&found)?;
    restore.sync_root.sync_filesystem().doing("sync the file system of", ".")?;
    Ok(restore.done)
}

impl Restore<'_> {
    /// Removes what was not there, and what is in the way of what was, the deepest first.
    fn remove_created(&mut self, found: &[Found], difference: &Difference) -> Result<(), Error> {
        let is_in_the_way = |(index, at): &&(usize, usize)| {
            self.manifest.originals[*index].kind() != found[*at].metadata.kind
                && [self.manifest.originals[*index].kind(), found[*at].metadata.kind].contains(&Kind::Dir)
        };
        let in_the_way = difference.changed.iter().filter(is_in_the_way).map(|(_, at)| *at);
        let mut going: Vec<usize> = difference.created.iter().copied().chain(in_the_way).collect();
        going.sort_unstable_by(|one, other| found[*other].path.cmp(&found[*one].path));
        // Directories, not guarded themselves, out of which something went.
        let mut emptied: HashSet<TreePath> = HashSet::new();
        for at in going {
            let Found { path, metadata, is_guarded } = &found[at];
            if *is_guarded || emptied.contains(path) {
                self.remove(path, metadata.kind).doing("remove", path)?;
                emptied.extend(path.parent());
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &TreePath, kind: Kind) -> io::Result<()> {
        let is_known = self.manifest.find(path.as_bytes()).is_some();
        let dir = self.dir_of(path)?;
        if kind != Kind::Dir {
            if self.keep == Keep::InQuarantine {
                return self.quarantine(&*dir, path);
            }
            return self.with_room(|| dir.remove_file(path.name())).or_else(unless_gone);
        }
        match self.with_room(|| dir.remove_dir(path.name())) {
            // Something is left in it that is not guarded. What has to stand there moves it out of the way.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                if is_known {
                    self.quarantine(&*dir, path)
                } else {
                    Ok(())
                }
            }
            removed => removed.or_else(unless_gone),
        }
    }

    /// Puts every original in its place that is not there.
    fn put_back(&mut self, found: &[Found], difference: &Difference) -> Result<(), Error> {
        self.parents.forget();
        let standing: HashSet<usize> = (difference.changed.iter())
            .filter(|(_, at)| found[*at].metadata.kind != Kind::Dir)
            .map(|(index, _)| *index)
            .collect();
        let mut going: Vec<usize> = difference
            .changed
            .iter()
            .map(|(index, _)| *index)
            .chain(difference.removed.iter().copied())
            .collect();
        going.sort_unstable();
        for index in &going {
            let original = &self.manifest.originals[*index];
            let path = original.tree_path();
            // A directory that is not guarded comes back with what is guarded in it.
            if original.is_guarded {
                let made = match (original.kind(), path.parent()) {
                    (Kind::Dir, _) => self.make_dirs(&path),
                    (_, Some(above)) => self.make_dirs_once(&above),
                    (_, None) => Ok(()),
                };
                made.doing("put back", &path)?;
            }
        }
        if self.has_other_dirs(found) {
            // A power cut could take back what brought such a directory to its name, and leave there what was put into it.
            self.sync_root.sync_filesystem().doing("sync the file system of", ".")?;
        }
        for index in going {
            let original = &self.manifest.originals[index];
            if original.is_guarded && original.kind() != Kind::Dir {
                let path = original.tree_path();
                self.put_file(original, &path, standing.contains(&index)).doing("put back", &path)?;
            }
        }
        Ok(())
    }

    /// Whether any directory is not the one that was captured.
    fn has_other_dirs(&self, found: &[Found]) -> bool {
        let found: HashMap<&[u8], u64> =
            dirs_of(found).map(|one| (one.path.as_bytes(), one.metadata.inode)).collect();
        let mut dirs = self.manifest.originals.iter().filter(|original| original.kind() == Kind::Dir);
        dirs.any(|dir| found.get(dir.path.as_slice()) != Some(&dir.inode))
    }

    /// Makes the directory, and those above, where there is none. They get their attributes at the end.
    fn make_dirs(&mut self, path: &TreePath) -> io::Result<()> {
        if let Some(above) = path.parent() {
            self.make_dirs_once(&above)?;
        }
        let dir = self.dir_of(path)?;
        match dir.metadata(path.name()) {
            Ok(found) if found.kind == Kind::Dir => return Ok(()),
            // Not guarded itself, and in the way of what is.
            Ok(_) => self.quarantine(&*dir, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.with_room(|| dir.create_dir(path.name(), MADE_DIR_MODE))
    }

    fn make_dirs_once(&mut self, path: &TreePath) -> io::Result<()> {
        match self.parents.open(path.as_path()) {
            Ok(_) => Ok(()),
            Err(error) if is_no_directory(&error) => self.make_dirs(path),
            Err(error) => Err(error),
        }
    }

    fn put_file(&mut self, original: &Original, path: &TreePath, is_standing: bool) -> io::Result<()> {
        let to = self.dir_of(path)?;
        if is_standing && self.keep == Keep::InQuarantine {
            self.quarantine(&*to, path)?;
        }
        let put = match (&original.image, &original.twin) {
            (Some(image), _) => {
                let name = OsStr::new(&image.name);
                if !self.is_intact(original, image)? {
                    Err(io::ErrorKind::NotFound.into())
                } else if original.kind() == Kind::Other {
                    self.put_special(original, name, &*to, path)
                } else {
                    self.with_room(|| self.guards.cache.rename_over(name, &*to, path.name()))
                }
            }
            (None, Some(first)) => {
                self.put_twin(&TreePath::from_bytes(first).map_err(io::Error::other)?, &*to, path)
            }
            (None, None) => {
                unreachable!("what is no directory has an image or a twin: manifests are read that way")
            }
        };
        match put {
            // Only another program can have taken it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // In a copy of the tree what an interrupted roll back had put there is another inode.
                if !has_content_of(original, &*to, path.name())? {
                    self.done.lost.push(path.clone());
                }
                Ok(())
            }
            put => put,
        }
    }

    /// Whether the image has the content that it had when it was made. Then it gets back what else belongs to it.
    fn is_intact(&self, original: &Original, image: &ImageOf) -> io::Result<bool> {
        let name = OsStr::new(&image.name);
        let cache = &*self.guards.cache;
        let found = match cache.metadata(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            read => read?,
        };
        if found.kind != original.kind() {
            return Ok(false);
        }
        match original.kind() {
            Kind::File => {
                let file = open_own(cache, name)?;
                if Digest::of_file(&*file)? != (original.size, image.digest) {
                    return Ok(false);
                }
                mend(original, &*file)?;
                Ok(true)
            }
            Kind::Symlink => {
                if Digest::of(cache.read_link(name)?.as_encoded_bytes()) != image.digest {
                    return Ok(false);
                }
                let Attributes { uid, gid, .. } = original.attributes;
                if (found.uid, found.gid) != (uid, gid) {
                    cache.set_owner_of(name, uid, gid)?;
                    // As in `mend`. A symlink has no other sync.
                    self.sync_root.sync_filesystem()?;
                }
                Ok(true)
            }
            Kind::Other | Kind::Dir => Ok(true),
        }
    }

    /// Gives the first name's inode this one again.
    fn put_twin(&mut self, first: &TreePath, to: &dyn Dir, path: &TreePath) -> io::Result<()> {
        let passing = OsStr::new(PASSING_NAME);
        self.guard.remove_file(passing).or_else(unless_gone)?;
        let from = self.dir_of(first)?;
        self.with_room(|| from.link(first.name(), self.guard, passing))?;
        self.with_room(|| self.guard.rename_over(passing, to, path.name()))?;
        // A rename of one name over another of the same inode leaves both.
        self.guard.remove_file(passing).or_else(unless_gone)
    }

    /// A special file's image is the inode itself.
    fn put_special(
        &self,
        original: &Original,
        image: &OsStr,
        to: &dyn Dir,
        path: &TreePath,
    ) -> io::Result<()> {
        let Attributes { mode, uid, gid, .. } = original.attributes;
        let cache = &self.guards.cache;
        let found = cache.metadata(image)?;
        let has_other_owner = (found.uid, found.gid) != (uid, gid);
        if has_other_owner {
            cache.set_owner_of(image, uid, gid)?;
        }
        // Another owner may have cost it some of its mode's bits.
        if has_other_owner || found.mode != mode {
            cache.set_mode_of(image, mode)?;
        }
        self.with_room(|| cache.rename_over(image, to, path.name()))?;
        cache.remove_file(image).or_else(unless_gone)
    }

    /// Gives directories the mode, owner and attributes that they had, the deepest first.
    fn close_directories(&mut self, found: &[Found]) -> Result<(), Error> {
        self.parents.forget();
        let by_path: HashMap<&[u8], &Found> = dirs_of(found).map(|one| (one.path.as_bytes(), one)).collect();
        for original in self.manifest.originals.iter().rev().filter(|original| original.kind() == Kind::Dir) {
            let path = original.tree_path();
            self.close_directory(original, &path, by_path.get(original.path.as_slice()).copied())
                .doing("put the mode, owner and attributes back of", &path)?;
        }
        Ok(())
    }

    fn close_directory(
        &mut self,
        original: &Original,
        path: &TreePath,
        found: Option<&Found>,
    ) -> io::Result<()> {
        let above = match self.parents.of(path) {
            Ok(above) => above.dir,
            // One that is not guarded has gone, and nothing in it is missed.
            Err(error) if is_no_directory(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = match above.metadata(path.name()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read?,
        };
        let wanted = &original.attributes;
        if now.kind != Kind::Dir {
            return Ok(());
        }
        if !original.is_guarded {
            // Its mode is its own affair, unless it was opened, or made, here.
            let is_opened = now.inode == original.inode && now.mode == wanted.mode | OWNER_RIGHTS;
            let is_made = now.inode != original.inode && now.mode & 0o1777 == MADE_DIR_MODE;
            if !is_opened && !is_made {
                return Ok(());
            }
        }
        // Nobody has touched it, and neither has this.
        let is_untouched =
            found.is_some_and(|found| original.has_times_of(&found.metadata) && found.metadata == now);
        if is_untouched && self.trust == Trust::Times {
            return Ok(());
        }
        let dir = above.open_dir(Path::new(path.name()))?;
        set_on_dir(wanted, &*dir)
    }

    /// The directory of a name, open for changes.
    fn dir_of(&mut self, path: &TreePath) -> io::Result<Arc<dyn Dir>> {
        let opened = self.parents.of(path).and_then(|above| above.dir.check_writable().map(|()| above.dir));
        match (opened, path.parent()) {
            (Err(error), Some(above)) if error.kind() == io::ErrorKind::PermissionDenied => {
                open_to_owner(self.places, &above)?;
                Ok(self.parents.of(path)?.dir)
            }
            (opened, _) => opened,
        }
    }

    /// Tries again with the guard's reserve given up if there was no space.
    fn with_room(&self, mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        match call() {
            Err(error) if is_no_space(&error) => {
                let reserve = self.guard.open_file(OsStr::new(RESERVE_FILE), Access::ReadWrite)?;
                reserve.set_len(0)?;
                call()
            }
            result => result,
        }
    }

    /// Moves what stands at the name into the quarantine, under its own path.
    fn quarantine(&mut self, dir: &dyn Dir, path: &TreePath) -> io::Result<()> {
        let quarantine = self.quarantine_dir()?;
        let mut into = quarantine.clone();
        let mut kept = format!("quarantine/{}", self.quarantine.name);
        let components: Vec<&OsStr> = path.as_path().iter().collect();
        for above in &components[..components.len() - 1] {
            let (dir, name) = self.make_dir_to_tell(&*into, above)?;
            into = dir;
            kept = format!("{kept}/{name}");
        }
        // An interrupted roll back may have put something there already.
        for number in 0..u32::MAX {
            let name = name_to_tell(path.name(), number);
            match self.with_room(|| dir.rename(path.name(), &*into, OsStr::new(&name))) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
                Ok(()) => {
                    kept = format!("{kept}/{name}");
                    self.done.kept.push((path.clone(), kept));
                    return Ok(());
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// A directory in the quarantine for what was in the one of this name. Two names may be told as one, the other a file's.
    fn make_dir_to_tell(&self, into: &dyn Dir, name: &OsStr) -> io::Result<(Arc<dyn Dir>, String)> {
        for number in 0..u32::MAX {
            let told = name_to_tell(name, number);
            match self.with_room(|| into.create_dir(OsStr::new(&told), 0o700)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match into.open_dir(Path::new(&told)) {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                opened => return opened.map(|dir| (dir, told)),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn quarantine_dir(&mut self) -> io::Result<Arc<dyn Dir>> {
        if let Some(dir) = &self.quarantine.dir {
            return Ok(dir.clone());
        }
        let name = OsString::from(&self.quarantine.name);
        let quarantine = &self.places.quarantine;
        match self.with_room(|| quarantine.create_dir(&name, 0o700)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let dir = quarantine.open_dir(Path::new(&name))?;
        self.quarantine.dir = Some(dir.clone());
        Ok(dir)
    }
}

/// Gives an image back what belongs to it: a command that was let loose on everything it finds in a tree has met the images
/// too, and changed their modes, owners, attributes or times.
fn mend(original: &Original, image: &dyn File) -> io::Result<()> {
    let (wanted, modified) = (&original.attributes, original.modified());
    if image.metadata()?.modified == modified && Attributes::of_file(image)? == *wanted {
        return Ok(());
    }
    wanted.set_on_file(image)?;
    image.set_modified(modified)?;
    // Before it is in the tree: there its inode alone says that it was put back, after a power cut in the middle of this.
    image.sync_all()
}

/// The name under which something goes to the quarantine, as a text that tells where it is; another for each number.
fn name_to_tell(name: &OsStr, number: u32) -> String {
    let mut told = name.to_string_lossy().into_owned();
    let suffix = if number > 0 { format!("~{number}") } else { String::new() };
    // What stands for a byte that is no text is longer than that.
    told.truncate(told.floor_char_boundary(NAME_BYTES_MAX - suffix.len()));
    told + &suffix
}

/// Whether what stands at the name has the original's content, whatever inode it is.
fn has_content_of(original: &Original, dir: &dyn Dir, name: &OsStr) -> io::Result<bool> {
    match dir.metadata(name) {
        Ok(found) => Ok(found.kind == original.kind() && is_same_content(original, dir, name, &found)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn dirs_of(found: &[Found]) -> impl Iterator<Item = &Found> {
    found.iter().filter(|one| one.metadata.kind == Kind::Dir)
}

/// Gives a directory these attributes: owner first, because changing it may clear others; the mode last.
fn set_on_dir(attributes: &Attributes, dir: &dyn Dir) -> io::Result<()> {
    let found = Attributes::of_dir(dir)?;
    if (found.uid, found.gid) != (attributes.uid, attributes.gid) {
        dir.set_owner(attributes.uid, attributes.gid)?;
    }
    for xattr in attributes.xattrs.iter().filter(|xattr| !found.xattrs.contains(xattr)) {
        dir.set_dir_xattr(xattr.os_name(), &xattr.value)?;
    }
    for extra in &found.xattrs {
        let is_wanted = attributes.xattrs.iter().any(|xattr| xattr.name == extra.name);
        if !is_wanted && !extra.is_label() {
            dir.remove_dir_xattr(extra.os_name())?;
        }
    }
    // An ACL rewrites the group bits and the other way round, so the mode is compared after the attributes.
    if dir.own_metadata()?.mode != attributes.mode {
        dir.set_mode(attributes.mode)?;
    }
    Ok(())
}

fn unless_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
