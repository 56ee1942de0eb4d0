//! Makes the messages that wait, from the state as it is when they leave.

use alloc::vec::Vec;

use fabric::SharedMemory;
use noraft::LogIndex;

use crate::id::Position;
use crate::node::Node;
use crate::peer::{
    APPEND, APPEND_REPLY, CHUNK_ACK, PRE_VOTE, PRE_VOTE_REPLY, PROBE, Transfer, VOTE, VOTE_REPLY,
};
use crate::record::{Record, encode_config};
use crate::storage::Damage;
use crate::wire::{
    FLAG_GAP, FLAG_GRANTED, FLAG_LAST, FLAG_NEEDS_SNAPSHOT, MAX_MESSAGE, Message, MessageKind,
    begin, pack_chunk,
};

/// Most records in one append: keeps the count small and the time per message bounded.
const MAX_RECORDS: u16 = 256;

impl<M: SharedMemory> Node<M> {
    /// Puts the next message into `out` (at most [`MAX_MESSAGE`] bytes) and says for which
    /// replica it is; `None` when nothing waits. Everything it rests on is stored by then.
    ///
    /// A message may be lost, doubled or late: what matters is repeated.
    pub fn poll_message(&mut self, now_ns: u64, out: &mut Vec<u8>) -> Option<u8> {
        self.flush(now_ns);
        let slots = usize::from(self.settings.replicas);
        for step in 0..slots {
            let slot = (self.next_out + step) % slots;
            while !self.peers[slot].out.is_empty() && self.damage.is_none() {
                if self.make(slot, out) {
                    self.next_out = slot;
                    return Some(slot as u8 + 1);
                }
            }
        }
        None
    }

    /// Makes one waiting message for `slot`; false when it has become pointless.
    fn make(&mut self, slot: usize, out: &mut Vec<u8>) -> bool {
        begin(out);
        let kind = self.peers[slot].out.take();
        if kind >= APPEND {
            // Only a leader sends these, and only to members.
            let wanted = self.leads.is_some() && self.peers[slot].member;
            return wanted
                && match kind {
                    APPEND => self.make_append(slot, out),
                    PROBE => self.seal_append(slot, self.peers[slot].out.probe, 0, out),
                    _ => self.make_chunk(slot, out),
                };
        }
        let term = self.core.current_term().get();
        let last = Position::from(self.core.log().last_position());
        let mut message = self.blank(slot, MessageKind::Hello);
        let waiting = &self.peers[slot].out;
        let granted = |granted: bool| if granted { FLAG_GRANTED } else { 0 };
        match kind {
            PRE_VOTE => {
                message.kind = MessageKind::PreVote;
                message.term = term + 1;
                message.position = last;
            }
            PRE_VOTE_REPLY => {
                message.kind = MessageKind::PreVoteReply;
                message.position.index = waiting.pre_vote_reply.0;
                message.flags = granted(waiting.pre_vote_reply.1);
            }
            VOTE if !self.core.role().is_candidate() => return false,
            VOTE => {
                message.kind = MessageKind::Vote;
                message.position = last;
            }
            // A vote counts in its own term only; a refusal just tells the present one.
            VOTE_REPLY if waiting.vote_reply.1 && waiting.vote_reply.0 != term => return false,
            VOTE_REPLY => {
                message.kind = MessageKind::VoteReply;
                message.flags = granted(waiting.vote_reply.1);
            }
            APPEND_REPLY => {
                message.kind = MessageKind::AppendReply;
                message.position = last;
                message.commit = self.core.commit_index().get();
                message.number = waiting.append_reply.number;
                message.flags = if waiting.append_reply.gap { FLAG_GAP } else { 0 };
                message.flags |= if self.storage.restoring() { FLAG_NEEDS_SNAPSHOT } else { 0 };
            }
            CHUNK_ACK => {
                message.kind = MessageKind::ChunkAck;
                message.commit = pack_chunk(waiting.chunk_ack.0, waiting.chunk_ack.1);
            }
            _ => {}
        }
        message.seal(out);
        true
    }

    fn blank(&self, slot: usize, kind: MessageKind) -> Message<'static> {
        let peer = &self.peers[slot];
        Message {
            kind,
            from: self.ident,
            to: peer.ident,
            from_boot: self.settings.boot_epoch,
            to_boot: peer.boot,
            term: self.core.current_term().get(),
            position: Position::default(),
            commit: 0,
            number: 0,
            flags: 0,
            count: 0,
            body: &[],
        }
    }

    fn seal_append(&mut self, slot: usize, prev: Position, count: u16, out: &mut [u8]) -> bool {
        let peer = &mut self.peers[slot];
        peer.number = peer.number.wrapping_add(1);
        let mut message = self.blank(slot, MessageKind::Append);
        message.position = prev;
        message.commit = self.core.commit_index().get();
        message.number = self.peers[slot].number;
        message.count = count;
        message.seal(out);
        true
    }

    /// Entries from the first that was not sent yet, as many as fit.
    fn make_append(&mut self, slot: usize, out: &mut Vec<u8>) -> bool {
        let next = self.peers[slot].next;
        let before = self.core.log().entries().get_term(LogIndex::new(next - 1));
        // The first entry follows the founders' membership, which no newcomer holds: with it in its
        // log a newcomer would refuse the snapshot that brings another membership for that place.
        let is_newcomer = self.peers[slot].ident.is_some_and(|ident| ident.storage_epoch() != 0);
        let Some(term) = before.filter(|_| next > 1 || !is_newcomer) else {
            // The log has forgotten them, or they would be of no use.
            self.want_transfer(slot);
            return false;
        };
        let prev = Position { term: term.get(), index: next - 1 };
        match self.gather(next, out) {
            Ok(count) => {
                self.peers[slot].next = next + u64::from(count);
                self.seal_append(slot, prev, count, out)
            }
            Err(damage) => {
                self.fail(damage);
                false
            }
        }
    }

    /// Appends records from index `next` to `out` and says how many.
    fn gather(&mut self, next: u64, out: &mut Vec<u8>) -> Result<u16, Damage> {
        let last = self.core.log().last_position().index.get();
        let recent = &self.recent;
        if next == recent.first && recent.count == last + 1 - next && recent.count != 0 {
            // The common case: what was just stored goes out as it was encoded.
            out.extend_from_slice(&recent.bytes);
            return Ok(recent.count as u16);
        }
        let mut count = 0;
        let mut scratch = core::mem::take(&mut self.scratch);
        let mut result = Ok(());
        for index in next..=last {
            result = self.storage.read(index, &mut scratch).map(|_: Record<'_>| ());
            if result.is_err() || out.len() + scratch.len() > MAX_MESSAGE || count == MAX_RECORDS {
                break;
            }
            out.extend_from_slice(&scratch);
            count += 1;
        }
        self.scratch = scratch;
        result.map(|()| count)
    }

    fn make_chunk(&mut self, slot: usize, out: &mut Vec<u8>) -> bool {
        let Some(Transfer::Open(open)) = &self.peers[slot].transfer else { return false };
        out.extend_from_slice(&open.digest.to_le_bytes());
        encode_config(&open.config, out);
        out.extend_from_slice(&open.data);
        let mut message = self.blank(slot, MessageKind::Chunk);
        message.position = open.position;
        message.commit = pack_chunk(open.number, open.chunk);
        message.flags = if open.last { FLAG_LAST } else { 0 };
        message.seal(out);
        true
    }
}
