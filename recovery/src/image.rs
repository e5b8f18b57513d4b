//! What stood at a name at one moment: identity, metadata, and as much of the content as is worth keeping.
//!
//! The same type serves the check before a commit (is this still what the transaction saw?), the comparison of what an
//! exchange displaced, and recovery (is this content one of ours?). Comparisons go by identity, size and times where
//! the clock allows, by content where it doesn't.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use atomtree_vfs::{Access, Dir, File, Identity, Kind, Metadata, SECTOR_BYTES, Timestamp, Vfs, Xattr};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::acl::{self, ACCESS_ACL};

/// How much of a file is read at once, for its digest: at first, and from then on.
const PIECE_BYTES_FIRST: usize = 8 << 10;
const PIECE_BYTES_MAX: usize = 128 << 10;

/// BLAKE3 of a content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of a whole file, read in pieces, and its length as read.
    pub fn of_file(file: &dyn File) -> io::Result<(u64, Self)> {
        let mut hasher = blake3::Hasher::new();
        // Most files are small: what is not needed is not zeroed.
        let mut buffer = vec![0; PIECE_BYTES_FIRST];
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                return Ok((offset, Self(*hasher.finalize().as_bytes())));
            }
            hasher.update(&buffer[..read]);
            offset += read as u64;
            if read == buffer.len() {
                buffer.resize(PIECE_BYTES_MAX, 0);
            }
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The metadata that replacing a file keeps: everything but times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Extended attributes by name, sorted; ACLs and capabilities among them.
    #[serde(deserialize_with = "possible_xattrs")]
    pub xattrs: Vec<Attribute>,
}

/// The kernel lists the names of a file's attributes in at most 64 KiB, the shortest of them as `user.x` and a zero.
const XATTRS_MAX: usize = (64 << 10) / 7;

/// Attributes that a file can have: hostile ones are refused before each of a few bytes takes many.
fn possible_xattrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Attribute>, D::Error> {
    struct Xattrs;
    impl<'de> Visitor<'de> for Xattrs {
        type Value = Vec<Attribute>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {XATTRS_MAX} extended attributes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Attribute>, A::Error> {
            let count = seq.size_hint().filter(|count| *count <= XATTRS_MAX);
            let count =
                count.ok_or_else(|| A::Error::custom("more extended attributes than a file can have"))?;
            let mut xattrs = Vec::with_capacity(count);
            while let Some(xattr) = seq.next_element()? {
                xattrs.push(xattr);
            }
            Ok(xattrs)
        }
    }
    deserializer.deserialize_seq(Xattrs)
}

/// Whether the attribute is a security module's label, which every file has and nobody may remove.
fn is_label(name: &[u8]) -> bool {
    [b"security.selinux".as_slice(), b"security.SMACK64", b"security.apparmor"].contains(&name)
}

/// The mode of a directory that was just made, before it gets the one that it shall have; with the setgid bit where the
/// directory above hands that on.
pub const MADE_DIR_MODE: u32 = 0o700;

/// One extended attribute as it is logged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attribute {
    /// Full name, as bytes.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

impl Attribute {
    /// Its name, for the operating system.
    pub fn os_name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// Whether it is a label, which is never removed.
    pub fn is_label(&self) -> bool {
        is_label(&self.name)
    }
}

impl Attributes {
    fn new(metadata: &Metadata, xattrs: Vec<Xattr>) -> Self {
        let mut xattrs: Vec<_> = xattrs
            .into_iter()
            .map(|xattr| Attribute { name: xattr.name.into_vec(), value: xattr.value })
            .collect();
        xattrs.sort();
        Self { mode: metadata.mode, uid: metadata.uid, gid: metadata.gid, xattrs }
    }

    /// Reads a file's attributes.
    pub fn of_file(file: &dyn File) -> io::Result<Self> {
        Ok(Self::new(&file.metadata()?, file.xattrs()?))
    }

    /// Reads a directory's attributes.
    pub fn of_dir(dir: &dyn Dir) -> io::Result<Self> {
        Ok(Self::new(&dir.own_metadata()?, dir.xattrs()?))
    }

    /// The same with other permission bits, as `chmod` would leave it.
    #[must_use]
    pub fn with_mode(&self, mode: u32) -> Self {
        let mut this = Self { mode, ..self.clone() };
        for xattr in this.xattrs.iter_mut().filter(|xattr| xattr.name == ACCESS_ACL) {
            if let Some(value) = acl::with_mode(&xattr.value, mode) {
                xattr.value = value;
            }
        }
        this
    }

