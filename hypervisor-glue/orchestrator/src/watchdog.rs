//! The last resort: Xen restarts the machine when the orchestrator no longer says that it lives.

use abi::{Control, XenError};

/// Seconds without a sign of life after which Xen restarts the machine. Long, because on an
/// overloaded machine below ours the orchestrator may get no CPU for seconds while Xen's clock
/// goes on, and a restart takes every guest down.
pub const PERIOD_S: u32 = 30;
/// A busy orchestrator shows that it lives this often, at most: each sign is a hypercall.
const SIGN_NS: u64 = 1_000_000_000;
/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Xen's watchdog for the initial domain.
#[derive(Debug)]
pub struct Watchdog {
    period_s: u32,
    armed_at_ns: Option<u64>,
}

impl Watchdog {
    /// A watchdog of this period, not armed yet.
    pub const fn new(period_s: u32) -> Self {
        Self { period_s, armed_at_ns: None }
    }

    /// Reads the argument `watchdog=`: seconds.
    ///
    /// # Errors
    /// The name of the argument that cannot be read, or is less than two seconds: half of it must
    /// not be less than the time between two signs.
    pub fn parse(argument: Option<&str>) -> Result<Self, &'static str> {
        match argument.map(str::parse) {
            None => Ok(Self::new(PERIOD_S)),
            Some(Ok(period_s @ 2..)) => Ok(Self::new(period_s)),
            Some(_) => Err("watchdog"),
        }
    }

    /// Shows that we live, unless that was done just now.
    ///
    /// # Errors
    /// What Xen says; it is tried again with the next sign.
    pub fn poll<C: Control>(&mut self, xen: &C) -> Result<(), XenError> {
        let now_ns = xen.now_ns();
        if self.armed_at_ns.is_some_and(|at_ns| now_ns < at_ns + SIGN_NS) {
            return Ok(());
        }
        self.armed_at_ns = Some(now_ns);
        xen.set_watchdog(Some(self.period_s))
    }

    /// When an idle orchestrator must wake to show that it lives: in half the period, so that a
    /// late wake-up is no death. Services are pinged at about the same intervals.
    pub fn due_ns(&self) -> Option<u64> {
        Some(self.armed_at_ns? + u64::from(self.period_s) * SECOND_NS / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_period_is_an_argument() {
        assert_eq!(Watchdog::parse(None).unwrap().period_s, PERIOD_S);
        assert_eq!(Watchdog::parse(Some("2")).unwrap().period_s, 2);
        for wrong in ["1", "x", ""] {
            assert_eq!(Watchdog::parse(Some(wrong)).unwrap_err(), "watchdog", "{wrong:?}");
        }
    }
}
