//! Split virtqueues (virtio 1.2, 2.7) as the trusted part writes them.

use fabric::SharedMemory;

use super::{PAGE, Refused, Stop};
use crate::virtio::{flag, reg};
use crate::{RING_SIZE, Registers, RingId, Window};

/// Pages of a ring: descriptors, offers, returns.
pub(super) const OFFERED: u32 = PAGE;
pub(super) const RETURNED: u32 = 2 * PAGE;

/// Everything but the queues' registers, and features that would change the form of a queue.
pub(super) fn may_write(window: Window, offset: u32, value: u32) -> bool {
    match (window, offset) {
        (Window::Main, reg::QUEUE_SELECT..) | (Window::Notify, _) => false,
        // Which half of the features it is, only the driver knows: bits that change the form of
        // queues (28 indirect, 29 event; 34 packed, 35 in order, 40 reset) are refused in both.
        (Window::Main, reg::DRIVER_FEATURES) => {
            value & (1 << 28 | 1 << 29 | 1 << 2 | 1 << 3 | 1 << 8) == 0
        }
        _ => true,
    }
}

pub(super) fn stop(registers: &mut impl Registers) -> Stop {
    registers.write8(Window::Main, reg::STATUS, 0);
    match registers.read8(Window::Main, reg::STATUS) {
        0 | 0xff => Stop::Quiet,
        _ => Stop::Wait(reg::RESET_WAIT_NS),
    }
}

/// Tells the device where queue `ring` is; answers its notification offset.
pub(super) fn set_up(registers: &mut impl Registers, ring: RingId, pages: [u64; 3]) -> u16 {
    let main = Window::Main;
    registers.write16(main, reg::QUEUE_SELECT, ring as u16);
    registers.write16(main, reg::QUEUE_SIZE, RING_SIZE);
    registers.write16(main, reg::QUEUE_VECTOR, reg::NO_VECTOR);
    for (offset, bus) in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE].iter().zip(pages) {
        registers.write32(main, *offset, bus as u32);
        registers.write32(main, *offset + 4, (bus >> 32) as u32);
    }
    let notify = registers.read16(main, reg::QUEUE_NOTIFY_OFF);
    registers.write16(main, reg::QUEUE_ENABLE, 1);
    notify
}

/// A descriptor for bytes at a bus address.
pub(super) fn bytes(ring: RingId, bus: u64, length: u32, bits: u32) -> Result<[u8; 16], Refused> {
    let (flags, next) = (bits as u16, (bits >> 16) as u16);
    if flags & !flag::NEXT != 0 || next >= RING_SIZE {
        return Err(Refused::Bits(bits));
    }
    let direction = if ring == RingId::Rx { flag::WRITE } else { 0 };
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&bus.to_le_bytes());
    raw[8..12].copy_from_slice(&length.to_le_bytes());
    raw[12..14].copy_from_slice(&(flags | direction).to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    Ok(raw)
}

/// Puts a chain into the ring of offers, as number `offered`.
pub(super) fn offer<M: SharedMemory>(memory: &M, ring: usize, offered: u16, head: u16) {
    let entry = ring + OFFERED as usize + 4 + 2 * usize::from(offered % RING_SIZE);
    memory.write(entry, &head.to_le_bytes());
}

/// Makes offers before number `offered` visible.
pub(super) fn show<M: SharedMemory>(memory: &M, ring: usize, offered: u16) {
    // One store of a word: flags (0: interrupts wanted) and index together.
    memory.store_u32(ring + OFFERED as usize, u32::from(offered) << 16);
}

/// How many chains the device has returned.
pub(super) fn returned<M: SharedMemory>(memory: &M, ring: usize) -> u16 {
    (memory.load_u32(ring + RETURNED as usize) >> 16) as u16
}

/// The chain returned as number `index`: its head, and the bytes written.
pub(super) fn returned_at<M: SharedMemory>(memory: &M, ring: usize, index: u16) -> (u32, u32) {
    let entry = ring + RETURNED as usize + 4 + 8 * usize::from(index % RING_SIZE);
    (memory.load_u32(entry), memory.load_u32(entry + 4))
}
