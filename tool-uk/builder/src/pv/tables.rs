//! Where everything lies in a PV domain, and what its page tables say.
//!
//! Kernel-only pages leave the user bit clear. Xen then marks them as kernel pages of the guest
//! itself; with the bit set it would make them global, and they would stay in the TLB while a user
//! page table is active (`adjust_guest_l1e` in Xen's mm.c).

use abi::{Frame, PAGE_SIZE};

use super::{PAGE, WINDOW_PAGES, WINDOW_START};
use crate::elf::Placement;

/// Entries of one page table.
const ENTRIES: u32 = 512;
/// Tables above the L1s: L4, L3, one L2 for memory and one for the window.
const UPPER_TABLES: u32 = 4;
/// L1 tables of the window.
const WINDOW_TABLES: u32 = WINDOW_PAGES / ENTRIES;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

/// An entry that points to another table. Rights are decided in the L1 alone.
const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
/// A page of kernel data.
const DATA: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | NO_EXECUTE;
/// A page that the kernel may only read.
const CONSTANT: u64 = PRESENT | ACCESSED | NO_EXECUTE;
/// A page of code.
const CODE: u64 = PRESENT | ACCESSED;

/// Where everything lies, in pages from address 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pages of the domain.
    pub pages: u32,
    /// First page of the image.
    pub image_start: u32,
    /// The boot stack's page, which is the one after the image.
    pub stack: u32,
    /// The page of `start_info`.
    pub start_info: u32,
    /// First page of the list of machine frames.
    pub p2m: u32,
    /// First page that nobody uses yet.
    pub free: u32,
    /// First page table (L4).
    pub tables: u32,
}

impl Layout {
    /// Lays out `pages` pages around an image whose segments lie below their end; `None` when
    /// there is no room for what comes after the image.
    pub(crate) fn new(placement: &Placement, pages: u32) -> Option<Self> {
        let image_start = (placement.start() / PAGE) as u32;
        let stack = placement.end().div_ceil(PAGE) as u32;
        let start_info = stack + 1;
        let p2m = start_info + 1;
        let free = p2m + pages.div_ceil(ENTRIES);
        let tables = pages.checked_sub(Self::table_count_for(pages))?;
        (free <= tables).then_some(Self {
            pages,
            image_start,
            stack,
            start_info,
            p2m,
            free,
            tables,
        })
    }

    fn table_count_for(pages: u32) -> u32 {
        UPPER_TABLES + pages.div_ceil(ENTRIES) + WINDOW_TABLES
    }

    /// Pages needed beside the image and free memory: boot stack, `start_info`, p2m, tables.
    pub(crate) fn overhead(pages: u32) -> u32 {
        2 + pages.div_ceil(ENTRIES) + Self::table_count_for(pages)
    }

    /// Number of page tables.
    pub fn table_count(&self) -> u32 {
        Self::table_count_for(self.pages)
    }

    /// The L1 entry of page `page` without its frame.
    fn leaf_flags(&self, page: u32, placement: &Placement) -> u64 {
        if page == 0 {
            return 0;
        }
        if page >= self.tables {
            return CONSTANT;
        }
        if !(self.image_start..self.stack).contains(&page) {
            return DATA;
        }
        let (start, end) = (u64::from(page) * PAGE, u64::from(page + 1) * PAGE);
        let mut parts = placement
            .parts()
            .iter()
            .filter(|part| part.start < end && start < part.end())
            .map(|part| &part.segment)
            .peekable();
        if parts.peek().is_none() {
            return DATA;
        }
        let (mut writable, mut executable) = (false, false);
        for segment in parts {
            writable |= segment.writable;
            executable |= segment.executable;
        }
        // A page with both is data: running code in it faults at once and names the image.
        match (writable, executable) {
            (true, _) => DATA,
            (false, true) => CODE,
            (false, false) => CONSTANT,
        }
    }

    /// Computes page table number `index` of a domain whose page `i` is machine frame
    /// `frames[i]`.
    pub(crate) fn table_page(
        &self,
        index: u32,
        placement: &Placement,
        frames: &[Frame],
        out: &mut [u8; PAGE_SIZE],
    ) {
        out.fill(0);
        let memory_tables = self.pages.div_ceil(ENTRIES);
        let l1 = UPPER_TABLES;
        let window_l1 = l1 + memory_tables;
        match index {
            0 => self.link(frames, out, 0, 1..2),
            1 => {
                self.link(frames, out, 0, 2..3);
                self.link(frames, out, (WINDOW_START >> 30) as usize, 3..4);
            }
            2 => self.link(frames, out, 0, l1..window_l1),
            3 => self.link(frames, out, 0, window_l1..window_l1 + WINDOW_TABLES),
            _ if index < window_l1 => {
                let first = (index - l1) * ENTRIES;
                for page in first..self.pages.min(first + ENTRIES) {
                    let flags = self.leaf_flags(page, placement);
                    if flags != 0 {
                        put(out, (page - first) as usize, entry(frames[page as usize], flags));
                    }
                }
            }
            // The window's L1 tables start empty.
            _ => {}
        }
    }

    /// Writes links to the given tables into consecutive entries.
    fn link(
        &self,
        frames: &[Frame],
        out: &mut [u8; PAGE_SIZE],
        at: usize,
        tables: core::ops::Range<u32>,
    ) {
        for (slot, table) in (at..).zip(tables) {
            put(out, slot, entry(frames[(self.tables + table) as usize], TABLE));
        }
    }
}

fn entry(frame: Frame, flags: u64) -> u64 {
    frame.0 << 12 | flags
}

fn put(out: &mut [u8; PAGE_SIZE], slot: usize, entry: u64) {
    out[slot * 8..slot * 8 + 8].copy_from_slice(&entry.to_le_bytes());
}
