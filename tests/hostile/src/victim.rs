//! The attacker's own connection: what it attacks through, and whose service it loses.

use alloc::vec::Vec;

use abi::Port;
use fabric::SharedMemory;
use runtime::FabricMemory;
use runtime::guest::{
    Guest, PARAM_CONSOLE_PFN, PARAM_CONSOLE_PORT, PARAM_STORE_PFN, PARAM_STORE_PORT,
};
use wire::{HEADER_LEN, Header, Operation, ring};

use crate::random::Random;

/// How long an answer is waited for: an attacker that keeps the store busy waits for itself.
const PATIENCE_NS: u64 = 100_000_000;
/// Looks for an answer are this far apart.
const LOOK_NS: u64 = 50_000;
/// Entries of the grant table that the toolstack has filled: the console and three for the store.
pub const SEEDED: usize = 4;

/// The attacker.
pub struct Attacker {
    /// What a guest may do.
    pub guest: Guest,
    /// Its numbers.
    pub random: Random,
    /// Its XenStore ring.
    pub store: FabricMemory,
    /// Its console ring.
    pub console: FabricMemory,
    /// Its end of the XenStore channel.
    pub store_port: Port,
    /// Its end of the console channel.
    pub console_port: Port,
    /// The grants that it was born with.
    pub seeded: [u64; SEEDED],
    end_ns: u64,
    rounds: u64,
    request: u32,
}

impl Attacker {
    /// The attacker in this guest.
    pub fn new(guest: Guest, seed: u64) -> Self {
        let param = |index| guest.param(index).expect("every guest has these");
        let page = |index| guest.ring(param(index)).expect("rings lie in the special region");
        let grants = guest.grants();
        Self {
            guest,
            random: Random::new(seed),
            store: page(PARAM_STORE_PFN),
            console: page(PARAM_CONSOLE_PFN),
            store_port: Port(param(PARAM_STORE_PORT) as u32),
            console_port: Port(param(PARAM_CONSOLE_PORT) as u32),
            seeded: core::array::from_fn(|index| grants.load_u64(index * 8)),
            end_ns: 0,
            rounds: 0,
            request: 0,
        }
    }

    /// An attack begins, and ends at this time.
    pub fn begin(&mut self, end_ns: u64) {
        (self.end_ns, self.rounds) = (end_ns, 0);
    }

    /// Whether the attack goes on; counts a round.
    pub fn goes_on(&mut self) -> bool {
        self.rounds += 1;
        self.guest.now_ns() < self.end_ns
    }

    /// Rounds of the last attack.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Tells XenStore that there is something.
    pub fn kick(&self) {
        // A refusal is part of the attack.
        let _ = self.guest.send(self.store_port);
    }

