//! What a transaction changes, one net change for each name, and how that is written in the log. No I/O.
//!
//! ```text
//! record payload       every record of atomtree; the frame around it has the kind and the checksum
//! +-----------------+--------------------------+-----------------------------+
//! | u32 head bytes  | head, MessagePack arrays | content, the rest (or none) |
//! +-----------------+--------------------------+-----------------------------+
//!
//! one transaction      a run of frames, appended at once
//! +-------+---------+-----+----------+-----+--------+
//! | begin | image   | ... | change   | ... | commit |
//! +-------+---------+-----+----------+-----+--------+
//! ```
//!
//! Changing a head's fields changes the format version. Whatever is decoded is checked here: paths are canonical, slots
//! are plain names, lengths agree. Nothing that comes out can name the outside.

use std::borrow::Cow;
use std::collections::HashSet;
use std::num::NonZeroU8;

use atomtree_vfs::{Kind, Metadata, Timestamp};
use atomtree_wal::Lsn;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::{Attributes, Content, Digest, Image, Slot};
use crate::manifest::as_they_come;
use crate::patched::Patched;
use crate::tree_path::{PATH_BYTES_MAX, TreePath};

/// Number of a committed transaction, from 1; in the order of the log, without gaps while nothing is voided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransactionId(pub u64);

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Kinds of records, as they stand in the log. Changing a number changes the format version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A transaction's records follow.
    Begin = 1,
    /// What stood at a name.
    Image = 2,
    /// What shall stand there.
    Change = 3,
    /// The transaction is complete; once this is durable it is committed.
    Commit = 4,
    /// Every commit up to an LSN has been applied to the tree, durably or not.
    Applied = 5,
    /// Everything up to an LSN is in the tree, durably.
    Checkpoint = 6,
}

impl RecordKind {
    /// The kind as the log carries it.
    pub fn code(self) -> NonZeroU8 {
        NonZeroU8::new(self as u8).expect("kinds start at one")
    }

    /// The kind with this code.
    pub fn from_code(code: NonZeroU8) -> Option<Self> {
        [Self::Begin, Self::Image, Self::Change, Self::Commit, Self::Applied, Self::Checkpoint]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// Opens a transaction's run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The transaction's number.
    pub tx: TransactionId,
    /// When it was logged: nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// Why, in the caller's words.
    pub label: Option<String>,
    /// On whose behalf, in the caller's words.
    pub agent: Option<String>,
    /// Which process; left out where it says nothing, as it was before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Who>,
}

/// The process that a transaction comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its effective user.
    pub uid: u32,
    /// Its number.
    pub pid: u32,
    /// Name of its program.
    pub program: String,
}

/// Closes a transaction's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The transaction's number, as in its begin record.
    pub tx: TransactionId,
    /// How many image records the run has.
    pub images: u32,
    /// How many change records the run has.
    pub changes: u32,
}

/// Every commit up to `through` has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// LSN of the last commit record that was applied.
    pub through: u64,
}

/// Everything up to `watermark` is settled: in the tree, and durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The LSN.
    pub watermark: u64,
    /// The number of the next transaction.
    pub next_tx: TransactionId,
}

/// What shall stand at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After<'a> {
    /// Nothing.
    Absent,
    /// A regular file.
    File {
        /// Mode, owner and extended attributes.
        attributes: Attributes,
        /// Length in bytes.
        size: u64,
        /// The bytes where they travel in the log, else their digest; never [`Content::Unread`].
        content: Content<'a>,
        /// Inode number of the staged file.
        inode: u64,
    },
    /// A new directory.
    Dir {
        /// Mode, owner and extended attributes.
        attributes: Attributes,
    },
    /// A symlink.
    Symlink {
        /// Where it leads, verbatim.
        target: Vec<u8>,
        /// Its owner.
        attributes: Attributes,
        /// Inode number of the staged symlink.
        inode: u64,
    },
    /// An inode that stood elsewhere: every directory that is renamed, and whatever else is not written anew.
    Moved(Box<Moved>),
    /// What stands there already, with other permission bits.
    Same {
        /// Mode, owner and extended attributes.
        attributes: Attributes,
    },
    /// What stands there already, a regular file, with other bytes in some of its sectors.
    Patched(Patched<'a>),
}

