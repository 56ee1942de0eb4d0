//! Kick rings: which connections have something to do.
//!
//! A doorbell (event channel) says only "look"; the kick ring beside it says where. It carries
//! `u16` ids: connection slots, and special ids that the two sides agree on. Each side has one
//! *half*:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `cons`: kicks this side has read from the **other** half, free-running |
//! | 64 | 8 | `prod`: kicks this side has pushed, free-running |
//! | 128 | 4 × capacity | entries; kick number `n` lies at `n mod capacity` |
//!
//! An entry is the id (bits 0..16) and the inverted id (16..32), so that a flipped bit is seen: it
//! would make one connection wait for ever and another look in vain.
//!
//! The capacity is the largest power of two that fits. **It cannot overflow:** the writer pushes no
//! id that is still unread, so at most one entry per id is waiting, and there are at least as many
//! entries as ids.
//!
//! **No kick is lost:** the reader publishes `cons` *before* it looks at the connection, the writer
//! looks at `cons` *after* the work became visible, each with a full fence between. Either the
//! writer sees the id read and pushes it again, or the reader's look comes late enough to see the
//! work. For the same reason a reader calls [`KickReader::ready`] once more before it goes to
//! sleep.
//!
//! **After a crash of the reader** its next life calls [`KickReader::restart`] and then scans every
//! connection. **After a crash of the writer** its next life starts with every id unpushed and
//! kicks whatever it finds; the reader sees an id twice at worst, or answers an overfull ring by a
//! scan.
//!
//! **A hostile peer** can make the reader scan, at most once per [`KickReader::pop`], or the writer
//! push again; neither loops. Readers handle at most [`KickReader::ready`] kicks per round.

use core::sync::atomic::{Ordering, fence};

use crate::SharedMemory;

/// Offset of `cons` in a half.
pub const CONS: usize = 0;
/// Offset of `prod` in a half: on a cache line of its own.
pub const PROD: usize = 64;
/// Offset of the first entry in a half.
pub const ENTRIES: usize = 128;
/// Bytes of an entry.
const ENTRY: usize = 4;

/// Bytes that a half with `capacity` entries (a power of two) takes.
pub const fn half_size(capacity: usize) -> usize {
    ENTRIES + ENTRY * capacity
}

/// Entries of a ring whose half has `len` bytes. Panics if there is room for none.
pub const fn capacity(len: usize) -> usize {
    assert!(len >= ENTRIES + ENTRY, "the half of a kick ring is too small");
    let entries = (len - ENTRIES) / ENTRY;
    1 << entries.ilog2()
}

const fn encode(id: u16) -> u32 {
    id as u32 | (!id as u32) << 16
}

/// What [`KickWriter::push`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The id is in the ring, and the reader may be asleep: ring the doorbell.
    Ring,
    /// The id is in the ring, and the reader is still at earlier kicks: no doorbell needed.
    Silent,
    /// The id was in the ring already, unread: nothing was written, no doorbell needed.
    Pending,
}

/// The sending side of a kick ring for the ids `0..IDS`.
#[derive(Debug)]
pub struct KickWriter<O, P, const IDS: usize> {
    own: O,
    peer: P,
    capacity: u64,
    prod: u64,
    /// For each id the number of its latest kick plus one; 0 = never pushed in this life.
    latest: [u64; IDS],
    wild: u64,
}

impl<O: SharedMemory, P: SharedMemory, const IDS: usize> KickWriter<O, P, IDS> {
    /// The writer of the ring in the half `own`; the reader's half is `peer`. Goes on where a
    /// former life stopped. Panics if the ring holds fewer than `IDS` entries.
    pub fn new(own: O, peer: P) -> Self {
        let capacity = capacity(own.len());
        assert!(IDS <= capacity, "{IDS} ids need as many entries, the ring has {capacity}");
        let prod = own.load_u64(PROD);
        Self { own, peer, capacity: capacity as u64, prod, latest: [0; IDS], wild: 0 }
    }

    /// Says that connection `id` has something to do. Call it after that became visible in memory.
    /// Panics if `id` is not below `IDS`.
    pub fn push(&mut self, id: u16) -> Pushed {
        let index = usize::from(id);
        assert!(index < IDS, "kick id {id} of {IDS}");
        fence(Ordering::SeqCst);
        if self.is_unread(self.latest[index]) {
            return Pushed::Pending;
        }
        let before = self.prod;
        let entry = (before % self.capacity) as usize;
        self.own.store_u32(ENTRIES + ENTRY * entry, encode(id));
        self.prod = before.wrapping_add(1);
        self.latest[index] = self.prod;
        self.own.store_u64(PROD, self.prod);
        fence(Ordering::SeqCst);
        if self.is_unread(before) { Pushed::Silent } else { Pushed::Ring }
    }

