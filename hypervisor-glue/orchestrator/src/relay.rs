//! Who serves XenStore: one of its replicas at a time, to which the relay turns.
//!
//! The order of steps is the fence (docs/REPLICATION.md): a replica that was named is stopped
//! before another one is named, so no two ever serve; the relay's epoch grows with each name.

use abi::Control;
use fabric::control::Rung;
use fabric::{Epoch, SharedMemory};
use recovery::Event;
use service::ids;
use system::Role;

use crate::host::{Host, UNITS};
use crate::report::Note;

/// Time for a named replica to serve before the former leader takes its share of the CPU: several
/// times what an election takes.
const ELECTION_NS: u64 = 2_000_000;

/// One turn of the relay, from the former leader's failure to the next one's first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The former leader.
    pub from: &'static str,
    /// The next one.
    pub to: &'static str,
    /// When the failure was detected.
    pub detected_ns: u64,
    /// When the next one was named.
    pub named_ns: u64,
    /// When it said that it serves.
    pub serves_ns: u64,
    /// When its first answer passed the relay.
    pub answered_ns: u64,
}

/// What the relay remembers.
#[derive(Clone, Copy, Debug)]
pub struct Relay {
    epoch: u64,
    named: Option<usize>,
    named_ns: u64,
    serves: bool,
    /// The leader that failed last, and when.
    failed: Option<(usize, u64)>,
    turn: Option<Turn>,
    /// Recoveries that wait until somebody serves again.
    waiting: [Option<(Rung, Epoch)>; UNITS],
}

impl Default for Relay {
    fn default() -> Self {
        Self::new()
    }
}

impl Relay {
    /// Nobody is named.
    pub const fn new() -> Self {
        Self {
            epoch: 0,
            named: None,
            named_ns: 0,
            serves: false,
            failed: None,
            turn: None,
            waiting: [None; UNITS],
        }
    }

    /// Whether a fail-over is under way: until somebody has been answered, it needs the CPU more
    /// than what the failed one does to come back.
    fn is_turning(&self) -> bool {
        self.named.is_some() && (!self.serves || self.turn.is_some())
    }

    /// When a recovery that waits for a fail-over is carried out at the latest.
    pub fn due_ns(&self) -> Option<u64> {
        let is_waiting = self.waiting.iter().any(Option::is_some);
        is_waiting.then_some(self.named_ns + ELECTION_NS)
    }
}

/// Whether a unit is a replica of the store.
pub fn is_store(unit: usize) -> bool {
    system::SYSTEM.units[unit].role == Role::XenStore
}

/// Whether there is one store only.
pub fn is_alone() -> bool {
    system::SYSTEM.all_with_role(Role::XenStore).count() == 1
}

/// The replica's number of a unit, from 1.
fn number_of(unit: usize) -> u8 {
    let before = system::SYSTEM.all_with_role(Role::XenStore).take_while(|other| *other != unit);
    before.count() as u8 + 1
}

