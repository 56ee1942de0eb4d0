//! Byte streams between two units: a XenStore connection whose two directions are two pages.
//!
//! A guest's XenStore ring is one page that both sides write. Two units must not share such a page,
//! so each has a *half* with its outgoing bytes and its read index:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `cons`: bytes this side has read from the **other** half, modulo 2³² |
//! | 8 | 4 | `epoch`: life of the client; the server repeats it when it accepts |
//! | 64 | 4 | `prod`: bytes this side has written, modulo 2³² |
//! | 128 | capacity | ring of bytes; byte `n` lies at `n mod capacity` |
//!
//! The capacity is the largest power of two that fits (2,048 in a page). Indices are 32 bits wide
//! and run freely, as in Xen's `xenstore_domain_interface`.
//!
//! **Lives.** A new life of the client starts a new connection ([`Stream::connect`]): both sides
//! begin at 0, and it sends nothing before the server has accepted ([`Stream::is_accepted`]). A new
//! life of the server goes on where the old one stopped: its half still holds its indices.

use crate::{Epoch, SharedMemory};

const CONS: usize = 0;
const EPOCH: usize = 8;
const PROD: usize = 64;
const DATA: usize = 128;

/// The peer's index is out of range: its half is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wild;

impl core::fmt::Display for Wild {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the stream's other side has an impossible index")
    }
}

/// One side of a connection. It keeps nothing in RAM.
#[derive(Clone, Copy, Debug)]
pub struct Stream<O, P> {
    own: O,
    peer: P,
}

fn capacity(len: usize) -> u32 {
    assert!(len > DATA, "the half of a stream is too small");
    1 << (len - DATA).ilog2()
}

impl<O: SharedMemory, P: SharedMemory> Stream<O, P> {
    /// The side that writes the half `own`; the other side writes `peer`.
    pub fn new(own: O, peer: P) -> Self {
        assert!(own.len() > DATA && peer.len() > DATA, "the half of a stream is too small");
        Self { own, peer }
    }

    /// Client: starts the connection of life `epoch` (not 0). Ring the doorbell afterwards.
    pub fn connect(&self, epoch: Epoch) {
        self.own.store_u32(PROD, 0);
        self.own.store_u32(CONS, 0);
        self.own.store_u32(EPOCH, epoch);
    }

    /// Client: whether the server has accepted this connection.
    pub fn is_accepted(&self) -> bool {
        self.peer.load_u32(EPOCH) == self.own.load_u32(EPOCH)
    }

    /// Server: the life of a client whose connection waits to be accepted. Forget everything about
    /// the former connection, then [`Stream::accept`].
    pub fn waits(&self) -> Option<Epoch> {
        let epoch = self.peer.load_u32(EPOCH);
        (epoch != self.own.load_u32(EPOCH)).then_some(epoch)
    }

    /// Server: accepts the connection of life `epoch`. Ring the doorbell afterwards.
    pub fn accept(&self, epoch: Epoch) {
        self.own.store_u32(PROD, 0);
        self.own.store_u32(CONS, 0);
        self.own.store_u32(EPOCH, epoch);
    }

    /// Bytes read so far, modulo 2³².
    pub fn consumed(&self) -> u32 {
        self.own.load_u32(CONS)
    }

    /// Bytes written so far, modulo 2³².
    pub fn produced(&self) -> u32 {
        self.own.load_u32(PROD)
    }

    /// Bytes that wait to be read.
    pub fn readable(&self) -> Result<usize, Wild> {
        let waiting = self.peer.load_u32(PROD).wrapping_sub(self.own.load_u32(CONS));
        if waiting > capacity(self.peer.len()) { Err(Wild) } else { Ok(waiting as usize) }
    }

    /// Copies waiting bytes to `into` without taking them out; returns how many.
    pub fn peek(&self, into: &mut [u8]) -> Result<usize, Wild> {
        let count = self.readable()?.min(into.len());
        let capacity = capacity(self.peer.len()) as usize;
        let at = self.own.load_u32(CONS) as usize % capacity;
        let (first, second) = into[..count].split_at_mut(count.min(capacity - at));
        self.peer.read(DATA + at, first);
        self.peer.read(DATA, second);
        Ok(count)
    }

