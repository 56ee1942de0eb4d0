//! The area of a connection: what must outlive the server so that nothing is lost or repeated.
//!
//! ```text
//! 0      state, copy A (96 bytes)      512    request, partly taken (4,112 bytes)
//! 128    state, copy B                 4624   reply, partly sent (4,112 bytes)
//! 256    execution attempt, checked    8736   queue of watch events (7,648 bytes)
//! 264    u64 attempt at a log entry
//! ```
//!
//! The state is written whole, copy A before copy B, and always before the index in the ring that
//! it explains. So an interrupted store leaves the state before or after it, a flipped bit leaves
//! the other copy, and recovery brings the ring to what the state says.

use fabric::{SharedMemory, checked};

use crate::checksum::{Checksum, checksum};

/// Bytes of an area: four pages.
pub const AREA_LEN: usize = 4 * 4096;

const COPIES: [usize; 2] = [0, 128];
const ATTEMPT_AT: usize = 256;
const ENTRY_AT: usize = 264;
/// Tells the word of the attempt from any other (`fabric::checked`).
const ATTEMPT_SALT: u16 = 0x4154;
const REQUEST_AT: usize = 512;
const REPLY_AT: usize = REQUEST_AT + wire::MESSAGE_MAX;
const EVENTS_AT: usize = REPLY_AT + wire::MESSAGE_MAX;

/// Bytes of the queue of events.
pub const EVENTS_LEN: usize = AREA_LEN - EVENTS_AT;

const STATE_LEN: usize = 96;

/// Bytes before the content of an event: checksum, commit, length.
const EVENT_HEAD: usize = 24;

/// What the connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// Its ring has to be emptied first.
    #[default]
    Fresh,
    /// It takes requests.
    Open,
    /// A reply is in the area.
    Replying,
    /// Given up after a ring error.
    Dead,
}

/// Which message is partly in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sending {
    /// None.
    #[default]
    Nothing,
    /// The reply.
    Reply,
    /// The oldest event.
    Event,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConnectionState {
    /// Grows with each write of the state.
    pub version: u64,
    /// The life of the connection that it belongs to.
    pub life: u64,
    /// Where the current request begins in the stream of requests.
    pub position: u32,
    /// Bytes of it that lie in the area.
    pub have: u32,
    /// Checksum of these bytes.
    pub request_sum: u64,
    /// Where the stream of responses ends.
    pub produced: u32,
    /// What the connection is doing.
    pub phase: Phase,
    /// Which message is partly in the ring.
    pub sending: Sending,
    /// Bytes of that message in the ring.
    pub sent: u32,
    /// Length of the reply in the area.
    pub reply_len: u32,
    /// Checksum of the reply in the area.
    pub reply_sum: u64,
    /// Events before this place in their queue go out before the reply.
    pub reply_after: u64,
    /// Place of the oldest event in the stream of all events.
    pub events_head: u64,
    /// First commit of which an event found no room; 0 if none.
    pub lost_since: u64,
    /// Term of the leader that wrote it; 0 in a store without replicas.
    pub term: u64,
}

impl ConnectionState {
    /// Where the stream of requests has been taken to.
    pub fn consumed(&self) -> u32 {
        self.position.wrapping_add(self.have)
    }

    fn encode(&self, key: u64) -> [u8; STATE_LEN] {
        let halves = [
            u64::from(self.position) | u64::from(self.have) << 32,
            u64::from(self.produced) | u64::from(self.sent) << 32,
            u64::from(self.reply_len) | (self.phase as u64) << 32 | (self.sending as u64) << 40,
        ];
        let words = [
            self.version,
            self.life,
            halves[0],
            self.request_sum,
            halves[1],
            halves[2],
            self.reply_sum,
            self.reply_after,
            self.events_head,
            self.lost_since,
            self.term,
        ];
        let mut bytes = [0; STATE_LEN];
        let mut sum = Checksum::new(key);
        for (to, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            sum = sum.word(word);
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes[..8].copy_from_slice(&sum.finish().to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; STATE_LEN], key: u64) -> Option<Self> {
        let (chunks, _) = bytes.as_chunks::<8>();
        let words: [u64; 12] = core::array::from_fn(|at| u64::from_le_bytes(chunks[at]));
        let sum = words[1..].iter().fold(Checksum::new(key), |sum, word| sum.word(*word));
        if sum.finish() != words[0] {
            return None;
        }
        Some(Self {
            version: words[1],
            life: words[2],
            position: words[3] as u32,
            have: (words[3] >> 32) as u32,
            request_sum: words[4],
            produced: words[5] as u32,
            sent: (words[5] >> 32) as u32,
            reply_len: words[6] as u32,
            phase: match words[6] >> 32 & 0xff {
                0 => Phase::Fresh,
                1 => Phase::Open,
                2 => Phase::Replying,
                _ => Phase::Dead,
            },
            sending: match words[6] >> 40 & 0xff {
                0 => Sending::Nothing,
                1 => Sending::Reply,
                _ => Sending::Event,
            },
            reply_sum: words[7],
            reply_after: words[8],
            events_head: words[9],
            lost_since: words[10],
            term: words[11],
        })
    }
}

/// The area of one connection.
#[derive(Debug)]
pub struct Area<'a, A> {
    memory: &'a A,
    at: usize,
    key: u64,
}

