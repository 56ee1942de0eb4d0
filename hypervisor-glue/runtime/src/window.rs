//! The address range where memory of others is mapped, and which of its pages are taken.

use core::cell::Cell;
use core::ptr;

use abi::layout::MmuUpdate;
use abi::{DomId, PAGE_SIZE, XenError};

use crate::cell::OneCpu;
use crate::paging::{self, BATCH};

/// Pages per lowest table.
const PER_TABLE: usize = 512;
/// Most pages in a window (16 MiB): what our builder prepares.
pub(crate) const MAX_SLOTS: usize = 4096;
/// Where our builder prepares the tables of a window.
const BUILDER_WINDOW: u64 = 1 << 30;
/// Where we make a window ourselves, with tables of our own: the last 8 MiB of the first GiB,
/// whose second-level table exists in every PV domain. Xen's own mapping of image, archive and
/// tables ends far below.
const OWN_WINDOW: u64 = (1 << 30) - ((OWN_TABLES * PER_TABLE * PAGE_SIZE) as u64);
/// 2,048 pages: the initial domain maps at most 512 pages of a service and 64 grant frames.
const OWN_TABLES: usize = 4;

/// A set of page slots with a search for contiguous free ones.
pub(crate) struct Slots {
    taken: [Cell<u64>; MAX_SLOTS / 64],
}

impl Slots {
    pub(crate) const fn new() -> Self {
        Self { taken: [const { Cell::new(0) }; MAX_SLOTS / 64] }
    }

    /// Whether the slot is taken.
    pub(crate) fn is_taken(&self, slot: usize) -> bool {
        self.taken[slot / 64].get() & 1 << (slot % 64) != 0
    }

    /// Takes or gives back slots.
    pub(crate) fn mark(&self, first: usize, count: usize, taken: bool) {
        let (mut slot, end) = (first, first + count);
        while slot < end {
            // A word at a time: a life that trusts nothing gives the whole window back.
            let bits = (64 - slot % 64).min(end - slot);
            let mask = (u64::MAX >> (64 - bits)) << (slot % 64);
            let word = &self.taken[slot / 64];
            word.set(if taken { word.get() | mask } else { word.get() & !mask });
            slot += bits;
        }
    }

    /// Takes the lowest `count` contiguous free slots in `[low, high)`.
    pub(crate) fn allocate(&self, low: usize, high: usize, count: usize) -> Option<usize> {
        let found = self.search(low, high, count)?;
        self.mark(found, count, true);
        Some(found)
    }

    fn search(&self, low: usize, high: usize, count: usize) -> Option<usize> {
        let mut run = 0;
        for slot in low..high {
            run = if self.is_taken(slot) { 0 } else { run + 1 };
            if run == count {
                return Some(slot + 1 - count);
            }
        }
        None
    }
}

/// The window of this domain.
#[derive(Clone, Copy, Debug)]
struct Place {
    base: u64,
    /// First slot for mappings; those below belong to the fabric.
    low: usize,
    high: usize,
    /// Each lowest table: its machine address, and where it can be read.
    tables: [(u64, *const u64); MAX_SLOTS / PER_TABLE],
}

/// Set once per life; read often, so field by field.
static PLACE: OneCpu<Cell<Place>> =
    OneCpu::new(Cell::new(Place { base: 0, low: 0, high: 0, tables: NO_TABLES }));
const NO_TABLES: [(u64, *const u64); MAX_SLOTS / PER_TABLE] =
    [(0, ptr::null()); MAX_SLOTS / PER_TABLE];
static SLOTS: OneCpu<Slots> = OneCpu::new(Slots::new());

#[repr(C, align(4096))]
struct Tables(Cell<[[u64; PER_TABLE]; OWN_TABLES]>);

/// Pages that become the lowest tables of a window of our own.
static OWN: OneCpu<Tables> = OneCpu::new(Tables(Cell::new([[0; PER_TABLE]; OWN_TABLES])));

/// Whether our builder prepared the window: then it made the whole domain.
pub(crate) fn is_prepared() -> bool {
    match place(|place| place.base) {
        0 => paging::entry(BUILDER_WINDOW, 1).is_some(),
        base => base == BUILDER_WINDOW,
    }
}

/// Finds the window that the builder prepared, else makes one. After a microreset it is known.
pub(crate) fn open() -> Result<(), XenError> {
    if place(|place| place.base) != 0 {
        return Ok(());
    }
    let prepared = is_prepared();
    if !prepared {
        make_tables()?;
    }
    let (base, low, high) = if prepared {
        (BUILDER_WINDOW, FABRIC_SLOTS, MAX_SLOTS)
    } else {
        (OWN_WINDOW, 0, OWN_TABLES * PER_TABLE)
    };
    let mut tables = NO_TABLES;
    for (index, table) in tables.iter_mut().enumerate().take(high / PER_TABLE) {
        let address = base + (index * PER_TABLE * PAGE_SIZE) as u64;
        *table = paging::lowest_table(address).ok_or(XenError::BadAddress)?;
    }
    PLACE.set(Place { base, low, high, tables });
    Ok(())
}

