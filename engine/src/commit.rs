//! How a transaction commits, in one place.
//!
//! Each committer plans and stages on its own. Then one of those who wait leads: under the commit lock it checks every
//! waiting transaction against the tree, appends those that pass to the log, makes them durable with one sync, which
//! is the commit point, and applies them. The others only wait for their result. What they hand in is a parcel of one
//! transaction, or, from the thread that commits what was submitted (`submit.rs`), of many.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use atomtree_recovery::analyze::Committed;
use atomtree_recovery::apply::{Applier, Displaced, Parents};
use atomtree_recovery::log_records::{append_applied, with_records};
use atomtree_recovery::plan::{Applied, Begin, Change, Plan, TransactionId, count_names};
use atomtree_recovery::tree_path::TreePath;
use atomtree_wal::sync::try_lock;
use atomtree_wal::{self as wal, Announcement, Log, Lsn, NotLed};

use crate::error::{Error, ErrorKind, OnPath, kind_of_log_error};
use crate::hand_over::{CommitState, is_barrier};
use crate::options::Durability;
use crate::stage::{Planned, Prepared};
use crate::store::Engine;
use crate::ticket::TicketState;
use crate::trace;
use crate::transaction::Transaction;
use crate::view::Read;

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    tx: TransactionId,
    files: usize,
    displaced: Vec<Displaced>,
    lost: Vec<TreePath>,
    is_met: bool,
}

impl Receipt {
    /// Its number in the history; 0 for a transaction that changed nothing and was only validated.
    pub fn tx(&self) -> TransactionId {
        self.tx
    }

    /// How many names it changed, directories included.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Edits by other programs that slipped in after the last check: they had to give way, and are kept.
    pub fn displaced(&self) -> &[Displaced] {
        &self.displaced
    }

    /// Names that got nothing, because another program took away what was to be moved there, or patched in place, after the
    /// last check.
    pub fn lost(&self) -> &[TreePath] {
        &self.lost
    }

    /// Whether another transaction, which is repeated, was a conflict at a name that this one changed.
    pub(crate) fn is_met(&self) -> bool {
        self.is_met
    }
}

/// What became of a transaction that was handed in.
pub(crate) enum Outcome {
    /// It is durable and applied.
    Committed(Receipt),
    /// It failed; the error says in what state things are.
    Failed(Error),
    /// The log, which held this many bytes, has no room until a checkpoint has been made.
    Full(Box<Prepared>, u64),
    /// It touches what lies at or below a directory that moves, or moves one above what it touches, in a transaction
    /// that is not settled: then a checkpoint has to come between the two.
    Unsettled(Box<Prepared>),
}

/// What submitted transactions wait for.
enum HeldBack {
    /// The log, which held this many bytes.
    Full(u64),
    /// A checkpoint.
    Unsettled,
}

impl Engine {
    /// Commits: prepares on this thread, and waits until a leader, perhaps this one, has logged and applied it.
    pub(crate) fn commit(&self, mut transaction: Transaction) -> Result<Receipt, Error> {
        trace::span!(
            "atomtree.commit",
            label = transaction.label.as_deref(),
            agent = transaction.agent.as_deref(),
            names = transaction.view.touched(),
        );
        self.commit_prepared(&mut transaction).map_err(|error| error.with_transaction(transaction))
    }

    fn commit_prepared(&self, transaction: &mut Transaction) -> Result<Receipt, Error> {
        self.check_health()?;
        let durability = transaction.durability;
        let mut announcement = self.group.announce();
        let mut prepared = self.plan_and_stage(transaction)?;
        loop {
            let room = self.room();
            let mut outcomes = self.hand_in(announcement, vec![prepared])?;
            match outcomes.pop().expect("there is one for each") {
                Outcome::Committed(receipt) if durability == Durability::Settled => {
                    return self.settle_receipt(receipt);
                }
                Outcome::Committed(receipt) => return Ok(receipt),
                Outcome::Failed(error) => return Err(error),
                Outcome::Full(again, used_bytes) => {
                    prepared = *again;
                    self.make_room(used_bytes, room)?;
                    announcement = self.group.announce();
                }
                Outcome::Unsettled(again) => {
                    prepared = *again;
                    self.checkpoint()?;
                    announcement = self.group.announce();
                }
            }
        }
    }

    pub(crate) fn plan_and_stage(&self, transaction: &mut Transaction) -> Result<Prepared, Error> {
        trace::span!("atomtree.stage");
        let begun = transaction.begun;
        self.prepare(transaction).map_err(|error| {
            // A store that is gone sounds as if the transaction's own names were missing.
            if error.kind() != ErrorKind::Conflict {
                return self.locks.check_in_place(&self.places).err().unwrap_or(error);
            }
            match try_lock(&self.commits) {
                Some(commits) => self.with_culprit(error, &commits, begun),
                // Not worth waiting for.
                None => error,
            }
        })
    }

