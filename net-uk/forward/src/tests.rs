//! Tags, and what a limited frontend or device is spared. Everything else is simulated in
//! `tests/netsim`.

use abi::{DomId, GrantRef, Port};
use drivers::trusted::{Layout, PAGE};
use drivers::{BufferId, Command, Config, Event, Features, RING_SIZE, TxFrame};
use fabric::{HeapMemory, SharedMemory};
use frame::{Checksum, Header, Mac, checksum};
use netback::journal::QUEUE_BYTES;
use netback::vif::{Abilities, Connection, QueueRefs};
use netback::wire::{RxRequest, RxResponse, TxRequest, rx_flag, tx_flag};
use netback::{Copy, Direction};
use shadow_driver::Shadow;

use super::*;

const LAYOUT: Layout = Layout { rx_pages: 4, tx_pages: 120 };
const OUTSIDE: Mac = Mac([8, 0, 0, 0, 0, 1]);

type Memory = HeapMemory;

/// One guest with one page to send from and pages to receive into.
struct Bench {
    plane: Plane<Memory, Memory, Memory, Memory>,
    arena: Memory,
    page: Memory,
    tx_ring: Memory,
    rx_ring: Memory,
    sent: u32,
    received: Vec<Memory>,
}

fn guest(station: u8) -> Mac {
    Mac([0, 0x16, 0x3e, 0, 0, station])
}

impl Bench {
    fn new(vlan: u16, abilities: Abilities, features: Features) -> Self {
        let arena = Memory::new((LAYOUT.pages() * PAGE) as usize);
        let state = Memory::new(shadow_driver::bytes_needed(16));
        let shadow = Shadow::create(state, 1, Config::default(), 16);
        let mut plane = Plane::new(0, shadow, arena.clone(), LAYOUT, 1500);
        plane.shadow().restart(0);
        let (tx_ring, rx_ring) = (Memory::new(4096), Memory::new(4096));
        let refs = QueueRefs {
            tx_ring: GrantRef(1),
            rx_ring: GrantRef(2),
            tx_port: Port(3),
            rx_port: Port(4),
        };
        let connection = Connection {
            guest: DomId(17),
            handle: 0,
            address: guest(1),
            abilities,
            queues: [refs].into_iter().collect(),
        };
        let journal = Memory::new(QUEUE_BYTES);
        let (tx, rx) = (tx_ring.clone(), rx_ring.clone());
        let wiring = vec![Wiring { tx_ring: tx, rx_ring: rx, journal }];
        let setup = VifSetup { vlan, rate: None };
        plane.attach(0, PortId(1), connection, setup, wiring).unwrap();
        let mut commands = Vec::new();
        assert!(plane.enter(0, &mut commands));
        assert_eq!(plane.report(0, &[Event::Started(features)]), None);
        let page = Memory::new(4096);
        Self { plane, arena, page, tx_ring, rx_ring, sent: 0, received: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8], flags: u16) {
        self.page.write(0, bytes);
        let size = bytes.len() as u16;
        let request = TxRequest { grant: GrantRef(9), offset: 0, flags, id: 5, size };
        self.tx_ring.write(64 + self.sent as usize * 12, &request.emit());
        self.sent += 1;
        self.tx_ring.store_u32(0, self.sent);
        self.round();
    }

    fn post(&mut self, count: u32) {
        for id in 0..count {
            let request = RxRequest { id: id as u16, grant: GrantRef(100 + id) };
            self.rx_ring.write(64 + id as usize * 8, &request.emit());
            self.received.push(Memory::new(4096));
        }
        self.rx_ring.store_u32(0, count);
    }

    fn round(&mut self) {
        let (mut copies, mut jobs) = (Vec::new(), Vec::new());
        self.plane.collect(0, &mut copies, &mut jobs);
        copies.iter().for_each(|copy| self.copy(copy));
        self.plane.copied(0, jobs, &vec![true; copies.len()]);
        self.plane.publish(&mut Vec::new());
    }

    fn copy(&self, copy: &Copy) {
        let mut bytes = vec![0; copy.length.into()];
        let (guest, arena) = (usize::from(copy.guest_offset), copy.arena_offset as usize);
        match copy.direction {
            Direction::FromGuest => {
                self.page.read(guest, &mut bytes);
                self.arena.write(arena, &bytes);
            }
            Direction::ToGuest => {
                self.arena.read(arena, &mut bytes);
                self.received[copy.grant.0 as usize - 100].write(guest, &bytes);
            }
        }
    }

