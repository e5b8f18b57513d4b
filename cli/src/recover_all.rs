//! `recover --all`: finds every store at or below some directories and recovers each, whatever became of the others.
//!
//! Meant for early boot. The way down is taken through `vfs`, so that no symlink is followed and no other file system
//! entered, also when somebody exchanges directories meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree::vfs::os::Os;
use atomtree::vfs::{Dir, Kind, Vfs};
use serde::Serialize;

use crate::answer::{Failure, complain, exit_status, json, print, refusal_at, tell};
use crate::arguments::Common;
use crate::path::JsonPath;
use crate::progress::Progress;
use crate::store_flags::StoreFlags;
use crate::text::{counted, printable};
use crate::upkeep::Recovered;

const STORE_DIR: &str = ".atomtree";
/// A store that is being made, or that a crash kept from being made; the first open makes it anew.
const STORE_DIR_NEW: &str = ".atomtree.new";

/// Runs `atomtree recover --all`; the highest exit status of all answers is its own.
pub(crate) fn recover_all(common: &Common, flags: &StoreFlags, dirs: &[PathBuf]) -> Result<u8, Failure> {
    let mut all = RecoverAll { common, flags, seen: BTreeSet::new(), recovered: 0, status: 0 };
    for dir in dirs {
        all.walk(dir)?;
    }
    if !common.json && all.recovered == 0 && all.status == 0 {
        let dirs: Vec<_> = dirs.iter().map(|dir| printable(&dir.to_string_lossy())).collect();
        print(&format!("no store at or below {}: nothing to recover", dirs.join(", ")))?;
    } else if !common.json {
        print(&format!("{} recovered", counted(all.recovered, "store")))?;
    }
    Ok(all.status)
}

struct RecoverAll<'a> {
    common: &'a Common,
    flags: &'a StoreFlags,
    /// Device and inode of each directory that was looked into: arguments may lie inside one another.
    seen: BTreeSet<(u64, u64)>,
    recovered: u64,
    /// The highest exit status so far.
    status: u8,
}

impl RecoverAll<'_> {
    /// Recovers every store at or below `top`, those further up first.
    ///
    /// # Errors
    /// Only that an answer could not be written; everything else is an answer.
    fn walk(&mut self, top: &Path) -> Result<(), Failure> {
        let root = match Os.open_root(top) {
            Ok(root) => root,
            Err(error) => return self.refuse(top, &cannot_look(top, &error)),
        };
        let looking = || Some(Progress::of(format_args!("looking for stores in {}", top.display())));
        let mut progress = looking();
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            // Without the slash that joining nothing would add.
            let path = if below.as_os_str().is_empty() { top.to_owned() } else { top.join(&below) };
            let looked = match self.look(&root, &below) {
                Ok(mut looked) => {
                    // Taken from the end, and so in their order.
                    looked.dirs.sort();
                    pending.extend(looked.dirs.into_iter().rev());
                    Ok(looked.has_store)
                }
                Err(error) => Err(cannot_look(&path, &error)),
            };
            if let Ok(false) = looked {
                continue;
            }
            // An answer has the terminal to itself.
            drop(progress.take());
            match looked {
                Ok(_) => self.recover(&path)?,
                Err(failure) => self.refuse(&path, &failure)?,
            }
            progress = looking();
        }
        Ok(())
    }

    fn look(&mut self, root: &Arc<dyn Dir>, below: &Path) -> io::Result<Looked> {
        let mut looked = Looked::default();
        let dir = match root.open_dir(below) {
            // Something is mounted there, or it is gone or no directory any more.
            Err(error) if !below.as_os_str().is_empty() && is_not_ours(&error) => return Ok(looked),
            result => result?,
        };
        let metadata = dir.own_metadata()?;
        if !self.seen.insert((metadata.device, metadata.inode)) {
            return Ok(looked);
        }
        for entry in dir.list()? {
            match entry.kind {
                Kind::File | Kind::Symlink => {}
                _ if entry.name == STORE_DIR_NEW => {}
                // A file system that does not say what it is has it looked at.
                Kind::Dir | Kind::Other if entry.name == STORE_DIR => looked.has_store = true,
                Kind::Dir | Kind::Other => looked.dirs.push(below.join(entry.name)),
            }
        }
        Ok(looked)
    }

    fn recover(&mut self, root: &Path) -> Result<(), Failure> {
        let shown = printable(&root.to_string_lossy());
        let progress = Progress::of(format_args!("recovering {shown}"));
        let result = Recovered::by_opening(self.flags.set_on(self.common.options()), root);
        drop(progress);
        let report = match result {
            Ok(report) => report,
            Err(failure) => return self.refuse(root, &failure),
        };
        self.recovered += 1;
        if self.common.json {
            return print(&json(&RecoveredAt { root: JsonPath::from(root), report }));
        }
        print(&format!("{shown}: {}", report.told().replace('\n', "\n  ")))
    }

    /// Says what failed at `root`, and goes on.
    fn refuse(&mut self, root: &Path, failure: &Failure) -> Result<(), Failure> {
        self.status = self.status.max(exit_status(failure.kind));
        if self.common.json {
            return print(&refusal_at(root, failure));
        }
        complain(&format!("{} was not recovered:", root.display()));
        tell(failure);
        Ok(())
    }
}

/// What stands in a directory.
#[derive(Default)]
struct Looked {
    has_store: bool,
    dirs: Vec<PathBuf>,
}

#[derive(Serialize)]
struct RecoveredAt {
    root: JsonPath,
    #[serde(flatten)]
    report: Recovered,
}

fn cannot_look(dir: &Path, error: &io::Error) -> Failure {
    let failure = Failure::of_io(&format!("look for stores in {}", dir.display()), error);
    Failure { path: Some(dir.to_owned()), ..failure }
}

fn is_not_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, NotADirectory, NotFound};
    matches!(error.kind(), CrossesDevices | NotADirectory | NotFound)
        || atomtree::vfs::is_symlink_error(error)
}
