//! Keeping the index of a slot store, and opening a store by it.

use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::effects::Kind;
use crate::persist::SLOT_LEN;
use crate::persist::index::{Change, Entry, FREE, Index, Summary, link_of};
use crate::persist::lazy::{Kin, Unloaded};
use crate::persist::owned::Owned;
use crate::persist::reload::{LoadReport, Loaded, LoadedNodes, newest_header, word};
use crate::persist::slots::{Chain, NONE, SlotStore, slot_at};
use crate::state::{FIRST_FREE_RECORD, NODE_HEAD_LEN};
use crate::tree::{ROOT_RECORD, Tree};

impl<M: SharedMemory> SlotStore<M> {
    /// Keeps an index in this memory of [`crate::persist::index_len`] bytes from now on, whatever
    /// that holds. What the store holds already is taken up by [`Self::index_step`].
    pub fn keep_index(&mut self, memory: M) {
        let mut index = Index::new(memory, self.capacity as usize);
        index.clear(self.key);
        self.index = Some(index);
    }

    /// Gives up the index and answers its memory.
    pub(crate) fn take_index(&mut self) -> Option<M> {
        let index = self.index.take()?;
        index.distrust();
        Some(index.into_memory())
    }

    /// From now on no life begins by the index: something is damaged.
    pub(crate) fn distrust_index(&mut self) {
        drop(self.take_index());
    }

    /// Whether records remain to be taken up into the index.
    pub(crate) fn is_indexing(&self) -> bool {
        self.index.as_ref().is_some_and(|index| index.building.is_some())
    }

    /// Takes up to `count` records into the index; between two commits. With the last one it
    /// describes the last commit, after which the tree has this digest and so many nodes.
    pub(crate) fn index_step(&mut self, count: u32, digest: u64, nodes: u32) {
        let Some(from) = self.index.as_ref().and_then(|index| index.building) else { return };
        let end = self.chains.len() as u32;
        let until = from.saturating_add(count).min(end);
        for record in from..until {
            let first = self.chains[record as usize].first;
            if first == NONE || self.index.as_ref().is_some_and(|index| index.has(record)) {
                continue;
            }
            let Some(change) = self.describe(record, first) else {
                // The scrubber finds it, too, and has it written again.
                return self.distrust_index();
            };
            self.index_change(&change);
        }
        if let Some(index) = &mut self.index {
            index.building = (until < end).then_some(until);
            index.seal(self.committed, digest, nodes, self.next.len() as u32);
        }
    }

    /// What the slots of a record say of it; `None` if they are damaged.
    fn describe(&self, record: u32, first: u32) -> Option<Change> {
        let mut bytes = [0; SLOT_LEN];
        self.memory.read(slot_at(first), &mut bytes);
        let kind = Kind::from_raw(bytes[24])?;
        let mut content = Vec::new();
        self.read_record(record, &mut content)?;
        match kind {
            Kind::Node => {}
            Kind::Watch => return Some(Self::watch(record, &content)),
            kind => return Some(Change::Other { record, kind }),
        }
        let (head, body) = content.split_first_chunk::<NODE_HEAD_LEN>()?;
        Some(SlotStore::<M>::node(record, head, body))
    }

    /// Brings the index to the commit whose header is written next, after which the tree has this
    /// digest and so many nodes.
    pub(super) fn update_index(&mut self, digest: u64, nodes: u32) {
        let Some(index) = &mut self.index else { return };
        index.begin(self.committed);
        for first in &self.superseded {
            self.pulse.worked(1);
            let mut slot = *first;
            while slot != NONE {
                index.free(slot);
                slot = self.next[slot as usize];
            }
        }
        let mut pending = core::mem::take(&mut index.pending);
        pending.drain(..).for_each(|change| self.index_change(&change));
        if let Some(index) = &mut self.index {
            // Its memory is used again.
            index.pending = pending;
            index.seal(self.committed, digest, nodes, self.next.len() as u32);
        }
    }

    fn index_change(&mut self, change: &Change) {
        self.pulse.worked(1);
        let first = self.chains.get(change.record() as usize).map_or(NONE, |chain| chain.first);
        let is_gone = matches!(change, Change::Gone { .. });
        let Some(index) = &mut self.index else { return };
        if is_gone {
            return index.apply(change, NONE);
        }
        // One that the same commit drops again leaves nothing.
        if first == NONE {
            return;
        }
        let mut slot = first;
        while slot != NONE {
            let next = self.next[slot as usize];
            index.link(slot, next);
            slot = next;
        }
        index.apply(change, first);
    }

