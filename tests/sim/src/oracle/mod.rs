//! The judges. They see what replicas show and say, not how they decide. docs/ORACLES.md lists
//! them with the bugs that each catches.

mod history;
mod log;

use std::collections::BTreeMap;

use raft::{
    Applied, FLAG_GRANTED, Ident, MAX_MESSAGE, Message, MessageKind, Node, Settings, StateMachine,
};

use crate::client::Client;
use crate::kv::{Answer, Op};
use crate::random::Random;
use crate::world::Replica;

pub use history::History;
use log::Logs;

/// What a judge objects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The row of docs/ORACLES.md.
    pub oracle: &'static str,
    /// What was seen.
    pub text: String,
}

impl Violation {
    /// An objection of `oracle`.
    pub fn new(oracle: &'static str, text: String) -> Self {
        Self { oracle, text }
    }
}

/// Most messages that one step of one replica may cause: each kind at most once per peer.
const MESSAGES_PER_STEP: usize = 20;

/// Most bytes of a replica's own buffers: three batches, two chunks, one record, places of records.
const FOOTPRINT: usize = 6 * MAX_MESSAGE + 32 * 1024;

/// All judges of one run.
#[derive(Debug)]
pub struct Oracles {
    /// Of reads and writes.
    pub history: History,
    logs: Logs,
    votes: BTreeMap<(u64, Ident), Ident>,
    digests: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, (u32, u64, Answer)>,
    sessions: BTreeMap<u32, (u64, Answer)>,
    counters: BTreeMap<u16, u64>,
}

impl Oracles {
    /// Before anything has happened.
    pub fn new() -> Self {
        Self {
            history: History::default(),
            logs: Logs::default(),
            votes: BTreeMap::new(),
            digests: BTreeMap::new(),
            applied: BTreeMap::new(),
            sessions: BTreeMap::new(),
            counters: BTreeMap::new(),
        }
    }

    /// Judges a replica after each of its steps, and what it is about to send.
    ///
    /// # Errors
    /// The first objection.
    pub fn stepped(
        &mut self,
        replica: &Replica,
        sent: &[(u8, Vec<u8>)],
        random: &mut Random,
        suspect: bool,
    ) -> Result<(), Violation> {
        let Some(node) = &replica.node else { return Ok(()) };
        self.logs.judge(replica.number, replica.life, node, suspect)?;
        self.judge_memory(replica, node, sent.len())?;
        self.judge_digest(replica, node)?;
        for (_, bytes) in sent {
            let message = Message::decode(bytes).map_err(|refusal| {
                Violation::new("memory bounded", format!("sends what nobody reads: {refusal:?}"))
            })?;
            if message.kind == MessageKind::VoteReply && message.flags & FLAG_GRANTED != 0 {
                self.judge_vote(&message)?;
            }
        }
        if !suspect && !sent.is_empty() && random.chance(120) {
            judge_promises(replica, node)?;
        }
        Ok(())
    }

    fn judge_vote(&mut self, message: &Message<'_>) -> Result<(), Violation> {
        let Some(candidate) = message.to else { return Ok(()) };
        let (voter, term) = (message.from, message.term);
        let first = *self.votes.entry((term, voter)).or_insert(candidate);
        if first != candidate {
            let text = format!("{voter:?} votes in term {term} for {first:?} and {candidate:?}");
            return Err(Violation::new("one vote", text));
        }
        Ok(())
    }

    fn judge_memory<M: fabric::SharedMemory>(
        &self,
        replica: &Replica,
        node: &Node<M>,
        sent: usize,
    ) -> Result<(), Violation> {
        let (used, capacity) = node.log_bytes();
        let (sessions, snapshots) = replica.kv.sizes();
        let bounds = [
            ("bytes of log", used, capacity),
            ("bytes of buffers", node.footprint(), FOOTPRINT),
            ("sessions", sessions, 8),
            ("snapshots", snapshots, node.snapshots()),
            ("messages in one step", sent, MESSAGES_PER_STEP),
        ];
        for (what, is, most) in bounds {
            if is > most {
                let text = format!("{}: {is} {what}, at most {most}", replica.number);
                return Err(Violation::new("memory bounded", text));
            }
        }
        Ok(())
    }

