//! Intel 82574L ("e1000e"), after its data sheet (order number 317694): extended transmit
//! descriptors, legacy receive descriptors with 4,096-byte buffers, legacy interrupts.

pub mod reg;

use heapless::Deque;

use frame::{Checksum, Mac};

use crate::{
    BufferId, Config, Descriptor, Driver, Event, Failure, Features, FrameId, Machine, RING_SIZE,
    RingId, RxBuffer, Start, TsoStyle, TxFrame, TxOffload, Window,
};

/// Descriptors of the ring that stay free: with none free, head equals tail and the device takes
/// the ring for empty; another for the device's prefetch.
const KEPT_FREE: u16 = 2;
/// Bytes of a frame beside its payload: header, one tag, checksum.
const OVERHEAD: u16 = 22;
/// The longest frame without the long-packet bit (data sheet, 10.2.5.1).
const LONGEST_SHORT: u16 = 1522;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Reset,
    Up,
}

/// A driver instance.
#[derive(Clone, Debug)]
pub struct E1000e {
    phase: Phase,
    link: Option<bool>,
    tx_next: u16,
    /// Frames in the ring: the index of the last descriptor, and how many descriptors.
    tx_frames: Deque<(FrameId, u16, u16), { RING_SIZE as usize }>,
    tx_used: u16,
    rx_next: u16,
    /// Buffers in the ring, in order, from `rx_first`.
    rx_buffers: Deque<BufferId, { RING_SIZE as usize }>,
    rx_first: u16,
    has_tx: bool,
    has_rx: bool,
}

impl Default for E1000e {
    fn default() -> Self {
        Self::new()
    }
}

impl E1000e {
    /// A driver that knows nothing of its device.
    pub fn new() -> Self {
        Self {
            phase: Phase::Fresh,
            link: None,
            tx_next: 0,
            tx_frames: Deque::new(),
            tx_used: 0,
            rx_next: 0,
            rx_buffers: Deque::new(),
            rx_first: 0,
            has_tx: false,
            has_rx: false,
        }
    }

    fn read(machine: &mut impl Machine, offset: u32) -> u32 {
        machine.read32(Window::Main, offset)
    }

    fn write(machine: &mut impl Machine, offset: u32, value: u32) {
        machine.write32(Window::Main, offset, value);
    }

    fn reset(machine: &mut impl Machine) {
        Self::write(machine, reg::IMC, u32::MAX);
        Self::write(machine, reg::RCTL, 0);
        Self::write(machine, reg::TCTL, 0);
        Self::write(machine, reg::CTRL, reg::CTRL_RESET);
    }

    fn bring_up(
        &mut self,
        machine: &mut impl Machine,
        config: &Config,
    ) -> Result<Features, Failure> {
        if Self::read(machine, reg::CTRL) & reg::CTRL_RESET != 0 {
            return Err(Failure::Silent);
        }
        *self = Self { phase: Phase::Up, ..Self::new() };
        Self::write(machine, reg::IMC, u32::MAX);
        Self::read(machine, reg::ICR);
        Self::write(machine, reg::CTRL, reg::CTRL_LINK_UP | reg::CTRL_SPEED_DETECT);
        for entry in 0..reg::MTA_ENTRIES {
            Self::write(machine, reg::MTA + 4 * entry, 0);
        }
        if let Some(mac) = config.address {
            let [a, b, c, d, e, g] = mac.0;
            Self::write(machine, reg::RAL, u32::from_le_bytes([a, b, c, d]));
            let high = u32::from(u16::from_le_bytes([e, g]));
            Self::write(machine, reg::RAH, high | reg::RAH_VALID);
        }
        let (low, high) = (Self::read(machine, reg::RAL), Self::read(machine, reg::RAH));
        let [a, b, c, d] = low.to_le_bytes();
        let [e, g, ..] = high.to_le_bytes();
        Self::write(machine, reg::RXCSUM, reg::RXCSUM_IP | reg::RXCSUM_TRANSPORT);
        machine.set_up(RingId::Rx);
        machine.set_up(RingId::Tx);
        Self::write(machine, reg::TIPG, reg::TIPG_COPPER);
        Self::write(machine, reg::TCTL, reg::TCTL_ON);
        Self::receive(machine, config);
        Self::write(machine, reg::ITR, reg::ITR_MODERATE);
        Self::write(machine, reg::IMS, reg::CAUSES);
        Ok(Features {
            address: Mac([a, b, c, d, e, g]),
            has_checksum: true,
            tso: Some(TsoStyle::Zeroed),
            tx_slots: RING_SIZE - KEPT_FREE,
            tx_extra: 1,
            rx_slots: RING_SIZE - KEPT_FREE,
        })
    }

