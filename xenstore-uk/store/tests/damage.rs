//! Flipped bits in the memory that outlives the server: found, survived, never believed.
#![allow(missing_docs)]

mod common;

use common::{Host, TOOL};
use fabric::SharedMemory;
use store::{AREA_LEN, Config, SLOT_LEN};
use wire::Operation as O;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn host() -> (Host, Vec<(String, String)>) {
    let mut host = Host::with_slots(Config::new(77, &[0, TOOL], 4), 256 + 128 * 1024);
    host.introduce(16);
    let mut model = Vec::new();
    for index in 0..40 {
        let path = format!("/d{}/n{index}", index % 5);
        let value = format!("value {index} ").repeat(1 + index % 20);
        assert_eq!(host.write(TOOL, &path, &value), "OK|");
        model.push((path, value));
    }
    host.call(TOOL, O::Watch, &["/d1", "t"]);
    host.settle();
    host.events(TOOL);
    (host, model)
}

fn flip(memory: &impl SharedMemory, bit: usize) {
    let at = bit / 64 * 8;
    memory.store_u64(at, memory.load_u64(at) ^ 1 << (bit % 64));
}

#[test]
fn flipped_slots() {
    let (mut host, model) = host();
    let used = host.server.slots().used_slots() + 8;
    let pristine: Vec<u64> =
        (0..host.slots.len() / 8).map(|at| host.slots.load_u64(at * 8)).collect();
    let areas: Vec<u64> = (0..host.areas.len() / 8).map(|at| host.areas.load_u64(at * 8)).collect();
    let mut random = Random(5);
    let mut lost = 0;
    for _ in 0..400 {
        for (index, word) in pristine.iter().enumerate() {
            host.slots.store_u64(index * 8, *word);
        }
        for (index, word) in areas.iter().enumerate() {
            host.areas.store_u64(index * 8, *word);
        }
        host.guests.values_mut().for_each(|guest| *guest = common::Guest::new());
        flip(&host.slots, random.below((256 + used * SLOT_LEN) * 8));
        let (mut server, report) = store::Server::start(
            &host.config,
            common::crash::Crashing::new(host.slots.clone(), host.budget.clone()),
            common::crash::Crashing::new(host.areas.clone(), host.budget.clone()),
        );
        assert!(!report.is_new);
        server.finish_loading();
        let tree = server.state().tree();
        for (path, value) in &model {
            match tree.get(path.as_bytes()) {
                Some(found) => {
                    assert_eq!(found.node.value(), value.as_bytes());
                    assert!(found.is_intact());
                }
                None => {
                    lost += 1;
                    assert!(report.load.damaged_slots + report.load.lost_records > 0, "{report:?}");
                }
            }
        }
    }
    assert!(lost > 0, "no flip hit a node");
}

#[test]
fn flipped_areas() {
    let (host, _) = host();
    let areas: Vec<u64> = (0..host.areas.len() / 8).map(|at| host.areas.load_u64(at * 8)).collect();
    let slots: Vec<u64> = (0..host.slots.len() / 8).map(|at| host.slots.load_u64(at * 8)).collect();
    let pages: Vec<(u16, Vec<u8>)> = host
        .guests
        .iter()
        .map(|(domid, guest)| {
            let mut page = vec![0; 4096];
            guest.page.read(0, &mut page);
            (*domid, page)
        })
        .collect();
    let mut random = Random(9);
    let mut host = host;
    for round in 0..300 {
        for (index, word) in areas.iter().enumerate() {
            host.areas.store_u64(index * 8, *word);
        }
        for (index, word) in slots.iter().enumerate() {
            host.slots.store_u64(index * 8, *word);
        }
        for (domid, page) in &pages {
            host.guests[domid].page.write(0, page);
        }
        // Both copies of a connection's state, or anything in the areas.
        if round % 10 == 0 {
            flip(&host.areas, 64 + random.below(512));
            flip(&host.areas, 128 * 8 + 64 + random.below(512));
        } else {
            flip(&host.areas, random.below(2 * AREA_LEN * 8));
        }
        let report = host.restart();
        assert_eq!(report.load.lost_records, 0);
        assert!(report.damaged_areas <= 1);
        // The streams go on where they were: each request has its own answer.
        for value in ["1", "2"] {
            assert_eq!(host.write(TOOL, "/d1/x", value), "OK|");
            assert_eq!(host.read(TOOL, "/d1/x"), value);
            assert!(host.events(TOOL).contains(&"/d1/x|t|".to_string()));
        }
        assert_eq!(host.call(16, O::GetDomainPath, &["16"]), "/local/domain/16|");
    }
}