    /// Takes out `count` bytes that [`Stream::peek`] returned. Ring the doorbell afterwards if the
    /// other side may wait for room.
    pub fn consume(&self, count: usize) {
        self.own.store_u32(CONS, self.own.load_u32(CONS).wrapping_add(count as u32));
    }

    /// Bytes of room for writing.
    pub fn writable(&self) -> Result<usize, Wild> {
        let waiting = self.own.load_u32(PROD).wrapping_sub(self.peer.load_u32(CONS));
        let room = capacity(self.own.len()).checked_sub(waiting).ok_or(Wild)?;
        Ok(room as usize)
    }

    /// Writes as many of `bytes` as there is room for; returns how many. Ring the doorbell
    /// afterwards.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Wild> {
        let count = self.writable()?.min(bytes.len());
        let capacity = capacity(self.own.len()) as usize;
        let prod = self.own.load_u32(PROD);
        let at = prod as usize % capacity;
        let (first, second) = bytes[..count].split_at(count.min(capacity - at));
        self.own.write(DATA + at, first);
        self.own.write(DATA, second);
        self.own.store_u32(PROD, prod.wrapping_add(count as u32));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;
    use proptest::prelude::*;

    type Side = Stream<HeapMemory, HeapMemory>;

    fn sides(len: usize) -> (Side, Side) {
        let (a, b) = (HeapMemory::new(len), HeapMemory::new(len));
        (Stream::new(a.clone(), b.clone()), Stream::new(b, a))
    }

    #[test]
    fn a_connection_starts_when_it_is_accepted() {
        let (client, server) = sides(4096);
        assert_eq!(server.waits(), None);
        client.connect(7);
        assert!(!client.is_accepted());
        assert_eq!(server.waits(), Some(7));
        server.accept(7);
        assert!(client.is_accepted());
        assert_eq!(client.write(&[9; 3000]), Ok(2048));
        let mut into = [0; 100];
        assert_eq!(server.peek(&mut into), Ok(100));
        server.consume(40);
        assert_eq!((server.readable(), client.writable()), (Ok(2008), Ok(40)));
        // The client's next life: both start at 0 again.
        client.connect(8);
        assert_eq!(server.waits(), Some(8));
        server.accept(8);
        assert_eq!(
            (server.readable(), client.readable(), client.writable()),
            (Ok(0), Ok(0), Ok(2048))
        );
    }

    #[test]
    fn golden() {
        let (client, _) = sides(4096);
        client.connect(7);
        client.write(b"xs").unwrap();
        let mut bytes = [0; 2];
        client.own.read(128, &mut bytes);
        let words = [0, 8, 64].map(|at| client.own.load_u32(at));
        assert_eq!((words, &bytes), ([0, 7, 2], b"xs"));
    }

    #[test]
    fn wild_indices_are_errors() {
        let (client, server) = sides(4096);
        client.own.store_u32(PROD, 2049);
        assert_eq!((server.readable(), server.peek(&mut [0; 4])), (Err(Wild), Err(Wild)));
        client.own.store_u32(CONS, 1);
        assert_eq!((server.writable(), server.write(b"x")), (Err(Wild), Err(Wild)));
    }

    proptest! {
        #[test]
        fn bytes_arrive_in_order(
            start: u32,
            steps in prop::collection::vec((any::<bool>(), 0_usize..40), 0..200),
        ) {
            let (client, server) = sides(DATA + 40);
            for side in [&client, &server] {
                side.own.store_u32(PROD, start);
                side.own.store_u32(CONS, start);
            }
            let (mut sent, mut received) = (0_u8, 0_u8);
            for (is_write, count) in steps {
                if is_write {
                    let bytes: Vec<u8> = (0..count).map(|i| sent.wrapping_add(i as u8)).collect();
                    sent = sent.wrapping_add(client.write(&bytes).unwrap() as u8);
                } else {
                    let mut into = vec![0; count];
                    let got = server.peek(&mut into).unwrap();
                    for byte in &into[..got] {
                        prop_assert_eq!(*byte, received);
                        received = received.wrapping_add(1);
                    }
                    server.consume(got);
                }
            }
        }
    }
}
