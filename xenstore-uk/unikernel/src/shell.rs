//! The replica between its inputs and outputs: kicks, messages and the domain table in, served
//! rings, messages and kicks out.

use alloc::vec::Vec;
use core::fmt::Write;

use fabric::Epoch;
use fabric::control::Rung;
use fabric::health::{Digest, RecoveryReport};
use fabric::log::{Level, LogWriter};
use fabric::view::{Party, RegionKind};
use replica::{Host, Member, Places, Relay, Setup};
use runtime::{FabricMemory, Hypervisor, Survivor};
use service::ids::{self, PEERS, SLOTS, STORES};
use service::view::View;
use service::{Outbox, Step};
use store::persist::index_len;
use store::{
    Action, Config, Fault, Index, Origin, Progress, Quota, Reports, SLOT_LEN, Server, StartReport,
    Stats, Strength,
};

use crate::mail::Mail;
use crate::seats::Seats;
use crate::{Fabric, pulse};

/// Memory of ours that outlives us.
#[cfg(not(feature = "fault-points"))]
type Durable = Fabric;
#[cfg(feature = "fault-points")]
type Durable = crate::fault_points::Memory;

/// Bytes of the index: what a life finds that follows a change which a microreset interrupted.
pub const INDEX_LEN: usize = index_len(system::LAYOUT.largest_slots() / SLOT_LEN);

/// Time between two looks at connections that nobody has kicked, at least: it is done when the
/// scrubber has woken us, one connection at a time.
const LOOK_NS: u64 = 25_000_000;

/// Tells the operator of a limit that a domain has passed.
type Tell<'a> = &'a mut dyn FnMut(u16, Quota, Strength);

type Engine = Server<Durable, Durable>;

/// The replica and its connections.
#[derive(Debug)]
pub struct Shell {
    replica: Member<Durable, Durable, Durable>,
    seats: Seats,
    mail: Mail,
    /// Epoch of the relay while it names us, else 0.
    relay: u64,
    /// The orchestrator is to be told that we serve. One round later, so that it hears of the first
    /// answers at the same time, and takes the CPU for nothing else before.
    is_news: bool,
    /// Slots to notify in the next step.
    owed: Vec<u16>,
    /// When to look at a connection that nobody has kicked.
    look_ns: u64,
    damaged: bool,
    /// What the start found, until it is told.
    found: Option<StartReport>,
}

/// What the orchestrator says of a life.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Its number.
    pub epoch: Epoch,
    /// The mark of this boot of the host.
    pub nonce: u64,
    /// What the former lives kept of the state is wrong.
    pub is_distrusted: bool,
}

impl Shell {
    /// Reads back what the fabric holds, or begins a new store. `index` has [`INDEX_LEN`] bytes;
    /// the former life's index is believed after a microreset alone.
    pub fn start(
        xen: Hypervisor,
        view: &View<FabricMemory>,
        index: Fabric,
        told: Told,
        report: &mut RecoveryReport,
    ) -> Self {
        let Told { epoch, nonce, is_distrusted } = told;
        let tool = system::SYSTEM.units[system::TOOL_UK].domid;
        let own = system::SYSTEM.units[view.unit()].domid;
        let units: Vec<usize> = system::SYSTEM.all_with_role(system::Role::XenStore).collect();
        let place = units.iter().position(|unit| *unit == view.unit());
        let setup = Setup {
            replica: place.map_or(1, |place| place as u8 + 1),
            replicas: units.len() as u8,
            epoch,
            is_distrusted,
            config: Config::new(nonce, &[tool], system::SLOTS),
            services: clients().map(|client| client.domid).collect(),
        };
        let index = durable(xen, view, index);
        let is_microreset = report.rung == Rung::Microreset as u32;
        let index = if is_microreset { Index::Kept(index) } else { Index::Any(index) };
        let durable = |kind, unit| durable(xen, view, view.of(kind, Party::unit(unit)));
        let (ours, others) = (view.unit(), units.iter().filter(|unit| **unit != view.unit()));
        let places = Places {
            slots: durable(RegionKind::Slots, ours),
            index,
            areas: durable(RegionKind::Areas, ours),
            others: others.map(|unit| durable(RegionKind::Areas, *unit)).collect(),
            log: durable(RegionKind::RaftLog, ours),
        };
        let (mut replica, found) = Member::start(setup, places, abi::Xen::now_ns(&xen));
        replica.server_mut().set_pulse(pulse::beat);
        let load = found.store.load;
        report.reloaded = load.nodes;
        // A record whose slots look free is lost without a trace of its own.
        let lost = load.lost_records.max(load.missing_slots);
        // A life that is not the first one and finds no commit header has lost the whole store.
        let is_gone = found.store.is_new && report.rung != Rung::First as u32;
        report.dropped = lost + found.store.damaged_areas + u32::from(is_gone);
        let mut shell = Self {
            replica,
            seats: Seats::new(xen, view, own),
            mail: Mail::new(view),
            relay: 0,
            is_news: false,
            owed: Vec::with_capacity(SLOTS),
            look_ns: 0,
            damaged: false,
            found: Some(found.store),
        };
        shell.seats.look_at_domains(shell.replica.server_mut());
        shell.map_rings();
        shell
    }