/// An inode that gets another name. It is known by its number, so its content need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it stood before the transaction, in the tree as it was then.
    pub from: TreePath,
    /// Inode number of the directory that held it there.
    pub from_parent: u64,
    /// What it is.
    pub kind: Kind,
    /// Its inode number.
    pub inode: u64,
    /// When the inode was created, where the file system keeps that.
    pub born: Option<Timestamp>,
    /// Length in bytes; of a directory, whatever the file system says.
    pub size: u64,
    /// The attributes that it had.
    pub before: Attributes,
    /// The attributes that it shall have; only the mode may differ.
    pub attributes: Attributes,
}

impl Moved {
    /// Whether this is the inode.
    pub fn is(&self, found: &Metadata) -> bool {
        (found.kind, found.inode, found.born) == (self.kind, self.inode, self.born)
    }
}

impl After<'_> {
    /// The same, owning its content.
    pub fn into_owned(self) -> After<'static> {
        match self {
            Self::Absent => After::Absent,
            Self::Dir { attributes } => After::Dir { attributes },
            Self::Symlink { target, attributes, inode } => After::Symlink { target, attributes, inode },
            Self::Moved(moved) => After::Moved(moved),
            Self::Same { attributes } => After::Same { attributes },
            Self::Patched(patched) => After::Patched(patched.into_owned()),
            Self::File { attributes, size, content, inode } => {
                After::File { attributes, size, content: content.into_owned(), inode }
            }
        }
    }

    /// What of its content travels in the log, in bytes.
    pub fn inline_bytes(&self) -> u64 {
        match self {
            Self::File { content: Content::Inline(bytes), .. } => bytes.len() as u64,
            _ => 0,
        }
    }

    /// The kind of what shall stand there, where it is not what stands there already.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Absent | Self::Same { .. } | Self::Patched(_) => None,
            Self::File { .. } => Some(Kind::File),
            Self::Dir { .. } => Some(Kind::Dir),
            Self::Symlink { .. } => Some(Kind::Symlink),
            Self::Moved(moved) => Some(moved.kind),
        }
    }

    /// The attributes that it shall have, where they are given.
    pub fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::Absent | Self::Patched(_) => None,
            Self::File { attributes, .. }
            | Self::Dir { attributes }
            | Self::Symlink { attributes, .. }
            | Self::Same { attributes } => Some(attributes),
            Self::Moved(moved) => Some(&moved.attributes),
        }
    }

    /// Whether a regular file shall stand there whose content is not in the log.
    pub fn is_by_reference(&self) -> bool {
        matches!(self, Self::File { content: Content::Digest(_), .. })
    }
}

/// One name's net change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The name: canonical, without symlink components.
    pub path: TreePath,
    /// Inode number of the directory that holds it; 0 when the transaction makes that directory.
    pub parent: u64,
    /// What stood there; `None` for nothing, and for what leaves the name by being moved elsewhere.
    pub before: Option<Image<'a>>,
    /// Where a directory stood that goes: everything in it, by its path below the name. All of it goes along in one
    /// rename.
    pub contents: Vec<(TreePath, Image<'a>)>,
    /// What shall stand there.
    pub after: After<'a>,
    /// Where the new content waits and the original ends up; `None` where there is neither.
    pub slot: Option<Slot>,
}

