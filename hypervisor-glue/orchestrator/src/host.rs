//! The host: its units, its guests' slots, its relay. Everything that must happen at once when an
//! event arrives happens in [`Host::poll`], which the main loop calls between any two steps of
//! longer work, and Xen in the middle of a long hypercall.

use abi::{Control, DomId, Port, Virq, XenError};
use fabric::SharedMemory;
use fabric::domains::DomainState;
use fabric::kick::Kick;
use recovery::{Event, Supervisor};
use service::ids;

use crate::evidence::{Kept, Unfinished};
use crate::relay::{self, Relay};
use crate::report::{Note, Notes};
use crate::slots::{Route, Routes, Slots};
use crate::unit::Unit;
use crate::watch::{self, Tuning};

/// Services of the system description.
pub const UNITS: usize = system::UNITS;
/// Events handled before the loop looks at longer work again: an event storm of one guest must not
/// keep it from everything else.
const MAX_EVENTS_PER_POLL: usize = 64;
/// The greatest share that Xen's scheduler knows. The orchestrator works microseconds at a time;
/// with the default it would often run only when the unit it watches has gone to sleep.
pub const CPU_WEIGHT: u16 = u16::MAX;
/// The share of a service: a guest has 256. A guest waits for its answer anyhow, so what it still
/// computes meanwhile comes after the service; the watcher comes long before it, because a service
/// that loops must be interrupted.
pub const UNIT_CPU_WEIGHT: u16 = 4096;

/// How long whoever runs goes on when another one wakes, in microseconds: not at all. Xen's default
/// is 1,000, and the least beside none 100. With that a guest puts a whole request into its ring
/// before anybody looks, and waits for a third less; but who is made to wait waits until the other
/// one's slice ends then, half a millisecond at least (credit2): a hang is seen up to 1.7 ms late.
const RATE_LIMIT_US: u32 = 0;

/// The host.
pub struct Host<'a, C: Control, F: SharedMemory + Copy> {
    /// The hypervisor.
    pub xen: &'a C,
    /// The services, in the order of the system description.
    pub units: [Unit<F>; UNITS],
    /// Decides what is done about failures.
    pub supervisor: Supervisor<UNITS>,
    /// The guests.
    pub slots: Slots<F>,
    /// Where events go.
    pub routes: Routes,
    /// What the operator will be told.
    pub notes: Notes,
    /// Which unit XenStore's requests go to.
    pub store: usize,
    /// Which unit serves XenStore, and since when.
    pub relay: Relay,
    /// When the replicas' states are compared next, if anything has changed.
    pub compare_at_ns: Option<u64>,
    /// Which unit is the toolstack.
    pub tool: usize,
    /// What is known of each failure.
    pub epitaphs: &'a mut Kept,
    /// What the latest epitaph lacks.
    pub unfinished: Option<Unfinished>,
    /// The operator typed something.
    pub keyboard: bool,
    /// tool-uk has sent a request.
    pub operations_due: bool,
    /// The host cannot start on this machine.
    pub hopeless: bool,
    /// The machine is to end, or to start again.
    pub power: Option<api::Power>,
    /// Nothing is printed before this time: somebody else needs the CPU more.
    pub quiet_until_ns: u64,
    /// Our timer's present setting.
    pub timer_at_ns: Option<u64>,
    /// We have recovered ourselves this often, and no guest has had an answer since.
    pub owes_answer: Option<u32>,
}

impl<'a, C: Control, F: SharedMemory + Copy> Host<'a, C, F> {
    /// A host with these units and slots, and nothing done yet.
    pub fn new(
        xen: &'a C,
        units: [Unit<F>; UNITS],
        slots: Slots<F>,
        routes: Routes,
        epitaphs: &'a mut Kept,
        tuning: Tuning,
    ) -> Self {
        let role = |role| system::SYSTEM.with_role(role).expect("every host has this unit");
        Self {
            xen,
            units,
            supervisor: watch::supervisor(tuning),
            slots,
            routes,
            notes: Notes::new(),
            store: role(system::Role::XenStore),
            relay: Relay::new(),
            compare_at_ns: None,
            tool: role(system::Role::Tool),
            epitaphs,
            unfinished: None,
            keyboard: false,
            operations_due: false,
            hopeless: false,
            power: None,
            quiet_until_ns: 0,
            timer_at_ns: None,
            owes_answer: None,
        }
    }
}

