//! The layout of the fabric: which region lies where, for whom, and under which grant reference.
//!
//! The fabric is an array of pages in the orchestrator. It consists of *regions*, in the order of
//! the system description; each has one writer and some readers. A party's *view* is the list of
//! all pages it may see, in that order without gaps: a unit maps its whole view contiguously at its
//! start, read-write what it writes and read-only the rest. The orchestrator and the units compute
//! the same numbers from the same description, so none has to be told.
//!
//! Grant references of the orchestrator: [`FIRST_REFERENCE`] and up, the views of units 1, 2, 3…
//! behind each other. Page `i` of a unit's view is granted to that unit alone under
//! [`Layout::reference`].

use crate::PAGE_SIZE;

/// First grant reference in use: Xen's headers reserve 0 to 7 (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const FIRST_REFERENCE: u32 = 8;

/// Parties at most: the orchestrator and 15 units, one bit each in a [`Parties`].
pub const PARTIES_MAX: usize = 16;

/// Who uses the fabric: the orchestrator, or a unit by its place in the system description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Party(u8);

impl Party {
    /// The orchestrator.
    pub const ORCHESTRATOR: Self = Self(0);

    /// The unit at `index` of the system description. Panics if it is not below 15.
    pub const fn unit(index: usize) -> Self {
        assert!(index + 1 < PARTIES_MAX, "at most 15 units");
        Self(index as u8 + 1)
    }

    /// The unit's index, `None` for the orchestrator.
    pub const fn unit_index(self) -> Option<usize> {
        if self.0 == 0 { None } else { Some(self.0 as usize - 1) }
    }

    const fn bit(self) -> u16 {
        1 << self.0
    }
}

/// A set of parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Parties(u16);

impl Parties {
    /// No party.
    pub const NONE: Self = Self(0);

    /// This set and `party`.
    pub const fn with(self, party: Party) -> Self {
        Self(self.0 | party.bit())
    }

    /// Whether `party` is in the set.
    pub const fn has(self, party: Party) -> bool {
        self.0 & party.bit() != 0
    }
}

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionKind {
    /// [`crate::health`]: the unit's health page.
    Health,
    /// [`crate::log`]: the unit's log.
    Log,
    /// [`crate::control`]: the orchestrator's orders for the unit, and its half of the kick rings.
    Control,
    /// [`crate::kick`]: the unit's half of the kick rings.
    Kicks,
    /// Areas of XenStore connections.
    Areas,
    /// The durable slots of the XenStore.
    Slots,
    /// [`crate::message`]: operations that the unit asks of the orchestrator.
    Requests,
    /// [`crate::message`]: the orchestrator's answers to the unit.
    Replies,
    /// The unit's journal.
    Journal,
    /// Guests' console output on its way to the serial console.
    ConsoleOut,
    /// [`crate::keys`]: what the operator types for guests.
    ConsoleIn,
    /// [`crate::keys`]: how much of it the toolstack has passed on.
    ConsoleTaken,
    /// The client's page of the unit's XenStore connection (`wire::ring`).
    StoreClient,
    /// The page of one replica of the store (counted from 0) of the unit's XenStore connection
    /// (`wire::ring`).
    StoreServer(u8),
    /// Term, vote and log of a replica of the store.
    RaftLog,
    /// Messages of a replica of the store to the others, a half ring for each.
    RaftMail,
    /// [`crate::domains`]: the domain table. There is one, of the orchestrator.
    Domains,
}

impl RegionKind {
    /// The name used in the system description and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Log => "log",
            Self::Control => "control",
            Self::Kicks => "kicks",
            Self::Areas => "areas",
            Self::Slots => "slots",
            Self::Requests => "requests",
            Self::Replies => "replies",
            Self::Journal => "journal",
            Self::ConsoleOut => "console-out",
            Self::ConsoleIn => "console-in",
            Self::ConsoleTaken => "console-taken",
            Self::StoreClient => "store-client",
            Self::StoreServer(_) => "store-server",
            Self::RaftLog => "raft-log",
            Self::RaftMail => "raft-mail",
            Self::Domains => "domains",
        }
    }
}

/// A run of fabric pages with one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub kind: RegionKind,
    /// Whom it is about: `(kind, subject)` names a region.
    pub subject: Party,
    /// The only party that stores into it.
    pub writer: Party,
    /// Parties that read it, beside the writer.
    pub readers: Parties,
    /// Pages, at least 1.
    pub pages: u32,
}

/// How a party may use a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is the one writer.
    ReadWrite,
    /// It is a reader.
    ReadOnly,
}

