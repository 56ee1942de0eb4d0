//! Takes messages: first whether they are for this life of this replica, then what they say.

use fabric::SharedMemory;
use noraft::{LogEntries, LogIndex, Message as CoreMessage, Term};

use crate::machine::StateMachine;
use crate::node::{Node, entry_of};
use crate::peer::{HELLO, VOTE};
use crate::record::Kind;
use crate::settle::Context;
use crate::storage::Damage;
use crate::wire::{FLAG_GAP, FLAG_GRANTED, FLAG_NEEDS_SNAPSHOT, Message, MessageKind, Refusal};

/// Free bytes of the ring that entries from a leader leave: what this replica would need if it
/// came to lead.
const FOLLOWER_RESERVE: usize = 1024;

impl<M: SharedMemory> Node<M> {
    /// Takes one message. The machine is used for pieces of snapshots only.
    ///
    /// # Errors
    /// Why the message was not taken; nothing else needs to be done then.
    pub fn handle_message<S: StateMachine>(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        machine: &mut S,
    ) -> Result<(), Refusal> {
        let result = self.take(now_ns, bytes, machine);
        if let Err(refusal) = result {
            self.refused[refusal as usize] += 1;
        }
        result
    }

    fn take<S: StateMachine>(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        machine: &mut S,
    ) -> Result<(), Refusal> {
        if self.damage.is_some() {
            return Err(Refusal::Damaged);
        }
        self.flush(now_ns);
        let message = Message::decode(bytes)?;
        let slot = self.admit(now_ns, &message)?;
        match message.kind {
            MessageKind::Hello => self.take_hello(now_ns, slot),
            MessageKind::PreVote => self.take_pre_vote(now_ns, slot, &message),
            MessageKind::PreVoteReply => self.take_pre_vote_reply(now_ns, slot, &message),
            MessageKind::Vote => {
                let last_position = message.position.core();
                let (from, term) = (message.from.core(), Term::new(message.term));
                self.feed(CoreMessage::RequestVoteCall { from, term, last_position });
                self.settle(now_ns, &Context::default());
            }
            MessageKind::VoteReply => {
                let vote_granted = message.flags & FLAG_GRANTED != 0;
                let (from, term) = (message.from.core(), Term::new(message.term));
                self.feed(CoreMessage::RequestVoteReply { from, term, vote_granted });
                self.settle(now_ns, &Context::default());
            }
            MessageKind::Append => return self.take_append(now_ns, &message),
            MessageKind::AppendReply => self.take_append_reply(now_ns, slot, &message),
            MessageKind::Chunk => return self.take_chunk(now_ns, slot, &message, machine),
            MessageKind::ChunkAck => return self.take_chunk_ack(now_ns, slot, &message),
        }
        Ok(())
    }

    /// Checks both ends of a message, and learns from it which life its sender is in.
    fn admit(&mut self, now_ns: u64, message: &Message<'_>) -> Result<usize, Refusal> {
        let from = message.from;
        let ours = |replica: u8| replica == self.settings.replica;
        if from.replica() > self.settings.replicas
            || ours(from.replica())
            || message.to.is_some_and(|to| !ours(to.replica()))
            || message.from_boot == 0
        {
            return Err(Refusal::Misdirected);
        }
        let slot = from.slot();
        let peer = &mut self.peers[slot];
        if message.from_boot < peer.boot || peer.ident.is_some_and(|known| known > from) {
            return Err(Refusal::FormerSender);
        }
        if peer.renew(from, message.from_boot) {
            self.drop_transfer(slot);
            self.refresh_members();
            self.arm(now_ns);
        }
        let to_us = message.to == Some(self.ident) && message.to_boot == self.settings.boot_epoch;
        if !to_us {
            // The sender has to learn who we are now; whatever it told our former life is void.
            self.peers[slot].out.want(HELLO);
            if message.kind != MessageKind::Hello {
                return Err(Refusal::FormerReceiver);
            }
        }
        Ok(slot)
    }

