//! The static description of the host: which units and guests there are, by what they are judged,
//! and how the fabric is laid out. `ppvmm.toml` is read and checked when this crate is compiled;
//! what is left for the target is the constant table [`SYSTEM`].
//!
//! The tools of the host read other descriptions through the module `describe` (feature `host`).
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![forbid(unsafe_code)]

use fabric::view::{
    FirstPages, Layout, PARTIES_MAX, Parties, Party, Region, RegionKind, first_pages,
};
use recovery::Policy;

#[cfg(any(test, feature = "host"))]
pub mod describe;

/// The host.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// The units, in the order of the description; a unit's index is its [`Party::unit`].
    pub units: &'static [Unit],
    /// The guests that tool-uk starts, each on its own, in order.
    pub guests: &'static [Guest],
    /// The regions of the fabric, in order.
    pub regions: &'static [Region],
    /// Unit indices such that each comes after those it depends on.
    pub restart_order: &'static [usize],
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connection slots of the XenStore.
    pub slots: u16,
    /// Domid of the first guest.
    pub first_guest_domid: u16,
    /// Pages that the fabric may take.
    pub fabric_pages: u32,
    /// Size of the archive, in MiB.
    pub archive_mib: u32,
}

/// What a unit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A XenStore.
    XenStore,
    /// The network.
    Net,
    /// The toolstack.
    Tool,
}

/// A NIC that net-uk has a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicModel {
    /// Intel 82574L.
    E1000e,
    /// A modern virtio-net device.
    VirtioNet,
}

/// A unit: a service domain that the orchestrator builds, watches and recovers.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Name, in messages and on the units' command lines.
    pub name: &'static str,
    /// What it does.
    pub role: Role,
    /// Its Xen domain id, in all its lives.
    pub domid: u16,
    /// The archive entry with its image.
    pub entry: &'static str,
    /// Memory of the domain, in KiB.
    pub memory_kib: u32,
    /// The connection slot on which it is a client of the XenStore.
    pub store_slot: Option<u16>,
    /// NICs that it can drive: it gets the first of them that the machine has.
    pub nics: &'static [NicModel],
    /// Units (by index) that have to serve before it starts.
    pub depends_on: &'static [usize],
    /// By what it is judged and recovered.
    pub policy: Policy,
}

/// What to do with a guest that stopped; the words are those of `xl`'s configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// Remove it.
    Destroy,
    /// Remove it and create it anew.
    Restart,
    /// Keep its memory for inspection.
    Preserve,
}

/// A guest of the description; one with a count stands here that many times.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Name.
    pub name: &'static str,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Network interfaces.
    pub vifs: u32,
    /// Nodes that it may own in the XenStore; 0 = as many as the store grants by itself.
    pub store_nodes: u32,
    /// The archive entry with its kernel (an ELF with a PVH entry).
    pub kernel: &'static str,
    /// The archive entry with its initial RAM disk; empty = none.
    pub ramdisk: &'static str,
    /// Kernel command line.
    pub cmdline: &'static str,
    /// After `SHUTDOWN_crash`.
    pub on_crash: OnStop,
    /// After `SHUTDOWN_reboot`.
    pub on_reboot: OnStop,
    /// After `SHUTDOWN_poweroff`.
    pub on_poweroff: OnStop,
}

include!(concat!(env!("OUT_DIR"), "/system.rs"));

/// The layout of the fabric.
pub const LAYOUT: Layout<'static> = Layout::new(SYSTEM_TABLE.regions, &FIRST_PAGES);

static FIRST_PAGES: [FirstPages; SYSTEM_TABLE.regions.len()] = {
    let mut pages = [[0; PARTIES_MAX]; SYSTEM_TABLE.regions.len()];
    let mut index = 0;
    while index < pages.len() {
        pages[index] = first_pages(SYSTEM_TABLE.regions, index);
        index += 1;
    }
    pages
};

/// Pages of the fabric.
pub const FABRIC_PAGES: usize = LAYOUT.pages() as usize;

