//! How full the quarantine is: looked at before each commit, and weighed only when names in it have come or gone.
//!
//! What is in there is other people's, so nothing but being asked to takes it away. Its bound is kept by those who could
//! add to it instead: at the bound nothing is committed that might have to displace something.

use atomtree_vfs::Timestamp;

use crate::error::{Doing, Error};
use crate::places::Places;
use crate::weight::weigh;

/// What the quarantine weighed when it was last looked at.
#[derive(Debug, Default)]
pub struct Fullness {
    known: Option<(Timestamp, u64)>,
}

impl Fullness {
    /// What the files in quarantine take, in bytes: their lengths, and a page more for each.
    pub fn bytes(&mut self, places: &Places) -> Result<u64, Error> {
        let modified = places.quarantine.own_metadata().doing("look at", "quarantine")?.modified;
        if let Some((at, bytes)) = self.known
            && at == modified
        {
            return Ok(bytes);
        }
        let weight = weigh(&*places.quarantine, "quarantine", None)?;
        // Empty files and symlinks are not for nothing either.
        let bytes = weight.bytes.saturating_add(weight.files.saturating_mul(4096));
        // A name that comes within the same tick as this look leaves the directory's time as it is.
        let is_old = modified.plus_ns(places.vfs.timestamp_granularity_ns()) < places.vfs.now();
        self.known = is_old.then_some((modified, bytes));
        Ok(bytes)
    }
}
