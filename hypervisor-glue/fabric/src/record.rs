//! Records: values with a checksum, in memory whose writer may die at any store.
//!
//! A record is a header of 32 bytes and a payload:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic: what kind of record this is; 0 while it is being written |
//! | 4 | 4 | version of the payload's format |
//! | 8 | 8 | sequence: one more with each write |
//! | 16 | 4 | boot epoch of the writer |
//! | 20 | 4 | length of the payload in bytes |
//! | 24 | 4 | CRC-32 (IEEE) over the bytes 0..24 and the payload |
//! | 28 | 4 | zero |
//! | 32 | length | payload |
//!
//! [`write_once`] keeps one copy: a crash leaves the new record or none. [`Record`] keeps two and
//! writes them in turn: a crash at any store leaves the old record or the new one.

use crate::{Epoch, SharedMemory};

/// Bytes of a record's header.
pub const HEADER: usize = 32;
const MAGIC: usize = 0;
const BODY: usize = 4;
const CHECKED: usize = 24;

/// What kind of value a record holds; a reader refuses every other kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Four letters, not all zero.
    pub magic: [u8; 4],
    /// Version of the payload's format.
    pub version: u32,
}

/// What a valid record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Life of the writer that wrote it.
    pub epoch: Epoch,
    /// Number of the write.
    pub sequence: u64,
    /// Bytes of payload.
    pub length: usize,
}

/// Why there is no record to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Cleared memory: nothing was ever written.
    Empty,
    /// Another kind of record, or one whose write was cut off.
    Magic {
        /// What lies where the magic belongs.
        found: [u8; 4],
    },
    /// Written by a program that uses another format.
    Version {
        /// The version found.
        found: u32,
    },
    /// The length is more than the record's place, or than the reader's buffer, holds.
    Length {
        /// The length found, in bytes.
        found: u32,
    },
    /// The bytes are not those that were written.
    Crc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Empty => write!(f, "the record was never written"),
            Self::Magic { found } => write!(f, "the record's magic is {found:02x?}"),
            Self::Version { found } => write!(f, "the record's version is {found}"),
            Self::Length { found } => write!(f, "the record's length is {found} bytes"),
            Self::Crc { stored, computed } => {
                write!(f, "the record's CRC is {stored:#010x}, its bytes give {computed:#010x}")
            }
        }
    }
}

/// Bytes that one copy with up to `payload` bytes takes: a multiple of 8.
pub const fn size_once(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(8)
}

/// Writes a single copy at `offset` (a multiple of 8), which a reader finds whole or not at all.
/// Its sequence counts on from what lies there.
pub fn write_once<M: SharedMemory>(
    memory: &M,
    offset: usize,
    kind: Kind,
    epoch: Epoch,
    payload: &[u8],
) {
    let sequence = memory.load_u64(offset + 8).wrapping_add(1);
    write_copy(memory, offset, kind, Found { epoch, sequence, length: payload.len() }, payload);
}

/// Reads the single copy at `offset` into the start of `into`.
pub fn read_once<M: SharedMemory>(
    memory: &M,
    offset: usize,
    kind: Kind,
    into: &mut [u8],
) -> Result<Found, RecordError> {
    let mut header = [0; HEADER];
    memory.read(offset, &mut header);
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let found = [header[0], header[1], header[2], header[3]];
    if header.iter().all(|byte| *byte == 0) {
        return Err(RecordError::Empty);
    }
    if found != kind.magic {
        return Err(RecordError::Magic { found });
    }
    if word(4) != kind.version {
        return Err(RecordError::Version { found: word(4) });
    }
    let length = word(20) as usize;
    let room = memory.len().saturating_sub(offset + HEADER);
    if length > into.len() || length > room {
        return Err(RecordError::Length { found: word(20) });
    }
    memory.read(offset + HEADER, &mut into[..length]);
    let (stored, computed) = (word(CHECKED), crc(&header, &into[..length]));
    if stored != computed {
        return Err(RecordError::Crc { stored, computed });
    }
    let sequence = u64::from(word(8)) | u64::from(word(12)) << 32;
    Ok(Found { epoch: word(16), sequence, length })
}