    fn receive(machine: &mut impl Machine, config: &Config) {
        let mut control = reg::RCTL_ON;
        if config.is_promiscuous {
            control |= reg::RCTL_ALL;
        } else if !config.groups.is_empty() {
            // The hash filter would pass other groups, too: the switch filters exactly anyway.
            control |= reg::RCTL_ALL_GROUPS;
        }
        if config.mtu.saturating_add(OVERHEAD) > LONGEST_SHORT {
            control |= reg::RCTL_LONG;
        }
        Self::write(machine, reg::RCTL, control);
    }

    fn next_tx(&mut self) -> u16 {
        let index = self.tx_next;
        self.tx_next = (index + 1) % RING_SIZE;
        self.tx_used += 1;
        index
    }

    fn harvest_tx(&mut self, machine: &mut impl Machine, events: &mut impl Extend<Event>) {
        while let Some((id, last, count)) = self.tx_frames.front().copied() {
            let mut status = [0];
            machine.ring_read(RingId::Tx, u32::from(last) * 16 + 12, &mut status);
            if status[0] & reg::TX_DONE == 0 {
                break;
            }
            self.tx_frames.pop_front();
            self.tx_used -= count;
            events.extend([Event::Sent(id)]);
        }
    }

    fn harvest_rx(&mut self, machine: &mut impl Machine, events: &mut impl Extend<Event>) {
        while let Some(buffer) = self.rx_buffers.front().copied() {
            let mut raw = [0; 16];
            machine.ring_read(RingId::Rx, u32::from(self.rx_first) * 16, &mut raw);
            if raw[12] & reg::RX_DONE == 0 {
                break;
            }
            self.rx_buffers.pop_front();
            self.rx_first = (self.rx_first + 1) % RING_SIZE;
            let is_good = raw[12] & reg::RX_END != 0 && raw[13] & reg::RX_BROKEN == 0;
            let length = if is_good { u16::from_le_bytes([raw[8], raw[9]]) } else { 0 };
            let checked = raw[12] & (reg::RX_TCP_CHECKED | reg::RX_UDP_CHECKED) != 0;
            let is_right =
                checked && raw[12] & reg::RX_IGNORE == 0 && raw[13] & reg::RX_SUM_WRONG == 0;
            let checksum = if is_right { Checksum::Valid } else { Checksum::Unknown };
            events.extend([Event::Received { buffer, offset: 0, length, checksum }]);
        }
    }
}

fn context(offload: &TxOffload, total: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    // Offsets above 255 do not occur: headers are within 192 bytes of the frame's start.
    raw[0] = offload.network as u8;
    raw[1] = offload.network.wrapping_add(10) as u8;
    raw[2..4].copy_from_slice(&offload.start.wrapping_sub(1).to_le_bytes());
    raw[4] = offload.start as u8;
    raw[5] = offload.field as u8;
    let mut command = reg::TUCMD_EXTENDED;
    if offload.is_tcp {
        command |= reg::TUCMD_TCP;
    }
    if !offload.is_v6 {
        command |= reg::TUCMD_V4;
    }
    let mut word = 0;
    if let Some(cut) = offload.cut {
        command |= reg::TUCMD_CUT;
        word = total.saturating_sub(u32::from(cut.headers)) & 0x000f_ffff;
        raw[13] = cut.headers as u8;
        raw[14..].copy_from_slice(&cut.size.to_le_bytes());
    }
    raw[8..12].copy_from_slice(&(word | u32::from(command) << 24).to_le_bytes());
    raw
}

