//! A life that begins by the index: it finds what a reading of all slots finds (the harness
//! compares both at every restart), and never believes a damaged one.
#![allow(missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Host, TOOL};
use fabric::SharedMemory;
use store::{Config, SLOT_LEN};
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

/// A small store with an index of all.
fn small() -> Host {
    let mut host = Host::with_slots(Config::new(9, &[0, TOOL], 4), 256 + 128 * 1024);
    for directory in 0..4 {
        for leaf in 0..5 {
            host.write(TOOL, &format!("/d{directory}/n{leaf}"), &format!("{directory}.{leaf}"));
        }
    }
    host.call(TOOL, O::Watch, &["/d1", "kept"]);
    host.settle();
    host.idle();
    host
}

/// Sends a request whose execution ends with the given number of stores. Answers whether it was
/// interrupted.
fn interrupt(
    host: &mut Host,
    stores: u64,
    transaction: u32,
    operation: O,
    strings: &[&str],
) -> bool {
    let payload: String = strings.iter().map(|string| format!("{string}\0")).collect();
    host.budget.limit(stores);
    let guest = host.guests.get_mut(&TOOL).expect("a guest");
    guest.send(operation, transaction, payload.as_bytes());
    host.kick_all();
    host.run(100);
    host.budget.is_exhausted()
}

/// A store is made as it was, and answers the transaction of the request that is interrupted.
type Prepare = fn(&mut Host) -> u32;

fn nothing(_: &mut Host) -> u32 {
    0
}

fn a_transaction(host: &mut Host) -> u32 {
    host.write(TOOL, "/d2/n3", "2.3");
    host.call(TOOL, O::Remove, &["/d2/new"]);
    let open = host.begin(TOOL);
    host.call_in(TOOL, O::Write, open, &["/d2/n1", "in a transaction"]);
    host.call_in(TOOL, O::Write, open, &["/d2/new/one", "x"]);
    host.call_in(TOOL, O::Remove, open, &["/d2/n3"]);
    open
}

/// Whatever store is the last of a life, in whatever change: the next one begins by the index, and
/// finds the state of the last commit (the harness compares it with what all slots say).
#[test]
fn an_interrupted_change_costs_no_reading_of_all_slots() {
    let long = "v".repeat(700);
    let subtree: Prepare = |host| {
        (0..5).for_each(|leaf| drop(host.write(TOOL, &format!("/d0/n{leaf}"), "0")));
        0
    };
    let no_new: Prepare = |host| {
        host.call(TOOL, O::Remove, &["/new"]);
        0
    };
    let unwatched: Prepare = |host| {
        host.call(TOOL, O::Unwatch, &["/d2", "w"]);
        0
    };
    let watched: Prepare = |host| {
        host.call(TOOL, O::Watch, &["/d2", "w"]);
        0
    };
    let cases: [(&str, Prepare, O, &[&str]); 9] = [
        ("a value", nothing, O::Write, &["/d1/n1", "other"]),
        ("a long value", nothing, O::Write, &["/d1/n2", &long]),
        ("new nodes", no_new, O::MakeDirectory, &["/new/directory/below"]),
        ("a subtree goes", subtree, O::Remove, &["/d0"]),
        ("rights", nothing, O::SetPermissions, &["/d1/n3", "n5", "r16"]),
        ("a transaction", a_transaction, O::TransactionEnd, &["T"]),
        ("a transaction is dropped", a_transaction, O::TransactionEnd, &["F"]),
        ("a watch", unwatched, O::Watch, &["/d2", "w"]),
        ("a watch goes", watched, O::Unwatch, &["/d2", "w"]),
    ];
    for (name, prepare, operation, strings) in cases {
        let mut host = small();
        let (mut stores, mut undone, mut is_interrupted) = (0, 0, true);
        while is_interrupted {
            let transaction = prepare(&mut host);
            let state = host.server.state();
            let (committed, digest) = (state.committed(), state.digest());
            is_interrupted = interrupt(&mut host, stores, transaction, operation, strings);
            let report = host.restart();
            assert!(report.is_indexed, "{name}, store {stores}");
            let state = host.server.state();
            if state.committed() == committed {
                undone += 1;
                assert_eq!(state.digest(), digest, "{name}, store {stores}");
            }
            assert!(state.committed() - committed <= 1, "{name}, store {stores}");
            host.settle();
            let guest = host.guests.get_mut(&TOOL).expect("a guest");
            assert_eq!(guest.replies.drain(..).count(), 1, "{name}, store {stores}");
            guest.events.clear();
            stores += 1;
        }
        assert!(undone > 15 && stores > undone + 3, "{name}: {undone} of {stores} undone");
    }
}

