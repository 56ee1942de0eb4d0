//! A small state machine: registers and counters, with sessions for exactly once. It stands where
//! the XenStore engine will stand.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use raft::{Chunk, Request, RestoreError, StateMachine};

use crate::disk::Fuse;

/// What a client may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// The register's value.
    Read(u16),
    /// Sets the register.
    Write(u16, u64),
    /// Adds one to the client's own counter and returns it.
    Add(u16),
}

impl Op {
    /// The request as bytes, `pad` bytes longer than needed.
    pub fn encode(self, pad: usize) -> Vec<u8> {
        let (tag, key, value) = match self {
            Self::Read(key) => (0, key, 0),
            Self::Write(key, value) => (1, key, value),
            Self::Add(key) => (2, key, 0),
        };
        let mut bytes = vec![tag];
        bytes.extend(key.to_le_bytes());
        bytes.extend(u64::to_le_bytes(value));
        bytes.resize(bytes.len() + pad, tag);
        bytes
    }

    /// Reads it back; `None` when the bytes are no request.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let key = u16::from_le_bytes(bytes.get(1..3)?.try_into().ok()?);
        let value = u64::from_le_bytes(bytes.get(3..11)?.try_into().ok()?);
        match bytes[0] {
            0 => Some(Self::Read(key)),
            1 => Some(Self::Write(key, value)),
            2 => Some(Self::Add(key)),
            _ => None,
        }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The value read, or the counter.
    Value(u64),
    /// The request is older than the last one executed on its connection.
    Old,
    /// The state that the answer would rest on is damaged.
    Damaged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell64 {
    value: u64,
    crc: u32,
}

impl Cell64 {
    fn new(value: u64) -> Self {
        Self { value, crc: crc32fast::hash(&value.to_le_bytes()) }
    }

    fn read(self) -> Option<u64> {
        (Self::new(self.value) == self).then_some(self.value)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    applied: u64,
    cells: BTreeMap<u16, Cell64>,
    /// Last sequence of each connection, and what it was answered.
    sessions: BTreeMap<u32, (u64, u64)>,
    digest: u64,
}

fn mix(parts: [u64; 3]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, part| {
        (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    })
}

impl State {
    fn set(&mut self, key: u16, value: u64) {
        let old = self.cells.insert(key, Cell64::new(value));
        self.digest ^= old.map_or(0, |old| mix([1, key.into(), old.value]));
        self.digest ^= mix([1, key.into(), value]);
    }

    fn remember(&mut self, connection: u32, sequence: u64, reply: u64) {
        let tag = |reply| 2 | u64::from(connection) << 8 | u64::wrapping_mul(reply, 0x10001) << 40;
        let old = self.sessions.insert(connection, (sequence, reply));
        self.digest ^= old.map_or(0, |(sequence, reply)| mix([tag(reply), sequence, reply]));
        self.digest ^= mix([tag(reply), sequence, reply]);
    }

    fn serialize(&self) -> VecDeque<u8> {
        let mut bytes = VecDeque::new();
        for (key, cell) in &self.cells {
            bytes.extend([1_u64, u64::from(*key), cell.value].iter().flat_map(|n| n.to_le_bytes()));
        }
        for (connection, (sequence, reply)) in &self.sessions {
            let words = [2 | u64::from(*connection) << 8, *sequence, *reply];
            bytes.extend(words.iter().flat_map(|n| n.to_le_bytes()));
        }
        bytes
    }
}

/// The state machine of one replica. Its state survives the replica's crashes, as the store's
/// does, up to the instant at which the fuse blew.
#[derive(Debug)]
pub struct Kv {
    state: State,
    fuse: Rc<Fuse>,
    snapshots: BTreeMap<usize, VecDeque<u8>>,
    chunk: usize,
    arriving: Option<Vec<u8>>,
    damaged: Cell<bool>,
}

impl Kv {
    /// An empty one; snapshots travel in pieces of at most `chunk` bytes.
    pub fn new(fuse: Rc<Fuse>, chunk: usize) -> Self {
        let (snapshots, arriving) = (BTreeMap::new(), None);
        let damaged = Cell::new(false);
        Self { state: State::default(), fuse, snapshots, chunk, arriving, damaged }
    }

    /// Reads a register (0 when it was never written).
    pub fn read(&self, key: u16) -> Answer {
        match self.state.cells.get(&key).map_or(Some(0), |cell| cell.read()) {
            Some(value) => Answer::Value(value),
            None => {
                self.damaged.set(true);
                Answer::Damaged
            }
        }
    }

    /// Whether damage was met; to be asked after each use.
    pub fn damaged(&self) -> bool {
        self.damaged.get()
    }

    /// Checks every cell, as the scrubber does.
    pub fn scrub(&self) -> bool {
        let whole = self.state.cells.values().all(|cell| cell.read().is_some());
        self.damaged.set(self.damaged() || !whole);
        whole
    }

    /// Flips a bit of the `choice`-th cell; false when there is none.
    pub fn flip(&mut self, choice: u64) -> bool {
        let len = self.state.cells.len().max(1) as u64;
        let cell = self.state.cells.values_mut().nth((choice % len) as usize);
        cell.map(|cell| cell.value ^= 1 << (choice / len % 64)).is_some()
    }

    /// Empties it: its memory is gone.
    pub fn wipe(&mut self) {
        self.state = State::default();
        self.forget();
    }

    /// Forgets what a crash makes forget: snapshots under way, and that damage was met.
    pub fn forget(&mut self) {
        self.snapshots.clear();
        self.arriving = None;
        self.damaged.set(false);
    }

