//! The page tables of user mode.

use core::cell::Cell;
use core::ptr;

use abi::hypercall::{Call, hypercall};
use abi::layout::MmuextOp;
use abi::{DomId, PAGE_SIZE, XenError};

use super::places;
use crate::cell::OneCpu;
use crate::symbols::{__data_start, __image_start};
use crate::{facts, paging, span};

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
/// Present.
const PRESENT: u64 = 1;
/// What makes an entry another one: Xen adds flags, and the processor notes use.
const COMPARED: u64 = FRAME_AND_NO_EXECUTE | 0x1f;
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

/// What tables are to hold, entry by entry.
pub(super) struct Draft {
    at: usize,
    /// The entries are compared with those of a former life's tables, which stand: to have Xen
    /// check new ones takes a quarter of a microreset.
    is_comparing: bool,
    has_difference: Cell<bool>,
    entries: Cell<usize>,
}

/// Makes the tables of user mode out of code and constants of the image and what `fill` maps, or
/// finds that those of a former life are the same.
///
/// # Errors
/// What Xen says, above all when a frame is not this domain's to use.
///
/// # Panics
/// When the unikernel did not say that it has user mode, or its image or memory is too large.
pub(super) fn make(fill: impl Fn(&Draft)) -> Result<(), XenError> {
    assert!(TABLES_AT.get() != 0, "this unikernel did not ask for user mode");
    let end = facts::get().pages as usize * PAGE_SIZE;
    assert!(end <= places::START, "memory up to {end:#x} is more than user mode leaves room for");
    hide_machine_frames()?;
    let former = Draft::new(true);
    if !former.stands() || !former.is_same(&fill) {
        let draft = Draft::new(false);
        draft.take_back()?;
        draft.describe(&fill);
        draft.finish()?;
    }
    set_base(former.frame(0))?;
    // A former life's tables may have mapped other pages at the same addresses.
    paging::flush();
    Ok(())
}

impl Draft {
    fn new(is_comparing: bool) -> Self {
        let at = TABLES_AT.get();
        Self { at, is_comparing, has_difference: Cell::new(false), entries: Cell::new(0) }
    }

    /// Whether a former life gave all pages to Xen.
    fn stands(&self) -> bool {
        (0..TABLES).all(|table| {
            let ours = paging::entry(self.address(table) as u64, 1);
            ours.is_some_and(|ours| ours.maps_as(paging::leaf(self.frame(table), false)))
        })
    }

    fn is_same(&self, fill: &impl Fn(&Self)) -> bool {
        self.describe(fill);
        let all = (0..TABLES * ENTRIES).filter(|index| self.read(*index) & PRESENT != 0).count();
        !self.has_difference.get() && self.entries.get() == all
    }

    fn describe(&self, fill: &impl Fn(&Self)) {
        self.put(0, 0, self.link(1));
        self.put(1, 0, self.link(2));
        for table in 0..IMAGE_TABLES {
            self.put(2, table, self.link(3 + table));
        }
        self.put(2, places::START / (ENTRIES * PAGE_SIZE), self.link(TABLES - 1));
        self.map_image();
        fill(self);
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
                span::fill(ptr::with_exposed_provenance_mut(address), PAGE_SIZE, 0);
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

    /// The entry with this number, counted through all tables.
    fn read(&self, index: usize) -> u64 {
        let at = ptr::with_exposed_provenance::<u64>(self.at);
        // SAFETY: The pages are ours, mapped, and hold so many words.
        unsafe { at.add(index).read_volatile() }
    }

    fn put(&self, table: usize, index: usize, entry: u64) {
        assert!(table < TABLES && index < ENTRIES, "no entry {index} in table {table}");
        let number = table * ENTRIES + index;
        if self.is_comparing {
            self.entries.set(self.entries.get() + 1);
            if (self.read(number) ^ entry) & COMPARED != 0 {
                self.has_difference.set(true);
            }
            return;
        }
        let at = ptr::with_exposed_provenance_mut::<u64>(self.at);
        // SAFETY: As in `read`, and writable (`take_back`).
        unsafe { at.add(number).write_volatile(entry) }
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

    /// Has Xen check the tables and keep them.
    fn finish(self) -> Result<(), XenError> {
        /// `MMUEXT_PIN_L4_TABLE`.
        const PIN_L4: u32 = 3;
        for table in 0..TABLES {
            let entry = paging::leaf(self.frame(table), false);
            // SAFETY: As in `take_back`. Xen checks tables only if nobody can write them.
            unsafe { paging::set_leaf(self.address(table) as u64, entry) }?;
        }
        let op = MmuextOp { cmd: PIN_L4, arg1: self.frame(0), arg2: 0 };
        // SAFETY: The tables map what `map` was told, and memory that is only read.
        unsafe { paging::extended(&op, DomId::SELF) }
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
