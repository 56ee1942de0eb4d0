//! The connections' places: which slot of the relay is whose, and where its ring is mapped.

use alloc::vec;
use alloc::vec::Vec;

use abi::{Access, DomId, GrantRef, Xen};
use fabric::SharedMemory;
use fabric::domains::{Domain, DomainState, DomainsReader};
use fabric::view::{Party, RegionKind};
use runtime::{FabricMemory, Hypervisor, Mapping};
use service::ids::SLOTS;
use service::view::View;
use store::{Overlooked, Progress, Ring, Server};
use wire::ring;

use crate::Fabric;

/// The ring of one connection.
#[derive(Debug)]
enum Channel {
    /// A guest's page, mapped by the grant that the toolstack seeded.
    Guest(Ring<Mapping>),
    /// Two pages of the fabric.
    Service(Ring<Fabric>),
}

/// One connection with its ring.
#[derive(Debug)]
struct Seat {
    client: u16,
    domid: u16,
    channel: Channel,
}

/// All connections, by slot, and the domains that were last seen there. They are lists because this
/// is moved when a life begins.
#[derive(Debug)]
pub struct Seats {
    xen: Hypervisor,
    /// Grant reference under which every guest grants us its ring: our own domid.
    reference: GrantRef,
    table: DomainsReader<Fabric>,
    generation: u64,
    seen: Vec<Option<Domain>>,
    /// Up to the highest slot that was ever taken.
    seats: Vec<Option<Seat>>,
    /// The slot that was looked at last although nobody had kicked it.
    turn: usize,
    /// A seat is being taken or given up: a life that ends meanwhile owns one mapping more or less
    /// than the seats say.
    is_changing: bool,
    view: View<FabricMemory>,
}

impl Seats {
    /// Empty seats.
    pub fn new(xen: Hypervisor, view: &View<FabricMemory>, domid: u16) -> Self {
        let table = view.of(RegionKind::Domains, Party::ORCHESTRATOR);
        Self {
            xen,
            reference: GrantRef(u32::from(domid)),
            table: DomainsReader::new(table),
            generation: u64::MAX,
            seen: vec![None; SLOTS],
            seats: Vec::with_capacity(SLOTS),
            turn: 0,
            is_changing: false,
            view: *view,
        }
    }

    /// Whether no change of the seats was interrupted.
    pub fn are_whole(&self) -> bool {
        !self.is_changing
    }

    /// Seats a service on its two pages of the fabric: its own, and ours, which becomes what that
    /// of the former leader is. `relay` is greater than at every former time. False: there is no
    /// such service.
    pub fn seat_unit(&mut self, client: u16, domid: u16, relay: u64) -> bool {
        let mut units = system::SYSTEM.units.iter().enumerate();
        let Some((index, unit)) = units.find(|(_, unit)| unit.domid == domid) else {
            return false;
        };
        let Some(slot) = unit.store_slot else { return false };
        let page = |replica| self.view.of(RegionKind::StoreServer(replica), Party::unit(index));
        let taken_over = |replica| page(replica).load_u64(ring::TAKEN_OVER);
        let mut stores = system::SYSTEM.all_with_role(system::Role::XenStore).zip(0..);
        let replicas = stores.clone().map(|(_, replica)| replica);
        let Some((_, ours)) = stores.find(|(store, _)| *store == self.view.unit()) else {
            return false;
        };
        let latest = replicas.max_by_key(|replica| (taken_over(*replica), *replica == ours));
        let own = page(ours);
        // One that is its own successor has all of it.
        if let Some(latest) = latest.filter(|latest| *latest != ours) {
            let mut bytes = [0; ring::TAKEN_OVER];
            page(latest).read(0, &mut bytes);
            own.write(0, &bytes);
        }
        own.store_u64(ring::TAKEN_OVER, relay);
        let client_page = self.view.of(RegionKind::StoreClient, Party::unit(index));
        let channel = Channel::Service(Ring::Pair { client: client_page, server: own });
        self.seat(usize::from(slot), |_| Some(Seat { client, domid, channel }))
    }

