//! The index: where each record lies and how the nodes hang together, in memory of the domain that
//! a crash of its program leaves as it is. A life that begins after an interrupted change need not
//! read every slot: what the change did to the state is lost, and the index tells the state of the
//! commit before.
//!
//! ```text
//! 0   u64 number of the commit that it describes, 0 = none
//! 8   u64 key of the slot store
//! 16  u64 digest of the tree
//! 24  u32 nodes, u32 entries in use
//! 32  u64 sum over all other double words, each times an odd number that its place gives
//! 40  entries, 24 bytes for each record, a record's number is its place:
//!         0   u32 its first slot + 1, 0 = no such record: then its kind is 0, it has no first
//!             child, and the rest may be anything
//!         4   u8 kind, u8 tag of a node's name, u16 owner of a node
//!         8   u32 bytes that a node is accounted with
//!         12  u32 first child + 1, 0 = none
//!         16  u32 next child of the same parent + 1, 0 = none
//!         20  u32 child before it; of the first one, its parent with bit 31 set
//!     and of a watch
//!         6   u16 connection
//!         8   u32 bytes that it is accounted with
//!         12  u64 hash of its path, plus one in each half
//! ..  u32 for each slot (aligned to 8): 0 = free, 1 = the last of its record, else 2 + the slot
//!     that goes on
//! ..  the journal of the change at hand ([`crate::persist::journal`])
//! ```
//!
//! It changes right before its commit: the journal is begun, the number is 0 while words are
//! overwritten, each noted first; then it describes the commit, and the commit header is written.
//! So wherever a crash comes, the header tells whether the commit happened, and the index describes
//! it or is brought back to the commit before by the journal. A change that overwrites more than
//! the journal takes is the exception: after a crash in its midst, the number stays 0 or is not the
//! header's, and every slot is read.
//!
//! The sum tells of damage: a flipped bit always changes it, as does, but for one time in 2^64,
//! anything else. What lies behind the entries and slots in use counts for nothing, and is made
//! zeros when it comes into use.

use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::checksum::checksum;
use crate::effects::Kind;
use crate::persist::journal::{self, JOURNAL_LEN, Journal};
use crate::persist::lazy::Kin;
use crate::persist::reload::word;
use crate::persist::slots::NONE;
use crate::watch::Sketch;

/// Bytes before the entries.
const HEADER_LEN: usize = 40;

/// Where the digest lies.
const DIGEST_AT: usize = 16;

/// Where the counts of nodes and entries lie.
const COUNTS_AT: usize = 24;

/// Where the sum lies.
const SUM_AT: usize = 32;

/// What a change overwrites in the header, beside the number.
const CHANGING: [usize; 3] = [DIGEST_AT, COUNTS_AT, SUM_AT];

/// Bytes of an entry.
pub(super) const ENTRY_LEN: usize = 24;

/// In the place of a child before it: what follows is the parent's number.
const FIRST: u32 = 1 << 31;

/// Bytes that the index of so many slots takes. A record has at least one slot; the first numbers
/// are taken by none.
pub const fn index_len(slots: usize) -> usize {
    journal_at(slots) + JOURNAL_LEN
}

/// Where the journal begins: behind all that it notes.
const fn journal_at(slots: usize) -> usize {
    links_at(slots) + slots.next_multiple_of(2) * LINK_LEN
}

/// Where what is known of the slots begins.
const fn links_at(slots: usize) -> usize {
    HEADER_LEN + (slots + RECORDS_BEYOND) * ENTRY_LEN
}

/// What a double word counts in the sum.
fn factor(at: usize) -> u64 {
    // Times an odd number it stays odd, and so loses no bit.
    GOLDEN.wrapping_mul(at as u64 / 4 + 1)
}

