//! How a store comes into being: under another name, which changes when everything in it is durable.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atomtree_recovery::Doing;
use atomtree_recovery::ballast::Ballast;
use atomtree_recovery::places::{Places, STORE_PARTS, StoreFile};
use atomtree_recovery::tree_path::{STORE_DIR, STORE_DIR_NEW};
use atomtree_vfs::{Access, Dir, File, Lock};
use atomtree_wal::Log;
use atomtree_wal::sync::now;

use crate::error::{Error, ErrorKind, OnPath};
use crate::lock::{
    CHECKPOINT_FILE, LOCK_FILE, MEMBERS_FILE, Member, RETRY_FILE, RETRY_TURN_FILE, TURN_FILE, locked,
};
use crate::options::Options;

/// How long between two looks at a store that somebody else is creating.
const PAUSE: Duration = Duration::from_millis(2);

/// Makes sure that there is a store: builds it, or waits for who does.
///
/// # Errors
/// `locked` if another process was building it all the time.
pub(crate) fn ensure(root: &Arc<dyn Dir>, options: &Options) -> Result<(), Error> {
    let deadline = options.deadline();
    let mut busy = None;
    loop {
        match root.metadata(OsStr::new(STORE_DIR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop).on("look at", STORE_DIR),
        }
        if let Some(error) = busy.filter(|_| now() >= deadline) {
            return Err(error);
        }
        busy = match create(root, options) {
            Err(error @ Error::Locked { .. }) => {
                std::thread::sleep(PAUSE);
                Some(error)
            }
            created => created.map(|()| None)?,
        };
    }
}

/// Builds a store under another name and renames it into place.
fn create(root: &Arc<dyn Dir>, options: &Options) -> Result<(), Error> {
    let vfs = &options.vfs;
    let new = Path::new(STORE_DIR_NEW);
    let busy = || Error::Locked { holder: "a process that is creating it".into() };
    let dir = match make_private_dir(&**root, STORE_DIR_NEW) {
        // It was there, and has just got its name. Where the root itself has gone nothing can be made, however long one waits.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let is_gone = root.own_metadata().on("look at", ".")?.links == 0;
            return Err(if is_gone { error } else { busy() });
        }
        dir => dir?,
    };
    // Someone else's directory, in a place that others can write to, would let its owner in later.
    let owner = dir.own_metadata().on("look at", new)?.uid;
    if owner != vfs.identity().on("read the identity of", "this process")?.uid {
        let reason = format!("it belongs to user {owner}, who may have planted it; remove it");
        return Err(Error::refused(ErrorKind::Permission, new, reason));
    }
    let lock = match open_lock(&*dir) {
        // It was one too many, and somebody has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(busy()),
        lock => lock.doing("create", ".atomtree.new/lock")?,
    };
    if !lock.try_lock(Lock::Exclusive).doing("lock", ".atomtree.new/lock")? {
        return Err(locked(
            &**vfs,
            Member::read(&*lock).map(|note| (note, "the store, to create it,")),
            now(),
        ));
    }
    // Whoever held the lock before may have finished, and what we hold is then the store itself.
    match root.metadata(new.as_os_str()) {
        Ok(found) if found.inode == dir.own_metadata().on("look at", new)?.inode => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).on("look at", new),
        _ => return Ok(()),
    }
    // Or another one did, between this process's look for a store and its own directory, which is then one too many.
    match root.metadata(OsStr::new(STORE_DIR)) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).on("look at", STORE_DIR),
    }
    // A hint for those who wait.
    if let Ok(process) = vfs.process() {
        let _ = Member::new(process, vfs.now()).write(&*lock);
    }
    clear_unfinished(&*dir)?;
    for part in STORE_PARTS {
        make_private_dir(&*dir, part)?;
    }
    let places = Places::of_store(vfs.clone(), root.clone(), dir.clone())?;
    let id = vfs.random().on("read randomness for", new)?.to_be_bytes();
    Log::create(places.wal.clone(), id, options.log).map_err(atomtree_recovery::Error::Log)?;
    let ballast = Ballast::open(&*dir, options.ballast_bytes).doing("create", ".atomtree.new/ballast")?;
    ballast.fill().doing("allocate", ".atomtree.new/ballast")?;
    for name in [MEMBERS_FILE, TURN_FILE, CHECKPOINT_FILE, RETRY_FILE, RETRY_TURN_FILE] {
        dir.create_file(OsStr::new(name), 0o600).doing("create", &format!("{STORE_DIR_NEW}/{name}"))?;
    }
    let ignore =
        dir.create_file(OsStr::new(".gitignore"), 0o600).doing("create", ".atomtree.new/.gitignore")?;
    ignore.write_at(&[IoSlice::new(b"*\n")], 0).doing("write", ".atomtree.new/.gitignore")?;
    StoreFile::create(&*dir, id, options.log.segment_bytes).doing("create", ".atomtree.new/store")?;
    // Everything in it, then its name: it stands whole or not at all.
    root.sync_filesystem().doing("sync the file system of", "the root")?;
    let renamed = root.rename(new.as_os_str(), &**root, OsStr::new(STORE_DIR));
    // What is renamed is the directory that this lock lies in, and whoever comes next takes the same one. Closing it is
    // not enough, because a process that was just forked holds it open too.
    lock.unlock().doing("unlock", ".atomtree/lock")?;
    match renamed {
        Ok(()) => root.sync().doing("sync", "the root")?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).on("rename into place", new),
    }
    Ok(())
}