/// The first half of the builder's window is for the fabric.
pub(crate) const FABRIC_SLOTS: usize = MAX_SLOTS / 2;
/// Most frames of our own grant table: Xen's default limit, 32,768 entries.
pub(crate) const GRANT_TABLE_SLOTS: usize = 64;

/// Pages kept for the registers of a device: the 128 KiB of an 82574, twice.
const DEVICE_SLOTS: usize = 64;

/// Turns our spare pages into lowest tables and hangs them into the second-level table.
fn make_tables() -> Result<(), XenError> {
    for index in 0..OWN_TABLES {
        let address = OWN_WINDOW + (index * PER_TABLE * PAGE_SIZE) as u64;
        let upper = paging::entry(address, 2).ok_or(XenError::BadAddress)?;
        if upper.present() {
            continue;
        }
        let page = OWN.0.as_ptr() as u64 + (index * PAGE_SIZE) as u64;
        let frame = paging::machine_frame(page);
        // SAFETY: Only `OWN` is touched, zero and used for nothing else; it becomes read-only,
        // because a page table must not be writable, and then maps nothing yet.
        unsafe {
            paging::set_leaf(page, paging::leaf(frame, false))?;
            let update = MmuUpdate { ptr: upper.address, val: paging::table(frame) };
            paging::update(&[update], DomId::SELF).map_err(|(_, error)| error)?;
        }
    }
    Ok(())
}

/// Looks at the window without copying its description.
fn place<R>(look: impl FnOnce(&Place) -> R) -> R {
    // SAFETY: One vCPU; `open` alone writes, and `look` does not call it.
    look(unsafe { &*PLACE.as_ptr() })
}

/// The address of a slot.
pub(crate) fn address(slot: usize) -> u64 {
    place(|place| place.base) + (slot * PAGE_SIZE) as u64
}

/// Machine address of the entry that maps a slot.
pub(crate) fn entry_address(slot: usize) -> u64 {
    place(|place| place.tables[slot / PER_TABLE].0) + (slot % PER_TABLE * 8) as u64
}

/// Whether something is mapped in a slot.
pub(crate) fn is_mapped(slot: usize) -> bool {
    let table = place(|place| place.tables[slot / PER_TABLE].1);
    assert!(!table.is_null(), "slot {slot} is beyond the window");
    // SAFETY: One of our page tables, mapped read-only; the index is below 512.
    unsafe { table.add(slot % PER_TABLE).read_volatile() & 1 != 0 }
}

/// The first slot from `from` on in which nothing is mapped, below `end`. Quick, as every life
/// after a microreset looks through its whole view of the fabric.
pub(crate) fn first_empty(from: usize, end: usize) -> Option<usize> {
    let mut slot = from;
    while slot < end {
        let table = place(|place| place.tables[slot / PER_TABLE].1);
        assert!(!table.is_null(), "slot {slot} is beyond the window");
        let last = end.min((slot / PER_TABLE + 1) * PER_TABLE);
        // Eight at a time, as long as something is mapped in all of them.
        while last - slot >= 8 {
            let first = slot % PER_TABLE;
            // SAFETY: As in `is_mapped`: all eight lie before the table's end.
            let entry = |index| unsafe { table.add(first + index).read_volatile() };
            if (0..8).fold(1, |all, index| all & entry(index)) == 0 {
                break;
            }
            slot += 8;
        }
        for index in slot % PER_TABLE..slot % PER_TABLE + (last - slot) {
            // SAFETY: As in `is_mapped`: `index` ends at the table's end.
            if unsafe { table.add(index).read_volatile() } & 1 == 0 {
                return Some(slot / PER_TABLE * PER_TABLE + index);
            }
        }
        slot = last;
    }
    None
}

/// The slots for mappings: first, and one past the last.
pub(crate) fn range() -> (usize, usize) {
    place(|place| (place.low, place.high - GRANT_TABLE_SLOTS - DEVICE_SLOTS))
}

/// The slot of a page of our device's registers: behind those for mappings.
pub(crate) fn device_slot(page: usize) -> usize {
    assert!(page < DEVICE_SLOTS, "page {page} of the device's registers is beyond the window");
    range().1 + page
}

/// The slot of a frame of our own grant table: the last ones of the window.
pub(crate) fn grant_table_slot(frame: usize) -> usize {
    assert!(frame < GRANT_TABLE_SLOTS, "grant table frame {frame} is beyond the window");
    place(|place| place.high) - GRANT_TABLE_SLOTS + frame
}

