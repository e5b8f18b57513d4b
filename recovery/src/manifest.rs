//! `history/`: what settled transactions changed, kept after the log has forgotten them: the catalogue of the originals
//! in `images/`.
//!
//! ```text
//! history/<first transaction>-<last>.manifest      both as 16 hexadecimal digits
//! +-----------------------+---------------------------------------------+-----+
//! | "ATOMHIST" u32 2 head | u32 bytes, u32 CRC-32, MessagePack summary  | ... |
//! +-----------------------+---------------------------------------------+-----+
//!
//! head     u64 transactions, u64 bytes that their images take, i64 time of the newest, u32 CRC-32 of these
//! ```
//!
//! One file for each record of a checkpoint. An original is moved into `images/` only when a manifest that names it is durable, and
//! unlinked only when none does any more. Changing the layout or a summary's fields changes the version; manifests of
//! version 1, without head and images, are still read.

mod first;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IoSlice};
use std::marker::PhantomData;

use atomtree_vfs::{Access, Dir, Kind, Timestamp};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::first::OldSummary;
use crate::analyze::Committed;
use crate::error::{Doing, Error};
use crate::image::{Attributes, Content, Digest, Image};
use crate::images::{ImageName, room};
use crate::plan::{After, Begin, Change, KindHead, Moved, TransactionId};
use crate::tree_path::TreePath;

const MAGIC: [u8; 8] = *b"ATOMHIST";
/// The version that is written.
const VERSION: u32 = 2;
const VERSION_BYTES: usize = 12;
const HEAD_BYTES: usize = 28;
const SUFFIX: &str = ".manifest";
/// What a manifest is called whose images are being unlinked.
const GOING_SUFFIX: &str = ".going";
/// Manifests are read whole; a file larger than this is not one.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// One settled transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number, time, label, agent and process.
    pub begin: Begin,
    /// LSN of its commit record.
    pub lsn: u64,
    /// What it changed.
    #[serde(deserialize_with = "as_they_come")]
    pub changes: Vec<ChangeSummary>,
    /// Whether originals were kept at all: not by the first version of the format.
    #[serde(skip, default = "yes")]
    pub has_images: bool,
}

fn yes() -> bool {
    true
}

/// Room for so many changes is made before the first is read, whatever their number is said to be.
const CHANGES_AT_FIRST: usize = 1 << 10;

/// Takes as many as there are, and makes room only as they come.
pub(crate) fn as_they_come<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Changes<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Changes<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("changes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut changes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(CHANGES_AT_FIRST));
            while let Some(change) = seq.next_element()? {
                changes.push(change);
            }
            Ok(changes)
        }
    }
    deserializer.deserialize_seq(Changes(PhantomData))
}

/// One name of a settled transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSummary {
    /// The name, as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What stood there before; `None` for nothing.
    pub before: Option<Box<State>>,
    /// What stood there after.
    pub after: Option<Box<State>>,
    /// Where it came from, if it was moved here; as bytes.
    #[serde(with = "serde_bytes")]
    pub from: Option<Vec<u8>>,
    /// The name's path before the transaction, where that is another one because a directory above it was moved; as
    /// bytes.
    #[serde(with = "serde_bytes")]
    pub was: Option<Vec<u8>>,
    /// Where what stood there before is kept, if it is.
    pub image: Option<ImageName>,
}

/// What stood at a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it was.
    #[serde(serialize_with = "write_kind", deserialize_with = "read_kind")]
    pub kind: Kind,
    /// Length in bytes; 0 for a directory.
    pub size: u64,
    /// Mode, owner and extended attributes; the mode alone where the first version of the format tells it.
    pub attributes: Attributes,
    /// Digest of the content, where it was known; of a symlink, of where it leads.
    pub digest: Option<Digest>,
    /// Where it led, if it was a symlink.
    #[serde(with = "serde_bytes")]
    pub target: Option<Vec<u8>>,
    /// Inode number; 0 where it is not known.
    pub inode: u64,
    /// When the inode was created, where the file system keeps that.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub born: Option<Timestamp>,
    /// Time of the last change of content, of what stood there before.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub modified: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like this")]
fn write_kind<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    KindHead::of(*kind).serialize(serializer)
}

fn read_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    Ok(KindHead::deserialize(deserializer)?.kind())
}

