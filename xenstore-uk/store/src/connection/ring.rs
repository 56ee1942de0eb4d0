//! A client's ring, whoever may write which page of it.

use fabric::SharedMemory;
use wire::ring as layout;
use wire::ring::{RingError, filled, stretches};

/// Where a client's ring lies.
#[derive(Clone, Debug)]
pub enum Ring<P> {
    /// One page that both sides write: a guest's (`xenstore-ring.txt`).
    Page(P),
    /// Two pages with the same layout, each written by one side alone: a service's, over the
    /// fabric. The client's page has the request ring, the request producer, the response
    /// consumer and its connection word; the server's page has the rest and its own connection
    /// word. To start over, the client sets its two indices to zero and then changes its
    /// connection word; the server has started over, too, once its word is equal.
    Pair {
        /// Written by the client.
        client: P,
        /// Written by the server.
        server: P,
    },
}

impl<P: SharedMemory> Ring<P> {
    fn client(&self) -> &P {
        match self {
            Self::Page(page) => page,
            Self::Pair { client, .. } => client,
        }
    }

    fn server(&self) -> &P {
        match self {
            Self::Page(page) => page,
            Self::Pair { server, .. } => server,
        }
    }

    /// Bytes of requests from stream position `consumer` on.
    pub(crate) fn requests(&self, consumer: u32) -> Result<usize, RingError> {
        filled(self.client().load_u32(layout::REQUEST_PRODUCER), consumer)
    }

    /// Whether there are requests from stream position `consumer` on.
    pub(crate) fn has_requests(&self, consumer: u32) -> bool {
        self.requests(consumer).is_ok_and(|len| len > 0)
    }

    /// Bytes free for responses behind stream position `producer`.
    pub(crate) fn room(&self, producer: u32) -> Result<usize, RingError> {
        let filled = filled(producer, self.client().load_u32(layout::RESPONSE_CONSUMER))?;
        Ok(layout::RING_LEN - filled)
    }

    /// Copies request bytes from stream position `from` on.
    pub(crate) fn read(&self, from: u32, into: &mut [u8]) {
        let mut done = 0;
        for (start, len) in stretches(from, into.len()) {
            self.client().read(layout::REQUESTS + start, &mut into[done..done + len]);
            done += len;
        }
    }

    /// Copies response bytes to stream position `to`.
    pub(crate) fn write(&self, to: u32, from: &[u8]) {
        let mut done = 0;
        for (start, len) in stretches(to, from.len()) {
            if len > 0 {
                self.server().write(layout::RESPONSES + start, &from[done..done + len]);
                done += len;
            }
        }
    }

    /// Both indices of the server as they stand in the ring: requests taken, responses written.
    pub(crate) fn published(&self) -> (u32, u32) {
        let server = self.server();
        (server.load_u32(layout::REQUEST_CONSUMER), server.load_u32(layout::RESPONSE_PRODUCER))
    }

    pub(crate) fn publish_requests(&self, consumer: u32) {
        self.server().store_u32(layout::REQUEST_CONSUMER, consumer);
    }

    pub(crate) fn publish_responses(&self, producer: u32) {
        self.server().store_u32(layout::RESPONSE_PRODUCER, producer);
    }

    pub(crate) fn set_error(&self, error: u32) {
        self.server().store_u32(layout::ERROR, error);
    }

    /// Whether the client asks for a reset.
    pub(crate) fn wants_reset(&self) -> bool {
        match self {
            Self::Page(page) => page.load_u32(layout::CONNECTION) == layout::RECONNECT,
            Self::Pair { client, server } => {
                client.load_u32(layout::CONNECTION) != server.load_u32(layout::CONNECTION)
            }
        }
    }

    /// Empties both rings and says what the server offers; the last step of a reset.
    pub(crate) fn initialise(&self, features: u32) {
        if let Self::Page(page) = self {
            page.store_u32(layout::REQUEST_PRODUCER, 0);
            page.store_u32(layout::RESPONSE_CONSUMER, 0);
        }
        self.publish_requests(0);
        self.publish_responses(0);
        self.server().store_u32(layout::SERVER_FEATURES, features);
        self.set_error(0);
    }

    /// Tells the client that the reset is done.
    pub(crate) fn confirm_reset(&self) {
        match self {
            Self::Page(page) => page.store_u32(layout::CONNECTION, layout::CONNECTED),
            Self::Pair { client, server } => {
                server.store_u32(layout::CONNECTION, client.load_u32(layout::CONNECTION));
            }
        }
    }
}
