//! Frames in the arena and who waits for them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use drivers::trusted::{Layout, PAGE};
use drivers::{BufferId, Segment, Segments};
use frame::Offload;
use netback::packet::PacketId;
use switch::PortId;

/// Names a frame within a life of net-uk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameKey(pub u64);

/// Where a frame came from, and so what is done when nobody needs it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A guest: its packet is answered.
    Guest { port: PortId, generation: u64, queue: usize, packet: PacketId },
    /// The NIC: the buffer is lent again.
    Nic(BufferId),
    /// Another frame, of which this is a part or a variant.
    Frame(FrameKey),
    /// Nobody any more: the guest that sent it was answered, since a receiver keeps it waiting.
    Nobody,
}

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub segments: Segments,
    pub length: u32,
    pub offload: Offload,
    pub owner: Owner,
    /// Pages that go back to the pool with it.
    pub pages: Vec<u32>,
    pub users: usize,
}

/// All frames, and the pages for those that do not come from the NIC.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    frames: BTreeMap<FrameKey, Frame>,
    next: u64,
    free: Vec<u32>,
    total: usize,
}

impl Frames {
    pub(crate) fn new(layout: Layout) -> Self {
        let first = layout.tx();
        let free: Vec<u32> = (first..first + layout.tx_pages).rev().collect();
        Self { frames: BTreeMap::new(), next: 1, total: free.len(), free }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn total_pages(&self) -> usize {
        self.total
    }

    /// Takes pages from the pool: all or none.
    pub(crate) fn pages(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    pub(crate) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.total, "a page came back twice");
    }

    /// Adds a frame with one user, the caller.
    pub(crate) fn add(&mut self, frame: Frame) -> FrameKey {
        let key = FrameKey(self.next);
        self.next += 1;
        if let Owner::Frame(parent) = frame.owner {
            self.keep(parent);
        }
        self.frames.insert(key, Frame { users: 1, ..frame });
        key
    }

    pub(crate) fn get(&self, key: FrameKey) -> Option<&Frame> {
        self.frames.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: FrameKey) -> Option<&mut Frame> {
        self.frames.get_mut(&key)
    }

    /// Takes a frame that waits from the guest that sent it. The answer is that guest, with the
    /// pages that the frame holds.
    pub(crate) fn disown(&mut self, key: FrameKey) -> Option<(Owner, usize)> {
        let mut key = key;
        loop {
            let frame = self.frames.get_mut(&key)?;
            match frame.owner {
                Owner::Frame(parent) => key = parent,
                Owner::Guest { .. } => {
                    let owner = core::mem::replace(&mut frame.owner, Owner::Nobody);
                    return Some((owner, frame.pages.len()));
                }
                Owner::Nic(_) | Owner::Nobody => return None,
            }
        }
    }

    /// One user more.
    pub(crate) fn keep(&mut self, key: FrameKey) {
        if let Some(frame) = self.frames.get_mut(&key) {
            frame.users += 1;
        }
    }

    /// One user less. The last one takes the frame apart; the answer is its owner, or its owner's
    /// owner, with the number of pages it held.
    pub(crate) fn release(&mut self, key: FrameKey) -> Option<(Owner, usize)> {
        let mut key = key;
        loop {
            let frame = self.frames.get_mut(&key)?;
            frame.users -= 1;
            if frame.users > 0 {
                return None;
            }
            let frame = self.frames.remove(&key)?;
            let pages = frame.pages.len();
            self.give_back(frame.pages);
            match frame.owner {
                Owner::Frame(parent) => key = parent,
                owner => return Some((owner, pages)),
            }
        }
    }
}

/// The bytes `from..to` of a frame that lies in `segments`. `None`: too many pieces.
pub(crate) fn slice(segments: &[Segment], from: u32, to: u32) -> Option<Segments> {
    let mut part = Segments::new();
    let mut at = 0;
    for segment in segments {
        let start = from.clamp(at, at + segment.length);
        let end = to.clamp(at, at + segment.length);
        if start < end {
            let offset = segment.offset + (start - at);
            part.push(Segment { offset, length: end - start }).ok()?;
        }
        at += segment.length;
    }
    Some(part)
}

/// First byte of an arena page.
pub(crate) fn page_offset(page: u32) -> u32 {
    page * PAGE
}
