//! The shared page of one ring (ring.h).

use core::sync::atomic::{Ordering, fence};

use fabric::SharedMemory;

use crate::RING_SIZE;

/// Offsets of the indices; slots start at 64 (ring.h, `struct __name##_sring`).
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const SLOTS: usize = 64;

/// What makes a frontend's queue broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// Its index says that there are more requests than the ring holds.
    Index {
        /// The index.
        req_prod: u32,
    },
    /// A packet has more slots than any frontend sends.
    Slots,
    /// A piece lies across the end of its page.
    CrossesPage,
    /// Pieces are longer than the packet.
    Length,
    /// An extra slot of an unknown kind.
    Extra,
}

impl core::fmt::Display for Fatal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Index { req_prod } => write!(f, "the ring cannot hold request {req_prod}"),
            Self::Slots => write!(f, "a packet has too many slots"),
            Self::CrossesPage => write!(f, "a piece of a packet crosses its page"),
            Self::Length => write!(f, "a packet's pieces are longer than the packet"),
            Self::Extra => write!(f, "a packet has an extra slot of an unknown kind"),
        }
    }
}

/// One ring's page; `slot_size` is that of both request and response.
#[derive(Clone, Debug)]
pub(crate) struct Ring<R> {
    page: R,
    slot_size: usize,
}

impl<R: SharedMemory> Ring<R> {
    pub(crate) fn new(page: R, slot_size: usize) -> Self {
        assert!(page.len() >= SLOTS + slot_size * RING_SIZE as usize, "a ring needs a page");
        Self { page, slot_size }
    }

    fn place(&self, index: u32) -> usize {
        SLOTS + (index % RING_SIZE) as usize * self.slot_size
    }

    /// Copies the slot with this index, once.
    pub(crate) fn slot<const N: usize>(&self, index: u32) -> [u8; N] {
        let mut slot = [0; N];
        self.page.read(self.place(index), &mut slot);
        slot
    }

    pub(crate) fn fill(&self, index: u32, bytes: &[u8]) {
        self.page.write(self.place(index), bytes);
    }

    /// Requests beyond `consumed`, if the frontend's index can be true: it holds no more than the
    /// ring beyond what was answered.
    pub(crate) fn waiting(&self, consumed: u32, answered: u32) -> Result<u32, Fatal> {
        let req_prod = self.page.load_u32(REQ_PROD);
        let waiting = req_prod.wrapping_sub(consumed);
        let taken = consumed.wrapping_sub(answered);
        if waiting > RING_SIZE - taken { Err(Fatal::Index { req_prod }) } else { Ok(waiting) }
    }

    /// Asks for an event at the request `after` this index. Look for requests once more afterwards.
    pub(crate) fn ask(&self, consumed: u32, after: u32) {
        self.page.store_u32(REQ_EVENT, consumed.wrapping_add(after));
        fence(Ordering::SeqCst);
    }

    pub(crate) fn published(&self) -> u32 {
        self.page.load_u32(RSP_PROD)
    }

    /// Publishes responses. `true`: the frontend wants an event.
    pub(crate) fn publish(&self, old: u32, new: u32) -> bool {
        self.page.store_u32(RSP_PROD, new);
        fence(Ordering::SeqCst);
        let event = self.page.load_u32(RSP_EVENT);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }
}
