//! Dev only.
#![allow(dead_code, unused)]
mod basics;
mod guards;
mod crash_points {
    use std::sync::atomic::{AtomicU64, Ordering};
    pub(crate) fn sum_over(seeds: std::ops::Range<u64>, visit: impl Fn(u64) -> u64 + Sync) -> u64 {
        let (next, sum) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            break;
                        }
                        sum.fetch_add(visit(seed), Ordering::Relaxed);
                    }
                });
            }
        });
        sum.into_inner()
    }
}