/// One region as one party sees it. The orchestrator sees every page, and writes none but its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The region.
    pub region: Region,
    /// First page of the region in the fabric.
    pub fabric_page: u32,
    /// First page of the region in the party's view.
    pub view_page: u32,
    /// What the party may do.
    pub access: Access,
}

impl Seen {
    /// Offset in bytes from the start of the party's mapping of its view.
    pub const fn offset(&self) -> usize {
        self.view_page as usize * PAGE_SIZE
    }

    /// Bytes of the region.
    pub const fn len(&self) -> usize {
        self.region.pages as usize * PAGE_SIZE
    }

    /// Whether the region has no page (the system description allows none such).
    pub const fn is_empty(&self) -> bool {
        self.region.pages == 0
    }
}

/// One page of a unit's view: what the orchestrator grants, and the unit maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewPage {
    /// Index of the page in the fabric.
    pub fabric_page: u32,
    /// Index of the page in the view.
    pub view_page: u32,
    /// The grant reference in the orchestrator's grant table.
    pub reference: u32,
    /// Read-only grants are made read-only, and mapped so.
    pub access: Access,
}

/// First page of a region in the view of each party that sees it; in the orchestrator's, the whole
/// fabric is.
pub type FirstPages = [u32; PARTIES_MAX];

/// The first pages of the region at `index`.
pub const fn first_pages(regions: &[Region], index: usize) -> FirstPages {
    let mut first = [0; PARTIES_MAX];
    let mut party = 0;
    while party < PARTIES_MAX {
        let mut before = 0;
        while before < index {
            if access(&regions[before], Party(party as u8)).is_some() {
                first[party] += regions[before].pages;
            }
            before += 1;
        }
        party += 1;
    }
    first
}

/// The regions of a system, in their order.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    regions: &'a [Region],
    /// Worked out beforehand: a life that begins asks for a score of regions.
    first_pages: &'a [FirstPages],
}

impl<'a> Layout<'a> {
    /// The layout of these regions, with the [`first_pages`] of each. Panics if there are not as
    /// many.
    pub const fn new(regions: &'a [Region], first_pages: &'a [FirstPages]) -> Self {
        assert!(regions.len() == first_pages.len(), "each region has its first pages");
        Self { regions, first_pages }
    }

    /// Bytes of the largest region of slots.
    pub const fn largest_slots(&self) -> usize {
        let (mut largest, mut index) = (0, 0);
        while index < self.regions.len() {
            let Region { kind, pages, .. } = self.regions[index];
            if matches!(kind, RegionKind::Slots) && pages > largest {
                largest = pages;
            }
            index += 1;
        }
        largest as usize * PAGE_SIZE
    }

    /// Pages of the whole fabric.
    pub const fn pages(&self) -> u32 {
        let mut pages = 0;
        let mut index = 0;
        while index < self.regions.len() {
            pages += self.regions[index].pages;
            index += 1;
        }
        pages
    }

    /// The regions that `party` sees, in the order of its view.
    pub fn view(&self, party: Party) -> impl Iterator<Item = Seen> + use<'a> {
        let regions = self.regions.iter().zip(self.first_pages);
        regions.filter_map(move |(region, first)| see(region, first, party))
    }

    /// Pages of the view of `party`.
    pub fn view_pages(&self, party: Party) -> u32 {
        self.view(party).map(|seen| seen.region.pages).sum()
    }

    /// The region `kind` of `subject` as `party` sees it; `None` if there is none for its eyes.
    pub fn find(&self, party: Party, kind: RegionKind, subject: Party) -> Option<Seen> {
        let mut regions = self.regions.iter().zip(self.first_pages);
        let is_it = |region: &Region| region.kind == kind && region.subject == subject;
        let (region, first) = regions.find(|(region, _)| is_it(region))?;
        see(region, first, party)
    }

    /// The pages that `unit` maps, in order, with their grant references.
    pub fn grants(&self, unit: Party) -> impl Iterator<Item = ViewPage> + use<'a> {
        let first = self.reference(unit, 0);
        self.view(unit).flat_map(move |seen| {
            (0..seen.region.pages).map(move |page| ViewPage {
                fabric_page: seen.fabric_page + page,
                view_page: seen.view_page + page,
                reference: first + seen.view_page + page,
                access: seen.access,
            })
        })
    }

    /// The grant reference of page `view_page` of the view of `unit`. Panics for the orchestrator,
    /// to which nothing is granted.
    pub fn reference(&self, unit: Party, view_page: u32) -> u32 {
        let index = unit.unit_index().expect("only units are granted pages");
        let before: u32 = (0..index).map(|other| self.view_pages(Party::unit(other))).sum();
        FIRST_REFERENCE + before + view_page
    }

    /// One more than the last grant reference, for `units` units: how large the orchestrator's
    /// grant table has to be.
    pub fn references_end(&self, units: usize) -> u32 {
        let views: u32 = (0..units).map(|unit| self.view_pages(Party::unit(unit))).sum();
        FIRST_REFERENCE + views
    }
}

