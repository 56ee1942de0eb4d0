//! The shadow driver: whoever sends and receives talks to the shadow; the shadow talks to a NIC
//! driver that may die at any moment, and hides that it did.
//!
//! It does no I/O. The shell asks for a batch of commands ([`Shadow::batch`]), enters the driver's
//! fault domain with it, and hands back what the driver reported ([`Shadow::report`]). Everything
//! the driver says is checked against what the shadow knows; what cannot be true ends its life.
//! What the shadow holds:
//!
//! - the device's whole set-up ([`drivers::Config`]), in two checked copies: replaying the
//!   configuration is starting with it;
//! - every frame from [`Shadow::send`] until the device has said that it is sent, in order, each
//!   with a record in memory that outlives the domain. A frame may be sent twice; it is never lost
//!   here, and first appearances keep their order;
//! - every receive buffer the driver has.
//!
//! **When the driver fails** ([`Outcome::Failed`], or the shell saw it crash and called
//! [`Shadow::failed`]): the shell stops the device (`drivers::trusted`), hands over the frames
//! found in its ring ([`Shadow::salvaged`]), makes a fresh driver and calls [`Shadow::restart`].
//! The next batches start it with the configuration, post the buffers, send the frames again.
//! Meanwhile frames are accepted until the stated bound is full; only then one is refused, and
//! counted.
//!
//! **When the whole domain restarts**, [`Shadow::recover`] finds configuration and frames. Who has
//! the frames' bytes elsewhere (netback: in the guest's own pages) lets the shadow forget them and
//! sends them anew; the arena need not be trusted then.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod durable;
mod receive;
mod shadow;
mod transmit;
mod watch;

#[cfg(test)]
#[path = "../../hypervisor-glue/fabric/tests/golden/mod.rs"]
mod golden;

pub use durable::{CONFIG_BYTES, FRAME_BYTES, bytes_needed};
pub use shadow::{Cause, Counters, Outcome, Phase, Recovered, Shadow};
pub use transmit::{SendError, Token};
pub use watch::Advice;

/// The driver is entered at least this often while the device holds frames: a lost interrupt costs
/// no more than this.
pub const POLL_NS: u64 = 500_000;
/// A device that holds frames and has sent none of them for so long is stuck. A full ring of full
/// frames takes 3 ms at 1 Gbit/s, one of them 12 µs.
pub const STUCK_NS: u64 = 1_500_000;
/// A start that is not done after so long has failed: resets take far less than 1 ms.
pub const START_NS: u64 = 5_000_000;
/// A driver that has run for so long is healthy: its next failure is repaired without delay.
pub const HEALTHY_NS: u64 = 100_000_000;
/// First delay before a restart that follows another one too quickly; doubles each time.
pub const BACK_OFF_NS: u64 = 1_000_000;
/// The longest such delay.
pub const BACK_OFF_MAX_NS: u64 = 1_000_000_000;
/// So many interrupts in a row without any result are a storm: the line is masked.
pub const STORM: u32 = 64;
/// A masked line is tried again after this time; until then the device is polled.
pub const STORM_REST_NS: u64 = 100_000_000;