    /// Whether no change of the state was interrupted.
    pub fn is_whole(&self) -> bool {
        self.replica.is_whole() && self.seats.are_whole() && !self.damaged
    }

    /// Goes on in memory that a microreset kept.
    pub fn resume(&mut self, epoch: Epoch, now_ns: u64, report: &mut RecoveryReport) {
        (self.relay, self.is_news) = (0, false);
        self.owed.clear();
        self.replica.resume(epoch, now_ns);
        report.kept = self.replica.server().state().committed() as u32;
        self.seats.look_at_domains(self.replica.server_mut());
        self.map_rings();
    }

    /// Maps the ring of every guest: a replica that follows is then ready to lead.
    fn map_rings(&mut self) {
        let connections: Vec<_> = self.replica.server().connections().collect();
        for connection in connections {
            let is_mapped = self.seats.client_of(connection.domid) == Some(connection.client);
            if connection.origin == Origin::Introduced && !is_mapped {
                // Without a ring the connection waits until its guest grants one.
                self.seats.seat_guest(connection.client, connection.domid);
            }
        }
    }

    /// A guest that has no seat since a recovery says that there is something: perhaps it grants
    /// its ring again. A replica that follows maps it only.
    fn seat_again(&mut self, slot: u16) {
        let Some(domid) = self.seats.without_seat(slot) else { return };
        let server = self.replica.server_mut();
        let mut connections = server.connections();
        let known =
            connections.find(|other| other.domid == domid && other.origin == Origin::Introduced);
        let Some(client) = known.map(|connection| connection.client) else { return };
        drop(connections);
        if self.seats.seat_guest(client, domid) && server.is_leading() {
            self.owed.extend(self.seats.attach(server, client));
        }
    }

    /// Notes that a connection, or all of them, may have something to say. Messages are looked for
    /// in every step.
    fn kick(&mut self, id: Option<u16>) {
        let server = self.replica.server_mut();
        match id {
            Some(id) if STORES.contains(&id) => {
                if let Some(client) = self.seats.client_on(id) {
                    server.kick(client);
                } else {
                    self.seat_again(id);
                }
            }
            Some(ids::DOMAINS) => self.seats.look_at_domains(server),
            Some(_) => {}
            None => {
                self.seats.look_at_domains(server);
                self.seats.clients().for_each(|client| server.kick(client));
            }
        }
    }

    /// One round of the replica.
    fn step(&mut self, now_ns: u64, out: &mut Outbox<Fabric>, tell: Tell<'_>) -> Step {
        pulse::renew();
        self.owed.drain(..).for_each(|slot| out.kick(slot));
        if core::mem::take(&mut self.is_news) {
            out.kick(ids::RELAY);
        }
        let Self { replica, seats, mail, relay, is_news, .. } = self;
        let named = Relay { epoch: *relay, is_ours: *relay != 0 };
        let mut outside = Outside { seats, mail, out, tell, relay: *relay };
        let round = replica.round(now_ns, named, &mut outside);
        *is_news = round.has_taken_over;
        if let Some(fault) = round.fault {
            self.end_damaged(fault);
        }
        if let Some(damage) = round.damage {
            self.damaged = true;
            panic!("the log is damaged: {damage:?}");
        }
        Step { completed: round.completed, more: round.more, wake_at_ns: round.wake_at_ns }
    }

