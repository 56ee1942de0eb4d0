//! A histogram of latencies in fixed memory.

/// Buckets per doubling: a value is known to within 1/32.
const STEPS: u64 = 32;

/// Doublings covered: 2^40 ns is eighteen minutes.
const DOUBLINGS: u64 = 40;

/// Samples that must lie beyond a percentile before it is printed.
const BEYOND_MIN: u64 = 10;

/// Latencies in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        let buckets = ((DOUBLINGS + 1) * STEPS) as usize;
        Histogram { counts: vec![0; buckets], total: 0, sum: 0, max: 0 }
    }

    /// Adds one latency.
    pub fn add(&mut self, ns: u64) {
        let index = bucket(ns).min(self.counts.len() - 1);
        self.counts[index] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(ns);
        self.max = self.max.max(ns);
    }

    /// The number of latencies.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The mean, or zero of nothing.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.total).unwrap_or(0)
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The upper end of the bucket that holds this per-mille rank; none with too few samples.
    pub fn per_mille(&self, rank: u64) -> Option<u64> {
        let beyond = self.total * (1000 - rank) / 1000;
        if beyond < BEYOND_MIN {
            return None;
        }
        let wanted = self.total - beyond;
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(upper(index as u64).min(self.max))
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let doubling = u64::from(ns.ilog2()) - u64::from(STEPS.ilog2());
    (doubling * STEPS + (ns >> doubling)) as usize
}

fn upper(index: u64) -> u64 {
    if index < 2 * STEPS {
        return index;
    }
    let doubling = index / STEPS - 1;
    ((index - doubling * STEPS + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_a_32nd() {
        let mut value = 1u64;
        while value < 1 << 40 {
            for ns in [value - 1, value, value + value / 3] {
                let top = upper(bucket(ns) as u64);
                assert!(top >= ns && top - ns <= ns / 32 + 1, "{ns} {top}");
                if bucket(ns) > 0 {
                    assert!(upper(bucket(ns) as u64 - 1) < ns);
                }
            }
            value *= 2;
        }
    }

    #[test]
    fn percentiles_need_samples_beyond_them() {
        let mut h = Histogram::new();
        (1..=999).for_each(|n| h.add(n * 1000));
        assert_eq!(h.per_mille(990), None);
        h.add(1_000_000);
        let p99 = h.per_mille(990).unwrap();
        assert!((990_000..1_025_000).contains(&p99), "{p99}");
        let p50 = h.per_mille(500).unwrap();
        assert!((500_000..516_000).contains(&p50), "{p50}");
        assert_eq!((h.count(), h.max(), h.mean()), (1000, 1_000_000, 500_500));
    }
}
