//! Ethernet frames as net-uk sees them: addresses, the headers it must understand, what is still to
//! be done to a frame ([`Offload`]), and the software that does it when a device or a frontend
//! cannot ([`checksum`], [`segment`]).
//!
//! Every function takes bytes that were copied out of shared memory; none panics on any content.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod checksum;
mod header;
mod mac;
pub mod segment;
mod transport;

pub use header::{ETHERNET, Header, VLAN_TAG};
pub use mac::Mac;
pub use transport::{Protocol, Transport};

/// Bytes from a frame's start that hold every header net-uk looks at: Ethernet with a tag (18),
/// IPv6 with some extension headers or IPv4 with all options (60), TCP with all options (60).
pub const HEADERS: usize = 192;

/// The longest frame a frontend can hand over (`XEN_NETIF_MAX_TX_SIZE`, netif.h).
pub const LONGEST: usize = 0xffff;

/// What is known, or still to be done, about a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing is known; the field is filled and is passed on as it is.
    #[default]
    Unknown,
    /// Somebody trusted has checked it.
    Valid,
    /// The field is not filled in (netif.h: `csum_blank`).
    Blank,
}

/// Which kind of large frame has to be cut (`XEN_NETIF_GSO_TYPE_*`, netif.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A frame that is longer than the link's and has to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Protocol to cut.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last; never zero.
    pub size: u16,
}

/// Work on a frame that its sender left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Whether the frame has to be cut, and how.
    pub gso: Option<Gso>,
}