    /// Waits until a leader, perhaps this thread, has logged and applied a parcel. Returns one outcome for each.
    pub(crate) fn hand_in(
        &self,
        announcement: Announcement<'_, Vec<Prepared>, Vec<Outcome>>,
        parcel: Vec<Prepared>,
    ) -> Result<Vec<Outcome>, Error> {
        // Those who lead in vain pass that on, and those behind them have waited as long.
        let deadline = self.options.deadline();
        let led = announcement.submit_after(
            parcel,
            || self.lock_commits(deadline),
            |mut commits, batch| self.lead(&mut commits, batch),
        );
        led.map_err(|failed| match failed {
            NotLed::NotBegun(error) => error,
            NotLed::Abandoned => {
                Error::OutcomeUnknown { reason: "the thread that was committing it panicked".into() }
            }
        })
    }

    /// Makes the names durable that were put in place.
    pub(crate) fn settle_receipt(&self, receipt: Receipt) -> Result<Receipt, Error> {
        if receipt.files == 0 {
            return Ok(receipt);
        }
        match self.checkpoint() {
            Ok(()) => Ok(receipt),
            // Any other error would claim that nothing was changed.
            Err(error) => {
                // Somebody who is in the way for long is no failure: the transaction is durable, and is settled later.
                if error.kind() != ErrorKind::Locked {
                    self.poison(&format!("transaction {} could not be settled: {error}", receipt.tx));
                }
                Err(Error::CommittedNotApplied {
                    tx: receipt.tx,
                    path: PathBuf::from("."),
                    source: io::Error::other(error),
                })
            }
        }
    }

    // Under the commit lock.

    /// Commits the parcels of a batch, one after another, and returns the outcomes of each.
    fn lead(&self, commits: &mut CommitState, batch: Vec<Vec<Prepared>>) -> Vec<Vec<Outcome>> {
        let guard = PoisonOnPanic(self);
        let lengths: Vec<usize> = batch.iter().map(Vec::len).collect();
        let mut waiting: VecDeque<Prepared> = batch.into_iter().flatten().collect();
        let mut outcomes = Vec::with_capacity(waiting.len());
        let mut held_back = None;
        while !waiting.is_empty() {
            self.round(commits, &mut waiting, &mut outcomes, &mut held_back);
        }
        self.note_log(&commits.log);
        std::mem::forget(guard);
        let mut outcomes = outcomes.into_iter();
        lengths.into_iter().map(|length| outcomes.by_ref().take(length).collect()).collect()
    }

