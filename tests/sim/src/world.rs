//! The world of one run: replicas, clients, orchestrator and network on one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use raft::{Birth, MIN_STORAGE, Node, Settings, StateMachine, Status};

use crate::client::Client;
use crate::disk::{Disk, Fuse};
use crate::kv::{Answer, Kv};
use crate::net::Net;
use crate::oracle::{Oracles, Violation};
use crate::orchestrator::Orchestrator;
use crate::profile::Profile;
use crate::random::Random;
use crate::trace::Trace;

/// Replicas in the cluster.
pub const REPLICAS: u8 = 3;

/// Bytes of each replica's storage: as little as allowed, so that logs are cut often.
const STORAGE: usize = MIN_STORAGE;

/// Longest time from the healing to the end, in nanoseconds. Many times what the longest interval
/// of repetition, a restart and a membership change need together.
const HEALED_NS: u64 = 20_000_000_000;

/// Most steps of one run: many times what the longest one takes.
const MAX_TICKS: u64 = 20_000_000;

/// Time without anything to do after which the cluster must be silent.
const QUIET_NS: u64 = 2_000_000_000;

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Step {
    /// A message arrives at a replica.
    Deliver { to: u8, bytes: Vec<u8> },
    /// A replica's deadline may have come.
    Wake { replica: u8 },
    /// A client makes its next request.
    Ask { client: usize },
    /// The relay has told a replica of waiting requests.
    Serve { replica: u8, life: u32 },
    /// A leader hands out what it read a moment ago.
    Answer { replica: u8, life: u32, client: usize, sequence: u64, answer: Answer },
    /// The orchestrator looks around.
    Look,
    /// A crashed replica starts again.
    Restart { replica: u8 },
    /// The orchestrator's word to campaign arrives.
    Campaign { replica: u8, life: u32, seen_term: u64 },
    /// A paused replica goes on.
    Resume { replica: u8, life: u32 },
    /// The next fault.
    Fault,
    /// Cut links are joined.
    Join,
    /// A replica checks its storage and state.
    Scrub { replica: u8 },
    /// Faults end.
    Heal,
}

/// One replica: what lives (the node) and what outlives it (storage, state).
pub struct Replica {
    /// Its number, from 1.
    pub number: u8,
    /// Its life, which is also its boot epoch.
    pub life: u32,
    /// Where the fuse is that kills it between two stores.
    pub fuse: Rc<Fuse>,
    /// Its storage.
    pub disk: Disk,
    /// Its state machine.
    pub kv: Kv,
    /// The node, while it lives.
    pub node: Option<Node<Disk>>,
    /// Whether it gets no CPU.
    pub paused: bool,
    /// What would have happened to it meanwhile.
    pub missed: Vec<Step>,
    /// Its storage must be formatted when it comes back.
    pub lost: bool,
    /// Requests proposed in this leadership: connection to sequence.
    pub proposed: BTreeMap<u32, u64>,
}

/// Everything.
pub struct World {
    /// Time since the start in nanoseconds.
    pub now: u64,
    /// Steps taken.
    pub tick: u64,
    /// What kind of world it is.
    pub profile: Profile,
    /// Chance.
    pub random: Random,
    /// The replicas, by number less one.
    pub replicas: Vec<Replica>,
    /// The clients, by connection less [`crate::client::FIRST_CONNECTION`].
    pub clients: Vec<Client>,
    /// The network.
    pub net: Net,
    /// The orchestrator.
    pub orchestrator: Orchestrator,
    /// The judges.
    pub oracles: Oracles,
    /// What has happened.
    pub trace: Trace,
    /// The replica whose storage or state may be damaged, or that is being made anew.
    pub suspect: Option<u8>,
    /// Whether faults have ended.
    pub healed: bool,
    /// Storages lost and replicas restored from snapshots.
    pub losses: (u64, u64),
    queue: BTreeMap<(u64, u64), Step>,
    scheduled: u64,
    wakes: BTreeSet<(u8, u64)>,
    messages: u64,
}

