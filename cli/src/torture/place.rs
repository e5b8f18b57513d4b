//! The directory that is tortured: `tree`, now and then `new`, and `torture.log`, which says what was acknowledged.
//!
//! Nothing of somebody else's is touched: it is empty, or not there, or not taken.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atomtree::ErrorKind;
use atomtree::vfs::{FileSystem, Vfs, os::Os};

use crate::answer::Failure;
use crate::arguments::Common;
use crate::text::size;
use crate::torture::check::Standing;
use crate::torture::workload::Workload;

/// What it takes at most: the files of all workers twice, the log, the ballast, and the history.
pub(super) const BYTES_MAX: u64 = 128 << 20;
const TREE: &str = "tree";
const NEW_TREE: &str = "new";
/// The name of such a tree while it is removed: half a store under its own name would look broken to `--check`.
const REMOVED_TREE: &str = "removed";
const LOG_FILE: &str = "torture.log";
/// What the log was before it was begun again.
const LOG_FILE_OLD: &str = "torture.log.old";
const LOG_FILE_NEW: &str = "torture.log.new";
/// How long the log grows before it is begun again.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// What is before the counts in a line of the log.
const ACKNOWLEDGED: &str = "acknowledged ";
/// The log is synced this often and no more, because each sync may make durable what atomtree has forgotten to.
const LOG_SYNC: Duration = Duration::from_secs(5);

pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) file_system: FileSystem,
    pub(super) workload: Workload,
    /// Whether a mode that is asked for is the mode that is found; a default ACL changes it.
    pub(super) compares_modes: bool,
    /// Whether the directory was made for this.
    is_ours: bool,
    log: Log,
}

/// `torture.log`: the seed, then a line for each kill and each check.
struct Log {
    file: File,
    bytes: u64,
    synced: Instant,
}

impl Place {
    /// Takes the root, which must be empty or not there; or makes a directory in it if it was not named.
    pub(super) fn create(common: &Common, seed: u64) -> Result<Self, Failure> {
        let (dir, is_ours) = if common.is_root_given {
            (common.root.clone(), make(&common.root)?)
        } else {
            let made = std::path::absolute(&common.root)
                .and_then(|dir| tempfile::Builder::new().prefix("atomtree-torture-").tempdir_in(dir));
            let made = made.map_err(|error| failed("make a directory in", &common.root, &error))?;
            (made.keep(), true)
        };
        let begun = Self::begin(&dir, is_ours, seed);
        if begun.is_err() && is_ours {
            // It is empty again, unless somebody else has come meanwhile, and then it stays.
            let _ = fs::remove_dir(&dir);
        }
        begun
    }

    fn begin(dir: &Path, is_ours: bool, seed: u64) -> Result<Self, Failure> {
        let file_system = describe(dir)?;
        if file_system.available_bytes < 2 * BYTES_MAX {
            let (free, needed) = (size(file_system.available_bytes), size(2 * BYTES_MAX));
            let message = format!(
                "{}: {free} are free, and {needed} must be; free some space, or name a directory elsewhere with --root",
                dir.display()
            );
            return Err(Failure::new(ErrorKind::NoSpace, message).about(dir));
        }
        let workload = Workload { seed, moves_dirs: file_system.name != "overlayfs" };
        let compares_modes = !hands_on_modes(dir)?;
        let begin = || -> io::Result<Log> {
            let tree = dir.join(TREE);
            fs::create_dir(&tree)?;
            Log::create(dir, LOG_FILE, workload).inspect_err(|_| {
                let _ = fs::remove_dir(&tree);
            })
        };
        let log = begin().map_err(|error| failed("begin in", dir, &error))?;
        Ok(Self { dir: dir.to_owned(), file_system, workload, compares_modes, is_ours, log })
    }

