//! The one-shot timer, shared by the unit, which sleeps by it, and by user mode's time budget.
//!
//! A hypercall for each batch of a driver would cost as much as a third of entering it. So a timer
//! that was armed for a budget stays armed when user mode ends: it serves the next entry, and at
//! worst wakes the unit once too often.

use core::cell::Cell;

use abi::hypercall::{Call, hypercall};

use crate::cell::OneCpu;

/// What is to be, and what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timer {
    /// When the unit wants to be woken.
    wanted_ns: Option<u64>,
    /// What Xen was told last; it may have fired since.
    armed_ns: Option<u64>,
}

impl Timer {
    const STOPPED: Self = Self { wanted_ns: None, armed_ns: None };

    /// What Xen must be told so that there is an event at `by_ns` or earlier, but not before
    /// `now_ns`, when an earlier one has been seen.
    fn missing(self, now_ns: u64, by_ns: u64) -> Option<u64> {
        let serves = |at_ns: &u64| (now_ns + 1..=by_ns).contains(at_ns);
        if self.armed_ns.is_some_and(|at_ns| serves(&at_ns)) {
            return None;
        }
        Some(by_ns)
    }
}

static TIMER: OneCpu<Cell<Timer>> = OneCpu::new(Cell::new(Timer::STOPPED));

/// A life begins: what the former one asked for does not count.
pub(crate) fn open() {
    TIMER.set(Timer::STOPPED);
}

fn arm(at_ns: Option<u64>) {
    // 0 stops the timer; a unit that asks for the time 0 means "at once".
    let argument = at_ns.map_or(0, |at_ns| at_ns.max(1));
    // SAFETY: No memory is passed. The call cannot fail.
    let _ = unsafe { hypercall(Call::SetTimerOp, [argument, 0, 0, 0, 0]) };
    TIMER.set(Timer { armed_ns: at_ns, ..TIMER.get() });
}

/// The unit wants to be woken at this time, or by events alone.
pub(crate) fn set(at_ns: Option<u64>) {
    TIMER.set(Timer { wanted_ns: at_ns, ..TIMER.get() });
    arm(at_ns);
}

/// Its event was seen, and is gone.
pub(crate) fn fired() {
    TIMER.set(Timer { armed_ns: None, ..TIMER.get() });
}

/// Makes sure of an event at `by_ns` or earlier, for somebody who looks at the clock then.
pub(crate) fn interrupt_by(now_ns: u64, by_ns: u64) {
    if let Some(at_ns) = TIMER.get().missing(now_ns, by_ns) {
        arm(Some(at_ns));
    }
}

/// The unit is about to sleep: makes sure that it is woken when it wants to be, if the timer was
/// used for something else since it said so.
pub(crate) fn before_sleep(now_ns: impl FnOnce() -> u64) {
    let timer = TIMER.get();
    if let Some(wanted_ns) = timer.wanted_ns
        && timer.armed_ns != timer.wanted_ns
        && let Some(at_ns) = timer.missing(now_ns(), wanted_ns)
    {
        arm(Some(at_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_event_serves_but_not_one_that_has_passed() {
        let armed = |at_ns| Timer { wanted_ns: None, armed_ns: at_ns };
        assert_eq!(armed(None).missing(100, 500), Some(500));
        assert_eq!(armed(Some(300)).missing(100, 500), None);
        assert_eq!(armed(Some(500)).missing(100, 500), None);
        assert_eq!(armed(Some(100)).missing(100, 500), Some(500));
        assert_eq!(armed(Some(501)).missing(100, 500), Some(500));
        // A unit that wants to be woken in the past is woken at once.
        assert_eq!(armed(Some(300)).missing(100, 50), Some(50));
    }
}