/// Makes a directory that is open to nobody else, whatever the umask; or takes the one that is there.
fn make_private_dir(parent: &dyn Dir, name: &str) -> Result<Arc<dyn Dir>, Error> {
    match parent.create_dir(OsStr::new(name), 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).on("create", name),
        _ => {}
    }
    let dir = parent.open_dir(Path::new(name)).on("open", name)?;
    if dir.own_metadata().on("look at", name)?.mode != 0o700 {
        dir.set_mode(0o700).on("set the mode of", name)?;
    }
    Ok(dir)
}

/// Removes what is left of a creation that was not finished, because another one was faster. To be called under the
/// store's lock; it stands in nobody's way, so that failing to remove it is no error. Somebody else's stays.
pub(crate) fn discard_unfinished(root: &dyn Dir, uid: u32) {
    let remove = || -> Result<(), Error> {
        let dir = root.open_dir(Path::new(STORE_DIR_NEW)).on("open", STORE_DIR_NEW)?;
        if dir.own_metadata().on("look at", STORE_DIR_NEW)?.uid != uid {
            return Ok(());
        }
        let lock = open_lock(&*dir).on("open", STORE_DIR_NEW)?;
        if lock.try_lock(Lock::Exclusive).on("lock", STORE_DIR_NEW)? {
            clear_unfinished(&*dir)?;
            for part in STORE_PARTS {
                let _ = dir.remove_dir(OsStr::new(part));
            }
            dir.remove_file(OsStr::new(LOCK_FILE)).on("clear", STORE_DIR_NEW)?;
            root.remove_dir(OsStr::new(STORE_DIR_NEW)).on("remove", STORE_DIR_NEW)?;
        }
        Ok(())
    };
    let _ = remove();
}

fn open_lock(dir: &dyn Dir) -> io::Result<Arc<dyn File>> {
    match dir.create_file(OsStr::new(LOCK_FILE), 0o600) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            dir.open_file(OsStr::new(LOCK_FILE), Access::ReadWrite)
        }
        result => result,
    }
}

/// Removes what an unfinished creation left: only names that creation itself makes.
fn clear_unfinished(dir: &dyn Dir) -> Result<(), Error> {
    let remove = |dir: &dyn Dir, name: &OsStr| match dir.remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", Path::new(name)),
        _ => Ok(()),
    };
    for name in [
        MEMBERS_FILE,
        TURN_FILE,
        CHECKPOINT_FILE,
        RETRY_FILE,
        RETRY_TURN_FILE,
        ".gitignore",
        "store",
        "ballast",
    ] {
        remove(dir, OsStr::new(name))?;
    }
    if let Ok(wal) = dir.open_dir(Path::new("wal")) {
        for entry in wal.list().on("list", STORE_DIR_NEW)? {
            remove(&*wal, &entry.name)?;
        }
    }
    Ok(())
}
