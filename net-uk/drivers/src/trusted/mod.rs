//! The part that is trusted: descriptor rings, address checks, the device's off switch.

mod e1000e;
mod rings;
mod virtio;

use alloc::vec::Vec;

pub use rings::{LocalMachine, Rings, Salvaged};

use crate::{RING_SIZE, Registers, RingId, Segment, Window};

/// Bytes of a page; a segment never crosses one, since neighbours in the arena may be anywhere in
/// the machine.
pub const PAGE: u32 = 4096;
/// Pages of one ring: descriptors, and for virtio what the driver offers and what the device
/// returns, each on its own.
pub const RING_PAGES: u32 = 3;
/// Pages of scratch records of one ring: one of 16 bytes per descriptor.
pub const SCRATCH_PAGES: u32 = RING_SIZE as u32 * 16 / PAGE;

/// Which kind of device, and so which form its descriptors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Intel 82574L.
    E1000e,
    /// virtio-net, version 1, split queues.
    Virtio,
}

/// Why a proposal of the driver is refused. Each is a reason to end the driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The index is beyond the ring.
    Index(u16),
    /// The bytes are not within the zone for the ring's direction.
    Zone(Segment),
    /// The bytes cross a page, or there are none.
    Page(Segment),
    /// Bits that would make the device read something else than what was checked.
    Bits(u32),
    /// The register is the trusted part's own.
    Register(Window, u32),
    /// The ring was not set up.
    Ring(RingId),
}

/// How the arena is divided, in pages from its start: rings and scratch records first, then the
/// zone for receiving, then the one for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pages for received frames.
    pub rx_pages: u32,
    /// Pages for frames to send.
    pub tx_pages: u32,
}

impl Layout {
    /// First page of a ring.
    pub const fn ring(self, ring: RingId) -> u32 {
        ring as u32 * RING_PAGES
    }

    /// First page of a ring's scratch records.
    pub const fn scratch(self, ring: RingId) -> u32 {
        2 * RING_PAGES + ring as u32 * SCRATCH_PAGES
    }

    /// First page of the receive zone.
    pub const fn rx(self) -> u32 {
        2 * RING_PAGES + 2 * SCRATCH_PAGES
    }

    /// First page of the send zone.
    pub const fn tx(self) -> u32 {
        self.rx() + self.rx_pages
    }

    /// Pages in all.
    pub const fn pages(self) -> u32 {
        self.tx() + self.tx_pages
    }

    /// Whether `segment` may be used by `ring`.
    pub fn check(self, ring: RingId, segment: Segment) -> Result<(), Refused> {
        let (first, pages) = match ring {
            RingId::Rx => (self.rx(), self.rx_pages),
            RingId::Tx => (self.tx(), self.tx_pages),
        };
        let start = u64::from(first) * u64::from(PAGE);
        let end = start + u64::from(pages) * u64::from(PAGE);
        let (from, to) =
            (u64::from(segment.offset), u64::from(segment.offset) + u64::from(segment.length));
        if from < start || to > end {
            return Err(Refused::Zone(segment));
        }
        let is_in_page = segment.offset % PAGE + segment.length.min(PAGE + 1) <= PAGE;
        if segment.length == 0 || !is_in_page {
            return Err(Refused::Page(segment));
        }
        Ok(())
    }
}

/// How far [`Format::stop`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The device is quiet: it reads and writes no memory, raises no interrupt.
    Quiet,
    /// Call again after this many nanoseconds.
    Wait(u32),
}

impl Format {
    /// Whether the driver may write this register: those with addresses and indices of rings, and
    /// those that would change the rings' form, belong to the trusted part.
    pub fn may_write(self, window: Window, offset: u32, value: u32) -> bool {
        match self {
            Self::E1000e => e1000e::may_write(offset),
            Self::Virtio => virtio::may_write(window, offset, value),
        }
    }

    /// Ends all DMA and interrupts of the device, whatever it is doing. Call until it is quiet; a
    /// device that is not quiet after some milliseconds needs its Bus Master bit cleared.
    pub fn stop(self, registers: &mut impl Registers) -> Stop {
        match self {
            Self::E1000e => e1000e::stop(registers),
            Self::Virtio => virtio::stop(registers),
        }
    }
}

/// Bus address of each page of the arena.
pub type BusMap = Vec<u64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones() {
        let layout = Layout { rx_pages: 2, tx_pages: 2 };
        let rx = layout.rx() * PAGE;
        let check = |ring, offset, length| layout.check(ring, Segment { offset, length });
        assert_eq!(check(RingId::Rx, rx, PAGE), Ok(()));
        assert_eq!(check(RingId::Rx, rx + 2 * PAGE - 1, 1), Ok(()));
        assert!(matches!(check(RingId::Tx, rx, PAGE), Err(Refused::Zone(_))));
        assert!(matches!(check(RingId::Rx, rx - 1, 1), Err(Refused::Zone(_))));
        assert!(matches!(check(RingId::Rx, rx + 1, PAGE), Err(Refused::Page(_))));
        assert!(matches!(check(RingId::Rx, rx, 0), Err(Refused::Page(_))));
        assert!(matches!(check(RingId::Rx, rx, u32::MAX), Err(Refused::Zone(_))));
        assert!(matches!(check(RingId::Tx, u32::MAX, u32::MAX), Err(Refused::Zone(_))));
    }
}
