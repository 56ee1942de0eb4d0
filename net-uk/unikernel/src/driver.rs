//! The NIC's driver as a program in user mode.

use drivers::AnyDriver;
use drivers::trusted::Format;
use drivers::wall::{self, Outlet, Walled};
use runtime::user::{Inside, Program};

use crate::registers::NicRegisters;

/// Words before the commands of a batch: the kind of device, and where its windows begin.
const HEADER: usize = 5;

/// What the trusted part writes before the commands.
pub fn header(format: Format, windows: [u32; 4]) -> [u32; HEADER] {
    let [main, isr, device, notify] = windows;
    [format as u32, main, isr, device, notify]
}

/// The driver, once it was told what device it drives.
#[derive(Debug)]
pub struct Confined(Option<AnyDriver>);

impl Program for Confined {
    fn begin() -> Self {
        Self(None)
    }

    fn serve(&mut self, inside: &mut Inside) {
        let input = inside.input();
        #[cfg(feature = "fault-points")]
        let (fault, input) = input.split_first_chunk().expect("the order of a fault comes first");
        let (header, commands) = input.split_first_chunk::<HEADER>().expect("a header comes first");
        let [format, windows @ ..] = *header;
        let registers = NicRegisters::new(inside.registers(), windows);
        let is_virtio = format == Format::Virtio as u32;
        let format = if is_virtio { Format::Virtio } else { Format::E1000e };
        let driver = self.0.get_or_insert_with(|| AnyDriver::fresh(format));
        let view = inside.view();
        let out = Out(inside);
        #[cfg(feature = "fault-points")]
        let out = crate::fault_points::Failing::new(out, *fault);
        let mut machine = Walled::new(registers, view, out);
        wall::serve(driver, &mut machine, commands);
    }
}

/// The way out of user mode.
struct Out<'a>(&'a mut Inside);

impl Outlet for Out<'_> {
    fn put(&mut self, words: &[u32]) {
        self.0.put(words);
    }

    fn flush(&mut self) {
        self.0.flush();
    }
}