    /// A little of what never hurries. Returns when there is more to do.
    fn idle(&mut self, now_ns: u64) -> u64 {
        pulse::renew();
        let idle = self.replica.idle(now_ns);
        if let Some(fault) = idle.fault {
            self.end_damaged(fault);
        }
        if now_ns >= self.look_ns {
            self.look_ns = now_ns + LOOK_NS;
            if self.look_again() {
                return now_ns;
            }
        }
        idle.wake_at_ns
    }

    /// Looks at a connection that nobody has kicked. Whether there is something to do at once.
    fn look_again(&mut self) -> bool {
        let server = self.replica.server_mut();
        if !server.is_leading() {
            return false;
        }
        let Some((client, slot, overlooked)) = self.seats.next_in_turn(server) else {
            return false;
        };
        if overlooked.request {
            server.kick(client);
        }
        if overlooked.response {
            self.owed.push(slot);
        }
        overlooked.request || overlooked.response
    }

    /// What is in memory is not what was written: the next life reads it back.
    fn end_damaged(&mut self, fault: Fault) -> ! {
        self.damaged = true;
        panic!("memory is damaged: {fault:?}")
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.replica.server().stats()
    }
}

/// The services that are clients of the store.
fn clients() -> impl Iterator<Item = &'static system::Unit> {
    system::SYSTEM.units.iter().filter(|unit| unit.store_slot.is_some())
}

#[cfg(not(feature = "fault-points"))]
fn durable(_: Hypervisor, _: &View<FabricMemory>, region: Fabric) -> Durable {
    region
}

#[cfg(feature = "fault-points")]
fn durable(xen: Hypervisor, view: &View<FabricMemory>, region: Fabric) -> Durable {
    Durable::new(region, view.own(RegionKind::Log), xen)
}

/// What a replica needs done outside, for one round.
struct Outside<'a> {
    seats: &'a mut Seats,
    mail: &'a mut Mail,
    out: &'a mut Outbox<Fabric>,
    tell: Tell<'a>,
    relay: u64,
}

impl Outside<'_> {
    fn notify(&mut self, served: Option<(u16, Progress)>) -> Option<Progress> {
        let (slot, progress) = served?;
        if progress.notify {
            self.out.kick(slot);
        }
        Some(progress)
    }

    /// Attaches a connection to its ring, or says that it has none.
    fn attach(&mut self, server: &mut Engine, client: u16, is_seated: bool) {
        if !is_seated {
            server.attach_failed(client);
        } else if let Some(slot) = self.seats.attach(server, client) {
            self.out.kick(slot);
        }
    }
}

impl Host<Durable, Durable> for Outside<'_> {
    fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        self.mail.receive(into)
    }

    fn send(&mut self, to: u8, message: &[u8]) {
        if self.mail.send(to, message) {
            self.out.kick(PEERS.start + u16::from(to) - 1);
        }
    }

    fn serve(&mut self, server: &mut Engine, client: u16, now_ns: u64) -> Option<Progress> {
        let served = self.seats.serve(server, client, now_ns);
        self.notify(served)
    }

    fn finish(
        &mut self,
        server: &mut Engine,
        client: u16,
        index: u64,
        now_ns: u64,
    ) -> Option<Progress> {
        let served = self.seats.finish(server, client, index, now_ns);
        self.notify(served)
    }

    fn take_over(&mut self, server: &mut Engine) {
        self.seats.bury_the_absent(server);
        // A list of its own: attaching may change that of the server.
        let connections: Vec<_> = server.connections().collect();
        for connection in connections {
            let (client, domid) = (connection.client, connection.domid);
            let is_mapped = match connection.origin {
                Origin::Shell => self.seats.seat_unit(client, domid, self.relay),
                Origin::Introduced => self.seats.client_of(domid) == Some(client),
            };
            // A guest whose ring cannot be mapped now may grant it again, and says so then. Only an
            // INTRODUCE that waits for it must have its answer.
            let is_seated = is_mapped || self.seats.seat_guest(client, domid);
            if is_seated || server.is_awaited(client) {
                self.attach(server, client, is_seated);
            }
        }
    }

    fn act(&mut self, server: &mut Engine, action: Action) {
        match action {
            Action::Connect { client, domid, .. } | Action::Rebind { client, domid, .. } => {
                // A follower maps the ring so that it is there when it leads.
                let is_seated = self.seats.seat_guest(client, domid);
                if server.is_leading() {
                    self.attach(server, client, is_seated);
                }
            }
            Action::Disconnect { client, .. } => self.seats.leave(client),
            Action::LimitReached { domid, quota, strength } => {
                (self.tell)(domid, quota, strength);
            }
            Action::Print => {}
        }
    }
}

