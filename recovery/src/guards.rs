//! Guards: images of everything under some patterns, durable before anybody edits it in place.
//!
//! ```text
//! guards/
//!   turn                locked while a guard is being opened, or cleared up after
//!   index               what the images are of that earlier guards left
//!   cache/<image>       images, each ready to be put at its name by a rename
//!   <random>/           one guard
//!     lock              locked for as long as its owner lives, with a note of who that is
//!     guard             its patterns: from now on no transaction touches what they cover
//!     manifest          the list of all that stood there; the guard exists for as long as this file does
//!     reserve           space for the names that a roll back may have to make
//!     command           what runs under the guard, if it is a command
//! ```
//!
//! A guard begins when its manifest, and with it everything before, is durable, and it ends when the manifest has gone
//! durably: nothing about it is in the log. One whose lock is free was not ended by its owner, and is rolled back by
//! whoever comes next.

mod cache;
mod capture;
mod changes;
mod gitignore;
mod manifest;
#[doc(hidden)]
pub mod note;
mod patterns;
mod restore;
mod scrub;
mod seen;
mod stood;
mod walk;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atomtree_vfs::{Access, Dir, File, Kind, Lock, ProcessIdentity};

pub use changes::Changes;
pub use gitignore::read as read_gitignore;
pub use manifest::Manifest;
pub use patterns::{EVERYTHING, PatternTexts, Patterns};
pub use restore::{Keep, RolledBack};
pub use scrub::scrub;
pub use seen::{Seen, seen};
pub use stood::Stood;

use crate::error::{Doing, Error, Refusal};
use crate::places::Places;
use crate::plan::Change;
use crate::tree_path::STORE_DIR;
use changes::Trust;

const GUARDS_DIR: &str = "guards";
const CACHE_DIR: &str = "cache";
const TURN_FILE: &str = "turn";
const LOCK_FILE: &str = "lock";
const GUARD_FILE: &str = "guard";
const MANIFEST_FILE: &str = "manifest";
const MANIFEST_FILE_NEW: &str = "manifest.new";
const RESERVE_FILE: &str = "reserve";
const COMMAND_FILE: &str = "command";

/// How long the turn is waited for, and how often it is tried.
const TURN_MAX: Duration = Duration::from_mins(1);
const TURN_PAUSE: Duration = Duration::from_millis(1);

/// How long a lock is tried whose owner is dead: a process that it had just forked has it until it first runs, which takes a
/// while on a machine that is busy. No longer: who lives in another pid namespace may seem dead.
const DYING_MAX: Duration = Duration::from_secs(1);

/// The directories that guards share.
#[derive(Clone)]
pub struct GuardPlaces {
    guards: Arc<dyn Dir>,
    cache: Arc<dyn Dir>,
}

