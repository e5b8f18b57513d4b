//! What a lock's file says: who took it, and, of the commit lock's, whether the store is poisoned, and where transactions
//! have met.
//!
//! ```text
//! 0                            512                                    1024
//! +----------------------------+--------------------------------------+------------------------+
//! | pid, started, boot,        | `poisoned`, `recovered`, id, reason  | `met`, hash of a name, |
//! | program, since             |                                      | until when             |
//! +----------------------------+--------------------------------------+------------------------+
//! ```
//!
//! All are lines of text, padded with newlines. The first is a hint for people. The second is read under the commit lock, and
//! says nothing once no process has the store open: the log does then. The third is a hint too, which anybody writes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IoSlice};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use atomtree_vfs::{File, ProcessIdentity, SECTOR_BYTES, Timestamp};

use crate::contention::REMEMBERED;

const NOTE_BYTES: usize = SECTOR_BYTES;
const MARK_AT: u64 = NOTE_BYTES as u64;
const MEETING_AT: u64 = 2 * NOTE_BYTES as u64;
/// Long reasons are cut.
const REASON_BYTES_MAX: usize = 400;

/// A process that has a store open, or holds one of its locks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The process.
    pub process: ProcessIdentity,
    /// Since when.
    pub since: Timestamp,
    /// Since when it has been waiting for the commit lock, if it is.
    pub waiting_since: Option<Timestamp>,
}

impl Member {
    pub(crate) fn new(process: ProcessIdentity, since: Timestamp) -> Self {
        Self { process, since, waiting_since: None }
    }

    /// What the file says, if it can be understood.
    pub(crate) fn read(file: &dyn File) -> Option<Self> {
        let [text] = read_parts(file, 0).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let process = ProcessIdentity {
            pid: field("pid")?.parse().ok()?,
            started: field("started")?.parse().ok()?,
            boot: field("boot")?.to_owned(),
            program: field("program")?.to_owned(),
        };
        let time = |name: &str| field(name).and_then(|time| time.parse().ok()).map(Timestamp);
        Some(Self { process, since: time("since").unwrap_or_default(), waiting_since: time("waiting") })
    }

    pub(crate) fn write(&self, file: &dyn File) -> io::Result<()> {
        write_part(file, 0, self.to_text())
    }

    /// The lines.
    pub(crate) fn to_text(&self) -> String {
        let ProcessIdentity { pid, started, boot, program } = &self.process;
        let program = program.replace('\n', " ");
        let waiting = self.waiting_since.map(|since| format!("waiting {}\n", since.0)).unwrap_or_default();
        format!(
            "pid {pid}\nstarted {started}\nboot {boot}\nprogram {program}\nsince {}\n{waiting}",
            self.since.0
        )
    }
}

/// What happened to the store last that all who have it open must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing.
    #[default]
    None,
    /// It takes no commits until somebody recovers it.
    Poisoned { id: u128, reason: String },
    /// Somebody recovers it, and may be found to have died in that.
    Recovering { id: u128 },
    /// It was recovered, with others having it open.
    Recovered { id: u128 },
}

impl Mark {
    pub(crate) fn read(file: &dyn File) -> io::Result<Self> {
        let [mark] = read_parts(file, MARK_AT)?;
        Ok(Self::parse(&mark))
    }

    /// As [`Mark::read`], and the meeting, in one look.
    pub(crate) fn read_with_meeting(file: &dyn File) -> io::Result<(Self, Option<Meeting>)> {
        let [mark, meeting] = read_parts(file, MARK_AT)?;
        Ok((Self::parse(&mark), Meeting::parse(&meeting)))
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let Some((kind, id)) = lines.next().and_then(|line| line.split_once(' ')) else {
            return Self::None;
        };
        let Ok(id) = u128::from_str_radix(id, 16) else { return Self::None };
        match kind {
            "poisoned" => Self::Poisoned { id, reason: lines.next().unwrap_or_default().to_owned() },
            "recovering" => Self::Recovering { id },
            "recovered" => Self::Recovered { id },
            _ => Self::None,
        }
    }

    pub(crate) fn write(&self, file: &dyn File) -> io::Result<()> {
        let text = match self {
            Self::None => String::new(),
            Self::Poisoned { id, reason } => {
                let mut reason = reason.replace('\n', " ");
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                format!("poisoned {id:032x}\n{reason}\n")
            }
            Self::Recovering { id } => format!("recovering {id:032x}\n"),
            Self::Recovered { id } => format!("recovered {id:032x}\n"),
        };
        write_part(file, MARK_AT, text)
    }
}

