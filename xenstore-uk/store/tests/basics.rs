//! The operations that guests and tools use, end to end over rings.
#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::{CLIENTS, Host, SLOTS_LEN, TOOL};
use fabric::SharedMemory;
use store::Config;
use wire::{Header, Operation as O, ring};

#[test]
fn write_read_list_remove() {
    let mut host = Host::new();
    assert_eq!(host.write(TOOL, "/local/domain/7/name", "guest"), "OK|");
    assert_eq!(host.read(TOOL, "/local/domain/7/name"), "guest");
    assert_eq!(host.read(TOOL, "/local/domain/7"), "");
    assert_eq!(host.write(TOOL, "/local/domain/7/a", ""), "OK|");
    assert_eq!(host.call(TOOL, O::Directory, &["/local/domain/7"]), "a|name|");
    assert_eq!(host.call(TOOL, O::Remove, &["/local/domain/7"]), "OK|");
    assert_eq!(host.read(TOOL, "/local/domain/7/name"), "ENOENT|");
    assert_eq!(host.call(TOOL, O::Remove, &["/local/domain/8"]), "OK|");
    assert_eq!(host.call(TOOL, O::Remove, &["/local/domain/8/x"]), "ENOENT|");
    assert_eq!(host.call(TOOL, O::Remove, &["/"]), "EINVAL|");
    assert_eq!(host.call(TOOL, O::Directory, &["/"]), "local|tool|");
    assert_eq!(host.call(TOOL, O::Unknown(20), &[]), "ENOSYS|");
}

#[test]
fn a_guest_uses_relative_paths_and_its_rights() {
    let mut host = Host::new();
    host.introduce(16);
    assert_eq!(host.call(TOOL, O::MakeDirectory, &["/local/domain/16"]), "OK|");
    assert_eq!(host.call(TOOL, O::SetPermissions, &["/local/domain/16", "n0", "b16"]), "OK|");
    assert_eq!(host.write(16, "data/x", "1"), "OK|");
    assert_eq!(host.read(16, "/local/domain/16/data/x"), "1");
    assert_eq!(host.call(16, O::GetPermissions, &["data/x"]), "n16|b16|");
    assert_eq!(host.write(16, "/tool/x", "1"), "EACCES|");
    assert_eq!(host.read(16, "/tool"), "EACCES|");
    assert_eq!(host.call(16, O::GetDomainPath, &["16"]), "/local/domain/16|");
    assert_eq!(host.call(16, O::Introduce, &["17", "1", "1"]), "EACCES|");
    assert_eq!(host.call(16, O::SetPermissions, &["data/x", "n5"]), "EPERM|");
    assert_eq!(host.call(16, O::SetPermissions, &["data/x", "r16", "b5"]), "OK|");
    assert_eq!(host.call(TOOL, O::IsDomainIntroduced, &["16"]), "T|");
    assert_eq!(host.call(TOOL, O::IsDomainIntroduced, &["17"]), "F|");
}

#[test]
fn watches_fire() {
    let mut host = Host::new();
    host.introduce(16);
    host.call(TOOL, O::MakeDirectory, &["/local/domain/16"]);
    host.call(TOOL, O::SetPermissions, &["/local/domain/16", "n16"]);
    assert_eq!(host.call(16, O::Watch, &["device", "tok"]), "OK|");
    assert_eq!(host.events(16), ["device|tok|"]);
    host.write(TOOL, "/local/domain/16/device/vif/0", "x");
    assert_eq!(host.events(16), ["device/vif/0|tok|"]);
    assert_eq!(host.call(16, O::Watch, &["device", "tok"]), "EEXIST|");
    assert_eq!(host.call(TOOL, O::Watch, &["@introduceDomain", "i"]), "OK|");
    assert_eq!(host.call(TOOL, O::Watch, &["@releaseDomain", "r", "1"]), "OK|");
    assert_eq!(host.events(TOOL), ["@introduceDomain|i|", "@releaseDomain|r|"]);
    host.introduce(17);
    assert_eq!(host.events(TOOL), ["@introduceDomain|i|"]);
    host.server.domain_gone(17);
    host.actions();
    host.settle();
    assert_eq!(host.events(TOOL), ["@releaseDomain/17|r|"]);
    host.call(TOOL, O::Remove, &["/local/domain/16/device"]);
    assert_eq!(host.events(16), ["device|tok|"]);
    assert_eq!(host.call(16, O::Unwatch, &["device", "tok"]), "OK|");
    assert_eq!(host.call(16, O::Unwatch, &["device", "tok"]), "ENOENT|");
    host.write(TOOL, "/local/domain/16/device/vif/0", "x");
    assert_eq!(host.events(16), [""; 0]);
}

