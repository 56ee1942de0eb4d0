//! The frame path of net-uk: joins netback, switch and shadow driver, and owns the buffers.
//!
//! No I/O here. One round of the shell is:
//!
//! 1. [`Plane::collect`]: what grant copies are to be made (frames out of and into guests);
//! 2. the shell executes them in one batch (GNTTABOP_copy);
//! 3. [`Plane::copied`]: answers, commits, publishes; says which ports to notify;
//! 4. [`Plane::enter`]: a batch for the driver; the shell runs it in the fault domain;
//! 5. [`Plane::report`]: what the driver said.
//!
//! **A guest's frame is answered only when it has left**: when the device says it is sent, or the
//! receiving guest's copy is made and committed. Until then its bytes are in the guest's own pages,
//! so that a restart of the whole domain copies them again and loses nothing, whatever became of
//! the arena.
//!
//! **Nothing is dropped on the way to the NIC.** Frames wait, in order, in the shadow and in front
//! of it; their number is bounded by the arena's pages, and when those run out no more frames are
//! taken from the rings: the guests wait. Towards a guest that posts no buffers at most
//! [`QUEUED_MAX`] frames per queue wait for at most [`STALE_NS`]; what is dropped is counted. Such
//! a guest keeps the senders' requests for [`HOLD_NS`] at most.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod egress;
mod frames;
mod ingress;
mod nic;
mod plane;
mod soft;
#[cfg(test)]
mod tests;

pub use frames::FrameKey;
pub use plane::{Counters, Job, Notify, Plane, Queue, VifError, VifSetup, Wiring};

use switch::PortId;

/// The NIC's port of the switch.
pub const NIC: PortId = PortId(0);
/// Frames that wait for one queue of a guest: half a ring of full frames.
pub const QUEUED_MAX: usize = 128;
/// A frame that has waited so long for a guest's buffers keeps its sender's request open no longer:
/// 20 ms, more than a restart of net-uk takes. From then on only the arena has it.
pub const HOLD_NS: u64 = 20_000_000;
/// A frame that has waited so long for a guest's buffers is dropped: 10 s, as Linux does.
pub const STALE_NS: u64 = 10_000_000_000;
/// Packets taken from one queue per round, so that each queue has its turn.
pub const BUDGET: usize = 64;
/// Pages that guests' frames never take: for frames cut or tagged in software. One large frame of
/// 64 KiB becomes 45 frames.
pub const RESERVE_PAGES: usize = 64;
