//! The engine: asks, listens, decides.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use api::{MAX_MESSAGE, Operation, Reply, Request};
use fabric::domains::{Domain, DomainState};
use fabric::log::Level;
use store_client::{Call, StoreMessage};

use crate::create::Create;
use crate::destroy::Destroy;
use crate::journal::{Entry, Journal};
use crate::machine::{Decision, Machine, Phase, Stop, Then};
use crate::nodes::{self, Uuid};
use crate::spec::{Options, Spec};
use crate::start::{Named, Start, Wanted};
use crate::task::{Task, Trouble, Want};

/// After this long without an outcome an operation is asked for again: it is idempotent, and a
/// message can be lost when the orchestrator recovers. The longest operation, the end of a 2 GiB
/// guest, takes about 0.3 s.
const ASK_AGAIN_NS: u64 = 2_000_000_000;
/// Delay before a guest whose memory is still mapped is tried again, doubled up to the maximum.
const REMOVE_AGAIN_NS: u64 = 2_000_000;
/// Doublings of that delay at most: 2 ms · 2⁹ is about a second.
const REMOVE_DOUBLINGS: u32 = 9;

/// What the shell has to do for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this message to the orchestrator.
    Operate {
        /// Number of the request, for the message's header.
        sequence: u64,
        /// The encoded request.
        message: Vec<u8>,
    },
    /// Send this message to XenStore.
    Store(Vec<u8>),
    /// Write this journal, before anything that comes after.
    Journal(Vec<u8>),
    /// Map the guest's console page and serve it.
    Attach {
        /// The guest.
        domid: u16,
        /// Its slot.
        slot: u16,
    },
    /// Unmap the guest's console page.
    Detach {
        /// The guest.
        domid: u16,
    },
    /// Every guest of a former life is adopted: what is mapped beyond is nobody's.
    Adopted,
    /// Write a line into our log.
    Log(Level, String),
}

#[derive(Clone, Debug)]
struct Asked {
    sequence: u64,
    message: Vec<u8>,
    again_at_ns: u64,
}

/// The toolstack's engine.
#[derive(Debug)]
pub struct Engine<'a> {
    options: Options,
    machines: Vec<Machine<'a>>,
    next_domid: u16,
    start: Start,
    started: bool,
    /// The machine that is worked on, the work, and when it began.
    current: Option<(usize, Task<'a>, u64)>,
    asked: Option<Asked>,
    store_asked: Option<u32>,
    sequence: u64,
    store_request: u32,
    table: BTreeMap<u16, (u16, Domain)>,
    actions: VecDeque<Action>,
}

