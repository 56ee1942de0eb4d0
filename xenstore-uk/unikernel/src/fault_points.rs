//! Faults at chosen points of this unit's own program, in builds with the feature `fault-points`
//! alone: each life ends itself between two stores to memory that survives it, or in the middle of
//! one of several words.
//!
//! Which store it is, and in which way the life ends, follows from the number of the life, so a
//! run can be repeated. The line of the log that tells of the fault is written by the dying life.

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Control, DomId, Port, ShutdownReason, Xen};
use fabric::log::{Level, LogWriter};
use fabric::{Epoch, SharedMemory};
use runtime::{Hypervisor, mishap};

use crate::Fabric;

/// A way to end.
type Ending = fn(&Hypervisor) -> !;

/// Ways to end, in turn.
const KINDS: [(&str, Ending); 8] = [
    ("crash-panic", |_| panic!("at a chosen point")),
    ("crash-wild-read", |_| mishap::wild_read()),
    ("crash-wild-write", |_| mishap::wild_write()),
    ("crash-undefined", |_| mishap::undefined_instruction()),
    ("crash-shutdown", |xen| xen.shutdown(ShutdownReason::Crash)),
    ("crash-stack-overflow", |_| overflow()),
    ("hang-loop", |_| turn_for_ever()),
    ("hang-no-progress", |xen| go_nowhere(xen)),
];
/// Stores that each life makes at least: some 2,000 requests, which take longer than the ladder
/// remembers a failure.
const STORES_MIN: u64 = 80_000;
/// The last of them is chosen among so many.
const STORES_SPREAD: u64 = 40_000;
/// A life with this number or a later one goes on: the script that is running shall see its end.
const LAST_LIFE: Epoch = 65;

/// Stores until this life ends.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The place in [`KINDS`] of the way in which it ends.
static KIND: AtomicU64 = AtomicU64::new(0);

/// Chooses the end of the life `epoch`.
pub fn arm(epoch: Epoch) {
    // Spreads neighbouring numbers over the whole range (the multiplier of splitmix64).
    let spread = u64::from(epoch).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let stores = if epoch < LAST_LIFE { STORES_MIN + spread % STORES_SPREAD } else { u64::MAX };
    KIND.store(u64::from(epoch) % KINDS.len() as u64, Ordering::Relaxed);
    LEFT.store(stores, Ordering::Relaxed);
}

/// Memory that survives this life, which may end at any store to it.
#[derive(Clone, Debug)]
pub struct Memory {
    memory: Fabric,
    log: Fabric,
    xen: Hypervisor,
}

impl Memory {
    /// `memory`, with the log for last words.
    pub fn new(memory: Fabric, log: Fabric, xen: Hypervisor) -> Self {
        Self { memory, log, xen }
    }

    /// How many of the next `wanted` stores still happen: fewer than all of them are the last.
    fn take(wanted: u64) -> u64 {
        let left = LEFT.load(Ordering::Relaxed);
        LEFT.store(left.saturating_sub(wanted), Ordering::Relaxed);
        left.min(wanted)
    }

    fn end(&self) -> ! {
        let (name, end) = KINDS[KIND.load(Ordering::Relaxed) as usize];
        let (at_ns, cpu_time_ns) = (self.xen.now_ns(), self.xen.schedule().cpu_time_ns);
        LogWriter::new(self.log).line(
            at_ns,
            Level::Information,
            format_args!(
                "@{{\"event\":\"injected\",\"kind\":\"{name}\",\"at\":{at_ns},\
                 \"cpu\":{cpu_time_ns}}}"
            ),
        );
        end(&self.xen)
    }

    fn store(&self, store: impl FnOnce()) {
        if Self::take(1) == 0 {
            self.end();
        }
        store();
    }
}

impl SharedMemory for Memory {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        /// The processor stores words; what is cut off is cut between two of them.
        const WORD: usize = 8;
        let words = from.len().div_ceil(WORD) as u64;
        let done = Self::take(words);
        if done == words {
            return self.memory.write(offset, from);
        }
        self.memory.write(offset, &from[..done as usize * WORD]);
        self.end()
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.store(|| self.memory.fill(offset, len, value));
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.store(|| self.memory.store_u32(offset, value));
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        self.store(|| self.memory.store_u64(offset, value));
    }
}

/// Uses up the stack.
fn overflow() -> ! {
    /// 16 KiB: few calls fill the stack.
    const FRAME_WORDS: usize = 2_048;
    fn deeper(depth: u64) -> u64 {
        // Room that nobody fills: the fault is the end of the stack, not the way there.
        let mut frame = heapless::Vec::<u64, FRAME_WORDS>::new();
        let _ = frame.push(depth);
        black_box(&mut frame);
        if depth == u64::MAX { 0 } else { deeper(depth + 1) + frame[0] }
    }
    panic!("the stack has no end: {}", deeper(0))
}

/// Computes nothing, without end.
fn turn_for_ever() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Asks Xen the same thing again and again: it looks busy, and gets nowhere.
fn go_nowhere(xen: &Hypervisor) -> ! {
    loop {
        black_box(xen.port_status(DomId::SELF, Port(1)).is_ok());
    }
}
