//! The NIC: its interrupt, its driver, and what happens when the driver fails.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use abi::{Port, Xen};
use drivers::trusted::{Layout, LocalMachine, Rings, Salvaged, Stop};
use drivers::{Command, Event, wall, wire};
use runtime::user::{Death, FaultDomain, Parts};
use runtime::{DmaMemory, Hypervisor};
use shadow_driver::Cause;

use crate::driver::{self, Confined};
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
    driver: FaultDomain<Confined>,
    header: [u32; 5],
    words: Vec<u32>,
    last_words: String,
    /// Faults that are to come.
    #[cfg(feature = "fault-points")]
    pub faults: crate::fault_points::Faults,
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
        let parts = Parts {
            registers: Some((what.first, what.pages)),
            view: Some((arena, wall::VIEW_PAGES as usize)),
        };
        let driver =
            FaultDomain::open(xen, &parts).expect("Xen accepts the page tables of user mode");
        let bus = arena.bus_addresses();
        let rings = Rings::new(what.format, arena, layout, bus, what.notify_unit);
        let machine = LocalMachine::new(NicRegisters::map(&xen, what), rings);
        let port = xen.bind_line(what.line).expect("the orchestrator lets us bind the interrupt");
        let mut nic = Self {
            xen,
            machine,
            driver,
            header: driver::header(what.format, what.windows),
            words: Vec::new(),
            last_words: String::new(),
            #[cfg(feature = "fault-points")]
            faults: crate::fault_points::Faults::default(),
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
        self.words.clear();
        #[cfg(feature = "fault-points")]
        self.words.extend(self.faults.order(self.xen.now_ns(), commands));
        self.words.extend(self.header);
        wire::write_commands(commands, &mut self.words);
        let machine = &mut self.machine;
        machine.rings.lend(commands);
        let mut is_garbled = false;
        let result = self.driver.enter(&self.words, |said| {
            is_garbled = wall::act(said, machine, events).is_err();
            !is_garbled && machine.refused.is_none()
        });
        let Err(death) = result else { return Ok(()) };
        self.last_words = match death {
            Death::Panicked => self.driver.panic_text().as_str().into(),
            _ => format!("{death}"),
        };
        Err(match (self.machine.refused, death) {
            (Some(refused), _) => Cause::Forbidden(refused),
            (None, Death::Endless { .. }) => Cause::Endless,
            (None, _) if is_garbled => Cause::Nonsense,
            (None, _) => Cause::Crashed,
        })
    }

    /// What is known of the death of the last driver that died in its fault domain.
    pub fn take_last_words(&mut self) -> String {
        mem::take(&mut self.last_words)
    }

    /// The driver's life has ended: stops the device, makes a fresh driver, and answers what lay
    /// in the ring.
    pub fn renew(&mut self) -> Vec<Salvaged> {
        self.stop();
        self.machine.refused = None;
        self.driver.renew();
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
