//! Finds inodes that were being moved when a crash came, wherever it left them.
//!
//! An inode is known by its number. It stands where it stood, in its slot, or where it shall stand; and since the
//! directories on the way there may themselves have been moved, or not yet, the search goes on from each that it finds.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Dir, Kind};

use crate::apply::{Parents, is_no_directory};
use crate::image::Slot;
use crate::places::Places;
use crate::plan::{Change, Moved};
use crate::tree_path::TreePath;

/// Where an inode was found.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) name: OsString,
    /// The slot, if that is what it is.
    pub(crate) slot: Option<Slot>,
}

/// A change that moves an inode, with what is moved.
type Move<'a> = (&'a Change<'a>, &'a Moved);

/// Where each of the inodes is; `None` for one that another program has taken away.
pub(crate) fn locate(
    places: &Places,
    parents: &mut Parents,
    moves: &[Move<'_>],
) -> io::Result<Vec<Option<Place>>> {
    let mut found: Vec<Option<Place>> = vec![None; moves.len()];
    if moves.is_empty() {
        return Ok(found);
    }
    look_in_slots(places, moves, &mut found)?;
    for (index, (change, moved)) in moves.iter().enumerate() {
        for path in [&change.path, &moved.from] {
            if found[index].is_none() {
                found[index] = match parents.of(path) {
                    Ok(parent) => at(&parent.dir, path.name(), moved)?,
                    Err(error) if is_no_directory(&error) => None,
                    Err(error) => return Err(error),
                };
            }
        }
    }
    // Below those that were found, until a round finds no more.
    loop {
        let mut is_news = false;
        for index in 0..moves.len() {
            if found[index].is_some() {
                continue;
            }
            if let Some(place) = below_others(moves, &found, index)? {
                found[index] = Some(place);
                is_news = true;
            }
        }
        if !is_news {
            return Ok(found);
        }
    }
}

/// Every directory in `stage/` is looked through, because an earlier recovery may have taken an inode into its own.
fn look_in_slots(places: &Places, moves: &[Move<'_>], found: &mut [Option<Place>]) -> io::Result<()> {
    for entry in places.stage.list()? {
        let Some(dir_name) = entry.name.to_str() else { continue };
        let dir = places.stage.open_dir(Path::new(&entry.name))?;
        for file in dir.list()? {
            let Some(name) = file.name.to_str() else { continue };
            let slot = Slot { dir: dir_name.to_owned(), name: name.to_owned() };
            // Most slots hold files, and most moves are of directories.
            for (index, (_, moved)) in moves.iter().enumerate() {
                if found[index].is_none() && (file.kind == moved.kind || file.kind == Kind::Other) {
                    found[index] =
                        at(&dir, &file.name, moved)?.map(|place| Place { slot: Some(slot.clone()), ..place });
                }
            }
        }
    }
    Ok(())
}

/// The place below another moved directory, by the path that it had there or shall have.
fn below_others(moves: &[Move<'_>], found: &[Option<Place>], index: usize) -> io::Result<Option<Place>> {
    let (change, moved) = moves[index];
    for ((other_change, other), place) in moves.iter().zip(found) {
        let Some(place) = place else { continue };
        let paths: [Option<TreePath>; 2] =
            [moved.from.relative_to(&other.from), change.path.relative_to(&other_change.path)];
        for path in paths.into_iter().flatten() {
            let opened =
                place.dir.open_dir(Path::new(&place.name)).and_then(|dir| dir.open_dir(path.parent_path()));
            match opened {
                Ok(dir) => {
                    if let Some(place) = at(&dir, path.name(), moved)? {
                        return Ok(Some(place));
                    }
                }
                Err(error) if is_no_directory(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

fn at(dir: &Arc<dyn Dir>, name: &OsStr, moved: &Moved) -> io::Result<Option<Place>> {
    match dir.metadata(name) {
        Ok(found) if moved.is(&found) => {
            Ok(Some(Place { dir: dir.clone(), name: name.to_owned(), slot: None }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
