//! Both drivers against their fake devices.

use std::collections::VecDeque;

use fabric::{HeapMemory, SharedMemory};
use frame::{Checksum, checksum};
use proptest::prelude::*;

use crate::e1000e::reg;
use crate::fake::{FakeNic, bus_map};
use crate::trusted::{Format, Layout, LocalMachine, PAGE, Refused, Rings, Stop};
use crate::wall::{Outlet, Walled};
use crate::*;

type Local = LocalMachine<FakeNic, HeapMemory>;

const LAYOUT: Layout = Layout { rx_pages: 40, tx_pages: 64 };

/// What passes the wall.
struct Pipe<'a> {
    words: Vec<u32>,
    machine: &'a mut Local,
    events: &'a mut Vec<Event>,
}

impl Outlet for Pipe<'_> {
    fn put(&mut self, words: &[u32]) {
        self.words.extend_from_slice(words);
    }

    fn flush(&mut self) {
        let words = std::mem::take(&mut self.words);
        wall::act(&words, self.machine, self.events).expect("drivers make sense");
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

struct Bench {
    driver: AnyDriver,
    machine: Local,
    nic: FakeNic,
    arena: HeapMemory,
    events: Vec<Event>,
}

impl Bench {
    fn new(format: Format) -> Self {
        let arena = HeapMemory::new((LAYOUT.pages() * PAGE) as usize);
        let nic = FakeNic::new(format, arena.clone(), LAYOUT);
        let rings = Rings::new(format, arena.clone(), LAYOUT, bus_map(LAYOUT), 4);
        let machine = LocalMachine::new(nic.clone(), rings);
        Self { driver: AnyDriver::fresh(format), machine, nic, arena, events: Vec::new() }
    }

    /// Enters the driver, with words alone between it and the trusted part.
    fn run(&mut self, commands: &[Command]) -> Vec<Event> {
        self.events.clear();
        self.machine.rings.lend(commands);
        let mut words = Vec::new();
        wire::write_commands(commands, &mut words);
        let pipe = Pipe { words: Vec::new(), machine: &mut self.machine, events: &mut self.events };
        let mut walled = Walled::new(self.nic.clone(), self.arena.clone(), pipe);
        wall::serve(&mut self.driver, &mut walled, &words);
        drop(walled);
        self.events.clone()
    }

    fn start(&mut self) -> Features {
        let start = [Command::Start(Config::default())];
        assert!(matches!(self.run(&start)[..], [Event::Wait(_)]));
        let events = self.run(&start);
        let Event::Started(features) = events[0] else { panic!("{events:?}") };
        assert_eq!(events.last(), Some(&Event::Link(true)));
        features
    }

    fn frame(&self, id: u32, pieces: &[&[u8]], offload: Option<TxOffload>) -> Command {
        let mut segments = Segments::new();
        for (number, piece) in (0..).zip(pieces) {
            let page = LAYOUT.tx() + (id * 3 + number) % LAYOUT.tx_pages;
            let segment = Segment { offset: page * PAGE + 8, length: piece.len() as u32 };
            self.arena.write(segment.offset as usize, piece);
            segments.push(segment).unwrap();
        }
        Command::Transmit(TxFrame { id: FrameId(id), segments, offload })
    }

    fn post(id: u32) -> Command {
        let offset = (LAYOUT.rx() + id % LAYOUT.rx_pages) * PAGE;
        Command::Post(RxBuffer { id: BufferId(id), segment: Segment { offset, length: PAGE } })
    }
}

fn tcp_frame(length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend(((40 + length) as u16).to_be_bytes());
    frame.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..length).map(|at| at as u8));
    frame
}

const BOTH: [Format; 2] = [Format::E1000e, Format::Virtio];

#[test]
fn frames_go_out_in_order_and_are_reported() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        bench.start();
        let mut expected = Vec::new();
        for round in 0..40_u32 {
            let ids = round * 20..round * 20 + 20;
            let commands: Vec<Command> = ids
                .clone()
                .map(|id| bench.frame(id, &[&id.to_le_bytes(), &[round as u8; 60]], None))
                .collect();
            assert_eq!(bench.run(&commands), []);
            assert!(!bench.nic.is_raised());
            bench.nic.step(100);
            assert!(bench.nic.is_raised());
            let sent: Vec<Event> = ids.clone().map(|id| Event::Sent(FrameId(id))).collect();
            assert_eq!(bench.run(&[]), sent);
            assert!(!bench.nic.is_raised(), "acknowledged");
            expected.extend(ids.map(|id| [&id.to_le_bytes()[..], &[round as u8; 60]].concat()));
        }
        assert_eq!(bench.machine.refused, None);
        bench.nic.with(|nic| {
            assert!(nic.wire == expected, "the wire differs");
            assert_eq!(nic.wild, []);
        });
    }
}

