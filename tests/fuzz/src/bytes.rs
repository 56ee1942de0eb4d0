//! Values out of the fuzzer's bytes. At the end everything is zero, so that a shorter input is a
//! simpler one.

use fabric::SharedMemory;

/// What remains of an input.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// A whole input.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether nothing remains.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that remains.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// At most `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn word<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        let mut word = [0; N];
        word[..taken.len()].copy_from_slice(taken);
        word
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.word::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.word())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.word())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.word())
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        match limit {
            0..=0x100 => usize::from(self.u8()) % limit,
            0x101..=0x1_0000 => usize::from(self.u16()) % limit,
            _ => self.u32() as usize % limit,
        }
    }

    /// A string of bytes with its length before it.
    pub fn string(&mut self, max: usize) -> &'a [u8] {
        let count = self.below(max + 1);
        self.take(count)
    }

    /// Damages memory in one place, as a wild store or a flipped bit would.
    pub fn damage<M: SharedMemory>(&mut self, memory: &M) {
        let at = self.below(memory.len());
        let kind = self.u8();
        if !kind.is_multiple_of(4) {
            let mut byte = [0];
            memory.read(at, &mut byte);
            memory.write(at, &[byte[0] ^ 1 << (kind >> 5)]);
            return;
        }
        let bytes = self.take(usize::from(kind / 4));
        memory.write(at, &bytes[..bytes.len().min(memory.len() - at)]);
    }
}
