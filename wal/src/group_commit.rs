//! Group commit: threads that submit at about the same time share one run of an expensive step, such as a sync.
//!
//! One submitter at a time leads: it takes every waiting item and runs the caller's closure on the batch; the
//! others block until it tells them their result. What an item is and what leading does is the caller's business:
//! there is no I/O here. Invariant: whoever leads passes leadership on and settles its followers, even when it
//! panics, so nobody waits for a leader that is gone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use crate::sync::{Condvar, Guard, Mutex, now};

#[cfg(all(test, loom))]
mod models;

/// A leader waits for announced items at most this part of what leading took recently: the wait has to stay small
/// beside the run that it may save.
const DALLY_DIVISOR: u32 = 4;

/// What the kernel may add to any timed wait (Linux's default). It is taken off the dally, so that a dally within a
/// short lead does not outlast its bound; a dally that would vanish in it is not begun.
const TIMER_SLACK: Duration = Duration::from_micros(50);

/// Each lead counts for this part of the moving average: one stalled disk access does not lengthen dallies for long.
const AVERAGE_DIVISOR: u32 = 8;

/// The result of an item whose leader panicked or did not return one result for each item.
///
/// It is not known how far the leader got: the item may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the thread that led this group commit failed without a result; whether the item took effect is unknown"
)]
pub struct Abandoned;

/// Why an item has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLed<E> {
    /// As [`Abandoned`] says.
    Abandoned,
    /// What its leader had to do first failed, and nothing was done with it.
    NotBegun(E),
}

/// Where the threads that share one expensive step meet: `T` is what each hands in, `R` what each gets back.
///
/// Items are led in the order in which they were submitted, within a batch and from batch to batch, and batches do
/// not overlap. Batches have no upper limit but the number of threads, as each thread has one item in at a time.
///
/// Invariants, which hold whenever `state` is unlocked:
/// 1. While nobody leads, nothing is queued: leadership goes straight to the oldest queued submitter, if any.
/// 2. A queued item has a blocked submitter, and leaves the queue either for a batch or back to that submitter.
/// 3. Each slot is settled once: by the leader whose batch has its item, or by the one who hands leadership over.
///
/// A slot's lock is never held together with the one of `state`, and neither while a leader's closure runs.
pub struct GroupCommit<T, R> {
    state: Mutex<State<T, R>>,
    /// Tells the leader that its dally is over. Used with the lock of `state`.
    dally_over: Condvar,
}

/// What the submitters share. All fields are guarded by the lock of [`GroupCommit::state`].
struct State<T, R> {
    /// The items of the next batches, oldest first, except those that leaders hold already. Guarded by `state`.
    queue: VecDeque<(T, Arc<Slot<T, R>>)>,
    /// Whether some thread leads: from becoming the leader until nobody is left to hand over to. Guarded by `state`.
    leading: bool,
    /// Whether the leader waits for announced items; cleared by whoever ends that wait. Guarded by `state`.
    dallying: bool,
    /// How many announcements are neither submitted nor dropped. Guarded by `state`.
    announced: usize,
    /// A moving average of what leading took. It starts at zero, so a new group hardly dallies. Guarded by `state`.
    recent_lead: Duration,
}

/// Where one blocked submitter learns how it goes on.
struct Slot<T, R> {
    /// Absent until settled, and again once the submitter took it. Guarded by its own lock.
    decision: Mutex<Option<Decision<T, R>>>,
    /// Tells the submitter, the only one to wait here, that it is settled. Used with the lock of `decision`.
    settled: Condvar,
}

/// How a submitter goes on.
enum Decision<T, R> {
    /// It leads the next batch, and gets its item back for that.
    Lead(T),
    /// A leader led its item, with this result.
    Done(R),
    /// The leader that had its item is gone without a result.
    Abandoned,
}

impl<T, R> GroupCommit<T, R> {
    /// Creates a group in which nobody has submitted anything.
    pub fn new() -> Self {
        let state = State {
            queue: VecDeque::new(),
            leading: false,
            dallying: false,
            announced: 0,
            recent_lead: Duration::ZERO,
        };
        Self { state: Mutex::new(state), dally_over: Condvar::new() }
    }

