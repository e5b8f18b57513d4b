//! From a path to a name in a directory that is there: symlinks on the way are followed inside the root, what the
//! transaction says comes before what stands on disk, and each name is looked at once.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use atomtree_recovery::apply::{Parent, is_no_directory};
use atomtree_recovery::image::{Image, ImageLimits};
use atomtree_recovery::tree_path::{PathError, TreePath};
use atomtree_vfs::{Access, Kind, Metadata};

use super::{DirId, Directory, Name, Now, ROOT, Spot, Stands, View, join};
use crate::error::{Error, ErrorKind, OnPath};

/// As many symlinks as the kernel follows in one path.
const SYMLINKS_MAX: usize = 40;

/// What comes of looking for a directory without following symlinks.
enum Found {
    Dir(DirId),
    /// Nothing is there, or something that is no directory: only a walk tells which.
    No,
}

/// What stands on the way to another name.
enum Quiet {
    /// Nothing, or a directory.
    Nothing,
    Symlink(Vec<u8>),
    Other,
}

impl View {
    /// The spot of a path, as far as its directory is there; `None` if it isn't. Symlinks on the way are followed inside
    /// the root; the last component is not.
    pub(crate) fn spot(&mut self, asked: &TreePath) -> Result<Option<Spot>, Error> {
        let place = self.place(asked)?;
        place.map(|(dir, name)| self.spot_in(dir, &name)).transpose()
    }

    /// The directory of a path, if it is there, and the name in it, at which nobody looks yet.
    pub(crate) fn place(&mut self, asked: &TreePath) -> Result<Option<(DirId, OsString)>, Error> {
        if let Found::Dir(dir) = self.find(parent_of(asked.as_bytes()), asked)? {
            return Ok(Some((dir, asked.name().to_owned())));
        }
        let canonical = self.walk(asked, Vec::new(), components(asked.as_bytes()).collect())?;
        self.place_of_canonical(&canonical)
    }

    fn place_of_canonical(&mut self, path: &TreePath) -> Result<Option<(DirId, OsString)>, Error> {
        match self.find(parent_of(path.as_bytes()), path)? {
            Found::Dir(dir) => Ok(Some((dir, path.name().to_owned()))),
            Found::No => Ok(None),
        }
    }

    /// The name in the directory, looked at.
    pub(crate) fn spot_in(&mut self, dir: DirId, name: &OsStr) -> Result<Spot, Error> {
        let path = self.path_in(dir, name)?;
        self.look(dir, name, &path)?;
        Ok(Spot { dir, name: name.to_owned(), path })
    }

    /// As [`View::spot_in`], for a name that goes along with its directory: what is in a file is not read.
    pub(crate) fn spot_below(&mut self, dir: DirId, name: &OsStr) -> Result<Spot, Error> {
        let limits = ImageLimits { inline_bytes: 0, digest_bytes: 0 };
        let limits = std::mem::replace(&mut self.limits, limits);
        let spot = self.spot_in(dir, name);
        self.limits = limits;
        spot
    }

    pub(crate) fn path_in(&self, dir: DirId, name: &OsStr) -> Result<TreePath, Error> {
        let path = join(&self.dir(dir).path, name);
        TreePath::from_bytes(&path)
            .map_err(|source| invalid_path(Path::new(OsStr::from_bytes(&path)), source))
    }

    /// Where a final symlink leads, itself not followed any further; `None` if its directory is not there.
    pub(crate) fn through_link(&mut self, link: &Spot, target: &[u8]) -> Result<Option<Spot>, Error> {
        let mut done: Vec<OsString> = components(link.path.as_bytes()).collect();
        done.pop();
        let mut rest = VecDeque::new();
        splice(&link.path, target, &mut rest)?;
        let canonical = self.walk(&link.path, done, rest)?;
        let place = self.place_of_canonical(&canonical)?;
        place.map(|(dir, name)| self.spot_in(dir, &name)).transpose()
    }

    /// The deepest directory on the way to a path that is there, and the components that are missing below it, the
    /// last one of the path included. To be asked after [`View::spot`] found none.
    pub(crate) fn deepest(&mut self, asked: &TreePath) -> Result<(DirId, Vec<OsString>), Error> {
        let path = self.walk(asked, Vec::new(), components(asked.as_bytes()).collect())?;
        let parts: Vec<OsString> = components(path.as_bytes()).collect();
        let mut deepest = ROOT;
        for (index, part) in parts.iter().enumerate() {
            match self.child(deepest, part, asked)? {
                Some(child) => deepest = child,
                None => return Ok((deepest, parts[index..].to_vec())),
            }
        }
        Ok((deepest, Vec::new()))
    }

