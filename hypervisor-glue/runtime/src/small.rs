//! Small blocks: lists of free ones, by size, before the general allocator.
//!
//! What a recovery does first is to allocate: a node of the store takes two small blocks, a watch
//! some more. The general allocator needs more than a hundred instructions for each, a list ten; so
//! the time between a fault and the next answer depends on them. Blocks of a size stay of that
//! size: a unit holds as many as it once needed at the same time.

use core::alloc::Layout;
use core::ptr;

/// Sizes are multiples of this, and all blocks are aligned to it.
const STEP: usize = 16;

/// Kinds of blocks, up to 256 bytes: nodes, watches, the text in them. Beyond that, copying costs
/// more than allocating.
const CLASSES: usize = 16;

/// Bytes asked for at once when a list is empty. All classes together leave at most 32 KiB unused,
/// little beside the megabytes of a service's heap.
const RUN_LEN: usize = 2048;

/// The blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(usize);

impl Class {
    /// That of a layout; `None` if it is none of the small ones.
    #[inline]
    pub(crate) fn of(layout: Layout) -> Option<Self> {
        let class = layout.size().div_ceil(STEP).wrapping_sub(1);
        (class < CLASSES && layout.align() <= STEP).then_some(Self(class))
    }

    fn len(self) -> usize {
        (self.0 + 1) * STEP
    }
}

/// Free blocks, each with the address of the next one in its first word.
#[derive(Debug)]
pub(crate) struct SmallBlocks {
    free: [*mut u8; CLASSES],
}

impl SmallBlocks {
    /// No blocks.
    pub(crate) const fn new() -> Self {
        Self { free: [ptr::null_mut(); CLASSES] }
    }

    /// Takes a block of this class. If there is none, memory comes from `more`, which answers null
    /// when there is no more; then so does this.
    ///
    /// # Safety
    /// 1. What `more` answers must be memory of that layout that nobody else uses.
    /// 2. Blocks that were given back must not be used any more.
    #[inline]
    pub(crate) unsafe fn take(
        &mut self,
        class: Class,
        more: impl FnMut(Layout) -> *mut u8,
    ) -> *mut u8 {
        let block = self.free[class.0];
        if block.is_null() {
            // SAFETY: The same conditions.
            return unsafe { self.refill(class, more) };
        }
        // SAFETY: A free block is ours (condition 2), aligned, and begins with the next one's
        // address.
        self.free[class.0] = unsafe { block.cast::<*mut u8>().read() };
        block
    }

    /// Gives a block back.
    ///
    /// # Safety
    /// It must have been taken from here, with this class, and must not be used any more.
    #[inline]
    pub(crate) unsafe fn give(&mut self, class: Class, block: *mut u8) {
        // SAFETY: The block is ours from now on, aligned, and longer than an address.
        unsafe { block.cast::<*mut u8>().write(self.free[class.0]) };
        self.free[class.0] = block;
    }

    /// Gets a run of blocks and answers its first one.
    ///
    /// # Safety
    /// As for [`Self::take`].
    #[cold]
    unsafe fn refill(&mut self, class: Class, mut more: impl FnMut(Layout) -> *mut u8) -> *mut u8 {
        let count = RUN_LEN / class.len();
        let layout = |count| {
            Layout::from_size_align(count * class.len(), STEP).expect("a small, aligned run")
        };
        let run = more(layout(count));
        if run.is_null() {
            // Memory is nearly exhausted: one block may still be found.
            return more(layout(1));
        }
        for number in (1..count).rev() {
            // SAFETY: The run has `count` blocks, all of which are ours (condition 1).
            unsafe { self.give(class, run.add(number * class.len())) };
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn classes_are_for_small_layouts() {
        assert_eq!(Class::of(layout(1, 1)), Some(Class(0)));
        assert_eq!(Class::of(layout(16, 16)), Some(Class(0)));
        assert_eq!(Class::of(layout(17, 8)), Some(Class(1)));
        assert_eq!(Class::of(layout(256, 8)), Some(Class(15)));
        assert_eq!(Class::of(layout(257, 8)), None);
        assert_eq!(Class::of(layout(16, 32)), None);
        assert_eq!(Class::of(layout(0, 1)), None);
    }

    #[test]
    fn blocks_are_aligned_and_never_overlap() {
        let mut small = SmallBlocks::new();
        let mut taken: BTreeMap<usize, (usize, Class)> = BTreeMap::new();
        // SAFETY: The system's allocator gives memory of its own; it is left to the process.
        let more = |layout| unsafe { std::alloc::alloc(layout) };
        for turn in 0..4000usize {
            let size = turn * 37 % 256 + 1;
            let class = Class::of(layout(size, 8)).unwrap();
            // SAFETY: Blocks given back below are forgotten.
            let block = unsafe { small.take(class, more) };
            let at = block as usize;
            assert_eq!(at % STEP, 0);
            let before = taken.range(..=at).next_back();
            assert!(before.is_none_or(|(start, (size, _))| start + size <= at), "turn {turn}");
            let after = taken.range(at..).next();
            assert!(after.is_none_or(|(start, _)| at + size <= *start), "turn {turn}");
            // SAFETY: The block has `size` bytes of ours.
            unsafe { block.write_bytes(0xee, size) };
            taken.insert(at, (size, class));
            if turn % 3 == 0 {
                let (at, (_, class)) = taken.pop_first().unwrap();
                // SAFETY: It was taken above with this class, and is forgotten.
                unsafe { small.give(class, ptr::with_exposed_provenance_mut(at)) };
            }
        }
    }

    #[test]
    fn a_block_comes_back_and_no_memory_is_null() {
        let mut small = SmallBlocks::new();
        let class = Class::of(layout(100, 8)).unwrap();
        // SAFETY: The system's allocator gives memory of its own; it is left to the process.
        let block = unsafe { small.take(class, |layout| std::alloc::alloc(layout)) };
        // SAFETY: Just taken.
        unsafe { small.give(class, block) };
        // SAFETY: Nothing is asked for.
        let again = unsafe { small.take(class, |_| unreachable!("there is a free block")) };
        assert_eq!(again, block);
        let other = Class::of(layout(10, 8)).unwrap();
        let mut asked = Vec::new();
        // SAFETY: There is no memory.
        let none = unsafe {
            small.take(other, |layout| {
                asked.push(layout.size());
                ptr::null_mut()
            })
        };
        assert!(none.is_null());
        assert_eq!(asked, [RUN_LEN, STEP]);
    }
}
