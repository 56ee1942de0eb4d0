//! The initial domain of the test: builds the service and a PVH guest, and tries every rung.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod bench;
mod trials;
mod user_trials;

use core::fmt::Write;

use runtime::{Boot, Console, Life};

runtime::orchestrator!(start, fabric_pages = glue_test::PAGES);

fn start(boot: Boot) -> ! {
    let xen = boot.hypervisor();
    xen.set_recovery(start);
    if boot.life() == Life::First {
        trials::first(boot)
    }
    let failure = boot.failure().expect("a later life has a reason");
    let _ = writeln!(Console, "recovered from: {}", failure.as_str());
    trials::recovered(boot)
}
