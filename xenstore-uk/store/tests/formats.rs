//! The golden vectors of `docs/FORMATS.md` are what the store writes, byte for byte.
#![allow(missing_docs)]

mod common;
#[path = "../../../hypervisor-glue/fabric/tests/golden/mod.rs"]
mod golden;

use common::{Host, TOOL};
use golden::{bytes_of, compare};
use store::persist::SLOTS_AT;
use store::{Config, Kind, SLOT_LEN};
use wire::Operation;

/// Where a slot's content begins.
const CONTENT_AT: usize = 32;
/// The guest of [`host_with_guest`], and its connection.
const GUEST: u16 = 7;
const CONNECTION: usize = 1;
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

/// That store, in which guest 7, which the toolstack has introduced, has set a watch.
fn host_with_guest() -> Host {
    let mut host = host();
    host.introduce(GUEST);
    assert_eq!(host.request(GUEST, Operation::Watch, 0, b"/a\0token\0").text(), "OK|");
    assert_eq!(host.events(GUEST), ["/a|token|"]);
    host.idle();
    host
}

/// The content of the records of a kind, with which it begins.
fn record(host: &Host, kind: Kind, start: &[u8]) -> Vec<u8> {
    let bytes = bytes_of(&host.slots);
    let number = |at: &[u8]| u16::from_le_bytes([at[0], at[1]]);
    let is_used = |slot: &&[u8]| slot[..8] != [0; 8] && slot[24] == kind.raw();
    let slots: Vec<&[u8]> = bytes[SLOTS_AT..].chunks(SLOT_LEN).filter(is_used).collect();
    let first =
        slots.iter().find(|slot| number(&slot[20..]) == 0 && slot[CONTENT_AT..].starts_with(start));
    let id = &first.expect("there is such a record")[16..20];
    let mut parts: Vec<&[u8]> = slots.iter().copied().filter(|slot| slot[16..20] == *id).collect();
    parts.sort_by_key(|slot| number(&slot[20..]));
    assert_eq!(parts.len(), usize::from(number(&parts[0][22..])), "nothing superseded is left");
    let content = |slot: &&[u8]| slot[CONTENT_AT..][..usize::from(number(&slot[26..]))].to_vec();
    parts.iter().flat_map(content).collect()
}

#[test]
fn records_of_a_guest() {
    let host = host_with_guest();
    compare("settings", &record(&host, Kind::Settings, &[]));
    compare("domain", &record(&host, Kind::Domain, &GUEST.to_le_bytes()));
    compare("connection", &record(&host, Kind::Client, &[CONNECTION as u8, 0]));
    compare("watch", &record(&host, Kind::Watch, &[]));
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