    /// Takes a directory that an earlier run has left, and what was acknowledged there, as far as the log knows.
    pub(super) fn open(dir: &Path) -> Result<(Self, Standing), Failure> {
        let text = fs::read(dir.join(LOG_FILE)).map_err(|error| {
            let name = Path::new(LOG_FILE).display();
            let failure = Failure::of_io(&format!("read {name} in {}", dir.display()), &error);
            let message = format!(
                "{}; --check is for a directory that an earlier `atomtree torture` has left",
                failure.message
            );
            Failure { message, ..failure }.about(dir)
        })?;
        // A power cut may have left anything at its end.
        let text = String::from_utf8_lossy(&text);
        let value = |key: &str| {
            let words = text.lines().next().unwrap_or_default().split(' ');
            words
                .filter_map(|word| word.split_once('='))
                .find(|(found, _)| *found == key)
                .map(|(_, value)| value)
        };
        let workload = (|| {
            Some(Workload {
                seed: value("seed")?.parse().ok()?,
                moves_dirs: value("moves_dirs")?.parse().ok()?,
            })
        })();
        let Some(workload) = workload else {
            let message = format!("{}: its first line does not say the seed", dir.join(LOG_FILE).display());
            return Err(Failure::new(ErrorKind::InvalidInput, message).about(dir));
        };
        let mut acknowledged = Standing::default();
        for line in text.lines().filter_map(|line| line.split_once(ACKNOWLEDGED)) {
            acknowledged.raise(&Standing::of_spelled(line.1));
        }
        let log = Log::open(dir).map_err(|error| failed("open the log in", dir, &error))?;
        let (file_system, compares_modes) = (describe(dir)?, !hands_on_modes(dir)?);
        let place = Self { dir: dir.to_owned(), file_system, workload, compares_modes, is_ours: false, log };
        Ok((place, acknowledged))
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.dir.join(TREE)
    }

    /// The tree that a power cut kept from being removed.
    pub(super) fn new_tree_left(&self) -> Option<PathBuf> {
        Some(self.dir.join(NEW_TREE)).filter(|tree| tree.exists())
    }

    /// Makes an empty tree beside the one that stays.
    pub(super) fn make_tree(&self) -> Result<PathBuf, Failure> {
        let tree = self.dir.join(NEW_TREE);
        fs::create_dir(&tree).map_err(|error| failed("make a tree in", &self.dir, &error))?;
        Ok(tree)
    }

    pub(super) fn remove_tree(&self, tree: &Path) -> Result<(), Failure> {
        let doomed = self.dir.join(REMOVED_TREE);
        // No sync between the two: it might make durable what atomtree has forgotten to.
        let removed = fs::rename(tree, &doomed).and_then(|()| fs::remove_dir_all(&doomed));
        removed.map_err(|error| failed("remove a tree in", &self.dir, &error))
    }

    /// Writes a line to the log.
    pub(super) fn say(&mut self, what: &str) -> Result<(), Failure> {
        self.log.say(what).map_err(|error| failed("write the log in", &self.dir, &error))
    }

    /// As [`Place::say`], of what a writer has acknowledged.
    pub(super) fn say_acknowledged(&mut self, what: &str, acknowledged: &Standing) -> Result<(), Failure> {
        self.say(&format!("{what}; {ACKNOWLEDGED}{}", acknowledged.spelled()))
    }

