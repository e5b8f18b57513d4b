//! Whether what concurrent transactions saw and did could have been done by one after another, each at one moment between
//! its beginning and its end: strict serializability.
//!
//! The order of those that wrote is known, by their numbers. What is left to find is whether each of them saw what those
//! before it had left, and a place between two of them for each that only read. Any such place that is late enough is as
//! good as a later one for all that come after, so that no search goes back.

use std::collections::BTreeMap;
use std::fmt;

/// The name of a register.
pub type Key = u64;

/// What a transaction learned of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// What it holds; `None` if it is not there.
    Value(Option<u64>),
    /// Whether it is there.
    Presence(bool),
}

impl Seen {
    fn is_of(self, stands: Option<u64>) -> bool {
        match self {
            Self::Value(value) => value == stands,
            Self::Presence(is_there) => is_there == stands.is_some(),
        }
    }
}

/// A transaction that committed. Times are of one clock that all share and that never goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Before it saw anything.
    pub begin: u64,
    /// After it had committed; `u64::MAX` if nobody was told.
    pub end: u64,
    /// Its number; `None` if it only read.
    pub number: Option<u64>,
    /// What it saw before it wrote anything.
    pub reads: Vec<(Key, Seen)>,
    /// What it left.
    pub writes: Vec<(Key, Option<u64>)>,
}

/// Why a history is not strictly serializable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two have the same number.
    SameNumber(Done, Done),
    /// One comes before another in the log that had ended before it began.
    OutOfTime {
        /// First in the log.
        first: Done,
        /// Had ended by then.
        second: Done,
    },
    /// One that wrote saw something that those before it had not left.
    Saw(Done, Key, Option<u64>),
    /// There is no moment at which one that only read could have seen what it saw.
    NoMoment(Done, String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameNumber(one, other) => write!(f, "the same number:\n{one:?}\n{other:?}"),
            Self::OutOfTime { first, second } => {
                write!(
                    f,
                    "first in the log, though the second had ended before it began:\n{first:?}\n{second:?}"
                )
            }
            Self::Saw(done, key, stood) => write!(f, "register {key} held {stood:?}:\n{done:?}"),
            Self::NoMoment(done, why) => {
                write!(f, "saw what never stood when it could have looked ({why}):\n{done:?}")
            }
        }
    }
}

/// The values of registers over time: for each, the places from which on it held something else.
struct Past(BTreeMap<Key, Vec<(usize, Option<u64>)>>);

impl Past {
    /// What a register held after the first `place` of those that wrote.
    fn at(&self, key: Key, place: usize) -> Option<u64> {
        let changes = self.0.get(&key)?;
        let after = changes.partition_point(|(from, _)| *from <= place);
        after.checked_sub(1).and_then(|last| changes[last].1)
    }
}

/// Decides whether a history is strictly serializable in the order of the numbers.
///
/// # Errors
/// What is wrong with it.
pub fn check(initial: &BTreeMap<Key, u64>, history: &[Done]) -> Result<(), Box<Violation>> {
    let mut writers: Vec<&Done> = history.iter().filter(|done| done.number.is_some()).collect();
    writers.sort_by_key(|done| done.number);
    if let Some(pair) = writers.windows(2).find(|pair| pair[0].number == pair[1].number) {
        return Err(Box::new(Violation::SameNumber(pair[0].clone(), pair[1].clone())));
    }
    let mut past = Past(initial.iter().map(|(key, value)| (*key, vec![(0, Some(*value))])).collect());
    let mut latest: Option<&Done> = None;
    for (before, done) in writers.iter().enumerate() {
        if let Some(first) = latest.filter(|first| done.end < first.begin) {
            return Err(Box::new(Violation::OutOfTime { first: first.clone(), second: (*done).clone() }));
        }
        latest = latest.into_iter().chain([*done]).max_by_key(|done| done.begin);
        for (key, seen) in &done.reads {
            let stood = past.at(*key, before);
            if !seen.is_of(stood) {
                return Err(Box::new(Violation::Saw((*done).clone(), *key, stood)));
            }
        }
        for (key, value) in &done.writes {
            past.0.entry(*key).or_default().push((before + 1, *value));
        }
    }
    check_readers(&writers, history, &past)
}