/// What the service loop drives.
#[derive(Debug)]
pub struct Work {
    shell: &'static Survivor<Shell>,
    log: core::cell::RefCell<LogWriter<Fabric>>,
    reports: Reports,
    /// Records written again that the operator has been told of.
    repaired: u64,
}

impl Work {
    /// Work on the shell that `place` holds.
    pub fn new(place: &'static Survivor<Shell>, log: LogWriter<Fabric>) -> Self {
        let (log, reports) = (core::cell::RefCell::new(log), Reports::default());
        Self { shell: place, log, reports, repaired: place.read(Shell::stats).repaired_records }
    }
}

impl service::Work<Fabric> for Work {
    fn named(&mut self, relay: u64) {
        self.shell.modify(|shell| shell.relay = relay);
    }

    fn rank(&self) -> u64 {
        self.shell.read(|shell| shell.replica.rank())
    }

    fn digest(&self) -> Option<Digest> {
        let digest = self.shell.read(|shell| shell.replica.digest());
        digest.map(|(index, sum)| Digest::new(index, sum))
    }

    fn kick(&mut self, id: Option<u16>, _: u64, _: &mut Outbox<Fabric>) {
        self.shell.modify(|shell| shell.kick(id));
    }

    fn step(&mut self, now_ns: u64, out: &mut Outbox<Fabric>) -> Step {
        let (log, reports) = (self.log.get_mut(), &mut self.reports);
        let mut tell = |domid, quota: Quota, strength| {
            let Some(hidden) = reports.admit(now_ns) else { return };
            let quota = quota.name();
            let text = format_args!(
                "d{domid} reached its {strength:?} quota of {quota} ({hidden} like this before)"
            );
            log.line(now_ns, Level::Warning, text);
        };
        self.shell.modify(|shell| shell.step(now_ns, out, &mut tell))
    }

    fn idle(&mut self, now_ns: u64) -> Option<u64> {
        if let Some(found) = self.shell.modify(|shell| shell.found.take()) {
            self.log.get_mut().line(now_ns, Level::Information, format_args!("{found}"));
        }
        let wake_at_ns = self.shell.modify(|shell| shell.idle(now_ns));
        let repaired = self.shell.read(Shell::stats).repaired_records;
        let count = repaired - core::mem::replace(&mut self.repaired, repaired);
        if count > 0 {
            // A fault that needed no recovery is news all the same: memory is failing.
            let text =
                format_args!("@{{\"event\":\"rewritten\",\"records\":{count},\"at\":{now_ns}}}");
            self.log.get_mut().line(now_ns, Level::Warning, text);
        }
        Some(wake_at_ns)
    }

    fn dump(&self, now_ns: u64) {
        let stats = self.shell.read(Shell::stats);
        let mut text = heapless::String::<200>::new();
        // What does not fit is cut.
        let _ = write!(text, "{stats:?}");
        self.log.borrow_mut().line(now_ns, Level::Information, format_args!("{text}"));
        self.shell.read(|shell| {
            let status = shell.replica.status();
            let mut log = self.log.borrow_mut();
            log.line(now_ns, Level::Information, format_args!("{status:?}"));
            drop(log);
            for connection in shell.replica.server().connections() {
                let seat = shell.seats.client_of(connection.domid);
                let mut log = self.log.borrow_mut();
                log.line(now_ns, Level::Information, format_args!("{connection:?} seat {seat:?}"));
            }
        });
    }
}
