//! The journal of the index: what the change at hand has overwritten. A crash in the middle of the
//! change, or before its commit, leaves all that it takes to undo it.
//!
//! ```text
//! 0   u64 number of the commit whose change it notes, 0 = none
//! 8   u64 × 3: digest, counts and sum in the header of the index before the change
//! 32  u64 check over all before it and those notes that count, and so tells how many do
//! 40  notes, 8 bytes each: u32 offset of a word in the index, u32 what it was
//! ```
//!
//! A note counts as soon as the check includes it, and only then its word is overwritten. To undo
//! is to write the old words in the reverse order; that may be interrupted and repeated. A flipped
//! bit in what counts leaves a check that nothing matches; what does not count is never looked at.

use fabric::SharedMemory;

use crate::checksum::Checksum;

/// Words that one change may overwrite and still be undone. A request overwrites ten to thirty, a
/// removed node three or four: the removal of a domain with a thousand nodes has room.
/// Undoing so many takes some ten microseconds.
pub(super) const NOTES_MAX: usize = 4096;

/// Bytes of the journal.
pub(super) const JOURNAL_LEN: usize = NOTES_AT + NOTES_MAX * 8;

/// Where the header's old words begin.
const HEADER_AT: usize = 8;

/// Where the check lies.
const CHECK_AT: usize = 32;

/// Where the notes begin.
const NOTES_AT: usize = 40;

/// What a change overwrites in the header of the index, beside the number.
pub(super) type Header = [u64; 3];

/// The journal of the change at hand.
#[derive(Debug)]
pub(super) struct Journal {
    /// Where it lies in the memory of the index.
    at: usize,
    /// Notes that it has.
    notes: usize,
    check: Checksum,
}

impl Journal {
    /// Begins to note the change for `commit`; `header` is what the index says before it.
    pub fn begin<M: SharedMemory>(memory: &M, at: usize, commit: u64, header: &Header) -> Self {
        for (place, word) in header.iter().enumerate() {
            memory.store_u64(at + HEADER_AT + place * 8, *word);
        }
        let check = first_check(commit, header);
        memory.store_u64(at + CHECK_AT, check.raw());
        memory.store_u64(at, commit);
        Self { at, notes: 0, check }
    }

    /// Notes what the word at `offset` is before it is overwritten. Answers false if there is no
    /// room.
    pub fn note<M: SharedMemory>(&mut self, memory: &M, offset: usize, old: u32) -> bool {
        if self.notes == NOTES_MAX {
            return false;
        }
        let note = offset as u64 | u64::from(old) << 32;
        self.check = self.check.word(note);
        memory.store_u64(note_at(self.at, self.notes), note);
        memory.store_u64(self.at + CHECK_AT, self.check.raw());
        self.notes += 1;
        true
    }
}

/// Whether the journal at `at` notes the change for `commit`.
pub(super) fn notes_commit<M: SharedMemory>(memory: &M, at: usize, commit: u64) -> bool {
    memory.load_u64(at) == commit
}

/// From now on it notes nothing.
pub(super) fn clear<M: SharedMemory>(memory: &M, at: usize) {
    memory.store_u64(at, 0);
}

/// Writes the words before `at` back that the change for `commit` has overwritten. Answers what the
/// header was; `None` if the journal is damaged, then nothing is written.
pub(super) fn undo<M: SharedMemory>(memory: &M, at: usize, commit: u64) -> Option<Header> {
    let header = [0, 8, 16].map(|more| memory.load_u64(at + HEADER_AT + more));
    let wanted = memory.load_u64(at + CHECK_AT);
    let mut check = first_check(commit, &header);
    let mut notes = 0;
    while check.raw() != wanted {
        if notes == NOTES_MAX {
            return None;
        }
        check = check.word(memory.load_u64(note_at(at, notes)));
        notes += 1;
    }
    for place in (0..notes).rev() {
        let note = memory.load_u64(note_at(at, place));
        let offset = note as u32 as usize;
        // The check vouches for it; but no offset from memory goes unchecked.
        if offset < at && offset.is_multiple_of(4) {
            memory.store_u32(offset, (note >> 32) as u32);
        }
    }
    Some(header)
}

fn first_check(commit: u64, header: &Header) -> Checksum {
    header.iter().fold(Checksum::new(commit), |check, word| check.word(*word))
}

