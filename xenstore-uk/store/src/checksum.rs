//! The checksum of records and slots: 64 bits, keyed, a few instructions per eight bytes.
//!
//! A table-driven CRC32 costs about four instructions per byte on a machine without vector
//! registers; a reload checks every slot, so that alone would use up its budget. Each step here is
//! a bijection of the state for a fixed word and of the word for a fixed state. So an error within
//! one aligned word of eight bytes always changes the result, and any other goes unnoticed with
//! probability 2⁻⁶⁴. The key makes it impossible for the content of one record to pose as
//! another's.

/// An odd constant with well mixed bits (the fraction of the golden ratio).
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A running checksum.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u64);

impl Checksum {
    /// Begins with a key.
    pub fn new(key: u64) -> Self {
        Self(key ^ FACTOR)
    }

    /// Takes one word.
    #[inline(always)]
    pub fn word(self, word: u64) -> Self {
        let mixed = (self.0 ^ word).wrapping_mul(FACTOR);
        Self(mixed ^ (mixed >> 29))
    }

    /// Takes bytes, and their number so that nothing can move between two calls.
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, tail) = bytes.as_chunks::<8>();
        let mut sum = self;
        // Two at a time: half the steps of the loop.
        let (pairs, single) = words.as_chunks::<2>();
        for [first, second] in pairs {
            sum = sum.word(u64::from_le_bytes(*first)).word(u64::from_le_bytes(*second));
        }
        for word in single {
            sum = sum.word(u64::from_le_bytes(*word));
        }
        sum.word(tail_word(tail) ^ ((bytes.len() as u64) << 56))
    }

    /// The state as it is: for a value that only goes into another checksum.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// The result: never zero, because a zero in shared memory means "nothing here".
    pub fn finish(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(FACTOR);
        (mixed ^ (mixed >> 32)).max(1)
    }
}

/// At most seven bytes as one word, in few steps: names are short and many.
fn tail_word(tail: &[u8]) -> u64 {
    let len = tail.len();
    if let (Some(first), Some(last)) = (tail.first_chunk::<4>(), tail.last_chunk::<4>()) {
        let first = u64::from(u32::from_le_bytes(*first));
        // The overlap has the same bytes in both.
        return first | u64::from(u32::from_le_bytes(*last)) << ((len - 4) * 8);
    }
    match tail {
        [] => 0,
        [first, .., last] => {
            let middle = u64::from(tail[len / 2]) << (len / 2 * 8);
            u64::from(*first) | middle | u64::from(*last) << ((len - 1) * 8)
        }
        [only] => u64::from(*only),
    }
}

/// The first eight bytes, or as many as there are with zeros behind them.
pub(crate) fn first_word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => tail_word(bytes),
    }
}

/// The checksum of `bytes` under `key`.
pub fn checksum(key: u64, bytes: &[u8]) -> u64 {
    Checksum::new(key).bytes(bytes).finish()
}

/// Spreads a sum over 64 bits for use as a summand of a digest.
pub fn spread(sum: u64) -> u64 {
    let mixed = (sum ^ (sum >> 31)).wrapping_mul(FACTOR);
    mixed ^ (mixed >> 27)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_shows() {
        let mut bytes = [0u8; 96];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index * 37) as u8;
        }
        let good = checksum(1, &bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(1, &bytes), good, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_ne!(checksum(2, &bytes), good);
    }

    #[test]
    fn first_bytes() {
        let bytes = *b"abcdefghi";
        for len in 0..=9 {
            let mut padded = [0; 8];
            padded[..len.min(8)].copy_from_slice(&bytes[..len.min(8)]);
            assert_eq!(first_word(&bytes[..len]), u64::from_le_bytes(padded));
        }
    }

    #[test]
    fn lengths_are_told_apart() {
        let zeros = [0u8; 64];
        let mut seen = std::collections::BTreeSet::new();
        for len in 0..=64 {
            assert!(seen.insert(checksum(7, &zeros[..len])));
        }
    }
}
