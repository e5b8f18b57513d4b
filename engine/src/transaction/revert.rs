//! Putting names back: what stands at each is compared with what is expected there, then everything that is in the way is
//! taken down, the deepest first, and what is wanted put up, parents first. Inodes that move wait under names of their
//! own meanwhile, of which nothing is left in the end.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use atomtree_recovery::image::{Attributes, Digest, Image};
use atomtree_recovery::manifest::State;
use atomtree_recovery::plan::Moved;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::Kind;

use super::Transaction;
use super::lookup::Purpose;
use crate::content::{KeptContent, NewContent, NewFile, NewSymlink};
use crate::error::{Error, ErrorKind, OnPath};
use crate::view::{Now, Spot, Stands};

/// One name that is put back.
pub(crate) struct Step {
    /// Its path now; `None` where that is not known, because what lies below a directory that takes another's place was
    /// nobody's business.
    pub(crate) at: Option<TreePath>,
    /// Its path in the end: another one where a directory above it moves.
    pub(crate) to: TreePath,
    /// What has to stand there now.
    pub(crate) expected: Option<State>,
    /// Whether what is expected goes to another name: then it is known by its inode.
    pub(crate) leaves: bool,
    pub(crate) wanted: Wanted,
}

/// What shall stand at a name.
pub(crate) enum Wanted {
    Nothing,
    /// The inode that stands there, with these permission bits.
    Mode(u32),
    /// What stands at another name now, with these permission bits.
    MovedFrom(TreePath, u32),
    /// A file of this content.
    File(Attributes, Arc<KeptContent>),
    Symlink(Attributes, Vec<u8>),
    Dir(Attributes),
    /// Something that can't be made again.
    Lost(String),
}

/// How names that have moved on since are dealt with.
#[derive(Default)]
pub(crate) struct Leniency {
    /// Whether they are put back all the same.
    pub(crate) is_forced: bool,
    /// Names that this very transaction has put where they are.
    pub(crate) own: HashSet<TreePath>,
    /// Whether that will do for them, as where only what comes of it all is asked for.
    pub(crate) lets_own: bool,
}

/// What stands at a name, for this transaction.
struct Found {
    kind: Kind,
    attributes: Attributes,
    size: u64,
    /// `None` until it is asked for.
    digest: Option<Digest>,
    target: Option<Vec<u8>>,
    /// [`NEW`] for what this transaction makes.
    inode: u64,
}

/// No inode has this number.
const NEW: u64 = 0;

impl Transaction {
    /// Puts the names of some steps back. Returns those that are not what is expected; then nothing has been done.
    ///
    /// # Errors
    /// Some steps may have been done then: the transaction is of no use any more.
    pub(crate) fn put_back(
        &mut self,
        mut steps: Vec<Step>,
        leniency: &mut Leniency,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut moved_on = Vec::new();
        for step in &steps {
            if let Some(at) = &step.at
                && !self.is_expected(step, at, leniency)?
            {
                moved_on.push(at.as_path().to_owned());
            }
        }
        if !moved_on.is_empty() {
            return Ok(moved_on);
        }
        steps.sort_by_key(|step| std::cmp::Reverse(step.at.as_ref().map(TreePath::depth)));
        let mut held: BTreeMap<TreePath, TreePath> = BTreeMap::new();
        for step in &steps {
            if let Some(at) = &step.at {
                self.take_down(step, at, &mut held, leniency)?;
            }
        }
        steps.sort_by_key(|step| step.to.depth());
        for step in &steps {
            self.put_up(step, &held)?;
        }
        leniency.own.extend(steps.into_iter().map(|step| step.to));
        Ok(moved_on)
    }

    fn is_expected(&mut self, step: &Step, at: &TreePath, leniency: &Leniency) -> Result<bool, Error> {
        let found = self.found(at)?;
        let (expected, found) = match (&step.expected, found) {
            (None, None) => return Ok(true),
            (Some(expected), Some(found)) => (expected, found),
            // There is nothing that could go where it shall.
            (Some(_), None) if step.leaves => return Ok(false),
            (Some(_), None) | (None, Some(_)) => return Ok(leniency.lets(at)),
        };
        if step.leaves {
            // Nor is anything else what shall go there, unless this transaction made it again.
            let is_it = (found.kind, found.inode) == (expected.kind, expected.inode);
            let is_own = found.inode == NEW || leniency.own.contains(at);
            return Ok(is_it || is_own && (found.kind, found.size) == (expected.kind, expected.size));
        }
        if leniency.lets(at) || leniency.lets_own && found.inode == NEW {
            return Ok(true);
        }
        if found.kind != expected.kind {
            return Ok(false);
        }
        match (&step.wanted, found.kind) {
            (Wanted::Mode(_), _) => return Ok(found.attributes.mode == expected.attributes.mode),
            // Whoever made it, it is one.
            (Wanted::Nothing, Kind::Dir) => return Ok(true),
            _ => {}
        }
        if !is_same(&found.attributes, &expected.attributes, found.kind) {
            return Ok(false);
        }
        match (found.kind, expected.digest) {
            (Kind::File, _) if found.size != expected.size => Ok(false),
            (Kind::File, Some(digest)) => Ok(self.digest_of(at, &found)? == digest),
            (Kind::Symlink, _) => Ok(found.target == expected.target),
            // A file that was too large to be read then has nothing else to tell it by.
            (Kind::File | Kind::Dir | Kind::Other, _) => Ok(true),
        }
    }

