//! What a replica must not forget, in fabric memory that outlives its domain.
//!
//! | offset | what |
//! |--:|---|
//! | 0, 128 | two copies of the header |
//! | 256, 512 | two places for the base: identity, and the membership before the log |
//! | 1024 | the ring of records, up to the end |
//!
//! The header is written twice, one copy after the other, before any message that rests on it is
//! sent. So whichever copy is damaged, by a crash in the middle of a store or by a flipped bit, the
//! other one holds everything that was ever promised; two damaged copies are reported as lost
//! storage. A base is written to the place that the header does not name, then named by it.
//! Records count only between the header's bounds, and each is checked at every read: damage is
//! reported, never served.
//!
//! Formats: `raft/FORMAT.md`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use fabric::SharedMemory;
use noraft::ClusterConfig;

use crate::id::{Ident, Position};
use crate::record::{
    Kind, MAX_CONFIG, RECORD_HEADER, Record, encode_config, parse_config, u16_at, u32_at, u64_at,
};
use crate::wire::NUMBERS;

const HEADERS: [usize; 2] = [0, 128];
const BASES: [usize; 2] = [256, 512];
const RING: usize = 1024;
const HEADER_LEN: usize = 64;
const BASE_LEN: usize = 32 + MAX_CONFIG;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"PvRh");
const BASE_MAGIC: u32 = u32::from_le_bytes(*b"PvRb");
const VERSION: u16 = 1;
const FLAG_SECOND_BASE: u16 = 1;
const FLAG_RESTORING: u16 = 2;

/// Smallest storage in bytes: the ring must hold several of the longest records.
pub const MIN_STORAGE: usize = RING + 32 * 1024;

/// What is wrong with the storage. The replica has then lost its vote and its log, and comes back
/// only as a newcomer ([`crate::Birth::Newcomer`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Both copies of the header are damaged.
    Header,
    /// The base (identity and membership) is damaged.
    Base,
    /// The record at this index is damaged.
    Record(u64),
    /// The storage belongs to another replica.
    Foreign,
    /// The log contradicts what the cluster has committed.
    Log,
}

/// Why storage could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Nothing was ever written there.
    Blank,
    /// Something was, and it is damaged.
    Damaged(Damage),
    /// The memory has fewer than [`MIN_STORAGE`] bytes or more than 1 GiB.
    Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    sequence: u64,
    term: u64,
    vote: u64,
    start_index: u64,
    last_index: u64,
    start_offset: u32,
    tail_offset: u32,
    boot_epoch: u32,
    base_crc: u32,
    flags: u16,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN + 4] {
        let mut bytes = [0; HEADER_LEN + 4];
        bytes[0..4].copy_from_slice(&HEADER_MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.term.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.vote.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.start_index.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.last_index.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.start_offset.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.tail_offset.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.boot_epoch.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.base_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..HEADER_LEN]);
        bytes[HEADER_LEN..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; HEADER_LEN + 4], capacity: u32) -> Option<Self> {
        if crc32fast::hash(&bytes[..HEADER_LEN]) != u32_at(bytes, HEADER_LEN)
            || u32_at(bytes, 0) != HEADER_MAGIC
            || u16_at(bytes, 4) != VERSION
        {
            return None;
        }
        let header = Self {
            flags: u16_at(bytes, 6),
            sequence: u64_at(bytes, 8),
            term: u64_at(bytes, 16),
            vote: u64_at(bytes, 24),
            start_index: u64_at(bytes, 32),
            last_index: u64_at(bytes, 40),
            start_offset: u32_at(bytes, 48),
            tail_offset: u32_at(bytes, 52),
            boot_epoch: u32_at(bytes, 56),
            base_crc: u32_at(bytes, 60),
        };
        let offsets = header.start_offset < capacity && header.tail_offset < capacity;
        let numbers = (header.sequence | header.term | header.last_index) < NUMBERS;
        (offsets && numbers && header.start_index <= header.last_index).then_some(header)
    }

    fn base_slot(&self) -> usize {
        usize::from(self.flags & FLAG_SECOND_BASE)
    }
}

/// Durable state of one replica over `memory`, which this replica alone writes.
#[derive(Debug)]
pub(crate) struct Storage<M> {
    memory: M,
    header: Header,
    ident: Ident,
    start_term: u64,
    config: ClusterConfig,
    /// Ring offset of each record from `start_index + 1` on.
    offsets: VecDeque<u32>,
    used: u32,
    capacity: u32,
    /// The copy of the header that is written first.
    first_copy: usize,
}

