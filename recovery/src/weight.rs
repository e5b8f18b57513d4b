//! What the store's own directories take: how many files, and how long they are together.

use std::io;
use std::path::Path;

use atomtree_vfs::{Dir, Kind};

use crate::error::{Doing, Error};
use crate::places::Places;

/// Files, and their lengths together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// How many files; directories are not counted.
    pub files: u64,
    /// Their length in bytes.
    pub bytes: u64,
}

/// The files below a directory of the store but those of one name. What vanishes meanwhile is not counted.
pub fn weigh(dir: &dyn Dir, label: &str, except: Option<&str>) -> Result<Weight, Error> {
    let mut weight = Weight::default();
    for entry in dir.list().doing("list", label)? {
        if except.is_some_and(|name| entry.name == name) {
            continue;
        }
        let label = format!("{label}/{}", entry.name.to_string_lossy());
        if entry.kind == Kind::Dir {
            match dir.open_dir(Path::new(&entry.name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    let Weight { files, bytes } = weigh(&*result.doing("open", &label)?, &label, except)?;
                    weight.files += files;
                    weight.bytes += bytes;
                }
            }
            continue;
        }
        match dir.metadata(&entry.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                weight.files += 1;
                weight.bytes += result.doing("read the metadata of", &label)?.size;
            }
        }
    }
    Ok(weight)
}

/// The files below a part of the store that there need not be, given by its path in it.
pub fn weigh_part(places: &Places, part: &str) -> Result<Weight, Error> {
    match places.store.open_dir(Path::new(part)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Weight::default()),
        opened => weigh(&*opened.doing("open", part)?, part, None),
    }
}
