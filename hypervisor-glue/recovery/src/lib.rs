//! Recovery policy: when a unit has failed, and what is done about it.
//!
//! Pure: events and time go in, a bounded list of actions comes out. No clock, no hypercall, no
//! allocation.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod policy;

pub use policy::Policy;