    /// Maps the ring of a guest and gives it the seat of its slot. False: it is no domain of the
    /// table, or it does not grant us its ring; that is its own business.
    pub fn seat_guest(&mut self, client: u16, domid: u16) -> bool {
        let Some(slot) = self.slot_of(domid) else { return false };
        let reference = self.reference;
        self.seat(slot, |xen| {
            let page = xen.map_grants(DomId(domid), &[reference], Access::ReadWrite).ok()?;
            Some(Seat { client, domid, channel: Channel::Guest(Ring::Page(page)) })
        })
    }

    /// Gives a slot to what `take` returns, and answers whether that is anybody. The ring that was
    /// mapped there goes first: it may be another life's.
    fn seat(&mut self, slot: usize, take: impl FnOnce(&Hypervisor) -> Option<Seat>) -> bool {
        self.is_changing = true;
        if slot >= self.seats.len() {
            self.seats.resize_with(slot + 1, || None);
        }
        self.seats[slot] = None;
        self.seats[slot] = take(&self.xen);
        self.is_changing = false;
        self.on(slot).is_some()
    }

    /// The seat on a slot.
    fn on(&self, slot: usize) -> Option<&Seat> {
        self.seats.get(slot)?.as_ref()
    }

    /// The guest that lives on a slot and has no seat: its ring could not be mapped.
    pub fn without_seat(&self, slot: u16) -> Option<u16> {
        let is_free = |slot: &usize| *slot < SLOTS && self.on(*slot).is_none();
        let slot = Some(usize::from(slot)).filter(is_free)?;
        let domain = self.table.get(slot).ok().flatten();
        domain.filter(lives).map(|domain| domain.domid)
    }

    /// Tells the server that a connection's ring is there. Returns the slot to notify, if any.
    pub fn attach<M: SharedMemory, A: SharedMemory>(
        &self,
        server: &mut Server<M, A>,
        client: u16,
    ) -> Option<u16> {
        let (slot, seat) = self.of_client(client)?;
        let notify = match &seat.channel {
            Channel::Guest(ring) => server.attached(client, ring),
            Channel::Service(ring) => server.attached(client, ring),
        };
        notify.then_some(slot)
    }

    /// Serves a connection. `None`: it has no ring any more.
    pub fn serve<M: SharedMemory, A: SharedMemory>(
        &self,
        server: &mut Server<M, A>,
        client: u16,
        now_ns: u64,
    ) -> Option<(u16, Progress)> {
        let (slot, seat) = self.of_client(client)?;
        let progress = match &seat.channel {
            Channel::Guest(ring) => server.serve(client, ring, now_ns),
            Channel::Service(ring) => server.serve(client, ring, now_ns),
        };
        Some((slot, progress))
    }

    /// The next seat in turn: its connection, its slot, and what may have been overlooked there.
    pub fn next_in_turn<M: SharedMemory, A: SharedMemory>(
        &mut self,
        server: &Server<M, A>,
    ) -> Option<(u16, u16, Overlooked)> {
        let mut slots = (self.turn + 1..SLOTS).chain(0..=self.turn);
        let (slot, seat) = slots.find_map(|slot| Some((slot, self.on(slot)?)))?;
        let overlooked = match &seat.channel {
            Channel::Guest(ring) => server.overlooked(seat.client, ring),
            Channel::Service(ring) => server.overlooked(seat.client, ring),
        };
        let client = seat.client;
        self.turn = slot;
        Some((client, slot as u16, overlooked))
    }

    /// Answers the request of a connection that was the log entry at `index`. `None`: the
    /// connection has no ring any more.
    pub fn finish<M: SharedMemory, A: SharedMemory>(
        &self,
        server: &mut Server<M, A>,
        client: u16,
        index: u64,
        now_ns: u64,
    ) -> Option<(u16, Progress)> {
        let (slot, seat) = self.of_client(client)?;
        let progress = match &seat.channel {
            Channel::Guest(ring) => server.finish(client, index, ring, now_ns),
            Channel::Service(ring) => server.finish(client, index, ring, now_ns),
        };
        Some((slot, progress))
    }

    /// The connection on a slot.
    pub fn client_on(&self, slot: u16) -> Option<u16> {
        Some(self.on(usize::from(slot))?.client)
    }

