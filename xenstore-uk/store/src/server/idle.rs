//! Work for when nothing is asked: sweeping after dead domains, and scrubbing.

use alloc::vec::Vec;
use fabric::SharedMemory;

use crate::Fault;
use crate::checksum::spread;
use crate::command::Command;
use crate::connection::Area;
use crate::effects::Effects;
use crate::server::Server;
use crate::server::replica::Role;
use crate::state::State;
use crate::tree::Descend;

/// Nodes and slots checked in one step: about ten microseconds.
const SCRUB_STEP: usize = 64;

/// Records taken up into the index in one step: some twenty microseconds.
const INDEX_STEP: u32 = 64;

/// Time between two steps of the scrubber: 10,000 nodes and their slots are checked in 4 s.
const SCRUB_INTERVAL_NS: u64 = 25_000_000;

/// The same while nothing changes: in 8 s, for less than 0.1 % of a CPU, three times in a host.
const QUIET_SCRUB_INTERVAL_NS: u64 = 50_000_000;

/// Time between two steps of making the nodes that a reload has left for later: each is some ten to
/// hundred microseconds that a client would wait for on the same CPU, right when it has waited for
/// the recovery already. What is asked for in between is made at once.
const LOAD_INTERVAL_NS: u64 = 500_000;

/// Where the background work has come to.
#[derive(Debug, Default)]
pub(super) struct IdleWork {
    cursor: Vec<u8>,
    /// Digest of the nodes checked in this round, and the commit at its beginning.
    digest: u64,
    round_since: u64,
    slot: u32,
    client: u16,
    next_scrub_ns: u64,
    /// 0 before the first look.
    next_load_ns: u64,
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// A bounded step of background work, to be called when no connection is ready. Answers
    /// damage, if it found any: then the server must start again from its slots.
    pub fn idle_step(&mut self, now_ns: u64) -> Option<Fault> {
        if self.is_settling() {
            let due_ns = self.idle.next_load_ns;
            if due_ns == 0 || now_ns >= due_ns {
                self.idle.next_load_ns = now_ns + LOAD_INTERVAL_NS;
            }
            if due_ns != 0 && now_ns >= due_ns {
                self.settle_step();
            }
            return None;
        }
        if self.sweep_is_due() {
            if let Some((domid, cursor)) = self.state.next_sweep() {
                let cursor = cursor.to_vec();
                self.order(0, Command::Sweep { domid, cursor: &cursor });
            }
            return None;
        }
        if now_ns < self.idle.next_scrub_ns {
            return None;
        }
        let is_quiet = self.idle.round_since == self.state.committed();
        let interval_ns = if is_quiet { QUIET_SCRUB_INTERVAL_NS } else { SCRUB_INTERVAL_NS };
        self.idle.next_scrub_ns = now_ns + interval_ns;
        self.scrub_slots();
        self.scrub_areas();
        self.scrub_nodes()
    }

    /// Whether a reload has left something for later.
    fn is_settling(&self) -> bool {
        self.loading.is_some() || self.slots.is_indexing()
    }

    fn settle_step(&mut self) {
        if self.loading.is_some() {
            return self.load_step();
        }
        self.mutating.set(true);
        let (digest, nodes) = (self.state.digest(), self.state.tree().nodes());
        self.slots.index_step(INDEX_STEP, digest, nodes);
        self.mutating.set(false);
    }

    /// When [`Server::idle_step`] or [`Server::next_ready`] has something to do again.
    pub fn next_deadline(&self, now_ns: u64) -> u64 {
        if self.is_settling() {
            return self.idle.next_load_ns.max(now_ns);
        }
        // A sweep may have made events for somebody.
        if self.sweep_is_due() || !self.ready.is_empty() {
            return now_ns;
        }
        let scrub = self.idle.next_scrub_ns;
        self.fairness.deadline_ns().map_or(scrub, |deadline| deadline.min(scrub)).max(now_ns)
    }

    fn scrub_nodes(&mut self) -> Option<Fault> {
        let mut damaged = false;
        let mut digest = self.idle.digest;
        if self.idle.cursor.is_empty() {
            digest = 0;
            self.idle.round_since = self.state.committed();
        }
        let mut checked = 0;
        self.state.tree().walk(&mut self.idle.cursor, SCRUB_STEP, &mut |_, node, hash| {
            damaged |= !node.is_intact(hash);
            digest = digest.wrapping_add(spread(node.sum));
            checked += 1;
            Descend::Yes
        });
        self.stats.scrubbed_nodes += checked;
        self.idle.digest = digest;
        // A round without changes has seen every node: then the digest tells of lost links, too.
        let is_round = self.idle.cursor.is_empty();
        let is_quiet = self.idle.round_since == self.state.committed();
        damaged |= is_round && is_quiet && digest != self.state.digest();
        if damaged {
            self.slots.distrust_index();
        }
        damaged.then_some(Fault::Node)
    }

    /// Checks the commit headers and some slots, and writes a damaged record again from the state,
    /// which is whole.
    fn scrub_slots(&mut self) {
        self.stats.repaired_records += u64::from(self.slots.scrub_headers());
        let (damaged, next) = self.slots.scrub(self.idle.slot, SCRUB_STEP as u32);
        self.idle.slot = next;
        if let Some(record) = damaged {
            self.stats.repaired_records += 1;
            // A replica's commits are those of the log: there it becomes part of the next one.
            let is_alone = self.replication.role == Role::Alone;
            self.change(|state, outbox| {
                state.put_record(record, outbox);
                ((), is_alone)
            });
        }
    }
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Checks what the area of the next connection says of it, and writes it again. A replica that
    /// follows has no connections: its areas say what it knew when it led.
    fn scrub_areas(&mut self) {
        let count = self.state.clients().count().max(1);
        let place = usize::from(self.idle.client) % count;
        self.idle.client = place as u16 + 1;
        let Some((number, client)) = self.state.clients().nth(place) else { return };
        let area = Area::new(&self.areas, number, self.slots.key());
        let connection = self.connections.get_mut(usize::from(number)).and_then(Option::as_mut);
        let is_repaired = match connection {
            Some(connection) => connection.scrub(&area),
            None => area.scrub(client.life),
        };
        self.stats.repaired_records += u64::from(is_repaired);
    }
}

impl State {
    /// Keeps a record again whose durable form was damaged. Looks through everything: for damage
    /// alone.
    pub(crate) fn put_record(&mut self, record: u32, fx: &mut dyn Effects) {
        let mut found = None;
        self.tree.walk(&mut Vec::new(), usize::MAX, &mut |path, node, _| {
            if node.record == record {
                found = Some(path.to_vec());
            }
            Descend::Yes
        });
        if let Some(node) = found.as_ref().and_then(|path| self.tree.get(path)) {
            let node = node.node;
            fx.put(record, crate::Kind::Node, &crate::state::node_head(node), node.body().0);
            return;
        }
        if record == crate::state::SETTINGS_RECORD {
            return self.put_settings(fx);
        }
        let client = self.clients().find(|(_, client)| client.record == record);
        if let Some((number, _)) = client {
            return self.put_client(number, fx);
        }
        let domain = self.domains.iter().find(|(_, domain)| domain.record == record);
        if let Some((domid, _)) = domain {
            let domid = *domid;
            return self.put_domain(domid, fx);
        }
        self.put_watch_record(record, fx);
    }
}
