//! State of the one vCPU.

use core::ops::Deref;

/// A static value that only the unikernel's one vCPU touches.
///
/// Upcalls come only inside a few assembly windows (see `upcall`), so code that runs from an
/// upcall is ordinary nested code: a `Cell` suffices, and nothing here ever needs a lock.
pub(crate) struct OneCpu<T>(T);

impl<T> OneCpu<T> {
    /// Wraps the value.
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for OneCpu<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: A unikernel has one vCPU and no threads; on other targets the crate is only checked
// and its pure parts tested.
unsafe impl<T> Sync for OneCpu<T> {}
