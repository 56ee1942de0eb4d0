//! The server: state, durable slots and connections together.

mod blame;
mod fairness;
mod idle;
mod lazy;
mod outbox;
mod rebuild;
mod recover;
mod replica;
mod serve;
mod snapshot;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::Cell;

use fabric::SharedMemory;

use crate::command::Command;
use crate::connection::{Area, Connection, Phase, Waiting};
use crate::domain::Origin;
use crate::effects::Action;
use crate::persist::{LoadReport, SlotStore};
use crate::pulse::Pulse;
use crate::request::Reply;
use crate::state::State;
use crate::{Fault, Ring};

use outbox::Outbox;
pub use recover::Index;
use replica::Replication;
pub use replica::{ENTRY_MAX, Proposal};
pub use snapshot::{RestoreError, Snapshot};

/// Crashes during one request after which it is answered EIO: so that a request which kills the
/// server cannot keep it from serving others.
pub const ATTEMPTS_MAX: u32 = 3;

/// What a call of [`Server::serve`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The connection has more to do now; it is in the queue again.
    pub more: bool,
    /// The client's event channel must be notified.
    pub notify: bool,
    /// A request was executed.
    pub executed: bool,
    /// A piece of longer work was done, and there is more of it: nodes of a reloaded store for a
    /// request, or lost events that are made again.
    pub advanced: bool,
    /// Damage was found; the request has not been answered.
    pub fault: Option<Fault>,
}

/// What lies in a connection's ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlooked {
    /// Bytes of requests that were not taken: the connection is to be kicked.
    pub request: bool,
    /// Bytes of responses that the client has not read: it is to be notified.
    pub response: bool,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests executed.
    pub requests: u64,
    /// Commits among them and from domain changes.
    pub commits: u64,
    /// Watch events queued.
    pub events: u64,
    /// Events dropped because the same one was waiting.
    pub repeated_events: u64,
    /// Events that found no room and were made again later.
    pub lost_events: u64,
    /// Requests answered again after a crash instead of executed again.
    pub answered_again: u64,
    /// Requests given up after several crashes.
    pub given_up: u64,
    /// Connections given up because of ring errors.
    pub ring_errors: u64,
    /// Transactions that ended in EAGAIN because of a conflict.
    pub conflicts: u64,
    /// Times a request had to wait for another client's transaction.
    pub deferred: u64,
    /// Transactions that others had to wait for.
    pub protections: u64,
    /// Nodes checked by the scrubber.
    pub scrubbed_nodes: u64,
    /// Damaged slots, commit headers and connection states that the scrubber wrote again.
    pub repaired_records: u64,
}

/// A connection for the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its number.
    pub client: u16,
    /// The domain at its other end.
    pub domid: u16,
    /// How it came about.
    pub origin: Origin,
    /// Frame of the ring page, for an introduced domain.
    pub gfn: u64,
    /// Event channel port of the domain, for an introduced one.
    pub port: u32,
}

/// What [`Server::start`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Whether the store is new: nothing was there.
    pub is_new: bool,
    /// Whether the index said where everything is: not every slot was looked at.
    pub is_indexed: bool,
    /// What the slots held.
    pub load: LoadReport,
    /// Connections whose areas were damaged.
    pub damaged_areas: u32,
}

/// A XenStore server over durable slots `M` and connection areas `A`.
#[derive(Debug)]
pub struct Server<M, A> {
    state: State,
    slots: SlotStore<M>,
    areas: A,
    connections: Vec<Option<Box<Connection>>>,
    ready: VecDeque<u16>,
    actions: VecDeque<Action>,
    printed: Vec<u8>,
    reply: Reply,
    /// The request at hand.
    request: Vec<u8>,
    /// An event or a message on its way.
    scratch: Vec<u8>,
    /// Whether a change of the state has begun and not ended.
    mutating: Cell<bool>,
    stats: Stats,
    idle: idle::IdleWork,
    fairness: fairness::Fairness,
    loading: Option<lazy::Loading>,
    replication: Replication,
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Whether the memory of this server is whole: no change was interrupted.
    pub fn is_consistent(&self) -> bool {
        !self.mutating.get()
    }

    /// The state, to look at.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The slot store, to look at.
    pub fn slots(&self) -> &SlotStore<M> {
        &self.slots
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats { conflicts: self.state.conflicts, ..self.stats }
    }

