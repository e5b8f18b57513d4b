//! The content of one simulated file: what reads show, what the disk holds, and which sectors still have to get there.
//!
//! Pages are shared between copies until they are written, so that copying a large file costs next to nothing. The
//! invariant kept here: a sector that is not dirty is the same on both sides, unless a failed sync dropped it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::crash::{DataFate, Fate};
use super::errno::{self, error};
use crate::SECTOR_BYTES;

/// The unit of allocation, of sharing, and of what a full disk counts.
pub(super) const PAGE_BYTES: usize = 4096;

const SECTORS_PER_PAGE: u64 = (PAGE_BYTES / SECTOR_BYTES) as u64;
const ALL_SECTORS: u8 = u8::MAX;
const _: () = assert!(SECTORS_PER_PAGE == u8::BITS as u64);

type Page = [u8; PAGE_BYTES];

static ZEROS: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// Bytes left on the simulated disk; `None` is as many as anybody wants.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Space(pub(super) Option<u64>);

impl Space {
    /// Takes `bytes` if that many are left.
    pub(super) fn take(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(left) = &mut self.0 {
            *left = left.checked_sub(bytes).ok_or_else(|| error(errno::ENOSPC))?;
        }
        Ok(())
    }

    /// Takes `bytes`, or all that is left: for what has to succeed on a real disk as well.
    pub(super) fn take_up_to(&mut self, bytes: u64) {
        if let Some(left) = &mut self.0 {
            *left = left.saturating_sub(bytes);
        }
    }

    pub(super) fn give(&mut self, bytes: u64) {
        if let Some(left) = &mut self.0 {
            *left += bytes;
        }
    }
}

/// Bytes in shared pages; a missing page reads as zeros and takes no space. Bytes past the length are always zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pages: Arc<Vec<Option<Arc<Page>>>>,
    length: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        (self.pages.iter().flatten().count() * PAGE_BYTES) as u64
    }

    /// Reads up to `buffer.len()` bytes; fewer at the end.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> usize {
        let wanted = (buffer.len() as u64).min(self.length.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < wanted {
            let (page, within) = place(offset + done as u64);
            let count = (PAGE_BYTES - within).min(wanted - done);
            let part = &mut buffer[done..done + count];
            match self.page(page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + count]),
                None => part.fill(0),
            }
            done += count;
        }
        wanted
    }

    /// Where the first page at or behind `offset` begins that is missing, else the length; `None` behind the end.
    pub(super) fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.length {
            return None;
        }
        let is_hole = |page: &u64| self.page(*page as usize).is_none();
        let pages = self.length.div_ceil(PAGE_BYTES as u64);
        let hole = (offset / PAGE_BYTES as u64..pages).find(is_hole);
        Some(hole.map_or(self.length, |page| (page * PAGE_BYTES as u64).max(offset)))
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        self.read_at(&mut bytes, 0);
        bytes
    }

    fn page(&self, page: usize) -> Option<&Arc<Page>> {
        self.pages.get(page).and_then(Option::as_ref)
    }

    fn page_mut(&mut self, page: usize) -> &mut Page {
        Arc::make_mut(self.slot(page).get_or_insert_with(|| ZEROS.clone()))
    }

    fn slot(&mut self, page: usize) -> &mut Option<Arc<Page>> {
        let pages = Arc::make_mut(&mut self.pages);
        if pages.len() <= page {
            pages.resize(page + 1, None);
        }
        &mut pages[page]
    }

    fn set_len(&mut self, length: u64) {
        if length < self.length {
            let (page, within) = place(length);
            let kept = page + usize::from(within > 0);
            if self.pages.len() > kept {
                Arc::make_mut(&mut self.pages).truncate(kept);
            }
            if within > 0 && self.page(page).is_some() {
                self.page_mut(page)[within..].fill(0);
            }
        }
        self.length = length;
    }

    fn copy_sectors(&mut self, from: &Self, page: usize, mask: u8) {
        match from.page(page) {
            source if mask == ALL_SECTORS && (source.is_some() || self.page(page).is_some()) => {
                *self.slot(page) = source.cloned();
            }
            None if self.page(page).is_none() => {}
            source => {
                let source = source.unwrap_or(&*ZEROS);
                let target = self.page_mut(page);
                for range in sectors(mask) {
                    target[range.clone()].copy_from_slice(&source[range]);
                }
            }
        }
    }

    fn zero_sectors(&mut self, page: usize, mask: u8) {
        if self.page(page).is_some() {
            let target = self.page_mut(page);
            for range in sectors(mask) {
                target[range].fill(0);
            }
        }
    }
}

