//! Three replicas of a small ledger, and a network that does what it is told.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use fabric::HeapMemory;
use raft::{
    Birth, Chunk, Event, MIN_STORAGE, Message, Node, OpenError, Request, RestoreError, Settings,
    StateMachine,
};

/// Remembers every request executed, and each connection's last sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub applied: u64,
    pub executed: Vec<(u32, u64, Vec<u8>)>,
    pub sequences: BTreeMap<u32, u64>,
    open: BTreeMap<usize, VecDeque<u8>>,
    restoring: Vec<u8>,
}

impl Ledger {
    fn execute(&mut self, connection: u32, sequence: u64, payload: &[u8]) -> usize {
        let last = self.sequences.entry(connection).or_default();
        if sequence > *last {
            *last = sequence;
            self.executed.push((connection, sequence, payload.to_vec()));
        }
        self.executed.len()
    }

    fn serialize(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (connection, sequence, payload) in &self.executed {
            bytes.extend(connection.to_le_bytes());
            bytes.extend(sequence.to_le_bytes());
            bytes.extend((payload.len() as u32).to_le_bytes());
            bytes.extend(payload);
        }
        bytes
    }
}

impl StateMachine for Ledger {
    type Reply = usize;

    fn apply(&mut self, index: u64, request: Request<'_>) -> usize {
        assert_eq!(index, self.applied + 1);
        self.applied = index;
        self.execute(request.connection, request.sequence, request.payload)
    }

    fn advance(&mut self, index: u64) {
        assert_eq!(index, self.applied + 1);
        self.applied = index;
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn digest(&self) -> u64 {
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        self.serialize().iter().fold(0xcbf2_9ce4_8422_2325, fold)
    }

    fn snapshot_open(&mut self, slot: usize) {
        self.open.insert(slot, self.serialize().into());
    }

    fn snapshot_chunk(&mut self, slot: usize, out: &mut [u8]) -> Chunk {
        let open = self.open.get_mut(&slot).unwrap();
        let len = open.len().min(out.len()).min(1000);
        for (to, from) in out.iter_mut().zip(open.drain(..len)) {
            *to = from;
        }
        Chunk { len, last: open.is_empty() }
    }

    fn snapshot_close(&mut self, slot: usize) {
        self.open.remove(&slot);
    }

    fn restore_open(&mut self) {
        self.restoring.clear();
    }

    fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.restoring.extend(bytes);
        Ok(())
    }

    fn restore_close(&mut self, index: u64, digest: u64) -> Result<(), RestoreError> {
        let bytes = std::mem::take(&mut self.restoring);
        let mut state = Self::default();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(16).ok_or(RestoreError)?;
            let connection = u32::from_le_bytes(head[..4].try_into().unwrap());
            let sequence = u64::from_le_bytes(head[4..12].try_into().unwrap());
            let len = u32::from_le_bytes(head[12..].try_into().unwrap()) as usize;
            let (payload, tail) = tail.split_at_checked(len).ok_or(RestoreError)?;
            state.execute(connection, sequence, payload);
            rest = tail;
        }
        state.applied = index;
        if state.digest() != digest {
            return Err(RestoreError);
        }
        *self = state;
        Ok(())
    }
}

pub struct Replica {
    pub memory: HeapMemory,
    pub machine: Ledger,
    pub node: Option<Node<HeapMemory>>,
    pub boot: u32,
}

pub struct Cluster {
    pub replicas: Vec<Replica>,
    pub queue: VecDeque<(u8, u8, Vec<u8>)>,
    pub cut: Vec<(u8, u8)>,
    pub now: u64,
    pub trace: Vec<String>,
    pub settings: fn(u8, u32) -> Settings,
}

impl Cluster {
    pub fn new() -> Self {
        Self::with(Settings::fabric)
    }

    pub fn with(settings: fn(u8, u32) -> Settings) -> Self {
        let replica = |number| {
            let memory = HeapMemory::new(MIN_STORAGE);
            let node = Node::create(memory.clone(), settings(number, 1), Birth::Founder).unwrap();
            Replica { memory, machine: Ledger::default(), node: Some(node), boot: 1 }
        };
        let replicas = (1..=3).map(replica).collect();
        let (queue, cut, trace) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { replicas, queue, cut, now: 0, trace, settings }
    }

    pub fn replica(&mut self, number: u8) -> &mut Replica {
        &mut self.replicas[usize::from(number) - 1]
    }

    pub fn node(&mut self, number: u8) -> &mut Node<HeapMemory> {
        self.replica(number).node.as_mut().unwrap()
    }

