//! The server as one of several replicas.
//!
//! The leader takes requests, answers those that only read, and proposes the others; every replica
//! executes what the log brings ([`Server::apply_entry`]); the leader then answers
//! ([`Server::finish`]). A replica that follows touches no connection: rings and areas belong to
//! the leader, and each replica has areas of its own. A new leader takes over, connection by
//! connection, what the latest one kept ([`Server::promote`]).
//!
//! Nothing is answered twice or executed twice: a connection has one request under way, its reply
//! goes out for the entry that this leader proposed for it alone, and the state remembers each
//! connection's last change by its place in the stream, with the reply.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use fabric::SharedMemory;
use wire::{Errno, HEADER_LEN, Header, Operation};

use crate::Ring;
use crate::command::Command;
use crate::connection::{Area, Connection, ConnectionState, Phase, Waiting};
use crate::ops::end::{DECISION_MAX, message_of};
use crate::request::Request;
use crate::server::{ATTEMPTS_MAX, Progress, Server};
use crate::state::State;

/// Longest payload of a log entry in bytes: a message and its kind.
pub const ENTRY_MAX: usize = wire::MESSAGE_MAX + 1;

/// What a server does in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is the whole store.
    Alone,
    /// It executes what the log brings.
    Follows,
    /// It serves, too.
    Leads {
        /// Its term.
        term: u64,
    },
}

impl Role {
    /// Term in which it serves; `None` if it does not.
    pub fn term(self) -> Option<u64> {
        match self {
            Self::Alone => Some(0),
            Self::Follows => None,
            Self::Leads { term } => Some(term),
        }
    }
}

/// What replication has to remember.
#[derive(Debug)]
pub(super) struct Replication {
    pub role: Role,
    wanted: VecDeque<Wanted>,
    /// A step of sweeping is on its way through the log.
    is_sweeping: bool,
    /// Bytes of the next [`Command::End`].
    parts: Vec<u8>,
}

impl Replication {
    pub fn new(role: Role) -> Self {
        Self { role, wanted: VecDeque::new(), is_sweeping: false, parts: Vec::new() }
    }
}

/// A command for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The connection that it is about.
    pub client: u16,
    /// Place of the request in the connection's stream.
    pub position: u32,
    /// What to execute, at most [`ENTRY_MAX`] bytes.
    pub payload: Vec<u8>,
    /// Length of the request that it answers, 0 if it answers none.
    request_len: usize,
}

/// What is to be proposed.
#[derive(Debug)]
enum Wanted {
    Entry(Proposal),
    /// TRANSACTION_END: it is decided when all entries before it are executed.
    End(Proposal),
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Whether changes are proposed to other replicas before they are executed.
    fn proposes(&self) -> bool {
        matches!(self.replication.role, Role::Leads { .. })
    }

    /// Whether it serves connections: it leads, or is alone.
    pub fn is_leading(&self) -> bool {
        !matches!(self.replication.role, Role::Follows)
    }

    /// Index of the last log entry that is executed and kept.
    pub fn applied(&self) -> u64 {
        self.slots.applied()
    }

    /// This replica has become the leader in `term`, and the former one has stopped. What the
    /// latest leader kept of each connection, in its own areas or in one of `others`, is taken
    /// over. Entries that this replica executes from now on queue their events here.
    pub fn promote(&mut self, term: u64, others: &[A]) {
        self.demote();
        self.replication.role = Role::Leads { term };
        let key = self.slots.key();
        let clients: Vec<(u16, u64)> =
            self.state.clients().map(|(number, client)| (number, client.life)).collect();
        for (number, life) in clients {
            let own = Area::new(&self.areas, number, key);
            let connection = take_over(&own, life, term, |visit| {
                others.iter().for_each(|other| visit(&Area::new(other, number, key)));
            });
            let index = usize::from(number);
            if index >= self.connections.len() {
                self.connections.resize_with(index + 1, || None);
            }
            self.connections[index] = Some(Box::new(connection));
        }
    }

    /// Everything that was proposed by former leaders is executed: this replica may serve. Every
    /// ring is to be attached now ([`Server::attached`]).
    ///
    /// A transaction that is open was begun by a request that a former leader answered; it ends in
    /// EAGAIN, because what was done in it since is not known here.
    pub fn settle_in(&mut self) {
        self.mutating.set(true);
        self.state.lose_transactions();
        self.mutating.set(false);
    }

