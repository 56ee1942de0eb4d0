use super::*;
use crate::journal::QUEUE_BYTES;
use fabric::HeapMemory;
use frame::{Gso, GsoKind};
use proptest::prelude::*;

struct Front {
    page: HeapMemory,
    req_prod: u32,
    rsp_cons: u32,
}

impl Front {
    fn new() -> Self {
        Self { page: HeapMemory::new(4096), req_prod: 0, rsp_cons: 0 }
    }

    fn post(&mut self, count: u32) {
        for _ in 0..count {
            let id = (self.req_prod % RING_SIZE) as u16;
            let request = RxRequest { id, grant: GrantRef(1000 + self.req_prod) };
            let place = 64 + (self.req_prod % RING_SIZE) as usize * RX_SLOT;
            self.page.write(place, &request.emit());
            self.req_prod += 1;
        }
        self.page.store_u32(0, self.req_prod);
    }

    fn collect(&mut self) -> Vec<[u8; RX_SLOT]> {
        let mut new = Vec::new();
        while self.rsp_cons != self.page.load_u32(8) {
            let mut slot = [0; RX_SLOT];
            self.page.read(64 + (self.rsp_cons % RING_SIZE) as usize * RX_SLOT, &mut slot);
            new.push(slot);
            self.rsp_cons += 1;
        }
        new
    }
}

fn journal() -> HeapMemory {
    HeapMemory::new(QUEUE_BYTES)
}

#[test]
fn a_large_frame_has_its_extra_slot_second() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = RxQueue::connect(front.page.clone(), journal);
    let gso = Gso { kind: GsoKind::TcpV4, size: 1448 };
    let offload = Offload { checksum: Checksum::Blank, gso: Some(gso) };
    front.post(3);
    assert_eq!(queue.take(9000, offload), None);
    assert!(!queue.want(4));
    assert_eq!(front.page.load_u32(4), 4, "an event with the fourth buffer");
    front.post(1);
    assert!(queue.want(4));
    let taken = queue.take(9000, offload).unwrap();
    let mut copies = Vec::new();
    taken.copies(&[(0, 4096), (8192, 4096), (4096 + 100, 808)], &mut copies);
    let grants: Vec<u32> = copies.iter().map(|copy| copy.grant.0).collect();
    assert_eq!(grants, [1000, 1002, 1003], "the buffer of the extra slot stays unused");
    queue.respond(&taken, true);
    queue.publish();
    let slots = front.collect();
    let data: Vec<RxResponse> =
        [0, 2, 3].map(|number: usize| RxResponse::parse(&slots[number])).to_vec();
    assert_eq!(data.iter().map(|slot| slot.status).collect::<Vec<_>>(), [4096, 4096, 808]);
    assert_eq!(data.iter().map(|slot| slot.id).collect::<Vec<_>>(), [0, 2, 3]);
    let more = rx_flag::MORE_DATA;
    let first = more | rx_flag::EXTRA_INFO | rx_flag::CSUM_BLANK | rx_flag::DATA_VALIDATED;
    assert_eq!(data.iter().map(|slot| slot.flags).collect::<Vec<_>>(), [first, more, 0]);
    assert_eq!(Extra::parse(&slots[1]), (Ok(Extra::Gso(gso)), false));
}

#[test]
fn taken_buffers_are_used_by_the_next_life() {
    let (mut front, journal) = (Front::new(), journal());
    let mut queue = RxQueue::connect(front.page.clone(), journal.clone());
    front.post(5);
    let first = queue.take(60, Offload::default()).unwrap();
    let second = queue.take(60, Offload::default()).unwrap();
    queue.respond(&first, true);
    queue.publish();
    // The second response destroys its request in the ring, and is not published.
    queue.respond(&second, true);
    let mut queue = RxQueue::recover(front.page.clone(), journal).unwrap();
    assert_eq!(queue.available(), 4);
    let again = queue.take(60, Offload::default()).unwrap();
    assert_eq!(again.slots, second.slots);
    queue.respond(&again, false);
    queue.publish();
    let slots = front.collect();
    let statuses: Vec<i16> = slots.iter().map(|slot| RxResponse::parse(slot).status).collect();
    assert_eq!(statuses, [60, -1]);
}

#[test]
fn a_wild_index_breaks_the_queue() {
    let (front, journal) = (Front::new(), journal());
    let mut queue = RxQueue::connect(front.page.clone(), journal);
    front.page.store_u32(0, 0x8000_0000);
    assert_eq!(queue.available(), 0);
    assert!(matches!(queue.fatal(), Some(Fatal::Index { .. })));
    assert_eq!(queue.take(60, Offload::default()), None);
    assert!(!queue.want(1));
}

proptest! {
    /// Copies cover the frame exactly once, in order, and cross no page on either side.
    #[test]
    fn copies_cover_the_frame(
        pieces in proptest::collection::vec((0..60_000_u32, 1..6_000_u32), 1..12),
        is_large in any::<bool>(),
    ) {
        let (mut front, journal) = (Front::new(), journal());
        front.post(60);
        let mut queue = RxQueue::connect(front.page.clone(), journal);
        let length: u32 = pieces.iter().map(|piece| piece.1).sum();
        let gso = is_large.then_some(Gso { kind: GsoKind::TcpV6, size: 1400 });
        let taken = queue.take(length, Offload { checksum: Checksum::Unknown, gso }).unwrap();
        let mut copies = Vec::new();
        taken.copies(&pieces, &mut copies);
        let mut expected = pieces.iter().flat_map(|(offset, length)| *offset..offset + length);
        let mut position = 0_u32;
        for copy in copies {
            prop_assert!(u32::from(copy.guest_offset) + u32::from(copy.length) <= PAGE);
            prop_assert!(copy.arena_offset % PAGE + u32::from(copy.length) <= PAGE);
            prop_assert_eq!(u32::from(copy.guest_offset), position % PAGE);
            let page = position / PAGE;
            let skipped = u32::from(is_large && page > 0);
            prop_assert_eq!(copy.grant.0, 1000 + page + skipped);
            for byte in 0..u32::from(copy.length) {
                prop_assert_eq!(expected.next(), Some(copy.arena_offset + byte));
            }
            position += u32::from(copy.length);
        }
        prop_assert_eq!(position, length);
    }
}
