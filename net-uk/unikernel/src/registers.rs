//! The NIC as the orchestrator describes it, and its registers.

use abi::Frame;
use drivers::trusted::Format;
use drivers::{Registers, Window};
use runtime::{DeviceRegisters, Hypervisor};

/// What the command line says: `nic=MODEL,FRAME,PAGES,LINE`, and for virtio where its windows
/// begin (common, interrupt status, device, notification) and the distance of notifications; in
/// hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its kind.
    pub format: Format,
    /// First machine frame of its registers.
    pub first: Frame,
    /// Pages of registers.
    pub pages: usize,
    /// Its line at the interrupt controller.
    pub line: u32,
    /// Where its windows begin.
    pub windows: [u32; 4],
    /// virtio: distance of notification registers, in bytes.
    pub notify_unit: u32,
}

impl Description {
    /// Reads the word's value. `None`: the orchestrator did not write it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(',');
        let format = match words.next()? {
            "e1000e" => Format::E1000e,
            "virtio-net" => Format::Virtio,
            _ => return None,
        };
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        let (first, pages, line) = (Frame(number()?), number()? as usize, number()? as u32);
        let mut windows = [0; 4];
        let mut notify_unit = 0;
        if format == Format::Virtio {
            for window in &mut windows {
                *window = number()? as u32;
            }
            notify_unit = number()? as u32;
        }
        Some(Self { format, first, pages, line, windows, notify_unit })
    }
}

/// The NIC's registers.
#[derive(Clone, Copy, Debug)]
pub struct NicRegisters {
    memory: DeviceRegisters,
    windows: [u32; 4],
}

impl NicRegisters {
    /// Registers that are mapped, whose windows begin there.
    pub fn new(memory: DeviceRegisters, windows: [u32; 4]) -> Self {
        Self { memory, windows }
    }

    /// Maps them.
    ///
    /// # Panics
    /// When Xen does not let us: the orchestrator gave us the device.
    pub fn map(xen: &Hypervisor, nic: &Description) -> Self {
        let memory = xen
            .map_registers(nic.first, nic.pages)
            .expect("the orchestrator lets us use the NIC's registers");
        Self::new(memory, nic.windows)
    }

    fn at(&self, window: Window, offset: u32) -> u32 {
        let [main, isr, device, notify] = self.windows;
        let base = match window {
            Window::Main => main,
            Window::Isr => isr,
            Window::Device => device,
            Window::Notify => notify,
        };
        base + offset
    }
}

impl Registers for NicRegisters {
    fn read8(&mut self, window: Window, offset: u32) -> u8 {
        self.memory.read8(self.at(window, offset))
    }

    fn read16(&mut self, window: Window, offset: u32) -> u16 {
        self.memory.read16(self.at(window, offset))
    }

    fn read32(&mut self, window: Window, offset: u32) -> u32 {
        self.memory.read32(self.at(window, offset))
    }

    fn write8(&mut self, window: Window, offset: u32, value: u8) {
        self.memory.write8(self.at(window, offset), value);
    }

    fn write16(&mut self, window: Window, offset: u32, value: u16) {
        self.memory.write16(self.at(window, offset), value);
    }

    fn write32(&mut self, window: Window, offset: u32, value: u32) {
        self.memory.write32(self.at(window, offset), value);
    }
}
