//! XenStore messages as a client sees them (Xen `xen/include/public/io/xs_wire.h`).
//!
//! Written apart from the host's own parser on purpose: a program that checks a server shares no
//! code with it.

use std::io::{self, Read};

/// Bytes of a message's header.
pub const HEADER: usize = 16;

/// The largest payload either side may send.
pub const PAYLOAD_MAX: usize = 4096;

/// Operations this program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// List children.
    Directory = 1,
    /// Read a value.
    Read = 2,
    /// Read permissions.
    GetPerms = 3,
    /// Register a watch.
    Watch = 4,
    /// Remove a watch.
    Unwatch = 5,
    /// Begin a transaction.
    TransactionStart = 6,
    /// End a transaction.
    TransactionEnd = 7,
    /// Write a value.
    Write = 11,
    /// Create a node.
    Mkdir = 12,
    /// Remove a node and all below it.
    Rm = 13,
    /// Set permissions.
    SetPerms = 14,
}

/// The server tells of a change.
pub const WATCH_EVENT: u32 = 15;

/// The server answers with the name of an error.
pub const ERROR: u32 = 16;

/// One message from the server.
#[derive(Debug)]
pub struct Message {
    /// What it answers, [`WATCH_EVENT`] or [`ERROR`].
    pub kind: u32,
    /// The request it answers.
    pub request: u32,
    /// Its contents.
    pub payload: Vec<u8>,
}

/// The bytes of a request.
pub fn encode(op: Op, request: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    for word in [op as u32, request, transaction, payload.len() as u32] {
        out.extend(word.to_le_bytes());
    }
    out.extend(payload);
    out
}

/// Reads one message; a length beyond the protocol's is an error.
pub fn read(source: &mut impl Read) -> io::Result<Message> {
    let mut header = [0; HEADER];
    source.read_exact(&mut header)?;
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let length = word(12) as usize;
    if length > PAYLOAD_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut payload = vec![0; length];
    source.read_exact(&mut payload)?;
    Ok(Message { kind: word(0), request: word(4), payload })
}

/// The strings of a payload, each ended by a zero byte.
pub fn strings(payload: &[u8]) -> Vec<String> {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let bytes = encode(Op::Read, 7, 3, b"a/b\0");
        assert_eq!(bytes.len(), HEADER + 4);
        let message = read(&mut bytes.as_slice()).unwrap();
        assert_eq!((message.kind, message.request), (2, 7));
        assert_eq!(strings(&message.payload), ["a/b"]);
        assert!(read(&mut &bytes[..HEADER + 2]).is_err());
        let mut long = bytes;
        long[12..16].copy_from_slice(&5000u32.to_le_bytes());
        assert!(read(&mut long.as_slice()).is_err());
    }

    #[test]
    fn lists_may_be_empty_and_values_may_not_be_text() {
        assert!(strings(b"").is_empty());
        assert_eq!(strings(b"a\0b\0"), ["a", "b"]);
        assert_eq!(strings(b"a\0\0"), ["a", ""]);
    }
}