#[test]
fn the_scrubber_writes_damaged_records_again() {
    let (mut host, _) = host();
    let used = host.server.slots().used_slots();
    let mut random = Random(3);
    for _ in 0..30 {
        flip(&host.slots, (256 + random.below(used) * SLOT_LEN + 8) * 8 + random.below(100 * 8));
        for _ in 0..40 {
            host.now_ns += 25_000_000;
            assert_eq!(host.server.idle_step(host.now_ns), None);
        }
    }
    assert!(host.server.stats().repaired_records >= 20, "{:?}", host.server.stats());
    assert!(host.server.stats().scrubbed_nodes > 100);
    let digest = host.server.state().digest();
    let report = host.restart();
    assert_eq!(report.load.lost_records, 0);
    assert_eq!(host.server.state().digest(), digest);
}

/// What is kept twice or in memory, too, is whole again before a second fault can come.
#[test]
fn the_scrubber_writes_headers_and_connections_again() {
    let (mut host, _) = host();
    let mut random = Random(11);
    for round in 0..40 {
        let before = host.server.stats().repaired_records;
        let copy = round / 2 % 2 * 128;
        match round % 2 {
            0 => flip(&host.slots, (copy + random.below(48)) * 8),
            _ => flip(&host.areas, copy * 8 + random.below(96 * 8)),
        }
        for _ in 0..10 {
            host.now_ns += 25_000_000;
            assert_eq!(host.server.idle_step(host.now_ns), None);
        }
        assert_eq!(host.server.stats().repaired_records, before + 1, "round {round}");
    }
    let digest = host.server.state().digest();
    assert_eq!(host.restart().damaged_areas, 0);
    assert_eq!(host.server.state().digest(), digest);
    assert_eq!(host.write(TOOL, "/d1/x", "1"), "OK|");
}

/// A replica's areas are looked after as those of a lone store: the leader's tell what is under
/// way, a follower's what it knew when it led.
#[test]
fn the_scrubber_writes_the_connections_of_replicas_again() {
    let (mut host, _) = host();
    let mut random = Random(12);
    for term in [0, 1] {
        host.server.demote();
        if term > 0 {
            host.server.promote(term, &[]);
        }
        for copy in [0, 128] {
            let before = host.server.stats().repaired_records;
            flip(&host.areas, copy * 8 + random.below(96 * 8));
            for _ in 0..10 {
                host.now_ns += 25_000_000;
                assert_eq!(host.server.idle_step(host.now_ns), None);
            }
            let repaired = host.server.stats().repaired_records - before;
            assert_eq!(repaired, 1, "copy at {copy} in term {term}");
        }
    }
}

/// Zeroes look like a free slot: what they hid is missed all the same.
#[test]
fn zeroed_slots_are_missed() {
    let used = host().0.server.slots().used_slots();
    let (mut missed, mut lost) = (0, 0);
    for slot in 0..used {
        let (mut host, model) = host();
        host.slots.fill(256 + slot * SLOT_LEN, SLOT_LEN, 0);
        let report = host.restart();
        host.server.finish_loading();
        let tree = host.server.state().tree();
        let gone = model.iter().filter(|(path, _)| tree.get(path.as_bytes()).is_none()).count();
        assert!(gone == 0 || report.load.missing_slots > 0, "slot {slot}: {report:?}");
        missed += usize::from(report.load.missing_slots > 0);
        lost += usize::from(gone > 0);
    }
    // Some of the first slots are free, most are not.
    assert!(missed > used / 2 && lost > 0, "{missed} of {used} slots missed, {lost} with nodes");
}
