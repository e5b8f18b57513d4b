//! What a lock's file says: who took it, and, of the commit lock's, whether the store is poisoned.
//!
//! ```text
//! 0                                                     512
//! +-----------------------------------------------------+--------------------------------------+
//! | pid, started, boot, program, since: lines of text    | `poisoned`, `recovered`, id, reason    |
//! +-----------------------------------------------------+--------------------------------------+
//! ```
//!
//! Both are padded with newlines. The first is a hint for people. The second is read under the commit lock, and says
//! nothing once no process has the store open: the log does then.

use std::io::{self, IoSlice};

use atomtree_vfs::{File, ProcessIdentity, SECTOR_BYTES, Timestamp};

const NOTE_BYTES: usize = SECTOR_BYTES;
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
        let text = read_part(file, 0).ok()?;
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
        let text = read_part(file, NOTE_BYTES as u64)?;
        let mut lines = text.lines();
        let Some((kind, id)) = lines.next().and_then(|line| line.split_once(' ')) else {
            return Ok(Self::None);
        };
        let Ok(id) = u128::from_str_radix(id, 16) else { return Ok(Self::None) };
        Ok(match kind {
            "poisoned" => Self::Poisoned { id, reason: lines.next().unwrap_or_default().to_owned() },
            "recovering" => Self::Recovering { id },
            "recovered" => Self::Recovered { id },
            _ => Self::None,
        })
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
        write_part(file, NOTE_BYTES as u64, text)
    }
}

/// One part as text; what can't be understood is nothing.
fn read_part(file: &dyn File, offset: u64) -> io::Result<String> {
    let mut bytes = vec![0; NOTE_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

fn write_part(file: &dyn File, offset: u64, mut text: String) -> io::Result<()> {
    text.truncate(text.floor_char_boundary(NOTE_BYTES));
    text.extend(std::iter::repeat_n('\n', NOTE_BYTES - text.len()));
    file.write_at(&[IoSlice::new(text.as_bytes())], offset)
}