impl Change<'_> {
    /// The same, owning its contents.
    pub fn into_owned(self) -> Change<'static> {
        Change {
            path: self.path,
            parent: self.parent,
            before: self.before.map(Image::into_owned),
            contents: self.contents.into_iter().map(|(path, image)| (path, image.into_owned())).collect(),
            after: self.after.into_owned(),
            slot: self.slot,
        }
    }

    /// Where the change stands in its transaction: directories first, parents before what they hold, removals last,
    /// so that whoever reads the tree meanwhile misses as little as possible.
    pub fn order(&self) -> (u8, usize) {
        match self.after {
            After::Dir { .. } | After::Moved(_) => (0, self.path.depth()),
            After::File { .. } | After::Symlink { .. } | After::Patched(_) => (1, 0),
            After::Absent => (2, 0),
            // A directory that is closed by it has been filled by then.
            After::Same { .. } => (3, usize::MAX - self.path.depth()),
        }
    }

    /// The inode that moves here, if one does.
    pub fn moved(&self) -> Option<&Moved> {
        match &self.after {
            After::Moved(moved) => Some(moved),
            _ => None,
        }
    }

    /// Whether what stood there is a directory, and goes.
    pub fn takes_directory(&self) -> bool {
        !matches!(self.after, After::Same { .. } | After::Patched(_))
            && self.before.as_ref().is_some_and(|image| image.kind == Kind::Dir)
    }

    /// The sectors that are overwritten inside the inode, if any are.
    pub fn patched(&self) -> Option<&Patched<'_>> {
        match &self.after {
            After::Patched(patched) => Some(patched),
            _ => None,
        }
    }

    /// Whether no other unsettled transaction may touch what lies at or below its names: where it moves inodes, and where
    /// it writes inside of one, which recovery knows by its number and tells from others' edits by what was there before.
    pub fn is_barrier(&self) -> bool {
        self.moves_inodes() || self.patched().is_some()
    }

    /// Whether the change moves or removes an inode that other names may lie below, or changes what kind of thing the
    /// name is.
    pub fn moves_inodes(&self) -> bool {
        let changes_kind = || match (&self.before, self.after.kind()) {
            (Some(before), Some(after)) => before.kind != after,
            _ => false,
        };
        self.moved().is_some() || self.takes_directory() || changes_kind()
    }

    /// The names that it empties or fills, without those in a directory that goes along.
    pub fn names(&self) -> impl Iterator<Item = &TreePath> {
        std::iter::once(&self.path).chain(self.moved().map(|moved| &moved.from))
    }
}

/// How many names the changes of one transaction fill, empty or change, those in directories that go along included.
pub fn count_names(changes: &[Change<'_>]) -> usize {
    let simple = |change: &Change<'_>| change.moved().is_none() && change.contents.is_empty();
    if changes.iter().all(simple) {
        return changes.len();
    }
    let mut names: HashSet<Cow<'_, TreePath>> = HashSet::new();
    for change in changes {
        names.extend(change.names().map(Cow::Borrowed));
        let below = change.contents.iter().filter_map(|(path, _)| change.path.below(path));
        names.extend(below.map(Cow::Owned));
    }
    names.len()
}

/// A transaction as it is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Number, time, label and agent.
    pub begin: Begin,
    /// In the order of [`Change::order`].
    pub changes: Vec<Change<'a>>,
}

/// A record's payload, ready for the log: the head with its length, and the content beside it.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// What frame it goes into.
    pub kind: RecordKind,
    /// Length and head.
    pub head: Vec<u8>,
    /// The content; empty for none.
    pub content: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct ImageHead<'a> {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    symlink: bool,
    inode: u64,
    born_ns: Option<i64>,
    size: u64,
    modified_ns: i64,
    captured_ns: i64,
    attributes: Cow<'a, Attributes>,
    content: ContentHead,
    /// Left out where it says nothing, as it was before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    more: Option<MoreOfImage>,
}

