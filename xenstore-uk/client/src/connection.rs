//! Our end of a XenStore connection over two pages of the fabric: the layout of Xen's ring page
//! (io/xs_wire.h), each page written by one side alone. We write requests, how far we wrote them
//! and how far we read; the store writes the rest.
//!
//! Each replica of the store has a page; the one that took the connection over last counts.
//!
//! To start over we set our two indices to 0, then change our connection word; the store has
//! started over, too, when its word is equal.

use alloc::vec::Vec;

use fabric::{Epoch, SharedMemory};
use wire::ring::{self, RING_LEN, filled, stretches};

use crate::framer::{Framer, StoreMessage};

/// What a look at the connection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// XenStore said this.
    Message(StoreMessage),
    /// The connection is a new one: nothing that was asked before will be answered.
    Restarted,
    /// Nothing.
    Nothing,
}

/// The client's side.
#[derive(Debug)]
pub struct Connection<M> {
    own: M,
    peers: Vec<M>,
    framer: Framer,
    unsent: Vec<u8>,
    is_open: bool,
    is_kick_due: bool,
}

impl<M: SharedMemory> Connection<M> {
    /// Begins a connection in life `epoch`: `own` is our page, `peers` are those of the store's
    /// replicas, at least one.
    pub fn new(own: M, peers: Vec<M>, epoch: Epoch) -> Self {
        assert!(!peers.is_empty(), "a store has a replica");
        let mut connection = Self {
            own,
            peers,
            framer: Framer::new(),
            unsent: Vec::new(),
            is_open: false,
            is_kick_due: true,
        };
        // Connections that begin anew in one life count on from its number, far from the next's.
        connection.begin(epoch.wrapping_mul(1 << 16) | 1);
        connection
    }

    /// The page of the replica that serves. It was made equal to the former one's before it was
    /// marked, so nothing else changes with it.
    fn peer(&self) -> &M {
        let taken_over = |peer: &&M| peer.load_u64(ring::TAKEN_OVER);
        match &self.peers[..] {
            [only] => only,
            peers => peers.iter().max_by_key(taken_over).unwrap_or(&peers[0]),
        }
    }

    fn begin(&mut self, word: u32) {
        self.own.store_u32(ring::REQUEST_PRODUCER, 0);
        self.own.store_u32(ring::RESPONSE_CONSUMER, 0);
        self.own.store_u32(ring::CONNECTION, word);
        self.framer = Framer::new();
        self.unsent.clear();
        self.is_open = false;
        self.is_kick_due = true;
    }

    fn restart(&mut self) -> Said {
        self.begin(self.own.load_u32(ring::CONNECTION).wrapping_add(1));
        Said::Restarted
    }

    /// Whether the store has something to look at since the last call: kick it.
    pub fn take_kick(&mut self) -> bool {
        core::mem::take(&mut self.is_kick_due)
    }

    /// Sends a whole message, as soon as the connection is open and there is room.
    pub fn send(&mut self, message: &[u8]) {
        self.unsent.extend_from_slice(message);
        self.flush();
    }

    fn flush(&mut self) {
        if !self.is_open || self.unsent.is_empty() {
            return;
        }
        let producer = self.own.load_u32(ring::REQUEST_PRODUCER);
        let consumer = self.peer().load_u32(ring::REQUEST_CONSUMER);
        // An impossible index is noticed when the other side's answers are looked for.
        let room = filled(producer, consumer).map_or(0, |waiting| RING_LEN - waiting);
        let count = room.min(self.unsent.len());
        let mut done = 0;
        for (start, len) in stretches(producer, count) {
            self.own.write(ring::REQUESTS + start, &self.unsent[done..done + len]);
            done += len;
        }
        self.own.store_u32(ring::REQUEST_PRODUCER, producer.wrapping_add(count as u32));
        self.unsent.drain(..count);
        self.is_kick_due |= count > 0;
    }

    /// What XenStore said next. After [`Said::Restarted`] the engine asks again.
    pub fn next_said(&mut self) -> Said {
        let word = self.own.load_u32(ring::CONNECTION);
        if self.peer().load_u32(ring::CONNECTION) != word {
            return if self.is_open { self.restart() } else { Said::Nothing };
        }
        self.is_open = true;
        self.flush();
        loop {
            match self.framer.next_message() {
                Ok(Some(message)) => return Said::Message(message),
                Ok(None) => {}
                Err(_) => return self.restart(),
            }
            match self.receive() {
                Some(0) => return Said::Nothing,
                Some(_) => {}
                None => return self.restart(),
            }
        }
    }

