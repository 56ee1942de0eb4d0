//! What a replica knows about another one, and what it still has to tell it. All of it bounded:
//! of each kind of message at most one waits per peer, and its content is taken from the present
//! state when it is sent.

use alloc::vec::Vec;

use noraft::ClusterConfig;

use crate::id::{Ident, Position};

/// A message that waits to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplyOut {
    /// Number of the append that is answered.
    pub number: u32,
    /// Whether its entries found no place.
    pub gap: bool,
}

/// Kinds of messages that may wait; a set bit says that one does. Sent in this order.
pub(crate) const HELLO: u16 = 1;
pub(crate) const PRE_VOTE: u16 = 1 << 1;
pub(crate) const PRE_VOTE_REPLY: u16 = 1 << 2;
pub(crate) const VOTE: u16 = 1 << 3;
pub(crate) const VOTE_REPLY: u16 = 1 << 4;
pub(crate) const APPEND_REPLY: u16 = 1 << 5;
pub(crate) const CHUNK_ACK: u16 = 1 << 6;
pub(crate) const APPEND: u16 = 1 << 7;
pub(crate) const PROBE: u16 = 1 << 8;
pub(crate) const CHUNK: u16 = 1 << 9;

/// Messages that wait for one peer: which, and what cannot be seen from the state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outgoing {
    waiting: u16,
    /// Proposed term and answer.
    pub pre_vote_reply: (u64, bool),
    /// Term and answer.
    pub vote_reply: (u64, bool),
    pub append_reply: ReplyOut,
    /// Transfer and chunk.
    pub chunk_ack: (u32, u32),
    /// Where an append without entries is to look.
    pub probe: Position,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub fn want(&mut self, kind: u16) {
        self.waiting |= kind;
    }

    /// Takes the next kind that waits.
    pub fn take(&mut self) -> u16 {
        let next = self.waiting & self.waiting.wrapping_neg();
        self.waiting ^= next;
        next
    }

    pub fn answer_pre_vote(&mut self, proposed: u64, granted: bool) {
        self.pre_vote_reply = (proposed, granted);
        self.want(PRE_VOTE_REPLY);
    }

    pub fn answer_vote(&mut self, term: u64, granted: bool) {
        self.vote_reply = (term, granted);
        self.want(VOTE_REPLY);
    }

    pub fn answer_append(&mut self, number: u32, gap: bool) {
        self.append_reply = ReplyOut { number, gap };
        self.want(APPEND_REPLY);
    }

    pub fn answer_chunk(&mut self, transfer: u32, chunk: u32) {
        self.chunk_ack = (transfer, chunk);
        self.want(CHUNK_ACK);
    }

    pub fn probe_at(&mut self, position: Position) {
        self.probe = position;
        self.want(PROBE);
    }
}

/// A snapshot on its way to a peer, one chunk at a time.
#[derive(Clone, Debug)]
pub(crate) enum Transfer {
    /// To be opened when the state machine is at hand.
    Wanted,
    /// Opened at `position`.
    Open(OpenTransfer),
}

/// A snapshot that was opened.
#[derive(Clone, Debug)]
pub(crate) struct OpenTransfer {
    pub number: u32,
    pub position: Position,
    pub config: ClusterConfig,
    pub digest: u64,
    /// Number of the chunk in `data`.
    pub chunk: u32,
    pub last: bool,
    /// The chunk, kept until it is acknowledged.
    pub data: Vec<u8>,
    /// The chunk has been acknowledged; the next is to be made.
    pub acknowledged: bool,
}

/// Another replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// Its newest known identity.
    pub ident: Option<Ident>,
    /// Its newest known boot epoch, 0 when unknown.
    pub boot: u32,
    /// Whether the orchestrator says that it runs.
    pub up: bool,
    /// Whether the latest membership holds it under this identity.
    pub member: bool,
    /// The last index that it is known to hold.
    pub matched: u64,
    /// Index of the next entry to send.
    pub next: u64,
    /// Number of the last append sent.
    pub number: u32,
    /// Answers to appends before this number say nothing new about gaps.
    pub rewound_at: u32,
    /// Commit index that it is known to know.
    pub commit: u64,
    /// It asks for a snapshot.
    pub needs_snapshot: bool,
    /// When to send again what was not answered.
    pub retry_at: Option<u64>,
    /// Interval before the next repetition in nanoseconds.
    pub backoff_ns: u64,
    pub out: Outgoing,
    pub transfer: Option<Transfer>,
}

impl Peer {
    /// Forgets what a former life was told, when `ident` and `boot` are a newer one.
    pub fn renew(&mut self, ident: Ident, boot: u32) -> bool {
        let newer = boot > self.boot || self.ident != Some(ident);
        if newer {
            if self.ident != Some(ident) {
                self.matched = 0;
            }
            self.ident = Some(ident);
            self.boot = self.boot.max(boot);
            // Whoever speaks from a new life runs, whatever was said of the former one.
            self.up = true;
            self.forget();
        }
        newer
    }

    /// Index of the snapshot that is on its way to it.
    pub fn transferring(&self) -> Option<u64> {
        match &self.transfer {
            Some(Transfer::Open(open)) => Some(open.position.index),
            _ => None,
        }
    }

    /// Forgets what was told and heard: another life begins.
    pub fn forget(&mut self) {
        self.commit = 0;
        self.needs_snapshot = false;
        self.rewound_at = self.number.wrapping_add(1);
        self.out = Outgoing::default();
    }
}
