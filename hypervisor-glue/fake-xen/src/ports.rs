//! Event channels of one domain.

use std::collections::{BTreeMap, BTreeSet};

use abi::{PortStatus, Virq};

/// The ports of a domain.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    bound: BTreeMap<u32, PortStatus>,
    pending: BTreeSet<u32>,
    /// Ports that somebody else allocated and the domain does not listen to yet: masked.
    masked: BTreeSet<u32>,
    cursor: u32,
}

impl Ports {
    /// The lowest free port; 0 is none.
    pub(crate) fn allocate(&mut self, max_port: u32, status: PortStatus) -> Option<u32> {
        let port = (1..=max_port).find(|port| !self.bound.contains_key(port))?;
        self.bound.insert(port, status);
        Some(port)
    }

    /// Masks a port that somebody else allocated, until the domain listens to it.
    pub(crate) fn mask(&mut self, port: u32) {
        self.masked.insert(port);
    }

    pub(crate) fn listen(&mut self, port: u32) {
        self.masked.remove(&port);
        self.raise(port);
    }

    pub(crate) fn status(&self, port: u32) -> PortStatus {
        self.bound.get(&port).copied().unwrap_or(PortStatus::Closed)
    }

    pub(crate) fn set(&mut self, port: u32, status: PortStatus) {
        self.bound.insert(port, status);
    }

    pub(crate) fn close(&mut self, port: u32) -> Option<PortStatus> {
        self.pending.remove(&port);
        self.masked.remove(&port);
        self.bound.remove(&port)
    }

    pub(crate) fn raise(&mut self, port: u32) {
        if self.bound.contains_key(&port) {
            self.pending.insert(port);
        }
    }

    pub(crate) fn raise_virq(&mut self, virq: Virq) {
        let wanted = PortStatus::Virq(virq as u32);
        if let Some((port, _)) = self.bound.iter().find(|(_, status)| **status == wanted) {
            self.pending.insert(*port);
        }
    }

    pub(crate) fn has_virq(&self, virq: Virq) -> bool {
        self.bound.values().any(|status| *status == PortStatus::Virq(virq as u32))
    }

    pub(crate) fn raise_all(&mut self) {
        self.pending.extend(self.bound.keys());
    }

    pub(crate) fn any_pending(&self) -> bool {
        self.pending.difference(&self.masked).next().is_some()
    }

    /// Round-robin, as the runtime does it.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let mut ready = self.pending.difference(&self.masked).copied();
        let first = ready.clone().next()?;
        let next = ready.find(|port| *port >= self.cursor).unwrap_or(first);
        self.pending.remove(&next);
        self.cursor = next + 1;
        Some(next)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, PortStatus)> {
        self.bound.iter().map(|(port, status)| (*port, *status))
    }
}
