//! Bits of virtio and virtio-net (virtio 1.2).

/// Descriptor: another follows in the chain (2.7.5).
pub const NEXT: u16 = 1;
/// Descriptor: the device writes (2.7.5).
pub const WRITE: u16 = 2;

/// Status: the device was seen (2.1).
pub const ACKNOWLEDGE: u8 = 1;
/// Status: there is a driver.
pub const DRIVER: u8 = 2;
/// Status: the driver is ready.
pub const DRIVER_OK: u8 = 4;
/// Status: features are agreed on.
pub const FEATURES_OK: u8 = 8;
/// Status: the device has failed.
pub const NEEDS_RESET: u8 = 64;

/// Feature 0: the device completes checksums (5.1.3).
pub const CSUM: u32 = 1;
/// Feature 5: the device has an address.
pub const MAC: u32 = 1 << 5;
/// Features 11 and 12: the device cuts TCP over IPv4 and IPv6.
pub const TSO: u32 = 1 << 11 | 1 << 12;
/// Feature 16: the device tells its link status.
pub const STATUS: u32 = 1 << 16;
/// Feature 32, in the second word: version 1 (6).
pub const VERSION_1: u32 = 1;
/// Feature 33, in the second word: the device uses bus addresses (6).
pub const ACCESS_PLATFORM: u32 = 1 << 1;

/// Frame header: the checksum is blank (5.1.6).
pub const NEEDS_CSUM: u8 = 1;
/// Frame header: cut as TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Frame header: cut as TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Device status: the link is up (5.1.4).
pub const LINK_UP: u16 = 1;
