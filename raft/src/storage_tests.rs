use alloc::vec;

use fabric::HeapMemory;
use proptest::prelude::*;

use super::*;

fn config() -> ClusterConfig {
    let mut config = ClusterConfig::new();
    config.voters.extend((1..=3).map(|replica| Ident::new(replica, 0).core()));
    config
}

fn fresh(memory: &HeapMemory) -> Storage<HeapMemory> {
    Storage::format(memory.clone(), Ident::new(1, 0), 1, config(), false).unwrap()
}

fn reopen(memory: &HeapMemory) -> Result<Storage<HeapMemory>, OpenError> {
    Storage::open(memory.clone(), 1, 2, |_| {})
}

fn record(index: u64, term: u64, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (epoch, connection, sequence) = (1, 16, index);
    Record { index, term, kind, epoch, connection, sequence, payload }.encode(&mut bytes);
    bytes
}

fn command(index: u64, term: u64, len: usize) -> Vec<u8> {
    record(index, term, Kind::Command, &vec![index as u8; len])
}

#[test]
fn golden_header() {
    let header = Header {
        sequence: 1,
        term: 2,
        vote: 3,
        start_index: 4,
        last_index: 5,
        start_offset: 6,
        tail_offset: 7,
        boot_epoch: 8,
        base_crc: 9,
        flags: FLAG_RESTORING,
    };
    let bytes = header.encode();
    assert_eq!(&bytes[..8], b"PvRh\x01\x00\x02\x00");
    for (at, value) in [(8, 1), (16, 2), (24, 3), (32, 4), (40, 5)] {
        assert_eq!(u64_at(&bytes, at), value);
    }
    for (at, value) in [(48, 6), (52, 7), (56, 8), (60, 9)] {
        assert_eq!(u32_at(&bytes, at), value);
    }
    assert_eq!(Header::parse(&bytes, 64), Some(header));
    assert_eq!(Header::parse(&bytes, 7), None, "an offset beyond the ring");
}

#[test]
fn a_new_life_finds_everything() {
    let memory = HeapMemory::new(MIN_STORAGE);
    assert_eq!(reopen(&memory).unwrap_err(), OpenError::Blank);
    let mut storage = fresh(&memory);
    storage.set_vote(4, Some(Ident::new(2, 0)));
    let mut bytes = record(1, 4, Kind::Term, &[]);
    bytes.extend(command(2, 4, 100));
    storage.append(0, &bytes);
    storage.save();
    let opened = reopen(&memory).unwrap();
    assert_eq!(opened.vote(), (4, Some(Ident::new(2, 0))));
    assert_eq!((opened.start().index, opened.last_index()), (0, 2));
    let mut scratch = Vec::new();
    assert_eq!(opened.read(2, &mut scratch).unwrap().payload, [2; 100]);
    assert_eq!(opened.config(), &config());
    assert_eq!(opened.verify(), Ok(()));
}

#[test]
fn what_was_not_saved_is_not_there() {
    let memory = HeapMemory::new(MIN_STORAGE);
    let mut storage = fresh(&memory);
    storage.append(0, &record(1, 1, Kind::Term, &[]));
    storage.set_vote(1, Some(Ident::new(1, 0)));
    let opened = reopen(&memory).unwrap();
    assert_eq!((opened.last_index(), opened.vote()), (0, (0, None)));
}

#[test]
fn one_damaged_header_is_survived_and_repaired() {
    for copy in HEADERS {
        let memory = HeapMemory::new(MIN_STORAGE);
        let mut storage = fresh(&memory);
        storage.set_vote(9, None);
        storage.save();
        memory.write(copy + 20, &[0xff]);
        assert_eq!(reopen(&memory).unwrap().vote().0, 9);
        memory.write((HEADERS[0] + HEADERS[1] - copy) + 20, &[0xff]);
        assert_eq!(reopen(&memory).unwrap().vote().0, 9, "the other copy was repaired");
    }
}

/// Memory whose writer dies after some bytes.
struct Dying(HeapMemory, core::cell::Cell<usize>);

impl SharedMemory for Dying {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.read(offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        let stored = from.len().min(self.1.get());
        self.1.set(self.1.get() - stored);
        self.0.write(offset, &from[..stored]);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.write(offset, &vec![value; len]);
    }
    fn load_u32(&self, offset: usize) -> u32 {
        self.0.load_u32(offset)
    }
    fn store_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn load_u64(&self, offset: usize) -> u64 {
        self.0.load_u64(offset)
    }
    fn store_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
}

#[test]
fn two_crashes_in_a_row_lose_nothing() {
    let header = HEADER_LEN + 4;
    for first in (0..=2 * header).step_by(3) {
        for second in (0..=2 * header).step_by(5) {
            let memory = HeapMemory::new(MIN_STORAGE);
            fresh(&memory);
            for bytes in [first, second] {
                let dying = Dying(memory.clone(), core::cell::Cell::new(bytes));
                Storage::open(dying, 1, bytes as u32 + 2, |_| {}).unwrap();
            }
            assert!(reopen(&memory).is_ok(), "dead after {first}, then {second} bytes");
        }
    }
}

