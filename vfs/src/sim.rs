//! A file system in memory that can lose power, be killed, fill up and fail, and that promises no more than real ones.
//!
//! [`Sim`] holds the settings and the crashes; `sim/state.rs` the inodes, `sim/names.rs` the names, `sim/data.rs` the
//! sectors, `sim/crash.rs` the choices of a cut, `sim/handles.rs` the verbs, `sim/outside.rs` the other programs of a
//! test. There is one lock, held for one verb at a time.
//!
//! # What a power cut can leave
//!
//! Everything starts out unsynced, on the cached side; reads show that side. A cut then decides:
//!
//! * **Names.** Each unsynced operation on names (create, mkdir, symlink, link, rename, exchange, unlink, rmdir)
//!   survives or vanishes, in any combination in which none survives without the earlier unsynced ones on the same
//!   names. Each is atomic, across directories too. One inside a directory that did not survive vanishes with it. None
//!   survives that would break the tree: a directory's removal needs its names gone first, and nothing that the root
//!   reaches is moved to where it doesn't.
//! * **Data.** A file with unsynced data holds the old content, the new one, or a mix by sector of 512 bytes. A sector
//!   is old or new; past the shortest length since the last sync it may also be zeros, because it may have been
//!   allocated anew.
//! * **Length.** Old, new, that shortest one, or a sector boundary on the way to the new one; independent of data.
//! * **Metadata.** Mode, owner and times are the old or the new ones; so are extended attributes; both independent of
//!   data and of each other. A new inode's first metadata comes with its first name.
//! * **Inodes** that no surviving name reaches are gone. So are locks and open files.
//!
//! # What makes durable
//!
//! * [`File::sync_data`] keeps data and length, [`File::sync_all`] metadata too. Neither keeps the file's name, unless
//!   [`Sim::set_sync_keeps_names`] says so.
//! * [`Dir::sync`] keeps the directory's metadata and each name operation that involves it, with the earlier ones that
//!   those need: on the same names, inside a directory that is removed, and those that put in place a directory
//!   something was moved to. It does not keep the directory's own name.
//! * [`Dir::sync_filesystem`] keeps everything.
//! * A **failed** sync keeps nothing. Unsynced data counts as clean afterwards and is never written; reads show it until
//!   the cache is dropped or the power cut. Names it should have covered survive only by luck from then on. Each
//!   handle that was open reports the failure once; later syncs succeed and prove nothing.
//!
//! # What it never does
//!
//! It loses or tears nothing that was synced, writes no sector partly, shows no other file's old data, runs a name
//! operation by halves, or ends a process within a verb. It checks no permissions and has no mount points, quotas,
//! default ACLs or hole reporting.

mod crash;
mod data;
pub(crate) mod handles;
mod names;
mod outside;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use self::data::Space;
use self::handles::{SimDir, SimFile};
pub use self::outside::{Node, NodeBody};
use self::state::State;
use crate::faults;
use crate::{Command, Dir, File, Identity, ProcessIdentity, Timestamp, Vfs};

/// Error numbers of Linux, as on x86, ARM and RISC-V.
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const ENXIO: i32 = 6;
    pub(crate) const EBADF: i32 = 9;
    pub(crate) const EEXIST: i32 = 17;
    pub(crate) const EXDEV: i32 = 18;
    pub(crate) const ENOTDIR: i32 = 20;
    pub(crate) const EISDIR: i32 = 21;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENOSPC: i32 = 28;
    pub(crate) const ENAMETOOLONG: i32 = 36;
    pub(crate) const ENOTEMPTY: i32 = 39;
    pub(crate) const ELOOP: i32 = 40;
    pub(crate) const ENODATA: i32 = 61;

    pub(crate) fn error(number: i32) -> std::io::Error {
        std::io::Error::from_raw_os_error(number)
    }
}

/// A simulated machine: its storage, clock and randomness, as one of its processes sees them. Clones are the same
/// process on the same machine; [`Sim::power_cut`], [`Sim::power_cut_exhaustive`] and [`Sim::kill`] make new machines
/// and leave this one as it is, so that one moment can be cut many times. See the [module](self) for what a cut can
/// leave.
///
/// # Examples
///
/// Whether a program that writes a file and renames it over the old one keeps its word, wherever the power fails. This
/// one does; without either `sync`, the assertion names the step and the seed that break it.
///
/// ```
/// use std::ffi::OsStr;
/// use std::io::{self, IoSlice};
/// use std::path::Path;
/// use atomtree_vfs::Vfs;
/// use atomtree_vfs::sim::Sim;
///
/// fn replace(vfs: &dyn Vfs) -> io::Result<()> {
///     let dir = vfs.open_root(Path::new("/etc"))?;
///     let new = dir.create_file(OsStr::new("config.new"), 0o644)?;
///     new.write_at(&[IoSlice::new(b"new")], 0)?;
///     new.sync_all()?; // or the name may survive without the content
///     dir.rename_over(OsStr::new("config.new"), &*dir, OsStr::new("config"))?;
///     dir.sync() // or `Ok` is said too early
/// }
///
/// for step in 1.. {
///     let sim = Sim::new(0);
///     sim.write_file("/etc/config", b"old");
///     sim.halt_at(step);
///     let done = replace(&sim).is_ok();
///     for seed in 0..50 {
///         let found = sim.power_cut(seed).read_file("/etc/config");
///         let expected: &[&[u8]] = if done { &[b"new"] } else { &[b"old", b"new"] };
///         assert!(expected.contains(&found.as_deref().unwrap()), "step {step}, seed {seed}: {found:?}");
///     }
///     if done {
///         break;
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Sim {
    state: Arc<Mutex<State>>,
    process: u32,
}