    /// Puts bytes into the request ring as far as they fit; returns how many.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let ring = &self.store;
        let produced = ring.load_u32(ring::REQUEST_PRODUCER);
        let used = produced.wrapping_sub(ring.load_u32(ring::REQUEST_CONSUMER));
        let room = ring::RING_LEN.saturating_sub(used as usize);
        let count = bytes.len().min(room);
        for (index, byte) in bytes[..count].iter().enumerate() {
            let at = produced.wrapping_add(index as u32) as usize % ring::RING_LEN;
            ring.write(ring::REQUESTS + at, &[*byte]);
        }
        ring.store_u32(ring::REQUEST_PRODUCER, produced.wrapping_add(count as u32));
        count
    }

    /// Takes what there is of answers; `None`: the ring makes no sense.
    pub fn drain(&self) -> Option<Vec<u8>> {
        let ring = &self.store;
        let produced = ring.load_u32(ring::RESPONSE_PRODUCER);
        let consumed = ring.load_u32(ring::RESPONSE_CONSUMER);
        let count = produced.wrapping_sub(consumed) as usize;
        if count > ring::RING_LEN {
            return None;
        }
        let mut bytes = Vec::with_capacity(count);
        for index in 0..count {
            let at = consumed.wrapping_add(index as u32) as usize % ring::RING_LEN;
            let mut byte = [0];
            ring.read(ring::RESPONSES + at, &mut byte);
            bytes.push(byte[0]);
        }
        ring.store_u32(ring::RESPONSE_CONSUMER, produced);
        Some(bytes)
    }

    /// A whole request.
    pub fn message(&mut self, operation: Operation, transaction: u32, payload: &[u8]) -> Vec<u8> {
        self.request = self.request.wrapping_add(1);
        let len = payload.len() as u32;
        let header = Header { operation, request: self.request, transaction, len };
        let mut bytes = header.emit().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Sends a whole request, waiting for room while the attack lasts; answers are thrown away.
    pub fn send(&mut self, operation: Operation, transaction: u32, payload: &[u8]) {
        let bytes = self.message(operation, transaction, payload);
        let mut rest = bytes.as_slice();
        let patience = self.guest.now_ns() + PATIENCE_NS;
        while !rest.is_empty() && self.guest.now_ns() < patience {
            rest = &rest[self.push(rest)..];
            self.kick();
            // An attacker reads its answers where it wants to be answered.
            let _ = self.drain();
        }
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, operation: Operation, transaction: u32, payload: &[u8]) -> Option<Reply> {
        let bytes = self.message(operation, transaction, payload);
        let patience = self.guest.now_ns() + PATIENCE_NS;
        let mut rest = bytes.as_slice();
        let mut answer = Vec::new();
        while self.guest.now_ns() < patience {
            if !rest.is_empty() {
                rest = &rest[self.push(rest)..];
                self.kick();
            }
            let more = self.drain()?;
            let is_more = !more.is_empty();
            answer.extend(more);
            if is_more {
                self.kick();
            }
            while let Some((header, payload, len)) = split(&answer) {
                let is_ours =
                    header.request == self.request && header.operation != Operation::WatchEvent;
                let reply = Reply { operation: header.operation, payload: payload.to_vec() };
                answer.drain(..len);
                if is_ours {
                    return Some(reply);
                }
            }
            if !is_more {
                self.guest.sleep_until(self.guest.now_ns() + LOOK_NS);
            }
        }
        None
    }

    /// Begins a transaction; 0, which is none: the store does not let it.
    pub fn begin_transaction(&mut self) -> u32 {
        let reply = self.ask(Operation::TransactionStart, 0, b"\0");
        let begun = reply.filter(|reply| reply.operation == Operation::TransactionStart);
        let id = begun.and_then(|reply| {
            let text = reply.payload.strip_suffix(b"\0")?;
            core::str::from_utf8(text).ok()?.parse().ok()
        });
        id.unwrap_or(0)
    }

    /// Puts everything back, asks for a new connection, and says whether it gets any answer there.
    pub fn recover(&mut self) -> bool {
        let grants = self.guest.grants();
        for (index, entry) in self.seeded.iter().enumerate() {
            grants.store_u64(index * 8, *entry);
        }
        self.store.store_u32(ring::CONNECTION, ring::RECONNECT);
        self.kick();
        let patience = self.guest.now_ns() + PATIENCE_NS;
        while self.store.load_u32(ring::CONNECTION) != ring::CONNECTED {
            if self.guest.now_ns() > patience {
                return false;
            }
            self.guest.sleep_until(self.guest.now_ns() + LOOK_NS);
        }
        let reply = self.ask(Operation::Directory, 0, b"/\0");
        reply.is_some()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What it answers, or [`Operation::Error`].
    pub operation: Operation,
    /// What it says.
    pub payload: Vec<u8>,
}

/// The first whole message of a stream, and its length.
fn split(stream: &[u8]) -> Option<(Header, &[u8], usize)> {
    let header = Header::parse(stream.first_chunk::<HEADER_LEN>()?);
    let len = HEADER_LEN.checked_add(header.len as usize)?;
    Some((header, stream.get(HEADER_LEN..len)?, len))
}
