//! Finds guests' network interfaces in XenStore and keeps each connection in the state that its
//! frontend asks for ([`netback::xenbus`]).
//!
//! A pure state machine. In: messages of XenStore, what became of a connection. Out: [`Action`]s.
//! It asks one thing at a time, and only ever compares what is with what should be: a watch event
//! says *where* to look, never what is there, so that events may come late, twice or merged, and a
//! new life, or a new connection to XenStore, simply looks at everything once.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod tests;
mod vif;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use abi::DomId;
use netback::vif::Connection;
use netback::xenbus;
use store_client::{Call, StoreMessage};
use wire::Operation;

use crate::vif::Vif;

/// Guests looked for at most: one connection slot of the XenStore each.
const GUESTS_MAX: usize = 64;
/// Interfaces of one guest looked for at most; handles at or above it are ignored.
const HANDLES_MAX: u16 = 8;

/// A guest's network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VifId {
    /// The guest.
    pub guest: DomId,
    /// Its number within the guest.
    pub handle: u16,
}

impl core::fmt::Display for VifId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vif {}.{}", self.guest, self.handle)
    }
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this message to XenStore.
    Store(Vec<u8>),
    /// Map the rings, bind the ports, then call [`Hotplug::connected`].
    Connect(VifId, Connection),
    /// Unmap the rings, close the ports, forget the connection.
    Disconnect(VifId),
}

/// One request to XenStore, and what its answer is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    Watch(String, String),
    Unwatch(String, String),
    Guests,
    Handles(u16),
    Read(VifId, usize),
    Write(VifId, String, String),
}

/// All interfaces.
#[derive(Debug)]
pub struct Hotplug {
    backend: u16,
    vifs: BTreeMap<VifId, Vif>,
    wanted: Vec<(xenbus::Side, String)>,
    asks: VecDeque<Ask>,
    asked: Option<(u32, Ask)>,
    last_request: u32,
    is_list_due: bool,
    /// Guests whose interfaces are still to be listed, and what was listed so far.
    listing: Option<(Vec<u16>, Vec<VifId>)>,
    actions: VecDeque<Action>,
}

/// Token of the watch on all interfaces.
const ALL: &str = "all";

impl Hotplug {
    /// The state machine of the unit with domid `backend`. `connected` are the interfaces whose
    /// rings a former life of ours left in use.
    pub fn new(backend: u16, connected: &[VifId]) -> Self {
        let vifs = connected.iter().map(|id| (*id, Vif::connected())).collect();
        let mut hotplug = Self {
            backend,
            vifs,
            wanted: xenbus::Backend::wanted(),
            asks: VecDeque::new(),
            asked: None,
            last_request: 0,
            is_list_due: true,
            listing: None,
            actions: VecDeque::new(),
        };
        hotplug.store_restarted();
        hotplug
    }

    fn root(&self) -> String {
        format!("/local/domain/{}/backend/vif", self.backend)
    }

    fn back(&self, id: VifId) -> String {
        format!("{}/{}/{}", self.root(), id.guest.0, id.handle)
    }

    /// The frontend's directory: the toolstack always makes it here, and whatever `frontend` says,
    /// only the guest's own nodes are believed to be the guest's.
    fn front(id: VifId) -> String {
        format!("/local/domain/{}/device/vif/{}", id.guest.0, id.handle)
    }

    /// The connection to XenStore is a new one: watches are gone, everything is looked at again.
    pub fn store_restarted(&mut self) {
        self.asks.clear();
        self.asked = None;
        self.listing = None;
        self.is_list_due = true;
        self.asks.push_back(Ask::Watch(self.root(), ALL.to_string()));
        for vif in self.vifs.values_mut() {
            vif.begin_again();
        }
    }

    /// The next thing to do; `None`: nothing before the next input.
    pub fn poll(&mut self) -> Option<Action> {
        if self.actions.is_empty() {
            self.advance();
        }
        self.actions.pop_front()
    }

    /// Takes a message of XenStore.
    pub fn store_said(&mut self, message: &StoreMessage) {
        if message.header.operation == Operation::WatchEvent {
            return self.event(&message.payload);
        }
        let Some((_, ask)) = self.asked.take_if(|(number, _)| *number == message.header.request)
        else {
            return;
        };
        let answer = message.answer().unwrap_or_default();
        match ask {
            Ask::Watch(..) | Ask::Unwatch(..) | Ask::Write(..) => {}
            Ask::Guests => self.listed_guests(answer),
            Ask::Handles(guest) => self.listed_handles(guest, answer),
            Ask::Read(id, index) => {
                let value = message.answer().ok().map(text);
                self.read(id, index, value);
            }
        }
    }

    /// What became of [`Action::Connect`].
    pub fn connected(&mut self, id: VifId, result: Result<(), &'static str>) {
        let Some(backend) = self.vifs.get_mut(&id).and_then(|vif| vif.backend.as_mut()) else {
            return;
        };
        let actions = backend.connected(result);
        self.execute(id, actions);
    }

    /// The guest is going: nothing of it may stay mapped.
    pub fn guest_gone(&mut self, guest: DomId) {
        let gone: Vec<VifId> = self.vifs.keys().copied().filter(|id| id.guest == guest).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    /// Guests that have an interface here.
    pub fn guests(&self) -> impl Iterator<Item = DomId> + '_ {
        self.vifs.keys().map(|id| id.guest)
    }

