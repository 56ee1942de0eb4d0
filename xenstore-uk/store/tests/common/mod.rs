//! A whole host in one process: the server, its memory, and clients at their rings.
#![allow(dead_code, missing_docs)]

pub mod crash;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crash::Crashing;
use fabric::{HeapMemory, SharedMemory};
use store::persist::index_len;
use store::{AREA_LEN, Action, Config, Descend, Ring, SLOT_LEN, Server, StartReport};
use wire::ring as layout;
use wire::{HEADER_LEN, Header, Operation};

pub const TOOL: u16 = 5;
pub const CLIENTS: usize = 32;
pub const SLOTS_LEN: usize = 4 << 20;

/// A message that a client received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub operation: Operation,
    pub request: u32,
    pub transaction: u32,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).replace('\0', "|")
    }
}

/// The client's end of a ring, as a guest's kernel sees it.
pub struct Guest {
    pub page: HeapMemory,
    stream: Vec<u8>,
    pub events: VecDeque<Message>,
    pub replies: VecDeque<Message>,
    /// Bytes that wait for room in the ring.
    unsent: VecDeque<u8>,
    next_request: u32,
}

impl Guest {
    pub fn new() -> Self {
        Self {
            page: HeapMemory::new(4096),
            stream: Vec::new(),
            events: VecDeque::new(),
            replies: VecDeque::new(),
            unsent: VecDeque::new(),
            next_request: 1,
        }
    }

    pub fn send(&mut self, operation: Operation, transaction: u32, payload: &[u8]) -> u32 {
        let request = self.next_request;
        self.next_request += 1;
        let header = Header { operation, request, transaction, len: payload.len() as u32 };
        self.unsent.extend(header.emit());
        self.unsent.extend(payload);
        self.push();
        request
    }

