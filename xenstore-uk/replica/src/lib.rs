//! One of several replicas of the XenStore: the server of `store` behind the consensus of `raft`.
//! Pure: time comes in as an argument; rings, messages and what is to be done outside are the
//! caller's ([`Host`]).
//!
//! # How a shell drives it
//!
//! ```text
//! start    let replica = Replica::start(&setup, places, now_ns);   // or replica.resume(epoch)
//! loop     replica.server().kick(client)                  for each kicked connection
//!          let round = replica.round(now_ns, relay, &mut host);
//!          panic if round.fault; unless round.more, tell whoever waits, then
//!          let idle = replica.idle(now_ns);
//!          panic if idle.fault; wait, at most until round.wake_at_ns and idle.wake_at_ns
//! ```
//!
//! `relay` is the orchestrator's word: the epoch of the relay, and whether it names this replica.
//! A replica that is named campaigns, and serves as soon as it leads and knows everything that was
//! committed before. The orchestrator has stopped the former leader before it names another one:
//! that is what makes reads from the leader's own memory linearizable, and two writers on one
//! ring impossible.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod alone;
mod machine;
mod member;
mod round;

use alloc::vec::Vec;
use core::cell::Cell;

use fabric::{Epoch, SharedMemory};
use raft::{Birth, Damage, Node, Settings, Status};
use store::{Config, Index, Server, StartReport};

pub use alone::Alone;
use machine::Machine;
pub use member::Member;
pub use round::{Host, Idle, Relay, Round};

/// Who this replica is, and what its store is told.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its number, from 1.
    pub replica: u8,
    /// Replicas in all.
    pub replicas: u8,
    /// Its life.
    pub epoch: Epoch,
    /// What its former lives kept is wrong: the leader brings it up to date.
    pub is_distrusted: bool,
    /// The same for all replicas.
    pub config: Config,
    /// Domains of the services that have a connection from the beginning.
    pub services: Vec<u16>,
}

/// Memory that outlives a life. The replica alone writes all but `others`.
#[derive(Clone, Debug)]
pub struct Places<M, A, L> {
    /// The durable form of the state.
    pub slots: M,
    /// Where everything lies in the slots.
    pub index: Index<M>,
    /// What is under way on each connection while this replica leads.
    pub areas: A,
    /// The areas of the other replicas.
    pub others: Vec<A>,
    /// Term, vote and log.
    pub log: L,
}

/// What a start found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In the slots.
    pub store: StartReport,
    /// Term, vote or log were lost: the replica is a new member, which the leader brings up to
    /// date.
    pub is_newcomer: bool,
}

/// A replica.
#[derive(Debug)]
pub struct Replica<M, A, L> {
    node: Node<L>,
    machine: Machine<M, A>,
    setup: Setup,
    others: Vec<A>,
    log: L,
    /// Epoch of the relay while it names this replica, else 0.
    relay_epoch: u64,
    /// When to campaign, while this replica is named and does not lead.
    campaign_at_ns: Option<u64>,
    /// Time for that campaign, in ns.
    campaign_ns: u64,
    /// Term in which the server was promoted.
    promoted: u64,
    message: Vec<u8>,
    /// Whether it has begun to serve and has not answered yet.
    is_new: bool,
    /// Entries that the present round may still execute.
    entries_left: usize,
    /// Whether the log had room for all that the server wanted in the last round.
    has_room: bool,
    /// Whether a change of anything but the server has begun and not ended.
    busy: Cell<bool>,
    damage: Option<Damage>,
}

impl<M: SharedMemory + Clone, A: SharedMemory, L: SharedMemory + Clone> Replica<M, A, L> {
    /// Reads a former life's state back, or begins a new one.
    pub fn start(setup: Setup, places: Places<M, A, L>, now_ns: u64) -> (Self, Found)
    where
        A: Clone,
    {
        let Places { slots, index, areas, others, log } = places;
        let settings = settings(&setup);
        let open = || {
            let (slots, areas, index) = (slots.clone(), areas.clone(), index.clone());
            Server::join(&setup.config, slots, areas, index, &setup.services)
        };
        let (mut server, store) = open();
        let mut found = Found { store, is_newcomer: false };
        let node = match Node::open(log.clone(), settings, server.applied()) {
            Ok(mut node) => {
                let is_damaged = store.load.lost_records + store.load.missing_slots > 0;
                if is_damaged || setup.is_distrusted {
                    node.abandon_machine(now_ns);
                }
                node
            }
            Err(_) => {
                let birth = if setup.epoch == 1 { Birth::Founder } else { Birth::Newcomer };
                found.is_newcomer = birth == Birth::Newcomer;
                if !store.is_new {
                    slots.fill(0, slots.len() / 8 * 8, 0);
                    (server, found.store) = open();
                }
                Node::create(log.clone(), settings, birth)
                    .expect("the description gives the log enough pages")
            }
        };
        let machine = Machine::new(server, setup.config.clone());
        let replica = Self {
            node,
            machine,
            setup,
            others,
            log,
            relay_epoch: 0,
            campaign_at_ns: None,
            campaign_ns: round::CAMPAIGN_NS,
            promoted: 0,
            message: Vec::with_capacity(raft::MAX_MESSAGE),
            is_new: false,
            entries_left: 0,
            has_room: true,
            busy: Cell::new(false),
            damage: None,
        };
        (replica, found)
    }

    /// Whether no change was interrupted: then a microreset may keep this memory.
    pub fn is_whole(&self) -> bool {
        !self.busy.get() && self.machine.server.is_consistent()
    }

    /// Goes on as life `epoch` in memory that a microreset kept. Term, vote and log are read back,
    /// so that this life is another one to the other replicas, too.
    pub fn resume(&mut self, epoch: Epoch, now_ns: u64) {
        self.busy.set(true);
        self.setup.epoch = epoch;
        self.machine.forget();
        let server = &mut self.machine.server;
        server.resume();
        (self.relay_epoch, self.promoted, self.campaign_at_ns) = (0, 0, None);
        let opened = Node::open(self.log.clone(), settings(&self.setup), server.applied());
        self.node = opened.expect("the log is whole: else the next life begins without memory");
        // Nobody asks for the messages of the former life's node.
        self.node.handle_time(now_ns);
        self.busy.set(false);
    }

    /// The server.
    pub fn server(&self) -> &Server<M, A> {
        &self.machine.server
    }

    /// The server, to be told of kicks and domains.
    pub fn server_mut(&mut self) -> &mut Server<M, A> {
        &mut self.machine.server
    }

    /// What consensus says of itself.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// Index of the last entry that is part of the state, and the state's digest: replicas with the
    /// same index have the same. `None` while it is being brought up to date.
    pub fn digest(&self) -> Option<(u64, u64)> {
        let server = &self.machine.server;
        (!self.node.status().restoring).then(|| (server.applied(), server.state().digest()))
    }

    /// What makes one replica a better leader than another: term and index of its last entry, in
    /// 48 bits; 0 if it cannot lead.
    ///
    /// They wrap after 65,535 elections or 4 billion changes; the wrong choice that this could lead
    /// to costs another election.
    pub fn rank(&self) -> u64 {
        let status = self.node.status();
        let can_lead = status.voter && !status.restoring && status.damage.is_none();
        let position = (status.last.term & 0xffff) << 32 | (status.last.index & 0xffff_ffff);
        if can_lead { position.max(1) } else { 0 }
    }
}

fn settings(setup: &Setup) -> Settings {
    Settings { replicas: setup.replicas, ..Settings::fabric(setup.replica, setup.epoch) }
}
