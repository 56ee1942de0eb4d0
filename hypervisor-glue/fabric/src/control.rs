//! The control page: what the orchestrator tells one unit. Written by the orchestrator alone.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | boot epoch (bits 0..32), rung (bits 32..40), distrust (bit 40) as a checked word |
//! | 8 | 8 | `handed`: work handed over so far, checked word |
//! | 16 | 8 | `ping`: answer it in the health page, checked word |
//! | 24 | 8 | `relay`: epoch of the relay while this unit leads, else 0, checked word |
//! | 32 | 8 | command: number (bits 0..32) and code (bits 32..40), checked word |
//! | 40 | 8 | `nonce`: random, the same in all lives of the unit until the host boots again, raw |
//! | 48 | 8 | `nonce` inverted |
//! | 2048 | 2048 | the orchestrator's half of the kick rings to and from this unit |
//!
//! The unit's own half of the kick rings is its `kicks` region.
//!
//! **Counting work.** The orchestrator pushes the kick, then raises `handed`, then rings. The unit
//! reads `handed`, then finds its ring empty, and only then publishes that count as `taken`: so
//! `taken` never covers a kick that was not looked at.

use crate::{Epoch, PAGE_SIZE, Part, SharedMemory, checked};

/// Bytes of the control page.
pub const SIZE: usize = PAGE_SIZE;
/// Offset of the orchestrator's half of the kick rings.
pub const KICKS: usize = 2048;
/// Bytes of that half: 256 entries ([`crate::kick::capacity`]).
pub const KICKS_LEN: usize = 2048;

const EPOCH: usize = 0;
const HANDED: usize = 8;
const PING: usize = 16;
const RELAY: usize = 24;
const COMMAND: usize = 32;
const NONCE: usize = 40;
const NONCE_INVERTED: usize = 48;

const EPOCH_SALT: u16 = 0x4345;
const HANDED_SALT: u16 = 0x4348;
const PING_SALT: u16 = 0x4350;
const RELAY_SALT: u16 = 0x4352;
const COMMAND_SALT: u16 = 0x4343;

/// How a life of a unit began: the rung of the recovery ladder that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rung {
    /// The first life: nothing in the fabric is to be reloaded.
    First = 0,
    /// Microreset: memory kept, execution dropped; validate what is in memory.
    Microreset = 1,
    /// Microreboot: image restored in place; reload from the fabric.
    Microreboot = 2,
    /// Rebuild: a new domain under the same domid; reload from the fabric.
    Rebuild = 3,
    /// All services were rebuilt together; reload from the fabric.
    Global = 4,
}

impl Rung {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first start",
            Self::Microreset => "microreset",
            Self::Microreboot => "microreboot",
            Self::Rebuild => "rebuild",
            Self::Global => "global restart",
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::First,
            1 => Self::Microreset,
            2 => Self::Microreboot,
            3 => Self::Rebuild,
            4 => Self::Global,
            _ => return None,
        })
    }
}

/// What a unit is asked to do beside its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// End cleanly: answer what was asked, then shut down with code 0.
    Stop = 1,
    /// Write the state of the unit to its log.
    Dump = 2,
}

/// A command and its number: a unit executes each number once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Counts the commands of this host's life, from 1.
    pub number: u32,
    /// What to do.
    pub command: Command,
}

/// The words of a control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The unit's present life.
    pub epoch: Epoch,
    /// How that life began.
    pub rung: Rung,
    /// What this unit's former lives kept of their state is wrong: it comes from others.
    pub is_distrusted: bool,
    /// Work handed over so far: grows with each kick relayed.
    pub handed: u64,
    /// Copy it to the health page's `pong`.
    pub ping: u64,
    /// Epoch of the relay while this unit is the leader, else 0.
    pub relay: u64,
    /// The latest command, if there was one.
    pub order: Option<Order>,
    /// Random, the same in all lives until the host boots again: marks records of this boot.
    pub nonce: u64,
}