    /// Takes transactions from the front for as long as none touches what an earlier one of this round changes, and
    /// commits them together. The rest is checked against the tree that they leave.
    ///
    /// Once a submitted transaction has to wait, those submitted after it are held back, to keep their order.
    fn round(
        &self,
        commits: &mut CommitState,
        waiting: &mut VecDeque<Prepared>,
        outcomes: &mut Vec<Outcome>,
        held_back: &mut Option<HeldBack>,
    ) {
        let first = outcomes.len();
        let mut tickets: Vec<(Arc<TicketState>, TransactionId)> = Vec::new();
        let mut logged: Vec<(usize, Committed<'static>)> = Vec::new();
        let mut changed: HashSet<TreePath> = HashSet::new();
        let mut parents = match Parents::new(self.places.root.clone()).on("read the metadata of", ".") {
            Ok(parents) => parents,
            Err(error) => {
                waiting.pop_front();
                outcomes.push(Outcome::Failed(error));
                return;
            }
        };
        while let Some(prepared) = waiting.pop_front() {
            let is_alone = prepared.moves_inodes();
            // What moves directories commits alone.
            // Nor may the checkpoint that one needs come while others are logged and not applied: it would settle them.
            if !logged.is_empty()
                && (is_alone || overlaps(&prepared, &changed) || commits.has_to_settle_before(&prepared))
            {
                waiting.push_front(prepared);
                break;
            }
            let ticket = prepared.ticket.clone();
            match (&ticket, &held_back) {
                (Some(_), Some(HeldBack::Full(used_bytes))) => {
                    outcomes.push(Outcome::Full(Box::new(prepared), *used_bytes));
                    continue;
                }
                (Some(_), Some(HeldBack::Unsettled)) => {
                    outcomes.push(Outcome::Unsettled(Box::new(prepared)));
                    continue;
                }
                _ => {}
            }
            match self.check_and_log(commits, &mut parents, prepared) {
                Ok(Some(transaction)) => {
                    tickets.extend(ticket.map(|ticket| (ticket, transaction.begin.tx)));
                    changed.extend(transaction.changes.iter().flat_map(Change::names).cloned());
                    logged.push((outcomes.len(), transaction));
                    // Filled in below, once the sync and the apply have been.
                    outcomes
                        .push(Outcome::Failed(Error::OutcomeUnknown { reason: "it was not synced".into() }));
                }
                Ok(None) => outcomes.push(Outcome::Committed(Receipt {
                    tx: TransactionId(0),
                    files: 0,
                    displaced: Vec::new(),
                    lost: Vec::new(),
                    is_met: false,
                })),
                Err(outcome) => {
                    *held_back = match (&ticket, &outcome) {
                        (Some(_), Outcome::Full(_, used_bytes)) => Some(HeldBack::Full(*used_bytes)),
                        (Some(_), Outcome::Unsettled(_)) => Some(HeldBack::Unsettled),
                        _ => held_back.take(),
                    };
                    outcomes.push(outcome);
                }
            }
            if is_alone {
                break;
            }
        }
        if logged.is_empty() {
            return;
        }
        // The commit point.
        let synced = {
            trace::span!("atomtree.sync", transactions = logged.len());
            commits.log.sync()
        };
        if let Err(error) = synced {
            let reason = error.to_string();
            self.poison(&reason);
            for outcome in &mut outcomes[first..] {
                if matches!(outcome, Outcome::Failed(Error::OutcomeUnknown { .. })) {
                    *outcome = Outcome::Failed(Error::OutcomeUnknown { reason: reason.clone() });
                }
            }
            return;
        }
        tickets.into_iter().for_each(|(ticket, tx)| ticket.note_durable(tx));
        self.apply(commits, parents, logged, outcomes);
    }

    /// Checks one transaction and appends its records. `None` if it changes nothing.
    fn check_and_log(
        &self,
        commits: &mut CommitState,
        parents: &mut Parents,
        mut prepared: Prepared,
    ) -> Result<Option<Committed<'static>>, Outcome> {
        let failed = Outcome::Failed;
        self.check_health().map_err(failed)?;
        if commits.has_to_settle_before(&prepared) {
            // Under the commit lock nothing can come between the checkpoint and this transaction. Where one is being
            // made already, which waits for that lock, this transaction comes back.
            match self.checkpoint_held(commits) {
                Some(done) => done.map_err(failed)?,
                None => return Err(Outcome::Unsettled(Box::new(prepared))),
            }
        }
        self.check_guards(&prepared).map_err(failed)?;
        let since = prepared.begun;
        self.check(parents, &mut prepared)
            .map_err(|error| failed(self.with_culprit(error, commits, since)))?;
        if prepared.planned.is_empty() {
            return Ok(None);
        }
        self.check_quarantine().map_err(failed)?;
        self.ballast.fill().on("keep space back in", ".atomtree/ballast").map_err(failed)?;
        let begin = Begin {
            tx: commits.next_tx,
            time_ns: self.places.vfs.now().0,
            label: prepared.label.take(),
            agent: prepared.agent.take(),
            who: Some(self.who.clone()),
        };
        let mut rest = Vec::with_capacity(prepared.planned.len());
        let mut changes = Vec::with_capacity(prepared.planned.len());
        for planned in prepared.planned.drain(..) {
            rest.push((planned.disk, planned.is_implied, planned.listings));
            changes.push(planned.change);
        }
        let plan = Plan { begin, changes };
        let appended = with_records(&plan.payloads(), |records| commits.log.append(records));
        match appended {
            Ok(lsn) => {
                prepared.keep_staged();
                commits.next_tx = TransactionId(commits.next_tx.0 + 1);
                commits.is_all_applied = false;
                Ok(Some(Committed { begin: plan.begin, lsn, changes: plan.changes }))
            }
            Err(wal::Error::Full { .. }) => {
                (prepared.label, prepared.agent) = (plan.begin.label, plan.begin.agent);
                let whole = plan.changes.into_iter().zip(rest);
                prepared.planned = whole
                    .map(|(change, (disk, is_implied, listings))| Planned {
                        change,
                        disk,
                        is_implied,
                        listings,
                    })
                    .collect();
                Err(Outcome::Full(Box::new(prepared), commits.log.used_bytes()))
            }
            Err(error) => {
                if matches!(kind_of_log_error(&error), ErrorKind::Poisoned | ErrorKind::OutcomeUnknown)
                    || commits.log.is_poisoned()
                {
                    self.poison(&error.to_string());
                }
                Err(failed(atomtree_recovery::Error::Log(error).into()))
            }
        }
    }

