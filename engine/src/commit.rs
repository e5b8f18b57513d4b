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
use atomtree_recovery::plan::{Applied, Begin, Plan, TransactionId};
use atomtree_recovery::tree_path::TreePath;
use atomtree_wal::{self as wal, Announcement, Log, Lsn};

use crate::error::{Error, ErrorKind, OnPath, kind_of_log_error};
use crate::options::Durability;
use crate::stage::Prepared;
use crate::store::{CommitState, Engine};
use crate::ticket::TicketState;
use crate::trace;
use crate::transaction::Transaction;

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    tx: TransactionId,
    files: usize,
    displaced: Vec<Displaced>,
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
}

/// What became of a transaction that was handed in.
pub(crate) enum Outcome {
    /// It is durable and applied.
    Committed(Receipt),
    /// It failed; the error says in what state things are.
    Failed(Error),
    /// The log, which held this many bytes, has no room until a checkpoint has been made.
    Full(Box<Prepared>, u64),
}

impl Engine {
    /// Commits: prepares on this thread, and waits until a leader, perhaps this one, has logged and applied it.
    pub(crate) fn commit(&self, transaction: Transaction) -> Result<Receipt, Error> {
        trace::span!(
            "atomtree.commit",
            label = transaction.label.as_deref(),
            agent = transaction.agent.as_deref(),
            names = transaction.names.len(),
        );
        self.check_health()?;
        let durability = transaction.durability;
        let mut announcement = self.group.announce();
        let mut prepared = self.plan_and_stage(transaction)?;
        loop {
            let mut outcomes = self.hand_in(announcement, vec![prepared])?;
            match outcomes.pop().expect("there is one for each") {
                Outcome::Committed(receipt) if durability == Durability::Settled => {
                    return self.settle_receipt(receipt);
                }
                Outcome::Committed(receipt) => return Ok(receipt),
                Outcome::Failed(error) => return Err(error),
                Outcome::Full(again, used_bytes) => {
                    prepared = *again;
                    self.make_room(used_bytes)?;
                    announcement = self.group.announce();
                }
            }
        }
    }

    pub(crate) fn plan_and_stage(&self, transaction: Transaction) -> Result<Prepared, Error> {
        trace::span!("atomtree.stage");
        self.prepare(transaction)
    }

