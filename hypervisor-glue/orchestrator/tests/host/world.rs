//! A host whose services are as simple as can be: they serve at once, and answer every kick.

use std::collections::BTreeSet;

use abi::{DomId, DomainState, Frame, ShutdownReason, Xen};
use api::{Operation, Outcome, Reply, Request};
use builder::pv::MAX_PAGES;
use fabric::archive::{Archive, ArchiveBuilder};
use fabric::control::ControlReader;
use fabric::domains::{Domain, DomainsReader};
use fabric::health::{Digest, HealthWriter, Panic, State};
use fabric::kick::{Kick, KickReader, KickWriter};
use fabric::message::{MESSAGE_MAX, MessageId, MessageReader, MessageWriter};
use fabric::view::{Party, RegionKind};
use fabric::{Epoch, Part, SharedMemory};
use fake_xen::{FakeFabric, FakeXen, Machine, VcpuState};
use orchestrator::attachment::Attachment;
use orchestrator::evidence::Kept;
use orchestrator::host::{Host, UNITS};
use orchestrator::inject_strike::Timed;
use orchestrator::jobs::{Frames, Jobs};
use orchestrator::keyboard::Keyboard;
use orchestrator::operations::Operations;
use orchestrator::pace::Pace;
use orchestrator::regions::Regions;
use orchestrator::slots::{Routes, Slots};
use orchestrator::start::{self, Origin};
use orchestrator::turn::{Next, Orchestrator};
use orchestrator::voices::{Heard, Voices};
use orchestrator::watch::Tuning;
use orchestrator::watchdog::Watchdog;
use service::{DOORBELL, ids};

/// The replica of XenStore that leads first, and the toolstack, by their places in the system
/// description.
pub const STORE: usize = system::XENSTORE_UK;
pub const TOOL: usize = system::TOOL_UK;
/// The network, by its place.
pub const NET: usize = system::NET_UK;
/// The mark of the boot that every test begins with.
pub const NONCE: u64 = 0x1234_5678_9abc;
/// Time that a turn takes.
const TURN_NS: u64 = 1_000;
/// More turns than anything here takes.
const MAX_TURNS: usize = 20_000;

pub type Fake<'a> = Orchestrator<'a, FakeXen, FakeFabric>;

/// Everything that outlives the orchestrator's own failures.
pub struct World {
    pub machine: Machine,
    xen: FakeXen,
    pub regions: Regions<FakeFabric>,
    archive: &'static [u8],
    frames: Box<Frames>,
    epitaphs: Box<Kept>,
    heard: Heard,
    pub services: [Service; UNITS],
}

impl World {
    pub fn new() -> Self {
        let machine = Machine::with_fabric(system::FABRIC_PAGES);
        let xen = machine.domain(DomId::ORCHESTRATOR);
        let regions = Regions::new(xen.fabric());
        let services = core::array::from_fn(|index| Service::new(&machine, &regions, index));
        let frames = vec![[Frame(0); MAX_PAGES as usize]; UNITS];
        let frames = frames.into_boxed_slice().try_into().expect("as many as units");
        let epitaphs = Box::new(Kept::new());
        let heard = [0; UNITS + 1];
        Self { machine, xen, regions, archive: archive(), frames, epitaphs, heard, services }
    }

