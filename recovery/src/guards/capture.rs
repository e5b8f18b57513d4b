//! Takes the images of everything under a guard, or finds those that an earlier guard left.
//!
//! A capture is: sync the file system, so that every page that is mapped is write-protected; look; copy; look again. An
//! image is used again for a file that has the same identity, size and times, if the last change of its inode is older
//! than the sync of the image's capture by more than the clock's granularity: then any later change, a store to a mapped
//! page included, would show. From then on it counts as taken by this capture: the last change is older than that as well.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use atomtree_vfs::{Access, Dir, File, Kind, Metadata, Timestamp};

use super::manifest::{ImageOf, Manifest, Original};
use super::walk::{Found, Purpose, walk};
use super::{Announced, GuardPlaces, cache};
use crate::apply::{Parents, is_no_directory};
use crate::error::{Doing, Error, Refusal};
use crate::image::{Attributes, Digest, is_recent};
use crate::places::Places;
use crate::tree_path::TreePath;

/// How often a file is copied that changes while it is being copied.
const ATTEMPTS: u32 = 3;

/// A roll back may have to make directories and grow others: a block for each directory, and a bit for each name.
const DIR_BYTES: u64 = 4096;
const NAME_BYTES: u64 = 64;
const RESERVE_BYTES_MIN: u64 = 64 << 10;

/// File systems on which copies share their blocks with the original, so that what they take can't be told beforehand.
const SHARING: [&str; 4] = ["btrfs", "xfs", "bcachefs", "zfs"];

/// What was captured: the list, how much space a roll back is to find, and how many images were made anew.
pub(super) struct Captured {
    pub(super) manifest: Manifest,
    pub(super) reserve_bytes: u64,
    pub(super) copied: u64,
}

/// Takes the images. None of them is durable yet.
///
/// # Errors
/// For whatever can't be guarded, naming it.
pub(super) fn capture(
    places: &Places,
    guards: &GuardPlaces,
    announced: &Announced,
) -> Result<Captured, Error> {
    let captured = places.vfs.now();
    announced.sync_root.sync_filesystem().doing("sync the file system of", ".")?;
    let found = walk(places, &announced.patterns, Purpose::Capture)?;

    let index = cache::index(guards);
    let cached: HashSet<OsString> =
        (guards.cache.list().doing("list", "guards/cache")?.into_iter()).map(|entry| entry.name).collect();
    let mut capturing = Capturing {
        places,
        guards,
        captured,
        prefix: &announced.id,
        parents: Parents::new(places.root.clone()).doing("read the metadata of", ".")?,
        known: HashMap::new(),
        first_names: HashMap::new(),
        copied: 0,
    };
    capturing.known = (found.iter())
        .filter_map(|one| Some((one.path.as_bytes(), capturing.reusable(&index, &cached, one)?)))
        .collect();
    let reserve_bytes = capturing.check_space(&found)?;

    let mut originals = Vec::with_capacity(found.len());
    for one in &found {
        if let Some(original) = capturing.original(one)? {
            originals.push(original);
        }
    }
    let copied = capturing.copied;
    let patterns = announced.patterns.texts().clone();
    let manifest = Manifest { patterns, captured_ns: captured.0, originals };
    Ok(Captured { manifest, reserve_bytes, copied })
}

struct Capturing<'a> {
    places: &'a Places,
    guards: &'a GuardPlaces,
    captured: Timestamp,
    /// Begins the names of new images.
    prefix: &'a str,
    parents: Parents,
    /// Originals of earlier guards that have not changed, by path.
    known: HashMap<&'a [u8], Original>,
    /// The first name of each file with several, by inode.
    first_names: HashMap<u64, TreePath>,
    copied: u64,
}

impl<'a> Capturing<'a> {
    /// The original as an earlier guard knew it, if it is unchanged, and so is its image: what has touched everything in the
    /// tree has touched that too.
    fn reusable(&self, index: &Manifest, cached: &HashSet<OsString>, found: &Found) -> Option<Original> {
        let known = index.find(found.path.as_bytes())?;
        let image = known.image.as_ref()?;
        let is_told = !is_recent(known.changed(), Timestamp(image.captured_ns), &*self.places.vfs);
        let is_same = known.has_times_of(&found.metadata) && known.kind() != Kind::Other;
        let name = OsStr::new(&image.name);
        if !is_told || !is_same || !cached.contains(name) {
            return None;
        }
        let kept = self.guards.cache.metadata(name).ok()?;
        // A symlink's image has times of its own.
        let is_unwritten =
            kept.kind != Kind::File || (kept.size, kept.modified) == (known.size, known.modified());
        let is_kept = image.is(&kept) && is_unwritten && known.has_mode_and_owner_of(&kept);
        is_kept.then(|| known.clone())
    }

    /// Whether the images that are to be made have room. Returns what is to be kept back for a roll back.
    fn check_space(&self, found: &'a [Found]) -> Result<u64, Error> {
        let (mut bytes, mut inodes, mut reserve) = (0_u64, 0_u64, RESERVE_BYTES_MIN);
        for one in found {
            reserve += NAME_BYTES + if one.metadata.kind == Kind::Dir { DIR_BYTES } else { 0 };
            let is_new = one.metadata.kind != Kind::Dir && !self.known.contains_key(one.path.as_bytes());
            if one.is_guarded && is_new {
                inodes += 1;
                bytes = bytes.saturating_add(one.metadata.size.next_multiple_of(DIR_BYTES));
            }
        }
        let root = &self.places.root;
        let file_system = root.file_system().doing("describe the file system of", ".")?;
        let needed = bytes.saturating_add(reserve);
        let is_shared = SHARING.contains(&file_system.name.as_str());
        let refused = |reason: String| {
            let reason =
                format!("{reason}; guard less (--guard), leave something out (--ignore), or free some");
            Err(Error::Refused { kind: Refusal::NoSpace, path: ".".into(), reason })
        };
        if needed > file_system.available_bytes && !is_shared {
            let available = file_system.available_bytes;
            return refused(format!(
                "the guard needs {needed} bytes for its images, and {available} are free"
            ));
        }
        // The guard's own files too.
        let inodes = inodes + 6;
        match root.available_inodes().doing("count the free inodes of", ".")? {
            Some(available) if available < inodes => {
                refused(format!("the guard needs {inodes} inodes for its images, and {available} are free"))
            }
            _ => Ok(reserve),
        }
    }

