//! The page that Xen shares with this domain: upcall bytes, event bits, time.

use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use abi::layout::{TimeInfo, shared_info as offset};

use crate::symbols::ppvmm_shared_info;

/// Words of 64 event channels each: the two-level interface has 4,096 ports.
pub(crate) const WORDS: usize = 64;

fn field<T>(at: usize) -> *mut T {
    (&raw mut ppvmm_shared_info).cast::<u8>().wrapping_add(at).cast()
}

/// The byte by which Xen says that an unmasked event is pending.
pub(crate) fn upcall_pending() -> &'static AtomicU8 {
    // SAFETY: In the static page, aligned; Xen and we access it atomically.
    unsafe { AtomicU8::from_ptr(field(offset::UPCALL_PENDING)) }
}

/// The byte that masks upcalls.
pub(crate) fn upcall_mask() -> &'static AtomicU8 {
    // SAFETY: As above.
    unsafe { AtomicU8::from_ptr(field(offset::UPCALL_MASK)) }
}

/// One bit per word of pending bits.
pub(crate) fn selector() -> &'static AtomicU64 {
    // SAFETY: As above.
    unsafe { AtomicU64::from_ptr(field(offset::PENDING_SELECTOR)) }
}

/// The pending bits.
pub(crate) fn pending() -> &'static [AtomicU64; WORDS] {
    // SAFETY: As above; an array of atomics has the layout of the array of words.
    unsafe { &*field::<[AtomicU64; WORDS]>(offset::PENDING) }
}

/// The mask bits, written by this domain alone.
pub(crate) fn mask() -> &'static [AtomicU64; WORDS] {
    // SAFETY: As above.
    unsafe { &*field::<[AtomicU64; WORDS]>(offset::MASK) }
}

/// The address that the last page fault was about.
pub(crate) fn fault_address() -> u64 {
    // SAFETY: As above.
    unsafe { AtomicU64::from_ptr(field(offset::CR2)) }.load(Ordering::Relaxed)
}

/// The version word of the time record: odd while Xen changes it.
pub(crate) fn time_version() -> u32 {
    // SAFETY: As above.
    unsafe { AtomicU32::from_ptr(field(offset::TIME)) }.load(Ordering::Acquire)
}

/// The time record, perhaps torn: compare the version before and after.
pub(crate) fn time() -> TimeInfo {
    // SAFETY: In the static page, aligned, and any bytes make a valid record; volatile because
    // Xen may write it meanwhile.
    unsafe { ptr::read_volatile(field::<TimeInfo>(offset::TIME)) }
}