impl fmt::Debug for Sim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sim").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Sim {
    /// A machine with an empty root directory and one process; `seed` decides its randomness.
    pub fn new(seed: u64) -> Self {
        Self::boot(State::new(seed))
    }

    fn boot(state: State) -> Self {
        let first = Self { state: Arc::new(Mutex::new(state)), process: 0 };
        first.another_process()
    }

    /// A machine in a state that losing power now could leave, decided by `seed`: the same seed in the same state
    /// leaves the same. Some seeds keep all that is unsynced, some none of it, most a part.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Self {
        Self::boot(self.state.lock().after_random_cut(seed))
    }

    /// One machine for each possible set of surviving name operations, times each choice for each inode with unsynced
    /// changes (data old, new, of the new length without content, or torn in one way; metadata old or new), or `None`
    /// if there are more than `limit`. Other ways to tear a file are left to [`Sim::power_cut`].
    #[must_use]
    pub fn power_cut_exhaustive(&self, limit: u64) -> Option<Vec<Self>> {
        let states = self.state.lock().after_all_cuts(limit)?;
        Some(states.into_iter().map(Self::boot).collect())
    }

    /// How many choices a power cut has now: unsynced name operations, and inodes with unsynced changes.
    pub fn outcomes(&self) -> u64 {
        self.state.lock().choices()
    }

    /// The machine after every process on it was killed: what was written is there, what was unsynced still is, and
    /// locks and open files are gone. Handles of this machine's processes go on working, on this machine.
    #[must_use]
    pub fn kill(&self) -> Self {
        Self::boot(self.state.lock().after_kill())
    }

    /// Another process on the same machine, with an identity and locks of its own.
    #[must_use]
    pub fn another_process(&self) -> Self {
        let mut state = self.state.lock();
        let process = state.next_pid;
        state.next_pid += 1;
        state.alive.insert(process);
        Self { state: Arc::clone(&self.state), process }
    }

    /// Kills this process alone: its locks are free, its handles fail with `EIO`.
    pub fn end_process(&self) {
        let mut state = self.state.lock();
        state.alive.remove(&self.process);
        state.unlock_process(self.process);
    }

    /// The number of operations begun so far. Only verbs that change or sync something count, from 1 on.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Stops the machine at operation number `operation`: it and everything later, reads included, fails with `EIO`
    /// and has no effect. What a crash there leaves is then asked of [`Sim::power_cut`] or [`Sim::kill`], whose
    /// results run and count from 0.
    pub fn halt_at(&self, operation: u64) {
        self.state.lock().halt_at = Some(operation);
    }

    /// Whether the operation given to [`Sim::halt_at`] was reached.
    pub fn is_halted(&self) -> bool {
        self.state.lock().halted
    }

    /// Starts or stops recording operations for [`Sim::trace`].
    pub fn set_trace(&self, tracing: bool) {
        self.state.lock().tracing = tracing;
    }

    /// A line for each recorded operation, like `12 rename stage/ab/1 -> config.json`, with the error if it failed.
    pub fn trace(&self) -> Vec<String> {
        self.state.lock().trace.to_vec()
    }

    /// Makes the next sync, of whatever kind, fail with `EIO` and lose what it should have made durable.
    pub fn fail_next_sync(&self) {
        self.state.lock().fail_next_sync = true;
    }

    /// Loses a file's unsynced data as a failed sync of it does, already reported on this handle. Returns whether the
    /// file was a simulated one; one behind [`Faults`](crate::faults::Faults) is.
    pub fn lose_unsynced_data(file: &dyn File) -> bool {
        let file = faults::inner_file(file).as_any().downcast_ref::<SimFile>();
        file.map(SimFile::lose_unsynced).is_some()
    }

    /// Loses all unsynced data as a failure to write it in the background does: the next sync of each file concerned
    /// fails on every handle that is open now, and so does the next sync of the file system.
    pub fn fail_write_back(&self) {
        let mut state = self.state.lock();
        state.dirty_files().into_iter().for_each(|id| state.lose_data(id));
    }

    /// As [`Sim::fail_write_back`], of this file alone.
    ///
    /// # Panics
    /// If there is none.
    pub fn fail_write_back_of(&self, path: impl AsRef<Path>) {
        let mut state = self.state.lock();
        let id = state.find(path.as_ref()).expect("the file is there");
        state.lose_data(id);
    }

    /// Whether two names can be exchanged (as by default), or `EINVAL`.
    pub fn set_exchange_supported(&self, supported: bool) {
        self.state.lock().exchange_supported = supported;
    }

    /// Whether files can share blocks; not so by default.
    pub fn set_reflinks_supported(&self, supported: bool) {
        self.state.lock().reflinks_supported = supported;
    }

    /// Whether the cache cannot be dropped, as when another program maps the file; not so by default.
    pub fn set_cache_pinned(&self, pinned: bool) {
        self.state.lock().cache_pinned = pinned;
    }

    /// Whether the number of an inode is given to the next one as soon as the inode is gone; not so by default.
    pub fn set_inode_reuse(&self, reuse: bool) {
        self.state.lock().inode_reuse = reuse;
    }

    /// Whether syncing a file makes all earlier name operations durable, as ext4, xfs and btrfs mostly do and POSIX
    /// does not ask for; not so by default.
    pub fn set_sync_keeps_names(&self, keeps: bool) {
        self.state.lock().sync_keeps_names = keeps;
    }

    /// Sets how many bytes are left; `None` is without limit, the default. A page of 4096 bytes counts when it is
    /// first written or allocated, a name as 256 bytes; what is removed is given back when nothing has it open.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.state.lock().space = Space(bytes);
    }

    /// Sets whom new files belong to, and the umask; user and group 1000 and 022 by default.
    pub fn set_identity(&self, identity: Identity) {
        self.state.lock().identity = identity;
    }

    /// Moves the clock, back if negative.
    pub fn advance(&self, ns: i64) {
        self.state.lock().clock_ns += ns;
    }

    /// Sets how far the clock moves by itself with each operation and each look at it; 1 microsecond by default.
    pub fn set_clock_step_ns(&self, ns: i64) {
        self.state.lock().step_ns = ns;
    }

    /// Sets the tick that file timestamps are rounded down to; 4 ms by default.
    pub fn set_timestamp_granularity_ns(&self, ns: i64) {
        self.state.lock().granularity_ns = ns;
    }

    /// Runs a verb that changes nothing a cut could keep.
    fn reading<R>(&self, read: impl FnOnce(&mut State) -> io::Result<R>) -> io::Result<R> {
        let mut state = self.state.lock();
        self.check_running(&state)?;
        read(&mut state)
    }

    /// Runs a verb that counts as an operation.
    fn changing<R>(
        &self,
        describe: impl FnOnce(&State) -> String,
        change: impl FnOnce(&mut State) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut state = self.state.lock();
        self.check_running(&state)?;
        if state.halt_at.is_some_and(|operation| state.operations + 1 >= operation) {
            state.halted = true;
            return Err(errno::error(errno::EIO));
        }
        state.operations += 1;
        state.clock_ns += state.step_ns;
        // Described before the change, while the names are still those that the caller used.
        let line = state.tracing.then(|| format!("{} {}", state.operations, describe(&state)));
        let result = change(&mut state);
        if let Some(mut line) = line {
            if let Err(error) = &result {
                line = format!("{line} = {error}");
            }
            Arc::make_mut(&mut state.trace).push(line);
        }
        result
    }

    fn check_running(&self, state: &State) -> io::Result<()> {
        let running = !state.halted && state.alive.contains(&self.process);
        if running { Ok(()) } else { Err(errno::error(errno::EIO)) }
    }

    fn boot_id(state: &State) -> String {
        format!("00000000-0000-4000-8000-{:012x}", state.boot)
    }
}

