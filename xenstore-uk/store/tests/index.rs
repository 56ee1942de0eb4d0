//! A life that begins by the index: it finds what a reading of all slots finds (the harness
//! compares both at every restart), and never believes a damaged one.
#![allow(missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Host, TOOL};
use fabric::SharedMemory;
use store::SLOT_LEN;
use wire::Operation as O;

/// A store with short and long nodes, some of them gone again, and an index of all.
fn host() -> Host {
    let mut host = Host::new();
    host.introduce(16);
    for directory in 0..20 {
        for leaf in 0..10 {
            host.write(TOOL, &format!("/d{directory}/n{leaf}"), &format!("{directory}.{leaf}"));
        }
    }
    host.write(TOOL, "/long", &"v".repeat(1000));
    host.call(TOOL, O::Remove, &["/d3"]);
    host.call(TOOL, O::Remove, &["/d4/n5"]);
    host.call(TOOL, O::Watch, &["/d5", "token"]);
    host.settle();
    host.idle();
    host
}

#[test]
fn the_index_is_kept_from_life_to_life() {
    let mut host = host();
    for round in 0..5 {
        let report = host.restart();
        assert!(report.is_indexed, "life {round}");
        assert_eq!(report.load.slots, 0, "no slot is looked at for the count");
        host.write(TOOL, &format!("/d{round}/new"), "x");
        host.call(TOOL, O::Remove, &[&format!("/d{}", 10 + round)]);
        let open = host.begin(TOOL);
        host.call_in(TOOL, O::Write, open, &["/long", &"w".repeat(100 * round)]);
        host.call_in(TOOL, O::Remove, open, &[&format!("/d7/n{round}")]);
        host.call_in(TOOL, O::TransactionEnd, open, &["T"]);
        assert_eq!(host.read(TOOL, "/d6/n6"), "6.6");
        assert_eq!(host.read(TOOL, &format!("/d7/n{round}")), "ENOENT|");
    }
    assert!(!host.rebuild().is_indexed, "a new domain has none");
    assert!(!host.restart().is_indexed, "it is not complete yet");
    host.idle();
    assert!(host.restart().is_indexed);
}

#[test]
fn an_interrupted_change_leaves_the_state_before_it() {
    let mut host = host();
    let digest = host.server.state().digest();
    // Each store in turn is the last one of a life; what it left is undone or completed.
    for stores in 0..40 {
        let committed = host.server.state().committed();
        host.budget.limit(stores);
        host.guests.get_mut(&TOOL).expect("a guest").send(O::Write, 0, b"/d1/n1\0other");
        let _ = catch_unwind(AssertUnwindSafe(|| host.settle()));
        host.restart();
        let now = host.server.state().committed();
        assert!(now == committed || host.server.state().digest() != digest);
        host.settle();
        host.guests.get_mut(&TOOL).expect("a guest").replies.clear();
        host.idle();
        host.write(TOOL, "/d1/n1", "1.1");
    }
}

/// Flips a bit of `memory` in its first `len` bytes.
fn flip(memory: &dyn SharedMemory, seed: u64, len: usize) {
    let random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let at = (random >> 32) as usize % len / 8 * 8;
    memory.store_u64(at, memory.load_u64(at) ^ 1 << (random % 64));
}

#[test]
fn a_damaged_slot_is_never_served_as_the_truth() {
    let mut noticed = 0;
    for seed in 0..60 {
        let mut host = host();
        let used = host.server.slots().used_slots();
        flip(&host.slots, seed, 256 + used * SLOT_LEN);
        let served = catch_unwind(AssertUnwindSafe(|| {
            host.restart_within_budget();
            for directory in (0..20).filter(|directory| *directory != 3) {
                let found = host.read(TOOL, &format!("/d{directory}/n1"));
                assert_eq!(found, format!("{directory}.1"), "served without a word");
            }
        }));
        if served.is_err() {
            noticed += 1;
            let report = host.restart();
            assert!(!report.is_indexed, "the next life reads all slots");
            assert!(report.load.damaged_slots > 0);
        }
    }
    assert!(noticed > 5, "{noticed} flips were noticed");
}

#[test]
fn a_damaged_index_is_not_believed() {
    for seed in 0..60 {
        let mut host = host();
        // Its beginning is in use: the header and the first entries.
        flip(&host.index, seed, 200 * 24);
        assert!(!host.restart().is_indexed);
        assert_eq!(host.read(TOOL, "/d5/n1"), "5.1");
    }
}