    /// As [`Place::say`], of all that was acknowledged. A log that has become long begins again with that.
    pub(super) fn say_checked(&mut self, what: &str, acknowledged: &Standing) -> Result<(), Failure> {
        self.say_acknowledged(what, acknowledged)?;
        if self.log.bytes < LOG_BYTES_MAX {
            return Ok(());
        }
        let begin_again = || -> io::Result<Log> {
            let name = |name: &str| self.dir.join(name);
            let mut log = Log::create(&self.dir, LOG_FILE_NEW, self.workload)?;
            log.say(&format!("{what}; {ACKNOWLEDGED}{}", acknowledged.spelled()))?;
            log.file.sync_all()?;
            // Some file systems refuse links, and the old log only tells more.
            let _ = fs::remove_file(name(LOG_FILE_OLD));
            match fs::hard_link(name(LOG_FILE), name(LOG_FILE_OLD)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // There is one under its name at any moment.
            fs::rename(name(LOG_FILE_NEW), name(LOG_FILE))?;
            Ok(log)
        };
        self.log = begin_again().map_err(|error| failed("begin the log again in", &self.dir, &error))?;
        Ok(())
    }

    /// Removes what was made.
    pub(super) fn remove(self) -> Result<(), Failure> {
        let remove = || -> io::Result<()> {
            // Without it `--check` looks at nothing, and so not at half a tree.
            fs::remove_file(self.dir.join(LOG_FILE))?;
            File::open(&self.dir)?.sync_all()?;
            fs::remove_dir_all(self.tree())?;
            match fs::remove_file(self.dir.join(LOG_FILE_OLD)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            if self.is_ours { fs::remove_dir(&self.dir) } else { Ok(()) }
        };
        remove().map_err(|error| failed("remove what was made in", &self.dir, &error))
    }
}

impl Log {
    /// Makes a durable log. If it fails, there is none.
    fn create(dir: &Path, name: &str, workload: Workload) -> io::Result<Self> {
        let path = dir.join(name);
        let file = File::create_new(&path)?;
        let mut log = Self { file, bytes: 0, synced: Instant::now() };
        let (version, Workload { seed, moves_dirs }) = (env!("CARGO_PKG_VERSION"), workload);
        let begun = log.say(&format!("atomtree {version} torture, seed={seed} moves_dirs={moves_dirs}"));
        let durable = begun.and_then(|()| log.file.sync_all()).and_then(|()| File::open(dir)?.sync_all());
        durable.map(|()| log).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }

    fn open(dir: &Path) -> io::Result<Self> {
        let file = File::options().append(true).open(dir.join(LOG_FILE))?;
        Ok(Self { file, bytes: 0, synced: Instant::now() })
    }

    fn say(&mut self, what: &str) -> io::Result<()> {
        let line = format!("{what}\n");
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        if self.synced.elapsed() < LOG_SYNC {
            return Ok(());
        }
        self.synced = Instant::now();
        self.file.sync_data()
    }
}

/// Makes the directory if it isn't there; whether it did. One that holds something is refused.
fn make(dir: &Path) -> Result<bool, Failure> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // One that somebody else makes meanwhile is refused.
            let made = fs::create_dir_all(dir.parent().unwrap_or(dir)).and_then(|()| fs::create_dir(dir));
            made.map_err(|error| failed("make", dir, &error))?;
            Ok(true)
        }
        Err(error) => Err(failed("look into", dir, &error)),
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(false);
            }
            let message = format!(
                "{} is not empty, and `torture` takes a directory for itself: name one that is empty or that it shall make; --check looks at what an earlier run has left",
                dir.display()
            );
            Err(Failure::new(ErrorKind::NotEmpty, message).about(dir))
        }
    }
}

fn describe(dir: &Path) -> Result<FileSystem, Failure> {
    let found = Os.open_root(dir).and_then(|dir| dir.file_system());
    let found = found.map_err(|error| failed("describe the file system of", dir, &error))?;
    if found.remote {
        let (dir_shown, name) = (dir.display(), &found.name);
        let message = format!(
            "{dir_shown} lies on {name}, where none of atomtree's promises is known to hold; name a directory elsewhere with --root"
        );
        return Err(Failure::new(ErrorKind::Unsupported, message).about(dir));
    }
    Ok(found)
}

/// Whether what is made below the directory gets another mode than is asked for.
fn hands_on_modes(dir: &Path) -> Result<bool, Failure> {
    let attributes = Os.open_root(dir).and_then(|dir| dir.xattrs());
    let attributes = attributes.map_err(|error| failed("read the attributes of", dir, &error))?;
    Ok(attributes.iter().any(|attribute| attribute.name == "system.posix_acl_default"))
}