    /// One life of the orchestrator: what `main` does, then `act`.
    pub fn life<R>(
        &mut self,
        origin: Origin,
        act: impl FnOnce(&mut Fake<'_>, &mut [Service; UNITS]) -> R,
    ) -> R {
        let is_recovery = matches!(origin, Origin::Recovery { .. });
        let archive = start::open_archive(self.archive, is_recovery).unwrap();
        let (xen, regions) = (&self.xen, &self.regions);
        let units = start::units(xen, regions, &archive, origin).unwrap();
        let table = regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
        let mut routes = Routes::new();
        let slots =
            if is_recovery { Slots::adopt(table, xen, &mut routes) } else { Slots::new(table) };
        let tuning = Tuning::parse(None, None).unwrap();
        let mut host = Host::new(xen, units, slots, routes, &mut self.epitaphs, tuning);
        host.bind_virqs().unwrap();
        host.take_precedence();
        if is_recovery {
            host.find_units_again(&self.frames);
        } else {
            host.start_units();
        }
        let (requests, replies) = start::operation_rings(regions);
        let timed = Timed::default();
        let mut orchestrator = Orchestrator {
            host,
            jobs: Jobs::new(&mut self.frames),
            operations: Operations::new(archive, requests, replies),
            pace: Pace::default(),
            voices: Voices::new(regions, &mut self.heard),
            keyboard: Keyboard::new(),
            attachment: Attachment::new(regions),
            watchdog: Watchdog::parse(None).unwrap(),
            injector: None,
            timed: &timed,
        };
        act(&mut orchestrator, &mut self.services)
    }

    /// A host that has just booted, with `act` after both services serve.
    pub fn boot<R>(&mut self, act: impl FnOnce(&mut Fake<'_>, &mut [Service; UNITS]) -> R) -> R {
        self.life(Origin::Boot { nonce: NONCE }, |host, services| {
            settle(host, services);
            act(host, services)
        })
    }

    /// The orchestrator fails and recovers itself; then `act`.
    pub fn recover<R>(&mut self, act: impl FnOnce(&mut Fake<'_>, &mut [Service; UNITS]) -> R) -> R {
        self.life(Origin::Recovery { nonce: 99 }, |host, services| {
            settle(host, services);
            act(host, services)
        })
    }

    pub fn table_entry(&self, slot: usize) -> Option<Domain> {
        let table = self.regions.find(RegionKind::Domains, Party::ORCHESTRATOR);
        DomainsReader::new(table).get(slot).unwrap()
    }

    pub fn nonce_of(&self, unit: usize) -> Option<u64> {
        ControlReader::new(self.regions.unit(unit).control).nonce()
    }
}

/// Turns until nobody has anything to do.
pub fn settle(host: &mut Fake<'_>, services: &mut [Service; UNITS]) {
    settle_until(host, services, |_| false);
}

/// Turns until nobody has anything to do, or `is_enough` says so after a turn.
pub fn settle_until(
    host: &mut Fake<'_>,
    services: &mut [Service; UNITS],
    is_enough: impl Fn(&Fake<'_>) -> bool,
) {
    let machine = host.host.xen.machine().clone();
    let mut quiet = 0;
    for _ in 0..MAX_TURNS {
        machine.advance(TURN_NS);
        quiet = if host.turn() == Next::Again { 0 } else { quiet + 1 };
        if is_enough(host) {
            return;
        }
        if quiet > 0 && !services.iter_mut().any(Service::serve) && quiet > 2 {
            return;
        }
    }
    panic!("the host does not come to rest");
}

/// Passes time until the next deadlines, as an idle host would.
pub fn wait(host: &mut Fake<'_>, services: &mut [Service; UNITS], ns: u64) {
    host.host.xen.machine().advance(ns);
    settle(host, services);
}

/// A service, seen from the inside.
pub struct Service {
    machine: Machine,
    domid: DomId,
    regions: orchestrator::unit::Regions<FakeFabric>,
    requests: Option<(Part<FakeFabric>, Part<FakeFabric>)>,
    pub life: Epoch,
    /// How well it can lead; 0 for one that does not.
    pub rank: u64,
    /// Epoch of the relay under which it serves.
    pub relay: u64,
    /// Whether the others elect it when it is named.
    pub is_electable: bool,
    /// Whether somebody waits for its answer when it begins to serve.
    pub is_awaited: bool,
    /// Whether its present life was told not to believe what it finds.
    pub is_distrusted: bool,
    /// Kicks it was given in its present life.
    pub taken: Vec<u16>,
    inbox: Option<KickReader<Part<FakeFabric>, Part<Part<FakeFabric>>>>,
    sequence: u64,
}

impl Service {
    fn new(machine: &Machine, regions: &Regions<FakeFabric>, index: usize) -> Self {
        Self {
            machine: machine.clone(),
            domid: DomId(system::SYSTEM.units[index].domid),
            regions: regions.unit(index),
            requests: (index == TOOL).then(|| start::operation_rings(regions)),
            life: 0,
            // The first of those that do the same is the best.
            rank: (UNITS - index) as u64,
            relay: 0,
            is_electable: true,
            is_awaited: true,
            is_distrusted: false,
            taken: Vec::new(),
            inbox: None,
            sequence: 0,
        }
    }

    /// Whether its domain can run.
    pub fn runs(&self) -> bool {
        let exists = self.machine.exists(self.domid);
        let xen = self.machine.domain(DomId::ORCHESTRATOR);
        let info = exists.then(|| abi::Control::domain_info(&xen, self.domid).unwrap().unwrap());
        info.is_some_and(|info| info.state == DomainState::Alive && !info.paused)
            && matches!(self.machine.vcpu(self.domid), VcpuState::Pv(_))
    }

    /// Does what there is to do. False: nothing.
    pub fn serve(&mut self) -> bool {
        let Ok(told) = ControlReader::new(self.regions.control).read() else { return false };
        if !self.runs() || told.epoch == 0 {
            return false;
        }
        let health = HealthWriter::new(self.regions.health);
        let begins = told.epoch != self.life;
        if begins {
            self.life = told.epoch;
            self.is_distrusted = told.is_distrusted;
            self.taken.clear();
            self.inbox = None;
            health.start(told.epoch);
            health.set_rank(self.rank);
            health.set_state(told.epoch, State::Serving);
        }
        if told.relay != self.relay {
            self.relay = told.relay;
            if told.relay != 0 && self.is_electable {
                self.kick(ids::RELAY);
                if self.is_awaited {
                    self.answer();
                }
            }
        }
        health.set_pong(told.ping);
        let regions = self.regions;
        let inbox = self.inbox.get_or_insert_with(|| {
            let theirs = fabric::control::kicks(regions.control);
            KickReader::new(regions.kicks, theirs, ids::COUNT as u16)
        });
        let before = self.taken.len();
        while let Some(kick) = inbox.pop() {
            if let Kick::Id(id) = kick {
                self.taken.push(id);
            }
        }
        health.set_taken(told.handed);
        let has_worked = begins || self.taken.len() > before;
        if has_worked {
            self.ring();
        }
        has_worked
    }

    /// Ends its life as its panic handler does.
    pub fn panic(&self, message: &str) {
        let panic = Panic::new(format_args!("{message}"), "", 0);
        HealthWriter::new(self.regions.health).set_panic(self.life, &panic);
        self.machine.shut_down(self.domid, ShutdownReason::Crash);
    }

    /// Says what its state has come to.
    pub fn publish(&self, digest: Digest) {
        HealthWriter::new(self.regions.health).set_digest(digest);
        self.ring();
    }

    /// Takes what makes it a better leader.
    pub fn improve(&mut self, rank: u64) {
        self.rank = rank;
        HealthWriter::new(self.regions.health).set_rank(rank);
        self.ring();
    }

    /// As the store that leads: answers the toolstack.
    pub fn answer(&self) {
        self.kick(system::SYSTEM.units[TOOL].store_slot.expect("a client of the store"));
    }

    /// Passes `id` to the orchestrator.
    pub fn kick(&self, id: u16) {
        self.kick_silently(id);
        self.ring();
    }

    /// Passes `id` to the orchestrator without the bell, as one does that saw earlier kicks unread.
    pub fn kick_silently(&self, id: u16) {
        let theirs = fabric::control::kicks(self.regions.control);
        let mut outbox = KickWriter::<_, _, { ids::COUNT }>::new(self.regions.kicks, theirs);
        outbox.push(id);
    }

    /// Damages the index of its half of the kick rings.
    pub fn break_kicks(&self, prod: u64) {
        self.regions.kicks.store_u64(fabric::kick::PROD, prod);
    }

    fn ring(&self) {
        let xen = self.machine.domain(self.domid);
        // It may be dead by now.
        let _ = xen.send(DOORBELL);
    }

    /// The toolstack sends a request, and does not wait.
    pub fn send(&mut self, operation: &Operation<'_>) {
        let (requests, replies) = self.requests.expect("the toolstack");
        self.sequence += 1;
        let request =
            Request { epoch: self.life, sequence: self.sequence, operation: operation.clone() };
        let mut bytes = [0; api::MAX_MESSAGE];
        let len = request.encode(&mut bytes).unwrap();
        let id = MessageId { epoch: self.life, sequence: self.sequence };
        MessageWriter::new(requests, replies).send(id, &bytes[..len]).unwrap();
        self.kick(ids::OPERATIONS);
    }

    /// The reply to the last request, if it has come.
    pub fn reply(&mut self, look: impl FnOnce(Outcome<'_>)) {
        let (requests, replies) = self.requests.expect("the toolstack");
        let mut reader = MessageReader::new(requests, replies);
        let mut bytes = [0; MESSAGE_MAX];
        let message = reader.peek(&mut bytes).unwrap().expect("a reply has come");
        let reply = Reply::decode(&bytes[..message.length]).unwrap();
        assert_eq!(reply.sequence, self.sequence);
        look(reply.outcome);
        reader.consume();
    }
}

/// An archive with tiny images of everything that the system description names.
fn archive() -> &'static [u8] {
    let mut builder = ArchiveBuilder::new();
    let image = image();
    // Units of one kind share an image.
    let entries: BTreeSet<_> = system::SYSTEM.units.iter().map(|unit| unit.entry).collect();
    for entry in entries {
        builder.add(entry, &image).unwrap();
    }
    for guest in system::SYSTEM.guests {
        builder.add(guest.kernel, &[7; 100]).unwrap();
        builder.add(guest.ramdisk, &[8; 100]).unwrap();
    }
    let bytes = builder.build().leak();
    assert!(Archive::open(bytes).is_ok());
    bytes
}

/// An ELF file with one page of code at 1 MiB and the notes that Xen wants.
fn image() -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let note = |kind: u32, value: &[u8]| {
        let head: Vec<u8> =
            [4, value.len() as u32, kind].iter().flat_map(|word| word.to_le_bytes()).collect();
        [&head, b"Xen\0".as_slice(), value].concat()
    };
    let notes = [note(6, b"test\0\0\0\0"), note(1, &0x10_0040u64.to_le_bytes())].concat();
    let code = [0x90; 4096];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(HEADERS, 0);
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32] = 64;
    file[54] = 56;
    file[56] = 2;
    let parts = [(1u32, 5u32, 0x10_0000u64, &code[..]), (4, 4, 0, &notes[..])];
    for (index, (kind, flags, address, bytes)) in parts.into_iter().enumerate() {
        let at = 64 + 56 * index;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
        let len = bytes.len() as u64;
        let words = [file.len() as u64, address, address, len, len, 4];
        for (slot, word) in words.iter().enumerate() {
            file[at + 8 + slot * 8..at + 16 + slot * 8].copy_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(bytes);
    }
    file
}
