//! Serving one connection: take a request, execute it once, send what there is to send.

use fabric::SharedMemory;
use wire::ring::{self as layout, RingError};
use wire::{Errno, HEADER_LEN, Header, Operation};

use crate::Ring;
use crate::command::Command;
use crate::connection::{Area, Phase, Sending, Waiting};
use crate::effects::Action;
use crate::request::Request;
use crate::server::outbox::Outbox;
use crate::server::{ATTEMPTS_MAX, Overlooked, Progress, Server};
use crate::state::State;

/// What was found in the ring of requests.
enum Taken {
    /// A whole request of this many bytes in `request`.
    Whole(usize),
    /// Not yet.
    Part,
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Serves a connection: at most one request, and as much output as its ring takes.
    pub fn serve<P: SharedMemory>(&mut self, client: u16, ring: &Ring<P>, now_ns: u64) -> Progress {
        let mut progress = Progress::default();
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return progress;
        };
        if connection.waiting != Waiting::Nothing {
            return progress;
        }
        if connection.state.phase == Phase::Fresh && !connection.is_restarted {
            return progress;
        }
        if !connection.is_restarted && ring.wants_reset() {
            // Watches, transactions and what was under way go.
            self.order(client, Command::Restart { is_dead: false });
        }
        let Some(connection) = self.connection_mut(client) else { return progress };
        if connection.waiting != Waiting::Nothing {
            return progress;
        }
        if connection.is_restarted {
            self.attached(client, ring);
            return Progress { notify: true, more: true, ..progress };
        }
        let is_dead = connection.state.phase == Phase::Dead;
        if is_dead {
            return progress;
        }
        let outcome = self.serve_open(client, ring, now_ns, &mut progress);
        self.conclude(client, ring, outcome, &mut progress);
        if progress.more {
            self.kick(client);
        }
        progress
    }

    fn serve_open<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        now_ns: u64,
        progress: &mut Progress,
    ) -> Result<(), RingError> {
        self.check_published(client, ring)?;
        if self.is_waiting(client) {
            return Ok(());
        }
        let is_free = self.flush(client, ring, progress)?;
        if !is_free {
            return Ok(());
        }
        match self.take(client, ring, progress)? {
            Taken::Part => {
                self.mutating.set(true);
                progress.advanced = self.rebuild_step(client);
                progress.more |= progress.advanced;
                self.mutating.set(false);
                Ok(())
            }
            Taken::Whole(len) => {
                let header = match self.request.first_chunk() {
                    Some(header) => Header::parse(header),
                    None => return Ok(()),
                };
                if self.is_deferred(client, &header, now_ns) {
                    return Ok(());
                }
                if self.goes_through_the_log(client, &header) {
                    self.propose(client, &header, len);
                    return Ok(());
                }
                if !self.is_loaded_for(client, &header, len) {
                    progress.advanced = true;
                    progress.more = true;
                    return Ok(());
                }
                self.execute(client, len, progress);
                if progress.fault.is_some() {
                    return Ok(());
                }
                self.note_transaction(client, &header, now_ns);
                self.answer(client, ring, len, progress)?;
                // The next request waits for its turn behind the other connections.
                progress.more |= self.has_more(client, ring);
                Ok(())
            }
        }
    }

    /// What of a connection nobody may have been told of: to be asked now and then, as a
    /// notification that was lost, by whoever's fault, would leave its client waiting for ever.
    pub fn overlooked<P: SharedMemory>(&self, client: u16, ring: &Ring<P>) -> Overlooked {
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return Overlooked::default();
        };
        let state = &connection.state;
        let is_open = state.phase == Phase::Open || state.phase == Phase::Replying;
        let request = ring.has_requests(state.consumed());
        let response = ring.room(state.produced).is_ok_and(|room| room < layout::RING_LEN);
        Overlooked { request: is_open && request, response: is_open && response }
    }

    pub(super) fn connection_mut(
        &mut self,
        client: u16,
    ) -> Option<&mut crate::connection::Connection> {
        self.connections.get_mut(usize::from(client))?.as_deref_mut()
    }

    /// The server's indices in a guest's page can be changed by the guest. One that emptied the
    /// whole page between two requests (hvmloader does) begins at zero; any other change is an
    /// error of that client.
    fn check_published<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
    ) -> Result<(), RingError> {
        let published = ring.published();
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return Ok(());
        };
        if published == (connection.state.consumed(), connection.state.produced) {
            return Ok(());
        }
        if !connection.was_emptied(published) {
            return Err(RingError::Index);
        }
        self.begin_at_zero(client);
        Ok(())
    }

    /// Both streams of a connection begin at zero again. Its last request is forgotten first: a
    /// new one may come to lie at the same place.
    pub(super) fn begin_at_zero(&mut self, client: u16) {
        self.order(client, Command::Forget);
    }

    /// Whether something remains to be done for a connection without a new kick.
    pub(super) fn has_more<P: SharedMemory>(&self, client: u16, ring: &Ring<P>) -> bool {
        let Some(Some(connection)) = self.connections.get(usize::from(client)) else {
            return false;
        };
        let state = &connection.state;
        let has_input = ring.has_requests(state.consumed());
        let has_output = connection.has_events() || connection.rebuild.is_some();
        state.phase == Phase::Open && state.sending == Sending::Nothing && (has_input || has_output)
    }

    /// Takes what the ring has of the next request. A request that fits the ring stays there until
    /// it is whole and executed; a longer one moves to the area piece by piece.
    fn take<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        progress: &mut Progress,
    ) -> Result<Taken, RingError> {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return Ok(Taken::Part);
        };
        let area = Area::new(&self.areas, client, key);
        let available = ring.requests(connection.state.consumed())?;
        let have = connection.state.have as usize;
        let (header, known) = connection.header(ring, available);
        let len = if known == HEADER_LEN {
            let payload = Header::parse(&header).payload_len().map_err(|_| RingError::Protocol)?;
            HEADER_LEN + payload
        } else {
            HEADER_LEN
        };
        self.request.clear();
        if have == 0 && known == HEADER_LEN && len <= available {
            self.request.resize(len, 0);
            ring.read(connection.state.position, &mut self.request);
            // The length must be the one that was checked, whatever the client has done since.
            self.request[..HEADER_LEN].copy_from_slice(&header);
            return Ok(Taken::Whole(len));
        }
        // A part is taken at once: a client may notify only the first part that it puts into an
        // empty ring, and trust that it is taken. It waits for room only if there was too little
        // for the rest; else the answer is the next that it needs to hear of, and a notification
        // of each header would cost a tenth of the request's time.
        let had_room = known == HEADER_LEN && len - have <= layout::RING_LEN;
        let count = available.min(len - have);
        if count > 0 {
            connection.make_room();
            let buffer = &mut connection.buffer;
            buffer.truncate(have);
            buffer.resize(have + count, 0);
            ring.read(connection.state.consumed(), &mut buffer[have..]);
            let checked = known.min(buffer.len());
            buffer[..checked].copy_from_slice(&header[..checked]);
            area.write_request(have, &buffer[have..]);
            connection.state.have = (have + count) as u32;
            connection.state.request_sum = area.message_sum(buffer);
            connection.save(&area);
            ring.publish_requests(connection.state.consumed());
            progress.notify |= !had_room;
            // What came before the client could see that is not announced.
            progress.more |= ring.requests(connection.state.consumed())? > 0;
        }
        if known < HEADER_LEN || have + count < len {
            return Ok(Taken::Part);
        }
        self.request.extend_from_slice(&connection.buffer[..len]);
        Ok(Taken::Whole(len))
    }

    /// Executes the request in `request`, unless it was executed already; the reply is in `reply`.
    fn execute(&mut self, client: u16, len: usize, progress: &mut Progress) {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else { return };
        let position = connection.state.position;
        let attempts = core::mem::take(&mut connection.attempts);
        let was_recovered = core::mem::take(&mut connection.recovered);
        let events_from = connection.state.events_head;
        let Some(header) = self.request[..len].first_chunk::<HEADER_LEN>() else { return };
        let header = Header::parse(header);
        progress.executed = true;
        self.stats.requests += 1;
        if was_recovered && self.answer_again(client, position) {
            return;
        }
        if attempts >= ATTEMPTS_MAX {
            self.reply.clear();
            self.reply.finish(&header, Err(Errno::Io));
            self.stats.given_up += 1;
            return;
        }
        Area::new(&self.areas, client, key).write_attempt(position, attempts + 1);
        let payload = &self.request[HEADER_LEN..len];
        let request = Request { client, position, header, payload };
        self.mutating.set(!State::is_harmless(&request));
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
            caller: Some((client, events_from)),
            scratch: &mut self.scratch,
        };
        let changed = self.state.apply(&request, &mut self.reply, &mut outbox);
        let reply_after = outbox.caller.map_or(events_from, |(_, place)| place);
        if changed {
            self.commit();
        }
        self.mutating.set(false);
        progress.fault = self.state.fault();
        if progress.fault.is_some() {
            self.slots.distrust_index();
        }
        self.note_reply(client, &header, changed, reply_after);
    }

    /// Notes what has to happen before the reply at hand goes out.
    pub(super) fn note_reply(
        &mut self,
        client: u16,
        header: &Header,
        changed: bool,
        reply_after: u64,
    ) {
        let held_by = (header.operation == Operation::Introduce && changed)
            .then(|| self.unattached())
            .flatten();
        if let Some(connection) = self.connection_mut(client) {
            connection.state.reply_after = reply_after;
            connection.held_by = held_by;
        }
    }

    /// The connection that the last INTRODUCE asks the shell to attach.
    fn unattached(&self) -> Option<u16> {
        self.actions.iter().rev().find_map(|action| match action {
            Action::Connect { client, .. } | Action::Rebind { client, .. } => Some(*client),
            _ => None,
        })
    }

    /// After a recovery: whether the request was executed in a former life; then its reply is
    /// there.
    pub(super) fn answer_again(&mut self, client: u16, position: u32) -> bool {
        let Some(found) = self.state.client(client) else { return false };
        if found.session.position != Some(position) || found.session.reply.is_empty() {
            return false;
        }
        self.reply.restore(&found.session.reply);
        self.stats.answered_again += 1;
        true
    }

    /// Sends the reply at once if it fits and nothing must go before it; else keeps it in the area
    /// and sends what fits.
    pub(super) fn answer<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        len: usize,
        progress: &mut Progress,
    ) -> Result<(), RingError> {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return Ok(());
        };
        let area = Area::new(&self.areas, client, key);
        let message = self.reply.message();
        let state = &mut connection.state;
        let goes_first = state.events_head >= state.reply_after || !connection.has_events();
        let state = &mut connection.state;
        let fits = ring.room(state.produced)? >= message.len();
        let position = state.position.wrapping_add(len as u32);
        if fits && goes_first && connection.held_by.is_none() {
            ring.write(state.produced, message);
            state.position = position;
            state.have = 0;
            state.produced = state.produced.wrapping_add(message.len() as u32);
            connection.save(&area);
            ring.publish_requests(position);
            ring.publish_responses(connection.state.produced);
            progress.notify = true;
            return Ok(());
        }
        area.write_reply(message);
        connection.hold(message);
        let state = &mut connection.state;
        state.position = position;
        state.have = 0;
        state.phase = Phase::Replying;
        state.reply_len = message.len() as u32;
        state.reply_sum = area.message_sum(message);
        connection.save(&area);
        ring.publish_requests(position);
        progress.notify = true;
        self.flush(client, ring, progress).map(|_| ())
    }

    /// Sends events and the kept reply as far as the ring takes them. Answers whether the next
    /// request may be taken.
    fn flush<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        progress: &mut Progress,
    ) -> Result<bool, RingError> {
        let key = self.slots.key();
        let Some(Some(connection)) = self.connections.get_mut(usize::from(client)) else {
            return Ok(false);
        };
        let area = Area::new(&self.areas, client, key);
        loop {
            if connection.state.sending == Sending::Nothing {
                match connection.next_message() {
                    Sending::Nothing => break,
                    next => {
                        connection.state.sending = next;
                        connection.state.sent = 0;
                    }
                }
            }
            let room = ring.room(connection.state.produced)?;
            if room == 0 {
                break;
            }
            if !connection.load_message(&area, &mut self.scratch) {
                // The event was damaged in the area: what it told is made again.
                connection.skip_damaged_event(&area)?;
                continue;
            }
            let message: &[u8] = match connection.state.sending {
                Sending::Reply => &connection.buffer,
                _ => &self.scratch,
            };
            let sent = connection.state.sent as usize;
            let count = room.min(message.len() - sent);
            ring.write(connection.state.produced, &message[sent..sent + count]);
            let is_whole = sent + count == message.len();
            connection.state.produced = connection.state.produced.wrapping_add(count as u32);
            connection.state.sent += count as u32;
            if is_whole {
                connection.finish_message();
            }
            connection.save(&area);
            ring.publish_responses(connection.state.produced);
            progress.notify = true;
        }
        let state = &connection.state;
        Ok(state.phase == Phase::Open && state.sending == Sending::Nothing)
    }

    /// Gives a connection up after an error in its ring; nobody else notices.
    pub(super) fn give_up<P: SharedMemory>(
        &mut self,
        client: u16,
        ring: &Ring<P>,
        error: RingError,
    ) {
        self.stats.ring_errors += 1;
        self.order(client, Command::Restart { is_dead: true });
        ring.set_error(error.raw());
    }

    /// Whether the reply to an INTRODUCE waits for this connection's ring.
    pub fn is_awaited(&self, client: u16) -> bool {
        self.connections.iter().flatten().any(|connection| connection.held_by == Some(client))
    }

    /// Lets go the replies that waited for a connection to be attached.
    pub(super) fn release_held(&mut self, attached: u16) {
        for client in 0..self.connections.len() {
            if let Some(connection) = &mut self.connections[client]
                && connection.held_by == Some(attached)
            {
                connection.held_by = None;
                self.kick(client as u16);
            }
        }
    }

    /// Replaces the replies that wait for a connection which could not be attached.
    pub(super) fn refuse_held(&mut self, failed: u16) {
        let key = self.slots.key();
        for (client, connection) in self.connections.iter_mut().enumerate() {
            let Some(connection) = connection else { continue };
            if connection.held_by != Some(failed) || connection.state.sent > 0 {
                continue;
            }
            let Some(header) = connection.buffer.first_chunk::<HEADER_LEN>() else { continue };
            let header = Header::parse(header);
            self.reply.clear();
            self.reply.finish(&header, Err(Errno::Invalid));
            connection.buffer.clear();
            connection.buffer.extend_from_slice(self.reply.message());
            let area = Area::new(&self.areas, client as u16, key);
            area.write_reply(&connection.buffer);
            connection.state.reply_len = connection.buffer.len() as u32;
            connection.state.reply_sum = area.message_sum(&connection.buffer);
            connection.save(&area);
        }
    }
}
