//! A replica that is sent a state: whole, changed, or made up.

use std::cell::RefCell;

use store::{Config, Server};
use wire::Operation as O;

use super::Target;
use crate::Bytes;
use crate::host::crash::Crashing;
use crate::host::{Host, TOOL};

pub const TARGET: Target = Target { name: "snapshot", run, seeds, words: &[b"\xff\xff\xff\xff"] };

const GUEST: u16 = 16;
const SLOTS_LEN: usize = 256 + 128 * 1024;

/// The index that the state is sent as.
const APPLIED: u64 = 77;

/// A state on its way: its bytes and its digest.
struct Sent {
    bytes: Vec<u8>,
    digest: u64,
}

thread_local! {
    static SENT: RefCell<Sent> = RefCell::new(send());
}

fn config() -> Config {
    Config::new(5, &[0, TOOL], 4)
}

fn send() -> Sent {
    let mut host = Host::with_slots(config(), SLOTS_LEN);
    host.introduce(GUEST);
    for index in 0..6 {
        let value = "v".repeat(40 * index);
        assert_eq!(host.write(TOOL, &format!("/d{}/n{index}", index % 2), &value), "OK|");
    }
    host.call(TOOL, O::SetPermissions, &["/d0", "n16", "r17"]);
    host.call(GUEST, O::Watch, &["/d1", "token"]);
    host.call(TOOL, O::SetQuota, &["16", "nodes", "50"]);
    host.settle();
    let mut snapshot = host.server.snapshot();
    let mut bytes = vec![0; 64 * 1024];
    let (len, is_last) = snapshot.read(&mut bytes);
    assert!(is_last);
    bytes.truncate(len);
    Sent { bytes, digest: host.server.state().digest() }
}

/// The first byte: whether the state is the one announced, changed (1), or made up (2).
fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let kind = input.u8() % 4;
    let (mut bytes, mut digest) = SENT.with_borrow(|sent| (sent.bytes.clone(), sent.digest));
    match kind {
        3 => {
            digest = input.u64();
            bytes = input.rest().to_vec();
        }
        _ => change(&mut bytes, &mut input),
    }
    let mut host = Host::with_slots(config(), SLOTS_LEN);
    assert_eq!(host.write(TOOL, "/own", "mine"), "OK|");
    let before = host.server.state().digest();
    let restored = host.server.restore(&config(), &bytes, APPLIED, digest);
    host.server.finish_loading();
    let after = host.server.state().digest();
    match restored {
        Ok(()) => assert_eq!((after, host.server.applied()), (digest, APPLIED)),
        Err(_) => assert_eq!(
            after, before,
            "a state that was refused has left its traces: {bytes:02x?} {input:?}"
        ),
    }
    let is_sent = SENT.with_borrow(|sent| bytes == sent.bytes && digest == sent.digest);
    assert!(restored.is_ok() || !is_sent, "a whole state is refused");
    // Whatever it is, the next life finds it.
    let (mut server, report) = Server::start(
        &config(),
        Crashing::new(host.slots.clone(), host.budget.clone()),
        Crashing::new(host.areas.clone(), host.budget.clone()),
    );
    assert!(!report.is_new);
    server.finish_loading();
    assert_eq!(server.state().digest(), after);
}

/// Overwrites, inserts and removes a few bytes.
fn change(bytes: &mut Vec<u8>, input: &mut Bytes<'_>) {
    while !input.is_empty() {
        let at = input.below(bytes.len() + 1);
        match input.u8() % 4 {
            0 => {
                let end = (at + input.below(64)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            1 => {
                let new = input.string(32);
                bytes.splice(at..at, new.iter().copied());
            }
            _ => {
                let new = input.string(12);
                for (to, from) in bytes[at..].iter_mut().zip(new) {
                    *to = *from;
                }
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let edit = |at: u16, kind: u8, rest: &[u8]| {
        [&[1][..], &at.to_le_bytes(), &[kind, rest.len() as u8], rest].concat()
    };
    let made_up = [&[3][..], &[0; 8], &[1, 0, 0, 0, 0, 0, 0, 0], &[0xff; 4]].concat();
    let mut seeds = vec![vec![], vec![1], made_up];
    for at in [0, 8, 12, 16, 17, 60, 120, 300, 500] {
        seeds.push(edit(at, 2, &[1, 2, 3, 4]));
        seeds.push(edit(at, 2, &[0xff, 0xff]));
        seeds.push(edit(at, 0, &[]));
    }
    seeds
}
