//! Going back: undoing and redoing transactions, and restoring names as they were at a moment.
//!
//! Each is an ordinary new transaction, built from the originals that the history keeps: it commits whole or not at all,
//! conflicts like any other, and can be undone in turn.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use atomtree_recovery::image::{Attributes, Digest};
use atomtree_recovery::images::ImageName;
use atomtree_recovery::manifest::{ChangeSummary, State, Summary};
use atomtree_recovery::plan::TransactionId;
use atomtree_recovery::tree_path::TreePath;
use atomtree_vfs::{Dir, Kind};

use crate::commit::Receipt;
use crate::content::KeptContent;
use crate::error::{Error, ErrorKind, OnPath};
use crate::options::Durability;
use crate::store::Store;
use crate::transaction::Transaction;
use crate::transaction::revert::{Leniency, Step, Wanted};
use crate::view::invalid_path;

/// How often a file is read anew because somebody has committed meanwhile.
const CAT_ATTEMPTS: u32 = 16;

/// How [`Store::undo_all`], [`Store::redo_all`] and [`Store::restore`] go about it.
///
/// ```
/// # let scratch = tempfile::tempdir()?;
/// # let store = atomtree::Store::open(scratch.path())?;
/// let mut tx = store.begin()?;
/// tx.write("config.json", "{}")?;
/// let tx = tx.commit()?.tx();
/// std::fs::write(scratch.path().join("config.json"), "edited since")?;
/// assert_eq!(store.undo(tx).unwrap_err().kind(), atomtree::ErrorKind::Conflict);
/// let undone = store.undo_all([tx], &atomtree::UndoOptions::new().force(true))?;
/// store.undo(undone.tx())?;
/// assert_eq!(std::fs::read_to_string(scratch.path().join("config.json"))?, "edited since");
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct UndoOptions {
    is_forced: bool,
    label: Option<String>,
    agent: Option<String>,
    durability: Option<Durability>,
}

impl UndoOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether names that have moved on since are put back too. Their newer content comes back by undoing the undo.
    /// Default: no, they are a conflict.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.is_forced = force;
        self
    }

    /// Says why, in the history; by default, what is undone.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says on whose behalf, in the history.
    #[must_use]
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = Some(agent.into());
        self
    }

    /// What is durable when the call returns, instead of what the store's options say.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }
}

/// A moment of the past, for [`Store::restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Right behind this transaction.
    After(TransactionId),
    /// This time, in nanoseconds since the Unix epoch.
    At(i64),
}

/// In which direction a transaction is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Back,
    Forth,
}

impl Store {
    /// Undoes a transaction, by a new one that puts back what stood at its names before: what it made is removed, what it
    /// removed or replaced comes back, with mode, owner and attributes, and what it moved goes back. It touches nothing
    /// else; a directory that it made stays if something else is in it by now. Returns the new transaction.
    ///
    /// What is undone can be redone, or the undo undone. Special files, and the extended attributes of directories, do
    /// not come back.
    ///
    /// # Durability
    /// As for [`Transaction::commit`]. What was committed before is settled first.
    ///
    /// # Errors
    /// `conflict` if any of its names has moved on since; [`Error::paths`] has them all, and [`Store::undo_all`] can be
    /// forced. `not_found` if the history keeps it no longer. Else as for [`Transaction::commit`]. Nothing was changed.
    pub fn undo(&self, tx: TransactionId) -> Result<Receipt, Error> {
        self.undo_all([tx], &UndoOptions::new())
    }

    /// Undoes several transactions as one, the newest first, whatever their order here. As [`Store::undo`].
    pub fn undo_all(
        &self,
        transactions: impl IntoIterator<Item = TransactionId>,
        options: &UndoOptions,
    ) -> Result<Receipt, Error> {
        let mut transactions: Vec<TransactionId> = transactions.into_iter().collect();
        transactions.sort_by_key(|tx| std::cmp::Reverse(*tx));
        transactions.dedup();
        self.go(&transactions, Way::Back, options)
    }

    /// Redoes a transaction that was undone, by a new one that puts back what it had made of its names.
    ///
    /// # Errors
    /// As for [`Store::undo`], with what stood there before the transaction in the place of what it left.
    pub fn redo(&self, tx: TransactionId) -> Result<Receipt, Error> {
        self.redo_all([tx], &UndoOptions::new())
    }

