//! Snapshots on their way: one chunk at a time, each acknowledged before the next is made.

use alloc::vec;

use fabric::SharedMemory;
use noraft::LogIndex;

use crate::id::{Ident, Position};
use crate::machine::StateMachine;
use crate::node::Node;
use crate::peer::{CHUNK, OpenTransfer, Transfer};
use crate::record::{MAX_CONFIG, parse_config, u64_at};
use crate::settle::Context;
use crate::wire::{FLAG_LAST, MAX_BODY, Message, Refusal, unpack_chunk};

/// Most bytes of the state in one chunk.
const CHUNK_DATA: usize = MAX_BODY - 8 - MAX_CONFIG;

/// Acknowledges no chunk but asks for the transfer to start again.
const START_AGAIN: u32 = u32::MAX;

/// Bytes of records from which on the log forgets what is applied. Small, because a replica reads
/// its whole log when it comes back: some 7 ns for each byte.
const COMPACT_AT: usize = 8 * 1024;

/// Fewest entries forgotten at once, so that the cost is shared by several.
const COMPACT_ENTRIES: u64 = 16;

/// Applied entries that stay: a replica that is only so far behind whoever leads next needs no
/// snapshot.
const KEPT_ENTRIES: u64 = 16;

/// A snapshot being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    from: Ident,
    from_boot: u32,
    number: u32,
    next: u32,
}

impl<M: SharedMemory> Node<M> {
    pub(crate) fn want_transfer(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        if peer.transfer.is_none() {
            peer.transfer = Some(Transfer::Wanted);
            self.transferring = true;
        }
    }

    pub(crate) fn drop_transfer(&mut self, slot: usize) {
        if let Some(Transfer::Open(_)) = self.peers[slot].transfer.take() {
            self.to_close[slot] = true;
        }
    }

    /// Opens wanted snapshots, makes the next chunk of acknowledged ones, ends finished ones.
    pub(crate) fn serve_transfers<S: StateMachine>(&mut self, now_ns: u64, machine: &mut S) {
        if !self.transferring {
            return;
        }
        self.transferring = false;
        for slot in 0..self.peers.len() {
            if core::mem::take(&mut self.to_close[slot]) {
                machine.snapshot_close(slot);
            }
            match self.peers[slot].transfer.take() {
                None => {}
                Some(Transfer::Wanted) => self.open_transfer(slot, machine),
                Some(Transfer::Open(mut open)) if open.acknowledged && !open.last => {
                    open.chunk += 1;
                    fill_chunk(slot, &mut open, machine);
                    self.peers[slot].transfer = Some(Transfer::Open(open));
                    self.peers[slot].out.want(CHUNK);
                }
                Some(Transfer::Open(open)) if open.acknowledged => {
                    machine.snapshot_close(slot);
                    let last = self.core.log().last_position().into();
                    let peer = &mut self.peers[slot];
                    peer.next = peer.next.max(open.position.index + 1);
                    peer.needs_snapshot = false;
                    peer.out.probe_at(last);
                    self.arm(now_ns);
                }
                waiting => self.peers[slot].transfer = waiting,
            }
            self.transferring |= self.peers[slot].transfer.is_some();
        }
    }

    fn open_transfer<S: StateMachine>(&mut self, slot: usize, machine: &mut S) {
        // What is applied is committed, also before this leader's first entry is: that one may need
        // the very follower that needs the snapshot. Before anything is applied there is no state.
        if self.storage.restoring() || machine.applied() != self.applied || self.applied == 0 {
            self.peers[slot].transfer = Some(Transfer::Wanted);
            return;
        }
        let index = LogIndex::new(self.applied);
        let Some((position, config)) = self.core.log().get_position_and_config(index) else {
            return;
        };
        self.transfers += 1;
        machine.snapshot_open(slot);
        let mut open = OpenTransfer {
            number: self.transfers,
            position: position.into(),
            config: config.clone(),
            digest: machine.digest(),
            chunk: 0,
            last: false,
            data: vec![],
            acknowledged: false,
        };
        fill_chunk(slot, &mut open, machine);
        self.peers[slot].transfer = Some(Transfer::Open(open));
        self.peers[slot].out.want(CHUNK);
    }

    pub(crate) fn take_chunk_ack(
        &mut self,
        now_ns: u64,
        slot: usize,
        message: &Message<'_>,
    ) -> Result<(), Refusal> {
        self.adopt_term(now_ns, message.term);
        let (number, chunk) = unpack_chunk(message.commit);
        let Some(Transfer::Open(open)) = &mut self.peers[slot].transfer else {
            return Err(Refusal::Unexpected);
        };
        if open.number != number || (open.chunk != chunk && chunk != START_AGAIN) {
            return Err(Refusal::Unexpected);
        }
        if chunk == START_AGAIN {
            self.drop_transfer(slot);
            self.want_transfer(slot);
        } else {
            open.acknowledged = true;
        }
        self.note_progress(slot);
        self.arm(now_ns);
        Ok(())
    }