impl System {
    /// The index of the unit called `name`.
    pub fn unit(&self, name: &str) -> Option<usize> {
        self.units.iter().position(|unit| unit.name == name)
    }

    /// The unit that is a client of the XenStore on connection slot `slot`.
    pub fn client_on(&self, slot: usize) -> Option<usize> {
        self.units.iter().position(|unit| unit.store_slot.map(usize::from) == Some(slot))
    }

    /// The indices of all units that do this, in order: the first is replica 1.
    pub fn all_with_role(
        &self,
        role: Role,
    ) -> impl DoubleEndedIterator<Item = usize> + Clone + use<> {
        let units = self.units.iter().enumerate();
        units.filter(move |(_, unit)| unit.role == role).map(|(index, _)| index)
    }

    /// The index of the first unit that does this.
    pub const fn with_role(&self, role: Role) -> Option<usize> {
        let mut index = 0;
        while index < self.units.len() {
            if self.units[index].role as u8 == role as u8 {
                return Some(index);
            }
            index += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::view::Access;

    #[test]
    fn the_first_units_are_there() {
        let store = SYSTEM.unit("xenstore-uk").unwrap();
        let tool = SYSTEM.with_role(Role::Tool).unwrap();
        assert_eq!((SYSTEM.units[store].domid, SYSTEM.units[tool].domid), (1, 5));
        let stores: Vec<usize> = SYSTEM.all_with_role(Role::XenStore).collect();
        assert_eq!((stores.len(), stores[0]), (3, store));
        assert_eq!(SYSTEM.units[tool].depends_on, stores);
        assert_eq!(SYSTEM.units[tool].store_slot, Some(0));
        let net = SYSTEM.with_role(Role::Net).unwrap();
        assert_eq!(SYSTEM.restart_order, [&stores[..], &[tool, net]].concat());
        assert_eq!((SYSTEM.units[net].domid, SYSTEM.client_on(0)), (4, Some(tool)));
        assert!(FABRIC_PAGES <= SYSTEM.limits.fabric_pages as usize);
    }

    #[test]
    fn each_unit_finds_its_pages() {
        for index in 0..SYSTEM.units.len() {
            let unit = Party::unit(index);
            for (kind, access) in [
                (RegionKind::Health, Access::ReadWrite),
                (RegionKind::Log, Access::ReadWrite),
                (RegionKind::Kicks, Access::ReadWrite),
                (RegionKind::Control, Access::ReadOnly),
            ] {
                let seen = LAYOUT.find(unit, kind, unit).expect("every unit has it");
                assert_eq!(seen.access, access, "{kind:?}");
                let ours = LAYOUT.find(Party::ORCHESTRATOR, kind, unit).expect("we see it");
                assert_eq!(ours.fabric_page, seen.fabric_page);
            }
            let table = LAYOUT.find(unit, RegionKind::Domains, Party::ORCHESTRATOR).unwrap();
            assert_eq!(table.access, Access::ReadOnly);
        }
    }

    #[test]
    fn the_connection_between_units_is_two_pages() {
        let (store, tool) = (Party::unit(XENSTORE_UK), Party::unit(TOOL_UK));
        let client = |party| LAYOUT.find(party, RegionKind::StoreClient, tool).unwrap();
        let server = |party| LAYOUT.find(party, RegionKind::StoreServer(0), tool).unwrap();
        assert_eq!(client(tool).access, Access::ReadWrite);
        assert_eq!(client(store).access, Access::ReadOnly);
        assert_eq!(server(tool).access, Access::ReadOnly);
        assert_eq!(server(store).access, Access::ReadWrite);
        assert_eq!(LAYOUT.find(tool, RegionKind::Slots, store), None);
        let other = Party::unit(SYSTEM.all_with_role(Role::XenStore).nth(1).unwrap());
        assert_eq!(server(other).access, Access::ReadOnly);
        let areas = LAYOUT.find(other, RegionKind::Areas, store).unwrap();
        assert_eq!(areas.access, Access::ReadOnly);
    }
}
