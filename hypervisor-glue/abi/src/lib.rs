//! Xen's interface: the types, structures and hypercalls of its public headers, and the traits
//! ([`Xen`], [`Control`]) through which units see it.
//!
//! Shells receive the hypervisor as a value of these traits, so that a test can hold several fake
//! ones at once; engines never see it. `runtime` implements the traits on real Xen, `fake-xen` in
//! host tests.
#![no_std]

extern crate alloc;

mod control;
pub mod hypercall;
pub mod layout;
mod types;
mod xen;

pub use control::{
    Control, CreateDomain, DomainInfo, DomainState, HvmEntry, HvmParam, PvEntry, Registers,
    Schedule,
};
pub use types::{
    Access, DomId, Frame, GrantRef, PAGE_SIZE, PciAddress, Port, PortStatus, ShutdownReason, Virq,
    Width, XenError,
};
pub use xen::Xen;
