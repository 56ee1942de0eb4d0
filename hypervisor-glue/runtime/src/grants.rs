//! Pages granted to us, pages we grant, and the records that let a next life find the former.
//!
//! The argument array of the map hypercall lies in memory that both a microreset and a microreboot
//! leave alone, one record per slot, its handle preset to [`NO_HANDLE`]. Xen writes the handle
//! there, so that even a life that ends inside the hypercall leaves a true record.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use abi::hypercall::{Call, hypercall, outcome};
use abi::layout::{
    GNTMAP_HOST_MAP, GNTMAP_READONLY, GTF_IN_USE, GTF_PERMIT_ACCESS, GTF_READONLY, MapGrant,
    SetupTable, UnmapGrant,
};
use abi::{Access, DomId, GrantRef, PAGE_SIZE, XenError};

use crate::cell::OneCpu;
use crate::{paging, window};

/// A record of a slot that maps no grant.
const NO_HANDLE: u32 = u32::MAX;
/// Pages that the header and the records of a window need.
pub(crate) const RECORD_PAGES: usize = 1 + RECORDS * size_of::<MapGrant>() / PAGE_SIZE;
const RECORDS: usize = 2048;
/// Says that the records were made by this domain: "PpVMMgnt".
const MAGIC: u64 = u64::from_le_bytes(*b"PpVMMgnt");
/// Unmappings per hypercall.
const BATCH: usize = 64;
/// Entries per frame of a grant table, version 1.
const ENTRIES_PER_FRAME: u32 = 512;

/// First words of the surviving area.
#[repr(C)]
struct Header {
    magic: u64,
    /// Records at and above this index were never used.
    used: u64,
}

/// Where the records lie; 0 before [`open`].
static AREA: OneCpu<Cell<u64>> = OneCpu::new(Cell::new(0));
/// Recorded mappings of a former life that nobody has adopted.
static ORPHANS: OneCpu<Cell<usize>> = OneCpu::new(Cell::new(0));
/// Frames of our own grant table that are mapped.
static TABLE_FRAMES: OneCpu<Cell<usize>> = OneCpu::new(Cell::new(0));

fn header() -> *mut Header {
    AREA.get() as *mut Header
}

fn record(slot: usize) -> *mut MapGrant {
    let index = slot - window::range().0;
    assert!(index < RECORDS, "slot {slot} has no record");
    (AREA.get() as usize + PAGE_SIZE + index * size_of::<MapGrant>()) as *mut MapGrant
}

fn recorded(slot: usize) -> MapGrant {
    // SAFETY: A record of the area, aligned; Xen may have written it, so the read is volatile.
    unsafe { record(slot).read_volatile() }
}

fn set_record(slot: usize, value: MapGrant) {
    // SAFETY: As in `recorded`.
    unsafe { record(slot).write_volatile(value) }
}

/// Takes the area of [`RECORD_PAGES`] pages at `address` as the place of the records.
///
/// `fresh`: nothing was ever mapped. `keep`: the owners of mappings have survived, so taken slots
/// stay taken. Otherwise what is still mapped waits to be adopted or dropped.
///
/// # Safety
/// The area must be mapped, page-aligned, and used for nothing else, by former lives neither.
pub(crate) unsafe fn open(address: u64, fresh: bool, keep: bool) {
    AREA.set(address);
    ORPHANS.set(0);
    // SAFETY: The header lies in the area.
    let known = unsafe { (*header()).magic } == MAGIC;
    if fresh || !known {
        window::forget();
        let (low, high) = window::range();
        for slot in low..high.min(low + RECORDS) {
            set_record(slot, unmapped());
        }
        // SAFETY: As above.
        unsafe { header().write(Header { magic: MAGIC, used: 0 }) };
        return;
    }
    if !keep {
        disown();
    }
}

/// The owners of all recorded mappings are gone: what is still mapped waits to be adopted or
/// dropped.
pub(crate) fn disown() {
    window::forget();
    ORPHANS.set(0);
    for slot in used_slots() {
        if recorded(slot).handle == NO_HANDLE {
            continue;
        }
        if window::is_mapped(slot) {
            ORPHANS.set(ORPHANS.get() + 1);
        } else {
            set_record(slot, unmapped());
        }
    }
}

