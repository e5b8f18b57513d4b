//! New contents while they wait for the commit: in memory, as edits of an existing file, or streamed into a slot.

mod writer;

use std::collections::HashMap;
use std::io::{self, IoSlice, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atomtree_recovery::image::{Attributes, Digest, Slot};
use atomtree_recovery::images::{self, ImageName};
use atomtree_recovery::patched::{Patch, Patched};
use atomtree_recovery::stage::Stage;
use atomtree_vfs::{Dir, File, Timestamp};

pub(crate) use writer::{PIECE_BYTES, Writer};

/// A regular file to be written.
#[derive(Clone)]
pub(crate) struct NewFile {
    /// Shared with savepoints, and copied when it is changed after one.
    pub(crate) content: Arc<NewContent>,
    pub(crate) attributes: Attributes,
    /// The time of modification to carry over, for a file that was renamed.
    pub(crate) modified: Option<Timestamp>,
}

/// A symlink to be made.
#[derive(Clone)]
pub(crate) struct NewSymlink {
    pub(crate) target: Vec<u8>,
    pub(crate) attributes: Attributes,
}

/// A file's new content.
#[derive(Clone)]
pub(crate) enum NewContent {
    /// All of it, shared with the log's record.
    Bytes(Arc<Vec<u8>>),
    /// That of an existing file, with changes.
    Edited(EditedFile),
    /// In a slot already, because it may be larger than memory.
    Streamed(Arc<StreamedFile>),
    /// In the history, until it is staged.
    Kept(Arc<KeptContent>),
}

/// A content that the history keeps. It is opened when it is needed, and compared with what it shall be.
pub(crate) struct KeptContent {
    /// `images/`.
    pub(crate) images: Arc<dyn Dir>,
    /// Where it is, or another of the same content.
    pub(crate) names: Vec<ImageName>,
    pub(crate) size: u64,
    /// Unless it was too large to be read when it was replaced.
    pub(crate) digest: Option<Digest>,
    /// Its time of modification then.
    pub(crate) modified: Option<Timestamp>,
}

impl KeptContent {
    /// Opens it.
    ///
    /// # Errors
    /// `NotFound` if it is not kept any more, `InvalidData` if it is not what it was.
    pub(crate) fn open(&self) -> io::Result<Arc<dyn File>> {
        for name in &self.names {
            match images::open(&*self.images, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    let found = file.metadata()?;
                    // Of what has a digest, that is compared when it is read.
                    let is_it = found.size == self.size
                        && (self.digest.is_some() || self.modified == Some(found.modified));
                    if is_it {
                        return Ok(file);
                    }
                    return Err(is_other(name));
                }
            }
        }
        let reason = "the history keeps the original no longer, or never did";
        Err(io::Error::new(io::ErrorKind::NotFound, reason))
    }

    /// All of it, in memory.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let bytes = self.open()?.read_all(self.size)?;
        self.check(Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Whether what was read has the digest that it shall have.
    pub(crate) fn check(&self, found: Digest) -> io::Result<()> {
        match (self.digest, self.names.first()) {
            (Some(digest), Some(name)) if digest != found => Err(is_other(name)),
            _ => Ok(()),
        }
    }
}

fn is_other(name: &ImageName) -> io::Error {
    let name = name.as_path().display();
    let reason = format!("the original in .atomtree/images/{name} is not what it was when it was kept");
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// A file too large to be held in memory, and what changes in it.
#[derive(Clone)]
pub(crate) struct EditedFile {
    pub(crate) base: Arc<dyn File>,
    pub(crate) size: u64,
    /// In order; a later one wins.
    pub(crate) edits: Vec<(u64, Vec<u8>)>,
}

/// A file that is patched inside its inode.
#[derive(Clone)]
pub(crate) struct InPlace {
    /// The file's length, which stays.
    pub(crate) size: u64,
    /// Whole sectors, sorted and apart from each other.
    pieces: Vec<Piece>,
}

/// Sectors one after the other, as they are and as they shall be.
#[derive(Clone)]
struct Piece {
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Piece {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.before.len() as u64
    }

    /// Takes over what another has of the same sectors.
    fn overlay(&mut self, other: &Self) {
        let at = (other.offset - self.offset) as usize..(other.range().end - self.offset) as usize;
        self.before[at.clone()].copy_from_slice(&other.before);
        self.after[at].copy_from_slice(&other.after);
    }
}

impl InPlace {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, pieces: Vec::new() }
    }

    /// What the log takes of it.
    pub(crate) fn logged_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| 2 * piece.before.len() as u64).sum()
    }

    /// How many bytes of these sectors are not in it yet.
    pub(crate) fn missing(&self, sectors: &Range<u64>) -> u64 {
        let known = self.pieces.iter().map(|piece| {
            let range = piece.range();
            range.end.min(sectors.end).saturating_sub(range.start.max(sectors.start))
        });
        sectors.end - sectors.start - known.sum::<u64>()
    }

    /// Patches these bytes, given the sectors that hold them as they were read now. What was read before counts for what
    /// stood there: it is what the check compares.
    pub(crate) fn write(&mut self, start: u64, sectors: &[u8], offset: u64, bytes: &[u8]) {
        let read = Piece { offset: start, before: sectors.to_vec(), after: sectors.to_vec() };
        let Range { start, end } = read.range();
        let is_near = |piece: &Piece| piece.offset <= end && piece.range().end >= start;
        let (near, mut apart): (Vec<Piece>, Vec<Piece>) =
            std::mem::take(&mut self.pieces).into_iter().partition(is_near);
        let first = near.iter().map(|piece| piece.offset).fold(start, u64::min);
        let last = near.iter().map(|piece| piece.range().end).fold(end, u64::max);
        let zeros = vec![0; (last - first) as usize];
        let mut whole = Piece { offset: first, before: zeros.clone(), after: zeros };
        whole.overlay(&read);
        near.iter().for_each(|piece| whole.overlay(piece));
        let at = (offset - first) as usize;
        whole.after[at..at + bytes.len()].copy_from_slice(bytes);
        apart.push(whole);
        apart.sort_by_key(|piece| piece.offset);
        self.pieces = apart;
    }

    /// Puts what is patched into the content of the whole file.
    pub(crate) fn patch(&self, content: &mut [u8]) {
        for piece in &self.pieces {
            // Whoever read it as another length is told so by the check.
            if let Some(part) = content.get_mut(piece.offset as usize..piece.range().end as usize) {
                part.copy_from_slice(&piece.after);
            }
        }
    }

    /// As it is logged.
    pub(crate) fn patched(&self) -> Patched<'static> {
        let patches = self.pieces.iter().map(|Piece { offset, before, after }| Patch {
            offset: *offset,
            before,
            after,
        });
        Patched::new(self.size, patches)
    }
}

