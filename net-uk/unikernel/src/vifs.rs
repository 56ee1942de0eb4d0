//! Guests' interfaces: which place each has, its mapped rings and its ports.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;

use abi::{Access, DomId, GrantRef, Port, PortStatus, Xen, XenError};
use forward::{Notify, Wiring};
use hotplug::VifId;
use netback::vif::{self, Connection};
use runtime::{Hypervisor, Mapping};
use switch::PortId;

use crate::places::{Fabric, Places};

/// Ports searched for one that a former life bound: no unit has more.
const PORTS_SEARCHED: u32 = 256;

/// A ring's page, and a queue's journal.
pub type QueueWiring = Wiring<Mapping, fabric::Part<Fabric>>;

/// One interface in use.
#[derive(Debug)]
struct Used {
    id: VifId,
    /// Our ports by the guest's.
    ports: BTreeMap<Port, Port>,
}

/// All interfaces in use, by place.
#[derive(Debug)]
pub struct Vifs {
    xen: Hypervisor,
    places: Places,
    epoch: u32,
    used: Vec<Option<Used>>,
}

impl Vifs {
    /// None yet.
    pub fn new(xen: Hypervisor, places: Places, epoch: u32) -> Self {
        let used = (0..places.count()).map(|_| None).collect();
        Self { xen, places, epoch, used }
    }

    /// The connections that a former life left recorded, with their places.
    pub fn recorded(&self) -> Vec<(usize, Connection)> {
        let read = |place| vif::read(&self.places.record(place)).ok().flatten();
        (0..self.places.count()).filter_map(|place| Some((place, read(place)?))).collect()
    }

    /// The switch's port of a place.
    pub fn port(place: usize) -> PortId {
        PortId(place as u8 + 1)
    }

    fn place_of(&self, id: VifId) -> Option<usize> {
        self.used.iter().position(|used| used.as_ref().is_some_and(|used| used.id == id))
    }

    /// A place for a new connection.
    pub fn free_place(&self) -> Option<usize> {
        self.used.iter().position(Option::is_none)
    }

    /// Maps the rings of a connection and binds its ports.
    ///
    /// # Errors
    /// What Xen says: a guest may have named anything. Nothing stays mapped or bound then.
    pub fn open(
        &mut self,
        place: usize,
        connection: &Connection,
    ) -> Result<Vec<QueueWiring>, XenError> {
        let (guest, mut ports) = (connection.guest, BTreeMap::new());
        let result = self.wire(place, connection, &mut ports);
        match &result {
            Ok(_) => {
                let id = VifId { guest, handle: connection.handle };
                self.used[place] = Some(Used { id, ports });
            }
            Err(_) => self.close_ports(&ports),
        }
        result
    }

    fn wire(
        &self,
        place: usize,
        connection: &Connection,
        ports: &mut BTreeMap<Port, Port>,
    ) -> Result<Vec<QueueWiring>, XenError> {
        let guest = connection.guest;
        let map = |grant: GrantRef| self.xen.map_grants(guest, &[grant], Access::ReadWrite);
        let mut wiring = Vec::new();
        for (number, queue) in connection.queues.iter().enumerate() {
            for port in [queue.tx_port, queue.rx_port] {
                if let Entry::Vacant(entry) = ports.entry(port) {
                    entry.insert(self.bind(guest, port)?);
                }
            }
            let (tx_ring, rx_ring) = (map(queue.tx_ring)?, map(queue.rx_ring)?);
            wiring.push(Wiring { tx_ring, rx_ring, journal: self.places.journal(place, number) });
        }
        Ok(wiring)
    }

    /// Binds a guest's port, or finds it bound by a former life.
    fn bind(&self, guest: DomId, port: Port) -> Result<Port, XenError> {
        let bound = PortStatus::Interdomain(guest, port);
        let mut ours = (1..PORTS_SEARCHED).map(Port);
        let found = ours.find(|ours| self.xen.port_status(DomId::SELF, *ours) == Ok(bound));
        match found {
            Some(ours) => {
                self.xen.listen(ours);
                Ok(ours)
            }
            None => self.xen.bind_interdomain(guest, port),
        }
    }

    fn close_ports(&self, ports: &BTreeMap<Port, Port>) {
        for port in ports.values() {
            // A port that is closed already is what we want.
            let _ = self.xen.close(*port);
        }
    }

    /// Writes down that a place is in use, for the next life.
    pub fn record(&self, place: usize, connection: &Connection) {
        vif::write(&self.places.record(place), self.epoch, Some(connection));
    }

    /// Writes down that it is not.
    pub fn strike(&self, place: usize) {
        vif::write(&self.places.record(place), self.epoch, None);
    }

    /// Gives an interface up; its rings are unmapped by whoever holds them.
    pub fn close(&mut self, id: VifId) -> Option<usize> {
        let place = self.place_of(id)?;
        self.strike(place);
        if let Some(used) = self.used[place].take() {
            self.close_ports(&used.ports);
        }
        Some(place)
    }

    /// Notifies a guest.
    pub fn notify(&self, notify: Notify) {
        let place = usize::from(notify.port.0).checked_sub(1);
        let used = place.and_then(|place| self.used.get(place)?.as_ref());
        if let Some(port) = used.and_then(|used| used.ports.get(&notify.channel)) {
            // A guest that is gone hears nothing, which is right.
            let _ = self.xen.send(*port);
        }
    }

    /// Notifies every guest on all its ports: a former life may have died before it did.
    pub fn notify_all(&self) {
        for port in self.used.iter().flatten().flat_map(|used| used.ports.values()) {
            let _ = self.xen.send(*port);
        }
    }
}
