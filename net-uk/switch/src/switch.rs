//! The decision about one frame.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use frame::{Header, Mac};

use crate::bucket::Bucket;
use crate::table::Table;
use crate::{MAX_PORTS, PortId, PortSet, Rate};

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The world outside: a NIC. Carries tagged frames of every VLAN.
    Uplink,
    /// One guest's vif, or a service of this host.
    Member,
}

/// Which frames a port exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vlan {
    /// Untagged frames of one VLAN; 0 is the uplink's untagged network.
    Access(u16),
    /// Frames of every VLAN, with their tags.
    Trunk,
}

/// How a port behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// What it leads to.
    pub role: Role,
    /// The only source address it may use; `None`: any.
    pub address: Option<Mac>,
    /// Its VLAN.
    pub vlan: Vlan,
    /// Limit on what comes from it.
    pub rate: Option<Rate>,
}

/// Why a port cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortError {
    /// Its number is in use.
    InUse(PortId),
    /// Another port has the same address in the same VLAN.
    Address(PortId),
    /// A group address is no station's.
    Group(Mac),
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// No such port.
    NoPort,
    /// Its source is a group address, or not the one the port is bound to.
    Spoofed,
    /// From outside, with the source address of one of our members: an echo or an attack.
    Reflected,
    /// It has a tag where none is allowed.
    Tagged,
    /// It is for the port's own neighbour only (802.1D reserved addresses).
    LinkLocal,
    /// Its destination is behind the port it came from, or nobody is there.
    Nobody,
}

/// How a target wants the frame's 802.1Q tag changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagChange {
    /// Leave the frame as it is.
    Keep,
    /// Put in a tag for this VLAN.
    Insert(u16),
    /// Take the tag out.
    Strip,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// All ports that get it.
    pub ports: PortSet,
    /// What ports with tags do to it.
    pub trunk: TagChange,
    /// What ports without tags do to it.
    pub access: TagChange,
}

/// What one port has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from it.
    pub from_frames: u64,
    /// Bytes of those.
    pub from_bytes: u64,
    /// Frames meant for it.
    pub to_frames: u64,
    /// Bytes of those.
    pub to_bytes: u64,
    /// Frames taken from it that went nowhere, by [`Refusal`].
    pub dropped: [u64; 6],
    /// Frames from it that were sent to every port.
    pub flooded: u64,
    /// New addresses that found no room.
    pub unlearned: u64,
}

#[derive(Clone, Debug)]
struct Port {
    config: PortConfig,
    bucket: Option<Bucket>,
    counters: Counters,
}

/// A switch.
#[derive(Clone, Debug)]
pub struct Switch {
    ports: Box<[Option<Port>; MAX_PORTS]>,
    bound: BTreeMap<(u16, Mac), PortId>,
    table: Table,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Self {
        Self {
            ports: Box::new([const { None }; MAX_PORTS]),
            bound: BTreeMap::new(),
            table: Table::default(),
        }
    }

    /// Adds a port.
    pub fn add(&mut self, now_ns: u64, id: PortId, config: PortConfig) -> Result<(), PortError> {
        let place = &mut self.ports[usize::from(id.0)];
        if place.is_some() {
            return Err(PortError::InUse(id));
        }
        if let (Some(mac), Vlan::Access(vlan)) = (config.address, config.vlan) {
            if mac.is_group() {
                return Err(PortError::Group(mac));
            }
            if let Some(other) = self.bound.get(&(vlan, mac)) {
                return Err(PortError::Address(*other));
            }
            self.bound.insert((vlan, mac), id);
            self.table.forget_address(mac);
        }
        let bucket = config.rate.map(|rate| Bucket::new(rate, now_ns));
        *place = Some(Port { config, bucket, counters: Counters::default() });
        Ok(())
    }

    /// Takes a port out, with all that was learned from it. Its last counters are the answer.
    pub fn remove(&mut self, id: PortId) -> Option<Counters> {
        let port = self.ports[usize::from(id.0)].take()?;
        self.bound.retain(|_, bound| *bound != id);
        self.table.forget_port(id);
        Some(port.counters)
    }

    /// What a port has seen.
    pub fn counters(&self, id: PortId) -> Option<Counters> {
        self.port(id).map(|port| port.counters)
    }

    /// How many addresses are learned.
    pub fn learned(&self) -> usize {
        self.table.len()
    }

