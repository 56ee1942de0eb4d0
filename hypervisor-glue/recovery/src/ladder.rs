//! The ladder of one unit: which rung is next, and when.

use crate::{Policy, Reason, Rung};

/// The rungs that are tried on one unit, from the cheapest. Above them is the global restart.
const RUNGS: [Rung; 3] = [Rung::Microreset, Rung::Microreboot, Rung::Rebuild];
const REBUILD: usize = 2;

/// Doublings of the back-off: 2⁴⁰ ns are 18 minutes, beyond every maximum.
const DOUBLINGS_MAX: u32 = 40;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) rung: Rung,
    /// Delay before it, in ns.
    pub(crate) delay_ns: u64,
}

/// Where a unit stands on the ladder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ladder {
    /// Index of the present rung in [`RUNGS`].
    rung: usize,
    /// Recoveries by it since the unit was last healthy.
    tries: u32,
    /// Failures in a row without a minimum run in between.
    row: u32,
}

impl Ladder {
    pub(crate) const fn new() -> Self {
        Self { rung: 0, tries: 0, row: 0 }
    }

    /// The next step after a failure. `served_ns`: how long the unit served in the life that ended,
    /// 0 if it never did.
    pub(crate) fn next(&mut self, policy: &Policy, reason: Reason, served_ns: u64) -> Step {
        if served_ns >= policy.healthy_ns {
            *self = Self::new();
        }
        self.row = if served_ns >= policy.min_run_ns { 1 } else { self.row.saturating_add(1) };
        let least = least_rung(reason);
        if least > self.rung {
            (self.rung, self.tries) = (least, 0);
        }
        if reason == Reason::Recovery {
            // What failed to be carried out is not tried again.
            (self.rung, self.tries) = (self.rung + 1, 0);
        }
        while self.rung < RUNGS.len() && self.tries >= u32::from(policy.tries[self.rung]) {
            (self.rung, self.tries) = (self.rung + 1, 0);
        }
        let delay_ns = self.delay_ns(policy);
        let Some(rung) = RUNGS.get(self.rung) else {
            // After all services were restarted, rebuilds alone are tried again.
            (self.rung, self.tries) = (REBUILD, 0);
            return Step { rung: Rung::Global, delay_ns };
        };
        self.tries += 1;
        Step { rung: *rung, delay_ns }
    }

    fn delay_ns(&self, policy: &Policy) -> u64 {
        let Some(doublings) = self.row.checked_sub(2) else { return 0 };
        let delay = policy.backoff_ns.saturating_mul(1 << doublings.min(DOUBLINGS_MAX));
        delay.min(policy.backoff_max_ns)
    }
}

/// The cheapest rung that can help: corrupted memory must not be kept, a domain that is gone has
/// none.
fn least_rung(reason: Reason) -> usize {
    match reason {
        Reason::Corrupt | Reason::Diverged => 1,
        Reason::Gone => REBUILD,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::POLICY;

    fn rungs(ladder: &mut Ladder, count: usize, served_ns: u64) -> Vec<(Rung, u64)> {
        let step = |_| ladder.next(&POLICY, Reason::Exit(3), served_ns);
        (0..count).map(step).map(|step| (step.rung, step.delay_ns)).collect()
    }

    #[test]
    fn ten_failures_in_a_row_climb_and_slow_down() {
        let mut ladder = Ladder::new();
        let expected = [
            (Rung::Microreset, 0),
            (Rung::Microreset, 1_000),
            (Rung::Microreboot, 2_000),
            (Rung::Microreboot, 4_000),
            (Rung::Rebuild, 8_000),
            (Rung::Rebuild, 16_000),
            (Rung::Rebuild, 32_000),
            (Rung::Global, 50_000),
            (Rung::Rebuild, 50_000),
            (Rung::Rebuild, 50_000),
        ];
        assert_eq!(rungs(&mut ladder, 10, 0), expected);
        let long: Vec<_> = rungs(&mut ladder, 100, 0);
        assert!(long.iter().all(|(rung, delay)| *rung >= Rung::Rebuild && *delay == 50_000));
    }

    #[test]
    fn a_healthy_run_forgives_and_a_short_one_only_ends_the_delay() {
        let mut ladder = Ladder::new();
        rungs(&mut ladder, 3, 0);
        let served = POLICY.min_run_ns;
        assert_eq!(rungs(&mut ladder, 1, served), [(Rung::Microreboot, 0)]);
        assert_eq!(rungs(&mut ladder, 1, POLICY.healthy_ns), [(Rung::Microreset, 0)]);
    }

    #[test]
    fn the_reason_names_the_least_rung() {
        let next = |reason| Ladder::new().next(&POLICY, reason, 0).rung;
        assert_eq!(next(Reason::Hang), Rung::Microreset);
        assert_eq!(next(Reason::Corrupt), Rung::Microreboot);
        assert_eq!(next(Reason::Diverged), Rung::Microreboot);
        assert_eq!(next(Reason::Gone), Rung::Rebuild);
        let mut ladder = Ladder::new();
        ladder.next(&POLICY, Reason::Hang, 0);
        assert_eq!(ladder.next(&POLICY, Reason::Recovery, 0).rung, Rung::Microreboot);
        assert_eq!(ladder.next(&POLICY, Reason::Recovery, 0).rung, Rung::Rebuild);
        assert_eq!(ladder.next(&POLICY, Reason::Recovery, 0).rung, Rung::Global);
    }

    #[test]
    fn a_rung_without_tries_is_left_out() {
        let policy = Policy { tries: [0, 1, 1], ..POLICY };
        let mut ladder = Ladder::new();
        let mut next = || ladder.next(&policy, Reason::Hang, 0).rung;
        assert_eq!([next(), next(), next()], [Rung::Microreboot, Rung::Rebuild, Rung::Global]);
    }
}
