//! Messages between replicas: a fixed header, then records or a piece of a snapshot.
//!
//! | offset | size | field |
//! |--:|--:|---|
//! | 0 | 2 | magic, `0x5250` |
//! | 2 | 1 | version, 1 |
//! | 3 | 1 | kind |
//! | 4 | 2 | length of the whole message in bytes |
//! | 6 | 2 | records in the body |
//! | 8 | 1 | flags |
//! | 9 | 1 | replica of the sender |
//! | 10 | 1 | replica of the receiver, 0 when its identity is unknown |
//! | 11 | 1 | 0 |
//! | 12 | 4 | storage epoch of the sender |
//! | 16 | 4 | storage epoch of the receiver |
//! | 20 | 4 | boot epoch of the sender |
//! | 24 | 4 | boot epoch of the receiver, 0 when unknown |
//! | 28 | 4 | number of the append that this is or answers |
//! | 32 | 8 | term of the sender |
//! | 40 | 8 | position: index |
//! | 48 | 8 | position: term |
//! | 56 | 8 | commit index, or transfer (high half) and chunk (low half) |
//! | 64 | 4 | CRC-32 of the bytes before: 64, which the checksum takes in one stride |
//! | 68 | 4 | CRC-32 of the body of a chunk, else 0 (records carry their own) |
//! | 72 | n | body |
//!
//! Decoding never panics, whatever the bytes are. Every kind and its fields: `raft/FORMAT.md`.

use alloc::vec::Vec;

use crate::id::{Ident, Position};
use crate::record::{Kind, Record, u16_at, u32_at, u64_at};

/// Bytes of a message before its body.
pub const MESSAGE_HEADER: usize = 72;

/// Bytes that the header's checksum covers.
const CHECKED: usize = 64;

/// Longest message in bytes. Bounds the transport's rings and the time spent on one message.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Longest body in bytes.
pub const MAX_BODY: usize = MAX_MESSAGE - MESSAGE_HEADER;

/// Terms, indices and sequences stay below: none ever gets there, and sums of them cannot overflow.
pub(crate) const NUMBERS: u64 = 1 << 62;

const MAGIC: u16 = 0x5250;
const VERSION: u8 = 1;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MessageKind {
    /// The sender lives, under these epochs.
    Hello = 1,
    /// Would the receiver vote for the sender in this term?
    PreVote = 2,
    /// Answer to it; flag [`FLAG_GRANTED`].
    PreVoteReply = 3,
    /// The sender asks for a vote.
    Vote = 4,
    /// Answer to it; flag [`FLAG_GRANTED`].
    VoteReply = 5,
    /// Entries after a position, and how far the log is committed.
    Append = 6,
    /// The follower's last position; flags [`FLAG_GAP`], [`FLAG_NEEDS_SNAPSHOT`].
    AppendReply = 7,
    /// A piece of a snapshot taken at a position; flag [`FLAG_LAST`].
    Chunk = 8,
    /// The piece has arrived.
    ChunkAck = 9,
}

/// The vote is granted.
pub const FLAG_GRANTED: u8 = 1;
/// The entries could not be appended where the log ends.
pub const FLAG_GAP: u8 = 2;
/// The follower's state machine has no state to continue from.
pub const FLAG_NEEDS_SNAPSHOT: u8 = 4;
/// The snapshot ends with this piece.
pub const FLAG_LAST: u8 = 8;

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a message, or a damaged one.
    Malformed,
    /// Between replicas that are not the sender's and ours.
    Misdirected,
    /// From a former life of the sender.
    FormerSender,
    /// For a former life of ours.
    FormerReceiver,
    /// Not what this replica waits for now (old chunk, answer to nothing).
    Unexpected,
    /// No room for the entries until more is applied; the leader sends them again.
    NoRoom,
    /// This replica's storage is damaged: it takes part in nothing.
    Damaged,
}

/// How many kinds of [`Refusal`] there are.
pub const REFUSALS: usize = 7;

