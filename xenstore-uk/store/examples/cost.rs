//! Instructions per request, for `valgrind --tool=callgrind`: runs one kind of work a given number
//! of times, so that the difference of two runs is the work alone.
//!
//! ```text
//! cost KIND COUNT [NODES]      KIND: read, list, write, create, transaction, remove, reload,
//!                            indexed, first, first-remove, watched
//! ```

use fabric::{HeapMemory, SharedMemory};
use store::persist::index_len;
use store::{AREA_LEN, Config, Ring, SLOT_LEN, Server};
use wire::ring as layout;
use wire::{Header, Operation as O};

const TOOL: u16 = 5;

/// A server of the bench.
type Started = Server<HeapMemory, HeapMemory>;

struct Bench {
    server: Started,
    page: HeapMemory,
    ring: Ring<HeapMemory>,
    client: u16,
}

impl Bench {
    /// Puts a request into the ring, serves it, takes the reply out; answers its payload's length.
    fn request(&mut self, operation: O, transaction: u32, payload: &[u8]) -> usize {
        let header = Header { operation, request: 1, transaction, len: payload.len() as u32 };
        let produced = self.page.load_u32(layout::REQUEST_PRODUCER);
        let message = [&header.emit()[..], payload].concat();
        let mut at = produced;
        for (start, len) in layout::stretches(produced, message.len()) {
            let done = at.wrapping_sub(produced) as usize;
            self.page.write(layout::REQUESTS + start, &message[done..done + len]);
            at = at.wrapping_add(len as u32);
        }
        self.page.store_u32(layout::REQUEST_PRODUCER, at);
        serve(&mut self.server, self.client, &self.ring);
        let produced = self.page.load_u32(layout::RESPONSE_PRODUCER);
        let consumed = self.page.load_u32(layout::RESPONSE_CONSUMER);
        self.page.store_u32(layout::RESPONSE_CONSUMER, produced);
        produced.wrapping_sub(consumed) as usize
    }

    fn write(&mut self, path: &str, value: &str) {
        let len = self.request(O::Write, 0, format!("{path}\0{value}").as_bytes());
        assert!(len >= 19, "a reply of {len} bytes");
    }

    /// Writes some `nodes` nodes.
    fn fill(&mut self, nodes: u32) {
        const LEAVES: [&str; 9] =
            ["state", "mac", "handle", "online", "mode", "ring-ref", "event", "type", "x"];
        for index in 0..nodes / 10 {
            for leaf in LEAVES {
                let path = format!("/local/domain/{index}/device/vif/0/{leaf}");
                self.write(&path, "00:16:3e:11:22:33");
            }
        }
        // Time in which the index is completed.
        for step in 1..=u64::from(nodes) {
            assert_eq!(self.server.idle_step(step * 1_000_000), None);
        }
    }
}

/// What the figures count: everything between kick and notification.
#[inline(never)]
fn serve(server: &mut Server<HeapMemory, HeapMemory>, client: u16, ring: &Ring<HeapMemory>) {
    server.kick(client);
    while let Some(client) = server.next_ready(0) {
        std::hint::black_box(server.serve(client, ring, 0));
    }
}

/// The reload that the figures count.
#[inline(never)]
fn reload(
    config: &Config,
    slots: &HeapMemory,
    areas: &HeapMemory,
    index: Option<&HeapMemory>,
) -> Started {
    let (slots, areas) = (slots.clone(), areas.clone());
    let (server, report) = match index {
        None => Server::start(config, slots, areas),
        Some(index) => Server::start_indexed(config, slots, areas, index.clone()),
    };
    assert_eq!(report.is_indexed, index.is_some());
    server
}

/// The first answer of a new life, which makes the nodes on its way.
#[inline(never)]
fn first_answer(server: Started, page: &HeapMemory, client: u16, what: O, path: &str) {
    let mut bench = Bench { server, page: page.clone(), ring: Ring::Page(page.clone()), client };
    bench.server.attached(client, &bench.ring);
    bench.request(what, 0, format!("{path}\0").as_bytes());
    std::mem::forget(bench.server);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
    let (Some(kind), Some(count)) = (arguments.get(1), number(2)) else {
        eprintln!("usage: cost KIND COUNT [NODES]");
        std::process::exit(2);
    };
    let nodes: u32 = number(3).unwrap_or(1000);
    let config = Config::new(0x1357_9bdf_0246_8ace, &[TOOL], 16);
    let slots = HeapMemory::new(256 + (nodes as usize * 2 + 4096) * SLOT_LEN);
    let areas = HeapMemory::new(16 * AREA_LEN);
    let page = HeapMemory::new(4096);
    let ring = Ring::Page(page.clone());
    let index = HeapMemory::new(index_len(slots.len() / SLOT_LEN));
    let (mut server, _) =
        Server::start_indexed(&config, slots.clone(), areas.clone(), index.clone());
    let client = server.open(TOOL).expect("room for one connection");
    server.attached(client, &ring);
    let mut bench = Bench { server, page: page.clone(), ring, client };
    bench.fill(nodes);
    let path = format!("/local/domain/{}/device/vif/0/state", nodes / 20);
    for turn in 0..count {
        match kind.as_str() {
            "read" => drop(bench.request(O::Read, 0, format!("{path}\0").as_bytes())),
            "list" => drop(bench.request(
                O::Directory,
                0,
                format!("/local/domain/{}/device/vif/0\0", nodes / 20).as_bytes(),
            )),
            "write" => bench.write(&path, if turn % 2 == 0 { "4" } else { "5" }),
            "create" => bench.write(&format!("/local/domain/1/data/{turn}"), "some value"),
            "watched" => {
                if turn == 0 {
                    let watch = format!("{path}\0token\0");
                    bench.request(O::Watch, 0, watch.as_bytes());
                }
                bench.write(&path, if turn % 2 == 0 { "4" } else { "5" });
            }
            "transaction" => {
                bench.request(O::TransactionStart, 0, b"\0");
                let id = turn + 1;
                bench.request(O::Read, id, format!("{path}\0").as_bytes());
                bench.request(O::Write, id, format!("{path}\x006").as_bytes());
                bench.request(O::TransactionEnd, id, b"T\0");
            }
            // All nodes but the root and its own.
            "remove" => drop(bench.request(O::Remove, 0, b"/local\0")),
            "reload" => {
                std::mem::forget(reload(&config, &slots, &areas, None));
            }
            "indexed" => {
                std::mem::forget(reload(&config, &slots, &areas, Some(&index)));
            }
            "first-remove" => {
                let started = reload(&config, &slots, &areas, Some(&index));
                first_answer(started, &page, client, O::Remove, "/local");
            }
            "first" => {
                let started = reload(&config, &slots, &areas, Some(&index));
                first_answer(started, &page, client, O::Read, &path);
            }
            other => panic!("no such kind: {other}"),
        }
    }
}
