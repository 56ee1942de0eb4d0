//! Instructions per committed entry, to be counted under callgrind:
//!
//! ```text
//! cargo build --release -p raft --example cost
//! valgrind --tool=callgrind --toggle-collect='*leader_*' target/release/examples/cost
//! valgrind --tool=callgrind --toggle-collect='*follower_*' target/release/examples/cost
//! ```
//!
//! The total divided by the printed number of entries is the cost; the followers' total is for
//! two of them. An argument sets how many entries are proposed in one round (1 when absent).

use fabric::HeapMemory;
use raft::{Birth, Chunk, Node, Request, RestoreError, Settings, StateMachine};

const ENTRIES: u64 = 10_000;

/// Does nothing, so that the state machine costs nothing.
struct Nothing(u64);

impl StateMachine for Nothing {
    type Reply = ();

    fn apply(&mut self, index: u64, _: Request<'_>) {
        self.0 = index;
    }

    fn advance(&mut self, index: u64) {
        self.0 = index;
    }

    fn applied(&self) -> u64 {
        self.0
    }

    fn digest(&self) -> u64 {
        0
    }

    fn snapshot_open(&mut self, _: usize) {}

    fn snapshot_chunk(&mut self, _: usize, _: &mut [u8]) -> Chunk {
        Chunk { len: 0, last: true }
    }

    fn snapshot_close(&mut self, _: usize) {}

    fn restore_open(&mut self) {}

    fn restore_chunk(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore_close(&mut self, index: u64, _: u64) -> Result<(), RestoreError> {
        self.0 = index;
        Ok(())
    }
}

struct Unit {
    node: Node<HeapMemory>,
    machine: Nothing,
}

type Sent = Vec<(u8, Vec<u8>)>;

#[inline(never)]
fn leader_propose(unit: &mut Unit, batch: u64, out: &mut Vec<u8>, mut send: impl FnMut(u8, &[u8])) {
    for sequence in 0..batch {
        unit.node.propose(0, 16, sequence, &[7; 60]).expect("the leader leads");
    }
    while let Some(to) = unit.node.poll_message(0, out) {
        send(to, out);
    }
}

#[inline(never)]
fn leader_take(unit: &mut Unit, message: &[u8]) -> u64 {
    unit.node.handle_message(0, message, &mut unit.machine).expect("a good message");
    let mut applied = 0;
    while unit.node.work(0, &mut unit.machine).is_some() {
        applied += u64::from(unit.node.may_reply(1));
    }
    applied
}

#[inline(never)]
fn follower_take(unit: &mut Unit, message: &[u8], out: &mut Vec<u8>) -> Option<u8> {
    unit.node.handle_message(0, message, &mut unit.machine).expect("a good message");
    while unit.node.work(0, &mut unit.machine).is_some() {}
    unit.node.poll_message(0, out)
}

fn settle(units: &mut [Unit]) {
    loop {
        let mut sent: Sent = Vec::new();
        let mut out = Vec::new();
        for unit in units.iter_mut() {
            while unit.node.work(0, &mut unit.machine).is_some() {}
            while let Some(to) = unit.node.poll_message(0, &mut out) {
                sent.push((to, out.clone()));
            }
        }
        if sent.is_empty() {
            return;
        }
        for (to, bytes) in sent {
            let unit = &mut units[usize::from(to) - 1];
            // Greetings cross on the way; those for an unknown life are refused.
            let _ = unit.node.handle_message(0, &bytes, &mut unit.machine);
        }
    }
}

fn main() {
    let batch = std::env::args().nth(1).map_or(1, |text| text.parse().expect("a number"));
    let unit = |replica| {
        let memory = HeapMemory::new(256 * 1024);
        let node = Node::create(memory, Settings::fabric(replica, 1), Birth::Founder);
        Unit { node: node.expect("the first life"), machine: Nothing(0) }
    };
    let mut units: Vec<Unit> = (1..=3).map(unit).collect();
    settle(&mut units);
    units[0].node.campaign(0, 0).expect("a voter");
    settle(&mut units);
    assert!(units[0].node.publish(1));
    let mut out = Vec::new();
    let mut sent: Sent = Vec::new();
    let mut applied = 0;
    for _ in 0..ENTRIES / batch {
        leader_propose(&mut units[0], batch, &mut out, |to, bytes| sent.push((to, bytes.to_vec())));
        for (to, bytes) in sent.drain(..) {
            if follower_take(&mut units[usize::from(to) - 1], &bytes, &mut out).is_some() {
                applied += leader_take(&mut units[0], &out);
            }
        }
    }
    println!("{applied} entries committed");
}
