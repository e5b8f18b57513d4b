//! How a store behaves; each default is stated with its unit.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atomtree_recovery::retention::Retention;
use atomtree_vfs::{Vfs, os::Os};
use atomtree_wal::sync::now;
use atomtree_wal::{LogOptions, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

use crate::error::{Error, ErrorKind};
use crate::store::Store;

const LOCK_TIMEOUT_MAX: Duration = Duration::from_hours(365 * 24);

/// What writing through a final symlink does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Symlinks {
    /// It is refused, with a hint.
    #[default]
    Refuse,
    /// The file that it leads to is written, if that lies inside the root.
    Follow,
    /// The link gives way to a regular file; what it leads to is left alone. Reading through it is refused.
    Replace,
}

/// What replacing a file with several hard links does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HardLinks {
    /// It is refused, with a hint.
    #[default]
    Refuse,
    /// This name gets the new content, the others keep the old one.
    Break,
}

/// What is durable when a commit returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The transaction: after a power cut, recovery puts it in place. Until recovery has run, who reads the tree directly
    /// may find files of the last second empty, old or torn.
    #[default]
    Synced,
    /// The files themselves as well, for readers that don't wait for recovery, at boot for instance: new contents are
    /// durable before they get their names, and names before the commit returns. Costs two syncs of the file system.
    Settled,
}

/// When commits are settled, which is when their files are durable in place and the log can forget them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checkpoints {
    /// A thread of the store's own does it, [`Options::settle_after`] the first commit.
    #[default]
    Background,
    /// Only [`Store::checkpoint`], [`Store::close`], and a full log do.
    Manual,
}

