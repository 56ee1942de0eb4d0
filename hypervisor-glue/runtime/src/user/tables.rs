//! The page tables of user mode.

use core::cell::Cell;
use core::ptr;

use abi::hypercall::{Call, hypercall};
use abi::layout::MmuextOp;
use abi::{DomId, PAGE_SIZE, XenError};

use super::places;
use crate::cell::OneCpu;
use crate::paging;
use crate::symbols::{__data_start, __image_start};

/// Entries of one table.
const ENTRIES: usize = 512;
/// Lowest tables of the image: code and constants end below 4 MiB.
const IMAGE_TABLES: usize = 2;
/// Top, third, second level; the lowest ones of the image; that of [`places`].
const TABLES: usize = 3 + IMAGE_TABLES + 1;

/// Present, accessed, for user mode.
const READ_ONLY: u64 = 0x25;
/// Not to be executed.
const NO_EXECUTE: u64 = 1 << 63;
/// The frame and the flag above, of an entry.
const FRAME_AND_NO_EXECUTE: u64 = NO_EXECUTE | 0x000f_ffff_ffff_f000;

/// How user mode may use pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Read them.
    Read,
    /// Read and write them.
    Write,
    /// Read registers of a device.
    ReadRegisters,
}

impl Use {
    fn flags(self) -> u64 {
        NO_EXECUTE
            | match self {
                Self::Read => READ_ONLY,
                // And dirty.
                Self::Write => READ_ONLY | 0x42,
                // Not cached.
                Self::ReadRegisters => READ_ONLY | 0x18,
            }
    }
}

/// Where the tables are, the same in each life: Xen refuses writes to them until they are given up.
static TABLES_AT: OneCpu<Cell<usize>> = OneCpu::new(Cell::new(0));

/// Keeps the last pages before `end`, all free memory, for the tables; answers where they begin.
pub(crate) fn reserve(end: u64) -> u64 {
    let begin = end - (TABLES * PAGE_SIZE) as u64;
    TABLES_AT.set(begin as usize);
    begin
}

/// The tables while they are being written.
pub(super) struct Draft {
    at: usize,
}

impl Draft {
    /// Takes the pages back from a former life, and writes tables in which nothing is mapped but
    /// code and constants of the image.
    ///
    /// # Errors
    /// What Xen says.
    ///
    /// # Panics
    /// When the unikernel did not say that it has user mode, or its image is too large.
    pub(super) fn begin() -> Result<Self, XenError> {
        let draft = Self { at: TABLES_AT.get() };
        assert!(draft.at != 0, "this unikernel did not ask for user mode");
        draft.take_back()?;
        draft.put(0, 0, draft.link(1));
        draft.put(1, 0, draft.link(2));
        for table in 0..IMAGE_TABLES {
            draft.put(2, table, draft.link(3 + table));
        }
        draft.put(2, places::START / (ENTRIES * PAGE_SIZE), draft.link(TABLES - 1));
        draft.map_image();
        Ok(draft)
    }

    fn take_back(&self) -> Result<(), XenError> {
        /// `MMUEXT_UNPIN_TABLE`.
        const UNPIN: u32 = 4;
        set_base(0)?;
        let op = MmuextOp { cmd: UNPIN, arg1: self.frame(0), arg2: 0 };
        // SAFETY: The tables are no memory of Rust's, and the vCPU uses them no more. An error
        // says that no former life pinned them.
        let _ = unsafe { paging::extended(&op, DomId::SELF) };
        for table in 0..TABLES {
            let address = self.address(table);
            // SAFETY: The page is kept for this use, so that no Rust object lies in it.
            unsafe {
                paging::set_leaf(address as u64, paging::leaf(self.frame(table), true))?;
                ptr::with_exposed_provenance_mut::<u8>(address).write_bytes(0, PAGE_SIZE);
            }
        }
        Ok(())
    }

    fn address(&self, table: usize) -> usize {
        self.at + table * PAGE_SIZE
    }

    fn frame(&self, table: usize) -> u64 {
        paging::machine_frame(self.address(table) as u64)
    }

    fn link(&self, table: usize) -> u64 {
        paging::table(self.frame(table))
    }

    fn put(&self, table: usize, index: usize, entry: u64) {
        assert!(table < TABLES && index < ENTRIES, "no entry {index} in table {table}");
        let at = ptr::with_exposed_provenance_mut::<u64>(self.address(table));
        // SAFETY: The page is ours, writable (`take_back`) and 512 words long.
        unsafe { at.add(index).write_volatile(entry) }
    }

    fn map_image(&self) {
        let (begin, end) = (&raw const __image_start as usize, &raw const __data_start as usize);
        assert!(end <= IMAGE_TABLES * ENTRIES * PAGE_SIZE, "code and constants end at {end:#x}");
        for address in (begin..end).step_by(PAGE_SIZE) {
            let ours = paging::entry(address as u64, 1).filter(paging::Entry::present);
            let Some(ours) = ours else { continue };
            let page = address / PAGE_SIZE;
            let entry = ours.value & FRAME_AND_NO_EXECUTE | READ_ONLY;
            self.put(3 + page / ENTRIES, page % ENTRIES, entry);
        }
    }

    /// Maps machine frames from page `first` of [`places`] on.
    ///
    /// # Safety
    /// User mode may do with these pages what `how` says, at any time while it runs: nothing of
    /// the kernel part may rely on them.
    pub(super) unsafe fn map(&self, first: usize, frames: impl Iterator<Item = u64>, how: Use) {
        for (index, frame) in (first..).zip(frames) {
            self.put(TABLES - 1, index, frame << 12 | how.flags());
        }
    }

    /// Has Xen check the tables, and makes them those of user mode.
    ///
    /// # Errors
    /// What Xen says, above all when a frame is not this domain's to use.
    pub(super) fn finish(self) -> Result<(), XenError> {
        /// `MMUEXT_PIN_L4_TABLE`.
        const PIN_L4: u32 = 3;
        for table in 0..TABLES {
            let entry = paging::leaf(self.frame(table), false);
            // SAFETY: As in `take_back`. Xen checks tables only if nobody can write them.
            unsafe { paging::set_leaf(self.address(table) as u64, entry) }?;
        }
        hide_machine_frames()?;
        let op = MmuextOp { cmd: PIN_L4, arg1: self.frame(0), arg2: 0 };
        // SAFETY: The tables map what `map` was told, and memory that is only read.
        unsafe { paging::extended(&op, DomId::SELF) }?;
        set_base(self.frame(0))?;
        // A former life's tables may have mapped other pages at the same addresses.
        paging::flush();
        Ok(())
    }
}

/// Says which top table user mode has; 0: none.
fn set_base(frame: u64) -> Result<(), XenError> {
    /// `MMUEXT_NEW_USER_BASEPTR`.
    const NEW_USER_BASE: u32 = 15;
    let op = MmuextOp { cmd: NEW_USER_BASE, arg1: frame, arg2: 0 };
    // SAFETY: What the kernel part sees does not change.
    unsafe { paging::extended(&op, DomId::SELF) }
}

/// Takes Xen's list of machine frames out of the sight of user mode.
fn hide_machine_frames() -> Result<(), XenError> {
    /// `VMASST_CMD_enable`, `VMASST_TYPE_m2p_strict`.
    const ENABLE: u64 = 0;
    const STRICT: u64 = 32;
    // SAFETY: No memory is passed, and the kernel part goes on to see the list.
    let result = unsafe { hypercall(Call::VmAssist, [ENABLE, STRICT, 0, 0, 0]) };
    abi::hypercall::outcome(result).map(|_| ())
}