impl<'a, A: SharedMemory> Area<'a, A> {
    /// The area of connection `client`. `key` is the store's.
    pub fn new(memory: &'a A, client: u16, key: u64) -> Self {
        let key = key ^ (u64::from(client) + 1) << 40;
        Self { memory, at: usize::from(client) * AREA_LEN, key }
    }

    /// Writes the state.
    pub fn write_state(&self, state: &ConnectionState) {
        let bytes = state.encode(self.key);
        for copy in COPIES {
            self.memory.write(self.at + copy, &bytes);
        }
    }

    /// The state last written in this life; `None` if both copies are damaged.
    pub fn read_state(&self, life: u64) -> Option<ConnectionState> {
        // The first copy is written first: where it is intact, the other one is no newer.
        COPIES.into_iter().find_map(|copy| {
            let mut bytes = [0; STATE_LEN];
            self.memory.read(self.at + copy, &mut bytes);
            ConnectionState::decode(&bytes, self.key).filter(|state| state.life == life)
        })
    }

    /// Whether both copies of the state are intact.
    pub fn is_whole(&self) -> bool {
        COPIES.into_iter().all(|copy| {
            let mut bytes = [0; STATE_LEN];
            self.memory.read(self.at + copy, &mut bytes);
            ConnectionState::decode(&bytes, self.key).is_some()
        })
    }

    /// Writes `state`, which was read, to the copy that does not hold it. A crash left that one
    /// behind or torn; the next crash may tear the other one.
    pub fn repair(&self, state: &ConnectionState) {
        let whole = state.encode(self.key);
        for copy in COPIES {
            let mut bytes = [0; STATE_LEN];
            self.memory.read(self.at + copy, &mut bytes);
            if bytes != whole {
                self.memory.write(self.at + copy, &whole);
            }
        }
    }

    /// Writes the copy of this life's state again that is damaged, if the other one is intact.
    /// Answers whether it did.
    pub fn scrub(&self, life: u64) -> bool {
        let intact = self.read_state(life).filter(|_| !self.is_whole());
        intact.inspect(|state| self.repair(state)).is_some()
    }

    /// Notes that the request at `position` is about to be executed for the `count`th time.
    pub fn write_attempt(&self, position: u32, count: u32) {
        let value = u64::from(position) | u64::from(count) << 32;
        self.memory.store_u64(self.at + ATTEMPT_AT, checked::encode(value, ATTEMPT_SALT));
    }

    /// How often the request at `position` has been begun, as far as is known.
    pub fn attempts(&self, position: u32) -> u32 {
        let word = self.memory.load_u64(self.at + ATTEMPT_AT);
        match checked::decode(word, ATTEMPT_SALT) {
            Some(value) if value as u32 == position => (value >> 32) as u32,
            _ => 0,
        }
    }

    /// Forgets how often a request has been begun.
    pub fn clear_attempts(&self) {
        self.memory.store_u64(self.at + ATTEMPT_AT, 0);
    }

    /// Notes that the log entry at `index` is about to be executed for the `count`th time.
    pub fn write_entry_attempt(&self, index: u64, count: u32) {
        self.memory.store_u64(self.at + ENTRY_AT, index << 8 | u64::from(count.min(255)));
    }

    /// How often the execution of the log entry at `index` has been begun.
    pub fn entry_attempts(&self, index: u64) -> u32 {
        let word = self.memory.load_u64(self.at + ENTRY_AT);
        if word >> 8 == index { word as u8 as u32 } else { 0 }
    }