impl<M: SharedMemory> Storage<M> {
    fn capacity_of(memory: &M) -> Result<u32, OpenError> {
        if memory.len() < MIN_STORAGE {
            return Err(OpenError::Size);
        }
        // Twice the capacity still fits the type, so that offsets add up without overflow.
        u32::try_from((memory.len() - RING) & !7)
            .ok()
            .filter(|capacity| *capacity <= 1 << 30)
            .ok_or(OpenError::Size)
    }

    fn over(
        memory: M,
        header: Header,
        ident: Ident,
        start_term: u64,
        config: ClusterConfig,
        capacity: u32,
    ) -> Self {
        let (offsets, used, first_copy) = (VecDeque::new(), 0, 0);
        Self { memory, header, ident, start_term, config, offsets, used, capacity, first_copy }
    }

    /// Formats `memory` for `ident` with an empty log after an empty state whose membership is
    /// `config`; the state machine is marked as not yet there when `restoring`.
    pub fn format(
        memory: M,
        ident: Ident,
        boot_epoch: u32,
        config: ClusterConfig,
        restoring: bool,
    ) -> Result<Self, OpenError> {
        let capacity = Self::capacity_of(&memory)?;
        // Headers of a former life must not outlive a crash in the middle of the formatting.
        memory.fill(0, RING, 0);
        let header = Header {
            sequence: 0,
            term: 0,
            vote: 0,
            start_index: 0,
            last_index: 0,
            start_offset: 0,
            tail_offset: 0,
            boot_epoch,
            base_crc: 0,
            flags: if restoring { FLAG_RESTORING } else { 0 },
        };
        let mut storage = Self::over(memory, header, ident, 0, config, capacity);
        storage.write_base();
        storage.save();
        Ok(storage)
    }