    /// Gives `file` these attributes: owner first, because changing it clears setuid and capabilities; the permission
    /// bits last, so that the file is never open to more than its final mode allows.
    ///
    /// # Errors
    /// The first that is refused; those before it are set.
    pub fn set_on_file(&self, file: &dyn File) -> io::Result<()> {
        let found = file.metadata()?;
        if (found.uid, found.gid) != (self.uid, self.gid) {
            file.set_owner(self.uid, self.gid)?;
        }
        let present = file.xattrs()?;
        for xattr in &self.xattrs {
            let name = OsStr::from_bytes(&xattr.name);
            if !present.iter().any(|other| other.name == name && other.value == xattr.value) {
                file.set_xattr(name, &xattr.value)?;
            }
        }
        for extra in present {
            if !is_label(extra.name.as_bytes())
                && !self.xattrs.iter().any(|xattr| xattr.name == extra.name.as_bytes())
            {
                file.remove_xattr(&extra.name)?;
            }
        }
        // An ACL rewrites the group bits and the other way round, so the mode is compared after the attributes.
        if file.metadata()?.mode != self.mode {
            file.set_mode(self.mode)?;
        }
        Ok(())
    }

    /// As [`Attributes::set_on_file`], for a file that was just created with this mode, and has the other attributes of
    /// `fresh`. What they say is not asked again.
    pub fn set_on_fresh_file(&self, file: &dyn File, fresh: &Self, mode: u32) -> io::Result<()> {
        if (fresh.uid, fresh.gid) != (self.uid, self.gid) {
            file.set_owner(self.uid, self.gid)?;
        }
        for xattr in self.xattrs.iter().filter(|xattr| !fresh.xattrs.contains(xattr)) {
            file.set_xattr(OsStr::from_bytes(&xattr.name), &xattr.value)?;
        }
        for extra in &fresh.xattrs {
            if !is_label(&extra.name) && !self.xattrs.iter().any(|xattr| xattr.name == extra.name) {
                file.remove_xattr(OsStr::from_bytes(&extra.name))?;
            }
        }
        if self.mode != mode || !self.xattrs.is_empty() || !fresh.xattrs.is_empty() {
            file.set_mode(self.mode)?;
        }
        Ok(())
    }

    /// Whether every single item of `found` is one of the `logged` ones, or what something has that `creator` has just
    /// created with this mode and nothing else: then a cut took part of our own changes, and nobody else touched it.
    pub fn is_mix(found: &Self, logged: &[&Self], creator: &Identity, made_mode: Option<u32>) -> bool {
        // The setgid bit comes from the directory above.
        let is_just_made = made_mode.is_some_and(|made| found.mode & !0o2000 == made);
        let mode = is_just_made || logged.iter().any(|one| one.mode == found.mode);
        let user = found.uid == creator.uid || logged.iter().any(|one| one.uid == found.uid);
        let group = found.gid == creator.gid || logged.iter().any(|one| one.gid == found.gid);
        let xattrs = found.xattrs.iter().all(|xattr| logged.iter().any(|one| one.xattrs.contains(xattr)));
        mode && user && group && xattrs
    }
}

/// A content that is held in memory, or mapped.
#[derive(Clone)]
pub enum Bytes<'a> {
    /// In the log.
    Borrowed(&'a [u8]),
    /// In memory, for everybody who needs it.
    Shared(Arc<Vec<u8>>),
}

impl Bytes<'_> {
    /// The same, independent of the log.
    pub fn into_owned(self) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) => Bytes::Shared(Arc::new(bytes.to_vec())),
            Self::Shared(bytes) => Bytes::Shared(bytes),
        }
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes<'_> {}

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl From<Vec<u8>> for Bytes<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Shared(Arc::new(bytes))
    }
}

impl<'a> From<Cow<'a, [u8]>> for Bytes<'a> {
    fn from(bytes: Cow<'a, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(bytes) => Self::Borrowed(bytes),
            Cow::Owned(bytes) => bytes.into(),
        }
    }
}

/// As much of a content as an image keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// All of it.
    Inline(Bytes<'a>),
    /// Its digest; the length is the image's size.
    Digest(Digest),
    /// Nothing: the content is known by inode, size and time of modification alone.
    Unread,
}

impl Content<'_> {
    /// The same, independent of the log.
    pub fn into_owned(self) -> Content<'static> {
        match self {
            Self::Inline(bytes) => Content::Inline(bytes.into_owned()),
            Self::Digest(digest) => Content::Digest(digest),
            Self::Unread => Content::Unread,
        }
    }

    /// The digest, computed where the bytes are at hand.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Inline(bytes) => Some(Digest::of(bytes)),
            Self::Digest(digest) => Some(*digest),
            Self::Unread => None,
        }
    }
}

