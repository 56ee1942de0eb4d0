//! Memory whose writer dies after a given number of stores.

use std::cell::Cell;
use std::rc::Rc;

use fabric::SharedMemory;

/// How many more stores of at most eight bytes reach memory.
#[derive(Clone, Debug)]
pub struct Budget {
    left: Rc<Cell<u64>>,
    used: Rc<Cell<u64>>,
}

impl Budget {
    pub fn unlimited() -> Self {
        Self { left: Rc::new(Cell::new(u64::MAX)), used: Rc::new(Cell::new(0)) }
    }

    pub fn refill(&self) {
        self.limit(u64::MAX);
    }

    pub fn limit(&self, stores: u64) {
        self.left.set(stores);
        self.used.set(0);
    }

    /// Stores since the last limit, those that were lost among them.
    pub fn used(&self) -> u64 {
        self.used.get()
    }

    pub fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }

    fn take(&self) -> bool {
        self.used.set(self.used.get() + 1);
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

/// Memory behind a budget of stores: those beyond it are lost, as if the domain had died.
#[derive(Clone, Debug)]
pub struct Crashing<M> {
    memory: M,
    budget: Budget,
}

impl<M> Crashing<M> {
    pub fn new(memory: M, budget: Budget) -> Self {
        Self { memory, budget }
    }
}

impl<M: SharedMemory> SharedMemory for Crashing<M> {
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