    /// Whether no copy of the state belongs to this life or is damaged: nobody has served it yet.
    pub fn is_untouched(&self, life: u64) -> bool {
        COPIES.into_iter().all(|copy| {
            let mut bytes = [0; STATE_LEN];
            self.memory.read(self.at + copy, &mut bytes);
            let other = ConnectionState::decode(&bytes, self.key);
            bytes == [0; STATE_LEN] || other.is_some_and(|state| state.life != life)
        })
    }

    /// Takes over what another replica kept of the connection whose state is `state`.
    pub fn copy_from<B: SharedMemory>(&self, other: &Area<'_, B>, state: &ConnectionState) {
        let mut bytes = alloc::vec![0; (state.have as usize).min(wire::MESSAGE_MAX)];
        other.read_request(&mut bytes);
        self.write_request(0, &bytes);
        bytes.resize((state.reply_len as usize).min(wire::MESSAGE_MAX), 0);
        other.read_reply(&mut bytes);
        self.write_reply(&bytes);
        let mut place = state.events_head;
        while place - state.events_head < EVENTS_LEN as u64
            && let Some(commit) = other.read_event(state.life, place, &mut bytes)
        {
            self.write_event(state.life, place, commit, &bytes);
            place += Self::event_len(bytes.len());
        }
        if place - state.events_head < EVENTS_LEN as u64 {
            self.erase_event(place);
        }
        self.memory.store_u64(self.at + ATTEMPT_AT, 0);
    }

    /// Adds bytes of the request behind the `have` that are there.
    pub fn write_request(&self, have: usize, bytes: &[u8]) {
        self.memory.write(self.at + REQUEST_AT + have, bytes);
    }

    /// Reads the request as far as it is there.
    pub fn read_request(&self, into: &mut [u8]) {
        self.memory.read(self.at + REQUEST_AT, into);
    }

    /// Keeps a reply.
    pub fn write_reply(&self, message: &[u8]) {
        self.memory.write(self.at + REPLY_AT, message);
    }

    /// Reads the kept reply.
    pub fn read_reply(&self, into: &mut [u8]) {
        self.memory.read(self.at + REPLY_AT, into);
    }

    /// The checksum of messages in this area.
    pub fn message_sum(&self, message: &[u8]) -> u64 {
        checksum(self.key, message)
    }

    /// Bytes that an event takes in the queue.
    pub fn event_len(content: usize) -> u64 {
        (EVENT_HEAD + content.next_multiple_of(8)) as u64
    }

    /// The life is covered because each begins at place 0 again: what a former life left in the
    /// queue must not pass for an event of this one, whose client may be another domain.
    fn event_sum(&self, life: u64, place: u64, commit: u64, content: &[u8]) -> u64 {
        Checksum::new(self.key).word(life).word(place).word(commit).bytes(content).finish()
    }

    /// Writes an event of the connection's `life` at `place` in the stream of events; the caller
    /// has seen to the room.
    pub fn write_event(&self, life: u64, place: u64, commit: u64, content: &[u8]) {
        let sum = self.event_sum(life, place, commit, content);
        self.copy_in(place + 8, &commit.to_le_bytes());
        self.copy_in(place + 16, &(content.len() as u64).to_le_bytes());
        self.copy_in(place + EVENT_HEAD as u64, content);
        self.copy_in(place, &sum.to_le_bytes());
    }

    /// Reads the event of the connection's `life` at `place` into `content` and answers its
    /// commit; `None` if there is none.
    pub fn read_event(
        &self,
        life: u64,
        place: u64,
        content: &mut alloc::vec::Vec<u8>,
    ) -> Option<u64> {
        let mut head = [0; EVENT_HEAD];
        self.copy_out(place, &mut head);
        let (words, _) = head.as_chunks::<8>();
        let [sum, commit, len] = core::array::from_fn(|at| u64::from_le_bytes(words[at]));
        if len as usize > wire::PAYLOAD_MAX {
            return None;
        }
        content.clear();
        content.resize(len as usize, 0);
        self.copy_out(place + EVENT_HEAD as u64, content);
        (self.event_sum(life, place, commit, content) == sum).then_some(commit)
    }

    /// Makes the event at `place` no event.
    pub fn erase_event(&self, place: u64) {
        self.copy_in(place, &[0; 8]);
    }

    fn copy_in(&self, place: u64, bytes: &[u8]) {
        let start = (place % EVENTS_LEN as u64) as usize;
        let first = bytes.len().min(EVENTS_LEN - start);
        self.memory.write(self.at + EVENTS_AT + start, &bytes[..first]);
        if first < bytes.len() {
            self.memory.write(self.at + EVENTS_AT, &bytes[first..]);
        }
    }

