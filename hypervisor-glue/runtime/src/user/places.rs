//! Where everything lies that user mode sees beside the image's code and constants.
//!
//! All of it is in one range of 2 MiB in which the kernel part has nothing mapped, so that no
//! address means one page in one page table and another page in the other one: Xen makes pages
//! that user mode may use global, and they outlast the switch between the tables.

use abi::PAGE_SIZE;

/// The range's start: beyond all memory of a unit, and before the window.
pub(crate) const START: usize = 512 << 20;
/// Pages of the range: one lowest page table.
pub(crate) const PAGES: usize = 512;

/// Some pages of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// First page, from the range's start.
    pub(crate) first: usize,
    /// How many.
    pub(crate) pages: usize,
}

impl Area {
    /// Where it starts.
    pub(crate) const fn address(self) -> usize {
        START + self.first * PAGE_SIZE
    }

    /// Its bytes.
    pub(crate) const fn len(self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// First byte from the arena's start.
    pub(crate) const fn offset(self) -> usize {
        (self.first - STACK.first) * PAGE_SIZE
    }

    const fn end(self) -> usize {
        self.first + self.pages
    }
}

/// The stack, above a page that is never mapped. The largest frame of a driver is some 10 KiB: its
/// own state, when it is made.
pub(crate) const STACK: Area = Area { first: 1, pages: 16 };
/// What the kernel part writes and user mode reads: a full ring of frames and one of buffers.
pub(crate) const INPUT: Area = Area { first: STACK.end(), pages: 8 };
/// What user mode writes and the kernel part copies out.
pub(crate) const OUTPUT: Area = Area { first: INPUT.end(), pages: 4 };
/// What user mode keeps between two entries.
pub(crate) const STATE: Area = Area { first: OUTPUT.end(), pages: 8 };
/// Stack, input, output and state: the arena, one piece of the kernel part's memory.
pub(crate) const ARENA_PAGES: usize = STATE.end() - STACK.first;
/// Registers of a device: as many as the window keeps.
pub(crate) const REGISTERS: Area = Area { first: 128, pages: 64 };
/// Memory that user mode may look at.
pub(crate) const VIEW: Area = Area { first: 256, pages: 64 };

const _: () = assert!(STATE.end() <= REGISTERS.first && VIEW.end() <= PAGES);
