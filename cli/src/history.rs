//! Going back, and forgetting: `undo`, `redo`, `restore`, `cat`, `prune`, `scrub`.
//!
//! What changes the tree answers like any other transaction.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atomtree::{ErrorKind, Keep, Moment, Receipt, Store, TransactionId, UndoOptions};
use serde::Serialize;

use crate::answer::{Done, Failure, json, print_done};
use crate::apply::{close, tell};
use crate::arguments::{Common, GoingBack, TxAndPath, Which};
use crate::progress::Progress;
use crate::store_flags::StoreFlags;
use crate::text::{counted, printable, size};

/// Opens the store; there is nothing to go back to where there is none.
fn open(common: &Common, flags: &StoreFlags) -> Result<Store, Failure> {
    if !common.has_store() {
        common.check_root()?;
        let message = format!("there is no store in {}, and so no history", common.root.display());
        return Err(Failure::new(ErrorKind::NotFound, message));
    }
    flags.open(common)
}

impl GoingBack {
    fn options(&self) -> UndoOptions {
        let options = UndoOptions::new().force(self.force);
        let options = self.label.iter().fold(options, UndoOptions::label);
        self.agent.iter().fold(options, UndoOptions::agent)
    }
}

/// Carries out a transaction that goes back, and says what came of it.
fn go(
    common: &Common,
    flags: &StoreFlags,
    go: impl FnOnce(&Store) -> Result<Receipt, atomtree::Error>,
) -> Result<u8, Failure> {
    let progress = Progress::of("going back");
    let store = open(common, flags)?;
    let started = Instant::now();
    let receipt = go(&store)?;
    let done = Done::new(None, &receipt, started.elapsed());
    close(store);
    drop(progress);
    if common.json {
        return print_done(&json(&done)).map(|()| 0);
    }
    tell(&Ok(done))
}

fn ids(which: &Which) -> impl Iterator<Item = TransactionId> {
    which.transactions.iter().copied().map(TransactionId)
}

/// Runs `atomtree undo`.
pub(crate) fn undo(common: &Common, flags: &StoreFlags, which: &Which) -> Result<u8, Failure> {
    go(common, flags, |store| store.undo_all(ids(which), &which.how.options()))
}

/// Runs `atomtree redo`.
pub(crate) fn redo(common: &Common, flags: &StoreFlags, which: &Which) -> Result<u8, Failure> {
    go(common, flags, |store| store.redo_all(ids(which), &which.how.options()))
}

/// Runs `atomtree restore`.
pub(crate) fn restore(
    common: &Common,
    flags: &StoreFlags,
    to: Moment,
    paths: &[PathBuf],
    how: &GoingBack,
) -> Result<u8, Failure> {
    go(common, flags, |store| store.restore(to, paths, &how.options()))
}

/// Runs `atomtree cat`: the content alone, whatever it is.
pub(crate) fn cat(common: &Common, flags: &StoreFlags, what: &TxAndPath) -> Result<u8, Failure> {
    let store = open(common, flags)?;
    let bytes = store.cat(TransactionId(what.0), &what.1)?;
    close(store);
    let mut out = io::stdout().lock();
    match out.write_all(&bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::of_io("write to standard output", &error))
        }
        _ => Ok(0),
    }
}

/// Runs `atomtree prune`.
pub(crate) fn prune(
    common: &Common,
    flags: &StoreFlags,
    transactions: Option<u64>,
    age: Option<Duration>,
    bytes: Option<u64>,
) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Pruned {
        ok: bool,
        transactions: u64,
        bytes: u64,
    }
    let progress = Progress::of("forgetting history");
    let store = open(common, flags)?;
    let keep = transactions.into_iter().fold(Keep::new(), Keep::transactions_max);
    let keep = age.into_iter().fold(keep, Keep::age_max);
    let keep = bytes.into_iter().fold(keep, Keep::bytes_max);
    let pruned = store.prune(&keep)?;
    close(store);
    drop(progress);
    let (transactions, bytes) = (pruned.transactions, pruned.bytes);
    if common.json {
        print_done(&json(&Pruned { ok: true, transactions, bytes }))?;
    } else if transactions == 0 {
        print_done("nothing to forget")?;
    } else {
        print_done(&format!("{} forgotten, {} freed", counted(transactions, "transaction"), size(bytes)))?;
    }
    Ok(0)
}