/// A content that was streamed into a slot.
pub(crate) struct StreamedFile {
    pub(crate) file: Arc<dyn File>,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
    pub(crate) slot: StagedSlot,
}

/// A slot that nobody has seen yet. It is unlinked unless the log has come to own it.
pub(crate) struct StagedSlot {
    dir: Arc<dyn Dir>,
    pub(crate) slot: Slot,
    is_kept: AtomicBool,
    /// In a forked child the slot is the parent's.
    made_by: u32,
}

impl StagedSlot {
    pub(crate) fn new(stage: &Stage) -> Self {
        let (dir, slot) = (stage.dir().clone(), stage.new_slot());
        Self { dir, slot, is_kept: AtomicBool::new(false), made_by: std::process::id() }
    }

    /// From here on the log's records explain the slot, and only a checkpoint or recovery may unlink it.
    pub(crate) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for StagedSlot {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) && self.made_by == std::process::id() {
            // What can't be removed now is swept at the next open.
            let _ = self.dir.remove_file(&self.slot.os_name());
        }
    }
}

impl EditedFile {
    pub(crate) fn new(base: Arc<dyn File>, size: u64) -> Self {
        Self { base, size, edits: Vec::new() }
    }

    /// Writes the whole into an empty file, and returns its length and digest. Nothing is synced.
    pub(crate) fn write_to(&self, file: &dyn File) -> io::Result<(u64, Digest)> {
        let shares_blocks = file.reflink_from(&*self.base);
        if shares_blocks {
            for (offset, bytes) in &self.edits {
                file.write_at(&[IoSlice::new(bytes)], *offset)?;
            }
            // A base that has grown since is told by the check.
            file.set_len(self.size)?;
        }
        let mut edits: HashMap<u64, Vec<&(u64, Vec<u8>)>> = HashMap::new();
        let number = |offset: u64| offset / PIECE_BYTES as u64;
        for edit in &self.edits {
            for piece in number(edit.0)..=number(edit.0 + edit.1.len() as u64) {
                edits.entry(piece).or_default().push(edit);
            }
        }
        // Of the base, which the cache may have; of what shares its blocks it has nothing yet.
        let mut writer = if shares_blocks { Writer::of_nothing() } else { Writer::new(file) };
        let mut piece = Vec::new();
        let mut offset = 0;
        while offset < self.size {
            piece.resize((self.size - offset).min(PIECE_BYTES as u64) as usize, 0);
            self.read_base(offset, &mut piece)?;
            for edit in edits.get(&number(offset)).into_iter().flatten() {
                overlay(offset, &mut piece, edit);
            }
            offset += piece.len() as u64;
            piece = writer.write(piece)?;
        }
        Ok(writer.finish())
    }

