//! The list of all that stood under a guard's patterns when it was opened, and where the images of it are.
//!
//! ```text
//! guards/<guard>/manifest, guards/index
//! +------------+-------------+-----------+------------+-----------------------+
//! | "ATOMGUAR" | u32 version | u64 bytes | u32 CRC-32 | MessagePack, all of it |
//! +------------+-------------+-----------+------------+-----------------------+
//! ```
//!
//! Originals are sorted by path, so directories come before what lies in them. The index has the same form: it tells
//! what the images are of that earlier guards left. Changing the layout changes the format version.

use std::ffi::OsStr;
use std::io::{self, IoSlice};

use atomtree_vfs::{Access, Dir, Kind, Metadata, Timestamp};
use serde::{Deserialize, Serialize};

use super::patterns::PatternTexts;
use crate::error::{Doing, Error};
use crate::image::{Attributes, Digest};
use crate::places::FORMAT_VERSION;
use crate::tree_path::TreePath;

const MAGIC: [u8; 8] = *b"ATOMGUAR";
const HEADER_BYTES: usize = 24;
/// Manifests are read whole; a file larger than this is not one.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// Longer than any name of an image.
const IMAGE_NAME_BYTES_MAX: usize = 64;
const PAGE_BYTES: u64 = 4096;

/// All that stood under a guard's patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which names are guarded.
    pub patterns: PatternTexts,
    /// When the capture began: everything written before was durable when it went on.
    pub captured_ns: i64,
    /// What stood there, by path.
    pub originals: Vec<Original>,
}

/// What stood at one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The name, as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    kind: KindCode,
    /// Whether it is guarded itself; else it is a directory in which something may be.
    pub is_guarded: bool,
    /// Inode number.
    pub inode: u64,
    born_ns: Option<i64>,
    /// Length in bytes.
    pub size: u64,
    modified_ns: i64,
    changed_ns: i64,
    /// Mode, owner and extended attributes.
    pub attributes: Attributes,
    /// What a roll back puts at the name; nothing for a directory, and for a name of an inode that has an earlier one.
    pub image: Option<ImageOf>,
    /// The first name of the same inode, if this is not it.
    #[serde(with = "serde_bytes")]
    pub twin: Option<Vec<u8>>,
}

/// The image of a file, symlink or special file, ready to be put at its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOf {
    /// File name in `guards/cache/`.
    pub name: String,
    /// Its inode number.
    pub inode: u64,
    born_ns: Option<i64>,
    /// When the capture began that made it, or was the last to find it to be what stands at the name.
    pub captured_ns: i64,
    /// Digest of a file's content, or of where a symlink leads.
    pub digest: Digest,
}

impl ImageOf {
    /// The image of this name, as it was made.
    pub fn new(name: String, made: &Metadata, captured: Timestamp, digest: Digest) -> Self {
        let born_ns = made.born.map(|time| time.0);
        Self { name, inode: made.inode, born_ns, captured_ns: captured.0, digest }
    }