#[derive(Serialize, Deserialize)]
struct MoreOfImage {
    /// Of what `symlink` does not tell apart.
    kind: KindHead,
    /// For what goes along with a directory: its path below `path`.
    #[serde(with = "serde_bytes")]
    below: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum KindHead {
    File,
    Dir,
    Symlink,
    Other,
}

impl KindHead {
    pub(crate) fn of(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Dir => Self::Dir,
            Kind::Symlink => Self::Symlink,
            Kind::Other => Self::Other,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::File => Kind::File,
            Self::Dir => Kind::Dir,
            Self::Symlink => Kind::Symlink,
            Self::Other => Kind::Other,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ChangeHead<'a> {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    parent: u64,
    slot: Option<Cow<'a, Slot>>,
    after: AfterHead<'a>,
}

#[derive(Serialize, Deserialize)]
enum AfterHead<'a> {
    Absent,
    File {
        attributes: Cow<'a, Attributes>,
        size: u64,
        content: ContentHead,
        inode: u64,
    },
    Dir {
        attributes: Cow<'a, Attributes>,
    },
    Symlink {
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
        attributes: Cow<'a, Attributes>,
        inode: u64,
    },
    Moved {
        #[serde(with = "serde_bytes")]
        from: Vec<u8>,
        from_parent: u64,
        kind: KindHead,
        inode: u64,
        born_ns: Option<i64>,
        size: u64,
        before: Cow<'a, Attributes>,
        attributes: Cow<'a, Attributes>,
    },
    Same {
        attributes: Cow<'a, Attributes>,
    },
    Patched {
        size: u64,
        #[serde(deserialize_with = "as_they_come")]
        ranges: Vec<(u64, u32)>,
    },
}

#[derive(Serialize, Deserialize)]
enum ContentHead {
    Inline,
    Digest(Digest),
    Unread,
}

impl ContentHead {
    fn of(content: &Content<'_>) -> Self {
        match content {
            Content::Inline(_) => Self::Inline,
            Content::Digest(digest) => Self::Digest(*digest),
            Content::Unread => Self::Unread,
        }
    }
}

fn bytes_of<'a>(content: &'a Content<'_>) -> &'a [u8] {
    match content {
        Content::Inline(bytes) => bytes,
        Content::Digest(_) | Content::Unread => &[],
    }
}

/// What the head of most records takes.
const HEAD_BYTES_USUAL: usize = 256;

fn payload<'a>(kind: RecordKind, head: &impl Serialize, content: &'a [u8]) -> Payload<'a> {
    // Room for all that is usual: to grow from nothing takes several allocations a record.
    let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL);
    bytes.extend([0; 4]);
    rmp_serde::encode::write(&mut bytes, head).expect("a head holds nothing that MessagePack can't");
    let head_bytes = u32::try_from(bytes.len() - 4).expect("heads are bounded by path and attribute lengths");
    bytes[..4].copy_from_slice(&head_bytes.to_le_bytes());
    Payload { kind, head: bytes, content }
}

impl Plan<'_> {
    /// The records of the transaction, in their order in the log.
    pub fn payloads(&self) -> Vec<Payload<'_>> {
        let mut payloads = vec![payload(RecordKind::Begin, &self.begin, &[])];
        for change in &self.changes {
            payloads.extend(change.before.as_ref().map(|image| image_payload(change, image, None)));
            payloads.extend(
                change.contents.iter().map(|(below, image)| image_payload(change, image, Some(below))),
            );
        }
        let images = payloads.len() - 1;
        payloads.extend(self.changes.iter().map(change_payload));
        let changes = self.changes.len();
        let commit = Commit { tx: self.begin.tx, images: images as u32, changes: changes as u32 };
        payloads.push(payload(RecordKind::Commit, &commit, &[]));
        payloads
    }
}

fn image_payload<'a>(change: &'a Change<'_>, image: &'a Image<'_>, below: Option<&TreePath>) -> Payload<'a> {
    let is_more = below.is_some() || matches!(image.kind, Kind::Dir | Kind::Other);
    let more = is_more.then(|| MoreOfImage {
        kind: KindHead::of(image.kind),
        below: below.map(|path| path.as_bytes().to_vec()),
    });
    let head = ImageHead {
        path: change.path.as_bytes().to_vec(),
        symlink: image.kind == Kind::Symlink,
        inode: image.inode,
        born_ns: image.born.map(|time| time.0),
        size: image.size,
        modified_ns: image.modified.0,
        captured_ns: image.captured.0,
        attributes: Cow::Borrowed(&image.attributes),
        content: ContentHead::of(&image.content),
        more,
    };
    payload(RecordKind::Image, &head, bytes_of(&image.content))
}