    /// Fills `piece` with what the base has at `offset`, and zeros behind its end.
    fn read_base(&self, offset: u64, piece: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < piece.len() {
            let read = self.base.read_at(&mut piece[filled..], offset + filled as u64)?;
            if read == 0 {
                piece[filled..].fill(0);
                break;
            }
            filled += read;
        }
        Ok(())
    }
}

/// Writes what an edit has for the bytes at `offset`.
fn overlay(offset: u64, piece: &mut [u8], (start, bytes): &(u64, Vec<u8>)) {
    let from = (*start).max(offset);
    let to = (start + bytes.len() as u64).min(offset + piece.len() as u64);
    if from < to {
        let edit = &bytes[(from - start) as usize..(to - start) as usize];
        piece[(from - offset) as usize..(to - offset) as usize].copy_from_slice(edit);
    }
}

impl NewContent {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self::Bytes(Arc::new(bytes)))
    }

    /// Takes everything that `source` has: in memory up to `memory_bytes_max`, beyond that in a slot. The slot's file
    /// is not synced; what it is to be synced through is opened before, if it is not yet.
    pub(crate) fn stream(
        stage: &Stage,
        source: &mut dyn Read,
        memory_bytes_max: usize,
        sync_root: &mut Option<Arc<dyn Dir>>,
        failed: &mut Failed,
    ) -> io::Result<Arc<Self>> {
        let mut piece = Vec::new();
        source.take(memory_bytes_max as u64 + 1).read_to_end(&mut piece)?;
        if piece.len() <= memory_bytes_max {
            return Ok(Self::bytes(piece));
        }
        *failed = Failed::Writing;
        if sync_root.is_none() {
            *sync_root = Some(stage.dir().open_dir(Path::new(""))?);
        }
        let slot = StagedSlot::new(stage);
        let file = stage.create_file(&slot.slot)?;
        let mut writer = Writer::new(&*file);
        loop {
            // Filled up, so that no page goes to the device in two parts.
            let missing = piece.len().max(1).next_multiple_of(PIECE_BYTES) - piece.len();
            *failed = Failed::Reading;
            source.take(missing as u64).read_to_end(&mut piece)?;
            *failed = Failed::Writing;
            if piece.is_empty() {
                break;
            }
            piece = writer.write(piece)?;
            piece.clear();
        }
        let (size, digest) = writer.finish();
        Ok(Arc::new(Self::Streamed(Arc::new(StreamedFile { file, size, digest, slot }))))
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Edited(edited) => edited.size,
            Self::Streamed(streamed) => streamed.size,
            Self::Kept(kept) => kept.size,
        }
    }

    /// Overwrites, and extends where needed.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Self::Streamed(streamed) = self {
            // The open file outlives its slot.
            *self = Self::Edited(EditedFile::new(streamed.file.clone(), streamed.size));
        }
        match self {
            Self::Bytes(content) => {
                let content = Arc::make_mut(content);
                let start = usize::try_from(offset).expect("checked against the content's length");
                let end = start + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
            Self::Edited(edited) => {
                edited.size = edited.size.max(offset + bytes.len() as u64);
                edited.edits.push((offset, bytes.to_vec()));
            }
            Self::Streamed(_) | Self::Kept(_) => {
                unreachable!("it is edited by nobody, or has been made editable")
            }
        }
    }

    /// All of it, in memory.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
            Self::Streamed(streamed) => streamed.file.read_all(u64::MAX),
            Self::Kept(kept) => kept.read(),
            Self::Edited(edited) => {
                let mut bytes = edited.base.read_all(u64::MAX)?;
                bytes.resize(edited.size as usize, 0);
                for (offset, edit) in &edited.edits {
                    bytes[*offset as usize..][..edit.len()].copy_from_slice(edit);
                }
                Ok(bytes)
            }
        }
    }

    /// Its digest.
    pub(crate) fn digest(&self) -> io::Result<Digest> {
        match self {
            Self::Bytes(bytes) => Ok(Digest::of(bytes)),
            Self::Streamed(streamed) => Ok(streamed.digest),
            Self::Kept(kept) => kept.digest.map_or_else(|| Ok(Digest::of_file(&*kept.open()?)?.1), Ok),
            Self::Edited(_) => Ok(Digest::of(&self.read()?)),
        }
    }
}

