//! What a client does wrong hurts that client alone.
#![allow(missing_docs)]

mod common;

use std::cell::Cell;

use common::{Guest, Host, TOOL};
use fabric::{HeapMemory, SharedMemory};
use store::{AREA_LEN, Fault, Ring};
use wire::ring as layout;
use wire::{HEADER_LEN, Header, Operation as O};

fn host_with_guests() -> Host {
    let mut host = Host::new();
    for domid in [16, 17] {
        host.introduce(domid);
        let base = format!("/local/domain/{domid}");
        host.call(TOOL, O::MakeDirectory, &[&base]);
        host.call(TOOL, O::SetPermissions, &[&base, &format!("n{domid}")]);
    }
    host
}

fn error_of(host: &Host, domid: u16) -> u32 {
    host.guests[&domid].page.load_u32(layout::ERROR)
}

#[test]
fn bad_indices() {
    for (offset, value) in [
        (layout::REQUEST_PRODUCER, 5000),
        (layout::REQUEST_PRODUCER, u32::MAX),
        (layout::RESPONSE_CONSUMER, 5000),
        (layout::REQUEST_CONSUMER, 77),
        (layout::RESPONSE_PRODUCER, 77),
    ] {
        let mut host = host_with_guests();
        assert_eq!(host.write(16, "x", "1"), "OK|");
        host.call(16, O::Watch, &["x", "t"]);
        host.guests[&16].page.store_u32(offset, value);
        host.kick_all();
        host.run(10);
        if error_of(&host, 16) == 0 {
            // A consumer is looked at when there is something to send.
            host.guests.get_mut(&16).expect("a guest").push();
            let guest = &host.guests[&16];
            let produced = guest.page.load_u32(layout::REQUEST_PRODUCER);
            let header = Header { operation: O::Read, request: 1, transaction: 0, len: 0 };
            guest.page.write(produced as usize % 1024, &header.emit());
            guest.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(16));
            host.kick_all();
            host.run(10);
        }
        assert_eq!(error_of(&host, 16), 2, "{offset} {value}");
        // Nothing of it is left, and the others are served.
        assert_eq!(host.server.state().watch_count(), 0);
        let dead = host.guests.remove(&16).expect("a guest");
        assert_eq!(host.write(17, "x", "1"), "OK|");
        assert_eq!(host.read(TOOL, "/local/domain/16/x"), "1");
        // Also in the server's next life.
        host.guests.insert(16, dead);
        host.restart();
        host.run(10);
        assert_eq!(error_of(&host, 16), 2);
        // A reset brings it back.
        host.guests[&16].page.store_u32(layout::CONNECTION, layout::RECONNECT);
        host.kick_all();
        host.run(10);
        assert_eq!(error_of(&host, 16), 0);
        assert_eq!(host.guests[&16].page.load_u32(layout::CONNECTION), layout::CONNECTED);
        assert_eq!(host.read(16, "x"), "1");
    }
}

/// A page one index of which is wrong at the next looks.
struct Lying {
    page: HeapMemory,
    index: usize,
    looks: Cell<u32>,
}

impl SharedMemory for Lying {
    fn len(&self) -> usize {
        self.page.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.page.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.page.write(offset, from);
    }

    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.page.fill(offset, len, value);
    }

    fn load_u32(&self, offset: usize) -> u32 {
        let left = self.looks.get();
        if offset == self.index && left > 0 {
            self.looks.set(left - 1);
            return self.page.load_u32(offset).wrapping_add(5_000);
        }
        self.page.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.page.store_u32(offset, value);
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.page.load_u64(offset)
    }

    fn store_u64(&self, offset: usize, value: u64) {
        self.page.store_u64(offset, value);
    }
}

/// Serves guest 16, whose producer of requests is wrong at so many looks.
fn serve_lying(host: &mut Host, looks: u32) -> store::Progress {
    serve_lying_at(host, layout::REQUEST_PRODUCER, looks)
}

fn serve_lying_at(host: &mut Host, index: usize, looks: u32) -> store::Progress {
    let client = host.server.connection_of(16).expect("it is introduced");
    let page = host.guests[&16].page.clone();
    let ring = Ring::Page(Lying { page, index, looks: Cell::new(looks) });
    host.server.serve(client, &ring, host.now_ns)
}

