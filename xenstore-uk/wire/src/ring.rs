//! The ring page that a domain shares with the store (`struct xenstore_domain_interface`).
//!
//! Two byte rings, each with a producer and a consumer index that run freely modulo 2³²; the byte
//! at stream position `x` lies at `x mod 1024`. All offsets here are bytes from the page's start.

/// Bytes of one ring (`XENSTORE_RING_SIZE`).
pub const RING_LEN: usize = 1024;

/// Ring of requests, written by the client.
pub const REQUESTS: usize = 0;
/// Ring of replies and events, written by the store.
pub const RESPONSES: usize = 1024;
/// Stream position up to which the store has taken requests; written by the store.
pub const REQUEST_CONSUMER: usize = 2048;
/// Stream position up to which the client has written requests; written by the client.
pub const REQUEST_PRODUCER: usize = 2052;
/// Stream position up to which the client has taken responses; written by the client.
pub const RESPONSE_CONSUMER: usize = 2056;
/// Stream position up to which the store has written responses; written by the store.
pub const RESPONSE_PRODUCER: usize = 2060;
/// Features of the store; written by the store.
pub const SERVER_FEATURES: usize = 2064;
/// State of the connection: [`CONNECTED`] or [`RECONNECT`].
pub const CONNECTION: usize = 2068;
/// Why the store gave the connection up; written by the store.
pub const ERROR: usize = 2072;
/// Event channel port for domains made without a toolstack.
pub const EVENT_PORT: usize = 2076;
/// In a page of the fabric alone, behind the interface: when its replica of the store last took the
/// connection over. Of several servers' pages the one with the greatest number counts; written by
/// the store.
pub const TAKEN_OVER: usize = 4088;
/// Bytes that the interface takes of the page.
pub const INTERFACE_LEN: usize = 2080;

/// The client may ask for a reset of the ring by [`RECONNECT`].
pub const FEATURE_RECONNECTION: u32 = 1;
/// The page has the error field.
pub const FEATURE_ERROR: u32 = 2;
/// WATCH takes a depth.
pub const FEATURE_WATCH_DEPTH: u32 = 4;
/// Permission entries may name every domain.
pub const FEATURE_DOMID_ANY: u32 = 8;

/// The connection works.
pub const CONNECTED: u32 = 0;
/// The client asks for a reset and waits for [`CONNECTED`].
pub const RECONNECT: u32 = 1;

/// Why a connection was given up (the page's error field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The event channel does not work.
    Communication,
    /// Indices that lie more than a ring apart.
    Index,
    /// A message longer than allowed.
    Protocol,
}

impl RingError {
    /// The number in the error field.
    pub fn raw(self) -> u32 {
        match self {
            Self::Communication => 1,
            Self::Index => 2,
            Self::Protocol => 3,
        }
    }
}

/// Bytes between a consumer and a producer, unless they lie more than a ring apart.
pub fn filled(producer: u32, consumer: u32) -> Result<usize, RingError> {
    match producer.wrapping_sub(consumer) as usize {
        len if len <= RING_LEN => Ok(len),
        _ => Err(RingError::Index),
    }
}

/// The one or two stretches of a ring that hold the `len` bytes from stream position `from`:
/// (offset in the ring, length) each, the second empty where it does not wrap. `len` beyond a
/// whole ring is cut to it.
pub fn stretches(from: u32, len: usize) -> [(usize, usize); 2] {
    let len = len.min(RING_LEN);
    let start = from as usize % RING_LEN;
    let first = len.min(RING_LEN - start);
    [(start, first), (0, len - first)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices() {
        assert_eq!(filled(5, 5), Ok(0));
        assert_eq!(filled(3, u32::MAX), Ok(4));
        assert_eq!(filled(1024, 0), Ok(1024));
        assert_eq!(filled(1025, 0), Err(RingError::Index));
        assert_eq!(filled(0, 1), Err(RingError::Index));
    }

    #[test]
    fn stretches_cover_the_stream() {
        for from in [0, 1, 1000, 1023, 1024, u32::MAX - 3, u32::MAX] {
            for len in [0, 1, 24, 25, 1023, 1024, 5000] {
                let mut position = from;
                for (start, count) in stretches(from, len) {
                    for offset in start..start + count {
                        assert_eq!(position as usize % RING_LEN, offset);
                        position = position.wrapping_add(1);
                    }
                }
                assert_eq!(position.wrapping_sub(from) as usize, len.min(RING_LEN));
            }
        }
    }
}