    /// Redoes several transactions as one, the oldest first. As [`Store::redo`].
    pub fn redo_all(
        &self,
        transactions: impl IntoIterator<Item = TransactionId>,
        options: &UndoOptions,
    ) -> Result<Receipt, Error> {
        let mut transactions: Vec<TransactionId> = transactions.into_iter().collect();
        transactions.sort_unstable();
        transactions.dedup();
        self.go(&transactions, Way::Forth, options)
    }

    /// Brings everything at or below the paths back to what it was at a moment, as one transaction; the whole tree
    /// without any. What transactions have not touched since stays as it is, whoever else changed it.
    ///
    /// # Errors
    /// As for [`Store::undo`]; `not_found` if the history does not go back so far, or `to` names a transaction that
    /// there is not; `unsupported` if a path lay in a directory that was moved since.
    pub fn restore(
        &self,
        to: Moment,
        paths: &[impl AsRef<Path>],
        options: &UndoOptions,
    ) -> Result<Receipt, Error> {
        let paths: Vec<TreePath> = (paths.iter().map(AsRef::as_ref))
            .map(|path| TreePath::new(path).map_err(|source| invalid_path(path, source)))
            .collect::<Result<_, _>>()?;
        let _pin = self.pin()?;
        let history = self.settled_history(TransactionId(0))?;
        let to = self.moment(to, &history)?;
        let later: Vec<&Summary> = history.values().rev().filter(|summary| summary.begin.tx > to).collect();
        check_paths(&later, &paths)?;
        let contents = Contents::of(self, &history);
        let mut transaction = self.begin_as(options, || format!("restore to {to}"))?;
        let mut leniency = Leniency { is_forced: options.is_forced, lets_own: true, ..Leniency::default() };
        for summary in later {
            let mut steps = contents.steps(summary, Way::Back)?;
            if !paths.is_empty() {
                keep_those_at(&mut steps, &paths);
            }
            put_back(&mut transaction, steps, &mut leniency, Way::Back, summary.begin.tx)?;
        }
        transaction.commit()
    }

    /// The content of the file at `path` as it was right behind a transaction, followed through the moves of later ones.
    ///
    /// # Errors
    /// `not_found` if no file stood there then, or the history does not keep it; `is_a_directory`; `unsupported` for
    /// anything else; `corrupt` if it is not what it was; `conflict` if it stands in the tree, and others never stop
    /// committing while it is read.
    pub fn cat(&self, tx: TransactionId, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let path = path.as_ref();
        let asked = TreePath::new(path).map_err(|source| invalid_path(path, source))?;
        let _pin = self.pin()?;
        for _ in 0..CAT_ATTEMPTS {
            let last = self.last_tx()?;
            let history = self.settled_history(TransactionId(0))?;
            let tx = self.moment(Moment::After(tx), &history)?;
            if let Some(content) = Contents::of(self, &history).at(self, tx, last, &asked)? {
                return Ok(content);
            }
        }
        Err(Error::conflict(path, "transactions keep being committed while it is read; try again"))
    }

    fn go(&self, transactions: &[TransactionId], way: Way, options: &UndoOptions) -> Result<Receipt, Error> {
        if transactions.is_empty() {
            return Err(Error::invalid(ErrorKind::InvalidInput, "no transaction was named"));
        }
        let _pin = self.pin()?;
        // What a transaction had made of its names is kept by later ones.
        let oldest = transactions.iter().copied().min().unwrap_or_default();
        let history = match way {
            Way::Back => self.settled_history_of(transactions)?,
            Way::Forth => self.settled_history(oldest)?,
        };
        let contents = Contents::of(self, &history);
        let names: Vec<String> = transactions.iter().map(ToString::to_string).collect();
        let verb = if way == Way::Back { "undo" } else { "redo" };
        let mut transaction = self.begin_as(options, || format!("{verb} {}", names.join(" ")))?;
        let mut leniency = Leniency { is_forced: options.is_forced, ..Leniency::default() };
        for tx in transactions {
            let Some(summary) = history.get(tx) else { return Err(self.not_kept(*tx)) };
            let steps = contents.steps(summary, way)?;
            put_back(&mut transaction, steps, &mut leniency, way, *tx)?;
        }
        transaction.commit()
    }

    fn begin_as(&self, options: &UndoOptions, label: impl FnOnce() -> String) -> Result<Transaction, Error> {
        let mut transaction = self.begin()?;
        transaction.set_label(options.label.clone().unwrap_or_else(label));
        if let Some(agent) = &options.agent {
            transaction.set_agent(agent);
        }
        if let Some(durability) = options.durability {
            transaction.set_durability(durability);
        }
        Ok(transaction)
    }

