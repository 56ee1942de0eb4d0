//! The operator's attachment to a guest's console: keys typed on the serial console go to tool-uk,
//! which owns the consoles, until the escape key ends it.

use abi::Control;
use fabric::domains::DomainState;
use fabric::keys::{Full, Key, KeyWriter};
use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};
use service::ids;

use crate::host::Host;
use crate::regions::Regions;
use crate::report::Line;

/// Ends the attachment: Ctrl-], as in `xl console`.
const ESCAPE: u8 = 0x1d;

/// Whom the operator's keys go to. That is kept in the fabric: after a failure of our own the next
/// key must not be taken for a command.
#[derive(Debug)]
pub struct Attachment<F: SharedMemory + Copy> {
    keys: KeyWriter<Part<F>, Part<F>>,
    /// A key was lost, and that has been said.
    is_full: bool,
}

impl<F: SharedMemory + Copy> Attachment<F> {
    /// The attachment that a former life of ours left, or none.
    pub fn new(regions: &Regions<F>) -> Self {
        let tool = Party::unit(system::TOOL_UK);
        let own = regions.find(RegionKind::ConsoleIn, tool);
        let theirs = regions.find(RegionKind::ConsoleTaken, tool);
        Self { keys: KeyWriter::new(own, theirs), is_full: false }
    }

    /// Attaches the operator to the console of the guest `domid`.
    pub fn begin<C: Control>(&mut self, host: &Host<'_, C, F>, domid: u16) {
        let mut line = Line::new();
        if lives(host, domid) {
            self.keys.attach(Some(domid));
            line.say(format_args!("keys go to the console of d{domid} now; Ctrl-] ends that"));
        } else {
            line.say(format_args!("there is no guest d{domid}; s lists them"));
        }
        line.print(host.xen);
    }

    /// Passes a key to the guest that the operator is attached to. False: to none, so the key is a
    /// command.
    pub fn pass<C: Control>(&mut self, host: &mut Host<'_, C, F>, byte: u8) -> bool {
        let Some(domid) = self.keys.attached() else { return false };
        if byte == ESCAPE {
            self.end(host, format_args!("keys are commands again"));
        } else if !lives(host, domid) {
            self.end(host, format_args!("d{domid} is gone: keys are commands again"));
        } else {
            match self.keys.push(Key { domid, byte }) {
                Ok(()) => {
                    self.is_full = false;
                    host.hand(host.tool, ids::INPUT);
                }
                Err(Full) if !self.is_full => {
                    self.is_full = true;
                    let mut line = Line::new();
                    line.say(format_args!("keys are lost: tool-uk takes none; Ctrl-] ends this"));
                    line.print(host.xen);
                }
                Err(Full) => {}
            }
        }
        true
    }

    fn end<C: Control>(&mut self, host: &Host<'_, C, F>, why: core::fmt::Arguments<'_>) {
        self.keys.attach(None);
        let mut line = Line::new();
        line.say(why);
        line.print(host.xen);
    }
}

/// Whether there is such a guest.
fn lives<C: Control, F: SharedMemory + Copy>(host: &Host<'_, C, F>, domid: u16) -> bool {
    let mut guests = host.slots.used().map(|(_, slot)| slot.domain);
    guests.any(|guest| guest.domid == domid && guest.state == DomainState::Alive)
}
