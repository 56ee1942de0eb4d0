//! Connections: rings, areas, and the queue of events of each.

mod area;
mod ring;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use fabric::SharedMemory;
use wire::ring::RingError;
use wire::{HEADER_LEN, Header, Operation};

pub use area::{AREA_LEN, Area, ConnectionState, EVENTS_LEN, Phase, Sending};
pub use ring::Ring;

/// What a connection of a replicated store waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Waiting {
    /// Nothing.
    #[default]
    Nothing,
    /// Its request is to be proposed, or a change of the connection executed.
    Proposal,
    /// The request of this many bytes is the log entry at `index`.
    Entry {
        /// Its place in the log.
        index: u64,
        /// Length of the request.
        len: usize,
    },
}

/// An event that waits in the area.
#[derive(Clone, Copy, Debug)]
struct Pending {
    len: u64,
    hash: u64,
}

/// A connection in the server's memory: a mirror of its area.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub state: ConnectionState,
    /// The events in the queue, oldest first.
    events: VecDeque<Pending>,
    /// Place behind the newest event.
    pub tail: u64,
    /// Whether its area was lost, so that its ring alone knows where the streams stand.
    pub is_unknown: bool,
    /// Whether the first request after a recovery has not been looked at yet.
    pub recovered: bool,
    /// How often the request at hand was begun in former lives.
    pub attempts: u32,
    /// Errors in a row that a second look at the ring did not find.
    pub doubts: u8,
    /// Whether it waits in the server's queue.
    pub is_queued: bool,
    /// What the log is to bring before it is served again.
    pub waiting: Waiting,
    /// Whether its ring is to be emptied when it is served next: its client asked for it.
    pub is_restarted: bool,
    /// A connection that must be attached before this one's reply goes out.
    pub held_by: Option<u16>,
    /// Where the reconstruction of lost events has come to.
    pub rebuild: Option<Rebuild>,
    /// Request bytes that lie in the area, or the message partly sent.
    pub buffer: Vec<u8>,
}

/// Reconstruction of events that found no room: each watch fires for itself and for every node
/// below it that changed since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rebuild {
    /// First commit of which an event is missing.
    pub since: u64,
    /// The watch at hand; 0 before the first.
    pub watch: u64,
    /// How far the walk below it has come; `None` between two watches.
    pub cursor: Option<Vec<u8>>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It is in the queue.
    Yes,
    /// The same event waits already.
    Repeated,
    /// There was no room.
    Lost,
}

impl Connection {
    /// A connection that begins in this state.
    pub fn new(state: ConnectionState) -> Self {
        Self { state, ..Self::default() }
    }

    /// Reads a connection back from its area. Answers also whether the area was damaged.
    pub fn load<A: SharedMemory>(area: &Area<'_, A>, life: u64, committed: u64) -> (Self, bool) {
        let fresh = ConnectionState { life, ..ConnectionState::default() };
        let mut connection = Self { recovered: true, ..Self::new(fresh) };
        let Some(state) = area.read_state(life) else {
            // What was sent is in the ring alone; what was queued is made anew.
            connection.state.lost_since = 1;
            connection.state.phase = Phase::Open;
            connection.is_unknown = true;
            return (connection, true);
        };
        area.repair(&state);
        connection.state = state;
        connection.attempts = area.attempts(state.position);
        let damaged = connection.load_messages(area) | connection.load_events(area, committed);
        if damaged {
            connection.state.lost_since = 1;
        }
        (connection, damaged)
    }

    fn load_messages<A: SharedMemory>(&mut self, area: &Area<'_, A>) -> bool {
        let state = &self.state;
        let (len, sum) = match state.phase {
            Phase::Replying => (state.reply_len, state.reply_sum),
            _ => (state.have, state.request_sum),
        };
        self.buffer.resize((len as usize).min(wire::MESSAGE_MAX), 0);
        match state.phase {
            Phase::Replying => area.read_reply(&mut self.buffer),
            _ => area.read_request(&mut self.buffer),
        }
        if len > 0 && area.message_sum(&self.buffer) != sum {
            // Half a message that cannot be completed: the stream is broken.
            self.state.phase = Phase::Dead;
            return true;
        }
        false
    }

