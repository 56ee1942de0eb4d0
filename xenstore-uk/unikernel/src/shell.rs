//! The engine between its inputs and outputs: kicks and the domain table in, served rings and kicks
//! out.

use alloc::vec::Vec;
use core::fmt::Write;

use fabric::control::Rung;
use fabric::health::RecoveryReport;
use fabric::log::{Level, LogWriter};
use fabric::view::RegionKind;
use runtime::{FabricMemory, Hypervisor, Survivor};
use service::ids::{self, SLOTS, STORES};
use service::view::View;
use service::{Outbox, Step};
use store::persist::index_len;
use store::{
    Action, Config, Origin, Quota, Reports, SLOT_LEN, Server, StartReport, Stats, Strength,
};

use crate::seats::Seats;
use crate::{Fabric, pulse};

/// Requests served between two looks at the inbox.
const SERVED_PER_STEP: usize = 16;

/// Memory of ours that outlives us.
#[cfg(not(feature = "fault-points"))]
type Durable = Fabric;
#[cfg(feature = "fault-points")]
type Durable = crate::fault_points::Memory;

/// Bytes of the index: what a life finds that follows a change which a microreset interrupted.
pub const INDEX_LEN: usize = index_len(system::LAYOUT.largest(RegionKind::Slots) / SLOT_LEN);

/// Tells the operator of a limit that a domain has passed.
type Tell<'a> = &'a mut dyn FnMut(u16, Quota, Strength);

/// The engine and its connections.
#[derive(Debug)]
pub struct Shell {
    server: Server<Durable, Durable>,
    seats: Seats,
    /// Slots to notify since a recovery: a former life may have died before it did.
    owed: Vec<u16>,
    damaged: bool,
    /// The domain table may have changed.
    must_look: bool,
    /// This life has not answered yet, and has somebody to answer.
    is_new: bool,
    /// What the start found, until it is told.
    found: Option<StartReport>,
}

impl Shell {
    /// Reads back what the fabric holds, or begins a new store, and seats everybody. `index` has
    /// [`INDEX_LEN`] bytes; the former life's index is believed after a microreset alone.
    pub fn start(
        xen: Hypervisor,
        view: &View<FabricMemory>,
        index: Fabric,
        nonce: u64,
        report: &mut RecoveryReport,
    ) -> Self {
        let tool = system::SYSTEM.units[system::TOOL_UK].domid;
        let own = system::SYSTEM.units[view.unit()].domid;
        let config = Config::new(nonce, &[tool], system::SLOTS);
        let durable = |memory| durable(xen, view, memory);
        let [slots, areas] =
            [RegionKind::Slots, RegionKind::Areas].map(|region| durable(view.own(region)));
        let index = durable(index);
        let (mut server, found) = if report.rung == Rung::Microreset as u32 {
            Server::start_indexed(&config, slots, areas, index)
        } else {
            Server::start_keeping(&config, slots, areas, index)
        };
        server.set_pulse(pulse::beat);
        report.reloaded = found.load.nodes;
        // A record whose slots look free is lost without a trace of its own.
        let lost = found.load.lost_records.max(found.load.missing_slots);
        // A life that is not the first one and finds no commit header has lost the whole store.
        let is_gone = found.is_new && report.rung != Rung::First as u32;
        report.dropped = lost + found.damaged_areas + u32::from(is_gone);
        let (seats, owed) = (Seats::new(xen, view, own), Vec::with_capacity(SLOTS));
        let (damaged, must_look, is_new) = (false, false, true);
        let mut shell =
            Self { server, seats, owed, damaged, must_look, is_new, found: Some(found) };
        for (index, unit) in system::SYSTEM.units.iter().enumerate() {
            let Some(slot) = unit.store_slot else { continue };
            let client = shell.server.open(unit.domid).expect("the units' connections come first");
            shell.seats.seat_unit(client, index, slot, view);
        }
        shell.seats.bury_the_absent(&mut shell.server);
        shell.seat_everybody(report);
        shell
    }

    /// Whether no change of the state was interrupted.
    pub fn is_whole(&self) -> bool {
        self.server.is_consistent() && self.seats.are_whole() && !self.damaged
    }

    /// Goes on in memory that a microreset kept.
    pub fn resume(&mut self, report: &mut RecoveryReport) {
        self.is_new = true;
        report.dropped = self.server.resume();
        report.kept = self.server.state().committed() as u32;
        self.seats.look_at_domains(&mut self.server);
        self.seat_everybody(report);
    }

