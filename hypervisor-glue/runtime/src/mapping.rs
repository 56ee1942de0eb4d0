//! Memory of other domains, mapped here, as owned values.

use core::ptr;

use abi::{PAGE_SIZE, XenError};

use crate::span::{Span, shared_by_span};
use crate::window::Source;
use crate::{grants, window};

/// Pages of another domain in this domain's window, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    span: Span,
    first: usize,
    count: usize,
    granted: bool,
}

shared_by_span!(Mapping);

impl Mapping {
    /// Maps frames, contiguous, in their order.
    pub(crate) fn make(
        frames: impl ExactSizeIterator<Item = u64>,
        source: Source,
    ) -> Result<Self, XenError> {
        let count = frames.len();
        let first = window::allocate(count)?;
        if let Err(error) = window::map(first, frames, source) {
            window::release(first, count);
            return Err(error);
        }
        // SAFETY: Just mapped into slots of our own.
        Ok(unsafe { Self::new(first, count, false) })
    }

    /// Takes over `count` mapped slots from `first` on.
    ///
    /// # Safety
    /// The slots must be mapped, by a grant when `granted`, and belong to nobody else.
    pub(crate) unsafe fn new(first: usize, count: usize, granted: bool) -> Self {
        let base = ptr::with_exposed_provenance_mut(window::address(first) as usize);
        // SAFETY: 1. Mapped until `drop`, which ends all use: the span never leaves this value.
        // 2. The window holds no Rust objects. 3. Slots are page-aligned.
        let span = unsafe { Span::new(base, count * PAGE_SIZE) };
        Self { span, first, count, granted }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.granted {
            grants::unmap(self.first, self.count);
        } else {
            window::unmap(self.first, self.count);
            window::release(self.first, self.count);
        }
    }
}

/// Pages of the fabric: in the orchestrator the pages themselves, in a service its view of them.
/// They stay where they are for the life of the domain, so copies are free.
#[derive(Clone, Copy, Debug)]
pub struct FabricMemory {
    span: Span,
}

shared_by_span!(FabricMemory);

impl FabricMemory {
    /// Wraps the span.
    pub(crate) fn new(span: Span) -> Self {
        Self { span }
    }

    /// The `len` bytes from `offset`, which must be a multiple of 8.
    pub fn part(&self, offset: usize, len: usize) -> Self {
        Self { span: self.span.part(offset, len) }
    }

    /// Its address here, for the entry of a grant table.
    pub(crate) fn address(&self) -> usize {
        self.span.address()
    }
}

/// Unmaps everything in the window: its owners are gone.
pub(crate) fn drop_all() {
    grants::unmap_all();
    let (low, high) = window::range();
    for slot in low..high {
        if window::is_taken(slot) {
            window::unmap(slot, 1);
            window::release(slot, 1);
        }
    }
}