fn crc(header: &[u8; HEADER], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..CHECKED]);
    crc.update(payload);
    crc.finalize()
}

fn write_copy<M: SharedMemory>(memory: &M, offset: usize, kind: Kind, new: Found, payload: &[u8]) {
    debug_assert_ne!(kind.magic, [0; 4], "a magic of zeroes means an unfinished write");
    let length = u32::try_from(payload.len()).expect("a record is smaller than 4 GiB");
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&kind.magic);
    header[4..8].copy_from_slice(&kind.version.to_le_bytes());
    header[8..16].copy_from_slice(&new.sequence.to_le_bytes());
    header[16..20].copy_from_slice(&new.epoch.to_le_bytes());
    header[20..24].copy_from_slice(&length.to_le_bytes());
    let crc = crc(&header, payload);
    header[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    // The magic goes first and comes back last: a copy that was cut off says so without the CRC.
    memory.store_u32(offset + MAGIC, 0);
    memory.write(offset + HEADER, payload);
    memory.write(offset + BODY, &header[BODY..]);
    memory.store_u32(offset + MAGIC, u32::from_le_bytes(kind.magic));
}

/// A record in two copies, written in turn. Writer and readers use the same type; only one domain
/// may write.
#[derive(Clone, Copy, Debug)]
pub struct Record<M> {
    memory: M,
    kind: Kind,
    capacity: usize,
}

impl<M: SharedMemory> Record<M> {
    /// Bytes of memory for a record with up to `capacity` bytes of payload.
    pub const fn size(capacity: usize) -> usize {
        2 * size_once(capacity)
    }

    /// The record of this kind at the start of `memory`. Panics if `memory` is smaller than
    /// [`Record::size`].
    pub fn new(memory: M, kind: Kind, capacity: usize) -> Self {
        assert!(memory.len() >= Self::size(capacity), "no room for a record of {capacity} bytes");
        Self { memory, kind, capacity }
    }

    fn copy_at(&self, copy: usize) -> usize {
        copy * size_once(self.capacity)
    }

