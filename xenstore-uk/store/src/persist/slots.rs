//! Writing records and commits.

use alloc::vec::Vec;
use fabric::SharedMemory;

use crate::checksum::{Checksum, checksum};
use crate::effects::Kind;
use crate::node::{ENTRY_LEN, NODE_OVERHEAD};
use crate::ops::sketch_of_watch;
use crate::persist::index::{Change, Index, tag};
use crate::persist::reload::{half, quarter, read_header};
use crate::persist::{
    CONTENT_AT, CONTENT_LEN, HEADER_KEY, HEADER_LEN, MAGIC, RESERVED_SLOTS, SLOT_LEN, SLOTS_AT,
    VERSION,
};
use crate::pulse::Pulse;
use crate::state::NODE_HEAD_LEN;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    /// Its first slot, or [`NONE`].
    pub first: u32,
    /// Whether the commit at hand wrote it.
    pub is_new: bool,
    /// Whether the last commit holds an older content of it.
    pub has_older: bool,
}

impl Chain {
    pub(super) const EMPTY: Self = Self::at(NONE);

    /// That of a record that the last commit holds.
    pub(super) const fn at(first: u32) -> Self {
        Self { first, is_new: false, has_older: false }
    }
}

/// The slot store.
#[derive(Debug)]
pub struct SlotStore<M> {
    pub(super) memory: M,
    pub(super) key: u64,
    pub(super) capacity: u32,
    /// The slot that continues a record, per slot ever used.
    pub(super) next: Vec<u32>,
    /// Where each record lies.
    pub(super) chains: Vec<Chain>,
    pub(super) free: Vec<u32>,
    /// Number of the last commit.
    pub(super) committed: u64,
    /// Index of the last replicated log entry that is part of it.
    pub(super) applied: u64,
    /// Records written by the commit at hand.
    written: Vec<u32>,
    /// Slots that the commit at hand supersedes.
    pub(super) superseded: Vec<u32>,
    /// Slots of its tombstones.
    tombstones: Vec<u32>,
    /// Tells where everything is to a life that follows an interrupted change.
    pub(super) index: Option<Index<M>>,
    /// Tells that longer work goes on.
    pub(crate) pulse: Pulse,
}

impl<M: SharedMemory> SlotStore<M> {
    /// Erases the memory and begins an empty store. `key` is random. The memory must hold the
    /// headers and more than [`RESERVED_SLOTS`] slots.
    pub fn format(memory: M, key: u64) -> Self {
        memory.fill(0, memory.len() / 8 * 8, 0);
        Self::with_memory(memory, key)
    }

    pub(super) fn with_memory(memory: M, key: u64) -> Self {
        let capacity = (memory.len().saturating_sub(SLOTS_AT) / SLOT_LEN) as u32;
        assert!(capacity as usize > RESERVED_SLOTS, "slot store of {capacity} slots is too small");
        Self {
            memory,
            key,
            capacity,
            next: Vec::new(),
            chains: Vec::new(),
            free: Vec::new(),
            committed: 0,
            applied: 0,
            written: Vec::new(),
            superseded: Vec::new(),
            tombstones: Vec::new(),
            index: None,
            pulse: Pulse::default(),
        }
    }

    /// Number of the last commit.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Index of the last replicated log entry that the last commit contains.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Notes the log index that the next commit contains.
    pub fn set_applied(&mut self, applied: u64) {
        self.applied = applied;
    }

    /// Makes the next commit of an empty store the one after `committed`, with all log entries up
    /// to `applied`.
    pub fn begin_at(&mut self, committed: u64, applied: u64) {
        (self.committed, self.applied) = (committed, applied);
    }

    /// Makes the log index durable although nothing else has changed.
    pub fn save_applied(&mut self) {
        let header = self.header();
        self.memory.write(0, &header);
        self.memory.write(SLOT_LEN, &header);
    }

    /// Slots that are free.
    pub fn free_slots(&self) -> usize {
        self.free.len() + self.capacity as usize - self.next.len()
    }

    /// Slots that hold something.
    pub fn used_slots(&self) -> usize {
        self.next.len() - self.free.len()
    }

    /// Whether `records` more records of `bytes` bytes in all find room beside the reserve.
    pub fn has_room(&self, records: usize, bytes: usize) -> bool {
        self.free_slots() >= RESERVED_SLOTS + records + bytes / CONTENT_LEN
    }

    /// Whether a record of `bytes` bytes finds room in the reserve, and some tombstones after it.
    pub fn has_reserve(&self, bytes: usize) -> bool {
        self.free_slots() >= RESERVED_SLOTS / 4 + bytes / CONTENT_LEN
    }

