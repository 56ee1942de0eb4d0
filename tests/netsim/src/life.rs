//! One life of net-uk: its frame path, driver and shell.

use abi::GrantRef;
use drivers::fake::bus_map;
use drivers::trusted::{Format, Layout, LocalMachine, PAGE, Rings, Stop};
use drivers::{AnyDriver, Config, Descriptor, Machine as _, RingId, Segment};
use fabric::HeapMemory;
use forward::{Notify, Plane, VifSetup, Wiring};
use netback::{Copy, Direction, vif};
use shadow_driver::{Advice, Cause, Phase, Shadow};
use switch::PortId;

use fabric::SharedMemory;

use crate::fuse::{Fuse, Fused, FusedNic};
use crate::oracle::{Oracle, Oracles};
use crate::random::Random;

/// Small zones, so that their bounds are met.
pub(crate) const LAYOUT: Layout = Layout { rx_pages: 24, tx_pages: 150 };
/// Frames that the shadow may hold.
pub(crate) const SHADOW_FRAMES: usize = 32;

type Machine = LocalMachine<FusedNic, Fused>;

/// What a vif of the run is made of; it outlives net-uk.
pub(crate) struct Vif {
    pub port: PortId,
    pub record: HeapMemory,
    pub journals: Vec<HeapMemory>,
    pub rings: Vec<(HeapMemory, HeapMemory)>,
    pub setup: VifSetup,
}

/// What outlives net-uk.
pub(crate) struct Surviving {
    pub shadow: HeapMemory,
    pub arena: HeapMemory,
}

/// What the hypervisor knows of guests.
pub(crate) trait Hypervisor {
    /// The page behind a grant of a vif's guest.
    fn find(&self, port: PortId, grant: GrantRef, writes: bool) -> Option<HeapMemory>;
    /// Whether the guest's grants are all in order.
    fn is_honest(&self, port: PortId) -> bool;
}

pub(crate) struct Life {
    pub fuse: Fuse,
    pub plane: Plane<Fused, Fused, Fused, Fused>,
    machine: Machine,
    driver: AnyDriver,
    is_masked: bool,
}

/// How many times a driver's life ended in this turn, and why.
pub(crate) type Failures = Vec<Cause>;

impl Life {
    /// Starts net-uk: the first life creates, later ones recover.
    pub(crate) fn start(
        now_ns: u64,
        format: Format,
        epoch: u32,
        nic: &drivers::fake::FakeNic,
        surviving: &Surviving,
        vifs: &[Vif],
    ) -> Self {
        let fuse = Fuse::new();
        let fused = |memory: &HeapMemory| Fused::new(memory.clone(), &fuse);
        let arena = fused(&surviving.arena);
        let rings = Rings::new(format, arena.clone(), LAYOUT, bus_map(LAYOUT), 4);
        let registers = FusedNic { nic: nic.clone(), fuse: fuse.clone() };
        let mut machine = Machine::new(registers, rings);
        while machine.rings.stop(&mut machine.registers) != Stop::Quiet {}
        let state = fused(&surviving.shadow);
        let mut shadow = if epoch == 1 {
            Shadow::create(state, epoch, Config::default(), SHADOW_FRAMES)
        } else {
            Shadow::recover(state, epoch, Config::default(), SHADOW_FRAMES, |_| false).0
        };
        shadow.restart(now_ns);
        let mut plane = Plane::new(now_ns, shadow, arena, LAYOUT, 1500);
        for vif in vifs {
            let connection = vif::read(&vif.record).expect("the record survives");
            let connection = connection.expect("the vif is connected");
            let wiring = vif.rings.iter().zip(&vif.journals).map(|((tx, rx), journal)| Wiring {
                tx_ring: fused(tx),
                rx_ring: fused(rx),
                journal: fused(journal),
            });
            let wiring = wiring.collect();
            let attached = if epoch == 1 {
                plane.attach(now_ns, vif.port, connection, vif.setup, wiring)
            } else {
                plane.recover(now_ns, vif.port, connection, vif.setup, wiring)
            };
            attached.expect("the switch has room and the journals are whole");
        }
        Self { fuse, plane, machine, driver: AnyDriver::fresh(format), is_masked: false }
    }

    /// One turn of the shell; answers whom it notified. Nothing it says counts if its fuse has
    /// blown.
    pub(crate) fn turn(
        &mut self,
        now_ns: u64,
        hypervisor: &impl Hypervisor,
        oracles: &mut Oracles,
        failures: &mut Failures,
    ) -> Vec<Notify> {
        let mut notify = Vec::new();
        for _ in 0..4 {
            let (mut copies, mut jobs) = (Vec::new(), Vec::new());
            self.plane.collect(now_ns, &mut copies, &mut jobs);
            if jobs.is_empty() {
                break;
            }
            let ports: Vec<PortId> =
                jobs.iter().flat_map(|job| std::iter::repeat_n(job.port, job.copies)).collect();
            let mut worked = Vec::new();
            for (copy, port) in copies.iter().zip(ports) {
                let done = self.copy(copy, port, hypervisor);
                oracles.check(Oracle::Grants, done || !hypervisor.is_honest(port), || {
                    format!("{port:?}: {copy:?} names no grant")
                });
                worked.push(done);
            }
            self.plane.copied(now_ns, jobs, &worked);
            self.publish(&mut notify);
        }
        self.enter(now_ns, failures);
        self.publish(&mut notify);
        notify
    }

