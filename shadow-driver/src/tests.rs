use super::*;
use crate::{POLL_NS, STORM, STORM_REST_NS, STUCK_NS, bytes_needed};
use drivers::AnyDriver;
use drivers::fake::{FakeNic, bus_map};
use drivers::trusted::{Format, Layout, LocalMachine, PAGE, Rings, Stop};
use fabric::HeapMemory;
use proptest::prelude::*;

const LAYOUT: Layout = Layout { rx_pages: 16, tx_pages: 64 };
const BOUND: usize = 48;

/// Shadow, driver and device, and a shell that does what the documentation says.
struct Bench {
    now: u64,
    shadow: Shadow<HeapMemory>,
    state: HeapMemory,
    driver: AnyDriver,
    machine: LocalMachine<FakeNic, HeapMemory>,
    nic: FakeNic,
    arena: HeapMemory,
    outcomes: Vec<Outcome>,
    sent: Vec<u64>,
    received: Vec<Vec<u8>>,
    failed: Vec<Cause>,
    page: u32,
}

impl Bench {
    fn new(format: Format) -> Self {
        let arena = HeapMemory::new((LAYOUT.pages() * PAGE) as usize);
        let nic = FakeNic::new(format, arena.clone(), LAYOUT);
        let rings = Rings::new(format, arena.clone(), LAYOUT, bus_map(LAYOUT), 4);
        let state = HeapMemory::new(bytes_needed(BOUND));
        let mut shadow = Shadow::create(state.clone(), 1, Config::default(), BOUND);
        for id in 0..LAYOUT.rx_pages {
            shadow.lend(Self::buffer(id));
        }
        shadow.restart(0);
        Self {
            now: 0,
            shadow,
            state,
            driver: AnyDriver::fresh(format),
            machine: LocalMachine::new(nic.clone(), rings),
            nic,
            arena,
            outcomes: Vec::new(),
            sent: Vec::new(),
            received: Vec::new(),
            failed: Vec::new(),
            page: 0,
        }
    }

    fn buffer(id: u32) -> RxBuffer {
        let offset = (LAYOUT.rx() + id) * PAGE;
        RxBuffer { id: BufferId(id), segment: Segment { offset, length: PAGE } }
    }

    fn send(&mut self, number: u64) -> Result<(), SendError> {
        let offset = (LAYOUT.tx() + self.page % LAYOUT.tx_pages) * PAGE;
        let segments = [Segment { offset, length: 60 }].into_iter().collect();
        self.shadow.send(Token(number), segments, None)?;
        self.arena.write(offset as usize, &number.to_le_bytes());
        self.page += 1;
        Ok(())
    }

    /// One turn of the shell.
    fn turn(&mut self) {
        let mut commands = Vec::new();
        let interrupted = self.nic.is_raised();
        if self.shadow.batch(self.now, &mut commands) || interrupted {
            let mut events = Vec::new();
            self.machine.rings.lend(&commands);
            let machine = &mut self.machine;
            drivers::run(&mut self.driver, machine, &commands, &mut events);
            self.shadow.report(self.now, &events, &mut self.outcomes);
        }
        self.settle();
        self.now += 20_000;
    }

    fn settle(&mut self) {
        for outcome in core::mem::take(&mut self.outcomes) {
            match outcome {
                Outcome::Sent(token) => self.sent.push(token.0),
                Outcome::Received { buffer, frame, .. } => {
                    let mut bytes = vec![0; frame.length as usize];
                    self.arena.read(frame.offset as usize, &mut bytes);
                    self.received.push(bytes);
                    self.shadow.lend(Self::buffer(buffer.0));
                }
                Outcome::Failed(cause) => self.failed.push(cause),
                Outcome::Up(_) | Outcome::Link(_) => {}
            }
        }
        if self.shadow.phase() == Phase::Down {
            self.bring_back();
        }
    }

    fn bring_back(&mut self) {
        let LocalMachine { registers, rings, .. } = &mut self.machine;
        while rings.stop(registers) != Stop::Quiet {}
        let found = rings.salvage();
        self.shadow.salvaged(&found, &mut self.outcomes);
        self.driver = AnyDriver::fresh(rings.format());
        self.machine.refused = None;
        self.shadow.restart(self.now);
        self.settle();
    }