    /// Lets every replica work and collects what it sends and reports.
    pub fn work(&mut self) {
        let now = self.now;
        for number in 1..=3 {
            let replica = &mut self.replicas[usize::from(number) - 1];
            let Some(node) = replica.node.as_mut() else { continue };
            while let Some(applied) = node.work(now, &mut replica.machine) {
                let (connection, sequence) = (applied.connection, applied.sequence);
                let (index, reply) = (applied.index, applied.reply);
                self.trace
                    .push(format!("{number} applies {index}: {connection}#{sequence} -> {reply}"));
            }
            while let Some(event) = node.poll_event() {
                self.trace.push(format!("{number} {}", describe(&event)));
            }
            let mut out = Vec::new();
            while let Some(to) = node.poll_message(now, &mut out) {
                if !self.cut.contains(&(number, to)) {
                    self.queue.push_back((number, to, out.clone()));
                }
            }
        }
    }

    /// Delivers one message; false when none is on its way.
    pub fn step(&mut self) -> bool {
        self.work();
        let Some((from, to, bytes)) = self.queue.pop_front() else { return false };
        let now = self.now;
        let replica = &mut self.replicas[usize::from(to) - 1];
        let text =
            Message::decode(&bytes).map(|message| format!("{from}>{to} {}", short(&message)));
        let text = text.unwrap();
        if let Some(node) = replica.node.as_mut() {
            let outcome = node.handle_message(now, &bytes, &mut replica.machine);
            let refused = outcome.err().map_or(String::new(), |why| format!(" refused: {why:?}"));
            self.trace.push(format!("{text}{refused}"));
        }
        true
    }

    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Lets time pass, with every deadline on the way.
    pub fn pass(&mut self, nanoseconds: u64) {
        let end = self.now + nanoseconds;
        loop {
            self.settle();
            let nodes = self.replicas.iter().filter_map(|replica| replica.node.as_ref());
            let next = nodes.filter_map(Node::poll_deadline).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            for replica in &mut self.replicas {
                if let Some(node) = replica.node.as_mut() {
                    node.handle_time(self.now);
                }
            }
        }
        self.now = end;
    }

    pub fn crash(&mut self, number: u8) {
        self.replica(number).node = None;
        self.queue.retain(|(_, to, _)| *to != number);
    }

    pub fn open(&mut self, number: u8) -> Result<(), OpenError> {
        let settings = self.settings;
        let replica = self.replica(number);
        replica.boot += 1;
        let (boot, applied) = (replica.boot, replica.machine.applied);
        replica.node = Some(Node::open(replica.memory.clone(), settings(number, boot), applied)?);
        self.introduce(number);
        Ok(())
    }

    /// The replica's storage is gone: it comes back as a newcomer.
    pub fn rebuild(&mut self, number: u8) {
        let settings = self.settings;
        let replica = self.replica(number);
        replica.boot += 1;
        replica.machine = Ledger::default();
        let settings = settings(number, replica.boot);
        let node = Node::create(replica.memory.clone(), settings, Birth::Newcomer).unwrap();
        replica.node = Some(node);
        self.introduce(number);
    }

    fn introduce(&mut self, number: u8) {
        let boots: Vec<u32> = self.replicas.iter().map(|replica| replica.boot).collect();
        let now = self.now;
        for other in (1..=3).filter(|other| *other != number) {
            if let Some(node) = self.replica(other).node.as_mut() {
                node.set_peer(now, number, boots[usize::from(number) - 1], true);
            }
            self.node(number).set_peer(now, other, boots[usize::from(other) - 1], true);
        }
    }

    /// Elects `number` and publishes it.
    pub fn lead(&mut self, number: u8, relay_epoch: u64) {
        let now = self.now;
        let terms = self.replicas.iter().filter_map(|replica| replica.node.as_ref());
        let seen = terms.map(|node| node.status().term).max().unwrap();
        self.node(number).campaign(now, seen).unwrap();
        self.settle();
        assert!(self.node(number).publish(relay_epoch), "{number} did not win");
    }

    pub fn propose(&mut self, number: u8, connection: u32, sequence: u64, payload: &[u8]) {
        let now = self.now;
        self.node(number).propose(now, connection, sequence, payload).unwrap();
    }
}

pub fn describe(event: &Event) -> String {
    match event {
        Event::Won { term } => format!("won term {term}"),
        Event::Lost { term } => format!("lost term {term}"),
        Event::Restored { index } => format!("restored at {index}"),
        Event::Damaged(damage) => format!("damaged: {damage:?}"),
    }
}

pub fn short(message: &Message<'_>) -> String {
    let position = message.position;
    format!(
        "{:?} term {} at {}/{} commit {:#x} n{} f{} x{}",
        message.kind,
        message.term,
        position.term,
        position.index,
        message.commit,
        message.number,
        message.flags,
        message.count
    )
}