    /// Opens the storage of replica `replica` in its life `boot_epoch`; every record is checked
    /// and then shown to `each`.
    pub fn open(
        memory: M,
        replica: u8,
        boot_epoch: u32,
        each: impl FnMut(&Record<'_>),
    ) -> Result<Self, OpenError> {
        let capacity = Self::capacity_of(&memory)?;
        let mut best: Option<(Header, usize)> = None;
        let mut blank = true;
        for (copy, at) in HEADERS.into_iter().enumerate() {
            let mut bytes = [0; HEADER_LEN + 4];
            memory.read(at, &mut bytes);
            blank &= bytes.iter().all(|byte| *byte == 0);
            let found = Header::parse(&bytes, capacity).map(|header| (header, copy));
            best = best.into_iter().chain(found).max_by_key(|(header, _)| header.sequence);
        }
        let Some((header, best)) = best else {
            return Err(if blank { OpenError::Blank } else { OpenError::Damaged(Damage::Header) });
        };
        let (ident, start_term, config) = read_base(&memory, &header)?;
        if ident.replica() != replica {
            return Err(OpenError::Damaged(Damage::Foreign));
        }
        let mut storage = Self::over(memory, header, ident, start_term, config, capacity);
        storage.scan(each)?;
        storage.header.boot_epoch = boot_epoch;
        // The copy that was read may be the only whole one: it is written last.
        storage.first_copy = 1 - best;
        storage.save();
        Ok(storage)
    }

    /// Finds and checks every record between the header's bounds.
    fn scan(&mut self, mut each: impl FnMut(&Record<'_>)) -> Result<(), OpenError> {
        let mut bytes = Vec::new();
        let mut term = self.start_term;
        for index in self.header.start_index + 1..=self.header.last_index {
            let damaged = OpenError::Damaged(Damage::Record(index));
            let offset = (self.header.start_offset + self.used) % self.capacity;
            let total = self.copy_record(offset, &mut bytes).ok_or(damaged)?;
            let (record, _) = Record::parse(&bytes).map_err(|_| damaged)?;
            let room = u32::try_from(total).is_ok_and(|total| total <= self.capacity - self.used);
            let term_fits = match record.kind {
                Kind::Term => record.term > term,
                Kind::Command | Kind::Config => record.term == term,
            };
            if record.index != index || !term_fits || !room {
                return Err(damaged);
            }
            term = record.term;
            each(&record);
            self.offsets.push_back(offset);
            self.used += total as u32;
        }
        let tail = (self.header.start_offset + self.used) % self.capacity;
        if tail != self.header.tail_offset {
            return Err(OpenError::Damaged(Damage::Header));
        }
        Ok(())
    }

    /// Copies the record at `offset` to `bytes`, unchecked, and returns its length.
    fn copy_record(&self, offset: u32, bytes: &mut Vec<u8>) -> Option<usize> {
        let mut header = [0; RECORD_HEADER];
        self.ring_read(offset, &mut header);
        let total = Record::peek_len(&header).ok()?;
        bytes.clear();
        bytes.resize(total, 0);
        self.ring_read(offset, bytes);
        Some(total)
    }

    fn ring_read(&self, offset: u32, into: &mut [u8]) {
        let first = into.len().min((self.capacity - offset) as usize);
        let (head, tail) = into.split_at_mut(first);
        self.memory.read(RING + offset as usize, head);
        if !tail.is_empty() {
            self.memory.read(RING, tail);
        }
    }

    fn ring_write(&self, offset: u32, from: &[u8]) {
        let (head, tail) = from.split_at(from.len().min((self.capacity - offset) as usize));
        self.memory.write(RING + offset as usize, head);
        if !tail.is_empty() {
            self.memory.write(RING, tail);
        }
    }

    /// Writes the base to the place that is not in use, and names it in the header (not saved).
    fn write_base(&mut self) {
        self.header.flags ^= FLAG_SECOND_BASE;
        let mut bytes = Vec::with_capacity(BASE_LEN);
        bytes.extend_from_slice(&BASE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&u32::from(VERSION).to_le_bytes());
        bytes.extend_from_slice(&self.ident.raw().to_le_bytes());
        bytes.extend_from_slice(&self.start_term.to_le_bytes());
        bytes.extend_from_slice(&self.header.start_index.to_le_bytes());
        encode_config(&self.config, &mut bytes);
        bytes.resize(BASE_LEN, 0);
        self.header.base_crc = crc32fast::hash(&bytes);
        self.memory.write(BASES[self.header.base_slot()], &bytes);
    }

    /// Makes everything since the last call durable. Nothing that rests on it leaves before.
    pub fn save(&mut self) {
        self.header.sequence += 1;
        let bytes = self.header.encode();
        self.memory.write(HEADERS[self.first_copy], &bytes);
        self.memory.write(HEADERS[1 - self.first_copy], &bytes);
    }

    /// Remembers term and vote; durable after [`Self::save`].
    pub fn set_vote(&mut self, term: u64, vote: Option<Ident>) {
        self.header.term = term;
        self.header.vote = vote.map_or(0, Ident::raw);
    }

    /// Appends whole, valid records after index `prev`, dropping what follows it now. Durable
    /// after [`Self::save`]; `bytes` must fit ([`Self::room_after`]).
    pub fn append(&mut self, prev: u64, bytes: &[u8]) {
        assert!(bytes.len() <= self.room_after(prev), "{} bytes do not fit", bytes.len());
        if prev < self.header.last_index {
            self.truncate(prev);
            // The dropped records' bytes are about to change, so no header may count them.
            self.save();
        }
        self.ring_write(self.header.tail_offset, bytes);
        let mut at = 0;
        while at < bytes.len() {
            let header = bytes[at..].first_chunk().expect("whole records");
            let total = Record::peek_len(header).expect("valid records");
            self.offsets.push_back(self.header.tail_offset);
            self.header.tail_offset = (self.header.tail_offset + total as u32) % self.capacity;
            self.header.last_index += 1;
            self.used += total as u32;
            at += total;
        }
    }

    fn truncate(&mut self, last: u64) {
        let keep = (last - self.header.start_index) as usize;
        let Some(tail) = self.offsets.get(keep).copied() else { return };
        let dropped = (self.header.tail_offset + self.capacity - tail) % self.capacity;
        self.used -= dropped;
        self.offsets.truncate(keep);
        self.header.tail_offset = tail;
        self.header.last_index = last;
    }

    /// Copies the record at `index` to `bytes` after checking it.
    pub fn read<'b>(&self, index: u64, bytes: &'b mut Vec<u8>) -> Result<Record<'b>, Damage> {
        let place = index.checked_sub(self.header.start_index + 1);
        let offset = place.and_then(|place| self.offsets.get(place as usize));
        let offset = *offset.expect("the index is inside the log");
        self.copy_record(offset, bytes).ok_or(Damage::Record(index))?;
        match Record::parse(bytes) {
            Ok((record, _)) if record.index == index => Ok(record),
            _ => Err(Damage::Record(index)),
        }
    }

