//! What files held before and after a transaction, as far as that is kept or still stands there. Nothing is written.

use std::collections::HashMap;
use std::path::Path;

use atomtree_recovery::image::Digest;
use atomtree_recovery::images::ImageName;
use atomtree_recovery::manifest::{self, State};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Access, Kind};

use super::{Inspection, PastTransaction};
use crate::content::KeptContent;
use crate::error::Error;

/// What a file held before and after; `None` where nothing stood there, or what did is not to be had.
pub type Contents = (Option<Vec<u8>>, Option<Vec<u8>>);

impl Inspection {
    /// What the files of each change held, in the order of the changes; of those that are longer than `bytes_max`, and
    /// of what is kept nowhere, nothing.
    ///
    /// # Errors
    /// `corrupt` for a damaged manifest.
    pub fn contents(&self, past: &PastTransaction, bytes_max: u64) -> Result<Vec<Contents>, Error> {
        let mut later: HashMap<(u64, Digest), ImageName> = HashMap::new();
        for name in manifest::list(&*self.places.history)? {
            if manifest::range_of(&name).is_some_and(|(_, last)| last > past.tx) {
                let changes = self.read_manifest(&name)?.into_iter().flat_map(|past| past.changes);
                later.extend(changes.filter_map(|change| {
                    let before = change.before?;
                    Some(((before.size, before.digest?), change.image?))
                }));
            }
        }
        let is_wanted = |state: &&State| state.kind == Kind::File && state.size <= bytes_max;
        let contents = past.changes.iter().map(|change| {
            let before = change.before.as_deref().filter(is_wanted);
            let before = before.and_then(|state| self.kept(state, change.image.as_ref()?));
            let after = change.after.as_deref().filter(is_wanted).and_then(|state| {
                let kept = later.get(&(state.size, state.digest?));
                kept.and_then(|image| self.kept(state, image)).or_else(|| self.standing(&change.path, state))
            });
            (before, after)
        });
        Ok(contents.collect())
    }

    fn kept(&self, state: &State, image: &ImageName) -> Option<Vec<u8>> {
        let kept = KeptContent {
            images: self.places.images.clone(),
            names: vec![image.clone()],
            size: state.size,
            digest: state.digest,
            modified: state.modified,
        };
        kept.read().ok()
    }

    /// The content, if it still stands there.
    fn standing(&self, path: &[u8], state: &State) -> Option<Vec<u8>> {
        let path = TreePath::from_bytes(path).ok()?;
        let parent: &Path = path.parent_path();
        let dir = self.places.root.open_dir(parent).ok()?;
        let file = dir.open_file(path.name(), Access::Read).ok()?;
        let bytes = file.read_all(state.size).ok()?;
        (Some(Digest::of(&bytes)) == state.digest).then_some(bytes)
    }
}
