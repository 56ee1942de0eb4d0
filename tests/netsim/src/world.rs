//! The run.

use abi::{DomId, GrantRef, Port};
use drivers::fake::{FakeNic, Faults};
use drivers::trusted::{Format, PAGE};
use fabric::HeapMemory;
use forward::{QUEUED_MAX, VifSetup};
use netback::journal::QUEUE_BYTES;
use netback::vif::{Abilities, Connection, QueueRefs, RECORD_BYTES};
use switch::PortId;

use crate::content::{self, Content, Unit, mac};
use crate::guest::{Front, Grants, HOSTILE, attack};
use crate::life::{Hypervisor, LAYOUT, Life, SHADOW_FRAMES, Surviving, Vif};
use crate::oracle::{Oracle, Oracles, Place, Violation};
use crate::random::Random;

/// The station outside.
const OUTSIDE: u8 = 200;
/// Steps of the stormy part of a run.
const STEPS: u64 = 400;
/// Turns that the calm part may take: restarts back off for up to a virtual second.
const CALM_TURNS: u64 = 30_000;

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Frames that honest guests sent.
    pub frames: u64,
    /// Lives of net-uk after the first.
    pub restarts: u64,
    /// Lives of drivers that ended.
    pub driver_failures: u64,
    /// Requests done again after a restart.
    pub redone: u64,
}

struct Guest {
    station: u8,
    is_honest: bool,
    grants: Grants,
    fronts: Vec<Front>,
    numbers: Vec<u32>,
    is_notified: bool,
}

/// The guests as the hypervisor sees them; a guest's port is its station.
struct Guests<'a>(&'a [Guest]);

impl Guests<'_> {
    fn at(&self, port: PortId) -> Option<&Guest> {
        self.0.iter().find(|guest| guest.station == port.0)
    }
}

impl Hypervisor for Guests<'_> {
    fn find(&self, port: PortId, grant: GrantRef, writes: bool) -> Option<HeapMemory> {
        self.at(port)?.grants.find(grant, writes)
    }

    fn is_honest(&self, port: PortId) -> bool {
        self.at(port).is_some_and(|guest| guest.is_honest)
    }
}

struct World {
    random: Random,
    now_ns: u64,
    format: Format,
    nic: FakeNic,
    surviving: Surviving,
    vifs: Vec<Vif>,
    guests: Vec<Guest>,
    life: Option<Life>,
    epoch: u32,
    is_kicked: bool,
    oracles: Oracles,
    outside: u32,
    on_wire: usize,
    has_dropped: bool,
    frames: u64,
    driver_failures: u64,
    redone: u64,
}

/// Runs one seed.
pub fn run(seed: u64) -> Report {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        if !world.oracles.violations.is_empty() {
            return world.report();
        }
    }
    world.calm();
    world.report()
}