/// Takes contiguous free slots.
pub(crate) fn allocate(count: usize) -> Result<usize, XenError> {
    let (low, high) = range();
    SLOTS.allocate(low, high, count).ok_or(XenError::WindowFull)
}

/// Gives slots back whose entries are empty again.
pub(crate) fn release(first: usize, count: usize) {
    SLOTS.mark(first, count, false);
}

/// Takes these very slots.
pub(crate) fn claim(first: usize, count: usize) {
    SLOTS.mark(first, count, true);
}

/// Whether somebody owns the slot.
pub(crate) fn is_taken(slot: usize) -> bool {
    SLOTS.is_taken(slot)
}

/// What is mapped, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Whose frames.
    pub(crate) owner: DomId,
    /// Flags of the entries ([`paging::flags`], [`paging::UNCACHED`]).
    pub(crate) flags: u64,
    /// `MMU_*` command.
    pub(crate) command: u64,
}

/// Maps frames from slot `first` on, or none at all.
pub(crate) fn map(
    first: usize,
    frames: impl Iterator<Item = u64>,
    source: Source,
) -> Result<(), XenError> {
    let mut frames = frames;
    let mut slot = first;
    let mut batch = [MmuUpdate::default(); BATCH];
    loop {
        let mut count = 0;
        for (update, frame) in batch.iter_mut().zip(frames.by_ref()) {
            let ptr = entry_address(slot + count) | source.command;
            *update = MmuUpdate { ptr, val: frame << 12 | source.flags };
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        // SAFETY: 1. The window is no Rust memory: it is reached through spans only, and these
        // slots through none now. 2. The entries were empty and flushed, so nothing is cached.
        let result = unsafe { paging::update(&batch[..count], source.owner) };
        if let Err((done, error)) = result {
            unmap(first, slot - first + done);
            return Err(error);
        }
        slot += count;
    }
}

/// Empties the entries of slots that hold foreign mappings (granted ones have their own call).
pub(crate) fn unmap(first: usize, count: usize) {
    let mut batch = [MmuUpdate::default(); BATCH];
    let mut slot = first;
    while slot < first + count {
        let some = (first + count - slot).min(BATCH);
        for (index, update) in batch[..some].iter_mut().enumerate() {
            *update = MmuUpdate { ptr: entry_address(slot + index), val: 0 };
        }
        // SAFETY: 1. As in `map`: whoever used the slots has given them up. 2. Flushed below.
        let result = unsafe { paging::update(&batch[..some], DomId::SELF) };
        result.map_err(|(_, error)| error).expect("emptying an entry of ours is always allowed");
        slot += some;
    }
    if count > 0 {
        paging::flush();
    }
}

/// Gives all slots back, whatever they hold.
pub(crate) fn forget() {
    let (low, high) = range();
    SLOTS.mark(low, high - low, false);
}

/// A window over one table that belongs to the test, in which every slot is mapped.
#[cfg(test)]
pub(crate) fn open_for_test() {
    let table: &'static [u64; PER_TABLE] = Box::leak(Box::new([1; PER_TABLE]));
    let mut tables = NO_TABLES;
    tables[0] = (0, table.as_ptr());
    PLACE.set(Place { base: OWN_WINDOW, low: 0, high: PER_TABLE, tables });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_contiguous_slots() {
        let slots = Slots::new();
        let first = slots.allocate(0, 16, 4).expect("room");
        let second = slots.allocate(0, 16, 4).expect("room");
        assert_eq!((first, second), (0, 4));
        slots.mark(first, 4, false);
        assert_eq!(slots.allocate(0, 16, 8), Some(8));
        assert_eq!(slots.allocate(0, 16, 5), None, "only four are free");
        assert_eq!(slots.allocate(0, 16, 4), Some(0));
        assert_eq!(slots.allocate(0, 16, 1), None);
        assert!(slots.is_taken(15));
    }

    #[test]
    fn marks_exactly_what_it_is_told_across_words() {
        for (first, count) in [(0, 64), (3, 61), (60, 8), (63, 66), (100, 0), (128, 1)] {
            let slots = Slots::new();
            slots.mark(first, count, true);
            let wanted = |slot: &usize| (first..first + count).contains(slot);
            assert!((0..256).all(|slot| slots.is_taken(slot) == wanted(&slot)), "{first} {count}");
            slots.mark(first, count, false);
            assert!((0..256).all(|slot| !slots.is_taken(slot)));
        }
    }

    #[test]
    fn stays_inside_its_bounds() {
        let slots = Slots::new();
        assert_eq!(slots.allocate(100, 102, 3), None);
        assert_eq!(slots.allocate(100, 102, 2), Some(100));
    }
}