/// What the double words from `at` on count in the sum. Running sums, as Fletcher's, in place of a
/// product for each word: that of a life's first read is waited for.
#[inline(always)]
fn sum_of(at: usize, words: &[[u8; 8]]) -> u64 {
    // In `weighted`, the last word counts once, the one before it twice and so on.
    let (mut plain, mut weighted) = (0u64, 0u64);
    for word in words {
        plain = plain.wrapping_add(u64::from_le_bytes(*word));
        weighted = weighted.wrapping_add(plain);
    }
    // A word that has `i` others before it is to count as often as the first one does, and 2 i
    // times more.
    let all = (at as u64 / 4 + 1).wrapping_add(2 * words.len() as u64);
    GOLDEN.wrapping_mul(plain.wrapping_mul(all).wrapping_sub(weighted.wrapping_mul(2)))
}

/// The golden ratio's fraction in 64 bits; odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes read at once: whole entries, whole double words.
const CHUNK_LEN: usize = 64 * ENTRY_LEN;

/// Bytes of what is known of a slot.
const LINK_LEN: usize = 4;

/// Of a slot: it is free.
pub(super) const FREE: u32 = NONE - 1;

/// What is known of a slot: [`FREE`], [`NONE`] of one with which its record ends, else what goes on
/// after it.
#[inline(always)]
pub(super) fn link_of(bytes: &[u8; LINK_LEN]) -> u32 {
    u32::from_le_bytes(*bytes).wrapping_sub(2)
}

/// Record numbers that a store has beyond the number of its slots.
const RECORDS_BEYOND: usize = 3;

/// What the index knows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The first slot; [`NONE`]: there is no such record.
    pub first_slot: u32,
    kind: u8,
    /// Tells most names of a directory apart ([`tag`]).
    pub tag: u8,
    /// Owner of a node.
    pub owner: u16,
    /// Bytes that a node is accounted with.
    pub memory: u32,
    /// The first child, or [`NONE`].
    pub first_child: u32,
    /// The next child of the same parent, or [`NONE`].
    pub next: u32,
    before: u32,
}

impl Entry {
    /// No record.
    const EMPTY: Self = Self::decode([0; 3]);

    /// Whether it is a node.
    #[inline(always)]
    pub fn is_node(&self) -> bool {
        self.kind == NODE
    }

    /// Where it hangs, if it is a node; of another record, anything.
    #[inline(always)]
    pub fn kin(&self) -> Kin {
        let Self { first_child: first, next, tag, .. } = *self;
        Kin { first, next, tag }
    }

    /// What is known of a watch; `None` if it is none.
    pub fn sketch(&self) -> Option<Sketch> {
        let hash = u64::from(self.first_child) | u64::from(self.next) << 32;
        let sketch = Sketch { client: self.owner, hash, memory: self.memory };
        (self.kind == Kind::Watch.raw()).then_some(sketch)
    }

    /// What the record holds; `None` if there is none.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind)
    }

    /// From its bytes. Where this is called, what is not used costs nothing.
    #[inline(always)]
    pub fn of(bytes: &[u8; ENTRY_LEN]) -> Self {
        let [first, second, third] = [0, 8, 16].map(|at| word(bytes, at));
        Self::decode([first, second, third])
    }

    #[inline(always)]
    const fn decode(words: [u64; 3]) -> Self {
        let [slot_and_kind, memory_and_child, siblings] = words;
        Self {
            first_slot: (slot_and_kind as u32).wrapping_sub(1),
            kind: (slot_and_kind >> 32) as u8,
            tag: (slot_and_kind >> 40) as u8,
            owner: (slot_and_kind >> 48) as u16,
            memory: memory_and_child as u32,
            first_child: ((memory_and_child >> 32) as u32).wrapping_sub(1),
            next: (siblings as u32).wrapping_sub(1),
            before: (siblings >> 32) as u32,
        }
    }

    #[inline(always)]
    fn words(&self) -> [u32; 6] {
        let Self { first_slot, kind, tag, owner, memory, first_child, next, before } = *self;
        let what = u32::from(kind) | u32::from(tag) << 8 | u32::from(owner) << 16;
        let [first_slot, first_child, next] =
            [first_slot, first_child, next].map(|number| number.wrapping_add(1));
        [first_slot, what, memory, first_child, next, before]
    }
}

/// A byte that differs for most names: of a directory's children, those with another one need not
/// be read to find a name.
pub(super) fn tag(name: &[u8]) -> u8 {
    (checksum(GOLDEN, name) >> 56) as u8
}