    /// Whether `found` is this inode, wherever it is.
    pub fn is(&self, found: &Metadata) -> bool {
        (self.inode, self.born_ns) == (found.inode, found.born.map(|time| time.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum KindCode {
    File,
    Dir,
    Symlink,
    Other,
}

impl Original {
    /// What was found at the name; without an image yet.
    pub fn new(path: &TreePath, found: &Metadata, is_guarded: bool, attributes: Attributes) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            kind: match found.kind {
                Kind::File => KindCode::File,
                Kind::Dir => KindCode::Dir,
                Kind::Symlink => KindCode::Symlink,
                Kind::Other => KindCode::Other,
            },
            is_guarded,
            inode: found.inode,
            born_ns: found.born.map(|time| time.0),
            size: found.size,
            modified_ns: found.modified.0,
            changed_ns: found.changed.0,
            attributes,
            image: None,
            twin: None,
        }
    }

    /// The same, with an image.
    pub fn with_image(self, image: ImageOf) -> Self {
        Self { image: Some(image), ..self }
    }

    /// The same, as another name of the inode whose first name this is.
    pub fn with_twin(self, first: &TreePath) -> Self {
        Self { twin: Some(first.as_bytes().to_vec()), ..self }
    }

    /// The same, found unchanged by the capture of another guard.
    pub fn seen_again(self, is_guarded: bool, captured: Timestamp) -> Self {
        let image = self.image.map(|image| ImageOf { captured_ns: captured.0, ..image });
        Self { is_guarded, image, ..self }
    }

    /// What its image takes, in bytes: whole pages, and one for its inode, as if it shared nothing with the file.
    pub fn image_bytes(&self) -> u64 {
        self.size.div_ceil(PAGE_BYTES).saturating_add(1).saturating_mul(PAGE_BYTES)
    }

    /// What kind of thing it was.
    pub fn kind(&self) -> Kind {
        match self.kind {
            KindCode::File => Kind::File,
            KindCode::Dir => Kind::Dir,
            KindCode::Symlink => Kind::Symlink,
            KindCode::Other => Kind::Other,
        }
    }

    /// The name.
    pub fn tree_path(&self) -> TreePath {
        TreePath::from_bytes(&self.path).expect("it was checked when it was read, or was one before")
    }

    /// When the inode had last been changed.
    pub fn changed(&self) -> Timestamp {
        Timestamp(self.changed_ns)
    }

    /// When the content had last been changed.
    pub fn modified(&self) -> Timestamp {
        Timestamp(self.modified_ns)
    }

    /// Whether `found` is the same inode with the same times: unchanged, as far as those can tell.
    pub fn has_times_of(&self, found: &Metadata) -> bool {
        self.kind() == found.kind
            && (self.inode, self.size) == (found.inode, found.size)
            && self.born_ns == found.born.map(|time| time.0)
            && (self.modified_ns, self.changed_ns) == (found.modified.0, found.changed.0)
            && self.has_mode_and_owner_of(found)
    }

    /// Whether `found` has the same mode and owner.
    pub fn has_mode_and_owner_of(&self, found: &Metadata) -> bool {
        let Attributes { mode, uid, gid, .. } = self.attributes;
        (mode, uid, gid) == (found.mode, found.uid, found.gid)
    }
}

impl Manifest {
    /// The original at the name.
    pub fn find(&self, path: &[u8]) -> Option<&Original> {
        let found = self.originals.binary_search_by(|original| original.path.as_slice().cmp(path));
        found.ok().map(|index| &self.originals[index])
    }

    /// Its bytes, as they stand in a file.
    pub fn encode(&self) -> Vec<u8> {
        let body = rmp_serde::to_vec(self).expect("a manifest holds nothing that MessagePack can't");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// Reads a manifest's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(format!("{} bytes are no manifest", bytes.len()));
        };
        if header[..8] != MAGIC {
            return Err("it does not start like a manifest".into());
        }
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let length = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
        if u32_at(8) != FORMAT_VERSION {
            return Err(format!("its version is {}, and {FORMAT_VERSION} is known", u32_at(8)));
        }
        if length != body.len() as u64 {
            return Err(format!("{} bytes found, {length} expected", body.len()));
        }
        let (found, expected) = (crc32fast::hash(body), u32_at(20));
        if found != expected {
            return Err(format!("checksum {found:#010x} found, {expected:#010x} expected"));
        }
        let this: Self = rmp_serde::from_slice(body).map_err(|error| error.to_string())?;
        this.check()?;
        Ok(this)
    }

    /// Whether what is in it can be: names that lead nowhere else, in order.
    fn check(&self) -> Result<(), String> {
        let mut last: &[u8] = &[];
        for original in &self.originals {
            let name = || String::from_utf8_lossy(&original.path).into_owned();
            TreePath::from_bytes(&original.path).map_err(|error| format!("{}: {error}", name()))?;
            if original.path.as_slice() <= last {
                return Err(format!("{} is out of order", name()));
            }
            last = &original.path;
            if original.image.as_ref().is_some_and(|image| !is_image_name(&image.name)) {
                return Err(format!("the image of {} has an impossible name", name()));
            }
            let twin = original.twin.as_deref().map(|twin| (twin, self.find(twin)));
            let has_source = match (original.kind(), &original.image, twin) {
                (Kind::Dir, None, None) | (Kind::File | Kind::Symlink | Kind::Other, Some(_), None) => true,
                (Kind::File, None, Some((twin, Some(first)))) => {
                    twin < original.path.as_slice() && first.kind() == Kind::File && first.image.is_some()
                }
                _ => false,
            };
            if !has_source || !(original.is_guarded || original.kind() == Kind::Dir) {
                return Err(format!("{} has an image that it can't have, or none", name()));
            }
        }
        Ok(())
    }
}

/// Whether the name is such as atomtree gives to images: then it cannot lead anywhere else.
pub fn is_image_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= IMAGE_NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Writes a manifest under this name, which nothing has. Nothing is synced.
pub fn write(dir: &dyn Dir, name: &str, manifest: &Manifest) -> io::Result<()> {
    let file = dir.create_file(OsStr::new(name), 0o600)?;
    file.write_at(&[IoSlice::new(&manifest.encode())], 0)
}

/// Reads the manifest of this name; `None` if there is none.
///
/// # Errors
/// [`Error::GuardManifest`] for one that is damaged.
pub fn read(dir: &dyn Dir, name: &str, label: &str) -> Result<Option<Manifest>, Error> {
    let damaged = |reason: String| Error::GuardManifest { path: label.to_owned(), reason };
    let file = match dir.open_file(OsStr::new(name), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.doing("open", label)?,
    };
    let bytes = match file.read_all(MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(damaged(format!("it is longer than {MANIFEST_BYTES_MAX} bytes")));
        }
        read => read.doing("read", label)?,
    };
    Manifest::decode(&bytes).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guards::patterns::EVERYTHING;