    /// Puts durable transactions in place. From here on nothing is rolled back.
    fn apply(
        &self,
        commits: &mut CommitState,
        parents: Parents,
        logged: Vec<(usize, Committed<'static>)>,
        outcomes: &mut [Outcome],
    ) {
        trace::span!("atomtree.apply", transactions = logged.len());
        let had_ballast = self.ballast.is_full();
        let mut applier = Applier::new(&self.places, parents, &self.ballast, self.can_exchange, Lsn(0));
        applier.open_slots_of(self.stage());
        let mut finished = Vec::with_capacity(logged.len());
        let mut is_stuck = false;
        for (index, transaction) in logged {
            applier.set_lsn(transaction.lsn);
            let result = applier.apply(&transaction.changes);
            let tx = transaction.begin.tx;
            let (displaced, lost) = (applier.take_displaced(), applier.take_lost());
            for one in &displaced {
                trace::event!(
                    WARN,
                    "displaced",
                    tx = tx.0,
                    path = one.path.to_string(),
                    kept = one.kept.as_str()
                );
            }
            outcomes[index] = match result {
                Ok(()) => Outcome::Committed(Receipt {
                    tx,
                    files: count_names(&transaction.changes),
                    displaced,
                    lost,
                    is_met: commits.meeting.is_some_and(|meeting| meeting.is_at_any(&transaction.changes)),
                }),
                Err((path, source)) => {
                    is_stuck = true;
                    self.poison(&format!(
                        "transaction {tx} could not be put in place at {}: {source}",
                        path.display()
                    ));
                    Outcome::Failed(Error::CommittedNotApplied { tx, path, source })
                }
            };
            finished.push(Arc::new(transaction));
        }
        if had_ballast && !self.ballast.is_full() {
            trace::event!(WARN, "ballast released");
        }
        if is_stuck {
            // Nothing is settled any more by this process: recovery will.
            return;
        }
        let through = finished.last().expect("there was one at least").lsn;
        // Only a hint for recovery, which finds out without it; if it can't be written, the next append says so.
        let _ = append_applied(&mut commits.log, Applied { through: through.0 });
        (commits.applied, commits.last_own, commits.is_all_applied) = (through, through, true);
        self.note_applied(&finished);
        commits.note_unsettled(finished);
    }

    /// Tells the checkpointer how full the log is.
    pub(crate) fn note_log(&self, log: &Log) {
        self.note_log_usage(log.used_bytes(), log.wants_spare());
    }
}

impl CommitState {
    /// Whether a checkpoint has to come between what is unsettled and this transaction: in a recovery, whatever lies at
    /// or below the names of a transaction that moves or removes directories, or patches files in place, is touched by that
    /// one alone.
    fn has_to_settle_before(&self, prepared: &Prepared) -> bool {
        fn changes_of<'a>(
            transactions: impl Iterator<Item = &'a Arc<Committed<'static>>>,
        ) -> impl Iterator<Item = &'a Change<'static>> {
            transactions.flat_map(|transaction| &transaction.changes)
        }
        fn barriers<'a>(changes: impl Iterator<Item = &'a Change<'static>>) -> HashSet<&'a TreePath> {
            changes.filter(|change| change.is_barrier()).flat_map(Change::names).collect()
        }
        let changes = || prepared.planned.iter().map(|planned| &planned.change);
        // Barriers are few, and most transactions have nothing to do with one.
        let unsettled_barriers = self.unsettled.iter().filter(|transaction| is_barrier(transaction));
        let is_below_unsettled =
            self.unsettled_barriers > 0 && lies_below(changes(), &barriers(changes_of(unsettled_barriers)));
        is_below_unsettled
            || prepared.is_barrier() && lies_below(changes_of(self.unsettled.iter()), &barriers(changes()))
    }
}

/// Whether a name of one of the changes is one of these or lies below it.
fn lies_below<'a>(mut changes: impl Iterator<Item = &'a Change<'static>>, tops: &HashSet<&TreePath>) -> bool {
    !tops.is_empty()
        && changes.any(|change| {
            change.names().any(|name| {
                tops.contains(name)
                    || std::iter::successors(name.parent(), TreePath::parent)
                        .any(|above| tops.contains(&above))
            })
        })
}

/// Whether a transaction touches one of the names, or relies on one.
fn overlaps(prepared: &Prepared, changed: &HashSet<TreePath>) -> bool {
    let lists = |path: &[u8]| {
        changed.iter().any(|changed| changed.parent_path().as_os_str().as_encoded_bytes() == path)
    };
    // The mode of a directory decides whether names in it may be changed.
    let is_touched = |name: &TreePath| {
        changed.contains(name) || name.parent().is_some_and(|above| changed.contains(&above))
    };
    prepared.planned.iter().flat_map(|planned| planned.change.names()).any(is_touched)
        || prepared.reads.iter().any(|read| match read {
            Read::Name { path, .. } => changed.contains(path),
            Read::Listing { path, .. } => lists(path),
        })
}

/// A panic under the commit lock leaves records whose fate is unknown; then nothing more is committed.
struct PoisonOnPanic<'a>(&'a Engine);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        self.0.poison("a thread panicked while it was committing");
    }
}