fn failed(what: &str, dir: &Path, error: &io::Error) -> Failure {
    Failure::of_io(&format!("{what} {}", dir.display()), error).about(dir)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::torture::check::{Checker, Stop};
    use crate::torture::rounds::Figures;
    use crate::torture::{Found, Verdict};

    /// Goal: the log stays short for however long it runs, and knows all the same what was acknowledged. Method: more
    /// checks than it has room for, twice, and once more where the old log can't be kept; then a line torn off at its
    /// end, as by a power cut.
    #[test]
    fn the_log_stays_short_and_forgets_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        let mut place = Place::begin(dir, false, 5).unwrap();
        let workload = place.workload;
        let mut standing = Standing::default();
        let bytes = |name: &str| fs::metadata(dir.join(name)).map_or(0, |found| found.len());
        for keeps_old in [true, true, false] {
            if !keeps_old {
                fs::remove_file(dir.join(LOG_FILE_OLD)).unwrap();
                fs::create_dir(dir.join(LOG_FILE_OLD)).unwrap();
            }
            let mut longest = 0;
            while bytes(LOG_FILE) > longest {
                longest = bytes(LOG_FILE);
                standing.workers[3] += 1;
                place.say_checked(&"check ".repeat(50), &standing).unwrap();
            }
            assert!(longest < LOG_BYTES_MAX && bytes(LOG_FILE) < 1000, "{longest}");
            assert!(bytes(LOG_FILE_OLD) < LOG_BYTES_MAX + 1000);
            assert_eq!(Place::open(dir).unwrap().1, standing);
        }
        fs::remove_dir(dir.join(LOG_FILE_OLD)).unwrap();
        place.log.file.write_all(b"round 7; acknowledged w0=9 w3=1\0\0\0").unwrap();
        standing.workers[0] = 9;
        let (opened, acknowledged) = Place::open(dir).unwrap();
        assert_eq!((opened.workload, acknowledged), (workload, standing));
        place.remove().unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }

    /// Goal: a run that is ended while it removes a tree leaves no half of one to `--check`. Method: what stands there is
    /// looked at again and again meanwhile.
    #[test]
    fn no_half_of_a_tree_is_left_to_a_check() {
        const FILES: usize = 3000;
        let scratch = tempfile::tempdir().unwrap();
        let place = Place::begin(scratch.path(), false, 5).unwrap();
        let (tree, new, log) = (place.tree(), place.make_tree().unwrap(), scratch.path().join(LOG_FILE));
        for n in 0..FILES {
            fs::write(tree.join(n.to_string()), "").unwrap();
            fs::write(new.join(n.to_string()), "").unwrap();
        }
        let is_whole = |tree: &Path| fs::read_dir(tree).is_ok_and(|names| names.count() == FILES);
        thread::scope(|scope| {
            let removing = scope.spawn(|| {
                place.remove_tree(&new).unwrap();
                place.remove().unwrap();
            });
            while !removing.is_finished() {
                assert!(is_whole(&new) || !new.exists());
                assert!(is_whole(&tree) || !log.exists());
            }
        });
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    /// Goal: a broken promise is told even where the log can't be written. Method: a log that is open for reading only.
    #[test]
    fn a_verdict_needs_no_log() {
        let scratch = tempfile::tempdir().unwrap();
        let mut place = Place::begin(scratch.path(), false, 5).unwrap();
        place.log.file = File::open(scratch.path().join(LOG_FILE)).unwrap();
        assert!(place.say("nothing").is_err());
        let checker = Checker::new(place.workload, place.compares_modes);
        let mut found = Found::new(&place, Figures::default(), &checker, Duration::ZERO);
        found.conclude(Err(Stop::Broken("w0 is lost".to_owned())), true, &mut place).unwrap();
        assert!(found.verdict == Verdict::Broken && found.broken.as_deref() == Some("w0 is lost"));
    }

    /// Goal: a run that can't begin removes nothing of somebody else's, and leaves nothing of its own. Method: each name
    /// that it would give is taken when it has found the directory empty.
    #[test]
    fn a_run_that_cannot_begin_removes_only_its_own() {
        for taken in [TREE, LOG_FILE] {
            let scratch = tempfile::tempdir().unwrap();
            let file = scratch.path().join(taken);
            fs::write(&file, "stays").unwrap();
            assert!(Place::begin(scratch.path(), true, 5).is_err());
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
            assert_eq!(fs::read(file).unwrap(), b"stays");
        }
    }
}
