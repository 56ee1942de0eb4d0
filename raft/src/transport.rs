//! Messages between two replicas over fabric memory: each side writes its own half.
//!
//! | offset | size | field |
//! |--:|--:|---|
//! | 0 | 8 | bytes that this side has read from the other half, free-running |
//! | 64 | 8 | bytes that this side has written, free-running |
//! | 128 | n | ring of bytes, a multiple of 8; byte `b` lies at `b mod n` |
//!
//! A frame is the message's length (4 bytes), its complement (4 bytes), the message, and zeros up
//! to a multiple of 8. Frames carry no checksum: messages do. A message that finds no room is
//! dropped, and whatever cannot be read is skipped: consensus repeats what matters. After a frame
//! is written, one event channel send wakes the other side.
//!
//! The indices live in the halves, so a new life goes on where the former one stopped.

use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::wire::MAX_MESSAGE;

const READ: usize = 0;
const WRITTEN: usize = 64;
const RING: usize = 128;
const FRAME: usize = 8;

/// Bytes of the smallest half: two of the longest messages fit.
pub const MIN_HALF: usize = RING + 2 * (MAX_MESSAGE + FRAME);

/// One side of the connection between two replicas.
#[derive(Debug)]
pub struct Channel<O, P> {
    own: O,
    peer: P,
}

impl<O: SharedMemory, P: SharedMemory> Channel<O, P> {
    /// Speaks by `own`, which this side alone writes, and hears from `peer`, which the other one
    /// writes. Both are zero before the first life.
    ///
    /// # Panics
    /// When a half is smaller than [`MIN_HALF`]: a mistake of the system description.
    pub fn new(own: O, peer: P) -> Self {
        assert!(own.len() >= MIN_HALF && peer.len() >= MIN_HALF, "a half is too small");
        Self { own, peer }
    }

    /// Puts `message` into the ring; false when it finds no room and is lost.
    pub fn send(&mut self, message: &[u8]) -> bool {
        let capacity = capacity(&self.own);
        let written = self.own.load_u64(WRITTEN);
        let unread = written.wrapping_sub(self.peer.load_u64(READ));
        let frame = FRAME + message.len().next_multiple_of(8);
        // A reader with an impossible index is one that has not read for long: no room either.
        let fits = message.len() <= MAX_MESSAGE
            && unread <= capacity
            && frame as u64 <= capacity.saturating_sub(unread);
        if fits {
            let len = message.len() as u32;
            let mut head = [0; FRAME];
            head[..4].copy_from_slice(&len.to_le_bytes());
            head[4..].copy_from_slice(&(!len).to_le_bytes());
            ring_write(&self.own, written, &head);
            ring_write(&self.own, written.wrapping_add(FRAME as u64), message);
            self.own.store_u64(WRITTEN, written.wrapping_add(frame as u64));
        }
        fits
    }

    /// Copies the next message to `into`; false when there is none. What it holds is checked by
    /// whoever decodes it.
    pub fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        let capacity = capacity(&self.peer);
        let written = self.peer.load_u64(WRITTEN);
        let read = self.own.load_u64(READ);
        let unread = written.wrapping_sub(read);
        if unread == 0 {
            return false;
        }
        let mut head = [0; FRAME];
        ring_read(&self.peer, read, &mut head);
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let check = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let frame = FRAME as u64 + u64::from(len).next_multiple_of(8);
        let sound = len == !check && len as usize <= MAX_MESSAGE && frame <= unread;
        if !sound || unread > capacity {
            // Nobody knows where the next frame begins: all that waits is given up.
            self.own.store_u64(READ, written);
            return false;
        }
        into.clear();
        into.resize(len as usize, 0);
        ring_read(&self.peer, read.wrapping_add(FRAME as u64), into);
        self.own.store_u64(READ, read.wrapping_add(frame));
        true
    }
}

fn capacity<M: SharedMemory>(half: &M) -> u64 {
    ((half.len() - RING) & !7) as u64
}

fn ring_write<M: SharedMemory>(half: &M, at: u64, bytes: &[u8]) {
    let capacity = capacity(half);
    let at = (at % capacity) as usize;
    let (head, tail) = bytes.split_at(bytes.len().min(capacity as usize - at));
    half.write(RING + at, head);
    half.write(RING, tail);
}

fn ring_read<M: SharedMemory>(half: &M, at: u64, into: &mut [u8]) {
    let capacity = capacity(half);
    let at = (at % capacity) as usize;
    let first = into.len().min(capacity as usize - at);
    let (head, tail) = into.split_at_mut(first);
    half.read(RING + at, head);
    half.read(RING, tail);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use fabric::HeapMemory;
    use proptest::prelude::*;

    type Pair = (Channel<HeapMemory, HeapMemory>, Channel<HeapMemory, HeapMemory>);

    fn pair(len: usize) -> (HeapMemory, Pair) {
        let (one, other) = (HeapMemory::new(len), HeapMemory::new(len));
        let ours = Channel::new(one.clone(), other.clone());
        (one.clone(), (ours, Channel::new(other, one)))
    }

    #[test]
    fn messages_arrive_in_order_also_round_the_end() {
        let (_, (mut ours, mut theirs)) = pair(MIN_HALF + 24);
        let mut got = Vec::new();
        for round in 0..200_usize {
            let first = vec![round as u8; (round * 97) % 15_000];
            assert!(ours.send(&first) && ours.send(b"second"));
            assert!(theirs.receive(&mut got));
            assert_eq!(got, first);
            assert!(theirs.receive(&mut got));
            assert_eq!(got, b"second");
            assert!(!theirs.receive(&mut got));
        }
    }

    #[test]
    fn what_finds_no_room_is_lost_and_nothing_else() {
        let (_, (mut ours, mut theirs)) = pair(MIN_HALF);
        assert!(ours.send(&[1; MAX_MESSAGE]) && ours.send(&[2; MAX_MESSAGE]));
        assert!(!ours.send(b"no room") && !ours.send(&[0; MAX_MESSAGE + 1]));
        let mut got = Vec::new();
        assert!(theirs.receive(&mut got) && ours.send(b"room again"));
        assert!(theirs.receive(&mut got) && theirs.receive(&mut got));
        assert_eq!(got, b"room again");
    }

    #[test]
    fn a_new_life_goes_on() {
        let (one, (mut ours, _)) = pair(MIN_HALF);
        let other = HeapMemory::new(MIN_HALF);
        assert!(ours.send(b"from the former life"));
        let mut theirs = Channel::new(other.clone(), one.clone());
        let mut got = Vec::new();
        assert!(theirs.receive(&mut got));
        assert!(Channel::new(one.clone(), other.clone()).send(b"from the new one"));
        assert!(Channel::new(other, one).receive(&mut got));
        assert_eq!(got, b"from the new one");
    }

    proptest! {
        /// Whatever the other half holds: no panic, no endless loop, and the channel works on.
        #[test]
        fn garbage_is_skipped(
            written: u64,
            read: u64,
            bytes in prop::collection::vec(any::<u8>(), 64),
        ) {
            let (one, (mut ours, mut theirs)) = pair(MIN_HALF);
            one.store_u64(WRITTEN, written & !7);
            one.store_u64(READ, read);
            one.write(RING, &bytes);
            let mut got = Vec::new();
            while theirs.receive(&mut got) {
                prop_assert!(got.len() <= MAX_MESSAGE);
            }
            prop_assert!(ours.send(b"after all"));
            prop_assert!(theirs.receive(&mut got));
            prop_assert_eq!(&got[..], b"after all");
        }
    }
}
