//! Offsets of virtio's PCI common configuration (virtio 1.2, 4.1.4.3) and of virtio-net's device
//! configuration (5.1.4).

/// Which 32 feature bits of the device are read.
pub const DEVICE_SELECT: u32 = 0x00;
/// Those bits.
pub const DEVICE_FEATURES: u32 = 0x04;
/// Which 32 feature bits of the driver are written.
pub const DRIVER_SELECT: u32 = 0x08;
/// Those bits.
pub const DRIVER_FEATURES: u32 = 0x0c;
/// Device status (8 bits).
pub const STATUS: u32 = 0x14;
/// Which queue the following registers are about (16 bits).
pub const QUEUE_SELECT: u32 = 0x16;
/// Its size (16 bits).
pub const QUEUE_SIZE: u32 = 0x18;
/// Its MSI-X vector (16 bits).
pub const QUEUE_VECTOR: u32 = 0x1a;
/// Whether it is on (16 bits).
pub const QUEUE_ENABLE: u32 = 0x1c;
/// Its notification register (16 bits).
pub const QUEUE_NOTIFY_OFF: u32 = 0x1e;
/// Address of its descriptors (64 bits).
pub const QUEUE_DESC: u32 = 0x20;
/// Address of what the driver offers (64 bits).
pub const QUEUE_DRIVER: u32 = 0x28;
/// Address of what the device returns (64 bits).
pub const QUEUE_DEVICE: u32 = 0x30;
/// No MSI-X vector.
pub const NO_VECTOR: u16 = 0xffff;
/// In the device configuration: link status (16 bits).
pub const NET_STATUS: u32 = 6;

/// How long to wait before asking again whether a reset is done.
pub const RESET_WAIT_NS: u32 = 10_000;