/// [`Kind::Node`] in an entry.
const NODE: u8 = Kind::Node.raw();

/// A change that the next commit makes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A node has this content, or is new below this parent.
    Node { record: u32, parent: u32, tag: u8, owner: u16, memory: u32 },
    /// A watch has this content.
    Watch { record: u32, sketch: Sketch },
    /// Another record has this content.
    Other { record: u32, kind: Kind },
    /// A record goes; a node perhaps with its parent.
    Gone { record: u32, with_parent: bool },
}

impl Change {
    /// The record.
    pub fn record(&self) -> u32 {
        match self {
            Self::Node { record, .. }
            | Self::Watch { record, .. }
            | Self::Other { record, .. }
            | Self::Gone { record, .. } => *record,
        }
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub committed: u64,
    pub key: u64,
    pub digest: u64,
    pub nodes: u32,
    /// One more than the highest record number that was ever used.
    pub entries: u32,
}

/// The index of a slot store.
#[derive(Debug)]
pub(super) struct Index<M> {
    memory: M,
    slots: usize,
    entries: u32,
    /// The first slots, an even number: behind them, nothing is an index's yet.
    linked: u32,
    /// The sum over entries and slots as they are now.
    sum: u64,
    /// What the change at hand overwrites is noted here; `None`: it cannot be undone.
    journal: Option<Journal>,
    /// Changes of the commit at hand.
    pub pending: Vec<Change>,
    /// The next record to be taken up; `None`: all of them are there.
    pub building: Option<u32>,
}

impl<M: SharedMemory> Index<M> {
    /// An index of `slots` slots in `memory`, which holds what a former life left.
    pub fn new(memory: M, slots: usize) -> Self {
        let wanted = index_len(slots);
        assert!(memory.len() >= wanted, "an index of {} bytes, not {wanted}", memory.len());
        let limit = (slots + RECORDS_BEYOND) as u32;
        let entries = memory.load_u32(COUNTS_AT + 4).min(limit);
        let (pending, building) = (Vec::new(), None);
        Self { memory, slots, entries, linked: 0, sum: 0, journal: None, pending, building }
    }

    /// The index as of the last commit, whose number is `committed`: if the change for the next one
    /// was begun, it is undone. `None` if what that takes is damaged.
    pub fn open(memory: M, slots: usize, committed: u64) -> Option<Self> {
        let index = Self::new(memory, slots);
        let memory = index.memory;
        let (at, next) = (journal_at(slots), committed + 1);
        if journal::notes_commit(&memory, at, next) {
            let header = journal::undo(&memory, at, next)?;
            for (at, word) in CHANGING.iter().zip(header) {
                memory.store_u64(*at, word);
            }
            memory.store_u64(0, committed);
            journal::clear(&memory, at);
        }
        Some(Self::new(memory, slots))
    }

    /// Forgets everything, whatever the memory holds, and takes up what the store with this key
    /// holds from now on.
    pub fn clear(&mut self, key: u64) {
        // Before any other word: an interrupted clearing leaves nothing that is believed.
        self.distrust();
        self.memory.store_u64(8, key);
        (self.entries, self.linked, self.sum) = (0, 0, 0);
        self.pending.clear();
        self.building = Some(1);
    }

    /// What it describes, if it describes anything. It is right if [`Self::is_intact`], after all
    /// entries and slots were looked at.
    pub fn summary(&self) -> Option<Summary> {
        let committed = self.memory.load_u64(0);
        (committed != 0).then(|| Summary {
            committed,
            key: self.memory.load_u64(8),
            digest: self.memory.load_u64(DIGEST_AT),
            nodes: self.memory.load_u32(COUNTS_AT),
            entries: self.entries,
        })
    }

    /// Begins the change for `commit`, the next one: until [`Self::seal`], it can be undone.
    pub fn begin(&mut self, commit: u64) {
        // No life begins by one that is not complete.
        if self.building.is_none() {
            let header = CHANGING.map(|at| self.memory.load_u64(at));
            let at = journal_at(self.slots);
            self.journal = Some(Journal::begin(&self.memory, at, commit, &header));
            self.memory.store_u64(0, 0);
        }
    }

