//! The orchestrator on a fake Xen: what the services see, what guests see, what Xen is told.
#![allow(clippy::unwrap_used, reason = "in a test it fails the test")]
mod console;
mod guests;
mod injecting;
mod nic;
mod own;
mod units;
mod world;