#[expect(clippy::ref_option, reason = "serde hands it over like this")]
fn write_time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.0).serialize(serializer)
}

fn read_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp))
}

impl Summary {
    /// What is kept of a transaction, with originals of up to `image_bytes_max` bytes.
    pub fn of(transaction: &Committed<'_>, image_bytes_max: u64) -> Self {
        Self {
            begin: transaction.begin.clone(),
            lsn: transaction.lsn.0,
            changes: ChangeSummary::of_all(transaction, image_bytes_max),
            has_images: true,
        }
    }

    /// What its images take, in bytes.
    fn image_bytes(&self) -> u64 {
        let kept = self.changes.iter().filter(|change| change.image.is_some());
        kept.filter_map(|change| Some(room(change.before.as_ref()?.size))).fold(0, u64::saturating_add)
    }
}

impl ChangeSummary {
    /// The name's path before the transaction.
    pub fn place(&self) -> &[u8] {
        self.was.as_deref().unwrap_or(&self.path)
    }

    /// Every name that the changes touch: those of directories that go along, and those that inodes moved away from,
    /// included. The latter are named as they were before the transaction, all others as they are after it.
    fn of_all(transaction: &Committed<'_>, image_bytes_max: u64) -> Vec<Self> {
        let changes = &transaction.changes;
        let places = PlacesBefore::of(changes);
        let mut gone: BTreeMap<TreePath, (State, Option<ImageName>)> = BTreeMap::new();
        let image_of =
            |index: usize| ImageName::of(transaction.begin.tx, index, &changes[index], image_bytes_max);
        for (index, change) in changes.iter().enumerate() {
            let top = places.of_name(&change.path);
            for (below, image) in &change.contents {
                let kept =
                    image_of(index).filter(|_| image.kind != Kind::Symlink).map(|top| top.below(below));
                gone.extend(top.below(below).map(|path| (path, (State::of_image(image), kept))));
            }
            if let Some(moved) = change.moved() {
                gone.insert(moved.from.clone(), (State::of_moved(moved, &moved.before), None));
            }
        }
        let mut all: Vec<Self> = Vec::with_capacity(changes.len() + gone.len());
        for (index, change) in changes.iter().enumerate() {
            let place = places.of_name(&change.path);
            // What was moved away from the name, or went along with a directory, stood there too; unless this is a new
            // directory's name, and a directory that moved away had one like it.
            let is_other = change.parent == 0 && places.is_below_moved(&place);
            let stood = if is_other { None } else { gone.remove(&place) };
            let (before, image) = match (&change.before, stood) {
                (Some(image), _) => (Some(State::of_image(image)), image_of(index)),
                (None, Some((state, image))) => (Some(state), image),
                (None, None) => (None, None),
            };
            let after = match &change.after {
                After::Same { attributes } => {
                    before.clone().map(|before| State { attributes: attributes.clone(), ..before })
                }
                // Of what it holds by then nothing is known, nor when that was written.
                After::Patched(_) => {
                    before.clone().map(|before| State { digest: None, modified: None, ..before })
                }
                after => State::after(after),
            };
            all.push(Self {
                path: change.path.as_bytes().to_vec(),
                before: before.map(Box::new),
                after: after.map(Box::new),
                from: change.moved().map(|moved| moved.from.as_bytes().to_vec()),
                was: (place != change.path).then(|| place.as_bytes().to_vec()),
                image,
            });
        }
        all.extend(gone.into_iter().map(|(path, (state, image))| Self {
            path: path.as_bytes().to_vec(),
            before: Some(Box::new(state)),
            after: None,
            from: None,
            was: None,
            image,
        }));
        all
    }
}

/// Where names lay before a transaction, given where it leaves them: below a directory that it moved, that one's place.
struct PlacesBefore<'a> {
    by_target: HashMap<&'a TreePath, &'a TreePath>,
    sources: HashSet<&'a TreePath>,
}