    /// Text of CONTROL print since the last call.
    pub fn take_printed(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.printed)
    }

    /// The next thing for the shell to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// All connections.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionInfo> + '_ {
        self.state.clients().map(|(client, found)| {
            let introduced = self.state.introduced(found.domid);
            let introduced = introduced.filter(|introduced| introduced.client == client);
            ConnectionInfo {
                client,
                domid: found.domid,
                origin: found.origin,
                gfn: introduced.map_or(0, |introduced| introduced.gfn),
                port: introduced.map_or(0, |introduced| introduced.port),
            }
        })
    }

    /// The connection of a domain, the first if it has several.
    pub fn connection_of(&self, domid: u16) -> Option<u16> {
        self.state.clients().find(|(_, found)| found.domid == domid).map(|(client, _)| client)
    }

    /// The connection of a service; the one it had in a former life, if it had one. `None` if all
    /// connections are taken.
    pub fn open(&mut self, domid: u16) -> Option<u16> {
        let known = self
            .state
            .clients()
            .find(|(_, client)| client.domid == domid && client.origin == Origin::Shell);
        match known {
            Some((client, _)) => Some(client),
            None => self.open_another(domid),
        }
    }

    /// A further connection of a domain, such as one socket of many.
    pub fn open_another(&mut self, domid: u16) -> Option<u16> {
        self.change(|state, outbox| {
            let client = state.open(domid, outbox);
            (client, client.is_some())
        })
    }

    /// `beat` is called again and again within a change that takes long, such as the removal of a
    /// large subtree: it tells whoever watches that this is no hang.
    pub fn set_pulse(&mut self, beat: fn()) {
        self.slots.pulse = Pulse::new(beat);
    }

    /// Ends a connection that the shell opened.
    pub fn close(&mut self, client: u16) {
        self.change(|state, outbox| {
            state.close(client, outbox);
            ((), true)
        });
    }

    /// A domain shut down, suspended or crashed. May be told again.
    pub fn domain_shut_down(&mut self, domid: u16) {
        self.order(0, Command::ShutDown(domid));
    }

    /// A domain is gone. May be told again.
    pub fn domain_gone(&mut self, domid: u16) {
        self.order(0, Command::Gone(domid));
    }

    /// Something happened on a connection: it will be served.
    pub fn kick(&mut self, client: u16) {
        if let Some(Some(connection)) = self.connections.get_mut(usize::from(client))
            && !connection.is_queued
        {
            connection.is_queued = true;
            self.ready.push_back(client);
        }
    }

    /// The next connection to serve.
    pub fn next_ready(&mut self, now_ns: u64) -> Option<u16> {
        self.check_protection(now_ns);
        while let Some(client) = self.ready.pop_front() {
            if let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) {
                connection.is_queued = false;
                return Some(client);
            }
        }
        None
    }

    /// The ring of a connection is mapped and its event channel bound. Answers whether to notify
    /// the client: also after a recovery, as the former life may have died between the last store
    /// to the ring and the notification.
    pub fn attached<P: SharedMemory>(&mut self, client: u16, ring: &Ring<P>) -> bool {
        let features = match self.state.client(client) {
            Some(found) => self.state.features_of(found.domid),
            None => return false,
        };
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return false;
        };
        let is_known = connection.state.phase != Phase::Fresh && !connection.is_unknown;
        // Indices of zero may also be those of before the first message, when the crash came
        // between the area and the ring. Then the area is at most one message ahead.
        let is_ahead = (connection.state.position as usize) > wire::MESSAGE_MAX;
        if is_known && is_ahead && connection.was_emptied(ring.published()) {
            self.begin_at_zero(client);
        }
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return false;
        };
        let area = Area::new(&self.areas, client, key);
        connection.is_restarted = false;
        let is_fresh = connection.state.phase == Phase::Fresh;
        let is_recovered = !is_fresh && connection.recovered;
        if is_fresh {
            ring.initialise(features);
            connection.state.phase = Phase::Open;
            connection.save(&area);
            ring.confirm_reset();
        } else if is_recovered && connection.waiting == Waiting::Nothing {
            connection.adopt(ring, &area);
        }
        self.release_held(client);
        self.kick(client);
        is_fresh || is_recovered
    }

    /// The ring of an introduced domain could not be mapped, or its event channel not bound: the
    /// domain counts as not introduced, and the INTRODUCE that asked for it is answered EINVAL.
    pub fn attach_failed(&mut self, client: u16) {
        let Some(found) = self.state.client(client) else { return };
        let (domid, origin) = (found.domid, found.origin);
        self.refuse_held(client);
        self.release_held(client);
        if origin == Origin::Introduced {
            self.order(client, Command::Unlink(domid));
        }
    }

    /// Changes the state outside of any request.
    fn change<R>(
        &mut self,
        change: impl FnOnce(&mut State, &mut Outbox<'_, M, A>) -> (R, bool),
    ) -> R {
        self.mutating.set(true);
        self.make_all_watches();
        let (result, changed) = self.with_outbox(None, change);
        if changed {
            self.commit();
        }
        self.mutating.set(false);
        result
    }

    /// Lets `act` change the state, its effects going where those of the next commit go. `caller`
    /// is the connection whose request is executed, and the place in its queue before which events
    /// go out before its reply.
    fn with_outbox<R>(
        &mut self,
        caller: Option<(u16, u64)>,
        act: impl FnOnce(&mut State, &mut Outbox<'_, M, A>) -> R,
    ) -> R {
        let mut outbox = Outbox {
            slots: &mut self.slots,
            areas: &self.areas,
            connections: &mut self.connections,
            ready: &mut self.ready,
            actions: &mut self.actions,
            printed: &mut self.printed,
            stats: &mut self.stats,
            commit: self.state.committed() + 1,
            term: self.replication.role.term(),
            caller,
            scratch: &mut self.scratch,
        };
        act(&mut self.state, &mut outbox)
    }

    fn commit(&mut self) {
        self.slots.commit(self.state.digest(), self.state.tree().nodes());
        self.state.commit();
        self.stats.commits += 1;
    }
}
