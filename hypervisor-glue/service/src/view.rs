//! A service's view of the fabric, from its command line.

use core::str::FromStr;

use abi::{Access, GrantRef};
use fabric::view::{self, Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::Regions;

/// What the orchestrator's command line says: `unit=0 fabric=8,700`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Our place in the system description.
    pub unit: usize,
    /// Grant reference of the first page of our view.
    pub first: GrantRef,
    /// Pages of our view.
    pub pages: usize,
}

impl Identity {
    /// Reads the values of the words `unit` and `fabric`. `None`: the orchestrator did not write
    /// them.
    pub fn parse(unit: &str, fabric: &str) -> Option<Self> {
        let (first, pages) = fabric.split_once(',')?;
        let first = GrantRef(u32::from_str(first).ok()?);
        let pages = usize::from_str(pages).ok()?;
        let unit = usize::from_str(unit).ok().filter(|unit| *unit < system::UNITS)?;
        Some(Self { unit, first, pages })
    }

    /// How page `index` of our view may be used.
    pub fn access(&self, index: usize) -> Access {
        let mut regions = system::LAYOUT.view(Party::unit(self.unit));
        let holds = |seen: &view::Seen| {
            let first = seen.view_page as usize;
            (first..first + seen.region.pages as usize).contains(&index)
        };
        match regions.find(holds).map(|seen| seen.access) {
            Some(view::Access::ReadWrite) => Access::ReadWrite,
            _ => Access::ReadOnly,
        }
    }
}

/// A unit's view of the fabric: its regions by name.
#[derive(Clone, Copy, Debug)]
pub struct View<M> {
    memory: M,
    unit: usize,
}

impl<M: SharedMemory + Copy> View<M> {
    /// The view of `unit`, mapped at `memory`.
    pub fn new(memory: M, unit: usize) -> Self {
        Self { memory, unit }
    }

    /// Our place in the system description.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Our region of this kind.
    ///
    /// # Panics
    /// When the system description gives us none: it is validated when it is compiled.
    pub fn own(&self, kind: RegionKind) -> Part<M> {
        self.of(kind, Party::unit(self.unit))
    }

    /// The store's pages of our connection to it, one of each replica.
    pub fn store_pages(&self) -> impl Iterator<Item = Part<M>> + '_ {
        let replicas = system::SYSTEM.all_with_role(system::Role::XenStore).count() as u8;
        (0..replicas).map(|replica| self.own(RegionKind::StoreServer(replica)))
    }

    /// The region of this kind that is about `subject`.
    ///
    /// # Panics
    /// As [`View::own`].
    pub fn of(&self, kind: RegionKind, subject: Party) -> Part<M> {
        let seen = system::LAYOUT
            .find(Party::unit(self.unit), kind, subject)
            .expect("the system description shows us the regions that we ask for");
        Part::new(self.memory, seen.offset(), seen.len())
    }

    /// The regions that every service has.
    pub fn regions(&self) -> Regions<Part<M>> {
        Regions {
            health: self.own(RegionKind::Health),
            control: self.own(RegionKind::Control),
            kicks: self.own(RegionKind::Kicks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_who_we_are() {
        let identity = Identity::parse("1", "8,700").unwrap();
        assert_eq!((identity.unit, identity.first, identity.pages), (1, GrantRef(8), 700));
        assert_eq!(Identity::parse("99", "8,700"), None);
        assert_eq!(Identity::parse("0", "8"), None);
        assert_eq!(Identity::parse("0", "x,1"), None);
    }

    #[test]
    fn we_write_our_own_pages_only() {
        let identity = Identity { unit: 0, first: GrantRef(8), pages: 10 };
        let pages = system::LAYOUT.view_pages(Party::unit(0)) as usize;
        let writable = (0..pages).filter(|page| identity.access(*page) == Access::ReadWrite);
        assert!(writable.count() < pages);
        assert_eq!(identity.access(pages), Access::ReadOnly);
    }
}
