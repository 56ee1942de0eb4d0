//! Requests and replies as the state sees them.

use alloc::vec::Vec;
use wire::text::{self, DECIMAL_MAX};
use wire::{Errno, HEADER_LEN, Header, Operation, PAYLOAD_MAX};

/// A whole request. Together with the state it determines everything that follows from it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The connection it came from.
    pub client: u16,
    /// Where in the connection's stream of requests it begins: its identity on the connection.
    pub position: u32,
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: &'a [u8],
}

impl Request<'_> {
    /// Length of the whole message in bytes.
    pub fn message_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// The reply under construction: a whole message.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    overflow: bool,
    refused: Option<Errno>,
}

impl Reply {
    /// A buffer that holds the longest reply, so that no request has to allocate for it.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(HEADER_LEN + PAYLOAD_MAX), overflow: false, refused: None }
    }

    /// Empties it for another reply.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADER_LEN, 0);
        self.overflow = false;
        self.refused = None;
    }

    /// The reply is an error although the request had an effect that is to be kept.
    pub fn refuse(&mut self, error: Errno) {
        self.refused = Some(error);
    }

    /// Appends to the payload. Beyond the limit the reply becomes E2BIG.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > HEADER_LEN + PAYLOAD_MAX {
            self.overflow = true;
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Appends a NUL.
    pub fn nul(&mut self) {
        self.push(&[0]);
    }

    /// Appends a decimal number.
    pub fn decimal(&mut self, value: u64) {
        let mut digits = [0; DECIMAL_MAX];
        self.push(text::format_decimal(value, &mut digits));
    }

    /// Appends a decimal number with spaces before it to a width.
    pub fn padded(&mut self, value: u64, width: usize) {
        let mut digits = [0; DECIMAL_MAX];
        let digits = text::format_decimal(value, &mut digits);
        for _ in digits.len()..width {
            self.push(b" ");
        }
        self.push(digits);
    }

    /// Appends text with spaces behind it to a width.
    pub fn text(&mut self, text: &str, width: usize) {
        self.push(text.as_bytes());
        for _ in text.len()..width {
            self.push(b" ");
        }
    }

    /// Bytes of payload so far.
    pub fn payload_len(&self) -> usize {
        self.bytes.len() - HEADER_LEN
    }

    /// The payload becomes "OK".
    pub fn acknowledge(&mut self) {
        self.push(b"OK\0");
    }

    /// Completes the message from what the operation answered.
    pub fn finish(&mut self, request: &Header, result: Result<(), Errno>) {
        let result = if self.overflow { result.and(Err(Errno::TooBig)) } else { result };
        let result = self.refused.map_or(result, Err);
        let operation = match result {
            Ok(()) => request.operation,
            Err(error) => {
                self.bytes.truncate(HEADER_LEN);
                self.bytes.extend_from_slice(error.payload());
                Operation::Error
            }
        };
        let header = Header { operation, len: self.payload_len() as u32, ..*request };
        self.bytes[..HEADER_LEN].copy_from_slice(&header.emit());
    }

    /// Replaces it by a whole message made earlier.
    pub fn restore(&mut self, message: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(message);
    }

    /// The whole message.
    pub fn message(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read() -> Header {
        Header { operation: Operation::Read, request: 5, transaction: 9, len: 2 }
    }

    #[test]
    fn a_reply() {
        let mut reply = Reply::new();
        reply.clear();
        reply.push(b"value");
        reply.finish(&read(), Ok(()));
        let (header, payload) = reply.message().split_first_chunk().expect("a header");
        assert_eq!(Header::parse(header), Header { len: 5, ..read() });
        assert_eq!(payload, b"value");
    }

    #[test]
    fn too_long() {
        let mut reply = Reply::new();
        reply.clear();
        for _ in 0..=PAYLOAD_MAX {
            reply.push(b"x");
        }
        reply.finish(&read(), Ok(()));
        assert_eq!(&reply.message()[HEADER_LEN..], b"E2BIG\0");
        reply.clear();
        reply.push(&[0; PAYLOAD_MAX]);
        reply.finish(&read(), Ok(()));
        assert_eq!(reply.message().len(), HEADER_LEN + PAYLOAD_MAX);
    }
}
