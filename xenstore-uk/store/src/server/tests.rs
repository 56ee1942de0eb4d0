//! Damage in the server's own memory, and going on in memory that survived.

use alloc::vec::Vec;

use fabric::{HeapMemory, SharedMemory};
use wire::ring as layout;
use wire::{HEADER_LEN, Header, Operation as O};

use crate::server::{Progress, Server};
use crate::{AREA_LEN, Action, Config, Fault, Ring};

const TOOL: u16 = 5;

struct Bench {
    server: Server<HeapMemory, HeapMemory>,
    client: u16,
    client_page: HeapMemory,
    server_page: HeapMemory,
}

impl Bench {
    /// A service's ring: two pages, each written by one side.
    fn new() -> Self {
        let config = Config::new(11, &[TOOL], 4);
        let (slots, areas) = (HeapMemory::new(1 << 20), HeapMemory::new(4 * AREA_LEN));
        let (mut server, report) = Server::start(&config, slots, areas);
        assert!(report.is_new);
        let client = server.open(TOOL).expect("room");
        let (client_page, server_page) = (HeapMemory::new(4096), HeapMemory::new(4096));
        let mut bench = Self { server, client, client_page, server_page };
        let ring = bench.ring();
        assert!(bench.server.attached(client, &ring));
        bench
    }

    fn ring(&self) -> Ring<HeapMemory> {
        Ring::Pair { client: self.client_page.clone(), server: self.server_page.clone() }
    }

    fn send(&self, operation: O, payload: &[u8]) {
        let header =
            Header { operation, request: 1, transaction: 0, len: payload.len() as u32 }.emit();
        let produced = self.client_page.load_u32(layout::REQUEST_PRODUCER);
        for (offset, byte) in header.iter().chain(payload).enumerate() {
            let at = produced.wrapping_add(offset as u32) as usize % layout::RING_LEN;
            self.client_page.write(at, &[*byte]);
        }
        let until = produced.wrapping_add((HEADER_LEN + payload.len()) as u32);
        self.client_page.store_u32(layout::REQUEST_PRODUCER, until);
    }

    fn serve(&mut self) -> Progress {
        let ring = self.ring();
        self.server.kick(self.client);
        let client = self.server.next_ready(0).expect("kicked");
        self.server.serve(client, &ring, 0)
    }

    /// The payloads of all messages in the ring.
    fn received(&self) -> Vec<Vec<u8>> {
        let consumed = self.client_page.load_u32(layout::RESPONSE_CONSUMER);
        let produced = self.server_page.load_u32(layout::RESPONSE_PRODUCER);
        let mut bytes = Vec::new();
        for at in consumed..produced {
            let mut byte = [0];
            self.server_page.read(layout::RESPONSES + at as usize % layout::RING_LEN, &mut byte);
            bytes.push(byte[0]);
        }
        self.client_page.store_u32(layout::RESPONSE_CONSUMER, produced);
        let mut messages = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
            let len = Header::parse(header).len as usize;
            messages.push(rest[..len].to_vec());
            bytes = rest[len..].to_vec();
        }
        messages
    }

    fn request(&mut self, operation: O, payload: &[u8]) -> Vec<u8> {
        self.send(operation, payload);
        assert_eq!(self.serve().fault, None);
        let mut received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.remove(0)
    }

    /// Flips a bit of a node's checksum, behind everybody's back.
    fn damage(&mut self, path: &[u8]) {
        let digest = self.server.state.digest();
        self.server.state.tree.damage(path, |node| node.sum ^= 1 << 17);
        assert_eq!(self.server.state.digest(), digest);
    }

    /// Asks for a node; `None` where damage was found instead.
    fn ask(&mut self, path: &str) -> Option<Vec<u8>> {
        self.send(O::Read, alloc::format!("{path}\0").as_bytes());
        let progress = self.serve();
        progress.fault.is_none().then(|| self.received().remove(0))
    }
}

/// A search that passes a damaged node may miss the one that was asked for: then nobody is told
/// that there is none.
#[test]
fn a_damaged_node_hides_no_other() {
    let damages: [fn(&mut crate::node::Node); 4] = [
        |node| node.damage_name(),
        |node| node.left = None,
        |node| node.right = None,
        |node| node.listing ^= 1,
    ];
    let names: Vec<_> = (0..12).map(|n| alloc::format!("/d/{}-of-the-rest", n * 7 % 12)).collect();
    let mut found = 0;
    for damage in damages {
        for victim in &names {
            for name in names.iter().map(String::as_str).chain(["/d/other", "/d/zz"]) {
                let mut bench = Bench::new();
                for name in &names {
                    bench.request(O::Write, alloc::format!("{name}\0{name}").as_bytes());
                }
                bench.server.state.tree.damage(victim.as_bytes(), damage);
                match bench.ask(name) {
                    Some(value) if names.iter().any(|known| known == name) => {
                        assert_eq!(value, name.as_bytes(), "{victim} is damaged");
                    }
                    Some(value) => assert_eq!(value, b"ENOENT\0", "{victim} is damaged"),
                    None => found += 1,
                }
            }
        }
    }
    assert!(found > 50, "{found}");
}

