//! Both sides of the wall between a driver and the trusted part, when words are all that passes it.

use alloc::vec::Vec;

use fabric::SharedMemory;

use crate::trusted::{PAGE, RING_PAGES};
use crate::wire::{Garbled, Said, read_command, read_said, write_said};
use crate::{Descriptor, Driver, Event, Machine, RING_SIZE, Registers, RingId, Window, run_each};

/// Events of one batch, at most: everything in both rings, and some about start and link.
pub const EVENTS_MAX: usize = 2 * RING_SIZE as usize + 8;
/// Pages at the start of the arena that a driver looks at: its rings.
pub const VIEW_PAGES: u32 = 2 * RING_PAGES;

/// Where the words of a driver go.
pub trait Outlet {
    /// Takes the words of one message.
    fn put(&mut self, words: &[u32]);

    /// Has the trusted part act on all words so far, before this returns.
    fn flush(&mut self);
}

/// The machine as a driver behind the wall sees it: it reads device and rings itself, and asks the
/// trusted part for everything else.
#[derive(Debug)]
pub struct Walled<G, M, O> {
    registers: G,
    view: M,
    outlet: O,
    /// Something that may change what is read has not been acted on.
    is_behind: bool,
}

impl<G: Registers, M: SharedMemory, O: Outlet> Walled<G, M, O> {
    /// A machine with these registers, of which none is written, and with [`VIEW_PAGES`] to look
    /// at.
    pub fn new(registers: G, view: M, outlet: O) -> Self {
        Self { registers, view, outlet, is_behind: false }
    }

    fn say(&mut self, said: &Said) {
        let outlet = &mut self.outlet;
        write_said(said, |words| outlet.put(words));
    }

    fn write(&mut self, said: &Said) {
        self.say(said);
        self.is_behind = true;
    }

    /// What is read now follows everything that was written.
    fn up_to_date(&mut self) -> &mut Self {
        if core::mem::take(&mut self.is_behind) {
            self.outlet.flush();
        }
        self
    }
}

impl<G: Registers, M: SharedMemory, O: Outlet> Registers for Walled<G, M, O> {
    fn read8(&mut self, window: Window, offset: u32) -> u8 {
        self.up_to_date().registers.read8(window, offset)
    }

    fn read16(&mut self, window: Window, offset: u32) -> u16 {
        self.up_to_date().registers.read16(window, offset)
    }

    fn read32(&mut self, window: Window, offset: u32) -> u32 {
        self.up_to_date().registers.read32(window, offset)
    }

    fn write8(&mut self, window: Window, offset: u32, value: u8) {
        self.write(&Said::Write8(window, offset, value));
    }

    fn write16(&mut self, window: Window, offset: u32, value: u16) {
        self.write(&Said::Write16(window, offset, value));
    }

    fn write32(&mut self, window: Window, offset: u32, value: u32) {
        self.write(&Said::Write32(window, offset, value));
    }
}

impl<G: Registers, M: SharedMemory, O: Outlet> Machine for Walled<G, M, O> {
    fn set_up(&mut self, ring: RingId) -> u16 {
        self.write(&Said::SetUp(ring));
        RING_SIZE
    }

    fn place(&mut self, ring: RingId, index: u16, descriptor: Descriptor) {
        // Until it is placed, the ring has what the device left in its place a lap ago.
        self.write(&Said::Place(ring, index, descriptor));
    }

    fn scratch(&mut self, ring: RingId, index: u16, bytes: [u8; 16]) {
        self.say(&Said::Scratch(ring, index, bytes));
    }

    fn publish(&mut self, ring: RingId, value: u16) {
        self.say(&Said::Publish(ring, value));
    }

    fn doorbell(&mut self, ring: RingId) {
        // The device may be done with it at once: the harvest that follows finds it then.
        self.write(&Said::Doorbell(ring));
    }

    fn ring_read(&mut self, ring: RingId, offset: u32, into: &mut [u8]) {
        let at = ring as u32 * RING_PAGES * PAGE + offset;
        self.up_to_date().view.read(at as usize, into);
    }
}

/// The driver's side of one entry: reads the commands, executes them, harvests, and puts out what
/// it has to say.
///
/// # Panics
/// When the words are no commands, or the driver's bug says so: that ends its life.
pub fn serve<G: Registers, M: SharedMemory, O: Outlet>(
    driver: &mut impl Driver<Walled<G, M, O>>,
    machine: &mut Walled<G, M, O>,
    commands: &[u32],
) {
    let mut words = commands;
    let commands = core::iter::from_fn(|| read_command(&mut words))
        .map(|command| command.expect("the trusted part writes commands"));
    let mut events = heapless::Vec::<Event, EVENTS_MAX>::new();
    run_each(driver, machine, commands, &mut events);
    events.iter().for_each(|event| machine.say(&Said::Event(*event)));
}

/// The trusted part's side: acts on what a driver said, and adds its events.
///
/// # Errors
/// When the words make no sense, or are more events than there can be.
pub fn act(
    words: &[u32],
    machine: &mut impl Machine,
    events: &mut Vec<Event>,
) -> Result<(), Garbled> {
    let mut words = words;
    while let Some(said) = read_said(&mut words) {
        match said? {
            Said::Write8(window, offset, value) => machine.write8(window, offset, value),
            Said::Write16(window, offset, value) => machine.write16(window, offset, value),
            Said::Write32(window, offset, value) => machine.write32(window, offset, value),
            Said::SetUp(ring) => {
                machine.set_up(ring);
            }
            Said::Place(ring, index, descriptor) => machine.place(ring, index, descriptor),
            Said::Scratch(ring, index, bytes) => machine.scratch(ring, index, bytes),
            Said::Publish(ring, value) => machine.publish(ring, value),
            Said::Doorbell(ring) => machine.doorbell(ring),
            Said::Event(event) if events.len() < EVENTS_MAX => events.push(event),
            Said::Event(_) => return Err(Garbled),
        }
    }
    Ok(())
}
