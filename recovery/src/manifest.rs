//! `history/`: what settled transactions changed, kept after the log has forgotten them.
//!
//! ```text
//! history/<first transaction>-<last>.manifest      both as 16 hexadecimal digits; written once
//! +---------------------+---------------------------------------------+-----+
//! | "ATOMHIST" u32 vers | u32 bytes, u32 CRC-32, MessagePack summary  | ... |
//! +---------------------+---------------------------------------------+-----+
//! ```
//!
//! One file for each checkpoint. Changing the layout or a summary's fields changes the format version.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IoSlice};

use atomtree_vfs::{Access, Dir, Kind};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::analyze::Committed;
use crate::error::{Doing, Error};
use crate::image::{Attributes, Digest, Image};
use crate::places::FORMAT_VERSION;
use crate::plan::{After, Begin, Change, TransactionId};
use crate::tree_path::TreePath;

const MAGIC: [u8; 8] = *b"ATOMHIST";
const HEADER_BYTES: usize = 12;
const SUFFIX: &str = ".manifest";
/// Manifests are read whole; a file larger than this is not one.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// One settled transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number, time, label and agent.
    pub begin: Begin,
    /// LSN of its commit record.
    pub lsn: u64,
    /// What it changed.
    #[serde(deserialize_with = "as_they_come")]
    pub changes: Vec<ChangeSummary>,
}

/// Room for so many changes is made before the first is read, whatever their number is said to be.
const CHANGES_AT_FIRST: usize = 1 << 10;

fn as_they_come<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChangeSummary>, D::Error> {
    struct Changes;
    impl<'de> Visitor<'de> for Changes {
        type Value = Vec<ChangeSummary>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("changes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<ChangeSummary>, A::Error> {
            let mut changes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(CHANGES_AT_FIRST));
            while let Some(change) = seq.next_element()? {
                changes.push(change);
            }
            Ok(changes)
        }
    }
    deserializer.deserialize_seq(Changes)
}

/// One name of a settled transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSummary {
    /// The name, as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What stood there before; `None` for nothing.
    pub before: Option<State>,
    /// What stood there after.
    pub after: Option<State>,
    /// Where it came from, if it was moved here; as bytes.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<u8>>,
}

/// What stood at a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Whether it was a directory.
    pub directory: bool,
    /// Permission bits.
    pub mode: u32,
    /// Length in bytes; 0 for a directory.
    pub size: u64,
    /// Digest of the content, where it was known; of a symlink, of where it leads.
    pub digest: Option<Digest>,
    /// Whether it was a symlink.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub symlink: bool,
}

impl Summary {
    /// What is kept of a transaction.
    pub fn of(transaction: &Committed<'_>) -> Self {
        Self {
            begin: transaction.begin.clone(),
            lsn: transaction.lsn.0,
            changes: ChangeSummary::of_all(&transaction.changes),
        }
    }
}

impl ChangeSummary {
    /// Every name that the changes touch: those of directories that go along, and those that inodes moved away from,
    /// included.
    fn of_all(changes: &[Change<'_>]) -> Vec<Self> {
        let mut gone: BTreeMap<TreePath, State> = BTreeMap::new();
        for change in changes {
            for (below, image) in &change.contents {
                gone.extend(change.path.below(below).map(|path| (path, State::of_image(image))));
            }
            if let Some(moved) = change.moved() {
                let state = State::of(moved.kind, &moved.before, moved.size, None);
                gone.insert(moved.from.clone(), state);
            }
        }
        let mut all: Vec<Self> = Vec::with_capacity(changes.len() + gone.len());
        for change in changes {
            // What was moved away from the name, or went along with a directory, stood there too.
            let stood = gone.remove(&change.path);
            let before = change.before.as_ref().map(State::of_image).or(stood);
            let after = match &change.after {
                After::Same { attributes } => {
                    before.clone().map(|before| State { mode: attributes.mode, ..before })
                }
                after => State::after(after),
            };
            let from = change.moved().map(|moved| moved.from.as_bytes().to_vec());
            all.push(Self { path: change.path.as_bytes().to_vec(), before, after, from });
        }
        all.extend(gone.into_iter().map(|(path, state)| Self {
            path: path.as_bytes().to_vec(),
            before: Some(state),
            after: None,
            from: None,
        }));
        all
    }
}

impl State {
    fn of(kind: Kind, attributes: &Attributes, size: u64, digest: Option<Digest>) -> Self {
        let directory = kind == Kind::Dir;
        let size = if directory { 0 } else { size };
        Self { directory, mode: attributes.mode, size, digest, symlink: kind == Kind::Symlink }
    }

