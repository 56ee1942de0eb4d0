//! What services and guests have to say, on its way to the serial console. Texts were made
//! printable and bounded by those who wrote them into the fabric; here they are only passed on.

use abi::Control;
use fabric::log::{CELLS_PER_LINE, LogReader};
use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::host::UNITS;
use crate::regions::Regions;
use crate::report::Line;

/// The logs of all units, and what guests print.
#[derive(Debug)]
pub struct Voices<F: SharedMemory + Copy> {
    guests: LogReader<Part<F>>,
    units: [LogReader<Part<F>>; UNITS],
}

impl<F: SharedMemory + Copy> Voices<F> {
    /// Readers of everything that is written from now on, and of what is still there.
    pub fn new(regions: &Regions<F>) -> Self {
        let tool = Party::unit(system::TOOL_UK);
        Self {
            guests: LogReader::new(regions.find(RegionKind::ConsoleOut, tool)),
            units: core::array::from_fn(|index| LogReader::new(regions.unit(index).log)),
        }
    }

    /// Prints one line of each. False: nobody had anything to say.
    pub fn print_some<C: Control>(&mut self, xen: &C) -> bool {
        let mut said = print(&mut self.guests, "", xen);
        for (index, log) in self.units.iter_mut().enumerate() {
            said |= print(log, system::SYSTEM.units[index].name, xen);
        }
        said
    }
}

/// Prints one line: all its cells, if they are there.
fn print<F: SharedMemory + Copy, C: Control>(
    log: &mut LogReader<Part<F>>,
    name: &str,
    xen: &C,
) -> bool {
    let mut line = Line::new();
    for number in 0..CELLS_PER_LINE {
        let Some(cell) = log.next_line() else { break };
        if number == 0 && !name.is_empty() {
            line.say(format_args!("({name}) "));
        }
        line.say(format_args!("{}", cell.text.as_str()));
        if !cell.goes_on {
            break;
        }
    }
    line.print(xen)
}
