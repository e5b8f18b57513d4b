//! Medians, and what lies around them.

use serde::Serialize;

/// Ten, fifty and ninety percent of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// One in ten is below.
    pub p10: f64,
    /// Half are below.
    pub median: f64,
    /// One in ten is above.
    pub p90: f64,
}

impl Spread {
    /// Of these values; nothing if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        let [p10, median, p90] = [10, 50, 90].map(|percent| quantile(&mut values, percent * 10));
        Some(Self { p10: p10?, median: median?, p90: p90? })
    }
}

/// The value below which so many in a thousand are; sorts them.
pub fn quantile(values: &mut [f64], per_mille: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    // The middle rounds up: of two values it is the larger.
    let last = values.len().checked_sub(1)?;
    Some(values[(last * per_mille + 500) / 1000])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_of_few_values() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![7.0]), Some(Spread { p10: 7.0, median: 7.0, p90: 7.0 }));
        let eleven = (0..11).rev().map(f64::from).collect();
        assert_eq!(Spread::of(eleven), Some(Spread { p10: 1.0, median: 5.0, p90: 9.0 }));
    }
}