    /// A line per interface: its state.
    pub fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.vifs.iter().map(|(id, vif)| match &vif.backend {
            Some(backend) => format!("{id}: {:?}", backend.state()),
            None => format!("{id}: not looked at yet"),
        })
    }

    fn forget(&mut self, id: VifId) {
        let Some(vif) = self.vifs.remove(&id) else { return };
        if vif.is_connected() {
            self.actions.push_back(Action::Disconnect(id));
        }
        let is_about =
            |ask: &Ask| matches!(ask, Ask::Read(of, _) | Ask::Write(of, ..) if *of == id);
        self.asks.retain(|ask| !is_about(ask));
        if vif.is_watched {
            self.asks.push_back(Ask::Unwatch(Self::front(id), token(id)));
        }
    }

    fn event(&mut self, payload: &[u8]) {
        let mut parts = payload.split(|byte| *byte == 0).map(text);
        let (path, from) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if from != ALL {
            if let Some(vif) = parse_token(&from).and_then(|id| self.vifs.get_mut(&id)) {
                vif.is_due = true;
            }
            return;
        }
        // Of the nodes of an interface, only one is written by somebody else once it exists.
        let root = self.root();
        let below = path.strip_prefix(root.as_str()).unwrap_or_default();
        let mut names = below.split('/').skip(1);
        let (guest, handle, key) = (names.next(), names.next(), names.next());
        match (guest.zip(handle).and_then(|(guest, handle)| parse(guest, handle)), key) {
            (Some(id), Some(key)) => match self.vifs.get_mut(&id) {
                Some(vif) => vif.is_due |= key == "online",
                None => self.is_list_due = true,
            },
            (None, Some(_)) => {}
            (_, None) => self.is_list_due = true,
        }
    }

    fn advance(&mut self) {
        if self.asked.is_some() {
            return;
        }
        if self.asks.is_empty() {
            self.look_further();
        }
        let Some(ask) = self.asks.pop_front() else { return };
        let call = match &ask {
            Ask::Watch(path, token) => Call::watch(path, token),
            Ask::Unwatch(path, token) => Call::unwatch(path, token),
            Ask::Guests => Call::directory(&self.root()),
            Ask::Handles(guest) => Call::directory(&format!("{}/{guest}", self.root())),
            Ask::Read(id, index) => {
                let (side, key) = &self.wanted[*index];
                let directory = match side {
                    xenbus::Side::Backend => self.back(*id),
                    xenbus::Side::Frontend => Self::front(*id),
                };
                Call::read(&format!("{directory}/{key}"))
            }
            Ask::Write(id, key, value) => Call::write(&format!("{}/{key}", self.back(*id)), value),
        };
        self.last_request = self.last_request.wrapping_add(1);
        self.asked = Some((self.last_request, ask));
        self.actions.push_back(Action::Store(call.encode(self.last_request)));
    }

    /// Chooses what to look at next.
    fn look_further(&mut self) {
        if let Some((guests, _)) = &mut self.listing {
            match guests.pop() {
                Some(guest) => self.asks.push_back(Ask::Handles(guest)),
                None => self.compare(),
            }
        }
        if self.asks.is_empty() && core::mem::take(&mut self.is_list_due) {
            self.asks.push_back(Ask::Guests);
            return;
        }
        if !self.asks.is_empty() {
            return;
        }
        let due = self.vifs.iter_mut().find(|(_, vif)| vif.is_due);
        if let Some((id, vif)) = due {
            vif.look();
            if !core::mem::replace(&mut vif.is_watched, true) {
                self.asks.push_back(Ask::Watch(Self::front(*id), token(*id)));
            }
            self.asks.extend((0..self.wanted.len()).map(|index| Ask::Read(*id, index)));
        }
    }

    fn listed_guests(&mut self, answer: &[u8]) {
        let names = answer.split(|byte| *byte == 0);
        let guests = names.filter_map(|name| text(name).parse().ok()).take(GUESTS_MAX).collect();
        self.listing = Some((guests, Vec::new()));
    }

    fn listed_handles(&mut self, guest: u16, answer: &[u8]) {
        let Some((_, found)) = &mut self.listing else { return };
        let names = answer.split(|byte| *byte == 0);
        let handles = names.filter_map(|name| text(name).parse().ok());
        let handles = handles.filter(|handle| *handle < HANDLES_MAX);
        found.extend(handles.map(|handle| VifId { guest: DomId(guest), handle }));
    }

    /// Everything is listed: who came, who went?
    fn compare(&mut self) {
        let Some((_, found)) = self.listing.take() else { return };
        let gone: Vec<VifId> = self.vifs.keys().copied().filter(|id| !found.contains(id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
        for id in found {
            self.vifs.entry(id).or_insert_with(Vif::new);
        }
    }

    fn read(&mut self, id: VifId, index: usize, value: Option<String>) {
        let Some(vif) = self.vifs.get_mut(&id) else { return };
        if let Some(value) = value {
            vif.keys.insert(self.wanted[index].clone(), value);
        }
        if index + 1 < self.wanted.len() {
            return;
        }
        let actions = vif.step(id);
        self.execute(id, actions);
    }

    fn execute(&mut self, id: VifId, actions: Vec<xenbus::Action>) {
        for action in actions {
            match action {
                xenbus::Action::Write(key, value) => {
                    self.asks.push_back(Ask::Write(id, key, value));
                }
                xenbus::Action::Connect(connection) => {
                    self.actions.push_back(Action::Connect(id, connection));
                }
                xenbus::Action::Disconnect => self.actions.push_back(Action::Disconnect(id)),
                // It stays known, and closed, until its directory is gone.
                xenbus::Action::Remove => {}
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn token(id: VifId) -> String {
    format!("{}/{}", id.guest.0, id.handle)
}

fn parse(guest: &str, handle: &str) -> Option<VifId> {
    Some(VifId { guest: DomId(guest.parse().ok()?), handle: handle.parse().ok()? })
}

fn parse_token(token: &str) -> Option<VifId> {
    let (guest, handle) = token.split_once('/')?;
    parse(guest, handle)
}
