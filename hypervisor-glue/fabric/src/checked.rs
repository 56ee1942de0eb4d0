//! Checked words: 48 bits of value and 16 bits of check in one word, stored at once.
//!
//! A watcher reads such a word at any instant and sees a whole old or a whole new value, and a
//! flipped bit never passes for a value: the check is the exclusive-or of the value's three 16-bit
//! parts and a salt, so each single flipped bit breaks it. The salt differs from word to word and
//! is never zero, so that neither a cleared page nor a word copied to another place is valid.

use crate::SharedMemory;

/// Bits of value in a checked word: 2⁴⁸ work items at a million per second last eight years.
pub const VALUE_BITS: u32 = 48;

/// The greatest value a checked word holds.
pub const VALUE_MAX: u64 = (1 << VALUE_BITS) - 1;

/// `value` with its check. Bits above 48 are cut off: counters wrap there.
pub const fn encode(value: u64, salt: u16) -> u64 {
    let value = value & VALUE_MAX;
    value | ((check(value, salt) as u64) << VALUE_BITS)
}

/// The value of `word`, or `None` if its check is wrong.
pub const fn decode(word: u64, salt: u16) -> Option<u64> {
    let value = word & VALUE_MAX;
    if (word >> VALUE_BITS) as u16 == check(value, salt) { Some(value) } else { None }
}

const fn check(value: u64, salt: u16) -> u16 {
    (value as u16) ^ ((value >> 16) as u16) ^ ((value >> 32) as u16) ^ salt
}

/// How far the counter `ahead` is in front of `behind`, modulo 2⁴⁸ as checked words wrap.
pub const fn distance(ahead: u64, behind: u64) -> u64 {
    ahead.wrapping_sub(behind) & VALUE_MAX
}

pub(crate) fn store<M: SharedMemory>(memory: &M, offset: usize, value: u64, salt: u16) {
    memory.store_u64(offset, encode(value, salt));
}

pub(crate) fn load<M: SharedMemory>(memory: &M, offset: usize, salt: u16) -> Option<u64> {
    decode(memory.load_u64(offset), salt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back_and_single_flips_do_not(value in 0..=VALUE_MAX, salt in 1..=u16::MAX) {
            let word = encode(value, salt);
            prop_assert_eq!(decode(word, salt), Some(value));
            for bit in 0..64 {
                prop_assert_eq!(decode(word ^ (1 << bit), salt), None);
            }
        }
    }

    #[test]
    fn a_cleared_word_and_a_foreign_salt_are_refused() {
        assert_eq!(decode(0, 0x1234), None);
        assert_eq!(decode(encode(5, 0x1234), 0x1235), None);
    }

    #[test]
    fn golden() {
        assert_eq!(encode(0x0000_1234_5678_9abc, 0x5048), 0x8eb8_1234_5678_9abc);
    }

    #[test]
    fn counters_wrap() {
        assert_eq!(distance(3, VALUE_MAX - 1), 5);
        assert_eq!(distance(3, 3), 0);
    }
}
