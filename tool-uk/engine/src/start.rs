//! The first thing a life of tool-uk does: it compares what was intended with what is.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use api::{GuestId, GuestState, Outcome};
use wire::Errno;

use crate::machine::{Decision, Machine, Phase, Stop, Then};
use crate::task::Trouble;

/// What the start wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The guests from this number on.
    List(GuestId),
    /// The name of this guest.
    Name(u16),
    /// Nothing: the machines are what they are.
    Nothing,
}

/// What a foreign guest turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The wanted guest of this place.
    Known(usize),
    /// Nobody's.
    Unknown,
}

/// Learning what is.
#[derive(Clone, Debug)]
pub struct Start {
    /// The next number to list from; `None`: all are listed.
    from: Option<GuestId>,
    listed: BTreeMap<u16, GuestState>,
    /// Guests that no machine claims, still to be asked for their names.
    foreign: Vec<u16>,
}

impl Start {
    /// A start that knows nothing.
    pub fn new(first_guest: u16) -> Self {
        Self { from: Some(GuestId(first_guest)), listed: BTreeMap::new(), foreign: Vec::new() }
    }

    /// What it wants next.
    pub fn want(&self) -> Wanted {
        match (self.from, self.foreign.last()) {
            (Some(from), _) => Wanted::List(from),
            (None, Some(domid)) => Wanted::Name(*domid),
            (None, None) => Wanted::Nothing,
        }
    }

    /// Takes a part of the list. At its end, the machines learn what became of their guests.
    ///
    /// # Errors
    /// The outcome is not a list.
    pub fn listed(
        &mut self,
        outcome: &Outcome<'_>,
        machines: &mut [Machine<'_>],
        now_ns: u64,
    ) -> Result<(), Trouble> {
        crate::task::check("list the guests", outcome)?;
        let Outcome::Guests { guests, more } = outcome else {
            return Err(Trouble::Unexpected);
        };
        self.listed.extend(guests.iter().map(|status| (status.guest.0, status.state)));
        let next = guests.last().filter(|_| *more).map(|last| GuestId(last.guest.0 + 1));
        self.from = next;
        if next.is_none() {
            self.compare(machines, now_ns);
        }
        Ok(())
    }

    fn compare(&mut self, machines: &mut [Machine<'_>], now_ns: u64) {
        for machine in machines.iter_mut() {
            let Some(domid) = machine.phase.domid() else { continue };
            match (machine.phase, self.listed.get(&domid)) {
                (Phase::Creating(_), None) => machine.phase = Phase::Wanted,
                (Phase::Creating(_), Some(state)) => settle(machine, domid, *state, now_ns),
                (Phase::Running(_), None | Some(GuestState::Dying)) => {
                    let then = match machine.stop(Stop::Gone, now_ns) {
                        Decision::Remove(then) => then,
                        Decision::GiveUp | Decision::Keep => Then::End,
                    };
                    machine.phase = Phase::Destroying(domid, then);
                }
                (Phase::Running(_), Some(_)) => machine.run(domid, now_ns),
                (Phase::Preserved(_), None) => {
                    machine.phase = Phase::Destroying(domid, Then::End);
                }
                _ => {}
            }
        }
        let claimed =
            |domid: &u16| machines.iter().any(|machine| machine.phase.domid() == Some(*domid));
        self.foreign = self.listed.keys().filter(|domid| !claimed(domid)).copied().collect();
    }

    /// Takes the name of the guest that was asked for.
    pub fn named(
        &mut self,
        answer: Result<&[u8], Errno>,
        machines: &mut [Machine<'_>],
        now_ns: u64,
    ) -> Named {
        let Some(domid) = self.foreign.pop() else { return Named::Unknown };
        let matching = |machine: &Machine<'_>| {
            machine.phase == Phase::Wanted && answer == Ok(machine.spec.name.as_bytes())
        };
        let Some(index) = machines.iter().position(matching) else { return Named::Unknown };
        let state = self.listed.get(&domid).copied().unwrap_or(GuestState::Dying);
        settle(&mut machines[index], domid, state, now_ns);
        Named::Known(index)
    }

    /// The highest number in use.
    pub fn highest(&self) -> Option<u16> {
        self.listed.keys().next_back().copied()
    }
}

/// A guest whose creation was under way: one that ran is ready, another is begun anew. Letting it
/// run is the last step of its creation.
fn settle(machine: &mut Machine<'_>, domid: u16, state: GuestState, now_ns: u64) {
    match state {
        GuestState::Running | GuestState::Shutdown(_) => machine.run(domid, now_ns),
        GuestState::Paused | GuestState::Dying => {
            machine.phase = Phase::Destroying(domid, Then::Create);
        }
    }
}
