//! Descriptors and registers of the 82574L that the trusted part keeps to itself.

use super::{Refused, Stop};
use crate::e1000e::reg;
use crate::{RING_SIZE, Registers, RingId, Window};

/// The descriptor carries no buffer but a context, or is of the extended kind.
const DEXT: u8 = 1 << 5;
/// Descriptor type 1: data.
const TYPE_DATA: u32 = 1 << 20;

/// All registers but ring addresses, lengths, heads and tails: the two blocks of queue 0 and 1, and
/// their aliases of older devices.
pub(super) fn may_write(offset: u32) -> bool {
    match offset {
        reg::RXDCTL | reg::TXDCTL => true,
        0x0110..=0x0128 | 0x0420..=0x0438 | 0x2800..=0x2fff | 0x3800..=0x3fff => false,
        _ => offset < 0x2_0000,
    }
}

pub(super) fn stop(registers: &mut impl Registers) -> Stop {
    let mut write = |offset, value| registers.write32(Window::Main, offset, value);
    write(reg::IMC, u32::MAX);
    write(reg::RCTL, 0);
    write(reg::TCTL, 0);
    write(reg::CTRL, reg::CTRL_MASTER_DISABLE);
    let status = registers.read32(Window::Main, reg::STATUS);
    if status != u32::MAX && status & reg::STATUS_MASTER != 0 {
        return Stop::Wait(reg::MASTER_WAIT_NS);
    }
    registers.write32(Window::Main, reg::CTRL, reg::CTRL_RESET);
    registers.write32(Window::Main, reg::IMC, u32::MAX);
    Stop::Quiet
}

pub(super) fn set_up(registers: &mut impl Registers, ring: RingId, bus: u64) {
    let base = base(ring);
    let mut write = |offset, value| registers.write32(Window::Main, base + offset, value);
    write(reg::RING_LOW, bus as u32);
    write(reg::RING_HIGH, (bus >> 32) as u32);
    write(reg::RING_LENGTH, u32::from(RING_SIZE) * 16);
    write(reg::RING_HEAD, 0);
    write(reg::RING_TAIL, 0);
}

pub(super) fn doorbell(registers: &mut impl Registers, ring: RingId, tail: u16) {
    registers.write32(Window::Main, base(ring) + reg::RING_TAIL, u32::from(tail));
}

fn base(ring: RingId) -> u32 {
    match ring {
        RingId::Rx => reg::RX_RING,
        RingId::Tx => reg::TX_RING,
    }
}

/// A descriptor for bytes at a bus address.
pub(super) fn bytes(ring: RingId, bus: u64, length: u32, bits: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&bus.to_le_bytes());
    if ring == RingId::Tx {
        let command = u32::from(bits as u8 | DEXT);
        raw[8..12].copy_from_slice(&(length | TYPE_DATA | command << 24).to_le_bytes());
        raw[13] = (bits >> 8) as u8;
    }
    raw
}

/// A context descriptor: the device must take it for one, or it would be an unchecked address.
pub(super) fn context(ring: RingId, raw: [u8; 16]) -> Result<[u8; 16], Refused> {
    let word = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
    let is_context = word & 0x00f0_0000 == 0 && raw[11] & DEXT != 0;
    if ring == RingId::Tx && is_context { Ok(raw) } else { Err(Refused::Bits(word)) }
}

/// A receive descriptor that the device has filled: length, if the frame is whole and right.
pub(super) fn received(raw: [u8; 16]) -> Option<u32> {
    let is_whole = raw[12] & (reg::RX_DONE | reg::RX_END) == reg::RX_DONE | reg::RX_END;
    let is_right = raw[13] & reg::RX_BROKEN == 0;
    (is_whole && is_right).then(|| u32::from(u16::from_le_bytes([raw[8], raw[9]])))
}