    fn not_kept(&self, tx: TransactionId) -> Error {
        let is_none = tx.0 == 0 || self.last_tx().is_ok_and(|last| tx > last);
        let reason = if is_none {
            format!("there is no transaction {tx}; `atomtree log` lists those that there are")
        } else {
            format!(
                "the history keeps transaction {tx} no longer; a larger history_bytes_max or history_age_max keeps more"
            )
        };
        Error::invalid(ErrorKind::NotFound, reason)
    }

    /// The last transaction up to a moment, if everything since is kept.
    fn moment(&self, to: Moment, history: &BTreeMap<TransactionId, Summary>) -> Result<TransactionId, Error> {
        let last = self.last_tx()?;
        let oldest = history.keys().next().map_or(TransactionId(last.0 + 1), |oldest| *oldest);
        let to = match to {
            Moment::After(tx) => tx,
            Moment::At(time) => {
                let until = history.values().filter(|summary| summary.begin.time_ns <= time);
                // Before the oldest that is kept there may have been others, or not.
                until.map(|summary| summary.begin.tx).max().unwrap_or(TransactionId(oldest.0 - 1))
            }
        };
        if to > last {
            return Err(self.not_kept(to));
        }
        if to.0 + 1 < oldest.0 {
            let reason = format!(
                "the history goes back to transaction {oldest} only; a larger history_bytes_max or history_age_max keeps more"
            );
            return Err(Error::invalid(ErrorKind::NotFound, reason));
        }
        Ok(to)
    }
}

/// So many names stand in a message; [`Error::paths`] has all of them.
const SHOWN_MAX: usize = 10;

fn put_back(
    transaction: &mut Transaction,
    steps: Vec<Step>,
    leniency: &mut Leniency,
    way: Way,
    tx: TransactionId,
) -> Result<(), Error> {
    let paths = transaction.put_back(steps, leniency)?;
    if paths.is_empty() {
        return Ok(());
    }
    let mut names: Vec<String> =
        paths.iter().take(SHOWN_MAX).map(|path| path.display().to_string()).collect();
    if paths.len() > SHOWN_MAX {
        names.push(format!("{} more", paths.len() - SHOWN_MAX));
    }
    let names = names.join(", ");
    let reason = match way {
        Way::Back => format!(
            "transaction {tx} can't be undone, because these have moved on since: {names}; undo what changed them first, or force it"
        ),
        Way::Forth => format!(
            "transaction {tx} can't be redone, because these are not what they were before it: {names}; undo what changed them first, or force it"
        ),
    };
    Err(Error::MovedOn { paths, reason })
}

/// Leaves the steps at or below these paths, and those that belong to a move with one of them.
fn keep_those_at(steps: &mut Vec<Step>, paths: &[TreePath]) {
    let is_at = |path: &TreePath| paths.iter().any(|at| path.is_at_or_below(at));
    let moves: Vec<(TreePath, TreePath)> = (steps.iter())
        .filter_map(|step| match &step.wanted {
            Wanted::MovedFrom(from, _) => Some((step.to.clone(), from.clone())),
            _ => None,
        })
        .filter(|(to, from)| is_at(to) || is_at(from))
        .collect();
    steps.retain(|step| {
        is_at(&step.to) || moves.iter().any(|(to, from)| step.to == *to || step.at.as_ref() == Some(from))
    });
}

/// Refuses paths that lay in a directory which has another name by now.
fn check_paths(later: &[&Summary], paths: &[TreePath]) -> Result<(), Error> {
    for (summary, from) in later.iter().flat_map(|summary| {
        summary.changes.iter().filter_map(move |change| Some((summary, change.from.as_deref()?)))
    }) {
        let Ok(from) = TreePath::from_bytes(from) else { continue };
        if let Some(path) = paths.iter().find(|path| path.is_at_or_below(&from) && **path != from) {
            let reason = format!(
                "it lay in {from}, which transaction {} moved; restore that directory, or undo that transaction",
                summary.begin.tx
            );
            return Err(Error::refused(ErrorKind::Unsupported, path.as_path(), reason));
        }
    }
    Ok(())
}

/// The contents that some transactions keep.
struct Contents<'a> {
    images: Arc<dyn Dir>,
    history: &'a BTreeMap<TransactionId, Summary>,
    by_digest: HashMap<(u64, Digest), Vec<&'a ImageName>>,
}

