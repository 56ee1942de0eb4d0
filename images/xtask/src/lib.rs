//! Everything behind `cargo xtask`: set-up, images, QEMU, checks, experiments and their reports.
#![forbid(unsafe_code)]

pub mod archive;
pub mod build;
pub mod check;
pub mod debian;
pub mod elf;
pub mod experiment;
pub mod faults;
pub mod fuzz;
pub mod guest;
pub mod hosted;
pub mod image;
pub mod packages;
pub mod paths;
pub mod peer;
pub mod process;
pub mod progress;
pub mod qemu;
pub mod refusals;
pub mod report;
pub mod run;
pub mod setup;
pub mod sim;
pub mod spec;
pub mod suite;
pub mod test;
pub mod tidy;
pub mod timeline;
