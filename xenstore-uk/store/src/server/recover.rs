//! Starting: anew, from what a former life kept, or in memory that survived.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;

use fabric::SharedMemory;
use wire::{Access, Permission};

use crate::Config;
use crate::codec::Reader;
use crate::connection::{AREA_LEN, Area, Connection};
use crate::domain::{Client, Domain, Sweep};
use crate::effects::Kind;
use crate::ops::decode_watch;
use crate::persist::{LoadReport, Loaded, SlotStore};
use crate::quota::{Limits, Quota};
use crate::request::Reply;
use crate::server::fairness::Fairness;
use crate::server::idle::IdleWork;
use crate::server::lazy::{Later, Loading};
use crate::server::outbox::ACTIONS_MAX;
use crate::server::replica::{Replication, Role};
use crate::server::{Server, StartReport, Stats};
use crate::state::{Records, State};
use crate::transaction::Transaction;

/// Memory of [`crate::persist::index_len`] bytes for the index.
#[derive(Clone, Debug)]
pub enum Index<M> {
    /// As the former life left it, zeros at first: it is believed if it describes the store.
    Kept(M),
    /// Whatever it holds is replaced.
    Any(M),
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Reads a former life's store back, or begins a new one where there is none. `areas` must
    /// have [`AREA_LEN`] bytes per connection.
    pub fn start(config: &Config, slots: M, areas: A) -> (Self, StartReport)
    where
        M: Clone,
    {
        let (mut server, mut report) = Self::load(config, slots, areas, Role::Alone);
        report.damaged_areas = server.load_connections();
        (server, report)
    }

    /// As [`Self::start`], where the former life kept an index and a crash of its program has left
    /// it as it was: this life begins by the index, at a cost that hardly grows with the store, if
    /// it describes the store.
    pub fn start_indexed(config: &Config, slots: M, areas: A, index: M) -> (Self, StartReport)
    where
        M: Clone,
    {
        Self::start_alone(config, slots, areas, Index::Kept(index), &[])
    }

    /// As [`Self::start`], and keeps an index. A new store has the connections of `services`.
    pub fn start_alone(
        config: &Config,
        slots: M,
        areas: A,
        index: Index<M>,
        services: &[u16],
    ) -> (Self, StartReport)
    where
        M: Clone,
    {
        let (mut server, mut report) = Self::load_indexed(config, slots, areas, index, Role::Alone);
        report.damaged_areas = server.load_connections();
        server.open_first(&report, services);
        (server, report)
    }

    /// As [`Self::start_alone`], for one of several replicas: it serves nobody until it is
    /// promoted. `services` are the same in all replicas.
    pub fn join(
        config: &Config,
        slots: M,
        areas: A,
        index: Index<M>,
        services: &[u16],
    ) -> (Self, StartReport)
    where
        M: Clone,
    {
        let (mut server, report) = Self::load_indexed(config, slots, areas, index, Role::Follows);
        server.open_first(&report, services);
        (server, report)
    }

    /// Opens the connections that a new store has.
    fn open_first(&mut self, report: &StartReport, services: &[u16]) {
        if report.is_new {
            for domid in services {
                self.open(*domid);
            }
        }
    }

    fn load_indexed(
        config: &Config,
        slots: M,
        areas: A,
        index: Index<M>,
        role: Role,
    ) -> (Self, StartReport)
    where
        M: Clone,
    {
        if let Index::Kept(index) = &index
            && let Some((store, loaded)) = SlotStore::open_indexed(slots.clone(), index.clone())
        {
            let (server, report) = Self::go_on(config, store, loaded, areas, role);
            return (server, StartReport { is_indexed: true, ..report });
        }
        let (mut server, report) = Self::load(config, slots, areas, role);
        let (Index::Kept(index) | Index::Any(index)) = index;
        server.slots.keep_index(index);
        (server, report)
    }

    fn load(config: &Config, slots: M, areas: A, role: Role) -> (Self, StartReport)
    where
        M: Clone,
    {
        let Some((slots, loaded)) = SlotStore::open(slots.clone(), config.owner) else {
            let slots = SlotStore::format(slots, config.key);
            let mut server = Self::with(State::new(config), slots, areas, role);
            server.change(|state, outbox| {
                state.found(outbox);
                ((), true)
            });
            return (server, StartReport { is_new: true, ..StartReport::default() });
        };
        Self::go_on(config, slots, loaded, areas, role)
    }

    fn go_on(
        config: &Config,
        slots: SlotStore<M>,
        loaded: Loaded,
        areas: A,
        role: Role,
    ) -> (Self, StartReport) {
        let load = loaded.report;
        let (state, later) = State::restore(config, loaded, slots.committed());
        let mut server = Self::with(state, slots, areas, role);
        server.loading = Loading::new(later);
        (server, StartReport { load, ..StartReport::default() })
    }

    /// Goes on in memory that survived a crash outside of any change ([`Self::is_consistent`]).
    /// Connections are read back from their areas; their rings must be attached again. Answers
    /// the number of damaged areas.
    pub fn resume(&mut self) -> u32 {
        assert!(self.is_consistent(), "resume of a state whose change was interrupted");
        self.ready.clear();
        self.actions.clear();
        self.fairness = Fairness::default();
        if self.replication.role == Role::Alone {
            return self.load_connections();
        }
        self.demote();
        0
    }