#[test]
fn a_damaged_node_is_never_served() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(O::Write, b"/a/b\0value"), b"OK\0");
    for (operation, payload) in [
        (O::Read, &b"/a/b\0"[..]),
        (O::Write, b"/a/b\0new"),
        (O::GetPermissions, b"/a/b\0"),
        (O::Directory, b"/a\0"),
        (O::DirectoryPart, b"/a\x000\0"),
        (O::Control, b"check\0"),
    ] {
        let mut bench = Bench::new();
        assert_eq!(bench.request(O::Write, b"/a/b\0value"), b"OK\0");
        bench.damage(b"/a/b");
        bench.send(operation, payload);
        let progress = bench.serve();
        assert_eq!(progress.fault, Some(Fault::Node), "{operation:?}");
        assert!(bench.received().is_empty(), "{operation:?}");
        // The next life has the node as it was written, and answers.
        let (slots, areas) = (bench.server.slots.memory().clone(), bench.server.areas.clone());
        let config = bench.server.state.config.clone();
        (bench.server, _) = Server::start(&config, slots, areas);
        let ring = bench.ring();
        bench.server.attached(bench.client, &ring);
        assert_eq!(bench.serve().fault, None);
        assert_eq!(bench.received().len(), 1);
        let expected: &[u8] = if operation == O::Write { b"new" } else { b"value" };
        assert_eq!(bench.request(O::Read, b"/a/b\0"), expected);
    }
}

#[test]
fn the_scrubber_finds_a_damaged_node() {
    let mut bench = Bench::new();
    for number in 0..300 {
        bench.request(O::Write, alloc::format!("/d/{number}\0v").as_bytes());
    }
    let mut now_ns = 0;
    let mut scrub = |bench: &mut Bench| {
        (0..10).find_map(|_| {
            now_ns += 30_000_000;
            bench.server.idle_step(now_ns)
        })
    };
    assert_eq!(scrub(&mut bench), None);
    bench.damage(b"/d/123");
    assert_eq!(scrub(&mut bench), Some(Fault::Node));
}

#[test]
fn going_on_in_memory_that_survived() {
    let mut bench = Bench::new();
    bench.request(O::Write, b"/a\0value");
    assert_eq!(bench.request(O::TransactionStart, b"\0"), b"1\0");
    bench.send(O::Watch, b"/a\0token\0");
    assert!(bench.serve().executed);
    for _ in 0..3 {
        assert!(bench.server.is_consistent());
        assert_eq!(bench.server.resume(), 0);
        let ring = bench.ring();
        assert!(bench.server.attached(bench.client, &ring), "nobody knows what was rung for");
    }
    bench.serve();
    assert_eq!(bench.received(), [&b"OK\0"[..], b"/a\0token\0"]);
    // The open transaction is still there.
    assert_eq!(bench.server.state.client(bench.client).map(|c| c.transactions.len()), Some(1));
    assert_eq!(bench.request(O::Read, b"/a\0"), b"value");
}

#[test]
fn an_interrupted_change_is_not_consistent() {
    let bench = Bench::new();
    bench.server.mutating.set(true);
    assert!(!bench.server.is_consistent());
}

/// A service that starts over: it empties its own page, then changes its connection word.
#[test]
fn a_service_starts_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(O::Write, b"/a\0value"), b"OK\0");
    bench.send(O::Watch, b"/a\0token\0");
    bench.serve();
    bench.received();
    bench.client_page.fill(0, 4096, 0);
    bench.client_page.store_u32(layout::CONNECTION, 1);
    let progress = bench.serve();
    assert!(progress.notify && !progress.executed);
    assert_eq!(bench.server_page.load_u32(layout::CONNECTION), 1);
    assert_eq!(bench.server_page.load_u32(layout::RESPONSE_PRODUCER), 0);
    assert_eq!(bench.server.state.watch_count(), 0);
    assert_eq!(bench.request(O::Read, b"/a\0"), b"value");
}

/// INTRODUCE is answered once the ring is attached: with success or not.
#[test]
fn introduction_waits_for_the_ring() {
    for works in [true, false] {
        let mut bench = Bench::new();
        bench.send(O::Introduce, b"16\x001\x007\0");
        bench.serve();
        assert!(bench.received().is_empty());
        let Some(Action::Connect { client, domid: 16, gfn: 1, port: 7 }) =
            bench.server.next_action()
        else {
            panic!("no action");
        };
        let page = HeapMemory::new(4096);
        page.fill(0, 4096, 0xff);
        page.store_u32(layout::CONNECTION, layout::RECONNECT);
        match works {
            true => drop(bench.server.attached(client, &Ring::Page(page.clone()))),
            false => bench.server.attach_failed(client),
        }
        bench.serve();
        let expected: &[u8] = if works { b"OK\0" } else { b"EINVAL\0" };
        assert_eq!(bench.received(), [expected]);
        assert_eq!(bench.server.connection_of(16).is_some(), works);
        if works {
            assert_eq!(page.load_u32(layout::CONNECTION), layout::CONNECTED);
            assert_eq!(page.load_u32(layout::REQUEST_PRODUCER), 0);
            assert_eq!(page.load_u32(layout::SERVER_FEATURES), 15);
            assert_eq!(page.load_u32(layout::ERROR), 0);
        }
    }
}