    /// The memory that holds it.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Key of the checksums.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Writes a record as part of the next commit, in place of its former content.
    pub fn put(&mut self, record: u32, kind: Kind, head: &[u8], body: &[u8]) {
        self.pulse.worked(1);
        let old = self.chain(record);
        let has_older = self.retire(old);
        let first = self.write_record(record, kind, head, body);
        *self.chain_mut(record) = Chain { first, is_new: true, has_older };
        self.written.push(record);
        let change = match kind {
            Kind::Node => Self::node(record, head, body),
            Kind::Watch => Self::watch(record, head),
            kind => Change::Other { record, kind },
        };
        self.note(change);
    }

    /// What the index keeps of a watch's content.
    pub(super) fn watch(record: u32, content: &[u8]) -> Change {
        match sketch_of_watch(content) {
            Some(sketch) => Change::Watch { record, sketch },
            // Nobody writes one that cannot be read; it is no watch to any life.
            None => Change::Other { record, kind: Kind::Watch },
        }
    }

    /// What the index keeps of a node's content.
    pub(super) fn node(record: u32, head: &[u8], body: &[u8]) -> Change {
        let (head, body) = match head.split_first_chunk::<NODE_HEAD_LEN>() {
            // All of it in one piece, as it came from elsewhere.
            Some((head, rest)) if body.is_empty() => (head.as_slice(), rest),
            _ => (head, body),
        };
        let name_at = usize::from(quarter(head, 22)) * ENTRY_LEN;
        let name = body.get(name_at..name_at + usize::from(quarter(head, 20))).unwrap_or(&[]);
        let (parent, owner, tag) = (half(head, 16), quarter(body, 0), tag(name));
        Change::Node { record, parent, tag, owner, memory: (NODE_OVERHEAD + body.len()) as u32 }
    }

    fn note(&mut self, change: Change) {
        if let Some(index) = &mut self.index {
            index.pending.push(change);
        }
    }

    /// Drops a record in the next commit.
    pub fn delete(&mut self, record: u32) {
        self.pulse.worked(1);
        let old = self.chain(record);
        if self.retire(old) {
            let slot = self.write_record(record, Kind::Tombstone, &[], &[]);
            self.tombstones.push(slot);
        }
        *self.chain_mut(record) = Chain::EMPTY;
        self.note(Change::Gone { record, with_parent: false });
    }

    /// Drops the record of a node whose parent the next commit drops: it needs no tombstone.
    pub fn forget(&mut self, record: u32) {
        self.pulse.worked(1);
        let old = self.chain(record);
        self.retire(old);
        *self.chain_mut(record) = Chain::EMPTY;
        self.note(Change::Gone { record, with_parent: true });
    }

    /// Makes what was written durable, then frees what it supersedes. The tree has this digest and
    /// so many nodes then: what a life that begins by the index cannot count.
    pub fn commit(&mut self, digest: u64, nodes: u32) {
        self.committed += 1;
        self.update_index(digest, nodes);
        let header = self.header();
        self.memory.write(0, &header);
        self.memory.write(SLOT_LEN, &header);
        while let Some(record) = self.written.pop() {
            if let Some(chain) = self.chains.get_mut(record as usize) {
                chain.is_new = false;
                chain.has_older = false;
            }
        }
        while let Some(first) = self.superseded.pop() {
            self.release(first);
        }
        while let Some(slot) = self.tombstones.pop() {
            self.release(slot);
        }
    }

    /// Slots that hold a record of the commit at hand: those in use, but for what is freed once the
    /// commit has happened.
    pub(super) fn counting_slots(&self) -> u32 {
        let chains = self.superseded.iter().chain(&self.tombstones);
        let freed: usize = chains.map(|first| self.chain_len(*first)).sum();
        (self.used_slots() - freed) as u32
    }

    fn chain_len(&self, first: u32) -> usize {
        let following = |slot: &u32| Some(self.next[*slot as usize]).filter(|next| *next != NONE);
        core::iter::successors(Some(first), following).count()
    }

