//! What becomes of originals: kept in `images/` at a checkpoint, looked up, and forgotten when retention says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atomtree_recovery::Doing;
use atomtree_recovery::analyze::Committed;
use atomtree_recovery::images;
use atomtree_recovery::manifest::{self, Summary};
use atomtree_recovery::plan::TransactionId;
use atomtree_recovery::retention::{Pin, Pruned, Retention, prune};
use atomtree_recovery::sweep::keep_originals;

use crate::error::{Error, ErrorKind};
use crate::inspect::{Inspection, PastTransaction};
use crate::store::{Engine, Store};

/// How many transactions' originals are moved without a pause.
const KEPT_AT_ONCE: usize = 256;

impl Engine {
    /// Up to how many bytes an original is kept.
    pub(crate) fn image_bytes_max(&self) -> u64 {
        self.options.retention.bytes_max
    }

    /// Moves the originals of settled transactions from their slots to `images/`. That may take long: `meanwhile` is called now
    /// and then.
    pub(crate) fn keep_originals(
        &self,
        transactions: &[Arc<Committed<'static>>],
        meanwhile: impl Fn(),
    ) -> Result<(), Error> {
        let transactions = transactions.iter().enumerate().map(|(number, transaction)| {
            if number % KEPT_AT_ONCE == KEPT_AT_ONCE - 1 {
                meanwhile();
            }
            &**transaction
        });
        Ok(keep_originals(&self.places, &mut self.applier()?, transactions, self.image_bytes_max())?)
    }

    /// Forgets what retention does not cover, after the manifest of these transactions was `written`, if that is why.
    pub(crate) fn prune_history(
        &self,
        retention: &Retention,
        written: &[Arc<Committed<'static>>],
    ) -> Result<Pruned, Error> {
        let ends = written.first().zip(written.last());
        let written = ends.map(|(first, last)| (first.begin.tx, last.begin.tx));
        Ok(prune(&self.places, &mut self.shelves.lock(), retention, self.places.vfs.now(), written)?)
    }

    /// Whether the quarantine takes what a transaction may have to displace. Under the commit lock.
    pub(crate) fn check_quarantine(&self) -> Result<(), Error> {
        let Some(bytes_max) = self.options.quarantine_bytes_max else { return Ok(()) };
        let bytes = self.fullness.lock().bytes(&self.places)?;
        if bytes < bytes_max.max(1) {
            return Ok(());
        }
        let reason = format!(
            "it holds {bytes} bytes that other programs wrote and that had to give way, and quarantine_bytes_max is {bytes_max}; keep what you need of it, and empty it with `atomtree prune --quarantine`"
        );
        Err(Error::refused(ErrorKind::NoSpace, ".atomtree/quarantine", reason))
    }
}

impl Store {
    /// Every transaction that the history keeps, and those that are not settled yet; newest first.
    ///
    /// # Errors
    /// `corrupt` for a damaged manifest, naming it.
    pub fn history(&self) -> Result<Vec<PastTransaction>, Error> {
        Inspection::of(&self.shared.engine.places).log(usize::MAX)
    }

    /// Forgets what is older, or more, than the store's options say, and takes no longer than that.
    ///
    /// # Durability
    /// What was forgotten is gone durably when this returns. Nothing is while another thread or process is undoing
    /// something.
    ///
    /// # Errors
    /// As for [`Store::checkpoint`], which is made first.
    pub fn prune(&self, keep: &Keep) -> Result<Pruned, Error> {
        let engine = &self.shared.engine;
        engine.checkpoint()?;
        let mut retention = engine.options.retention;
        retention.bytes_max = keep.bytes_max.unwrap_or(retention.bytes_max);
        retention.age_max = keep.age_max.or(retention.age_max);
        retention.transactions_max = keep.transactions_max.unwrap_or(retention.transactions_max);
        let _turn = engine.checkpoint_turn(engine.options.deadline())?;
        engine.check_settling()?;
        engine.prune_history(&retention, &[])
    }

    /// Removes everything from quarantine: what other programs wrote and had to give way. Returns how much that was.
    ///
    /// # Durability
    /// It is gone durably when this returns.
    ///
    /// # Errors
    /// `poisoned` if the store takes no more commits; else as the operating system says.
    pub fn empty_quarantine(&self) -> Result<u64, Error> {
        let engine = &self.shared.engine;
        let _turn = engine.checkpoint_turn(engine.options.deadline())?;
        engine.check_settling()?;
        let quarantine = &engine.places.quarantine;
        let mut removed = 0;
        for entry in quarantine.list().doing("list", "quarantine")? {
            let label = format!("quarantine/{}", entry.name.to_string_lossy());
            images::remove(&**quarantine, &entry.name).doing("remove", &label)?;
            removed += 1;
        }
        quarantine.sync().doing("sync", "quarantine")?;
        Ok(removed)
    }

    /// Sees to it that nothing is forgotten while it is being read.
    pub(crate) fn pin(&self) -> Result<Pin, Error> {
        const PAUSE: Duration = Duration::from_millis(1);
        const PAUSES_MAX: u32 = 10_000;
        self.shared.engine.check_health()?;
        for _ in 0..PAUSES_MAX {
            if let Some(pin) = Pin::of_reader(&self.shared.engine.places)? {
                return Ok(pin);
            }
            std::thread::sleep(PAUSE);
        }
        Err(Error::Locked { holder: "a process that is forgetting history".into() })
    }

    /// The number of the last transaction that was committed.
    pub(crate) fn last_tx(&self) -> Result<TransactionId, Error> {
        let engine = &self.shared.engine;
        Ok(TransactionId(engine.lock_commits(engine.options.deadline())?.next_tx.0 - 1))
    }

    /// What the history keeps of these transactions, once everything is settled.
    pub(crate) fn settled_history_of(
        &self,
        transactions: &[TransactionId],
    ) -> Result<BTreeMap<TransactionId, Summary>, Error> {
        self.settled_summaries(|(first, last)| transactions.iter().any(|tx| (first..=last).contains(&tx)))
    }

    /// What the history keeps of this transaction and all later ones, once everything is settled.
    pub(crate) fn settled_history(
        &self,
        from: TransactionId,
    ) -> Result<BTreeMap<TransactionId, Summary>, Error> {
        self.settled_summaries(|(_, last)| *last >= from)
    }

    fn settled_summaries(
        &self,
        is_wanted: impl Fn((&TransactionId, &TransactionId)) -> bool,
    ) -> Result<BTreeMap<TransactionId, Summary>, Error> {
        let engine = &self.shared.engine;
        engine.checkpoint()?;
        let history = &*engine.places.history;
        let mut summaries = BTreeMap::new();
        for name in manifest::list(history)? {
            if manifest::range_of(&name).is_some_and(|(first, last)| is_wanted((&first, &last))) {
                // After a crash two may tell of the same transactions, and they tell the same.
                let read = manifest::read(history, &name)?.into_iter();
                summaries.extend(read.map(|summary| (summary.begin.tx, summary)));
            }
        }
        Ok(summaries)
    }
}

/// How much [`Store::prune`] leaves; what is not said is what the store's options say.
#[expect(clippy::struct_field_names, reason = "named like the options")]
#[derive(Clone, Debug, Default)]
pub struct Keep {
    bytes_max: Option<u64>,
    age_max: Option<Duration>,
    transactions_max: Option<u64>,
}

impl Keep {
    /// As much as the store's options say.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`crate::Options::history_bytes_max`].
    #[must_use]
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// As [`crate::Options::history_age_max`].
    #[must_use]
    pub fn age_max(mut self, age: Duration) -> Self {
        self.age_max = Some(age);
        self
    }

    /// As [`crate::Options::history_transactions_max`].
    #[must_use]
    pub fn transactions_max(mut self, transactions: u64) -> Self {
        self.transactions_max = Some(transactions);
        self
    }
}
