//! The fabric: formats of the memory that domains share and that outlives each service.
//!
//! Every fabric page belongs to the orchestrator and has exactly one writer; everything read from a
//! page that another domain writes is copied out first and checked afterwards. `docs/FORMATS.md`
//! is the normative description of every byte, with golden vectors tested here.
//!
//! | module | what it holds | writer → reader |
//! |---|---|---|
//! | [`view`] | which region lies where, for whom, under which grant reference | computed by all |
//! | [`control`] | what a unit is told: epoch, rung, work, commands | orchestrator → unit |
//! | [`health`] | what a unit tells: state, progress, last recovery, panic | unit → orchestrator |
//! | [`kick`] | ids of connections with something to do, one ring per direction | both |
//! | [`message`] | operations and replies | both |
//! | [`keys`] | what the operator types for a guest | orchestrator → toolstack |
//! | [`log`] | text lines of a unit | unit → orchestrator |
//! | [`domains`] | the table of guests | orchestrator → all |
//! | [`record`] | one value that survives a crash at any store | one writer |
//! | [`epitaph`] | what is kept of each failure | orchestrator |
//! | [`archive`] | images of units and guests | image tool → orchestrator |
//!
//! **Two-way traffic is two pages.** A *half* is the part of a page with which one side of a
//! two-way ring speaks: its own outgoing ring and its read index for the other's. Writers and
//! readers of [`kick`] and [`message`] therefore take the same two arguments: `own`
//! (the half this side writes) and `peer` (the half the other side writes, read only).
//!
//! **Hostile peers.** No function here loops or copies more than its own bound, whatever the other
//! side's pages hold, nor panics because of them.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod archive;
pub mod checked;
pub mod control;
pub mod domains;
pub mod epitaph;
pub mod health;
pub mod keys;
pub mod kick;
pub mod log;
mod memory;
pub mod message;
mod part;
pub mod record;
pub mod text;
mod torn;
pub mod view;

pub use memory::{HeapMemory, SharedMemory};
pub use part::Part;
pub use torn::TornMemory;

/// Size of a page in bytes (x86).
pub const PAGE_SIZE: usize = 4096;

/// Boot epoch of one life of a unit: 1 for its first, one more after each recovery. It travels in
/// every message and record that crosses a restart, so that an answer to a former life is told
/// apart by comparison.
pub type Epoch = u32;
