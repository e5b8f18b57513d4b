//! Finds inodes that were being moved when a crash came, wherever it left them.
//!
//! An inode is known by its number. It stands where it stood, in its slot, or where it shall stand; and since the
//! directories on the way there may themselves have been moved, or taken out of the tree, or not yet, the search goes
//! on from each of those that it finds.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Dir, Kind, Metadata, Timestamp};

use crate::apply::{Parents, is_no_directory};
use crate::image::Slot;
use crate::places::Places;
use crate::plan::{Change, Moved};
use crate::stage::LOCK_FILE;
use crate::tree_path::TreePath;

/// Where an inode was found.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) name: OsString,
    /// The slot, if that is what it is.
    pub(crate) slot: Option<Slot>,
}

/// An inode that moved, with its place; none if another program has taken it away.
pub(crate) struct Located<'a> {
    pub(crate) change: &'a Change<'a>,
    pub(crate) moved: &'a Moved,
    pub(crate) place: Option<Place>,
}

/// Kind, inode number and time of birth.
type Identity = (Kind, u64, Option<Timestamp>);

/// An inode to be found: one that moves, or a directory that was taken out and may hold one that does.
struct Sought<'a> {
    change: &'a Change<'a>,
    identity: Identity,
    /// Where it stood before.
    from: TreePath,
    /// Whether it is what the change moves, and not what it takes out.
    moves: bool,
    place: Option<Place>,
}

impl Sought<'_> {
    fn is(&self, found: &Metadata) -> bool {
        self.identity == (found.kind, found.inode, found.born)
    }
}

/// Where each inode is that one of these changes moves.
pub(crate) fn locate<'a>(
    places: &Places,
    parents: &mut Parents,
    changes: &[&'a Change<'a>],
) -> io::Result<Vec<Located<'a>>> {
    if !changes.iter().any(|change| change.moved().is_some()) {
        return Ok(Vec::new());
    }
    let mut sought: Vec<Sought<'a>> = changes.iter().flat_map(|change| sought_of(change, changes)).collect();
    // In its own slot first, then by name: an inode with several names may be sought more than once, and stands at each.
    let mut taken = HashSet::new();
    for one in &mut sought {
        let Some(slot) = one.change.slot.clone() else { continue };
        let dir = match places.stage.open_dir(Path::new(&slot.dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if let Some(place) = at(&dir, &slot.os_name(), one)? {
            taken.insert((slot.dir.clone(), slot.name.clone()));
            one.place = Some(Place { slot: Some(slot), ..place });
        }
    }
    for one in sought.iter_mut().filter(|one| one.place.is_none()) {
        for path in [&one.change.path, &one.from] {
            if one.place.is_none() {
                one.place = match parents.of(path) {
                    Ok(parent) => at(&parent.dir, path.name(), one)?,
                    Err(error) if is_no_directory(&error) => None,
                    Err(error) => return Err(error),
                };
            }
        }
    }
    look_in_slots(places, &mut sought, &taken)?;
    // Below those that were found, until a round finds no more.
    while look_below(&mut sought)? {}
    let moved = sought.into_iter().filter_map(|one| {
        let moved = one.change.moved().filter(|_| one.moves)?;
        Some(Located { change: one.change, moved, place: one.place })
    });
    Ok(moved.collect())
}

fn sought_of<'a>(change: &'a Change<'a>, all: &[&'a Change<'a>]) -> Vec<Sought<'a>> {
    let mut sought = Vec::new();
    if let Some(moved) = change.moved() {
        let identity = (moved.kind, moved.inode, moved.born);
        sought.push(Sought { change, identity, from: moved.from.clone(), moves: true, place: None });
    }
    if let Some(image) = change.before.as_ref().filter(|_| change.takes_directory()) {
        let identity = (Kind::Dir, image.inode, image.born);
        sought.push(Sought {
            change,
            identity,
            from: original_path(&change.path, all),
            moves: false,
            place: None,
        });
    }
    sought
}

/// Where a name stood before the directories above it moved.
fn original_path(path: &TreePath, all: &[&Change<'_>]) -> TreePath {
    let nearest = all
        .iter()
        .filter_map(|change| Some((change.moved()?, path.relative_to(&change.path)?)))
        .min_by_key(|(_, rest)| rest.depth());
    nearest.and_then(|(moved, rest)| moved.from.below(&rest)).unwrap_or_else(|| path.clone())
}

/// Every directory in `stage/` is looked through, because an earlier recovery may have taken an inode into its own.
fn look_in_slots(
    places: &Places,
    sought: &mut [Sought<'_>],
    taken: &HashSet<(String, String)>,
) -> io::Result<()> {
    let mut missing: HashMap<Identity, Vec<usize>> = HashMap::new();
    for (index, one) in sought.iter().enumerate().filter(|(_, one)| one.place.is_none()) {
        missing.entry(one.identity).or_default().push(index);
    }
    if missing.is_empty() {
        return Ok(());
    }
    for entry in places.stage.list()? {
        let Some(dir_name) = entry.name.to_str() else { continue };
        let dir = places.stage.open_dir(Path::new(&entry.name))?;
        for file in dir.list()? {
            let Some(name) = file.name.to_str() else { continue };
            // A process's lock is nobody's inode, though it may have got the number of one that is gone.
            if name == LOCK_FILE {
                continue;
            }
            let slot = Slot { dir: dir_name.to_owned(), name: name.to_owned() };
            if taken.contains(&(slot.dir.clone(), slot.name.clone())) {
                continue;
            }
            let found = dir.metadata(&file.name)?;
            let waiting = missing.get_mut(&(found.kind, found.inode, found.born)).and_then(Vec::pop);
            if let Some(index) = waiting {
                sought[index].place = Some(Place { dir: dir.clone(), name: file.name, slot: Some(slot) });
            }
        }
    }
    Ok(())
}

/// Looks for what is missing below what was found, by the path that it had there or shall have. Returns whether
/// anything was.
fn look_below(sought: &mut [Sought<'_>]) -> io::Result<bool> {
    let mut is_news = false;
    for index in 0..sought.len() {
        let one = &sought[index];
        if one.place.is_some() {
            continue;
        }
        let mut found = None;
        for other in sought.iter() {
            let Some(place) = &other.place else { continue };
            let paths = [one.from.relative_to(&other.from), one.change.path.relative_to(&other.change.path)];
            for path in paths.into_iter().flatten() {
                let opened = place
                    .dir
                    .open_dir(Path::new(&place.name))
                    .and_then(|dir| dir.open_dir(path.parent_path()));
                match opened {
                    Ok(dir) => found = found.or(at(&dir, path.name(), one)?),
                    Err(error) if is_no_directory(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        is_news |= found.is_some();
        sought[index].place = found;
    }
    Ok(is_news)
}

fn at(dir: &Arc<dyn Dir>, name: &OsStr, sought: &Sought<'_>) -> io::Result<Option<Place>> {
    match dir.metadata(name) {
        Ok(found) if sought.is(&found) => {
            Ok(Some(Place { dir: dir.clone(), name: name.to_owned(), slot: None }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
