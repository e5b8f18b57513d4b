//! `images/`: the originals that retained transactions replaced or removed, each the inode itself.
//!
//! A manifest that names an image is durable before the original is moved here, by one rename; and no manifest names it
//! any more, durably, before it is unlinked. In between its name is all that leads to it: nothing in here goes back into
//! the tree, where it could be edited; whoever needs a content copies it, and compares it with what the manifest says.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Kind};
use serde::{Deserialize, Deserializer, Serialize};

use crate::apply::{Applier, is_no_directory, is_no_space};
use crate::error::{Doing, Error};
use crate::image::Image;
use crate::manifest;
use crate::places::Places;
use crate::plan::{After, Change, TransactionId};
use crate::tree_path::TreePath;

/// What an image is reckoned to take on disk: whole pages, and its inode's.
pub fn room(size: u64) -> u64 {
    size.div_ceil(4096).max(1).saturating_mul(4096)
}

/// Where an image is kept, as a path below `images/`: the transaction, which of its changes, and for what lies in a
/// directory that went, the path below that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ImageName(#[serde(with = "serde_bytes")] Vec<u8>);

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        Self::from_bytes(&bytes).ok_or_else(|| serde::de::Error::custom("an image of an impossible name"))
    }
}

impl ImageName {
    /// The image of a change's original; `None` if nothing is kept of it. A symlink's target stands in the manifest.
    pub fn of(tx: TransactionId, index: usize, change: &Change<'_>, image_bytes_max: u64) -> Option<Self> {
        let image = change
            .before
            .as_ref()
            .filter(|_| !matches!(change.after, After::Same { .. } | After::Patched(_)))?;
        let is_kept = match image.kind {
            Kind::File => room(image.size) <= image_bytes_max,
            Kind::Dir => {
                let files = change.contents.iter().filter(|(_, image)| image.kind == Kind::File);
                let all = files.clone().fold(0, |sum: u64, (_, image)| sum.saturating_add(room(image.size)));
                files.count() > 0 && all <= image_bytes_max
            }
            Kind::Symlink | Kind::Other => false,
        };
        is_kept.then(|| Self(format!("{:016x}-{index:x}", tx.0).into_bytes()))
    }

    /// Checks what was read: the first component is such as [`ImageName::of`] makes, and none leads elsewhere.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let path = TreePath::from_bytes_below(bytes).ok()?;
        tx_of(OsStr::from_bytes(path.as_bytes().split(|&byte| byte == b'/').next()?))?;
        Some(Self(bytes.to_vec()))
    }

    /// The image of what lies at a path below the directory of this one.
    #[must_use]
    pub fn below(&self, below: &TreePath) -> Self {
        Self([&self.0, b"/".as_slice(), below.as_bytes()].concat())
    }

    /// The path below `images/`.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The image that this one is a part of; itself if it is of none.
    #[must_use]
    pub fn top(&self) -> Self {
        Self(self.0.split(|&byte| byte == b'/').next().unwrap_or_default().to_vec())
    }

    /// Whether it is kept by itself, and not inside a directory.
    pub fn is_top(&self) -> bool {
        !self.0.contains(&b'/')
    }
}

/// The transaction whose image has this name in `images/`.
fn tx_of(name: &OsStr) -> Option<TransactionId> {
    let (tx, index) = name.to_str()?.split_once('-')?;
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (tx.len() == 16 && index.len() <= 16 && is_hex(tx) && is_hex(index))
        .then(|| u64::from_str_radix(tx, 16).ok().map(TransactionId))?
}

/// Opens an image.
///
/// # Errors
/// `NotFound` if it is not kept any more.
pub fn open(images: &dyn Dir, name: &ImageName) -> io::Result<Arc<dyn File>> {
    let (dir, last) = place(images, name)?;
    match &dir {
        Some(dir) => crate::image::open_own(&**dir, &last),
        None => crate::image::open_own(images, &last),
    }
}

/// The directory that holds an image, where that is not `images/` itself, and its name there.
fn place(images: &dyn Dir, name: &ImageName) -> io::Result<(Option<Arc<dyn Dir>>, OsString)> {
    let path = name.as_path();
    let last = path.file_name().unwrap_or_default().to_owned();
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => Ok((Some(images.open_dir(above)?), last)),
        _ => Ok((None, last)),
    }
}

