//! A unit's end of its XenStore connection: requests ([`Call`]), messages out of a byte stream
//! ([`Framer`]), and the connection over two pages of the fabric ([`Connection`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod call;
mod connection;
mod framer;

pub use call::{Call, Verdict};
pub use connection::{Connection, Said};
pub use framer::{Framer, LostFrame, StoreMessage};
