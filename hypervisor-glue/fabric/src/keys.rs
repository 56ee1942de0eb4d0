//! Keys that the operator types for a guest: from the orchestrator to the toolstack, which passes
//! each on to the guest's console once, whoever dies in between.
//!
//! The writer's region:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | keys typed so far, checked word |
//! | 8 | 8 | the attached guest's domid, 0 = none, checked word |
//! | 64 | 8 × capacity | keys, checked words; key `n`, from 0, lies at `n mod capacity` |
//!
//! A key is its byte (bits 0..8), the guest's domid (8..24) and the low bits of `n` (24..48).
//!
//! The reader's region:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | keys taken so far, checked word |
//! | 8 | 8 | where the first key that is not taken is being put, checked word |
//!
//! That is a position in the guest's ring (bits 0..32) with the low bits of the key's number
//! (32..48).
//!
//! The capacity is the largest power of two for which the writer's region has room.

use crate::SharedMemory;
use crate::checked::{self, VALUE_MAX};

const TYPED: usize = 0;
const ATTACHED: usize = 8;
const KEYS: usize = 64;
const KEY: usize = 8;

const TAKEN: usize = 0;
const PLACED: usize = 8;

const TYPED_SALT: u16 = 0x4b54;
const ATTACHED_SALT: u16 = 0x4b41;
const KEY_SALT: u16 = 0x4b45;
const TAKEN_SALT: u16 = 0x4b52;
const PLACED_SALT: u16 = 0x4b50;

const fn capacity(len: usize) -> u64 {
    assert!(len >= KEYS + KEY, "the region of keys is too small");
    1 << ((len - KEYS) / KEY).ilog2()
}

const fn offset(number: u64, capacity: u64) -> usize {
    KEYS + KEY * (number % capacity) as usize
}

/// A key for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The guest.
    pub domid: u16,
    /// The byte.
    pub byte: u8,
}

/// The reader has not made room: the key is not in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The orchestrator's side. Its next life finds everything in the region.
#[derive(Debug)]
pub struct KeyWriter<O, P> {
    own: O,
    peer: P,
    capacity: u64,
}

impl<O: SharedMemory, P: SharedMemory> KeyWriter<O, P> {
    /// The writer of `own`; the reader's region is `peer`.
    pub fn new(own: O, peer: P) -> Self {
        let capacity = capacity(own.len());
        Self { own, peer, capacity }
    }

    /// The guest whose console the operator is attached to.
    pub fn attached(&self) -> Option<u16> {
        checked::load(&self.own, ATTACHED, ATTACHED_SALT).map(|id| id as u16).filter(|id| *id != 0)
    }

    /// Attaches the operator to a guest's console, or to none.
    pub fn attach(&mut self, guest: Option<u16>) {
        checked::store(&self.own, ATTACHED, guest.unwrap_or(0).into(), ATTACHED_SALT);
    }

    /// Passes a key on. Ring the doorbell afterwards.
    ///
    /// # Errors
    /// [`Full`] when the reader takes none.
    pub fn push(&mut self, key: Key) -> Result<(), Full> {
        let taken = checked::load(&self.peer, TAKEN, TAKEN_SALT);
        // A damaged count is replaced by the reader's: keys are lost then, and none comes twice.
        let typed = checked::load(&self.own, TYPED, TYPED_SALT).or(taken).unwrap_or(0);
        if checked::distance(typed, taken.unwrap_or(0)) >= self.capacity {
            return Err(Full);
        }
        let value = u64::from(key.byte) | u64::from(key.domid) << 8 | typed << 24;
        checked::store(&self.own, offset(typed, self.capacity), value, KEY_SALT);
        checked::store(&self.own, TYPED, typed.wrapping_add(1), TYPED_SALT);
        Ok(())
    }
}

/// The toolstack's side. A key stays in the ring until it is [`KeyReader::consume`]d, so the next
/// life meets it again, and [`KeyReader::placed`] tells that life where it was being put.
#[derive(Debug)]
pub struct KeyReader<O, P> {
    own: O,
    peer: P,
    capacity: u64,
    taken: u64,
}

impl<O: SharedMemory, P: SharedMemory> KeyReader<O, P> {
    /// The reader of `peer`; `own` is its own region.
    pub fn new(own: O, peer: P) -> Self {
        let capacity = capacity(peer.len());
        let typed = || checked::load(&peer, TYPED, TYPED_SALT);
        let taken = checked::load(&own, TAKEN, TAKEN_SALT).or_else(typed).unwrap_or(0);
        checked::store(&own, TAKEN, taken, TAKEN_SALT);
        Self { own, peer, capacity, taken }
    }