fn unmapped() -> MapGrant {
    MapGrant {
        host_addr: 0,
        flags: 0,
        reference: 0,
        dom: 0,
        status: 0,
        handle: NO_HANDLE,
        dev_bus_addr: 0,
    }
}

/// The slots whose records may be in use.
fn used_slots() -> core::ops::Range<usize> {
    let (low, high) = window::range();
    // SAFETY: The header lies in the area.
    let used = unsafe { (*header()).used } as usize;
    low..(low + used).min(high)
}

fn wanted(slot: usize, granter: DomId, reference: GrantRef, access: Access) -> MapGrant {
    let read_only = if access == Access::ReadOnly { GNTMAP_READONLY } else { 0 };
    MapGrant {
        host_addr: window::address(slot),
        flags: GNTMAP_HOST_MAP | read_only,
        reference: reference.0,
        dom: granter.0,
        ..unmapped()
    }
}

/// Maps the pages, or adopts the same mapping of a former life; returns the first slot.
pub(crate) fn map(
    granter: DomId,
    references: &[GrantRef],
    access: Access,
) -> Result<usize, XenError> {
    if let Some(first) = adopt(granter, references, access) {
        return Ok(first);
    }
    let first = allocate(references.len())?;
    // SAFETY: The header lies in the area.
    unsafe {
        let used = (first + references.len() - window::range().0) as u64;
        (*header()).used = (*header()).used.max(used);
    }
    for (index, reference) in references.iter().enumerate() {
        set_record(first + index, wanted(first + index, granter, *reference, access));
    }
    // SAFETY: The slots are empty and ours alone.
    let failed = unsafe { map_records(record(first), references.len()) };
    let Some(error) = failed else { return Ok(first) };
    unmap(first, references.len());
    Err(error)
}

/// Takes free slots that no forgotten mapping occupies.
fn allocate(count: usize) -> Result<usize, XenError> {
    if ORPHANS.get() > 0 {
        claim_orphans(true);
    }
    let first = window::allocate(count);
    if ORPHANS.get() > 0 {
        claim_orphans(false);
    }
    first
}

/// Takes the slots of orphans, so that none is handed out, or gives them back.
fn claim_orphans(taken: bool) {
    static HELD: OneCpu<[Cell<u64>; RECORDS / 64]> =
        OneCpu::new([const { Cell::new(0) }; RECORDS / 64]);
    for slot in used_slots() {
        let index = slot - window::range().0;
        let (word, bit) = (&HELD[index / 64], 1 << (index % 64));
        if taken && recorded(slot).handle != NO_HANDLE && !window::is_taken(slot) {
            window::claim(slot, 1);
            word.set(word.get() | bit);
        } else if !taken && word.get() & bit != 0 {
            window::release(slot, 1);
            word.set(word.get() & !bit);
        }
    }
}

/// Maps `count` records; returns the first failure.
///
/// # Safety
/// Each record must be valid to read and write, and its address an empty slot of the window that
/// nobody else uses.
unsafe fn map_records(records: *mut MapGrant, count: usize) -> Option<XenError> {
    /// `GNTTABOP_map_grant_ref`.
    const MAP: u64 = 0;
    let arguments = [MAP, records as u64, count as u64, 0, 0];
    // SAFETY: Xen reads and writes the records; the addresses are the caller's duty.
    if let Err(error) = outcome(unsafe { hypercall(Call::GrantTableOp, arguments) }) {
        return Some(error);
    }
    (0..count).find_map(|index| {
        // SAFETY: One of the caller's records.
        let status = unsafe { (*records.add(index)).status };
        (status != 0).then_some(XenError::Grant(status))
    })
}