/// A register that a fault changes may make an error of what is right: a guest would be cut off
/// for ever, although nothing is wrong with its ring.
#[test]
fn an_error_that_a_second_look_does_not_find_is_forgotten() {
    let mut host = host_with_guests();
    host.write(16, "x", "1");
    for _ in 0..5 {
        let guest = host.guests.get_mut(&16).expect("a guest");
        guest.send(O::Read, 0, b"x\0");
        guest.push();
        let progress = serve_lying(&mut host, 1);
        assert!(progress.more && !progress.notify && progress.fault.is_none(), "{progress:?}");
        host.settle();
        let reply = host.guests.get_mut(&16).expect("a guest").replies.pop_front();
        assert_eq!(reply.expect("a reply").text(), "1");
    }
    assert_eq!(error_of(&host, 16), 0);
    // One that is there at both looks is an error at once.
    let mut other = host_with_guests();
    assert!(!serve_lying(&mut other, 2).more);
    assert_eq!(error_of(&other, 16), 2);
    // So is one that is there again and again, while nothing is asked for.
    for more in [true, true, false] {
        assert_eq!(serve_lying(&mut host, 1).more, more);
    }
    assert_eq!(error_of(&host, 16), 2);
}

/// The error may come after the request was executed: it is answered then, not executed again.
#[test]
fn a_request_whose_answer_met_an_error_is_executed_once() {
    let mut host = host_with_guests();
    let guest = host.guests.get_mut(&16).expect("a guest");
    guest.send(O::Watch, 0, b"x\0token\0");
    guest.push();
    let progress = serve_lying_at(&mut host, layout::RESPONSE_CONSUMER, 1);
    assert!(progress.executed && progress.more && progress.fault.is_none(), "{progress:?}");
    assert_eq!(host.server.state().watch_count(), 1, "it was executed");
    host.settle();
    let reply = host.guests.get_mut(&16).expect("a guest").replies.pop_front();
    assert_eq!(reply.expect("a reply").text(), "OK|", "and is not executed again");
    assert_eq!(error_of(&host, 16), 0);
}

/// What looks like an error of the client's may be damage in our memory.
#[test]
fn no_client_pays_for_what_we_forgot() {
    let mut host = host_with_guests();
    let client = host.server.connection_of(16).expect("it is introduced");
    for copy in [0, 128] {
        host.areas.fill(usize::from(client) * AREA_LEN + copy, 96, 0x5a);
    }
    let guest = host.guests.get_mut(&16).expect("a guest");
    guest.page.store_u32(layout::REQUEST_CONSUMER, 77);
    let progress = serve_lying(&mut host, 0);
    assert_eq!((progress.fault, progress.more), (Some(Fault::Connection), false));
    assert_eq!(error_of(&host, 16), 0);
}

#[test]
fn a_payload_too_long() {
    let mut host = host_with_guests();
    let header = Header { operation: O::Write, request: 1, transaction: 0, len: 4097 };
    let guest = &host.guests[&16];
    let produced = guest.page.load_u32(layout::REQUEST_PRODUCER);
    for (offset, byte) in header.emit().into_iter().enumerate() {
        guest.page.write((produced as usize + offset) % 1024, &[byte]);
    }
    guest.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(16));
    host.kick_all();
    host.run(10);
    assert_eq!(error_of(&host, 16), 3);
    assert_eq!(host.write(17, "x", "1"), "OK|");
}

/// hvmloader clears the whole page when it hands the ring over to the guest's kernel.
#[test]
fn an_emptied_page() {
    let mut host = host_with_guests();
    assert_eq!(host.write(16, "x", "1"), "OK|");
    host.guests[&16].page.fill(0, 4096, 0);
    assert_eq!(host.read(16, "x"), "1");
    // Also when the server restarts in between, once the streams have gone some way.
    for _ in 0..250 {
        host.read(16, "x");
    }
    host.guests[&16].page.fill(0, 4096, 0);
    host.restart();
    assert_eq!(host.read(16, "x"), "1");
}

