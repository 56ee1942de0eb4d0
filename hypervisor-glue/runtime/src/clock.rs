//! Xen's system time, from the time-stamp counter and what Xen publishes beside it.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use abi::layout::TimeInfo;

use crate::shared_info;

/// The latest time handed out, so that time never goes backwards, whatever the counter does.
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

/// The system time for a value of the counter (`vcpu_time_info`, xen.h).
fn system_time_ns(info: &TimeInfo, tsc: u64) -> u64 {
    // A counter that runs behind the one Xen wrote this with has passed nothing yet: unsigned, the
    // difference would be centuries, and the latest time would stay there for ever.
    let ticks =
        u128::from(tsc.wrapping_sub(info.tsc_timestamp).cast_signed().max(0).cast_unsigned());
    let shift = info.tsc_shift;
    let scaled =
        if shift >= 0 { ticks << shift.unsigned_abs() } else { ticks >> shift.unsigned_abs() };
    let elapsed_ns = (scaled * u128::from(info.tsc_to_system_mul)) >> 32;
    info.system_time.wrapping_add(elapsed_ns as u64)
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: Reading the counter has no effect.
    unsafe { _rdtsc() }
}

/// Nanoseconds since Xen started; never less than the call before.
pub(crate) fn now_ns() -> u64 {
    let time = loop {
        let before = shared_info::time_version();
        fence(Ordering::Acquire);
        let info = shared_info::time();
        let time = system_time_ns(&info, tsc());
        fence(Ordering::Acquire);
        if before & 1 == 0 && before == shared_info::time_version() {
            break time;
        }
    };
    LATEST_NS.fetch_max(time, Ordering::Relaxed).max(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mul: u32, shift: i8) -> TimeInfo {
        TimeInfo {
            tsc_timestamp: 1_000,
            system_time: 5_000,
            tsc_to_system_mul: mul,
            tsc_shift: shift,
            ..TimeInfo::default()
        }
    }

    #[test]
    fn scales_as_the_header_says() {
        // 1 GHz: the multiplier is 2^32 / 2 with one left shift.
        assert_eq!(system_time_ns(&info(1 << 31, 1), 3_000), 7_000);
        // 4 GHz: shifted right twice, multiplier (almost) one.
        assert_eq!(system_time_ns(&info(u32::MAX, -2), 1_000 + 4_000_000), 5_000 + 999_999);
    }

    #[test]
    fn a_counter_that_is_behind_stands_still() {
        assert_eq!(system_time_ns(&info(1 << 31, 1), 999), 5_000);
    }

    #[test]
    fn years_do_not_overflow() {
        let ten_years_ns = 315_360_000_000_000_000;
        assert_eq!(system_time_ns(&info(1 << 31, 1), 1_000 + ten_years_ns), 5_000 + ten_years_ns);
    }
}
