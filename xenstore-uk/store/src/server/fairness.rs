//! Fairness between transactions and those who change what they read.
//!
//! A client whose transactions fail again and again because of others gets a short time in which
//! the others' changes wait, so that its next one can succeed. Only unprivileged clients have to
//! wait, only for changes, and only for a small share of the time: so it cannot be used to slow
//! others down much.

use alloc::vec::Vec;

use fabric::SharedMemory;
use wire::{Header, Operation};

use crate::request::Request;
use crate::server::Server;
use crate::state::State;

/// Conflicts in a row after which the next transaction is protected.
const CONFLICTS: u32 = 3;

/// Longest protection: a transaction of some ten requests of a guest, each some 200 µs.
const WINDOW_NS: u64 = 5_000_000;

/// Time between the beginnings of two protections: others wait for at most a tenth of it.
const INTERVAL_NS: u64 = 50_000_000;

/// The transaction that others have to wait for.
#[derive(Clone, Copy, Debug)]
struct Protected {
    client: u16,
    until_ns: u64,
}

/// What fairness has to remember.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    protected: Option<Protected>,
    next_ns: u64,
    /// Connections whose request waits in their ring.
    deferred: Vec<u16>,
}

impl Fairness {
    /// When a protection ends.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.protected.map(|protected| protected.until_ns)
    }
}

impl<M: SharedMemory, A: SharedMemory> Server<M, A> {
    /// Whether a request has to wait for another client's transaction. It stays in its ring.
    pub(super) fn is_deferred(&mut self, client: u16, header: &Header, now_ns: u64) -> bool {
        let Some(protected) = self.fairness.protected else { return false };
        let request = Request { client, position: 0, header: *header, payload: &[] };
        let is_change = !State::is_read_only(&request)
            && !matches!(header.operation, Operation::TransactionStart);
        let is_privileged = self.state.client(client).is_none_or(|client| client.privileged);
        if client == protected.client || is_privileged || !is_change {
            return false;
        }
        if now_ns >= protected.until_ns {
            self.end_protection();
            return false;
        }
        if !self.fairness.deferred.contains(&client) {
            self.fairness.deferred.push(client);
        }
        self.stats.deferred += 1;
        true
    }

    /// Ends a protection whose time is over.
    pub(super) fn check_protection(&mut self, now_ns: u64) {
        if self.fairness.protected.is_some_and(|protected| now_ns >= protected.until_ns) {
            self.end_protection();
        }
    }

    fn end_protection(&mut self) {
        self.fairness.protected = None;
        for client in core::mem::take(&mut self.fairness.deferred) {
            self.kick(client);
        }
    }

    /// Looks at a request that has just been executed.
    pub(super) fn note_transaction(&mut self, client: u16, header: &Header, now_ns: u64) {
        let Some(found) = self.state.client(client) else { return };
        let (conflicts, has_open) = (found.conflicts, !found.transactions.is_empty());
        let is_protected =
            self.fairness.protected.is_some_and(|protected| protected.client == client);
        match header.operation {
            Operation::TransactionStart
                if conflicts >= CONFLICTS
                    && has_open
                    && self.fairness.protected.is_none()
                    && now_ns >= self.fairness.next_ns =>
            {
                let until_ns = now_ns + WINDOW_NS;
                self.fairness.protected = Some(Protected { client, until_ns });
                self.fairness.next_ns = now_ns + INTERVAL_NS;
                self.stats.protections += 1;
            }
            _ if is_protected && !has_open => self.end_protection(),
            _ => {}
        }
    }
}
