//! Pages of our own that are used as shared memory is: those of the fabric in the orchestrator's
//! image, and those that a service keeps aside.

use core::cell::UnsafeCell;
use core::ptr;

use abi::PAGE_SIZE;

use crate::mapping::FabricMemory;
use crate::span::Span;
use crate::symbols::UNIKERNEL;
use crate::window;

/// Pages of the image. The orchestrator grants them to the units: its fabric, made by
/// [`crate::orchestrator!`].
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct FabricPages<const PAGES: usize>(UnsafeCell<[[u8; PAGE_SIZE]; PAGES]>);

// SAFETY: The pages are reached through spans only, which tolerate other writers.
unsafe impl<const PAGES: usize> Sync for FabricPages<PAGES> {}

impl<const PAGES: usize> FabricPages<PAGES> {
    /// Pages of zeros, as the image's uninitialised data is.
    #[allow(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([[0; PAGE_SIZE]; PAGES]))
    }

    /// All of them.
    pub const fn range(&'static self) -> FabricRange {
        FabricRange { base: self.0.get().cast(), pages: PAGES }
    }
}

/// Where the fabric lies.
#[derive(Clone, Copy, Debug)]
pub struct FabricRange {
    base: *mut u8,
    pages: usize,
}

// SAFETY: Only an address.
unsafe impl Sync for FabricRange {}

impl FabricRange {
    /// No fabric: a service's.
    pub const NONE: Self = Self { base: ptr::null_mut(), pages: 0 };
}

/// The orchestrator's fabric.
pub(crate) fn memory() -> FabricMemory {
    let FabricRange { base, pages } = UNIKERNEL.fabric;
    // SAFETY: 1. A static. 2. Its `UnsafeCell` is never borrowed. 3. Page-aligned.
    FabricMemory::new(unsafe { Span::new(base, pages * PAGE_SIZE) })
}

/// The `pages` pages at this address.
///
/// # Safety
/// 1. They must be mapped writable for the life of the domain.
/// 2. No Rust object may ever lie in them.
/// 3. The address must be that of a page.
pub(crate) unsafe fn memory_at(address: u64, pages: usize) -> FabricMemory {
    let base = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: The caller's conditions.
    FabricMemory::new(unsafe { Span::new(base, pages * PAGE_SIZE) })
}

/// A service's view: the first `count` pages of the window.
pub(crate) fn view(count: usize) -> FabricMemory {
    // SAFETY: 1. Fabric pages are mapped for the life of the domain. 2. The window holds no Rust
    // objects. 3. Page-aligned.
    unsafe { memory_at(window::address(0), count) }
}
