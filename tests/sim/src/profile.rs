//! What kind of world a seed gives: how rough the network is, which faults come how often.

use crate::random::Random;

/// How the orchestrator stops a former leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It destroys its life, as the real one does.
    Reset,
    /// It only turns the relay; the former leader goes on until it asks. Shows that the epoch
    /// check alone suffices.
    RelayOnly,
}

/// Parameters of one run. Times in nanoseconds, chances per mille.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Whether elections also start by timers.
    pub timers: bool,
    /// How former leaders are stopped.
    pub fence: Fence,
    /// Whether the orchestrator tells replicas of each other's lives.
    pub domain_table: bool,
    /// Longest delay of a message.
    pub delay_ns: u64,
    /// Longest delay of the few messages that arrive when nobody expects them any more.
    pub late_ns: u64,
    /// Messages lost, doubled, and with a bit flipped.
    pub lost: u64,
    /// Messages doubled.
    pub doubled: u64,
    /// Messages with a bit flipped.
    pub flipped: u64,
    /// Campaigns for which two replicas are called at once.
    pub rivals: u64,
    /// Mean time between faults.
    pub fault_ns: u64,
    /// Whether bits flip in storage and state, so that replicas must be made anew.
    pub corruption: bool,
    /// How long the faults go on.
    pub chaos_ns: u64,
    /// Clients.
    pub clients: u32,
    /// Longest time a client waits before its next request.
    pub think_ns: u64,
    /// Most bytes of padding in a request.
    pub pad: u64,
    /// Bytes of a snapshot's piece.
    pub chunk: usize,
    /// Share of reads among requests.
    pub reads: u64,
}

impl Profile {
    /// Draws the parameters of a run.
    pub fn draw(random: &mut Random) -> Self {
        let rough = random.chance(500);
        let pick = |random: &mut Random, mild: u64, wild: u64| {
            if rough { random.range(0, wild + 1) } else { random.range(0, mild + 1) }
        };
        Self {
            timers: random.chance(350),
            fence: if random.chance(600) { Fence::Reset } else { Fence::RelayOnly },
            domain_table: random.chance(700),
            delay_ns: if rough { random.range(50_000, 3_000_000) } else { 20_000 },
            late_ns: if rough { random.range(1_000_000, 60_000_000) } else { 20_000 },
            lost: pick(random, 0, 150),
            doubled: pick(random, 0, 100),
            flipped: pick(random, 0, 20),
            rivals: if random.chance(300) { 600 } else { 0 },
            fault_ns: random.range(2_000_000, 40_000_000),
            corruption: random.chance(500),
            chaos_ns: random.range(50_000_000, 400_000_000),
            clients: random.range(1, 6) as u32,
            think_ns: random.range(10_000, 3_000_000),
            pad: if random.chance(500) { 40 } else { 1500 },
            chunk: random.range(24, 400) as usize,
            reads: random.range(100, 700),
        }
    }
}
