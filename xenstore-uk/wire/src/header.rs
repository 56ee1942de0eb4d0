//! The header of a message.

use crate::{Operation, PAYLOAD_MAX};

/// Length of a message's header in bytes (`struct xsd_sockmsg`).
pub const HEADER_LEN: usize = 16;

/// The announced payload is longer than a message may be: the stream cannot be followed any
/// further and the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadTooLong {
    /// What the header announced, in bytes.
    pub announced: u32,
}

/// The header of a message, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it asks or answers.
    pub operation: Operation,
    /// The client's name for the request; the reply repeats it.
    pub request: u32,
    /// The transaction it belongs to; 0 for none.
    pub transaction: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// Reads a header. The length is as the sender gave it: see [`Header::payload_len`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            operation: Operation::from_raw(word(0)),
            request: word(4),
            transaction: word(8),
            len: word(12),
        }
    }

    /// The length of the payload in bytes, once it is known to be allowed.
    pub fn payload_len(&self) -> Result<usize, PayloadTooLong> {
        match self.len as usize {
            len if len <= PAYLOAD_MAX => Ok(len),
            _ => Err(PayloadTooLong { announced: self.len }),
        }
    }

    /// The bytes of the header.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [self.operation.raw(), self.request, self.transaction, self.len];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}
