//! Puts a newcomer in the place of the member that lost its storage.
//!
//! Three committed steps, each driven by whoever leads: the newcomer joins without a vote and is
//! brought up to date; a joint membership replaces the old identity by the new one; the core ends
//! the joint membership. Old and new majorities overlap throughout, and neither ever counts the
//! newcomer for what its former life had stored.

use fabric::SharedMemory;
use noraft::NodeId;

use crate::id::Ident;
use crate::node::Node;

/// Free bytes of the ring without which no change of membership is begun.
const CHANGE_ROOM: usize = 768;

impl<M: SharedMemory> Node<M> {
    /// Proposes the next step, when this replica leads and no step is under way.
    pub(crate) fn drive_membership(&mut self) {
        let commit = self.core.commit_index().get();
        let settled = self.leads.is_some_and(|(_, first)| commit >= first);
        let config = self.core.config();
        if !settled
            || commit < self.config_index
            || config.is_joint_consensus()
            || self.staged.count != 0
            || self.storage.room_after(self.storage.last_index()) < CHANGE_ROOM
        {
            return;
        }
        let ours = self.ident.slot();
        let newcomer = |slot: &usize| {
            let peer = &self.peers[*slot];
            let fresh = peer.ident.filter(|_| *slot != ours && peer.up)?;
            (!config.voters.contains(&fresh.core())).then_some((*slot, fresh))
        };
        let Some((slot, fresh)) = (0..self.peers.len()).find_map(|slot| newcomer(&slot)) else {
            return;
        };
        let former = |id: &NodeId| {
            Ident::from_raw(id.get()).is_some_and(|old| old.slot() == slot && old != fresh)
        };
        let next = if !config.non_voters.contains(&fresh.core()) {
            let mut next = config.clone();
            next.non_voters.retain(|id| !former(id));
            next.non_voters.insert(fresh.core());
            next
        } else if self.peers[slot].matched >= commit && !self.peers[slot].needs_snapshot {
            let leaving = config.voters.iter().copied().find(former);
            config.to_joint_consensus(&[fresh.core()], leaving.as_slice())
        } else {
            return;
        };
        self.core.propose_config(next);
    }
}