    /// Says that the caller is about to submit an item.
    ///
    /// While an announcement is outstanding, a leader that has not begun yet may wait for it: at most a quarter of
    /// what leading took recently, on average. Announce early enough for others to see it, but late enough that
    /// waiting pays: preparing the item should take less than that.
    pub fn announce(&self) -> Announcement<'_, T, R> {
        self.state.lock().announced += 1;
        Announcement { group: self }
    }

    /// Counts one announcement down; a leader that waited for the last one goes on.
    fn count_down(&self, state: &mut State<T, R>) {
        state.announced -= 1;
        // The flag ends the dally, not the count: an announcement made before the leader wakes would extend it.
        if state.announced == 0 && mem::take(&mut state.dallying) {
            self.dally_over.notify_one();
        }
    }

    /// Blocks the leader while announcements are outstanding and its time for that is not used up.
    fn dally<'a>(&'a self, mut state: Guard<'a, State<T, R>>) -> Guard<'a, State<T, R>> {
        let longest = (state.recent_lead / DALLY_DIVISOR).saturating_sub(TIMER_SLACK);
        if state.announced == 0 || longest.is_zero() {
            return state;
        }
        let begun = now();
        state.dallying = true;
        while state.dallying {
            let left = longest.saturating_sub(now() - begun);
            if left.is_zero() {
                state.dallying = false;
            } else {
                state = self.dally_over.wait_timeout(state, left);
            }
        }
        state
    }

    /// Ends a leader's term: the oldest queued submitter leads next, or nobody does.
    fn hand_over(&self, lead_took: Option<Duration>) {
        let successor = {
            let mut state = self.state.lock();
            debug_assert!(state.leading);
            if let Some(took) = lead_took {
                state.recent_lead = (state.recent_lead * (AVERAGE_DIVISOR - 1) + took) / AVERAGE_DIVISOR;
            }
            let successor = state.queue.pop_front();
            state.leading = successor.is_some();
            successor
        };
        if let Some((item, slot)) = successor {
            slot.settle(Decision::Lead(item));
        }
    }
}

impl<T, R> Default for GroupCommit<T, R> {
    fn default() -> Self {
        Self::new()
    }
}

/// The right, and the intention, to submit one item to a [`GroupCommit`].
///
/// Dropping it withdraws it, and a leader that waited for this one alone goes on.
#[must_use = "an announcement that is dropped is withdrawn"]
pub struct Announcement<'a, T, R> {
    group: &'a GroupCommit<T, R>,
}

impl<T, R> Announcement<'_, T, R> {
    /// Hands `item` in and returns its result, blocking until it was led.
    ///
    /// One of the submitters becomes the leader: it takes everything that waits and runs its `lead` on the batch,
    /// which holds at least its own item, in the order of submission. `lead` returns one result for each item, in
    /// the same order. The `lead` of a follower is dropped without being called, so that all have to do the same.
    ///
    /// `lead` runs without any lock held, and may announce; were it to submit to the same group, it would wait for
    /// itself.
    ///
    /// # Errors
    ///
    /// [`Abandoned`] when the leader of this item's batch panicked or returned the wrong number of results: all in
    /// the batch get it, and the group itself goes on as before.
    ///
    /// # Panics
    ///
    /// When `lead` panics, in the thread that ran it.
    pub fn submit(self, item: T, lead: impl FnOnce(Vec<T>) -> Vec<R>) -> Result<R, Abandoned> {
        self.submit_after(item, || Ok::<_, Infallible>(()), |(), batch| lead(batch)).map_err(|failed| {
            match failed {
                NotLed::Abandoned => Abandoned,
                NotLed::NotBegun(never) => match never {},
            }
        })
    }

    /// As [`Announcement::submit`], with something that the leader has to do before it takes a batch, and that may take
    /// long: what is submitted meanwhile is in its batch. `lead` gets what that returned.
    ///
    /// # Errors
    ///
    /// [`NotLed::NotBegun`] if this thread became the leader and `begin` failed: then somebody else leads what waits.
    pub fn submit_after<B, E>(
        self,
        item: T,
        begin: impl FnOnce() -> Result<B, E>,
        lead: impl FnOnce(B, Vec<T>) -> Vec<R>,
    ) -> Result<R, NotLed<E>> {
        let group = self.group;
        match self.join(item) {
            Decision::Lead(item) => Term::begin(group).run(item, begin, lead),
            Decision::Done(result) => Ok(result),
            Decision::Abandoned => Err(NotLed::Abandoned),
        }
    }

    /// Leads at once if nobody else does, and otherwise queues the item and waits for what a leader decides.
    fn join(self, item: T) -> Decision<T, R> {
        let group = self.group;
        let slot = {
            let mut state = group.state.lock();
            // Submitting uses the announcement up under the same lock as it queues the item, so that a dallying
            // leader finds the item; the drop would withdraw it a second time.
            mem::forget(self);
            group.count_down(&mut state);
            if !state.leading {
                assert!(state.queue.is_empty(), "items were left without a leader");
                state.leading = true;
                return Decision::Lead(item);
            }
            let slot = Arc::new(Slot::new());
            state.queue.push_back((item, Arc::clone(&slot)));
            slot
        };
        slot.wait()
    }
}

impl<T, R> Drop for Announcement<'_, T, R> {
    fn drop(&mut self) {
        self.group.count_down(&mut self.group.state.lock());
    }
}

