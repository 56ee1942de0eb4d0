//! Registers and bits of the 82574L (data sheet, chapters 7 and 10) that are used here.

/// Device control.
pub const CTRL: u32 = 0x0000;
/// Stops the device from starting bus transactions.
pub const CTRL_MASTER_DISABLE: u32 = 1 << 2;
/// Takes the speed from the link partner.
pub const CTRL_SPEED_DETECT: u32 = 1 << 5;
/// Lets the link come up.
pub const CTRL_LINK_UP: u32 = 1 << 6;
/// Resets everything but the PCI configuration; clears itself.
pub const CTRL_RESET: u32 = 1 << 26;
/// Device status.
pub const STATUS: u32 = 0x0008;
/// The link is up.
pub const STATUS_LINK: u32 = 1 << 1;
/// Bus transactions are still going on.
pub const STATUS_MASTER: u32 = 1 << 19;
/// Interrupt causes; reading clears.
pub const ICR: u32 = 0x00c0;
/// Least distance of interrupts, in units of 256 ns.
pub const ITR: u32 = 0x00c4;
/// 20 µs: more often only costs; a request sees half of it on average.
pub const ITR_MODERATE: u32 = 78;
/// Interrupt mask, bits to set.
pub const IMS: u32 = 0x00d0;
/// Interrupt mask, bits to clear.
pub const IMC: u32 = 0x00d8;
/// Causes in use: descriptor written back, link change, receive threshold, overrun, timer.
pub const CAUSES: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7;
/// Receive control.
pub const RCTL: u32 = 0x0100;
/// On, broadcasts, 4,096-byte buffers (size 11 with extension), checksum cut off.
pub const RCTL_ON: u32 = 1 << 1 | 1 << 15 | 0b11 << 16 | 1 << 25 | 1 << 26;
/// Every address.
pub const RCTL_ALL: u32 = 1 << 3 | 1 << 4;
/// Every group address.
pub const RCTL_ALL_GROUPS: u32 = 1 << 4;
/// Frames longer than 1,522 bytes.
pub const RCTL_LONG: u32 = 1 << 5;
/// Transmit control.
pub const TCTL: u32 = 0x0400;
/// On, short frames padded, collision values of the data sheet (10.2.6.1).
pub const TCTL_ON: u32 = 1 << 1 | 1 << 3 | 0x0f << 4 | 0x3f << 12;
/// Transmit gaps.
pub const TIPG: u32 = 0x0410;
/// Their values for copper (10.2.6.2).
pub const TIPG_COPPER: u32 = 8 | 8 << 10 | 6 << 20;
/// Block of receive ring 0.
pub const RX_RING: u32 = 0x2800;
/// Receive descriptor control.
pub const RXDCTL: u32 = 0x2828;
/// Block of transmit ring 0.
pub const TX_RING: u32 = 0x3800;
/// Transmit descriptor control.
pub const TXDCTL: u32 = 0x3828;
/// In a ring's block: address, low half.
pub const RING_LOW: u32 = 0x00;
/// In a ring's block: address, high half.
pub const RING_HIGH: u32 = 0x04;
/// In a ring's block: bytes.
pub const RING_LENGTH: u32 = 0x08;
/// In a ring's block: what the device does next.
pub const RING_HEAD: u32 = 0x10;
/// In a ring's block: behind the last descriptor it may use.
pub const RING_TAIL: u32 = 0x18;
/// Receive checksum control.
pub const RXCSUM: u32 = 0x5000;
/// Check IP headers.
pub const RXCSUM_IP: u32 = 1 << 8;
/// Check TCP and UDP.
pub const RXCSUM_TRANSPORT: u32 = 1 << 9;
/// Group filter.
pub const MTA: u32 = 0x5200;
/// Its words.
pub const MTA_ENTRIES: u32 = 128;
/// Station address, bytes 0-3.
pub const RAL: u32 = 0x5400;
/// Station address, bytes 4-5.
pub const RAH: u32 = 0x5404;
/// The address counts.
pub const RAH_VALID: u32 = 1 << 31;

/// Transmit descriptor status: written back.
pub const TX_DONE: u8 = 1;
/// Data descriptor: last of its frame.
pub const DCMD_END: u8 = 1;
/// Data descriptor: append the frame's checksum, and report when done.
pub const DCMD_CHECK: u8 = 1 << 1 | 1 << 3;
/// Data descriptor: cut.
pub const DCMD_CUT: u8 = 1 << 2;
/// Data descriptor: fill in the IP checksum.
pub const POPTS_IP: u8 = 1;
/// Data descriptor: fill in the TCP or UDP checksum.
pub const POPTS_TRANSPORT: u8 = 1 << 1;
/// Context descriptor: TCP, not UDP.
pub const TUCMD_TCP: u8 = 1;
/// Context descriptor: IPv4.
pub const TUCMD_V4: u8 = 1 << 1;
/// Context descriptor: cut.
pub const TUCMD_CUT: u8 = 1 << 2;
/// Context descriptor: extended form.
pub const TUCMD_EXTENDED: u8 = 1 << 5;
/// Receive status: filled.
pub const RX_DONE: u8 = 1;
/// Receive status: last of its frame.
pub const RX_END: u8 = 1 << 1;
/// Receive status: ignore the checksum bits.
pub const RX_IGNORE: u8 = 1 << 2;
/// Receive status: UDP was checked.
pub const RX_UDP_CHECKED: u8 = 1 << 4;
/// Receive status: TCP was checked.
pub const RX_TCP_CHECKED: u8 = 1 << 5;
/// Receive errors that make a frame useless: CRC, symbol, sequence, carrier, data.
pub const RX_BROKEN: u8 = 1 | 1 << 1 | 1 << 2 | 1 << 4 | 1 << 7;
/// Receive errors: a checksum is wrong.
pub const RX_SUM_WRONG: u8 = 1 << 5 | 1 << 6;

/// How long a reset takes: the data sheet says 1 µs, and the NVM is read again in about 100 µs.
pub const RESET_WAIT_NS: u32 = 150_000;
/// How long to wait before asking again whether bus transactions have ended.
pub const MASTER_WAIT_NS: u32 = 10_000;
