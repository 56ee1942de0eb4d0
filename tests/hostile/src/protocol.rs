//! Attacks by valid requests: what the protocol allows, without measure.

use alloc::format;
use alloc::vec;

use wire::Operation;

use crate::victim::Attacker;

/// Watches on everything it may watch, and writes that fire them.
pub fn watches(attacker: &mut Attacker) {
    let mut number = 0;
    while attacker.goes_on() {
        number += 1;
        let path = ["@releaseDomain", "data", "/", "/local", "data/deep"][number % 5];
        attacker.send(Operation::Watch, 0, format!("{path}\0token-{number}\0").as_bytes());
        attacker.send(Operation::Write, 0, format!("data/hostile\0{number}").as_bytes());
    }
    attacker.send(Operation::ResetWatches, 0, b"\0");
}

/// Transactions that are opened, filled and left, or fight each other.
pub fn transactions(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let id = attacker.begin_transaction();
        if id == 0 {
            // The quota is reached: half of them come to an end.
            for id in 0..1_000 {
                attacker.send(Operation::TransactionEnd, id * 2 + 1, b"T\0");
                if !attacker.goes_on() {
                    break;
                }
            }
            continue;
        }
        for number in 0..8 {
            let node = attacker.random.below(16);
            let payload = format!("data/t{node}\0{number}");
            attacker.send(Operation::Write, id, payload.as_bytes());
        }
        attacker.send(Operation::Directory, id, b"/\0");
    }
    attacker.send(Operation::ResetWatches, 0, b"\0");
}

/// Values as long as a message, until no more nodes are allowed, and all removed again.
pub fn values(attacker: &mut Attacker) {
    let mut number = 0;
    while attacker.goes_on() {
        number += 1;
        let mut payload = format!("data/v{}\0", number % 2_000).into_bytes();
        payload.extend(vec![b'v'; wire::PAYLOAD_MAX - payload.len()]);
        attacker.send(Operation::Write, 0, &payload);
    }
    attacker.send(Operation::Remove, 0, b"data\0");
}

/// Nodes given to others, until others have no room for their own: an owner's quota is for what
/// the owner made.
pub fn give_away(attacker: &mut Attacker) {
    let mut number = 0;
    while attacker.goes_on() {
        number += 1;
        let path = format!("data/gift{}", number % 2_000);
        attacker.send(Operation::Write, 0, format!("{path}\0x").as_bytes());
        let domid = attacker.random.below(20);
        let payload = format!("{path}\0n{domid}\0b0\0w0\0");
        attacker.send(Operation::SetPermissions, 0, payload.as_bytes());
    }
    attacker.send(Operation::Remove, 0, b"data\0");
}

/// Ways of as many levels as a path may have, and of more, made and removed again, in and out of
/// transactions: each takes as long as some hundred nodes.
pub fn deep(attacker: &mut Attacker) {
    while attacker.goes_on() {
        let levels = [100, 120, 124, 500, 1_000][attacker.random.below(5) as usize];
        let path = format!("data{}", "/d".repeat(levels));
        let transaction = attacker.begin_transaction();
        attacker.send(Operation::Write, transaction, format!("{path}\0v").as_bytes());
        attacker.send(Operation::Read, transaction, format!("{path}\0").as_bytes());
        attacker.send(Operation::TransactionEnd, transaction, b"T\0");
        attacker.send(Operation::Watch, 0, format!("{path}\0deep\0").as_bytes());
        attacker.send(Operation::MakeDirectory, 0, format!("{path}/e\0").as_bytes());
        attacker.send(Operation::Remove, 0, b"data/d\0");
    }
    attacker.send(Operation::ResetWatches, 0, b"\0");
}

/// Paths that try to leave their place, and requests that only the toolstack may make.
pub fn paths(attacker: &mut Attacker) {
    const PATHS: [&str; 10] = [
        "/",
        "//",
        "/local/domain/0/name",
        "/tool",
        "data/../../0",
        "data//x",
        "data/\u{1}",
        "@introduceDomain",
        "/vm",
        "",
    ];
    while attacker.goes_on() {
        let path = PATHS[attacker.random.below(PATHS.len() as u64) as usize];
        // Nobody's control and the introduction of domains included.
        let operation = Operation::from_raw(attacker.random.below(27) as u32);
        let last = ["", "\0", "\0x", "\0n0\0", "\x000\x000\x00"];
        let last = last[attacker.random.below(5) as usize];
        attacker.send(operation, 0, format!("{path}{last}").as_bytes());
        let long = "p".repeat(attacker.random.below(4_000) as usize);
        attacker.send(Operation::Write, 0, format!("{long}\0v").as_bytes());
    }
}