impl<'a> PlacesBefore<'a> {
    fn of(changes: &'a [Change<'_>]) -> Self {
        let moves = || changes.iter().filter_map(|change| Some((&change.path, &change.moved()?.from)));
        Self { by_target: moves().collect(), sources: moves().map(|(_, from)| from).collect() }
    }

    /// The place of a name, which need not be that of what stands there.
    fn of_name(&self, path: &TreePath) -> TreePath {
        let above = std::iter::successors(path.parent(), TreePath::parent);
        let moved = above.filter_map(|above| Some((*self.by_target.get(&above)?, path.relative_to(&above)?)));
        moved.take(1).find_map(|(from, rest)| from.below(&rest)).unwrap_or_else(|| path.clone())
    }

    /// Whether a place lies below one that a directory moved away from.
    fn is_below_moved(&self, place: &TreePath) -> bool {
        std::iter::successors(place.parent(), TreePath::parent).any(|above| self.sources.contains(&above))
    }
}

impl State {
    fn of_image(image: &Image<'_>) -> Self {
        let target = match (image.kind, &image.content) {
            (Kind::Symlink, Content::Inline(target)) => Some(target.to_vec()),
            _ => None,
        };
        Self {
            kind: image.kind,
            size: if image.kind == Kind::Dir { 0 } else { image.size },
            attributes: image.attributes.clone(),
            digest: image.content.digest(),
            target,
            inode: image.inode,
            born: image.born,
            modified: Some(image.modified),
        }
    }

    fn of_moved(moved: &Moved, attributes: &Attributes) -> Self {
        Self {
            kind: moved.kind,
            size: if moved.kind == Kind::Dir { 0 } else { moved.size },
            attributes: attributes.clone(),
            digest: None,
            target: None,
            inode: moved.inode,
            born: moved.born,
            modified: None,
        }
    }

    fn after(after: &After<'_>) -> Option<Self> {
        let attributes = after.attributes()?.clone();
        let new = |kind, size, digest, target, inode| Self {
            kind,
            size,
            attributes,
            digest,
            target,
            inode,
            born: None,
            modified: None,
        };
        match after {
            After::File { size, content, inode, .. } => {
                Some(new(Kind::File, *size, content.digest(), None, *inode))
            }
            After::Symlink { target, inode, .. } => {
                let (size, digest) = (target.len() as u64, Digest::of(target));
                Some(new(Kind::Symlink, size, Some(digest), Some(target.clone()), *inode))
            }
            After::Dir { .. } => Some(new(Kind::Dir, 0, None, None, 0)),
            After::Moved(moved) => Some(Self::of_moved(moved, &moved.attributes)),
            After::Absent | After::Same { .. } | After::Patched(_) => None,
        }
    }
}

pub(crate) fn file_name(first: TransactionId, last: TransactionId) -> OsString {
    format!("{:016x}-{:016x}{SUFFIX}", first.0, last.0).into()
}

/// The transactions that a manifest's name promises; `None` for any other name.
pub fn range_of(name: &OsStr) -> Option<(TransactionId, TransactionId)> {
    range_before(name, SUFFIX)
}

/// As [`range_of`], for one whose images are being unlinked.
pub fn range_of_going(name: &OsStr) -> Option<(TransactionId, TransactionId)> {
    range_before(name, GOING_SUFFIX)
}

fn range_before(name: &OsStr, suffix: &str) -> Option<(TransactionId, TransactionId)> {
    let (first, last) = name.to_str()?.strip_suffix(suffix)?.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
    Some((TransactionId(number(first)?), TransactionId(number(last)?)))
}

/// What a manifest is called from when its images are being unlinked.
pub fn going_name(name: &OsStr) -> OsString {
    let name = name.to_string_lossy();
    format!("{}{GOING_SUFFIX}", name.strip_suffix(SUFFIX).unwrap_or(&name)).into()
}

fn range(summaries: &[Summary]) -> (TransactionId, TransactionId) {
    (summaries[0].begin.tx, summaries[summaries.len() - 1].begin.tx)
}

/// Writes a manifest of these transactions, which must not be empty, and makes it durable.
///
/// # Durability
/// The manifest and its name are durable when this returns `Ok`. One of the same name is replaced.
pub fn write(history: &dyn Dir, summaries: &[Summary]) -> Result<(), Error> {
    let (first, last) = range(summaries);
    write_as(history, &file_name(first, last), summaries)
}

/// As [`write()`], of what is to be unlinked.
pub fn write_going(history: &dyn Dir, summaries: &[Summary]) -> Result<OsString, Error> {
    let (first, last) = range(summaries);
    let name = going_name(&file_name(first, last));
    write_as(history, &name, summaries)?;
    Ok(name)
}