    /// This replica does not lead any more. Its connections are another one's.
    pub fn demote(&mut self) {
        self.replication = Replication::new(Role::Follows);
        self.connections.clear();
        self.ready.clear();
        self.fairness = super::fairness::Fairness::default();
    }

    /// The next command for the log. `is_quiet`: everything proposed so far is executed.
    pub fn next_proposal(&mut self, is_quiet: bool) -> Option<Proposal> {
        match self.replication.wanted.pop_front()? {
            Wanted::Entry(proposal) => Some(proposal),
            end @ Wanted::End(_) if !is_quiet => {
                self.replication.wanted.push_front(end);
                None
            }
            Wanted::End(proposal) => {
                self.decide(proposal);
                self.next_proposal(is_quiet)
            }
        }
    }

    /// Whether a command waits that is to be proposed although nobody has asked for it.
    pub fn has_orders(&self) -> bool {
        let is_order = |wanted: &Wanted| matches!(wanted, Wanted::Entry(p) if p.request_len == 0);
        self.replication.wanted.iter().any(is_order)
    }

    /// Puts a command back that the log had no room for.
    pub fn postpone(&mut self, proposal: Proposal) {
        self.replication.wanted.push_front(Wanted::Entry(proposal));
    }

    /// The command is the log entry at `index`: its reply goes out when that is executed.
    pub fn proposed(&mut self, proposal: &Proposal, index: u64) {
        let len = proposal.request_len;
        if len > 0
            && let Some(connection) = self.connection_mut(proposal.client)
            && connection.waiting == Waiting::Proposal
        {
            connection.waiting = Waiting::Entry { index, len };
        }
    }

    /// Executes the log entry at `index`.
    pub fn apply_entry(&mut self, index: u64, client: u16, position: u32, payload: &[u8]) {
        let Some(command) = Command::decode(payload) else { return self.note_applied(index) };
        if let Command::Part(bytes) = command {
            // It counts as executed with the rest: a replica that dies before starts here.
            let room = 2 * DECISION_MAX - self.replication.parts.len().min(2 * DECISION_MAX);
            self.replication.parts.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        let area = Area::new(&self.areas, 0, self.slots.key());
        let attempts = area.entry_attempts(index);
        if attempts >= ATTEMPTS_MAX {
            return self.skip(index, &command);
        }
        area.write_entry_attempt(index, attempts + 1);
        self.mutating.set(true);
        self.slots.set_applied(index);
        if self.enact(client, position, &command) {
            self.commit();
        } else {
            self.slots.save_applied();
        }
        self.replication.parts.clear();
        self.mutating.set(false);
        self.follow_up(client, &command);
    }

    /// Notes that the log entry at `index` holds nothing to execute.
    pub fn note_applied(&mut self, index: u64) {
        self.mutating.set(true);
        self.replication.parts.clear();
        self.slots.set_applied(index);
        self.slots.save_applied();
        self.mutating.set(false);
    }

    /// Answers the request that was the log entry at `index` and has just been executed.
    pub fn finish<P: SharedMemory>(
        &mut self,
        client: u16,
        index: u64,
        ring: &Ring<P>,
        now_ns: u64,
    ) -> Progress {
        let mut progress = Progress { fault: self.state.fault(), ..Progress::default() };
        let Some(connection) = self.connection_mut(client) else { return progress };
        let Waiting::Entry { index: awaited, len } = connection.waiting else { return progress };
        if awaited != index || progress.fault.is_some() {
            return progress;
        }
        connection.waiting = Waiting::Nothing;
        progress.executed = true;
        self.stats.requests += 1;
        if let Some(header) = self.reply.message().first_chunk() {
            self.note_transaction(client, &Header::parse(header), now_ns);
        }
        let outcome = self.answer(client, ring, len, &mut progress);
        progress.more |= outcome.is_ok() && self.has_more(client, ring);
        self.conclude(client, ring, outcome, &mut progress);
        if progress.more {
            self.kick(client);
        }
        progress
    }

    /// Whether a connection waits for the log.
    pub(super) fn is_waiting(&self, client: u16) -> bool {
        let connection = self.connections.get(usize::from(client)).and_then(Option::as_deref);
        connection.is_some_and(|connection| connection.waiting != Waiting::Nothing)
    }

    /// Whether the request in `request` is executed by all replicas, and has not been yet.
    pub(super) fn goes_through_the_log(&mut self, client: u16, header: &Header) -> bool {
        let request = Request { client, position: 0, header: *header, payload: &[] };
        if !self.proposes() || State::is_read_only(&request) {
            return false;
        }
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return false;
        };
        let session = self.state.client(client).map(|found| &found.session);
        let is_executed = |position| session.is_some_and(|s| s.position == Some(position));
        !(connection.recovered && is_executed(connection.state.position))
    }

