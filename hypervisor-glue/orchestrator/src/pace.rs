//! How the creation of a guest shares the CPU with the guests that run: the orchestrator comes
//! before all of them, and would let none run until a quarter of a second later.

/// Longer work goes on for so long before guests that wait for the CPU get their turn: a few of
/// their requests' time.
const WORK_NS: u64 = 1_000_000;
/// So long is their turn: a creation beside busy guests takes half as long again.
const REST_NS: u64 = 500_000;

/// Work and rest in turn, while somebody waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    worked_ns: u64,
    somebody_waits: bool,
    rest_until_ns: u64,
}

impl Pace {
    /// Whether it is others' turn.
    pub fn is_resting(&self, now_ns: u64) -> bool {
        now_ns < self.rest_until_ns
    }

    /// When the rest ends, if it is others' turn.
    pub fn due_ns(&self, now_ns: u64) -> Option<u64> {
        self.is_resting(now_ns).then_some(self.rest_until_ns)
    }

    /// A piece of work took from `began_ns` to `now_ns`; `waits`: a guest was seen that waits for
    /// the CPU.
    pub fn worked(&mut self, began_ns: u64, now_ns: u64, waits: bool) {
        self.somebody_waits |= waits;
        self.worked_ns += now_ns.saturating_sub(began_ns);
        if self.worked_ns < WORK_NS {
            return;
        }
        self.worked_ns = 0;
        if core::mem::take(&mut self.somebody_waits) {
            self.rest_until_ns = now_ns + REST_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_rests_only_while_somebody_waits() {
        let mut pace = Pace::default();
        pace.worked(0, WORK_NS, false);
        assert_eq!(pace.due_ns(WORK_NS), None, "nobody waits");
        pace.worked(WORK_NS, 2 * WORK_NS - 1, true);
        assert!(!pace.is_resting(2 * WORK_NS - 1), "not yet");
        pace.worked(2 * WORK_NS - 1, 2 * WORK_NS, false);
        let end_ns = 2 * WORK_NS + REST_NS;
        assert_eq!(pace.due_ns(2 * WORK_NS), Some(end_ns));
        assert!(pace.is_resting(end_ns - 1) && !pace.is_resting(end_ns));
        pace.worked(end_ns, end_ns + WORK_NS, false);
        assert!(!pace.is_resting(end_ns + WORK_NS), "nobody waits any more");
    }
}
