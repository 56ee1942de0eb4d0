//! The whole store between two hostile guests and two honest clients, around crashes.
//!
//! The hostile guests write anything anywhere in their ring pages and send any request. After each
//! script every honest request must have its right answer and its watch event, nodes must be
//! counted and their checksums fit, and a new life must find the same tree.

use std::collections::BTreeMap;

use fabric::SharedMemory;
use store::{Config, Descend, Quota, State};
use wire::ring as layout;
use wire::{Header, Operation as O};

use super::Target;
use crate::Bytes;
use crate::host::{Host, TOOL};

pub const TARGET: Target = Target {
    name: "server",
    run,
    seeds,
    words: &[b"/local/domain/16/", b"/local/domain/17", b"/honest", b"T\0", b"n16\0", b"b17\0"],
};

/// The hostile guests, and an honest one.
const HOSTILE: [u16; 2] = [16, 17];
const HONEST: u16 = 18;

/// Bytes for slots: a hostile guest may fill them.
const SLOTS_LEN: usize = 256 + 256 * 1024;

/// Rounds until an honest request has its reply: many times what the longest protection of
/// another's transaction takes.
const ROUNDS_MAX: u32 = 2000;

/// One millisecond of a round.
const ROUND_NS: u64 = 1_000_000;

/// Names that hostile requests use, so that they meet.
const PATHS: [&str; 8] = [
    "/local/domain/16/a",
    "/local/domain/17/a",
    "/local/domain/16",
    "/local/domain/18/data",
    "a/b/c",
    "/honest",
    "@releaseDomain",
    "/",
];

struct World {
    host: Host,
    /// What honest clients have written.
    values: BTreeMap<(u16, String), String>,
    written: u32,
}

fn run(input: &[u8]) {
    let mut world = World::new();
    let mut bytes = Bytes::new(input);
    while !bytes.is_empty() {
        world.step(&mut bytes);
    }
    world.check_clients();
    world.check_counts();
    world.check_next_life();
    world.check_clients();
}

impl World {
    fn new() -> Self {
        let mut host = Host::with_slots(Config::new(7, &[0, TOOL], 8), SLOTS_LEN);
        for domid in [HOSTILE[0], HOSTILE[1], HONEST] {
            host.introduce(domid);
            let home = format!("/local/domain/{domid}");
            host.call(TOOL, O::MakeDirectory, &[&home]);
            host.call(TOOL, O::SetPermissions, &[&home, &format!("n{domid}")]);
        }
        for (client, path) in [(TOOL, "/honest"), (HONEST, "data")] {
            assert_eq!(host.call(client, O::MakeDirectory, &[path]), "OK|");
            assert_eq!(host.call(client, O::Watch, &[path, "token"]), "OK|");
        }
        host.settle();
        Self { host, values: BTreeMap::new(), written: 0 }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let action = bytes.u8();
        let domid = HOSTILE[usize::from(action >> 7)];
        match action & 0x0f {
            0 => {
                let (at, text) = (bytes.below(4096), bytes.string(64));
                let page = &self.host.guests[&domid].page;
                page.write(at, &text[..text.len().min(4096 - at)]);
            }
            1 => {
                let word = layout::REQUEST_CONSUMER + 4 * bytes.below(8);
                self.host.guests[&domid].page.store_u32(word, bytes.u32());
            }
            2..=6 => self.send(domid, bytes),
            7 => self.take_replies(domid),
            8 => self.serve(1 + bytes.below(16)),
            9 => self.host.now_ns += u64::from(bytes.u16()) * ROUND_NS / 16,
            10 => drop(self.host.restart()),
            11 if self.host.server.is_consistent() => {
                self.host.server.resume();
                self.host.reattach();
            }
            11 => {}
            12 => self.crash(bytes),
            13 => self.check_clients(),
            14 => self.domain(domid, bytes.u8()),
            _ => {
                let now_ns = self.host.now_ns;
                assert_eq!(self.host.server.idle_step(now_ns), None);
            }
        }
        self.serve(4);
    }

