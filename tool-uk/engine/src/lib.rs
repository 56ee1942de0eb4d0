//! The life of guests: from a description to a running domain with its XenStore nodes and its
//! console, through shutdown, reboot and crash, to its removal.
//!
//! [`Engine`] is a pure state machine. In: the time, outcomes of operations, answers of XenStore,
//! changes of the domain table. Out: [`Action`]s. It asks one thing at a time of each side, so what
//! is under way is always one small value.
//!
//! **A crash of tool-uk at any instant.** The journal says what was intended, before it is begun;
//! the list of domains says what is. A guest that runs is adopted, whatever the journal says; a
//! guest that has not run yet is destroyed and built again; a removal is finished. The engine of a
//! new life always begins there, on every rung of the recovery ladder.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod batch;
pub mod console;
mod create;
mod destroy;
mod engine;
mod journal;
mod machine;
mod nodes;
mod spec;
mod start;
mod task;

pub use engine::{Action, Engine};
pub use journal::{JOURNAL_KIND, MAX_JOURNAL};
pub use spec::{OnStop, Options, Spec};

#[cfg(test)]
mod tests;
