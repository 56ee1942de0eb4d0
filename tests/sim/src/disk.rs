//! Fabric memory whose writer may die between any two stores, and whose bits may flip.

use std::cell::Cell;
use std::rc::Rc;

use fabric::{HeapMemory, SharedMemory};

/// Bytes that the writer still gets to store before it dies.
#[derive(Debug)]
pub struct Fuse {
    left: Cell<Option<u64>>,
    blown: Cell<bool>,
}

impl Fuse {
    /// One that does not burn.
    pub fn new() -> Rc<Self> {
        Rc::new(Self { left: Cell::new(None), blown: Cell::new(false) })
    }

    /// Lets it blow after `bytes` more bytes.
    pub fn light(&self, bytes: u64) {
        self.left.set(Some(bytes));
    }

    /// Whether the writer is dead: nothing that it stores or sends counts any more.
    pub fn blown(&self) -> bool {
        self.blown.get()
    }

    /// Another life begins.
    pub fn renew(&self) {
        self.left.set(None);
        self.blown.set(false);
    }

    /// How many of `bytes` bytes are stored.
    pub fn burn(&self, bytes: u64) -> u64 {
        match self.left.get() {
            _ if self.blown() => 0,
            None => bytes,
            Some(left) => {
                self.left.set(Some(left.saturating_sub(bytes)));
                self.blown.set(left < bytes);
                left.min(bytes)
            }
        }
    }
}

/// The memory of one replica's storage.
#[derive(Clone, Debug)]
pub struct Disk {
    memory: HeapMemory,
    fuse: Rc<Fuse>,
}

impl Disk {
    /// `len` zero bytes, written under `fuse`.
    pub fn new(len: usize, fuse: Rc<Fuse>) -> Self {
        Self { memory: HeapMemory::new(len), fuse }
    }

    /// A copy that nobody else writes.
    pub fn image(&self) -> Self {
        let mut bytes = vec![0; self.len()];
        self.memory.read(0, &mut bytes);
        let image = Self::new(self.len(), Fuse::new());
        image.memory.write(0, &bytes);
        image
    }

    /// Whether both copies of the header are alike, as after each complete store.
    pub fn image_is_whole(&self) -> bool {
        let (mut first, mut second) = ([0; 72], [0; 72]);
        self.memory.read(0, &mut first);
        self.memory.read(128, &mut second);
        first == second
    }

    /// Flips one bit, behind the writer's back.
    pub fn flip(&self, bit: u64) {
        let at = (bit / 8) as usize;
        let mut byte = [0];
        self.memory.read(at, &mut byte);
        self.memory.write(at, &[byte[0] ^ 1 << (bit % 8)]);
    }
}

impl SharedMemory for Disk {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let stored = self.fuse.burn(from.len() as u64) as usize;
        self.memory.write(offset, &from[..stored]);
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        let stored = self.fuse.burn(len as u64) as usize;
        self.memory.fill(offset, stored, value);
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        if self.fuse.burn(4) == 4 {
            self.memory.store_u32(offset, value);
        }
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        if self.fuse.burn(8) == 8 {
            self.memory.store_u64(offset, value);
        }
    }
}