    /// The header of the commit at hand.
    pub(super) fn header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[8..12].copy_from_slice(&MAGIC.to_le_bytes());
        header[12..16].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.key.to_le_bytes());
        header[24..32].copy_from_slice(&self.committed.to_le_bytes());
        header[32..40].copy_from_slice(&self.applied.to_le_bytes());
        header[40..44].copy_from_slice(&(self.next.len() as u32).to_le_bytes());
        header[44..48].copy_from_slice(&self.counting_slots().to_le_bytes());
        let sum = checksum(HEADER_KEY, &header[8..]);
        header[..8].copy_from_slice(&sum.to_le_bytes());
        header
    }

    /// Writes a damaged copy of the commit header again. Answers whether one was.
    pub fn scrub_headers(&self) -> bool {
        let copies = [0, SLOT_LEN].map(|at| read_header(&self.memory, at));
        let is_damaged = copies.iter().any(Option::is_none);
        if is_damaged {
            let header = self.header();
            self.memory.write(0, &header);
            self.memory.write(SLOT_LEN, &header);
        }
        is_damaged
    }

    /// Checks up to `count` slots from `from` on against their checksums. Answers the damaged
    /// record, if one was found, and where to go on (0 after the last slot).
    pub fn scrub(&self, from: u32, count: u32) -> (Option<u32>, u32) {
        let until = from.saturating_add(count).min(self.next.len() as u32);
        for slot in from..until {
            let at = slot_at(slot);
            let sum = self.memory.load_u64(at);
            let mut bytes = [0; SLOT_LEN];
            self.memory.read(at, &mut bytes);
            if sum != 0 && sum != slot_sum(self.key, &bytes) {
                return (self.owner_of(slot), slot + 1);
            }
        }
        (None, if until == self.next.len() as u32 { 0 } else { until })
    }

    /// The record that a slot belongs to: slow, for damage alone.
    fn owner_of(&self, slot: u32) -> Option<u32> {
        let holds = |chain: &Chain| {
            let mut at = chain.first;
            while at != NONE {
                if at == slot {
                    return true;
                }
                at = self.next[at as usize];
            }
            false
        };
        self.chains.iter().position(holds).map(|record| record as u32)
    }

    fn chain(&self, record: u32) -> Chain {
        self.chains.get(record as usize).copied().unwrap_or(Chain::EMPTY)
    }

    pub(super) fn chain_mut(&mut self, record: u32) -> &mut Chain {
        let index = record as usize;
        if index >= self.chains.len() {
            self.chains.resize(index + 1, Chain::EMPTY);
        }
        &mut self.chains[index]
    }

    /// Takes a chain out of use. Answers whether the last commit holds a content of the record,
    /// this one or an older one.
    fn retire(&mut self, chain: Chain) -> bool {
        if chain.first == NONE {
            return false;
        }
        if chain.is_new {
            self.release(chain.first);
            chain.has_older
        } else {
            self.superseded.push(chain.first);
            true
        }
    }

    /// Frees a chain.
    pub(super) fn release(&mut self, first: u32) {
        self.pulse.worked(1);
        let mut slot = first;
        while slot != NONE {
            self.memory.store_u64(slot_at(slot), 0);
            self.free.push(slot);
            slot = core::mem::replace(&mut self.next[slot as usize], NONE);
        }
    }

    fn allocate(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        let slot = self.next.len() as u32;
        assert!(slot < self.capacity, "slot store full: {slot} slots; has_room was not asked");
        self.next.push(NONE);
        slot
    }

    /// Writes a record's slots, the last part first, and answers the first slot.
    fn write_record(&mut self, record: u32, kind: Kind, head: &[u8], body: &[u8]) -> u32 {
        let len = head.len() + body.len();
        let parts = len.div_ceil(CONTENT_LEN).max(1);
        let mut first = NONE;
        for part in (0..parts).rev() {
            let slot = self.allocate();
            let start = part * CONTENT_LEN;
            let count = (len - start).min(CONTENT_LEN);
            let mut bytes = [0; SLOT_LEN];
            bytes[8..16].copy_from_slice(&(self.committed + 1).to_le_bytes());
            bytes[16..20].copy_from_slice(&record.to_le_bytes());
            bytes[20..22].copy_from_slice(&(part as u16).to_le_bytes());
            bytes[22..24].copy_from_slice(&(parts as u16).to_le_bytes());
            bytes[24] = kind.raw();
            bytes[26..28].copy_from_slice(&(count as u16).to_le_bytes());
            copy_joined(head, body, start, &mut bytes[CONTENT_AT..CONTENT_AT + count]);
            let at = slot_at(slot);
            let used = CONTENT_AT + count;
            self.memory.write(at + 8, &bytes[8..used.next_multiple_of(8)]);
            self.memory.store_u64(at, slot_sum(self.key, &bytes));
            self.next[slot as usize] = first;
            first = slot;
        }
        first
    }
}

/// The checksum of a slot: over its head and as much content as it says it has.
#[inline]
pub(super) fn slot_sum(key: u64, bytes: &[u8; SLOT_LEN]) -> u64 {
    let count = usize::from(u16::from_le_bytes([bytes[26], bytes[27]])).min(CONTENT_LEN);
    let head = bytes[8..CONTENT_AT].as_chunks::<8>().0.iter();
    head.fold(Checksum::new(key), |sum, word| sum.word(u64::from_le_bytes(*word)))
        .bytes(&bytes[CONTENT_AT..CONTENT_AT + count])
        .finish()
}

/// Where a slot lies in the memory.
pub(super) fn slot_at(slot: u32) -> usize {
    SLOTS_AT + slot as usize * SLOT_LEN
}

/// Copies `into.len()` bytes from `start` on of `head` and `body` joined.
fn copy_joined(head: &[u8], body: &[u8], start: usize, into: &mut [u8]) {
    let from_head = head.get(start..).unwrap_or(&[]);
    let count = from_head.len().min(into.len());
    into[..count].copy_from_slice(&from_head[..count]);
    let rest = &mut into[count..];
    let body_start = (start + count).saturating_sub(head.len());
    rest.copy_from_slice(&body[body_start..body_start + rest.len()]);
}
