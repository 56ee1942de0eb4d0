//! The engine with a ring page per socket.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabric::{HeapMemory, SharedMemory};
use store::{AREA_LEN, Action, Config, Ring, Server};
use wire::ring as layout;

use crate::bridge::{Event, Outlet};

/// How the engine runs.
pub struct Options {
    /// Most connections.
    pub clients: usize,
    /// Bytes for durable records.
    pub slots_len: usize,
    /// Requests after which the engine is killed; 0 for never.
    pub restart_every: u64,
}

/// The domain of the sockets of a classic host: its dom0, which may do everything.
pub const PRIVILEGED: u16 = 0;

struct Client {
    outlet: Option<Outlet>,
    page: HeapMemory,
    ring: Ring<HeapMemory>,
    /// Bytes that wait for room in the ring.
    received: VecDeque<u8>,
}

struct Engine {
    config: Config,
    slots: HeapMemory,
    areas: HeapMemory,
    server: Server<HeapMemory, HeapMemory>,
    /// By connection number of the server.
    clients: BTreeMap<u16, Client>,
    by_socket: BTreeMap<u64, u16>,
    start: Instant,
    requests: u64,
    restart_every: u64,
}

/// Serves until the listener is gone.
pub fn run(options: &Options, events: &Receiver<Event>) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let config = Config::new(since_epoch.as_nanos() as u64, &[PRIVILEGED], options.clients);
    let slots = HeapMemory::new(options.slots_len);
    let areas = HeapMemory::new(options.clients * AREA_LEN);
    let (server, _) = Server::start(&config, slots.clone(), areas.clone());
    let mut engine = Engine {
        config,
        slots,
        areas,
        server,
        clients: BTreeMap::new(),
        by_socket: BTreeMap::new(),
        start: Instant::now(),
        requests: 0,
        restart_every: options.restart_every,
    };
    loop {
        let wait = Duration::from_nanos(engine.server.next_deadline(engine.now_ns()))
            .saturating_sub(engine.start.elapsed());
        match events.recv_timeout(wait) {
            Ok(event) => {
                engine.handle(event);
                while let Ok(event) = events.try_recv() {
                    engine.handle(event);
                }
                engine.pump();
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                let fault = engine.server.idle_step(engine.now_ns());
                assert_eq!(fault, None, "memory is damaged");
                engine.pump();
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Engine {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened(socket, domid, outlet) => match self.server.open_another(domid) {
                Some(client) => {
                    let page = HeapMemory::new(4096);
                    let ring = Ring::Page(page.clone());
                    self.server.attached(client, &ring);
                    let received = VecDeque::new();
                    self.clients
                        .insert(client, Client { outlet: Some(outlet), page, ring, received });
                    self.by_socket.insert(socket, client);
                }
                None => outlet.close(),
            },
            Event::Received(socket, bytes) => {
                if let Some(client) = self.client(socket) {
                    client.received.extend(bytes);
                }
            }
            Event::Drained(socket) => {
                if let Some(client) = self.by_socket.get(&socket) {
                    self.server.kick(*client);
                }
            }
            Event::Closed(socket) => {
                if let Some(client) = self.by_socket.remove(&socket) {
                    self.clients.remove(&client);
                    self.server.close(client);
                }
            }
        }
    }

    fn client(&mut self, socket: u64) -> Option<&mut Client> {
        self.clients.get_mut(self.by_socket.get(&socket)?)
    }

    /// Moves bytes between sockets and rings and serves until nothing moves.
    fn pump(&mut self) {
        loop {
            let mut moved = false;
            for (number, client) in &mut self.clients {
                if client.push() | client.pull() {
                    moved = true;
                    self.server.kick(*number);
                }
            }
            while let Some(number) = self.server.next_ready(self.now_ns()) {
                let Some(client) = self.clients.get(&number) else { continue };
                let ring = client.ring.clone();
                let progress =
                    self.server.serve(number, &ring, self.start.elapsed().as_nanos() as u64);
                assert_eq!(progress.fault, None, "memory is damaged");
                moved |= progress.notify;
                self.act();
                self.requests += u64::from(progress.executed);
                if progress.executed
                    && self.restart_every != 0
                    && self.requests.is_multiple_of(self.restart_every)
                {
                    self.restart();
                }
                if let Some(client) = self.clients.get_mut(&number) {
                    client.end_if_dead();
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.server.next_action() {
            match action {
                // A domain without Xen: a ring at which nobody sits.
                Action::Connect { client, .. } | Action::Rebind { client, .. } => {
                    let page = HeapMemory::new(4096);
                    let ring = Ring::Page(page.clone());
                    self.server.attached(client, &ring);
                    let received = VecDeque::new();
                    self.clients.insert(client, Client { outlet: None, page, ring, received });
                }
                Action::Disconnect { client, .. } => drop(self.clients.remove(&client)),
                Action::Print => {
                    let text = self.server.take_printed();
                    print!("{}", String::from_utf8_lossy(&text));
                }
                Action::LimitReached { domid, quota, strength } => {
                    eprintln!("domain {domid} reached its {strength:?} quota of {}", quota.name());
                }
            }
        }
    }

    /// The engine dies and a new one reads everything back; the clients notice nothing.
    fn restart(&mut self) {
        let (server, report) = Server::start(&self.config, self.slots.clone(), self.areas.clone());
        assert!(!report.is_new && report.load.missing_slots == 0, "{report:?}");
        self.server = server;
        for (number, client) in &self.clients {
            self.server.attached(*number, &client.ring);
        }
    }
}

impl Client {
    /// Moves what came from the socket into the ring.
    fn push(&mut self) -> bool {
        let produced = self.page.load_u32(layout::REQUEST_PRODUCER);
        let consumed = self.page.load_u32(layout::REQUEST_CONSUMER);
        let room = layout::RING_LEN - produced.wrapping_sub(consumed) as usize;
        let bytes: Vec<u8> = {
            let count = room.min(self.received.len());
            self.received.drain(..count).collect()
        };
        let mut done = 0;
        for (start, len) in layout::stretches(produced, bytes.len()) {
            self.page.write(layout::REQUESTS + start, &bytes[done..done + len]);
            done += len;
        }
        self.page.store_u32(layout::REQUEST_PRODUCER, produced.wrapping_add(done as u32));
        done > 0
    }

    /// Moves what the ring has for the client to its socket.
    fn pull(&mut self) -> bool {
        let Some(outlet) = self.outlet.as_ref().filter(|outlet| outlet.has_room()) else {
            return false;
        };
        let produced = self.page.load_u32(layout::RESPONSE_PRODUCER);
        let consumed = self.page.load_u32(layout::RESPONSE_CONSUMER);
        let mut bytes = vec![0; produced.wrapping_sub(consumed) as usize];
        let mut done = 0;
        for (start, len) in layout::stretches(consumed, bytes.len()) {
            self.page.read(layout::RESPONSES + start, &mut bytes[done..done + len]);
            done += len;
        }
        self.page.store_u32(layout::RESPONSE_CONSUMER, produced);
        if done > 0 {
            outlet.send(bytes);
        }
        done > 0
    }

    /// A client that broke the protocol loses its socket, as xenstored does it.
    fn end_if_dead(&mut self) {
        if self.page.load_u32(layout::ERROR) != 0
            && let Some(outlet) = &self.outlet
        {
            outlet.close();
        }
    }
}