    /// Last sequence executed on a connection.
    pub fn sequence(&self, connection: u32) -> u64 {
        self.state.sessions.get(&connection).map_or(0, |(sequence, _)| *sequence)
    }

    /// Connections remembered, and snapshots held.
    pub fn sizes(&self) -> (usize, usize) {
        (self.state.sessions.len(), self.snapshots.len())
    }

    fn execute(&mut self, op: Op) -> Option<u64> {
        match op {
            Op::Read(_) => Some(0),
            Op::Write(key, value) => {
                let Answer::Value(_) = self.read(key) else { return None };
                self.state.set(key, value);
                Some(0)
            }
            Op::Add(key) => {
                let Answer::Value(old) = self.read(key) else { return None };
                self.state.set(key, old + 1);
                Some(old + 1)
            }
        }
    }
}

impl StateMachine for Kv {
    type Reply = Answer;

    fn apply(&mut self, index: u64, request: Request<'_>) -> Answer {
        if self.fuse.burn(1) == 0 {
            return Answer::Damaged;
        }
        assert_eq!(index, self.state.applied + 1, "entries are applied in order, each once");
        let Request { connection, sequence, payload } = request;
        let last = self.state.sessions.get(&connection).copied().unwrap_or((0, 0));
        let answer = match sequence.cmp(&last.0) {
            Ordering::Less => Answer::Old,
            Ordering::Equal => Answer::Value(last.1),
            Ordering::Greater => {
                let op = Op::decode(payload).expect("only whole requests are committed");
                // An entry that met damage is not applied: it will be, on a restored state.
                let Some(reply) = self.execute(op) else { return Answer::Damaged };
                self.state.remember(connection, sequence, reply);
                Answer::Value(reply)
            }
        };
        self.state.applied = index;
        answer
    }

    fn advance(&mut self, index: u64) {
        if self.fuse.burn(1) == 1 {
            assert_eq!(index, self.state.applied + 1, "entries are applied in order, each once");
            self.state.applied = index;
        }
    }

    fn applied(&self) -> u64 {
        self.state.applied
    }

    fn digest(&self) -> u64 {
        self.state.digest
    }

    fn snapshot_open(&mut self, slot: usize) {
        // Damage must not travel: it is noted here, and the replica stops being a source.
        self.scrub();
        self.snapshots.insert(slot, self.state.serialize());
    }

    fn snapshot_chunk(&mut self, slot: usize, out: &mut [u8]) -> Chunk {
        let open = self.snapshots.get_mut(&slot).expect("an open snapshot");
        let len = open.len().min(out.len()).min(self.chunk);
        for (to, from) in out.iter_mut().zip(open.drain(..len)) {
            *to = from;
        }
        Chunk { len, last: open.is_empty() }
    }

    fn snapshot_close(&mut self, slot: usize) {
        self.snapshots.remove(&slot);
    }

    fn restore_open(&mut self) {
        self.arriving = Some(Vec::new());
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.arriving.as_mut().ok_or(RestoreError)?.extend(bytes);
        Ok(())
    }

    fn restore_close(&mut self, index: u64, digest: u64) -> Result<(), RestoreError> {
        let bytes = self.arriving.take().ok_or(RestoreError)?;
        let mut state = State::default();
        for record in bytes.chunks(24) {
            let word = |at: usize| {
                let bytes = record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
                bytes.map(u64::from_le_bytes).ok_or(RestoreError)
            };
            let (head, second, third) = (word(0)?, word(8)?, word(16)?);
            match head & 0xff {
                1 => state.set(second as u16, third),
                _ => state.remember((head >> 8) as u32, second, third),
            }
        }
        state.applied = index;
        if state.digest != digest || self.fuse.burn(1) == 0 {
            return Err(RestoreError);
        }
        self.state = state;
        self.damaged.set(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sequence: u64, payload: &[u8]) -> Request<'_> {
        Request { connection: 16, sequence, payload }
    }

    #[test]
    fn a_repeated_request_is_answered_and_not_executed() {
        let mut kv = Kv::new(Fuse::new(), 24);
        let add = Op::Add(1).encode(3);
        assert_eq!(kv.apply(1, request(1, &add)), Answer::Value(1));
        assert_eq!(kv.apply(2, request(1, &add)), Answer::Value(1));
        assert_eq!(kv.apply(3, request(2, &add)), Answer::Value(2));
        assert_eq!(kv.apply(4, request(1, &add)), Answer::Old);
        assert_eq!(kv.read(1), Answer::Value(2));
    }

    #[test]
    fn a_snapshot_gives_the_same_state() {
        let (mut from, mut to) = (Kv::new(Fuse::new(), 50), Kv::new(Fuse::new(), 50));
        from.apply(1, request(1, &Op::Write(7, 70).encode(0)));
        from.apply(2, request(2, &Op::Add(8).encode(0)));
        from.snapshot_open(0);
        to.restore_open();
        let mut piece = [0; 100];
        loop {
            let chunk = from.snapshot_chunk(0, &mut piece);
            to.restore_chunk(&piece[..chunk.len]).unwrap();
            if chunk.last {
                break;
            }
        }
        to.restore_close(2, from.digest()).unwrap();
        assert_eq!(to.state, from.state);
    }

    #[test]
    fn a_flipped_cell_is_not_read() {
        let mut kv = Kv::new(Fuse::new(), 50);
        kv.apply(1, request(1, &Op::Write(7, 70).encode(0)));
        assert!(kv.flip(5) && !kv.scrub());
        assert_eq!(kv.read(7), Answer::Damaged);
    }
}
