//! virtio-net as a modern PCI device (virtio 1.2, 4.1 and 5.1): version 1, split queues, one queue
//! pair, no mergeable buffers (a buffer holds any frame of the link).

pub mod flag;
pub mod reg;

use frame::{Checksum, Mac};

use crate::{
    BufferId, Config, Descriptor, Driver, Event, Failure, Features, FrameId, Machine, RING_SIZE,
    RingId, RxBuffer, SEGMENTS_MAX, Start, TsoStyle, TxFrame, TxOffload, Window,
};

/// Bytes of the header before each frame (5.1.6, with `num_buffers`).
pub const HEADER: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Reset,
    Up,
}

const SIZE: usize = RING_SIZE as usize;

/// Descriptors that are free.
type Places = heapless::Vec<u16, SIZE>;

/// A driver instance.
#[derive(Clone, Debug)]
pub struct Virtio {
    phase: Phase,
    link: Option<bool>,
    has_status: bool,
    tx_free: Places,
    /// For each head in the transmit ring its frame.
    tx_frames: [Option<FrameId>; SIZE],
    /// For each descriptor of a chain the next one.
    tx_next: [Option<u16>; SIZE],
    tx_seen: u16,
    rx_free: Places,
    rx_buffers: [Option<RxBuffer>; SIZE],
    rx_seen: u16,
    has_tx: bool,
    has_rx: bool,
}

impl Default for Virtio {
    fn default() -> Self {
        Self::new()
    }
}

impl Virtio {
    /// A driver that knows nothing of its device.
    pub fn new() -> Self {
        Self {
            phase: Phase::Fresh,
            link: None,
            has_status: false,
            tx_free: (0..RING_SIZE).rev().collect(),
            tx_frames: [None; SIZE],
            tx_next: [None; SIZE],
            tx_seen: 0,
            rx_free: (0..RING_SIZE).rev().collect(),
            rx_buffers: [None; SIZE],
            rx_seen: 0,
            has_tx: false,
            has_rx: false,
        }
    }

    fn features(machine: &mut impl Machine, word: u32) -> u32 {
        machine.write32(Window::Main, reg::DEVICE_SELECT, word);
        machine.read32(Window::Main, reg::DEVICE_FEATURES)
    }

    fn negotiate(machine: &mut impl Machine) -> Result<u32, Failure> {
        let (low, high) = (Self::features(machine, 0), Self::features(machine, 1));
        if high & flag::VERSION_1 == 0 {
            return Err(Failure::Refused);
        }
        let mut wanted = low & (flag::CSUM | flag::MAC | flag::STATUS);
        if wanted & flag::CSUM != 0 && low & flag::TSO == flag::TSO {
            wanted |= flag::TSO;
        }
        // Behind an IOMMU the device uses bus addresses only if this is acknowledged (6.1).
        let wanted_high = high & (flag::VERSION_1 | flag::ACCESS_PLATFORM);
        for (word, bits) in [(0, wanted), (1, wanted_high)] {
            machine.write32(Window::Main, reg::DRIVER_SELECT, word);
            machine.write32(Window::Main, reg::DRIVER_FEATURES, bits);
        }
        let status = flag::ACKNOWLEDGE | flag::DRIVER | flag::FEATURES_OK;
        machine.write8(Window::Main, reg::STATUS, status);
        if machine.read8(Window::Main, reg::STATUS) & flag::FEATURES_OK == 0 {
            return Err(Failure::Refused);
        }
        Ok(wanted)
    }

