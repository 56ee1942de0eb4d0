//! Receive buffers.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use drivers::{BufferId, Command, Features, RxBuffer, Segment};

#[derive(Clone, Copy, Debug)]
struct Lent {
    segment: Segment,
    is_posted: bool,
}

/// The buffers that belong to the device now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receive {
    buffers: BTreeMap<BufferId, Lent>,
    posted: usize,
}

impl Receive {
    pub(crate) fn len(&self) -> usize {
        self.buffers.len()
    }

    pub(crate) fn lend(&mut self, buffer: RxBuffer) {
        let lent = Lent { segment: buffer.segment, is_posted: false };
        if let Some(former) = self.buffers.insert(buffer.id, lent) {
            debug_assert!(!former.is_posted, "a buffer is lent once: {buffer:?}");
        }
    }

    pub(crate) fn can_post(&self, features: &Features) -> bool {
        self.posted < self.buffers.len().min(features.rx_slots.into())
    }

    pub(crate) fn post(&mut self, features: &Features, commands: &mut Vec<Command>) {
        if self.posted == self.buffers.len() {
            return;
        }
        for (id, lent) in &mut self.buffers {
            if self.posted >= usize::from(features.rx_slots) {
                break;
            }
            if !lent.is_posted {
                lent.is_posted = true;
                self.posted += 1;
                commands.push(Command::Post(RxBuffer { id: *id, segment: lent.segment }));
            }
        }
    }

    /// The device has filled a buffer: `None` if it did not have it, or says what cannot be.
    pub(crate) fn received(&mut self, id: BufferId, offset: u16, length: u16) -> Option<Segment> {
        let lent = self.buffers.get(&id).filter(|lent| lent.is_posted)?;
        let end = u32::from(offset) + u32::from(length);
        let segment = lent.segment;
        if end > segment.length {
            return None;
        }
        self.posted -= 1;
        self.buffers.remove(&id);
        Some(segment)
    }

    /// The buffer with this segment, if the device had it: found in a dead driver's ring.
    pub(crate) fn salvaged(&mut self, segment: Segment) -> Option<BufferId> {
        let found = self.buffers.iter().find(|(_, lent)| lent.segment == segment);
        let (id, lent) = found?;
        let (id, is_posted) = (*id, lent.is_posted);
        if !is_posted {
            return None;
        }
        self.posted -= 1;
        self.buffers.remove(&id);
        Some(id)
    }

    pub(crate) fn take_back(&mut self) {
        self.buffers.values_mut().for_each(|lent| lent.is_posted = false);
        self.posted = 0;
    }
}