/// Options for opening a store. [`Store::open`] takes the defaults.
///
/// ```
/// # let scratch = tempfile::tempdir()?;
/// # let root = scratch.path();
/// let store = atomtree::Options::new().segment_bytes(1 << 20).open(root)?;
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) log: LogOptions,
    pub(crate) inline_bytes_max: u64,
    pub(crate) image_bytes_max: u64,
    pub(crate) ballast_bytes: u64,
    pub(crate) settle_after: Duration,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) retention: Retention,
    pub(crate) quarantine_bytes_max: Option<u64>,
    pub(crate) guard_cache_bytes_max: u64,
    pub(crate) submitted_max: usize,
    pub(crate) lock_timeout: Duration,
    pub(crate) exclusive: bool,
    pub(crate) symlinks: Symlinks,
    pub(crate) hard_links: HardLinks,
    pub(crate) durability: Durability,
    pub(crate) adopt: bool,
    pub(crate) allow_owner: Option<u32>,
    pub(crate) allow_remote: bool,
    pub(crate) vfs: Arc<dyn Vfs>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LogOptions::default(),
            inline_bytes_max: 1 << 20,
            image_bytes_max: 4096,
            ballast_bytes: 1 << 20,
            settle_after: Duration::from_secs(1),
            checkpoints: Checkpoints::default(),
            retention: Retention::default(),
            quarantine_bytes_max: Some(1 << 30),
            guard_cache_bytes_max: 1 << 30,
            submitted_max: 1024,
            lock_timeout: Duration::from_secs(30),
            exclusive: false,
            symlinks: Symlinks::default(),
            hard_links: HardLinks::default(),
            durability: Durability::default(),
            adopt: false,
            allow_owner: None,
            allow_remote: false,
            vfs: Arc::new(Os),
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Length of a log segment in bytes, fixed when the store is created: 64 KiB to 1 GiB, a multiple of 4096.
    /// Default 16 MiB. Two are made at once.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.log.segment_bytes = bytes;
        self
    }

    /// What all segments together may take, in bytes; at least three segments. Default 256 MiB.
    #[must_use]
    pub fn log_bytes_max(mut self, bytes: u64) -> Self {
        self.log.log_bytes_max = bytes;
        self
    }

    /// Contents up to this many bytes travel inside the log, so that their files need no sync of their own. Default
    /// 1 MiB; a transaction's contents together take at most a quarter of a segment. Contents of more than 512 KiB that are
    /// streamed, and of more than 1 MiB that are patched or appended to, never do.
    #[must_use]
    pub fn inline_bytes_max(mut self, bytes: u64) -> Self {
        self.inline_bytes_max = bytes;
        self
    }

    /// Originals up to this many bytes are kept whole in the log until the checkpoint; of larger ones a digest. Default
    /// 4096. An original is one record: what is larger than a segment can't be replaced if this says to keep it.
    #[must_use]
    pub fn image_bytes_max(mut self, bytes: u64) -> Self {
        self.image_bytes_max = bytes;
        self
    }

    /// Space kept back in the store for putting durable transactions in place on a full disk, in bytes. Default 1 MiB.
    /// A smaller value than last time does not give space back.
    #[must_use]
    pub fn ballast_bytes(mut self, bytes: u64) -> Self {
        self.ballast_bytes = bytes;
        self
    }

    /// How long after the first unsettled commit a background checkpoint starts. Default 1 s. Under load it starts
    /// later, at most every ten times the last one's duration; at once when the log is half full, when a content went
    /// by reference, and when a directory was moved or removed.
    #[must_use]
    pub fn settle_after(mut self, time: Duration) -> Self {
        self.settle_after = time;
        self
    }

    /// Who checkpoints. Default [`Checkpoints::Background`].
    #[must_use]
    pub fn checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.checkpoints = checkpoints;
        self
    }

    /// What the history may take, in bytes: its manifests, and the originals by which transactions can be undone.
    /// Default 1 GiB. What it grows beyond that is forgotten at the next checkpoint, the oldest first and at a time
    /// what was settled together; an original that is larger is not kept. With 0 there is no history.
    #[must_use]
    pub fn history_bytes_max(mut self, bytes: u64) -> Self {
        self.retention.bytes_max = bytes;
        self
    }

    /// How old a settled transaction gets before the history forgets it; `None` for any age. Default 30 days.
    #[must_use]
    pub fn history_age_max(mut self, age: Option<Duration>) -> Self {
        self.retention.age_max = age;
        self
    }

    /// How many settled transactions the history keeps; some more, because those that were settled together are forgotten together.
    /// Default any number.
    #[must_use]
    pub fn history_transactions_max(mut self, transactions: u64) -> Self {
        self.retention.transactions_max = transactions;
        self
    }

    /// What the quarantine may take, in bytes, before commits are refused with `no_space`; `None` for any amount. Default
    /// 1 GiB.
    ///
    /// What is in there was written by other programs and had to give way, so it is never forgotten by itself:
    /// [`Store::empty_quarantine`] does that, once somebody has looked. Recovery and what is committed already still add to
    /// it, so that it may grow beyond the bound by what they displace.
    #[must_use]
    pub fn quarantine_bytes_max(mut self, bytes: Option<u64>) -> Self {
        self.quarantine_bytes_max = bytes;
        self
    }

    /// What the images may take that guards leave for the next one, in bytes: what has not changed is then not copied again.
    /// Default 1 GiB. Beyond that those go first that were not used for the longest time, each time a guard ends; what an
    /// open guard needs always stays. With 0 nothing is left. A copy that shares its blocks with the file counts as if it
    /// did not.
    #[must_use]
    pub fn guard_cache_bytes_max(mut self, bytes: u64) -> Self {
        self.guard_cache_bytes_max = bytes;
        self
    }

    /// How many transactions may be submitted and not committed yet; [`crate::Transaction::submit`] then blocks.
    /// Default 1024, at least 1. Those of their contents that travel in the log are held in memory until they are
    /// settled.
    #[must_use]
    pub fn submitted_max(mut self, transactions: usize) -> Self {
        self.submitted_max = transactions;
        self
    }

    /// How long other processes are waited for, each time: to commit, to make a checkpoint, to open or close the store.
    /// Then the call fails with `locked`, and names who is in the way. Default 30 s; zero doesn't wait.
    #[must_use]
    pub fn lock_timeout(mut self, time: Duration) -> Self {
        self.lock_timeout = time;
        self
    }

    /// Whether no other process may have the store open meanwhile; opening it waits until none has. Default `false`.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// What writing through a final symlink does. Default [`Symlinks::Refuse`].
    #[must_use]
    pub fn symlinks(mut self, symlinks: Symlinks) -> Self {
        self.symlinks = symlinks;
        self
    }

    /// What replacing a file with several hard links does. Default [`HardLinks::Refuse`].
    #[must_use]
    pub fn hard_links(mut self, hard_links: HardLinks) -> Self {
        self.hard_links = hard_links;
        self
    }

    /// What is durable when a commit returns. Default [`Durability::Synced`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Opens a store with unsettled transactions although it was copied or restored. Only when the tree beside it is
    /// the one that they belong to.
    #[must_use]
    pub fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// Lets root open a store that belongs to this user.
    #[must_use]
    pub fn allow_owner(mut self, uid: u32) -> Self {
        self.allow_owner = Some(uid);
        self
    }

    /// Opens a store on a network or user-space file system, where none of the promises is checked to hold.
    #[must_use]
    pub fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// The storage to use instead of the operating system's: a simulated one, or one that fails on purpose.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// Opens the store of the tree at `root`, as [`Store::open`] does.
    pub fn open(self, root: impl AsRef<Path>) -> Result<Store, Error> {
        self.check()?;
        Store::open_with(root.as_ref(), self)
    }

    /// Until when other processes are waited for from now on.
    pub(crate) fn deadline(&self) -> Instant {
        // A time too far away to be told is as good as a year.
        now() + self.lock_timeout.min(LOCK_TIMEOUT_MAX)
    }

    fn check(&self) -> Result<(), Error> {
        let LogOptions { segment_bytes, log_bytes_max } = self.log;
        let reason = if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
            format!("segment_bytes is {segment_bytes}, and may be {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")
        } else if !segment_bytes.is_multiple_of(4096) {
            format!("segment_bytes is {segment_bytes}, which is no multiple of 4096")
        } else if log_bytes_max < 3 * segment_bytes {
            format!("log_bytes_max is {log_bytes_max}, less than three segments of {segment_bytes}")
        } else if self.image_bytes_max > segment_bytes / 4 {
            let most = segment_bytes / 4;
            format!("image_bytes_max is {}, more than a quarter of a segment, {most}", self.image_bytes_max)
        } else if self.submitted_max == 0 {
            "submitted_max is 0, and nothing could be submitted".into()
        } else {
            return Ok(());
        };
        Err(Error::invalid(ErrorKind::InvalidInput, reason))
    }
}
