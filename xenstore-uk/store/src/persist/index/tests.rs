//! The index by itself: lists of children, its sum.

use super::*;
use alloc::collections::BTreeMap;
use fabric::HeapMemory;

const SLOTS: usize = 64;
/// Slots that the store has ever used.
const USED: u32 = 12;

/// Memory that another life has used for something else.
fn garbage() -> HeapMemory {
    let memory = HeapMemory::new(index_len(SLOTS));
    memory.fill(0, memory.len(), 0xa5);
    memory
}

fn node(record: u32, parent: u32) -> Change {
    Change::Node { record, parent, tag: 7, owner: 3, memory: 100 }
}

/// The children of every record, as the lists have them.
fn children(index: &mut Index<HeapMemory>) -> BTreeMap<u32, Vec<u32>> {
    let mut entries = Vec::new();
    index.each_entries(|some| entries.extend(some.iter().map(Entry::of)));
    let entries: BTreeMap<u32, Entry> = (0..).zip(entries).collect();
    let list = |first: u32| {
        let next = |record: &u32| Some(entries[record].next).filter(|next| *next != NONE);
        let mut found: Vec<u32> =
            core::iter::successors(Some(first).filter(|first| *first != NONE), next).collect();
        found.sort_unstable();
        found
    };
    let present = entries.iter().filter(|(_, entry)| entry.is_node());
    present.map(|(record, entry)| (*record, list(entry.first_child))).collect()
}

#[test]
fn nodes_hang_where_they_were_put() {
    let mut index = Index::new(garbage(), SLOTS);
    index.clear(7);
    for (record, parent) in [(1, 0), (3, 1), (4, 1), (5, 1), (6, 4), (7, 4)] {
        index.apply(&node(record, parent), record * 2);
    }
    index.apply(&Change::Other { record: 8, kind: Kind::Watch }, 20);
    // Written again: it stays where it is.
    index.apply(&node(4, 1), 30);
    let hanging = children(&mut index);
    assert_eq!(hanging[&1], [3, 4, 5]);
    assert_eq!(hanging[&4], [6, 7]);
    assert_eq!(index.entry(4).first_slot, 30);
    index.building = None;
    index.seal(5, 99, 6, USED);
    // From the middle, the front and the end, and a whole subtree in either order.
    for (gone, with_parent) in [
        ([4, 6, 7], false),
        ([4, 7, 6], false),
        ([7, 4, 6], false),
        ([6, 7, 4], false),
        ([4, 6, 7], true),
        ([4, 7, 6], true),
    ] {
        let memory = HeapMemory::new(index_len(SLOTS));
        let mut bytes = alloc::vec![0; index.memory.len()];
        index.memory.read(0, &mut bytes);
        memory.write(0, &bytes);
        let mut copy = Index::new(memory, SLOTS);
        for record in gone {
            let with_parent = with_parent && record != 4;
            copy.apply(&Change::Gone { record, with_parent }, 0);
        }
        assert_eq!(children(&mut copy)[&1], [3, 5]);
        copy.apply(&node(4, 5), 1);
        copy.apply(&Change::Gone { record: 3, with_parent: false }, 0);
        assert_eq!(
            children(&mut copy),
            BTreeMap::from([(1, [5].into()), (4, [].into()), (5, [4].into())])
        );
    }
}

#[test]
fn it_describes_nothing_until_it_is_sealed_whole() {
    let memory = HeapMemory::new(index_len(SLOTS));
    let mut index = Index::new(memory.clone(), SLOTS);
    assert_eq!(index.summary(), None);
    index.clear(7);
    index.apply(&node(1, 0), 0);
    index.seal(5, 99, 1, USED);
    assert_eq!(index.summary(), None, "there may be records that it does not have yet");
    index.building = None;
    index.seal(5, 99, 1, USED);
    let found = Index::new(memory.clone(), SLOTS).summary();
    let summary = Summary { committed: 5, key: 7, digest: 99, nodes: 1, entries: 2 };
    assert_eq!(found, Some(summary));
    index.distrust();
    assert_eq!(Index::new(memory, SLOTS).summary(), None);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let memory = garbage();
    let mut index = Index::new(memory.clone(), SLOTS);
    index.clear(7);
    for (record, parent) in [(1, 0), (3, 1), (4, 3)] {
        index.link(record, NONE);
        index.apply(&node(record, parent), record);
    }
    index.link(9, 10);
    index.free(3);
    index.building = None;
    index.seal(5, 99, 3, USED);
    let is_believed = || {
        let mut index = Index::new(memory.clone(), SLOTS);
        let Some(summary) = index.summary() else { return false };
        index.each_links(USED, |_| ());
        index.each_entries(|_| ());
        index.is_intact(&summary) && summary.key == 7
    };
    assert!(is_believed());
    let entries = HEADER_LEN..entry_at(5);
    let links = links_at(SLOTS)..links_at(SLOTS) + USED as usize * 4;
    for at in (0..HEADER_LEN).chain(entries).chain(links) {
        for bit in 0..8 {
            let mut byte = [0];
            memory.read(at, &mut byte);
            memory.write(at, &[byte[0] ^ 1 << bit]);
            assert!(!is_believed(), "bit {bit} at {at}");
            memory.write(at, &byte);
        }
    }
}
