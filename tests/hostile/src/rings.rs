//! Attacks on the XenStore ring itself.

use fabric::SharedMemory;
use wire::{HEADER_LEN, Header, Operation, ring};

use crate::victim::Attacker;

/// The four indices.
const INDICES: [usize; 4] = [
    ring::REQUEST_CONSUMER,
    ring::REQUEST_PRODUCER,
    ring::RESPONSE_CONSUMER,
    ring::RESPONSE_PRODUCER,
];

/// Rounds between two fresh connections: a dead one is attacked no further.
const ROUNDS_PER_LIFE: u64 = 8;

/// Asks for a fresh connection now and then, without waiting for it.
fn renew(attacker: &mut Attacker) {
    if attacker.rounds().is_multiple_of(ROUNDS_PER_LIFE) {
        attacker.store.store_u32(ring::CONNECTION, ring::RECONNECT);
        attacker.kick();
    }
}

/// Indices out of range, backwards, the store's own too.
pub fn indices(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let at = INDICES[attacker.random.below(4) as usize];
        let value = attacker.random.edge();
        attacker.store.store_u32(at, value);
        attacker.kick();
        renew(attacker);
    }
}

/// Headers that announce more than a message may hold.
pub fn lengths(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let operation = Operation::from_raw(attacker.random.below(30) as u32);
        let len = attacker.random.edge();
        let header = Header { operation, request: 0, transaction: 0, len };
        attacker.push(&header.emit());
        attacker.kick();
        renew(attacker);
    }
}

/// Bytes without a meaning, sometimes behind a header with one.
pub fn garbage(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let mut bytes = [0; 256];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&attacker.random.next().to_le_bytes()[..chunk.len()]);
        }
        if attacker.random.below(2) == 0 {
            let operation = Operation::from_raw(attacker.random.below(30) as u32);
            let transaction = attacker.random.below(3) as u32;
            let len = (bytes.len() - HEADER_LEN) as u32;
            let header = Header { operation, request: 1, transaction, len };
            bytes[..HEADER_LEN].copy_from_slice(&header.emit());
        }
        attacker.push(&bytes);
        attacker.kick();
        // Whether the answers make sense is not the question.
        let _ = attacker.drain();
        renew(attacker);
    }
}

/// Requests that never end, a byte and an event at a time.
pub fn half(attacker: &mut Attacker) {
    let len = wire::PAYLOAD_MAX as u32;
    let header = Header { operation: Operation::Write, request: 1, transaction: 0, len };
    let mut sent = 0;
    attacker.push(&header.emit());
    while attacker.goes_on() {
        if sent + 1 < len {
            sent += attacker.push(b"x") as u32;
        }
        attacker.kick();
    }
}

/// Requests whose answers nobody reads.
pub fn unread(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let message = attacker.message(Operation::Directory, 0, b"/\0");
        attacker.push(&message);
        attacker.kick();
    }
}

/// As many valid requests as possible.
pub fn flood(attacker: &mut Attacker) {
    while attacker.goes_on() {
        attacker.send(Operation::Directory, 0, b"/\0");
    }
}

/// Resets of the connection in the middle of everything.
pub fn reconnect(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let message = attacker.message(Operation::Directory, 0, b"/\0");
        let cut = attacker.random.below(message.len() as u64) as usize;
        attacker.push(&message[..cut]);
        let state = attacker.random.below(3) as u32;
        attacker.store.store_u32(ring::CONNECTION, state);
        attacker.kick();
    }
}
