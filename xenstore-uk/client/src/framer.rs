//! Messages out of the byte stream of a XenStore connection.

use alloc::vec::Vec;

use wire::{Errno, HEADER_LEN, Header, MESSAGE_MAX, Operation};

/// One message from XenStore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreMessage {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl StoreMessage {
    /// The answer that it is: a payload, or a refusal.
    ///
    /// # Errors
    /// The refusal; [`Errno::Io`] when its name is unknown.
    pub fn answer(&self) -> Result<&[u8], Errno> {
        if self.header.operation != Operation::Error {
            return Ok(&self.payload);
        }
        let name = wire::text::only(&self.payload).unwrap_or_default();
        Err(Errno::from_name(name).unwrap_or(Errno::Io))
    }
}

/// The stream cannot be followed any further: connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostFrame;

/// Collects bytes until a message is whole.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    bytes: Vec<u8>,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes it can take now.
    pub fn room(&self) -> usize {
        MESSAGE_MAX - self.bytes.len()
    }

    /// Takes bytes, at most [`Framer::room`].
    pub fn feed(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "the caller asks for room first");
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message out; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`LostFrame`] when a message announces more than a message may have.
    pub fn next_message(&mut self) -> Result<Option<StoreMessage>, LostFrame> {
        let Some(head) = self.bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::parse(head);
        let end = HEADER_LEN + header.payload_len().map_err(|_| LostFrame)?;
        let Some(payload) = self.bytes.get(HEADER_LEN..end) else { return Ok(None) };
        let message = StoreMessage { header, payload: payload.to_vec() };
        self.bytes.drain(..end);
        Ok(Some(message))
    }
}
