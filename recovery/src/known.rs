//! The contents that the log explains: every image, before and after, of its transactions, at any name.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;

use atomtree_vfs::{Access, Dir, File, Kind, Metadata, Timestamp};

use crate::analyze::Committed;
use crate::image::{Content, Digest, is_torn};
use crate::plan::After;

/// How a content relates to those that the log explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// It is one of them.
    Image,
    /// It is what a power cut may have left of one whose bytes are in the log.
    Torn,
    /// It is neither.
    Foreign,
}

/// All contents of a set of transactions.
#[derive(Default)]
pub struct Known<'a> {
    digests: HashSet<(u64, Digest)>,
    /// Only contents whose bytes are in the log can be recognised torn. Those by reference were synced before their
    /// commit and are never torn by us. By digest, because a content may be known first without its bytes, as the
    /// original of one name, and then with them, as the new content of another.
    inline: HashMap<Digest, &'a [u8]>,
    inline_bytes_max: u64,
    /// Originals too large to be read, known by inode, size and time alone.
    unread: HashSet<(u64, u64, Timestamp)>,
}

impl<'a> Known<'a> {
    /// The contents of these transactions.
    pub fn of<'b: 'a>(transactions: impl Iterator<Item = &'a Committed<'b>>) -> Self {
        let mut known = Self::default();
        for change in transactions.flat_map(|transaction| &transaction.changes) {
            if let Some(image) = &change.before {
                known.add(image.size, &image.content);
                if image.content == Content::Unread {
                    known.unread.insert((image.inode, image.size, image.modified));
                }
            }
            if let After::File { size, content, .. } = &change.after {
                known.add(*size, content);
            }
        }
        known
    }

    fn add(&mut self, size: u64, content: &'a Content<'_>) {
        let Some(digest) = content.digest() else { return };
        self.digests.insert((size, digest));
        if let Content::Inline(bytes) = content {
            self.inline.insert(digest, bytes);
            self.inline_bytes_max = self.inline_bytes_max.max(size);
        }
    }

    /// What stands at the name; anything but a regular file is foreign.
    pub fn likeness(&self, dir: &dyn Dir, name: &OsStr) -> io::Result<Likeness> {
        let metadata = dir.metadata(name)?;
        if metadata.kind != Kind::File {
            return Ok(Likeness::Foreign);
        }
        let file = dir.open_file(name, Access::Read)?;
        Ok(self.examine(&*file, &metadata)?.0)
    }

    /// The likeness of a file, with its length and digest.
    pub fn examine(&self, file: &dyn File, metadata: &Metadata) -> io::Result<(Likeness, u64, Digest)> {
        // A larger file cannot be a torn image, so it need not be held in memory.
        let bytes = if metadata.size <= self.inline_bytes_max {
            match file.read_all(self.inline_bytes_max) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => None,
                Err(error) => return Err(error),
            }
        } else {
            None
        };
        let (size, digest) = match &bytes {
            Some(bytes) => (bytes.len() as u64, Digest::of(bytes)),
            None => Digest::of_file(file)?,
        };
        let likeness = if self.digests.contains(&(size, digest))
            || self.unread.contains(&(metadata.inode, metadata.size, metadata.modified))
        {
            Likeness::Image
        } else if bytes.is_some_and(|found| self.inline.values().any(|image| is_torn(&found, image))) {
            Likeness::Torn
        } else {
            Likeness::Foreign
        };
        Ok((likeness, size, digest))
    }
}