/// The life after a removal that was committed and not cleaned up dies in the middle of that, and
/// with it the index: what was removed does not come back.
#[test]
fn an_interrupted_cleaning_brings_nothing_back() {
    let removed = |stores| {
        let mut host = small();
        let committed = host.server.state().committed();
        assert!(interrupt(&mut host, stores, 0, O::Remove, &["/d0"]));
        (host, committed + 1)
    };
    let is_committed = |stores: &u64| {
        let (mut host, commit) = removed(*stores);
        host.restart();
        host.server.state().committed() == commit
    };
    let first = (0..).find(is_committed).expect("it is committed some time");
    let mut cleaned = Vec::new();
    for stores in 0..40 {
        let (mut host, commit) = removed(first);
        host.budget.limit(stores);
        host.restart_within_budget();
        let report = host.rebuild();
        assert!(!report.is_indexed);
        assert_eq!(host.server.state().committed(), commit, "store {stores}");
        host.server.finish_loading();
        assert!(host.server.state().tree().get(b"/d0").is_none(), "store {stores}");
        cleaned.push(report.load.slots);
    }
    let (most, fewest) = (cleaned[0], cleaned[cleaned.len() - 1]);
    assert!(most > fewest + 5, "{most} slots before, {fewest} after cleaning");
}