/// Finds the first place for each that only read.
fn check_readers(writers: &[&Done], history: &[Done], past: &Past) -> Result<(), Box<Violation>> {
    // The last place that must lie before one that begins at some time, and the first that must lie behind one that ends.
    let mut by_end: Vec<(u64, usize)> =
        writers.iter().enumerate().map(|(index, done)| (done.end, index + 1)).collect();
    let mut by_begin: Vec<(u64, usize)> =
        writers.iter().enumerate().map(|(index, done)| (done.begin, index)).collect();
    by_end.sort_unstable();
    by_begin.sort_unstable();
    let mut readers: Vec<&Done> = history.iter().filter(|done| done.number.is_none()).collect();
    readers.sort_by_key(|done| done.begin);
    // Those that were placed and may have ended, with their places.
    let mut placed: Vec<(u64, usize)> = Vec::new();
    let mut ended = 0;
    let (mut passed, mut earliest) = (0, 0);
    for reader in readers {
        while passed < by_end.len() && by_end[passed].0 < reader.begin {
            earliest = earliest.max(by_end[passed].1);
            passed += 1;
        }
        placed.retain(|(end, place)| {
            let is_over = *end < reader.begin;
            if is_over {
                ended = ended.max(*place);
            }
            !is_over
        });
        let first = earliest.max(ended);
        let begun = by_begin.partition_point(|(begin, _)| *begin <= reader.end);
        let last = by_begin[begun..].iter().map(|(_, place)| *place).min().unwrap_or(writers.len());
        let fits = |place: &usize| reader.reads.iter().all(|(key, seen)| seen.is_of(past.at(*key, *place)));
        let Some(place) = (first..=last).find(fits) else {
            let why = format!("after {first} and at most {last} of {} that wrote", writers.len());
            return Err(Box::new(Violation::NoMoment(reader.clone(), why)));
        };
        placed.push((reader.end, place));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(number: u64, time: (u64, u64), reads: &[(Key, Option<u64>)], writes: &[(Key, u64)]) -> Done {
        Done {
            begin: time.0,
            end: time.1,
            number: Some(number),
            reads: reads.iter().map(|(key, value)| (*key, Seen::Value(*value))).collect(),
            writes: writes.iter().map(|(key, value)| (*key, Some(*value))).collect(),
        }
    }

    fn reader(time: (u64, u64), reads: &[(Key, Option<u64>)]) -> Done {
        Done { number: None, ..writer(0, time, reads, &[]) }
    }

    #[allow(clippy::result_large_err)]
    fn judge(history: &[Done]) -> Option<Violation> {
        check(&BTreeMap::from([(1, 10), (2, 20)]), history).err().map(|violation| *violation)
    }

    /// Goal: what was done one after another, and what was done at once without harm, is accepted.
    #[test]
    fn harmless_histories_are_accepted() {
        assert_eq!(judge(&[]), None);
        let history = [
            writer(1, (0, 9), &[(1, Some(10))], &[(1, 11)]),
            writer(2, (1, 8), &[(1, Some(11)), (2, Some(20))], &[(2, 21)]),
            // They look before, between and after, all at about the same time.
            reader((0, 9), &[(1, Some(10)), (2, Some(20))]),
            reader((0, 9), &[(1, Some(11)), (2, Some(20))]),
            reader((0, 9), &[(1, Some(11)), (2, Some(21))]),
            reader((10, 11), &[(1, Some(11)), (2, Some(21)), (3, None)]),
        ];
        assert_eq!(judge(&history), None);
        // What nobody was told of may be late.
        let history = [writer(1, (0, u64::MAX), &[], &[(1, 11)]), reader((5, 6), &[(1, Some(10))])];
        assert_eq!(judge(&history), None);
    }

    #[test]
    fn a_lost_update_is_rejected() {
        let lost = writer(2, (0, 9), &[(1, Some(10))], &[(1, 12)]);
        let history = [writer(1, (0, 9), &[(1, Some(10))], &[(1, 11)]), lost.clone()];
        assert_eq!(judge(&history), Some(Violation::Saw(lost, 1, Some(11))));
    }

    #[test]
    fn write_skew_is_rejected() {
        let both: &[_] = &[(1, Some(10)), (2, Some(20))];
        let skewed = writer(2, (0, 9), both, &[(2, 21)]);
        let history = [writer(1, (0, 9), both, &[(1, 11)]), skewed.clone()];
        assert_eq!(judge(&history), Some(Violation::Saw(skewed, 1, Some(11))));
        // With absence and presence as well.
        let seen = |number, key, other| Done {
            reads: vec![(key, Seen::Presence(false))],
            ..writer(number, (0, 9), &[], &[(other, number)])
        };
        assert!(matches!(judge(&[seen(1, 3, 4), seen(2, 4, 3)]), Some(Violation::Saw(_, 4, Some(1)))));
    }

    #[test]
    fn a_stale_read_is_rejected() {
        let changed = writer(1, (0, 1), &[], &[(1, 11)]);
        let stale = reader((2, 3), &[(1, Some(10))]);
        assert!(matches!(judge(&[changed.clone(), stale]), Some(Violation::NoMoment(..))));
        let stale = writer(2, (2, 3), &[(1, Some(10))], &[(2, 21)]);
        assert!(matches!(judge(&[changed, stale]), Some(Violation::Saw(..))));
    }

    #[test]
    fn a_torn_read_is_rejected() {
        let history =
            [writer(1, (0, 9), &[], &[(1, 11), (2, 21)]), reader((0, 9), &[(1, Some(11)), (2, Some(20))])];
        assert!(matches!(judge(&history), Some(Violation::NoMoment(..))));
    }

    /// Goal: an order that contradicts time is rejected, though every value would fit it: of two that wrote, of one that
    /// only read before one that wrote, and of two that only read.
    #[test]
    fn what_contradicts_time_is_rejected() {
        let history = [writer(2, (0, 1), &[], &[(1, 12)]), writer(1, (2, 3), &[], &[(2, 21)])];
        assert!(matches!(judge(&history), Some(Violation::OutOfTime { .. })));
        // It saw what was written only after it had ended.
        let history = [reader((0, 1), &[(1, Some(11))]), writer(1, (2, 3), &[], &[(1, 11)])];
        assert!(matches!(judge(&history), Some(Violation::NoMoment(..))));
        // The second saw less than the first, which had ended before it began.
        let history = [
            writer(1, (0, 99), &[], &[(1, 11)]),
            reader((1, 2), &[(1, Some(11))]),
            reader((3, 4), &[(1, Some(10))]),
        ];
        assert!(matches!(judge(&history), Some(Violation::NoMoment(..))));
    }

    #[test]
    fn a_number_is_given_once() {
        let history = [writer(1, (0, 9), &[], &[(1, 11)]), writer(1, (0, 9), &[], &[(2, 21)])];
        assert!(matches!(judge(&history), Some(Violation::SameNumber(..))));
    }

    /// Goal: a value that no committed transaction wrote is rejected.
    #[test]
    fn what_was_never_committed_is_rejected() {
        assert!(matches!(judge(&[reader((0, 9), &[(1, Some(66))])]), Some(Violation::NoMoment(..))));
    }
}