    /// The valid copy with the highest sequence, read into the start of `into` (at least the
    /// record's capacity, or longer payloads are errors). If no copy is valid, the error of the
    /// first that was ever written.
    pub fn read(&self, into: &mut [u8]) -> Result<Found, RecordError> {
        let end = into.len().min(self.capacity);
        let into = &mut into[..end];
        let first = read_once(&self.memory, self.copy_at(0), self.kind, into);
        let second = read_once(&self.memory, self.copy_at(1), self.kind, into);
        match (first, second) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
            // The buffer holds the second copy: read the first again.
            (Ok(_), _) => read_once(&self.memory, self.copy_at(0), self.kind, into),
            (Err(_), Ok(second)) => Ok(second),
            (Err(RecordError::Empty), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }

    /// Replaces the value. A crash at any store leaves the former value or this one. `scratch`
    /// needs the record's capacity (the copies are checked to choose which one to overwrite).
    /// Panics if `payload` is longer than the capacity.
    pub fn write(&self, epoch: Epoch, payload: &[u8], scratch: &mut [u8]) {
        assert!(payload.len() <= self.capacity, "payload of {} bytes", payload.len());
        let end = scratch.len().min(self.capacity);
        let scratch = &mut scratch[..end];
        let first = read_once(&self.memory, self.copy_at(0), self.kind, scratch);
        let second = read_once(&self.memory, self.copy_at(1), self.kind, scratch);
        let (copy, latest) = match (first, second) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => (0, second.sequence),
            (Ok(first), _) => (1, first.sequence),
            (Err(_), Ok(second)) => (0, second.sequence),
            (Err(_), Err(_)) => (0, 0),
        };
        let new = Found { epoch, sequence: latest + 1, length: payload.len() };
        write_copy(&self.memory, self.copy_at(copy), self.kind, new, payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeapMemory, TornMemory};
    use proptest::prelude::*;

    const KIND: Kind = Kind { magic: *b"PVts", version: 2 };
    const CAPACITY: usize = 20;

    fn record(memory: &HeapMemory) -> Record<HeapMemory> {
        Record::new(memory.clone(), KIND, CAPACITY)
    }

    fn read(memory: &HeapMemory) -> Result<(Found, Vec<u8>), RecordError> {
        let mut into = [0; CAPACITY];
        let found = record(memory).read(&mut into)?;
        Ok((found, into[..found.length].to_vec()))
    }

    #[test]
    fn golden() {
        let memory = HeapMemory::new(Record::<HeapMemory>::size(CAPACITY));
        record(&memory).write(7, b"fabric", &mut [0; CAPACITY]);
        let mut bytes = [0; 40];
        memory.read(0, &mut bytes);
        let expected = [
            0x50, 0x56, 0x74, 0x73, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0x66, 0x61, 0x62, 0x72, 0x69, 0x63, 0, 0,
        ];
        assert_eq!(bytes[..24], expected[..24]);
        assert_eq!(bytes[24..28], GOLDEN_CRC.to_le_bytes());
        assert_eq!(bytes[28..], expected[28..]);
    }

    /// CRC-32 of the golden record's first 24 bytes and payload, computed elsewhere.
    const GOLDEN_CRC: u32 = 0x0a43_09f0;

    #[test]
    fn errors_are_told_apart() {
        let memory = HeapMemory::new(Record::<HeapMemory>::size(CAPACITY));
        assert_eq!(read(&memory), Err(RecordError::Empty));
        record(&memory).write(1, b"abc", &mut [0; CAPACITY]);
        memory.store_u32(4, 3);
        assert_eq!(read(&memory), Err(RecordError::Version { found: 3 }));
        memory.store_u32(4, 2);
        memory.store_u32(20, 21);
        assert_eq!(read(&memory), Err(RecordError::Length { found: 21 }));
        memory.store_u32(20, 3);
        memory.write(HEADER, b"x");
        assert!(matches!(read(&memory), Err(RecordError::Crc { .. })));
        memory.store_u32(0, 5);
        assert_eq!(read(&memory), Err(RecordError::Magic { found: [5, 0, 0, 0] }));
    }

    #[test]
    fn a_crash_at_any_store_leaves_the_old_value_or_the_new() {
        let mut cuts = 0;
        for stores in 0.. {
            let memory = HeapMemory::new(Record::<HeapMemory>::size(CAPACITY));
            record(&memory).write(1, b"first value", &mut [0; CAPACITY]);
            record(&memory).write(1, b"old", &mut [0; CAPACITY]);
            let torn = TornMemory::new(memory.clone(), stores);
            let writer = Record::new(torn.clone(), KIND, CAPACITY);
            writer.write(2, b"the new value", &mut [0; CAPACITY]);
            let (found, value) = read(&memory).expect("one copy is always valid");
            let is_old = (found.sequence, value.as_slice()) == (2, b"old".as_slice());
            let is_new = (found.sequence, value.as_slice()) == (3, b"the new value".as_slice());
            assert!(is_old || is_new, "after {stores} stores: {found:?} {value:?}");
            // The next life writes on, whatever was left.
            record(&memory).write(3, b"next", &mut [0; CAPACITY]);
            assert_eq!(read(&memory).unwrap().1, b"next");
            if torn.stores() < stores {
                assert!(is_new);
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 40, "only {cuts} instants tried");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_passes(bit in 0_usize..8 * 2 * size_once(CAPACITY)) {
            let memory = HeapMemory::new(Record::<HeapMemory>::size(CAPACITY));
            let value = [b'v'; CAPACITY];
            record(&memory).write(1, &[b'u'; CAPACITY], &mut [0; CAPACITY]);
            record(&memory).write(1, &value, &mut [0; CAPACITY]);
            let mut byte = [0];
            memory.read(bit / 8, &mut byte);
            memory.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
            let (found, read) = read(&memory).unwrap();
            let expected = if found.sequence == 2 { b'v' } else { b'u' };
            prop_assert_eq!(read, vec![expected; CAPACITY]);
        }
    }
}