    fn crash(&mut self) {
        self.shadow.failed(self.now, Cause::Crashed);
        self.settle();
    }

    fn wire(&self) -> Vec<u64> {
        let number = |frame: &Vec<u8>| u64::from_le_bytes(*frame.first_chunk().unwrap());
        self.nic.with(|nic| nic.wire.iter().map(number).collect())
    }
}

fn first_appearances(wire: &[u64]) -> Vec<u64> {
    let mut seen = Vec::new();
    wire.iter().for_each(|number| {
        if !seen.contains(number) {
            seen.push(*number);
        }
    });
    seen
}

const BOTH: [Format; 2] = [Format::E1000e, Format::Virtio];

#[test]
fn frames_wait_for_a_device_and_drops_are_counted() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        for number in 0..BOUND as u64 {
            bench.send(number).unwrap();
        }
        assert_eq!(bench.send(99), Err(SendError::Full));
        assert_eq!(bench.shadow.counters().refused, 1);
        for _ in 0..30 {
            bench.turn();
            bench.nic.step(8);
        }
        assert_eq!(bench.wire(), (0..BOUND as u64).collect::<Vec<_>>());
        assert_eq!(bench.sent, bench.wire());
        assert_eq!((bench.shadow.held(), bench.shadow.room()), (0, BOUND));
    }
}

#[test]
fn a_lost_interrupt_costs_one_poll() {
    let mut bench = Bench::new(Format::E1000e);
    while bench.shadow.phase() != Phase::Up {
        bench.turn();
    }
    bench.nic.with(|nic| nic.faults.loses_interrupts = true);
    bench.send(1).unwrap();
    let start = bench.now;
    bench.turn();
    bench.nic.step(8);
    while bench.sent.is_empty() {
        bench.turn();
    }
    assert!(bench.now - start <= POLL_NS + 60_000);
    assert_eq!(bench.failed, []);
}

#[test]
fn a_stuck_device_is_restarted_in_time() {
    for format in BOTH {
        let mut bench = Bench::new(format);
        for _ in 0..30 {
            bench.turn();
        }
        bench.nic.with(|nic| nic.faults.is_stuck = true);
        bench.send(7).unwrap();
        let start = bench.now;
        while bench.failed.is_empty() {
            bench.turn();
        }
        assert_eq!(bench.failed, [Cause::Stuck]);
        assert!(bench.now - start <= STUCK_NS + POLL_NS + 60_000, "{}", bench.now - start);
        bench.nic.with(|nic| nic.faults.is_stuck = false);
        for _ in 0..60 {
            bench.turn();
            bench.nic.step(8);
        }
        assert_eq!((bench.wire(), bench.sent.clone()), (vec![7], vec![7]));
        assert_eq!(bench.shadow.counters().replayed, 1);
    }
}

#[test]
fn a_storm_is_masked_and_ends() {
    let mut bench = Bench::new(Format::E1000e);
    for _ in 0..30 {
        bench.turn();
    }
    for _ in 1..STORM {
        assert_eq!(bench.shadow.interrupt(bench.now), Advice::Enter);
        bench.shadow.report(bench.now, &[], &mut bench.outcomes);
    }
    assert_eq!(bench.shadow.interrupt(bench.now), Advice::Mask);
    assert!(!bench.shadow.unmask(bench.now));
    assert!(bench.shadow.deadline_ns().is_some(), "polled meanwhile");
    assert!(bench.shadow.unmask(bench.now + STORM_REST_NS));
    assert_eq!(bench.shadow.interrupt(bench.now + STORM_REST_NS), Advice::Mask);
}