    pub(crate) fn take_chunk<S: StateMachine>(
        &mut self,
        now_ns: u64,
        slot: usize,
        message: &Message<'_>,
        machine: &mut S,
    ) -> Result<(), Refusal> {
        self.adopt_term(now_ns, message.term);
        let (body, position) = (message.body, message.position);
        let digest = body.get(..8).map(|bytes| u64_at(bytes, 0)).ok_or(Refusal::Malformed)?;
        let (config, len) = parse_config(&body[8..]).ok_or(Refusal::Malformed)?;
        let term = self.core.current_term().get();
        let beyond = position.index > self.applied || self.storage.restoring();
        let fits = beyond && position.index >= self.storage.start().index && position.term <= term;
        if message.term != term || !self.core.role().is_follower() || !fits {
            // Tells the sender our term and that the snapshot is not needed.
            self.peers[slot].out.answer_append(0, false);
            return Err(Refusal::Unexpected);
        }
        self.timer.note_leader(now_ns);
        self.note_progress(slot);
        let (number, chunk) = unpack_chunk(message.commit);
        let (from, from_boot) = (message.from, message.from_boot);
        let current = self
            .incoming
            .filter(|old| (old.from, old.from_boot, old.number) == (from, from_boot, number));
        let next = match current {
            Some(incoming) => incoming.next,
            None if chunk == 0 => {
                machine.restore_open();
                0
            }
            None => START_AGAIN,
        };
        let out = &mut self.peers[slot].out;
        if chunk < next || next == START_AGAIN {
            let answer = if next == START_AGAIN { next } else { chunk };
            out.answer_chunk(number, answer);
            return Err(Refusal::Unexpected);
        }
        if chunk > next {
            return Err(Refusal::Unexpected);
        }
        out.answer_chunk(number, chunk);
        self.incoming = Some(Incoming { from, from_boot, number, next: chunk + 1 });
        let mut whole = machine.restore_chunk(&body[8 + len..]).is_ok();
        if whole && message.flags & FLAG_LAST != 0 {
            whole = self.complete(position, config, digest, machine);
        }
        if !whole {
            self.incoming = None;
            self.peers[slot].out.answer_chunk(number, START_AGAIN);
        }
        self.settle(now_ns, &Context::default());
        Ok(())
    }

    /// The snapshot has arrived: it takes the place of the state that the machine has kept.
    fn complete<S: StateMachine>(
        &mut self,
        position: Position,
        config: noraft::ClusterConfig,
        digest: u64,
        machine: &mut S,
    ) -> bool {
        let had_state = !self.storage.restoring();
        if had_state {
            // For a moment state and log do not fit each other.
            self.storage.set_restoring(true);
        }
        let closed = machine.restore_close(position.index, digest).is_ok();
        if !closed && had_state {
            self.storage.set_restoring(false);
        }
        closed && self.install(position, config)
    }

    /// The state machine holds the state at `position`: the log continues from there.
    fn install(&mut self, position: Position, config: noraft::ClusterConfig) -> bool {
        let keep_tail = self.core.log().entries().contains(position.core());
        if !self.core.handle_snapshot_installed(position.core(), config.clone()) {
            return false;
        }
        self.storage.rebase(position, config, keep_tail);
        self.storage.set_restoring(false);
        self.applied = position.index;
        self.recent.clear();
        self.older.clear();
        self.reports.restored = Some(position.index);
        self.refresh_members();
        true
    }

    /// Lets the log forget applied entries when there are many. `durable` is what the state
    /// machine keeps by itself.
    pub(crate) fn compact(&mut self, durable: u64) {
        let (used, capacity) = (self.storage.used(), self.storage.capacity());
        let scarce = used > capacity / 4 * 3;
        if used < COMPACT_AT.min(capacity / 4) {
            return;
        }
        let mut limit = self.applied.min(durable);
        if !scarce {
            limit = limit.saturating_sub(KEPT_ENTRIES);
        }
        if self.leads.is_some() && !scarce {
            // A follower that is only a little behind shall not need a snapshot.
            for peer in self.peers.iter().filter(|peer| peer.up && peer.member) {
                limit = limit.min(peer.matched);
            }
            limit = limit.min(self.oldest_transfer().unwrap_or(limit));
        }
        if limit < self.storage.start().index + COMPACT_ENTRIES && !scarce {
            return;
        }
        let log = self.core.log();
        let place = log.get_position_and_config(LogIndex::new(limit));
        let Some((position, config)) = place.map(|(at, config)| (at, config.clone())) else {
            return;
        };
        if limit > self.storage.start().index
            && self.core.handle_snapshot_installed(position, config.clone())
        {
            self.storage.rebase(position.into(), config, true);
        }
    }
}

fn fill_chunk<S: StateMachine>(slot: usize, open: &mut OpenTransfer, machine: &mut S) {
    open.data.clear();
    open.data.resize(CHUNK_DATA, 0);
    let chunk = machine.snapshot_chunk(slot, &mut open.data);
    open.data.truncate(chunk.len);
    open.last = chunk.last;
    open.acknowledged = false;
}
