//! The replicas, what outlives them, and who brings them back.

use std::collections::BTreeMap;

use fabric::{HeapMemory, SharedMemory};
use raft::{Channel, MIN_HALF, MIN_STORAGE};
use replica::{Host, Places, Relay, Replica, Setup};
use store::persist::index_len;
use store::{AREA_LEN, Action, Config, Index, Progress, Ring, SLOT_LEN, Server};
use wire::{Header, Operation};

use crate::client::Client;
use crate::memory::{Budget, Mortal};

const TOOL: u16 = 5;
const GUESTS: std::ops::Range<u16> = 16..20;
const CONNECTIONS: usize = 8;
const SLOTS_LEN: usize = 512 * 1024;
const INDEX_LEN: usize = index_len(SLOTS_LEN / SLOT_LEN);
/// Messages taken, entries executed and requests served in one round at most.
const ROUND_MAX: u64 = 8 + 16 + 16;
/// Time between two rounds, in ns.
const ROUND_NS: u64 = 20_000;
/// Rounds within which everything must have come right.
const HEALED_ROUNDS: usize = 60_000;
/// Rounds in which replicas usually come to hold the same.
const QUIET_ROUNDS: usize = 4_000;
/// One in so many messages is lost while faults are injected.
const LOSS: u64 = 40;

type Engine = Server<Mortal, Mortal>;

/// What is done to the leader, or to any replica.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Its execution is dropped between two rounds; its memory stays.
    Microreset,
    /// It dies after so many stores; its memory is lost.
    Stores(u64),
    /// It dies, and its log is damaged.
    LostLog,
    /// Two die at once.
    Together,
}

/// One replica: what lives, and what outlives it.
struct Unit {
    number: u8,
    life: u32,
    budget: Budget,
    slots: HeapMemory,
    index: HeapMemory,
    areas: HeapMemory,
    log: HeapMemory,
    live: Option<Replica<Mortal, Mortal, Mortal>>,
    /// Its next life is told not to believe what is kept.
    is_distrusted: bool,
    /// Round in which it comes back.
    back_at: u64,
    rounds_served: u64,
}

pub struct Cluster {
    units: Vec<Unit>,
    /// Halves of the channels, by writer and reader.
    halves: BTreeMap<(u8, u8), HeapMemory>,
    clients: BTreeMap<u16, Client>,
    seed: u64,
    now_ns: u64,
    round: u64,
    /// Grows with each leader that is named.
    pub epoch: u64,
    leader: Option<u8>,
    /// Replicas that lost their log and came back.
    pub restored: u64,
    /// Replicas that came back by their index.
    pub indexed: u64,
    /// Whether one in so many messages is lost.
    pub loses_messages: bool,
    sent: u64,
}

/// The world outside of one replica, for one round.
struct Outside<'a> {
    number: u8,
    budget: &'a Budget,
    channels: Vec<(u8, Channel<Mortal, HeapMemory>)>,
    clients: &'a BTreeMap<u16, Client>,
    seed: &'a mut u64,
    loses_messages: bool,
    sent: &'a mut u64,
}

fn next(seed: &mut u64, bound: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 11) % bound
}

impl Outside<'_> {
    fn ring(&self, server: &Engine, client: u16) -> Option<Ring<Mortal>> {
        let domid = server.state().client(client)?.domid;
        let page = &self.clients.get(&domid)?.page;
        Some(Ring::Page(Mortal::new(page, self.budget)))
    }
}

