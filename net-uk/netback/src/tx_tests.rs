use super::*;
use crate::journal::QUEUE_BYTES;
use crate::wire::tx_flag::{EXTRA_INFO, MORE_DATA};
use abi::GrantRef;
use fabric::{HeapMemory, TornMemory};
use frame::{Gso, GsoKind};

/// A frontend's half of a transmit ring (`FRONT_RING`, ring.h).
struct Front {
    page: HeapMemory,
    req_prod: u32,
    rsp_cons: u32,
    responses: Vec<(u16, i16)>,
}

impl Front {
    fn new() -> Self {
        let page = HeapMemory::new(4096);
        page.store_u32(4, 1);
        page.store_u32(12, 1);
        Self { page, req_prod: 0, rsp_cons: 0, responses: Vec::new() }
    }

    fn push(&mut self, slots: &[[u8; TX_SLOT]]) -> bool {
        let old = self.req_prod;
        for slot in slots {
            let place = 64 + (self.req_prod % RING_SIZE) as usize * TX_SLOT;
            self.page.write(place, slot);
            self.req_prod = self.req_prod.wrapping_add(1);
        }
        self.page.store_u32(0, self.req_prod);
        let event = self.page.load_u32(4);
        self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
    }

    fn send(&mut self, id: u16) -> bool {
        self.push(&[request(id, 0, 60)])
    }

    fn collect(&mut self) -> Vec<(u16, i16)> {
        let end = self.page.load_u32(8);
        let mut new = Vec::new();
        while self.rsp_cons != end {
            let place = 64 + (self.rsp_cons % RING_SIZE) as usize * TX_SLOT;
            let mut slot = [0; 4];
            self.page.read(place, &mut slot);
            let [a, b, c, d] = slot;
            new.push((u16::from_le_bytes([a, b]), i16::from_le_bytes([c, d])));
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
        }
        self.page.store_u32(12, self.rsp_cons.wrapping_add(1));
        self.responses.extend(&new);
        new
    }
}

fn request(id: u16, flags: u16, size: u16) -> [u8; TX_SLOT] {
    TxRequest { grant: GrantRef(id.into()), offset: 0, flags, id, size }.emit()
}

fn packet(consumed: Result<Consumed, Fatal>) -> Packet {
    match consumed {
        Ok(Consumed::Packet(packet)) => packet,
        other => panic!("{other:?}"),
    }
}

fn journal() -> HeapMemory {
    HeapMemory::new(QUEUE_BYTES)
}

#[test]
fn one_response_per_slot_and_events_when_asked_for() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal);
    assert!(!queue.rest());
    let mut extra = [0; TX_SLOT];
    extra[..8].copy_from_slice(&Extra::emit_gso(Gso { kind: GsoKind::TcpV4, size: 1000 }));
    let flags = EXTRA_INFO | MORE_DATA;
    assert!(front.push(&[request(7, flags, 3000), extra, request(8, 0, 2000)]), "event wanted");
    assert!(front.send(9) || queue.rest(), "no request sleeps in the ring");
    let first = packet(queue.consume());
    let second = packet(queue.consume());
    assert_eq!(queue.consume(), Ok(Consumed::Nothing));
    queue.answer(second.id, Status::Okay);
    assert!(queue.publish());
    assert_eq!(front.collect(), [(9, 0)]);
    queue.answer(first.id, Status::Okay);
    queue.answer(first.id, Status::Okay);
    assert!(queue.publish());
    assert_eq!(front.collect(), [(7, 0), (0, 1), (8, 0)]);
    assert!(!queue.publish(), "nothing new, no event");
    assert_eq!(queue.open(), 0);
}

#[test]
fn half_a_packet_waits_for_its_end() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal);
    front.push(&[request(1, MORE_DATA, 3000)]);
    assert_eq!(queue.consume(), Ok(Consumed::Nothing));
    assert!(!queue.rest());
    assert!(front.push(&[request(2, 0, 1000)]), "its end brings an event");
    assert!(queue.rest());
    assert_eq!(packet(queue.consume()).pieces.len(), 2);
}

#[test]
fn a_broken_ring_is_left_alone() {
    let (front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal);
    front.page.store_u32(0, RING_SIZE + 1);
    let fatal = Fatal::Index { req_prod: RING_SIZE + 1 };
    assert_eq!(queue.consume(), Err(fatal));
    front.page.store_u32(0, 1);
    assert_eq!(queue.consume(), Err(fatal), "until it reconnects");
    assert!(!queue.rest());
}

#[test]
fn wrong_packets_are_answered_at_once() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal);
    front.push(&[request(5, 0, 3)]);
    assert_eq!(queue.consume(), Ok(Consumed::Rejected));
    queue.publish();
    assert_eq!(front.collect(), [(5, -1)]);
}

