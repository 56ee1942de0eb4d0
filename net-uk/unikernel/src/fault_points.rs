//! Faults at chosen points of the NIC's driver, in builds with the feature `fault-points` alone: it
//! ends itself in its fault domain, between two things that it says.
//!
//! When, and in which way, follows from the number of the fault, so a run can be repeated. The
//! trusted part orders a fault with a batch, and tells of it in the log if the driver died of it.

use drivers::Command;
use drivers::wall::Outlet;
use runtime::mishap;

/// Words that the trusted part puts before everything else: the way to end, counted from 1, or 0;
/// and how many messages come before.
pub const WORDS: usize = 2;

/// A way to end.
type Ending = fn() -> !;

/// Ways to end, in turn.
const KINDS: [(&str, Ending); 8] = [
    ("driver-panic", || panic!("at a chosen point")),
    ("driver-wild-read", || mishap::wild_read()),
    ("driver-wild-write", || mishap::wild_write()),
    ("driver-wild-jump", || mishap::wild_jump()),
    ("driver-undefined", || mishap::undefined_instruction()),
    ("driver-stack-overflow", || mishap::stack_overflow()),
    ("driver-division-by-zero", || mishap::division_by_zero()),
    ("driver-hang-loop", || mishap::endless_loop()),
];
/// Faults of one boot: what goes through the network after the last one shows its repair.
const FAULTS: u64 = 24;
/// Shortest time between two faults: a driver that ran for 100 ms is healthy, and its next one
/// starts without delay.
const GAP_NS: u64 = 110_000_000;
/// Up to so much is added.
const GAP_SPREAD_NS: u64 = 40_000_000;
/// A fault comes before one of so many messages of a batch.
const MESSAGES: u64 = 6;

/// The faults of this life of net-uk, on the trusted part's side.
#[derive(Debug, Default)]
pub struct Faults {
    number: u64,
    /// When the next one is due, once there is traffic.
    due_ns: Option<u64>,
    /// When the batch began that was told to end the driver.
    ordered_ns: Option<u64>,
    batches: u64,
}

impl Faults {
    /// The words for a batch that begins now.
    pub fn order(&mut self, now_ns: u64, commands: &[Command]) -> [u32; WORDS] {
        self.batches += 1;
        let has_frames = commands.iter().any(|command| matches!(command, Command::Transmit(_)));
        if self.due_ns.is_none() && has_frames && self.number < FAULTS {
            // Spreads neighbouring numbers over the whole range (the multiplier of splitmix64).
            let spread = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            self.due_ns = Some(now_ns + GAP_NS + spread % GAP_SPREAD_NS);
        }
        self.ordered_ns = self.due_ns.filter(|due_ns| now_ns >= *due_ns).map(|_| now_ns);
        match self.ordered_ns {
            Some(_) => [self.kind() as u32 + 1, (self.batches % MESSAGES) as u32],
            None => [0, 0],
        }
    }

    fn kind(&self) -> usize {
        (self.number % KINDS.len() as u64) as usize
    }

    /// The driver died in this batch: the kind and the instant, if it was told to.
    pub fn struck(&mut self) -> Option<(&'static str, u64)> {
        let at_ns = self.ordered_ns.take()?;
        let (name, _) = KINDS[self.kind()];
        self.number += 1;
        self.due_ns = None;
        Some((name, at_ns))
    }
}

/// The driver's outlet, which ends it at the point that it was told.
#[derive(Debug)]
pub struct Failing<O> {
    outlet: O,
    kind: u32,
    messages: u32,
}

impl<O> Failing<O> {
    /// Reads the words of [`Faults::order`].
    pub fn new(outlet: O, [kind, messages]: [u32; WORDS]) -> Self {
        Self { outlet, kind, messages }
    }
}

impl<O: Outlet> Outlet for Failing<O> {
    fn put(&mut self, words: &[u32]) {
        if self.kind > 0 && self.messages == 0 {
            let (_, end) = KINDS[(self.kind - 1) as usize % KINDS.len()];
            end();
        }
        self.messages = self.messages.saturating_sub(1);
        self.outlet.put(words);
    }

    fn flush(&mut self) {
        self.outlet.flush();
    }
}
