//! Private ring state that outlives the domain.
//!
//! One queue takes [`QUEUE_BYTES`]; the part for sending starts at 0, the one for receiving at
//! [`RX_AT`]. Both parts start with three checked words (`fabric::checked`): `req_cons` at 0,
//! `rsp_prod` at 8, the first index of this connection at 16; entries follow from 64 on.
//!
//! | offset | size | field of an entry for sending (32 bytes, 256 of them) |
//! |---|---|---|
//! | 0 | 8 | checked word: 0 free, 2³² + response index: answered there, 2³³: open |
//! | 8 | 4 | index of the request |
//! | 12 | 12 | the request as it was copied from the ring |
//! | 24 | 4 | CRC-32 of those 12 bytes and the index |
//!
//! An entry for sending lies anywhere: packets are answered out of order, so that a request may be
//! open for longer than the ring takes to go round, and its place in the ring is then another's.
//!
//! | offset | size | field of an entry for receiving (12 bytes, at index mod 256) |
//! |---|---|---|
//! | 0 | 8 | the request as it was copied from the ring |
//! | 8 | 4 | CRC-32 of those 8 bytes and the request's index |
//!
//! Buffers are answered in order, so the open ones are those from `rsp_prod` to `req_cons`.

use fabric::{SharedMemory, checked};

use crate::RING_SIZE;
use crate::wire::{RX_SLOT, TX_SLOT};

/// Bytes of one queue's journal: three pages.
pub const QUEUE_BYTES: usize = 3 * 4096;
/// Where the part for receiving starts.
pub const RX_AT: usize = 8320;

const REQ_CONS: usize = 0;
const RSP_PROD: usize = 8;
const FIRST: usize = 16;
const ENTRIES: usize = 64;
const TX_ENTRY: usize = 32;
const RX_ENTRY: usize = 12;
const FREE: u64 = 0;
/// Beside it the index of the response.
const ANSWERED: u64 = 1 << 32;
const OPEN: u64 = 1 << 33;

/// Salts of the checked words: differ from word to word, never zero.
const SALT_REQ_CONS: u16 = 0x4e01;
const SALT_RSP_PROD: u16 = 0x4e02;
const SALT_FIRST: u16 = 0x4e03;
const SALT_ENTRY: u16 = 0x5100;

/// Why a journal cannot be used: the connection must be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// A word's check is wrong: the memory was damaged or never written.
    Word {
        /// Its offset.
        at: usize,
    },
    /// The indices contradict each other.
    Order,
}

/// Indices as the journal has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indices {
    pub req_cons: u32,
    pub rsp_prod: u32,
    pub first: u32,
}

/// What lies in a place for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Free,
    Open(u32, [u8; TX_SLOT]),
    Damaged,
}

#[derive(Clone, Debug)]
pub(crate) struct Journal<J> {
    memory: J,
    base: usize,
}

impl<J: SharedMemory> Journal<J> {
    pub(crate) fn tx(memory: J) -> Self {
        assert!(memory.len() >= QUEUE_BYTES, "a queue's journal takes {QUEUE_BYTES} bytes");
        Self { memory, base: 0 }
    }

    pub(crate) fn rx(memory: J) -> Self {
        assert!(memory.len() >= QUEUE_BYTES, "a queue's journal takes {QUEUE_BYTES} bytes");
        Self { memory, base: RX_AT }
    }

    fn word(&self, at: usize, salt: u16) -> Result<u32, JournalError> {
        let word = self.memory.load_u64(self.base + at);
        let value = checked::decode(word, salt).ok_or(JournalError::Word { at: self.base + at })?;
        Ok(value as u32)
    }

    fn set_word(&self, at: usize, salt: u16, value: u32) {
        self.memory.store_u64(self.base + at, checked::encode(value.into(), salt));
    }

    /// A new connection for sending: every place is free.
    pub(crate) fn start_tx(&self, first: u32) {
        (0..RING_SIZE as u16).for_each(|place| self.free(place));
        self.start(first);
    }

    /// A new connection whose indices start at `first`.
    pub(crate) fn start(&self, first: u32) {
        self.set_word(FIRST, SALT_FIRST, first);
        self.set_word(RSP_PROD, SALT_RSP_PROD, first);
        self.set_word(REQ_CONS, SALT_REQ_CONS, first);
    }

    pub(crate) fn indices(&self) -> Result<Indices, JournalError> {
        let req_cons = self.word(REQ_CONS, SALT_REQ_CONS)?;
        let rsp_prod = self.word(RSP_PROD, SALT_RSP_PROD)?;
        let first = self.word(FIRST, SALT_FIRST)?;
        if req_cons.wrapping_sub(rsp_prod) > RING_SIZE {
            return Err(JournalError::Order);
        }
        Ok(Indices { req_cons, rsp_prod, first })
    }

