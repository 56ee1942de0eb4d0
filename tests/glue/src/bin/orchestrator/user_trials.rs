//! User mode as a fault domain: entered, left, and whatever its program does, the service goes on.

use core::fmt::Write;

use glue_test::{command, deed, ending};
use runtime::Console;

use crate::bench::Bench;
use crate::trials::spin;

/// A page fault.
const FAULT: u64 = ending::TRAP + 14;
/// Where `mishap` finds nothing.
const NOWHERE: u64 = 0x5bad_0000_0000;
/// The program's range of addresses, in which the page below its stack comes first.
const RANGE: u64 = 512 << 20;
const GUARD_END: u64 = RANGE + 4096;
/// Where all kernel memory of the service lies.
const KERNEL_END: u64 = 4 << 20;
/// Xen's list of machine frames.
const MACHINE_FRAMES: u64 = 0xffff_8000_0000_0000;
/// How late an endless loop may be noticed.
const ENDLESS_NS: u64 = 2_000_000;
/// How late a trap may be noticed.
const TRAP_NS: u64 = 100_000;

/// A deed that ends the program.
struct Misdeed {
    name: &'static str,
    what: u32,
    ending: u64,
    /// Where the fault is.
    at: core::ops::Range<u64>,
}

const fn misdeed(name: &'static str, what: u32, ending: u64, at: core::ops::Range<u64>) -> Misdeed {
    Misdeed { name, what, ending, at }
}

const ANYWHERE: core::ops::Range<u64> = 0..u64::MAX;
const KERNEL: core::ops::Range<u64> = 4096..KERNEL_END;

const MISDEEDS: [Misdeed; 15] = [
    misdeed("panic", deed::PANIC, ending::PANICKED, ANYWHERE),
    misdeed("wild read", deed::WILD_READ, FAULT, NOWHERE..NOWHERE + 8),
    misdeed("wild write", deed::WILD_WRITE, FAULT, NOWHERE..NOWHERE + 8),
    misdeed("wild jump", deed::WILD_JUMP, FAULT, NOWHERE..NOWHERE + 8),
    misdeed("undefined instruction", deed::UNDEFINED, ending::TRAP + 6, KERNEL),
    misdeed("stack overflow", deed::OVERFLOW, FAULT, RANGE..GUARD_END),
    misdeed("division by zero", deed::DIVIDE, ending::TRAP, KERNEL),
    misdeed("endless loop", deed::LOOP, ending::ENDLESS, KERNEL),
    misdeed("read kernel memory", deed::READ_KERNEL, FAULT, KERNEL),
    misdeed("write kernel memory", deed::WRITE_KERNEL, FAULT, KERNEL),
    misdeed("read machine frames", deed::READ_MACHINE_FRAMES, FAULT, MACHINE_FRAMES..u64::MAX),
    misdeed("hypercall", deed::HYPERCALL, ending::CALLED, ANYWHERE),
    misdeed("allocate", deed::ALLOCATE, FAULT, KERNEL),
    misdeed("write what it may look at", deed::WRITE_VIEW, FAULT, RANGE..RANGE + (2 << 20)),
    misdeed("jump to the entry", deed::ENTRY, FAULT, KERNEL),
];

/// All trials, in lives of every kind: page tables of a former life are taken back.
pub fn all(bench: &mut Bench) {
    works(bench);
    let count = bench.ask(command::COUNT, 0, 0);
    for (number, misdeed) in MISDEEDS.iter().enumerate() {
        try_misdeed(bench, misdeed);
        assert_eq!(bench.ask(command::COUNT, 0, 0), count + number as u64 + 1, "the same life");
    }
    for rung in [1, 2, 1] {
        bench.reset(rung);
        works(bench);
    }
    // A life that ends while user mode runs.
    bench.tell(command::USER, deed::LOOP.into(), 0);
    spin(bench, 300_000);
    bench.withdraw();
    bench.reset(1);
    works(bench);
}

fn works(bench: &Bench) {
    let enter = |what: u32, with| bench.ask(command::USER, what.into(), with);
    assert_eq!((enter(deed::ADD, 5), enter(deed::ADD, 6)), (5, 11), "its state is kept");
    let first_ns = bench.ask(command::USER_NS, 0, 0);
    for words in [1, 4095, 4096, 20_000] {
        let arrived = enter(deed::PUT, words);
        let address = bench.ask(command::USER_ADDRESS, 0, 0);
        assert_eq!(arrived, words, "words in order; the last death at {address:#x}");
    }
    assert_eq!(enter(deed::READ_VIEW, 0), 0x7365_656e);
    assert_eq!(enter(deed::ADD, 7), 18);
    let _ = writeln!(Console, "user mode: entered and left in {first_ns} ns");
}

fn try_misdeed(bench: &Bench, misdeed: &Misdeed) {
    let Misdeed { name, what, ending, at } = misdeed;
    let ended = bench.ask(command::USER, (*what).into(), 0);
    let took_ns = bench.ask(command::USER_NS, 0, 0);
    let address = bench.ask(command::USER_ADDRESS, 0, 0);
    assert_eq!(ended, *ending, "{name}: {ended:#x}");
    assert!(at.contains(&address), "{name}: at {address:#x}");
    assert_eq!(bench.ask(command::KERNEL_WORD, 0, 0), 1, "{name}: the kernel part is untouched");
    let most_ns = if *ending == ending::ENDLESS { ENDLESS_NS } else { TRAP_NS };
    assert!(took_ns <= most_ns, "{name}: noticed after {took_ns} ns");
    assert_eq!(bench.ask(command::USER, deed::ADD.into(), 3), 3, "{name}: a fresh program");
    let _ = writeln!(Console, "user mode: {name} contained in {took_ns} ns, at {address:#x}");
}
