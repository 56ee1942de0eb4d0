//! The store's durable memory after damage: a node is read as it was written, or not at all, and
//! whoever is left is served.

use std::cell::RefCell;
use std::collections::BTreeMap;

use fabric::{HeapMemory, SharedMemory};
use store::Config;
use wire::Operation as O;

use super::Target;
use crate::Bytes;
use crate::host::{Guest, Host, TOOL};

pub const TARGET: Target = Target { name: "slots", run, seeds, words: &[] };

const GUEST: u16 = 16;
const SLOTS_LEN: usize = 256 + 128 * 1024;

/// Bytes of the slots that hold something, and a few more: damage elsewhere says little.
const DAMAGED_LEN: usize = 12 * 1024;

/// A store to be damaged, and what it holds.
struct Image {
    slots: Vec<u8>,
    areas: Vec<u8>,
    pages: BTreeMap<u16, Vec<u8>>,
    values: Vec<(String, String)>,
}

thread_local! {
    /// One host for all inputs: its memory is written anew for each.
    static HOST: RefCell<(Host, Image)> = RefCell::new(make());
}

fn copy(memory: &HeapMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

fn make() -> (Host, Image) {
    let mut host = Host::with_slots(Config::new(77, &[0, TOOL], 3), SLOTS_LEN);
    host.introduce(GUEST);
    let mut values = Vec::new();
    for index in 0..20 {
        let (path, value) = (format!("/d{}/n{index}", index % 4), format!("value {index} "));
        let value = value.repeat(1 + index % 20);
        assert_eq!(host.write(TOOL, &path, &value), "OK|");
        values.push((path, value));
    }
    host.call(TOOL, O::Watch, &["/d1", "token"]);
    host.call(TOOL, O::SetPermissions, &["/d2/n2", "n16", "r17"]);
    host.begin(GUEST);
    host.settle();
    host.events(TOOL);
    let pages = host.guests.iter().map(|(domid, guest)| (*domid, copy(&guest.page))).collect();
    let (slots, areas) = (copy(&host.slots), copy(&host.areas));
    (host, Image { slots, areas, pages, values })
}

fn run(input: &[u8]) {
    HOST.with_borrow_mut(|(host, image)| damage(host, image, &mut Bytes::new(input)));
}

fn damage(host: &mut Host, image: &Image, bytes: &mut Bytes<'_>) {
    host.slots.write(0, &image.slots);
    host.areas.write(0, &image.areas);
    for (domid, page) in &image.pages {
        host.guests.insert(*domid, Guest::new());
        host.guests[domid].page.write(0, page);
    }
    let is_whole = bytes.is_empty();
    let slots = fabric::Part::new(&host.slots, 0, DAMAGED_LEN);
    let mut in_slots = false;
    while !bytes.is_empty() {
        if bytes.u8().is_multiple_of(4) {
            bytes.damage(&host.areas);
        } else {
            bytes.damage(&slots);
            in_slots = true;
        }
    }
    let report = host.restart();
    assert!(!is_whole || report.load.missing_slots + report.damaged_areas == 0);
    host.server.finish_loading();
    let mut missing = 0;
    for (path, value) in &image.values {
        match host.server.state().tree().get(path.as_bytes()) {
            None => missing += 1,
            Some(found) => {
                assert!(found.is_intact() && found.node.value() == value.as_bytes(), "{path}");
            }
        }
    }
    // Without the header nothing is known of what was there, not even that something was.
    let is_told = report.is_new || report.load.missing_slots + report.load.lost_records > 0;
    assert!(missing == 0 || (in_slots && is_told), "{missing} nodes are missing: {report:?}");
    if !in_slots {
        serve(host);
    }
}

/// Damaged areas cost at most what was under way: the toolstack's next requests are answered.
fn serve(host: &mut Host) {
    for value in ["1", "2"] {
        assert_eq!(host.write(TOOL, "/d1/x", value), "OK|");
        assert_eq!(host.read(TOOL, "/d1/x"), value);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // Areas first: a kind, a place of two or four bytes, and a flip or bytes to write.
    let flip = |kind: u8, at: u16| [&[kind][..], &at.to_le_bytes(), &[0x21]].concat();
    let store = |kind: u8, at: u16| [&[kind][..], &at.to_le_bytes(), &[16, 1, 2, 3, 4]].concat();
    let mut seeds = vec![vec![]];
    seeds.extend([0, 8, 64, 256, 300, 400, 1000, 4000].map(|at| flip(1, at)));
    seeds.extend([0, 16, 128, 256, 512, 8736].map(|at| flip(0, at)));
    seeds.extend([0, 40, 128, 384, 8000].map(|at| store(1, at)));
    seeds.push([flip(1, 40), store(1, 900), flip(1, 2000)].concat());
    seeds
}