    /// Moves as many bytes as fit into the ring.
    pub fn push(&mut self) {
        let produced = self.page.load_u32(layout::REQUEST_PRODUCER);
        let consumed = self.page.load_u32(layout::REQUEST_CONSUMER);
        let room = 1024 - produced.wrapping_sub(consumed) as usize;
        let count = room.min(self.unsent.len());
        for offset in 0..count {
            let byte = self.unsent.pop_front().expect("counted");
            let at = produced.wrapping_add(offset as u32) as usize % 1024;
            self.page.write(layout::REQUESTS + at, &[byte]);
        }
        self.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(count as u32));
    }

    /// Takes at most `limit` bytes out of the ring, and the messages that became whole.
    pub fn pull(&mut self, limit: usize) {
        let produced = self.page.load_u32(layout::RESPONSE_PRODUCER);
        let consumed = self.page.load_u32(layout::RESPONSE_CONSUMER);
        let count = (produced.wrapping_sub(consumed) as usize).min(limit);
        assert!(count <= 1024, "the server overran the ring");
        for offset in 0..count {
            let at = consumed.wrapping_add(offset as u32) as usize % 1024;
            let mut byte = [0];
            self.page.read(layout::RESPONSES + at, &mut byte);
            self.stream.push(byte[0]);
        }
        self.page.store_u32(layout::RESPONSE_CONSUMER, consumed.wrapping_add(count as u32));
        while let Some(head) = self.stream.first_chunk::<HEADER_LEN>() {
            let header = Header::parse(head);
            let len = header.payload_len().expect("the server keeps to the limit");
            if self.stream.len() < HEADER_LEN + len {
                break;
            }
            let payload = self.stream[HEADER_LEN..HEADER_LEN + len].to_vec();
            self.stream.drain(..HEADER_LEN + len);
            let message = Message {
                operation: header.operation,
                request: header.request,
                transaction: header.transaction,
                payload,
            };
            match message.operation {
                Operation::WatchEvent => self.events.push_back(message),
                _ => self.replies.push_back(message),
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.stream.is_empty()
    }
}

pub type TestServer = Server<Crashing<HeapMemory>, Crashing<HeapMemory>>;

/// The host.
pub struct Host {
    pub config: Config,
    pub budget: crash::Budget,
    pub slots: HeapMemory,
    pub areas: HeapMemory,
    pub index: HeapMemory,
    pub server: TestServer,
    pub guests: BTreeMap<u16, Guest>,
    pub now_ns: u64,
    pub notified: u64,
    /// Domains whose event channel was notified and that have not looked since.
    pub awake: BTreeSet<u16>,
}

impl Host {
    pub fn new() -> Self {
        Self::with(Config::new(0x1234_5678_9abc_def0, &[0, TOOL], CLIENTS))
    }

    pub fn with(config: Config) -> Self {
        Self::with_slots(config, SLOTS_LEN)
    }

    pub fn with_slots(config: Config, len: usize) -> Self {
        let slots = HeapMemory::new(len);
        let areas = HeapMemory::new(config.clients * AREA_LEN);
        let budget = crash::Budget::unlimited();
        let index = HeapMemory::new(index_len(len / SLOT_LEN));
        let (server, report) = Server::start_indexed(
            &config,
            Crashing::new(slots.clone(), budget.clone()),
            Crashing::new(areas.clone(), budget.clone()),
            Crashing::new(index.clone(), budget.clone()),
        );
        assert!(report.is_new);
        let mut host = Self {
            config,
            budget,
            slots,
            areas,
            index,
            server,
            guests: BTreeMap::new(),
            now_ns: 0,
            notified: 0,
            awake: BTreeSet::new(),
        };
        host.guests.insert(TOOL, Guest::new());
        let client = host.server.open(TOOL).expect("room");
        host.attach(client, TOOL);
        host
    }

    pub fn ring(&self, domid: u16) -> Ring<Crashing<HeapMemory>> {
        Ring::Page(Crashing::new(self.guests[&domid].page.clone(), self.budget.clone()))
    }

    pub fn attach(&mut self, client: u16, domid: u16) {
        let ring = self.ring(domid);
        if self.server.attached(client, &ring) {
            self.awake.insert(domid);
        }
    }

    /// Introduces a domain with a new ring.
    pub fn introduce(&mut self, domid: u16) {
        self.guests.insert(domid, Guest::new());
        let payload = format!("{domid}\x001\x001\0");
        let reply = self.request(TOOL, Operation::Introduce, 0, payload.as_bytes());
        assert_eq!(reply.text(), "OK|");
    }

    pub fn actions(&mut self) {
        while let Some(action) = self.server.next_action() {
            if self.budget.is_exhausted() {
                return;
            }
            match action {
                Action::Connect { client, domid, .. } | Action::Rebind { client, domid, .. } => {
                    self.guests.entry(domid).or_insert_with(Guest::new);
                    self.attach(client, domid);
                }
                Action::Disconnect { domid, .. } => drop(self.guests.remove(&domid)),
                _ => {}
            }
        }
    }

    /// Lets the server work until it has nothing to do, at most `steps` times.
    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            let Some(client) = self.server.next_ready(self.now_ns) else { break };
            let info = self.server.connections().find(|info| info.client == client);
            let Some(info) = info else { continue };
            if !self.guests.contains_key(&info.domid) {
                continue;
            }
            let ring = self.ring(info.domid);
            let progress = self.server.serve(client, &ring, self.now_ns);
            assert_eq!(progress.fault, None);
            // Whoever counts progress must not take a server that goes on for a loop.
            let is_progress = progress.executed || progress.notify || progress.advanced;
            assert!(is_progress || !progress.more, "{progress:?}");
            self.notified += u64::from(progress.notify);
            // A server that died before it could ring has not rung.
            if progress.notify && !self.budget.is_exhausted() {
                self.awake.insert(info.domid);
            }
            self.actions();
            if self.budget.is_exhausted() {
                return;
            }
        }
    }

    /// Guests and server exchange what there is until all is quiet.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            for guest in self.guests.values_mut() {
                guest.push();
                guest.pull(usize::MAX);
            }
            self.kick_all();
            let before = self.notified;
            self.run(1000);
            let quiet = self.guests.values().all(Guest::is_idle);
            if quiet && before == self.notified {
                return;
            }
            self.now_ns += 1_000_000;
        }
        panic!("never quiet");
    }

    pub fn kick_all(&mut self) {
        let clients: Vec<u16> = self.server.connections().map(|info| info.client).collect();
        clients.into_iter().for_each(|client| self.server.kick(client));
    }

    pub fn request(
        &mut self,
        domid: u16,
        operation: Operation,
        transaction: u32,
        payload: &[u8],
    ) -> Message {
        let guest = self.guests.get_mut(&domid).expect("a guest");
        let request = guest.send(operation, transaction, payload);
        self.settle();
        let guest = self.guests.get_mut(&domid).expect("a guest");
        let reply = guest.replies.pop_front().expect("a reply");
        assert!(guest.replies.is_empty(), "more than one reply");
        assert_eq!(reply.request, request);
        assert_eq!(reply.transaction, transaction);
        reply
    }

    pub fn events(&mut self, domid: u16) -> Vec<String> {
        let guest = self.guests.get_mut(&domid).expect("a guest");
        guest.events.drain(..).map(|event| event.text()).collect()
    }

    /// The server dies and a new one reads everything back. Where it did so by the index, a
    /// reading of all slots finds the same.
    pub fn restart(&mut self) -> StartReport {
        self.budget.refill();
        self.compare_starts();
        let report = self.start();
        self.reattach();
        report
    }

    /// Starts from copies, by the index and by reading all slots: both find the same. Answers
    /// whether there was a start by the index.
    pub fn compare_starts(&self) -> bool {
        let copy = |memory| Crashing::new(copy(memory), self.budget.clone());
        let (slots, areas, index) = (copy(&self.slots), copy(&self.areas), copy(&self.index));
        let (mut indexed, report) = Server::start_indexed(&self.config, slots, areas, index);
        if report.is_indexed {
            let (slots, areas) = (copy(&self.slots), copy(&self.areas));
            let (mut scanned, found) = Server::start(&self.config, slots, areas);
            assert_eq!(report.load.nodes, found.load.nodes);
            assert_eq!(description(&mut indexed), description(&mut scanned));
        }
        report.is_indexed
    }

    /// The domain is built anew: what it had in memory of its own is gone.
    pub fn rebuild(&mut self) -> StartReport {
        self.index = HeapMemory::new(self.index.len());
        self.restart()
    }

    /// Lets time pass in which nobody asks for anything.
    pub fn idle(&mut self) {
        for _ in 0..100 {
            self.now_ns += 1_000_000;
            assert_eq!(self.server.idle_step(self.now_ns), None);
        }
    }

    /// As [`Host::restart`], with the stores that the budget has left.
    pub fn restart_within_budget(&mut self) {
        self.start();
        self.reattach();
    }

    fn start(&mut self) -> StartReport {
        let (server, report) = Server::start_indexed(
            &self.config,
            Crashing::new(self.slots.clone(), self.budget.clone()),
            Crashing::new(self.areas.clone(), self.budget.clone()),
            Crashing::new(self.index.clone(), self.budget.clone()),
        );
        self.server = server;
        report
    }

    pub fn reattach(&mut self) {
        assert!(self.server.open(TOOL).is_some());
        let all: Vec<_> = self.server.connections().collect();
        for info in all {
            self.guests.entry(info.domid).or_insert_with(Guest::new);
            self.attach(info.client, info.domid);
        }
    }

    // Shorthands, all as the privileged tool domain or as a guest.

    pub fn write(&mut self, domid: u16, path: &str, value: &str) -> String {
        let payload = format!("{path}\0{value}");
        self.request(domid, Operation::Write, 0, payload.as_bytes()).text()
    }

    pub fn read(&mut self, domid: u16, path: &str) -> String {
        self.request(domid, Operation::Read, 0, format!("{path}\0").as_bytes()).text()
    }

    pub fn call(&mut self, domid: u16, operation: Operation, strings: &[&str]) -> String {
        self.call_in(domid, operation, 0, strings)
    }

    pub fn call_in(
        &mut self,
        domid: u16,
        operation: Operation,
        transaction: u32,
        strings: &[&str],
    ) -> String {
        let payload: String = strings.iter().map(|string| format!("{string}\0")).collect();
        self.request(domid, operation, transaction, payload.as_bytes()).text()
    }

    pub fn begin(&mut self, domid: u16) -> u32 {
        let reply = self.call(domid, Operation::TransactionStart, &[""]);
        reply.trim_end_matches('|').parse().expect("a number")
    }
}

/// A copy that nobody else writes.
pub fn copy(memory: &HeapMemory) -> HeapMemory {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    let copy = HeapMemory::new(memory.len());
    copy.write(0, &bytes);
    copy
}

/// All that a reload finds.
fn description(server: &mut TestServer) -> String {
    let slots = (server.slots().committed(), server.slots().free_slots());
    server.finish_loading();
    let state = server.state();
    let mut nodes = Vec::new();
    state.tree().walk(&mut Vec::new(), usize::MAX, &mut |path, node, hash| {
        let path = path.escape_ascii();
        assert!(node.is_intact(hash), "{path}");
        let generations = (node.generation(), node.children_generation());
        let permissions: Vec<_> = node.permissions().collect();
        nodes.push(format!("{path} {generations:?} {permissions:?} {:?}", node.value()));
        Descend::Yes
    });
    let domains: Vec<_> = (0..u16::MAX).filter_map(|domid| state.domain(domid)).collect();
    let clients: Vec<_> =
        state.clients().map(|(number, client)| (number, client.encode(number))).collect();
    let watches = state.watch_count();
    format!("{slots:?} {:x} {nodes:#?} {domains:#?} {clients:?} {watches}", state.digest())
}
