//! TRANSACTION_START and TRANSACTION_END.

use alloc::boxed::Box;
use alloc::vec::Vec;
use wire::{Errno, Permission, text};

use crate::effects::Effects;
use crate::node::{ENTRY_LEN, Node};
use crate::ops::entries;
use crate::path;
use crate::pulse;
use crate::quota::Quota;
use crate::request::Reply;
use crate::state::{Call, NODE_HEAD_LEN, PRIVILEGED_TRANSACTIONS_MAX, State};
use crate::transaction::{Change, Transaction};
use crate::watch::Match;

impl State {
    /// TRANSACTION_START.
    pub(crate) fn op_transaction_start(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        if call.transaction != 0 {
            let nested = self.take_transaction(call)?;
            self.put_back(call, nested);
            return Err(Errno::Busy);
        }
        let (tree, generation) = (self.tree.clone(), self.committed + 1);
        let Some(client) = self.client(call.client) else { return Err(Errno::NotFound) };
        let open = client.transactions.len();
        self.check_quota(call.domid, Quota::Transactions, open as u64 + 1, fx)?;
        if open >= PRIVILEGED_TRANSACTIONS_MAX {
            return Err(Errno::NoSpace);
        }
        let Some(client) = self.client_mut(call.client) else { return Err(Errno::NotFound) };
        let mut id = client.next_transaction;
        while id == 0 || client.transactions.iter().any(|open| open.id == id) {
            id = id.wrapping_add(1);
        }
        client.next_transaction = id.wrapping_add(1);
        client.transactions.push(Box::new(Transaction::new(id, &tree, generation, false)));
        self.open_transactions += 1;
        self.charge(call.domid, Quota::Transactions, 1);
        out.decimal(u64::from(id));
        out.nul();
        Ok(())
    }

    /// TRANSACTION_END. A refused commit ends the transaction, too.
    pub(crate) fn op_transaction_end(
        &mut self,
        call: &Call<'_>,
        out: &mut Reply,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        let wanted = match text::only(call.payload) {
            Some(b"T") => true,
            Some(b"F") => false,
            _ => return Err(Errno::Invalid),
        };
        let open = *self.take_transaction(call)?.ok_or(Errno::NotFound)?;
        self.open_transactions -= 1;
        self.charge(call.domid, Quota::Transactions, -1);
        if wanted {
            match self.judge(call, &open, fx) {
                // The transaction is over all the same: that is kept, with this reply.
                Err(error) => {
                    out.refuse(error);
                    return Ok(());
                }
                Ok(()) => {
                    let decided = decided(open, fx);
                    self.replay(decided, fx);
                }
            }
        }
        out.acknowledge();
        Ok(())
    }

    /// Whether a transaction may be committed now.
    pub(crate) fn judge(
        &mut self,
        call: &Call<'_>,
        open: &Transaction,
        fx: &mut dyn Effects,
    ) -> Result<(), Errno> {
        if open.lost {
            return Err(Errno::Again);
        }
        if open.failed {
            return Err(Errno::NoSpace);
        }
        // What only read saw one snapshot: it is serialisable as of its beginning.
        if open.changes.is_empty() {
            return Ok(());
        }
        if let Some(path) = open.conflict(&self.tree, fx) {
            self.conflicts += 1;
            let found = self.tree.seek(path).node;
            let commit = found.generation().max(found.children_generation());
            let is_own = self.writer(commit) == Some(call.client);
            if let Some(client) = self.client_mut(call.client).filter(|_| !is_own) {
                client.conflicts += 1;
            }
            return Err(Errno::Again);
        }
        if let Some(client) = self.client_mut(call.client) {
            client.conflicts = 0;
        }
        if !call.privileged {
            for (owner, change) in &open.nodes {
                let used = i64::from(self.domain_entry(*owner).used(Quota::Nodes));
                if *change > 0 {
                    self.check_quota(*owner, Quota::Nodes, (used + change).max(0) as u64, fx)?;
                }
            }
        }
        let mut kept = |path: &[u8]| {
            fx.worked(pulse::look(path));
            open.tree.get(path).map(|found| kept(found.node) + path.len())
        };
        let bytes: usize = open.changes.keys().filter_map(|path| kept(path)).sum();
        if !fx.has_room(open.changes.len() + 1, bytes + wire::MESSAGE_MAX) {
            return Err(Errno::NoSpace);
        }
        Ok(())
    }

    /// Brings every changed path of the live tree to what the transaction left there, parents
    /// before children, then fires the watches in the order of the changes.
    pub(crate) fn replay(&mut self, mut decided: Vec<Decided>, fx: &mut dyn Effects) {
        let generation = self.committed + 1;
        for Decided { path, outcome, .. } in &decided {
            fx.worked(pulse::change(path));
            let exists = self.tree.get(path).is_some();
            match outcome {
                Some(Outcome { permissions, value }) if exists => {
                    self.put_live(path, Some(permissions), Some(value), fx);
                }
                Some(Outcome { permissions, value }) => {
                    let name = path::components(path).last().unwrap_or(b"");
                    self.add_node(path::parent(path), name, permissions, value, generation, fx);
                }
                None if exists => self.remove_quietly(path, fx),
                None => {}
            }
        }
        decided.sort_by_key(|change| change.order);
        for change in decided {
            fx.worked(pulse::look(&change.path));
            if let Some(kind) = change.fires {
                self.fire(&change.path, kind, change.before.as_deref(), fx);
            }
        }
    }

    /// Removes a subtree without events: the transaction has its own list of them.
    fn remove_quietly(&mut self, path: &[u8], fx: &mut dyn Effects) {
        let watches = core::mem::take(&mut self.watches);
        self.remove_live(path, fx);
        self.watches = watches;
    }

    /// The permissions at a path, for tests and reports.
    pub fn permissions(&self, path: &[u8]) -> Option<Box<[Permission]>> {
        self.tree.get(path).map(|found| entries(found.node))
    }
}

/// What a transaction left of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub permissions: Box<[Permission]>,
    pub value: Box<[u8]>,
}

/// A path that a committed transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub path: Box<[u8]>,
    /// Place in the order of first changes, for the order of events.
    pub order: u32,
    /// Which watches hear of it, if any.
    pub fires: Option<Match>,
    /// Permissions before, for watchers that lost their right to see it.
    pub before: Option<Box<[Permission]>>,
    /// What is there now, if anything is.
    pub outcome: Option<Outcome>,
}

/// Bytes that the record of a node takes beside its name.
fn kept(node: &Node) -> usize {
    NODE_HEAD_LEN + node.permissions().count() * ENTRY_LEN + node.value().len()
}

/// What the transaction left at each path that it changed, in the order of the paths. It is
/// copied, so that the snapshot can go before the live tree changes: then nothing has to be copied
/// there.
pub(crate) fn decided(open: Transaction, fx: &mut dyn Effects) -> Vec<Decided> {
    let mut outcome = |path: &[u8]| {
        fx.worked(pulse::look(path));
        let node = open.tree.get(path)?.node;
        Some(Outcome { permissions: entries(node), value: node.value().into() })
    };
    let outcomes: Vec<_> = open.changes.keys().map(|path| outcome(path)).collect();
    let changes = open.into_changes().into_iter().zip(outcomes);
    let decide = |((path, Change { order, fires, before }), outcome)| Decided {
        path,
        order,
        fires,
        before,
        outcome,
    };
    changes.map(decide).collect()
}