    /// Wants the request in `request` executed by all replicas.
    pub(super) fn propose(&mut self, client: u16, header: &Header, len: usize) {
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else { return };
        connection.waiting = Waiting::Proposal;
        connection.recovered = false;
        let position = connection.state.position;
        self.mutating.set(true);
        let payload = Command::Request(&self.request[..len]).encode();
        let proposal = Proposal { client, position, payload, request_len: len };
        let is_end = header.operation == Operation::TransactionEnd;
        let wanted = if is_end { Wanted::End(proposal) } else { Wanted::Entry(proposal) };
        self.replication.wanted.push_back(wanted);
        self.mutating.set(false);
    }

    /// Changes the state outside of any request: at once, or by the log.
    pub(super) fn order(&mut self, client: u16, command: Command<'_>) {
        match self.replication.role {
            Role::Follows => {}
            Role::Alone => {
                self.mutating.set(true);
                if self.enact(client, 0, &command) {
                    self.commit();
                }
                self.mutating.set(false);
                self.follow_up(client, &command);
            }
            Role::Leads { .. } => {
                self.replication.is_sweeping |= matches!(command, Command::Sweep { .. });
                if matches!(command, Command::Restart { .. } | Command::Forget)
                    && let Some(connection) = self.connection_mut(client)
                {
                    connection.waiting = Waiting::Proposal;
                }
                let outer = self.mutating.replace(true);
                let payload = command.encode();
                let proposal = Proposal { client, position: 0, payload, request_len: 0 };
                self.replication.wanted.push_back(Wanted::Entry(proposal));
                self.mutating.set(outer);
            }
        }
    }

    /// Whether a step of sweeping is to be ordered.
    pub(super) fn sweep_is_due(&self) -> bool {
        let serves = self.replication.role.term().is_some();
        serves && !self.replication.is_sweeping && self.state.needs_sweep()
    }

    /// Decides about the transaction that a request wants committed.
    fn decide(&mut self, proposal: Proposal) {
        self.finish_loading();
        let Proposal { client, position, payload, request_len } = proposal;
        let message = &payload[1..];
        let decision = message.split_first_chunk::<HEADER_LEN>().and_then(|(header, body)| {
            let header = Header::parse(header);
            let request = Request { client, position, header, payload: body };
            self.with_outbox(None, |state, fx| state.prepare_end(&request, message, fx))
        });
        let Some(decision) = decision else {
            let proposal = Proposal { client, position, payload, request_len };
            return self.replication.wanted.push_front(Wanted::Entry(proposal));
        };
        let mut parts = decision.chunks(ENTRY_MAX - 1).rev();
        let end = Command::End(parts.next().unwrap_or(&[])).encode();
        let end = Proposal { client, position, payload: end, request_len };
        self.replication.wanted.push_front(Wanted::Entry(end));
        for part in parts {
            let payload = Command::Part(part).encode();
            let part = Proposal { client, position, payload, request_len: 0 };
            self.replication.wanted.push_front(Wanted::Entry(part));
        }
    }

    /// An entry at which this replica has died again and again is not executed here. If another
    /// one executes it, their digests differ.
    fn skip(&mut self, index: u64, command: &Command<'_>) {
        self.stats.given_up += 1;
        self.note_applied(index);
        let message = match command {
            Command::Request(message) => Some(*message),
            Command::End(bytes) => message_of(bytes),
            _ => None,
        };
        self.reply.clear();
        if let Some(header) = message.and_then(|message| message.first_chunk()) {
            self.reply.finish(&Header::parse(header), Err(Errno::Io));
        }
    }

    /// Executes a command; answers whether the state has changed in a way that must be kept.
    fn enact(&mut self, client: u16, position: u32, command: &Command<'_>) -> bool {
        match *command {
            Command::Request(message) => return self.enact_request(client, position, message),
            Command::End(rest) => return self.enact_end(client, position, rest),
            _ => self.finish_loading(),
        }
        self.mutating.set(true);
        self.with_outbox(None, |state, fx| match *command {
            Command::Restart { .. } => {
                state.restart_client(client, fx);
                true
            }
            Command::Forget => state.forget_session(client, fx),
            Command::Unlink(domid) => state.forget_introduction(domid, fx),
            Command::ShutDown(domid) => state.domain_shut_down(domid, fx),
            Command::Gone(domid) => state.domain_gone(domid, fx),
            Command::Sweep { domid, cursor } => state.sweep_from(domid, cursor, fx),
            Command::Request(_) | Command::Part(_) | Command::End(_) => false,
        })
    }