    /// Waits until a leader, perhaps this thread, has logged and applied a parcel. Returns one outcome for each.
    pub(crate) fn hand_in(
        &self,
        announcement: Announcement<'_, Vec<Prepared>, Vec<Outcome>>,
        parcel: Vec<Prepared>,
    ) -> Result<Vec<Outcome>, Error> {
        announcement.submit(parcel, |batch| self.lead(batch)).map_err(|wal::Abandoned| {
            Error::OutcomeUnknown { reason: "the thread that was committing it panicked".into() }
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
                self.poison(&format!("transaction {} could not be settled: {error}", receipt.tx));
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
    fn lead(&self, batch: Vec<Vec<Prepared>>) -> Vec<Vec<Outcome>> {
        let mut commits = self.commits.lock();
        let guard = PoisonOnPanic(self);
        let lengths: Vec<usize> = batch.iter().map(Vec::len).collect();
        let mut waiting: VecDeque<Prepared> = batch.into_iter().flatten().collect();
        let mut outcomes = Vec::with_capacity(waiting.len());
        let mut held_back = None;
        while !waiting.is_empty() {
            self.round(&mut commits, &mut waiting, &mut outcomes, &mut held_back);
        }
        self.note_log(&commits.log);
        std::mem::forget(guard);
        let mut outcomes = outcomes.into_iter();
        lengths.into_iter().map(|length| outcomes.by_ref().take(length).collect()).collect()
    }

    /// Takes transactions from the front for as long as none touches what an earlier one of this round changes, and
    /// commits them together. The rest is checked against the tree that they leave.
    ///
    /// Once a submitted transaction finds the log full, those submitted after it are held back, to keep their order:
    /// `held_back` is then how many bytes the log held.
    fn round(
        &self,
        commits: &mut CommitState,
        waiting: &mut VecDeque<Prepared>,
        outcomes: &mut Vec<Outcome>,
        held_back: &mut Option<u64>,
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
            let touches = |path: &TreePath| changed.contains(path);
            let overlaps = prepared.changes.iter().any(|change| touches(&change.path))
                || prepared.reads.iter().any(|read| touches(&read.path));
            if overlaps {
                waiting.push_front(prepared);
                break;
            }
            let ticket = prepared.ticket.clone();
            if let (Some(_), Some(used_bytes)) = (&ticket, &held_back) {
                outcomes.push(Outcome::Full(Box::new(prepared), *used_bytes));
                continue;
            }
            match self.check_and_log(commits, &mut parents, prepared) {
                Ok(Some(transaction)) => {
                    tickets.extend(ticket.map(|ticket| (ticket, transaction.begin.tx)));
                    changed.extend(transaction.changes.iter().map(|change| change.path.clone()));
                    logged.push((outcomes.len(), transaction));
                    // Filled in below, once the sync and the apply have been.
                    outcomes
                        .push(Outcome::Failed(Error::OutcomeUnknown { reason: "it was not synced".into() }));
                }
                Ok(None) => outcomes.push(Outcome::Committed(Receipt {
                    tx: TransactionId(0),
                    files: 0,
                    displaced: Vec::new(),
                })),
                Err(outcome) => {
                    if let (Some(_), Outcome::Full(_, used_bytes)) = (&ticket, &outcome) {
                        *held_back = Some(*used_bytes);
                    }
                    outcomes.push(outcome);
                }
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
        self.check(parents, &mut prepared).map_err(failed)?;
        if prepared.changes.is_empty() {
            return Ok(None);
        }
        self.ballast.fill().on("keep space back in", ".atomtree/ballast").map_err(failed)?;
        let begin = Begin {
            tx: commits.next_tx,
            time_ns: self.places.vfs.now().0,
            label: prepared.label.take(),
            agent: prepared.agent.take(),
        };
        let plan = Plan { begin, changes: std::mem::take(&mut prepared.changes) };
        let appended = with_records(&plan.payloads(), |records| commits.log.append(records));
        match appended {
            Ok(lsn) => {
                prepared.staged.keep();
                commits.next_tx = TransactionId(commits.next_tx.0 + 1);
                commits.is_closed = false;
                Ok(Some(Committed { begin: plan.begin, lsn, changes: plan.changes }))
            }
            Err(wal::Error::Full { .. }) => {
                (prepared.label, prepared.agent, prepared.changes) =
                    (plan.begin.label, plan.begin.agent, plan.changes);
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
        let mut finished = Vec::with_capacity(logged.len());
        let mut is_stuck = false;
        for (index, transaction) in logged {
            applier.set_lsn(transaction.lsn);
            let result = transaction.changes.iter().try_for_each(|change| {
                applier.apply(change).map_err(|source| (change.path.as_path().to_owned(), source))
            });
            let tx = transaction.begin.tx;
            let displaced = applier.take_displaced();
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
                Ok(()) => Outcome::Committed(Receipt { tx, files: transaction.changes.len(), displaced }),
                Err((path, source)) => {
                    is_stuck = true;
                    self.poison(&format!(
                        "transaction {tx} could not be put in place at {}: {source}",
                        path.display()
                    ));
                    Outcome::Failed(Error::CommittedNotApplied { tx, path, source })
                }
            };
            finished.push(transaction);
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
        self.note_applied(finished);
    }

    /// Tells the checkpointer how full the log is.
    fn note_log(&self, log: &Log) {
        self.note_log_usage(log.used_bytes(), log.wants_spare());
    }
}

/// A panic under the commit lock leaves records whose fate is unknown; then nothing more is committed.
struct PoisonOnPanic<'a>(&'a Engine);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        self.0.poison("a thread panicked while it was committing");
    }
}
