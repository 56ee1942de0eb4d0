//! Rate limit by token bucket.

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// A limit on what a member sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second in the long run; not zero.
    pub bytes_per_s: u64,
    /// Bytes that may be sent at once after a pause.
    pub burst_bytes: u64,
}

/// Why a `rate` value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateError {
    /// It is not two numbers separated by a comma.
    Form,
    /// One of the numbers is zero.
    Zero,
}

impl Rate {
    /// Reads the value that toolstacks write into a vif's XenStore node `rate`: bytes allowed per
    /// window, and the window in microseconds.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        let (bytes, window) = text.trim().split_once(',').ok_or(RateError::Form)?;
        let bytes: u64 = bytes.trim().parse().map_err(|_| RateError::Form)?;
        let window_us: u64 = window.trim().parse().map_err(|_| RateError::Form)?;
        if bytes == 0 || window_us == 0 {
            return Err(RateError::Zero);
        }
        let bytes_per_s = (u128::from(bytes) * 1_000_000 / u128::from(window_us)).max(1);
        let bytes_per_s = u64::try_from(bytes_per_s).unwrap_or(u64::MAX);
        Ok(Self { bytes_per_s, burst_bytes: bytes })
    }
}

/// A bucket that may go into debt by one frame, so that no frame is too large for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: i64,
    filled_ns: u64,
}

impl Bucket {
    pub(crate) fn new(rate: Rate, now_ns: u64) -> Self {
        let tokens = i64::try_from(rate.burst_bytes).unwrap_or(i64::MAX);
        Self { rate, tokens, filled_ns: now_ns }
    }

    /// `Ok` if a frame may be sent now, else when to ask again.
    pub(crate) fn check(&mut self, now_ns: u64) -> Result<(), u64> {
        self.fill(now_ns);
        if self.tokens > 0 {
            return Ok(());
        }
        let missing = u128::from(self.tokens.unsigned_abs()) + 1;
        let rate = u128::from(self.rate.bytes_per_s.max(1));
        let wait_ns = (missing * u128::from(SECOND_NS)).div_ceil(rate);
        Err(self.filled_ns.saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX)))
    }

    pub(crate) fn charge(&mut self, bytes: u32) {
        self.tokens = self.tokens.saturating_sub(i64::from(bytes));
    }

    fn fill(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.filled_ns);
        let gained =
            u128::from(elapsed_ns) * u128::from(self.rate.bytes_per_s) / u128::from(SECOND_NS);
        if gained == 0 {
            return;
        }
        let burst = i64::try_from(self.rate.burst_bytes).unwrap_or(i64::MAX);
        let gained_tokens = i64::try_from(gained).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(gained_tokens).min(burst);
        // Only the time that was turned into whole bytes is used up.
        let used_ns = gained * u128::from(SECOND_NS) / u128::from(self.rate.bytes_per_s.max(1));
        self.filled_ns += u64::try_from(used_ns).unwrap_or(elapsed_ns).min(elapsed_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn toolstack_form() {
        // 10 MB/s with a window of 50 ms, as libxl writes it.
        let rate = Rate::parse("500000,50000").unwrap();
        assert_eq!(rate, Rate { bytes_per_s: 10_000_000, burst_bytes: 500_000 });
        assert_eq!(Rate::parse("500000"), Err(RateError::Form));
        assert_eq!(Rate::parse("0,5"), Err(RateError::Zero));
        assert!(Rate::parse("18446744073709551615,1").is_ok());
    }

    proptest! {
        #[test]
        fn the_rate_holds(
            bytes_per_s in 1_000..10_000_000_u64,
            burst_bytes in 1_500..100_000_u64,
            sizes in proptest::collection::vec(60..1_600_u32, 1..200),
        ) {
            let mut bucket = Bucket::new(Rate { bytes_per_s, burst_bytes }, 0);
            let (mut now, mut sent) = (0_u64, 0_u64);
            for size in sizes {
                if let Err(later) = bucket.check(now) {
                    prop_assert!(later > now, "the wait must pass time");
                    now = later;
                    prop_assert_eq!(bucket.check(now), Ok(()), "the wait it named was enough");
                }
                bucket.charge(size);
                sent += u64::from(size);
                let allowed = burst_bytes + 1_600 + bytes_per_s * now / SECOND_NS;
                prop_assert!(sent <= allowed + 1, "{sent} bytes after {now} ns");
            }
        }
    }
}
