//! A process's own directory in `stage/`: new contents wait there on their way in, originals after they were replaced.
//!
//! The process holds a lock on a file in it for as long as it lives, so that nobody clears it away meanwhile.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atomtree_vfs::{Dir, File, Lock};

use crate::error::{Doing, Error};
use crate::image::{Attributes, Slot};
use crate::places::Places;

/// The file whose lock says that the process lives.
pub const LOCK_FILE: &str = "lock";

/// Slots of recovery are named apart: what is found in one and not recognised came out of the user's tree.
const RECOVERY_PREFIX: &str = "r";

/// Whether a slot with this name was filled by recovery.
pub fn is_from_recovery(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(RECOVERY_PREFIX.as_bytes())
}

/// Every file that waits in anybody's directory now.
pub fn all_staged(places: &Places) -> Result<HashSet<Slot>, Error> {
    let mut staged = HashSet::new();
    for entry in places.stage.list().doing("list", "stage")? {
        let dir = match places.stage.open_dir(entry.name.as_ref()) {
            // Whoever leaves removes his own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.doing("open", "stage")?,
        };
        let name = |name: OsString| name.to_string_lossy().into_owned();
        let dir_name = name(entry.name);
        let files = dir.list().doing("list", "stage")?;
        staged.extend(files.into_iter().map(|file| Slot { dir: dir_name.clone(), name: name(file.name) }));
    }
    Ok(staged)
}

/// The directory, locked.
pub struct Stage {
    name: String,
    dir: Arc<dyn Dir>,
    lock: Arc<dyn File>,
    next: AtomicU64,
    /// What a file gets that is created here with mode 0600: the process's owner, and whatever the directory hands on.
    fresh: Attributes,
    /// The process's umask when the directory was made.
    umask: u32,
}

impl Stage {
    /// Makes this process's own directory, with a note in its lock file that says whose it is. To be called under the
    /// store's commit lock: who sweeps takes a directory without a lock file for a dead process's.
    pub fn create(places: &Places, note: &str) -> Result<Self, Error> {
        let umask = places.vfs.identity().doing("read the identity of", "this process")?.umask;
        let random = places.vfs.random().doing("read randomness for", "stage")?;
        let name = format!("{:016x}", random as u64);
        let label = format!("stage/{name}");
        places.stage.create_dir(OsStr::new(&name), 0o700).doing("create", &label)?;
        let dir = places.stage.open_dir(Path::new(&name)).doing("open", &label)?;
        let lock = dir.create_file(OsStr::new(LOCK_FILE), 0o600).doing("create the lock file of", &label)?;
        lock.hide_from_forks().doing("hide the lock file of", &label)?;
        if !lock.try_lock(Lock::Exclusive).doing("lock", &label)? {
            return Err(io::Error::from(io::ErrorKind::WouldBlock)).doing("lock", &label);
        }
        lock.write_at(&[IoSlice::new(note.as_bytes())], 0).doing("write the lock file of", &label)?;
        let fresh = Attributes::of_file(&*lock).doing("read the attributes of the lock file of", &label)?;
        Ok(Self { name, dir, lock, next: AtomicU64::new(0), fresh, umask })
    }

    /// Its name in `stage/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file whose lock says that the process lives.
    pub fn lock_file(&self) -> &Arc<dyn File> {
        &self.lock
    }

    /// The directory itself.
    pub fn dir(&self) -> &Arc<dyn Dir> {
        &self.dir
    }

    /// What a file has that was just created here: whatever the directory hands on, and nobody's own.
    pub fn fresh(&self) -> &Attributes {
        &self.fresh
    }

    /// A name that nothing has used yet.
    pub fn new_slot(&self) -> Slot {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Slot { dir: self.name.clone(), name: format!("{number:x}") }
    }

    /// As [`Stage::new_slot`], for what recovery puts in or takes out.
    pub fn new_recovery_slot(&self) -> Slot {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Slot { dir: self.name.clone(), name: format!("{RECOVERY_PREFIX}{number:x}") }
    }

    /// Creates the slot's file, empty, readable by nobody else.
    pub fn create_file(&self, slot: &Slot) -> io::Result<Arc<dyn File>> {
        debug_assert_eq!(slot.dir, self.name, "slots are made in one's own directory");
        self.dir.create_file(&slot.os_name(), 0o600)
    }

    /// Creates the slot's file with this content and these attributes, and returns it with its inode's number. Nothing is
    /// synced.
    pub fn write(
        &self,
        slot: &Slot,
        bytes: &[u8],
        attributes: &Attributes,
    ) -> io::Result<(Arc<dyn File>, u64)> {
        debug_assert_eq!(slot.dir, self.name, "slots are made in one's own directory");
        // Made with its final mode where nothing else has to be set and that is what comes out: nobody else passes through this
        // directory, and a call less counts where files are many. Otherwise only the owner may do anything until the end:
        // setting an attribute takes the right to write, and a third mode that a power cut leaves is taken for somebody
        // else's, which remains possible where the umask has been tightened since the store was opened.
        let is_all = (attributes.uid, attributes.gid) == (self.fresh.uid, self.fresh.gid)
            && attributes.xattrs.is_empty()
            && self.fresh.xattrs.is_empty()
            && attributes.mode & (self.umask | !0o777) == 0;
        let mode = if is_all { attributes.mode } else { self.fresh.mode };
        let file = self.dir.create_file(&slot.os_name(), mode)?;
        let prepare = || {
            if !bytes.is_empty() {
                file.write_at(&[IoSlice::new(bytes)], 0)?;
            }
            let found = file.metadata()?;
            attributes.set_on_fresh_file(&*file, &self.fresh, found.mode)?;
            Ok(found.inode)
        };
        match prepare() {
            Ok(inode) => Ok((file, inode)),
            Err(error) => {
                // What it has taken of a full disk is given back; it has been in nobody's sight.
                let _ = self.dir.remove_file(&slot.os_name());
                Err(error)
            }
        }
    }

    /// Creates the slot as a symlink, with this owner. Nothing is synced.
    pub fn write_symlink(&self, slot: &Slot, target: &OsStr, attributes: &Attributes) -> io::Result<()> {
        self.dir.create_symlink(&slot.os_name(), target)?;
        if (self.fresh.uid, self.fresh.gid) == (attributes.uid, attributes.gid) {
            return Ok(());
        }
        let owned = self.dir.set_owner_of(&slot.os_name(), attributes.uid, attributes.gid);
        if owned.is_err() {
            let _ = self.dir.remove_file(&slot.os_name());
        }
        owned
    }

    /// Whether the file system can exchange two names, found out on two files of its own.
    pub fn probe_exchange(&self) -> io::Result<bool> {
        let (one, two) = (OsStr::new("probe-1"), OsStr::new("probe-2"));
        self.dir.create_file(one, 0o600)?;
        self.dir.create_file(two, 0o600)?;
        let result = self.dir.exchange(one, &*self.dir, two);
        self.dir.remove_file(one)?;
        self.dir.remove_file(two)?;
        match result {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the directory, which must hold no slots any more, and gives the lock up.
    pub fn remove(&self, places: &Places) -> io::Result<()> {
        self.dir.remove_file(OsStr::new(LOCK_FILE))?;
        places.stage.remove_dir(OsStr::new(&self.name))?;
        self.lock.unlock()
    }
}
