//! Tests that run inside of the unikernel.

use crate::selftest::{self, Test};
use crate::traps;

/// Tests that need no hypervisor.
pub(crate) const EVERYWHERE: &[Test] = &[];
/// Tests of what Xen does for us.
pub(crate) const ON_XEN: &[Test] = &[];

/// Provokes the trap `index` and goes on behind it; after the last one ends the self-test.
pub(crate) fn provoke_trap(_index: u64) -> ! {
    traps::expect((3, after_breakpoint));
    // SAFETY: The handler goes on in `after_breakpoint`.
    unsafe { core::arch::asm!("int3") }
    selftest::report("breakpoint", Err("not taken"));
    selftest::finish()
}

extern "C" fn after_breakpoint(_: u64) -> ! {
    selftest::report("breakpoint", Ok(()));
    selftest::finish()
}
