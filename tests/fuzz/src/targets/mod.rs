//! The targets and their seeds.

mod api;
mod archive;
mod console;
mod driver;
mod elf;
mod pages;
mod raft_messages;
mod raft_storage;
mod rings;
mod server;
mod slots;
mod snapshot;
mod wire;

/// One function of bytes that must not panic.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs that reach deep: where the fuzzer begins.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that inputs are made of.
    pub words: &'static [&'static [u8]],
}

/// All targets.
pub const TARGETS: [Target; 13] = [
    wire::TARGET,
    server::TARGET,
    slots::TARGET,
    snapshot::TARGET,
    pages::TARGET,
    rings::TARGET,
    archive::TARGET,
    elf::TARGET,
    api::TARGET,
    raft_messages::TARGET,
    raft_storage::TARGET,
    console::TARGET,
    driver::TARGET,
];

/// The target with this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
