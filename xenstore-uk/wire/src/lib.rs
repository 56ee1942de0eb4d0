//! The XenStore wire protocol: what the bytes between a client and the store mean.
//!
//! Sources: Xen's public header `io/xs_wire.h` and `docs/misc/xenstore.txt`,
//! `docs/misc/xenstore-ring.txt`. Golden vectors of every format are in `tests/golden.rs`.
//!
//! Parsing takes two steps: a view checks the length of the bytes, then a small value is made
//! from it. Nothing here can panic on any bytes: every function takes slices of any length and
//! content and answers `None` or an error for what is malformed. Unknown operations keep their
//! number ([`Operation::Unknown`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod errno;
mod header;
mod operation;
mod permission;
pub mod ring;
pub mod text;

pub use errno::Errno;
pub use header::{HEADER_LEN, Header, PayloadTooLong};
pub use operation::Operation;
pub use permission::{Access, Permission};

/// Longest payload of a message in either direction, in bytes. A client that announces more has
/// lost its connection (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;

/// Longest whole message, in bytes.
pub const MESSAGE_MAX: usize = HEADER_LEN + PAYLOAD_MAX;

/// Longest absolute path, in bytes without the final NUL (`XENSTORE_ABS_PATH_MAX`).
pub const ABSOLUTE_PATH_MAX: usize = 3072;

/// Longest relative path, in bytes without the final NUL (`XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_PATH_MAX: usize = 2048;

/// The identity that stands for "this domain" where a domain id is expected (`DOMID_SELF`).
pub const DOMID_SELF: u16 = 0x7ff0;

/// The identity that stands for every domain in a permission list (`DOMID_ANY`).
pub const DOMID_ANY: u16 = 0x7ff5;

/// The first domain id that no ordinary domain can have (`DOMID_FIRST_RESERVED`).
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