#[test]
fn a_reset_drops_what_was_under_way() {
    let mut host = host_with_guests();
    host.call(16, O::Watch, &["x", "t"]);
    let open = host.begin(16);
    let guest = host.guests.get_mut(&16).expect("a guest");
    // Half a request that does not fit the ring.
    guest.send(O::Write, 0, &[b'x'; 3000]);
    host.kick_all();
    host.run(10);
    *host.guests.get_mut(&16).expect("a guest") = {
        let fresh = Guest::new();
        fresh.page.store_u32(layout::CONNECTION, layout::RECONNECT);
        fresh
    };
    host.kick_all();
    host.run(10);
    assert_eq!(host.guests[&16].page.load_u32(layout::CONNECTION), layout::CONNECTED);
    assert_eq!(host.call_in(16, O::TransactionEnd, open, &["F"]), "ENOENT|");
    host.write(16, "x", "2");
    assert_eq!(host.events(16), [""; 0]);
}

/// A guest that does not read its events loses none: they are made again from the tree.
#[test]
fn unread_events() {
    for restart in [false, true] {
        let mut host = host_with_guests();
        host.call(TOOL, O::SetPermissions, &["/local", "r0"]);
        assert_eq!(host.call(16, O::Watch, &["/local/many", "t"]), "OK|");
        assert_eq!(host.call(16, O::Watch, &["/local/one", "u", "0"]), "OK|");
        host.events(16);
        let silent = host.guests.remove(&16).expect("a guest");
        for index in 0..600 {
            assert_eq!(host.write(TOOL, &format!("/local/many/{index}"), "v"), "OK|");
        }
        host.write(TOOL, "/local/one/below", "v");
        host.write(TOOL, "/local/one", "v");
        host.call(TOOL, O::Remove, &["/local/many/7"]);
        assert!(host.server.stats().lost_events > 300);
        host.guests.insert(16, silent);
        if restart {
            host.restart();
        }
        host.settle();
        let events = host.events(16);
        for index in (0..600).filter(|index| *index != 7) {
            let expected = format!("/local/many/{index}|t|");
            assert!(events.contains(&expected), "{expected} in {} events", events.len());
        }
        assert!(events.contains(&"/local/many|t|".to_string()));
        assert!(events.contains(&"/local/one|u|".to_string()));
        assert!(!events.contains(&"/local/one/below|u|".to_string()));
        // Afterwards all is as before.
        host.write(TOOL, "/local/many/x", "v");
        assert_eq!(host.events(16), ["/local/many/x|t|"]);
    }
}

#[test]
fn quotas() {
    let mut host = host_with_guests();
    let long = "v".repeat(2048);
    assert_eq!(host.write(16, "big", &long), "ENOSPC|");
    assert_eq!(host.write(16, "big", &long[..2040]), "OK|");
    let mut last = String::new();
    for index in 0..1001 {
        last = host.write(16, &format!("n/{index}"), "");
        if last != "OK|" {
            assert!(index > 990, "{index}");
            break;
        }
    }
    assert_eq!(last, "ENOSPC|");
    assert_eq!(host.call(16, O::Remove, &["n"]), "OK|");
    assert_eq!(host.write(16, "n/1", ""), "OK|");
    for index in 0..128 {
        assert_eq!(host.call(16, O::Watch, &["n", &format!("{index}")]), "OK|");
    }
    assert_eq!(host.call(16, O::Watch, &["n", "one more"]), "ENOSPC|");
    for _ in 0..10 {
        host.begin(16);
    }
    assert_eq!(host.call(16, O::TransactionStart, &[""]), "ENOSPC|");
    let entries = ["n", "n16", "r1", "r2", "r3", "r4", "r5"];
    assert_eq!(host.call(16, O::SetPermissions, &entries), "ENOSPC|");
    assert_eq!(host.call(16, O::SetPermissions, &entries[..6]), "OK|");
    // Memory: 2.5 MB.
    host.call(TOOL, O::SetQuota, &["16", "nodes", "0"]);
    let mut written = 0;
    while host.write(16, &format!("m/{written}"), &long[..2040]) == "OK|" {
        written += 1;
        assert!(written < 2000, "no limit on memory");
    }
    assert_eq!(host.write(16, "m/more", &long[..2040]), "ENOMEM|");
    assert!(written > 1000, "{written}");
    assert_eq!(host.write(17, "m/0", &long[..2040]), "OK|");
}