/// One message, its body still as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is for.
    pub kind: MessageKind,
    /// Sender.
    pub from: Ident,
    /// Receiver; `None` when the sender does not know its identity.
    pub to: Option<Ident>,
    /// Boot epoch of the sender.
    pub from_boot: u32,
    /// Boot epoch of the receiver as the sender knows it; 0 when it does not.
    pub to_boot: u32,
    /// Term of the sender.
    pub term: u64,
    /// Position that the kind speaks of.
    pub position: Position,
    /// Commit index, or transfer and chunk.
    pub commit: u64,
    /// Number of the append that this is or answers.
    pub number: u32,
    /// Flags.
    pub flags: u8,
    /// Records in the body.
    pub count: u16,
    /// Records, or membership and piece of a snapshot.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Completes the message in `out`: `out` holds [`MESSAGE_HEADER`] bytes of anything, then the
    /// body; `self.body` is not looked at.
    pub(crate) fn seal(&self, out: &mut [u8]) {
        debug_assert!(out.len() <= MAX_MESSAGE);
        let length = out.len() as u16;
        let (header, body) = out.split_at_mut(MESSAGE_HEADER);
        let header: &mut [u8; MESSAGE_HEADER] = header.try_into().expect("split there");
        header[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        header[2] = VERSION;
        header[3] = self.kind as u8;
        header[4..6].copy_from_slice(&length.to_le_bytes());
        header[6..8].copy_from_slice(&self.count.to_le_bytes());
        header[8] = self.flags;
        header[9] = self.from.replica();
        header[10] = self.to.map_or(0, Ident::replica);
        header[11] = 0;
        let to_epoch = self.to.map_or(0, Ident::storage_epoch);
        header[12..16].copy_from_slice(&self.from.storage_epoch().to_le_bytes());
        header[16..20].copy_from_slice(&to_epoch.to_le_bytes());
        header[20..24].copy_from_slice(&self.from_boot.to_le_bytes());
        header[24..28].copy_from_slice(&self.to_boot.to_le_bytes());
        header[28..32].copy_from_slice(&self.number.to_le_bytes());
        header[32..40].copy_from_slice(&self.term.to_le_bytes());
        header[40..48].copy_from_slice(&self.position.index.to_le_bytes());
        header[48..56].copy_from_slice(&self.position.term.to_le_bytes());
        header[56..64].copy_from_slice(&self.commit.to_le_bytes());
        let crc = crc32fast::hash(&header[..CHECKED]);
        header[64..68].copy_from_slice(&crc.to_le_bytes());
        let body_crc = if self.kind == MessageKind::Chunk { crc32fast::hash(body) } else { 0 };
        header[68..72].copy_from_slice(&body_crc.to_le_bytes());
    }

    /// Reads a message; records in its body are not checked yet.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Refusal> {
        Self::decode_opt(bytes).ok_or(Refusal::Malformed)
    }

    fn decode_opt(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_first_chunk::<MESSAGE_HEADER>()?;
        let fits = bytes.len() <= MAX_MESSAGE
            && u16_at(header, 0) == MAGIC
            && header[2] == VERSION
            && usize::from(u16_at(header, 4)) == bytes.len()
            && header[11] == 0
            && crc32fast::hash(&header[..CHECKED]) == u32_at(header, CHECKED);
        if !fits {
            return None;
        }
        let kind = kind_of(header[3])?;
        let body_crc = u32_at(header, 68);
        let body_fits = match kind {
            MessageKind::Chunk => crc32fast::hash(body) == body_crc,
            MessageKind::Append => body_crc == 0,
            _ => body.is_empty() && body_crc == 0,
        };
        let count = u16_at(header, 6);
        if !body_fits || (count != 0) != (kind == MessageKind::Append && !body.is_empty()) {
            return None;
        }
        let (term, position) =
            (u64_at(header, 32), Position { index: u64_at(header, 40), term: u64_at(header, 48) });
        if (term | position.index | position.term) >= NUMBERS {
            return None;
        }
        let ident = |at: usize, epoch: usize| {
            Ident::from_raw(u64::from(header[at]) | u64::from(u32_at(header, epoch)) << 8)
        };
        Some(Self {
            kind,
            from: ident(9, 12)?,
            to: if header[10] == 0 { None } else { Some(ident(10, 16)?) },
            from_boot: u32_at(header, 20),
            to_boot: u32_at(header, 24),
            term,
            position,
            commit: u64_at(header, 56),
            number: u32_at(header, 28),
            flags: header[8],
            count,
            body,
        })
    }

    /// Checks every record of an append and that together they continue `self.position`; calls
    /// `each` for each in order.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]; what `each` was given until then must be forgotten.
    pub(crate) fn records(&self, mut each: impl FnMut(&Record<'a>)) -> Result<(), Refusal> {
        let mut rest = self.body;
        let mut last = self.position;
        for _ in 0..self.count {
            let (record, total) = Record::parse(rest).map_err(|_| Refusal::Malformed)?;
            let index = last.index.checked_add(1).ok_or(Refusal::Malformed)?;
            let term_fits = match record.kind {
                Kind::Term => record.term > last.term && record.term <= self.term,
                Kind::Command | Kind::Config => record.term == last.term,
            };
            if record.index != index || !term_fits {
                return Err(Refusal::Malformed);
            }
            each(&record);
            last = Position { index, term: record.term };
            rest = &rest[total..];
        }
        if rest.is_empty() { Ok(()) } else { Err(Refusal::Malformed) }
    }
}

/// Packs a transfer's number and a chunk's into the commit field.
pub(crate) fn pack_chunk(transfer: u32, chunk: u32) -> u64 {
    u64::from(transfer) << 32 | u64::from(chunk)
}

/// The two numbers of [`pack_chunk`].
pub(crate) fn unpack_chunk(packed: u64) -> (u32, u32) {
    ((packed >> 32) as u32, packed as u32)
}

/// Starts a message in `out`: room for the header, nothing else.
pub(crate) fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; MESSAGE_HEADER]);
}

fn kind_of(byte: u8) -> Option<MessageKind> {
    Some(match byte {
        1 => MessageKind::Hello,
        2 => MessageKind::PreVote,
        3 => MessageKind::PreVoteReply,
        4 => MessageKind::Vote,
        5 => MessageKind::VoteReply,
        6 => MessageKind::Append,
        7 => MessageKind::AppendReply,
        8 => MessageKind::Chunk,
        9 => MessageKind::ChunkAck,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
