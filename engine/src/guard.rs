//! Guards: everything under some patterns as it is now, to go back to while any program edits it in place.

use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::apply::Displaced;
use atomtree_recovery::guards::{
    self, Announced, Changes, EVERYTHING, Ended, GuardPlaces, GuardTurn, Keep, OpenGuard, PatternTexts,
    Patterns, RolledBack, Stood,
};
use atomtree_recovery::recover::Report as RecoveryReport;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::Vfs;
use atomtree_vfs::os::Os;

use crate::error::{Error, ErrorKind, OnPath};
use crate::stage::Prepared;
use crate::store::{Engine, Shared, Store};
use crate::trace;

/// Which names a guard covers.
///
/// Patterns are written as in a `.gitignore`: `config/**`, `*.toml`, `/src`. What covers a directory covers everything
/// in it. Without any, everything is guarded.
#[derive(Clone, Debug, Default)]
pub struct GuardOptions {
    texts: PatternTexts,
    gitignore: bool,
}

impl GuardOptions {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Guards what this pattern covers.
    #[must_use]
    pub fn guard(mut self, pattern: impl Into<String>) -> Self {
        self.texts.guarded.push(pattern.into());
        self
    }

    /// Leaves out what this pattern covers, with everything in it, whatever else covers that.
    #[must_use]
    pub fn ignore(mut self, pattern: impl Into<String>) -> Self {
        self.texts.ignored.push(pattern.into());
        self
    }

    /// Leaves out what the `.gitignore` files in the tree leave out, as they are when the guard opens. Off by default.
    ///
    /// What they match is not guarded even if git tracks it. Git's other lists (`.git/info/exclude`, those of its
    /// configuration) are not read. A pattern given to [`GuardOptions::ignore`] comes last, so that `!name` takes a name
    /// back that a file leaves out.
    #[must_use]
    pub fn gitignore(mut self, gitignore: bool) -> Self {
        self.gitignore = gitignore;
        self
    }
}

/// Everything under some patterns as it was when the guard was opened. Any program may edit it in place;
/// [`Guard::keep`] keeps what has become of it, and [`Guard::roll_back`], dropping the guard, the end of the process, a
/// kill or a power cut brings it back.
///
/// Until the guard ends, transactions that touch a name that it covers get [`ErrorKind::Locked`].
///
/// Forgetting a guard (`std::mem::forget`) leaves it open until the process ends; whoever opens the store then rolls it
/// back.
#[must_use = "dropping a guard rolls back what it covers"]
pub struct Guard {
    shared: Arc<Shared>,
    open: Option<OpenGuard>,
}

impl Store {
    /// Guards everything that these patterns cover, written as in a `.gitignore`. What was committed is settled first.
    ///
    /// ```
    /// # let scratch = tempfile::tempdir()?;
    /// # let root = scratch.path();
    /// # std::fs::write(root.join("config"), "old")?;
    /// let store = atomtree::Store::open(root)?;
    /// let guard = store.guard(["config"])?;
    /// std::fs::write(root.join("config"), "half of the n")?;
    /// guard.roll_back()?;
    /// assert_eq!(std::fs::read(root.join("config"))?, b"old");
    /// # store.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Durability
    /// When this returns, the images of everything are durable: whatever happens from now on, it can be brought back.
    ///
    /// # Errors
    /// `locked` if another guard may cover the same names; `no_space` if there is none for the images, found before any
    /// is made; `mount_point` or `cross_device` for what lies on another file system, `permission` for what this process
    /// may not read or make again, `conflict` for what keeps changing: each names it, and leaving it out helps.
    pub fn guard(&self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Result<Guard, Error> {
        let options = patterns.into_iter().fold(GuardOptions::new(), GuardOptions::guard);
        if options.texts.guarded.is_empty() {
            let reason = "a guard needs a pattern of what it covers; everything is `**`";
            return Err(Error::invalid(ErrorKind::InvalidInput, reason));
        }
        self.guard_with(&options)
    }

    /// As [`Store::guard`], with things left out.
    pub fn guard_with(&self, options: &GuardOptions) -> Result<Guard, Error> {
        let open = self.shared.engine.open_guard(options)?;
        Ok(Guard { shared: self.shared.clone(), open: Some(open) })
    }
}

impl Guard {
    /// Names the guard in the store: its files are in `.atomtree/guards/` under this name.
    pub fn id(&self) -> &str {
        self.open().id()
    }

    /// How many names it covers.
    pub fn names(&self) -> usize {
        self.open().names()
    }

    /// How many of their images had to be made, because no earlier guard had left them.
    pub fn copied(&self) -> u64 {
        self.open().copied()
    }