    fn original(path: &str, kind: Kind) -> Original {
        let metadata = Metadata {
            kind,
            inode: 7,
            device: 1,
            mount: 1,
            mode: 0o644,
            uid: 1,
            gid: 2,
            links: 1,
            size: 3,
            modified: Timestamp(4),
            changed: Timestamp(5),
            born: Some(Timestamp(6)),
            is_fixed: false,
            is_sparse: false,
        };
        let attributes = Attributes { mode: 0o644, uid: 1, gid: 2, xattrs: Vec::new() };
        let mut this = Original::new(&TreePath::new(path).unwrap(), &metadata, true, attributes);
        if kind != Kind::Dir {
            let digest = Digest([9; 32]);
            this.image =
                Some(ImageOf { name: "0a-1".into(), inode: 8, born_ns: None, captured_ns: 10, digest });
        }
        this
    }

    fn manifest(originals: Vec<Original>) -> Manifest {
        let patterns = PatternTexts { guarded: vec![EVERYTHING.into()], ignored: Vec::new() };
        Manifest { patterns, captured_ns: 11, originals }
    }

    fn sample() -> Manifest {
        let twin = Original { image: None, twin: Some(b"d/a".to_vec()), ..original("d/b", Kind::File) };
        manifest(vec![
            original("d", Kind::Dir),
            original("d/a", Kind::File),
            twin,
            original("e", Kind::Symlink),
            original("f", Kind::Other),
        ])
    }

    /// Byte for byte, because stores in the field hold them.
    #[test]
    fn bytes_are_pinned() {
        let bytes = manifest(vec![original("d", Kind::Dir), original("d/a", Kind::File)]).encode();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, include_str!("manifest.golden").trim());
        assert_eq!(Manifest::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Manifest::decode(&damaged).is_err(), "byte {at} bit {bit}");
            }
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(Manifest::decode(&[bytes, vec![0]].concat()).is_err());
    }

    /// In an index that somebody has put together.
    #[test]
    fn an_image_of_any_size_is_weighed() {
        let bytes = |size| Original { size, ..original("a", Kind::File) }.image_bytes();
        assert_eq!([0, 1, 4096, 4097].map(bytes), [4096, 8192, 8192, 12288]);
        assert_eq!([u64::MAX - 4096, u64::MAX].map(bytes), [u64::MAX; 2]);
    }

    /// A manifest with a right checksum that somebody has put together.
    #[test]
    fn planted_names_are_refused() {
        let planted = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            Manifest::decode(&manifest.encode())
        };
        assert!(planted(&|_| {}).is_ok());
        let changes: [&dyn Fn(&mut Manifest); 8] = [
            &|m| m.originals[1].path = b"../a".to_vec(),
            &|m| m.originals[1].path = b".atomtree/a".to_vec(),
            &|m| m.originals[1].path = b"/a".to_vec(),
            &|m| m.originals.swap(0, 1),
            &|m| m.originals[1].image.as_mut().unwrap().name = "../../a".into(),
            &|m| m.originals[1].image = None,
            &|m| m.originals[2].twin = Some(b"e".to_vec()),
            &|m| m.originals[4].is_guarded = false,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(planted(change).is_err(), "change {number}");
        }
    }
}