    /// The first key that is not taken. Damaged ones are skipped.
    pub fn peek(&mut self) -> Option<Key> {
        let typed = checked::load(&self.peer, TYPED, TYPED_SALT)?;
        if checked::distance(typed, self.taken) > self.capacity {
            // No correct writer is that far ahead, or behind.
            self.take_until(typed);
        }
        while self.taken != typed {
            let at = offset(self.taken, self.capacity);
            let value = checked::load(&self.peer, at, KEY_SALT);
            if let Some(value) = value.filter(|value| value >> 24 == self.taken & 0xff_ffff) {
                return Some(Key { domid: (value >> 8) as u16, byte: value as u8 });
            }
            self.consume();
        }
        None
    }

    /// Says where in the guest's ring the first key goes; to be called before it is put there.
    pub fn place(&mut self, position: u32) {
        checked::store(&self.own, PLACED, self.mark() | u64::from(position), PLACED_SALT);
    }

    /// Where the first key was being put, perhaps by a former life.
    pub fn placed(&self) -> Option<u32> {
        let placed = checked::load(&self.own, PLACED, PLACED_SALT)?;
        (placed >> 32 == self.mark() >> 32).then_some(placed as u32)
    }

    /// Takes the first key out.
    pub fn consume(&mut self) {
        self.take_until(self.taken.wrapping_add(1) & VALUE_MAX);
    }

    fn mark(&self) -> u64 {
        (self.taken & 0xffff) << 32
    }

    fn take_until(&mut self, taken: u64) {
        self.taken = taken;
        checked::store(&self.own, TAKEN, taken, TAKEN_SALT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;
    use proptest::prelude::*;

    const LEN: usize = KEYS + 4 * KEY;

    type Writer = KeyWriter<HeapMemory, HeapMemory>;
    type Reader = KeyReader<HeapMemory, HeapMemory>;

    fn regions() -> (HeapMemory, HeapMemory) {
        (HeapMemory::new(LEN), HeapMemory::new(16))
    }

    fn pair((a, b): &(HeapMemory, HeapMemory)) -> (Writer, Reader) {
        (KeyWriter::new(a.clone(), b.clone()), KeyReader::new(b.clone(), a.clone()))
    }

    fn key(byte: u8) -> Key {
        Key { domid: 17, byte }
    }

    fn take(reader: &mut Reader) -> Option<u8> {
        let key = reader.peek();
        if key.is_some() {
            reader.consume();
        }
        key.map(|key| key.byte)
    }

    #[test]
    fn keys_come_in_order_whoever_begins_anew() {
        let regions = regions();
        let (mut writer, mut reader) = pair(&regions);
        for byte in b"abc" {
            writer.push(key(*byte)).unwrap();
        }
        assert_eq!(take(&mut reader), Some(b'a'));
        let (mut writer, mut reader) = pair(&regions);
        assert_eq!(reader.peek(), Some(key(b'b')));
        writer.push(key(b'd')).unwrap();
        writer.push(key(b'e')).unwrap();
        assert_eq!(writer.push(key(b'f')), Err(Full));
        let rest: Vec<u8> = std::iter::from_fn(|| take(&mut reader)).collect();
        assert_eq!(rest, b"bcde");
    }

    #[test]
    fn the_place_of_a_key_is_not_that_of_the_next() {
        let regions = regions();
        let (mut writer, mut reader) = pair(&regions);
        writer.push(key(1)).unwrap();
        assert_eq!((reader.peek(), reader.placed()), (Some(key(1)), None));
        reader.place(u32::MAX);
        let (_, mut reader) = pair(&regions);
        assert_eq!((reader.peek(), reader.placed()), (Some(key(1)), Some(u32::MAX)));
        reader.consume();
        assert_eq!(reader.placed(), None);
    }

    #[test]
    fn who_is_attached_outlives_the_writer() {
        let regions = regions();
        let (mut writer, _) = pair(&regions);
        assert_eq!(writer.attached(), None);
        writer.attach(Some(17));
        assert_eq!(pair(&regions).0.attached(), Some(17));
        writer.attach(None);
        assert_eq!(writer.attached(), None);
    }

    #[test]
    fn a_damaged_count_loses_keys_and_repeats_none() {
        for damage in [TYPED, offset(0, 4)] {
            let regions = regions();
            let (mut writer, mut reader) = pair(&regions);
            writer.push(key(1)).unwrap();
            regions.0.store_u64(damage, regions.0.load_u64(damage) ^ 1 << 50);
            assert_eq!(take(&mut reader), None);
            writer.push(key(2)).unwrap();
            assert_eq!((take(&mut reader), take(&mut reader)), (Some(2), None));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_harm(
            bytes in prop::collection::vec(any::<u8>(), LEN + 16),
            typed in 0..=VALUE_MAX,
        ) {
            let regions = regions();
            regions.0.write(0, &bytes[..LEN]);
            regions.1.write(0, &bytes[LEN..]);
            checked::store(&regions.0, TYPED, typed, TYPED_SALT);
            let (mut writer, mut reader) = pair(&regions);
            let taken = std::iter::from_fn(|| take(&mut reader)).take(5).count();
            prop_assert!(taken <= 4);
            writer.push(key(3)).unwrap();
            prop_assert_eq!(take(&mut reader), Some(3));
        }
    }
}