#[test]
fn a_transaction_storm() {
    let mut host = host_with_guests();
    let open = host.begin(16);
    for index in 0..1100 {
        let path = format!("t/{index}");
        let reply = host.call_in(16, O::Read, open, &[&path]);
        assert_eq!(reply, "ENOENT|");
    }
    host.call_in(16, O::Write, open, &["t/x", ""]);
    assert_eq!(host.call_in(16, O::TransactionEnd, open, &["T"]), "ENOSPC|");
}

/// As many levels as a path may have are written, watched, read back and removed; more are refused.
#[test]
fn deep_paths() {
    let mut host = host_with_guests();
    let path = format!("/local/domain/16{}", "/d".repeat(125));
    let deeper = format!("{path}/d");
    assert_eq!(host.write(16, &deeper, "v"), "EINVAL|");
    assert_eq!(host.call(16, O::Watch, &[&deeper, "t"]), "EINVAL|");
    assert_eq!(host.write(16, &path, "v"), "OK|");
    assert_eq!(host.call(16, O::Watch, &[&path, "t"]), "OK|");
    assert_eq!(host.read(16, &path), "v");
    let open = host.begin(16);
    assert_eq!(host.call_in(16, O::Remove, open, &["d"]), "OK|");
    assert_eq!(host.call_in(16, O::TransactionEnd, open, &["T"]), "OK|");
    assert_eq!(host.server.state().domain(16).map(|d| d.used(store::Quota::Nodes)), Some(1));
    assert_eq!(host.write(16, &path, "v"), "OK|");
    host.restart();
    assert_eq!(host.read(16, &path), "v");
    assert_eq!(host.call(16, O::Remove, &["d"]), "OK|");
}

#[test]
fn a_dead_domain_leaves_nothing() {
    let mut host = host_with_guests();
    for index in 0..700 {
        host.write(16, &format!("n/{index}"), "");
        host.write(TOOL, &format!("/shared/{index}"), "");
        host.call(TOOL, O::SetPermissions, &[&format!("/shared/{index}"), "n0", "r16", "b17"]);
    }
    host.call(TOOL, O::SetPermissions, &["@introduceDomain", "n0", "r16"]);
    host.call(TOOL, O::Watch, &["@releaseDomain", "r"]);
    host.call(TOOL, O::Watch, &["/local/domain", "d"]);
    host.events(TOOL);
    host.server.domain_shut_down(16);
    host.server.domain_shut_down(16);
    host.settle();
    assert_eq!(host.events(TOOL), ["@releaseDomain|r|"], "once until RESUME");
    host.server.domain_gone(16);
    host.actions();
    host.settle();
    assert_eq!(host.events(TOOL), ["@releaseDomain|r|"]);
    // The sweep survives a restart.
    host.server.idle_step(0);
    host.restart();
    assert!(host.server.state().needs_sweep());
    while host.server.state().needs_sweep() {
        host.now_ns = host.server.next_deadline(host.now_ns);
        host.server.idle_step(host.now_ns);
    }
    host.settle();
    assert_eq!(host.events(TOOL).last().map(String::as_str), Some("/local/domain/16|d|"));
    assert_eq!(host.read(TOOL, "/local/domain/16"), "ENOENT|");
    assert_eq!(host.call(TOOL, O::GetPermissions, &["/shared/7"]), "n0|b17|");
    assert_eq!(host.call(TOOL, O::GetPermissions, &["@introduceDomain"]), "n0|");
    assert_eq!(host.call(TOOL, O::IsDomainIntroduced, &["16"]), "F|");
    let used = host.server.slots().used_slots();
    host.restart();
    assert_eq!(host.server.slots().used_slots(), used);
    assert!(host.server.state().domain(16).is_none());
}

