//! Guests' places in the tables of this host, and where the events of a port go.
//!
//! A guest's first two ports are allocated before it runs: 1 is for XenStore, 2 for its console.
//! That makes the routes a function of what Xen knows, so that the orchestrator finds them again
//! after it lost its own memory of them.

use abi::{Control, DomId, Port, PortStatus, XenError};
use fabric::domains::{Domain, DomainKind, DomainState, DomainsReader, DomainsWriter};
use fabric::{Epoch, Part, SharedMemory};
use service::ids::SLOTS;

/// Guest's end of its XenStore channel: the first port allocated in it.
pub const STORE_PORT: Port = Port(1);
/// Guest's end of its console channel: the second port allocated in it.
pub const CONSOLE_PORT: Port = Port(2);
/// Our ports: a doorbell per unit, two channels per guest, three virtual interrupts, and room for
/// ports that are closed late.
pub const MAX_PORTS: usize = 256;

/// Where an event of one of our ports goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Nowhere: the port is not in use.
    #[default]
    Stray,
    /// The doorbell of a unit, by its place in the system description.
    Unit(u8),
    /// A guest's XenStore channel, by slot.
    Store(u8),
    /// A guest's console channel, by slot.
    Console(u8),
    /// A domain shut down or is gone.
    DomExc,
    /// The timer.
    Timer,
    /// The operator typed something.
    Keyboard,
}

/// Routes by port number.
#[derive(Debug)]
pub struct Routes {
    by_port: [Route; MAX_PORTS],
}

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

impl Routes {
    /// No routes.
    pub const fn new() -> Self {
        Self { by_port: [Route::Stray; MAX_PORTS] }
    }

    /// Where the events of `port` go.
    pub fn get(&self, port: Port) -> Route {
        self.by_port.get(port.0 as usize).copied().unwrap_or_default()
    }

    /// Routes the events of `port`.
    ///
    /// # Panics
    /// When Xen hands out a port beyond our table: the lowest free one is always taken, and we
    /// never hold that many.
    pub fn set(&mut self, port: Port, route: Route) {
        self.by_port[port.0 as usize] = route;
    }

    /// Forgets the routes for which `drop` says so.
    pub fn forget(&mut self, drop: impl Fn(Route) -> bool) {
        for route in &mut self.by_port {
            if drop(*route) {
                *route = Route::Stray;
            }
        }
    }
}

/// One guest's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The guest as all services see it.
    pub domain: Domain,
    /// Our end of its XenStore channel.
    pub store: Option<Port>,
    /// Our end of its console channel.
    pub console: Option<Port>,
    /// Its notifications that were relayed to XenStore.
    pub asked: u64,
    /// XenStore's notifications that were relayed to it.
    pub answered: u64,
}

/// A guest's end of one of our channels: whose, and its port.
type End = (DomId, Port);

/// The guests' ends of all our channels, by our port.
fn ends<C: Control>(xen: &C) -> [Option<End>; MAX_PORTS] {
    core::array::from_fn(|port| match xen.port_status(DomId::SELF, Port(port as u32)) {
        Ok(PortStatus::Interdomain(domid, theirs)) => Some((domid, theirs)),
        _ => None,
    })
}

/// The slot of a domain, with the ports that we have to it, which are routed there.
fn with_ports(
    domain: Domain,
    index: usize,
    ends: &[Option<End>; MAX_PORTS],
    routes: &mut Routes,
) -> Slot {
    let mut slot = Slot { domain, store: None, console: None, asked: 0, answered: 0 };
    for (port, end) in (0..).map(Port).zip(ends) {
        match end {
            Some((DomId(domid), theirs)) if *domid == domain.domid && *theirs == STORE_PORT => {
                slot.store = Some(port);
                routes.set(port, Route::Store(index as u8));
            }
            Some((DomId(domid), theirs)) if *domid == domain.domid && *theirs == CONSOLE_PORT => {
                slot.console = Some(port);
                routes.set(port, Route::Console(index as u8));
            }
            _ => {}
        }
    }
    slot
}

/// All slots, and the domain table that shows them to the services.
#[derive(Debug)]
pub struct Slots<F: SharedMemory + Copy> {
    table: DomainsWriter<Part<F>>,
    slots: [Option<Slot>; SLOTS],
    last_life: Epoch,
    /// The slot that was looked at last for a guest that waits.
    looked_at: usize,
}

impl<F: SharedMemory + Copy> Slots<F> {
    /// Empty slots and an empty table.
    pub fn new(page: Part<F>) -> Self {
        let table = DomainsWriter::new(page);
        table.initialise();
        Self { table, slots: [None; SLOTS], last_life: 0, looked_at: 0 }
    }

    /// The slots that a former life of the orchestrator left in the table, with their ports as Xen
    /// knows them. Damaged entries are repaired by what Xen knows.
    pub fn adopt<C: Control>(page: Part<F>, xen: &C, routes: &mut Routes) -> Self {
        let reader = DomainsReader::new(page);
        let found: [_; SLOTS] = core::array::from_fn(|index| reader.get(index));
        let lives = found.iter().flatten().flatten().map(|domain| domain.life);
        let last_life = lives.max().unwrap_or(0);
        let mut slots =
            Self { table: DomainsWriter::new(page), slots: [None; SLOTS], last_life, looked_at: 0 };
        let ends = ends(xen);
        for (index, found) in found.iter().enumerate().skip(1) {
            if let Ok(Some(domain)) = found {
                slots.slots[index] = Some(with_ports(*domain, index, &ends, routes));
            }
        }
        for (index, _) in found.iter().enumerate().skip(1).filter(|(_, found)| found.is_err()) {
            let domain = slots.guess(xen, reader.hint(index), &ends);
            slots.table.set(index, domain);
            slots.slots[index] = domain.map(|domain| with_ports(domain, index, &ends, routes));
        }
        slots
    }