    /// Puts a request of any kind into a hostile guest's ring, as far as it fits.
    fn send(&mut self, domid: u16, bytes: &mut Bytes<'_>) {
        let operation = O::from_raw(u32::from(bytes.u8()) % 28);
        let (transaction, path) = (u32::from(bytes.u8() % 4), bytes.u8());
        let mut payload = Vec::new();
        if let Some(path) = PATHS.get(usize::from(path)) {
            payload.extend_from_slice(path.as_bytes());
            payload.push(0);
        }
        payload.extend_from_slice(bytes.string(200));
        if path & 0x80 != 0 {
            payload.resize(payload.len() + 16 * usize::from(path & 0x7f), b'v');
        }
        let len = payload.len() as u32;
        let header = Header { operation, request: 1, transaction, len };
        let message = [&header.emit()[..], &payload].concat();
        // A long request is put into the ring in pieces, as a kernel does it.
        let mut rest = &message[..];
        for _ in 0..8 {
            let page = &self.host.guests[&domid].page;
            let produced = page.load_u32(layout::REQUEST_PRODUCER);
            let consumed = page.load_u32(layout::REQUEST_CONSUMER);
            let Ok(filled) = layout::filled(produced, consumed) else { return };
            let count = rest.len().min(layout::RING_LEN - filled);
            let mut done = 0;
            for (start, len) in layout::stretches(produced, count) {
                page.write(layout::REQUESTS + start, &rest[done..done + len]);
                done += len;
            }
            page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(count as u32));
            rest = &rest[count..];
            if rest.is_empty() {
                return;
            }
            self.take_replies(domid);
            self.serve(4);
        }
    }

    /// A hostile guest throws away what it was sent, and connects again where it was given up.
    fn take_replies(&mut self, domid: u16) {
        let page = &self.host.guests[&domid].page;
        page.store_u32(layout::RESPONSE_CONSUMER, page.load_u32(layout::RESPONSE_PRODUCER));
        if page.load_u32(layout::ERROR) != 0 {
            page.store_u32(layout::CONNECTION, layout::RECONNECT);
        }
    }

    fn serve(&mut self, steps: usize) {
        self.host.kick_all();
        self.host.run(steps);
    }

    /// The server dies after a few stores, and once more in its recovery.
    fn crash(&mut self, bytes: &mut Bytes<'_>) {
        let (first, second) = (u64::from(bytes.u8()), u64::from(bytes.u8()));
        self.host.budget.limit(first);
        self.serve(16);
        self.host.budget.limit(second);
        self.host.restart_within_budget();
        self.host.restart();
    }

    /// A hostile guest ends, and the toolstack introduces it anew.
    fn domain(&mut self, domid: u16, how: u8) {
        match how % 3 {
            0 => self.host.server.domain_shut_down(domid),
            1 => self.host.server.domain_gone(domid),
            _ => {
                let release = format!("{domid}\0");
                self.request(TOOL, O::Release, release.as_bytes());
            }
        }
        self.host.actions();
        self.host.guests.entry(domid).or_insert_with(crate::host::Guest::new);
        self.request(TOOL, O::Introduce, format!("{domid}\x001\x001\0").as_bytes());
    }

    /// An honest client's request and its reply; the hostile ones neither send nor take.
    fn request(&mut self, client: u16, operation: O, payload: &[u8]) -> String {
        let guest = self.host.guests.get_mut(&client).expect("an honest client");
        let request = guest.send(operation, 0, payload);
        for _ in 0..ROUNDS_MAX {
            self.serve(64);
            self.host.now_ns += ROUND_NS;
            let guest = self.host.guests.get_mut(&client).expect("an honest client");
            guest.push();
            guest.pull(usize::MAX);
            if let Some(reply) = guest.replies.pop_front() {
                assert_eq!((reply.request, guest.replies.len()), (request, 0));
                return reply.text();
            }
        }
        panic!("d{client} has no reply to {operation:?} after {ROUNDS_MAX} ms");
    }

    /// Each honest client writes, hears of it, and reads everything that it has ever written.
    fn check_clients(&mut self) {
        for (client, below) in [(TOOL, "/honest"), (HONEST, "data")] {
            self.written += 1;
            let path = format!("{below}/n{}", self.written % 7);
            let value = self.written.to_string();
            let reply = self.request(client, O::Write, format!("{path}\0{value}").as_bytes());
            assert_eq!(reply, "OK|", "d{client} writes {path}");
            self.values.insert((client, path.clone()), value);
            let mut events = self.host.events(client);
            for _ in 0..ROUNDS_MAX {
                if events.iter().any(|event| *event == format!("{path}|token|")) {
                    break;
                }
                self.serve(64);
                self.host.guests.get_mut(&client).expect("honest").pull(usize::MAX);
                events.extend(self.host.events(client));
            }
            let told = events.iter().any(|event| *event == format!("{path}|token|"));
            assert!(told, "d{client} is not told of {path}, but of {events:?}");
            let strange = events.iter().find(|event| !event.ends_with("|token|"));
            assert_eq!(strange, None, "d{client} did not ask for this");
        }
        for ((client, path), value) in self.values.clone() {
            let reply = self.request(client, O::Read, format!("{path}\0").as_bytes());
            assert_eq!(reply, value, "d{client} reads {path}");
        }
    }

    /// Every node is intact and counted, and no hostile guest has more than its share.
    fn check_counts(&mut self) {
        self.host.server.finish_loading();
        let state = self.host.server.state();
        let owned = owned(state);
        assert_eq!(owned.values().sum::<u32>(), state.tree().nodes());
        for domid in [HOSTILE[0], HOSTILE[1], HONEST] {
            let Some(domain) = state.domain(domid) else { continue };
            let used = domain.used(Quota::Nodes);
            assert_eq!(used, owned.get(&domid).copied().unwrap_or(0), "nodes of d{domid}");
            assert!(domid == HONEST || used <= 1000, "d{domid} has {used} nodes");
        }
    }

    /// A new life finds the tree of the former one.
    fn check_next_life(&mut self) {
        let (digest, used) =
            (self.host.server.state().digest(), self.host.server.slots().used_slots());
        let report = self.host.restart();
        assert_eq!((report.load.missing_slots, report.load.damaged_slots), (0, 0), "{report:?}");
        self.host.server.finish_loading();
        assert_eq!(self.host.server.state().digest(), digest);
        assert_eq!(self.host.server.slots().used_slots(), used);
    }
}

