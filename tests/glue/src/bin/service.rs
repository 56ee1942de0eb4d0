//! The service of the test.
#![cfg_attr(target_os = "none", no_std)]
#![no_main]
#![forbid(unsafe_code)]

use abi::{ShutdownReason, Xen};
use runtime::Boot;

runtime::service!(start);

fn start(boot: Boot) -> ! {
    boot.hypervisor().shutdown(ShutdownReason::PowerOff)
}
