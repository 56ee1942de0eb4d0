//! The XenStore engine, the connection layer and their durable form: everything of a XenStore
//! server but the hypervisor. No clock, no hypercall, no global: time is an argument, memory that
//! others see is a [`fabric::SharedMemory`], what is to be done outside comes back as actions.
//!
//! # How a shell drives it
//!
//! ```text
//! start     let (server, report) = Server::start(config, slots, areas);   // first life or not
//!           for each service ring of the system description:
//!               let client = server.open(domid)?;          // the same number in every life
//!           for each connection of server.connections():
//!               map its ring, bind its channel, then server.attached(client, &ring)
//!                                             or  server.attach_failed(client)
//! loop      for each kicked slot:                 server.kick(client)
//!           for each change in the domain table:  server.domain_shut_down(domid)
//!                                                 server.domain_gone(domid)
//!           while let Some(client) = server.next_ready(now_ns) {
//!               let progress = server.serve(client, &ring_of(client), now_ns);
//!               if progress.notify { notify the client's event channel }
//!               if let Some(fault) = progress.fault { panic: memory is damaged, reload }
//!               while let Some(action) = server.next_action() { … }
//!           }
//!           server.idle_step(now_ns)  // some microseconds of scrubbing and sweeping
//!           wait for an event; no longer than server.next_deadline(now_ns)
//! ```
//!
//! * [`Server::serve`] executes at most one request and never blocks, so no connection starves
//!   another: the server keeps its own round-robin queue. A kick for a connection that has nothing
//!   to say costs little and harms nothing; a lost kick is the shell's loss, so after a restart
//!   every connection counts as kicked.
//! * The reply to INTRODUCE is held back until the shell has called [`Server::attached`] or
//!   [`Server::attach_failed`] for the [`Action::Connect`] or [`Action::Rebind`] that it caused:
//!   a guest may be started as soon as its toolstack has the reply.
//! * **Memory**: `slots` and `areas` are written by this server alone and outlive it. `areas` has
//!   [`AREA_LEN`] bytes per connection. Give `slots` about two slots ([`SLOT_LEN`] bytes) per node
//!   and [`persist::RESERVED_SLOTS`] more.
//! * **After a crash** with memory kept (microreset): if [`Server::is_consistent`] says so, call
//!   [`Server::resume`] and go on; else, and after a microreboot or rebuild,
//!   [`Server::start_indexed`] goes on from what was committed: by an index in memory that the
//!   crash left as it was, or, where there is none, by reading every slot ([`Server::start`]). All
//!   need every ring attached again. Watches, domains, limits and the exactly-once bookkeeping
//!   survive; open transactions survive `resume` alone, and end in EAGAIN after a start.
//! * A request that was being executed in [`ATTEMPTS_MAX`] crashes is answered EIO, and counted.
//! * [`State`] is the deterministic part: [`State::apply`] is a function of state and request.
//!   Reading rings, sending replies and events, and keeping records is [`Server`]'s.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod body;
mod checksum;
mod codec;
mod command;
mod connection;
mod dir;
mod domain;
mod effects;
mod node;
mod ops;
pub mod path;
pub mod persist;
mod pulse;
mod quota;
mod request;
mod server;
mod state;
mod transaction;
mod tree;
mod watch;

#[cfg(test)]
#[path = "../../../hypervisor-glue/fabric/tests/golden/mod.rs"]
mod golden;

use alloc::vec::Vec;

pub use connection::{AREA_LEN, EVENTS_LEN, Ring};
pub use domain::{Client, Domain, Introduction, Origin};
pub use effects::{Action, Effects, Kind};
pub use persist::{LoadReport, SLOT_LEN};
pub use quota::{Limits, Quota, Reports, Strength};
pub use request::{Reply, Request};
pub use server::{
    ATTEMPTS_MAX, ConnectionInfo, ENTRY_MAX, Index, Overlooked, Progress, Proposal, RestoreError,
    Server, Snapshot, StartReport, Stats,
};
pub use state::{CLIENTS_MAX, State};
pub use tree::{Descend, Found, Tree};
pub use watch::Match;

/// What a store is told when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// A random number: the key of a new store's checksums, and of the order inside directories.
    pub key: u64,
    /// The domain that owns the root.
    pub owner: u16,
    /// Domains that may do everything: the one that runs the toolstack.
    pub privileged: Vec<u16>,
    /// Most connections; `areas` must have [`AREA_LEN`] bytes for each.
    pub clients: usize,
    /// Ring features that domains are offered (`wire::ring::FEATURE_*`).
    pub features: u32,
}

impl Config {
    /// The usual store: domain 0 owns the root, all features are offered.
    pub fn new(key: u64, privileged: &[u16], clients: usize) -> Self {
        use wire::ring::{
            FEATURE_DOMID_ANY, FEATURE_ERROR, FEATURE_RECONNECTION, FEATURE_WATCH_DEPTH,
        };
        Self {
            key,
            owner: 0,
            privileged: privileged.to_vec(),
            clients,
            features: FEATURE_RECONNECTION
                | FEATURE_ERROR
                | FEATURE_WATCH_DEPTH
                | FEATURE_DOMID_ANY,
        }
    }
}

/// Damage that was found in memory. What it would have changed has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node in RAM is not what was written: start again from the slots.
    Node,
    /// What is remembered of a connection is not what was written: start again from its area.
    Connection,
}
