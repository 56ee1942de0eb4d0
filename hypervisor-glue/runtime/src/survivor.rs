//! State that outlives a microreset.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{Ordering, compiler_fence};

use crate::cell::OneCpu;
use crate::{grants, heap};

/// Some survivor is being changed: what this life holds is not to be trusted by the next one.
static CHANGING: OneCpu<Cell<bool>> = OneCpu::new(Cell::new(false));

/// Whether a life ended while it changed a survivor.
pub(crate) fn was_changing() -> bool {
    CHANGING.get()
}

/// A new life begins.
pub(crate) fn settle() {
    CHANGING.set(false);
}

/// A static place for state that is still there after a microreset, when it can be trusted.
///
/// It can when the former life ended neither inside [`Survivor::with`], of any survivor, nor inside
/// the allocator: all survivors are lost together, so that they agree, and so that nothing damaged
/// is ever dropped (a lost state's memory comes back because the heap starts afresh).
///
/// What a life owns outside of its survivors (allocations, mappings) leaks when it ends and state
/// is kept: map and allocate inside of [`Survivor::with`].
#[derive(Debug)]
pub struct Survivor<T> {
    /// The heap's generation when the state was put in; another one: there is no state.
    generation: Cell<u64>,
    borrowed: Cell<bool>,
    state: UnsafeCell<Option<T>>,
}

// SAFETY: One vCPU, no threads (see `OneCpu`).
unsafe impl<T> Sync for Survivor<T> {}

impl<T> Survivor<T> {
    /// An empty place.
    pub const fn new() -> Self {
        Self { generation: Cell::new(0), borrowed: Cell::new(false), state: UnsafeCell::new(None) }
    }

    /// Puts the state in; whatever was there before is dropped, or forgotten if not trusted.
    pub fn put(&'static self, state: T) {
        let former = self.present();
        // A borrow of what is not present is that of a life that has ended.
        assert!(!(former && self.borrowed.get()), "state replaced while in use");
        self.borrowed.set(false);
        changing(|| {
            // SAFETY: Nobody borrows the state (checked). A former state that is not of this
            // generation is overwritten without being looked at.
            unsafe {
                if !former {
                    self.state.get().write(None);
                }
                *self.state.get() = Some(state);
            }
            self.generation.set(heap::generation());
        });
    }

    /// Whether a former life left state that can be trusted. Call it once, at the start of a life.
    pub fn recover(&'static self) -> bool {
        self.borrowed.set(false);
        self.present()
    }

    /// As [`Survivor::recover`], for state that tells by itself whether a change was interrupted:
    /// it is judged by `is_whole`, and changed by [`Survivor::modify`]. When it is not whole, all
    /// that former lives left in memory is forgotten, the heap starts afresh, and what they mapped
    /// waits to be mapped again or dropped, as after a microreboot.
    ///
    /// # Panics
    /// When this life has allocated something already; it must not have mapped anything either.
    pub fn recover_if(&'static self, is_whole: impl FnOnce(&T) -> bool) -> bool {
        if !self.recover() {
            return false;
        }
        let whole = self.read(is_whole);
        if !whole {
            // What it owned has no owner any more.
            grants::disown();
            heap::start_afresh();
        }
        whole
    }

    /// Works on state that is recovered by [`Survivor::recover_if`]: a life that ends in here
    /// leaves it to the next one, which asks the state itself whether it is whole.
    pub fn modify<R>(&'static self, change: impl FnOnce(&mut T) -> R) -> R {
        let _guard = self.borrow();
        // SAFETY: As in `with`.
        let state = unsafe { (*self.state.get()).as_mut() }.expect("state was put in");
        change(state)
    }

    /// Works on the state. A life that ends in here leaves nothing to trust.
    ///
    /// Keep the time inside short where a crash should leave RAM state behind: read with
    /// [`Survivor::read`], change with this.
    pub fn with<R>(&'static self, change: impl FnOnce(&mut T) -> R) -> R {
        let _guard = self.borrow();
        // SAFETY: The guard is the only one, so this is the only reference.
        let state = unsafe { (*self.state.get()).as_mut() }.expect("state was put in");
        changing(|| change(state))
    }

    /// Looks at the state. A life that ends in here leaves the state to the next one.
    pub fn read<R>(&'static self, look: impl FnOnce(&T) -> R) -> R {
        let _guard = self.borrow();
        // SAFETY: As in `with`.
        look(unsafe { (*self.state.get()).as_ref() }.expect("state was put in"))
    }

    fn present(&self) -> bool {
        // SAFETY: Nobody changes the state now; of another generation it is not looked at.
        self.generation.get() == heap::generation() && unsafe { (*self.state.get()).is_some() }
    }

    fn borrow(&'static self) -> Guard {
        assert!(!self.borrowed.replace(true), "state used while in use");
        assert!(self.generation.get() == heap::generation(), "state of a former life");
        Guard(&self.borrowed)
    }
}

impl<T> Default for Survivor<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Marks everything as not to be trusted while `change` runs (nested changes end with the
/// outermost).
fn changing<R>(change: impl FnOnce() -> R) -> R {
    let outer = CHANGING.replace(true);
    compiler_fence(Ordering::SeqCst);
    let result = change();
    compiler_fence(Ordering::SeqCst);
    CHANGING.set(outer);
    result
}

struct Guard(&'static Cell<bool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// All survivors share one heap, so tests of them take turns.
#[cfg(test)]
pub(crate) fn take_turns() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_ended_inside_a_change_borrows_nothing_from_the_next() {
        let _turn = take_turns();
        static PLACE: Survivor<u32> = Survivor::new();
        PLACE.borrowed.set(true);
        PLACE.put(7);
        assert_eq!(PLACE.read(|state| *state), 7);
    }

    #[test]
    fn state_is_there_until_the_heap_starts_afresh() {
        let _turn = take_turns();
        static PLACE: Survivor<u32> = Survivor::new();
        PLACE.put(7);
        PLACE.with(|state| *state += 1);
        assert!(!was_changing());
        assert!(PLACE.recover());
        assert_eq!(PLACE.read(|state| *state), 8);
        PLACE.with(|_| assert!(was_changing()));
    }
}