    /// Attaches every connection that the state knows to its ring. A guest whose ring cannot be
    /// mapped keeps its connection: it may grant the ring again.
    fn seat_everybody(&mut self, report: &mut RecoveryReport) {
        self.owed.clear();
        // A list of its own: attaching may change that of the server.
        let connections: Vec<_> = self.server.connections().collect();
        for connection in connections {
            let seated = connection.origin == Origin::Shell
                || self.seats.client_of(connection.domid) == Some(connection.client)
                || self.seats.seat_guest(connection.client, connection.domid);
            if seated {
                self.owed.extend(self.seats.attach(&mut self.server, connection.client));
                report.resumed += 1;
            }
        }
    }

    /// A guest that has no seat since a recovery says that there is something: perhaps it grants
    /// its ring again.
    fn seat_again(&mut self, slot: u16) {
        let Some(domid) = self.seats.without_seat(slot) else { return };
        let mut connections = self.server.connections();
        let known =
            connections.find(|other| other.domid == domid && other.origin == Origin::Introduced);
        let Some(client) = known.map(|connection| connection.client) else { return };
        drop(connections);
        if self.seats.seat_guest(client, domid) {
            self.owed.extend(self.seats.attach(&mut self.server, client));
        }
    }

    /// Notes that a connection, or all of them, may have something to say.
    fn kick(&mut self, id: Option<u16>) {
        match id {
            Some(id) if STORES.contains(&id) => {
                if let Some(client) = self.seats.client_on(id) {
                    self.server.kick(client);
                } else {
                    self.seat_again(id);
                }
            }
            Some(ids::DOMAINS) => self.must_look = true,
            Some(_) => {}
            None => {
                self.must_look = true;
                for client in self.seats.clients() {
                    self.server.kick(client);
                }
            }
        }
    }

    /// Serves some requests, then does what the engine wants done.
    fn step(&mut self, now_ns: u64, out: &mut Outbox<Fabric>, tell: Tell<'_>) -> Step {
        pulse::renew();
        self.owed.drain(..).for_each(|slot| out.kick(slot));
        // Whoever has waited for a recovery need not wait for this, too.
        if !self.is_new && core::mem::take(&mut self.must_look) {
            self.seats.look_at_domains(&mut self.server);
        }
        let mut step = Step { more: true, ..Step::default() };
        for _ in 0..SERVED_PER_STEP {
            let Some(client) = self.server.next_ready(now_ns) else {
                step.more = false;
                self.is_new = false;
                break;
            };
            let served = self.seats.serve(&mut self.server, client, now_ns);
            let Some((slot, progress)) = served else { continue };
            if progress.notify {
                out.kick(slot);
            }
            if let Some(fault) = progress.fault {
                // What is in memory is not what was written: the next life reads it back.
                self.damaged = true;
                panic!("memory is damaged: {fault:?}");
            }
            step.completed += u64::from(progress.executed || progress.notify || progress.advanced);
            self.act(out, tell);
            if progress.advanced {
                // Several pieces of longer work, each of them a progress, would together look like
                // a hang: it is told after each.
                break;
            }
            if progress.notify && core::mem::take(&mut self.is_new) {
                // Whoever has waited for the recovery need not wait for the others' answers, too.
                break;
            }
        }
        self.act(out, tell);
        step.more |= self.must_look;
        step
    }

    fn act(&mut self, out: &mut Outbox<Fabric>, tell: Tell<'_>) {
        while let Some(action) = self.server.next_action() {
            match action {
                Action::Connect { client, domid, .. } | Action::Rebind { client, domid, .. } => {
                    if self.seats.seat_guest(client, domid) {
                        if let Some(slot) = self.seats.attach(&mut self.server, client) {
                            out.kick(slot);
                        }
                    } else {
                        self.server.attach_failed(client);
                    }
                }
                Action::Disconnect { client, .. } => self.seats.leave(client),
                Action::LimitReached { domid, quota, strength } => tell(domid, quota, strength),
                Action::Print => {}
            }
        }
    }

    /// A little of what never hurries: scrubbing, sweeping. Returns when there is more to do.
    fn idle(&mut self, now_ns: u64) -> u64 {
        pulse::renew();
        if let Some(fault) = self.server.idle_step(now_ns) {
            self.damaged = true;
            panic!("memory is damaged: {fault:?}");
        }
        self.server.next_deadline(now_ns)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.server.stats()
    }
}

#[cfg(not(feature = "fault-points"))]
fn durable(_: Hypervisor, _: &View<FabricMemory>, memory: Fabric) -> Durable {
    memory
}

#[cfg(feature = "fault-points")]
fn durable(xen: Hypervisor, view: &View<FabricMemory>, memory: Fabric) -> Durable {
    Durable::new(memory, view.own(RegionKind::Log), xen)
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
            for connection in shell.server.connections() {
                let seat = shell.seats.client_of(connection.domid);
                let mut log = self.log.borrow_mut();
                log.line(now_ns, Level::Information, format_args!("{connection:?} seat {seat:?}"));
            }
        });
    }
}
