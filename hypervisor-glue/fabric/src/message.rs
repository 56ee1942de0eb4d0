//! Message rings: operations in one direction, replies in the other.
//!
//! Each side has a *half*: its outgoing ring and its read index for the other half.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `cons`: bytes this side has read from the **other** half, free-running |
//! | 64 | 8 | `prod`: bytes this side has written, free-running |
//! | 128 | rest | ring of bytes; byte `n` lies at `n mod capacity` |
//!
//! The capacity is what is left of the half, rounded down to a multiple of 8. A message is a header
//! of 24 bytes, the payload (at most [`MESSAGE_MAX`]), and zeroes up to a multiple of 8:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the payload |
//! | 4 | 4 | CRC-32 over the bytes 0..4, 8..24 and the payload |
//! | 8 | 4 | boot epoch of the sender |
//! | 12 | 4 | zero |
//! | 16 | 8 | sequence: chosen by the sender; a reply carries that of its request |
//!
//! **Crashes.** A message is visible only when it is whole. The reader looks at a message
//! ([`MessageReader::peek`]), acts, and only then takes it out ([`MessageReader::consume`]): after
//! a crash in between its next life sees it again, and recognises it by epoch and sequence. Both
//! indices live in the halves, so new lives go on where the old ones stopped.
//!
//! **Hostile peers.** An index out of range, or a message that fails its check, costs the reader
//! everything that waits in the ring, as there is no telling where the next message begins: one
//! error, then it goes on with what comes later.

use crate::{Epoch, SharedMemory};

/// Longest payload in bytes.
pub const MESSAGE_MAX: usize = 4096;

const CONS: usize = 0;
const PROD: usize = 64;
const DATA: usize = 128;
const HEADER: usize = 24;

/// Bytes of the smallest half that takes a message of any length.
pub const HALF_MIN: usize = DATA + HEADER + MESSAGE_MAX;

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The reader has not yet made room: try again when it has read.
    Full,
    /// Longer than [`MESSAGE_MAX`].
    TooLong,
    /// The reader's index is out of range: it is broken, or was reset and has not started yet.
    Wild,
}

/// Why messages were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// The writer's index is out of range.
    Wild,
    /// A message's length is impossible.
    Length,
    /// A message's bytes are not those that were sent.
    Crc,
}

impl core::fmt::Display for SendError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Full => "the message ring is full",
            Self::TooLong => "the message is longer than 4096 bytes",
            Self::Wild => "the message ring's reader has an impossible index",
        })
    }
}

impl core::fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Wild => "the message ring's writer has an impossible index",
            Self::Length => "a message has an impossible length",
            Self::Crc => "a message is damaged",
        })
    }
}

/// What identifies a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    /// Life of the sender.
    pub epoch: Epoch,
    /// The sender's number.
    pub sequence: u64,
}

/// A message that waits; its payload was copied into the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Sender's life and number.
    pub id: MessageId,
    /// Bytes of payload.
    pub length: usize,
}

fn capacity(len: usize) -> u64 {
    assert!(len >= HALF_MIN, "the half of a message ring has at least {HALF_MIN} bytes");
    ((len - DATA) & !7) as u64
}

fn framed(length: usize) -> u64 {
    (HEADER + length).next_multiple_of(8) as u64
}

fn header(id: MessageId, payload: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let length = payload.len() as u32;
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[8..12].copy_from_slice(&id.epoch.to_le_bytes());
    header[16..24].copy_from_slice(&id.sequence.to_le_bytes());
    let crc = crc(&header, payload);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    header
}

fn crc(header: &[u8; HEADER], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..4]);
    crc.update(&header[8..]);
    crc.update(payload);
    crc.finalize()
}

/// The sending side.
#[derive(Debug)]
pub struct MessageWriter<O, P> {
    own: O,
    peer: P,
    capacity: u64,
}

impl<O: SharedMemory, P: SharedMemory> MessageWriter<O, P> {
    /// The writer of the ring in the half `own`; the reader's half is `peer`. Panics if `own` is
    /// smaller than [`HALF_MIN`].
    pub fn new(own: O, peer: P) -> Self {
        let capacity = capacity(own.len());
        Self { own, peer, capacity }
    }

    /// Puts a message into the ring. Ring the doorbell afterwards.
    pub fn send(&mut self, id: MessageId, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > MESSAGE_MAX {
            return Err(SendError::TooLong);
        }
        let size = framed(payload.len());
        if size > self.room()? {
            return Err(SendError::Full);
        }
        let prod = self.own.load_u64(PROD);
        self.copy_in(prod, &header(id, payload));
        self.copy_in(prod.wrapping_add(HEADER as u64), payload);
        self.own.store_u64(PROD, prod.wrapping_add(size));
        Ok(())
    }

    /// Bytes left in the ring; a message takes 24 more than its payload, rounded up to 8.
    pub fn room(&self) -> Result<u64, SendError> {
        let waiting = self.own.load_u64(PROD).wrapping_sub(self.peer.load_u64(CONS));
        self.capacity.checked_sub(waiting).ok_or(SendError::Wild)
    }

