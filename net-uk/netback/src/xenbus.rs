//! The life of a vif's connection (xenbus.h), over XenStore.
//!
//! Level-triggered: whenever a watch fires, and after every restart, the shell reads the keys it is
//! asked for and calls [`Backend::step`], which compares what is with what should be and answers
//! with actions. Watch events may come late, twice, or merged.
//!
//! | frontend | what the backend does |
//! |---|---|
//! | Initialising | drops a former connection, offers its features, InitWait |
//! | InitWait | waits |
//! | Initialised, Connected | connects, once the keys are complete: Connected |
//! | Closing | disconnects: Closing |
//! | Closed | disconnects (from any state): Closed; gone for good if it is not online |
//! | Reconfiguring | Reconfigured; the connection stays |
//! | Reconfigured | Connected |
//! | Unknown (the directory is gone) | disconnects: Closed; gone for good if it is not online |
//!
//! The vif's directory is never deleted from here: a directory that vanishes is an unplugged device
//! to some frontends.

mod keys;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use abi::DomId;
use frame::Mac;

use crate::vif::{Connection, QUEUES_MAX};

pub use keys::{KeyError, Keys};

/// States of either end (`enum xenbus_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// No such device.
    Unknown = 0,
    /// Just made.
    Initialising = 1,
    /// Waits for its peer.
    InitWait = 2,
    /// Waits for the connection.
    Initialised = 3,
    /// At work.
    Connected = 4,
    /// On its way out.
    Closing = 5,
    /// Out.
    Closed = 6,
    /// Changing something while connected.
    Reconfiguring = 7,
    /// Changed.
    Reconfigured = 8,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// Reads a `state` node's value; anything else than 1-8 is [`State::Unknown`].
    pub fn parse(text: &str) -> Self {
        let number = text.trim().parse().unwrap_or(0_u8);
        Self::ALL.into_iter().find(|state| *state as u8 == number).unwrap_or(Self::Unknown)
    }
}

/// Which directory a key lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Ours: `/local/domain/B/backend/vif/G/H`.
    Backend,
    /// The guest's: `/local/domain/G/device/vif/H`.
    Frontend,
}

/// What the shell is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a key of our directory.
    Write(String, String),
    /// Map the rings, bind the ports, then call [`Backend::connected`].
    Connect(Connection),
    /// Unbind, unmap, forget the vif's packets.
    Disconnect,
    /// The vif is gone for good: stop watching it.
    Remove,
}

/// One vif's connection.
#[derive(Clone, Debug)]
pub struct Backend {
    guest: DomId,
    handle: u16,
    /// What our `state` node says by our own doing.
    state: State,
    is_connected: bool,
}

impl Backend {
    /// A vif that the toolstack has just made.
    pub fn new(guest: DomId, handle: u16) -> Self {
        Self { guest, handle, state: State::Initialising, is_connected: false }
    }

    /// The vif of a former life. `is_connected`: its rings were found again (`vif::read`); then
    /// nothing is written, and the frontend notices nothing.
    pub fn resume(guest: DomId, handle: u16, state: State, is_connected: bool) -> Self {
        Self { guest, handle, state, is_connected }
    }

    /// Our state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the rings are in use.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// The keys that the shell reads before it calls [`Backend::step`]. Missing ones are left out.
    pub fn wanted() -> Vec<(Side, String)> {
        keys::wanted()
    }

    /// Compares and acts.
    pub fn step(&mut self, keys: &impl Keys) -> Vec<Action> {
        let frontend = State::parse(keys.get(Side::Frontend, "state").unwrap_or_default());
        let is_online = keys.get(Side::Backend, "online").is_some_and(|text| text.trim() == "1");
        let mut actions = Vec::new();
        match frontend {
            State::Initialising => self.offer(&mut actions),
            State::InitWait => {}
            State::Initialised | State::Connected | State::Reconfigured => {
                self.connect(frontend, keys, &mut actions);
            }
            State::Closing => {
                self.disconnect(&mut actions);
                // A frontend that closes what never was still waits for the answer.
                if self.state != State::Closed {
                    self.set(State::Closing, &mut actions);
                }
            }
            State::Closed | State::Unknown => {
                self.disconnect(&mut actions);
                // A new vif waits in Initialising for a frontend that has yet to appear.
                if self.state != State::Initialising || !is_online {
                    self.set(State::Closed, &mut actions);
                }
                if !is_online {
                    actions.push(Action::Remove);
                }
            }
            State::Reconfiguring if self.is_connected => {
                self.set(State::Reconfigured, &mut actions);
            }
            State::Reconfiguring => {}
        }
        actions
    }

    /// The answer to [`Action::Connect`]: whether the rings could be mapped and the ports bound.
    pub fn connected(&mut self, result: Result<(), &'static str>) -> Vec<Action> {
        let mut actions = Vec::new();
        match result {
            Ok(()) => {
                self.is_connected = true;
                self.set(State::Connected, &mut actions);
            }
            Err(reason) => self.refuse(reason.to_string(), &mut actions),
        }
        actions
    }

    fn set(&mut self, state: State, actions: &mut Vec<Action>) {
        if self.state != state {
            self.state = state;
            let value = format!("{}", state as u8);
            actions.push(Action::Write("state".to_string(), value));
        }
    }

    fn disconnect(&mut self, actions: &mut Vec<Action>) {
        if core::mem::take(&mut self.is_connected) {
            actions.push(Action::Disconnect);
        }
    }

    fn offer(&mut self, actions: &mut Vec<Action>) {
        self.disconnect(actions);
        if self.state != State::InitWait {
            actions.extend(features());
            self.set(State::InitWait, actions);
        }
    }

    fn connect(&mut self, frontend: State, keys: &impl Keys, actions: &mut Vec<Action>) {
        if self.is_connected {
            if frontend != State::Initialised {
                self.set(State::Connected, actions);
            }
            return;
        }
        if self.state == State::Closing {
            return;
        }
        if matches!(self.state, State::Initialising | State::Closed | State::Unknown) {
            // The frontend did not wait for us: it still needs to find our features.
            actions.extend(features());
            self.set(State::InitWait, actions);
        }
        match keys::connection(self.guest, self.handle, keys) {
            Ok(connection) => actions.push(Action::Connect(connection)),
            // Initialised frontends may still be writing.
            Err(KeyError::Missing(_)) if frontend == State::Initialised => {}
            Err(error) => self.refuse(error.to_string(), actions),
        }
    }

    fn refuse(&mut self, reason: String, actions: &mut Vec<Action>) {
        actions.push(Action::Write("error".to_string(), reason));
        self.set(State::Closing, actions);
    }
}

/// What every vif offers. Feature keys are those of netif.h.
fn features() -> Vec<Action> {
    let write = |key: &str, value: &str| Action::Write(key.to_string(), value.to_string());
    vec![
        write("feature-sg", "1"),
        write("feature-gso-tcpv4", "1"),
        write("feature-gso-tcpv6", "1"),
        write("feature-ipv6-csum-offload", "1"),
        write("feature-rx-copy", "1"),
        write("feature-rx-flip", "0"),
        write("feature-split-event-channels", "1"),
        write("multi-queue-max-queues", &QUEUES_MAX.to_string()),
        write("hotplug-status", "connected"),
    ]
}

/// The address in the toolstack's `mac` key.
pub fn address(keys: &impl Keys) -> Option<Mac> {
    keys.get(Side::Backend, "mac").and_then(Mac::parse)
}

#[cfg(test)]
mod tests;
