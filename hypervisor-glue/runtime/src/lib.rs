//! The runtime of a PpVMM unikernel: boot, memory, events, grants and traps on stock Xen.
//!
//! A unikernel is a binary for `x86_64-unknown-none` whose crate root says
//!
//! ```text
//! #![cfg_attr(target_os = "none", no_std)]
//! #![no_main]
//! #![forbid(unsafe_code)]
//!
//! runtime::service!(start);
//!
//! fn start(boot: runtime::Boot) -> ! { … }
//! ```
//!
//! with a build script that includes `link.rs` of this package, and `test = false, doc = false,
//! bench = false` for the binary. The one ELF starts
//!
//! * as a PV domain made by PpVMM's builder: `start` runs;
//! * as Xen's initial domain: the orchestrator's `start` runs, a service runs its self-test;
//! * as an ordinary PV guest of a stock toolstack: self-test on the PV console; power-off means
//!   passed, a crash means failed;
//! * as an ordinary PVH guest: what [`guest!`] names runs, with a kernel's rights and no more;
//! * on a bare machine (`qemu-system-x86_64 -kernel`): self-test on the serial line, exit code by
//!   QEMU's `isa-debug-exit` (0xf4).
//!
//! Upcalls are masked everywhere but in [`abi::Xen::block`] and in the *long* calls of
//! [`abi::Control`]: there are no locks, and nothing is asynchronous.
//!
//! Code that is not trusted, such as a driver, runs in user mode ([`user::FaultDomain`]).
//!
//! On other targets the crate can only be checked, and its pure parts tested.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod boot;
mod cell;
mod clock;
mod console;
mod control;
mod device;
mod domctl;
mod events;
mod fabric_pages;
mod facts;
mod failure;
mod grants;
pub mod guest;
pub mod heap;
mod hypervisor;
mod io;
mod macros;
mod mapping;
pub mod mishap;
mod paging;
mod place;
mod pvh;
mod selftest;
mod shared_info;
mod small;
mod span;
mod survivor;
mod symbols;
mod tests;
mod timer;
mod traps;
mod upcall;
pub mod user;
mod vcpu;
mod window;

pub use boot::{Boot, Life, Unikernel};
pub use console::Console;
pub use device::{CopyDirection, DeviceRegisters, DmaMemory, GrantCopy};
pub use fabric_pages::{FabricPages, FabricRange};
pub use failure::FailureText;
pub use hypervisor::Hypervisor;
pub use mapping::{FabricMemory, Mapping};
pub use place::Place;
pub use selftest::{EXIT_PASSED, EXIT_TESTS_FAILED, Test};
pub use survivor::Survivor;
