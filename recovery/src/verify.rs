//! Looks at everything in a store and changes nothing.

use std::io;

use atomtree_wal::{Tail, scan};

use crate::analyze::analyze;
use crate::error::{Doing, Error};
use crate::manifest;
use crate::places::{Places, StoreFile};
use crate::stage::LOCK_FILE;

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
    if let Err(error) = check_log(places, &mut found) {
        found.problems.push(error);
    }
    for name in manifest::list(&*places.history)? {
        match manifest::read(&*places.history, &name) {
            Ok(summaries) => found.settled += summaries.len() as u64,
            Err(error) => found.problems.push(error),
        }
    }
    found.quarantined = places.quarantine.list().doing("list", "quarantine")?.len() as u64;
    for entry in places.stage.list().doing("list", "stage")? {
        let name = entry.name.to_string_lossy();
        match places.stage.open_dir(name.as_ref().as_ref()) {
            // A process that closes the store removes its directory meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                let dir = result.doing("open", &format!("stage/{name}"))?;
                let files = dir.list().doing("list", &format!("stage/{name}"))?;
                found.slots += files.iter().filter(|file| file.name != LOCK_FILE).count() as u64;
            }
        }
    }
    Ok(found)
}

fn check_log(places: &Places, found: &mut Verification) -> Result<(), Error> {
    let (store, _) = StoreFile::read(&*places.store)?;
    let scan = scan(&*places.wal, store.id)?;
    found.closed = scan.tail() == Tail::Closed;
    found.torn = scan.tail().is_torn();
    found.unsettled = analyze(&scan)?.unsettled().count() as u64;
    Ok(())
}
