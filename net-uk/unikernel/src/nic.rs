//! The NIC: its interrupt, its driver, and what happens when the driver fails.

use alloc::vec::Vec;

use abi::{Port, Xen};
use drivers::trusted::{Layout, LocalMachine, Rings, Salvaged, Stop};
use drivers::{AnyDriver, Command, Event};
use runtime::{DmaMemory, Hypervisor};
use shadow_driver::Cause;

use crate::registers::{Description, NicRegisters};

/// How often a device is asked whether it is quiet. It was reset before this life began, so that
/// the first answer counts; one that never is quiet has its Bus Master bit cleared by the next
/// recovery.
const STOP_TRIES: u32 = 1_000;

/// The NIC of this unit.
#[derive(Debug)]
pub struct Nic {
    xen: Hypervisor,
    machine: LocalMachine<NicRegisters, DmaMemory>,
    driver: AnyDriver,
    line: u32,
    port: Port,
    /// Its interrupt came since it was last ended.
    pub is_raised: bool,
    is_masked: bool,
}

impl Nic {
    /// Takes the device over, and stops it.
    ///
    /// # Panics
    /// When Xen refuses what the orchestrator gave us, or the device does not stop: the ladder
    /// goes on.
    pub fn open(xen: Hypervisor, what: &Description, arena: DmaMemory, layout: Layout) -> Self {
        let bus = arena.bus_addresses();
        let rings = Rings::new(what.format, arena, layout, bus, what.notify_unit);
        let machine = LocalMachine::new(NicRegisters::map(&xen, what), rings);
        let port = xen.bind_line(what.line).expect("the orchestrator lets us bind the interrupt");
        let mut nic = Self {
            xen,
            machine,
            driver: AnyDriver::fresh(what.format),
            line: what.line,
            port,
            is_raised: false,
            is_masked: false,
        };
        nic.stop();
        // One of a former life may wait for its end.
        nic.end_interrupt();
        nic
    }

    /// Whether events of `port` are the device's.
    pub fn owns(&self, port: Port) -> bool {
        self.port == port
    }

    fn stop(&mut self) {
        for _ in 0..STOP_TRIES {
            match self.machine.rings.stop(&mut self.machine.registers) {
                Stop::Quiet => return,
                Stop::Wait(pause_ns) => {
                    let until_ns = self.xen.now_ns() + u64::from(pause_ns);
                    while self.xen.now_ns() < until_ns {
                        core::hint::spin_loop();
                    }
                }
            }
        }
        panic!("the NIC goes on after it was told to stop");
    }

    /// Enters the driver with a batch.
    ///
    /// # Errors
    /// Why its life ends.
    pub fn run(&mut self, commands: &[Command], events: &mut Vec<Event>) -> Result<(), Cause> {
        let machine = &mut self.machine;
        machine.rings.lend(commands);
        drivers::run(&mut self.driver, machine, commands, events);
        machine.refused.map_or(Ok(()), |refused| Err(Cause::Forbidden(refused)))
    }

    /// The driver's life has ended: stops the device, makes a fresh driver, and answers what lay
    /// in the ring.
    pub fn renew(&mut self) -> Vec<Salvaged> {
        self.stop();
        self.machine.refused = None;
        self.driver = AnyDriver::fresh(self.machine.rings.format());
        self.machine.rings.salvage()
    }

    /// Lets the next interrupt come.
    pub fn end_interrupt(&mut self) {
        self.is_raised = false;
        self.xen.end_interrupt(self.line);
    }

    /// Keeps interrupts back.
    pub fn mask(&mut self) {
        self.is_raised = false;
        self.is_masked = true;
        self.xen.silence(self.port);
    }

    /// Whether they are kept back.
    pub fn is_masked(&self) -> bool {
        self.is_masked
    }

    /// Lets them come again.
    pub fn unmask(&mut self) {
        self.is_masked = false;
        self.xen.listen(self.port);
        self.end_interrupt();
    }
}