impl<M: Machine> Driver<M> for E1000e {
    fn start(&mut self, machine: &mut M, config: &Config) -> Result<Start, Failure> {
        if Self::read(machine, reg::STATUS) == u32::MAX {
            return Err(Failure::Silent);
        }
        if self.phase == Phase::Reset {
            return Ok(Start::Ready(self.bring_up(machine, config)?));
        }
        Self::reset(machine);
        self.phase = Phase::Reset;
        Ok(Start::Wait(reg::RESET_WAIT_NS))
    }

    fn configure(&mut self, machine: &mut M, config: &Config) -> Result<(), Failure> {
        Self::receive(machine, config);
        Ok(())
    }

    fn transmit(&mut self, machine: &mut M, frame: &TxFrame) -> Result<(), Failure> {
        let needed = frame.segments.len() as u16 + u16::from(frame.offload.is_some());
        if frame.segments.is_empty() || self.tx_used + needed > RING_SIZE - KEPT_FREE {
            return Err(Failure::Overrun);
        }
        let total = frame.segments.iter().map(|segment| segment.length).sum();
        let mut bits = u32::from(reg::DCMD_CHECK);
        if let Some(offload) = &frame.offload {
            let index = self.next_tx();
            machine.place(RingId::Tx, index, Descriptor::Context(context(offload, total)));
            bits |= u32::from(reg::POPTS_TRANSPORT) << 8;
            if offload.cut.is_some() {
                bits |= u32::from(reg::DCMD_CUT);
                if !offload.is_v6 {
                    bits |= u32::from(reg::POPTS_IP) << 8;
                }
            }
        }
        let mut last = self.tx_next;
        for (number, segment) in frame.segments.iter().enumerate() {
            last = self.next_tx();
            let ends = if number + 1 == frame.segments.len() { reg::DCMD_END } else { 0 };
            let bits = bits | u32::from(ends);
            machine.place(RingId::Tx, last, Descriptor::Bytes { segment: *segment, bits });
        }
        self.tx_frames.push_back((frame.id, last, needed)).map_err(|_| Failure::Overrun)?;
        machine.publish(RingId::Tx, self.tx_next);
        self.has_tx = true;
        Ok(())
    }

    fn post(&mut self, machine: &mut M, buffer: &RxBuffer) -> Result<(), Failure> {
        if self.rx_buffers.len() >= usize::from(RING_SIZE - KEPT_FREE) {
            return Err(Failure::Overrun);
        }
        let descriptor = Descriptor::Bytes { segment: buffer.segment, bits: 0 };
        machine.place(RingId::Rx, self.rx_next, descriptor);
        self.rx_next = (self.rx_next + 1) % RING_SIZE;
        self.rx_buffers.push_back(buffer.id).map_err(|_| Failure::Overrun)?;
        machine.publish(RingId::Rx, self.rx_next);
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
        // Reading the causes acknowledges them; rings are looked at whatever they say, so that a
        // lost interrupt costs time only.
        let causes = Self::read(machine, reg::ICR);
        let status = Self::read(machine, reg::STATUS);
        if causes == u32::MAX && status == u32::MAX {
            return Err(Failure::Silent);
        }
        self.harvest_tx(machine, events);
        self.harvest_rx(machine, events);
        let link = status & reg::STATUS_LINK != 0;
        if self.link != Some(link) {
            self.link = Some(link);
            events.extend([Event::Link(link)]);
        }
        Ok(())
    }
}