    fn take_hello(&mut self, now_ns: u64, slot: usize) {
        self.settle(now_ns, &Context::default());
        if self.leads.is_some() {
            self.peers[slot].out.probe_at(self.core.log().last_position().into());
        } else if self.core.role().is_candidate() && self.peers[slot].member {
            // What was asked before one knew the other's life has been refused.
            self.peers[slot].out.want(VOTE);
        }
    }

    /// Gives a message to the core.
    pub(crate) fn feed(&mut self, message: CoreMessage) {
        if self.core.handle_message(&message).is_err() {
            self.fail(Damage::Log);
        }
    }

    /// Takes over a newer term that the core learns in no other way.
    pub(crate) fn adopt_term(&mut self, now_ns: u64, term: u64) {
        if term > self.core.current_term().get() {
            // A refused vote has no other effect than its term; nobody has identity 0.
            let (from, term) = (noraft::NodeId::new(0), Term::new(term));
            self.feed(CoreMessage::RequestVoteReply { from, term, vote_granted: false });
            self.settle(now_ns, &Context::default());
        }
    }

    fn take_append(&mut self, now_ns: u64, message: &Message<'_>) -> Result<(), Refusal> {
        let mut entries = LogEntries::new(message.position.core());
        let (mut readable, mut membership) = (true, false);
        message.records(|record| {
            membership |= record.kind == Kind::Config;
            match entry_of(record) {
                Some(entry) => entries.push(entry),
                None => readable = false,
            }
        })?;
        if !readable {
            return Err(Refusal::Malformed);
        }
        let (start, last) = (self.storage.start().index, self.storage.last_index());
        let room = self.storage.room_after(message.position.index.clamp(start, last));
        if !message.body.is_empty() && room < message.body.len() + FOLLOWER_RESERVE {
            return Err(Refusal::NoRoom);
        }
        if message.term >= self.core.current_term().get() {
            self.timer.note_leader(now_ns);
        }
        let sent = entries.last_position();
        self.feed(CoreMessage::AppendEntriesCall {
            from: message.from.core(),
            term: Term::new(message.term),
            commit_index: LogIndex::new(message.commit),
            entries,
        });
        let gap = !self.core.log().entries().contains(sent);
        if gap {
            // The core may have dropped entries, a membership among them.
            self.refresh_members();
        }
        let context = Context {
            records: message.body,
            membership,
            first: message.position.index + 1,
            number: message.number,
            gap,
        };
        self.settle(now_ns, &context);
        Ok(())
    }

    fn take_append_reply(&mut self, now_ns: u64, slot: usize, message: &Message<'_>) {
        self.feed(CoreMessage::AppendEntriesReply {
            from: message.from.core(),
            term: Term::new(message.term),
            last_position: message.position.core(),
        });
        if self.leads.is_some_and(|(term, _)| term == message.term) {
            let matched = self.core.follower_match_index(message.from.core());
            let matched = matched.map_or(0, |index| index.get());
            let peer = &mut self.peers[slot];
            // An answer that tells nothing new, as to each heartbeat, must not put off what is
            // to be repeated.
            let progress = matched > peer.matched || message.commit > peer.commit;
            peer.matched = matched;
            peer.commit = peer.commit.max(message.commit);
            peer.needs_snapshot = message.flags & FLAG_NEEDS_SNAPSHOT != 0;
            if peer.needs_snapshot {
                self.want_transfer(slot);
            } else if self.peers[slot].transferring().is_some_and(|at| at <= message.commit) {
                // It is there: by other means, or its last acknowledgement was lost.
                self.drop_transfer(slot);
            }
            if progress {
                self.note_progress(slot);
            }
        }
        let gap = message.flags & FLAG_GAP != 0;
        self.settle(now_ns, &Context { number: message.number, gap, ..Context::default() });
    }
}