    fn digest_of(&mut self, at: &TreePath, found: &Found) -> Result<Digest, Error> {
        match (found.digest, self.view.spot(at)?) {
            (Some(digest), _) => Ok(digest),
            (None, Some(spot)) => self.digest_original(&spot),
            (None, None) => Err(Error::conflict(at.as_path(), "it was removed while it was looked at")),
        }
    }

    /// What stands at exactly this path: none of its directories is a symlink.
    fn found(&mut self, path: &TreePath) -> Result<Option<Found>, Error> {
        let spot = match self.view.spot(path) {
            Ok(spot) => spot,
            // Something else stands where its directory stood.
            Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::InvalidPath) => None,
            Err(error) => return Err(error),
        };
        let Some(spot) = spot.filter(|spot| spot.path == *path) else { return Ok(None) };
        let of = |kind, attributes: &Attributes, size, digest, inode| Found {
            kind,
            attributes: attributes.clone(),
            size,
            digest,
            target: None,
            inode,
        };
        let mode = self.view.name(&spot).mode;
        let mut found = match self.view.stands(&spot) {
            Stands::Nothing => return Ok(None),
            Stands::File(NewFile { content, attributes, .. }) => {
                // What was patched in place is kept nowhere, which matters only if nothing else is put there in the end.
                let is_kept = !matches!(&**content, NewContent::Kept(kept) if kept.names.is_empty());
                let digest = is_kept.then(|| content.digest()).transpose().on("read", path.as_path())?;
                of(Kind::File, attributes, content.size(), digest, NEW)
            }
            Stands::Inode { image: Image { kind, attributes, size, content, inode, .. } } => {
                of(*kind, attributes, *size, content.digest(), *inode)
            }
            Stands::Patched { .. } => unreachable!("nothing is patched in place while names are put back"),
            Stands::Moved(Moved { kind, attributes, size, inode, .. }) => {
                of(*kind, attributes, *size, None, *inode)
            }
            Stands::Symlink(target) => {
                let name = self.view.name(&spot);
                let (attributes, inode) = match (&name.now, &name.original) {
                    (Now::Symlink(link), _) => (&link.attributes, NEW),
                    (Now::Moved { moved, .. }, _) => (&moved.attributes, moved.inode),
                    (_, Some(image)) => (&image.attributes, image.inode),
                    (_, None) => unreachable!("a symlink stands there"),
                };
                let size = target.len() as u64;
                Found { target: Some(target.to_vec()), ..of(Kind::Symlink, attributes, size, None, inode) }
            }
            Stands::Dir => {
                let id = self.view.dir_at(&spot)?;
                let directory = self.view.dir(id);
                let (mode, inode) = (directory.mode, directory.inode.unwrap_or(NEW));
                let attributes = match &directory.made {
                    Some(new) => new.attributes.clone(),
                    None => self.attributes_of_dir(id)?,
                };
                let attributes = mode.map_or_else(|| attributes.clone(), |mode| attributes.with_mode(mode));
                return Ok(Some(of(Kind::Dir, &attributes, 0, None, inode)));
            }
        };
        if let Some(mode) = mode {
            found.attributes = found.attributes.with_mode(mode);
        }
        Ok(Some(found))
    }

    /// Clears a name for what shall stand there.
    fn take_down(
        &mut self,
        step: &Step,
        at: &TreePath,
        held: &mut BTreeMap<TreePath, TreePath>,
        leniency: &Leniency,
    ) -> Result<(), Error> {
        let Some(found) = self.found(at)? else { return Ok(()) };
        if step.leaves {
            let name = format!(".atomtree-held-{}", held.len());
            let place = TreePath::new(&name).expect("a plain name");
            self.rename(at.as_path(), place.as_path())?;
            held.insert(at.clone(), place);
            return Ok(());
        }
        let stays = match (&step.wanted, found.kind) {
            (Wanted::Mode(_), _)
            | (Wanted::File(..), Kind::File)
            | (Wanted::Symlink(..), Kind::Symlink)
            | (Wanted::Dir(_), Kind::Dir) => true,
            (Wanted::Lost(reason), _) => {
                return Err(Error::refused(ErrorKind::Unsupported, at.as_path(), reason));
            }
            _ => false,
        };
        if stays {
            return Ok(());
        }
        if found.kind != Kind::Dir {
            return self.remove(at.as_path());
        }
        let (spot, id) = self.existing_dir(at.as_path())?;
        let is_empty = self.view.list(id)?.is_empty();
        match &step.wanted {
            _ if is_empty => {
                self.check_moves(&spot)?;
                self.view.remove_dir(&spot)
            }
            // What others have put into it keeps it there.
            Wanted::Nothing => Ok(()),
            _ if leniency.lets(at) => self.remove_dir_all(at.as_path()),
            _ => {
                let reason = "it is not empty any more; move away what is in it, or force it";
                Err(Error::conflict(at.as_path(), reason))
            }
        }
    }

    fn put_up(&mut self, step: &Step, held: &BTreeMap<TreePath, TreePath>) -> Result<(), Error> {
        let path = &step.to;
        match &step.wanted {
            Wanted::Nothing => Ok(()),
            Wanted::Lost(reason) => Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason)),
            Wanted::Mode(mode) => self.set_mode_back(path, *mode),
            Wanted::MovedFrom(from, mode) => {
                let Some(place) = held.get(from) else {
                    let reason = "what moved away from it is not where it went any more";
                    return Err(Error::conflict(path.as_path(), reason));
                };
                self.rename(place.as_path(), path.as_path())?;
                self.set_mode_back(path, *mode)
            }
            Wanted::File(attributes, kept) => {
                let spot = self.spot_for(path)?;
                self.check_hard_links(&spot)?;
                let content = Arc::new(NewContent::Kept(kept.clone()));
                self.put(&spot, NewFile { content, attributes: attributes.clone(), modified: None });
                Ok(())
            }
            Wanted::Symlink(attributes, target) => {
                let spot = self.spot_for(path)?;
                let link = NewSymlink { target: target.clone(), attributes: attributes.clone() };
                let name = self.view.name_mut(&spot);
                (name.now, name.mode) = (Now::Symlink(link), None);
                Ok(())
            }
            Wanted::Dir(attributes) => {
                let spot = self.spot_for(path)?;
                if matches!(self.view.stands(&spot), Stands::Dir) {
                    return self.set_mode_back(path, attributes.mode);
                }
                // Made in place, it gets its attributes from the directory above.
                let attributes = Attributes { xattrs: Vec::new(), ..attributes.clone() };
                self.view.make_dir(&spot, attributes, false);
                Ok(())
            }
        }
    }

    /// The spot of exactly this path, with the directories above it.
    fn spot_for(&mut self, path: &TreePath) -> Result<Spot, Error> {
        let spot = match self.view.spot(path)? {
            Some(spot) => spot,
            None => self.make_spot(path)?,
        };
        if spot.path == *path {
            return Ok(spot);
        }
        Err(Error::conflict(path.as_path(), "a symlink stands in the place of one of its directories"))
    }

    fn set_mode_back(&mut self, path: &TreePath, mode: u32) -> Result<(), Error> {
        match self.found(path)? {
            Some(found) if found.kind != Kind::Symlink && found.attributes.mode != mode => {
                // Not through a link, whatever the options say of those: none stands here.
                let spot = self.existing(path.as_path(), Purpose::Name)?;
                self.set_mode(spot.path.as_path(), mode)
            }
            _ => Ok(()),
        }
    }
}

impl Leniency {
    fn lets(&self, path: &TreePath) -> bool {
        self.is_forced || self.lets_own && self.own.contains(path)
    }
}

/// Whether attributes are the same, as far as they are anybody's own: labels come and go with policies, and what a
/// directory hands on is not logged.
fn is_same(found: &Attributes, expected: &Attributes, kind: Kind) -> bool {
    let owned = |attributes: &Attributes| (attributes.mode, attributes.uid, attributes.gid);
    let xattrs = |attributes: &Attributes| -> Vec<_> {
        let is_policy = |name: &[u8]| name.starts_with(b"security.") && name != b"security.capability";
        attributes.xattrs.iter().filter(|xattr| !is_policy(&xattr.name)).cloned().collect()
    };
    match kind {
        Kind::Symlink => (found.uid, found.gid) == (expected.uid, expected.gid),
        Kind::Dir => owned(found) == owned(expected),
        Kind::File | Kind::Other => owned(found) == owned(expected) && xattrs(found) == xattrs(expected),
    }
}
