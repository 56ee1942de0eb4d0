//! What applying a request brings about outside the state: records to keep, events to deliver,
//! things for the shell to do.

use crate::quota::{Quota, Strength};

/// What a durable record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node.
    Node,
    /// A watch.
    Watch,
    /// A domain.
    Domain,
    /// A connection with its last request.
    Client,
    /// Global limits and the permissions of the special names.
    Settings,
    /// A domain whose nodes are being removed.
    Sweep,
    /// Not a record: the record with this number is gone.
    Tombstone,
}

impl Kind {
    /// The number in a slot.
    pub const fn raw(self) -> u8 {
        match self {
            Self::Node => 1,
            Self::Watch => 2,
            Self::Domain => 3,
            Self::Client => 4,
            Self::Settings => 5,
            Self::Tombstone => 6,
            Self::Sweep => 7,
        }
    }

    /// The kind with this number.
    pub fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Node),
            2 => Some(Self::Watch),
            3 => Some(Self::Domain),
            4 => Some(Self::Client),
            5 => Some(Self::Settings),
            6 => Some(Self::Tombstone),
            7 => Some(Self::Sweep),
            _ => None,
        }
    }
}

/// Something the shell has to do. Actions are hints that may repeat after a recovery; the shell
/// finds the whole truth by [`crate::Server::connections`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Map the ring of this domain, bind its event channel, then call
    /// [`crate::Server::attached`] or [`crate::Server::attach_failed`].
    Connect {
        /// The connection.
        client: u16,
        /// The domain.
        domid: u16,
        /// Frame of the ring page in the domain's address space.
        gfn: u64,
        /// The domain's event channel port.
        port: u32,
    },
    /// Bind another event channel port of a domain whose ring is mapped already; answer as for
    /// [`Action::Connect`].
    Rebind {
        /// The connection.
        client: u16,
        /// The domain.
        domid: u16,
        /// The domain's new event channel port.
        port: u32,
    },
    /// Unmap the ring and close the event channel.
    Disconnect {
        /// The connection, free for another domain from now on.
        client: u16,
        /// The domain.
        domid: u16,
    },
    /// A domain reached a limit; once per domain and limit until it falls below.
    LimitReached {
        /// The domain.
        domid: u16,
        /// The limit.
        quota: Quota,
        /// Whether its request was refused.
        strength: Strength,
    },
    /// CONTROL print: the text is in [`crate::Server::printed`].
    Print,
}

/// Receives the effects of one request, in order.
pub trait Effects {
    /// Whether `records` more records of `bytes` bytes in all can be kept.
    fn has_room(&self, records: usize, bytes: usize) -> bool;

    /// Whether a record of at most `bytes` bytes can be kept in what is reserved for cleaning up.
    fn has_reserve(&self, bytes: usize) -> bool;

    /// Keeps a record, in place of its former content if it had one.
    fn put(&mut self, record: u32, kind: Kind, head: &[u8], body: &[u8]);

    /// Drops a record.
    fn delete(&mut self, record: u32);

    /// Pieces of longer work were done ([`crate::pulse`]), beside the records that are put or go.
    fn worked(&mut self, pieces: u32);

    /// Drops the record of a node whose parent is dropped in the same request.
    fn forget(&mut self, record: u32);

    /// A connection begins a life: its area starts over, and its ring when it is attached.
    fn connect(&mut self, client: u16, life: u64);

    /// A connection ends.
    fn disconnect(&mut self, client: u16);

    /// Delivers a watch event to a client before its reply, if it is the caller.
    fn event(&mut self, client: u16, path: &[u8], token: &[u8]);

    /// Delivers a watch event to the caller after its reply.
    fn event_after_reply(&mut self, client: u16, path: &[u8], token: &[u8]);

    /// Something for the shell.
    fn act(&mut self, action: Action);

    /// Text for the host's console.
    fn print(&mut self, text: &[u8]);
}