/// What becomes of the original that a settled change left in its slot: it is moved here if it is to be kept, and else
/// unlinked; what somebody has made of it goes to quarantine.
///
/// # Durability
/// None yet: the caller syncs `stage/`, the slot's directory, `images/` and `quarantine/` before it retires the record.
pub fn keep_original(
    places: &Places,
    applier: &mut Applier<'_>,
    dir: &dyn Dir,
    change: &Change<'_>,
    kept: Option<&ImageName>,
) -> io::Result<()> {
    let (Some(image), Some(slot)) = (&change.before, &change.slot) else { return Ok(()) };
    let name = slot.os_name();
    match image.is_unchanged_at(&*places.vfs, dir, &name) {
        Ok(true) => match kept {
            Some(kept) => keep(places, applier, dir, &name, change, image, kept),
            None => discard(applier, dir, &name, change, image),
        },
        Ok(false) => applier.quarantine(dir, &name, &change.path),
        // A foreign content went to quarantine as soon as it came out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn discard(
    applier: &mut Applier<'_>,
    dir: &dyn Dir,
    slot_name: &OsStr,
    change: &Change<'_>,
    image: &Image<'_>,
) -> io::Result<()> {
    if image.kind == Kind::Dir {
        return applier.clear_directory(dir, slot_name, &change.path, &change.contents);
    }
    dir.remove_file(slot_name)
}

fn keep(
    places: &Places,
    applier: &mut Applier<'_>,
    dir: &dyn Dir,
    name: &OsStr,
    change: &Change<'_>,
    image: &Image<'_>,
    kept: &ImageName,
) -> io::Result<()> {
    if image.kind == Kind::Dir {
        applier.sift_directory(dir, name, &change.path, &change.contents)?;
        // What did not belong there must not be back in it, and taken for ours, after a crash.
        places.quarantine.sync()?;
        part_below(dir, name, change)?;
    } else if is_shared(dir, name)? {
        // Its other names can be edited, and nobody would tell this one.
        if image.content.digest().is_some() {
            copy_into(places, dir, name, kept)?;
        }
        return discard(applier, dir, name, change, image);
    }
    match move_into(&*places.images, dir, name, kept) {
        // What frees space must not fail for lack of it.
        Err(error) if is_no_space(&error) => discard(applier, dir, name, change, image),
        moved => moved,
    }
}

/// Whether the file has other names.
pub(crate) fn is_shared(dir: &dyn Dir, name: &OsStr) -> io::Result<bool> {
    let found = dir.metadata(name)?;
    Ok(found.kind == Kind::File && found.links > 1)
}

/// Ends the name of a copy that is being made, in `stage/`.
const COPY_SUFFIX: &[u8] = b"-copy";

/// Whether this is the name of such a copy.
pub(crate) fn is_copy(name: &OsStr) -> bool {
    name.as_bytes().ends_with(COPY_SUFFIX)
}

/// Parts the files of a directory that goes from their other names, by which they could still be edited: each is copied
/// where its digest tells a copy that was cut short, and else not kept.
///
/// The copy is made beside the directory, not in it: what a crash leaves in there that nobody logged is somebody else's.
pub(crate) fn part_below(dir: &dyn Dir, name: &OsStr, change: &Change<'_>) -> io::Result<()> {
    let top = dir.open_dir(Path::new(name))?;
    let beside = OsString::from_vec([name.as_bytes(), COPY_SUFFIX].concat());
    for (below, image) in change.contents.iter().filter(|(_, image)| image.kind == Kind::File) {
        let parted = top.open_dir(below.parent_path()).and_then(|above| {
            if !is_shared(&*above, below.name())? {
                return Ok(());
            }
            let is_copied = image.content.digest().is_some() && {
                match dir.remove_file(&beside) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => copy_file(&*above, below.name(), dir, &beside)?,
                }
            };
            if is_copied {
                dir.rename_over(&beside, &*above, below.name())?;
            } else {
                above.remove_file(below.name())?;
            }
            above.sync()
        });
        match parted {
            // It went to quarantine.
            Err(error) if is_no_directory(&error) => {}
            parted => parted?,
        }
    }
    Ok(())
}

/// Moves what stands at `name` to the image's name. Whatever stands there is what an attempt before has left.
pub(crate) fn move_into(images: &dyn Dir, dir: &dyn Dir, name: &OsStr, kept: &ImageName) -> io::Result<()> {
    let to = kept.as_path().as_os_str();
    match dir.rename(name, images, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove(images, to)?;
            dir.rename(name, images, to)
        }
        moved => moved,
    }
}