    pub(crate) fn set_consumed(&self, req_cons: u32) {
        self.set_word(REQ_CONS, SALT_REQ_CONS, req_cons);
    }

    pub(crate) fn commit(&self, rsp_prod: u32) {
        self.set_word(RSP_PROD, SALT_RSP_PROD, rsp_prod);
    }

    fn tx_place(&self, place: u16) -> usize {
        self.base + ENTRIES + usize::from(place) * TX_ENTRY
    }

    fn set_state(&self, place: u16, state: u64) {
        let word = checked::encode(state, SALT_ENTRY | place);
        self.memory.store_u64(self.tx_place(place), word);
    }

    /// Notes a request as open, in a free place. It counts once `req_cons` is beyond it.
    pub(crate) fn put_tx(&self, place: u16, index: u32, slot: &[u8; TX_SLOT]) {
        let at = self.tx_place(place);
        self.memory.store_u32(at + 8, index);
        self.memory.write(at + 12, slot);
        self.memory.store_u32(at + 24, crc(slot, index));
        self.set_state(place, OPEN);
    }

    /// Notes where a request's response lies. It counts once `rsp_prod` is beyond it.
    pub(crate) fn answer(&self, place: u16, response: u32) {
        self.set_state(place, ANSWERED | u64::from(response));
    }

    pub(crate) fn reopen(&self, place: u16) {
        self.set_state(place, OPEN);
    }

    pub(crate) fn free(&self, place: u16) {
        self.set_state(place, FREE);
    }

    /// What lies in a place, as things stood at the last commit.
    pub(crate) fn get_tx(&self, place: u16, indices: Indices) -> Found {
        let at = self.tx_place(place);
        let state = checked::decode(self.memory.load_u64(at), SALT_ENTRY | place);
        let is_answered = |response: u32| {
            // What is not yet free was answered in the last round.
            (1..=RING_SIZE).contains(&indices.rsp_prod.wrapping_sub(response))
        };
        match state {
            Some(FREE) => return Found::Free,
            Some(state) if state & ANSWERED != 0 && is_answered(state as u32) => {
                return Found::Free;
            }
            // A damaged state counts as open: to send again is better than to forget.
            _ => {}
        }
        let mut slot = [0; TX_SLOT];
        self.memory.read(at + 12, &mut slot);
        let index = self.memory.load_u32(at + 8);
        if self.memory.load_u32(at + 24) != crc(&slot, index) {
            return Found::Damaged;
        }
        // Written, but not consumed: it is still in the ring.
        let is_consumed = indices.req_cons.wrapping_sub(index) as i32 > 0;
        if is_consumed { Found::Open(index, slot) } else { Found::Free }
    }

    fn rx_place(&self, index: u32) -> usize {
        self.base + ENTRIES + (index % RING_SIZE) as usize * RX_ENTRY
    }

    pub(crate) fn put_rx(&self, index: u32, slot: &[u8; RX_SLOT]) {
        self.memory.write(self.rx_place(index), slot);
        self.memory.store_u32(self.rx_place(index) + 8, crc(slot, index));
    }

    pub(crate) fn get_rx(&self, index: u32) -> Option<[u8; RX_SLOT]> {
        let mut slot = [0; RX_SLOT];
        self.memory.read(self.rx_place(index), &mut slot);
        (self.memory.load_u32(self.rx_place(index) + 8) == crc(&slot, index)).then_some(slot)
    }
}

fn crc(slot: &[u8], index: u32) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(slot);
    crc.update(&index.to_le_bytes());
    crc.finalize()
}

const _: () = assert!(ENTRIES + TX_ENTRY * RING_SIZE as usize <= RX_AT);
const _: () = assert!(RX_AT + ENTRIES + RX_ENTRY * RING_SIZE as usize <= QUEUE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{bytes_of, compare};
    use fabric::HeapMemory;

    #[test]
    fn the_golden_vectors_are_what_is_written() {
        let memory = HeapMemory::new(QUEUE_BYTES);
        let tx = Journal::tx(&memory);
        tx.start(0xfffe);
        tx.put_tx(0, 0xfffe, b"request one.");
        tx.put_tx(1, 0xffff, b"request two.");
        tx.free(2);
        tx.set_consumed(0x1_0000);
        tx.answer(1, 0xfffe);
        tx.commit(0xffff);
        let rx = Journal::rx(&memory);
        rx.start(16);
        rx.put_rx(16, b"a buffer");
        rx.set_consumed(17);
        let bytes = bytes_of(&memory);
        compare("queue-send", &bytes[..RX_AT]);
        compare("queue-receive", &bytes[RX_AT..]);
    }
}
