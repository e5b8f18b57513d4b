//! What is overwritten inside an inode: whole sectors, with the bytes before and after, as they travel in the log. No I/O.
//!
//! ```text
//! content of a change   for each range, in order
//! +--------------+-------------+-----+
//! | bytes before | bytes after | ... |
//! +--------------+-------------+-----+
//! ```
//!
//! Storage writes a sector whole or not at all, so that after a crash each one holds the bytes before or those after, unless
//! another program wrote it. The last sector of a file is cut off where the file ends.

use std::ops::Range;

use atomtree_vfs::SECTOR_BYTES;

use crate::image::Bytes;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// What is overwritten in one file. Its ranges are sorted, apart from each other, aligned to sectors, and lie within the
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patched<'a> {
    size: u64,
    ranges: Vec<(u64, u32)>,
    bytes: Bytes<'a>,
}

/// One range of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch<'a> {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What stood there.
    pub before: &'a [u8],
    /// What shall stand there; as long.
    pub after: &'a [u8],
}

/// Sectors of a range, one after the other, of which the same is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where in the range, in bytes.
    pub within: Range<usize>,
    /// Whether each of them is the one before or the one after, or the beginning of the latter and the end of the former.
    pub is_ours: bool,
}

impl Patched<'static> {
    /// Puts ranges together, which are such as [`Patched`] says.
    pub fn new<'b>(size: u64, patches: impl IntoIterator<Item = Patch<'b>>) -> Self {
        let (mut ranges, mut bytes) = (Vec::new(), Vec::new());
        for Patch { offset, before, after } in patches {
            debug_assert_eq!(before.len(), after.len(), "a patch keeps the length");
            ranges.push((offset, u32::try_from(before.len()).expect("a range fits into the log")));
            bytes.extend([before, after].concat());
        }
        Self::from_parts(size, ranges, bytes.into()).expect("whoever patches aligns")
    }
}

impl<'a> Patched<'a> {
    /// Checks what was read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_parts(size: u64, ranges: Vec<(u64, u32)>, bytes: Bytes<'a>) -> Result<Self, String> {
        if ranges.is_empty() {
            return Err("a patch of nothing".into());
        }
        let (mut end_before, mut expected) = (None, 0_u64);
        for (offset, length) in &ranges {
            let length = u64::from(*length);
            let end = offset.checked_add(length).filter(|end| *end <= size);
            let end = end.ok_or_else(|| format!("a patch at {offset} that ends behind the file"))?;
            if length == 0 || offset % SECTOR != 0 || end % SECTOR != 0 && end != size {
                return Err(format!("a patch of {length} bytes at {offset}, which is not of whole sectors"));
            }
            if end_before.is_some_and(|before| *offset < before) {
                return Err(format!("a patch at {offset}, before the end of another"));
            }
            end_before = Some(end);
            expected += 2 * length;
        }
        if bytes.len() as u64 != expected {
            return Err(format!("{} bytes of patches, {expected} expected", bytes.len()));
        }
        Ok(Self { size, ranges, bytes })
    }

    /// The file's length, which stays.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn ranges(&self) -> &[(u64, u32)] {
        &self.ranges
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its ranges.
    pub fn patches(&self) -> impl Iterator<Item = Patch<'_>> {
        let mut rest: &[u8] = &self.bytes;
        self.ranges.iter().map(move |(offset, length)| {
            let (before, behind) = rest.split_at(*length as usize);
            let (after, behind) = behind.split_at(*length as usize);
            rest = behind;
            Patch { offset: *offset, before, after }
        })
    }

    /// The same, owning its bytes.
    pub fn into_owned(self) -> Patched<'static> {
        Patched { size: self.size, ranges: self.ranges, bytes: self.bytes.into_owned() }
    }
}

impl Patch<'_> {
    /// Tells apart what was found in the range, as far as the file went: what is ours, before or after, and what is
    /// somebody else's.
    pub fn runs(&self, found: &[u8]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for start in (0..self.before.len()).step_by(SECTOR_BYTES) {
            let within = start..(start + SECTOR_BYTES).min(self.before.len());
            let sector = found.get(within.clone());
            let is_ours = sector.is_some_and(|sector| {
                is_ours(sector, &self.before[within.clone()], &self.after[within.clone()])
            });
            match runs.last_mut() {
                Some(run) if run.is_ours == is_ours => run.within.end = within.end,
                _ => runs.push(Run { within, is_ours }),
            }
        }
        runs
    }
}