impl<'a> Contents<'a> {
    fn of(store: &Store, history: &'a BTreeMap<TransactionId, Summary>) -> Self {
        let mut by_digest: HashMap<_, Vec<&ImageName>> = HashMap::new();
        for change in history.values().flat_map(|summary| &summary.changes) {
            if let (Some(State { size, digest: Some(digest), .. }), Some(image)) =
                (change.before.as_deref(), &change.image)
            {
                by_digest.entry((*size, *digest)).or_default().push(image);
            }
        }
        Self { images: store.shared.engine.places.images.clone(), history, by_digest }
    }

    /// The content of a file, in its own image or in one of the same content.
    fn kept(&self, state: &State, image: Option<&ImageName>) -> Arc<KeptContent> {
        let same = state.digest.and_then(|digest| self.by_digest.get(&(state.size, digest)));
        let same = same.into_iter().flatten().copied().filter(|other| Some(*other) != image);
        Arc::new(KeptContent {
            images: self.images.clone(),
            names: image.into_iter().chain(same).cloned().collect(),
            size: state.size,
            digest: state.digest,
            modified: state.modified,
        })
    }

    /// What has to be done at each name of a transaction to go one way or the other.
    fn steps(&self, summary: &Summary, way: Way) -> Result<Vec<Step>, Error> {
        let tx = summary.begin.tx;
        if !summary.has_images {
            let reason = format!("transaction {tx} is from before originals were kept, and can't be undone");
            return Err(Error::invalid(ErrorKind::Unsupported, reason));
        }
        let moved: HashMap<&[u8], &ChangeSummary> =
            summary.changes.iter().filter_map(|change| Some((change.from.as_deref()?, change))).collect();
        let targets: HashSet<&[u8]> = moved.values().map(|change| change.path.as_slice()).collect();
        // Names that the transaction filled, changed or emptied one by one, and those of which it only knows what they
        // were before.
        let (named, gone): (Vec<_>, Vec<_>) =
            summary.changes.iter().partition(|change| change.after.is_some() || change.was.is_some());
        let named: HashSet<&[u8]> = named.into_iter().map(|change| change.path.as_slice()).collect();
        let gone: HashSet<&[u8]> = gone.into_iter().map(|change| change.path.as_slice()).collect();
        let mut steps = Vec::with_capacity(summary.changes.len());
        for change in &summary.changes {
            let (path, place) = (path_of(&change.path, tx)?, path_of(change.place(), tx)?);
            let left = moved.get(change.place()).filter(|_| change.before.is_some());
            let is_gone = change.after.is_none() && change.was.is_none();
            let lies_below = |path: &TreePath, tops: &dyn Fn(&[u8]) -> bool| {
                std::iter::successors(path.parent(), TreePath::parent).any(|above| tops(above.as_bytes()))
            };
            let step = match way {
                Way::Back => {
                    // In a directory that came from elsewhere such a name is another one.
                    let is_known = !is_gone
                        || !lies_below(&path, &|above| targets.contains(above))
                            && !named.contains(&*change.path);
                    let wanted = match (change.before.as_deref(), left) {
                        (None, _) => Wanted::Nothing,
                        (Some(state), Some(to)) => {
                            Wanted::MovedFrom(path_of(&to.path, tx)?, state.attributes.mode)
                        }
                        (Some(state), None) if is_mode_alone(change) => Wanted::Mode(state.attributes.mode),
                        (Some(state), None) => self.wanted(state, change.image.as_ref()),
                    };
                    let (at, leaves) = (is_known.then_some(path), change.from.is_some());
                    Step { at, to: place, expected: change.after.as_deref().cloned(), leaves, wanted }
                }
                Way::Forth => {
                    // So is, in a directory that was made anew, one where there was another.
                    let is_known = change.before.is_some()
                        || !lies_below(&place, &|above| moved.contains_key(above))
                            && !gone.contains(change.place());
                    let wanted = match (change.after.as_deref(), change.from.as_deref()) {
                        (None, _) => Wanted::Nothing,
                        (Some(state), Some(from)) => {
                            Wanted::MovedFrom(path_of(from, tx)?, state.attributes.mode)
                        }
                        (Some(state), None) if is_mode_alone(change) => Wanted::Mode(state.attributes.mode),
                        (Some(state), None) => self.wanted(state, None),
                    };
                    let at = is_known.then_some(place);
                    let expected = change.before.as_deref().cloned();
                    Step { at, to: path, expected, leaves: left.is_some(), wanted }
                }
            };
            steps.push(step);
        }
        Ok(steps)
    }