    fn load_events<A: SharedMemory>(&mut self, area: &Area<'_, A>, committed: u64) -> bool {
        let mut content = Vec::new();
        self.tail = self.state.events_head;
        while self.tail - self.state.events_head < EVENTS_LEN as u64 {
            match area.read_event(self.state.life, self.tail, &mut content) {
                Some(commit) if commit <= committed => {
                    let len = Area::<A>::event_len(content.len());
                    self.events.push_back(Pending { len, hash: area.message_sum(&content) });
                    self.tail += len;
                }
                Some(_) => {
                    // Of a commit that did not happen.
                    area.erase_event(self.tail);
                    break;
                }
                None => break,
            }
        }
        self.state.sending == Sending::Event && self.events.is_empty()
    }

    /// Whether the client emptied its page between two requests, as hvmloader does: then both
    /// streams begin at zero again.
    pub fn was_emptied(&self, published: (u32, u32)) -> bool {
        let state = &self.state;
        let is_idle = state.have == 0
            && state.sending == Sending::Nothing
            && matches!(state.phase, Phase::Open);
        is_idle && published == (0, 0) && (state.position, state.produced) != (0, 0)
    }

    /// The next request's header, of which so many bytes are known: what was taken of it before,
    /// and what lies in the ring, which holds so many bytes of requests.
    pub fn header<P: SharedMemory>(
        &self,
        ring: &Ring<P>,
        available: usize,
    ) -> ([u8; HEADER_LEN], usize) {
        let mut header = [0; HEADER_LEN];
        let kept = (self.state.have as usize).min(HEADER_LEN);
        header[..kept].copy_from_slice(&self.buffer[..kept]);
        let known = kept + available.min(HEADER_LEN - kept);
        ring.read(self.state.consumed(), &mut header[kept..known]);
        (header, known)
    }

    /// Whether there is an error of the client's in its ring now.
    pub fn shows_error<P: SharedMemory>(&self, ring: &Ring<P>) -> bool {
        let (state, published) = (&self.state, ring.published());
        if published != (state.consumed(), state.produced) && !self.was_emptied(published) {
            return true;
        }
        let Ok(available) = ring.requests(state.consumed()) else { return true };
        let (header, known) = self.header(ring, available);
        let is_long = known == HEADER_LEN && Header::parse(&header).payload_len().is_err();
        is_long || ring.room(state.produced).is_err()
    }

    /// After a recovery: brings the ring to what the area says, or what is left of it.
    pub fn adopt<P: SharedMemory, A: SharedMemory>(&mut self, ring: &Ring<P>, area: &Area<'_, A>) {
        if core::mem::take(&mut self.is_unknown) {
            (self.state.position, self.state.produced) = ring.published();
            self.save(area);
        }
        self.attempts = area.attempts(self.state.position);
        ring.publish_requests(self.state.consumed());
        ring.publish_responses(self.state.produced);
    }

    /// Gives the buffer all the room that a message can need at once: it never has to move, so
    /// no crash can come while it does.
    pub fn make_room(&mut self) {
        if self.buffer.capacity() < wire::MESSAGE_MAX {
            let mut larger = Vec::with_capacity(wire::MESSAGE_MAX);
            larger.extend_from_slice(&self.buffer);
            self.buffer = larger;
        }
    }

    /// Puts a message into the buffer.
    pub fn hold(&mut self, message: &[u8]) {
        self.make_room();
        self.buffer.clear();
        self.buffer.extend_from_slice(message);
    }