#[test]
fn a_dead_domain_with_many_nodes_is_removed_in_small_steps() {
    /// As many as one step may remove.
    const STEP: u32 = 32;
    let mut host = host_with_guests();
    for index in 0..400 {
        let path = match index {
            0..100 => format!("wide/{index}"),
            100..280 => format!("some/{}/{index}", index / 7),
            _ => format!("deep/{}", "d/".repeat(index - 279).trim_end_matches('/')),
        };
        host.write(16, &path, "");
        host.write(TOOL, &format!("/local/domain/16/{path}"), "");
    }
    let nodes = |host: &Host| host.server.state().tree().nodes();
    let before = nodes(&host);
    host.server.domain_gone(16);
    host.actions();
    host.settle();
    let mut steps = 0;
    while host.server.state().needs_sweep() {
        let had = nodes(&host);
        host.now_ns = host.server.next_deadline(host.now_ns);
        host.server.idle_step(host.now_ns);
        assert!(had - nodes(&host) <= STEP, "{had} nodes, then {}", nodes(&host));
        steps += 1;
    }
    assert_eq!(host.read(TOOL, "/local/domain/16"), "ENOENT|");
    let removed = before - nodes(&host);
    assert!(removed > 400, "{removed} nodes removed");
    assert!(steps <= 2 + removed / STEP + before / STEP, "{steps} steps");
}

#[test]
fn random_bytes() {
    let mut seed = 0x1234_5678_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut host = host_with_guests();
    for _ in 0..3000 {
        let guest = &host.guests[&16];
        let mut bytes = vec![0u8; 64 + (random() % 900) as usize];
        bytes.iter_mut().for_each(|byte| *byte = random() as u8 & 0x7f);
        if random() % 4 != 0 {
            let header = Header {
                operation: O::from_raw((random() % 28) as u32),
                request: 0,
                transaction: (random() % 3) as u32,
                len: (bytes.len() - HEADER_LEN) as u32,
            };
            bytes[..HEADER_LEN].copy_from_slice(&header.emit());
            let last = bytes.len() - 1;
            bytes[last] = 0;
        }
        let produced = guest.page.load_u32(layout::REQUEST_PRODUCER);
        for (offset, byte) in bytes.iter().enumerate() {
            guest.page.write((produced as usize + offset) % 1024, &[*byte]);
        }
        guest.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(bytes.len() as u32));
        host.kick_all();
        host.run(20);
        let guest = &host.guests[&16];
        let produced = guest.page.load_u32(layout::RESPONSE_PRODUCER);
        guest.page.store_u32(layout::RESPONSE_CONSUMER, produced);
        if guest.page.load_u32(layout::ERROR) != 0 {
            guest.page.store_u32(layout::CONNECTION, layout::RECONNECT);
        }
    }
    assert_eq!(host.write(17, "x", "1"), "OK|");
}

/// Somebody who writes all the time cannot keep another's transactions from ever succeeding.
#[test]
fn a_transaction_is_not_starved() {
    let mut host = host_with_guests();
    host.write(TOOL, "/shared", "0");
    host.call(TOOL, O::SetPermissions, &["/shared", "b0"]);
    let mut commits = 0;
    for _ in 0..12 {
        let open = host.begin(16);
        host.call_in(16, O::Read, open, &["/shared"]);
        // The writer's request comes in the middle of each transaction.
        let writer = host.guests.get_mut(&17).expect("a guest");
        writer.send(O::Write, 0, b"/shared\x001");
        writer.push();
        host.call_in(16, O::Write, open, &["/shared", "2"]);
        let reply = host.call_in(16, O::TransactionEnd, open, &["T"]);
        commits += u32::from(reply == "OK|");
        // The writer is not starved either.
        host.settle();
        assert_eq!(host.guests.get_mut(&17).expect("a guest").replies.len(), 1);
        host.guests.get_mut(&17).expect("a guest").replies.clear();
        host.now_ns += 60_000_000;
    }
    assert!(commits >= 2, "{commits}");
    let stats = host.server.stats();
    assert!(stats.protections >= 2 && stats.deferred >= 2 && stats.conflicts >= 6, "{stats:?}");
}