#[test]
fn damage_is_named() {
    let memory = HeapMemory::new(MIN_STORAGE);
    let mut storage = fresh(&memory);
    storage.append(0, &record(1, 1, Kind::Term, &[]));
    storage.append(1, &command(2, 1, 64));
    storage.save();
    let mut image = vec![0; MIN_STORAGE];
    memory.read(0, &mut image);
    let damaged_at = |places: &[usize]| {
        memory.write(0, &image);
        for place in places {
            memory.write(*place, &[image[*place] ^ 4]);
        }
        reopen(&memory).unwrap_err()
    };
    let both = [HEADERS[0] + 8, HEADERS[1] + 8];
    assert_eq!(damaged_at(&both), OpenError::Damaged(Damage::Header));
    let base = BASES[storage.header.base_slot()];
    assert_eq!(damaged_at(&[base + 40]), OpenError::Damaged(Damage::Base));
    assert_eq!(damaged_at(&[RING + 50]), OpenError::Damaged(Damage::Record(2)));
    memory.write(0, &image);
    let foreign = Storage::open(memory.clone(), 2, 2, |_| {}).unwrap_err();
    assert_eq!(foreign, OpenError::Damaged(Damage::Foreign));
}

#[test]
fn truncation_keeps_the_storage_readable_at_every_step() {
    let memory = HeapMemory::new(MIN_STORAGE);
    let mut storage = fresh(&memory);
    storage.append(0, &record(1, 1, Kind::Term, &[]));
    storage.append(1, &command(2, 1, 8));
    storage.append(2, &command(3, 1, 8));
    storage.save();
    // The new record overwrites old ones; the header must have forgotten those before.
    storage.append(1, &record(2, 2, Kind::Term, &[1; 64]));
    assert_eq!(reopen(&memory).unwrap().last_index(), 1);
    storage.save();
    assert_eq!(reopen(&memory).unwrap().last_index(), 2);
}

#[test]
fn the_ring_goes_round() {
    let memory = HeapMemory::new(MIN_STORAGE);
    let mut storage = fresh(&memory);
    storage.append(0, &record(1, 1, Kind::Term, &[]));
    for index in 2..400 {
        if storage.room_after(storage.last_index()) < 2048 {
            let start = Position { term: 1, index: index - 3 };
            storage.rebase(start, config(), true);
        }
        storage.append(index - 1, &command(index, 1, (index as usize * 37) % 900));
        storage.save();
        assert!(storage.used() < storage.capacity());
    }
    let opened = reopen(&memory).unwrap();
    assert_eq!((opened.last_index(), opened.used()), (399, storage.used()));
    assert_eq!(opened.start(), storage.start());
}

#[test]
fn a_snapshot_beyond_the_log_empties_it() {
    let memory = HeapMemory::new(MIN_STORAGE);
    let mut storage = fresh(&memory);
    storage.append(0, &record(1, 1, Kind::Term, &[]));
    storage.set_restoring(true);
    assert!(reopen(&memory).unwrap().restoring());
    storage.rebase(Position { term: 5, index: 70 }, config(), false);
    storage.set_restoring(false);
    storage.append(70, &record(71, 6, Kind::Term, &[]));
    storage.save();
    let opened = reopen(&memory).unwrap();
    assert_eq!(opened.start(), Position { term: 5, index: 70 });
    assert_eq!((opened.last_index(), opened.restoring()), (71, false));
}

proptest! {
    /// Whatever bit flips, opening gives the same state, says what is damaged, or (a header copy,
    /// unused bytes) does not care; it never gives another state.
    #[test]
    fn a_flip_is_never_served(bit in 0..(2048_usize * 8)) {
        let memory = HeapMemory::new(MIN_STORAGE);
        let mut storage = fresh(&memory);
        storage.set_vote(3, Some(Ident::new(3, 0)));
        storage.append(0, &record(1, 3, Kind::Term, &[]));
        for index in 2..8 {
            storage.append(index - 1, &command(index, 3, 100));
        }
        storage.save();
        let mut byte = [0];
        memory.read(bit / 8, &mut byte);
        memory.write(bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        match reopen(&memory) {
            Err(OpenError::Damaged(_)) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
            Ok(opened) => {
                prop_assert_eq!(opened.vote(), storage.vote());
                prop_assert_eq!(opened.last_index(), 7);
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for index in 1..=7 {
                    prop_assert_eq!(opened.read(index, &mut theirs).unwrap(),
                                    storage.read(index, &mut ours).unwrap());
                }
            }
        }
    }

    #[test]
    fn garbage_is_not_storage(bytes in prop::collection::vec(any::<u8>(), 1024..1200)) {
        let memory = HeapMemory::new(MIN_STORAGE);
        memory.write(0, &bytes);
        prop_assert!(reopen(&memory).is_err());
    }
}