/// A change that overwrites more than the journal holds is finished or undone all the same, by
/// reading all slots where it was interrupted; else the index is whole after it.
#[test]
fn a_change_beyond_the_journal_is_undone_without_the_index() {
    let (mut by_index, mut by_slots) = (0, 0);
    let mut host = Host::new();
    for stores in (0..).step_by(503) {
        for node in 0..2000 {
            host.write(TOOL, &format!("/many/{node}"), "x");
        }
        host.idle();
        assert!(host.compare_starts(), "the index is complete");
        let digest = host.server.state().digest();
        let committed = host.server.state().committed();
        let is_interrupted = interrupt(&mut host, stores, 0, O::Remove, &["/many"]);
        let report = host.restart();
        *(if report.is_indexed { &mut by_index } else { &mut by_slots }) += 1;
        let state = host.server.state();
        let is_undone = state.committed() == committed;
        assert_eq!(is_undone, state.digest() == digest, "store {stores}");
        host.settle();
        host.guests.get_mut(&TOOL).expect("a guest").replies.clear();
        assert_eq!(host.read(TOOL, "/many/1"), "ENOENT|");
        if !is_interrupted {
            assert!(report.is_indexed, "the index is whole after the change");
            break;
        }
    }
    assert!(by_index > 3 && by_slots > 3, "{by_index} by the index, {by_slots} by all slots");
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
            for number in 0..200 {
                let (directory, leaf) = (number / 10, number % 10);
                let is_gone = directory == 3 || (directory, leaf) == (4, 5);
                let found = host.read(TOOL, &format!("/d{directory}/n{leaf}"));
                let written = format!("{directory}.{leaf}");
                let right = if is_gone { "ENOENT|" } else { written.as_str() };
                assert_eq!(found, right, "served without a word");
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

/// A bit flips where a life died: the state is that of the last commit, by whatever way.
#[test]
fn a_damaged_journal_is_not_believed() {
    let mut believed = 0;
    for seed in 0..400 {
        let mut host = small();
        assert!(interrupt(&mut host, 20 + seed % 60, 0, O::Write, &["/new/node", "x"]));
        host.budget.refill();
        let used = host.server.slots().used_slots() * 24;
        // Header and entries; or the journal, which ends the memory, with some notes.
        if seed % 2 == 0 {
            flip(&host.index, seed, 40 + used);
        } else {
            let journal = host.index.len() - (40 + 4096 * 8);
            let at = journal + (seed as usize * 8) % (40 + 40 * 8);
            host.index.store_u64(at, host.index.load_u64(at) ^ 1 << (seed * 7 % 64));
        }
        believed += u32::from(host.compare_starts());
        host.restart();
        host.settle();
        host.guests.get_mut(&TOOL).expect("a guest").replies.clear();
        assert_eq!(host.read(TOOL, "/new/node"), "x|");
        assert_eq!(host.read(TOOL, "/d3/n1"), "3.1");
    }
    assert!(believed > 20 && believed < 300, "{believed} starts by the index");
}

/// Watches on, above and below what the first requests name, by two connections.
fn watch_everywhere(host: &mut Host) {
    let paths = ["/", "/d5", "/d5/n1", "/d5/n1/deep", "/d6", "/d6/n2", "/long", "@releaseDomain"];
    for domid in [TOOL, 16] {
        for path in paths {
            host.call(domid, O::Watch, &[path, &format!("t{path}")]);
        }
    }
    host.write(TOOL, "/d5/n1/deep/down", "below");
    host.settle();
    host.idle();
    for domid in [TOOL, 16] {
        host.events(domid);
    }
}

/// What a request is answered, and who is told, as the first one of a life.
fn first_of_a_life(is_made: bool, operation: O, strings: &[&str], is_payload: bool) -> String {
    let mut host = host();
    watch_everywhere(&mut host);
    let lost = host.begin(TOOL).to_string();
    assert!(host.restart().is_indexed);
    if is_made {
        host.server.finish_loading();
    }
    let strings: Vec<&str> =
        strings.iter().map(|text| if *text == "LOST" { lost.as_str() } else { text }).collect();
    let reply = match (operation, is_payload) {
        (O::TransactionEnd, _) => {
            let transaction = lost.parse().expect("a number");
            host.call_in(TOOL, operation, transaction, &strings)
        }
        (_, true) => {
            let payload = format!("{}\0{}", strings[0], strings[1]);
            host.request(TOOL, operation, 0, payload.as_bytes()).text()
        }
        _ => host.call(TOOL, operation, &strings),
    };
    // One of the requests ends the connection of domain 16.
    let left: Vec<u16> = host.guests.keys().copied().collect();
    let mut told: Vec<_> = left.iter().map(|domid| host.events(*domid)).collect();
    // What was left to be made is there for what follows.
    host.call(TOOL, O::Unwatch, &["/d6/n2", "t/d6/n2"]);
    host.write(TOOL, "/d6/n2", "again");
    told.extend(left.iter().map(|domid| host.events(*domid)));
    host.server.finish_loading();
    let state = host.server.state();
    format!("{reply} {told:?} {:x} {}", state.digest(), state.watch_count())
}

#[test]
fn the_first_request_finds_what_one_finds_that_waits_until_all_is_made() {
    let cases: &[(O, &[&str], bool)] = &[
        (O::Read, &["/d6/n6"], false),
        (O::Write, &["/d5/n1", "new"], true),
        (O::Write, &["/d5/n1/deep/other/one", "new"], true),
        (O::MakeDirectory, &["/d6/n2/below"], false),
        (O::SetPermissions, &["/d6/n2", "n5", "r16"], false),
        (O::Remove, &["/d6/n2"], false),
        (O::Remove, &["/d5"], false),
        (O::Remove, &["/d9/none"], false),
        (O::TransactionEnd, &["T"], false),
        (O::Watch, &["/d5", "second"], false),
        (O::Watch, &["/d5", "t/d5"], false),
        (O::Unwatch, &["/d5", "t/d5"], false),
        (O::Unwatch, &["@releaseDomain", "t@releaseDomain"], false),
        (O::Watch, &["@releaseDomain", "t@releaseDomain"], false),
        (O::ResetWatches, &[""], false),
        (O::Release, &["16"], false),
        (O::Directory, &["/d5"], false),
    ];
    for (operation, strings, is_payload) in cases {
        let [lazy, made] =
            [false, true].map(|is_made| first_of_a_life(is_made, *operation, strings, *is_payload));
        assert_eq!(lazy, made, "{operation:?} {strings:?}");
    }
}