impl Host<Mortal, Mortal> for Outside<'_> {
    fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        self.channels.iter_mut().any(|(_, channel)| channel.receive(into))
    }

    fn send(&mut self, to: u8, message: &[u8]) {
        let is_lost = self.loses_messages && next(self.seed, LOSS) == 0;
        *self.sent += 1;
        if !is_lost && let Some((_, channel)) = self.channels.iter_mut().find(|(p, _)| *p == to) {
            channel.send(message);
        }
    }

    fn serve(&mut self, server: &mut Engine, client: u16, now_ns: u64) -> Option<Progress> {
        let ring = self.ring(server, client)?;
        Some(server.serve(client, &ring, now_ns))
    }

    fn finish(
        &mut self,
        server: &mut Engine,
        client: u16,
        index: u64,
        now_ns: u64,
    ) -> Option<Progress> {
        let ring = self.ring(server, client)?;
        Some(server.finish(client, index, &ring, now_ns))
    }

    fn take_over(&mut self, server: &mut Engine) {
        let all: Vec<u16> = server.connections().map(|connection| connection.client).collect();
        for client in all {
            match self.ring(server, client) {
                Some(ring) => drop(server.attached(client, &ring)),
                None => server.attach_failed(client),
            }
        }
    }

    fn act(&mut self, server: &mut Engine, action: Action) {
        if let Action::Connect { client, .. } = action
            && server.is_leading()
        {
            let ring = self.ring(server, client).expect("the guest is there");
            server.attached(client, &ring);
        }
    }
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Self::with_replicas(3, seed)
    }

    pub fn with_replicas(replicas: u8, seed: u64) -> Self {
        let unit = |number| Unit {
            number,
            life: 0,
            budget: Budget::unlimited(),
            slots: HeapMemory::new(SLOTS_LEN),
            index: HeapMemory::new(INDEX_LEN),
            areas: HeapMemory::new(CONNECTIONS * AREA_LEN),
            log: HeapMemory::new(MIN_STORAGE),
            live: None,
            is_distrusted: false,
            back_at: 0,
            rounds_served: 0,
        };
        let numbers = 1..=replicas;
        let pairs = numbers.clone().flat_map(|a| numbers.clone().map(move |b| (a, b)));
        let halves = pairs.filter(|(a, b)| a != b).map(|pair| (pair, HeapMemory::new(MIN_HALF)));
        Self {
            units: numbers.clone().map(unit).collect(),
            halves: halves.collect(),
            clients: BTreeMap::from([(TOOL, Client::new(TOOL))]),
            seed: (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now_ns: 0,
            round: 0,
            epoch: 0,
            leader: None,
            restored: 0,
            indexed: 0,
            loses_messages: false,
            sent: 0,
        }
    }

    pub fn random(&mut self, bound: u64) -> u64 {
        next(&mut self.seed, bound)
    }

    /// Commits of the leader's store.
    pub fn committed(&self) -> u64 {
        self.units
            .iter()
            .filter_map(|unit| Some(unit.live.as_ref()?.server().state().committed()))
            .max()
            .unwrap_or(0)
    }

    /// Founds the cluster; the toolstack prepares the store and introduces all guests.
    pub fn start(&mut self) {
        // A ring is emptied when it is attached for the first time.
        for _ in 0..100 {
            self.turn();
        }
        for domid in GUESTS {
            for base in ["work", "count"] {
                self.request(Operation::Write, &format!("/{base}/{domid}\0{}", 0));
                let entries = format!("/{base}/{domid}\0n{domid}\0");
                self.request(Operation::SetPermissions, &entries);
            }
            self.clients.insert(domid, Client::new(domid));
            self.request(Operation::Introduce, &format!("{domid}\x001\x001\0"));
        }
        self.loses_messages = true;
    }

    fn request(&mut self, operation: Operation, payload: &str) {
        self.clients.get_mut(&TOOL).unwrap().ask(operation, 0, payload.as_bytes());
        for _ in 0..5_000 {
            self.turn();
            let client = self.clients.get_mut(&TOOL).unwrap();
            if let Some((_, reply)) = client.exchange(usize::MAX) {
                assert_eq!(reply, b"OK\0", "{operation:?} {payload}");
                return;
            }
        }
        let text: Vec<_> =
            self.units.iter().map(|u| u.live.as_ref().map(Replica::status)).collect();
        panic!("no answer to {operation:?} {payload}: {:?} {text:#?}", self.leader);
    }

    /// So many rounds of everybody.
    pub fn run(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.turn();
            let limit = 1 + self.random(200) as usize;
            for domid in GUESTS {
                self.clients.get_mut(&domid).unwrap().go_on(limit);
            }
        }
    }

    fn turn(&mut self) {
        self.round += 1;
        self.now_ns += ROUND_NS;
        self.orchestrate();
        for place in 0..self.units.len() {
            self.drive(place);
        }
    }

    /// Brings dead replicas back, and names a leader when there is none.
    fn orchestrate(&mut self) {
        for place in 0..self.units.len() {
            if self.units[place].live.is_none() && self.units[place].back_at <= self.round {
                self.bring_back(place);
            }
        }
        let alive = self.units.iter().filter(|unit| unit.live.is_some()).count();
        if alive <= self.units.len() / 2 {
            return;
        }
        let rank = |unit: &Unit| unit.live.as_ref().map_or(0, Replica::rank);
        let named = self.leader.map(|number| &self.units[usize::from(number) - 1]);
        let is_serving = named.is_some_and(|unit| unit.live.as_ref().is_some_and(Replica::serves));
        let best = self.units.iter().max_by_key(|unit| rank(unit)).expect("there are some");
        if is_serving || rank(best) <= named.map_or(0, rank) {
            return;
        }
        // One that was named and has not won could still win: it is stopped, too.
        let (best, named) = (best.number, self.leader);
        if let Some(number) = named {
            self.microreset(usize::from(number) - 1);
        }
        self.leader = Some(best);
        self.epoch += 1;
    }

    fn microreset(&mut self, place: usize) {
        let (unit, now_ns) = (&mut self.units[place], self.now_ns);
        let Some(live) = &mut unit.live else { return };
        assert!(live.is_whole());
        unit.life += 1;
        live.resume(unit.life, now_ns);
        if self.leader == Some(unit.number) {
            self.leader = None;
        }
    }

    fn bring_back(&mut self, place: usize) {
        let numbers: Vec<u8> = self.units.iter().map(|unit| unit.number).collect();
        if self.random(2) == 0 {
            // A microreset would have left the index; this life has other memory.
            self.units[place].index = HeapMemory::new(INDEX_LEN);
        }
        let others = |budget: &Budget, units: &[Unit]| {
            let others = units.iter().enumerate().filter(|(other, _)| *other != place);
            others.map(|(_, unit)| Mortal::new(&unit.areas, budget)).collect()
        };
        let unit = &mut self.units[place];
        unit.life += 1;
        unit.budget = Budget::unlimited();
        let budget = unit.budget.clone();
        let setup = Setup {
            replica: unit.number,
            replicas: numbers.len() as u8,
            epoch: unit.life,
            is_distrusted: core::mem::take(&mut unit.is_distrusted),
            config: Config::new(77, &[TOOL], CONNECTIONS),
            services: vec![TOOL],
        };
        let places = Places {
            slots: Mortal::new(&unit.slots, &budget),
            index: Index::Kept(Mortal::new(&unit.index, &budget)),
            areas: Mortal::new(&unit.areas, &budget),
            log: Mortal::new(&unit.log, &budget),
            others: others(&budget, &self.units),
        };
        let (replica, found) = Replica::start(setup, places, self.now_ns);
        self.restored += u64::from(found.is_newcomer);
        self.indexed += u64::from(found.store.is_indexed);
        self.units[place].live = Some(replica);
    }

    fn drive(&mut self, place: usize) {
        let unit = &mut self.units[place];
        let Some(live) = &mut unit.live else { return };
        let number = unit.number;
        let relay = Relay { epoch: self.epoch, is_ours: self.leader == Some(number) };
        for client in 0..CONNECTIONS as u16 {
            live.server_mut().kick(client);
        }
        let peers = self.halves.keys().filter(|(from, _)| *from == number).map(|(_, to)| *to);
        let channel = |to: u8| {
            let own = Mortal::new(&self.halves[&(number, to)], &unit.budget);
            (to, Channel::new(own, self.halves[&(to, number)].clone()))
        };
        let mut outside = Outside {
            number,
            budget: &unit.budget,
            channels: peers.map(channel).collect(),
            clients: &self.clients,
            seed: &mut self.seed,
            loses_messages: self.loses_messages,
            sent: &mut self.sent,
        };
        let round = live.round(self.now_ns, relay, &mut outside);
        assert_eq!(outside.number, number);
        assert!(round.completed <= ROUND_MAX, "{} in one round look like a hang", round.completed);
        // What a dead one makes of its lost stores is nothing to anybody.
        let is_idle = !round.more && !unit.budget.is_exhausted();
        let idle_fault = if is_idle { live.idle(self.now_ns).fault } else { None };
        if unit.budget.is_exhausted() {
            let back_at = self.round + 1 + self.random(200);
            self.kill(place, back_at);
            return;
        }
        let found = (round.fault, idle_fault, round.damage);
        assert_eq!(found, (None, None, None), "replica {number}");
        unit.rounds_served += u64::from(live.serves());
    }

    /// The replica's life ends; the orchestrator has fenced it.
    fn kill(&mut self, place: usize, back_at: u64) {
        let unit = &mut self.units[place];
        unit.live = None;
        unit.back_at = back_at;
        if self.leader == Some(unit.number) {
            self.leader = None;
        }
    }

    /// Does something to the leader, or now and then to another replica.
    pub fn inject(&mut self, fault: Fault) {
        let count = self.units.len() as u64;
        let any = self.random(count) as usize;
        let leader = self.leader.map_or(any, |number| usize::from(number) - 1);
        let place = if self.random(3) == 0 { any } else { leader };
        let back_at = self.round + 1 + self.random(200);
        match fault {
            Fault::Stores(stores) => self.units[place].budget.limit(1 + stores),
            Fault::Together => {
                let other = (place + 1) % self.units.len();
                self.kill(place, back_at);
                self.kill(other, back_at + 3);
            }
            Fault::LostLog => {
                // One at a time: two lost logs are a lost majority.
                if self.has_converged() {
                    self.units[place].log.fill(0, 1024, 0xff);
                    self.kill(place, back_at);
                }
            }
            Fault::Microreset => self.microreset(place),
        }
    }

    /// Lets the clients pause until all replicas hold the same; false if that takes too long.
    pub fn has_converged(&mut self) -> bool {
        for _ in 0..QUIET_ROUNDS {
            self.clients.values_mut().for_each(|client| client.is_stopped = true);
            self.run(1);
            if self.converged() {
                break;
            }
        }
        self.clients.values_mut().for_each(|client| client.is_stopped = false);
        self.converged()
    }

    fn converged(&self) -> bool {
        let statuses: Option<Vec<_>> =
            self.units.iter().map(|unit| Some(unit.live.as_ref()?.status())).collect();
        let Some(statuses) = statuses else { return false };
        let first = statuses[0];
        statuses.iter().all(|status| {
            let same = (status.last, status.applied) == (first.last, first.last.index);
            same && status.voter && !status.restoring
        })
    }

    /// Lets a follower execute what nobody has decided; returns its place.
    pub fn diverge(&mut self) -> usize {
        /// What the log says of a request: its kind, before the message.
        const REQUEST: u8 = 1;
        let body = b"/odd\0one";
        let (operation, len) = (Operation::Write, body.len() as u32);
        let header = Header { operation, request: 0, transaction: 0, len };
        let entry = [&[REQUEST], &header.emit()[..], body].concat();
        let is_follower = |unit: &Unit| Some(unit.number) != self.leader;
        let place = self.units.iter().position(is_follower).unwrap();
        let server = self.units[place].live.as_mut().unwrap().server_mut();
        server.apply_entry(server.applied(), 0, u32::MAX, &entry);
        place
    }

    /// The leader dies right after its round, for so many rounds; the others have not read yet what
    /// it said last.
    pub fn end_the_leader(&mut self, rounds: u64) {
        let leader = self.leader.expect("somebody leads");
        self.kill(usize::from(leader) - 1, self.round + rounds);
    }

    /// Whether the replica that was named serves.
    pub fn is_served(&self) -> bool {
        let named =
            self.leader.and_then(|number| self.units[usize::from(number) - 1].live.as_ref());
        named.is_some_and(Replica::serves)
    }

    /// What the replicas say of their states.
    pub fn digests(&self) -> Vec<Option<(u64, u64)>> {
        self.units.iter().map(|unit| unit.live.as_ref()?.digest()).collect()
    }

    /// A replica is brought back, with or without trust in what it has kept.
    pub fn restart(&mut self, place: usize, is_distrusted: bool) {
        self.units[place].is_distrusted = is_distrusted;
        self.kill(place, self.round + 1);
    }

    /// Ends all faults; everything must come right, and all replicas hold the same.
    pub fn heal(&mut self) {
        self.loses_messages = false;
        for unit in &self.units {
            if !unit.budget.is_exhausted() {
                unit.budget.limit(u64::MAX);
            }
        }
        let before: Vec<u32> = self.counts();
        for _ in 0..HEALED_ROUNDS {
            self.run(1);
            let counts = self.counts();
            let is_busy = counts.iter().zip(&before).all(|(now, before)| *now > before + 2);
            for client in self.clients.values_mut() {
                client.is_stopped = is_busy;
            }
            let is_idle = !self.clients.values().any(Client::is_waiting);
            if is_busy && is_idle && self.converged() {
                return self.compare();
            }
        }
        let text: Vec<_> =
            self.units.iter().map(|u| u.live.as_ref().map(Replica::status)).collect();
        let clients: Vec<_> = self.clients.values().map(Client::describe).collect();
        panic!("does not come right: {clients:#?} leader {:?}, {text:#?}", self.leader);
    }

    fn counts(&self) -> Vec<u32> {
        GUESTS.map(|domid| self.clients[&domid].counted).collect()
    }

    fn compare(&self) {
        let digests = self.units.iter().map(|unit| {
            let state = unit.live.as_ref().unwrap().server().state();
            (state.digest(), state.committed(), state.watch_count(), state.clients().count())
        });
        let digests: Vec<_> = digests.collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    }

    /// Nothing is sent in a cluster that has nothing to do.
    pub fn pass_quietly(&mut self) {
        self.run(5_000);
        let sent = self.sent;
        self.run(5_000);
        assert_eq!(self.sent, sent, "messages of an idle cluster");
    }
}