/// Counts nodes by owner, and checks each.
fn owned(state: &State) -> BTreeMap<u16, u32> {
    let mut owned = BTreeMap::new();
    state.tree().walk(&mut Vec::new(), usize::MAX, &mut |path, node, hash| {
        assert!(node.is_intact(hash), "{} is damaged", String::from_utf8_lossy(path));
        *owned.entry(node.owner()).or_default() += 1;
        Descend::Yes
    });
    owned
}

fn seeds() -> Vec<Vec<u8>> {
    let send = |domid: u8, operation: O, transaction: u8, path: u8, rest: &[u8]| {
        let head = [domid << 7 | 2, operation.raw() as u8, transaction, path, rest.len() as u8];
        [&head[..], rest].concat()
    };
    let write = send(0, O::Write, 0, 0, b"value");
    let long = send(0, O::Write, 0, 0xf0, b"a/b\0");
    let watch = send(1, O::Watch, 0, 0, b"token\0");
    let begin = send(0, O::TransactionStart, 0, 8, b"\0");
    let inside = send(0, O::Write, 1, 4, b"1");
    let end = send(0, O::TransactionEnd, 1, 8, b"T\0");
    let give = send(0, O::SetPermissions, 0, 0, b"n17\0b16\0");
    let remove = send(1, O::Remove, 0, 1, b"");
    let list = send(0, O::DirectoryPart, 0, 2, b"0\0");
    let control = send(0, O::Control, 0, 8, b"print\0x\0");
    let reset = send(0, O::ResetWatches, 0, 8, b"\0");
    let (take, serve, restart, resume) = (vec![7], vec![8, 15], vec![10], vec![11]);
    let (crash, gone, idle) = (vec![12, 20, 9], vec![14, 1], vec![15]);
    let wild = vec![1, 1, 0xff, 0xff, 0xff, 0x7f];
    let raw = vec![0, 0x00, 0x08, 4, 1, 2, 3, 4];
    [
        vec![&write, &watch, &write, &take, &serve, &restart, &write],
        vec![&begin, &take, &inside, &take, &inside, &end, &take, &resume],
        vec![&write, &give, &take, &remove, &list, &crash, &take, &reset],
        vec![&watch, &long, &take, &long, &serve, &crash, &wild, &take, &write],
        vec![&write, &gone, &idle, &idle, &restart, &idle, &raw, &take, &control],
    ]
    .into_iter()
    .map(|parts| parts.into_iter().flatten().copied().collect())
    .collect()
}