const fn access(region: &Region, party: Party) -> Option<Access> {
    if region.writer.0 == party.0 {
        return Some(Access::ReadWrite);
    }
    let may_read = party.0 == Party::ORCHESTRATOR.0 || region.readers.has(party);
    if may_read { Some(Access::ReadOnly) } else { None }
}

/// A region as a party sees it, if it does.
fn see(region: &Region, first: &FirstPages, party: Party) -> Option<Seen> {
    let [fabric_page, view_page] = [Party::ORCHESTRATOR, party].map(|by| first[usize::from(by.0)]);
    access(region, party).map(|access| Seen { region: *region, fabric_page, view_page, access })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const STORE: Party = Party::unit(0);
    const TOOL: Party = Party::unit(1);

    const fn region(kind: RegionKind, subject: Party, writer: Party, pages: u32) -> Region {
        let readers = Parties::NONE.with(subject);
        Region { kind, subject, writer, readers, pages }
    }

    fn firsts(regions: &[Region]) -> Vec<FirstPages> {
        (0..regions.len()).map(|index| first_pages(regions, index)).collect()
    }

    static REGIONS: [Region; 5] = [
        Region {
            readers: Parties::NONE.with(STORE).with(TOOL),
            ..region(RegionKind::Domains, Party::ORCHESTRATOR, Party::ORCHESTRATOR, 1)
        },
        region(RegionKind::Health, STORE, STORE, 1),
        region(RegionKind::Slots, STORE, STORE, 4),
        region(RegionKind::Control, TOOL, Party::ORCHESTRATOR, 1),
        Region {
            readers: Parties::NONE.with(STORE),
            ..region(RegionKind::StoreClient, TOOL, TOOL, 2)
        },
    ];

    #[test]
    fn golden() {
        let first = firsts(&REGIONS);
        let layout = Layout::new(&REGIONS, &first);
        assert_eq!(layout.pages(), 9);
        let store: Vec<_> = layout
            .grants(STORE)
            .map(|p| (p.fabric_page, p.view_page, p.reference, p.access == Access::ReadWrite))
            .collect();
        let expected = [
            (0, 0, 8, false),
            (1, 1, 9, true),
            (2, 2, 10, true),
            (3, 3, 11, true),
            (4, 4, 12, true),
            (5, 5, 13, true),
            (7, 6, 14, false),
            (8, 7, 15, false),
        ];
        assert_eq!(store, expected);
        let tool = layout.find(TOOL, RegionKind::StoreClient, TOOL).unwrap();
        assert_eq!((tool.offset(), tool.len(), tool.access), (8192, 8192, Access::ReadWrite));
        assert_eq!(layout.reference(TOOL, 0), 16);
        assert_eq!(layout.references_end(2), 20);
        assert_eq!(layout.find(TOOL, RegionKind::Slots, STORE), None);
        let seen = layout.find(Party::ORCHESTRATOR, RegionKind::StoreClient, TOOL).unwrap();
        assert_eq!((seen.fabric_page, seen.view_page, seen.access), (7, 7, Access::ReadOnly));
    }

    fn any_region() -> impl Strategy<Value = Region> {
        (0_u8..4, 0_u16..16, 1_u32..9).prop_map(|(writer, readers, pages)| Region {
            kind: RegionKind::Journal,
            subject: Party(writer),
            writer: Party(writer),
            readers: Parties(readers),
            pages,
        })
    }

    proptest! {
        /// One writer per page, no reference given twice, views without gaps.
        #[test]
        fn views_fit_together(regions in prop::collection::vec(any_region(), 0..12)) {
            let first = firsts(&regions);
            let layout = Layout::new(&regions, &first);
            let mut references = BTreeSet::new();
            let mut writers = BTreeSet::new();
            for unit in 0..3 {
                for (expected, page) in (0..).zip(layout.grants(Party::unit(unit))) {
                    prop_assert_eq!(page.view_page, expected);
                    prop_assert!(page.fabric_page < layout.pages());
                    prop_assert!(references.insert(page.reference));
                    prop_assert_eq!(page.reference, layout.reference(Party::unit(unit), expected));
                    if page.access == Access::ReadWrite {
                        prop_assert!(writers.insert(page.fabric_page));
                    }
                }
            }
            let last = references.last().map_or(FIRST_REFERENCE, |last| last + 1);
            prop_assert_eq!(last, layout.references_end(3));
            prop_assert_eq!(layout.view_pages(Party::ORCHESTRATOR), layout.pages());
        }
    }
}
