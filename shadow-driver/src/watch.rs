//! Is the device alive, and is it silent when it should be?

use crate::{POLL_NS, STORM, STORM_REST_NS, STUCK_NS};

/// What to do with an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Enter the driver.
    Enter,
    /// Mask the line; the device is polled for a while, until [`crate::Shadow::unmask`] says so.
    Mask,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    entered_ns: u64,
    progress_ns: u64,
    idle_interrupts: u32,
    masked_ns: Option<u64>,
}

impl Watch {
    pub(crate) fn new(now_ns: u64) -> Self {
        Self { entered_ns: now_ns, progress_ns: now_ns, idle_interrupts: 0, masked_ns: None }
    }

    pub(crate) fn interrupt(&mut self, now_ns: u64) -> Advice {
        self.idle_interrupts += 1;
        if self.idle_interrupts < STORM {
            return Advice::Enter;
        }
        self.masked_ns = Some(now_ns);
        Advice::Mask
    }

    /// Whether a masked line may be opened again.
    pub(crate) fn unmask(&mut self, now_ns: u64) -> bool {
        let is_over = |since: &mut u64| now_ns.saturating_sub(*since) >= STORM_REST_NS;
        let is_due = self.masked_ns.take_if(is_over).is_some();
        if is_due {
            // The first idle interrupt after the rest masks it again.
            self.idle_interrupts = STORM - 1;
        }
        is_due
    }

    /// The driver was entered.
    pub(crate) fn entered(&mut self, now_ns: u64, had_result: bool) {
        self.entered_ns = now_ns;
        if had_result {
            self.idle_interrupts = 0;
        }
    }

    /// Frames left, or the device got its first one.
    pub(crate) fn progress(&mut self, now_ns: u64) {
        self.progress_ns = now_ns;
    }

    pub(crate) fn is_stuck(&self, now_ns: u64) -> bool {
        // Only an entry that found nothing proves it: else the entry was missing, not the device.
        self.entered_ns.saturating_sub(self.progress_ns) >= STUCK_NS
            && now_ns.saturating_sub(self.progress_ns) >= STUCK_NS
    }

    pub(crate) fn next_poll_ns(&self) -> u64 {
        self.entered_ns + POLL_NS
    }

    pub(crate) fn next_unmask_ns(&self) -> Option<u64> {
        self.masked_ns.map(|since| since + STORM_REST_NS)
    }
}
