//! Builds domains: reads ELF images, lays out PV service domains and PVH guests, and says what has
//! to be written where.
//!
//! Everything here is pure: images are byte slices, the hypervisor is a value of
//! [`abi::Control`], memory of the new domain is [`fabric::SharedMemory`]. The PV path allocates
//! nothing and works in bounded steps, because the orchestrator has no heap and must look at its
//! events between any two of them.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod elf;
pub mod pv;
pub mod pvh;

#[cfg(test)]
mod testing;