    /// Whether the kick with number `latest - 1` has yet to be read. A wild `cons` counts as
    /// "everything read": at worst the reader is kicked once too often.
    fn is_unread(&mut self, latest: u64) -> bool {
        let waiting = self.prod.wrapping_sub(self.peer.load_u64(CONS));
        if waiting > self.capacity {
            self.wild += 1;
            return false;
        }
        // Kicks prod-waiting+1 ..= prod are unread.
        latest != 0 && self.prod.wrapping_sub(latest) < waiting
    }

    /// Kicks pushed so far (free-running, over all lives).
    pub fn pushed(&self) -> u64 {
        self.prod
    }

    /// How often the reader's index was out of range: more than 0 means that the peer is broken
    /// (or was reset: see [`KickWriter::restart`]).
    pub fn wild(&self) -> u64 {
        self.wild
    }

    /// Forgets what is pending: for the writer whose reader starts a new life, which reads nothing
    /// that was pushed before but scans every connection.
    pub fn restart(&mut self) {
        self.latest = [0; IDS];
        self.wild = 0;
    }
}

/// What [`KickReader::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// This connection has something to do.
    Id(u16),
    /// The ring held something that no correct writer leaves: look at every connection.
    ScanAll,
}

/// The receiving side of a kick ring.
#[derive(Debug)]
pub struct KickReader<O, P> {
    own: O,
    peer: P,
    capacity: u64,
    ids: u16,
    cons: u64,
    wild: u64,
}

impl<O: SharedMemory, P: SharedMemory> KickReader<O, P> {
    /// The reader of the ring in the half `peer` (the other side's); `own` is this side's half.
    /// Ids from `ids` on are errors of the peer. Starts as [`KickReader::restart`] does: the caller
    /// scans every connection once.
    pub fn new(own: O, peer: P, ids: u16) -> Self {
        let capacity = capacity(peer.len()) as u64;
        let mut reader = Self { own, peer, capacity, ids, cons: 0, wild: 0 };
        reader.restart();
        reader
    }

    /// Counts everything pushed so far as read. The caller scans every connection **afterwards**:
    /// what was pushed before is visible to that scan, what comes later is in the ring.
    pub fn restart(&mut self) {
        self.advance(self.peer.load_u64(PROD));
    }

    /// Kicks that wait, at most the ring's capacity: how often to [`KickReader::pop`] in this
    /// round.
    pub fn ready(&self) -> usize {
        let waiting = self.peer.load_u64(PROD).wrapping_sub(self.cons);
        waiting.min(self.capacity) as usize
    }

    /// Takes one kick, if there is one. Look at the connection after this call, never before.
    pub fn pop(&mut self) -> Option<Kick> {
        let prod = self.peer.load_u64(PROD);
        let waiting = prod.wrapping_sub(self.cons);
        if waiting == 0 {
            return None;
        }
        if waiting > self.capacity {
            self.wild += 1;
            self.advance(prod);
            return Some(Kick::ScanAll);
        }
        let entry = (self.cons % self.capacity) as usize;
        let word = self.peer.load_u32(ENTRIES + ENTRY * entry);
        self.advance(self.cons.wrapping_add(1));
        let id = word as u16;
        if word == encode(id) && id < self.ids {
            return Some(Kick::Id(id));
        }
        self.wild += 1;
        Some(Kick::ScanAll)
    }

    fn advance(&mut self, cons: u64) {
        self.cons = cons;
        self.own.store_u64(CONS, cons);
        fence(Ordering::SeqCst);
    }