impl<C: Control, F: SharedMemory + Copy> Host<'_, C, F> {
    /// Handles what has happened since the last call. Never waits.
    pub fn poll(&mut self) {
        for _ in 0..MAX_EVENTS_PER_POLL {
            let Some(port) = self.xen.next_event() else { break };
            match self.routes.get(port) {
                Route::Stray => {}
                Route::Unit(unit) => self.take_kicks(usize::from(unit)),
                Route::Store(slot) => self.pass_request(slot),
                Route::Console(slot) => self.hand(self.tool, ids::console(u16::from(slot))),
                Route::DomExc => self.scan_domains(),
                Route::Timer => self.timer_at_ns = None,
                Route::Keyboard => self.keyboard = true,
            }
        }
        self.take_late_kicks();
        self.watch();
        self.take_up();
        self.compare_replicas();
        for unit in self.units.iter_mut() {
            unit.ring_if_needed(self.xen);
        }
        self.watch_in_passing();
    }

    /// Has Xen prefer the orchestrator to everybody else, and nobody wait for less important ones.
    pub fn take_precedence(&mut self) {
        self.prefer(DomId::ORCHESTRATOR, CPU_WEIGHT);
        if let Err(error) = self.xen.set_rate_limit(RATE_LIMIT_US) {
            let (what, domid) = ("limit the rate at which Xen switches, for", DomId::ORCHESTRATOR);
            self.notes.add(self.xen.now_ns(), Note::Refused { what, domid, error });
        }
    }

    /// Gives a domain its share of the CPU. A host whose scheduler knows no weights goes on
    /// without, and says so: under full load it may see a fault, or come back from it, late.
    pub(crate) fn prefer(&mut self, domid: DomId, weight: u16) {
        if let Err(error) = self.xen.set_cpu_weight(domid, weight) {
            let note = Note::Refused { what: "raise the CPU weight of", domid, error };
            self.notes.add(self.xen.now_ns(), note);
        }
    }

    /// Binds the virtual interrupts.
    ///
    /// # Errors
    /// What Xen says.
    pub fn bind_virqs(&mut self) -> Result<(), XenError> {
        let wanted = [
            (Virq::DomExc, Route::DomExc),
            (Virq::Timer, Route::Timer),
            (Virq::Console, Route::Keyboard),
        ];
        for (virq, route) in wanted {
            let port = service::bind_virq(self.xen, virq)?;
            self.routes.set(port, route);
        }
        Ok(())
    }

    /// A guest has something for XenStore.
    fn pass_request(&mut self, slot: u8) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.asked += 1;
        }
        self.hand(self.store, u16::from(slot));
    }

    /// Hands work to a unit.
    pub fn hand(&mut self, unit: usize, id: u16) {
        self.units[unit].hand(id);
        self.supervisor.handed(self.xen.now_ns(), unit);
    }

    /// Tells every unit that the domain table has changed.
    pub fn domains_changed(&mut self) {
        for unit in 0..self.units.len() {
            self.hand(unit, ids::DOMAINS);
        }
    }

    /// Takes what a unit on another CPU pushed while its earlier kicks were taken: for that it rang
    /// no bell.
    fn take_late_kicks(&mut self) {
        for unit in 0..self.units.len() {
            if self.units[unit].kicks_ready() > 0 {
                self.take_kicks(unit);
            }
        }
    }

    /// Whether a unit has kicks that no bell may announce: this is no time to sleep.
    pub fn has_late_kicks(&self) -> bool {
        self.units.iter().any(|unit| unit.kicks_ready() > 0)
    }

    /// Passes on what a unit has for others.
    fn take_kicks(&mut self, unit: usize) {
        self.notice_ready(unit);
        if relay::is_store(unit) {
            self.name_leader();
            self.compare_soon();
        }
        for _ in 0..self.units[unit].kicks_ready() {
            match self.units[unit].take_kick() {
                Some(Kick::Id(id)) => self.pass_on(unit, id),
                Some(Kick::ScanAll) => self.pass_on_everything(unit),
                None => break,
            }
        }
    }

    /// A unit that began a life may say now that it serves.
    fn notice_ready(&mut self, index: usize) {
        if self.supervisor.is_serving(index) || !self.units[index].says_it_serves() {
            return;
        }
        self.tell_supervisor(index, Event::Ready { epoch: self.units[index].life });
    }

    /// One kick of a unit: an answer for a client, or a message for us.
    fn pass_on(&mut self, from: usize, id: u16) {
        self.close_incident(from);
        if relay::is_store(from) {
            match id {
                id if ids::PEERS.contains(&id) => self.pass_mail(from, id),
                ids::RELAY => self.leader_serves(from),
                // What a replica had to say before it was stopped, its next leader says again.
                _ if from != self.store => {}
                id if ids::STORES.contains(&id) => {
                    self.store_answered();
                    if let Some(client) = system::SYSTEM.client_on(usize::from(id)) {
                        return self.hand(client, id);
                    }
                    if let Some(times) = self.owes_answer.take() {
                        self.notes.add(self.xen.now_ns(), Note::RelaysAgain { times });
                    }
                    if let Some(slot) = self.slots.get_mut(usize::from(id)) {
                        slot.answered += 1;
                    }
                    self.notify(id, |slot| slot.store);
                }
                _ => {}
            }
        } else if system::SYSTEM.client_on(usize::from(id)) == Some(from) {
            self.hand(self.store, id);
        } else if from == self.tool {
            match id {
                id if ids::CONSOLES.contains(&id) => {
                    self.notify(id - ids::CONSOLES.start, |slot| slot.console);
                }
                ids::OPERATIONS => self.operations_due = true,
                _ => {}
            }
        }
    }

    /// The unit's ring held something impossible: everybody it serves looks once.
    pub fn pass_on_everything(&mut self, from: usize) {
        for id in 0..ids::COUNT as u16 {
            self.pass_on(from, id);
        }
    }

    /// Notifies a guest.
    fn notify(&self, slot: u16, port: impl Fn(&crate::slots::Slot) -> Option<Port>) {
        if let Some(port) = self.slots.get(usize::from(slot)).and_then(port) {
            // A guest that is gone hears nothing, which is right.
            let _ = self.xen.send(port);
        }
    }

    /// The first answer after a recovery ends the incident.
    fn close_incident(&mut self, index: usize) {
        let now_ns = self.xen.now_ns();
        let unit = &mut self.units[index];
        if !self.supervisor.is_serving(index) {
            return;
        }
        if let Some(mut incident) = unit.incident.take() {
            incident.repaired_ns = now_ns;
            self.quiet_until_ns = 0;
            let note = Note::Recovered { unit: unit.config.name, life: unit.life, incident };
            self.notes.add(now_ns, note);
        }
    }

    /// A domain shut down, or is gone. Xen does not say which, and says it once for several.
    fn scan_domains(&mut self) {
        self.scan_units();
        let mut changed = false;
        for index in 1..ids::SLOTS {
            let Some(slot) = self.slots.get(index) else { continue };
            let domid = DomId(slot.domain.domid);
            if matches!(slot.domain.state, DomainState::Building | DomainState::Gone) {
                continue;
            }
            let (state, code) = match self.xen.domain_info(domid) {
                Ok(Some(info)) => match info.state {
                    abi::DomainState::Alive => (DomainState::Alive, 0),
                    abi::DomainState::Shutdown(reason) => (DomainState::Shutdown, reason.code()),
                    abi::DomainState::Dying => (DomainState::Dying, 0),
                },
                Ok(None) => (DomainState::Gone, 0),
                Err(_) => continue,
            };
            changed |= self.slots.set_state(index, state, code);
        }
        if changed {
            self.domains_changed();
        }
    }
}