    /// What the driver is given to send: the frames' bytes.
    fn transmitted(&mut self) -> Vec<(TxFrame, Vec<u8>)> {
        let mut commands = Vec::new();
        self.plane.enter(0, &mut commands);
        let frames = commands.into_iter().filter_map(|command| match command {
            Command::Transmit(frame) => Some(frame),
            _ => None,
        });
        frames.map(|frame| (frame.clone(), self.bytes(&frame))).collect()
    }

    fn bytes(&self, frame: &TxFrame) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in &frame.segments {
            let start = bytes.len();
            bytes.resize(start + segment.length as usize, 0);
            self.arena.read(segment.offset as usize, &mut bytes[start..]);
        }
        bytes
    }

    fn response(&self, number: usize) -> RxResponse {
        let mut slot = [0; 8];
        self.rx_ring.read(64 + number * 8, &mut slot);
        RxResponse::parse(&slot)
    }
}

fn features(has_checksum: bool) -> Features {
    Features {
        address: Mac([2; 6]),
        has_checksum,
        tso: None,
        tx_slots: RING_SIZE,
        tx_extra: 1,
        rx_slots: RING_SIZE,
    }
}

fn udp(source: Mac, destination: Mac) -> Vec<u8> {
    let mut bytes = [&destination.0[..], &source.0, &[8, 0]].concat();
    bytes.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0, 7, 0, 9, 0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    bytes
}

#[test]
fn a_vlan_is_tagged_outside_and_untagged_inside() {
    let mut bench = Bench::new(7, Abilities::default(), features(true));
    let frame = udp(guest(1), OUTSIDE);
    bench.send(&frame, 0);
    let sent = bench.transmitted();
    let mut expected = frame.clone();
    expected.splice(12..12, Header::tag(7));
    assert_eq!(sent[0].1, expected);
    // The answer comes back tagged, and reaches the guest without its tag.
    bench.post(2);
    let mut inbound = udp(OUTSIDE, guest(1));
    let plain = inbound.clone();
    inbound.splice(12..12, Header::tag(7));
    bench.arena.write((LAYOUT.rx() * PAGE) as usize, &inbound);
    let length = inbound.len() as u16;
    let (buffer, checksum) = (BufferId(0), Checksum::Valid);
    bench.plane.report(0, &[Event::Received { buffer, offset: 0, length, checksum }]);
    bench.round();
    let mut bytes = vec![0; plain.len()];
    bench.received[0].read(0, &mut bytes);
    assert_eq!(bytes, plain);
    let response = bench.response(0);
    assert_eq!(response.status as usize, plain.len());
    assert_eq!(response.flags, rx_flag::DATA_VALIDATED);
}

#[test]
fn blank_checksums_are_completed_where_nobody_else_does() {
    let blank = tx_flag::CSUM_BLANK | tx_flag::DATA_VALIDATED;
    let mut bench = Bench::new(0, Abilities::default(), features(false));
    bench.send(&udp(guest(1), OUTSIDE), blank);
    let sent = bench.transmitted();
    assert!(sent[0].0.offload.is_none() && checksum::is_right(&sent[0].1));
    let mut bench = Bench::new(0, Abilities::default(), features(true));
    bench.send(&udp(guest(1), OUTSIDE), blank);
    let sent = bench.transmitted();
    let offload = sent[0].0.offload.unwrap();
    assert_eq!((offload.start, offload.field, offload.is_tcp), (34, 40, false));
}

#[test]
fn a_sent_frame_is_answered_and_its_pages_come_back() {
    let mut bench = Bench::new(0, Abilities::default(), features(true));
    bench.send(&udp(guest(1), OUTSIDE), 0);
    assert_eq!(bench.tx_ring.load_u32(8), 0, "not answered before it has left");
    let sent = bench.transmitted();
    bench.plane.report(0, &[Event::Sent(sent[0].0.id)]);
    bench.plane.publish(&mut Vec::new());
    assert_eq!(bench.tx_ring.load_u32(8), 1);
    let (free, total) = bench.plane.pages();
    assert_eq!(free, total);
}
