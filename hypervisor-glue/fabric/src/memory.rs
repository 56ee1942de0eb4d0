//! Access to memory that another domain may read or write at any moment.

use alloc::rc::Rc;
use core::cell::Cell;

/// A range of bytes that another domain may read, and perhaps write, at any moment.
///
/// There is no way to borrow it: bytes are copied out, then checked. Words are aligned, little
/// endian, read with acquire and written with release order, so that an index read after a word
/// sees the bytes written before it.
///
/// An offset beyond the end, or a word that is not aligned, is a mistake of the caller's program
/// (offsets never come unchecked from outside) and panics.
pub trait SharedMemory {
    /// Size in bytes.
    fn len(&self) -> usize;

    /// Whether the range holds no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `into.len()` bytes from `offset`.
    fn read(&self, offset: usize, into: &mut [u8]);

    /// Copies `from` to `offset`.
    fn write(&self, offset: usize, from: &[u8]);

    /// Sets `len` bytes from `offset` to `value`.
    fn fill(&self, offset: usize, len: usize, value: u8);

    /// Reads the word at `offset` once (acquire).
    fn load_u32(&self, offset: usize) -> u32;

    /// Writes the word at `offset` at once (release).
    fn store_u32(&self, offset: usize, value: u32);

    /// Reads the double word at `offset` once (acquire).
    fn load_u64(&self, offset: usize) -> u64;

    /// Writes the double word at `offset` at once (release).
    fn store_u64(&self, offset: usize, value: u64);
}

/// Shared memory on the heap of one host process: what simulators and tests use. Clones see the
/// same bytes, as two domains do.
#[derive(Clone, Debug)]
pub struct HeapMemory {
    bytes: Rc<[Cell<u8>]>,
}

impl HeapMemory {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        Self { bytes: (0..len).map(|_| Cell::new(0)).collect() }
    }

    fn range(&self, offset: usize, len: usize) -> &[Cell<u8>] {
        &self.bytes[offset..offset + len]
    }

    fn word<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset.is_multiple_of(N), "word at unaligned offset {offset}");
        let mut word = [0; N];
        self.read(offset, &mut word);
        word
    }
}

impl SharedMemory for HeapMemory {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let range = self.range(offset, into.len());
        for (to, from) in into.iter_mut().zip(range) {
            *to = from.get();
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (to, from) in self.range(offset, from.len()).iter().zip(from) {
            to.set(*from);
        }
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        for byte in self.range(offset, len) {
            byte.set(value);
        }
    }

    fn load_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.word(offset))
    }

    fn store_u32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "word at unaligned offset {offset}");
        self.write(offset, &value.to_le_bytes());
    }

    fn load_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.word(offset))
    }

    fn store_u64(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "word at unaligned offset {offset}");
        self.write(offset, &value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_the_same_bytes() {
        let ours = HeapMemory::new(16);
        let theirs = ours.clone();
        ours.store_u32(4, 0xdead_beef);
        assert_eq!(theirs.load_u32(4), 0xdead_beef);
        let mut word = [0; 4];
        theirs.read(4, &mut word);
        assert_eq!(word, [0xef, 0xbe, 0xad, 0xde]);
    }

    #[test]
    #[should_panic(expected = "unaligned")]
    fn a_word_is_aligned() {
        HeapMemory::new(16).load_u32(2);
    }
}
