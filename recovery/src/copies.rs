//! Finds what the store still holds of contents that were scrubbed: it is searched by content, whatever it is kept for.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use atomtree_vfs::{Dir, Kind};
use atomtree_wal::Lsn;

use crate::apply::quarantine_name;
use crate::error::{Doing, Error};
use crate::image::{Digest, open_own};
use crate::places::Places;
use crate::retention::Contents;
use crate::tree_path::TreePath;

/// Where files stand: of one of these contents, anywhere in the store but in its log; and in quarantine also those that
/// came from the path, whatever they hold. As paths below the store's directory.
pub fn find(places: &Places, contents: &Contents, path: &TreePath) -> Result<Vec<String>, Error> {
    let mut search = Search { contents, found: Vec::new() };
    for part in ["stage", "images", "guards/cache", "quarantine"] {
        match places.store.open_dir(Path::new(part)) {
            // There has never been a guard.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => search.below(&*opened.doing("open", part)?, part)?,
        }
    }
    for entry in places.quarantine.list().doing("list", "quarantine")? {
        let label = format!("quarantine/{}", entry.name.to_string_lossy());
        if is_of(&entry.name, path) && !search.found.contains(&label) {
            search.found.push(label);
        }
    }
    search.found.sort();
    Ok(search.found)
}

/// Whether something in quarantine has the name that content of this path gets.
fn is_of(name: &OsStr, path: &TreePath) -> bool {
    let pattern = quarantine_name(Lsn(0), path, "");
    let digest = |name: &OsStr| name.as_encoded_bytes().get(16..26).map(<[u8]>::to_vec);
    digest(name).is_some_and(|found| Some(found) == digest(&pattern))
}

struct Search<'a> {
    contents: &'a Contents,
    found: Vec<String>,
}

impl Search<'_> {
    fn below(&mut self, dir: &dyn Dir, label: &str) -> Result<(), Error> {
        for entry in dir.list().doing("list", label)? {
            let label = format!("{label}/{}", entry.name.to_string_lossy());
            match self.at(dir, &entry.name, &label) {
                // Somebody has taken it away meanwhile.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                looked => looked?,
            }
        }
        Ok(())
    }

    fn at(&mut self, dir: &dyn Dir, name: &OsStr, label: &str) -> Result<(), Error> {
        let found = dir.metadata(name).doing("read the metadata of", label)?;
        match found.kind {
            Kind::Dir => {
                let below = dir.open_dir(Path::new(name)).doing("open", label)?;
                return self.below(&*below, label);
            }
            Kind::File => {}
            Kind::Symlink | Kind::Other => return Ok(()),
        }
        // Only what is as long is read.
        if self.contents.iter().any(|(size, _)| *size == found.size) {
            let file = open_own(dir, name).doing("open", label)?;
            let content = Digest::of_file(&*file).doing("read", label)?;
            if self.contents.contains(&content) {
                self.found.push(label.to_owned());
            }
        }
        Ok(())
    }
}