    /// Takes bytes out of the ring; returns how many. `None`: its indices are impossible, or the
    /// store gave the connection up.
    fn receive(&mut self) -> Option<usize> {
        if self.peer().load_u32(ring::ERROR) != 0 {
            return None;
        }
        let consumer = self.own.load_u32(ring::RESPONSE_CONSUMER);
        let peer = self.peer();
        let waiting = filled(peer.load_u32(ring::RESPONSE_PRODUCER), consumer).ok()?;
        let count = waiting.min(self.framer.room());
        let mut bytes = [0; RING_LEN];
        let mut done = 0;
        for (start, len) in stretches(consumer, count) {
            peer.read(ring::RESPONSES + start, &mut bytes[done..done + len]);
            done += len;
        }
        self.framer.feed(&bytes[..count]);
        self.own.store_u32(ring::RESPONSE_CONSUMER, consumer.wrapping_add(count as u32));
        self.is_kick_due |= count > 0;
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Call;
    use fabric::HeapMemory;
    use wire::{HEADER_LEN, Header};

    /// The store's side: it answers each request with the request's payload.
    struct Echo {
        client: HeapMemory,
        server: HeapMemory,
        request: Vec<u8>,
        response: Vec<u8>,
    }

    impl Echo {
        fn serve(&mut self) {
            let word = self.client.load_u32(ring::CONNECTION);
            if self.server.load_u32(ring::CONNECTION) != word {
                for index in [ring::REQUEST_CONSUMER, ring::RESPONSE_PRODUCER, ring::ERROR] {
                    self.server.store_u32(index, 0);
                }
                (self.request, self.response) = (Vec::new(), Vec::new());
                self.server.store_u32(ring::CONNECTION, word);
            }
            let mut consumer = self.server.load_u32(ring::REQUEST_CONSUMER);
            while consumer != self.client.load_u32(ring::REQUEST_PRODUCER) {
                let mut byte = [0];
                self.client.read(consumer as usize % RING_LEN, &mut byte);
                self.request.push(byte[0]);
                consumer = consumer.wrapping_add(1);
            }
            self.server.store_u32(ring::REQUEST_CONSUMER, consumer);
            if let Some(head) = self.request.first_chunk::<HEADER_LEN>() {
                let len = HEADER_LEN + Header::parse(head).len as usize;
                if self.request.len() >= len {
                    self.response.extend(self.request.drain(..len));
                }
            }
            let mut producer = self.server.load_u32(ring::RESPONSE_PRODUCER);
            let read = self.client.load_u32(ring::RESPONSE_CONSUMER);
            while producer.wrapping_sub(read) < RING_LEN as u32 && !self.response.is_empty() {
                let byte = self.response.remove(0);
                self.server.write(ring::RESPONSES + producer as usize % RING_LEN, &[byte]);
                producer = producer.wrapping_add(1);
            }
            self.server.store_u32(ring::RESPONSE_PRODUCER, producer);
        }
    }

    fn sides() -> (Connection<HeapMemory>, Echo) {
        let (client, server) = (HeapMemory::new(4096), HeapMemory::new(4096));
        let connection = Connection::new(client.clone(), vec![server.clone()], 3);
        (connection, Echo { client, server, request: Vec::new(), response: Vec::new() })
    }

    fn ask(connection: &mut Connection<HeapMemory>, echo: &mut Echo, call: &Call) -> StoreMessage {
        connection.send(&call.encode(9));
        for _ in 0..20 {
            echo.serve();
            if let Said::Message(message) = connection.next_said() {
                return message;
            }
        }
        panic!("no answer");
    }

    #[test]
    fn messages_larger_than_the_ring_go_both_ways() {
        let (mut connection, mut echo) = sides();
        assert_eq!(connection.next_said(), Said::Nothing, "not accepted yet");
        assert!(connection.take_kick() && !connection.take_kick());
        for len in [1, 900, 1024, 3000, 4000] {
            let call = Call::write("/a", &"v".repeat(len));
            let message = ask(&mut connection, &mut echo, &call);
            assert_eq!((message.header.request, message.payload), (9, call.payload));
        }
    }

    #[test]
    fn a_broken_connection_begins_anew() {
        for index in [ring::RESPONSE_PRODUCER, ring::ERROR, ring::CONNECTION] {
            let (mut connection, mut echo) = sides();
            ask(&mut connection, &mut echo, &Call::read("/a"));
            echo.server.store_u32(index, 77_777);
            assert_eq!(connection.next_said(), Said::Restarted);
            assert_eq!(connection.next_said(), Said::Nothing);
            let message = ask(&mut connection, &mut echo, &Call::read("/b"));
            assert_eq!(message.payload, b"/b\0");
        }
    }

    #[test]
    fn the_replica_that_took_over_last_is_heard() {
        let (client, first) = (HeapMemory::new(4096), HeapMemory::new(4096));
        let second = HeapMemory::new(4096);
        let peers = vec![first.clone(), second.clone()];
        let mut connection = Connection::new(client.clone(), peers, 3);
        let (request, response) = (Vec::new(), Vec::new());
        let mut echo = Echo { client, server: first.clone(), request, response };
        echo.server.store_u64(ring::TAKEN_OVER, 1);
        let message = ask(&mut connection, &mut echo, &Call::read("/a"));
        assert_eq!(message.payload, b"/a\0");
        let mut page = [0; 4096];
        first.read(0, &mut page);
        second.write(0, &page);
        second.store_u64(ring::TAKEN_OVER, 2);
        echo.server = second;
        let message = ask(&mut connection, &mut echo, &Call::read("/b"));
        assert_eq!(message.payload, b"/b\0");
    }

    #[test]
    fn a_new_life_is_a_new_connection() {
        let (mut connection, mut echo) = sides();
        ask(&mut connection, &mut echo, &Call::read("/a"));
        // Half a request, then death.
        connection.send(&Call::read("/half").encode(1)[..20]);
        let mut next = Connection::new(echo.client.clone(), vec![echo.server.clone()], 4);
        assert_eq!(next.next_said(), Said::Nothing);
        let message = ask(&mut next, &mut echo, &Call::read("/whole"));
        assert_eq!(message.payload, b"/whole\0");
    }
}