fn change_payload<'a>(change: &'a Change<'_>) -> Payload<'a> {
    let (after, content) = match &change.after {
        After::Absent => (AfterHead::Absent, [].as_slice()),
        After::Dir { attributes } => {
            (AfterHead::Dir { attributes: Cow::Borrowed(attributes) }, [].as_slice())
        }
        After::Symlink { target, attributes, inode } => {
            let attributes = Cow::Borrowed(attributes);
            (AfterHead::Symlink { target: target.clone(), attributes, inode: *inode }, [].as_slice())
        }
        After::Moved(moved) => {
            let head = AfterHead::Moved {
                from: moved.from.as_bytes().to_vec(),
                from_parent: moved.from_parent,
                kind: KindHead::of(moved.kind),
                inode: moved.inode,
                born_ns: moved.born.map(|time| time.0),
                size: moved.size,
                before: Cow::Borrowed(&moved.before),
                attributes: Cow::Borrowed(&moved.attributes),
            };
            (head, [].as_slice())
        }
        After::Same { attributes } => {
            (AfterHead::Same { attributes: Cow::Borrowed(attributes) }, [].as_slice())
        }
        After::Patched(patched) => {
            let ranges = patched.ranges().to_vec();
            (AfterHead::Patched { size: patched.size(), ranges }, patched.bytes())
        }
        After::File { attributes, size, content, inode } => {
            debug_assert_ne!(*content, Content::Unread, "a new content is known");
            let attributes = Cow::Borrowed(attributes);
            let head =
                AfterHead::File { attributes, size: *size, content: ContentHead::of(content), inode: *inode };
            (head, bytes_of(content))
        }
    };
    let slot = change.slot.as_ref().map(Cow::Borrowed);
    let head = ChangeHead { path: change.path.as_bytes().to_vec(), parent: change.parent, slot, after };
    payload(RecordKind::Change, &head, content)
}

impl Applied {
    /// The record for the log.
    pub fn payload(&self) -> Payload<'static> {
        payload(RecordKind::Applied, self, &[])
    }
}

impl Checkpoint {
    /// The record for the log.
    pub fn payload(&self) -> Payload<'static> {
        payload(RecordKind::Checkpoint, self, &[])
    }
}