fn write_as(history: &dyn Dir, name: &OsStr, summaries: &[Summary]) -> Result<(), Error> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(Head::of(summaries).to_bytes());
    for summary in summaries {
        let body = rmp_serde::to_vec(summary).expect("a summary holds nothing that MessagePack can't");
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
    }
    let label = format!("history/{}", name.to_string_lossy());
    write_file(history, name, &bytes).doing("write", &label)
}

fn write_file(history: &dyn Dir, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    let new = OsStr::new("new");
    match history.remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = history.create_file(new, 0o600)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    file.sync_all()?;
    history.rename_over(new, history, name)?;
    history.sync()
}

/// The names of all manifests, oldest first.
pub fn list(history: &dyn Dir) -> Result<Vec<OsString>, Error> {
    let entries = history.list().doing("list", "history")?;
    let mut names: Vec<_> =
        entries.into_iter().map(|entry| entry.name).filter(|name| range_of(name).is_some()).collect();
    names.sort();
    Ok(names)
}

/// What a manifest's head says, and what is read of it where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many transactions it has.
    pub transactions: u64,
    /// What their images take, in bytes.
    pub image_bytes: u64,
    /// When the newest of them was logged.
    pub newest_ns: i64,
}

impl Head {
    fn of(summaries: &[Summary]) -> Self {
        Self {
            transactions: summaries.len() as u64,
            image_bytes: summaries.iter().map(Summary::image_bytes).fold(0, u64::saturating_add),
            newest_ns: summaries.iter().map(|summary| summary.begin.time_ns).max().unwrap_or(0),
        }
    }

    fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.transactions.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.image_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.newest_ns.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..24]);
        bytes[24..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.get(..HEAD_BYTES)?.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let this = Self { transactions: word(0), image_bytes: word(8), newest_ns: word(16) as i64 };
        (this.to_bytes() == *bytes).then_some(this)
    }
}

/// Reads a manifest's head. What the first version of the format does not say is told by its name and its file's time;
/// a damaged one counts as empty and old as its file is, so that it goes in its turn.
pub fn read_head(history: &dyn Dir, name: &OsStr) -> Result<Head, Error> {
    let label = format!("history/{}", name.to_string_lossy());
    let file = history.open_file(name, Access::Read).doing("open", &label)?;
    let mut bytes = [0; VERSION_BYTES + HEAD_BYTES];
    let read = file.read_at(&mut bytes, 0).doing("read", &label)?;
    let is_present = read == bytes.len() && bytes[..8] == MAGIC && bytes[8..12] == VERSION.to_le_bytes();
    if let Some(head) = Head::from_bytes(&bytes[VERSION_BYTES..]).filter(|_| is_present) {
        return Ok(head);
    }
    let newest_ns = file.metadata().doing("read the metadata of", &label)?.modified.0;
    let transactions = range_of(name).map_or(0, |(first, last)| (last.0 - first.0).saturating_add(1));
    Ok(Head { transactions, image_bytes: 0, newest_ns })
}

/// Reads one manifest.
///
/// # Errors
/// [`Error::Manifest`] naming the offset of what is damaged.
pub fn read(history: &dyn Dir, name: &OsStr) -> Result<Vec<Summary>, Error> {
    let label = format!("history/{}", name.to_string_lossy());
    let file = history.open_file(name, Access::Read).doing("open", &label)?;
    let bytes = file.read_all(MANIFEST_BYTES_MAX).doing("read", &label)?;
    let damaged = |Damage(offset, reason)| Error::Manifest {
        name: name.to_string_lossy().into_owned(),
        offset: offset as u64,
        reason,
    };
    let summaries = parse(&bytes).map_err(damaged)?;
    // One that ends between two summaries is whole as far as it goes, and so is another one's content.
    let tx = |summary: Option<&Summary>| summary.map_or(TransactionId(0), |summary| summary.begin.tx);
    let (found, expected) = ((tx(summaries.first()), tx(summaries.last())), range_of(name));
    if expected.is_some_and(|expected| found != expected) {
        let reason = format!("transactions {} to {} found, where its name says others", found.0, found.1);
        return Err(damaged(Damage(bytes.len(), reason)));
    }
    Ok(summaries)
}

/// The offset, and what is wrong there.
struct Damage(usize, String);

