//! This domain's own page tables. Xen validates every change; entries hold machine frames.

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{MmuUpdate, MmuextOp};
use abi::{DomId, PAGE_SIZE, XenError};

use crate::facts;

/// Present, accessed, dirty; no user bit: in PV that would make the page global (it would stay in
/// the translation buffer when page tables are switched).
const READ_ONLY: u64 = 0x61;
/// The same, and writable.
const READ_WRITE: u64 = 0x63;
/// An entry that refers to a lower table.
const TABLE: u64 = 0x67;
/// The frame number in an entry.
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Xen's table from machine to pseudo-physical frames, readable by every PV kernel (xen-x86_64.h).
pub(crate) const MACHINE_TO_PHYSICAL: u64 = 0xffff_8000_0000_0000;
/// `MMU_PT_UPDATE_NO_TRANSLATE`: the frame is a machine frame, whoever owns it.
pub(crate) const NO_TRANSLATE: u64 = 3;
/// Updates per hypercall: 2 KiB of stack; the fixed cost of a hypercall is below 1 % then.
pub(crate) const BATCH: usize = 128;

/// A page-table entry: where it is (machine address) and what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Machine address, as `mmu_update` wants it.
    pub(crate) address: u64,
    /// Value.
    pub(crate) value: u64,
}

impl Entry {
    /// Whether it maps something.
    pub(crate) fn present(&self) -> bool {
        self.value & 1 != 0
    }

    /// Whether it maps the same frame with the same right to write (Xen adds flags of its own).
    pub(crate) fn maps_as(&self, value: u64) -> bool {
        const COMPARED: u64 = FRAME_MASK | 3;
        self.value & COMPARED == value & COMPARED
    }
}

/// Flags of device memory: writable, never cached.
pub(crate) const UNCACHED: u64 = READ_WRITE | 0x18;

/// The flags that map memory.
pub(crate) fn flags(writable: bool) -> u64 {
    if writable { READ_WRITE } else { READ_ONLY }
}

/// The value that maps a frame.
pub(crate) fn leaf(frame: u64, writable: bool) -> u64 {
    frame << 12 | flags(writable)
}

/// The value that refers to the table in machine frame `frame`.
pub(crate) fn table(frame: u64) -> u64 {
    frame << 12 | TABLE
}

/// Machine frame of the page of ours at `address`, as the builder gave it to us.
pub(crate) fn machine_frame(address: u64) -> u64 {
    let facts = facts::get();
    let page = address / PAGE_SIZE as u64;
    assert!(page < facts.pages, "address {address:#x} lies beyond the domain's memory");
    // SAFETY: The p2m list has one word per page of the domain, is mapped, and never changes.
    unsafe { (facts.p2m as *const u64).add(page as usize).read() }
}

/// Where this domain sees its own table in machine frame `frame`.
fn table_address(frame: u64) -> *const u64 {
    let facts = facts::get();
    let first = facts.top_table / PAGE_SIZE as u64;
    let made = (first..first + facts.tables)
        .find(|page| machine_frame(page * PAGE_SIZE as u64) == frame)
        // One that was made later, out of another page of ours.
        .unwrap_or_else(|| {
            // SAFETY: Xen maps its table read-only for every PV kernel; `frame` is one of ours.
            unsafe { ((MACHINE_TO_PHYSICAL + frame * 8) as *const u64).read_volatile() }
        });
    (made * PAGE_SIZE as u64) as *const u64
}

/// The lowest table for `address`: its machine address, and where this domain can read it.
pub(crate) fn lowest_table(address: u64) -> Option<(u64, *const u64)> {
    let upper = entry(address, 2)?;
    let frame = (upper.value & FRAME_MASK) >> 12;
    upper.present().then(|| (frame << 12, table_address(frame)))
}

/// The entry for `address` at `level` (4 is the top, 1 maps pages), when the tables above exist.
pub(crate) fn entry(address: u64, level: u32) -> Option<Entry> {
    let top = facts::get().top_table;
    let (mut frame, mut at) = (machine_frame(top), top as *const u64);
    for current in (level..=4).rev() {
        let index = address >> (12 + 9 * (current - 1)) & 511;
        // SAFETY: `at` is one of our page tables, mapped read-only, and `index` is below 512.
        let value = unsafe { at.add(index as usize).read_volatile() };
        let found = Entry { address: frame << 12 | index << 3, value };
        if current == level {
            return Some(found);
        }
        if !found.present() {
            return None;
        }
        frame = (value & FRAME_MASK) >> 12;
        at = table_address(frame);
    }
    None
}

/// Applies the updates in order. On an error tells how many were applied before it.
///
/// # Safety
/// 1. No page that Rust uses may lose or change its mapping, or become reachable twice.
/// 2. A translation that may still be cached must be flushed before anybody relies on the change.
pub(crate) unsafe fn update(updates: &[MmuUpdate], owner: DomId) -> Result<(), (usize, XenError)> {
    let mut done: u32 = 0;
    let arguments = [
        updates.as_ptr() as u64,
        updates.len() as u64,
        &raw mut done as u64,
        u64::from(owner.0),
        0,
    ];
    // SAFETY: Xen reads `updates` and writes `done`; effects on mappings are the caller's duty.
    let result = unsafe { hypercall(Call::MmuUpdate, arguments) };
    outcome(result).map(|_| ()).map_err(|error| (done as usize, error))
}

/// Maps the machine frame at `address` in an existing lowest table, or unmaps for `value` 0, and
/// flushes the old translation.
///
/// # Safety
/// As for [`update`], condition 1.
pub(crate) unsafe fn set_leaf(address: u64, value: u64) -> Result<(), XenError> {
    /// `UVMF_INVLPG | UVMF_ALL`.
    const INVALIDATE: u64 = 2 | 1 << 2;
    // SAFETY: No memory is passed; effects on mappings are the caller's duty.
    outcome(unsafe { hypercall(Call::UpdateVaMapping, [address, value, INVALIDATE, 0, 0]) })
        .map(|_| ())
}

/// Forgets all cached translations.
pub(crate) fn flush() {
    /// `MMUEXT_TLB_FLUSH_LOCAL`: one vCPU.
    const FLUSH_LOCAL: u32 = 6;
    let op = MmuextOp { cmd: FLUSH_LOCAL, ..MmuextOp::default() };
    // SAFETY: Flushing changes no mapping; `op` is valid for reading.
    let result = unsafe { extended(&op, DomId::SELF) };
    result.expect("a domain may always flush its own translations");
}

/// Makes one `mmuext_op` call.
///
/// # Safety
/// The operation must not take memory away from Rust, or write to memory that Rust uses.
pub(crate) unsafe fn extended(op: &MmuextOp, owner: DomId) -> Result<(), XenError> {
    let arguments = [&raw const *op as u64, 1, 0, u64::from(owner.0), 0];
    // SAFETY: Xen reads one operation; its effects are the caller's duty.
    outcome(unsafe { hypercall(Call::MmuextOp, arguments) }).map(|_| ())
}
