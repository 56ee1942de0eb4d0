//! The XenStore engine behind the trait that the simulator's own state machine implements: what
//! the replicated xenstore-uk will do, on a network without faults and with crashing replicas.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};

use fabric::HeapMemory;
use raft::{Birth, Chunk, MIN_STORAGE, Node, Request, RestoreError, Settings, StateMachine};
use store::{Action, Config, Effects, Kind, Reply, State};
use wire::{HEADER_LEN, Header, Operation};

const CLIENTS: u16 = 3;
const REQUESTS: u32 = 400;

/// Keeps nothing: the state is restored by executing its history again.
struct Forgetful;

impl Effects for Forgetful {
    fn has_room(&self, _: usize, _: usize) -> bool {
        true
    }
    fn has_reserve(&self, _: usize) -> bool {
        true
    }
    fn put(&mut self, _: u32, _: Kind, _: &[u8], _: &[u8]) {}
    fn delete(&mut self, _: u32) {}
    fn worked(&mut self, _: u32) {}
    fn forget(&mut self, _: u32) {}
    fn connect(&mut self, _: u16, _: u64) {}
    fn disconnect(&mut self, _: u16) {}
    fn event(&mut self, _: u16, _: &[u8], _: &[u8]) {}
    fn event_after_reply(&mut self, _: u16, _: &[u8], _: &[u8]) {}
    fn act(&mut self, _: Action) {}
    fn print(&mut self, _: &[u8]) {}
}

/// A store and every request that changed it. One that failed changed nothing and is not
/// remembered: asked again after a fail-over, it is tried again.
struct Store {
    state: State,
    applied: u64,
    history: Vec<(u32, u64, Vec<u8>)>,
    snapshots: BTreeMap<usize, VecDeque<u8>>,
    arriving: Vec<u8>,
}

impl Store {
    fn new() -> Self {
        let mut state = State::new(&Config::new(7, &[0], 16));
        for client in 0..CLIENTS {
            // The first is the toolstack's, the others are guests'.
            let domid = if client == 0 { 0 } else { 15 + client };
            assert_eq!(state.open(domid, &mut Forgetful), Some(client));
        }
        state.commit();
        let (history, snapshots, arriving) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { state, applied: 0, history, snapshots, arriving }
    }

    /// Executes a request once: the state remembers each connection's last one and its reply.
    fn execute(&mut self, connection: u32, sequence: u64, message: &[u8]) -> Vec<u8> {
        let (client, position) = (connection as u16, sequence as u32);
        let session = self.state.client(client).map(|client| &client.session);
        if let Some(session) = session.filter(|session| session.position == Some(position)) {
            return session.reply.clone();
        }
        let (header, payload) = message.split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::parse(header);
        let request = store::Request { client, position, header, payload };
        let mut reply = Reply::new();
        if self.state.apply(&request, &mut reply, &mut Forgetful) {
            self.state.commit();
            self.history.push((connection, sequence, message.to_vec()));
        }
        reply.message().to_vec()
    }
}

impl StateMachine for Store {
    type Reply = Vec<u8>;

    fn apply(&mut self, index: u64, request: Request<'_>) -> Vec<u8> {
        self.applied = index;
        self.execute(request.connection, request.sequence, request.payload)
    }

    fn advance(&mut self, index: u64) {
        self.applied = index;
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn digest(&self) -> u64 {
        self.state.digest()
    }

    fn snapshot_open(&mut self, slot: usize) {
        let mut bytes = VecDeque::new();
        for (connection, sequence, message) in &self.history {
            bytes.extend(connection.to_le_bytes());
            bytes.extend(sequence.to_le_bytes());
            bytes.extend((message.len() as u32).to_le_bytes());
            bytes.extend(message);
        }
        self.snapshots.insert(slot, bytes);
    }

    fn snapshot_chunk(&mut self, slot: usize, out: &mut [u8]) -> Chunk {
        let open = self.snapshots.get_mut(&slot).unwrap();
        let len = open.len().min(out.len());
        for (to, from) in out.iter_mut().zip(open.drain(..len)) {
            *to = from;
        }
        Chunk { len, last: open.is_empty() }
    }

    fn snapshot_close(&mut self, slot: usize) {
        self.snapshots.remove(&slot);
    }

    fn restore_open(&mut self) {
        self.arriving.clear();
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.arriving.extend(bytes);
        Ok(())
    }

    fn restore_close(&mut self, index: u64, digest: u64) -> Result<(), RestoreError> {
        let bytes = std::mem::take(&mut self.arriving);
        let mut restored = Self::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(16);
            let connection = u32::from_le_bytes(head[..4].try_into().unwrap());
            let sequence = u64::from_le_bytes(head[4..12].try_into().unwrap());
            let len = u32::from_le_bytes(head[12..].try_into().unwrap()) as usize;
            restored.execute(connection, sequence, &tail[..len]);
            rest = &tail[len..];
        }
        restored.applied = index;
        if restored.digest() != digest {
            return Err(RestoreError);
        }
        *self = restored;
        Ok(())
    }
}

struct Replica {
    memory: HeapMemory,
    store: Store,
    node: Node<HeapMemory>,
    life: u32,
}

