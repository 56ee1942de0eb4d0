//! Network backend for unmodified frontends (`xen/include/public/io/netif.h`, `ring.h`,
//! `xenbus.h`), as engines without I/O.
//!
//! | module | what it is |
//! |---|---|
//! | [`tx`] | what a guest sends: consume a packet, answer it when it has left |
//! | [`rx`] | what a guest receives: take buffers, respond, publish |
//! | [`journal`] | the private ring state, in memory that outlives the domain |
//! | [`packet`] | slots of one packet, copied once and checked |
//! | [`wire`] | the slots' bytes |
//! | [`xenbus`] | the connection's life, level-triggered, over XenStore keys |
//! | [`vif`] | what was negotiated, and its record |
//!
//! **What survives.** A request and a response share a slot of the ring, and what lies in the ring
//! belongs to the guest. So a consumed slot is copied into the journal before it is used, and the
//! journal alone says which requests are open. The order of stores is:
//!
//! 1. consume: slots into the journal, then `req_cons`; only then is the packet used;
//! 2. answer: the response's place into the journal, the response into the ring;
//! 3. publish: `rsp_prod` into the journal (this commits), then into the ring, then the event.
//!
//! A crash before the commit leaves the request open: it is done again. A crash after it leaves the
//! ring one store behind, which the next life makes up for before anything else. No request is
//! answered twice, and no grant is used after its answer was committed.
//!
//! **Hostile guests.** Each slot is read once; indices that cannot be, chains that do not end and
//! lengths that cannot be make the queue broken ([`Fatal`]): it consumes nothing more until the
//! frontend reconnects. Nothing here loops longer than a ring.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod journal;
pub mod packet;
mod ring;
pub mod rx;
pub mod tx;
pub mod vif;
pub mod wire;
pub mod xenbus;

#[cfg(test)]
#[path = "../../../hypervisor-glue/fabric/tests/golden/mod.rs"]
mod golden;

use abi::GrantRef;

pub use ring::Fatal;

/// Requests in one ring of one page, for both directions (ring.h: the largest power of two that
/// fits into 4,096 - 64 bytes of 12- and 8-byte slots).
pub const RING_SIZE: u32 = 256;
/// Slots a packet may have (`XEN_NETIF_NR_SLOTS_MIN`, netif.h).
pub const SLOTS_MAX: usize = 18;
/// A packet with more slots than [`SLOTS_MAX`] but no more than this is answered with an error;
/// with more, the frontend is broken. As in Linux, whose frontends once sent one too many.
pub const SLOTS_FATAL: usize = 20;
/// Extra slots in one packet: each type once.
pub const EXTRAS_MAX: usize = 4;
/// Bytes of a guest's page.
pub const PAGE: u32 = 4096;

/// Which way bytes are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest's page into our arena.
    FromGuest,
    /// From our arena into the guest's page.
    ToGuest,
}

/// One grant copy for the shell to execute (GNTTABOP_copy). Neither side crosses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Which way.
    pub direction: Direction,
    /// The guest's grant.
    pub grant: GrantRef,
    /// First byte within the granted page.
    pub guest_offset: u16,
    /// First byte within our arena.
    pub arena_offset: u32,
    /// Bytes.
    pub length: u16,
}