/// Runs `atomtree prune --quarantine`.
pub(crate) fn empty_quarantine(common: &Common, flags: &StoreFlags) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Emptied {
        ok: bool,
        files: u64,
    }
    let store = open(common, flags)?;
    let files = store.empty_quarantine()?;
    close(store);
    if common.json {
        print_done(&json(&Emptied { ok: true, files }))?;
    } else {
        print_done(&format!("{} removed from quarantine", counted(files, "file")))?;
    }
    Ok(0)
}

/// Runs `atomtree scrub`.
pub(crate) fn scrub(common: &Common, flags: &StoreFlags, path: &Path) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Scrubbed {
        ok: bool,
        transactions: u64,
        images: u64,
        bytes: u64,
        /// Where copies may be left.
        left: Vec<&'static str>,
        guard_images: u64,
        log_bytes: u64,
        /// Files of the store that hold it still.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        copies: Vec<String>,
    }
    let progress = Progress::of("scrubbing the history");
    let store = open(common, flags)?;
    let scrubbed = store.scrub(path)?;
    close(store);
    drop(progress);
    let standing = std::fs::symlink_metadata(common.root.join(path)).ok();
    let has_links = standing.as_ref().is_some_and(|found| found.is_file() && found.nlink() > 1);
    let is_in = |part: &str| scrubbed.copies.iter().any(|copy| copy.starts_with(part));
    // In the store, and about it: what can be told; the last is not known of any storage.
    let left = [
        ("tree", standing.is_some()),
        ("links", has_links || scrubbed.shared > 0),
        ("log", !scrubbed.is_log_clean),
        ("stage", is_in("stage/")),
        ("images", is_in("images/")),
        ("guards", is_in("guards/")),
        ("quarantine", is_in("quarantine/")),
        ("storage", true),
    ];
    let left: Vec<_> = left.into_iter().filter(|(_, is_left)| *is_left).map(|(place, _)| place).collect();
    let (transactions, images, bytes) = (scrubbed.transactions, scrubbed.images, scrubbed.bytes);
    let (guard_images, log_bytes) = (scrubbed.guard_images, scrubbed.log_bytes);
    if common.json {
        let copies = scrubbed.copies;
        print_done(&json(&Scrubbed {
            ok: true,
            transactions,
            images,
            bytes,
            left,
            guard_images,
            log_bytes,
            copies,
        }))?;
        return Ok(0);
    }
    let name = printable(&path.to_string_lossy());
    let (concerned, originals) = (counted(transactions, "transaction"), counted(images, "original"));
    let mut lines = vec![
        format!("{concerned} concerned; {originals}, {}, overwritten and removed", size(bytes)),
        format!(
            "{} of guards removed, {} of the log overwritten",
            counted(guard_images, "image"),
            size(log_bytes)
        ),
    ];
    lines.extend(left.iter().map(|place| {
        match *place {
            "tree" => format!("{name}: what stands in the tree stays"),
            "links" => format!("{name}: other names of the same file keep the content"),
            "log" => {
                "the log could not go on in another segment, and holds it still; make room, and scrub again"
                    .into()
            }
            "stage" => "a process is about to commit the same content; scrub again when it has ended".into(),
            "images" => "the history keeps the same content for other paths; scrub those too".into(),
            "guards" => "an open guard needs it; scrub again when that has ended".into(),
            "quarantine" => "quarantine has copies; `prune --quarantine` removes everything there".into(),
            _ => {
                "backups, and storage that does not write in place (btrfs, flash), may hold copies".to_owned()
            }
        }
    }));
    lines.extend(scrubbed.copies.iter().map(|copy| format!("  .atomtree/{}", printable(copy))));
    print_done(&lines.join("\n"))?;
    Ok(0)
}
