//! Drivers for Intel 82574L ([`e1000e`]) and virtio-net ([`virtio`]), and the trusted part beside
//! them.
//!
//! **Two sides of one wall.** A driver runs in a fault domain and is never believed. It reaches the
//! device through [`Machine`]: registers, and *proposals* for descriptors that name arena offsets,
//! not addresses. The trusted part ([`trusted::Rings`]) owns the descriptor rings: it checks each
//! proposal against the zone of the arena meant for that direction, translates it, writes the
//! descriptor, moves the device's index, and keeps the registers that hold addresses to itself
//! ([`trusted::Format::may_write`]). What a driver says about finished work is checked by
//! `shadow-driver`.
//!
//! **One interface.** [`Command`] and [`Event`] are the messages between `shadow-driver` and any
//! [`Driver`]; [`run`] executes a batch of commands and harvests, which is what one entry into the
//! fault domain does.
//!
//! **What passes the wall** between them, when there is one, are words ([`wire`], [`wall`]).
//!
//! `virtio-drivers` was considered for transport and queues: its queue owns its rings and takes
//! buffers by reference through an `unsafe` hook, which puts ring memory on the wrong side of this
//! wall. The split queue below is smaller than the adapter would be.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod any;
pub mod e1000e;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod interface;
mod machine;
#[cfg(test)]
mod tests;
pub mod trusted;
pub mod virtio;
pub mod wall;
pub mod wire;

pub use any::AnyDriver;
pub(crate) use interface::run_each;
pub use interface::{
    BufferId, Command, Config, Cut, Driver, Event, Failure, Features, FrameId, GROUPS_MAX,
    RxBuffer, SEGMENTS_MAX, Segment, Segments, Start, TsoStyle, TxFrame, TxOffload, run,
};
pub use machine::{Descriptor, Machine, Registers, RingId, Window};

/// Descriptors per ring, for both devices: 256 × 16 bytes is one page, and more than a millisecond
/// of full frames at 1 Gbit/s.
pub const RING_SIZE: u16 = 256;