#[test]
fn more_than_the_ring_holds_is_refused() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        let features = bench.start();
        let fit = u32::from(features.tx_slots) / 2;
        let commands: Vec<Command> =
            (0..fit).map(|id| bench.frame(id, &[&[1; 60]], None)).collect();
        assert_eq!(bench.run(&commands), []);
        let mut more: Vec<Command> =
            (0..fit).map(|id| bench.frame(id, &[&[1; 60]], None)).collect();
        more.push(bench.frame(1, &[&[1; 60], &[2; 60]], None));
        assert_eq!(bench.run(&more).last(), Some(&Event::Failed(Failure::Overrun)));
    }
}

#[test]
fn the_device_completes_checksums_and_cuts() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        let features = bench.start();
        let mut bytes = tcp_frame(3_000);
        let whole = bytes.len();
        let zeroed = features.tso == Some(TsoStyle::Zeroed);
        let (start, field) = checksum::prepare(&mut bytes, whole, zeroed).unwrap();
        if zeroed {
            bytes[16..18].fill(0);
            bytes[24..26].fill(0);
        }
        let cut = Some(Cut { size: 1_000, headers: 54 });
        let offload = TxOffload { network: 14, is_v6: false, start, field, is_tcp: true, cut };
        let mut small = tcp_frame(100);
        let length = small.len();
        checksum::prepare(&mut small, length, false).unwrap();
        let commands = [
            bench.frame(1, &[&bytes[..60], &bytes[60..]], Some(offload)),
            bench.frame(2, &[&small], Some(TxOffload { cut: None, ..offload })),
            bench.frame(3, &[&[9; 60]], None),
        ];
        assert_eq!(bench.run(&commands), []);
        bench.nic.step(10);
        bench.nic.with(|nic| {
            assert_eq!(nic.wire.len(), 5, "{format:?}");
            assert!(nic.wire[..4].iter().all(|frame| checksum::is_right(frame)));
            assert_eq!(nic.wire[0].len(), 1_054);
            assert_eq!(nic.wire[3].len(), length);
            assert_eq!(nic.wire[4], [9; 60]);
        });
    }
}

#[test]
fn frames_come_in() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        bench.start();
        let mut posted = VecDeque::new();
        for round in 0..50_u32 {
            let commands: Vec<Command> = (round * 9..round * 9 + 9).map(Bench::post).collect();
            posted.extend(round * 9..round * 9 + 9);
            bench.run(&commands);
            let frames: Vec<Vec<u8>> = (0..9).map(|n| vec![n; 60 + usize::from(n) * 100]).collect();
            bench.nic.with(|nic| nic.inbox.extend(frames.clone()));
            bench.nic.step(100);
            let events = bench.run(&[]);
            assert_eq!(events.len(), 9);
            for (event, frame) in events.iter().zip(frames) {
                let Event::Received { buffer, offset, length, checksum } = event else { panic!() };
                assert_eq!(buffer.0, posted.pop_front().unwrap());
                assert_eq!(*checksum, Checksum::Unknown);
                let at = (LAYOUT.rx() + buffer.0 % LAYOUT.rx_pages) * PAGE + u32::from(*offset);
                let mut bytes = vec![0; usize::from(*length)];
                bench.arena.read(at as usize, &mut bytes);
                assert_eq!(bytes, frame);
            }
        }
        bench.nic.with(|nic| assert_eq!(nic.wild, []));
    }
}

#[test]
fn a_dead_driver_leaves_its_frames_to_be_salvaged() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        bench.start();
        bench.run(&(0..20).map(Bench::post).collect::<Vec<_>>());
        // A first lap is reported and posted again, so that stale entries lie about.
        bench.nic.with(|nic| nic.inbox.extend((0..5).map(|n| vec![n; 64])));
        bench.nic.step(10);
        assert_eq!(bench.run(&[]).len(), 5);
        bench.run(&(20..25).map(Bench::post).collect::<Vec<_>>());
        bench.nic.with(|nic| nic.inbox.extend((5..8).map(|n| vec![n; 70])));
        bench.nic.step(10);
        let Local { registers, rings, .. } = &mut bench.machine;
        while rings.stop(registers) != Stop::Quiet {}
        let salvaged = rings.salvage();
        let lengths: Vec<u32> = salvaged.iter().map(|found| found.length).collect();
        let contents: Vec<u8> = salvaged
            .iter()
            .map(|found| {
                let mut byte = [0];
                bench.arena.read((found.buffer.offset + found.offset) as usize, &mut byte);
                byte[0]
            })
            .collect();
        assert!(lengths.ends_with(&[70, 70, 70]) && contents.ends_with(&[5, 6, 7]), "{format:?}");
        // After the stop the device neither receives nor sends, whatever comes.
        bench.nic.with(|nic| nic.inbox.push_back(vec![1; 60]));
        bench.nic.step(10);
        bench.nic.with(|nic| assert_eq!(nic.inbox.len(), 1));
        assert!(!bench.nic.is_raised());
        assert_eq!(
            bench.machine.rings.place(RingId::Rx, 0, rx_page()),
            Err(Refused::Ring(RingId::Rx))
        );
        // A fresh driver brings it up again.
        bench.driver = AnyDriver::fresh(format);
        bench.start();
        bench.run(&[Bench::post(7)]);
        bench.nic.step(10);
        assert_eq!(bench.run(&[]).len(), 1);
    }
}