/// Whose fault it was that streaming failed.
pub(crate) enum Failed {
    Reading,
    Writing,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use atomtree_vfs::Vfs;
    use atomtree_vfs::sim::Sim;

    use super::*;

    /// Goal: an edited file is what it was with its edits, and has the length and digest that are told, whether it shares the
    /// blocks of the old one or not. Method: edits over the borders of pieces, over each other, and past the end.
    #[test]
    fn an_edited_file_has_its_digest() {
        for shares_blocks in [false, true] {
            let sim = Sim::new(1);
            sim.set_reflinks_supported(shares_blocks);
            sim.create_dir("/tree");
            let root = sim.open_root(Path::new("/tree")).unwrap();
            let base = root.create_file(OsStr::new("base"), 0o600).unwrap();
            let piece = PIECE_BYTES as u64;
            let mut expected: Vec<u8> = (0..2 * piece + 1000).map(|at| ((at * 31) >> 8) as u8).collect();
            base.write_at(&[IoSlice::new(&expected)], 0).unwrap();
            let end = expected.len() as u64;
            let mut content = NewContent::Edited(EditedFile::new(base, end));
            for (offset, length) in
                [(piece - 3, 7), (piece, 2), (10, 2 * piece), (end - 1, piece), (0, 1), (piece, 0)]
            {
                let bytes: Vec<u8> = (0..length).map(|at| (at + offset) as u8 ^ 0x5a).collect();
                content.write(offset, &bytes);
                let after = offset as usize + bytes.len();
                expected.resize(expected.len().max(after), 0);
                expected[offset as usize..after].copy_from_slice(&bytes);
            }
            let NewContent::Edited(edited) = &content else { unreachable!("it stays what it is") };
            let file = root.create_file(OsStr::new("new"), 0o600).unwrap();
            let told = edited.write_to(&*file).unwrap();
            assert!(file.read_all(u64::MAX).unwrap() == expected, "{shares_blocks}");
            assert_eq!(told, (expected.len() as u64, Digest::of(&expected)), "{shares_blocks}");
        }
    }
}