    /// Says that it describes this commit, of so many slots, unless it is not complete.
    pub fn seal(&mut self, committed: u64, digest: u64, nodes: u32, slots: u32) {
        self.cover_slots(slots);
        if self.building.is_none() {
            let counts = u64::from(nodes) | u64::from(self.entries) << 32;
            self.memory.store_u64(DIGEST_AT, digest);
            self.memory.store_u64(COUNTS_AT, counts);
            self.memory.store_u64(SUM_AT, self.header_sum(committed).wrapping_add(self.sum));
            self.memory.store_u64(0, committed);
        }
        self.journal = None;
    }

    /// Whether what was looked at, and what the summary said, is what was written.
    pub fn is_intact(&self, summary: &Summary) -> bool {
        self.header_sum(summary.committed).wrapping_add(self.sum) == self.memory.load_u64(SUM_AT)
    }

    fn header_sum(&self, committed: u64) -> u64 {
        let rest = [8, DIGEST_AT, COUNTS_AT].map(|at| (at, self.memory.load_u64(at)));
        [(0, committed)]
            .iter()
            .chain(&rest)
            .fold(0, |sum, (at, word)| sum.wrapping_add(word.wrapping_mul(factor(*at))))
    }

    /// From now on, until it is sealed again, no life believes it.
    pub fn distrust(&self) {
        self.memory.store_u64(0, 0);
        journal::clear(&self.memory, journal_at(self.slots));
    }

    /// Looks at all entries, some at a time, in the order of their records, and sums them up.
    pub fn each_entries(&mut self, mut look: impl FnMut(&[[u8; ENTRY_LEN]])) {
        let end = entry_at(self.entries);
        self.each_chunk(HEADER_LEN, end, |bytes| look(bytes.as_chunks().0));
    }

    /// Looks at the first `count` slots, some at a time, in turn, and sums them up: what
    /// [`link_of`] makes of each.
    pub fn each_links(&mut self, count: u32, mut look: impl FnMut(&[[u8; LINK_LEN]])) {
        self.linked = self.linked.max(count.next_multiple_of(2));
        let begin = links_at(self.slots);
        let end = begin + count.next_multiple_of(2) as usize * LINK_LEN;
        let mut left = count as usize;
        self.each_chunk(begin, end, |bytes| {
            let links = bytes.as_chunks().0;
            let links = &links[..links.len().min(left)];
            left -= links.len();
            look(links);
        });
    }

    /// Reads the double words in `begin..end`, some at a time, and adds them to the sum.
    #[inline(always)]
    fn each_chunk(&mut self, begin: usize, end: usize, mut look: impl FnMut(&[u8])) {
        let mut bytes = [0; CHUNK_LEN];
        let mut sum = self.sum;
        for at in (begin..end).step_by(CHUNK_LEN) {
            let bytes = &mut bytes[..(end - at).min(CHUNK_LEN)];
            self.memory.read(at, bytes);
            sum = sum.wrapping_add(sum_of(at, bytes.as_chunks().0));
            look(bytes);
        }
        self.sum = sum;
    }

    /// Notes which slot goes on after `slot` ([`NONE`]: none does).
    pub fn link(&mut self, slot: u32, next: u32) {
        self.cover_slots(slot + 1);
        self.set_word(links_at(self.slots) + slot as usize * 4, next.wrapping_add(2));
    }

    /// Notes that a slot is free.
    pub fn free(&mut self, slot: u32) {
        self.cover_slots(slot + 1);
        self.set_word(links_at(self.slots) + slot as usize * 4, 0);
    }

    /// Writes half a double word, and keeps the sum right.
    #[inline]
    fn set_word(&mut self, at: usize, word: u32) {
        let old = self.memory.load_u32(at);
        if old == word {
            return;
        }
        if let Some(journal) = &mut self.journal
            && !journal.note(&self.memory, at, old)
        {
            self.distrust();
            self.journal = None;
        }
        let change = u64::from(word).wrapping_sub(u64::from(old)) << (at % 8 * 8);
        self.sum = self.sum.wrapping_add(change.wrapping_mul(factor(at / 8 * 8)));
        self.memory.store_u32(at, word);
    }