    /// Which names have changed since it was opened.
    pub fn changes(&self) -> Result<Changes, Error> {
        Ok(self.open().changes(&self.shared.engine.places)?)
    }

    /// What stood at this name when the guard was opened, and what does now, with contents of up to `bytes_max` bytes.
    pub fn before_and_after(
        &self,
        path: &TreePath,
        bytes_max: u64,
    ) -> Result<(Option<Stood>, Option<Stood>), Error> {
        Ok(self.open().before_and_after(&self.shared.engine.places, path, bytes_max)?)
    }

    /// Keeps what stands there now.
    ///
    /// # Durability
    /// Everything that was changed, created or removed before is durable when this returns.
    ///
    /// # Errors
    /// It could not be made durable, or the store was poisoned before, be it by something else: it is poisoned, and the next
    /// open rolls back. `outcome_unknown` if the next open may find either.
    pub fn keep(mut self) -> Result<(), Error> {
        let open = self.take()?;
        let engine = &self.shared.engine;
        if let Err(error) = engine.check_unpoisoned() {
            // Nothing is acknowledged any more.
            if error.kind() != ErrorKind::Poisoned {
                engine.poison(&format!("a guard could not be ended: {error}"));
            }
            open.leave();
            return Err(error);
        }
        let kept = open.keep(engine.options.guard_cache_bytes_max);
        self.finish(&open, kept)
    }

    /// Brings everything back as it was: contents, metadata, names.
    ///
    /// Files come back as other inodes: whoever still has one open that was edited writes to one that has no name any
    /// more. Inodes of files that have not changed stay.
    ///
    /// # Durability
    /// It is durable when this returns.
    ///
    /// # Errors
    /// The store is poisoned, and the next open rolls back.
    pub fn roll_back(self) -> Result<RolledBack, Error> {
        self.roll_back_with(Keep::Nothing)
    }

    /// As [`Guard::roll_back`], and what is replaced or removed goes to the store's quarantine.
    pub fn roll_back_keeping(self) -> Result<RolledBack, Error> {
        self.roll_back_with(Keep::InQuarantine)
    }

    /// Leaves everything as it would be if this process were killed now: the next open rolls back.
    pub fn leave(mut self) {
        if let Ok(open) = self.take() {
            open.leave();
        }
    }

    fn roll_back_with(mut self, keep: Keep) -> Result<RolledBack, Error> {
        let open = self.take()?;
        self.roll_back_open(&open, keep)
    }

    /// What is to be ended. In a forked child the guard is the parent's.
    fn take(&mut self) -> Result<OpenGuard, Error> {
        let open = self.open.take().expect("it is there until the guard ends");
        if self.shared.engine.is_in_fork() { Err(Error::in_fork()) } else { Ok(open) }
    }

    fn roll_back_open(&self, open: &OpenGuard, keep: Keep) -> Result<RolledBack, Error> {
        let engine = &self.shared.engine;
        let done = open.roll_back(&engine.places, keep, engine.options.guard_cache_bytes_max);
        self.finish(open, done)
    }

    fn open(&self) -> &OpenGuard {
        self.open.as_ref().expect("it is there until the guard ends")
    }

    /// Gives the guard up, ended or not.
    fn finish<T>(&self, open: &OpenGuard, ended: Result<T, Ended>) -> Result<T, Error> {
        // Given up at the end: nobody may take it for ended before the store is poisoned.
        let error = match ended {
            Ok(value) => {
                open.leave();
                return Ok(value);
            }
            Err(Ended::Not(error)) => {
                self.shared.engine.poison(&format!("a guard could not be ended: {error}"));
                error.into()
            }
            Err(Ended::Unknown(error)) => {
                let reason = error.to_string();
                self.shared.engine.poison(&reason);
                Error::OutcomeUnknown { reason }
            }
        };
        open.leave();
        Err(error)
    }
}

/// The variable in the environment of everything that runs under a guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedCommand {
    /// Its name, which no other guard has.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Guard {
    /// What a command that runs under this guard has to have in its environment, so that it is found, with all that it
    /// starts, by whoever has to end it.
    pub fn command(&self) -> GuardedCommand {
        let variable = guards::variable_of(self.id());
        let (name, value) = variable.split_once('=').expect("a variable has a name and a value");
        GuardedCommand { name: name.to_owned(), value: value.to_owned() }
    }
}

