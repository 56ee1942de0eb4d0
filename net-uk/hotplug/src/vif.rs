//! One interface, as far as it is known.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use netback::xenbus::{Action, Backend, Keys, Side, State};

use crate::VifId;

/// An interface.
#[derive(Debug)]
pub(crate) struct Vif {
    /// Known after the first look.
    pub backend: Option<Backend>,
    /// A former life of ours left its rings in use.
    was_connected: bool,
    /// What the last look found.
    pub keys: Read,
    /// It is to be looked at.
    pub is_due: bool,
    /// Changes of its frontend are told.
    pub is_watched: bool,
}

/// Keys and values.
pub(crate) type Read = BTreeMap<(Side, String), String>;

struct Found<'a>(&'a Read);

impl Keys for Found<'_> {
    fn get(&self, side: Side, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|((of, name), _)| *of == side && name == key);
        found.map(|(_, value)| value.as_str())
    }
}

impl Vif {
    /// One that was just found.
    pub(crate) fn new() -> Self {
        Self {
            backend: None,
            was_connected: false,
            keys: Read::new(),
            is_due: true,
            is_watched: false,
        }
    }

    /// One that a former life of ours left connected.
    pub(crate) fn connected() -> Self {
        Self { was_connected: true, ..Self::new() }
    }

    /// The connection to XenStore is a new one.
    pub(crate) fn begin_again(&mut self) {
        self.is_watched = false;
        self.is_due = true;
    }

    /// A look begins.
    pub(crate) fn look(&mut self) {
        self.is_due = false;
        self.keys.clear();
    }

    /// Whether its rings are in use.
    pub(crate) fn is_connected(&self) -> bool {
        self.backend.as_ref().map_or(self.was_connected, Backend::is_connected)
    }

    /// A look has ended: compares and acts.
    pub(crate) fn step(&mut self, id: VifId) -> Vec<Action> {
        let Self { backend, was_connected, keys, .. } = self;
        let found = Found(keys);
        let backend = backend.get_or_insert_with(|| {
            let state = State::parse(found.get(Side::Backend, "state").unwrap_or_default());
            Backend::resume(id.guest, id.handle, state, *was_connected)
        });
        backend.step(&found)
    }
}