struct Cluster {
    replicas: Vec<Replica>,
    now: u64,
    leader: usize,
    relay_epoch: u64,
    /// Replies that the published leader handed out, by connection.
    replies: BTreeMap<u32, (u64, Vec<u8>)>,
}

impl Cluster {
    fn new() -> Self {
        let replica = |number| {
            let memory = HeapMemory::new(MIN_STORAGE);
            let settings = Settings::fabric(number, 1);
            let node = Node::create(memory.clone(), settings, Birth::Founder).unwrap();
            Replica { memory, store: Store::new(), node, life: 1 }
        };
        let replicas = (1..=3).map(replica).collect();
        Self { replicas, now: 0, leader: 0, relay_epoch: 0, replies: BTreeMap::new() }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let mut queue = Vec::new();
            let mut out = Vec::new();
            for (place, Replica { store, node, .. }) in self.replicas.iter_mut().enumerate() {
                while let Some(applied) = node.work(self.now, store) {
                    if place == self.leader && node.may_reply(self.relay_epoch) {
                        let reply = (applied.sequence, applied.reply);
                        self.replies.insert(applied.connection, reply);
                    }
                }
                while let Some(to) = node.poll_message(self.now, &mut out) {
                    queue.push((to, out.clone()));
                }
            }
            if queue.is_empty() {
                return;
            }
            for (to, bytes) in queue {
                let Replica { store, node, .. } = &mut self.replicas[usize::from(to) - 1];
                // What is for a former life is refused.
                let _ = node.handle_message(self.now, &bytes, store);
            }
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now += 1_000_000;
            for replica in &mut self.replicas {
                replica.node.handle_time(self.now);
            }
            self.settle();
        }
    }

    fn elect(&mut self, leader: usize) {
        let seen = self.replicas.iter().map(|replica| replica.node.status().term).max().unwrap();
        self.replicas[leader].node.campaign(self.now, seen).unwrap();
        self.settle();
        self.leader = leader;
        self.relay_epoch += 1;
        assert!(self.replicas[leader].node.publish(self.relay_epoch));
    }

    /// The replica dies; its storage and its store stay, or both are lost.
    fn restart(&mut self, place: usize, lost: bool) {
        let replica = &mut self.replicas[place];
        replica.life += 1;
        let settings = Settings::fabric(place as u8 + 1, replica.life);
        replica.node = if lost {
            replica.store = Store::new();
            Node::create(replica.memory.clone(), settings, Birth::Newcomer).unwrap()
        } else {
            Node::open(replica.memory.clone(), settings, replica.store.applied).unwrap()
        };
    }

    fn ask(&mut self, connection: u32, sequence: u64, message: &[u8]) -> Vec<u8> {
        let (now, leader) = (self.now, self.leader);
        let node = &mut self.replicas[leader].node;
        node.propose(now, connection, sequence, message).unwrap();
        self.settle();
        let (answered, reply) = self.replies.get(&connection).expect("an answer");
        assert_eq!(*answered, sequence);
        reply.clone()
    }
}

/// Request number `number`: writes, directories, permissions and removals in a small tree.
fn message(number: u32) -> Vec<u8> {
    let mixed = number.wrapping_mul(2_654_435_761) >> 8;
    let path = format!("/local/domain/{}/key{}", 16 + mixed % 3, mixed / 3 % 7);
    let (operation, payload) = match mixed / 64 % 8 {
        0 => (Operation::MakeDirectory, format!("{path}/below\0")),
        1 => (Operation::Remove, format!("{path}\0")),
        2 => (Operation::SetPermissions, format!("{path}\0n0\0r{}\0", 16 + mixed % 2)),
        3 => (Operation::Watch, format!("{path}\0token{}\0", mixed % 5)),
        _ => (Operation::Write, format!("{path}\0value {number}")),
    };
    let len = payload.len() as u32;
    let header = Header { operation, request: number, transaction: 0, len };
    [&header.emit()[..], payload.as_bytes()].concat()
}

#[test]
fn the_store_fits_behind_replication() {
    let mut cluster = Cluster::new();
    let mut lone = Store::new();
    cluster.settle();
    cluster.elect(0);
    for number in 1..=REQUESTS {
        let connection = number % u32::from(CLIENTS);
        let (sequence, message) = (u64::from(number), message(number));
        let expected = lone.execute(connection, sequence, &message);
        assert_eq!(cluster.ask(connection, sequence, &message), expected, "request {number}");
        if number % 50 == 0 {
            // The leader dies after its answer; the next one is asked the same again.
            let (former, lost) = (cluster.leader, number % 100 == 0);
            cluster.restart(former, lost);
            cluster.settle();
            cluster.elect((former + 1) % 3);
            assert_eq!(cluster.ask(connection, sequence, &message), expected, "once more");
            cluster.pass(300);
        }
    }
    cluster.pass(300);
    for replica in &cluster.replicas {
        assert_eq!(replica.store.digest(), lone.digest());
        assert!(replica.store.history == lone.history, "another history");
        assert!(replica.node.status().voter);
    }
    assert!(lone.state.tree().digest() != Store::new().digest());
}
