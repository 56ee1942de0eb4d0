//! The Ethernet switch of net-uk: says where a frame goes, from its header alone.
//!
//! Ports are the NIC ([`Role::Uplink`]), guests' vifs and services ([`Role::Member`]). A member may
//! be bound to one address (then it can use no other as its source, nothing is learned from it, and
//! unknown addresses are not flooded to it), belong to a VLAN, and be limited in rate. Addresses
//! behind the uplink and unbound members are learned and forgotten after [`AGE_NS`].
//!
//! Everything is bounded: ports by [`MAX_PORTS`], learned addresses by [`MAX_LEARNED`] in all and
//! [`MAX_LEARNED_MEMBER`] per member. When a table is full, frames are flooded, not lost.
//! Frames between members never go to the uplink, nor back to where they came from.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod bucket;
mod ports;
mod switch;
mod table;

pub use bucket::{Rate, RateError};
pub use ports::{PortId, PortSet};
pub use switch::{
    Counters, PortConfig, PortError, Refusal, Role, Switch, TagChange, Targets, Vlan,
};

/// Ports of one switch: the NIC, tool-uk, and 254 vifs (128 guests with two each is more than one
/// host runs).
pub const MAX_PORTS: usize = 256;
/// Addresses learned in all: a large office network; a bridge of Linux holds as many.
pub const MAX_LEARNED: usize = 4096;
/// Addresses learned from one member without a bound address: enough for a nested host, too few to
/// drive out everybody else's.
pub const MAX_LEARNED_MEMBER: usize = 64;
/// An address not seen for so long is forgotten: 300 s (IEEE 802.1D table 7-5).
pub const AGE_NS: u64 = 300 * 1_000_000_000;