fn rx_page() -> Descriptor {
    let segment = Segment { offset: LAYOUT.rx() * PAGE, length: PAGE };
    Descriptor::Bytes { segment, bits: 0 }
}

#[test]
fn a_device_that_is_gone_or_talks_nonsense_is_noticed() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        bench.start();
        bench.nic.with(|nic| nic.faults.is_gone = true);
        assert_eq!(bench.run(&[]), [Event::Failed(Failure::Silent)]);
        let start = [Command::Start(Config::default())];
        assert_eq!(bench.run(&start), [Event::Failed(Failure::Silent)]);
        let Local { registers, rings, .. } = &mut bench.machine;
        assert_eq!(rings.stop(registers), Stop::Quiet, "nothing to wait for");
    }
    let mut bench = Bench::new(Format::Virtio);
    bench.start();
    bench.run(&[Bench::post(1)]);
    bench.nic.with(|nic| {
        nic.faults.talks_nonsense = true;
        nic.inbox.push_back(vec![1; 60]);
    });
    bench.nic.step(1);
    assert_eq!(bench.run(&[]), [Event::Failed(Failure::Nonsense)]);
}

#[test]
fn registers_with_addresses_are_out_of_reach() {
    for (format, window, offset, value) in [
        (Format::E1000e, Window::Main, reg::RX_RING, 0x1000),
        (Format::E1000e, Window::Main, reg::TX_RING + reg::RING_TAIL, 5),
        (Format::E1000e, Window::Main, 0x0110, 0x1000),
        (Format::E1000e, Window::Main, 0x3900, 0x1000),
        (Format::Virtio, Window::Main, virtio::reg::QUEUE_DESC, 0x1000),
        (Format::Virtio, Window::Main, virtio::reg::QUEUE_ENABLE, 1),
        (Format::Virtio, Window::Notify, 0, 1),
        (Format::Virtio, Window::Main, virtio::reg::DRIVER_FEATURES, 1 << 28),
    ] {
        let mut bench = Bench::new(format);
        bench.machine.write32(window, offset, value);
        assert_eq!(bench.machine.refused, Some(Refused::Register(window, offset)));
    }
}

#[test]
fn events_without_end_are_garbled() {
    let mut bench = Bench::new(Format::E1000e);
    let mut words = Vec::new();
    let sent = wire::Said::Event(Event::Sent(FrameId(1)));
    for _ in 0..=wall::EVENTS_MAX {
        wire::write_said(&sent, |message| words.extend_from_slice(message));
    }
    let mut events = Vec::new();
    assert_eq!(wall::act(&words, &mut bench.machine, &mut events), Err(wire::Garbled));
    assert_eq!(events.len(), wall::EVENTS_MAX);
}

proptest! {
    /// Whatever a wild driver proposes, the device stays within its zones.
    #[test]
    fn a_wild_driver_is_confined(
        is_virtio in any::<bool>(),
        steps in proptest::collection::vec(
            (0..6_u8, any::<bool>(), 0..300_u16, any::<u32>(), 0..5000_u32, any::<u32>()), 1..60),
    ) {
        let format = if is_virtio { Format::Virtio } else { Format::E1000e };
        let mut bench = Bench::new(format);
        bench.start();
        for (what, is_tx, index, offset, length, bits) in steps {
            let ring = if is_tx { RingId::Tx } else { RingId::Rx };
            // Half of the offsets are near the arena.
            let offset = if bits & 1 == 0 { offset % (LAYOUT.pages() * PAGE) } else { offset };
            if bits & 2 != 0 {
                bench.machine.rings.lend(&[Bench::post(u32::from(index))]);
            }
            let machine = &mut bench.machine;
            match what {
                0 => {
                    let segment = Segment { offset, length };
                    machine.place(ring, index, Descriptor::Bytes { segment, bits });
                }
                1 => machine.place(ring, index, Descriptor::Scratch { length: length % 40, bits }),
                2 => {
                    let mut raw = [0; 16];
                    raw[..4].copy_from_slice(&offset.to_le_bytes());
                    raw[8..12].copy_from_slice(&bits.to_le_bytes());
                    machine.place(ring, index, Descriptor::Context(raw));
                }
                3 => machine.publish(ring, index),
                4 => machine.doorbell(ring),
                _ => machine.write32(Window::Main, (offset % 0x6000) & !3, bits),
            }
            // The trusted part would end the driver's life at its first refusal; this one goes on.
            machine.refused = None;
            bench.nic.with(|nic| nic.inbox.push_back(vec![1; 60]));
            bench.nic.step(2);
        }
        let wild = bench.nic.with(|nic| nic.wild.clone());
        prop_assert_eq!(wild, vec![]);
    }
}
