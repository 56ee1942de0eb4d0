//! The fabric: formats of the memory that domains share and that outlives each service.
//!
//! Every fabric page belongs to the orchestrator and has exactly one writer; everything read from a
//! page that another domain writes is copied out first and checked afterwards.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod memory;

pub use memory::{HeapMemory, SharedMemory};