/// Looks for the same mapping, contiguous, made by a former life and owned by nobody.
fn adopt(granter: DomId, references: &[GrantRef], access: Access) -> Option<usize> {
    if ORPHANS.get() < references.len() || references.is_empty() {
        return None;
    }
    let first = used_slots().find(|first| {
        references.iter().enumerate().all(|(index, reference)| {
            let slot = first + index;
            if !used_slots().contains(&slot) || window::is_taken(slot) {
                return false;
            }
            let have = recorded(slot);
            let want = wanted(slot, granter, *reference, access);
            have.handle != NO_HANDLE
                && (have.host_addr, have.flags, have.reference, have.dom)
                    == (want.host_addr, want.flags, want.reference, want.dom)
        })
    })?;
    window::claim(first, references.len());
    ORPHANS.set(ORPHANS.get() - references.len());
    Some(first)
}

/// Unmaps what a former life mapped and this one has not asked for again.
pub(crate) fn drop_orphans() {
    if ORPHANS.get() == 0 {
        return;
    }
    for slot in used_slots() {
        if recorded(slot).handle != NO_HANDLE && !window::is_taken(slot) {
            window::claim(slot, 1);
            unmap(slot, 1);
        }
    }
    ORPHANS.set(0);
}

/// Unmaps every recorded grant: nobody uses any.
pub(crate) fn unmap_all() {
    for slot in used_slots() {
        if recorded(slot).handle != NO_HANDLE {
            unmap(slot, 1);
        }
    }
}

/// Unmaps the slots that are mapped and gives all of them back.
pub(crate) fn unmap(first: usize, count: usize) {
    /// `GNTTABOP_unmap_grant_ref`.
    const UNMAP: u64 = 1;
    let mut batch = [UnmapGrant::default(); BATCH];
    let mut slot = first;
    while slot < first + count {
        let mut some = 0;
        while slot < first + count && some < BATCH {
            let have = recorded(slot);
            if have.handle != NO_HANDLE {
                batch[some] = UnmapGrant {
                    host_addr: have.host_addr,
                    handle: have.handle,
                    ..UnmapGrant::default()
                };
                some += 1;
            }
            slot += 1;
        }
        let arguments = [UNMAP, batch.as_mut_ptr() as u64, some as u64, 0, 0];
        // SAFETY: Xen reads and writes the batch; the mappings have no user any more.
        let result = outcome(unsafe { hypercall(Call::GrantTableOp, arguments) });
        result.expect("unmapping with valid arguments is always allowed");
    }
    for slot in first..first + count {
        set_record(slot, unmapped());
    }
    window::release(first, count);
}