impl World {
    /// The world of `seed`.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let profile = Profile::draw(&mut random);
        let clients = (0..profile.clients).map(Client::new).collect();
        let mut world = Self {
            now: 0,
            tick: 0,
            replicas: Vec::new(),
            clients,
            net: Net::default(),
            orchestrator: Orchestrator::default(),
            oracles: Oracles::new(),
            trace,
            suspect: None,
            healed: false,
            losses: (0, 0),
            queue: BTreeMap::new(),
            scheduled: 0,
            wakes: BTreeSet::new(),
            messages: 0,
            random,
            profile,
        };
        for number in 1..=REPLICAS {
            let replica = world.born(number);
            world.replicas.push(replica);
        }
        for client in 0..world.clients.len() {
            world.after(world.profile.think_ns, Step::Ask { client });
        }
        world.after(1, Step::Look);
        world.after(world.profile.fault_ns, Step::Fault);
        world.after(world.profile.chaos_ns, Step::Heal);
        world
    }

    fn born(&mut self, number: u8) -> Replica {
        let fuse = Fuse::new();
        let disk = Disk::new(STORAGE, fuse.clone());
        let settings = self.settings(number, 1);
        let node = Node::create(disk.clone(), settings, Birth::Founder).expect("a first life");
        Replica {
            number,
            life: 1,
            kv: Kv::new(fuse.clone(), self.profile.chunk),
            fuse,
            disk,
            node: Some(node),
            paused: false,
            missed: Vec::new(),
            lost: false,
            proposed: BTreeMap::new(),
        }
    }

    /// What replica `number` is told about itself in its life `life`.
    pub fn settings(&self, number: u8, life: u32) -> Settings {
        let mut settings = Settings::fabric(number, life);
        if self.profile.timers {
            let scale = self.profile.delay_ns.max(200_000);
            settings.elections = raft::Elections::Timed {
                min_ns: scale * 8,
                max_ns: scale * 20,
                heartbeat_ns: scale * 2,
                seed: u64::from(number) * 7919 + u64::from(life),
            };
        }
        settings
    }

    /// Lets `step` happen up to `delay_ns` from now, not at once.
    pub fn after(&mut self, delay_ns: u64, step: Step) {
        let at = self.now + self.random.range(delay_ns / 2, delay_ns + 1).max(1);
        self.at(at, step);
    }

    /// Lets `step` happen at `at`.
    pub fn at(&mut self, at: u64, step: Step) {
        self.scheduled += 1;
        self.queue.insert((at, self.scheduled), step);
    }

    /// A replica.
    pub fn replica(&mut self, number: u8) -> &mut Replica {
        &mut self.replicas[usize::from(number) - 1]
    }

    /// What a living replica publishes.
    pub fn status(&self, number: u8) -> Option<Status> {
        self.replicas[usize::from(number) - 1].node.as_ref().map(Node::status)
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// What an oracle objects to, or that the run does not end well.
    pub fn run(&mut self, at_tick: impl Fn(u64)) -> Result<(), Violation> {
        let mut healed_at = None;
        let mut rest_since = None;
        while let Some(((at, _), step)) = self.queue.pop_first() {
            self.now = self.now.max(at);
            self.tick += 1;
            at_tick(self.tick);
            if self.tick > MAX_TICKS {
                return Err(Violation::new("liveness", "no end in sight".into()));
            }
            self.take(step)?;
            if !self.healed {
                continue;
            }
            let healed_at = *healed_at.get_or_insert(self.now);
            if !self.converged() {
                rest_since = None;
                if self.now > healed_at + HEALED_NS {
                    return Err(Violation::new("liveness", self.why_not_converged()));
                }
                continue;
            }
            let since = *rest_since.get_or_insert_with(|| {
                self.messages = 0;
                self.now
            });
            // What was under way when the last request was answered may still arrive.
            if self.now < since + QUIET_NS / 2 {
                self.messages = 0;
            } else if self.now > since + QUIET_NS {
                return self.end();
            }
        }
        Err(Violation::new("liveness", "nothing is left to happen".into()))
    }

    fn end(&mut self) -> Result<(), Violation> {
        let deadline = self.replicas.iter().filter_map(|r| r.node.as_ref()?.poll_deadline()).min();
        if !self.profile.timers && (self.messages != 0 || deadline.is_some()) {
            let text = format!("{} messages at rest, deadline {deadline:?}", self.messages);
            return Err(Violation::new("quiet", text));
        }
        let sessions = |connection| self.replicas[0].kv.sequence(connection);
        self.oracles.finish(&self.clients, sessions)
    }

    fn take(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Deliver { to, bytes } => self.deliver(to, bytes)?,
            Step::Wake { replica } => {
                let now = self.now;
                self.wakes.remove(&(replica, now));
                if self.runs(replica, Step::Wake { replica })
                    && let Some(node) = &mut self.replica(replica).node
                    && node.poll_deadline().is_some_and(|at| at <= now)
                {
                    node.handle_time(now);
                    self.pump(replica)?;
                }
            }
            Step::Ask { client } => self.ask(client),
            Step::Serve { replica, life } => {
                if self.runs(replica, Step::Serve { replica, life })
                    && self.replica(replica).life == life
                {
                    self.serve(replica)?;
                }
            }
            Step::Answer { replica, life, client, sequence, answer } => {
                if self.runs(replica, step) && self.replica(replica).life == life {
                    self.answer(replica, client, sequence, answer)?;
                }
            }
            Step::Look => {
                self.look()?;
                self.after(500_000, Step::Look);
            }
            Step::Restart { replica } => self.restart(replica)?,
            Step::Campaign { replica, life, seen_term } => {
                if self.runs(replica, step) && self.replica(replica).life == life {
                    let now = self.now;
                    if let Some(node) = &mut self.replica(replica).node {
                        // A refusal shows in the status; the orchestrator chooses again.
                        let _ = node.campaign(now, seen_term);
                        self.pump(replica)?;
                    }
                }
            }
            Step::Resume { replica, life } => self.resume(replica, life),
            Step::Fault => self.fault()?,
            Step::Join => self.net.heal(),
            Step::Scrub { replica } => self.scrub(replica)?,
            Step::Heal => self.heal()?,
        }
        Ok(())
    }

    /// Whether the replica has CPU; if it is paused, `step` waits for it.
    fn runs(&mut self, number: u8, step: Step) -> bool {
        let replica = self.replica(number);
        if replica.paused {
            // A paused domain's rings are bounded; what does not fit is lost.
            if replica.missed.len() < 64 {
                replica.missed.push(step);
            }
            return false;
        }
        replica.node.is_some()
    }

    fn deliver(&mut self, to: u8, bytes: Vec<u8>) -> Result<(), Violation> {
        let now = self.now;
        if !self.runs(to, Step::Deliver { to, bytes: bytes.clone() }) {
            return Ok(());
        }
        let Replica { node, kv, .. } = self.replica(to);
        let Some(node) = node else { return Ok(()) };
        let outcome = node.handle_message(now, &bytes, kv);
        self.trace.delivered(now, to, &bytes, outcome.err());
        self.pump(to)
    }

    /// Lets a replica finish what it was given: apply, report, send. Then it is judged.
    pub fn pump(&mut self, number: u8) -> Result<(), Violation> {
        let now = self.now;
        let mut replies = Vec::new();
        let mut events = Vec::new();
        let mut sent = Vec::new();
        let relay_epoch = self.orchestrator.relay_epoch;
        let replica = &mut self.replicas[usize::from(number) - 1];
        let Some(node) = &mut replica.node else { return Ok(()) };
        while let Some(applied) = node.work(now, &mut replica.kv) {
            if replica.kv.damaged() || replica.fuse.blown() {
                break;
            }
            self.oracles.applied(number, &applied)?;
            if node.may_reply(relay_epoch) {
                replies.push((applied.connection, applied.sequence, applied.reply));
            }
        }
        if replica.kv.damaged() {
            node.abandon_machine(now);
        }
        events.extend(std::iter::from_fn(|| node.poll_event()));
        let mut out = Vec::new();
        while let Some(to) = node.poll_message(now, &mut out) {
            sent.push((to, out.clone()));
        }
        if replica.fuse.blown() {
            self.trace.note(now, format_args!("{number} dies between two stores"));
            return self.crash(number);
        }
        let suspect = self.suspect == Some(number);
        self.oracles.stepped(replica, &sent, &mut self.random, suspect)?;
        for (to, bytes) in sent {
            self.send(number, to, bytes);
        }
        for (connection, sequence, reply) in replies {
            self.reply(number, connection, sequence, reply)?;
        }
        for event in events {
            self.hear(number, event)?;
        }
        self.schedule_wake(number);
        Ok(())
    }

    fn schedule_wake(&mut self, number: u8) {
        let node = self.replica(number).node.as_ref();
        if let Some(at) = node.and_then(Node::poll_deadline) {
            let at = at.max(self.now + 1);
            if self.wakes.insert((number, at)) {
                self.at(at, Step::Wake { replica: number });
            }
        }
    }

    fn send(&mut self, from: u8, to: u8, bytes: Vec<u8>) {
        self.messages += 1;
        let fate = self.net.fate(&mut self.random, &self.profile, (from, to), bytes.len());
        for (delay, bit) in fate {
            let mut bytes = bytes.clone();
            if let Some(bit) = bit {
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            self.at(self.now + delay, Step::Deliver { to, bytes });
        }
    }

    /// Whether every replica lives, votes, has the same state, and no client waits.
    fn converged(&self) -> bool {
        let statuses: Vec<_> = (1..=REPLICAS).filter_map(|number| self.status(number)).collect();
        let [first, rest @ ..] = &statuses[..] else { return false };
        let same = |other: &Status| {
            (other.last, other.commit, other.applied) == (first.last, first.commit, first.applied)
        };
        let whole = |status: &Status| {
            status.voter && !status.restoring && status.commit == status.last.index
        };
        rest.len() == usize::from(REPLICAS) - 1
            && rest.iter().all(same)
            && statuses.iter().all(whole)
            && statuses.iter().all(|status| status.applied == status.commit)
            && self.replicas.iter().all(|replica| replica.kv.applied() == first.applied)
            && self.clients.iter().all(Client::finished)
    }

    fn why_not_converged(&self) -> String {
        let mut text = String::new();
        for number in 1..=REPLICAS {
            text += &format!("\n  {number}: {:?}", self.status(number));
        }
        for client in self.clients.iter().filter(|client| !client.finished()) {
            text += &format!("\n  waiting: {client:?}");
        }
        text
    }
}