/// Which word of a control page does not hold what the orchestrator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Epoch and rung.
    Epoch,
    /// `handed`.
    Handed,
    /// `ping`.
    Ping,
    /// `relay`.
    Relay,
    /// The command.
    Command,
    /// The nonce.
    Nonce,
}

impl core::fmt::Display for ControlError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Epoch => "control page: the epoch word is invalid",
            Self::Handed => "control page: the `handed` word is invalid",
            Self::Ping => "control page: the `ping` word is invalid",
            Self::Relay => "control page: the `relay` word is invalid",
            Self::Command => "control page: the command word is invalid",
            Self::Nonce => "control page: the nonce is invalid",
        })
    }
}

/// The orchestrator's side. It keeps nothing in RAM.
#[derive(Clone, Copy, Debug)]
pub struct ControlWriter<M> {
    page: M,
}

impl<M: SharedMemory> ControlWriter<M> {
    /// The writer of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a control page has {SIZE} bytes");
        Self { page }
    }

    /// Writes the page for a unit that never lived: no work, no command, epoch 0.
    pub fn initialise(&self, nonce: u64) {
        self.write(&Control {
            epoch: 0,
            rung: Rung::First,
            is_distrusted: false,
            handed: 0,
            ping: 0,
            relay: 0,
            order: None,
            nonce,
        });
    }

    /// Stores every word: before each life of the unit, so that a damaged page is no heirloom.
    pub fn write(&self, control: &Control) {
        self.set_life(control.epoch, control.rung, control.is_distrusted);
        self.set_handed(control.handed);
        self.set_ping(control.ping);
        self.set_relay(control.relay);
        match control.order {
            Some(order) => self.set_order(order),
            None => checked::store(&self.page, COMMAND, 0, COMMAND_SALT),
        }
        self.page.store_u64(NONCE, control.nonce);
        self.page.store_u64(NONCE_INVERTED, !control.nonce);
    }

    /// The unit's next life and how it begins: before it runs.
    pub fn set_life(&self, epoch: Epoch, rung: Rung, is_distrusted: bool) {
        let word = u64::from(epoch) | (rung as u64) << 32 | u64::from(is_distrusted) << 40;
        checked::store(&self.page, EPOCH, word, EPOCH_SALT);
    }

    /// Work handed over so far: after the kick, before the doorbell.
    pub fn set_handed(&self, handed: u64) {
        checked::store(&self.page, HANDED, handed, HANDED_SALT);
    }

    /// Asks for a pong: before the doorbell.
    pub fn set_ping(&self, ping: u64) {
        checked::store(&self.page, PING, ping, PING_SALT);
    }

    /// The relay's epoch for the unit that leads, 0 for one that does not.
    pub fn set_relay(&self, relay: u64) {
        checked::store(&self.page, RELAY, relay, RELAY_SALT);
    }

    /// Gives an order: before the doorbell.
    pub fn set_order(&self, order: Order) {
        let word = u64::from(order.number) | (order.command as u64) << 32;
        checked::store(&self.page, COMMAND, word, COMMAND_SALT);
    }
}

/// The unit's side: everything is checked, since a wild store of the orchestrator, or a flipped
/// bit, is a fault like another.
#[derive(Clone, Copy, Debug)]
pub struct ControlReader<M> {
    page: M,
}

impl<M: SharedMemory> ControlReader<M> {
    /// The reader of `page`. Panics if it is smaller than [`SIZE`].
    pub fn new(page: M) -> Self {
        assert!(page.len() >= SIZE, "a control page has {SIZE} bytes");
        Self { page }
    }

    /// All words, each read once.
    pub fn read(&self) -> Result<Control, ControlError> {
        let life = self.word(EPOCH, EPOCH_SALT, ControlError::Epoch)?;
        let nonce = self.nonce().ok_or(ControlError::Nonce)?;
        Ok(Control {
            epoch: life as u32,
            rung: Rung::from_code((life >> 32) as u8).ok_or(ControlError::Epoch)?,
            is_distrusted: life >> 40 != 0,
            handed: self.handed()?,
            ping: self.word(PING, PING_SALT, ControlError::Ping)?,
            relay: self.word(RELAY, RELAY_SALT, ControlError::Relay)?,
            order: self.order()?,
            nonce,
        })
    }