/// Copies a file to the image's name. A copy that is cut short is not taken for the image, whose digest is known; without
/// space there is none.
pub(crate) fn copy_into(places: &Places, dir: &dyn Dir, name: &OsStr, kept: &ImageName) -> io::Result<()> {
    let to = kept.as_path().as_os_str();
    remove(&*places.images, to)?;
    copy_file(dir, name, &*places.images, to).map(drop)
}

/// Copies a file to a free name, durably. Returns whether there was space for it.
fn copy_file(dir: &dyn Dir, name: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<bool> {
    let source = crate::image::open_own(dir, name)?;
    let copied = to_dir.create_file(to, 0o600).and_then(|copy| {
        copy.copy_from(&*source)?;
        Ok(copy)
    });
    match copied {
        Err(error) if is_no_space(&error) => remove(to_dir, to).map(|()| false),
        copied => copied?.sync_all().map(|()| true),
    }
}

/// Unlinks an image, with everything in it; nothing there is fine.
pub fn remove(images: &dyn Dir, name: &OsStr) -> io::Result<()> {
    let removed = match images.remove_file(name) {
        // Linux says the one of a directory, macOS the other.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::PermissionDenied) =>
        {
            remove_directory(images, name, error)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn remove_directory(images: &dyn Dir, name: &OsStr, refused: io::Error) -> io::Result<()> {
    if images.metadata(name)?.kind != Kind::Dir {
        return Err(refused);
    }
    let dir = images.open_dir(Path::new(name))?;
    for entry in dir.list()? {
        remove(&*dir, &entry.name)?;
    }
    images.remove_dir(name)
}

/// Unlinks an image inside a directory that is kept; nothing there, or a directory that is not empty yet, is fine.
pub(crate) fn remove_below(images: &dyn Dir, name: &ImageName) -> io::Result<()> {
    let removed = match place(images, name) {
        Ok((dir, last)) => match dir.as_deref().unwrap_or(images).remove_file(&last) {
            // It goes with the directory of which it is a part.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(()),
            removed => removed,
        },
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Unlinks what no manifest and no record can name: what is left of manifests that somebody has taken away.
///
/// # Durability
/// None; it can be repeated.
pub(crate) fn sweep_orphans(places: &Places, logged: &BTreeSet<TransactionId>) -> Result<(), Error> {
    let entries = places.images.list().doing("list", "images")?;
    if entries.is_empty() {
        return Ok(());
    }
    let named: Vec<_> =
        manifest::list(&*places.history)?.iter().filter_map(|name| manifest::range_of(name)).collect();
    let is_named = |tx: &TransactionId| {
        logged.contains(tx) || named.iter().any(|(first, last)| (first..=last).contains(&tx))
    };
    for entry in entries {
        // Whatever else stands here is nobody's of ours.
        if tx_of(&entry.name).is_some_and(|tx| !is_named(&tx)) {
            remove(&*places.images, &entry.name)
                .doing("remove", &format!("images/{}", entry.name.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// Overwrites an image's file with zeros, durably, before it is unlinked. Returns whether it did: one that has another
/// name, as earlier versions could leave it, may be in the tree, and is not touched.
///
/// # Errors
/// `NotFound` if it is not kept any more.
pub(crate) fn wipe(images: &dyn Dir, name: &ImageName) -> io::Result<bool> {
    let (dir, last) = place(images, name)?;
    wipe_file(dir.as_deref().unwrap_or(images), &last)
}

/// As [`wipe`], for a file of the store's own.
pub(crate) fn wipe_file(dir: &dyn Dir, last: &OsStr) -> io::Result<bool> {
    if is_shared(dir, last)? {
        return Ok(false);
    }
    // Its mode matters to nobody any more, and may forbid it.
    dir.set_mode_of(last, 0o600)?;
    let file = dir.open_file(last, Access::ReadWrite)?;
    let zeros = vec![0; 64 << 10];
    let size = file.metadata()?.size;
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(zeros.len() as u64);
        file.write_at(&[io::IoSlice::new(&zeros[..length as usize])], offset)?;
        offset += length;
    }
    file.sync_all().map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for fine in ["0000000000000001-0", "00000000000000ff-1a/b/c"] {
            assert!(ImageName::from_bytes(fine.as_bytes()).is_some(), "{fine}");
        }
        for bad in
            ["", "1-0", "0000000000000001", "0000000000000001-", "0000000000000001-0/../x", "..", "/a", "a"]
        {
            assert!(ImageName::from_bytes(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