/// Both sides of a regular file's content.
#[derive(Clone, Debug, Default)]
pub(super) struct FileData {
    pub(super) cached: Content,
    pub(super) durable: Content,
    /// By page, the sectors that a sync has to write.
    dirty: BTreeMap<usize, u8>,
    length_dirty: bool,
    allocation_dirty: bool,
    /// The shortest this file has been since it was last synced. Sectors past it may have been allocated anew, so
    /// that a cut can leave zeros there; before it, a sector is old or new.
    floor: u64,
}

impl FileData {
    pub(super) fn durable(content: Content) -> Self {
        Self { cached: content.clone(), floor: content.len(), durable: content, ..Self::default() }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.length_dirty || self.allocation_dirty
    }

    pub(super) fn write(&mut self, mut bytes: &[u8], mut offset: u64, space: &mut Space) -> io::Result<()> {
        if offset > self.cached.length && !bytes.is_empty() {
            self.set_len(offset, space);
        }
        while !bytes.is_empty() {
            let (page, within) = place(offset);
            let (part, rest) = bytes.split_at((PAGE_BYTES - within).min(bytes.len()));
            if self.cached.page(page).is_none() {
                space.take(PAGE_BYTES as u64)?;
            }
            self.cached.page_mut(page)[within..within + part.len()].copy_from_slice(part);
            let end = offset + part.len() as u64;
            self.mark(offset..end);
            if end > self.cached.length {
                self.cached.length = end;
                self.length_dirty = true;
            }
            (bytes, offset) = (rest, end);
        }
        Ok(())
    }

    pub(super) fn set_len(&mut self, length: u64, space: &mut Space) {
        let before = self.cached.length;
        if length == before {
            return;
        }
        self.length_dirty = true;
        if length < before {
            let allocated = self.cached.allocated_bytes();
            self.cached.set_len(length);
            space.give(allocated - self.cached.allocated_bytes());
            self.floor = self.floor.min(length);
            self.dirty.retain(|page, mask| {
                *mask &= mask_between(*page, 0..length.div_ceil(SECTOR_BYTES as u64));
                *mask != 0
            });
        } else {
            // Old bytes beyond an earlier truncation are still on the disk; they now have to be overwritten by zeros.
            self.mark(before..length.min(self.durable.length));
            self.cached.set_len(length);
        }
    }

    pub(super) fn allocate(&mut self, bytes: u64, space: &mut Space) -> io::Result<()> {
        let pages = bytes.div_ceil(PAGE_BYTES as u64) as usize;
        let missing = (0..pages).filter(|page| self.cached.page(*page).is_none()).count();
        space.take((missing * PAGE_BYTES) as u64)?;
        if bytes > self.cached.length {
            self.set_len(bytes, space);
        }
        if missing > 0 {
            self.allocation_dirty = true;
            for page in 0..pages {
                self.cached.slot(page).get_or_insert_with(|| ZEROS.clone());
            }
        }
        Ok(())
    }

    /// Makes the content that of `source`, sharing its pages; everything is dirty then.
    pub(super) fn share(&mut self, source: &Content, space: &mut Space) -> io::Result<()> {
        space.take(source.allocated_bytes())?;
        self.set_len(0, space);
        self.set_len(source.length, space);
        self.cached = source.clone();
        self.mark(0..source.length);
        Ok(())
    }

    /// Writes what is dirty to the durable side.
    pub(super) fn sync(&mut self) {
        if self.is_dirty() {
            // Taken out, so that the durable pages have one owner and are not copied.
            let mut durable = std::mem::take(&mut self.durable);
            self.write_back(&mut durable);
            self.durable = durable;
            self.forget_dirty();
        }
    }

    /// What a failed sync does: nothing is dirty any more, and nothing was written.
    pub(super) fn lose(&mut self) {
        self.forget_dirty();
    }

