//! The self-test: what a unikernel does when nobody gave it a unit to be.

use core::cell::Cell;
use core::fmt::Write;

use abi::{ShutdownReason, Xen};

use crate::cell::OneCpu;
use crate::console::{self, Console};
use crate::symbols::UNIKERNEL;
use crate::{Hypervisor, facts, pvh, tests};

/// A named test: what it found wrong, if anything. A panic or trap fails the whole run.
pub type Test = (&'static str, fn() -> Result<(), &'static str>);

/// Exit code (before QEMU's `v << 1 | 1`) of a passed self-test: 0x10, so QEMU returns 33.
pub const EXIT_PASSED: u8 = 0x10;
/// Exit code (before QEMU's `v << 1 | 1`) of a failed self-test: 0x11, so QEMU returns 35.
pub const EXIT_TESTS_FAILED: u8 = 0x11;

static FAILED: OneCpu<Cell<u32>> = OneCpu::new(Cell::new(0));
static COUNT: OneCpu<Cell<u32>> = OneCpu::new(Cell::new(0));

/// Runs all tests, the last ones those that end in a trap.
pub(crate) fn run() -> ! {
    let place = if console::is_bare() {
        "a bare machine"
    } else if facts::get().initial {
        "Xen, as the initial domain"
    } else {
        "Xen, as an ordinary domain"
    };
    let _ = writeln!(Console, "self-test on {place}");
    let on_xen: &[Test] = if console::is_bare() { &[] } else { tests::ON_XEN };
    for (name, test) in tests::EVERYWHERE.iter().chain(on_xen).chain(UNIKERNEL.tests) {
        report(name, test());
    }
    tests::provoke_trap(0)
}

/// Notes and prints the outcome of a test.
pub(crate) fn report(name: &str, outcome: Result<(), &'static str>) {
    COUNT.set(COUNT.get() + 1);
    match outcome {
        Ok(()) => {
            let _ = writeln!(Console, "  ok      {name}");
        }
        Err(reason) => {
            FAILED.set(FAILED.get() + 1);
            let _ = writeln!(Console, "  FAILED  {name}: {reason}");
        }
    }
}

/// Prints the summary and ends: power-off means passed, a crash means failed.
pub(crate) fn finish() -> ! {
    let (count, failed) = (COUNT.get(), FAILED.get());
    let passed = failed == 0;
    let verdict = if passed { "passed" } else { "failed" };
    let _ = writeln!(Console, "self-test {verdict}: {} of {count} ok", count - failed);
    let code = if passed { EXIT_PASSED } else { EXIT_TESTS_FAILED };
    if console::is_bare() {
        pvh::exit(code)
    }
    let hypervisor = Hypervisor::new();
    if facts::get().initial {
        hypervisor.machine_exit(code)
    }
    hypervisor.shutdown(if passed { ShutdownReason::PowerOff } else { ShutdownReason::Crash })
}