/// A name at which a transaction has met another of late, and is repeated. Who goes on to commit changes of it may be the one
/// that always comes first. Whoever meets writes it, with no lock: the sector is its own, and what is torn or overwritten is
/// a hint less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meeting {
    name: u64,
    until: Timestamp,
}

impl Meeting {
    pub(crate) fn at(path: &Path, now: Timestamp) -> Self {
        Self { name: hash(path), until: remembered_until(now) }
    }

    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.name == hash(path)
    }

    /// Whether it still counts. A clock that was set back since makes none of it.
    pub(crate) fn is_of_late(&self, now: Timestamp) -> bool {
        now < self.until && self.until <= remembered_until(now)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("met ")?.split_ascii_whitespace();
        let name = u64::from_str_radix(words.next()?, 16).ok()?;
        Some(Self { name, until: Timestamp(words.next()?.parse().ok()?) })
    }

    pub(crate) fn write(&self, file: &dyn File) -> io::Result<()> {
        write_part(file, MEETING_AT, format!("met {:016x} {}\n", self.name, self.until.0))
    }
}

fn remembered_until(now: Timestamp) -> Timestamp {
    now.plus_ns(REMEMBERED.as_nanos() as i64)
}

/// The same in every process that was built by the same compiler; others miss the hint.
fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.as_os_str().as_bytes().hash(&mut hasher);
    hasher.finish()
}

/// Parts as text, from an offset on; what can't be understood is nothing.
fn read_parts<const N: usize>(file: &dyn File, offset: u64) -> io::Result<[String; N]> {
    let mut bytes = vec![0; N * NOTE_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    let mut parts = bytes.chunks(NOTE_BYTES);
    Ok(std::array::from_fn(|_| {
        String::from_utf8(parts.next().unwrap_or_default().to_vec()).unwrap_or_default()
    }))
}

fn write_part(file: &dyn File, offset: u64, mut text: String) -> io::Result<()> {
    text.truncate(text.floor_char_boundary(NOTE_BYTES));
    text.extend(std::iter::repeat_n('\n', NOTE_BYTES - text.len()));
    file.write_at(&[IoSlice::new(text.as_bytes())], offset)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use atomtree_vfs::{Vfs, sim::Sim};

    use super::*;

    /// Goal: what anybody writes of a meeting leaves the mark as it is, and is nothing where it can't be understood.
    #[test]
    fn a_meeting_stands_beside_the_mark() {
        let root = Sim::new(1).open_root(Path::new("/")).unwrap();
        let file = root.create_file(OsStr::new("lock"), 0o600).unwrap();
        assert_eq!(Mark::read_with_meeting(&*file).unwrap(), (Mark::None, None));
        let now = Timestamp(1_000_000_000_000);
        let meeting = Meeting::at(Path::new("dir/name"), now);
        meeting.write(&*file).unwrap();
        assert_eq!(Mark::read_with_meeting(&*file).unwrap(), (Mark::None, Some(meeting)));
        assert!(meeting.is_at(Path::new("dir/name")) && !meeting.is_at(Path::new("dir")));
        assert!(meeting.is_of_late(now) && meeting.is_of_late(meeting.until.plus_ns(-1)));
        assert!(!meeting.is_of_late(meeting.until) && !meeting.is_of_late(now.plus_ns(-1)));
        let mark = Mark::Poisoned { id: 5, reason: "why\nnot".repeat(100) };
        mark.write(&*file).unwrap();
        let (found, beside) = Mark::read_with_meeting(&*file).unwrap();
        assert!(matches!(found, Mark::Poisoned { id: 5, .. }) && beside == Some(meeting));
        for garbage in ["met", "met x 1", "met 1", "met 1 1x", "\u{ff}"] {
            write_part(&*file, MEETING_AT, garbage.into()).unwrap();
            assert_eq!(Mark::read_with_meeting(&*file).unwrap().1, None, "{garbage}");
        }
        file.write_at(&[IoSlice::new(&[0xff; NOTE_BYTES])], MEETING_AT).unwrap();
        assert_eq!(Mark::read_with_meeting(&*file).unwrap(), (found, None));
    }
}
