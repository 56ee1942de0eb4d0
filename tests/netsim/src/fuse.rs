//! The instant of a crash.

use std::cell::Cell;
use std::rc::Rc;

use drivers::fake::FakeNic;
use drivers::{Registers, Window};
use fabric::{HeapMemory, SharedMemory};

/// Counts the stores of one life of net-uk; when it blows, every later store is lost.
#[derive(Clone, Debug)]
pub struct Fuse {
    left: Rc<Cell<u64>>,
}

impl Fuse {
    /// A fuse that does not blow until it is set.
    pub fn new() -> Self {
        Self { left: Rc::new(Cell::new(u64::MAX)) }
    }

    /// Blows after so many stores.
    pub fn set(&self, stores: u64) {
        self.left.set(stores);
    }

    /// Whether it has blown.
    pub fn is_blown(&self) -> bool {
        self.left.get() == 0
    }

    /// Whether one more store is made.
    pub fn store(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

impl Default for Fuse {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory behind a fuse. A copy can be cut at any multiple of four bytes.
#[derive(Clone, Debug)]
pub(crate) struct Fused {
    memory: HeapMemory,
    fuse: Fuse,
}

impl Fused {
    pub(crate) fn new(memory: HeapMemory, fuse: &Fuse) -> Self {
        Self { memory, fuse: fuse.clone() }
    }
}

impl SharedMemory for Fused {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (number, chunk) in from.chunks(4).enumerate() {
            if self.fuse.store() {
                self.memory.write(offset + 4 * number, chunk);
            }
        }
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        if self.fuse.store() {
            self.memory.fill(offset, len, value);
        }
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        if self.fuse.store() {
            self.memory.store_u32(offset, value);
        }
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        if self.fuse.store() {
            self.memory.store_u64(offset, value);
        }
    }
}

/// The NIC's registers behind a fuse.
#[derive(Clone, Debug)]
pub(crate) struct FusedNic {
    pub nic: FakeNic,
    pub fuse: Fuse,
}

impl Registers for FusedNic {
    fn read8(&mut self, window: Window, offset: u32) -> u8 {
        if self.fuse.is_blown() { 0xff } else { self.nic.read8(window, offset) }
    }

    fn read16(&mut self, window: Window, offset: u32) -> u16 {
        if self.fuse.is_blown() { 0xffff } else { self.nic.read16(window, offset) }
    }

    fn read32(&mut self, window: Window, offset: u32) -> u32 {
        if self.fuse.is_blown() { u32::MAX } else { self.nic.read32(window, offset) }
    }

    fn write8(&mut self, window: Window, offset: u32, value: u8) {
        if self.fuse.store() {
            self.nic.write8(window, offset, value);
        }
    }

    fn write16(&mut self, window: Window, offset: u32, value: u16) {
        if self.fuse.store() {
            self.nic.write16(window, offset, value);
        }
    }

    fn write32(&mut self, window: Window, offset: u32, value: u32) {
        if self.fuse.store() {
            self.nic.write32(window, offset, value);
        }
    }
}
