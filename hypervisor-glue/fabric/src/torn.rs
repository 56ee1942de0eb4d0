//! A memory whose writer dies between two stores: how tests try a crash at every instant.

use alloc::rc::Rc;
use core::cell::Cell;

use crate::SharedMemory;

/// Passes on the first `stores` stores and drops every later one, as if the writer's domain had
/// been stopped there. One byte of a copy and one word each count as a store: a copy may be cut at
/// any byte. Clones share the count.
#[derive(Clone, Debug)]
pub struct TornMemory<M> {
    memory: M,
    left: Rc<Cell<u64>>,
    made: Rc<Cell<u64>>,
}

impl<M: SharedMemory> TornMemory<M> {
    /// A writer of `memory` that dies after `stores` stores (`u64::MAX`: it lives).
    pub fn new(memory: M, stores: u64) -> Self {
        Self { memory, left: Rc::new(Cell::new(stores)), made: Rc::new(Cell::new(0)) }
    }

    /// Stores that reached the memory so far.
    pub fn stores(&self) -> u64 {
        self.made.get()
    }

    fn store(&self) -> bool {
        let left = self.left.get();
        if left == 0 {
            return false;
        }
        self.left.set(left - 1);
        self.made.set(self.made.get() + 1);
        true
    }
}

impl<M: SharedMemory> SharedMemory for TornMemory<M> {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (at, byte) in (offset..).zip(from) {
            if self.store() {
                self.memory.write(at, core::slice::from_ref(byte));
            }
        }
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        for at in offset..offset + len {
            if self.store() {
                self.memory.fill(at, 1, value);
            }
        }
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        if self.store() {
            self.memory.store_u32(offset, value);
        }
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        if self.store() {
            self.memory.store_u64(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;

    #[test]
    fn later_stores_are_dropped() {
        let memory = HeapMemory::new(16);
        let torn = TornMemory::new(&memory, 3);
        torn.write(0, &[1, 2]);
        torn.store_u64(8, 9);
        torn.write(2, &[3]);
        assert_eq!(torn.stores(), 3);
        let mut bytes = [0; 3];
        torn.read(0, &mut bytes);
        assert_eq!((bytes, memory.load_u64(8)), ([1, 2, 0], 9));
    }
}
