//! How long a workload may take, so that the whole run ends in time on a slow machine too.

use std::time::{Duration, Instant};

/// The time of a workload, dealt out to its cases as they come.
pub struct Allowance {
    until: Instant,
    cases_left: u32,
}

impl Allowance {
    /// `time` from now, for so many cases.
    pub fn new(time: Duration, cases: usize) -> Self {
        Self { until: Instant::now() + time, cases_left: cases as u32 }
    }

    /// When the next case has to end. What earlier ones left over goes to those that come.
    pub fn next_case(&mut self) -> Instant {
        let left = self.until.saturating_duration_since(Instant::now());
        let own = left / self.cases_left.max(1);
        self.cases_left = self.cases_left.saturating_sub(1);
        Instant::now() + own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_dealt_out() {
        let mut allowance = Allowance::new(Duration::from_secs(100), 4);
        let first = allowance.next_case() - Instant::now();
        assert!((24..=25).contains(&first.as_secs()), "{first:?}");
        // The first took no time, so the three that follow have more.
        let second = allowance.next_case() - Instant::now();
        assert!((32..=33).contains(&second.as_secs()), "{second:?}");
    }
}