/// A backend that dies after each number of stores, in turn; the frontend sees each request
/// answered exactly once, and the open ones are found again in order.
#[test]
fn a_crash_between_any_two_stores() {
    let mut stores = 0;
    loop {
        let (mut front, journal) = (Front::new(), journal());
        // The ring has gone round, and answers were out of order: slots hold foreign responses.
        let mut queue = TxQueue::connect(front.page.clone(), journal.clone());
        for lap in 0..5 {
            for id in 0..60 {
                front.send(lap * 60 + id);
            }
            let ids: Vec<PacketId> = (0..60).map(|_| packet(queue.consume()).id).collect();
            ids.iter().rev().for_each(|id| queue.answer(*id, Status::Okay));
            queue.publish();
            front.collect();
        }
        front.responses.clear();
        // Now the run that is cut off: ring and journal share one count of stores.
        let all = TornMemory::new(Both(front.page.clone(), journal.clone()), stores);
        let mut queue = TxQueue::recover(Half(all.clone(), 0), Half(all.clone(), 4096)).unwrap().0;
        for id in 1000..1006 {
            front.send(id);
        }
        let ids: Vec<PacketId> = (0..4).map(|_| packet(queue.consume()).id).collect();
        queue.answer(ids[2], Status::Okay);
        queue.answer(ids[0], Status::Okay);
        queue.publish();
        queue.answer(ids[1], Status::Okay);
        queue.publish();
        let is_whole = all.stores() < stores;
        drop(queue);
        // The frontend goes on in its grave's shadow: takes responses, reuses slots.
        front.collect();
        for id in 1006..1008 {
            front.send(id);
        }
        let (mut queue, recovered) = TxQueue::recover(front.page.clone(), journal.clone()).unwrap();
        assert_eq!(recovered.damaged, 0);
        queue.publish();
        front.collect();
        let answered: Vec<u16> = front.responses.iter().map(|(id, _)| *id).collect();
        let open: Vec<u16> =
            recovered.open.iter().map(|packet| packet.pieces[0].grant.0 as u16).collect();
        assert!(open.is_sorted(), "{open:?}");
        assert!(open.iter().all(|id| !answered.contains(id)), "{open:?} {answered:?}");
        recovered.open.iter().for_each(|packet| queue.answer(packet.id, Status::Okay));
        while let Consumed::Packet(packet) = queue.consume().unwrap() {
            queue.answer(packet.id, Status::Okay);
        }
        queue.publish();
        front.collect();
        let mut ids: Vec<u16> = front.responses.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1000..1008).collect::<Vec<u16>>(), "after {stores} stores");
        if is_whole {
            break;
        }
        stores += 1;
    }
    assert!(stores > 100, "only {stores} instants tried");
}

/// Two memories one after the other, so that one count covers both.
#[derive(Clone, Debug)]
struct Both(HeapMemory, HeapMemory);

impl Both {
    fn at(&self, offset: usize) -> (&HeapMemory, usize) {
        if offset < 4096 { (&self.0, offset) } else { (&self.1, offset - 4096) }
    }
}

impl SharedMemory for Both {
    fn len(&self) -> usize {
        4096 + self.1.len()
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        let (memory, at) = self.at(offset);
        memory.read(at, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        let (memory, at) = self.at(offset);
        memory.write(at, from);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        let (memory, at) = self.at(offset);
        memory.fill(at, len, value);
    }
    fn load_u32(&self, offset: usize) -> u32 {
        let (memory, at) = self.at(offset);
        memory.load_u32(at)
    }
    fn store_u32(&self, offset: usize, value: u32) {
        let (memory, at) = self.at(offset);
        memory.store_u32(at, value);
    }
    fn load_u64(&self, offset: usize) -> u64 {
        let (memory, at) = self.at(offset);
        memory.load_u64(at)
    }
    fn store_u64(&self, offset: usize, value: u64) {
        let (memory, at) = self.at(offset);
        memory.store_u64(at, value);
    }
}

/// The part of such a memory from an offset on.
#[derive(Clone, Debug)]
struct Half(TornMemory<Both>, usize);

impl SharedMemory for Half {
    fn len(&self) -> usize {
        self.0.len() - self.1
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.read(self.1 + offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.0.write(self.1 + offset, from);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.0.fill(self.1 + offset, len, value);
    }
    fn load_u32(&self, offset: usize) -> u32 {
        self.0.load_u32(self.1 + offset)
    }
    fn store_u32(&self, offset: usize, value: u32) {
        self.0.store_u32(self.1 + offset, value);
    }
    fn load_u64(&self, offset: usize) -> u64 {
        self.0.load_u64(self.1 + offset)
    }
    fn store_u64(&self, offset: usize, value: u64) {
        self.0.store_u64(self.1 + offset, value);
    }
}

/// One packet stays open while the ring goes round several times.
#[test]
fn an_old_request_outlives_its_place_in_the_ring() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal.clone());
    front.send(7777);
    let old = packet(queue.consume()).id;
    for id in 0..1000 {
        front.send(id);
        let id = packet(queue.consume()).id;
        queue.answer(id, Status::Okay);
        queue.publish();
        front.collect();
    }
    let (mut queue, recovered) = TxQueue::recover(front.page.clone(), journal).unwrap();
    assert_eq!(recovered.open.iter().map(|packet| packet.id).collect::<Vec<_>>(), [old]);
    queue.answer(old, Status::Okay);
    queue.publish();
    assert_eq!(front.collect(), [(7777, 0)]);
}

#[test]
fn a_damaged_journal_is_noticed() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = TxQueue::connect(front.page.clone(), journal.clone());
    for id in 0..3 {
        front.send(id);
        packet(queue.consume());
    }
    let mut byte = [0];
    let place = 64 + 32 + 12;
    journal.read(place, &mut byte);
    journal.write(place, &[byte[0] ^ 4]);
    let (_, recovered) = TxQueue::recover(front.page.clone(), journal.clone()).unwrap();
    assert_eq!((recovered.open.len(), recovered.damaged), (2, 1));
    journal.write(0, &[0xff]);
    let error = TxQueue::recover(front.page.clone(), journal).unwrap_err();
    assert_eq!(error, JournalError::Word { at: 0 });
}