    /// What stands at the name, with an image where it needs one; `None` if it has gone.
    fn original(&mut self, found: &Found) -> Result<Option<Original>, Error> {
        if found.metadata.kind == Kind::File && found.metadata.links > 1 {
            if let Some(first) = self.first_names.get(&found.metadata.inode) {
                let attributes = attributes_of(&found.metadata);
                let original = Original::new(&found.path, &found.metadata, found.is_guarded, attributes);
                return Ok(Some(original.with_twin(first)));
            }
            self.first_names.insert(found.metadata.inode, found.path.clone());
        }
        if let Some(known) = self.known.remove(found.path.as_bytes()) {
            return Ok(Some(known.seen_again(found.is_guarded, self.captured)));
        }
        match self.look(found) {
            Ok(original) => Ok(Some(original)),
            Err(Failure::System(error)) if !is_no_directory(&error) => {
                Err(error).doing("take an image of", &found.path)
            }
            Err(_) => Err(Error::Refused {
                kind: Refusal::Conflict,
                path: found.path.to_string(),
                reason:
                    "another program keeps changing it; wait until that is done, or leave it out (--ignore)"
                        .into(),
            }),
        }
    }

    fn look(&mut self, found: &Found) -> Result<Original, Failure> {
        let dir = self.parents.of(&found.path)?.dir;
        let (name, path) = (found.path.name(), &found.path);
        match found.metadata.kind {
            Kind::Dir => {
                let dir = dir.open_dir(Path::new(name))?;
                let attributes = Attributes::of_dir(&*dir)?;
                let metadata = dir.own_metadata()?;
                Ok(Original::new(path, &metadata, found.is_guarded, attributes))
            }
            Kind::File => self.look_at_file(found, &*dir),
            Kind::Symlink => {
                let target = dir.read_link(name)?;
                let attributes = attributes_of(&found.metadata);
                let image = self.new_name();
                let cache = &*self.guards.cache;
                cache.create_symlink(OsStr::new(&image), &target)?;
                let made = cache.metadata(OsStr::new(&image))?;
                if (made.uid, made.gid) != (attributes.uid, attributes.gid) {
                    cache.set_owner_of(OsStr::new(&image), attributes.uid, attributes.gid)?;
                }
                let digest = Digest::of(target.as_encoded_bytes());
                let image = ImageOf::new(image, &made, self.captured, digest);
                Ok(Original::new(path, &found.metadata, found.is_guarded, attributes).with_image(image))
            }
            Kind::Other => {
                // It has no content that could be edited, so a second name keeps it as well as a copy would.
                let image = self.new_name();
                dir.link(name, &*self.guards.cache, OsStr::new(&image))?;
                let metadata = dir.metadata(name)?;
                let attributes = attributes_of(&metadata);
                let digest = Digest::of(b"");
                let image = ImageOf::new(image, &metadata, self.captured, digest);
                Ok(Original::new(path, &metadata, found.is_guarded, attributes).with_image(image))
            }
        }
    }

    /// Copies the file, with everything that belongs to it.
    fn look_at_file(&mut self, found: &Found, dir: &dyn Dir) -> Result<Original, Failure> {
        let name = found.path.name();
        let file = dir.open_file(name, Access::Read)?;
        for _ in 0..ATTEMPTS {
            let before = file.metadata()?;
            let attributes = Attributes::of_file(&*file)?;
            let image_name = self.new_name();
            let image = self.guards.cache.create_file(OsStr::new(&image_name), 0o600)?;
            image.copy_from(&*file)?;
            let (size, digest) = Digest::of_file(&*image)?;
            let after = file.metadata()?;
            let is_still = (before.size, before.modified, before.changed)
                == (after.size, after.modified, after.changed)
                && size == after.size;
            if !is_still {
                self.guards.cache.remove_file(OsStr::new(&image_name))?;
                continue;
            }
            make_ready(&*image, &attributes, after.modified)?;
            let image = ImageOf::new(image_name, &image.metadata()?, self.captured, digest);
            let original = Original::new(&found.path, &after, found.is_guarded, attributes);
            return Ok(original.with_image(image));
        }
        Err(Failure::Changing)
    }

    fn new_name(&mut self) -> String {
        self.copied += 1;
        format!("{}-{:x}", self.prefix, self.copied)
    }
}

/// Makes the image of a file one that a rename alone puts back.
fn make_ready(image: &dyn File, attributes: &Attributes, modified: Timestamp) -> io::Result<()> {
    attributes.set_on_file(image)?;
    image.set_modified(modified)
}

/// Mode and owner; of what is no file and no directory there is nothing else to keep.
fn attributes_of(found: &Metadata) -> Attributes {
    Attributes { mode: found.mode, uid: found.uid, gid: found.gid, xattrs: Vec::new() }
}

enum Failure {
    /// It does not stand still.
    Changing,
    System(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}
