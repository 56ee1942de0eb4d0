//! The golden vectors of `docs/FORMATS.md` are what the store writes, byte for byte.
#![allow(missing_docs)]

mod common;
#[path = "../../../hypervisor-glue/fabric/tests/golden/mod.rs"]
mod golden;

use common::{Host, TOOL};
use golden::{bytes_of, compare};
use store::persist::SLOTS_AT;
use store::{Config, SLOT_LEN};

/// Where a slot's content begins.
const CONTENT_AT: usize = 32;
/// Bytes of the index's header, and of an entry.
const INDEX_HEADER_LEN: usize = 40;
const INDEX_ENTRY_LEN: usize = 24;

/// A new store with the key 9, in which the toolstack has written `b` to `/a`.
fn host() -> Host {
    let mut host = Host::with_slots(Config::new(9, &[0, TOOL], 4), SLOTS_AT + 1024 * SLOT_LEN);
    assert_eq!(host.write(TOOL, "/a", "b"), "OK|");
    host.idle();
    host
}

#[test]
fn commit_headers() {
    compare("commit-headers", &bytes_of(&host().slots)[..SLOTS_AT]);
}

#[test]
fn a_node_in_its_slot() {
    let bytes = bytes_of(&host().slots);
    let content = |slot: &[u8]| slot[CONTENT_AT + 28..].starts_with(b"\0\0n\0ab");
    let slot = bytes[SLOTS_AT..].chunks(SLOT_LEN).find(|slot| slot[24] == 1 && content(slot));
    compare("slot", slot.expect("the node has a slot"));
}

#[test]
fn an_index() {
    let bytes = bytes_of(&host().index);
    let entries = u32::from_le_bytes(bytes[28..32].try_into().expect("four bytes"));
    compare("index", &bytes[..INDEX_HEADER_LEN + entries as usize * INDEX_ENTRY_LEN]);
}