impl<T, R> Slot<T, R> {
    fn new() -> Self {
        Self { decision: Mutex::new(None), settled: Condvar::new() }
    }

    /// Tells the submitter how it goes on.
    fn settle(&self, decision: Decision<T, R>) {
        let previous = self.decision.lock().replace(decision);
        debug_assert!(previous.is_none());
        // After the unlock, so that the submitter does not wake only to wait for the lock.
        self.settled.notify_one();
    }

    /// Blocks the submitter until the slot is settled.
    fn wait(&self) -> Decision<T, R> {
        let mut decision = self.decision.lock();
        loop {
            match decision.take() {
                Some(settled) => return settled,
                None => decision = self.settled.wait(decision),
            }
        }
    }
}

/// One thread's time as the leader, which ends when this is dropped, in an unwinding thread too.
struct Term<'a, T, R> {
    group: &'a GroupCommit<T, R>,
    /// The slots of the batch behind the leader's own item, in the order of the items. Owned by the leader.
    followers: Vec<Arc<Slot<T, R>>>,
    /// One result for each follower in the same order, or none at all while or because leading failed.
    results: vec::IntoIter<R>,
    /// How long leading took; absent while or because it failed.
    lead_took: Option<Duration>,
}

impl<'a, T, R> Term<'a, T, R> {
    /// Begins the term of the calling thread, which has been made the leader.
    fn begin(group: &'a GroupCommit<T, R>) -> Self {
        Self { group, followers: Vec::new(), results: Vec::new().into_iter(), lead_took: None }
    }

    /// Leads one batch, beginning with the leader's own item, and returns that item's result.
    fn run<B, E>(
        mut self,
        item: T,
        prepare: impl FnOnce() -> Result<B, E>,
        lead: impl FnOnce(B, Vec<T>) -> Vec<R>,
    ) -> Result<R, NotLed<E>> {
        // Before what takes long, so that nobody dallies with it in hand.
        drop(self.group.dally(self.group.state.lock()));
        let ready = prepare().map_err(NotLed::NotBegun)?;
        let batch = self.gather(item);
        let item_count = batch.len();
        let begun = now();
        let results = lead(ready, batch);
        if results.len() != item_count {
            return Err(NotLed::Abandoned);
        }
        self.lead_took = Some(now() - begun);
        self.results = results.into_iter();
        self.results.next().ok_or(NotLed::Abandoned)
    }

    /// Takes everything that waits.
    fn gather(&mut self, item: T) -> Vec<T> {
        let waiting = mem::take(&mut self.group.state.lock().queue);
        let (followed, followers): (Vec<T>, Vec<_>) = waiting.into_iter().unzip();
        self.followers = followers;
        // The leader's own item is the oldest: it found the queue empty or was at its front.
        iter::once(item).chain(followed).collect()
    }
}

