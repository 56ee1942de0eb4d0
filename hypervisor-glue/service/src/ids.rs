//! The ids that kick rings carry: which thing has something to do.

use core::ops::Range;

/// Slots of XenStore connections: slot 0 is tool-uk's, the others are guests'. A slot is a guest's
/// place in every table of this host.
pub const SLOTS: usize = 64;
/// The slot of tool-uk's own XenStore connection.
pub const TOOL_SLOT: u16 = 0;

/// XenStore connections, one id per slot.
pub const STORES: Range<u16> = 0..SLOTS as u16;
/// Guests' consoles, one id per slot.
pub const CONSOLES: Range<u16> = STORES.end..2 * SLOTS as u16;
/// The domain table has changed.
pub const DOMAINS: u16 = CONSOLES.end;
/// The message ring of operations, or that of their outcomes, has a message.
pub const OPERATIONS: u16 = DOMAINS + 1;
/// The operator typed something for the attached guest.
pub const INPUT: u16 = OPERATIONS + 1;
/// Text for the serial console is waiting.
pub const OUTPUT: u16 = INPUT + 1;
/// A replica of the store has a message from another one, an id per sender; on its way to the
/// orchestrator: for another one, an id per receiver.
pub const PEERS: Range<u16> = OUTPUT + 1..OUTPUT + 1 + PEERS_MAX;
/// The relay names this replica of the store; from it: it serves.
pub const RELAY: u16 = PEERS.end;
/// Number of ids.
pub const COUNT: usize = RELAY as usize + 1;

/// Replicas of the store at most.
const PEERS_MAX: u16 = 5;

/// The id of the messages of, or for, replica `number` (from 1).
pub const fn peer(number: u8) -> u16 {
    PEERS.start + number as u16 - 1
}

/// The id of a slot's console.
pub const fn console(slot: u16) -> u16 {
    CONSOLES.start + slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_fit_both_halves_of_a_ring() {
        assert!(COUNT <= fabric::kick::capacity(fabric::control::KICKS_LEN));
        assert_eq!(console(5), 69);
        assert!(CONSOLES.contains(&console(63)) && !CONSOLES.contains(&DOMAINS));
    }
}
