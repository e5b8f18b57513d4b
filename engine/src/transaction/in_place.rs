//! Patching a file inside its inode.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::image::Image;
use atomtree_recovery::patched::sectors_of;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, File, Kind};

use super::Transaction;
use super::lookup::asked;
use crate::content::InPlace;
use crate::error::{Error, ErrorKind, OnPath};
use crate::stage::fixed;
use crate::view::{Name, Now, Spot};

impl Transaction {
    /// Overwrites bytes of the file at `path` from byte `offset` on, inside its inode: nothing is copied and nothing
    /// exchanged, so that it costs what the bytes cost, however large the file is. The file keeps its inode, its length and
    /// whoever has it open. [`Transaction::patch`] does the same under all promises, at the cost of a copy where the file
    /// system has no reflinks.
    ///
    /// The sectors of 512 bytes that hold the bytes travel in the log, as they were and as they shall be. At the commit they
    /// have to be what they were; what else of the file changes is no conflict, unless the transaction has read it.
    /// Several such patches of one file are one. Nothing else can be done to the name in the same transaction.
    ///
    /// # What it gives up
    /// The transaction is atomic and durable for whoever reads the tree through a store that is open, or after the next open.
    /// But a program that reads or maps the file meanwhile may see it half patched, and after a kill or a power cut until
    /// somebody opens the store. An edit of the same sectors by another program, between the last check and the write, is
    /// overwritten and not kept. If another program renames something over the name in that moment, the bytes go nowhere,
    /// or into a file that has no name any more; [`crate::Receipt::lost`] names it where that is seen. After a crash another
    /// program's later edit stays where it is, and what is not patched for it is kept in quarantine, one run of sectors a
    /// file. The history knows of the patch, and keeps no original: it can't be undone.
    ///
    /// The name is settled first if it has to be, and whatever touches it next waits until it is settled, as with a
    /// [`Transaction::rename`] that moves an inode. The file is synced before the log.
    ///
    /// # Durability
    /// As for every operation: [`Transaction::commit`] says it.
    ///
    /// # Errors
    /// Nothing has been changed by any of them: `not_found`; `is_a_directory`; `invalid_input` for a range that does not lie
    /// within the file; `unsupported` for a symlink, whatever the options say, a file with several hard links, a range with
    /// holes or reserved space that was never written, more bytes than a transaction may have in the log (the sectors before
    /// and after, a quarter of [`crate::Options::segment_bytes`] together), and a name that the transaction changes
    /// otherwise; `permission` if the file may not be written; else as for [`Transaction::write`].
    pub fn patch_in_place(
        &mut self,
        path: impl AsRef<Path>,
        offset: u64,
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let (asked, bytes) = (asked(path.as_ref())?, bytes.as_ref());
        let no_such = || Error::refused(ErrorKind::NotFound, asked.as_path(), "no such file");
        let (dir, name) = self.view.place(&asked)?.ok_or_else(no_such)?;
        let spot = Spot { dir, path: self.view.path_in(dir, &name)?, name };
        let unsupported =
            |reason: &str| Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason));
        // What is in the file is read where it is patched alone.
        let entry = match self.view.known(&spot) {
            Some(entry) => entry.clone(),
            None => self.view.look_without_reading(&spot)?,
        };
        let (image, in_place) = match (&entry.now, &entry.original) {
            (Now::Absent, _) | (Now::Original, None) => return Err(no_such()),
            (Now::Original, Some(image)) if entry.mode.is_none() => (image, None),
            (Now::Patched(in_place), Some(image)) => (image, Some(in_place.clone())),
            _ => {
                return unsupported(
                    "the transaction changes it otherwise already, and then it can't be patched in place; `patch` does it",
                );
            }
        };
        match image.kind {
            Kind::File => {}
            Kind::Dir => {
                return Err(Error::refused(
                    ErrorKind::IsADirectory,
                    spot.path.as_path(),
                    "it is a directory",
                ));
            }
            Kind::Symlink => return unsupported("it is a symlink; name the file that it leads to"),
            Kind::Other => return unsupported("it is a device, socket or pipe"),
        }
        if image.links > 1 {
            let reason = format!(
                "it has {} hard links, and what is patched in place is patched under all of them; `patch` parts it from the others, if hard links are to be broken",
                image.links
            );
            return unsupported(&reason);
        }
        if image.is_fixed {
            return Err(fixed(spot.path.as_path()));
        }
        let size = image.size;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= size);
        let Some(end) = end else {
            let reason = format!(
                "{} bytes at {offset} do not lie within the file's {size}, and a patch in place keeps its length; `patch` lengthens it",
                bytes.len()
            );
            return Err(Error::refused(ErrorKind::InvalidInput, spot.path.as_path(), reason));
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let sectors = sectors_of(offset..end, size);
        let mut patched = in_place.map_or_else(|| InPlace::new(size), |in_place| (*in_place).clone());
        let bytes_before = patched.logged_bytes();
        self.check_room(&spot.path, &patched, &sectors)?;
        let file = self.open_in_place(&spot, image)?;
        let hole = file.next_hole(sectors.start).on("look for holes in", spot.path.as_path())?;
        if hole < sectors.end {
            let reason =
                format!("there is a hole at {hole}, or space that was never written; `patch` fills it");
            return unsupported(&reason);
        }
        let mut before = vec![0; (sectors.end - sectors.start) as usize];
        match file.read_exact_at(&mut before, sectors.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::conflict(
                    spot.path.as_path(),
                    "it was cut short while it was being looked at",
                ));
            }
            read => read.on("read", spot.path.as_path())?,
        }
        patched.write(sectors.start, &before, offset, bytes);
        self.view.note_patched(patched.logged_bytes() - bytes_before);
        self.view.set(&spot, Name { now: Now::Patched(Arc::new(patched)), ..entry });
        Ok(())
    }

    /// Whether the log has room for these sectors too, before and after, beside what the transaction patches already.
    fn check_room(&self, path: &TreePath, patched: &InPlace, sectors: &Range<u64>) -> Result<(), Error> {
        let room = self.shared.engine.inline_bytes();
        let more = 2 * patched.missing(sectors);
        let needed = self.view.patched_bytes().saturating_add(more);
        if needed <= room {
            return Ok(());
        }
        let reason = format!(
            "the sectors that the transaction patches in place take {needed} bytes in the log, as they were and as they shall be, of which it may have {room}; `patch` does it, or a larger segment_bytes"
        );
        Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason))
    }

    /// Opens the file for writing, which tells who may not; it is closed again, since descriptors are few.
    fn open_in_place(&mut self, spot: &Spot, image: &Image<'_>) -> Result<Arc<dyn File>, Error> {
        let file = self.disk(spot)?.open_file(&spot.name, Access::ReadWrite);
        let file = file.or_raced("open for writing", spot.path.as_path())?;
        let found = file.metadata().on("look at", spot.path.as_path())?;
        if !image.is_inode(&found) || found.size != image.size {
            let reason = "it was replaced, or its length changed, since the transaction first looked";
            return Err(Error::conflict(spot.path.as_path(), reason));
        }
        Ok(file)
    }

    /// Refuses anything else to be done to a file that is patched in place.
    pub(super) fn check_not_patched(&self, spot: &Spot) -> Result<(), Error> {
        if !matches!(self.view.name(spot).now, Now::Patched(_)) {
            return Ok(());
        }
        let reason = "the transaction patches it in place, and then nothing else can be done to it; do all of it with `patch`, or in two transactions";
        Err(Error::refused(ErrorKind::Unsupported, spot.path.as_path(), reason))
    }
}