#[test]
fn nonsense_ends_the_drivers_life() {
    let up = |bench: &mut Bench| (0..30).for_each(|_| bench.turn());
    let bad = [
        Event::Sent(drivers::FrameId(5)),
        Event::Received {
            buffer: BufferId(0),
            offset: 1,
            length: 4096,
            checksum: Checksum::Unknown,
        },
        Event::Received { buffer: BufferId(77), offset: 0, length: 60, checksum: Checksum::Valid },
        Event::Wait(5),
    ];
    for event in bad {
        let mut bench = Bench::new(Format::E1000e);
        up(&mut bench);
        bench.shadow.report(bench.now, &[event], &mut bench.outcomes);
        assert_eq!(bench.outcomes, [Outcome::Failed(Cause::Nonsense)], "{event:?}");
    }
}

#[test]
fn a_former_life_is_found_again() {
    let mut bench = Bench::new(Format::E1000e);
    for number in 1..=6 {
        bench.send(number).unwrap();
    }
    let config = Config { mtu: 3000, ..Config::default() };
    bench.shadow.configure(config.clone());
    let (shadow, recovered) =
        Shadow::recover(bench.state.clone(), 2, Config::default(), BOUND, |token| token.0 % 2 == 0);
    assert_eq!(recovered.kept, [Token(2), Token(4), Token(6)]);
    assert_eq!((recovered.forgotten, recovered.has_config), (3, true));
    assert_eq!(shadow.config, config);
    bench.shadow = shadow;
    bench.shadow.restart(bench.now);
    bench.send(8).unwrap();
    for _ in 0..30 {
        bench.turn();
        bench.nic.step(8);
    }
    assert_eq!(bench.wire(), [2, 4, 6, 8]);
}

#[test]
fn quick_failures_are_spaced_out() {
    let mut bench = Bench::new(Format::E1000e);
    let mut gaps = Vec::new();
    for _ in 0..4 {
        while bench.shadow.phase() != Phase::Up {
            bench.turn();
        }
        let start = bench.now;
        bench.crash();
        while bench.shadow.phase() != Phase::Up {
            bench.turn();
        }
        gaps.push(bench.now - start);
    }
    assert!(gaps[0] < BACK_OFF_NS, "the first is repaired at once: {gaps:?}");
    assert!(gaps.is_sorted() && gaps[3] >= 4 * BACK_OFF_NS, "{gaps:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_frame_leaves_in_order_whatever_fails(
        is_virtio in any::<bool>(),
        steps in proptest::collection::vec((0..10_u8, 1..8_usize), 1..120),
    ) {
        let format = if is_virtio { Format::Virtio } else { Format::E1000e };
        let mut bench = Bench::new(format);
        let (mut number, mut accepted, mut inbound) = (0_u64, Vec::new(), Vec::new());
        for (what, amount) in steps {
            match what {
                0..=3 => for _ in 0..amount {
                    number += 1;
                    if bench.send(number).is_ok() {
                        accepted.push(number);
                    }
                },
                4 | 5 => bench.nic.step(amount),
                6 => bench.crash(),
                7 => bench.nic.with(|nic| {
                    nic.faults.is_stuck = amount == 1;
                    nic.faults.loses_interrupts = amount == 2;
                    nic.faults.is_gone = amount == 3;
                }),
                _ if bench.received.len() + 8 > inbound.len() => {
                    inbound.push(vec![inbound.len() as u8; 60 + amount]);
                    bench.nic.with(|nic| nic.inbox.push_back(inbound.last().unwrap().clone()));
                }
                _ => {}
            }
            bench.turn();
        }
        bench.nic.with(|nic| nic.faults = Default::default());
        for _ in 0..100_000 {
            bench.turn();
            bench.nic.step(4);
            if bench.shadow.held() == 0 && bench.nic.with(|nic| nic.inbox.is_empty()) {
                break;
            }
        }
        (0..40).for_each(|_| bench.turn());
        prop_assert_eq!(&first_appearances(&bench.wire()), &accepted);
        prop_assert_eq!(&bench.sent, &accepted, "each token comes back once, in order");
        prop_assert_eq!(&bench.received, &inbound, "received frames were salvaged");
        prop_assert_eq!(bench.shadow.buffers(), LAYOUT.rx_pages as usize);
        let wild = bench.nic.with(|nic| nic.wild.clone());
        prop_assert_eq!(wild, vec![]);
    }
}
