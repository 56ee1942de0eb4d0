//! What a driver sees of the machine.

use crate::Segment;

/// A range of a device's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The device's only range, or virtio's common configuration (virtio 1.2, 4.1.4.3).
    Main,
    /// virtio's interrupt status (4.1.4.5).
    Isr,
    /// virtio's device configuration (4.1.4.6).
    Device,
    /// virtio's notification (4.1.4.4).
    Notify,
}

/// Device registers. A device that does not answer reads as all ones.
pub trait Registers {
    /// Reads 8 bits.
    fn read8(&mut self, window: Window, offset: u32) -> u8;
    /// Reads 16 bits.
    fn read16(&mut self, window: Window, offset: u32) -> u16;
    /// Reads 32 bits.
    fn read32(&mut self, window: Window, offset: u32) -> u32;
    /// Writes 8 bits.
    fn write8(&mut self, window: Window, offset: u32, value: u8);
    /// Writes 16 bits.
    fn write16(&mut self, window: Window, offset: u32, value: u16);
    /// Writes 32 bits.
    fn write32(&mut self, window: Window, offset: u32, value: u32);
}

/// The two descriptor rings of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RingId {
    /// Receive; queue 0 of virtio-net.
    Rx = 0,
    /// Transmit; queue 1 of virtio-net.
    Tx = 1,
}

/// A proposal for one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Bytes of the arena, and the device's own bits: for the 82574 command (0-7) and options
    /// (8-15), for virtio flags (0-15) and next index (16-31).
    Bytes {
        /// Where.
        segment: Segment,
        /// Bits.
        bits: u32,
    },
    /// A scratch record of 16 bytes that belongs to this descriptor; virtio puts its header there.
    Scratch {
        /// How many of the bytes the device sees.
        length: u32,
        /// Bits, as above.
        bits: u32,
    },
    /// Sixteen bytes without an address: the 82574's context descriptor.
    Context([u8; 16]),
}

/// The machine as a driver sees it. Calls that need the trusted part (all but register reads and
/// `ring_read`) may be collected: they take effect before the next read of a register or a ring, or
/// when the driver returns. A refusal ends the driver's life, so none is reported to it.
pub trait Machine: Registers {
    /// Clears a ring and tells the device where it is. Answers its number of descriptors.
    fn set_up(&mut self, ring: RingId) -> u16;

    /// Writes a descriptor.
    fn place(&mut self, ring: RingId, index: u16, descriptor: Descriptor);

    /// Fills the scratch record of a descriptor.
    fn scratch(&mut self, ring: RingId, index: u16, bytes: [u8; 16]);

    /// Hands descriptors to the device: everything before `value` (82574: the tail), or the chain
    /// that starts at `value` (virtio).
    fn publish(&mut self, ring: RingId, value: u16);

    /// Makes the device look.
    fn doorbell(&mut self, ring: RingId);

    /// Copies bytes of a ring's memory, which the device writes.
    fn ring_read(&mut self, ring: RingId, offset: u32, into: &mut [u8]);
}
