//! Figures from samples.

/// From this many samples on a 99th percentile means something; below, the maximum stands for it.
pub const P99_MIN: usize = 100;

/// The value at rank `percent` of a hundred (nearest rank), or none of nothing.
pub fn percentile(values: &[u64], percent: u64) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() as u64 * percent).div_ceil(100).max(1) as usize;
    sorted.get(rank - 1).copied()
}

/// The 99th percentile, or the maximum of fewer than [`P99_MIN`] values.
pub fn worst(values: &[u64]) -> Option<u64> {
    if values.len() < P99_MIN { values.iter().max().copied() } else { percentile(values, 99) }
}

/// What [`worst`] is called for this many values.
pub fn worst_name(count: usize) -> &'static str {
    if count < P99_MIN { "maximum" } else { "p99" }
}

/// The mean, or none of nothing.
pub fn mean(values: &[u64]) -> Option<u64> {
    let sum: u128 = values.iter().map(|value| u128::from(*value)).sum();
    u64::try_from(sum.checked_div(values.len() as u128)?).ok()
}

/// The median.
pub fn median(values: &[u64]) -> Option<u64> {
    percentile(values, 50)
}

/// The 95 % interval of the median, by ranks of the binomial distribution (normal approximation);
/// none of fewer than six values, where the whole range does not reach 95 %.
pub fn median_interval(values: &[u64]) -> Option<(u64, u64)> {
    if values.len() < 6 {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let count = sorted.len() as f64;
    let half = 1.96 * count.sqrt() / 2.0;
    let low = (count / 2.0 - half).floor().max(0.0) as usize;
    let high = (count / 2.0 + half).ceil() as usize;
    Some((sorted[low], sorted[high.min(sorted.len() - 1)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(percentile(&values, 50), Some(100));
        assert_eq!(percentile(&values, 99), Some(198));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(mean(&[1, 2, 6]), Some(3));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn few_samples_are_judged_by_their_maximum() {
        let few: Vec<u64> = (1..=99).collect();
        assert_eq!((worst(&few), worst_name(99)), (Some(99), "maximum"));
        let many: Vec<u64> = (1..=100).collect();
        assert_eq!((worst(&many), worst_name(100)), (Some(99), "p99"));
    }

    #[test]
    fn the_interval_holds_the_median_and_needs_six_values() {
        let values: Vec<u64> = (1..=101).collect();
        let (low, high) = median_interval(&values).unwrap();
        assert!(low < 51 && high > 51 && low > 35 && high < 66, "{low} {high}");
        assert_eq!(median_interval(&[1, 2, 3, 4, 5]), None);
    }
}
