//! Reading a store back in one scan.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use fabric::SharedMemory;
use wire::{Access, Permission};

use crate::checksum::{checksum, spread};
use crate::effects::Kind;
use crate::node::{ENTRY_LEN, NODE_OVERHEAD, Node, ROOT_HASH};
use crate::persist::lazy::{Kin, Unloaded};
use crate::persist::owned::Owned;
use crate::persist::slots::{Chain, NONE, SlotStore, slot_at, slot_sum};
use crate::persist::{CONTENT_AT, CONTENT_LEN, HEADER_KEY, HEADER_LEN, MAGIC, SLOT_LEN, VERSION};
use crate::pulse::Pulse;
use crate::state::{FIRST_FREE_RECORD, NODE_HEAD_LEN};
use crate::tree::{ROOT_RECORD, Tree};
use crate::watch::Sketch;

/// What a reload found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Nodes in the tree.
    pub nodes: u32,
    /// Slots looked at.
    pub slots: u32,
    /// Slots of the commit that was under way: it never happened.
    pub uncommitted: u32,
    /// Slots that were neither free nor intact: memory was damaged.
    pub damaged_slots: u32,
    /// Slots that the last commit counts, less those that were found: damaged ones, and ones that
    /// damage has made look free.
    pub missing_slots: u32,
    /// Records that damage made incomplete, unreadable or unreachable.
    pub lost_records: u32,
}

/// The nodes of a reloaded store.
#[derive(Debug)]
pub struct LoadedNodes {
    /// The tree: its root, with count and digest of all.
    pub tree: Tree,
    /// What remains to be made of it.
    pub(crate) unloaded: Unloaded,
    /// Nodes and bytes that each domain owns.
    pub owned: BTreeMap<u16, (u32, u64)>,
}

/// A reloaded store.
#[derive(Debug)]
pub struct Loaded {
    /// Its nodes.
    pub nodes: LoadedNodes,
    /// Its other records: kind, number, content.
    pub others: Vec<(Kind, u32, Vec<u8>)>,
    /// Watches that are not among them: record number, and what is known without reading it.
    pub(crate) watches: Vec<(u32, Sketch)>,
    /// One more than the highest record number.
    pub next_record: u32,
    /// Record numbers below that are not in use.
    pub free_records: Vec<u32>,
    /// What was found.
    pub report: LoadReport,
}

/// What the scan knows of one record.
#[derive(Clone, Copy)]
struct Entry {
    sequence: u64,
    head: u32,
    seen: u16,
    parts: u16,
    kind: Option<Kind>,
}

const UNSEEN: Entry = Entry { sequence: 0, head: NONE, seen: 0, parts: 0, kind: None };

/// What the scan keeps of a node's record.
#[derive(Clone, Copy)]
struct Light {
    sum: u64,
    /// [`NONE`] if the record is no node.
    parent: u32,
    memory: u32,
    owner: u16,
}

const NO_NODE: Light = Light { sum: 0, parent: NONE, memory: 0, owner: 0 };

/// A reload under way.
struct Scan<M> {
    store: SlotStore<M>,
    entries: Vec<Entry>,
    nodes: Vec<Light>,
    owner: u16,
    report: LoadReport,
}

impl<M: SharedMemory> SlotStore<M> {
    /// Reads a store back; `None` if there is none (no intact commit header). A commit that was
    /// under way is undone, one that happened is completed.
    ///
    /// `owner` owns the root if that was lost to damage.
    pub fn open(memory: M, owner: u16) -> Option<(Self, Loaded)> {
        Self::open_under_watch(memory, owner, Pulse::default())
    }

    /// As [`Self::open`], with signs of life by `pulse`: a service that has begun to serve must
    /// give them.
    pub(crate) fn open_under_watch(memory: M, owner: u16, pulse: Pulse) -> Option<(Self, Loaded)> {
        let header = newest_header(&memory)?;
        let mut store = Self::with_memory(memory, header.key);
        store.committed = header.committed;
        store.applied = header.applied;
        store.pulse = pulse;
        // Slots of a commit that did not happen may lie beyond those that the header counts: a
        // commit takes no more than the free ones beside the others.
        let used = header.slots.min(store.capacity);
        let mut scan = Scan {
            store,
            entries: alloc::vec![UNSEEN; used as usize + 4],
            nodes: alloc::vec![NO_NODE; used as usize + 4],
            owner,
            report: LoadReport::default(),
        };
        scan.read_slots(used);
        scan.report.uncommitted += scan.store.erase_beyond(used);
        Some(scan.finish(header.counting))
    }
}