/// Notes that the calling process is a command under this guard of the tree at `root`, with all that it starts; if its
/// owner dies, whoever opens the store next ends it before the tree is rolled back. A control group that holds it, and
/// nothing else, makes that sure.
///
/// # Errors
/// The guard is gone, or has a command.
pub fn note_guarded_command(root: &Path, id: &str, group: Option<&Path>) -> Result<(), Error> {
    let vfs = Os;
    let root = vfs.open_root(root).on("open", root)?;
    let path = guards::dir_of(id).ok_or_else(|| {
        Error::invalid(ErrorKind::InvalidInput, format!("{id:?} is not the name of a guard"))
    })?;
    let guard = root.open_dir(&path).on("open", &path)?;
    let process = vfs.process().on("read the identity of", "this process")?;
    guards::note_command(&*guard, &process, group).on("note the command in", &path)
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.open.is_some()
            && let Ok(open) = self.take()
        {
            // What can't be brought back now, the next open brings back, or says why not.
            let _ = self.roll_back_open(&open, Keep::Nothing);
        }
    }
}

impl Engine {
    fn open_guard(&self, options: &GuardOptions) -> Result<OpenGuard, Error> {
        self.check_health()?;
        let mut texts = options.texts.clone();
        if texts.guarded.is_empty() {
            texts.guarded.push(EVERYTHING.to_owned());
        }
        let invalid = |reason| Error::invalid(ErrorKind::InvalidInput, reason);
        let mut patterns = Patterns::new(texts).map_err(invalid)?;
        if options.gitignore {
            let mut texts = patterns.texts().clone();
            texts.ignored.splice(..0, guards::read_gitignore(&self.places, &texts.guarded)?);
            patterns = Patterns::new(texts).map_err(invalid)?;
        }
        trace::span!("atomtree.guard");
        let guards = GuardPlaces::make(&self.places)?;
        let turn = guards.take_turn()?;
        let announced = self.announce(&guards, patterns, &turn)?;
        Ok(announced.capture(&self.places, &guards, &turn)?)
    }

    /// Settles everything, and says which names are guarded before anything else can touch them.
    fn announce(
        &self,
        guards: &GuardPlaces,
        patterns: Patterns,
        turn: &GuardTurn,
    ) -> Result<Announced, Error> {
        loop {
            let mut commits = self.lock_commits(self.options.deadline())?;
            if let Some(settled) = self.checkpoint_held(&mut commits) {
                settled?;
                let report = self.roll_back_abandoned(Some(turn))?;
                if report != RecoveryReport::default() {
                    self.take_overs.lock().push(report);
                }
                return Ok(guards::announce(&self.places, guards, patterns, turn)?);
            }
            // One is being made, and waits for the lock.
            drop(commits);
            self.checkpoint()?;
        }
    }

    /// Whether no guard covers what the transaction touches. Under the commit lock.
    pub(crate) fn check_guards(&self, prepared: &Prepared) -> Result<(), Error> {
        let changes = || prepared.planned.iter().map(|planned| &planned.change);
        let look = || {
            let looked = self.lookout.lock().check(&self.places, changes());
            looked.map_err(|error| self.heard(error))
        };
        if look()? {
            return Ok(());
        }
        let report = self.roll_back_abandoned(None)?;
        self.take_overs.lock().push(report);
        if look()? {
            return Ok(());
        }
        let holder = "a guard that covers it was left by its owner, and can't be rolled back now".into();
        Err(Error::Locked { holder })
    }

    /// Rolls back guards whose owners have gone. Under the commit lock.
    fn roll_back_abandoned(&self, turn: Option<&GuardTurn>) -> Result<RecoveryReport, Error> {
        let mut report = RecoveryReport::default();
        let cache_bytes_max = self.options.guard_cache_bytes_max;
        let done = guards::roll_back_abandoned(&self.places, cache_bytes_max, turn);
        for rolled_back in done.map_err(|error| self.heard(error))? {
            report.rolled_back += 1;
            let displaced = |(path, kept)| Displaced { path, kept };
            report.quarantined.extend(rolled_back.kept.into_iter().map(displaced));
            report.lost.extend(rolled_back.lost);
        }
        Ok(report)
    }

    /// Poisons the store if a sync has failed: a second one would tell nothing, and be believed.
    fn heard(&self, error: atomtree_recovery::Error) -> Error {
        let error = Error::from(error);
        if error.is_failed_sync() {
            self.poison(&format!("what a guard left could not be made durable: {error}"));
        }
        error
    }

    /// As [`Engine::roll_back_abandoned`], for who has just opened the store.
    pub(crate) fn roll_back_abandoned_at_open(&mut self) -> Result<(), Error> {
        if GuardPlaces::open(&self.places)?.is_none() {
            return Ok(());
        }
        let commits = self.lock_commits(self.options.deadline())?;
        let report = self.roll_back_abandoned(None)?;
        drop(commits);
        self.report.rolled_back += report.rolled_back;
        self.report.quarantined.extend(report.quarantined);
        self.report.lost.extend(report.lost);
        Ok(())
    }
}