    /// Opens the store by an index that a former life kept, which costs little for each node.
    /// `None`: there is none that can be trusted.
    pub(crate) fn open_indexed(memory: M, index: M) -> Option<(Self, Loaded)> {
        let header = newest_header(&memory)?;
        let mut store = Self::with_memory(memory, header.key);
        (store.committed, store.applied) = (header.committed, header.applied);
        let mut index = Index::open(index, store.capacity as usize, header.committed)?;
        let summary = index.summary()?;
        if (summary.committed, summary.key) != (header.committed, header.key) {
            return None;
        }
        let used = header.slots.min(store.capacity);
        let left = store.link_slots(used, &mut index);
        let mut loaded = store.load_entries(&mut index, &summary)?;
        loaded.report.uncommitted = store.erase(&left) + store.erase_beyond(used);
        // Both headers say the same from now on.
        store.save_applied();
        store.index = Some(index);
        Some((store, loaded))
    }

    /// Finds which slots go on after which; answers those that are free and hold something.
    fn link_slots(&mut self, used: u32, index: &mut Index<M>) -> Vec<u32> {
        let Self { memory, next, free, .. } = self;
        *next = Vec::with_capacity(used as usize);
        // Room for all of them: a list that grows is copied again and again.
        *free = Vec::with_capacity(used as usize);
        let mut left = Vec::new();
        index.each_links(used, |some| {
            let slots = next.len() as u32..;
            next.extend(slots.zip(some).map(|(slot, link)| {
                let link = link_of(link);
                if link != FREE {
                    return link;
                }
                free.push(slot);
                if memory.load_u64(slot_at(slot)) != 0 {
                    left.push(slot);
                }
                NONE
            }));
        });
        left
    }

    /// Erases what a commit has left in free slots: one that did not happen, all that it wrote; one
    /// that did, what it supersedes, and its tombstones last, as they keep the dropped from coming
    /// back. Answers how many slots the commit that did not happen wrote.
    fn erase(&self, left: &[u32]) -> u32 {
        let mut uncommitted = 0;
        let mut tombstones = Vec::new();
        for slot in left {
            let mut bytes = [0; SLOT_LEN];
            self.memory.read(slot_at(*slot), &mut bytes);
            uncommitted += u32::from(word(&bytes, 8) > self.committed);
            if bytes[24] == Kind::Tombstone.raw() {
                tombstones.push(*slot);
            } else {
                self.memory.store_u64(slot_at(*slot), 0);
            }
        }
        tombstones.iter().for_each(|slot| self.memory.store_u64(slot_at(*slot), 0));
        uncommitted
    }

    fn load_entries(&mut self, index: &mut Index<M>, summary: &Summary) -> Option<Loaded> {
        let entries = summary.entries as usize;
        self.chains = Vec::with_capacity(entries);
        let mut kin = Vec::with_capacity(entries);
        let (mut owned, mut left) = (Owned::new(), 0);
        let (mut others, mut watches, mut free_records) = (Vec::new(), Vec::new(), Vec::new());
        index.each_entries(|some| {
            let first = self.chains.len() as u32;
            let some = some.iter().map(Entry::of);
            self.chains.extend(some.clone().map(|entry| Chain::at(entry.first_slot)));
            kin.extend(some.clone().map(|entry| entry.kin()));
            for (record, entry) in (first..).zip(some) {
                if entry.is_node() {
                    left += u32::from(entry.first_child != NONE);
                    owned.add(entry.owner, entry.memory);
                    continue;
                }
                // The record may be a new node's one day.
                kin[record as usize] = Kin::NONE;
                if let Some(sketch) = entry.sketch() {
                    watches.push((record, sketch));
                } else if let Some(kind) = entry.kind() {
                    others.push((kind, record, Vec::new()));
                } else if record >= FIRST_FREE_RECORD {
                    free_records.push(record);
                }
            }
        });
        // What was written is right, so nothing else is checked before this.
        if !index.is_intact(summary) {
            return None;
        }
        for (_, record, content) in &mut others {
            self.read_record(*record, content)?;
        }
        let root = self.load_node(ROOT_RECORD, summary.committed)?;
        let tree = Tree::from_root(root, summary.digest, summary.nodes, self.key);
        let unloaded = Unloaded::tagged(kin, left, summary.committed);
        let report = LoadReport { nodes: summary.nodes, ..LoadReport::default() };
        let nodes = LoadedNodes { tree, unloaded, owned: owned.finish() };
        let next_record = summary.entries;
        Some(Loaded { nodes, others, watches, next_record, free_records, report })
    }
}