impl Vfs for Sim {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.reading(|state| {
            let id = state.resolve(path)?;
            Ok(SimDir::open(self, state, id))
        })
    }

    fn now(&self) -> Timestamp {
        let mut state = self.state.lock();
        // Looking at the clock takes time, so that waiting for a time ends.
        state.clock_ns += state.step_ns;
        Timestamp(state.clock_ns)
    }

    fn timestamp_granularity_ns(&self) -> i64 {
        self.state.lock().granularity_ns
    }

    fn random(&self) -> io::Result<u128> {
        self.reading(|state| Ok(u128::from(state.random.next()) << 64 | u128::from(state.random.next())))
    }

    fn identity(&self) -> io::Result<Identity> {
        self.reading(|state| Ok(state.identity))
    }

    fn process(&self) -> io::Result<ProcessIdentity> {
        self.reading(|state| {
            Ok(ProcessIdentity {
                pid: self.process,
                started: u64::from(self.process),
                boot: Self::boot_id(state),
                program: "sim".to_owned(),
            })
        })
    }

    fn fork_generation(&self) -> u64 {
        0
    }

    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        let state = self.state.lock();
        process.boot == Self::boot_id(&state)
            && process.started == u64::from(process.pid)
            && state.alive.contains(&process.pid)
    }

    /// Commands are not simulated.
    fn end_command(&self, _command: &Command) -> io::Result<Vec<ProcessIdentity>> {
        self.reading(|_| Ok(Vec::new()))
    }
}