    fn judge_digest<M: fabric::SharedMemory>(
        &mut self,
        replica: &Replica,
        node: &Node<M>,
    ) -> Result<(), Violation> {
        let (applied, digest) = (replica.kv.applied(), replica.kv.digest());
        let status = node.status();
        if status.restoring || replica.kv.damaged() || status.applied != applied {
            return Ok(());
        }
        let first = *self.digests.entry(applied).or_insert(digest);
        if first != digest {
            let text = format!("{} has another state than the first at {applied}", replica.number);
            return Err(Violation::new("equal digests", text));
        }
        Ok(())
    }

    /// Judges an entry that a replica has applied, against the first replica that applied it and
    /// against a model that executes each request once.
    ///
    /// # Errors
    /// The first objection.
    pub fn applied(&mut self, number: u8, applied: &Applied<Answer>) -> Result<(), Violation> {
        let Applied { index, connection, sequence, reply } = *applied;
        let this = (connection, sequence, reply);
        if let Some(first) = self.applied.get(&index) {
            if *first != this {
                let text = format!("{number} applies {this:?} at {index}, the first {first:?}");
                return Err(Violation::new("committed never lost", text));
            }
            return Ok(());
        }
        self.applied.insert(index, this);
        let last = self.sessions.get(&connection).copied().unwrap_or((0, Answer::Value(0)));
        let expected = if sequence == last.0 {
            last.1
        } else if sequence < last.0 {
            Answer::Old
        } else {
            match self.history.op(connection, sequence) {
                Some(Op::Add(key)) => {
                    let counter = self.counters.entry(key).or_default();
                    *counter += 1;
                    Answer::Value(*counter)
                }
                Some(_) => Answer::Value(0),
                None => {
                    let text = format!("{number} applies {this:?}, which nobody asked");
                    return Err(Violation::new("damage is never served", text));
                }
            }
        };
        if sequence > last.0 {
            self.sessions.insert(connection, (sequence, reply));
        }
        if expected != reply {
            let text = format!("{number} applies {this:?} at {index}, expected {expected:?}");
            return Err(Violation::new("exactly once", text));
        }
        Ok(())
    }

    /// Judges that a replica serves.
    ///
    /// # Errors
    /// When it is not the published one.
    pub fn serves(&self, number: u8, target: Option<(u8, u32)>) -> Result<(), Violation> {
        if target.is_some_and(|(published, _)| published == number) {
            return Ok(());
        }
        Err(Violation::new("one server", format!("{number} serves, published is {target:?}")))
    }

    /// Judges the whole run.
    ///
    /// # Errors
    /// The first objection.
    pub fn finish(
        &self,
        clients: &[Client],
        sequence: impl Fn(u32) -> u64,
    ) -> Result<(), Violation> {
        for client in clients {
            let (connection, told) = (client.connection, client.acknowledged);
            if sequence(connection) < told {
                let text = format!("connection {connection} was told #{told}, which is forgotten");
                return Err(Violation::new("committed never lost", text));
            }
        }
        self.history.judge()
    }
}

/// Opens a copy of the storage as it is when messages leave: it must hold what they rest on.
fn judge_promises(replica: &Replica, node: &Node<crate::disk::Disk>) -> Result<(), Violation> {
    let settings = Settings::fabric(replica.number, replica.life + 1);
    let status = node.status();
    if status.damage.is_some() {
        return Ok(());
    }
    let broken = |text| Err(Violation::new("promises are durable", text));
    let opened = match Node::open(replica.disk.image(), settings, replica.kv.applied()) {
        Ok(opened) => opened,
        Err(why) => return broken(format!("{}'s storage is {why:?}", replica.number)),
    };
    let stored = opened.status();
    if (stored.term, stored.vote) != (status.term, status.vote) {
        return broken(format!("{} stores {stored:?} of {status:?}", replica.number));
    }
    let place = opened.entry(status.last.index).map(|(position, _)| position);
    if place.is_some_and(|place| place != status.last) || stored.last.index < status.last.index {
        return broken(format!("{} stores {stored:?} of {status:?}", replica.number));
    }
    Ok(())
}
