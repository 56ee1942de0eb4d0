//! Log records: one format in storage and in messages, so that a follower's append is a copy.
//!
//! | offset | size | field |
//! |--:|--:|---|
//! | 0 | 4 | CRC-32 (IEEE) over everything after it, padding included |
//! | 4 | 2 | length of the payload in bytes |
//! | 6 | 1 | kind: 0 command, 1 start of a term, 2 membership |
//! | 7 | 1 | version, 1 |
//! | 8 | 8 | index |
//! | 16 | 8 | term |
//! | 24 | 4 | boot epoch of the leader that made the entry |
//! | 28 | 4 | connection |
//! | 32 | 8 | sequence of the request on its connection |
//! | 40 | n | payload, then zeros up to a multiple of 8 |
//!
//! Parsing never panics, whatever the bytes are.

use alloc::vec::Vec;

use noraft::{ClusterConfig, NodeId};

use crate::id::{Ident, MAX_REPLICAS};

/// Bytes of a record before its payload.
pub const RECORD_HEADER: usize = 40;

/// Longest payload in bytes: the largest XenStore message (16 + 4,096) with room for what the
/// connection layer wants to add.
pub const MAX_PAYLOAD: usize = 4608;

/// Longest record in bytes.
pub const MAX_RECORD: usize = record_len(MAX_PAYLOAD);

const VERSION: u8 = 1;

/// Bytes that a record with `payload` bytes of payload takes.
pub const fn record_len(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(8)
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request for the state machine.
    Command,
    /// A new leader's first entry.
    Term,
    /// A new membership.
    Config,
}

/// One log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Index in the log, from 1.
    pub index: u64,
    /// Term of the entry.
    pub term: u64,
    /// What the entry is for.
    pub kind: Kind,
    /// Boot epoch of the leader that made the entry.
    pub epoch: u32,
    /// Connection that the request came on.
    pub connection: u32,
    /// Sequence of the request on its connection.
    pub sequence: u64,
    /// The request.
    pub payload: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes end before the record does, or its length is beyond [`MAX_PAYLOAD`].
    Length,
    /// The checksum does not fit.
    Checksum,
    /// The checksum fits, but version or kind are unknown to this build.
    Unknown,
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `out`.
    ///
    /// # Panics
    /// When the payload is longer than [`MAX_PAYLOAD`]; callers have checked it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.payload.len() <= MAX_PAYLOAD, "payload of {} bytes", self.payload.len());
        let start = out.len();
        let total = record_len(self.payload.len());
        let mut header = [0; RECORD_HEADER];
        header[4..6].copy_from_slice(&(self.payload.len() as u16).to_le_bytes());
        header[6] = match self.kind {
            Kind::Command => 0,
            Kind::Term => 1,
            Kind::Config => 2,
        };
        header[7] = VERSION;
        header[8..16].copy_from_slice(&self.index.to_le_bytes());
        header[16..24].copy_from_slice(&self.term.to_le_bytes());
        header[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        header[28..32].copy_from_slice(&self.connection.to_le_bytes());
        header[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.payload);
        let padding = start + total - out.len();
        out.extend_from_slice(&[0; 8][..padding]);
        let crc = crc32fast::hash(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Length in bytes of the record that starts with `header`, unchecked but for the bound.
    ///
    /// # Errors
    /// [`RecordError::Length`] when it exceeds [`MAX_RECORD`].
    pub fn peek_len(header: &[u8; RECORD_HEADER]) -> Result<usize, RecordError> {
        let payload = usize::from(u16_at(header, 4));
        if payload > MAX_PAYLOAD { Err(RecordError::Length) } else { Ok(record_len(payload)) }
    }

    /// Reads the record at the start of `bytes` and says how many bytes it takes.
    ///
    /// # Errors
    /// As [`RecordError`] says; nothing of the record is to be used then.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), RecordError> {
        let header = bytes.first_chunk::<RECORD_HEADER>().ok_or(RecordError::Length)?;
        let total = Self::peek_len(header)?;
        let bytes = bytes.get(..total).ok_or(RecordError::Length)?;
        if crc32fast::hash(&bytes[4..]) != u32_at(bytes, 0) {
            return Err(RecordError::Checksum);
        }
        let record = Self::fields(header, bytes).ok_or(RecordError::Unknown)?;
        Ok((record, total))
    }

    /// Reads a record that was checked, or made, when its bytes came here.
    pub(crate) fn unchecked(bytes: &'a [u8]) -> Self {
        bytes.first_chunk().and_then(|header| Self::fields(header, bytes)).expect("checked before")
    }

    fn fields(header: &[u8; RECORD_HEADER], bytes: &'a [u8]) -> Option<Self> {
        let kind = match (header[6], header[7]) {
            (0, VERSION) => Kind::Command,
            (1, VERSION) => Kind::Term,
            (2, VERSION) => Kind::Config,
            _ => return None,
        };
        Some(Self {
            index: u64_at(header, 8),
            term: u64_at(header, 16),
            kind,
            epoch: u32_at(header, 24),
            connection: u32_at(header, 28),
            sequence: u64_at(header, 32),
            payload: &bytes[RECORD_HEADER..RECORD_HEADER + usize::from(u16_at(header, 4))],
        })
    }
}