/// Whether a sector is the one before, the one after, or what a write that was cut short, for want of space, leaves of both.
fn is_ours(found: &[u8], before: &[u8], after: &[u8]) -> bool {
    let written = found.iter().zip(after).take_while(|(found, after)| found == after).count();
    found[written..] == before[written..]
}

/// The whole sectors that hold a range of a file of this length.
pub fn sectors_of(range: Range<u64>, size: u64) -> Range<u64> {
    let end = range.end.div_ceil(SECTOR).saturating_mul(SECTOR);
    range.start / SECTOR * SECTOR..end.min(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(size: u64, ranges: &[(u64, u32)], bytes: usize) -> Result<Patched<'static>, String> {
        Patched::from_parts(size, ranges.to_vec(), vec![7; bytes].into())
    }

    #[test]
    fn ranges_are_sorted_apart_aligned_and_within_the_file() {
        assert!(parts(2000, &[(0, 512), (1024, 976)], 2 * 1488).is_ok(), "up to an odd end");
        assert!(parts(2048, &[(0, 512), (512, 512)], 2048).is_ok(), "side by side");
        assert!(parts(100, &[(0, 100)], 200).is_ok(), "less than a sector");
        for (size, ranges, bytes) in [
            (2000, vec![], 0),
            (2000, vec![(0, 0)], 0),
            (2000, vec![(1, 511)], 1022),
            (2000, vec![(0, 511)], 1022),
            (2000, vec![(1024, 512), (0, 512)], 2048),
            (2000, vec![(0, 1024), (512, 512)], 3072),
            (2000, vec![(0, 512), (0, 512)], 2048),
            (2000, vec![(1536, 512)], 1024),
            (2000, vec![(u64::MAX - 511, 512)], 1024),
            (u64::MAX, vec![(u64::MAX - 511, 512)], 1024),
            (2000, vec![(0, 512)], 1023),
            (2000, vec![(0, 512)], 1025),
            (u64::MAX, vec![(0, u32::MAX)], 8),
        ] {
            assert!(parts(size, &ranges, bytes).is_err(), "{size} {ranges:?} {bytes}");
        }
    }

    #[test]
    fn patches_come_back_as_they_were() {
        let (before, after) = (vec![1; 1024], vec![2; 1024]);
        let one = Patch { offset: 512, before: &before, after: &after };
        let two = Patch { offset: 2048, before: &before[..100], after: &after[..100] };
        let patched = Patched::new(2148, [one, two]);
        assert_eq!(patched.patches().collect::<Vec<_>>(), [one, two]);
        assert_eq!(patched.clone().into_owned(), patched);
    }

    #[test]
    fn runs_tell_sectors_apart() {
        let (before, after) = (vec![1; 1500], vec![2; 1500]);
        let patch = Patch { offset: 0, before: &before, after: &after };
        let ours = |within| Run { within, is_ours: true };
        let theirs = |within| Run { within, is_ours: false };
        assert_eq!(patch.runs(&before), [ours(0..1500)]);
        let mut mixed = [&before[..512], &after[512..]].concat();
        assert_eq!(patch.runs(&mixed), [ours(0..1500)], "each its own");
        mixed[3] = 2;
        assert_eq!(patch.runs(&mixed), [theirs(0..512), ours(512..1500)], "half a sector is nobody's tear");
        let cut = [&after[..700], &before[700..]].concat();
        assert_eq!(patch.runs(&cut), [ours(0..1500)], "a write that was cut short");
        let turned = [&before[..700], &after[700..]].concat();
        assert_eq!(patch.runs(&turned), [ours(0..512), theirs(512..1024), ours(1024..1500)]);
        assert_eq!(patch.runs(&after[..1499]), [ours(0..1024), theirs(1024..1500)], "cut short");
        assert_eq!(patch.runs(&[]), [theirs(0..1500)]);
    }

    #[test]
    fn ranges_grow_to_sectors() {
        assert_eq!(sectors_of(0..1, 2000), 0..512);
        assert_eq!(sectors_of(511..513, 2000), 0..1024);
        assert_eq!(sectors_of(1999..2000, 2000), 1536..2000);
        assert_eq!(sectors_of(u64::MAX - 1..u64::MAX, u64::MAX), u64::MAX - 511..u64::MAX);
    }
}