impl<'a> Engine<'a> {
    /// An engine at the start of a life. `journal` is what a former life wrote, if it can be read.
    pub fn new(specs: &[Spec<'a>], options: Options, journal: Option<&[u8]>) -> Self {
        let mut machines: Vec<_> = specs.iter().map(|spec| Machine::new(*spec)).collect();
        let mut next_domid = options.first_guest;
        if let Some(journal) = journal.and_then(|bytes| Journal::decode(bytes, specs.len())) {
            next_domid = journal.next_domid.clamp(options.first_guest, options.last_guest);
            for (machine, entry) in machines.iter_mut().zip(&journal.guests) {
                machine.phase = entry.phase;
                machine.restarts = entry.restarts;
            }
        }
        Self {
            options,
            machines,
            next_domid,
            start: Start::new(options.first_guest),
            started: false,
            current: None,
            asked: None,
            store_asked: None,
            sequence: 0,
            store_request: 0,
            table: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do; `None`: nothing before [`Engine::wake_at`] or the next input.
    pub fn poll(&mut self, now_ns: u64) -> Option<Action> {
        if self.actions.is_empty() {
            self.advance(now_ns);
        }
        self.actions.pop_front()
    }

    /// When to poll again if nothing comes in before.
    pub fn wake_at(&self) -> Option<u64> {
        let waiting = self.machines.iter().enumerate().filter(|(index, machine)| {
            self.current.as_ref().is_none_or(|(current, ..)| current != index)
                && matches!(machine.phase, Phase::Wanted | Phase::Destroying(..))
        });
        let again = self.asked.as_ref().map(|asked| asked.again_at_ns);
        if self.current.is_some() || !self.started {
            return again;
        }
        waiting.map(|(_, machine)| machine.not_before_ns).chain(again).min()
    }

    /// Takes the orchestrator's answer.
    pub fn replied(&mut self, reply: &Reply<'_>, now_ns: u64) {
        let expected = |asked: &Asked| asked.sequence == reply.sequence;
        if reply.epoch != self.options.epoch || !self.asked.as_ref().is_some_and(expected) {
            // To a former life, or to a request that was asked twice.
            return;
        }
        self.asked = None;
        let outcome = &reply.outcome;
        let result = match &mut self.current {
            Some((_, task, _)) => task.operated(outcome),
            None if !self.started => self.start.listed(outcome, &mut self.machines, now_ns),
            None => Ok(()),
        };
        self.settle(result, now_ns);
    }

    /// Takes a message of XenStore.
    pub fn store_said(&mut self, message: &StoreMessage, now_ns: u64) {
        if self.store_asked != Some(message.header.request) {
            return;
        }
        self.store_asked = None;
        let answer = message.answer();
        let result = match &mut self.current {
            Some((_, task, _)) => task.answered(answer),
            None if !self.started => {
                if self.start.named(answer, &mut self.machines, now_ns) == Named::Unknown {
                    let line = format!("a guest of no description is left alone: {answer:?}");
                    self.log(Level::Warning, line);
                }
                Ok(())
            }
            None => Ok(()),
        };
        self.settle(result, now_ns);
    }

    /// The connection to XenStore is a new one: what was asked is asked again.
    pub fn store_restarted(&mut self) {
        self.store_asked = None;
        if let Some((_, task, _)) = &mut self.current {
            task.store_restarted();
        }
    }

    /// Takes a slot of the domain table.
    pub fn domain(&mut self, slot: u16, domain: Option<Domain>) {
        self.table.retain(|_, (other, _)| *other != slot);
        if let Some(domain) = domain {
            self.table.insert(domain.domid, (slot, domain));
        }
    }

    /// A line per wanted guest: its name, number and phase.
    pub fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.machines
            .iter()
            .map(|machine| format!("guest {}: {:?}", machine.spec.name, machine.phase))
    }

    fn log(&mut self, level: Level, line: String) {
        self.actions.push_back(Action::Log(level, line));
    }

    /// Writes the journal as it is now. Whatever is pushed later happens later.
    fn note(&mut self) {
        let guests = self
            .machines
            .iter()
            .map(|machine| Entry { phase: machine.phase, restarts: machine.restarts })
            .collect();
        let journal = Journal { next_domid: self.next_domid, guests };
        self.actions.push_back(Action::Journal(journal.encode()));
    }

    /// Goes on with whatever can go on.
    fn advance(&mut self, now_ns: u64) {
        if let Some(asked) = &mut self.asked {
            if now_ns >= asked.again_at_ns {
                asked.again_at_ns = now_ns + ASK_AGAIN_NS;
                let (sequence, message) = (asked.sequence, asked.message.clone());
                self.actions.push_back(Action::Operate { sequence, message });
            }
            return;
        }
        if self.store_asked.is_some() {
            return;
        }
        if !self.started {
            return self.begin(now_ns);
        }
        if self.current.is_none() {
            self.look_for_stops(now_ns);
            self.choose(now_ns);
        }
        self.work(now_ns);
    }

    /// Learns what is, then starts.
    fn begin(&mut self, now_ns: u64) {
        match self.start.want() {
            Wanted::List(from) => self.operate(&Operation::List { from }, now_ns),
            Wanted::Name(domid) => self.call(&Call::read(&nodes::name_path(domid))),
            Wanted::Nothing => {
                self.started = true;
                if let Some(highest) = self.start.highest()
                    && highest >= self.next_domid
                {
                    self.next_domid = self.after(highest);
                }
                self.note();
                for index in 0..self.machines.len() {
                    let Phase::Running(domid) = self.machines[index].phase else { continue };
                    let name = self.machines[index].spec.name;
                    self.log(Level::Information, format!("guest {name} (d{domid}) is adopted"));
                    self.attach(domid);
                }
                self.actions.push_back(Action::Adopted);
            }
        }
    }

    fn after(&self, domid: u16) -> u16 {
        if domid >= self.options.last_guest { self.options.first_guest } else { domid + 1 }
    }

    /// Running guests that stopped, by the domain table.
    fn look_for_stops(&mut self, now_ns: u64) {
        for index in 0..self.machines.len() {
            let Phase::Running(domid) = self.machines[index].phase else { continue };
            let stop = match self.table.get(&domid).map(|(_, domain)| domain) {
                Some(domain) if domain.state == DomainState::Shutdown => {
                    Stop::from_code(domain.shutdown_code)
                }
                Some(domain) if matches!(domain.state, DomainState::Dying | DomainState::Gone) => {
                    Stop::Gone
                }
                // A slot that cannot be read says nothing about its guest.
                Some(_) | None => continue,
            };
            self.stopped(index, domid, stop, now_ns);
        }
    }

    fn stopped(&mut self, index: usize, domid: u16, stop: Stop, now_ns: u64) {
        let machine = &mut self.machines[index];
        let decision = machine.stop(stop, now_ns);
        let (phase, what) = match decision {
            Decision::Remove(Then::Create) => {
                (Phase::Destroying(domid, Then::Create), "it is restarted")
            }
            Decision::Remove(Then::End) => (Phase::Destroying(domid, Then::End), "it is removed"),
            Decision::GiveUp => {
                (Phase::Destroying(domid, Then::End), "it is given up: too many restarts in a row")
            }
            Decision::Keep => (Phase::Preserved(domid), "it is kept for inspection"),
        };
        machine.phase = phase;
        machine.attempts = 0;
        machine.not_before_ns = 0;
        let name = machine.spec.name;
        self.note();
        let line = format!("guest {name} (d{domid}) {}: {what}", stop.name());
        self.log(Level::Information, line);
    }

    /// Takes up the next work: removals first, because they give memory back.
    fn choose(&mut self, now_ns: u64) {
        let due = |machine: &Machine<'_>| machine.not_before_ns <= now_ns;
        let removal = self
            .machines
            .iter()
            .position(|machine| matches!(machine.phase, Phase::Destroying(..)) && due(machine));
        if let Some(index) = removal {
            let Some(domid) = self.machines[index].phase.domid() else { return };
            let task = Task::Destroy(Destroy::new(
                domid,
                Uuid::of(self.options.nonce, domid),
                self.options.net,
            ));
            self.current = Some((index, task, now_ns));
            return;
        }
        let creation =
            self.machines.iter().position(|machine| machine.phase == Phase::Wanted && due(machine));
        if let Some(index) = creation {
            let Some(domid) = self.take_domid() else { return };
            self.machines[index].phase = Phase::Creating(domid);
            self.note();
            let uuid = Uuid::of(self.options.nonce, domid);
            let task =
                Task::Create(Create::new(self.machines[index].spec, domid, uuid, self.options.net));
            self.current = Some((index, task, now_ns));
        }
    }

    /// A number that no guest has: the next one, and after the last the first again.
    fn take_domid(&mut self) -> Option<u16> {
        let numbers = usize::from(self.options.last_guest - self.options.first_guest) + 1;
        for _ in 0..numbers {
            let domid = self.next_domid;
            self.next_domid = self.after(domid);
            let ours = self.machines.iter().any(|machine| machine.phase.domid() == Some(domid));
            if !ours && !self.table.contains_key(&domid) {
                return Some(domid);
            }
        }
        None
    }

    /// Does what the current task wants.
    fn work(&mut self, now_ns: u64) {
        loop {
            let Some((index, task, began_ns)) = self.current.take() else { return };
            let domid = self.machines[index].phase.domid();
            let (want, domid) = match (task.want(), domid) {
                (Ok(want), Some(domid)) => (want, domid),
                (Err(trouble), _) => return self.fail(index, &task, trouble, now_ns),
                (_, None) => return,
            };
            match want {
                Want::Operate(operation) => {
                    self.operate(&operation, now_ns);
                    self.current = Some((index, task, began_ns));
                    return;
                }
                Want::Store(call) => {
                    self.call(&call);
                    self.current = Some((index, task, began_ns));
                    return;
                }
                Want::Attach => self.attach(domid),
                Want::Detach => self.actions.push_back(Action::Detach { domid }),
                Want::Nothing => return self.finish(index, domid, now_ns, now_ns - began_ns),
            }
            let mut task = task;
            task.console_done();
            self.current = Some((index, task, began_ns));
        }
    }

    /// The current task took an answer.
    fn settle(&mut self, result: Result<(), Trouble>, now_ns: u64) {
        let Err(trouble) = result else { return };
        match self.current.take() {
            Some((index, task, _)) => self.fail(index, &task, trouble, now_ns),
            // The list of guests: it is asked for again, because nothing can start without it.
            None => self.log(Level::Error, format!("cannot start: {trouble}")),
        }
    }

    fn finish(&mut self, index: usize, domid: u16, now_ns: u64, took_ns: u64) {
        let machine = &mut self.machines[index];
        let name = machine.spec.name;
        let took_us = took_ns / 1000;
        let mut record = None;
        let line = match machine.phase {
            Phase::Creating(_) => {
                machine.run(domid, now_ns);
                let began_ns = now_ns - took_ns;
                record = Some(format!(
                    "@{{\"event\":\"created\",\"guest\":\"{name}\",\"domid\":{domid},\
                     \"began\":{began_ns},\"running\":{now_ns}}}"
                ));
                format!("guest {name} is d{domid}, running after {took_us} us")
            }
            Phase::Destroying(_, then) => {
                machine.attempts = 0;
                machine.not_before_ns = now_ns + machine.restart_delay_ns();
                machine.phase = match then {
                    Then::Create => Phase::Wanted,
                    Then::End => Phase::Ended,
                };
                format!("guest {name} (d{domid}) is removed after {took_us} us")
            }
            _ => return,
        };
        self.note();
        self.log(Level::Information, line);
        if let Some(record) = record {
            self.log(Level::Information, record);
        }
    }

    fn fail(&mut self, index: usize, task: &Task<'_>, trouble: Trouble, now_ns: u64) {
        let machine = &mut self.machines[index];
        let (name, domid) = (machine.spec.name, machine.phase.domid().unwrap_or_default());
        match task {
            Task::Create(_) if trouble == Trouble::NumberTaken => {
                // Somebody else's domain: not ours to remove.
                machine.phase = Phase::Wanted;
                self.note();
            }
            Task::Create(_) => {
                machine.phase = Phase::Destroying(domid, Then::End);
                self.note();
                let line = format!("guest {name} (d{domid}) is not created: {trouble}");
                self.log(Level::Error, line);
            }
            Task::Destroy(_) => {
                let delay = REMOVE_AGAIN_NS << machine.attempts.min(REMOVE_DOUBLINGS);
                machine.not_before_ns = now_ns + delay;
                machine.attempts += 1;
                if machine.attempts == 1 || trouble != Trouble::StillMapped {
                    let line = format!("guest {name} (d{domid}) is not removed yet: {trouble}");
                    self.log(Level::Warning, line);
                }
            }
        }
    }

    fn attach(&mut self, domid: u16) {
        match self.table.get(&domid) {
            Some((slot, _)) => {
                self.actions.push_back(Action::Attach { domid, slot: *slot });
            }
            None => {
                let line = format!("d{domid} has no slot, its console is not served");
                self.log(Level::Warning, line);
            }
        }
    }

    fn operate(&mut self, operation: &Operation<'_>, now_ns: u64) {
        self.sequence += 1;
        let sequence = self.sequence;
        let request = Request { epoch: self.options.epoch, sequence, operation: operation.clone() };
        let mut message = alloc::vec![0; MAX_MESSAGE];
        let len = request.encode(&mut message).expect("the builder keeps to the message size");
        message.truncate(len);
        self.asked =
            Some(Asked { sequence, message: message.clone(), again_at_ns: now_ns + ASK_AGAIN_NS });
        self.actions.push_back(Action::Operate { sequence, message });
    }

    fn call(&mut self, call: &Call) {
        self.store_request = self.store_request.wrapping_add(1);
        self.store_asked = Some(self.store_request);
        self.actions.push_back(Action::Store(call.encode(self.store_request)));
    }
}