    /// The directory at a name of a directory; `None` if none stands there.
    pub(crate) fn child(
        &mut self,
        dir: DirId,
        name: &OsStr,
        asked: &TreePath,
    ) -> Result<Option<DirId>, Error> {
        let path = join(&self.dir(dir).path, name);
        match self.find(&path, asked)? {
            Found::Dir(dir) => Ok(Some(dir)),
            Found::No => Ok(None),
        }
    }

    /// The directory at a path without symlinks.
    fn find(&mut self, path: &[u8], asked: &TreePath) -> Result<Found, Error> {
        if let Some(id) = self.by_path.get(path) {
            return Ok(Found::Dir(*id));
        }
        let mut above = path;
        let known = loop {
            above = parent_of(above);
            if let Some(id) = self.by_path.get(above) {
                break *id;
            }
        };
        let rest = if above.is_empty() { path } else { &path[above.len() + 1..] };
        let first = OsStr::from_bytes(rest.split(|&byte| byte == b'/').next().unwrap_or_default());
        let directory = self.dir(known);
        // What the transaction says of the name comes before what stands on disk.
        let is_taken = directory.names.get(first).is_some_and(|name| match (&name.now, &name.original) {
            (Now::Original, Some(image)) => image.kind != Kind::Dir,
            _ => true,
        });
        let Some(disk) = directory.disk.as_ref().filter(|_| directory.inode.is_some() && !is_taken) else {
            return Ok(Found::No);
        };
        let disk = join(disk, OsStr::from_bytes(rest));
        let found = match self.parents.open(Path::new(OsStr::from_bytes(&disk))) {
            Ok(parent) => parent.metadata,
            Err(error) if is_no_directory(&error) => return Ok(Found::No),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let reason = "it leads to another file system; open a store there";
                return Err(Error::refused(ErrorKind::CrossDevice, asked.as_path(), reason));
            }
            Err(error) => return Err(error).on("open the directory of", asked.as_path()),
        };
        self.adopt(path, disk, &found).map(Found::Dir)
    }

    /// Takes a directory on disk into the view.
    fn adopt(&mut self, path: &[u8], disk: Vec<u8>, found: &Metadata) -> Result<DirId, Error> {
        if self.by_inode.contains_key(&found.inode) {
            // Or it is another spelling, in a directory that folds case, where nothing can be changed anyway.
            let path = Path::new(OsStr::from_bytes(path));
            return Err(Error::conflict(path, "it was moved here since the transaction first looked"));
        }
        let id = DirId(self.dirs.len());
        self.add(Directory::new(Some(disk.into()), Some(found.inode), path.into()));
        self.by_inode.insert(found.inode, id);
        self.by_path.insert(path.into(), id);
        Ok(id)
    }

    /// Goes on from the canonical directory `done`, one component of `rest` after another, following symlinks that are
    /// not the last component. Returns the canonical path.
    fn walk(
        &mut self,
        asked: &TreePath,
        mut done: Vec<OsString>,
        mut rest: VecDeque<OsString>,
    ) -> Result<TreePath, Error> {
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            match component.as_bytes() {
                b"." => continue,
                b".." => {
                    if done.pop().is_none() {
                        return Err(outside(asked));
                    }
                    continue;
                }
                _ => done.push(component),
            }
            if rest.is_empty() {
                break;
            }
            let path = canonical(asked, &done)?;
            let Found::Dir(dir) = self.find(parent_of(path.as_bytes()), asked)? else { continue };
            if let Found::Dir(_) = self.find(path.as_bytes(), asked)? {
                continue;
            }
            match self.stands_quietly(dir, path.name(), &path)? {
                Quiet::Nothing => {}
                Quiet::Symlink(target) => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        let reason = "too many symlinks lead to it, or they lead in a circle";
                        return Err(Error::refused(ErrorKind::InvalidPath, asked.as_path(), reason));
                    }
                    done.pop();
                    splice(asked, &target, &mut rest)?;
                }
                Quiet::Other => {
                    let reason = format!("{path} is not a directory");
                    return Err(Error::refused(ErrorKind::NotADirectory, asked.as_path(), reason));
                }
            }
        }
        canonical(asked, &done)
    }

    /// What stands at a name on the way to another, without taking note of it.
    fn stands_quietly(&mut self, dir: DirId, name: &OsStr, path: &TreePath) -> Result<Quiet, Error> {
        if self.dir(dir).names.contains_key(name) {
            return Ok(match self.stands_in(dir, name) {
                Stands::Nothing | Stands::Dir => Quiet::Nothing,
                Stands::Symlink(target) => Quiet::Symlink(target.to_vec()),
                Stands::File(_) | Stands::Inode { .. } | Stands::Moved(_) | Stands::Patched { .. } => {
                    Quiet::Other
                }
            });
        }
        let Some(disk) = self.handle(dir)? else { return Ok(Quiet::Nothing) };
        match disk.dir.metadata(name) {
            Ok(found) if found.kind == Kind::Symlink => {
                let target = disk.dir.read_link(name).or_raced("read the symlink", path.as_path())?;
                Ok(Quiet::Symlink(target.as_bytes().to_vec()))
            }
            Ok(found) if found.kind == Kind::Dir => Ok(Quiet::Nothing),
            Ok(_) => Ok(Quiet::Other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Quiet::Nothing),
            Err(error) => Err(error).on("look at", path.as_path()),
        }
    }

    /// Takes an image of what stands at a name on disk, without what is in a file and without noting it.
    pub(crate) fn look_without_reading(&mut self, spot: &Spot) -> Result<Name, Error> {
        let path = spot.path.as_path();
        let Some(parent) = self.handle(spot.dir)? else { return Ok(Name::new(None)) };
        let image = match parent.dir.metadata(&spot.name) {
            Ok(found) if found.kind == Kind::File => {
                let file = parent.dir.open_file(&spot.name, Access::Read).or_raced("open", path)?;
                Image::capture_unread_file(&*self.vfs, &*file).on("look at", path)?
            }
            Ok(_) => Image::capture_unread(&*self.vfs, &*parent.dir, &spot.name).or_raced("look at", path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Name::new(None)),
            Err(error) => return Err(error).on("look at", path),
        };
        check_mount(&parent, &image, &spot.path)?;
        Ok(Name { is_unread: true, ..Name::new(Some(image)) })
    }

    /// Takes an image of what stands at a name on disk, once.
    fn look(&mut self, dir: DirId, name: &OsStr, path: &TreePath) -> Result<(), Error> {
        if self.dir(dir).names.contains_key(name) {
            return Ok(());
        }
        let limits = self.limits;
        let original = match self.handle(dir)? {
            Some(parent) => {
                let image = Image::capture(&*self.vfs, &*parent.dir, name, limits);
                let image = image.or_raced("look at", path.as_path())?;
                if let Some(image) = &image {
                    check_mount(&parent, image, path)?;
                }
                image
            }
            None => None,
        };
        self.dir_mut(dir).names.insert(name.to_owned(), Name::new(original));
        Ok(())
    }
}

