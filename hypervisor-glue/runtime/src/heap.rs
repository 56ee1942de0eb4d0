//! The heap: talc over the memory that the domain does not need otherwise.
//!
//! A life may end in the middle of an allocation. The allocator says so at the start of the next
//! life ([`was_interrupted`]); its memory is then started afresh, and every [`crate::Survivor`]
//! notices by the heap's generation.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering, compiler_fence};

use talc::{ErrOnOom, Span, Talc};

use crate::cell::OneCpu;

static HEAP: OneCpu<UnsafeCell<Talc<ErrOnOom>>> = OneCpu::new(UnsafeCell::new(Talc::new(ErrOnOom)));
/// An allocator operation is under way.
static BUSY: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));
/// The life before this one ended inside the allocator.
static INTERRUPTED: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));
static SEALED: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));
/// Counts how often the heap was started; 0: never.
static GENERATION: OneCpu<Cell<u64>> = OneCpu::new(Cell::new(0));
/// Where the heap lies.
static RANGE: OneCpu<Cell<(u64, u64)>> = OneCpu::new(Cell::new((0, 0)));
/// Whether this life has allocated anything.
static USED: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));
static FREE: OneCpu<Cell<usize>> = OneCpu::new(Cell::new(0));
static SIZE: OneCpu<Cell<usize>> = OneCpu::new(Cell::new(0));

/// The allocator of every unikernel. (Public so that it counts as used where processes, which
/// have their own, are checked.)
#[doc(hidden)]
#[derive(Debug)]
pub struct Allocator;

#[cfg(target_os = "none")]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Whether the life before this one ended inside the allocator.
pub fn was_interrupted() -> bool {
    INTERRUPTED.get()
}

/// Bytes that are neither allocated nor spent on bookkeeping of what is, about.
pub fn free_bytes() -> usize {
    FREE.get()
}

/// Bytes of the heap.
pub fn size_bytes() -> usize {
    SIZE.get()
}

/// From now on an allocation is a bug, and panics. For the orchestrator: nothing it does after its
/// start may fail for want of memory.
pub(crate) fn seal() {
    SEALED.set(true);
}

/// Counts how often the heap was started.
pub(crate) fn generation() -> u64 {
    GENERATION.get()
}

/// Looks at what a former life left; call once at the start of a life.
pub(crate) fn look_back() {
    INTERRUPTED.set(BUSY.get());
    USED.set(false);
}

/// Starts the heap afresh over `[start, end)`. Everything allocated before is forgotten.
///
/// # Safety
/// 1. The range must be mapped, writable, and used for nothing else.
/// 2. Nothing allocated before may be used any more.
pub(crate) unsafe fn start(start: u64, end: u64) {
    BUSY.set(false);
    SEALED.set(false);
    RANGE.set((start, end));
    GENERATION.set(GENERATION.get() + 1);
    let len = end.saturating_sub(start) as usize;
    FREE.set(len);
    SIZE.set(len);
    // SAFETY: One vCPU, and no allocation is under way (condition 2). The old allocator is not
    // dropped, only overwritten: what it refers to may be damaged.
    unsafe {
        HEAP.get().write(Talc::new(ErrOnOom));
        let base = ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // A range too small for talc's tables leaves a heap without memory.
        let _ = (*HEAP.get()).claim(Span::from_base_size(base, len));
    }
}

/// Starts the heap afresh where it is: nothing that former lives allocated is used by this one.
///
/// # Panics
/// When this life has allocated something.
pub(crate) fn start_afresh() {
    assert!(!USED.get(), "the heap cannot start afresh: this life uses it already");
    let (begin, end) = RANGE.get();
    // SAFETY: 1. The same range as before. 2. This life has allocated nothing, and reaches what
    // former lives allocated only through survivors, which are lost by the heap's new generation.
    unsafe { start(begin, end) }
}

/// Runs one allocator operation, marked as under way.
fn marked<R>(operation: impl FnOnce(&mut Talc<ErrOnOom>) -> R) -> R {
    BUSY.set(true);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: One vCPU; the allocator calls nothing back and upcalls never run inside it.
    let result = operation(unsafe { &mut *HEAP.get() });
    compiler_fence(Ordering::SeqCst);
    BUSY.set(false);
    result
}

fn account(taken: usize, given: usize) {
    FREE.set((FREE.get() + given).saturating_sub(taken));
}

// SAFETY: talc implements the contract; `marked` gives exclusive access.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert!(!SEALED.get(), "allocation of {} bytes after the heap was sealed", layout.size());
        // SAFETY: The layout's size is not zero (contract of `GlobalAlloc`).
        let block = marked(|talc| unsafe { talc.malloc(layout) });
        USED.set(true);
        account(layout.size(), 0);
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        account(0, layout.size());
        // SAFETY: `block` was allocated with this layout, so it is not null (contract).
        marked(|talc| unsafe { talc.free(NonNull::new_unchecked(block), layout) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        assert!(!SEALED.get(), "allocation of {size} bytes after the heap was sealed");
        account(size, layout.size());
        // SAFETY: As in `dealloc`; `size` is not zero and fits the alignment (contract).
        let moved = marked(|talc| unsafe {
            let block = NonNull::new_unchecked(block);
            if size < layout.size() {
                talc.shrink(block, layout, size);
                Ok(block)
            } else {
                talc.grow(block, layout, size)
            }
        });
        moved.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}
