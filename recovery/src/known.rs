//! The contents that the log explains: every image, before and after, of its transactions, at any name.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use atomtree_vfs::{Dir, File, Kind, Metadata, Timestamp};

use crate::analyze::Committed;
use crate::image::{Content, Digest, Image, is_torn, open_own};
use crate::plan::{After, Change};

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
    /// Originals that were not read, known by inode, size and time alone.
    unread: HashSet<(u64, u64, Timestamp)>,
    /// Where symlinks led or shall lead.
    targets: HashSet<&'a [u8]>,
    /// Directories that were taken out of the tree, by inode number, with the changes that did it.
    directories: HashMap<u64, &'a Change<'a>>,
}

impl<'a> Known<'a> {
    /// The contents of these transactions.
    pub fn of<'b: 'a>(transactions: impl Iterator<Item = &'a Committed<'b>>) -> Self {
        let mut known = Self::default();
        for change in transactions.flat_map(|transaction| &transaction.changes) {
            // What is patched stays where it is, and no copy of it is anywhere else.
            if change.patched().is_some() {
                continue;
            }
            match &change.before {
                Some(image) if change.takes_directory() => {
                    known.directories.insert(image.inode, change);
                }
                Some(Image { kind: Kind::Dir, .. }) | None => {}
                Some(Image { kind: Kind::Symlink, content: Content::Inline(target), .. }) => {
                    known.targets.insert(target);
                }
                Some(image) => {
                    known.add(image.size, &image.content);
                    if image.content == Content::Unread {
                        known.unread.insert((image.inode, image.size, image.modified));
                    }
                }
            }
            match &change.after {
                After::File { size, content, .. } => known.add(*size, content),
                After::Symlink { target, .. } => drop(known.targets.insert(target)),
                _ => {}
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

    /// A content whose bytes are in the log.
    pub fn bytes_of(&self, digest: Digest) -> Option<&'a [u8]> {
        self.inline.get(&digest).copied()
    }

    /// The change that took this directory out of the tree.
    pub fn taken_directory(&self, metadata: &Metadata) -> Option<&'a Change<'a>> {
        let change = *self.directories.get(&metadata.inode)?;
        change.before.as_ref().is_some_and(|image| image.is_directory(metadata)).then_some(change)
    }

    /// What stands at the name. A directory is known by its inode, whatever lies in it.
    pub fn likeness(&self, dir: &dyn Dir, name: &OsStr) -> io::Result<Likeness> {
        let metadata = dir.metadata(name)?;
        let is_known = match metadata.kind {
            Kind::File => {
                let file = open_own(dir, name)?;
                return Ok(self.examine(&*file, &metadata)?.0);
            }
            Kind::Dir => self.taken_directory(&metadata).is_some(),
            Kind::Symlink => self.targets.contains(dir.read_link(name)?.as_bytes()),
            Kind::Other => self.unread.contains(&(metadata.inode, metadata.size, metadata.modified)),
        };
        Ok(if is_known { Likeness::Image } else { Likeness::Foreign })
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