    /// The connection that a domain's seat serves.
    pub fn client_of(&self, domid: u16) -> Option<u16> {
        let mut seats = self.seats.iter().flatten();
        seats.find(|seat| seat.domid == domid).map(|seat| seat.client)
    }

    /// All connections that have a seat.
    pub fn clients(&self) -> impl Iterator<Item = u16> + '_ {
        self.seats.iter().flatten().map(|seat| seat.client)
    }

    /// Unmaps the ring of a connection that ended.
    pub fn leave(&mut self, client: u16) {
        if let Some((slot, _)) = self.of_client(client) {
            self.seat(usize::from(slot), |_| None);
        }
    }

    /// Looks what has become of the domains, and tells the server. A guest that is being destroyed
    /// loses its ring at once: our mapping would keep it as a zombie.
    pub fn look_at_domains<M: SharedMemory, A: SharedMemory>(&mut self, server: &mut Server<M, A>) {
        // An unreadable table is looked at again with the next change.
        let Ok(generation) = self.table.generation() else { return };
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let table = self.table;
        for (slot, now) in table.entries().skip(1) {
            let Ok(now) = now else {
                self.generation = generation.wrapping_sub(1);
                continue;
            };
            if now.is_none() && self.seen[slot].is_none() && self.on(slot).is_none() {
                continue;
            }
            let before = core::mem::replace(&mut self.seen[slot], now);
            let gone = before.filter(|before| is_over(before, now.as_ref()));
            let is_over = gone.is_some() || self.is_left_behind(slot, now.as_ref());
            if is_over && self.on(slot).is_some() {
                self.seat(slot, |_| None);
            }
            if let Some(gone) = gone {
                server.domain_gone(gone.domid);
            }
            if let Some(domain) = now.filter(|domain| domain.state == DomainState::Shutdown) {
                server.domain_shut_down(domain.domid);
            }
        }
    }

    /// Tells the server of domains that it knows and that are no longer in the table: they went
    /// while we were away.
    pub fn bury_the_absent<M: SharedMemory, A: SharedMemory>(&self, server: &mut Server<M, A>) {
        let known: Vec<u16> = server
            .connections()
            .filter(|connection| connection.origin == store::Origin::Introduced)
            .map(|connection| connection.domid)
            .collect();
        for domid in known {
            if self.slot_of(domid).is_none() {
                server.domain_gone(domid);
            }
        }
    }

    /// Whether a slot's seat is that of a guest that does not live there: it came and went between
    /// two looks.
    fn is_left_behind(&self, slot: usize, now: Option<&Domain>) -> bool {
        let Some(Seat { domid, channel: Channel::Guest(_), .. }) = self.on(slot) else {
            return false;
        };
        !now.is_some_and(|now| now.domid == *domid && lives(now))
    }

    fn of_client(&self, client: u16) -> Option<(u16, &Seat)> {
        let of_client = |seat: &&Seat| seat.client == client;
        let mut seats = self.seats.iter().enumerate();
        seats.find_map(|(slot, seat)| Some((slot as u16, seat.as_ref().filter(of_client)?)))
    }

    /// The slot of a domain that lives.
    fn slot_of(&self, domid: u16) -> Option<usize> {
        let is_it = |domain: &Domain| domain.domid == domid && lives(domain);
        let is_on = |slot| self.table.get(slot).is_ok_and(|found| found.is_some_and(|d| is_it(&d)));
        // Where it was when all were looked at; it may be there no more, or have come since.
        let seen = self.seen.iter().position(|seen| seen.is_some_and(|seen| is_it(&seen)));
        seen.filter(|slot| is_on(*slot)).or_else(|| (1..SLOTS).find(|slot| is_on(*slot)))
    }
}

fn lives(domain: &Domain) -> bool {
    !matches!(domain.state, DomainState::Dying | DomainState::Gone)
}

/// Whether the life of `before` is over, given what is on its slot now.
fn is_over(before: &Domain, now: Option<&Domain>) -> bool {
    lives(before)
        && now.is_none_or(|now| (now.domid, now.life) != (before.domid, before.life) || !lives(now))
}