impl<T, R> Drop for Term<'_, T, R> {
    fn drop(&mut self) {
        // The followers first, although the successor could begin while they wake: those who come back with another
        // item at once then find the next batch still open. The other way round committers split into two groups
        // that lead in turns, each waiting for the other's lead as well as its own.
        for follower in self.followers.drain(..) {
            follower.settle(self.results.next().map_or(Decision::Abandoned, Decision::Done));
        }
        self.group.hand_over(self.lead_took);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Long enough that a test which waits for a dally's end has plainly failed.
    const FOREVER: Duration = Duration::from_mins(1);

    fn group_with_recent_lead(recent_lead: Duration) -> GroupCommit<usize, usize> {
        let group = GroupCommit::new();
        group.state.lock().recent_lead = recent_lead;
        group
    }

    fn double(batch: Vec<usize>) -> Vec<usize> {
        batch.into_iter().map(|item| item * 2).collect()
    }

    fn wait_for_dally(group: &GroupCommit<usize, usize>) {
        while !group.state.lock().dallying {
            thread::yield_now();
        }
    }

    fn assert_at_rest(group: &GroupCommit<usize, usize>) {
        let state = group.state.lock();
        assert!(state.queue.is_empty());
        assert!(!state.leading);
        assert!(!state.dallying);
        assert_eq!(state.announced, 0);
    }

    /// Goal: under load each item is led once, gets its own result, and items share batches.
    /// Method: 16 threads submit 500 distinct items each to a lead that counts them and takes a moment.
    #[test]
    fn every_item_is_led_once_and_gets_its_result() {
        const THREADS: usize = 16;
        const SUBMITS: usize = 500;
        let group = GroupCommit::new();
        let counts: Vec<AtomicUsize> =
            iter::repeat_with(AtomicUsize::default).take(THREADS * SUBMITS).collect();
        let longest_batch = AtomicUsize::new(0);
        let leaders = AtomicUsize::new(0);
        let lead = |batch: Vec<usize>| {
            assert_eq!(leaders.fetch_add(1, Ordering::SeqCst), 0, "batches overlap");
            longest_batch.fetch_max(batch.len(), Ordering::Relaxed);
            for &item in &batch {
                counts[item].fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_micros(20));
            assert_eq!(leaders.fetch_sub(1, Ordering::SeqCst), 1, "batches overlap");
            double(batch)
        };
        thread::scope(|scope| {
            for first in (0..THREADS * SUBMITS).step_by(SUBMITS) {
                let (group, run) = (&group, &lead);
                scope.spawn(move || {
                    for item in first..first + SUBMITS {
                        assert_eq!(group.announce().submit(item, run), Ok(item * 2));
                    }
                });
            }
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        assert!(longest_batch.into_inner() > 1);
        assert_at_rest(&group);
    }

    /// Goal: followers of a leader that fails are told, and the group goes on.
    /// Method: the leader dallies for the second item, so that both are surely in one batch, and then runs `lead`.
    /// Returns how the leader's thread ended.
    fn fail_with_one_follower(
        lead: impl FnOnce(Vec<usize>) -> Vec<usize> + Send,
    ) -> thread::Result<Result<usize, Abandoned>> {
        let group = group_with_recent_lead(FOREVER);
        let ended = thread::scope(|scope| {
            let follower = group.announce();
            let leader = scope.spawn(|| group.announce().submit(1, lead));
            wait_for_dally(&group);
            assert_eq!(follower.submit(2, |_| unreachable!("the other thread leads")), Err(Abandoned));
            leader.join()
        });
        assert_at_rest(&group);
        assert_eq!(group.announce().submit(3, double), Ok(6));
        ended
    }

    #[test]
    fn a_panicking_leader_abandons_its_followers_only() {
        let ended = fail_with_one_follower(|batch| panic!("led {batch:?}"));
        assert!(ended.is_err(), "the panic stays in the leader's thread");
    }

    #[test]
    fn too_few_results_abandon_the_batch() {
        assert_eq!(fail_with_one_follower(|_| vec![2]).ok(), Some(Err(Abandoned)));
    }

    #[test]
    fn too_many_results_abandon_the_batch() {
        assert_eq!(fail_with_one_follower(|_| vec![2, 4, 6]).ok(), Some(Err(Abandoned)));
    }

    /// Goal: a committer that nobody is about to join does not wait, however long leading took recently.
    #[test]
    fn a_lone_committer_does_not_dally() {
        let group = group_with_recent_lead(FOREVER);
        let started = Instant::now();
        assert_eq!(group.announce().submit(1, double), Ok(2));
        assert!(started.elapsed() < FOREVER / DALLY_DIVISOR);
    }

    /// Goal: a leader goes on as soon as no announcement is outstanding, and has the item it waited for.
    #[test]
    fn a_dally_ends_with_the_last_announcement() {
        let group = group_with_recent_lead(FOREVER);
        let started = Instant::now();
        thread::scope(|scope| {
            let submitted = group.announce();
            let withdrawn = group.announce();
            let leader = scope.spawn(|| {
                group.announce().submit(1, |batch| {
                    assert_eq!(batch, [1, 2]);
                    double(batch)
                })
            });
            wait_for_dally(&group);
            let follower = scope.spawn(|| submitted.submit(2, |_| unreachable!("the other thread leads")));
            while group.state.lock().queue.is_empty() {
                thread::yield_now();
            }
            assert!(group.state.lock().dallying, "one announcement is outstanding still");
            drop(withdrawn);
            assert_eq!(leader.join().ok(), Some(Ok(2)));
            assert_eq!(follower.join().ok(), Some(Ok(4)));
        });
        assert!(started.elapsed() < FOREVER / DALLY_DIVISOR);
        assert_at_rest(&group);
    }

    /// Goal: an announcement that never comes true costs a bounded time, which is really waited.
    #[test]
    fn a_dally_is_bounded() {
        let recent_lead = Duration::from_millis(800);
        let group = group_with_recent_lead(recent_lead);
        let _never_submitted = group.announce();
        let started = Instant::now();
        assert_eq!(group.announce().submit(1, double), Ok(2));
        let took = started.elapsed();
        assert!(took + TIMER_SLACK >= recent_lead / DALLY_DIVISOR, "took {took:?}");
        assert!(took < recent_lead, "took {took:?}");
    }

    /// Goal: nothing is locked while a leader runs. Method: use the group from within.
    #[test]
    fn a_leader_runs_without_locks() {
        let group = group_with_recent_lead(Duration::ZERO);
        let result = group.announce().submit(1, |batch| {
            drop(group.announce());
            double(batch)
        });
        assert_eq!(result, Ok(2));
        assert_at_rest(&group);
    }
}