#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline(always)]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Longest encoded membership in bytes: three counts, padding, every set full.
pub(crate) const MAX_CONFIG: usize = 8 + 3 * 8 * MAX_REPLICAS;

/// Membership as bytes: counts of voters, coming voters and non-voters, five zero bytes, then the
/// members of each set in ascending order, eight bytes each.
pub(crate) fn encode_config(config: &ClusterConfig, out: &mut Vec<u8>) {
    let sets = [&config.voters, &config.new_voters, &config.non_voters];
    for set in sets {
        assert!(set.len() <= MAX_REPLICAS, "a membership set of {} members", set.len());
        out.push(set.len() as u8);
    }
    out.extend_from_slice(&[0; 5]);
    for member in sets.into_iter().flatten() {
        out.extend_from_slice(&member.get().to_le_bytes());
    }
}

/// Reads a membership back and says how many bytes it takes; `None` when the bytes are not one.
pub(crate) fn parse_config(bytes: &[u8]) -> Option<(ClusterConfig, usize)> {
    let counts = bytes.get(..8)?;
    if counts[..3].iter().any(|n| usize::from(*n) > MAX_REPLICAS) || counts[3..] != [0; 5] {
        return None;
    }
    let mut config = ClusterConfig::new();
    let sets = [&mut config.voters, &mut config.new_voters, &mut config.non_voters];
    let mut at = 8;
    for (set, count) in sets.into_iter().zip(counts) {
        for _ in 0..*count {
            let ident = Ident::from_raw(u64_at(bytes.get(at..at + 8)?, 0))?;
            if set.last().is_some_and(|last: &NodeId| last.get() >= ident.raw()) {
                return None;
            }
            set.insert(ident.core());
            at += 8;
        }
    }
    Some((config, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn golden() -> Record<'static> {
        Record {
            index: 7,
            term: 3,
            kind: Kind::Command,
            epoch: 2,
            connection: 16,
            sequence: 0x0102_0304_0506_0708,
            payload: b"hello",
        }
    }

    #[test]
    fn golden_vector() {
        let mut bytes = Vec::new();
        golden().encode(&mut bytes);
        let mut expected = vec![5, 0, 0, 1];
        expected.extend([7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 0, 0, 0, 16, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        expected.extend(b"hello\0\0\0");
        assert_eq!(bytes[4..], expected);
        assert_eq!(bytes[..4], GOLDEN_CRC.to_le_bytes(), "{:#x}", u32_at(&bytes, 0));
    }

    /// CRC of the golden record; FORMAT.md prints the whole vector.
    const GOLDEN_CRC: u32 = 0xfdc0_2811;

    #[test]
    fn golden_membership() {
        let mut config = ClusterConfig::new();
        config.voters.extend([NodeId::new(1), NodeId::new(2)]);
        config.non_voters.insert(Ident::new(3, 9).core());
        let mut bytes = Vec::new();
        encode_config(&config, &mut bytes);
        let mut expected = vec![2, 0, 1, 0, 0, 0, 0, 0];
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([3, 9, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, expected);
        assert_eq!(parse_config(&bytes), Some((config, 32)));
    }

    proptest! {
        #[test]
        fn records_come_back(payload in prop::collection::vec(any::<u8>(), 0..300), index: u64,
                             term: u64, epoch: u32, connection: u32, sequence: u64) {
            let record = Record { index, term, kind: Kind::Command, epoch, connection, sequence,
                                  payload: &payload };
            let mut bytes = vec![0xaa];
            record.encode(&mut bytes);
            prop_assert_eq!(Record::parse(&bytes[1..]), Ok((record, bytes.len() - 1)));
        }

        #[test]
        fn a_flipped_bit_is_seen(bit in 0..(record_len(5) * 8)) {
            let mut bytes = Vec::new();
            golden().encode(&mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Record::parse(&bytes).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Record::parse(&bytes).is_err());
            let _ = parse_config(&bytes);
        }
    }
}