/// A record read back from the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A transaction starts.
    Begin(Begin),
    /// What stood at a name.
    Image(TreePath, Image<'a>),
    /// What stood below a name, in a directory that goes along: by its path below it.
    ImageBelow(TreePath, TreePath, Image<'a>),
    /// What shall stand there; what stood there is not filled in.
    Change(Change<'a>),
    /// The transaction is complete.
    Commit(Commit),
    /// Commits have been applied.
    Applied(Applied),
    /// Commits are settled.
    Checkpoint(Checkpoint),
}

/// Why a payload with a good checksum is not a record of this format.
#[derive(Debug, thiserror::Error)]
#[error("record at lsn {lsn} is not one of this format: {reason}")]
pub struct DecodeError {
    /// The frame's position.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub reason: String,
}

/// Decodes one frame's payload.
///
/// # Errors
/// A payload whose checksum holds but whose meaning doesn't: written by another program, or by hand.
pub fn decode(lsn: Lsn, kind: NonZeroU8, payload: Cow<'_, [u8]>) -> Result<Record<'_>, DecodeError> {
    decode_parts(kind, payload).map_err(|reason| DecodeError { lsn, reason })
}

fn decode_parts(kind: NonZeroU8, payload: Cow<'_, [u8]>) -> Result<Record<'_>, String> {
    let kind = RecordKind::from_code(kind).ok_or_else(|| format!("unknown kind {kind}"))?;
    let (length, rest) = payload.split_first_chunk().ok_or("shorter than its head's length")?;
    let head_bytes = u32::from_le_bytes(*length) as usize;
    let head = rest.get(..head_bytes).ok_or("its head is longer than the record")?;
    let at = 4 + head_bytes;
    match kind {
        RecordKind::Begin => Ok(Record::Begin(decode_head(head)?)),
        RecordKind::Commit => Ok(Record::Commit(decode_head(head)?)),
        RecordKind::Applied => Ok(Record::Applied(decode_head(head)?)),
        RecordKind::Checkpoint => Ok(Record::Checkpoint(decode_head(head)?)),
        RecordKind::Image => {
            let head: ImageHead<'static> = decode_head(head)?;
            let path = TreePath::from_bytes(&head.path).map_err(|error| error.to_string())?;
            let content = content_of(&head.content, head.size, tail(payload, at))?;
            let kind = match (&head.more, head.symlink) {
                (Some(more), _) => more.kind.kind(),
                (None, true) => Kind::Symlink,
                (None, false) => Kind::File,
            };
            let below = head.more.and_then(|more| more.below);
            let below = below.as_deref().map(TreePath::from_bytes_below).transpose();
            let below = below.map_err(|error| error.to_string())?;
            let image = Image {
                kind,
                inode: head.inode,
                born: head.born_ns.map(Timestamp),
                size: head.size,
                modified: Timestamp(head.modified_ns),
                changed: Timestamp::default(),
                captured: Timestamp(head.captured_ns),
                links: 1,
                mount: 0,
                is_fixed: false,
                attributes: head.attributes.into_owned(),
                content,
            };
            Ok(match below {
                Some(below) => Record::ImageBelow(path, below, image),
                None => Record::Image(path, image),
            })
        }
        RecordKind::Change => {
            let head: ChangeHead<'static> = decode_head(head)?;
            let path = TreePath::from_bytes(&head.path).map_err(|error| error.to_string())?;
            let slot = head.slot.map(Cow::into_owned);
            if slot.as_ref().is_some_and(|slot| !slot.is_valid()) {
                return Err("its slot is not a plain name".into());
            }
            let after = match head.after {
                AfterHead::Absent => After::Absent,
                AfterHead::Dir { attributes } => After::Dir { attributes: attributes.into_owned() },
                AfterHead::Symlink { target, attributes, inode } => {
                    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
                        return Err("a symlink that leads nowhere".into());
                    }
                    After::Symlink { target, attributes: attributes.into_owned(), inode }
                }
                AfterHead::Moved { from, from_parent, kind, inode, born_ns, size, before, attributes } => {
                    After::Moved(Box::new(Moved {
                        from: TreePath::from_bytes(&from).map_err(|error| error.to_string())?,
                        from_parent,
                        kind: kind.kind(),
                        inode,
                        born: born_ns.map(Timestamp),
                        size,
                        before: before.into_owned(),
                        attributes: attributes.into_owned(),
                    }))
                }
                AfterHead::Same { attributes } => After::Same { attributes: attributes.into_owned() },
                AfterHead::Patched { size, ranges } => {
                    After::Patched(Patched::from_parts(size, ranges, tail(payload, at).into())?)
                }
                AfterHead::File { content: ContentHead::Unread, .. } => {
                    return Err("a new file without content".into());
                }
                AfterHead::File { attributes, size, content, inode } => After::File {
                    attributes: attributes.into_owned(),
                    size,
                    content: content_of(&content, size, tail(payload, at))?,
                    inode,
                },
            };
            match after {
                After::Same { .. } | After::Patched(_) if slot.is_some() => {
                    return Err("a slot that nothing goes into".into());
                }
                After::Absent | After::File { .. } | After::Symlink { .. } | After::Moved(_)
                    if slot.is_none() =>
                {
                    return Err("a change without a slot".into());
                }
                _ => {}
            }
            let parent = head.parent;
            Ok(Record::Change(Change { path, parent, before: None, contents: Vec::new(), after, slot }))
        }
    }
}

fn decode_head<T: DeserializeOwned>(head: &[u8]) -> Result<T, String> {
    // From a slice, so that a hostile length is checked against what is there before anything is allocated.
    rmp_serde::from_slice(head).map_err(|error| error.to_string())
}

fn tail(payload: Cow<'_, [u8]>, at: usize) -> Cow<'_, [u8]> {
    match payload {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[at..]),
        Cow::Owned(mut bytes) => Cow::Owned(bytes.split_off(at)),
    }
}

fn content_of<'a>(head: &ContentHead, size: u64, bytes: Cow<'a, [u8]>) -> Result<Content<'a>, String> {
    match head {
        ContentHead::Inline if bytes.len() as u64 == size => Ok(Content::Inline(bytes.into())),
        ContentHead::Inline => Err(format!("{} bytes of content, {size} expected", bytes.len())),
        _ if !bytes.is_empty() => Err("content where a digest was promised".into()),
        ContentHead::Digest(digest) => Ok(Content::Digest(*digest)),
        ContentHead::Unread => Ok(Content::Unread),
    }
}