/// What stood at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// What stood there. A symlink's content is its target; directories and special files have none.
    pub kind: Kind,
    /// Inode number.
    pub inode: u64,
    /// Creation time, where the file system keeps one.
    pub born: Option<Timestamp>,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content.
    pub modified: Timestamp,
    /// Time of the last change of the inode. Not logged: an exchange changes it.
    pub changed: Timestamp,
    /// When this image was taken, by the same machine's clock.
    pub captured: Timestamp,
    /// Number of names. Not logged.
    pub links: u64,
    /// Mount id. Not logged.
    pub mount: u64,
    /// Whether a flag keeps everybody from replacing or removing it. Not logged.
    pub is_fixed: bool,
    /// Mode, owner and extended attributes.
    pub attributes: Attributes,
    /// The content, or what stands for it.
    pub content: Content<'a>,
}

/// Up to which size contents are read when an image is taken.
#[derive(Clone, Copy, Debug)]
pub struct ImageLimits {
    /// Contents up to this many bytes are kept whole.
    pub inline_bytes: u64,
    /// Contents up to this many bytes are digested.
    pub digest_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { inline_bytes: 4096, digest_bytes: 1 << 20 }
    }
}

impl Image<'static> {
    /// Takes an image of what stands at the name; `None` for nothing.
    ///
    /// A file too large to be digested is digested all the same if it changed so recently that its times could not
    /// tell the next change.
    pub fn capture(
        vfs: &dyn Vfs,
        dir: &dyn Dir,
        name: &OsStr,
        limits: ImageLimits,
    ) -> io::Result<Option<Image<'static>>> {
        // Most names are regular files or free, so the file is opened first and its kind asked only if that fails.
        match dir.open_file(name, Access::Read) {
            Ok(file) => return Self::capture_file(vfs, &*file, limits).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => match dir.metadata(name) {
                // Who may not read a file may still remove, move or change it in other ways.
                Ok(found) if found.kind == Kind::File && error.kind() != io::ErrorKind::PermissionDenied => {
                    return Err(error);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        }
        Self::capture_unread(vfs, dir, name).map(Some)
    }

    /// As [`Image::capture`], of a name that stands there and without reading what is in a file.
    pub fn capture_unread(vfs: &dyn Vfs, dir: &dyn Dir, name: &OsStr) -> io::Result<Image<'static>> {
        let captured = vfs.now();
        let metadata = dir.metadata(name)?;
        let content = match metadata.kind {
            Kind::Symlink => Content::Inline(dir.read_link(name)?.into_vec().into()),
            Kind::File | Kind::Dir | Kind::Other => Content::Unread,
        };
        let xattrs = match metadata.kind {
            Kind::Dir => match dir.open_dir(Path::new(name)) {
                // Something is mounted there, which its mount id tells the caller.
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Vec::new(),
                opened => opened?.xattrs()?,
            },
            Kind::File | Kind::Symlink | Kind::Other => Vec::new(),
        };
        Ok(Self::new(captured, &metadata, Attributes::new(&metadata, xattrs), content))
    }

    /// As [`Image::capture_unread`], of a file that is open, with all its attributes.
    pub fn capture_unread_file(vfs: &dyn Vfs, file: &dyn File) -> io::Result<Image<'static>> {
        let captured = vfs.now();
        let metadata = file.metadata()?;
        let attributes = Attributes::new(&metadata, file.xattrs()?);
        Ok(Self::new(captured, &metadata, attributes, Content::Unread))
    }

    /// As [`Image::capture`], of a file that is open.
    pub fn capture_file(vfs: &dyn Vfs, file: &dyn File, limits: ImageLimits) -> io::Result<Image<'static>> {
        // Times first, content after: an edit in between shows as a newer time at the next comparison.
        let captured = vfs.now();
        let metadata = file.metadata()?;
        let recent = is_recent(metadata.changed, captured, vfs);
        let content = if metadata.size <= limits.inline_bytes {
            // One byte more is asked for, so that a file that has grown is noticed.
            let mut bytes = vec![0; metadata.size as usize + 1];
            let read = file.read_at(&mut bytes, 0)?;
            if read as u64 == metadata.size {
                bytes.truncate(read);
                Content::Inline(bytes.into())
            } else {
                Content::Digest(Digest::of_file(file)?.1)
            }
        } else if metadata.size <= limits.digest_bytes || recent {
            Content::Digest(Digest::of_file(file)?.1)
        } else {
            Content::Unread
        };
        let attributes = Attributes::new(&metadata, file.xattrs()?);
        Ok(Self::new(captured, &metadata, attributes, content))
    }

    /// As [`Image::capture_file`], with the whole content, of at most `limit` bytes.
    pub fn capture_with_content(
        vfs: &dyn Vfs,
        file: &dyn File,
        limits: ImageLimits,
        limit: u64,
    ) -> io::Result<(Image<'static>, Vec<u8>)> {
        let captured = vfs.now();
        let metadata = file.metadata()?;
        let bytes = file.read_all(limit)?;
        let content = if bytes.len() as u64 <= limits.inline_bytes {
            Content::Inline(bytes.clone().into())
        } else {
            Content::Digest(Digest::of(&bytes))
        };
        let attributes = Attributes::new(&metadata, file.xattrs()?);
        let mut image = Self::new(captured, &metadata, attributes, content);
        image.size = bytes.len() as u64;
        Ok((image, bytes))
    }

    fn new(
        captured: Timestamp,
        metadata: &Metadata,
        attributes: Attributes,
        content: Content<'static>,
    ) -> Self {
        Self {
            kind: metadata.kind,
            inode: metadata.inode,
            born: metadata.born,
            size: metadata.size,
            modified: metadata.modified,
            changed: metadata.changed,
            captured,
            links: metadata.links,
            mount: metadata.mount,
            is_fixed: metadata.is_fixed,
            attributes,
            content,
        }
    }
}

