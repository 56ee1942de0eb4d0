//! What services and guests have to say, on its way to the serial console. Texts were made
//! printable and bounded by those who wrote them into the fabric; here they are only passed on.

use abi::Control;
use fabric::log::{CELLS_PER_LINE, LogReader};
use fabric::view::{Party, RegionKind};
use fabric::{Part, SharedMemory};

use crate::host::UNITS;
use crate::regions::Regions;
use crate::report::Line;

/// How far each log was printed: the guests', then each unit's. It outlives a failure of ours, so
/// that nothing is printed twice.
pub type Heard = [u64; UNITS + 1];

/// The logs of all units, and what guests print.
#[derive(Debug)]
pub struct Voices<'a, F: SharedMemory + Copy> {
    logs: [LogReader<Part<F>>; UNITS + 1],
    heard: &'a mut Heard,
}

impl<'a, F: SharedMemory + Copy> Voices<'a, F> {
    /// Readers of everything behind what was `heard`, and of what is still there.
    pub fn new(regions: &Regions<F>, heard: &'a mut Heard) -> Self {
        let tool = Party::unit(system::TOOL_UK);
        let logs = core::array::from_fn(|index| {
            let log = match index.checked_sub(1) {
                None => regions.find(RegionKind::ConsoleOut, tool),
                Some(unit) => regions.unit(unit).log,
            };
            LogReader::resume(log, heard[index])
        });
        Self { logs, heard }
    }

    /// Prints one line of each. False: nobody had anything to say.
    pub fn print_some<C: Control>(&mut self, xen: &C) -> bool {
        let mut said = false;
        for (index, log) in self.logs.iter_mut().enumerate() {
            let unit = index.checked_sub(1);
            let name = unit.map_or("", |unit| system::SYSTEM.units[unit].name);
            said |= print(log, name, xen);
            self.heard[index] = log.position();
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