    /// `Ok` if the port may send a frame now, else when to ask again (nanoseconds).
    pub fn may_send(&mut self, now_ns: u64, id: PortId) -> Result<(), u64> {
        match self.port_mut(id).and_then(|port| port.bucket.as_mut()) {
            Some(bucket) => bucket.check(now_ns),
            None => Ok(()),
        }
    }

    /// Decides about a frame of `length` bytes from port `from`, and counts it.
    pub fn forward(
        &mut self,
        now_ns: u64,
        from: PortId,
        header: &Header,
        length: u32,
    ) -> Result<Targets, Refusal> {
        let Some(port) = self.port_mut(from) else { return Err(Refusal::NoPort) };
        port.counters.from_frames += 1;
        port.counters.from_bytes += u64::from(length);
        if let Some(bucket) = &mut port.bucket {
            bucket.charge(length);
        }
        let config = port.config;
        let result = self.decide(now_ns, from, config, header);
        match &result {
            Ok(targets) => {
                for to in targets.ports.iter() {
                    if let Some(port) = self.port_mut(to) {
                        port.counters.to_frames += 1;
                        port.counters.to_bytes += u64::from(length);
                    }
                }
            }
            Err(drop) => {
                if let Some(port) = self.port_mut(from) {
                    port.counters.dropped[*drop as usize] += 1;
                }
            }
        }
        result
    }

    fn decide(
        &mut self,
        now_ns: u64,
        from: PortId,
        config: PortConfig,
        header: &Header,
    ) -> Result<Targets, Refusal> {
        if header.source.is_group() || config.address.is_some_and(|mac| mac != header.source) {
            return Err(Refusal::Spoofed);
        }
        let vlan = match (config.vlan, header.vlan) {
            (Vlan::Access(vlan), None) => vlan,
            // A tag with number 0 only gives a priority: it does not leave the port's VLAN.
            (Vlan::Access(0), Some(0)) => 0,
            (Vlan::Access(_), Some(_)) => return Err(Refusal::Tagged),
            (Vlan::Trunk, tag) => tag.unwrap_or(0),
        };
        if header.destination.is_link_local() {
            return Err(Refusal::LinkLocal);
        }
        if config.address.is_none() {
            self.learn(now_ns, from, config.role, vlan, header.source)?;
        }
        let mut ports = self.reach(now_ns, from, vlan, header.destination);
        ports.remove(from);
        if ports.is_empty() {
            return Err(Refusal::Nobody);
        }
        let (trunk, access) = match header.vlan {
            None if vlan != 0 => (TagChange::Insert(vlan), TagChange::Keep),
            None => (TagChange::Keep, TagChange::Keep),
            Some(_) => (TagChange::Keep, TagChange::Strip),
        };
        Ok(Targets { ports, trunk, access })
    }

    fn learn(
        &mut self,
        now_ns: u64,
        from: PortId,
        role: Role,
        vlan: u16,
        source: Mac,
    ) -> Result<(), Refusal> {
        if self.bound.contains_key(&(vlan, source)) {
            return Err(Refusal::Reflected);
        }
        let learned = self.table.learn(now_ns, vlan, source, from, role == Role::Member);
        if !learned && let Some(port) = self.port_mut(from) {
            port.counters.unlearned += 1;
        }
        Ok(())
    }

    fn reach(&mut self, now_ns: u64, from: PortId, vlan: u16, destination: Mac) -> PortSet {
        let mut ports = PortSet::EMPTY;
        if !destination.is_group() {
            let bound = self.bound.get(&(vlan, destination)).copied();
            if let Some(port) = bound.or_else(|| self.table.find(now_ns, vlan, destination)) {
                ports.insert(port);
                return ports;
            }
        }
        if let Some(port) = self.port_mut(from) {
            port.counters.flooded += 1;
        }
        let is_group = destination.is_group();
        for (number, port) in self.ports.iter().enumerate() {
            let Some(port) = port else { continue };
            let is_in = match port.config.vlan {
                Vlan::Trunk => true,
                Vlan::Access(own) => own == vlan,
            };
            // A port with one known address has nothing unknown behind it.
            if is_in && (is_group || port.config.address.is_none()) {
                ports.insert(PortId(number as u8));
            }
        }
        ports
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        self.ports[usize::from(id.0)].as_ref()
    }

    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports[usize::from(id.0)].as_mut()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
