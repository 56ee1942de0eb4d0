//! Clients: one connection each, one request at a time, repeated by the cluster, never by them.

use crate::kv::{Answer, Op};
use crate::oracle::Violation;
use crate::world::{Step, World};

/// Connection of the first client.
pub const FIRST_CONNECTION: u32 = 16;

/// Requests that each client makes after the faults have ended.
const AFTER_HEALING: u32 = 6;

/// Requests on one register, before the clients turn to the next: keeps histories short enough
/// to be searched for a linear order.
const REQUESTS_PER_KEY: u64 = 24;

/// First key of the clients' own counters.
const COUNTERS: u16 = 0x8000;

/// A request that waits in its connection's area, which outlives every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Sequence on the connection.
    pub sequence: u64,
    /// What is asked.
    pub op: Op,
    /// Bytes of padding.
    pub pad: usize,
    /// When it was asked.
    pub since: u64,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its connection.
    pub connection: u32,
    /// Sequence of the last request.
    pub sequence: u64,
    /// The request that waits for its answer.
    pub waiting: Option<Waiting>,
    /// Additions to its own counter that were answered.
    pub added: u64,
    /// Sequence of the last request with an entry that was answered.
    pub acknowledged: u64,
    left: Option<u32>,
}

impl Client {
    /// The client with number `number`, from 0.
    pub fn new(number: u32) -> Self {
        let connection = FIRST_CONNECTION + number;
        Self { connection, sequence: 0, waiting: None, added: 0, acknowledged: 0, left: None }
    }

    /// Whether it has nothing more to ask.
    pub fn finished(&self) -> bool {
        self.waiting.is_none() && self.left == Some(0)
    }

    /// Faults have ended.
    pub fn heal(&mut self) {
        self.left = Some(AFTER_HEALING);
    }
}

impl World {
    /// A client makes its next request.
    pub fn ask(&mut self, number: usize) {
        let key = (self.oracles.history.len() / REQUESTS_PER_KEY) as u16;
        let reads = self.profile.reads;
        let client = &mut self.clients[number];
        if client.waiting.is_some() || client.left == Some(0) {
            return;
        }
        client.left = client.left.map(|left| left - 1);
        client.sequence += 1;
        let (connection, sequence) = (client.connection, client.sequence);
        let op = if self.random.chance(reads) {
            Op::Read(key)
        } else if self.random.chance(500) {
            // Every value is written once, so that a reader's source is known.
            Op::Write(key, u64::from(connection) << 32 | sequence)
        } else {
            Op::Add(COUNTERS + connection as u16)
        };
        let pad = self.random.range(0, self.profile.pad) as usize;
        client.waiting = Some(Waiting { sequence, op, pad, since: self.now });
        self.oracles.history.asked(connection, op);
        self.trace.note(self.now, format_args!("client {connection} asks #{sequence} {op:?}"));
        self.kick(2_000);
    }

    /// The relay tells the published leader that requests wait.
    pub fn kick(&mut self, delay_ns: u64) {
        if let Some((replica, life)) = self.orchestrator.target {
            self.after(delay_ns, Step::Serve { replica, life });
        }
    }

    /// A replica looks at every connection's area: reads what it may, proposes the rest.
    pub fn serve(&mut self, number: u8) -> Result<(), Violation> {
        let (now, relay_epoch) = (self.now, self.orchestrator.relay_epoch);
        let mut reads = Vec::new();
        let mut full = false;
        for (client, waiting) in self.clients.iter().enumerate() {
            let Some(Waiting { sequence, op, pad, .. }) = waiting.waiting else { continue };
            let replica = &mut self.replicas[usize::from(number) - 1];
            let Some(node) = &mut replica.node else { return Ok(()) };
            if !node.may_reply(relay_epoch) {
                return Ok(());
            }
            self.oracles.serves(number, self.orchestrator.target)?;
            if let Op::Read(key) = op {
                reads.push((client, sequence, replica.kv.read(key)));
                continue;
            }
            let connection = waiting.connection;
            if replica.proposed.get(&connection) == Some(&sequence) {
                continue;
            }
            match node.propose(now, connection, sequence, &op.encode(pad)) {
                Ok(_) => drop(replica.proposed.insert(connection, sequence)),
                Err(_) => full = true,
            }
        }
        let life = self.replica(number).life;
        for (client, sequence, answer) in reads {
            let step = Step::Answer { replica: number, life, client, sequence, answer };
            // Reading and handing out are two things; the leader asks for its right at both.
            let delay = if self.random.chance(200) { 2_000_000 } else { 2_000 };
            self.after(delay, step);
        }
        if full {
            self.after(200_000, Step::Serve { replica: number, life });
        }
        self.pump(number)
    }

    /// A leader hands out what it read.
    pub fn answer(
        &mut self,
        number: u8,
        client: usize,
        sequence: u64,
        answer: Answer,
    ) -> Result<(), Violation> {
        let relay_epoch = self.orchestrator.relay_epoch;
        let node = self.replica(number).node.as_ref();
        if node.is_some_and(|node| node.may_reply(relay_epoch)) {
            self.reply(number, self.clients[client].connection, sequence, answer)?;
        }
        Ok(())
    }

    /// An answer enters a connection's area.
    pub fn reply(
        &mut self,
        number: u8,
        connection: u32,
        sequence: u64,
        answer: Answer,
    ) -> Result<(), Violation> {
        self.oracles.serves(number, self.orchestrator.target)?;
        let client = &mut self.clients[(connection - FIRST_CONNECTION) as usize];
        let waiting = client.waiting.filter(|waiting| waiting.sequence == sequence);
        let (Some(waiting), Answer::Value(value)) = (waiting, answer) else { return Ok(()) };
        client.waiting = None;
        if !matches!(waiting.op, Op::Read(_)) {
            client.acknowledged = sequence;
        }
        if matches!(waiting.op, Op::Add(_)) {
            client.added += 1;
            if value != client.added {
                let text = format!(
                    "connection {connection} was told {value} after {} additions",
                    client.added
                );
                return Err(Violation::new("exactly once", text));
            }
        }
        self.oracles.history.answered(connection, value)?;
        self.trace.note(
            self.now,
            format_args!("client {connection} is answered #{sequence}: {value} by {number}"),
        );
        let client = (connection - FIRST_CONNECTION) as usize;
        self.after(self.profile.think_ns, Step::Ask { client });
        Ok(())
    }
}
