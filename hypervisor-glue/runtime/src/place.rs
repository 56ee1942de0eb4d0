//! Static state that each life of a unikernel takes over whole.

use core::cell::{Cell, UnsafeCell};

use crate::cell::OneCpu;

/// Lives begun so far.
static LIVES: OneCpu<Cell<u64>> = OneCpu::new(Cell::new(0));

/// A life begins: everything that former lives have claimed can be claimed again.
pub(crate) fn begin_life() {
    LIVES.set(LIVES.get() + 1);
}

/// A static place whose content each life may claim once, as the former life left it.
///
/// For plain data only of which any value is a valid one: nothing says in the middle of which
/// change a former life ended. (State with invariants belongs into a [`crate::Survivor`].)
#[derive(Debug)]
pub struct Place<T> {
    claimed_in: Cell<u64>,
    content: UnsafeCell<T>,
}

// SAFETY: One vCPU, no threads (see `OneCpu`).
unsafe impl<T> Sync for Place<T> {}

impl<T: Copy> Place<T> {
    /// A place that holds `content` at first.
    pub const fn new(content: T) -> Self {
        Self { claimed_in: Cell::new(0), content: UnsafeCell::new(content) }
    }

    /// The content, for the rest of this life.
    ///
    /// # Panics
    /// The second time in one life.
    #[expect(clippy::mut_from_ref, reason = "each life's only reference: checked")]
    pub fn claim(&'static self) -> &'static mut T {
        let life = LIVES.get();
        assert!(self.claimed_in.replace(life) != life, "claimed twice in one life");
        // SAFETY: This life claims it once (checked), and a former life's reference is never used
        // again, as its stack was dropped; `T: Copy` has no invariant that an interrupted write
        // could break other than a value's own, which the type's documentation rules out.
        unsafe { &mut *self.content.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_life_claims_once_what_the_former_one_left() {
        static PLACE: Place<u32> = Place::new(5);
        begin_life();
        *PLACE.claim() += 1;
        let twice = std::panic::catch_unwind(|| PLACE.claim());
        assert!(twice.is_err(), "a second claim is refused");
        begin_life();
        assert_eq!(*PLACE.claim(), 6);
    }
}
