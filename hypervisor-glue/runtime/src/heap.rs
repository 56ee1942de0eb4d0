//! The heap: talc over the memory that the domain does not need otherwise, with lists of small
//! blocks before it.
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
use crate::small::{Class, SmallBlocks};

/// The allocator's own state.
struct Heap {
    general: Talc<ErrOnOom>,
    small: SmallBlocks,
}

impl Heap {
    const fn new() -> Self {
        Self { general: Talc::new(ErrOnOom), small: SmallBlocks::new() }
    }

    /// Takes a block; null if there is no memory.
    ///
    /// # Safety
    /// The layout's size must not be zero.
    #[inline]
    unsafe fn take(&mut self, layout: Layout) -> *mut u8 {
        let Self { general, small } = self;
        let mut general = |layout| {
            // SAFETY: The caller's condition; a run's size is not zero either.
            unsafe { general.malloc(layout) }.map_or(ptr::null_mut(), NonNull::as_ptr)
        };
        match Class::of(layout) {
            // SAFETY: What the general allocator gives belongs to nobody else, and who gives a
            // block back uses it no more.
            Some(class) => unsafe { small.take(class, general) },
            None => general(layout),
        }
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// It must have been taken with this layout, and must not be used any more.
    #[inline]
    unsafe fn give(&mut self, block: *mut u8, layout: Layout) {
        match Class::of(layout) {
            // SAFETY: The caller's condition.
            Some(class) => unsafe { self.small.give(class, block) },
            // SAFETY: The caller's condition; a block that was taken is not null.
            None => unsafe { self.general.free(NonNull::new_unchecked(block), layout) },
        }
    }

    /// Makes a block longer or shorter, at another place if need be; null if there is no memory.
    ///
    /// # Safety
    /// As for [`Self::give`], if the answer is not null; `size` must not be zero.
    unsafe fn resize(&mut self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: The alignment is that of a layout, and `size` fits it (contract of `realloc`).
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Class::of(layout), Class::of(wanted)) {
            (None, None) => {
                // SAFETY: The block is the general allocator's, with this layout, so not null.
                unsafe {
                    let block = NonNull::new_unchecked(block);
                    if size < layout.size() {
                        self.general.shrink(block, layout, size);
                        return block.as_ptr();
                    }
                    self.general.grow(block, layout, size).map_or(ptr::null_mut(), NonNull::as_ptr)
                }
            }
            (old, new) if old == new => block,
            _ => {
                // SAFETY: Two blocks, each at least as long as what is copied; the old one is given
                // back with its layout.
                unsafe {
                    let moved = self.take(wanted);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, size.min(layout.size()));
                        self.give(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

static HEAP: OneCpu<UnsafeCell<Heap>> = OneCpu::new(UnsafeCell::new(Heap::new()));
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
        HEAP.get().write(Heap::new());
        let base = ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // A range too small for talc's tables leaves a heap without memory.
        let _ = (*HEAP.get()).general.claim(Span::from_base_size(base, len));
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
fn marked<R>(operation: impl FnOnce(&mut Heap) -> R) -> R {
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

// SAFETY: talc and the lists implement the contract; `marked` gives exclusive access.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert!(!SEALED.get(), "allocation of {} bytes after the heap was sealed", layout.size());
        // SAFETY: The layout's size is not zero (contract of `GlobalAlloc`).
        let block = marked(|heap| unsafe { heap.take(layout) });
        USED.set(true);
        account(layout.size(), 0);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        account(0, layout.size());
        // SAFETY: `block` was allocated with this layout (contract).
        marked(|heap| unsafe { heap.give(block, layout) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        assert!(!SEALED.get(), "allocation of {size} bytes after the heap was sealed");
        account(size, layout.size());
        // SAFETY: As in `dealloc`; `size` is not zero and fits the alignment (contract).
        marked(|heap| unsafe { heap.resize(block, layout, size) })
    }
}