/// Maps pages of the fabric, granted by the orchestrator under `first`, `first + 1`…, into the
/// fabric's part of the window, where they stay. What a former life mapped is left as it is.
pub(crate) fn map_fabric(
    first: GrantRef,
    count: usize,
    access: &dyn Fn(usize) -> Access,
) -> Result<(), XenError> {
    assert!(count <= window::FABRIC_SLOTS, "{count} fabric pages do not fit the window");
    let Some(mut page) = window::first_empty(0, count) else { return Ok(()) };
    let mut batch = [unmapped(); BATCH];
    while page < count {
        let mut some = 0;
        while some < BATCH {
            let Some(empty) = window::first_empty(page, count) else {
                page = count;
                break;
            };
            let reference = GrantRef(first.0 + empty as u32);
            batch[some] = wanted(empty, DomId::ORCHESTRATOR, reference, access(empty));
            some += 1;
            page = empty + 1;
        }
        if some > 0 {
            // SAFETY: The batch is ours; the slots are empty, in the part kept for the fabric.
            if let Some(error) = unsafe { map_records(batch.as_mut_ptr(), some) } {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// One entry of our grant table (`grant_entry_v1`).
#[repr(C)]
struct Entry {
    flags: AtomicU16,
    domid: u16,
    frame: u32,
}

/// Lets `to` map machine frame `frame` under `reference`. The same entry again changes nothing.
pub(crate) fn grant(
    reference: GrantRef,
    to: DomId,
    frame: u64,
    access: Access,
) -> Result<(), XenError> {
    grow_table((reference.0 / ENTRIES_PER_FRAME) as usize + 1)?;
    let entry = entry(reference);
    let read_only = if access == Access::ReadOnly { GTF_READONLY } else { 0 };
    let flags = GTF_PERMIT_ACCESS | read_only;
    // SAFETY: An entry of our mapped grant table. Xen changes only the flags, by atomic
    // operations; the other fields are ours.
    unsafe {
        let now = (*entry).flags.load(Ordering::Acquire);
        let same = (*entry).domid == to.0 && u64::from((*entry).frame) == frame;
        if now & !GTF_IN_USE == flags && same {
            return Ok(());
        }
        (*entry).flags.store(0, Ordering::Release);
        ptr::write_volatile(&raw mut (*entry).domid, to.0);
        ptr::write_volatile(&raw mut (*entry).frame, frame as u32);
        (*entry).flags.store(flags, Ordering::Release);
    }
    Ok(())
}

fn entry(reference: GrantRef) -> *mut Entry {
    let slot = window::grant_table_slot((reference.0 / ENTRIES_PER_FRAME) as usize);
    let offset = (reference.0 % ENTRIES_PER_FRAME) as usize * size_of::<Entry>();
    (window::address(slot) as usize + offset) as *mut Entry
}

/// Makes sure that the first `count` frames of our grant table exist and are mapped.
fn grow_table(count: usize) -> Result<(), XenError> {
    /// `GNTTABOP_setup_table`.
    const SETUP: u64 = 2;
    let have = TABLE_FRAMES.get();
    if count <= have {
        return Ok(());
    }
    if count > window::GRANT_TABLE_SLOTS {
        return Err(XenError::NoSpace);
    }
    let mut frames = [0u64; window::GRANT_TABLE_SLOTS];
    let mut argument = SetupTable {
        dom: DomId::SELF.0,
        nr_frames: count as u32,
        status: 0,
        frame_list: frames.as_mut_ptr() as u64,
    };
    // SAFETY: Xen writes the status and at most `count` frames.
    outcome(unsafe { hypercall(Call::GrantTableOp, [SETUP, &raw mut argument as u64, 1, 0, 0]) })?;
    if argument.status != 0 {
        return Err(XenError::Grant(argument.status));
    }
    for (frame, machine_frame) in frames.iter().enumerate().take(count).skip(have) {
        let slot = window::grant_table_slot(frame);
        if !window::is_mapped(slot) {
            let flags = paging::flags(true);
            let source = window::Source { owner: DomId::SELF, flags, command: 0 };
            window::map(slot, [*machine_frame].into_iter(), source)?;
        }
        TABLE_FRAMES.set(frame + 1);
    }
    Ok(())
}

/// A next life maps its table again (the entries are there, so this costs one hypercall).
pub(crate) fn forget_table() {
    TABLE_FRAMES.set(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Survivor;
    use crate::survivor::take_turns;

    const GUEST: DomId = DomId(16);
    const RING: GrantRef = GrantRef(1);

    /// A window and records that belong to the test.
    fn open_for_test() {
        window::open_for_test();
        let words = RECORD_PAGES * PAGE_SIZE / size_of::<u64>();
        let area = Box::leak(vec![0u64; words].into_boxed_slice());
        // SAFETY: Leaked memory that nobody else uses, aligned for the records.
        unsafe { open(area.as_mut_ptr().expose_provenance() as u64, true, false) };
    }

    /// What Xen does for the map hypercall on one slot.
    fn map_by_xen(slot: usize, handle: u32) {
        // SAFETY: The header lies in the area.
        unsafe { (*header()).used = 1 + slot as u64 };
        window::claim(slot, 1);
        set_record(slot, MapGrant { handle, ..wanted(slot, GUEST, RING, Access::ReadWrite) });
    }

    #[test]
    fn what_a_state_that_is_not_whole_had_mapped_is_found_by_the_next_life() {
        static STATE: Survivor<u32> = Survivor::new();
        let _turn = take_turns();
        open_for_test();
        STATE.put(0);
        map_by_xen(3, 77);
        assert!(STATE.recover_if(|_| true));
        assert_eq!(adopt(GUEST, &[RING], Access::ReadWrite), None, "its owner lives on");
        assert!(!STATE.recover_if(|_| false));
        assert_eq!(adopt(GUEST, &[RING], Access::ReadWrite), Some(3));
        assert_eq!((recorded(3).handle, ORPHANS.get()), (77, 0));
        assert!(window::is_taken(3), "no other mapping gets its slot");
    }
}