    fn bring_up(&mut self, machine: &mut impl Machine) -> Result<Features, Failure> {
        if machine.read8(Window::Main, reg::STATUS) != 0 {
            return Err(Failure::Silent);
        }
        *self = Self { phase: Phase::Up, ..Self::new() };
        machine.write8(Window::Main, reg::STATUS, flag::ACKNOWLEDGE);
        machine.write8(Window::Main, reg::STATUS, flag::ACKNOWLEDGE | flag::DRIVER);
        let wanted = Self::negotiate(machine)?;
        self.has_status = wanted & flag::STATUS != 0;
        machine.set_up(RingId::Rx);
        machine.set_up(RingId::Tx);
        let status = flag::ACKNOWLEDGE | flag::DRIVER | flag::FEATURES_OK | flag::DRIVER_OK;
        machine.write8(Window::Main, reg::STATUS, status);
        let mut address = [0; 6];
        for (at, byte) in (0..).zip(&mut address) {
            *byte = machine.read8(Window::Device, at);
        }
        let tso = wanted & flag::TSO != 0;
        Ok(Features {
            address: Mac(address),
            has_checksum: wanted & flag::CSUM != 0,
            tso: tso.then_some(TsoStyle::Whole),
            tx_slots: RING_SIZE,
            tx_extra: 1,
            rx_slots: RING_SIZE,
        })
    }

    /// The next entry that the device has returned on a ring: chain head and bytes written.
    fn returned(machine: &mut impl Machine, ring: RingId, seen: u16) -> Option<(u32, u32)> {
        let base = 2 * crate::trusted::PAGE;
        let mut index = [0; 2];
        machine.ring_read(ring, base + 2, &mut index);
        if u16::from_le_bytes(index) == seen {
            return None;
        }
        let mut entry = [0; 8];
        machine.ring_read(ring, base + 4 + 8 * u32::from(seen % RING_SIZE), &mut entry);
        let [a, b, c, d, e, f, g, h] = entry;
        Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
    }

    fn harvest_tx(
        &mut self,
        machine: &mut impl Machine,
        events: &mut impl Extend<Event>,
    ) -> Result<(), Failure> {
        // A ring's worth at most: a device that returns without end is not followed.
        for _ in 0..RING_SIZE {
            let Some((head, _)) = Self::returned(machine, RingId::Tx, self.tx_seen) else { break };
            let id = self.tx_frames.get_mut(head as usize).and_then(Option::take);
            let id = id.ok_or(Failure::Nonsense)?;
            let mut place = Some(head as u16);
            while let Some(free) = place {
                place = self.tx_next[usize::from(free)].take();
                self.tx_free.extend([free]);
            }
            self.tx_seen = self.tx_seen.wrapping_add(1);
            events.extend([Event::Sent(id)]);
        }
        Ok(())
    }

    fn harvest_rx(
        &mut self,
        machine: &mut impl Machine,
        events: &mut impl Extend<Event>,
    ) -> Result<(), Failure> {
        for _ in 0..RING_SIZE {
            let Some((head, written)) = Self::returned(machine, RingId::Rx, self.rx_seen) else {
                break;
            };
            let buffer = self.rx_buffers.get_mut(head as usize).and_then(Option::take);
            let buffer = buffer.ok_or(Failure::Nonsense)?;
            if written > buffer.segment.length {
                return Err(Failure::Nonsense);
            }
            self.rx_free.extend([head as u16]);
            self.rx_seen = self.rx_seen.wrapping_add(1);
            events.extend([received(buffer.id, written)]);
        }
        Ok(())
    }
}

fn received(buffer: BufferId, written: u32) -> Event {
    // Without feature 1 (GUEST_CSUM) every sum is filled in and none is checked by the device.
    let length = u16::try_from(written.saturating_sub(HEADER)).unwrap_or(0);
    Event::Received { buffer, offset: HEADER as u16, length, checksum: Checksum::Unknown }
}

fn header(offload: Option<&TxOffload>) -> [u8; 16] {
    let mut raw = [0; 16];
    if let Some(offload) = offload {
        raw[0] = flag::NEEDS_CSUM;
        if let Some(cut) = offload.cut {
            raw[1] = if offload.is_v6 { flag::GSO_TCPV6 } else { flag::GSO_TCPV4 };
            raw[2..4].copy_from_slice(&cut.headers.to_le_bytes());
            raw[4..6].copy_from_slice(&cut.size.to_le_bytes());
        }
        raw[6..8].copy_from_slice(&offload.start.to_le_bytes());
        raw[8..10].copy_from_slice(&offload.field.wrapping_sub(offload.start).to_le_bytes());
    }
    raw
}

