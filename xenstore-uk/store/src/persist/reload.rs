//! Reading a store back in one scan.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use fabric::SharedMemory;

use crate::checksum::{checksum, spread};
use crate::dir::{self, Children};
use crate::effects::Kind;
use crate::node::{Link, Node};
use crate::persist::slots::{Chain, NONE, SlotStore, slot_at};
use crate::persist::{CONTENT_AT, CONTENT_LEN, HEADER_KEY, MAGIC, SLOT_LEN, VERSION};
use crate::state::NODE_HEAD_LEN;
use crate::tree::{ROOT_RECORD, Tree};

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
    /// Records that damage made incomplete, unreadable or unreachable.
    pub lost_records: u32,
}

/// The nodes of a reloaded store, linked.
#[derive(Debug)]
pub struct LoadedNodes {
    /// The tree.
    pub tree: Tree,
    /// Nodes and bytes that each domain owns.
    pub owned: BTreeMap<u16, (u32, u64)>,
}

/// A reloaded store.
#[derive(Debug)]
pub struct Loaded {
    /// Its nodes; `None` if the root is lost.
    pub nodes: Option<LoadedNodes>,
    /// Its other records: kind, number, content.
    pub others: Vec<(Kind, u32, Vec<u8>)>,
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

/// A reload under way.
struct Scan<M> {
    store: SlotStore<M>,
    entries: Vec<Entry>,
    nodes: Vec<Link>,
    seed: u64,
    report: LoadReport,
}

impl<M: SharedMemory> SlotStore<M> {
    /// Reads a store back; `None` if there is none (no intact commit header). A commit that was
    /// under way is undone, one that happened is completed.
    pub fn open(memory: M, seed: u64) -> Option<(Self, Loaded)> {
        let headers = [0, SLOT_LEN].into_iter().filter_map(|at| read_header(&memory, at));
        let header = headers.max_by_key(|header| header.committed)?;
        let mut store = Self::with_memory(memory, header.key);
        store.committed = header.committed;
        store.applied = header.applied;
        // Slots of a commit that did not happen may lie beyond those that the header counts: a
        // commit takes no more than the free ones beside the others.
        let used = header.slots.min(store.capacity);
        let mut scan = Scan {
            store,
            entries: Vec::with_capacity(used as usize + 1),
            nodes: Vec::with_capacity(used as usize + 1),
            seed,
            report: LoadReport::default(),
        };
        scan.read_slots(used);
        scan.erase_beyond(used);
        Some(scan.finish())
    }

    /// Makes both headers say the same.
    pub(crate) fn rewrite_headers(&mut self) {
        let header = self.header();
        self.memory.write(0, &header);
        self.memory.write(SLOT_LEN, &header);
    }
}

struct Header {
    key: u64,
    committed: u64,
    applied: u64,
    slots: u32,
}

fn read_header<M: SharedMemory>(memory: &M, at: usize) -> Option<Header> {
    let mut bytes = [0; SLOT_LEN];
    memory.read(at, &mut bytes);
    let intact = word(&bytes, 0) == checksum(HEADER_KEY, &bytes[8..]);
    let known = half(&bytes, 8) == MAGIC && half(&bytes, 12) == VERSION;
    (intact && known).then(|| Header {
        key: word(&bytes, 16),
        committed: word(&bytes, 24),
        applied: word(&bytes, 32),
        slots: half(&bytes, 40),
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |half| u32::from_le_bytes(*half))
}

fn quarter(bytes: &[u8], at: usize) -> u16 {
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
            self.store.memory.read(at, &mut bytes);
            if checksum(self.store.key, &bytes[8..]) != sum {
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

    /// Clears what an interrupted commit left behind the slots that the header counts: they are
    /// contiguous, because slots are taken in order.
    fn erase_beyond(&mut self, used: u32) {
        for slot in used..self.store.capacity {
            let at = slot_at(slot);
            // An interrupted write may have left content without a checksum before others'.
            let mut bytes = [0; SLOT_LEN];
            self.store.memory.read(at, &mut bytes);
            if bytes == [0; SLOT_LEN] {
                break;
            }
            self.report.uncommitted += u32::from(word(&bytes, 0) != 0);
            self.store.memory.fill(at, SLOT_LEN, 0);
        }
    }

    /// Takes an intact slot of a commit that happened.
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
            self.nodes.resize(index + 1, None);
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
            self.nodes[index] = None;
        }
        self.entries[index] = Entry { sequence, head: slot, seen: 1, parts, kind: Some(kind) };
        if kind == Kind::Node && parts == 1 {
            let len = usize::from(quarter(bytes, 26)).min(CONTENT_LEN);
            let content = &bytes[CONTENT_AT..CONTENT_AT + len];
            self.nodes[index] = node(record, content, self.store.committed, self.seed);
        }
    }

    fn finish(mut self) -> (SlotStore<M>, Loaded) {
        let mut others = Vec::new();
        let mut tombstones = Vec::new();
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            let record = index as u32;
            let Some(kind) = entry.kind else { continue };
            if kind == Kind::Tombstone {
                tombstones.push(entry.head);
                self.entries[index] = UNSEEN;
                continue;
            }
            if entry.seen != entry.parts {
                self.lose(index);
                continue;
            }
            if kind == Kind::Node && entry.parts == 1 {
                if self.nodes[index].is_none() {
                    self.lose(index);
                }
                continue;
            }
            let content = self.gather(index);
            if kind == Kind::Node {
                self.nodes[index] = node(record, &content, self.store.committed, self.seed);
                if self.nodes[index].is_none() {
                    self.lose(index);
                }
            } else {
                others.push((kind, record, content));
            }
        }
        let nodes = self.link();
        for slot in tombstones {
            self.store.release(slot);
        }
        self.store.rewrite_headers();
        self.store.chains =
            self.entries.iter().map(|entry| Chain { first: entry.head, ..Chain::EMPTY }).collect();
        let used = |record: &u32| self.entries[*record as usize].head != NONE;
        let next_record = self.entries.len() as u32;
        let free_records = (1..next_record).rev().filter(|record| !used(record)).collect();
        let report = self.report;
        (self.store, Loaded { nodes, others, next_record, free_records, report })
    }