impl<C: Control, F: SharedMemory + Copy> Host<'_, C, F> {
    /// Finds the name again that a former life of ours gave.
    pub fn adopt_relay(&mut self) {
        let units = system::SYSTEM.all_with_role(Role::XenStore);
        let latest = units.max_by_key(|unit| self.units[*unit].relay);
        if let Some(unit) = latest.filter(|unit| self.units[*unit].relay != 0) {
            self.relay.epoch = self.units[unit].relay;
            (self.relay.named, self.relay.serves) = (Some(unit), true);
            self.store = unit;
        }
    }

    /// A message from one replica to another.
    pub fn pass_mail(&mut self, from: usize, id: u16) {
        let to =
            system::SYSTEM.all_with_role(Role::XenStore).nth(usize::from(id - ids::PEERS.start));
        if let Some(to) = to.filter(|to| *to != from) {
            self.hand(to, ids::peer(number_of(from)));
        }
    }

    /// A replica was stopped: if it was named, another one is. Where there is no other one, its
    /// next life begins with the name.
    pub fn store_stopped(&mut self, index: usize) {
        if is_alone() {
            if self.relay.named == Some(index) {
                self.name_alone(index);
            }
            return;
        }
        self.units[index].set_relay(0);
        if self.relay.named == Some(index) {
            self.relay.named = None;
            if self.relay.serves {
                self.relay.failed = Some((index, self.xen.now_ns()));
            }
            self.relay.serves = false;
            self.name_leader();
        }
    }

    /// Names the replica that can lead best, if nobody serves and a majority is alive. Called
    /// whenever a replica has done something: another one may have become the best.
    pub fn name_leader(&mut self) {
        if self.relay.serves {
            return;
        }
        let stores = system::SYSTEM.all_with_role(Role::XenStore);
        let is_alive = |unit: &usize| self.supervisor.is_serving(*unit);
        if stores.clone().filter(is_alive).count() <= stores.clone().count() / 2 {
            return;
        }
        let rank = |unit: usize| if is_alive(&unit) { self.units[unit].rank() } else { 0 };
        // The first of those that are equally good.
        let Some(best) = stores.rev().max_by_key(|unit| rank(*unit)) else { return };
        if rank(best) <= self.relay.named.map_or(0, rank) {
            return;
        }
        if let Some(named) = self.relay.named {
            // The former leader had told the better one more, which that one had not read. The
            // named one could still win: it is stopped first, and this is called again.
            return self.tell_supervisor(named, Event::Restart(Rung::Microreset));
        }
        if is_alone() {
            self.name_alone(best);
            return self.hand(best, ids::RELAY);
        }
        let now_ns = self.xen.now_ns();
        self.relay.epoch += 1;
        (self.relay.named, self.relay.named_ns) = (Some(best), now_ns);
        self.store = best;
        self.units[best].set_relay(self.relay.epoch);
        self.hand(best, ids::RELAY);
        if let Some((from, detected_ns)) = self.relay.failed {
            let (from, to) = (self.units[from].config.name, self.units[best].config.name);
            self.relay.turn = Some(Turn {
                from,
                to,
                detected_ns,
                named_ns: now_ns,
                serves_ns: 0,
                answered_ns: 0,
            });
        }
    }

    /// Names the only store: it serves as soon as it runs, and nobody has to wait for its word.
    fn name_alone(&mut self, index: usize) {
        self.relay.epoch += 1;
        (self.relay.named, self.relay.serves) = (Some(index), true);
        self.store = index;
        self.units[index].set_relay(self.relay.epoch);
    }

    /// The replica that was named serves.
    pub fn leader_serves(&mut self, index: usize) {
        if self.relay.named == Some(index) && !self.relay.serves {
            self.relay.serves = true;
            self.relay.failed = None;
            if let Some(turn) = &mut self.relay.turn {
                turn.serves_ns = self.xen.now_ns();
            }
        }
    }

    /// The store has answered somebody: that ends a fail-over.
    pub fn store_answered(&mut self) {
        if self.relay.serves
            && let Some(mut turn) = self.relay.turn.take()
        {
            turn.answered_ns = self.xen.now_ns();
            self.notes.add(turn.answered_ns, Note::FailedOver(turn));
        }
    }

    /// Whether the recovery of a unit can wait: another one is about to serve in its place.
    pub fn puts_off(&mut self, index: usize, rung: Rung, epoch: Epoch) -> bool {
        let can_wait = is_store(index) && self.relay.is_turning();
        if can_wait {
            self.relay.waiting[index] = Some((rung, epoch));
        }
        can_wait
    }

    /// Carries out the recoveries that have waited for a fail-over, or long enough.
    pub fn take_up(&mut self) {
        let Some(due_ns) = self.relay.due_ns() else { return };
        if self.relay.is_turning() && self.xen.now_ns() < due_ns {
            return;
        }
        for index in 0..UNITS {
            if let Some((rung, epoch)) = self.relay.waiting[index].take() {
                self.recover(index, rung, epoch);
            }
        }
    }
}
