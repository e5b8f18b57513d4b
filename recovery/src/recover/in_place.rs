//! What recovery makes of files that were to be patched inside their inode, one sector after another: those that are as
//! they were before or shall be after are written, whatever they read, since the cache proves nothing; what somebody else
//! has written stays if it is newer, and is kept if it is not.

use std::io;
use std::sync::Arc;

use atomtree_vfs::File;

use super::{Repair, Superseded, Target};
use crate::apply::{Displaced, quarantine_name};
use crate::image::open_own;
use crate::patched::{Patch, Patched};
use crate::plan::Change;

impl<'a> Repair<'a> {
    /// Brings the sectors of a patched file to what they shall be.
    pub(super) fn patch(&mut self, target: &Target<'a>, patched: &Patched<'_>) -> io::Result<()> {
        let change = target.change;
        // What was brought to its goal before, and is another's by now, is nobody's business.
        let is_done = self.is_done(target);
        let Some(file) = self.applier.open_patched(change)? else {
            return if is_done {
                Ok(())
            } else {
                patched.patches().try_for_each(|patch| self.give_way(target, patch))
            };
        };
        // Or an edit could be taken for one that stays, and be in the cache alone.
        file.drop_cache()?;
        let is_applied = self.analysis.applied >= target.transaction.lsn;
        for patch in patched.patches() {
            let found = read_up_to(&*file, patch.offset, patch.before.len())?;
            for run in patch.runs(&found) {
                let part = Patch {
                    offset: patch.offset + run.within.start as u64,
                    before: &patch.before[run.within.clone()],
                    after: &patch.after[run.within.clone()],
                };
                match (run.is_ours, is_applied) {
                    (true, _) => {}
                    (false, true) if is_done => continue,
                    (false, true) => {
                        self.give_way(target, part)?;
                        continue;
                    }
                    (false, false) => {
                        let found =
                            &found[run.within.start.min(found.len())..run.within.end.min(found.len())];
                        self.displace(change, part.offset, found)?;
                    }
                }
                self.applier.write_in_place(&*file, part.offset, part.after)?;
            }
        }
        Ok(())
    }

    /// Leaves what stands there, and keeps what we would have written in quarantine.
    fn give_way(&mut self, target: &Target<'a>, part: Patch<'_>) -> io::Result<()> {
        let (path, tx) = (target.change.path.clone(), target.transaction.begin.tx);
        let kept = self.keep_bytes(target.change, &format!("ours-at-{}-", part.offset), part.after)?;
        self.report.superseded.push(Superseded { path, tx, kept: Some(kept) });
        Ok(())
    }

    /// Keeps what somebody else wrote, durably, before it is written over.
    fn displace(&mut self, change: &Change<'_>, offset: u64, found: &[u8]) -> io::Result<()> {
        // Behind the end of a file that was cut short there is nothing to keep.
        if found.is_empty() {
            return Ok(());
        }
        let kept = self.keep_bytes(change, &format!("at-{offset}-"), found)?;
        self.recovery.places.quarantine.sync()?;
        self.applier.note_displaced(Displaced { path: change.path.clone(), kept });
        Ok(())
    }

    /// Keeps bytes in quarantine, synced but for their name. Those that an earlier recovery kept are not kept twice.
    fn keep_bytes(&self, change: &Change<'_>, distinction: &str, bytes: &[u8]) -> io::Result<String> {
        let (stage, quarantine) = (self.recovery.stage, &self.recovery.places.quarantine);
        let slot = stage.new_slot();
        stage.write(&slot, bytes, stage.fresh())?.0.sync_all()?;
        for number in 0..u32::MAX {
            let number = if number > 0 { format!("{number}-") } else { String::new() };
            let name = quarantine_name(self.applier.lsn(), &change.path, &format!("{distinction}{number}"));
            match stage.dir().rename(&slot.os_name(), &**quarantine, &name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let is_it = |file: Arc<dyn File>| -> io::Result<bool> {
                        let is_as_long = file.metadata()?.size == bytes.len() as u64;
                        Ok(is_as_long && read_up_to(&*file, 0, bytes.len())? == bytes)
                    };
                    if !open_own(&**quarantine, &name).and_then(is_it)? {
                        continue;
                    }
                    stage.dir().remove_file(&slot.os_name())?;
                }
                renamed => renamed?,
            }
            return Ok(format!("quarantine/{}", name.to_string_lossy()));
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// What a file holds from an offset on, up to so many bytes.
fn read_up_to(file: &dyn File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut found = vec![0; bytes];
    let mut length = 0;
    while length < bytes {
        match file.read_at(&mut found[length..], offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    found.truncate(length);
    Ok(found)
}
