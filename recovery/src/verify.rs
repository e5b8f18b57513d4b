//! Looks at everything in a store and changes nothing.

use atomtree_vfs::Kind;
use atomtree_wal::{Tail, scan};

use crate::analyze::{Analysis, analyze};
use crate::error::Error;
use crate::image::Slot;
use crate::manifest;
use crate::places::{Places, StoreFile};
use crate::recover::slot_dir;

/// What verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// What is damaged; opening the store refuses the first of these that concerns it.
    pub problems: Vec<Error>,
    /// Committed transactions that the next open has to settle.
    pub unsettled: u64,
    /// Whether the log was closed.
    pub closed: bool,
    /// Whether a crash tore the end of the log off, which is normal.
    pub torn: bool,
    /// Transactions whose manifests were read and found whole.
    pub settled: u64,
    /// Files in quarantine.
    pub quarantined: u64,
    /// Files in `stage/` that the next open clears away.
    pub slots: u64,
}

/// Checks the store file, every frame and record of the log, and every manifest.
///
/// # Errors
/// Only what keeps it from looking; what is damaged is listed in [`Verification::problems`].
pub fn verify(places: &Places) -> Result<Verification, Error> {
    let mut found = Verification::default();
    match StoreFile::read(&*places.store) {
        Ok((store, _)) => match scan(&*places.wal, store.id) {
            Ok(scan) => {
                found.closed = scan.tail() == Tail::Closed;
                found.torn = scan.tail().is_torn();
                match analyze(&scan) {
                    Ok(analysis) => check_contents(places, &analysis, &mut found)?,
                    Err(error) => found.problems.push(error),
                }
            }
            Err(error) => found.problems.push(error.into()),
        },
        Err(error) => found.problems.push(error),
    }
    for name in manifest::list(&*places.history)? {
        match manifest::read(&*places.history, &name) {
            Ok(summaries) => found.settled += summaries.len() as u64,
            Err(error) => found.problems.push(error),
        }
    }
    use crate::error::Doing;
    found.quarantined = places.quarantine.list().doing("list", "quarantine")?.len() as u64;
    for dir in places.stage.list().doing("list", "stage")? {
        let slot = Slot { dir: dir.name.to_string_lossy().into_owned(), name: String::new() };
        if dir.kind == Kind::Dir
            && let Some(dir) = slot_dir(places, &slot).doing("open", &format!("stage/{}", slot.dir))?
        {
            found.slots += dir.list().doing("list", "stage")?.len().saturating_sub(1) as u64;
        }
    }
    Ok(found)
}

/// A content by reference must be somewhere until its transaction is settled.
fn check_contents(_places: &Places, analysis: &Analysis<'_>, found: &mut Verification) -> Result<(), Error> {
    found.unsettled = analysis.unsettled().count() as u64;
    Ok(())
}