fn abilities(random: &mut Random) -> Abilities {
    let has_sg = !random.one_in(4);
    Abilities {
        has_sg,
        has_gso_v4: has_sg && random.one_in(2),
        has_gso_v6: false,
        has_checksum_v4: !random.one_in(3),
        has_checksum_v6: false,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let format = if random.one_in(2) { Format::E1000e } else { Format::Virtio };
        let arena = HeapMemory::new((LAYOUT.pages() * PAGE) as usize);
        let nic = FakeNic::new(format, arena.clone(), LAYOUT);
        let shadow = HeapMemory::new(shadow_driver::bytes_needed(SHADOW_FRAMES));
        let honest = 1 + random.below(3) as u8;
        let mut stations: Vec<u8> = (1..=honest).collect();
        if random.one_in(2) {
            stations.push(HOSTILE);
        }
        let (mut guests, mut vifs) = (Vec::new(), Vec::new());
        for station in stations {
            let queues = 1 + random.below(2) as usize;
            let fronts: Vec<Front> = (0..queues).map(|_| Front::new()).collect();
            let vif = vif(&mut random, station, &fronts);
            vifs.push(vif);
            let mut guest = Guest {
                station,
                is_honest: station != HOSTILE,
                grants: Grants::default(),
                numbers: vec![0; 8],
                fronts,
                is_notified: false,
            };
            for front in &mut guest.fronts {
                front.post(&mut guest.grants, 64);
            }
            guests.push(guest);
        }
        let surviving = Surviving { shadow, arena };
        let mut world = Self {
            random,
            now_ns: 0,
            format,
            nic,
            surviving,
            vifs,
            guests,
            life: None,
            epoch: 0,
            is_kicked: true,
            oracles: Oracles::default(),
            outside: 0,
            on_wire: 0,
            has_dropped: false,
            frames: 0,
            driver_failures: 0,
            redone: 0,
        };
        world.restart();
        world
    }

    fn report(self) -> Report {
        Report {
            violations: self.oracles.violations,
            frames: self.frames,
            restarts: u64::from(self.epoch) - 1,
            driver_failures: self.driver_failures,
            redone: self.redone,
        }
    }

    /// The next life of net-uk. A rebuilt domain has other memory, and the device is stopped
    /// before the old one is freed.
    fn restart(&mut self) {
        self.epoch += 1;
        if self.epoch > 1 && self.random.one_in(2) {
            let arena = HeapMemory::new((LAYOUT.pages() * PAGE) as usize);
            let mut registers = self.nic.clone();
            while self.format.stop(&mut registers) != drivers::trusted::Stop::Quiet {}
            self.nic.rewire(arena.clone());
            self.surviving.arena = arena;
        }
        let life = Life::start(
            self.now_ns,
            self.format,
            self.epoch,
            &self.nic,
            &self.surviving,
            &self.vifs,
        );
        self.life = Some(life);
        self.is_kicked = true;
        // The former life may have died before it notified anybody.
        for guest in &mut self.guests {
            guest.is_notified = true;
            guest.fronts.iter_mut().for_each(|front| front.epoch = self.epoch);
        }
    }

    fn step(&mut self) {
        self.now_ns += 5_000 + self.random.below(60_000);
        match self.random.below(16) {
            0..=3 => self.guest_sends(),
            4 => self.outside_sends(),
            5 | 6 => self.nic.step(1 + self.random.below(12) as usize),
            7 => {
                // Frontends look without an event, too: while they poll, or for the other ring.
                let count = self.guests.len() as u64;
                let which = self.random.below(count) as usize;
                self.guests[which].is_notified = true;
                self.guests_collect();
            }
            8 if self.random.one_in(3) => self.crash_driver(),
            9 if self.random.one_in(6) => self.break_device(),
            10 if self.random.one_in(2) => {
                // The storm: it dies somewhere in the turns that follow.
                let stores = self.random.below(600);
                if let Some(life) = &self.life {
                    life.fuse.set(stores);
                }
            }
            11 => self.attack(),
            _ if self.life.is_none() => self.restart(),
            _ => {
                self.is_kicked = true;
                self.turn();
            }
        }
        self.watch_wire();
    }

    fn guest_sends(&mut self) {
        let honest = self.guests.iter().filter(|guest| guest.is_honest).count() as u64;
        let which = self.random.below(honest) as usize;
        for _ in 0..=self.random.below(4) {
            self.guest_sends_one(which);
        }
    }

    fn guest_sends_one(&mut self, which: usize) {
        let Self { guests, random, oracles, .. } = self;
        let stations: Vec<u8> =
            guests.iter().filter(|guest| guest.is_honest).map(|guest| guest.station).collect();
        let guest = &mut guests[which];
        // Even flows are TCP, odd ones a kind of their own: a flow has one kind of headers.
        let flow = random.below(8) as u16;
        let queue = usize::from(flow / 2) % guest.fronts.len();
        if guest.fronts[queue].room() < 20 {
            return;
        }
        let to = match random.below(8) {
            0 => 255,
            1..=3 => stations[random.below(stations.len() as u64) as usize],
            _ => OUTSIDE,
        };
        if to == guest.station {
            return;
        }
        let number = guest.numbers[usize::from(flow)];
        guest.numbers[usize::from(flow)] += 1;
        let unit = Unit { from: guest.station, to, flow, number, part: 0 };
        let frame = match (flow % 2, random.below(2)) {
            (0, 0) => content::tcp(unit, 60 + random.below(1300) as usize, 1),
            (0, _) => content::tcp(unit, 1000, 2 + random.below(12) as u32),
            _ => content::plain(unit, 46 + random.below(1400) as usize),
        };
        let front = &mut guest.fronts[queue];
        self.is_kicked |= front.send(&mut guest.grants, random, &frame);
        self.frames += 1;
        expect(oracles, &frame, &stations);
    }

    fn outside_sends(&mut self) {
        for _ in 0..=self.random.below(6) {
            let count = self.guests.len() as u64;
            let to = self.guests[self.random.below(count) as usize].station;
            let to = if self.random.one_in(6) { 255 } else { to };
            self.outside += 1;
            let unit = Unit { from: OUTSIDE, to, flow: 0, number: self.outside, part: 0 };
            let frame = content::plain(unit, 46 + self.random.below(1400) as usize);
            self.nic.with(|nic| nic.inbox.push_back(frame.bytes));
        }
    }

    fn guests_collect(&mut self) {
        let Self { guests, oracles, .. } = self;
        for guest in guests.iter_mut().filter(|guest| guest.is_honest) {
            // An event is only a hint: without one there is nothing new.
            if !std::mem::take(&mut guest.is_notified) {
                continue;
            }
            for front in &mut guest.fronts {
                front.collect(guest.station, &mut guest.grants, oracles);
                self.is_kicked |= front.post(&mut guest.grants, 64);
                // Linux looks once more after it has asked for the next event.
                front.collect(guest.station, &mut guest.grants, oracles);
            }
        }
    }

    fn attack(&mut self) {
        let Self { guests, random, .. } = self;
        for guest in guests.iter_mut().filter(|guest| !guest.is_honest) {
            let queue = random.below(guest.fronts.len() as u64) as usize;
            attack(&mut guest.fronts[queue], &mut guest.grants, random);
        }
    }

    fn crash_driver(&mut self) {
        if let Some(life) = &mut self.life {
            life.crash_driver(self.now_ns, &mut self.random);
            self.driver_failures += 1;
        }
    }

    fn break_device(&mut self) {
        let faults = match self.random.below(6) {
            0 => Faults { loses_interrupts: true, ..Faults::default() },
            1 => Faults { is_stuck: true, ..Faults::default() },
            2 => Faults { is_gone: true, ..Faults::default() },
            3 => Faults { has_storm: true, ..Faults::default() },
            4 => Faults { talks_nonsense: true, ..Faults::default() },
            _ => Faults::default(),
        };
        self.nic.with(|nic| nic.faults = faults);
    }

    fn turn(&mut self) {
        self.is_kicked = false;
        let Self { life: Some(life), guests, oracles, .. } = self else { return };
        let mut failures = Vec::new();
        let notify = life.turn(self.now_ns, &Guests(guests), oracles, &mut failures);
        self.driver_failures += failures.len() as u64;
        for told in notify {
            let told = guests.iter_mut().find(|guest| guest.station == told.port.0);
            told.into_iter().for_each(|guest| guest.is_notified = true);
        }
        let counters = life.plane.counters();
        let lost = counters.queue_full + counters.stale + counters.no_pages;
        self.has_dropped |= lost + counters.held_over > 0;
        self.is_kicked |= life.rest(self.now_ns);
        self.bounds();
        if self.life.as_ref().is_some_and(|life| life.fuse.is_blown()) {
            self.redone += counters.redone;
            self.life = None;
        }
    }

    fn bounds(&mut self) {
        let Self { life: Some(life), oracles, vifs, .. } = self else { return };
        let queues: usize = vifs.iter().map(|vif| vif.rings.len()).sum();
        let frames = life.plane.frames();
        let bound = (LAYOUT.rx_pages + LAYOUT.tx_pages) as usize + queues * QUEUED_MAX;
        oracles.check(Oracle::Bounded, frames <= bound, || format!("{frames} frames"));
        let held = life.plane.shadow().held();
        oracles.check(Oracle::Bounded, held <= SHADOW_FRAMES, || format!("shadow holds {held}"));
    }

    fn watch_wire(&mut self) {
        let Self { nic, oracles, .. } = self;
        let new = nic.with(|nic| {
            let new = nic.wire[self.on_wire..].to_vec();
            self.on_wire = nic.wire.len();
            oracles.check(Oracle::Confined, nic.wild.is_empty(), || format!("{:?}", nic.wild));
            new
        });
        for bytes in new {
            if bytes.get(6..12) == Some(&mac(HOSTILE).0[..]) {
                continue;
            }
            let is_right = frame::checksum::is_right(&bytes);
            oracles.check(Oracle::Privacy, is_right, || "wrong checksum on the wire".to_string());
            match content::read(&bytes, None) {
                Some(units) => units.into_iter().for_each(|unit| {
                    let is_for_it = unit.to == OUTSIDE || unit.to == 255;
                    oracles.check(Oracle::Privacy, is_for_it, || format!("{unit:?} on the wire"));
                    oracles.saw(Place::Wire, unit);
                }),
                None => oracles.fail(Oracle::Privacy, format!("damaged: {} bytes", bytes.len())),
            }
        }
    }

    /// Every fault ends; what was begun must be finished.
    fn calm(&mut self) {
        self.nic.with(|nic| nic.faults = Faults::default());
        match &self.life {
            Some(life) => life.fuse.set(u64::MAX),
            None => self.restart(),
        }
        let mut quiet = 0;
        for _ in 0..CALM_TURNS {
            self.now_ns += 50_000;
            self.nic.step(8);
            self.guests_collect();
            let due = self
                .life
                .as_mut()
                .is_some_and(|life| life.plane.deadline_ns().is_some_and(|due| due <= self.now_ns));
            if self.is_kicked || due || self.nic.is_raised() {
                self.turn();
            }
            quiet = if self.is_idle() { quiet + 1 } else { 0 };
            self.watch_wire();
            if quiet > 40 || !self.oracles.violations.is_empty() {
                break;
            }
        }
        self.finish();
    }

    fn is_idle(&mut self) -> bool {
        self.guests
            .iter()
            .filter(|guest| guest.is_honest)
            .all(|guest| guest.fronts.iter().all(|front| front.open() == 0))
            && self.life.as_mut().is_some_and(|life| life.plane.shadow().held() == 0)
    }

    fn finish(&mut self) {
        let Self { guests, oracles, life, .. } = self;
        for guest in guests.iter().filter(|guest| guest.is_honest) {
            let open: usize = guest.fronts.iter().map(Front::open).sum();
            oracles.check(Oracle::Answers, open == 0, || {
                format!("guest {}: {open} requests without an answer", guest.station)
            });
        }
        let has_hostile = guests.iter().any(|guest| !guest.is_honest);
        if let Some(life) = life.as_mut().filter(|_| !has_hostile) {
            let (free, total) = life.plane.pages();
            oracles.check(Oracle::Bounded, free == total, || format!("{free} of {total} pages"));
            let buffers = life.plane.shadow().buffers();
            oracles.check(Oracle::Bounded, buffers == LAYOUT.rx_pages as usize, || {
                format!("{buffers} receive buffers are left")
            });
        }
        if let Some(life) = life {
            self.redone += life.plane.counters().redone;
        }
        oracles.finish(self.has_dropped);
    }
}