/// A commit header.
pub(super) struct Header {
    pub key: u64,
    pub committed: u64,
    pub applied: u64,
    /// Slots ever used.
    pub slots: u32,
    counting: u32,
}

/// The intact header of the last commit.
pub(super) fn newest_header<M: SharedMemory>(memory: &M) -> Option<Header> {
    let headers = [0, SLOT_LEN].into_iter().filter_map(|at| read_header(memory, at));
    headers.max_by_key(|header| (header.committed, header.applied))
}

pub(super) fn read_header<M: SharedMemory>(memory: &M, at: usize) -> Option<Header> {
    let mut bytes = [0; HEADER_LEN];
    memory.read(at, &mut bytes);
    let intact = word(&bytes, 0) == checksum(HEADER_KEY, &bytes[8..]);
    let known = half(&bytes, 8) == MAGIC && half(&bytes, 12) == VERSION;
    (intact && known).then(|| Header {
        key: word(&bytes, 16),
        committed: word(&bytes, 24),
        applied: word(&bytes, 32),
        slots: half(&bytes, 40),
        counting: half(&bytes, 44),
    })
}

#[inline(always)]
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |half| u32::from_le_bytes(*half))
}

#[inline(always)]
pub(super) fn quarter(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |quarter| u16::from_le_bytes(*quarter))
}

impl<M: SharedMemory> Scan<M> {
    fn read_slots(&mut self, used: u32) {
        self.store.next = Vec::with_capacity(used as usize);
        self.store.next.resize(used as usize, NONE);
        let mut bytes = [0; SLOT_LEN];
        for slot in 0..used {
            let at = slot_at(slot);
            let sum = self.store.memory.load_u64(at);
            if sum == 0 {
                self.store.free.push(slot);
                continue;
            }
            self.report.slots += 1;
            self.store.pulse.worked(1);
            self.store.memory.read(at, &mut bytes);
            if slot_sum(self.store.key, &bytes) != sum {
                self.report.damaged_slots += 1;
                self.store.release(slot);
            } else if word(&bytes, 8) > self.store.committed {
                self.report.uncommitted += 1;
                self.store.release(slot);
            } else {
                self.take(slot, &bytes);
            }
        }
    }

    /// Takes an intact slot of a commit that happened.
    #[inline(always)]
    fn take(&mut self, slot: u32, bytes: &[u8; SLOT_LEN]) {
        let (sequence, record) = (word(bytes, 8), half(bytes, 16));
        let index = record as usize;
        // Each record has a slot, so numbers beyond the slots are damage that no checksum saw.
        let kind = Kind::from_raw(bytes[24]).filter(|_| record <= self.store.capacity + 2);
        let (Some(kind), true) = (kind, record > 0) else {
            self.report.damaged_slots += 1;
            self.store.release(slot);
            return;
        };
        if index >= self.entries.len() {
            self.entries.resize(index + 1, UNSEEN);
            self.nodes.resize(index + 1, NO_NODE);
        }
        let known = self.entries[index];
        if known.head != NONE && sequence < known.sequence {
            self.store.release(slot);
            return;
        }
        let parts = quarter(bytes, 22);
        if known.head != NONE && sequence == known.sequence {
            self.store.next[slot as usize] = known.head;
            self.entries[index].head = slot;
            self.entries[index].seen += 1;
            return;
        }
        if known.head != NONE {
            self.store.release(known.head);
            self.nodes[index] = NO_NODE;
        }
        self.entries[index] = Entry { sequence, head: slot, seen: 1, parts, kind: Some(kind) };
        if kind == Kind::Node && parts == 1 {
            let len = usize::from(quarter(bytes, 26)).min(CONTENT_LEN);
            let content = &bytes[CONTENT_AT..CONTENT_AT + len];
            self.nodes[index] = light(content);
        }
    }