    fn copy_out(&self, place: u64, bytes: &mut [u8]) {
        let start = (place % EVENTS_LEN as u64) as usize;
        let first = bytes.len().min(EVENTS_LEN - start);
        let (head, tail) = bytes.split_at_mut(first);
        self.memory.read(self.at + EVENTS_AT + start, head);
        if !tail.is_empty() {
            self.memory.read(self.at + EVENTS_AT, tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{bytes_of, compare};
    use fabric::HeapMemory;

    #[test]
    fn the_golden_vector_is_what_is_written() {
        let memory = HeapMemory::new(2 * AREA_LEN);
        let area = Area::new(&memory, 1, 9);
        let (request, reply, event) = (b"half a reque", b"a whole reply", b"/a\0token\0");
        area.write_state(&ConnectionState {
            version: 7,
            life: 3,
            position: 0xffff_fff0,
            have: request.len() as u32,
            request_sum: area.message_sum(request),
            produced: 0x123,
            phase: Phase::Replying,
            sending: Sending::Event,
            sent: 4,
            reply_len: reply.len() as u32,
            reply_sum: area.message_sum(reply),
            reply_after: 40,
            events_head: 0,
            lost_since: 6,
            term: 2,
        });
        area.write_request(0, request);
        area.write_reply(reply);
        area.write_event(3, 0, 5, event);
        area.write_attempt(0xffff_fff0, 1);
        area.write_entry_attempt(0x11, 2);
        compare("area", &bytes_of(&memory)[AREA_LEN..]);
    }

    #[test]
    fn one_flipped_bit_loses_nothing() {
        let memory = HeapMemory::new(2 * AREA_LEN);
        let area = Area::new(&memory, 1, 99);
        let state = ConnectionState {
            version: 7,
            life: 3,
            position: 0xffff_fff0,
            have: 5,
            produced: 12,
            phase: Phase::Replying,
            sending: Sending::Event,
            sent: 4,
            ..ConnectionState::default()
        };
        area.write_state(&state);
        for bit in 0..STATE_LEN * 8 {
            let at = AREA_LEN + bit / 8 / 8 * 8;
            let word = memory.load_u64(at);
            memory.store_u64(at, word ^ 1 << (bit % 64));
            assert_eq!(area.read_state(3), Some(state));
            memory.store_u64(at, word);
        }
        assert_eq!(Area::new(&memory, 0, 99).read_state(3), None);
    }

    #[test]
    fn a_second_crash_loses_nothing() {
        let memory = HeapMemory::new(AREA_LEN);
        let area = Area::new(&memory, 0, 1);
        let old = ConnectionState { version: 1, life: 3, ..ConnectionState::default() };
        let new = ConnectionState { version: 2, position: 40, ..old };
        area.write_state(&new);
        // The second copy was being written.
        memory.store_u64(COPIES[1] + 16, 99);
        area.repair(&new);
        // Now the first one is.
        memory.store_u64(COPIES[0] + 16, 99);
        assert_eq!(area.read_state(3), Some(new));
    }

    #[test]
    fn events_wrap() {
        let memory = HeapMemory::new(AREA_LEN);
        let area = Area::new(&memory, 0, 1);
        let mut place = 0;
        let mut content = alloc::vec::Vec::new();
        for commit in 0..1000u64 {
            let event = vec![commit as u8; (commit % 97) as usize];
            area.write_event(1, place, commit, &event);
            assert_eq!(area.read_event(1, place, &mut content), Some(commit));
            assert_eq!(content, event);
            assert_eq!(area.read_event(2, place, &mut content), None, "of another life");
            place += Area::<HeapMemory>::event_len(event.len());
            assert_eq!(area.read_event(1, place, &mut content), None);
        }
    }

    #[test]
    fn attempts_belong_to_a_request() {
        let memory = HeapMemory::new(AREA_LEN);
        let area = Area::new(&memory, 0, 1);
        area.write_attempt(500, 2);
        assert_eq!((area.attempts(500), area.attempts(516)), (2, 0));
        // A flipped bit is no reason to give a request up.
        for bit in 0..64 {
            area.write_attempt(500, 1);
            memory.store_u64(ATTEMPT_AT, memory.load_u64(ATTEMPT_AT) ^ 1 << bit);
            assert_eq!(area.attempts(500), 0);
        }
        area.write_attempt(500, 2);
        area.clear_attempts();
        assert_eq!(area.attempts(500), 0);
    }
}
