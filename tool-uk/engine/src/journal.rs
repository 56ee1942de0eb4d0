//! What tool-uk must remember across its own death: for each wanted guest, what is intended.

use alloc::vec::Vec;

use fabric::record::Kind;
use serde::{Deserialize, Serialize};

use crate::machine::Phase;

/// The journal's record in the fabric.
pub const JOURNAL_KIND: Kind = Kind { magic: *b"TOOL", version: 1 };
/// Longest journal: 63 guests take 12 bytes each at most.
pub const MAX_JOURNAL: usize = 1024;

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The number for the next guest.
    pub next_domid: u16,
    /// One entry per wanted guest, in the order of the description.
    pub guests: Vec<Entry>,
}

/// What is intended with one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is in its life.
    pub phase: Phase,
    /// Restarts in a row.
    pub restarts: u32,
}

impl Journal {
    /// Its bytes, at most [`MAX_JOURNAL`].
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a journal of plain numbers can be encoded")
    }

    /// Reads a journal about `guests` wanted guests; `None`: it is not one.
    pub fn decode(bytes: &[u8], guests: usize) -> Option<Self> {
        let (journal, _) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        (journal.guests.len() == guests).then_some(journal)
    }
}