    fn publish(&mut self, notify: &mut Vec<Notify>) {
        let mut new = Vec::new();
        self.plane.publish(&mut new);
        if self.fuse.store() {
            notify.extend(new);
        }
    }

    /// Executes a grant copy. After the crash there is none, and it counts as done.
    fn copy(&self, copy: &Copy, port: PortId, hypervisor: &impl Hypervisor) -> bool {
        if !self.fuse.store() {
            return true;
        }
        let writes = copy.direction == Direction::ToGuest;
        let Some(page) = hypervisor.find(port, copy.grant, writes) else { return false };
        let mut bytes = vec![0; copy.length.into()];
        let (guest, arena) = (usize::from(copy.guest_offset), copy.arena_offset as usize);
        let arena_memory = &self.machine.registers.nic;
        let memory = arena_memory.with(|nic| nic.memory());
        if writes {
            memory.read(arena, &mut bytes);
            page.write(guest, &bytes);
        } else {
            page.read(guest, &mut bytes);
            memory.write(arena, &bytes);
        }
        true
    }

    fn enter(&mut self, now_ns: u64, failures: &mut Failures) {
        let mut is_due = false;
        if self.machine.registers.nic.is_raised() && !self.is_masked {
            match self.plane.shadow().interrupt(now_ns) {
                Advice::Enter => is_due = true,
                Advice::Mask => self.is_masked = true,
            }
        }
        if self.is_masked && self.plane.shadow().unmask(now_ns) {
            self.is_masked = false;
        }
        let mut commands = Vec::new();
        if self.plane.enter(now_ns, &mut commands) || is_due {
            let mut events = Vec::new();
            self.machine.rings.lend(&commands);
            drivers::run(&mut self.driver, &mut self.machine, &commands, &mut events);
            if let Some(refused) = self.machine.refused {
                self.plane.shadow().failed(now_ns, Cause::Forbidden(refused));
                failures.push(Cause::Forbidden(refused));
            } else if let Some(cause) = self.plane.report(now_ns, &events) {
                failures.push(cause);
            }
        }
        self.bring_back(now_ns);
    }

    /// The driver traps, before, in the middle of or after a batch.
    pub(crate) fn crash_driver(&mut self, now_ns: u64, random: &mut Random) {
        let mut commands = Vec::new();
        if random.one_in(2) && self.plane.enter(now_ns, &mut commands) {
            commands.truncate(random.below(commands.len() as u64 + 1) as usize);
            self.machine.rings.lend(&commands);
            drivers::run(&mut self.driver, &mut self.machine, &commands, &mut Vec::new());
        }
        if random.one_in(2) {
            self.run_wild(random);
        }
        self.plane.shadow().failed(now_ns, Cause::Crashed);
        self.bring_back(now_ns);
    }

    /// The driver proposes what comes into its mind, and the device is quick. Not within the send
    /// zone: garbage on the wire is in a driver's power.
    fn run_wild(&mut self, random: &mut Random) {
        for _ in 0..random.below(12) {
            let ring = if random.one_in(2) { RingId::Rx } else { RingId::Tx };
            let page = match ring {
                RingId::Tx => random.below(u64::from(LAYOUT.tx())),
                RingId::Rx => random.below(u64::from(LAYOUT.pages()) + 3),
            };
            let offset = page as u32 * PAGE + random.below(3) as u32 * 60;
            let segment = Segment { offset, length: 1 + random.below(4200) as u32 };
            let index = random.below(256) as u16;
            let bits = if random.one_in(2) { 0 } else { 0x0b };
            self.machine.place(ring, index, Descriptor::Bytes { segment, bits });
            self.machine.publish(ring, (index + random.below(2) as u16) % 256);
            self.machine.refused = None;
            self.machine.doorbell(ring);
            self.machine.registers.nic.step(1);
        }
    }

    fn bring_back(&mut self, now_ns: u64) {
        if self.plane.shadow().phase() != Phase::Down {
            return;
        }
        let Machine { registers, rings, refused } = &mut self.machine;
        // Registers read as all ones once the fuse has blown: that is quiet, too.
        while rings.stop(registers) != Stop::Quiet {}
        let found = rings.salvage();
        *refused = None;
        self.driver = AnyDriver::fresh(rings.format());
        self.plane.salvaged(now_ns, &found);
        self.plane.shadow().restart(now_ns);
    }

    /// Before sleeping: is there more to do, and when?
    pub(crate) fn rest(&mut self, now_ns: u64) -> bool {
        let is_due = self.plane.deadline_ns().is_some_and(|due| due <= now_ns);
        self.plane.rest() | is_due
    }
}
