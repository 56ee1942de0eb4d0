//! The slot store: the durable form of the state in memory that outlives the domain.
//!
//! ```text
//! 0      commit header, copy A (128 bytes)
//! 128    commit header, copy B
//! 256    slot 0, slot 1, … (128 bytes each)
//!
//! commit header                     slot
//! 0   u64 checksum of 8..48         0   u64 checksum of 8..32 + content, 0 = free
//! 8   u32 magic "XSSS"              8   u64 number of the commit that wrote it
//! 12  u32 version                   16  u32 record
//! 16  u64 key                       20  u16 part, u16 parts
//! 24  u64 number of commits         24  u8 kind, u8 zero, u16 bytes of content
//! 32  u64 applied log index         28  u32 zero
//! 40  u32 slots ever used           32  content, 96 bytes
//! 44  u32 slots that count
//! ```
//!
//! A record is one slot or several. A commit writes its records to free slots, then the commit
//! header, copy A before copy B: A's checksum is the instant at which the commit happened. (An
//! index, where one is kept, describes the commit right before its header does.) Then the slots
//! that it superseded are set free, and the tombstones of dropped records last. So the content of a
//! record is that of the highest number up to the header's, and a crash between any two stores
//! leaves the state before or after the commit.
//!
//! The checksums are keyed by a random number of each store's making, so that no content that a
//! guest wrote can pose as a slot. A slot's checksum is its last store: an interrupted write
//! leaves a free slot. So a slot that is neither free nor intact was damaged; and where fewer slots
//! count than the header says, damage has made some of them look free.

mod index;
mod indexed;
mod journal;
mod lazy;
mod owned;
mod reload;
mod slots;

pub use index::index_len;
pub(crate) use lazy::{Damaged, End, Made, Reach, Unloaded};
pub use reload::{LoadReport, Loaded, LoadedNodes};
pub use slots::SlotStore;

/// Bytes of a slot and of a commit header.
pub const SLOT_LEN: usize = 128;

/// Bytes of a commit header that are in use.
const HEADER_LEN: usize = 48;

/// Where the slots begin.
pub const SLOTS_AT: usize = 2 * SLOT_LEN;

/// Bytes of content in a slot.
pub const CONTENT_LEN: usize = SLOT_LEN - CONTENT_AT;

/// Where the content of a slot begins.
const CONTENT_AT: usize = 32;

/// "XSSS", little endian.
const MAGIC: u32 = 0x5353_5358;

/// Version of this layout.
const VERSION: u32 = 2;

/// Key of the commit headers' checksums; the slots have the key that the header names.
const HEADER_KEY: u64 = 0x7870_7276_6d6d;

/// Slots that requests which add something leave free: so that removing and sweeping always find
/// room for tombstones and for the permission lists of one step.
pub const RESERVED_SLOTS: usize = 512;