/// Whether something changed at `time` could change again, after `captured`, without its time showing it.
pub fn is_recent(time: Timestamp, captured: Timestamp, vfs: &dyn Vfs) -> bool {
    time.plus_ns(vfs.timestamp_granularity_ns()) >= captured
}

impl Image<'_> {
    /// Whether `found` is the inode of this image, unchanged as far as its times can tell, inode changes included.
    pub fn has_times_of(&self, found: &Metadata) -> bool {
        self.has_content_times_of(found) && self.changed == found.changed
    }

    /// As [`Image::has_times_of`], for an inode of which another image was taken.
    pub fn has_times_of_image(&self, other: &Image<'_>) -> bool {
        (self.kind, self.inode, self.born, self.size, self.modified, self.changed)
            == (other.kind, other.inode, other.born, other.size, other.modified, other.changed)
    }

    /// Whether `found` is the inode of this image with its content unchanged as far as its times can tell. The time of
    /// the inode's own change is left out, because a rename or exchange moves it.
    pub fn has_content_times_of(&self, found: &Metadata) -> bool {
        self.kind == found.kind
            && self.inode == found.inode
            && self.born == found.born
            && self.size == found.size
            && self.modified == found.modified
    }

    /// Whether `found` is the inode of this image, whatever has become of it.
    pub fn is_inode(&self, found: &Metadata) -> bool {
        (self.kind, self.inode, self.born) == (found.kind, found.inode, found.born)
    }

    /// Whether `found` is the directory of this image, whatever lies in it by now.
    pub fn is_directory(&self, found: &Metadata) -> bool {
        (self.kind, self.inode, self.born) == (Kind::Dir, found.inode, found.born) && found.kind == Kind::Dir
    }

    /// Whether another image is of the same content; `None` if one of them doesn't know its content.
    pub fn has_content_of(&self, other: &Image<'_>) -> Option<bool> {
        let is_same = match (&self.content, &other.content) {
            (Content::Inline(one), Content::Inline(another)) => one == another,
            (one, another) => one.digest()? == another.digest()?,
        };
        Some(is_same && self.size == other.size)
    }

    /// Whether the file holds this image's content; `None` if the image doesn't know its content.
    pub fn is_content_of(&self, file: &dyn File) -> io::Result<Option<bool>> {
        if let Content::Inline(bytes) = &self.content {
            // One byte more is asked for, so that a longer file is noticed.
            let mut found = vec![0; bytes.len() + 1];
            let read = file.read_at(&mut found, 0)?;
            // What is less may be a part of it.
            if read == bytes.len() && found[..read] == **bytes {
                return Ok(Some(true));
            }
        }
        let Some(digest) = self.content.digest() else { return Ok(None) };
        Ok(Some(Digest::of_file(file)? == (self.size, digest)))
    }

    /// Whether what stands at the name still holds this image's content: by identity, size and time of modification
    /// where that time is old enough to prove it, by content otherwise.
    pub fn is_unchanged_at(&self, vfs: &dyn Vfs, dir: &dyn Dir, name: &OsStr) -> io::Result<bool> {
        let found = dir.metadata(name)?;
        if found.kind != self.kind {
            return Ok(false);
        }
        let same_times = self.has_content_times_of(&found);
        if same_times && self.kind != Kind::Dir && !is_recent(self.modified, self.captured, vfs) {
            return Ok(true);
        }
        match self.kind {
            Kind::File if self.content == Content::Unread => Ok(same_times),
            Kind::File if found.size != self.size => Ok(false),
            Kind::File => {
                let file = open_own(dir, name)?;
                Ok(self.is_content_of(&*file)? == Some(true))
            }
            Kind::Symlink => {
                let target = dir.read_link(name)?;
                Ok(matches!(&self.content, Content::Inline(bytes) if **bytes == *target.as_bytes()))
            }
            // What lies in it is compared name by name.
            Kind::Dir => Ok(self.is_directory(&found)),
            Kind::Other => Ok(same_times),
        }
    }

    /// The same image, owning its content.
    pub fn into_owned(self) -> Image<'static> {
        Image { content: self.content.into_owned(), ..self }
    }
}

