//! What guarded names were and are, for people to compare.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_vfs::{Access, Dir, Kind, Metadata};

use super::OpenGuard;
use crate::error::{Doing, Error};
use crate::places::Places;
use crate::tree_path::TreePath;

/// What stood, or stands, at a guarded name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stood {
    /// What it is.
    pub kind: Kind,
    /// Its permission bits.
    pub mode: u32,
    /// Its length in bytes.
    pub size: u64,
    /// What a file holds, if that may be read and is no more than was asked for; where a symlink leads.
    pub content: Option<Vec<u8>>,
}

impl OpenGuard {
    /// What stood at the name when the guard was opened, and what does now; no content is longer than this.
    pub fn before_and_after(
        &self,
        places: &Places,
        path: &TreePath,
        bytes_max: u64,
    ) -> Result<(Option<Stood>, Option<Stood>), Error> {
        let before = self.before(path, bytes_max).doing("read the image of", path)?;
        let after = after(places, path, bytes_max).doing("read", path)?;
        Ok((before, after))
    }

    fn before(&self, path: &TreePath, bytes_max: u64) -> io::Result<Option<Stood>> {
        let Some(original) = self.manifest.find(path.as_bytes()) else { return Ok(None) };
        let first = original.twin.as_deref().and_then(|first| self.manifest.find(first)).unwrap_or(original);
        let content = match (&first.image, original.kind()) {
            (Some(image), Kind::File | Kind::Symlink) => content(
                &*self.guards.cache,
                OsStr::new(&image.name),
                original.kind(),
                original.size,
                bytes_max,
            )?,
            _ => None,
        };
        let mode = original.attributes.mode;
        Ok(Some(Stood { kind: original.kind(), mode, size: original.size, content }))
    }
}

fn after(places: &Places, path: &TreePath, bytes_max: u64) -> io::Result<Option<Stood>> {
    let found = || -> io::Result<Stood> {
        let above = path.parent();
        let above = above.as_ref().map_or(Path::new(""), TreePath::as_path);
        let dir = places.root.open_dir(above)?;
        let Metadata { kind, mode, size, .. } = dir.metadata(path.name())?;
        Ok(Stood { kind, mode, size, content: content(&*dir, path.name(), kind, size, bytes_max)? })
    };
    match found() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        found => found.map(Some),
    }
}

fn content(
    dir: &dyn Dir,
    name: &OsStr,
    kind: Kind,
    size: u64,
    bytes_max: u64,
) -> io::Result<Option<Vec<u8>>> {
    match kind {
        Kind::Symlink => Ok(Some(dir.read_link(name)?.into_encoded_bytes())),
        Kind::File if size <= bytes_max => {
            match dir.open_file(name, Access::Read).and_then(|file| file.read_all(bytes_max)) {
                // Its mode, or it has grown meanwhile.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::FileTooLarge
                    ) =>
                {
                    Ok(None)
                }
                read => read.map(Some),
            }
        }
        _ => Ok(None),
    }
}