    /// Empties the ring: for the orchestrator, whose reader was rebuilt and shall not see what was
    /// meant for its former life. Only while the reader does not run.
    pub fn clear(&mut self) {
        self.own.store_u64(PROD, self.peer.load_u64(CONS));
    }

    fn copy_in(&self, position: u64, bytes: &[u8]) {
        let at = (position % self.capacity) as usize;
        let until_end = bytes.len().min(self.capacity as usize - at);
        self.own.write(DATA + at, &bytes[..until_end]);
        self.own.write(DATA, &bytes[until_end..]);
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct MessageReader<O, P> {
    own: O,
    peer: P,
    capacity: u64,
    /// Where the message last looked at ends.
    seen: Option<u64>,
}

impl<O: SharedMemory, P: SharedMemory> MessageReader<O, P> {
    /// The reader of the ring in the half `peer`; `own` is this side's half. Panics if `peer` is
    /// smaller than [`HALF_MIN`].
    pub fn new(own: O, peer: P) -> Self {
        let capacity = capacity(peer.len());
        Self { own, peer, capacity, seen: None }
    }

    /// Copies the next message's payload into the start of `into` and leaves the message in the
    /// ring. `None`: nothing waits. An error empties the ring.
    pub fn peek(&mut self, into: &mut [u8; MESSAGE_MAX]) -> Result<Option<Message>, ReceiveError> {
        self.seen = None;
        let prod = self.peer.load_u64(PROD);
        let cons = self.own.load_u64(CONS);
        let result = self.look(cons, prod.wrapping_sub(cons), into);
        match result {
            Ok(Some(message)) => self.seen = Some(cons.wrapping_add(framed(message.length))),
            Ok(None) => {}
            Err(_) => self.own.store_u64(CONS, prod),
        }
        result
    }

    fn look(
        &self,
        cons: u64,
        waiting: u64,
        into: &mut [u8; MESSAGE_MAX],
    ) -> Result<Option<Message>, ReceiveError> {
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.capacity || waiting < HEADER as u64 {
            return Err(ReceiveError::Wild);
        }
        let mut head = [0; HEADER];
        self.copy_out(cons, &mut head);
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = word(0) as usize;
        if length > MESSAGE_MAX || framed(length) > waiting {
            return Err(ReceiveError::Length);
        }
        self.copy_out(cons.wrapping_add(HEADER as u64), &mut into[..length]);
        if word(4) != crc(&head, &into[..length]) {
            return Err(ReceiveError::Crc);
        }
        let sequence = u64::from(word(16)) | u64::from(word(20)) << 32;
        Ok(Some(Message { id: MessageId { epoch: word(8), sequence }, length }))
    }

    /// Takes out the message that [`MessageReader::peek`] returned last.
    pub fn consume(&mut self) {
        if let Some(seen) = self.seen.take() {
            self.own.store_u64(CONS, seen);
        }
    }

    /// Takes out everything: for the orchestrator, whose writer was rebuilt from nothing.
    pub fn clear(&mut self) {
        self.seen = None;
        self.own.store_u64(CONS, self.peer.load_u64(PROD));
    }

    fn copy_out(&self, position: u64, into: &mut [u8]) {
        let at = (position % self.capacity) as usize;
        let until_end = into.len().min(self.capacity as usize - at);
        let (first, second) = into.split_at_mut(until_end);
        self.peer.read(DATA + at, first);
        self.peer.read(DATA, second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeapMemory, TornMemory};
    use proptest::prelude::*;

    type Writer = MessageWriter<HeapMemory, HeapMemory>;
    type Reader = MessageReader<HeapMemory, HeapMemory>;

    fn halves() -> (HeapMemory, HeapMemory) {
        (HeapMemory::new(HALF_MIN + 100), HeapMemory::new(HALF_MIN + 100))
    }

    fn id(sequence: u64) -> MessageId {
        MessageId { epoch: 3, sequence }
    }

    fn receive(reader: &mut Reader) -> Option<(MessageId, Vec<u8>)> {
        let mut into = [0; MESSAGE_MAX];
        let message = reader.peek(&mut into).unwrap()?;
        reader.consume();
        Some((message.id, into[..message.length].to_vec()))
    }

    #[test]
    fn golden() {
        let (a, b) = halves();
        Writer::new(a.clone(), b).send(id(0x0102), b"hello").unwrap();
        let mut bytes = [0; 32];
        a.read(DATA, &mut bytes);
        assert_eq!(bytes[..4], [5, 0, 0, 0]);
        assert_eq!(bytes[4..8], GOLDEN_CRC.to_le_bytes());
        assert_eq!(bytes[8..], *b"\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0hello\0\0\0");
        assert_eq!(a.load_u64(PROD), 32);
    }

    /// CRC-32 of the golden message without its CRC field, computed elsewhere.
    const GOLDEN_CRC: u32 = 0xc72c_fe26;

    #[test]
    fn a_message_stays_until_it_is_consumed() {
        let (a, b) = halves();
        let mut writer = Writer::new(a.clone(), b.clone());
        writer.send(id(1), b"once").unwrap();
        let mut into = [0; MESSAGE_MAX];
        let mut reader = Reader::new(b.clone(), a.clone());
        assert_eq!(reader.peek(&mut into), Ok(Some(Message { id: id(1), length: 4 })));
        let mut next_life = Reader::new(b, a);
        assert_eq!(receive(&mut next_life), Some((id(1), b"once".to_vec())));
        assert_eq!(receive(&mut next_life), None);
    }

    #[test]
    fn a_full_ring_refuses_and_the_longest_message_fits() {
        let (a, b) = halves();
        let mut writer = Writer::new(a.clone(), b.clone());
        assert_eq!(writer.send(id(1), &[0; MESSAGE_MAX + 1]), Err(SendError::TooLong));
        writer.send(id(1), &[7; MESSAGE_MAX]).unwrap();
        assert_eq!(writer.send(id(2), &[7; 200]), Err(SendError::Full));
        let mut reader = Reader::new(b.clone(), a);
        assert_eq!(receive(&mut reader).unwrap().1, [7; MESSAGE_MAX]);
        writer.send(id(2), &[8; 200]).unwrap();
        assert_eq!(receive(&mut reader).unwrap().1, [8; 200]);
        b.store_u64(CONS, 1 << 50);
        assert_eq!(writer.send(id(3), b""), Err(SendError::Wild));
    }

    #[test]
    fn a_writer_that_dies_leaves_no_half_message() {
        for stores in 0.. {
            let (a, b) = halves();
            let torn = TornMemory::new(a.clone(), stores);
            let _ = MessageWriter::new(torn.clone(), b.clone()).send(id(1), b"whole");
            let mut reader = Reader::new(b.clone(), a.clone());
            let received = receive(&mut reader);
            let next = Writer::new(a, b).send(id(2), b"next");
            assert_eq!(next, Ok(()));
            if torn.stores() < stores {
                assert_eq!(received, Some((id(1), b"whole".to_vec())));
                break;
            }
            assert!(received.is_none() || torn.stores() == 30);
            assert_eq!(receive(&mut reader), Some((id(2), b"next".to_vec())));
        }
    }

    #[test]
    fn damage_costs_what_waits_and_no_more() {
        let (a, b) = halves();
        let mut writer = Writer::new(a.clone(), b.clone());
        let mut reader = Reader::new(b, a.clone());
        let mut into = [0; MESSAGE_MAX];
        writer.send(id(1), b"damaged").unwrap();
        a.write(DATA + HEADER, b"D");
        assert_eq!(reader.peek(&mut into), Err(ReceiveError::Crc));
        assert_eq!(reader.peek(&mut into), Ok(None));
        let at = DATA + a.load_u64(PROD) as usize;
        writer.send(id(2), b"too long").unwrap();
        a.store_u32(at, 5000);
        assert_eq!(reader.peek(&mut into), Err(ReceiveError::Length));
        for prod in [u64::MAX, 1 << 33, 4] {
            a.store_u64(PROD, prod);
            assert_eq!(reader.peek(&mut into), Err(ReceiveError::Wild));
            assert_eq!(reader.peek(&mut into), Ok(None));
        }
        a.store_u64(PROD, 4);
        writer.send(id(3), b"later").unwrap();
        assert_eq!(receive(&mut reader), Some((id(3), b"later".to_vec())));
    }

    proptest! {
        #[test]
        fn messages_arrive_once_and_in_order(
            steps in prop::collection::vec((any::<bool>(), 0_usize..3000), 0..100),
        ) {
            let (a, b) = halves();
            let mut writer = Writer::new(a.clone(), b.clone());
            let mut reader = Reader::new(b, a);
            let (mut sent, mut received) = (0, 0);
            for (is_send, length) in steps {
                if is_send {
                    let payload = vec![sent as u8; length];
                    if writer.send(id(sent), &payload).is_ok() {
                        sent += 1;
                    }
                } else if let Some((got, payload)) = receive(&mut reader) {
                    prop_assert_eq!(got, id(received));
                    prop_assert!(payload.iter().all(|byte| *byte == received as u8));
                    received += 1;
                } else {
                    prop_assert_eq!(sent, received);
                }
            }
        }

        #[test]
        fn garbage_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), HALF_MIN)) {
            let a = HeapMemory::new(HALF_MIN);
            a.write(0, &bytes);
            a.store_u64(PROD, u64::from(bytes[0]) * 16);
            let mut reader = MessageReader::new(HeapMemory::new(HALF_MIN), a);
            let mut into = [0; MESSAGE_MAX];
            if reader.peek(&mut into).is_err() {
                prop_assert_eq!(reader.peek(&mut into), Ok(None));
            }
        }
    }
}