    /// Reads clean sectors again from the durable side. The length stays, because it is not in the page cache; returns
    /// whether all sectors were clean.
    pub(super) fn drop_cache(&mut self, space: &mut Space) -> bool {
        let before = std::mem::take(&mut self.cached);
        self.cached = self.durable.clone();
        self.cached.set_len(before.length);
        for (page, mask) in &self.dirty {
            self.cached.copy_sectors(&before, *page, *mask);
        }
        space.give(before.allocated_bytes());
        space.take_up_to(self.cached.allocated_bytes());
        self.dirty.is_empty()
    }

    /// The content that a power cut leaves.
    pub(super) fn after_cut(&self, fate: &mut Fate) -> Content {
        let mut content = self.durable.clone();
        if !self.is_dirty() {
            return content;
        }
        match &mut fate.data {
            DataFate::Old => {}
            DataFate::New => self.write_back(&mut content),
            DataFate::Hollow => {
                content.set_len(self.cached.length);
                for (page, mask) in &self.dirty {
                    content.zero_sectors(*page, mask & self.allocated_anew(*page));
                }
            }
            DataFate::Torn(tear) => {
                content.set_len(self.cached.length.max(self.durable.length));
                let mut index = 0;
                for (page, mask) in &self.dirty {
                    let anew = self.allocated_anew(*page);
                    let (mut written, mut zeroed) = (0, 0);
                    for bit in
                        (0..SECTORS_PER_PAGE as u8).map(|sector| 1 << sector).filter(|bit| bit & mask != 0)
                    {
                        if tear.reaches_disk(index) {
                            written |= bit;
                        } else if bit & anew != 0 && tear.leaves_zeros() {
                            zeroed |= bit;
                        }
                        index += 1;
                    }
                    if written != 0 {
                        content.copy_sectors(&self.cached, *page, written);
                    }
                    if zeroed != 0 {
                        content.zero_sectors(*page, zeroed);
                    }
                }
                content.set_len(tear.length(self.durable.length, self.floor, self.cached.length));
            }
        }
        content
    }

    /// The number of sectors that are neither safe nor lost.
    pub(super) fn dirty_sectors(&self) -> u64 {
        self.dirty.values().map(|mask| u64::from(mask.count_ones())).sum()
    }

    fn write_back(&self, durable: &mut Content) {
        durable.set_len(self.cached.length);
        for (page, mask) in &self.dirty {
            durable.copy_sectors(&self.cached, *page, *mask);
        }
        if self.allocation_dirty {
            for (page, _) in self.cached.pages.iter().enumerate().filter(|(_, page)| page.is_some()) {
                durable.slot(page).get_or_insert_with(|| ZEROS.clone());
            }
        }
    }

    fn forget_dirty(&mut self) {
        self.dirty.clear();
        self.length_dirty = false;
        self.allocation_dirty = false;
        self.floor = self.cached.length.min(self.durable.length);
    }

    /// The sectors of a page that lie wholly past the floor.
    fn allocated_anew(&self, page: usize) -> u8 {
        mask_between(page, self.floor.div_ceil(SECTOR_BYTES as u64)..u64::MAX)
    }

    fn mark(&mut self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let marked = bytes.start / SECTOR_BYTES as u64..bytes.end.div_ceil(SECTOR_BYTES as u64);
        for page in marked.start / SECTORS_PER_PAGE..marked.end.div_ceil(SECTORS_PER_PAGE) {
            *self.dirty.entry(page as usize).or_default() |= mask_between(page as usize, marked.clone());
        }
    }
}

fn place(offset: u64) -> (usize, usize) {
    ((offset / PAGE_BYTES as u64) as usize, (offset % PAGE_BYTES as u64) as usize)
}

/// Which sectors of a page lie in a range of sectors of the file.
fn mask_between(page: usize, sectors: Range<u64>) -> u8 {
    let first = page as u64 * SECTORS_PER_PAGE;
    (0..SECTORS_PER_PAGE)
        .filter(|sector| sectors.contains(&(first + sector)))
        .fold(0, |mask, sector| mask | 1 << sector)
}

/// The byte ranges, within a page, of the sectors in a mask.
fn sectors(mask: u8) -> impl Iterator<Item = Range<usize>> {
    (0..SECTORS_PER_PAGE as usize)
        .filter(move |sector| mask & (1 << sector) != 0)
        .map(|sector| sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES)
}