#[test]
fn transactions() {
    let mut host = Host::new();
    let first = host.begin(TOOL);
    let second = host.begin(TOOL);
    assert_eq!(host.call_in(TOOL, O::Write, first, &["/a", "1"]), "OK|");
    assert_eq!(host.read(TOOL, "/a"), "ENOENT|");
    assert_eq!(host.call_in(TOOL, O::Read, first, &["/a"]), "1|");
    assert_eq!(host.call_in(TOOL, O::Read, second, &["/a"]), "ENOENT|");
    assert_eq!(host.call_in(TOOL, O::Write, second, &["/b", "2"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, first, &["T"]), "OK|");
    assert_eq!(host.read(TOOL, "/a"), "1|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, second, &["T"]), "EAGAIN|");
    assert_eq!(host.read(TOOL, "/b"), "ENOENT|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, second, &["T"]), "ENOENT|");
    let third = host.begin(TOOL);
    host.call_in(TOOL, O::Remove, third, &["/a"]);
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, third, &["F"]), "OK|");
    assert_eq!(host.read(TOOL, "/a"), "1|");
}

#[test]
fn everything_survives_a_restart() {
    let mut host = Host::new();
    host.introduce(16);
    host.call(TOOL, O::MakeDirectory, &["/local/domain/16"]);
    host.call(TOOL, O::SetPermissions, &["/local/domain/16", "n16", "r5"]);
    host.call(16, O::Watch, &["x", "tok"]);
    host.write(TOOL, "/big", &"v".repeat(3000));
    host.call(TOOL, O::SetQuota, &["16", "nodes", "77"]);
    let open = host.begin(16);
    host.events(16);
    let digest = host.server.state().digest();
    for _ in 0..3 {
        let report = host.restart();
        assert!(!report.is_new);
        assert_eq!((report.load.missing_slots, report.load.damaged_slots), (0, 0));
        assert_eq!(report.load.uncommitted, 0);
        assert_eq!(host.server.state().digest(), digest);
    }
    assert_eq!(host.read(TOOL, "/big"), "v".repeat(3000));
    assert_eq!(host.call(TOOL, O::GetPermissions, &["/local/domain/16"]), "n16|r5|");
    assert_eq!(host.call(TOOL, O::GetQuota, &["16", "nodes"]), "77|");
    host.write(16, "x", "1");
    assert_eq!(host.events(16), ["x|tok|"]);
    // The snapshot is lost: it sees the tree that this life began with, and can only begin again.
    assert_eq!(host.call_in(16, O::Read, open, &["x"]), "ENOENT|");
    assert_eq!(host.call_in(16, O::GetPermissions, open, &["/local/domain/16"]), "n16|r5|");
    assert_eq!(host.call_in(16, O::TransactionEnd, open, &["T"]), "EAGAIN|");
    assert_eq!(host.call_in(16, O::TransactionEnd, open, &["T"]), "ENOENT|");
}

/// Linux notifies only when everything that it wrote before has been taken (`xb_write`).
#[test]
fn a_request_that_comes_in_pieces_is_served() {
    let payload = b"/tool\0";
    let header = Header { operation: O::Read, request: 9, transaction: 0, len: 6 };
    let message = [&header.emit()[..], payload].concat();
    for cut in 1..message.len() {
        let mut host = Host::new();
        host.introduce(16);
        host.settle();
        let (page, notified) = (host.guests[&16].page.clone(), host.notified);
        for piece in [&message[..cut], &message[cut..]] {
            let produced = page.load_u32(ring::REQUEST_PRODUCER);
            page.write(ring::REQUESTS + produced as usize, piece);
            page.store_u32(ring::REQUEST_PRODUCER, produced + piece.len() as u32);
            if produced <= page.load_u32(ring::REQUEST_CONSUMER) {
                host.kick_all();
            }
            host.run(1000);
        }
        let guest = host.guests.get_mut(&16).unwrap();
        guest.pull(usize::MAX);
        assert_eq!(guest.replies.len(), 1, "cut at {cut}");
        // Whoever has room for the rest of a request waits for nothing but its answer.
        let needless = u64::from(cut < wire::HEADER_LEN);
        assert_eq!(host.notified, notified + 1 + needless, "cut at {cut}");
    }
}

/// A notification may get lost on its way, in both directions.
#[test]
fn what_nobody_was_told_of_is_seen() {
    let mut host = Host::new();
    host.introduce(16);
    host.settle();
    let client = host.server.connection_of(16).unwrap();
    let looks = |host: &Host| {
        let overlooked = host.server.overlooked(client, &host.ring(16));
        (overlooked.request, overlooked.response)
    };
    assert_eq!(looks(&host), (false, false));
    let guest = host.guests.get_mut(&16).unwrap();
    guest.send(O::Read, 0, b"/tool\0");
    guest.push();
    assert_eq!(looks(&host), (true, false));
    host.server.kick(client);
    host.run(1000);
    assert_eq!(looks(&host), (false, true));
    host.guests.get_mut(&16).unwrap().pull(usize::MAX);
    assert_eq!(looks(&host), (false, false));
    // A client that asks for nonsense gets no attention.
    host.guests[&16].page.store_u32(ring::REQUEST_PRODUCER, 5_000);
    assert_eq!(looks(&host), (false, false));
}

/// A client sleeps when its ring is full, and goes on when it is notified.
#[test]
fn a_client_that_waits_for_room_is_notified() {
    for len in [991, 1008, 1009, 1024, 3000, 4096] {
        let mut host = Host::new();
        host.introduce(16);
        host.settle();
        let page = host.guests[&16].page.clone();
        let mut message =
            Header { operation: O::Read, request: 9, transaction: 0, len }.emit().to_vec();
        message.resize(wire::HEADER_LEN + len as usize, b'x');
        let mut rest = &message[..];
        while !rest.is_empty() {
            let produced = page.load_u32(ring::REQUEST_PRODUCER);
            let filled = (produced - page.load_u32(ring::REQUEST_CONSUMER)) as usize;
            let until_end = ring::RING_LEN - produced as usize % ring::RING_LEN;
            let count = (ring::RING_LEN - filled).min(until_end).min(rest.len());
            assert!(count > 0, "{len} bytes: nobody has made room");
            let piece;
            (piece, rest) = rest.split_at(count);
            page.write(ring::REQUESTS + produced as usize % ring::RING_LEN, piece);
            page.store_u32(ring::REQUEST_PRODUCER, produced + count as u32);
            let sleeps = filled + count == ring::RING_LEN && !rest.is_empty();
            if sleeps || rest.is_empty() {
                let notified = host.notified;
                host.kick_all();
                host.run(1000);
                assert!(host.notified > notified, "{len} bytes: asleep for ever");
            }
        }
        let guest = host.guests.get_mut(&16).unwrap();
        guest.pull(usize::MAX);
        assert_eq!(guest.replies.len(), 1, "{len} bytes");
    }
}

/// Nodes are made when they are needed after a restart; a special name needs none.
#[test]
fn a_special_name_loads_nothing() {
    for operation in [O::GetPermissions, O::SetPermissions, O::Watch] {
        let mut host = Host::new();
        host.write(TOOL, "/a/b", "1");
        host.restart();
        host.call(TOOL, operation, &["@releaseDomain", "n0"]);
        assert_eq!(host.read(TOOL, "/a/b"), "1", "after {operation:?}");
    }
}

/// A transaction begun right after a restart does not wait for the whole store, and sees it as it
/// was all the same.
#[test]
fn a_transaction_on_a_store_that_is_not_made_yet_sees_it_as_it_was() {
    let mut host = Host::new();
    for (path, value) in [("/a/b", "1"), ("/c/d/e", "2"), ("/f/g", "3"), ("/h", "4")] {
        assert_eq!(host.write(TOOL, path, value), "OK|");
    }
    host.restart();
    let begin = |host: &mut Host| -> u32 {
        let id = host.call(TOOL, O::TransactionStart, &[""]);
        id.trim_end_matches('|').parse().expect("a number")
    };
    let (reads, writes, loses) = (begin(&mut host), begin(&mut host), begin(&mut host));
    assert_eq!(host.write(TOOL, "/a/b", "new"), "OK|");
    assert_eq!(host.call(TOOL, O::Remove, &["/c"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::Read, reads, &["/a/b"]), "1");
    assert_eq!(host.call_in(TOOL, O::Directory, reads, &["/c/d"]), "e|");
    assert_eq!(host.call_in(TOOL, O::Read, reads, &["/c/d/e"]), "2");
    assert_eq!(host.call_in(TOOL, O::Write, writes, &["/f/g/new", "5"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::Remove, writes, &["/h"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::Write, loses, &["/c/d/e", "6"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, reads, &["T"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, writes, &["T"]), "OK|");
    assert_eq!(host.call_in(TOOL, O::TransactionEnd, loses, &["T"]), "EAGAIN|");
    for _ in 0..2 {
        assert_eq!(host.read(TOOL, "/a/b"), "new");
        assert_eq!(host.read(TOOL, "/f/g"), "3");
        assert_eq!(host.read(TOOL, "/f/g/new"), "5|");
        assert_eq!(host.read(TOOL, "/h"), "ENOENT|");
        assert_eq!(host.read(TOOL, "/c/d/e"), "ENOENT|");
        host.restart();
    }
}

/// Serves the tool domain's request, and answers how many pieces of the store that needed.
fn pieces_until_executed(host: &mut Host, client: u16) -> usize {
    let ring = host.ring(TOOL);
    let mut pieces = 0;
    loop {
        host.server.kick(client);
        assert_eq!(host.server.next_ready(0), Some(client));
        let progress = host.server.serve(client, &ring, 0);
        assert!(progress.advanced != progress.executed, "one of both: {progress:?}");
        if progress.executed {
            return pieces;
        }
        assert!(progress.more);
        pieces += 1;
    }
}

/// The whole store is made piece by piece after a restart, so that a watcher who counts progress
/// never takes the making of a large store for a hang.
#[test]
fn a_request_for_the_whole_store_waits_for_it_in_pieces() {
    const DIRECTORIES: usize = 400;
    let mut host = Host::new();
    for directory in 0..DIRECTORIES {
        assert_eq!(host.write(TOOL, &format!("/all/d{directory}/leaf"), "x"), "OK|");
    }
    host.restart();
    let client = host.server.connection_of(TOOL).expect("it is connected");
    host.guests.get_mut(&TOOL).expect("a guest").send(O::Remove, 0, b"/all\0");
    let pieces = pieces_until_executed(&mut host, client);
    assert!((10..=DIRECTORIES).contains(&pieces), "{pieces} pieces");
    let guest = host.guests.get_mut(&TOOL).expect("a guest");
    guest.pull(usize::MAX);
    assert_eq!(guest.replies.len(), 1);
}

/// A directory with thousands of children is made in pieces, too, whoever wants it.
#[test]
fn a_wide_directory_is_made_in_pieces() {
    const CHILDREN: usize = 3_000;
    let mut host = Host::new();
    for child in 0..CHILDREN {
        assert_eq!(host.write(TOOL, &format!("/wide/c{child}"), &format!("{child}")), "OK|");
    }
    host.write(TOOL, "/wide/c7/below", "x");
    let digest = host.server.state().digest();
    host.restart();
    let client = host.server.connection_of(TOOL).expect("it is connected");
    host.guests.get_mut(&TOOL).expect("a guest").send(O::Read, 0, b"/wide/c7/below\0");
    let pieces = pieces_until_executed(&mut host, client);
    assert!((10..CHILDREN / 100).contains(&pieces), "{pieces} pieces");
    let guest = host.guests.get_mut(&TOOL).expect("a guest");
    guest.pull(usize::MAX);
    assert_eq!(guest.replies.pop_front().map(|reply| reply.text()), Some("x".into()));
    for child in (0..CHILDREN).step_by(97) {
        assert_eq!(host.read(TOOL, &format!("/wide/c{child}")), child.to_string());
    }
    // In the background, with nobody asking.
    host.restart();
    host.idle();
    assert_eq!(host.server.state().digest(), digest);
    assert_eq!(host.read(TOOL, &format!("/wide/c{}", CHILDREN - 1)), (CHILDREN - 1).to_string());
}

/// Signs of life given within changes.
static BEATS: AtomicU32 = AtomicU32::new(0);

/// The removal of many nodes is one change, and tells again and again that it goes on; a short
/// change needs not.
#[test]
fn a_long_change_gives_signs_of_life() {
    const CHILDREN: u32 = 900;
    let beat = || {
        BEATS.fetch_add(1, Ordering::Relaxed);
    };
    let mut host = Host::new();
    for child in 0..CHILDREN {
        assert_eq!(host.write(TOOL, &format!("/many/c{child}"), "x"), "OK|");
    }
    host.idle();
    // What a reload has left, in one go.
    host.restart();
    host.server.set_pulse(beat);
    host.server.finish_loading();
    let beats = BEATS.load(Ordering::Relaxed);
    assert!((CHILDREN / 128..CHILDREN / 16).contains(&beats), "{beats} signs");
    BEATS.store(0, Ordering::Relaxed);
    host.write(TOOL, "/many/c1", "y");
    assert!(BEATS.load(Ordering::Relaxed) <= 1);
    assert_eq!(host.call(TOOL, O::Remove, &["/many"]), "OK|");
    let beats = BEATS.swap(0, Ordering::Relaxed);
    assert!((CHILDREN / 64..CHILDREN).contains(&beats), "{beats} signs");
    // Few nodes, but each of them takes as long to be found as its path is deep.
    BEATS.store(0, Ordering::Relaxed);
    const LEVELS: u32 = 120;
    let deep = format!("/deep{}", "/a".repeat(LEVELS as usize));
    assert_eq!(host.call(TOOL, O::MakeDirectory, &[&deep]), "OK|");
    let beats = BEATS.load(Ordering::Relaxed);
    assert!((LEVELS / 8..LEVELS).contains(&beats), "{beats} signs");
    // As `xenstore-rm` does it.
    for child in 0..CHILDREN {
        assert_eq!(host.write(TOOL, &format!("/more/c{child}"), "x"), "OK|");
    }
    let open = host.begin(TOOL);
    for (operation, string) in [(O::Remove, "/more"), (O::TransactionEnd, "T")] {
        BEATS.store(0, Ordering::Relaxed);
        assert_eq!(host.call_in(TOOL, operation, open, &[string]), "OK|");
        let beats = BEATS.load(Ordering::Relaxed);
        assert!((CHILDREN / 64..CHILDREN).contains(&beats), "{beats} signs in {operation:?}");
    }
}

/// Signs of life given while a state is restored.
static RESTORE_BEATS: AtomicU32 = AtomicU32::new(0);

/// A replica takes another one's state in one change, and tells again and again that it goes on;
/// afterwards, too.
#[test]
fn taking_another_state_gives_signs_of_life() {
    const NODES: u32 = 1_000;
    let config = || Config::new(5, &[0, TOOL], CLIENTS);
    let mut sender = Host::with_slots(config(), SLOTS_LEN);
    for node in 0..NODES {
        assert_eq!(sender.write(TOOL, &format!("/many/c{node}"), "x"), "OK|");
    }
    let mut snapshot = sender.server.snapshot();
    let mut bytes = vec![0; 1 << 20];
    let (len, is_last) = snapshot.read(&mut bytes);
    assert!(is_last);
    let digest = sender.server.state().digest();
    let mut host = Host::with_slots(config(), SLOTS_LEN);
    host.server.set_pulse(|| {
        RESTORE_BEATS.fetch_add(1, Ordering::Relaxed);
    });
    host.server.restore(&config(), &bytes[..len], 7, digest).expect("a whole state");
    // Every record is written and read.
    let beats = RESTORE_BEATS.swap(0, Ordering::Relaxed);
    assert!((2 * NODES / 64..NODES).contains(&beats), "{beats} signs");
    host.server.finish_loading();
    assert_eq!(host.server.state().digest(), digest);
    assert!(RESTORE_BEATS.load(Ordering::Relaxed) > 0, "the nodes are made afterwards");
}
