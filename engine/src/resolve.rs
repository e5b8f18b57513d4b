//! From a path as a caller spells it to the one canonical name that is logged.
//!
//! Intermediate symlinks are followed here, once, component by component, as long as they stay inside the root. What
//! comes out has no symlink component, so that nothing later depends on where a link points by then.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use atomtree_recovery::apply::Parents;
use atomtree_recovery::tree_path::{PathError, TreePath};
use atomtree_vfs::{Kind, is_symlink_error};

use crate::error::{Error, ErrorKind, OnPath};

/// As many symlinks as the kernel follows in one path.
const SYMLINKS_MAX: usize = 40;

/// What a transaction says about a name before the disk is asked.
pub(crate) enum Pending {
    /// A directory that the transaction makes.
    Dir,
    /// A file that it writes.
    File,
    /// Nothing: it removes the name.
    Absent,
}

/// Resolves `asked`, whose last component is not followed.
///
/// `pending` is the transaction's own view, which comes before the disk's.
pub(crate) fn canonical(
    parents: &mut Parents,
    asked: &TreePath,
    pending: impl Fn(&TreePath) -> Option<Pending>,
) -> Result<TreePath, Error> {
    // What the transaction makes is not on disk yet, and was canonical when it was named.
    if asked.parent().is_some_and(|parent| matches!(pending(&parent), Some(Pending::Dir))) {
        return Ok(asked.clone());
    }
    // A parent that opens without following anything is canonical as it is spelled.
    match parents.of(asked) {
        Ok(_) => return Ok(asked.clone()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) if is_symlink_error(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let reason = "it leads to another file system; open a store there";
            return Err(Error::refused(ErrorKind::CrossDevice, asked.as_path(), reason));
        }
        Err(error) => return Err(error).on("open the directory of", asked.as_path()),
    }
    walk(parents, asked, Vec::new(), components(asked.as_bytes()).collect(), pending)
}

/// The path that a final symlink at the canonical path `link` leads to, itself not followed any further.
pub(crate) fn through_link(
    parents: &mut Parents,
    link: &TreePath,
    target: &OsStr,
    pending: impl Fn(&TreePath) -> Option<Pending>,
) -> Result<TreePath, Error> {
    let mut done: Vec<OsString> = components(link.as_bytes()).collect();
    done.pop();
    let mut rest = VecDeque::new();
    splice(link, target, &mut rest)?;
    walk(parents, link, done, rest, pending)
}

/// Goes on from the canonical directory `done`, one component of `rest` after another.
fn walk(
    parents: &mut Parents,
    asked: &TreePath,
    mut done: Vec<OsString>,
    mut rest: VecDeque<OsString>,
    pending: impl Fn(&TreePath) -> Option<Pending>,
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
        let path = join(asked, &done)?;
        match pending(&path) {
            Some(Pending::Dir | Pending::Absent) => continue,
            Some(Pending::File) => return Err(not_a_directory(asked, &path)),
            None => {}
        }
        let dir = match parents.of(&path) {
            Ok(parent) => parent.dir,
            // Nothing of what follows exists on disk. A file on the way was met before, unless it is being removed.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => return Err(error).on("open the directory of", path.as_path()),
        };
        match dir.metadata(path.name()) {
            Ok(found) if found.kind == Kind::Dir => {}
            Ok(found) if found.kind == Kind::Symlink => {
                links += 1;
                let target = dir.read_link(path.name()).on("read the symlink", path.as_path())?;
                if links > SYMLINKS_MAX {
                    let reason = "too many symlinks lead to it, or they lead in a circle";
                    return Err(Error::refused(ErrorKind::InvalidPath, asked.as_path(), reason));
                }
                done.pop();
                splice(asked, &target, &mut rest)?;
            }
            Ok(_) => return Err(not_a_directory(asked, &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).on("look at", path.as_path()),
        }
    }
    join(asked, &done)
}

fn splice(asked: &TreePath, target: &OsStr, rest: &mut VecDeque<OsString>) -> Result<(), Error> {
    if target.as_bytes().starts_with(b"/") {
        return Err(outside(asked));
    }
    for component in components(target.as_bytes()).collect::<Vec<_>>().into_iter().rev() {
        rest.push_front(component);
    }
    Ok(())
}

fn components(bytes: &[u8]) -> impl Iterator<Item = OsString> {
    bytes
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .map(|part| OsString::from_vec(part.to_vec()))
}

fn join(asked: &TreePath, components: &[OsString]) -> Result<TreePath, Error> {
    let bytes = components.iter().map(|component| component.as_bytes()).collect::<Vec<_>>().join(&b'/');
    TreePath::from_bytes(&bytes).map_err(|source| invalid_path(asked.as_path(), source))
}

pub(crate) fn invalid_path(path: impl AsRef<Path>, source: PathError) -> Error {
    Error::InvalidPath { path: path.as_ref().to_owned(), source }
}

fn outside(asked: &TreePath) -> Error {
    Error::refused(ErrorKind::InvalidPath, asked.as_path(), "a symlink on the way leads outside the root")
}

fn not_a_directory(asked: &TreePath, component: &TreePath) -> Error {
    Error::refused(ErrorKind::NotADirectory, asked.as_path(), format!("{component} is not a directory"))
}
