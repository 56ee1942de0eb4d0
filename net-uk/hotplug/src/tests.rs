//! A store of one thread, and a frontend that is played by writing its keys.

use std::collections::BTreeMap;

use super::*;
use wire::{HEADER_LEN, Header};

const BACK: &str = "/local/domain/4/backend/vif/17/0";
const FRONT: &str = "/local/domain/17/device/vif/0";
const ID: VifId = VifId { guest: DomId(17), handle: 0 };

/// Nodes, watches, and the machine under test.
struct Bench {
    hotplug: Hotplug,
    nodes: BTreeMap<String, String>,
    watches: Vec<(String, String)>,
    /// Events not yet told.
    events: Vec<Vec<u8>>,
    connects: Vec<Connection>,
    disconnects: usize,
    writes: usize,
}

impl Bench {
    fn new(connected: &[VifId]) -> Self {
        Self {
            hotplug: Hotplug::new(4, connected),
            nodes: BTreeMap::new(),
            watches: Vec::new(),
            events: Vec::new(),
            connects: Vec::new(),
            disconnects: 0,
            writes: 0,
        }
    }

    /// A node changes: whoever watches it, or something above it, is told.
    fn set(&mut self, path: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.nodes.insert(path.into(), value.into())),
            None => self.nodes.retain(|node, _| !node.starts_with(path)),
        }
        for (watched, token) in &self.watches {
            if path.starts_with(watched.as_str()) || watched.starts_with(path) {
                self.events.push(format!("{path}\0{token}\0").into_bytes());
            }
        }
    }

    fn toolstack_makes_a_vif(&mut self) {
        for (key, value) in [("online", "1"), ("state", "1"), ("mac", "00:16:3e:00:11:00")] {
            self.set(&format!("{BACK}/{key}"), Some(value));
        }
        self.set(&format!("{FRONT}/state"), Some("1"));
    }

    fn frontend_connects(&mut self) {
        for (key, value) in [
            ("tx-ring-ref", "8"),
            ("rx-ring-ref", "9"),
            ("event-channel", "6"),
            ("request-rx-copy", "1"),
            ("feature-rx-notify", "1"),
            ("state", "4"),
        ] {
            self.set(&format!("{FRONT}/{key}"), Some(value));
        }
    }

    fn children(&self, path: &str) -> Vec<u8> {
        let below = self.nodes.keys().filter_map(|node| node.strip_prefix(path)?.strip_prefix('/'));
        let names: std::collections::BTreeSet<&str> =
            below.filter_map(|rest| rest.split('/').next()).collect();
        names.iter().flat_map(|name| name.bytes().chain([0])).collect()
    }

    /// Answers and tells until nobody has anything to say.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            match self.hotplug.poll() {
                Some(Action::Store(message)) => self.answer(&message),
                Some(Action::Connect(id, connection)) => {
                    self.connects.push(connection);
                    self.hotplug.connected(id, Ok(()));
                }
                Some(Action::Disconnect(_)) => self.disconnects += 1,
                None if self.events.is_empty() => return,
                None => {
                    let payload = self.events.remove(0);
                    self.say(Operation::WatchEvent, 0, payload);
                }
            }
        }
        panic!("it does not come to rest");
    }

    fn say(&mut self, operation: Operation, request: u32, payload: Vec<u8>) {
        let len = payload.len() as u32;
        let header = Header { operation, request, transaction: 0, len };
        self.hotplug.store_said(&StoreMessage { header, payload });
    }

    fn answer(&mut self, message: &[u8]) {
        let header = Header::parse(message.first_chunk::<HEADER_LEN>().unwrap());
        let mut parts = message[HEADER_LEN..].split(|byte| *byte == 0).map(text);
        let (path, value) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let answer = match header.operation {
            Operation::Watch => {
                self.events.push(format!("{path}\0{value}\0").into_bytes());
                self.watches.push((path, value));
                Some(b"OK\0".to_vec())
            }
            Operation::Unwatch => {
                self.watches.retain(|watch| *watch != (path.clone(), value.clone()));
                Some(b"OK\0".to_vec())
            }
            Operation::Directory => Some(self.children(&path)),
            Operation::Read => self.nodes.get(&path).map(|value| value.clone().into_bytes()),
            Operation::Write => {
                self.writes += 1;
                self.set(&path, Some(&value));
                Some(b"OK\0".to_vec())
            }
            other => panic!("{other:?} was not expected"),
        };
        match answer {
            Some(payload) => self.say(header.operation, header.request, payload),
            None => self.say(Operation::Error, header.request, b"ENOENT\0".to_vec()),
        }
    }

    fn state(&self) -> &str {
        &self.nodes[&format!("{BACK}/state")]
    }
}

fn connected() -> Bench {
    let mut bench = Bench::new(&[]);
    bench.settle();
    bench.toolstack_makes_a_vif();
    bench.settle();
    assert_eq!(bench.state(), "2", "it waits for the frontend");
    bench.frontend_connects();
    bench.settle();
    assert_eq!(bench.state(), "4");
    bench
}

#[test]
fn a_frontend_is_found_and_connected() {
    let bench = connected();
    assert_eq!((bench.connects.len(), bench.connects[0].guest), (1, DomId(17)));
    assert!(bench.nodes.contains_key(&format!("{BACK}/feature-rx-copy")));
}

#[test]
fn a_new_life_changes_nothing_for_a_frontend_that_is_connected() {
    let before = connected();
    let mut bench = Bench::new(&[ID]);
    bench.nodes = before.nodes.clone();
    bench.settle();
    assert_eq!((bench.writes, bench.connects.len(), bench.disconnects), (0, 0, 0));
    assert_eq!(bench.nodes, before.nodes);
}

#[test]
fn a_new_connection_to_the_store_watches_again() {
    let mut bench = connected();
    bench.watches.clear();
    bench.hotplug.store_restarted();
    bench.settle();
    bench.set(&format!("{FRONT}/state"), Some("5"));
    bench.settle();
    assert_eq!((bench.state(), bench.disconnects), ("5", 1));
}

#[test]
fn an_interface_that_vanishes_is_given_up_and_not_written_to() {
    let mut bench = connected();
    let writes = bench.writes;
    bench.set("/local/domain/4/backend/vif/17", None);
    bench.settle();
    assert_eq!((bench.disconnects, bench.writes), (1, writes));
    assert_eq!(bench.hotplug.guests().count(), 0);
    assert_eq!(bench.watches.len(), 1, "only the one on all interfaces is left");
}

#[test]
fn a_guest_that_goes_loses_its_rings_at_once() {
    let mut bench = connected();
    bench.hotplug.guest_gone(DomId(17));
    assert_eq!(bench.hotplug.poll(), Some(Action::Disconnect(ID)));
    bench.hotplug.guest_gone(DomId(99));
}

#[test]
fn foreign_names_are_passed_over() {
    let mut bench = connected();
    for name in ["x", "17/y", "17/99999", "17/8"] {
        bench.set(&format!("/local/domain/4/backend/vif/{name}/state"), Some("1"));
    }
    bench.events.push(b"nonsense".to_vec());
    bench.events.push(b"/a\0not-a-token\0".to_vec());
    bench.settle();
    assert_eq!(bench.hotplug.describe().count(), 1);
}