/// Where a note lies.
fn note_at(at: usize, place: usize) -> usize {
    at + NOTES_AT + place * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::Kind;
    use crate::persist::index::{Change, Entry, Index, Summary, index_len, link_of};
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use fabric::HeapMemory;

    const SLOTS: usize = 16;
    const KEY: u64 = 7;

    /// What an index says: its summary, and all of entries and slots.
    type Found = (Summary, Vec<(u32, u32)>);

    /// A store: where, and which bytes.
    type Store = (usize, Vec<u8>);

    /// Memory that remembers each store.
    #[derive(Clone)]
    struct Recording {
        memory: HeapMemory,
        stores: Rc<RefCell<Vec<Store>>>,
    }

    impl Recording {
        fn new(memory: &HeapMemory) -> Self {
            Self { memory: memory.clone(), stores: Rc::default() }
        }
    }

    impl SharedMemory for Recording {
        fn len(&self) -> usize {
            self.memory.len()
        }

        fn read(&self, offset: usize, into: &mut [u8]) {
            self.memory.read(offset, into);
        }

        fn write(&self, offset: usize, from: &[u8]) {
            self.stores.borrow_mut().push((offset, from.to_vec()));
            self.memory.write(offset, from);
        }

        fn fill(&self, offset: usize, len: usize, value: u8) {
            self.write(offset, &alloc::vec![value; len]);
        }

        fn load_u32(&self, offset: usize) -> u32 {
            self.memory.load_u32(offset)
        }

        fn store_u32(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }

        fn load_u64(&self, offset: usize) -> u64 {
            self.memory.load_u64(offset)
        }

        fn store_u64(&self, offset: usize, value: u64) {
            self.write(offset, &value.to_le_bytes());
        }
    }

    fn copy(memory: &HeapMemory) -> HeapMemory {
        let mut bytes = alloc::vec![0; memory.len()];
        memory.read(0, &mut bytes);
        let copy = HeapMemory::new(memory.len());
        copy.write(0, &bytes);
        copy
    }

    fn node(record: u32, parent: u32) -> Change {
        Change::Node { record, parent, tag: 7, owner: 3, memory: 100 }
    }

    /// An index of commit 5.
    fn index(slots: usize) -> HeapMemory {
        let memory = HeapMemory::new(index_len(slots));
        let mut index = Index::new(memory.clone(), slots);
        index.clear(KEY);
        for (record, parent) in [(1, 0), (3, 1), (4, 1), (5, 4)] {
            index.link(record, u32::MAX);
            index.apply(&node(record, parent), record);
        }
        index.building = None;
        index.seal(5, 99, 4, slots as u32);
        memory
    }

    /// Changes it as commit 6 does: a node goes with what is below, one is new, one written again.
    fn change<M: SharedMemory>(memory: M) {
        let mut index = Index::open(memory, SLOTS, 5).expect("it is whole");
        read(&mut index, SLOTS);
        index.begin(6);
        for slot in [3, 4, 5] {
            index.free(slot);
        }
        index.apply(&Change::Gone { record: 4, with_parent: false }, 0);
        index.apply(&Change::Gone { record: 5, with_parent: true }, 0);
        index.link(8, 9);
        index.link(9, u32::MAX);
        index.apply(&node(3, 1), 8);
        index.link(10, u32::MAX);
        index.apply(&node(7, 3), 10);
        index.link(11, u32::MAX);
        index.apply(&Change::Other { record: 9, kind: Kind::Watch }, 11);
        index.seal(6, 77, 3, SLOTS as u32);
    }

    /// All that an index says of entries and slots.
    fn read<M: SharedMemory>(index: &mut Index<M>, slots: usize) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        index.each_links(slots as u32, |some| {
            found.extend(some.iter().map(|link| (0, link_of(link))))
        });
        index.each_entries(|some| {
            for entry in some.iter().map(Entry::of) {
                found.push((entry.first_slot, entry.memory));
                found.push((entry.first_child, entry.next));
            }
        });
        found
    }

    /// What a life that begins with this commit believes; `None`: it reads all slots.
    fn believed<M: SharedMemory>(memory: M, slots: usize, committed: u64) -> Option<Found> {
        let mut index = Index::open(memory, slots, committed)?;
        let summary = index.summary().filter(|summary| summary.committed == committed)?;
        let found = read(&mut index, slots);
        (index.is_intact(&summary) && summary.key == KEY).then_some((summary, found))
    }

    /// The stores of the change, and the memory as each of them leaves it, from none on.
    fn states() -> Vec<HeapMemory> {
        let before = index(SLOTS);
        let recording = Recording::new(&copy(&before));
        change(recording.clone());
        let mut states = Vec::from([before]);
        for (at, bytes) in recording.stores.borrow().iter() {
            let state = copy(&states[states.len() - 1]);
            state.write(*at, bytes);
            states.push(state);
        }
        assert!(states.len() > 40, "{} stores", states.len());
        states
    }

    #[test]
    fn every_store_may_be_the_last() {
        let states = states();
        let before = believed(copy(&states[0]), SLOTS, 5).expect("the index of commit 5");
        for (stores, state) in states.iter().enumerate() {
            let undoing = Recording::new(&copy(state));
            assert_eq!(believed(undoing.clone(), SLOTS, 5).as_ref(), Some(&before), "{stores}");
            // Undoing may be interrupted, too.
            let half_undone = copy(state);
            for (at, bytes) in undoing.stores.borrow().iter() {
                half_undone.write(*at, bytes);
                let found = believed(copy(&half_undone), SLOTS, 5);
                assert_eq!(found.as_ref(), Some(&before), "{stores}");
            }
            // And afterwards the change is made as if nothing had been.
            change(half_undone.clone());
            let after = believed(half_undone, SLOTS, 6).expect("the index of commit 6");
            assert_eq!((after.0.nodes, after.0.digest), (3, 77));
        }
        let last = copy(&states[states.len() - 1]);
        assert!(believed(last, SLOTS, 6).is_some(), "the commit header is written");
    }

    #[test]
    fn no_flipped_bit_makes_another_state() {
        let states = states();
        let (first, last) = (&states[0], &states[states.len() - 1]);
        let before = believed(copy(first), SLOTS, 5).expect("the index of commit 5");
        let after = believed(copy(last), SLOTS, 6).expect("the index of commit 6");
        let mut noticed = 0;
        let mut check = |state: &HeapMemory, committed, expected: &Found| {
            let used = index_len(SLOTS) - JOURNAL_LEN + NOTES_AT + states.len() * 8;
            for at in (0..used).step_by(8) {
                for bit in 0..64 {
                    let state = copy(state);
                    state.store_u64(at, state.load_u64(at) ^ 1 << bit);
                    let found = believed(state, SLOTS, committed);
                    noticed += u32::from(found.is_none());
                    assert!(found.is_none_or(|found| found == *expected), "bit {bit} at {at}");
                }
            }
        };
        states.iter().step_by(13).for_each(|state| check(state, 5, &before));
        check(last, 5, &before);
        check(last, 6, &after);
        assert!(noticed > 1000, "{noticed} flips were noticed");
    }

    #[test]
    fn a_change_beyond_the_journal_is_never_believed_half_made() {
        let slots = NOTES_MAX + 100;
        let memory = index(slots);
        let recording = Recording::new(&memory);
        let before = believed(copy(&memory), slots, 5).expect("the index of commit 5");
        let state = copy(&memory);
        let mut index = Index::open(recording.clone(), slots, 5).expect("it is whole");
        read(&mut index, slots);
        index.begin(6);
        (20..slots as u32).for_each(|slot| index.link(slot, u32::MAX));
        index.seal(6, 77, 4, slots as u32);
        let (mut by_index, mut lost) = (0, 0);
        for (store, (at, bytes)) in recording.stores.borrow().iter().enumerate() {
            state.write(*at, bytes);
            // The last ones each, where the journal ends.
            if store % 1000 == 0 || store > NOTES_MAX * 3 - 20 {
                match believed(copy(&state), slots, 5) {
                    Some(found) => {
                        by_index += 1;
                        assert_eq!(found, before, "store {store}");
                    }
                    None => lost += 1,
                }
            }
        }
        assert!(by_index > 10 && lost > 50, "{by_index} by the index, {lost} not");
        assert!(believed(state, slots, 6).is_some(), "the next commit's life has it again");
    }
}