    /// Whether it has a record.
    pub fn has(&self, record: u32) -> bool {
        self.entry(record).first_slot != NONE
    }

    /// Makes a change. `first_slot` is where the record begins now.
    pub fn apply(&mut self, change: &Change, first_slot: u32) {
        let record = change.record();
        self.cover(record);
        let old = self.entry(record);
        match *change {
            Change::Gone { with_parent, .. } => {
                // Nobody follows a list of children that goes as a whole.
                if old.is_node() && !with_parent {
                    self.unlink(&old);
                }
                let gone = Entry { first_slot: NONE, kind: 0, first_child: NONE, ..old };
                self.set(record, &old, &gone);
            }
            Change::Watch { sketch: Sketch { client, hash, memory }, .. } => {
                let (first_child, next) = (hash as u32, (hash >> 32) as u32);
                let kind = Kind::Watch.raw();
                let place = Entry { first_slot, kind, owner: client, memory, ..Entry::EMPTY };
                self.set(record, &old, &Entry { first_child, next, ..place });
            }
            Change::Other { kind, .. } => {
                let new = Entry { first_slot, kind: kind.raw(), ..old };
                self.set(record, &old, &new);
            }
            Change::Node { parent, tag, owner, memory, .. } => {
                let new = Entry { first_slot, kind: NODE, tag, owner, memory, ..old };
                self.set(record, &old, &new);
                // The root hangs on nothing.
                if old.first_slot == NONE && parent != 0 {
                    self.hang(record, parent);
                }
            }
        }
    }

    /// Puts a record before the other children of its parent.
    fn hang(&mut self, record: u32, parent: u32) {
        self.cover(parent);
        let next = self.entry(parent).first_child;
        self.store(record, 16, next.wrapping_add(1));
        self.store(record, 20, FIRST | parent);
        if next != NONE {
            self.store(next, 20, record);
        }
        self.store(parent, 12, record + 1);
    }

    /// Takes a record from among the children of its parent.
    fn unlink(&mut self, old: &Entry) {
        if old.next != NONE {
            self.store(old.next, 20, old.before);
        }
        match old.before {
            0 => {}
            first if first & FIRST != 0 => {
                self.store(first & !FIRST, 12, old.next.wrapping_add(1));
            }
            before => self.store(before, 16, old.next.wrapping_add(1)),
        }
    }

    /// Begins the use of a record's entry.
    fn cover(&mut self, record: u32) {
        if record >= self.entries {
            let begin = entry_at(self.entries);
            self.entries = record + 1;
            self.memory.fill(begin, entry_at(self.entries) - begin, 0);
        }
    }

    /// Begins the use of the first `count` slots' words.
    fn cover_slots(&mut self, count: u32) {
        if count > self.linked {
            let begin = links_at(self.slots) + self.linked as usize * 4;
            self.linked = count.next_multiple_of(2);
            let end = links_at(self.slots) + self.linked as usize * 4;
            self.memory.fill(begin, end - begin, 0);
        }
    }

    fn entry(&self, record: u32) -> Entry {
        if record >= self.entries {
            return Entry::EMPTY;
        }
        Entry::decode([0, 8, 16].map(|more| self.memory.load_u64(entry_at(record) + more)))
    }

    /// Writes those words of an entry that are other ones than before.
    fn set(&mut self, record: u32, old: &Entry, new: &Entry) {
        let (old, new) = (old.words(), new.words());
        for place in 0..new.len() {
            if new[place] != old[place] {
                self.store(record, place * 4, new[place]);
            }
        }
    }

    fn store(&mut self, record: u32, at: usize, word: u32) {
        if record < self.entries {
            self.set_word(entry_at(record) + at, word);
        }
    }

    /// The memory that holds it.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

fn entry_at(record: u32) -> usize {
    HEADER_LEN + record as usize * ENTRY_LEN
}

#[cfg(test)]
mod tests;