    fn enact_request(&mut self, client: u16, position: u32, message: &[u8]) -> bool {
        let Some((header, payload)) = message.split_first_chunk::<HEADER_LEN>() else {
            return false;
        };
        let header = Header::parse(header);
        if self.answer_again(client, position) {
            return false;
        }
        self.request.clear();
        self.request.extend_from_slice(message);
        self.load_for(client, &header, message.len());
        self.mutating.set(true);
        let request = Request { client, position, header, payload };
        let caller = Some(self.caller(client));
        let mut reply = core::mem::take(&mut self.reply);
        let (changed, place) = self.with_outbox(caller, |state, fx| {
            let changed = state.apply(&request, &mut reply, fx);
            (changed, fx.caller.map_or(0, |(_, place)| place))
        });
        self.reply = reply;
        self.note_reply(client, &header, changed, place);
        changed
    }

    fn enact_end(&mut self, client: u16, position: u32, rest: &[u8]) -> bool {
        if self.answer_again(client, position) {
            return false;
        }
        self.finish_loading();
        self.mutating.set(true);
        let mut bytes = core::mem::take(&mut self.replication.parts);
        bytes.extend_from_slice(rest);
        let caller = Some(self.caller(client));
        let mut reply = core::mem::take(&mut self.reply);
        let (changed, place) = self.with_outbox(caller, |state, fx| {
            let changed = state.apply_end(client, position, &bytes, &mut reply, fx);
            (changed == Some(true), fx.caller.map_or(0, |(_, place)| place))
        });
        self.reply = reply;
        let header = message_of(&bytes).and_then(|message| message.first_chunk());
        if let Some(header) = header {
            self.note_reply(client, &Header::parse(header), changed, place);
        }
        changed
    }

    /// The connection whose request is executed, and the place in its queue before which events go
    /// out before its reply.
    fn caller(&self, client: u16) -> (u16, u64) {
        let connection = self.connections.get(usize::from(client)).and_then(Option::as_deref);
        (client, connection.map_or(0, |connection| connection.state.events_head))
    }

    /// What a command means for the connection that it is about.
    fn follow_up(&mut self, client: u16, command: &Command<'_>) {
        let key = self.slots.key();
        if matches!(command, Command::Sweep { .. }) {
            self.replication.is_sweeping = false;
        }
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else { return };
        let area = Area::new(&self.areas, client, key);
        match command {
            Command::Restart { is_dead: true } => {
                connection.state.phase = Phase::Dead;
                connection.save(&area);
                self.release_held(client);
            }
            Command::Restart { is_dead: false } => {
                connection.is_restarted = true;
                self.kick(client);
            }
            Command::Forget => {
                (connection.state.position, connection.state.produced) = (0, 0);
                connection.attempts = 0;
                connection.waiting = Waiting::Nothing;
                area.clear_attempts();
                connection.save(&area);
                self.kick(client);
            }
            _ => {}
        }
    }
}

/// The connection as the latest leader kept it, in `own` or one of the other areas; from now on
/// `own` is the latest.
fn take_over<A: SharedMemory>(
    own: &Area<'_, A>,
    life: u64,
    term: u64,
    others: impl Fn(&mut dyn FnMut(&Area<'_, A>)),
) -> Connection {
    let mut latest = own.read_state(life);
    if let Some(state) = &latest {
        own.repair(state);
    }
    let mut is_untouched = own.is_untouched(life);
    let rank = |state: &ConnectionState| (state.term, state.version);
    others(&mut |other| {
        is_untouched &= other.is_untouched(life);
        let found = other.read_state(life);
        if let Some(state) = found.filter(|f| latest.as_ref().is_none_or(|l| rank(f) > rank(l))) {
            own.copy_from(other, &state);
            latest = Some(state);
        }
    });
    let Some(mut state) = latest else {
        if is_untouched {
            return Connection::new(ConnectionState { life, term, ..ConnectionState::default() });
        }
        let (mut connection, _) = Connection::load(own, life, u64::MAX);
        connection.state.term = term;
        return connection;
    };
    state.term = term;
    state.version += 1;
    own.write_state(&state);
    // Whatever is queued there tells of an entry that is committed.
    Connection::load(own, life, u64::MAX).0
}