impl<M: Machine> Driver<M> for Virtio {
    fn start(&mut self, machine: &mut M, _config: &Config) -> Result<Start, Failure> {
        if machine.read32(Window::Main, reg::DEVICE_SELECT) == u32::MAX {
            return Err(Failure::Silent);
        }
        if self.phase == Phase::Reset {
            return Ok(Start::Ready(self.bring_up(machine)?));
        }
        machine.write8(Window::Main, reg::STATUS, 0);
        self.phase = Phase::Reset;
        Ok(Start::Wait(reg::RESET_WAIT_NS))
    }

    /// Nothing to do: without a control queue the device takes every frame.
    fn configure(&mut self, _machine: &mut M, _config: &Config) -> Result<(), Failure> {
        Ok(())
    }

    fn transmit(&mut self, machine: &mut M, frame: &TxFrame) -> Result<(), Failure> {
        let needed = frame.segments.len() + 1;
        if frame.segments.is_empty() || self.tx_free.len() < needed {
            return Err(Failure::Overrun);
        }
        let mut places = heapless::Vec::<u16, { SEGMENTS_MAX + 1 }>::new();
        places.extend((0..needed).filter_map(|_| self.tx_free.pop()));
        let bits = |number: usize| match places.get(number + 1) {
            Some(next) => u32::from(flag::NEXT) | u32::from(*next) << 16,
            None => 0,
        };
        let head = places[0];
        machine.scratch(RingId::Tx, head, header(frame.offload.as_ref()));
        let first = Descriptor::Scratch { length: HEADER, bits: bits(0) };
        machine.place(RingId::Tx, head, first);
        for (number, segment) in (1..).zip(&frame.segments) {
            let descriptor = Descriptor::Bytes { segment: *segment, bits: bits(number) };
            machine.place(RingId::Tx, places[number], descriptor);
        }
        for pair in places.windows(2) {
            self.tx_next[usize::from(pair[0])] = Some(pair[1]);
        }
        self.tx_frames[usize::from(head)] = Some(frame.id);
        machine.publish(RingId::Tx, head);
        self.has_tx = true;
        Ok(())
    }

    fn post(&mut self, machine: &mut M, buffer: &RxBuffer) -> Result<(), Failure> {
        let place = self.rx_free.pop().ok_or(Failure::Overrun)?;
        let descriptor = Descriptor::Bytes { segment: buffer.segment, bits: 0 };
        machine.place(RingId::Rx, place, descriptor);
        self.rx_buffers[usize::from(place)] = Some(*buffer);
        machine.publish(RingId::Rx, place);
        self.has_rx = true;
        Ok(())
    }

    fn flush(&mut self, machine: &mut M) {
        if core::mem::take(&mut self.has_tx) {
            machine.doorbell(RingId::Tx);
        }
        if core::mem::take(&mut self.has_rx) {
            machine.doorbell(RingId::Rx);
        }
    }

    fn poll(&mut self, machine: &mut M, events: &mut impl Extend<Event>) -> Result<(), Failure> {
        if self.phase != Phase::Up {
            return Ok(());
        }
        let _acknowledged = machine.read8(Window::Isr, 0);
        let status = machine.read8(Window::Main, reg::STATUS);
        if status == 0xff || status & flag::DRIVER_OK == 0 {
            return Err(Failure::Silent);
        }
        if status & flag::NEEDS_RESET != 0 {
            return Err(Failure::Refused);
        }
        self.harvest_tx(machine, events)?;
        self.harvest_rx(machine, events)?;
        let link = !self.has_status
            || machine.read16(Window::Device, reg::NET_STATUS) & flag::LINK_UP != 0;
        if self.link != Some(link) {
            self.link = Some(link);
            events.extend([Event::Link(link)]);
        }
        Ok(())
    }
}