    /// Puts together what was found; `counting` slots should have been.
    fn finish(mut self, counting: u32) -> (SlotStore<M>, Loaded) {
        let mut others = Vec::new();
        let mut tombstones = Vec::new();
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            let Some(kind) = entry.kind else { continue };
            if kind == Kind::Node && entry.parts == 1 && self.nodes[index].parent != NONE {
                continue;
            }
            if kind == Kind::Tombstone {
                tombstones.push(entry.head);
                self.entries[index] = UNSEEN;
            } else if entry.seen != entry.parts || (kind == Kind::Node && entry.parts == 1) {
                self.lose(index);
            } else {
                let content = self.gather(index);
                self.take_long(index, kind, content, &mut others);
            }
        }
        let nodes = self.link();
        for slot in tombstones {
            self.store.release(slot);
        }
        self.report.missing_slots = counting.saturating_sub(self.store.counting_slots());
        // Both headers say the same from now on.
        self.store.save_applied();
        self.store.chains = self.entries.iter().map(|entry| Chain::at(entry.head)).collect();
        let nodes = self.make_root(nodes);
        let used = |record: &u32| self.entries[*record as usize].head != NONE;
        let next_record = self.entries.len() as u32;
        let free_records =
            (FIRST_FREE_RECORD..next_record).rev().filter(|record| !used(record)).collect();
        let report = self.report;
        (
            self.store,
            Loaded { nodes, others, watches: Vec::new(), next_record, free_records, report },
        )
    }

    /// Takes a record of several parts, or one that is not a node.
    fn take_long(
        &mut self,
        index: usize,
        kind: Kind,
        content: Vec<u8>,
        others: &mut Vec<(Kind, u32, Vec<u8>)>,
    ) {
        if kind != Kind::Node {
            others.push((kind, index as u32, content));
            return;
        }
        self.nodes[index] = light(&content);
        if self.nodes[index].parent == NONE {
            self.lose(index);
        }
    }

    /// Gives a record up.
    fn lose(&mut self, index: usize) {
        self.report.lost_records += 1;
        self.discard(index);
    }

    fn discard(&mut self, index: usize) {
        let entry = core::mem::replace(&mut self.entries[index], UNSEEN);
        self.store.release(entry.head);
        self.nodes[index] = NO_NODE;
    }

    /// Joins the parts of a record and puts its chain in their order.
    fn gather(&mut self, index: usize) -> Vec<u8> {
        let mut parts: Vec<(u16, u32, [u8; SLOT_LEN])> = Vec::new();
        let mut slot = self.entries[index].head;
        while slot != NONE {
            let mut bytes = [0; SLOT_LEN];
            self.store.memory.read(slot_at(slot), &mut bytes);
            parts.push((quarter(&bytes, 20), slot, bytes));
            slot = self.store.next[slot as usize];
        }
        parts.sort_by_key(|(part, ..)| *part);
        let mut content = Vec::with_capacity(parts.len() * CONTENT_LEN);
        let mut following = NONE;
        for (_, slot, _) in parts.iter().rev() {
            self.store.next[*slot as usize] = following;
            following = *slot;
        }
        self.entries[index].head = following;
        for (.., bytes) in &parts {
            let len = usize::from(quarter(bytes, 26)).min(CONTENT_LEN);
            content.extend_from_slice(&bytes[CONTENT_AT..CONTENT_AT + len]);
        }
        content
    }

    /// Finds out which nodes the root reaches, and counts them. What it does not reach is dropped:
    /// subtrees whose removal was committed but not cleaned up, or whose root was lost to damage.
    fn link(&mut self) -> Linked {
        let kin = children_by_parent(&self.nodes);
        let mut found = Owned::new();
        let (mut digest, mut nodes, mut left) = (0u64, 0, 0);
        let mut reached = alloc::vec![false; self.nodes.len()];
        let mut waiting = Vec::from([ROOT_RECORD]);
        while let Some(record) = waiting.pop() {
            let index = record as usize;
            let node = self.nodes[index];
            reached[index] = true;
            digest = digest.wrapping_add(spread(node.sum));
            nodes += 1;
            found.add(node.owner, node.memory);
            let mut child = kin[index].first;
            left += u32::from(child != NONE);
            while child != NONE {
                waiting.push(child);
                child = kin[child as usize].next;
            }
        }
        for (index, reached) in reached.into_iter().enumerate() {
            if !reached && self.nodes[index].parent != NONE {
                self.report.lost_records += u32::from(self.report.damaged_slots > 0);
                self.discard(index);
            }
        }
        self.report.nodes = nodes;
        let unloaded = Unloaded::new(kin, left, self.store.committed);
        Linked { unloaded, found, digest }
    }

    /// Makes the root, so that there is a tree.
    fn make_root(&mut self, linked: Linked) -> LoadedNodes {
        let Linked { unloaded, mut found, mut digest } = linked;
        let root = self.store.load_node(ROOT_RECORD, unloaded.since).unwrap_or_else(|| {
            // Lost to damage; whatever else is left hangs on it.
            self.report.lost_records += 1;
            let mut root = Node::new(b"", &[Permission::new(self.owner, Access::NONE)], b"", 0);
            root.record = ROOT_RECORD;
            root.sum = root.compute_sum(ROOT_HASH);
            digest = digest.wrapping_sub(spread(NO_NODE.sum)).wrapping_add(spread(root.sum));
            found.add(root.owner(), root.memory() as u32);
            Rc::new(root)
        });
        let tree = Tree::from_root(root, digest, self.report.nodes, self.store.key);
        LoadedNodes { tree, unloaded, owned: found.finish() }
    }
}

