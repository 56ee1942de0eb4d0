//! Where the effects of a request go: slots, event queues, actions.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::connection::{Area, Connection, ConnectionState, Queued};
use crate::effects::{Action, Effects, Kind};
use crate::persist::SlotStore;
use crate::server::Stats;

/// The receiver of effects.
pub(super) struct Outbox<'a, M, A> {
    pub slots: &'a mut SlotStore<M>,
    pub areas: &'a A,
    pub connections: &'a mut Vec<Option<Box<Connection>>>,
    pub ready: &'a mut VecDeque<u16>,
    pub actions: &'a mut VecDeque<Action>,
    pub printed: &'a mut Vec<u8>,
    pub stats: &'a mut Stats,
    /// Number of the commit under way.
    pub commit: u64,
    /// Term in which connections are served; `None` if another replica serves them.
    pub term: Option<u64>,
    /// The connection whose request is executed, and the place in its queue of events before
    /// which they go out before its reply.
    pub caller: Option<(u16, u64)>,
    pub scratch: &'a mut Vec<u8>,
}

/// Most text of CONTROL print that waits for the shell, in bytes.
const PRINTED_MAX: usize = 4096;

/// Most actions that wait for the shell; those beyond it are reports, never connections, because
/// the shell takes all of them after each request.
pub(super) const ACTIONS_MAX: usize = 64;

impl<M: SharedMemory, A: SharedMemory> Outbox<'_, M, A> {
    fn queue(&mut self, client: u16, path: &[u8], token: &[u8]) {
        if self.term.is_none() || path.len() + token.len() + 2 > wire::PAYLOAD_MAX {
            return;
        }
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else { return };
        let content = &mut *self.scratch;
        content.clear();
        content.extend_from_slice(path);
        content.push(0);
        content.extend_from_slice(token);
        content.push(0);
        let area = Area::new(self.areas, client, self.slots.key());
        match connection.queue(&area, self.commit, content) {
            Queued::Yes => self.stats.events += 1,
            Queued::Repeated => self.stats.repeated_events += 1,
            Queued::Lost => self.stats.lost_events += 1,
        }
        if !connection.is_queued {
            connection.is_queued = true;
            self.ready.push_back(client);
        }
    }
}

impl<M: SharedMemory, A: SharedMemory> Effects for Outbox<'_, M, A> {
    fn has_room(&self, records: usize, bytes: usize) -> bool {
        self.slots.has_room(records, bytes)
    }

    fn has_reserve(&self, bytes: usize) -> bool {
        self.slots.has_reserve(bytes)
    }

    fn put(&mut self, record: u32, kind: Kind, head: &[u8], body: &[u8]) {
        self.slots.put(record, kind, head, body);
    }

    fn delete(&mut self, record: u32) {
        self.slots.delete(record);
    }

    fn worked(&mut self, pieces: u32) {
        self.slots.pulse.worked(pieces);
    }

    fn forget(&mut self, record: u32) {
        self.slots.forget(record);
    }

    fn connect(&mut self, client: u16, life: u64) {
        let Some(term) = self.term else { return };
        let index = usize::from(client);
        if index >= self.connections.len() {
            self.connections.resize_with(index + 1, || None);
        }
        let is_queued = self.connections[index].as_ref().is_some_and(|old| old.is_queued);
        let version = self.connections[index].as_ref().map_or(0, |old| old.state.version);
        let state = ConnectionState { life, version, term, ..ConnectionState::default() };
        let mut connection = Connection::new(state);
        connection.is_queued = is_queued;
        let area = Area::new(self.areas, client, self.slots.key());
        connection.save(&area);
        area.clear_attempts();
        self.connections[index] = Some(Box::new(connection));
    }

    fn disconnect(&mut self, client: u16) {
        if let Some(connection) = self.connections.get_mut(usize::from(client)) {
            *connection = None;
        }
    }

    fn event(&mut self, client: u16, path: &[u8], token: &[u8]) {
        self.queue(client, path, token);
        if let Some((caller, place)) = &mut self.caller
            && *caller == client
            && let Some(Some(connection)) = self.connections.get(usize::from(client))
        {
            *place = connection.tail;
        }
    }

    fn event_after_reply(&mut self, client: u16, path: &[u8], token: &[u8]) {
        self.queue(client, path, token);
    }

    fn act(&mut self, action: Action) {
        let is_report = matches!(action, Action::LimitReached { .. } | Action::Print);
        if !is_report || self.term.is_some() && self.actions.len() < ACTIONS_MAX {
            self.actions.push_back(action);
        }
    }

    fn print(&mut self, text: &[u8]) {
        if self.term.is_some() && self.printed.len() + text.len() < PRINTED_MAX {
            self.printed.extend_from_slice(text);
            self.printed.push(b'\n');
        }
        self.act(Action::Print);
    }
}