    /// Gives a record up.
    fn lose(&mut self, index: usize) {
        self.report.lost_records += 1;
        self.discard(index);
    }

    fn discard(&mut self, index: usize) {
        let entry = core::mem::replace(&mut self.entries[index], UNSEEN);
        self.store.release(entry.head);
        self.nodes[index] = None;
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

    /// Hangs every node below its parent, children before parents, and drops what the root does
    /// not reach: subtrees whose removal was committed but not cleaned up, or lost to damage.
    fn link(&mut self) -> Option<LoadedNodes> {
        let mut waiting: Vec<u32> = alloc::vec![0; self.nodes.len()];
        for node in self.nodes.iter().flatten() {
            if let Some(count) = waiting.get_mut(node.parent as usize) {
                *count += 1;
            }
        }
        let is_leaf =
            |index: &u32| self.nodes[*index as usize].is_some() && waiting[*index as usize] == 0;
        let mut ready: Vec<u32> = (0..self.nodes.len() as u32).filter(is_leaf).collect();
        let mut digest = 0u64;
        let mut owned = Owned::default();
        while let Some(index) = ready.pop() {
            if index == ROOT_RECORD {
                continue;
            }
            let Some(node) = self.nodes[index as usize].take() else { continue };
            let (parent, sum, owner, memory) = (node.parent, node.sum, node.owner(), node.memory());
            let Some(above) = self.nodes.get_mut(parent as usize).and_then(Option::as_mut) else {
                self.drop_unreachable(&node, &mut digest, &mut owned);
                continue;
            };
            let above = Rc::get_mut(above).expect("nobody else knows the node yet");
            if dir::insert(&mut above.children, node) {
                digest = digest.wrapping_add(spread(sum));
                owned.add(owner, memory);
            } else {
                self.lose(index as usize);
            }
            waiting[parent as usize] -= 1;
            if waiting[parent as usize] == 0 {
                ready.push(parent);
            }
        }
        let root = self.nodes.get_mut(ROOT_RECORD as usize)?.take()?;
        // What is left hangs on itself: damage that no checksum saw.
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_some() {
                self.lose(index);
            }
        }
        digest = digest.wrapping_add(spread(root.sum));
        owned.add(root.owner(), root.memory());
        self.report.nodes = owned.total;
        let tree = Tree::from_root(root, digest, owned.total, self.seed);
        Some(LoadedNodes { tree, owned: owned.finish() })
    }

    /// Frees the records of a subtree whose root's parent is not there, and takes back what was
    /// counted for those below it.
    fn drop_unreachable(&mut self, root: &Node, digest: &mut u64, owned: &mut Owned) {
        let damaged = self.report.damaged_slots > 0;
        let mut waiting = Vec::from([root]);
        while let Some(node) = waiting.pop() {
            if !core::ptr::eq(node, root) {
                *digest = digest.wrapping_sub(spread(node.sum));
                owned.subtract(node.owner(), node.memory());
            }
            self.report.lost_records += u32::from(damaged);
            let entry = core::mem::replace(&mut self.entries[node.record as usize], UNSEEN);
            self.store.release(entry.head);
            waiting.extend(Children::new(&node.children));
        }
    }
}

/// A node from the content of its record.
fn node(record: u32, content: &[u8], committed: u64, seed: u64) -> Link {
    let (head, body) = content.split_at_checked(NODE_HEAD_LEN)?;
    let mut node = Node::from_body(body, quarter(head, 20), quarter(head, 22), seed)?;
    node.sum = word(head, 0);
    node.generation = word(head, 8);
    node.parent = half(head, 16);
    // The list of children is not kept: it counts as changed by the last commit.
    node.children_generation = committed;
    node.record = record;
    Some(Rc::new(node))
}

/// Counts what domains own; consecutive nodes mostly have one owner.
#[derive(Default)]
struct Owned {
    total: u32,
    last: Option<u16>,
    count: (u32, u64),
    others: BTreeMap<u16, (u32, u64)>,
}

impl Owned {
    fn add(&mut self, owner: u16, memory: usize) {
        if self.last != Some(owner) {
            self.switch(owner);
        }
        self.total += 1;
        self.count.0 += 1;
        self.count.1 += memory as u64;
    }

    fn subtract(&mut self, owner: u16, memory: usize) {
        if self.last != Some(owner) {
            self.switch(owner);
        }
        self.total -= 1;
        self.count.0 -= 1;
        self.count.1 -= memory as u64;
    }

    fn switch(&mut self, owner: u16) {
        if let Some(last) = self.last {
            self.others.insert(last, self.count);
        }
        self.count = self.others.get(&owner).copied().unwrap_or_default();
        self.last = Some(owner);
    }

    fn finish(mut self) -> BTreeMap<u16, (u32, u64)> {
        self.switch(0);
        let count = self.count;
        self.others.insert(0, count);
        self.others
    }
}