    fn with(state: State, slots: SlotStore<M>, areas: A, role: Role) -> Self {
        let state_clients = state.config.clients;
        assert!(
            areas.len() >= state_clients * AREA_LEN,
            "areas of {} bytes are too small for {state_clients} connections",
            areas.len(),
        );
        Self {
            state,
            slots,
            areas,
            connections: Vec::new(),
            // Room for all of them: no crash can come while these grow.
            ready: VecDeque::with_capacity(state_clients),
            actions: VecDeque::with_capacity(ACTIONS_MAX + state_clients),
            printed: Vec::new(),
            reply: Reply::new(),
            request: Vec::with_capacity(wire::MESSAGE_MAX),
            scratch: Vec::with_capacity(wire::MESSAGE_MAX),
            mutating: Cell::new(false),
            stats: Stats::default(),
            idle: IdleWork::default(),
            fairness: Fairness::default(),
            loading: None,
            replication: Replication::new(role),
        }
    }

    fn load_connections(&mut self) -> u32 {
        self.connections.clear();
        let mut damaged = 0;
        let committed = self.state.committed();
        for (number, client) in self.state.clients() {
            let index = usize::from(number);
            if index >= self.connections.len() {
                self.connections.resize_with(index + 1, || None);
            }
            let area = Area::new(&self.areas, number, self.slots.key());
            let (connection, is_damaged) = Connection::load(&area, client.life, committed);
            damaged += u32::from(is_damaged);
            self.connections[index] = Some(Box::new(connection));
        }
        damaged
    }
}

impl State {
    /// The state that a reloaded store describes.
    pub(crate) fn restore(config: &Config, loaded: Loaded, committed: u64) -> (Self, Later) {
        let mut state = Self::new(config);
        state.committed = committed;
        state.domains = BTreeMap::new();
        state.records = Records {
            next: loaded.next_record.max(3),
            free: loaded.free_records,
            dropped: Vec::new(),
        };
        // The tree before the transactions that look at it.
        state.tree = loaded.nodes.tree;
        for (owner, (count, bytes)) in loaded.nodes.owned {
            state.charge(owner, Quota::Nodes, i64::from(count));
            state.charge(owner, Quota::Memory, bytes as i64);
        }
        state.restore_others(&loaded.others);
        // Those of one connection mostly follow each other.
        for watches in loaded.watches.chunk_by(|(_, a), (_, b)| a.client == b.client) {
            let memory = watches.iter().map(|(_, watch)| i64::from(watch.memory)).sum();
            state.account_watches(watches[0].1.client, watches.len() as i64, memory);
        }
        (state, Later { nodes: loaded.nodes.unloaded, watches: loaded.watches })
    }

    fn restore_others(&mut self, others: &[(Kind, u32, Vec<u8>)]) {
        // Connections before what hangs on them.
        let order = [Kind::Settings, Kind::Domain, Kind::Client, Kind::Watch, Kind::Sweep];
        for kind in order {
            for (_, record, bytes) in others.iter().filter(|other| other.0 == kind) {
                match kind {
                    Kind::Settings => drop(self.restore_settings(bytes)),
                    Kind::Domain => {
                        if let Some((domid, domain)) = Domain::decode(bytes, *record) {
                            let Domain { usage, peak, .. } = *self.domain_entry(domid);
                            self.domains.insert(domid, Domain { usage, peak, ..domain });
                        }
                    }
                    Kind::Client => drop(self.restore_client(bytes, *record)),
                    Kind::Watch => {
                        if let Some(watch) = decode_watch(bytes, *record) {
                            self.add_watch(Rc::new(watch));
                        }
                    }
                    _ => {
                        if let Some(domid) = Reader::new(bytes).u16() {
                            let cursor = Vec::new();
                            self.sweeps.push_back(Sweep { domid, cursor, record: *record });
                        }
                    }
                }
            }
        }
        self.sweeps.make_contiguous().sort_by_key(|sweep| sweep.domid);
    }

    fn restore_settings(&mut self, bytes: &[u8]) -> Option<()> {
        let mut reader = Reader::new(bytes);
        self.limits = Limits::from_raw(&mut core::iter::from_fn(|| reader.u32()))?;
        for permissions in &mut self.special {
            let count = reader.u16()?;
            let mut restored = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let domid = reader.u16()?;
                let access = Access::from_letter(reader.u8()?)?;
                restored.push(Permission::new(domid, access));
            }
            *permissions = restored;
        }
        Some(())
    }

    fn restore_client(&mut self, bytes: &[u8], record: u32) -> Option<()> {
        let (number, mut client, open): (u16, Client, Vec<u32>) = Client::decode(bytes, record)?;
        let index = usize::from(number);
        if index >= self.config.clients {
            return None;
        }
        if index >= self.clients.len() {
            self.clients.resize_with(index + 1, || None);
        }
        client.privileged = self.is_privileged(client.domid);
        client.target = self.domains.get(&client.domid).and_then(|domain| domain.target);
        let domid = client.domid;
        for id in &open {
            let lost = Transaction::new(*id, &self.tree, self.committed + 1, true);
            client.transactions.push(Box::new(lost));
        }
        self.open_transactions += open.len() as u32;
        self.clients[index] = Some(Box::new(client));
        self.charge(domid, Quota::Transactions, open.len() as i64);
        Some(())
    }
}

/// For messages about what a start found.
impl core::fmt::Display for StartReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let load = &self.load;
        match (self.is_new, self.is_indexed) {
            (true, _) => write!(f, "a new store"),
            (_, true) => write!(f, "{} nodes by the index", load.nodes),
            _ => write!(f, "{load}"),
        }?;
        if self.damaged_areas > 0 {
            write!(f, ", {} connection areas damaged", self.damaged_areas)?;
        }
        Ok(())
    }
}

/// For messages about what a reading of all slots found.
impl core::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} nodes in {} slots, {} uncommitted, {} damaged, {} missing, {} records lost",
            self.nodes,
            self.slots,
            self.uncommitted,
            self.damaged_slots,
            self.missing_slots,
            self.lost_records
        )
    }
}
