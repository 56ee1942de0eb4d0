//! The operations that tool-uk asks of the orchestrator.
//!
//! A [`Request`] carries one [`Operation`], a [`Reply`] its [`Outcome`]; both carry the asking
//! life's epoch and a sequence number, so that an answer to a former life is recognised. Requests
//! are executed in order, one at a time. Each operation is *idempotent*: executed again with the
//! same arguments, after a crash on either side, it reaches the same state and the same outcome.
//!
//! The encoding is postcard behind one version byte; golden vectors in the tests hold it still.
//! Everything received is first decoded, then checked by [`validate`], which needs no hypervisor:
//! a request names guests only, never a service or the orchestrator, and every length is bounded.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod message;
mod outcome;
mod validate;

pub use message::{
    CodecError, Grant, GuestId, GuestLimits, MAX_MESSAGE, Operation, Param, Power, Reply, Request,
    VERSION,
};
pub use outcome::{Failure, GuestState, GuestStatus, Outcome, Statuses};
pub use validate::{Limits, Refusal, validate};

/// Pages per [`Operation::Populate`]: one 2 MiB extent, 0.6 ms of Xen's time.
pub const MAX_POPULATE_PAGES: u32 = 512;
/// Bytes per [`Operation::Load`] and [`Operation::Zero`]: 2 MiB, which the orchestrator writes in
/// short steps.
pub const MAX_LOAD_LEN: u32 = 2 << 20;
/// Bytes that travel inside of a message: two messages fit into a page of the ring.
pub const MAX_BYTES: usize = 1900;
/// Bytes of an archive entry's name.
pub const MAX_NAME: usize = 32;
/// Grants per [`Operation::SeedGrants`]: the reserved entries of a grant table (grant_table.h).
pub const MAX_GRANTS: usize = 8;
/// Guests per [`Outcome::Guests`]: the orchestrator keeps an outcome on its stack.
pub const MAX_STATUSES: usize = 8;

#[cfg(test)]
mod tests;
