//! A range of a larger shared memory, and references to shared memory.

use crate::SharedMemory;

/// The bytes `offset..offset + len` of another memory: how one region is cut out of a unit's
/// mapping of the fabric, or one half out of a page.
#[derive(Clone, Copy, Debug)]
pub struct Part<M> {
    memory: M,
    offset: usize,
    len: usize,
}

impl<M: SharedMemory> Part<M> {
    /// The `len` bytes of `memory` from `offset`. Panics if they are not within it, or if `offset`
    /// is not a multiple of 8 (words would lose their alignment): ranges are computed by the
    /// program, never read from outside.
    pub fn new(memory: M, offset: usize, len: usize) -> Self {
        assert!(offset.is_multiple_of(8), "part at unaligned offset {offset}");
        let end = offset.checked_add(len).expect("the end of a part fits an address");
        assert!(end <= memory.len(), "part {offset}+{len} of a memory of {} bytes", memory.len());
        Self { memory, offset, len }
    }

    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> usize {
        if len > self.len || offset > self.len - len {
            outside(offset, len, self.len);
        }
        self.offset + offset
    }
}

/// Apart: what it takes to make the message would cost each access.
#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, all: usize) -> ! {
    panic!("access {offset}+{len} in a part of {all} bytes")
}

impl<M: SharedMemory> SharedMemory for Part<M> {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.memory.read(self.at(offset, into.len()), into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.memory.write(self.at(offset, from.len()), from);
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.memory.fill(self.at(offset, len), len, value);
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.load_u32(self.at(offset, 4))
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.memory.store_u32(self.at(offset, 4), value);
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.load_u64(self.at(offset, 8))
    }

    fn store_u64(&self, offset: usize, value: u64) {
        self.memory.store_u64(self.at(offset, 8), value);
    }
}

impl<M: SharedMemory + ?Sized> SharedMemory for &M {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        (**self).read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        (**self).fill(offset, len, value);
    }

    fn load_u32(&self, offset: usize) -> u32 {
        (**self).load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        (**self).store_u32(offset, value);
    }

    fn load_u64(&self, offset: usize) -> u64 {
        (**self).load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        (**self).store_u64(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;

    #[test]
    fn a_part_reaches_its_own_bytes_only() {
        let whole = HeapMemory::new(64);
        let part = Part::new(&whole, 16, 16);
        part.store_u64(8, 7);
        assert_eq!(whole.load_u64(24), 7);
        assert_eq!(part.len(), 16);
        let beyond = std::panic::catch_unwind(|| {
            let whole = HeapMemory::new(64);
            Part::new(&whole, 16, 16).load_u32(16)
        });
        assert!(beyond.is_err(), "an access beyond the part is refused");
    }

    #[test]
    #[should_panic(expected = "of a memory of 64 bytes")]
    fn a_part_lies_within_its_memory() {
        Part::new(HeapMemory::new(64), 56, 16);
    }
}