    fn of_image(image: &Image<'_>) -> Self {
        Self::of(image.kind, &image.attributes, image.size, image.content.digest())
    }

    fn after(after: &After<'_>) -> Option<Self> {
        let attributes = after.attributes()?;
        let (size, digest) = match after {
            After::File { size, content, .. } => (*size, content.digest()),
            After::Symlink { target, .. } => (target.len() as u64, Some(Digest::of(target))),
            After::Moved(moved) => (moved.size, None),
            After::Absent | After::Dir { .. } | After::Same { .. } => (0, None),
        };
        Some(Self::of(after.kind()?, attributes, size, digest))
    }
}

fn file_name(first: TransactionId, last: TransactionId) -> OsString {
    format!("{:016x}-{:016x}{SUFFIX}", first.0, last.0).into()
}

/// The transactions that a manifest's name promises; `None` for any other name.
pub fn range_of(name: &OsStr) -> Option<(TransactionId, TransactionId)> {
    let (first, last) = name.to_str()?.strip_suffix(SUFFIX)?.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
    Some((TransactionId(number(first)?), TransactionId(number(last)?)))
}

/// Writes a manifest of these transactions, which must not be empty, and makes it durable.
///
/// # Durability
/// The manifest and its name are durable when this returns `Ok`. One that a crash left behind is replaced.
pub fn write(history: &dyn Dir, summaries: &[Summary]) -> Result<(), Error> {
    let (first, last) = (&summaries[0].begin, &summaries[summaries.len() - 1].begin);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    for summary in summaries {
        let body = rmp_serde::to_vec(summary).expect("a summary holds nothing that MessagePack can't");
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
    }
    let name = file_name(first.tx, last.tx);
    let label = format!("history/{}", name.to_string_lossy());
    write_file(history, &name, &bytes).doing("write", &label)
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
    match word(8) {
        Some(FORMAT_VERSION) => {}
        Some(version) => {
            return Err(Damage(8, format!("format version {version} found, {FORMAT_VERSION} expected")));
        }
        None => return Err(Damage(8, "it ends in its header".into())),
    }
    let mut summaries = Vec::new();
    let mut at = HEADER_BYTES;
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
        summaries.push(rmp_serde::from_slice(record).map_err(|error| Damage(at, error.to_string()))?);
        at = body + length as usize;
    }
    Ok(summaries)
}

/// Drops manifests of which no transaction is newer than `keep_from`; durable when this returns.
pub fn prune(history: &dyn Dir, keep_from: TransactionId) -> Result<(), Error> {
    let mut pruned = false;
    for name in list(history)? {
        if range_of(&name).is_some_and(|(_, last)| last < keep_from) {
            history.remove_file(&name).doing("remove", &format!("history/{}", name.to_string_lossy()))?;
            pruned = true;
        }
    }
    if pruned { history.sync().doing("sync", "history") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(tx: u64) -> Summary {
        let state = State {
            directory: false,
            mode: 0o644,
            size: 3,
            digest: Some(Digest::of(b"abc")),
            symlink: false,
        };
        Summary {
            begin: Begin { tx: TransactionId(tx), time_ns: 5, label: Some("why".into()), agent: None },
            lsn: 9,
            changes: vec![ChangeSummary {
                path: b"a/b".to_vec(),
                before: None,
                after: Some(state),
                from: None,
            }],
        }
    }

    fn encoded(count: u64) -> Vec<u8> {
        let sim = atomtree_vfs::sim::Sim::new(1);
        let dir = atomtree_vfs::Vfs::open_root(&sim, std::path::Path::new("/")).unwrap();
        let summaries: Vec<_> = (1..=count).map(summary).collect();
        write(&*dir, &summaries).unwrap();
        let names = list(&*dir).unwrap();
        assert_eq!(range_of(&names[0]), Some((TransactionId(1), TransactionId(count))));
        assert_eq!(read(&*dir, &names[0]).unwrap(), summaries);
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
    fn a_manifest_cut_short_is_damaged_unless_it_ends_between_records() {
        let bytes = encoded(2);
        let whole = (0..bytes.len()).filter(|&at| parse(&bytes[..at]).is_ok()).count();
        assert_eq!(whole, 2, "after the header and after the first record");
    }
}