impl GuardPlaces {
    /// Opens them; `None` if there has never been a guard.
    pub fn open(places: &Places) -> Result<Option<Self>, Error> {
        let guards = match places.store.open_dir(Path::new(GUARDS_DIR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.doing("open", GUARDS_DIR)?,
        };
        Self::of(guards).map(Some)
    }

    /// Opens them, and makes them first if there are none. Nothing is synced.
    pub fn make(places: &Places) -> Result<Self, Error> {
        make_dir(&*places.store, GUARDS_DIR).doing("create", GUARDS_DIR)?;
        Self::of(places.store.open_dir(Path::new(GUARDS_DIR)).doing("open", GUARDS_DIR)?)
    }

    /// A power cut may have left the one without the other.
    fn of(guards: Arc<dyn Dir>) -> Result<Self, Error> {
        make_dir(&*guards, CACHE_DIR).doing("create", "guards/cache")?;
        let cache = guards.open_dir(Path::new(CACHE_DIR)).doing("open", "guards/cache")?;
        Ok(Self { guards, cache })
    }

    /// Takes the turn, for opening a guard or clearing up after one.
    ///
    /// # Errors
    /// `Locked` if somebody else has it for long.
    pub fn take_turn(&self) -> Result<GuardTurn, Error> {
        let deadline = Instant::now() + TURN_MAX;
        loop {
            if let Some(turn) = self.try_turn()? {
                return Ok(turn);
            }
            if Instant::now() > deadline {
                let reason = "another guard is being opened; wait until it is, and try again";
                return Err(refused(Refusal::Locked, ".", reason));
            }
            std::thread::sleep(TURN_PAUSE);
        }
    }

    fn try_turn(&self) -> Result<Option<GuardTurn>, Error> {
        let file = open_or_create(&*self.guards, TURN_FILE).doing("open", "guards/turn")?;
        file.hide_from_forks().doing("hide", "guards/turn")?;
        let is_taken = file.try_lock(Lock::Exclusive).doing("lock", "guards/turn")?;
        Ok(is_taken.then_some(GuardTurn { file }))
    }

    /// The names of the guards' directories.
    fn names(&self) -> io::Result<Vec<String>> {
        let names = self.guards.list()?.into_iter().filter_map(|entry| entry.name.into_string().ok());
        Ok(names.filter(|name| is_guard_name(name)).collect())
    }

    /// One guard's directory; `None` if it has gone.
    fn dir(&self, name: &str) -> io::Result<Option<Arc<dyn Dir>>> {
        match self.guards.open_dir(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }
}

/// Held while a guard is being opened, or cleared up after.
pub struct GuardTurn {
    file: Arc<dyn File>,
}

impl Drop for GuardTurn {
    fn drop(&mut self) {
        // Closing is not enough, if a process was just forked that has not executed its program yet.
        let _ = self.file.unlock();
    }
}

fn is_guard_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn make_dir(dir: &dyn Dir, name: &str) -> io::Result<()> {
    match dir.create_dir(OsStr::new(name), 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn open_or_create(dir: &dyn Dir, name: &str) -> io::Result<Arc<dyn File>> {
    match dir.open_file(OsStr::new(name), Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match dir.create_file(OsStr::new(name), 0o600) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    dir.open_file(OsStr::new(name), Access::ReadWrite)
                }
                created => created,
            }
        }
        opened => opened,
    }
}

fn remove_if_there(dir: &dyn Dir, name: &str) -> io::Result<()> {
    match dir.remove_file(OsStr::new(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn refused(kind: Refusal, path: &(impl ToString + ?Sized), reason: impl Into<String>) -> Error {
    Error::Refused { kind, path: path.to_string(), reason: reason.into() }
}

fn owner_of(lock: &dyn File) -> String {
    match note::read(lock) {
        Some(process) => format!("process {} ({})", process.pid, process.program),
        None => "another process".into(),
    }
}

/// A guard that has said which names it covers, and has no images yet.
pub struct Announced {
    id: String,
    dir: Arc<dyn Dir>,
    lock: Arc<dyn File>,
    patterns: Patterns,
    /// What the file system is synced through for this guard, and for nothing else: the root's descriptor is the
    /// checkpoint's, and each tells of a failure to write something back once.
    sync_root: Arc<dyn Dir>,
}

/// Says which names a guard covers. From now on no transaction may touch them; so far none of them is unsettled: both are
/// the caller's to see to, under the commit lock. A crash leaves nothing that anybody would have to put back.
///
/// # Errors
/// `Locked` if one of the names may be under another guard.
pub fn announce(
    places: &Places,
    guards: &GuardPlaces,
    patterns: Patterns,
    _turn: &GuardTurn,
) -> Result<Announced, Error> {
    for name in guards.names().doing("list", GUARDS_DIR)? {
        let label = format!("guards/{name}");
        let Some(dir) = guards.dir(&name).doing("open", &label)? else { continue };
        let Some(other) = patterns_of(&*dir, &label)? else { continue };
        if !other.may_overlap(&patterns) {
            continue;
        }
        let owner = match standing(&*dir).doing("look at", &label)? {
            Standing::Ended => None,
            Standing::Held(owner) => Some(owner),
            Standing::Abandoned => {
                Some("somebody who has left it, and it could not be rolled back yet".into())
            }
        };
        if let Some(owner) = owner {
            let reason = format!("names under it may be guarded by {owner}; wait until that guard ends");
            return Err(refused(Refusal::Locked, ".", reason));
        }
    }
    let sync_root = places.root.open_dir(Path::new("")).doing("open", ".")?;
    let random = places.vfs.random().doing("read randomness for", GUARDS_DIR)?;
    let id = format!("{:016x}", random as u64);
    let label = format!("guards/{id}");
    guards.guards.create_dir(OsStr::new(&id), 0o700).doing("create", &label)?;
    let dir = guards.guards.open_dir(Path::new(&id)).doing("open", &label)?;
    let lock = dir.create_file(OsStr::new(LOCK_FILE), 0o600).doing("create the lock file of", &label)?;
    let announced = Announced { id, dir, lock, patterns, sync_root };
    let said = announced.say(places).doing("announce", &label);
    if let Err(error) = said {
        announced.abandon(guards);
        return Err(error);
    }
    Ok(announced)
}

impl Announced {
    fn say(&self, places: &Places) -> io::Result<()> {
        self.lock.hide_from_forks()?;
        if !self.lock.try_lock(Lock::Exclusive)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        note::write(&*self.lock, &places.vfs.process()?)?;
        let patterns = self.patterns.texts().clone();
        manifest::write(&*self.dir, GUARD_FILE, &Manifest { patterns, ..Manifest::default() })
    }

    /// Takes the images, and makes them durable: then the guard exists.
    ///
    /// # Errors
    /// For whatever can't be guarded; then there is no guard.
    pub fn capture(
        self,
        places: &Places,
        guards: &GuardPlaces,
        _turn: &GuardTurn,
    ) -> Result<OpenGuard, Error> {
        match self.take_images(places, guards) {
            Ok((manifest, copied)) => {
                let Self { id, dir, lock, patterns, sync_root } = self;
                let guards = guards.clone();
                Ok(OpenGuard { id, dir, lock, patterns, sync_root, manifest, guards, copied })
            }
            Err(error) => {
                self.abandon(guards);
                Err(error)
            }
        }
    }

    fn take_images(&self, places: &Places, guards: &GuardPlaces) -> Result<(Manifest, u64), Error> {
        let label = format!("guards/{}", self.id);
        let captured = capture::capture(places, guards, self)?;
        let reserve = self
            .dir
            .create_file(OsStr::new(RESERVE_FILE), 0o600)
            .and_then(|reserve| reserve.allocate(captured.reserve_bytes));
        reserve.doing("keep space back in", &label)?;
        let written = manifest::write(&*self.dir, MANIFEST_FILE_NEW, &captured.manifest);
        written.doing("write the list of", &label)?;
        // Images, reserve and list, and the names of them all.
        self.sync_root.sync_filesystem().doing("sync the file system of", ".")?;
        let (new, name) = (OsStr::new(MANIFEST_FILE_NEW), OsStr::new(MANIFEST_FILE));
        self.dir.rename(new, &*self.dir, name).doing("write the list of", &label)?;
        if let Err(error) = self.dir.sync() {
            // It may be there after a crash or not; it is not to be found by anybody else.
            let _ = self.dir.remove_file(name);
            return Err(error).doing("sync", &label);
        }
        Ok((captured.manifest, captured.copied))
    }

    /// Clears up. What can't be cleared is swept by a later guard, or at the next open.
    fn abandon(&self, guards: &GuardPlaces) {
        let _ = clear(guards, &self.id, &*self.dir);
        let _ = cache::clear(guards, &cache::index(guards));
        let _ = self.lock.unlock();
    }
}

/// A guard that exists, and belongs to this process.
pub struct OpenGuard {
    id: String,
    dir: Arc<dyn Dir>,
    lock: Arc<dyn File>,
    patterns: Patterns,
    /// As old as the guard: it tells of every failure to write what was edited since.
    sync_root: Arc<dyn Dir>,
    manifest: Manifest,
    guards: GuardPlaces,
    copied: u64,
}

impl OpenGuard {
    /// Its name in `guards/`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many names are guarded.
    pub fn names(&self) -> usize {
        self.manifest.originals.iter().filter(|original| original.is_guarded).count()
    }

    /// How many images had to be made, because no earlier guard had left them.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Which names have changed since.
    pub fn changes(&self, places: &Places) -> Result<Changes, Error> {
        let found = walk::walk(places, &self.patterns, walk::Purpose::Compare)?;
        let difference = changes::compare(places, &self.manifest, &found, Trust::Times)?;
        Ok(difference.names(&self.manifest, &found))
    }

    /// Ends the guard: what stands there now is durable, and stays.
    ///
    /// # Durability
    /// Everything that was written before this was called is durable before the guard ends.
    ///
    /// Images that are left may take `cache_bytes_max` then.
    ///
    /// # Errors
    /// A failed sync: the guard still exists, and whoever opens the store next rolls it back. For
    /// [`Ended::Unknown`] whether it does is unknown.
    pub fn keep(&self, cache_bytes_max: u64) -> Result<(), Ended> {
        self.sync_root.sync_filesystem().doing("sync the file system of", ".").map_err(Ended::Not)?;
        self.end(cache_bytes_max)
    }

    /// Puts everything back as it was, and ends the guard. Images that are left may take `cache_bytes_max` then.
    ///
    /// # Errors
    /// The guard still exists, and a roll back can be tried again: by this, or by whoever opens the store next.
    pub fn roll_back(&self, places: &Places, keep: Keep, cache_bytes_max: u64) -> Result<RolledBack, Ended> {
        let guard = (self.id.as_str(), &*self.dir);
        let restored = restore::restore(places, &self.guards, guard, &self.manifest, Trust::Times, keep);
        let done = restored.map_err(Ended::Not)?;
        self.end(cache_bytes_max)?;
        Ok(done)
    }

    fn end(&self, cache_bytes_max: u64) -> Result<(), Ended> {
        end(&self.id, &*self.dir)?;
        if let Ok(turn) = self.guards.take_turn() {
            clear_up(&self.guards, &self.id, &*self.dir, &self.manifest, cache_bytes_max, &turn);
        }
        Ok(())
    }

    /// Leaves the guard to whoever opens the store next.
    pub fn leave(&self) {
        // Closing is not enough, if a process was just forked that has not executed its program yet.
        let _ = self.lock.unlock();
    }
}

/// Why a guard did not end as it should have.
#[derive(Debug)]
pub enum Ended {
    /// It still exists.
    Not(Error),
    /// It may have ended as it should, or still exist.
    Unknown(Error),
}

impl Ended {
    /// What went wrong.
    pub fn into_error(self) -> Error {
        match self {
            Self::Not(error) | Self::Unknown(error) => error,
        }
    }
}

/// Ends a guard.
fn end(id: &str, dir: &dyn Dir) -> Result<(), Ended> {
    let label = format!("guards/{id}");
    dir.remove_file(OsStr::new(MANIFEST_FILE)).doing("end", &label).map_err(Ended::Not)?;
    dir.sync().doing("sync", &label).map_err(Ended::Unknown)
}

/// Keeps the images of a guard that has ended for the next one, as far as they fit. What is left lying is swept by a later
/// guard, or at the next open.
fn clear_up(
    guards: &GuardPlaces,
    id: &str,
    dir: &dyn Dir,
    manifest: &Manifest,
    cache_bytes_max: u64,
    _turn: &GuardTurn,
) {
    let index = cache::take_in(guards, manifest, cache_bytes_max);
    let _ = clear(guards, id, dir);
    if let Ok(Some(index)) = index {
        let _ = cache::clear(guards, &index);
    }
}

/// Removes a guard's directory.
fn clear(guards: &GuardPlaces, id: &str, dir: &dyn Dir) -> io::Result<()> {
    for entry in dir.list()? {
        if entry.name != LOCK_FILE {
            dir.remove_file(&entry.name)?;
        }
    }
    remove_if_there(dir, LOCK_FILE)?;
    guards.guards.remove_dir(OsStr::new(id))
}

/// The patterns of the guard in this directory; `None` if it has not said them yet, or is being cleared away.
fn patterns_of(dir: &dyn Dir, label: &str) -> Result<Option<Patterns>, Error> {
    let path = format!("{label}/{GUARD_FILE}");
    let Some(said) = manifest::read(dir, GUARD_FILE, &path)? else { return Ok(None) };
    Patterns::new(said.patterns).map(Some).map_err(|reason| Error::GuardManifest { path, reason })
}

/// What has become of a guard.
enum Standing {
    /// It does not exist.
    Ended,
    /// Its owner, whom this tells of, has it.
    Held(String),
    /// It exists, and its owner has gone.
    Abandoned,
}

/// Whether the guard in this directory exists: it does while it is locked, and after that for as long as its manifest does.
fn standing(dir: &dyn Dir) -> io::Result<Standing> {
    let lock = match dir.open_file(OsStr::new(LOCK_FILE), Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::Ended),
        opened => opened?,
    };
    let owner = owner_of(&*lock);
    lock.hide_from_forks()?;
    if !lock.try_lock(Lock::Exclusive)? {
        return Ok(Standing::Held(owner));
    }
    let exists = match dir.metadata(OsStr::new(MANIFEST_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        found => found.map(|_| true)?,
    };
    lock.unlock()?;
    Ok(if exists { Standing::Abandoned } else { Standing::Ended })
}

/// The guards that there are, as far as commits have to know them. Kept by whoever commits, so that a look costs little.
#[derive(Default)]
pub struct Lookout {
    places: Option<GuardPlaces>,
    known: Vec<Known>,
}

/// A guard that has said what it covers.
struct Known {
    name: String,
    dir: Arc<dyn Dir>,
    patterns: Patterns,
    /// Whether it is known to have ended, durably: then it covers nothing any more.
    has_ended: bool,
}

impl Lookout {
    /// Whether no guard covers any name of these changes; `false` if one does whose owner has gone, and that has to be rolled
    /// back first. To be asked under the commit lock.
    ///
    /// # Errors
    /// `Locked`, naming the guard's owner, if one does that lives.
    pub fn check<'a>(
        &mut self,
        places: &Places,
        changes: impl Iterator<Item = &'a Change<'a>>,
    ) -> Result<bool, Error> {
        if self.places.is_none() {
            self.places = GuardPlaces::open(places)?;
        }
        let Some(guards) = &self.places else { return Ok(true) };
        let names = guards.names().doing("list", GUARDS_DIR)?;
        self.known.retain(|known| names.contains(&known.name));
        for name in names {
            if self.known.iter().any(|known| known.name == name) {
                continue;
            }
            let label = format!("guards/{name}");
            if let Some(dir) = guards.dir(&name).doing("open", &label)?
                && let Some(patterns) = patterns_of(&*dir, &label)?
            {
                self.known.push(Known { name, dir, patterns, has_ended: false });
            }
        }
        if self.known.is_empty() {
            return Ok(true);
        }
        for change in changes {
            for known in self.known.iter_mut().filter(|known| !known.has_ended) {
                // A directory that goes, or moves, takes along what lies in it.
                let is_dir =
                    change.takes_directory() || change.moved().is_some_and(|moved| moved.kind == Kind::Dir);
                let Some(path) = change.names().find(|path| known.patterns.concerns(path, is_dir)) else {
                    continue;
                };
                let label = format!("guards/{}", known.name);
                match standing(&*known.dir).doing("look at", &label)? {
                    // Its owner may have died before that was durable. A power cut would bring it back, and then what is
                    // committed now would be rolled back.
                    Standing::Ended => {
                        known.dir.sync().doing("sync", &label)?;
                        known.has_ended = true;
                    }
                    Standing::Abandoned => return Ok(false),
                    Standing::Held(owner) => {
                        return Err(refused(Refusal::Locked, path, format!("it is guarded by {owner}")));
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Rolls back what guards cover whose owners have gone, and clears up after them and others that did not get so far.
/// Returns what was done, guard by guard. Images that are left may take `cache_bytes_max` then. Who has the turn hands it in.
///
/// # Durability
/// What was rolled back is durable when this returns.
///
/// # Errors
/// `Locked` if a command still runs under such a guard, and can't be ended.
pub fn roll_back_abandoned(
    places: &Places,
    cache_bytes_max: u64,
    turn: Option<&GuardTurn>,
) -> Result<Vec<RolledBack>, Error> {
    let Some(guards) = GuardPlaces::open(places)? else { return Ok(Vec::new()) };
    // Not waited for, under the commit lock: whoever has it takes images, which takes long, or waits for that lock. Who opens
    // a guard clears up as well.
    let own = if turn.is_none() { guards.try_turn()? } else { None };
    let turn = turn.or(own.as_ref());
    let mut done = Vec::new();
    for name in guards.names().doing("list", GUARDS_DIR)? {
        let label = format!("guards/{name}");
        let Some(dir) = guards.dir(&name).doing("open", &label)? else { continue };
        let Some(lock) = lock_of_the_dead(places, &*dir).doing("lock", &label)? else { continue };
        if let Some(manifest) = manifest::read(&*dir, MANIFEST_FILE, &format!("{label}/manifest"))? {
            end_command(places, &name, &*dir)?;
            let guard = (name.as_str(), &*dir);
            done.push(restore::restore(places, &guards, guard, &manifest, Trust::Nothing, Keep::Nothing)?);
            end(&name, &*dir).map_err(Ended::into_error)?;
            if let Some(turn) = turn {
                clear_up(&guards, &name, &*dir, &manifest, cache_bytes_max, turn);
            }
        } else {
            // Its owner may have died before the end of the guard was durable; from now on it has been seen.
            dir.sync().doing("sync", &label)?;
        }
        lock.unlock().doing("unlock", &label)?;
    }
    if turn.is_some() {
        sweep(&guards)?;
    }
    Ok(done)
}

/// Clears away what never became a guard, and what is left of those that ended.
fn sweep(guards: &GuardPlaces) -> Result<(), Error> {
    let mut has_swept = false;
    for name in guards.names().doing("list", GUARDS_DIR)? {
        let label = format!("guards/{name}");
        let Some(dir) = guards.dir(&name).doing("open", &label)? else { continue };
        if manifest::read(&*dir, MANIFEST_FILE, &label)?.is_some()
            || !matches!(standing(&*dir).doing("look at", &label)?, Standing::Ended)
        {
            continue;
        }
        // Nobody would sync its end once it has gone.
        dir.sync().doing("sync", &label)?;
        clear(guards, &name, &*dir).doing("clear", &label)?;
        has_swept = true;
    }
    if has_swept { cache::clear(guards, &cache::index(guards)) } else { Ok(()) }
}

/// The lock of a guard whose owner has gone.
fn lock_of_the_dead(places: &Places, dir: &dyn Dir) -> io::Result<Option<Arc<dyn File>>> {
    // One that somebody has removed keeps nobody away.
    let lock = open_or_create(dir, LOCK_FILE)?;
    lock.hide_from_forks()?;
    let deadline = Instant::now() + DYING_MAX;
    loop {
        if lock.try_lock(Lock::Exclusive)? {
            return Ok(Some(lock));
        }
        let is_alive = note::read(&*lock).is_some_and(|owner| places.vfs.is_alive(&owner));
        if is_alive || Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(TURN_PAUSE);
    }
}

/// The variable in the environment of everything that runs under the guard of this name.
pub fn variable_of(id: &str) -> String {
    format!("ATOMTREE_GUARD_{id}=1")
}

/// The directory, from the root on, of the guard of this name; `None` if it is not one.
pub fn dir_of(id: &str) -> Option<PathBuf> {
    is_guard_name(id).then(|| [STORE_DIR, GUARDS_DIR, id].iter().collect())
}

/// Notes which command runs under the guard whose directory this is. Nothing is synced: a power cut ends it anyway.
///
/// # Errors
/// The command must not be started.
pub fn note_command(guard: &dyn Dir, leader: &ProcessIdentity, group: Option<&Path>) -> io::Result<()> {
    let file = guard.create_file(OsStr::new(COMMAND_FILE), 0o600)?;
    note::write_with_group(&*file, leader, group)
}

/// Ends what still runs under a guard.
fn end_command(places: &Places, id: &str, dir: &dyn Dir) -> Result<(), Error> {
    let label = format!("guards/{id}/{COMMAND_FILE}");
    let name = OsStr::new(COMMAND_FILE);
    // If none is noted, none may be from now on: one that is about to note itself does not start then.
    match dir.create_file(name, 0o600) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).doing("create", &label),
    }
    let file = dir.open_file(name, Access::Read).doing("open", &label)?;
    let (leader, group) = (note::read(&*file), note::read_group(&*file));
    let command = atomtree_vfs::Command { variable: variable_of(id), leader, group };
    let left = places.vfs.end_command(&command).doing("end what is left of the command in", &label)?;
    let Some(first) = left.first() else { return Ok(()) };
    let reason = format!(
        "process {} ({}) still runs under a guard whose `atomtree run` has gone; end it, and open the store again",
        first.pid, first.program
    );
    Err(refused(Refusal::Locked, ".", reason))
}
