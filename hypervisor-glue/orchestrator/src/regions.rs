//! The fabric as the orchestrator sees it: every region, by name.

use abi::{Access, Control, DomId, GrantRef};
use fabric::view::{self, Layout, Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::unit;

/// The whole fabric and its layout.
#[derive(Clone, Copy, Debug)]
pub struct Regions<F> {
    memory: F,
    layout: Layout<'static>,
}

impl<F: SharedMemory + Copy> Regions<F> {
    /// The regions of the system description in `memory`.
    ///
    /// # Panics
    /// When the memory is smaller than the layout: both sizes come from the same description.
    pub fn new(memory: F) -> Self {
        let layout = system::LAYOUT;
        assert!(
            layout.pages() as usize * abi::PAGE_SIZE <= memory.len(),
            "the fabric is too small"
        );
        Self { memory, layout }
    }

    /// The region `kind` of `subject`.
    ///
    /// # Panics
    /// When the system description has no such region: it is validated when it is compiled.
    pub fn find(&self, kind: RegionKind, subject: Party) -> Part<F> {
        let seen = self
            .layout
            .find(Party::ORCHESTRATOR, kind, subject)
            .expect("the system description has the regions that the code asks for");
        Part::new(self.memory, seen.offset(), seen.len())
    }

    /// The regions that every unit has.
    pub fn unit(&self, index: usize) -> unit::Regions<F> {
        let party = Party::unit(index);
        unit::Regions {
            health: self.find(RegionKind::Health, party),
            control: self.find(RegionKind::Control, party),
            kicks: self.find(RegionKind::Kicks, party),
            log: self.find(RegionKind::Log, party),
        }
    }

    /// Grants a unit its view. Doing it again changes nothing.
    pub fn grant<C: Control>(&self, xen: &C, index: usize, domid: DomId) {
        for page in self.layout.grants(Party::unit(index)) {
            let access = match page.access {
                view::Access::ReadWrite => Access::ReadWrite,
                view::Access::ReadOnly => Access::ReadOnly,
            };
            xen.grant_fabric(GrantRef(page.reference), domid, page.fabric_page, access);
        }
    }

    /// What a unit must know to map its view: its first grant reference and the number of pages.
    pub fn view_of(&self, index: usize) -> (u32, u32) {
        let party = Party::unit(index);
        (self.layout.reference(party, 0), self.layout.view_pages(party))
    }
}
