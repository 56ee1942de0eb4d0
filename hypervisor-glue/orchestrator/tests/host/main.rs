//! The orchestrator on a fake Xen: what the services see, what guests see, what Xen is told.

mod guests;
mod own;
mod units;
mod world;