fn vif(random: &mut Random, station: u8, fronts: &[Front]) -> Vif {
    let record = HeapMemory::new(RECORD_BYTES);
    let queue = |number: u32| QueueRefs {
        tx_ring: GrantRef(number),
        rx_ring: GrantRef(100 + number),
        tx_port: Port(2 * number),
        rx_port: Port(2 * number + 1),
    };
    let connection = Connection {
        guest: DomId(16 + u16::from(station)),
        handle: 0,
        address: mac(station),
        abilities: abilities(random),
        queues: (0..fronts.len() as u32).map(queue).collect(),
    };
    netback::vif::write(&record, 1, Some(&connection));
    Vif {
        port: PortId(station),
        record,
        journals: fronts.iter().map(|_| HeapMemory::new(QUEUE_BYTES)).collect(),
        rings: fronts.iter().map(|front| (front.tx_ring.clone(), front.rx_ring.clone())).collect(),
        setup: VifSetup { vlan: 0, rate: None },
    }
}

/// Notes where each unit of a frame has to appear.
fn expect(oracles: &mut Oracles, frame: &Content, stations: &[u8]) {
    let data = frame.bytes.len() - 54;
    let parts = frame.gso.map_or(1, |gso| data.div_ceil(usize::from(gso.size)) as u32);
    for part in 0..parts {
        let unit = Unit { part, ..frame.unit };
        if matches!(unit.to, OUTSIDE | 255) {
            oracles.expect(Place::Wire, unit);
        }
        for station in stations.iter().filter(|station| **station != unit.from) {
            if unit.to == *station || unit.to == 255 {
                oracles.expect(Place::Guest(*station), unit);
            }
        }
    }
}