    fn wanted(&self, state: &State, image: Option<&ImageName>) -> Wanted {
        let attributes: Attributes = state.attributes.clone();
        match (state.kind, &state.target) {
            (Kind::File, _) => Wanted::File(attributes, self.kept(state, image)),
            (Kind::Dir, _) => Wanted::Dir(attributes),
            (Kind::Symlink, Some(target)) => Wanted::Symlink(attributes, target.clone()),
            (Kind::Symlink, None) => Wanted::Lost("the history does not know any more where it led".into()),
            (Kind::Other, _) => {
                Wanted::Lost("it was a device, socket or pipe, which can't be made again".into())
            }
        }
    }

    /// The content at a path right behind a transaction. `None` if it would stand in the tree, and somebody has committed
    /// since `last` was the last transaction, which is older than the history that was read.
    fn at(
        &self,
        store: &Store,
        tx: TransactionId,
        last: TransactionId,
        asked: &TreePath,
    ) -> Result<Option<Vec<u8>>, Error> {
        let refused = |kind, reason: &str| Err(Error::refused(kind, asked.as_path(), reason));
        let mut path = asked.clone();
        // What it was then, if a transaction said.
        let mut state = self.history.get(&tx).and_then(|summary| change_at(summary, &path)?.after.as_deref());
        let later = self.history.range((std::ops::Bound::Excluded(tx), std::ops::Bound::Unbounded));
        for summary in later.map(|(_, summary)| summary) {
            let stood = summary.changes.iter().find(|change| {
                let has_left =
                    || summary.changes.iter().any(|other| other.from.as_deref() == Some(change.place()));
                change.place() == path.as_bytes() && change.before.is_some() && !has_left()
            });
            if let Some((change, before)) = stood.and_then(|change| Some((change, change.before.as_deref()?)))
            {
                if is_mode_alone(change) {
                    state = state.or(Some(before));
                    continue;
                }
                check_is_file(before.kind, asked)?;
                if !summary.has_images {
                    return refused(ErrorKind::NotFound, "the history does not keep it");
                }
                let kept = self.kept(before, change.image.as_ref());
                return kept.read().on("read the original of", asked.as_path()).map(Some);
            }
            let moved = summary.changes.iter().find_map(|change| {
                let from = TreePath::from_bytes(change.from.as_deref()?).ok()?;
                let to = TreePath::from_bytes(&change.path).ok()?;
                if path == from { Some(to) } else { to.below(&path.relative_to(&from)?) }
            });
            match moved {
                Some(to) => path = to,
                None if summary.changes.iter().any(|change| change.place() == path.as_bytes()) => {
                    return refused(
                        ErrorKind::NotFound,
                        &format!("no file stood there behind transaction {tx}"),
                    );
                }
                None => {}
            }
        }
        // Nobody has changed it since: it stands there now, unless another program did.
        if let Some(state) = state {
            check_is_file(state.kind, asked)?;
        }
        let mut transaction = store.begin()?;
        let read = transaction.read(path.as_path());
        if store.last_tx()? != last {
            return Ok(None);
        }
        let bytes = read?;
        match state.and_then(|state| state.digest) {
            Some(digest) if digest != Digest::of(&bytes) => {
                let reason =
                    "another program has changed it since, and the history does not keep what it was";
                refused(ErrorKind::NotFound, reason)
            }
            _ => Ok(Some(bytes)),
        }
    }
}

fn check_is_file(kind: Kind, path: &TreePath) -> Result<(), Error> {
    match kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Error::refused(ErrorKind::IsADirectory, path.as_path(), "it was a directory")),
        Kind::Symlink | Kind::Other => {
            Err(Error::refused(ErrorKind::Unsupported, path.as_path(), "it was no regular file"))
        }
    }
}

fn change_at<'a>(summary: &'a Summary, path: &TreePath) -> Option<&'a ChangeSummary> {
    summary.changes.iter().find(|change| change.path == path.as_bytes())
}

/// Whether what stands there stayed, with other permission bits.
fn is_mode_alone(change: &ChangeSummary) -> bool {
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            change.from.is_none()
                && after.modified.is_some()
                && (before.kind, before.inode) == (after.kind, after.inode)
        }
        _ => false,
    }
}

fn path_of(bytes: &[u8], tx: TransactionId) -> Result<TreePath, Error> {
    TreePath::from_bytes(bytes).map_err(|source| {
        let reason = format!("the history of transaction {tx} has an impossible path: {source}");
        Error::invalid(ErrorKind::Corrupt, reason)
    })
}
