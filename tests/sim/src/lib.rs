//! A deterministic simulator of a replicated service: three replicas of `raft`, clients, a model
//! of the orchestrator and a bad network in virtual time. One seed is one run: faults for a while,
//! then none, and by then everything must have come right.
//!
//! What is judged: docs/ORACLES.md.
#![forbid(unsafe_code)]

mod client;
mod disk;
mod fault;
mod kv;
pub mod mutants;
mod net;
mod oracle;
mod orchestrator;
mod profile;
mod random;
pub mod trace;
mod world;

use std::cell::Cell;
use std::fmt;

pub use oracle::Violation;
use trace::Trace;
use world::World;

thread_local! {
    static RUNNING: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The run.
    pub seed: u64,
    /// How many steps it took.
    pub tick: u64,
    /// Virtual time in nanoseconds.
    pub now: u64,
    /// What was seen.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { oracle, text } = &self.violation;
        let (seed, tick, us) = (self.seed, self.tick, self.now / 1000);
        writeln!(f, "seed {seed}, tick {tick}, {us} us: {oracle}: {text}")?;
        write!(f, "see it happen: sim --seed {seed} --trace")
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps taken.
    pub ticks: u64,
    /// Requests answered.
    pub answered: u64,
    /// Lives of all replicas together.
    pub lives: u64,
    /// Leaders published.
    pub leaders: u64,
    /// Storages lost.
    pub lost: u64,
    /// Replicas restored from a snapshot.
    pub restored: u64,
}

/// Runs one seed.
///
/// # Errors
/// What an oracle objected to.
pub fn run(seed: u64, trace: Trace) -> Result<Summary, Failure> {
    let mut world = World::new(seed, trace);
    if trace == Trace::Print {
        println!("{:#?}", world.profile);
    }
    let result = world.run(|tick| RUNNING.set(Some((seed, tick))));
    RUNNING.set(None);
    let (tick, now) = (world.tick, world.now);
    result.map_err(|violation| Failure { seed, tick, now, violation })?;
    Ok(Summary {
        ticks: world.tick,
        answered: world.clients.iter().map(|client| client.sequence).sum(),
        lives: world.replicas.iter().map(|replica| u64::from(replica.life)).sum(),
        leaders: world.orchestrator.relay_epoch,
        lost: world.losses.0,
        restored: world.losses.1,
    })
}

impl Summary {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.ticks += other.ticks;
        self.answered += other.answered;
        self.lives += other.lives;
        self.leaders += other.leaders;
        self.lost += other.lost;
        self.restored += other.restored;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ticks, answered, lives, leaders, lost, restored } = self;
        write!(
            f,
            "{ticks} steps, {answered} requests answered, {lives} lives, {leaders} leaders, "
        )?;
        write!(f, "{lost} storages lost, {restored} states restored")
    }
}

/// The seed and tick that this thread is at, for whoever reports a panic.
pub fn running() -> Option<(u64, u64)> {
    RUNNING.get()
}
