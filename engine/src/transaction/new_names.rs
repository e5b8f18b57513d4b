//! The attributes that names get: what is kept, and what creating a name in place would give.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::acl::{ACCESS_ACL, DEFAULT_ACL, inherited};
use atomtree_recovery::image::{Attribute, Attributes};
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::Kind;

use super::Transaction;
use crate::error::{Error, ErrorKind, OnPath};
use crate::view::{DirId, Spot, Stands};

/// What a new name in a directory gets.
pub(super) struct Defaults {
    uid: u32,
    gid: u32,
    setgid: bool,
    umask: u32,
    pub(super) acl: Option<Vec<u8>>,
}

impl Transaction {
    /// The attributes that a file at this name has, or would get.
    pub(super) fn attributes_of(&mut self, spot: &Spot, mode: Option<u32>) -> Result<Attributes, Error> {
        let changed = self.view.name(spot).mode;
        let kept = match self.view.stands(spot) {
            Stands::File(file) => Some(file.attributes.clone()),
            Stands::Inode { image } if image.kind == Kind::File => Some(image.attributes.clone()),
            Stands::Moved(moved) if moved.kind == Kind::File => Some(moved.attributes.clone()),
            _ => None,
        };
        match (kept, mode.or(changed)) {
            (Some(attributes), Some(mode)) => Ok(attributes.with_mode(mode)),
            (Some(attributes), None) => Ok(attributes),
            (None, _) => self.default_attributes(spot.dir, &spot.path, 0o666, mode, Kind::File),
        }
    }

    pub(super) fn attributes_of_dir(&mut self, id: DirId) -> Result<Attributes, Error> {
        let path = self.view.dir(id).path.clone();
        let dir = self.view.handle(id)?.expect("it stands on disk").dir;
        Attributes::of_dir(&*dir).on("read the attributes of", Path::new(OsStr::from_bytes(&path)))
    }

    /// What creating a name in the directory in place would give it.
    pub(super) fn default_attributes(
        &mut self,
        dir: DirId,
        path: &TreePath,
        base_mode: u32,
        mode: Option<u32>,
        kind: Kind,
    ) -> Result<Attributes, Error> {
        let defaults = self.defaults_in(dir)?;
        let mut attributes =
            Attributes { mode: base_mode, uid: defaults.uid, gid: defaults.gid, xattrs: Vec::new() };
        match &defaults.acl {
            Some(acl) => {
                let wanted = mode.unwrap_or(base_mode);
                let Some((inherited_mode, access)) = inherited(acl, wanted) else {
                    let reason = "its directory has a default ACL of an unknown version";
                    return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
                };
                attributes.mode = inherited_mode;
                let access = access.map(|value| Attribute { name: ACCESS_ACL.to_vec(), value });
                attributes.xattrs.extend(access);
            }
            None => attributes.mode = mode.unwrap_or(base_mode & !defaults.umask),
        }
        if kind == Kind::Dir && defaults.setgid {
            attributes.mode |= 0o2000;
        }
        Ok(attributes)
    }

    /// The defaults of a directory, or of the nearest one above it that stands on disk.
    pub(super) fn defaults_in(&mut self, dir: DirId) -> Result<Arc<Defaults>, Error> {
        let mut above = dir;
        let defaults = loop {
            if let Some(defaults) = self.defaults.get(&above) {
                break defaults.clone();
            }
            match &self.view.dir(above).made {
                Some(made) => above = made.parent,
                None => break Arc::new(self.defaults_on_disk(above)?),
            }
        };
        self.defaults.insert(above, defaults.clone());
        self.defaults.insert(dir, defaults.clone());
        Ok(defaults)
    }

    pub(super) fn defaults_on_disk(&mut self, dir: DirId) -> Result<Defaults, Error> {
        let vfs = self.shared.engine.places.vfs.clone();
        let identity = vfs.identity().on("read the identity of", "this process")?;
        let found = self.attributes_of_dir(dir)?;
        let setgid = found.mode & 0o2000 != 0;
        let acl = found.xattrs.into_iter().find(|xattr| xattr.name == DEFAULT_ACL).map(|xattr| xattr.value);
        let gid = if setgid { found.gid } else { identity.gid };
        Ok(Defaults { uid: identity.uid, gid, setgid, umask: identity.umask, acl })
    }
}