fn parse(bytes: &[u8]) -> Result<Vec<Summary>, Damage> {
    let word = |at: usize| {
        bytes.get(at..at + 4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
    };
    if bytes.get(..8) != Some(&MAGIC) {
        return Err(Damage(0, "it does not start with ATOMHIST".into()));
    }
    let (head, mut at) = match word(8) {
        Some(1) => (None, VERSION_BYTES),
        Some(VERSION) => {
            let head = Head::from_bytes(&bytes[VERSION_BYTES..]);
            let head = head.ok_or_else(|| Damage(VERSION_BYTES, "its head is damaged".into()))?;
            (Some(head), VERSION_BYTES + HEAD_BYTES)
        }
        Some(version) => {
            return Err(Damage(8, format!("version {version} found, and this program reads 1 to {VERSION}")));
        }
        None => return Err(Damage(8, "it ends in its header".into())),
    };
    let mut summaries = Vec::new();
    while at < bytes.len() {
        let (Some(length), Some(expected)) = (word(at), word(at + 4)) else {
            return Err(Damage(at, "it ends in a record's header".into()));
        };
        let body = at + 8;
        let record = bytes.get(body..body + length as usize);
        let record = record.ok_or_else(|| Damage(at, format!("it ends in a record of {length} bytes")))?;
        let found = crc32fast::hash(record);
        if found != expected {
            return Err(Damage(at, format!("checksum {found:#010x}, expected {expected:#010x}")));
        }
        let summary = match head {
            Some(_) => rmp_serde::from_slice(record),
            None => rmp_serde::from_slice::<OldSummary>(record).map(Summary::from),
        };
        summaries.push(summary.map_err(|error| Damage(at, error.to_string()))?);
        at = body + length as usize;
    }
    if head.is_some_and(|head| head != Head::of(&summaries)) {
        return Err(Damage(VERSION_BYTES, "its head tells of other transactions".into()));
    }
    Ok(summaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(digest: Option<Digest>) -> Box<State> {
        Box::new(State {
            kind: Kind::File,
            size: 3,
            attributes: Attributes { mode: 0o644, uid: 1, gid: 2, xattrs: Vec::new() },
            digest,
            target: None,
            inode: 9,
            born: None,
            modified: Some(Timestamp(4)),
        })
    }

    fn summary(tx: u64) -> Summary {
        let begin = Begin {
            tx: TransactionId(tx),
            time_ns: 5,
            label: Some("why".into()),
            agent: None,
            who: Some(crate::plan::Who { uid: 1000, pid: 7, program: "sh".into() }),
        };
        let change = ChangeSummary {
            path: b"a/b".to_vec(),
            before: Some(state(None)),
            after: Some(state(Some(Digest::of(b"abc")))),
            from: None,
            was: None,
            image: Some(ImageName::from_bytes(b"0000000000000001-2").unwrap()),
        };
        Summary { begin, lsn: 9, changes: vec![change], has_images: true }
    }

    fn encoded(count: u64) -> Vec<u8> {
        let sim = atomtree_vfs::sim::Sim::new(1);
        let dir = atomtree_vfs::Vfs::open_root(&sim, std::path::Path::new("/")).unwrap();
        let summaries: Vec<_> = (1..=count).map(summary).collect();
        write(&*dir, &summaries).unwrap();
        let names = list(&*dir).unwrap();
        assert_eq!(range_of(&names[0]), Some((TransactionId(1), TransactionId(count))));
        assert_eq!(read(&*dir, &names[0]).unwrap(), summaries);
        let head = Head { transactions: count, image_bytes: count * 4096, newest_ns: 5 };
        assert_eq!(read_head(&*dir, &names[0]).unwrap(), head);
        dir.open_file(&names[0], Access::Read).unwrap().read_all(1 << 20).unwrap()
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encoded(2);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(parse(&damaged).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_manifest_cut_short_is_damaged() {
        let bytes = encoded(2);
        let whole = (0..bytes.len()).filter(|&at| parse(&bytes[..at]).is_ok()).count();
        assert_eq!(whole, 0, "its head says how much there is");
    }

    #[test]
    fn one_that_goes_has_another_name() {
        let name = file_name(TransactionId(1), TransactionId(0x2f));
        let going = going_name(&name);
        assert_eq!(going, OsStr::new("0000000000000001-000000000000002f.going"));
        assert_eq!((range_of(&going), range_of_going(&name)), (None, None));
        assert_eq!(range_of_going(&going), range_of(&name));
    }
}
