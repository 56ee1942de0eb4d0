//! Booting stock Xen with our orchestrator in QEMU, and talking to it over the serial console.

pub mod console;
pub mod exit;
pub mod machine;
pub mod vm;

pub use console::{Line, Pattern, Record};
pub use exit::Outcome;
pub use machine::{Clock, ECHO, GATEWAY, Machine, Nic};
pub use vm::Vm;
