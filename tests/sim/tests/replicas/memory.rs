//! Memory whose writer dies after a given number of stores.

use std::cell::Cell;
use std::rc::Rc;

use fabric::{HeapMemory, SharedMemory};

/// How many more stores of at most eight bytes reach memory; shared by all that one replica writes.
#[derive(Clone, Debug)]
pub struct Budget(Rc<Cell<u64>>);

impl Budget {
    pub fn unlimited() -> Self {
        Self(Rc::new(Cell::new(u64::MAX)))
    }

    pub fn limit(&self, stores: u64) {
        self.0.set(stores);
    }

    pub fn is_exhausted(&self) -> bool {
        self.0.get() == 0
    }

    fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// Memory behind a budget: stores beyond it are lost, as if the domain had died.
#[derive(Clone, Debug)]
pub struct Mortal {
    memory: HeapMemory,
    budget: Budget,
}

impl Mortal {
    pub fn new(memory: &HeapMemory, budget: &Budget) -> Self {
        Self { memory: memory.clone(), budget: budget.clone() }
    }
}

impl SharedMemory for Mortal {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (index, chunk) in from.chunks(8).enumerate() {
            if self.budget.take() {
                self.memory.write(offset + index * 8, chunk);
            }
        }
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        if self.budget.take() {
            self.memory.fill(offset, len, value);
        }
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        if self.budget.take() {
            self.memory.store_u32(offset, value);
        }
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        if self.budget.take() {
            self.memory.store_u64(offset, value);
        }
    }
}