    /// Forgets records up to `start`, whose effects are in the state machine; `config` is the
    /// membership there. Records after it stay when they continue it, and go when `start` lies
    /// beyond the log or `keep_tail` is false. Durable on return.
    pub fn rebase(&mut self, start: Position, config: ClusterConfig, keep_tail: bool) {
        if keep_tail && start.index <= self.header.last_index {
            let drop = (start.index - self.header.start_index) as usize;
            let offset = self.offsets.get(drop).copied().unwrap_or(self.header.tail_offset);
            let freed = (offset + self.capacity - self.header.start_offset) % self.capacity;
            self.used -= freed;
            self.offsets.drain(..drop);
            self.header.start_offset = offset;
        } else {
            self.offsets.clear();
            self.used = 0;
            self.header.start_offset = self.header.tail_offset;
            self.header.last_index = start.index;
        }
        self.header.start_index = start.index;
        self.start_term = start.term;
        self.config = config;
        self.write_base();
        self.save();
    }

    /// Remembers, durably, whether the state machine is being restored from a snapshot.
    pub fn set_restoring(&mut self, restoring: bool) {
        self.header.flags &= !FLAG_RESTORING;
        self.header.flags |= if restoring { FLAG_RESTORING } else { 0 };
        self.save();
    }

    /// Compares what is in memory with what this replica wrote: header, base, and every record.
    pub fn verify(&self) -> Result<(), Damage> {
        let expected = self.header.encode();
        let intact = HEADERS.iter().any(|at| {
            let mut bytes = [0; HEADER_LEN + 4];
            self.memory.read(*at, &mut bytes);
            bytes == expected
        });
        if !intact {
            return Err(Damage::Header);
        }
        read_base(&self.memory, &self.header).map_err(|_| Damage::Base)?;
        let mut bytes = Vec::new();
        for index in self.start().index + 1..=self.last_index() {
            self.read(index, &mut bytes)?;
        }
        Ok(())
    }

    /// Bytes that may be appended after index `prev`.
    pub fn room_after(&self, prev: u64) -> usize {
        let keep = (prev - self.header.start_index) as usize;
        let used = match self.offsets.get(keep) {
            Some(end) => (end + self.capacity - self.header.start_offset) % self.capacity,
            None => self.used,
        };
        // One byte short of full, so that a full ring and an empty one differ in their offsets.
        (self.capacity - used) as usize - 8
    }

    /// Bytes of memory that the places of the records take.
    pub fn footprint(&self) -> usize {
        self.offsets.capacity() * size_of::<u32>()
    }

    /// Bytes of records in the ring.
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// Bytes that the ring can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// The place before the first record.
    pub fn start(&self) -> Position {
        Position { term: self.start_term, index: self.header.start_index }
    }

    /// Index of the last record.
    pub fn last_index(&self) -> u64 {
        self.header.last_index
    }

    /// Membership at [`Self::start`].
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Who this storage makes the replica.
    pub fn ident(&self) -> Ident {
        self.ident
    }

    /// Whether the state machine was being restored.
    pub fn restoring(&self) -> bool {
        self.header.flags & FLAG_RESTORING != 0
    }

    /// Term and vote.
    pub fn vote(&self) -> (u64, Option<Ident>) {
        (self.header.term, Ident::from_raw(self.header.vote))
    }
}

fn read_base<M: SharedMemory>(
    memory: &M,
    header: &Header,
) -> Result<(Ident, u64, ClusterConfig), OpenError> {
    let damaged = OpenError::Damaged(Damage::Base);
    let mut bytes = [0; BASE_LEN];
    memory.read(BASES[header.base_slot()], &mut bytes);
    let fits = crc32fast::hash(&bytes) == header.base_crc
        && u32_at(&bytes, 0) == BASE_MAGIC
        && u64_at(&bytes, 24) == header.start_index;
    if !fits {
        return Err(damaged);
    }
    let ident = Ident::from_raw(u64_at(&bytes, 8)).ok_or(damaged)?;
    let (config, _) = parse_config(&bytes[32..]).ok_or(damaged)?;
    Ok((ident, u64_at(&bytes, 16), config))
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