    /// The domain of a damaged entry: the one that it still names, or else one that has a channel
    /// to us and no slot. Its state is brought up to date by the next look at all domains.
    fn guess<C: Control>(
        &mut self,
        xen: &C,
        (named, life): (u16, Option<Epoch>),
        ends: &[Option<End>; MAX_PORTS],
    ) -> Option<Domain> {
        let first = system::SYSTEM.limits.first_guest_domid;
        let connected = ends.iter().flatten().map(|(domid, _)| *domid);
        let mut candidates = core::iter::once(DomId(named)).chain(connected);
        let info = candidates.find_map(|id| {
            let is_new = id.0 >= first && id < DomId::FIRST_RESERVED && self.find(id).is_none();
            if is_new { xen.domain_info(id).ok()? } else { None }
        })?;
        self.last_life = self.last_life.max(life.unwrap_or(self.last_life + 1));
        Some(Domain {
            domid: info.id.0,
            kind: DomainKind::Guest,
            // What is paused has not run yet, or is told to go on, which makes it alive.
            state: if info.paused { DomainState::Building } else { DomainState::Alive },
            shutdown_code: 0,
            life: life.unwrap_or(self.last_life),
        })
    }

    /// Whether a guest is being created: it has a domain and has not run.
    pub fn has_unfinished(&self) -> bool {
        self.used().any(|(_, slot)| slot.domain.state == DomainState::Building)
    }

    /// Whether the next guest that runs, each in its turn, waits for the CPU. It is one question to
    /// Xen, so that the answer does not take the longer the more guests there are.
    pub fn next_waits<C: Control>(&mut self, xen: &C) -> bool {
        let start = self.looked_at + 1;
        let runs =
            |at: &usize| self.get(*at).is_some_and(|slot| slot.domain.state == DomainState::Alive);
        let Some(next) = (start..start + SLOTS).map(|at| at % SLOTS).find(runs) else {
            return false;
        };
        let domid = self.get(next).map(|slot| DomId(slot.domain.domid));
        self.looked_at = next;
        let info = domid.and_then(|domid| xen.domain_info(domid).ok().flatten());
        info.is_some_and(|info| !info.blocked && !info.paused)
    }

    /// The slot of a guest.
    pub fn find(&self, domid: DomId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.is_some_and(|slot| slot.domain.domid == domid.0))
    }

    /// What is on a slot.
    pub fn get(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)?.as_ref()
    }

    /// What is on a slot, to count for it.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut Slot> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Used slots and their numbers.
    pub fn used(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    /// Gives a new guest a slot. `None`: all are taken.
    pub fn take(&mut self, domid: DomId) -> Option<usize> {
        let is_free = |index: &usize| {
            self.slots[*index].is_none() && system::SYSTEM.client_on(*index).is_none()
        };
        let index = (1..SLOTS).find(is_free)?;
        self.last_life += 1;
        let domain = Domain {
            domid: domid.0,
            kind: DomainKind::Guest,
            state: DomainState::Building,
            shutdown_code: 0,
            life: self.last_life,
        };
        self.slots[index] =
            Some(Slot { domain, store: None, console: None, asked: 0, answered: 0 });
        self.table.set(index, Some(domain));
        Some(index)
    }

    /// Changes a guest's state, for all services to see. False: it was in that state already.
    pub fn set_state(&mut self, index: usize, state: DomainState, shutdown_code: u8) -> bool {
        let Some(slot) = self.slots[index].as_mut() else { return false };
        if slot.domain.state == state && slot.domain.shutdown_code == shutdown_code {
            return false;
        }
        slot.domain.state = state;
        slot.domain.shutdown_code = shutdown_code;
        self.table.set(index, Some(slot.domain));
        true
    }

    /// Connects one of a new guest's two channels; returns the guest's port. Asking again gives the
    /// same port.
    ///
    /// # Errors
    /// What Xen says; [`XenError::Invalid`] when the guest's port is not the one it must be.
    pub fn connect<C: Control>(
        &mut self,
        xen: &C,
        routes: &mut Routes,
        index: usize,
        theirs: Port,
    ) -> Result<Port, XenError> {
        let slot = self.slots[index].as_mut().ok_or(XenError::NotFound)?;
        let end = if theirs == STORE_PORT { &mut slot.store } else { &mut slot.console };
        if end.is_some() {
            return Ok(theirs);
        }
        let guest = DomId(slot.domain.domid);
        let port = xen.alloc_port_for(guest, DomId::ORCHESTRATOR)?;
        if port != theirs {
            return Err(XenError::Invalid);
        }
        let ours = xen.bind_interdomain(guest, port)?;
        *end = Some(ours);
        let number = index as u8;
        let route =
            if theirs == STORE_PORT { Route::Store(number) } else { Route::Console(number) };
        routes.set(ours, route);
        Ok(theirs)
    }

    /// Closes our ends of a guest's channels.
    pub fn disconnect<C: Control>(&mut self, xen: &C, routes: &mut Routes, index: usize) {
        let Some(slot) = self.slots[index].as_mut() else { return };
        for port in [slot.store.take(), slot.console.take()].into_iter().flatten() {
            routes.set(port, Route::Stray);
            // A port that is closed already is what we want.
            let _ = xen.close(port);
        }
    }

    /// Gives the slot of a guest that is gone back.
    pub fn free(&mut self, index: usize) {
        self.slots[index] = None;
        self.table.set(index, None);
    }
}