    /// Writes the state.
    pub fn save<A: SharedMemory>(&mut self, area: &Area<'_, A>) {
        self.state.version += 1;
        area.write_state(&self.state);
    }

    /// Writes the copies of the state again of which one is damaged. Answers whether one was.
    pub fn scrub<A: SharedMemory>(&mut self, area: &Area<'_, A>) -> bool {
        let is_damaged = self.state.phase != Phase::Fresh && !area.is_whole();
        if is_damaged {
            self.save(area);
        }
        is_damaged
    }

    /// Whether events wait.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Queues an event of commit `commit`.
    pub fn queue<A: SharedMemory>(
        &mut self,
        area: &Area<'_, A>,
        commit: u64,
        content: &[u8],
    ) -> Queued {
        if self.state.lost_since != 0 && self.rebuild.is_none() {
            return Queued::Lost;
        }
        let hash = area.message_sum(content);
        // The one that is being sent may have been acted upon already; a special event stands
        // for a domain of its own.
        let started = usize::from(self.state.sending == Sending::Event);
        let is_special = content.first() == Some(&b'@');
        if !is_special && self.events.iter().skip(started).any(|waiting| waiting.hash == hash) {
            return Queued::Repeated;
        }
        let len = Area::<A>::event_len(content.len());
        if self.tail - self.state.events_head + len > EVENTS_LEN as u64 {
            let since = self.rebuild.take().map_or(commit, |rebuild| rebuild.since.min(commit));
            self.state.lost_since = since;
            self.save(area);
            return Queued::Lost;
        }
        area.write_event(self.state.life, self.tail, commit, content);
        self.events.push_back(Pending { len, hash });
        self.tail += len;
        Queued::Yes
    }

    /// Whether the queue is at most half full: room to reconstruct events.
    pub fn has_room_for_rebuild(&self) -> bool {
        self.tail - self.state.events_head <= EVENTS_LEN as u64 / 4
    }

    /// Drops the oldest event. The caller saves the state.
    fn drop_event(&mut self) {
        if let Some(waiting) = self.events.pop_front() {
            self.state.events_head += waiting.len;
        }
    }

    /// Which message goes next.
    pub fn next_message(&self) -> Sending {
        let has_reply = self.state.phase == Phase::Replying && self.held_by.is_none();
        let events_first = self.state.events_head < self.state.reply_after;
        match (has_reply, self.has_events()) {
            (true, events) if !(events && events_first) => Sending::Reply,
            (_, true) => Sending::Event,
            _ => Sending::Nothing,
        }
    }

    /// Puts the event that is being sent into `message`; `false` if it is damaged.
    pub fn load_message<A: SharedMemory>(&self, area: &Area<'_, A>, message: &mut Vec<u8>) -> bool {
        if self.state.sending == Sending::Reply {
            return true;
        }
        let state = &self.state;
        if area.read_event(state.life, state.events_head, message).is_none() {
            return false;
        }
        let header = Header {
            operation: Operation::WatchEvent,
            request: 0,
            transaction: 0,
            len: message.len() as u32,
        };
        message.splice(..0, header.emit());
        true
    }

    /// The message is in the ring as a whole. The caller saves the state.
    pub fn finish_message(&mut self) {
        match self.state.sending {
            Sending::Reply => self.state.phase = Phase::Open,
            _ => self.drop_event(),
        }
        self.state.sending = Sending::Nothing;
        self.state.sent = 0;
    }

    /// Drops an event that was damaged in the area. If a part of it is in the ring already, the
    /// stream is broken.
    pub fn skip_damaged_event<A: SharedMemory>(
        &mut self,
        area: &Area<'_, A>,
    ) -> Result<(), RingError> {
        if self.state.sent > 0 {
            return Err(RingError::Communication);
        }
        self.state.sending = Sending::Nothing;
        self.drop_event();
        self.state.lost_since = 1;
        self.rebuild = None;
        self.save(area);
        Ok(())
    }
}