/// The nodes that the root reaches.
struct Linked {
    unloaded: Unloaded,
    found: Owned,
    digest: u64,
}

impl<M: SharedMemory> SlotStore<M> {
    /// Clears what an interrupted commit left behind the slots that the header counts: they are
    /// contiguous, because slots are taken in order. Answers how many they were.
    pub(super) fn erase_beyond(&self, used: u32) -> u32 {
        let mut uncommitted = 0;
        for slot in used..self.capacity {
            let at = slot_at(slot);
            // An interrupted write may have left content without a checksum before others'.
            let mut bytes = [0; SLOT_LEN];
            self.memory.read(at, &mut bytes);
            if bytes == [0; SLOT_LEN] {
                break;
            }
            uncommitted += u32::from(word(&bytes, 0) != 0);
            self.memory.fill(at, SLOT_LEN, 0);
        }
        uncommitted
    }

    /// Whether records from elsewhere make a store that fits here: each number once, none beyond
    /// the slots, every node readable and reached by the root.
    pub(crate) fn takes<'a>(&self, records: impl Iterator<Item = (u32, Kind, &'a [u8])>) -> bool {
        let room = self.capacity as usize;
        let (mut slots, mut count) = (0, 0);
        let mut is_used = alloc::vec![false; room + 1];
        let mut nodes = alloc::vec![NO_NODE; room + 1];
        for (number, kind, content) in records {
            slots += content.len().div_ceil(CONTENT_LEN).max(1);
            let index = number as usize;
            if number == 0 || index > room || is_used[index] || kind == Kind::Tombstone {
                return false;
            }
            is_used[index] = true;
            if kind == Kind::Node {
                nodes[index] = light(content);
                count += 1;
            }
        }
        slots <= room && count > 0 && reached(&nodes) == count
    }
}

/// How many nodes the root reaches; 0 without a root.
fn reached(nodes: &[Light]) -> usize {
    let root = ROOT_RECORD as usize;
    if nodes[root].parent != 0 {
        return 0;
    }
    let kin = children_by_parent(nodes);
    let mut waiting = Vec::from([ROOT_RECORD]);
    let mut count = 0;
    while let Some(record) = waiting.pop() {
        count += 1;
        let mut child = kin[record as usize].first;
        while child != NONE {
            waiting.push(child);
            child = kin[child as usize].next;
        }
    }
    count
}

/// The first child of each record, and the next one of the same parent after each.
fn children_by_parent(nodes: &[Light]) -> Vec<Kin> {
    let mut kin = alloc::vec![Kin::NONE; nodes.len()];
    for (record, node) in nodes.iter().enumerate() {
        // The root's parent is 0, which no record has.
        if node.parent != 0
            && let Some(parent) = kin.get_mut(node.parent as usize)
        {
            let next = core::mem::replace(&mut parent.first, record as u32);
            kin[record].next = next;
        }
    }
    kin
}

/// What the scan keeps of a node's record with this content.
#[inline(always)]
fn light(content: &[u8]) -> Light {
    let Some((head, body)) = content.split_first_chunk::<NODE_HEAD_LEN>() else { return NO_NODE };
    let (name_len, permissions) = (quarter(head, 20), quarter(head, 22));
    let fits = usize::from(permissions) * ENTRY_LEN + usize::from(name_len) <= body.len();
    if permissions == 0 || !fits {
        return NO_NODE;
    }
    Light {
        sum: word(head, 0),
        parent: half(head, 16),
        memory: (NODE_OVERHEAD + body.len()) as u32,
        owner: quarter(body, 0),
    }
}