/// Opens a file for reading that belongs to this process, even if its mode forbids that: the bit is set for the moment
/// that opening takes.
pub fn open_own(dir: &dyn Dir, name: &OsStr) -> io::Result<Arc<dyn File>> {
    open_with(dir, name, Access::Read, 0o400)
}

/// As [`open_own`], for reading and writing.
pub(crate) fn open_own_to_write(dir: &dyn Dir, name: &OsStr) -> io::Result<Arc<dyn File>> {
    open_with(dir, name, Access::ReadWrite, 0o600)
}

fn open_with(dir: &dyn Dir, name: &OsStr, access: Access, bits: u32) -> io::Result<Arc<dyn File>> {
    match dir.open_file(name, access) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mode = dir.metadata(name)?.mode;
            if mode & bits == bits {
                return Err(error);
            }
            dir.set_mode_of(name, mode | bits)?;
            let opened = dir.open_file(name, access);
            dir.set_mode_of(name, mode)?;
            opened
        }
        opened => opened,
    }
}

/// Whether `found` is what a power cut may have left of `image`: no longer, and every 512-byte sector either the
/// image's or all zeros. An empty content is a torn one of any image.
pub fn is_torn(found: &[u8], image: &[u8]) -> bool {
    found.len() <= image.len()
        && found
            .chunks(SECTOR_BYTES)
            .zip(image.chunks(SECTOR_BYTES))
            .all(|(found, image)| found == &image[..found.len()] || found.iter().all(|&byte| byte == 0))
}

/// A file in `stage/`: the directory of the process that made it, and its name there. New content waits there on its
/// way in; afterwards it holds the original that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Name of the process's own directory.
    pub dir: String,
    /// Name of the file.
    pub name: String,
}

impl Slot {
    /// Whether both names are such as atomtree makes: then they cannot lead anywhere else.
    pub fn is_valid(&self) -> bool {
        let plain = |name: &str| {
            !name.is_empty()
                && name.len() <= 64
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        plain(&self.dir) && plain(&self.name)
    }

    /// The file's name, for the operating system.
    pub fn os_name(&self) -> OsString {
        OsString::from(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_is_sectors_of_the_image_or_zeros_and_never_longer() {
        let image: Vec<u8> = (0..1500u32).map(|n| (n % 251 + 1) as u8).collect();
        assert!(is_torn(b"", &image), "an empty file is torn");
        assert!(is_torn(&image, &image));
        assert!(is_torn(&image[..700], &image), "cut short");
        let mut zeroed = image.clone();
        zeroed[512..1024].fill(0);
        assert!(is_torn(&zeroed, &image), "one sector never written");
        zeroed[512] = image[512];
        assert!(!is_torn(&zeroed, &image), "half a sector is nobody's tear");
        let longer = [image.clone(), vec![0]].concat();
        assert!(!is_torn(&longer, &image), "longer than the image");
        let mut foreign = image.clone();
        foreign[3] ^= 1;
        assert!(!is_torn(&foreign, &image));
    }

    #[test]
    fn slots_cannot_lead_elsewhere() {
        let slot = |dir: &str, name: &str| Slot { dir: dir.into(), name: name.into() };
        assert!(slot("0af3", "1c").is_valid());
        for bad in [slot("..", "a"), slot("a", "../x"), slot("", "a"), slot("a", "a/b"), slot("a", "a\0")] {
            assert!(!bad.is_valid(), "{bad:?}");
        }
    }
}
