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
const LOG_FILE: &str = "torture.log";
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
    log: File,
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
            // What it held, if anything, was made a moment ago.
            let _ = fs::remove_dir_all(&dir);
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
        let begin = || -> io::Result<File> {
            let mut log = File::create_new(dir.join(LOG_FILE))?;
            let (version, moves) = (env!("CARGO_PKG_VERSION"), workload.moves_dirs);
            writeln!(log, "atomtree {version} torture, seed={seed} moves_dirs={moves}")?;
            fs::create_dir(dir.join(TREE))?;
            log.sync_all()?;
            File::open(dir)?.sync_all()?;
            Ok(log)
        };
        let log = begin().map_err(|error| failed("begin in", dir, &error))?;
        let (dir, compares_modes) = (dir.to_owned(), !hands_on_modes(dir)?);
        Ok(Self { dir, file_system, workload, compares_modes, is_ours, log, synced: Instant::now() })
    }

    /// Takes a directory that an earlier run has left, and what was acknowledged there, as far as the log knows.
    pub(super) fn open(common: &Common) -> Result<(Self, Standing), Failure> {
        let dir = &common.root;
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
        let log = File::options().append(true).open(dir.join(LOG_FILE));
        let log = log.map_err(|error| failed("open the log in", dir, &error))?;
        let (file_system, compares_modes) = (describe(dir)?, !hands_on_modes(dir)?);
        let (dir, synced) = (dir.clone(), Instant::now());
        Ok((Self { dir, file_system, workload, compares_modes, is_ours: false, log, synced }, acknowledged))
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
        fs::remove_dir_all(tree).map_err(|error| failed("remove a tree in", &self.dir, &error))
    }

    /// Writes a line to the log.
    pub(super) fn say(&mut self, what: &str) -> Result<(), Failure> {
        let written = writeln!(self.log, "{what}").and_then(|()| {
            if self.synced.elapsed() < LOG_SYNC {
                return Ok(());
            }
            self.synced = Instant::now();
            self.log.sync_data()
        });
        written.map_err(|error| failed("write the log in", &self.dir, &error))
    }

    /// As [`Place::say`], of what was acknowledged.
    pub(super) fn say_acknowledged(&mut self, what: &str, acknowledged: &Standing) -> Result<(), Failure> {
        self.say(&format!("{what}; {ACKNOWLEDGED}{}", acknowledged.spelled()))
    }

    /// Removes what was made.
    pub(super) fn remove(self) -> Result<(), Failure> {
        let remove = || -> io::Result<()> {
            fs::remove_dir_all(self.tree())?;
            fs::remove_file(self.dir.join(LOG_FILE))?;
            if self.is_ours { fs::remove_dir(&self.dir) } else { Ok(()) }
        };
        remove().map_err(|error| failed("remove what was made in", &self.dir, &error))
    }
}

/// Makes the directory if it isn't there; whether it did. One that holds something is refused.
fn make(dir: &Path) -> Result<bool, Failure> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(|error| failed("make", dir, &error))?;
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