/// Refuses what is a file system of its own.
fn check_mount(parent: &Parent, image: &Image<'_>, path: &TreePath) -> Result<(), Error> {
    let Parent { dir, metadata: above } = parent;
    if image.mount != above.mount {
        let reason = "something is mounted there, and a mount point can't be exchanged; unmount it first";
        return Err(Error::refused(ErrorKind::MountPoint, path.as_path(), reason));
    }
    if image.kind == Kind::Dir
        && dir.metadata(path.name()).or_raced("look at", path.as_path())?.device != above.device
    {
        let reason = "it is a file system of its own, a btrfs subvolume for instance; open a store there";
        return Err(Error::refused(ErrorKind::CrossDevice, path.as_path(), reason));
    }
    Ok(())
}

fn parent_of(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)]
}

fn components(bytes: &[u8]) -> impl Iterator<Item = OsString> {
    bytes
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .map(|part| OsStr::from_bytes(part).to_owned())
}

fn splice(asked: &TreePath, target: &[u8], rest: &mut VecDeque<OsString>) -> Result<(), Error> {
    if target.starts_with(b"/") {
        return Err(outside(asked));
    }
    for component in components(target).collect::<Vec<_>>().into_iter().rev() {
        rest.push_front(component);
    }
    Ok(())
}

fn canonical(asked: &TreePath, components: &[OsString]) -> Result<TreePath, Error> {
    let bytes = components.iter().map(|component| component.as_bytes()).collect::<Vec<_>>().join(&b'/');
    TreePath::from_bytes(&bytes).map_err(|source| invalid_path(asked.as_path(), source))
}

pub(crate) fn invalid_path(path: impl AsRef<Path>, source: PathError) -> Error {
    Error::InvalidPath { path: path.as_ref().to_owned(), source }
}

fn outside(asked: &TreePath) -> Error {
    Error::refused(ErrorKind::InvalidPath, asked.as_path(), "a symlink on the way leads outside the root")
}