    /// How often the writer's half held something impossible.
    pub fn wild(&self) -> u64 {
        self.wild
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const IDS: usize = 8;
    type Writer = KickWriter<HeapMemory, HeapMemory, IDS>;
    type Reader = KickReader<HeapMemory, HeapMemory>;

    fn halves() -> (HeapMemory, HeapMemory) {
        (HeapMemory::new(half_size(IDS)), HeapMemory::new(half_size(IDS)))
    }

    fn pair() -> (Writer, Reader) {
        let (a, b) = halves();
        (KickWriter::new(a.clone(), b.clone()), KickReader::new(b, a, IDS as u16))
    }

    #[test]
    fn golden() {
        let (a, b) = halves();
        let mut writer = Writer::new(a.clone(), b.clone());
        writer.push(3);
        writer.push(5);
        assert_eq!((a.load_u32(128), a.load_u32(132)), (0xfffc_0003, 0xfffa_0005));
        assert_eq!(a.load_u64(64), 2);
        assert_eq!(capacity(4096), 512);
        assert_eq!(capacity(2048), 256);
    }

    #[test]
    fn the_doorbell_rings_once_per_sleep() {
        let (mut writer, mut reader) = pair();
        assert_eq!(writer.push(3), Pushed::Ring);
        assert_eq!(writer.push(3), Pushed::Pending);
        assert_eq!(writer.push(4), Pushed::Silent);
        assert_eq!(reader.ready(), 2);
        assert_eq!(reader.pop(), Some(Kick::Id(3)));
        assert_eq!(writer.push(3), Pushed::Silent);
        assert_eq!(reader.pop(), Some(Kick::Id(4)));
        assert_eq!(reader.pop(), Some(Kick::Id(3)));
        assert_eq!(reader.pop(), None);
        assert_eq!(writer.push(4), Pushed::Ring);
    }

    #[test]
    fn a_new_reader_counts_everything_as_read() {
        let (a, b) = halves();
        let mut writer = Writer::new(a.clone(), b.clone());
        writer.push(1);
        let mut reader = Reader::new(b, a, IDS as u16);
        assert_eq!(reader.pop(), None);
        assert_eq!(writer.push(1), Pushed::Ring);
        assert_eq!(reader.pop(), Some(Kick::Id(1)));
    }

    #[test]
    fn a_new_writer_goes_on_where_the_old_one_stopped() {
        let (a, b) = halves();
        let mut reader = Reader::new(b.clone(), a.clone(), IDS as u16);
        Writer::new(a.clone(), b.clone()).push(1);
        let mut writer = Writer::new(a, b);
        assert_eq!(writer.push(2), Pushed::Silent);
        assert_eq!(reader.pop(), Some(Kick::Id(1)));
        assert_eq!(reader.pop(), Some(Kick::Id(2)));
    }

    #[test]
    fn a_wild_writer_makes_the_reader_scan_and_no_more() {
        let (a, b) = halves();
        let mut reader = Reader::new(b, a.clone(), IDS as u16);
        for prod in [u64::MAX, 1 << 40, 0, 500] {
            a.store_u64(PROD, prod);
            assert!(reader.ready() <= IDS);
            assert_eq!(reader.pop(), Some(Kick::ScanAll));
            assert_eq!(reader.pop(), None);
        }
        // An id beyond the bound, then a flipped bit.
        for (prod, word) in [(501, encode(IDS as u16)), (502, encode(3) ^ 0x80)] {
            a.store_u32(ENTRIES + ENTRY * ((prod as usize - 1) % IDS), word);
            a.store_u64(PROD, prod);
            assert_eq!(reader.pop(), Some(Kick::ScanAll));
        }
        assert_eq!(reader.wild(), 6);
    }

    #[test]
    fn a_wild_reader_costs_a_kick_too_many() {
        let (a, b) = halves();
        let mut writer = Writer::new(a, b.clone());
        b.store_u64(CONS, 77);
        assert_eq!(writer.push(1), Pushed::Ring);
        assert_eq!(writer.push(1), Pushed::Ring);
        assert!(writer.wild() > 0);
    }

    proptest! {
        /// Whatever the order of pushes, pops and restarts, no connection with work is forgotten.
        #[test]
        fn no_kick_is_lost(steps in prop::collection::vec((0_u8..12, 0_u16..IDS as u16), 0..300)) {
            let (mut writer, mut reader) = pair();
            let mut work = BTreeSet::new();
            for (what, id) in steps {
                match what {
                    0..=5 => {
                        work.insert(id);
                        writer.push(id);
                    }
                    6..=9 => match reader.pop() {
                        Some(Kick::Id(id)) => { work.remove(&id); }
                        Some(Kick::ScanAll) => work.clear(),
                        None => prop_assert!(work.is_empty(), "asleep with work {:?}", work),
                    },
                    10 => { reader.restart(); work.clear(); }
                    _ => {
                        let (own, peer) = (writer.own.clone(), writer.peer.clone());
                        writer = KickWriter::new(own, peer);
                    }
                }
            }
            for _ in 0..IDS { match reader.pop() {
                Some(Kick::Id(id)) => { work.remove(&id); }
                Some(Kick::ScanAll) => work.clear(),
                None => break,
            } }
            // A writer that lost its memory may have overfilled the ring: then there is a scan.
            if reader.pop().is_none() {
                prop_assert!(work.is_empty(), "forgotten {:?}", work);
            }
        }
    }
}
