//! What a NIC driver in its fault domain says, and what the trusted part makes of it: whatever it
//! is, the device stays within the zones of the arena.

use drivers::fake::{FakeNic, bus_map};
use drivers::trusted::{Format, Layout, LocalMachine, PAGE, Rings};
use drivers::wire::{Said, write_said};
use drivers::{BufferId, Command, Descriptor, Event, FrameId, RingId, RxBuffer, Segment, wall};
use fabric::HeapMemory;

use super::Target;

/// The first byte says which device it is, the others are words.
pub const TARGET: Target = Target { name: "driver", run, seeds, words: &[] };

/// Few pages: that they are hit is the point.
const LAYOUT: Layout = Layout { rx_pages: 4, tx_pages: 4 };
/// Frames that come in, and turns of the device, after everything was said.
const FRAMES: usize = 3;

fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let format = if first & 1 == 0 { Format::E1000e } else { Format::Virtio };
    let arena = HeapMemory::new((LAYOUT.pages() * PAGE) as usize);
    let nic = FakeNic::new(format, arena.clone(), LAYOUT);
    let rings = Rings::new(format, arena, LAYOUT, bus_map(LAYOUT), 4);
    let mut machine = LocalMachine::new(nic.clone(), rings);
    machine.rings.lend(&[post(0), post(1)]);
    let words =
        rest.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let words: Vec<u32> = words.collect();
    let mut events = Vec::new();
    let _ = wall::act(&words, &mut machine, &mut events);
    nic.with(|nic| nic.inbox.extend(vec![vec![1; 60]; FRAMES]));
    nic.step(FRAMES);
    assert!(events.len() <= wall::EVENTS_MAX, "{} events", events.len());
    nic.with(|nic| assert_eq!(nic.wild, [], "the device left its zones"));
}

fn segment(page: u32, length: u32) -> Segment {
    Segment { offset: page * PAGE, length }
}

fn post(number: u32) -> Command {
    let segment = segment(LAYOUT.rx() + number, PAGE);
    Command::Post(RxBuffer { id: BufferId(number), segment })
}

/// A device that is brought up, a buffer and a frame, and what comes of them.
fn seeds() -> Vec<Vec<u8>> {
    let bytes = |segment| Descriptor::Bytes { segment, bits: 1 << 16 };
    let said = [
        Said::SetUp(RingId::Rx),
        Said::SetUp(RingId::Tx),
        Said::Place(RingId::Rx, 0, bytes(segment(LAYOUT.rx(), PAGE))),
        Said::Publish(RingId::Rx, 0),
        Said::Doorbell(RingId::Rx),
        Said::Scratch(RingId::Tx, 0, [0; 16]),
        Said::Place(RingId::Tx, 0, Descriptor::Scratch { length: 12, bits: 1 | 1 << 16 }),
        Said::Place(RingId::Tx, 1, bytes(segment(LAYOUT.tx(), 60))),
        Said::Publish(RingId::Tx, 0),
        Said::Doorbell(RingId::Tx),
        Said::Event(Event::Sent(FrameId(1))),
        Said::Event(Event::Link(true)),
    ];
    let mut words = Vec::new();
    said.iter().for_each(|said| write_said(said, |message| words.extend_from_slice(message)));
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [0, 1].map(|format| [&[format], &words[..]].concat()).into()
}