    /// Work handed over so far.
    pub fn handed(&self) -> Result<u64, ControlError> {
        self.word(HANDED, HANDED_SALT, ControlError::Handed)
    }

    /// The nonce, if it is intact: for repairing a page of which another word is not.
    pub fn nonce(&self) -> Option<u64> {
        let nonce = self.page.load_u64(NONCE);
        (self.page.load_u64(NONCE_INVERTED) == !nonce).then_some(nonce)
    }

    fn order(&self) -> Result<Option<Order>, ControlError> {
        let word = self.word(COMMAND, COMMAND_SALT, ControlError::Command)?;
        let command = match (word >> 32) as u8 {
            0 if word == 0 => return Ok(None),
            1 => Command::Stop,
            2 => Command::Dump,
            _ => return Err(ControlError::Command),
        };
        Ok(Some(Order { number: word as u32, command }))
    }

    fn word(&self, offset: usize, salt: u16, error: ControlError) -> Result<u64, ControlError> {
        checked::load(&self.page, offset, salt).ok_or(error)
    }
}

/// The orchestrator's half of the kick rings in a control page.
pub fn kicks<M: SharedMemory>(page: M) -> Part<M> {
    Part::new(page, KICKS, KICKS_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeapMemory;
    use crate::kick::{Kick, KickReader, KickWriter, Pushed};

    #[test]
    fn a_unit_reads_what_it_is_told() {
        let page = HeapMemory::new(SIZE);
        let (writer, reader) = (ControlWriter::new(&page), ControlReader::new(&page));
        assert_eq!(reader.read(), Err(ControlError::Epoch));
        writer.initialise(0x0123_4567_89ab_cdef);
        assert_eq!(reader.read().unwrap().order, None);
        writer.set_life(3, Rung::Rebuild, true);
        writer.set_handed(10);
        writer.set_ping(2);
        writer.set_relay(6);
        let order = Order { number: 1, command: Command::Dump };
        writer.set_order(order);
        let control = Control {
            epoch: 3,
            rung: Rung::Rebuild,
            is_distrusted: true,
            handed: 10,
            ping: 2,
            relay: 6,
            order: Some(order),
            nonce: 0x0123_4567_89ab_cdef,
        };
        assert_eq!(reader.read(), Ok(control));
        assert_eq!(page.load_u64(0), 0x4245_0103_0000_0003);
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let page = HeapMemory::new(SIZE);
        let (writer, reader) = (ControlWriter::new(&page), ControlReader::new(&page));
        writer.initialise(5);
        let told = reader.read().unwrap();
        for bit in 0..56 * 8 {
            let at = bit / 64 * 8;
            page.store_u64(at, page.load_u64(at) ^ 1 << (bit % 64));
            assert!(reader.read().is_err(), "bit {bit}");
            writer.write(&told);
            assert_eq!(reader.read(), Ok(told));
        }
    }

    #[test]
    fn kicks_go_both_ways() {
        let control = HeapMemory::new(SIZE);
        let unit = HeapMemory::new(PAGE_SIZE);
        let mut to_unit = KickWriter::<_, _, 80>::new(kicks(&control), &unit);
        let mut from_unit = KickReader::new(kicks(&control), &unit, 80);
        let mut out = KickWriter::<_, _, 80>::new(&unit, kicks(&control));
        let mut inward = KickReader::new(&unit, kicks(&control), 80);
        assert_eq!(to_unit.push(79), Pushed::Ring);
        assert_eq!(out.push(1), Pushed::Ring);
        assert_eq!(inward.pop(), Some(Kick::Id(79)));
        assert_eq!(from_unit.pop(), Some(Kick::Id(1)));
        assert_eq!((inward.pop(), from_unit.pop()), (None, None));
    }
}
