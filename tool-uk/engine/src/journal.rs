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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Then;

    #[test]
    fn the_golden_vector_of_the_page_is_what_is_written() {
        const PAGE: &str = include_str!("../../FORMATS.md");
        let phases = [
            (Phase::Wanted, 0),
            (Phase::Creating(16), 0),
            (Phase::Running(300), 2),
            (Phase::Destroying(17, Then::Create), 0),
            (Phase::Ended, 0),
        ];
        let guests = phases.map(|(phase, restarts)| Entry { phase, restarts }).to_vec();
        let journal = Journal { next_domid: 18, guests };
        let bytes = journal.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (_, block) = PAGE.split_once("```golden journal\n").expect("the block is there");
        let vector = block.lines().next().and_then(|line| line.rsplit(' ').next());
        assert_eq!(vector, Some(hex.as_str()));
        assert_eq!(Journal::decode(&bytes, 5), Some(journal));
        assert_eq!(Journal::decode(&bytes, 4), None);
    }

    #[test]
    fn the_longest_journal_fits() {
        let longest = Entry { phase: Phase::Destroying(u16::MAX, Then::End), restarts: u32::MAX };
        let journal = Journal { next_domid: u16::MAX, guests: alloc::vec![longest; 63] };
        assert!(journal.encode().len() <= MAX_JOURNAL);
    }
}
